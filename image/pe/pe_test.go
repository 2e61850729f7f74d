package pe_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"lethe/internal/testkit"

	"lethe/image/cms"
	"lethe/image/pe"
)

// Images of systemd, built by other people's tools (package systemd-boot-efi).
var real = []string{"/usr/lib/systemd/boot/efi/systemd-bootx64.efi", "/usr/lib/systemd/boot/efi/linuxx64.efi.stub"}

var keys = sync.OnceValue(func() map[string]crypto.Signer {
	r, _ := rsa.GenerateKey(rand.Reader, 2048)
	e, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	return map[string]crypto.Signer{"rsa": r, "ecdsa": e}
})

func signer(t testing.TB, key crypto.Signer, name string) cms.Signer {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(77), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Unix(0, 0), NotAfter: time.Unix(1<<32, 0),
	}
	raw, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(raw)
	if err != nil {
		t.Fatal(err)
	}
	return cms.Signer{Key: key, Certificate: c}
}

const (
	headers  = 0x200
	optional = 64 + 24
	sections = optional + 240
)

// small returns a PE32+ image with two sections and some bytes behind them.
func small() []byte {
	b := make([]byte, headers+0x200+0x100+5)
	le := binary.LittleEndian
	b[0], b[1] = 'M', 'Z'
	le.PutUint32(b[0x3c:], 64)
	copy(b[64:], "PE\x00\x00\x64\x86")
	le.PutUint16(b[64+6:], 2)
	le.PutUint16(b[64+20:], 240)
	le.PutUint16(b[optional:], 0x20b)
	le.PutUint32(b[optional+60:], headers)
	le.PutUint32(b[optional+64:], 0x12345678) // CheckSum
	le.PutUint32(b[optional+108:], 16)
	// The second section comes first in the file.
	for n, s := range [][2]uint32{{0x100, headers + 0x200}, {0x200, headers}} {
		h := b[sections+40*n:]
		copy(h, []byte{'.', 's', byte('0' + n)})
		le.PutUint32(h[16:], s[0])
		le.PutUint32(h[20:], s[1])
	}
	for i := headers; i < len(b); i++ {
		b[i] = byte(i * 7)
	}
	return b
}

func images(t *testing.T) map[string][]byte {
	all := map[string][]byte{"small": small()}
	for _, path := range real {
		all[filepath.Base(path)] = testkit.Must[[]byte](t)(os.ReadFile(path))
	}
	return all
}

// TestSignStrip: signing changes nothing but the table, stripping gives the reserved image back.
func TestSignStrip(t *testing.T) {
	for name, unsigned := range images(t) {
		for kind, key := range keys() {
			t.Run(name+" "+kind, func(t *testing.T) {
				s := signer(t, key, "release")
				reserved := testkit.Must[[]byte](t)(pe.Reserve(unsigned, 4001))
				image := testkit.Must[*pe.Image](t)(pe.Parse(reserved))
				table := image.Table()
				if table.Length != 4008 || table.Offset+table.Length != len(reserved) || table.Offset-len(unsigned) > 7 {
					t.Errorf("table %+v for %d bytes", table, len(unsigned))
				}
				before := testkit.Must[*pe.Image](t)(pe.Parse(unsigned))
				if before.Digest() != image.Digest() || before.Table().Length != 0 {
					t.Error("reserving changed the digest")
				}
				if _, err := pe.Verify(reserved, []*x509.Certificate{s.Certificate}); !errors.Is(err, pe.ErrUnsigned) {
					t.Errorf("reserved image: %v", err)
				}
				signed := testkit.Must[[]byte](t)(pe.Sign(reserved, s))
				if len(signed) != len(reserved) || !bytes.Equal(signed[:table.Offset], reserved[:table.Offset]) {
					t.Error("signing changed bytes outside the table")
				}
				if got, err := pe.Verify(signed, []*x509.Certificate{s.Certificate}); err != nil || got != s.Certificate {
					t.Errorf("verify: %v", err)
				}
				if _, err := pe.Verify(signed, []*x509.Certificate{signer(t, key, "stranger").Certificate}); !errors.Is(err, cms.ErrSigner) {
					t.Errorf("a stranger's certificate: %v", err)
				}
				if !bytes.Equal(testkit.Must[[]byte](t)(pe.Strip(signed)), reserved) {
					t.Error("stripping does not give the reserved image back")
				}
				if kind == "rsa" && !bytes.Equal(testkit.Must[[]byte](t)(pe.Sign(reserved, s)), signed) {
					t.Error("signing twice gives different bytes")
				}
			})
		}
	}
}

// TestTwoSigners: several keys sign one image, each is enough.
func TestTwoSigners(t *testing.T) {
	a, b := signer(t, keys()["rsa"], "a"), signer(t, keys()["ecdsa"], "b")
	signed := testkit.Must[[]byte](t)(pe.Sign(testkit.Must[[]byte](t)(pe.Reserve(small(), 6000)), a, b))
	for _, s := range []cms.Signer{a, b} {
		if got, err := pe.Verify(signed, []*x509.Certificate{s.Certificate}); err != nil || got != s.Certificate {
			t.Errorf("%v", err)
		}
	}
}

// TestReferees: sbverify and pesign, other people's readers, agree with us.
func TestReferees(t *testing.T) {
	for _, path := range real {
		t.Run(filepath.Base(path), func(t *testing.T) {
			dir := t.TempDir()
			file := func(name string) string { return filepath.Join(dir, name) }
			s := signer(t, keys()["rsa"], "release")
			write(t, file("cert.pem"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate.Raw}))
			private, _ := x509.MarshalPKCS8PrivateKey(s.Key)
			write(t, file("key.pem"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}))
			reserved := testkit.Must[[]byte](t)(pe.Reserve(testkit.Must[[]byte](t)(os.ReadFile(path)), 4096))
			signed := testkit.Must[[]byte](t)(pe.Sign(reserved, s))
			write(t, file("signed"), signed)
			if out, err := exec.Command("sbverify", "--cert", file("cert.pem"), file("signed")).CombinedOutput(); err != nil {
				t.Errorf("sbverify: %v\n%s", err, out)
			}
			digest := testkit.Must[*pe.Image](t)(pe.Parse(signed)).Digest()
			out, err := exec.Command("pesign", "-h", "-i", file("signed")).CombinedOutput()
			if err != nil || !strings.Contains(string(out), hex.EncodeToString(digest[:])) {
				t.Errorf("pesign has another digest than %x: %v\n%s", digest, err, out)
			}
			flipped := bytes.Clone(signed)
			flipped[len(flipped)/2] ^= 1
			write(t, file("flipped"), flipped)
			if err := exec.Command("sbverify", "--cert", file("cert.pem"), file("flipped")).Run(); err == nil {
				t.Error("sbverify accepts a flipped bit")
			}
			// And the other way round: sbsign signs, we verify.
			if out, err := exec.Command("sbsign", "--key", file("key.pem"), "--cert", file("cert.pem"), "--output", file("theirs"), path).CombinedOutput(); err != nil {
				t.Fatalf("sbsign: %v\n%s", err, out)
			}
			if _, err := pe.Verify(testkit.Must[[]byte](t)(os.ReadFile(file("theirs"))), []*x509.Certificate{s.Certificate}); err != nil {
				t.Errorf("sbsign's signature: %v", err)
			}
		})
	}
}

func write(t *testing.T, path string, b []byte) {
	t.Helper()
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestFlips flips a bit in every byte of a signed image: what the signature does
// not find is what the package comment says.
func TestFlips(t *testing.T) {
	s := signer(t, keys()["ecdsa"], "release")
	signed := testkit.Must[[]byte](t)(pe.Sign(testkit.Must[[]byte](t)(pe.Reserve(small(), 1024)), s))
	table := testkit.Must[*pe.Image](t)(pe.Parse(signed)).Table()
	certificate := bytes.Index(signed, s.Certificate.Raw)
	for at := range signed {
		b := bytes.Clone(signed)
		b[at] ^= 1 << (at % 8)
		_, err := pe.Verify(b, []*x509.Certificate{s.Certificate})
		ignored := at >= optional+64 && at < optional+68 || at >= certificate && at < certificate+len(s.Certificate.Raw)
		if ignored != (err == nil) && at < table.Offset {
			t.Errorf("byte %d flipped: %v", at, err)
		}
		if err == nil && at >= table.Offset {
			// The table holds bytes that say nothing: the certificate, which trust
			// brings itself, and names of things that have no choice. Stripping removes all.
			if stripped := testkit.Must[[]byte](t)(pe.Strip(b)); !bytes.Equal(stripped, testkit.Must[[]byte](t)(pe.Strip(signed))) {
				t.Errorf("byte %d flipped is not stripped", at)
			}
		}
	}
}

// TestIntact flips a bit in every byte of a signed image: what the signature does not find, Intact does.
func TestIntact(t *testing.T) {
	for kind, key := range keys() {
		s := signer(t, key, "release")
		reserved := testkit.Must[[]byte](t)(pe.Reserve(small(), 4096))
		one, two := testkit.Must[[]byte](t)(pe.Sign(reserved, s)), testkit.Must[[]byte](t)(pe.Sign(reserved, s, signer(t, keys()["ecdsa"], "another")))
		for name, b := range map[string][]byte{"reserved": reserved, "signed": one, "signed twice": two} {
			if err := pe.Intact(b); err != nil {
				t.Errorf("%s %s: %v", kind, name, err)
			}
		}
		for at := range one {
			b := bytes.Clone(one)
			b[at] ^= 1 << (at % 8)
			if pe.Intact(b) == nil {
				t.Errorf("%s: byte %d flipped, and nobody noticed", kind, at)
			}
		}
	}
	le := binary.LittleEndian
	reserved := testkit.Must[[]byte](t)(pe.Reserve(small(), 1024))
	for name, b := range map[string][]byte{"no image": nil, "no table": small(), "a checksum": func() []byte {
		b := bytes.Clone(reserved)
		le.PutUint32(b[optional+64:], 1)
		return b
	}()} {
		if pe.Intact(b) == nil {
			t.Errorf("%s is intact", name)
		}
	}
}

// TestRefusals feeds what is not an image, each beside a twin that is.
func TestRefusals(t *testing.T) {
	le := binary.LittleEndian
	put32 := func(at int, v uint32) func([]byte) []byte {
		return func(b []byte) []byte { le.PutUint32(b[at:], v); return b }
	}
	put16 := func(at int, v uint16) func([]byte) []byte {
		return func(b []byte) []byte { le.PutUint16(b[at:], v); return b }
	}
	size := uint32(len(small()))
	directory := optional + 112 + 32
	for _, c := range []struct {
		name         string
		wrong, right func([]byte) []byte
	}{
		{"short", func(b []byte) []byte { return b[:63] }, func(b []byte) []byte { return b }},
		{"no MZ", put16(0, 0x5a4e), put16(0, 0x5a4d)},
		{"header offset in the DOS header", put32(0x3c, 60), put32(0x3c, 64)},
		{"header offset beyond the end", put32(0x3c, 0xffffffff), put32(0x3c, 64)},
		{"header at the end", put32(0x3c, size-23), put32(0x3c, 64)},
		{"no PE", put32(64, 1), put32(64, 0x4550)},
		{"PE32", put16(optional, 0x10b), put16(optional, 0x20b)},
		{"short optional header", put16(64+20, 151), put16(64+20, 240)},
		{"long optional header", put16(64+20, 0xffff), put16(64+20, 240)},
		{"no certificate directory", put32(optional+108, 4), put32(optional+108, 5)},
		{"too many sections", put16(64+6, 97), put16(64+6, 2)},
		{"sections beyond the headers", put16(64+6, 5), put16(64+6, 4)},
		{"headers beyond the file", put32(optional+60, size+1), put32(optional+60, headers)},
		{"gap", put32(sections+40+20, headers+1), put32(sections+40+20, headers)},
		{"overlap", put32(sections+40+16, 0x201), put32(sections+40+16, 0x200)},
		{"section beyond the end", put32(sections+16, 0xffffffff), put32(sections+16, 0x100)},
		{"table not aligned", put32(directory, 4), put32(directory, 0)},
		{"table of no size", put32(directory, size&^7), put32(directory, 0)},
		{"table of no offset", put32(directory+4, 8), put32(directory+4, 0)},
	} {
		t.Run(c.name, func(t *testing.T) {
			if _, err := pe.Parse(c.wrong(small())); !errors.Is(err, pe.ErrFormat) {
				t.Errorf("wrong: %v", err)
			}
			if _, err := pe.Parse(c.right(small())); err != nil {
				t.Errorf("right: %v", err)
			}
			for name, f := range map[string]func([]byte) ([]byte, error){
				"strip":   pe.Strip,
				"reserve": func(b []byte) ([]byte, error) { return pe.Reserve(b, 4096) },
				"sign":    func(b []byte) ([]byte, error) { return pe.Sign(b) },
				"verify":  func(b []byte) ([]byte, error) { _, err := pe.Verify(b, nil); return nil, err },
			} {
				if _, err := f(c.wrong(small())); !errors.Is(err, pe.ErrFormat) {
					t.Errorf("%s: %v", name, err)
				}
			}
		})
	}
}

func TestSections(t *testing.T) {
	b := small()
	binary.LittleEndian.PutUint32(b[sections+8:], 0x80)      // less in memory than in the file
	binary.LittleEndian.PutUint32(b[sections+40+8:], 0x1000) // more
	got := testkit.Must[*pe.Image](t)(pe.Parse(b)).Sections()
	if len(got) != 2 || got[0].Name != ".s0" || !bytes.Equal(got[0].Data, b[headers+0x200:headers+0x280]) ||
		got[1].Name != ".s1" || !bytes.Equal(got[1].Data, b[headers:headers+0x200]) {
		t.Errorf("%+v", got)
	}
	binary.LittleEndian.PutUint32(b[sections+16:], 0) // .bss
	binary.LittleEndian.PutUint32(b[sections+20:], 99)
	if got := testkit.Must[*pe.Image](t)(pe.Parse(b)).Sections(); len(got) != 2 || len(got[0].Data) != 0 {
		t.Errorf("%+v", got)
	}
}

func TestSpace(t *testing.T) {
	s := signer(t, keys()["rsa"], "release")
	reserved := testkit.Must[[]byte](t)(pe.Reserve(small(), 4096))
	signed := testkit.Must[[]byte](t)(pe.Sign(reserved, s))
	for name, b := range map[string][]byte{"signed": signed, "nothing reserved": small()} {
		if _, err := pe.Sign(b, s); !errors.Is(err, pe.ErrReserved) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := pe.Sign(testkit.Must[[]byte](t)(pe.Reserve(small(), pe.MinReserve)), s, s, s); !errors.Is(err, pe.ErrSpace) {
		t.Errorf("little space: %v", err)
	}
	if _, err := pe.Sign(reserved); err == nil {
		t.Error("nobody signed")
	}
	if _, err := pe.Sign(reserved, cms.Signer{}); err == nil {
		t.Error("an empty signer signed")
	}
	if _, err := pe.Reserve(reserved, 4096); err == nil {
		t.Error("reserved twice")
	}
	for _, n := range []int{pe.MinReserve - 1, pe.MaxReserve + 1} {
		if _, err := pe.Reserve(small(), n); err == nil {
			t.Errorf("reserved %d bytes", n)
		}
	}
}

// TestTables damages the certificate table.
func TestTables(t *testing.T) {
	s := signer(t, keys()["rsa"], "release")
	trusted := []*x509.Certificate{s.Certificate}
	reserved := testkit.Must[[]byte](t)(pe.Reserve(small(), 4096))
	signed := testkit.Must[[]byte](t)(pe.Sign(reserved, s))
	at := testkit.Must[*pe.Image](t)(pe.Parse(signed)).Table().Offset
	le := binary.LittleEndian
	for name, change := range map[string]func(b []byte){
		"length 7":              func(b []byte) { le.PutUint32(b[at:], 7) },
		"length beyond":         func(b []byte) { le.PutUint32(b[at:], 4097) },
		"length zero then more": func(b []byte) { le.PutUint32(b[at:], 0) },
		"another type":          func(b []byte) { le.PutUint16(b[at+6:], 1) },
		"another revision":      func(b []byte) { le.PutUint16(b[at+4:], 0x100) },
		"junk in the padding":   func(b []byte) { b[len(b)-1] = 1 },
		"not a message":         func(b []byte) { b[at+8] = 4 },
	} {
		b := bytes.Clone(signed)
		change(b)
		if _, err := pe.Verify(b, trusted); !errors.Is(err, pe.ErrFormat) {
			t.Errorf("%s: %v", name, err)
		}
	}
	other := small()
	other[headers] ^= 1
	moved := testkit.Must[[]byte](t)(pe.Reserve(other, 4096))
	copy(moved[at:], signed[at:])
	if _, err := pe.Verify(moved, trusted); !errors.Is(err, pe.ErrDigest) {
		t.Errorf("signature of another image: %v", err)
	}
	entry := func(message []byte) []byte {
		b := bytes.Clone(reserved)
		le.PutUint32(b[at:], 4096)
		le.PutUint16(b[at+4:], 0x200)
		le.PutUint16(b[at+6:], 2)
		copy(b[at+8:], message)
		return b
	}
	if _, err := pe.Verify(entry([]byte{0x30, 0}), trusted); err == nil {
		t.Error("an empty message verified")
	}
	plain := testkit.Must[[]byte](t)(cms.Sign(cms.Content{Type: cms.Data, Value: []byte{4, 1, 1}}, s))
	if _, err := pe.Verify(entry(plain), trusted); !errors.Is(err, pe.ErrFormat) {
		t.Errorf("a signature over something else: %v", err)
	}
}

func FuzzVerify(f *testing.F) {
	s := signer(f, keys()["ecdsa"], "release")
	reserved := testkit.Must[[]byte](f)(pe.Reserve(small(), 1024))
	f.Add(small())
	f.Add(reserved)
	f.Add(testkit.Must[[]byte](f)(pe.Sign(reserved, s)))
	want := testkit.Must[*pe.Image](f)(pe.Parse(reserved)).Digest()
	f.Fuzz(func(t *testing.T, b []byte) {
		i, err := pe.Parse(b)
		if err != nil {
			return
		}
		if _, err := pe.Verify(b, []*x509.Certificate{s.Certificate}); err == nil && i.Digest() != want {
			t.Error("a signature verified for an image that nobody signed")
		}
		stripped, err := pe.Strip(b)
		if err != nil || len(stripped) != len(b) {
			t.Errorf("strip: %v", err)
		}
		if again := testkit.Must[*pe.Image](t)(pe.Parse(stripped)); again.Digest() != i.Digest() || again.Table() != i.Table() {
			t.Error("stripping changed the digest")
		}
	})
}
