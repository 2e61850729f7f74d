// Package deb reads what a Debian archive publishes, without a line of Debian's
// own tools: signed Release files, package indexes, control paragraphs, version
// numbers, dependencies, and the packages themselves.
//
// The way of trust is: [OpenRelease] checks the archive's OpenPGP signature and
// the dates; a [Release] gives size and SHA-256 of each index; an index
// ([ReadPackages], [ReadSources]) gives size and SHA-256 of each package. Nothing
// below is believed before the digest above it matched. [Universe.Resolve] takes
// a short list of wanted packages and gives the closed set, always the same for
// the same indexes. [ReadArchive] walks through the files of one package.
//
// All input is foreign. Every reader is bounded, refuses what it does not
// understand and has a fuzz target. Not here: the network, files, and which
// packages are wanted (package image/lock).
//
// Sources: deb(5), deb-control(5), deb-version(7), deb822(5), Debian Policy 7,
// the Debian wiki's DebianRepository/Format.
package deb

import (
	"encoding/hex"
	"fmt"
)

// Digest is a SHA-256 digest.
type Digest [32]byte

// String returns d in lower-case hexadecimal, 64 characters.
func (d Digest) String() string { return hex.EncodeToString(d[:]) }

// ParseDigest reads 64 lower-case hexadecimal characters.
func ParseDigest(s string) (d Digest, err error) {
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != len(d) || hex.EncodeToString(b) != s {
		return d, fmt.Errorf("SHA-256 digest of %d characters, want 64 of 0-9a-f", len(s))
	}
	return Digest(b), nil
}

// File is one file that an index names.
type File struct {
	Path   string // with slashes, from the archive's root or the index's directory
	Size   int64  // bytes
	SHA256 Digest
}
