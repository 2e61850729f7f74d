package resolver_test

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"lethe/daemon"
	"lethe/event"
	"lethe/internal/testkit"
	"lethe/resolver"
)

// The addresses of the test's network namespace: an authoritative server for a
// root of its own, the resolver, a customer, a stranger.
const (
	root4, root6       = "192.0.2.53", "2001:db8::53"
	resolve4, resolve6 = "10.63.255.53", "fd6c:6574:6865:ffff::53"
	client4, client6   = "10.64.0.5", "fd6c:6574:6865::5"
	stranger4          = "203.0.113.66"
)

const uid = 64188 // one that no other test uses

// world is a namespace with a root server that knows every name below
// "example.".
type world struct {
	t    *testing.T
	ns   string
	dir  string
	mu   sync.Mutex
	asks []string // names asked of the root server
	ecs  bool     // whether any question had a client subnet
}

func newWorld(t *testing.T) *world {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("network namespaces need root")
	}
	w := &world{t: t, ns: fmt.Sprintf("lethe-rs-%d", os.Getpid()), dir: t.TempDir()}
	ip(t, "netns", "add", w.ns)
	t.Cleanup(func() { ip(t, "netns", "del", w.ns) })
	ip(t, "-n", w.ns, "link", "set", "lo", "up")
	for _, a := range []string{root4, client4, stranger4} {
		ip(t, "-n", w.ns, "addr", "add", a+"/32", "dev", "lo")
	}
	for _, a := range []string{root6, client6} {
		ip(t, "-n", w.ns, "addr", "add", a+"/128", "dev", "lo", "nodad")
	}
	for _, a := range []string{root4, root6} {
		w.serve("udp", net.JoinHostPort(a, "53"))
		w.serve("tcp", net.JoinHostPort(a, "53"))
	}
	hints := ". 3600000 NS a.root.example.\na.root.example. 3600000 A " + root4 + "\na.root.example. 3600000 AAAA " + root6 + "\n"
	// The directories of a test are for root only; unbound reads its hints as another user.
	for d := w.dir; d != "/"; d = filepath.Dir(d) {
		if st, err := os.Stat(d); err == nil && st.Mode()&1 == 0 {
			if err := os.Chmod(d, st.Mode()|0o011); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := os.WriteFile(w.hints(), []byte(hints), 0o644); err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *world) hints() string { return filepath.Join(w.dir, "root.hints") }

func ip(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		t.Fatalf("ip %s: %v: %s", strings.Join(args, " "), err, out)
	}
}

// in runs f in the world's namespace.
func (w *world) in(f func()) {
	w.t.Helper()
	if err := w.enter(func() error { f(); return nil }); err != nil {
		w.t.Fatal(err)
	}
}

// enter runs f in the world's namespace on a thread that ends with it.
func (w *world) enter(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		fd, err := unix.Open("/run/netns/"+w.ns, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err == nil {
			err = unix.Setns(fd, unix.CLONE_NEWNET)
			_ = unix.Close(fd)
		}
		if err == nil {
			err = f()
		}
		done <- err
	}()
	return <-done
}

// serve answers as the authoritative server of the root and of "example.".
func (w *world) serve(network, addr string) {
	w.t.Helper()
	s := &dns.Server{Net: network, Handler: dns.HandlerFunc(w.answer)}
	var err error
	w.in(func() {
		if network == "udp" {
			s.PacketConn, err = net.ListenPacket(network, addr)
		} else {
			s.Listener, err = net.Listen(network, addr)
		}
	})
	if err != nil {
		w.t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.ActivateAndServe() }()
	w.t.Cleanup(func() {
		_ = s.Shutdown()
		<-done
	})
}

func (w *world) answer(rw dns.ResponseWriter, q *dns.Msg) {
	m := new(dns.Msg).SetReply(q)
	m.Authoritative = true
	name, kind := strings.ToLower(q.Question[0].Name), q.Question[0].Qtype
	w.mu.Lock()
	w.asks = append(w.asks, name)
	if o := q.IsEdns0(); o != nil {
		for _, opt := range o.Option {
			w.ecs = w.ecs || opt.Option() == dns.EDNS0SUBNET
		}
	}
	w.mu.Unlock()
	records := map[string]string{
		". NS":                     ". 3600000 NS a.root.example.",
		"a.root.example. A":        "a.root.example. 3600000 A " + root4,
		"a.root.example. AAAA":     "a.root.example. 3600000 AAAA " + root6,
		"www.example. A":           "www.example. 86400 A 203.0.113.80",
		"www.example. AAAA":        "www.example. 86400 AAAA 2001:db8::80",
		"rebind.example. A":        "rebind.example. 60 A 192.168.1.1",
		"rebind6.example. AAAA":    "rebind6.example. 60 AAAA fd00::1",
		"c4nary-n4me.example. A":   "c4nary-n4me.example. 60 A 203.0.113.81",
		"deep.c4nary.example. A":   "deep.c4nary.example. 60 A 203.0.113.82",
		"127.0.0.1.nip.example. A": "127.0.0.1.nip.example. 60 A 127.0.0.1",
	}
	if r, ok := records[name+" "+dns.TypeToString[kind]]; ok {
		rr, err := dns.NewRR(r)
		if err != nil {
			panic(err)
		}
		m.Answer = append(m.Answer, rr)
	} else {
		soa, _ := dns.NewRR(". 3600 SOA a.root.example. nobody.example. 1 3600 600 86400 86400")
		m.Ns = append(m.Ns, soa)
		for known := range records {
			if owner, _, _ := strings.Cut(known, " "); dns.IsSubDomain(name, owner) {
				_ = rw.WriteMsg(m) // it exists, with other types or as a node between
				return
			}
		}
		m.Rcode = dns.RcodeNameError
	}
	_ = rw.WriteMsg(m)
}

// config is a resolver for the world.
func (w *world) config() resolver.Config {
	return resolver.Config{
		RuntimeDir: filepath.Join(w.dir, "run"), UID: uid, GID: uid, RootHints: w.hints(),
		Addresses: []netip.Addr{netip.MustParseAddr(resolve4), netip.MustParseAddr(resolve6)},
		Clients:   []netip.Prefix{netip.MustParsePrefix("10.64.0.0/16"), netip.MustParsePrefix("fd6c:6574:6865::/112")},
	}
}

// agent is a running [resolver.Server].
type agent struct {
	*resolver.Server
	log  *testkit.Log
	stop func() error
}

func (w *world) run(cfg resolver.Config) *agent {
	w.t.Helper()
	a := &agent{log: &testkit.Log{}}
	var err error
	if a.Server, err = resolver.New(cfg, event.New(a.log)); err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.enter(func() error { return a.Run(ctx) }) }()
	a.stop = sync.OnceValue(func() error { cancel(); return <-done })
	w.t.Cleanup(func() { _ = a.stop() })
	return a
}

// ask asks the resolver from an address.
func (w *world) ask(network, from, server, name string, kind uint16) (reply *dns.Msg, err error) {
	w.in(func() {
		var local net.Addr = &net.UDPAddr{IP: net.ParseIP(from)}
		if network == "tcp" {
			local = &net.TCPAddr{IP: net.ParseIP(from)}
		}
		c := dns.Client{Net: network, Timeout: 2 * time.Second, Dialer: &net.Dialer{LocalAddr: local, Timeout: time.Second}}
		reply, _, err = c.Exchange(new(dns.Msg).SetQuestion(name, kind), net.JoinHostPort(server, "53"))
	})
	return reply, err
}

// ready waits until the resolver answers.
func (w *world) ready() {
	w.t.Helper()
	if !eventually(func() bool {
		r, err := w.ask("udp", client4, resolve4, "www.example.", dns.TypeA)
		return err == nil && len(r.Answer) == 1
	}) {
		w.t.Fatal("the resolver does not answer")
	}
}

func eventually(f func() bool) bool {
	for range 300 {
		if f() {
			return true
		}
		time.Sleep(20 * time.Millisecond)
	}
	return false
}

// processes returns the ids of unbound processes of the test's user.
func processes() (pids []int) {
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, d := range dirs {
		var st unix.Stat_t
		exe, _ := os.Readlink(d + "/exe")
		if unix.Stat(d, &st) == nil && st.Uid == uid && strings.HasSuffix(exe, "/unbound") {
			var pid int
			_, _ = fmt.Sscan(filepath.Base(d), &pid)
			pids = append(pids, pid)
		}
	}
	return pids
}

// TestResolves covers what customers get and what they do not.
func TestResolves(t *testing.T) {
	w := newWorld(t)
	a := w.run(w.config())
	w.ready()
	for _, c := range []struct {
		network, from, server, name string
		kind                        uint16
		want                        string // of the answer's text; empty is no answer
		rcode                       int
	}{
		{"udp", client4, resolve4, "www.example.", dns.TypeA, "203.0.113.80", dns.RcodeSuccess},
		{"tcp", client4, resolve4, "www.example.", dns.TypeAAAA, "2001:db8::80", dns.RcodeSuccess},
		{"udp", client6, resolve6, "www.example.", dns.TypeAAAA, "2001:db8::80", dns.RcodeSuccess},
		{"tcp", client6, resolve6, "www.example.", dns.TypeA, "203.0.113.80", dns.RcodeSuccess},
		{"udp", client4, resolve4, "c4nary-n4me.example.", dns.TypeA, "203.0.113.81", dns.RcodeSuccess},
		{"udp", client4, resolve4, "deep.c4nary.example.", dns.TypeA, "203.0.113.82", dns.RcodeSuccess},
		{"udp", client4, resolve4, "no.example.", dns.TypeA, "", dns.RcodeNameError},
		{"udp", client4, resolve4, "rebind.example.", dns.TypeA, "", dns.RcodeSuccess},
		{"udp", client4, resolve4, "rebind6.example.", dns.TypeAAAA, "", dns.RcodeSuccess},
		{"udp", client4, resolve4, "127.0.0.1.nip.example.", dns.TypeA, "", dns.RcodeSuccess},
		{"udp", stranger4, resolve4, "www.example.", dns.TypeA, "", dns.RcodeRefused},
		{"udp", "127.0.0.1", resolve4, "www.example.", dns.TypeA, "", dns.RcodeRefused},
	} {
		r, err := w.ask(c.network, c.from, c.server, c.name, c.kind)
		if err != nil {
			t.Errorf("%s %s: %v", c.network, c.name, err)
			continue
		}
		var got string
		if len(r.Answer) > 0 {
			got = r.Answer[0].String()
			if r.Answer[0].Header().Ttl > 60 {
				t.Errorf("%s: remembered for %d s", c.name, r.Answer[0].Header().Ttl)
			}
		}
		if r.Rcode != c.rcode || c.want == "" && got != "" || !strings.HasSuffix(got, c.want) {
			t.Errorf("%s %s from %s: %s, %q, want %s, %q", c.network, c.name, c.from, dns.RcodeToString[r.Rcode], got, dns.RcodeToString[c.rcode], c.want)
		}
	}
	for _, q := range []struct {
		name  string
		class uint16
	}{{"version.bind.", dns.ClassCHAOS}, {"hostname.bind.", dns.ClassCHAOS}} {
		var r *dns.Msg
		w.in(func() {
			m := new(dns.Msg).SetQuestion(q.name, dns.TypeTXT)
			m.Question[0].Qclass = q.class
			r, _, _ = (&dns.Client{Dialer: &net.Dialer{LocalAddr: &net.UDPAddr{IP: net.ParseIP(client4)}}}).Exchange(m, resolve4+":53")
		})
		if r != nil && len(r.Answer) > 0 {
			t.Errorf("%s is told", q.name)
		}
	}
	w.junk()
	w.mu.Lock()
	if w.ecs {
		t.Error("a question upstream had a client subnet")
	}
	// Between "." and the name, unbound asks for no more than one label at a time.
	if !slices.Contains(w.asks, "c4nary.example.") {
		t.Errorf("no minimised question for c4nary.example.: %v", w.asks)
	}
	w.mu.Unlock()
	if err := a.stop(); err != nil {
		t.Error(err)
	}
	// Even at verbosity 0 unbound tells of its start and its end. Of questions, good, bad
	// and refused, it tells nothing.
	if strings.Contains(a.log.String(), "mumbled") {
		t.Errorf("unbound said more than that: %s", a.log)
	}
	w.traceless(a)
}

// junk sends what is no question, or hardly one.
func (w *world) junk() {
	question, err := new(dns.Msg).SetQuestion("c4nary-n4me.example.", dns.TypeA).Pack()
	if err != nil {
		w.t.Fatal(err)
	}
	w.in(func() {
		for _, network := range []string{"udp", "tcp"} {
			for n := range len(question) {
				c, err := net.Dial(network, resolve4+":53")
				if err != nil {
					w.t.Error(err)
					return
				}
				_, _ = c.Write(question[:n])
				_, _ = c.Write(append(question[n:], question...))
				_ = c.Close()
			}
		}
	})
	w.ready()
}

// traceless looks for names, addresses and files after the end.
func (w *world) traceless(a *agent) {
	w.t.Helper()
	if p := processes(); len(p) != 0 {
		w.t.Errorf("%d processes left", len(p))
	}
	left, _ := filepath.Glob(filepath.Join(w.dir, "run", "*"))
	if len(left) != 0 {
		w.t.Errorf("files left: %v", left)
	}
	for _, mark := range []string{"c4nary", client4, client6, "example"} {
		if strings.Contains(a.log.String(), mark) {
			w.t.Errorf("the log contains %q", mark)
		}
	}
}

// TestNothingOnTheWay looks for the marked name and the customer's address in
// everything of the running unbound that others can read.
func TestNothingOnTheWay(t *testing.T) {
	w := newWorld(t)
	w.run(w.config())
	w.ready()
	if r, err := w.ask("udp", client4, resolve4, "c4nary-n4me.example.", dns.TypeA); err != nil || len(r.Answer) != 1 {
		t.Fatal(err)
	}
	pids := processes()
	if len(pids) != 1 {
		t.Fatalf("%d processes", len(pids))
	}
	for _, f := range []string{"cmdline", "environ", "status"} {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pids[0], f))
		if err != nil {
			t.Fatal(err)
		}
		for _, mark := range []string{"c4nary", client4, resolve4} {
			if bytes.Contains(b, []byte(mark)) {
				t.Errorf("%s contains %q", f, mark)
			}
		}
		// glibc cuts its setting into pieces as it reads it.
		if f == "environ" && strings.TrimSuffix(strings.ReplaceAll(string(b), "\x00", ":"), ":") != daemon.Wipe {
			t.Errorf("the environment is %q", b)
		}
	}
	fds, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pids[0]))
	for _, fd := range fds {
		link, _ := os.Readlink(fd)
		if strings.HasPrefix(link, "/") && !strings.HasPrefix(link, "/dev/") {
			t.Errorf("it keeps %s open", link)
		}
	}
	_ = filepath.WalkDir(filepath.Join(w.dir, "run"), func(path string, d os.DirEntry, err error) error {
		if b, _ := os.ReadFile(path); bytes.Contains(b, []byte("example")) || bytes.Contains(b, []byte("10.64.")) {
			t.Errorf("%s holds a name or an address", path)
		}
		return err
	})
}

// TestSurvivesKill shows that a killed unbound is there again within a second.
func TestSurvivesKill(t *testing.T) {
	w := newWorld(t)
	a := w.run(w.config())
	w.ready()
	for range 2 {
		for _, pid := range processes() {
			if err := unix.Kill(pid, unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
		}
		w.ready()
	}
	if got := a.log.String(); strings.Count(got, "restarted part=resolver") != 2 {
		t.Errorf("log: %s", got)
	}
}

// orphan starts an unbound with the configuration of a server that never ran: what
// an agent leaves that is killed.
func (w *world) orphan(cfg resolver.Config) daemon.Identity {
	w.t.Helper()
	s, err := resolver.New(cfg, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	if err := os.MkdirAll(cfg.RuntimeDir, 0o700); err != nil {
		w.t.Fatal(err)
	}
	var p *daemon.Process
	w.in(func() { p, err = s.Start(context.Background()) })
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = p.Stop(context.Background(), 0) })
	return p.Identity()
}

func TestAdopts(t *testing.T) {
	w := newWorld(t)
	for name, c := range map[string]struct {
		change  func(*resolver.Config)
		adopted bool
	}{
		"same configuration":    {func(*resolver.Config) {}, true},
		"another configuration": {func(c *resolver.Config) { c.Threads = 2 }, false},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := w.config()
			id := w.orphan(cfg)
			c.change(&cfg)
			a := w.run(cfg)
			w.ready()
			if got := slices.Contains(processes(), id.PID); got != c.adopted || len(processes()) != 1 {
				t.Errorf("the old process runs: %v, want %v; %d processes", got, c.adopted, len(processes()))
			}
			if got := strings.Contains(a.log.String(), "adopted part=resolver"); got != c.adopted {
				t.Errorf("log: %s", a.log)
			}
			if err := a.stop(); err != nil {
				t.Error(err)
			}
			w.traceless(a)
		})
	}
	for name, text := range map[string]string{"garbage": "not a process", "nobody": "4194300 1\nx", "another program": fmt.Sprintf("%d 1\nx", os.Getpid())} {
		t.Run(name, func(t *testing.T) {
			cfg := w.config()
			if err := os.WriteFile(filepath.Join(cfg.RuntimeDir, "unbound"), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			a := w.run(cfg)
			w.ready()
			if err := a.stop(); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestTrouble shows what happens when unbound cannot be had.
func TestTrouble(t *testing.T) {
	w := newWorld(t)
	cfg := w.config()
	cfg.Binary = "/nonexistent/unbound"
	a := w.run(cfg)
	if !eventually(func() bool { return strings.Contains(a.log.String(), "trouble part=resolver kind=internal") }) {
		t.Errorf("log: %s", a.log)
	}
	if err := a.stop(); err != nil {
		t.Error(err)
	}
	cfg = w.config() // it is not silent, and ends
	cfg.Binary = filepath.Join(w.dir, "loud")
	testkit.Install(t, cfg.Binary, "#!/bin/sh\necho started\necho client4.example\necho ended\n")
	a = w.run(cfg)
	if !eventually(func() bool {
		return strings.Contains(a.log.String(), "mumbled part=resolver lines=1\nrestarted part=resolver")
	}) {
		t.Errorf("log: %s", a.log)
	}
	if err := a.stop(); err != nil {
		t.Error(err)
	}
	cfg = w.config() // the note of its identity cannot be written
	if err := os.MkdirAll(filepath.Join(cfg.RuntimeDir, "unbound"), 0o700); err != nil {
		t.Fatal(err)
	}
	a = w.run(cfg)
	if !eventually(func() bool { return strings.Contains(a.log.String(), "trouble part=resolver kind=internal") }) {
		t.Errorf("log: %s", a.log)
	}
	if err := a.stop(); err != nil {
		t.Error(err)
	}
	if p := processes(); len(p) != 0 {
		t.Errorf("%d processes left", len(p))
	}
	cfg.RuntimeDir = w.hints() + "/below-a-file"
	s, err := resolver.New(cfg, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Run(t.Context()); err == nil {
		t.Error("runs without a directory")
	}
}
