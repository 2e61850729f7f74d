package secureboot_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"lethe/internal/testkit"

	"lethe/fault"
	"lethe/image/cms"
	"lethe/image/secureboot"
)

// Variable stores of Debian's package ovmf.
const (
	blank    = "/usr/share/OVMF/OVMF_VARS_4M.fd"
	snakeoil = "/usr/share/OVMF/OVMF_VARS_4M.snakeoil.fd"
)

const ownerText = "6c657468-6500-4f53-9b1d-2e0a7c44f1d8"

var at = time.Date(2026, 11, 23, 9, 8, 7, 0, time.UTC)

var keys = sync.OnceValue(func() []crypto.Signer {
	a, _ := rsa.GenerateKey(rand.Reader, 2048)
	b, _ := rsa.GenerateKey(rand.Reader, 2048)
	c, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	return []crypto.Signer{a, b, c}
})

func signer(t testing.TB, i int, name string) cms.Signer {
	t.Helper()
	return cms.Signer{Key: keys()[i], Certificate: testkit.Must[*x509.Certificate](t)(secureboot.Certificate(name, keys()[i]))}
}

func run(t *testing.T, name string, args ...string) []byte {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", name, err, out)
	}
	return out
}

// files writes things that other programs read.
func files(t *testing.T, content map[string][]byte) func(string) string {
	t.Helper()
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	for name, b := range content {
		if err := os.WriteFile(path(name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return path
}

func certPEM(s cms.Signer) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate.Raw})
}

func keyPEM(t *testing.T, s cms.Signer) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: testkit.Must[[]byte](t)(x509.MarshalPKCS8PrivateKey(s.Key))})
}

func TestCertificate(t *testing.T) {
	a, b := signer(t, 0, "Lethe db"), signer(t, 0, "Lethe db")
	if !bytes.Equal(a.Certificate.Raw, b.Certificate.Raw) {
		t.Error("one RSA key has two certificates of one name")
	}
	if a.Certificate.Subject.CommonName != "Lethe db" || a.Certificate.SerialNumber.Sign() <= 0 {
		t.Errorf("%v %v", a.Certificate.Subject, a.Certificate.SerialNumber)
	}
	if _, err := secureboot.Certificate("x", broken{keys()[0]}); err == nil {
		t.Error("a broken key has a certificate")
	}
	if _, err := secureboot.Certificate("x", strange{keys()[0]}); err == nil {
		t.Error("a strange key has a certificate")
	}
}

type broken struct{ crypto.Signer }

func (broken) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) {
	return nil, errors.New("gone")
}

type strange struct{ crypto.Signer }

func (strange) Public() crypto.PublicKey { return "strange" }

// TestLists compares with efitools, which write and read the same bytes.
func TestLists(t *testing.T) {
	s := signer(t, 0, "Lethe db")
	ours := secureboot.Lists(secureboot.Certificates(s.Certificate))
	path := files(t, map[string][]byte{"cert.pem": certPEM(s), "ours.esl": ours})
	run(t, "cert-to-efi-sig-list", "-g", ownerText, path("cert.pem"), path("theirs.esl"))
	if theirs := testkit.Must[[]byte](t)(os.ReadFile(path("theirs.esl"))); !bytes.Equal(ours, theirs) {
		t.Errorf("got %x, efitools write %x", ours, theirs)
	}
	run(t, "sig-list-to-certs", path("ours.esl"), path("out"))
	if der := testkit.Must[[]byte](t)(os.ReadFile(path("out-0.der"))); !bytes.Equal(der, s.Certificate.Raw) {
		t.Error("efitools read another certificate")
	}
	sum := sha256.Sum256([]byte("withdrawn"))
	all := append(secureboot.Certificates(s.Certificate, signer(t, 1, "other").Certificate), secureboot.Entry{Owner: secureboot.Owner, Hash: sum[:]})
	again := testkit.Must[[]secureboot.Entry](t)(secureboot.ParseLists(secureboot.Lists(all)))
	if len(again) != 3 || !bytes.Equal(secureboot.Lists(again), secureboot.Lists(all)) || !bytes.Equal(again[2].Hash, sum[:]) {
		t.Errorf("%d entries came back", len(again))
	}
}

func TestListsRefused(t *testing.T) {
	good := secureboot.Lists([]secureboot.Entry{{Hash: make([]byte, 32)}})
	put := func(offset int, v uint32) []byte {
		b := bytes.Clone(good)
		binary.LittleEndian.PutUint32(b[offset:], v)
		return b
	}
	if _, err := secureboot.ParseLists(good); err != nil {
		t.Errorf("twin: %v", err)
	}
	for name, b := range map[string][]byte{
		"short": good[:27], "another kind": put(0, 1), "size beyond": put(16, uint32(len(good)+1)), "size below": put(16, 27),
		"a header": put(20, 1), "entries of no size": put(24, 0), "entries of owners": put(24, 16), "half an entry": put(24, 47), "cut": good[:len(good)-1],
	} {
		if _, err := secureboot.ParseLists(b); fault.Of(err) != fault.Invalid {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestUpdate compares with efitools and OpenSSL in both directions.
func TestUpdate(t *testing.T) {
	kek, db := signer(t, 0, "Lethe KEK"), signer(t, 1, "Lethe db")
	entries := secureboot.Certificates(db.Certificate)
	for _, v := range []secureboot.Variable{secureboot.PK, secureboot.KEK, secureboot.DB, secureboot.DBX} {
		update := testkit.Must[[]byte](t)(secureboot.Update(v, entries, at, kek))
		if !bytes.Equal(update, testkit.Must[[]byte](t)(secureboot.Update(v, entries, at, kek))) {
			t.Error("two updates differ")
		}
		when, got, err := secureboot.ParseUpdate(v, update, []*x509.Certificate{kek.Certificate})
		if err != nil || !when.Equal(at) || len(got) != 1 || !bytes.Equal(got[0].Certificate, db.Certificate.Raw) {
			t.Errorf("%s: %v, %v", v, when, err)
		}
		lists := secureboot.Lists(entries)
		path := files(t, map[string][]byte{"list.esl": lists, "cert.pem": certPEM(kek), "key.pem": keyPEM(t, kek)})
		run(t, "sign-efi-sig-list", "-o", "-t", "2026-11-23 09:08:07", string(v), path("list.esl"), path("bundle"))
		if theirs := testkit.Must[[]byte](t)(os.ReadFile(path("bundle"))); !bytes.Equal(theirs, secureboot.SignedBytes(v, at, lists)) {
			t.Errorf("%s: efitools sign other bytes: %x", v, theirs)
		}
		run(t, "sign-efi-sig-list", "-t", "2026-11-23 09:08:07", "-c", path("cert.pem"), "-k", path("key.pem"), string(v), path("list.esl"), path("theirs.auth"))
		theirs := testkit.Must[[]byte](t)(os.ReadFile(path("theirs.auth")))
		if _, _, err := secureboot.ParseUpdate(v, theirs, []*x509.Certificate{kek.Certificate}); err != nil {
			t.Errorf("%s: efitools' update: %v", v, err)
		}
	}
}

func TestUpdateRefused(t *testing.T) {
	kek, db := signer(t, 0, "Lethe KEK"), signer(t, 2, "Lethe db")
	entries := secureboot.Certificates(db.Certificate)
	trusted := []*x509.Certificate{kek.Certificate}
	good := testkit.Must[[]byte](t)(secureboot.Update(secureboot.DB, entries, at, kek))
	check := func(v secureboot.Variable, b []byte, by []*x509.Certificate) error {
		_, _, err := secureboot.ParseUpdate(v, b, by)
		return err
	}
	if err := check(secureboot.DB, good, trusted); err != nil {
		t.Errorf("twin: %v", err)
	}
	if err := check(secureboot.DBX, good, trusted); !errors.Is(err, cms.ErrSignature) {
		t.Errorf("db's update as dbx's: %v", err)
	}
	if err := check(secureboot.DB, good, []*x509.Certificate{db.Certificate}); !errors.Is(err, cms.ErrSigner) {
		t.Errorf("another signer: %v", err)
	}
	if err := check("BootOrder", good, trusted); err == nil {
		t.Error("BootOrder is a key")
	}
	// Every byte but those of the certificate inside, which trust brings itself.
	inside := bytes.Index(good, kek.Certificate.Raw)
	for i := range good {
		if i >= inside-4 && i < inside+len(kek.Certificate.Raw) {
			continue
		}
		b := bytes.Clone(good)
		b[i] ^= 1
		if err := check(secureboot.DB, b, trusted); err == nil {
			t.Errorf("byte %d does not matter", i)
		}
	}
	for i := range good {
		if err := check(secureboot.DB, good[:i], trusted); err == nil {
			t.Errorf("the first %d bytes are an update", i)
		}
	}
	if _, err := secureboot.Update("BootOrder", entries, at, kek); err == nil {
		t.Error("BootOrder was updated")
	}
	if _, err := secureboot.Update(secureboot.DB, entries, time.Time{}, kek); err == nil {
		t.Error("the year 1")
	}
	if _, err := secureboot.Update(secureboot.DB, entries, at, cms.Signer{}); err == nil {
		t.Error("nobody signed")
	}
	_, ed, _ := ed25519.GenerateKey(rand.Reader)
	if _, err := secureboot.Update(secureboot.DB, entries, at, cms.Signer{Key: ed, Certificate: kek.Certificate}); err == nil {
		t.Error("a key that firmware does not know signed")
	}
}

func all(t testing.TB) secureboot.Keys {
	c := func(i int, name string) []secureboot.Entry {
		return secureboot.Certificates(signer(t, i, name).Certificate)
	}
	return secureboot.Keys{PK: c(0, "PK"), KEK: c(0, "KEK"), DB: c(1, "db")}
}

// TestEnrol compares the form of our store with one that firmware itself has written:
// Debian enrolled its own keys by booting OVMF.
func TestEnrol(t *testing.T) {
	base := testkit.Must[[]byte](t)(os.ReadFile(blank))
	sample := testkit.Must[[]secureboot.Stored](t)(secureboot.ReadStore(testkit.Must[[]byte](t)(os.ReadFile(snakeoil))))
	k := all(t)
	sum := sha256.Sum256([]byte("withdrawn"))
	for _, want := range []int{5, 6} {
		name := "without dbx"
		if want == 6 {
			name = "with dbx"
			k.DBX = []secureboot.Entry{{Owner: secureboot.Owner, Hash: sum[:]}}
		}
		store := testkit.Must[[]byte](t)(secureboot.Enrol(base, k, at))
		if len(store) != len(base) {
			t.Errorf("%s: the store has another size", name)
		}
		before := testkit.Must[[]secureboot.Stored](t)(secureboot.ReadStore(base))
		after := testkit.Must[[]secureboot.Stored](t)(secureboot.ReadStore(store))
		if len(after) != len(before)+want {
			t.Errorf("%s: %d variables became %d", name, len(before), len(after))
		}
		for _, v := range after[len(before):] {
			n := slices.IndexFunc(sample, func(s secureboot.Stored) bool { return s.Name == v.Name })
			if n < 0 {
				t.Errorf("%s: firmware writes no %s", name, v.Name)
				continue
			}
			if s := sample[n]; s.Vendor != v.Vendor || s.Attributes != v.Attributes || len(v.Time) != 16 {
				t.Errorf("%s: %s: %x %x, firmware writes %x %x", name, v.Name, v.Vendor, v.Attributes, s.Vendor, s.Attributes)
			}
			if v.Name == "PK" || v.Name == "db" {
				if got, err := secureboot.ParseLists(v.Data); err != nil || len(got) != 1 {
					t.Errorf("%s: %v", v.Name, err)
				}
				if got, err := secureboot.ParseLists(sample[n].Data); err != nil || len(got) == 0 {
					t.Errorf("firmware's %s: %v", v.Name, err)
				}
			}
		}
		if _, err := secureboot.Enrol(store, k, at); fault.Of(err) != fault.Conflict {
			t.Errorf("enrolled twice: %v", err)
		}
	}
}

func TestEnrolRefused(t *testing.T) {
	base := testkit.Must[[]byte](t)(os.ReadFile(blank))
	k := all(t)
	for name, change := range map[string]func(k *secureboot.Keys){
		"no PK": func(k *secureboot.Keys) { k.PK = nil }, "no KEK": func(k *secureboot.Keys) { k.KEK = nil }, "no db": func(k *secureboot.Keys) { k.DB = nil },
		"two PK": func(k *secureboot.Keys) { k.PK = append(k.PK, k.DB...) },
	} {
		k := k
		change(&k)
		if _, err := secureboot.Enrol(base, k, at); fault.Of(err) != fault.Invalid {
			t.Errorf("%s: %v", name, err)
		}
	}
	huge := k
	for range 9000 {
		huge.DBX = append(huge.DBX, secureboot.Entry{Hash: make([]byte, 32)})
	}
	if _, err := secureboot.Enrol(base, huge, at); fault.Of(err) != fault.Full {
		t.Errorf("too much: %v", err)
	}
	store := testkit.Must[[]byte](t)(secureboot.Enrol(base, k, at))
	last := bytes.LastIndex(store, []byte{0xaa, 0x55, 0x3f, 0})
	for name, change := range map[string]func(b []byte) []byte{
		"short":               func(b []byte) []byte { return b[:63] },
		"another volume":      func(b []byte) []byte { b[16] ^= 1; return b },
		"another signature":   func(b []byte) []byte { b[40] ^= 1; return b },
		"header beyond":       func(b []byte) []byte { b[48], b[49] = 0xff, 0xff; return b[:1000] },
		"header too short":    func(b []byte) []byte { b[48], b[49] = 55, 0; return b },
		"another store":       func(b []byte) []byte { b[b[48]] ^= 1; return b },
		"not formatted":       func(b []byte) []byte { b[b[48]+20] = 0xff; return b },
		"not healthy":         func(b []byte) []byte { b[b[48]+21] = 0xff; return b },
		"store beyond":        func(b []byte) []byte { b[b[48]+19] = 0xff; return b },
		"store too small":     func(b []byte) []byte { clear(b[b[48]+16:][:4]); return b },
		"name of odd size":    func(b []byte) []byte { b[last+36]++; return b },
		"name of no size":     func(b []byte) []byte { clear(b[last+36:][:4]); return b },
		"name beyond":         func(b []byte) []byte { b[last+39] = 0xff; return b },
		"data beyond":         func(b []byte) []byte { b[last+43] = 0xff; return b },
		"junk behind the end": func(b []byte) []byte { b[last] = 0xab; return b },
	} {
		if _, err := secureboot.ReadStore(change(bytes.Clone(store))); fault.Of(err) != fault.Invalid {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := secureboot.Enrol(base[:63], k, at); fault.Of(err) != fault.Invalid {
		t.Errorf("not a store: %v", err)
	}
	deleted := bytes.Clone(store)
	deleted[last+2] = 0x3d // VAR_ADDED & VAR_DELETED
	if a, b := testkit.Must[[]secureboot.Stored](t)(secureboot.ReadStore(store)), testkit.Must[[]secureboot.Stored](t)(secureboot.ReadStore(deleted)); len(b) != len(a)-1 {
		t.Error("a deleted variable lives")
	}
}

func FuzzParse(f *testing.F) {
	kek := signer(f, 2, "KEK")
	entries := secureboot.Certificates(kek.Certificate)
	f.Add(secureboot.Lists(entries))
	f.Add(testkit.Must[[]byte](f)(secureboot.Update(secureboot.DB, entries, at, kek)))
	base := testkit.Must[[]byte](f)(os.ReadFile(blank))
	f.Add(testkit.Must[[]byte](f)(secureboot.Enrol(base, all(f), at))[:8192])
	f.Fuzz(func(t *testing.T, b []byte) {
		if got, err := secureboot.ParseLists(b); err == nil {
			if again, err := secureboot.ParseLists(secureboot.Lists(got)); err != nil || len(again) != len(got) {
				t.Errorf("lists do not come back: %v", err)
			}
		}
		_, _, _ = secureboot.ParseUpdate(secureboot.DB, b, []*x509.Certificate{kek.Certificate})
		_, _ = secureboot.ReadStore(b)
	})
}
