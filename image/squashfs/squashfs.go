// Package squashfs reads squashfs 4.0 file systems (Linux,
// Documentation/filesystems/squashfs.rst), such as the image's root, without
// mounting them.
//
// [Open] reads the superblock and the two small tables (owners, fragments);
// [FS.Tree] walks through directories and inodes and gives a tree whose files
// are read and unpacked when they are opened, block by block, by any number of
// goroutines. Blocks may be packed with zstd, gzip or xz, or not at all.
//
// The bytes are foreign. Every number is checked against the file system's size or a
// bound before it is used: a file system that says nonsense is an error, never a
// panic, an endless loop or a large allocation. Extended attributes are not read;
// [Super.Xattrs] says how many sets there are. The export table is not needed.
//
// A file with several names appears once under each. Times are those of the whole:
// the builder gives all files the same, and [FS.Tree] refuses nothing else.
package squashfs

import (
	"bytes"
	"compress/zlib"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

// Bounds of what is believed.
const (
	maxSize      = 8 << 30  // bytes of a file system
	maxInodes    = 1 << 20  // and names
	maxMeta      = 96 << 20 // bytes of unpacked metadata
	maxFile      = 1 << 40  // bytes of a file: blocks of nothing take no space
	maxBlocks    = 1 << 22  // of all files
	maxDepth     = 64       // directories
	maxLink      = 4096     // bytes of a symbolic link (PATH_MAX)
	metaSize     = 8192     // bytes of a metadata block
	superSize    = 96
	none         = ^uint32(0)
	absent       = ^uint64(0)
	dataPlain    = 1 << 24 // a block's size: it is not packed
	metaPlain    = 1 << 15
	keepFragment = 8 // unpacked fragments that are kept: neighbours share them
)

// ErrFormat is wrapped by every error that is about the bytes, not about reading them.
var ErrFormat = errors.New("squashfs: damaged")

func bad(format string, a ...any) error {
	return fmt.Errorf("%w: %s", ErrFormat, fmt.Sprintf(format, a...))
}

// Compression says how blocks are packed.
type Compression uint16

// The kinds that can be read.
const (
	Gzip Compression = 1
	XZ   Compression = 4
	Zstd Compression = 6
)

// String returns the kernel's name.
func (c Compression) String() string {
	if name := map[Compression]string{Gzip: "gzip", 2: "lzma", 3: "lzo", XZ: "xz", 5: "lz4", Zstd: "zstd"}[c]; name != "" {
		return name
	}
	return fmt.Sprintf("compression %d", uint16(c))
}

// Super is the superblock: what holds for the whole file system.
type Super struct {
	Inodes      uint32
	Made        time.Time
	BlockSize   uint32 // bytes, a power of two from 4 KiB to 1 MiB
	Fragments   uint32
	Compression Compression
	Flags       uint16
	IDs         uint16 // different owners and groups
	Root        uint64 // reference to the root's inode
	Used        int64  // bytes
	Xattrs      uint32 // sets of extended attributes

	ids, xattrs, inodes, directories, fragments uint64 // where the tables begin
}

// FS is a file system. It may be used by several goroutines.
type FS struct {
	Super
	r         io.ReaderAt
	owners    []uint32
	fragments []block
	zstd      *zstd.Decoder

	mu      sync.Mutex
	recent  map[uint32][]byte // unpacked fragments
	order   []uint32          // oldest first
	meta    map[uint64]metaBlock
	metaLen int
}

// block is where a packed block lies.
type block struct {
	at   uint64
	size uint32 // as it stands, with dataPlain
}

type metaBlock struct {
	data []byte
	next uint64
}

// Open reads the superblock of a file system at the beginning of size bytes; what
// comes after its end does not matter.
func Open(r io.ReaderAt, size int64) (*FS, error) {
	head := make([]byte, superSize)
	if size < superSize {
		return nil, bad("%d bytes", size)
	}
	if _, err := r.ReadAt(head, 0); err != nil {
		return nil, readError(err)
	}
	le := binary.LittleEndian
	f := &FS{r: r, recent: map[uint32][]byte{}, meta: map[uint64]metaBlock{}, Super: Super{
		Inodes: le.Uint32(head[4:]), Made: time.Unix(int64(le.Uint32(head[8:])), 0).UTC(), BlockSize: le.Uint32(head[12:]), Fragments: le.Uint32(head[16:]),
		Compression: Compression(le.Uint16(head[20:])), Flags: le.Uint16(head[24:]), IDs: le.Uint16(head[26:]), Root: le.Uint64(head[32:]),
		ids: le.Uint64(head[48:]), xattrs: le.Uint64(head[56:]), inodes: le.Uint64(head[64:]), directories: le.Uint64(head[72:]), fragments: le.Uint64(head[80:])}}
	used := le.Uint64(head[40:])
	switch {
	case string(head[:4]) != "hsqs" || le.Uint16(head[28:]) != 4 || le.Uint16(head[30:]) != 0:
		return nil, bad("not a squashfs 4.0")
	case used < superSize || used > uint64(size) || used > maxSize:
		return nil, bad("%d bytes used of %d", used, size)
	case f.BlockSize < 4096 || f.BlockSize > 1<<20 || f.BlockSize != 1<<(le.Uint16(head[22:])&31):
		return nil, bad("blocks of %d bytes", f.BlockSize)
	case f.Inodes == 0 || f.Inodes > maxInodes || f.Fragments > maxInodes || f.IDs == 0:
		return nil, bad("%d inodes, %d fragments, %d owners", f.Inodes, f.Fragments, f.IDs)
	case f.inodes > used || f.directories > used || f.inodes > f.directories:
		return nil, bad("tables lie outside")
	}
	f.Used = int64(used)
	switch f.Compression {
	case Gzip, XZ:
	case Zstd:
		var err error
		if f.zstd, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(0), zstd.WithDecoderMaxMemory(1<<20), zstd.WithDecoderMaxWindow(1<<20), zstd.WithDecoderLowmem(true)); err != nil {
			return nil, err
		}
	default:
		return nil, bad("%s is not supported", f.Compression)
	}
	return f, f.tables()
}

// tables reads the owners, the fragments and the head of the extended attributes.
func (f *FS) tables() error {
	ids, err := f.table(f.ids, int(f.IDs)*4)
	if err != nil {
		return fmt.Errorf("owners: %w", err)
	}
	for ; len(ids) > 0; ids = ids[4:] {
		f.owners = append(f.owners, binary.LittleEndian.Uint32(ids))
	}
	if f.Fragments > 0 {
		fragments, err := f.table(f.Super.fragments, int(f.Fragments)*16)
		if err != nil {
			return fmt.Errorf("fragments: %w", err)
		}
		for ; len(fragments) > 0; fragments = fragments[16:] {
			f.fragments = append(f.fragments, block{binary.LittleEndian.Uint64(fragments), binary.LittleEndian.Uint32(fragments[8:])})
		}
	}
	if f.xattrs != absent {
		head, err := f.bytes(f.xattrs, 16)
		if err != nil {
			return fmt.Errorf("extended attributes: %w", err)
		}
		f.Xattrs = binary.LittleEndian.Uint32(head[8:])
	}
	return nil
}

// table reads n bytes of a table: at start is a list of the places of its metadata blocks.
func (f *FS) table(start uint64, n int) ([]byte, error) {
	blocks := (n + metaSize - 1) / metaSize
	list, err := f.bytes(start, blocks*8)
	if err != nil {
		return nil, err
	}
	var all []byte
	for ; len(list) > 0; list = list[8:] {
		b, err := f.metadata(binary.LittleEndian.Uint64(list))
		if err != nil {
			return nil, err
		}
		all = append(all, b.data...)
	}
	if len(all) != n {
		return nil, bad("a table has %d bytes, want %d", len(all), n)
	}
	return all, nil
}

// bytes reads n bytes as they stand.
func (f *FS) bytes(at uint64, n int) ([]byte, error) {
	if at > uint64(f.Used) || uint64(n) > uint64(f.Used)-at {
		return nil, bad("bytes %d to %d lie outside", at, at+uint64(n))
	}
	b := make([]byte, n)
	if _, err := f.r.ReadAt(b, int64(at)); err != nil {
		return nil, readError(err)
	}
	return b, nil
}

func readError(err error) error {
	if errors.Is(err, io.EOF) {
		return bad("it ends too early")
	}
	return fmt.Errorf("squashfs: %w", err)
}

// metadata returns the metadata block at a place, and keeps it: inodes and directories lie
// in few blocks, which are read for each of their entries.
func (f *FS) metadata(at uint64) (metaBlock, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if b, ok := f.meta[at]; ok {
		return b, nil
	}
	head, err := f.bytes(at, 2)
	if err != nil {
		return metaBlock{}, err
	}
	size := binary.LittleEndian.Uint16(head)
	n := int(size &^ metaPlain)
	packed, err := f.bytes(at+2, n)
	if err != nil {
		return metaBlock{}, err
	}
	b := metaBlock{data: packed, next: at + 2 + uint64(n)}
	if size&metaPlain == 0 {
		if b.data, err = f.unpack(packed, metaSize); err != nil {
			return metaBlock{}, err
		}
	}
	if len(b.data) == 0 || len(b.data) > metaSize {
		return metaBlock{}, bad("a metadata block of %d bytes", len(b.data))
	}
	if f.metaLen += len(b.data); f.metaLen > maxMeta {
		return metaBlock{}, bad("more than %d bytes of metadata", maxMeta)
	}
	f.meta[at] = b
	return b, nil
}

// unpack unpacks at most limit bytes.
func (f *FS) unpack(packed []byte, limit int) ([]byte, error) {
	if f.Compression == Zstd {
		b, err := f.zstd.DecodeAll(packed, make([]byte, 0, limit))
		if err != nil || len(b) > limit {
			return nil, bad("a block cannot be unpacked")
		}
		return b, nil
	}
	var r io.Reader
	var err error
	if f.Compression == Gzip {
		r, err = zlib.NewReader(bytes.NewReader(packed))
	} else {
		r, err = xz.ReaderConfig{DictCap: 1 << 20, SingleStream: true}.NewReader(bytes.NewReader(packed))
	}
	if err != nil {
		return nil, bad("a block cannot be unpacked")
	}
	b, err := io.ReadAll(io.LimitReader(r, int64(limit)+1))
	if err != nil || len(b) > limit {
		return nil, bad("a block cannot be unpacked")
	}
	return b, nil
}

// data returns a data block, unpacked, of at most limit bytes.
func (f *FS) data(b block, limit int) ([]byte, error) {
	n := b.size &^ dataPlain
	if n > f.BlockSize {
		return nil, bad("a block of %d bytes", n)
	}
	raw, err := f.bytes(b.at, int(n))
	if err != nil || b.size&dataPlain != 0 {
		return raw, err
	}
	return f.unpack(raw, limit)
}

// fragment returns a block of tails, unpacked. It must not be changed.
func (f *FS) fragment(n uint32) ([]byte, error) {
	if uint64(n) >= uint64(len(f.fragments)) {
		return nil, bad("there is no fragment %d", n)
	}
	f.mu.Lock()
	b, ok := f.recent[n]
	f.mu.Unlock()
	if ok {
		return b, nil
	}
	b, err := f.data(f.fragments[n], int(f.BlockSize))
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, again := f.recent[n]; !again {
		f.recent[n] = b
		if f.order = append(f.order, n); len(f.order) > keepFragment {
			delete(f.recent, f.order[0])
			f.order = f.order[1:]
		}
	}
	return b, nil
}
