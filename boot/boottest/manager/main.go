// Command manager stands in for systemd in tests: it says on the console what it finds, does what a
// file in its root asks for, and ends the machine.
//
//	seal    run lethe-seal and say what it found
//	plant   leave marks in all kinds of memory
//	wait    wait until somebody writes to the second serial line
//	reboot  end as systemd-shutdown does, with the program in /run/initramfs
package main

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

func main() {
	console, err := os.OpenFile("/dev/console", os.O_WRONLY|unix.O_NOCTTY, 0)
	if err != nil {
		_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	}
	m := manager{console}
	if len(os.Args) > 1 { // a process of this program
		m.hold()
	}
	m.look()
	wish, _ := os.ReadFile("/etc/wish")
	for _, w := range strings.Fields(string(wish)) {
		switch w {
		case "seal":
			m.seal()
		case "plant":
			m.plant()
		case "wait":
			m.wait()
		case "reboot":
			m.reboot()
		}
	}
	m.say("end")
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

type manager struct{ console io.Writer }

func (m manager) say(format string, args ...any) {
	fmt.Fprintf(m.console, "manager: "+format+"\r\n", args...)
}

func (m manager) file(path string) {
	b, err := os.ReadFile(path)
	if err != nil {
		m.say("%v", err)
	}
	for line := range strings.SplitSeq(strings.TrimSpace(string(b)), "\n") {
		m.say("%s: %s", path, line)
	}
}

func text(path string) string {
	b, _ := os.ReadFile(path)
	return strings.TrimSpace(string(b))
}

func (m manager) look() {
	m.say("pid %d argv %q env %q", os.Getpid(), os.Args, os.Environ())
	for _, path := range []string{"/proc/self/mountinfo", "/proc/modules", "/etc/machine-id"} {
		m.file(path)
	}
	blocks, _ := filepath.Glob("/sys/class/block/*")
	for _, b := range blocks {
		if size := text(b + "/size"); size != "0" {
			m.say("block %s size %s ro %s backing %s", filepath.Base(b), size, text(b+"/ro"), text(b+"/loop/backing_file"))
		}
	}
	m.say("write to the root: %v", os.WriteFile("/new", []byte("x"), 0o644))
	m.say("run what was written: %v", run("/run/x"))
	_, err := os.Stat("/run/initramfs/shutdown")
	m.say("program for the end: %v", err)
}

// run copies this program somewhere and runs it there.
func run(path string) error {
	b, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		return err
	}
	defer os.Remove(path)
	if err := os.WriteFile(path, b, 0o755); err != nil {
		return err
	}
	return exec.Command(path).Start()
}

func (m manager) seal() {
	for _, f := range [][2]string{{"securityfs", "/sys/kernel/security"}, {"cgroup2", "/sys/fs/cgroup"}, {"pstore", "/sys/fs/pstore"}, {"bpf", "/sys/fs/bpf"}} {
		if err := unix.Mount(f[0], f[1], f[0], unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
			m.say("mount %s: %v", f[0], err)
		}
	}
	_ = os.WriteFile("/sys/kernel/security/lockdown", []byte("integrity"), 0)
	for _, args := range [][]string{nil, {"check"}, {"check", "--json"}, {"bogus"}} {
		c := exec.Command("/usr/bin/lethe-seal", args...)
		out, err := c.CombinedOutput()
		m.say("lethe-seal %q: %v, %d bytes", args, err, len(out))
		if len(args) < 2 {
			for line := range strings.SplitSeq(strings.TrimSpace(string(out)), "\n") {
				m.say("lethe-seal %q: %s", args, line)
			}
		}
	}
	m.say("report: %d bytes", len(text("/run/lethe/sealed.json")))
	links, _ := filepath.Glob("/sys/class/net/*")
	m.say("links %q", links)
	// What was closed is closed.
	f, err := os.Open("/usr/lib/lethe/modules/virtio_net.ko")
	if err == nil {
		err = unix.FinitModule(int(f.Fd()), "", 0)
	}
	m.say("load a module: %v", err)
	m.say("open module loading: %v", os.WriteFile("/proc/sys/kernel/modules_disabled", []byte("0"), 0))
	m.say("disable lockdown: %v", os.WriteFile("/sys/kernel/security/lockdown", []byte("none"), 0))
	_, err = unix.MemfdCreate("x", unix.MFD_EXEC)
	m.say("memory as a program: %v", err)
	// A dump of this program would land in its directory, or where core_pattern says.
	_ = os.Mkdir("/crash", 0o777)
	c := exec.Command("/proc/self/exe", "hold")
	c.Dir, c.Env = "/crash", []string{"GOTRACEBACK=crash"} // a panic ends with SIGABRT
	c.Stdin, _, _ = os.Pipe()
	_ = unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{Cur: unix.RLIM_INFINITY, Max: unix.RLIM_INFINITY})
	err = c.Start()
	if err == nil {
		_ = c.Process.Signal(unix.SIGQUIT)
		err = c.Wait()
	}
	left, _ := os.ReadDir("/crash")
	m.say("dumps: %d, %v", len(left), err)
	m.say("kernel log for programs: %v", os.WriteFile("/dev/kmsg", []byte("manager: this must not be said\n"), 0))
}

// mark fills b with a mark that is random in each run.
func mark(b []byte) []byte {
	var m [16]byte
	_, _ = rand.Read(m[:])
	for i := range b {
		b[i] = m[i%16]
	}
	return m[:]
}

// plant puts one mark into memory of many kinds and says it, in hexadecimal, which is not the mark.
func (m manager) plant() {
	b := make([]byte, 16<<20)
	what := mark(b)
	check := func(err error) {
		if err != nil {
			m.say("plant: %v", err)
		}
	}
	check(os.WriteFile("/run/marked", b[:8<<20], 0o600))
	check(os.WriteFile("/marked", b[:8<<20], 0o600))
	check(os.WriteFile("/dev/shm/marked", b[:8<<20], 0o600))
	fd, err := unix.MemfdCreate("marked", 0)
	check(err)
	_, err = unix.Write(fd, b)
	check(err)
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM, 0)
	check(err)
	_, err = unix.Write(pair[0], b[:64<<10])
	check(err)
	r, w, err := os.Pipe()
	check(err)
	_, err = w.Write(b[:64<<10])
	check(err)
	defer r.Close()
	child := exec.Command("/proc/self/exe", "hold")
	child.Stdin = bytes.NewReader(b)
	out, err := child.StdoutPipe()
	check(err)
	check(child.Start())
	_, err = out.Read(make([]byte, 1))
	check(err)
	m.say("planted %x", what)
}

func (m manager) wait() {
	line, err := os.OpenFile("/dev/ttyS1", os.O_RDONLY|unix.O_NOCTTY, 0)
	if err == nil {
		_, err = line.Read(make([]byte, 1))
	}
	m.say("go on: %v", err)
}

// hold keeps what comes until it is killed.
func (m manager) hold() {
	b, _ := io.ReadAll(os.Stdin)
	fmt.Print("x")
	for {
		_, _ = unix.Poll(nil, -1)
		b[0]++
	}
}

// reboot does what systemd-shutdown does at its end: it makes /run/initramfs the root.
func (m manager) reboot() {
	const dir = "/run/initramfs"
	fail := func(err error) {
		if err != nil {
			m.say("reboot: %v", err)
		}
	}
	fail(unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
	fail(unix.Mount(dir, dir, "", unix.MS_BIND, ""))
	for _, d := range []string{"/dev", "/proc", "/sys", "/run"} {
		fail(unix.Mount(d, dir+d, "", unix.MS_BIND, ""))
	}
	fail(os.Chdir(dir))
	fail(unix.PivotRoot(".", "oldroot"))
	fail(unix.Chroot("."))
	fail(unix.Exec("/shutdown", []string{"/shutdown", "reboot", "--timeout", "90s"}, nil))
}
