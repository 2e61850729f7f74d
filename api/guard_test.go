package api_test

import (
	"bufio"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"lethe/api"
	"lethe/event"
	"lethe/internal/testkit"
)

// rawRequest sends text over TLS and returns what comes back until the
// connection ends.
func rawRequest(t *testing.T, s *service, text string) string {
	t.Helper()
	conn, err := tls.Dial("tcp", s.addr, &tls.Config{RootCAs: s.ca.pool})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(conn, text); err != nil {
		t.Fatal(err)
	}
	answer, err := io.ReadAll(conn)
	if err != nil && len(answer) == 0 {
		return err.Error()
	}
	return string(answer)
}

// TestNobodyIsSeen puts the client's marks into every place of a request and
// looks for them in all that a handler can reach.
func TestNobodyIsSeen(t *testing.T) {
	const mark = "203.0.113.77"
	var seen string
	var opens []string
	look := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		seen = fmt.Sprintf("%+v|%+v|%+v|%+v|%v|%v", *r, r.Header, r.Trailer, r.Context(), r.RemoteAddr, r.RequestURI)
		if v := r.Context().Value(http.LocalAddrContextKey); v != nil {
			seen += "local address"
		}
		if v := r.Context().Value(http.ServerContextKey); v != nil {
			seen += "server"
		}
		if _, ok := w.(http.Hijacker); ok {
			opens = append(opens, "Hijack")
		}
		if _, ok := w.(interface{ Unwrap() http.ResponseWriter }); ok {
			opens = append(opens, "Unwrap")
		}
		if _, _, err := http.NewResponseController(w).Hijack(); err == nil {
			opens = append(opens, "controller")
		}
		w.WriteHeader(http.StatusNoContent)
	})
	l := &limits{}
	h := api.Guard(look, l, nil)
	r := httptest.NewRequest("POST", "/v1/x", strings.NewReader("{}"))
	r.RemoteAddr = mark + ":4711"
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Authorization", "Bearer secret-"+mark)
	r.Trailer = http.Header{"X-Trailer": {mark}}
	for _, name := range []string{
		"X-Forwarded-For", "Forwarded", "X-Real-Ip", "Via", "True-Client-Ip", "Cf-Connecting-Ip", "X-Client-Ip", "User-Agent",
		"Referer", "Cookie", "Origin", "From", "X-Anything", "X-Request-Id", "Traceparent", "Accept-Language", "Accept",
	} {
		r.Header.Set(name, mark)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	if w.Code != http.StatusNoContent {
		t.Fatalf("status %d %s", w.Code, w.Body)
	}
	for _, bad := range []string{mark, "4711", "local address", "server"} {
		if strings.Contains(seen, bad) {
			t.Errorf("a handler sees %q in %s", bad, seen)
		}
	}
	if len(opens) > 0 {
		t.Errorf("a handler reaches the connection by %v", opens)
	}
	if !slices.Equal(l.asked, []string{"app " + mark}) {
		t.Errorf("the limiter was asked %q", l.asked)
	}
	// The same over a real connection: the context that reaches the accounts.
	s := newService(t)
	s.do(t, "POST", "/v1/tokens", goodLogin, "X-Forwarded-For", mark)
	for _, key := range []any{http.LocalAddrContextKey, http.ServerContextKey} {
		if v := s.accounts.ctx.Value(key); v != nil {
			t.Errorf("the context of a call holds %T", v)
		}
	}
	if _, ok := s.accounts.ctx.Deadline(); !ok {
		t.Error("the context of a call has no deadline")
	}
}

func TestLimiter(t *testing.T) {
	s := newService(t)
	for _, purpose := range []string{api.PurposeSignUp, api.PurposeLogin, api.PurposeApp} {
		s.limits.deny = purpose
		for path, of := range map[string]string{"/v1/accounts": api.PurposeSignUp, "/v1/tokens": api.PurposeLogin, "/v1/credentials": api.PurposeApp, "/nowhere": api.PurposeApp} {
			r := s.do(t, "POST", path, "{}")
			if of == purpose {
				if r.problem(t, 429, "too-many"); r.Header.Get("Retry-After") == "" {
					t.Error("no Retry-After")
				}
			} else if r.StatusCode == 429 {
				t.Errorf("%s is refused with %s", path, purpose)
			}
		}
	}
	for remote, want := range map[string]string{
		"192.0.2.1:1":                  "app 192.0.2.1",
		"[::ffff:192.0.2.1]:1":         "app 192.0.2.1",
		"[2001:db8:1:2:3:4:5:6]:1":     "app 2001:db8:1:2::",
		"[fe80::1:2:3:4%eth0]:1":       "app fe80::",
		"@":                            "",
		"":                             "",
		"203.0.113.1":                  "",
		"name.example.org:1":           "",
		"[2001:db8:1:2:3:4:5:6%x:y]:z": "",
	} {
		l := &limits{}
		h := api.Guard(http.NotFoundHandler(), l, nil)
		r := httptest.NewRequest("GET", "/v1/health", nil)
		r.RemoteAddr = remote
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if got := strings.Join(l.asked, " "); got != want || (want == "") != (w.Code == 429) {
			t.Errorf("%q: asked %q, want %q; status %d", remote, got, want, w.Code)
		}
	}
	h := api.NewApp(api.AppDeps{Accounts: newAccounts(), Directory: &places{}}, nil)
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest("GET", "/v1/health", nil))
	if w.Code != 429 {
		t.Errorf("without a limiter: status %d", w.Code)
	}
}

var _ api.Limiter = (*limits)(nil)

func TestWriter(t *testing.T) {
	log := &testkit.Log{}
	serveOne := func(h http.HandlerFunc) *httptest.ResponseRecorder {
		w := httptest.NewRecorder()
		api.Guard(h, nil, event.New(log)).ServeHTTP(w, httptest.NewRequest("GET", "/x", nil))
		return w
	}
	if w := serveOne(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "plain") }); w.Code != 200 || w.Body.String() != "plain" {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	w := serveOne(func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "text with 203.0.113.7", http.StatusTeapot)
		w.WriteHeader(http.StatusOK) // too late, and so ignored
	})
	if w.Code != 500 || strings.Contains(w.Body.String(), "203.0.113.7") || w.Header().Get("Content-Type") != "application/problem+json" {
		t.Errorf("an unknown status: %d %s", w.Code, w.Body)
	}
	for _, status := range []int{400, 404, 405, 408, 413, 415, 416, 422} {
		if w := serveOne(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(status) }); w.Code != status || !strings.Contains(w.Body.String(), `"kind":`) {
			t.Errorf("%d became %d %s", status, w.Code, w.Body)
		}
	}
	defer func() {
		if v := recover(); v != http.ErrAbortHandler {
			t.Errorf("a panic in the middle of an answer became %v", v)
		}
		if log.String() != "trouble part=app-api kind=internal\n" {
			t.Errorf("logged %q", log.String())
		}
	}()
	serveOne(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "half")
		panic("text")
	})
}

// TestSlowClients: a client that dribbles its header or its body is cut off.
func TestSlowClients(t *testing.T) {
	quick := newService(t, func(srv *http.Server) {
		if srv.ReadHeaderTimeout != 5*time.Second || srv.ReadTimeout != 15*time.Second || srv.WriteTimeout == 0 || srv.IdleTimeout == 0 || srv.MaxHeaderBytes == 0 {
			t.Errorf("limits are missing: %+v", srv)
		}
		srv.ReadHeaderTimeout, srv.ReadTimeout = 200*time.Millisecond, 400*time.Millisecond
	})
	start := time.Now()
	if got := rawRequest(t, quick, "GET /v1/health HTTP/1.1\r\nHost: x\r\nX-Slow: "); strings.HasPrefix(got, "HTTP/1.1 200") {
		t.Errorf("half a header is answered: %q", got)
	}
	got := rawRequest(t, quick, "POST /v1/tokens HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{\"email\"")
	if !strings.HasPrefix(got, "HTTP/1.1 408 ") || !strings.Contains(got, `"kind":"invalid"`) || !strings.Contains(got, "Connection: close") {
		t.Errorf("half a body is answered: %q", got)
	}
	conn, err := net.Dial("tcp", quick.addr) // no TLS handshake at all
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		var late net.Error
		if errors.As(err, &late) && late.Timeout() {
			t.Error("a silent connection stays")
		}
	}
	if took := time.Since(start); took > 8*time.Second {
		t.Errorf("slow clients were held for %v", took)
	}
	if quick.log.String() != "" || quick.logger.Strays() == 0 {
		t.Errorf("logged %q, %d strays", quick.log.String(), quick.logger.Strays())
	}
}

func TestRawRequests(t *testing.T) {
	s := newService(t)
	post := "POST /v1/tokens HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n"
	for _, c := range []struct{ name, text, want string }{
		{"chunked", post + "Transfer-Encoding: chunked\r\n\r\n" + fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(goodLogin), goodLogin), "200"},
		{"chunked and too large", post + "Transfer-Encoding: chunked\r\n\r\n" + fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", 9000, strings.Repeat(" ", 9000)), "413"},
		{"announced too large", post + "Content-Length: 99999999\r\n\r\n", "413"},
		{"bad chunk", post + "Transfer-Encoding: chunked\r\n\r\nzz\r\n", "400"},
		{"negative length", post + "Content-Length: -1\r\n\r\n", "400"},
		{"two lengths", post + "Content-Length: 1\r\nContent-Length: 2\r\n\r\n", "400"},
		{"two tokens", "GET /v1/licence HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer good\r\nAuthorization: Bearer good\r\n\r\n", "401"},
		{"huge header", "GET /v1/health HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("a", 20000) + "\r\n\r\n", "431"},
		{"star", "OPTIONS * HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", "404"},
		{"no HTTP", "\x16\x03\x01junk\r\n\r\n", "400"},
		{"HTTP/2 preface", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "404"},
		{"encoded traversal", "GET /v1/%2e%2e/v1/health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", "404"},
		{"absolute form", "GET https://elsewhere/v1/health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", "200"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := rawRequest(t, s, c.text); !strings.HasPrefix(got, "HTTP/1.1 "+c.want) {
				t.Errorf("got %.300q, want %s", got, c.want)
			}
		})
	}
	// A body that ends early, by closing the sending side.
	conn, err := tls.Dial("tcp", s.addr, &tls.Config{RootCAs: s.ca.pool})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, post+"Content-Length: 50\r\n\r\n{"); err != nil {
		t.Fatal(err)
	}
	if err := conn.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != 400 {
		t.Errorf("a truncated body: status %d", resp.StatusCode)
	}
	if len(s.accounts.tokens) != 2 { // "good" and that of the chunked login
		t.Errorf("%d tokens", len(s.accounts.tokens))
	}
}

func TestTLS(t *testing.T) {
	s := newService(t)
	cache := tls.NewLRUClientSessionCache(4)
	for range 2 {
		conn, err := tls.Dial("tcp", s.addr, &tls.Config{RootCAs: s.ca.pool, ClientSessionCache: cache, NextProtos: []string{"h2", "http/1.1"}})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(conn, "GET /v1/health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadAll(conn); err != nil {
			t.Fatal(err)
		}
		state := conn.ConnectionState()
		if state.Version != tls.VersionTLS13 || state.CurveID != tls.X25519MLKEM768 || state.DidResume || state.NegotiatedProtocol != "http/1.1" {
			t.Errorf("version %x, key exchange %v, resumed %v, protocol %q", state.Version, state.CurveID, state.DidResume, state.NegotiatedProtocol)
		}
		conn.Close()
	}
	if _, err := tls.Dial("tcp", s.addr, &tls.Config{RootCAs: s.ca.pool, MaxVersion: tls.VersionTLS12}); err == nil {
		t.Error("TLS 1.2 is spoken")
	}
	weak := &tls.Config{MinVersion: tls.VersionTLS10}
	if srv := api.Server(http.NotFoundHandler(), weak, nil); srv.TLSConfig.MinVersion != tls.VersionTLS13 || weak.MinVersion != tls.VersionTLS10 {
		t.Error("a weak configuration is used or changed")
	} else {
		srv.ErrorLog.Print("goes nowhere")
	}
}

func TestLimiterIsAskedAboutThePeer(t *testing.T) {
	s := newService(t)
	s.do(t, "GET", "/v1/health", "", "X-Forwarded-For", "198.51.100.1", "Forwarded", "for=198.51.100.1")
	if got := s.limits.asked; !slices.Equal(got, []string{"app " + netip.AddrFrom4([4]byte{127, 0, 0, 1}).String()}) {
		t.Errorf("asked %q", got)
	}
}
