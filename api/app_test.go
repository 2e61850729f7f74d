package api_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"lethe/api"
	"lethe/fault"
	"lethe/location"
)

const (
	goodSignUp = `{"email":"new@example.org","password":"long enough"}`
	goodLogin  = `{"email":"ada@example.org","password":"correct horse","app":{"os":"linux","version":"0.1.0"}}`
)

var endpoints = []struct {
	method, path, body string
	open               bool // needs no token
	status             int
	want               string
}{
	{"POST", "/v1/accounts", goodSignUp, true, 201, ""},
	{"POST", "/v1/tokens", goodLogin, true, 200, `{"token":"token-1"}`},
	{"GET", "/v1/licence", "", false, 200, `{"plan":"standard","devices":5,"paid_until":"2030-03-27","disabled":false}`},
	{"GET", "/v1/credentials", "", false, 200, `{"username":"vpn-user-1","password":"vpn-password"}`},
	{"POST", "/v1/credentials", "", false, 200, `{"username":"vpn-user-2","password":"vpn-password"}`},
	{"GET", "/v1/directory", "", false, 200, `{"locations":[{"id":1,"code":"nl-ams"`},
	{"GET", "/v1/locations/nl-ams/profiles/swanctl", "", false, 200, "eap_id = vpn-user-2\n"},
	{"GET", "/v1/health", "", true, 200, `{"status":"ok"}`},
	{"GET", "/v1/openapi.json", "", true, 200, `"openapi": "3.1.0"`},
	{"GET", "/v1/openapi.yaml", "", true, 200, "openapi: 3.1.0"},
	{"DELETE", "/v1/tokens/current", "", false, 204, ""},
}

func TestEndpoints(t *testing.T) {
	s := newService(t)
	for _, e := range endpoints {
		t.Run(e.method+" "+e.path, func(t *testing.T) {
			if !e.open {
				for _, auth := range []string{"", "Bearer ", "Bearer", "Bearer unknown", "Basic good", "good", "Bearer good good", "Bearer g\x80od", "Bearer " + strings.Repeat("a", 200)} {
					var header []string
					if auth != "" {
						header = []string{"Authorization", auth}
					}
					r := s.do(t, e.method, e.path, e.body, header...)
					if p := r.problem(t, 401, "unauthenticated"); p.Hint == "" || r.Header.Get("WWW-Authenticate") != "Bearer" {
						t.Errorf("%q: no hint or no challenge: %s", auth, r.body)
					}
				}
			}
			r := s.do(t, e.method, e.path, e.body, "Authorization", "bearer good")
			if r.StatusCode != e.status || !strings.Contains(string(r.body), e.want) {
				t.Fatalf("status %d, want %d; body %s", r.StatusCode, e.status, r.body)
			}
			checkHeaders(t, r)
			for _, method := range []string{"PUT", "PATCH", "TRACE", "OPTIONS", "BREW"} {
				if r := s.do(t, method, e.path, ""); r.Header.Get("Allow") == "" {
					t.Errorf("%s: no Allow", method)
				} else {
					r.problem(t, 405, "invalid")
					checkHeaders(t, r)
				}
			}
		})
	}
	if s.accounts.app.OS != "linux" || s.accounts.app.Version != "0.1.0" {
		t.Errorf("the activation was recorded as %+v", s.accounts.app)
	}
	s.do(t, "GET", "/v1/licence", "", "Authorization", "Bearer good").problem(t, 401, "unauthenticated") // logged out above
	if got := s.log.String(); got != "" {
		t.Errorf("logged %q", got)
	}
}

func checkHeaders(t *testing.T, r reply) {
	t.Helper()
	for _, name := range []string{"Date", "Server", "Last-Modified", "X-Powered-By", "Link", "Set-Cookie"} {
		if v, ok := r.Header[name]; ok {
			t.Errorf("answers with %s: %q", name, v)
		}
	}
	for name, want := range map[string]string{
		"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Strict-Transport-Security": "max-age=63072000",
		"Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
	} {
		if got := r.Header.Get(name); got != want {
			t.Errorf("%s: %q", name, got)
		}
	}
	if r.Header.Get("Cache-Control") == "" {
		t.Error("no Cache-Control")
	}
}

func TestPathsThatAreNotThere(t *testing.T) {
	s := newService(t)
	for _, c := range []struct {
		path   string
		status int
		kind   string
	}{
		{"/", 404, "not-found"},
		{"/v1", 404, "not-found"},
		{"/v1/tokens/1", 404, "not-found"},
		{"/v1//health", 404, "not-found"},
		{"/v1/x/../health", 404, "not-found"},
		{"/v1/health/", 404, "not-found"},
		{"/docs", 404, "not-found"},
		{"/schemas/Problem.json", 404, "not-found"},
		{"/v1/health?name=ada", 422, "invalid"},
		{"/node/v1/usage", 404, "not-found"},
	} {
		r := s.do(t, "GET", c.path, "")
		r.problem(t, c.status, c.kind)
		if bytes.Contains(r.body, []byte("ada")) {
			t.Errorf("%s: the answer repeats the request: %s", c.path, r.body)
		}
	}
	if r := s.do(t, "HEAD", "/v1/health", ""); r.StatusCode != 200 || len(r.body) != 0 {
		t.Errorf("HEAD answers %d %q", r.StatusCode, r.body)
	}
}

func TestBodies(t *testing.T) {
	s := newService(t)
	long := strings.Repeat("x", 300)
	for _, c := range []struct {
		name, path, body string
		status           int
		field            string // named in the problem
	}{
		{"empty", "/v1/tokens", "", 400, ""},
		{"no JSON", "/v1/tokens", "email=ada", 400, "body"},
		{"half", "/v1/tokens", goodLogin[:40], 400, "body"},
		{"two values", "/v1/tokens", goodLogin + goodLogin, 400, "body"},
		{"trailing", "/v1/tokens", goodLogin + "x", 400, "body"},
		{"array", "/v1/tokens", "[" + goodLogin + "]", 422, "body"},
		{"null", "/v1/tokens", "null", 422, "body"},
		{"deep", "/v1/tokens", strings.Repeat(`{"a":`, 9) + "1" + strings.Repeat("}", 9), 400, "body"},
		{"duplicate", "/v1/tokens", `{"email":"ada@example.org",` + goodLogin[1:], 400, "body"},
		{"duplicate after a huge number", "/v1/tokens", `{"a":1e999,"b":1,"b":2}`, 400, "body"},
		{"duplicate inside", "/v1/tokens", strings.Replace(goodLogin, `"os":"linux"`, `"os":"linux","os":"ios"`, 1), 400, "body"},
		{"duplicate after an array", "/v1/tokens", `{"a":[{"x":1},"x",["x"]],"x":"a","a":2}`, 400, "body"},
		{"other case", "/v1/tokens", strings.Replace(goodLogin, `"email"`, `"Email"`, 1), 400, "body"},
		{"huge number", "/v1/tokens", `{"email":1e999}`, 400, "body"},
		{"unknown field", "/v1/tokens", `{"extra":1,` + goodLogin[1:], 422, "body.extra"},
		{"unknown field inside", "/v1/tokens", strings.Replace(goodLogin, `"os"`, `"name":"x","os"`, 1), 422, "body.app.name"},
		{"unknown system", "/v1/tokens", strings.Replace(goodLogin, "linux", "plan9", 1), 422, "body.app.os"},
		{"version of no form", "/v1/tokens", strings.Replace(goodLogin, "0.1.0", "0.1", 1), 422, "body.app.version"},
		{"no app", "/v1/tokens", `{"email":"ada@example.org","password":"correct horse"}`, 422, "body"},
		{"password is a number", "/v1/tokens", strings.Replace(goodLogin, `"correct horse"`, "12345678901", 1), 422, "body.password"},
		{"password is null", "/v1/tokens", strings.Replace(goodLogin, `"correct horse"`, "null", 1), 422, "body.password"},
		{"short password", "/v1/accounts", `{"email":"a@b.c","password":"hunter2"}`, 422, "body.password"},
		{"long password", "/v1/accounts", `{"email":"a@b.c","password":"` + long + `"}`, 422, "body.password"},
		{"no address", "/v1/accounts", `{"email":"ada.example.org","password":"long enough"}`, 422, "body.email"},
		{"long address", "/v1/accounts", `{"email":"` + long + `@b.c","password":"long enough"}`, 422, "body.email"},
		{"line feed in the address", "/v1/accounts", `{"email":"a@b.c\nbcc:x@y.z","password":"long enough"}`, 422, "body.email"},
		{"no UTF-8", "/v1/accounts", "{\"email\":\"a@b.c\",\"password\":\"long enough\xff\"}", 400, "body"},
		{"too large", "/v1/accounts", `{"email":"` + strings.Repeat("x", api.MaxAppBody) + `"}`, 413, ""},
		{"many unknown fields", "/v1/accounts", manyFields(40), 422, "body"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := s.do(t, "POST", c.path, c.body)
			p := r.problem(t, c.status, "invalid")
			if c.field != "" && !slices.ContainsFunc(p.Fields, func(f api.Field) bool { return strings.HasPrefix(f.Name, c.field) && f.Message != "" }) {
				t.Errorf("%s is not named: %s", c.field, r.body)
			}
			for _, private := range []string{"ada@", "horse", "hunter2", "plan9", "12345678901", long, "a@b.c"} {
				if bytes.Contains(r.body, []byte(private)) {
					t.Errorf("the answer repeats %q: %s", private, r.body)
				}
			}
			if len(r.body) > 4096 {
				t.Errorf("the answer has %d bytes", len(r.body))
			}
		})
	}
	if len(s.accounts.users) != 1 || len(s.accounts.tokens) != 1 {
		t.Error("a bad body had an effect")
	}
}

func manyFields(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, `"f%d":1,`, i)
	}
	return "{" + strings.TrimSuffix(b.String(), ",") + "}"
}

func TestContentTypes(t *testing.T) {
	s := newService(t)
	for ct, status := range map[string]int{
		"application/json": 200, "application/json; charset=utf-8": 200, "Application/JSON;charset=UTF-8": 200,
		"application/json; charset=latin1": 415, "text/plain": 415, "application/problem+json": 415, "application/cbor": 415,
		"application/x-www-form-urlencoded": 415, "multipart/form-data; boundary=x": 415, "json": 415, ";": 415, "": 415,
	} {
		r := s.do(t, "POST", "/v1/tokens", goodLogin, "Content-Type", ct, "Accept", "text/html")
		if status != 200 {
			r.problem(t, status, "invalid")
		} else if r.StatusCode != 200 || r.Header.Get("Content-Type") != "application/json" {
			t.Errorf("%q: status %d %s", ct, r.StatusCode, r.body)
		}
	}
}

// TestEveryByte puts every byte, raw and escaped, into every string of a
// request. The service must refuse or take it, and what it takes must arrive.
func TestEveryByte(t *testing.T) {
	s := newService(t)
	for b := range 256 {
		raw := string([]byte{byte(b)})
		for _, form := range []string{raw, fmt.Sprintf(`\u%04x`, b)} {
			for _, template := range []string{
				`{"email":"x%s@example.org","password":"long enough"}`,
				`{"email":"y@example.org","password":"long enough%s"}`,
			} {
				delete(s.accounts.users, "y@example.org")
				body := strings.Replace(template, "%s", form, 1)
				r := s.do(t, "POST", "/v1/accounts", body)
				var sent struct{ Email, Password string }
				valid := json.Unmarshal([]byte(body), &sent) == nil
				switch r.StatusCode {
				case 201:
					if got, ok := s.accounts.users[sent.Email]; !valid || !ok || got != sent.Password {
						t.Errorf("%q became %q", body, got)
					}
				case 400, 409, 422:
				default:
					t.Errorf("%q: status %d", body, r.StatusCode)
				}
			}
			for _, field := range []string{"ada@example.org", "correct horse", "linux", "0.1.0"} {
				body := strings.Replace(goodLogin, field, field+form, 1)
				if r := s.do(t, "POST", "/v1/tokens", body); r.StatusCode != 400 && r.StatusCode != 401 && r.StatusCode != 422 && !(field == "0.1.0" && b >= '0' && b <= '9') {
					t.Errorf("%q: status %d", body, r.StatusCode)
				}
			}
		}
	}
	for b := range 256 { // in a token: refused by net/http or by the API, never let in
		r := rawRequest(t, s, fmt.Sprintf("GET /v1/licence HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer good%c\r\n\r\n", rune(b)))
		if b == ' ' || b == '\t' || b == '\r' || b == '\n' { // trailing white space is no part of a field
			continue
		}
		if !strings.HasPrefix(r, "HTTP/1.1 400") && !strings.HasPrefix(r, "HTTP/1.1 401") {
			t.Errorf("byte %#x in the token: %q", b, r)
		}
	}
}

func TestDirectory(t *testing.T) {
	s := newService(t)
	s.accounts.tokens["other"] = "bob"
	get := func(token, match string) reply {
		header := []string{"Authorization", "Bearer " + token}
		if match != "" {
			header = append(header, "If-None-Match", match)
		}
		return s.do(t, "GET", "/v1/directory", "", header...)
	}
	first, other := get("good", ""), get("other", "")
	tag := first.Header.Get("ETag")
	if len(tag) < 20 || tag != other.Header.Get("ETag") || !bytes.Equal(first.body, other.body) {
		t.Error("two customers get different directories")
	}
	var d location.Directory
	if err := json.Unmarshal(first.body, &d); err != nil || d.Validate() != nil || len(d.Servers) != 2 || d.Servers[0].TLSCrypt == "" {
		t.Errorf("comes as %s, %v", first.body, err)
	}
	for _, match := range []string{tag, "W/" + tag, `"x", ` + tag, "*"} {
		if r := get("good", match); r.StatusCode != 304 || len(r.body) != 0 || r.Header.Get("ETag") != tag {
			t.Errorf("%s: status %d", match, r.StatusCode)
		}
	}
	get("bad", tag).problem(t, 401, "unauthenticated")
	changed := directory(2)
	changed.Servers[1].Enabled = false
	s.places.set(changed, nil)
	if r := get("good", tag); r.StatusCode != 200 || r.Header.Get("ETag") == tag {
		t.Errorf("a changed directory: status %d", r.StatusCode)
	}
	s.places.set(location.Directory{}, nil)
	if r := get("good", ""); string(r.body) != `{"locations":[],"servers":[]}` {
		t.Errorf("an empty directory: %s", r.body)
	}
	s.places.set(location.Directory{}, errors.New("disk 203.0.113.9 is gone"))
	if r := get("good", ""); bytes.Contains(r.body, []byte("203.0.113.9")) {
		t.Errorf("the cause is told: %s", r.body)
	} else {
		r.problem(t, 500, "internal")
	}
	s.do(t, "GET", "/v1/health", "").problem(t, 503, "unavailable")
}

// TestFaults lets the implementation fail in every way and looks at what is
// told and what is logged.
func TestFaults(t *testing.T) {
	cause := errors.New("cause 203.0.113.7")
	for _, k := range fault.Kinds() {
		t.Run(k.String(), func(t *testing.T) {
			s := newService(t)
			s.accounts.fail = fmt.Errorf("wrapped %w", fault.Wrap(k, "public text", cause).WithHint("public hint"))
			for _, e := range endpoints {
				if strings.HasPrefix(e.path, "/v1/openapi") || e.path == "/v1/health" {
					continue
				}
				r := s.do(t, e.method, e.path, e.body, "Authorization", "Bearer good")
				p := r.problem(t, k.Status(), k.String())
				if bytes.Contains(r.body, []byte("cause")) || bytes.Contains(r.body, []byte("wrapped")) {
					t.Errorf("the cause is told: %s", r.body)
				}
				if k != fault.Internal && (p.Detail != "public text" || p.Hint != "public hint") {
					t.Errorf("text or hint is lost: %s", r.body)
				}
				if (r.Header.Get("Retry-After") != "") != (k == fault.TooMany) {
					t.Errorf("Retry-After: %q", r.Header.Get("Retry-After"))
				}
			}
			own := k == fault.Internal || k == fault.Unavailable || k == fault.Full
			want := strings.Repeat("trouble part=app-api kind="+k.String()+"\n", 8)
			if got := s.log.String(); own && got != want || !own && got != "" {
				t.Errorf("logged %q", got)
			}
		})
	}
	s := newService(t)
	for _, err := range []error{context.DeadlineExceeded, fmt.Errorf("read: %w", context.Canceled)} {
		s.accounts.fail = err
		s.do(t, "POST", "/v1/tokens", goodLogin).problem(t, 503, "unavailable")
	}
	s.accounts.fail = cause
	s.do(t, "POST", "/v1/tokens", goodLogin).problem(t, 500, "internal")
	s.accounts.fail = nil
	s.accounts.tokens["nobody's"] = ""
	s.do(t, "GET", "/v1/licence", "", "Authorization", "Bearer nobody's").problem(t, 500, "internal")
}

func TestPanics(t *testing.T) {
	s := newService(t)
	s.accounts.boom = "panic with 203.0.113.7"
	for _, e := range endpoints[:6] {
		r := s.do(t, e.method, e.path, e.body, "Authorization", "Bearer good")
		r.problem(t, 500, "internal")
		if bytes.Contains(r.body, []byte("203.0.113.7")) {
			t.Errorf("the panic is told: %s", r.body)
		}
	}
	if got := s.log.String(); got != strings.Repeat("trouble part=app-api kind=internal\n", 6) {
		t.Errorf("logged %q", got)
	}
	s.accounts.boom = ""
	if r := s.do(t, "POST", "/v1/tokens", goodLogin); r.StatusCode != http.StatusOK {
		t.Errorf("status %d after the panics", r.StatusCode)
	}
}
