// Package pki makes certificates and keys for services that are tried and tested: an [Authority] of their own, which
// lives as long as the process, issues them; nothing is kept.
package pki

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
	"math/big"
	"net"
	"net/netip"
	"strings"
	"time"
)

// Authority is a certificate authority.
type Authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	PEM  string // its certificate
}

// Pair is a certificate (PEM chain) and its key (PEM, PKCS #8).
type Pair struct{ Certificate, Key string }

// life is how long certificates are valid; they begin an hour ago, for clocks
// that are slow.
const life = 365 * 24 * time.Hour

// NewAuthority returns a new authority with an ECDSA P-256 key.
func NewAuthority(name string) (*Authority, error) {
	template := &x509.Certificate{
		Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	a := &Authority{}
	pair, err := a.sign(template)
	a.PEM = pair.Certificate
	return a, err
}

// Issue returns a certificate of that common name, for names and addresses, for
// the use as a TLS server or client (RFC 5280 section 4.2.1.12).
func (a *Authority) Issue(commonName string, use x509.ExtKeyUsage, names []string, addresses ...netip.Addr) (Pair, error) {
	template := &x509.Certificate{
		Subject: pkix.Name{CommonName: commonName}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{use}, DNSNames: names,
	}
	for _, ip := range addresses {
		template.IPAddresses = append(template.IPAddresses, net.IP(ip.AsSlice()))
	}
	return a.sign(template)
}

// ikeIntermediate is the extended key usage "IP security IKE intermediate", which
// older systems of Apple's want of a VPN server (draft-ietf-ipsec-pki-req-05
// section 4.1.3.2).
var ikeIntermediate = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 8, 2, 2}

// IssueVPN returns a certificate for a VPN server of that id at those public
// addresses. The id is its first DNS name, by which clients know it. Clients
// that are given an address look for that: Windows among the DNS names, others
// where addresses belong.
func (a *Authority) IssueVPN(id string, addresses ...netip.Addr) (Pair, error) {
	template := &x509.Certificate{
		Subject: pkix.Name{CommonName: id}, KeyUsage: x509.KeyUsageDigitalSignature, DNSNames: []string{id},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, UnknownExtKeyUsage: []asn1.ObjectIdentifier{ikeIntermediate},
	}
	for _, ip := range addresses {
		template.DNSNames = append(template.DNSNames, ip.String())
		template.IPAddresses = append(template.IPAddresses, net.IP(ip.AsSlice()))
	}
	return a.sign(template)
}

// sign signs template with the authority's key, or with the template's own,
// which becomes the authority's, when it has none.
func (a *Authority) sign(template *x509.Certificate) (Pair, error) {
	key, keyErr := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	serial, serialErr := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	secret, secretErr := x509.MarshalPKCS8PrivateKey(key)
	template.SerialNumber = serial
	template.NotBefore = time.Now().Add(-time.Hour).UTC()
	template.NotAfter = template.NotBefore.Add(life)
	if a.key == nil {
		a.key, a.cert = key, template
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err == nil && a.cert == template {
		a.cert, err = x509.ParseCertificate(der)
	}
	return Pair{
		string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})),
		string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret})),
	}, errors.Join(keyErr, serialErr, secretErr, err)
}

// NewTLSCrypt returns a new key for OpenVPN's tls-crypt, in the form that
// `openvpn --genkey secret` writes: 2048 bits in 16 lines.
func NewTLSCrypt() string {
	var key [256]byte
	_, _ = rand.Read(key[:]) // crypto/rand.Read never fails
	var b strings.Builder
	b.WriteString("#\n# 2048 bit OpenVPN static key\n#\n-----BEGIN OpenVPN Static key V1-----\n")
	for i := 0; i < len(key); i += 16 {
		b.WriteString(hex.EncodeToString(key[i:i+16]) + "\n")
	}
	b.WriteString("-----END OpenVPN Static key V1-----\n")
	return b.String()
}
