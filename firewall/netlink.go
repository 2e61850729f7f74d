package firewall

import (
	"encoding/binary"
	"net/netip"
	"sync/atomic"
	"syscall"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Numbers of linux/netfilter/nfnetlink.h, nfnetlink_conntrack.h and nf_tables.h that
// package unix does not have.
const (
	subsysConntrack = 1
	subsysTables    = 10
	batchBegin      = 0x10
	batchEnd        = 0x11

	ctDelete    = 2  // IPCTNL_MSG_CT_DELETE
	ctaMark     = 8  // CTA_MARK
	ctaMarkMask = 21 // CTA_MARK_MASK
)

// socket is a netlink socket to netfilter (netlink(7)). The kernel works on a
// request inside the send call, so all answers wait when it returns: reading needs
// no waiting, and nothing stale is ever left behind.
type socket struct {
	fd    int
	seq   atomic.Uint32
	buf   []byte
	order binary.ByteOrder // of connection marks, nil until the rules have told it; see markOrder
}

func dial() (*socket, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, err
	}
	return &socket{fd: fd, buf: make([]byte, 1<<16)}, unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
}

func (s *socket) close() error { return unix.Close(s.fd) }

// message is one netlink message: its type and flags, what differs in nfgenmsg,
// and the attributes.
type message struct {
	kind   uint16
	flags  uint16
	family byte
	res    uint16
	body   []byte
}

// do sends messages as one datagram and returns the bodies of all answers. The
// error is the first that the kernel reports for one of them.
func (s *socket) do(messages ...message) ([]message, error) {
	var out []byte
	for _, m := range messages {
		out = binary.NativeEndian.AppendUint32(out, uint32(unix.NLMSG_HDRLEN+4+len(m.body)))
		out = binary.NativeEndian.AppendUint16(out, m.kind)
		out = binary.NativeEndian.AppendUint16(out, m.flags|unix.NLM_F_REQUEST)
		out = binary.NativeEndian.AppendUint32(out, s.seq.Add(1))
		out = binary.NativeEndian.AppendUint32(out, 0)
		out = append(out, m.family, 0)
		out = binary.BigEndian.AppendUint16(out, m.res)
		out = append(out, m.body...) // attributes are padded to 4 bytes already
	}
	if err := unix.Sendto(s.fd, out, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, err
	}
	return s.answers()
}

// answers reads until nothing is left, even after an error.
func (s *socket) answers() (got []message, first error) {
	for {
		n, _, err := unix.Recvfrom(s.fd, s.buf, 0)
		switch {
		case err == unix.EAGAIN:
			return got, first
		case err == unix.EINTR:
			continue
		case err != nil:
			return nil, err
		}
		part, err := parse(s.buf[:n])
		got = append(got, part...)
		if first == nil {
			first = err
		}
	}
}

// parse splits a datagram of the kernel into messages.
func parse(b []byte) (got []message, first error) {
	list, err := syscall.ParseNetlinkMessage(b)
	if err != nil {
		return nil, err
	}
	for _, m := range list {
		switch {
		case m.Header.Type == unix.NLMSG_ERROR && len(m.Data) >= 4:
			code := int32(binary.NativeEndian.Uint32(m.Data))
			if code != 0 && first == nil {
				first = unix.Errno(-code)
			}
		case m.Header.Type >= unix.NLMSG_MIN_TYPE && len(m.Data) >= 4:
			got = append(got, message{kind: m.Header.Type, family: m.Data[0], body: append([]byte(nil), m.Data[4:]...)})
		}
	}
	return got, first
}

// attributes encodes what fill adds.
func attributes(fill func(*netlink.AttributeEncoder)) []byte {
	ae := netlink.NewAttributeEncoder()
	ae.ByteOrder = binary.BigEndian
	fill(ae)
	b, err := ae.Encode()
	if err != nil {
		panic("firewall: internal error: a netlink attribute is too long")
	}
	return b
}

// nest adds a nested attribute.
func nest(ae *netlink.AttributeEncoder, kind uint16, fill func(*netlink.AttributeEncoder)) {
	ae.Bytes(unix.NLA_F_NESTED|kind, attributes(fill))
}

// count is an element of a set as the kernel tells it.
type count struct {
	set            string
	addr           netip.Addr
	bytes, packets uint64
}

// elementMessage asks for something to be done with one element.
func elementMessage(kind, flags uint16, e element) message {
	body := attributes(func(ae *netlink.AttributeEncoder) {
		ae.String(unix.NFTA_SET_ELEM_LIST_TABLE, "lethe")
		ae.String(unix.NFTA_SET_ELEM_LIST_SET, e.set)
		if !e.addr.IsValid() {
			return // the whole set
		}
		nest(ae, unix.NFTA_SET_ELEM_LIST_ELEMENTS, func(ae *netlink.AttributeEncoder) {
			nest(ae, unix.NFTA_LIST_ELEM, func(ae *netlink.AttributeEncoder) {
				nest(ae, unix.NFTA_SET_ELEM_KEY, func(ae *netlink.AttributeEncoder) {
					ae.Bytes(unix.NFTA_DATA_VALUE, e.addr.AsSlice())
				})
			})
		})
	})
	return message{kind: subsysTables<<8 | kind, flags: flags, family: unix.NFPROTO_INET, body: body}
}

// change adds or deletes elements, all or none, and returns those that the kernel
// echoes.
func (s *socket) change(kind, flags uint16, list ...element) ([]count, error) {
	batch := []message{{kind: batchBegin, res: subsysTables}}
	for _, e := range list {
		batch = append(batch, elementMessage(kind, flags, e))
	}
	return counts(s.do(append(batch, message{kind: batchEnd, res: subsysTables})...))
}

// get returns one element, or all of a set when its address is the zero Addr.
func (s *socket) get(e element) ([]count, error) {
	var flags uint16
	if !e.addr.IsValid() {
		flags = unix.NLM_F_DUMP
	}
	return counts(s.do(elementMessage(unix.NFT_MSG_GETSETELEM, flags, e)))
}

// counts reads the elements in the kernel's answers.
func counts(answers []message, err error) (list []count, _ error) {
	for _, m := range answers {
		if m.kind != subsysTables<<8|unix.NFT_MSG_NEWSETELEM && m.kind != subsysTables<<8|unix.NFT_MSG_DELSETELEM {
			continue // the number of the new generation of rules
		}
		set := ""
		each(m.body, func(kind uint16, b []byte) {
			switch kind {
			case unix.NFTA_SET_ELEM_LIST_SET:
				set = unix.ByteSliceToString(b)
			case unix.NFTA_SET_ELEM_LIST_ELEMENTS:
				each(b, func(_ uint16, b []byte) {
					c := count{set: set}
					c.read(b)
					list = append(list, c)
				})
			}
		})
	}
	return list, err
}

// read fills c from the attributes of one element.
func (c *count) read(b []byte) {
	each(b, func(kind uint16, b []byte) {
		switch kind {
		case unix.NFTA_SET_ELEM_KEY:
			each(b, func(_ uint16, b []byte) { c.addr, _ = netip.AddrFromSlice(b) })
		case unix.NFTA_SET_ELEM_EXPR:
			each(b, func(kind uint16, b []byte) {
				if kind != unix.NFTA_EXPR_DATA {
					return
				}
				each(b, func(kind uint16, b []byte) {
					switch {
					case kind == unix.NFTA_COUNTER_BYTES && len(b) == 8:
						c.bytes = binary.BigEndian.Uint64(b)
					case kind == unix.NFTA_COUNTER_PACKETS && len(b) == 8:
						c.packets = binary.BigEndian.Uint64(b)
					}
				})
			})
		}
	})
}

// each calls f for every attribute in b.
func each(b []byte, f func(kind uint16, b []byte)) {
	ad, err := netlink.NewAttributeDecoder(b)
	for err == nil && ad.Next() {
		f(ad.Type(), ad.Bytes())
	}
}

// forget deletes the conntrack entries of a session's connections, both families in
// one request if the addresses are twins. A rule of prerouting_nat has marked them
// with the tunnel address. (The kernel can also be asked for entries by source
// address, but up to Linux 6.18 at least it deletes those of everybody else when
// the address is an IPv6 one: the comparison in ctnetlink_filter_match_tuple is
// inverted.)
func (s *socket) forget(v4, v6 netip.Addr) error {
	if s.order == nil {
		rules, err := s.do(message{kind: subsysTables<<8 | unix.NFT_MSG_GETRULE, flags: unix.NLM_F_DUMP, family: unix.NFPROTO_INET,
			body: attributes(func(ae *netlink.AttributeEncoder) {
				ae.String(unix.NFTA_RULE_TABLE, "lethe")
				ae.String(unix.NFTA_RULE_CHAIN, markChain)
			})})
		if err != nil {
			return err
		}
		s.order = markOrder(rules)
	}
	orders := []binary.ByteOrder{s.order}
	if s.order == nil { // no rule marks anything now
		orders = []binary.ByteOrder{binary.NativeEndian, binary.BigEndian}
	}
	mark4, mark6 := marks(v4, v6)
	for _, o := range orders {
		if err := s.flush(o.Uint32(mark4[:])); err != nil {
			return err
		}
		if mark6 == mark4 {
			continue
		}
		if err := s.flush(o.Uint32(mark6[:])); err != nil {
			return err
		}
	}
	return nil
}

// markChain is the chain whose rules mark connections.
const markChain = "prerouting_nat"

// markOrder returns how the rules of that chain make a number of the four bytes of a mark, or nil when
// none does. The text of the rules does not say: nft copies the bytes as they are up to 1.0, and
// converts them from network order from 1.1 on.
func markOrder(rules []message) (order binary.ByteOrder) {
	for _, m := range rules {
		var names []string
		chain := ""
		each(m.body, func(kind uint16, b []byte) {
			switch kind {
			case unix.NFTA_RULE_CHAIN:
				chain = unix.ByteSliceToString(b)
			case unix.NFTA_RULE_EXPRESSIONS:
				each(b, func(_ uint16, b []byte) {
					each(b, func(kind uint16, b []byte) {
						if kind == unix.NFTA_EXPR_NAME {
							names = append(names, unix.ByteSliceToString(b))
						}
					})
				})
			}
		})
		if n := len(names); chain == markChain && n > 1 && names[n-1] == "ct" {
			if names[n-2] == "byteorder" {
				return binary.BigEndian
			}
			order = binary.NativeEndian
		}
	}
	return order
}

// marks returns the conntrack marks of a session's connections. The mark of IPv4
// ones is the tunnel address; that of IPv6 ones has the low 16 bits of theirs.
func marks(v4, v6 netip.Addr) (mark4, mark6 [4]byte) {
	low := v6.As16()
	mark4 = v4.As4()
	return mark4, [4]byte{mark4[0], mark4[1], low[14], low[15]}
}

func (s *socket) flush(mark uint32) error {
	body := attributes(func(ae *netlink.AttributeEncoder) {
		ae.Uint32(ctaMark, mark)
		ae.Uint32(ctaMarkMask, 1<<32-1)
	})
	_, err := s.do(message{kind: subsysConntrack<<8 | ctDelete, flags: unix.NLM_F_ACK, body: body})
	return err
}
