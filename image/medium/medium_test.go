package medium_test

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"

	"lethe/image/layout"
	"lethe/image/medium"
	"lethe/image/medium/mediumtest"
	"lethe/image/tree"
)

func TestOpen(t *testing.T) {
	b := mediumtest.Make(t, mediumtest.Spec{Files: map[string][]byte{"README": []byte("read me")}})
	m := mediumtest.Open(t, b)
	if string(m.Section(medium.Cmdline)) != "quiet lockdown=confidentiality" || m.Section(".none") != nil {
		t.Errorf("command line %q", m.Section(medium.Cmdline))
	}
	for name, x := range map[string]*tree.Tree{"etc/hostname": m.Files, "init": m.Initramfs, "README": m.Volume.Tree, layout.BootImage: m.ESP.Tree} {
		e := x.Get(name)
		if e == nil {
			t.Errorf("%s is missing", name)
			continue
		}
		if content, err := e.Read(); err != nil || len(content) == 0 {
			t.Errorf("%s: %v", name, err)
		}
	}
	sum, err := m.RootSum()
	if err != nil || sum != m.Digest.SHA256 {
		t.Errorf("root %x, want %x, %v", sum, m.Digest.SHA256, err)
	}
	spans, err := m.Unused()
	if err != nil || len(spans) < 2 {
		t.Errorf("unused %v, %v", spans, err)
	}
	for _, s := range spans {
		if len(bytes.Trim(b[s.From:s.To], "\x00")) != 0 {
			t.Errorf("%s, %d to %d, is not empty", s.What, s.From, s.To)
		}
		for i := range b[s.From:s.To] { // nothing that is used is among it
			b[s.From+int64(i)] = 0xaa
		}
	}
	mediumtest.Open(t, b)
}

// TestDamaged: every layer that is damaged is named, and what is before it is there.
func TestDamaged(t *testing.T) {
	good := mediumtest.Make(t, mediumtest.Spec{})
	m := mediumtest.Open(t, good)
	find := func(what string) int { return bytes.Index(good, []byte(what)) }
	for name, c := range map[string]struct {
		change func(b []byte)
		text   string
	}{
		"table":      {func(b []byte) { b[512] = 0 }, "partition table: "},
		"no system":  {func(b []byte) { reseal(b, m.Table.Entries, "\x28\x73\x2a\xc1") }, "partition table: "},
		"no root":    {func(b []byte) { reseal(b, m.Table.Entries, "\x1d\x6c\x8e\x5f") }, "partition table: "},
		"volume":     {func(b []byte) { b[32768+129] = 0 }, "ISO 9660 volume: "},
		"system":     {func(b []byte) { b[m.System.Offset+510] = 0 }, "EFI system partition: "},
		"no image":   {func(b []byte) { b[find("BOOTX64 EFI")] = 'X' }, "boot image: there is no"},
		"boot image": {func(b []byte) { b[find("MZ\x00\x00\x00")] = 0 }, "boot image: pe"},
		"initramfs":  {func(b []byte) { b[bytes.Index(b, m.Section(medium.Initrd))+12] ^= 0xff }, "initramfs: "},
		"root":       {func(b []byte) { b[m.Root.Offset] = 0 }, "root: "},
	} {
		b := bytes.Clone(good)
		c.change(b)
		got, err := medium.Open(bytes.NewReader(b), int64(len(b)))
		if err == nil || !strings.HasPrefix(err.Error(), c.text) || got == nil || got.Files != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	cpio := func(name, text string) []byte {
		x := &tree.Tree{}
		var b bytes.Buffer
		if err := errors.Join(x.File(name, 0o444, "", []byte(text)), x.WriteCPIO(&b, mediumtest.At)); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	small, large, whole := layout.RootDigest{Size: 4096}, layout.RootDigest{Size: 256 << 20}, layout.MediumDigest{Size: 4096}
	for name, c := range map[string]struct {
		initramfs []byte
		text      string
	}{
		"no archive": {[]byte("x"), "initramfs: "}, "no digest": {cpio("init", ""), "initramfs: there is no"}, "another digest": {cpio(layout.Root, "x"), "initramfs: root digest"},
		"no other digest":      {cpio(layout.Root, small.String()), "initramfs: there is no"},
		"another other digest": {append(cpio(layout.Root, small.String()), cpio(layout.Medium, "x")...), "initramfs: medium digest"},
		"large root":           {append(cpio(layout.Root, large.String()), cpio(layout.Medium, whole.String())...), "root: it has"},
	} {
		b := mediumtest.Make(t, mediumtest.Spec{Sections: []mediumtest.Section{{Name: medium.Initrd, Data: append(make([]byte, layout.FrontArchive), c.initramfs...)}}})
		if _, err := medium.Open(bytes.NewReader(b), int64(len(b))); err == nil || !strings.HasPrefix(err.Error(), c.text) {
			t.Errorf("%s: %v", name, err)
		}
	}
	b := mediumtest.Make(t, mediumtest.Spec{Sections: []mediumtest.Section{{Name: medium.Initrd, Data: []byte("x")}}})
	if _, err := medium.Open(bytes.NewReader(b), int64(len(b))); err == nil || !strings.HasPrefix(err.Error(), "initramfs: tree: cpio") {
		t.Errorf("an initramfs without its first archive: %v", err)
	}
	short := good[:len(good)-512] // the second table is not looked at
	if m, err := medium.Open(bytes.NewReader(short), int64(len(good))); err != nil {
		t.Error(err)
	} else if _, err := m.Unused(); err == nil {
		t.Error("the end is missing, and nobody noticed")
	}
}

// TestRest: the initramfs says of every byte outside the boot image what it must be.
func TestRest(t *testing.T) {
	good := mediumtest.Make(t, mediumtest.Spec{})
	m := mediumtest.Open(t, good)
	if sum, err := m.RestSum(); err != nil || sum != m.Rest.SHA256 || m.Rest.Size != int64(len(good)) {
		t.Errorf("%x, %v, want %+v", sum, err, m.Rest)
	}
	for _, at := range []int64{0, 600, 40000, m.System.Offset + 3, m.Rest.BootOffset - 1, m.Rest.BootOffset + m.Rest.BootLength, m.Root.Offset + 5000, m.Size - 1} {
		good[at] ^= 1
		if sum, err := m.RestSum(); err != nil || sum == m.Rest.SHA256 {
			t.Errorf("a bit of byte %d is another one, and the sum is the same: %v", at, err)
		}
		good[at] ^= 1
	}
}

// reseal changes the type of a partition and mends the table's sums.
func reseal(b []byte, entries int64, kind string) {
	at := bytes.Index(b[entries:], []byte(kind))
	b[int(entries)+at] ^= 1
	le := binary.LittleEndian
	le.PutUint32(b[512+88:], crc32.ChecksumIEEE(b[entries:][:le.Uint32(b[512+80:])*128]))
	clear(b[512+16 : 512+20])
	le.PutUint32(b[512+16:], crc32.ChecksumIEEE(b[512:][:92]))
}

func TestUnpack(t *testing.T) {
	want := bytes.Repeat([]byte("packed "), 3000)
	var z, g, x bytes.Buffer
	zw, err := zstd.NewWriter(&z)
	if err != nil {
		t.Fatal(err)
	}
	gw := gzip.NewWriter(&g)
	xw, err := xz.NewWriter(&x)
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range []interface {
		Write([]byte) (int, error)
		Close() error
	}{zw, gw, xw} {
		_, err := w.Write(want)
		if err := errors.Join(err, w.Close()); err != nil {
			t.Fatal(err)
		}
	}
	for name, b := range map[string][]byte{"zstd": z.Bytes(), "gzip": g.Bytes(), "xz": x.Bytes()} {
		if got, err := medium.Unpack(b, int64(len(want))); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := medium.Unpack(b, int64(len(want))-1); !errors.Is(err, medium.ErrTooLarge) {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := medium.Unpack(b[:10], 1<<20); err == nil {
			t.Errorf("%s, cut off", name)
		}
	}
	if got, err := medium.Unpack(want, 1); err != nil || !bytes.Equal(got, want) {
		t.Errorf("not packed: %v", err)
	}
	if _, err := medium.Unpack([]byte("\xfd7zXZ\x00damaged"), 1<<20); err == nil {
		t.Error("damaged xz")
	}
}

// TestFlips: whatever byte is another one, opening comes to an end.
func TestFlips(t *testing.T) {
	good := mediumtest.Make(t, mediumtest.Spec{})
	m := mediumtest.Open(t, good)
	r := rand.New(rand.NewPCG(7, 8))
	for range 200 {
		b := bytes.Clone(good)
		at := r.IntN(len(b))
		if r.IntN(2) == 0 {
			at = int(m.Root.Offset) + r.IntN(int(m.Root.Size))
		}
		b[at] ^= byte(1 + r.IntN(255))
		if got, _ := medium.Open(bytes.NewReader(b), int64(len(b))); got == nil {
			t.Fatal("nothing")
		}
	}
}

// TestSums: what cannot be read has no digest.
func TestSums(t *testing.T) {
	iso := mediumtest.Make(t, mediumtest.Spec{})
	r := &failing{Reader: bytes.NewReader(iso)}
	m, err := medium.Open(r, int64(len(iso)))
	if err != nil {
		t.Fatal(err)
	}
	r.err = errors.New("broken medium")
	if _, err := m.RootSum(); !errors.Is(err, r.err) {
		t.Errorf("root: %v", err)
	}
	if _, err := m.RestSum(); !errors.Is(err, r.err) {
		t.Errorf("all but the boot image: %v", err)
	}
}

type failing struct {
	*bytes.Reader
	err error
}

func (f *failing) ReadAt(b []byte, at int64) (int, error) {
	if f.err != nil {
		return 0, f.err
	}
	return f.Reader.ReadAt(b, at)
}
