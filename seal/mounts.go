package seal

import (
	"fmt"
	"os"
	"slices"
	"strings"
)

// allowed is what may be mounted where, with the options that it must have at least (proc_pid_mountinfo(5)).
var allowed = []struct{ at, kind, options string }{
	{"/", "overlay", "nosuid,nodev"},
	{"/dev", "devtmpfs", "nosuid,noexec"},
	{"/dev/pts", "devpts", "nosuid,noexec"},
	{"/dev/shm", "tmpfs", "nosuid,nodev,noexec"},
	{"/proc", "proc", "nosuid,nodev,noexec"},
	{"/sys", "sysfs", "nosuid,nodev,noexec"},
	{"/sys/kernel/security", "securityfs", "nosuid,nodev,noexec"},
	{"/sys/fs/cgroup", "cgroup2", "nosuid,nodev,noexec"},
	{"/run", "tmpfs", "nosuid,nodev,noexec"},
	{"/run/initramfs", "tmpfs", "ro,nosuid,nodev"}, // the program for the end of the run is executed from here
	{"/run/credentials/*", "tmpfs", "ro,nosuid,nodev,noexec"},
	{"/run/credentials/*", "ramfs", "ro,nosuid,nodev,noexec"},
}

// unwanted are file systems that systemd mounts if the kernel has them.
var unwanted = []string{"sys/fs/pstore", "sys/fs/bpf", "sys/firmware/efi/efivars", "sys/kernel/debug", "sys/kernel/tracing",
	"sys/kernel/config", "sys/fs/fuse/connections", "dev/mqueue", "dev/hugepages", "proc/sys/fs/binfmt_misc"}

// mounted is a line of mountinfo, as far as it matters here.
type mounted struct {
	at, kind string
	options  []string
}

// parseMounts reads /proc/PID/mountinfo.
func parseMounts(text string) ([]mounted, error) {
	var all []mounted
	for i, line := range strings.Split(strings.TrimSuffix(text, "\n"), "\n") {
		mount, file, ok := strings.Cut(line, " - ")
		f, kind := strings.Fields(mount), strings.Fields(file)
		if !ok || len(f) < 6 || len(kind) < 2 {
			return nil, fmt.Errorf("line %d of the mounts makes no sense", i+1)
		}
		all = append(all, mounted{at: f[4], kind: kind[0], options: strings.Split(f[5], ",")})
	}
	return all, nil
}

// fits reports whether something may be mounted as it is.
func (m mounted) fits() bool {
	for _, a := range allowed {
		at, prefix := strings.CutSuffix(a.at, "*")
		if m.kind != a.kind || m.at != a.at && !(prefix && strings.HasPrefix(m.at, at)) {
			continue
		}
		missing := slices.DeleteFunc(strings.Split(a.options, ","), func(o string) bool { return slices.Contains(m.options, o) })
		return len(missing) == 0
	}
	return false
}

// mounts compares what is mounted with the list, and wants the root to be an overlay.
func (s System) mounts() []Check {
	const name, why = "other mounts", "files are where they are expected, with less allowed than usual"
	b, err := os.ReadFile(s.path("proc/1/mountinfo"))
	if err != nil {
		return []Check{is(name, "none", reason(err), why)}
	}
	all, err := parseMounts(string(b))
	if err != nil {
		return []Check{is(name, "none", err.Error(), why)}
	}
	var other []string
	root := "something else"
	for _, m := range all {
		if !m.fits() {
			other = append(other, fmt.Sprintf("%s (%s %s)", m.at, m.kind, strings.Join(m.options, ",")))
		}
		if m.at == "/" {
			root = m.kind
		}
	}
	return []Check{
		none(name, other, why),
		is("root", "overlay", root, "what is written goes into a bounded tmpfs over the verified, read-only root"),
	}
}
