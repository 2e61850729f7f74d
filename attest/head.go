package attest

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
)

// headSize is the size of an encoded [Head]: 8 bytes of magic and kind, number, hash, floor, key,
// signature.
const headSize = len(magic) + 1 + 8 + sha256.Size + 8 + ed25519.PublicKeySize + ed25519.SignatureSize

// Head says how long the activator's record is and what it ends with. Servers keep the
// last one that came with secrets in memory and show it at the next attestation: an activator that
// was restored from an old backup meets a head of its own that it does not know, and a server that
// has seen a later head refuses an earlier one.
type Head struct {
	Number uint64            // of records
	Hash   [sha256.Size]byte // of the last record
	Floor  uint64            // lowest version that is activated
	Key    ed25519.PublicKey // of the activator
}

// signed returns what the signature is over: all of the encoding before it.
func (h Head) signed() []byte {
	b := append([]byte(magic), kindHead)
	b = binary.BigEndian.AppendUint64(b, h.Number)
	b = append(b, h.Hash[:]...)
	b = binary.BigEndian.AppendUint64(b, h.Floor)
	return append(b, h.Key...)
}

// Sign returns the head's encoding with the signature by its key.
func (h Head) Sign(key ed25519.PrivateKey) []byte {
	h.Key = key.Public().(ed25519.PublicKey)
	b := h.signed()
	return append(b, ed25519.Sign(key, b)...)
}

// ParseHead reads a head whose signature is by the key that it names. Whose key that
// is, the caller must know.
func ParseHead(b []byte) (h Head, err error) {
	if len(b) != headSize || string(b[:len(magic)]) != magic || b[len(magic)] != kindHead {
		return h, fmt.Errorf("%w: not a head", ErrMessage)
	}
	body := b[len(magic)+1:]
	h.Number = binary.BigEndian.Uint64(body)
	h.Hash = [sha256.Size]byte(body[8:])
	h.Floor = binary.BigEndian.Uint64(body[40:])
	h.Key = append(ed25519.PublicKey(nil), body[48:48+ed25519.PublicKeySize]...)
	if !ed25519.Verify(h.Key, b[:headSize-ed25519.SignatureSize], b[headSize-ed25519.SignatureSize:]) {
		return h, fmt.Errorf("%w: the head's signature", ErrMessage)
	}
	return h, nil
}

// Follows says whether an activator that shows h may go on with a server that has seen
// last: the same activator, and nothing taken back.
func (h Head) Follows(last Head) bool {
	return h.Key.Equal(last.Key) && h.Number >= last.Number && h.Floor >= last.Floor && (h.Number > last.Number || h.Hash == last.Hash)
}
