// Package release turns images that several builders made into a release that
// anybody can check offline.
//
// A builder signs a [Statement]: an in-toto Statement v1 (in-toto attestation
// framework) with SLSA provenance v1 that names the source, the locked inputs and, for
// each flavour, an [Image]: the ISO's digest and the regions that cover every
// byte of it. Builders' keys are different people's.
//
// [Policy.Agree] takes the statements of at least two builders' keys and gives the
// one thing they all state. [SignBoot] then signs the boot image in the ISO for Secure Boot,
// in the space that every image keeps empty for it, so that zeroing the
// regions called signatures gives the agreed file back. The release keys, which
// live in tokens (package image/token), sign a [Manifest]: version, floor, expiry
// and the digests of both forms.
//
// [Policy.Verify] checks all of it without network: signatures, agreement, time
// and floor in about a millisecond, and then [Policy.VerifyISO] every bit of the
// image. Every refusal has a [Reason]. doc/release.md describes the files.
//
// All files are DSSE envelopes (package dsse) with one encoding. Statements
// hold no time and no machine's name, so that two builders' payloads differ in the
// builder's name only.
package release

import (
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"time"

	"lethe/dsse"
)

// Digest is a SHA-256.
type Digest = dsse.Digest

// Types of payloads.
const (
	StatementType = "application/vnd.in-toto+json"
	ManifestType  = "application/vnd.lethe.release+json"

	inTotoType    = "https://in-toto.io/Statement/v1"
	predicateType = "https://slsa.dev/provenance/v1"
	buildType     = "https://lethe.example/image/v1"
)

// Bounds that are compiled in.
const (
	MaxFileSize   = 1 << 20 // bytes of an enveloped statement or manifest
	MaxISOSize    = 1 << 30
	MaxBootSize   = 256 << 20 // bytes of a boot image
	MaxRegions    = 1024
	MaxSignatures = 32
	MaxLife       = 400 * 24 * time.Hour // of a release
	MaxSkew       = 5 * time.Minute      // how far ahead of our clock a manifest may be issued
	MinBuilders   = 2                    // builders' keys that must agree, whatever a policy says
)

// Region is a run of bytes of an ISO. In a statement a signature's bytes are all zero.
type Region struct {
	Name      string `json:"name"`
	Offset    int64  `json:"offset"`
	Length    int64  `json:"length"`
	SHA256    Digest `json:"sha256"`
	Signature bool   `json:"signature,omitempty"`
}

// Part is something inside the ISO that has a digest of its own, such as the
// root file system or the SBOM.
type Part struct {
	Name   string `json:"name"`
	SHA256 Digest `json:"sha256"`
}

// PCR is the value that a register of the TPM's SHA-256 bank will have.
type PCR struct {
	Index  int    `json:"index"`
	SHA256 Digest `json:"sha256"`
}

// Image is one ISO as builders agree on it.
type Image struct {
	Flavour    string   `json:"flavour"` // "vm" or "hardware", or another small word
	Size       int64    `json:"size"`
	Regions    []Region `json:"regions"` // ascending, without gaps, from 0 to Size
	BootOffset int64    `json:"boot_offset"`
	BootLength int64    `json:"boot_length"` // the unified kernel image, with its space for signatures
	Parts      []Part   `json:"parts"`       // ascending by name
	PCRs       []PCR    `json:"pcrs"`        // ascending by index
}

// DigestSet is in-toto's map of digests, with the two kinds that we use.
type DigestSet struct {
	SHA256    *Digest `json:"sha256,omitempty"`
	GitCommit string  `json:"gitCommit,omitempty"`
}

// Subject is an ISO with its agreed digest.
type Subject struct {
	Name        string    `json:"name"`
	Digest      DigestSet `json:"digest"`
	Annotations Image     `json:"annotations"`
}

// Input is something that went into the build.
type Input struct {
	URI    string    `json:"uri"` // relative, without host: "git", "image.lock", "pool/main/..."
	Digest DigestSet `json:"digest"`
}

// Parameters are what a builder was asked to build.
type Parameters struct {
	Version uint64 `json:"version"` // rises with every release
	Commit  string `json:"commit"`  // 40 or 64 hexadecimal digits
	Epoch   int64  `json:"epoch"`   // SOURCE_DATE_EPOCH, seconds since 1970
}

// Definition is SLSA's buildDefinition.
type Definition struct {
	BuildType string     `json:"buildType"`
	External  Parameters `json:"externalParameters"`
	Inputs    []Input    `json:"resolvedDependencies"` // ascending by URI
}

// Builder names who built. The name is the builder's own; trust goes by key.
type Builder struct {
	ID string `json:"id"`
}

// RunDetails is SLSA's runDetails.
type RunDetails struct {
	Builder Builder `json:"builder"`
}

// Provenance is the predicate of SLSA provenance v1.
type Provenance struct {
	Definition Definition `json:"buildDefinition"`
	Run        RunDetails `json:"runDetails"`
}

// Statement is what a builder signs.
type Statement struct {
	Type          string     `json:"_type"`
	Subject       []Subject  `json:"subject"` // ascending by flavour
	PredicateType string     `json:"predicateType"`
	Predicate     Provenance `json:"predicate"`
}

// NewStatement returns the statement of a build.
func NewStatement(builder string, p Parameters, inputs []Input, subjects []Subject) Statement {
	return Statement{Type: inTotoType, Subject: subjects, PredicateType: predicateType,
		Predicate: Provenance{Definition: Definition{buildType, p, inputs}, Run: RunDetails{Builder{builder}}}}
}

// Released is an ISO of a release: as agreed, and as signed for Secure Boot.
type Released struct {
	Name       string   `json:"name"`
	SHA256     Digest   `json:"sha256"` // agreed: the regions of signatures are zero
	Image      Image    `json:"image"`
	Signed     Digest   `json:"signed_sha256"`
	Signatures []Region `json:"signatures"` // the regions of signatures, as signed
	PCRs       []PCR    `json:"pcrs"`       // those that depend on the keys, such as 7; ascending
}

// Manifest is what the release keys sign.
type Manifest struct {
	Version  uint64       `json:"version"`
	Commit   string       `json:"commit"`
	Floor    uint64       `json:"floor"` // whoever takes up this release accepts no lower version any more
	Issued   time.Time    `json:"issued"`
	Expires  time.Time    `json:"expires"`
	Builders []dsse.KeyID `json:"builders"` // whose statements agreed; ascending
	Images   []Released   `json:"images"`   // ascending by flavour
}

var (
	word   = regexp.MustCompile(`^[a-z][a-z0-9-]{0,31}$`)
	name   = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._+~:/-]{0,255}$`)
	commit = regexp.MustCompile(`^([0-9a-f]{40}|[0-9a-f]{64})$`)
)

// Validate returns what is wrong with the statement, or nil.
func (s Statement) Validate() error {
	p := s.Predicate.Definition
	switch {
	case s.Type != inTotoType || s.PredicateType != predicateType || p.BuildType != buildType:
		return fmt.Errorf("statement: types are not those of a build of this image")
	case p.External.Version == 0 || !commit.MatchString(p.External.Commit) || p.External.Epoch < 1:
		return fmt.Errorf("statement: version, commit or epoch is missing")
	case !name.MatchString(s.Predicate.Run.Builder.ID):
		return fmt.Errorf("statement: the builder has no name")
	case len(s.Subject) == 0:
		return fmt.Errorf("statement: no image")
	}
	for i, in := range p.Inputs {
		if !name.MatchString(in.URI) || !in.Digest.valid() || i > 0 && p.Inputs[i-1].URI >= in.URI {
			return fmt.Errorf("statement: inputs want names, one digest each and ascending order")
		}
	}
	for i, sub := range s.Subject {
		if !name.MatchString(sub.Name) || sub.Digest.SHA256 == nil || sub.Digest.GitCommit != "" {
			return fmt.Errorf("statement: an image wants a name and a SHA-256")
		}
		if i > 0 && s.Subject[i-1].Annotations.Flavour >= sub.Annotations.Flavour {
			return fmt.Errorf("statement: images are not in ascending order of their flavours")
		}
		if err := sub.Annotations.Validate(); err != nil {
			return err
		}
	}
	return nil
}

func (d DigestSet) valid() bool {
	if d.SHA256 != nil {
		return d.GitCommit == ""
	}
	return commit.MatchString(d.GitCommit)
}

// Validate returns what is wrong with the image's description, or nil.
func (i Image) Validate() error {
	if !word.MatchString(i.Flavour) || i.Size < 1 || i.Size > MaxISOSize || len(i.Regions) > MaxRegions {
		return fmt.Errorf("image: flavour, size or number of regions is out of bounds")
	}
	end, signatures := int64(0), 0
	names := map[string]bool{}
	for _, r := range i.Regions {
		if !name.MatchString(r.Name) || names[r.Name] || r.Offset != end || r.Length < 1 || r.Length > i.Size-end {
			return fmt.Errorf("image %s: regions do not cover every byte once, each under its own name", i.Flavour)
		}
		names[r.Name] = true
		end += r.Length
		if r.Signature {
			signatures++
			if r.Offset < i.BootOffset || end > i.BootOffset+i.BootLength {
				return fmt.Errorf("image %s: region %s: signatures lie in the boot image only", i.Flavour, r.Name)
			}
		}
	}
	if end != i.Size || signatures != 1 {
		return fmt.Errorf("image %s: regions cover %d of %d bytes and %d signatures, want all and one", i.Flavour, end, i.Size, signatures)
	}
	if i.BootOffset < 0 || i.BootLength < 1 || i.BootLength > MaxBootSize || i.BootOffset > i.Size-i.BootLength {
		return fmt.Errorf("image %s: the boot image is not inside", i.Flavour)
	}
	for n, p := range i.Parts {
		if !name.MatchString(p.Name) || n > 0 && i.Parts[n-1].Name >= p.Name {
			return fmt.Errorf("image %s: parts want names in ascending order", i.Flavour)
		}
	}
	return ascending(i.Flavour, i.PCRs)
}

func ascending(flavour string, pcrs []PCR) error {
	for n, p := range pcrs {
		if p.Index < 0 || p.Index > 23 || n > 0 && pcrs[n-1].Index >= p.Index {
			return fmt.Errorf("image %s: PCRs are 0 to 23, in ascending order", flavour)
		}
	}
	return nil
}

// signature returns the region that is kept for signatures.
func (i Image) signature() Region {
	return i.Regions[slices.IndexFunc(i.Regions, func(r Region) bool { return r.Signature })]
}

// Validate returns what is wrong with m whatever the time is, or nil.
func (m Manifest) Validate() error {
	switch {
	case m.Version == 0 || m.Floor > m.Version || !commit.MatchString(m.Commit):
		return fmt.Errorf("manifest: version, floor or commit is out of bounds")
	case m.Issued.Location() != time.UTC || m.Expires.Location() != time.UTC || m.Issued.Nanosecond() != 0 || m.Expires.Nanosecond() != 0:
		return fmt.Errorf("manifest: times want UTC and whole seconds")
	case !m.Expires.After(m.Issued) || m.Expires.Sub(m.Issued) > MaxLife:
		return fmt.Errorf("manifest: expires after %v, want at most %v", m.Expires.Sub(m.Issued), MaxLife)
	case len(m.Images) == 0 || len(m.Builders) < MinBuilders:
		return fmt.Errorf("manifest: %d images by %d builders", len(m.Images), len(m.Builders))
	}
	for i, b := range m.Builders {
		if i > 0 && m.Builders[i-1].String() >= b.String() {
			return fmt.Errorf("manifest: builders are not in ascending order")
		}
	}
	for i, r := range m.Images {
		if err := r.validate(); err != nil {
			return err
		}
		if i > 0 && m.Images[i-1].Image.Flavour >= r.Image.Flavour {
			return fmt.Errorf("manifest: images are not in ascending order of their flavours")
		}
	}
	return nil
}

func (r Released) validate() error {
	if err := r.Image.Validate(); err != nil {
		return err
	}
	want := r.Image.signature()
	if !name.MatchString(r.Name) || len(r.Signatures) != 1 {
		return fmt.Errorf("manifest: an image wants a name and its signatures' digest")
	}
	got := r.Signatures[0]
	if got.SHA256 = want.SHA256; got != want {
		return fmt.Errorf("manifest: signatures are in another region than stated")
	}
	return ascending(r.Image.Flavour, r.PCRs)
}

// Encode returns the one encoding of a valid statement or manifest.
func encode(v interface{ Validate() error }) ([]byte, error) {
	if err := v.Validate(); err != nil {
		return nil, err
	}
	return json.Marshal(v)
}
