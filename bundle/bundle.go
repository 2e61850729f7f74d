// Package bundle is the signed configuration of the VPN servers: what the
// control plane publishes, what a server accepts, and how the bytes get from
// one to the other through hands that need not be trusted.
//
// Three roles sign, each its own kind of statement, as an envelope after the
// DSSE specification (github.com/secure-systems-lab/dsse) with Ed25519 keys:
//
//   - root signs [Root]: the keys and thresholds of all roles. A server gets
//     its first root with its secrets and walks forward from it, one version
//     at a time, each signed by the old and the new threshold (TUF 1.0,
//     section 5.3).
//   - config signs [Manifest]: the version and the list of files with sizes
//     and digests.
//   - fresh signs [Freshness]: which manifest is the present one. It lives for
//     minutes, because a server in RAM forgets at every boot which version it
//     saw last and could otherwise be fed an old bundle.
//
// The way through the package: [Trust] verifies statements and knows nothing
// of networks. [Client] fetches what changed, opens sealed files ([Seal],
// [Open]) into sealed memory and hands out a [Set], which is immutable. What is
// refused is refused with a [Reason]; the last good Set stays in use until its
// manifest expires. doc/bundle.md describes the format byte by byte and lists
// attacks and what stops them.
package bundle

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"

	"lethe/dsse"
)

// Digest is a SHA-256 (FIPS 180-4); as text it is 64 small hexadecimal digits.
type Digest = dsse.Digest

// Role is one of the three kinds of signed statement.
type Role string

// The roles.
const (
	RootRole   Role = "root"
	ConfigRole Role = "config"
	FreshRole  Role = "fresh"
)

// PayloadType returns the DSSE payload type of the role's statements. It is
// part of what is signed, so a statement of one role never passes for another.
func (r Role) PayloadType() string { return "application/vnd.lethe." + string(r) + "+json" }

// Bounds that are compiled in. A statement beyond them is refused even when
// its signatures are good, so a slip of a signer does not last for years.
const (
	MaxRootSize      = 64 << 10              // bytes of an enveloped root
	MaxManifestSize  = 1 << 20               // bytes of an enveloped manifest
	MaxFreshnessSize = 4 << 10               // bytes of an enveloped freshness statement
	MaxFiles         = 2048                  // files in one manifest
	MaxFileSize      = 1 << 30               // bytes of one file, sealed or plain
	MaxTotalSize     = 3 << 30               // plain bytes of all files of one manifest
	MaxManifestLife  = 14 * 24 * time.Hour   // from issued to expires
	MaxFreshnessLife = 24 * time.Hour        // from issued to expires
	MaxRootLife      = 1100 * 24 * time.Hour // from issued to expires, about three years
	MaxSkew          = 5 * time.Minute       // how far ahead of our clock a statement may be issued
	MaxRotations     = 64                    // roots walked in one update
	MaxSignatures    = 32                    // signatures in one envelope, and keys in one root
)

// Root lists the keys and thresholds of every role.
type Root struct {
	Version uint64              `json:"version"` // from 1, each rotation adds 1
	Issued  time.Time           `json:"issued"`
	Expires time.Time           `json:"expires"`
	Keys    []Key               `json:"keys"`  // ascending by id
	Roles   map[Role]Delegation `json:"roles"` // exactly the three roles
}

// Delegation says whose signatures a role's statement needs.
type Delegation struct {
	Keys      []KeyID `json:"keys"` // ascending
	Threshold int     `json:"threshold"`
}

// Manifest lists the files of one bundle.
type Manifest struct {
	Version uint64    `json:"version"`
	Issued  time.Time `json:"issued"`
	Expires time.Time `json:"expires"`
	Files   []File    `json:"files"` // ascending by name
}

// File is one file of a bundle. Size and SHA256 are of the bytes as stored;
// when Sealed, PlainSize and PlainSHA256 are of the bytes inside.
type File struct {
	Name        string  `json:"name"`
	Size        int64   `json:"size"`
	SHA256      Digest  `json:"sha256"`
	Sealed      bool    `json:"sealed,omitempty"`
	PlainSize   int64   `json:"plain_size,omitempty"`
	PlainSHA256 *Digest `json:"plain_sha256,omitempty"`
}

// Content returns the size and digest of the file's plain bytes.
func (f File) Content() (int64, Digest) {
	if f.Sealed {
		return f.PlainSize, *f.PlainSHA256
	}
	return f.Size, f.SHA256
}

// Freshness says which manifest is the present one.
type Freshness struct {
	Version  uint64    `json:"version"`  // version of the manifest
	Manifest Digest    `json:"manifest"` // SHA-256 of the manifest's envelope
	Issued   time.Time `json:"issued"`
	Expires  time.Time `json:"expires"`
}

// The names of a bundle's files, besides those of the authentication
// database's segments, which begin with SegmentPrefix.
const (
	SegmentPrefix = "authdb/"
	GeoIPFile     = "geoip.mmdb"
	DirectoryFile = "directory.json"
	NodeFile      = "node.json"
)

// The paths under which a bundle is published.
const FreshnessPath = "freshness.json"

// RootPath returns the path of a root.
func RootPath(version uint64) string { return fmt.Sprintf("root/%d.json", version) }

// ManifestPath returns the path of a manifest.
func ManifestPath(version uint64) string { return fmt.Sprintf("manifest/%d.json", version) }

// FilePath returns the path of a file with that digest of its stored bytes.
func FilePath(stored Digest) string { return "files/" + stored.String() }

var nameForm = regexp.MustCompile(`^[a-z0-9]+([./-][a-z0-9]+)*$`)

// interval checks the two times of a statement that do not depend on a clock.
func interval(what string, issued, expires time.Time, longest time.Duration) error {
	_, zone1 := issued.Zone()
	_, zone2 := expires.Zone()
	switch {
	case zone1 != 0 || zone2 != 0:
		return fmt.Errorf("%s: times must be in UTC", what)
	case issued.Nanosecond() != 0 || expires.Nanosecond() != 0 || issued.Unix() <= 0:
		return fmt.Errorf("%s: times must be whole seconds after 1970", what)
	case !expires.After(issued) || expires.Sub(issued) > longest:
		return fmt.Errorf("%s: lives from %s to %s, want more than nothing and at most %s",
			what, issued.Format(time.RFC3339), expires.Format(time.RFC3339), longest)
	}
	return nil
}

// Validate returns what is wrong with r whatever the time is, or nil.
func (r Root) Validate() error {
	if r.Version == 0 {
		return fmt.Errorf("root: version is 0")
	}
	if err := interval("root", r.Issued, r.Expires, MaxRootLife); err != nil {
		return err
	}
	if len(r.Keys) > MaxSignatures || len(r.Roles) != 3 {
		return fmt.Errorf("root: %d keys and %d roles, want at most %d and exactly 3", len(r.Keys), len(r.Roles), MaxSignatures)
	}
	known := map[KeyID]bool{}
	for i, k := range r.Keys {
		if err := k.validate(); err != nil {
			return err
		}
		if i > 0 && r.Keys[i-1].ID.String() >= k.ID.String() {
			return fmt.Errorf("root: keys are not in ascending order")
		}
		known[k.ID] = true
	}
	for _, role := range []Role{RootRole, ConfigRole, FreshRole} {
		d, ok := r.Roles[role]
		if !ok || d.Threshold < 1 || d.Threshold > len(d.Keys) {
			return fmt.Errorf("root: role %s: threshold %d of %d keys", role, d.Threshold, len(d.Keys))
		}
		for i, id := range d.Keys {
			if !known[id] || i > 0 && d.Keys[i-1].String() >= id.String() {
				return fmt.Errorf("root: role %s: keys must be known, different and in ascending order", role)
			}
		}
	}
	return nil
}

// Validate returns what is wrong with m whatever the time is, or nil.
func (m Manifest) Validate() error {
	if m.Version == 0 || len(m.Files) == 0 || len(m.Files) > MaxFiles {
		return fmt.Errorf("manifest: version %d with %d files, want at least 1 and at most %d files", m.Version, len(m.Files), MaxFiles)
	}
	if err := interval("manifest", m.Issued, m.Expires, MaxManifestLife); err != nil {
		return err
	}
	var total int64
	for i, f := range m.Files {
		if err := f.validate(); err != nil {
			return err
		}
		if i > 0 && m.Files[i-1].Name >= f.Name {
			return fmt.Errorf("manifest: files are not in ascending order of their names")
		}
		size, _ := f.Content()
		total += size
	}
	if total > MaxTotalSize {
		return fmt.Errorf("manifest: files of %d bytes in all, want at most %d", total, int64(MaxTotalSize))
	}
	return nil
}

func (f File) validate() error {
	_, isSegment := SegmentSpan(f.Name)
	switch {
	case len(f.Name) > 64 || !nameForm.MatchString(f.Name):
		return fmt.Errorf("manifest: a file's name is not of the form a/b-c.d")
	case f.Sealed != (f.PlainSHA256 != nil) || f.Sealed != (f.PlainSize != 0):
		return fmt.Errorf("manifest: %s: plain size and digest belong to sealed files and only to them", f.Name)
	case strings.HasPrefix(f.Name, SegmentPrefix) && !f.Sealed:
		return fmt.Errorf("manifest: %s: is not sealed", f.Name)
	case strings.HasPrefix(f.Name, SegmentPrefix) && !isSegment:
		return fmt.Errorf("manifest: %s: want authdb/<from>-<to>", f.Name)
	case f.Size < 1 || f.Size > MaxFileSize:
		return fmt.Errorf("manifest: %s: size %d, want 1 to %d", f.Name, f.Size, MaxFileSize)
	case f.Sealed && (f.PlainSize < 1 || SealedSize(f.PlainSize) != f.Size):
		return fmt.Errorf("manifest: %s: %d plain bytes do not seal to %d", f.Name, f.PlainSize, f.Size)
	}
	return nil
}

// Validate returns what is wrong with f whatever the time is, or nil.
func (f Freshness) Validate() error {
	if f.Version == 0 {
		return fmt.Errorf("freshness statement: version is 0")
	}
	return interval("freshness statement", f.Issued, f.Expires, MaxFreshnessLife)
}

// Statement is what a role signs: a [Root], a [Manifest] or a [Freshness].
type Statement interface {
	// Validate returns what is wrong with the statement whatever the time is.
	Validate() error
	role() Role
}

func (Root) role() Role      { return RootRole }
func (Manifest) role() Role  { return ConfigRole }
func (Freshness) role() Role { return FreshRole }

// decode reads the one JSON encoding that a statement has, see [dsse.Decode].
func decode[T any](b []byte) (T, error) {
	v, err := dsse.Decode[T](b)
	switch {
	case errors.Is(err, dsse.ErrNotCanonical):
		return v, refuse(NotCanonical, err)
	case err != nil:
		return v, refuse(Malformed, err)
	}
	return v, nil
}
