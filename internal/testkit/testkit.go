// Package testkit is what the tests of several packages need: namespaces of their own ([InNamespaces]), a log
// that is read while it is written ([Log]), the calls of a part ([Journal]), waiting that ends as soon as it can
// ([Eventually]), and programs that stand in for others ([Install], [StandIn]).
package testkit

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Log keeps what is written to it. It is safe for concurrent use.
type Log struct {
	mu sync.Mutex
	b  bytes.Buffer
}

// Write implements [io.Writer] and never fails.
func (l *Log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

// String returns everything that was written.
func (l *Log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// Journal is what a part was told, an entry for each call. It is safe for concurrent use.
type Journal struct {
	mu      sync.Mutex
	entries []string
}

// Note adds an entry.
func (j *Journal) Note(format string, args ...any) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.entries = append(j.entries, fmt.Sprintf(format, args...))
}

// Entries returns a copy of all entries.
func (j *Journal) Entries() []string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.Clone(j.entries)
}

// Count returns how many entries begin with what.
func (j *Journal) Count(what string) (n int) {
	for _, e := range j.Entries() {
		if strings.HasPrefix(e, what) {
			n++
		}
	}
	return n
}

// Await waits until n entries begin with what.
func (j *Journal) Await(tb testing.TB, what string, n int, limit time.Duration) {
	tb.Helper()
	Eventually(tb, limit, func() bool { return j.Count(what) >= n }, func() string { return fmt.Sprintf("want %d × %q, got %q", n, what, j.Entries()) })
}

// Eventually waits until ok and fails the test with otherwise when it is not in time.
func Eventually(tb testing.TB, limit time.Duration, ok func() bool, otherwise func() string) {
	tb.Helper()
	for end := time.Now().Add(limit); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			tb.Fatalf("after %s: %s", limit, otherwise())
		}
	}
}

// InNamespaces is for a TestMain that is not in namespaces of its own yet, and needs root: it runs the test
// binary again, with variable=1 in its environment, in a network and a mount namespace, and returns its exit
// code. Both are nameless and end with it. What has the command line of [Processes] and is left there, by a
// test that panicked, is killed; an empty one stands for none.
func InNamespaces(variable, cmdline string) int {
	self, err := os.Executable() // holds also where /proc/self is somebody else
	cmd := exec.Command(self, os.Args[1:]...)
	cmd.Env = append(os.Environ(), variable+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "namespaces for the tests:", err)
		return 1
	}
	there := namespace(strconv.Itoa(cmd.Process.Pid))
	_ = cmd.Wait() // the exit code says it
	if cmdline != "" {
		reap(there, cmdline)
	}
	if code := cmd.ProcessState.ExitCode(); code >= 0 {
		return code
	}
	return 1 // killed
}

// OwnMounts keeps what is mounted from now on in the mount namespace of [InNamespaces].
func OwnMounts() error { return syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, "") }

func namespace(pid string) string {
	ns, _ := os.Readlink("/proc/" + pid + "/ns/net") // "" when it has ended
	return ns
}

// Processes returns the processes in this network namespace that have a command line, given with a zero byte
// after each argument (proc_pid_cmdline(5)).
func Processes(cmdline string) []int { return processes(namespace("self"), cmdline) }

func processes(ns, cmdline string) (pids []int) {
	list, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, f := range list {
		pid := filepath.Base(filepath.Dir(f))
		b, _ := os.ReadFile(f)
		if string(b) == cmdline && namespace(pid) == ns {
			n, _ := strconv.Atoi(pid) // digits, says the pattern
			pids = append(pids, n)
		}
	}
	return pids
}

// Reap kills the processes of [Processes]: a test's last resort.
func Reap(cmdline string) { reap(namespace("self"), cmdline) }

func reap(ns, cmdline string) {
	for _, pid := range processes(ns, cmdline) {
		_ = syscall.Kill(pid, syscall.SIGKILL) // fails only when it has ended
	}
}

// Command runs a command line without quotes, with what it printed in its error.
func Command(line string) error {
	f := strings.Fields(line)
	if out, err := exec.Command(f[0], f[1:]...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", line, err, out)
	}
	return nil
}

// Install makes a program of a shell script. It is written by another process: a descriptor of ours could be
// inherited by a child that is being started at this moment, and the kernel runs no file that is open for
// writing (ETXTBSY in execve(2)).
func Install(tb testing.TB, path, script string) {
	tb.Helper()
	cp := exec.Command("install", "-m", "755", "/dev/stdin", path)
	cp.Stdin = strings.NewReader(script)
	if out, err := cp.CombinedOutput(); err != nil {
		tb.Fatalf("install: %v: %s", err, out)
	}
}

// StandIn makes a program of the test binary: a shell script that begins with these lines and then runs a copy of it,
// which lies beside and any user may run, with more in its environment ("KEY=value …").
func StandIn(tb testing.TB, path, lines, environment string) {
	tb.Helper()
	self := filepath.Join(filepath.Dir(path), "self")
	if err := Command(fmt.Sprintf("install -m 755 /proc/%d/exe %s", os.Getpid(), self)); err != nil {
		tb.Fatal(err)
	}
	Install(tb, path, fmt.Sprintf("#!/bin/sh\n%s\n%s exec %s\n", lines, environment, self))
}

// Must returns what a call gave, or ends the test with its error: Must[[]byte](t)(os.ReadFile(path)).
func Must[T any](t testing.TB) func(v T, err error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}
