package profile

import (
	"fmt"
	"strings"

	"lethe/protocol"
)

// openVPN returns a configuration by which OpenVPN 2.5 or later connects. The client asks for user name
// and password. There is no cipher without authentication of its own (AEAD) and no TLS before 1.3.
func openVPN(t target) ([]byte, error) {
	var b strings.Builder
	b.WriteString(`client
dev tun
nobind
persist-tun
persist-key
auth-user-pass
remote-cert-tls server
verify-x509-name ` + t.id + ` name
tls-version-min 1.3
tls-ciphersuites TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256
data-ciphers AES-256-GCM:CHACHA20-POLY1305
reneg-sec 0
`) // the server renegotiates: a second clock would only double the work
	if t.endpoint.Protocol == protocol.OpenVPNTCP {
		// Without it Nagle's algorithm and delayed acknowledgements cost 40 to 80 ms a connect.
		b.WriteString("proto tcp-client\nsocket-flags TCP_NODELAY\n")
	} else {
		// Asking whether device and socket take a packet is half of all system calls otherwise.
		b.WriteString("proto udp\nexplicit-exit-notify 1\nfast-io\n")
	}
	for _, a := range t.addrs {
		fmt.Fprintf(&b, "remote %s %d\n", a, t.endpoint.Port)
	}
	fmt.Fprintf(&b, "<ca>\n%s</ca>\n<tls-crypt>\n%s\n</tls-crypt>\n", t.pem, t.tlsCrypt)
	return []byte(b.String()), nil
}
