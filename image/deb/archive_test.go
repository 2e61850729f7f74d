package deb_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"

	"lethe/image/deb"
)

func pack(t testing.TB, ending string, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	var w io.WriteCloser
	var err error
	switch ending {
	case ".gz":
		w = gzip.NewWriter(&out)
	case ".xz":
		w, err = xz.NewWriter(&out)
	case ".zst":
		w, err = zstd.NewWriter(&out)
	default:
		return b
	}
	if err == nil {
		_, err = w.Write(b)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

type member struct {
	name string
	data []byte
}

func arFile(members ...member) []byte {
	var b bytes.Buffer
	b.WriteString("!<arch>\n")
	for _, m := range members {
		fmt.Fprintf(&b, "%-16s%-12d%-6d%-6d%-8s%-10d`\n%s", m.name, 0, 0, 0, "100644", len(m.data), m.data)
		if len(m.data)%2 == 1 {
			b.WriteByte('\n')
		}
	}
	return b.Bytes()
}

func tarFile(t testing.TB, headers ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range headers {
		content := h.Gname // a place for the content in this table
		h.Gname, h.Size = "", int64(len(content))
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

var version2 = member{"debian-binary", []byte("2.0\n")}

func control(t testing.TB) member {
	return member{"control.tar", tarFile(t, tar.Header{Name: "./", Typeflag: tar.TypeDir}, tar.Header{Name: "./postinst", Typeflag: tar.TypeReg, Gname: "#!/bin/sh\n"},
		tar.Header{Name: "./control", Typeflag: tar.TypeReg, Gname: "Package: hello\nVersion: 1\n"})}
}

var tree = []tar.Header{
	{Name: "./", Typeflag: tar.TypeDir, Mode: 0o755},
	{Name: "./usr/", Typeflag: tar.TypeDir, Mode: 0o755},
	{Name: "./usr/hello", Typeflag: tar.TypeReg, Mode: 0o4755, Uid: 1, Gid: 2, Gname: "hello, world"},
	{Name: "./usr/link", Typeflag: tar.TypeSymlink, Mode: 0o777, Linkname: "../etc/x"},
	{Name: "./usr/hard", Typeflag: tar.TypeLink, Mode: 0o755, Linkname: "./usr/hello"},
}

func listing(b []byte) (deb.Paragraph, []string, error) {
	var all []string
	p, err := deb.ReadArchive(bytes.NewReader(b), func(e deb.Entry, r io.Reader) error {
		content, err := io.ReadAll(r)
		all = append(all, fmt.Sprintf("%d %s %o %d:%d %d %s%s", e.Type, e.Path, e.Mode, e.UID, e.GID, e.Size, e.Target, content))
		return err
	})
	return p, all, err
}

func TestArchive(t *testing.T) {
	want := []string{"2 . 755 0:0 0 ", "2 usr 755 0:0 0 ", "1 usr/hello 4755 1:2 12 hello, world", "3 usr/link 777 0:0 0 ../etc/x", "4 usr/hard 755 0:0 0 usr/hello"}
	for _, ending := range []string{"", ".gz", ".xz", ".zst"} {
		c := control(t)
		b := arFile(version2, member{"control.tar" + ending, pack(t, ending, c.data)}, member{"data.tar" + ending, pack(t, ending, tarFile(t, tree...))})
		p, got, err := listing(b)
		if err != nil || p.Get("Package") != "hello" || !slices.Equal(got, want) {
			t.Errorf("%s: %q %v, want %q", ending, got, err, want)
		}
		for n := range len(b) {
			if n%50 < 49 && ending == "" {
				continue // stored as it is, the interesting places are at the members' heads
			}
			if _, _, err := listing(b[:n]); err == nil {
				t.Errorf("%s: accepted after %d of %d bytes", ending, n, len(b))
			}
		}
	}
}

func TestArchiveRefusals(t *testing.T) {
	data := member{"data.tar", tarFile(t, tree...)}
	one := func(h tar.Header) []byte { return arFile(version2, control(t), member{"data.tar", tarFile(t, h)}) }
	odd := arFile(version2, control(t), member{"data.tar", append(tarFile(t, tree...), 0)})
	odd[len(odd)-1] = 'x'
	for name, b := range map[string][]byte{
		"empty":             nil,
		"not ar":            []byte("hello, world"),
		"no members":        arFile(),
		"broken head":       append(arFile(), bytes.Repeat([]byte("x"), 60)...),
		"negative size":     bytes.Replace(arFile(version2), []byte("4         `"), []byte("-4        `"), 1),
		"version 3":         arFile(member{"debian-binary", []byte("3.0\n")}, control(t), data),
		"not debian":        arFile(member{"something", []byte("2.0\n")}, control(t), data),
		"wrong order":       arFile(version2, data, control(t)),
		"no control":        arFile(version2, member{"control.tar", tarFile(t)}, data),
		"bad control":       arFile(version2, member{"control.tar", tarFile(t, tar.Header{Name: "./control", Typeflag: tar.TypeReg, Gname: "no field"})}, data),
		"no data":           arFile(version2, control(t)),
		"more after data":   arFile(version2, control(t), data, member{"x", nil}),
		"no padding":        odd,
		"compression":       arFile(version2, control(t), member{"data.tar.lzma", data.data}),
		"not compressed gz": arFile(version2, control(t), member{"data.tar.gz", data.data}),
		"not compressed xz": arFile(version2, control(t), member{"data.tar.xz", data.data}),
		"not packed zst":    arFile(version2, control(t), member{"data.tar.zst", data.data}),
		"not tar":           arFile(version2, control(t), member{"data.tar", bytes.Repeat([]byte("x"), 1024)}),
		"device":            one(tar.Header{Name: "./dev", Typeflag: tar.TypeChar}),
		"pipe":              one(tar.Header{Name: "./pipe", Typeflag: tar.TypeFifo}),
		"above":             one(tar.Header{Name: "./../etc/passwd", Typeflag: tar.TypeReg}),
		"absolute":          one(tar.Header{Name: "/etc/passwd", Typeflag: tar.TypeReg}),
		"not clean":         one(tar.Header{Name: "./a/../b", Typeflag: tar.TypeReg}),
		"link above":        one(tar.Header{Name: "./a", Typeflag: tar.TypeLink, Linkname: "../b"}),
		"cut data":          arFile(version2, control(t), data)[:300],
	} {
		if _, got, err := listing(b); err == nil {
			t.Errorf("%s: accepted with %q", name, got)
		}
	}
	stop := errors.New("stop")
	_, err := deb.ReadArchive(bytes.NewReader(arFile(version2, control(t), data)), func(deb.Entry, io.Reader) error { return stop })
	if !errors.Is(err, stop) || !strings.Contains(err.Error(), `"./"`) {
		t.Error(err)
	}
	// A flipped bit behind the end of the tar file is found by the compression's own checksum.
	packed := pack(t, ".gz", tarFile(t, tree...))
	packed[len(packed)-5] ^= 1
	if _, _, err := listing(arFile(version2, control(t), member{"data.tar.gz", packed})); err == nil {
		t.Error("a wrong checksum is accepted")
	}
}

// TestArchiveOfDpkg reads what Debian's own tool makes, where there is one.
func TestArchiveOfDpkg(t *testing.T) {
	dir := t.TempDir()
	script := `cd "$1" && mkdir -p p/DEBIAN p/usr && printf 'Package: hello\nVersion: 1\nArchitecture: all\nMaintainer: a <a@example>\nDescription: x\n' > p/DEBIAN/control &&
		echo hi > p/usr/hi && ln -s hi p/usr/link && for z in xz gzip zstd; do dpkg-deb --root-owner-group -Z$z -b p $z.deb >&2 && cat $z.deb; done`
	b, err := exec.Command("sh", "-c", script, "sh", dir).Output()
	if err != nil {
		t.Fatal(err)
	}
	all := bytes.Split(b, []byte("!<arch>\n"))[1:]
	if len(all) != 3 {
		t.Fatalf("%d packages", len(all))
	}
	for _, one := range all {
		p, got, err := listing(append([]byte("!<arch>\n"), one...))
		if err != nil || p.Get("Package") != "hello" || len(got) != 4 || !strings.HasPrefix(got[2], "1 usr/hi 644 0:0 3 hi") {
			t.Errorf("%q %v", got, err)
		}
	}
}

func FuzzArchive(f *testing.F) {
	for _, ending := range []string{"", ".gz", ".xz", ".zst"} {
		c := control(f)
		f.Add(arFile(version2, member{"control.tar" + ending, pack(f, ending, c.data)}, member{"data.tar" + ending, pack(f, ending, tarFile(f, tree...))}))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		_, _ = deb.ReadArchive(bytes.NewReader(b), func(e deb.Entry, r io.Reader) error {
			if e.Path != "." && !strings.ContainsAny(e.Path, " \\") && e.Path[0] == '/' || strings.HasPrefix(e.Path, "..") && (len(e.Path) == 2 || e.Path[2] == '/') {
				t.Errorf("path %q", e.Path)
			}
			_, err := io.Copy(io.Discard, io.LimitReader(r, 1<<20))
			return err
		})
	})
}
