// Package ikev2 runs strongSwan on a server: it renders charon's configuration, starts it, loads what it
// must know over its control socket and tells [session.Core] who comes and goes.
//
// The actors:
//
//   - A [Server] has one charon (charon-systemd, which needs no systemd). Unlike OpenVPN it has threads,
//     and an IKE SA that roams (MOBIKE, RFC 4555) must find the same process again.
//   - Charon asks our RADIUS server on loopback whether a customer may come in (package radius, EAP-MSCHAPv2).
//     A Server is that one's core: [Server.Admit] is told the number of the IKE SA, which charon's eap-radius
//     plugin sends as NAS-Port, and the answer carries the tunnel addresses of the grant.
//   - The driver (driver.go) keeps the process running, or takes over the one that a former agent left, and
//     follows its events: Child SA up, IKE SA rekeyed, IKE SA down.
//   - Customers' own systems are told how to connect by package profile; the app's charon by client.go.
//
// A session's life hangs on charon's events over VICI, not on RADIUS accounting, although that has a start
// and a stop too. Both come from the same hooks inside charon, so they agree about rekeying, MOBIKE and dead
// peers. But accounting is fire and forget towards an agent that may be restarting, says user name and
// outer address once more each time, and holds one of the plugin's sockets; events can be checked against
// the list of IKE SAs at any moment, and are, on each new connection. Bytes are counted by the kernel per tunnel
// address (package firewall), which does not change when keys, addresses or agents do.
//
// Charon runs without privileges but for CAP_NET_ADMIN and, until it has its ports, CAP_NET_BIND_SERVICE,
// logs nothing (every logger at −1; the silence is tested) and outlives the agent. Its configuration, with
// the RADIUS secret in it, is a memfd: strongSwan reads STRONGSWAN_CONF from a regular file only, which a
// pipe on standard input is not, and /proc/self/fd/3 of a memfd is. As soon as charon answers, the memfd is
// overwritten. Certificate and private key go in over the control socket. Only the plugins that are needed
// are loaded; none runs scripts, touches resolv.conf, keeps leases or fetches anything.
//
// What survives: when the agent dies, charon and its tunnels stay, logins fail; the next agent asks who is
// there and tells [session.Core.Resume]. When charon dies, its sessions end and it is started again.
//
// The data plane is the kernel's ESP with an XFRM interface where the kernel has both, else charon itself
// (kernel-libipsec) with a TUN device. Either way packets are ESP in UDP (RFC 3948), customers' packets come
// out of one interface ([Instance]), and its subnets are [session.SubnetsOf].
package ikev2

import (
	"context"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"

	"lethe/event"
	"lethe/private"
	"lethe/session"
	"lethe/spec"
)

// The ports of IKE (RFC 7296, sections 2 and 2.23), on which charon listens itself. Customers cannot be told
// others, and charon cannot be hidden behind a redirection: a packet from another port than 500 to another
// port than 500 it takes for ESP, so customers whose NAT gives them another source port would get no answer.
const (
	Port    = 500
	PortNAT = 4500
)

// Config is what a [Server] needs to know. It is not changed while the server exists.
type Config struct {
	Binary     string // path of charon-systemd; default /usr/sbin/charon-systemd
	RuntimeDir string // directory of the control socket; made if absent, on a RAM disk
	UID, GID   uint32 // whom the process runs as; not 0

	// Uplinks are the interfaces to the internet. Customers are told the other addresses of these, where
	// they find the server too (MOBIKE, RFC 4555, section 3.6), and those of no other interface.
	Uplinks []string

	Daemon     uint8 // index of the process on this server, see session.Ref
	MaxClients int   // default 4096

	// Certificate is the server's PEM chain, its own first. The first DNS name in it is how customers
	// know the server (RFC 7296, section 3.5, ID_FQDN).
	Certificate private.Value[string]
	Key         private.Value[string] // PEM key of Certificate, ECDSA or RSA

	// RADIUS is where the RADIUS server listens for Access-Requests, on loopback: the same for every
	// agent that takes over charon. The secret that it shares with charon is [Server.Secret].
	RADIUS netip.AddrPort

	// Node returns the specification in force. It is asked whenever the process is started.
	Node func() spec.Node

	// Detach says that ending Run leaves the process and its tunnels alive, for an agent that is about
	// to be restarted.
	Detach bool
}

// Instance is the process of a server, as the firewall must know it.
type Instance struct {
	Daemon  uint8  // index in session.Ref; names the tunnel networks, see session.SubnetsOf
	Device  string // name of the interface that customers' packets come out of
	Offload bool   // ESP is in the kernel
}

// Server runs charon on one machine. Its methods are safe for concurrent use; Run is called once.
type Server struct {
	cfg   Config
	ident identity
	in    Instance
	core  Core
	log   *event.Logger
	d     *driver
}

// Core is the part of the server's core that a [Server] calls; [session.Registry] has it.
type Core interface {
	session.Core
	// Check decides about a login and opens nothing.
	Check(session.Login) error
}

// New returns a server that has not started anything yet. It fails when the configuration is not one that
// could work.
func New(cfg Config, core Core, log *event.Logger) (*Server, error) {
	if cfg.Binary == "" {
		cfg.Binary = "/usr/sbin/charon-systemd"
	}
	if cfg.MaxClients == 0 {
		cfg.MaxClients = 4096
	}
	ident, err := cfg.validate()
	if err != nil {
		return nil, err
	}
	s := &Server{cfg: cfg, ident: ident, core: core, log: log}
	s.in = Instance{Daemon: cfg.Daemon, Device: libipsecDevice, Offload: Offload()}
	if s.in.Offload {
		s.in.Device = fmt.Sprintf("lethe%d", cfg.Daemon)
	}
	s.d = newDriver(s)
	return s, nil
}

func (c Config) validate() (identity, error) {
	switch {
	case c.RuntimeDir == "" || c.RuntimeDir[0] != '/' || len(c.RuntimeDir) > 80 || !plain(c.RuntimeDir):
		return identity{}, errors.New("ikev2: want an absolute runtime directory of at most 80 plain bytes")
	case c.UID == 0 || c.GID == 0:
		return identity{}, errors.New("ikev2: charon must not run as root")
	case len(c.Uplinks) == 0 || slices.ContainsFunc(c.Uplinks, func(u string) bool { return u == "" || len(u) > 15 || !plain(u) }):
		return identity{}, errors.New("ikev2: want at least one uplink, by a plain name of an interface")
	case c.Daemon > 127:
		return identity{}, fmt.Errorf("ikev2: daemon index %d, want at most 127", c.Daemon)
	case c.MaxClients < 1 || c.MaxClients > 65000:
		return identity{}, fmt.Errorf("ikev2: %d clients, want 1 to 65000", c.MaxClients)
	case !c.RADIUS.Addr().IsLoopback() || c.RADIUS.Port() == 0:
		return identity{}, errors.New("ikev2: the RADIUS server must be on loopback")
	case c.Node == nil:
		return identity{}, errors.New("ikev2: no specification")
	}
	if err := c.Node().Validate(); err != nil {
		return identity{}, err
	}
	return identify(c.Certificate.Reveal(), c.Key)
}

// Instance returns what the firewall must know.
func (s *Server) Instance() Instance { return s.in }

// Secret returns the secret between charon and the RADIUS server: 64 hexadecimal digits. It follows from the
// private key, so that an agent that takes over charon knows it without anybody having kept it.
func (s *Server) Secret() private.Value[[]byte] {
	k, err := hkdf.Key(sha256.New, []byte(s.cfg.Key.Reveal()), nil, "lethe ikev2 radius secret", 32)
	if err != nil {
		panic("ikev2: internal error: " + err.Error()) // the length is right
	}
	return private.Of([]byte(hex.EncodeToString(k)))
}

// Run serves until ctx ends. With Config.Detach it then leaves charon running and the sessions open;
// otherwise it stops charon, which tells its clients, and ends every session.
//
// A process that cannot be started is tried again with growing pauses and reported as trouble; Run itself
// fails only when the runtime directory cannot be made or the process cannot be stopped.
func (s *Server) Run(ctx context.Context) error {
	// charon's user passes through it, whatever the agent's umask.
	if err := errors.Join(os.MkdirAll(s.cfg.RuntimeDir, 0o711), os.Chmod(s.cfg.RuntimeDir, 0o711)); err != nil {
		return fmt.Errorf("ikev2: runtime directory: %w", err)
	}
	s.log.Log(event.Started{Part: event.IKEv2})
	err := s.d.run(ctx)
	s.log.Log(event.Stopped{Part: event.IKEv2})
	return err
}

// The four methods that follow are for the RADIUS server (Core of package radius).

// Check decides about a login and opens nothing.
func (s *Server) Check(login session.Login) error { return s.core.Check(login) }

// Admit opens the session of an IKE SA that has proven who it is. The client in ref is the number of the IKE
// SA. It fails like [session.Core.Admit], and with fault.Unavailable while there is no charon.
func (s *Server) Admit(ref session.Ref, login session.Login) (session.Grant, error) {
	return s.d.admit(ref.Client, login)
}

// Established does nothing: an IKE SA is up when charon says so in an event.
func (s *Server) Established(session.Ref) {}

// End ends the session of an IKE SA that did not come up, because its customer went away after the RADIUS
// server had let it in. One that is up lives on.
func (s *Server) End(ref session.Ref) { s.d.abandon(ref.Client) }

// Kill ends a client for good: charon tells it, and its session ends as soon as charon has confirmed. Kill
// does not wait for that and does not call the core before it returns. An unknown client is ignored.
func (s *Server) Kill(ref session.Ref) {
	if ref.Daemon == s.cfg.Daemon {
		s.d.kill(ref.Client)
	}
}
