// Package node is lethe-node, the program that runs on a VPN server.
//
// Its life: close the firewall and apply the kernel settings; say on one port that it waits for
// its secrets (package activation); follow the signed bundle (bundle.go); open the
// firewall for what the bundle says; run OpenVPN and the resolver; deliver
// usage records. Package session decides about customers in between.
//
// The program can be killed at any instruction. Secrets, ledger and bundle are memfds
// that the service manager keeps (package notify), byte counters are in the
// kernel, OpenVPN processes outlive it; the next instance finds all of them and
// goes on. A server that was told to stop ends its sessions, delivers their
// records and closes the firewall.
//
// What a failure of each part means: no valid bundle, no login; no agent, no
// login; live tunnels stay in both cases.
package node

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"time"

	"golang.org/x/sync/errgroup"

	"lethe/activation"
	"lethe/bundle"
	"lethe/event"
	"lethe/fault"
	"lethe/firewall"
	"lethe/ikev2"
	"lethe/image/layout"
	"lethe/ledger"
	"lethe/location"
	"lethe/notify"
	"lethe/openvpn"
	"lethe/protocol"
	"lethe/radius"
	"lethe/resolver"
	"lethe/secret"
	"lethe/session"
	"lethe/spec"
	"lethe/uplink"
	"lethe/usage"
)

// The names under which the service manager keeps the memfds, beside those of the
// bundle (bundle.Client.Keep).
const (
	keptSecrets = "secrets"
	keptLedger  = "ledger"
)

// lastFlush bounds the delivery of the last records when the server stops.
const lastFlush = 10 * time.Second

// Node is one server.
type Node struct {
	cfg      Config
	dir      string // runtime directory
	log      *event.Logger
	port     *activation.Server // the one that is no VPN port
	secrets  *secret.Node
	control  []netip.AddrPort    // where the node API is dialled
	kept     map[string]*os.File // what an earlier instance has left with the service manager
	open     bool                // an earlier instance has left the firewall open: customers may be connected
	policy   *policy
	ledger   *ledger.Ledger
	counters counters
	sessions *session.Registry
	vpn      *openvpn.Server
	ike      *ikev2.Server
	radius   *radius.Server // where charon asks
	resolver *resolver.Server
	sender   *usage.Sender
	polled   chan struct{}   // a poll may have changed the sender's interval
	rules    firewall.Config // in force; the zero Config before the first
	seed     uint32          // spreads customers over processes in a way that they cannot foretell
}

// Run serves until ctx ends. dir is the runtime directory, on a RAM disk and
// the server's own.
func Run(ctx context.Context, cfg Config, dir string, log *event.Logger) error {
	kept, err := notify.Restore()
	if err != nil {
		return fmt.Errorf("restore: %w", err)
	}
	n := &Node{cfg: cfg, dir: dir, log: log, kept: kept, seed: rand.Uint32()}
	if err := n.prepare(ctx, kept[keptLedger] == nil); err != nil {
		return err
	}
	if n.port, err = activation.New(osRelease, layout.Sealed, log); err != nil {
		return err
	}
	l, err := activation.Listen(layout.ActivationPort)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return n.port.Serve(gctx, l) })
	g.Go(func() error {
		defer cancel()
		return n.live(gctx)
	})
	return g.Wait()
}

// osRelease says which image this is; see os-release(5).
const osRelease = "/usr/lib/os-release"

// live is the server's life with the port open.
func (n *Node) live(ctx context.Context) error {
	if err := n.activate(ctx, n.kept[keptSecrets]); err != nil {
		return err
	}
	if err := n.openLedger(n.kept[keptLedger]); err != nil {
		return err
	}
	defer n.ledger.Close()
	defer n.counters.Close()
	return n.serve(ctx)
}

// prepare brings the machine into the state in which nothing passes but what asks at the activation
// port. After an agent that was killed it leaves the rules alone: customers are connected. After one
// that was stopped, nothing passes already, not even to the control plane.
func (n *Node) prepare(ctx context.Context, first bool) (err error) {
	if !first {
		if n.open, err = firewall.Serving(ctx); err != nil {
			return err
		}
	}
	if !n.open {
		text, err := n.early().Awaiting()
		if err == nil {
			err = firewall.Load(ctx, text)
		}
		if err != nil {
			return fmt.Errorf("close the firewall: %w", err)
		}
	}
	if err := firewall.ApplySysctls(); err != nil {
		return fmt.Errorf("kernel settings: %w", err)
	}
	return nil
}

// early is what the firewall's rules depend on before the first bundle.
func (n *Node) early() firewall.Config {
	return firewall.Config{Uplinks: n.cfg.Uplinks, Activation: layout.ActivationPort, Seed: n.seed, Control: n.control}
}

// activate gets the secrets from the service manager or waits until they are handed over.
func (n *Node) activate(ctx context.Context, kept *os.File) (err error) {
	if kept != nil {
		defer kept.Close()
		n.secrets, err = secret.Restore(kept)
		n.port.Activate()
		err = errors.Join(err, notify.Ready())
	} else {
		err = n.await(ctx)
	}
	if err == nil {
		n.control, err = n.secrets.ControlEndpoints()
	}
	return err
}

// await waits for the secrets and leaves them with the service manager.
func (n *Node) await(ctx context.Context) error {
	if err := notify.Ready(); err != nil {
		return err
	}
	handed, err := n.port.Wait(ctx)
	if err != nil {
		return err
	}
	defer handed.Kept.Close()
	if err := notify.Store(keptSecrets, handed.Kept); err != nil {
		return fmt.Errorf("store the secrets: %w", err)
	}
	n.secrets = handed.Secrets
	n.log.Log(event.Activated{})
	return nil
}

// openLedger opens the ledger of an earlier instance or makes a new one, and
// removes counters that no session of it needs.
func (n *Node) openLedger(f *os.File) (err error) {
	if f == nil {
		if f, err = ledger.Create(ledger.Slots); err != nil {
			return err
		}
		if err := notify.Store(keptLedger, f); err != nil {
			return errors.Join(fmt.Errorf("store the ledger: %w", err), f.Close())
		}
	}
	defer f.Close()
	if n.ledger, err = ledger.Open(f); err != nil {
		return err
	}
	c, err := firewall.OpenCounters()
	if err != nil {
		return errors.Join(fmt.Errorf("open the byte counters: %w", err), n.ledger.Close())
	}
	n.counters = counters{c}
	return n.counters.keepOnly(n.ledger.Sessions())
}

// serve builds the parts and runs them until ctx ends or one fails for good.
func (n *Node) serve(ctx context.Context) error {
	client, err := n.newBundleClient()
	if err != nil {
		return err
	}
	defer client.Close()
	restored := n.policy.restore(client, n.kept, n.log)
	if !n.open {
		if err := n.reachControl(ctx); err != nil {
			return err
		}
	}
	g, gctx := errgroup.WithContext(ctx)
	polls := make(chan bool)
	g.Go(func() error { n.policy.follow(gctx, client, n.log, polls); return nil })
	if !n.open && !restored && !n.firstBundle(gctx, polls) {
		return g.Wait()
	}
	if err := n.build(); err != nil {
		return err
	}
	n.port.Use(n.drivers())
	n.openFirewall(gctx)
	g.Go(func() error { return n.vpn.Run(gctx) })
	g.Go(func() error { return n.answerRADIUS(gctx) })
	g.Go(func() error { return n.ike.Run(gctx) })
	g.Go(func() error { return n.resolver.Run(gctx) })
	g.Go(func() error { n.sender.Run(gctx); return nil })
	g.Go(func() error {
		for {
			select {
			case <-gctx.Done():
				return nil
			case <-polls:
				n.openFirewall(gctx)
				n.sessions.Recheck()
				select {
				case n.polled <- struct{}{}:
				default: // it has not looked since the last one
				}
			}
		}
	})
	n.log.Log(event.Started{Part: event.Node})
	return errors.Join(g.Wait(), n.stop())
}

// firstBundle waits for the first bundle: before it nobody could be let in, and
// OpenVPN should start with the specification that it holds. It reports whether
// there is one. An instance that has the bundle of an earlier one does not wait, nor one
// that found the firewall open, because live tunnels need it.
func (n *Node) firstBundle(ctx context.Context, polls <-chan bool) bool {
	for {
		select {
		case <-ctx.Done():
			return false
		case changed := <-polls:
			if changed {
				return true
			}
		}
	}
}

// build makes the parts; they run later.
func (n *Node) build() (err error) {
	n.sessions = session.New(session.Config{
		Salt: n.secrets.Salt, Ledger: n.ledger, Counters: n.counters,
		Location: n.policy.location, Check: n.policy.check, Allowed: n.policy.allowed, Locate: n.policy.locate,
		Kill:    func(ref session.Ref) { n.vpn.Kill(ref); n.ike.Kill(ref) }, // each knows its own
		Trouble: func() { n.log.Log(event.Trouble{Part: event.Firewall}) },
	})
	n.vpn, err = openvpn.New(openvpn.Config{
		RuntimeDir: filepath.Join(n.dir, "openvpn"), UID: n.cfg.OpenVPNUser, GID: n.cfg.OpenVPNUser,
		Transports: []openvpn.Transport{
			{Protocol: protocol.OpenVPNUDP, Alone: portUDP, Port: basePortUDP, Processes: n.cfg.Processes},
			{Protocol: protocol.OpenVPNTCP, Alone: portTCP, Port: basePortTCP, Processes: n.cfg.Processes},
		},
		Certificate: n.secrets.VPNCertificate, Key: n.secrets.VPNKey, TLSCrypt: n.secrets.TLSCrypt,
		Node: n.policy.node, DNS: []netip.Addr{resolverV4, resolverV6},
	}, n.sessions, n.log)
	if err != nil {
		return err
	}
	if err := n.buildIKE(); err != nil {
		return err
	}
	var clients []netip.Prefix
	for _, t := range n.tunnels() {
		clients = append(clients, t.V4, t.V6)
	}
	n.resolver, err = resolver.New(resolver.Config{
		RuntimeDir: filepath.Join(n.dir, "resolver"), UID: n.cfg.ResolverUser, GID: n.cfg.ResolverUser,
		Addresses: []netip.Addr{resolverV4, resolverV6}, Clients: clients, RootHints: n.cfg.RootHints,
	}, n.log)
	if err != nil {
		return err
	}
	post, err := n.poster()
	n.polled = make(chan struct{}, 1)
	n.sender = &usage.Sender{
		Outbox: n.ledger, Post: post, Log: n.log, Changed: n.polled,
		Every: func() time.Duration { return time.Duration(n.policy.node().UsageSeconds) * time.Second },
	}
	return err
}

// buildIKE makes charon's part and the RADIUS server that lets its customers in.
func (n *Node) buildIKE() (err error) {
	n.ike, err = ikev2.New(ikev2.Config{
		RuntimeDir: filepath.Join(n.dir, "ikev2"), UID: n.cfg.IKEv2User, GID: n.cfg.IKEv2User,
		Daemon: ikeDaemon, Uplinks: n.cfg.Uplinks, RADIUS: radiusAddr, Node: n.policy.node,
		Certificate: n.secrets.VPNCertificate, Key: n.secrets.VPNKey,
	}, n.sessions, n.log)
	if err != nil {
		return err
	}
	n.radius, err = radius.New(radius.Config{
		Secret: n.ike.Secret(), Daemon: ikeDaemon, Protocol: protocol.IKEv2,
		DNS: []netip.Addr{resolverV4, resolverV6}, Core: n.ike, Log: n.log,
	})
	return err
}

// answerRADIUS answers charon until ctx ends.
func (n *Node) answerRADIUS(ctx context.Context) error {
	conn, err := radius.Listen(radiusAddr.Port())
	if err != nil {
		return err
	}
	return n.radius.Serve(ctx, conn)
}

// tunnels returns the interfaces of all daemons and the networks behind them.
func (n *Node) tunnels() (all []firewall.Tunnel) {
	add := func(device string, daemon uint8) {
		nets := session.SubnetsOf(daemon)
		all = append(all, firewall.Tunnel{Device: device, V4: nets.V4, V6: nets.V6})
	}
	for _, i := range n.vpn.Instances() {
		add(i.Device, i.Daemon)
	}
	i := n.ike.Instance()
	add(i.Device, i.Daemon)
	return all
}

// drivers says what carries customers' packets.
func (n *Node) drivers() activation.Drivers {
	d := activation.Drivers{OpenVPN: "tun", IKEv2: "libipsec"}
	if in := n.vpn.Instances(); len(in) > 0 && in[0].Offload {
		d.OpenVPN = "ovpn-dco"
	}
	if n.ike.Instance().Offload {
		d.IKEv2 = "xfrm"
	}
	return d
}

// stop is the end of a server that was told to stop: its sessions have ended,
// their records are delivered, and the firewall closes.
func (n *Node) stop() error {
	flush, cancel := context.WithTimeout(context.Background(), lastFlush)
	defer cancel()
	err := errors.Join(notify.Stopping(), n.sender.Drain(flush))
	// It closes whatever became of the records, and whatever that took.
	shut, cancel := context.WithTimeout(context.Background(), lastFlush)
	defer cancel()
	err = errors.Join(err, firewall.Load(shut, firewall.Closed()), uplink.Sync(n.cfg.Uplinks, nil))
	n.log.Log(event.Stopped{Part: event.Node})
	if err != nil {
		return fault.Wrap(fault.Of(err), "the server did not stop in order", err)
	}
	return nil
}

// newBundleClient makes the client of the signed bundle and the policy that
// follows it.
func (n *Node) newBundleClient() (*bundle.Client, error) {
	hc, err := n.httpClient()
	if err != nil {
		return nil, err
	}
	n.policy = &policy{id: n.secrets.Server, spec: spec.Default()}
	return bundle.NewClient(bundle.Config{
		Root: n.secrets.TrustRoot, Seal: n.secrets.Seal,
		Floor:   bundle.Floor{Version: n.cfg.FloorVersion, Time: n.cfg.FloorTime},
		Fetch:   bundle.HTTP{Client: hc, Base: n.secrets.ControlURL + "/node/v1/bundle"},
		Rebuild: bundle.MergeSegments,
	})
}

// httpClient speaks to the node API: mutual TLS, one CA, no proxy and no DNS.
func (n *Node) httpClient() (*http.Client, error) {
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(n.secrets.ControlCA)) // checked when the secrets came
	pair, err := tls.X509KeyPair([]byte(n.secrets.APICertificate.Reveal()), []byte(n.secrets.APIKey.Reveal()))
	if err != nil {
		return nil, errors.New("secrets: API certificate and key do not fit together")
	}
	return &http.Client{
		Transport: &http.Transport{
			DialContext:           n.dialControl,
			TLSClientConfig:       &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: roots, Certificates: []tls.Certificate{pair}},
			ResponseHeaderTimeout: 15 * time.Second, TLSHandshakeTimeout: 10 * time.Second,
			IdleConnTimeout: 90 * time.Second, ForceAttemptHTTP2: true,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}, nil
}

// dialControl connects to the first of the control plane's addresses that answers, whatever
// name the URL has.
func (n *Node) dialControl(ctx context.Context, network, _ string) (c net.Conn, err error) {
	dialer := net.Dialer{Timeout: 5 * time.Second}
	for _, a := range n.control {
		if c, err = dialer.DialContext(ctx, network, a.String()); err == nil {
			return c, nil
		}
	}
	return nil, err
}

// poster returns the delivery of usage batches.
func (n *Node) poster() (func(context.Context, []byte) error, error) {
	hc, err := n.httpClient()
	return func(ctx context.Context, body []byte) error {
		ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, n.secrets.ControlURL+"/node/v1/usage", bytes.NewReader(body))
		if err != nil {
			return fault.Wrap(fault.Unavailable, "the control plane's URL is not usable", err)
		}
		req.Header.Set("Content-Type", "application/json")
		resp, err := hc.Do(req)
		if err != nil {
			return fault.Wrap(fault.Unavailable, "the control plane does not answer", err)
		}
		defer resp.Body.Close()
		if resp.StatusCode/100 != 2 {
			return fault.New(fault.FromStatus(resp.StatusCode), "the control plane refused a usage batch")
		}
		return nil
	}, err
}

// reachControl opens the firewall for the control plane alone.
func (n *Node) reachControl(ctx context.Context) error {
	text, err := n.early().Waiting()
	if err != nil {
		return err
	}
	return firewall.Load(ctx, text)
}

// openFirewall brings the addresses and the rules up to what the bundle says of this server. It
// is called after every poll, so what failed is tried again. Until a later
// instance has a bundle, the rules of the one before stay.
func (n *Node) openFirewall(ctx context.Context) {
	self, ok := n.policy.server()
	if !ok {
		return
	}
	if err := uplink.Sync(n.cfg.Uplinks, self.Addresses); err != nil {
		n.log.Log(event.Trouble{Part: event.Uplink, Kind: fault.Of(err)})
	}
	want := n.firewallConfig(self)
	if reflect.DeepEqual(want, n.rules) {
		return
	}
	text, err := want.Rules()
	if err == nil {
		err = firewall.Load(ctx, text)
	}
	if err != nil {
		n.log.Log(event.Trouble{Part: event.Firewall, Kind: fault.Of(err)})
		return
	}
	n.rules = want
}

// firewallConfig derives the rules' parameters from the directory's entry of
// this server and from its processes.
func (n *Node) firewallConfig(self location.Server) firewall.Config {
	cfg := n.early()
	cfg.Resolvers, cfg.ResolverUID = []netip.Addr{resolverV4, resolverV6}, n.cfg.ResolverUser
	cfg.BlockTCP, cfg.Tunnels = n.policy.node().BlockTCP, n.tunnels()
	for _, e := range self.Endpoints {
		if e.Protocol == protocol.IKEv2 {
			// Whoever meets a NAT on the way goes on at the second port (RFC 7296, section 2.23).
			for _, port := range []uint16{ikev2.Port, ikev2.PortNAT} {
				cfg.Ports = append(cfg.Ports, firewall.Port{Network: "udp", Public: port, Daemons: []uint16{port}})
			}
			continue
		}
		port := firewall.Port{Network: "udp", Public: e.Port}
		if e.Protocol == protocol.OpenVPNTCP {
			port.Network = "tcp"
		}
		for _, i := range n.vpn.Instances() {
			if i.Protocol == e.Protocol {
				port.Daemons = append(port.Daemons, i.Port)
			}
		}
		if len(port.Daemons) > 0 {
			cfg.Ports = append(cfg.Ports, port)
		}
	}
	return cfg
}
