package api_test

import (
	"context"
	"crypto/rand"
	"io"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/argon2"

	"lethe/account"
	"lethe/api"
	"lethe/private"
)

// argon makes a login cost what a password hash does: Argon2id with the
// parameters of OWASP's first recommendation, 19 MiB and two passes.
type argon struct{ *accounts }

func (a argon) Login(ctx context.Context, email string, password private.Value[string], app account.App) (account.Token, error) {
	salt := make([]byte, 16)
	_, _ = rand.Read(salt)
	argon2.IDKey([]byte(password.Reveal()), salt, 2, 19<<10, 1, 32)
	return a.accounts.Login(ctx, email, password, app)
}

type everybody struct{}

func (everybody) Allow(string, netip.Addr) bool { return true }

// BenchmarkApp measures requests per second (from ns/op) and the 99th
// percentile over TLS on loopback with kept connections, client included.
func BenchmarkApp(b *testing.B) {
	for _, c := range []struct {
		name, method, path, body string
		servers                  int
		match, argon             bool
	}{
		{"health", "GET", "/v1/health", "", 2, false, false},
		{"directory-2", "GET", "/v1/directory", "", 2, false, false},
		{"directory-1000", "GET", "/v1/directory", "", 1000, false, false},
		{"directory-1000-304", "GET", "/v1/directory", "", 1000, true, false},
		{"credentials", "GET", "/v1/credentials", "", 2, false, false},
		{"tokens", "POST", "/v1/tokens", goodLogin, 2, false, false},
		{"tokens-argon2id-19MiB-2", "POST", "/v1/tokens", goodLogin, 2, false, true},
	} {
		b.Run(c.name, func(b *testing.B) {
			s := newService(b)
			s.places.set(directory(c.servers), nil)
			if c.argon {
				s.srv.Handler = api.NewApp(api.AppDeps{Accounts: argon{s.accounts}, Directory: s.places, Limiter: everybody{}}, nil)
			} else {
				s.srv.Handler = api.NewApp(api.AppDeps{Accounts: s.accounts, Directory: s.places, Limiter: everybody{}}, nil)
			}
			tag := "none"
			if c.match {
				tag = s.do(b, "GET", "/v1/directory", "", "Authorization", "Bearer good").Header.Get("ETag")
			}
			var mu sync.Mutex
			var took []time.Duration
			b.ResetTimer()
			b.RunParallel(func(pb *testing.PB) {
				var mine []time.Duration
				for pb.Next() {
					start := time.Now()
					one(b, s, c.method, c.path, c.body, tag)
					mine = append(mine, time.Since(start))
				}
				mu.Lock()
				defer mu.Unlock()
				took = append(took, mine...)
			})
			b.StopTimer()
			slices.Sort(took)
			b.ReportMetric(float64(len(took))/b.Elapsed().Seconds(), "requests/s")
			b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-µs")
		})
	}
}

// BenchmarkHeartbeat measures heartbeats over TLS on loopback, client included:
// on kept connections, and as apps send them, each on a connection of its own.
func BenchmarkHeartbeat(b *testing.B) {
	for name, kept := range map[string]bool{"kept": true, "own-connection": false} {
		b.Run(name, func(b *testing.B) {
			s := newService(b)
			slots, _ := newSlots(b)
			s.srv.Handler = api.NewApp(api.AppDeps{Accounts: s.accounts, Slots: slots.Service, Directory: s.places, Limiter: everybody{}}, nil)
			s.client.Transport.(*http.Transport).DisableKeepAlives = !kept
			token, err := slots.Service.Take(b.Context(), "ada", private.Value[string]{})
			if err != nil {
				b.Fatal(err)
			}
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if r := s.do(b, "PUT", "/v1/slots/current", "", "Authorization", "Bearer "+token.Reveal()); r.StatusCode != 204 {
						b.Errorf("status %d", r.StatusCode)
						return
					}
				}
			})
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "beats/s")
		})
	}
}

func one(b *testing.B, s *service, method, path, body, tag string) {
	req, err := http.NewRequest(method, "https://"+s.addr+path, strings.NewReader(body))
	if err != nil {
		b.Error(err)
		return
	}
	req.Header.Set("Authorization", "Bearer good")
	req.Header.Set("If-None-Match", tag)
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := s.client.Do(req)
	if err != nil {
		b.Error(err)
		return
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil || resp.StatusCode >= 400 {
		b.Errorf("status %d, %v", resp.StatusCode, err)
	}
}
