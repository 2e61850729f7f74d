package release

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"lethe/dsse"
)

// Policy is what a verifier trusts. It comes from elsewhere than the release.
type Policy struct {
	Builders         []Key
	Threshold        int // builders' keys that must agree; below [MinBuilders] means that many
	Release          []Key
	ReleaseThreshold int                 // release keys that must sign; below 1 means 1
	Boot             []*x509.Certificate // who may sign boot images
	Floor            uint64              // lowest version that is accepted
	Now              time.Time
}

// Agree verifies builders' statements and returns what they all state, with
// the keys that stand behind it. Statements that no key of the policy signed are
// ignored, so that anybody may add theirs; a trusted one that differs is a refusal, even
// when enough others agree, because one of the builders is wrong.
func (p Policy) Agree(statements [][]byte) (Statement, []dsse.KeyID, error) {
	var first Statement
	var keys []dsse.KeyID
	seen := map[dsse.KeyID]bool{}
	for _, enveloped := range statements {
		e, err := open(enveloped, StatementType)
		if err != nil {
			return first, nil, err
		}
		by := signers(e, p.Builders)
		if len(by) == 0 {
			continue
		}
		s, err := read[Statement](e.Payload)
		if err != nil {
			return first, nil, err
		}
		s.Predicate.Run = RunDetails{} // all else must be equal
		if len(keys) == 0 {
			first = s
		} else if d := difference(first, s); d != "" {
			return first, nil, refuse(Disagree, nil, d)
		}
		for _, id := range by {
			if !seen[id] {
				keys = append(keys, id)
				seen[id] = true
			}
		}
	}
	if want := max(p.Threshold, MinBuilders); len(keys) < want {
		return first, nil, refuse(TooFewBuilders, nil, fmt.Sprintf("%d of %d", len(keys), want))
	}
	slices.SortFunc(keys, func(a, b dsse.KeyID) int { return bytes.Compare(a[:], b[:]) })
	return first, keys, nil
}

// difference names the first thing in which two values differ, or returns "".
func difference(a, b any) string {
	// Both were read from JSON or passed Validate, so they marshal.
	x, _ := json.Marshal(a)
	y, _ := json.Marshal(b)
	d, _ := compare(x, y)
	if len(d) == 0 {
		return ""
	}
	return d[0].String()
}

// Verify verifies a manifest and the statements that it rests on. It looks at no
// image; see [Policy.VerifyISO].
func (p Policy) Verify(manifest []byte, statements [][]byte) (Manifest, error) {
	e, err := open(manifest, ManifestType)
	if err != nil {
		return Manifest{}, err
	}
	want := max(p.ReleaseThreshold, 1)
	if got := len(signers(e, p.Release)); got < want {
		return Manifest{}, refuse(NotReleased, nil, fmt.Sprintf("%d of %d", got, want))
	}
	m, err := read[Manifest](e.Payload)
	switch {
	case err != nil:
		return m, err
	case m.Issued.After(p.Now.Add(MaxSkew)):
		return m, refuse(NotYet, nil, "")
	case !m.Expires.After(p.Now):
		return m, refuse(Ended, nil, "")
	case m.Version < p.Floor:
		return m, refuse(BelowFloor, nil, fmt.Sprintf("version %d, want %d or later", m.Version, p.Floor))
	}
	s, keys, err := p.Agree(statements)
	if err != nil {
		return m, err
	}
	if d := difference(draft(s, keys), agreed(m)); d != "" {
		return m, refuse(NotAgreed, nil, d)
	}
	return m, nil
}

// draft returns the part of a manifest that follows from the builders' statements.
func draft(s Statement, keys []dsse.KeyID) Manifest {
	m := Manifest{Version: s.Predicate.Definition.External.Version, Commit: s.Predicate.Definition.External.Commit, Builders: keys}
	for _, sub := range s.Subject {
		m.Images = append(m.Images, Released{Name: sub.Name, SHA256: *sub.Digest.SHA256, Image: sub.Annotations})
	}
	return m
}

// agreed returns the part of m that the builders stated: all but what the
// signers of the release added.
func agreed(m Manifest) Manifest {
	a := Manifest{Version: m.Version, Commit: m.Commit, Builders: m.Builders}
	for _, r := range m.Images {
		a.Images = append(a.Images, Released{Name: r.Name, SHA256: r.SHA256, Image: r.Image})
	}
	return a
}

// Addition is what the signers of a release add to what the builders agreed on.
type Addition struct {
	Floor   uint64
	Issued  time.Time
	Expires time.Time
	Boot    map[string]Signed // by flavour
	PCRs    map[string][]PCR  // by flavour: those that depend on the keys
}

// SignManifest returns the manifest of a release. It refuses unless the statements
// of enough builders agree, and unless every image they state has been signed.
func (p Policy) SignManifest(statements [][]byte, a Addition, by ...crypto.Signer) ([]byte, error) {
	s, keys, err := p.Agree(statements)
	if err != nil {
		return nil, err
	}
	m := draft(s, keys)
	m.Floor, m.Issued, m.Expires = a.Floor, a.Issued.UTC().Truncate(time.Second), a.Expires.UTC().Truncate(time.Second)
	for i := range m.Images {
		r := &m.Images[i]
		signed, ok := a.Boot[r.Image.Flavour]
		if !ok {
			return nil, refuse(NotSigned, nil, r.Name)
		}
		r.Signed, r.Signatures, r.PCRs = signed.SHA256, []Region{signed.Region}, a.PCRs[r.Image.Flavour]
		if r.PCRs == nil {
			r.PCRs = []PCR{}
		}
	}
	payload, err := encode(m)
	if err != nil {
		return nil, fmt.Errorf("sign: %w", err)
	}
	return seal(ManifestType, payload, by)
}

// Difference is one place in which two statements differ. A missing value is "".
type Difference struct {
	Path string `json:"path"` // for instance "subject/0/digest/sha256"
	A    string `json:"a"`
	B    string `json:"b"`
}

// String returns the difference in one line.
func (d Difference) String() string {
	missing := func(s string) string {
		if s == "" {
			return "nothing"
		}
		return s
	}
	return fmt.Sprintf("%s: %s and %s", d.Path, missing(d.A), missing(d.B))
}

// Compare lists what differs between the payloads of two envelopes of the same
// kind, in the order of the files. Nothing is verified. The names of the builders are left out.
func Compare(a, b []byte) ([]Difference, error) {
	var payloads [2][]byte
	var kind string
	for i, enveloped := range [][]byte{a, b} {
		if len(enveloped) > MaxFileSize {
			return nil, refuse(TooLarge, nil, "")
		}
		e, err := decode[dsse.Envelope](enveloped)
		if err != nil {
			return nil, err
		}
		if i > 0 && e.PayloadType != kind {
			return nil, refuse(WrongType, nil, "")
		}
		payloads[i], kind = e.Payload, e.PayloadType
	}
	all, err := compare(payloads[0], payloads[1])
	return slices.DeleteFunc(all, func(d Difference) bool { return d.Path == "predicate/runDetails/builder/id" }), err
}

func compare(a, b []byte) ([]Difference, error) {
	var v [2]any
	for i, payload := range [][]byte{a, b} {
		d := json.NewDecoder(bytes.NewReader(payload))
		d.UseNumber()
		if err := d.Decode(&v[i]); err != nil {
			return nil, refuse(Malformed, err, "")
		}
	}
	return walk(nil, "", v[0], v[1]), nil
}

func walk(found []Difference, path string, a, b any) []Difference {
	below := func(key string) string { return strings.TrimPrefix(path+"/"+key, "/") }
	switch x := a.(type) {
	case map[string]any:
		if y, ok := b.(map[string]any); ok {
			keys := map[string]bool{}
			for k := range x {
				keys[k] = true
			}
			for k := range y {
				keys[k] = true
			}
			for _, k := range sorted(keys) {
				found = walk(found, below(k), x[k], y[k])
			}
			return found
		}
	case []any:
		if y, ok := b.([]any); ok {
			for i := range max(len(x), len(y)) {
				var p, q any
				if i < len(x) {
					p = x[i]
				}
				if i < len(y) {
					q = y[i]
				}
				found = walk(found, below(label(i, p, q)), p, q)
			}
			return found
		}
	}
	if s, t := text(a), text(b); s != t {
		found = append(found, Difference{path, s, t})
	}
	return found
}

func sorted(keys map[string]bool) []string {
	all := make([]string, 0, len(keys))
	for k := range keys {
		all = append(all, k)
	}
	slices.Sort(all)
	return all
}

// label names an element of a list by its own name where both sides have one.
func label(i int, a, b any) string {
	x, _ := a.(map[string]any)
	y, _ := b.(map[string]any)
	for _, key := range []string{"name", "uri"} {
		if n, ok := x[key].(string); ok && n == y[key] {
			return n
		}
	}
	return fmt.Sprint(i)
}

func text(v any) string {
	if v == nil {
		return ""
	}
	b, _ := json.Marshal(v) // it came from JSON
	return strings.Trim(string(b), `"`)
}
