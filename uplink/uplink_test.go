package uplink_test

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"

	"lethe/uplink"
)

// TestMain runs the tests in a network namespace of their own.
func TestMain(m *testing.M) {
	if os.Getenv("LETHE_UPLINK") != "" {
		os.Exit(m.Run())
	}
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "error: network namespaces need root")
		os.Exit(1)
	}
	c := exec.Command("/proc/self/exe", os.Args[1:]...)
	c.Env = append(os.Environ(), "LETHE_UPLINK=1")
	c.Stdin, c.Stdout, c.Stderr = os.Stdin, os.Stdout, os.Stderr
	c.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if err := c.Run(); err != nil {
		os.Exit(1)
	}
}

func ip(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command("ip", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("ip %s: %v: %s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// on returns the addresses of an interface that are not link-local, sorted.
func on(t *testing.T, device string) string {
	t.Helper()
	i, err := net.InterfaceByName(device)
	if err != nil {
		t.Fatal(err)
	}
	list, err := i.Addrs()
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, a := range list {
		if n := a.(*net.IPNet); !n.IP.IsLinkLocalUnicast() {
			all = append(all, n.String())
		}
	}
	slices.Sort(all)
	return strings.Join(all, " ")
}

func addrs(list ...string) (all []netip.Addr) {
	for _, s := range list {
		all = append(all, netip.MustParseAddr(s))
	}
	return all
}

func TestSync(t *testing.T) {
	ip(t, "link", "add", "eth0", "type", "veth", "peer", "name", "far0")
	ip(t, "link", "add", "eth1", "type", "veth", "peer", "name", "far1")
	ip(t, "addr", "add", "198.51.100.7/24", "dev", "eth0")
	ip(t, "addr", "add", "2001:db8::7/64", "dev", "eth0", "nodad")
	ip(t, "addr", "add", "192.0.2.1/32", "dev", "eth1")
	for _, d := range []string{"lo", "eth0", "far0", "eth1", "far1"} {
		ip(t, "link", "set", d, "up")
	}
	devices := []string{"eth0", "eth1"}
	for _, c := range []struct {
		name        string
		want        []netip.Addr
		eth0, eth1_ string
	}{
		{"nothing", nil, "198.51.100.7/24 2001:db8::7/64", "192.0.2.1/32"},
		{"what is there, on either", addrs("198.51.100.7", "2001:db8::7", "192.0.2.1"), "198.51.100.7/24 2001:db8::7/64", "192.0.2.1/32"},
		{"entry and exit", addrs("198.51.100.7", "203.0.113.1", "203.0.113.2", "2001:db8:1::1", "2001:db8:1::1"),
			"198.51.100.7/24 2001:db8:1::1/128 2001:db8::7/64 203.0.113.1/32 203.0.113.2/32", "192.0.2.1/32"},
		{"again", addrs("203.0.113.1", "203.0.113.2", "2001:db8:1::1"),
			"198.51.100.7/24 2001:db8:1::1/128 2001:db8::7/64 203.0.113.1/32 203.0.113.2/32", "192.0.2.1/32"},
		{"others", addrs("203.0.113.2", "203.0.113.3", "2001:db8:1::2"),
			"198.51.100.7/24 2001:db8:1::2/128 2001:db8::7/64 203.0.113.2/32 203.0.113.3/32", "192.0.2.1/32"},
		{"the end", nil, "198.51.100.7/24 2001:db8::7/64", "192.0.2.1/32"},
	} {
		if err := uplink.Sync(devices, c.want); err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		if got0, got1 := on(t, "eth0"), on(t, "eth1"); got0 != c.eth0 || got1 != c.eth1_ {
			t.Errorf("%s: got %q and %q, want %q and %q", c.name, got0, got1, c.eth0, c.eth1_)
		}
	}

	// An added IPv6 address answers at once, and is the source of nothing.
	if err := uplink.Sync(devices, addrs("2001:db8:1::1", "203.0.113.1")); err != nil {
		t.Fatal(err)
	}
	_, line, _ := strings.Cut(ip(t, "-6", "addr", "show", "dev", "eth0"), "2001:db8:1::1/128 ")
	line, _, _ = strings.Cut(line, "\n")
	if !strings.Contains(line, "nodad") || !strings.Contains(line, "deprecated") || strings.Contains(line, "tentative") {
		t.Errorf("the kernel says %q", line)
	}
	for _, to := range []string{"2001:db8::99", "198.51.100.99"} {
		if out := ip(t, "route", "get", to); !strings.Contains(out, "src 2001:db8::7 ") && !strings.Contains(out, "src 198.51.100.7 ") {
			t.Errorf("the way to %s: %s", to, out)
		}
	}
	// What the machine had and lost comes back as ours, and goes with the rest.
	ip(t, "addr", "del", "192.0.2.1/32", "dev", "eth1")
	if err := uplink.Sync(devices, addrs("192.0.2.1")); err != nil {
		t.Fatal(err)
	}
	if got := on(t, "eth0"); got != "192.0.2.1/32 198.51.100.7/24 2001:db8::7/64" {
		t.Errorf("got %q", got)
	}

	if err := uplink.Sync([]string{"eth0", "eth7"}, nil); err == nil {
		t.Error("an interface that is not there")
	}
	// One impossible address does not keep the others away.
	if err := uplink.Sync(devices, []netip.Addr{netip.MustParseAddr("ff02::1"), netip.MustParseAddr("203.0.113.9")}); err == nil {
		t.Error("a multicast address was added")
	}
	if got := on(t, "eth0"); got != "198.51.100.7/24 2001:db8::7/64 203.0.113.9/32" {
		t.Errorf("got %q", got)
	}
}

// FuzzParse reads addresses as no kernel would tell them.
func FuzzParse(f *testing.F) {
	head := []byte{2, 32, 0, 0, 1, 0, 0, 0}
	f.Add(append(head, 8, 0, 1, 0, 192, 0, 2, 1, 5, 0, 11, 0, 76, 0, 0, 0))
	f.Add(append(head, 8, 0, 2, 0, 192, 0, 2, 1, 9, 0, 3, 0, 'e', 't', 'h', '0', 0, 0, 0, 0))
	f.Add(append(head, 255, 255, 1, 0))
	f.Add([]byte{2})
	f.Fuzz(func(t *testing.T, b []byte) {
		if a, ours, ok := uplink.Parse(b); ok && !a.IsValid() || ours && len(b) < len(head)+5 {
			t.Errorf("got %v, %t, %t", a, ours, ok)
		}
	})
}
