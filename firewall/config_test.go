package firewall_test

import (
	"net/netip"
	"strings"
	"testing"

	"lethe/firewall"
	"lethe/session"
)

func good() firewall.Config {
	return firewall.Config{
		Uplinks: []string{"eth0"}, Tunnels: []firewall.Tunnel{{Device: "lethe0", V4: session.SubnetsOf(0).V4, V6: session.SubnetsOf(0).V6}},
		Ports:     []firewall.Port{{Network: "udp", Public: 1194, Daemons: []uint16{21194}}},
		Resolvers: []netip.Addr{netip.MustParseAddr("10.64.0.1")}, BlockTCP: []uint16{25},
	}
}

func TestValidate(t *testing.T) {
	if text, err := good().Rules(); err != nil || !strings.Contains(text, "udp dport 1194 fib daddr type local redirect to :21194\n") {
		t.Errorf("%v:\n%s", err, text)
	}
	direct := good()
	direct.Ports = append(direct.Ports, firewall.Port{Network: "udp", Public: 500, Daemons: []uint16{500}})
	text, err := direct.Rules()
	if err != nil || !strings.Contains(text, "udp dport { 500 } fib daddr type local notrack\n") || strings.Contains(text, "dport 500 ") {
		t.Errorf("a daemon that has the public port: %v:\n%s", err, text)
	}
	for name, spoil := range map[string]func(*firewall.Config){
		"no uplink":      func(c *firewall.Config) { c.Uplinks = nil },
		"injection":      func(c *firewall.Config) { c.Uplinks = []string{"eth0\" accept #"} },
		"loopback":       func(c *firewall.Config) { c.Uplinks = []string{"lo"} },
		"one name twice": func(c *firewall.Config) { c.Uplinks = []string{"lethe0"} },
		"public tunnel":  func(c *firewall.Config) { c.Tunnels[0].V4 = netip.MustParsePrefix("198.51.100.0/24") },
		"no IPv6 tunnel": func(c *firewall.Config) { c.Tunnels[0].V6 = netip.Prefix{} },
		"overlap": func(c *firewall.Config) {
			c.Tunnels = append(c.Tunnels, firewall.Tunnel{Device: "lethe1", V4: session.SubnetsOf(0).V4, V6: session.SubnetsOf(0).V6})
		},
		"no network":           func(c *firewall.Config) { c.Ports[0].Network = "sctp" },
		"no daemon":            func(c *firewall.Config) { c.Ports[0].Daemons = nil },
		"public port too high": func(c *firewall.Config) { c.Ports[0].Public = 40000 },
		"public port twice":    func(c *firewall.Config) { c.Ports = append(c.Ports, c.Ports[0]) },
		"daemon port too high": func(c *firewall.Config) { c.Ports[0].Daemons = []uint16{40000} },
		"daemon port zero":     func(c *firewall.Config) { c.Ports[0].Daemons = []uint16{0} },
		"daemon port public":   func(c *firewall.Config) { c.Ports[0].Daemons = []uint16{21194, 1194} },
		"direct, and shared": func(c *firewall.Config) {
			c.Ports = append(c.Ports, firewall.Port{Network: "udp", Public: 21194, Daemons: []uint16{21194}})
		},
		"resolver mapped":      func(c *firewall.Config) { c.Resolvers[0] = netip.MustParseAddr("::ffff:10.64.0.1") },
		"control without port": func(c *firewall.Config) { c.Control = []netip.AddrPort{netip.MustParseAddrPort("203.0.113.9:0")} },
		"mail allowed":         func(c *firewall.Config) { c.BlockTCP = []uint16{465} },
	} {
		c := good()
		spoil(&c)
		if _, err := c.Rules(); err == nil || !strings.HasPrefix(err.Error(), "firewall: ") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
