package client

import (
	"path/filepath"
	"slices"
	"strings"

	"lethe/fault"
	"lethe/ikev2"
	"lethe/location"
	"lethe/openvpn"
	"lethe/protocol"
)

// format is a kind of file by which a system's own client connects.
type format struct {
	name   string
	what   string // for whom
	beside bool   // the server's CA stands in a file beside it
	named  bool   // it holds the user name
	render func(s location.Server, ca, username string) (string, error)
}

// formats are the kinds of profile of `lethe config export`. None holds a password.
var formats = []format{
	{name: "ovpn", what: "OpenVPN"}, // rendered by exportOpenVPN: it has a transport
	{name: "mobileconfig", what: "iOS, iPadOS and macOS", render: func(s location.Server, _, _ string) (string, error) {
		b, err := ikev2.Apple(s, true)
		return string(b), err
	}},
	{name: "sswan", what: "strongSwan's app on Android", render: func(s location.Server, _, _ string) (string, error) {
		b, err := ikev2.StrongSwan(s)
		return string(b) + "\n", err
	}},
	{name: "windows", what: "a PowerShell script for Windows", render: func(s location.Server, _, _ string) (string, error) { return ikev2.Windows(s) }},
	{name: "networkmanager", what: "NetworkManager with its strongSwan plug-in", beside: true,
		render: func(s location.Server, ca, _ string) (string, error) { return ikev2.NetworkManager(s, ca) }},
	{name: "swanctl", what: "strongSwan on Linux", beside: true, named: true,
		render: func(s location.Server, ca, username string) (string, error) {
			return ikev2.Swanctl(s, filepath.Base(ca), username)
		}},
}

func formatNames() (names []string) {
	for _, f := range formats {
		names = append(names, f.name)
	}
	return names
}

// formatList is a phrase: every format of IKEv2 and whom it is for.
func formatList() string {
	var all []string
	for _, f := range formats[1:] {
		all = append(all, f.what+" ("+f.name+")")
	}
	return strings.Join(all[:len(all)-1], ", ") + " and " + all[len(all)-1]
}

func formatOf(name string) (format, error) {
	if i := slices.Index(formatNames(), name); i >= 0 {
		return formats[i], nil
	}
	return format{}, usage("no format "+printable(name), strings.Join(formatNames(), ", "))
}

// rendered is a file and, for those that need it, the CA that must stand beside it.
type rendered struct {
	server    location.Server
	transport string
	text      string
	ca        string // path; empty when the CA is in the text
}

// exportOpenVPN renders the file of the server that connecting would try first.
func exportOpenVPN(t *Target) (rendered, error) {
	r := routesTo(t)[0][0]
	text, err := openvpn.ClientConfig(r.server, r.endpoint)
	return rendered{server: r.server, transport: r.proto, text: text}, senseless(err)
}

// exportIKEv2 renders the file of the first server that speaks IKEv2. file is where it will stand.
func exportIKEv2(t *Target, f format, file string) (rendered, error) {
	for _, s := range t.Servers {
		if !slices.ContainsFunc(s.Endpoints, func(e location.Endpoint) bool { return e.Protocol == protocol.IKEv2 }) {
			continue
		}
		p := rendered{server: s, transport: "udp"}
		if f.beside {
			path, err := filepath.Abs(file)
			if err != nil {
				return p, fault.Wrap(fault.Internal, "the file's place is unknown", err)
			}
			p.ca = filepath.Join(filepath.Dir(path), s.ID+".pem")
		}
		var err error
		p.text, err = f.render(s, p.ca, t.Credential.Username.Reveal())
		return p, senseless(err)
	}
	return rendered{}, fault.New(fault.NotFound, "no server of "+t.Location.Code+" speaks IKEv2").WithHint("--format ovpn")
}

func senseless(err error) error {
	if err == nil {
		return nil
	}
	return fault.Wrap(fault.Untrusted, "the service's description of the server makes no sense", err)
}
