// Package daemon starts, adopts and watches the servers that an agent drives:
// OpenVPN, charon and unbound. [Keep] keeps one running; a [Supervisor] also talks
// to it.
//
// Three things set it apart from os/exec. A child outlives the agent: it has a
// session of its own, and nothing of it is tied to the agent's life, so that live
// tunnels survive an agent that was killed; the next agent takes the child over
// with [Adopt] and watches it through a pidfd (pidfd_open(2)) like one of its own.
// What a child prints is hostile, because daemons print customers' names and
// addresses even when told to be silent: it goes into a pipe of one page that is
// drained, counted and dropped. And what a child must be told, secrets included,
// goes through a pipe that is full before the child starts ([Spec.Stdin]), never
// through a file, an argument or the environment.
//
// The output pipe can neither block nor kill the child, whatever becomes of the
// agent: the child's end is open for reading too (fifo(7)), so the pipe is never
// broken, and it does not block, so a full pipe refuses the write. An adopting
// agent drains the same pipe again.
package daemon

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Wipe is in the environment of every child: glibc overwrites memory as it is freed
// (glibc manual, "Memory Allocation Tunables"), so that what a daemon knew of a
// customer does not outlive the session in its heap. What goes into the cache of a
// thread would not be overwritten, so there is none.
const Wipe = "GLIBC_TUNABLES=glibc.malloc.perturb=90:glibc.malloc.tcache_count=0"

// Spec says how to start a child.
type Spec struct {
	Path string    // program, absolute
	Args []string  // arguments without the program's name; visible to everybody on the machine
	Env  []string  // the environment, "KEY=value"; nothing but [Wipe] is added
	Dir  string    // working directory; empty is "/"
	UID  uint32    // user the child runs as
	GID  uint32    // its only group
	Caps []uintptr // capabilities it keeps as a user other than root (capabilities(7), ambient set)
	// Stdin is what the child reads from standard input, at most 1 MiB. It may open
	// /dev/stdin too. Empty means /dev/null.
	Stdin []byte
	Files []*os.File // further open files: 3, 4, …; the caller closes its own copies
	// Confine is the child's sandbox; nil: none of its own.
	Confine *Confinement
}

// Identity names one process of this boot: a process id alone may have been
// given to another process since. Its text form "pid start" fits a file in the
// runtime directory.
type Identity struct {
	PID   int
	Start uint64 // clock ticks from boot to the start of the process (proc(5), stat field 22)
}

// String returns the text form of id.
func (id Identity) String() string { return fmt.Sprintf("%d %d", id.PID, id.Start) }

// ParseIdentity reads the text form of an Identity.
func ParseIdentity(s string) (id Identity, err error) {
	pid, start, _ := strings.Cut(strings.TrimSuffix(s, "\n"), " ")
	n, err1 := strconv.ParseUint(pid, 10, 31)
	id.Start, err = strconv.ParseUint(start, 10, 64)
	if err1 != nil || err != nil || n < 2 {
		return Identity{}, errors.New("process identity: want a process id and a start time")
	}
	id.PID = int(n)
	return id, nil
}

// Identify returns the identity of a running process.
func Identify(pid int) (Identity, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return Identity{}, fmt.Errorf("identify process: %w", err)
	}
	// The second field is the command in parentheses and may hold anything.
	f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	return ParseIdentity(fmt.Sprintf("%d %s", pid, f[19]))
}

// Process is a child or an adopted process. Its methods are safe for concurrent
// use.
type Process struct {
	id    Identity
	cmd   *exec.Cmd // nil when adopted
	pidfd *os.File
	out   *os.File // reading end of the output; nil when it cannot be had
	lines atomic.Uint64
	done  chan struct{}
	quiet chan struct{}    // closed when the output has been drained to its end
	state *os.ProcessState // set before done is closed; nil when adopted
	wg    sync.WaitGroup
	once  sync.Once
}

// Start starts a child. The end of ctx before the start prevents it; afterwards
// it changes nothing. The caller ends its watch with [Process.Stop] or
// [Process.Release].
func Start(ctx context.Context, s Spec) (*Process, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("start %s: %w", filepath.Base(s.Path), err)
	}
	in, err := input(s)
	if err != nil {
		return nil, fmt.Errorf("start %s: standard input: %w", filepath.Base(s.Path), err)
	}
	defer in.Close()
	r, w, err := output()
	if err != nil {
		return nil, fmt.Errorf("start %s: output pipe: %w", filepath.Base(s.Path), err)
	}
	defer w.Close()
	fd := -1
	cmd := &exec.Cmd{
		Path: s.Path, Args: append([]string{s.Path}, s.Args...), Env: append([]string{Wipe}, s.Env...),
		Dir: s.Dir, Stdin: in, Stdout: w, Stderr: w, ExtraFiles: s.Files,
		SysProcAttr: &syscall.SysProcAttr{
			Setsid: true, PidFD: &fd, AmbientCaps: s.Caps,
			Credential: &syscall.Credential{Uid: s.UID, Gid: s.GID, NoSetGroups: !maySetGroups()},
		},
	}
	if cmd.Dir == "" {
		cmd.Dir = "/"
	}
	// A dump of a daemon's memory, or of the agent's, would hold customers' addresses. The child
	// inherits the limit; setting it from outside would need CAP_SYS_RESOURCE.
	err = unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{})
	if err == nil {
		err = confined(s.Path, s.Confine, cmd.Start)
	}
	if err != nil {
		_ = r.Close()
		return nil, fmt.Errorf("start %s: %w", filepath.Base(s.Path), err)
	}
	// The child cannot be reaped before watch does it, so its id is still its own.
	id, err := Identify(cmd.Process.Pid)
	err = errors.Join(err, unix.SetNonblock(fd, true))
	p := &Process{id: id, cmd: cmd, pidfd: os.NewFile(uintptr(fd), "pidfd"), out: r, done: make(chan struct{})}
	p.watch()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start %s: %w", filepath.Base(s.Path), err), p.Stop(ctx, 0))
	}
	return p, nil
}

// maySetGroups reports whether this process can take its own further groups from a child (CAP_SETGID); one that
// cannot starts children of its own user only.
func maySetGroups() bool {
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	return unix.Capget(&head, &data[0]) == nil && data[0].Effective&(1<<unix.CAP_SETGID) != 0
}

// Adopt takes over a running process that an earlier agent started. It fails
// when the process has ended, when its id now belongs to another, or when it runs
// another program than path. Its exit status will not be known.
//
// Its output is drained again when this process may open it (ptrace(2), access
// mode checks); otherwise one page of it stays in the kernel until it ends.
func Adopt(id Identity, path string) (*Process, error) {
	fd, err := unix.PidfdOpen(id.PID, unix.PIDFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("adopt %s: %w", filepath.Base(path), err)
	}
	p := &Process{id: id, pidfd: os.NewFile(uintptr(fd), "pidfd"), done: make(chan struct{})}
	// From here on the id cannot be given to another process unnoticed.
	now, err := Identify(id.PID)
	exe, err1 := os.Readlink(fmt.Sprintf("/proc/%d/exe", id.PID))
	real, err2 := filepath.EvalSymlinks(path)
	if err := errors.Join(err, err1, err2); err != nil || now != id || exe != real {
		_ = p.pidfd.Close()
		return nil, errors.Join(fmt.Errorf("adopt %s: it is not the process that was started", filepath.Base(path)), err)
	}
	stdout := fmt.Sprintf("/proc/%d/fd/1", id.PID)
	if link, err := os.Readlink(stdout); err == nil && strings.HasPrefix(link, "pipe:") {
		if fd, err := unix.Open(stdout, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0); err == nil {
			p.out = os.NewFile(uintptr(fd), "output")
		}
	}
	p.watch()
	return p, nil
}

// input returns what a child gets as standard input. The pipe holds everything
// before the child exists: if the agent dies, the child never sees half a
// configuration.
func input(s Spec) (*os.File, error) {
	if len(s.Stdin) == 0 {
		return os.Open(os.DevNull)
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer w.Close()
	if len(s.Stdin) > 1<<20 {
		err = fmt.Errorf("%d bytes, want at most 1 MiB", len(s.Stdin))
	} else {
		_, err = unix.FcntlInt(w.Fd(), unix.F_SETPIPE_SZ, len(s.Stdin)+os.Getpagesize())
	}
	if err == nil {
		_, err = w.Write(s.Stdin)
	}
	if err == nil {
		// So that the child may open /dev/stdin. Nobody else finds the pipe: it has no name but in the child's /proc/PID/fd.
		err = r.Chmod(0o444)
	}
	if err != nil {
		return nil, errors.Join(err, r.Close())
	}
	return r, nil
}

// output returns the agent's and the child's end of an output pipe.
func output() (r, w *os.File, err error) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return nil, nil, err
	}
	defer unix.Close(p[1])
	child, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", p[1]), unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err == nil {
		_, err = unix.FcntlInt(uintptr(p[1]), unix.F_SETPIPE_SZ, os.Getpagesize())
	}
	if err != nil {
		return nil, nil, errors.Join(err, unix.Close(p[0]))
	}
	return os.NewFile(uintptr(p[0]), "output"), os.NewFile(uintptr(child), "output"), nil
}

// watch starts the two goroutines of p; both end when the process ends or p is
// released.
func (p *Process) watch() {
	p.quiet = make(chan struct{})
	p.wg.Go(p.drain)
	p.wg.Go(func() {
		raw, err := p.pidfd.SyscallConn()
		if err == nil {
			err = raw.Read(func(fd uintptr) bool {
				n, _ := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
				return n > 0
			})
		}
		if err != nil {
			return // released
		}
		if p.cmd != nil {
			_ = p.cmd.Wait() // reaps; a bad exit is no error of ours
			p.state = p.cmd.ProcessState
		}
		if p.out != nil {
			// A child of the child may hold the pipe open: do not wait for it.
			_ = p.out.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		}
		<-p.quiet
		close(p.done)
	})
}

// drain counts and drops what the process prints.
func (p *Process) drain() {
	defer close(p.quiet)
	buf := make([]byte, 4096)
	for p.out != nil {
		n, err := p.out.Read(buf)
		p.lines.Add(uint64(bytes.Count(buf[:n], []byte{'\n'})))
		clear(buf[:n])
		if err != nil {
			return
		}
	}
}

// Identity names the process for a later [Adopt].
func (p *Process) Identity() Identity { return p.id }

// Done returns a channel that is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Lines returns how many lines of output have been dropped.
func (p *Process) Lines() uint64 { return p.lines.Load() }

// Signal sends a signal. It fails with [os.ErrProcessDone] when the process has
// ended.
func (p *Process) Signal(sig unix.Signal) error {
	raw, err := p.pidfd.SyscallConn()
	if err != nil {
		return os.ErrProcessDone
	}
	var sent error
	if err := raw.Control(func(fd uintptr) { sent = unix.PidfdSendSignal(int(fd), sig, nil, 0) }); err != nil || sent == unix.ESRCH {
		return os.ErrProcessDone
	}
	return sent
}

// Wait waits until the process has ended and returns its exit code: -1 when a
// signal ended it or when it was adopted. The error is that of ctx.
func (p *Process) Wait(ctx context.Context) (int, error) {
	select {
	case <-p.done:
		return p.state.ExitCode(), nil // -1 for a nil state
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

// Stop asks the process to end (SIGTERM), ends it after grace or when ctx ends
// (SIGKILL), and releases it. A released process cannot be stopped.
func (p *Process) Stop(ctx context.Context, grace time.Duration) error {
	defer p.Release()
	ctx, cancel := context.WithTimeout(ctx, grace)
	defer cancel()
	err := p.Signal(unix.SIGTERM)
	if err == nil {
		if _, late := p.Wait(ctx); late != nil {
			err = p.Signal(unix.SIGKILL)
		}
	}
	if err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stop process: %w", err)
	}
	p.wg.Wait() // the watch ends with the process, or has ended before
	return nil
}

// Release ends the watch without ending the process and waits for the watching
// goroutines. Done stays open if the process still runs.
func (p *Process) Release() {
	p.once.Do(func() {
		_ = p.pidfd.Close()
		if p.out != nil {
			_ = p.out.Close()
		}
		p.wg.Wait()
	})
}

// The pause before a restart grows from firstPause to lastPause, twofold each
// time; a process that ran for steadyTime starts afresh.
const (
	firstPause = 100 * time.Millisecond
	lastPause  = 5 * time.Second
	steadyTime = 10 * time.Second
)

// Keep keeps a process running until ctx ends. It watches p (nil: there is none
// yet) and calls start whenever the process has ended or could not be started, after
// a pause that grows. start reports its own failures. Every running process, p
// included, is told to each, with the count of starts so far. Keep returns the
// process that runs when ctx ends, or nil; the caller stops or releases it.
func Keep(ctx context.Context, p *Process, start func(context.Context) (*Process, error), each func(p *Process, starts uint64)) *Process {
	var starts uint64
	var pause time.Duration
	for {
		began := time.Now()
		if p != nil {
			each(p, starts)
			select {
			case <-p.Done():
				p.Release()
				p, pause = nil, max(pause, firstPause)
			case <-ctx.Done():
				return p
			}
		}
		if time.Since(began) > steadyTime {
			pause = firstPause
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return nil
		}
		pause = min(max(2*pause, firstPause), lastPause)
		if next, err := start(ctx); err == nil {
			p = next
			starts++
		}
	}
}
