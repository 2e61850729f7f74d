// Package medium opens an image as it lies on its medium, and gives what is
// inside, without mounting anything (package image/layout says what belongs where):
//
//	medium ─┬─ ISO 9660 volume
//	        ├─ EFI system partition, FAT ── boot image, PE ─┬─ command line, os-release, kernel
//	        │                                               └─ initramfs, cpio ── the root's digest
//	        └─ root, squashfs
//
// Everything is foreign until a signature was checked, which is package image/release's
// business: here every layer is read by a bounded reader, and a layer that cannot be
// read is an error that names it.
package medium

import (
	"bytes"
	"cmp"
	"compress/gzip"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"

	"lethe/image/fat"
	"lethe/image/gpt"
	"lethe/image/iso9660"
	"lethe/image/layout"
	"lethe/image/pe"
	"lethe/image/squashfs"
	"lethe/image/tree"
)

// Bounds of what is believed.
const (
	maxBoot      = 256 << 20 // bytes of a boot image
	maxInitramfs = 256 << 20 // bytes, unpacked
)

// Sections of a unified kernel image (UAPI specification "Unified Kernel Image").
const (
	Cmdline   = ".cmdline"
	Initrd    = ".initrd"
	Kernel    = ".linux"
	OSRelease = ".osrel"
	Uname     = ".uname"
)

// Medium is an image. What is after the first layer that could not be read is nil.
type Medium struct {
	Size      int64
	Table     *gpt.Table
	System    gpt.Partition
	Root      gpt.Partition
	Volume    *iso9660.Volume // nil when there is none: a disk needs none
	ESP       *fat.Volume
	Boot      []byte     // the boot image
	PE        *pe.Image  // the same
	Initramfs *tree.Tree // the first file system
	Digest    layout.RootDigest
	Rest      layout.MediumDigest // of all but the boot image
	FS        *squashfs.FS
	Files     *tree.Tree // the root

	r io.ReaderAt
}

// Open opens an image of size bytes and reads all of it but the root's files. With an
// error it returns what it has.
func Open(r io.ReaderAt, size int64) (*Medium, error) {
	m := &Medium{Size: size, r: r}
	for _, step := range []struct {
		name string
		do   func() error
	}{
		{"partition table", m.partitions}, {"ISO 9660 volume", m.volume}, {"EFI system partition", m.system},
		{"boot image", m.boot}, {"initramfs", m.initramfs}, {"root", m.root},
	} {
		if err := step.do(); err != nil {
			return m, fmt.Errorf("%s: %w", step.name, err)
		}
	}
	return m, nil
}

func (m *Medium) partitions() (err error) {
	if m.Table, err = gpt.Read(m.r, m.Size); err != nil {
		return err
	}
	if m.System, err = m.Table.Find(gpt.System); err != nil {
		return err
	}
	m.Root, err = m.Table.Find(layout.RootType)
	return err
}

// volume reads the ISO 9660 volume when there is one.
func (m *Medium) volume() (err error) {
	const first = 16 * iso9660.Sector
	mark := make([]byte, 6)
	if _, err := m.r.ReadAt(mark, first); err != nil || string(mark[1:]) != "CD001" {
		return nil
	}
	m.Volume, err = iso9660.Read(m.r, m.Size)
	return err
}

func (m *Medium) system() (err error) {
	m.ESP, err = fat.Read(io.NewSectionReader(m.r, m.System.Offset, m.System.Size), m.System.Size)
	return err
}

func (m *Medium) boot() error {
	var e *tree.Entry
	for f := range m.ESP.Tree.All() { // FAT knows no case
		if strings.EqualFold(f.Path, layout.BootImage) && f.Mode.IsRegular() {
			e = f
		}
	}
	if e == nil || e.Size > maxBoot {
		return fmt.Errorf("there is no %s, or it is too large", layout.BootImage)
	}
	var err error
	if m.Boot, err = e.Read(); err != nil {
		return err
	}
	m.PE, err = pe.Parse(m.Boot)
	return err
}

// Section returns a section of the boot image, nil when there is none.
func (m *Medium) Section(name string) []byte {
	if m.PE != nil {
		for _, s := range m.PE.Sections() {
			if s.Name == name {
				return s.Data
			}
		}
	}
	return nil
}

func (m *Medium) initramfs() error {
	b, err := Archives(m.Section(Initrd))
	if err != nil {
		return err
	}
	if m.Initramfs, err = tree.ReadCPIO(b); err != nil {
		return err
	}
	e := m.Initramfs.Get(layout.Root)
	if e == nil {
		return fmt.Errorf("there is no %s", layout.Root)
	}
	text, err := e.Read()
	if err != nil {
		return err
	}
	if m.Digest, err = layout.ParseRootDigest(string(text)); err != nil {
		return err
	}
	if e = m.Initramfs.Get(layout.Medium); e == nil {
		return fmt.Errorf("there is no %s", layout.Medium)
	}
	if text, err = e.Read(); err != nil {
		return err
	}
	m.Rest, err = layout.ParseMediumDigest(string(text))
	return err
}

func (m *Medium) root() (err error) {
	if m.Digest.Size > m.Root.Size {
		return fmt.Errorf("it has %d bytes, the partition %d", m.Digest.Size, m.Root.Size)
	}
	if m.FS, err = squashfs.Open(io.NewSectionReader(m.r, m.Root.Offset, m.Digest.Size), m.Digest.Size); err != nil {
		return err
	}
	m.Files, err = m.FS.Tree()
	return err
}

// RootSum returns the digest that the root has, whatever the initramfs says.
func (m *Medium) RootSum() (sum [sha256.Size]byte, err error) {
	h := sha256.New()
	if _, err := io.Copy(h, io.NewSectionReader(m.r, m.Root.Offset, m.Digest.Size)); err != nil {
		return sum, err
	}
	return [sha256.Size]byte(h.Sum(nil)), nil
}

// RestSum returns the digest that all but the boot image has, whatever the initramfs says.
func (m *Medium) RestSum() (sum [sha256.Size]byte, err error) {
	h := sha256.New()
	behind := m.Rest.BootOffset + m.Rest.BootLength
	for _, part := range []*io.SectionReader{io.NewSectionReader(m.r, 0, m.Rest.BootOffset), io.NewSectionReader(m.r, behind, m.Rest.Size-behind)} {
		if _, err := io.Copy(h, part); err != nil {
			return sum, err
		}
	}
	return [sha256.Size]byte(h.Sum(nil)), nil
}

// Span is a run of the medium's bytes.
type Span struct {
	What     string
	From, To int64
}

// Unused returns what belongs to nothing: gaps between the partitions, free space in
// them, and what is behind the root. A builder leaves zeros there.
func (m *Medium) Unused() (all []Span, err error) {
	end := m.Size
	backup := make([]byte, gpt.Block)
	if _, err := m.r.ReadAt(backup, m.Size-gpt.Block); err != nil {
		return nil, err
	}
	if bytes.HasPrefix(backup, []byte("EFI PART")) {
		if at := int64(binary.LittleEndian.Uint64(backup[72:])) * gpt.Block; at > 0 && at < end {
			end = at
		}
	}
	used := []Span{{"the partition table", 0, max(m.Table.Entries+m.Table.Length, 2*gpt.Block)}, {"the medium", end, m.Size}}
	if m.Volume != nil {
		const first = 16 * iso9660.Sector // what the volume has lies before the first partition
		to := m.Size
		for _, p := range []gpt.Partition{m.System, m.Root} {
			if p.Offset >= first {
				to = min(to, p.Offset)
			}
		}
		used = append(used, Span{"the ISO 9660 volume", first, to})
	}
	for _, p := range []gpt.Partition{m.System, m.Root} {
		used = append(used, Span{"a partition", p.Offset, p.Offset + p.Size})
	}
	slices.SortFunc(used, func(a, b Span) int { return cmp.Compare(a.From, b.From) })
	at := int64(0)
	for _, u := range used {
		if u.From > at {
			all = append(all, Span{"a gap before " + u.What, at, u.From})
		}
		at = max(at, u.To)
	}
	m.ESP.Unused(func(from, to int64) {
		all = append(all, Span{"free space in the EFI system partition", m.System.Offset + from, m.System.Offset + to})
	})
	return append(all, Span{"what is behind the root", m.Root.Offset + m.FS.Used, m.Root.Offset + m.Root.Size}), nil
}

// ReadAt implements [io.ReaderAt]: the medium's bytes.
func (m *Medium) ReadAt(b []byte, at int64) (int, error) { return m.r.ReadAt(b, at) }

// Archives returns what an initramfs unpacks to: as the kernel, it takes an archive that is not packed
// (of layout.FrontArchive bytes with the zeros behind it) and what is packed behind that.
func Archives(initramfs []byte) ([]byte, error) {
	front := initramfs[:0]
	if !Packed(initramfs) && len(initramfs) > layout.FrontArchive && Packed(initramfs[layout.FrontArchive:]) {
		front, initramfs = initramfs[:layout.FrontArchive], initramfs[layout.FrontArchive:]
	}
	rest, err := Unpack(initramfs, maxInitramfs)
	return slices.Concat(front, rest), err
}

// ErrTooLarge says that something unpacks to more than was expected.
var ErrTooLarge = errors.New("it unpacks to too much")

// Packed reports whether b begins like something that [Unpack] unpacks.
func Packed(b []byte) bool {
	for _, magic := range []string{"\x28\xb5\x2f\xfd", "\x1f\x8b\x08", "\xfd7zXZ\x00"} {
		if bytes.HasPrefix(b, []byte(magic)) {
			return true
		}
	}
	return false
}

// Unpack unpacks zstd, gzip or xz, to at most limit bytes; anything else it returns as it is.
func Unpack(b []byte, limit int64) ([]byte, error) {
	var r io.Reader
	var err error
	switch {
	case !Packed(b):
		return b, nil
	case b[0] == 0x28:
		var d *zstd.Decoder
		if d, err = zstd.NewReader(bytes.NewReader(b), zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(128<<20)); err == nil {
			defer d.Close()
		}
		r = d
	case b[0] == 0x1f:
		r, err = gzip.NewReader(bytes.NewReader(b))
	default:
		r, err = xz.ReaderConfig{DictCap: 8 << 20}.NewReader(bytes.NewReader(b))
	}
	if err != nil {
		return nil, err
	}
	out, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err == nil && int64(len(out)) > limit {
		return nil, ErrTooLarge
	}
	return out, err
}
