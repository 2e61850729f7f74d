package radius

import (
	"bytes"
	"crypto/md5"
	"crypto/subtle"
	"encoding/binary"
	"net/netip"
)

// Codes (RFC 2865, section 3).
const (
	accessRequest      = 1
	accessAccept       = 2
	accessReject       = 3
	accountingRequest  = 4
	accountingResponse = 5
	accessChallenge    = 11
)

// Attribute types that matter here. All others are skipped.
const (
	userName             = 1   // RFC 2865, section 5.1
	nasPort              = 5   // section 5.5
	framedIPAddress      = 8   // section 5.8
	state                = 24  // section 5.24
	class                = 25  // section 5.25
	vendorSpecific       = 26  // section 5.26
	callingStationID     = 31  // section 5.31
	proxyState           = 33  // section 5.33
	acctStatusType       = 40  // RFC 2866, section 5.1
	eapMessage           = 79  // RFC 3579, section 3.1
	messageAuthenticator = 80  // section 3.2
	framedIPv6Address    = 168 // RFC 6911, section 3.1
	dnsServerIPv6Address = 169 // section 3.2
)

// Microsoft's attributes (RFC 2548).
const (
	microsoft          = 311 // vendor id
	msMPPESendKey      = 16  // section 2.4.2
	msMPPERecvKey      = 17  // section 2.4.3
	msPrimaryDNSServer = 28  // section 2.7.1
)

// Values of Acct-Status-Type (RFC 2866, section 5.1).
const (
	acctStart   = 1
	acctStop    = 2
	acctInterim = 3
)

// Sizes in bytes.
const (
	headerSize = 20   // code, identifier, length, authenticator
	maxPacket  = 4096 // RFC 2865, section 3
	authSize   = 16   // an authenticator
	stateSize  = 16   // our State attributes
	classSize  = 8    // our Class attributes
)

// request is a parsed packet. Its slices point into the datagram, or into the
// room that the caller gave for an EAP packet in pieces; a nil slice says that
// the attribute is absent.
type request struct {
	raw      []byte // what counts of the datagram
	code, id byte
	signedAt int    // where the value of the Message-Authenticator begins; 0 without one
	name     []byte // User-Name
	state    []byte
	class    []byte
	station  []byte // Calling-Station-Id
	eap      []byte // all EAP-Message attributes put together
	port     []byte // NAS-Port
	status   []byte // Acct-Status-Type
}

// auth returns the request authenticator.
func (r request) auth() []byte { return r.raw[4:headerSize] }

// parse takes a datagram apart. It reports false for one that is no RADIUS packet,
// in which an attribute of ours has a wrong length or stands twice, or that came
// through a proxy: there is none on a loopback interface. Bytes after the length
// that the header states are padding (RFC 2865, section 3).
func parse(b []byte, room *[maxPacket]byte) (r request, ok bool) {
	if len(b) < headerSize || len(b) > maxPacket {
		return r, false
	}
	size := int(binary.BigEndian.Uint16(b[2:]))
	if size < headerSize || size > len(b) {
		return r, false
	}
	r = request{raw: b[:size], code: b[0], id: b[1]}
	pieces := 0 // of the EAP packet
	for at := headerSize; at < size; {
		if size-at < 2 || b[at+1] < 2 || int(b[at+1]) > size-at {
			return r, false
		}
		kind, value := b[at], b[at+2:at+int(b[at+1])]
		switch kind {
		case eapMessage:
			if pieces++; pieces == 1 {
				r.eap = value
			} else {
				if pieces == 2 {
					r.eap = append(room[:0], r.eap...)
				}
				r.eap = append(r.eap, value...)
			}
			ok = true
		case messageAuthenticator:
			ok = r.signedAt == 0 && len(value) == authSize
			r.signedAt = at + 2
		case userName:
			ok = once(&r.name, value)
		case state:
			ok = once(&r.state, value)
		case class:
			ok = once(&r.class, value)
		case callingStationID:
			ok = once(&r.station, value)
		case nasPort:
			ok = once(&r.port, value) && len(value) == 4
		case acctStatusType:
			ok = once(&r.status, value) && len(value) == 4
		default:
			ok = kind != proxyState
		}
		if !ok {
			return r, false
		}
		at += int(b[at+1])
	}
	return r, true
}

// once sets an attribute that may not repeat and reports whether it did not.
func once(field *[]byte, value []byte) bool {
	first := *field == nil
	*field = value
	return first
}

// peer returns the address in a Calling-Station-Id as strongSwan writes it:
// "198.51.100.7", "198.51.100.7[4500]" or the same of IPv6. The zero Addr stands for
// everything else.
func peer(station []byte) netip.Addr {
	text, _, _ := bytes.Cut(station, []byte("["))
	a, err := netip.ParseAddr(string(text))
	if err != nil {
		return netip.Addr{}
	}
	return a.Unmap().WithZone("")
}

// genuine reports whether the request was made by somebody who knows the secret.
// An Access-Request must have a Message-Authenticator (RFC 3579, section 3.2; its own
// authenticator is a random number that proves nothing), an Accounting-Request is
// signed by its authenticator (RFC 2866, section 3) and may have one too. Other codes
// are of no use here.
func (h *hashes) genuine(r request) bool {
	switch r.code {
	case accessRequest:
		return r.signedAt != 0 && h.signed(r, r.auth())
	case accountingRequest:
		h.md5.Reset()
		_, _ = h.md5.Write(r.raw[:4]) // a hash's Write never fails
		_, _ = h.md5.Write(h.zeros[:authSize])
		_, _ = h.md5.Write(r.raw[headerSize:])
		_, _ = h.md5.Write(h.secret)
		return subtle.ConstantTimeCompare(h.md5.Sum(h.sum[:0]), r.auth()) == 1 &&
			(r.signedAt == 0 || h.signed(r, h.zeros[:authSize]))
	default:
		return false
	}
}

// signed checks the Message-Authenticator: HMAC-MD5 under the secret over the packet
// with auth as its authenticator and zeros in place of the attribute's value.
func (h *hashes) signed(r request, auth []byte) bool {
	h.mac.Reset()
	_, _ = h.mac.Write(r.raw[:4])
	_, _ = h.mac.Write(auth)
	_, _ = h.mac.Write(r.raw[headerSize:r.signedAt])
	_, _ = h.mac.Write(h.zeros[:authSize])
	_, _ = h.mac.Write(r.raw[r.signedAt+authSize:])
	return subtle.ConstantTimeCompare(h.mac.Sum(h.sum[:0]), r.raw[r.signedAt:r.signedAt+authSize]) == 1
}

// maxReply is more than the largest reply needs: an Access-Accept has 267 bytes.
const maxReply = 320

// reply is a packet under construction. Its first attribute is the
// Message-Authenticator, so that nobody can move the rest of the packet into a
// prefix of his choice (CVE-2024-3596).
type reply struct {
	b [maxReply]byte
	n int
}

const signatureAt = headerSize + 2 // of the value of a reply's Message-Authenticator

// begin starts the packet of that code that answers r.
func (p *reply) begin(code byte, r request) {
	p.b[0], p.b[1] = code, r.id
	copy(p.b[4:], r.auth())
	p.b[headerSize], p.b[headerSize+1] = messageAuthenticator, 2+authSize
	clear(p.b[signatureAt : signatureAt+authSize])
	p.n = signatureAt + authSize
}

// add appends an attribute.
func (p *reply) add(kind byte, value []byte) { copy(p.room(kind, len(value)), value) }

// room appends an attribute whose value of n bytes the caller writes.
func (p *reply) room(kind byte, n int) []byte {
	p.b[p.n], p.b[p.n+1] = kind, byte(2+n)
	p.n += 2 + n
	return p.b[p.n-n : p.n]
}

// vendor appends an attribute of Microsoft's (RFC 2865, section 5.26).
func (p *reply) vendor(kind byte, n int) []byte {
	v := p.room(vendorSpecific, 6+n)
	binary.BigEndian.PutUint32(v, microsoft)
	v[4], v[5] = kind, byte(2+n)
	return v[6:]
}

// finish signs the packet, first with the Message-Authenticator and then with
// the response authenticator (RFC 2865, section 3), and returns it.
func (h *hashes) finish(p *reply) []byte {
	b := p.b[:p.n]
	binary.BigEndian.PutUint16(b[2:], uint16(p.n))
	h.mac.Reset()
	_, _ = h.mac.Write(b)
	h.mac.Sum(b[signatureAt:signatureAt])
	h.md5.Reset()
	_, _ = h.md5.Write(b)
	_, _ = h.md5.Write(h.secret)
	h.md5.Sum(b[4:4])
	return b
}

// key appends a key of 16 bytes to a reply, encrypted under the secret, the
// request's authenticator and a salt that no other key of the packet has (RFC
// 2548, section 2.4.2). The plain text is the key's length, the key and zeros.
func (h *hashes) key(p *reply, kind byte, salt [2]byte, auth []byte, key *[16]byte) {
	v := p.vendor(kind, 2+32)
	v[0], v[1] = salt[0]|0x80, salt[1]
	c := v[2:]
	clear(c)
	c[0] = byte(len(key))
	copy(c[1:], key[:])
	for i := 0; i < len(c); i += md5.Size {
		h.md5.Reset()
		_, _ = h.md5.Write(h.secret)
		if i == 0 {
			_, _ = h.md5.Write(auth)
			_, _ = h.md5.Write(v[:2])
		} else {
			_, _ = h.md5.Write(c[i-md5.Size : i])
		}
		subtle.XORBytes(c[i:], c[i:i+md5.Size], h.md5.Sum(h.sum[:0]))
	}
}
