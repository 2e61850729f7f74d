package radius

import (
	"crypto/rand"
	"crypto/subtle"
	"encoding/binary"
	"net/netip"
	"time"

	"lethe/event"
	"lethe/fault"
	"lethe/private"
	"lethe/session"
)

// How long things are remembered, and how many of them.
const (
	// lifetime is what a client gets for each step of a login: by default strongSwan's half-open
	// IKE SAs live as long. A session that is not accounted for by then has not come about.
	lifetime = 30 * time.Second
	// answerLife is how long an answer is kept for a daemon that asks again. By default strongSwan
	// asks for the last time after 9 s.
	answerLife = 10 * time.Second
	maxEntries = 1 << 14 // per table: 64 sockets of strongSwan with 256 identifiers each
)

// question identifies a request: RFC 5080, section 2.2.2. An identifier is used again
// as soon as its question was answered, so there is one question to remember for each.
type question struct {
	from [4]byte
	port uint16
	id   uint16 // a byte would leave a hole, and keys with holes are slow to hash
}

// answered is the last question of that source and identifier and its answer.
type answered struct {
	code  byte
	auth  [authSize]byte
	reply reply
}

// step is what a conversation waits for.
type step byte

const (
	wantResponse step = 1 + iota // to our challenge
	wantConsent                  // to our proof that we know the password too
)

// conversation is a login between two of its packets. Its key is the State that the
// last answer carried; an answer ends it, so a State is good once.
type conversation struct {
	step     step
	eapID    byte // of our last EAP request
	nameSize byte
	name     [253]byte // User-Name
	port     [4]byte   // NAS-Port
	exchange exchange
	ntHash   [16]byte // that was proved
	keys     keys
}

func (c *conversation) username() []byte { return c.name[:c.nameSize] }

// handle answers one datagram. It returns nil for one that deserves no answer; else
// bytes that are good until the next call.
func (s *Server) handle(now time.Time, from netip.AddrPort, datagram []byte) []byte {
	r, ok := parse(datagram, &s.room)
	if !ok || !s.hashes.genuine(r) {
		s.distrust()
		return nil
	}
	s.trusted = true
	q := question{from.Addr().Unmap().As4(), from.Port(), uint16(r.id)}
	if a := s.answers.get(q); a != nil && a.code == r.code && subtle.ConstantTimeCompare(a.auth[:], r.auth()) == 1 {
		return a.reply.b[:a.reply.n]
	}
	a := s.answers.put(q, now)
	a.code, a.auth = r.code, [authSize]byte(r.auth())
	if r.code == accountingRequest {
		s.account(r, &a.reply)
	} else {
		s.access(now, r, &a.reply)
		s.now = conversation{}
	}
	b := s.hashes.finish(&a.reply)
	s.hashes.wipe()
	return b
}

// distrust notes a packet that is not from our daemon, or from a daemon that has another
// secret: then nobody can log in, and the log says so once until it is mended.
func (s *Server) distrust() {
	s.dropped.Add(1)
	if s.trusted {
		s.trusted = false
		s.cfg.Log.Log(event.Trouble{Part: event.RADIUS, Kind: fault.Untrusted})
	}
}

// account follows the life of a session (RFC 2866). Accounting-On and -Off are
// acknowledged and mean nothing: who started the daemon knows better when it ended.
func (s *Server) account(r request, out *reply) {
	out.begin(accountingResponse, r)
	if len(r.class) != classSize || r.status == nil {
		return
	}
	ref := session.Ref{Daemon: s.cfg.Daemon, Client: binary.BigEndian.Uint64(r.class)}
	var is struct{}
	switch binary.BigEndian.Uint32(r.status) {
	case acctStart, acctInterim:
		s.admitted.take(ref, &is)
		s.cfg.Core.Established(ref)
	case acctStop:
		s.admitted.take(ref, &is)
		s.cfg.Core.End(ref)
	}
}

// access takes a login one step further. What does not fit the step ends the login
// like a wrong password would, so that the daemon can tell its client.
func (s *Server) access(now time.Time, r request, out *reply) {
	e, ok := parseEAP(r.eap)
	if !ok || len(r.name) == 0 || r.port == nil {
		s.reject(r, out)
		return
	}
	if r.state == nil {
		if e.kind != eapIdentity || string(e.data) != string(r.name) {
			s.reject(r, out)
			return
		}
		s.challenge(now, r, e, out)
		return
	}
	c := &s.now
	if len(r.state) != stateSize || !s.open.take([stateSize]byte(r.state), c) ||
		string(r.name) != string(c.username()) || [4]byte(r.port) != c.port ||
		e.id != c.eapID || e.kind != eapMSCHAPv2 || len(e.data) == 0 {
		s.reject(r, out)
		return
	}
	switch {
	case c.step == wantResponse && e.data[0] == opResponse:
		s.verify(now, r, e, out)
	case c.step == wantConsent && e.data[0] == opSuccess:
		s.admit(now, r, out)
	default:
		s.reject(r, out)
	}
}

// challenge answers a client's identity.
func (s *Server) challenge(now time.Time, r request, e eapPacket, out *reply) {
	c := &s.now
	c.step, c.eapID, c.port = wantResponse, e.id+1, [4]byte(r.port)
	c.nameSize = byte(copy(c.name[:], r.name))
	s.random(c.exchange.ours[:])
	out.begin(accessChallenge, r)
	out.addChallenge(c.eapID, &c.exchange.ours)
	s.keep(now, out)
}

// keep puts the conversation away until the client's next packet and adds the State
// to find it by.
func (s *Server) keep(now time.Time, out *reply) {
	key := out.room(state, stateSize)
	s.random(key)
	*s.open.put([stateSize]byte(key), now) = s.now
}

// random fills b with random bytes. They come from the system a page at a time, because asking
// for each challenge cost as much as hashing it, and are forgotten as they are used.
func (s *Server) random(b []byte) {
	if len(s.lot) < len(b) {
		s.lot = s.page[:]
		_, _ = rand.Read(s.lot) // crypto/rand.Read never fails
	}
	copy(b, s.lot)
	clear(s.lot[:len(b)])
	s.lot = s.lot[len(b):]
}

// login is what the core is asked about.
func (s *Server) login(r request, proof func(*[16]byte) bool) session.Login {
	return session.Login{
		Username: private.Of(string(r.name)), Proof: proof,
		Peer: private.Of(peer(r.station)), Protocol: s.cfg.Protocol,
	}
}

// Error codes of RFC 2759, section 6, and what goes with them.
const (
	errDisabled       = "E=647"
	errNoDialIn       = "E=649"
	errAuthentication = "E=691"
)

// verify checks the client's response to our challenge.
func (s *Server) verify(now time.Time, r request, e eapPacket, out *reply) {
	c := &s.now
	name, ok := parseResponse(e.data, &c.exchange)
	if !ok {
		s.reject(r, out)
		return
	}
	err := s.cfg.Core.Check(s.login(r, func(ntHash *[16]byte) bool {
		c.ntHash = *ntHash
		return s.hashes.proves(&c.exchange, name, ntHash)
	}))
	if err == nil && string(name) != string(r.name) {
		err = errOtherName
	}
	id := e.id + 1
	if err == nil {
		s.hashes.derive(&c.keys, &c.exchange, name, &c.ntHash)
		c.step, c.eapID = wantConsent, id
		out.begin(accessChallenge, r)
		out.addSuccess(id, &c.keys.answer)
		s.keep(now, out)
		return
	}
	code, text := errAuthentication, "user name or password is wrong"
	switch fault.Of(err) {
	case fault.Unauthenticated:
	case fault.Expired:
		code, text = errDisabled, "the licence has ended"
	case fault.Denied:
		code, text = errNoDialIn, "not allowed"
	default:
		s.reject(r, out) // the password may be right; E=691 would make the client forget it
		return
	}
	// Whatever the client says to this, its State is unknown and it is rejected. Most say
	// nothing.
	out.begin(accessChallenge, r)
	var unused [16]byte
	s.random(unused[:])
	out.addFailure(id, &unused, code, text)
	s.random(out.room(state, stateSize))
}

// errOtherName refuses a client that proves to be somebody else than who it said it is:
// the daemon would account for one and list the other.
var errOtherName = fault.New(fault.Unauthenticated, "the names of a login differ")

// admit lets a client in that has proved its password and accepted our proof. The database
// is asked again, so that a credential that was replaced meanwhile is worth nothing.
func (s *Server) admit(now time.Time, r request, out *reply) {
	c := &s.now
	ref := session.Ref{Daemon: s.cfg.Daemon, Client: uint64(binary.BigEndian.Uint32(r.port))}
	grant, err := s.cfg.Core.Admit(ref, s.login(r, func(ntHash *[16]byte) bool {
		return subtle.ConstantTimeCompare(ntHash[:], c.ntHash[:]) == 1
	}))
	if err != nil {
		s.reject(r, out)
		return
	}
	s.admitted.put(ref, now)
	out.begin(accessAccept, r)
	out.addEnd(eapSuccess, r.eap[1])
	var salts [4]byte
	s.random(salts[:])
	salts[2] = salts[0] ^ 1 // two that differ
	s.hashes.key(out, msMPPERecvKey, [2]byte(salts[:2]), r.auth(), &c.keys.recv)
	s.hashes.key(out, msMPPESendKey, [2]byte(salts[2:]), r.auth(), &c.keys.send)
	out.add(framedIPAddress, grant.V4.AsSlice())
	out.add(framedIPv6Address, grant.V6.AsSlice())
	for _, a := range s.cfg.DNS {
		if a.Is4() {
			copy(out.vendor(msPrimaryDNSServer, 4), a.AsSlice())
		} else {
			out.add(dnsServerIPv6Address, a.AsSlice())
		}
	}
	binary.BigEndian.PutUint64(out.room(class, classSize), ref.Client)
}

// reject ends a login.
func (s *Server) reject(r request, out *reply) {
	out.begin(accessReject, r)
	if len(r.eap) >= 2 {
		out.addEnd(eapFailure, r.eap[1])
	}
}
