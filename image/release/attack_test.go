package release_test

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"encoding/json"
	"errors"
	mathrand "math/rand/v2"
	"slices"
	"testing"
	"time"

	"lethe/internal/testkit"

	"lethe/dsse"
	"lethe/fault"
	"lethe/image/cms"
	"lethe/image/release"
)

// attack is one way to release something wrong, and its twin: the same steps
// without the wrong, which must be accepted. So it is the check that refuses, not an
// accident of the test.
type attack struct {
	name   string
	want   release.Reason
	attack func(w *world)
	twin   func(w *world)
}

var nothing = func(*world) {}

// forge signs a payload without our checks.
func (w *world) forge(kind string, payload []byte, by ...crypto.Signer) []byte {
	e := dsse.Envelope{PayloadType: kind, Payload: payload, Signatures: []dsse.Signature{}}
	b := testkit.Must[[]byte](w.t)(json.Marshal(e))
	for _, s := range by {
		e = dsse.Envelope{}
		_ = json.Unmarshal(b, &e)
		message := dsse.PAE(kind, payload)
		digest, hash := release.Prepare(key(s), message)
		e.Signatures = append(e.Signatures, dsse.Signature{KeyID: key(s).ID, Sig: testkit.Must[[]byte](w.t)(s.Sign(rand.Reader, digest, hash))})
		b = testkit.Must[[]byte](w.t)(json.Marshal(e))
	}
	return b
}

// edit forges the manifest anew with a change of its text.
func edit(change func(m *release.Manifest)) func(w *world) {
	return func(w *world) {
		m := testkit.Must[release.Manifest](w.t)(release.ReadManifest(w.manifest))
		change(&m)
		w.manifest = w.forge(release.ManifestType, testkit.Must[[]byte](w.t)(json.Marshal(m)), w.releasers...)
	}
}

// restate forges the second builder's statement.
func restate(change func(s *release.Statement)) func(w *world) {
	return func(w *world) {
		s := w.statement
		s.Subject = slices.Clone(s.Subject)
		s.Subject[0].Annotations.Regions = slices.Clone(s.Subject[0].Annotations.Regions)
		s.Subject[0].Annotations.Parts = slices.Clone(s.Subject[0].Annotations.Parts)
		s.Subject[0].Annotations.PCRs = slices.Clone(s.Subject[0].Annotations.PCRs)
		s.Predicate.Definition.Inputs = slices.Clone(s.Predicate.Definition.Inputs)
		change(&s)
		w.statements[1] = w.forge(release.StatementType, testkit.Must[[]byte](w.t)(json.Marshal(s)), w.by[1])
	}
}

func envelope(w *world, b []byte, change func(e *dsse.Envelope)) []byte {
	e := testkit.Must[dsse.Envelope](w.t)(dsse.Decode[dsse.Envelope](b))
	change(&e)
	return testkit.Must[[]byte](w.t)(json.Marshal(e))
}

func attacks() []attack {
	k := keyring()
	same := edit(func(*release.Manifest) {})
	agree := restate(func(*release.Statement) {})
	all := []attack{
		{"one release key of two", release.NotReleased,
			func(w *world) { w.releasers = w.releasers[:1]; w.release() }, func(w *world) { w.releasers = k.release[1:]; w.release() }},
		{"manifest signed by strangers", release.NotReleased,
			func(w *world) { w.releasers = k.strangers; w.release() }, func(w *world) { w.releasers = append(k.strangers[:1:1], k.release...); w.release() }},
		{"manifest signed by builders", release.NotReleased,
			func(w *world) { w.releasers = w.by; w.release() }, same},
		{"a release key signs twice", release.BadSignatures,
			func(w *world) { w.releasers = append(w.releasers, w.releasers[0]); w.release() }, func(w *world) { w.releasers = k.release; w.release() }},
		{"one's signature under another's id", release.NotReleased,
			func(w *world) {
				w.manifest = envelope(w, w.manifest, func(e *dsse.Envelope) { e.Signatures[1].Sig = e.Signatures[0].Sig })
			}, nothing},
		{"manifest changed after signing", release.NotReleased,
			func(w *world) {
				w.manifest = envelope(w, w.manifest, func(e *dsse.Envelope) {
					e.Payload = bytes.Replace(e.Payload, []byte(`"floor":6`), []byte(`"floor":5`), 1)
				})
			}, nothing},
		{"a statement in the manifest's place", release.WrongType,
			func(w *world) { w.manifest = w.statements[0] }, nothing},
		{"a manifest in a statement's place", release.WrongType,
			func(w *world) { w.statements[0] = w.manifest }, nothing},
		{"endless manifest", release.TooLarge,
			func(w *world) { w.manifest = append(w.manifest, make([]byte, release.MaxFileSize)...) }, nothing},
		{"not JSON", release.Malformed, func(w *world) { w.manifest = w.manifest[1:] }, nothing},
		{"white space", release.NotCanonical, func(w *world) { w.manifest = append(w.manifest, '\n') }, nothing},
		{"signed but not canonical", release.NotCanonical,
			func(w *world) {
				m := testkit.Must[release.Manifest](w.t)(release.ReadManifest(w.manifest))
				b := testkit.Must[[]byte](w.t)(json.MarshalIndent(m, "", " "))
				w.manifest = w.forge(release.ManifestType, b, w.releasers...)
			}, same},
		{"one builder", release.TooFewBuilders, func(w *world) { w.statements = w.statements[:1] }, nothing},
		{"one builder twice", release.TooFewBuilders,
			func(w *world) { w.statements[1] = w.statements[0] },
			func(w *world) { w.statements = append(w.statements, w.statements[0]) }},
		{"a builder and a stranger", release.TooFewBuilders,
			func(w *world) { w.statements[1] = w.forge(release.StatementType, payload(w, 0), k.strangers[0]) },
			func(w *world) {
				w.statements = append(w.statements, w.forge(release.StatementType, []byte("{}"), k.strangers[0]))
			}},
		{"a policy of one builder", release.TooFewBuilders,
			func(w *world) { w.policy.Threshold = 1; w.statements = w.statements[:1] },
			func(w *world) { w.policy.Threshold = 1 }},
		{"a policy of three builders", release.TooFewBuilders,
			func(w *world) { w.policy.Threshold = 3 },
			func(w *world) { w.policy.Threshold = 3; w.by = k.builders; w.build(); w.release() }},
		{"another builder's statement than the manifest names", release.NotAgreed,
			func(w *world) { w.by = []crypto.Signer{k.builders[0], k.builders[2]}; w.build() },
			func(w *world) { w.by = []crypto.Signer{k.builders[0], k.builders[2]}; w.build(); w.release() }},
		{"builders disagree on the ISO", release.Disagree,
			restate(func(s *release.Statement) { s.Subject[0].Digest.SHA256 = &release.Digest{9} }), agree},
		{"builders disagree on a region", release.Disagree,
			restate(func(s *release.Statement) { s.Subject[0].Annotations.Regions[0].SHA256[0] ^= 1 }), agree},
		{"builders disagree on a part", release.Disagree,
			restate(func(s *release.Statement) { s.Subject[0].Annotations.Parts[0].SHA256[0] ^= 1 }), agree},
		{"builders disagree on a PCR", release.Disagree,
			restate(func(s *release.Statement) { s.Subject[0].Annotations.PCRs[0].SHA256[0] ^= 1 }), agree},
		{"builders disagree on an input", release.Disagree,
			restate(func(s *release.Statement) { s.Predicate.Definition.Inputs[1].Digest.SHA256 = &release.Digest{9} }), agree},
		{"builders disagree on the version", release.Disagree,
			restate(func(s *release.Statement) { s.Predicate.Definition.External.Version++ }), agree},
		{"a third builder disagrees with two", release.Disagree,
			func(w *world) {
				agree := w.statements[1]
				w.by = []crypto.Signer{k.builders[0], k.builders[2]}
				restate(func(s *release.Statement) { s.Predicate.Definition.External.Epoch++ })(w)
				w.statements = append(w.statements, agree)
			}, nothing},
		{"a builder's statement is not canonical", release.NotCanonical,
			func(w *world) {
				w.statements[0] = w.forge(release.StatementType, append(payload(w, 0), ' '), w.by[0])
			}, func(w *world) { w.statements[0] = w.forge(release.StatementType, payload(w, 0), w.by[0]) }},
		{"manifest of another ISO", release.NotAgreed,
			edit(func(m *release.Manifest) { m.Images[0].SHA256[0] ^= 1 }), same},
		{"manifest of another version", release.NotAgreed, edit(func(m *release.Manifest) { m.Version++ }), same},
		{"manifest of another commit", release.NotAgreed,
			edit(func(m *release.Manifest) { m.Commit = "f" + m.Commit[1:] }), same},
		{"from the future", release.NotYet,
			func(w *world) { w.policy.Now = start.Add(-release.MaxSkew - time.Second) },
			func(w *world) { w.policy.Now = start.Add(-release.MaxSkew) }},
		{"expired", release.Ended,
			func(w *world) { w.policy.Now = w.addition.Expires },
			func(w *world) { w.policy.Now = w.addition.Expires.Add(-time.Second) }},
		{"below the floor", release.BelowFloor,
			func(w *world) { w.policy.Floor = 8 }, func(w *world) { w.policy.Floor = 7 }},
		{"ISO cut", release.WrongSize, func(w *world) { w.signed = w.signed[:len(w.signed)-1] }, nothing},
		{"ISO longer", release.WrongSize, func(w *world) { w.signed = append(w.signed, 0) }, nothing},
		{"ISO not signed", release.NotSigned, func(w *world) { w.signed = w.iso }, nothing},
		{"ISO signed by another key", release.WrongSigner,
			func(w *world) { w.sign(k.otherBoot); w.release() }, func(w *world) { w.sign(k.otherBoot, k.boot); w.release() }},
		{"signature of another time", release.Damaged,
			func(w *world) { m := w.manifest; w.sign(k.otherBoot, k.boot); w.manifest = m },
			func(w *world) { m := w.manifest; w.sign(k.boot); w.manifest = m }},
		{"boot image is none", release.BadBootImage, func(w *world) { w.signed[prefix] ^= 1 }, nothing},
		{"boot image points elsewhere", release.BadBootImage,
			func(w *world) {
				w.signed[prefix+88+112+32] += 8
				w.signed[prefix+88+112+36] -= 8
			}, nothing},
		{"manifest has another whole digest", release.Damaged,
			edit(func(m *release.Manifest) { m.Images[0].Signed[0] ^= 1 }), same},
	}
	return append(all, impossible(agree, same)...)
}

func payload(w *world, i int) []byte {
	return testkit.Must[dsse.Envelope](w.t)(dsse.Decode[dsse.Envelope](w.statements[i])).Payload
}

// impossible are statements that are well signed and against the format's rules.
func impossible(agree, same func(*world)) (all []attack) {
	for name, change := range map[string]func(s *release.Statement){
		"type":               func(s *release.Statement) { s.Type = "https://in-toto.io/Statement/v2" },
		"version 0":          func(s *release.Statement) { s.Predicate.Definition.External.Version = 0 },
		"no images":          func(s *release.Statement) { s.Subject = s.Subject[:0] },
		"builder's name":     func(s *release.Statement) { s.Predicate.Run.Builder.ID = "" },
		"input without name": func(s *release.Statement) { s.Predicate.Definition.Inputs[0].URI = "" },
		"two digests":        func(s *release.Statement) { s.Predicate.Definition.Inputs[1].Digest.GitCommit = "a" },
		"no digest":          func(s *release.Statement) { s.Predicate.Definition.Inputs[1].Digest.SHA256 = nil },
		"inputs not in order": func(s *release.Statement) {
			slices.Reverse(s.Predicate.Definition.Inputs)
		},
		"image without digest": func(s *release.Statement) { s.Subject[0].Digest.SHA256 = nil },
		"flavour twice":        func(s *release.Statement) { s.Subject = append(s.Subject, s.Subject[0]) },
		"flavour":              func(s *release.Statement) { s.Subject[0].Annotations.Flavour = "VM" },
		"gap":                  func(s *release.Statement) { s.Subject[0].Annotations.Regions[1].Offset++ },
		"region's name twice":  func(s *release.Statement) { s.Subject[0].Annotations.Regions[1].Name = "head" },
		"empty region":         func(s *release.Statement) { s.Subject[0].Annotations.Regions[0].Length = 0 },
		"region too long":      func(s *release.Statement) { s.Subject[0].Annotations.Regions[3].Length++ },
		"not all covered":      func(s *release.Statement) { s.Subject[0].Annotations.Regions[3].Length-- },
		"no signatures":        func(s *release.Statement) { s.Subject[0].Annotations.Regions[2].Signature = false },
		"signatures elsewhere": func(s *release.Statement) { s.Subject[0].Annotations.Regions[0].Signature = true },
		"boot image outside":   func(s *release.Statement) { s.Subject[0].Annotations.BootLength = 1 << 27 },
		"parts not in order":   func(s *release.Statement) { slices.Reverse(s.Subject[0].Annotations.Parts) },
		"PCR 24":               func(s *release.Statement) { s.Subject[0].Annotations.PCRs[1].Index = 24 },
	} {
		all = append(all, attack{"statement: " + name, release.Impossible, restate(change), agree})
	}
	for name, change := range map[string]func(m *release.Manifest){
		"version 0":             func(m *release.Manifest) { m.Version = 0 },
		"floor above itself":    func(m *release.Manifest) { m.Floor = 8 },
		"half seconds":          func(m *release.Manifest) { m.Issued = m.Issued.Add(time.Millisecond) },
		"without end":           func(m *release.Manifest) { m.Expires = m.Issued.Add(release.MaxLife + time.Second) },
		"ends before it begins": func(m *release.Manifest) { m.Expires = m.Issued },
		"no images":             func(m *release.Manifest) { m.Images = m.Images[:0] },
		"one builder":           func(m *release.Manifest) { m.Builders = m.Builders[:1] },
		"builders not in order": func(m *release.Manifest) { slices.Reverse(m.Builders) },
		"flavour twice":         func(m *release.Manifest) { m.Images = append(m.Images, m.Images[0]) },
		"image":                 func(m *release.Manifest) { m.Images[0].Image.Size = 0 },
		"image's name":          func(m *release.Manifest) { m.Images[0].Name = "" },
		"signatures elsewhere":  func(m *release.Manifest) { m.Images[0].Signatures[0].Offset++ },
		"PCR twice":             func(m *release.Manifest) { m.Images[0].PCRs = append(m.Images[0].PCRs, m.Images[0].PCRs[0]) },
	} {
		all = append(all, attack{"manifest: " + name, release.Impossible, edit(change), same})
	}
	return all
}

func TestAttacks(t *testing.T) {
	met := map[release.Reason]bool{release.NoImage: true} // TestNoImage
	for _, a := range attacks() {
		t.Run(a.name, func(t *testing.T) {
			w := newWorld(t)
			a.attack(w)
			err := w.verify()
			if !errors.Is(err, a.want) {
				t.Errorf("attack: %v, want %v", err, a.want)
			}
			if k := fault.Of(err); (k == fault.Expired) != (a.want == release.Ended) || k != fault.Expired && k != fault.Untrusted {
				t.Errorf("attack is of kind %v", k)
			}
			w = newWorld(t)
			a.twin(w)
			if err := w.verify(); err != nil {
				t.Errorf("twin: %v", err)
			}
		})
		met[a.want] = true
	}
	codes := map[string]bool{}
	for _, r := range release.Reasons() {
		if !met[r] {
			t.Errorf("no attack meets %q", r)
		}
		if codes[r.Code()] || r.Error() == "" {
			t.Errorf("reason %d has no code of its own", r)
		}
		codes[r.Code()] = true
	}
}

func TestNoImage(t *testing.T) {
	w := newWorld(t)
	m := testkit.Must[release.Manifest](t)(w.policy.Verify(w.manifest, w.statements))
	if err := w.policy.VerifyISO(m, "hardware", bytes.NewReader(w.signed), int64(len(w.signed))); !errors.Is(err, release.NoImage) {
		t.Errorf("no such flavour: %v", err)
	}
}

// TestFlips flips 10,000 single bits, spread over every region: each is found.
func TestFlips(t *testing.T) {
	w := newWorld(t)
	m := testkit.Must[release.Manifest](t)(w.policy.Verify(w.manifest, w.statements))
	size := int64(len(w.signed))
	check := func() error { return w.policy.VerifyISO(m, "vm", bytes.NewReader(w.signed), size) }
	if err := check(); err != nil {
		t.Fatal(err)
	}
	flips := 10000
	if testing.Short() {
		flips = 1000
	}
	regions := m.Images[0].Image.Regions
	random := mathrand.New(mathrand.NewPCG(1, 2))
	for n := range flips {
		r := regions[n%len(regions)]
		at, bit := r.Offset+random.Int64N(r.Length), byte(1)<<random.IntN(8)
		w.signed[at] ^= bit
		if err := check(); err == nil {
			t.Errorf("bit %d of byte %d of region %s: not found", bit, at, r.Name)
		}
		w.signed[at] ^= bit
	}
	if err := check(); err != nil {
		t.Error(err)
	}
}

// TestSignRefuses: what is not agreed, or not the agreed bytes, gets no signature.
func TestSignRefuses(t *testing.T) {
	k := keyring()
	for name, c := range map[string]struct {
		change func(w *world)
		want   release.Reason
	}{
		"one builder":   {func(w *world) { w.statements = w.statements[:1] }, release.TooFewBuilders},
		"disagreement":  {restate(func(s *release.Statement) { s.Subject[0].Digest.SHA256 = &release.Digest{9} }), release.Disagree},
		"nothing":       {nothing, 0},
		"no boot image": {func(w *world) { w.addition.Boot = nil }, release.NotSigned},
	} {
		w := newWorld(t)
		c.change(w)
		_, err := w.policy.SignManifest(w.statements, w.addition, w.releasers...)
		if c.want == 0 && err != nil || c.want != 0 && !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
	w := newWorld(t)
	w.addition.Expires = w.addition.Issued
	if _, err := w.policy.SignManifest(w.statements, w.addition, w.releasers...); err == nil {
		t.Error("a manifest without life was signed")
	}
	sub := w.statement.Subject[0]
	sign := func(iso []byte, size int, by ...cms.Signer) error {
		_, err := release.SignBoot(sub, bytes.NewReader(iso), int64(size), by...)
		return err
	}
	size := len(w.iso)
	flipped := slices.Clone(w.iso)
	flipped[size-1] ^= 1
	if err := sign(flipped, size, k.boot); !errors.Is(err, release.Damaged) {
		t.Errorf("damaged ISO: %v", err)
	}
	if err := sign(w.signed, size, k.boot); !errors.Is(err, release.Damaged) {
		t.Errorf("signed ISO: %v", err)
	}
	if err := sign(w.iso, size-1, k.boot); !errors.Is(err, release.WrongSize) {
		t.Errorf("another size: %v", err)
	}
	if err := sign(w.iso[:size-1], size, k.boot); !errors.Is(err, release.WrongSize) && !errors.Is(err, release.Damaged) {
		t.Errorf("shorter than it says: %v", err)
	}
	if err := sign(w.iso, size); err == nil {
		t.Error("nobody signed")
	}
	sub.Digest.SHA256 = &release.Digest{}
	if err := sign(w.iso, size, k.boot); !errors.Is(err, release.Damaged) {
		t.Errorf("another whole: %v", err)
	}
}
