package firewall_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"lethe/firewall"
	"lethe/session"
)

// lab is three kinds of network namespaces: an internet, a server, and clients.
//
// The server's tunnels are real TUN interfaces; in place of OpenVPN, a goroutine
// carries packets between a server's TUN and the clients', by destination
// address, and counts their bytes.
type lab struct {
	t       testing.TB
	name    string
	server  string
	inet    string
	clients []*client
	config  firewall.Config
	tuns    []*os.File // the server's, one for each tunnel
	home    *echo      // the server's own listeners
	strays  chan bool  // told of packets to tunnel addresses of nobody
	far     *echo      // answers at port 7 everywhere on the internet
}

// client is one customer's machine.
type client struct {
	ns     string
	tunnel int // index of the server's tunnel
	v4, v6 netip.Addr
	tun    *os.File
	sent   atomic.Uint64 // bytes of packets that left this client
	got    atomic.Uint64 // bytes of packets that reached this client
}

const (
	serverV4, serverV6 = "198.51.100.1", "2001:db8:1::1"
	inetV4, inetV6     = "198.51.100.2", "2001:db8:1::2"
)

// extras are addresses that the test's internet answers on besides its own: those
// that customers may reach and, since a wrong rule must have something to hit,
// those that they may not.
var extras = []string{
	"203.0.113.9/32", "192.168.7.7/32", "10.9.9.9/32", "172.16.1.1/32", "100.64.1.1/32", "169.254.169.254/32",
	"2001:db8:9::9/128", "fd00::9/128", "64:ff9b::a09:909/128", "2002:a09:909::1/128",
}

// newLab builds the namespaces, with two clients on the first tunnel and one on
// the second. No rules are loaded.
func newLab(t testing.TB) *lab {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("network namespaces need root")
	}
	l := &lab{t: t, strays: make(chan bool, 16), name: fmt.Sprintf("lethe-fw-%d-%d", os.Getpid(), labs.Add(1))}
	l.server, l.inet = l.netns("srv"), l.netns("net")
	l.ip("link", "add", "up0", "netns", l.server, "type", "veth", "peer", "name", "up0", "netns", l.inet)
	l.address(l.server, "up0", serverV4+"/24", serverV6+"/64")
	l.address(l.inet, "up0", inetV4+"/24", inetV6+"/64")
	l.address(l.inet, "lo", extras...)
	l.address(l.server, "lo")
	l.ip("-n", l.server, "route", "add", "default", "via", inetV4)
	l.ip("-n", l.server, "-6", "route", "add", "default", "via", inetV6)
	// The internet of an attacker on the link: it sends packets for tunnel networks.
	for d := range uint8(2) {
		l.ip("-n", l.inet, "route", "add", session.SubnetsOf(d).V4.String(), "via", serverV4)
		l.ip("-n", l.inet, "-6", "route", "add", session.SubnetsOf(d).V6.String(), "via", serverV6)
	}
	l.config = firewall.Config{
		Uplinks: []string{"up0"},
		Ports: []firewall.Port{
			{Network: "udp", Public: 1194, Daemons: []uint16{21194, 21195}},
			{Network: "tcp", Public: 443, Daemons: []uint16{20443, 20444}},
			{Network: "udp", Public: 4500, Daemons: []uint16{4500}},
			{Network: "tcp", Public: 993, Daemons: []uint16{993}},
		},
		ResolverUID: 4242, BlockTCP: []uint16{25, 465}, Seed: 7,
		Control: []netip.AddrPort{netip.MustParseAddrPort("203.0.113.9:8443"), netip.MustParseAddrPort("[2001:db8:9::9]:8443")},
	}
	inNS(t, l.server, func() {
		if err := firewall.ApplySysctls(); err != nil {
			t.Fatal(err)
		}
	})
	l.tunnels()
	l.far = l.echo(l.inet, everywhere(7)...)
	// A new link carries nothing for up to a second.
	for _, a := range []string{inetV4 + ":7", "[" + inetV6 + "]:7"} {
		if !eventually(func() bool { return l.reach(l.server, "udp", "", a) }) {
			t.Fatal("the uplink does not come up")
		}
	}
	return l
}

var labs atomic.Int32

// tunnels makes two TUN interfaces on the server and one on each client.
func (l *lab) tunnels() {
	for d := range uint8(2) {
		nets, name := session.SubnetsOf(d), fmt.Sprintf("lethe%d", d)
		l.tuns = append(l.tuns, l.tun(l.server, name))
		own4, own6 := nets.V4.Addr().Next(), nets.V6.Addr().Next()
		l.address(l.server, name, netip.PrefixFrom(own4, 16).String(), netip.PrefixFrom(own6, 112).String())
		l.config.Tunnels = append(l.config.Tunnels, firewall.Tunnel{Device: name, V4: nets.V4, V6: nets.V6})
		l.config.Resolvers = append(l.config.Resolvers, own4, own6)
	}
	for i, d := range []uint8{0, 0, 1} {
		nets := session.SubnetsOf(d)
		c := &client{ns: l.netns(fmt.Sprintf("c%d", i)), tunnel: int(d), v4: nets.V4.Addr(), v6: nets.V6.Addr()}
		for range 5 + i {
			c.v4, c.v6 = c.v4.Next(), c.v6.Next()
		}
		c.tun = l.tun(c.ns, "tun0")
		l.address(c.ns, "tun0", c.v4.String()+"/32", c.v6.String()+"/128")
		l.ip("-n", c.ns, "route", "add", "default", "dev", "tun0")
		l.ip("-n", c.ns, "-6", "route", "add", "default", "dev", "tun0")
		l.clients = append(l.clients, c)
	}
	var wg sync.WaitGroup
	for d, tun := range l.tuns {
		wg.Go(func() { l.down(d, tun) })
	}
	for _, c := range l.clients {
		wg.Go(func() { l.up(c, l.tuns[c.tunnel]) })
	}
	l.t.Cleanup(func() {
		for _, f := range l.tuns {
			_ = f.Close()
		}
		for _, c := range l.clients {
			_ = c.tun.Close()
		}
		wg.Wait()
	})
}

// up carries packets from a client to the server.
func (l *lab) up(c *client, server *os.File) {
	buf := make([]byte, 1<<16)
	for {
		n, err := c.tun.Read(buf)
		if err != nil {
			return
		}
		if _, src, _ := ends(buf[:n]); src == c.v4 || src == c.v6 {
			c.sent.Add(uint64(n))
		}
		_, _ = server.Write(buf[:n])
	}
}

// down carries packets from the server to that client of the tunnel whose address
// they bear.
func (l *lab) down(tunnel int, server *os.File) {
	buf := make([]byte, 1<<16)
	for {
		n, err := server.Read(buf)
		if err != nil {
			return
		}
		_, _, dst := ends(buf[:n])
		if dst == netip.MustParseAddr("10.64.200.200") {
			l.strays <- true
		}
		for _, c := range l.clients {
			if c.tunnel == tunnel && (c.v4 == dst || c.v6 == dst) {
				c.got.Add(uint64(n))
				_, _ = c.tun.Write(buf[:n])
			}
		}
	}
}

// ends returns version and addresses of an IP packet.
func ends(p []byte) (version byte, src, dst netip.Addr) {
	switch version = p[0] >> 4; version {
	case 4:
		src, _ = netip.AddrFromSlice(p[12:16])
		dst, _ = netip.AddrFromSlice(p[16:20])
	case 6:
		src, _ = netip.AddrFromSlice(p[8:24])
		dst, _ = netip.AddrFromSlice(p[24:40])
	}
	return version, src, dst
}

// netns makes a network namespace that goes with the test.
func (l *lab) netns(suffix string) string {
	name := l.name + "-" + suffix
	l.ip("netns", "add", name)
	inNS(l.t, name, func() { // no second of waiting for duplicates of link-local addresses
		if err := os.WriteFile("/proc/sys/net/ipv6/conf/default/accept_dad", []byte("0"), 0); err != nil {
			l.t.Fatal(err)
		}
	})
	l.t.Cleanup(func() { l.ip("netns", "del", name) })
	return name
}

func (l *lab) ip(args ...string) {
	l.t.Helper()
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		l.t.Fatalf("ip %s: %v: %s", strings.Join(args, " "), err, out)
	}
}

// address brings an interface up with addresses.
func (l *lab) address(ns, dev string, addrs ...string) {
	l.t.Helper()
	for _, a := range addrs {
		args := []string{"-n", ns, "addr", "add", a, "dev", dev}
		if strings.Contains(a, ":") {
			args = append(args, "nodad")
		}
		l.ip(args...)
	}
	l.ip("-n", ns, "link", "set", dev, "up")
}

// tun makes a TUN interface in a namespace.
func (l *lab) tun(ns, name string) (f *os.File) {
	l.t.Helper()
	inNS(l.t, ns, func() {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err != nil {
			l.t.Fatal(err)
		}
		req, err := unix.NewIfreq(name)
		if err != nil {
			l.t.Fatal(err)
		}
		req.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
		if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
			l.t.Fatal(err)
		}
		f = os.NewFile(uintptr(fd), "tun")
	})
	return f
}

// inNS runs f in a network namespace, on a thread that ends afterwards. Sockets
// that f opens stay there.
func inNS(t testing.TB, ns string, f func()) {
	t.Helper()
	done := make(chan bool)
	var failed error
	go func() {
		ok := false
		defer func() { done <- ok }()
		runtime.LockOSThread() // never unlocked: the thread goes with the goroutine
		fd, err := unix.Open("/run/netns/"+ns, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err == nil {
			err = unix.Setns(fd, unix.CLONE_NEWNET)
			_ = unix.Close(fd)
		}
		if failed = err; err == nil {
			f()
		}
		ok = true
	}()
	if !<-done { // f has called Fatal on its goroutine
		t.FailNow()
	}
	if failed != nil {
		t.Fatalf("enter namespace: %v", failed)
	}
}

// load loads rules in the server's namespace.
func (l *lab) load(rules string) {
	l.t.Helper()
	inNS(l.t, l.server, func() {
		if err := firewall.Load(context.Background(), rules); err != nil {
			l.t.Fatalf("%v: %v", err, unwrapAll(err))
		}
	})
}

func unwrapAll(err error) error {
	for {
		u, ok := err.(interface{ Unwrap() error })
		if !ok || u.Unwrap() == nil {
			return err
		}
		err = u.Unwrap()
	}
}

// full loads the full rules after edit has changed them, and admits all clients.
func (l *lab) full(edit func(string) string) string {
	l.t.Helper()
	rules, err := l.config.Rules()
	if err != nil {
		l.t.Fatal(err)
	}
	if edit != nil {
		rules = edit(rules)
	}
	l.load(rules)
	return rules
}

func (l *lab) counters() (c *firewall.Counters) {
	l.t.Helper()
	inNS(l.t, l.server, func() {
		var err error
		if c, err = firewall.OpenCounters(); err != nil {
			l.t.Fatal(err)
		}
	})
	l.t.Cleanup(func() { _ = c.Close() })
	return c
}

func (l *lab) admit(c *firewall.Counters) {
	l.t.Helper()
	for _, cl := range l.clients {
		if err := c.Add(cl.v4, cl.v6); err != nil {
			l.t.Fatal(err, unwrapAll(err))
		}
	}
}

// echo serves UDP and TCP on addresses of a namespace: what comes in goes back, and
// the sender as the server sees it is kept.
func (l *lab) echo(ns string, addrs ...string) *echo {
	l.t.Helper()
	e := &echo{}
	inNS(l.t, ns, func() {
		for _, a := range addrs {
			pc, err := net.ListenPacket("udp", a)
			if err != nil {
				l.t.Fatal(err)
			}
			ln, err := net.Listen("tcp", a)
			if err != nil {
				l.t.Fatal(err)
			}
			e.serve(l.t, pc, ln)
		}
	})
	return e
}

// everywhere are the addresses of the internet at one port.
func everywhere(port int) (list []string) {
	for _, a := range append([]string{inetV4 + "/32", inetV6 + "/128"}, extras...) {
		list = append(list, netip.AddrPortFrom(netip.MustParsePrefix(a).Addr(), uint16(port)).String())
	}
	return list
}

type echo struct {
	mu    sync.Mutex
	peers []netip.AddrPort
	count atomic.Int32
}

func (e *echo) serve(t testing.TB, pc net.PacketConn, ln net.Listener) {
	var wg sync.WaitGroup
	wg.Go(func() {
		buf := make([]byte, 1<<16)
		for {
			n, from, err := pc.(*net.UDPConn).ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			e.saw(from)
			_, _ = pc.(*net.UDPConn).WriteToUDPAddrPort(buf[:n], from)
		}
	})
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			e.saw(c.RemoteAddr().(*net.TCPAddr).AddrPort())
			wg.Go(func() {
				defer c.Close()
				_ = c.SetDeadline(time.Now().Add(5 * time.Second))
				buf := make([]byte, 1<<16)
				for {
					n, err := c.Read(buf)
					if err != nil {
						return
					}
					_, _ = c.Write(buf[:n])
				}
			})
		}
	})
	t.Cleanup(func() {
		_ = pc.Close()
		_ = ln.Close()
		wg.Wait()
	})
}

func (e *echo) saw(p netip.AddrPort) {
	e.count.Add(1)
	e.mu.Lock()
	defer e.mu.Unlock()
	e.peers = append(e.peers, p)
}

func (e *echo) last() netip.AddrPort {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.peers) == 0 {
		return netip.AddrPort{}
	}
	return e.peers[len(e.peers)-1]
}

// patience is how long a probe waits for an answer that should not come. The
// namespaces are on this machine; an answer takes well under a millisecond.
const patience = 250 * time.Millisecond

// reach sends four bytes from a namespace and reports whether they come back.
// local may be empty.
func (l *lab) reach(ns, network, local, remote string) (ok bool) {
	inNS(l.t, ns, func() { ok = reach(network, local, remote) })
	return ok
}

// reach is lab.reach in the current namespace.
func reach(network, local, remote string) bool {
	d := net.Dialer{Timeout: patience, KeepAlive: -1, Control: func(_, _ string, rc syscall.RawConn) error {
		var err error
		if e := rc.Control(func(fd uintptr) {
			_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
			_ = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_FREEBIND, 1)
		}); e != nil {
			return e
		}
		return err
	}}
	if local != "" {
		ap := netip.MustParseAddrPort(local)
		if d.LocalAddr = net.Addr(net.UDPAddrFromAddrPort(ap)); network == "tcp" {
			d.LocalAddr = net.TCPAddrFromAddrPort(ap)
		}
	}
	c, err := d.DialContext(context.Background(), network, remote)
	if err != nil {
		return false
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	if _, err := c.Write([]byte("ping")); err != nil {
		return false
	}
	b := make([]byte, 4)
	n, err := c.Read(b)
	return err == nil && string(b[:n]) == "ping"
}

// udpPacket is a hand-made UDP packet for addresses that no socket would send
// from.
func udpPacket(src, dst netip.AddrPort, payload []byte) []byte {
	udp := binary.BigEndian.AppendUint16(nil, src.Port())
	udp = binary.BigEndian.AppendUint16(udp, dst.Port())
	udp = binary.BigEndian.AppendUint16(udp, uint16(8+len(payload)))
	udp = append(append(udp, 0, 0), payload...)
	binary.BigEndian.PutUint16(udp[6:], udpSum(src.Addr(), dst.Addr(), udp))
	if src.Addr().Is6() {
		ip := []byte{0x60, 0, 0, 0, byte(len(udp) >> 8), byte(len(udp)), 17, 64}
		return append(append(append(ip, src.Addr().AsSlice()...), dst.Addr().AsSlice()...), udp...)
	}
	n := 20 + len(udp)
	ip := []byte{0x45, 0, byte(n >> 8), byte(n), 0, 1, 0, 0, 64, 17, 0, 0}
	ip = append(append(ip, src.Addr().AsSlice()...), dst.Addr().AsSlice()...)
	binary.BigEndian.PutUint16(ip[10:], sum16(ip))
	return append(ip, udp...)
}

func udpSum(src, dst netip.Addr, udp []byte) uint16 {
	pseudo := append(src.AsSlice(), dst.AsSlice()...)
	pseudo = append(pseudo, 0, 17, byte(len(udp)>>8), byte(len(udp)))
	return sum16(append(pseudo, udp...))
}

func sum16(b []byte) uint16 {
	var s uint32
	for i := 0; i+1 < len(b); i += 2 {
		s += uint32(b[i])<<8 | uint32(b[i+1])
	}
	if len(b)%2 == 1 {
		s += uint32(b[len(b)-1]) << 8
	}
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return ^uint16(s)
}

// raw returns a socket of the internet's namespace that sends whole IP packets.
func (l *lab) raw(packet []byte) {
	l.t.Helper()
	version, _, dst := ends(packet)
	family := unix.AF_INET
	if version == 6 {
		family = unix.AF_INET6
	}
	inNS(l.t, l.inet, func() {
		fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		if err != nil {
			l.t.Fatal(err)
		}
		defer unix.Close(fd)
		var to unix.Sockaddr = &unix.SockaddrInet6{Addr: dst.As16()}
		if version == 4 {
			to = &unix.SockaddrInet4{Addr: dst.As4()}
		}
		if err := unix.Sendto(fd, packet, 0, to); err != nil {
			l.t.Fatal(err)
		}
	})
}

// eventually waits until f is true, at most two seconds.
func eventually(f func() bool) bool {
	for range 200 {
		if f() {
			return true
		}
		time.Sleep(10 * time.Millisecond)
	}
	return f()
}
