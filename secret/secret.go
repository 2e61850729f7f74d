// Package secret is what a VPN server must be told once per boot before it can
// serve.
//
// The image of a server holds no secret. It boots and waits on one port (package activation).
// Whoever validated it (the activator; in the lab, the lab) hands over one [Node]. The secrets then live in
// a sealed memfd that the service manager keeps ([Keep], [Restore]), so that a restarted agent has
// them again, and nowhere else: not in a file, a flag or the environment.
package secret

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"net/url"
	"os"
	"strconv"
	"strings"

	"lethe/memfd"
	"lethe/private"
)

// Node is everything secret (and the trust that must come with it) that one
// server needs.
type Node struct {
	Server string // id of the server in the directory; the common name of its certificates

	VPNCertificate private.Value[string] // PEM chain that OpenVPN and IKEv2 show to customers
	VPNKey         private.Value[string] // PEM key of VPNCertificate
	TLSCrypt       private.Value[string] // OpenVPN static key V1

	ControlURL     string                // https URL of the node API, without path; its name is what the certificate is for
	Control        []netip.Addr          // where it is dialled, 1 to 8 addresses: a server asks no DNS for it
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
	Server         string       `json:"server"`
	VPNCertificate string       `json:"vpn_certificate"`
	VPNKey         string       `json:"vpn_key"`
	TLSCrypt       string       `json:"tls_crypt"`
	ControlURL     string       `json:"control_url"`
	Control        []netip.Addr `json:"control_addresses"`
	ControlCA      string       `json:"control_ca"`
	APICertificate string       `json:"api_certificate"`
	APIKey         string       `json:"api_key"`
	Salt           []byte       `json:"salt"`
	Seal           []byte       `json:"seal"`
	TrustRoot      []byte       `json:"trust_root"`
}

// MaxSize is the largest encoded Node in bytes.
const MaxSize = 1 << 18

// Encode returns the wire form of n. The caller owns the bytes and wipes them.
func (n *Node) Encode() ([]byte, error) {
	salt, seal := n.Salt.Reveal(), n.Seal.Reveal()
	return json.Marshal(wire{
		Server: n.Server, VPNCertificate: n.VPNCertificate.Reveal(), VPNKey: n.VPNKey.Reveal(),
		TLSCrypt: n.TLSCrypt.Reveal(), ControlURL: n.ControlURL, Control: n.Control, ControlCA: n.ControlCA,
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
	if _, err := controlPort(w.ControlURL); err != nil {
		return nil, err
	}
	if err := checkControl(w.Control); err != nil {
		return nil, err
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
		TLSCrypt: private.Of(w.TLSCrypt), ControlURL: w.ControlURL, Control: w.Control, ControlCA: w.ControlCA,
		APICertificate: private.Of(w.APICertificate), APIKey: private.Of(w.APIKey),
		Salt: private.Of([32]byte(w.Salt)), Seal: private.Of([32]byte(w.Seal)), TrustRoot: w.TrustRoot,
	}, nil
}

// controlPort returns the port of the control plane's URL.
func controlPort(control string) (uint16, error) {
	u, err := url.Parse(control)
	if err != nil || u.Scheme != "https" || u.Hostname() == "" || u.User != nil || u.Path != "" || u.RawQuery != "" || u.Fragment != "" {
		return 0, errors.New("secrets: the control URL must be https, with a name and without path")
	}
	if u.Port() == "" {
		return 443, nil
	}
	port, err := strconv.ParseUint(u.Port(), 10, 16)
	if err != nil || port == 0 {
		return 0, errors.New("secrets: the control URL has an impossible port")
	}
	return uint16(port), nil
}

// maxControl bounds the addresses of the control plane.
const maxControl = 8

func checkControl(list []netip.Addr) error {
	if len(list) == 0 || len(list) > maxControl {
		return fmt.Errorf("secrets: want 1 to %d addresses of the control plane", maxControl)
	}
	for _, a := range list {
		if !a.IsGlobalUnicast() || a.Is4In6() || a.Zone() != "" {
			return errors.New("secrets: an address of the control plane is not a unicast address")
		}
	}
	return nil
}

// ControlEndpoints returns where the node API is dialled: n must come from [Decode] or be as good.
func (n *Node) ControlEndpoints() ([]netip.AddrPort, error) {
	port, err := controlPort(n.ControlURL)
	if err != nil {
		return nil, err
	}
	var all []netip.AddrPort
	for _, a := range n.Control {
		all = append(all, netip.AddrPortFrom(a, port))
	}
	return all, nil
}

// Keep returns a sealed memfd with an encoded Node, for the service manager; see [Restore].
func Keep(encoded []byte) (*os.File, error) {
	return memfd.Sealed("lethe-secrets", func(w io.Writer) error { _, err := w.Write(encoded); return err })
}

// Restore returns the secrets in a memfd of [Keep]. The file stays the caller's.
func Restore(f *os.File) (*Node, error) {
	b := make([]byte, MaxSize+1)
	defer clear(b)
	n, err := f.ReadAt(b, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("secrets: restore: %w", err)
	}
	return Decode(b[:n])
}
