package node

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"time"
)

// Config is what a server must know of its machine. Nothing in it is secret
// and nothing concerns customers; everything else comes with the secrets and
// the signed bundle.
type Config struct {
	// Version of this format, 1.
	Version int `json:"version"`
	// Uplinks are the network interfaces that face the internet. Default eth0.
	Uplinks []string `json:"uplinks"`
	// OpenVPNUser, ResolverUser and IKEv2User are the numeric users (and groups)
	// that the daemons run as. Defaults 64100, 64101 and 64102.
	OpenVPNUser  uint32 `json:"openvpn_user"`
	ResolverUser uint32 `json:"resolver_user"`
	IKEv2User    uint32 `json:"ikev2_user"`
	// Processes is how many OpenVPN processes share each transport when the
	// data channel is in user space; 0, the default, is one per core.
	Processes int `json:"processes,omitempty"`
	// RootHints is a file with the DNS root servers, for networks with a root
	// of their own. Default: the ones built into unbound.
	RootHints string `json:"root_hints,omitempty"`
	// FloorVersion and FloorTime come with the image: no bundle older than
	// that version is accepted, and the clock cannot stand before that time.
	FloorVersion uint64    `json:"floor_version,omitempty"`
	FloorTime    time.Time `json:"floor_time,omitzero"`
}

// LoadConfig reads a configuration file. An absent file gives the defaults;
// unknown keys and impossible values are errors.
func LoadConfig(path string) (Config, error) {
	c := Config{Version: 1, Uplinks: []string{"eth0"}, OpenVPNUser: 64100, ResolverUser: 64101, IKEv2User: 64102}
	b, err := os.ReadFile(path)
	if err == nil {
		d := json.NewDecoder(bytes.NewReader(b))
		d.DisallowUnknownFields()
		err = d.Decode(&c)
	}
	if err != nil && !os.IsNotExist(err) {
		return c, fmt.Errorf("configuration %s: %w", filepath.Base(path), err)
	}
	switch {
	case c.Version != 1:
		return c, fmt.Errorf("configuration: version is %d, want 1", c.Version)
	case len(c.Uplinks) == 0:
		return c, fmt.Errorf("configuration: want at least one uplink")
	case c.OpenVPNUser == 0 || c.ResolverUser == 0 || c.IKEv2User == 0 ||
		c.OpenVPNUser == c.ResolverUser || c.OpenVPNUser == c.IKEv2User || c.ResolverUser == c.IKEv2User:
		return c, fmt.Errorf("configuration: the daemons need three users that are not root")
	case c.Processes < 0 || c.Processes > 32:
		return c, fmt.Errorf("configuration: processes is %d, want 0 to 32", c.Processes)
	}
	return c, nil
}

// The addresses of the resolver, the same on every server and reachable only
// through a tunnel.
var (
	resolverV4 = netip.MustParseAddr("10.63.255.53")
	resolverV6 = netip.MustParseAddr("fd6c:6574:6865:ffff::53")
)

// The ports of OpenVPN: those that a single process listens on, which customers know, and
// the first of those that several share, to which the firewall redirects.
const (
	portUDP, basePortUDP = 1194, 21194
	portTCP, basePortTCP = 443, 20443
)

// ikeDaemon is charon's index among the daemons; OpenVPN's processes count from 0.
const ikeDaemon = 127

// radiusAddr is where charon asks whether a customer may come in. No packet of
// another machine gets to a loopback address.
var radiusAddr = netip.MustParseAddrPort("127.0.0.1:21812")
