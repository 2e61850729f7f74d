// Package profile renders files by which systems' own VPN clients connect to a server.
//
// There is one table of formats ([Formats]). The app (`lethe config export`) and the API (GET
// /v1/locations/{code}/profiles/{format}) render from it and give the same bytes for the same server.
// Rendering is pure: it takes what the directory says of a server and reads no file, clock or chance.
//
// A profile holds no password. It holds the user name only where the client would not ask for it
// ([Format.Named]). Nothing that a profile is made of is trusted: it comes from the service, and a profile
// is read by programs that run as root. So server, CA and key are taken apart and written anew, and what
// has no plain form is refused rather than quoted.
//
//   - openvpn.go: OpenVPN
//   - apple.go: configuration profiles of iOS, iPadOS and macOS
//   - ikev2.go: strongSwan's app, NetworkManager, strongSwan itself; [IKE] and [ESP], what customers propose
//   - windows.go: a PowerShell script
package profile

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"strings"

	"lethe/location"
	"lethe/private"
	"lethe/protocol"
)

// Format is a kind of file.
type Format struct {
	Name      string      // as people type it and as it stands in the API's path
	For       string      // for whom, a phrase
	Extension string      // of the file's name, with its dot
	MediaType string      // RFC 2045
	Protocol  protocol.ID // what it connects by
	Beside    bool        // the client takes the server's CA from a file of its own, see [Request.CA]
	Named     bool        // it holds the user name

	render func(target) ([]byte, error)
}

// Formats returns every format, OpenVPN's first.
func Formats() []Format {
	return []Format{
		{"ovpn", "OpenVPN", ".ovpn", "application/x-openvpn-profile", protocol.OpenVPNUDP, false, false, openVPN},
		{"ovpn-tcp", "OpenVPN where UDP does not get through", "-tcp.ovpn", "application/x-openvpn-profile", protocol.OpenVPNTCP, false, false, openVPN},
		{"mobileconfig", "iOS, iPadOS and macOS", ".mobileconfig", "application/x-apple-aspen-config", protocol.IKEv2, false, false, apple},
		{"sswan", "strongSwan's app on Android", ".sswan", "application/vnd.strongswan.profile", protocol.IKEv2, false, false, strongSwan},
		{"windows", "Windows 10 and 11 (a PowerShell script)", ".ps1", plainText, protocol.IKEv2, false, false, windows},
		{"networkmanager", "NetworkManager with its strongSwan plug-in", ".nmconnection", plainText, protocol.IKEv2, true, true, networkManager},
		{"swanctl", "strongSwan on Linux", ".conf", plainText, protocol.IKEv2, true, true, swanctl},
	}
}

const plainText = "text/plain; charset=utf-8"

// Names returns the names of all formats, in the order of [Formats].
func Names() (names []string) {
	for _, f := range Formats() {
		names = append(names, f.Name)
	}
	return names
}

// Find returns the format of that name.
func Find(name string) (Format, bool) {
	for _, f := range Formats() {
		if f.Name == name {
			return f, true
		}
	}
	return Format{}, false
}

// Fits reports whether a server takes new customers and speaks what f connects by.
func (f Format) Fits(s location.Server) bool {
	_, ok := f.endpoint(s)
	return ok && s.Enabled
}

func (f Format) endpoint(s location.Server) (location.Endpoint, bool) {
	for _, e := range s.Endpoints {
		if e.Protocol == f.Protocol {
			return e, true
		}
	}
	return location.Endpoint{}, false
}

// Fitting returns the names of the formats that one of servers fits, in the order of [Formats].
func Fitting(servers []location.Server) (names []string) {
	for _, f := range Formats() {
		for _, s := range servers {
			if f.Fits(s) {
				names = append(names, f.Name)
				break
			}
		}
	}
	return names
}

// Request is what a profile is made for.
type Request struct {
	Server location.Server
	// Username is wanted by a format that is [Format.Named]: 1 to 64 letters, digits and "._-".
	Username private.Value[string]
	// CA is the path of the file that will hold the server's CA, absolute, for a format that has it
	// beside. When it is empty the profile names the format's usual place, and the CA stands in comments
	// at its head, so that one file is everything.
	CA string
}

// File is a rendered profile.
type File struct {
	Name string // of the file: the server's id and the format's extension
	Text []byte
	CA   []byte // certificates in PEM form, for the file at [Request.CA]
}

// ErrPath says that [Request.CA] is not absolute, or has other characters than letters, digits and "._-/".
var ErrPath = errors.New("want an absolute path of plain characters for the CA's file")

// Render makes a profile. It fails when the server does not speak what f connects by, or when something
// of the request has no place in a profile; with [ErrPath] when that is the CA's path.
func (f Format) Render(r Request) (File, error) {
	t, err := f.aim(r)
	if err != nil {
		return File{}, err
	}
	text, err := f.render(t)
	if err != nil {
		return File{}, err
	}
	return File{t.id + f.Extension, text, []byte(t.pem)}, nil
}

// target is a request in parts that can be written as they are.
type target struct {
	id       string
	addrs    []netip.Addr // the first is the one to connect to where a client takes only one
	endpoint location.Endpoint
	ca       []byte // DER of the certificate that signs the server's
	pem      string // all of the CA's certificates
	tlsCrypt string // only for OpenVPN
	file     string // path of the CA, for formats that have it beside; may be empty
	username string // only for formats that hold it
}

var (
	// staticKey is what `openvpn --genkey secret` writes: 2048 bits in 16 lines.
	staticKey = regexp.MustCompile(`^(?:#[^\n]*\n|\s)*(-----BEGIN OpenVPN Static key V1-----\n(?:[0-9a-fA-F]{32}\n){16}-----END OpenVPN Static key V1-----)\s*$`)
	userForm  = regexp.MustCompile(`^[A-Za-z0-9._-]{1,64}$`)
	pathForm  = regexp.MustCompile(`^/[A-Za-z0-9._/-]{1,250}$`)
)

func (f Format) aim(r Request) (target, error) {
	s := r.Server
	if err := s.Validate(); err != nil {
		return target{}, err
	}
	t := target{id: s.ID, addrs: s.Addresses}
	var ok bool
	if t.endpoint, ok = f.endpoint(s); !ok {
		return target{}, fmt.Errorf("server %s does not speak %s", s.ID, f.Protocol)
	}
	var text strings.Builder
	for block, rest := pem.Decode([]byte(s.CA)); block != nil; block, rest = pem.Decode(rest) {
		if _, err := x509.ParseCertificate(block.Bytes); err != nil || block.Type != "CERTIFICATE" {
			return target{}, fmt.Errorf("server %s: something in the CA is no certificate", s.ID)
		}
		if t.ca == nil {
			t.ca = block.Bytes
		}
		text.Write(pem.EncodeToMemory(&pem.Block{Type: block.Type, Bytes: block.Bytes}))
	}
	if t.pem = text.String(); t.ca == nil {
		return target{}, fmt.Errorf("server %s: the CA is not in PEM form", s.ID)
	}
	if f.Protocol != protocol.IKEv2 {
		key := staticKey.FindStringSubmatch(strings.ReplaceAll(s.TLSCrypt, "\r", ""))
		if key == nil {
			return target{}, fmt.Errorf("server %s: the tls-crypt key is not an OpenVPN static key", s.ID)
		}
		t.tlsCrypt = key[1]
	}
	if f.Beside && r.CA != "" {
		if t.file = r.CA; !pathForm.MatchString(t.file) {
			return target{}, ErrPath
		}
	}
	if f.Named {
		if t.username = r.Username.Reveal(); !userForm.MatchString(t.username) {
			return target{}, errors.New("want a user name of plain characters")
		}
	}
	return t, nil
}

// name is what a person sees in a list of connections.
func (t target) name() string { return "Lethe " + t.id }

// uuid returns an identifier that is always the same for a server and a use, so that importing a profile
// again replaces it (RFC 9562, version 8).
func (t target) uuid(use string) string {
	h := sha256.Sum256([]byte("lethe profile\x00" + use + "\x00" + t.id))
	h[6], h[8] = h[6]&0x0f|0x80, h[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", h[:4], h[4:6], h[6:8], h[8:10], h[10:16])
}

// beside returns the path of the CA's file, and what to write at the head of a profile when nobody else
// writes that file: the CA as comments, and what to do with it.
func (t target) beside(usual string) (path, head string) {
	if t.file != "" {
		return t.file, ""
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "# First write the server's CA, as root:  sed -n 's/^#: //p' THIS-FILE > %s\n", usual)
	for line := range strings.Lines(t.pem) {
		b.WriteString("#: " + line)
	}
	b.WriteString("\n")
	return usual, b.String()
}
