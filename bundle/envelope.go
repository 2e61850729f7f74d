package bundle

import (
	"crypto"
	"crypto/ed25519"
	"encoding/json"
	"fmt"

	"lethe/dsse"
)

// Envelope is a DSSE envelope.
type Envelope = dsse.Envelope

// Signature is one signature of an [Envelope] over [PAE], 64 bytes (RFC 8032).
type Signature = dsse.Signature

// PAE returns what is signed, see [dsse.PAE].
func PAE(payloadType string, payload []byte) []byte { return dsse.PAE(payloadType, payload) }

// Sign returns the enveloped statement with one signature of every signer. It
// refuses to sign what a verifier would refuse to read.
func Sign(s Statement, signers ...Signer) ([]byte, error) {
	if err := s.Validate(); err != nil {
		return nil, fmt.Errorf("sign: %w", err)
	}
	payload, err := json.Marshal(s)
	if err != nil {
		return nil, fmt.Errorf("sign: %w", err)
	}
	e := Envelope{PayloadType: s.role().PayloadType(), Payload: payload, Signatures: []Signature{}}
	message := PAE(e.PayloadType, payload)
	for _, k := range signers {
		sig, err := k.key.Sign(nil, message, crypto.Hash(0))
		if err != nil {
			return nil, fmt.Errorf("sign %s statement: %w", s.role(), err)
		}
		e.Signatures = append(e.Signatures, Signature{KeyID: k.public.ID, Sig: sig})
	}
	return json.Marshal(e)
}

// AddSignature returns an envelope with one more signature: how the holders of
// a threshold sign one after the other, each on their own machine. The signer
// must have read the statement (see [Inspect]).
func AddSignature(enveloped []byte, k Signer) ([]byte, error) {
	e, err := decode[Envelope](enveloped)
	if err != nil {
		return nil, err
	}
	sig, err := k.key.Sign(nil, PAE(e.PayloadType, e.Payload), crypto.Hash(0))
	if err != nil {
		return nil, fmt.Errorf("add signature: %w", err)
	}
	e.Signatures = append(e.Signatures, Signature{KeyID: k.public.ID, Sig: sig})
	return json.Marshal(e)
}

// readEnvelope reads the envelope of a role's statement and checks all but the
// signatures' truth.
func readEnvelope(role Role, enveloped []byte, limit int) (e Envelope, err error) {
	if len(enveloped) > limit {
		return e, refuse(TooLarge, nil)
	}
	if e, err = decode[Envelope](enveloped); err != nil {
		return e, err
	}
	if e.PayloadType != role.PayloadType() {
		return e, refuse(WrongType, nil)
	}
	seen := map[KeyID]bool{}
	for _, s := range e.Signatures {
		if seen[s.KeyID] || len(s.Sig) != ed25519.SignatureSize || len(seen) == MaxSignatures {
			return e, refuse(BadSignatures, nil)
		}
		seen[s.KeyID] = true
	}
	return e, nil
}

// readStatement reads a payload whose signatures have been checked, or, for a
// root, are about to be checked against itself.
func readStatement[T Statement](payload []byte) (T, error) {
	v, err := decode[T](payload)
	if err != nil {
		return v, err
	}
	if err := v.Validate(); err != nil {
		return v, refuse(Impossible, err)
	}
	return v, nil
}

// Inspect returns the statement in an envelope without verifying signatures:
// for a person who is about to sign it, never for a server.
func Inspect[T Statement](enveloped []byte) (v T, err error) {
	e, err := readEnvelope(v.role(), enveloped, MaxManifestSize)
	if err != nil {
		return v, err
	}
	return readStatement[T](e.Payload)
}

// signed reports whether the threshold of a role is met. Keys are counted, not
// signatures: an envelope names each key at most once, and a root lists a key
// under no other id than its own.
func (r Root) signed(role Role, e Envelope) bool {
	message := PAE(e.PayloadType, e.Payload)
	allowed := map[KeyID]bool{}
	for _, id := range r.Roles[role].Keys {
		allowed[id] = true
	}
	good := 0
	for _, k := range r.Keys {
		for _, s := range e.Signatures {
			if s.KeyID == k.ID && allowed[k.ID] && ed25519.Verify(k.Public, message, s.Sig) {
				good++
			}
		}
	}
	return good >= r.Roles[role].Threshold
}
