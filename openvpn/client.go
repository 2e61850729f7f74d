package openvpn

import (
	"fmt"

	"lethe/location"
	"lethe/protocol"
)

// ClientConfig returns a configuration (.ovpn) by which OpenVPN 2.5 or later connects to an
// endpoint of a server. It holds nothing about the customer: the client asks for user name and
// password. extra are further directives, one line each, that the caller answers for; the app adds
// its own, an export adds none.
//
// It fails when the server or the endpoint is not one that OpenVPN can connect to.
func ClientConfig(server location.Server, endpoint location.Endpoint, extra ...string) (string, error) {
	if err := server.Validate(); err != nil {
		return "", err
	}
	for what, text := range map[string]string{"CA": server.CA, "tls-crypt key": server.TLSCrypt} {
		if err := inlineable(what, text); err != nil {
			return "", fmt.Errorf("server %s: %w", server.ID, err)
		}
	}
	var t config
	t.line("client\ndev tun\nnobind\npersist-tun\npersist-key\nauth-user-pass\nremote-cert-tls server")
	t.line("verify-x509-name %s name\n%s", server.ID, ciphers)
	// The server renegotiates; a second clock would only double the work.
	t.line("reneg-sec 0")
	switch endpoint.Protocol {
	case protocol.OpenVPNUDP:
		t.line("proto udp\nexplicit-exit-notify 1\n%s", fastIO)
	case protocol.OpenVPNTCP:
		// Without it Nagle's algorithm and delayed acknowledgements cost 40 to 80 ms a connect.
		t.line("proto tcp-client\nsocket-flags TCP_NODELAY")
	default:
		return "", fmt.Errorf("server %s: %s is not spoken by OpenVPN", server.ID, endpoint.Protocol)
	}
	for _, a := range server.Addresses {
		t.line("remote %s %d", a, endpoint.Port)
	}
	for _, l := range extra {
		t.line("%s", l)
	}
	t.inline("ca", server.CA)
	t.inline("tls-crypt", server.TLSCrypt)
	return t.String(), nil
}
