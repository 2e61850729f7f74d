package tree

import (
	"archive/tar"
	"bufio"
	"fmt"
	"io"
	"io/fs"
	"time"
)

// WriteTar writes the tree as a tar archive (POSIX pax): numeric owners, every time at. Names
// have no "./" before them: sqfstar(1) takes none of those that are longer than 100 bytes.
func (t *Tree) WriteTar(w io.Writer, at time.Time) error {
	out := tar.NewWriter(w)
	for e := range t.All() {
		h := &tar.Header{
			Name: e.Path, Mode: int64(unixMode(e.Mode) & 0o7777), Uid: int(e.UID), Gid: int(e.GID),
			ModTime: at.UTC().Truncate(time.Second), Linkname: e.Link, Format: tar.FormatPAX,
		}
		switch e.Mode.Type() {
		case 0:
			h.Typeflag, h.Size = tar.TypeReg, e.Size
		case fs.ModeDir:
			h.Typeflag, h.Name = tar.TypeDir, h.Name+"/"
		case fs.ModeSymlink:
			h.Typeflag = tar.TypeSymlink
		case fs.ModeDevice | fs.ModeCharDevice:
			h.Typeflag, h.Devmajor, h.Devminor = tar.TypeChar, int64(e.Major), int64(e.Minor)
		case fs.ModeDevice:
			h.Typeflag, h.Devmajor, h.Devminor = tar.TypeBlock, int64(e.Major), int64(e.Minor)
		default:
			return fmt.Errorf("tree: %s is of a type that an image has no use for", e.Path)
		}
		if err := out.WriteHeader(h); err != nil {
			return fmt.Errorf("tree: %s: %w", e.Path, err)
		}
		if err := copyContent(out, e); err != nil {
			return err
		}
	}
	return out.Close()
}

// WriteCPIO writes the tree as an initramfs: a cpio archive in the format newc
// (Linux, Documentation/driver-api/early-userspace/buffer-format.rst), uncompressed.
func (t *Tree) WriteCPIO(w io.Writer, at time.Time) error {
	out := &cpio{w: bufio.NewWriter(w), at: uint32(at.Unix())}
	for e := range t.All() {
		if err := out.entry(e); err != nil {
			return err
		}
	}
	if err := out.entry(&Entry{Path: "TRAILER!!!"}); err != nil {
		return err
	}
	return out.w.Flush()
}

type cpio struct {
	w     *bufio.Writer
	at    uint32
	inode uint32
	n     int64 // bytes written
}

func (c *cpio) Write(b []byte) (int, error) {
	n, err := c.w.Write(b)
	c.n += int64(n)
	return n, err
}

// pad fills up to a multiple of four bytes.
func (c *cpio) pad() error {
	_, err := c.Write(make([]byte, -c.n&3))
	return err
}

func (c *cpio) entry(e *Entry) error {
	size := e.Size
	switch e.Mode.Type() {
	case 0:
	case fs.ModeSymlink:
		size = int64(len(e.Link))
	case fs.ModeDir, fs.ModeDevice, fs.ModeDevice | fs.ModeCharDevice:
		size = 0
	default:
		return fmt.Errorf("tree: %s is of a type that an image has no use for", e.Path)
	}
	if size > 1<<32-1 {
		return fmt.Errorf("tree: %s is too large for an initramfs", e.Path)
	}
	mode, at := unixMode(e.Mode), c.at
	c.inode++
	if e.Path == "TRAILER!!!" {
		mode, at, c.inode = 0, 0, 0
	}
	_, err := fmt.Fprintf(c, "070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%s\x00",
		c.inode, mode, e.UID, e.GID, 1, at, size, 0, 0, e.Major, e.Minor, len(e.Path)+1, 0, e.Path)
	if err == nil {
		err = c.pad()
	}
	if err == nil && e.Link != "" {
		_, err = io.WriteString(c, e.Link)
	}
	if err == nil {
		err = copyContent(c, e)
	}
	if err == nil {
		err = c.pad()
	}
	return err
}

// copyContent writes a regular file's content, which must have the size that was announced.
func copyContent(w io.Writer, e *Entry) error {
	if !e.Mode.IsRegular() || e.Open == nil {
		return nil
	}
	r, err := e.Open()
	if err != nil {
		return fmt.Errorf("tree: %s: %w", e.Path, err)
	}
	defer r.Close()
	if n, err := io.Copy(w, r); err != nil {
		return fmt.Errorf("tree: %s: %w", e.Path, err)
	} else if n != e.Size {
		return fmt.Errorf("tree: %s has %d bytes, not %d", e.Path, n, e.Size)
	}
	return nil
}

// unixMode returns st_mode (inode(7)).
func unixMode(m fs.FileMode) uint32 {
	u := uint32(m.Perm())
	for _, bit := range []struct {
		mode fs.FileMode
		unix uint32
	}{{fs.ModeSetuid, 0o4000}, {fs.ModeSetgid, 0o2000}, {fs.ModeSticky, 0o1000}} {
		if m&bit.mode != 0 {
			u |= bit.unix
		}
	}
	switch m.Type() {
	case fs.ModeDir:
		u |= 0o040000
	case fs.ModeSymlink:
		u |= 0o120000
	case fs.ModeDevice:
		u |= 0o060000
	case fs.ModeDevice | fs.ModeCharDevice:
		u |= 0o020000
	default:
		u |= 0o100000
	}
	return u
}
