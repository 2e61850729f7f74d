package bundle

import (
	"errors"
	"io"
	"os"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"lethe/fault"
)

// memory is the content of one file in RAM: a memfd that was sealed against
// every change (memfd_create(2), F_ADD_SEALS in fcntl(2)) and is mapped
// read-only. It is unmapped with its last reference. The kernel leaves it out
// of core dumps.
type memory struct {
	refs atomic.Int64
	data []byte
}

// newMemory makes memory of size bytes with one reference from what fill
// writes. Writing through the descriptor, not through a mapping, makes a full
// memory an error instead of a SIGBUS.
func newMemory(size int64, fill func(io.Writer) error) (*memory, error) {
	fd, err := unix.MemfdCreate("lethe-bundle", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING|unix.MFD_NOEXEC_SEAL)
	if err == unix.EINVAL { // kernels before 6.3 do not know MFD_NOEXEC_SEAL
		fd, err = unix.MemfdCreate("lethe-bundle", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	}
	if err != nil {
		return nil, fault.Wrap(fault.Full, "bundle: no memory for a file", err)
	}
	f := os.NewFile(uintptr(fd), "lethe-bundle")
	defer f.Close() // the mapping stays
	w := &bounded{f, size}
	if err := fill(w); err != nil {
		return nil, err
	}
	if w.left != 0 {
		return nil, refuse(WrongContent, nil)
	}
	m := &memory{}
	m.refs.Store(1)
	const seals = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE
	_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals)
	if err == nil {
		m.data, err = unix.Mmap(fd, 0, int(size), unix.PROT_READ, unix.MAP_SHARED|unix.MAP_POPULATE)
	}
	if err = errors.Join(err, unix.Madvise(m.data, unix.MADV_DONTDUMP)); err != nil {
		m.release()
		return nil, fault.Wrap(fault.Full, "bundle: no memory for a file", err)
	}
	return m, nil
}

// bounded refuses to be filled beyond its size.
type bounded struct {
	f    *os.File
	left int64
}

func (b *bounded) Write(p []byte) (int, error) {
	if int64(len(p)) > b.left {
		return 0, refuse(WrongContent, nil)
	}
	n, err := b.f.Write(p)
	b.left -= int64(n)
	if err != nil {
		return n, fault.Wrap(fault.Full, "bundle: no memory for a file", err)
	}
	return n, nil
}

func (m *memory) retain() *memory {
	m.refs.Add(1)
	return m
}

func (m *memory) release() {
	if m.refs.Add(-1) == 0 {
		// Unmapping a mapping of our own cannot fail.
		_ = unix.Munmap(m.data)
	}
}
