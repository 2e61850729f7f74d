// Package scan looks for secrets in an image: what must not be in something that could be
// published. The build fails on a finding; inspect shows them.
//
// There are four kinds of rules:
//
//	by form      PEM, DER and OpenSSH keys, tokens with a known beginning, JSON web tokens, password
//	             hashes, passwords in URLs and behind names such as "password" (forms.go, der.go, text.go)
//	by name      files that hold secrets whatever is in them, and those that must be empty (names.go)
//	by chance    what looks random in a file of text (text.go)
//	by needle    what the builder knows of its own machine: user, host, paths
//
// All forms are searched for in one pass: a table of two bytes finds where one of them may
// begin (index.go), and then a function looks closely, so that it is the close look and
// not the first one that must be right. Forms that mean nothing without a body, such as the
// words that begin a PEM block, are findings with the body only: programs that read keys are
// full of the words.
//
// Searched is every file of root, initramfs, EFI system partition and ISO 9660 volume,
// unpacked once more when it is gzip, xz or zstd; names and link targets; the sections of
// the boot image; and the medium as it lies there, with what is between the partitions.
//
// A finding never holds the secret, but its digest. What is known to be harmless, such as
// the test vectors inside a library, is in a list with path, digest and reason
// (allow.go): another secret in the same file is still found. What is not found:
// a secret in a form of its own, inside binary files; a password that is a word.
package scan

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"path"
	"runtime"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"lethe/image/medium"
	"lethe/image/tree"
)

// Layers of an image, as findings name them.
const (
	Root      = "root"
	Initramfs = "initramfs"
	Boot      = "boot image" // its sections
	System    = "EFI system partition"
	Volume    = "ISO 9660 volume"
	Bytes     = "medium" // as it lies there
)

// Bounds.
const (
	maxFile   = 1 << 30   // bytes of a file that is searched; a larger one is an error
	maxNested = 256 << 20 // bytes of a packed file's content
	window    = 8 << 20   // bytes of the medium that are searched at once
	overlap   = 128 << 10 // of two windows: the longest secret that is found across their border
)

// Digest is a SHA-256.
type Digest [sha256.Size]byte

// String returns d in hexadecimal.
func (d Digest) String() string { return hex.EncodeToString(d[:]) }

// MarshalText implements [encoding.TextMarshaler].
func (d Digest) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// Finding is one secret, or what looks like one.
type Finding struct {
	Layer  string `json:"layer"`
	Path   string `json:"path,omitempty"`   // in the layer; a section's name
	Packed bool   `json:"packed,omitempty"` // it was found in the unpacked content of the file
	Offset int64  `json:"offset"`           // bytes from the beginning of the content or the medium
	Line   int    `json:"line,omitempty"`   // in a file of text, from 1
	Rule   string `json:"rule"`
	What   string `json:"what"`   // a description without the secret
	Digest Digest `json:"sha256"` // of the secret as it stands there

	end int64 // byte behind it
}

// String describes f in one line.
func (f Finding) String() string {
	at := fmt.Sprintf("byte %d", f.Offset)
	if f.Line > 0 {
		at = fmt.Sprintf("line %d", f.Line)
	}
	if f.Packed {
		at += " of what it unpacks to"
	}
	return fmt.Sprintf("%s: %s, %s: %s (%s, sha256 %s)", f.Layer, cmp.Or(f.Path, "-"), at, f.What, f.Rule, f.Digest)
}

// Needle is something that must not be in the image.
type Needle struct {
	What  string // what it is: "host name of the builder"
	Value string // at least four bytes
}

// Options say what else is to be looked for, and what is known.
type Options struct {
	Needles []Needle
	// Ours says which files we wrote: in those, e-mail addresses and home directories are
	// findings. nil: configuration and programs that are called lethe.
	Ours func(*tree.Entry) bool
	// Allow is what is harmless; nil is [Known].
	Allow []Allowed
}

// scanner is one search.
type scanner struct {
	Options
	index *index

	mu    sync.Mutex
	found []Finding
}

func (o Options) scanner() (*scanner, error) {
	if o.Ours == nil {
		o.Ours = ours
	}
	if o.Allow == nil {
		o.Allow = Known()
	}
	all := forms()
	for _, n := range o.Needles {
		if len(n.Value) < 4 {
			return nil, fmt.Errorf("scan: %s is too short to be looked for", n.What)
		}
		all = append(all, needle(n)...)
	}
	return &scanner{Options: o, index: newIndex(all)}, nil
}

func ours(e *tree.Entry) bool {
	return under(e.Path, "etc") || bytes.HasPrefix([]byte(path.Base(e.Path)), []byte("lethe")) || e.Path == "init"
}

// Tree searches a tree; layer names it in findings.
func Tree(ctx context.Context, layer string, t *tree.Tree, o Options) ([]Finding, error) {
	s, err := o.scanner()
	if err != nil {
		return nil, err
	}
	if err := s.tree(ctx, layer, t); err != nil {
		return nil, err
	}
	return s.result(), nil
}

// Medium searches an image: every layer, and the medium itself.
func Medium(ctx context.Context, m *medium.Medium, o Options) ([]Finding, error) {
	s, err := o.scanner()
	if err != nil {
		return nil, err
	}
	layers := []struct {
		name string
		tree *tree.Tree
	}{{Root, m.Files}, {Initramfs, m.Initramfs}, {System, m.ESP.Tree}}
	if m.Volume != nil {
		layers = append(layers, struct {
			name string
			tree *tree.Tree
		}{Volume, m.Volume.Tree})
	}
	for _, l := range layers {
		if err := s.tree(ctx, l.name, l.tree); err != nil {
			return nil, err
		}
	}
	for _, section := range m.PE.Sections() {
		if section.Name == medium.Initrd { // searched as what it unpacks to
			continue
		}
		s.content(file{layer: Boot, path: section.Name, ours: section.Name == medium.Cmdline || section.Name == medium.OSRelease}, section.Data)
	}
	if m.FS.Xattrs > 0 {
		s.add(Finding{Layer: Root, Path: ".", Rule: "attributes", What: fmt.Sprintf("%d sets of extended attributes, which nothing here needs", m.FS.Xattrs)})
	}
	if err := s.gaps(m); err != nil {
		return nil, err
	}
	if err := s.medium(ctx, m, m.Size); err != nil {
		return nil, err
	}
	return s.result(), nil
}

// file is what is known of bytes that are searched.
type file struct {
	layer, path string
	ours        bool
	offset      int64 // of the bytes, in what they are a part of
	limit       int   // what begins here or later is another's, who has more of it; 0 for none
	raw         bool  // the bytes are a medium's, not a file's
	packed      bool
}

// tree searches names and contents, as many files at once as there are processors.
func (s *scanner) tree(ctx context.Context, layer string, t *tree.Tree) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(runtime.GOMAXPROCS(0))
	for e := range t.All() {
		f := file{layer: layer, path: e.Path, ours: s.Ours(e)}
		s.name(f, e)
		for _, text := range []string{e.Path, e.Link} {
			s.forms(f, []byte(text), kindText)
		}
		if !e.Mode.IsRegular() || e.Size == 0 {
			continue
		}
		if e.Size > maxFile {
			return fmt.Errorf("scan: %s: %s is too large", layer, e.Path)
		}
		g.Go(func() error {
			if err := ctx.Err(); err != nil {
				return err
			}
			b, err := e.Read()
			if err != nil {
				return fmt.Errorf("scan: %s: %w", layer, err)
			}
			s.content(f, b)
			return nil
		})
	}
	return g.Wait()
}

// content searches a file's bytes, and what they unpack to.
func (s *scanner) content(f file, b []byte) {
	kind := kindOf(b)
	s.forms(f, b, kind)
	s.text(f, b, kind)
	if medium.Packed(b) && !f.packed {
		f.packed = true
		if inner, err := medium.Unpack(b, maxNested); err == nil {
			s.content(f, inner)
		} else if errors.Is(err, medium.ErrTooLarge) {
			s.add(Finding{Layer: f.layer, Path: f.path, Rule: "packed", What: "it unpacks to more than is searched"})
		}
	}
}

// medium searches the bytes as they lie there.
func (s *scanner) medium(ctx context.Context, r io.ReaderAt, size int64) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(runtime.GOMAXPROCS(0))
	for at := int64(0); at < size; at += window - overlap {
		g.Go(func() error {
			if err := ctx.Err(); err != nil {
				return err
			}
			b := make([]byte, min(window, size-at))
			if _, err := r.ReadAt(b, at); err != nil && !errors.Is(err, io.EOF) {
				return fmt.Errorf("scan: %w", err)
			}
			f := file{layer: Bytes, offset: at, raw: true}
			if size-at > window {
				f.limit = window - overlap // where the next one begins
			}
			s.forms(f, b, kindBinary)
			return nil
		})
		if size-at <= window {
			break
		}
	}
	return g.Wait()
}

// forms searches for all forms and needles.
func (s *scanner) forms(f file, b []byte, kind kind) {
	c := &look{file: f, kind: kind, b: b}
	end := -1
	s.index.each(b, func(form *form, at int) {
		if at < end { // inside of what was found already, such as a key within a PEM block
			return
		}
		from, to, what := form.look(c, at)
		if what == "" {
			return
		}
		if f.limit > 0 && from >= f.limit {
			return
		}
		end = to
		s.add(c.finding(form.rule, what, from, to))
	})
}

func (s *scanner) add(f Finding) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.found = append(s.found, f)
}

// result drops what is allowed and what was found twice, and sorts the rest.
func (s *scanner) result() []Finding {
	order := map[string]int{Root: 1, Initramfs: 2, Boot: 3, Volume: 4, System: 5, Bytes: 6}
	slices.SortFunc(s.found, func(a, b Finding) int {
		return cmp.Or(cmp.Compare(order[a.Layer], order[b.Layer]), cmp.Compare(a.Layer, b.Layer), cmp.Compare(a.Path, b.Path), cmp.Compare(a.Offset, b.Offset), cmp.Compare(a.Rule, b.Rule))
	})
	// A random word within a secret that has a form is the same secret.
	all := slices.Clone(s.found)
	s.found = slices.DeleteFunc(s.found, func(f Finding) bool {
		return f.Rule == "random" && slices.ContainsFunc(all, func(g Finding) bool {
			return g.Rule != "random" && g.Layer == f.Layer && g.Path == f.Path && g.Packed == f.Packed && g.Offset <= f.Offset && f.end <= g.end
		})
	})
	type key struct {
		rule   string
		digest Digest
	}
	seen := map[key]bool{}
	found := []Finding{}
	for _, f := range s.found {
		// The boot image lies in the EFI system partition, and all of it on the medium.
		k := key{f.Rule, f.Digest}
		repeated := seen[k] && (f.Layer == System || f.Layer == Bytes)
		seen[k] = true
		if !repeated && !slices.ContainsFunc(s.Allow, func(a Allowed) bool { return a.matches(f) }) {
			found = append(found, f)
		}
	}
	return slices.Compact(found)
}

// gaps looks at the bytes that belong to nothing: what is not zero there is hidden from
// everybody who looks at files. It may look like nothing, so no form is asked for.
func (s *scanner) gaps(m *medium.Medium) error {
	spans, err := m.Unused()
	if err != nil {
		return fmt.Errorf("scan: %w", err)
	}
	for _, span := range spans {
		b := make([]byte, span.To-span.From)
		if n, err := m.ReadAt(b, span.From); n < len(b) {
			return fmt.Errorf("scan: %w", err)
		}
		at := bytes.IndexFunc(b, func(r rune) bool { return r != 0 })
		if at < 0 {
			continue
		}
		end := len(bytes.TrimRight(b, "\x00"))
		s.add(Finding{Layer: Bytes, Offset: span.From + int64(at), Rule: "hidden", What: fmt.Sprintf("%s is not empty: %d bytes", span.What, end-at), Digest: sha256.Sum256(b[at:end])})
	}
	return nil
}
