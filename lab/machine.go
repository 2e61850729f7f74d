package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
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

	"lethe/image/vm"
	"lethe/secret"
)

// Machine is one machine of a lab. Programs on it run in its network namespace
// and see their own /etc, /run and /var/lib; the rest of the file system is the
// real machine's.
type Machine struct {
	Name      string   // "customer-1"
	Namespace string   // name of the network namespace, for ip-netns(8)
	Dir       string   // its files: etc, run, var/lib, home, data
	BinDir    string   // where Lethe's programs are; first in PATH
	Init      int      // first process, which keeps its view of the file system; enter with nsenter(1)
	Env       []string // of every command, beside PATH, HOME and the like
	Addresses []Dual   // of its uplink, the main one first; none on the router

	segment  segment
	settings []string // of the kernel, below /proc/sys/net, as "path=value"
	guest    *vm.Machine
	cable    bool         // the namespace is a guest's cable
	told     *secret.Node // once it was activated
}

func find(all []*Machine, name string) *Machine {
	for _, m := range all {
		if m.Name == name {
			return m
		}
	}
	return nil
}

// Path returns the path, as the real machine sees it, of a file that programs
// on m see under path in /run or /var/lib.
func (m *Machine) Path(path string) string {
	for _, d := range []string{"/run/", "/var/lib/"} {
		if strings.HasPrefix(path, d) {
			return m.Dir + path
		}
	}
	return path
}

// Data returns the path of a file in the machine's own directory for data.
func (m *Machine) Data(name string) string { return filepath.Join(m.Dir, "data", name) }

// boot makes the machine's view of the file system and then keeps it: the
// process lives in the machine's namespaces until it is killed. /etc is a layer
// over the real one, so that programs can replace files there as on any machine;
// where the kernel cannot lay it over, it is a copy.
const boot = `set -e
d=$1
mount -t overlay -o "lowerdir=/etc,upperdir=$d/etc,workdir=$d/work" lethe /etc 2>/dev/null || {
	cp -a /etc/. "$d/etc"
	mount --bind "$d/etc" /etc
}
mount --bind "$d/run" /run
mount --bind "$d/var/lib" /var/lib
rm -f /etc/resolv.conf
echo "nameserver $2" > /etc/resolv.conf
printf '127.0.0.1 localhost\n::1 localhost\n' > /etc/hosts
echo up
exec sleep infinity >/dev/null 2>&1`

// start makes the machine's directories and boots it. The returned command is
// its first process, which the caller waits for.
func (m *Machine) start() (*exec.Cmd, error) {
	var err error
	for _, d := range []string{"etc", "work", "run", "var/lib", "home", "data"} {
		err = errors.Join(err, os.MkdirAll(filepath.Join(m.Dir, d), 0o755))
	}
	c := exec.Command("/bin/sh", "-c", boot, "sh", m.Dir, DNSAddr.V4.String())
	c.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS, Setsid: true}
	var trouble bytes.Buffer
	c.Stderr = &trouble
	out, pipeErr := c.StdoutPipe()
	if err = errors.Join(err, pipeErr); err == nil {
		err = m.Inside(c.Start)
	}
	if err != nil {
		return nil, err
	}
	m.Init = c.Process.Pid
	if said, err := io.ReadAll(out); string(said) != "up\n" {
		err = errors.Join(err, c.Wait())
		return nil, fmt.Errorf("machine %s: %w: %s", m.Name, err, strings.TrimSpace(trouble.String()))
	}
	return c, nil
}

// Inside calls f on a thread that is in the machine's network namespace.
// Sockets that f opens and processes that it starts stay there; goroutines that
// it starts do not.
func (m *Machine) Inside(f func() error) error {
	return within(f, 0, entry{namespaces + m.Namespace, unix.CLONE_NEWNET})
}

// entry is a namespace to enter.
type entry struct {
	path string
	kind int
}

// within calls f on a thread of its own that has unshared something and then
// entered namespaces.
func within(f func() error, unshare int, entries ...entry) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// The main thread stands for the whole process in /proc and outlives every
			// goroutine: hold it here and let another thread go.
			done <- within(f, unshare, entries...)
			runtime.UnlockOSThread()
			return
		}
		// Never unlocked: the thread ends with the goroutine, so that no other
		// goroutine finds itself in the namespaces.
		err := unix.Unshare(unshare)
		for _, e := range entries {
			if err == nil {
				err = e.enter()
			}
		}
		if err == nil {
			err = f()
		}
		done <- err
	}()
	return <-done
}

func (e entry) enter() error {
	ns, err := os.Open(e.path)
	if err != nil {
		return err
	}
	defer ns.Close()
	return unix.Setns(int(ns.Fd()), e.kind)
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

// wrap makes a process the one that descriptors are passed to
// (sd_listen_fds(3)), then the program.
const wrap = `[ -z "$LISTEN_FDS" ] || export LISTEN_PID=$$
exec "$@"`

// Command returns the command to run a program on m. The environment is a
// fresh one; HOME is the machine's.
func (m *Machine) Command(ctx context.Context, name string, args ...string) *Cmd {
	c := exec.CommandContext(ctx, "/bin/sh", append([]string{"-c", wrap, "sh", name}, args...)...)
	c.SysProcAttr = &syscall.SysProcAttr{}
	c.WaitDelay = 5 * time.Second // for children of the program that hold its output open
	c.Dir = filepath.Join(m.Dir, "home")
	c.Env = append([]string{
		"PATH=" + m.BinDir + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"HOME=" + c.Dir, "USER=root", "LOGNAME=root", "LANG=C.UTF-8",
	}, m.Env...)
	return &Cmd{c, m}
}

// Start starts c.
func (c *Cmd) Start() error {
	// A thread may enter a mount namespace only when it shares its root and
	// working directory with no other (setns(2)).
	return within(c.Cmd.Start, unix.CLONE_FS,
		entry{namespaces + c.machine.Namespace, unix.CLONE_NEWNET},
		entry{fmt.Sprintf("/proc/%d/ns/mnt", c.machine.Init), unix.CLONE_NEWNS})
}

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
		return out.Bytes(), fmt.Errorf("%s: %w: %s", filepath.Base(c.Args[4]), err, lines[len(lines)-1])
	}
	return out.Bytes(), nil
}

// Install writes a file as programs on m see it; everybody may read it.
func (m *Machine) Install(ctx context.Context, path string, content []byte) error {
	c := m.Command(ctx, "sh", "-c", `umask 022 && mkdir -p "$(dirname "$0")" && cat > "$0"`, path)
	c.Stdin = bytes.NewReader(content)
	_, err := c.Output()
	return err
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
	err := (&Remote{prefix}).Down(ctx)
	if !errors.Is(err, ErrNoLab) {
		return err
	}
	if dir, err = filepath.Abs(dir); err == nil {
		err = sweep(prefix, dir)
	}
	return err
}

// sweep ends the processes in the namespaces of a prefix, removes the
// namespaces and the directory.
func sweep(prefix, dir string) error {
	names, err := filepath.Glob(namespaces + "lethe-" + prefix + "-*")
	for _, path := range names {
		err = errors.Join(err, evict(path), ip(context.Background(), "", "netns", "delete", filepath.Base(path)))
	}
	return errors.Join(err, clear(dir))
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
