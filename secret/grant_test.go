package secret_test

import (
	"crypto/x509"
	"encoding/pem"
	"strings"
	"testing"

	"lethe/private"
	"lethe/secret"
)

// TestComplete: what an activator grants becomes whole with the server's own keys, and with no others.
func TestComplete(t *testing.T) {
	want := node(t)
	parse := func(text string) any {
		block, _ := pem.Decode([]byte(text))
		k, err := x509.ParsePKCS8PrivateKey(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	vpn, api := parse(want.VPNKey.Reveal()), parse(want.APIKey.Reveal())
	granted := *want
	granted.VPNKey, granted.APIKey = private.Of(""), private.Of("")
	got, err := secret.Complete(encoded(t, &granted), vpn, api)
	if err != nil || string(got) != string(encoded(t, want)) {
		t.Errorf("%v", err)
	}
	for name, c := range map[string]struct {
		granted  []byte
		vpn, api any
		want     string
	}{
		"too large":        {make([]byte, secret.MaxSize+1), vpn, api, "more than"},
		"no JSON":          {[]byte("{"), vpn, api, "JSON"},
		"keys from abroad": {encoded(t, want), vpn, api, "should have made"},
		"no key":           {encoded(t, &granted), vpn, nil, "cannot be written"},
		"keys exchanged":   {encoded(t, &granted), api, vpn, "do not fit"},
	} {
		if _, err := secret.Complete(c.granted, c.vpn, c.api); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
