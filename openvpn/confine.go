package openvpn

import (
	"lethe/daemon"
	"lethe/protocol"
)

// confine returns the sandbox of a process: its directory with the management socket, the device
// by which it opens its tunnel, and when its transport is TCP that port.
func confine(in Instance, dir string) *daemon.Confinement {
	c := &daemon.Confinement{Write: []string{dir}}
	if !in.Offload {
		c.Write = append(c.Write, nodePath(dir))
	}
	if in.Protocol == protocol.OpenVPNTCP {
		c.Bind = []uint16{in.Port}
	}
	return c
}
