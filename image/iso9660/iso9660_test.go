package iso9660_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"lethe/image/iso9660"
)

func files() map[string][]byte {
	m := map[string][]byte{"efi.img": bytes.Repeat([]byte("boot"), 2048), "README.TXT": []byte("read me"), "a long name with Ümlaut.text": []byte("long"),
		"EMPTY": nil, "D/E/F": bytes.Repeat([]byte{1}, 5000)}
	for i := range 120 { // more than one sector of records
		m[fmt.Sprintf("many/number %d", i)] = fmt.Append(nil, i)
	}
	return m
}

// volume makes a volume with xorriso(1).
func volume(t testing.TB, args ...string) []byte {
	t.Helper()
	dir := t.TempDir()
	src, out := filepath.Join(dir, "src"), filepath.Join(dir, "out")
	for name, b := range files() {
		p := filepath.Join(src, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, b, 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	args = append(append([]string{"-as", "mkisofs", "-quiet", "-o", out, "-V", "LETHE", "-e", "efi.img", "-no-emul-boot"}, args...), src)
	c := exec.Command("xorriso", args...)
	c.Env = append(os.Environ(), "SOURCE_DATE_EPOCH=1700000000", "LC_ALL=C.UTF-8")
	if text, err := c.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	b, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestRead(t *testing.T) {
	b := volume(t, "-R", "-J")
	v, err := iso9660.Read(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	want := files()
	for e := range v.Tree.All() {
		if !e.Mode.IsRegular() {
			continue
		}
		got, err := e.Read()
		if w, ok := want[e.Path]; err == nil && ok && !bytes.Equal(got, w) && e.Path != "efi.img" {
			t.Errorf("%s: %q", e.Path, got)
		}
		if e.Path == "boot.catalog" { // xorriso adds it
			continue
		}
		if _, ok := want[e.Path]; !ok || err != nil {
			t.Errorf("%s: %v", e.Path, err)
		}
		delete(want, e.Path)
	}
	if len(want) != 0 {
		t.Errorf("not found: %v", want)
	}
	value := map[string]string{}
	for _, f := range v.Fields {
		value[f.Name] = f.Value
		if len(f.Value) > 0 && !strings.HasPrefix(string(b[f.Offset:]), f.Value[:1]) {
			t.Errorf("%s is not at %d", f.Name, f.Offset)
		}
	}
	if value["volume identifier"] != "LETHE" || !strings.HasPrefix(value["creation time"], "20231114221320") {
		t.Errorf("fields %q", value)
	}
	if len(v.Boot) != 1 || v.Boot[0].Platform != 0xef && v.Boot[0].Platform != 0 || !bytes.HasPrefix(b[v.Boot[0].Offset:], []byte("bootboot")) {
		t.Errorf("boot %+v", v.Boot)
	}
}

// TestPlain: without Rock Ridge the names are short, in capitals, with a version that does not count.
func TestPlain(t *testing.T) {
	b := volume(t, "--norock", "-c", "BOOT.CAT")
	v, err := iso9660.Read(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"README.TXT", "EMPTY", "D/E/F", "MANY"} {
		if v.Tree.Get(name) == nil {
			t.Errorf("%s is missing", name)
		}
	}
}

// TestBIOS: two things to start, for two kinds of firmware.
func TestBIOS(t *testing.T) {
	b := volume(t, "-R", "-eltorito-alt-boot", "-b", "README.TXT", "-no-emul-boot")
	v, err := iso9660.Read(bytes.NewReader(b), int64(len(b)))
	if err != nil || len(v.Boot) != 2 || v.Boot[0].Platform == v.Boot[1].Platform {
		t.Errorf("%+v, %v", v.Boot, err)
	}
}

func read(b []byte) error {
	v, err := iso9660.Read(bytes.NewReader(b), int64(len(b)))
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
	good := volume(t, "-R")
	const pvd = 16 * 2048
	root := int(le.Uint32(good[pvd+156+2:])) * 2048
	boot := pvd + 2048
	record := func(name string) int { // of the file with that Rock Ridge name
		i := root + bytes.Index(good[root:], []byte("NM"+string(rune(5+len(name)))+"\x01\x00"+name))
		for n := root; ; n += int(good[n]) {
			if n+int(good[n]) > i {
				return n
			}
		}
	}
	for name, change := range map[string]func(b []byte) []byte{
		"short":             func(b []byte) []byte { return b[:pvd+100] },
		"no identifier":     func(b []byte) []byte { b[pvd+1] = 'X'; return b },
		"no primary":        func(b []byte) []byte { b[pvd] = 2; return b },
		"no end":            func(b []byte) []byte { copy(b[pvd+2*2048:], bytes.Repeat(b[pvd:pvd+2048], 40)); return b },
		"block size":        func(b []byte) []byte { b[pvd+128] = 1; return b },
		"root outside":      func(b []byte) []byte { le.PutUint32(b[pvd+156+2:], 1<<31); return b },
		"root too large":    func(b []byte) []byte { le.PutUint32(b[pvd+156+10:], 1<<30); return b },
		"catalogue outside": func(b []byte) []byte { le.PutUint32(b[boot+71:], 1<<31); return b },
		"no catalogue":      func(b []byte) []byte { le.PutUint32(b[boot+71:], 0); return b },
		"record":            func(b []byte) []byte { b[root] = 20; return b },
		"file outside":      func(b []byte) []byte { le.PutUint32(b[record("EMPTY")+2:], 1<<31); return b },
		"file too large":    func(b []byte) []byte { le.PutUint32(b[record("EMPTY")+10:], 1<<31); return b },
		"several pieces":    func(b []byte) []byte { b[record("EMPTY")+25] |= 0x80; return b },
		"slash":             func(b []byte) []byte { b[bytes.Index(b, []byte("\x00EMPTY"))+2] = '/'; return b },
		"newline":           func(b []byte) []byte { b[bytes.Index(b, []byte("\x00EMPTY"))+2] = '\n'; return b },
		"newline, directory": func(b []byte) []byte {
			copy(b[bytes.Index(b, []byte("\x00many"))+1:], "ma\ny")
			return b
		},
		"twice": func(b []byte) []byte {
			copy(b[bytes.Index(b, []byte("\x00EMPTY"))+1:], "D\x00\x00\x00\x00")
			b[record("D")+25] = 0
			return b
		},
		"circle": func(b []byte) []byte {
			le.PutUint32(b[record("D")+2:], uint32(root/2048))
			le.PutUint32(b[record("D")+10:], 2048*6)
			return b
		},
	} {
		if err := read(change(bytes.Clone(good))); !errors.Is(err, iso9660.ErrFormat) {
			t.Errorf("%s: %v", name, err)
		}
	}
	broken := errors.New("broken medium")
	if _, err := iso9660.Read(failing{broken}, 1<<20); !errors.Is(err, broken) || errors.Is(err, iso9660.ErrFormat) {
		t.Errorf("a medium that cannot be read: %v", err)
	}
	if _, err := iso9660.Read(bytes.NewReader(good[:pvd+2048]), int64(len(good))); !errors.Is(err, iso9660.ErrFormat) {
		t.Errorf("a medium that is shorter than it says: %v", err)
	}
}

type failing struct{ err error }

func (f failing) ReadAt([]byte, int64) (int, error) { return 0, f.err }

// TestFlips: whatever byte is another one, reading comes to an end.
func TestFlips(t *testing.T) {
	good := volume(t, "-R")
	r := rand.New(rand.NewPCG(5, 6))
	refused := 0
	for range 1000 {
		b := bytes.Clone(good)
		b[16*2048+r.IntN(40*2048)] ^= byte(1 + r.IntN(255))
		if read(b) != nil {
			refused++
		}
	}
	if refused < 10 {
		t.Errorf("%d refused", refused)
	}
}

func FuzzRead(f *testing.F) {
	b := volume(f, "-R")
	f.Add(b[16*2048:])
	f.Fuzz(func(_ *testing.T, b []byte) {
		_ = read(append(make([]byte, 16*2048), b...)) // no panic, and an end
	})
}
