package attesttest

import (
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"testing"
	"time"

	"lethe/attest"
	"lethe/attest/eventlog"
	"lethe/dsse"
	"lethe/image/pcr"
	"lethe/image/release"
)

// Start is when the tests' releases are issued.
var Start = time.Date(2026, 11, 23, 9, 0, 0, 0, time.UTC)

// Releaser is who makes releases: two builders and one release key.
type Releaser struct {
	t        testing.TB
	builders []crypto.Signer
	key      crypto.Signer
	Policy   release.Policy
	Start    time.Time // when releases are issued; [Start] unless it is set
	Phases   []string  // that images measure; image/pcr's unless it is set
}

// NewReleaser returns one with new keys.
func NewReleaser(t testing.TB) *Releaser {
	r := &Releaser{t: t, Policy: release.Policy{Threshold: 2, ReleaseThreshold: 1}, Start: Start, Phases: pcr.Phases}
	signer := func(keys *[]release.Key) crypto.Signer {
		_, s, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		k, err := release.NewKey(s.Public())
		if err != nil {
			t.Fatal(err)
		}
		*keys = append(*keys, k)
		return s
	}
	r.builders = []crypto.Signer{signer(&r.Policy.Builders), signer(&r.Policy.Builders)}
	r.key = signer(&r.Policy.Release)
	return r
}

// TrustFile returns the file that says who makes releases.
func (r *Releaser) TrustFile() []byte {
	text := func(s crypto.Signer) string {
		der, err := x509.MarshalPKIXPublicKey(s.Public())
		if err != nil {
			r.t.Fatal(err)
		}
		return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
	}
	b, err := json.Marshal(map[string]any{"builders": []string{text(r.builders[0]), text(r.builders[1])}, "threshold": 2,
		"release": []string{text(r.key)}, "release_threshold": 1, "boot": []string{}, "floor": 0})
	if err != nil {
		r.t.Fatal(err)
	}
	return b
}

// PCRs returns the registers that a release of an image fixes: those that builders state, and
// those that the keys decide.
func PCRs(i Image, phases ...string) (stated, keyed []release.PCR) {
	return []release.PCR{{Index: 4, SHA256: dsse.Digest(pcr.Boot(i.Authenticode()...))}, {Index: 11, SHA256: dsse.Digest(i.PCR11(phases...))}},
		[]release.PCR{{Index: 7, SHA256: dsse.Digest(pcr.Keys(Keys, Authority))}}
}

// Make returns a release of images by flavour, as files and as manifest. change may alter what
// the signers add.
func (r *Releaser) Make(version uint64, images map[string]Image, change func(*release.Addition)) (manifest []byte, statements [][]byte, m release.Manifest) {
	r.t.Helper()
	r.Policy.Now = r.Start
	a := release.Addition{Floor: 1, Issued: r.Start, Expires: r.Start.AddDate(0, 0, 60), Boot: map[string]release.Signed{}, PCRs: map[string][]release.PCR{}}
	var subjects []release.Subject
	for _, flavour := range []string{"hardware", "vm"} { // ascending
		i, ok := images[flavour]
		if !ok {
			continue
		}
		stated, keyed := PCRs(i, r.Phases...)
		regions := []release.Region{{Name: "boot", Length: 4096}, {Name: "signatures", Offset: 4096, Length: 4096, Signature: true}, {Name: "root", Offset: 8192, Length: 4096}}
		digest := release.Digest(Hash([]byte(i.Name)))
		subjects = append(subjects, release.Subject{Name: "lethe-" + flavour + ".iso", Digest: release.DigestSet{SHA256: &digest}, Annotations: release.Image{
			Flavour: flavour, Size: 12288, Regions: regions, BootLength: 8192, Parts: []release.Part{}, PCRs: stated}})
		a.Boot[flavour] = release.Signed{SHA256: release.Digest{1}, Region: regions[1]}
		a.PCRs[flavour] = keyed
	}
	if change != nil {
		change(&a)
	}
	s := release.NewStatement("builder", release.Parameters{Version: version, Commit: "0123456789abcdef0123456789abcdef01234567", Epoch: 1790000000}, []release.Input{}, subjects)
	for _, b := range r.builders {
		e, err := release.SignStatement(s, b)
		if err != nil {
			r.t.Fatal(err)
		}
		statements = append(statements, e)
	}
	manifest, err := r.Policy.SignManifest(statements, a, r.key)
	if err != nil {
		r.t.Fatal(err)
	}
	if m, err = r.Policy.Verify(manifest, statements); err != nil {
		r.t.Fatal(err)
	}
	return manifest, statements, m
}

// Profile returns the rules for machines that [Boot] makes.
func Profile() *attest.Profile {
	digest := func(blobs ...string) (all []dsse.Digest) {
		for _, b := range blobs {
			all = append(all, Hash([]byte(b)))
		}
		return all
	}
	return &attest.Profile{Name: "test", Rules: []attest.Rule{
		{PCR: 0, Type: eventlog.SCRTMVersion, Why: "no version", Min: 1, Max: 1, Digests: []dsse.Digest{Hash([]byte{0, 0})}},
		{PCR: 0, Type: eventlog.FirmwareBlob, Why: "the firmware", Min: 2, Max: 2, Digests: digest("PEI", "DXE")},
		{PCR: 1, Type: eventlog.HandoffTables, Why: "serial numbers", Max: 2, Any: true},
		{PCR: 1, Type: eventlog.VariableBoot, Why: "what to boot", Max: 4, Variables: []string{"BootOrder", "Boot[0-9A-F][0-9A-F][0-9A-F][0-9A-F]"}},
		{PCR: 2, Type: eventlog.BootDriver, Why: "network adapter", Max: 1, Digests: digest("network adapter")},
		{PCR: 4, Type: eventlog.EFIAction, Why: "the boot manager", Max: 1, Texts: []string{"Calling EFI Application from Boot Option"}},
		{PCR: 4, Type: eventlog.BootApplication, AfterSeparator: true, Why: "fixed by the release", Max: 3, Any: true},
		{PCR: 5, Type: eventlog.GPT, AfterSeparator: true, Why: "the medium", Max: 1, Any: true},
		{PCR: 5, Type: eventlog.EFIAction, AfterSeparator: true, Why: "the kernel takes over", Max: 2,
			Texts: []string{"Exit Boot Services Invocation", "Exit Boot Services Returned with Success"}},
		{PCR: 7, Type: eventlog.VariableDriver, Why: "fixed by the release", Min: 5, Max: 5, Variables: []string{"SecureBoot", "PK", "KEK", "db", "dbx"}},
		{PCR: 7, Type: eventlog.VariableAuthority, AfterSeparator: true, Why: "fixed by the release", Max: 2, Variables: []string{"db"}},
		{PCR: 9, Type: eventlog.Tag, Why: "initrd and command line, fixed by register 11", Max: 2, Any: true},
		{PCR: 11, Type: eventlog.IPL, Why: "fixed by the release", Max: 32, Any: true},
	}}
}
