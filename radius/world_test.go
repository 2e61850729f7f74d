package radius_test

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"

	"lethe/authdb"
	"lethe/day"
	"lethe/event"
	"lethe/internal/testkit"
	"lethe/private"
	"lethe/protocol"
	"lethe/radius"
	"lethe/session"
)

// The tests run in a network namespace of their own, which TestMain makes by starting the test
// binary again. It is nameless and ends with the process.
const nested = "LETHE_RADIUS_TEST"

func TestMain(m *testing.M) {
	switch {
	case os.Getenv(nested) == "serve":
		os.Exit(serveMain())
	case os.Getenv(nested) != "":
		if err := testkit.Command("ip link set lo up"); err != nil {
			fmt.Fprintln(os.Stderr, "namespaces for the tests:", err)
			os.Exit(1)
		}
		os.Exit(m.Run())
	case os.Geteuid() != 0:
		os.Exit(m.Run())
	}
	os.Exit(testkit.InNamespaces(nested, ""))
}

// self is the test binary. The name holds also where /proc/self is somebody else.
func self() string {
	path, err := os.Executable()
	if err != nil {
		panic(err)
	}
	return path
}

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

const (
	secret = "0123456789abcdef0123456789abcdef"
	daemon = 40
	today  = day.Day(20000)
)

// A person is a row of the tests' database.
type person struct {
	name, password string
	ended          bool
}

var people = []person{{"ann", "correct horse", false}, {"bob", "battery staple", true}}

// database returns an authentication database of these people.
func database(tb testing.TB, people ...person) *authdb.Live {
	tb.Helper()
	head := authdb.Head{HashKey: authdb.HashKey{1, 2, 3}}
	var rows []authdb.Row
	for _, p := range people {
		r := authdb.Row{Key: head.HashKey.Key([]byte(p.name)), Secret: authdb.NTHash([]byte(p.password)), PaidUntil: today}
		if p.ended {
			r.PaidUntil--
		}
		rows = append(rows, r)
	}
	var file bytes.Buffer
	must(tb, authdb.Build(&file, head, rows))
	segment, err := authdb.Open(file.Bytes())
	must(tb, err)
	db, err := authdb.NewDB(segment)
	must(tb, err)
	live := &authdb.Live{}
	live.Swap(db)
	return live
}

// core is a radius.Core over a real authentication database. It keeps a journal of the calls.
type core struct {
	users *authdb.Live

	mu      sync.Mutex
	refuse  error // of Check and Admit
	closed  error // of Admit
	logins  []session.Login
	journal []string
}

func (c *core) note(format string, args ...any) {
	c.journal = append(c.journal, fmt.Sprintf(format, args...))
}

func (c *core) Check(l session.Login) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.refuse != nil {
		return c.refuse
	}
	return c.users.Prove([]byte(l.Username.Reveal()), func(s *authdb.Secret) bool { return l.Proof((*[16]byte)(s)) }, today).Err()
}

func (c *core) Admit(ref session.Ref, l session.Login) (session.Grant, error) {
	if err := c.Check(l); err != nil {
		return session.Grant{}, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed != nil {
		return session.Grant{}, c.closed
	}
	c.logins = append(c.logins, l)
	c.note("admit %d/%d", ref.Daemon, ref.Client)
	nets := session.SubnetsOf(ref.Daemon)
	return session.Grant{V4: session.Host(nets.V4, 777), V6: session.Host(nets.V6, 777)}, nil
}

func (c *core) Established(ref session.Ref) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.note("established %d/%d", ref.Daemon, ref.Client)
}

func (c *core) End(ref session.Ref) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.note("end %d/%d", ref.Daemon, ref.Client)
}

// said returns the journal and begins a new one.
func (c *core) said() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := strings.Join(c.journal, ", ")
	c.journal = nil
	return all
}

func (c *core) fail(refuse, closed error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.refuse, c.closed = refuse, closed
}

func config(c radius.Core) radius.Config {
	return radius.Config{
		Secret: private.Of([]byte(secret)), Daemon: daemon, Protocol: protocol.IKEv2, Core: c,
		DNS: []netip.Addr{netip.MustParseAddr("10.255.0.1"), netip.MustParseAddr("fd6c:6574:6865:ffff::1")},
	}
}

// world is a server on a loopback socket.
type world struct {
	*radius.Server
	core *core
	log  *bytes.Buffer // read it after stop
	addr *net.UDPAddr
	stop func()
}

func newWorld(tb testing.TB) *world {
	tb.Helper()
	w := &world{core: &core{users: database(tb, people...)}, log: &bytes.Buffer{}}
	cfg := config(w.core)
	cfg.Log = event.New(w.log)
	var err error
	w.Server, err = radius.New(cfg)
	must(tb, err)
	conn, err := radius.Listen(0)
	must(tb, err)
	w.addr = conn.LocalAddr().(*net.UDPAddr)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.Serve(ctx, conn) }()
	var once sync.Once
	w.stop = func() {
		once.Do(func() {
			cancel()
			if err := <-done; err != nil {
				tb.Errorf("serve: %v", err)
			}
		})
	}
	tb.Cleanup(w.stop)
	return w
}

// eapol runs eapol_test (wpa_supplicant) against the server and reports whether it is satisfied, its
// keys compared with the server's, and what it printed.
func (w *world) eapol(tb testing.TB, name, password string, more ...string) (bool, string) {
	tb.Helper()
	file := tb.TempDir() + "/peer.conf"
	text := fmt.Sprintf("network={\n key_mgmt=IEEE8021X\n eap=MSCHAPV2\n identity=%x\n password=%x\n}\n", name, password)
	must(tb, os.WriteFile(file, []byte(text), 0o600))
	args := append([]string{
		"-c", file, "-a", "127.0.0.1", "-p", fmt.Sprint(w.addr.Port), "-s", secret, "-t", "8",
		"-N", "5:d:4242", "-N", "31:s:198.51.100.7[4500]",
	}, more...)
	out, err := exec.Command("eapol_test", args...).CombinedOutput()
	return err == nil, string(out)
}

func TestWPASupplicantLogsIn(t *testing.T) {
	w := newWorld(t)
	ok, out := w.eapol(t, "ann", "correct horse")
	if !ok || !strings.Contains(out, "EAP-MSCHAPV2: Authentication succeeded") {
		t.Fatalf("eapol_test is not satisfied:\n%s", out)
	}
	if got := w.core.said(); got != "admit 40/4242" {
		t.Errorf("the core was told %q", got)
	}
	w.stop()
	l := w.core.logins[0]
	if l.Username.Reveal() != "ann" || l.Peer.Reveal() != netip.MustParseAddr("198.51.100.7") || l.Protocol != protocol.IKEv2 {
		t.Errorf("logged in %q from %v by %v", l.Username.Reveal(), l.Peer.Reveal(), l.Protocol)
	}
}

func TestWPASupplicantIsRefused(t *testing.T) {
	w := newWorld(t)
	for _, c := range []struct{ name, user, password, want string }{
		{"wrong password", "ann", "battery staple", "error 691"},
		{"unknown user", "eve", "correct horse", "error 691"},
		{"expired licence", "bob", "battery staple", "error 647"},
		{"expired licence, wrong password", "bob", "correct horse", "error 691"},
	} {
		t.Run(c.name, func(t *testing.T) {
			ok, out := w.eapol(t, c.user, c.password)
			if ok || !strings.Contains(out, c.want) || !strings.Contains(out, "code=3 (Access-Reject)") {
				t.Errorf("let in %t, want %q:\n%s", ok, c.want, out)
			}
		})
	}
	if ok, out := w.eapol(t, "ann", "correct horse", "-s", "another secret", "-t", "2"); ok || w.Dropped() == 0 || strings.Contains(out, "Access-Reject") {
		t.Errorf("with another secret: let in %t, %d packets dropped", ok, w.Dropped())
	}
	if got := w.core.said(); got != "" {
		t.Errorf("the core was told %q", got)
	}
}
