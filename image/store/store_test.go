package store_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"lethe/fault"
	"lethe/image/store"
)

func open(t *testing.T, dir string) *store.Store {
	t.Helper()
	s, err := store.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

var (
	content = bytes.Repeat([]byte("lethe "), 1000)
	name    = store.Digest(sha256.Sum256(content))
	size    = int64(len(content))
	errCut  = errors.New("cut")
)

// from serves b, after counting, and breaks off after so many bytes when cut is
// not negative.
func from(b []byte, cut int, offsets *[]int64) store.Source {
	return func(_ context.Context, offset int64) (io.ReadCloser, int64, error) {
		*offsets = append(*offsets, offset)
		r := io.Reader(bytes.NewReader(b[min(offset, int64(len(b))):]))
		if cut >= 0 {
			r = io.MultiReader(io.LimitReader(r, int64(cut)), failing{})
		}
		return io.NopCloser(r), offset, nil
	}
}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, errCut }

func files(t *testing.T, s *store.Store, under string) int {
	t.Helper()
	n := 0
	if err := filepath.WalkDir(filepath.Join(s.Dir(), under), func(_ string, e os.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			n++
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return n
}

func TestPut(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "a", "b"))
	ctx := t.Context()
	var offsets []int64
	var progress int64
	count := func(n int64) { progress += n }
	if s.Has(name, size) {
		t.Error("an empty store has it")
	}
	for _, err := range []error{s.Check(name), func() error { _, err := s.Get(name); return err }()} {
		if fault.Of(err) != fault.NotFound {
			t.Error(err)
		}
	}
	// Broken off, then gone on with.
	err := s.Put(ctx, name, size, from(content, 2500, &offsets), count)
	if fault.Of(err) != fault.Unavailable || !errors.Is(err, errCut) || progress != 0 || s.Has(name, size) {
		t.Errorf("%v, progress %d", err, progress)
	}
	if err = s.Put(ctx, name, size, from(content, -1, &offsets), count); err != nil || progress != size || offsets[1] != 2500 {
		t.Errorf("%v, progress %d, offsets %v", err, progress, offsets)
	}
	if err = s.Put(ctx, name, size, nil, count); err != nil || progress != 2*size {
		t.Errorf("a second time: %v, progress %d", err, progress)
	}
	if err = s.Put(ctx, name, size, nil, nil); err != nil {
		t.Error(err)
	}
	if b, err := s.Get(name); err != nil || !bytes.Equal(b, content) || s.Check(name) != nil {
		t.Error(err)
	}
	if info, err := os.Stat(s.Path(name)); err != nil || info.Mode() != 0o444 || files(t, s, "partial") != 0 {
		t.Error(info, err)
	}
}

func TestPutResumes(t *testing.T) {
	bad := bytes.Clone(content)
	bad[10] ^= 1
	tests := []struct {
		name    string
		partial []byte
		source  func(offsets *[]int64) store.Source
		want    fault.Kind
		ok      bool
		asked   string
	}{
		{"complete already", content, func(o *[]int64) store.Source { return from(content, -1, o) }, 0, true, "[]"},
		{"damaged part", bad[:3000], func(o *[]int64) store.Source { return from(content, -1, o) }, 0, true, "[3000 0]"},
		{"damaged and complete", bad, func(o *[]int64) store.Source { return from(content, -1, o) }, 0, true, "[0]"},
		{"too long part", append(bytes.Clone(content), 'x'), func(o *[]int64) store.Source { return from(content, -1, o) }, 0, true, "[0]"},
		{"server starts anew", content[:100], func(o *[]int64) store.Source {
			return func(ctx context.Context, offset int64) (io.ReadCloser, int64, error) {
				return from(content, -1, o)(ctx, 0)
			}
		}, 0, true, "[0]"},
		{"server starts elsewhere", content[:100], func(*[]int64) store.Source {
			return func(context.Context, int64) (io.ReadCloser, int64, error) {
				return io.NopCloser(bytes.NewReader(content)), 50, nil
			}
		}, fault.Unavailable, false, "[]"},
		{"bad twice", bad[:100], func(o *[]int64) store.Source { return from(bad, -1, o) }, fault.Untrusted, false, "[100 0]"},
		{"bad", nil, func(o *[]int64) store.Source { return from(bad, -1, o) }, fault.Untrusted, false, "[0]"},
		{"too long", nil, func(o *[]int64) store.Source { return from(append(bytes.Clone(content), 'x'), -1, o) }, fault.Untrusted, false, "[0]"},
		{"too short", nil, func(o *[]int64) store.Source { return from(content[:10], -1, o) }, fault.Unavailable, false, "[0]"},
		{"refused", nil, func(*[]int64) store.Source {
			return func(context.Context, int64) (io.ReadCloser, int64, error) {
				return nil, 0, fault.New(fault.NotFound, "gone")
			}
		}, fault.NotFound, false, "[]"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := open(t, t.TempDir())
			if tt.partial != nil {
				if err := os.WriteFile(filepath.Join(s.Dir(), "partial", fmt.Sprintf("%x", name)), tt.partial, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			var offsets []int64
			var progress int64
			err := s.Put(t.Context(), name, size, tt.source(&offsets), func(n int64) { progress += n })
			if tt.asked != fmt.Sprint(append([]int64{}, offsets...)) {
				t.Errorf("asked for %v, want %s", offsets, tt.asked)
			}
			if tt.ok {
				if err != nil || s.Check(name) != nil || progress != size {
					t.Errorf("%v, progress %d", err, progress)
				}
				return
			}
			if err == nil || fault.Of(err) != tt.want || progress != 0 || files(t, s, "sha256") != 0 {
				t.Errorf("%v, progress %d", err, progress)
			}
			if tt.want == fault.Untrusted && files(t, s, "partial") != 0 {
				t.Error("what is wrong was kept")
			}
		})
	}
}

func TestDamage(t *testing.T) {
	s := open(t, t.TempDir())
	d, err := s.Add(t.Context(), content)
	if err != nil || d != name {
		t.Fatal(err)
	}
	b := bytes.Clone(content)
	b[5000] ^= 0x80
	if err := os.Chmod(s.Path(d), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(s.Path(d), b, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Get(d); fault.Of(err) != fault.Untrusted || fault.Of(s.Check(d)) != fault.Untrusted {
		t.Error(err)
	}
	if err := errors.Join(s.Remove(d), s.Remove(d)); err != nil || s.Has(d, size) {
		t.Error(err)
	}
	if _, err := s.Add(t.Context(), content); err != nil || s.Check(d) != nil {
		t.Error(err)
	}
	// A directory where a file should be.
	if err := errors.Join(s.Remove(d), os.MkdirAll(filepath.Join(s.Path(d), "x"), 0o755)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Get(d); fault.Of(err) != fault.Internal || s.Check(d) == nil || s.Remove(d) == nil || s.Has(d, size) {
		t.Error(err)
	}
	if _, err := s.Add(t.Context(), content); err == nil {
		t.Error("a directory was replaced")
	}
}

// TestTogether lets many builders want the same input from stores of their own
// in one directory: it is fetched once.
func TestTogether(t *testing.T) {
	dir := t.TempDir()
	var mu sync.Mutex
	fetched := 0
	release := make(chan struct{})
	var group sync.WaitGroup
	for range 8 {
		s := open(t, dir)
		group.Go(func() {
			err := s.Put(t.Context(), name, size, func(context.Context, int64) (io.ReadCloser, int64, error) {
				mu.Lock()
				fetched++
				mu.Unlock()
				<-release
				return io.NopCloser(bytes.NewReader(content)), 0, nil
			}, nil)
			if err != nil || s.Check(name) != nil {
				t.Error(err)
			}
		})
	}
	close(release)
	group.Wait()
	if fetched != 1 || files(t, open(t, dir), "partial") != 0 {
		t.Errorf("fetched %d times", fetched)
	}
}

func TestWaitEnds(t *testing.T) {
	dir := t.TempDir()
	a, b := open(t, dir), open(t, dir)
	ctx, cancel := context.WithCancel(t.Context())
	err := a.Put(t.Context(), name, size, func(context.Context, int64) (io.ReadCloser, int64, error) {
		cancel() // while a holds the partial file, b does not wait for ever
		if err := b.Put(ctx, name, size, nil, nil); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		return io.NopCloser(bytes.NewReader(content)), 0, nil
	}, nil)
	if err != nil {
		t.Error(err)
	}
}

// TestInterrupted ends a download in its middle.
func TestInterrupted(t *testing.T) {
	s := open(t, t.TempDir())
	ctx, cancel := context.WithCancel(t.Context())
	err := s.Put(ctx, name, size, func(context.Context, int64) (io.ReadCloser, int64, error) {
		return io.NopCloser(io.MultiReader(bytes.NewReader(content[:77]), ending(cancel))), 0, nil
	}, nil)
	if !errors.Is(err, context.Canceled) || files(t, s, "sha256") != 0 {
		t.Error(err)
	}
	var offsets []int64
	if err := s.Put(t.Context(), name, size, from(content, -1, &offsets), nil); err != nil || offsets[0] != 77 {
		t.Error(err, offsets)
	}
}

type ending context.CancelFunc

func (e ending) Read([]byte) (int, error) {
	e()
	return 0, context.Canceled
}

func TestPrune(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	other, err := s.Add(t.Context(), []byte("other"))
	if err == nil {
		_, err = s.Add(t.Context(), content)
	}
	for _, stray := range []string{"partial/half", "sha256/" + strings.Repeat("a", 64), "sha256/note"} {
		err = errors.Join(err, os.WriteFile(filepath.Join(dir, stray), []byte("stray"), 0o644))
	}
	if err != nil {
		t.Fatal(err)
	}
	second := open(t, dir)
	if _, _, err := s.Prune(nil); fault.Of(err) != fault.Conflict {
		t.Error(err)
	}
	if err := second.Close(); err != nil {
		t.Fatal(err)
	}
	n, bytes, err := s.Prune(func(d store.Digest) bool { return d != other })
	if err != nil || n != 4 || bytes != 20 || !s.Has(name, size) || s.Has(other, 5) || files(t, s, "") != 2 {
		t.Error(n, bytes, err)
	}
	if _, err := store.Open(dir); fault.Of(err) != fault.Conflict {
		t.Error(err)
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.Prune(nil); err == nil {
		t.Error("a store that is gone was pruned")
	}
	for _, err := range []error{s.Put(t.Context(), name, size, nil, nil)} {
		if err == nil || fault.Of(err) == fault.Unavailable {
			t.Error(err)
		}
	}
}

func TestOpenRefusals(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := store.Open(filepath.Join(file, "x")); err == nil || !strings.Contains(err.Error(), "not a directory") {
		t.Error(err)
	}
	if err := os.MkdirAll(filepath.Join(dir, "s", "lock"), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := store.Open(filepath.Join(dir, "s")); err == nil {
		t.Error("a directory as lock")
	}
}

// TestFullDisk brings in more than fits: this program again, in a mount
// namespace of its own with a disk of one page.
func TestFullDisk(t *testing.T) {
	const inside = "LETHE_TEST_FULL_DISK"
	dir := os.Getenv(inside)
	if dir == "" {
		again := exec.CommandContext(t.Context(), os.Args[0], "-test.run", "^TestFullDisk$")
		again.Env = append(os.Environ(), inside+"="+t.TempDir())
		again.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWUSER,
			UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}, GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}}
		if out, err := again.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	if err := errors.Join(unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""), unix.Mount("tmpfs", dir, "tmpfs", 0, "size=4k")); err != nil {
		t.Fatal(err)
	}
	s := open(t, dir)
	_, err := s.Add(t.Context(), content)
	if fault.Of(err) != fault.Full || files(t, s, "partial") != 0 || files(t, s, "sha256") != 0 {
		t.Errorf("%v, %d files", err, files(t, s, ""))
	}
	if _, err := s.Add(t.Context(), []byte("small")); err != nil {
		t.Error(err)
	}
}

// TestClassify wants each trouble of the disk to be told as what it is.
func TestClassify(t *testing.T) {
	for kind, err := range map[fault.Kind]error{fault.Full: unix.EDQUOT, fault.Denied: unix.EACCES, fault.Internal: unix.EIO} {
		if got := store.Classify("text", &os.PathError{Op: "x", Path: "/secret/place", Err: err}); fault.Of(got) != kind || strings.Contains(got.Error(), "/secret") {
			t.Errorf("%v becomes %v", err, got)
		}
	}
	if got := store.Classify("text", errCut); got.Error() != "text: unforeseen" {
		t.Error(got)
	}
}

func TestLinkAsPartialFile(t *testing.T) {
	s := open(t, t.TempDir())
	if err := os.Symlink("/dev/full", filepath.Join(s.Dir(), "partial", fmt.Sprintf("%x", name))); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Add(t.Context(), content); err == nil {
		t.Error("a link was followed")
	}
}
