package client

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"os/exec"
	"strings"

	"lethe/fault"
)

// Mark is the firewall mark of the tunnel's own packets (OpenVPN's and charon's sockets carry it, see
// SO_MARK in socket(7), and the kernel's ESP). Only root can set a mark, so no other program's packets get past the lock, not even
// to the VPN server's address.
const Mark = 0x6c65

// LockTable is the name of the network lock's nftables tables, in the families inet and arp.
const LockTable = "lethe_lock"

// lockFamilies are the families of the lock's tables. The first one is the lock.
var lockFamilies = []string{"inet", "arp"}

// portal is one address, transport and port on which a VPN server listens.
type portal struct {
	addr  netip.Addr
	proto string // "udp" or "tcp"
	port  uint16
}

// face is the tunnel as the machine sees it.
type face struct {
	device string
	mtu    int
	v4, v6 netip.Prefix // zero when the server gave none
	dns    []netip.Addr
}

// pathMTU matches what routers say of packets to a portal, and of nobody else's: the packet that
// they quote behind eight bytes (RFC 792, RFC 4443 section 3) goes there. Connection tracking
// knows as much, but one rule that asks for it has it look at every packet of the tunnel.
func pathMTU(p portal) string {
	if p.addr.Is4() {
		return fmt.Sprintf("icmp type destination-unreachable @th,192,32 %#x", p.addr.AsSlice())
	}
	return fmt.Sprintf("icmpv6 type { destination-unreachable, packet-too-big } @th,256,128 %#x", p.addr.AsSlice())
}

// lockRules returns the nft script that replaces the lock in one transaction (nft(8)): either the
// kernel takes all of it, or the old rules stay. Without face nothing passes but DHCP, neighbour
// discovery and the tunnels' packets to the portals.
//
// There is no rule for established connections: what was open before the lock went up stops. Into
// the tunnel goes only what carries the tunnel's own source address, so that such leftovers do not
// tell the server the machine's address in its own network either.
func lockRules(portals []portal, f *face) string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	b.WriteString(noLock())

	// A neighbour who asks for the machine's hardware address is answered only when there is a way back to
	// him (arp_process in the kernel), which there is with the mark alone. Else the router forgets the
	// machine, and IPv4 with it.
	line("table arp %s {\nchain arriving { type filter hook input priority filter; policy accept;\nmeta mark set %#x\n}\n}", LockTable, Mark)

	line("table inet %s {", LockTable)

	// Strict reverse path filtering looks up the way back without the mark and would drop the
	// server's packets; with src_valid_mark it uses the mark set here.
	line("chain arriving { type filter hook prerouting priority mangle; policy accept;")
	for _, p := range portals {
		line("%s saddr %s %s sport %d meta mark set %#x", ipWord(p.addr), p.addr, p.proto, p.port, Mark)
	}
	if f != nil { // what the kernel's IPsec unpacks keeps the mark of its wrapping
		line("iifname %q meta mark set 0", f.device)
	}
	line("}")

	line("chain incoming { type filter hook input priority filter; policy drop;")
	line("iif lo accept")
	for _, p := range portals {
		line("%s saddr %s %s sport %d accept", ipWord(p.addr), p.addr, p.proto, p.port)
		line("%s accept", pathMTU(p))
	}
	if f != nil {
		for _, a := range f.addrs() {
			line("iifname %q %s daddr %s accept", f.device, ipWord(a), a)
		}
	}
	line("udp sport 67 udp dport 68 accept")
	line("ip6 saddr fe80::/10 udp sport 547 udp dport 546 accept")
	line("icmpv6 type { nd-router-advert, nd-neighbor-solicit, nd-neighbor-advert } ip6 hoplimit 255 accept\n}")

	line("chain outgoing { type filter hook output priority filter; policy drop;")
	line("oif lo accept")
	for _, p := range portals {
		line("meta mark %#x %s daddr %s %s dport %d accept", Mark, ipWord(p.addr), p.addr, p.proto, p.port)
	}
	if f != nil {
		for _, a := range f.addrs() {
			line("oifname %q %s saddr %s accept", f.device, ipWord(a), a)
		}
		line("oifname %q drop", f.device) // multicast chatter of the device itself needs no answer
	}
	line("ip daddr 255.255.255.255 udp sport 68 udp dport 67 accept")
	line("ip6 saddr fe80::/10 ip6 daddr { ff02::1:2, ff05::1:3 } udp sport 546 udp dport 547 accept")
	line("icmpv6 type { nd-router-solicit, nd-neighbor-solicit, nd-neighbor-advert } ip6 hoplimit 255 accept")
	// An answer instead of silence: programs fail at once instead of hanging.
	line("reject with icmpx admin-prohibited\n}")

	line("chain passing { type filter hook forward priority filter; policy drop; }\n}")
	return b.String()
}

func ipWord(a netip.Addr) string {
	if a.Is4() {
		return "ip"
	}
	return "ip6"
}

// addrs returns the tunnel's own addresses.
func (f *face) addrs() (all []netip.Addr) {
	for _, p := range []netip.Prefix{f.v4, f.v6} {
		if p.IsValid() {
			all = append(all, p.Addr())
		}
	}
	return all
}

// lock is the network lock in the kernel.
type lock struct{ nft string }

// raise puts the lock up or replaces its rules.
func (l lock) raise(ctx context.Context, portals []portal, f *face) error {
	if _, err := run(ctx, lockRules(portals, f), l.nft, "-f", "-"); err != nil {
		return fault.Wrap(fault.Internal, "network lock: nft did not take the rules", err).
			WithHint("is nftables installed, and is the helper running as root?")
	}
	return nil
}

// noLock is the script that removes the lock's tables, whether they are there or not.
func noLock() string {
	var b strings.Builder
	for _, family := range lockFamilies {
		fmt.Fprintf(&b, "table %s %s {}\ndelete table %s %s\n", family, LockTable, family, LockTable)
	}
	return b.String()
}

// lower takes the lock down; it is no error when it is not up.
func (l lock) lower(ctx context.Context) error {
	if _, err := run(ctx, noLock(), l.nft, "-f", "-"); err != nil {
		return fault.Wrap(fault.Internal, "network lock: nft did not remove the rules", err)
	}
	return nil
}

// isUp reports whether the lock is up, and whether nothing of it is missing.
func (l lock) isUp(ctx context.Context) (up, whole bool, err error) {
	out, err := run(ctx, "", l.nft, "list", "tables")
	if err != nil {
		return false, false, fault.Wrap(fault.Internal, "network lock: nft does not list its tables", err).
			WithHint("is nftables installed, and is the helper running as root?")
	}
	found := 0
	for _, family := range lockFamilies {
		if strings.Contains("\n"+out+"\n", "\ntable "+family+" "+LockTable+"\n") {
			found++
			up = up || family == lockFamilies[0]
		}
	}
	return up, found == len(lockFamilies), nil
}

// run runs a program of the system to its end. What it prints to standard error may hold
// addresses and is dropped.
func run(ctx context.Context, stdin, path string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Stdin, cmd.Env = strings.NewReader(stdin), []string{}
	var out bytes.Buffer
	cmd.Stdout = &out
	err := cmd.Run()
	return out.String(), err
}
