package vm_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"lethe/internal/testkit"

	"lethe/image"
	"lethe/image/cms"
	"lethe/image/deb"
	"lethe/image/lock"
	"lethe/image/pe"
	"lethe/image/secureboot"
	"lethe/image/store"
	"lethe/image/tree"
)

// inputs returns files of packages that the lock names, in its own versions. The store
// is filled when it lacks them.
func inputs(ctx context.Context, wanted map[string]string) (map[string][]byte, error) {
	text, err := os.ReadFile(filepath.Join("../..", lock.FileName))
	if err != nil {
		return nil, err
	}
	l, err := lock.Parse(text)
	if err != nil {
		return nil, err
	}
	m := image.Here(os.Getenv)
	s, err := store.Open(m.Store)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	found := map[string][]byte{}
	for _, p := range l.Packages {
		path := wanted[p.Name]
		if path == "" {
			continue
		}
		var said bytes.Buffer
		if !s.Has(p.File.SHA256, p.File.Size) && image.Run(ctx, []string{"fetch"}, io.Discard, &said, m) != 0 {
			return nil, errors.New(said.String())
		}
		b, err := s.Get(p.File.SHA256)
		if err != nil {
			return nil, err
		}
		_, err = deb.ReadArchive(bytes.NewReader(b), func(e deb.Entry, content io.Reader) (err error) {
			if e.Path == path {
				found[filepath.Base(path)], err = io.ReadAll(content)
			}
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	return found, nil
}

// world is what all tests share: keys, and a unified kernel image whose only program
// is testdata/init.
type world struct {
	db, other cms.Signer
	keys      secureboot.Keys
	store     []byte // variables with the keys
	unsigned  []byte // the boot image, with space for a signature
	signed    []byte
}

const version = "7.3.4+deb13-cloud-amd64"

var made = sync.OnceValues(func() (*world, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	parts, err := inputs(ctx, map[string]string{
		"systemd-boot-efi":        "usr/lib/systemd/boot/efi/linuxx64.efi.stub",
		"linux-binary-" + version: "usr/lib/modules/" + version + "/vmlinuz",
	})
	if err != nil {
		return nil, err
	}
	w := &world{}
	signer := func(name string) (s cms.Signer) {
		key, err1 := rsa.GenerateKey(rand.Reader, 2048)
		certificate, err2 := secureboot.Certificate(name, crypto.Signer(key))
		err = errors.Join(err, err1, err2)
		return cms.Signer{Key: key, Certificate: certificate}
	}
	pk, kek := signer("PK"), signer("KEK")
	w.db, w.other = signer("db"), signer("other")
	if err != nil {
		return nil, err
	}
	w.keys = secureboot.Keys{PK: secureboot.Certificates(pk.Certificate), KEK: secureboot.Certificates(kek.Certificate), DB: secureboot.Certificates(w.db.Certificate)}
	blank, err := os.ReadFile("/usr/share/OVMF/OVMF_VARS_4M.fd")
	if err != nil {
		return nil, err
	}
	if w.store, err = secureboot.Enrol(blank, w.keys, time.Date(2026, 11, 23, 0, 0, 0, 0, time.UTC)); err != nil {
		return nil, err
	}
	if w.unsigned, err = unified(ctx, parts["linuxx64.efi.stub"], parts["vmlinuz"]); err != nil {
		return nil, err
	}
	w.signed, err = pe.Sign(w.unsigned, w.db)
	return w, err
})

// unified makes a unified kernel image around testdata/init.
func unified(ctx context.Context, stub, kernel []byte) ([]byte, error) {
	dir, err := os.MkdirTemp("", "init")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	c := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", filepath.Join(dir, "init"), "./testdata/init")
	c.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := c.CombinedOutput(); err != nil {
		return nil, errors.Join(err, errors.New(string(out)))
	}
	program, err := os.ReadFile(filepath.Join(dir, "init"))
	if err != nil {
		return nil, err
	}
	var root tree.Tree
	err = errors.Join(root.File("init", 0o700, "test", program),
		root.Add(tree.Entry{Path: "dev/console", Mode: os.ModeDevice | os.ModeCharDevice | 0o600, Major: 5, Minor: 1, From: "test"}))
	var initramfs bytes.Buffer
	if err = errors.Join(err, root.WriteCPIO(&initramfs, time.Unix(0, 0))); err != nil {
		return nil, err
	}
	b, err := pe.Append(stub,
		pe.Section{Name: ".osrel", Data: []byte("ID=lethe-test\n")},
		pe.Section{Name: ".cmdline", Data: []byte("console=ttyS0 quiet panic=-1")},
		pe.Section{Name: ".uname", Data: []byte(version)},
		pe.Section{Name: ".initrd", Data: initramfs.Bytes()},
		pe.Section{Name: ".linux", Data: kernel})
	if err != nil {
		return nil, err
	}
	return pe.Reserve(b, 4096)
}

func shared(t testing.TB) *world {
	t.Helper()
	return testkit.Must[*world](t)(made())
}

// medium writes an ISO that is a CD and a disk at once, with one boot image.
func medium(t testing.TB, boot []byte) string {
	t.Helper()
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	if err := errors.Join(os.MkdirAll(path("iso/lethe"), 0o700), os.WriteFile(path("BOOTX64.EFI"), boot, 0o600),
		os.WriteFile(path("esp"), make([]byte, (len(boot)>>20+4)<<20), 0o600)); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"mkfs.vfat", "-F", "16", path("esp")},
		{"mmd", "-i", path("esp"), "::EFI", "::EFI/BOOT"},
		{"mcopy", "-i", path("esp"), path("BOOTX64.EFI"), "::EFI/BOOT/BOOTX64.EFI"},
		{"xorriso", "-as", "mkisofs", "-quiet", "-R", "-o", path("test.iso"), "-append_partition", "2", "0xef", path("esp"), "-appended_part_as_gpt",
			"-e", "--interval:appended_partition_2:all::", "-no-emul-boot", path("iso")},
	} {
		if out, err := exec.CommandContext(t.Context(), args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", args[0], err, out)
		}
	}
	return path("test.iso")
}
