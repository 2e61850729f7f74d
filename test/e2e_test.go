package test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"lethe/lab"
)

// programs is the directory with the programs; its parent has the GeoIP file.
var programs string

func TestMain(m *testing.M) {
	code, err := build(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		code = 1
	}
	os.Exit(code)
}

// build builds the programs once and runs the tests: for tests with the race detector
// and with counters, for benchmarks as they are released.
func build(m *testing.M) (int, error) {
	if os.Geteuid() != 0 {
		return 1, errors.New("the end-to-end tests need root: they make network namespaces")
	}
	dir, err := os.MkdirTemp("", "e2e")
	if err != nil {
		return 1, err
	}
	defer os.RemoveAll(dir)
	programs = filepath.Join(dir, "bin")
	args := []string{"build", "-buildvcs=false", "-tags", "lab", "-o", programs + "/"}
	if flag.Parse(); flag.Lookup("test.bench").Value.String() == "" {
		args = append(args, "-race", "-cover", "-covermode", "atomic", "-coverpkg", "lethe/...")
	}
	c := exec.Command("go", append(args, "lethe/cmd/...")...)
	if out, err := c.CombinedOutput(); err != nil {
		return 1, fmt.Errorf("build: %w: %s", err, out)
	}
	if err := borrowGeoIP(dir); err != nil {
		return 1, err
	}
	return m.Run(), nil
}

// borrowGeoIP takes the GeoIP file that `make up` has made, which saves half a
// minute; without one the first lab makes it.
func borrowGeoIP(dir string) error {
	b, err := os.ReadFile("../build/geoip.mmdb")
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "geoip.mmdb"), b, 0o644)
	}
	return err
}

var labs atomic.Uint32

// newPrefix returns the prefix of the next lab of this run.
func newPrefix() string { return fmt.Sprintf("e%d", uint32(os.Getpid()%1000)*10+labs.Add(1)) }

// environment is what programs need to leave their coverage, and to end without
// the second that the race detector would wait for late reports.
func environment(t testing.TB) []string {
	dir := os.Getenv("LETHE_COVER")
	if dir == "" {
		dir = t.TempDir()
	}
	return []string{"GOCOVERDIR=" + dir, "GORACE=atexit_sleep_ms=0"}
}

// deadline returns a context for one test.
func deadline(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// newLab brings a lab up and takes it down after the test, which fails when anything is
// left behind. The services' output is shown when the test has failed.
func newLab(t testing.TB, change ...func(*lab.Options)) *lab.Lab {
	t.Helper()
	return newLabWithin(deadline(t), t, change...)
}

// newLabWithin is newLab for a lab that may take its time to come up.
func newLabWithin(ctx context.Context, t testing.TB, change ...func(*lab.Options)) *lab.Lab {
	t.Helper()
	dir, err := os.MkdirTemp("", "lab")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	o := lab.Options{Prefix: newPrefix(), Dir: filepath.Join(dir, "lab"), BinDir: programs, Env: environment(t)}
	for _, c := range change {
		c(&o)
	}
	l, err := lab.New(ctx, o)
	if err != nil {
		t.Fatal(err, output(o.Dir+".failed"))
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(output(filepath.Join(o.Dir, "log")))
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		noTrace(t, o.Prefix)
	})
	return l
}

// output returns what services wrote.
func output(dir string) string {
	paths, _ := filepath.Glob(filepath.Join(dir, "*.log"))
	var all strings.Builder
	for _, path := range paths {
		b, err := os.ReadFile(path)
		fmt.Fprintf(&all, "\n== %s %v\n%s", filepath.Base(path), err, b)
	}
	return all.String()
}

// noTrace fails the test when a lab of that prefix left something.
func noTrace(t testing.TB, prefix string) {
	t.Helper()
	if left, _ := filepath.Glob("/run/netns/lethe-" + prefix + "-*"); len(left) > 0 {
		t.Errorf("namespaces left behind: %v", left)
	}
}

// customer is a person with the app on one of a lab's customer machines.
type customer struct {
	*lab.Machine
	t     testing.TB
	email string
}

const password = "a river in the underworld"

// newCustomer signs a customer up on the i-th customer machine, gives them a licence and
// logs them in.
func newCustomer(t testing.TB, l *lab.Lab, i int) *customer {
	t.Helper()
	c := &customer{l.Customer(i), t, fmt.Sprintf("customer%d@river.example", i)}
	c.must(password+"\n", "signup", c.email)
	until := time.Now().AddDate(0, 1, 0).UTC().Format(time.DateOnly)
	if _, err := l.Operate(deadline(t), "licence", "create", c.email, "--until", until); err != nil {
		t.Fatal(err)
	}
	c.must(password+"\n", "login", c.email)
	return c
}

// gentle gives TCP on the customers' machines and in the internet a small window, so
// that a burst never overflows the buffers of a busy machine: what is lost in the
// tunnel and sent again, the server counts again.
func gentle(t testing.TB, l *lab.Lab, customers int) {
	t.Helper()
	machines := []*lab.Machine{l.Internet()}
	for i := range customers {
		machines = append(machines, l.Customer(i))
	}
	for _, m := range machines {
		err := m.Inside(func() error { return os.WriteFile("/proc/sys/net/ipv4/tcp_rmem", []byte("4096 65536 65536"), 0) })
		if err != nil {
			t.Fatal(err)
		}
	}
}

// lethe runs the app and returns its standard output, what it said beside
// it, and the exit code.
func (c *customer) lethe(stdin string, args ...string) (out, said string, code int) {
	c.t.Helper()
	command := c.Command(deadline(c.t), "lethe", args...)
	var o, e bytes.Buffer
	command.Stdin, command.Stdout, command.Stderr = strings.NewReader(stdin), &o, &e
	err := command.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		c.t.Fatal(err)
	}
	return o.String(), e.String(), command.ProcessState.ExitCode()
}

// must is lethe for a command that has to succeed.
func (c *customer) must(stdin string, args ...string) string {
	c.t.Helper()
	out, said, code := c.lethe(stdin, args...)
	if code != 0 {
		c.t.Fatalf("lethe %s: exit code %d\n%s%s", strings.Join(args, " "), code, out, said)
	}
	return out
}

// connect connects, again while the server refuses a customer whom it does not
// know yet: a change may take until the next bundle.
func (c *customer) connect(args ...string) {
	c.t.Helper()
	for end := time.Now().Add(time.Minute); ; time.Sleep(100 * time.Millisecond) {
		out, said, code := c.lethe("", append([]string{"connect"}, args...)...)
		if code == 0 {
			return
		}
		if code != 4 || time.Now().After(end) {
			c.t.Fatalf("lethe connect: exit code %d\n%s%s", code, out, said)
		}
	}
}

// usageRow is a row of `lethe-control usage show --json`.
type usageRow struct {
	Date     string `json:"date"`
	Location string `json:"location"`
	Country  string `json:"country"`
	ISP      string `json:"isp"`
	Protocol string `json:"protocol"`
	In       uint64 `json:"mb_in"`
	Out      uint64 `json:"mb_out"`
}

// usage returns the rows of a customer as soon as ok accepts them.
func usage(t testing.TB, l *lab.Lab, email string, ok func([]usageRow) bool) []usageRow {
	t.Helper()
	ctx := deadline(t)
	var answer struct {
		Rows []usageRow `json:"rows"`
	}
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
		c := l.Control().Command(ctx, "lethe-control", "usage", "show", "-", "--json", "--dir", "/var/lib/lethe-control")
		c.Stdin = strings.NewReader(email + "\n") // not where everybody on the machine sees it
		out, err := c.Output()
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(out, &answer); err != nil {
			t.Fatal(err)
		}
		if ok(answer.Rows) {
			return answer.Rows
		}
	}
	t.Fatalf("the usage of the customer stays at %+v", answer.Rows)
	return nil
}
