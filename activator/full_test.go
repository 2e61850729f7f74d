package activator_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"lethe/attest/attesttest"
)

const fullChild = "LETHE_ACTIVATOR_FULL"

// TestFull fills a small file system under the record: nothing is half decided, and with space again it goes on. It
// runs again as a child in its own mount namespace, so that the mount ends with it however it ends.
func TestFull(t *testing.T) {
	if os.Getenv(fullChild) == "" {
		c := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestFull$", "-test.count=1")
		c.Env = append(os.Environ(), fullChild+"="+t.TempDir())
		c.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
		if os.Geteuid() != 0 {
			c.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
			c.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: os.Geteuid(), Size: 1}}
			c.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{HostID: os.Getegid(), Size: 1}}
		}
		if out, err := c.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	small := os.Getenv(fullChild)
	if err := errors.Join(syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""),
		syscall.Mount("lethe", small, "tmpfs", 0, "size=256k,mode=700")); err != nil {
		t.Fatal(err)
	}
	o := newOffice(t)
	backup := o.backup()
	o.dir = small
	if err := os.Mkdir(filepath.Join(small, "keys"), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, b := range backup {
		o.put(name, b)
	}
	profile := filepath.Join(o.files, "profile.json")
	o.run("profile", "set", profile)
	decided := strings.Count(o.run("log", "show"), "\n")
	code, errs := 0, ""
	for code == 0 {
		if code, _, errs = o.try("profile", "set", profile); code == 0 {
			decided++
		}
	}
	if code != 7 && code != 6 || !strings.HasPrefix(errs, "error: ") {
		t.Errorf("exit %d, %s", code, errs)
	}
	o.put("activator.json", backup["activator.json"][:0]) // makes no difference to the record
	if err := os.Remove(filepath.Join(small, "control-ca.pem")); err != nil {
		t.Fatal(err)
	}
	o.run("log", "verify")
	if n := strings.Count(o.run("log", "show"), "\n"); n != decided && n != decided+1 {
		t.Errorf("%d records, %d decided", n, decided)
	}

	// An activator that cannot be made for lack of space leaves nothing.
	if err := os.RemoveAll(filepath.Join(small, "record.jsonl")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(small, "filler"), make([]byte, 256<<10), 0o600); err == nil {
		t.Fatal("the disk is not full")
	}
	setup := o.setup()
	o.dir = filepath.Join(small, "new")
	o.refused(7, "disk is full", setup...)
	if entries, err := os.ReadDir(o.dir); err != nil || len(entries) != 0 {
		t.Errorf("%v %v", entries, err)
	}
}

// TestFiles: a record that cannot be read is no record.
func TestFiles(t *testing.T) {
	o := newOffice(t)
	o.admit(7, attesttest.TheImage("seven"))
	good := o.backup()
	for _, name := range []string{"record.jsonl", "head", "lock"} {
		if err := errors.Join(os.Remove(filepath.Join(o.dir, name)), os.Mkdir(filepath.Join(o.dir, name), 0o700)); err != nil {
			t.Fatal(err)
		}
		o.refused(6, "record cannot be read", "list")
		if err := os.Remove(filepath.Join(o.dir, name)); err != nil {
			t.Fatal(err)
		}
		o.put(name, good[name])
	}
	o.run("list")
}
