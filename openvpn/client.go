package openvpn

import (
	"fmt"

	"lethe/location"
	"lethe/profile"
	"lethe/protocol"
)

// ClientConfig returns the configuration by which OpenVPN 2.5 or later connects to an endpoint of a server:
// the exported profile (package profile), and then further directives, one line each, that the caller
// answers for. It holds nothing about the customer: the client asks for user name and password.
//
// It fails when the server or the endpoint is not one that OpenVPN can connect to.
func ClientConfig(server location.Server, endpoint location.Endpoint, extra ...string) (string, error) {
	name, ok := map[protocol.ID]string{protocol.OpenVPNUDP: "ovpn", protocol.OpenVPNTCP: "ovpn-tcp"}[endpoint.Protocol]
	if !ok {
		return "", fmt.Errorf("server %s: %s is not spoken by OpenVPN", server.ID, endpoint.Protocol)
	}
	format, _ := profile.Find(name)
	server.Endpoints = []location.Endpoint{endpoint}
	file, err := format.Render(profile.Request{Server: server})
	if err != nil {
		return "", err
	}
	t := config{}
	t.Write(file.Text)
	for _, l := range extra {
		t.line("%s", l)
	}
	return t.String(), nil
}
