package test

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"lethe/canary"
)

// wire records every packet to and from the provider's machines: between
// control plane and servers, between customers and both, between servers and the
// internet.
type wire struct {
	sockets []int
	done    sync.WaitGroup
	stop    chan struct{}

	control, nodes, customers []netip.Addr

	mu     sync.Mutex
	frames map[string][][]byte // by class
	count  int
	bytes  int64
}

// newWire captures at the router's ends of the machines' links, where every packet
// passes once (packet(7)).
func newWire(t *testing.T, h *hunt) *wire {
	w := &wire{stop: make(chan struct{}), frames: map[string][][]byte{}}
	for _, m := range h.l.Machines() {
		for _, d := range m.Addresses {
			for _, a := range []netip.Addr{d.V4, d.V6} {
				switch {
				case m == h.l.Control():
					w.control = append(w.control, a)
				case m == h.l.Server(0) || m == h.l.Server(1):
					w.nodes = append(w.nodes, a)
				default:
					w.customers = append(w.customers, a)
				}
			}
		}
	}
	for _, g := range h.guests {
		w.customers = append(w.customers, g.v4, g.v6, g.other)
	}
	err := h.l.Internet().Inside(func() error {
		for _, m := range h.service() {
			link, err := net.InterfaceByName("m" + strconv.Itoa(slices.Index(h.l.Machines(), m)))
			if err != nil {
				return err
			}
			if err := w.open(link.Index); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range w.sockets {
		w.done.Go(func() { w.read(fd) })
	}
	t.Cleanup(func() {
		close(w.stop)
		w.done.Wait()
		for _, fd := range w.sockets {
			unix.Close(fd)
		}
	})
	return w
}

func (w *wire) open(link int) error {
	proto := uint16(unix.ETH_P_ALL)<<8 | uint16(unix.ETH_P_ALL)>>8 // network order
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	w.sockets = append(w.sockets, fd)
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20); err != nil {
		return err
	}
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 100_000}); err != nil {
		return err
	}
	return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: proto, Ifindex: link})
}

// read keeps what comes, until the wire is stopped.
func (w *wire) read(fd int) {
	b := make([]byte, 1<<17)
	for {
		select {
		case <-w.stop:
			return
		default:
		}
		n, _, err := unix.Recvfrom(fd, b, 0)
		if err != nil {
			continue // nothing came, or the link has gone down
		}
		w.mu.Lock()
		class := w.class(b[:n])
		w.frames[class] = append(w.frames[class], slices.Clone(b[:n]))
		w.count++
		w.bytes += int64(n)
		w.mu.Unlock()
	}
}

// class says between whom an Ethernet frame goes.
func (w *wire) class(b []byte) string {
	if len(b) < 14 {
		return "link"
	}
	var from, to netip.Addr
	switch b := b[14:]; {
	case b0(b)>>4 == 4 && len(b) >= 20:
		from, to = netip.AddrFrom4([4]byte(b[12:])), netip.AddrFrom4([4]byte(b[16:]))
	case b0(b)>>4 == 6 && len(b) >= 40:
		from, to = netip.AddrFrom16([16]byte(b[8:])), netip.AddrFrom16([16]byte(b[24:]))
	default:
		return "link" // ARP and the like
	}
	has := func(list []netip.Addr) bool { return slices.Contains(list, from) || slices.Contains(list, to) }
	switch {
	case has(w.control) && has(w.nodes):
		return "control-node"
	case has(w.nodes) && has(w.customers):
		return "tunnel"
	case has(w.control) && has(w.customers):
		return "app-api"
	case has(w.nodes) && slices.Contains(w.nodes, from) && slices.Contains(w.nodes, to):
		return "node-node"
	case has(w.nodes):
		return "node-internet"
	default:
		return "other"
	}
}

func b0(b []byte) byte {
	if len(b) == 0 {
		return 0
	}
	return b[0]
}

// search searches the frames, each class as one surface. A mark that is cut by the
// border of two packets is not found; each is sent whole.
func (w *wire) search(h *hunt) (hits []canary.Hit) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for class, frames := range w.frames {
		for _, f := range frames {
			hits = append(hits, h.lookAt("packet:"+class, f)...)
		}
	}
	return merged(hits)
}

// merged makes one hit of those that differ in their offset only. One that stands in clear is enough for all.
func merged(hits []canary.Hit) (few []canary.Hit) {
	at := map[[3]string]int{}
	for _, h := range hits {
		k := [3]string{h.Surface, h.Mark, h.Encoding}
		if i, ok := at[k]; ok {
			few[i].Count += h.Count
			few[i].Noise = few[i].Noise && h.Noise
			continue
		}
		at[k] = len(few)
		few = append(few, h)
	}
	return few
}

// stats returns how much was captured, and how many packets were lost.
func (w *wire) stats() (frames int, bytes int64, drops uint32) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, fd := range w.sockets {
		if s, err := unix.GetsockoptTpacketStats(fd, unix.SOL_PACKET, unix.PACKET_STATISTICS); err == nil {
			drops += s.Drops
		}
	}
	return w.count, w.bytes, drops
}

// classes returns what was captured, by kind.
func (w *wire) classes() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var all []string
	for class, frames := range w.frames {
		all = append(all, fmt.Sprintf("%s %d", class, len(frames)))
	}
	slices.Sort(all)
	return strings.Join(all, ", ")
}
