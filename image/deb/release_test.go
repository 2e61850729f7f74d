package deb_test

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/armor"
	"github.com/ProtonMail/go-crypto/openpgp/clearsign"
	"github.com/ProtonMail/go-crypto/openpgp/packet"

	"lethe/image/deb"
)

var now = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

// newKey makes a key that is valid for life seconds, 0 for ever, from 2026 on.
func newKey(t testing.TB, life uint32) *openpgp.Entity {
	t.Helper()
	e, err := openpgp.NewEntity("archive", "", "archive@example", &packet.Config{Algorithm: packet.PubKeyAlgoEdDSA, KeyLifetimeSecs: life,
		Time: func() time.Time { return time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC) }})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func clearSign(t testing.TB, text string, keys ...*openpgp.Entity) []byte {
	t.Helper()
	var private []*packet.PrivateKey
	for _, k := range keys {
		private = append(private, k.PrivateKey)
	}
	var b bytes.Buffer
	w, err := clearsign.EncodeMulti(&b, private, &packet.Config{Time: func() time.Time { return now.Add(-time.Hour) }})
	if err == nil {
		_, err = w.Write([]byte(text))
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

const release = "Suite: stable\nCodename: trixie\nAcquire-By-Hash: yes\nDate: Sun, 22 Nov 2026 02:09:05 UTC\nValid-Until: Sun, 29 Nov 2026 02:09:05 UTC\nMD5Sum:\n 00 1 x\nSHA256:\n " +
	digestA + " 12 main/binary-amd64/Packages.xz\n"

func TestRelease(t *testing.T) {
	key, other, dead := newKey(t, 0), newKey(t, 0), newKey(t, 3600)
	keys := openpgp.EntityList{dead, key}
	signed := clearSign(t, release, key)
	r, err := deb.OpenRelease(signed, keys, now)
	if err != nil {
		t.Fatal(err)
	}
	f, ok := r.File("main/binary-amd64/Packages.xz")
	if _, none := r.File("x"); !ok || none || f.Size != 12 || r.Codename != "trixie" || r.Suite != "stable" || !r.ByHash || r.Key != fmt.Sprintf("%x", key.PrimaryKey.Fingerprint) ||
		r.Date.Day() != 22 || r.ValidUntil.Day() != 29 {
		t.Errorf("%+v", r)
	}
	// Unknown and expired keys beside a good one do no harm, in any order.
	for _, signers := range [][]*openpgp.Entity{{other, key}, {key, other}, {dead, key}, {other, dead, key}} {
		if _, err := deb.OpenRelease(clearSign(t, release, signers...), keys, now); err != nil {
			t.Error(err)
		}
	}
	with := func(old, new string) []byte { return clearSign(t, strings.Replace(release, old, new, 1), key) }
	for name, tt := range map[string]struct {
		signed []byte
		want   error // nil for any
	}{
		"unknown key":     {clearSign(t, release, other), deb.ErrSignature},
		"expired key":     {clearSign(t, release, dead), deb.ErrSignature},
		"changed text":    {bytes.Replace(signed, []byte(" 12 "), []byte(" 13 "), 1), deb.ErrSignature},
		"no signature":    {[]byte(release), deb.ErrSignature},
		"text before":     {append([]byte("Suite: x\n"), signed...), deb.ErrSignature},
		"text after":      {append(bytes.Clone(signed), "Suite: x\n"...), deb.ErrSignature},
		"other packets":   {stripped(t, signed), deb.ErrSignature},
		"too long":        {bytes.Repeat([]byte("x"), deb.MaxRelease+1), nil},
		"expired":         {with("Valid-Until: Sun, 29", "Valid-Until: Mon, 23"), deb.ErrExpired},
		"future":          {with("Date: Sun, 22 Nov", "Date: Wed, 25 Nov"), deb.ErrFuture},
		"no date":         {with("Date: Sun", "Day: Sun"), nil},
		"other zone":      {with("2026 02:09:05 UTC\nV", "2026 02:09:05 CET\nV"), nil},
		"bad end":         {with("Valid-Until: Sun, 29", "Valid-Until: soon"), nil},
		"bad digest":      {with(digestA, "00"), nil},
		"bad path":        {with("main/", "../main/"), nil},
		"bad size":        {with(" 12 ", " -12 "), nil},
		"two digests":     {with(" "+digestA, " "+strings.Repeat("0", 64)+" 12 main/binary-amd64/Packages.xz\n "+digestA), nil},
		"two paragraphs":  {with("MD5Sum", "\nMD5Sum"), nil},
		"nothing":         {clearSign(t, "\n", key), nil},
		"not a paragraph": {clearSign(t, "hello\n", key), nil},
		"words":           {with(" 12 ", " 12 13 "), nil},
	} {
		r, err := deb.OpenRelease(tt.signed, keys, now)
		if err == nil || tt.want != nil && !errors.Is(err, tt.want) || tt.want == nil && errors.Is(err, deb.ErrSignature) {
			t.Errorf("%s: %+v, %v", name, r, err)
		}
	}
	stable, err := deb.OpenRelease(with("Valid-Until: Sun, 29 Nov 2026 02:09:05 UTC\n", ""), keys, now)
	if err != nil || !stable.ValidUntil.IsZero() {
		t.Error(stable, err)
	}
	// Every single bit of the signed text counts.
	text := bytes.Index(signed, []byte("Suite"))
	end := bytes.Index(signed, []byte("-----BEGIN PGP SIGNATURE"))
	for i := text; i < end-1; i += 7 {
		flipped := bytes.Clone(signed)
		flipped[i] ^= 1
		if _, err := deb.OpenRelease(flipped, keys, now); err == nil {
			t.Errorf("byte %d was changed", i)
		}
	}
}

// stripped gives signed with a packet in place of the signature that is none.
func stripped(t testing.TB, signed []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	b.Write(signed[:bytes.Index(signed, []byte("-----BEGIN PGP SIGNATURE"))])
	w, err := armor.Encode(&b, "PGP SIGNATURE", nil)
	if err == nil {
		err = packet.NewUserId("a", "", "b@example").Serialize(w)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	return append(b.Bytes(), '\n')
}

func TestKeyring(t *testing.T) {
	var binary, armoured bytes.Buffer
	if err := newKey(t, 0).Serialize(&binary); err != nil {
		t.Fatal(err)
	}
	w, err := armor.Encode(&armoured, openpgp.PublicKeyType, nil)
	if err == nil {
		_, err = w.Write(binary.Bytes())
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range [][]byte{binary.Bytes(), armoured.Bytes()} {
		if keys, err := deb.ReadKeyring(b); err != nil || len(keys) != 1 {
			t.Error(keys, err)
		}
	}
	for _, b := range []string{"", "hello", "-----BEGIN PGP PUBLIC KEY BLOCK-----\n"} {
		if keys, err := deb.ReadKeyring([]byte(b)); err == nil {
			t.Errorf("%q gives %v", b, keys)
		}
	}
}

func FuzzRelease(f *testing.F) {
	key := newKey(f, 0)
	signed := clearSign(f, release, key)
	f.Add(signed)
	f.Add(stripped(f, signed))
	f.Add([]byte("-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA512\n\nx\n-----BEGIN PGP SIGNATURE-----\n\n=AAAA\n-----END PGP SIGNATURE-----\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := deb.OpenRelease(b, openpgp.EntityList{key}, now)
		if err == nil && (r.Codename != "trixie" || r.Date.Day() != 22) {
			t.Errorf("a forgery: %q", b)
		}
		_, _ = deb.ReadKeyring(b)
	})
}
