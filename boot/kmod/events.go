package kmod

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// Events is the kernel's announcements of devices (uevents, netlink(7), NETLINK_KOBJECT_UEVENT).
type Events struct{ fd int }

// Listen opens the announcements from now on.
func Listen() (*Events, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return nil, fmt.Errorf("uevents: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1}); err != nil { // 1: from the kernel
		_ = unix.Close(fd)
		return nil, fmt.Errorf("uevents: %w", err)
	}
	return &Events{fd: fd}, nil
}

// Wait returns when something was announced since the last call, or after a time. What it was does
// not matter: /sys says how things are now, and what was lost in between as well.
func (e *Events) Wait(most time.Duration) {
	fds := []unix.PollFd{{Fd: int32(e.fd), Events: unix.POLLIN}}
	_, _ = unix.Poll(fds, int(most.Milliseconds())) // interrupted is as good as announced
	for b := make([]byte, 8<<10); ; {
		if _, err := unix.Read(e.fd, b); err != nil && err != unix.ENOBUFS && err != unix.EINTR {
			return
		}
	}
}

// Close ends it.
func (e *Events) Close() error { return unix.Close(e.fd) }
