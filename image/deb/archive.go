package deb

import (
	"archive/tar"
	"bufio"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"path"
	"strconv"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

// MaxUnpacked bounds what one package may unpack to. The largest that an image
// takes is a kernel's modules, 500 MB.
const MaxUnpacked = 4 << 30

// Entry is one file of a package.
type Entry struct {
	Path   string // from the root, without a slash before; "." is the root itself
	Type   Type
	Mode   uint32 // permission bits with set-user-ID (04000), set-group-ID (02000) and sticky (01000)
	UID    int
	GID    int
	Size   int64  // bytes of a regular file
	Target string // of a symbolic link as it stands; of a hard link, a path like Path
}

// Type says what kind of file an [Entry] is. Devices, sockets and pipes have no
// business in a package and are refused.
type Type byte

// The types of files.
const (
	Regular Type = iota + 1
	Directory
	Symlink
	Hardlink
)

// ReadArchive reads a binary package (deb(5)). It returns its control
// paragraph and calls each, in the package's order, with every file; content
// is that of a regular file and must be used before each returns. Maintainer
// scripts and other control files are passed over: nothing of a package is run.
func ReadArchive(r io.Reader, each func(e Entry, content io.Reader) error) (Paragraph, error) {
	a := &ar{r: bufio.NewReader(r)}
	if err := a.magic(); err != nil {
		return nil, err
	}
	name, member, err := a.next()
	if err != nil {
		return nil, err
	}
	version, err := io.ReadAll(io.LimitReader(member, 8))
	if err != nil || name != "debian-binary" || !strings.HasPrefix(string(version), "2.") {
		return nil, fmt.Errorf("member %.20q, want debian-binary of version 2", name)
	}
	var control Paragraph
	if err := a.tar("control.tar", func(e Entry, content io.Reader) error {
		if e.Path != "control" || e.Type != Regular {
			return nil
		}
		var err error
		control, err = single(io.LimitReader(content, maxLine))
		return err
	}); err != nil {
		return nil, err
	}
	if control == nil {
		return nil, errors.New("no control file")
	}
	if err := a.tar("data.tar", each); err != nil {
		return nil, err
	}
	if _, _, err := a.next(); !errors.Is(err, io.EOF) {
		return nil, errors.New("something follows the data")
	}
	return control, nil
}

// ar reads the container, System V's archive format.
type ar struct {
	r    *bufio.Reader
	rest *io.LimitedReader // of the current member
	pad  bool              // a newline follows the current member
}

func (a *ar) magic() error {
	b := make([]byte, 8)
	if _, err := io.ReadFull(a.r, b); err != nil || string(b) != "!<arch>\n" {
		return errors.New("not a Debian package")
	}
	return nil
}

// next goes to the next member. Its error is io.EOF at the end.
func (a *ar) next() (string, io.Reader, error) {
	if a.rest != nil {
		if _, err := io.Copy(io.Discard, a.rest); err != nil {
			return "", nil, err
		}
		if a.rest.N > 0 {
			return "", nil, io.ErrUnexpectedEOF
		}
		if a.pad {
			if c, err := a.r.ReadByte(); err != nil || c != '\n' {
				return "", nil, errors.New("no padding after a member")
			}
		}
	}
	header := make([]byte, 60)
	if _, err := io.ReadFull(a.r, header); err != nil {
		return "", nil, err
	}
	size, err := strconv.ParseInt(strings.TrimRight(string(header[48:58]), " "), 10, 64)
	if err != nil || size < 0 || string(header[58:]) != "`\n" {
		return "", nil, errors.New("broken header of a member")
	}
	a.rest, a.pad = &io.LimitedReader{R: a.r, N: size}, size%2 == 1
	return strings.TrimRight(strings.TrimRight(string(header[:16]), " "), "/"), a.rest, nil
}

// tar reads the next member, which must be the tar file of that name.
func (a *ar) tar(base string, each func(Entry, io.Reader) error) error {
	name, member, err := a.next()
	if err != nil {
		return fmt.Errorf("%s: %w", base, err)
	}
	compression, ok := strings.CutPrefix(name, base)
	if !ok {
		return fmt.Errorf("member %.20q, want %s", name, base)
	}
	unpacked, err := Decompress(compression, member)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	defer unpacked.Close()
	limited := &io.LimitedReader{R: unpacked, N: MaxUnpacked}
	t := tar.NewReader(limited)
	for {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		e, err := entry(h)
		if err == nil {
			err = each(e, t)
		}
		if err != nil {
			return fmt.Errorf("%s: %.200q: %w", name, h.Name, err)
		}
	}
	// What the compression's own checksum covers must be read to its end.
	if _, err := io.Copy(io.Discard, limited); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if limited.N <= 0 {
		return fmt.Errorf("%s: more than %d bytes unpacked", name, int64(MaxUnpacked))
	}
	return nil
}

func entry(h *tar.Header) (Entry, error) {
	e := Entry{Mode: uint32(h.Mode) & 0o7777, UID: h.Uid, GID: h.Gid}
	var ok bool
	if e.Path, ok = inside(h.Name); !ok {
		return e, errors.New("path leaves the root")
	}
	switch h.Typeflag {
	case tar.TypeReg:
		e.Type, e.Size = Regular, h.Size
	case tar.TypeDir:
		e.Type = Directory
	case tar.TypeSymlink:
		e.Type, e.Target = Symlink, h.Linkname
	case tar.TypeLink:
		e.Type = Hardlink
		if e.Target, ok = inside(h.Linkname); !ok {
			return e, errors.New("link leaves the root")
		}
	default:
		return e, fmt.Errorf("file of type %q", h.Typeflag)
	}
	if strings.ContainsRune(e.Path+e.Target, 0) {
		return e, errors.New("null character in a name")
	}
	return e, nil
}

// inside returns a tar file's name as a path from the root.
func inside(name string) (string, bool) {
	p := strings.TrimSuffix(strings.TrimPrefix(name, "./"), "/")
	if p == "" {
		return ".", name != ""
	}
	return p, p[0] != '/' && path.Clean(p) == p && p != ".." && !strings.HasPrefix(p, "../")
}

// Decompress returns what r holds, by the ending of a file's name: ".xz",
// ".gz", ".zst", or nothing.
func Decompress(ending string, r io.Reader) (io.ReadCloser, error) {
	switch ending {
	case "":
		return io.NopCloser(r), nil
	case ".gz":
		return gzip.NewReader(r)
	case ".xz":
		// The library's DictCap is the least that it takes, and a block's head may
		// ask for more: up to 4 GiB of address space, of which memory is only what
		// data fills. The default, 8 MiB a reader, made fuzzing crawl.
		x, err := xz.ReaderConfig{DictCap: 4096}.NewReader(bufio.NewReader(r))
		if err != nil {
			return nil, err
		}
		return io.NopCloser(x), nil
	case ".zst":
		z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(1<<30), zstd.WithDecoderMaxWindow(128<<20))
		if err != nil {
			return nil, err
		}
		return z.IOReadCloser(), nil
	}
	return nil, fmt.Errorf("compression %.10q is not known", ending)
}
