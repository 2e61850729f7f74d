package radius

import "encoding/binary"

// EAP codes and types (RFC 3748, sections 4 and 5).
const (
	eapRequest  = 1
	eapResponse = 2
	eapSuccess  = 3
	eapFailure  = 4

	eapIdentity = 1
	eapMSCHAPv2 = 26 // draft-kamath-pppext-eap-mschapv2-02
)

// OpCodes of EAP-MSCHAPv2.
const (
	opChallenge = 1
	opResponse  = 2
	opSuccess   = 3
	opFailure   = 4
)

// serverName is how the server calls itself in its challenges. Clients want a name
// and ignore it.
const serverName = "lethe"

// eapPacket is an EAP response of a client.
type eapPacket struct {
	id, kind byte
	data     []byte // after the type
}

// parseEAP reports false for what is not a response with a type. Bytes after the length that
// the header states are padding of the layer below (RFC 3748, section 4.1).
func parseEAP(b []byte) (p eapPacket, ok bool) {
	if len(b) < 5 || b[0] != eapResponse {
		return p, false
	}
	size := int(binary.BigEndian.Uint16(b[2:]))
	if size < 5 || size > len(b) {
		return p, false
	}
	return eapPacket{id: b[1], kind: b[4], data: b[5:size]}, true
}

// Sizes within EAP-MSCHAPv2, after the EAP type.
const (
	opHeader     = 4                        // OpCode, MS-CHAPv2-ID, MS-Length
	valueSize    = 16 + 8 + 24 + 1          // Peer-Challenge, zeros, NT-Response, Flags
	responseSize = opHeader + 1 + valueSize // without the name
)

// parseResponse fills in the client's part of an exchange from a Response packet and
// returns the name in it. MS-Length and MS-CHAPv2-ID repeat what the EAP header says and
// are not looked at.
func parseResponse(b []byte, x *exchange) (name []byte, ok bool) {
	if len(b) < responseSize || b[0] != opResponse || b[opHeader] != valueSize {
		return nil, false
	}
	value := b[opHeader+1:]
	copy(x.theirs[:], value)
	copy(x.response[:], value[16+8:])
	return b[responseSize:], true
}

// addChallenge appends a Challenge packet as EAP request id.
func (p *reply) addChallenge(id byte, challenge *[16]byte) {
	b := p.addMSCHAPv2(opChallenge, id, 1+len(challenge)+len(serverName))
	b[0] = byte(len(challenge))
	copy(b[1:], challenge[:])
	copy(b[1+len(challenge):], serverName)
}

// addSuccess appends a Success Request: "S=" and the authenticator response.
func (p *reply) addSuccess(id byte, answer *[20]byte) {
	b := p.addMSCHAPv2(opSuccess, id, 2+2*len(answer)+len(" M=OK"))
	copy(b, "S=")
	upperHex(b[2:], answer[:])
	copy(b[2+2*len(answer):], " M=OK")
}

// addFailure appends a Failure Request: an error code of RFC 2759, section 6, no second
// try, a challenge that is of no use without one, and a text for the user.
func (p *reply) addFailure(id byte, challenge *[16]byte, code, text string) {
	b := p.addMSCHAPv2(opFailure, id, len(code)+len(" R=0 C=")+2*len(challenge)+len(" V=3 M=")+len(text))
	n := copy(b, code)
	n += copy(b[n:], " R=0 C=")
	upperHex(b[n:], challenge[:])
	n += 2 * len(challenge)
	n += copy(b[n:], " V=3 M=")
	copy(b[n:], text)
}

// addMSCHAPv2 appends an EAP-MSCHAPv2 request and returns the n bytes after its header
// for the caller to fill.
func (p *reply) addMSCHAPv2(op, id byte, n int) []byte {
	size := 5 + opHeader + n
	b := p.room(eapMessage, size)
	b[0], b[1], b[4] = eapRequest, id, eapMSCHAPv2
	binary.BigEndian.PutUint16(b[2:], uint16(size))
	b[5], b[6] = op, id
	binary.BigEndian.PutUint16(b[7:], uint16(opHeader+n))
	return b[5+opHeader:]
}

// addEnd appends EAP-Success or EAP-Failure in answer to response id.
func (p *reply) addEnd(code, id byte) { p.add(eapMessage, []byte{code, id, 0, 4}) }

func upperHex(dst, src []byte) {
	const digits = "0123456789ABCDEF"
	for i, b := range src {
		dst[2*i], dst[2*i+1] = digits[b>>4], digits[b&15]
	}
}
