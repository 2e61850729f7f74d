package secret

import (
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
)

// An activator grants what [Node.Encode] writes without the two private keys: the server made
// those in this boot and never shows them.

// Complete adds the server's own keys to what an activator granted, and returns the wire form that
// [Decode] reads. It refuses whatever Decode refuses, also keys that do not fit the certificates, and
// grants that bring keys. The caller owns the bytes and wipes them.
func Complete(granted []byte, vpnKey, apiKey any) ([]byte, error) {
	if len(granted) > MaxSize {
		return nil, fmt.Errorf("secrets: more than %d bytes", MaxSize)
	}
	var w wire
	if err := json.Unmarshal(granted, &w); err != nil {
		return nil, errors.New("secrets: not the JSON of a handover")
	}
	if w.VPNKey != "" || w.APIKey != "" {
		return nil, errors.New("secrets: a grant brings keys that the server should have made")
	}
	for _, k := range []struct {
		text *string
		key  any
	}{{&w.VPNKey, vpnKey}, {&w.APIKey, apiKey}} {
		der, err := x509.MarshalPKCS8PrivateKey(k.key)
		if err != nil {
			return nil, errors.New("secrets: the server's key cannot be written")
		}
		*k.text = string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	}
	b, err := json.Marshal(w)
	if err == nil {
		_, err = Decode(b)
	}
	if err != nil {
		clear(b)
		return nil, err
	}
	return b, nil
}
