// Package cms makes and reads the one form of PKCS #7 SignedData (RFC 2315,
// RFC 5652) that UEFI firmware takes: version 1, SHA-256, one signer, the signer's
// certificate inside, no time and no counter-signature.
//
// Package pe puts it around the digest of a boot image (Authenticode), package
// secureboot around an update of a firmware variable. What it writes holds
// nothing but the content, the certificate and the signature, so equal inputs
// give equal bytes with RSA (PKCS #1 v1.5 is deterministic; ECDSA is not).
//
// Reading is stricter than firmware: trust is a list of certificates, and the
// signer must be one of them. Chains, validity times and revocation are not
// looked at: firmware does not look at them either (UEFI 2.10, 32.5.1), and a
// release is withdrawn by its floor, not by a date in a certificate.
package cms

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"

	"golang.org/x/crypto/cryptobyte"
	der "golang.org/x/crypto/cryptobyte/asn1"
)

// Object identifiers (RFC 2315, 14; RFC 8017, A; RFC 5758, 3.2).
var (
	Data       = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 1}
	signedData = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 2}
	attrType   = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 3}
	attrDigest = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 4}
	sha256OID  = asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 1}
	rsaOID     = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 1}
	rsaSHA256  = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 11}
	ecdsaSHA   = asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 2}
)

var (
	context0   = der.Tag(0).ContextSpecific().Constructed()
	context1   = der.Tag(1).ContextSpecific().Constructed()
	errFailure = errors.New("cms: not a SignedData of the form that firmware takes")
)

// ErrSigner says that no trusted certificate made the signature.
var ErrSigner = errors.New("cms: not signed by a trusted certificate")

// ErrSignature says that a trusted certificate is named but its key did not sign this.
var ErrSignature = errors.New("cms: the signature is wrong")

// Content is what is signed. A nil Value means that the content is kept elsewhere ("detached").
type Content struct {
	Type  asn1.ObjectIdentifier
	Value []byte // one DER element
}

// Signer is a key and the certificate that firmware knows it by.
type Signer struct {
	Key         crypto.Signer
	Certificate *x509.Certificate
}

// check refuses a certificate that is not the key's, and keys that firmware cannot use.
func (s Signer) check() error {
	if s.Key == nil || s.Certificate == nil {
		return errors.New("cms: key or certificate is missing")
	}
	if !usable(s.Certificate.PublicKey) {
		return fmt.Errorf("cms: key is a %T, want RSA of 2048 to 4096 bits or ECDSA", s.Certificate.PublicKey)
	}
	public, ok := s.Key.Public().(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !public.Equal(s.Certificate.PublicKey) {
		return errors.New("cms: the certificate is for another key")
	}
	return nil
}

func usable(public any) bool {
	switch k := public.(type) {
	case *rsa.PublicKey:
		return k.Size() >= 256 && k.Size() <= 512
	case *ecdsa.PublicKey:
		return true
	}
	return false
}

// Sign returns a ContentInfo around SignedData over an embedded content. As Authenticode
// and RFC 2315, 9.3 want it, the digest is of the content without its outer tag
// and length, and the signature is over the attributes contentType and messageDigest.
func Sign(c Content, s Signer) ([]byte, error) {
	if err := s.check(); err != nil {
		return nil, err
	}
	input := cryptobyte.String(c.Value)
	var inside cryptobyte.String
	var tag der.Tag
	if !input.ReadAnyASN1(&inside, &tag) || !input.Empty() {
		return nil, errors.New("cms: content is not one DER element")
	}
	attributes, err := attributes(c.Type, sha256.Sum256(inside))
	if err != nil {
		return nil, err
	}
	// Signed as a SET (RFC 2315, 9.3), stored under the context tag 0.
	signature, err := sign(s, wrap(der.SET, attributes))
	if err != nil {
		return nil, err
	}
	return contentInfo(c, attributes, signature, s.Certificate)
}

// contentInfo writes ContentInfo around SignedData.
func contentInfo(c Content, attributes, signature []byte, cert *x509.Certificate) ([]byte, error) {
	body, err := encode(c, attributes, signature, cert)
	if err != nil {
		return nil, err
	}
	var b cryptobyte.Builder
	b.AddASN1(der.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1ObjectIdentifier(signedData)
		b.AddASN1(context0, func(b *cryptobyte.Builder) { b.AddBytes(body) })
	})
	return b.Bytes()
}

// SignDetached returns bare SignedData, without ContentInfo, over a content that is
// kept elsewhere, and without attributes: what UEFI 2.10, 8.2.2 wants for variables.
func SignDetached(content []byte, s Signer) ([]byte, error) {
	if err := s.check(); err != nil {
		return nil, err
	}
	signature, err := sign(s, content)
	if err != nil {
		return nil, err
	}
	return encode(Content{Type: Data}, nil, signature, s.Certificate)
}

func sign(s Signer, message []byte) ([]byte, error) {
	digest := sha256.Sum256(message)
	signature, err := s.Key.Sign(rand.Reader, digest[:], crypto.SHA256)
	if err != nil {
		return nil, fmt.Errorf("cms: sign: %w", err)
	}
	if !good(s.Certificate, message, signature) {
		return nil, errors.New("cms: the key made a signature that does not verify")
	}
	return signature, nil
}

func wrap(tag der.Tag, inside []byte) []byte {
	var b cryptobyte.Builder
	b.AddASN1(tag, func(b *cryptobyte.Builder) { b.AddBytes(inside) })
	return b.BytesOrPanic() // nothing that can fail went in
}

// attributes returns the two signed attributes in the order of DER (X.690, 11.6): the
// shorter one first.
func attributes(content asn1.ObjectIdentifier, digest [32]byte) ([]byte, error) {
	var b cryptobyte.Builder
	attribute := func(oid asn1.ObjectIdentifier, value func(*cryptobyte.Builder)) {
		b.AddASN1(der.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1ObjectIdentifier(oid)
			b.AddASN1(der.SET, value)
		})
	}
	attribute(attrType, func(b *cryptobyte.Builder) { b.AddASN1ObjectIdentifier(content) })
	attribute(attrDigest, func(b *cryptobyte.Builder) { b.AddASN1OctetString(digest[:]) })
	return b.Bytes()
}

func addAlgorithm(b *cryptobyte.Builder, oid asn1.ObjectIdentifier, null bool) {
	b.AddASN1(der.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1ObjectIdentifier(oid)
		if null {
			b.AddASN1NULL()
		}
	})
}

// encode writes SignedData.
func encode(c Content, attributes, signature []byte, cert *x509.Certificate) ([]byte, error) {
	var b cryptobyte.Builder
	b.AddASN1(der.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1Int64(1)
		b.AddASN1(der.SET, func(b *cryptobyte.Builder) { addAlgorithm(b, sha256OID, true) })
		b.AddASN1(der.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1ObjectIdentifier(c.Type)
			if c.Value != nil {
				b.AddASN1(context0, func(b *cryptobyte.Builder) { b.AddBytes(c.Value) })
			}
		})
		b.AddASN1(context0, func(b *cryptobyte.Builder) { b.AddBytes(cert.Raw) })
		b.AddASN1(der.SET, func(b *cryptobyte.Builder) {
			b.AddASN1(der.SEQUENCE, func(b *cryptobyte.Builder) {
				b.AddASN1Int64(1)
				b.AddASN1(der.SEQUENCE, func(b *cryptobyte.Builder) {
					b.AddBytes(cert.RawIssuer)
					b.AddASN1BigInt(cert.SerialNumber)
				})
				addAlgorithm(b, sha256OID, true)
				if attributes != nil {
					b.AddASN1(context0, func(b *cryptobyte.Builder) { b.AddBytes(attributes) })
				}
				_, isRSA := cert.PublicKey.(*rsa.PublicKey)
				if isRSA {
					addAlgorithm(b, rsaOID, true)
				} else {
					addAlgorithm(b, ecdsaSHA, false)
				}
				b.AddASN1OctetString(signature)
			})
		})
	})
	return b.Bytes()
}

// Signed is SignedData that was read but not yet verified.
type Signed struct {
	Content    Content
	issuer     []byte
	serial     *big.Int
	attributes []byte // inside of [0], nil when there are none
	signature  []byte
	carried    []byte // the certificates in the message
}

// Parse reads SignedData with or without a ContentInfo around it. Bytes behind it
// are an error.
func Parse(b []byte) (*Signed, error) {
	input := cryptobyte.String(b)
	var outer cryptobyte.String
	if !input.ReadASN1(&outer, der.SEQUENCE) || !input.Empty() {
		return nil, errFailure
	}
	if outer.PeekASN1Tag(der.OBJECT_IDENTIFIER) {
		var oid asn1.ObjectIdentifier
		var wrapped, inner cryptobyte.String
		if !outer.ReadASN1ObjectIdentifier(&oid) || !oid.Equal(signedData) || !outer.ReadASN1(&wrapped, context0) ||
			!outer.Empty() || !wrapped.ReadASN1(&inner, der.SEQUENCE) || !wrapped.Empty() {
			return nil, errFailure
		}
		outer = inner
	}
	return parse(outer)
}

func parse(in cryptobyte.String) (*Signed, error) {
	var version int
	var algorithms, content, infos, info cryptobyte.String
	if !in.ReadASN1Integer(&version) || version != 1 || !in.ReadASN1(&algorithms, der.SET) || !isSHA256(&algorithms) ||
		!algorithms.Empty() || !in.ReadASN1(&content, der.SEQUENCE) {
		return nil, errFailure
	}
	var s Signed
	var value cryptobyte.String
	var has bool
	if !content.ReadASN1ObjectIdentifier(&s.Content.Type) || !content.ReadOptionalASN1(&value, &has, context0) || !content.Empty() {
		return nil, errFailure
	}
	if has {
		var element cryptobyte.String
		var tag der.Tag
		if s.Content.Value = value; !value.ReadAnyASN1Element(&element, &tag) || !value.Empty() {
			return nil, errFailure
		}
	}
	// Certificates and revocation lists in the message are not believed: trust brings its own.
	var carried cryptobyte.String
	if !in.ReadOptionalASN1(&carried, nil, context0) || !in.SkipOptionalASN1(context1) || !in.ReadASN1(&infos, der.SET) || !in.Empty() ||
		!infos.ReadASN1(&info, der.SEQUENCE) || !infos.Empty() || !s.signerInfo(info) {
		return nil, errFailure
	}
	s.carried = carried
	return &s, nil
}

// Own verifies a message by the certificate that it carries, which must be self-signed, and that it
// is, bit for bit, what [Sign] makes. It says nothing about whom to trust: it
// finds what verifiers leave out of account, when a bit of the message is another one.
func Own(b []byte) (*Signed, error) {
	s, err := Parse(b)
	if err != nil {
		return nil, err
	}
	c, err := x509.ParseCertificate(s.carried)
	if err != nil || c.CheckSignature(c.SignatureAlgorithm, c.RawTBSCertificate, c.Signature) != nil {
		return nil, ErrSigner
	}
	if _, err := s.Verify(nil, []*x509.Certificate{c}); err != nil {
		return nil, err
	}
	again, err := contentInfo(s.Content, s.attributes, s.signature, c)
	if err == nil && !bytes.Equal(again, b) {
		err = errFailure
	}
	return s, err
}

func (s *Signed) signerInfo(in cryptobyte.String) bool {
	var version int
	var name, issuer, attributes cryptobyte.String
	var signature cryptobyte.String
	var has bool
	s.serial = new(big.Int)
	if !in.ReadASN1Integer(&version) || version != 1 || !in.ReadASN1(&name, der.SEQUENCE) ||
		!name.ReadASN1Element(&issuer, der.SEQUENCE) || !name.ReadASN1Integer(s.serial) || !name.Empty() ||
		!isSHA256(&in) || !in.ReadOptionalASN1(&attributes, &has, context0) || !isSignature(&in) ||
		!in.ReadASN1(&signature, der.OCTET_STRING) || !in.SkipOptionalASN1(context1) || !in.Empty() {
		return false
	}
	s.issuer, s.signature = issuer, signature
	if has {
		s.attributes = attributes
	}
	return true
}

func readAlgorithm(in *cryptobyte.String) (oid asn1.ObjectIdentifier, ok bool) {
	var inside, null cryptobyte.String
	if !in.ReadASN1(&inside, der.SEQUENCE) || !inside.ReadASN1ObjectIdentifier(&oid) ||
		!inside.ReadOptionalASN1(&null, nil, der.NULL) || !null.Empty() || !inside.Empty() {
		return nil, false
	}
	return oid, true
}

func isSHA256(in *cryptobyte.String) bool {
	oid, ok := readAlgorithm(in)
	return ok && oid.Equal(sha256OID)
}

// isSignature reads a signature's algorithm. The key of the certificate decides
// which is used; here only unknown ones are refused.
func isSignature(in *cryptobyte.String) bool {
	oid, ok := readAlgorithm(in)
	return ok && (oid.Equal(rsaOID) || oid.Equal(rsaSHA256) || oid.Equal(ecdsaSHA))
}

// Verify checks the signature against trusted certificates and returns the one
// that made it. For an embedded content, content is nil.
func (s *Signed) Verify(content []byte, trusted []*x509.Certificate) (*x509.Certificate, error) {
	if (content == nil) == (s.Content.Value == nil) || content != nil && !s.Content.Type.Equal(Data) {
		return nil, errFailure
	}
	message := content
	if content == nil {
		in := cryptobyte.String(s.Content.Value)
		var inside cryptobyte.String
		var tag der.Tag
		in.ReadAnyASN1(&inside, &tag) // Parse has read it before
		message = inside
	}
	if s.attributes != nil {
		if !s.attributesName(sha256.Sum256(message)) {
			return nil, ErrSignature
		}
		message = wrap(der.SET, s.attributes)
	}
	found := ErrSigner
	for _, c := range trusted {
		if !bytes.Equal(c.RawIssuer, s.issuer) || c.SerialNumber.Cmp(s.serial) != 0 {
			continue
		}
		if good(c, message, s.signature) {
			return c, nil
		}
		found = ErrSignature
	}
	return nil, found
}

// attributesName reports whether the signed attributes name the content's type
// and this digest, each exactly once. Others, such as a signing time, may stand beside them.
func (s *Signed) attributesName(digest [32]byte) bool {
	types, digests := 0, 0
	in := cryptobyte.String(s.attributes)
	for !in.Empty() {
		var attribute, values cryptobyte.String
		var oid, content asn1.ObjectIdentifier
		var got cryptobyte.String
		if !in.ReadASN1(&attribute, der.SEQUENCE) || !attribute.ReadASN1ObjectIdentifier(&oid) ||
			!attribute.ReadASN1(&values, der.SET) || !attribute.Empty() {
			return false
		}
		switch {
		case oid.Equal(attrType):
			if !values.ReadASN1ObjectIdentifier(&content) || !values.Empty() || !content.Equal(s.Content.Type) {
				return false
			}
			types++
		case oid.Equal(attrDigest):
			if !values.ReadASN1(&got, der.OCTET_STRING) || !values.Empty() || !bytes.Equal(got, digest[:]) {
				return false
			}
			digests++
		}
	}
	return types == 1 && digests == 1
}

// good verifies a signature over SHA-256 of the message with the key of a certificate.
func good(c *x509.Certificate, message, signature []byte) bool {
	digest := sha256.Sum256(message)
	switch k := c.PublicKey.(type) {
	case *rsa.PublicKey:
		return usable(k) && rsa.VerifyPKCS1v15(k, crypto.SHA256, digest[:], signature) == nil
	case *ecdsa.PublicKey:
		return ecdsa.VerifyASN1(k, digest[:], signature)
	}
	return false
}
