package scan

import (
	"fmt"
	"strings"

	"golang.org/x/crypto/cryptobyte"
	der "golang.org/x/crypto/cryptobyte/asn1"
)

// Encodings of private keys begin with a sequence whose length depends on the key, and go on with
// a version, by which they are found:
//
//	PKCS #8 (RFC 5958)    version 0 or 1, sequence with the algorithm, octet string
//	PKCS #1 (RFC 8017)    version 0, then eight integers, the modulus first
//	SEC 1 (RFC 5915)      version 1, octet string of the curve's size
//	PKCS #12 (RFC 7292)   version 3, sequence with the type of content
//	PKCS #8, encrypted    sequence with PBES2's identifier, octet string
func derForms() []form {
	return []form{
		{rule: "der", anchor: "\x02\x01\x00\x30", look: lookDER(pkcs8)},
		{rule: "der", anchor: "\x02\x01\x01\x30", look: lookDER(pkcs8)},
		{rule: "der", anchor: "\x02\x01\x00\x02", look: lookDER(pkcs1)},
		{rule: "der", anchor: "\x02\x01\x01\x04", look: lookDER(sec1)},
		{rule: "der", anchor: "\x02\x01\x03\x30", look: lookDER(pkcs12)},
		{rule: "der", anchor: "\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x05\x0d", look: lookEncrypted},
	}
}

// lookDER looks for the sequence whose content begins at the anchor.
func lookDER(check func(cryptobyte.String) string) func(*look, int) (int, int, string) {
	return func(l *look, at int) (int, int, string) {
		for _, head := range []int{2, 3, 4} { // bytes of tag and length
			if at < head || l.b[at-head] != 0x30 {
				continue
			}
			in := cryptobyte.String(l.b[at-head:])
			var body cryptobyte.String
			if !in.ReadASN1(&body, der.SEQUENCE) {
				continue
			}
			if what := check(body); what != "" {
				return at - head, len(l.b) - len(in), what
			}
		}
		return 0, 0, ""
	}
}

// keyAlgorithms are those of PKCS #8, by the bytes of their identifiers.
var keyAlgorithms = []struct{ oid, name string }{
	{"\x2a\x86\x48\x86\xf7\x0d\x01\x01", "RSA"}, {"\x2a\x86\x48\xce\x3d\x02\x01", "elliptic curve"}, {"\x2b\x65\x6e", "X25519"}, {"\x2b\x65\x6f", "X448"},
	{"\x2b\x65\x70", "Ed25519"}, {"\x2b\x65\x71", "Ed448"}, {"\x2a\x86\x48\xce\x38\x04\x01", "DSA"}, {"\x2a\x86\x48\x86\xf7\x0d\x01\x03\x01", "Diffie-Hellman"},
	{"\x60\x86\x48\x01\x65\x03\x04\x03", "ML-DSA"}, {"\x60\x86\x48\x01\x65\x03\x04\x04", "ML-KEM"},
}

func pkcs8(s cryptobyte.String) string {
	var algorithm, oid, key cryptobyte.String
	if !s.SkipASN1(der.INTEGER) || !s.ReadASN1(&algorithm, der.SEQUENCE) || !algorithm.ReadASN1(&oid, der.OBJECT_IDENTIFIER) || !s.ReadASN1(&key, der.OCTET_STRING) || len(key) < 16 {
		return ""
	}
	for _, a := range keyAlgorithms {
		if strings.HasPrefix(string(oid), a.oid) {
			return fmt.Sprintf("private key, %s, PKCS #8", a.name)
		}
	}
	return ""
}

func pkcs1(s cryptobyte.String) string {
	if !s.SkipASN1(der.INTEGER) {
		return ""
	}
	var first cryptobyte.String
	for i := range 8 {
		var n cryptobyte.String
		if !s.ReadASN1(&n, der.INTEGER) {
			return ""
		}
		if i == 0 {
			first = n
		}
	}
	if len(first) < 64 {
		return ""
	}
	return "private key, RSA, PKCS #1"
}

func sec1(s cryptobyte.String) string {
	var key, rest cryptobyte.String
	var tag der.Tag
	if !s.SkipASN1(der.INTEGER) || !s.ReadASN1(&key, der.OCTET_STRING) || len(key) < 20 || len(key) > 72 || !random(key) {
		return ""
	}
	for !s.Empty() {
		if !s.ReadAnyASN1(&rest, &tag) || tag != der.Tag(0).ContextSpecific().Constructed() && tag != der.Tag(1).ContextSpecific().Constructed() {
			return ""
		}
	}
	return "private key, elliptic curve, SEC 1"
}

func pkcs12(s cryptobyte.String) string {
	var content, oid cryptobyte.String
	if !s.SkipASN1(der.INTEGER) || !s.ReadASN1(&content, der.SEQUENCE) || !content.ReadASN1(&oid, der.OBJECT_IDENTIFIER) ||
		!strings.HasPrefix(string(oid), "\x2a\x86\x48\x86\xf7\x0d\x01\x07") {
		return ""
	}
	return "PKCS #12"
}

// lookEncrypted takes EncryptedPrivateKeyInfo: the identifier is the first thing in the second of two sequences.
func lookEncrypted(l *look, at int) (int, int, string) {
	for _, head := range []int{4, 6, 5, 8, 7, 3} { // of both sequences together
		if at < head || l.b[at-head] != 0x30 {
			continue
		}
		in := cryptobyte.String(l.b[at-head:])
		var outer, algorithm, oid, data cryptobyte.String
		if in.ReadASN1(&outer, der.SEQUENCE) && outer.ReadASN1(&algorithm, der.SEQUENCE) && algorithm.ReadASN1(&oid, der.OBJECT_IDENTIFIER) &&
			len(oid) == 9 && outer.ReadASN1(&data, der.OCTET_STRING) && outer.Empty() && len(data) >= 16 {
			return at - head, len(l.b) - len(in), "private key, encrypted, PKCS #8"
		}
	}
	return 0, 0, ""
}
