// Package device sets up the network interfaces of a server that customers' packets come out of. Each is made
// by the package of the data plane behind it, a TUN device or an XFRM interface; all get addresses that follow
// from the number of their daemon, and are removed, in the same way.
package device

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"lethe/session"
)

// Configure gives an interface the first addresses of a daemon's networks ([session.SubnetsOf]), and
// with them the routes to its customers, and brings it up. Doing it again changes nothing.
func Configure(name string, daemon uint8) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("tunnel device %s: %w", name, err)
	}
	nets := session.SubnetsOf(daemon)
	for _, p := range []netip.Prefix{nets.V4, nets.V6} {
		addr := &netlink.Addr{IPNet: &net.IPNet{IP: p.Addr().Next().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}}
		if p.Addr().Is6() {
			addr.Flags = unix.IFA_F_NODAD // nobody else is on the link
		}
		err = errors.Join(err, netlink.AddrReplace(link, addr))
	}
	if err = errors.Join(err, netlink.LinkSetUp(link)); err != nil {
		return fmt.Errorf("configure %s: %w", name, err)
	}
	return nil
}

// Remove removes an interface, and with it its addresses and routes; one that is not there is no error.
func Remove(name string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return nil // gone already
	}
	return netlink.LinkDel(link)
}
