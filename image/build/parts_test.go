package build_test

import (
	"archive/zip"
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"lethe/fault"
	"lethe/image/build"
	"lethe/image/release"
)

func TestKernelRelease(t *testing.T) {
	if got, err := build.KernelRelease(kernel()); got != "7.3.4-test" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
	for name, change := range map[string]func([]byte) []byte{
		"short":    func(b []byte) []byte { return b[:0x20f] },
		"no magic": func(b []byte) []byte { b[0x202] = 'h'; return b },
		"far":      func(b []byte) []byte { binary.LittleEndian.PutUint16(b[0x20e:], 0xffff); return b },
		"nameless": func(b []byte) []byte { b[0x500] = 0; return b },
		"no end":   func(b []byte) []byte { return append(b[:0x500], "7.3"...) },
	} {
		if got, err := build.KernelRelease(change(kernel())); err == nil {
			t.Errorf("%s: %q", name, got)
		}
	}
}

func TestParseCommit(t *testing.T) {
	good := "tree 0123\nparent 4567\nauthor A <a@b> 1 +0000\ncommitter A > B <a@b> 1790000000 +0200\ngpgsig x\n\ntree of words\n"
	tree, at, err := build.ParseCommit([]byte(good))
	if tree != "0123" || at.Unix() != epoch || err != nil || at.Location().String() != "UTC" {
		t.Errorf("%s %v %v", tree, at, err)
	}
	for _, bad := range []string{"", "tree 0123\n\n", strings.Replace(good, "tree 0123\n", "", 1), strings.Replace(good, "1790000000", "soon", 1), strings.Replace(good, "1790000000 +0200", "", 1), strings.Replace(good, "1790000000", "0", 1)} {
		if tree, _, err := build.ParseCommit([]byte(bad)); err == nil {
			t.Errorf("%q is taken: %s", bad, tree)
		}
	}
}

func TestLicences(t *testing.T) {
	if got := build.DebianLicences("Format: x\n\nFiles: *\nLicense: GPL-2+\n text\n\nLicense: BSD\n\nLicense: GPL-2+\n"); !slices.Equal(got, []string{"BSD", "GPL-2+"}) {
		t.Error(got)
	}
	if got := build.DebianLicences("This was packaged by"); !slices.Equal(got, []string{"see Debian's copyright file"}) {
		t.Error(got)
	}
	for text, want := range map[string][]string{"Permission is hereby  granted, free\nof charge": {"MIT"}, "my own words": {"see LICENSE"}} {
		if got := build.ModuleLicences(pack(t, map[string]string{"x/y@v1/sub/LICENSE": "no", "x/y@v1/LICENSE": text})); !slices.Equal(got, want) {
			t.Errorf("%q: %q", text, got)
		}
	}
	if got := build.ModuleLicences(pack(t, map[string]string{"x/y@v1/README": ""})); got != nil {
		t.Error(got)
	}
	if got := build.ModuleLicences([]byte("no zip")); got != nil {
		t.Error(got)
	}
}

func pack(t *testing.T, files map[string]string) []byte {
	t.Helper()
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for name, text := range files {
		if _, err := must(z.Create(name))(t).Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// TestToolchain lets nothing out of the tree.
func TestToolchain(t *testing.T) {
	const v = "golang.org/toolchain@v0.0.1-go1.26.8.linux-amd64/"
	dir := t.TempDir()
	inside := filepath.Join(dir, "in")
	if err := os.Mkdir(inside, 0o755); err != nil {
		t.Fatal(err)
	}
	root := must(os.OpenRoot(inside))(t)
	defer root.Close()
	if err := build.UnpackToolchain(root, pack(t, map[string]string{v + "bin/go": "x", v + "src/a/a.go": "x", v + "src/a/a_test.go": "x", v + "test/b.go": "x", "other": "x"})); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]fs.FileMode{"bin/go": 0o755, "src/a/a.go": 0o644} {
		if info, err := os.Stat(filepath.Join(inside, "usr/local/go", name)); err != nil || info.Mode() != want {
			t.Errorf("%s: %v, %v", name, info, err)
		}
	}
	for _, name := range []string{"src/a/a_test.go", "test"} {
		if _, err := os.Stat(filepath.Join(inside, "usr/local/go", name)); err == nil {
			t.Errorf("%s is there", name)
		}
	}
	if err := build.UnpackToolchain(root, pack(t, map[string]string{v + "../../../../../out": "x"})); err == nil {
		t.Error("a file leaves the tree")
	}
	if _, err := os.Stat(filepath.Join(dir, "out")); err == nil {
		t.Error("a file has left the tree")
	}
	if err := build.UnpackToolchain(root, []byte("no zip")); err == nil {
		t.Error("what is no zip is taken")
	}
}

func TestPublish(t *testing.T) {
	dir := t.TempDir()
	if err := errors.Join(build.Publish(dir, map[string][]byte{"a": []byte("1")}), build.Publish(dir, map[string][]byte{"a": []byte("1"), "b": []byte("2")})); err != nil {
		t.Fatal(err)
	}
	if err := build.Publish(dir, map[string][]byte{"a": []byte("2"), "c": []byte("2")}); fault.Of(err) != fault.Conflict {
		t.Error(err)
	}
	if got := contents(t, dir); len(got) != 2 || got["a"] != "1" {
		t.Error(got)
	}
	if err := build.Publish(filepath.Join(dir, "a"), map[string][]byte{"x": nil}); err == nil {
		t.Error("a file is a directory")
	}
	if err := build.Publish(filepath.Join(dir, "none"), map[string][]byte{"x": nil}); err == nil {
		t.Error("what is not there is a directory")
	}
	if err := os.Mkdir(filepath.Join(dir, "d"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := build.Publish(dir, map[string][]byte{"d": nil}); err == nil {
		t.Error("a directory is a file")
	}
	if got := build.Trouble("x", fs.ErrPermission); fault.Of(got) != fault.Denied {
		t.Error(got)
	}
}

// describes looks at what is refused of an ISO: its maker found it whole.
func describes(t *testing.T, m release.Image, iso string) {
	uki := []byte(iso[m.BootOffset : m.BootOffset+m.BootLength])
	at := map[string]int64{}
	size := map[string]int64{}
	for _, r := range m.Regions {
		at[r.Name], size[r.Name] = r.Offset, r.Length
	}
	describe := func(b []byte, uki []byte, root int64) error {
		_, err := build.Describe("vm", b, uki, root)
		return err
	}
	if err := describe([]byte(iso), uki, size["root"]); err != nil {
		t.Error(err)
	}
	// retype gives the nth partition that is there another type.
	retype := func(kind []byte) []byte {
		b := []byte(iso)
		entries := b[at["gpt/entries"]:][:size["gpt/entries"]]
		i := bytes.Index(entries, kind)
		entries[i] ^= 1
		header := b[at["gpt/header"]:][:92]
		binary.LittleEndian.PutUint32(header[88:], crc32.ChecksumIEEE(entries[:128*binary.LittleEndian.Uint32(header[80:])]))
		clear(header[16:20])
		binary.LittleEndian.PutUint32(header[16:], crc32.ChecksumIEEE(header))
		return b
	}
	noBackup := []byte(iso)
	noBackup[len(noBackup)-512] = 0
	farBackup := []byte(iso)
	binary.LittleEndian.PutUint64(farBackup[len(farBackup)-512+72:], 1<<40)
	for name, err := range map[string]error{
		"no table":         describe(make([]byte, 1<<16), uki, 4096),
		"no ESP":           describe(retype([]byte{0x28, 0x73, 0x2a, 0xc1}), uki, size["root"]),
		"no root":          describe(retype([]byte{0x1d, 0x6c, 0x8e, 0x5f}), uki, size["root"]),
		"other boot image": describe([]byte(iso), append([]byte{1}, uki...), size["root"]),
		"large root":       describe([]byte(iso), uki, 1<<40),
		"no image":         describe([]byte(iso), uki[:100], size["root"]),
		"no backup":        describe(noBackup, uki, size["root"]),
		"far backup":       describe(farBackup, uki, size["root"]),
	} {
		if err == nil {
			t.Errorf("%s is taken", name)
		}
	}
}
