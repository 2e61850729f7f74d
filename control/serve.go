package control

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/net/netutil"
	"golang.org/x/sync/errgroup"

	"lethe/api"
	"lethe/bundle"
	"lethe/event"
	"lethe/fault"
	"lethe/notify"
	"lethe/publish"
	"lethe/slot"
)

// ServeConfig is the configuration file of the service. Paths may be relative
// to the file's directory.
type ServeConfig struct {
	// Version of this format, 1.
	Version int `json:"version"`
	// App is where apps call the app API.
	App Endpoint `json:"app"`
	// Node is where servers call the node API; ClientCA signs their
	// certificates.
	Node     Endpoint `json:"node"`
	ClientCA string   `json:"client_ca"`
	// GeoIP is a MaxMind DB file to publish; "lethe-control geoip build" makes
	// one. Absent: records say country ZZ.
	GeoIP string `json:"geoip,omitempty"`
	// Spec is the node specification to publish. Absent: its defaults.
	Spec string `json:"spec,omitempty"`
	// UsageDays is how long usage rows are kept, 1 to 3650. Default 90.
	UsageDays int `json:"usage_days,omitempty"`
	// Slots says where connected devices are counted. Default: in memory.
	Slots SlotsConfig `json:"slots"`
}

// Endpoint is a listener with its certificate. The files are read again when
// they change.
type Endpoint struct {
	Listen      string `json:"listen"`      // host:port
	Certificate string `json:"certificate"` // PEM chain
	Key         string `json:"key"`         // PEM key
}

// maxConnections bounds each API, so that a flood of handshakes cannot take
// all memory.
const maxConnections = 4096

// LoadServeConfig reads the service's configuration. Unknown keys and
// impossible values are errors.
func LoadServeConfig(path string) (ServeConfig, error) {
	c := ServeConfig{UsageDays: UsageDays}
	b, err := os.ReadFile(path)
	if err != nil {
		return c, fault.Wrap(fault.NotFound, "the configuration file cannot be read", err).WithHint("doc/control.md shows one")
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&c); err != nil {
		return c, fault.New(fault.Invalid, "configuration: "+err.Error())
	}
	switch {
	case c.Version != 1:
		return c, fault.New(fault.Invalid, "configuration: version must be 1")
	case c.App.Listen == "" || c.Node.Listen == "" || c.ClientCA == "":
		return c, fault.New(fault.Invalid, "configuration: app.listen, node.listen and client_ca are needed")
	case c.UsageDays < 1 || c.UsageDays > 3650:
		return c, fault.New(fault.Invalid, "configuration: usage_days must be 1 to 3650")
	}
	for _, p := range []*string{&c.App.Certificate, &c.App.Key, &c.Node.Certificate, &c.Node.Key, &c.ClientCA, &c.GeoIP, &c.Spec,
		&c.Slots.Password, &c.Slots.CA} {
		if *p != "" && !filepath.IsAbs(*p) {
			*p = filepath.Join(filepath.Dir(path), *p)
		}
	}
	return c, nil
}

// Serve runs both APIs, the connection counter, the publisher and the daily
// purge until ctx ends.
func (c *Control) Serve(ctx context.Context, cfg ServeConfig, bundles string, log *event.Logger) (err error) {
	publisher, err := publish.New(publish.Config{
		Dir: bundles, Source: c.Store, Roots: c.Roots, Signers: []bundle.Signer{c.Keys.Config}, Fresh: []bundle.Signer{c.Fresh},
		Seal: c.Seal, HashKey: c.AuthDB, GeoIP: cfg.GeoIP, Spec: cfg.Spec, Log: log,
	})
	if err != nil {
		return err
	}
	defer publisher.Close()
	clients := x509.NewCertPool()
	if b, err := os.ReadFile(cfg.ClientCA); err != nil || !clients.AppendCertsFromPEM(b) {
		return fault.Wrap(fault.Invalid, "client_ca holds no certificate", err)
	}
	appCert, err := loadCertificate(cfg.App)
	if err != nil {
		return err
	}
	nodeCert, err := loadCertificate(cfg.Node)
	if err != nil {
		return err
	}
	appTLS, nodeTLS := api.AppTLS(*appCert.pair.Load()), api.NodeTLS(*nodeCert.pair.Load(), clients)
	appTLS.GetCertificate, nodeTLS.GetCertificate = appCert.get, nodeCert.get
	store, err := openSlots(ctx, cfg.Slots)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	slots := slot.New(slot.Config{Store: store, Accounts: c.Store, Key: c.Data})
	app := api.NewApp(api.AppDeps{Accounts: c.Accounts, Slots: slots, Directory: c.Store, Limiter: c.Limiter}, log)
	node := api.NewNode(api.NodeDeps{Directory: c.Store, Usage: c.Store, Bundles: bundles}, log)

	if err := forgetful(noMetrics, cfg.App.Listen, cfg.Node.Listen); err != nil {
		return err
	}
	g, gctx := errgroup.WithContext(ctx)
	for _, s := range []struct {
		listen string
		server *http.Server
	}{
		{cfg.App.Listen, api.Server(app, appTLS, log)},
		{cfg.Node.Listen, api.Server(node, nodeTLS, log)},
	} {
		l, err := net.Listen("tcp", s.listen)
		if err != nil {
			return fault.Wrap(fault.Unavailable, "cannot listen on "+s.listen, err)
		}
		defer l.Close()
		g.Go(func() error { return serveHTTP(gctx, s.server, netutil.LimitListener(l, maxConnections)) })
	}
	desk, err := openDesk(c.dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, desk.Close(), os.Remove(filepath.Join(c.dir, deskFile))) }()
	g.Go(func() error { serveDesk(gctx, desk, slots); return nil })
	g.Go(func() error { return publisher.Run(gctx) })
	g.Go(func() error { c.Retain(gctx, cfg.UsageDays, log); return nil })
	g.Go(func() error { reload(gctx, log, appCert, nodeCert); return nil })
	if err := notify.Ready(); err != nil {
		return fault.Wrap(fault.Unavailable, "the service manager does not answer", err)
	}
	log.Log(event.Started{Part: event.Control})
	err = g.Wait()
	if n := log.Strays(); n > 0 {
		log.Log(event.Mumbled{Part: event.Control, Lines: n})
	}
	log.Log(event.Stopped{Part: event.Control})
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// serveHTTP serves until ctx ends; running calls get ten seconds to finish.
func serveHTTP(ctx context.Context, s *http.Server, l net.Listener) error {
	stopped := make(chan error, 1)
	stop := context.AfterFunc(ctx, func() {
		end, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		stopped <- s.Shutdown(end)
	})
	err := s.ServeTLS(l, "", "")
	if !stop() {
		err = <-stopped
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// certificate is a pair of files whose newest valid content is in use.
type certificate struct {
	files Endpoint
	pair  atomic.Pointer[tls.Certificate]
}

func loadCertificate(e Endpoint) (*certificate, error) {
	c := &certificate{files: e}
	return c, c.load()
}

func (c *certificate) load() error {
	pair, err := tls.LoadX509KeyPair(c.files.Certificate, c.files.Key)
	if err != nil {
		return fault.Wrap(fault.Invalid, "certificate and key cannot be loaded, or do not fit together", err)
	}
	c.pair.Store(&pair)
	return nil
}

func (c *certificate) get(*tls.ClientHelloInfo) (*tls.Certificate, error) { return c.pair.Load(), nil }

// certificateReload is how often certificates are read again.
const certificateReload = time.Minute

// reload keeps certificates up to date until ctx ends. One that cannot be
// loaded leaves the old one in use.
func reload(ctx context.Context, log *event.Logger, certificates ...*certificate) {
	ticker := time.NewTicker(certificateReload)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		for _, c := range certificates {
			if err := c.load(); err != nil {
				log.Log(event.Trouble{Part: event.Control, Kind: fault.Of(err)})
			}
		}
	}
}

func (p *program) serveCommand() *cobra.Command {
	var path string
	c := p.action("serve", "Run the service until told to stop", 0, func(ctx context.Context, c *Control, _ []string) error {
		cfg, err := LoadServeConfig(path)
		if err != nil {
			return err
		}
		return c.Serve(ctx, cfg, filepath.Join(p.dir, "bundles"), event.New(p.stderr))
	})
	c.Long = "Run the app API, the node API and the publisher of signed bundles until told to stop.\n" +
		"Operator commands work on the same data directory meanwhile."
	c.Flags().StringVar(&path, "config", "/etc/lethe/control.json", "configuration file")
	return c
}
