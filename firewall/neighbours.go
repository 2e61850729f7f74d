package firewall

import (
	"errors"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// neighbours is the kernel's IPv6 neighbour table (ip-neighbour(8)). It has an entry
// for each tunnel address that was ever sent to, also on devices without link-layer
// addresses, and drops none while it has fewer than gc_thresh1. IPv4 has one entry
// for a whole point-to-point device.
type neighbours struct{ h *netlink.Handle }

func openNeighbours() (neighbours, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	return neighbours{h}, err
}

func (n neighbours) close() { n.h.Close() }

// forget deletes the entry of a tunnel address, on the device that the route to it
// names. Without the route the device is gone, and the entry with it.
func (n neighbours) forget(v6 netip.Addr) error {
	ip := v6.AsSlice()
	routes, err := n.h.RouteGet(ip)
	switch {
	case errors.Is(err, unix.ENETUNREACH) || errors.Is(err, unix.EHOSTUNREACH) || errors.Is(err, unix.EACCES):
		return nil
	case err != nil:
		return err
	}
	for _, r := range routes {
		err := n.h.NeighDel(&netlink.Neigh{LinkIndex: r.LinkIndex, Family: unix.AF_INET6, IP: ip})
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return err
		}
	}
	return nil
}
