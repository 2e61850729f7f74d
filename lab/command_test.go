package lab_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
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
		"no help":       {"help dance", 1, "", "error: no command \"dance\"\nhint: see `lethe-lab --help`\n"},
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

// workshop is the directory of what tests share: bin, with Lethe's programs built for
// the lab, and the GeoIP file. TestMain removes it.
var workshop = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "labbin")
	if err != nil {
		return "", err
	}
	build := exec.Command("go", "build", "-buildvcs=false", "-tags", "lab", "-o", dir+"/bin/", "lethe/cmd/lethe", "lethe/cmd/lethe-control", "lethe/cmd/lethe-node")
	if out, err := build.CombinedOutput(); err != nil {
		return dir, fmt.Errorf("%w: %s", err, out)
	}
	return dir, nil
})

// used says that there is a workshop.
var used atomic.Bool

func programs(t *testing.T) string {
	t.Helper()
	used.Store(true)
	dir, err := workshop()
	if err != nil {
		t.Fatal(err)
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
	for _, want := range []string{"address: 198.51.100.1", "5000000 bytes", "error: the one device that this licence allows is connected", "connected  1\nlimit      1", "disconnected", "nl-ams    DE       Elbe Telekom"} {
		if !strings.Contains(story.String(), want) {
			t.Errorf("the story lacks %q:\n%s", want, story.Bytes())
		}
	}
	t.Run("an app that lies", func(t *testing.T) {
		// In place of the app: a program that does nothing and says that all is well,
		// or fails at one command.
		dir := t.TempDir()
		script := "#!/bin/sh\n[ \"$1\" != \"$FAIL\" ] || exit 3\n"
		all := *info
		all.Machines = nil
		for _, m := range info.Machines {
			liar := *m
			liar.BinDir = dir
			all.Machines = append(all.Machines, &liar)
		}
		for _, name := range []string{"lethe", "lethe-control"} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(script), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		for fail, want := range map[string]string{
			"none": "the web site sees 2001:db8:3::a, want an address of nl-ams-1", "signup": "lethe signup: exit status 3", "connect": "lethe connect: exit status 3",
		} {
			all.Machine("customer-1").Env = []string{"FAIL=" + fail}
			if err := lab.Tour(ctx(t), &all, io.Discard); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: got %v, want %q", fail, err, want)
			}
		}
	})
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

// TestBroken brings labs up whose control plane fails at one command, and whose
// other programs are missing: each is named, and nothing stays.
func TestBroken(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can make network namespaces")
	}
	real := programs(t)
	dir := t.TempDir()
	const script = "#!/bin/sh\ncase \"$1 $2\" in \"$FAIL\"*) echo \"$SAY\"; [ \"$SAY\" ] || { echo broken >&2; exit 9; };; *) exec \"$REAL/lethe-control\" \"$@\";; esac\n"
	if err := os.WriteFile(dir+"/lethe-control", []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct{ fail, say, want string }{
		"geoip":          {"geoip", "", "GeoIP file from location.db: lethe-control: exit status 9: broken"},
		"init":           {"init", "", "locations and servers: lethe-control: exit status 9: broken"},
		"server":         {"server add", "", "locations and servers: lethe-control: exit status 9: broken"},
		"keys":           {"keys node", "", "locations and servers: lethe-control: exit status 9: broken"},
		"no keys":        {"keys node", "oops", "want JSON with salt and seal"},
		"short keys":     {"keys node", `{"salt":"AAAA"}`, "want JSON with salt and seal"},
		"serve":          {"serve --", "", "lethe-control serves: unit lethe-control: ended before it was ready (exit status 9)"},
		"no lethe-node":  {"never", "", "VPN server nl-ams-1 in Amsterdam: boots, waits, is told its secrets: unit nl-ams-1: ended before"},
		"empty activate": {"keys node", `{"salt":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=","seal":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="}`, "nl-ams-1 in Amsterdam: boots, waits, is told its secrets"},
	} {
		t.Run(name, func(t *testing.T) {
			o := lab.Options{Prefix: prefix(), Dir: shortDir(t), BinDir: dir, GeoIP: dir + "/none.mmdb",
				Env: []string{"REAL=" + real, "FAIL=" + c.fail, "SAY=" + c.say}}
			if name != "geoip" {
				o.GeoIP = filepath.Join(real, "../geoip.mmdb") // the one of TestWhole, or else made now
			}
			if name == "empty activate" {
				o.Env = append(o.Env, "PATH="+dir+":"+real+":"+os.Getenv("PATH"))
			}
			l, err := lab.New(ctx(t), o)
			if err == nil {
				l.Close()
			}
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
			noTrace(t, o.Prefix, o.Dir)
		})
	}
}
