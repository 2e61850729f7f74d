package lab_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"lethe/lab"
)

// run calls the command as its main does.
func run(t *testing.T, stdin string, args ...string) (code int, out, trouble string) {
	t.Helper()
	var o, e bytes.Buffer
	code = lab.Run(ctx(t), args, strings.NewReader(stdin), &o, &e, func(string) string { return "dumb" })
	return code, o.String(), e.String()
}

func TestCommand(t *testing.T) {
	l := bare(t)
	for name, c := range map[string]struct {
		args         string
		code         int
		out, trouble string // parts
	}{
		"status":        {"status", 0, "customer-1   lethe-" + l.Prefix() + "-customer-1 203.0.113.10 2001:db8:3::a\n", ""},
		"status units":  {"status", 0, "nsd                  active     pid ", ""},
		"run":           {"run customer-1 curl -sS http://www.river.example/", 0, "address: 2001:db8:3::a\n", ""},
		"run dashes":    {"run customer-1 -- echo -n x", 0, "x", ""},
		"exit code":     {"run control sh -c exit~7", 7, "", ""},
		"no machine":    {"run nobody true", 1, "", `error: no machine "nobody": there are inet, control, nl-ams-1, us-nyc-1, customer-1`},
		"operator":      {"operator", 0, "192.0.2.53", ""},
		"shell":         {"shell", 0, "192.0.2.53", ""},
		"other shell":   {"shell nl-ams-1", 0, "192.0.2.53", ""},
		"restart":       {"restart nsd", 0, "", ""},
		"no unit":       {"restart nobody", 1, "", "error: unit nobody: no such unit runs\n"},
		"kill no unit":  {"restart --kill nobody", 1, "", "error: unit nobody: no such unit runs\n"},
		"logs":          {"logs", 0, "== nsd\n", ""},
		"one log":       {"logs nsd", 0, "== nsd\n", ""},
		"no log":        {"logs nobody", 1, "", `error: no output of a unit "nobody"`},
		"no command":    {"dance", 1, "", `error: unknown command "dance"`},
		"usage":         {"run customer-1", 1, "", "error: requires at least 2 arg(s)"},
		"second up":     {"serve --bare --progress 99", 1, "", "is running already"},
		"bad customers": {"serve --bare --customers 1000 --prefix x --progress 99", 1, "", "error: lab: 1000 customers"},
	} {
		t.Run(name, func(t *testing.T) {
			args := append([]string{"--prefix", l.Prefix()}, strings.Fields(c.args)...)
			for i := range args {
				args[i] = strings.ReplaceAll(args[i], "~", " ")
			}
			code, out, trouble := run(t, "cat /etc/resolv.conf\n", args...)
			if code != c.code || !strings.Contains(out, c.out) || !strings.Contains(trouble, c.trouble) {
				t.Errorf("got %d, %q, %q, want %d, %q, %q", code, out, trouble, c.code, c.out, c.trouble)
			}
		})
	}
	code, out, _ := run(t, "", "status", "--json", "--prefix", l.Prefix())
	var info lab.Info
	if err := json.Unmarshal([]byte(out), &info); code != 0 || err != nil || info.Prefix != l.Prefix() {
		t.Errorf("status --json: %d, %v", code, err)
	}
	t.Run("gone", func(t *testing.T) {
		if code, out, trouble := run(t, "", "down", "--prefix", l.Prefix()); code != 0 || out+trouble != "" {
			t.Errorf("down: %d, %s", code, trouble)
		}
		for _, args := range []string{"status", "shell", "logs", "restart nsd"} {
			code, _, trouble := run(t, "", append(strings.Fields(args), "--prefix", l.Prefix())...)
			if code != 1 || !strings.Contains(trouble, "error: lab: no lab is running") || !strings.HasSuffix(trouble, "hint: make up\n") {
				t.Errorf("%s: %d, %s", args, code, trouble)
			}
		}
		if code, _, _ := run(t, "", "down", "--prefix", prefix(), "--dir", shortDir(t)); code != 0 {
			t.Error("down of nothing fails")
		}
	})
}

// TestServe holds a lab as the background process does.
func TestServe(t *testing.T) {
	for name, end := range map[string]func(context.CancelFunc, *lab.Remote) error{
		"signal": func(cancel context.CancelFunc, _ *lab.Remote) error { cancel(); return nil },
		"down":   func(_ context.CancelFunc, r *lab.Remote) error { return r.Down(context.Background()) },
	} {
		t.Run(name, func(t *testing.T) {
			name, dir := prefix(), shortDir(t)
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			fd, err := unix.Dup(int(w.Fd()))
			if w.Close(); err != nil {
				t.Fatal(err)
			}
			c, cancel := context.WithCancel(ctx(t))
			defer cancel()
			served := make(chan int, 1)
			go func() {
				served <- lab.Run(c, []string{"serve", "--bare", "--prefix", name, "--dir", dir, fmt.Sprint("--progress=", fd)},
					strings.NewReader(""), io.Discard, io.Discard, os.Getenv)
			}()
			said, err := io.ReadAll(r)
			if err != nil || strings.Count(string(said), "✓") != 4 || !strings.HasSuffix(string(said), "✓ lab is up\n") {
				t.Errorf("got %q, %v", said, err)
			}
			remote, err := lab.Connect(ctx(t), name)
			if err != nil {
				t.Fatal(err)
			}
			if err := end(cancel, remote); err != nil {
				t.Error(err)
			}
			if code := <-served; code != 0 {
				t.Errorf("serve: %d", code)
			}
			noTrace(t, name, dir)
		})
	}
	t.Run("nobody listens", func(t *testing.T) {
		name, dir := prefix(), shortDir(t)
		if code, _, _ := run(t, "", "serve", "--bare", "--prefix", name, "--dir", dir, "--progress", "99"); code != 1 {
			t.Error("a lab that nobody knows of was kept")
		}
		noTrace(t, name, dir)
	})
}

// TestUp starts the background process; in its place this test binary runs
// the command, see TestMain.
func TestUp(t *testing.T) {
	t.Setenv("LAB_COMMAND", "1")
	name, dir := prefix(), shortDir(t)
	code, out, trouble := run(t, "", "up", "--bare", "--prefix", name, "--dir", dir)
	if code != 0 || !strings.Contains(out, "✓ lab is up") || !strings.Contains(out, "make shell") {
		t.Fatalf("up: %d, %s%s", code, out, trouble)
	}
	code, out, trouble = run(t, "", "up", "--bare", "--prefix", name, "--dir", dir)
	if code != 1 || !strings.Contains(out, "is running already") || !strings.Contains(trouble, "the lab did not come up") {
		t.Errorf("second up: %d, %s%s", code, out, trouble)
	}
	if code, _, trouble := run(t, "", "down", "--prefix", name); code != 0 {
		t.Errorf("down: %s", trouble)
	}
	noTrace(t, name, dir)
	// Interrupted while it comes up.
	c, cancel := context.WithTimeout(ctx(t), 20*time.Millisecond)
	defer cancel()
	if code := lab.Run(c, []string{"up", "--bare", "--prefix", name, "--dir", dir}, strings.NewReader(""), io.Discard, io.Discard, os.Getenv); code != 1 {
		t.Errorf("interrupted: %d", code)
	}
	noTrace(t, name, dir)
}

// programs builds Lethe's programs for the lab, once for all tests.
func programs(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "labbin")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	build := exec.CommandContext(ctx(t), "go", "build", "-buildvcs=false", "-tags", "lab", "-o", dir+"/bin/", "lethe/cmd/lethe", "lethe/cmd/lethe-control", "lethe/cmd/lethe-node")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return dir + "/bin"
}

// TestWhole brings up the whole service and lets one customer through it.
func TestWhole(t *testing.T) {
	bin := programs(t)
	l := bare(t, func(o *lab.Options) {
		o.Bare, o.BinDir, o.Customers = false, bin, 2
	})
	r, err := lab.Connect(ctx(t), l.Prefix())
	if err != nil {
		t.Fatal(err)
	}
	info, err := r.Info(ctx(t))
	if err != nil {
		t.Fatal(err)
	}
	var story bytes.Buffer
	if err := lab.Tour(ctx(t), info, &story); err != nil {
		t.Fatalf("%v\n%s", err, story.Bytes())
	}
	for _, want := range []string{"address: 198.51.100.1", "5000000 bytes", "disconnected", "nl-ams    DE       Elbe Telekom"} {
		if !strings.Contains(story.String(), want) {
			t.Errorf("the story lacks %q:\n%s", want, story.Bytes())
		}
	}
	t.Run("told twice", func(t *testing.T) {
		if err := lab.Tour(ctx(t), info, io.Discard); err == nil {
			t.Error("the same customer signed up twice")
		}
	})
	t.Run("secrets are given once", func(t *testing.T) {
		if err := l.Activate(ctx(t), l.Server(0)); err == nil {
			t.Error("a running server took secrets again")
		}
		if err := l.Restart(ctx(t), l.Server(0).Name); err != nil {
			t.Error(err)
		}
	})
}
