package fat_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"lethe/image/fat"
)

func run(t testing.TB, name string, args ...string) {
	t.Helper()
	c := exec.Command(name, args...)
	c.Env = append(os.Environ(), "MTOOLS_SKIP_CHECK=1", "LC_ALL=C.UTF-8")
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
}

var content = map[string][]byte{
	"EFI/BOOT/BOOTX64.EFI": bytes.Repeat([]byte("unified kernel image "), 5000), "empty": nil, "one": []byte("1"),
	"A long name, with Grüße.text": []byte("long"), "lower.txt": []byte("lower"), "d/e/f/g": bytes.Repeat([]byte{7}, 4096),
}

// volume makes a volume with mkfs.fat(8) and mtools(1).
func volume(t testing.TB, bits int, kib int64) []byte {
	t.Helper()
	dir := t.TempDir()
	image := filepath.Join(dir, "image")
	f, err := os.Create(image)
	if err == nil {
		err = errors.Join(f.Truncate(kib<<10), f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	run(t, "mkfs.fat", "-F", fmt.Sprint(bits), "-i", "1e7e0001", "-n", "LETHE", image)
	src := filepath.Join(dir, "src")
	for name, b := range content {
		p := filepath.Join(src, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, b, 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 100 { // more than one cluster of names
		p := filepath.Join(src, "many", fmt.Sprintf("a file of number %d", i))
		if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, fmt.Append(nil, i), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	entries, _ := filepath.Glob(src + "/*")
	run(t, "mcopy", append(append([]string{"-i", image, "-s"}, entries...), "::")...)
	// A file that was removed leaves an entry, and a hole that the next one fills in two pieces.
	run(t, "mdel", "-i", image, "::lower.txt")
	run(t, "mcopy", "-i", image, filepath.Join(src, "EFI/BOOT/BOOTX64.EFI"), "::again")
	run(t, "mcopy", "-i", image, filepath.Join(src, "lower.txt"), "::lower.txt")
	b, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestRead(t *testing.T) {
	for bits, kib := range map[int]int64{12: 2048, 16: 16 << 10, 32: 64 << 10} {
		t.Run(fmt.Sprint(bits), func(t *testing.T) {
			b := volume(t, bits, kib)
			v, err := fat.Read(bytes.NewReader(b), int64(len(b)))
			if err != nil {
				t.Fatal(err)
			}
			if v.Bits != bits || v.Serial != 0x1e7e0001 || v.Label != "LETHE" || v.Cluster < 512 {
				t.Errorf("%d bits, serial %#x, label %q, clusters of %d", v.Bits, v.Serial, v.Label, v.Cluster)
			}
			want := map[string][]byte{"again": content["EFI/BOOT/BOOTX64.EFI"]}
			for name, b := range content {
				want[name] = b
			}
			for i := range 100 {
				want[fmt.Sprintf("many/a file of number %d", i)] = fmt.Append(nil, i)
			}
			files := 0
			for e := range v.Tree.All() {
				if !e.Mode.IsRegular() {
					continue
				}
				files++
				got, err := e.Read()
				if w, ok := want[e.Path]; err != nil || !ok || !bytes.Equal(got, w) {
					t.Errorf("%s: %d bytes, want %d, %v", e.Path, len(got), len(w), err)
				}
			}
			// What nothing uses, and files and directories, are all there is.
			unused := int64(0)
			v.Unused(func(from, to int64) {
				unused += to - from
				clear(b[from:to])
			})
			if unused < kib<<9 || unused > kib<<10 {
				t.Errorf("%d bytes are not used of %d", unused, kib<<10)
			}
			if err := all(b); err != nil {
				t.Errorf("without what is not used: %v", err)
			}
			for path, w := range want {
				if got, err := v.Tree.Get(path).Read(); err != nil || !bytes.Equal(got, w) {
					t.Errorf("%s without what is not used: %v", path, err)
				}
			}
			if files != len(want) {
				t.Errorf("%d files, want %d", files, len(want))
			}
		})
	}
}

// all reads a volume and everything in it.
func all(b []byte) error {
	v, err := fat.Read(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		return err
	}
	for e := range v.Tree.All() {
		if e.Mode.IsRegular() {
			if _, err := e.Read(); err != nil {
				return err
			}
		}
	}
	return nil
}

func TestRefused(t *testing.T) {
	le := binary.LittleEndian
	good := volume(t, 16, 16<<10)
	table := int(le.Uint16(good[14:])) * 512
	root := table + 2*int(le.Uint16(good[22:]))*512
	entry := func(name string) int { return root + bytes.Index(good[root:], []byte(name)) }
	for name, change := range map[string]func(b []byte) []byte{
		"short":         func(b []byte) []byte { return b[:500] },
		"no mark":       func(b []byte) []byte { b[510] = 0; return b },
		"sectors":       func(b []byte) []byte { le.PutUint16(b[11:], 300); return b },
		"cluster":       func(b []byte) []byte { b[13] = 3; return b },
		"too large":     func(b []byte) []byte { le.PutUint16(b[19:], 0); le.PutUint32(b[32:], 1<<30); return b },
		"no table":      func(b []byte) []byte { b[16] = 0; return b },
		"small table":   func(b []byte) []byte { le.PutUint16(b[22:], 1); return b },
		"no data":       func(b []byte) []byte { le.PutUint16(b[14:], 65535); return b },
		"no clusters":   func(b []byte) []byte { le.PutUint16(b[19:], uint16(root/512)); return b },
		"wide":          func(b []byte) []byte { le.PutUint16(b[22:], 0); le.PutUint32(b[36:], 32); return b },
		"table cut off": func(b []byte) []byte { return b[:table+10] },
		"first cluster": func(b []byte) []byte { le.PutUint16(b[entry("AGAIN")+26:], 65000); return b },
		"shorter chain": func(b []byte) []byte { le.PutUint32(b[entry("AGAIN")+28:], 1<<20); return b },
		"longer chain":  func(b []byte) []byte { le.PutUint32(b[entry("AGAIN")+28:], 5); return b },
		"own directory": func(b []byte) []byte { le.PutUint16(b[entry("ONE     ")+26:], 0); return b },
		"circle": func(b []byte) []byte {
			c := le.Uint16(b[entry("AGAIN")+26:])
			le.PutUint16(b[table+int(c)*2:], c)
			return b
		},
		"slash": func(b []byte) []byte { b[entry("ONE     ")+1] = '/'; return b },
		"twice": func(b []byte) []byte { copy(b[entry("ONE     "):], "EMPTY   "); return b },
		"twice, a directory": func(b []byte) []byte {
			copy(b[entry("D          "):], "EFI        \x10\x00")
			return b
		},
		"directory's cluster": func(b []byte) []byte { le.PutUint16(b[entry("EFI        ")+26:], 1); return b },
	} {
		if _, err := fat.Read(bytes.NewReader(change(bytes.Clone(good))), 16<<20); !errors.Is(err, fat.ErrFormat) {
			t.Errorf("%s: %v", name, err)
		}
	}
	broken := errors.New("broken medium")
	for _, from := range []int64{0, int64(table), int64(root), int64(root) + 20000} {
		_, err := fat.Read(failing{bytes.NewReader(good), from, broken}, int64(len(good)))
		if !errors.Is(err, broken) || errors.Is(err, fat.ErrFormat) {
			t.Errorf("a medium that cannot be read from %d on: %v", from, err)
		}
	}
	v, err := fat.Read(bytes.NewReader(good), int64(len(good)))
	if err != nil {
		t.Fatal(err)
	}
	clear(good[root:]) // the tree knows where files are; the volume is not read again
	if b, err := v.Tree.Get("one").Read(); err != nil || string(b) != "\x00" {
		t.Errorf("%q, %v", b, err)
	}
}

type failing struct {
	*bytes.Reader
	from int64
	err  error
}

func (f failing) ReadAt(b []byte, at int64) (int, error) {
	if at+int64(len(b)) > f.from {
		return 0, f.err
	}
	return f.Reader.ReadAt(b, at)
}

var _ io.ReaderAt = failing{}

// TestFlips: whatever byte is another one, reading comes to an end.
func TestFlips(t *testing.T) {
	good := volume(t, 12, 512)
	r := rand.New(rand.NewPCG(3, 4))
	refused := 0
	for range 1000 {
		b := bytes.Clone(good)
		at := r.IntN(4 << 10)
		if r.IntN(3) == 0 {
			at = r.IntN(len(b))
		}
		b[at] ^= byte(1 + r.IntN(255))
		if all(b) != nil {
			refused++
		}
	}
	if refused < 20 {
		t.Errorf("%d refused", refused)
	}
}

func FuzzRead(f *testing.F) {
	for bits, kib := range map[int]int64{12: 512, 16: 9000} {
		b := volume(f, bits, kib)
		end := len(b)
		for end > 0 && b[end-1] == 0 {
			end--
		}
		f.Add(b[:end])
	}
	f.Fuzz(func(_ *testing.T, b []byte) {
		if v, err := fat.Read(bytes.NewReader(b), 16<<20); err == nil {
			for e := range v.Tree.All() {
				if e.Mode.IsRegular() && e.Size < 1<<20 {
					_, _ = e.Read()
				}
			}
		}
	})
}
