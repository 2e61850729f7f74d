package squashfs

import (
	"encoding/binary"
	"fmt"
	"io"
	"io/fs"
	"path"

	"lethe/image/tree"
)

// Types of inodes; those with extended attributes and large ones are extended later.
const (
	typeDir = iota + 1
	typeFile
	typeLink
	typeBlock
	typeChar
	typePipe
	typeSocket
	extended = typeSocket // what lies between a type and its extended form
)

// cursor reads a stream of metadata from a place on.
type cursor struct {
	f    *FS
	at   uint64 // of the next metadata block
	rest []byte // of the current one
}

// cursor begins at a metadata block and so many bytes into it.
func (f *FS) cursor(at uint64, offset int) (*cursor, error) {
	b, err := f.metadata(at)
	if err != nil {
		return nil, err
	}
	if offset > len(b.data) {
		return nil, bad("byte %d of a metadata block of %d", offset, len(b.data))
	}
	return &cursor{f, b.next, b.data[offset:]}, nil
}

// next returns n bytes, which the caller must not change. n must be bounded.
func (c *cursor) next(n int) ([]byte, error) {
	if n <= len(c.rest) {
		b := c.rest[:n]
		c.rest = c.rest[n:]
		return b, nil
	}
	var b []byte
	for {
		part := min(n-len(b), len(c.rest))
		b = append(b, c.rest[:part]...)
		c.rest = c.rest[part:]
		if len(b) == n {
			return b, nil
		}
		more, err := c.f.metadata(c.at)
		if err != nil {
			return nil, err
		}
		c.at, c.rest = more.next, more.data
	}
}

// node is an inode.
type node struct {
	kind   uint16
	mode   fs.FileMode
	uid    uint32
	gid    uint32
	number uint32

	dirBlock uint32 // of a directory: where its entries begin
	dirAt    uint16
	size     uint64 // of its entries; of a file's content
	link     string
	device   uint32
	file     *content
}

// content is where a file's bytes are.
type content struct {
	f        *FS
	size     uint64
	start    uint64   // of the first block
	blocks   []uint32 // sizes as they stand
	fragment uint32   // that has the tail, or none
	offset   uint32   // in the fragment
}

var types = [...]fs.FileMode{typeDir: fs.ModeDir, typeFile: 0, typeLink: fs.ModeSymlink, typeBlock: fs.ModeDevice,
	typeChar: fs.ModeDevice | fs.ModeCharDevice, typePipe: fs.ModeNamedPipe, typeSocket: fs.ModeSocket}

// inode reads the inode that a reference leads to: 32 bits for the block's place in the
// table, 16 for the byte in it.
func (f *FS) inode(ref uint64) (*node, error) {
	c, err := f.cursor(f.inodes+ref>>16, int(ref&0xffff))
	if err != nil {
		return nil, err
	}
	b, err := c.next(16)
	if err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	n := &node{kind: le.Uint16(b), number: le.Uint32(b[12:])}
	long := n.kind > extended
	if long {
		n.kind -= extended
	}
	uid, gid := int(le.Uint16(b[4:])), int(le.Uint16(b[6:]))
	if n.kind < typeDir || n.kind > typeSocket || uid >= len(f.owners) || gid >= len(f.owners) {
		return nil, bad("an inode of type %d with owners %d and %d", n.kind, uid, gid)
	}
	n.mode, n.uid, n.gid = types[n.kind]|permissions(le.Uint16(b[2:])), f.owners[uid], f.owners[gid]
	switch n.kind {
	case typeDir:
		err = n.readDir(c, long)
	case typeFile:
		err = n.readFile(c, long)
	case typeLink:
		if b, err = c.next(8); err == nil {
			size := le.Uint32(b[4:])
			if size == 0 || size > maxLink {
				return nil, bad("a symbolic link of %d bytes", size)
			}
			b, err = c.next(int(size))
			n.link = string(b)
		}
	case typeBlock, typeChar:
		if b, err = c.next(8); err == nil {
			n.device = le.Uint32(b[4:])
		}
	}
	return n, err
}

// permissions reads inode(7)'s twelve bits.
func permissions(m uint16) fs.FileMode {
	mode := fs.FileMode(m & 0o777)
	if m&0o4000 != 0 {
		mode |= fs.ModeSetuid
	}
	if m&0o2000 != 0 {
		mode |= fs.ModeSetgid
	}
	if m&0o1000 != 0 {
		mode |= fs.ModeSticky
	}
	return mode
}

func (n *node) readDir(c *cursor, long bool) error {
	size := 16
	if long {
		size = 24
	}
	b, err := c.next(size)
	if err != nil {
		return err
	}
	le := binary.LittleEndian
	if long {
		n.size, n.dirBlock, n.dirAt = uint64(le.Uint32(b[4:])), le.Uint32(b[8:]), le.Uint16(b[18:])
	} else {
		n.dirBlock, n.size, n.dirAt = le.Uint32(b), uint64(le.Uint16(b[8:])), le.Uint16(b[10:])
	}
	return nil
}

func (n *node) readFile(c *cursor, long bool) error {
	size := 16
	if long {
		size = 40
	}
	b, err := c.next(size)
	if err != nil {
		return err
	}
	le := binary.LittleEndian
	file := &content{f: c.f}
	if long {
		file.start, file.size, file.fragment, file.offset = le.Uint64(b), le.Uint64(b[8:]), le.Uint32(b[28:]), le.Uint32(b[32:])
	} else {
		file.start, file.fragment, file.offset, file.size = uint64(le.Uint32(b)), le.Uint32(b[4:]), le.Uint32(b[8:]), uint64(le.Uint32(b[12:]))
	}
	if file.size > maxFile {
		return bad("a file of %d bytes", file.size)
	}
	n.size, n.file = file.size, file
	count := file.size / uint64(c.f.BlockSize)
	if file.fragment == none && file.size%uint64(c.f.BlockSize) != 0 {
		count++
	}
	// Sizes are taken one by one: a number that lies finds the end of the table, not of the memory.
	for range count {
		b, err := c.next(4)
		if err != nil {
			return err
		}
		file.blocks = append(file.blocks, le.Uint32(b))
	}
	return nil
}

// Tree returns all of the file system's files. It needs the file system as long as it is used.
func (f *FS) Tree() (*tree.Tree, error) {
	w := &walk{f: f, t: &tree.Tree{}, seen: map[uint32]bool{}, nodes: map[uint64]*node{}}
	root, err := f.inode(f.Root)
	if err != nil {
		return nil, err
	}
	if root.kind != typeDir {
		return nil, bad("the root is no directory")
	}
	if err := w.add(".", root, 0); err != nil {
		return nil, err
	}
	return w.t, nil
}

// walk is one way through the directories.
type walk struct {
	f    *FS
	t    *tree.Tree
	seen map[uint32]bool // directories

	nodes  map[uint64]*node // by reference: a file with a thousand names is read once
	blocks int              // of all files
}

func (w *walk) inode(ref uint64) (*node, error) {
	if n := w.nodes[ref]; n != nil {
		return n, nil
	}
	n, err := w.f.inode(ref)
	if err != nil {
		return nil, err
	}
	if n.file != nil {
		if w.blocks += len(n.file.blocks); w.blocks > maxBlocks {
			return nil, bad("more than %d blocks", maxBlocks)
		}
	}
	w.nodes[ref] = n
	return n, nil
}

func (w *walk) add(p string, n *node, depth int) error {
	e := tree.Entry{Path: p, Mode: n.mode, UID: n.uid, GID: n.gid, Link: n.link}
	switch n.kind {
	case typeFile:
		e.Size, e.Open = int64(n.size), n.file.open
	case typeBlock, typeChar: // linux/kdev_t.h, new_decode_dev
		e.Major, e.Minor = n.device>>8&0xfff, n.device&0xff|n.device>>12&0xfff00
	}
	if w.t.Len() == maxInodes {
		return bad("more than %d names", maxInodes)
	}
	if err := w.t.Add(e); err != nil {
		return bad("%v", err)
	}
	if n.kind != typeDir {
		return nil
	}
	if depth == maxDepth || w.seen[n.number] {
		return bad("%s: directories are too deep or go in circles", p)
	}
	w.seen[n.number] = true
	return w.dir(p, n, depth)
}

// dir reads a directory: runs of entries whose inodes are in one block, each with a head.
func (w *walk) dir(p string, n *node, depth int) error {
	if n.size < 3 { // the kernel counts three bytes for "." and ".."
		return bad("%s: a directory of %d bytes", p, n.size)
	}
	rest := int(n.size) - 3
	if rest == 0 {
		return nil
	}
	c, err := w.f.cursor(w.f.directories+uint64(n.dirBlock), int(n.dirAt))
	if err != nil {
		return err
	}
	le := binary.LittleEndian
	last := ""
	for rest > 0 {
		head, err := c.next(12)
		if err != nil {
			return err
		}
		count, start := le.Uint32(head), le.Uint32(head[4:])
		if count > 255 {
			return bad("%s: a run of %d entries", p, count+1)
		}
		rest -= 12
		for range count + 1 {
			b, err := c.next(8)
			if err != nil {
				return err
			}
			ref, size := uint64(start)<<16|uint64(le.Uint16(b)), int(le.Uint16(b[6:]))+1
			if size > 256 {
				return bad("%s: a name of %d bytes", p, size)
			}
			if b, err = c.next(size); err != nil {
				return err
			}
			rest -= 8 + size
			name := string(b)
			// The order makes a name that stands twice impossible; the kernel searches by it.
			if name <= last || path.Base(name) != name || name == "." || name == ".." {
				return bad("%s: the name %q", p, name)
			}
			last = name
			child, err := w.inode(ref)
			if err != nil {
				return fmt.Errorf("%s: %w", path.Join(p, name), err)
			}
			if err := w.add(path.Join(p, name), child, depth+1); err != nil {
				return err
			}
		}
	}
	if rest != 0 {
		return bad("%s: entries reach beyond its size", p)
	}
	return nil
}

// open begins to read a file.
func (c *content) open() (io.ReadCloser, error) { return &reader{c: c, at: c.start}, nil }

// reader unpacks a file's blocks as they are wanted.
type reader struct {
	c    *content
	n    int    // of the next block
	at   uint64 // where it begins
	done uint64 // bytes of the file that were unpacked
	rest []byte
}

// Close implements [io.Closer]; there is nothing to close.
func (*reader) Close() error { return nil }

// Read implements [io.Reader].
func (r *reader) Read(b []byte) (int, error) {
	for len(r.rest) == 0 {
		if r.done == r.c.size {
			return 0, io.EOF
		}
		var err error
		if r.rest, err = r.fill(); err != nil {
			return 0, err
		}
		r.done += uint64(len(r.rest))
	}
	n := copy(b, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

// fill returns the next block, or the tail.
func (r *reader) fill() ([]byte, error) {
	c := r.c
	want := int(min(c.size-r.done, uint64(c.f.BlockSize)))
	if r.n == len(c.blocks) {
		b, err := c.f.fragment(c.fragment)
		if err != nil {
			return nil, err
		}
		if uint64(c.offset)+uint64(want) > uint64(len(b)) {
			return nil, bad("a tail lies outside its fragment")
		}
		return b[c.offset:][:want], nil
	}
	size := c.blocks[r.n]
	r.n++
	if size == 0 { // nothing but zeros
		return make([]byte, want), nil
	}
	b, err := c.f.data(block{r.at, size}, want)
	if err != nil {
		return nil, err
	}
	if len(b) != want {
		return nil, bad("a block has %d bytes, want %d", len(b), want)
	}
	r.at += uint64(size &^ dataPlain)
	return b, nil
}
