package boot

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// console writes to every console of the kernel and to the first serial line, which a release does not make
// one: a machine has a screen, a serial line, or both, and nobody knows who looks at which.
type console struct{ to []io.WriteCloser }

func openConsole(dev, sys string) *console {
	c := &console{}
	active, _ := os.ReadFile(filepath.Join(sys, "class/tty/console/active")) // console(4): "tty0 ttyS0"
	names := strings.Fields(string(active))
	if len(names) == 0 {
		names = []string{"console"}
	}
	for _, name := range names {
		if f, err := os.OpenFile(filepath.Join(dev, filepath.Base(name)), os.O_WRONLY|noctty, 0); err == nil {
			c.to = append(c.to, f)
		}
	}
	if !slices.Contains(names, serial) {
		// Nobody may be at the other end: opening and writing do not wait.
		if f, err := os.OpenFile(filepath.Join(dev, serial), os.O_WRONLY|noctty|unix.O_NONBLOCK, 0); err == nil {
			speed(f)
			c.to = append(c.to, f)
		}
	}
	return c
}

const serial = "ttyS0"

// speed sets what management controllers expect of a serial line: 115200 baud, 8 bits (termios(3)). A line that
// does not take it keeps what it has.
func speed(f *os.File) {
	raw, err := f.SyscallConn() // Fd would make it wait
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		t, err := unix.IoctlGetTermios(int(fd), unix.TCGETS)
		if err != nil {
			return
		}
		t.Cflag = t.Cflag&^(unix.CBAUD|unix.CSIZE|unix.PARENB|unix.CSTOPB|unix.CRTSCTS) | unix.B115200 | unix.CS8 | unix.CLOCAL
		_ = unix.IoctlSetTermios(int(fd), unix.TCSETS, t)
	})
}

// line writes one line. A console that does not take it is no reason to stop.
func (c *console) line(format string, args ...any) {
	text := strings.ReplaceAll(fmt.Sprintf("lethe: "+format, args...), "\n", "; ")
	for _, w := range c.to {
		_, _ = io.WriteString(w, text+"\r\n")
	}
}

func (c *console) close() {
	for _, w := range c.to {
		_ = w.Close()
	}
}
