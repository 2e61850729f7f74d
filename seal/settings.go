package seal

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// setting is one value of the running kernel: written, and read back.
type setting struct {
	path  string // from the root; ALL stands for all, default, and every interface that is there
	value string
	why   string
	// maybe: a kernel that was built without what the file is for has no such file.
	maybe bool
	// first: it holds until the agent decides otherwise, and is not looked at later.
	first bool
}

const (
	kernel = "proc/sys/kernel/"
	vm     = "proc/sys/vm/"
	files  = "proc/sys/fs/"
	net    = "proc/sys/net/"
	ip4    = net + "ipv4/conf/ALL/"
	ip6    = net + "ipv6/conf/ALL/"
)

// settings are all values, in the order in which they are written (Linux,
// Documentation/admin-guide/sysctl and Documentation/networking/ip-sysctl.rst). Package firewall sets those of a router again,
// equal where both have one, and more when it starts.
var settings = []setting{
	// Memory must not reach anything that lasts.
	{path: kernel + "core_pattern", value: "/dev/null/core", why: "a core dump is a process's memory in a file; nothing can be created below a device"},
	{path: kernel + "core_uses_pid", value: "0", why: "nothing is added to that name"},
	{path: kernel + "core_pipe_limit", value: "0", why: "no program waits for a dump"},
	{path: files + "suid_dumpable", value: "0", why: "nothing is dumped of a program that changed its user"},
	{path: kernel + "kexec_load_disabled", value: "1", why: "no other kernel starts over the memory of this one"},
	{path: vm + "swappiness", value: "0", why: "there is no swap, and nothing is looked for to put there"},
	{path: "sys/module/zswap/parameters/enabled", value: "N", why: "nor a compressed one", maybe: true},
	{path: "sys/kernel/mm/ksm/run", value: "0", why: "equal pages of two programs stay two, so that neither learns of the other", maybe: true},

	// The kernel log holds as little as possible, and nobody reads it.
	{path: kernel + "printk", value: "0 4 0 0", why: "the console says nothing, in a panic neither: at level 0 console_verbose() does not raise it"},
	{path: kernel + "printk_devkmsg", value: "off", why: "programs write nothing into the kernel log"},
	{path: kernel + "dmesg_restrict", value: "1", why: "programs do not read it"},
	{path: kernel + "kptr_restrict", value: "2", why: "addresses of the kernel are shown to nobody"},
	{path: kernel + "print-fatal-signals", value: "0", why: "registers of a program that crashes are not logged"},
	{path: "proc/sys/debug/exception-trace", value: "0", why: "nor its name, number and addresses"},
	{path: kernel + "seccomp/actions_logged", value: "", why: "a refused system call is not logged"},
	{path: kernel + "task_delayacct", value: "0", why: "no times are kept of programs", maybe: true},
	{path: kernel + "sched_schedstats", value: "0", why: "the same", maybe: true},
	{path: kernel + "bpf_stats_enabled", value: "0", why: "the same", maybe: true},

	// What broke into a service finds no further way.
	{path: kernel + "yama/ptrace_scope", value: "3", why: "no program reads or steers another, and nobody can change that"},
	{path: kernel + "unprivileged_bpf_disabled", value: "1", why: "no programs in the kernel without privilege, and nobody can change that"},
	{path: net + "core/bpf_jit_harden", value: "2", why: "constants in such programs are no code"},
	{path: kernel + "perf_event_paranoid", value: "3", why: "no measuring of other programs"},
	{path: kernel + "io_uring_disabled", value: "2", why: "nothing here uses it, and filters of system calls do not see through it", maybe: true},
	{path: vm + "unprivileged_userfaultfd", value: "0", why: "nobody stops the kernel in the middle of reading memory", maybe: true},
	{path: vm + "memfd_noexec", value: "2", why: "memory without a name is never a program", maybe: true},
	{path: vm + "mmap_min_addr", value: "65536", why: "a null pointer leads nowhere"},
	{path: vm + "mmap_rnd_bits", value: "32", why: "addresses are as random as they can be"},
	{path: kernel + "randomize_va_space", value: "2", why: "the same"},
	{path: "proc/sys/user/max_user_namespaces", value: "0", why: "nobody is root in a corner of the kernel"},
	{path: "proc/sys/dev/tty/ldisc_autoload", value: "0", why: "a terminal takes no protocol of its own"},
	{path: "proc/sys/dev/tty/legacy_tiocsti", value: "0", why: "a program types for no other", maybe: true},
	{path: files + "protected_hardlinks", value: "1", why: "no links to others' files"},
	{path: files + "protected_symlinks", value: "1", why: "the same in directories for everybody"},
	{path: files + "protected_fifos", value: "2", why: "nobody waits with a FIFO where another makes a file"},
	{path: files + "protected_regular", value: "2", why: "the same with a file"},
	{path: kernel + "sysrq", value: "0", why: "a keyboard or a serial line commands nothing"},
	{path: kernel + "ctrl-alt-del", value: "0", why: "the same: systemd is asked, which has no answer"},
	{path: kernel + "panic", value: "10", why: "a kernel that stopped does not stand there with its memory"},
	{path: kernel + "panic_on_oops", value: "1", why: "one that went wrong is not trusted with traffic"},
	{path: kernel + "usermodehelper/bset", value: "0 0", why: "what the kernel starts by itself, if it did, may do nothing"},
	{path: kernel + "usermodehelper/inheritable", value: "0 0", why: "the same"},

	// The network, before the first link is up.
	{path: net + "ipv4/ip_forward", value: "0", why: "no router before there is a firewall", first: true},
	{path: net + "ipv6/conf/ALL/forwarding", value: "0", why: "the same", first: true},
	{path: net + "ipv4/tcp_no_metrics_save", value: "1", why: "nothing is remembered of a peer when its connection ends"},
	{path: net + "ipv4/tcp_fastopen", value: "0", why: "no cookies of peers"},
	{path: net + "ipv4/tcp_syncookies", value: "1", why: "a flood fills no memory"},
	{path: net + "ipv4/tcp_rfc1337", value: "1", why: "old segments end no connection"},
	{path: net + "ipv4/tcp_timestamps", value: "1", why: "counted from another number with each peer: they say nothing of how long the machine is up"},
	{path: net + "ipv4/route/mtu_expires", value: "60", why: "the way to a peer with a small MTU is forgotten after a minute, not ten", maybe: true},
	{path: net + "ipv6/route/mtu_expires", value: "60", why: "the same", maybe: true},
	{path: net + "ipv4/icmp_echo_ignore_broadcasts", value: "1", why: "no amplifier"},
	{path: net + "ipv4/icmp_ignore_bogus_error_responses", value: "1", why: "wrong answers to broadcasts would be logged, with addresses"},
	{path: ip4 + "log_martians", value: "0", why: "packets from impossible addresses would be logged, with addresses"},
	{path: ip4 + "rp_filter", value: "1", why: "what cannot be answered the way it came is not taken"},
	{path: ip4 + "accept_redirects", value: "0", why: "nobody outside tells where to send"},
	{path: ip4 + "secure_redirects", value: "0", why: "the same for gateways"},
	{path: ip4 + "send_redirects", value: "0", why: "and nobody is told"},
	{path: ip4 + "accept_source_route", value: "0", why: "senders choose no way"},
	{path: ip4 + "route_localnet", value: "0", why: "127.0.0.0/8 stays inside"},
	{path: ip4 + "accept_local", value: "0", why: "our own addresses do not come from outside"},
	{path: ip4 + "arp_ignore", value: "1", why: "ARP answers for the interface's own addresses only: nobody outside can ask for tunnel addresses"},
	{path: ip4 + "arp_announce", value: "2", why: "and asks from them only"},
	{path: ip4 + "proxy_arp", value: "0", why: "the same"},
	{path: ip4 + "drop_unicast_in_l2_multicast", value: "1", why: "one frame does not reach every host with an address of one"},
	{path: ip6 + "accept_redirects", value: "0", why: "as with IPv4"},
	{path: ip6 + "accept_source_route", value: "0", why: "as with IPv4"},
	{path: ip6 + "accept_ra", value: "0", why: "routers speak to systemd-networkd, not to the kernel"},
	{path: ip6 + "autoconf", value: "0", why: "the same"},
	{path: ip6 + "proxy_ndp", value: "0", why: "as with ARP"},
	{path: ip6 + "drop_unicast_in_l2_multicast", value: "1", why: "as with IPv4"},

	// The last ones: nothing can be added afterwards.
	{path: "sys/bus/pci/drivers_autoprobe", value: "0", why: "a device that is plugged in, or found again, gets no driver"},
	{path: kernel + "modprobe", value: "", why: "the kernel asks nobody for a module"},
	{path: kernel + "modules_disabled", value: "1", why: "none can be loaded, by nobody, until the next boot"},
}

// paths returns the files that a setting means.
func (s setting) paths(root string) []string {
	path := filepath.Join(root, s.path)
	before, after, many := strings.Cut(path, "ALL")
	if !many {
		return []string{path}
	}
	// Later interfaces begin as copies of default.
	paths := []string{before + "all" + after, before + "default" + after}
	entries, _ := os.ReadDir(before)
	for _, e := range entries {
		if e.Name() != "all" && e.Name() != "default" {
			paths = append(paths, before+e.Name()+after)
		}
	}
	return paths
}

// apply writes the setting. What did not take shows when it is read back.
func (s setting) apply(root string) {
	for _, path := range s.paths(root) {
		if f, err := os.OpenFile(path, os.O_WRONLY|os.O_TRUNC, 0); err == nil {
			_, _ = f.WriteString(s.value + "\n")
			_ = f.Close()
		}
	}
}

// check reads the setting back. When one of several files is not as it must be, that one is told.
func (s setting) check(root string) Check {
	c := Check{Name: s.path, Want: s.value, Got: s.value, OK: true, Why: s.why}
	for i, path := range s.paths(root) {
		got, err := os.ReadFile(path)
		value := strings.Join(strings.Fields(string(got)), " ")
		switch {
		case os.IsNotExist(err) && (s.maybe || i > 1): // an interface that went meanwhile, or has no such value: lo
			continue
		case err != nil:
			value = fmt.Sprintf("unreadable: %s", reason(err))
		}
		if err != nil || value != s.value {
			c.Name, _ = filepath.Rel(root, path)
			c.Got, c.OK = value, false
			return c
		}
	}
	return c
}
