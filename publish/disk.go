package publish

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"lethe/fault"
)

// disk is what the publisher does to its directory. Paths are relative, with
// slashes.
type disk interface {
	// put makes a file whole or not at all: written beside its place, synced,
	// renamed to the path that fill returns, and the directory synced. A file of
	// that path is replaced.
	put(fill func(io.Writer) (path string, err error)) error
	// list returns the files below a directory.
	list(dir string) ([]stored, error)
	remove(path string) error
}

// stored is a published file.
type stored struct {
	path  string
	since time.Time
}

// whole returns a fill for put.
func whole(path string, b []byte) func(io.Writer) (string, error) {
	return func(w io.Writer) (string, error) {
		_, err := w.Write(b)
		return path, err
	}
}

// directory is a disk in the file system.
type directory string

// scratch is where a file grows before it gets its name. There is one publisher
// in a directory and it makes one file at a time, so what a crash left behind is
// overwritten.
const scratch = "new.part"

func (d directory) path(name string) string {
	return filepath.Join(string(d), filepath.FromSlash(name))
}

func (d directory) put(fill func(io.Writer) (string, error)) error {
	// Published files are for everybody: the web server may be another user.
	f, err := os.OpenFile(d.path(scratch), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return failed(err)
	}
	name, err := fill(f)
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = d.place(name)
	}
	if err != nil {
		_ = os.Remove(d.path(scratch)) // gives a full disk its space back; the error is what counts
		return failed(err)
	}
	return nil
}

// place gives the scratch file its name, durably.
func (d directory) place(name string) error {
	parent := filepath.Dir(d.path(name))
	err := os.MkdirAll(parent, 0o755)
	if err == nil {
		err = os.Rename(d.path(scratch), d.path(name))
	}
	return errors.Join(err, syncDirectory(parent), syncDirectory(string(d)))
}

func syncDirectory(path string) error {
	d, err := os.Open(path)
	if err == nil {
		err = errors.Join(d.Sync(), d.Close())
	}
	return err
}

func (d directory) list(dir string) ([]stored, error) {
	entries, err := os.ReadDir(d.path(dir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var files []stored
	for _, e := range entries {
		if info, err := e.Info(); err == nil { // else it is gone already
			files = append(files, stored{dir + "/" + e.Name(), info.ModTime()})
		}
	}
	return files, err
}

func (d directory) remove(path string) error { return os.Remove(d.path(path)) }

// failed classifies an error of the file system.
func failed(err error) error {
	switch {
	case errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT):
		return fault.Wrap(fault.Full, "publisher: no space left in the bundle directory", err).
			WithHint("free some space; servers keep the last bundle until it expires")
	default:
		return fault.Wrap(fault.Internal, "publisher: the bundle directory cannot be written", err)
	}
}

// lockDirectory makes the directory and takes its lock, which ends with the
// process.
func lockDirectory(path string) (*os.File, error) {
	err := os.MkdirAll(path, 0o755)
	var d *os.File
	if err == nil {
		d, err = os.Open(path)
	}
	if err != nil {
		return nil, failed(err)
	}
	if err := syscall.Flock(int(d.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = d.Close()
		return nil, fault.Wrap(fault.Conflict, "publisher: another publisher works in the bundle directory", err).
			WithHint("is `lethe-control serve` running already?")
	}
	return d, nil
}
