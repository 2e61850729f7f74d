package openvpn

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/vishvananda/netlink"

	"lethe/protocol"
	"lethe/session"
)

// features is what the installed openvpn and the running kernel can do.
type features struct {
	hybrid  bool // OpenSSL knows X25519MLKEM768
	offload bool // kernel and openvpn agree on a data channel offload
}

var versions = regexp.MustCompile(`(?s)^OpenVPN (\d+)\.(\d+)\D.*library versions: OpenSSL (\d+)\.(\d+)\D`)

// probe asks openvpn for its version and its OpenSSL's, and the kernel for offload.
func probe(binary string) (features, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary, "--version")
	cmd.Env = []string{}
	out, err := cmd.Output() // 2.6 exits with 1 after printing its version
	if exit := new(exec.ExitError); err != nil && !errors.As(err, &exit) {
		return features{}, fmt.Errorf("openvpn: ask for its version: %w", err)
	}
	return parseVersion(string(out), func(family string) bool {
		_, err := netlink.GenlFamilyGet(family)
		return err == nil
	})
}

// parseVersion reads what "openvpn --version" prints. The offload in the kernel of Linux 6.16 and
// later (family "ovpn") is used by OpenVPN 2.7; 2.6 knows only a module that is no longer
// maintained, so there the data channel stays in user space.
func parseVersion(out string, kernelHas func(family string) bool) (features, error) {
	m := versions.FindStringSubmatch(out)
	if m == nil {
		return features{}, errors.New("openvpn: its version is not in the expected form, want one linked with OpenSSL")
	}
	var n [4]int
	for i := range n {
		n[i], _ = strconv.Atoi(m[i+1]) // too many digits give the largest int, which is right
	}
	if n[0] < 2 || n[0] == 2 && n[1] < 6 {
		return features{}, fmt.Errorf("openvpn: version %d.%d, want at least 2.6", n[0], n[1])
	}
	return features{
		hybrid:  n[2] > 3 || n[2] == 3 && n[3] >= 5,
		offload: (n[0] > 2 || n[1] >= 7) && strings.Contains(out, "[DCO]") && kernelHas("ovpn"),
	}, nil
}

// inlineable returns an error when a text cannot stand in an inline block of a configuration.
func inlineable(what, text string) error {
	if !strings.Contains(text, "-----BEGIN ") || strings.ContainsAny(text, "<>\x00") {
		return fmt.Errorf("openvpn: the %s is not in PEM form", what)
	}
	return nil
}

// config collects the lines of a configuration.
type config struct{ strings.Builder }

func (c *config) line(format string, args ...any) { fmt.Fprintf(c, format+"\n", args...) }

func (c *config) inline(tag, text string) {
	c.line("<%s>\n%s\n</%s>", tag, strings.TrimSpace(text), tag)
}

// What a server says about ciphers, and its clients say too (package profile). There is no cipher without
// authentication of its own (AEAD) and no TLS before 1.3.
const ciphers = `tls-version-min 1.3
tls-ciphersuites TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256
data-ciphers AES-256-GCM:CHACHA20-POLY1305`

// fastIO writes a packet without asking first whether the device or socket takes it, which neither
// refuses for long. Asking is half of all system calls otherwise. Measured in two runs: 2 to 5 % less
// processor time on the server, and 4 to 12 % more throughput when both ends do so.
const fastIO = "fast-io"

// silent is everything about what a process does not do. The name of the peer on the management
// socket is checked by directory permissions (see driver.prepare).
const silent = `verb 0
script-security 0
management-hold
management-client-auth
verify-client-cert none
username-as-common-name
duplicate-cn`

// render returns the configuration of one process. It holds secrets: it goes to the process's
// standard input and nowhere else.
func (c Config) render(in Instance, f features, dir string) []byte {
	nets := session.SubnetsOf(in.Daemon)
	gate4, gate6 := nets.V4.Addr().Next(), nets.V6.Addr().Next()
	var t config
	t.line("mode server\ntls-server\ndh none\n%s\n%s", ciphers, silent)
	if f.hybrid {
		t.line("tls-groups X25519MLKEM768:X25519:secp384r1")
	} else {
		t.line("tls-groups X25519:secp384r1")
	}
	t.line("management %s unix", socketPath(dir))
	t.line("dev %s\ndev-type tun\ntopology subnet\ntun-mtu 1500", in.Device)
	t.line("ifconfig %s %s\nifconfig-ipv6 %s/%d %s", gate4, mask(nets.V4), gate6, nets.V6.Bits(), gate6.Next())
	if !in.Offload {
		t.line("disable-dco\nifconfig-noexec\ndev-node %s", nodePath(dir))
	}
	if in.Protocol == protocol.OpenVPNUDP {
		// One message at the end sends every client to another server. Replies leave from the
		// address that was asked. A burst of clients after a restart is no flood: only those
		// who know the tls-crypt key get as far as this limit.
		t.line("proto udp6\nexplicit-exit-notify 2\nmultihome\nconnect-freq-initial 1000 1")
		if !in.Offload {
			t.line("%s", fastIO)
		}
	} else {
		t.line("proto tcp6-server\nsocket-flags TCP_NODELAY\npush \"socket-flags TCP_NODELAY\"")
	}
	t.line("port %d\nmax-clients %d\npersist-tun\npersist-key", in.Port, c.MaxClients)
	node := c.Node()
	ping, dead := node.KeepaliveSeconds, 6*node.KeepaliveSeconds
	t.line("ping %d\nping-restart %d\npush \"ping %d\"\npush \"ping-restart %d\"", ping, dead, ping, dead)
	t.line("reneg-sec %d", node.RenegotiateSeconds)
	t.line("push \"topology subnet\"\npush \"route-gateway %s\"\npush \"redirect-gateway def1 ipv6\"", gate4)
	dns := c.DNS
	if len(dns) == 0 {
		dns = []netip.Addr{gate4, gate6}
	}
	for _, a := range dns {
		t.line("push \"dhcp-option DNS %s\"", a)
	}
	// OpenVPN insists on a CA, although no client shows a certificate.
	t.inline("ca", c.Certificate.Reveal())
	t.inline("cert", c.Certificate.Reveal())
	t.inline("key", c.Key.Reveal())
	t.inline("tls-crypt", c.TLSCrypt.Reveal())
	return []byte(t.String())
}

// mask returns the netmask of an IPv4 prefix in dotted form.
func mask(p netip.Prefix) string { return net.IP(net.CIDRMask(p.Bits(), 32)).String() }
