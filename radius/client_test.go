package radius_test

import (
	"bytes"
	"crypto/des"
	"crypto/hmac"
	"crypto/md5"
	"crypto/rand"
	"crypto/sha1"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"net"
	"strings"
	"time"

	//lint:ignore SA1019 MS-CHAPv2 is defined on MD4
	"golang.org/x/crypto/md4"

	"lethe/authdb"
)

// attr is one attribute of a packet.
type attr struct {
	kind  byte
	value []byte
}

// nas is a daemon that asks a RADIUS server: ours or another one. It shares no code with the
// server.
type nas struct {
	conn   *net.UDPConn
	secret []byte
	mac    hash.Hash // HMAC-MD5 under secret
	id     byte
	in     [4096]byte
	// anywhere says that the server is not ours: its Message-Authenticator need not stand first.
	anywhere bool
}

func dial(addr *net.UDPAddr) (*nas, error) {
	conn, err := net.DialUDP("udp4", nil, addr)
	return &nas{conn: conn, secret: []byte(secret), mac: newMAC(secret)}, err
}

func newMAC(secret string) hash.Hash { return hmac.New(md5.New, []byte(secret)) }

// packet returns an encoded request. What sign is nil for gets no Message-Authenticator.
func (n *nas) packet(code byte, attrs ...attr) []byte {
	n.id++
	b := make([]byte, 20, 512)
	b[0], b[1] = code, n.id
	_, _ = rand.Read(b[4:20])
	for _, a := range attrs {
		b = append(append(b, a.kind, byte(2+len(a.value))), a.value...)
	}
	if code == accessRequest {
		b = append(b, 80, 18)
		b = append(b, make([]byte, 16)...)
	}
	return n.sign(b)
}

// sign makes length, the last attribute if it is a Message-Authenticator and, in
// an Accounting-Request, the authenticator right.
func (n *nas) sign(b []byte) []byte {
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
	if b[0] == accountingRequest {
		clear(b[4:20])
	}
	if tail := len(b) - 18; tail >= 20 && b[tail] == 80 && b[tail+1] == 18 {
		clear(b[tail+2:])
		n.mac.Reset()
		n.mac.Write(b)
		n.mac.Sum(b[:tail+2])
	}
	if b[0] == accountingRequest {
		sum := md5.Sum(append(bytes.Clone(b), n.secret...))
		copy(b[4:], sum[:])
	}
	return b
}

const (
	accessRequest      = 1
	accessAccept       = 2
	accessReject       = 3
	accountingRequest  = 4
	accountingResponse = 5
	accessChallenge    = 11
)

// answer is a verified reply.
type answer struct {
	raw    []byte
	code   byte
	attrs  []attr
	eap    []byte
	state  []byte
	signed int // where the Message-Authenticator stands
}

func (a answer) get(kind byte) []byte {
	for _, x := range a.attrs {
		if x.kind == kind {
			return x.value
		}
	}
	return nil
}

// vendor returns the value of an attribute of Microsoft's.
func (a answer) vendor(kind byte) []byte {
	for _, x := range a.attrs {
		if v := x.value; x.kind == 26 && len(v) > 6 && binary.BigEndian.Uint32(v) == 311 && v[4] == kind && int(v[5]) == len(v)-4 {
			return v[6:]
		}
	}
	return nil
}

var errSilence = errors.New("no answer")

// ask sends a request and returns the answer, or errSilence.
func (n *nas) ask(request []byte, patience time.Duration) (answer, error) {
	if _, err := n.conn.Write(request); err != nil {
		return answer{}, err
	}
	_ = n.conn.SetReadDeadline(time.Now().Add(patience))
	k, err := n.conn.Read(n.in[:])
	if err != nil {
		return answer{}, errSilence
	}
	return n.verify(request, bytes.Clone(n.in[:k]))
}

// verify checks everything that authenticates an answer.
func (n *nas) verify(request, b []byte) (answer, error) {
	if len(b) < 38 || int(binary.BigEndian.Uint16(b[2:])) != len(b) || b[1] != request[1] {
		return answer{}, fmt.Errorf("answer of %d bytes with a wrong header", len(b))
	}
	whole := bytes.Clone(b)
	copy(whole[4:], request[4:20])
	sum := md5.Sum(append(bytes.Clone(whole), n.secret...))
	if !bytes.Equal(sum[:], b[4:20]) {
		return answer{}, errors.New("response authenticator is wrong")
	}
	a, err := dissect(b)
	if err != nil {
		return a, err
	}
	signed := a.signed
	if signed == 0 || b[signed+1] != 18 || signed != 20 && !n.anywhere {
		return a, errors.New("no Message-Authenticator, or not as the first attribute")
	}
	clear(whole[signed+2 : signed+18])
	h := hmac.New(md5.New, n.secret)
	h.Write(whole)
	if !hmac.Equal(h.Sum(nil), b[signed+2:signed+18]) {
		return a, errors.New("Message-Authenticator is wrong")
	}
	return a, nil
}

// dissect takes an answer apart and verifies nothing.
func dissect(b []byte) (answer, error) {
	a := answer{raw: b, code: b[0]}
	for at := 20; at < len(b); at += int(b[at+1]) {
		if len(b)-at < 2 || b[at+1] < 2 || int(b[at+1]) > len(b)-at {
			return a, errors.New("attributes do not fit")
		}
		x := attr{b[at], b[at+2 : at+int(b[at+1])]}
		a.attrs = append(a.attrs, x)
		switch x.kind {
		case 79:
			a.eap = append(a.eap[:len(a.eap):len(a.eap)], x.value...)
		case 24:
			a.state = x.value
		case 80:
			a.signed = at
		}
	}
	if len(a.eap) > 0 && int(binary.BigEndian.Uint16(a.eap[2:])) != len(a.eap) {
		return a, errors.New("EAP length is wrong")
	}
	return a, nil
}

// peer is a customer's device behind a nas.
type peer struct {
	*nas
	port           uint32
	name, password string
	hash           [16]byte
	says           string // name in the response; name if empty
	patience       time.Duration
	last           []byte // request
	want           string // the authenticator response that it must be shown
	response       [24]byte
	hashHash       [16]byte
}

func newPeer(n *nas, port uint32, name, password string) *peer {
	return &peer{nas: n, port: port, name: name, password: password, hash: authdb.NTHash([]byte(password)), patience: 5 * time.Second}
}

// attributes are those that strongSwan sends with every Access-Request.
func (p *peer) attributes(eap, state []byte) []attr {
	var port [4]byte
	binary.BigEndian.PutUint32(port[:], p.port)
	a := []attr{
		{1, []byte(p.name)}, {61, []byte{0, 0, 0, 5}}, {6, []byte{0, 0, 0, 2}}, {5, port[:]}, {87, []byte("lethe")},
		{4, []byte{198, 51, 100, 1}}, {30, []byte("198.51.100.1")}, {31, []byte("203.0.113.9")}, {44, []byte("1-1")},
	}
	for len(eap) > 253 {
		a = append(a, attr{79, eap[:253]})
		eap = eap[253:]
	}
	a = append(a, attr{79, eap}, attr{32, []byte("strongSwan")})
	if state != nil {
		a = append(a, attr{24, state})
	}
	return a
}

// send sends an EAP packet.
func (p *peer) send(eap, state []byte) (answer, error) {
	p.last = p.packet(accessRequest, p.attributes(eap, state)...)
	return p.ask(p.last, p.patience)
}

// eapResponse encodes a response of a type.
func eapResponse(id, kind byte, data ...byte) []byte {
	b := append([]byte{2, id, 0, 0, kind}, data...)
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
	return b
}

func (p *peer) identify() (answer, error) { return p.send(eapResponse(0, 1, []byte(p.name)...), nil) }

// respond makes the response to a challenge.
func (p *peer) respond(challenge []byte) ([]byte, error) {
	if len(challenge) < 26 || challenge[4] != 26 || challenge[5] != 1 || challenge[9] != 16 {
		return nil, fmt.Errorf("no MS-CHAPv2 challenge: %x", challenge)
	}
	var theirs [16]byte
	_, _ = rand.Read(theirs[:])
	says := p.says
	if says == "" {
		says = p.name
	}
	bare := says[strings.IndexByte(says, '\\')+1:]
	sum := sha1.Sum(append(append(theirs[:], challenge[10:26]...), bare...))
	c := sum[:8]
	var padded [21]byte
	copy(padded[:], p.hash[:])
	for i := range 3 {
		var wide uint64
		for _, b := range padded[7*i : 7*i+7] {
			wide = wide<<8 | uint64(b)
		}
		var key [8]byte
		for j := range key {
			key[j] = byte(wide>>(49-7*j)&0x7f) << 1
		}
		block, err := des.NewCipher(key[:])
		if err != nil {
			return nil, err
		}
		block.Encrypt(p.response[8*i:], c)
	}
	h := md4.New()
	h.Write(p.hash[:])
	h.Sum(p.hashHash[:0])
	first := sha1.Sum(append(append(p.hashHash[:len(p.hashHash):len(p.hashHash)], p.response[:]...), "Magic server to client signing constant"...))
	second := sha1.Sum(append(append(first[:], c...), "Pad to make it do more than one iteration"...))
	p.want = fmt.Sprintf("S=%X", second)
	data := append([]byte{2, challenge[1], 0, byte(54 + len(says)), 49}, theirs[:]...)
	data = append(data, make([]byte, 8)...)
	data = append(data, p.response[:]...)
	return eapResponse(challenge[1], 26, append(append(data, 0), says...)...), nil
}

// prove answers a challenge and returns the server's verdict.
func (p *peer) prove(a answer) (answer, error) {
	eap, err := p.respond(a.eap)
	if err != nil {
		return a, err
	}
	return p.send(eap, a.state)
}

// convinced reports whether the server has proved that it knows the password.
func (p *peer) convinced(a answer) bool {
	return a.code == accessChallenge && len(a.eap) >= 51 && a.eap[5] == 3 && string(a.eap[9:51]) == p.want
}

// consent takes the last step.
func (p *peer) consent(a answer) (answer, error) {
	return p.send(eapResponse(a.eap[1], 26, 3), a.state)
}

var errRefused = errors.New("refused")

// login goes all the way.
func (p *peer) login() (answer, error) {
	a, err := p.identify()
	if err != nil {
		return a, err
	}
	if a, err = p.prove(a); err != nil {
		return a, err
	}
	if !p.convinced(a) {
		return a, errRefused
	}
	if a, err = p.consent(a); err == nil && a.code != accessAccept {
		err = errRefused
	}
	return a, err
}

// msk decrypts a key of an Access-Accept and says what it should be: RFC 3079, section 3.4.
func (p *peer) msk(a answer, kind byte, magic string) (got, want []byte, err error) {
	v := a.vendor(kind)
	if len(v) != 34 || v[0]&0x80 == 0 {
		return nil, nil, fmt.Errorf("key attribute %x", v)
	}
	mask := md5.Sum(append(append(bytes.Clone(p.secret), p.last[4:20]...), v[:2]...))
	plain := make([]byte, 32)
	for i, c := range v[2:] {
		if i == 16 {
			mask = md5.Sum(append(bytes.Clone(p.secret), v[2:18]...))
		}
		plain[i] = c ^ mask[i%16]
	}
	master := sha1.Sum(append(append(p.hashHash[:len(p.hashHash):len(p.hashHash)], p.response[:]...), "This is the MPPE Master Key"...))
	all := append(append(master[:16:16], make([]byte, 40)...), magic...)
	start := sha1.Sum(append(all, bytes.Repeat([]byte{0xf2}, 40)...))
	if plain[0] != 16 || !bytes.Equal(plain[17:], make([]byte, 15)) {
		return nil, nil, fmt.Errorf("key padding %x", plain)
	}
	return plain[1:17], start[:16], nil
}
