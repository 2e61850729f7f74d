package deb

import (
	"fmt"
	"io"
	"strings"
)

// Package is one binary package of an index.
type Package struct {
	Name          string
	Version       Version
	Architecture  string
	Source        string // name of the source package
	SourceVersion Version
	Suite         string // the suite whose index named it
	File          File   // path from the archive's root
	Essential     bool
	Depends       []Clause // Pre-Depends and Depends
	Conflicts     []Clause // Conflicts and Breaks
	Provides      []Clause // each of one relation
}

// Source is one source package of an index.
type Source struct {
	Name    string
	Version Version
	Suite   string
	// Files are the .dsc and what it names, sorted as in the index; paths are
	// from the archive's root.
	Files []File
}

// ReadPackages reads an index of binary packages for one architecture,
// without compression, and calls each with every package.
func ReadPackages(r io.Reader, suite, architecture string, each func(*Package) error) error {
	return Paragraphs(r, func(p Paragraph) error {
		k, err := parsePackage(p, architecture)
		if err != nil {
			return fmt.Errorf("package %.60q: %w", p.Get("Package"), err)
		}
		k.Suite = suite
		return each(k)
	})
}

func parsePackage(p Paragraph, architecture string) (*Package, error) {
	k := &Package{Name: p.Get("Package"), Version: Version(p.Get("Version")), Architecture: p.Get("Architecture"), Essential: p.Get("Essential") == "yes"}
	if !PackageName(k.Name) {
		return nil, fmt.Errorf("not a name")
	}
	if err := k.Version.Check(); err != nil {
		return nil, err
	}
	if k.Architecture != architecture && k.Architecture != "all" {
		return nil, fmt.Errorf("architecture %.20q in the index of %s", k.Architecture, architecture)
	}
	k.Source, k.SourceVersion = k.Name, k.Version
	if source := p.Get("Source"); source != "" {
		name, version, has := strings.Cut(source, " ")
		k.Source = name
		if has {
			k.SourceVersion = Version(strings.TrimSuffix(strings.TrimPrefix(version, "("), ")"))
		}
		if !PackageName(k.Source) || k.SourceVersion.Check() != nil {
			return nil, fmt.Errorf("source %.80q", source)
		}
	}
	var err error
	if k.File.SHA256, err = ParseDigest(p.Get("SHA256")); err != nil {
		return nil, err
	}
	if k.File.Size, err = parseSize(p.Get("Size")); err != nil {
		return nil, err
	}
	if k.File.Path = p.Get("Filename"); !LocalPath(k.File.Path) {
		return nil, fmt.Errorf("path %.80q", k.File.Path)
	}
	for _, f := range []struct {
		names [2]string
		to    *[]Clause
	}{{[2]string{"Pre-Depends", "Depends"}, &k.Depends}, {[2]string{"Conflicts", "Breaks"}, &k.Conflicts}, {[2]string{"Provides"}, &k.Provides}} {
		for _, name := range f.names {
			clauses, err := ParseRelations(p.Get(name), architecture)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
			*f.to = append(*f.to, clauses...)
		}
	}
	return k, nil
}

// ReadSources reads an index of source packages, without compression, and
// calls each with every source package whose name wanted accepts.
func ReadSources(r io.Reader, suite string, wanted func(name string) bool, each func(*Source) error) error {
	return Paragraphs(r, func(p Paragraph) error {
		if !wanted(p.Get("Package")) {
			return nil
		}
		s, err := parseSource(p)
		if err != nil {
			return fmt.Errorf("source package %.60q: %w", p.Get("Package"), err)
		}
		s.Suite = suite
		return each(s)
	})
}

func parseSource(p Paragraph) (*Source, error) {
	s := &Source{Name: p.Get("Package"), Version: Version(p.Get("Version"))}
	if !PackageName(s.Name) {
		return nil, fmt.Errorf("not a name")
	}
	if err := s.Version.Check(); err != nil {
		return nil, err
	}
	dir := p.Get("Directory")
	if !LocalPath(dir) {
		return nil, fmt.Errorf("directory %.80q", dir)
	}
	var err error
	if s.Files, err = parseFiles(p.Get("Checksums-Sha256")); err != nil {
		return nil, err
	}
	described := false
	for i := range s.Files {
		f := &s.Files[i]
		if strings.Contains(f.Path, "/") {
			return nil, fmt.Errorf("file %.80q", f.Path)
		}
		described = described || strings.HasSuffix(f.Path, ".dsc")
		f.Path = dir + "/" + f.Path
	}
	if !described {
		return nil, fmt.Errorf("no .dsc with a SHA-256 digest")
	}
	return s, nil
}
