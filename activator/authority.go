package activator

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"strings"
	"time"

	"lethe/fault"
)

// Lifetimes of servers' certificates.
const (
	DefaultLife = 48 * time.Hour
	MaxLife     = 8 * 24 * time.Hour
	// authorityLife is that of an authority: as long as customers' profiles may live.
	authorityLife = 10 * 365 * 24 * time.Hour
	// before is how long ago certificates begin, for clocks that are slow.
	before = 10 * time.Minute
)

// authority signs servers' certificates. Its key is ECDSA on P-256.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// newAuthority makes one.
func newAuthority(name string, now time.Time) (*authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	a := &authority{key: key}
	template := &x509.Certificate{Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign}
	a.cert, err = a.sign(template, key.Public().(*ecdsa.PublicKey), now, now.Add(authorityLife))
	return a, err
}

// sign signs a certificate.
func (a *authority) sign(template *x509.Certificate, public *ecdsa.PublicKey, now, until time.Time) (*x509.Certificate, error) {
	var number [16]byte
	_, _ = rand.Read(number[:]) // crypto/rand.Read never fails
	template.SerialNumber = new(big.Int).SetBytes(number[:])
	template.NotBefore, template.NotAfter = now.Add(-before).UTC(), until.UTC()
	parent := a.cert
	if parent == nil {
		parent = template
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, a.key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// ikeIntermediate is the extended key usage that older systems of Apple's want of
// a VPN server (draft-ietf-ipsec-pki-req-05, 4.1.3.2).
var ikeIntermediate = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 8, 2, 2}

// vpn returns a VPN server's certificate, as clients of all systems want it: the id is its
// first DNS name; each address stands among the DNS names, where Windows looks, and among the addresses.
func (a *authority) vpn(server string, addresses []netip.Addr, public *ecdsa.PublicKey, now, until time.Time) (string, error) {
	t := &x509.Certificate{Subject: pkix.Name{CommonName: server}, KeyUsage: x509.KeyUsageDigitalSignature, DNSNames: []string{server},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, UnknownExtKeyUsage: []asn1.ObjectIdentifier{ikeIntermediate}}
	for _, ip := range addresses {
		t.DNSNames, t.IPAddresses = append(t.DNSNames, ip.String()), append(t.IPAddresses, net.IP(ip.AsSlice()))
	}
	return encoded(a.sign(t, public, now, until))
}

// api returns the certificate that a server shows the node API.
func (a *authority) api(server string, public *ecdsa.PublicKey, now, until time.Time) (string, error) {
	return encoded(a.sign(&x509.Certificate{Subject: pkix.Name{CommonName: server}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}, public, now, until))
}

func encoded(c *x509.Certificate, err error) (string, error) {
	if err != nil {
		return "", fmt.Errorf("issue: %w", err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})), nil
}

// encode returns certificate and key in PEM, the key second.
func (a *authority) encode() ([]byte, error) {
	key, err := x509.MarshalPKCS8PrivateKey(a.key)
	if err != nil {
		return nil, err
	}
	return append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})...), nil
}

// parseAuthority reads what encode gives.
func parseAuthority(text []byte) (*authority, error) {
	bad := fault.New(fault.Invalid, "an authority's file does not hold a certificate and its key")
	cert, rest := pem.Decode(text)
	if cert == nil || cert.Type != "CERTIFICATE" {
		return nil, bad
	}
	block, rest := pem.Decode(rest)
	if block == nil || block.Type != "PRIVATE KEY" || len(rest) != 0 {
		return nil, bad
	}
	c, err1 := x509.ParseCertificate(cert.Bytes)
	k, err2 := x509.ParsePKCS8PrivateKey(block.Bytes)
	key, ok := k.(*ecdsa.PrivateKey)
	if err := errors.Join(err1, err2); err != nil || !ok || !key.PublicKey.Equal(c.PublicKey) || !c.IsCA {
		return nil, bad
	}
	return &authority{c, key}, nil
}

// newTLSCrypt returns a new key for OpenVPN's tls-crypt: 2048 bits, as `openvpn --genkey secret` writes it.
func newTLSCrypt() []byte {
	var key [256]byte
	_, _ = rand.Read(key[:]) // crypto/rand.Read never fails
	var b strings.Builder
	b.WriteString("-----BEGIN OpenVPN Static key V1-----\n")
	for i := 0; i < len(key); i += 16 {
		b.WriteString(hex.EncodeToString(key[i:i+16]) + "\n")
	}
	b.WriteString("-----END OpenVPN Static key V1-----\n")
	return []byte(b.String())
}
