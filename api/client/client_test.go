package client_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"mime"
	"net"
	"net/http"
	"net/netip"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"lethe/account"
	"lethe/api"
	"lethe/api/client"
	"lethe/fault"
	"lethe/lab/pki"
	"lethe/location"
	"lethe/private"
	"lethe/protocol"
	"lethe/slot"
	"lethe/slot/memory"
)

// provider implements what the API stands on for one customer.
type provider struct {
	mu    sync.Mutex
	token string
	app   account.App
	fail  error
	n     int
	d     location.Directory
}

func (p *provider) SignUp(_ context.Context, email string, _ private.Value[string]) error {
	if email == "ada@example.org" {
		return fault.New(fault.Conflict, "there is an account with this e-mail address").WithHint("log in instead")
	}
	return p.fail
}

func (p *provider) Login(_ context.Context, email string, password private.Value[string], app account.App) (account.Token, error) {
	if email != "ada@example.org" || password.Reveal() != "correct horse" {
		return account.Token{}, fault.New(fault.Unauthenticated, "the e-mail address or the password is wrong")
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.token, p.app = "a-token", app
	return private.Of(p.token), p.fail
}

func (p *provider) Logout(ctx context.Context, t account.Token) error {
	_, err := p.Authenticate(ctx, t)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.token = ""
	return err
}

func (p *provider) Authenticate(_ context.Context, t account.Token) (account.ID, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.token == "" || t.Reveal() != p.token {
		return "", fault.New(fault.Unauthenticated, "the token is unknown or has ended").WithHint("log in again")
	}
	return "ada", p.fail
}

func (p *provider) Licence(context.Context, account.ID) (account.Licence, error) {
	return account.Licence{Plan: "standard", Devices: 5, PaidUntil: 22000, Disabled: true}, nil
}

func (p *provider) Credential(context.Context, account.ID) (account.Credential, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return account.Credential{Username: private.Of(fmt.Sprint("user", p.n)), Password: private.Of("vpn")}, nil
}

func (p *provider) ReplaceCredential(ctx context.Context, id account.ID) (account.Credential, error) {
	p.mu.Lock()
	p.n++
	p.mu.Unlock()
	return p.Credential(ctx, id)
}

func (p *provider) Directory(context.Context) (location.Directory, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.d, nil
}

// Account is what slots ask: one device may be connected.
func (*provider) Account(context.Context, account.ID) (account.Record, error) {
	return account.Record{Licence: account.Licence{Plan: "standard", Devices: 1, PaidUntil: 30000}}, nil
}

func (*provider) Allow(string, netip.Addr) bool { return true }

func places() location.Directory {
	return location.Directory{
		Locations: []location.Location{{ID: 1, Code: "nl-ams", Country: "NL", City: "Amsterdam"}},
		Servers: []location.Server{{
			ID: "nl-ams-1", Location: 1, Addresses: []netip.Addr{netip.MustParseAddr("198.51.100.21")},
			Endpoints: []location.Endpoint{{Protocol: protocol.OpenVPNUDP, Port: 1194}}, CA: vpnCA(), Enabled: true,
			TLSCrypt: tlsCrypt,
		}},
	}
}

var tlsCrypt = pki.NewTLSCrypt()

// vpnCA is the certificate that signs VPN servers', in PEM form.
var vpnCA = sync.OnceValue(func() string {
	ca, err := pki.NewAuthority("VPN")
	if err != nil {
		panic(err)
	}
	return ca.PEM
})

func certificate(t testing.TB, ends time.Time) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "control"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: ends, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pool
}

// dialTo returns a client of a server with that handler, and a function that
// changes its configuration before the client is made.
func dialTo(t testing.TB, h http.Handler, change ...func(*client.Config)) *client.Client {
	t.Helper()
	cert, pool := certificate(t, time.Now().Add(time.Hour))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := api.Server(h, api.AppTLS(cert), nil)
	done := make(chan error, 1)
	go func() { done <- srv.ServeTLS(l, "", "") }()
	conf := client.Config{URL: "https://" + l.Addr().String() + "/", TLS: &tls.Config{RootCAs: pool, InsecureSkipVerify: true}, Timeout: 5 * time.Second}
	for _, c := range change {
		c(&conf)
	}
	c, err := client.New(conf)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.Close()
		if err := srv.Close(); err != nil {
			t.Error(err)
		}
		<-done
	})
	return c
}

// want checks the kind and the text of err.
func want(t *testing.T, err error, kind fault.Kind, text string) {
	t.Helper()
	if err == nil || fault.Of(err) != kind || !strings.Contains(err.Error(), text) {
		t.Errorf("got %v (%s), want %s: %s", err, fault.Of(err), kind, text)
	}
}

// TestAgainstTheService calls every method against the real API.
func TestAgainstTheService(t *testing.T) {
	ctx := t.Context()
	p := &provider{d: places()}
	c := dialTo(t, api.NewApp(api.AppDeps{Accounts: p, Directory: p, Limiter: p}, nil))
	password := private.Of("correct horse")
	if err := c.Health(ctx); err != nil {
		t.Fatal(err)
	}
	if err := c.SignUp(ctx, "new@example.org", password); err != nil {
		t.Error(err)
	}
	err := c.SignUp(ctx, "ada@example.org", password)
	want(t, err, fault.Conflict, "there is an account")
	var f *fault.Error
	if !errors.As(err, &f) || f.Hint != "log in instead" {
		t.Errorf("the hint is %q", f.Hint)
	}
	want(t, c.SignUp(ctx, "ada", private.Of("hunter2")), fault.Invalid, "body.password: expected length >= 10")
	_, err = c.Login(ctx, "ada@example.org", private.Of("hunter2"), account.App{OS: "linux", Version: "0.1.0"})
	want(t, err, fault.Unauthenticated, "is wrong")
	_, err = c.Login(ctx, "ada@example.org", password, account.App{OS: "plan9", Version: "0.1.0"})
	want(t, err, fault.Invalid, "body.app.os")
	token, err := c.Login(ctx, "ada@example.org", password, account.App{OS: "linux", Version: "0.1.0"})
	if err != nil || token.Reveal() != "a-token" || p.app != (account.App{OS: "linux", Version: "0.1.0"}) {
		t.Fatalf("%v, app %+v", err, p.app)
	}
	if l, err := c.Licence(ctx, token); err != nil || l != (account.Licence{Plan: "standard", Devices: 5, PaidUntil: 22000, Disabled: true}) {
		t.Errorf("%+v, %v", l, err)
	}
	if cr, err := c.Credential(ctx, token); err != nil || cr.Username.Reveal() != "user0" || cr.Password.Reveal() != "vpn" {
		t.Errorf("%v", err)
	}
	if cr, err := c.ReplaceCredential(ctx, token); err != nil || cr.Username.Reveal() != "user1" {
		t.Errorf("%v", err)
	}
	d, tag, changed, err := c.Directory(ctx, token, "")
	if err != nil || !changed || tag == "" || !reflect.DeepEqual(d, places()) {
		t.Errorf("%+v %q %v %v", d, tag, changed, err)
	}
	if d, again, changed, err := c.Directory(ctx, token, tag); err != nil || changed || again != tag || d.Servers != nil {
		t.Errorf("%+v %q %v %v", d, again, changed, err)
	}
	file, err := c.Profile(ctx, token, "nl-ams", "ovpn")
	if err != nil || file.Name != "nl-ams-1.ovpn" || file.MediaType != "application/x-openvpn-profile" || !strings.HasPrefix(string(file.Text), "client\n") {
		t.Errorf("%+v, %v", file, err)
	}
	_, err = c.Profile(ctx, token, "nl-ams", "sswan")
	if want(t, err, fault.NotFound, "by this format"); !errors.As(err, &f) || f.Hint != "formats there: ovpn" {
		t.Errorf("the hint is %q", f.Hint)
	}
	_, err = c.Profile(ctx, token, "../x", "?")
	want(t, err, fault.NotFound, "nothing at this path")
	p.mu.Lock()
	p.d = location.Directory{Servers: places().Servers}
	p.mu.Unlock()
	_, _, _, err = c.Directory(ctx, token, tag)
	want(t, err, fault.Untrusted, "makes no sense")
	if err := c.Logout(ctx, token); err != nil {
		t.Error(err)
	}
	want(t, c.Logout(ctx, token), fault.Unauthenticated, "has ended")
	_, _, _, err = c.Directory(ctx, token, "")
	want(t, err, fault.Unauthenticated, "has ended")
	_, err = c.Licence(ctx, private.Of("line\nfeed"))
	want(t, err, fault.Unavailable, "cannot be reached")
	if strings.Contains(err.Error(), "feed") {
		t.Error("the token stands in the error")
	}
	for _, k := range fault.Kinds() {
		p.fail = fault.New(k, "text of the service").WithHint("hint")
		err := c.SignUp(ctx, "new@example.org", password)
		if text := map[bool]string{true: "the service has failed", false: "text of the service"}[k == fault.Internal]; fault.Of(err) != k || err.Error() != text {
			t.Errorf("%s came as %s: %v", k, fault.Of(err), err)
		}
	}
}

// TestStrangeServices lets something else answer.
func TestStrangeServices(t *testing.T) {
	ctx := t.Context()
	for name, c := range map[string]struct {
		answer http.HandlerFunc
		text   string
		kind   fault.Kind
	}{
		"redirect": {func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "https://example.org/", http.StatusFound)
		}, "neither", fault.Unavailable},
		"portal": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/html")
			w.WriteHeader(511)
		}, "neither", fault.Unavailable},
		"page":         {answer(200, "text/html", "<html>"), "not JSON", fault.Unavailable},
		"half":         {answer(200, "application/json", `{"token":"a`), "not as agreed", fault.Unavailable},
		"other type":   {answer(200, "application/json", `{"token":1,"plan":1,"username":1,"locations":1}`), "not as agreed", fault.Unavailable},
		"endless":      {answer(200, "application/json", strings.Repeat(" ", 33<<20)), "too long", fault.Unavailable},
		"unasked 304":  {answer(304, "", ""), "neither", fault.Unavailable},
		"no detail":    {answer(403, "application/problem+json", `{"kind":"denied"}`), "neither", fault.Unavailable},
		"unknown kind": {answer(400, "application/problem+json", `{"kind":"odd","detail":"text"}`), "text", fault.Internal},
		"escape":       {answer(403, "application/problem+json", `{"kind":"denied","detail":"\u001b[31mred\u202e\u0000\ufffd","hint":"\u001b]0;x\u0007"}`), "[31mred", fault.Denied},
		"long":         {answer(403, "application/problem+json", `{"kind":"denied","detail":"`+strings.Repeat("é", 1000)+`"}`), "é…", fault.Denied},
		"many fields":  {answer(422, "application/problem+json", `{"kind":"invalid","detail":"x","fields":[`+strings.Repeat(`{"name":"field","message":"message"},`, 999)+`{}]}`), "field: message", fault.Invalid},
		"hangs up":     {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, "cannot be reached", fault.Unavailable},
	} {
		t.Run(name, func(t *testing.T) {
			cl := dialTo(t, c.answer)
			token := private.Of("secret-token")
			_, errLogin := cl.Login(ctx, "ada@example.org", private.Of("secret-password"), account.App{})
			_, errLicence := cl.Licence(ctx, token)
			_, errCredential := cl.Credential(ctx, token)
			_, _, _, errDirectory := cl.Directory(ctx, token, "")
			for _, err := range []error{errLogin, errLicence, errCredential, errDirectory} {
				want(t, err, c.kind, c.text)
				var f *fault.Error
				if !errors.As(err, &f) || strings.ContainsAny(f.Text+f.Hint, "\x1b\x00\x07\u202e\ufffd") || len(f.Text) > 1300 || strings.Contains(f.Text, "secret") {
					t.Errorf("the text is %q", err)
				}
			}
		})
	}
	empty := dialTo(t, answer(200, "application/json", "{}"))
	_, err := empty.Login(ctx, "a", private.Of("b"), account.App{})
	want(t, err, fault.Unavailable, "without a token")
	_, err = empty.Credential(ctx, private.Of("t"))
	want(t, err, fault.Unavailable, "without a credential")
	_, err = empty.Profile(ctx, private.Of("t"), "nl-ams", "ovpn")
	want(t, err, fault.Unavailable, "not a file")
	for _, name := range []string{"../x.ovpn", "x", ".ovpn", "X.ovpn", "x y.ovpn", "/etc/x.conf", "x.ovpn\x1b"} {
		odd := dialTo(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Disposition", mime.FormatMediaType("attachment", map[string]string{"filename": name}))
			answer(200, "text/plain", "x")(w, r)
		}))
		_, err = odd.Profile(ctx, private.Of("t"), "nl-ams", "ovpn")
		want(t, err, fault.Unavailable, "not a file")
	}
	newer := dialTo(t, answer(200, "application/json", `{"plan":"gold","devices":1,"paid_until":"2030-01-01","disabled":false,"new_field":1}`))
	if l, err := newer.Licence(ctx, private.Of("t")); err != nil || l.Plan != "gold" {
		t.Errorf("a newer service: %+v, %v", l, err)
	}
}

func answer(status int, kind, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", kind)
		w.WriteHeader(status)
		_, _ = w.Write([]byte(body)) // the client may have heard enough
	}
}

// TestRepeats: a GET is sent once more when the connection fails, a POST never.
func TestRepeats(t *testing.T) {
	var calls atomic.Int64
	flaky := func(w http.ResponseWriter, r *http.Request) {
		if calls.Add(1) == 1 {
			panic(http.ErrAbortHandler)
		}
		answer(200, "application/json", `{"status":"ok","username":"u","password":"p"}`)(w, r)
	}
	c := dialTo(t, http.HandlerFunc(flaky))
	if err := c.Health(t.Context()); err != nil || calls.Load() != 2 {
		t.Errorf("%v after %d calls", err, calls.Load())
	}
	calls.Store(0)
	_, err := c.ReplaceCredential(t.Context(), private.Of("t"))
	want(t, err, fault.Unavailable, "cannot be reached")
	if calls.Load() != 1 {
		t.Errorf("a POST was sent %d times", calls.Load())
	}
}

func TestDeadlines(t *testing.T) {
	hang := http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		<-r.Context().Done()
		panic(http.ErrAbortHandler) // returning would answer 200, which can still arrive
	})
	c := dialTo(t, hang, func(c *client.Config) { c.Timeout = 100 * time.Millisecond })
	start := time.Now()
	want(t, c.Health(t.Context()), fault.Unavailable, "in time")
	if took := time.Since(start); took > 3*time.Second {
		t.Errorf("took %v", took)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	want(t, c.Health(ctx), fault.Unavailable, "interrupted")
}

func TestConnections(t *testing.T) {
	h := answer(200, "application/json", `{"status":"ok"}`)
	var dialled atomic.Int64
	c := dialTo(t, h, func(c *client.Config) {
		c.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
			dialled.Add(1)
			return (&net.Dialer{}).DialContext(ctx, network, address)
		}
	})
	if err := c.Health(t.Context()); err != nil || dialled.Load() != 1 {
		t.Errorf("%v after %d dials", err, dialled.Load())
	}
	refuse := errors.New("dial tcp 203.0.113.7: refused")
	c = dialTo(t, h, func(c *client.Config) {
		c.Dial = func(context.Context, string, string) (net.Conn, error) { return nil, refuse }
	})
	err := c.Health(t.Context())
	want(t, err, fault.Unavailable, "cannot be reached")
	if !errors.Is(err, refuse) || strings.Contains(err.Error(), "203.0.113.7") {
		t.Errorf("the cause is lost or told: %v", err)
	}
	// A foreign certificate, although the configuration asks for no check; and the system's roots.
	for _, conf := range []*tls.Config{{RootCAs: x509.NewCertPool(), InsecureSkipVerify: true}, nil} {
		c = dialTo(t, h, func(c *client.Config) { c.TLS = conf })
		want(t, c.Health(t.Context()), fault.Untrusted, "does not verify")
	}
}

func TestNew(t *testing.T) {
	for _, u := range []string{"", "http://example.org", "example.org", "https://", "https://a:b@example.org", "https://example.org/v1", "https://example.org?x", "https://example.org#x", "https://[::1", "ftp://x"} {
		_, err := client.New(client.Config{URL: u})
		want(t, err, fault.Invalid, "https://host")
	}
	for _, u := range []string{"https://example.org", "https://example.org:8443/", "https://[2001:db8::1]:8443"} {
		if c, err := client.New(client.Config{URL: u}); err != nil {
			t.Errorf("%s: %v", u, err)
		} else {
			c.Close()
		}
	}
}

// TestSlots takes, keeps and gives back slots of the real service.
func TestSlots(t *testing.T) {
	ctx := t.Context()
	p := &provider{d: places(), token: "a-token"}
	store := memory.New(slot.Lease)
	defer store.Close()
	service := slot.New(slot.Config{Store: store, Accounts: p})
	c := dialTo(t, api.NewApp(api.AppDeps{Accounts: p, Slots: service, Directory: p, Limiter: p}, nil))
	login := private.Of("a-token")
	first, err := c.TakeSlot(ctx, login, private.Value[string]{})
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.TakeSlot(ctx, login, private.Value[string]{})
	want(t, err, fault.TooMany, "the one device")
	second, err := c.TakeSlot(ctx, login, first)
	if err != nil {
		t.Fatal("instead of the first:", err)
	}
	want(t, c.Beat(ctx, first), fault.TooMany, "the one device")
	if err := errors.Join(c.Beat(ctx, second), c.ReleaseSlot(ctx, second), c.Beat(ctx, first)); err != nil {
		t.Error(err)
	}
	want(t, c.Beat(ctx, login), fault.Unauthenticated, "no slot")
	want(t, c.ReleaseSlot(ctx, login), fault.Unauthenticated, "no slot")
	_, err = c.TakeSlot(ctx, first, private.Value[string]{})
	want(t, err, fault.Unauthenticated, "token")

	odd := dialTo(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write([]byte("{}"))
	}))
	_, err = odd.TakeSlot(ctx, login, private.Value[string]{})
	want(t, err, fault.Unavailable, "without a slot")
}
