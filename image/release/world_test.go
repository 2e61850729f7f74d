package release_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"slices"
	"sync"
	"testing"
	"time"

	"lethe/internal/testkit"

	"lethe/image/cms"
	"lethe/image/medium/mediumtest"
	"lethe/image/pe"
	"lethe/image/release"
)

var start = time.Date(2026, 11, 23, 9, 0, 0, 0, time.UTC)

// keyring holds keys that all tests share: making RSA keys takes a while.
var keyring = sync.OnceValue(func() (k struct {
	builders, strangers []crypto.Signer
	release             []crypto.Signer
	boot, otherBoot     cms.Signer
}) {
	for range 3 {
		_, b, _ := ed25519.GenerateKey(rand.Reader)
		_, s, _ := ed25519.GenerateKey(rand.Reader)
		k.builders, k.strangers = append(k.builders, b), append(k.strangers, s)
	}
	p256, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	p384, _ := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	rsa2048, _ := rsa.GenerateKey(rand.Reader, 2048)
	k.release = []crypto.Signer{p256, p384, rsa2048}
	k.boot, k.otherBoot = bootSigner(rsa2048, "boot"), bootSigner(p256, "other")
	return k
})

func bootSigner(key crypto.Signer, name string) cms.Signer {
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Unix(0, 0), NotAfter: time.Unix(1<<32, 0)}
	raw, _ := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	c, _ := x509.ParseCertificate(raw)
	return cms.Signer{Key: key, Certificate: c}
}

func key(s crypto.Signer) release.Key {
	k, err := release.NewKey(s.Public())
	if err != nil {
		panic(err)
	}
	return k
}

func keysOf(signers []crypto.Signer) (all []release.Key) {
	for _, s := range signers {
		all = append(all, key(s))
	}
	return all
}

// bootable returns the smallest PE32+ image with space for a signature.
func bootable(t testing.TB) []byte {
	return testkit.Must[[]byte](t)(pe.Reserve(mediumtest.PE(nil), 3000))
}

const (
	prefix = 5000
	middle = 4 << 10
)

// world is a build, its builders' statements and the release made of it.
type world struct {
	t          testing.TB
	iso        []byte // agreed
	signed     []byte // as released
	statement  release.Statement
	by         []crypto.Signer // builders
	statements [][]byte
	addition   release.Addition
	releasers  []crypto.Signer
	manifest   []byte
	policy     release.Policy
}

func newWorld(t testing.TB) *world {
	t.Helper()
	k := keyring()
	w := &world{t: t, by: k.builders[:2:2], releasers: k.release[:2:2]}
	boot := bootable(t)
	table := testkit.Must[*pe.Image](t)(pe.Parse(boot)).Table()
	w.iso = make([]byte, prefix, prefix+len(boot)+middle)
	for i := range w.iso {
		w.iso[i] = byte(i * 31)
	}
	w.iso = append(append(w.iso, boot...), bytes.Repeat([]byte("root"), middle/4)...)
	size, at := int64(len(w.iso)), int64(prefix+table.Offset)
	image := release.Image{Flavour: "vm", Size: size, BootOffset: prefix, BootLength: int64(len(boot)),
		Regions: []release.Region{
			{Name: "head", Length: prefix},
			{Name: "boot", Offset: prefix, Length: int64(table.Offset)},
			{Name: "boot.signatures", Offset: at, Length: int64(table.Length), Signature: true},
			{Name: "root", Offset: prefix + int64(len(boot)), Length: middle},
		},
		Parts: []release.Part{{Name: "root.squashfs", SHA256: release.Digest{1}}, {Name: "sbom.json", SHA256: release.Digest{2}}},
		PCRs:  []release.PCR{{Index: 4, SHA256: release.Digest{4}}, {Index: 11, SHA256: release.Digest{11}}},
	}
	image, digest, err := release.Describe(image, bytes.NewReader(w.iso))
	if err != nil {
		t.Fatal(err)
	}
	lock := release.Digest{7}
	w.statement = release.NewStatement("builder-0", release.Parameters{Version: 7, Commit: "0123456789abcdef0123456789abcdef01234567", Epoch: 1790000000},
		[]release.Input{
			{URI: "git", Digest: release.DigestSet{GitCommit: "0123456789abcdef0123456789abcdef01234567"}},
			{URI: "image.lock", Digest: release.DigestSet{SHA256: &lock}},
		},
		[]release.Subject{{Name: "lethe-7-vm.iso", Digest: release.DigestSet{SHA256: &digest}, Annotations: image}})
	w.policy = release.Policy{Builders: keysOf(k.builders), Release: keysOf(k.release), Threshold: 2, ReleaseThreshold: 2,
		Boot: []*x509.Certificate{k.boot.Certificate}, Floor: 7, Now: start.Add(time.Hour)}
	w.addition = release.Addition{Floor: 6, Issued: start, Expires: start.AddDate(0, 0, 60)}
	w.build()
	w.sign(k.boot)
	w.release()
	return w
}

// build makes the statements of all builders.
func (w *world) build() {
	w.statements = nil
	for i, b := range w.by {
		s := w.statement
		s.Predicate.Run.Builder.ID = "builder-" + string(rune('0'+i))
		w.statements = append(w.statements, testkit.Must[[]byte](w.t)(release.SignStatement(s, b)))
	}
}

// sign signs the boot image.
func (w *world) sign(by ...cms.Signer) {
	s := testkit.Must[release.Signed](w.t)(release.SignBoot(w.statement.Subject[0], bytes.NewReader(w.iso), int64(len(w.iso)), by...))
	w.addition.Boot = map[string]release.Signed{"vm": s}
	w.addition.PCRs = map[string][]release.PCR{"vm": {{Index: 7, SHA256: release.Digest{77}}}}
	w.signed = slices.Clone(w.iso)
	copy(w.signed[s.Region.Offset:], s.Table)
}

// release signs the manifest.
func (w *world) release() {
	w.manifest = testkit.Must[[]byte](w.t)(w.policy.SignManifest(w.statements, w.addition, w.releasers...))
}

// verify does what a verifier does.
func (w *world) verify() error {
	m, err := w.policy.Verify(w.manifest, w.statements)
	if err != nil {
		return err
	}
	return w.policy.VerifyISO(m, "vm", bytes.NewReader(w.signed), int64(len(w.signed)))
}
