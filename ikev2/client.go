package ikev2

import (
	"encoding/pem"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"lethe/location"
	"lethe/private"
	"lethe/profile"
	"lethe/protocol"
	"lethe/vici"
)

// Client is how charon runs on a customer's machine, for whoever takes care of everything else there: with
// this configuration it changes no route that matters and no resolver, and it logs nothing.
//
// IKE and ESP leave from random ports to [PortNAT] of the server, from the first packet on and also when
// there is no NAT on the way (RFC 7296, section 2.23), so that a packet filter has one address, protocol and
// port to let through.
type Client struct {
	Binary    string // path of charon-systemd; names the section of the configuration
	Socket    string // path of the control socket that charon makes
	Resolvers string // path of the file that charon writes the server's resolvers to, see [ParseResolvers]

	Device  string // what customers' packets go into: the XFRM interface, or the TUN device that charon makes
	Offload bool   // ESP is in the kernel, see [Offload]

	// Mark is the firewall mark of charon's own packets and of the kernel's ESP. What has it, the
	// machine's routing leads around the tunnel.
	Mark uint32
	// Table is a routing table that leads nobody anywhere, and Priority that of the rule by which what does
	// not have the mark would look into it, behind the caller's. Only with a table of its own does charon
	// know that the mark has another way to the server, and kernel-libipsec insists on putting
	// routes somewhere. When charon is killed, the rule stays.
	Table, Priority int

	// Silence is how long the server may be silent before the tunnel counts as lost, in whole seconds.
	Silence time.Duration
}

// clientPlugins are those of a customer. resolve writes resolvers to a file of our choice.
const clientPlugins = "random nonce pem openssl kdf ml kernel-netlink resolve socket-default vici eap-identity eap-mschapv2"

// ClientPlugins returns the plugins without which a customer's charon is of no use, beside those that every
// build has.
func ClientPlugins(offload bool) []string {
	if offload {
		return []string{"eap-mschapv2", "eap-identity"}
	}
	return []string{"kernel-libipsec", "eap-mschapv2", "eap-identity"}
}

// Retransmission on a customer's side: what is not answered is sent eight times, each time 1.4 times later.
// All of that takes clientTries times the first wait.
const (
	clientBase  = 1.4
	clientTries = 34.4
)

// Conf returns strongswan.conf. It holds nothing about the customer or the server.
func (c Client) Conf() []byte {
	load := clientPlugins
	if !c.Offload {
		load = "kernel-libipsec " + load // before kernel-netlink, which would do ESP as well
	}
	var t conf
	t.section(filepath.Base(c.Binary), func() {
		t.set("load", load)
		t.section("journal", func() { t.set("default", -1) }) // see Server.render
		// No fewer threads than the default: with 8, all wait for the kernel and nobody answers.
		t.set("port", 0)
		t.set("port_nat_t", 0)
		t.set("cert_cache", "no")
		t.set("close_ike_on_child_failure", "yes")
		t.set("retransmit_timeout", fmt.Sprintf("%.3f", (c.Silence-c.idle()).Seconds()/clientTries))
		t.set("retransmit_base", clientBase)
		t.set("retransmit_tries", 7)
		t.set("install_routes", "no")
		// kernel-libipsec refuses an SA whose address is not on the machine (5.9).
		t.set("install_virtual_ip", map[bool]string{true: "no", false: "yes"}[c.Offload])
		t.set("install_virtual_ip_on", c.Device)
		t.set("routing_table", c.Table)
		t.set("routing_table_prio", c.Priority)
		t.set("interfaces_ignore", c.Device) // its address is no way to the server
		t.set("follow_redirects", "no")
		t.set("hash_and_url", "no")
		t.section("plugins", func() {
			t.section("vici", func() { t.set("socket", "unix://"+c.Socket) })
			t.section("socket-default", func() { t.set("fwmark", fmt.Sprintf("%#x", c.Mark)) })
			t.section("kernel-netlink", func() { t.set("fwmark", fmt.Sprintf("!%#x", c.Mark)) })
			// The tunnel takes everything, the server's own address included; the mark keeps ESP out.
			t.section("kernel-libipsec", func() { t.set("allow_peer_ts", "yes") })
			t.section("resolve", func() {
				t.set("file", c.Resolvers)
				t.section("resolvconf", func() { t.set("path", "/dev/null/none") }) // else it would run the machine's
			})
		})
	})
	return []byte(t.String())
}

// idle is how long the server may say nothing before it is asked (RFC 7296, section 2.4).
func (c Client) idle() time.Duration { return max(c.Silence/3, time.Second).Round(time.Second) }

// clientChildLifetime is after how many seconds the Child SA is renewed. That is for customers to do, see
// childLifetime; the IKE SA is renewed by the server.
const clientChildLifetime = 3600

// ClientName is the name of the connection, of its child and of its secret in a customer's charon.
const ClientName = name

// Connection returns the message of load-conn for a server at one of its addresses. The server is
// authenticated by a certificate that the CA of its description has signed for its id, and by nothing else
// (RFC 7296, section 2.15). algorithms is charon's answer to get-algorithms. The customer is named only in
// EAP, which is encrypted; where IKE wants an identity before, it is a constant.
//
// It fails when the server is not one that IKEv2 can connect to.
func (c Client) Connection(server location.Server, at netip.Addr, username private.Value[string], algorithms *vici.Message) (*vici.Message, error) {
	if err := server.Validate(); err != nil {
		return nil, err
	}
	if !slices.ContainsFunc(server.Endpoints, func(e location.Endpoint) bool { return e.Protocol == protocol.IKEv2 }) {
		return nil, fmt.Errorf("server %s does not speak IKEv2", server.ID)
	}
	var cas []string
	for rest := []byte(server.CA); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		cas = append(cas, string(block.Bytes))
	}
	if len(cas) == 0 { // charon would take any certificate that it trusts
		return nil, errors.New("ikev2: the server's CA is not in PEM form")
	}
	ike, esp := strings.Split(profile.IKE, ","), strings.Split(profile.ESP, ",")
	if hybrid(algorithms) {
		ike, esp = slices.Concat(hybridIKE, ike), slices.Concat(hybridESP, esp)
	}
	child := new(vici.Message).
		SetList("remote_ts", "0.0.0.0/0", "::/0").SetList("esp_proposals", esp...).
		Set("rekey_time", fmt.Sprint(clientChildLifetime)).Set("dpd_action", "clear").Set("close_action", "none")
	if c.Offload {
		id := fmt.Sprint(clientInterfaceID)
		child.Set("if_id_in", id).Set("if_id_out", id).Set("set_mark_out", fmt.Sprintf("%#x", c.Mark))
	}
	conn := new(vici.Message).
		Set("version", "2").SetList("remote_addrs", at.String()).Set("remote_port", fmt.Sprint(PortNAT)).
		SetList("proposals", ike...).SetList("vips", "0.0.0.0", "::").
		Set("encap", "yes").Set("mobike", "yes").Set("fragmentation", "yes").Set("send_certreq", "no").
		Set("unique", "never").Set("keyingtries", "1").Set("dpd_delay", fmt.Sprint(int(c.idle().Seconds()))).
		Set("rekey_time", "0").Set("reauth_time", "0").
		SetSection("local", new(vici.Message).Set("auth", "eap-mschapv2").Set("id", "keyid:lethe").Set("eap_id", username.Reveal())).
		SetSection("remote", new(vici.Message).Set("auth", "pubkey").Set("id", server.ID).SetList("cacerts", cas...)).
		SetSection("children", new(vici.Message).SetSection(ClientName, child))
	return new(vici.Message).SetSection(ClientName, conn), nil
}

// ParseResolvers returns the addresses in a file that charon wrote (resolv.conf(5)).
func ParseResolvers(text []byte) (all []netip.Addr) {
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if len(f) < 2 || f[0] != "nameserver" {
			continue
		}
		if a, err := netip.ParseAddr(f[1]); err == nil && a.Zone() == "" {
			all = append(all, a.Unmap())
		}
	}
	return all
}
