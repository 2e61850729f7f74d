package ikev2

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"encoding/xml"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"lethe/location"
	"lethe/protocol"
)

// What customers' systems propose, in strongSwan's words.
const (
	customerIKE = "aes256gcm16-prfsha384-x25519,aes256gcm16-prfsha384-ecp384"
	customerESP = "aes256gcm16-x25519,aes256gcm16-ecp384"
)

// target is a server as a profile names it.
type target struct {
	id   string
	addr netip.Addr
	ca   []byte // DER
}

// aim reads what profiles need. They hold nothing about the customer: systems ask for user name and
// password. The server's certificate has its id as a DNS name, and its addresses, which Windows looks for.
func aim(s location.Server) (target, error) {
	if err := s.Validate(); err != nil {
		return target{}, err
	}
	block, _ := pem.Decode([]byte(s.CA))
	if block == nil || block.Type != "CERTIFICATE" {
		return target{}, fmt.Errorf("server %s: the CA is not in PEM form", s.ID)
	}
	for _, e := range s.Endpoints {
		if e.Protocol == protocol.IKEv2 {
			return target{s.ID, s.Addresses[0], block.Bytes}, nil
		}
	}
	return target{}, fmt.Errorf("server %s does not speak IKEv2", s.ID)
}

// uuid returns an identifier that is always the same for a server and a use, so that importing a profile
// again replaces it (RFC 9562, version 8).
func (t target) uuid(use string) string {
	h := sha256.Sum256([]byte("lethe ikev2 profile\x00" + use + "\x00" + t.id))
	h[6], h[8] = h[6]&0x0f|0x80, h[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", h[:4], h[4:6], h[6:8], h[8:10], h[10:16])
}

func (t target) name() string { return "Lethe " + t.id }

// dict is a property list dictionary, in order.
type dict []any // key, value, key, value, …

// plist writes a value as an XML property list.
func plist(b *bytes.Buffer, v any) {
	switch v := v.(type) {
	case dict:
		b.WriteString("<dict>\n")
		for i := 0; i < len(v); i += 2 {
			fmt.Fprintf(b, "<key>%s</key>\n", v[i])
			plist(b, v[i+1])
		}
		b.WriteString("</dict>\n")
	case []any:
		b.WriteString("<array>\n")
		for _, e := range v {
			plist(b, e)
		}
		b.WriteString("</array>\n")
	case []byte:
		fmt.Fprintf(b, "<data>%s</data>\n", base64.StdEncoding.EncodeToString(v))
	case bool:
		fmt.Fprintf(b, "<%t/>\n", v)
	case int:
		fmt.Fprintf(b, "<integer>%d</integer>\n", v)
	default:
		b.WriteString("<string>")
		_ = xml.EscapeText(b, fmt.Append(nil, v)) // a buffer takes everything
		b.WriteString("</string>\n")
	}
}

// Apple returns a configuration profile (.mobileconfig) for iOS, iPadOS and macOS ("VPN.IKEv2" in Apple's
// Device Management documentation). With hybrid, systems of the 26 series and later add ML-KEM-768 (method
// 36) to the key exchange and do without where the server cannot; older ones ignore that.
func Apple(server location.Server, hybrid bool) ([]byte, error) {
	t, err := aim(server)
	if err != nil {
		return nil, err
	}
	// Group 31 is Curve25519 (RFC 8031). With AES-GCM the integrity algorithm is the PRF's.
	association := dict{"EncryptionAlgorithm", "AES-256-GCM", "IntegrityAlgorithm", "SHA2-384", "DiffieHellmanGroup", 31, "LifeTimeInMinutes", 1440}
	ike := dict{
		"RemoteAddress", t.addr.String(), "RemoteIdentifier", t.id, "LocalIdentifier", "",
		"AuthenticationMethod", "None", "ExtendedAuthEnabled", 1, "ServerCertificateCommonName", t.id,
		"EnablePFS", 1, "DisableMOBIKE", 0, "DisableRedirect", 1, "DeadPeerDetectionRate", "Medium",
		"UseConfigurationAttributeInternalIPSubnet", 0,
	}
	if hybrid {
		association = append(association, "PostQuantumKeyExchangeMethods", []any{36})
		ike = append(ike, "AllowPostQuantumKeyExchangeFallback", true)
	}
	ike = append(ike, "IKESecurityAssociationParameters", association, "ChildSecurityAssociationParameters", association)
	payload := func(use string, rest ...any) dict {
		return append(dict{"PayloadType", use, "PayloadVersion", 1, "PayloadIdentifier", "lethe." + t.id + "." + use, "PayloadUUID", t.uuid(use), "PayloadDisplayName", t.name()}, rest...)
	}
	var b bytes.Buffer
	b.WriteString(xml.Header + `<!DOCTYPE plist PUBLIC "-//Apple//DTD PLIST 1.0//EN" "http://www.apple.com/DTDs/PropertyList-1.0.dtd">` + "\n<plist version=\"1.0\">\n")
	plist(&b, payload("Configuration", "PayloadContent", []any{
		payload("com.apple.security.root", "PayloadContent", t.ca),
		payload("com.apple.vpn.managed", "UserDefinedName", t.name(), "VPNType", "IKEv2", "IKEv2", ike),
	}))
	b.WriteString("</plist>\n")
	return b.Bytes(), nil
}

// StrongSwan returns a profile (.sswan) for strongSwan's app on Android, as its documentation
// ("AndroidVPNClientProfiles") defines it.
func StrongSwan(server location.Server) ([]byte, error) {
	t, err := aim(server)
	if err != nil {
		return nil, err
	}
	return json.MarshalIndent(map[string]any{
		"uuid": t.uuid("sswan"), "name": t.name(), "type": "ikev2-eap",
		"remote":       map[string]any{"addr": t.addr.String(), "id": t.id, "cert": t.ca},
		"ike-proposal": strings.Split(customerIKE, ",")[0], "esp-proposal": strings.Split(customerESP, ",")[0],
	}, "", "  ")
}

// Windows returns a PowerShell script for Windows 10 and 11 that trusts the server's CA for this machine
// (which needs an administrator), adds the connection and sets strong algorithms: by itself Windows proposes
// no Diffie-Hellman group but MODP-1024, which the server refuses.
func Windows(server location.Server) (string, error) {
	t, err := aim(server)
	if err != nil {
		return "", err
	}
	name := "'" + t.name() + "'" // validated: no quotes
	return strings.ReplaceAll(fmt.Sprintf(`#Requires -RunAsAdministrator
$ErrorActionPreference = 'Stop'
$ca = [Security.Cryptography.X509Certificates.X509Certificate2]::new([Convert]::FromBase64String('%[1]s'))
$store = [Security.Cryptography.X509Certificates.X509Store]::new('Root', 'LocalMachine')
$store.Open('ReadWrite')
$store.Add($ca)
$store.Close()
Remove-VpnConnection -Name %[2]s -Force -ErrorAction SilentlyContinue
Add-VpnConnection -Name %[2]s -ServerAddress '%[3]s' -TunnelType Ikev2 -AuthenticationMethod Eap -EncryptionLevel Maximum -RememberCredential
Set-VpnConnectionIPsecConfiguration -ConnectionName %[2]s -Force -EncryptionMethod GCMAES256 -IntegrityCheckMethod SHA384 -DHGroup ECP384 -CipherTransformConstants GCMAES256 -AuthenticationTransformConstants GCMAES256 -PfsGroup ECP384
`, base64.StdEncoding.EncodeToString(t.ca), name, t.addr), "\n", "\r\n"), nil
}

// NetworkManager returns a connection file (nm-settings-keyfile(5)) for NetworkManager with its strongSwan
// plug-in. ca is the path of the file that will hold the server's CA: NetworkManager takes no certificate
// in the connection itself.
func NetworkManager(server location.Server, ca string) (string, error) {
	t, err := aim(server)
	if err == nil && (ca == "" || ca[0] != '/' || !plain(ca)) {
		err = errors.New("ikev2: want an absolute path of plain characters for the CA")
	}
	if err != nil {
		return "", err
	}
	semicolons := strings.NewReplacer(",", `\;`) // a list in the plug-in, not in the key file
	return fmt.Sprintf(`[connection]
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
`, t.name(), t.uuid("networkmanager"), t.addr, t.id, ca, semicolons.Replace(customerIKE), semicolons.Replace(customerESP)), nil
}

// Swanctl returns a swanctl.conf(5) for strongSwan on Linux. ca is the name of the file in its x509ca
// directory that will hold the server's CA. The user name and the password go into a section of the
// customer's own: secrets { eap { id = …; secret = … } } and eap_id.
func Swanctl(server location.Server, ca, username string) (string, error) {
	t, err := aim(server)
	if err == nil && (!plain(ca) || ca == "" || !plain(username)) {
		err = errors.New("ikev2: want plain characters in the CA's file name and the user name")
	}
	if err != nil {
		return "", err
	}
	var c conf
	c.section("connections", func() {
		c.section(t.id, func() {
			c.set("version", 2)
			c.set("remote_addrs", t.addr)
			c.set("vips", "0.0.0.0, ::")
			c.set("proposals", customerIKE)
			c.set("encap", "yes")
			c.set("dpd_delay", 30)
			c.section("local", func() {
				c.set("auth", "eap-mschapv2")
				c.set("eap_id", username)
			})
			c.section("remote", func() {
				c.set("auth", "pubkey")
				c.set("id", t.id)
				c.set("cacerts", ca)
			})
			c.section("children", func() {
				c.section(t.id, func() {
					c.set("remote_ts", "0.0.0.0/0, ::/0")
					c.set("esp_proposals", customerESP)
				})
			})
		})
	})
	return c.String(), nil
}
