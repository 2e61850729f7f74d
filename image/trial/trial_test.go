package trial_test

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"lethe/internal/testkit"

	"lethe/fault"
	"lethe/image/pe"
	"lethe/image/release"
	"lethe/image/secureboot"
	"lethe/image/trial"
)

const (
	stub  = "/usr/lib/systemd/boot/efi/systemd-bootx64.efi"
	blank = "/usr/share/OVMF/OVMF_VARS_4M.fd"
)

// made writes an image around a boot image, with its manifest, and returns the ISO's path.
func made(t testing.TB) string {
	t.Helper()
	boot := testkit.Must[[]byte](t)(pe.Reserve(testkit.Must[[]byte](t)(os.ReadFile(stub)), 4096))
	table := testkit.Must[*pe.Image](t)(pe.Parse(boot)).Table()
	iso := append(bytes.Repeat([]byte{1}, 512), boot...)
	iso = append(iso, bytes.Repeat([]byte{2}, 512)...)
	i := release.Image{
		Flavour: "vm", Size: int64(len(iso)), BootOffset: 512, BootLength: int64(len(boot)),
		Regions: []release.Region{
			{Name: "head", Length: 512}, {Name: "boot", Offset: 512, Length: int64(table.Offset)},
			{Name: "signatures", Offset: 512 + int64(table.Offset), Length: int64(table.Length), Signature: true},
			{Name: "tail", Offset: int64(len(iso)) - 512, Length: 512},
		},
		PCRs: []release.PCR{{Index: 4, SHA256: release.Digest{4}}, {Index: 11, SHA256: release.Digest{11}}},
	}
	i, whole, err := release.Describe(i, bytes.NewReader(iso))
	if err != nil {
		t.Fatal(err)
	}
	text := testkit.Must[[]byte](t)(json.Marshal(map[string]any{"sha256": whole, "image": i, "name": "more that is not read"}))
	path := filepath.Join(t.TempDir(), "x.iso")
	for name, b := range map[string][]byte{path: iso, strings.TrimSuffix(path, ".iso") + ".manifest.json": text} {
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return path
}

func TestSign(t *testing.T) {
	path := made(t)
	i := testkit.Must[*trial.Image](t)(trial.Open(path))
	k := testkit.Must[*trial.Keys](t)(trial.NewKeys(testkit.Must[[]byte](t)(os.ReadFile(blank))))
	to := filepath.Join(t.TempDir(), "signed.iso")
	if err := k.Sign(i, to); err != nil {
		t.Fatal(err)
	}
	before, after := testkit.Must[[]byte](t)(os.ReadFile(path)), testkit.Must[[]byte](t)(os.ReadFile(to))
	boot := after[512 : len(after)-512]
	if got, err := pe.Verify(boot, []*x509.Certificate{k.DB.Certificate}); err != nil || !got.Equal(k.DB.Certificate) {
		t.Errorf("the copy is signed by %v, %v", got, err)
	}
	copy(boot, testkit.Must[[]byte](t)(pe.Strip(boot)))
	if !bytes.Equal(before, after) {
		t.Error("more than the signature differs")
	}
	enrolled := 0
	for _, v := range testkit.Must[[]secureboot.Stored](t)(secureboot.ReadStore(k.Variables)) {
		if v.Name == "db" && bytes.Contains(v.Data, k.DB.Certificate.Raw) {
			enrolled++
		}
	}
	if enrolled != 1 {
		t.Errorf("the key is enrolled %d times", enrolled)
	}
	values := k.PCRs(i)
	if len(values) != 3 || values[4] != (release.Digest{4}) || values[11] != (release.Digest{11}) || values[7] == (release.Digest{}) {
		t.Errorf("registers %v", values)
	}
	other := testkit.Must[*trial.Keys](t)(trial.NewKeys(testkit.Must[[]byte](t)(os.ReadFile(blank))))
	if other.PCRs(i)[7] == values[7] || bytes.Equal(other.Variables, k.Variables) {
		t.Error("another try has the same keys")
	}
	if err := k.Sign(i, to); fault.Of(err) != fault.Full {
		t.Errorf("a file that is there: %v", err)
	}
}

func TestRefusals(t *testing.T) {
	path := made(t)
	i := testkit.Must[*trial.Image](t)(trial.Open(path))
	k := testkit.Must[*trial.Keys](t)(trial.NewKeys(testkit.Must[[]byte](t)(os.ReadFile(blank))))
	b := testkit.Must[[]byte](t)(os.ReadFile(path))
	b[100] ^= 1
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	to := filepath.Join(t.TempDir(), "signed.iso")
	if err := k.Sign(i, to); err == nil {
		t.Error("a damaged image was signed")
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := k.Sign(i, to); fault.Of(err) != fault.NotFound {
		t.Errorf("no image: %v", err)
	}
	if _, err := os.Stat(to); err == nil {
		t.Error("a copy was written")
	}
	if _, err := trial.NewKeys([]byte("no store")); err == nil {
		t.Error("keys in what is no store")
	}
	manifest := strings.TrimSuffix(path, ".iso") + ".manifest.json"
	for text, kind := range map[string]fault.Kind{"": fault.NotFound, "{": fault.Invalid, "{}": fault.Invalid} {
		err := os.Remove(manifest)
		if text != "" {
			err = os.WriteFile(manifest, []byte(text), 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
		if _, err := trial.Open(path); fault.Of(err) != kind {
			t.Errorf("%q: %v, want %v", text, err, kind)
		}
		if err := os.WriteFile(manifest, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}
