package tree_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"lethe/image/tree"
)

var at = time.Date(2026, 1, 2, 3, 4, 5, 6, time.FixedZone("far", 3600*7))

// every is a tree with an entry of each kind, added in an order of its own.
func every(t testing.TB) *tree.Tree {
	t.Helper()
	x := &tree.Tree{}
	err := errors.Join(
		x.File("usr/lib/z", 0o644, "package", []byte("z")),
		x.File("usr/lib-a", 0o755, "package", []byte("a")), // after usr/lib/z: order is by element
		x.Symlink("lib", "usr/lib", "ours"),
		x.Dir("tmp", fs.ModeSticky|0o777, 0, 0, "ours"),
		x.Dir(".", 0o755, 0, 0, "ours"),
		x.Add(tree.Entry{Path: "setuid", Mode: fs.ModeSetuid | fs.ModeSetgid | 0o755, UID: 1000, GID: 70000, Size: 3, Open: tree.Bytes([]byte("abc"))}),
		x.Add(tree.Entry{Path: "dev/console", Mode: fs.ModeDevice | fs.ModeCharDevice | 0o600, Major: 5, Minor: 1}),
		x.Add(tree.Entry{Path: "dev/sda", Mode: fs.ModeDevice | 0o660, GID: 6, Major: 8}),
		x.File("empty", 0o600, "ours", nil),
		x.File(strings.Repeat("long/", 30)+"name", 0o644, "ours", []byte("content")),
		x.Symlink("Grüße", strings.Repeat("../", 60)+"x", "ours"),
	)
	if err != nil {
		t.Fatal(err)
	}
	return x
}

func describe(e *tree.Entry, content []byte) string {
	return fmt.Sprintf("%s %v %d:%d %d,%d %q %q", e.Path, e.Mode, e.UID, e.GID, e.Major, e.Minor, e.Link, content)
}

func list(t testing.TB, x *tree.Tree) (lines []string) {
	t.Helper()
	for e := range x.All() {
		var b []byte
		if e.Mode.IsRegular() {
			var err error
			if b, err = e.Read(); err != nil {
				t.Fatal(err)
			}
		}
		lines = append(lines, describe(e, b))
	}
	return lines
}

func TestOrder(t *testing.T) {
	var got []string
	for e := range every(t).All() {
		if !strings.HasPrefix(e.Path, "long/") {
			got = append(got, e.Path)
		}
	}
	want := []string{".", "Grüße", "dev", "dev/console", "dev/sda", "empty", "lib", "long", "setuid", "tmp", "usr", "usr/lib", "usr/lib/z", "usr/lib-a"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
	for e := range every(t).All() {
		if e.Path != "." {
			t.Errorf("first is %s", e.Path)
		}
		break
	}
}

func TestAdd(t *testing.T) {
	x := every(t)
	size := x.Len()
	for name, c := range map[string]struct {
		e    tree.Entry
		text string
	}{
		"slash":         {tree.Entry{Path: "/a", Mode: fs.ModeDir}, "not a path"},
		"empty":         {tree.Entry{Path: "", Mode: fs.ModeDir}, "not a path"},
		"climbs":        {tree.Entry{Path: "a/../b", Mode: fs.ModeDir}, "not a path"},
		"newline":       {tree.Entry{Path: "a\nb", Mode: fs.ModeDir}, "not a path"},
		"twice":         {tree.Entry{Path: "empty", Open: tree.Bytes(nil), From: "other"}, "empty comes from ours and from other"},
		"other mode":    {tree.Entry{Path: "usr", Mode: fs.ModeDir | 0o700, From: "other"}, "usr comes from package and from other"},
		"other owner":   {tree.Entry{Path: "usr", Mode: fs.ModeDir | 0o755, UID: 1}, "usr comes from"},
		"below a file":  {tree.Entry{Path: "empty/x", Mode: fs.ModeDir, From: "other"}, "no directory"},
		"below a link":  {tree.Entry{Path: "lib/x/y", Mode: fs.ModeDir, From: "other"}, "no directory"},
		"no content":    {tree.Entry{Path: "x"}, "no content"},
		"leads nowhere": {tree.Entry{Path: "x", Mode: fs.ModeSymlink}, "nowhere"},
	} {
		if err := x.Add(c.e); err == nil || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := x.Dir("usr", 0o755, 0, 0, "again"); err != nil {
		t.Errorf("a directory that is the same: %v", err)
	}
	if x.Len() != size {
		t.Errorf("%d entries, want %d", x.Len(), size)
	}
	if e := x.Get("usr/lib"); e == nil || e.Mode != fs.ModeDir|0o755 || e.From != "package" {
		t.Errorf("a parent that was made: %+v", e)
	}
}

func TestRemove(t *testing.T) {
	x := every(t)
	x.Remove("usr/lib")
	if x.Get("usr/lib") != nil || x.Get("usr/lib/z") != nil || x.Get("usr/lib-a") == nil || x.Get("usr") == nil {
		t.Errorf("left: %q", list(t, x))
	}
	for e := range x.All() { // what is removed on the way is not seen any more
		if e.Path == "usr/lib-a" {
			t.Error("seen after it was removed")
		}
		x.Remove("usr")
	}
}

func TestResolve(t *testing.T) {
	x := every(t)
	err := errors.Join(x.Symlink("abs", "/usr/lib/z", ""), x.Symlink("usr/up", "../../..//./empty", ""), x.Symlink("a", "b", ""), x.Symlink("b", "a", ""),
		x.Symlink("gone", "nowhere", ""), x.Symlink("chain", "lib/z", ""))
	if err != nil {
		t.Fatal(err)
	}
	for p, want := range map[string]string{
		"": ".", ".": ".", "/": ".", "lib": "usr/lib", "lib/z": "usr/lib/z", "/lib//z": "usr/lib/z", "abs": "usr/lib/z", "usr/up": "empty",
		"a": "", "gone": "", "chain": "usr/lib/z", "lib/../lib-a": "usr/lib-a", "no/such": "", "../../empty": "empty",
	} {
		got := ""
		if e := x.Resolve(p); e != nil {
			got = e.Path
		}
		if got != want {
			t.Errorf("%q leads to %q, want %q", p, got, want)
		}
	}
}

func TestRead(t *testing.T) {
	broken := errors.New("broken")
	open := func(s string) func() (io.ReadCloser, error) { return tree.Bytes([]byte(s)) }
	for name, c := range map[string]struct {
		e    tree.Entry
		text string
	}{
		"directory":   {tree.Entry{Path: "x", Mode: fs.ModeDir}, "no regular file"},
		"too short":   {tree.Entry{Path: "x", Size: 4, Open: open("abc")}, "another size than 4"},
		"too long":    {tree.Entry{Path: "x", Size: 2, Open: open("abc")}, "another size than 2"},
		"cannot open": {tree.Entry{Path: "x", Open: func() (io.ReadCloser, error) { return nil, broken }}, "broken"},
		"cannot read": {tree.Entry{Path: "x", Open: func() (io.ReadCloser, error) { return io.NopCloser(iotest.ErrReader(broken)), nil }}, "broken"},
	} {
		if _, err := c.e.Read(); err == nil || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: %v", name, err)
		}
	}
	e := tree.Entry{Path: "x", Size: 3, Open: open("abc")}
	for range 2 {
		if b, err := e.Read(); err != nil || string(b) != "abc" {
			t.Errorf("%q, %v", b, err)
		}
	}
}

// TestTar reads an archive back with archive/tar.
func TestTar(t *testing.T) {
	x := every(t)
	var b, again bytes.Buffer
	if err := errors.Join(x.WriteTar(&b, at), every(t).WriteTar(&again, at.UTC())); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(b.Bytes(), again.Bytes()) {
		t.Error("equal trees gave other bytes")
	}
	var got []string
	r := tar.NewReader(&b)
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if !h.ModTime.Equal(at.Truncate(time.Second)) || h.Uname != "" || h.Gname != "" || strings.HasPrefix(h.Name, "/") {
			t.Errorf("header %+v", h)
		}
		content, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		e := &tree.Entry{Path: strings.TrimSuffix(h.Name, "/"), Mode: h.FileInfo().Mode(), UID: uint32(h.Uid), GID: uint32(h.Gid),
			Major: uint32(h.Devmajor), Minor: uint32(h.Devminor), Link: h.Linkname}
		got = append(got, describe(e, content))
	}
	if want := list(t, x); !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// files are the lines of the entries that an ordinary user can unpack.
func files(t testing.TB, x *tree.Tree) (lines []string) {
	t.Helper()
	for e := range x.All() {
		switch {
		case e.Mode.IsRegular():
			b, err := e.Read()
			if err != nil {
				t.Fatal(err)
			}
			lines = append(lines, fmt.Sprintf("%s %v %q", e.Path, e.Mode.Perm(), b))
		case e.Mode&fs.ModeSymlink != 0:
			lines = append(lines, e.Path+" -> "+e.Link)
		case e.Mode.IsDir():
			lines = append(lines, e.Path+"/")
		}
	}
	slices.Sort(lines)
	return lines
}

// unpacked are the same lines of a directory.
func unpacked(t testing.TB, dir string) (lines []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(dir, path)
		info, err := d.Info()
		if err != nil {
			return err
		}
		switch {
		case d.Type().IsRegular():
			if !info.ModTime().Equal(at.Truncate(time.Second)) {
				t.Errorf("%s is of %v", rel, info.ModTime())
			}
			b, err := os.ReadFile(path)
			lines = append(lines, fmt.Sprintf("%s %v %q", rel, info.Mode().Perm(), b))
			return err
		case d.Type()&fs.ModeSymlink != 0:
			to, err := os.Readlink(path)
			lines = append(lines, rel+" -> "+to)
			return err
		case d.IsDir():
			lines = append(lines, rel+"/")
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(lines)
	return lines
}

// TestOthers: tar(1) and cpio(1) read what we write.
func TestOthers(t *testing.T) {
	x := every(t)
	var archive, initramfs bytes.Buffer
	if err := errors.Join(x.WriteTar(&archive, at), x.WriteCPIO(&initramfs, at)); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		in   []byte
		args []string
		list []string
	}{
		"tar": {archive.Bytes(), []string{"-x", "-p", "--no-same-owner", "--exclude=dev/*"}, []string{"-t", "-v", "--numeric-owner", "--utc", "--full-time"}},
		// cpio as an ordinary user complains about devices and owners; those are in its list.
		"cpio": {initramfs.Bytes(), []string{"-i", "-d", "-m", "--no-preserve-owner", "--quiet", "-f", "dev/*"}, []string{"-t", "-v", "-n", "--quiet"}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			c1 := exec.Command(name, c.args...)
			c1.Dir, c1.Stdin = dir, bytes.NewReader(c.in)
			if out, err := c1.CombinedOutput(); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			got, want := unpacked(t, dir), files(t, x)
			want = slices.DeleteFunc(want, func(s string) bool { return strings.HasPrefix(s, "dev/") && s != "dev/" })
			if !slices.Equal(got, want) {
				t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
			}
			c2 := exec.Command(name, c.list...)
			c2.Env = append(os.Environ(), "LC_ALL=C.UTF-8", "TZ=UTC")
			c2.Stdin = bytes.NewReader(c.in)
			out, err := c2.CombinedOutput()
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			// cpio(1) puts blanks between a device's numbers.
			lines := regexp.MustCompile(`, +`).ReplaceAllString(string(out), ",")
			for _, want := range []string{`crw------- .* 5,1 .*dev/console`, `brw-rw---- .* 8,0 .*dev/sda`, `-rwsr-sr-x .*1000[ /]+70000 .*setuid`, `drwxrwxrwt .*tmp`} {
				if !regexp.MustCompile(want).MatchString(lines) {
					t.Errorf("no line like %s in\n%s", want, lines)
				}
			}
		})
	}
}

func TestCPIO(t *testing.T) {
	x := every(t)
	var b, again bytes.Buffer
	if err := errors.Join(x.WriteCPIO(&b, at), every(t).WriteCPIO(&again, at)); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(b.Bytes(), again.Bytes()) {
		t.Error("equal trees gave other bytes")
	}
	got, err := tree.ReadCPIO(b.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(list(t, got), list(t, x)) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(list(t, got), "\n"), strings.Join(list(t, x), "\n"))
	}
	// Two archives behind each other, with zeros between, as the kernel takes them.
	more := &tree.Tree{}
	if err := more.File("more", 0o644, "", []byte("more")); err != nil {
		t.Fatal(err)
	}
	b.Write(make([]byte, 512-b.Len()%512))
	if err := more.WriteCPIO(&b, at); err != nil {
		t.Fatal(err)
	}
	if got, err = tree.ReadCPIO(b.Bytes()); err != nil || got.Get("more") == nil || got.Len() != x.Len()+1 {
		t.Errorf("two archives: %v, %v", got, err)
	}
	if got, err = tree.ReadCPIO(nil); err != nil || got.Len() != 0 {
		t.Errorf("nothing: %v, %v", got, err)
	}
}

// TestForeignCPIO reads what cpio(1) wrote.
func TestForeignCPIO(t *testing.T) {
	dir := t.TempDir()
	err := errors.Join(os.WriteFile(filepath.Join(dir, "file"), []byte("content"), 0o640), os.Chmod(filepath.Join(dir, "file"), 0o640),
		os.Symlink("file", filepath.Join(dir, "link")), os.Mkdir(filepath.Join(dir, "dir"), 0o755))
	if err != nil {
		t.Fatal(err)
	}
	c := exec.Command("cpio", "-o", "-H", "newc", "--quiet")
	c.Dir, c.Stdin = dir, strings.NewReader("dir\nfile\nlink\n")
	out, err := c.Output()
	if err != nil {
		t.Fatal(err)
	}
	x, err := tree.ReadCPIO(out)
	if err != nil {
		t.Fatal(err)
	}
	f, l := x.Get("file"), x.Get("link")
	if f == nil || f.Mode != 0o640 || l == nil || l.Link != "file" || x.Get("dir") == nil {
		t.Errorf("got %q", list(t, x))
	}
	if b, err := f.Read(); err != nil || string(b) != "content" {
		t.Errorf("%q, %v", b, err)
	}
}

func TestBadCPIO(t *testing.T) {
	x := &tree.Tree{}
	if err := x.File("file", 0o644, "", []byte("content")); err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := x.WriteCPIO(&b, at); err != nil {
		t.Fatal(err)
	}
	good := b.String()
	i := strings.LastIndex(good[:strings.Index(good, "file")], "070701") // the file's header
	put := func(field int, value string) string { return good[:i+6+8*field] + value + good[i+6+8*field+8:] }
	for name, c := range map[string]struct{ in, text string }{
		"cut off":         {good[:len(good)-20], "byte"},
		"in the content":  {good[:strings.Index(good, "content")+2], "not there"},
		"in the header":   {good[:i+50], "newc"},
		"old format":      {strings.Replace(good, "070701", "070707", 1), "newc"},
		"no number":       {put(6, "000000x0"), "no number"},
		"long name":       {put(11, "7FFFFFFF"), "a name of"},
		"no name":         {put(11, "00000001"), "a name of"},
		"name without 0":  {put(11, "00000004"), "a name of"},
		"large":           {put(6, "FFFFFFFF"), "not there"},
		"type":            {put(1, "0000C1A4"), "mode"},
		"bits":            {put(1, "FFFF81A4"), "mode"},
		"two names":       {put(4, "00000002"), "2 names"},
		"climbs":          {strings.Replace(good, "file", "../x", 1), "not a path"},
		"not clean":       {strings.Replace(good, "file", "./xy", 1), "not a path"},
		"twice":           {good + good, "comes from"},
		"not a multiple":  {"\x00" + good, "multiple of four"},
		"something after": {good + "abcd", "newc"},
	} {
		if _, err := tree.ReadCPIO([]byte(c.in)); err == nil || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestRefused: what cannot be written is an error that names the file.
func TestRefused(t *testing.T) {
	broken := errors.New("broken")
	for name, e := range map[string]tree.Entry{
		"pipe":        {Path: "x", Mode: fs.ModeNamedPipe | 0o600},
		"too short":   {Path: "x", Mode: 0o600, Size: 4, Open: tree.Bytes([]byte("abc"))},
		"cannot open": {Path: "x", Mode: 0o600, Size: 4, Open: func() (io.ReadCloser, error) { return nil, broken }},
		"cannot read": {Path: "x", Mode: 0o600, Size: 4, Open: func() (io.ReadCloser, error) { return io.NopCloser(iotest.ErrReader(broken)), nil }},
	} {
		x := &tree.Tree{}
		if err := x.Add(e); err != nil {
			t.Fatal(err)
		}
		for format, err := range map[string]error{"tar": x.WriteTar(io.Discard, at), "cpio": x.WriteCPIO(io.Discard, at)} {
			if err == nil || !strings.Contains(err.Error(), "tree: x") {
				t.Errorf("%s, %s: %v", name, format, err)
			}
		}
	}
	huge := &tree.Tree{}
	if err := huge.Add(tree.Entry{Path: "x", Size: 1 << 32, Open: tree.Bytes(nil)}); err != nil {
		t.Fatal(err)
	}
	if err := huge.WriteCPIO(io.Discard, at); err == nil || !strings.Contains(err.Error(), "too large") {
		t.Errorf("a file of 4 GiB: %v", err)
	}
	big := &tree.Tree{}
	if err := big.File("x", 0o600, "", make([]byte, 1<<20)); err != nil {
		t.Fatal(err)
	}
	for _, n := range []int{0, 100, 5000, 1<<20 + 100} {
		full := func() io.Writer { return &limited{n} }
		if err := big.WriteTar(full(), at); !errors.Is(err, io.ErrShortWrite) {
			t.Errorf("tar, room for %d: %v", n, err)
		}
		if err := big.WriteCPIO(full(), at); !errors.Is(err, io.ErrShortWrite) {
			t.Errorf("cpio, room for %d: %v", n, err)
		}
	}
}

// limited takes so many bytes and no more.
type limited struct{ n int }

func (l *limited) Write(b []byte) (int, error) {
	if l.n -= len(b); l.n < 0 {
		return 0, io.ErrShortWrite
	}
	return len(b), nil
}

func FuzzReadCPIO(f *testing.F) {
	var b bytes.Buffer
	if err := every(f).WriteCPIO(&b, at); err != nil {
		f.Fatal(err)
	}
	f.Add(b.Bytes())
	f.Fuzz(func(t *testing.T, b []byte) {
		x, err := tree.ReadCPIO(b)
		if err != nil {
			return
		}
		var again bytes.Buffer
		if err := x.WriteCPIO(&again, at); err != nil {
			t.Fatal(err)
		}
		y, err := tree.ReadCPIO(again.Bytes())
		if err != nil || !slices.Equal(list(t, x), list(t, y)) {
			t.Errorf("it is another one when written and read again: %v", err)
		}
	})
}
