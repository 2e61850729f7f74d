// Package store keeps the inputs of an image by their SHA-256 digest, on the
// builder's disk.
//
// A file gets into the store whole or not at all: it is written under
// partial/, hashed on the way, synced, and renamed to its digest. An
// interrupted download leaves its partial file, and the next one goes on from
// there. What is read is hashed again, so a bit that turned over on the disk
// stops a build as surely as one that turned over on the way.
//
// Several builders may use one store at once: a partial file has one writer,
// held by flock(2), the others wait and then find the file; [Store.Prune] refuses
// while another holds the store open. The store trusts whoever may write to its
// directory no more than it trusts a mirror.
//
//	sha256/4f/4f53…   one input, read-only
//	partial/4f53…     one that is on its way
//	lock              held by every open store, alone by Prune
package store

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"lethe/fault"
)

// Digest is the SHA-256 digest of an input.
type Digest = [sha256.Size]byte

// Source opens an input at an offset in bytes, for instance by HTTP. It may
// start at 0 instead, and says where it starts.
type Source func(ctx context.Context, offset int64) (r io.ReadCloser, start int64, err error)

// Store is an open store. It is safe for concurrent use.
type Store struct {
	dir  string
	lock *os.File
}

// Open opens the store in dir and makes it when it is missing.
func Open(dir string) (*Store, error) {
	for _, d := range []string{dir, filepath.Join(dir, "sha256"), filepath.Join(dir, "partial")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return nil, classify("the store's directory cannot be made", err)
		}
	}
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, classify("the store cannot be opened", err)
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_SH|unix.LOCK_NB); err != nil {
		return nil, errors.Join(fault.Wrap(fault.Conflict, "the store is being pruned", err).WithHint("repeat when that is done"), lock.Close())
	}
	return &Store{dir: dir, lock: lock}, nil
}

// Close lets go of the store.
func (s *Store) Close() error { return s.lock.Close() }

// Dir returns the directory of the store.
func (s *Store) Dir() string { return s.dir }

// Path returns where the input of that digest is or would be.
func (s *Store) Path(d Digest) string {
	name := fmt.Sprintf("%x", d)
	return filepath.Join(s.dir, "sha256", name[:2], name)
}

// Has says whether there is a file for d of that size. Its content is not
// looked at: see [Store.Check].
func (s *Store) Has(d Digest, size int64) bool {
	info, err := os.Lstat(s.Path(d))
	return err == nil && info.Mode().IsRegular() && info.Size() == size
}

// Get returns an input, verified. The error is fault.NotFound when the store
// has none and fault.Untrusted when what it has is not what it should be.
func (s *Store) Get(d Digest) ([]byte, error) {
	b, err := os.ReadFile(s.Path(d))
	if err != nil {
		return nil, missing(d, err)
	}
	if sha256.Sum256(b) != d {
		return nil, damaged(d)
	}
	return b, nil
}

// Check reads an input through and verifies it, with the errors of [Store.Get].
func (s *Store) Check(d Digest) error {
	f, err := os.Open(s.Path(d))
	if err != nil {
		return missing(d, err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return classify("the store cannot be read", err)
	}
	if Digest(h.Sum(nil)) != d {
		return damaged(d)
	}
	return nil
}

// Remove takes an input out of the store.
func (s *Store) Remove(d Digest) error {
	if err := os.Remove(s.Path(d)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return classify("the store cannot be written", err)
	}
	return nil
}

// Put brings in the input with digest d and size bytes from source, unless it
// is there. progress, which may be nil, is told how many bytes have come in; a
// negative number takes back what turned out to be useless.
//
// What came in partly before is gone on with; when the whole then does not
// match, it is fetched once more from its beginning, for the fault may lie in the
// old part. A second mismatch is fault.Untrusted. A full disk is fault.Full, and
// the partial file is removed to make room.
func (s *Store) Put(ctx context.Context, d Digest, size int64, source Source, progress func(int64)) (err error) {
	if progress == nil {
		progress = func(int64) {}
	}
	if s.Has(d, size) {
		progress(size)
		return nil
	}
	partial, err := s.partial(ctx, d)
	if err != nil {
		return err
	}
	defer partial.Close()
	if s.Has(d, size) { // somebody else brought it while we waited
		progress(size)
		return s.drop(partial)
	}
	i := &intake{file: partial, size: size, hash: sha256.New(), progress: progress}
	defer func() {
		if err != nil {
			progress(-i.have)
		}
	}()
	resumed, err := i.resume()
	if err == nil {
		err = i.fill(ctx, source)
	}
	if err == nil && Digest(i.hash.Sum(nil)) != d && resumed {
		if err = i.restart(); err == nil {
			err = i.fill(ctx, source)
		}
	}
	switch {
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT), errors.Is(err, unix.EFBIG):
		return errors.Join(classify("", err), s.drop(partial))
	case errors.Is(err, errTooLong):
	case err != nil && fault.Of(err) == fault.Internal && ctx.Err() == nil:
		return classify("the store cannot be written", err)
	case err != nil:
		return err // the partial file waits for the next time
	}
	if err != nil || Digest(i.hash.Sum(nil)) != d {
		return errors.Join(fault.New(fault.Untrusted, fmt.Sprintf("what came for input %x is something else", d)).
			WithHint("the archive, or something on the way, has other content than was promised: try another one with --mirror"), s.drop(partial))
	}
	return s.settle(partial, d)
}

// Add brings in b, which is at hand, and returns its digest.
func (s *Store) Add(ctx context.Context, b []byte) (Digest, error) {
	d := sha256.Sum256(b)
	source := func(_ context.Context, offset int64) (io.ReadCloser, int64, error) {
		return io.NopCloser(bytes.NewReader(b[offset:])), offset, nil
	}
	return d, s.Put(ctx, d, int64(len(b)), source, nil)
}

// Prune removes every input that keep does not want and every partial file.
// It returns how many files and bytes went.
func (s *Store) Prune(keep func(Digest) bool) (files int, size int64, err error) {
	if err := unix.Flock(int(s.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return 0, 0, fault.Wrap(fault.Conflict, "the store is in use by another builder", err).WithHint("repeat when it is done")
	}
	err = filepath.WalkDir(s.dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() || path == filepath.Join(s.dir, "lock") {
			return err
		}
		if b, err := hex.DecodeString(e.Name()); err == nil && len(b) == sha256.Size && path == s.Path(Digest(b)) && keep(Digest(b)) {
			return nil
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		files++
		size += info.Size()
		return os.Remove(path)
	})
	if err != nil {
		return files, size, classify("the store cannot be pruned", err)
	}
	return files, size, nil
}

// waiting is how often a builder looks whether another one has finished with a
// file that both want.
const waiting = 100 * time.Millisecond

// partial opens the partial file of d and makes this process its only writer.
func (s *Store) partial(ctx context.Context, d Digest) (*os.File, error) {
	path := filepath.Join(s.dir, "partial", fmt.Sprintf("%x", d))
	tick := time.NewTicker(waiting)
	defer tick.Stop()
	for {
		f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|unix.O_NOFOLLOW, 0o644)
		if err != nil {
			return nil, classify("the store cannot be written", err)
		}
		// Whoever held it before may have renamed or removed it meanwhile.
		if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil && same(f, path) {
			return f, nil
		}
		f.Close()
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-tick.C:
		}
	}
}

func same(f *os.File, path string) bool {
	a, errA := f.Stat()
	b, errB := os.Lstat(path)
	return errA == nil && errB == nil && os.SameFile(a, b)
}

func (s *Store) drop(partial *os.File) error {
	if err := os.Remove(partial.Name()); err != nil {
		return classify("the store cannot be written", err)
	}
	return nil
}

// settle makes a complete partial file an input of the store.
func (s *Store) settle(partial *os.File, d Digest) error {
	dir := filepath.Dir(s.Path(d))
	err := partial.Chmod(0o444)
	if err == nil {
		err = partial.Sync()
	}
	if err == nil {
		err = os.MkdirAll(dir, 0o755)
	}
	if err == nil {
		err = os.Rename(partial.Name(), s.Path(d))
	}
	if err == nil {
		err = syncDir(dir)
	}
	if err != nil {
		return classify("the store cannot be written", err)
	}
	return nil
}

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

// intake is one partial file while it fills.
type intake struct {
	file     *os.File
	size     int64 // wanted
	have     int64 // in the file and in hash
	hash     hash.Hash
	progress func(int64)
}

var errTooLong = errors.New("more bytes than promised")

// resume takes in what is there already and says whether that was anything.
func (i *intake) resume() (bool, error) {
	n, err := io.Copy(i.hash, i.file)
	if err != nil {
		return false, err
	}
	if n > i.size {
		return false, i.restart()
	}
	i.have = n
	i.progress(n)
	return n > 0, nil
}

func (i *intake) restart() error {
	i.progress(-i.have)
	i.have = 0
	i.hash.Reset()
	if err := i.file.Truncate(0); err != nil {
		return err
	}
	_, err := i.file.Seek(0, io.SeekStart)
	return err
}

// fill reads source up to the wanted size.
func (i *intake) fill(ctx context.Context, source Source) error {
	if i.have == i.size {
		return nil
	}
	r, start, err := source(ctx, i.have)
	if err != nil {
		return err
	}
	defer r.Close()
	switch {
	case start == 0 && i.have > 0:
		if err := i.restart(); err != nil {
			return err
		}
	case start != i.have:
		return fault.New(fault.Unavailable, "the archive answered with another part of a file than was asked for")
	}
	from := &reader{r: io.LimitReader(r, i.size-i.have+1)}
	_, err = io.Copy(i, from)
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case from.err != nil || err == nil && i.have < i.size:
		return fault.Wrap(fault.Unavailable, fmt.Sprintf("a download ended after %d of %d bytes", i.have, i.size), from.err).WithHint("repeat: it goes on where it stopped")
	case i.have > i.size:
		return errTooLong
	}
	return err
}

// reader keeps the error of reading apart from that of writing.
type reader struct {
	r   io.Reader
	err error
}

// Read implements io.Reader.
func (r *reader) Read(b []byte) (int, error) {
	n, err := r.r.Read(b)
	if err != nil && !errors.Is(err, io.EOF) {
		r.err = err
	}
	return n, err
}

// Write implements io.Writer.
func (i *intake) Write(b []byte) (int, error) {
	n, err := i.file.Write(b)
	i.hash.Write(b[:n])
	i.have += int64(n)
	i.progress(int64(n))
	return n, err
}

func missing(d Digest, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fault.New(fault.NotFound, fmt.Sprintf("input %x is not in the store", d)).WithHint("fill it: lethe-image fetch")
	}
	return classify("the store cannot be read", err)
}

func damaged(d Digest) error {
	return fault.New(fault.Untrusted, fmt.Sprintf("input %x in the store is damaged", d)).WithHint("fetch it anew: lethe-image fetch")
}

func classify(text string, err error) error {
	switch {
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT), errors.Is(err, unix.EFBIG):
		return fault.Wrap(fault.Full, "the disk of the store is full", err).WithHint("make room, remove old inputs with `lethe-image prune`, or choose another place with --store")
	case errors.Is(err, fs.ErrPermission):
		return fault.Wrap(fault.Denied, text, err).WithHint("you may not write there: choose another place with --store")
	}
	return fault.Wrap(fault.Internal, text+": "+reason(err), err)
}

// reason is what the system says of err, without paths.
func reason(err error) string {
	var errno unix.Errno
	if errors.As(err, &errno) {
		return errno.Error()
	}
	return "unforeseen"
}
