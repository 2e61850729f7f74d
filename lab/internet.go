package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"
)

// The names that the lab's name servers know.
const (
	siteName = "www.river.example"      // the web site
	apiName  = "api.lethe.example"      // the app API
	nodeName = "node-api.lethe.example" // the node API
)

// SiteURL is the address of the lab's web site. It answers
//
//	GET  /          "address: ADDRESS\nhost: HOST\n", the visitor's address as the site sees it
//	GET  /bytes/N   N bytes
//	POST /sink      "received: N\n", after reading the body of N bytes
const SiteURL = "http://" + siteName + "/"

// maxBytes bounds /bytes/N.
const maxBytes = 1 << 40

// Site returns the handler of the web site.
func Site() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) {
		from := netip.MustParseAddrPort(r.RemoteAddr) // net/http's own, for a TCP connection
		fmt.Fprintf(w, "address: %s\nhost: %s\n", from.Addr().Unmap(), r.Host)
	})
	mux.HandleFunc("GET /bytes/{n}", func(w http.ResponseWriter, r *http.Request) {
		n, err := strconv.ParseInt(r.PathValue("n"), 10, 64)
		if err != nil || n < 0 || n > maxBytes {
			http.Error(w, "want /bytes/N with N from 0 to 2^40", http.StatusBadRequest)
			return
		}
		w.Header().Set("Content-Type", "application/octet-stream")
		w.Header().Set("Content-Length", strconv.FormatInt(n, 10))
		_, _ = io.CopyN(w, filler{}, n) // a visitor may go away
	})
	mux.HandleFunc("POST /sink", func(w http.ResponseWriter, r *http.Request) {
		n, err := io.Copy(io.Discard, r.Body)
		if err != nil {
			http.Error(w, "the body ended early", http.StatusBadRequest)
			return
		}
		fmt.Fprintf(w, "received: %d\n", n)
	})
	return mux
}

// filler reads as an endless row of bytes that compress badly enough for
// volume tests and cost nothing to make.
type filler struct{}

var fill = func() (b [1 << 16]byte) {
	x := uint32(1)
	for i := range b {
		x = x*1664525 + 1013904223 // Numerical Recipes' generator; no secret depends on it
		b[i] = byte(x >> 24)
	}
	return b
}()

func (filler) Read(p []byte) (n int, err error) {
	for n < len(p) {
		n += copy(p[n:], fill[:])
	}
	return n, nil
}

// internet starts the web site and the name servers.
func (l *Lab) internet(ctx context.Context) error {
	v4, err4 := l.Internet().Listen(netip.AddrPortFrom(SiteAddr.V4, 80).String())
	v6, err6 := l.Internet().Listen(netip.AddrPortFrom(SiteAddr.V6, 80).String())
	unit, err := nameServer(l.Internet())
	if err := errors.Join(err4, err6, err); err != nil {
		return err
	}
	l.serve(v4)
	l.serve(v6)
	return l.Start(ctx, unit)
}

// serve runs the web site until the lab is closed. What net/http wants to log
// has visitors' addresses and is dropped.
func (l *Lab) serve(listener net.Listener) {
	s := &http.Server{Handler: Site(), ReadHeaderTimeout: 10 * time.Second, ErrorLog: log.New(io.Discard, "", 0)}
	l.wg.Go(func() { _ = s.Serve(listener) }) // it ends by Close, with an error that says so
	l.closers = append(l.closers, s.Close)
}

// zones returns the zones of the internet: the name servers of all are one
// machine, whose answers are authoritative for each.
func zones() map[string]string {
	const head = "$ORIGIN %s\n$TTL 60\n@ SOA a.root.example. hostmaster.root.example. 1 3600 600 86400 60\n@ NS a.root.example.\n"
	pair := func(name string, d Dual) string { return fmt.Sprintf("%s A %s\n%s AAAA %s\n", name, d.V4, name, d.V6) }
	delegate := "%s NS a.root.example.\n"
	return map[string]string{
		".": fmt.Sprintf(head, ".") + pair("a.root.example.", DNSAddr) +
			fmt.Sprintf(delegate, "river.example.") + fmt.Sprintf(delegate, "lethe.example."),
		"river.example.": fmt.Sprintf(head, "river.example.") + pair("@", SiteAddr) + pair("www", SiteAddr) + pair("*.wild", SiteAddr),
		"lethe.example.": fmt.Sprintf(head, "lethe.example.") + pair("api", controlAddr) + pair("node-api", controlAddr),
	}
}

// RootHints returns the root hints of the lab's internet, as unbound reads
// them.
func RootHints() string {
	return fmt.Sprintf(". 3600000 NS a.root.example.\na.root.example. 3600000 A %s\na.root.example. 3600000 AAAA %s\n", DNSAddr.V4, DNSAddr.V6)
}

// nameServer writes the configuration of nsd(8) and returns its unit.
func nameServer(m *Machine) (Unit, error) {
	var conf strings.Builder
	fmt.Fprintf(&conf, `server:
	server-count: 1
	ip-address: %s
	ip-address: %s
	username: ""
	zonesdir: "%s"
	database: ""
	zonelistfile: "%s"
	xfrdfile: "%s"
	pidfile: ""
	verbosity: 0
remote-control:
	control-enable: no
`, DNSAddr.V4, DNSAddr.V6, m.Data(""), m.Data("zone.list"), m.Data("xfrd.state"))
	var err error
	for name, text := range zones() {
		file := strings.Trim(name, ".") + ".zone"
		fmt.Fprintf(&conf, "zone:\n\tname: \"%s\"\n\tzonefile: \"%s\"\n", name, file)
		err = errors.Join(err, os.WriteFile(m.Data(file), []byte(text), 0o644))
	}
	path := m.Data("nsd.conf")
	return Unit{Name: "nsd", Machine: m, Args: []string{"nsd", "-d", "-c", path}, Notify: true},
		errors.Join(err, os.WriteFile(path, []byte(conf.String()), 0o644))
}
