package ikev2_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"

	"lethe/ikev2"
	"lethe/location"
	"lethe/protocol"
	"lethe/vici"
)

func place(addr string) location.Server {
	return location.Server{
		ID: serverName, Location: 1, CA: credentials().CA, TLSCrypt: "-----BEGIN OpenVPN Static key V1-----\n", Addresses: []netip.Addr{netip.MustParseAddr(addr)},
		Endpoints: []location.Endpoint{{Protocol: protocol.OpenVPNUDP, Port: 1194}, {Protocol: protocol.IKEv2, Port: 500}},
	}
}

func der(t *testing.T) []byte {
	t.Helper()
	block, _ := pem.Decode([]byte(credentials().CA))
	return block.Bytes
}

// profiles renders every kind.
func profiles(s location.Server) map[string]func() (string, error) {
	return map[string]func() (string, error){
		"apple":      func() (string, error) { b, err := ikev2.Apple(s, true); return string(b), err },
		"strongswan": func() (string, error) { b, err := ikev2.StrongSwan(s); return string(b), err },
		"windows":    func() (string, error) { return ikev2.Windows(s) },
		"nm":         func() (string, error) { return ikev2.NetworkManager(s, "/etc/lethe/ca.pem") },
		"swanctl":    func() (string, error) { return ikev2.Swanctl(s, "ca.pem", "user") },
	}
}

func TestProfilesRefuse(t *testing.T) {
	for name, change := range map[string]func(*location.Server){
		"no IKEv2":   func(s *location.Server) { s.Endpoints = s.Endpoints[:1] },
		"no CA":      func(s *location.Server) { s.CA = "x" },
		"no address": func(s *location.Server) { s.Addresses = nil },
	} {
		s := place("192.0.2.1")
		change(&s)
		for kind, render := range profiles(s) {
			if text, err := render(); err == nil || text != "" {
				t.Errorf("%s, %s: %v", kind, name, err)
			}
		}
	}
	s := place("192.0.2.1")
	for _, ca := range []string{"", "relative", "/a\nb"} {
		if _, err := ikev2.NetworkManager(s, ca); err == nil {
			t.Errorf("path %q", ca)
		}
	}
	for _, p := range [][2]string{{"", "u"}, {"a b", "u"}, {"a", "u\n}"}} {
		if _, err := ikev2.Swanctl(s, p[0], p[1]); err == nil {
			t.Errorf("file %q, user %q", p[0], p[1])
		}
	}
}

// TestProfilesStay shows that the same server gives the same profile, and another another.
func TestProfilesStay(t *testing.T) {
	other := place("192.0.2.1")
	other.ID = "us-nyc-1"
	for kind, render := range profiles(place("192.0.2.1")) {
		a, err := render()
		must(t, err)
		b, _ := render()
		c, err := profiles(other)[kind]()
		must(t, err)
		if a != b || a == c {
			t.Errorf("%s: %t, %t", kind, a == b, a == c)
		}
	}
}

// TestApple has the profile read by another reader of property lists, Python's.
func TestApple(t *testing.T) {
	for _, hybrid := range []bool{true, false} {
		b, err := ikev2.Apple(place("2001:db8::1"), hybrid)
		must(t, err)
		cmd := exec.Command("python3", "-c", `
import base64, json, plistlib, sys, uuid
p = plistlib.loads(sys.stdin.buffer.read())
for d in [p] + p["PayloadContent"]:
    uuid.UUID(d["PayloadUUID"])
    assert d["PayloadVersion"] == 1 and d["PayloadIdentifier"] and d["PayloadType"]
json.dump(p, sys.stdout, default=lambda b: base64.b64encode(b).decode())`)
		cmd.Stdin = bytes.NewReader(b)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		var p struct {
			PayloadType    string
			PayloadContent []struct {
				PayloadType, VPNType string
				PayloadContent       string
				IKEv2                map[string]any
			}
		}
		must(t, json.Unmarshal(out, &p))
		ca, vpn := p.PayloadContent[0], p.PayloadContent[1]
		if p.PayloadType != "Configuration" || ca.PayloadType != "com.apple.security.root" || vpn.PayloadType != "com.apple.vpn.managed" || vpn.VPNType != "IKEv2" {
			t.Errorf("types in %s", out)
		}
		if ca.PayloadContent != base64.StdEncoding.EncodeToString(der(t)) {
			t.Error("another CA")
		}
		for key, want := range map[string]any{
			"RemoteAddress": "2001:db8::1", "RemoteIdentifier": serverName, "AuthenticationMethod": "None", "ExtendedAuthEnabled": 1.0, "EnablePFS": 1.0,
		} {
			if got := vpn.IKEv2[key]; got != want {
				t.Errorf("%s is %v, want %v", key, got, want)
			}
		}
		for _, key := range []string{"IKESecurityAssociationParameters", "ChildSecurityAssociationParameters"} {
			a := vpn.IKEv2[key].(map[string]any)
			want := "<nil>"
			if hybrid {
				want = "[36]"
			}
			if a["EncryptionAlgorithm"] != "AES-256-GCM" || a["DiffieHellmanGroup"] != 31.0 || fmt.Sprint(a["PostQuantumKeyExchangeMethods"]) != want {
				t.Errorf("%s: %v", key, a)
			}
		}
		if (vpn.IKEv2["AllowPostQuantumKeyExchangeFallback"] == true) != hybrid {
			t.Error("fallback")
		}
	}
}

// TestStrongSwanProfile checks what the app requires: uuid, name, type and remote.addr.
func TestStrongSwanProfile(t *testing.T) {
	b, err := ikev2.StrongSwan(place("192.0.2.1"))
	must(t, err)
	var p struct {
		UUID, Name, Type string
		Remote           struct{ Addr, ID, Cert string }
		IKE              string `json:"ike-proposal"`
		ESP              string `json:"esp-proposal"`
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	must(t, d.Decode(&p))
	if len(p.UUID) != 36 || p.UUID[14] != '8' || p.Name == "" || p.Type != "ikev2-eap" || p.Remote.Addr != "192.0.2.1" || p.Remote.ID != serverName ||
		p.Remote.Cert != base64.StdEncoding.EncodeToString(der(t)) || p.IKE != "aes256gcm16-prfsha384-x25519" || p.ESP != "aes256gcm16-x25519" {
		t.Errorf("%s", b)
	}
}

func TestWindows(t *testing.T) {
	s, err := ikev2.Windows(place("192.0.2.1"))
	must(t, err)
	for _, want := range []string{
		"#Requires -RunAsAdministrator\r\n", "-ServerAddress '192.0.2.1' -TunnelType Ikev2 -AuthenticationMethod Eap", "-Name 'Lethe " + serverName + "'",
		"-EncryptionMethod GCMAES256 -IntegrityCheckMethod SHA384 -DHGroup ECP384 -CipherTransformConstants GCMAES256 -AuthenticationTransformConstants GCMAES256 -PfsGroup ECP384\r\n",
		base64.StdEncoding.EncodeToString(der(t)),
	} {
		if !strings.Contains(s, want) {
			t.Errorf("want %q in\n%s", want, s)
		}
	}
	if strings.Contains(strings.ReplaceAll(s, "\r\n", ""), "\n") || strings.Count(s, "'")%2 != 0 {
		t.Error("line ends or quotes")
	}
}

// TestNetworkManager has the connection file read by another reader of key files, GLib's own rules in Python's words.
func TestNetworkManager(t *testing.T) {
	s, err := ikev2.NetworkManager(place("192.0.2.1"), "/etc/lethe/ca.pem")
	must(t, err)
	cmd := exec.Command("python3", "-c", `
import configparser, json, sys
c = configparser.ConfigParser(delimiters="=", strict=True, interpolation=None)
c.read_file(sys.stdin)
json.dump({s: dict(c[s]) for s in c.sections()}, sys.stdout)`)
	cmd.Stdin = strings.NewReader(s)
	out, err := cmd.CombinedOutput()
	must(t, err)
	var c map[string]map[string]string
	must(t, json.Unmarshal(out, &c))
	v := c["vpn"]
	if c["connection"]["type"] != "vpn" || len(c["connection"]["uuid"]) != 36 || v["service-type"] != "org.freedesktop.NetworkManager.strongswan" ||
		v["address"] != "192.0.2.1" || v["remote-identity"] != serverName || v["method"] != "eap" || v["virtual"] != "yes" || v["certificate"] != "/etc/lethe/ca.pem" ||
		v["ike"] != `aes256gcm16-prfsha384-x25519\;aes256gcm16-prfsha384-ecp384` || c["ipv4"]["method"] != "auto" {
		t.Errorf("%s", out)
	}
}

// TestSwanctl has the file loaded by swanctl and connects by it.
func TestSwanctl(t *testing.T) {
	start(t, config(runtimeDir(t)), newLedger(t))
	c := newCustomer(t)
	text, err := ikev2.Swanctl(place(fmt.Sprintf("10.99.%d.1", c.n)), c.dir+"/ca.pem", "ann")
	must(t, err)
	text += "secrets {\n eap {\n  id = ann\n  secret = \"" + password + "\"\n }\n}\n"
	must(t, os.WriteFile(c.dir+"/ca.pem", []byte(credentials().CA), 0o600))
	must(t, os.WriteFile(c.dir+"/swanctl.conf", []byte(text), 0o600))
	for _, what := range []string{"--load-creds", "--load-conns"} {
		must(t, command("swanctl "+what+" --file "+c.dir+"/swanctl.conf --uri unix://"+c.dir+"/vici"))
	}
	if _, err := c.vici.Call(t.Context(), "initiate", new(vici.Message).Set("child", serverName).Set("timeout", "8000")); err != nil {
		t.Fatalf("%v: %s", err, c.log())
	}
	c.ping(t)
}
