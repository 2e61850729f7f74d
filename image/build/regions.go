package build

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"lethe/image/gpt"
	"lethe/image/layout"
	"lethe/image/pe"
	"lethe/image/release"
)

// mark is the beginning of a region.
type mark struct {
	offset int64
	name   string
}

// find returns the one partition of a type, or nil.
func find(t *gpt.Table, kind gpt.GUID) (found *gpt.Partition) {
	for n := range t.Partitions {
		if t.Partitions[n].Type == kind {
			if found != nil {
				return nil
			}
			found = &t.Partitions[n]
		}
	}
	return found
}

// describe returns the image of a flavour with regions that cover every byte of the ISO, each
// named by what is there. The digests are not filled in.
func describe(flavour string, iso, uki []byte, rootSize int64) (release.Image, error) {
	i := release.Image{Flavour: flavour, Size: int64(len(iso)), BootLength: int64(len(uki))}
	table, err := gpt.Read(bytes.NewReader(iso), i.Size)
	if err != nil {
		return i, fmt.Errorf("the ISO that was made: %w", err)
	}
	esp, root := find(table, gpt.System), find(table, layout.RootType)
	if esp == nil || root == nil {
		return i, errors.New("the ISO has not the partitions that it was made with")
	}
	// mcopy writes into an empty file system, so the file lies in one piece.
	at := bytes.Index(iso[esp.Offset:esp.Offset+esp.Size], uki)
	if at < 0 {
		return i, errors.New("the boot image does not lie in one piece in the EFI system partition")
	}
	i.BootOffset = esp.Offset + int64(at)
	if root.Size < rootSize {
		return i, errors.New("the root does not fit into its partition")
	}
	image, err := pe.Parse(uki)
	if err != nil {
		return i, err
	}
	marks := []mark{{0, "mbr"}, {gpt.Block, "gpt/header"}, {2 * gpt.Block, "system-area"}, {table.Entries, "gpt/entries"}, {table.Entries + table.Length, "iso9660"},
		{esp.Offset, "esp/fat"}, {i.BootOffset, "boot/headers"}, {i.BootOffset + i.BootLength, "esp/free"},
		{esp.Offset + esp.Size, "gap"}, {root.Offset, "root"}, {root.Offset + rootSize, "padding"}}
	for _, s := range image.Sections() {
		if len(s.Data) > 0 {
			marks = append(marks, mark{i.BootOffset + int64(s.Offset), "boot/" + s.Name})
		}
	}
	marks = append(marks, mark{i.BootOffset + int64(image.Table().Offset), "boot/signatures"})
	backup := int64(len(iso)) - gpt.Block
	if string(iso[backup:backup+8]) != "EFI PART" {
		return i, errors.New("the ISO has no second partition table at its end")
	}
	marks = append(marks, mark{int64(binary.LittleEndian.Uint64(iso[backup+72:])) * gpt.Block, "gpt/backup"})
	slices.SortStableFunc(marks, func(a, b mark) int { return cmp.Compare(a.offset, b.offset) })
	for n, m := range marks {
		end := i.Size
		if n+1 < len(marks) {
			end = marks[n+1].offset
		}
		switch {
		case end == m.offset: // nothing between two things
		case end < m.offset || m.offset < 0:
			return i, fmt.Errorf("region %s lies outside the ISO", m.name)
		default:
			i.Regions = append(i.Regions, release.Region{Name: m.name, Offset: m.offset, Length: end - m.offset, Signature: m.name == "boot/signatures"})
		}
	}
	return i, i.Validate()
}
