package testkit_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"lethe/internal/testkit"
)

// The tests run in namespaces, and one of them in namespaces inside of these: what it does there, the second
// variable says.
const (
	nested = "LETHE_TESTKIT_TEST"
	deeper = "LETHE_TESTKIT_DEEPER"
	task   = "LETHE_TESTKIT_TASK"
)

// idle is the command line of a process that a test leaves behind.
const idle = "sleep\x003601\x00"

func TestMain(m *testing.M) {
	switch {
	case os.Getenv(task) == "stand in":
		os.Exit(9)
	case os.Getenv(deeper) != "":
		os.Exit(inside(os.Getenv(task)))
	case os.Getenv(nested) != "" || os.Geteuid() != 0:
		os.Exit(m.Run())
	}
	os.Exit(testkit.InNamespaces(nested, idle))
}

// inside is a test run that goes wrong in many ways.
func inside(task string) int {
	switch task {
	case "killed":
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	case "mounts":
		err := testkit.OwnMounts()
		if err == nil {
			err = testkit.Command("mount -t tmpfs lethe-testkit /mnt")
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 2
		}
		_ = os.WriteFile("/mnt/here", nil, 0o600)
	case "leaves":
		if err := exec.Command("sleep", "3601").Start(); err != nil {
			return 2
		}
		for len(testkit.Processes(idle)) == 0 { // until it is no copy of this one any more
			time.Sleep(time.Millisecond)
		}
	}
	return 7
}

// processes returns how many processes in any namespace are idle.
func processes() (n int) {
	list, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, f := range list {
		if b, _ := os.ReadFile(f); string(b) == idle {
			n++
		}
	}
	return n
}

func TestInNamespaces(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root for namespaces")
	}
	before := processes()
	for name, want := range map[string]int{"killed": 1, "mounts": 7, "leaves": 7, "": 7} {
		t.Setenv(task, name)
		cmdline := ""
		if name == "leaves" {
			cmdline = idle
		}
		if got := testkit.InNamespaces(deeper, cmdline); got != want {
			t.Errorf("%s: exit code %d, want %d", name, got, want)
		}
	}
	if _, err := os.Stat("/mnt/here"); err == nil {
		t.Error("a mount has left its namespace")
	}
	testkit.Eventually(t, 10*time.Second, func() bool { return processes() <= before }, func() string { return "a process was left" })
	args, stderr := os.Args, os.Stderr
	defer func() { os.Args, os.Stderr = args, stderr }()
	os.Args, os.Stderr = []string{"test", "zero\x00byte"}, nil
	if got := testkit.InNamespaces(deeper, ""); got != 1 {
		t.Errorf("exit code %d of what cannot start", got)
	}
}

func TestProcesses(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root for namespaces")
	}
	here, elsewhere := exec.Command("sleep", "3601"), exec.Command("sleep", "3601")
	elsewhere.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	for _, cmd := range []*exec.Cmd{here, elsewhere} {
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	}
	found := func() string { return fmt.Sprint(testkit.Processes(idle)) }
	testkit.Eventually(t, 10*time.Second, func() bool { return found() == fmt.Sprint([]int{here.Process.Pid}) }, found)
	testkit.Reap(idle)
	if err := here.Wait(); err == nil || err.Error() != "signal: killed" {
		t.Errorf("it ended with %v", err)
	}
	if err := elsewhere.Process.Signal(syscall.Signal(0)); err != nil {
		t.Errorf("another namespace's process: %v", err)
	}
}

func TestLog(t *testing.T) {
	var log testkit.Log
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 100 {
				fmt.Fprint(&log, "line\n")
				_ = log.String()
			}
		})
	}
	wg.Wait()
	if got := log.String(); got != strings.Repeat("line\n", 800) {
		t.Errorf("got %d bytes", len(got))
	}
}

func TestJournal(t *testing.T) {
	var j testkit.Journal
	go func() {
		for i := range 3 {
			j.Note("end %d", i)
		}
		j.Note("start")
	}()
	j.Await(t, "start", 1, time.Minute)
	if got := j.Count("end "); got != 3 || fmt.Sprint(j.Entries()) != "[end 0 end 1 end 2 start]" {
		t.Errorf("%d ends of %q", got, j.Entries())
	}
	if got := fails(t, func(tb testing.TB) { j.Await(tb, "start", 2, time.Millisecond) }); got != `after 1ms: want 2 × "start", got ["end 0" "end 1" "end 2" "start"]` {
		t.Errorf("got %q", got)
	}
}

// failing is a test that is expected to fail.
type failing struct {
	testing.TB
	said string
}

func (*failing) Helper() {}

func (f *failing) Fatal(args ...any) { f.said = fmt.Sprint(args...); panic(f) }

func (f *failing) Fatalf(format string, args ...any) { f.said = fmt.Sprintf(format, args...); panic(f) }

func fails(t *testing.T, do func(testing.TB)) string {
	t.Helper()
	f := &failing{TB: t}
	func() {
		defer func() { _ = recover() }()
		do(f)
	}()
	return f.said
}

func TestEventually(t *testing.T) {
	n := 0
	testkit.Eventually(t, time.Minute, func() bool { n++; return n == 3 }, func() string { return "never asked" })
	got := fails(t, func(tb testing.TB) {
		testkit.Eventually(tb, time.Millisecond, func() bool { return false }, func() string { return "why" })
	})
	if got != "after 1ms: why" {
		t.Errorf("got %q", got)
	}
}

func TestCommand(t *testing.T) {
	if err := testkit.Command("test 1 -eq 1"); err != nil {
		t.Error(err)
	}
	if err := testkit.Command("cat /nonexistent"); err == nil || !strings.Contains(err.Error(), "cat /nonexistent: exit status 1: cat: /nonexistent: ") {
		t.Errorf("got %v", err)
	}
}

// TestInstall runs programs while others are being written, which fails with ETXTBSY where they are written by the test
// itself.
func TestInstall(t *testing.T) {
	dir := t.TempDir()
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			for j := range 10 {
				path := filepath.Join(dir, fmt.Sprint(i, ".", j))
				testkit.Install(t, path, "#!/bin/sh\nexit 7\n")
				if err := exec.Command(path).Run(); err == nil || err.Error() != "exit status 7" {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if got := fails(t, func(tb testing.TB) { testkit.Install(tb, dir+"/none/x", "") }); !strings.HasPrefix(got, "install: exit status 1: ") {
		t.Errorf("got %q", got)
	}
}

func TestStandIn(t *testing.T) {
	path := filepath.Join(t.TempDir(), "program")
	testkit.StandIn(t, path, `[ "$1" != version ] || exit 3`, task+"='stand in'")
	if err := exec.Command(path).Run(); err == nil || err.Error() != "exit status 9" {
		t.Errorf("the test binary did not run: %v", err)
	}
	if err := exec.Command(path, "version").Run(); err == nil || err.Error() != "exit status 3" {
		t.Errorf("the lines did not run: %v", err)
	}
	if got := fails(t, func(tb testing.TB) { testkit.StandIn(tb, "/nonexistent/x", "", "") }); !strings.HasPrefix(got, "install -m 755 ") {
		t.Errorf("got %q", got)
	}
}

func TestMust(t *testing.T) {
	if got := testkit.Must[int](t)(strconv.Atoi("7")); got != 7 {
		t.Errorf("got %d", got)
	}
	got := fails(t, func(tb testing.TB) { testkit.Must[int](tb)(strconv.Atoi("x")) })
	if !strings.Contains(got, `parsing "x"`) {
		t.Errorf("got %q", got)
	}
}
