// Package tree is a tree of files in memory: what enters the image's root or its
// initramfs, before any file system is made of it, and what is found in one later.
//
// Everything that a file system would take from the builder's machine (owner, mode,
// order, time) is a field here or a constant, so equal trees give equal bytes:
// [Tree.WriteTar] for mksquashfs and the like, [Tree.WriteCPIO] for the kernel.
package tree

import (
	"fmt"
	"io"
	"io/fs"
	"iter"
	"path"
	"slices"
	"strings"
)

// Entry is a file, directory, link or device.
type Entry struct {
	// Path counts from the root, without a leading slash: "usr/bin/x". The root is ".".
	Path string
	// Mode has the type and the permissions, set-uid, set-gid and sticky bits included.
	Mode fs.FileMode
	UID  uint32
	GID  uint32
	// Link is where a symbolic link points to.
	Link string
	// Size is a regular file's, in bytes.
	Size int64
	// Open reads a regular file from its beginning. It may be called more than once.
	Open func() (io.ReadCloser, error)
	// Major and Minor are a device's.
	Major, Minor uint32
	// From says where the entry comes from: a package's name, or what of ours made it.
	From string
}

// Bytes returns an Open for content that is in memory.
func Bytes(b []byte) func() (io.ReadCloser, error) {
	return func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(string(b))), nil }
}

// Tree is a set of entries with one for each path. The zero Tree is empty and ready for use.
type Tree struct {
	entries map[string]*Entry
}

// Valid reports whether p can be an entry's path.
func Valid(p string) bool {
	return fs.ValidPath(p) && !strings.ContainsAny(p, "\x00\n")
}

// Add puts e into the tree. An entry that is there already is an error, but for a
// directory that is the same; so is a parent that is no directory. Parents that are not there
// are made as directories of root, with mode 0755.
func (t *Tree) Add(e Entry) error {
	if !Valid(e.Path) {
		return fmt.Errorf("tree: %q is not a path", e.Path)
	}
	if have := t.entries[e.Path]; have != nil {
		if have.Mode.IsDir() && e.Mode.IsDir() && have.Mode == e.Mode && have.UID == e.UID && have.GID == e.GID {
			return nil
		}
		return fmt.Errorf("tree: %s comes from %s and from %s", e.Path, have.From, e.From)
	}
	switch {
	case e.Mode.IsRegular() && e.Open == nil:
		return fmt.Errorf("tree: %s has no content", e.Path)
	case e.Mode&fs.ModeSymlink != 0 && e.Link == "":
		return fmt.Errorf("tree: %s is a link to nowhere", e.Path)
	}
	if t.entries == nil {
		t.entries = map[string]*Entry{}
	}
	if dir := path.Dir(e.Path); e.Path != "." {
		switch up := t.entries[dir]; {
		case up == nil:
			if err := t.Add(Entry{Path: dir, Mode: fs.ModeDir | 0o755, From: e.From}); err != nil {
				return err
			}
		case !up.Mode.IsDir():
			return fmt.Errorf("tree: %s of %s lies below %s of %s, which is no directory", e.Path, e.From, dir, up.From)
		}
	}
	t.entries[e.Path] = &e
	return nil
}

// File adds a regular file of root with content b.
func (t *Tree) File(p string, mode fs.FileMode, from string, b []byte) error {
	return t.Add(Entry{Path: p, Mode: mode.Perm(), Size: int64(len(b)), Open: Bytes(b), From: from})
}

// Symlink adds a symbolic link of root.
func (t *Tree) Symlink(p, to, from string) error {
	return t.Add(Entry{Path: p, Mode: fs.ModeSymlink | 0o777, Link: to, From: from})
}

// Dir adds a directory.
func (t *Tree) Dir(p string, mode fs.FileMode, uid, gid uint32, from string) error {
	return t.Add(Entry{Path: p, Mode: fs.ModeDir | mode, UID: uid, GID: gid, From: from})
}

// Remove takes an entry out, and what is below it.
func (t *Tree) Remove(p string) {
	delete(t.entries, p)
	for q := range t.entries {
		if strings.HasPrefix(q, p+"/") {
			delete(t.entries, q)
		}
	}
}

// Get returns the entry with exactly this path, or nil. It does not follow links.
func (t *Tree) Get(p string) *Entry { return t.entries[p] }

// Resolve returns the entry that p leads to when links are followed as the kernel
// would with the tree as its root, or nil.
func (t *Tree) Resolve(p string) *Entry {
	done, rest := ".", strings.Split(strings.Trim(p, "/"), "/")
	for hops := 0; len(rest) > 0; {
		name := rest[0]
		rest = rest[1:]
		switch name {
		case "", ".":
			continue
		case "..":
			done = path.Dir(done)
			continue
		}
		next := path.Join(done, name)
		e := t.entries[next]
		if e == nil {
			return nil
		}
		if e.Mode&fs.ModeSymlink == 0 {
			done = next
			continue
		}
		if hops++; hops > 40 { // path_resolution(7)
			return nil
		}
		if strings.HasPrefix(e.Link, "/") {
			done = "."
		}
		rest = append(strings.Split(strings.Trim(e.Link, "/"), "/"), rest...)
	}
	return t.entries[done]
}

// Len returns how many entries there are.
func (t *Tree) Len() int { return len(t.entries) }

// All returns the entries in the order of their paths, element by element, so
// that a directory comes before what is in it.
func (t *Tree) All() iter.Seq[*Entry] {
	paths := make([]string, 0, len(t.entries))
	for p := range t.entries {
		paths = append(paths, p)
	}
	slices.SortFunc(paths, compare)
	return func(yield func(*Entry) bool) {
		for _, p := range paths {
			if e := t.entries[p]; e != nil && !yield(e) {
				return
			}
		}
	}
}

// compare orders paths by their elements; the root is first.
func compare(a, b string) int {
	if a == "." || b == "." {
		switch {
		case a == b:
			return 0
		case a == ".":
			return -1
		}
		return 1
	}
	return slices.Compare(strings.Split(a, "/"), strings.Split(b, "/"))
}

// Read returns a regular file's content.
func (e *Entry) Read() ([]byte, error) {
	if !e.Mode.IsRegular() {
		return nil, fmt.Errorf("tree: %s is no regular file", e.Path)
	}
	r, err := e.Open()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	b, err := io.ReadAll(io.LimitReader(r, e.Size+1))
	if err == nil && int64(len(b)) != e.Size {
		err = fmt.Errorf("tree: %s has another size than %d", e.Path, e.Size)
	}
	return b, err
}
