package boot

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// shutdownName is the program's name when a run ends.
const shutdownName = "shutdown"

// keepShutdown puts this program where systemd looks for one to go back to when everything has ended
// (bootup(7), "The Initrd"): DIR/shutdown, in a file system of its own, read-only.
func keepShutdown(dir, self string) error {
	program, err := os.ReadFile(self)
	if err != nil {
		return err
	}
	steps := []func() error{mount{"tmpfs", "tmpfs", dir, unix.MS_NOSUID | unix.MS_NODEV, "size=16m,nr_inodes=64,mode=0755"}.mount}
	for _, d := range []string{"dev", "proc", "sys", "run", "oldroot"} {
		steps = append(steps, func() error { return os.Mkdir(filepath.Join(dir, d), 0o755) })
	}
	return inOrder(append(steps,
		func() error { return os.WriteFile(filepath.Join(dir, shutdownName), program, 0o700) },
		func() error {
			return naming("close "+dir, unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV, ""))
		})...)
}

// Shutdown ends a run. systemd-shutdown has ended services and what it could, has made the file system
// of [keepShutdown] the root, with the run's own at /oldroot, and has become this program; args[0] is what
// it was asked for: "poweroff", "reboot", … Whatever is left of the run in memory is given back, and the kernel clears what is given
// back (init_on_free). It does not return, and nothing that fails here keeps the machine from ending.
func (m *Machine) Shutdown(args []string) {
	cmd := unix.LINUX_REBOOT_CMD_RESTART
	if len(args) > 0 && (args[0] == "poweroff" || args[0] == "halt") {
		cmd = unix.LINUX_REBOOT_CMD_POWER_OFF
	}
	_ = m.guard(func() error {
		m.say = openConsole("/dev", "/sys")
		closeInherited("/proc/self/fd")
		killAll()
		forgetNetwork()
		left := unmountAll("/proc/self/mountinfo")
		_ = write(m.caches, "3")
		if len(left) > 0 {
			m.say.line("still mounted: %s", strings.Join(left, ", "))
		}
		m.say.line("memory given back")
		return nil
	})
	m.end(cmd, nil)
}

// closeInherited closes what this process still holds of the one that it was before: files in memory
// live as long as somebody has them open.
func closeInherited(dir string) {
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		fd, err := strconv.Atoi(e.Name())
		to, _ := os.Readlink(filepath.Join(dir, e.Name()))
		if err == nil && fd > 2 && !strings.HasPrefix(to, "anon_inode:[event") && !strings.HasPrefix(to, "/dev/") { // those are Go's own, and the console
			_ = unix.Close(fd)
		}
	}
}

// killAll ends every other process and waits for them.
func killAll() {
	_ = unix.Kill(-1, unix.SIGKILL)
	for {
		if _, err := unix.Wait4(-1, nil, 0, nil); err != nil && err != unix.EINTR {
			return
		}
	}
}

// unmountAll unmounts what is mounted, the last first, but for the root and what this program needs. What is in
// use is taken out of sight; it is freed with its last user. The first element of a pair of
// mounts on one place is reached in the next round.
func unmountAll(mountinfo string) (left []string) {
	for range 8 {
		b, err := os.ReadFile(mountinfo)
		if err != nil {
			return []string{err.Error()}
		}
		left = nil
		lines := strings.Split(strings.TrimSpace(string(b)), "\n")
		for _, line := range slices.Backward(lines) {
			f := strings.Fields(line)
			if len(f) < 5 || f[4] == "/" || f[4] == "/proc" || f[4] == "/dev" || f[4] == "/sys" {
				continue
			}
			at := unescape(f[4])
			if unix.Unmount(at, 0) != nil && unix.Unmount(at, unix.MNT_DETACH) != nil {
				left = append(left, at)
			}
		}
		if len(left) == 0 {
			break
		}
	}
	return left
}

// unescape undoes the octal escapes of proc_pid_mountinfo(5).
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}
