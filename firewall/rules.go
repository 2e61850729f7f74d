package firewall

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
)

// special4 are the IPv4 networks that customers cannot reach (RFC 6890 and its
// registry, clouds' metadata among them: 169.254.169.254). The three networks for
// documentation (RFC 5737) are left out: nobody routes them, and a lab's internet
// lives there.
var special4 = []string{
	"0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
	"192.31.196.0/24", "192.52.193.0/24", "192.88.99.0/24", "192.168.0.0/16", "192.175.48.0/24", "198.18.0.0/15", "224.0.0.0/3",
}

// special6 are the networks inside the global unicast range 2000::/3, the only one
// that customers can reach, that lead elsewhere: Teredo and 6to4 wrap IPv4
// addresses, private ones too.
var special6 = []string{"2001::/32", "2001:2::/48", "2001:10::/28", "2001:20::/28", "2002::/16"}

// frame is every chain and set, in the order in which a packet meets them. But for two
// chains for each tunnel it is the same for every ruleset, so that a swap leaves none
// behind; a tunnel's chains stay, empty, and nothing leads there. %s are the rules.
//
// Every packet of every customer passes here at least twice, so what all of them need
// comes first and a device's name, which is long to compare, is looked at once in a
// chain: with a rule for each tunnel and kind of packet the rules cost 8 to 10 % of
// OpenVPN's processor time, and more with every process.
const frame = `add table inet lethe
flush table inet lethe
table inet lethe {
	set up4 { type ipv4_addr; counter; }
	set up6 { type ipv6_addr; counter; }
	set down4 { type ipv4_addr; counter; }
	set down6 { type ipv6_addr; counter; }
	set up4joined { type ipv4_addr; counter; }
	set up6joined { type ipv6_addr; counter; }
	set down4joined { type ipv4_addr; counter; }
	set down6joined { type ipv6_addr; counter; }

%s	chain prerouting_raw {
		type filter hook prerouting priority raw; policy accept;
%s	}
%s	chain activation {
%s	}
	chain prerouting_nat {
		type nat hook prerouting priority dstnat; policy accept;
%s	}
	chain tunnel_input {
%s	}
	chain input {
		type filter hook input priority filter; policy drop;
		iifname "lo" accept
%s	}
	chain tunnel_forward {
%s	}
	chain from_tunnel {
%s	}
	chain to_tunnel {
%s	}
	chain forward {
		type filter hook forward priority filter; policy drop;
%s	}
	chain output_raw {
		type filter hook output priority raw; policy accept;
%s	}
	chain output {
		type filter hook output priority filter; policy drop;
		oifname "lo" accept
%s	}
	chain postrouting_count {
		type filter hook postrouting priority mangle; policy accept;
%s	}
	chain postrouting_nat {
		type nat hook postrouting priority srcnat; policy accept;
%s	}
}
`

// Closed returns the rules under which nothing passes but the machine's own
// loopback. Live sessions keep their counters.
func Closed() string { return frameOf(chains{}) }

// chains are the rules of each chain of the frame, and the tunnels' own chains.
type chains struct {
	tunnels, activation                                     string
	preroutingRaw, preroutingNAT, tunnelInput, input        string
	tunnelForward, fromTunnel, toTunnel, forward, outputRaw string
	output, count, postroutingNAT                           string
}

func frameOf(c chains) string {
	return fmt.Sprintf(frame, c.tunnels, c.preroutingRaw, activationParts, c.activation, c.preroutingNAT, c.tunnelInput, c.input, c.tunnelForward,
		c.fromTunnel, c.toTunnel, c.forward, c.outputRaw, c.output, c.count, c.postroutingNAT)
}

// The limit of new connections to the activation port. It holds for each part of all sources by
// itself (IPv4 addresses and IPv6 /64 networks, by a hash that outsiders cannot foretell): who floods the
// port from one place keeps only the rest of that part out, and the kernel remembers nobody for it.
const (
	activationBuckets = 16
	activationRate    = "8/second burst 16 packets"
)

// activationParts is a chain with its own limit for each part.
var activationParts = func() string {
	var b strings.Builder
	for i := range activationBuckets {
		fmt.Fprintf(&b, "\tchain activation_%d {\n\t\tlimit rate %s accept\n\t\tdrop\n\t}\n", i, activationRate)
	}
	return b.String()
}()

// activation leads a new connection to its part.
func (c renderer) activation() string {
	if c.Activation == 0 {
		return ""
	}
	parts := make([]string, activationBuckets)
	for i := range parts {
		parts[i] = fmt.Sprintf("%d : goto activation_%d", i, i)
	}
	var r rules
	// The first half of an IPv6 source lies 64 bits behind the beginning of the header.
	for _, f := range []struct{ version, source string }{{"ipv4", "ip saddr"}, {"ipv6", "@nh,64,64"}} {
		r.add("meta nfproto %s jhash %s mod %d seed 0x%08x vmap %s", f.version, f.source, activationBuckets, c.Seed, braces(parts))
	}
	return r.String()
}

// syn is the first packet of a connection (RFC 9293, section 3.5).
const syn = "tcp flags & (fin | syn | rst | ack) == syn"

// Awaiting returns the rules of a server that has no secrets: anybody may ask at its
// activation port, and nothing leaves but the answers and what an address takes. Of c only Uplinks,
// Activation and Seed matter.
func (c Config) Awaiting() (string, error) {
	c.Control = nil
	return c.early()
}

// Waiting returns the rules of a server that has its secrets and no bundle yet: as
// [Config.Awaiting], and it reaches the control plane. Of c only Control matters beside.
func (c Config) Waiting() (string, error) {
	if len(c.Control) == 0 {
		return "", fmt.Errorf("firewall: want at least one address of the control plane")
	}
	return c.early()
}

func (c Config) early() (string, error) {
	if len(c.Uplinks) == 0 {
		return "", fmt.Errorf("firewall: want at least one uplink")
	}
	if err := errors.Join(c.validateNames(c.Uplinks), c.validateControl(), c.validateActivation()); err != nil {
		return "", err
	}
	r := renderer{Config: Config{Uplinks: c.Uplinks, Control: c.Control, Activation: c.Activation, Seed: c.Seed}, uplinks: quoted(c.Uplinks)}
	return frameOf(chains{
		preroutingRaw: r.untracked(), activation: r.activation(), input: r.open() + r.replies(), outputRaw: r.outputRaw(), output: r.output(),
	}), nil
}

// Rules returns the full rules as text for [Load].
func (c Config) Rules() (string, error) {
	if err := c.Validate(); err != nil {
		return "", err
	}
	r := renderer{Config: c, uplinks: quoted(c.Uplinks)}
	var tunnels []string
	var v4, v6 []netip.Prefix
	for _, t := range c.Tunnels {
		tunnels, v4, v6 = append(tunnels, t.Device), append(v4, t.V4), append(v6, t.V6)
	}
	r.tunnels, r.v4, r.v6 = quoted(tunnels), braces(v4), braces(v6)
	return frameOf(chains{
		tunnels: r.perTunnel(), preroutingRaw: r.prerouting(), activation: r.activation(), preroutingNAT: r.redirect(), tunnelInput: r.tunnelInput(),
		input: r.input(), tunnelForward: r.tunnelForward(), fromTunnel: r.fromTunnel(), toTunnel: r.toTunnel(),
		forward: r.forward(), outputRaw: r.outputRaw(), output: r.output(), count: r.count(), postroutingNAT: r.masquerade(),
	}), nil
}

// renderer is a Config with its lists as nft sets.
type renderer struct {
	Config
	uplinks, tunnels, v4, v6 string
}

// rules collects lines.
type rules struct{ strings.Builder }

func (r *rules) add(format string, args ...any) { fmt.Fprintf(r, "\t\t"+format+"\n", args...) }

func braces[T any](list []T) string {
	text := make([]string, len(list))
	for i, v := range list {
		text[i] = fmt.Sprint(v)
	}
	return "{ " + strings.Join(text, ", ") + " }"
}

func quoted(names []string) string { return `{ "` + strings.Join(names, `", "`) + `" }` }

// perTunnel is the chains up_N and down_N of tunnel N: what a customer sends and
// receives passes when its address has a session on this tunnel, and is counted.
func (c renderer) perTunnel() string {
	var b strings.Builder
	for i, t := range c.Tunnels {
		for _, way := range []struct{ name, side string }{{"up", "saddr"}, {"down", "daddr"}} {
			var r rules
			for _, then := range []struct{ when, set, verdict string }{{fmt.Sprintf("meta length > %d ", joinedLength), "joined", ""}, {"", "", " accept"}} {
				r.add("%sip %s %v ip %s @%s4%s%s", then.when, way.side, t.V4, way.side, way.name, then.set, then.verdict)
				r.add("%sip6 %s %v ip6 %s @%s6%s%s", then.when, way.side, t.V6, way.side, way.name, then.set, then.verdict)
			}
			r.add("drop")
			fmt.Fprintf(&b, "\tchain %s_%d {\n%s\t}\n", way.name, i, &r)
		}
	}
	return b.String()
}

// each is a map from the devices of tunnels to verdicts, %d being a tunnel's number.
func (c renderer) each(verdict string, more ...string) string {
	for i, t := range c.Tunnels {
		v := verdict
		if strings.Contains(v, "%d") {
			v = fmt.Sprintf(v, i)
		}
		more = append(more, fmt.Sprintf("%q : %s", t.Device, v))
	}
	return braces(more)
}

func (c renderer) prerouting() string {
	var r rules
	r.add("iifname vmap %s", c.each("goto up_%d", `"lo" : accept`))
	for _, side := range []string{"saddr", "daddr"} {
		r.add("ip %s %s drop", side, c.v4)
		r.add("ip6 %s %s drop", side, c.v6)
	}
	for _, p := range c.Ports {
		if !p.direct() {
			r.add("%s dport %s fib daddr type local drop", p.Network, braces(p.Daemons))
		}
	}
	return r.String() + c.untracked()
}

// untracked keeps what comes to the ports of listeners out of the table of connections.
func (c renderer) untracked() string {
	var r rules
	for _, d := range c.directs() {
		r.add("%s dport %s fib daddr type local notrack", d.network, d.ports)
	}
	return r.String()
}

// direct are the ports of one network whose daemons listen on them, the activation port among them.
type direct struct{ network, ports string }

// number is the network's protocol number (RFC 791, RFC 8200).
func (d direct) number() string { return map[string]string{"udp": "17", "tcp": "6"}[d.network] }

func (c renderer) directs() (all []direct) {
	for _, network := range []string{"udp", "tcp"} {
		var ports []uint16
		for _, p := range c.Ports {
			if p.Network == network && p.direct() {
				ports = append(ports, p.Public)
			}
		}
		if network == "tcp" && c.Activation != 0 {
			ports = append(ports, c.Activation)
		}
		if len(ports) > 0 {
			all = append(all, direct{network, braces(ports)})
		}
	}
	return all
}

func (c renderer) redirect() string {
	var r rules
	for _, t := range c.Tunnels {
		// The mark by which the connections of a session are forgotten; see marks.
		net := t.V4.Addr().As4()
		r.add(`iifname "%s" ip saddr %v ct mark set @nh,96,32`, t.Device, t.V4)
		r.add(`iifname "%s" ip6 saddr %v ct mark set @nh,160,32 and 0x0000ffff or 0x%02x%02x0000`, t.Device, t.V6, net[0], net[1])
	}
	for _, p := range c.Ports {
		if p.direct() {
			continue
		}
		to := fmt.Sprint(p.Daemons[0])
		for _, family := range []string{"ip", "ip6"} {
			if n := len(p.Daemons); n > 1 {
				var slots []string
				for i, d := range p.Daemons {
					slots = append(slots, fmt.Sprintf("%d : %d", i, d))
				}
				to = fmt.Sprintf("jhash %s saddr mod %d seed 0x%08x map %s", family, n, c.Seed, braces(slots))
			}
			r.add("iifname %s meta nfproto ipv%c %s dport %d fib daddr type local redirect to :%s",
				c.uplinks, map[string]rune{"ip": '4', "ip6": '6'}[family], p.Network, p.Public, to)
		}
	}
	return r.String()
}

// tunnelInput is all of the server that customers reach.
func (c renderer) tunnelInput() string {
	var r rules
	for _, a := range c.Resolvers {
		r.add("%s daddr %v meta l4proto { tcp, udp } th dport 53 accept", family(a), a)
	}
	r.add("meta l4proto { icmp, icmpv6 } ct state related accept")
	r.add("drop")
	return r.String()
}

func family(a netip.Addr) string {
	if a.Is4() {
		return "ip"
	}
	return "ip6"
}

// open is what comes to the ports of listeners.
func (c renderer) open() string {
	var r rules
	if c.Activation != 0 {
		r.add("iifname %s tcp dport %d %s goto activation", c.uplinks, c.Activation, syn)
	}
	for _, d := range c.directs() {
		r.add("iifname %s %s dport %s ct state untracked accept", c.uplinks, d.network, d.ports)
		// What routers say of packets to customers, for the path MTU: the packet that they quote
		// behind eight bytes of ICMP comes from such a port (RFC 792; RFC 4443, section 3).
		r.add("iifname %s icmp type destination-unreachable @th,136,8 %s @th,224,16 %s accept", c.uplinks, d.number(), d.ports)
		r.add("iifname %s icmpv6 type { destination-unreachable, packet-too-big } @th,112,8 %s @th,384,16 %s accept", c.uplinks, d.number(), d.ports)
	}
	return r.String()
}

func (c renderer) input() string {
	var r rules
	r.add("ct state invalid drop")
	for _, p := range c.Ports {
		if p.direct() {
			continue
		}
		r.add("iifname %s ct status dnat %s dport %s accept", c.uplinks, p.Network, braces(p.Daemons))
	}
	r.add("iifname %s goto tunnel_input", c.tunnels)
	return c.open() + r.String() + c.replies()
}

// replies is what comes back to the server itself, and what it must hear to have addresses and a way out.
func (c renderer) replies() string {
	var r rules
	r.add("ct state established,related accept")
	r.add("iifname %s icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert, nd-router-advert } ip6 hoplimit 255 accept", c.uplinks)
	r.add("iifname %s meta nfproto ipv4 udp sport 67 udp dport 68 accept", c.uplinks)     // DHCP, RFC 2131
	r.add("iifname %s ip6 saddr fe80::/10 udp sport 547 udp dport 546 accept", c.uplinks) // RFC 8415
	return r.String()
}

// tunnelForward is what of the internet customers reach. A refusal is answered,
// so that a program says at once why it cannot connect.
func (c renderer) tunnelForward() string {
	var r rules
	r.add("ip daddr { %s } reject with icmpx admin-prohibited", strings.Join(special4, ", "))
	r.add("ip6 daddr != 2000::/3 reject with icmpx admin-prohibited")
	r.add("ip6 daddr { %s } reject with icmpx admin-prohibited", strings.Join(special6, ", "))
	r.add("tcp dport %s reject with tcp reset", braces(c.BlockTCP))
	// Protocols without ports cannot be shared safely by customers behind one address.
	r.add("meta l4proto { tcp, udp, icmp, icmpv6 } ct state new accept")
	r.add("reject with icmpx admin-prohibited")
	return r.String()
}

func (c renderer) forward() string {
	var r rules
	r.add("ct state invalid drop")
	r.add("tcp flags & (syn|rst) == syn tcp option maxseg size set rt mtu")
	var uplinks []string
	for _, u := range c.Uplinks {
		uplinks = append(uplinks, fmt.Sprintf("%q : goto to_tunnel", u))
	}
	r.add("iifname vmap %s", c.each("goto from_tunnel", uplinks...))
	return r.String()
}

// fromTunnel is what customers send; the rest meets the policy of forward.
func (c renderer) fromTunnel() string {
	var r rules
	r.add("oifname %s ct state established,related accept", c.uplinks)
	r.add("oifname %s jump tunnel_forward", c.uplinks)
	r.add("oifname %s reject with icmpx admin-prohibited", c.tunnels)
	return r.String()
}

// toTunnel is what customers receive; the rest meets the policy of forward.
func (c renderer) toTunnel() string {
	var r rules
	r.add("oifname %s ct state established,related accept", c.tunnels)
	return r.String()
}

func (c renderer) outputRaw() string {
	var r rules
	for _, d := range c.directs() {
		r.add("oifname %s %s sport %s notrack", c.uplinks, d.network, d.ports)
	}
	return r.String()
}

func (c renderer) output() string {
	var r rules
	if c.Activation != 0 {
		// Who holds the port answers and dials nobody.
		r.add("oifname %s tcp sport %d %s drop", c.uplinks, c.Activation, syn)
	}
	for _, d := range c.directs() {
		r.add("oifname %s %s sport %s ct state untracked accept", c.uplinks, d.network, d.ports)
	}
	r.add("ct state invalid drop")
	r.add("ct state established,related accept")
	if len(c.Resolvers) > 0 {
		r.add("oifname %s meta skuid %d meta l4proto { tcp, udp } th dport 53 accept", c.uplinks, c.ResolverUID)
	}
	for _, a := range c.Control {
		r.add("oifname %s %s daddr %v tcp dport %d accept", c.uplinks, family(a.Addr()), a.Addr(), a.Port())
	}
	r.add("oifname %s icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert, nd-router-solicit, mld2-listener-report } accept", c.uplinks)
	r.add("oifname %s meta nfproto ipv4 udp sport 68 udp dport 67 accept", c.uplinks)
	r.add("oifname %s ip6 daddr { fe80::/10, ff02::1:2 } udp sport 546 udp dport 547 accept", c.uplinks)
	return r.String()
}

func (c renderer) count() string {
	var r rules
	r.add("oifname vmap %s", c.each("goto down_%d"))
	return r.String()
}

func (c renderer) masquerade() string {
	var r rules
	for _, f := range []struct{ family, nets string }{{"ip", c.v4}, {"ip6", c.v6}} {
		r.add("oifname %s %s saddr %s meta l4proto { tcp, udp } masquerade to :%d-%d fully-random",
			c.uplinks, f.family, f.nets, FirstExitPort, LastExitPort)
		r.add("oifname %s %s saddr %s masquerade fully-random", c.uplinks, f.family, f.nets)
	}
	return r.String()
}
