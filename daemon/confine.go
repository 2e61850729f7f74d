package daemon

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"unsafe"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// Confinement is what of the machine a child may use, beside what every program needs: its
// own file, libraries (/usr), a few files of /etc, /proc/sys and /dev. It is enforced by the kernel on the
// child alone, so that each daemon has a sandbox of its own inside the agent's:
//
//	landlock(7)  files: only those below, and it executes nothing but itself; TCP: only these ports;
//	             signals and abstract sockets: only among itself; ptrace(2): nobody, not even a sibling of the same user
//	seccomp(2)   no system call that loads code into the kernel, looks into other processes, makes
//	             namespaces or mounts, or that no daemon of ours has a use for; four families of sockets
//	capabilities none but [Spec.Caps]; no_new_privs, so none come back
//
// A kernel without landlock, or with an older one, enforces what it can.
type Confinement struct {
	Read    []string // files and directories that it may read; one that is not there is left out
	Write   []string // the same, and it may write and make files and sockets, and use devices
	Bind    []uint16 // TCP ports that it may listen on
	Connect []uint16 // TCP ports that it may connect to
}

// common is what every child may read.
var common = []string{
	"/usr", "/lib", "/lib64", "/bin", "/sbin", "/proc/sys", "/sys/devices/system/cpu",
	"/etc/ld.so.cache", "/etc/ssl/openssl.cnf", "/etc/nsswitch.conf", "/etc/passwd", "/etc/group", "/etc/hosts", "/etc/resolv.conf",
	"/etc/host.conf", "/etc/gai.conf", "/etc/services", "/etc/protocols", "/etc/localtime", "/dev/urandom", "/dev/random",
}

// Rights on files (linux/landlock.h).
const (
	execute  = unix.LANDLOCK_ACCESS_FS_EXECUTE
	readFile = unix.LANDLOCK_ACCESS_FS_READ_FILE
	reading  = readFile | unix.LANDLOCK_ACCESS_FS_READ_DIR
	ofFiles  = readFile | unix.LANDLOCK_ACCESS_FS_WRITE_FILE | unix.LANDLOCK_ACCESS_FS_TRUNCATE | unix.LANDLOCK_ACCESS_FS_IOCTL_DEV
	writing  = reading | ofFiles | unix.LANDLOCK_ACCESS_FS_REMOVE_FILE | unix.LANDLOCK_ACCESS_FS_MAKE_REG | unix.LANDLOCK_ACCESS_FS_MAKE_SOCK
	// handled are all rights of the first version of landlock; what is not granted is denied.
	handled = 1<<13 - 1
)

// rulesetAttr is struct landlock_ruleset_attr, of which package unix has only the first field.
type rulesetAttr struct{ fs, net, scoped uint64 }

// ruleNetPort is LANDLOCK_RULE_NET_PORT, which package unix does not have.
const ruleNetPort = 2

// fence is a landlock ruleset with what the running kernel knows of it.
type fence struct {
	fd  int
	abi uintptr
	fs  uint64
	net bool
}

// newFence makes the ruleset for a program, or returns nil where the kernel has no landlock.
func newFence(path string, c Confinement) (*fence, error) {
	abi, err := call(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	if err != nil {
		return nil, nil // ENOSYS, EOPNOTSUPP: not built in, or switched off
	}
	f := &fence{abi: abi, fs: handled}
	var attr rulesetAttr
	size := unsafe.Offsetof(attr.net)
	for _, later := range []struct {
		abi  uintptr
		does func()
	}{
		{2, func() { f.fs |= unix.LANDLOCK_ACCESS_FS_REFER }},
		{3, func() { f.fs |= unix.LANDLOCK_ACCESS_FS_TRUNCATE }},
		{4, func() {
			f.net, attr.net = true, unix.LANDLOCK_ACCESS_NET_BIND_TCP|unix.LANDLOCK_ACCESS_NET_CONNECT_TCP
			size = unsafe.Offsetof(attr.scoped)
		}},
		{5, func() { f.fs |= unix.LANDLOCK_ACCESS_FS_IOCTL_DEV }},
		{6, func() {
			attr.scoped = unix.LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET | unix.LANDLOCK_SCOPE_SIGNAL
			size = unsafe.Sizeof(attr)
		}},
	} {
		if abi >= later.abi {
			later.does()
		}
	}
	attr.fs = f.fs
	fd, err := call(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(&attr)), size, 0)
	f.fd = int(fd)
	var programs []string
	if err == nil {
		programs, err = executables(path)
	}
	for _, p := range programs {
		err = errors.Join(err, f.allow(p, execute|reading))
	}
	for _, p := range append(common, c.Read...) {
		err = errors.Join(err, f.allow(p, reading))
	}
	for _, p := range append([]string{os.DevNull}, c.Write...) {
		err = errors.Join(err, f.allow(p, writing))
	}
	err = errors.Join(err, f.ports(unix.LANDLOCK_ACCESS_NET_BIND_TCP, c.Bind), f.ports(unix.LANDLOCK_ACCESS_NET_CONNECT_TCP, c.Connect))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("landlock: %w", err), f.close())
	}
	return f, nil
}

// executables returns the files that the kernel executes when a program is started: itself and
// what it names as its interpreter (elf(5), execve(2)). A script may start what lies beside it.
func executables(path string) ([]string, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	head := make([]byte, 128)
	n, _ := f.Read(head) // what cannot be read is no program either
	if script, ok := bytes.CutPrefix(head[:n], []byte("#!")); ok {
		line, _, _ := strings.Cut(string(script), "\n")
		interpreter := append(strings.Fields(line), "")[0]
		more, err := executables(interpreter)
		return append(more, path, filepath.Dir(path)), err
	}
	program, err := elf.NewFile(f)
	if err != nil {
		return nil, err
	}
	all := []string{path}
	for _, p := range program.Progs {
		if p.Type == elf.PT_INTERP {
			name, err := io.ReadAll(io.LimitReader(p.Open(), 4096))
			return append(all, strings.TrimRight(string(name), "\x00")), err
		}
	}
	return all, nil
}

// allow grants rights below a path, of those that the kernel knows and that a file can have. What
// is not there needs no right.
func (f *fence) allow(path string, rights uint64) error {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err == unix.ENOENT {
		return nil
	}
	var st unix.Stat_t
	if err == nil {
		defer unix.Close(fd)
		err = unix.Fstat(fd, &st)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		rights &= execute | ofFiles
	}
	rule := unix.LandlockPathBeneathAttr{Allowed_access: rights & f.fs, Parent_fd: int32(fd)}
	return f.rule(unix.LANDLOCK_RULE_PATH_BENEATH, unsafe.Pointer(&rule))
}

// ports grants a right on TCP ports.
func (f *fence) ports(right uint64, ports []uint16) (err error) {
	for _, port := range ports {
		// struct landlock_net_port_attr, which package unix does not have.
		rule := struct{ allowed, port uint64 }{right, uint64(port)}
		if f.net {
			err = errors.Join(err, f.rule(ruleNetPort, unsafe.Pointer(&rule)))
		}
	}
	return err
}

func (f *fence) rule(kind uintptr, rule unsafe.Pointer) error {
	_, err := call(unix.SYS_LANDLOCK_ADD_RULE, uintptr(f.fd), kind, uintptr(rule), 0)
	return err
}

func (f *fence) close() error { return unix.Close(f.fd) }

// restrict puts the calling thread, and what it starts, behind the fence for good.
func (f *fence) restrict() error {
	_, err := call(unix.SYS_LANDLOCK_RESTRICT_SELF, uintptr(f.fd), 0)
	return err
}

// call makes a system call of at most four arguments. What they point to stays where it is meanwhile.
//
//go:uintptrescapes
func call(number uintptr, args ...uintptr) (uintptr, error) {
	args = append(args, 0, 0, 0, 0)
	n, _, errno := unix.Syscall6(number, args[0], args[1], args[2], args[3], 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return n, nil
}

// confined calls start on a thread that is confined as the child is to be: the child
// inherits it, and the thread ends with the call, so nothing of the agent is confined.
func confined(path string, c *Confinement, start func() error) error {
	if c == nil {
		return start()
	}
	f, err := newFence(path, *c)
	if err != nil {
		return err
	}
	if f != nil {
		defer f.close()
	}
	net, err := os.Open(ownNet)
	if err != nil {
		return err
	}
	defer net.Close()
	return apart(func() error {
		if err := enter(net); err != nil {
			return err
		}
		// The child's sockets are for its group too, of which an agent that is not root is a member. The mask
		// is of the whole process unless the thread has one of its own.
		err := unix.Unshare(unix.CLONE_FS)
		if err == nil {
			unix.Umask(0o007)
		}
		// What the agent itself was given is not for the child: [Spec.Caps] are raised afterwards.
		if err == nil {
			err = unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
		}
		if err == nil {
			err = unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
		}
		if err == nil && f != nil {
			err = f.restrict()
		}
		if err == nil {
			err = filter()
		}
		if err != nil {
			return fmt.Errorf("confine: %w", err)
		}
		return start()
	})
}

// ownNet is the calling thread's network namespace.
const ownNet = "/proc/thread-self/ns/net"

// enter brings the calling thread into a network namespace, unless it is there: the child of a
// caller whose thread is elsewhere than the agent's others belongs where that is.
func enter(net *os.File) error {
	var here, there unix.Stat_t
	err := errors.Join(unix.Stat(ownNet, &here), unix.Fstat(int(net.Fd()), &there))
	if err == nil && here.Ino != there.Ino {
		err = unix.Setns(int(net.Fd()), unix.CLONE_NEWNET)
	}
	return err
}

// apart calls f on a thread that ends afterwards.
func apart(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// The main thread outlives every goroutine: hold it here and let another go.
			done <- apart(f)
			runtime.UnlockOSThread()
			return
		}
		done <- f() // never unlocked: the thread ends with the goroutine
	}()
	return <-done
}

// forbidden are system calls (syscalls(2)) that no daemon of ours makes, and with which one that was
// taken over could get further. They answer EPERM, as without the privilege.
var forbidden = []uint32{
	// Other processes.
	unix.SYS_PTRACE, unix.SYS_PROCESS_VM_READV, unix.SYS_PROCESS_VM_WRITEV, unix.SYS_PROCESS_MADVISE, unix.SYS_KCMP,
	unix.SYS_PIDFD_GETFD, unix.SYS_PERF_EVENT_OPEN, unix.SYS_SET_MEMPOLICY, unix.SYS_MBIND, unix.SYS_MOVE_PAGES,
	// Namespaces and mounts.
	unix.SYS_UNSHARE, unix.SYS_SETNS, unix.SYS_CHROOT, unix.SYS_PIVOT_ROOT, unix.SYS_MOUNT, unix.SYS_UMOUNT2, unix.SYS_MOUNT_SETATTR,
	unix.SYS_MOVE_MOUNT, unix.SYS_OPEN_TREE, unix.SYS_FSOPEN, unix.SYS_FSCONFIG, unix.SYS_FSMOUNT, unix.SYS_FSPICK,
	unix.SYS_NAME_TO_HANDLE_AT, unix.SYS_OPEN_BY_HANDLE_AT, unix.SYS_QUOTACTL, unix.SYS_FANOTIFY_INIT,
	// The machine.
	unix.SYS_KEXEC_LOAD, unix.SYS_KEXEC_FILE_LOAD, unix.SYS_INIT_MODULE, unix.SYS_FINIT_MODULE, unix.SYS_DELETE_MODULE, unix.SYS_REBOOT,
	unix.SYS_SWAPON, unix.SYS_SWAPOFF, unix.SYS_ACCT, unix.SYS_SYSLOG, unix.SYS_SETTIMEOFDAY, unix.SYS_CLOCK_SETTIME, unix.SYS_CLOCK_ADJTIME,
	unix.SYS_ADJTIMEX, unix.SYS_SETHOSTNAME, unix.SYS_SETDOMAINNAME, unix.SYS_VHANGUP,
	// Large parts of the kernel for which there is no use.
	unix.SYS_BPF, unix.SYS_USERFAULTFD, unix.SYS_IO_URING_SETUP, unix.SYS_IO_URING_ENTER, unix.SYS_IO_URING_REGISTER, unix.SYS_ADD_KEY,
	unix.SYS_REQUEST_KEY, unix.SYS_KEYCTL, unix.SYS_IO_SETUP, unix.SYS_IO_SUBMIT, unix.SYS_VMSPLICE, unix.SYS_MEMFD_SECRET, unix.SYS_PERSONALITY,
}

// families are the sockets that daemons have (address_families(7)).
var families = []uint32{unix.AF_UNIX, unix.AF_INET, unix.AF_INET6, unix.AF_NETLINK}

// Offsets in struct seccomp_data (linux/seccomp.h).
const (
	dataNumber, dataArch = 0, 4
	dataFirst            = 16 // the first argument's low half
)

// filter forbids system calls to the calling thread and what it starts, for good.
func filter() error {
	// Another architecture's calls, and those of x32, have other numbers: none of them.
	program := []bpf.Instruction{
		bpf.LoadAbsolute{Off: dataArch, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: auditArch, SkipTrue: 1},
		bpf.RetConstant{Val: unix.SECCOMP_RET_KILL_PROCESS},
		bpf.LoadAbsolute{Off: dataNumber, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpLessThan, Val: 1 << 30, SkipTrue: 1},
		bpf.RetConstant{Val: unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)},
	}
	for _, n := range append(forbidden, forbiddenHere...) {
		program = append(program, bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: n, SkipTrue: 1}, bpf.RetConstant{Val: unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)})
	}
	program = append(program, bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.SYS_SOCKET, SkipTrue: 1},
		bpf.RetConstant{Val: unix.SECCOMP_RET_ALLOW}, bpf.LoadAbsolute{Off: dataFirst, Size: 4})
	for _, f := range families {
		program = append(program, bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: f, SkipTrue: 1}, bpf.RetConstant{Val: unix.SECCOMP_RET_ALLOW})
	}
	program = append(program, bpf.RetConstant{Val: unix.SECCOMP_RET_ERRNO | uint32(unix.EAFNOSUPPORT)})
	raw, err := bpf.Assemble(program)
	if err != nil {
		return err
	}
	list := make([]unix.SockFilter, len(raw))
	for i, r := range raw {
		list[i] = unix.SockFilter{Code: r.Op, Jt: r.Jt, Jf: r.Jf, K: r.K}
	}
	prog := unix.SockFprog{Len: uint16(len(list)), Filter: &list[0]}
	return unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&prog)), 0, 0)
}
