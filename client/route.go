package client

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"lethe/fault"
)

// Policy routing (ip-rule(8)): everything that does not carry [Mark] looks into a table of ours
// before it looks into the machine's. That table holds a default route into the tunnel and, below
// it, "unreachable". Routes that others put into the machine's table, such as DHCP's option 121
// (the attack called TunnelVision), are never looked at, more specific or not.

const (
	// Table is the number of the routing table that leads into the tunnel.
	Table = 0x6c65
	// charonTable is charon's own. Nobody gets as far as its rule, which stands behind ours.
	charonTable = Table + 1
	// rulePriority stands before the machine's own tables (32766) and after the local one (0).
	rulePriority = 4900
	lastMetric   = 0xfffffff0
)

// families are those that the kernel has.
func families() []int {
	if _, err := os.Stat("/proc/net/if_inet6"); err != nil {
		return []int{unix.AF_INET}
	}
	return []int{unix.AF_INET, unix.AF_INET6}
}

func anywhere(family int) *net.IPNet {
	if family == unix.AF_INET {
		return &net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}
	}
	return &net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}
}

func ourRule(family int) *netlink.Rule {
	r := netlink.NewRule()
	r.Family, r.Mark, r.Invert, r.Table, r.Priority = family, Mark, true, Table, rulePriority
	return r
}

// divert sends all traffic but the tunnel's own to our table, which leads nowhere until enter. It may
// be called again.
func divert() error {
	for _, f := range families() {
		err := netlink.RouteReplace(&netlink.Route{Table: Table, Dst: anywhere(f), Family: f, Type: unix.RTN_UNREACHABLE, Priority: lastMetric})
		if err == nil {
			err = netlink.RuleAdd(ourRule(f))
		}
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return fault.Wrap(fault.Internal, "routes: the kernel did not take the rule", err)
		}
	}
	return nil
}

// enter sets up the tunnel's device and leads our table into it. It may be called again to repair
// what somebody has taken away.
func enter(f *face) error {
	link, err := netlink.LinkByName(f.device)
	if err == nil {
		err = errors.Join(netlink.LinkSetMTU(link, f.mtu), netlink.LinkSetUp(link))
	}
	for _, p := range []netip.Prefix{f.v4, f.v6} {
		if err != nil || !p.IsValid() {
			continue
		}
		family := unix.AF_INET
		if p.Addr().Is6() {
			family = unix.AF_INET6
		}
		ip := &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
		// No connected route: the prefix's other addresses go the way of everything else.
		a := &netlink.Addr{IPNet: ip, Flags: unix.IFA_F_NODAD | unix.IFA_F_NOPREFIXROUTE}
		if err = netlink.AddrReplace(link, a); err == nil {
			err = netlink.RouteReplace(&netlink.Route{Table: Table, Dst: anywhere(family), Family: family, LinkIndex: link.Attrs().Index, Priority: 1})
		}
	}
	if err != nil {
		return fault.Wrap(fault.Internal, "routes: the tunnel's device could not be set up", err)
	}
	return nil
}

// undivert takes rules and table away, and the rule that a charon which was killed has left.
func undivert() error {
	var all error
	for _, f := range families() {
		rules, err := netlink.RuleList(f)
		all = errors.Join(all, err)
		for _, r := range rules {
			if r.Family = f; r.Table == Table || r.Table == charonTable {
				all = errors.Join(all, netlink.RuleDel(&r))
			}
		}
		routes, err := netlink.RouteListFiltered(f, &netlink.Route{Table: Table}, netlink.RT_FILTER_TABLE)
		all = errors.Join(all, err)
		for _, r := range routes {
			all = errors.Join(all, netlink.RouteDel(&r))
		}
	}
	if all != nil {
		return fault.Wrap(fault.Internal, "routes: rules or routes could not be removed", all)
	}
	return nil
}

// exists reports whether there is a device of that name.
func exists(device string) bool {
	_, err := netlink.LinkByName(device)
	return err == nil
}

// traffic returns the bytes through a device, or zeros when there is none of that name.
func traffic(device string) (received, sent uint64) {
	link, err := netlink.LinkByName(device)
	if err != nil || link.Attrs().Statistics == nil {
		return 0, 0
	}
	return link.Attrs().Statistics.RxBytes, link.Attrs().Statistics.TxBytes
}

// kernelSettings are what must hold while the lock is up: reverse path filtering honours marks, and
// the machine does not answer ARP requests from the local network for the tunnel's address.
var kernelSettings = [...][2]string{
	{"/proc/sys/net/ipv4/conf/all/src_valid_mark", "1"},
	{"/proc/sys/net/ipv4/conf/all/arp_ignore", "1"},
}

// readSettings returns the present values.
func readSettings() (map[string]string, error) {
	old := map[string]string{}
	for _, s := range kernelSettings {
		b, err := os.ReadFile(s[0])
		if err != nil {
			return nil, fault.Wrap(fault.Internal, "kernel settings: cannot be read", err)
		}
		old[s[0]] = strings.TrimSpace(string(b))
	}
	return old, nil
}

// applySettings sets ours, or with old those from before.
func applySettings(old map[string]string) error {
	for _, s := range kernelSettings {
		v := s[1]
		if old != nil {
			v = old[s[0]]
		}
		if err := os.WriteFile(s[0], []byte(v), 0); err != nil {
			return fault.Wrap(fault.Internal, fmt.Sprintf("kernel settings: %s cannot be set", s[0][strings.LastIndex(s[0], "/")+1:]), err)
		}
	}
	return nil
}
