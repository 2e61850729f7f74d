package device_test

import (
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"lethe/device"
	"lethe/internal/testkit"
	"lethe/session"
)

const nested = "LETHE_DEVICE_TEST"

func TestMain(m *testing.M) {
	if os.Getenv(nested) != "" || os.Geteuid() != 0 {
		os.Exit(m.Run())
	}
	os.Exit(testkit.InNamespaces(nested, ""))
}

func namespaces(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root for network namespaces")
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// addresses returns the addresses of an interface, but for those that the kernel gives it itself.
func addresses(t *testing.T, name string) (list []string) {
	t.Helper()
	link, err := netlink.LinkByName(name)
	must(t, err)
	all, err := netlink.AddrList(link, netlink.FAMILY_ALL)
	must(t, err)
	for _, a := range all {
		if !a.IP.IsLinkLocalUnicast() {
			list = append(list, a.IPNet.String())
		}
	}
	return list
}

// TestConfigure shows that a daemon's interface has the first addresses of its networks, that customers' packets
// are routed to it, and that a second time changes nothing.
func TestConfigure(t *testing.T) {
	namespaces(t)
	must(t, testkit.Command("ip link set lo up")) // by which a machine's packets to itself go
	must(t, testkit.Command("ip link add lethe9 type veth peer name lethe9p"))
	defer func() { must(t, device.Remove("lethe9")) }()
	nets := session.SubnetsOf(9)
	first := func(p netip.Prefix) string { return netip.PrefixFrom(p.Addr().Next(), p.Bits()).String() }
	want := fmt.Sprint([]string{first(nets.V4), first(nets.V6)})
	for range 2 {
		must(t, device.Configure("lethe9", 9))
		if got := fmt.Sprint(addresses(t, "lethe9")); got != want {
			t.Errorf("addresses %s, want %s", got, want)
		}
	}
	must(t, testkit.Command("ping -q -c 1 -W 5 "+nets.V4.Addr().Next().String()))
	must(t, testkit.Command("ping -q -c 1 -W 5 "+nets.V6.Addr().Next().String())) // at once: no duplicate is looked for
	for _, customer := range []netip.Addr{session.Host(nets.V4, 77), session.Host(nets.V6, 77)} {
		routes, err := netlink.RouteGet(customer.AsSlice())
		must(t, err)
		link, err := netlink.LinkByIndex(routes[0].LinkIndex)
		must(t, err)
		if link.Attrs().Name != "lethe9" || routes[0].Gw != nil {
			t.Errorf("packets to %s go to %s by %v", customer, link.Attrs().Name, routes[0].Gw)
		}
	}
}

// TestConfigureFails shows that an interface that cannot be had is an error that names it.
func TestConfigureFails(t *testing.T) {
	namespaces(t)
	if err := device.Configure("none9", 9); err == nil || !strings.HasPrefix(err.Error(), "tunnel device none9: ") {
		t.Errorf("one that is not there: %v", err)
	}
	must(t, testkit.Command("ip link add lethe8 mtu 576 type veth peer name lethe8p")) // too little for IPv6 (RFC 8200, section 5)
	defer func() { must(t, device.Remove("lethe8")) }()
	if err := device.Configure("lethe8", 8); err == nil || !strings.HasPrefix(err.Error(), "configure lethe8: ") {
		t.Errorf("one that takes no IPv6 address: %v", err)
	}
}

func TestRemove(t *testing.T) {
	namespaces(t)
	must(t, testkit.Command("ip link add lethe7 type veth peer name lethe7p"))
	for range 2 { // what is gone already is no error
		must(t, device.Remove("lethe7"))
	}
	if err := testkit.Command("ip link show lethe7"); err == nil {
		t.Error("it is still there")
	}
	if device.Remove("lo") == nil {
		t.Error("the kernel removes no loopback interface")
	}
}
