package lab_test

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"lethe/lab"
)

func TestRemote(t *testing.T) {
	l := bare(t)
	r, err := lab.Connect(ctx(t), l.Prefix())
	if err != nil {
		t.Fatal(err)
	}
	info, err := r.Info(ctx(t))
	if err != nil || len(info.Machines) != 5 || len(info.Units) != 1 || info.Units[0].State != lab.Active {
		t.Fatalf("got %+v, %v", info, err)
	}
	if got, err := info.Machine("customer-1").Run(ctx(t), "cat", "/etc/hosts"); err != nil || !strings.HasPrefix(got, "127.0.0.1 localhost\n") {
		t.Errorf("got %q, %v", got, err)
	}
	pid := info.Units[0].PID
	if err := r.Kill(ctx(t), "nsd"); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if info, err = r.Info(ctx(t)); err != nil || info.Units[0].State == lab.Active && info.Units[0].PID != pid {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("it does not come back: %+v", info)
		}
	}
	if err := r.Restart(ctx(t), "nsd"); err != nil {
		t.Error(err)
	}
	if err := r.Restart(ctx(t), "nobody"); err == nil || err.Error() != "unit nobody: no such unit runs" {
		t.Errorf("got %v", err)
	}
	if err := r.Kill(ctx(t), "nobody"); err == nil {
		t.Error("a unit that does not exist was killed")
	}
	if err := r.Down(ctx(t)); err != nil {
		t.Error(err)
	}
	<-l.Done()
	if _, err := lab.Connect(ctx(t), l.Prefix()); !errors.Is(err, lab.ErrNoLab) {
		t.Errorf("got %v, want no lab", err)
	}
}

// TestRemoteJunk sends what no client of ours sends.
func TestRemoteJunk(t *testing.T) {
	l := bare(t)
	for name, c := range map[string]struct{ sent, want string }{
		"nothing": {"\n", "not a line of JSON"},
		"words":   {"down please\n", "not a line of JSON"},
		"long":    {strings.Repeat(" ", 5000), "not a line of JSON"},
		"unknown": {`{"do":"dance"}` + "\n", "no such request"},
	} {
		t.Run(name, func(t *testing.T) {
			conn, err := net.Dial("unix", "@lethe-lab-"+l.Prefix())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if _, err := conn.Write([]byte(c.sent)); err != nil {
				t.Fatal(err)
			}
			var a struct{ Error string }
			if err := json.NewDecoder(conn).Decode(&a); err != nil || !strings.Contains(a.Error, c.want) {
				t.Errorf("got %q, %v, want %q", a.Error, err, c.want)
			}
		})
	}
}

// TestDown takes labs down in every state: while coming up, when up, when its
// process has died, and again.
func TestDown(t *testing.T) {
	t.Run("bad prefix", func(t *testing.T) {
		if err := lab.Down(ctx(t), "*", shortDir(t)); err == nil || !strings.Contains(err.Error(), "want 1 to 6") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("not there", func(t *testing.T) {
		if err := lab.Down(ctx(t), prefix(), shortDir(t)); err != nil {
			t.Error(err)
		}
	})
	t.Run("half-way", func(t *testing.T) {
		o := lab.Options{Prefix: prefix(), Dir: shortDir(t), Bare: true}
		down := make(chan error, 1)
		o.Step = func(name string) func(error) {
			if strings.HasPrefix(name, "network") {
				if r, err := lab.Connect(ctx(t), o.Prefix); err == nil || !strings.Contains(err.Error(), "still coming up") {
					t.Errorf("got %v, %v, want still coming up", r, err)
				}
				go func() { down <- lab.Down(context.Background(), o.Prefix, o.Dir) }()
			}
			return func(error) {}
		}
		l, err := lab.New(ctx(t), o)
		if err == nil { // the request came after the last step
			if err := l.Close(); err != nil {
				t.Error(err)
			}
		} else if !errors.Is(err, context.Canceled) && !strings.Contains(err.Error(), "killed") {
			t.Errorf("New: got %v", err)
		}
		if err := <-down; err != nil {
			t.Error(err)
		}
		noTrace(t, o.Prefix, o.Dir)
	})
	t.Run("crashed", func(t *testing.T) {
		o := lab.Options{Prefix: prefix(), Dir: shortDir(t)}
		self, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		// A lab in a process of its own, which is killed when all of it runs.
		c := exec.Command(self)
		c.Env = append(os.Environ(), "LAB_CRASH="+o.Prefix+" "+o.Dir)
		if out, err := c.CombinedOutput(); err == nil || !strings.Contains(err.Error(), "killed") {
			t.Fatalf("got %v: %s", err, out)
		}
		if left, _ := filepath.Glob("/run/netns/lethe-" + o.Prefix + "-*"); len(left) != 5 {
			t.Fatalf("the crash left %v", left)
		}
		for range 2 {
			if err := lab.Down(ctx(t), o.Prefix, o.Dir); err != nil {
				t.Error(err)
			}
			noTrace(t, o.Prefix, o.Dir)
		}
	})
}

func FuzzReadRequest(f *testing.F) {
	f.Add([]byte(`{"do":"info"}` + "\n"))
	f.Add([]byte("\x00\xff\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if lab.ReadRequest(b) == nil && !json.Valid(b[:strings.IndexByte(string(b), '\n')]) {
			t.Errorf("accepted %q", b)
		}
	})
}
