package radius_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"lethe/radius"
)

// bench is a server without a socket and the peer that asks it, in a time of the test's own.
type bench struct {
	*radius.Server
	core *core
	from netip.AddrPort
	now  time.Time
	n    *nas
}

func newBench(tb testing.TB) *bench {
	tb.Helper()
	b := &bench{
		core: &core{users: database(tb, people...)}, from: netip.MustParseAddrPort("127.0.0.1:4711"), now: time.Unix(1e9, 0),
		n: &nas{secret: []byte(secret), mac: newMAC(secret)},
	}
	var err error
	b.Server, err = radius.New(config(b.core))
	must(tb, err)
	return b
}

// ask hands over a packet at the bench's time.
func (b *bench) ask(tb testing.TB, request []byte) answer {
	tb.Helper()
	raw := b.Handle(b.now, b.from, append([]byte(nil), request...))
	if raw == nil {
		tb.Fatal("no answer")
	}
	a, err := b.n.verify(request, append([]byte(nil), raw...))
	must(tb, err)
	return a
}

func (b *bench) send(tb testing.TB, p *peer, eap, state []byte) answer {
	tb.Helper()
	p.last = b.n.packet(accessRequest, p.attributes(eap, state)...)
	return b.ask(tb, p.last)
}

func (b *bench) identify(tb testing.TB, p *peer) answer {
	tb.Helper()
	return b.send(tb, p, eapResponse(0, 1, []byte(p.name)...), nil)
}

func (b *bench) prove(tb testing.TB, p *peer, a answer) answer {
	tb.Helper()
	eap, err := p.respond(a.eap)
	must(tb, err)
	return b.send(tb, p, eap, a.state)
}

func (b *bench) consent(tb testing.TB, p *peer, a answer) answer {
	tb.Helper()
	return b.send(tb, p, eapResponse(a.eap[1], 26, 3), a.state)
}

// TestHalfOpenLoginsEnd lets time pass between the steps of a login.
func TestHalfOpenLoginsEnd(t *testing.T) {
	for _, c := range []struct {
		wait time.Duration
		want byte
	}{{radius.Lifetime - time.Second, accessAccept}, {radius.Lifetime, accessReject}} {
		b := newBench(t)
		p := newPeer(b.n, 7, "ann", "correct horse")
		a := b.identify(t, p)
		pass := func() { b.now = b.now.Add(c.wait); b.Expire(b.now) }
		pass()
		if a = b.prove(t, p, a); a.code == accessChallenge {
			pass()
			a = b.consent(t, p, a)
		}
		if a.code != c.want {
			t.Errorf("after %v a step: answer %d, want %d", c.wait, a.code, c.want)
		}
		b.now = b.now.Add(radius.Lifetime)
		b.Expire(b.now)
		if logins, answers := b.Open(); logins != 0 || answers != 0 {
			t.Errorf("%d half-open logins and %d answers are left", logins, answers)
		}
	}
}

// TestUnaccountedSessionsEnd admits clients of whom only one comes about.
func TestUnaccountedSessionsEnd(t *testing.T) {
	b := newBench(t)
	admit := func(port uint32) []byte {
		p := newPeer(b.n, port, "ann", "correct horse")
		a := b.consent(t, p, b.prove(t, p, b.identify(t, p)))
		return a.get(25)
	}
	class := admit(1)
	admit(2)
	b.ask(t, b.n.account(1, class))
	b.core.said()
	b.now = b.now.Add(radius.Lifetime - 1)
	b.Expire(b.now)
	if got := b.core.said(); got != "" {
		t.Errorf("too early the core was told %q", got)
	}
	admit(3)
	b.now = b.now.Add(1)
	b.Expire(b.now)
	if got := b.core.said(); got != "admit 40/3, end 40/2" {
		t.Errorf("the core was told %q", got)
	}
}

// TestFlood opens more logins than there is room for: the oldest give way, memory does not grow,
// and a login that takes its time like everybody's is completed.
func TestFlood(t *testing.T) {
	b := newBench(t)
	first, last := newPeer(b.n, 1, "ann", "correct horse"), newPeer(b.n, 2, "ann", "correct horse")
	oldest := b.identify(t, first)
	flood := func(n int) {
		p := newPeer(b.n, 9, "eve", "")
		for i := range n {
			b.from = netip.AddrPortFrom(b.from.Addr(), uint16(i>>8))
			b.identify(t, p)
		}
	}
	flood(radius.MaxEntries / 2)
	a := b.identify(t, last)
	flood(radius.MaxEntries - 1)
	if logins, answers := b.Open(); logins != radius.MaxEntries || answers > radius.MaxEntries {
		t.Errorf("%d half-open logins, %d answers", logins, answers)
	}
	if a := b.prove(t, first, oldest); a.code != accessReject {
		t.Errorf("a login older than the table is long: answer %d", a.code)
	}
	if a = b.consent(t, last, b.prove(t, last, a)); a.code != accessAccept {
		t.Errorf("a login in a flood: answer %d", a.code)
	}
}

// TestAnswersAreForgotten asks the last question of a login again, in time and late.
func TestAnswersAreForgotten(t *testing.T) {
	b := newBench(t)
	p := newPeer(b.n, 7, "ann", "correct horse")
	a := b.consent(t, p, b.prove(t, p, b.identify(t, p)))
	b.now = b.now.Add(radius.AnswerLife - 1)
	b.Expire(b.now)
	if again := b.ask(t, p.last); !bytes.Equal(again.raw, a.raw) {
		t.Error("a question asked again in time has another answer")
	}
	b.now = b.now.Add(1)
	b.Expire(b.now)
	if _, answers := b.Open(); answers != 0 {
		t.Errorf("%d answers are kept for longer than the daemon asks", answers)
	}
	if again := b.ask(t, p.last); again.code != accessReject {
		t.Errorf("a login was let in twice: answer %d", again.code)
	}
	if got := b.core.said(); got != "admit 40/7" {
		t.Errorf("the core was told %q", got)
	}
}

// TestAnswersGiveWay asks from more sources than there is room for.
func TestAnswersGiveWay(t *testing.T) {
	b := newBench(t)
	for i := range radius.MaxEntries + 100 {
		b.from = netip.AddrPortFrom(b.from.Addr(), uint16(i+1))
		b.ask(t, b.n.account(3, nil))
	}
	if _, answers := b.Open(); answers != radius.MaxEntries {
		t.Errorf("%d answers are kept", answers)
	}
}

// TestNoOracleInTime compares how long a wrong password and an unknown user take. They take turns, so
// that a busy machine does the same to both; the medians differ by less than one in a hundred on a quiet one.
func TestNoOracleInTime(t *testing.T) {
	b := newBench(t)
	names := []string{"ann", "eve"}
	took := make([][]time.Duration, len(names))
	for i := range 6000 {
		p := newPeer(b.n, 7, names[i%2], "wrong")
		a := b.identify(t, p)
		eap, err := p.respond(a.eap)
		must(t, err)
		request := b.n.packet(accessRequest, p.attributes(eap, a.state)...)
		begun := time.Now()
		b.Handle(b.now, b.from, request)
		took[i%2] = append(took[i%2], time.Since(begun))
	}
	median := func(i int) time.Duration { slices.Sort(took[i]); return took[i][len(took[i])/2] }
	if known, unknown := median(0), median(1); known > unknown*5/4 || unknown > known*5/4 {
		t.Errorf("a wrong password takes %v, an unknown user %v", known, unknown)
	}
}

// TestNothingRemains looks through the server's working memory after each step of a login.
func TestNothingRemains(t *testing.T) {
	b := newBench(t)
	p := newPeer(b.n, 7, "ann", "correct horse")
	clean := func(a answer) answer {
		t.Helper()
		if rest := bytes.Trim(b.Remains(), "\x00"); len(rest) > 0 {
			t.Errorf("after answer %d there remains %q", a.code, rest)
		}
		return a
	}
	a := clean(b.identify(t, p))
	a = clean(b.prove(t, p, a))
	a = clean(b.consent(t, p, a))
	clean(b.ask(t, b.n.account(2, a.get(25), attr{1, []byte("ann")})))
	if a.code != accessAccept {
		t.Fatalf("answer %d", a.code)
	}
}

// TestOneCoreNumber admits a client under the number of one that was never accounted for.
func TestOneCoreNumber(t *testing.T) {
	b := newBench(t)
	p := newPeer(b.n, 5, "ann", "correct horse")
	for range 2 {
		if a := b.consent(t, p, b.prove(t, p, b.identify(t, p))); a.code != accessAccept || binary.BigEndian.Uint64(a.get(25)) != 5 {
			t.Fatalf("answer %d", a.code)
		}
		b.now = b.now.Add(radius.Lifetime - 1)
	}
	b.Expire(b.now)
	if got, want := b.core.said(), "admit 40/5, admit 40/5"; got != want {
		t.Errorf("the core was told %q, want %q", got, want)
	}
}

// FuzzHandle hands the server packets with attributes of anybody's choice, signed so that what is
// behind the signature must refuse them: it answers in form or not at all and admits nobody.
func FuzzHandle(f *testing.F) {
	b := newBench(f)
	p := newPeer(b.n, 7, "ann", "correct horse")
	a := b.identify(f, p)
	eap, err := p.respond(a.eap)
	must(f, err)
	for _, attrs := range [][]attr{
		p.attributes(eapResponse(0, 1, []byte("ann")...), nil), p.attributes(eap, a.state), p.attributes(eapResponse(3, 26, 3), make([]byte, 16)),
		{{40, []byte{0, 0, 0, 1}}, {25, make([]byte, 8)}}, {{79, nil}, {79, []byte{2}}}, {},
	} {
		f.Add(byte(accessRequest), b.n.packet(0, attrs...)[20:])
		f.Add(byte(accountingRequest), b.n.packet(0, attrs...)[20:])
	}
	f.Add(byte(accessRequest), []byte{1})
	f.Fuzz(func(t *testing.T, code byte, attributes []byte) {
		if len(attributes) > 4000 {
			return
		}
		request := append(make([]byte, 20), attributes...)
		request[0] = code
		if code == accessRequest {
			request = append(append(request, 80, 18), make([]byte, 16)...)
		}
		b.n.sign(request)
		raw := append([]byte(nil), b.Handle(b.now, b.from, append([]byte(nil), request...))...)
		b.now = b.now.Add(radius.Lifetime)
		b.Expire(b.now)
		if len(raw) > 0 {
			if _, err := b.n.verify(request, raw); err != nil {
				t.Fatal(err)
			}
		}
		for _, told := range b.core.journal {
			if told[0] == 'a' {
				t.Fatal("somebody was admitted")
			}
		}
		b.core.said()
	})
}

// FuzzParse hands the parsers bytes: what they find is what was there.
func FuzzParse(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte{2, 1, 0, 5, 1})
	f.Add([]byte{1, 1, 0, 28, 15: 0, 19: 0, 20: 79, 21: 8, 22: 2, 23: 1, 24: 0, 25: 6, 26: 26, 27: 2})
	f.Add(append([]byte{2, 1, 0, 59, 26, 2, 1, 0, 54, 49}, make([]byte, 49)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		whole := fmt.Sprintf("%x", b)
		eap, name, ok := radius.Parse(b)
		if ok && len(eap)+len(name) > len(b)-20 {
			t.Fatal("more was found than there is")
		}
		for _, eap := range [][]byte{eap, b} {
			id, kind, data, ok := radius.ParseEAP(eap)
			if !ok {
				continue
			}
			if eap[0] != 2 || eap[1] != id || eap[4] != kind || len(data) != int(binary.BigEndian.Uint16(eap[2:]))-5 {
				t.Fatalf("%x gives %d, %d, %x", eap, id, kind, data)
			}
			if name, ok := radius.ParseResponse(data); ok && len(name) != len(data)-54 {
				t.Fatalf("name %x in %x", name, data)
			}
		}
		if fmt.Sprintf("%x", b) != whole {
			t.Fatal("the parsers changed the packet")
		}
	})
}
