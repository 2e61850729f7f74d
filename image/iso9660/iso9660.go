// Package iso9660 reads ISO 9660 volumes (ECMA-119) with Rock Ridge names (IEEE
// P1282) and finds what firmware starts from them (El Torito 1.0), without mounting.
//
// It is as large as looking into the image needs: the primary volume, files in one piece.
// The image's medium carries such a volume for firmware that starts from a CD; nothing
// else reads it. The bytes are foreign: what leaves the volume or goes in circles is an error.
package iso9660

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"

	"lethe/image/tree"
)

// Sector is the size of a sector, in bytes.
const Sector = 2048

// Bounds of what is believed.
const (
	firstVolume = 16 // sector of the first volume descriptor
	maxVolumes  = 32
	maxEntries  = 1 << 16
	maxDepth    = 32
	dirLimit    = 4 << 20 // bytes of a directory
)

// ErrFormat is wrapped by every error that is about the bytes, not about reading them.
var ErrFormat = errors.New("iso 9660: damaged")

func bad(format string, a ...any) error {
	return fmt.Errorf("%w: %s", ErrFormat, fmt.Sprintf(format, a...))
}

// Field is one field of the volume's description, which no file has.
type Field struct {
	Name   string // as ECMA-119 calls it
	Offset int64  // of the byte where it begins
	Value  string
}

// Boot is what firmware may start.
type Boot struct {
	Platform byte  // 0 x86, 0xef EFI
	Offset   int64 // bytes from the beginning of the medium
	Size     int64 // bytes; firmware of EFI reads on as the file system inside says
}

// Volume is a volume.
type Volume struct {
	Size   int64 // bytes
	Fields []Field
	Boot   []Boot
	Tree   *tree.Tree

	r io.ReaderAt
}

// fields of the primary volume descriptor (ECMA-119, 8.4).
var fields = []struct {
	name     string
	from, to int
}{
	{"system identifier", 8, 40}, {"volume identifier", 40, 72}, {"volume set identifier", 190, 318}, {"publisher identifier", 318, 446},
	{"data preparer identifier", 446, 574}, {"application identifier", 574, 702}, {"copyright file", 702, 739}, {"abstract file", 739, 776},
	{"bibliographic file", 776, 813}, {"creation time", 813, 829}, {"modification time", 830, 846}, {"expiration time", 847, 863},
	{"effective time", 864, 880}, {"application use", 883, 1395},
}

// Read reads a volume of at most size bytes.
func Read(r io.ReaderAt, size int64) (*Volume, error) {
	v := &Volume{r: r, Size: size, Tree: &tree.Tree{}}
	var primary []byte
	for n := int64(firstVolume); ; n++ {
		b, err := v.bytes(n*Sector, Sector)
		if err != nil {
			return nil, err
		}
		if string(b[1:6]) != "CD001" || n == firstVolume+maxVolumes {
			return nil, bad("no volume descriptor in sector %d", n)
		}
		switch {
		case b[0] == 255:
			if primary == nil {
				return nil, bad("no primary volume")
			}
			return v, v.primary(primary)
		case b[0] == 1 && primary == nil:
			primary = b
			for _, f := range fields {
				value := strings.Trim(string(bytes.ToValidUTF8(b[f.from:f.to], []byte("?"))), " \x00")
				v.Fields = append(v.Fields, Field{f.name, n*Sector + int64(f.from), value})
			}
		case b[0] == 0 && strings.HasPrefix(string(b[7:]), "EL TORITO SPECIFICATION\x00"):
			if err := v.torito(binary.LittleEndian.Uint32(b[71:])); err != nil {
				return nil, err
			}
		}
	}
}

// bytes reads n bytes, which must be bounded.
func (v *Volume) bytes(at, n int64) ([]byte, error) {
	if at < 0 || n > v.Size || at > v.Size-n {
		return nil, bad("bytes %d to %d lie outside", at, at+n)
	}
	b := make([]byte, n)
	if _, err := v.r.ReadAt(b, at); errors.Is(err, io.EOF) {
		return nil, bad("it ends too early")
	} else if err != nil {
		return nil, fmt.Errorf("iso 9660: %w", err)
	}
	return b, nil
}

// torito reads the boot catalogue: a validation entry, a default entry, and sections of more.
func (v *Volume) torito(sector uint32) error {
	b, err := v.bytes(int64(sector)*Sector, Sector)
	if err != nil {
		return err
	}
	le := binary.LittleEndian
	var sum uint16
	for i := 0; i < 32; i += 2 {
		sum += le.Uint16(b[i:])
	}
	if b[0] != 1 || sum != 0 || b[30] != 0x55 || b[31] != 0xaa {
		return bad("no boot catalogue in sector %d", sector)
	}
	platform := b[1]
	for rest := b[32:]; len(rest) > 0 && (rest[0] == 0x88 || rest[0]&^1 == 0x90 || len(v.Boot) == 0); rest = rest[32:] {
		if rest[0]&^1 == 0x90 { // head of a section
			platform = rest[1]
			continue
		}
		if rest[0] == 0x88 {
			v.Boot = append(v.Boot, Boot{platform, int64(le.Uint32(rest[8:])) * Sector, int64(le.Uint16(rest[6:])) * 512})
		}
	}
	return nil
}

func (v *Volume) primary(b []byte) error {
	if binary.LittleEndian.Uint16(b[128:]) != Sector {
		return bad("blocks of %d bytes", binary.LittleEndian.Uint16(b[128:]))
	}
	if err := v.Tree.Dir(".", 0o755, 0, 0, ""); err != nil {
		return err
	}
	return v.dir(".", b[156:190], 0)
}

// extent returns where a record's content lies (ECMA-119, 9.1).
func extent(record []byte) (at, size int64) {
	le := binary.LittleEndian
	return int64(le.Uint32(record[2:])) * Sector, int64(le.Uint32(record[10:]))
}

// dir adds what is in a directory. A record never crosses the end of a sector.
func (v *Volume) dir(p string, self []byte, depth int) error {
	at, size := extent(self)
	if depth == maxDepth || size > dirLimit {
		return bad("%s: directories are too deep or too large", p)
	}
	b, err := v.bytes(at, size)
	if err != nil {
		return err
	}
	for i := 0; i < len(b); {
		n := int(b[i])
		if n == 0 {
			i = (i/Sector + 1) * Sector
			continue
		}
		if n < 34 || i+n > len(b) || 33+int(b[i+32]) > n {
			return bad("%s: a record of %d bytes", p, n)
		}
		record := b[i : i+n]
		i += n
		id := string(record[33 : 33+int(record[32])])
		if id == "\x00" || id == "\x01" { // itself and the one above
			continue
		}
		if err := v.add(p, name(id, record), record, depth); err != nil {
			return err
		}
	}
	return nil
}

func (v *Volume) add(dir, name string, record []byte, depth int) error {
	p := path.Join(dir, name)
	if name == "" || path.Base(name) != name || name == ".." || v.Tree.Get(p) != nil || v.Tree.Len() == maxEntries {
		return bad("%s: the name %q is none, stands twice or is one too many", dir, name)
	}
	if record[25]&2 != 0 {
		if err := v.Tree.Dir(p, 0o755, 0, 0, ""); err != nil {
			return bad("%v", err)
		}
		return v.dir(p, record, depth+1)
	}
	at, size := extent(record)
	if record[25]&0x80 != 0 || at > v.Size || size > v.Size-at {
		return bad("%s: it is in several pieces or lies outside", p)
	}
	open := func() (io.ReadCloser, error) { return io.NopCloser(io.NewSectionReader(v.r, at, size)), nil }
	if err := v.Tree.Add(tree.Entry{Path: p, Mode: fs.FileMode(0o644), Size: size, Open: open}); err != nil {
		return bad("%v", err)
	}
	return nil
}

// name returns the Rock Ridge name of a record when it has one in the record itself, and else
// the plain one without its version.
func name(id string, record []byte) string {
	use := 33 + len(id)
	use += use & 1 // the system use area begins at an even byte
	var long string
	for rest := record[min(use, len(record)):]; len(rest) >= 5; {
		n := int(rest[2])
		if n < 5 || n > len(rest) {
			break
		}
		if string(rest[:2]) == "NM" {
			long += string(rest[5:n])
		}
		rest = rest[n:]
	}
	if long != "" {
		return long
	}
	id, _, _ = strings.Cut(id, ";")
	return strings.TrimSuffix(id, ".")
}
