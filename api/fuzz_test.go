package api_test

import (
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"lethe/api"
	"lethe/day"
	"lethe/event"
	"lethe/internal/testkit"
	"lethe/usage"
)

// FuzzApp sends bodies and paths to the app API: every answer must be a result
// or a problem, never a failure, and an accepted body must be one JSON object
// that says what was taken.
func FuzzApp(f *testing.F) {
	for _, body := range []string{goodLogin, goodSignUp, "", "null", "[]", `{"email":1}`, `{"a":{"b":[{}]}}`, "\xff", goodLogin + " ", `{"email":"a@b.c","email":"d@e.f"}`, "1e999"} {
		f.Add("POST", "/v1/tokens", body, "Bearer good")
		f.Add("POST", "/v1/accounts", body, "")
	}
	f.Add("GET", "/v1/directory", "", "Bearer good")
	f.Add("POST", "/v1/slots", `{"instead_of":"x"}`, "Bearer good")
	f.Add("PUT", "/v1/slots/current", "", "Bearer good")
	f.Add("GET", "/v1/../x", "", "Bearer \x00")
	f.Add("BREW", "/v1/openapi.json", "", "Bearer good\x7f")
	a := newAccounts()
	a.users["ada@example.org"], a.tokens["good"] = "correct horse", "ada"
	log := &testkit.Log{}
	slots, _ := newSlots(f)
	h := api.NewApp(api.AppDeps{Accounts: a, Slots: slots, Directory: &places{d: directory(1)}, Limiter: &limits{}}, event.New(log))
	f.Fuzz(func(t *testing.T, method, path, body, auth string) {
		for _, c := range method {
			if c < 'A' || c > 'Z' {
				return // no method: net/http refuses it
			}
		}
		u, err := url.ParseRequestURI(path)
		if err != nil || method == "" {
			return
		}
		r := httptest.NewRequest("GET", "/", strings.NewReader(body))
		r.Method, r.URL = method, u
		r.Header.Set("Content-Type", "application/json")
		r.Header.Set("Authorization", auth)
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		switch {
		case w.Code >= 500:
			t.Errorf("status %d: %s", w.Code, w.Body)
		case w.Code >= 400:
			var p api.Problem
			if err := json.Unmarshal(w.Body.Bytes(), &p); err != nil || p.Status != w.Code {
				t.Errorf("status %d without a problem: %q", w.Code, w.Body)
			}
		case w.Code == 201 && path != "/v1/accounts":
		case w.Code == 201:
			var sent struct{ Email, Password string }
			if err := json.Unmarshal([]byte(body), &sent); err != nil || a.users[sent.Email] != sent.Password {
				t.Errorf("%q was taken for something else", body)
			}
		}
		if log.String() != "" {
			t.Errorf("logged %q", log.String())
		}
	})
}

// FuzzUsage sends bodies to the node API: an accepted one is a valid batch
// that survives being encoded again.
func FuzzUsage(f *testing.F) {
	today := day.Today()
	f.Add(encoded(f, usage.Batch{}))
	f.Add(encoded(f, usage.Batch{ID: usage.NewBatchID(), Records: []usage.Record{record(today)}}))
	f.Add(`{"id":"00000000000000000000000000000000","records":[` + recordText(today) + `],"pad":""}`)
	f.Add(`{"id":"zz","records":[{}],"pad":1}`)
	s := &sink{}
	h := api.NewNode(api.NodeDeps{Directory: &places{d: directory(1)}, Usage: s, Bundles: f.TempDir()}, nil)
	leaf := &x509.Certificate{Subject: pkix.Name{CommonName: "nl-ams-1"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(100 * time.Hour)}
	f.Fuzz(func(t *testing.T, body string) {
		r := httptest.NewRequest("POST", "/node/v1/usage", strings.NewReader(body))
		r.Header.Set("Content-Type", "application/json")
		r.TLS = &tls.ConnectionState{VerifiedChains: [][]*x509.Certificate{{leaf}}}
		w := httptest.NewRecorder()
		s.got = nil
		h.ServeHTTP(w, r)
		switch {
		case w.Code == 204:
			if len(s.got) != 1 || s.got[0].Validate() != nil {
				t.Errorf("%q was accepted as %+v", body, s.got)
			}
		case w.Code >= 500 || len(s.got) != 0:
			t.Errorf("status %d, %d batches: %s", w.Code, len(s.got), w.Body)
		}
	})
}
