package memfd_test

import (
	"bytes"
	"errors"
	"io"
	"os"
	"testing"

	"lethe/memfd"
)

func TestSealed(t *testing.T) {
	want := bytes.Repeat([]byte("lethe"), 1<<20)
	f, err := memfd.Sealed("test", func(w io.Writer) error { _, err := w.Write(want); return err })
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte{1}, 0); err == nil {
		t.Error("sealed content was written")
	}
	if f.Truncate(1) == nil || f.Truncate(1<<30) == nil {
		t.Error("the size was changed")
	}
	content, unmap, err := memfd.Map(f)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	if !bytes.Equal(content, want) {
		t.Error("the mapping shows something else")
	}
	unmap()
	if _, _, err := memfd.Map(f); !errors.Is(err, memfd.ErrUnsealed) {
		t.Errorf("a closed file gives %v", err)
	}
}

func TestFixed(t *testing.T) {
	f, err := memfd.Fixed("test", 4096)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte{1}, 4095); err != nil {
		t.Error(err)
	}
	if f.Truncate(1) == nil {
		t.Error("the size was changed")
	}
	if _, _, err := memfd.Map(f); !errors.Is(err, memfd.ErrUnsealed) {
		t.Errorf("a memfd that can change gives %v", err)
	}
}

func TestEmptyAndFailing(t *testing.T) {
	f, err := memfd.Sealed("test", func(io.Writer) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	content, unmap, err := memfd.Map(f)
	if err != nil || len(content) != 0 {
		t.Errorf("an empty memfd maps to %d bytes, %v", len(content), err)
	}
	unmap()
	boom := errors.New("boom")
	if _, err := memfd.Sealed("test", func(io.Writer) error { return boom }); !errors.Is(err, boom) {
		t.Errorf("got %v", err)
	}
	if _, err := memfd.Sealed("test", func(w io.Writer) error { return w.(io.Closer).Close() }); err == nil {
		t.Error("a closed memfd was sealed")
	}
	if _, err := memfd.Fixed("test", -1); err == nil {
		t.Error("a negative size was made")
	}
	if _, err := memfd.Fixed(string(make([]byte, 300)), 1); err == nil {
		t.Error("an impossible name was taken")
	}
	plain, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	if _, _, err := memfd.Map(plain); !errors.Is(err, memfd.ErrUnsealed) {
		t.Errorf("a plain file gives %v", err)
	}
}
