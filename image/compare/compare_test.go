package compare_test

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"lethe/image/compare"
	"lethe/image/layout"
	"lethe/image/medium"
	"lethe/image/medium/mediumtest"
	"lethe/image/pe"
	"lethe/image/tree"
)

func of(b []byte) compare.Image {
	return compare.Image{Size: int64(len(b)), Reader: bytes.NewReader(b)}
}

func images(t testing.TB, a, b []byte) *compare.Report {
	t.Helper()
	r, err := compare.Images(of(a), of(b))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// has reports whether a difference was found; where is its path, with slashes.
func has(r *compare.Report, where, what string) *compare.Difference {
	for i, d := range r.Differences {
		if strings.Join(d.Where, ": ") == where && d.What == what {
			return &r.Differences[i]
		}
	}
	return nil
}

func TestSame(t *testing.T) {
	a, b := mediumtest.Make(t, mediumtest.Spec{}), mediumtest.Make(t, mediumtest.Spec{})
	if r := images(t, a, b); !r.Same || len(r.Differences) != 0 {
		t.Errorf("%+v", r)
	}
}

func packed(t testing.TB, s string) []byte {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	_, err := w.Write([]byte(s))
	if err := errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// TestFiles: every kind of file's difference, found at once.
func TestFiles(t *testing.T) {
	var roots [2]*tree.Tree
	long := strings.Repeat("word ", 200)
	for i := range roots {
		x := mediumtest.Root(t)
		n := byte('0' + i)
		var text strings.Builder
		for line := range 40 {
			fmt.Fprintf(&text, "line %d\n", line)
			if line == 20 {
				fmt.Fprintf(&text, "only %c\n", n)
			}
		}
		var tail []byte
		if i == 1 {
			tail = []byte("more\n")
		}
		err := errors.Join(x.File("text", 0o644, "", []byte(text.String())), x.File("packed.gz", 0o644, "", packed(t, "in a packed file: "+string(n)+"\n")),
			x.File("binary", 0o644, "", append(make([]byte, 100), n)), x.File("mode", fs.FileMode(0o600+i), "", nil), x.Symlink("link", "to-"+string(n), ""),
			x.File("long", 0o644, "", []byte(long+string(n)+long)), x.File("wide", 0o644, "", []byte(strings.Repeat("line "+string(n)+"\n", 50))), x.File("longer", 0o644, "", append([]byte("first\n"), tail...)), x.File("no-end", 0o644, "", []byte("end\n"[:3+i])),
			x.Add(tree.Entry{Path: "owner", Size: 0, Open: tree.Bytes(nil), UID: uint32(i)}), x.Add(tree.Entry{Path: "device", Mode: fs.ModeDevice | 0o600, Major: 8, Minor: uint32(i)}),
			x.File("only-"+string(n), 0o644, "", nil))
		if i == 0 {
			err = errors.Join(err, x.File("kind", 0o644, "", nil))
		} else {
			err = errors.Join(err, x.Dir("kind", 0o755, 0, 0, ""))
		}
		if err != nil {
			t.Fatal(err)
		}
		roots[i] = x
	}
	r := images(t, mediumtest.Make(t, mediumtest.Spec{Root: roots[0]}), mediumtest.Make(t, mediumtest.Spec{Root: roots[1]}))
	if r.Same || r.Offset == 0 || r.Region == "" || r.More != 0 {
		t.Errorf("same %v, %d, %q, %d more", r.Same, r.Offset, r.Region, r.More)
	}
	for where, c := range map[string]struct{ what, text string }{
		"text": {"content", "@@ line 22 @@\n\t line 18\n\t line 19\n\t line 20\n\t-only 0\n\t+only 1\n\t line 21"}, "packed.gz: unpacked": {"content", "-in a packed file: 0"},
		"wide": {"content", "-…"}, "binary": {"bytes", "from byte 100 on"}, "mode": {"mode", "-rw------x"}, "link": {"target", "to-1"}, "long": {"content", "word 0word"}, "longer": {"content", "+more"},
		"no-end": {"content", "-end\\ no newline"}, "owner": {"owner", "1:0"}, "device": {"device", "8,1"}, "only-0": {"file", "(nothing)"}, "only-1": {"file", "(nothing)"}, "kind": {"mode", "drwxr-xr-x"},
	} {
		d := has(r, "root: "+where, c.what)
		if d == nil || !strings.Contains(d.String(), c.text) {
			t.Errorf("%s: %v", where, d)
		}
	}
	if d := has(r, "boot image: .initrd: lethe/root", "content"); d == nil {
		t.Error("the root's digest is the same")
	}
	if b, err := json.Marshal(r); err != nil || !bytes.Contains(b, []byte(`"hunk":["@@ line 22 @@"`)) {
		t.Errorf("%s, %v", b, err)
	}
}

// word is in this program, so that another program can be made of it.
const word = "a word that stands in this program and in no other"

func TestPrograms(t *testing.T) {
	a, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	text := bytes.ReplaceAll(a, []byte(word), []byte(strings.ToUpper(word)))
	tagged := bytes.ReplaceAll(a, []byte("build\t-compiler=gc\n"), []byte("build\t-compiler=xy\n"))
	broken := bytes.Clone(a)
	clear(broken[16:20])
	for name, c := range map[string]struct {
		a, b []byte
		text string
	}{
		"content": {a, text, "section .rodata: bytes"}, "tags": {a, tagged, "how it was built\n\t@@ line"}, "sections": {without(t, a), a, "section"}, "fewer sections": {a, without(t, a), "section"},
		"damaged": {a, broken, "from byte 16 on"},
	} {
		var trees [2]*tree.Tree
		for i, b := range [][]byte{c.a, c.b} {
			trees[i] = &tree.Tree{}
			if err := trees[i].File("usr/bin/x", 0o755, "", b); err != nil {
				t.Fatal(err)
			}
		}
		d, err := compare.Trees("root", trees[0], trees[1])
		if err != nil || len(d) != 1 || !strings.Contains(d[0].String(), c.text) {
			t.Errorf("%s: %v, %v", name, d, err)
		}
	}
}

// without returns a program with a section of another name.
func without(t *testing.T, b []byte) []byte {
	t.Helper()
	i := bytes.LastIndex(b, []byte("\x00.noptrbss\x00"))
	if i < 0 {
		t.Fatal("no section .noptrbss")
	}
	b = bytes.Clone(b)
	copy(b[i:], "\x00.noptrbsx\x00")
	return b
}

// TestFields: what is in no file.
func TestFields(t *testing.T) {
	good := mediumtest.Make(t, mediumtest.Spec{})
	m := mediumtest.Open(t, good)
	boot := int(m.System.Offset) + bytes.Index(good[m.System.Offset:], m.Boot[:600])
	le := binary.LittleEndian
	start := boot + int(le.Uint32(m.Boot[0x3c:]))
	for name, c := range map[string]struct {
		change func(b []byte)
		region string
		where  string
		what   string
	}{
		"master boot record": {func(b []byte) { b[440] ^= 1 }, "master boot record", "master boot record", "bytes"},
		"disk":               {func(b []byte) { b[512+56] ^= 1; seal(b) }, "partition table, header", "partition table", "disk"},
		"partition":          {func(b []byte) { b[m.Table.Entries+16] ^= 1; seal(b) }, "partition table, header", "partition table: partition 1", "identity"},
		"volume":             {func(b []byte) { b[16*2048+40] ^= 1 }, "ISO 9660 volume", "ISO 9660 volume", "volume identifier"},
		"volume's time":      {func(b []byte) { b[16*2048+813] ^= 1 }, "ISO 9660 volume", "ISO 9660 volume", "creation time"},
		"directory's time":   {func(b []byte) { b[16*2048+156+18] ^= 1 }, "ISO 9660 volume", "ISO 9660 volume", "bytes"},
		"serial number":      {func(b []byte) { b[m.System.Offset+39] ^= 1 }, "EFI system partition", "EFI system partition", "serial number"},
		"file's time":        {func(b []byte) { b[bytes.Index(b, []byte("BOOTX64 EFI"))+22] ^= 1 }, "EFI system partition", "EFI system partition", "bytes"},
		"link time":          {func(b []byte) { b[start+8] ^= 1 }, "EFI system partition", "boot image: TimeDateStamp", "bytes"},
		"check sum":          {func(b []byte) { b[start+24+64] ^= 1 }, "EFI system partition", "boot image: CheckSum", "bytes"},
		"header":             {func(b []byte) { b[start+24+70] ^= 1 }, "EFI system partition", "boot image: headers", "bytes"},
		"root's time":        {func(b []byte) { b[m.Root.Offset+8] ^= 1 }, "root", "root", "time"},
		"behind the root":    {func(b []byte) { b[m.Root.Offset+m.Root.Size-1] ^= 1 }, "root", "root", "bytes"},
		"second table":       {func(b []byte) { b[len(b)-100] ^= 1 }, "partition table, the second", "partition table, the second", "bytes"},
		"root, damaged":      {func(b []byte) { b[m.Root.Offset] ^= 1 }, "root", "medium", "cannot be read"},
		"table, damaged":     {func(b []byte) { b[512+56] ^= 1 }, "partition table, header", "medium", "cannot be read"},
	} {
		b := bytes.Clone(good)
		c.change(b)
		r := images(t, good, b)
		if d := has(r, c.where, c.what); d == nil || r.Region != c.region || r.Same {
			t.Errorf("%s: %s: %v", name, r.Region, r.Differences)
		}
	}
	spans, err := m.Unused()
	if err != nil {
		t.Fatal(err)
	}
	gaps := 0
	for _, span := range spans {
		if strings.HasPrefix(span.What, "a gap") {
			b := bytes.Clone(good)
			b[span.From] ^= 1
			if r := images(t, good, b); r.Region != "a gap" || has(r, "a gap", "bytes") == nil {
				t.Errorf("%s: %s: %v", span.What, r.Region, r.Differences)
			}
			gaps++
		}
	}
	if gaps == 0 {
		t.Error("there is no gap")
	}
	damaged := bytes.Clone(good)
	clear(damaged[m.System.Offset:][:512])
	if r := images(t, good, damaged); has(r, "EFI system partition", "bytes") == nil || has(r, "medium", "cannot be read") == nil {
		t.Errorf("no file system: %v", r.Differences)
	}
	more := images(t, mediumtest.Make(t, mediumtest.Spec{System: map[string][]byte{"x": {0, 1}}, Files: map[string][]byte{"y": []byte("1\n")}}),
		mediumtest.Make(t, mediumtest.Spec{System: map[string][]byte{"x": {0, 2}}, Files: map[string][]byte{"y": []byte("2\n")}}))
	if has(more, "EFI system partition: x", "bytes") == nil || has(more, "ISO 9660 volume: y", "content") == nil {
		t.Errorf("files beside: %v", more.Differences)
	}
	// One that is shorter.
	r := images(t, good, good[:len(good)-512])
	if d := has(r, "medium", "size"); d == nil || r.Same || r.Offset != int64(len(good)-512) {
		t.Errorf("shorter: %+v", r)
	}
	r = images(t, []byte("x"), []byte("y"))
	if r.Same || len(r.Differences) != 1 || r.Differences[0].A != "78  x" {
		t.Errorf("no images: %+v", r)
	}
}

func seal(b []byte) {
	le := binary.LittleEndian
	entries := b[le.Uint64(b[512+72:])*512:][:le.Uint32(b[512+80:])*128]
	le.PutUint32(b[512+88:], crc32.ChecksumIEEE(entries))
	clear(b[512+16 : 512+20])
	le.PutUint32(b[512+16:], crc32.ChecksumIEEE(b[512:][:92]))
}

// TestBoot: sections of the boot image.
func TestBoot(t *testing.T) {
	other := mediumtest.Sections()
	other[0].Data = []byte("ID=lethe\nVERSION_ID=8\nVARIANT_ID=vm\n")
	other[3].Data = bytes.Repeat([]byte{0, 1, 2}, 900)
	other = append(other, mediumtest.Section{Name: ".sbat", Data: []byte("sbat,1\n")})
	small := mediumtest.Initramfs(t)
	a, b := mediumtest.Make(t, mediumtest.Spec{}), mediumtest.Make(t, mediumtest.Spec{Sections: other})
	r := images(t, a, b)
	for where, what := range map[string]string{"boot image: .osrel": "content", "boot image: .linux": "bytes", "boot image: .sbat": "section"} {
		if has(r, where, what) == nil {
			t.Errorf("%s: %v", where, r.Differences)
		}
	}
	if err := small.File("more", 0o644, "", nil); err != nil {
		t.Fatal(err)
	}
	r = images(t, a, mediumtest.Make(t, mediumtest.Spec{Initramfs: small}))
	if has(r, "boot image: .initrd: more", "file") == nil {
		t.Errorf("%v", r.Differences)
	}
	// The time of everything: it stands in the initramfs, where no file says it.
	r = images(t, a, mediumtest.Make(t, mediumtest.Spec{At: mediumtest.At.Add(48 * time.Hour)}))
	if has(r, "root", "time") == nil {
		t.Errorf("%v", r.Differences)
	}
	// The same initramfs, packed in another way; and one whose files have another time.
	m := mediumtest.Open(t, a)
	plain, err := medium.Archives(m.Section(medium.Initrd))
	if err != nil {
		t.Fatal(err)
	}
	later := bytes.Clone(plain)
	i := bytes.Index(later, []byte("init\x00")) - 110
	copy(later[i+6+5*8:], "00000007")
	for name, c := range map[string]struct {
		x, y  []byte
		where string
		what  string
	}{
		"packing": {packed(t, string(plain)), plain, "boot image: .initrd", "packing"}, "time": {plain, later, "boot image: .initrd: time of init", "bytes"},
		"padding": {append(bytes.Clone(plain), 0, 0, 0, 0), plain, "boot image: .initrd: archive", "bytes"},
	} {
		var both [2][]byte
		for i, b := range [][]byte{c.x, c.y} {
			both[i] = with(t, a, b)
		}
		r := images(t, both[0], both[1])
		if has(r, c.where, c.what) == nil {
			t.Errorf("%s: %v", name, r.Differences)
		}
	}
	// Space for signatures, which the other has not.
	reserved, err := pe.Reserve(m.Boot, 1024)
	if err != nil {
		t.Fatal(err)
	}
	x := withBoot(t, a, m.Boot)
	y := withBoot(t, a, reserved)
	if r := images(t, x, y); has(r, "boot image", "certificate table") == nil {
		t.Errorf("%v", r.Differences)
	}
}

// with returns an image with another initramfs.
func with(t testing.TB, iso, initramfs []byte) []byte {
	t.Helper()
	return withBoot(t, iso, mediumtest.PE(append(mediumtest.Sections(), mediumtest.Section{Name: medium.Initrd, Data: initramfs})))
}

// withBoot returns an image with another boot image.
func withBoot(t testing.TB, iso, boot []byte) []byte {
	t.Helper()
	dir := t.TempDir()
	m := mediumtest.Open(t, iso)
	esp, uki := filepath.Join(dir, "esp"), filepath.Join(dir, "uki")
	err := errors.Join(os.WriteFile(esp, iso[m.System.Offset:][:m.System.Size], 0o600), os.WriteFile(uki, boot, 0o600), os.Chtimes(uki, mediumtest.At, mediumtest.At))
	if err != nil {
		t.Fatal(err)
	}
	c := exec.Command("mcopy", "-m", "-o", "-i", esp, uki, "::"+layout.BootImage)
	c.Env = append(os.Environ(), "MTOOLS_SKIP_CHECK=1", "SOURCE_DATE_EPOCH=1700000000")
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	b, err := os.ReadFile(esp)
	if err != nil {
		t.Fatal(err)
	}
	out := bytes.Clone(iso)
	copy(out[m.System.Offset:], b)
	return out
}

// TestMany: the first hundred are listed, the rest is counted.
func TestMany(t *testing.T) {
	x := &tree.Tree{}
	for i := range 150 {
		if err := x.File(fmt.Sprintf("f%03d", i), 0o644, "", nil); err != nil {
			t.Fatal(err)
		}
	}
	r := images(t, mediumtest.Make(t, mediumtest.Spec{}), mediumtest.Make(t, mediumtest.Spec{Root: x}))
	if len(r.Differences) != 100 || r.More < 50 {
		t.Errorf("%d differences and %d more", len(r.Differences), r.More)
	}
}

// TestTrees: a root is what it was made of, and says so when it is not.
func TestTrees(t *testing.T) {
	want := mediumtest.Root(t)
	m := mediumtest.Open(t, mediumtest.Make(t, mediumtest.Spec{Root: want}))
	if d, err := compare.Trees("root", want, m.Files); err != nil || len(d) > 0 {
		t.Errorf("%v, %v", d, err)
	}
	m.Files.Remove("etc/hostname")
	if d, err := compare.Trees("root", want, m.Files); err != nil || len(d) != 1 || d[0].Where[1] != "etc/hostname" {
		t.Errorf("%v, %v", d, err)
	}
	broken := errors.New("broken")
	bad := &tree.Tree{}
	if err := bad.Add(tree.Entry{Path: "usr/share/text", Mode: 0o644, Size: 1, Open: func() (io.ReadCloser, error) { return nil, broken }}); err != nil {
		t.Fatal(err)
	}
	for _, both := range [][2]*tree.Tree{{want, bad}, {bad, want}} {
		if _, err := compare.Trees("root", both[0], both[1]); !errors.Is(err, broken) {
			t.Errorf("%v", err)
		}
	}
}

func TestUnreadable(t *testing.T) {
	broken := errors.New("broken medium")
	good := mediumtest.Make(t, mediumtest.Spec{})
	// The first difference is before what cannot be read.
	other := bytes.Clone(good)
	other[440] ^= 1
	m := mediumtest.Open(t, good)
	for _, at := range []int64{m.Root.Offset + 96, m.System.Offset + m.System.Size - 1, 16*2048 + 156} {
		bad := failing{bytes.NewReader(good), at, broken}
		once := once{failing: bad, to: at + 1}
		if r, err := compare.Images(of(other), compare.Image{Size: int64(len(good)), Reader: once}); !errors.Is(err, broken) && has(r, "medium", "cannot be read") == nil {
			t.Errorf("byte %d: %+v, %v", at, r, err)
		}
	}
	for _, from := range []int64{0, 1 << 20} {
		for _, swap := range []bool{false, true} {
			a, b := of(good), compare.Image{Size: int64(len(good)), Reader: failing{bytes.NewReader(good), from, broken}}
			if swap {
				a, b = b, a
			}
			if _, err := compare.Images(a, b); !errors.Is(err, broken) {
				t.Errorf("from %d: %v", from, err)
			}
		}
	}
}

// once cannot read one byte.
type once struct {
	failing
	to int64
}

func (o once) ReadAt(b []byte, at int64) (int, error) {
	if at < o.to && at+int64(len(b)) > o.from && len(b) < 1<<20 {
		return 0, o.err
	}
	return o.Reader.ReadAt(b, at)
}

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
