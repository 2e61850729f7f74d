package daemon_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"lethe/daemon"
	"lethe/internal/testkit"
)

// uid is a user that no machine has.
const uid = 64199

// perl is on every Debian system (package perl-base).
const perl = "/usr/bin/perl"

func start(t *testing.T, s daemon.Spec) *daemon.Process {
	t.Helper()
	p, err := daemon.Start(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Stop(context.Background(), 0) })
	return p
}

func shell(script string) daemon.Spec {
	return daemon.Spec{Path: "/bin/sh", Args: []string{"-c", script}, UID: uint32(os.Getuid()), GID: uint32(os.Getgid())}
}

// TestExit shows that exit codes come back and output is counted to its end.
func TestExit(t *testing.T) {
	for script, want := range map[string]struct {
		code  int
		lines uint64
	}{
		"exit 0":                               {0, 0},
		"echo a; echo b >&2; printf c; exit 7": {7, 2},
		"kill -9 $$":                           {-1, 0},
		"sleep 60 & exit 3":                    {3, 0}, // a child of the child keeps the pipe open
	} {
		p := start(t, shell(script))
		code, err := p.Wait(t.Context())
		if code != want.code || err != nil || p.Lines() != want.lines {
			t.Errorf("%q: exit %d, %v, %d lines, want %d, %d lines", script, code, err, p.Lines(), want.code, want.lines)
		}
		if err := p.Signal(unix.SIGTERM); !errors.Is(err, os.ErrProcessDone) {
			t.Errorf("signal after the end: %v", err)
		}
		if strings.HasPrefix(script, "sleep") { // end what the child left in its session
			_ = unix.Kill(-p.Identity().PID, unix.SIGKILL)
		}
		p.Release()
		if err := p.Signal(0); !errors.Is(err, os.ErrProcessDone) {
			t.Errorf("signal after the release: %v", err)
		}
		if err := p.Stop(t.Context(), time.Second); err != nil {
			t.Errorf("stop after the release: %v", err)
		}
	}
}

// TestWorld shows what a child sees of its agent: nothing.
func TestWorld(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("other users need root")
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte("open file"), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("SECRET", "do not inherit")
	secret := bytes.Repeat([]byte("configuration\n"), 40000) // more than a pipe holds by default
	script := `test "$(id -u):$(id -g):$(id -G)" = 64199:64199:64199 || exit 1
test -z "$SECRET" && test "$GIVEN" = yes || exit 2
test "$(pwd)" = / || exit 3
test "$(cat /dev/stdin | wc -c)" = 560000 || exit 4
test "$(cat <&3)" = "open file" || exit 5
test "$(ulimit -c)" = 0 || exit 6
grep -q "^CapEff:.0000000000000400$" /proc/self/status || exit 7
test "$(ps -o sid= -p $$ | tr -d ' ')" = $$ || exit 8
for i in 1 2 3 4 5 6 7 8 9; do head -c 9999 /dev/zero; done; exit 0` // what does not fit into the pipe is lost, and no reason to fail
	spec := daemon.Spec{
		Path: "/bin/sh", Args: []string{"-c", script}, Env: []string{"GIVEN=yes", "PATH=/usr/bin:/bin"}, UID: uid, GID: uid,
		Caps: []uintptr{unix.CAP_NET_BIND_SERVICE}, Stdin: secret, Files: []*os.File{f},
	}
	p := start(t, spec)
	_ = f.Close()
	if code, err := p.Wait(t.Context()); code != 0 || err != nil {
		t.Errorf("exit %d, %v", code, err)
	}
	fds, _ := os.ReadDir("/proc/self/fd")
	for range 20 {
		p := start(t, daemon.Spec{Path: "/bin/true", Stdin: []byte("x")})
		if err := p.Stop(t.Context(), time.Second); err != nil {
			t.Fatal(err)
		}
	}
	if now, _ := os.ReadDir("/proc/self/fd"); len(now) > len(fds)+2 {
		t.Errorf("%d open files before, %d after 20 processes", len(fds), len(now))
	}
}

func TestStop(t *testing.T) {
	for script, limit := range map[string]time.Duration{
		"sleep 60 & trap 'kill $!; exit 0' TERM; wait": 5 * time.Second,
		"trap '' TERM; while :; do sleep 0.05; done":   5 * time.Second,
	} {
		p := start(t, shell(script))
		time.Sleep(100 * time.Millisecond) // until the trap is set
		began := time.Now()
		if err := p.Stop(t.Context(), 300*time.Millisecond); err != nil {
			t.Error(err)
		}
		if time.Since(began) > limit {
			t.Errorf("%q took %v to stop", script, time.Since(began))
		}
		if _, err := daemon.Identify(p.Identity().PID); err == nil {
			t.Errorf("%q still runs", script)
		}
	}
	p := start(t, shell("sleep 60"))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := p.Wait(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("wait: %v", err)
	}
	select {
	case <-p.Done():
		t.Error("done while it runs")
	default:
	}
}

func TestStartRefuses(t *testing.T) {
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for name, c := range map[string]struct {
		ctx  context.Context
		spec daemon.Spec
	}{
		"ended context":  {ended, shell("exit 0")},
		"no program":     {t.Context(), daemon.Spec{Path: "/nonexistent/program", Stdin: []byte("secret")}},
		"too much input": {t.Context(), daemon.Spec{Path: "/bin/true", Stdin: make([]byte, 1<<20+1)}},
	} {
		if p, err := daemon.Start(c.ctx, c.spec); err == nil || !strings.HasPrefix(err.Error(), "start ") || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v, %v", name, p, err)
		}
	}
	var was unix.Rlimit // no file can be opened any more
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	for spare := range 8 {
		fds, _ := os.ReadDir("/proc/self/fd")
		low := unix.Rlimit{Cur: uint64(len(fds) - 1 + spare), Max: was.Max}
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &low); err != nil {
			t.Fatal(err)
		}
		p, err := daemon.Start(t.Context(), daemon.Spec{Path: "/bin/true", Stdin: []byte("x")})
		if e := unix.Setrlimit(unix.RLIMIT_NOFILE, &was); e != nil {
			t.Fatal(e)
		}
		if err == nil {
			_ = p.Stop(t.Context(), time.Second)
		} else if !strings.HasPrefix(err.Error(), "start true: ") {
			t.Errorf("%d spare files: %v", spare, err)
		}
	}
}

// TestAdopt ends an agent with SIGKILL while its child prints without pause, and
// shows that the child goes on, that a new agent can watch it, drains its output
// again and sees it end.
func TestAdopt(t *testing.T) {
	agent := exec.Command(os.Args[0], "-test.run=^TestAgent$", "-test.v")
	agent.Env = append(os.Environ(), "LETHE_AGENT=1")
	out, err := agent.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := agent.Start(); err != nil {
		t.Fatal(err)
	}
	var pid int
	var ticks uint64
	for b := make([]byte, 4096); pid == 0; {
		n, err := out.Read(b)
		if err != nil {
			t.Fatal(err)
		}
		if _, s, ok := strings.Cut(string(b[:n]), "child: "); ok {
			_, _ = fmt.Sscan(s, &pid, &ticks)
		}
	}
	_ = agent.Process.Kill()
	_ = agent.Wait()
	time.Sleep(300 * time.Millisecond) // the pipe is full by now, and nobody reads it
	id, err := daemon.ParseIdentity(fmt.Sprintf("%d %d\n", pid, ticks))
	if err != nil {
		t.Fatal(err)
	}
	if now, err := daemon.Identify(pid); err != nil || now != id {
		t.Fatalf("the child is %v, %v, want %v", now, err, id)
	}
	for name, c := range map[string]struct {
		id   daemon.Identity
		path string
	}{
		"another start": {daemon.Identity{PID: id.PID, Start: id.Start + 1}, perl},
		"other program": {id, "/bin/sh"},
		"no program":    {id, "/nonexistent"},
		"no process":    {daemon.Identity{PID: 1 << 22, Start: 1}, perl},
	} {
		if _, err := daemon.Adopt(c.id, c.path); err == nil {
			t.Errorf("%s: adopted", name)
		}
	}
	p, err := daemon.Adopt(id, perl)
	if err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, 10*time.Second, func() bool { return p.Lines() > 100000 }, func() string { return "its output is not drained" })
	p.Release() // for the next agent
	if p, err = daemon.Adopt(id, perl); err != nil {
		t.Fatal(err)
	}
	if err := p.Stop(t.Context(), time.Second); err != nil {
		t.Error(err)
	}
	if code, err := p.Wait(t.Context()); code != -1 || err != nil {
		t.Errorf("exit %d, %v", code, err)
	}
}

// TestAgent is the agent of TestAdopt. Its child writes for ever and would stop
// at once if a write blocked or failed for want of a reader.
func TestAgent(t *testing.T) {
	if os.Getenv("LETHE_AGENT") == "" {
		t.Skip("part of TestAdopt")
	}
	p, err := daemon.Start(t.Context(), daemon.Spec{Path: perl, Args: []string{"-e", `$SIG{PIPE} = "DEFAULT"; while (1) { syswrite(STDOUT, "name and address\n") }`}})
	if err != nil {
		t.Fatal(err)
	}
	fmt.Printf("child: %v\n", p.Identity())
	<-p.Done()
}

func TestParseIdentity(t *testing.T) {
	for _, bad := range []string{"", "1 2", "x 5", "12", "12 ", "12 -1", "12 5 6", "99999999999 5", "-12 5"} {
		if id, err := daemon.ParseIdentity(bad); err == nil {
			t.Errorf("%q gives %v", bad, id)
		}
	}
	if _, err := daemon.Identify(1 << 22); err == nil {
		t.Error("nobody has an identity")
	}
}

func FuzzParseIdentity(f *testing.F) {
	f.Add("12 345\n")
	f.Add("0 0")
	f.Fuzz(func(t *testing.T, s string) {
		id, err := daemon.ParseIdentity(s)
		if err != nil {
			return
		}
		if back, err := daemon.ParseIdentity(id.String()); err != nil || back != id {
			t.Errorf("%q becomes %v, %v", s, back, err)
		}
	})
}

// TestKeep shows that a process is started again after each end, and a start that
// fails is repeated.
func TestKeep(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	calls, seen := 0, []uint64{}
	p := daemon.Keep(ctx, start(t, shell("exit 0")), func(ctx context.Context) (*daemon.Process, error) {
		calls++
		switch calls {
		case 1:
			return nil, errors.New("not yet")
		case 2:
			return daemon.Start(ctx, shell("exit 1"))
		default:
			return daemon.Start(ctx, shell("sleep 60"))
		}
	}, func(p *daemon.Process, starts uint64) {
		seen = append(seen, starts)
		if starts == 2 {
			cancel()
		}
	})
	if p == nil || calls != 3 || fmt.Sprint(seen) != "[0 1 2]" {
		t.Errorf("%v after %d calls, told %v", p, calls, seen)
	}
	if err := p.Stop(t.Context(), time.Second); err != nil {
		t.Error(err)
	}
	ctx, cancel = context.WithCancel(t.Context())
	p = daemon.Keep(ctx, nil, func(context.Context) (*daemon.Process, error) {
		cancel()
		return nil, errors.New("never")
	}, nil)
	if p != nil {
		t.Error("a process out of nothing")
	}
}
