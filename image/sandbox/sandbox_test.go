package sandbox_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"lethe/fault"
	"lethe/image/sandbox"
)

// as is the name under which the test runs itself as somebody else.
const as = "sandbox-test-as"

func TestMain(m *testing.M) {
	if code, inside := sandbox.Inside(); inside {
		os.Exit(code)
	}
	if os.Args[0] == as {
		fmt.Println(other(os.Args[1:]))
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// place is a tree with a tool in it, and a directory to work in.
type place struct {
	sandbox.Tree
	work string
}

// command runs the probe.
func (p place) command(out *bytes.Buffer, args ...string) sandbox.Command {
	c := sandbox.Command{Args: append([]string{"/bin/probe"}, args...), Env: []string{"A=b"}, Dir: "/work", Binds: []sandbox.Bind{{Outside: p.work, Inside: "/work"}}}
	if out != nil { // not a nil *bytes.Buffer in an interface
		c.Output = out
	}
	return c
}

// newPlace makes one that everybody may use.
func newPlace(t *testing.T) place {
	t.Helper()
	dir, err := os.MkdirTemp("", "sandbox-test-*")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	p := place{sandbox.Tree{Dir: filepath.Join(dir, "tree")}, filepath.Join(dir, "work")}
	for _, d := range []string{dir, p.Dir, filepath.Join(p.Dir, "bin"), p.work} {
		if err := errors.Join(os.MkdirAll(d, 0o755), os.Chmod(d, 0o777)); err != nil {
			t.Fatal(err)
		}
	}
	build := exec.Command("go", "build", "-o", filepath.Join(p.Dir, "bin", "probe"), "./testdata/probe")
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-buildvcs=false")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return p
}

type seen struct {
	PID, UID, Umask  int
	Host, Dir        string
	Env, Root, Links []string
	Caps             [2]uint32
	Bounding         bool
	Writable         []string
	Stdin            string
	NoNewPrivs       int
}

func look(p place) (s seen, err error) {
	var out bytes.Buffer
	c := p.command(&out)
	c.Stdin = strings.NewReader("hello")
	if err := p.Run(context.Background(), c); err != nil {
		return s, err
	}
	return s, json.Unmarshal(out.Bytes(), &s)
}

func (s seen) check() error {
	slices.Sort(s.Env)
	slices.Sort(s.Links)
	got := fmt.Sprintf("%+v", s)
	s.Links = slices.DeleteFunc(s.Links, func(l string) bool { return !strings.Contains(l, "up") })
	want := seen{PID: 1, Umask: 0o022, Host: sandbox.HostName, Dir: "/work", Env: []string{"A=b", "HOME=/tmp", "LC_ALL=C", "PATH=/usr/bin:/usr/sbin", "TZ=UTC"},
		Root: []string{"bin", "dev", "tmp", "work"}, Links: []string{}, Writable: []string{"/tmp", "/work"}, Stdin: "hello", NoNewPrivs: 1}
	if fmt.Sprintf("%+v", s) != fmt.Sprintf("%+v", want) {
		return fmt.Errorf("inside is\n%s\nwant\n%+v", got, want)
	}
	return nil
}

func TestRun(t *testing.T) {
	p := newPlace(t)
	s, err := look(p)
	if err == nil {
		err = s.check()
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(p.work, "x")); err != nil {
		t.Error("what the tool wrote is not outside:", err)
	}
	for _, dir := range []string{"tmp", "dev"} {
		if entries, err := os.ReadDir(filepath.Join(p.Dir, dir)); err != nil || len(entries) > 0 {
			t.Errorf("%s of the tree has %v after the tool, %v", dir, entries, err)
		}
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil || strings.Contains(string(mounts), p.Dir) {
		t.Errorf("something is still mounted: %v", err)
	}
}

func TestFailures(t *testing.T) {
	p := newPlace(t)
	var out bytes.Buffer
	err := p.Run(context.Background(), p.command(&out, "fail"))
	var failed *sandbox.Failed
	if !errors.As(err, &failed) || failed.Code != 7 || failed.Tool != "probe" || failed.Error() != "probe ended with 7: out of luck" || out.String() != "out of luck\n" {
		t.Errorf("got %v and %q", err, out.String())
	}
	if err := p.Run(context.Background(), p.command(nil, "fail")); !errors.As(err, &failed) || failed.Output != "out of luck" {
		t.Errorf("without a place for output: %v", err)
	}
	if got := sandbox.DecodeTrouble([]byte("{")); got == nil {
		t.Error("what is no trouble is taken")
	}
	if got := (&sandbox.Failed{Tool: "x", Code: 1}).Error(); got != "x ended with 1" {
		t.Error(got)
	}
	for name, tt := range map[string]struct {
		change func(*place, *sandbox.Command)
		want   string
	}{
		"no tool":      {func(_ *place, c *sandbox.Command) { c.Args[0] = "/bin/none" }, "the tool does not start: no such file"},
		"no directory": {func(_ *place, c *sandbox.Command) { c.Dir = "/none" }, "sandbox: root: no such file"},
		"no bind":      {func(_ *place, c *sandbox.Command) { c.Binds[0].Outside = "/none" }, "sandbox: mounts: no such file"},
		"bind on file": {func(_ *place, c *sandbox.Command) { c.Binds[0].Inside = "/bin/probe" }, "not a directory"},
		"file as tree": {func(p *place, c *sandbox.Command) { p.Dir = filepath.Join(p.Dir, "bin", "probe"); c.Binds = nil }, "not a directory"},
	} {
		t.Run(name, func(t *testing.T) {
			p := p
			c := p.command(nil)
			tt.change(&p, &c)
			if err := p.Run(context.Background(), c); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %s", err, tt.want)
			}
		})
	}
}

// notify is a writer that tells of its first line.
type notify struct {
	bytes.Buffer
	line chan string
}

func (n *notify) Write(b []byte) (int, error) {
	n.line <- string(b)
	return len(b), nil
}

// TestCancel ends a tool that ignores signals, together with its child, which holds the output open.
func TestCancel(t *testing.T) {
	p := newPlace(t)
	ctx, cancel := context.WithCancel(context.Background())
	out := &notify{line: make(chan string, 10)}
	c := p.command(nil, "hang")
	c.Output = out
	done := make(chan error)
	go func() { done <- p.Run(ctx, c) }()
	if got := <-out.line; got != "hanging true <nil>\n" {
		t.Errorf("got %q", got)
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if err := p.Run(ctx, c); !errors.Is(err, context.Canceled) {
		t.Errorf("with an ended context: %v", err)
	}
}

// insideVar tells the test that it is in namespaces of its own: "TREE WORK".
const insideVar = "LETHE_SANDBOX_INSIDE"

// TestInside does step by step, where coverage is counted, what happens between namespaces and tool.
func TestInside(t *testing.T) {
	if got := os.Getenv(insideVar); got != "" {
		dir, work, _ := strings.Cut(got, " ")
		inside(t, place{sandbox.Tree{Dir: dir}, work})
		return
	}
	p := newPlace(t)
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestInside$")
	at := p.work // bound to /cover, where coverage is written
	if dir := flag.Lookup("test.gocoverdir"); dir != nil && dir.Value.String() != "" {
		at = dir.Value.String()
		cmd.Args = append(cmd.Args, "-test.gocoverdir=/cover")
	}
	for _, dir := range []string{"tmp", "dev", "cover"} {
		if err := os.MkdirAll(filepath.Join(p.Dir, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	cmd.Env = append(os.Environ(), insideVar+"="+p.Dir+" "+at)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.ExtraFiles = []*os.File{w}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS | syscall.CLONE_NEWUTS,
		UidMappings: []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}}, GidMappings: []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}}}
	out, err := cmd.CombinedOutput()
	w.Close()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	trouble, err := io.ReadAll(r)
	if want := `{"Step":"orders","Errno":22}{"Step":"mounts","Errno":2}`; err != nil || string(trouble) != want {
		t.Errorf("told %s, %v, want %s", trouble, err, want)
	}
}

func inside(t *testing.T, p place) {
	runtime.LockOSThread()
	args := os.Args
	for _, orders := range []string{"no orders", `{"Root": "/none"}`} {
		os.Args = []string{sandbox.Name, orders}
		if code, in := sandbox.Inside(); code != 1 || !in {
			t.Errorf("%s are followed", orders)
		}
	}
	os.Args = args
	binds := []sandbox.Bind{{Outside: p.work, Inside: "/cover"}}
	if step, err := sandbox.Settle("/none", "", nil); step != "mounts" || err == nil {
		t.Errorf("a tree that is not there: %q, %v", step, err)
	}
	if step, err := sandbox.Settle(p.Dir, "", binds); err != nil {
		t.Errorf("%s: %v", step, err)
	}
	if name, err := os.Hostname(); name != sandbox.HostName {
		t.Errorf("host name %q, %v", name, err)
	}
	if err := os.WriteFile("/x", nil, 0o644); !errors.Is(err, syscall.EROFS) {
		t.Errorf("the tree can be written: %v", err)
	}
}

// nobody is an ordinary user, who owns nothing here.
const nobody = 65534

// run runs part of this test as somebody else and returns what it says.
func (p place) run(t *testing.T, attr *syscall.SysProcAttr, args ...string) string {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = append([]string{as, p.Dir, p.work}, args...)
	cmd.SysProcAttr = attr
	out, err := cmd.Output() // what a program made for coverage says on standard error is not for us
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return strings.TrimSpace(string(out))
}

// other runs the tool as somebody else, who first gives up something, and says what came of it.
func other(args []string) string {
	runtime.LockOSThread() // capabilities belong to a thread
	p := place{sandbox.Tree{Dir: args[0]}, args[1]}
	for _, arg := range args[2:] {
		var err error
		switch arg {
		case "none": // this user namespace lets nobody make another one
			err = os.WriteFile("/proc/sys/user/max_user_namespaces", []byte("0"), 0)
		case "powerless":
			h, none := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, [2]unix.CapUserData{}
			err = unix.Capset(&h, &none[0])
		}
		if err != nil {
			return fmt.Sprint(arg, err)
		}
	}
	s, err := look(p)
	if err == nil {
		err = s.check()
	}
	return fmt.Sprint(fault.Of(err), " ", err)
}

// TestOrdinaryUser does as one what root does in [TestRun].
func TestOrdinaryUser(t *testing.T) {
	if os.Getuid() != 0 {
		t.Log("this is an ordinary user already")
		return
	}
	p := newPlace(t)
	if got := p.run(t, &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}); got != "internal <nil>" {
		t.Error(got)
	}
}

// withoutVar tells the test that it is in a user namespace of its own: "TREE WORK HOW ...".
const withoutVar = "LETHE_SANDBOX_WITHOUT"

// TestNoUserNamespaces has a kernel that lets nobody make them.
func TestNoUserNamespaces(t *testing.T) {
	if args := strings.Fields(os.Getenv(withoutVar)); len(args) > 0 {
		want := "internal <nil>"
		if len(args) > 3 {
			want = "denied the kernel does not let you make the namespaces that the tools run in"
		}
		if got := other(args); got != want {
			t.Errorf("%v: got %s, want %s", args[2:], got, want)
		}
		return
	}
	p := newPlace(t)
	for _, how := range []string{"none", "none powerless"} {
		cmd := exec.Command("/proc/self/exe", "-test.run=^TestNoUserNamespaces$")
		if dir := flag.Lookup("test.gocoverdir"); dir != nil && dir.Value.String() != "" {
			cmd.Args = append(cmd.Args, "-test.gocoverdir="+dir.Value.String())
		}
		cmd.Env = append(os.Environ(), withoutVar+"="+p.Dir+" "+p.work+" "+how)
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
			UidMappings: []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}}, GidMappings: []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}}}
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
	}
}
