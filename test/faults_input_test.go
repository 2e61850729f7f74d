package test

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"lethe/account"
	"lethe/day"
	"lethe/lab"
	"lethe/lab/pki"
)

// try runs the app with more environment than usual.
func (c *customer) try(env []string, stdin string, args ...string) (said string, code int) {
	c.t.Helper()
	command := c.Command(deadline(c.t), "env", append(append(env, "lethe"), args...)...)
	var b bytes.Buffer
	command.Stdin, command.Stdout, command.Stderr = strings.NewReader(stdin), &b, &b
	_ = command.Run() // its exit code counts
	return b.String(), command.ProcessState.ExitCode()
}

// refusals is what a customer is told who may not.
func (w *trial) refusals() {
	books := w.books()
	defer books.Close()
	person := func(email string) account.Record {
		id, err := books.Accounts.Create(w.ctx, email, privatePassword())
		w.check(err)
		w.check(books.Accounts.CreateLicence(w.ctx, id, "standard", 5, day.Today().Add(30)))
		r, err := books.Accounts.Find(w.ctx, email)
		w.check(err)
		return r
	}
	// The app has the copies that connect falls back on, and a service that
	// refuses connections at once.
	away := []string{"LETHE_API=https://198.51.100.100:9"}
	m := w.person(mallory)
	refuse := func(what string, code int, text string, do func() (string, int)) {
		w.t.Helper()
		w.quick(what, func() {
			said, got := do()
			if got != code || !strings.Contains(said, text) || !strings.Contains(said, "hint: ") {
				w.t.Errorf("%s: exit code %d, want %d; it says %q, want %q and a hint", what, got, code, said, text)
			}
		})
	}
	login := func(c *customer, email, secret string) func() (string, int) {
		return func() (string, int) { return c.try(nil, secret+"\n", "login", email) }
	}
	connect := func(env []string) func() (string, int) {
		return func() (string, int) { return m.try(env, "", "connect", "nl-ams") }
	}

	const wrong = "error: wrong e-mail address or password\n"
	refuse("not logged in", 3, "error: not logged in\n", connect(nil))
	refuse("wrong password", 4, wrong, login(w.person(carol), w.person(carol).email, "not this one at all"))
	refuse("unknown address", 4, wrong, login(w.person(dave), "nobody@river.example", password))

	ended := person("ended@river.example")
	if said, code := m.try(nil, password+"\n", "login", "ended@river.example"); code != 0 {
		w.t.Fatalf("a good login: exit code %d: %s", code, said)
	}
	w.settle()
	said, code := connect(nil)()
	if code != 0 {
		w.t.Fatalf("with a licence: exit code %d: %s", code, said)
	}
	m.must("", "disconnect")

	w.check(books.Store.EditAccount(w.ctx, ended.ID, func(r *account.Record) error {
		r.Licence.PaidUntil = day.Today().Add(-1)
		return nil
	}))
	w.settle()
	refuse("licence ended yesterday", 4, "error: the licence has ended\n", connect(nil))
	m.must("", "disconnect")

	file := filepath.Join(m.Dir, "home", ".local", "state", "lethe", "credential.json")
	good, err := os.ReadFile(file)
	w.check(err)
	w.check(os.WriteFile(file, []byte(`{"username":"nosuchusername00","password":"not the password"}`), 0o600))
	refuse("wrong VPN credential", 4, "error: user name or password refused\n", connect(away))
	m.must("", "disconnect")
	w.check(os.WriteFile(file, good, 0o600))

	w.check(books.Accounts.SetDisabled(w.ctx, ended.ID, true))
	w.settle()
	refuse("disabled account, login", 4, "error: this account is disabled\n", login(m, "ended@river.example", password))
	refuse("disabled account, connect", 3, "error: the login has ended\n", connect(nil))
}

// credentials tries user names and passwords with every byte that OpenVPN's
// client can send, beside the right ones.
func (w *trial) credentials() {
	username, secret := w.credential(w.person(carol).email)
	profile := w.profiles["nl-ams tcp"]
	join := func(a, b []byte) []byte { return append(append([]byte{}, a...), b...) }
	type pair struct{ username, secret []byte }
	var pairs []pair
	for low := 1; low < 0x100; low += 51 {
		var chunk []byte
		for b := low; b < low+51; b++ {
			if b != '\n' && b != '\r' { // they end a line of the file
				chunk = append(chunk, byte(b))
			}
		}
		pairs = append(pairs, pair{chunk, secret}, pair{username, chunk}, pair{join(username, chunk), join(secret, chunk)})
	}
	for _, s := range []string{
		`" 0`, `\`, `"\"`, "%n%s%x", "a,b,c", "END", ">CLIENT:ENV,END", strings.Repeat("x", 120), strings.Repeat("\xff", 127), "\u202e", "-", " ",
	} {
		pairs = append(pairs, pair{[]byte(s), secret}, pair{username, []byte(s)})
	}
	pairs = append(pairs, pair{join(username, []byte(" ")), secret}, pair{username, join(secret, []byte(" "))},
		pair{bytes.ToUpper(username), secret}, pair{username, bytes.ToUpper(secret)}, pair{username[:len(username)-1], secret})

	before := w.processes("nl-ams-1")
	var wg sync.WaitGroup
	turn := make(chan struct{}, 4)
	for i, p := range pairs {
		turn <- struct{}{}
		wg.Go(func() {
			defer func() { <-turn }()
			if r := w.login(profile, p.username, p.secret, 20*time.Second); r.outcome != gotRefused {
				w.t.Errorf("pair %d: %s after %v, want refused", i, r.outcome, r.took)
			}
		})
	}
	wg.Wait()
	w.t.Logf("%d pairs refused", len(pairs))
	w.quick("wrong VPN password", func() {
		if r := w.login(profile, username, []byte("wrong"), 20*time.Second); r.outcome != gotRefused {
			w.t.Errorf("wrong password: %s", r.outcome)
		}
	})
	// The control: the same client gets in with the right ones.
	if r := w.login(profile, username, secret, 20*time.Second); r.outcome != gotIn {
		w.t.Errorf("the right credential: %s %q", r.outcome, r.reason)
	}
	w.same("nl-ams-1", before)
	w.alive(bob)
}

// https returns a client that comes from a machine and trusts any server.
func (w *trial) https(m *lab.Machine, certificates ...tls.Certificate) *http.Client {
	tr := &http.Transport{DialContext: m.Dial, TLSClientConfig: &tls.Config{InsecureSkipVerify: true, Certificates: certificates}}
	w.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 25 * time.Second}
}

const (
	appAddress  = "198.51.100.100:443"
	nodeAddress = "198.51.100.100:8443"
)

// apiCall is one request and the status that it must get.
type apiCall struct {
	method, path, kind, body string
	want                     int
	wantKind                 string // in the problem document
}

func (w *trial) call(c *http.Client, address string, q apiCall) {
	w.t.Helper()
	r, err := http.NewRequestWithContext(w.ctx, q.method, "https://"+address+q.path, strings.NewReader(q.body))
	w.check(err)
	if q.kind != "" {
		r.Header.Set("Content-Type", q.kind)
	}
	name := fmt.Sprintf("%s %.40s with %d bytes %.30q", q.method, q.path, len(q.body), q.body)
	resp, err := c.Do(r)
	if err != nil {
		w.t.Errorf("%s: %v", name, err)
		return
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 1<<16))
	if err != nil || resp.StatusCode != q.want {
		w.t.Errorf("%s: status %d, %v, want %d: %.200s", name, resp.StatusCode, err, q.want, b)
	}
	if q.wantKind != "" && !bytes.Contains(b, []byte(`"kind":"`+q.wantKind+`"`)) {
		w.t.Errorf("%s: %.200s, want kind %s", name, b, q.wantKind)
	}
	if len(q.body) > 20 && bytes.Contains(b, []byte(q.body[10:20])) {
		w.t.Errorf("%s: the answer repeats the request", name)
	}
}

const jsonType = "application/json"

// appAPI sends what no app sends.
func (w *trial) appAPI() {
	before := w.processes("control")
	c := w.https(w.Customer(mallory))
	good := `{"email":"api@river.example","password":"` + password + `"}`
	login := func(email, secret string) string {
		return fmt.Sprintf(`{"email":"%s","password":"%s","app":{"os":"linux","version":"1.0.0"}}`, email, secret)
	}
	for _, q := range []apiCall{
		{"GET", "/v1/health", "", "", 200, ""}, // the control
		{"POST", "/v1/accounts", jsonType, good[:len(good)-1], 400, "invalid"},
		{"POST", "/v1/accounts", jsonType, good[:17], 400, "invalid"},
		{"POST", "/v1/accounts", jsonType, strings.Repeat(" ", 8<<10) + good, 413, "invalid"},
		{"POST", "/v1/accounts", jsonType, `{"email":"` + strings.Repeat("a", 9<<10) + `"}`, 413, "invalid"},
		{"POST", "/v1/accounts", jsonType, strings.Repeat("[", 8000), 400, "invalid"},
		{"POST", "/v1/accounts", "text/plain", good, 415, "invalid"},
		{"POST", "/v1/accounts", "", good, 415, "invalid"},
		{"POST", "/v1/accounts", jsonType, `{"email":"a@b.example","password":"short"}`, 422, "invalid"},
		{"POST", "/v1/accounts", jsonType, `{}`, 422, "invalid"},
		{"POST", "/v1/accounts", jsonType, `null`, 422, "invalid"},
		{"POST", "/v1/tokens", jsonType, login("\\u0000@b.example", "\\u0000\\u0001\\u001f\\\"\\\\"), 401, "unauthenticated"},
		{"POST", "/v1/tokens", jsonType, login("\xff\xfe@b.example", "\x80\x81\xc0\xc1\xf5\xff"), 400, ""},
		{"PUT", "/v1/tokens", jsonType, good, 405, "invalid"},
		{"GET", "/v1/accounts", "", "", 405, "invalid"},
		{"TRACE", "/v1/health", "", "", 405, "invalid"},
		{"BREW", "/v1/licence", "", "", 405, "invalid"},
		{"GET", "/v1/licence", "", "", 401, "unauthenticated"},
		{"GET", "/v1/health?x=1", "", "", 422, "invalid"},
		{"GET", "/v1/../v1/health", "", "", 404, "not-found"},
		{"GET", "/node/v1/bundle/freshness.json", "", "", 404, "not-found"},
		{"GET", "/" + strings.Repeat("x", 2000), "", "", 404, "not-found"},
	} {
		w.call(c, appAddress, q)
	}
	w.slow()
	w.same("control", before)
	w.call(c, appAddress, apiCall{"GET", "/v1/health", "", "", 200, ""})
}

// slow holds connections open in every state; each must be ended by the
// service, and nobody else waits meanwhile.
func (w *trial) slow() {
	head := "POST /v1/tokens HTTP/1.1\r\nHost: x\r\n"
	limits := map[string]struct {
		sent  string // over TLS; "" is nothing, not even a handshake
		limit time.Duration
	}{
		"no handshake":        {"", 5 * time.Second},
		"half a header":       {head, 5 * time.Second},
		"half a body":         {head + "Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{", 15 * time.Second},
		"a chunk without end": {head + "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\nff\r\n{", 15 * time.Second},
	}
	var wg sync.WaitGroup
	for name, l := range limits {
		wg.Go(func() {
			began := time.Now()
			c, err := w.Customer(mallory).Dial(w.ctx, "tcp", appAddress)
			if err == nil && l.sent != "" {
				c = tls.Client(c, &tls.Config{InsecureSkipVerify: true})
				_, err = io.WriteString(c, l.sent)
			}
			if err != nil {
				w.t.Errorf("%s: %v", name, err)
				return
			}
			defer c.Close()
			_ = c.SetReadDeadline(began.Add(l.limit + 10*time.Second))
			_, err = io.Copy(io.Discard, c)
			if late, ok := err.(net.Error); ok && late.Timeout() {
				w.t.Errorf("%s: still open after %v", name, time.Since(began))
			}
			w.t.Logf("%s: closed after %v", name, time.Since(began).Round(100*time.Millisecond))
		})
	}
	w.call(w.https(w.Customer(dave)), appAddress, apiCall{"GET", "/v1/health", "", "", 200, ""})
	wg.Wait()
}

// nodeAPI calls the node API as everybody but a server of the directory.
func (w *trial) nodeAPI() {
	before := w.processes("control")
	pair := func(p pki.Pair, err error) tls.Certificate {
		w.t.Helper()
		w.check(err)
		c, err := tls.X509KeyPair([]byte(p.Certificate), []byte(p.Key))
		w.check(err)
		return c
	}
	foreign, err := pki.NewAuthority("Lethe lab node API")
	w.check(err)
	m := w.Customer(mallory)
	server := w.https(m, pair(w.ServerCertificate("nl-ams-1")))
	fresh := apiCall{"GET", "/node/v1/bundle/freshness.json", "", "", 200, ""}
	w.call(server, nodeAddress, fresh) // the control
	for name, c := range map[string]*http.Client{
		"no certificate":                       w.https(m),
		"a foreign authority of the same name": w.https(m, pair(foreign.Issue("nl-ams-1", x509.ExtKeyUsageClientAuth, nil))),
	} {
		resp, err := c.Get("https://" + nodeAddress + fresh.path)
		if err == nil {
			resp.Body.Close()
			w.t.Errorf("%s: status %d, want a refused handshake", name, resp.StatusCode)
		}
	}
	w.call(w.https(m, pair(w.ServerCertificate("zz-zzz-9"))), nodeAddress, apiCall{"GET", fresh.path, "", "", 403, "denied"})
	w.call(w.https(m, pair(w.ServerCertificate("zz-zzz-9"))), nodeAddress, apiCall{"POST", "/node/v1/usage", jsonType, `{}`, 403, "denied"})
	batch := func(id, records string) string { return `{"id":"` + id + `","records":[` + records + `]}` }
	for _, q := range []apiCall{
		{"POST", "/node/v1/usage", jsonType, batch("x", ""), 422, "invalid"},
		{"POST", "/node/v1/usage", jsonType, `{"id":"`, 400, "invalid"},
		{"POST", "/node/v1/usage", jsonType, strings.Repeat(" ", 1<<20) + "{}", 413, "invalid"},
		{"POST", "/node/v1/usage", "text/plain", "{}", 415, "invalid"},
		{"GET", "/node/v1/usage", "", "", 405, "invalid"},
		{"PUT", fresh.path, "", "", 405, "invalid"},
		{"DELETE", fresh.path, "", "", 405, "invalid"},
		{"GET", "/node/v1/bundle/../lethe.sqlite", "", "", 404, "not-found"},
		{"GET", "/node/v1/bundle/%2e%2e/lethe.sqlite", "", "", 404, "not-found"},
		{"GET", "/node/v1/bundle/new.part", "", "", 404, "not-found"},
		{"GET", "/node/v1/bundle/manifest/1.json%00", "", "", 404, "not-found"},
		{"GET", "/node/v1/bundle/files/" + strings.Repeat("0", 64), "", "", 404, "not-found"},
		{"GET", "/v1/health", "", "", 404, "not-found"},
	} {
		w.call(server, nodeAddress, q)
	}
	w.same("control", before)
}
