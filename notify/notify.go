// Package notify is the service's side of systemd's protocol between a service
// and its service manager (sd_notify(3), sd_listen_fds(3)).
//
// A program says when it is ready ([Ready]) and when it begins to stop
// ([Stopping]). It can leave open files with the manager ([Store]), which hands
// them to the program's next instance after a crash or a restart ([Restore]):
// that is how a server's secrets and its ledger of live sessions, both memfds,
// outlive their process without ever being in a file system.
//
// Without a service manager (no NOTIFY_SOCKET in the environment) everything
// here does nothing and succeeds. STATUS=, errno and free text are left out on
// purpose: a manager writes them to its log.
//
// In the lab and in tests, package lab is the service manager.
package notify

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// The environment variables of the protocol.
const (
	envSocket = "NOTIFY_SOCKET"
	envPID    = "LISTEN_PID"
	envFDs    = "LISTEN_FDS"
	envNames  = "LISTEN_FDNAMES"
)

// firstFD is the number of the first descriptor that a manager passes
// (SD_LISTEN_FDS_START).
const firstFD = 3

// maxFDs bounds LISTEN_FDS; systemd's own largest store is far smaller.
const maxFDs = 4096

// Ready tells the manager that the program serves now. Repeating it is
// harmless.
func Ready() error { return send("READY=1") }

// Stopping tells the manager that the program has begun to stop.
func Stopping() error { return send("STOPPING=1") }

// Store leaves a duplicate of f with the manager under a name of 1 to 255
// printable ASCII characters without colon. The manager keeps it, unpolled,
// until [Remove], or until the service is stopped for good. The caller keeps f.
// Storing another file under the same name adds it: use Remove first to replace
// one. Managers ignore what exceeds their limit (FileDescriptorStoreMax=).
func Store(name string, f *os.File) error {
	if !validName(name) {
		return fmt.Errorf("notify: store: name %q: want 1 to 255 printable ASCII characters without colon", name)
	}
	raw, err := f.SyscallConn()
	if err != nil {
		return fmt.Errorf("notify: store %s: %w", name, err)
	}
	var sent error
	err = raw.Control(func(fd uintptr) {
		sent = send("FDSTORE=1\nFDNAME="+name+"\nFDPOLL=0", int(fd))
	})
	return errors.Join(err, sent)
}

// Remove makes the manager close every stored file of that name.
func Remove(name string) error {
	if !validName(name) {
		return fmt.Errorf("notify: remove: name %q: want 1 to 255 printable ASCII characters without colon", name)
	}
	return send("FDSTOREREMOVE=1\nFDNAME=" + name)
}

// Restore returns the files that the manager passed to this process, by name:
// those a former instance stored, and listening sockets of socket units. The
// caller owns them; they close on exec. Of several files with one name the
// last is returned and the others are closed.
//
// Restore takes the variables out of the environment, so that no child takes
// the files for its own; a second call therefore returns an empty map.
// Variables that are absent, or meant for another process, give an empty map;
// malformed ones an error.
func Restore() (map[string]*os.File, error) { return restore(firstFD) }

func restore(first int) (map[string]*os.File, error) {
	pid, count, names := os.Getenv(envPID), os.Getenv(envFDs), os.Getenv(envNames)
	for _, v := range []string{envPID, envFDs, envNames} {
		if err := os.Unsetenv(v); err != nil {
			return nil, err
		}
	}
	n, list, err := parse(pid, count, names, os.Getpid())
	if err != nil {
		return nil, err
	}
	files := make(map[string]*os.File, n)
	for i := range n {
		fd := first + i
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, unix.FD_CLOEXEC); err != nil {
			return nil, fmt.Errorf("notify: restore: passed descriptor %d is not open", fd)
		}
		if old := files[list[i]]; old != nil {
			_ = old.Close() // superseded by the later file of that name
		}
		files[list[i]] = os.NewFile(uintptr(fd), list[i])
	}
	return files, nil
}

// parse returns how many descriptors were passed to process self, and their
// names. Descriptors without a name are called "unknown", as systemd does.
func parse(pid, count, names string, self int) (int, []string, error) {
	if pid == "" || count == "" {
		return 0, nil, nil
	}
	p, err := strconv.Atoi(pid)
	if err != nil || p <= 0 {
		return 0, nil, fmt.Errorf("notify: restore: %s is no process id", envPID)
	}
	if p != self {
		return 0, nil, nil
	}
	n, err := strconv.Atoi(count)
	if err != nil || n < 0 || n > maxFDs {
		return 0, nil, fmt.Errorf("notify: restore: %s is not a number from 0 to %d", envFDs, maxFDs)
	}
	list := make([]string, n)
	for i := range list {
		list[i] = "unknown"
	}
	if names == "" {
		return n, list, nil
	}
	given := strings.Split(names, ":")
	if len(given) != n {
		return 0, nil, fmt.Errorf("notify: restore: %d names for %d descriptors", len(given), n)
	}
	for i, name := range given {
		if !validName(name) {
			return 0, nil, fmt.Errorf("notify: restore: name %d is not printable ASCII", i)
		}
		list[i] = name
	}
	return n, list, nil
}

func validName(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' || s[i] == ':' {
			return false
		}
	}
	return len(s) > 0 && len(s) <= 255
}

// send sends one datagram with descriptors to the manager. A name that begins
// with @ is an abstract socket (unix(7)).
func send(state string, fds ...int) error {
	path := os.Getenv(envSocket)
	if path == "" {
		return nil
	}
	if path[0] != '/' && path[0] != '@' {
		return fmt.Errorf("notify: %s is neither a path nor an abstract socket", envSocket)
	}
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Net: "unixgram"})
	if err != nil {
		return fmt.Errorf("notify: %w", err)
	}
	defer c.Close()
	if _, _, err := c.WriteMsgUnix([]byte(state), rights, &net.UnixAddr{Name: path, Net: "unixgram"}); err != nil {
		return fmt.Errorf("notify: tell the service manager: %w", err)
	}
	return nil
}
