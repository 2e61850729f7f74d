package activation_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"lethe/activation"
	"lethe/event"
	"lethe/version"
)

// port is a server on a port of the loopback interface.
type port struct {
	*activation.Server
	t    testing.TB
	addr string
	log  *event.Logger
	said *bytes.Buffer // of the log
}

// start serves until the end of the test, with a report of lethe-seal unless it is empty.
func start(t testing.TB, sealed string) *port {
	t.Helper()
	dir, said := t.TempDir(), &bytes.Buffer{}
	if sealed != "" {
		if err := os.WriteFile(filepath.Join(dir, "sealed.json"), []byte(sealed), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	log := event.New(said)
	s, err := activation.New(filepath.Join(dir, "none"), filepath.Join(dir, "sealed.json"), log)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("told to end: %v", err)
		}
		if said.Len() > 0 {
			t.Errorf("the log says %q", said)
		}
	})
	return &port{Server: s, t: t, addr: l.Addr().String(), log: log, said: said}
}

// trusting takes any certificate, as a prober does.
func trusting() *tls.Config { return &tls.Config{InsecureSkipVerify: true} }

// dial connects by TLS.
func (p *port) dial() *tls.Conn {
	p.t.Helper()
	c, err := tls.Dial("tcp", p.addr, trusting())
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { c.Close() })
	return c
}

// say sends text over TLS and returns all that comes back.
func (p *port) say(text string) string {
	p.t.Helper()
	c := p.dial()
	_, _ = io.WriteString(c, text) // the server may have had enough before the end
	b, _ := io.ReadAll(c)
	return string(b)
}

// state asks as a well-behaved peer does.
func (p *port) state() (activation.State, string) {
	p.t.Helper()
	hc := http.Client{Transport: &http.Transport{TLSClientConfig: trusting(), DisableKeepAlives: true}}
	resp, err := hc.Get("https://" + p.addr + "/v1/state")
	if err != nil {
		p.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		p.t.Fatalf("%s, %v", resp.Status, err)
	}
	var s activation.State
	if err := json.Unmarshal(b, &s); err != nil {
		p.t.Fatal(err)
	}
	return s, string(b)
}

func TestState(t *testing.T) {
	p := start(t, `{"swap": false, "modules": {"closed": true}}`)
	s, text := p.state()
	if s.Phase != activation.Awaiting || s.Release.Version != version.Number || s.Release.Lab != version.Lab || s.Release.Flavour != "" {
		t.Errorf("got %s", text)
	}
	if string(s.Sealed) != `{"swap":false,"modules":{"closed":true}}` {
		t.Errorf("the report of lethe-seal came as %s", s.Sealed)
	}
	if !p.Activate() || p.Activate() {
		t.Error("want one activation, and only one")
	}
	if s, text := p.state(); s.Phase != activation.Active || s.Drivers != nil || strings.Contains(text, "drivers") {
		t.Errorf("active: %s", text)
	}
	if _, text := start(t, "").state(); strings.Contains(text, "sealed") {
		t.Errorf("without a report: %s", text)
	}
}

// TestAnswers sends what nobody should, and holds every byte that comes back
// against what may: a status line, and of the answer only its length.
func TestAnswers(t *testing.T) {
	p := start(t, "")
	const end = "\r\nHost: x\r\n\r\n"
	for in, want := range map[string]string{
		"GET /" + " HTTP/1.1" + end:                                                        "404 Not Found\r\nContent-Length: 0",
		"GET /v1/state/ HTTP/1.1" + end:                                                    "404 Not Found\r\nContent-Length: 0",
		"GET /v1/state?x HTTP/1.1" + end:                                                   "404 Not Found\r\nContent-Length: 0",
		"GET //v1/state HTTP/1.1" + end:                                                    "404 Not Found\r\nContent-Length: 0",
		"GET /v1/%73tate HTTP/1.1" + end:                                                   "404 Not Found\r\nContent-Length: 0",
		"GET http://x/v1/state HTTP/1.1" + end:                                             "404 Not Found\r\nContent-Length: 0",
		"OPTIONS * HTTP/1.1" + end:                                                         "404 Not Found\r\nContent-Length: 0",
		"CONNECT 127.0.0.1:22 HTTP/1.1" + end:                                              "404 Not Found\r\nContent-Length: 0",
		"HEAD /v1/state HTTP/1.1" + end:                                                    "405 Method Not Allowed\r\nAllow: GET",
		"POST /v1/state HTTP/1.1\r\nContent-Length: 2" + end + "{}":                        "405 Method Not Allowed\r\nAllow: GET\r\nContent-Length: 0",
		"TRACE /v1/state HTTP/1.1" + end:                                                   "405 Method Not Allowed\r\nAllow: GET\r\nContent-Length: 0",
		"GET /v1/state HTTP/1.1\r\nContent-Length: 2" + end + "{}":                         "400 Bad Request\r\nContent-Length: 0",
		"GET /v1/state HTTP/1.1\r\nTransfer-Encoding: chunked" + end + "0\r\n\r\n":         "400 Bad Request\r\nContent-Length: 0",
		"GET /v1/state HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2" + end:           "400 Bad Request",
		"GET /v1/state HTTP/1.1\r\n\r\n":                                                   "400 Bad Request",
		"GET /v1/state HTTP/9.9" + end:                                                     "505 HTTP Version Not Supported",
		"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n":                                                 "404 Not Found\r\nContent-Length: 0",
		"\x00\x01\x02\x03\r\n\r\n":                                                         "400 Bad Request",
		"GET /v1/state HTTP/1.1\r\nX: " + strings.Repeat("a", 16<<10) + end:                "431 Request Header Fields Too Large",
		"GET /v1/state HTTP/1.1\r\n" + strings.Repeat("X: a\r\n", 4<<10) + "Host: x" + end: "431 Request Header Fields Too Large",
		"GET /" + strings.Repeat("a", 16<<10) + " HTTP/1.1" + end:                          "431 Request Header Fields Too Large",
	} {
		name := in
		if len(name) > 40 {
			name = name[:40]
		}
		got := p.say(in)
		status, ok := strings.CutPrefix(got, "HTTP/1.1 ")
		if !ok || !strings.HasPrefix(status, want) {
			t.Errorf("%q: got %.200q, want %q", name, got, want)
		}
		for _, word := range []string{"Go", "Date", "Server", "Set-Cookie", version.Number, "state"} {
			if strings.Contains(got, word) {
				t.Errorf("%q: the answer has %q: %.200q", name, word, got)
			}
		}
	}
	// One request for each connection, and nothing of the first in what follows it.
	got := p.say("GET /v1/state HTTP/1.1" + end + "GET /v1/state HTTP/1.1" + end)
	if strings.Count(got, "HTTP/1.1") != 1 || !strings.Contains(got, "Connection: close") || !strings.Contains(got, `{"state":"awaiting-activation"`) {
		t.Errorf("two requests at once: %q", got)
	}
}

// TestTLS: nothing older than TLS 1.3, nothing in the clear, a key of this instance and
// a certificate that says nothing.
func TestTLS(t *testing.T) {
	p := start(t, "")
	old := trusting()
	old.MaxVersion = tls.VersionTLS12
	if c, err := tls.Dial("tcp", p.addr, old); err == nil {
		c.Close()
		t.Error("TLS 1.2 is spoken")
	} else if !strings.Contains(err.Error(), "protocol version") {
		t.Errorf("TLS 1.2: %v", err)
	}
	h2 := trusting()
	h2.NextProtos = []string{"h2"}
	if c, err := tls.Dial("tcp", p.addr, h2); err == nil {
		c.Close()
		t.Error("HTTP/2 is spoken")
	}
	for _, garbage := range []string{"GET /v1/state HTTP/1.1\r\nHost: x\r\n\r\n", strings.Repeat("\x00", 1000), "\x16\x03\x01\xff\xff" + strings.Repeat("x", 100)} {
		c, err := net.Dial("tcp", p.addr)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(c, garbage)
		_ = c.(*net.TCPConn).CloseWrite()
		b, _ := io.ReadAll(c)
		c.Close()
		if len(b) > 0 && (len(b) != 7 || b[0] != 21) { // a TLS alert (RFC 8446, section 6)
			t.Errorf("%.20q in the clear is answered with %q", garbage, b)
		}
	}
	c := p.dial()
	state := c.ConnectionState()
	cert := state.PeerCertificates[0]
	if state.Version != tls.VersionTLS13 || state.DidResume {
		t.Errorf("version %x, resumed %t", state.Version, state.DidResume)
	}
	if err := cert.CheckSignature(cert.SignatureAlgorithm, cert.RawTBSCertificate, cert.Signature); err != nil {
		t.Error(err)
	}
	if cert.Subject.String() != "CN=lethe" || len(cert.DNSNames)+len(cert.IPAddresses) > 0 || cert.SerialNumber.Int64() != 1 ||
		cert.NotBefore.Year() != 2020 || cert.NotAfter.Year() != 9999 {
		t.Errorf("the certificate says %v, %v, %v to %v", cert.Subject, cert.SerialNumber, cert.NotBefore, cert.NotAfter)
	}
	same, other := p.dial().ConnectionState().PeerCertificates[0], start(t, "").dial().ConnectionState().PeerCertificates[0]
	if !same.Equal(cert) {
		t.Error("the key changes while the server runs")
	}
	if bytes.Equal(other.RawSubjectPublicKeyInfo, cert.RawSubjectPublicKeyInfo) {
		t.Error("two instances have one key")
	}
	if _, err := cert.Verify(x509.VerifyOptions{Roots: x509.NewCertPool()}); err == nil {
		t.Error("somebody vouches for the key")
	}
}

// TestFlood holds connections open, more than there may be of one source and of all: the oldest end, and whoever
// asks is answered at once.
func TestFlood(t *testing.T) {
	for name, c := range map[string]struct{ sources, stay int }{
		"one source":   {1, activation.SlotsEach},
		"many sources": {20, activation.Slots},
	} {
		t.Run(name, func(t *testing.T) { flood(t, c.sources, c.stay) })
	}
}

func flood(t *testing.T, sources, stay int) {
	p := start(t, "")
	open := make([]net.Conn, activation.Slots+3*activation.SlotsEach)
	closed := make(chan int, len(open))
	var wg sync.WaitGroup
	defer wg.Wait()
	defer func() {
		for _, c := range open {
			if c != nil {
				c.Close()
			}
		}
	}()
	for i := range open {
		from := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 1, byte(1+i%sources))}}
		c, err := from.Dial("tcp", p.addr)
		if err != nil {
			t.Fatal(err)
		}
		open[i] = c
		if i%2 == 0 { // half of them begin a handshake
			_, _ = io.WriteString(c, "\x16\x03\x01")
		}
		wg.Go(func() {
			_, _ = c.Read(make([]byte, 1))
			closed <- i
		})
	}
	ended := map[int]bool{}
	for range len(open) - stay {
		ended[<-closed] = true
	}
	for i := range len(open) - stay {
		if !ended[i] {
			t.Errorf("connection %d of %d still lives", i, len(open))
		}
	}
	if s, _ := p.state(); s.Phase != activation.Awaiting {
		t.Errorf("got %+v", s)
	}
}

func TestNewRefuses(t *testing.T) {
	dir := t.TempDir()
	for name, content := range map[string]string{"no JSON": "sealed", "empty": "", "too much": `"` + strings.Repeat("x", 1<<16) + `"`} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := activation.New("", path, nil); err == nil || !strings.Contains(err.Error(), "lethe-seal") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := activation.New("", dir, nil); err == nil {
		t.Error("a directory was read")
	}
}

func TestRelease(t *testing.T) {
	dir := t.TempDir()
	commit := strings.Repeat("0123456789", 4)
	for name, c := range map[string]struct{ text, commit, flavour string }{
		"image":     {"ID=lethe\nBUILD_ID=" + commit + "\nVARIANT_ID=vm\n", commit, "vm"},
		"quoted":    {"ID='lethe'\nBUILD_ID=\"" + commit + "\"\nVARIANT_ID=\"hardware-lab\"\n", commit, "hardware-lab"},
		"another":   {"ID=debian\nBUILD_ID=" + commit + "\nVARIANT_ID=vm\n", "", ""},
		"odd words": {"ID=lethe\nBUILD_ID=../../x\nVARIANT_ID=\"a b\"\n", "", ""},
		"none":      {"", "", ""},
	} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(c.text), 0o644); err != nil {
			t.Fatal(err)
		}
		s, err := activation.New(path, filepath.Join(dir, "no report"), nil)
		if err != nil {
			t.Fatal(err)
		}
		if c.commit == "" {
			c.commit = version.Commit()
		}
		want := activation.Release{Version: version.Number, Commit: c.commit, Flavour: c.flavour, Lab: version.Lab}
		if got := s.State().Release; got != want {
			t.Errorf("%s: got %+v, want %+v", name, got, want)
		}
	}
}

func TestListen(t *testing.T) {
	l, err := activation.Listen(0)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	at := netip.MustParseAddrPort(l.Addr().String())
	if !at.Addr().IsUnspecified() {
		t.Errorf("listens on %v", at)
	}
	if _, err := activation.Listen(at.Port()); err == nil {
		t.Error("listens twice")
	}
	s, err := activation.New("", filepath.Join(t.TempDir(), "none"), nil)
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	if err := s.Serve(t.Context(), l); err == nil || !errors.Is(err, net.ErrClosed) {
		t.Errorf("a closed listener: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Wait(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

// TestSlow says little, slowly, and then reads nothing: the connection ends all the same, in its time.
func TestSlow(t *testing.T) {
	if testing.Short() {
		t.Skip("it waits for a connection's whole life")
	}
	p := start(t, "")
	began := time.Now()
	var wg sync.WaitGroup
	for name, drip := range map[string]func(*tls.Conn){
		"nothing": func(*tls.Conn) {},
		"head":    func(c *tls.Conn) { _, _ = io.WriteString(c, "GET /v1/state HTTP/1.1\r\n") },
		"body": func(c *tls.Conn) {
			_, _ = io.WriteString(c, "GET /v1/state HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n")
		},
		"dripping": func(c *tls.Conn) { drip(c, "GET /v1/state HTTP/1.1\r\nX: ") },
	} {
		c := p.dial()
		wg.Go(func() {
			drip(c)
			_ = c.SetReadDeadline(began.Add(time.Minute))
			_, err := io.ReadAll(c)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("%s: the connection lives after %v", name, time.Since(began))
			}
		})
	}
	raw, err := net.Dial("tcp", p.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	_ = raw.SetReadDeadline(began.Add(time.Minute))
	if _, err := raw.Read(make([]byte, 1)); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("a handshake that never begins does not end")
	}
	wg.Wait()
	t.Logf("all ended after %v", time.Since(began).Round(100*time.Millisecond))
}

// drip writes a byte at a time until the connection ends.
func drip(c *tls.Conn, text string) {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for i := 0; ; i++ {
		b := byte('x')
		if i < len(text) {
			b = text[i]
		}
		if _, err := c.Write([]byte{b}); err != nil {
			return
		}
		<-tick.C
	}
}

func ExampleState() {
	b, _ := json.Marshal(activation.State{Phase: activation.Awaiting, Release: activation.Release{Version: "0.1.0", Flavour: "vm"}})
	fmt.Println(string(b))
	// Output: {"state":"awaiting-activation","release":{"version":"0.1.0","flavour":"vm"}}
}
