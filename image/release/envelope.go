package release

import (
	"crypto"
	"encoding/json"

	"lethe/dsse"
)

// Other statements than releases are signed in the same form by the same kinds of
// keys: decisions of an activator's operators, for instance.

// SealEnvelope returns a payload in its envelope, signed by these keys; by none, when others will
// sign it.
func SealEnvelope(payloadType string, payload []byte, by ...crypto.Signer) ([]byte, error) {
	return seal(payloadType, payload, by)
}

// OpenEnvelope returns the payload of an envelope, and which of the keys signed it. How many
// must is the caller's to say, who may also look at what nobody has signed yet.
func OpenEnvelope(enveloped []byte, payloadType string, keys []Key) (payload []byte, by []dsse.KeyID, err error) {
	e, err := open(enveloped, payloadType)
	if err != nil {
		return nil, nil, err
	}
	return e.Payload, signers(e, keys), nil
}

// Countersign adds a signature to an envelope, as [AddSignature] does to a manifest. It refuses a key
// that has signed already.
func Countersign(enveloped []byte, payloadType string, s crypto.Signer) ([]byte, error) {
	e, err := open(enveloped, payloadType)
	if err != nil {
		return nil, err
	}
	if err := add(&e, s); err != nil {
		return nil, err
	}
	b, err := json.Marshal(e)
	if err != nil {
		return nil, err
	}
	if _, err := open(b, payloadType); err != nil {
		return nil, err
	}
	return b, nil
}
