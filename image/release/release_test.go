package release_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"strings"
	"testing"
	"time"

	"lethe/internal/testkit"

	"github.com/secure-systems-lab/go-securesystemslib/dsse"

	"lethe/image/release"
)

// TestTime: the part without hashing takes no noticeable time. The bound is far
// from what it takes (about a millisecond), so that a busy machine meets it.
func TestTime(t *testing.T) {
	w := newWorld(t)
	begin := time.Now()
	if err := w.verify(); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begin); took > time.Second {
		t.Errorf("took %v", took)
	}
}

// peer reads our envelopes with the reference library.
type peer struct{ key ed25519.PublicKey }

func (p peer) KeyID() (string, error) {
	k, err := release.NewKey(p.key)
	return k.ID.String(), err
}
func (p peer) Public() crypto.PublicKey { return p.key }
func (p peer) Verify(_ context.Context, data, sig []byte) error {
	if !ed25519.Verify(p.key, data, sig) {
		return errors.New("bad signature")
	}
	return nil
}

func TestReferenceLibrary(t *testing.T) {
	w := newWorld(t)
	v, err := dsse.NewEnvelopeVerifier(peer{w.by[0].Public().(ed25519.PublicKey)})
	if err != nil {
		t.Fatal(err)
	}
	var e dsse.Envelope
	if err := json.Unmarshal(w.statements[0], &e); err != nil {
		t.Fatal(err)
	}
	if _, err := v.Verify(context.Background(), &e); err != nil {
		t.Error(err)
	}
	b, err := e.DecodeB64Payload()
	if err != nil || !strings.HasPrefix(string(b), `{"_type":"https://in-toto.io/Statement/v1","subject":[{"name":"lethe-7-vm.iso","digest":{"sha256":"`) {
		t.Errorf("%s: %v", b, err)
	}
}

func TestAddSignature(t *testing.T) {
	w := newWorld(t)
	w.releasers = w.releasers[:1]
	w.release()
	if err := w.verify(); !errors.Is(err, release.NotReleased) {
		t.Errorf("one signature: %v", err)
	}
	w.manifest = testkit.Must[[]byte](t)(release.AddSignature(w.manifest, keyring().release[2]))
	if err := w.verify(); err != nil {
		t.Errorf("two signatures: %v", err)
	}
	if _, err := release.AddSignature(w.statements[0], keyring().release[2]); !errors.Is(err, release.WrongType) {
		t.Errorf("a statement: %v", err)
	}
	if _, err := release.AddSignature(w.manifest, broken{keyring().release[0]}); err == nil {
		t.Error("a broken key signed")
	}
	if _, err := release.ReadManifest(w.statements[0]); !errors.Is(err, release.WrongType) {
		t.Errorf("a statement: %v", err)
	}
}

// broken is a token that answers with nonsense, or not.
type broken struct{ crypto.Signer }

func (broken) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) { return []byte("x"), nil }

type lost struct{ crypto.Signer }

func (lost) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) {
	return nil, errors.New("lost")
}

type strange struct{ crypto.Signer }

func (strange) Public() crypto.PublicKey { return "strange" }

func TestSignersFail(t *testing.T) {
	w := newWorld(t)
	for name, s := range map[string]crypto.Signer{"broken": broken{w.by[0]}, "lost": lost{w.by[0]}, "strange": strange{w.by[0]}} {
		if _, err := release.SignStatement(w.statement, s); err == nil {
			t.Errorf("%s: signed", name)
		}
	}
	s := w.statement
	s.Subject = nil
	if _, err := release.SignStatement(s, w.by[0]); err == nil {
		t.Error("an empty statement was signed")
	}
}

func TestKeys(t *testing.T) {
	block := func(kind string, b []byte) []byte { return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: b}) }
	public, _, _ := ed25519.GenerateKey(rand.Reader)
	der, _ := x509.MarshalPKIXPublicKey(public)
	c := keyring().boot.Certificate
	for name, text := range map[string][]byte{"public key": block("PUBLIC KEY", der), "certificate": block("CERTIFICATE", c.Raw)} {
		if k, err := release.ParseKey(text); err != nil || k.ID == (release.Digest{}) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, text := range map[string][]byte{
		"nothing": nil, "two": append(block("PUBLIC KEY", der), block("PUBLIC KEY", der)...), "private": block("PRIVATE KEY", der),
		"damaged": block("PUBLIC KEY", der[1:]), "damaged certificate": block("CERTIFICATE", c.Raw[1:]),
	} {
		if _, err := release.ParseKey(text); err == nil {
			t.Errorf("%s was read", name)
		}
	}
	p521, _ := ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	short := &rsa.PublicKey{N: new(big.Int).Rsh(c.PublicKey.(*rsa.PublicKey).N, 1024), E: 65537}
	for _, k := range []crypto.PublicKey{p521.Public(), short, "text"} {
		if _, err := release.NewKey(k); err == nil {
			t.Errorf("a %T was taken", k)
		}
	}
}

func TestCompare(t *testing.T) {
	w := newWorld(t)
	if d, err := release.Compare(w.statements[0], w.statements[1]); err != nil || len(d) != 0 {
		t.Errorf("%v, %v", d, err)
	}
	restate(func(s *release.Statement) {
		s.Subject[0].Annotations.Parts = s.Subject[0].Annotations.Parts[:1]
		s.Subject[0].Annotations.Regions[3].SHA256 = release.Digest{}
		s.Predicate.Definition.External.Epoch = 5
	})(w)
	d, err := release.Compare(w.statements[0], w.statements[1])
	if err != nil || len(d) != 3 {
		t.Fatalf("%v, %v", d, err)
	}
	for i, want := range []string{
		"predicate/buildDefinition/externalParameters/epoch: 1790000000 and 5",
		`subject/lethe-7-vm.iso/annotations/parts/1: {"name":"sbom.json","sha256":"0200000000000000000000000000000000000000000000000000000000000000"} and nothing`,
		"subject/lethe-7-vm.iso/annotations/regions/root/sha256: ",
	} {
		if !strings.HasPrefix(d[i].String(), want) {
			t.Errorf("got %s, want %s", d[i], want)
		}
	}
	other, _ := release.Compare(w.statements[1], w.statements[0])
	if len(other) != 3 || other[0].A != "5" {
		t.Errorf("%v", other)
	}
	for name, pair := range map[string][2][]byte{
		"too large": {make([]byte, release.MaxFileSize+1), nil}, "not JSON": {[]byte("{"), nil}, "two kinds": {w.manifest, w.statements[0]},
		"payload": {w.forge(release.ManifestType, []byte("{")), w.manifest},
	} {
		if _, err := release.Compare(pair[0], pair[1]); err == nil {
			t.Errorf("%s: compared", name)
		}
	}
}

func TestDescribe(t *testing.T) {
	w := newWorld(t)
	image := w.statement.Subject[0].Annotations
	if _, _, err := release.Describe(image, bytes.NewReader(w.signed)); !errors.Is(err, release.BadBootImage) {
		t.Errorf("signed image: %v", err)
	}
	if _, _, err := release.Describe(image, bytes.NewReader(w.iso[:prefix+10])); err == nil {
		t.Error("a cut image was described")
	}
	if _, _, err := release.Describe(image, failing{}); err == nil {
		t.Error("an unreadable image was described")
	}
	if _, _, err := release.Describe(release.Image{}, bytes.NewReader(w.iso)); err == nil {
		t.Error("nothing was described")
	}
	if err := w.policy.VerifyISO(testkit.Must[release.Manifest](t)(w.policy.Verify(w.manifest, w.statements)), "vm", failing{}, int64(len(w.iso))); err == nil {
		t.Error("an unreadable image was verified")
	}
	if _, err := release.SignBoot(w.statement.Subject[0], failing{}, int64(len(w.iso)), keyring().boot); err == nil {
		t.Error("an unreadable image was signed")
	}
}

type failing struct{}

func (failing) ReadAt([]byte, int64) (int, error) { return 0, errors.New("medium error") }

func FuzzVerify(f *testing.F) {
	w := newWorld(f)
	f.Add(w.manifest, w.statements[0])
	f.Add([]byte("{}"), w.statements[1])
	f.Fuzz(func(t *testing.T, manifest, statement []byte) {
		_, err := w.policy.Verify(manifest, [][]byte{statement, w.statements[1]})
		if err == nil && (!bytes.Equal(statement, w.statements[0]) || !bytes.Equal(manifest, w.manifest)) {
			// ECDSA signatures can be written anew by their owner only; all else is one encoding.
			t.Error("something else verified")
		}
		_, _ = release.Compare(manifest, statement)
		_, _ = release.ReadManifest(manifest)
	})
}

// BenchmarkVerify measures the offline check without the hashing of an image.
func BenchmarkVerify(b *testing.B) {
	w := newWorld(b)
	for b.Loop() {
		if _, err := w.policy.Verify(w.manifest, w.statements); err != nil {
			b.Fatal(err)
		}
	}
}
