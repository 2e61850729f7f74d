package radius

import (
	"net/netip"
	"reflect"
	"time"
)

// Handle answers one datagram as if it had come at that time.
func (s *Server) Handle(now time.Time, from netip.AddrPort, datagram []byte) []byte {
	return s.handle(now, from, datagram)
}

// Expire looks through the tables as of that time.
func (s *Server) Expire(now time.Time) { s.expire(now) }

// Open returns how many logins are half-open and how many answers are kept.
func (s *Server) Open() (logins, answers int) { return len(s.open.items), len(s.answers.items) }

// Remains returns what the server's working memory holds between two packets.
func (s *Server) Remains() (all []byte) {
	for _, f := range []any{s.hashes.md4, s.hashes.md5, s.hashes.sha1} {
		block := reflect.ValueOf(f).Elem().FieldByName("x")
		for i := range block.Len() {
			all = append(all, byte(block.Index(i).Uint()))
		}
	}
	h := s.hashes
	for _, b := range [][]byte{h.sum[:], h.master[:], h.challenge[:], h.hashHash[:], h.want[:], s.now.name[:], s.now.ntHash[:], s.now.keys.send[:], s.now.exchange.ours[:]} {
		all = append(all, b...)
	}
	return all
}

// Limits of the tables.
const (
	Lifetime   = lifetime
	AnswerLife = answerLife
	MaxEntries = maxEntries
)

// Vector is what an MS-CHAPv2 exchange leads to.
type Vector struct {
	Proved     bool
	Challenge  [8]byte
	Answer     [20]byte
	Send, Recv [16]byte
}

// Compute runs the computations of an exchange.
func Compute(ours, theirs [16]byte, response [24]byte, name string, ntHash [16]byte) (v Vector) {
	h := newHashes([]byte("secret"))
	x := exchange{ours, theirs, response}
	v.Proved = h.proves(&x, []byte(name), &ntHash)
	v.Challenge = h.challenge
	var k keys
	h.derive(&k, &x, []byte(name), &ntHash)
	v.Answer, v.Send, v.Recv = k.answer, k.send, k.recv
	return v
}

// ParseEAP and ParseResponse are the parsers of what customers send.
func ParseEAP(b []byte) (id, kind byte, data []byte, ok bool) {
	p, ok := parseEAP(b)
	return p.id, p.kind, p.data, ok
}

func ParseResponse(b []byte) (name []byte, ok bool) { return parseResponse(b, &exchange{}) }

// Parse reports what was found in a packet.
func Parse(b []byte) (eap, name []byte, ok bool) {
	var room [maxPacket]byte
	r, ok := parse(b, &room)
	return append([]byte(nil), r.eap...), r.name, ok
}

// Peer parses a Calling-Station-Id.
func Peer(station string) netip.Addr { return peer([]byte(station)) }
