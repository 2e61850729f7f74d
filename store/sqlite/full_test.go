package sqlite_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"lethe/account"
	"lethe/fault"
	"lethe/store"
	"lethe/store/storetest"
	"lethe/usage"
)

const fullChild = "LETHE_SQLITE_FULL"

// TestFull fills a small file system under the store. It runs again as a child
// in its own mount namespace, so that the mount ends with it however it ends.
func TestFull(t *testing.T) {
	if os.Getenv(fullChild) == "" {
		if os.Geteuid() != 0 {
			t.Skip("needs root to mount a small file system")
		}
		c := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestFull$", "-test.count=1")
		c.Env = append(os.Environ(), fullChild+"="+t.TempDir())
		c.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
		if out, err := c.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	dir := os.Getenv(fullChild)
	if err := errors.Join(syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""),
		syscall.Mount("lethe", dir, "tmpfs", 0, "size=700k,mode=700")); err != nil {
		t.Fatal(err)
	}
	filler := filepath.Join(dir, "filler")
	if err := os.WriteFile(filler, make([]byte, 200<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := open(dir, true)
	if err != nil {
		t.Fatal(err)
	}
	accounts, megabytes := fill(t, s)
	check := func(s store.Store) {
		t.Helper()
		n := 0
		if err := s.EachAccount(t.Context(), func(account.Record) error { n++; return nil }); err != nil || n != accounts {
			t.Errorf("%d accounts, %v; %d were acknowledged", n, err, accounts)
		}
		rows, err := s.UsageOf(t.Context(), usage.UserHash{7}, 0, 0xffff)
		if err != nil || len(rows) != 1 || rows[0].In != uint64(megabytes) {
			t.Errorf("usage %+v, %v; want %d MB", rows, err, megabytes)
		}
	}
	check(s)
	// Opened again while the disk is full, nothing is missing.
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if s, err = open(dir, false); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	check(s)
	// With space again it goes on where it stopped.
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	for range 5 {
		accounts++
		megabytes++
		if err := errors.Join(s.AddAccount(t.Context(), storetest.Record(fmt.Sprint("late", accounts))),
			s.AcceptUsage(t.Context(), "a", mb())); err != nil {
			t.Fatal(err)
		}
	}
	check(s)
}

func mb() usage.Batch {
	return usage.Batch{ID: usage.NewBatchID(), Records: []usage.Record{{
		Key: usage.Key{Date: 1, User: usage.UserHash{7}, Country: "DE", Location: 1}, In: 1,
	}}}
}

// fill adds accounts and megabytes of usage until the disk is full, and returns
// how many of each were acknowledged.
func fill(t *testing.T, s store.Store) (accounts, megabytes int) {
	t.Helper()
	for accounts < 10000 {
		err := s.AddAccount(t.Context(), storetest.Record(fmt.Sprint(accounts)))
		if err == nil {
			accounts++
			err = s.AcceptUsage(t.Context(), "a", mb())
		}
		if err == nil {
			megabytes++
			continue
		}
		if fault.Of(err) != fault.Full || accounts < 10 {
			t.Fatalf("after %d: got %v (%v), want full", accounts, err, errors.Unwrap(err))
		}
		return accounts, megabytes
	}
	t.Fatal("the disk does not fill")
	return 0, 0
}
