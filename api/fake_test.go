package api_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"lethe/account"
	"lethe/api"
	"lethe/day"
	"lethe/event"
	"lethe/fault"
	"lethe/internal/testkit"
	"lethe/lab/pki"
	"lethe/location"
	"lethe/private"
	"lethe/protocol"
	"lethe/usage"
)

// accounts keeps accounts in memory. With fail set every call answers it; with
// boom set every call panics.
type accounts struct {
	mu     sync.Mutex
	fail   error
	boom   string
	users  map[string]string // e-mail: password
	tokens map[string]account.ID
	serial int
	app    account.App
	ctx    context.Context // of the last call, for the test to look at
}

func newAccounts() *accounts {
	return &accounts{users: map[string]string{}, tokens: map[string]account.ID{}}
}

func (a *accounts) enter(ctx context.Context) (func(), error) {
	a.mu.Lock()
	a.ctx = ctx
	if a.boom != "" {
		defer a.mu.Unlock()
		panic(a.boom)
	}
	return a.mu.Unlock, a.fail
}

func (a *accounts) SignUp(ctx context.Context, email string, password private.Value[string]) error {
	leave, err := a.enter(ctx)
	defer leave()
	if _, there := a.users[email]; there && err == nil {
		return fault.New(fault.Conflict, "there is an account with this e-mail address").WithHint("log in")
	}
	if err == nil {
		a.users[email] = password.Reveal()
	}
	return err
}

func (a *accounts) Login(ctx context.Context, email string, password private.Value[string], app account.App) (account.Token, error) {
	leave, err := a.enter(ctx)
	defer leave()
	if err != nil {
		return account.Token{}, err
	}
	if p, ok := a.users[email]; !ok || p != password.Reveal() {
		return account.Token{}, fault.New(fault.Unauthenticated, "the e-mail address or the password is wrong")
	}
	a.serial++
	t := fmt.Sprintf("token-%d", a.serial)
	a.tokens[t], a.app = account.ID(email), app
	return private.Of(t), nil
}

func (a *accounts) Logout(ctx context.Context, t account.Token) error {
	if _, err := a.Authenticate(ctx, t); err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.tokens, t.Reveal())
	return nil
}

func (a *accounts) Authenticate(ctx context.Context, t account.Token) (account.ID, error) {
	leave, err := a.enter(ctx)
	defer leave()
	if err != nil {
		return "", err
	}
	id, ok := a.tokens[t.Reveal()]
	if !ok {
		return "", fault.New(fault.Unauthenticated, "the token is unknown or has ended").WithHint("log in again")
	}
	return id, nil
}

func (a *accounts) Licence(context.Context, account.ID) (account.Licence, error) {
	return account.Licence{Plan: "standard", Devices: 5, PaidUntil: 22000}, nil
}

func (a *accounts) Credential(context.Context, account.ID) (account.Credential, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return account.Credential{Username: private.Of(fmt.Sprint("vpn-user-", a.serial)), Password: private.Of("vpn-password")}, nil
}

func (a *accounts) ReplaceCredential(ctx context.Context, id account.ID) (account.Credential, error) {
	a.mu.Lock()
	a.serial++
	a.mu.Unlock()
	return a.Credential(ctx, id)
}

// places is a directory; sink keeps batches.
type places struct {
	mu  sync.Mutex
	d   location.Directory
	err error
}

func (p *places) Directory(context.Context) (location.Directory, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.d, p.err
}

func (p *places) set(d location.Directory, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.d, p.err = d, err
}

func directory(servers int) location.Directory {
	d := location.Directory{Locations: []location.Location{{ID: 1, Code: "nl-ams", Country: "NL", City: "Amsterdam"}}}
	for i := range servers {
		d.Servers = append(d.Servers, location.Server{
			ID: fmt.Sprintf("nl-ams-%d", i+1), Location: 1, Enabled: true,
			Addresses: []netip.Addr{netip.MustParseAddr("198.51.100.21"), netip.MustParseAddr("2001:db8::21")},
			Endpoints: []location.Endpoint{{Protocol: protocol.OpenVPNUDP, Port: 1194}, {Protocol: protocol.OpenVPNTCP, Port: 443}, {Protocol: protocol.IKEv2, Port: 500}},
			CA:        vpnCA(), TLSCrypt: tlsCrypt,
		})
	}
	return d
}

// vpnCA is the certificate that signs VPN servers', in PEM form.
var vpnCA = sync.OnceValue(func() string {
	ca, err := pki.NewAuthority("VPN")
	if err != nil {
		panic(err)
	}
	return ca.PEM
})

var tlsCrypt = pki.NewTLSCrypt()

type sink struct {
	mu     sync.Mutex
	err    error
	server string
	got    []usage.Batch
}

func (s *sink) AcceptUsage(_ context.Context, server string, b usage.Batch) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil {
		s.server, s.got = server, append(s.got, b)
	}
	return s.err
}

func record(date day.Day) usage.Record {
	return usage.Record{Key: usage.Key{Date: date, Country: "NL", ISP: "EXAMPLE", Location: 1, Protocol: protocol.OpenVPNUDP}, In: 7, Out: 3}
}

// limits allows everything but what is denied, and notes what it is asked.
type limits struct {
	mu    sync.Mutex
	deny  string
	asked []string
}

func (l *limits) Allow(purpose string, addr netip.Addr) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.asked = append(l.asked, purpose+" "+addr.String())
	return purpose != l.deny
}

// authority is a certificate authority for tests.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test authority"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	a := &authority{key: key, pool: x509.NewCertPool()}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	a.pool.AddCert(a.cert)
	return a
}

func (a *authority) issue(t testing.TB, name string, usage x509.ExtKeyUsage, ends time.Time) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name}, ExtKeyUsage: []x509.ExtKeyUsage{usage},
		NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: ends,
		DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}, a.cert, &key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func (a *authority) server(t testing.TB) tls.Certificate {
	return a.issue(t, "control", x509.ExtKeyUsageServerAuth, time.Now().Add(time.Hour))
}

// serve runs a server on loopback until the test ends and returns its address.
func serve(t testing.TB, srv *http.Server) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- srv.ServeTLS(l, "", "") }()
	t.Cleanup(func() {
		if err := srv.Close(); err != nil {
			t.Error(err)
		}
		<-done
	})
	return l.Addr().String()
}

// service is an app API on loopback.
type service struct {
	accounts *accounts
	places   *places
	limits   *limits
	log      *testkit.Log
	logger   *event.Logger
	srv      *http.Server
	ca       *authority
	addr     string
	client   *http.Client
}

func newService(t testing.TB, change ...func(*http.Server)) *service {
	t.Helper()
	s := &service{accounts: newAccounts(), places: &places{d: directory(2)}, limits: &limits{}, log: &testkit.Log{}, ca: newAuthority(t)}
	s.logger = event.New(s.log)
	h := api.NewApp(api.AppDeps{Accounts: s.accounts, Directory: s.places, Limiter: s.limits}, s.logger)
	s.srv = api.Server(h, api.AppTLS(s.ca.server(t)), s.logger)
	for _, c := range change {
		c(s.srv)
	}
	s.addr = serve(t, s.srv)
	s.client = client(t, &tls.Config{RootCAs: s.ca.pool})
	s.accounts.users["ada@example.org"] = "correct horse"
	s.accounts.tokens["good"] = "ada"
	return s
}

func client(t testing.TB, conf *tls.Config) *http.Client {
	tr := &http.Transport{TLSClientConfig: conf, MaxIdleConnsPerHost: 16}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 20 * time.Second,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// reply is a response that has been read.
type reply struct {
	*http.Response
	body []byte
}

// do sends a request; header holds names and values in turn.
func do(t testing.TB, c *http.Client, method, url, body string, header ...string) reply {
	t.Helper()
	req, err := http.NewRequest(method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return reply{resp, b}
}

func (s *service) do(t testing.TB, method, path, body string, header ...string) reply {
	t.Helper()
	return do(t, s.client, method, "https://"+s.addr+path, body, header...)
}

// problem checks that r is a problem of that status and kind and returns it.
func (r reply) problem(t testing.TB, status int, kind string) api.Problem {
	t.Helper()
	var p api.Problem
	if err := json.Unmarshal(r.body, &p); err != nil {
		t.Fatalf("status %d, no problem: %q", r.StatusCode, r.body)
	}
	if r.StatusCode != status || p.Status != status || p.Kind != kind || p.Title != http.StatusText(status) || p.Detail == "" {
		t.Errorf("status %d, want %d %s; body %s", r.StatusCode, status, kind, r.body)
	}
	if ct := r.Header.Get("Content-Type"); ct != "application/problem+json" {
		t.Errorf("content type %q", ct)
	}
	return p
}
