// Package openvpn runs OpenVPN on a server: it renders the configuration, starts the processes,
// answers their management interfaces from [session.Core] and renders what a client needs.
//
// The actors:
//
//   - A [Server] has one [Instance] per process: with OpenVPN in user space one per transport and
//     core, with data channel offload in the kernel one per transport. An instance says on which
//     port and device it works, so that the firewall can send customers there.
//   - For each instance a driver (driver.go) makes the tunnel device, starts the process or takes
//     over the one that a former agent left running, and answers what it asks.
//   - The management client (manage.go, link.go) speaks the protocol of OpenVPN's
//     management-notes.txt. What it reads about a person goes straight into private values and is
//     forgotten after the call.
//
// The processes run without privileges, read their configuration with every secret in it from
// standard input, log nothing and outlive the agent. What they print all the same is counted and
// dropped. There are no status files, scripts, plug-ins, client directories or persistent pools,
// because each of them writes down who is connected.
//
// What survives: when the agent dies, the processes and their tunnels stay, logins wait; the next
// agent asks each process who is there and tells [session.Core.Resume]. When a process dies, its
// sessions end and it is started again. A key renegotiation that falls into the agent's absence
// is lost: OpenVPN does not repeat its question, and that client is disconnected after a minute.
package openvpn

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"sync"

	"lethe/event"
	"lethe/private"
	"lethe/protocol"
	"lethe/session"
	"lethe/spec"
)

// Transport is one protocol that customers connect by.
type Transport struct {
	Protocol protocol.ID // protocol.OpenVPNUDP or protocol.OpenVPNTCP
	// Alone is the port of the transport's process when one is enough: the one that customers
	// know, so that nothing on the way has to rewrite packets or keep their addresses.
	Alone uint16
	// Port is the unprivileged port of the first of several processes; the others follow it. The
	// firewall redirects the public port to them.
	Port uint16
	// Processes is how many processes share the load in user space; 0 means one per core.
	Processes int
}

// Config is what a [Server] needs to know. It is not changed while the server exists.
type Config struct {
	Binary     string // path of openvpn; default /usr/sbin/openvpn
	RuntimeDir string // directory of the management sockets; made if absent, on a RAM disk
	UID, GID   uint32 // whom the processes run as; not 0

	FirstDaemon uint8 // index of the first process on this server, see session.Ref
	Transports  []Transport
	MaxClients  int // per process; default 4096

	Certificate private.Value[string] // PEM chain of the server
	Key         private.Value[string] // PEM key of Certificate
	TLSCrypt    private.Value[string] // OpenVPN static key V1

	// Node returns the specification in force. It is asked whenever a process is started: it can
	// change, and an agent that takes over processes does not have it yet.
	Node func() spec.Node
	// DNS are the resolvers that customers are told to use. Empty means the server's own tunnel
	// addresses.
	DNS []netip.Addr

	// Detach says that ending Run leaves the processes and their tunnels alive, for an agent that
	// is about to be restarted.
	Detach bool
}

// Instance is one OpenVPN process of a server.
type Instance struct {
	Daemon   uint8 // index in session.Ref; names the tunnel networks, see session.SubnetsOf
	Protocol protocol.ID
	Port     uint16 // port it listens on, IPv4 and IPv6
	Device   string // name of its tunnel device
	Offload  bool   // the data channel is in the kernel
}

// Server runs the OpenVPN processes of one machine. Its methods are safe for concurrent use; Run
// is called once.
type Server struct {
	cfg      Config
	core     session.Core
	log      *event.Logger
	features features
	drivers  []*driver
}

// New returns a server that has not started anything yet. It runs openvpn once to ask what it can
// do. It fails when the configuration is not one that could work.
func New(cfg Config, core session.Core, log *event.Logger) (*Server, error) {
	if cfg.Binary == "" {
		cfg.Binary = "/usr/sbin/openvpn"
	}
	if cfg.MaxClients == 0 {
		cfg.MaxClients = 4096
	}
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	f, err := probe(cfg.Binary)
	if err != nil {
		return nil, err
	}
	s := &Server{cfg: cfg, core: core, log: log, features: f}
	list, err := cfg.instances(f.offload, runtime.NumCPU())
	if err != nil {
		return nil, err
	}
	for _, in := range list {
		s.drivers = append(s.drivers, newDriver(s, in))
	}
	return s, nil
}

func (c Config) validate() error {
	switch {
	case c.RuntimeDir == "" || c.RuntimeDir[0] != '/' || len(c.RuntimeDir) > 80:
		return errors.New("openvpn: want an absolute runtime directory of at most 80 bytes")
	case c.UID == 0 || c.GID == 0:
		return errors.New("openvpn: the processes must not run as root")
	case c.MaxClients < 1 || c.MaxClients > 65000:
		return fmt.Errorf("openvpn: %d clients per process, want 1 to 65000", c.MaxClients)
	case len(c.Transports) == 0:
		return errors.New("openvpn: no transport")
	case c.Node == nil:
		return errors.New("openvpn: no specification")
	}
	for _, d := range c.DNS {
		if !d.IsValid() || d.Zone() != "" {
			return errors.New("openvpn: a resolver is not an address")
		}
	}
	return errors.Join(c.Node().Validate(),
		inlineable("certificate", c.Certificate.Reveal()), inlineable("key", c.Key.Reveal()),
		inlineable("tls-crypt key", c.TLSCrypt.Reveal()))
}

// instances spreads the transports over daemon indexes and ports.
func (c Config) instances(offload bool, cores int) ([]Instance, error) {
	var list []Instance
	taken := map[string]bool{}
	for _, t := range c.Transports {
		if t.Protocol != protocol.OpenVPNUDP && t.Protocol != protocol.OpenVPNTCP {
			return nil, fmt.Errorf("openvpn: transport %s, want openvpn-udp or openvpn-tcp", t.Protocol)
		}
		n := t.Processes
		if n == 0 {
			n = cores
		}
		if offload {
			n = 1
		}
		first := t.Port
		if n == 1 {
			first = t.Alone
		}
		if n < 0 || first == 0 || t.Port < 1024 || int(t.Port)+n > 1<<16 || int(c.FirstDaemon)+len(list)+n > 128 {
			return nil, fmt.Errorf("openvpn: %s: %d processes from port %d do not fit", t.Protocol, n, t.Port)
		}
		for i := range n {
			d := c.FirstDaemon + uint8(len(list))
			in := Instance{Daemon: d, Protocol: t.Protocol, Port: first + uint16(i), Device: fmt.Sprintf("lethe%d", d), Offload: offload}
			key := fmt.Sprint(in.Protocol, in.Port)
			if taken[key] {
				return nil, fmt.Errorf("openvpn: %s port %d stands twice", in.Protocol, in.Port)
			}
			taken[key] = true
			list = append(list, in)
		}
	}
	return list, nil
}

// Instances returns the processes of the server, in the order of their daemon index.
func (s *Server) Instances() []Instance {
	var list []Instance
	for _, d := range s.drivers {
		list = append(list, d.in)
	}
	return list
}

// Run serves until ctx ends. With Config.Detach it then leaves the processes running and the
// sessions open; otherwise it stops the processes, which tell their clients (UDP: a message that
// sends them to another server; it takes two seconds), and ends every session.
//
// A process that cannot be started is tried again with growing pauses and reported as trouble;
// Run itself fails only when the runtime directory cannot be made or a process cannot be stopped.
func (s *Server) Run(ctx context.Context) error {
	// The processes' users pass through it, whatever the agent's umask.
	if err := errors.Join(os.MkdirAll(s.cfg.RuntimeDir, 0o711), os.Chmod(s.cfg.RuntimeDir, 0o711)); err != nil {
		return fmt.Errorf("openvpn: runtime directory: %w", err)
	}
	errs := make([]error, len(s.drivers))
	var wg sync.WaitGroup
	for i, d := range s.drivers {
		wg.Go(func() { errs[i] = d.run(ctx) })
	}
	s.log.Log(event.Started{Part: event.OpenVPN})
	wg.Wait()
	s.log.Log(event.Stopped{Part: event.OpenVPN})
	return errors.Join(errs...)
}

// Kill ends a client for good: it is told not to come back, and its session ends as soon as the
// process has confirmed. Kill does not wait for that and does not call the core before it returns.
// An unknown client is ignored.
func (s *Server) Kill(ref session.Ref) {
	for _, d := range s.drivers {
		if d.in.Daemon == ref.Daemon {
			d.kill(ref.Client)
		}
	}
}
