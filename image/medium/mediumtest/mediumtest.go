// Package mediumtest makes small images for tests, with the tools that make real ones: sqfstar,
// mkfs.vfat, mtools and xorriso. They have the right layers and start nothing.
package mediumtest

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"lethe/image/gpt"
	"lethe/image/layout"
	"lethe/image/medium"
	"lethe/image/tree"
)

// At is the time of everything in an image, unless a Spec says otherwise.
var At = time.Unix(1_700_000_000, 0).UTC()

// Section is a section of a boot image.
type Section struct {
	Name string
	Data []byte
}

// Spec says what is in an image. The zero Spec is a small image.
type Spec struct {
	Root      *tree.Tree
	Initramfs *tree.Tree // without the root's digest, which is added
	Sections  []Section  // beside the initramfs; nil: those that every image has
	Files     map[string][]byte
	System    map[string][]byte // more files of the EFI system partition
	SystemKiB int               // size of the EFI system partition; 0: the smallest
	At        time.Time
	Serial    string // of the FAT; eight hexadecimal digits
}

// Sections are those that every image has.
func Sections() []Section {
	return []Section{{medium.OSRelease, []byte("ID=lethe\nVERSION_ID=7\nVARIANT_ID=vm\n")}, {medium.Cmdline, []byte("quiet lockdown=confidentiality")},
		{medium.Uname, []byte("7.3.4-test")}, {medium.Kernel, bytes.Repeat([]byte("kernel "), 700)}}
}

// Root is a root with a few files.
func Root(t testing.TB) *tree.Tree {
	t.Helper()
	x := &tree.Tree{}
	err := errors.Join(x.Dir(".", 0o755, 0, 0, ""), x.File("etc/hostname", 0o644, "ours", []byte("lethe\n")), x.File("etc/machine-id", 0o444, "ours", nil),
		x.File("etc/passwd", 0o644, "ours", []byte("root:*:0:0::/:/usr/sbin/nologin\nlethe-openvpn:*:64100:64100::/:/usr/sbin/nologin\n")),
		x.Symlink("lib", "usr/lib", "ours"), x.File("usr/share/text", 0o644, "texts", bytes.Repeat([]byte("one line and another\n"), 400)),
		x.Dir("tmp", 0o777|fs.ModeSticky, 0, 0, "ours"))
	if err != nil {
		t.Fatal(err)
	}
	return x
}

// Initramfs is an initramfs with two files.
func Initramfs(t testing.TB) *tree.Tree {
	t.Helper()
	x := &tree.Tree{}
	if err := errors.Join(x.File("init", 0o755, "lethe-init", []byte("the first process\n")), x.File("lethe/modules/sr_mod.ko", 0o644, "linux", []byte("a module\n"))); err != nil {
		t.Fatal(err)
	}
	return x
}

func run(t testing.TB, in []byte, at time.Time, name string, args ...string) {
	t.Helper()
	c := exec.Command(name, args...)
	c.Stdin = bytes.NewReader(in)
	c.Env = append(os.Environ(), "SOURCE_DATE_EPOCH="+strconv.FormatInt(at.Unix(), 10), "MTOOLS_SKIP_CHECK=1", "TZ=UTC", "LC_ALL=C.UTF-8")
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", name, err, out)
	}
}

// Make makes an image.
func Make(t testing.TB, s Spec) []byte {
	t.Helper()
	if s.Root == nil {
		s.Root = Root(t)
	}
	if s.Initramfs == nil {
		s.Initramfs = Initramfs(t)
	}
	if s.Sections == nil {
		s.Sections = Sections()
	}
	if s.At.IsZero() {
		s.At = At
	}
	if s.SystemKiB == 0 {
		s.SystemKiB = 2400
	}
	if s.Serial == "" {
		s.Serial = "4c455448"
	}
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	var archive bytes.Buffer
	if err := s.Root.WriteTar(&archive, s.At); err != nil {
		t.Fatal(err)
	}
	run(t, archive.Bytes(), s.At, "sqfstar", "-quiet", "-no-progress", "-comp", "zstd", "-root-mode", "0755", path("root"))
	root := read(t, path("root"))
	root = append(root, make([]byte, -len(root)&4095)...)
	digest := layout.RootDigest{SHA256: sha256.Sum256(root), Size: int64(len(root))}
	if err := s.Initramfs.File(layout.Root, 0o444, "build", []byte(digest.String())); err != nil {
		t.Fatal(err)
	}
	var initramfs bytes.Buffer
	initramfs.Write(front(t, layout.MediumDigest{}, s.At))
	packer, err := zstd.NewWriter(&initramfs)
	if err == nil {
		err = errors.Join(s.Initramfs.WriteCPIO(packer, s.At), packer.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	write(t, path("root"), root, s.At)
	uki := PE(append(s.Sections, Section{medium.Initrd, initramfs.Bytes()}))
	write(t, path("uki"), uki, s.At)
	run(t, nil, s.At, "mkfs.vfat", "--invariant", "-C", "-F", "12", "-s", "8", "-n", "LETHE", "-i", s.Serial, path("esp"), strconv.Itoa(s.SystemKiB))
	run(t, nil, s.At, "mmd", "-i", path("esp"), "::EFI", "::EFI/BOOT")
	run(t, nil, s.At, "mcopy", "-m", "-i", path("esp"), path("uki"), "::"+layout.BootImage)
	for name, b := range s.System {
		write(t, path("more"), b, s.At)
		run(t, nil, s.At, "mcopy", "-m", "-i", path("esp"), path("more"), "::"+name)
	}
	if err := os.Mkdir(path("volume"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, b := range s.Files {
		write(t, filepath.Join(path("volume"), name), b, s.At)
	}
	if err := os.Chtimes(path("volume"), s.At, s.At); err != nil {
		t.Fatal(err)
	}
	run(t, nil, s.At, "xorriso", "-report_about", "SORRY", "-as", "mkisofs", "-quiet", "-o", path("iso"), "-V", "LETHE", "-r", "-no-pad",
		"-append_partition", "2", gpt.System.String(), path("esp"), "-append_partition", "3", layout.RootTypeName, path("root"), "-appended_part_as_gpt",
		"-e", "--interval:appended_partition_2:all::", "-no-emul-boot", path("volume"))
	iso := read(t, path("iso"))
	at := bytes.Index(iso, uki)
	if at < 0 {
		t.Fatal("the boot image does not lie in one piece")
	}
	rest := append(bytes.Clone(iso[:at]), iso[at+len(uki):]...)
	fixed := layout.MediumDigest{SHA256: sha256.Sum256(rest), Size: int64(len(iso)), BootOffset: int64(at), BootLength: int64(len(uki))}
	copy(iso[bytes.Index(iso, initramfs.Bytes()):], front(t, fixed, s.At))
	return iso
}

// front is the first archive of an initramfs.
func front(t testing.TB, d layout.MediumDigest, at time.Time) []byte {
	t.Helper()
	var x tree.Tree
	var b bytes.Buffer
	if err := errors.Join(x.File(layout.Medium, 0o444, "build", []byte(d.String())), x.WriteCPIO(&b, at)); err != nil {
		t.Fatal(err)
	}
	return append(b.Bytes(), make([]byte, layout.FrontArchive-b.Len())...)
}

// Open opens an image.
func Open(t testing.TB, iso []byte) *medium.Medium {
	t.Helper()
	m, err := medium.Open(bytes.NewReader(iso), int64(len(iso)))
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// PE returns a PE32+ file of sections.
func PE(sections []Section) []byte {
	const (
		start, optional, align = 64, 64 + 24, 512
		optionalSize           = 240
		headers                = 1024
	)
	le := binary.LittleEndian
	b := make([]byte, headers)
	copy(b, "MZ")
	le.PutUint32(b[0x3c:], start)
	copy(b[start:], "PE\x00\x00")
	le.PutUint16(b[start+4:], 0x8664)
	le.PutUint16(b[start+6:], uint16(len(sections)))
	le.PutUint16(b[start+20:], optionalSize)
	le.PutUint16(b[optional:], 0x20b)
	le.PutUint32(b[optional+60:], headers)
	le.PutUint32(b[optional+108:], 16)
	at := uint32(0x1000)
	for i, s := range sections {
		h := b[optional+optionalSize+40*i:]
		size := (len(s.Data) + align - 1) &^ (align - 1)
		copy(h[:8], s.Name)
		le.PutUint32(h[8:], uint32(len(s.Data)))
		le.PutUint32(h[12:], at)
		le.PutUint32(h[16:], uint32(size))
		le.PutUint32(h[20:], uint32(len(b)))
		at += uint32(size+0xfff) &^ 0xfff
		b = append(append(b, s.Data...), make([]byte, size-len(s.Data))...)
	}
	return b
}

func read(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func write(t testing.TB, path string, b []byte, at time.Time) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, b, 0o644), os.Chtimes(path, at, at)); err != nil {
		t.Fatal(err)
	}
}
