package daemon_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"lethe/daemon"
	"lethe/internal/testkit"
)

// asChild makes the test binary the child of a Supervisor; its value says what kind of.
const asChild = "LETHE_DAEMON_CHILD"

func TestMain(m *testing.M) {
	if kind := os.Getenv(asChild); kind != "" {
		os.Exit(child(kind, os.Args[1]))
	}
	os.Exit(m.Run())
}

// child greets with two lines, then serves a socket: "print" makes it print a line and answer, "hang up" makes
// it end the connection. A mute one does not answer, a deaf one does not listen.
func child(kind, socket string) int {
	fmt.Print("a warning\nanother\n")
	if kind == "deaf" {
		time.Sleep(time.Hour) // it is killed before
		return 0
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		return 1
	}
	for {
		c, err := l.Accept()
		if err != nil {
			return 1
		}
		go func() {
			defer c.Close()
			for sc := bufio.NewScanner(c); sc.Scan() && sc.Text() != "hang up"; {
				if kind != "mute" {
					fmt.Println("name and address")
					_, _ = io.WriteString(c, "printed\n")
				}
			}
		}()
	}
}

// agent is a Supervisor and what it was told.
type agent struct {
	sup    daemon.Supervisor[*talk]
	answer time.Duration // what a child gets to answer
	stop   func() error  // ends Run and returns what it does

	mu      sync.Mutex
	events  []string
	process *daemon.Process // the last one that was started
	talks   []*talk
	dials   int // that succeeded
}

// talk is a connection to a child.
type talk struct {
	*net.UnixConn
	pid     int
	answers chan string // closed when the connection has broken
}

// Close closes it.
func (c *talk) Close() { _ = c.UnixConn.Close() }

// say sends a line and reports whether there was an answer.
func (c *talk) say(line string) bool {
	_, err := io.WriteString(c, line+"\n")
	return err == nil && <-c.answers != ""
}

// supervise runs children of these kinds, one after another, until the end of the test.
func supervise(t *testing.T, socket string, change func(*agent), kinds ...string) *agent {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	a := &agent{answer: time.Minute}
	a.sup = daemon.Supervisor[*talk]{
		Binary: self,
		Start: func(ctx context.Context) (*daemon.Process, error) {
			kind := kinds[0]
			if len(kinds) > 1 {
				kinds = kinds[1:]
			}
			a.note("start " + kind)
			if kind == "none" {
				return nil, errors.New("there is none")
			}
			_ = os.Remove(socket) // of another process, which nobody shall talk to any more
			p, err := daemon.Start(ctx, daemon.Spec{
				Path: self, Args: []string{socket}, Env: []string{asChild + "=" + kind, "GORACE=atexit_sleep_ms=0"},
				UID: uint32(os.Getuid()), GID: uint32(os.Getgid()),
			})
			a.mu.Lock()
			defer a.mu.Unlock()
			a.process = p
			return p, err
		},
		Dial: func(ctx context.Context) (*talk, int, error) {
			conn, pid, err := daemon.Dial(ctx, socket, uint32(os.Getuid()))
			if err != nil {
				return nil, 0, err
			}
			a.mu.Lock()
			defer a.mu.Unlock()
			a.dials++
			return &talk{conn, pid, make(chan string, 1)}, pid, nil
		},
		Talk:      a.talk,
		Adopted:   func() { a.note("adopted") },
		Restarted: func(n uint64) { a.note(fmt.Sprintf("restarted %d", n)) },
		Ended:     func(lines uint64) { a.note(fmt.Sprintf("ended %d", lines)) },
		Silent:    func() { a.note("silent") },
		Redial:    time.Millisecond, Patience: time.Minute, Grace: 10 * time.Second,
	}
	if change != nil {
		change(a)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.sup.Run(ctx) }()
	a.stop = sync.OnceValue(func() error { cancel(); return <-done })
	t.Cleanup(func() { _ = a.stop() })
	return a
}

func (a *agent) note(what string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.events = append(a.events, what)
}

// said returns what has happened.
func (a *agent) said() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return strings.Join(a.events, ", ")
}

// talk asks whether the child answers and hands the connection to the test until it breaks.
func (a *agent) talk(ctx context.Context, c *talk) (answered bool) {
	defer close(c.answers)
	defer c.Close()
	defer context.AfterFunc(ctx, c.Close)()
	_, err := io.WriteString(c, "print\n")
	_ = c.SetReadDeadline(time.Now().Add(a.answer))
	for sc := bufio.NewScanner(c); err == nil && sc.Scan(); {
		if answered {
			c.answers <- sc.Text()
			continue
		}
		answered = true
		_ = c.SetReadDeadline(time.Time{})
		a.mu.Lock()
		a.talks, a.events = append(a.talks, c), append(a.events, "talk")
		a.mu.Unlock()
	}
	return answered
}

// conversation returns the nth conversation, from 1, as soon as there is one.
func (a *agent) conversation(t *testing.T, n int) (c *talk) {
	t.Helper()
	testkit.Eventually(t, 30*time.Second, func() bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		if len(a.talks) >= n {
			c = a.talks[n-1]
		}
		return c != nil
	}, a.said)
	return c
}

// printed waits until n lines of the process that was started last were dropped.
func (a *agent) printed(t *testing.T, n uint64) {
	t.Helper()
	a.mu.Lock()
	defer a.mu.Unlock()
	testkit.Eventually(t, 30*time.Second, func() bool { return a.process.Lines() == n }, func() string { return fmt.Sprintf("it printed %d lines, want %d", a.process.Lines(), n) })
}

// want waits until everything has happened that is wanted, in that order.
func (a *agent) want(t *testing.T, events string) {
	t.Helper()
	testkit.Eventually(t, 30*time.Second, func() bool { return a.said() == events }, func() string { return a.said() + ", want " + events })
}

// alive reports whether a process runs.
func alive(pid int) bool { _, err := daemon.Identify(pid); return err == nil }

// TestSupervisor lets the connection break, kills the process and stops it.
func TestSupervisor(t *testing.T) {
	a := supervise(t, filepath.Join(t.TempDir(), "s"), nil, "none", "good")
	first := a.conversation(t, 1)
	a.printed(t, 3) // its warnings, and one to answer
	a.sup.Serving()
	if !first.say("print") || first.say("hang up") {
		t.Error("the child does not do as it is told")
	}
	second := a.conversation(t, 2)
	if second.pid != first.pid || !a.sup.Started() {
		t.Errorf("process %d, want %d", second.pid, first.pid)
	}
	if err := unix.Kill(first.pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	third := a.conversation(t, 3)
	if third.pid == first.pid {
		t.Error("a process that was killed answers")
	}
	a.printed(t, 3)
	a.sup.Serving()
	a.sup.Serving() // changes nothing
	if !third.say("print") {
		t.Error("no answer")
	}
	if err := a.stop(); err != nil || alive(third.pid) {
		t.Errorf("stopped: %v, process runs: %t", err, alive(third.pid))
	}
	a.want(t, "start none, start good, talk, talk, ended 2, start good, restarted 1, talk, ended 1")
}

// leave runs an agent that leaves its process behind.
func leave(t *testing.T, socket string) (pid int) {
	t.Helper()
	a := supervise(t, socket, func(a *agent) { a.sup.Detach = true }, "good")
	pid = a.conversation(t, 1).pid
	t.Cleanup(func() { _ = unix.Kill(pid, unix.SIGKILL) }) // it has ended before, or is our child and not reaped
	a.printed(t, 3)
	if err := a.stop(); err != nil || !alive(pid) || a.said() != "start good, talk" {
		t.Fatalf("detached: %v, process runs: %t, %s", err, alive(pid), a.said())
	}
	return pid
}

// TestSupervisorAdopts takes over what another has left, over the connection that found it.
func TestSupervisorAdopts(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	pid := leave(t, socket)
	a := supervise(t, socket, nil, "good")
	if c := a.conversation(t, 1); c.pid != pid || a.said() != "adopted, talk" || a.dials != 1 {
		t.Errorf("process %d, want %d: %s, %d connections", c.pid, pid, a.said(), a.dials)
	}
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	a.conversation(t, 2)
	if err := a.stop(); err != nil {
		t.Error(err)
	}
	a.want(t, "adopted, talk, ended 1, start good, restarted 1, talk, ended 0")
}

// TestSupervisorRefuses shows that what runs another program is not taken over.
func TestSupervisorRefuses(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	pid := leave(t, socket)
	a := supervise(t, socket, func(a *agent) { a.sup.Binary = "/bin/sh" }, "good")
	if c := a.conversation(t, 1); c.pid == pid || a.dials != 2 || !alive(pid) {
		t.Errorf("process %d, which was there: %d; %s, %d connections", c.pid, pid, a.said(), a.dials)
	}
	if err := a.stop(); err != nil {
		t.Error(err)
	}
	a.want(t, "start good, talk, ended 0")
}

// TestSupervisorKills shows what becomes of a process that does not listen and of one that does not answer.
func TestSupervisorKills(t *testing.T) {
	a := supervise(t, filepath.Join(t.TempDir(), "s"), func(a *agent) {
		a.sup.Patience, a.answer = 2*time.Second, 100*time.Millisecond
	}, "deaf", "mute", "good")
	a.conversation(t, 1)
	if err := a.stop(); err != nil {
		t.Error(err)
	}
	a.want(t, "start deaf, silent, ended 0, start mute, restarted 1, silent, ended 0, start good, restarted 2, talk, ended 0")
}

// TestSupervisorWaits shows that nothing is started while somebody still thinks of the former process.
func TestSupervisorWaits(t *testing.T) {
	a := supervise(t, filepath.Join(t.TempDir(), "s"), func(a *agent) {
		a.sup.Talk = func(ctx context.Context, c *talk) bool {
			defer a.note("hung up")
			defer time.Sleep(500 * time.Millisecond) // a process is started again after 100
			return a.talk(ctx, c)
		}
	}, "good")
	if err := unix.Kill(a.conversation(t, 1).pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	a.conversation(t, 2)
	a.want(t, "start good, talk, hung up, ended 0, start good, restarted 1, talk")
}

// TestSupervisorWithout ends one that has nothing to stop.
func TestSupervisorWithout(t *testing.T) {
	a := supervise(t, filepath.Join(t.TempDir(), "s"), nil, "none")
	testkit.Eventually(t, 30*time.Second, func() bool { return a.said() != "" }, a.said)
	if err := a.stop(); err != nil || a.sup.Started() {
		t.Errorf("%v, started: %t", err, a.sup.Started())
	}
	a.sup.Serving() // nobody
}

// TestDial shows that only a process of the right user is talked to.
func TestDial(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	if _, _, err := daemon.Dial(t.Context(), path, 0); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("nobody listens: %v", err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	us := uint32(os.Getuid())
	conn, pid, err := daemon.Dial(t.Context(), path, us)
	if err != nil || pid != os.Getpid() {
		t.Fatalf("process %d, %v, want %d", pid, err, os.Getpid())
	}
	there, err := l.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	if cred, err := daemon.Peer(there); err != nil || int(cred.Pid) != os.Getpid() || cred.Uid != us || cred.Gid != uint32(os.Getgid()) {
		t.Errorf("%+v, %v", cred, err)
	}
	conn.Close()
	there.Close()
	for _, c := range []*net.UnixConn{there, new(net.UnixConn)} {
		if cred, err := daemon.Peer(c); err == nil {
			t.Errorf("nobody is %+v", cred)
		}
	}
	if conn, _, err := daemon.Dial(t.Context(), path, us+1); conn != nil || err == nil || !strings.Contains(err.Error(), "not ours") {
		t.Errorf("a stranger: %v", err)
	}
	if there, err = l.AcceptUnix(); err != nil {
		t.Fatal(err)
	}
	defer there.Close()
	if n, err := there.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("a stranger is kept on the line: %d, %v", n, err)
	}
}
