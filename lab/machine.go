package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Machine is one machine of a lab. Programs on it run in its network namespace
// and see their own /etc and /run; the rest of the file system is the real
// machine's.
type Machine struct {
	Name      string // "customer-1"
	Namespace string // name of the network namespace, for ip-netns(8)
	Dir       string // its files: etc, run, home, data
	BinDir    string // where Lethe's programs are; first in PATH
	Addresses []Dual // of its uplink, the main one first; none on the router

	segment segment
	forward bool
}

func find(all []*Machine, name string) *Machine {
	for _, m := range all {
		if m.Name == name {
			return m
		}
	}
	return nil
}

// Path returns the path, as the real machine sees it, of a file that programs on m see
// under path. Only /etc and /run differ.
func (m *Machine) Path(path string) string {
	for _, d := range []string{"/etc/", "/run/"} {
		if strings.HasPrefix(path, d) {
			return m.Dir + path
		}
	}
	return path
}

// Data returns the path of a file in the machine's own directory for data.
func (m *Machine) Data(name string) string { return filepath.Join(m.Dir, "data", name) }

// furnish makes the machine's directories. Its /etc is a copy, so that a
// program can replace files there as on any machine.
func (m *Machine) furnish() error {
	for _, d := range []string{"run", "home", "data", "etc"} {
		if err := os.MkdirAll(filepath.Join(m.Dir, d), 0o755); err != nil {
			return err
		}
	}
	etc := filepath.Join(m.Dir, "etc")
	if err := copyPublic(os.DirFS("/etc"), etc); err != nil {
		return err
	}
	_ = os.Remove(filepath.Join(etc, "resolv.conf")) // often a link into /run
	files := map[string]string{
		"resolv.conf": "nameserver " + DNSAddr.V4.String() + "\n",
		"hostname":    m.Name + "\n",
		"hosts":       "127.0.0.1 localhost\n::1 localhost\n",
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(etc, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// copyPublic copies directories, links and the regular files that everybody
// may read.
func copyPublic(from fs.FS, to string) error {
	return fs.WalkDir(from, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return fs.SkipDir // not for everybody
		}
		info, err := d.Info()
		if err != nil {
			return nil // gone meanwhile
		}
		target := filepath.Join(to, path)
		switch mode := info.Mode(); {
		case mode.IsDir() && mode.Perm()&0o005 == 0o005:
			return os.MkdirAll(target, 0o755)
		case mode.IsDir():
			return fs.SkipDir
		case mode.Type() == fs.ModeSymlink:
			link, err := fs.ReadLink(from, path)
			return errors.Join(err, os.Symlink(link, target))
		case mode.IsRegular() && mode.Perm()&0o004 != 0:
			b, err := fs.ReadFile(from, path)
			return errors.Join(err, os.WriteFile(target, b, mode.Perm()|0o200))
		}
		return nil
	})
}

// Inside calls f on a thread that is in the machine's network namespace.
// Sockets that f opens and processes that it starts stay there; goroutines that
// it starts do not.
func (m *Machine) Inside(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// The main thread stands for the whole process in /proc and outlives every
			// goroutine: hold it here and let another thread go.
			done <- m.Inside(f)
			runtime.UnlockOSThread()
			return
		}
		// Never unlocked: the thread ends with the goroutine, so that no other
		// goroutine finds itself in the namespace.
		ns, err := os.Open(namespaces + m.Namespace)
		if err == nil {
			err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET)
			_ = ns.Close() // only read from
		}
		if err == nil {
			err = f()
		}
		done <- err
	}()
	return <-done
}

// Dial connects from the machine. Names are not looked up: address is an
// address and a port.
func (m *Machine) Dial(ctx context.Context, network, address string) (c net.Conn, err error) {
	err = m.Inside(func() error {
		c, err = new(net.Dialer).DialContext(ctx, network, address)
		return err
	})
	return c, err
}

// Listen listens on the machine for TCP connections.
func (m *Machine) Listen(address string) (l net.Listener, err error) {
	err = m.Inside(func() error {
		l, err = net.Listen("tcp", address)
		return err
	})
	return l, err
}

// Cmd is a command to run on a machine. It is an [exec.Cmd] except that it must be
// started with the methods of this type.
type Cmd struct {
	*exec.Cmd
	machine *Machine
}

// wrap gives a process its own view of /etc and /run and itself as the one
// that descriptors are passed to (sd_listen_fds(3)), then becomes the program.
const wrap = `d=$1; shift
mount --bind "$d/etc" /etc && mount --bind "$d/run" /run || exit 125
[ -z "$LISTEN_FDS" ] || export LISTEN_PID=$$
exec "$@"`

// Command returns the command to run a program on m. The environment is a
// fresh one; HOME is the machine's.
func (m *Machine) Command(ctx context.Context, name string, args ...string) *Cmd {
	c := exec.CommandContext(ctx, "/bin/sh", append([]string{"-c", wrap, "sh", m.Dir, name}, args...)...)
	c.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	c.WaitDelay = 5 * time.Second // for children of the program that hold its output open
	c.Dir = filepath.Join(m.Dir, "home")
	c.Env = []string{
		"PATH=" + m.BinDir + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"HOME=" + c.Dir, "USER=root", "LOGNAME=root", "LANG=C.UTF-8",
	}
	return &Cmd{c, m}
}

// Start starts c.
func (c *Cmd) Start() error { return c.machine.Inside(c.Cmd.Start) }

// Run starts c and waits for it.
func (c *Cmd) Run() error {
	if err := c.Start(); err != nil {
		return err
	}
	return c.Wait()
}

// Output runs c and returns what it wrote to its standard output. A failure's
// message has the program's name and its last line of standard error.
func (c *Cmd) Output() ([]byte, error) {
	var out, trouble bytes.Buffer
	c.Stdout, c.Stderr = &out, &trouble
	if err := c.Run(); err != nil {
		lines := strings.Split(strings.TrimSpace(trouble.String()), "\n")
		return out.Bytes(), fmt.Errorf("%s: %w: %s", filepath.Base(c.Args[5]), err, lines[len(lines)-1])
	}
	return out.Bytes(), nil
}

// Run runs a program on m and returns what it wrote to its standard output.
func (m *Machine) Run(ctx context.Context, name string, args ...string) (string, error) {
	out, err := m.Command(ctx, name, args...).Output()
	return string(out), err
}

// namespaces is where ip-netns(8) keeps its names.
const namespaces = "/run/netns/"

// PIDs returns the processes that are in the machine's network namespace.
func (m *Machine) PIDs() ([]int, error) { return inhabitants(namespaces + m.Namespace) }

func inhabitants(path string) ([]int, error) {
	var ns unix.Stat_t
	if err := unix.Stat(path, &ns); err != nil {
		return nil, &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		var st unix.Stat_t
		if unix.Stat("/proc/"+e.Name()+"/ns/net", &st) == nil && st.Ino == ns.Ino && st.Dev == ns.Dev {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// Down removes every trace of the lab of that prefix and directory, whatever
// state it is in. A running one is asked to close itself. It is safe to repeat.
func Down(ctx context.Context, prefix, dir string) error {
	if !prefixForm.MatchString(prefix) {
		return fmt.Errorf("lab: prefix %q: want 1 to 6 small letters and digits", prefix)
	}
	r, err := Connect(ctx, prefix)
	if err == nil {
		return r.Down(ctx)
	}
	if !errors.Is(err, ErrNoLab) {
		return err
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return err
	}
	return sweep(prefix, dir)
}

// sweep ends the processes in the namespaces of a prefix, removes the
// namespaces and the directory.
func sweep(prefix, dir string) error {
	names, err := filepath.Glob(namespaces + "lethe-" + prefix + "-*")
	if err != nil {
		return err
	}
	for _, path := range names {
		if err := evict(path); err != nil {
			return err
		}
		if err := ip(context.Background(), "", "netns", "delete", filepath.Base(path)); err != nil {
			return err
		}
	}
	return clear(dir)
}

// evict kills the processes in a namespace and waits until they are gone. A
// path that is no namespace (a crash between making the file and mounting it)
// has none.
func evict(path string) error {
	const patience = 10 * time.Second
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(patience); ; <-tick.C {
		pids, err := inhabitants(path)
		if err != nil || len(pids) == 0 {
			return err
		}
		if time.Now().After(end) {
			return fmt.Errorf("lab: %d processes in %s do not end", len(pids), filepath.Base(path))
		}
		for _, pid := range pids {
			_ = unix.Kill(pid, unix.SIGKILL) // it may have ended meanwhile
		}
	}
}
