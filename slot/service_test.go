package slot_test

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"lethe/account"
	"lethe/day"
	"lethe/fault"
	"lethe/private"
	"lethe/slot"
	"lethe/slot/memory"
)

const ada, ben account.ID = "ada2345abcdefghijklmnopqrs", "ben2345abcdefghijklmnopqrs"

const today day.Day = 20000

// accounts is the account store as far as slots ask it.
type accounts struct {
	mu  sync.Mutex
	all map[account.ID]account.Record
	err error
}

func (a *accounts) Account(_ context.Context, id account.ID) (account.Record, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	r, ok := a.all[id]
	if !ok && a.err == nil {
		return r, fault.New(fault.NotFound, "no such account")
	}
	return r, a.err
}

func (a *accounts) edit(id account.ID, edit func(*account.Record)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	r := a.all[id]
	edit(&r)
	a.all[id] = r
}

var key = private.Of([32]byte{1, 2, 3})

// bubble runs a test with a service of two accounts with two devices each, and
// with a clock of its own.
func bubble(t *testing.T, test func(t *testing.T, w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := &world{t: t, accounts: &accounts{all: map[account.ID]account.Record{}}}
		for _, id := range []account.ID{ada, ben} {
			w.accounts.edit(id, func(r *account.Record) {
				r.Licence = account.Licence{Plan: "standard", Devices: 2, PaidUntil: today}
			})
		}
		w.restart()
		defer func() { w.store.Close() }()
		test(t, w)
	})
}

type world struct {
	*slot.Service
	t        *testing.T
	accounts *accounts
	store    slot.Store
}

// restart is what a restart of the control plane is: nothing is left.
func (w *world) restart() {
	if w.store != nil {
		w.store.Close()
	}
	w.store = memory.New(slot.Lease)
	w.Service = slot.New(slot.Config{Store: w.store, Accounts: w.accounts, Key: key, Today: func() day.Day { return today }})
}

func (w *world) take(id account.ID) slot.Token {
	w.t.Helper()
	token, err := w.Take(w.t.Context(), id, slot.Token{})
	if err != nil {
		w.t.Fatal(err)
	}
	return token
}

func (w *world) held(id account.ID, count, limit int) {
	w.t.Helper()
	if h, err := w.Held(w.t.Context(), id); err != nil || h != (slot.Held{Count: count, Limit: limit}) {
		w.t.Errorf("%d of %d devices are connected (%v), want %d of %d", h.Count, h.Limit, err, count, limit)
	}
}

func want(t *testing.T, what string, err error, kind fault.Kind) *fault.Error {
	t.Helper()
	var f *fault.Error
	if !errors.As(err, &f) || f.Kind != kind {
		t.Fatalf("%s: got %v, want %v", what, err, kind)
	}
	return f
}

func TestLimit(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		ctx := t.Context()
		first := w.take(ada)
		w.take(ada)
		_, err := w.Take(ctx, ada, slot.Token{})
		f := want(t, "the third of two", err, fault.TooMany)
		if f.Text != "all 2 devices that this licence allows at once are connected" || !strings.Contains(f.Hint, "90 seconds") {
			t.Errorf("it says %q, %q", f.Text, f.Hint)
		}
		w.held(ada, 2, 2)
		w.take(ben)
		again, err := w.Take(ctx, ada, first)
		if err != nil {
			t.Fatal("its own place again:", err)
		}
		w.held(ada, 2, 2)
		if err := w.Release(ctx, again); err != nil {
			t.Fatal(err)
		}
		w.held(ada, 1, 2)
		if _, err := w.Take(ctx, ben, again); err != nil {
			t.Error("a token of another account in a file:", err)
		}
		w.held(ben, 2, 2)
		for devices, text := range []string{"this licence allows no device", "the one device that this licence allows is connected"} {
			w.accounts.edit(ben, func(r *account.Record) { r.Licence.Devices = devices })
			_, err = w.Take(ctx, ben, slot.Token{})
			if f := want(t, "more than allowed", err, fault.TooMany); f.Text != text {
				t.Errorf("it says %q, want %q", f.Text, text)
			}
		}
	})
}

// TestVanishedDevice: a device that dies without a word stops counting after a
// lease, long before five minutes; one that sends heartbeats never does.
func TestVanishedDevice(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.take(ada)
		alive := w.take(ada)
		for range 20 {
			time.Sleep(slot.Beat)
			if err := w.Beat(t.Context(), alive); err != nil {
				t.Fatal(err)
			}
		}
		w.held(ada, 1, 2)
		time.Sleep(slot.Lease)
		w.held(ada, 0, 2)
	})
}

// TestRestart: after a restart the heartbeats bring back what was, no
// heartbeat is refused, and collected tokens add nothing.
func TestRestart(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		ctx := t.Context()
		collected := w.take(ada)
		if err := w.Release(ctx, collected); err != nil {
			t.Fatal(err)
		}
		devices := []slot.Token{w.take(ada), w.take(ada)}
		w.restart()
		w.held(ada, 0, 2)
		for range 2 {
			for _, d := range devices {
				if err := w.Beat(ctx, d); err != nil {
					t.Fatal(err)
				}
			}
			w.held(ada, 2, 2)
			time.Sleep(slot.Beat)
		}
		want(t, "a token from a drawer", w.Beat(ctx, collected), fault.TooMany)
		_, err := w.Take(ctx, ada, slot.Token{})
		want(t, "a third device", err, fault.TooMany)
	})
}

// TestEnded: an account that may not connect any more loses its slots with the
// next thing that is asked for any of them.
func TestEnded(t *testing.T) {
	for name, c := range map[string]struct {
		end  func(*account.Record)
		kind fault.Kind
	}{
		"account disabled": {func(r *account.Record) { r.Disabled = true }, fault.Denied},
		"licence disabled": {func(r *account.Record) { r.Licence.Disabled = true }, fault.Expired},
		"licence over":     {func(r *account.Record) { r.Licence.PaidUntil = today - 1 }, fault.Expired},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, w *world) {
				tokens := []slot.Token{w.take(ada), w.take(ada)}
				w.accounts.edit(ada, c.end)
				w.held(ada, 2, 0)
				want(t, "heartbeat", w.Beat(t.Context(), tokens[0]), c.kind)
				w.held(ada, 0, 0)
				_, err := w.Take(t.Context(), ada, tokens[1])
				want(t, "take", err, c.kind)
			})
		})
	}
	bubble(t, func(t *testing.T, w *world) {
		token := w.take(ada)
		w.accounts.mu.Lock()
		delete(w.accounts.all, ada)
		w.accounts.mu.Unlock()
		want(t, "heartbeat of a deleted account", w.Beat(t.Context(), token), fault.Unauthenticated)
		if n, _ := w.store.Count(t.Context(), w.Licence(ada)); n != 0 {
			t.Error("a deleted account holds a slot")
		}
		_, err := w.Held(t.Context(), ada)
		want(t, "held", err, fault.NotFound)
	})
}

// TestReplacedCredential: a customer who replaces the VPN credential takes the
// places back from whoever has copied tokens.
func TestReplacedCredential(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		copied := []slot.Token{w.take(ada), w.take(ada)}
		w.accounts.edit(ada, func(r *account.Record) { r.Credential.Username = private.Of("another") })
		for i, c := range copied {
			want(t, "heartbeat of before", w.Beat(t.Context(), c), fault.Unauthenticated)
			w.held(ada, 1-i, 2)
		}
		if err := w.Beat(t.Context(), w.take(ada)); err != nil {
			t.Error(err)
		}
		down := slot.New(slot.Config{Store: broken{w.store}, Accounts: w.accounts, Key: key, Today: func() day.Day { return today }})
		want(t, "heartbeat of before without a store", down.Beat(t.Context(), copied[0]), fault.Unavailable)
	})
}

// TestForgedToken: what the control plane's key has not made is no token,
// whichever bit was changed, and changes nothing.
func TestForgedToken(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		ctx := t.Context()
		good := w.take(ada).Reveal()
		raw, err := base64.RawURLEncoding.DecodeString(good)
		if err != nil || len(good) != 99 {
			t.Fatalf("a token has %d characters (%v), want 99", len(good), err)
		}
		bad := []string{"", "x", good + "A", good[:len(good)-1], strings.Repeat("A", 88), strings.Repeat("A", 200), good[:44], "ä" + good,
			base64.RawURLEncoding.EncodeToString(raw[:24])}
		for i := range raw {
			raw[i] ^= 1
			bad = append(bad, base64.RawURLEncoding.EncodeToString(raw))
			raw[i] ^= 1
		}
		other := slot.New(slot.Config{Store: w.store, Accounts: w.accounts, Key: private.Of([32]byte{9}), Today: func() day.Day { return today }})
		foreign, err := other.Take(ctx, ben, slot.Token{})
		if err != nil {
			t.Fatal(err)
		}
		for _, b := range append(bad, foreign.Reveal()) {
			want(t, fmt.Sprintf("heartbeat of %q", b), w.Beat(ctx, private.Of(b)), fault.Unauthenticated)
			want(t, "release", w.Release(ctx, private.Of(b)), fault.Unauthenticated)
		}
		w.held(ada, 1, 2)
		if _, err := w.Take(ctx, ada, private.Of("not a token")); err != nil {
			t.Error("a damaged file of the app keeps it from connecting:", err)
		}
	})
}

// TestTokenSaysNothing: no two tokens have more in common than chance gives,
// and none holds the account.
func TestTokenSaysNothing(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.accounts.edit(ada, func(r *account.Record) { r.Licence.Devices = 255 })
		var seen [74][256]int
		for range 255 {
			raw, _ := base64.RawURLEncoding.DecodeString(w.take(ada).Reveal())
			if strings.Contains(string(raw), string(ada)[:6]) {
				t.Fatal("the account stands in the token")
			}
			for i, b := range raw {
				seen[i][b]++
			}
		}
		for i, bytes := range seen {
			for b, n := range bytes {
				if n > 12 { // expected 1; 13 or more of 255 by chance: 1 in 10^9, times 18,944
					t.Errorf("byte %d is %#x in %d of 255 tokens", i, b, n)
				}
			}
		}
		if a, b := w.Licence(ada), w.Licence(ben); a == b || strings.Contains(string(a[:]), "ada") {
			t.Error("the name of a licence in the store is not a hash")
		}
	})
}

// broken is a store that does not answer.
type broken struct{ slot.Store }

var errDown = fault.New(fault.Unavailable, "down")

func (broken) Take(context.Context, slot.Licence, slot.ID, slot.ID, int) error { return errDown }
func (broken) Renew(context.Context, slot.Licence, slot.ID, int) error         { return errDown }
func (broken) Release(context.Context, slot.Licence, slot.ID) error            { return errDown }
func (broken) End(context.Context, slot.Licence) error                         { return errDown }

// TestFailures: what fails is told as it is, and is never a limit.
func TestFailures(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		ctx := t.Context()
		token := w.take(ada)
		down := slot.New(slot.Config{Store: broken{w.store}, Accounts: w.accounts, Key: key})
		w.accounts.edit(ada, func(r *account.Record) { r.Licence.PaidUntil = day.Today() })
		_, err := down.Take(ctx, ada, slot.Token{})
		want(t, "take without a store", err, fault.Unavailable)
		want(t, "heartbeat without a store", down.Beat(ctx, token), fault.Unavailable)
		w.accounts.edit(ada, func(r *account.Record) { r.Disabled = true })
		want(t, "the end without a store", down.Beat(ctx, token), fault.Unavailable)
		w.accounts.err = fault.New(fault.Internal, "damaged")
		want(t, "heartbeat without accounts", w.Beat(ctx, token), fault.Internal)
		_, err = w.Held(ctx, ada)
		want(t, "held without accounts", err, fault.Internal)
	})
}

func FuzzToken(f *testing.F) {
	a := &accounts{all: map[account.ID]account.Record{ada: {Licence: account.Licence{Devices: 255, PaidUntil: today}}}}
	store := memory.New(slot.Lease)
	f.Cleanup(func() { store.Close() })
	s := slot.New(slot.Config{Store: store, Accounts: a, Key: key, Today: func() day.Day { return today }})
	// One that was made with the key, once: workers of a fuzzer must agree on it.
	const good = "ZsdXhSrgKzUk1ysS9PdNYiHpiLo03SZdb5hKr3_6166N-g6n-jwiT7cNpGaaxkgJmogFzzJ_PwDQ4dJ10UaHRYc1x36Td8dZsr8"
	for _, seed := range []string{"", "A", good, good[:60], strings.Repeat("_", 88), "\xff\xfe", "=" + good} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		err := s.Beat(t.Context(), private.Of(text))
		if (err == nil) != (text == good) {
			t.Fatalf("the heartbeat of %q: %v", text, err)
		}
	})
}
