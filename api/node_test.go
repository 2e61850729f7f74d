package api_test

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"lethe/api"
	"lethe/day"
	"lethe/event"
	"lethe/fault"
	"lethe/internal/testkit"
	"lethe/usage"
)

// node is a node API on loopback.
type node struct {
	dir    string
	places *places
	sink   *sink
	log    *testkit.Log
	ca     *authority
	addr   string
	client *http.Client
}

func newNode(t testing.TB, change ...func(*http.Server)) *node {
	t.Helper()
	n := &node{dir: filepath.Join(t.TempDir(), "bundles"), places: &places{d: directory(2)}, sink: &sink{}, log: &testkit.Log{}, ca: newAuthority(t)}
	log := event.New(n.log)
	h := api.NewNode(api.NodeDeps{Directory: n.places, Usage: n.sink, Bundles: n.dir}, log)
	srv := api.Server(h, api.NodeTLS(n.ca.server(t), n.ca.pool), log)
	for _, c := range change {
		c(srv)
	}
	n.addr = serve(t, srv)
	n.client = n.as(t, n.ca, "nl-ams-1", x509.ExtKeyUsageClientAuth, time.Now().Add(time.Hour))
	return n
}

func (n *node) as(t testing.TB, ca *authority, name string, use x509.ExtKeyUsage, ends time.Time) *http.Client {
	cert := ca.issue(t, name, use, ends)
	return client(t, &tls.Config{RootCAs: n.ca.pool, GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		return &cert, nil // sent even when the server names other authorities
	}})
}

func (n *node) do(t testing.TB, method, path, body string, header ...string) reply {
	t.Helper()
	return do(t, n.client, method, "https://"+n.addr+path, body, header...)
}

func encoded(t testing.TB, b usage.Batch) string {
	t.Helper()
	text, err := b.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestClientCertificates(t *testing.T) {
	n := newNode(t)
	hour := time.Now().Add(time.Hour)
	for name, c := range map[string]*http.Client{
		"none":             client(t, &tls.Config{RootCAs: n.ca.pool}),
		"foreign":          n.as(t, newAuthority(t), "nl-ams-1", x509.ExtKeyUsageClientAuth, hour),
		"expired":          n.as(t, n.ca, "nl-ams-1", x509.ExtKeyUsageClientAuth, time.Now().Add(-time.Minute)),
		"for servers only": n.as(t, n.ca, "nl-ams-1", x509.ExtKeyUsageServerAuth, hour),
	} {
		if resp, err := c.Post("https://"+n.addr+"/node/v1/usage", "application/json", strings.NewReader(encoded(t, usage.Batch{ID: usage.NewBatchID()}))); err == nil {
			resp.Body.Close()
			t.Errorf("%s: status %d", name, resp.StatusCode)
		}
	}
	for _, name := range []string{"nl-ams-9", "", "NL-AMS-1", "nl-ams-1.example.org", "control"} {
		c := n.as(t, n.ca, name, x509.ExtKeyUsageClientAuth, hour)
		for _, path := range []string{"/node/v1/usage", "/node/v1/bundle/freshness.json", "/", "/v1/health"} {
			r := do(t, c, "POST", "https://"+n.addr+path, "{}")
			if r.problem(t, 403, "denied"); r.Header.Get("WWW-Authenticate") != "" {
				t.Error("asks for a token")
			}
		}
	}
	batch := encoded(t, usage.Batch{ID: usage.NewBatchID()})
	if r := n.do(t, "POST", "/node/v1/usage", batch); r.StatusCode != 204 || n.sink.server != "nl-ams-1" {
		t.Fatalf("status %d, from %q: %s", r.StatusCode, n.sink.server, r.body)
	}
	d := directory(2)
	d.Servers[0].Enabled = false // drained: still has usage to deliver
	n.places.set(d, nil)
	if r := n.do(t, "POST", "/node/v1/usage", batch); r.StatusCode != 204 {
		t.Errorf("a drained server: status %d", r.StatusCode)
	}
	n.places.set(directory(0), nil) // taken out while its connection lives
	n.do(t, "POST", "/node/v1/usage", batch).problem(t, 403, "denied")
	n.places.set(directory(0), errors.New("203.0.113.7"))
	n.do(t, "POST", "/node/v1/usage", batch).problem(t, 500, "internal")
	if got := n.log.String(); got != "trouble part=node-api kind=internal\n" {
		t.Errorf("logged %q", got)
	}
}

// TestHandlerRefusesUnverified gives the handler connection states that a
// wrong TLS configuration, or a connection older than its certificate, would.
func TestHandlerRefusesUnverified(t *testing.T) {
	s := &sink{}
	h := api.NewNode(api.NodeDeps{Directory: &places{d: directory(1)}, Usage: s, Bundles: t.TempDir()}, nil)
	cert := func(from, to time.Duration) *x509.Certificate {
		return &x509.Certificate{Subject: pkix.Name{CommonName: "nl-ams-1"}, NotBefore: time.Now().Add(from), NotAfter: time.Now().Add(to)}
	}
	good := cert(-time.Hour, time.Hour)
	for name, c := range map[string]struct {
		state  *tls.ConnectionState
		status int
	}{
		"plain":      {nil, 401},
		"unverified": {&tls.ConnectionState{PeerCertificates: []*x509.Certificate{good}}, 401},
		"ended":      {&tls.ConnectionState{VerifiedChains: [][]*x509.Certificate{{cert(-time.Hour, -time.Second)}}}, 401},
		"not begun":  {&tls.ConnectionState{VerifiedChains: [][]*x509.Certificate{{cert(time.Minute, time.Hour)}}}, 401},
		"good":       {&tls.ConnectionState{VerifiedChains: [][]*x509.Certificate{{good}}}, 204},
	} {
		r := httptest.NewRequest("POST", "/node/v1/usage", strings.NewReader(encoded(t, usage.Batch{})))
		r.Header.Set("Content-Type", "application/json")
		r.TLS = c.state
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code != c.status {
			t.Errorf("%s: status %d, want %d: %s", name, w.Code, c.status, w.Body)
		}
	}
}

func TestUsage(t *testing.T) {
	n := newNode(t)
	today := day.Today()
	big := usage.Batch{ID: usage.NewBatchID()}
	for i := range 4096 {
		r := record(today)
		r.User = usage.UserHash{byte(i), byte(i >> 8)}
		big.Records = append(big.Records, r)
	}
	for _, c := range []struct {
		name   string
		body   string
		status int
	}{
		{"two records", encoded(t, usage.Batch{ID: usage.NewBatchID(), Records: []usage.Record{record(today), record(today.Add(-1))}}), 204},
		{"oldest", encoded(t, usage.Batch{Records: []usage.Record{record(today.Add(-7))}}), 204},
		{"too old", encoded(t, usage.Batch{Records: []usage.Record{record(today), record(today.Add(-10))}}), 422},
		{"newest", encoded(t, usage.Batch{Records: []usage.Record{record(today.Add(1))}}), 204},
		{"too new", encoded(t, usage.Batch{Records: []usage.Record{record(today.Add(3))}}), 422},
		{"twice", encoded(t, usage.Batch{Records: []usage.Record{record(today), record(today)}}), 422},
		{"largest", encoded(t, big), 204},
		{"too many", strings.Replace(encoded(t, big), `"records":[`, `"records":[`+recordText(today)+",", 1), 422},
		{"too large", strings.Repeat(" ", api.MaxNodeBody) + "{}", 413},
		{"unknown field", strings.Replace(encoded(t, usage.Batch{}), "{", `{"when":"now",`, 1), 422},
		{"address in a record", strings.Replace(encoded(t, usage.Batch{Records: []usage.Record{record(today)}}), `{"date"`, `{"address":"203.0.113.7","date"`, 1), 422},
		{"no such date", strings.Replace(encoded(t, usage.Batch{Records: []usage.Record{record(today)}}), today.String(), "2026-13-01", 1), 422},
		{"no such protocol", strings.Replace(encoded(t, usage.Batch{Records: []usage.Record{record(today)}}), "openvpn-udp", "pptp", 1), 422},
		{"short hash", strings.Replace(encoded(t, usage.Batch{Records: []usage.Record{record(today)}}), `"user":"00`, `"user":"`, 1), 422},
		{"negative", strings.Replace(encoded(t, usage.Batch{Records: []usage.Record{record(today)}}), `"mb_in":7`, `"mb_in":-7`, 1), 422},
		{"fraction", strings.Replace(encoded(t, usage.Batch{Records: []usage.Record{record(today)}}), `"mb_in":7`, `"mb_in":7.5`, 1), 422},
		{"too much", strings.Replace(encoded(t, usage.Batch{Records: []usage.Record{record(today)}}), `"mb_in":7`, `"mb_in":9000000000000`, 1), 422},
		{"null records", `{"id":"00000000000000000000000000000000","records":null,"pad":""}`, 422},
		{"half", encoded(t, big)[:9000], 400},
		{"nothing", "", 400},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := len(n.sink.got)
			r := n.do(t, "POST", "/node/v1/usage", c.body)
			if c.status == 204 {
				if r.StatusCode != 204 || len(n.sink.got) != before+1 {
					t.Errorf("status %d, %d batches: %s", r.StatusCode, len(n.sink.got)-before, r.body)
				}
				return
			}
			r.problem(t, c.status, "invalid")
			if bytes.Contains(r.body, []byte("203.0.113")) || bytes.Contains(r.body, []byte("2026-13")) {
				t.Errorf("the answer repeats the request: %s", r.body)
			}
			if len(n.sink.got) != before {
				t.Error("a bad batch was accepted")
			}
		})
	}
	if first := n.sink.got[0]; len(first.Records) != 2 || first.Records[0] != record(today) {
		t.Errorf("arrives as %+v", first)
	}
	n.sink.err = fault.Wrap(fault.Full, "no space left to keep usage", errors.New("/var/lib/lethe"))
	n.do(t, "POST", "/node/v1/usage", encoded(t, usage.Batch{})).problem(t, 507, "full")
	if got := n.log.String(); got != "trouble part=node-api kind=full\n" {
		t.Errorf("logged %q", got)
	}
}

func recordText(date day.Day) string {
	return `{"date":"` + date.String() + `","user":"ffffffffffffffffffffffffffffffff","country":"NL","isp":"","location":1,"protocol":"openvpn-udp","mb_in":1,"mb_out":1}`
}

func TestBundle(t *testing.T) {
	n := newNode(t)
	n.do(t, "GET", "/node/v1/bundle/freshness.json", "").problem(t, 503, "unavailable") // before the publisher ran
	segment := bytes.Repeat([]byte("segment "), 200_000)
	sum := sha256.Sum256(segment)
	name := "files/" + hex.EncodeToString(sum[:])
	zeros := "files/" + strings.Repeat("0", 64)
	outside := filepath.Join(filepath.Dir(n.dir), "secret")
	for path, content := range map[string][]byte{
		"freshness.json": []byte(`{"fresh":1}`), "manifest/7.json": []byte(`{"manifest":7}`), "root/1.json": []byte(`{"root":1}`), name: segment,
		"other.txt": []byte("no part of a bundle"), "files/short": []byte("nor this"), outside: []byte("secret"),
	} {
		if !filepath.IsAbs(path) {
			path = filepath.Join(n.dir, path)
		}
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, content, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	links := map[string]string{zeros: outside, "manifest/8.json": "7.json", "manifest/9.json": "../../secret", "root/2.json": "missing"}
	for link, to := range links {
		if err := os.Symlink(to, filepath.Join(n.dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(n.dir, "root/3.json"), 0o755); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{"freshness.json": `{"fresh":1}`, "manifest/7.json": `{"manifest":7}`, "root/1.json": `{"root":1}`, name: string(segment)} {
		r := n.do(t, "GET", "/node/v1/bundle/"+path, "")
		if r.StatusCode != 200 || string(r.body) != want {
			t.Errorf("%s: status %d, %d bytes", path, r.StatusCode, len(r.body))
		}
		checkHeaders(t, r)
		if r := n.do(t, "HEAD", "/node/v1/bundle/"+path, ""); r.StatusCode != 200 || r.ContentLength != int64(len(want)) {
			t.Errorf("HEAD %s: status %d, length %d", path, r.StatusCode, r.ContentLength)
		}
	}
	r := n.do(t, "GET", "/node/v1/bundle/"+name, "", "Range", "bytes=8-15")
	if r.StatusCode != 206 || string(r.body) != "segment " || r.Header.Get("Content-Range") == "" {
		t.Errorf("a range: status %d %q", r.StatusCode, r.body)
	}
	r = n.do(t, "GET", "/node/v1/bundle/"+name, "", "Range", "bytes=99999999-")
	if r.problem(t, 416, "invalid"); r.Header.Get("Content-Range") == "" {
		t.Error("no Content-Range")
	}
	for _, path := range []string{
		"", "/", "files", "files/", "manifest", "other.txt", "files/short", "manifest/10.json", "manifest/x.json", "manifest/7.json/", "root/3.json",
		"files/" + strings.ToUpper(hex.EncodeToString(sum[:])), "../secret", "%2e%2e/secret", "..%2fsecret", "files/..%2f..%2fsecret", "manifest/7.json%00",
		"freshness.json%0a", "/freshness.json", ".%2ffreshness.json", "files%2f" + hex.EncodeToString(sum[:]) + "x",
		zeros, "manifest/8.json", "manifest/9.json", "root/2.json",
	} {
		r := n.do(t, "GET", "/node/v1/bundle/"+path, "")
		r.problem(t, 404, "not-found")
		if bytes.Contains(r.body, []byte("secret")) {
			t.Errorf("%s: %s", path, r.body)
		}
	}
	n.do(t, "POST", "/node/v1/bundle/freshness.json", "{}").problem(t, 405, "invalid")
	if err := os.Chmod(filepath.Join(n.dir, "freshness.json"), 0); err != nil {
		t.Fatal(err)
	}
	if r := n.do(t, "GET", "/node/v1/bundle/freshness.json", ""); os.Geteuid() != 0 && r.StatusCode != 404 {
		t.Errorf("an unreadable file: status %d", r.StatusCode)
	}
}

// TestSlowDownload: a segment on a slow line takes longer than the server's
// deadline for answers, and arrives whole.
func TestSlowDownload(t *testing.T) {
	n := newNode(t, func(srv *http.Server) { srv.WriteTimeout = 100 * time.Millisecond })
	segment := bytes.Repeat([]byte("segment "), 2<<20) // 16 MiB: more than sockets buffer
	name := "files/" + strings.Repeat("a", 64)
	if err := os.MkdirAll(filepath.Join(n.dir, "files"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(n.dir, name), segment, 0o644); err != nil {
		t.Fatal(err)
	}
	resp, err := n.client.Get("https://" + n.addr + "/node/v1/bundle/" + name)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	time.Sleep(300 * time.Millisecond) // the slow line
	got, err := io.ReadAll(resp.Body)
	if err != nil || !bytes.Equal(got, segment) {
		t.Errorf("%d of %d bytes, %v", len(got), len(segment), err)
	}
}
