package tree

import (
	"bytes"
	"fmt"
	"io/fs"
	"path"
	"strconv"
)

const (
	cpioHeader  = 110     // bytes: a magic number and 13 fields of eight hexadecimal digits
	cpioEntries = 1 << 20 // more are refused
)

// ReadCPIO reads an initramfs that is not packed: archives in the format newc, one
// behind the other, with zeros between them. It keeps b, which must not change.
//
// The kernel takes more than this: an entry that stands twice, hard links and names that
// climb out of the root are errors here, because [Tree.WriteCPIO] makes none. The bytes are foreign.
func ReadCPIO(b []byte) (*Tree, error) {
	t := &Tree{}
	for at := 0; ; {
		zeros := 0
		for at+zeros < len(b) && b[at+zeros] == 0 {
			zeros++
		}
		if at += zeros; at == len(b) {
			return t, nil
		}
		if at%4 != 0 {
			return nil, fmt.Errorf("tree: cpio: byte %d: an archive begins at a multiple of four", at)
		}
		for {
			e, end, err := readCPIO(b, at)
			if err != nil {
				return nil, fmt.Errorf("tree: cpio: byte %d: %w", at, err)
			}
			at = end
			if e == nil {
				break
			}
			if t.Len() == cpioEntries {
				return nil, fmt.Errorf("tree: cpio: more than %d entries", cpioEntries)
			}
			if err := t.Add(*e); err != nil {
				return nil, err
			}
		}
	}
}

// readCPIO reads the entry at a place, nil for the archive's end, and says where the next begins.
func readCPIO(b []byte, at int) (e *Entry, next int, err error) {
	if len(b)-at < cpioHeader || string(b[at:at+6]) != "070701" {
		return nil, 0, fmt.Errorf("no entry in the format newc")
	}
	var field [13]int64
	for i := range field {
		n, err := strconv.ParseUint(string(b[at+6+8*i:][:8]), 16, 32)
		if err != nil {
			return nil, 0, fmt.Errorf("a field is no number")
		}
		field[i] = int64(n)
	}
	mode, links, size, nameSize := uint32(field[1]), field[4], field[6], field[11]
	name := int64(at + cpioHeader)
	if nameSize < 2 || nameSize > 4096 || name+nameSize > int64(len(b)) || b[name+nameSize-1] != 0 {
		return nil, 0, fmt.Errorf("a name of %d bytes", nameSize)
	}
	p := string(b[name : name+nameSize-1])
	data := (name + nameSize + 3) &^ 3
	end := (data + size + 3) &^ 3
	if data+size > int64(len(b)) {
		return nil, 0, fmt.Errorf("%q has %d bytes, which are not there", p, size)
	}
	end = min(end, int64(len(b)))
	if p == "TRAILER!!!" {
		return nil, int(end), nil
	}
	m, ok := goMode(mode)
	if !ok || m.IsRegular() && links > 1 {
		return nil, 0, fmt.Errorf("%q has mode %#o and %d names", p, mode, links)
	}
	if path.Clean(p) != p {
		return nil, 0, fmt.Errorf("%q is not a path", p)
	}
	e = &Entry{Path: p, Mode: m, UID: uint32(field[2]), GID: uint32(field[3])}
	content := b[data : data+size]
	switch {
	case m.IsRegular():
		e.Size, e.Open = size, Bytes(content)
	case m&fs.ModeSymlink != 0:
		e.Link = string(bytes.Clone(content))
	case m&fs.ModeDevice != 0:
		e.Major, e.Minor = uint32(field[9]), uint32(field[10])
	}
	return e, int(end), nil
}

// goMode is the inverse of [unixMode].
func goMode(u uint32) (fs.FileMode, bool) {
	for _, kind := range []fs.FileMode{0, fs.ModeDir, fs.ModeSymlink, fs.ModeDevice, fs.ModeDevice | fs.ModeCharDevice} {
		for bits := range fs.FileMode(8) {
			m := kind | fs.FileMode(u&0o777)
			for i, special := range []fs.FileMode{fs.ModeSetuid, fs.ModeSetgid, fs.ModeSticky} {
				if bits>>i&1 != 0 {
					m |= special
				}
			}
			if unixMode(m) == u {
				return m, true
			}
		}
	}
	return 0, false
}
