package test

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"lethe/lab"
	"lethe/lab/pki"
)

// volume is what one transfer of BenchmarkThroughput moves: about a second's worth.
const volume = 50_000_000

// pipe is a customer's way to the web site through a tunnel.
type pipe struct {
	name             string
	customer, server *lab.Machine
	web              *http.Client
	took, cpu        []time.Duration
}

func newPipe(b *testing.B, name string, l *lab.Lab) *pipe {
	p := &pipe{name: name, customer: l.Customer(0), server: l.Server(0)}
	// One connection, kept: what is measured is a stream and not its opening.
	p.web = &http.Client{Transport: &http.Transport{
		MaxConnsPerHost: 1, DisableCompression: true,
		DialContext: func(ctx context.Context, _, address string) (net.Conn, error) {
			return p.customer.Dial(ctx, "tcp", address)
		},
	}}
	b.Cleanup(p.web.CloseIdleConnections)
	return p
}

// site is the web site by its address: the peer has no resolver.
var site = "http://" + lab.SiteAddr.V4.String() + "/"

// fetch sends a request to the site and returns how much it answered and how the answer begins.
func (p *pipe) fetch(ctx context.Context, method, path string, body io.Reader) (n int64, head string, err error) {
	req, err := http.NewRequestWithContext(ctx, method, site+path, body)
	if err != nil {
		return 0, "", err
	}
	resp, err := p.web.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	start := make([]byte, 64)
	n1, err := io.ReadFull(resp.Body, start)
	if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
		return int64(n1), string(start[:n1]), nil
	}
	n2, err2 := io.Copy(io.Discard, resp.Body)
	return int64(n1) + n2, string(start[:n1]), errors.Join(err, err2)
}

// inTunnel waits until the site sees an address of the server.
func (p *pipe) inTunnel(b *testing.B) {
	b.Helper()
	var seen string
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		ctx, cancel := context.WithTimeout(deadline(b), 2*time.Second)
		_, head, err := p.fetch(ctx, "GET", "", nil)
		cancel()
		p.web.CloseIdleConnections() // the next try must not use a connection beside the tunnel
		seen, _, _ = strings.Cut(strings.TrimPrefix(head, "address: "), "\n")
		a, bad := netip.ParseAddr(seen)
		if err == nil && bad == nil && slices.ContainsFunc(p.server.Addresses, func(d lab.Dual) bool { return d.V4 == a }) {
			return
		}
	}
	b.Fatalf("%s: the site sees %q, want an address of the server", p.name, seen)
}

// download and upload move volume bytes.
func (p *pipe) download(ctx context.Context) error {
	n, _, err := p.fetch(ctx, "GET", fmt.Sprintf("bytes/%d", volume), nil)
	if err == nil && n != volume {
		err = fmt.Errorf("got %d bytes, want %d", n, volume)
	}
	return err
}

func (p *pipe) upload(ctx context.Context) error {
	_, head, err := p.fetch(ctx, "POST", "sink", io.LimitReader(zeros{}, volume))
	if want := fmt.Sprintf("received: %d\n", volume); err == nil && head != want {
		err = fmt.Errorf("got %q, want %q", head, want)
	}
	return err
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil } // what http hands in is as good as zeros

// measure times a transfer and what the server's processes work for it.
func (p *pipe) measure(b *testing.B, move func(*pipe, context.Context) error) {
	b.Helper()
	worked, begun := p.work(b), time.Now()
	if err := move(p, deadline(b)); err != nil {
		b.Fatalf("%s: %v", p.name, err)
	}
	p.took, p.cpu = append(p.took, time.Since(begun)), append(p.cpu, p.work(b)-worked)
}

// work is the processor time of the processes on the server, the kernel's work for them included.
func (p *pipe) work(b *testing.B) (sum time.Duration) {
	b.Helper()
	pids, err := p.server.PIDs()
	if err != nil {
		b.Fatal(err)
	}
	for _, pid := range pids {
		threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
		for _, path := range threads {
			var ran time.Duration                                            // in nanoseconds, see Documentation/scheduler/sched-stats.rst in Linux
			if text, err := os.ReadFile(path); err == nil && len(text) > 0 { // else it has ended
				if _, err := fmt.Sscan(string(text), &ran); err != nil {
					b.Fatal(err)
				}
			}
			sum += ran
		}
	}
	return sum
}

func median[T int64 | float64 | time.Duration](list []T) T {
	list = slices.Sorted(slices.Values(list))
	return list[len(list)/2]
}

// throughput is Mbit/s of content, the median.
func (p *pipe) throughput() float64 { return volume * 8 / 1e6 / median(p.took).Seconds() }

// BenchmarkThroughput moves one TCP stream through the whole product (app with its network lock,
// OpenVPN over UDP with AES-256-GCM, the server's firewall with its counters, NAT, web site) and
// through bare OpenVPN in a network of the same form: two configurations that openvpn(8)'s own
// examples would give, the same ciphers and MTU, one masquerade rule. The two take turns, so
// that a busy machine does the same to both. The figures are medians.
func BenchmarkThroughput(b *testing.B) {
	one := func(o *lab.Options) { o.Locations = lab.Places()[:1] }
	ours := newLab(b, one, func(o *lab.Options) { o.Spec = `{"poll_seconds": 10, "usage_seconds": 2}` })
	c := newCustomer(b, ours, 0)
	c.connect("--protocol", "openvpn", "--transport", "udp")
	peer := newLab(b, one, func(o *lab.Options) { o.Bare = true })
	closeOnInterrupt(b, ours, peer)
	startBare(b, peer)
	pipes := []*pipe{newPipe(b, "lethe", ours), newPipe(b, "bare", peer)}
	for _, p := range pipes {
		p.inTunnel(b)
	}
	moved := map[string]uint64{}
	for _, way := range []struct {
		name string
		move func(*pipe, context.Context) error
	}{{"download", (*pipe).download}, {"upload", (*pipe).upload}} {
		b.Run(way.name, func(b *testing.B) {
			for _, p := range pipes {
				p.took, p.cpu = nil, nil
			}
			var ratios []float64
			for i := 0; b.Loop(); i++ {
				first, second := pipes[i%2], pipes[1-i%2]
				first.measure(b, way.move)
				second.measure(b, way.move)
				moved[way.name] += volume / 1e6
				ratios = append(ratios, pipes[1].took[i].Seconds()/pipes[0].took[i].Seconds())
			}
			for _, p := range pipes {
				b.ReportMetric(p.throughput(), p.name+"-Mbit/s")
				b.ReportMetric(median(p.cpu).Seconds()/volume*1e9, p.name+"-server-cpu-s/GB")
			}
			b.ReportMetric(median(ratios), "ratio")
			b.ReportMetric(0, "ns/op")
		})
	}
	// What was not counted would not have been the product.
	c.must("", "disconnect")
	usage(b, ours, c.email, func(rows []usageRow) bool {
		return len(rows) == 1 && rows[0].In >= moved["download"] && rows[0].Out >= moved["upload"]
	})
}

// closeOnInterrupt removes labs when a person has seen enough, until it is told to leave them.
func closeOnInterrupt(b *testing.B, labs ...*lab.Lab) (leave func()) {
	stop, done := make(chan os.Signal, 1), make(chan struct{})
	signal.Notify(stop, os.Interrupt, unix.SIGTERM)
	leave = sync.OnceFunc(func() { signal.Stop(stop); close(done) })
	b.Cleanup(leave)
	go func() {
		select {
		case <-done:
		case <-stop:
			for _, l := range labs {
				_ = l.Close()
				_ = os.RemoveAll(filepath.Join(l.Internet().Dir, "../../..")) // made by newLab
			}
			_ = os.RemoveAll(filepath.Dir(programs))
			os.Exit(130)
		}
	}()
	return leave
}

// bareConfigs returns configurations of bare OpenVPN, that of its customer for an address of the
// server.
func bareConfigs(b *testing.B) (server string, customer func(netip.Addr) string) {
	b.Helper()
	ca, err := pki.NewAuthority("bare CA")
	if err != nil {
		b.Fatal(err)
	}
	key := pki.NewTLSCrypt()
	common := func(name string, use x509.ExtKeyUsage) string {
		pair, err := ca.Issue(name, use, []string{name})
		if err != nil {
			b.Fatal(err)
		}
		return "dev tun\ntun-mtu 1500\nverb 1\ntls-version-min 1.3\ndata-ciphers AES-256-GCM\n" +
			fmt.Sprintf("<ca>\n%s</ca>\n<cert>\n%s</cert>\n<key>\n%s</key>\n<tls-crypt>\n%s</tls-crypt>\n", ca.PEM, pair.Certificate, pair.Key, key)
	}
	client := common("customer", x509.ExtKeyUsageClientAuth)
	return "port 1194\nproto udp\ntopology subnet\nserver 10.8.0.0 255.255.0.0\ndh none\nkeepalive 10 60\n" +
			"push \"redirect-gateway def1\"\npersist-tun\n" + common("server", x509.ExtKeyUsageServerAuth),
		func(at netip.Addr) string {
			return "client\nproto udp\nnobind\npersist-tun\nremote-cert-tls server\nremote " + at.String() + " 1194\n" + client
		}
}

// masquerade is the NAT of a bare server.
const masquerade = "table ip nat { chain postrouting { type nat hook postrouting priority srcnat; oifname \"%s\" masquerade; }; }\n"

// startBare starts OpenVPN on the server and on the customer of a bare lab.
func startBare(b *testing.B, l *lab.Lab) {
	b.Helper()
	server, customer := l.Server(0), l.Customer(0)
	serves, dials := bareConfigs(b)
	runOpenVPN(b, l, server, serves)
	runOpenVPN(b, l, customer, dials(server.Addresses[0].V4))
	nft := server.Command(deadline(b), "nft", "-f", "-")
	nft.Stdin = strings.NewReader(fmt.Sprintf(masquerade, lab.Uplink))
	if _, err := nft.Output(); err != nil {
		b.Fatal(err)
	}
}

// runOpenVPN starts OpenVPN on a machine.
func runOpenVPN(b *testing.B, l *lab.Lab, m *lab.Machine, config string) {
	b.Helper()
	path := m.Data("openvpn.conf")
	err := os.WriteFile(path, []byte(config), 0o600)
	if err == nil {
		err = l.Start(deadline(b), lab.Unit{Name: "openvpn-" + m.Name, Machine: m, Args: []string{"openvpn", "--config", path}})
	}
	if err != nil {
		b.Fatal(err)
	}
}
