package radius

import (
	"crypto/des"
	"crypto/hmac"
	"crypto/md5"
	"crypto/sha1"
	"crypto/subtle"
	"hash"
	"math/bits"

	//lint:ignore SA1019 MS-CHAPv2 is defined on MD4
	"golang.org/x/crypto/md4"
)

// hashes are the hash functions of one server, made once and reset for each use:
// a login needs fifteen and would otherwise leave as many pieces of garbage. They
// are not safe for concurrent use.
type hashes struct {
	secret         []byte
	md4, md5, sha1 hash.Hash
	mac            hash.Hash // HMAC-MD5 under the secret
	zeros          [63]byte
	pad            [40]byte // SHSpad2 of RFC 3079, section 3.4; SHSpad1 is as many zeros
	// Room for what hash functions are given and return; on the stack it would be garbage.
	sum, master [sha1.Size]byte
	challenge   [8]byte
	hashHash    [md4.Size]byte
	want        [24]byte
}

func newHashes(secret []byte) *hashes {
	h := &hashes{secret: secret, md4: md4.New(), md5: md5.New(), sha1: sha1.New(), mac: hmac.New(md5.New, secret)}
	for i := range h.pad {
		h.pad[i] = 0xf2
	}
	return h
}

// wipe forgets what a packet left. A hash function keeps the end of what it was given last, a name
// or a password's hash, in a block of 64 bytes, and its Reset leaves that there. A whole block at once
// would be hashed without passing through it. HMAC's Reset overwrites.
func (h *hashes) wipe() {
	h.sum, h.master, h.challenge, h.hashHash, h.want = [20]byte{}, [20]byte{}, [8]byte{}, [16]byte{}, [24]byte{}
	for _, f := range [...]hash.Hash{h.md4, h.md5, h.sha1} {
		f.Reset()
		_, _ = f.Write(h.zeros[:1])
		_, _ = f.Write(h.zeros[:])
		f.Reset()
	}
	h.mac.Reset()
}

// digest puts SHA-1 over the parts into out.
func (h *hashes) digest(out *[sha1.Size]byte, a, b, c, d []byte) {
	h.sha1.Reset()
	_, _ = h.sha1.Write(a) // a hash's Write never fails
	_, _ = h.sha1.Write(b)
	_, _ = h.sha1.Write(c)
	_, _ = h.sha1.Write(d)
	h.sha1.Sum(out[:0])
}

// exchange is what the two sides of an MS-CHAPv2 exchange sent.
type exchange struct {
	ours     [16]byte // AuthenticatorChallenge
	theirs   [16]byte // PeerChallenge
	response [24]byte // NT-Response
}

// challengeHash puts ChallengeHash of RFC 2759, section 8.2, into h.challenge. Only the part of
// the name after a domain counts, if there is one.
func (h *hashes) challengeHash(x *exchange, name []byte) {
	for i, b := range name {
		if b == '\\' {
			name = name[i+1:]
			break
		}
	}
	h.digest(&h.sum, x.theirs[:], x.ours[:], name, nil)
	copy(h.challenge[:], h.sum[:])
}

// proves reports, in constant time, whether x was made with the password that has
// this NT hash: ChallengeResponse of RFC 2759, section 8.5.
func (h *hashes) proves(x *exchange, name []byte, ntHash *[16]byte) bool {
	h.challengeHash(x, name)
	var key [21]byte
	copy(key[:], ntHash[:])
	for i := range 3 {
		expanded := desKey([7]byte(key[7*i:]))
		block, _ := des.NewCipher(expanded[:]) // fails only for keys that are not of 8 bytes
		block.Encrypt(h.want[8*i:], h.challenge[:])
		clear(expanded[:])
	}
	clear(key[:])
	return subtle.ConstantTimeCompare(h.want[:], x.response[:]) == 1
}

// desKey spreads 56 bits over 8 bytes and adds the parity bits that DES ignores.
func desKey(k [7]byte) (out [8]byte) {
	var all uint64
	for _, b := range k {
		all = all<<8 | uint64(b)
	}
	for i := range out {
		b := byte(all>>(49-7*i)) << 1
		out[i] = b | byte(1^bits.OnesCount8(b)&1)
	}
	return out
}

// Magic strings of RFC 2759, section 8.7, and RFC 3079, section 3.4.
var (
	signingMagic = []byte("Magic server to client signing constant")
	paddingMagic = []byte("Pad to make it do more than one iteration")
	masterMagic  = []byte("This is the MPPE Master Key")
	recvMagic    = []byte("On the client side, this is the send key; on the server side, it is the receive key.")
	sendMagic    = []byte("On the client side, this is the receive key; on the server side, it is the send key.")
)

// keys are what both sides derive from a login.
type keys struct {
	answer     [sha1.Size]byte // AuthenticatorResponse before it is written in hexadecimal
	send, recv [16]byte        // session keys of the server
}

// derive computes the authenticator response (RFC 2759, section 8.7) and the keys
// (RFC 3079, section 3.4) of an exchange that was proved.
func (h *hashes) derive(k *keys, x *exchange, name []byte, ntHash *[16]byte) {
	h.md4.Reset()
	_, _ = h.md4.Write(ntHash[:])
	h.md4.Sum(h.hashHash[:0])
	h.challengeHash(x, name)
	h.digest(&k.answer, h.hashHash[:], x.response[:], signingMagic, nil)
	h.digest(&k.answer, k.answer[:], h.challenge[:], paddingMagic, nil)
	h.digest(&h.master, h.hashHash[:], x.response[:], masterMagic, nil)
	master := h.master[:16]
	h.digest(&h.sum, master, h.zeros[:40], sendMagic, h.pad[:])
	copy(k.send[:], h.sum[:])
	h.digest(&h.sum, master, h.zeros[:40], recvMagic, h.pad[:])
	copy(k.recv[:], h.sum[:])
}
