package attesttest

import (
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"testing"
	"time"
)

// Maker makes TPMs, or says so.
type Maker struct {
	Certificate *x509.Certificate
	t           testing.TB
	key         *ecdsa.PrivateKey
}

// NewMaker returns one with a new key.
func NewMaker(t testing.TB) *Maker {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	m := &Maker{t: t, key: k}
	m.Certificate = m.sign(&x509.Certificate{Subject: pkix.Name{CommonName: "maker"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}, k.Public())
	return m
}

func (m *Maker) sign(template *x509.Certificate, public any) *x509.Certificate {
	template.SerialNumber = big.NewInt(1)
	template.NotBefore, template.NotAfter = time.Date(2016, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	parent := m.Certificate
	if parent == nil {
		parent = template
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, m.key)
	if err != nil {
		m.t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		m.t.Fatal(err)
	}
	return c
}

// Issue returns an endorsement key's certificate, with a critical name of the TPM as the TCG wants it.
func (m *Maker) Issue(ek *ecdh.PublicKey) []byte {
	b := ek.Bytes()
	public, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), b)
	if err != nil {
		m.t.Fatal(err)
	}
	model, err := asn1.Marshal(pkix.Name{Organization: []string{"id:00001014"}, CommonName: "model"}.ToRDNSequence())
	if err != nil {
		m.t.Fatal(err)
	}
	names, err := asn1.Marshal([]asn1.RawValue{{Class: asn1.ClassContextSpecific, Tag: 4, IsCompound: true, Bytes: model}})
	if err != nil {
		m.t.Fatal(err)
	}
	return m.sign(&x509.Certificate{KeyUsage: x509.KeyUsageKeyAgreement,
		ExtraExtensions:    []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Critical: true, Value: names}},
		UnknownExtKeyUsage: []asn1.ObjectIdentifier{{2, 23, 133, 8, 1}}}, public).Raw
}
