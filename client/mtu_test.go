package client_test

import (
	"encoding/binary"
	"net/netip"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"lethe/client"
)

// TestPathMTU has a router say that packets are too big: of those to the VPN server the lock lets
// the kernel hear, of others not.
func TestPathMTU(t *testing.T) {
	r := newRig(t)
	r.startHelper()
	for _, vpn := range []string{vpnV4, vpnV6} {
		target := r.target(client.UDP, vpnPassword)
		target.Servers[0].Addresses = []netip.Addr{netip.MustParseAddr(vpn)}
		r.call(client.Request{Op: client.OpConnect, Target: target})
		r.await(client.Connected)
		for _, c := range []struct{ from, to, quoted string }{
			{routerV4, customerV4, vpnV4}, {routerV4, customerV4, webV4},
			{routerV6, customerV6, vpnV6}, {routerV6, customerV6, webV6},
		} {
			to, want := netip.MustParseAddr(c.to), 0
			if c.quoted == vpn {
				want = 1
			}
			before := r.heard(to.Is6())
			r.tooBig(netip.MustParseAddr(c.from), to, netip.MustParseAddr(c.quoted))
			if got := r.heard(to.Is6()) - before; got != want {
				t.Errorf("connected to %s, a packet to %s is too big: the kernel heard %d times, want %d", vpn, c.quoted, got, want)
			}
		}
		r.call(client.Request{Op: client.OpDisconnect})
	}
}

// heard returns how many "too big" the client's kernel has taken.
func (r *rig) heard(v6 bool) (n int) {
	r.t.Helper()
	if v6 {
		for line := range strings.Lines(r.sh(r.client, "cat /proc/net/snmp6")) {
			if f := strings.Fields(line); f[0] == "Icmp6InPktTooBigs" {
				n, _ = strconv.Atoi(f[1])
			}
		}
		return n
	}
	var names, values []string
	for line := range strings.Lines(r.sh(r.client, "cat /proc/net/snmp")) {
		if rest, ok := strings.CutPrefix(line, "Icmp: "); ok {
			names, values = values, strings.Fields(rest)
		}
	}
	for i, name := range names {
		if name == "InDestUnreachs" {
			n, _ = strconv.Atoi(values[i])
		}
	}
	return n
}

// tooBig sends what a router would about a UDP packet to quoted, from one of its addresses. The
// two ends are in one machine, so the packet has arrived when the call returns.
func (r *rig) tooBig(from, to, quoted netip.Addr) {
	r.t.Helper()
	var family, protocol int
	var b []byte
	var src, dst unix.Sockaddr
	if to.Is4() {
		family, protocol = unix.AF_INET, unix.IPPROTO_ICMP
		src, dst = &unix.SockaddrInet4{Addr: from.As4()}, &unix.SockaddrInet4{Addr: to.As4()}
		b = []byte{3, 4, 0, 0, 0, 0, 0x05, 0x14} // fragmentation needed, next hop 1300
		b = append(b, 0x45, 0, 0, 28, 0, 0, 0x40, 0, 64, 17, 0, 0)
	} else {
		family, protocol = unix.AF_INET6, unix.IPPROTO_ICMPV6
		src, dst = &unix.SockaddrInet6{Addr: from.As16()}, &unix.SockaddrInet6{Addr: to.As16()}
		b = []byte{2, 0, 0, 0, 0, 0, 0x05, 0x14} // packet too big; the kernel adds the checksum
		b = append(b, 0x60, 0, 0, 0, 0, 8, 17, 64)
	}
	b = append(append(b, to.AsSlice()...), quoted.AsSlice()...)
	b = append(b, 0xc0, 0, 0x04, 0xaa, 0, 8, 0, 0) // UDP to port 1194
	if to.Is4() {
		sum := uint32(0)
		for i := 0; i < len(b); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(b[i:]))
		}
		for sum>>16 != 0 {
			sum = sum>>16 + sum&0xffff
		}
		binary.BigEndian.PutUint16(b[2:], ^uint16(sum))
	}
	r.in(r.inet, func() {
		fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, protocol)
		if err != nil {
			r.t.Fatal(err)
		}
		defer unix.Close(fd)
		if err := unix.Bind(fd, src); err != nil {
			r.t.Fatal(err)
		}
		if err := unix.Sendto(fd, b, 0, dst); err != nil {
			r.t.Fatal(err)
		}
	})
}
