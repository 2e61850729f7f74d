package build_test

import (
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// elsewhere is the name under which the test binary runs a program in another world: [world apart].
// Its arguments are the seconds that the clock is ahead, and the program with its arguments.
//
// Clocks can be set for one process tree by no namespace (time_namespaces(7) leave the real-time clock
// alone), and static programs ignore a preloaded library. So every process below is traced (ptrace(2)): its
// vDSO gets another clock_gettime, which millions of calls use; to whoever asks the kernel for the time of day the
// tracer answers in the kernel's place; and what the kernel tells of a directory comes in the reverse order.
const elsewhere = "lethe-elsewhere"

// Offsets and numbers of x86-64.
const (
	atSysinfoEHDR                                      = 33 // getauxval(3)
	nrGettimeofday, nrTime, nrClockGettime, nrGetdents = 96, 201, 228, 217
	traceSeccomp                                       = 7 // PTRACE_EVENT_SECCOMP
	optSeccomp                                         = 1 << traceSeccomp
)

// filter stops a process when it asks for the time of day or reads a directory (seccomp(2)).
func filter() []unix.SockFilter {
	const load, equal, ret = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, unix.BPF_RET | unix.BPF_K
	const allow, trace = 0x7fff0000, 0x7ff00000
	return []unix.SockFilter{
		{Code: load, K: 0},                      // the number of the system call
		{Code: equal, Jt: 6, K: nrGettimeofday}, // to trace
		{Code: equal, Jt: 5, K: nrTime},
		{Code: equal, Jt: 4, K: nrGetdents},
		{Code: equal, Jf: 2, K: nrClockGettime}, // else to allow
		{Code: load, K: 16},                     // its first argument
		{Code: equal, Jt: 1, K: unix.CLOCK_REALTIME},
		{Code: ret, K: allow},
		{Code: ret, K: trace},
	}
}

// runElsewhere is the tracer. It returns the program's exit code.
func runElsewhere(args []string) int {
	if args[0] == "inside" { // the tracee, before it becomes the program
		f := filter()
		program := unix.SockFprog{Len: uint16(len(f)), Filter: &f[0]}
		runtime.LockOSThread()
		err := otherwise()
		if err == nil {
			err = unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
		}
		if err == nil {
			err = unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&program)), 0, 0)
		}
		path, lookErr := exec.LookPath(args[1])
		if err = errors.Join(err, lookErr); err == nil {
			err = unix.Exec(path, args[1:], os.Environ())
		}
		fmt.Fprintln(os.Stderr, "elsewhere:", err)
		return 1
	}
	var ahead int64
	if _, err := fmt.Sscan(args[0], &ahead); err != nil {
		return 2
	}
	runtime.LockOSThread() // a tracer is a thread
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = append([]string{elsewhere, "inside"}, args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Ptrace: true}
	if err := cmd.Start(); err != nil {
		fmt.Fprintln(os.Stderr, "elsewhere:", err)
		return 1
	}
	// Whoever is traced waits for this thread; on a busy machine it would wait long. Root may.
	_ = unix.Setpriority(unix.PRIO_PROCESS, 0, -20)
	t := tracer{first: cmd.Process.Pid, ahead: ahead, at: map[int]*unix.PtraceRegs{}, known: map[int]bool{}}
	code := 1
	var err error
	if t.patches, err = patches(int32(ahead)); err == nil {
		code, err = t.run()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "elsewhere:", err)
		return 1
	}
	return code
}

// otherwise makes this process another user's, on a machine of another name, with one core and a private umask. The first
// two are for root only.
func otherwise() error {
	var one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &one); err != nil {
		return err
	}
	for cpu, found := 0, false; cpu < 8*int(unsafe.Sizeof(one)); cpu++ {
		if one.IsSet(cpu) && found {
			one.Clear(cpu)
		}
		found = found || one.IsSet(cpu)
	}
	if err := unix.SchedSetaffinity(0, &one); err != nil {
		return err
	}
	unix.Umask(0o077)
	if os.Getuid() != 0 {
		return nil
	}
	if err := errors.Join(unix.Unshare(unix.CLONE_NEWUTS), unix.Sethostname([]byte("far.elsewhere.example"))); err != nil {
		return err
	}
	return errors.Join(syscall.Setgroups(nil), syscall.Setgid(nobody), syscall.Setuid(nobody))
}

// nobody is an ordinary user, who owns nothing here.
const nobody = 65534

type tracer struct {
	first   int
	ahead   int64
	patches []patch
	at      map[int]*unix.PtraceRegs // the reading of a directory that a process is in
	known   map[int]bool
	// How often something was changed.
	times, lists int
}

func (t *tracer) run() (code int, err error) {
	const options = unix.PTRACE_O_TRACECLONE | unix.PTRACE_O_TRACEFORK | unix.PTRACE_O_TRACEVFORK | unix.PTRACE_O_TRACEEXEC | unix.PTRACE_O_TRACESYSGOOD | unix.PTRACE_O_EXITKILL | optSeccomp
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, unix.WALL, nil)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return 0, err
		case status.Exited() || status.Signaled():
			delete(t.known, pid) // its number will be another's
			delete(t.at, pid)
			if pid == t.first {
				if status.Signaled() {
					return 128 + int(status.Signal()), nil
				}
				fmt.Fprintf(os.Stderr, "elsewhere: %d lists were turned round, %d times told\n", t.lists, t.times)
				return status.ExitStatus(), nil
			}
			continue
		case !t.known[pid]:
			t.known[pid] = true
			if pid == t.first {
				if err := unix.PtraceSetOptions(pid, options); err != nil {
					return 0, err
				}
				_ = t.replace(pid)
				_ = unix.PtraceCont(pid, 0)
				continue
			}
			if status.StopSignal() == unix.SIGSTOP { // how a new process begins
				_ = unix.PtraceCont(pid, 0)
				continue
			}
		}
		t.stopped(pid, status)
	}
}

// stopped handles a process that has stopped and lets it go on. Its errors mean that it was killed meanwhile.
func (t *tracer) stopped(pid int, status unix.WaitStatus) {
	signal := status.StopSignal()
	switch {
	case signal == unix.SIGTRAP && status.TrapCause() == unix.PTRACE_EVENT_EXEC:
		_ = t.replace(pid)
		signal = 0
	case signal == unix.SIGTRAP && status.TrapCause() == traceSeccomp:
		var regs unix.PtraceRegs
		if err := unix.PtraceGetRegs(pid, &regs); err == nil && regs.Orig_rax == nrGetdents {
			t.at[pid] = &regs
			_ = unix.PtraceSyscall(pid, 0) // until its end
			return
		} else if err == nil {
			_ = t.tell(pid, &regs)
		}
		signal = 0
	case signal == unix.SIGTRAP|0x80: // the end of a call
		if regs := t.at[pid]; regs != nil {
			delete(t.at, pid)
			_ = t.turn(pid, regs)
		}
		signal = 0
	case signal == unix.SIGTRAP && status.TrapCause() > 0:
		signal = 0
	}
	_ = unix.PtraceCont(pid, int(signal))
}

// patch is code that replaces a function of the vDSO (vdso(7)), at an offset from its begin.
type patch struct {
	at   uint64
	code []byte
}

// patches returns those for a clock that is so many seconds ahead. Every process has the same vDSO, this one too.
func patches(ahead int32) ([]patch, error) {
	vectors, err := os.ReadFile("/proc/self/auxv")
	if err != nil {
		return nil, err
	}
	var base uint64
	for ; len(vectors) >= 16; vectors = vectors[16:] {
		if binary.LittleEndian.Uint64(vectors) == atSysinfoEHDR {
			base = binary.LittleEndian.Uint64(vectors[8:])
		}
	}
	memory, err := os.Open("/proc/self/mem")
	if err != nil {
		return nil, err
	}
	defer memory.Close()
	object, err := elf.NewFile(io.NewSectionReader(memory, int64(base), 1<<20))
	if err != nil {
		return nil, err
	}
	symbols, err := object.DynamicSymbols()
	if err != nil {
		return nil, err
	}
	ask := func(nr byte) []byte { return []byte{0xb8, nr, 0, 0, 0, 0x0f, 0x05, 0xc3} } // mov eax, nr; syscall; ret
	code := map[string][]byte{
		"__vdso_gettimeofday": ask(nrGettimeofday), "__vdso_time": ask(nrTime),
		// CLOCK_TAI is CLOCK_REALTIME but for leap seconds, and the filter lets it pass.
		"__vdso_clock_gettime": slices.Concat([]byte{
			0x85, 0xff, // test edi, edi: CLOCK_REALTIME?
			0x75, 0x18, // jne, to the last instructions
			0xbf, unix.CLOCK_TAI, 0, 0, 0, // mov edi, CLOCK_TAI
			0xb8, nrClockGettime, 0, 0, 0, 0x0f, 0x05, // mov eax, nr; syscall
			0x85, 0xc0, // test eax, eax
			0x75, 0x07, // jne, to ret
			0x48, 0x81, 0x06}, // add qword [rsi], ahead
			binary.LittleEndian.AppendUint32(nil, uint32(ahead)),
			[]byte{0xc3}, // ret
			ask(nrClockGettime)),
	}
	var all []patch
	for _, s := range symbols {
		if c := code[s.Name]; c != nil && s.Size >= uint64(len(c)) {
			all = append(all, patch{s.Value, c})
		}
	}
	if len(all) != len(code) {
		return nil, fmt.Errorf("the vDSO has %d of %d functions", len(all), len(code))
	}
	return all, nil
}

// replace puts the patches into the vDSO of a new program.
func (t *tracer) replace(pid int) error {
	var regs unix.PtraceRegs
	if err := unix.PtraceGetRegs(pid, &regs); err != nil {
		return err
	}
	word := func(at uint64) uint64 {
		var b [8]byte
		_, _ = unix.PtracePeekData(pid, uintptr(at), b[:])
		return binary.LittleEndian.Uint64(b[:])
	}
	at := regs.Rsp + 8*(1+word(regs.Rsp)+1) // behind the arguments
	for word(at) != 0 {
		at += 8
	}
	for at += 8; word(at) != 0; at += 16 { // behind the environment
		if word(at) != atSysinfoEHDR {
			continue
		}
		for _, p := range t.patches {
			if _, err := unix.PtracePokeData(pid, uintptr(word(at+8)+p.at), p.code); err != nil {
				return err
			}
		}
	}
	return nil
}

// tell answers a process that asks for the time of day, and has the kernel do nothing (seccomp(2),
// SECCOMP_RET_TRACE). An address that cannot be written to is left to the kernel to refuse.
func (t *tracer) tell(pid int, regs *unix.PtraceRegs) error {
	now := time.Now().Add(time.Duration(t.ahead) * time.Second)
	at, fraction := uintptr(regs.Rdi), uint64(now.Nanosecond())
	answer := binary.LittleEndian.AppendUint64(nil, uint64(now.Unix()))
	regs.Rax = 0
	switch regs.Orig_rax {
	case nrTime:
		regs.Rax = uint64(now.Unix())
	case nrGettimeofday:
		answer = binary.LittleEndian.AppendUint64(answer, fraction/1000)
	case nrClockGettime:
		at, answer = uintptr(regs.Rsi), binary.LittleEndian.AppendUint64(answer, fraction)
	}
	if at != 0 {
		local := []unix.Iovec{{Base: &answer[0], Len: uint64(len(answer))}}
		n, err := unix.ProcessVMWritev(pid, local, []unix.RemoteIovec{{Base: at, Len: len(answer)}}, 0)
		if err != nil || n != len(answer) {
			return err
		}
	}
	t.times++
	regs.Orig_rax = ^uint64(0)
	return unix.PtraceSetRegs(pid, regs)
}

// turn turns a list round that the kernel has just given.
func (t *tracer) turn(pid int, before *unix.PtraceRegs) error {
	var now unix.PtraceRegs
	if err := unix.PtraceGetRegs(pid, &now); err != nil || int64(now.Rax) <= 0 {
		return err
	}
	t.lists++
	return reverse(pid, uintptr(before.Rsi), int(now.Rax))
}

// reverse turns the entries of a directory round (getdents(2)).
func reverse(pid int, at uintptr, size int) error {
	b := make([]byte, size)
	if _, err := unix.PtracePeekData(pid, at, b); err != nil {
		return err
	}
	out := make([]byte, 0, size)
	var offsets [][]byte
	for rest := b; len(rest) > 0; {
		n := int(binary.LittleEndian.Uint16(rest[16:]))
		if n < 19 || n > len(rest) {
			return errors.New("directory entries")
		}
		offsets = append(offsets, rest[8:16])
		rest = rest[n:]
	}
	ends := make([]uint64, len(offsets)) // where reading goes on stays in its place
	for i, o := range offsets {
		ends[i] = binary.LittleEndian.Uint64(o)
	}
	var entries [][]byte
	for rest := b; len(rest) > 0; {
		n := int(binary.LittleEndian.Uint16(rest[16:]))
		entries = append([][]byte{rest[:n]}, entries...)
		rest = rest[n:]
	}
	for i, e := range entries {
		binary.LittleEndian.PutUint64(e[8:], ends[i])
		out = append(out, e...)
	}
	_, err := unix.PtracePokeData(pid, at, out)
	return err
}
