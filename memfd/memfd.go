// Package memfd keeps content in memory that has a descriptor but no name in any
// file system (memfd_create(2)): the place for what a server holds and must
// never write to a disk.
//
// Every memfd here is sealed (F_ADD_SEALS in fcntl(2)): at least its size never
// changes, because a mapped file that shrinks kills its reader by SIGBUS; most
// never change at all.
package memfd

import (
	"errors"
	"fmt"
	"io"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	sizeSeals    = unix.F_SEAL_SHRINK | unix.F_SEAL_GROW
	contentSeals = sizeSeals | unix.F_SEAL_WRITE
)

// ErrUnsealed says that a file is not a memfd whose content can never change.
var ErrUnsealed = errors.New("not a sealed memfd")

// Sealed returns a memfd with what fill writes, sealed against every change. The
// caller closes it. An error of fill is returned as it is. The name is for
// /proc/PID/fd only.
func Sealed(name string, fill func(io.Writer) error) (*os.File, error) {
	return create(name, contentSeals|unix.F_SEAL_SEAL, func(f *os.File) error { return fill(f) })
}

// Fixed returns a memfd of size zero bytes whose content can change and whose
// size cannot.
func Fixed(name string, size int64) (*os.File, error) {
	return create(name, sizeSeals, func(f *os.File) error { return f.Truncate(size) })
}

func create(name string, seals int, fill func(*os.File) error) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING|unix.MFD_NOEXEC_SEAL)
	if err == unix.EINVAL { // kernels before 6.3 do not know MFD_NOEXEC_SEAL
		fd, err = unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	}
	if err != nil {
		return nil, fmt.Errorf("make memfd: %w", err)
	}
	f := os.NewFile(uintptr(fd), name)
	if err := fill(f); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, seals); err != nil {
		return nil, errors.Join(fmt.Errorf("seal memfd: %w", err), f.Close())
	}
	return f, nil
}

// hugePage is the size of a huge page on every platform that has them this size
// (amd64, arm64 with 4 KiB pages); elsewhere nothing but a little address space
// is lost.
const hugePage = 2 << 20

// Map maps a sealed memfd for reading. The mapping outlives f, which stays the
// caller's, and ends with unmap, which is called once. Any other file is refused
// with [ErrUnsealed]. The memory is left out of core dumps.
//
// The mapping is put on huge pages where the kernel can (Linux 6.1), at the price
// of a copy inside the kernel: random reads of a large file then miss one cache,
// not the translation's as well (5 to 10 % of a look-up among 4 million rows).
func Map(f *os.File) (content []byte, unmap func(), err error) {
	got, err := unix.FcntlInt(f.Fd(), unix.F_GET_SEALS, 0)
	if err != nil || got&contentSeals != contentSeals {
		return nil, nil, ErrUnsealed
	}
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, nil, fmt.Errorf("map memfd: %w", err)
	}
	if size == 0 {
		return nil, func() {}, nil
	}
	// Room first, so that the file can start at a multiple of a huge page in it.
	room := uintptr(size) + hugePage
	start, err := unix.MmapPtr(-1, 0, nil, room, unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return nil, nil, fmt.Errorf("map memfd: %w", err)
	}
	unmap = func() { _ = unix.MunmapPtr(start, room) } // fails only for an address that is not mapped
	at := unsafe.Add(start, hugePage-uintptr(start)%hugePage)
	_, err = unix.MmapPtr(int(f.Fd()), 0, at, uintptr(size), unix.PROT_READ, unix.MAP_SHARED|unix.MAP_FIXED|unix.MAP_POPULATE)
	content = unsafe.Slice((*byte)(at), size)
	if err == nil {
		err = unix.Madvise(content, unix.MADV_DONTDUMP)
	}
	if err != nil {
		unmap()
		return nil, nil, fmt.Errorf("map memfd: %w", err)
	}
	if size >= hugePage {
		_ = unix.Madvise(content, unix.MADV_COLLAPSE) // a matter of speed only; old kernels refuse
	}
	return content, unmap, nil
}
