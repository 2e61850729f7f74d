package release

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"

	"lethe/dsse"
)

// Key is a public key of a builder or of the release: Ed25519 (RFC 8032), ECDSA on
// P-256 with SHA-256 or P-384 with SHA-384 (FIPS 186-5, signatures in ASN.1), or RSA of
// 2048 to 4096 bits with PKCS #1 v1.5 and SHA-256 (RFC 8017). The key's kind decides the
// algorithm; nothing in a signature can choose another.
type Key struct {
	ID     dsse.KeyID
	public crypto.PublicKey
}

// NewKey returns a usable public key.
func NewKey(public crypto.PublicKey) (Key, error) {
	switch k := public.(type) {
	case ed25519.PublicKey:
	case *ecdsa.PublicKey:
		if k.Curve != elliptic.P256() && k.Curve != elliptic.P384() {
			return Key{}, errors.New("release key: want P-256 or P-384")
		}
	case *rsa.PublicKey:
		if k.Size() < 256 || k.Size() > 512 {
			return Key{}, fmt.Errorf("release key: RSA of %d bits, want 2048 to 4096", 8*k.Size())
		}
	default:
		return Key{}, fmt.Errorf("release key: a %T, want Ed25519, ECDSA or RSA", public)
	}
	id, err := dsse.ID(public)
	return Key{id, public}, err
}

// ParseKey reads a public key in PEM: a PUBLIC KEY (RFC 7468) or a CERTIFICATE, of
// which nothing but the key is used.
func ParseKey(text []byte) (Key, error) {
	block, rest := pem.Decode(text)
	if block == nil || len(rest) != 0 {
		return Key{}, errors.New("release key: want one PEM block")
	}
	switch block.Type {
	case "PUBLIC KEY":
		public, err := x509.ParsePKIXPublicKey(block.Bytes)
		if err != nil {
			return Key{}, fmt.Errorf("release key: %w", err)
		}
		return NewKey(public)
	case "CERTIFICATE":
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return Key{}, fmt.Errorf("release key: %w", err)
		}
		return NewKey(c.PublicKey)
	}
	return Key{}, errors.New("release key: want a PEM block of type PUBLIC KEY or CERTIFICATE")
}

// prepare returns what the private key is given for a message, and how.
func (k Key) prepare(message []byte) ([]byte, crypto.Hash) {
	hash := crypto.SHA256
	switch p := k.public.(type) {
	case ed25519.PublicKey:
		return message, 0
	case *ecdsa.PublicKey:
		if p.Curve == elliptic.P384() {
			hash = crypto.SHA384
		}
	}
	h := hash.New()
	h.Write(message)
	return h.Sum(nil), hash
}

func (k Key) verify(message, signature []byte) bool {
	digest, hash := k.prepare(message)
	switch p := k.public.(type) {
	case ed25519.PublicKey:
		return ed25519.Verify(p, digest, signature)
	case *ecdsa.PublicKey:
		return ecdsa.VerifyASN1(p, digest, signature)
	case *rsa.PublicKey:
		return rsa.VerifyPKCS1v15(p, hash, digest, signature) == nil
	}
	return false
}

// seal returns an envelope with one signature of every signer.
func seal(payloadType string, payload []byte, signers []crypto.Signer) ([]byte, error) {
	e := dsse.Envelope{PayloadType: payloadType, Payload: payload, Signatures: []dsse.Signature{}}
	for _, s := range signers {
		if err := add(&e, s); err != nil {
			return nil, err
		}
	}
	return json.Marshal(e)
}

func add(e *dsse.Envelope, s crypto.Signer) error {
	k, err := NewKey(s.Public())
	if err != nil {
		return err
	}
	message := dsse.PAE(e.PayloadType, e.Payload)
	digest, hash := k.prepare(message)
	signature, err := s.Sign(rand.Reader, digest, hash)
	if err != nil {
		return fmt.Errorf("sign: %w", err)
	}
	if !k.verify(message, signature) {
		return errors.New("sign: the key made a signature that does not verify")
	}
	e.Signatures = append(e.Signatures, dsse.Signature{KeyID: k.ID, Sig: signature})
	return nil
}

// SignStatement returns a builder's statement in its envelope.
func SignStatement(s Statement, builder crypto.Signer) ([]byte, error) {
	payload, err := encode(s)
	if err != nil {
		return nil, err
	}
	return seal(StatementType, payload, []crypto.Signer{builder})
}

// AddSignature returns an envelope with one more signature: how the holders of
// release keys sign one after the other. The signer must have read it (see [Read]).
func AddSignature(enveloped []byte, s crypto.Signer) ([]byte, error) {
	e, err := open(enveloped, ManifestType)
	if err != nil {
		return nil, err
	}
	if err := add(&e, s); err != nil {
		return nil, err
	}
	return json.Marshal(e)
}

// open reads an envelope and checks all but the signatures' truth.
func open(enveloped []byte, payloadType string) (e dsse.Envelope, err error) {
	if len(enveloped) > MaxFileSize {
		return e, refuse(TooLarge, nil, "")
	}
	if e, err = decode[dsse.Envelope](enveloped); err != nil {
		return e, err
	}
	if e.PayloadType != payloadType {
		return e, refuse(WrongType, nil, "")
	}
	seen := map[dsse.KeyID]bool{}
	for _, s := range e.Signatures {
		if seen[s.KeyID] || len(seen) == MaxSignatures {
			return e, refuse(BadSignatures, nil, "")
		}
		seen[s.KeyID] = true
	}
	return e, nil
}

func decode[T any](b []byte) (T, error) {
	v, err := dsse.Decode[T](b)
	switch {
	case errors.Is(err, dsse.ErrNotCanonical):
		return v, refuse(NotCanonical, err, "")
	case err != nil:
		return v, refuse(Malformed, err, "")
	}
	return v, nil
}

// read returns a payload whose signatures have been checked.
func read[T interface{ Validate() error }](payload []byte) (T, error) {
	v, err := decode[T](payload)
	if err != nil {
		return v, err
	}
	if err := v.Validate(); err != nil {
		return v, refuse(Impossible, err, err.Error())
	}
	return v, nil
}

// signers returns the keys among these that signed the envelope.
func signers(e dsse.Envelope, keys []Key) []dsse.KeyID {
	message := dsse.PAE(e.PayloadType, e.Payload)
	var good []dsse.KeyID
	seen := map[dsse.KeyID]bool{}
	for _, k := range keys {
		for _, s := range e.Signatures {
			if s.KeyID == k.ID && !seen[k.ID] && k.verify(message, s.Sig) {
				good = append(good, k.ID)
				seen[k.ID] = true
			}
		}
	}
	return good
}

// ReadManifest returns the manifest in an envelope without verifying signatures: for a
// person who is about to sign it, never for a server.
func ReadManifest(enveloped []byte) (m Manifest, err error) {
	e, err := open(enveloped, ManifestType)
	if err != nil {
		return m, err
	}
	return read[Manifest](e.Payload)
}
