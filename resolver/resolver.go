// Package resolver runs the DNS resolver of a VPN server: unbound, told to
// remember as little as a resolver can and to say nothing.
//
// A [Server] renders the configuration, hands it to unbound through a pipe and
// keeps unbound running. unbound recurses by itself, so no third party sees
// customers' names; authoritative servers see the server's address and, by QNAME
// minimisation (RFC 9156), no more of a name than they need, and never a client
// subnet (RFC 7871). Its cache is shared by all customers of the server and holds
// nothing for longer than [CacheTTL], so that whether a name is in it says little
// about any one of them. Logs, statistics, the control socket and every file that
// unbound would write are off, and what it prints all the same is counted and
// dropped by package daemon.
//
// unbound outlives an agent that is killed. The next agent adopts it, if it still
// has the right configuration, by the process identity and the configuration's
// digest in the runtime directory.
package resolver

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"lethe/daemon"
	"lethe/event"
	"lethe/fault"
)

// CacheTTL is the longest time that an answer stays in memory.
const CacheTTL = 60 * time.Second

// firstPort and lastPort bound the source ports of queries. No listener of a server
// is among them.
const firstPort, lastPort = 32768, 60999

// Config is what a resolver depends on.
type Config struct {
	RuntimeDir string         // directory on a RAM disk for the identity of the process; made if missing
	UID, GID   uint32         // user of unbound; the firewall lets its queries out
	Addresses  []netip.Addr   // addresses to answer on; those that the machine does not have are added to "lo"
	Clients    []netip.Prefix // networks that may ask
	// RootHints is a file with the root servers in zone file form, readable for UID.
	// Empty means those built into unbound, with the root's trust anchors.
	RootHints string
	// TrustAnchors are DS or DNSKEY records in zone file form, for a root of one's own.
	// With RootHints and without anchors, answers are not validated.
	TrustAnchors []string
	Threads      int    // default 1
	Binary       string // default /usr/sbin/unbound
}

// Server is a resolver. Its methods are safe for concurrent use.
type Server struct {
	cfg  Config
	text string
	log  *event.Logger
}

// rootAnchors are the root zone's key signing keys of 2017 and 2024
// (https://data.iana.org/root-anchors/root-anchors.xml).
var rootAnchors = []string{
	". IN DS 20326 8 2 E06D44B80B8F1D39A95C0B0D7C65D08458E880409BBC683457104237C7F8EC8D",
	". IN DS 38696 8 2 683D2D0ACB8C9B712A1948B27F741219298D0A450D612C483AF444A4C0FB2B16",
}

// New checks cfg and returns a server that does not run yet.
func New(cfg Config, log *event.Logger) (*Server, error) {
	if len(cfg.Addresses) == 0 || len(cfg.Clients) == 0 {
		return nil, errors.New("resolver: want at least one address and one network of clients")
	}
	for _, a := range cfg.Addresses {
		if !a.IsValid() || a.Is4In6() || a.Zone() != "" || a.IsUnspecified() || a.IsMulticast() {
			return nil, errors.New("resolver: want plain unicast addresses to answer on")
		}
	}
	for _, p := range cfg.Clients {
		if !p.IsValid() || p.Bits() == 0 {
			return nil, errors.New("resolver: networks of clients: want prefixes that are not everybody")
		}
	}
	if cfg.UID == 0 || cfg.RuntimeDir == "" {
		return nil, errors.New("resolver: want a user other than root and a runtime directory")
	}
	for _, s := range append([]string{cfg.RootHints}, cfg.TrustAnchors...) {
		if strings.ContainsAny(s, "\"\n\r\\") {
			return nil, errors.New("resolver: root hints or trust anchor: a quote, backslash or line break in the text")
		}
	}
	if cfg.RootHints == "" && len(cfg.TrustAnchors) == 0 {
		cfg.TrustAnchors = rootAnchors
	}
	if cfg.Binary == "" {
		cfg.Binary = "/usr/sbin/unbound"
	}
	cfg.Threads = max(cfg.Threads, 1)
	return &Server{cfg: cfg, text: cfg.render(), log: log}, nil
}

// Run keeps unbound running until ctx ends and then stops it. What goes wrong on
// the way becomes events; the error is one that prevents the start, or that of
// stopping.
func (s *Server) Run(ctx context.Context) error {
	if err := os.MkdirAll(s.cfg.RuntimeDir, 0o700); err != nil {
		return fmt.Errorf("resolver: %w", err)
	}
	if err := s.addresses(); err != nil {
		return fault.Wrap(fault.Internal, "resolver: add the addresses to answer on", err)
	}
	var former *daemon.Process
	p := daemon.Keep(ctx, s.adopt(ctx), s.start, func(p *daemon.Process, starts uint64) {
		if former != nil {
			s.ended(former)
			s.log.Log(event.Restarted{Part: event.Resolver, Count: starts})
		}
		former = p
	})
	var err error
	if p != nil {
		err = p.Stop(context.WithoutCancel(ctx), 2*time.Second)
	}
	if former != nil { // p, or one that has ended just now
		s.ended(former)
		err = errors.Join(err, os.Remove(s.identityFile()))
	}
	return err
}

// expected is how many lines unbound prints at verbosity 0: one when it has started, one when it ends.
const expected = 2

// ended reports what a process printed beside that.
func (s *Server) ended(p *daemon.Process) {
	if n := p.Lines(); n > expected {
		s.log.Log(event.Mumbled{Part: event.Resolver, Lines: n - expected})
	}
}

func (s *Server) identityFile() string { return filepath.Join(s.cfg.RuntimeDir, "unbound") }

// digest tells a process with this configuration from one with another.
func (s *Server) digest() string { return fmt.Sprintf("%x", sha256.Sum256([]byte(s.text))) }

// adopt returns the process that an earlier agent left, if it has the right
// configuration; otherwise it ends that process. A file that does not name a
// process of ours is of no use and no harm.
func (s *Server) adopt(ctx context.Context) *daemon.Process {
	b, err := os.ReadFile(s.identityFile())
	if err != nil {
		return nil
	}
	name, digest, _ := strings.Cut(string(b), "\n")
	id, err := daemon.ParseIdentity(name)
	if err != nil {
		return nil
	}
	p, err := daemon.Adopt(id, s.cfg.Binary)
	if err != nil {
		return nil
	}
	if digest == s.digest() {
		s.log.Log(event.Adopted{Part: event.Resolver})
		return p
	}
	if err := p.Stop(ctx, 2*time.Second); err != nil {
		s.log.Log(event.Trouble{Part: event.Resolver, Kind: fault.Of(err)})
	}
	return nil
}

// start starts unbound and notes its identity. Without the note, the next agent
// could not end it, so it may not run without.
func (s *Server) start(ctx context.Context) (*daemon.Process, error) {
	p, err := daemon.Start(ctx, daemon.Spec{
		Path: s.cfg.Binary, Args: []string{"-d", "-p", "-c", "/dev/stdin"}, UID: s.cfg.UID, GID: s.cfg.GID,
		Caps: []uintptr{unix.CAP_NET_BIND_SERVICE}, Stdin: []byte(s.text), Confine: s.cfg.confine(),
	})
	if err == nil {
		if err = os.WriteFile(s.identityFile(), []byte(p.Identity().String()+"\n"+s.digest()), 0o600); err != nil {
			err = errors.Join(err, p.Stop(ctx, 0))
		}
	}
	if err != nil {
		s.log.Log(event.Trouble{Part: event.Resolver, Kind: fault.Of(err)})
		return nil, err
	}
	return p, nil
}

// addresses gives the loopback interface those addresses that no interface has.
func (s *Server) addresses() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	have, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	for _, want := range s.cfg.Addresses {
		found := false
		for _, h := range have {
			a, _ := netip.AddrFromSlice(h.IP)
			found = found || a.Unmap() == want
		}
		if found || err != nil {
			continue
		}
		var a *netlink.Addr
		if a, err = netlink.ParseAddr(netip.PrefixFrom(want, want.BitLen()).String()); err == nil {
			if want.Is6() {
				a.Flags = unix.IFA_F_NODAD
			}
			err = netlink.AddrAdd(lo, a)
		}
	}
	return errors.Join(err, netlink.LinkSetUp(lo))
}

// confine returns unbound's sandbox: DNS by TCP to listen and to ask, and root hints of its own.
func (c Config) confine() *daemon.Confinement {
	b := &daemon.Confinement{Bind: []uint16{53}, Connect: []uint16{53}}
	if c.RootHints != "" {
		b.Read = []string{c.RootHints}
	}
	return b
}

// silence is the part of the configuration (unbound.conf(5)) that is the same
// everywhere.
const silence = `server:
	verbosity: 0
	use-syslog: no
	logfile: ""
	log-queries: no
	log-replies: no
	log-local-actions: no
	log-servfail: no
	log-tag-queryreply: no
	val-log-level: 0
	statistics-interval: 0
	extended-statistics: no
	statistics-cumulative: no
	do-daemonize: no
	pidfile: ""
	chroot: ""
	directory: ""
	username: ""
	hide-identity: yes
	hide-version: yes
	hide-trustanchor: yes
	cache-min-ttl: 0
	cache-max-ttl: %[1]d
	cache-max-negative-ttl: %[1]d
	infra-host-ttl: %[1]d
	prefetch: no
	prefetch-key: no
	serve-expired: no
	qname-minimisation: yes
	minimal-responses: yes
	deny-any: yes
	aggressive-nsec: yes
	harden-glue: yes
	harden-dnssec-stripped: yes
	harden-below-nxdomain: yes
	harden-algo-downgrade: yes
	trust-anchor-signaling: no
	root-key-sentinel: no
	ratelimit: 0
	ip-ratelimit: 0
	edns-buffer-size: 1232
	max-udp-size: 1232
	ip-freebind: yes
	so-reuseport: yes
	outgoing-port-avoid: 0-65535
	outgoing-port-permit: %[2]d-%[3]d
	access-control: 0.0.0.0/0 refuse
	access-control: ::/0 refuse
	access-control: 127.0.0.0/8 refuse
	access-control: ::1 refuse
	num-threads: %[4]d
	module-config: "%[5]s"
remote-control:
	control-enable: no
server:
`

// private are networks that no public name may point to, lest a web page reach
// into a customer's own network (DNS rebinding), and that are never asked.
var private = []string{
	"0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.168.0.0/16", "198.18.0.0/15",
	"::/96", "::ffff:0:0/96", "64:ff9b::/96", "fc00::/7", "fe80::/10", "fec0::/10",
}

// render returns the configuration.
func (c Config) render() string {
	modules := "validator iterator"
	if len(c.TrustAnchors) == 0 {
		modules = "iterator"
	}
	var b strings.Builder
	fmt.Fprintf(&b, silence, int(CacheTTL.Seconds()), firstPort, lastPort, c.Threads, modules)
	line := func(format string, args ...any) { fmt.Fprintf(&b, "\t"+format+"\n", args...) }
	for _, a := range c.Addresses {
		line("interface: %v@53", a)
	}
	for _, p := range c.Clients {
		line("access-control: %v allow", p.Masked())
	}
	for _, p := range private {
		line("private-address: %s", p)
		line("do-not-query-address: %s", p)
	}
	if c.RootHints != "" {
		line("root-hints: \"%s\"", c.RootHints)
	}
	for _, a := range c.TrustAnchors {
		line("trust-anchor: \"%s\"", a)
	}
	return b.String()
}
