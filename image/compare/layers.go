package compare

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"slices"

	"lethe/image/gpt"
	"lethe/image/medium"
	"lethe/image/tree"
)

// layers compares what both media have, from the outside to the inside.
func (c *comparer) layers(a, b *medium.Medium) error {
	if a.Table == nil || b.Table == nil {
		return nil
	}
	c.table(a.Table, b.Table)
	steps := []struct {
		name string
		both bool
		do   func(where []string) error
		a, b gpt.Partition // where its bytes are, for what no field says
	}{
		{"ISO 9660 volume", a.Volume != nil && b.Volume != nil, func(w []string) error { return c.volume(w, a, b) }, head(a), head(b)},
		{"EFI system partition", a.ESP != nil && b.ESP != nil, func(w []string) error { return c.system(w, a, b) }, a.System, b.System},
		{"root", a.Files != nil && b.Files != nil, func(w []string) error { return c.root(w, a, b) }, a.Root, b.Root},
	}
	for _, s := range steps {
		where, before := []string{s.name}, c.count()
		if s.both {
			if err := s.do(where); err != nil {
				return fmt.Errorf("%s: %w", s.name, err)
			}
		}
		if c.count() == before {
			if err := c.bytes(where, span(a, s.a.Offset, s.a.Offset+s.a.Size), span(b, s.b.Offset, s.b.Offset+s.b.Size), 0); err != nil {
				return err
			}
		}
	}
	return nil
}

// head is where the ISO 9660 volume's own bytes are.
func head(m *medium.Medium) gpt.Partition {
	const first = 16 * 2048
	return gpt.Partition{Offset: first, Size: max(0, min(m.System.Offset, m.Root.Offset)-first)}
}

func (c *comparer) table(a, b *gpt.Table) {
	where := []string{"partition table"}
	c.value(where, "disk", a.Disk, b.Disk)
	c.value(where, "first byte", a.First, b.First)
	c.value(where, "last byte", a.Last, b.Last)
	c.value(where, "partitions", len(a.Partitions), len(b.Partitions))
	for i := range min(len(a.Partitions), len(b.Partitions)) {
		x, y, where := a.Partitions[i], b.Partitions[i], []string{"partition table", fmt.Sprintf("partition %d", i+1)}
		c.value(where, "type", x.Type, y.Type)
		c.value(where, "identity", x.ID, y.ID)
		c.value(where, "offset", x.Offset, y.Offset)
		c.value(where, "size", x.Size, y.Size)
		c.value(where, "flags", x.Flags, y.Flags)
		c.value(where, "name", x.Name, y.Name)
	}
}

func (c *comparer) volume(where []string, a, b *medium.Medium) error {
	for i, f := range a.Volume.Fields { // every volume has the same
		c.value(where, f.Name, f.Value, b.Volume.Fields[i].Value)
	}
	c.value(where, "boot catalogue", fmt.Sprint(a.Volume.Boot), fmt.Sprint(b.Volume.Boot))
	return c.trees(where, a.Volume.Tree, b.Volume.Tree, c.content)
}

func (c *comparer) system(where []string, a, b *medium.Medium) error {
	c.value(where, "serial number", fmt.Sprintf("%08x", a.ESP.Serial), fmt.Sprintf("%08x", b.ESP.Serial))
	c.value(where, "label", a.ESP.Label, b.ESP.Label)
	c.value(where, "bits of the table", a.ESP.Bits, b.ESP.Bits)
	c.value(where, "size of clusters", a.ESP.Cluster, b.ESP.Cluster)
	return c.trees(where, a.ESP.Tree, b.ESP.Tree, func(where []string, x, y []byte) error {
		if a.Initramfs != nil && b.Initramfs != nil && bytes.Equal(x, a.Boot) && bytes.Equal(y, b.Boot) {
			return c.boot([]string{"boot image"}, a, b)
		}
		return c.content(where, x, y)
	})
}

// boot compares boot images by their sections.
func (c *comparer) boot(where []string, a, b *medium.Medium) error {
	before := c.count()
	var names []string
	sections := [2]map[string][]byte{{}, {}}
	for i, m := range []*medium.Medium{a, b} {
		for _, s := range m.PE.Sections() {
			sections[i][s.Name] = s.Data
			if !slices.Contains(names, s.Name) {
				names = append(names, s.Name)
			}
		}
	}
	for _, name := range names {
		x, inA := sections[0][name]
		y, inB := sections[1][name]
		in := append(slices.Clone(where), name)
		switch {
		case inA != inB:
			c.value(in, "section", there(inA), there(inB))
		case bytes.Equal(x, y):
		case name == medium.Initrd:
			if err := c.initramfs(in, a, b, x, y); err != nil {
				return err
			}
		default:
			if err := c.content(in, x, y); err != nil {
				return err
			}
		}
	}
	tables := [2]string{}
	for i, m := range []*medium.Medium{a, b} {
		t := m.PE.Table()
		tables[i] = fmt.Sprintf("%d bytes, of which %d are signatures", t.Length, len(bytes.TrimRight(m.Boot[t.Offset:], "\x00")))
	}
	c.value(where, "certificate table", tables[0], tables[1])
	if c.count() == before {
		at := differs(a.Boot, b.Boot)
		return c.bytes(append(slices.Clone(where), header(a.Boot, at)), section(a.Boot), section(b.Boot), 0)
	}
	return nil
}

// header names the field of a PE header that a byte is in (PE Format).
func header(b []byte, at int) string {
	start := int(binary.LittleEndian.Uint32(b[0x3c:]))
	for _, f := range []struct {
		name     string
		from, to int
	}{{"TimeDateStamp", 8, 12}, {"CheckSum", 24 + 64, 24 + 68}, {"certificate directory", 24 + 144, 24 + 152}} {
		if at >= start+f.from && at < start+f.to {
			return f.name
		}
	}
	return "headers"
}

func there(in bool) string {
	if in {
		return "there"
	}
	return ""
}

func section(b []byte) *io.SectionReader {
	return io.NewSectionReader(bytes.NewReader(b), 0, int64(len(b)))
}

// initramfs compares archives, and then what the files do not say.
func (c *comparer) initramfs(where []string, a, b *medium.Medium, packedA, packedB []byte) error {
	before := c.count()
	if err := c.trees(where, a.Initramfs, b.Initramfs, c.content); err != nil || c.count() > before {
		return err
	}
	x, err := medium.Archives(packedA)
	if err != nil {
		return err
	}
	y, err := medium.Archives(packedB)
	if err != nil {
		return err
	}
	at := differs(x, y)
	if at < 0 {
		c.value(where, "packing", fmt.Sprintf("%d bytes", len(packedA)), fmt.Sprintf("%d bytes", len(packedB)))
		return c.bytes(where, section(packedA), section(packedB), 0)
	}
	return c.bytes(append(slices.Clone(where), field(x, at)), section(x), section(y), 0)
}

// field names the field of a cpio header that a byte is in.
func field(b []byte, at int) string {
	names := []string{"inode", "mode", "owner", "group", "links", "time", "size", "major", "minor", "device's major", "device's minor", "length of the name", "sum"}
	i := bytes.LastIndex(b[:min(len(b), at+6)], []byte("070701"))
	if i < 0 || at < i+6 || at >= i+6+8*len(names) {
		return "archive"
	}
	name, _, _ := bytes.Cut(b[i+6+8*len(names):], []byte{0})
	return fmt.Sprintf("%s of %s", names[(at-i-6)/8], name)
}

func (c *comparer) root(where []string, a, b *medium.Medium) error {
	x, y := a.FS.Super, b.FS.Super
	c.value(where, "time", x.Made, y.Made)
	c.value(where, "size of blocks", x.BlockSize, y.BlockSize)
	c.value(where, "compression", x.Compression, y.Compression)
	c.value(where, "flags", fmt.Sprintf("%#x", x.Flags), fmt.Sprintf("%#x", y.Flags))
	c.value(where, "inodes", x.Inodes, y.Inodes)
	c.value(where, "fragments", x.Fragments, y.Fragments)
	c.value(where, "owners", x.IDs, y.IDs)
	c.value(where, "extended attributes", x.Xattrs, y.Xattrs)
	return c.trees(where, a.Files, b.Files, c.content)
}

// trees compares two trees, file by file. content compares what two files hold.
func (c *comparer) trees(where []string, a, b *tree.Tree, content func(where []string, x, y []byte) error) error {
	for x := range a.All() {
		in := append(slices.Clone(where), x.Path)
		y := b.Get(x.Path)
		if y == nil {
			c.add(Difference{Where: in, What: "file", A: describe(x)})
			continue
		}
		c.value(in, "mode", x.Mode, y.Mode)
		c.value(in, "owner", fmt.Sprintf("%d:%d", x.UID, x.GID), fmt.Sprintf("%d:%d", y.UID, y.GID))
		c.value(in, "target", x.Link, y.Link)
		c.value(in, "device", fmt.Sprintf("%d,%d", x.Major, x.Minor), fmt.Sprintf("%d,%d", y.Major, y.Minor))
		if !x.Mode.IsRegular() || !y.Mode.IsRegular() {
			continue
		}
		p, err := x.Read()
		if err != nil {
			return err
		}
		q, err := y.Read()
		if err != nil {
			return err
		}
		if !bytes.Equal(p, q) {
			if err := content(in, p, q); err != nil {
				return err
			}
		}
	}
	for y := range b.All() {
		if a.Get(y.Path) == nil {
			c.add(Difference{Where: append(slices.Clone(where), y.Path), What: "file", B: describe(y)})
		}
	}
	return nil
}

func describe(e *tree.Entry) string { return fmt.Sprintf("%v, %d bytes", e.Mode, e.Size) }
