// Package dsse is the form that every signed statement of Lethe has: an
// envelope after the DSSE specification (github.com/secure-systems-lab/dsse),
// version 1, around a payload of JSON that has exactly one encoding.
//
// What is signed, by whom and how many must, is the business of packages bundle
// (what servers are told) and image/release (what images they run). The
// specification's own library is not linked: its verifier brings
// golang.org/x/crypto/ssh into servers, takes base64 in two alphabets and writes
// to standard output. Tests verify our envelopes with it and its with ours.
package dsse

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
)

// Digest is a SHA-256 (FIPS 180-4); as text it is 64 small hexadecimal digits.
type Digest [sha256.Size]byte

// String returns d in hexadecimal.
func (d Digest) String() string { return hex.EncodeToString(d[:]) }

// MarshalText implements [encoding.TextMarshaler].
func (d Digest) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText implements [encoding.TextUnmarshaler].
func (d *Digest) UnmarshalText(text []byte) error {
	b, err := hex.DecodeString(string(text))
	if err != nil || len(b) != len(d) {
		return fmt.Errorf("digest: want %d hexadecimal digits", 2*len(d))
	}
	*d = Digest(b)
	return nil
}

// KeyID names a public key: the SHA-256 of its SubjectPublicKeyInfo in DER
// (RFC 5280). "openssl pkey -pubin -outform DER | sha256sum" prints the same.
type KeyID = Digest

// ID returns the name of a public key. It fails for kinds of keys that have no
// SubjectPublicKeyInfo.
func ID(public crypto.PublicKey) (KeyID, error) {
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return KeyID{}, err
	}
	return sha256.Sum256(der), nil
}

// Envelope is a DSSE envelope, in the form of the specification's reference libraries.
type Envelope struct {
	PayloadType string      `json:"payloadType"`
	Payload     []byte      `json:"payload"`
	Signatures  []Signature `json:"signatures"`
}

// Signature is one signature of an [Envelope] over [PAE].
type Signature struct {
	KeyID KeyID  `json:"keyid"`
	Sig   []byte `json:"sig"`
}

// PAE returns what is signed: the pre-authentication encoding of the DSSE
// specification, version 1.
func PAE(payloadType string, payload []byte) []byte {
	b := make([]byte, 0, len(payload)+len(payloadType)+32)
	b = append(b, "DSSEv1 "...)
	b = strconv.AppendInt(b, int64(len(payloadType)), 10)
	b = append(b, ' ')
	b = append(b, payloadType...)
	b = append(b, ' ')
	b = strconv.AppendInt(b, int64(len(payload)), 10)
	b = append(b, ' ')
	return append(b, payload...)
}

// ErrMalformed says that bytes are not the JSON of such a value,
// ErrNotCanonical that they are, but not in its one encoding.
var (
	ErrMalformed    = errors.New("dsse: malformed")
	ErrNotCanonical = errors.New("dsse: not canonical")
)

// Decode reads the one JSON encoding that a value has: the bytes that
// encoding/json writes for it. Unknown, repeated, misspelt and null fields,
// white space and trailing bytes are all refused, so no two parsers can read
// one signed statement differently.
func Decode[T any](b []byte) (v T, err error) {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&v); err != nil {
		return v, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	if again, err := json.Marshal(v); err != nil || !bytes.Equal(again, b) {
		return v, ErrNotCanonical
	}
	return v, nil
}
