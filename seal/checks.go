package seal

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"lethe/boot/kmod"
	"lethe/image/layout"
)

// always are the checks that hold from the moment of sealing to the end.
func (s System) always() []Check {
	checks := []Check{
		s.secureBoot(), s.lockdown(), s.cmdline(), s.swap(), s.hibernation(), s.pstore(), s.crashKernel(),
		s.tainted(), s.modules(), s.blockDevices(), s.clock(), s.tunnelDevice(),
	}
	checks = append(checks, s.mounts()...)
	return append(checks, s.executables()...)
}

// atSealing are the checks that hold before anything else runs.
func (s System) atSealing() []Check { return []Check{s.listeners(), s.processes()} }

// is makes a check whose value must be want.
func is(name, want, got, why string) Check {
	return Check{Name: name, Want: want, Got: got, OK: got == want, Why: why}
}

// none makes a check of a list that must be empty.
func none(name string, found []string, why string) Check {
	got := "none"
	if len(found) > 0 {
		slices.Sort(found)
		got = strings.Join(found[:min(len(found), 10)], ", ")
	}
	return is(name, "none", got, why)
}

// read returns a file's text without space around it, or why it cannot be read.
func (s System) read(p string) string {
	b, err := os.ReadFile(s.path(p))
	if err != nil {
		return "unreadable: " + reason(err)
	}
	return strings.TrimSpace(string(b))
}

// secureBoot asks for what the kernel's EFI stub found (boot_params.secure_boot, Linux,
// Documentation/arch/x86/zero-page.rst: offset 0x1ec, 3 is enabled): no firmware variables have to be mounted for it.
func (s System) secureBoot() Check {
	got := "unreadable"
	if b, err := os.ReadFile(s.path("sys/kernel/boot_params/data")); err == nil && len(b) > 0x1ec {
		modes := []string{"not asked for", "unknown", "off", "on"}
		got = modes[min(int(b[0x1ec]), 3)]
		if b[0x1ec] > 3 {
			got = "unknown"
		}
	}
	return is("secure boot", "on", got, "the firmware has verified the boot image, and that the root's digest")
}

// lockdown reads the mode in force: the word in brackets (kernel_lockdown(7)).
func (s System) lockdown() Check {
	got := s.read("sys/kernel/security/lockdown")
	if _, rest, ok := strings.Cut(got, "["); ok {
		got, _, _ = strings.Cut(rest, "]")
	}
	c := is("lockdown", "integrity", got, "not even root changes the running kernel")
	c.OK = c.OK || got == "confidentiality"
	return c
}

// cmdline compares the kernel's command line with the one that was signed.
func (s System) cmdline() Check {
	return is("command line", s.read(filepath.Join(layout.RootModules, layout.Cmdline)), s.read("proc/cmdline"), "nobody added to what was signed")
}

// memory asks the kernel's log whether memory was cleared when it was found at boot, and is
// when it is given back (init_on_free): what a run before this one left is gone by now.
func (s System) memory() Check {
	want := "heap alloc:on, heap free:on"
	return is("cleared memory", want, kernelSaid(s.path("dev/kmsg"), "mem auto-init:", want), "what an earlier run left in memory is gone")
}

// kernelSaid returns want when the kernel's log (printk, Linux, Documentation/ABI/testing/dev-kmsg) has a record with both texts.
func kernelSaid(path, about, want string) string {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return "unreadable: " + err.Error()
	}
	defer unix.Close(fd)
	got := "not said"
	for b := make([]byte, 8<<10); ; {
		n, err := unix.Read(fd, b)
		if err == unix.EPIPE || err == unix.EINTR { // records were overwritten: the next one is there
			continue
		}
		if err != nil || n <= 0 {
			return got
		}
		if bytes.Contains(b[:n], []byte(about)) {
			if bytes.Contains(b[:n], []byte(want)) {
				return want
			}
			_, text, _ := strings.Cut(string(b[:n]), about)
			if strings.Contains(text, "heap") {
				got = strings.TrimSpace(strings.SplitN(text, "\n", 2)[0])
			}
		}
	}
}

func (s System) swap() Check {
	var found []string
	lines := strings.Split(s.read("proc/swaps"), "\n")
	for _, line := range lines[1:] {
		found = append(found, strings.Fields(line + " ?")[0])
	}
	if !strings.HasPrefix(lines[0], "Filename") {
		found = append(found, lines[0])
	}
	return none("swap", found, "memory does not leave memory")
}

func (s System) hibernation() Check {
	got := s.read("sys/power/disk")
	if strings.HasPrefix(got, "unreadable") { // built without
		got = "[disabled]"
	}
	return is("hibernation", "[disabled]", got, "memory is not written to a disk")
}

func (s System) pstore() Check {
	got := s.read("sys/module/pstore/parameters/backend")
	if got == "(null)" || got == "none" || got == "" || strings.HasPrefix(got, "unreadable") {
		got = "none"
	}
	return is("pstore", "none", got, "a crash leaves nothing in the firmware")
}

func (s System) crashKernel() Check {
	var found []string
	for _, name := range []string{"kexec_loaded", "kexec_crash_loaded", "kexec_crash_size", "kexec/loaded", "kexec/crash_loaded", "kexec/crash_size"} {
		if got := s.read("sys/kernel/" + name); got != "0" && !strings.HasPrefix(got, "unreadable") {
			found = append(found, name+" "+got)
		}
	}
	return none("crash kernel", found, "no other kernel waits for the memory of this one")
}

// taints are the bits of kernel.tainted that say that foreign code is in the kernel (Linux,
// Documentation/admin-guide/tainted-kernels.rst): forced, out of tree, unsigned, live patched, …
const taints = 1<<0 | 1<<1 | 1<<3 | 1<<10 | 1<<12 | 1<<13 | 1<<15

func (s System) tainted() Check {
	got := s.read("proc/sys/kernel/tainted")
	var bits uint64
	if _, err := fmt.Sscanf(got, "%d", &bits); err == nil {
		got = fmt.Sprint(bits & taints)
	}
	return is("foreign code in the kernel", "0", got, "modules are the distribution's, signed and not forced")
}

// modules compares what is loaded with what the image has for it.
func (s System) modules() Check {
	const name, why = "other modules", "what is loaded comes from the image"
	loaded, err := kmod.Loaded(s.path("proc/modules"))
	if err != nil {
		return is(name, "none", reason(err), why)
	}
	dir, err := kmod.Open(s.path(layout.RootModules))
	if err != nil {
		return is(name, "none", reason(err), why)
	}
	ours := append(dir.Names(), "loop", "squashfs", "overlay")
	var other []string
	for _, m := range loaded {
		if !slices.Contains(ours, m.Name) {
			other = append(other, m.Name)
		}
	}
	return none(name, other, why)
}

// blockDevices wants one loop device, read-only, on sealed memory. Loop devices without a file have no size.
func (s System) blockDevices() Check {
	var found []string
	entries, err := os.ReadDir(s.path("sys/class/block"))
	if err != nil {
		found = append(found, reason(err))
	}
	for _, e := range entries {
		dir := filepath.Join("sys/class/block", e.Name())
		if strings.HasPrefix(e.Name(), "loop") && s.read(filepath.Join(dir, "size")) == "0" {
			continue
		}
		what := e.Name()
		if strings.HasPrefix(what, "loop") && s.read(filepath.Join(dir, "ro")) == "1" && strings.HasPrefix(s.read(filepath.Join(dir, "loop/backing_file")), "/memfd:lethe-root") {
			what = "the root in memory"
		}
		found = append(found, what)
	}
	return is("block devices", "the root in memory", strings.Join(found, ", "), "there is nothing to write to")
}

// clock wants a clock of the machine's, not the timer interrupt, which a hypervisor stretches.
func (s System) clock() Check {
	got := s.read("sys/devices/system/clocksource/clocksource0/current_clocksource")
	c := Check{Name: "clock", Want: "a clock of the machine's", Got: got, Why: "expiry dates are meant"}
	c.OK = got != "" && !strings.Contains(got, "jiffies") && !strings.HasPrefix(got, "unreadable")
	return c
}

// tunnels is the device by which tunnel devices are made and opened (Linux, Documentation/networking/tuntap.rst).
// Who may use which tunnel the kernel checks for each, so everybody may open it: the agent and OpenVPN are not root.
const tunnels = "dev/net/tun"

func (s System) tunnelDevice() Check {
	got := "none"
	if fi, err := os.Stat(s.path(tunnels)); err == nil {
		got = fmt.Sprintf("%04o", fi.Mode().Perm())
	}
	return is("tunnel device", "0666", got, "the agent and its daemons are not root")
}

// listeners wants no socket that takes anything from the network.
func (s System) listeners() Check {
	var found []string
	for _, name := range []string{"tcp", "tcp6", "udp", "udp6", "udplite", "udplite6", "raw", "raw6", "icmp", "icmp6", "packet"} {
		text := s.read("proc/net/" + name)
		if strings.HasPrefix(text, "unreadable") { // the kernel has no such protocol
			continue
		}
		for _, line := range strings.Split(text, "\n")[1:] {
			f := strings.Fields(line)
			if strings.HasPrefix(name, "tcp") && (len(f) < 4 || f[3] != "0A") { // TCP_LISTEN, include/net/tcp_states.h
				continue
			}
			found = append(found, name+" "+strings.Join(f[min(1, len(f)):min(2, len(f))], ""))
		}
	}
	return none("listeners", found, "nothing is heard before the firewall is closed")
}

// processes wants nobody but systemd and this program.
func (s System) processes() Check {
	var found []string
	paths, _ := filepath.Glob(s.path("proc/[0-9]*/exe"))
	for _, p := range paths {
		exe, err := os.Readlink(p)
		if err != nil { // the kernel's own, or gone
			continue
		}
		if !slices.Contains([]string{"/" + layout.Manager, "/" + layout.Manager + "-executor", "/usr/bin/lethe-seal"}, exe) {
			found = append(found, exe)
		}
	}
	return none("other processes", found, "nothing was started before the system is closed")
}

// forbidden are names of programs that give somebody a way in, or change the system.
var forbidden = strings.Fields(`sh bash dash busybox toybox zsh login agetty getty su sudo sshd telnetd dropbear
	python3 perl ruby lua tclsh awk mawk gdb strace tcpdump modprobe insmod kmod depmod kexec mount umount
	dpkg apt apt-get rpm gcc cc ld as make ip tc bpftool swapon crash nc socat curl wget dbus-daemon systemd-resolved systemd-journald`)

// executables looks at every file of the root.
func (s System) executables() []Check {
	var privileged, ways []string
	var here unix.Stat_t
	err := unix.Lstat(s.path("/"), &here)
	if err == nil {
		err = filepath.WalkDir(s.path("/"), func(path string, e fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			var st unix.Stat_t
			if err := unix.Lstat(path, &st); err != nil {
				return err
			}
			if e.IsDir() {
				if st.Dev != here.Dev { // something is mounted there; directories of an OverlayFS have its device number
					return fs.SkipDir
				}
				return nil
			}
			rel, _ := filepath.Rel(s.path("/"), path)
			if e.Type().IsRegular() {
				if n, err := unix.Lgetxattr(path, "security.capability", nil); st.Mode&(unix.S_ISUID|unix.S_ISGID) != 0 || err == nil && n > 0 {
					privileged = append(privileged, rel)
				}
			}
			if slices.Contains(forbidden, e.Name()) && (st.Mode&0o111 != 0) {
				ways = append(ways, rel)
			}
			return nil
		})
	}
	if err != nil {
		privileged = append(privileged, reason(err))
	}
	return []Check{
		none("privileged files", privileged, "no program gives its user more rights: no set-user-ID, no set-group-ID, no capabilities"),
		none("ways in", ways, "no shell, no interpreter, no login, no tool that changes the system"),
	}
}
