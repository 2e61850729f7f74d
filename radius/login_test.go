package radius_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"lethe/fault"
	"lethe/private"
	"lethe/radius"
	"lethe/session"
)

// nas returns a daemon that asks the server.
func (w *world) nas(tb testing.TB) *nas {
	tb.Helper()
	n, err := dial(w.addr)
	must(tb, err)
	tb.Cleanup(func() { n.conn.Close() })
	return n
}

func (w *world) ann(tb testing.TB) *peer { return newPeer(w.nas(tb), 7, "ann", "correct horse") }

// account encodes an Accounting-Request of that status about the session of a class.
func (n *nas) account(status byte, class []byte, more ...attr) []byte {
	a := []attr{{40, []byte{0, 0, 0, status}}, {44, []byte("1-7")}, {5, []byte{0, 0, 0, 99}}, {42, []byte{0, 0, 4, 0}}, {52, []byte{0, 0, 0, 1}}}
	if class != nil {
		a = append(a, attr{25, class})
	}
	return n.packet(accountingRequest, append(a, more...)...)
}

// TestSession follows a session from the first packet to the last.
func TestSession(t *testing.T) {
	w := newWorld(t)
	p := w.ann(t)
	a, err := p.login()
	must(t, err)
	nets := session.SubnetsOf(daemon)
	for _, c := range []struct {
		name      string
		got, want []byte
	}{
		{"EAP", a.eap, []byte{3, p.last[bytes.Index(p.last, []byte{79, 8})+3], 0, 4}},
		{"Framed-IP-Address", a.get(8), session.Host(nets.V4, 777).AsSlice()},
		{"Framed-IPv6-Address", a.get(168), session.Host(nets.V6, 777).AsSlice()},
		{"MS-Primary-DNS-Server", a.vendor(28), []byte{10, 255, 0, 1}},
		{"DNS-Server-IPv6-Address", a.get(169), netip.MustParseAddr("fd6c:6574:6865:ffff::1").AsSlice()},
		{"Class", a.get(25), []byte{0, 0, 0, 0, 0, 0, 0, 7}},
	} {
		if !bytes.Equal(c.got, c.want) {
			t.Errorf("%s is %x, want %x", c.name, c.got, c.want)
		}
	}
	salts := map[string]bool{}
	for kind, magic := range map[byte]string{
		16: "On the client side, this is the receive key; on the server side, it is the send key.",
		17: "On the client side, this is the send key; on the server side, it is the receive key.",
	} {
		got, want, err := p.msk(a, kind, magic)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("key %d is %x, want %x: %v", kind, got, want, err)
		}
		salts[string(a.vendor(kind)[:2])] = true
	}
	if len(salts) != 2 {
		t.Error("two keys have one salt")
	}
	class := a.get(25)
	for _, c := range []struct {
		status byte
		class  []byte
		want   string
	}{
		{1, class, "admit 40/7, established 40/7"},
		{3, class, "established 40/7"},
		{2, class, "end 40/7"},
		{2, class, "end 40/7"}, // ending twice does nothing in the core
		{1, nil, ""}, {1, []byte("short"), ""}, {7, nil, ""}, {7, class, ""}, {8, class, ""},
	} {
		a, err := p.ask(p.account(c.status, c.class), time.Second)
		if err != nil || a.code != accountingResponse || len(a.attrs) != 1 {
			t.Fatalf("status %d: answer %+v, %v", c.status, a, err)
		}
		if got := w.core.said(); got != c.want {
			t.Errorf("status %d of class %x: the core was told %q, want %q", c.status, c.class, got, c.want)
		}
	}
	a, err = p.ask(p.packet(accountingRequest, attr{25, class}), time.Second)
	if err != nil || a.code != accountingResponse || w.core.said() != "" {
		t.Errorf("accounting without a status: %v, %v", a.code, err)
	}
	w.stop()
	if w.log.Len() != 0 || w.Dropped() != 0 {
		t.Errorf("%d packets dropped, logged %q", w.Dropped(), w.log)
	}
}

// TestRefusals wants each refusal in its form, and no session.
func TestRefusals(t *testing.T) {
	w := newWorld(t)
	for _, c := range []struct {
		name, user, password string
		core                 error  // of Check and Admit
		want                 string // in the Failure Request; empty for an Access-Reject at once
	}{
		{"wrong password", "ann", "battery staple", nil, "E=691 R=0 C="},
		{"unknown user", "eve", "correct horse", nil, "E=691 R=0 C="},
		{"expired", "bob", "battery staple", nil, "E=647 R=0 C="},
		{"expired, wrong password", "bob", "wrong", nil, "E=691 R=0 C="},
		{"denied", "ann", "correct horse", fault.New(fault.Denied, ""), "E=649 R=0 C="},
		{"no database", "ann", "correct horse", fault.New(fault.Unavailable, ""), ""},
		{"a defect", "ann", "correct horse", fmt.Errorf("unclassified"), ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			w.core.fail(c.core, nil)
			defer w.core.fail(nil, nil)
			p := newPeer(w.nas(t), 7, c.user, c.password)
			a, err := p.identify()
			must(t, err)
			a, err = p.prove(a)
			must(t, err)
			if c.want == "" {
				if a.code != accessReject || a.eap[0] != 4 {
					t.Errorf("answer %d, EAP %x", a.code, a.eap)
				}
				return
			}
			if a.code != accessChallenge || a.eap[5] != 4 || !strings.HasPrefix(string(a.eap[9:]), c.want) {
				t.Fatalf("answer %d, EAP %q", a.code, a.eap)
			}
			a, err = p.send(eapResponse(a.eap[1], 26, 4), a.state)
			if err != nil || a.code != accessReject || !bytes.Equal(a.eap, []byte{4, p.lastEAP()[1], 0, 4}) {
				t.Errorf("after the failure was acknowledged: %d, %x, %v", a.code, a.eap, err)
			}
		})
	}
	for _, closed := range []fault.Kind{fault.Full, fault.Unavailable, fault.Expired} {
		w.core.fail(nil, fault.New(closed, ""))
		if a, err := w.ann(t).login(); err != errRefused || a.code != accessReject || a.eap[0] != 4 {
			t.Errorf("%v at the door: %d, %v", closed, a.code, err)
		}
	}
	w.core.fail(nil, nil)
	w.core.users.Swap(nil)
	if a, err := w.ann(t).login(); err != errRefused || a.code != accessReject {
		t.Errorf("without a database: %d, %v", a.code, err)
	}
	if got := w.core.said(); got != "" {
		t.Errorf("the core was told %q", got)
	}
}

// lastEAP returns the EAP packet of the last request.
func (p *peer) lastEAP() []byte {
	for at := 20; at < len(p.last); at += int(p.last[at+1]) {
		if p.last[at] == 79 {
			return p.last[at+2:]
		}
	}
	return nil
}

// TestNoOracle wants the answers to an unknown user and to a wrong password to be
// of one form, so that nobody learns which names exist.
func TestNoOracle(t *testing.T) {
	w := newWorld(t)
	shape := func(name string) string {
		p := newPeer(w.nas(t), 7, name, "wrong")
		first, err := p.identify()
		must(t, err)
		second, err := p.prove(first)
		must(t, err)
		text, _, _ := strings.Cut(string(second.eap[9:]), " C=")
		_, tail, _ := strings.Cut(string(second.eap), " V=")
		return fmt.Sprint(first.code, len(first.raw), second.code, len(second.raw), text, tail)
	}
	if known, unknown := shape("ann"), shape("eve"); known != unknown {
		t.Errorf("a wrong password gives %q, an unknown user %q", known, unknown)
	}
}

// TestReplacedCredential takes the password away between proof and admission.
func TestReplacedCredential(t *testing.T) {
	w := newWorld(t)
	p := w.ann(t)
	a, err := p.identify()
	must(t, err)
	a, err = p.prove(a)
	must(t, err)
	if !p.convinced(a) {
		t.Fatal("the right password is refused")
	}
	db := database(t, person{"ann", "another", false})
	w.core.mu.Lock()
	w.core.users = db
	w.core.mu.Unlock()
	if a, err = p.consent(a); err != nil || a.code != accessReject {
		t.Errorf("answer %d, %v", a.code, err)
	}
}

// TestNames logs in with names of every byte value and length.
func TestNames(t *testing.T) {
	w := newWorld(t)
	var all []string
	for i := range 256 {
		all = append(all, string([]byte{byte(i)}), "user"+string([]byte{byte(i)})+"name")
	}
	all = append(all, strings.Repeat("x", 185), strings.Repeat("\xff", 253), `DOMAIN\ann`, `a\b\c`, "ann\x00", "é€😀")
	var rows []person
	for _, n := range all {
		rows = append(rows, person{n, "correct horse", false})
	}
	w.core.mu.Lock()
	w.core.users = database(t, rows...)
	w.core.mu.Unlock()
	for _, n := range all {
		p := newPeer(w.nas(t), 7, n, "correct horse")
		if _, err := p.login(); err != nil {
			t.Errorf("%q: %v", n, err)
		}
		p.hash[0] ^= 1
		if _, err := p.login(); err != errRefused {
			t.Errorf("%q with a wrong password: %v", n, err)
		}
	}
	w.stop()
	for i, l := range w.core.logins {
		if l.Username.Reveal() != all[i] {
			t.Fatalf("%q was let in as %q", all[i], l.Username.Reveal())
		}
	}
}

// TestNonsense sends what the daemon signed and no login consists of: the login ends with an
// Access-Reject, the core hears of no session.
func TestNonsense(t *testing.T) {
	w := newWorld(t)
	identity := eapResponse(0, 1, []byte("ann")...)
	challenged := func(p *peer) answer {
		a, err := p.identify()
		must(t, err)
		return a
	}
	respond := func(p *peer, a answer, change func([]byte) []byte) (answer, error) {
		eap, err := p.respond(a.eap)
		must(t, err)
		return p.send(change(eap), a.state)
	}
	long := func(eap []byte) []byte { binary.BigEndian.PutUint16(eap[2:], uint16(len(eap))); return eap }
	for name, try := range map[string]func(*peer) (answer, error){
		"no EAP": func(p *peer) (answer, error) {
			return p.ask(p.packet(accessRequest, attr{1, []byte("ann")}, attr{5, []byte{0, 0, 0, 7}}), time.Second)
		},
		"empty EAP":          func(p *peer) (answer, error) { return p.send(nil, nil) },
		"EAP without a type": func(p *peer) (answer, error) { return p.send([]byte{2, 1, 0, 4}, nil) },
		"EAP request":        func(p *peer) (answer, error) { return p.send([]byte{1, 1, 0, 5, 1}, nil) },
		"EAP length of 4":    func(p *peer) (answer, error) { return p.send([]byte{2, 1, 0, 4, 1, 'a', 'n', 'n'}, nil) },
		"EAP cut off":        func(p *peer) (answer, error) { return p.send([]byte{2, 1, 0, 9, 1, 'a', 'n', 'n'}, nil) },
		"another identity":   func(p *peer) (answer, error) { return p.send(eapResponse(0, 1, []byte("eve")...), nil) },
		"no state":           func(p *peer) (answer, error) { return respond(p, answer{eap: challenged(p).eap}, long) },
		"unknown state":      func(p *peer) (answer, error) { return p.send(identity, make([]byte, 16)) },
		"state too short":    func(p *peer) (answer, error) { return p.send(identity, []byte("state")) },
		"identity again":     func(p *peer) (answer, error) { return p.send(identity, challenged(p).state) },
		"Nak": func(p *peer) (answer, error) {
			a := challenged(p)
			return p.send(eapResponse(a.eap[1], 3, 25), a.state)
		},
		"expanded Nak": func(p *peer) (answer, error) {
			a := challenged(p)
			return p.send(eapResponse(a.eap[1], 254, make([]byte, 7)...), a.state)
		},
		"no opcode":          func(p *peer) (answer, error) { a := challenged(p); return p.send(eapResponse(a.eap[1], 26), a.state) },
		"consent to nothing": func(p *peer) (answer, error) { return p.consent(challenged(p)) },
		"wrong EAP id": func(p *peer) (answer, error) {
			return respond(p, challenged(p), func(b []byte) []byte { b[1]++; return b })
		},
		"wrong value size": func(p *peer) (answer, error) {
			return respond(p, challenged(p), func(b []byte) []byte { b[9]--; return b })
		},
		"response cut off": func(p *peer) (answer, error) {
			return respond(p, challenged(p), func(b []byte) []byte { return long(b[:57]) })
		},
		"change of password": func(p *peer) (answer, error) {
			return respond(p, challenged(p), func(b []byte) []byte { b[5] = 7; return b })
		},
		"state of a stranger": func(p *peer) (answer, error) {
			a := challenged(newPeer(p.nas, 7, "bob", ""))
			return respond(p, a, long)
		},
		"state of another port": func(p *peer) (answer, error) {
			a := challenged(p)
			p.port++
			return respond(p, a, long)
		},
		"state used twice": func(p *peer) (answer, error) {
			a := challenged(p)
			if b, err := p.prove(a); err != nil || !p.convinced(b) {
				t.Errorf("the first use: %v", err)
			}
			return p.prove(a)
		},
		"response again in place of consent": func(p *peer) (answer, error) {
			a, err := p.prove(challenged(p))
			must(t, err)
			eap := append([]byte(nil), p.lastEAP()[:61]...)
			eap[1] = a.eap[1]
			return p.send(eap, a.state)
		},
		"failure in place of consent": func(p *peer) (answer, error) {
			a, err := p.prove(challenged(p))
			must(t, err)
			return p.send(eapResponse(a.eap[1], 26, 4), a.state)
		},
	} {
		t.Run(name, func(t *testing.T) {
			a, err := try(w.ann(t))
			if err != nil || a.code != accessReject {
				t.Errorf("answer %d, %v", a.code, err)
			}
		})
	}
	// A name in the response that is not the one of the login is as good as a wrong password.
	p := w.ann(t)
	p.says = "bob"
	if a, err := p.login(); err != errRefused || !strings.HasPrefix(string(a.eap[9:]), "E=691") {
		t.Errorf("with another name in the response: %x, %v", a.eap, err)
	}
	// Without a name or a port there is nobody to log in.
	for _, missing := range []byte{1, 5} {
		n := w.nas(t)
		var rest []attr
		for _, x := range w.ann(t).attributes(identity, nil) {
			if x.kind != missing {
				rest = append(rest, x)
			}
		}
		if a, err := n.ask(n.packet(accessRequest, rest...), time.Second); err != nil || a.code != accessReject {
			t.Errorf("without attribute %d: %d, %v", missing, a.code, err)
		}
	}
	if got := w.core.said(); got != "" {
		t.Errorf("the core was told %q", got)
	}
}

// TestPieces logs in with EAP packets that come in several attributes and with padding behind.
func TestPieces(t *testing.T) {
	w := newWorld(t)
	for _, size := range []int{1, 2, 60, 253} {
		p := w.ann(t)
		step := func(eap, state []byte) answer {
			t.Helper()
			all := p.attributes(nil, state)
			var attrs []attr
			for _, x := range all {
				if x.kind != 79 {
					attrs = append(attrs, x)
				}
			}
			for eap = append(eap, 0xee, 0xee); len(eap) > 0; eap = eap[min(size, len(eap)):] {
				attrs = append(attrs, attr{79, eap[:min(size, len(eap))]})
			}
			p.last = p.packet(accessRequest, attrs...)
			a, err := p.ask(append(p.last, "padding"...), time.Second)
			must(t, err)
			return a
		}
		a := step(eapResponse(0, 1, []byte("ann")...), nil)
		eap, err := p.respond(a.eap)
		must(t, err)
		a = step(eap, a.state)
		if !p.convinced(a) {
			t.Fatalf("in pieces of %d: %d, %x", size, a.code, a.eap)
		}
		if a = step(eapResponse(a.eap[1], 26, 3), a.state); a.code != accessAccept {
			t.Errorf("in pieces of %d: answer %d", size, a.code)
		}
	}
}

// TestSilence sends what must not be answered, and expects the log to say so once.
func TestSilence(t *testing.T) {
	w := newWorld(t)
	good := func(n *nas) []byte {
		return n.packet(accessRequest, newPeer(n, 7, "ann", "").attributes(eapResponse(0, 1, []byte("ann")...), nil)...)
	}
	resign := func(change func([]byte) []byte) func(*nas) []byte {
		return func(n *nas) []byte { return n.sign(change(good(n))) }
	}
	add := func(attrs ...attr) func(*nas) []byte {
		return func(n *nas) []byte {
			return n.packet(accessRequest, append(newPeer(n, 7, "ann", "").attributes(eapResponse(0, 1, []byte("ann")...), nil), attrs...)...)
		}
	}
	raw := func(change func([]byte) []byte) func(*nas) []byte {
		return func(n *nas) []byte { return change(good(n)) }
	}
	cases := map[string]func(*nas) []byte{
		"nothing":                     func(*nas) []byte { return nil },
		"header cut off":              func(*nas) []byte { return make([]byte, 19) },
		"length below the header":     raw(func(b []byte) []byte { b[2], b[3] = 0, 19; return b }),
		"length beyond the datagram":  raw(func(b []byte) []byte { b[3]++; return b }),
		"too long":                    raw(func(b []byte) []byte { return append(b, make([]byte, 4097-len(b))...) }),
		"no Message-Authenticator":    resign(func(b []byte) []byte { return b[:len(b)-18] }),
		"wrong Message-Authenticator": raw(func(b []byte) []byte { b[len(b)-1] ^= 1; return b }),
		"changed authenticator":       raw(func(b []byte) []byte { b[4] ^= 1; return b }),
		"changed name":                raw(func(b []byte) []byte { b[22] ^= 1; return b }),
		"another secret": func(n *nas) []byte {
			other, _ := dial(w.addr)
			defer other.conn.Close()
			other.secret = []byte("another")
			other.mac = newMAC("another")
			return good(other)
		},
		"two Message-Authenticators":  add(attr{80, make([]byte, 16)}),
		"short Message-Authenticator": add(attr{80, make([]byte, 15)}),
		"attribute of length 0":       resign(func(b []byte) []byte { b[21] = 0; return b }),
		"attribute of length 1":       resign(func(b []byte) []byte { b[21] = 1; return b }),
		"attribute beyond the packet": raw(func(b []byte) []byte { b[len(b)-17] = 19; return b }),
		"half an attribute":           raw(func(b []byte) []byte { b = append(b, 1); b[3]++; return b }),
		"two names":                   add(attr{1, []byte("eve")}),
		"two states":                  add(attr{24, []byte("a")}, attr{24, []byte("b")}),
		"two classes":                 add(attr{25, []byte("a")}, attr{25, []byte("b")}),
		"two stations":                add(attr{31, []byte("203.0.113.10")}),
		"port of three bytes":         func(n *nas) []byte { return n.packet(accessRequest, attr{5, []byte{1, 2, 3}}) },
		"status of five bytes":        func(n *nas) []byte { return n.packet(accountingRequest, attr{40, make([]byte, 5)}) },
		"through a proxy":             add(attr{33, []byte("proxy")}),
		"an answer":                   resign(func(b []byte) []byte { b[0] = accessAccept; return b }),
		"Status-Server":               resign(func(b []byte) []byte { b[0] = 12; return b }),
		"accounting, wrong":           func(n *nas) []byte { b := n.account(1, nil); b[5] ^= 1; return b },
		"accounting, Message-Authenticator wrong": func(n *nas) []byte {
			b := n.account(1, nil, attr{80, make([]byte, 16)}, attr{32, []byte("x")})
			return n.sign(b) // the Message-Authenticator is not the last attribute and stays zeros
		},
	}
	for name, packet := range cases {
		n := w.nas(t)
		before := w.Dropped()
		if _, err := n.conn.Write(packet(n)); err != nil {
			t.Fatal(err)
		}
		// What comes after it is answered: only then silence is one.
		a, err := n.ask(good(n), 5*time.Second)
		if err != nil || a.code != accessChallenge {
			t.Errorf("%s: %v, then the answer is %d", name, err, a.code)
		}
		if got := w.Dropped() - before; got != 1 {
			t.Errorf("%s: %d packets dropped, want 1", name, got)
		}
	}
	// A Message-Authenticator in an Accounting-Request is fine when it is right.
	n := w.nas(t)
	if a, err := n.ask(n.account(1, make([]byte, 8), attr{80, make([]byte, 16)}), time.Second); err != nil || a.code != accountingResponse {
		t.Errorf("accounting with a Message-Authenticator: %d, %v", a.code, err)
	}
	w.stop()
	if got, want := w.log.String(), strings.Repeat("trouble part=radius kind=untrusted\n", len(cases)); got != want {
		t.Errorf("logged %q", got)
	}
}

// TestQuestionsAskedTwice wants the same answer to the same packet, and the core told once.
func TestQuestionsAskedTwice(t *testing.T) {
	w := newWorld(t)
	p := w.ann(t)
	step := func(a answer, err error) answer {
		t.Helper()
		must(t, err)
		for range 3 {
			again, err := p.ask(p.last, time.Second)
			if err != nil || !bytes.Equal(again.raw, a.raw) {
				t.Fatalf("answer %x, then %x, %v", a.raw, again.raw, err)
			}
		}
		return a
	}
	a := step(p.identify())
	a = step(p.prove(a))
	a = step(p.consent(a))
	if a.code != accessAccept {
		t.Fatalf("answer %d", a.code)
	}
	p.last = p.account(1, a.get(25))
	step(p.ask(p.last, time.Second))
	p.last = p.account(2, a.get(25))
	step(p.ask(p.last, time.Second))
	if got := w.core.said(); got != "admit 40/7, established 40/7, end 40/7" {
		t.Errorf("the core was told %q", got)
	}
	// From elsewhere the same packet is another question.
	stranger := w.nas(t)
	first := p.packet(accessRequest, p.attributes(eapResponse(0, 1, []byte("ann")...), nil)...)
	one, err := p.ask(first, time.Second)
	must(t, err)
	two, err := stranger.ask(first, time.Second)
	if err != nil || bytes.Equal(one.raw, two.raw) {
		t.Errorf("two daemons got one challenge, %v", err)
	}
}

func TestNew(t *testing.T) {
	c := &core{}
	short := config(c)
	short.Secret = private.Of([]byte("fifteen bytes.."))
	two, none := config(c), config(c)
	two.DNS = []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")}
	none.DNS = []netip.Addr{{}}
	for name, cfg := range map[string]radius.Config{"short secret": short, "two resolvers": two, "no resolver": none} {
		if _, err := radius.New(cfg); fault.Of(err) != fault.Invalid || err == nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestLoopbackOnly wants the server to listen to this machine and nobody else.
func TestLoopbackOnly(t *testing.T) {
	s, err := radius.New(config(&core{}))
	must(t, err)
	conn, err := net.ListenUDP("udp4", nil)
	must(t, err)
	if err := s.Serve(t.Context(), conn); fault.Of(err) != fault.Invalid || err == nil {
		t.Errorf("on every interface: %v", err)
	}
	here, err := radius.Listen(0)
	must(t, err)
	a := here.LocalAddr().(*net.UDPAddr)
	if !a.IP.IsLoopback() {
		t.Errorf("listens on %v", a.IP)
	}
	if _, err := radius.Listen(uint16(a.Port)); fault.Of(err) != fault.Unavailable || err == nil {
		t.Errorf("a port in use: %v", err)
	}
	here.Close()
	if err := s.Serve(t.Context(), here); fault.Of(err) != fault.Unavailable || err == nil {
		t.Errorf("on a closed socket: %v", err)
	}
}

func TestPeer(t *testing.T) {
	for station, want := range map[string]string{
		"203.0.113.9": "203.0.113.9", "203.0.113.9[4500]": "203.0.113.9", "2001:db8::9": "2001:db8::9",
		"2001:db8::9[500]": "2001:db8::9", "::ffff:203.0.113.9": "203.0.113.9", "fe80::1%eth0": "fe80::1",
		"": "invalid IP", "02-00-00-00-00-01": "invalid IP", "[203.0.113.9]": "invalid IP", "\xff": "invalid IP",
	} {
		if got := radius.Peer(station).String(); got != want {
			t.Errorf("%q is %s, want %s", station, got, want)
		}
	}
}

// TestCrowd logs in many customers at once over a few sockets, as a daemon after a restart does.
func TestCrowd(t *testing.T) {
	w := newWorld(t)
	const n = 1000
	var rows []person
	for i := range n {
		rows = append(rows, person{name(i), password(i), false})
	}
	w.core.mu.Lock()
	w.core.users = database(t, rows...)
	w.core.mu.Unlock()
	contender{addr: w.addr}.rush(t, n)
	w.stop()
	seen := map[string]bool{}
	for _, l := range w.core.logins {
		seen[l.Username.Reveal()] = true
	}
	if len(seen) != n || len(w.core.logins) != n || w.Dropped() != 0 {
		t.Errorf("%d customers let in by %d admissions, %d packets dropped", len(seen), len(w.core.logins), w.Dropped())
	}
}
