package boot

import (
	"encoding/binary"
	"net"

	"golang.org/x/sys/unix"
)

// forgetNetwork makes the kernel forget who was connected: connections, firewall, ESP, links and
// with them neighbours and routes. What is not there is no error.
func forgetNetwork() {
	links, _ := net.Interfaces()
	for _, link := range links {
		down(link.Name)
	}
	// linux/netfilter/nfnetlink_conntrack.h: deleting without saying which is deleting all.
	request(unix.NETLINK_NETFILTER, message(conntrackDelete, 0, nfgen(0)))
	// linux/netfilter/nf_tables.h: the same for tables, in a batch.
	request(unix.NETLINK_NETFILTER,
		message(unix.NFNL_MSG_BATCH_BEGIN, 0, nfgen(unix.NFNL_SUBSYS_NFTABLES)),
		message(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_DELTABLE, 1, nfgen(0)),
		message(unix.NFNL_MSG_BATCH_END, 2, nfgen(unix.NFNL_SUBSYS_NFTABLES)))
	// linux/xfrm.h: struct xfrm_usersa_flush with protocol 0 is every one.
	request(unix.NETLINK_XFRM, message(xfrmFlushSA, 0, make([]byte, 4)))
	request(unix.NETLINK_XFRM, message(xfrmFlushPolicy, 0, nil))
}

const (
	conntrackDelete = unix.NFNL_SUBSYS_CTNETLINK<<8 | 2 // IPCTNL_MSG_CT_DELETE
	xfrmFlushSA     = 0x1c                              // XFRM_MSG_FLUSHSA
	xfrmFlushPolicy = 0x1d                              // XFRM_MSG_FLUSHPOLICY
)

// nfgen is struct nfgenmsg: any family, version 0, a resource id in network order.
func nfgen(id uint16) []byte { return binary.BigEndian.AppendUint16([]byte{unix.AF_UNSPEC, 0}, id) }

// message is a netlink message (netlink(7)).
func message(kind uint16, seq uint32, payload []byte) []byte {
	b := make([]byte, unix.NLMSG_HDRLEN, unix.NLMSG_HDRLEN+len(payload))
	binary.NativeEndian.PutUint32(b, uint32(cap(b)))
	binary.NativeEndian.PutUint16(b[4:], kind)
	binary.NativeEndian.PutUint16(b[6:], unix.NLM_F_REQUEST)
	binary.NativeEndian.PutUint32(b[8:], seq)
	return append(b, payload...)
}

// request sends messages, whose lengths are multiples of four, in one go. The kernel has done what they say when it returns.
func request(protocol int, messages ...[]byte) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	var all []byte
	for _, m := range messages {
		all = append(all, m...)
	}
	_ = unix.Sendto(fd, all, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
}

// down takes a link down (netdevice(7), SIOCSIFFLAGS).
func down(name string) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	request, err := unix.NewIfreq(name)
	if err != nil {
		return
	}
	request.SetUint16(0) // no flag: not up
	_ = unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, request)
}
