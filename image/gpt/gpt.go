// Package gpt reads a GUID partition table (UEFI 2.10, 5.3) of a disk, a CD or an
// image of one.
//
// Blocks are always of 512 bytes, whatever the device says: the image is made once
// and written to any medium. Only the primary table, at byte 512, is read. The
// backup at the end is for tools that mend disks; where the medium is larger than the
// image it is nowhere near the end, and who would rather start from a second table
// that differs from the first gives somebody a choice of which is believed.
//
// The bytes are foreign. A table whose sums are wrong, or whose partitions overlap or
// leave the disk, is refused as a whole.
package gpt

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"slices"
	"unicode/utf16"
)

// Block is the size of a logical block, in bytes.
const Block = 512

// Bounds of a table. UEFI wants room for 128 entries; more than maxEntries are refused.
const (
	headerSize = 92
	entrySize  = 128
	maxEntries = 512
)

// ErrFormat is wrapped by every error that is about the bytes, not about reading them.
var ErrFormat = errors.New("not a GUID partition table that we believe")

// GUID is in the order of its bytes on the disk: the first three fields are little-endian.
type GUID [16]byte

// String returns g as tools write it, in lower case.
func (g GUID) String() string {
	le := binary.LittleEndian
	return fmt.Sprintf("%08x-%04x-%04x-%x-%x", le.Uint32(g[:]), le.Uint16(g[4:]), le.Uint16(g[6:]), g[8:10], g[10:])
}

// System is the type of an EFI system partition.
var System = GUID{0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11, 0xba, 0x4b, 0x00, 0xa0, 0xc9, 0x3e, 0xc9, 0x3b}

// Partition is one entry.
type Partition struct {
	Type   GUID
	ID     GUID
	Offset int64 // bytes from the beginning of the disk
	Size   int64 // bytes
	Flags  uint64
	Name   string // at most 36 UTF-16 units
}

// Table is a disk's partitions, in the order of the table.
type Table struct {
	Disk       GUID
	First      int64 // first byte that partitions may use
	Last       int64 // the last one
	Entries    int64 // byte offset of the entries
	Length     int64 // bytes of the entries
	Partitions []Partition
}

// Read reads the table of a disk of size bytes.
func Read(r io.ReaderAt, size int64) (*Table, error) {
	if size < 3*Block {
		return nil, bad("the disk has %d bytes", size)
	}
	head := make([]byte, Block)
	if err := full(r, head, Block); err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	if string(head[:8]) != "EFI PART" {
		return nil, bad("no signature")
	}
	length := le.Uint32(head[12:])
	if le.Uint32(head[8:]) != 0x00010000 || length < headerSize || length > Block {
		return nil, bad("revision %#x, header of %d bytes", le.Uint32(head[8:]), length)
	}
	sum := le.Uint32(head[16:])
	clear(head[16:20])
	if crc32.ChecksumIEEE(head[:length]) != sum || le.Uint64(head[24:]) != 1 {
		return nil, bad("the header's sum or place is wrong")
	}
	blocks := uint64(size / Block)
	first, last := le.Uint64(head[40:]), le.Uint64(head[48:])
	start, count, each := le.Uint64(head[72:]), le.Uint32(head[80:]), le.Uint32(head[84:])
	if first > last || last >= blocks {
		return nil, bad("blocks %d to %d of %d can be used", first, last, blocks)
	}
	if each != entrySize || count == 0 || count > maxEntries || start < 2 || start > blocks {
		return nil, bad("%d entries of %d bytes from block %d on", count, each, start)
	}
	t := &Table{Disk: GUID(head[56:72]), First: int64(first) * Block, Last: int64(last)*Block + Block - 1,
		Entries: int64(start) * Block, Length: int64(count) * entrySize}
	entries := make([]byte, t.Length)
	if err := full(r, entries, t.Entries); err != nil {
		return nil, err
	}
	if crc32.ChecksumIEEE(entries) != le.Uint32(head[88:]) {
		return nil, bad("the sum of the entries is wrong")
	}
	for entry := range slices.Chunk(entries, entrySize) {
		if GUID(entry[:16]) == (GUID{}) {
			continue
		}
		from, to := le.Uint64(entry[32:]), le.Uint64(entry[40:])
		if from < first || from > to || to > last {
			return nil, bad("a partition has blocks %d to %d", from, to)
		}
		t.Partitions = append(t.Partitions, Partition{Type: GUID(entry[:16]), ID: GUID(entry[16:32]), Offset: int64(from) * Block,
			Size: int64(to-from+1) * Block, Flags: le.Uint64(entry[48:]), Name: text(entry[56:])})
	}
	return t, t.overlap()
}

// Find returns the one partition of a type. None and several are errors: which of two is
// meant must not be the choice of who wrote the table.
func (t *Table) Find(kind GUID) (Partition, error) {
	var found []Partition
	for _, p := range t.Partitions {
		if p.Type == kind {
			found = append(found, p)
		}
	}
	if len(found) != 1 {
		return Partition{}, bad("%d partitions of type %s, want one", len(found), kind)
	}
	return found[0], nil
}

func (t *Table) overlap() error {
	ps := slices.Clone(t.Partitions)
	slices.SortFunc(ps, func(a, b Partition) int { return int((a.Offset - b.Offset) / Block) })
	for i := 1; i < len(ps); i++ {
		if ps[i].Offset < ps[i-1].Offset+ps[i-1].Size {
			return bad("partitions overlap at byte %d", ps[i].Offset)
		}
	}
	return nil
}

func text(b []byte) string {
	var units []uint16
	for pair := range slices.Chunk(b, 2) {
		units = append(units, binary.LittleEndian.Uint16(pair))
	}
	if end := slices.Index(units, 0); end >= 0 {
		units = units[:end]
	}
	return string(bytes.ToValidUTF8([]byte(string(utf16.Decode(units))), nil))
}

func full(r io.ReaderAt, b []byte, at int64) error {
	n, err := r.ReadAt(b, at)
	switch {
	case n == len(b):
		return nil
	case errors.Is(err, io.EOF):
		return bad("it ends at byte %d", at+int64(n))
	}
	return fmt.Errorf("partition table: %w", err)
}

func bad(format string, a ...any) error {
	return fmt.Errorf("%w: %s", ErrFormat, fmt.Sprintf(format, a...))
}
