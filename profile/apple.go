package profile

import (
	"bytes"
	"encoding/base64"
	"encoding/xml"
	"fmt"
)

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
	case int:
		fmt.Fprintf(b, "<integer>%d</integer>\n", v)
	default:
		b.WriteString("<string>")
		_ = xml.EscapeText(b, fmt.Append(nil, v)) // a buffer takes everything
		b.WriteString("</string>\n")
	}
}

// Key exchange methods as Apple numbers them, which is as IANA does ("Transform Type 4").
const (
	curve25519 = 31 // RFC 8031
	mlkem768   = 36 // draft-ietf-ipsecme-ikev2-mlkem
)

// apple returns a configuration profile ("VPN.IKEv2" in Apple's Device Management documentation). Systems
// of the 26 series and later add ML-KEM-768 to the key exchange and do without where the server cannot;
// older ones ignore that. Authentication by EAP alone is method None with ExtendedAuthEnabled.
func apple(t target) ([]byte, error) {
	// With AES-GCM the integrity algorithm is the PRF's.
	association := dict{
		"EncryptionAlgorithm", "AES-256-GCM", "IntegrityAlgorithm", "SHA2-384", "DiffieHellmanGroup", curve25519,
		"PostQuantumKeyExchangeMethods", []any{mlkem768}, "LifeTimeInMinutes", 1440,
	}
	ike := dict{
		"RemoteAddress", t.addrs[0].String(), "RemoteIdentifier", t.id, "LocalIdentifier", "",
		"AuthenticationMethod", "None", "ExtendedAuthEnabled", 1, "ServerCertificateCommonName", t.id,
		"EnablePFS", 1, "DisableMOBIKE", 0, "DisableRedirect", 1, "DeadPeerDetectionRate", "Medium",
		"UseConfigurationAttributeInternalIPSubnet", 0, "AllowPostQuantumKeyExchangeFallback", 1,
		"IKESecurityAssociationParameters", association, "ChildSecurityAssociationParameters", association,
	}
	payload := func(use string, rest ...any) dict {
		return append(dict{
			"PayloadType", use, "PayloadVersion", 1, "PayloadIdentifier", "lethe." + t.id + "." + use, "PayloadUUID", t.uuid(use),
			"PayloadDisplayName", t.name(),
		}, rest...)
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
