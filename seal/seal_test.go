package seal_test

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"lethe/image/layout"
	"lethe/seal"
)

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// fake is a system made of files. What booting proves of the real one (package boot's tests) is here
// turned wrong, one thing at a time.
type fake struct {
	t    *testing.T
	root string
}

func (f fake) write(name, content string) {
	f.t.Helper()
	path := filepath.Join(f.root, name)
	check(f.t, os.MkdirAll(filepath.Dir(path), 0o755))
	check(f.t, os.WriteFile(path, []byte(content), 0o644))
}

func (f fake) link(name, to string) {
	f.t.Helper()
	path := filepath.Join(f.root, name)
	check(f.t, os.MkdirAll(filepath.Dir(path), 0o755))
	check(f.t, os.Symlink(to, path))
}

func (f fake) remove(name string) {
	f.t.Helper()
	check(f.t, os.RemoveAll(filepath.Join(f.root, name)))
}

func (f fake) system() seal.System { return seal.System{Root: f.root} }

const mountinfo = `37 2 0:30 / / rw,nosuid,nodev,relatime - overlay overlay rw,lowerdir=/x
28 37 0:9 / /dev rw,nosuid,noexec,relatime shared:2 - devtmpfs devtmpfs rw,size=64k
30 37 0:26 / /proc rw,nosuid,nodev,noexec,relatime - proc proc rw,hidepid=invisible
31 37 0:26 / /run/credentials/x.service ro,nosuid,nodev,noexec - tmpfs tmpfs rw
`

// sealed returns a system that is as it must be.
func sealed(t *testing.T) fake {
	f := fake{t, t.TempDir()}
	for _, s := range seal.Settings() {
		for _, name := range []string{"all", "default", "eth0"} {
			f.write(strings.ReplaceAll(s.Path, "ALL", name), s.Value+"\n")
		}
	}
	params := make([]byte, 4096)
	params[0x1ec] = 3
	f.write("sys/kernel/boot_params/data", string(params))
	f.write("sys/kernel/security/lockdown", "none [integrity] confidentiality\n")
	f.write("proc/cmdline", "quiet init_on_free=1\n")
	f.write("usr/lib/lethe/cmdline", "quiet init_on_free=1\n")
	f.write("proc/swaps", "Filename\t\t\t\tType\t\tSize\n")
	f.write("sys/power/disk", "[disabled]\n")
	f.write("sys/module/pstore/parameters/backend", "(null)\n")
	f.write("sys/kernel/kexec_loaded", "0\n")
	f.write("proc/sys/kernel/tainted", "512\n")
	f.write("proc/modules", "loop 1 1 - Live 0x0\ntun 1 0 - Live 0x0\n")
	f.write("usr/lib/lethe/order", "tun\n")
	f.write("usr/lib/lethe/aliases", "")
	f.write("usr/lib/lethe/load", "")
	f.write("sys/class/block/loop0/size", "100\n")
	f.write("sys/class/block/loop0/ro", "1\n")
	f.write("sys/class/block/loop0/loop/backing_file", "/memfd:lethe-root (deleted)\n")
	f.write("sys/class/block/loop1/size", "0\n")
	f.write("sys/devices/system/clocksource/clocksource0/current_clocksource", "tsc\n")
	f.write("proc/1/mountinfo", mountinfo)
	f.write("usr/bin/openvpn", "")
	f.write("dev/kmsg", "6,1,0,-;mem auto-init: stack:off, heap alloc:on, heap free:on\n")
	f.write("dev/console", "")
	f.write("dev/net/tun", "")
	check(t, os.Chmod(filepath.Join(f.root, "dev/net/tun"), 0o666))
	f.write("sys/class/net/eth0/device/vendor", "")
	f.write("proc/net/tcp", "  sl  local_address rem_address   st\n   0: 0100007F:1F90 0100007F:0001 01 x\n")
	f.write("proc/net/udp", "  sl  local_address rem_address   st\n")
	f.link("proc/1/exe", "/"+layout.Manager)
	f.link("proc/2/exe", "/usr/bin/lethe-seal")
	f.write("proc/3/exe", "a thread of the kernel")
	return f
}

func failed(r seal.Report) (names []string) {
	for _, c := range r.Failed() {
		names = append(names, c.Name)
	}
	return names
}

func TestSealed(t *testing.T) {
	f := sealed(t)
	if r := f.system().Look(); !r.OK || len(r.Checks) < 80 {
		t.Errorf("%d checks; failed: %+v", len(r.Checks), r.Failed())
	}
	for _, c := range f.system().Look().Checks {
		if c.Why == "" || c.Name == "" {
			t.Errorf("a check has no name or reason: %+v", c)
		}
	}
}

// TestSettings turns each value of the table, for all interfaces and for one, and finds it.
func TestSettings(t *testing.T) {
	f := sealed(t)
	for _, s := range seal.Settings() {
		for _, which := range []string{"all", "default", "eth0"} {
			path := strings.ReplaceAll(s.Path, "ALL", which)
			if path == s.Path && which != "all" {
				break
			}
			f.write(path, "7\n")
			want := []string{path}
			if s.First {
				want = nil // the agent's choice, later
			}
			if got := failed(f.system().Look()); strings.Join(got, " ") != strings.Join(want, " ") {
				t.Errorf("%s is wrong, found: %q", path, got)
			}
			f.remove(path)
			got := failed(f.system().Look())
			if gone := which == "eth0" && strings.Contains(s.Path, "ALL"); (len(got) == 0) != (s.Maybe || s.First || gone) {
				t.Errorf("%s is missing, found: %q", path, got)
			}
			f.write(path, s.Value+"\n")
		}
	}
}

// TestSettingsOfFirewall holds that what this package sets is what package firewall sets.
func TestSettingsOfFirewall(t *testing.T) {
	source, err := os.ReadFile("../firewall/sysctl.go")
	check(t, err)
	ours := map[string]seal.Setting{}
	for _, s := range seal.Settings() {
		for _, which := range []string{"all", "default"} {
			ours[strings.ReplaceAll(s.Path, "ALL", which)] = s
		}
	}
	same := 0
	for _, m := range regexp.MustCompile(`\{"([a-z0-9_/]+)", "([^"]*)"\}`).FindAllStringSubmatch(string(source), -1) {
		path := "proc/sys/net/" + m[1]
		if !strings.Contains(m[1], "/") {
			path = "proc/sys/net/ipv4/conf/all/" + m[1]
		}
		if s, ok := ours[path]; ok && !s.First {
			same++
			if s.Value != m[2] {
				t.Errorf("%s: firewall sets %s, seal %s", path, m[2], s.Value)
			}
		}
	}
	if same < 20 {
		t.Errorf("only %d settings are in both", same)
	}
}

// TestWrong turns one thing at a time and wants exactly the check that is for it to fail.
func TestWrong(t *testing.T) {
	mode := func(name string, mode uint32) func(fake) {
		return func(f fake) {
			f.write(name, "")
			check(f.t, unix.Chmod(filepath.Join(f.root, name), mode))
		}
	}
	file := func(name, content string) func(fake) { return func(f fake) { f.write(name, content) } }
	gone := func(name string) func(fake) { return func(f fake) { f.remove(name) } }
	bytes := func(n int, last byte) string { return strings.Repeat("\x00", n) + string([]byte{last}) }
	for name, c := range map[string]struct {
		do   func(fake)
		fail string
		got  string
	}{
		"no Secure Boot":         {file("sys/kernel/boot_params/data", bytes(0x1ec, 2)), "secure boot", "off"},
		"Secure Boot unknown":    {file("sys/kernel/boot_params/data", bytes(0x1ec, 9)), "secure boot", "unknown"},
		"short parameters":       {file("sys/kernel/boot_params/data", bytes(0x1eb, 3)), "secure boot", "unreadable"},
		"no parameters":          {gone("sys/kernel/boot_params"), "secure boot", "unreadable"},
		"no lockdown":            {file("sys/kernel/security/lockdown", "[none] integrity confidentiality\n"), "lockdown", "none"},
		"lockdown unknown":       {gone("sys/kernel/security/lockdown"), "lockdown", "unreadable: no such file or directory"},
		"other command line":     {file("proc/cmdline", "quiet init_on_free=1 init=/x\n"), "command line", "quiet init_on_free=1 init=/x"},
		"swap":                   {file("proc/swaps", "Filename\n/dev/vda2 partition 1\n"), "swap", "/dev/vda2"},
		"no list of swap":        {gone("proc/swaps"), "swap", "unreadable: no such file or directory"},
		"hibernation":            {file("sys/power/disk", "[platform] shutdown\n"), "hibernation", "[platform] shutdown"},
		"pstore":                 {file("sys/module/pstore/parameters/backend", "erst\n"), "pstore", "erst"},
		"a crash kernel":         {file("sys/kernel/kexec_crash_size", "1024\n"), "crash kernel", "kexec_crash_size 1024"},
		"an unsigned module":     {file("proc/sys/kernel/tainted", "8704\n"), "foreign code in the kernel", "8192"},
		"taint unknown":          {file("proc/sys/kernel/tainted", "x\n"), "foreign code in the kernel", "x"},
		"another module":         {file("proc/modules", "usb_storage 1 0 - Live 0x0\n"), "other modules", "usb_storage"},
		"modules unreadable":     {file("proc/modules", "x\n"), "other modules", "modules: line 1 has 1 fields"},
		"no list of modules":     {gone("usr/lib/lethe/order"), "other modules", "no such file or directory"},
		"a disk":                 {file("sys/class/block/vda/size", "0\n"), "block devices", "the root in memory, vda"},
		"a writable root":        {file("sys/class/block/loop0/ro", "0\n"), "block devices", "loop0"},
		"a root on a disk":       {file("sys/class/block/loop0/loop/backing_file", "/root.img\n"), "block devices", "loop0"},
		"two roots":              {func(f fake) { f.link("sys/class/block/loop2", "loop0") }, "block devices", "the root in memory, the root in memory"},
		"no list of devices":     {gone("sys/class/block"), "block devices", "no such file or directory"},
		"the timer as a clock":   {file("sys/devices/system/clocksource/clocksource0/current_clocksource", "refined-jiffies\n"), "clock", "refined-jiffies"},
		"another mount":          {file("proc/1/mountinfo", mountinfo+"1 1 0:1 / /mnt rw,nosuid,nodev,noexec - ext4 /dev/vda rw\n"), "other mounts", "/mnt (ext4 rw,nosuid,nodev,noexec)"},
		"another file system":    {file("proc/1/mountinfo", mountinfo+"1 1 0:1 / /run rw,nosuid,nodev,noexec - ext4 /dev/vda rw\n"), "other mounts", "/run (ext4 rw,nosuid,nodev,noexec)"},
		"a mount that allows":    {file("proc/1/mountinfo", mountinfo+"1 1 0:1 / /run rw,nosuid,noexec - tmpfs tmpfs rw\n"), "other mounts", "/run (tmpfs rw,nosuid,noexec)"},
		"another root":           {file("proc/1/mountinfo", strings.ReplaceAll(mountinfo, "overlay overlay", "ext4 /dev/vda")), "other mounts", "/ (ext4 rw,nosuid,nodev,relatime)"},
		"mounts make no sense":   {file("proc/1/mountinfo", "x\n"), "other mounts", "line 1 of the mounts makes no sense"},
		"no mounts":              {gone("proc/1/mountinfo"), "other mounts", "no such file or directory"},
		"a set-user-ID program":  {mode("usr/bin/x", 0o4755), "privileged files", "usr/bin/x"},
		"a set-group-ID program": {mode("usr/bin/x", 0o2755), "privileged files", "usr/bin/x"},
		"a program with rights": {func(f fake) {
			f.write("usr/bin/x", "")
			// cap_net_raw, permitted and effective (capabilities(7), version 2)
			check(f.t, unix.Setxattr(filepath.Join(f.root, "usr/bin/x"), "security.capability", []byte("\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"), 0))
		}, "privileged files", "usr/bin/x"},
		"no tunnels":     {gone("dev/net/tun"), "tunnel device", "none"},
		"root's tunnels": {mode("dev/net/tun", 0o600), "tunnel device", "0600"},
		"a shell":        {mode("usr/bin/bash", 0o755), "ways in", "usr/bin/bash"},
		"a shell, once":  {func(f fake) { f.link("bin/sh", "/nowhere") }, "ways in", "bin/sh"},
	} {
		t.Run(name, func(t *testing.T) {
			f := sealed(t)
			c.do(f)
			r := f.system().Look()
			if got := failed(r); r.OK || len(got) == 0 || got[0] != c.fail || !strings.HasPrefix(r.Failed()[0].Got, c.got) {
				t.Errorf("got %+v, want %s: %q", r.Failed(), c.fail, c.got)
			}
		})
	}
	// These hold only before anything else runs.
	for name, c := range map[string]struct {
		do   func(fake)
		fail string
		got  string
	}{
		"a listener":         {file("proc/net/tcp6", "x\n 0: 00000000:1D13 0:0 0A x\n"), "listeners", "tcp6 00000000:1D13"},
		"a socket for UDP":   {file("proc/net/udp", "x\n 0: 00000000:0044 0:0 07 x\n"), "listeners", "udp 00000000:0044"},
		"another process":    {func(f fake) { f.link("proc/9/exe", "/usr/sbin/openvpn") }, "other processes", "/usr/sbin/openvpn"},
		"memory not cleared": {file("dev/kmsg", "mem auto-init: stack:off, heap alloc:on, heap free:off\n"), "cleared memory", "stack:off, heap alloc:on, heap free:off"},
		"nothing said of it": {file("dev/kmsg", "6,1,0,-;Linux\n"), "cleared memory", "not said"},
		"no log":             {gone("dev/kmsg"), "cleared memory", "unreadable: no such file or directory"},
		"no uplink":          {gone("sys/class/net"), "uplink", "none"},
		"no module":          {file("usr/lib/lethe/load", "tun\n"), "drivers", "module tun: "},
		"no modules":         {gone("usr/lib/lethe/aliases"), "drivers", "modules: open "},
	} {
		t.Run(name, func(t *testing.T) {
			f := sealed(t)
			c.do(f)
			r := f.system().Seal()
			if got := failed(r); r.OK || len(got) == 0 || got[0] != c.fail || !strings.HasPrefix(r.Failed()[0].Got, c.got) {
				t.Errorf("got %+v, want %s: %q", r.Failed(), c.fail, c.got)
			}
		})
	}
}

// TestSeal lets the program repair a system whose values are all wrong, and reads its report.
func TestSeal(t *testing.T) {
	f := sealed(t)
	for _, s := range seal.Settings() {
		for _, which := range []string{"all", "default", "eth0"} {
			f.write(strings.ReplaceAll(s.Path, "ALL", which), "7\n")
		}
	}
	check(t, os.Chmod(filepath.Join(f.root, "dev/net/tun"), 0o600))
	var out, errs bytes.Buffer
	if code := seal.Main(f.system(), nil, &out, &errs); code != 0 {
		t.Fatalf("code %d: %s%s", code, out.String(), errs.String())
	}
	b, err := os.ReadFile(filepath.Join(f.root, layout.Sealed))
	check(t, err)
	var r seal.Report
	check(t, json.Unmarshal(b, &r))
	if !r.OK || r.Version == "" || len(r.Checks) < 80 || !strings.HasSuffix(out.String(), " checks, 0 failed\n") {
		t.Errorf("report %+v, said %q", r, out.String())
	}
}

func TestProgram(t *testing.T) {
	f := sealed(t)
	f.write("proc/swaps", "Filename\n/dev/vda2 partition 1\n")
	for _, c := range []struct {
		args []string
		code int
		out  string
	}{
		{nil, 1, `swap: want "none", got "/dev/vda2"` + "\n\\d+ checks, 1 failed\n"},
		{[]string{"check"}, 1, `swap: want "none", got "/dev/vda2"` + "\n\\d+ checks, 1 failed\n"},
		{[]string{"check", "--json"}, 1, `(?s)\{\n  "version": .*"ok": false.*\}\n`},
		{[]string{"check", "x"}, 2, ""},
		{[]string{"--help"}, 2, ""},
	} {
		var out, errs bytes.Buffer
		if code := seal.Main(f.system(), c.args, &out, &errs); code != c.code || !regexp.MustCompile("^"+c.out+"$").MatchString(out.String()) {
			t.Errorf("%q: code %d, %s", c.args, code, out.String())
		}
	}
	if b, _ := os.ReadFile(filepath.Join(f.root, "dev/console")); !strings.Contains(string(b), `lethe: not sealed: swap: want "none"`) {
		t.Errorf("the console says %q", b)
	}
	f.remove("dev/console")
	f.remove("run")
	f.write("run", "")
	var out, errs bytes.Buffer
	if code := seal.Main(f.system(), nil, &out, &errs); code != 1 || !strings.HasPrefix(errs.String(), "error: ") {
		t.Errorf("code %d, %s: the report cannot be written", code, errs.String())
	}
}

func FuzzMounts(f *testing.F) {
	f.Add(mountinfo)
	f.Add("37 2 0:30 / / rw - overlay")
	f.Fuzz(func(t *testing.T, text string) {
		n, other, err := seal.ParseMounts(text)
		if err == nil && len(other) > n {
			t.Errorf("%d of %d do not fit", len(other), n)
		}
	})
}
