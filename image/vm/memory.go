package vm

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Memory is the guest's memory, all of it: the firmware's and system management
// mode's too. The guest may change it while it is read: pause it before.
type Memory struct {
	file *os.File
	size int64
}

// Size returns its size in bytes.
func (m *Memory) Size() int64 { return m.size }

// ReadAt reads guest-physical memory. Below 2 GiB (or all of it, when the machine
// has less than 2.75 GiB) offsets are guest-physical addresses.
func (m *Memory) ReadAt(b []byte, offset int64) (int, error) { return m.file.ReadAt(b, offset) }

// Each calls do with every run of memory that was ever written to, in order; what
// lies between is zero. A run is as long as can be, so nothing that lies across pages
// is cut. b is valid until do returns and must not be changed.
func (m *Memory) Each(do func(offset int64, b []byte) error) error {
	all, err := unix.Mmap(int(m.file.Fd()), 0, int(m.size), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("map the guest's memory: %w", err)
	}
	for end := int64(0); err == nil; {
		var from int64
		// Reading what was never written would give it pages.
		from, err = unix.Seek(int(m.file.Fd()), end, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			err = nil
			break
		}
		if err == nil {
			end, err = unix.Seek(int(m.file.Fd()), from, unix.SEEK_HOLE)
		}
		if err == nil {
			err = do(from, all[from:end])
		}
	}
	return errors.Join(err, unix.Munmap(all))
}
