package bundle_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"os/exec"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/secure-systems-lab/go-securesystemslib/dsse"

	"lethe/bundle"
	"lethe/private"
)

// peer is one of our keys in the hands of the DSSE reference library.
type peer struct {
	public bundle.Key
	key    ed25519.PrivateKey
}

func (p peer) Sign(_ context.Context, data []byte) ([]byte, error) {
	return ed25519.Sign(p.key, data), nil
}
func (p peer) Verify(_ context.Context, data, sig []byte) error {
	if !ed25519.Verify(p.public.Public, data, sig) {
		return errors.New("bad signature")
	}
	return nil
}
func (p peer) KeyID() (string, error)   { return p.public.ID.String(), nil }
func (p peer) Public() crypto.PublicKey { return ed25519.PublicKey(p.public.Public) }

func TestDSSELibraryAgrees(t *testing.T) {
	w := newWorld(t)
	verify := func(enveloped []byte, threshold int, by ...bundle.Signer) error {
		var verifiers []dsse.Verifier
		for _, s := range by {
			verifiers = append(verifiers, peer{public: s.Key()})
		}
		v, err := dsse.NewMultiEnvelopeVerifier(threshold, verifiers...)
		if err != nil {
			t.Fatal(err)
		}
		var e dsse.Envelope
		if err := json.Unmarshal(enveloped, &e); err != nil {
			t.Fatal(err)
		}
		_, err = v.Verify(t.Context(), &e)
		return err
	}
	manifest := w.published[bundle.ManifestPath(1)]
	if err := verify(manifest, 2, w.conf...); err != nil {
		t.Errorf("the library refuses our envelope: %v", err)
	}
	if verify(manifest, 3, w.conf...) == nil {
		t.Error("the library accepts two signatures for three")
	}

	var theirs []dsse.Signer
	for _, s := range w.conf[:2] {
		text, _ := s.PEM()
		block, _ := pem.Decode([]byte(text.Reveal()))
		key, _ := x509.ParsePKCS8PrivateKey(block.Bytes)
		theirs = append(theirs, peer{s.Key(), key.(ed25519.PrivateKey)})
	}
	signer, err := dsse.NewEnvelopeSigner(theirs...)
	if err != nil {
		t.Fatal(err)
	}
	payload, _ := json.Marshal(w.manifest)
	e, err := signer.SignPayload(t.Context(), bundle.ConfigRole.PayloadType(), payload)
	if err != nil {
		t.Fatal(err)
	}
	enveloped, _ := json.Marshal(e)
	if !bytes.Equal(enveloped, w.sign(w.manifest, w.conf[:2]...)) {
		t.Error("the library's envelope differs from ours")
	}
	if got, want := bundle.PAE("http://example.com/HelloWorld", []byte("hello world")), "DSSEv1 29 http://example.com/HelloWorld 11 hello world"; string(got) != want {
		t.Errorf("PAE %q, want the specification's %q", got, want)
	}
}

func TestSignRefuses(t *testing.T) {
	w := newWorld(t)
	if _, err := bundle.Sign(bundle.Manifest{}, w.conf...); err == nil {
		t.Error("an empty manifest was signed")
	}
	local := w.manifest
	local.Issued = local.Issued.In(time.FixedZone("", 3600))
	if _, err := bundle.Sign(local, w.conf...); err == nil {
		t.Error("a manifest in local time was signed")
	}
	broken, err := bundle.NewSigner(brokenToken{w.conf[0].Key().Public})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := bundle.Sign(w.manifest, broken); err == nil {
		t.Error("a broken token signed")
	}
	if _, err := bundle.AddSignature(w.published[bundle.ManifestPath(1)], broken); err == nil {
		t.Error("a broken token added a signature")
	}
	if _, err := bundle.AddSignature([]byte("{}"), w.conf[0]); err == nil {
		t.Error("a signature was added to nothing")
	}
	if _, err := broken.PEM(); err == nil {
		t.Error("the key of a token was exported")
	}
}

// brokenToken has a key that cannot be exported and does not sign.
type brokenToken struct{ public ed25519.PublicKey }

func (b brokenToken) Public() crypto.PublicKey { return b.public }
func (brokenToken) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) {
	return nil, errors.New("removed")
}

func TestInspect(t *testing.T) {
	w := newWorld(t)
	m, err := bundle.Inspect[bundle.Manifest](w.published[bundle.ManifestPath(1)])
	if err != nil || m.Version != 1 || len(m.Files) != 3 {
		t.Errorf("manifest %d with %d files (%v), want 1 with 3", m.Version, len(m.Files), err)
	}
	if _, err := bundle.Inspect[bundle.Root](w.published[bundle.ManifestPath(1)]); !errors.Is(err, bundle.WrongType) {
		t.Errorf("a manifest inspected as root: %v", err)
	}
}

func TestSignerPEM(t *testing.T) {
	s := bundle.GenerateSigner()
	text, err := s.PEM()
	if err != nil {
		t.Fatal(err)
	}
	again, err := bundle.ParseSigner(text)
	if err != nil || again.Key().ID != s.Key().ID {
		t.Fatalf("key %v (%v), want %v", again.Key().ID, err, s.Key().ID)
	}
	ec, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	ecPEM := pkcs8(t, ec)
	xKey, _ := ecdh.X25519().GenerateKey(rand.Reader)
	for name, bad := range map[string]string{
		"nothing":             "",
		"other type":          "-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n",
		"not DER":             "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
		"two blocks":          text.Reveal() + text.Reveal(),
		"another curve":       ecPEM,
		"a key that agrees":   pkcs8(t, xKey),
		"text after the key.": text.Reveal() + "x",
	} {
		if _, err := bundle.ParseSigner(private.Of(bad)); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func pkcs8(t *testing.T, key any) string {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
}

// TestKeyIDIsOpenSSLs checks the id against the tool that a person would use.
func TestKeyIDIsOpenSSLs(t *testing.T) {
	tool, err := exec.LookPath("openssl")
	if err != nil {
		t.Skip("openssl is not installed")
	}
	s := bundle.GenerateSigner()
	text, _ := s.PEM()
	cmd := exec.Command(tool, "pkey", "-pubout", "-outform", "DER")
	cmd.Stdin = strings.NewReader(text.Reveal())
	der, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	if got := bundle.Digest(sha256.Sum256(der)); got != s.Key().ID {
		t.Errorf("openssl says %v, want %v", got, s.Key().ID)
	}
}

func TestNewTrustRefuses(t *testing.T) {
	w := newWorld(t)
	zero := w.root
	zero.Version = 0
	bad, _ := json.Marshal(zero)
	for name, c := range map[string]struct {
		root []byte
		want bundle.Reason
	}{
		"nothing":               {nil, bundle.Malformed},
		"a manifest":            {w.published[bundle.ManifestPath(1)], bundle.WrongType},
		"one of two signatures": {w.sign(w.root, w.roots[0]), bundle.BelowThreshold},
		"version 0":             {w.forge(bundle.RootRole.PayloadType(), bad, w.roots...), bundle.Impossible},
		"huge":                  {make([]byte, bundle.MaxRootSize+1), bundle.TooLarge},
	} {
		if _, err := bundle.NewClient(bundle.Config{Root: c.root}); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %q", name, cause(err), c.want)
		}
	}
	if _, err := bundle.NewTrust(w.published[bundle.RootPath(1)], bundle.Floor{}, nil); err != nil {
		t.Errorf("a good root: %v", err)
	}
	if bundle.Reason(0).Error() != "unknown" {
		t.Error("the zero reason has a meaning")
	}
}

func TestClockNeverRunsBack(t *testing.T) {
	w := newWorld(t)
	trust, err := bundle.NewTrust(w.published[bundle.RootPath(1)], bundle.Floor{}, func() time.Time { return w.now })
	if err != nil {
		t.Fatal(err)
	}
	old := w.published[bundle.FreshnessPath]
	w.now = start.Add(time.Hour)
	w.publish()
	f, err := trust.Freshness(w.published[bundle.FreshnessPath])
	if err != nil {
		t.Fatal(cause(err))
	}
	trust.Accept(f)
	w.now = start // somebody turns the clock back to make the old statement live again
	if _, err := trust.Freshness(old); !errors.Is(err, bundle.Stale) {
		t.Errorf("old statement: %v, want %q", err, bundle.Stale)
	}
}

// TestFastForward shows that a version signed with stolen keys does not lock
// honest ones out once the keys are withdrawn.
func TestFastForward(t *testing.T) {
	w := newWorld(t)
	c := w.client()
	w.set(1<<62, map[string]string{"node.json": "{}"})
	w.publish()
	w.update(c)
	w.conf, w.fresh = signers(3), signers(1)
	w.root = w.newRoot(2)
	w.publishRoot(w.roots...)
	w.set(3, map[string]string{"node.json": "{}"})
	w.publish()
	if s := w.update(c); s.Version() != 3 {
		t.Errorf("version %d, want 3", s.Version())
	}
}

func TestSealRoundTrip(t *testing.T) {
	const c = 64 << 10
	for _, n := range []int{1, 2, c - 1, c, c + 1, 2 * c, 3*c + 7} {
		text := strings.Repeat("x", n-1) + "y"
		b := sealed(t, text)
		if int64(len(b)) != bundle.SealedSize(int64(n)) {
			t.Errorf("%d bytes seal to %d, SealedSize says %d", n, len(b), bundle.SealedSize(int64(n)))
		}
		if !bytes.Equal(b, sealed(t, text)) {
			t.Errorf("%d bytes seal differently each time", n)
		}
		if n > 16 && bytes.Contains(b, []byte(text[:16])) {
			t.Errorf("%d bytes are not encrypted", n)
		}
		digest := sha256.Sum256([]byte(text))
		if err := iotest.TestReader(bundle.Open(sealKey, digest, bytes.NewReader(b)), []byte(text)); err != nil {
			t.Errorf("%d bytes: %v", n, err)
		}
		for _, cut := range []int{0, 1, len(b) / 2, len(b) - 1} {
			if _, err := io.ReadAll(bundle.Open(sealKey, digest, bytes.NewReader(b[:cut]))); !errors.Is(err, bundle.BadSeal) {
				t.Errorf("%d of %d bytes: %v, want %q", cut, len(b), err, bundle.BadSeal)
			}
		}
		for _, at := range []int{0, len(b) / 2, len(b)} {
			src := io.MultiReader(bytes.NewReader(b[:at]), failing{io.ErrClosedPipe})
			if _, err := io.ReadAll(bundle.Open(sealKey, digest, src)); !errors.Is(err, io.ErrClosedPipe) {
				t.Errorf("source that fails after %d of %d bytes: %v", at, len(b), err)
			}
		}
	}
}

func TestSealRefuses(t *testing.T) {
	if err := bundle.Seal(sealKey, bundle.Digest{}, io.Discard).Close(); err == nil {
		t.Error("nothing was sealed")
	}
	s := bundle.Seal(sealKey, bundle.Digest{}, failingWriter{})
	if n, err := s.Write(make([]byte, 200<<10)); err == nil || n != 64<<10 {
		t.Errorf("%d bytes written to a full disk: %v", n, err)
	}
	s = bundle.Seal(sealKey, bundle.Digest{}, failingWriter{})
	_, _ = s.Write([]byte("x"))
	if s.Close() == nil {
		t.Error("closing on a full disk worked")
	}
}

type failingWriter struct{}

func (failingWriter) Write([]byte) (int, error) { return 0, io.ErrShortWrite }

func FuzzEnvelope(f *testing.F) {
	w := newWorld(f)
	root := w.published[bundle.RootPath(1)]
	f.Add(root)
	f.Add(w.published[bundle.ManifestPath(1)])
	f.Add(w.published[bundle.FreshnessPath])
	f.Add([]byte(`{"payloadType":"","payload":"","signatures":[{"keyid":"","sig":null}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		trust, err := bundle.NewTrust(root, bundle.Floor{}, func() time.Time { return start })
		if err != nil {
			t.Fatal(err)
		}
		if fresh, err := trust.Freshness(b); err == nil && !bytes.Equal(b, w.published[bundle.FreshnessPath]) {
			t.Errorf("forged freshness %v", fresh)
		}
		if m, err := trust.Manifest(b, bundle.Freshness{Version: 1, Manifest: sha256.Sum256(b)}); err == nil && !bytes.Equal(b, w.published[bundle.ManifestPath(1)]) {
			t.Errorf("forged manifest %v", m)
		}
		if trust.Rotate(b) == nil {
			t.Error("forged root")
		}
		if r, err := bundle.Inspect[bundle.Root](b); err == nil {
			again, err := json.Marshal(r)
			if err != nil || !bytes.Contains(b, []byte(jsonBase64(again))) {
				t.Errorf("a root has two encodings (%v)", err)
			}
		}
	})
}

func jsonBase64(b []byte) string {
	text, _ := json.Marshal(b)
	return strings.Trim(string(text), `"`)
}

func FuzzManifest(f *testing.F) {
	w := newWorld(f)
	for _, v := range []bundle.Statement{w.manifest, w.root, w.freshness} {
		b, _ := json.Marshal(v)
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, payload []byte) {
		w.t = t
		m, err := bundle.Inspect[bundle.Manifest](w.forge(bundle.ConfigRole.PayloadType(), payload))
		if err != nil {
			return
		}
		if again, err := json.Marshal(m); err != nil || !bytes.Equal(again, payload) {
			t.Errorf("%s reads like %s (%v)", payload, again, err)
		}
	})
}

func FuzzOpen(f *testing.F) {
	f.Add(sealed(f, "text"), []byte("text"))
	f.Add([]byte{}, []byte("x"))
	f.Fuzz(func(t *testing.T, b, text []byte) {
		if len(text) == 0 {
			return // an empty file has no sealed form
		}
		digest := sha256.Sum256(text)
		got, err := io.ReadAll(bundle.Open(sealKey, digest, bytes.NewReader(b)))
		if err == nil && (!bytes.Equal(got, text) || !bytes.Equal(b, sealed(t, string(text)))) {
			t.Errorf("opened to %q, which nobody sealed", got)
		}
	})
}

func FuzzSegmentName(f *testing.F) {
	f.Add("authdb/0-7")
	f.Add("authdb/07-8")
	f.Add("authdb/9-8")
	f.Fuzz(func(t *testing.T, name string) {
		if s, ok := bundle.SegmentSpan(name); ok && (bundle.SegmentName(s) != name || s.From > s.To) {
			t.Errorf("%q reads as %v", name, s)
		}
	})
}

func benchmarkStream(b *testing.B, run func(text string, digest bundle.Digest, sealed []byte) error) {
	text := strings.Repeat("0123456789abcdef", 1<<20)
	digest, s := sha256.Sum256([]byte(text)), sealed(b, text)
	b.SetBytes(int64(len(text)))
	for b.Loop() {
		if err := run(text, digest, s); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkSeal(b *testing.B) {
	benchmarkStream(b, func(text string, digest bundle.Digest, _ []byte) error {
		s := bundle.Seal(sealKey, digest, io.Discard)
		_, err := io.WriteString(s, text)
		return errors.Join(err, s.Close())
	})
}

func BenchmarkOpen(b *testing.B) {
	benchmarkStream(b, func(_ string, digest bundle.Digest, sealed []byte) error {
		_, err := io.Copy(io.Discard, bundle.Open(sealKey, digest, bytes.NewReader(sealed)))
		return err
	})
}

func BenchmarkVerify(b *testing.B) {
	w := newWorld(b)
	for b.Loop() {
		trust, err := bundle.NewTrust(w.published[bundle.RootPath(1)], bundle.Floor{}, func() time.Time { return start })
		if err != nil {
			b.Fatal(err)
		}
		f, err := trust.Freshness(w.published[bundle.FreshnessPath])
		if err == nil {
			_, err = trust.Manifest(w.published[bundle.ManifestPath(1)], f)
		}
		if err != nil {
			b.Fatal(err)
		}
	}
}
