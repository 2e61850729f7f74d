package bundle

import (
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"sort"

	"lethe/private"
)

// KeyID names a public key: the SHA-256 of its SubjectPublicKeyInfo in DER
// (RFC 5280, RFC 8410). "openssl pkey -pubin -outform DER | sha256sum" prints
// the same.
type KeyID = Digest

// Key is a public key in a [Root].
type Key struct {
	ID     KeyID  `json:"keyid"`
	Scheme string `json:"scheme"` // always "ed25519"
	Public []byte `json:"public"` // 32 bytes (RFC 8032), base64 in JSON
}

// scheme is the only signature algorithm. Its name is in the metadata so that
// a successor can be told apart, not so that a signer may choose.
const scheme = "ed25519"

// NewKey returns the metadata of a public key.
func NewKey(public ed25519.PublicKey) Key {
	// An Ed25519 key always marshals.
	der, _ := x509.MarshalPKIXPublicKey(public)
	return Key{ID: sha256.Sum256(der), Scheme: scheme, Public: public}
}

func (k Key) validate() error {
	if k.Scheme != scheme || len(k.Public) != ed25519.PublicKeySize || NewKey(k.Public).ID != k.ID {
		return errors.New("root: a key is not an ed25519 key under its own id")
	}
	return nil
}

// Signer signs statements. The key may live anywhere that offers a
// [crypto.Signer]: memory, a token, a remote signer.
type Signer struct {
	key    crypto.Signer
	public Key
}

// NewSigner returns a Signer for an Ed25519 key.
func NewSigner(key crypto.Signer) (Signer, error) {
	public, ok := key.Public().(ed25519.PublicKey)
	if !ok {
		return Signer{}, fmt.Errorf("bundle signer: key is a %T, want an ed25519 key", key.Public())
	}
	return Signer{key: key, public: NewKey(public)}, nil
}

// GenerateSigner makes a fresh key. The caller keeps its [Signer.PEM].
func GenerateSigner() Signer {
	public, key, _ := ed25519.GenerateKey(rand.Reader) // crypto/rand never fails
	return Signer{key: key, public: NewKey(public)}
}

// Key returns the public key's metadata.
func (s Signer) Key() Key { return s.public }

// PEM returns the private key as PKCS #8 (RFC 5958) in PEM. It fails for a key
// that lives elsewhere.
func (s Signer) PEM() (private.Value[string], error) {
	der, err := x509.MarshalPKCS8PrivateKey(s.key)
	if err != nil {
		return private.Value[string]{}, errors.New("bundle signer: the key cannot be exported")
	}
	return private.Of(string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))), nil
}

// ParseSigner reads what [Signer.PEM] returned. Its errors hold nothing of the
// input.
func ParseSigner(text private.Value[string]) (Signer, error) {
	block, rest := pem.Decode([]byte(text.Reveal()))
	if block == nil || block.Type != "PRIVATE KEY" || len(rest) != 0 {
		return Signer{}, errors.New("bundle signer: want one PEM block of type PRIVATE KEY")
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return Signer{}, errors.New("bundle signer: not a PKCS #8 private key")
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return Signer{}, errors.New("bundle signer: not a signing key")
	}
	return NewSigner(signer)
}

// Delegate returns the delegation to those signers' keys.
func Delegate(threshold int, signers ...Signer) Delegation {
	d := Delegation{Threshold: threshold}
	for _, s := range signers {
		d.Keys = append(d.Keys, s.public.ID)
	}
	sort.Slice(d.Keys, func(i, j int) bool { return d.Keys[i].String() < d.Keys[j].String() })
	return d
}

// Keys returns the signers' public keys as a [Root] lists them: ascending,
// each once.
func Keys(signers ...Signer) []Key {
	var keys []Key
	seen := map[KeyID]bool{}
	for _, s := range signers {
		if !seen[s.public.ID] {
			keys = append(keys, s.public)
			seen[s.public.ID] = true
		}
	}
	sort.Slice(keys, func(i, j int) bool { return keys[i].ID.String() < keys[j].ID.String() })
	return keys
}
