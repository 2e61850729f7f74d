package pki_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"lethe/lab/pki"
)

func TestAuthority(t *testing.T) {
	ca, err := pki.NewAuthority("Lethe lab")
	if err != nil {
		t.Fatal(err)
	}
	address := netip.MustParseAddr("198.51.100.10")
	pair, err := ca.Issue("nl-ams-1", x509.ExtKeyUsageServerAuth, []string{"x.example"}, address)
	if err != nil {
		t.Fatal(err)
	}
	loaded, err := tls.X509KeyPair([]byte(pair.Certificate), []byte(pair.Key))
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM([]byte(ca.PEM)) {
		t.Fatal("the authority's certificate is not PEM")
	}
	for _, name := range []string{"x.example", address.String()} {
		if _, err := loaded.Leaf.Verify(x509.VerifyOptions{Roots: pool, DNSName: name}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := loaded.Leaf.Verify(x509.VerifyOptions{Roots: pool, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err == nil {
		t.Error("a server's certificate is good for a client")
	}
	other, err := pki.NewAuthority("Other")
	if err != nil {
		t.Fatal(err)
	}
	foreign := x509.NewCertPool()
	foreign.AppendCertsFromPEM([]byte(other.PEM))
	if _, err := loaded.Leaf.Verify(x509.VerifyOptions{Roots: foreign}); err == nil {
		t.Error("another authority's signature was accepted")
	}
}

// TestVPNCertificate: a VPN server's certificate is what every client's system
// asks for: the id as first name, each address as both kinds of name, and both
// usages.
func TestVPNCertificate(t *testing.T) {
	ca, err := pki.NewAuthority("Lethe lab")
	if err != nil {
		t.Fatal(err)
	}
	v4, v6 := netip.MustParseAddr("198.51.100.10"), netip.MustParseAddr("2001:db8:2::10")
	pair, err := ca.IssueVPN("nl-ams-1", v4, v6)
	if err != nil {
		t.Fatal(err)
	}
	loaded, err := tls.X509KeyPair([]byte(pair.Certificate), []byte(pair.Key))
	if err != nil {
		t.Fatal(err)
	}
	leaf, pool := loaded.Leaf, x509.NewCertPool()
	pool.AppendCertsFromPEM([]byte(ca.PEM))
	for _, name := range []string{"nl-ams-1", v4.String(), v6.String()} {
		if _, err := leaf.Verify(x509.VerifyOptions{Roots: pool, DNSName: name}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if !slices.Contains(leaf.DNSNames, name) {
			t.Errorf("%s is not among the DNS names %q", name, leaf.DNSNames)
		}
	}
	if leaf.Subject.CommonName != "nl-ams-1" || leaf.DNSNames[0] != "nl-ams-1" || len(leaf.IPAddresses) != 2 || leaf.KeyUsage != x509.KeyUsageDigitalSignature {
		t.Errorf("%s %q %v %v", leaf.Subject, leaf.DNSNames, leaf.IPAddresses, leaf.KeyUsage)
	}
	if !slices.Equal(leaf.ExtKeyUsage, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}) || len(leaf.UnknownExtKeyUsage) != 1 || leaf.UnknownExtKeyUsage[0].String() != "1.3.6.1.5.5.8.2.2" {
		t.Errorf("%v %v", leaf.ExtKeyUsage, leaf.UnknownExtKeyUsage)
	}
}

// TestTLSCrypt lets OpenVPN read the key: it goes on to the next error only
// when it could.
func TestTLSCrypt(t *testing.T) {
	path := filepath.Join(t.TempDir(), "key")
	key, another := pki.NewTLSCrypt(), pki.NewTLSCrypt()
	if key == another {
		t.Error("two keys are equal")
	}
	if err := os.WriteFile(path, []byte(key), 0o600); err != nil {
		t.Fatal(err)
	}
	c, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	// A key for one server is made under the static key, which proves it readable.
	out, err := exec.CommandContext(c, "openvpn", "--tls-crypt-v2", path, "--genkey", "tls-crypt-v2-client").CombinedOutput()
	if err == nil {
		t.Errorf("a tls-crypt key passes for a tls-crypt-v2 key: %s", out)
	}
	self := exec.CommandContext(c, "openvpn", "--test-crypto", "--secret", path, "--cipher", "AES-256-CBC")
	if out, err := self.CombinedOutput(); err != nil {
		t.Errorf("openvpn refuses the key: %v: %s", err, out)
	}
}
