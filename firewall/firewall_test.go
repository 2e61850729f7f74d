package firewall_test

import (
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"lethe/firewall"
)

// hole is a rule, what it refuses, and how the rules look without it.
type hole struct {
	name    string
	without []string // pairs: text, replacement
	probe   func(l *lab) bool
}

// openForward and the like turn a chain's default around: many refusals hold
// twice, once by their rule and once by the default.
var (
	openForward = []string{"hook forward priority filter; policy drop", "hook forward priority filter; policy accept"}
	openInput   = []string{"hook input priority filter; policy drop", "hook input priority filter; policy accept"}
	openOutput  = []string{"hook output priority filter; policy drop", "hook output priority filter; policy accept"}
	openTunnel  = append([]string{"ct state related accept\n\t\tdrop", "ct state related accept"}, openInput...)
	tuns        = `{ "lethe0", "lethe1" }`
	noSpoofRule = []string{"ip6 saddr @up6 accept\n\t\tdrop", "ip6 saddr @up6 accept", "ip saddr { 10.64.0.0/16, 10.65.0.0/16 } drop", "",
		"ip6 saddr { fd6c:6574:6865::/112, fd6c:6574:6865:1::/112 } drop", ""}
)

func holes() []hole {
	far := func(n, remote string) func(*lab) bool {
		return func(l *lab) bool { return l.reach(l.clients[0].ns, n, "", remote) }
	}
	refused := "reject with icmpx admin-prohibited"
	list := []hole{
		{"spoofed IPv4 source of nobody", noSpoofRule, spoof(0, "10.64.9.9", "203.0.113.9")},
		{"spoofed IPv6 source of nobody", noSpoofRule, spoof(0, "fd6c:6574:6865::99", "2001:db8:9::9")},
		{"spoofed source of another tunnel's client", []string{"ip6 saddr fd6c:6574:6865::/112 ip6 saddr @up6 accept", "ip6 saddr @up6 accept"},
			func(l *lab) bool { return spoof(0, l.clients[2].v6.String(), "2001:db8:9::9")(l) }},
		{"client to client on one tunnel", append([]string{"oifname " + tuns + " " + refused, ""}, openForward...),
			func(l *lab) bool { return l.reach(l.clients[0].ns, "udp", "", l.clients[1].v4.String()+":9") }},
		{"client to client on one tunnel, IPv6", append([]string{"oifname " + tuns + " " + refused, ""}, openForward...),
			func(l *lab) bool { return l.reach(l.clients[0].ns, "tcp", "", "["+l.clients[1].v6.String()+"]:9") }},
		{"client to client across tunnels", append([]string{"oifname " + tuns + " " + refused, ""}, openForward...),
			func(l *lab) bool { return l.reach(l.clients[0].ns, "udp", "", l.clients[2].v4.String()+":9") }},
		{"mail", []string{"tcp dport { 25, 465 } reject with tcp reset", ""}, far("tcp", "203.0.113.9:25")},
		{"mail over IPv6", []string{"tcp dport { 25, 465 } reject with tcp reset", ""}, far("tcp", "[2001:db8:9::9]:465")},
		{"client to the server's public address", openTunnel, far("tcp", serverV4+":22")},
		{"client to the server's public IPv6 address", openTunnel, far("tcp", "["+serverV6+"]:22")},
		{"client to the server's tunnel address", openTunnel, far("tcp", "10.65.0.1:22")},
		{"client to a VPN port", openTunnel, far("tcp", serverV4+":20443")},
		{"internet to a port of the server", openInput, outside("tcp", serverV4+":22")},
		{"internet to a port of the server, IPv6", openInput, outside("udp", "["+serverV6+"]:22")},
		{"internet to a daemon's own port", []string{"udp dport { 21194, 21195 } fib daddr type local drop", "", "ct status dnat udp", "udp"}, outside("udp", serverV4+":21194")},
		{"internet to a daemon's own TCP port, IPv6", []string{"tcp dport { 20443, 20444 } fib daddr type local drop", "", "ct status dnat tcp", "tcp"}, outside("tcp", "["+serverV6+"]:20443")},
		{"internet to a tunnel address", append([]string{"ip daddr { 10.64.0.0/16, 10.65.0.0/16 } drop", ""}, openForward...), arrives("203.0.113.9", 4)},
		{"internet to a tunnel address, IPv6", append([]string{"ip6 daddr { fd6c:6574:6865::/112, fd6c:6574:6865:1::/112 } drop", ""}, openForward...), arrives("2001:db8:9::9", 6)},
		{"tunnel source from the internet", append([]string{"ip6 saddr { fd6c:6574:6865::/112, fd6c:6574:6865:1::/112 } drop", ""}, openInput...),
			func(l *lab) bool {
				return l.seen(l.home, func() {
					l.raw(udpPacket(at(l.clients[0].v6, 5), netip.MustParseAddrPort("["+serverV6+"]:22"), []byte("x")))
				})
			}},
		{"server to the internet", openOutput, func(l *lab) bool { return l.reach(l.server, "tcp", "", "203.0.113.9:7") }},
		{"DNS queries of another user than the resolver", openOutput, func(l *lab) bool { return l.as(99, "udp", "203.0.113.9:53") }},
		{"control plane's address at another port", openOutput, func(l *lab) bool { return l.reach(l.server, "tcp", "", "[2001:db8:9::9]:7") }},
		{"source port kept (port shadowing)", []string{"masquerade to :32768-60999 fully-random", "masquerade"}, func(l *lab) bool { return shadow(l, "203.0.113.9:7") }},
		{"source port kept (port shadowing), IPv6", []string{"masquerade to :32768-60999 fully-random", "masquerade"}, func(l *lab) bool { return shadow(l, "[2001:db8:9::9]:7") }},
		{"protocol without ports", append([]string{"meta l4proto { tcp, udp, icmp, icmpv6 } ct state new accept\n\t\t" + refused, ""}, openForward...), gre},
		{"answer to no question (invalid)", append([]string{"ct state invalid drop", "", "ct state new accept\n\t\t" + refused, "accept"}, openForward...), strayEchoReply},
		{"traffic to a tunnel address without session", append([]string{"ip6 daddr @down6 accept\n\t\tdrop", "ip6 daddr @down6 accept"}, openOutput...), stray},
	}
	for _, a := range extras {
		if addr := netip.MustParsePrefix(a).Addr(); a != "203.0.113.9/32" && a != "2001:db8:9::9/128" {
			list = append(list, hole{"client to the special address " + addr.String(),
				[]string{"}" + " " + refused, "} accept", "2000::/3 " + refused, "2000::/3 accept"},
				far("udp", netip.AddrPortFrom(addr, 7).String())})
		}
	}
	return list
}

func at(a netip.Addr, port uint16) netip.AddrPort { return netip.AddrPortFrom(a, port) }

// seen reports whether an echo gets something when f sends.
func (l *lab) seen(e *echo, f func()) bool {
	before := e.count.Load()
	f()
	end := time.Now().Add(patience)
	for time.Now().Before(end) && e.count.Load() == before {
		time.Sleep(time.Millisecond)
	}
	return e.count.Load() > before
}

// spoof injects a packet with a source of its own choice into a tunnel.
func spoof(tunnel int, src, dst string) func(*lab) bool {
	return func(l *lab) bool {
		p := udpPacket(at(netip.MustParseAddr(src), 4000), at(netip.MustParseAddr(dst), 7), []byte("x"))
		return l.seen(l.far, func() { _, _ = l.tuns[tunnel].Write(p) })
	}
}

func outside(network, remote string) func(*lab) bool {
	return func(l *lab) bool { return l.reach(l.inet, network, "", remote) }
}

// arrives sends a packet from the internet straight to a client's tunnel address.
func arrives(src string, version int) func(*lab) bool {
	return func(l *lab) bool {
		c := l.clients[0]
		dst := map[int]netip.Addr{4: c.v4, 6: c.v6}[version]
		before := c.got.Load()
		l.raw(udpPacket(at(netip.MustParseAddr(src), 4000), at(dst, 9), []byte("x")))
		time.Sleep(patience)
		return c.got.Load() > before
	}
}

// as sends from the server as a user. The credentials of the thread, which ends
// with inNS, decide; Go's setuid would change all threads.
func (l *lab) as(uid uint32, network, remote string) (ok bool) {
	inNS(l.t, l.server, func() {
		if _, _, errno := unix.RawSyscall(unix.SYS_SETFSUID, uintptr(uid), 0, 0); errno != 0 {
			l.t.Fatal(errno)
		}
		ok = reach(network, "", remote)
	})
	return ok
}

// shadow reports whether a client's connection keeps the source port of a VPN
// port, so that packets to the VPN port from there would go to the client.
func shadow(l *lab, remote string) bool {
	c := l.clients[0]
	a := c.v4
	if strings.HasPrefix(remote, "[") {
		a = c.v6
	}
	// A port of its own for every try: conntrack remembers the last one's mapping.
	if !l.reach(c.ns, "udp", at(a, uint16(1194+shadows.Add(1))).String(), remote) {
		l.t.Error("the client's connection does not work at all")
	}
	port := l.far.last().Port()
	return port < firewall.FirstExitPort || port > firewall.LastExitPort
}

var shadows atomic.Int32

// gre sends a packet of a protocol without ports from a client.
func gre(l *lab) bool {
	c := l.clients[0]
	return l.rawSeen("ip4:47", func() {
		p := udpPacket(at(c.v4, 1), at(netip.MustParseAddr("203.0.113.9"), 1), []byte("payload."))
		p[9], p[10], p[11] = 47, 0, 0
		copy(p[20:24], []byte{0, 0, 8, 0}) // GRE without options, RFC 2784
		s := sum16(p[:20])
		p[10], p[11] = byte(s>>8), byte(s)
		_, _ = l.tuns[0].Write(p)
	})
}

// strayEchoReply sends an ICMP answer that nobody asked for from a client.
func strayEchoReply(l *lab) bool {
	c := l.clients[0]
	return l.rawSeen("ip4:1", func() {
		p := udpPacket(at(c.v4, 1), at(netip.MustParseAddr("203.0.113.9"), 1), nil)
		icmp := []byte{0, 0, 0, 0, 0x12, 0x34, 0, 1}
		s := sum16(icmp)
		icmp[2], icmp[3] = byte(s>>8), byte(s)
		p[9], p[10], p[11] = 1, 0, 0
		s = sum16(p[:20])
		p[10], p[11] = byte(s>>8), byte(s)
		_, _ = l.tuns[0].Write(append(p[:20], icmp...))
	})
}

// rawSeen reports whether a raw socket of the internet sees a packet when f sends.
func (l *lab) rawSeen(network string, f func()) bool {
	var pc net.PacketConn
	inNS(l.t, l.inet, func() {
		var err error
		if pc, err = net.ListenPacket(network, "203.0.113.9"); err != nil {
			l.t.Fatal(err)
		}
	})
	defer pc.Close()
	f()
	_ = pc.SetReadDeadline(time.Now().Add(patience))
	_, _, err := pc.ReadFrom(make([]byte, 1500))
	return err == nil
}

// stray sends a packet from the server to a tunnel address that has no session.
func stray(l *lab) bool {
	inNS(l.t, l.server, func() {
		c, err := net.Dial("udp", "10.64.200.200:9")
		if err != nil {
			l.t.Fatal(err)
		}
		defer c.Close()
		_, _ = c.Write([]byte("x"))
	})
	select {
	case <-l.strays:
		return true
	case <-time.After(patience):
		return false
	}
}

// TestHoles shows of every refusal that it holds with the rules, and that it is
// the rule that makes it: without it, the same probe gets through.
func TestHoles(t *testing.T) {
	l := newLab(t)
	k := l.counters()
	l.full(nil)
	l.admit(k)
	l.echo(l.inet, "203.0.113.9:25", "[2001:db8:9::9]:465", "203.0.113.9:53", "203.0.113.9:8443", "[2001:db8:9::9]:8443")
	l.home = l.echo(l.server, ":22", ":21194", ":21195", ":20443", ":20444")
	for _, c := range l.clients {
		l.echo(c.ns, at(c.v4, 9).String(), at(c.v6, 9).String())
	}
	for _, h := range holes() {
		t.Run(h.name, func(t *testing.T) {
			was := l.t
			l.t = t
			defer func() { l.t = was }()
			full := l.full(nil)
			if h.probe(l) {
				t.Error("passes")
			}
			spoiled := full
			for pair := range slices.Chunk(h.without, 2) {
				if !strings.Contains(spoiled, pair[0]) {
					t.Fatalf("no rule %q in:\n%s", pair[0], full)
				}
				spoiled = strings.ReplaceAll(spoiled, pair[0], pair[1])
			}
			l.load(spoiled)
			if !h.probe(l) {
				t.Errorf("the probe does not get through without the rule; it would not notice anything")
			}
		})
	}
}

// TestEarly shows a server without secrets and one without bundle: both answer at the activation port,
// the second reaches the control plane, and nothing else passes.
func TestEarly(t *testing.T) {
	l := newLab(t)
	l.config.Activation = 7443
	k := l.counters()
	l.echo(l.inet, "203.0.113.9:8443", "[2001:db8:9::9]:8443")
	l.echo(l.server, ":22", ":7443", serverV4+":21194")
	for _, state := range []struct {
		name    string
		rules   func() (string, error)
		control bool
	}{{"awaiting", l.config.Awaiting, false}, {"waiting", l.config.Waiting, true}} {
		rules, err := state.rules()
		if err != nil {
			t.Fatal(err)
		}
		l.load(rules)
		if !state.control { // the sessions' counters outlive the rules
			l.admit(k)
		}
		for name, c := range map[string]struct{ got, want bool }{
			"internet to activation":       {l.reach(l.inet, "tcp", "", serverV4+":7443"), true},
			"internet to activation, IPv6": {l.reach(l.inet, "tcp", "", "["+serverV6+"]:7443"), true},
			"internet to the UDP port":     {l.reach(l.inet, "udp", "", serverV4+":7443"), false},
			"control plane":                {l.reach(l.server, "tcp", "", "203.0.113.9:8443"), state.control},
			"control plane, IPv6":          {l.reach(l.server, "tcp", "", "[2001:db8:9::9]:8443"), state.control},
			"control plane, other port":    {l.reach(l.server, "tcp", "", "203.0.113.9:7"), false},
			"client to internet":           {l.reach(l.clients[0].ns, "udp", "", "203.0.113.9:7"), false},
			"client to server":             {l.reach(l.clients[0].ns, "tcp", "", serverV4+":22"), false},
			"client to activation":         {l.reach(l.clients[0].ns, "tcp", "", serverV4+":7443"), false},
			"internet to server":           {l.reach(l.inet, "tcp", "", serverV4+":22"), false},
			"internet to VPN port":         {l.reach(l.inet, "udp", "", serverV4+":1194"), false},
			"internet to a daemon's own":   {l.reach(l.inet, "udp", "", serverV4+":21194"), false},
		} {
			if c.got != c.want {
				t.Errorf("%s: %s: passes: %v, want %v", state.name, name, c.got, c.want)
			}
		}
	}
	// Who holds the activation port answers and dials nobody; by the rule for it. (No listener is on this one.)
	other := l.config
	other.Activation = 7442
	rules, err := other.Awaiting()
	if err != nil {
		t.Fatal(err)
	}
	const rule = "tcp sport 7442 tcp flags & (fin | syn | rst | ack) == syn drop"
	for _, c := range []struct {
		rules string
		want  bool
	}{{rules, false}, {strings.Replace(rules, `oifname { "up0" } `+rule, "", 1), true}} {
		l.load(c.rules)
		if got := l.reach(l.server, "tcp", serverV4+":7442", "203.0.113.9:7"); got != c.want {
			t.Errorf("from the activation port to the internet: %t, want %t", got, c.want)
		}
	}
	for name, spoil := range map[string]func(*firewall.Config){
		"an impossible uplink": func(c *firewall.Config) { c.Uplinks = []string{"lo"} },
		"no uplink":            func(c *firewall.Config) { c.Uplinks = nil },
		"an impossible port":   func(c *firewall.Config) { c.Activation = 40000 },
	} {
		c := l.config
		spoil(&c)
		if _, err := c.Awaiting(); err == nil {
			t.Errorf("rules for %s", name)
		}
	}
	l.config.Control = nil
	if _, err := l.config.Waiting(); err == nil {
		t.Error("rules for no control plane")
	}
}
