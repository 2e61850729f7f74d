package secret_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"lethe/private"
	"lethe/secret"
)

const staticKey = "-----BEGIN OpenVPN Static key V1-----\n00ff\n-----END OpenVPN Static key V1-----\n"

// pair returns a self-signed certificate for a name and its key, in PEM.
func pair(t testing.TB, name string) (cert, key string) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, k.Public(), k)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})),
		string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}))
}

func node(t testing.TB) *secret.Node {
	vpnCert, vpnKey := pair(t, "nl-ams-1")
	apiCert, apiKey := pair(t, "nl-ams-1")
	return &secret.Node{
		Server: "nl-ams-1", VPNCertificate: private.Of(vpnCert), VPNKey: private.Of(vpnKey),
		TLSCrypt: private.Of(staticKey), ControlURL: "https://control.example",
		Control: []netip.Addr{netip.MustParseAddr("198.51.100.100"), netip.MustParseAddr("2001:db8::100")}, ControlCA: apiCert,
		APICertificate: private.Of(apiCert), APIKey: private.Of(apiKey),
		Salt: private.Of([32]byte{1}), Seal: private.Of([32]byte{2}), TrustRoot: []byte(`{"root":1}`),
	}
}

func encoded(t testing.TB, n *secret.Node) []byte {
	t.Helper()
	b, err := n.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestKeep(t *testing.T) {
	want := node(t)
	f, err := secret.Keep(encoded(t, want))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	got, err := secret.Restore(f)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(encoded(t, got), encoded(t, want)) {
		t.Error("what was restored is not what was kept")
	}
	if _, err := f.WriteAt([]byte{0}, 0); err == nil {
		t.Error("the kept secrets can be changed")
	}
	if s := fmt.Sprintf("%+v %#v", got, *got); strings.Contains(s, "PRIVATE KEY") || strings.Contains(s, "Static key") {
		t.Error("a printed Node shows a key")
	}
}

func TestControlEndpoints(t *testing.T) {
	n := node(t)
	for in, want := range map[string]string{
		"https://control.example": "[198.51.100.100:443 [2001:db8::100]:443]", "https://control.example:8443": "[198.51.100.100:8443 [2001:db8::100]:8443]",
	} {
		n.ControlURL = in
		if got, err := n.ControlEndpoints(); err != nil || fmt.Sprint(got) != want {
			t.Errorf("%s: %v, %v", in, got, err)
		}
	}
	n.ControlURL = "https://control.example:x"
	if _, err := n.ControlEndpoints(); err == nil {
		t.Error("a URL that is none")
	}
}

// spoiled returns the encoding of a good Node with one field replaced.
func spoiled(t *testing.T, field string, value any) []byte {
	t.Helper()
	var m map[string]any
	if err := json.Unmarshal(encoded(t, node(t)), &m); err != nil {
		t.Fatal(err)
	}
	m[field] = value
	b, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestRefusals(t *testing.T) {
	otherCert, _ := pair(t, "us-nyc-1")
	foreignCert, foreignKey := pair(t, "us-nyc-1")
	_ = foreignCert
	for _, c := range []struct {
		want string
		body []byte
	}{
		{"not the JSON", nil},
		{"not the JSON", encoded(t, node(t))[:500]},
		{"more than", make([]byte, secret.MaxSize+1)},
		{"server or trust root", spoiled(t, "server", "")},
		{"server or trust root", spoiled(t, "trust_root", nil)},
		{"32 bytes", spoiled(t, "salt", []byte{1})},
		{"32 bytes", spoiled(t, "seal", nil)},
		{"must be https", spoiled(t, "control_url", "http://control.example")},
		{"must be https", spoiled(t, "control_url", "https://:8443")},
		{"must be https", spoiled(t, "control_url", "https://control.example/node")},
		{"must be https", spoiled(t, "control_url", "https://me@control.example")},
		{"impossible port", spoiled(t, "control_url", "https://control.example:65536")},
		{"impossible port", spoiled(t, "control_url", "https://control.example:0")},
		{"1 to 8 addresses", spoiled(t, "control_addresses", nil)},
		{"1 to 8 addresses", spoiled(t, "control_addresses", make([]netip.Addr, 9))},
		{"not the JSON", spoiled(t, "control_addresses", []string{"control.example"})},
		{"not a unicast", spoiled(t, "control_addresses", []string{"127.0.0.1"})},
		{"not a unicast", spoiled(t, "control_addresses", []string{"fe80::1%eth0"})},
		{"not a unicast", spoiled(t, "control_addresses", []string{"2001:db8::1", "::ffff:192.0.2.1"})},
		{"static key", spoiled(t, "tls_crypt", "x")},
		{"control CA", spoiled(t, "control_ca", "x")},
		{"VPN certificate and key do not fit", spoiled(t, "vpn_certificate", otherCert)},
		{"API certificate and key do not fit", spoiled(t, "api_key", foreignKey)},
		{"not for the server named", spoiled(t, "server", "us-nyc-1")},
	} {
		n, err := secret.Decode(c.body)
		if err == nil || n != nil || !strings.HasPrefix(err.Error(), "secrets: ") || !strings.Contains(err.Error(), c.want) {
			t.Errorf("got %v, want %q", err, c.want)
		}
	}
}

func TestRestoreRefuses(t *testing.T) {
	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := secret.Restore(f); err == nil {
		t.Error("an empty file was restored")
	}
	f.Close()
	if _, err := secret.Restore(f); !errors.Is(err, os.ErrClosed) {
		t.Errorf("a closed file gives %v", err)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(encoded(f, node(f)))
	f.Add([]byte(`{"server":"x"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		n, err := secret.Decode(b)
		if err == nil && (n.Server == "" || len(n.TrustRoot) == 0) {
			t.Error("an incomplete Node was decoded")
		}
		if err != nil && !strings.HasPrefix(err.Error(), "secrets: ") {
			t.Errorf("error %q", err)
		}
	})
}
