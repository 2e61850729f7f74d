package squashfs_test

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"lethe/image/squashfs"
	"lethe/image/tree"
)

func run(t testing.TB, in io.Reader, name string, args ...string) {
	t.Helper()
	c := exec.Command(name, args...)
	c.Stdin = in
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", name, err, out)
	}
}

func noise(n int, seed uint64) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)}).Read(b)
	return b
}

// odd makes a directory with everything that a file system may hold.
func odd(t testing.TB) (dir string, pseudo []string) {
	t.Helper()
	dir = t.TempDir()
	write := func(name string, b []byte) {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, b, 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	write("empty", nil)
	write("one", []byte("1"))
	write("block", noise(128<<10, 1))                                        // exactly one block
	write("tail", append(noise(128<<10, 2), "and a tail"...))                // a block and a tail
	write("blocks", append(noise(3*(128<<10), 3), make([]byte, 200<<10)...)) // some packed, some not, some of nothing
	write("text", bytes.Repeat([]byte("much the same, line after line\n"), 50_000))
	write("deep/"+strings.Repeat("d/", 40)+"leaf", []byte("leaf"))
	write(strings.Repeat("n", 255), []byte("a long name"))
	write("Grüße und so", []byte("not ASCII"))
	for i := range 3000 { // more than one metadata block of inodes, of entries, and runs of more than 256
		write(fmt.Sprintf("many/file-%04d", i), fmt.Appendf(nil, "content %d", i%700))
	}
	for i := range 600 { // inodes and fragments of more than one metadata block
		write(fmt.Sprintf("pieces/p%03d", i), noise(1000+i, uint64(i)+10))
	}
	for i := range 40 {
		if err := os.Link(filepath.Join(dir, "tail"), filepath.Join(dir, fmt.Sprintf("hard-%02d", i))); err != nil {
			t.Fatal(err)
		}
	}
	sparse, err := os.Create(filepath.Join(dir, "sparse"))
	if err == nil {
		_, err = sparse.WriteAt([]byte("end"), 16<<20)
		err = errors.Join(err, sparse.Close())
	}
	err = errors.Join(err, os.MkdirAll(filepath.Join(dir, "nothing/in/here"), 0o700),
		os.Symlink("../one", filepath.Join(dir, "many/link")), os.Symlink(strings.Repeat("x/", 2000)+"y", filepath.Join(dir, "long-link")),
		os.Chmod(filepath.Join(dir, "one"), 0o755|fs.ModeSetuid|fs.ModeSetgid), os.Chmod(filepath.Join(dir, "nothing"), 0o777|fs.ModeSticky))
	if err != nil {
		t.Fatal(err)
	}
	return dir, []string{"dev d 755 0 0", "dev/null c 666 0 0 1 3", "dev/sda b 660 0 6 259 70000", "dev/pipe i 600 7 8 f", "dev/sock i 600 70000 8 s",
		"owned d 750 1234 4321"}
}

func open(t testing.TB, path string) (*squashfs.FS, *tree.Tree) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	f, err := squashfs.Open(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	got, err := f.Tree()
	if err != nil {
		t.Fatal(err)
	}
	return f, got
}

// TestOdd reads what mksquashfs(1) made, packed in each way, and compares it
// with the directory that it was made of.
func TestOdd(t *testing.T) {
	dir, pseudo := odd(t)
	for name, args := range map[string][]string{
		"zstd": {"-comp", "zstd"}, "gzip": {"-comp", "gzip"}, "xz": {"-comp", "xz"},
		"plain": {"-comp", "zstd", "-noI", "-noD", "-noF", "-noX"}, "no tails": {"-comp", "zstd", "-no-fragments"},
		"always tails": {"-comp", "zstd", "-always-use-fragments", "-b", "1M"}, "small": {"-comp", "zstd", "-b", "4K"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			out := filepath.Join(t.TempDir(), "image")
			args = append([]string{dir, out, "-quiet", "-no-progress", "-no-xattrs", "-all-time", "1700000000", "-mkfs-time", "1700000001"}, args...)
			for _, p := range pseudo {
				args = append(args, "-p", p)
			}
			run(t, nil, "mksquashfs", args...)
			f, got := open(t, out)
			if f.Xattrs != 0 || f.Made != time.Unix(1700000001, 0).UTC() || !strings.Contains(name+"zstd", f.Compression.String()) {
				t.Errorf("super %+v", f.Super)
			}
			compare(t, got, dir)
			for path, want := range map[string]string{
				"dev/null": "Dcrw-rw-rw- 0 0 1 3", "dev/sda": "Drw-rw---- 0 6 259 70000", "dev/pipe": "prw------- 7 8 0 0",
				"dev/sock": "Srw------- 70000 8 0 0", "owned": "drwxr-x--- 1234 4321 0 0",
			} {
				e := got.Get(path)
				if e == nil {
					t.Errorf("%s is missing", path)
				} else if is := fmt.Sprint(e.Mode, e.UID, e.GID, e.Major, e.Minor); is != want {
					t.Errorf("%s: %s, want %s", path, is, want)
				}
			}
		})
	}
}

// compare compares a tree with a directory.
func compare(t *testing.T, got *tree.Tree, dir string) {
	t.Helper()
	n := 0
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		n++
		rel, _ := filepath.Rel(dir, path)
		info, err := d.Info()
		if err != nil {
			return err
		}
		e := got.Get(rel)
		if e == nil {
			t.Errorf("%s is missing", rel)
			return nil
		}
		if rel != "." && e.Mode != info.Mode() {
			t.Errorf("%s: mode %v, want %v", rel, e.Mode, info.Mode())
		}
		if e.Mode&fs.ModeSymlink != 0 {
			if want, _ := os.Readlink(path); e.Link != want {
				t.Errorf("%s leads to %d bytes, want %d", rel, len(e.Link), len(want))
			}
		}
		if !e.Mode.IsRegular() {
			return nil
		}
		r, err := e.Open()
		if err != nil {
			return err
		}
		defer r.Close()
		a, b := sha256.New(), sha256.New()
		if _, err := io.Copy(a, r); err != nil {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		if _, err := io.Copy(b, f); err != nil {
			return err
		}
		if e.Size != info.Size() || !bytes.Equal(a.Sum(nil), b.Sum(nil)) {
			t.Errorf("%s has other content", rel)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if got.Len() != n+6 {
		t.Errorf("%d entries, want %d", got.Len(), n+6)
	}
}

// small is a tree for tests that change bytes.
func small(t testing.TB) *tree.Tree {
	t.Helper()
	x := &tree.Tree{}
	err := errors.Join(x.Dir(".", 0o755, 0, 0, ""), x.File("a", 0o644, "", bytes.Repeat([]byte("aaaa"), 5000)), x.File("b/c", 0o600, "", noise(9000, 5)),
		x.Symlink("b/l", "../a", ""), x.Dir("e", 0o700, 5, 6, ""), x.File("z", 0o755, "", []byte("z")),
		x.File(strings.Repeat("long/", 30)+"name", 0o644, "", []byte("long")), x.Symlink("far", strings.Repeat("x/", 80)+"y", ""),
		x.Add(tree.Entry{Path: "dev/null", Mode: fs.ModeDevice | fs.ModeCharDevice | 0o666, Major: 1, Minor: 3}))
	if err != nil {
		t.Fatal(err)
	}
	return x
}

// pack makes a file system of a tree as the builder does.
func pack(t testing.TB, x *tree.Tree, args ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := x.WriteTar(&b, time.Unix(1700000000, 0)); err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(t.TempDir(), "image")
	run(t, &b, "sqfstar", append([]string{"-quiet", "-no-progress", "-comp", "zstd", "-b", "4096", "-mkfs-time", "1700000000", "-root-mode", "0755"}, append(args, out)...)...)
	image, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return image
}

// TestTar: a tree is the same again after WriteTar, sqfstar(1) and Tree.
func TestTar(t *testing.T) {
	want := small(t)
	b := pack(t, want)
	f, err := squashfs.Open(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	got, err := f.Tree()
	if err != nil {
		t.Fatal(err)
	}
	if got.Len() != want.Len() {
		t.Errorf("%d entries, want %d", got.Len(), want.Len())
	}
	for w := range want.All() {
		g := got.Get(w.Path)
		if g == nil || g.Mode != w.Mode || g.UID != w.UID || g.GID != w.GID || g.Link != w.Link || g.Size != w.Size || g.Major != w.Major || g.Minor != w.Minor {
			t.Errorf("got %+v, want %+v", g, w)
			continue
		}
		if w.Mode.IsRegular() {
			x, err := g.Read()
			y, _ := w.Read()
			if err != nil || !bytes.Equal(x, y) {
				t.Errorf("%s: %v", w.Path, err)
			}
		}
	}
}

// TestXattrs: there are some, and their number is told.
func TestXattrs(t *testing.T) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, name := range []string{"a", "b", "c"} {
		h := &tar.Header{Name: "./" + name, Typeflag: tar.TypeReg, Mode: 0o644, Size: 1, Format: tar.FormatPAX, PAXRecords: map[string]string{"SCHILY.xattr.user.x": name}}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		_, _ = w.Write([]byte(name))
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(t.TempDir(), "image")
	run(t, &b, "sqfstar", "-quiet", "-no-progress", "-comp", "zstd", "-xattrs", out)
	f, got := open(t, out)
	if f.Xattrs != 3 {
		t.Errorf("%d sets of extended attributes", f.Xattrs)
	}
	if b, err := got.Get("c").Read(); err != nil || string(b) != "c" {
		t.Errorf("%q, %v", b, err)
	}
}

// TestParallel reads all files at once, from several goroutines.
func TestParallel(t *testing.T) {
	b := pack(t, small(t))
	f, err := squashfs.Open(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	got, err := f.Tree()
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 8 {
		for e := range got.All() {
			if e.Mode.IsRegular() {
				wg.Go(func() {
					if _, err := e.Read(); err != nil {
						t.Error(err)
					}
				})
			}
		}
	}
	wg.Wait()
}

// readAll reads everything that a file system says it has, up to a bound.
func readAll(b []byte) error {
	f, err := squashfs.Open(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		return err
	}
	x, err := f.Tree()
	if err != nil {
		return err
	}
	for e := range x.All() {
		if e.Mode.IsRegular() {
			r, err := e.Open()
			if err != nil {
				return err
			}
			if _, err := io.Copy(io.Discard, io.LimitReader(r, 1<<20)); err != nil {
				return err
			}
		}
	}
	return nil
}

func TestRefused(t *testing.T) {
	le := binary.LittleEndian
	good := pack(t, small(t), "-noI", "-noId")
	if err := readAll(good); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(b []byte) []byte{
		"short":          func(b []byte) []byte { return b[:95] },
		"magic":          func(b []byte) []byte { b[0] = 'x'; return b },
		"version":        func(b []byte) []byte { b[28] = 3; return b },
		"used":           func(b []byte) []byte { le.PutUint64(b[40:], 1<<40); return b },
		"cut off":        func(b []byte) []byte { return b[:len(b)/2] },
		"block size":     func(b []byte) []byte { le.PutUint32(b[12:], 5000); return b },
		"block log":      func(b []byte) []byte { b[22]++; return b },
		"no inodes":      func(b []byte) []byte { le.PutUint32(b[4:], 0); return b },
		"fragments":      func(b []byte) []byte { le.PutUint32(b[16:], 1<<30); return b },
		"more fragments": func(b []byte) []byte { le.PutUint32(b[16:], 1000); return b },
		"compression":    func(b []byte) []byte { b[20] = 5; return b },
		"other":          func(b []byte) []byte { b[20] = 1; return b },
		"ids":            func(b []byte) []byte { le.PutUint16(b[26:], 60000); return b },
		"id table":       func(b []byte) []byte { le.PutUint64(b[48:], 1<<50); return b },
		"xattr table":    func(b []byte) []byte { le.PutUint64(b[56:], 1<<50); return b },
		"inode table":    func(b []byte) []byte { le.PutUint64(b[64:], 1<<50); return b },
		"swapped tables": func(b []byte) []byte { le.PutUint64(b[64:], le.Uint64(b[72:])+1); return b },
		"root":           func(b []byte) []byte { le.PutUint64(b[32:], 0xffff); return b },
		"root's type":    func(b []byte) []byte { le.PutUint64(b[32:], 0); return b },
		"no metadata":    func(b []byte) []byte { le.PutUint16(b[le.Uint64(b[64:]):], metaPlain); return b },
		"big metadata":   func(b []byte) []byte { le.PutUint16(b[le.Uint64(b[64:]):], 0xffff); return b },
		"owner":          func(b []byte) []byte { le.PutUint16(b[le.Uint64(b[64:])+2+4:], 77); return b },
		"type":           func(b []byte) []byte { le.PutUint16(b[le.Uint64(b[64:])+2:], 0); return b },
		"name":           func(b []byte) []byte { i := bytes.LastIndex(b, []byte("\x00\x00z")); b[i+2] = 'a'; return b },
		"slash":          func(b []byte) []byte { i := bytes.LastIndex(b, []byte("\x00\x00z")); b[i+2] = '/'; return b },
		"link":           func(b []byte) []byte { i := bytes.LastIndex(b, []byte("../a")); le.PutUint32(b[i-4:], 0); return b },
		"longer link":    func(b []byte) []byte { i := bytes.LastIndex(b, []byte("../a")); le.PutUint32(b[i-4:], 4000); return b },
		"data":           func(b []byte) []byte { b[100] ^= 0xff; return b },
	} {
		b := change(bytes.Clone(good))
		if err := readAll(b); !errors.Is(err, squashfs.ErrFormat) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, n := range []int64{0, 200} { // the superblock, a table
		broken := errors.New("broken medium")
		if _, err := squashfs.Open(failing{bytes.NewReader(good), n, broken}, int64(len(good))); !errors.Is(err, broken) || errors.Is(err, squashfs.ErrFormat) {
			t.Errorf("a medium that cannot be read from %d on: %v", n, err)
		}
	}
	if got := squashfs.Compression(99).String(); got != "compression 99" {
		t.Error(got)
	}
}

const metaPlain = 1 << 15

type failing struct {
	*bytes.Reader
	from int64
	err  error
}

func (f failing) ReadAt(b []byte, at int64) (int, error) {
	if at >= f.from {
		return 0, f.err
	}
	return f.Reader.ReadAt(b, at)
}

// TestFlips changes bytes of a small file system's metadata, one at a time: that must not
// end in a panic, an endless loop or a reader that never stops.
func TestFlips(t *testing.T) {
	good := pack(t, small(t), "-noI", "-noId", "-noD", "-noF")
	r := rand.New(rand.NewPCG(1, 2))
	refused := 0
	end := int(binary.LittleEndian.Uint64(good[40:]))
	start := int(binary.LittleEndian.Uint64(good[64:]))
	for i := range end {
		if i >= 96 && (i < start || i%3 > 0) { // file contents
			continue
		}
		b := bytes.Clone(good)
		b[i] ^= byte(1 + r.IntN(255))
		if readAll(b) != nil {
			refused++
		}
	}
	if refused < 60 {
		t.Errorf("%d refused", refused)
	}
}

func FuzzTree(f *testing.F) {
	f.Add(pack(f, small(f), "-noI", "-noId"))
	f.Add(pack(f, small(f)))
	f.Fuzz(func(_ *testing.T, b []byte) {
		_ = readAll(b) // no panic, and an end
	})
}
