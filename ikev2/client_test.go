package ikev2_test

import (
	"encoding/pem"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"lethe/ikev2"
	"lethe/internal/testkit"
	"lethe/location"
	"lethe/private"
	"lethe/protocol"
	"lethe/vici"
)

func newClient(offload bool) ikev2.Client {
	return ikev2.Client{
		Binary: "/opt/charon-x", Socket: "/run/y/vici", Resolvers: "/run/y/resolvers", Device: "ipsec4", Offload: offload,
		Mark: 0x6c65, Table: 27750, Priority: 4901, Silence: time.Minute,
	}
}

// TestClientConf checks what a customer's charon is told, with and without what this machine may not have.
func TestClientConf(t *testing.T) {
	for _, offload := range []bool{false, true} {
		text := string(newClient(offload).Conf())
		for _, want := range []string{
			"charon-x {\n", "  port = 0\n", "  port_nat_t = 0\n", "  install_routes = no\n", "  install_virtual_ip_on = ipsec4\n", "  interfaces_ignore = ipsec4\n",
			"  journal {\n    default = -1\n  }\n", "      socket = unix:///run/y/vici\n", "      fwmark = 0x6c65\n", "      fwmark = !0x6c65\n",
			"      file = /run/y/resolvers\n", "        path = /dev/null/none\n", "  routing_table = 27750\n", "  routing_table_prio = 4901\n",
			// 1.163 s × (1 + 1.4 + … + 1.4⁷) is 40 s; asked after 20.
			"  retransmit_timeout = 1.163\n", "  retransmit_tries = 7\n",
		} {
			if !strings.Contains(text, want) {
				t.Errorf("want %q in\n%s", want, text)
			}
		}
		if strings.Contains(text, "load = kernel-libipsec ") == offload || strings.Contains(text, "install_virtual_ip = yes") == offload {
			t.Errorf("kernel-libipsec with offload %t:\n%s", offload, text)
		}
		for _, never := range []string{"updown", "filelog", "syslog", "dns_handler"} {
			if strings.Contains(text, never) {
				t.Errorf("%s in\n%s", never, text)
			}
		}
		if p := ikev2.ClientPlugins(offload); slices.Contains(p, "kernel-libipsec") == offload || !slices.Contains(p, "eap-mschapv2") {
			t.Errorf("plugins %v with offload %t", p, offload)
		}
	}
}

// TestClientConnection checks how a server is connected to, and which servers are not.
func TestClientConnection(t *testing.T) {
	server := func() location.Server {
		return location.Server{
			ID: serverName, Location: 1, Enabled: true, Addresses: []netip.Addr{netip.MustParseAddr("198.51.100.1")},
			Endpoints: []location.Endpoint{{Protocol: protocol.OpenVPNUDP, Port: 1194}, {Protocol: protocol.IKEv2, Port: 500}}, CA: credentials().CA + credentials().CA,
		}
	}
	at, name := netip.MustParseAddr("2001:db8::1"), private.Of("marked-canary-name")
	block, _ := pem.Decode([]byte(credentials().CA))
	for _, offload := range []bool{false, true} {
		algorithms := new(vici.Message)
		if offload { // and a strongSwan that knows ML-KEM
			algorithms.SetSection("ke", new(vici.Message).Set("ML_KEM_768", "ml"))
		}
		m, err := newClient(offload).Connection(server(), at, name, algorithms)
		must(t, err)
		if strings.Contains(fmt.Sprintf("%+v", m), "canary") {
			t.Error("a connection prints its user")
		}
		conn := m.Section(ikev2.ClientName)
		child, remote, local := conn.Section("children").Section(ikev2.ClientName), conn.Section("remote"), conn.Section("local")
		if remote.Get("auth") != "pubkey" || remote.Get("id") != serverName || !slices.Equal(remote.List("cacerts"), []string{string(block.Bytes), string(block.Bytes)}) {
			t.Error("the server may be anybody")
		}
		if local.Get("auth") != "eap-mschapv2" || local.Get("eap_id") != "marked-canary-name" || strings.Contains(local.Get("id"), "canary") || local.Get("id") == "" {
			t.Error("the customer is named before anything is encrypted, or not at all")
		}
		for key, want := range map[string]string{"remote_port": "4500", "encap": "yes", "mobike": "yes", "dpd_delay": "20", "keyingtries": "1", "reauth_time": "0", "send_certreq": "no"} {
			if got := conn.Get(key); got != want {
				t.Errorf("%s is %q, want %q", key, got, want)
			}
		}
		if conn.List("remote_addrs")[0] != "2001:db8::1" || len(conn.List("vips")) != 2 || child.Get("dpd_action") != "clear" || len(child.List("remote_ts")) != 2 {
			t.Error("where to and what for")
		}
		if got := child.Get("if_id_in") + " " + child.Get("if_id_out") + " " + child.Get("set_mark_out"); (got == "1818588264 1818588264 0x6c65") != offload || (got == "  ") == offload {
			t.Errorf("interface and mark %q with offload %t", got, offload)
		}
		for _, list := range [][]string{conn.List("proposals"), child.List("esp_proposals")} {
			if strings.Contains(list[0], "ke1_mlkem768") != offload || strings.Contains(list[len(list)-1], "mlkem") {
				t.Errorf("hybrid %t: %q", offload, list)
			}
		}
	}
	for what, spoil := range map[string]func(*location.Server){
		"no CA":        func(s *location.Server) { s.CA = "" },
		"another CA":   func(s *location.Server) { s.CA = "x" },
		"OpenVPN only": func(s *location.Server) { s.Endpoints = s.Endpoints[:1] },
		"bad id":       func(s *location.Server) { s.ID = "%any" },
	} {
		s := server()
		spoil(&s)
		if _, err := newClient(false).Connection(s, at, name, nil); err == nil {
			t.Errorf("%s: connected to", what)
		}
	}
}

// FuzzParseResolvers: whatever stands there, only addresses that can be asked come out.
func FuzzParseResolvers(f *testing.F) {
	f.Add([]byte("nameserver 10.66.0.1   # by strongSwan\nnameserver fd6c:6574:6865:2::1   # by strongSwan\noptions x\n"))
	f.Add([]byte("nameserver\nnameserver fe80::1%eth0\nnameserver ::ffff:10.0.0.1"))
	f.Fuzz(func(t *testing.T, text []byte) {
		for _, a := range ikev2.ParseResolvers(text) {
			if !a.IsValid() || a.Zone() != "" || a.Is4In6() {
				t.Errorf("%v of %q", a, text)
			}
		}
	})
}

// TestParseResolvers reads what strongSwan writes.
func TestParseResolvers(t *testing.T) {
	got := ikev2.ParseResolvers([]byte("nameserver 10.66.0.1   # by strongSwan\nnameserver fd6c::1   # by strongSwan\nsearch x\nnameserver x\nnameserver fe80::1%2\n"))
	if want := "[10.66.0.1 fd6c::1]"; fmt.Sprint(got) != want {
		t.Errorf("got %v, want %s", got, want)
	}
}

// TestClientDevice: without offload it is the first free name, with it an XFRM interface that goes again, where
// the kernel has such.
func TestClientDevice(t *testing.T) {
	if got := ikev2.ClientDevice(false); got != "ipsec0" {
		t.Errorf("got %s", got)
	}
	must(t, testkit.Command("ip link add ipsec0 type veth peer name ipsec0p"))
	defer func() { must(t, testkit.Command("ip link del ipsec0")) }()
	if got := ikev2.ClientDevice(false); got != "ipsec1" {
		t.Errorf("beside ipsec0: got %s", got)
	}
	name := ikev2.ClientDevice(true)
	if err := ikev2.OpenClientDevice(); (err == nil) != ikev2.Offload() {
		t.Errorf("an XFRM interface: %v", err)
	}
	must(t, ikev2.CloseClientDevice())
	if testkit.Command("ip link show "+name) == nil {
		t.Errorf("%s is left", name)
	}
}
