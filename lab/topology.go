package lab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// Place is a location with one server.
type Place struct {
	Code    string // "nl-ams"
	Country string // "NL"
	City    string // "Amsterdam"
}

// Places returns the locations that a lab can have, the default ones first.
func Places() []Place {
	return []Place{
		{"nl-ams", "NL", "Amsterdam"}, {"us-nyc", "US", "New York"}, {"de-fra", "DE", "Frankfurt"},
		{"se-sto", "SE", "Stockholm"}, {"jp-tyo", "JP", "Tokyo"}, {"br-sao", "BR", "São Paulo"},
		{"za-jnb", "ZA", "Johannesburg"}, {"au-syd", "AU", "Sydney"},
	}
}

// server returns the id of the place's server.
func (p Place) server() string { return p.Code + "-1" }

const (
	maxServers   = 8
	maxCustomers = 200
)

// Uplink is the name of every machine's only network interface.
const Uplink = "eth0"

// The internet's own addresses (RFC 5737, RFC 3849).
var (
	SiteAddr = dual("192.0.2.80", "2001:db8:1::80")
	DNSAddr  = dual("192.0.2.53", "2001:db8:1::53")
)

// Dual is an IPv4 and an IPv6 address of one thing.
type Dual struct{ V4, V6 netip.Addr }

func dual(v4, v6 string) Dual { return Dual{netip.MustParseAddr(v4), netip.MustParseAddr(v6)} }

// segment is one of the router's networks.
type segment struct {
	bridge string
	router Dual
}

var (
	services  = segment{"services", dual("198.51.100.1", "2001:db8:2::1")}
	customers = segment{"customers", dual("203.0.113.1", "2001:db8:3::1")}
)

// CustomersRouter is the router of customers' machines.
var CustomersRouter = customers.router

// ISP is an invented access network of the lab: the addresses of its
// customers, and what the GeoIP file says of them.
type ISP struct {
	V4, V6  netip.Prefix
	Country string
	Name    string
}

// ISPs returns the access networks. Customer i lives in network i modulo 4; of the
// fourth network, 203.0.113.192/26, the GeoIP file knows no ISP.
func ISPs() []ISP {
	p := netip.MustParsePrefix
	return []ISP{
		{p("203.0.113.0/26"), p("2001:db8:3:0:0::/80"), "DE", "Elbe Telekom"},
		{p("203.0.113.64/26"), p("2001:db8:3:0:1::/80"), "FR", "Loire Net"},
		{p("203.0.113.128/26"), p("2001:db8:3:0:2::/80"), "SE", "Torne Bredband"},
	}
}

func customerName(i int) string { return fmt.Sprintf("customer-%d", i+1) }

func customerAddr(i int) Dual {
	return dual(fmt.Sprintf("203.0.113.%d", 64*(i%4)+10+i/4), fmt.Sprintf("2001:db8:3:0:%x::%x", i%4, 10+i/4))
}

// serverAddr returns the addresses of server i: the entry that customers dial
// and the exit that their traffic leaves from. They differ, so that a port of one
// is never a port of the other.
func serverAddr(i int) (entry, exit Dual) {
	return dual(fmt.Sprintf("198.51.100.%d", 10*(i+1)), fmt.Sprintf("2001:db8:2::%d", 10*(i+1))),
		dual(fmt.Sprintf("198.51.100.%d", 10*(i+1)+1), fmt.Sprintf("2001:db8:2::%d", 10*(i+1)+1))
}

var controlAddr = dual("198.51.100.100", "2001:db8:2::100")

// plan returns the machines of a lab, the router first.
func (o *Options) plan() []*Machine {
	// A server's image forwards before its first interface is up.
	router := []string{"ipv4/ip_forward=1", "ipv6/conf/all/forwarding=1"}
	all := []*Machine{
		{Name: "inet", settings: router},
		{Name: "control", Addresses: []Dual{controlAddr}, segment: services,
			// Router advertisements are for guests.
			settings: []string{"ipv4/tcp_no_metrics_save=1", "ipv6/conf/" + Uplink + "/accept_ra=0"}},
	}
	for i, p := range o.Locations {
		entry, exit := serverAddr(i)
		m := &Machine{Name: p.server(), Addresses: []Dual{entry, exit}, segment: services, settings: router}
		if _, m.cable = o.Guests[p.Code]; m.cable {
			m.Addresses[1], m.settings = guestAddr(i), []string{"ipv6/conf/all/disable_ipv6=1", "ipv6/conf/default/disable_ipv6=1"}
		}
		all = append(all, m)
	}
	for i := range o.Customers {
		all = append(all, &Machine{Name: customerName(i), Addresses: []Dual{customerAddr(i)}, segment: customers})
	}
	for _, m := range all {
		m.Namespace = "lethe-" + o.Prefix + "-" + m.Name
		m.Dir = filepath.Join(o.Dir, "m", m.Name)
		m.BinDir, m.Env = o.BinDir, o.Env
	}
	return all
}

// link makes the namespaces of the machines and connects them to the first,
// the router. Duplicate address detection is off: it would cost a second.
func link(ctx context.Context, all []*Machine) error {
	inet := all[0]
	var r strings.Builder
	r.WriteString("link set lo up\n")
	for _, d := range []Dual{SiteAddr, DNSAddr} {
		fmt.Fprintf(&r, "addr add %s/32 dev lo\naddr add %s/128 dev lo nodad\n", d.V4, d.V6)
	}
	for _, s := range []segment{services, customers} {
		fmt.Fprintf(&r, "link add %[1]s type bridge\nlink set %[1]s up\naddr add %[2]s/24 dev %[1]s\naddr add %[3]s/64 dev %[1]s nodad\n",
			s.bridge, s.router.V4, s.router.V6)
	}
	for i, m := range all {
		if err := ip(ctx, "", "netns", "add", m.Namespace); err != nil {
			return err
		}
		if i > 0 {
			fmt.Fprintf(&r, "link add m%[1]d type veth peer name %[2]s netns %[3]s\nlink set m%[1]d master %[4]s up\n",
				i, Uplink, m.Namespace, m.segment.bridge)
		}
	}
	err := ip(ctx, r.String(), "-n", inet.Namespace, "-batch", "-")
	for _, m := range all {
		if err == nil && m != inet {
			err = ip(ctx, m.batch(), "-n", m.Namespace, "-batch", "-")
		}
		if err == nil {
			err = m.sysctl()
		}
	}
	return err
}

// batch returns the commands that give m its addresses and its way out.
func (m *Machine) batch() string {
	if m.cable {
		return cable()
	}
	var b strings.Builder
	fmt.Fprintf(&b, "link set lo up\nlink set %s up\n", Uplink)
	// A machine speaks from its main address: in IPv4 the first one added, in
	// IPv6 the last.
	for _, d := range m.Addresses {
		fmt.Fprintf(&b, "addr add %s/24 dev %s\n", d.V4, Uplink)
	}
	for _, d := range slices.Backward(m.Addresses) {
		fmt.Fprintf(&b, "addr add %s/64 dev %s nodad\n", d.V6, Uplink)
	}
	fmt.Fprintf(&b, "route add 0.0.0.0/0 via %s\nroute add ::/0 via %s\n", m.segment.router.V4, m.segment.router.V6)
	return b.String()
}

// sysctl makes the settings of m's kernel.
func (m *Machine) sysctl() error {
	return m.Inside(func() (err error) {
		for _, s := range m.settings {
			name, value, _ := strings.Cut(s, "=")
			err = errors.Join(err, os.WriteFile("/proc/sys/net/"+name, []byte(value), 0))
		}
		return err
	})
}

// ip runs ip(8).
func ip(ctx context.Context, stdin string, args ...string) error {
	c := exec.CommandContext(ctx, "ip", args...)
	c.Stdin = strings.NewReader(stdin)
	if out, err := c.CombinedOutput(); err != nil {
		return fmt.Errorf("ip %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}
