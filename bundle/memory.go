package bundle

import (
	"errors"
	"io"
	"os"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"lethe/fault"
	"lethe/memfd"
)

// memory is the content of one file in RAM: a memfd that was sealed against
// every change (memfd_create(2), F_ADD_SEALS in fcntl(2)) and is mapped
// read-only. It is unmapped with its last reference. The kernel leaves it out
// of core dumps.
type memory struct {
	refs  atomic.Int64
	file  *os.File // the memfd, for a [Keeper]
	data  []byte
	unmap func()
}

// newMemory makes memory of size bytes with one reference from what fill
// writes. Writing through the descriptor, not through a mapping, makes a full
// memory an error instead of a SIGBUS.
func newMemory(size int64, fill func(io.Writer) error) (*memory, error) {
	f, err := memfd.Sealed("lethe-bundle", func(w io.Writer) error {
		b := &bounded{w, size}
		if err := fill(b); err != nil {
			return err
		}
		if b.left != 0 {
			return refuse(WrongContent, nil)
		}
		return nil
	})
	if err != nil {
		return nil, full(err)
	}
	defer f.Close()
	return mapMemory(f)
}

// mapMemory makes memory with one reference of a sealed memfd, which stays the
// caller's.
func mapMemory(f *os.File) (*memory, error) {
	data, unmap, err := memfd.Map(f)
	if err != nil {
		return nil, full(err)
	}
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		unmap()
		return nil, full(err)
	}
	m := &memory{file: os.NewFile(uintptr(fd), f.Name()), data: data, unmap: unmap}
	m.refs.Store(1)
	return m, nil
}

// full classifies what went wrong with memory; what is classified stays as it
// is.
func full(err error) error {
	var known *fault.Error
	if errors.As(err, &known) {
		return err
	}
	return fault.Wrap(fault.Full, "bundle: no memory for a file", err)
}

// bounded refuses to be filled beyond its size.
type bounded struct {
	w    io.Writer
	left int64
}

func (b *bounded) Write(p []byte) (int, error) {
	if int64(len(p)) > b.left {
		return 0, refuse(WrongContent, nil)
	}
	n, err := b.w.Write(p)
	b.left -= int64(n)
	if err != nil {
		return n, full(err)
	}
	return n, nil
}

func (m *memory) retain() *memory {
	m.refs.Add(1)
	return m
}

func (m *memory) release() {
	if m.refs.Add(-1) == 0 {
		m.unmap()
		_ = m.file.Close() // a memfd: nothing is written back
	}
}
