package vm

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// process is a child that dies with this process.
type process struct {
	cmd     *exec.Cmd
	trouble tail
	done    chan struct{} // closed when it has ended
	err     error         // set before
}

// spawn starts c. The kernel kills it when the thread that started it ends
// (PR_SET_PDEATHSIG in prctl(2)), so that thread does nothing else until then.
// A process group of its own keeps the terminal's Ctrl-C from it.
func spawn(c *exec.Cmd) (*process, error) {
	p := &process{cmd: c, done: make(chan struct{})}
	c.Stdout, c.Stderr = &p.trouble, &p.trouble
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := c.Start()
		started <- err
		if err == nil {
			p.err = c.Wait()
			close(p.done)
		}
	}()
	return p, <-started
}

// kill ends the process and waits until it is gone. It may have ended before.
func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	<-p.done
}

// ended describes how the process has ended; call it once done is closed.
func (p *process) ended() error {
	name := filepath.Base(p.cmd.Path)
	if said := p.trouble.String(); said != "" {
		return fmt.Errorf("%s ended (%s): %s", name, p.cmd.ProcessState, said)
	}
	return fmt.Errorf("%s ended (%s)", name, p.cmd.ProcessState)
}

// tail keeps the last of what a child writes.
type tail struct {
	mu sync.Mutex
	b  []byte
}

const tailSize = 2048

func (t *tail) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b = append(t.b, b...)
	t.b = bytes.Clone(t.b[max(0, len(t.b)-tailSize):])
	return len(b), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.TrimSpace(string(t.b))
}

// pair returns the two ends of a stream socket without a name.
func pair(name string) (ours, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socket %s: %w", name, err)
	}
	// A child wants its end to block.
	if err := unix.SetNonblock(fds[1], false); err != nil {
		return nil, nil, errors.Join(err, unix.Close(fds[0]), unix.Close(fds[1]))
	}
	return os.NewFile(uintptr(fds[0]), name), os.NewFile(uintptr(fds[1]), name), nil
}
