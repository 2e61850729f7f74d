package secret_test

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"lethe/secret"
)

// TestAnotherUserIsNotHeard connects as the user nobody, to a socket whose mode
// was loosened on purpose so that only the check of the peer is in the way.
func TestAnotherUserIsNotHeard(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("this test needs root to become another user")
	}
	path, got := wait(t, t.Context())
	if err := os.Chmod(path, 0o666); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{filepath.Dir(path), filepath.Dir(filepath.Dir(path))} {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	good := encoded(t, node(t))
	type outcome struct {
		answer string
		err    error
	}
	done := make(chan outcome)
	go func() {
		// The user is changed for this thread only; the runtime ends a thread
		// whose goroutine never unlocked it.
		runtime.LockOSThread()
		answer, err := connectAs(65534, path, good)
		done <- outcome{answer, err}
	}()
	if o := <-done; o.answer != "" || errors.Is(o.err, unix.EACCES) {
		t.Errorf("another user was answered %q, %v; want a connection that ends without a word", o.answer, o.err)
	}
	if err := secret.Handover(t.Context(), path, node(t)); err != nil {
		t.Errorf("the server does not wait any more: %v", err)
	}
	(<-got).file.Close()
}

func connectAs(uid int, path string, body []byte) (string, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid)); errno != 0 {
		return "", errno
	}
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		return "", err
	}
	if _, err := unix.Write(fd, body); err != nil {
		return "", err
	}
	if err := unix.Shutdown(fd, unix.SHUT_WR); err != nil {
		return "", err
	}
	answer := make([]byte, 256)
	n, err := unix.Read(fd, answer)
	return string(answer[:max(n, 0)]), err
}
