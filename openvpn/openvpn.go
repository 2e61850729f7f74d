// Package openvpn runs OpenVPN on a server: it renders the configuration, starts the processes,
// answers their management interfaces from [session.Core] and renders what a client needs.
//
// The actors:
//
//   - A [Server] has one [Instance] per process: with OpenVPN in user space one per transport and
//     core, with data channel offload in the kernel one per transport. [Config.Instances] names
//     their daemon index, port and device, so that the firewall can send customers there.
//   - For each instance a driver makes the tunnel device, starts the process (or takes over the
//     one that a former agent left running), connects to its management socket and answers.
//   - The management client (manage.go) speaks the protocol of management-notes.txt. What it
//     reads about a person goes straight into private values and is forgotten after the call.
//
// The processes run without privileges, read their configuration with every secret from standard
// input, log nothing ("verb 0") and outlive the agent. What they print all the same is counted and
// dropped. Leaving out files, scripts, plug-ins, status and persistence is the point of the
// configuration: see [Config.Render].
package openvpn

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"lethe/event"
	"lethe/private"
	"lethe/protocol"
	"lethe/session"
	"lethe/spec"
)

// Transport is one protocol that customers connect by.
type Transport struct {
	Protocol protocol.ID // protocol.OpenVPNUDP or protocol.OpenVPNTCP
	// Port is the unprivileged port of the transport's first process; the others follow it. The
	// firewall redirects the public port to them.
	Port uint16
	// Processes is how many processes share the load in user space; 0 means one per core.
	Processes int
}

// Config is what a [Server] needs to know. It is not changed while the server runs.
type Config struct {
	Binary     string // path of openvpn; default /usr/sbin/openvpn
	RuntimeDir string // directory of management sockets; made if absent, must be on a RAM disk
	UID, GID   uint32 // whom the processes run as; not 0

	FirstDaemon uint8 // index of the first process on this server, see session.Ref
	Transports  []Transport
	MaxClients  int // per process; default 4096

	Certificate private.Value[string] // PEM chain of the server
	Key         private.Value[string] // PEM key of Certificate
	TLSCrypt    private.Value[string] // OpenVPN static key V1

	Node spec.Node
	DNS  []netip.Addr // resolvers that customers are told to use, inside the tunnel

	// Detach says that ending Run leaves the processes and their tunnels alive, for an agent that
	// is about to be restarted.
	Detach bool
}

// Instance is one OpenVPN process of a server.
type Instance struct {
	Daemon   uint8 // index in session.Ref; names the tunnel networks, see session.SubnetsOf
	Protocol protocol.ID
	Port     uint16 // internal port it listens on, IPv4 and IPv6
	Device   string // name of its tunnel device
	Offload  bool   // the data channel is in the kernel
}

// Stats are counts over all processes since the server was made.
type Stats struct {
	Clients  int    // live clients
	Lines    uint64 // lines the processes printed, dropped
	Restarts uint64 // processes that ended without having been told
}

// Server runs the OpenVPN processes of one machine.
type Server struct{}

// New returns a server that has not started anything.
func New(cfg Config, core session.Core, log *event.Logger) (*Server, error) {
	return nil, errors.New("openvpn: not yet")
}

// Instances returns the processes of the server, in the order of their daemon index.
func (s *Server) Instances() []Instance { return nil }

// Run serves until ctx ends.
func (s *Server) Run(ctx context.Context) error { return ctx.Err() }

// Kill ends a client for good.
func (s *Server) Kill(ref session.Ref) error { return fmt.Errorf("openvpn: no daemon %d", ref.Daemon) }

// Stats returns the current counts.
func (s *Server) Stats() Stats { return Stats{} }
