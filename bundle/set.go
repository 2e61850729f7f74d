package bundle

import (
	"sync/atomic"
	"time"
)

// Set is one verified bundle: its manifest and the content of every file in
// read-only memory. It is immutable and safe for concurrent use.
//
// A Set is counted: whoever received one calls [Set.Close] when done, and
// [Set.Retain] before giving it to somebody who will close it too. With the last
// Close its memory is unmapped, except for files that a newer Set shares; a
// slice from [Set.File] must not be touched after that (the process would die
// of SIGSEGV, not read something else).
type Set struct {
	manifest Manifest
	files    map[string]*memory
	refs     atomic.Int64
}

// Version returns the version of the manifest.
func (s *Set) Version() uint64 { return s.manifest.Version }

// Manifest returns the manifest; the caller must not change its Files.
func (s *Set) Manifest() Manifest { return s.manifest }

// Files returns the files in ascending order of their names; the caller must
// not change the slice.
func (s *Set) Files() []File { return s.manifest.Files }

// File returns the content of a file, opened and verified, and whether there
// is such a file. The bytes are read-only and valid until the last Close.
func (s *Set) File(name string) ([]byte, bool) {
	m, ok := s.files[name]
	if !ok {
		return nil, false
	}
	return m.data, true
}

// Expired reports whether the manifest has ended. Then nobody may be let in by
// it; see doc/bundle.md for why nothing shorter ends a Set.
func (s *Set) Expired(now time.Time) bool { return !s.manifest.Expires.After(now) }

// Retain adds a reference and returns s.
func (s *Set) Retain() *Set {
	if s.refs.Add(1) < 2 {
		s.refs.Add(-1)
		panic("bundle: internal error: a closed set is used again")
	}
	return s
}

// Close drops a reference. It never fails.
func (s *Set) Close() error {
	switch n := s.refs.Add(-1); {
	case n == 0:
		for _, m := range s.files {
			m.release()
		}
	case n < 0:
		panic("bundle: internal error: a set is closed too often")
	}
	return nil
}
