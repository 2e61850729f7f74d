package firewall

import (
	"errors"
	"net/netip"
	"sync"

	"golang.org/x/sys/unix"

	"lethe/fault"
)

// Counters reads and writes the elements of the sets, and empties the conntrack and
// neighbour tables. Its calls are one or a few netlink messages, without starting a
// process. It is safe for concurrent use.
type Counters struct {
	mu    sync.Mutex
	sock  *socket
	neigh neighbours
}

// OpenCounters opens the kernel's tables in the network namespace of the calling
// thread. The rules need not be loaded yet.
func OpenCounters() (*Counters, error) {
	s, err := dial()
	if err != nil {
		return nil, fault.Wrap(fault.Internal, "open the firewall's counters", err)
	}
	n, err := openNeighbours()
	if err != nil {
		return nil, fault.Wrap(fault.Internal, "open the firewall's counters", errors.Join(err, s.close()))
	}
	return &Counters{sock: s, neigh: n}, nil
}

// Close closes the counters; the elements stay in the kernel.
func (c *Counters) Close() error {
	c.neigh.close()
	return c.sock.close()
}

// element is one address in one set.
type element struct {
	set  string
	addr netip.Addr
}

// elements returns the eight elements of a session. It refuses addresses of the
// wrong family, which would make malformed messages.
func elements(v4, v6 netip.Addr) ([]element, error) {
	if !v4.Is4() || !v6.Is6() || v6.Is4In6() || v6.Zone() != "" {
		return nil, fault.New(fault.Invalid, "session counters: want an IPv4 and an IPv6 address")
	}
	return []element{
		{"down4", v4}, {"down6", v6}, {"up4", v4}, {"up6", v6},
		{"down4joined", v4}, {"down6joined", v6}, {"up4joined", v4}, {"up6joined", v6},
	}, nil
}

// joinedLength is the MTU of a tunnel. A longer packet is several TCP segments that
// the kernel has joined (GRO) or not yet cut (TSO).
const joinedLength = 1500

// missing estimates the bytes of the headers that a number of joined packets will
// have in the tunnel beyond those counted. header is the length of IP and TCP
// header, of which nobody knows whether it has the 12 bytes of timestamps, so half
// of them are in it: the whole count is right within 0.5 %, and would be 3.4 %
// (IPv4) to 4.7 % (IPv6) short without.
func (c count) missing(header uint64) uint64 {
	payload := c.bytes - min(c.bytes, c.packets*header)
	segments := payload / (joinedLength - header)
	return (segments - min(segments, c.packets)) * header
}

// Add lets traffic of the tunnel addresses pass and counts it from zero. It fails
// with fault.Conflict, and changes nothing, when one of them is there already.
func (c *Counters) Add(v4, v6 netip.Addr) error {
	list, err := elements(v4, v6)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	_, err = c.sock.change(unix.NFT_MSG_NEWSETELEM, unix.NLM_F_CREATE|unix.NLM_F_EXCL, list...)
	if errors.Is(err, unix.EEXIST) {
		return fault.Wrap(fault.Conflict, "the tunnel address has a session already", err)
	}
	return classify("add session counters", err)
}

// Read returns how many bytes the customer has received (in) and sent (out) inside
// the tunnel, IP headers included: exact for packets that pass one by one, within
// 0.5 % for TCP segments that the kernel carries joined. A missing element counts as
// zero; when all are missing, the error is fault.NotFound.
func (c *Counters) Read(v4, v6 netip.Addr) (in, out uint64, err error) {
	list, err := elements(v4, v6)
	if err != nil {
		return 0, 0, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	got, err := c.each(list, c.sock.get)
	return sum("read session counters", got, err)
}

// Take stops the traffic of the tunnel addresses, makes the kernel forget their
// connections and neighbours, and returns the final counts like [Counters.Read]. No
// byte is lost between reading and deleting: the counts come with the kernel's notice
// of the deletion. When something cannot be forgotten, the counts are right and the
// error is fault.Internal.
func (c *Counters) Take(v4, v6 netip.Addr) (in, out uint64, err error) {
	list, err := elements(v4, v6)
	if err != nil {
		return 0, 0, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	remove := func(e ...element) ([]count, error) {
		return c.sock.change(unix.NFT_MSG_DELSETELEM, unix.NLM_F_ECHO, e...)
	}
	got, err := remove(list...)
	if errors.Is(err, unix.ENOENT) { // one was missing, so none was deleted
		got, err = c.each(list, func(e element) ([]count, error) { return remove(e) })
	}
	in, out, err = sum("take session counters", got, err)
	if e := errors.Join(c.sock.forget(v4, v6), c.neigh.forget(v6)); e != nil {
		err = fault.Wrap(fault.Internal, "forget the connections of a session", e)
	}
	return in, out, err
}

// each collects what get says of each element; a missing one says nothing.
func (c *Counters) each(list []element, get func(element) ([]count, error)) (all []count, first error) {
	for _, e := range list {
		got, err := get(e)
		if err != nil && err != unix.ENOENT && first == nil {
			first = err
		}
		all = append(all, got...)
	}
	return all, first
}

// sum adds up the counts of one session.
func sum(what string, got []count, err error) (in, out uint64, _ error) {
	for _, c := range got {
		switch c.set {
		case "down4", "down6":
			in += c.bytes
		case "up4", "up6":
			out += c.bytes
		case "down4joined":
			in += c.missing(46)
		case "down6joined":
			in += c.missing(66)
		case "up4joined":
			out += c.missing(46)
		case "up6joined":
			out += c.missing(66)
		}
	}
	if err == nil && len(got) == 0 {
		return 0, 0, fault.New(fault.NotFound, "the tunnel address has no session")
	}
	return in, out, classify(what, err)
}

// List returns the IPv4 tunnel addresses that may send, in no order.
func (c *Counters) List() ([]netip.Addr, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	got, err := c.sock.get(element{set: "up4"})
	addrs := make([]netip.Addr, len(got))
	for i := range got {
		addrs[i] = got[i].addr
	}
	return addrs, classify("list live tunnel addresses", err)
}

// classify hides a cause behind a public text: the kernel's errors name no
// address, but nobody should have to know that.
func classify(what string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.ENOENT):
		return fault.Wrap(fault.Unavailable, what+": the rules are not loaded", err)
	default:
		return fault.Wrap(fault.Internal, what, err)
	}
}
