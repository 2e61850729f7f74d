package release

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"

	"lethe/dsse"
	"lethe/fault"
)

// trust is the file form of a [Policy]: keys and certificates in PEM.
type trust struct {
	Builders         []string `json:"builders"`
	Threshold        int      `json:"threshold"`
	Release          []string `json:"release"`
	ReleaseThreshold int      `json:"release_threshold"`
	Boot             []string `json:"boot"`
	Floor            uint64   `json:"floor"`
}

// ParsePolicy reads a policy from JSON. Unknown fields, a key in two roles or twice in
// one, and thresholds that the keys cannot meet are refused: a person writes this
// file, and it is all that a verifier believes.
func ParsePolicy(text []byte) (Policy, error) {
	bad := func(err error) (Policy, error) {
		return Policy{}, fault.Wrap(fault.Invalid, fmt.Sprintf("the trust file cannot be used: %v", err), err)
	}
	var t trust
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(&t); err != nil {
		return bad(err)
	}
	p := Policy{Threshold: t.Threshold, ReleaseThreshold: t.ReleaseThreshold, Floor: t.Floor}
	seen := map[dsse.KeyID]bool{}
	for _, role := range []struct {
		texts []string
		keys  *[]Key
	}{{t.Builders, &p.Builders}, {t.Release, &p.Release}} {
		for _, s := range role.texts {
			k, err := ParseKey([]byte(s))
			if err != nil {
				return bad(err)
			}
			if seen[k.ID] {
				return bad(fmt.Errorf("key %s stands twice", k.ID))
			}
			seen[k.ID] = true
			*role.keys = append(*role.keys, k)
		}
	}
	for _, s := range t.Boot {
		block, rest := pem.Decode([]byte(s))
		if block == nil || len(bytes.TrimSpace(rest)) != 0 {
			return bad(fmt.Errorf("boot wants certificates in PEM"))
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return bad(err)
		}
		p.Boot = append(p.Boot, c)
	}
	if t.Threshold < MinBuilders || t.Threshold > len(p.Builders) || t.ReleaseThreshold < 1 || t.ReleaseThreshold > len(p.Release) {
		return bad(fmt.Errorf("thresholds of %d builders of %d and %d release keys of %d, want at least %d and 1",
			t.Threshold, len(p.Builders), t.ReleaseThreshold, len(p.Release), MinBuilders))
	}
	return p, nil
}
