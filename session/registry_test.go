package session_test

import (
	"errors"
	"net/netip"
	"slices"
	"sync"
	"testing"

	"lethe/fault"
	"lethe/ledger"
	"lethe/location"
	"lethe/private"
	"lethe/protocol"
	"lethe/session"
	"lethe/usage"
)

// counters is a Counters in memory that can be told to fail.
type counters struct {
	mu    sync.Mutex
	bytes map[netip.Addr][2]uint64
	fail  map[string]bool
}

var errCounters = errors.New("counters are broken")

func (c *counters) Add(v4, _ netip.Addr) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fail["add"] {
		return errCounters
	}
	if _, ok := c.bytes[v4]; !ok {
		c.bytes[v4] = [2]uint64{3e6, 2e6}
	}
	return nil
}

func (c *counters) Read(v4, _ netip.Addr) (in, out uint64, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fail["read"] {
		return 0, 0, errCounters
	}
	b := c.bytes[v4]
	return b[0], b[1], nil
}

func (c *counters) Remove(v4, _ netip.Addr) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.bytes, v4)
	if c.fail["remove"] {
		return errCounters
	}
	return nil
}

// server is a registry with its surroundings.
type server struct {
	*session.Registry
	cfg      session.Config
	counters *counters
	killed   []session.Ref
	users    map[string]bool // known user -> may stay
	trouble  int
}

// rightHash stands for the NT hash of the password "right".
var rightHash = [16]byte{7}

func newServer(t *testing.T, slots int) *server {
	t.Helper()
	f, err := ledger.Create(slots)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	l, err := ledger.Open(f)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	s := &server{counters: &counters{bytes: map[netip.Addr][2]uint64{}, fail: map[string]bool{}}, users: map[string]bool{"ann": true, "bob": true}}
	s.cfg = session.Config{
		Location: func() location.ID { return 9 }, Salt: private.Of([32]byte{1}), Ledger: l, Counters: s.counters,
		Check: func(l session.Login) error {
			good := l.Password.Reveal() == "right"
			if l.Proof != nil {
				good = l.Proof(&rightHash)
			}
			if _, ok := s.users[l.Username.Reveal()]; !ok || !good {
				return fault.New(fault.Unauthenticated, "refused")
			}
			return nil
		},
		Allowed: func(u private.Value[string]) bool { return s.users[u.Reveal()] },
		Locate:  func(netip.Addr) (string, string) { return "NL", "LAB FIBRE" },
		Kill:    func(r session.Ref) { s.killed = append(s.killed, r); s.End(r) },
		Trouble: func() { s.trouble++ },
	}
	s.Registry = session.New(s.cfg)
	return s
}

// restart replaces the registry by a new one over the same ledger, as after a
// kill -9 of the agent.
func (s *server) restart() { s.Registry = session.New(s.cfg) }

func login(user, password string) session.Login {
	return session.Login{
		Username: private.Of(user), Password: private.Of(password),
		Peer: private.Of(netip.MustParseAddr("203.0.113.7")), Protocol: protocol.OpenVPNUDP,
	}
}

func (s *server) admit(t *testing.T, ref session.Ref, user string) session.Grant {
	t.Helper()
	g, err := s.Admit(ref, login(user, "right"))
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func TestSessionBecomesOneRecord(t *testing.T) {
	s := newServer(t, 16)
	ref := session.Ref{Daemon: 1, Client: 42}
	g := s.admit(t, ref, "ann")
	if nets := session.SubnetsOf(1); !nets.V4.Contains(g.V4) || !nets.V6.Contains(g.V6) || g.V4 == session.Host(nets.V4, 1) {
		t.Errorf("granted %v and %v", g.V4, g.V6)
	}
	s.Established(ref)
	if err := s.Renew(ref, private.Of("ann"), private.Of("right")); err != nil {
		t.Error(err)
	}
	s.End(ref)
	s.End(ref)
	b := s.cfg.Ledger.Freeze()
	if len(b.Records) != 1 {
		t.Fatalf("records %+v", b.Records)
	}
	r := b.Records[0]
	if r.In != 3 || r.Out != 2 || r.Country != "NL" || r.ISP != "LAB FIBRE" || r.Location != 9 ||
		r.Protocol != protocol.OpenVPNUDP || r.User != usage.Hash(s.cfg.Salt, []byte("ann")) {
		t.Errorf("record %+v", r)
	}
	if len(s.counters.bytes) != 0 || s.Count() != 0 {
		t.Error("something of the session is left")
	}
}

func TestRefusals(t *testing.T) {
	s := newServer(t, 1)
	for name, l := range map[string]session.Login{"user": login("eve", "right"), "password": login("ann", "wrong")} {
		if _, err := s.Admit(session.Ref{}, l); fault.Of(err) != fault.Unauthenticated {
			t.Errorf("wrong %s gives %v", name, err)
		}
	}
	if s.Count() != 0 || s.cfg.Ledger.Pending() != 0 {
		t.Error("a refused login left something")
	}
	ref := session.Ref{Client: 1}
	s.admit(t, ref, "ann")
	for name, err := range map[string]error{
		"another user":   s.Renew(ref, private.Of("bob"), private.Of("right")),
		"wrong password": s.Renew(ref, private.Of("ann"), private.Of("wrong")),
		"no session":     s.Renew(session.Ref{Client: 2}, private.Of("ann"), private.Of("right")),
	} {
		if fault.Of(err) != fault.Unauthenticated {
			t.Errorf("renewal with %s gives %v", name, err)
		}
	}
	if _, err := s.Admit(session.Ref{Client: 3}, login("bob", "right")); fault.Of(err) != fault.Full {
		t.Errorf("a full ledger gives %v", err)
	}
	s.End(ref)
	if len(s.cfg.Ledger.Freeze().Records) != 0 {
		t.Error("a session that was never established left a record")
	}
}

// TestProofStandsInForThePassword admits a client whose password the daemon never saw.
func TestProofStandsInForThePassword(t *testing.T) {
	s := newServer(t, 16)
	for _, knows := range []bool{true, false} {
		l := login("ann", "")
		l.Proof = func(hash *[16]byte) bool { return *hash == rightHash && knows }
		ref := session.Ref{Client: 8}
		err := s.Check(l)
		if s.Count() != 0 {
			t.Error("a check opened a session")
		}
		_, err2 := s.Admit(ref, l)
		want := fault.Kind(0)
		if !knows {
			want = fault.Unauthenticated
		}
		if knows != (err == nil) || knows != (err2 == nil) || fault.Of(err) != want || fault.Of(err2) != want {
			t.Errorf("proof %t gives %v at the check and %v at the door", knows, err, err2)
		}
		s.End(ref)
	}
}

func TestBrokenCounters(t *testing.T) {
	s := newServer(t, 16)
	s.counters.fail["add"] = true
	if _, err := s.Admit(session.Ref{}, login("ann", "right")); fault.Of(err) != fault.Unavailable {
		t.Errorf("got %v, want unavailable: who cannot be accounted for stays out", err)
	}
	if s.Count() != 0 || s.trouble != 1 {
		t.Errorf("%d sessions, %d troubles", s.Count(), s.trouble)
	}
	s.counters.fail = map[string]bool{"read": true, "remove": true}
	ref := session.Ref{Client: 5}
	s.admit(t, ref, "ann")
	s.Established(ref)
	s.End(ref)
	if got := s.cfg.Ledger.Freeze().Records; len(got) != 1 || s.trouble != 3 {
		t.Errorf("records %+v, %d troubles", got, s.trouble)
	}
}

// TestRestart kills the agent while one client stays, one leaves, one was
// still in its handshake, and one appears that nobody admitted.
func TestRestart(t *testing.T) {
	s := newServer(t, 16)
	stays, leaves, young, other := session.Ref{Client: 1}, session.Ref{Client: 2}, session.Ref{Client: 3}, session.Ref{Daemon: 1, Client: 1}
	g := s.admit(t, stays, "ann")
	s.Established(stays)
	s.admit(t, leaves, "bob")
	s.Established(leaves)
	s.admit(t, young, "bob")
	s.admit(t, other, "bob")
	s.Established(other)

	s.restart()
	if s.Count() != 4 {
		t.Fatalf("%d sessions after the restart", s.Count())
	}
	if s.Recheck() != 0 {
		t.Error("sessions were killed before their daemon was asked")
	}
	s.counters.fail["add"] = true
	s.Resume(0, []session.Live{
		{Client: 1, Username: private.Of("ann"), V4: g.V4},
		{Client: 77, Username: private.Of("eve"), V4: netip.MustParseAddr("10.64.9.9")},
	})
	if want := []session.Ref{{Client: 77}}; !slices.Equal(s.killed, want) {
		t.Errorf("killed %v, want %v", s.killed, want)
	}
	if s.trouble != 1 {
		t.Errorf("%d troubles", s.trouble)
	}
	if n := len(s.cfg.Ledger.Freeze().Records); n != 1 {
		t.Errorf("%d records, want the one of the client that left", n)
	}
	if err := s.Renew(stays, private.Of("ann"), private.Of("right")); err != nil {
		t.Errorf("the client that stayed cannot renew: %v", err)
	}
	s.Reset(1)
	if s.Count() != 1 {
		t.Errorf("%d sessions, want 1", s.Count())
	}
}

// TestRenumbered restarts the agent twice while a client's number has changed.
func TestRenumbered(t *testing.T) {
	s := newServer(t, 16)
	g := s.admit(t, session.Ref{Client: 1}, "ann")
	other := s.admit(t, session.Ref{Client: 2}, "bob")
	for _, n := range []uint64{7, 9} {
		s.restart()
		s.Resume(0, []session.Live{
			{Client: n, Username: private.Of("ann"), V4: g.V4},
			{Client: 2, Username: private.Of("bob"), V4: other.V4},
		})
		if len(s.killed) != 0 || s.Count() != 2 {
			t.Fatalf("killed %v, %d sessions left", s.killed, s.Count())
		}
		if err := s.Renew(session.Ref{Client: n}, private.Of("ann"), private.Of("right")); err != nil {
			t.Errorf("client %d cannot renew: %v", n, err)
		}
	}
	s.Resume(0, []session.Live{{Client: 2, Username: private.Of("ann"), V4: g.V4}})
	if want := []session.Ref{{Client: 2}}; !slices.Equal(s.killed, want) {
		t.Errorf("killed %v, want %v: one number, two clients", s.killed, want)
	}
	s.End(session.Ref{Client: 9})
	if n := len(s.cfg.Ledger.Freeze().Records); s.Count() != 0 || n != 2 {
		t.Errorf("%d sessions left, %d records, want none and 2", s.Count(), n)
	}
}

func TestReusedClientNumber(t *testing.T) {
	s := newServer(t, 16)
	ref := session.Ref{Client: 1}
	s.admit(t, ref, "ann")
	s.Established(ref)
	s.admit(t, ref, "bob")
	if got := s.cfg.Ledger.Freeze().Records; len(got) != 1 || got[0].User != usage.Hash(s.cfg.Salt, []byte("ann")) {
		t.Errorf("records %+v", got)
	}
}

func TestRecheckEndsWhoMayNotStay(t *testing.T) {
	s := newServer(t, 16)
	ann, bob := session.Ref{Client: 1}, session.Ref{Client: 2}
	s.admit(t, ann, "ann")
	s.admit(t, bob, "bob")
	s.users["bob"] = false
	if n := s.Recheck(); n != 1 || !slices.Equal(s.killed, []session.Ref{bob}) || s.Count() != 1 {
		t.Errorf("%d ended, killed %v, %d left", n, s.killed, s.Count())
	}
}

func TestAddressesAreRandomAndUnique(t *testing.T) {
	s := newServer(t, 40000)
	seen := map[netip.Addr]bool{}
	var order []netip.Addr
	for n := range uint64(32767) {
		g := s.admit(t, session.Ref{Client: n}, "ann")
		if seen[g.V4] || seen[g.V6] {
			t.Fatal("an address was granted twice")
		}
		if session.Twin(g.V4) != g.V6 {
			t.Fatalf("the twin of %v is %v, granted was %v", g.V4, session.Twin(g.V4), g.V6)
		}
		seen[g.V4], seen[g.V6] = true, true
		order = append(order, g.V4)
	}
	if slices.IsSortedFunc(order[:50], netip.Addr.Compare) {
		t.Error("addresses are granted in order")
	}
	if _, err := s.Admit(session.Ref{Client: 1 << 40}, login("ann", "right")); fault.Of(err) != fault.Full {
		t.Errorf("an exhausted pool gives %v", err)
	}
	s.End(session.Ref{Client: 0})
	s.admit(t, session.Ref{Client: 0}, "ann")
}

func BenchmarkAdmitEnd(b *testing.B) {
	f, err := ledger.Create(1024)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	l, err := ledger.Open(f)
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	r := session.New(session.Config{
		Location: func() location.ID { return 1 }, Ledger: l, Counters: &counters{bytes: map[netip.Addr][2]uint64{}},
		Check:   func(session.Login) error { return nil },
		Locate:  func(netip.Addr) (string, string) { return "NL", "LAB" },
		Trouble: func() {},
	})
	in := login("ann", "right")
	for b.Loop() {
		if _, err := r.Admit(session.Ref{}, in); err != nil {
			b.Fatal(err)
		}
		r.End(session.Ref{})
	}
}
