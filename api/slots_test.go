package api_test

import (
	"context"
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	"lethe/account"
	"lethe/api"
	"lethe/fault"
	"lethe/private"
	"lethe/slot"
	"lethe/slot/memory"
)

// twoDevices is the account store as far as slots ask it: everybody may have
// two devices connected.
type twoDevices struct {
	mu       sync.Mutex
	disabled bool
}

func (d *twoDevices) Account(context.Context, account.ID) (account.Record, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return account.Record{Disabled: d.disabled, Licence: account.Licence{Plan: "standard", Devices: 2, PaidUntil: 30000}}, nil
}

// watched is the real service, and keeps the context of every call for the test
// to look at.
type watched struct {
	*slot.Service
	mu  sync.Mutex
	ctx []context.Context
}

func (w *watched) saw(ctx context.Context) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ctx = append(w.ctx, ctx)
}

func (w *watched) Take(ctx context.Context, id account.ID, old slot.Token) (slot.Token, error) {
	w.saw(ctx)
	return w.Service.Take(ctx, id, old)
}

func (w *watched) Beat(ctx context.Context, t slot.Token) error {
	w.saw(ctx)
	return w.Service.Beat(ctx, t)
}

func newSlots(t testing.TB) (*watched, *twoDevices) {
	store, accounts := memory.New(slot.Lease), &twoDevices{}
	t.Cleanup(func() { store.Close() })
	return &watched{Service: slot.New(slot.Config{Store: store, Accounts: accounts, Key: private.Of([32]byte{7})})}, accounts
}

func TestSlots(t *testing.T) {
	s := newService(t)
	slots, accounts := newSlots(t)
	s.srv.Handler = api.NewApp(api.AppDeps{Accounts: s.accounts, Slots: slots, Directory: s.places, Limiter: s.limits}, s.logger)
	take := func(body string) reply {
		return s.do(t, "POST", "/v1/slots", body, "Authorization", "Bearer good", "X-Forwarded-For", "203.0.113.7")
	}
	token := func(r reply) string {
		t.Helper()
		var out struct{ Token string }
		if err := json.Unmarshal(r.body, &out); err != nil || r.StatusCode != 201 || len(out.Token) < 58 {
			t.Fatalf("status %d, body %s", r.StatusCode, r.body)
		}
		checkHeaders(t, r)
		return "Bearer " + out.Token
	}
	current := func(method, auth string) reply {
		return s.do(t, method, "/v1/slots/current", "", "Authorization", auth)
	}
	first, second := token(take("{}")), token(take(`{"instead_of":""}`))
	p := take("{}").problem(t, 429, "too-many")
	if !strings.Contains(p.Detail, "2 devices") || p.Hint == "" {
		t.Errorf("the limit is told as %+v", p)
	}
	first = token(take(`{"instead_of":"` + strings.TrimPrefix(first, "Bearer ") + `"}`))
	for _, c := range []struct {
		method, auth string
		status       int
	}{
		{"PUT", first, 204}, {"PUT", second, 204}, {"DELETE", first, 204}, {"DELETE", first, 204}, {"PUT", first, 204},
	} {
		if r := current(c.method, c.auth); r.StatusCode != c.status || len(r.body) != 0 {
			t.Errorf("%s: status %d, want %d: %s", c.method, r.StatusCode, c.status, r.body)
		} else {
			checkHeaders(t, r)
		}
	}
	for _, method := range []string{"PUT", "DELETE"} {
		for _, auth := range []string{"", "Bearer good", "Bearer " + strings.Repeat("A", 88), first + "A"} {
			current(method, auth).problem(t, 401, "unauthenticated")
		}
	}
	s.do(t, "POST", "/v1/slots", "{}").problem(t, 401, "unauthenticated")
	s.do(t, "POST", "/v1/slots", "{}", "Authorization", first).problem(t, 401, "unauthenticated") // a slot is no login
	s.do(t, "GET", "/v1/credentials", "", "Authorization", first).problem(t, 401, "unauthenticated")
	take(`{"instead_of":"`+strings.Repeat("A", 200)+`"}`).problem(t, 422, "invalid")
	take(`{"device":"Ada's telephone"}`).problem(t, 422, "invalid") // there is no field for a name

	accounts.mu.Lock()
	accounts.disabled = true
	accounts.mu.Unlock()
	current("PUT", second).problem(t, 403, "denied")
	take("{}").problem(t, 403, "denied")
	if h, err := slots.Held(t.Context(), "ada"); err != nil || h.Count != 0 {
		t.Errorf("a disabled account holds %+v (%v)", h, err)
	}
	if got := s.log.String(); got != "" {
		t.Errorf("logged %q", got)
	}
	for _, ctx := range slots.ctx {
		if ctx.Value(http.LocalAddrContextKey) != nil || ctx.Value(http.ServerContextKey) != nil {
			t.Error("the counter can see which address was called")
		}
	}
	s.limits.mu.Lock()
	defer s.limits.mu.Unlock()
	for _, want := range []string{api.PurposeBeat + " 127.0.0.1", api.PurposeApp + " 127.0.0.1"} {
		if !slices.Contains(s.limits.asked, want) {
			t.Errorf("the limiter was not asked %q", want)
		}
	}
}

// TestSlotsWithoutStore: when the counter fails that is said, and is no limit.
func TestSlotsWithoutStore(t *testing.T) {
	s := newService(t)
	s.srv.Handler = api.NewApp(api.AppDeps{Accounts: s.accounts, Slots: noSlots{}, Directory: s.places, Limiter: s.limits}, s.logger)
	s.do(t, "POST", "/v1/slots", "{}", "Authorization", "Bearer good").problem(t, 503, "unavailable")
	for _, method := range []string{"PUT", "DELETE"} {
		s.do(t, method, "/v1/slots/current", "", "Authorization", "Bearer x").problem(t, 503, "unavailable")
	}
	if got := s.log.String(); got != strings.Repeat("trouble part=app-api kind=unavailable\n", 3) {
		t.Errorf("logged %q", got)
	}
}

type noSlots struct{}

var errNoSlots = fault.New(fault.Unavailable, "the store of the connection slots cannot be used")

func (noSlots) Take(context.Context, account.ID, slot.Token) (slot.Token, error) {
	return slot.Token{}, errNoSlots
}
func (noSlots) Beat(context.Context, slot.Token) error    { return errNoSlots }
func (noSlots) Release(context.Context, slot.Token) error { return errNoSlots }
