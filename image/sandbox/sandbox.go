// Package sandbox runs the tools that make an image in a tree of their own: the
// builder's distribution, user, network, environment and host name are not in
// their reach.
//
// [Tree.Run] starts a tool as the first process of new user, mount, process,
// network, IPC and host name namespaces (namespaces(7)) with a directory as its root.
// The tree is read-only, the network is not there, no capability is left, and
// only the directories that the caller names can be written. When the context ends, or the
// builder dies, the kernel kills every process inside. Nothing is left mounted:
// the mounts live and end with the namespace.
//
// An ordinary user may do this where the kernel lets users make user namespaces.
// Where it does not, root may, without a user namespace, and others get an error that says so.
//
// Between the namespaces and the tool stands this program itself: it starts
// itself anew under the name [Name], and [Inside] sets things up and becomes
// the tool. So main, and TestMain where tests run tools, calls Inside first.
package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"lethe/fault"
)

// Name is what the program is called between namespaces and tool.
const Name = "lethe-sandbox"

// HostName is the machine's name inside.
const HostName = "build"

// Tree is a directory that is the root of tools.
type Tree struct {
	Dir string // absolute
}

// Bind is a directory outside that can be written inside.
type Bind struct {
	Outside string // absolute
	Inside  string // absolute in the tree; made when it is not there
}

// Command is one run of a tool.
type Command struct {
	Args   []string // the tool's absolute path in the tree, and its arguments
	Env    []string // beside PATH, HOME, LC_ALL and TZ, which are fixed
	Dir    string   // working directory inside; "" is "/"
	Binds  []Bind
	Stdin  io.Reader // nil: empty
	Output io.Writer // standard output and error; nil: only the end is kept, for the error
}

// base is the environment of every tool.
var base = []string{"PATH=/usr/bin:/usr/sbin", "HOME=/tmp", "LC_ALL=C", "TZ=UTC"}

// orders are what Inside is told, as JSON in its one argument.
type orders struct {
	Root  string
	Args  []string
	Env   []string
	Dir   string
	Binds []Bind
}

// status is the descriptor on which Inside tells what went wrong before the tool began.
const status = 3

// spaces are the namespaces beside the user's.
const spaces = syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWNET | syscall.CLONE_NEWIPC | syscall.CLONE_NEWUTS

// Failed is a tool that ended with something else than success.
type Failed struct {
	Tool   string
	Code   int    // exit code; -1 when a signal ended it
	Output string // the end of what it wrote
}

// Error implements error.
func (f *Failed) Error() string {
	s := fmt.Sprintf("%s ended with %d", f.Tool, f.Code)
	if f.Output != "" {
		s += ": " + f.Output
	}
	return s
}

// Run runs a tool to its end. The error is a [*Failed] when the tool failed, the context's when
// that ended, and fault.Denied when the kernel does not allow what is needed.
func (t Tree) Run(ctx context.Context, c Command) error {
	if err := t.prepare(c); err != nil {
		return err
	}
	o, _ := json.Marshal(orders{t.Dir, c.Args, append(append([]string{}, base...), c.Env...), c.Dir, c.Binds}) // strings only
	err := start(ctx, string(o), c, true)
	if refused(err) {
		if os.Geteuid() == 0 {
			err = start(ctx, string(o), c, false)
		}
		if refused(err) {
			return denied(err)
		}
	}
	return err
}

// prepare makes what is mounted on.
func (t Tree) prepare(c Command) error {
	dirs := []string{"tmp", "dev"}
	for _, b := range c.Binds {
		dirs = append(dirs, b.Inside)
	}
	for _, d := range dirs {
		if err := os.MkdirAll(filepath.Join(t.Dir, d), 0o755); err != nil {
			return fmt.Errorf("sandbox: %w", err)
		}
	}
	return nil
}

// refused says whether the kernel would not make the namespaces (clone(2), user_namespaces(7)).
func refused(err error) bool {
	return errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.EACCES) || errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EUSERS) || errors.Is(err, syscall.EINVAL)
}

func denied(err error) error {
	return fault.Wrap(fault.Denied, "the kernel does not let you make the namespaces that the tools run in", err).
		WithHint("build as root, or let users make them: sysctl user.max_user_namespaces=10000 kernel.unprivileged_userns_clone=1 kernel.apparmor_restrict_unprivileged_userns=0 (those that are there)")
}

func start(ctx context.Context, o string, c Command, user bool) error {
	cmd := exec.CommandContext(ctx, "/proc/self/exe")
	cmd.Args = []string{Name, o}
	cmd.Env = []string{}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: spaces, Pdeathsig: syscall.SIGKILL, Setsid: true}
	if user {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: os.Geteuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{HostID: os.Getegid(), Size: 1}}
	}
	out := &tail{to: c.Output}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = c.Stdin, out, out
	cmd.WaitDelay = 5 * time.Second // for what still holds the pipes, which nothing can once the namespace is gone
	r, w, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("sandbox: %w", err)
	}
	defer r.Close()
	cmd.ExtraFiles = []*os.File{w}
	// Pdeathsig is about the thread that started the child (prctl(2)).
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	err = cmd.Start()
	w.Close()
	if err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return err
	}
	trouble, readErr := io.ReadAll(r) // ends when the tool begins
	err = cmd.Wait()
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case len(trouble) > 0:
		return decodeTrouble(trouble)
	case readErr != nil:
		return fmt.Errorf("sandbox: %w", readErr)
	}
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return &Failed{Tool: filepath.Base(c.Args[0]), Code: exit.ExitCode(), Output: out.String()}
	}
	return err
}

// trouble is why the tool did not begin.
type trouble struct {
	Step  string
	Errno syscall.Errno
}

func (t trouble) Error() string { return "sandbox: " + t.Step + ": " + t.Errno.Error() }
func (t trouble) Unwrap() error { return t.Errno }

func decodeTrouble(b []byte) error {
	var t trouble
	if err := json.Unmarshal(b, &t); err != nil {
		return fmt.Errorf("sandbox: %w", err)
	}
	if t.Step == "start" { // the tool itself, not the namespaces
		return fmt.Errorf("sandbox: the tool does not start: %v", t.Errno)
	}
	return t
}

// tail passes on what a tool writes and keeps the end.
type tail struct {
	to  io.Writer
	end []byte
}

const tailSize = 2000

// Write implements io.Writer.
func (t *tail) Write(b []byte) (int, error) {
	t.end = append(t.end, b...)
	if n := len(t.end) - tailSize; n > 0 {
		t.end = append(t.end[:0], t.end[n:]...)
	}
	if t.to != nil {
		return t.to.Write(b)
	}
	return len(b), nil
}

func (t *tail) String() string { return strings.TrimSpace(string(t.end)) }

// Inside is the part of [Tree.Run] in the namespaces. In a program that was not started
// for it, it returns false at once. Otherwise it does not return, but becomes the
// tool; when that fails it returns the code to exit with.
func Inside() (code int, inside bool) {
	if len(os.Args) != 2 || os.Args[0] != Name {
		return 0, false
	}
	unix.CloseOnExec(status)
	runtime.LockOSThread() // capabilities belong to a thread
	step, err := enter([]byte(os.Args[1]))
	t := trouble{Step: step}
	if !errors.As(err, &t.Errno) {
		t.Errno = syscall.EINVAL
	}
	b, _ := json.Marshal(t) // a string and a number
	_, _ = unix.Write(status, b)
	return 1, true
}

// enter changes the world around this process and becomes the tool. It returns
// what it could not do.
func enter(b []byte) (step string, err error) {
	var o orders
	if err := json.Unmarshal(b, &o); err != nil {
		return "orders", err
	}
	if step, err := o.settle(); err != nil {
		return step, err
	}
	return "start", unix.Exec(o.Args[0], o.Args, o.Env)
}

// settle does everything but to become the tool.
func (o orders) settle() (step string, err error) {
	for _, do := range []struct {
		step string
		f    func(orders) error
	}{{"mounts", mounts}, {"devices", devices}, {"close the tree", seal}, {"root", pivot}, {"limits", limit}, {"capabilities", drop}} {
		if err := do.f(o); err != nil {
			return do.step, err
		}
	}
	return "", nil
}

// inOrder calls each until one fails.
func inOrder(steps ...func() error) error {
	for _, f := range steps {
		if err := f(); err != nil {
			return err
		}
	}
	return nil
}

// mount binds from at to, or mounts a new tmpfs there.
func mount(from, at string, tmpfs string) func() error {
	return func() error {
		if tmpfs != "" {
			return unix.Mount("tmpfs", at, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, tmpfs)
		}
		return unix.Mount(from, at, "", unix.MS_BIND, "")
	}
}

// set sets attributes of the mount at a place. Unlike a remount it takes none away, which
// nobody may do whose user namespace did not make the mount (mount_setattr(2)).
func set(at string, attributes uint64) func() error {
	return func() error {
		return unix.MountSetattr(unix.AT_FDCWD, at, 0, &unix.MountAttr{Attr_set: attributes})
	}
}

func mounts(o orders) error {
	steps := []func() error{
		func() error { return unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "") },
		mount(o.Root, o.Root, ""),
	}
	for _, b := range o.Binds {
		at := filepath.Join(o.Root, b.Inside)
		steps = append(steps, mount(b.Outside, at, ""), set(at, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV))
	}
	return inOrder(append(steps, mount("", filepath.Join(o.Root, "tmp"), "size=64m,mode=1777"))...)
}

// devices gives tools those devices that do not tell machines apart. Random numbers are
// among them: a tool that puts some into its output would be found out by a second build.
func devices(o orders) error {
	dev := filepath.Join(o.Root, "dev")
	steps := []func() error{mount("", dev, "size=64k,mode=755")}
	for _, name := range []string{"null", "zero", "full", "random", "urandom"} {
		at := filepath.Join(dev, name)
		steps = append(steps, func() error { return os.WriteFile(at, nil, 0o666) }, mount("/dev/"+name, at, ""))
	}
	return inOrder(append(steps, set(dev, unix.MOUNT_ATTR_RDONLY))...)
}

func seal(o orders) error {
	return set(o.Root, unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV)()
}

func pivot(o orders) error {
	if o.Dir == "" {
		o.Dir = "/"
	}
	return inOrder(
		func() error { return unix.Chdir(o.Root) },
		// The old root comes to lie on the new one and is taken away (pivot_root(2), "Notes").
		func() error { return unix.PivotRoot(".", ".") },
		func() error { return unix.Unmount(".", unix.MNT_DETACH) },
		func() error { return unix.Sethostname([]byte(HostName)) },
		func() error { return unix.Chdir(o.Dir) })
}

func limit(orders) error {
	unix.Umask(0o022)
	return unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{})
}

// drop gives up every capability for good: user 0 of the namespace would get
// them back with exec unless the bounding set is empty (capabilities(7)).
func drop(orders) error {
	var steps []func() error
	for c := uintptr(0); c <= unix.CAP_LAST_CAP; c++ {
		steps = append(steps, func() error {
			err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0)
			if errors.Is(err, unix.EINVAL) { // an older kernel has fewer
				err = nil
			}
			return err
		})
	}
	header, none := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, [2]unix.CapUserData{}
	return inOrder(append(steps,
		func() error { return unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) },
		func() error { return unix.Capset(&header, &none[0]) },
		// The change of capabilities may have undone it (prctl(2)).
		func() error { return unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0) })...)
}
