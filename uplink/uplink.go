// Package uplink puts a server's public addresses on the interface that faces the internet.
//
// The machine has an address of its own, by DHCP or router advertisements or set by hand. The
// addresses that customers dial are the directory's: the datacentre routes them to the machine, and
// the server takes them when the signed bundle names them, as IPv4 /32 and IPv6 /128. An address that is
// there already, whoever made it, stays as it is. Those of ours bear a number of ours
// (IFA_PROTO, rtnetlink(7), Linux 5.18), so the next instance of the agent knows them again, and one
// that the directory no longer names goes.
//
// No duplicate address detection and no preferred lifetime: the server answers at such an IPv6 address at once,
// and its own connections, and its customers' to the internet, leave from the machine's own
// address as long as it has one (RFC 6724, section 5, rule 3).
package uplink

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Protocol is the number in IFA_PROTO of addresses that this package made. The kernel's own are
// 1 to 3 (linux/if_addr.h).
const Protocol = 76

// ifaProto is IFA_PROTO, which package unix does not have.
const ifaProto = 11

// entry is one address of one interface.
type entry struct {
	link  uint32 // index of the interface
	addr  netip.Addr
	bits  uint8
	ours  bool
	label []byte // IFA_LABEL, which a deletion must repeat
}

// Sync makes want the public addresses of a server with these interfaces: what is on none of them is
// added to the first, and what an earlier call added and want does not name is removed. An
// empty want removes all that calls have added. It works as far as it gets; the
// error is all that failed.
func Sync(devices []string, want []netip.Addr) error {
	var links []uint32
	for _, d := range devices {
		i, err := net.InterfaceByName(d)
		if err != nil {
			return fmt.Errorf("uplink %s: %w", d, err)
		}
		links = append(links, uint32(i.Index))
	}
	c, err := netlink.Dial(unix.NETLINK_ROUTE, nil)
	var have []entry
	if err == nil {
		defer c.Close()
		have, err = list(c)
	}
	if err != nil {
		return fmt.Errorf("uplink: list addresses: %w", err)
	}
	for _, e := range have {
		if e.ours && slices.Contains(links, e.link) && !slices.Contains(want, e.addr) {
			if e := change(c, unix.RTM_DELADDR, 0, e); e != nil && !errors.Is(e, unix.EADDRNOTAVAIL) {
				err = errors.Join(err, fmt.Errorf("uplink: remove an address: %w", e))
			}
		}
	}
	for i, a := range want {
		there := func(e entry) bool { return e.addr == a && slices.Contains(links, e.link) }
		if slices.Contains(want[:i], a) || slices.ContainsFunc(have, there) {
			continue
		}
		e := change(c, unix.RTM_NEWADDR, netlink.Create|netlink.Excl, entry{link: links[0], addr: a, bits: uint8(a.BitLen())})
		if e != nil && !errors.Is(e, unix.EEXIST) {
			err = errors.Join(err, fmt.Errorf("uplink: add an address: %w", e))
		}
	}
	return err
}

// list returns every address of the network namespace.
func list(c *netlink.Conn) ([]entry, error) {
	answers, err := c.Execute(netlink.Message{
		Header: netlink.Header{Type: unix.RTM_GETADDR, Flags: netlink.Request | netlink.Dump},
		Data:   make([]byte, unix.SizeofIfAddrmsg),
	})
	var all []entry
	for _, m := range answers {
		if e, ok := parse(m.Data); ok {
			all = append(all, e)
		}
	}
	return all, err
}

// parse reads a struct ifaddrmsg and its attributes. What is no address of IPv4 or IPv6 is not ok.
func parse(b []byte) (e entry, ok bool) {
	if len(b) < unix.SizeofIfAddrmsg {
		return entry{}, false
	}
	e.bits, e.link = b[1], binary.NativeEndian.Uint32(b[4:])
	ad, err := netlink.NewAttributeDecoder(b[unix.SizeofIfAddrmsg:])
	var address, local netip.Addr
	for err == nil && ad.Next() {
		switch ad.Type() {
		case unix.IFA_ADDRESS:
			address, _ = netip.AddrFromSlice(ad.Bytes())
		case unix.IFA_LOCAL: // of a point-to-point interface the other is the peer's
			local, _ = netip.AddrFromSlice(ad.Bytes())
		case unix.IFA_LABEL:
			e.label = ad.Bytes()
		case ifaProto:
			e.ours = slices.Equal(ad.Bytes(), []byte{Protocol})
		}
	}
	if e.addr = local; !local.IsValid() {
		e.addr = address
	}
	return e, err == nil && e.addr.IsValid()
}

// change adds or removes an address.
func change(c *netlink.Conn, kind netlink.HeaderType, flags netlink.HeaderFlags, e entry) error {
	family := byte(unix.AF_INET)
	if e.addr.Is6() {
		family = unix.AF_INET6
	}
	ae := netlink.NewAttributeEncoder()
	ae.Bytes(unix.IFA_LOCAL, e.addr.AsSlice())
	ae.Bytes(unix.IFA_ADDRESS, e.addr.AsSlice())
	if len(e.label) > 0 {
		ae.Bytes(unix.IFA_LABEL, e.label)
	}
	if kind == unix.RTM_NEWADDR {
		ae.Uint8(ifaProto, Protocol)
		if e.addr.Is6() {
			ae.Uint32(unix.IFA_FLAGS, unix.IFA_F_NODAD|unix.IFA_F_PERMANENT)
			// struct ifa_cacheinfo: not preferred, valid for ever.
			info := make([]byte, 16)
			binary.NativeEndian.PutUint32(info[4:], 1<<32-1)
			ae.Bytes(unix.IFA_CACHEINFO, info)
		}
	}
	attrs, err := ae.Encode()
	head := []byte{family, e.bits, 0, unix.RT_SCOPE_UNIVERSE, 0, 0, 0, 0}
	binary.NativeEndian.PutUint32(head[4:], e.link)
	if err == nil {
		_, err = c.Execute(netlink.Message{
			Header: netlink.Header{Type: kind, Flags: netlink.Request | netlink.Acknowledge | flags}, Data: append(head, attrs...),
		})
	}
	return err
}
