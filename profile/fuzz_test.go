package profile_test

import (
	"encoding/json"
	"encoding/pem"
	"encoding/xml"
	"errors"
	"io"
	"net/netip"
	"regexp"
	"strings"
	"testing"

	"lethe/location"
	"lethe/private"
	"lethe/profile"
	"lethe/protocol"
)

// shapes say of each line of a profile, blocks of PEM left out, that it is one that we write.
var shapes = map[string]*regexp.Regexp{
	"ovpn": regexp.MustCompile(`^(?:client|dev tun|nobind|persist-tun|persist-key|auth-user-pass|remote-cert-tls server|reneg-sec 0|fast-io|` +
		`verify-x509-name [a-z0-9-]+ name|tls-version-min 1\.3|tls-ciphersuites [A-Z0-9_:]+|data-ciphers [A-Z0-9:-]+|proto udp|proto tcp-client|` +
		`explicit-exit-notify 1|socket-flags TCP_NODELAY|remote [0-9a-f.:]+ [0-9]{1,5}|</?(?:ca|tls-crypt)>)$`),
	"networkmanager": regexp.MustCompile(`^(?:#.*||\[(?:connection|vpn|ipv4|ipv6)\]|id=Lethe [a-z0-9-]+|uuid=[0-9a-f-]{36}|type=vpn|autoconnect=false|` +
		`service-type=org\.freedesktop\.NetworkManager\.strongswan|address=[0-9a-f.:]+|remote-identity=[a-z0-9-]+|certificate=/[A-Za-z0-9._/-]+|` +
		`user=[A-Za-z0-9._-]+|(?:virtual|encap|proposal)=yes|ipcomp=no|(?:ike|esp)=[a-z0-9;-]+|password-flags=2|method=(?:auto|eap))$`),
	"swanctl": regexp.MustCompile(`^(?:#.*||\s*}|connections {|\s+[a-z0-9-]+ {|\s+(?:version = 2|remote_addrs = [0-9a-f.:]+|vips = 0\.0\.0\.0, ::|` +
		`(?:proposals|esp_proposals) = [a-z0-9,-]+|encap = yes|dpd_delay = 30|auth = (?:eap-mschapv2|pubkey)|eap_id = [A-Za-z0-9._-]+|id = [a-z0-9-]+|` +
		`cacerts = [A-Za-z0-9._-]+|remote_ts = 0\.0\.0\.0/0, ::/0))$`),
}

var blocks = regexp.MustCompile(`(?s)-----BEGIN ([A-Za-z0-9 ]+)-----\n[A-Za-z0-9+/=\n]*-----END ([A-Za-z0-9 ]+)-----\n`)

// fixedCA is a certificate that is the same in every run: a corpus is of use with it.
const fixedCA = `-----BEGIN CERTIFICATE-----
MIIBdTCCARugAwIBAgIUO1Kbs//F4PZbd810DxpRmMEhHWwwCgYIKoZIzj0EAwIw
DzENMAsGA1UEAwwEZnV6ejAgFw0yNjExMjMxNTI2NDdaGA8yMTI2MTAzMDE1MjY0
N1owDzENMAsGA1UEAwwEZnV6ejBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABB17
DiMURQIzaxNcDdAdnPNfcW1Q6OoyXQUfSZnyJszv5PRODRfSifaH6SVEVXe61u7c
dZfQMzxwE5G50xQUBaujUzBRMB0GA1UdDgQWBBSwRv0gVEcPh4YY/Z+g2dhVIeyl
ejAfBgNVHSMEGDAWgBSwRv0gVEcPh4YY/Z+g2dhVIeylejAPBgNVHRMBAf8EBTAD
AQH/MAoGCCqGSM49BAMCA0gAMEUCIQCcrjIDMvUiCFRJnx29BqRss+i1NtOeJYVq
yUV1gNKZhwIgT/ahsWbEjZ2KkxgMuBeCmjwNnXXa7bPIQeSHQyKUFW0=
-----END CERTIFICATE-----
`

// FuzzRender lets a service say anything of a server: either there is no profile, or every line of it is
// one that we write, with nothing in it that is not of the form of its value.
func FuzzRender(f *testing.F) {
	f.Add(serverName, []byte{192, 0, 2, 1}, "", uint16(500), fixedCA, staticKey, username, "/x/ca.pem")
	f.Add("nl'ams", []byte{1}, "%'", uint16(0), "</ca>\nup evil", staticKey+"<", "a\n}", "/a\nb")
	f.Add("nl-ams-1", make([]byte, 16), "eth0", uint16(1), "#\nx\n"+fixedCA+"tail", "# c\n"+staticKey, "a", "")
	f.Fuzz(func(t *testing.T, id string, address []byte, zone string, port uint16, ca, key, user, path string) {
		a, _ := netip.AddrFromSlice(address)
		if a.Is6() {
			a = a.WithZone(zone)
		}
		s := location.Server{ID: id, Location: 1, Enabled: true, CA: ca, TLSCrypt: key, Addresses: []netip.Addr{a}}
		for _, p := range protocol.All() {
			s.Endpoints = append(s.Endpoints, location.Endpoint{Protocol: p, Port: port})
		}
		for _, format := range profile.Formats() {
			p, err := format.Render(profile.Request{Server: s, Username: private.Of(user), CA: path})
			if err != nil {
				if p.Text != nil || p.Name != "" {
					t.Errorf("%s: an error and a profile", format.Name)
				}
				continue
			}
			if block, rest := pem.Decode(p.CA); block == nil || block.Type != "CERTIFICATE" || strings.TrimSpace(string(rest)) != "" && !strings.Contains(string(rest), "-----BEGIN") {
				t.Errorf("%s: the CA is %q", format.Name, p.CA)
			}
			inspect(t, format.Name, string(p.Text))
		}
	})
}

func inspect(t *testing.T, name, text string) {
	t.Helper()
	switch name {
	case "mobileconfig":
		d := xml.NewDecoder(strings.NewReader(text))
		for {
			_, err := d.Token()
			if errors.Is(err, io.EOF) {
				return
			}
			if err != nil {
				t.Fatalf("%s: %v\n%s", name, err, text)
			}
		}
	case "sswan":
		var p map[string]any
		if err := json.Unmarshal([]byte(text), &p); err != nil || len(p) != 6 || len(p["remote"].(map[string]any)) != 3 {
			t.Errorf("%s: %v: %s", name, err, text)
		}
	case "windows":
		check(t, text)
	default:
		if name == "ovpn-tcp" {
			name = "ovpn"
		}
		for line := range strings.SplitSeq(strings.TrimSuffix(blocks.ReplaceAllString(text, ""), "\n"), "\n") {
			if !shapes[name].MatchString(line) {
				t.Errorf("%s: a line that we do not write: %q", name, line)
			}
		}
	}
}
