package lab_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"lethe/lab"
)

var labs atomic.Uint32

// prefix returns a prefix that no other lab of this test run has.
func prefix() string { return fmt.Sprintf("u%d", labs.Add(1)+uint32(os.Getpid()%1000)*10) }

// shortDir returns a directory whose path is short enough for sockets.
func shortDir(t testing.TB) string {
	dir, err := os.MkdirTemp("", "lab")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir); os.RemoveAll(dir + "/lab.failed") })
	return filepath.Join(dir, "lab")
}

func ctx(t testing.TB) context.Context {
	c, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	t.Cleanup(cancel)
	return c
}

// bare returns a lab without Lethe's programs.
func bare(t testing.TB, change ...func(*lab.Options)) *lab.Lab {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root can make network namespaces")
	}
	o := lab.Options{Prefix: prefix(), Dir: shortDir(t), Bare: true}
	for _, c := range change {
		c(&o)
	}
	l, err := lab.New(ctx(t), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		noTrace(t, o.Prefix, o.Dir)
	})
	return l
}

func noTrace(t testing.TB, prefix, dir string) {
	t.Helper()
	left, _ := filepath.Glob("/run/netns/lethe-" + prefix + "-*")
	if len(left) > 0 {
		t.Errorf("namespaces left behind: %v", left)
	}
	if _, err := os.Stat(dir); err == nil {
		t.Errorf("directory left behind: %s", dir)
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil || strings.Contains(string(mounts), dir) || strings.Contains(string(mounts), "lethe-"+prefix+"-") {
		t.Errorf("mounts left behind (%v)", err)
	}
}

func TestInternet(t *testing.T) {
	var steps []string
	l := bare(t, func(o *lab.Options) {
		o.Customers = 5
		o.Step = func(name string) func(error) {
			return func(err error) { steps = append(steps, fmt.Sprint(name, err)) }
		}
	})
	if len(steps) != 3 || !strings.HasSuffix(steps[2], "name servers<nil>") {
		t.Errorf("steps: %q", steps)
	}
	for i, c := range []struct {
		from *lab.Machine
		v4   string
		v6   string
	}{
		{l.Customer(0), "203.0.113.10", "2001:db8:3::a"},
		{l.Customer(1), "203.0.113.74", "2001:db8:3:0:1::a"},
		{l.Customer(4), "203.0.113.11", "2001:db8:3::b"},
		{l.Server(0), "198.51.100.10", "2001:db8:2::10"},
		{l.Server(1), "198.51.100.20", "2001:db8:2::20"},
		{l.Control(), "198.51.100.100", "2001:db8:2::100"},
	} {
		for family, want := range map[string]string{"-4": c.v4, "-6": c.v6} {
			got, err := c.from.Run(ctx(t), "curl", "-sS", "-m", "5", family, lab.SiteURL)
			if want := "address: " + want + "\nhost: www.river.example\n"; err != nil || got != want {
				t.Errorf("%d: curl %s: got %q, %v, want %q", i, family, got, err, want)
			}
		}
	}
}

// TestMachine covers what a machine answers when it cannot do what it is asked.
func TestMachine(t *testing.T) {
	l := bare(t)
	if m := l.Machine("nowhere"); m != nil {
		t.Errorf("a machine that does not exist: %+v", m)
	}
	if pids, err := l.Internet().PIDs(); err != nil || len(pids) < 2 {
		t.Errorf("got %v, %v, want the first process and nsd", pids, err)
	}
	gone := &lab.Machine{Name: "gone", Namespace: "lethe-no-such"}
	if _, err := gone.PIDs(); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v, want no such file", err)
	}
	if _, err := gone.Run(ctx(t), "true"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v, want no such file", err)
	}
	if _, err := l.Control().Listen("192.0.2.80:80"); err == nil {
		t.Error("the control plane takes the web site's address")
	}
	// Inside may be called from every thread, the main one too, and leaves none changed.
	before, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	for range 50 {
		if err := l.Control().Inside(func() error { return nil }); err != nil {
			t.Fatal(err)
		}
	}
	if after, err := os.Readlink("/proc/self/ns/net"); err != nil || after != before {
		t.Errorf("this process has moved: %v, %v", after, err)
	}
}

func TestPlan(t *testing.T) {
	seen := map[string]bool{}
	for _, isp := range lab.ISPs() {
		if !isp.V4.Masked().IsValid() || isp.V6.Masked() != isp.V6 || seen[isp.Name] || len(isp.Country) != 2 {
			t.Errorf("bad network %+v", isp)
		}
		seen[isp.Name] = true
	}
	if !strings.Contains(lab.RootHints(), "a.root.example. 3600000 A 192.0.2.53") {
		t.Errorf("root hints: %s", lab.RootHints())
	}
}

// TestMissingTools: what is not installed is named.
func TestMissingTools(t *testing.T) {
	path := os.Getenv("PATH")
	for missing, tools := range map[string][]string{
		`"ip"`: {},
		"nsd":  {"ip", "mount", "sh", "sleep", "rm"},
	} {
		dir := t.TempDir()
		for _, tool := range tools {
			full, err := exec.LookPath(tool)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.Symlink(full, filepath.Join(dir, tool)); err != nil {
				t.Fatal(err)
			}
		}
		o := lab.Options{Prefix: prefix(), Dir: shortDir(t), Bare: true}
		t.Setenv("PATH", dir)
		if missing == "nsd" {
			o.Env = []string{"PATH=" + dir}
		}
		_, err := lab.New(ctx(t), o)
		t.Setenv("PATH", path)
		if err == nil || !strings.Contains(err.Error(), missing) {
			t.Errorf("got %v, want %s named", err, missing)
		}
		noTrace(t, o.Prefix, o.Dir)
	}
}

// TestNoWayOut shows that nothing of a lab reaches the real machine's networks.
func TestNoWayOut(t *testing.T) {
	l := bare(t)
	outside, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	targets := []string{"8.8.8.8", "10.0.0.1"}
	for _, a := range outside {
		if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().Is4() && !p.Addr().IsLoopback() {
			targets = append(targets, p.Addr().String())
		}
	}
	for _, m := range l.Machines() {
		for _, target := range targets {
			c, cancel := context.WithTimeout(ctx(t), 500*time.Millisecond)
			conn, err := m.Dial(c, "tcp", net.JoinHostPort(target, "53"))
			if cancel(); err == nil {
				conn.Close()
				t.Errorf("%s reaches %s", m.Name, target)
			} else if strings.Contains(err.Error(), "refused") {
				t.Errorf("%s reaches %s, which refuses", m.Name, target)
			}
		}
	}
}

// TestOwnFiles shows that a machine can replace files in its /etc and /run
// without the real machine or another one seeing it.
func TestOwnFiles(t *testing.T) {
	l := bare(t, func(o *lab.Options) { o.Customers = 2 })
	m := l.Customer(0)
	const script = "echo mine > /etc/x && mv /etc/x /etc/resolv.conf && echo here > /run/lethe-test && cat /etc/resolv.conf"
	if got, err := m.Run(ctx(t), "sh", "-c", script); err != nil || got != "mine\n" {
		t.Fatalf("got %q, %v", got, err)
	}
	if b, err := os.ReadFile(m.Path("/run/lethe-test")); err != nil || string(b) != "here\n" {
		t.Errorf("got %q, %v", b, err)
	}
	if m.Path("/usr/bin") != "/usr/bin" {
		t.Error("a path outside /etc and /run was changed")
	}
	for _, path := range []string{"/run/lethe-test", l.Customer(1).Path("/run/lethe-test")} {
		if _, err := os.Stat(path); err == nil {
			t.Errorf("%s is seen elsewhere", path)
		}
	}
	if got, err := l.Customer(1).Run(ctx(t), "cat", "/etc/resolv.conf"); err != nil || got != "nameserver 192.0.2.53\n" {
		t.Errorf("got %q, %v", got, err)
	}
	if _, err := m.Run(ctx(t), "cat", "/run/nothing"); err == nil || !strings.Contains(err.Error(), "cat: exit status 1: cat: /run/nothing") {
		t.Errorf("got %v, want cat's message", err)
	}
}

func TestRefused(t *testing.T) {
	busy := bare(t)
	full := shortDir(t)
	if err := os.MkdirAll(filepath.Join(full, "log", "precious"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		o    lab.Options
		want string
	}{
		"prefix":    {lab.Options{Prefix: "a-b", Dir: "x", Bare: true}, `prefix "a-b": want 1 to 6`},
		"no dir":    {lab.Options{Bare: true}, "no directory given"},
		"no bin":    {lab.Options{Dir: "x"}, "no directory of programs given"},
		"customers": {lab.Options{Dir: "x", Bare: true, Customers: 201}, "201 customers, want 1 to 200"},
		"locations": {lab.Options{Dir: "x", Bare: true, Locations: make([]lab.Place, 9)}, "9 locations, want at most 8"},
		"long dir":  {lab.Options{Dir: "/" + strings.Repeat("d", 60), Bare: true}, "path of 61 bytes, want at most 60"},
		"not a lab": {lab.Options{Prefix: prefix(), Dir: full, Bare: true}, "has files and is not a lab's"},
		"twice":     {lab.Options{Prefix: busy.Prefix(), Dir: shortDir(t), Bare: true}, "is running already"},
		"file":      {lab.Options{Prefix: prefix(), Dir: "/dev/null", Bare: true}, "not a directory"},
		"repeated":  {lab.Options{Dir: "x", Bare: true, Locations: []lab.Place{{Code: "a"}, {Code: "a"}}}, "a location stands twice"},
	} {
		t.Run(name, func(t *testing.T) {
			l, err := lab.New(ctx(t), c.o)
			if err == nil {
				l.Close()
			}
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
	if _, err := os.Stat(filepath.Join(full, "log", "precious")); err != nil {
		t.Error("a directory that is not a lab's was touched")
	}
}

func TestCancelled(t *testing.T) {
	o := lab.Options{Prefix: prefix(), Dir: shortDir(t), Bare: true}
	c, cancel := context.WithCancel(ctx(t))
	o.Step = func(name string) func(error) {
		if strings.HasPrefix(name, "internet") {
			cancel()
		}
		return func(error) {}
	}
	_, err := lab.New(c, o)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want cancelled", err)
	}
	noTrace(t, o.Prefix, o.Dir)
}

func TestSite(t *testing.T) {
	l := bare(t)
	client := &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return l.Customer(0).Dial(ctx, network, "192.0.2.80:80")
		},
	}}
	defer client.CloseIdleConnections()
	for name, c := range map[string]struct {
		method, path, body string
		status             int
		length             int64
	}{
		"bytes":      {"GET", "bytes/1234567", "", 200, 1234567},
		"no bytes":   {"GET", "bytes/0", "", 200, 0},
		"negative":   {"GET", "bytes/-1", "", 400, 36},
		"too many":   {"GET", "bytes/1099511627777", "", 400, 36},
		"sink":       {"POST", "sink", strings.Repeat("x", 100000), 200, 17},
		"no page":    {"GET", "nothing", "", 404, 19},
		"wrong verb": {"POST", "bytes/1", "", 405, 19},
	} {
		t.Run(name, func(t *testing.T) {
			q, err := http.NewRequestWithContext(ctx(t), c.method, lab.SiteURL+c.path, strings.NewReader(c.body))
			if err != nil {
				t.Fatal(err)
			}
			r, err := client.Do(q)
			if err != nil {
				t.Fatal(err)
			}
			defer r.Body.Close()
			n, err := copyAll(r)
			if r.StatusCode != c.status || n != c.length || err != nil {
				t.Errorf("got %d and %d bytes, %v, want %d and %d", r.StatusCode, n, err, c.status, c.length)
			}
		})
	}
}

func copyAll(r *http.Response) (int64, error) { return io.Copy(io.Discard, r.Body) }
