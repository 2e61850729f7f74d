// Package lock pins every input of the image: which bytes may enter, and on
// whose word.
//
// [Maker.Make] asks the archive what there is now, verifies the archive's
// signatures, resolves the short list of what is wanted ([Plan]) to a closed set
// of packages, asks Go's checksum database for the toolchain, and returns a
// [Lock]. The lock is a text file in the tree, image.lock: whoever reviews a
// change of it sees each package that changes. From then on nothing else is
// believed: [Fetcher.Fetch] fills a store with exactly these bytes, from
// whatever mirror has them, and the build takes them from there without a network.
//
// Paths in the lock count from an archive's root. Where that root is stands
// nowhere in the tree: [ReadApt] takes it from the machine's own apt.
package lock

import (
	"bytes"
	"fmt"
	"time"

	"lethe/fault"
	"lethe/image/deb"
)

// FileName is the name of the lock in the tree's root.
const FileName = "image.lock"

// Lock names every input.
type Lock struct {
	Architecture string     // Debian's name for it
	Toolchain    string     // Go's, for instance "go1.26.8"
	GoSum        deb.Digest // of the file go.sum that Modules come from
	Suites       []Suite    // in the plan's order
	Left         []Left     // sorted by set and name
	Choices      []Choice   // sorted by set, package and clause
	Packages     []Package  // sorted by name
	Sources      []Source   // sorted by name and version
	Modules      []Module   // sorted by path and version; the toolchain is one of them
}

// Suite is one suite of the archive at the moment of locking.
type Suite struct {
	Name       string
	Archive    string    // a name of [Plan]: "debian" or "debian-security"
	Date       time.Time // UTC, seconds; a later lock never takes an older one
	ValidUntil time.Time // zero: no end
	Key        string    // fingerprint of the key that signed
	Release    deb.File  // the signed InRelease; path from the archive's root
	Indexes    []deb.File
}

// Left is a dependency that is left out on purpose.
type Left struct{ Set, Name, Why string }

// Choice is a dependency for which there were several packages.
type Choice struct{ Set, By, Clause, Taken string }

// Package is one binary package.
type Package struct {
	Name          string
	Version       deb.Version
	Architecture  string
	Suite         string
	Sets          []string // which parts need it, sorted
	Why           string   // for a wanted package: the plan's reason
	By            string   // for another: the package that first needed it
	Source        string
	SourceVersion deb.Version
	File          deb.File // path from the root of the suite's archive
}

// Source is the source package that one or more of the packages were built
// from, for whoever wants to build them again.
type Source struct {
	Name    string
	Version deb.Version
	Suite   string
	Files   []deb.File // the .dsc and what it names
}

// Module is a Go module, as the module proxy serves it.
type Module struct {
	Path, Version string
	Sum           string   // h1: hash of the module's tree (golang.org/ref/mod#go-sum-files); empty when only go.mod is needed
	ModSum        string   // h1: hash of its go.mod; empty for the toolchain
	Zip           deb.File // Path is empty
	Mod           deb.File // Path is empty
}

// Bytes returns the size of all packages of a set, or of all for "".
func (l *Lock) Bytes(set string) (n int64) {
	for _, p := range l.Packages {
		for i, s := range p.Sets {
			if s == set || set == "" && i == 0 {
				n += p.File.Size
			}
		}
	}
	return n
}

// Keeps says whether the lock names the input of that digest, evidence and
// source packages included.
func (l *Lock) Keeps() func([32]byte) bool {
	all := map[[32]byte]bool{}
	for _, s := range l.Suites {
		all[s.Release.SHA256] = true
		for _, f := range s.Indexes {
			all[f.SHA256] = true
		}
	}
	for _, p := range l.Packages {
		all[p.File.SHA256] = true
	}
	for _, s := range l.Sources {
		for _, f := range s.Files {
			all[f.SHA256] = true
		}
	}
	for _, m := range l.Modules {
		all[m.Zip.SHA256], all[m.Mod.SHA256] = true, true
	}
	return func(d [32]byte) bool { return all[d] }
}

// archive returns the name of the archive that a suite is in.
func (l *Lock) archive(suite string) string {
	for _, s := range l.Suites {
		if s.Name == suite {
			return s.Archive
		}
	}
	return ""
}

// Parse reads a lock. Only the one way in which [Lock.Text] writes it is
// accepted, so unknown fields, another order and repeated stanzas are refused.
func Parse(text []byte) (*Lock, error) {
	l, err := parse(bytes.NewReader(text))
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, FileName+" cannot be read: "+err.Error(), err).WithHint("take it from the tree's history, or make it anew: lethe-image lock")
	}
	if again := l.Text(); !bytes.Equal(again, text) {
		return nil, fault.New(fault.Invalid, fmt.Sprintf("%s was changed by hand: line %d is not as it would be written", FileName, firstLine(again, text))).
			WithHint("take it from the tree's history, or make it anew: lethe-image lock")
	}
	return l, nil
}

// firstLine returns the number of the first line that differs.
func firstLine(a, b []byte) int {
	line := 1
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			break
		}
		if a[i] == '\n' {
			line++
		}
	}
	return line
}
