// Package fat reads FAT12, FAT16 and FAT32 volumes (Microsoft, "FAT: General
// Overview of On-Disk Format", 1.03; UEFI 2.10, 13.3), such as an EFI system
// partition, without mounting them.
//
// It is as large as looking into the image needs: directories with long names, files by their chains of
// clusters. The bytes are foreign: chains that go in circles, leave the volume or are
// shorter than their file are errors. The second copy of the table is not looked at.
package fat

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"
	"unicode/utf16"

	"lethe/image/tree"
)

// Bounds of what is believed.
const (
	maxSize    = 4 << 30 // bytes of a volume
	maxEntries = 1 << 16
	maxDepth   = 32
	entrySize  = 32
	dirLimit   = 2 << 20 // bytes of a directory
)

// ErrFormat is wrapped by every error that is about the bytes, not about reading them.
var ErrFormat = errors.New("fat: damaged")

func bad(format string, a ...any) error {
	return fmt.Errorf("%w: %s", ErrFormat, fmt.Sprintf(format, a...))
}

// Volume is a volume. It may be used by several goroutines.
type Volume struct {
	Bits    int    // 12, 16 or 32
	Cluster int64  // bytes
	Serial  uint32 // made of the time by most tools, so a builder must fix it
	Label   string // in the boot sector
	Tree    *tree.Tree

	r        io.ReaderAt
	data     int64 // byte offset of cluster 2
	clusters uint32
	table    []byte
	chains   uint32           // clusters of all files so far
	used     map[uint32]int64 // bytes that are used of each cluster
}

// Read reads a volume of at most size bytes.
func Read(r io.ReaderAt, size int64) (*Volume, error) {
	b := make([]byte, 512)
	if err := full(r, b, 0); err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	sector, perCluster := int64(le.Uint16(b[11:])), int64(b[13])
	reserved, tables, roots := int64(le.Uint16(b[14:])), int64(b[16]), int64(le.Uint16(b[17:]))
	sectors, perTable := int64(le.Uint16(b[19:])), int64(le.Uint16(b[22:]))
	if sectors == 0 {
		sectors = int64(le.Uint32(b[32:]))
	}
	wide := perTable == 0
	if wide {
		perTable = int64(le.Uint32(b[36:]))
	}
	power := func(n int64) bool { return n > 0 && n&(n-1) == 0 }
	switch {
	case b[510] != 0x55 || b[511] != 0xaa || !power(sector) || sector < 512 || sector > 4096 || !power(perCluster):
		return nil, bad("no boot sector")
	case sectors*sector > min(size, maxSize) || reserved == 0 || tables == 0 || perTable == 0:
		return nil, bad("%d sectors in %d bytes", sectors, size)
	}
	rootAt := (reserved + tables*perTable) * sector
	v := &Volume{r: r, Cluster: sector * perCluster, data: rootAt + (roots*entrySize+sector-1)/sector*sector, Tree: &tree.Tree{}, used: map[uint32]int64{}}
	count := (sectors*sector - v.data) / v.Cluster
	if v.data >= sectors*sector || count < 1 {
		return nil, bad("no room for data")
	}
	extra := b[36:]
	switch v.clusters = uint32(count); {
	case count < 4085:
		v.Bits = 12
	case count < 65525:
		v.Bits = 16
	default:
		v.Bits, extra = 32, b[64:]
	}
	if wide != (v.Bits == 32) || perTable*sector*8 < (count+2)*int64(v.Bits) {
		return nil, bad("a table of %d sectors for %d clusters", perTable, count)
	}
	if extra[2] == 0x29 {
		v.Serial, v.Label = le.Uint32(extra[3:]), strings.TrimRight(string(bytes.ToValidUTF8(extra[7:18], nil)), " ")
	}
	v.table = make([]byte, ((count+2)*int64(v.Bits)+7)/8+1)
	if err := full(r, v.table[:len(v.table)-1], reserved*sector); err != nil {
		return nil, err
	}
	if err := v.Tree.Dir(".", 0o755, 0, 0, ""); err != nil {
		return nil, err
	}
	var root []byte
	var err error
	if v.Bits == 32 {
		root, err = v.readDir(le.Uint32(b[44:]))
	} else {
		root = make([]byte, roots*entrySize)
		err = full(r, root, rootAt)
	}
	if err != nil {
		return nil, err
	}
	return v, v.dir(".", root, 0)
}

func full(r io.ReaderAt, b []byte, at int64) error {
	n, err := r.ReadAt(b, at)
	switch {
	case n == len(b):
		return nil
	case errors.Is(err, io.EOF):
		return bad("it ends at byte %d", at+int64(n))
	}
	return fmt.Errorf("fat: %w", err)
}

// next returns the cluster behind another one, and whether there is one.
func (v *Volume) next(c uint32) (uint32, bool) {
	le := binary.LittleEndian
	switch v.Bits {
	case 12:
		n := le.Uint16(v.table[c+c/2:]) >> (c & 1 * 4) & 0xfff
		return uint32(n), n < 0xff8
	case 16:
		n := le.Uint16(v.table[c*2:])
		return uint32(n), n < 0xfff8
	}
	n := le.Uint32(v.table[c*4:]) & 0x0fffffff
	return n, n < 0x0ffffff8
}

// chain returns the clusters from one on. No cluster may belong to two files, which bounds all of them together.
func (v *Volume) chain(c uint32, limit int64) ([]uint32, error) {
	var all []uint32
	for ok := true; ok; c, ok = v.next(c) {
		if c < 2 || c-2 >= v.clusters {
			return nil, bad("a chain leads to cluster %d of %d", c, v.clusters)
		}
		if v.chains++; v.chains > v.clusters || int64(len(all)) > limit/v.Cluster {
			return nil, bad("a chain is too long or goes in circles")
		}
		all = append(all, c)
		v.used[c] = v.Cluster
	}
	return all, nil
}

// Unused calls each with every run of bytes that no file and no directory has: free
// clusters, and what is behind a file's end in its last one. Places count from the volume's beginning.
func (v *Volume) Unused(each func(from, to int64)) {
	from := v.data
	for c := range v.clusters {
		if used := v.used[c+2]; used > 0 {
			if at := v.at(c + 2); at > from {
				each(from, at)
			}
			from = v.at(c+2) + used
		}
	}
	if end := v.at(v.clusters + 2); end > from {
		each(from, end)
	}
}

func (v *Volume) at(c uint32) int64 { return v.data + int64(c-2)*v.Cluster }

func (v *Volume) readDir(first uint32) ([]byte, error) {
	chain, err := v.chain(first, dirLimit)
	if err != nil {
		return nil, err
	}
	all := make([]byte, int64(len(chain))*v.Cluster)
	for i, c := range chain {
		if err := full(v.r, all[int64(i)*v.Cluster:][:v.Cluster], v.at(c)); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// Attributes of directory entries.
const (
	attrVolume = 0x08
	attrDir    = 0x10
	attrLong   = 0x0f
)

// dir adds what is in a directory.
func (v *Volume) dir(p string, b []byte, depth int) error {
	if depth == maxDepth {
		return bad("%s: directories are too deep", p)
	}
	var long []uint16
	for ; len(b) >= entrySize && b[0] != 0; b = b[entrySize:] {
		e := b[:entrySize]
		switch {
		case e[0] == 0xe5: // removed
			long = nil
			continue
		case e[11]&0x3f == attrLong:
			long = append(longPart(e), long...)
			continue
		case e[11]&attrVolume != 0 || string(e[:2]) == ". " || string(e[:3]) == ".. ":
			long = nil
			continue
		}
		name := shortName(e)
		if long != nil {
			name = string(utf16.Decode(long))
			long = nil
		}
		if path.Base(name) != name || v.Tree.Get(path.Join(p, name)) != nil || v.Tree.Len() == maxEntries {
			return bad("%s: the name %q is none, stands twice or is one too many", p, name)
		}
		if err := v.add(path.Join(p, name), e, depth); err != nil {
			return err
		}
	}
	return nil
}

func (v *Volume) add(p string, e []byte, depth int) error {
	le := binary.LittleEndian
	first := uint32(le.Uint16(e[26:]))
	if v.Bits == 32 {
		first |= uint32(le.Uint16(e[20:])) << 16
	}
	if e[11]&attrDir != 0 {
		if err := v.Tree.Dir(p, 0o755, 0, 0, ""); err != nil {
			return bad("%v", err)
		}
		b, err := v.readDir(first)
		if err != nil {
			return fmt.Errorf("%s: %w", p, err)
		}
		return v.dir(p, b, depth+1)
	}
	f := &file{v: v, size: int64(le.Uint32(e[28:]))}
	if f.size > 0 {
		var err error
		if f.chain, err = v.chain(first, f.size); err != nil {
			return fmt.Errorf("%s: %w", p, err)
		}
	}
	if want := (f.size + v.Cluster - 1) / v.Cluster; int64(len(f.chain)) != want {
		return bad("%s: %d clusters, want %d", p, len(f.chain), want)
	}
	if tail := f.size % v.Cluster; tail != 0 {
		v.used[f.chain[len(f.chain)-1]] = tail
	}
	open := func() (io.ReadCloser, error) { return io.NopCloser(io.NewSectionReader(f, 0, f.size)), nil }
	if err := v.Tree.Add(tree.Entry{Path: p, Mode: fs.FileMode(0o644), Size: f.size, Open: open}); err != nil {
		return bad("%v", err)
	}
	return nil
}

// shortName reads eight and three characters; two bits say that either part is in lower case.
func shortName(e []byte) string {
	clean := func(b []byte, lower bool) string {
		s := strings.TrimRight(string(bytes.ToValidUTF8(b, []byte("?"))), " ")
		if lower {
			s = strings.ToLower(s)
		}
		return s
	}
	name, ext := clean(e[:8], e[12]&8 != 0), clean(e[8:11], e[12]&16 != 0)
	if ext != "" {
		name += "." + ext
	}
	return name
}

// longPart reads the 13 characters of a name's part; parts stand last first.
func longPart(e []byte) []uint16 {
	part := make([]uint16, 0, 13)
	for _, span := range [][]byte{e[1:11], e[14:26], e[28:32]} {
		for ; len(span) > 0; span = span[2:] {
			u := binary.LittleEndian.Uint16(span)
			if u == 0 {
				return part
			}
			part = append(part, u)
		}
	}
	return part
}

// file is a file's clusters.
type file struct {
	v     *Volume
	size  int64
	chain []uint32
}

// ReadAt implements [io.ReaderAt] within the file's size, which [io.SectionReader] keeps.
func (f *file) ReadAt(b []byte, off int64) (n int, err error) {
	for n < len(b) {
		at := off + int64(n)
		in := at % f.v.Cluster
		part := b[n:][:min(int64(len(b)-n), f.v.Cluster-in)]
		if err := full(f.v.r, part, f.v.at(f.chain[at/f.v.Cluster])+in); err != nil {
			return n, err
		}
		n += len(part)
	}
	return n, nil
}
