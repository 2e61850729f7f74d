package cli_test

import (
	"os"

	"golang.org/x/sys/unix"
)

// dup returns a descriptor of the same file that nobody closes but its new owner.
func dup(f *os.File) (int, error) { return unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 3) }
