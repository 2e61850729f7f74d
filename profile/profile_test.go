package profile_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"maps"
	"math/big"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"lethe/location"
	"lethe/private"
	"lethe/profile"
	"lethe/protocol"
)

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

const (
	serverName = "nl-ams-1"
	username   = "k3x-user_9.a"
	staticKey  = "-----BEGIN OpenVPN Static key V1-----\n" +
		"00112233445566778899aabbccddeeff\n00112233445566778899aabbccddeeff\n00112233445566778899aabbccddeeff\n00112233445566778899aabbccddeeff\n" +
		"00112233445566778899aabbccddeeff\n00112233445566778899aabbccddeeff\n00112233445566778899aabbccddeeff\n00112233445566778899aabbccddeeff\n" +
		"00112233445566778899aabbccddeeff\n00112233445566778899aabbccddeeff\n00112233445566778899aabbccddeeff\n00112233445566778899aabbccddeeff\n" +
		"00112233445566778899aabbccddeeff\n00112233445566778899aabbccddeeff\n00112233445566778899aabbccddeeff\n00112233445566778899aabbccddeeff\n" +
		"-----END OpenVPN Static key V1-----\n"
)

// authority is a CA's certificate, made once, in DER.
var authority = sync.OnceValue(func() []byte {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		panic(err)
	}
	return der
})

func authorityPEM() string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: authority()}))
}

func server(addresses ...string) location.Server {
	s := location.Server{
		ID: serverName, Location: 1, Enabled: true, CA: authorityPEM(), TLSCrypt: "#\n# 2048 bit OpenVPN static key\n#\n" + staticKey,
		Endpoints: []location.Endpoint{{Protocol: protocol.OpenVPNUDP, Port: 1194}, {Protocol: protocol.OpenVPNTCP, Port: 443}, {Protocol: protocol.IKEv2, Port: 500}},
	}
	for _, a := range addresses {
		s.Addresses = append(s.Addresses, netip.MustParseAddr(a))
	}
	return s
}

func find(tb testing.TB, name string) profile.Format {
	tb.Helper()
	f, ok := profile.Find(name)
	if !ok {
		tb.Fatalf("no format %s", name)
	}
	return f
}

func render(tb testing.TB, name string, r profile.Request) string {
	tb.Helper()
	r.Username = private.Of(username)
	p, err := find(tb, name).Render(r)
	must(tb, err)
	return string(p.Text)
}

func TestFormats(t *testing.T) {
	seen := map[string]bool{}
	for _, f := range profile.Formats() {
		if seen[f.Name] || seen[f.Extension] || f.For == "" || f.MediaType == "" || !strings.Contains(f.Extension, ".") {
			t.Errorf("%+v", f)
		}
		seen[f.Name], seen[f.Extension] = true, true
		s := server("192.0.2.1")
		p, err := f.Render(profile.Request{Server: s, Username: private.Of(username)})
		if err != nil || p.Name != serverName+f.Extension || string(p.CA) != authorityPEM() {
			t.Errorf("%s: %v, %q", f.Name, err, p.Name)
		}
		if strings.Contains(string(p.Text), username) != f.Named {
			t.Errorf("%s: a user name or none", f.Name)
		}
		if !f.Fits(s) {
			t.Errorf("%s does not fit", f.Name)
		}
		if s.Enabled = false; f.Fits(s) {
			t.Errorf("%s fits a server that takes nobody", f.Name)
		}
	}
	if _, ok := profile.Find("pigeon"); ok {
		t.Error("a format of a name that none has")
	}
	tcp := server("192.0.2.1")
	tcp.Endpoints = tcp.Endpoints[1:2]
	if got := profile.Fitting([]location.Server{tcp}); !slices.Equal(got, []string{"ovpn-tcp"}) || len(profile.Fitting(nil)) != 0 {
		t.Errorf("fitting: %v", got)
	}
	if got := profile.Fitting([]location.Server{tcp, server("192.0.2.1")}); !slices.Equal(got, profile.Names()) {
		t.Errorf("fitting: %v", got)
	}
}

// TestRefuses: what has no plain form in a profile makes none.
func TestRefuses(t *testing.T) {
	changes := map[string]func(*profile.Request){
		"no endpoint":            func(r *profile.Request) { r.Server.Endpoints = []location.Endpoint{{Protocol: 99, Port: 1}} },
		"no CA":                  func(r *profile.Request) { r.Server.CA = "x" },
		"a key beside the CA":    func(r *profile.Request) { r.Server.CA += strings.ReplaceAll(r.Server.CA, "CERTIFICATE", "PRIVATE KEY") },
		"an empty certificate":   func(r *profile.Request) { r.Server.CA = "-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n" },
		"no address":             func(r *profile.Request) { r.Server.Addresses = nil },
		"an address with a zone": func(r *profile.Request) { r.Server.Addresses[0] = netip.MustParseAddr("fe80::1%'") },
		"a name with a quote":    func(r *profile.Request) { r.Server.ID = "nl'ams" },
		"a name with a line":     func(r *profile.Request) { r.Server.ID = "nl\nams" },
	}
	for name, change := range changes {
		for _, f := range profile.Formats() {
			r := profile.Request{Server: server("192.0.2.1"), Username: private.Of(username)}
			change(&r)
			if p, err := f.Render(r); err == nil || p.Text != nil {
				t.Errorf("%s, %s: %v", f.Name, name, err)
			}
		}
	}
	for _, name := range []string{"ovpn", "ovpn-tcp"} {
		for _, key := range []string{"", "x", staticKey + "<", strings.Replace(staticKey, "0011", "001g", 1), "</tls-crypt>\n" + staticKey} {
			s := server("192.0.2.1")
			s.TLSCrypt = key
			if _, err := find(t, name).Render(profile.Request{Server: s}); err == nil {
				t.Errorf("%s: key %q", name, key)
			}
		}
	}
	for _, name := range []string{"networkmanager", "swanctl"} {
		for _, path := range []string{"relative", "/a\nb", "/a b", "/a;b", "/" + strings.Repeat("a", 300)} {
			if _, err := find(t, name).Render(profile.Request{Server: server("192.0.2.1"), Username: private.Of(username), CA: path}); err != profile.ErrPath {
				t.Errorf("%s: path %q: %v", name, path, err)
			}
		}
		for _, user := range []string{"", "a b", "a\n}", "a#", strings.Repeat("a", 65)} {
			_, err := find(t, name).Render(profile.Request{Server: server("192.0.2.1"), Username: private.Of(user)})
			if err == nil || user != "" && strings.Contains(err.Error(), user) {
				t.Errorf("%s: user %q: %v", name, user, err)
			}
		}
	}
}

// TestStays shows that the same server gives the same profile, and another another.
func TestStays(t *testing.T) {
	other := server("192.0.2.1")
	other.ID = "us-nyc-1"
	for _, name := range profile.Names() {
		a, b, c := render(t, name, profile.Request{Server: server("192.0.2.1")}), render(t, name, profile.Request{Server: server("192.0.2.1")}), render(t, name, profile.Request{Server: other})
		if a != b || a == c {
			t.Errorf("%s: %t, %t", name, a == b, a == c)
		}
	}
}

// TestBeside: without a place for the CA the profile is all there is. What its first line says to do
// with it gives the CA.
func TestBeside(t *testing.T) {
	for name, named := range map[string]string{
		"networkmanager": "certificate=/etc/ssl/certs/lethe-nl-ams-1.pem\n", "swanctl": "cacerts = lethe-nl-ams-1.pem\n",
	} {
		text := render(t, name, profile.Request{Server: server("192.0.2.1")})
		first, rest, _ := strings.Cut(text, "\n")
		_, recipe, ok := strings.Cut(first, "as root:  ")
		if !ok || !strings.Contains(rest, named) {
			t.Errorf("%s: %s", name, text)
		}
		dir := t.TempDir()
		must(t, os.WriteFile(filepath.Join(dir, "profile"), []byte(text), 0o600))
		recipe = regexp.MustCompile(`/etc/\S+`).ReplaceAllString(strings.ReplaceAll(recipe, "THIS-FILE", "profile"), "ca.pem")
		cmd := exec.Command("sh", "-c", recipe)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%s: %v: %s", recipe, err, out)
		}
		if got, err := os.ReadFile(filepath.Join(dir, "ca.pem")); err != nil || string(got) != authorityPEM() {
			t.Errorf("%s: %v\n%s", name, err, got)
		}
		if beside := render(t, name, profile.Request{Server: server("192.0.2.1"), CA: "/x/y.pem"}); strings.Contains(beside, "#") || !strings.Contains(beside, "y.pem\n") {
			t.Errorf("%s with the CA beside: %s", name, beside)
		}
	}
}

// TestOpenVPN has OpenVPN's own parser read the profile. It stops for want of a password.
func TestOpenVPN(t *testing.T) {
	for name, proto := range map[string]string{"ovpn": "proto udp\nexplicit-exit-notify 1\n", "ovpn-tcp": "proto tcp-client\n"} {
		text := render(t, name, profile.Request{Server: server("192.0.2.1", "2001:db8::1")})
		for _, want := range []string{"verify-x509-name nl-ams-1 name\n", "remote-cert-tls server\n", "remote 2001:db8::1 ", "remote 192.0.2.1 ", "auth-user-pass\n", proto} {
			if !strings.Contains(text, want) {
				t.Errorf("%s lacks %q", name, want)
			}
		}
		file := filepath.Join(t.TempDir(), "lethe.ovpn")
		must(t, os.WriteFile(file, []byte(strings.Replace(text, "auth-user-pass\n", "auth-user-pass /nonexistent/file\n", 1)), 0o600))
		out, err := exec.Command("openvpn", "--config", file).CombinedOutput()
		if err == nil || strings.Count(string(out), "Options error") != 2 || !strings.Contains(string(out), "/nonexistent/file") {
			t.Errorf("%s: openvpn says %v: %s", name, err, out)
		}
	}
}

// TestSswan checks the profile against the table of keys in strongSwan's documentation ("VPN Profile
// Import for the Android VPN Client"): what is required, of what type, and of which values.
func TestSswan(t *testing.T) {
	text := render(t, "sswan", profile.Request{Server: server("192.0.2.1", "2001:db8::1")})
	word := func(pattern string) func(any) bool {
		return func(v any) bool { s, ok := v.(string); return ok && regexp.MustCompile(pattern).MatchString(s) }
	}
	known := map[string]func(any) bool{
		"uuid": word(`^[0-9a-f]{8}-[0-9a-f]{4}-8[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`), "name": word(`.`), "type": word(`^ikev2-eap$`),
		"remote": func(v any) bool { _, ok := v.(map[string]any); return ok },
		// An AEAD takes a PRF in IKE and none in ESP.
		"ike-proposal": word(`^aes256gcm16-prfsha384-x25519$`), "esp-proposal": word(`^aes256gcm16-x25519$`),
	}
	inRemote := map[string]func(any) bool{
		"addr": func(v any) bool {
			s, ok := v.(string)
			_, err := netip.ParseAddr(s)
			return ok && err == nil && s == "192.0.2.1"
		},
		"id": word("^" + serverName + "$"),
		"cert": func(v any) bool {
			s, ok := v.(string)
			b, err := base64.StdEncoding.DecodeString(s)
			return ok && err == nil && bytes.Equal(b, authority())
		},
	}
	var p map[string]any
	must(t, json.Unmarshal([]byte(text), &p))
	against := func(p map[string]any, known map[string]func(any) bool) {
		for key, v := range p {
			if known[key] == nil || !known[key](v) {
				t.Errorf("%s is %v", key, v)
			}
		}
		for key := range known {
			if p[key] == nil {
				t.Errorf("no %s", key)
			}
		}
	}
	against(p, known)
	remote, _ := p["remote"].(map[string]any)
	against(remote, inRemote)
	var small bytes.Buffer
	if must(t, json.Compact(&small, []byte(text))); small.String() != text {
		t.Error("it could be smaller")
	}
}

// TestKeyfile has the connection file read by another reader of key files: every group and key is one
// that nm-settings-keyfile(5) or the plug-in knows. NetworkManager itself reads it in nm_test.go.
func TestKeyfile(t *testing.T) {
	for _, ca := range []string{"", "/etc/lethe/ca.pem"} {
		cmd := exec.Command("python3", "-c", `
import configparser, json, sys
c = configparser.ConfigParser(delimiters="=", strict=True, interpolation=None, comment_prefixes="#")
c.read_file(sys.stdin)
json.dump({s: dict(c[s]) for s in c.sections()}, sys.stdout)`)
		cmd.Stdin = strings.NewReader(render(t, "networkmanager", profile.Request{Server: server("192.0.2.1"), CA: ca}))
		out, err := cmd.CombinedOutput()
		must(t, err)
		var got map[string]map[string]string
		must(t, json.Unmarshal(out, &got))
		if ca == "" {
			ca = "/etc/ssl/certs/lethe-nl-ams-1.pem"
		}
		uuid := got["connection"]["uuid"]
		want := map[string]map[string]string{
			"connection": {"id": "Lethe nl-ams-1", "uuid": uuid, "type": "vpn", "autoconnect": "false"},
			"vpn": {
				"service-type": "org.freedesktop.NetworkManager.strongswan", "address": "192.0.2.1", "remote-identity": serverName, "certificate": ca,
				"method": "eap", "user": username, "virtual": "yes", "encap": "yes", "ipcomp": "no", "proposal": "yes", "password-flags": "2",
				"ike": "aes256gcm16-prfsha384-x25519;aes256gcm16-prfsha384-ecp384", "esp": "aes256gcm16-x25519;aes256gcm16-ecp384",
			},
			"ipv4": {"method": "auto"}, "ipv6": {"method": "auto"},
		}
		if len(uuid) != 36 || !maps.EqualFunc(got, want, maps.Equal[map[string]string, map[string]string]) {
			t.Errorf("%s", out)
		}
	}
}
