// Package secret is what a VPN server must be told once per boot before it can
// serve, and the narrow interface by which it is told.
//
// The image of a server holds no secret. It boots, listens on one Unix socket
// and waits. Whoever validated it (the activator; in the lab, the lab) hands
// over one [Node] with [Handover]; [Receive] returns it. The secrets then live in
// a sealed memfd that the service manager keeps, so that a restarted agent has
// them again, and nowhere else: not in a file, a flag or the environment.
package secret

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"lethe/private"
)

// Node is everything secret (and the trust that must come with it) that one
// server needs.
type Node struct {
	Server string // id of the server in the directory; the common name of its certificates

	VPNCertificate private.Value[string] // PEM chain that OpenVPN and IKEv2 show to customers
	VPNKey         private.Value[string] // PEM key of VPNCertificate
	TLSCrypt       private.Value[string] // OpenVPN static key V1

	ControlURL     string                // https URL of the node API, without path
	ControlCA      string                // PEM certificates that sign the node API's certificate
	APICertificate private.Value[string] // PEM client certificate for the node API
	APIKey         private.Value[string] // PEM key of APICertificate

	Salt      private.Value[[32]byte] // key of the usage records' user hash
	Seal      private.Value[[32]byte] // key of the sealed files in bundles
	TrustRoot []byte                  // signed root metadata that bundles are verified against
}

// wire is the JSON form of a Node; it exists only between two ends of the
// handover and in the memfd.
type wire struct {
	Server         string `json:"server"`
	VPNCertificate string `json:"vpn_certificate"`
	VPNKey         string `json:"vpn_key"`
	TLSCrypt       string `json:"tls_crypt"`
	ControlURL     string `json:"control_url"`
	ControlCA      string `json:"control_ca"`
	APICertificate string `json:"api_certificate"`
	APIKey         string `json:"api_key"`
	Salt           []byte `json:"salt"`
	Seal           []byte `json:"seal"`
	TrustRoot      []byte `json:"trust_root"`
}

// MaxSize is the largest encoded Node in bytes.
const MaxSize = 1 << 18

// Encode returns the wire form of n. The caller owns the bytes and wipes them.
func (n *Node) Encode() ([]byte, error) {
	salt, seal := n.Salt.Reveal(), n.Seal.Reveal()
	return json.Marshal(wire{
		Server: n.Server, VPNCertificate: n.VPNCertificate.Reveal(), VPNKey: n.VPNKey.Reveal(),
		TLSCrypt: n.TLSCrypt.Reveal(), ControlURL: n.ControlURL, ControlCA: n.ControlCA,
		APICertificate: n.APICertificate.Reveal(), APIKey: n.APIKey.Reveal(),
		Salt: salt[:], Seal: seal[:], TrustRoot: n.TrustRoot,
	})
}

// Decode reads the wire form and checks that every part is there and fits
// together. Its errors name the part, never its content.
func Decode(b []byte) (*Node, error) {
	if len(b) > MaxSize {
		return nil, fmt.Errorf("secrets: more than %d bytes", MaxSize)
	}
	var w wire
	if err := json.Unmarshal(b, &w); err != nil {
		return nil, errors.New("secrets: not the JSON of a handover")
	}
	if w.Server == "" || len(w.TrustRoot) == 0 {
		return nil, errors.New("secrets: server or trust root is missing")
	}
	if len(w.Salt) != 32 || len(w.Seal) != 32 {
		return nil, errors.New("secrets: salt and seal must have 32 bytes")
	}
	if !strings.HasPrefix(w.ControlURL, "https://") {
		return nil, errors.New("secrets: the control URL must be https")
	}
	if !strings.Contains(w.TLSCrypt, "-----BEGIN OpenVPN Static key V1-----") {
		return nil, errors.New("secrets: tls-crypt key is not an OpenVPN static key")
	}
	if !x509.NewCertPool().AppendCertsFromPEM([]byte(w.ControlCA)) {
		return nil, errors.New("secrets: no certificate in the control CA")
	}
	for _, p := range []struct{ name, cert, key string }{
		{"VPN", w.VPNCertificate, w.VPNKey}, {"API", w.APICertificate, w.APIKey},
	} {
		pair, err := tls.X509KeyPair([]byte(p.cert), []byte(p.key))
		if err != nil {
			return nil, fmt.Errorf("secrets: %s certificate and key do not fit together", p.name)
		}
		if pair.Leaf.Subject.CommonName != w.Server {
			return nil, fmt.Errorf("secrets: %s certificate is not for the server named", p.name)
		}
	}
	return &Node{
		Server: w.Server, VPNCertificate: private.Of(w.VPNCertificate), VPNKey: private.Of(w.VPNKey),
		TLSCrypt: private.Of(w.TLSCrypt), ControlURL: w.ControlURL, ControlCA: w.ControlCA,
		APICertificate: private.Of(w.APICertificate), APIKey: private.Of(w.APIKey),
		Salt: private.Of([32]byte(w.Salt)), Seal: private.Of([32]byte(w.Seal)), TrustRoot: w.TrustRoot,
	}, nil
}
