package pcr_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"lethe/image/pcr"
	"lethe/image/pe"
)

// section is a part of a made-up unified kernel image.
type section struct {
	name string
	data []byte
}

// image returns a PE32+ image with these sections, padded as assemblers pad.
func image(sections ...section) []byte {
	const headers, align = 0x600, 0x200
	b := make([]byte, headers)
	le := binary.LittleEndian
	copy(b, "MZ")
	le.PutUint32(b[0x3c:], 64)
	copy(b[64:], "PE\x00\x00\x64\x86")
	le.PutUint16(b[64+6:], uint16(len(sections)))
	le.PutUint16(b[64+20:], 240)
	le.PutUint16(b[88:], 0x20b)
	le.PutUint32(b[88+60:], headers)
	le.PutUint32(b[88+108:], 16)
	for n, s := range sections {
		h := b[88+240+40*n:]
		copy(h[:8], s.name)
		padded := append(bytes.Clone(s.data), make([]byte, -len(s.data)&(align-1))...)
		le.PutUint32(h[8:], uint32(len(s.data)))
		le.PutUint32(h[16:], uint32(len(padded)))
		le.PutUint32(h[20:], uint32(len(b)))
		b = append(b, padded...)
	}
	return b
}

// parts are given in another order than the stub measures them.
func parts() []section {
	return []section{
		{".sbat", []byte("sbat,1,SBAT Version,sbat,1\n")}, {".osrel", []byte("ID=lethe\n")}, {".cmdline", []byte("quiet root=x")},
		{".pcrsig", []byte("{}")}, {".uname", []byte("7.3.4")}, {".initrd", bytes.Repeat([]byte("initrd"), 1000)}, {".linux", image(section{".text", []byte("kernel")})},
		{".splash", nil},
	}
}

const measure = "/usr/lib/systemd/systemd-measure"

// TestUnified compares with systemd's own calculation.
func TestUnified(t *testing.T) {
	dir := t.TempDir()
	args := []string{"calculate", "--bank=sha256", "--json=short"}
	// Debian 12's systemd-measure knows fewer sections than Debian 13's.
	help, err := exec.Command(measure, "--help").Output()
	if err != nil {
		t.Fatal(err)
	}
	var known []section
	for _, s := range parts() {
		if !strings.Contains(string(help), "--"+s.name[1:]+"=") || len(s.data) == 0 {
			continue
		}
		known = append(known, s)
		path := filepath.Join(dir, s.name[1:])
		if err := os.WriteFile(path, s.data, 0o600); err != nil {
			t.Fatal(err)
		}
		args = append(args, "--"+s.name[1:]+"="+path)
	}
	if len(known) < 4 {
		t.Fatalf("systemd-measure knows %d of our sections", len(known))
	}
	for _, phases := range [][]string{nil, {"sysinit"}, pcr.Phases} {
		got, err := pcr.Unified(image(known...), phases...)
		if err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command(measure, append(args, "--phase="+strings.Join(phases, ":"))...).CombinedOutput()
		if err != nil {
			t.Fatalf("systemd-measure: %v\n%s", err, out)
		}
		if !strings.Contains(string(out), hex.EncodeToString(got[:])) {
			t.Errorf("phases %q: got %x, systemd says %s", phases, got, out)
		}
	}
	before, _ := pcr.Unified(image(parts()...))
	for n, s := range parts() {
		changed := parts()
		changed[n].data = append(bytes.Clone(s.data), 'x')
		if s.name == ".linux" {
			changed[n].data = image(section{".text", []byte("another")})
		}
		after, err := pcr.Unified(image(changed...))
		if err != nil || (after == before) != (s.name == ".pcrsig") {
			t.Errorf("%s changed: %v, %v", s.name, after == before, err)
		}
	}
}

func TestRefusals(t *testing.T) {
	twice := append(parts(), parts()[1])
	if _, err := pcr.Unified(image(twice...)); err == nil {
		t.Error("a section twice")
	}
	for name, b := range map[string][]byte{"no kernel": image(parts()[:5]...), "not an image": nil} {
		if _, err := pcr.Unified(b); err == nil {
			t.Errorf("%s: PCR 11", name)
		}
	}
	if _, err := pcr.BootImages([]byte("no image")); err == nil {
		t.Error("PCR 4 of what is no image")
	}
}

// TestBoot replays the events that the TCG's profile prescribes, written out. Package
// image/vm compares with what firmware measures.
func TestBoot(t *testing.T) {
	unified := image(parts()...)
	images, err := pcr.BootImages(unified)
	if err != nil {
		t.Fatal(err)
	}
	own, _ := pe.Parse(unified)
	var want [32]byte
	action, zeros := sha256.Sum256([]byte("Calling EFI Application from Boot Option")), sha256.Sum256([]byte{0, 0, 0, 0})
	for _, digest := range [][32]byte{action, zeros, own.Digest()} {
		want = sha256.Sum256(append(want[:], digest[:]...))
	}
	if got := pcr.Boot(images...); got != want {
		t.Errorf("got %x, want %x", got, want)
	}
	reserved, err := pe.Reserve(unified, 4096)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := pcr.BootImages(reserved); err != nil || pcr.Boot(again...) != want {
		t.Errorf("space for signatures changes PCR 4: %v", err)
	}
}

// TestKnownDigests holds digests that are the same on every machine with Secure Boot,
// as event logs of real ones show them.
func TestKnownDigests(t *testing.T) {
	for name, c := range map[string]struct {
		data []byte
		want string
	}{
		// EV_EFI_VARIABLE_DRIVER_CONFIG, SecureBoot = 1.
		"SecureBoot": {pcr.Variable(pcr.Global, "SecureBoot", []byte{1}), "ccfc4bb32888a345bc8aeadaba552b627d99348c767681ab3141f5b01e40a40e"},
		// EV_SEPARATOR.
		"separator": {[]byte{0, 0, 0, 0}, "df3f619804a92fdb4057192dc43dd748ea778adc52bc498ce80524c014b81119"},
		// EV_EFI_ACTION.
		"action": {[]byte("Calling EFI Application from Boot Option"), "3d6772b4f84ed47595d72a2c4c5ffd15f5bb72c7507fe26f2aaee2c69d5633ba"},
	} {
		if got := sha256.Sum256(c.data); hex.EncodeToString(got[:]) != c.want {
			t.Errorf("%s: %x, want %s", name, got, c.want)
		}
	}
}

// TestKeys: every variable matters, and so does their order.
func TestKeys(t *testing.T) {
	v := pcr.Variables{PK: []byte("pk"), KEK: []byte("kek"), DB: []byte("db"), DBX: nil}
	seen := map[pcr.Value]string{pcr.Keys(v, []byte("a")): "itself"}
	for name, c := range map[string]struct {
		v         pcr.Variables
		authority string
	}{
		"PK":        {pcr.Variables{PK: []byte("x"), KEK: v.KEK, DB: v.DB}, "a"},
		"KEK":       {pcr.Variables{PK: v.PK, KEK: []byte("x"), DB: v.DB}, "a"},
		"db":        {pcr.Variables{PK: v.PK, KEK: v.KEK, DB: []byte("x")}, "a"},
		"dbx":       {pcr.Variables{PK: v.PK, KEK: v.KEK, DB: v.DB, DBX: []byte("x")}, "a"},
		"exchanged": {pcr.Variables{PK: v.KEK, KEK: v.PK, DB: v.DB}, "a"},
		"authority": {v, "b"},
	} {
		got := pcr.Keys(c.v, []byte(c.authority))
		if other, ok := seen[got]; ok {
			t.Errorf("%s gives the same as %s", name, other)
		}
		seen[got] = name
	}
}

func FuzzUnified(f *testing.F) {
	f.Add(image(parts()...))
	f.Fuzz(func(t *testing.T, b []byte) {
		before := bytes.Clone(b)
		_, _ = pcr.Unified(b)
		_, _ = pcr.BootImages(b)
		if !bytes.Equal(b, before) {
			t.Error("the image was changed")
		}
	})
}
