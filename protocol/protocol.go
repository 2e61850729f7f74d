// Package protocol names the VPN protocols by id. After a session has been
// admitted, the id is all that the rest of the server knows of its protocol.
package protocol

import "fmt"

// ID is one VPN protocol over one transport. The numbers are stored in usage
// rows and never change their meaning.
type ID uint8

// The protocols.
const (
	OpenVPNUDP ID = 1
	OpenVPNTCP ID = 2
	IKEv2      ID = 3
)

var names = map[ID]string{OpenVPNUDP: "openvpn-udp", OpenVPNTCP: "openvpn-tcp", IKEv2: "ikev2"}

// All returns every protocol in the order of its number.
func All() []ID { return []ID{OpenVPNUDP, OpenVPNTCP, IKEv2} }

// String returns the name of p, for instance "openvpn-udp".
func (p ID) String() string {
	if n, ok := names[p]; ok {
		return n
	}
	return fmt.Sprintf("protocol-%d", uint8(p))
}

// Parse returns the protocol of that name.
func Parse(name string) (ID, error) {
	for id, n := range names {
		if n == name {
			return id, nil
		}
	}
	return 0, fmt.Errorf("protocol %q: want openvpn-udp, openvpn-tcp or ikev2", name)
}

// MarshalText implements [encoding.TextMarshaler].
func (p ID) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText implements [encoding.TextUnmarshaler].
func (p *ID) UnmarshalText(text []byte) (err error) {
	*p, err = Parse(string(text))
	return err
}
