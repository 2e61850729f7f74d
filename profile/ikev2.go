package profile

import (
	"encoding/json"
	"fmt"
	"path"
	"strings"
)

// What customers' systems propose, in strongSwan's words: lists with commas, strongest first. strongSwan
// before 6.0 refuses a whole connection that names ML-KEM, so it is not here.
const (
	IKE = "aes256gcm16-prfsha384-x25519,aes256gcm16-prfsha384-ecp384"
	ESP = "aes256gcm16-x25519,aes256gcm16-ecp384"
)

// strongSwan returns a profile for strongSwan's app on Android ("VPN Profile Import for the Android VPN
// Client" in its documentation). It is as small as it can be, so that it makes a small QR code; the
// proposals stay, because the app's own are weaker.
func strongSwan(t target) ([]byte, error) {
	type remote struct {
		Addr string `json:"addr"`
		ID   string `json:"id"`
		Cert []byte `json:"cert"` // DER, in base64
	}
	ike, _, _ := strings.Cut(IKE, ",") // the app takes one
	esp, _, _ := strings.Cut(ESP, ",")
	return json.Marshal(struct {
		UUID   string `json:"uuid"`
		Name   string `json:"name"`
		Type   string `json:"type"`
		Remote remote `json:"remote"`
		IKE    string `json:"ike-proposal"`
		ESP    string `json:"esp-proposal"`
	}{t.uuid("sswan"), t.name(), "ikev2-eap", remote{t.addrs[0].String(), t.id, t.ca}, ike, esp})
}

// networkManager returns a connection file (nm-settings-keyfile(5)). The plug-in asks for the password
// but not for the user name, and takes no certificate in the connection itself.
func networkManager(t target) ([]byte, error) {
	ca, head := t.beside("/etc/ssl/certs/lethe-" + t.id + ".pem")
	list := strings.NewReplacer(",", ";")
	return fmt.Appendf(nil, `%s[connection]
id=%s
uuid=%s
type=vpn
autoconnect=false

[vpn]
service-type=org.freedesktop.NetworkManager.strongswan
address=%s
remote-identity=%s
certificate=%s
method=eap
user=%s
virtual=yes
encap=yes
ipcomp=no
proposal=yes
ike=%s
esp=%s
password-flags=2

[ipv4]
method=auto

[ipv6]
method=auto
`, head, t.name(), t.uuid("networkmanager"), t.addrs[0], t.id, ca, t.username, list.Replace(IKE), list.Replace(ESP)), nil
}

// swanctl returns a swanctl.conf(5). The CA belongs into the directory x509ca, under the name that the
// file has. The password goes into a section of the customer's own: secrets { eap { id = …; secret = … } }.
func swanctl(t target) ([]byte, error) {
	ca, head := t.beside("/etc/swanctl/x509ca/lethe-" + t.id + ".pem")
	return fmt.Appendf(nil, `%[1]sconnections {
  %[2]s {
    version = 2
    remote_addrs = %[3]s
    vips = 0.0.0.0, ::
    proposals = %[4]s
    encap = yes
    dpd_delay = 30
    local {
      auth = eap-mschapv2
      eap_id = %[5]s
    }
    remote {
      auth = pubkey
      id = %[2]s
      cacerts = %[6]s
    }
    children {
      %[2]s {
        remote_ts = 0.0.0.0/0, ::/0
        esp_proposals = %[7]s
      }
    }
  }
}
`, head, t.id, t.addrs[0], IKE, t.username, path.Base(ca), ESP), nil
}
