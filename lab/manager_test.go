package lab_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"lethe/lab"
	"lethe/notify"
)

// TestMain lets the test binary be a service: with LAB_SERVICE in the
// environment it is one instead of running tests.
func TestMain(m *testing.M) {
	if mode := os.Getenv("LAB_SERVICE"); mode != "" {
		if err := service(mode); err != nil {
			fmt.Fprintln(os.Stderr, "error:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if crash := os.Getenv("LAB_CRASH"); crash != "" {
		prefix, dir, _ := strings.Cut(crash, " ")
		_, err := lab.New(context.Background(), lab.Options{Prefix: prefix, Dir: dir, Bare: true})
		fmt.Println(err)
		if err == nil {
			_ = unix.Kill(os.Getpid(), unix.SIGKILL)
		}
		os.Exit(1)
	}
	if os.Getenv("LAB_COMMAND") != "" {
		c, stop := signal.NotifyContext(context.Background(), unix.SIGTERM)
		code := lab.Run(c, os.Args[1:], os.Stdin, os.Stdout, os.Stderr, os.Getenv)
		stop()
		os.Exit(code)
	}
	code := m.Run()
	if used.Load() {
		dir, _ := workshop()
		_ = os.RemoveAll(dir)
	}
	os.Exit(code)
}

// service counts its instances in a memfd that the manager keeps, and tells
// the count in its runtime directory.
func service(mode string) error {
	term := make(chan os.Signal, 1)
	signal.Notify(term, unix.SIGTERM)
	if mode == "deaf" {
		signal.Ignore(unix.SIGTERM)
	}
	kept, err := notify.Restore()
	if err != nil {
		return err
	}
	f := kept["count"]
	if f == nil {
		fd, err := unix.MemfdCreate("count", unix.MFD_CLOEXEC)
		if err != nil {
			return err
		}
		f = os.NewFile(uintptr(fd), "count")
		if err := notify.Store("count", f); err != nil {
			return err
		}
	}
	if _, err := f.WriteString("i"); err != nil {
		return err
	}
	count, err := io.ReadAll(io.NewSectionReader(f, 0, 1000))
	if err != nil {
		return err
	}
	switch mode {
	case "dies":
		return errors.New("no reason")
	case "silent":
		<-term
		return nil
	case "hoards":
		for i := range 100 {
			if err := notify.Store(fmt.Sprint("more", i), f); err != nil {
				return err
			}
		}
	case "removes":
		if err := errors.Join(notify.Store("second", f), notify.Remove("count")); err != nil {
			return err
		}
	}
	path := filepath.Join(os.Getenv("RUNTIME_DIRECTORY"), "count")
	if err := os.WriteFile(path+".new", count, 0o644); err != nil {
		return err
	}
	if err := errors.Join(os.Rename(path+".new", path), notify.Ready(), notify.Ready()); err != nil {
		return err
	}
	if mode == "short" {
		return nil
	}
	<-term
	return notify.Stopping()
}

func serviceUnit(t *testing.T, m *lab.Machine, mode string) lab.Unit {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return lab.Unit{Name: "svc", Machine: m, Args: []string{self}, Env: []string{"LAB_SERVICE=" + mode}, Notify: true}
}

// status waits until the service's state is as wanted.
func status(t *testing.T, l *lab.Lab, ok func(lab.Status) bool) lab.Status {
	t.Helper()
	var last lab.Status
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		for _, last = range l.Units() {
			if last.Unit == "svc" && ok(last) {
				return last
			}
		}
	}
	t.Fatalf("the service is at %+v", last)
	return last
}

func count(t *testing.T, m *lab.Machine) int {
	t.Helper()
	b, err := os.ReadFile(m.Path("/run/svc/count"))
	if err != nil {
		t.Fatal(err)
	}
	return len(b)
}

func TestService(t *testing.T) {
	l := bare(t)
	m := l.Control()
	if err := l.Start(ctx(t), serviceUnit(t, m, "good")); err != nil {
		t.Fatal(err)
	}
	first := status(t, l, func(s lab.Status) bool { return s.State == lab.Active && s.Stored == 1 })
	if count(t, m) != 1 || first.PID == 0 || first.Restarts != 0 {
		t.Errorf("after the start: count %d, %+v", count(t, m), first)
	}
	if err := l.Start(ctx(t), serviceUnit(t, m, "good")); err == nil || !strings.Contains(err.Error(), "runs already") {
		t.Errorf("second start: got %v", err)
	}
	if err := l.Kill("svc", unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	second := status(t, l, func(s lab.Status) bool { return s.State == lab.Active && s.Restarts == 1 })
	if count(t, m) != 2 || second.PID == first.PID || second.Stored != 1 {
		t.Errorf("after the crash: count %d, %+v", count(t, m), second)
	}
	if err := l.Restart(ctx(t), "svc"); err != nil {
		t.Fatal(err)
	}
	if third := status(t, l, func(s lab.Status) bool { return s.State == lab.Active }); count(t, m) != 3 || third.Restarts != 1 {
		t.Errorf("after the restart: count %d, %+v", count(t, m), third)
	}
	if err := l.Stop(ctx(t), "svc"); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(m.Path("/run/svc")); err == nil {
		t.Error("the runtime directory outlives the stop")
	}
	if err := l.Start(ctx(t), serviceUnit(t, m, "good")); err != nil {
		t.Fatal(err)
	}
	if count(t, m) != 1 {
		t.Errorf("the descriptor store outlives the stop: count %d", count(t, m))
	}
}

func TestServiceFails(t *testing.T) {
	l := bare(t)
	for mode, want := range map[string]string{
		"dies":   "ended before it was ready (exit status 1)",
		"silent": "not ready after 300ms",
	} {
		u := serviceUnit(t, l.Control(), mode)
		if mode == "silent" {
			u.Timeout = 300 * time.Millisecond
		}
		err := l.Start(ctx(t), u)
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), l.LogPath("svc")) {
			t.Errorf("%s: got %v, want %q and the log's path", mode, err, want)
		}
		if units := l.Units(); len(units) != 1 {
			t.Errorf("%s: still there: %+v", mode, units)
		}
	}
	if b, err := os.ReadFile(l.LogPath("svc")); err != nil || !strings.HasPrefix(string(b), "error: no reason\n") {
		t.Errorf("log: got %q, %v", b, err)
	}
	for name, err := range map[string]error{
		"stop":    l.Stop(ctx(t), "nobody"),
		"restart": l.Restart(ctx(t), "nobody"),
		"kill":    l.Kill("nobody", unix.SIGTERM),
	} {
		if err == nil || err.Error() != "unit nobody: no such unit runs" {
			t.Errorf("%s: got %v", name, err)
		}
	}
	u := serviceUnit(t, l.Control(), "good")
	u.Name = "no/directory"
	if err := l.Start(ctx(t), u); err == nil {
		t.Error("a unit whose socket cannot be made was started")
	}
	if err := os.Mkdir(l.LogPath("svc2"), 0o700); err != nil {
		t.Fatal(err)
	}
	u.Name = "svc2"
	if err := l.Start(ctx(t), u); err == nil || !strings.Contains(err.Error(), "is a directory") {
		t.Errorf("a unit without output file: got %v", err)
	}
}

// TestServiceOrders covers orders that meet a unit in an unusual moment.
func TestServiceOrders(t *testing.T) {
	l := bare(t)
	m := l.Control()
	t.Run("start given up", func(t *testing.T) {
		c, cancel := context.WithTimeout(ctx(t), 100*time.Millisecond)
		defer cancel()
		if err := l.Start(c, serviceUnit(t, m, "silent")); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v, want a deadline", err)
		}
		if len(l.Units()) != 1 {
			t.Error("the unit is still there")
		}
	})
	t.Run("stop while starting", func(t *testing.T) {
		started := make(chan error, 1)
		go func() { started <- l.Start(ctx(t), serviceUnit(t, m, "silent")) }()
		status(t, l, func(s lab.Status) bool { return s.PID != 0 })
		if err := l.Stop(ctx(t), "svc"); err != nil {
			t.Error(err)
		}
		if err := <-started; err == nil || !strings.Contains(err.Error(), "stopped before it was ready") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("stop of one that crashes for ever", func(t *testing.T) {
		if err := l.Start(ctx(t), serviceUnit(t, m, "short")); err != nil {
			t.Fatal(err)
		}
		status(t, l, func(s lab.Status) bool { return s.Restarts >= 3 })
		status(t, l, func(s lab.Status) bool { return s.State == lab.Inactive })
		if err := l.Kill("svc", unix.SIGTERM); err != nil && !strings.Contains(err.Error(), "no process now") && !errors.Is(err, syscall.ESRCH) {
			t.Error(err)
		}
		if err := l.Stop(ctx(t), "svc"); err != nil {
			t.Error(err)
		}
	})
	t.Run("deaf", func(t *testing.T) {
		u := serviceUnit(t, m, "deaf")
		u.Timeout = 500 * time.Millisecond
		if err := l.Start(ctx(t), u); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		if err := l.Stop(ctx(t), "svc"); err != nil || time.Since(began) < u.Timeout {
			t.Errorf("got %v after %v", err, time.Since(began))
		}
	})
	t.Run("hoards", func(t *testing.T) {
		if err := l.Start(ctx(t), serviceUnit(t, m, "hoards")); err != nil {
			t.Fatal(err)
		}
		if s := status(t, l, func(s lab.Status) bool { return s.State == lab.Active }); s.Stored != 64 {
			t.Errorf("%d descriptors stored, want 64", s.Stored)
		}
		if err := l.Stop(ctx(t), "svc"); err != nil {
			t.Error(err)
		}
	})
	t.Run("removes", func(t *testing.T) {
		if err := l.Start(ctx(t), serviceUnit(t, m, "removes")); err != nil {
			t.Fatal(err)
		}
		if s := status(t, l, func(s lab.Status) bool { return s.State == lab.Active }); s.Stored != 1 {
			t.Errorf("%d descriptors stored, want 1", s.Stored)
		}
	})
	t.Run("simple", func(t *testing.T) {
		if err := l.Start(ctx(t), lab.Unit{Name: "sleep", Machine: m, Args: []string{"sleep", "1000"}}); err != nil {
			t.Fatal(err)
		}
	})
}

// TestNameServerNotifies: nsd is a daemon that others wrote; it is ready by the same
// protocol.
func TestNameServerNotifies(t *testing.T) {
	l := bare(t)
	if s := l.Units(); len(s) != 1 || s[0].Unit != "nsd" || s[0].State != lab.Active {
		t.Errorf("got %+v", s)
	}
	if err := l.Restart(ctx(t), "nsd"); err != nil {
		t.Error(err)
	}
}

func FuzzParseNotification(f *testing.F) {
	f.Add([]byte("READY=1\nSTATUS=x\n"))
	f.Add([]byte("FDSTORE=1\nFDNAME=a"))
	f.Add([]byte("==\n\n="))
	f.Fuzz(func(t *testing.T, b []byte) {
		for key, value := range lab.ParseNotification(b) {
			if strings.ContainsAny(key, "=\n") || strings.Contains(value, "\n") {
				t.Errorf("got %q = %q", key, value)
			}
		}
		if fds := lab.Descriptors(b); len(fds) > len(b) {
			t.Errorf("%d descriptors out of %d bytes", len(fds), len(b))
		}
	})
}
