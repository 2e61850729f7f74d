package image_test

import (
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"lethe/image/release"
)

// TestBuildRefusals is about the flags of build; what it makes is tested where it is made.
func TestBuildRefusals(t *testing.T) {
	w := newWorld(t)
	dir := t.TempDir()
	file := func(name, text string) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for name, tt := range map[string]struct {
		code int
		text string
		args []string
	}{
		"no such flavour":  {2, "there is no flavour moon\nhint: name some of hardware, hardware-lab, vm, vm-lab", []string{"--flavour", "vm,moon"}},
		"no place for key": {2, "the new key has no place", []string{"--new-key"}},
		"no key":           {3, "cannot be read\nhint: make one with --new-key", []string{"--key", filepath.Join(dir, "none")}},
		"no PEM":           {2, "is no private key", []string{"--key", file("text", "words")}},
		"public key":       {2, "is no private key", []string{"--key", file("public", string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: []byte{1}})))}},
		"broken key":       {2, "is no private key", []string{"--key", file("broken", string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte{1}})))}},
		"key is there":     {4, "exists already", []string{"--key", file("there", ""), "--new-key"}},
		"key has no place": {1, "cannot be written", []string{"--key", filepath.Join(dir, "none", "key"), "--new-key"}},
		"out is a file":    {1, "cannot be made", []string{"--out", file("out", "")}},
		"not a clone":      {3, "no commit that git can read", []string{"--lab", "--out", filepath.Join(dir, "images")}},
	} {
		t.Run(name, func(t *testing.T) {
			w.want(t, tt.code, tt.text, append([]string{"build"}, tt.args...)...)
		})
	}
	w.Dir = "/"
	w.want(t, 3, "not Lethe's source tree", "build")
}

// TestNewKey makes a builder's key, and uses it the next time.
func TestNewKey(t *testing.T) {
	w := newWorld(t)
	path := filepath.Join(t.TempDir(), "ada.pem")
	w.want(t, 3, "no commit", "build", "--key", path, "--new-key")
	w.want(t, 3, "no commit", "build", "--key", path)
	info, err := os.Stat(path)
	if err != nil || info.Mode() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	private, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(private)
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	public, err := os.ReadFile(path + ".pub")
	if err != nil {
		t.Fatal(err)
	}
	read, err := release.ParseKey(public)
	if err != nil {
		t.Fatal(err)
	}
	made, err := release.NewKey(key.(crypto.Signer).Public())
	if err != nil || made.ID != read.ID {
		t.Errorf("the public half is another key's: %v", err)
	}
	if out, _ := os.ReadFile(path + ".pub"); strings.Contains(string(out), "PRIVATE") {
		t.Error("the public half is private")
	}
}
