package attest

import (
	"crypto/hmac"
	"crypto/hpke"
	"crypto/sha256"
	"crypto/x509"
	"fmt"
)

// Channel names a connection by its key: the SHA-256 of the SubjectPublicKeyInfo of
// the certificate that the server shows.
type Channel [sha256.Size]byte

// ChannelOf returns the name of connections on which a server shows this certificate.
func ChannelOf(c *x509.Certificate) Channel { return sha256.Sum256(c.RawSubjectPublicKeyInfo) }

// Transcript is what both sides of one attestation have said. It binds
// evidence to the question, to the connection, and secrets to both.
type Transcript struct {
	Identity  Identity
	Challenge Challenge
	Channel   Channel
	Evidence  Evidence
}

// hash returns the SHA-256 of a label and the digests of parts, so that no part can
// run into the next.
func hash(label string, parts ...[]byte) (sum [sha256.Size]byte) {
	b := append([]byte(magic), ' ')
	b = append(append(b, label...), 0)
	for _, p := range parts {
		d := sha256.Sum256(p)
		b = append(b, d[:]...)
	}
	return sha256.Sum256(b)
}

// Qualifying returns the qualifying data of the quote: a digest of identity, challenge
// (nonce and place), channel, the server's clock, the fresh key and the keys to be certified.
func (t *Transcript) Qualifying() [sha256.Size]byte {
	e := &t.Evidence
	return hash("quote", Encode(&t.Identity), Encode(&t.Challenge), t.Channel[:], e.Time, e.SealKey, e.VPNKey, e.APIKey)
}

// Proof returns what the TPM's credential makes of the evidence: HMAC-SHA256 under the
// activated value. It says that the TPM with the EK holds the AK, and that whoever asked it
// sends this evidence.
func (t *Transcript) Proof(credential []byte) []byte {
	e := t.Evidence
	e.Proof = nil
	sum := hash("proof", Encode(&t.Identity), Encode(&t.Challenge), t.Channel[:], Encode(&e))
	m := hmac.New(sha256.New, credential)
	m.Write(sum[:])
	return m.Sum(nil)
}

// digest names the whole attestation; secrets are bound to it.
func (t *Transcript) digest() [sha256.Size]byte {
	return hash("secrets", Encode(&t.Identity), Encode(&t.Challenge), t.Channel[:], Encode(&t.Evidence))
}

// HPKE (RFC 9180) with the hybrid of ML-KEM-768 and X25519 (draft-ietf-hpke-pq), so that a
// recording of today is no use to a quantum computer of tomorrow.
func kem() hpke.KEM { return hpke.MLKEM768X25519() }

func suite() (hpke.KDF, hpke.AEAD) { return hpke.HKDFSHA256(), hpke.AES256GCM() }

const receiptContext = magic + " receipt"

// NewSealKey returns a key for [Evidence.SealKey]; it serves for one [Open].
func NewSealKey() (hpke.PrivateKey, error) { return kem().GenerateKey() }

// Seal encrypts secrets to the key in the evidence, bound to the whole attestation and to the head that goes
// with them, and returns the receipt that opening it gives.
func Seal(t *Transcript, secrets, head []byte) (*Grant, *Receipt, error) {
	key, err := kem().NewPublicKey(t.Evidence.SealKey)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: seal key", ErrMessage)
	}
	kdf, aead := suite()
	info := t.digest()
	enc, s, err := hpke.NewSender(key, kdf, aead, info[:])
	if err != nil {
		return nil, nil, fmt.Errorf("seal: %w", err)
	}
	ciphertext, err := s.Seal(head, secrets)
	if err != nil {
		return nil, nil, fmt.Errorf("seal: %w", err)
	}
	mac, err := s.Export(receiptContext, ReceiptSize)
	return &Grant{head, enc, ciphertext}, &Receipt{mac}, err
}

// Open decrypts what Seal encrypted for this attestation, and for no other.
func Open(t *Transcript, key hpke.PrivateKey, g *Grant) (secrets []byte, r *Receipt, err error) {
	kdf, aead := suite()
	info := t.digest()
	recipient, err := hpke.NewRecipient(g.Encapsulated, key, kdf, aead, info[:])
	if err == nil {
		secrets, err = recipient.Open(g.Head, g.Ciphertext)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("grant: not for this attestation: %w", err)
	}
	mac, err := recipient.Export(receiptContext, ReceiptSize)
	return secrets, &Receipt{mac}, err
}

// Equal compares receipts in constant time.
func (r *Receipt) Equal(other *Receipt) bool { return hmac.Equal(r.MAC, other.MAC) }
