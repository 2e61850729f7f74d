// Package firewall is the VPN server's packet filter: the nftables rules, the byte
// counters of live sessions, the conntrack entries that must go when a session
// ends, and the kernel's network settings.
//
// There is one table, "inet lethe". [Config.Awaiting] renders it for the time before the
// server has its secrets: only the activation port answers. [Config.Waiting] adds the control plane,
// [Config.Rules] renders it in full, [Closed] lets nothing pass. [Load]
// swaps one for the other in one transaction (nft(8), -f), so there is no moment
// without rules. All forms declare the same sets, and a swap replaces rules only: the
// sets, whose elements are the live sessions, stay as they are.
//
// The sets up4, down4, up6 and down6 hold the tunnel addresses of live sessions, each
// element with a byte counter; [Counters] puts them in and takes them out over
// netlink. A packet from a tunnel whose source is not in the set is dropped, so what
// counts also stops spoofing. Four more sets with the same elements (up4joined, …)
// count those packets that are several segments in one, whose headers the tunnel will
// repeat.
//
// A packet's way, and where it ends when it may not pass:
//
//	prerouting_raw    spoofed sources (up_N, for tunnel N); tunnel addresses from outside (CVE-2019-14899);
//	                  the daemons' own ports, which only the redirection may reach. What goes to a daemon that
//	                  listens on the public port itself is not tracked: no table holds its customers' addresses
//	prerouting_nat    nowhere: public port -> one of several daemons, by hash of the source
//	input             all but VPN ports, the activation port, ICMP errors, neighbour discovery and DHCP; from tunnels
//	                  all but DNS
//	activation        connections to the activation port above the limit of their part of all sources
//	forward           client to client; private and special ranges; mail (TCP 25)
//	postrouting_count traffic to tunnel addresses without a session (down_N)
//	postrouting_nat   source ports at random from a range without listeners (CVE-2021-3773)
//	output_raw        nowhere: the daemons' own packets to customers are not tracked either
//	output            all but replies, the resolver's queries, the control plane and DHCP
//
// No rule logs, traces, queues or remembers an address outside these sets.
package firewall

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"regexp"
	"slices"
	"strings"

	"lethe/fault"
)

// FirstExitPort and LastExitPort bound the source ports of the server's and its
// customers' connections to the internet. Every listener is below.
const (
	FirstExitPort = 32768
	LastExitPort  = 60999
)

// Tunnel is the interface of one daemon and the networks behind it.
type Tunnel struct {
	Device string       // name of the interface
	V4     netip.Prefix // /16 or smaller, private
	V6     netip.Prefix // /112 or smaller, unique local
}

// Port is one public VPN port and the ports of the daemons that share it. A customer's source
// address always leads to the same daemon.
//
// A single daemon that listens on the public port itself is direct: its packets are neither
// rewritten nor tracked, so the kernel has no table of who talks to it.
type Port struct {
	Network string   // "udp" or "tcp"
	Public  uint16   // port that customers connect to
	Daemons []uint16 // one port for each daemon, below 32768
}

func (p Port) direct() bool { return len(p.Daemons) == 1 && p.Daemons[0] == p.Public }

// Config is what the rules depend on.
type Config struct {
	Uplinks     []string         // interfaces to the internet
	Tunnels     []Tunnel         // one for each daemon
	Ports       []Port           // public VPN ports
	Resolvers   []netip.Addr     // addresses on which the resolver answers customers
	ResolverUID uint32           // user the resolver runs as; only it may send DNS queries
	BlockTCP    []uint16         // TCP ports that customers cannot reach; must contain 25
	Control     []netip.AddrPort // control plane; TCP
	Activation  uint16           // TCP port of package activation, on the uplinks; 0: none
	Seed        uint32           // of the hash that distributes customers; any number, the same for a whole boot
}

var (
	interfaceForm = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,14}$`)
	privateV4     = netip.MustParsePrefix("10.0.0.0/8")
	privateV6     = netip.MustParsePrefix("fc00::/7")
)

// Validate returns what is wrong with c, or nil.
func (c Config) Validate() error {
	if len(c.Uplinks) == 0 || len(c.Tunnels) == 0 || len(c.Ports) == 0 || len(c.Resolvers) == 0 {
		return fmt.Errorf("firewall: want at least one uplink, tunnel, port and resolver")
	}
	names := slices.Clone(c.Uplinks)
	for i, t := range c.Tunnels {
		names = append(names, t.Device)
		if !inside(t.V4, privateV4, 16) || !inside(t.V6, privateV6, 112) {
			return fmt.Errorf("firewall: tunnel %d: want a /16 or smaller inside %v and a /112 or smaller inside %v", i, privateV4, privateV6)
		}
		for _, o := range c.Tunnels[:i] {
			if o.V4.Overlaps(t.V4) || o.V6.Overlaps(t.V6) {
				return fmt.Errorf("firewall: tunnel %d: its networks overlap another's", i)
			}
		}
	}
	if err := errors.Join(c.validateNames(names), c.validateControl(), c.validateActivation()); err != nil {
		return err
	}
	for _, a := range c.Resolvers {
		if !a.IsValid() || a.Zone() != "" || a.Is4In6() {
			return fmt.Errorf("firewall: want resolvers as plain IPv4 and IPv6 addresses")
		}
	}
	if !slices.Contains(c.BlockTCP, 25) || slices.Contains(c.BlockTCP, 0) {
		return fmt.Errorf("firewall: blocked TCP ports: want 25 and no 0 among them")
	}
	return c.validatePorts()
}

func (Config) validateNames(names []string) error {
	for i, n := range names {
		if !interfaceForm.MatchString(n) || n == "lo" || slices.Contains(names[:i], n) {
			return fmt.Errorf("firewall: interface %q: want a name of its own of up to 15 letters, digits, '_', '.', '-'", n)
		}
	}
	return nil
}

func (c Config) validateControl() error {
	for _, a := range c.Control {
		if !a.IsValid() || a.Port() == 0 || a.Addr().Zone() != "" || a.Addr().Is4In6() {
			return fmt.Errorf("firewall: want the control plane as plain addresses with ports")
		}
	}
	return nil
}

func (c Config) validateActivation() error {
	if c.Activation >= FirstExitPort {
		return fmt.Errorf("firewall: activation port %d: want a port below %d", c.Activation, FirstExitPort)
	}
	return nil
}

// inside reports whether p is a network inside outer with a prefix of at least bits.
func inside(p, outer netip.Prefix, bits int) bool {
	return p.IsValid() && p == p.Masked() && p.Bits() >= bits && outer.Contains(p.Addr())
}

func (c Config) validatePorts() error {
	used := map[string]bool{}
	take := func(network string, port uint16) bool {
		key := fmt.Sprint(network, port)
		taken := used[key]
		used[key] = true
		return !taken
	}
	take("tcp", c.Activation)
	for _, p := range c.Ports {
		if p.Network != "udp" && p.Network != "tcp" || len(p.Daemons) == 0 || len(p.Daemons) > 64 {
			return fmt.Errorf("firewall: port %d: want udp or tcp and 1 to 64 daemons", p.Public)
		}
		if p.Public == 0 || p.Public >= FirstExitPort || !take(p.Network, p.Public) {
			return fmt.Errorf("firewall: port %d: want a port of its own below %d", p.Public, FirstExitPort)
		}
		if p.direct() {
			continue
		}
		for _, d := range p.Daemons {
			if d == 0 || d >= FirstExitPort || !take(p.Network, d) {
				return fmt.Errorf("firewall: port %d: daemon port %d: want a port of its own below %d", p.Public, d, FirstExitPort)
			}
		}
	}
	return nil
}

// Load replaces the rules by text, all or nothing. Rules and sets not of this
// package's table are left alone. It starts nft(8), which reads the rules from a
// pipe.
func Load(ctx context.Context, text string) error { return nft(ctx, "load firewall rules", text) }

// Remove deletes the table with its rules, sets and counters. Without it
// everything passes, so a server never calls it; whoever borrows a machine does.
func Remove(ctx context.Context) error {
	return nft(ctx, "remove firewall", "add table inet lethe\ndelete table inet lethe\n")
}

// Serving reports whether the full rules of [Config.Rules] are loaded, under which
// customers may be connected; not so those of [Closed] and [Config.Waiting], and
// not so without any.
func Serving(ctx context.Context) (bool, error) {
	const what = "list the firewall's rules"
	out, err := runNFT(ctx, what, "", "-j", "-t", "list", "ruleset", "inet")
	if err != nil {
		return false, err
	}
	var listed struct {
		Objects []struct {
			Rule *struct{ Table, Chain string }
		} `json:"nftables"`
	}
	if err := json.Unmarshal(out, &listed); err != nil {
		return false, fault.Wrap(fault.Internal, what, err)
	}
	for _, o := range listed.Objects {
		if o.Rule != nil && o.Rule.Table == "lethe" && o.Rule.Chain == "from_tunnel" {
			return true, nil
		}
	}
	return false, nil
}

func nft(ctx context.Context, what, text string) error {
	_, err := runNFT(ctx, what, text, "-f", "-")
	return err
}

func runNFT(ctx context.Context, what, stdin string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, "/usr/sbin/nft", args...)
	cmd.Env = []string{"LC_ALL=C"}
	cmd.Stdin = strings.NewReader(stdin)
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	if err := cmd.Run(); err != nil {
		// What nft says quotes the rules; it is for code, not for logs.
		return nil, fault.Wrap(fault.Internal, what, fmt.Errorf("%w: %s%s", err, out.Bytes(), said.Bytes()))
	}
	return out.Bytes(), nil
}
