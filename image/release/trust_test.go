package release_test

import (
	"crypto"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"testing"

	"lethe/fault"
	"lethe/image/release"
)

func public(s crypto.Signer) string {
	der, _ := x509.MarshalPKIXPublicKey(s.Public())
	return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
}

func trustFile(change func(m map[string]any)) []byte {
	k := keyring()
	m := map[string]any{
		"builders": []string{public(k.builders[0]), public(k.builders[1]), public(k.builders[2])}, "threshold": 2,
		"release": []string{public(k.release[0]), public(k.release[1])}, "release_threshold": 2,
		"boot": []string{string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: k.boot.Certificate.Raw}))}, "floor": 3,
	}
	change(m)
	b, _ := json.Marshal(m)
	return b
}

func TestTrust(t *testing.T) {
	w := newWorld(t)
	p, err := release.ParsePolicy(trustFile(func(map[string]any) {}))
	if err != nil {
		t.Fatal(err)
	}
	p.Now = w.policy.Now
	if w.policy = p; p.Floor != 3 || w.verify() != nil {
		t.Errorf("floor %d, %v", p.Floor, w.verify())
	}
	k := keyring()
	for name, change := range map[string]func(m map[string]any){
		"unknown field":      func(m map[string]any) { m["treshold"] = 2 },
		"one builder":        func(m map[string]any) { m["threshold"] = 1 },
		"too many builders":  func(m map[string]any) { m["threshold"] = 4 },
		"no release key":     func(m map[string]any) { m["release_threshold"] = 0 },
		"too many":           func(m map[string]any) { m["release_threshold"] = 3 },
		"key twice":          func(m map[string]any) { m["builders"] = []string{public(k.builders[0]), public(k.builders[0])} },
		"key in two roles":   func(m map[string]any) { m["release"] = []string{public(k.builders[0]), public(k.release[0])} },
		"not a key":          func(m map[string]any) { m["builders"] = []string{"text"} },
		"not a certificate":  func(m map[string]any) { m["boot"] = []string{public(k.builders[0])} },
		"no PEM certificate": func(m map[string]any) { m["boot"] = []string{"text"} },
	} {
		if _, err := release.ParsePolicy(trustFile(change)); fault.Of(err) != fault.Invalid {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzTrust(f *testing.F) {
	f.Add(trustFile(func(map[string]any) {}))
	f.Fuzz(func(t *testing.T, b []byte) {
		if p, err := release.ParsePolicy(b); err == nil && p.Threshold < release.MinBuilders {
			t.Error("one builder is enough")
		}
	})
}
