package boottest

import (
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"runtime/coverage"

	"golang.org/x/sys/unix"
)

// SendCover writes what this program counted so far to the machine's second serial line. A program
// without counters sends nothing.
func SendCover() {
	var fs unix.Statfs_t
	dir := "/dev/shm/cover"
	if unix.Statfs("/dev/shm", &fs) != nil || os.MkdirAll(dir, 0o700) != nil {
		return
	}
	defer os.RemoveAll(dir)
	if coverage.WriteMetaDir(dir) != nil || coverage.WriteCountersDir(dir) != nil {
		return
	}
	line, err := os.OpenFile("/dev/ttyS1", os.O_WRONLY|unix.O_NOCTTY, 0)
	if err != nil {
		return
	}
	defer line.Close()
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		b, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err == nil {
			fmt.Fprintf(line, "%s %s\n", e.Name(), base64.StdEncoding.EncodeToString(b))
		}
	}
	_ = unix.IoctlSetInt(int(line.Fd()), unix.TCSBRK, 1) // tcdrain(3)
}
