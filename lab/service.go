package lab

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"lethe/activation"
	"lethe/image/layout"
	"lethe/lab/pki"
	"lethe/private"
	"lethe/secret"
)

// The ports of the control plane.
const (
	appPort  = 443
	nodePort = 8443
)

// AppURL is the address of the lab's app API.
const AppURL = "https://" + apiName

// geoIPSource is where Debian's package libloc-database keeps its file.
const geoIPSource = "/usr/share/libloc-location/location.db"

// Paths on the machines, the same as on real ones.
const (
	controlData   = "/var/lib/lethe-control"
	controlConfig = "/etc/lethe/control.json"
	nodeConfig    = "/etc/lethe/node.json"
	rootHints     = "/etc/lethe/root.hints"
	appConfig     = "/etc/lethe/app.json"
)

// activator is the lab's part of the activator: it makes what servers are told
// once per boot. Everything is made anew for each lab.
type activator struct {
	vpn, api, web *pki.Authority
	tlsCrypt      string
	fromControl   controlKeys
}

// controlKeys is what `lethe-control keys node` prints.
type controlKeys struct {
	Salt      []byte `json:"salt"`
	Seal      []byte `json:"seal"`
	TrustRoot []byte `json:"trust_root"`
}

func newActivator() (*activator, error) {
	vpn, err1 := pki.NewAuthority("Lethe lab VPN")
	api, err2 := pki.NewAuthority("Lethe lab node API")
	web, err3 := pki.NewAuthority("Lethe lab web")
	return &activator{vpn: vpn, api: api, web: web, tlsCrypt: pki.NewTLSCrypt()}, errors.Join(err1, err2, err3)
}

// secrets returns what the server of that id, which customers dial at entry, is
// told.
func (a *activator) secrets(server string, entry Dual) (*secret.Node, error) {
	vpn, err1 := a.vpn.IssueVPN(server, entry.V4, entry.V6)
	api, err2 := a.api.Issue(server, x509.ExtKeyUsageClientAuth, nil)
	k := a.fromControl
	return &secret.Node{
		Server:         server,
		VPNCertificate: private.Of(vpn.Certificate), VPNKey: private.Of(vpn.Key), TLSCrypt: private.Of(a.tlsCrypt),
		ControlURL:     "https://" + net.JoinHostPort(nodeName, strconv.Itoa(nodePort)),
		Control:        []netip.Addr{controlAddr.V4, controlAddr.V6},
		ControlCA:      a.api.PEM,
		APICertificate: private.Of(api.Certificate), APIKey: private.Of(api.Key),
		Salt: private.Of([32]byte(k.Salt)), Seal: private.Of([32]byte(k.Seal)), TrustRoot: k.TrustRoot,
	}, errors.Join(err1, err2)
}

// ServerCertificate returns what a server of that id shows the node API, whether
// or not the directory has such a server.
func (l *Lab) ServerCertificate(id string) (pki.Pair, error) {
	return l.activator.api.Issue(id, x509.ExtKeyUsageClientAuth, nil)
}

// serviceSteps are the steps that bring up Lethe's own programs.
func (l *Lab) serviceSteps() []step {
	steps := []step{
		{"GeoIP file from " + filepath.Base(geoIPSource), l.geoIP},
		{"control plane: keys, database, locations and servers", l.initControl},
		{"control plane: lethe-control serves", l.startControl},
	}
	for i, p := range l.opts.Locations {
		steps = append(steps, step{"VPN server " + p.server() + " in " + p.City + ": boots, waits, is told its secrets",
			func(ctx context.Context) error { return l.startNode(ctx, l.Server(i)) }})
	}
	return append(steps, step{"customers: the app and its helper", l.startHelpers},
		step{"VPN servers: have the signed bundle and take customers", l.AwaitServers})
}

// geoIP builds the GeoIP file unless it is there already.
func (l *Lab) geoIP(ctx context.Context) error {
	if _, err := os.Stat(l.opts.GeoIP); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	var extra strings.Builder
	for i, isp := range ISPs() {
		for _, p := range []netip.Prefix{isp.V4, isp.V6} {
			fmt.Fprintf(&extra, "%s,%s,%d,%s\n", p, isp.Country, 64496+i, isp.Name) // RFC 5398
		}
	}
	path := l.Control().Data("extra.csv")
	err := os.WriteFile(path, []byte(extra.String()), 0o644)
	if err == nil {
		_, err = l.Control().Run(ctx, "lethe-control", "geoip", "build", "--from", geoIPSource, "--extra", path, "--output", l.opts.GeoIP)
	}
	return err
}

// initControl makes the control plane's keys and tells it of locations and
// servers, as an operator would.
func (l *Lab) initControl(ctx context.Context) (err error) {
	if l.activator, err = newActivator(); err != nil {
		return err
	}
	m, a := l.Control(), l.activator
	if err := l.installControl(ctx); err != nil {
		return err
	}
	commands := [][]string{{"init"}}
	for i, p := range l.opts.Locations {
		entry, _ := serverAddr(i)
		commands = append(commands, []string{"location", "add", p.Code, p.Country, p.City},
			[]string{"server", "add", p.server(), "--location", p.Code, "--address", entry.V4.String(), "--address", entry.V6.String(),
				"--endpoint", "openvpn-udp:1194", "--endpoint", "openvpn-tcp:443", "--endpoint", "ikev2:500",
				"--ca", m.Data("vpn-ca.pem"), "--tls-crypt", m.Data("tls-crypt.key")})
	}
	var out string
	for _, c := range append(commands, []string{"keys", "node"}) {
		if out, err = l.Operate(ctx, c...); err != nil {
			return err
		}
	}
	// No part of the text may be in the error: it is secret.
	if k := &a.fromControl; json.Unmarshal([]byte(out), k) != nil || len(k.Salt) != 32 || len(k.Seal) != 32 {
		return errors.New("lethe-control keys node: want JSON with salt and seal of 32 bytes")
	}
	return nil
}

// installControl writes the files that an operator provides.
func (l *Lab) installControl(ctx context.Context) error {
	m, a := l.Control(), l.activator
	app, err1 := a.web.Issue(apiName, x509.ExtKeyUsageServerAuth, []string{apiName}, controlAddr.V4, controlAddr.V6)
	node, err2 := a.api.Issue("node-api", x509.ExtKeyUsageServerAuth, []string{nodeName}, controlAddr.V4, controlAddr.V6)
	config, err3 := json.MarshalIndent(map[string]any{
		"version":   1,
		"app":       map[string]any{"listen": ":" + strconv.Itoa(appPort), "certificate": m.Data("app.pem"), "key": m.Data("app.key")},
		"node":      map[string]any{"listen": ":" + strconv.Itoa(nodePort), "certificate": m.Data("node.pem"), "key": m.Data("node.key")},
		"client_ca": m.Data("node-ca.pem"),
		"geoip":     l.opts.GeoIP,
		"spec":      m.Data("node-spec.json"),
	}, "", "\t")
	err := errors.Join(err1, err2, err3)
	for name, text := range map[string]string{
		"app.pem": app.Certificate, "app.key": app.Key, "node.pem": node.Certificate, "node.key": node.Key,
		"node-ca.pem": a.api.PEM, "vpn-ca.pem": a.vpn.PEM, "tls-crypt.key": a.tlsCrypt,
		"node-spec.json": l.opts.Spec,
	} {
		err = errors.Join(err, os.WriteFile(m.Data(name), []byte(text), 0o600))
	}
	return errors.Join(err, m.Install(ctx, controlConfig, config))
}

// Operate runs lethe-control on the control plane's machine, as an operator
// would, and returns what it printed.
func (l *Lab) Operate(ctx context.Context, args ...string) (string, error) {
	return l.Control().Operate(ctx, args...)
}

// Operate is [Lab.Operate]; m must be the control plane's machine.
func (m *Machine) Operate(ctx context.Context, args ...string) (string, error) {
	return m.Run(ctx, "lethe-control", append(args, "--dir", controlData)...)
}

// startControl starts the service and waits for its first bundle: a server
// that asks before there is one asks again only after its poll interval.
func (l *Lab) startControl(ctx context.Context) error {
	err := l.Start(ctx, Unit{
		Name: "lethe-control", Machine: l.Control(), Notify: true,
		Args: []string{"lethe-control", "serve", "--dir", controlData, "--config", controlConfig},
	})
	if err != nil {
		return err
	}
	return await(ctx, bundlePatience, "the control plane publishes no bundle", func(context.Context) bool {
		_, err := os.Stat(l.Control().Path(controlData + "/bundles/freshness.json"))
		return err == nil
	})
}

// bundlePatience and serverPatience are how long the first bundle may take, and
// a server until customers can dial it.
const (
	bundlePatience = 30 * time.Second
	serverPatience = 45 * time.Second
)

// await asks until done says yes, and fails with the words of what when that
// takes longer than patience.
func await(ctx context.Context, patience time.Duration, what string, done func(context.Context) bool) error {
	ctx, cancel := context.WithTimeoutCause(ctx, patience, errors.New(what))
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !done(ctx) {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
	}
	return nil
}

// startNode boots a server: its agent waits without a secret until the
// activator's part hands them over.
func (l *Lab) startNode(ctx context.Context, m *Machine) error {
	if m.guest != nil {
		if err := l.AwaitGuest(ctx, m); err != nil {
			return err
		}
		return l.Activate(ctx, m)
	}
	config, err := json.Marshal(map[string]any{"version": 1, "uplinks": []string{Uplink}, "root_hints": rootHints, "processes": 1})
	err = errors.Join(err, m.Install(ctx, rootHints, []byte(RootHints())), m.Install(ctx, nodeConfig, config))
	if err != nil {
		return err
	}
	if err := l.Boot(ctx, m); err != nil {
		return err
	}
	return l.Activate(ctx, m)
}

// Boot starts a server's agent, which then waits to be told its secrets.
func (l *Lab) Boot(ctx context.Context, m *Machine) error {
	return l.Start(ctx, Unit{
		Name: m.Name, Machine: m, Notify: true, Runtime: "lethe-node", Timeout: time.Minute,
		Args: []string{"lethe-node", "run", "--config", nodeConfig},
	})
}

// Activate hands a server that waits its secrets, in place of the activator: over the same port, from
// the internet, but without asking for evidence. A server waits after its boot, and after its
// unit was stopped and started.
func (l *Lab) Activate(ctx context.Context, m *Machine) error {
	n, err := l.activator.secrets(m.Name, m.Addresses[0])
	if err != nil {
		return err
	}
	b, err := n.Encode()
	if err != nil {
		return err
	}
	port := l.ActivationPort(m.own())
	defer port.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+m.Name+"/v1/secrets", bytes.NewReader(b))
	if err != nil {
		return err
	}
	resp, err := port.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusNoContent {
		reason, _ := io.ReadAll(io.LimitReader(resp.Body, 256)) // it names a part, never its content
		return fmt.Errorf("server %s: %s %s", m.Name, resp.Status, reason)
	}
	m.told = n
	return nil
}

// Told returns what the server was told last: for tests that look for it where it must not be.
func (m *Machine) Told() *secret.Node { return m.told }

// ActivationState asks a server for its state, by IPv4.
func (l *Lab) ActivationState(ctx context.Context, m *Machine) (s activation.State, err error) {
	port := l.ActivationPort(m.Addresses[0].V4)
	defer port.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+m.Name+"/v1/state", nil)
	if err != nil {
		return s, err
	}
	resp, err := port.Do(req)
	if err != nil {
		return s, err
	}
	defer resp.Body.Close()
	return s, json.NewDecoder(io.LimitReader(resp.Body, 1<<17)).Decode(&s)
}

// ActivationPort returns a client that asks, from the internet, the server at an address on the port where it
// waits for its secrets. It takes any key: the lab has no evidence to hold it against.
func (l *Lab) ActivationPort(server netip.Addr) *http.Client {
	at := netip.AddrPortFrom(server, layout.ActivationPort).String()
	return &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return l.Internet().Dial(ctx, network, at)
		},
		TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS13, InsecureSkipVerify: true},
	}}
}

// AwaitServers dials every server's TCP port from the internet until it is
// answered.
func (l *Lab) AwaitServers(ctx context.Context) error {
	for i, p := range l.opts.Locations {
		entry, _ := serverAddr(i)
		patience := serverPatience
		if l.Server(i).guest != nil {
			patience = guestPatience
		}
		err := await(ctx, patience, "VPN server "+p.server()+" does not answer on its TCP port", func(ctx context.Context) bool {
			attempt, cancel := context.WithTimeout(ctx, time.Second)
			defer cancel()
			c, err := l.Internet().Dial(attempt, "tcp", netip.AddrPortFrom(entry.V4, 443).String())
			return err == nil && c.Close() == nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// startHelpers installs the app on the customers' machines and starts its
// root helper.
func (l *Lab) startHelpers(ctx context.Context) error {
	config, err := json.Marshal(map[string]string{"api": AppURL, "ca": "/etc/lethe/ca.pem"})
	for i := range l.opts.Customers {
		m := l.Customer(i)
		err = errors.Join(err, m.Install(ctx, appConfig, config), m.Install(ctx, "/etc/lethe/ca.pem", []byte(l.activator.web.PEM)))
		if err == nil {
			err = l.Start(ctx, Unit{Name: "helper-" + m.Name, Machine: m, Notify: true, Runtime: "lethe", Args: []string{"lethe", "helper"}})
		}
	}
	return err
}
