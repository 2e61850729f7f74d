package image_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"lethe/image/medium/mediumtest"
)

func TestInspect(t *testing.T) {
	w := newWorld(t)
	dir := t.TempDir()
	iso := filepath.Join(dir, "lethe-7-vm.iso")
	planted := filepath.Join(dir, "planted.iso")
	clean, dirty := mediumtest.Root(t), mediumtest.Root(t)
	err := errors.Join(clean.File("usr/bin/openvpn", 0o755, "openvpn", []byte("a program\n")), dirty.File("etc/ssl/private/x", 0o600, "", []byte("key\n")))
	if err != nil {
		t.Fatal(err)
	}
	image := mediumtest.Make(t, mediumtest.Spec{Root: clean})
	err = errors.Join(os.WriteFile(iso, image, 0o600), os.WriteFile(planted, mediumtest.Make(t, mediumtest.Spec{Root: dirty}), 0o600), os.WriteFile(filepath.Join(dir, "cut.iso"), image[:1<<20], 0o600))
	if err != nil {
		t.Fatal(err)
	}
	out := w.want(t, 0, "executables", "inspect", iso)
	if !strings.Contains(out, "usr/bin/openvpn") || strings.Contains(out, "etc/hostname") || strings.Contains(out, "SECRETS") {
		t.Error(out)
	}
	var r struct {
		Flavour     string
		Executables []struct{ Path, Package string }
		Packages    []struct{ Name, Version string }
		Files       []struct{ Path, SHA256 string }
	}
	if err := json.Unmarshal([]byte(w.want(t, 0, "", "inspect", "--json", "--files", iso)), &r); err != nil || r.Flavour != "vm" || len(r.Executables) != 2 || r.Executables[0].Package != "?" || len(r.Files) < 10 {
		t.Errorf("%+v, %v", r, err)
	}
	// The builder's lists lie beside it.
	var digest string
	for _, f := range r.Files {
		if f.Path == "usr/bin/openvpn" {
			digest = f.SHA256
		}
	}
	list, bill := strings.TrimSuffix(iso, ".iso")+".files", strings.TrimSuffix(iso, ".iso")+".sbom.json"
	err = errors.Join(os.WriteFile(list, []byte("# root\n-rwxr-xr-x 0:0 10 "+digest+" \"openvpn\" \"usr/bin/openvpn\"\n"), 0o600),
		os.WriteFile(bill, []byte(`{"components": [{"name": "openvpn", "version": "2.7.8-1"}]}`), 0o600))
	if err != nil {
		t.Fatal(err)
	}
	w.want(t, 0, "openvpn 2.7.8-1", "inspect", "--packages", iso)
	text := w.want(t, 0, "", "inspect", "--json", iso)
	r.Files = nil
	if err := json.Unmarshal([]byte(text), &r); err != nil || r.Executables[0].Package != "openvpn" || len(r.Files) != 0 {
		t.Errorf("%+v, %v", r, err)
	}
	if err := os.WriteFile(list, []byte("nonsense\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	w.want(t, 2, ".files cannot be read", "inspect", iso)
	if err := errors.Join(os.Remove(list), os.Mkdir(list, 0o700)); err != nil {
		t.Fatal(err)
	}
	w.want(t, 2, ".files cannot be read", "inspect", iso)
	if err := os.Remove(list); err != nil {
		t.Fatal(err)
	}

	w.want(t, 0, "executables", "inspect", "--secrets", iso)
	w.want(t, 5, "etc/ssl/private/x", "inspect", "--secrets", planted)
	w.want(t, 5, `"rule":"name"`, "inspect", "--secrets", "--json", planted)
	w.want(t, 0, "executables", "inspect", planted)

	w.want(t, 3, "there is no file", "inspect", filepath.Join(dir, "none.iso"))
	w.want(t, 2, "no image of a Lethe server: ", "inspect", filepath.Join(dir, "cut.iso"))
	w.want(t, 2, "no image of a Lethe server: ", "inspect", dir)
	w.want(t, 2, "arg", "inspect")
	large, err := os.Create(list)
	if err == nil {
		err = errors.Join(large.Truncate(65<<20), large.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	w.want(t, 2, ".files cannot be read", "inspect", iso)
	if err := os.Remove(list); err != nil {
		t.Fatal(err)
	}

	// What is in the root's files cannot be read: damaged behind the tables' back.
	m := mediumtest.Open(t, image)
	damaged := bytes.Clone(image)
	copy(damaged[m.Root.Offset+96:], bytes.Repeat([]byte{0xff}, 64))
	if err := os.WriteFile(iso, damaged, 0o600); err != nil {
		t.Fatal(err)
	}
	w.want(t, 2, "cannot be read: ", "inspect", iso)
}
