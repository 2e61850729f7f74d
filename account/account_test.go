package account_test

import (
	"context"
	"errors"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"lethe/account"
	"lethe/day"
	"lethe/fault"
	"lethe/private"
	"lethe/ratelimit"
	"lethe/store/sqlite"
)

const today day.Day = 20780

var linux = account.App{OS: "linux", Version: "0.1.0"}

// world is a service on a real store, with the means to disturb it.
type world struct {
	*account.Service
	store *faulty
	now   day.Day
}

// faulty passes everything to the real store until fail is set for a method.
type faulty struct {
	*sqlite.Store
	fail map[string]error
}

func (f *faulty) FindAccount(ctx context.Context, e private.Value[string]) (account.Record, error) {
	if err := f.fail["FindAccount"]; err != nil {
		return account.Record{}, err
	}
	return f.Store.FindAccount(ctx, e)
}

func (f *faulty) AddAccount(ctx context.Context, r account.Record) error {
	if err := f.fail["AddAccount"]; err != nil {
		return err
	}
	return f.Store.AddAccount(ctx, r)
}

func (f *faulty) AddToken(ctx context.Context, id account.ID, h account.TokenHash, today, through day.Day, a account.App) error {
	if err := f.fail["AddToken"]; err != nil {
		return err
	}
	return f.Store.AddToken(ctx, id, h, today, through, a)
}

func newWorld(t *testing.T) *world {
	t.Helper()
	s, err := sqlite.Open(t.Context(), filepath.Join(t.TempDir(), "db"), sqlite.Options{Create: true})
	if err != nil {
		t.Fatal(err)
	}
	l := ratelimit.New(map[string]int{"login": 10, "sign-up": 10})
	t.Cleanup(func() { l.Close(); _ = s.Close() })
	w := &world{store: &faulty{s, map[string]error{}}, now: today}
	w.Service = account.New(account.Config{
		Store: w.store, Tokens: w.store, Limiter: l, Hashes: 2, SignUpStep: 10 * time.Millisecond,
		Today: func() day.Day { return w.now },
	})
	return w
}

func secret(s string) private.Value[string] { return private.Of(s) }

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantKind(t *testing.T, err error, want fault.Kind) {
	t.Helper()
	if err == nil || fault.Of(err) != want {
		t.Errorf("got %v (%v), want %v", err, fault.Of(err), want)
	}
}

func TestSignUpAndLogin(t *testing.T) {
	w, ctx := newWorld(t), t.Context()
	must(t, w.SignUp(ctx, " Ann@Example.ORG ", secret("correct horse")))
	token, err := w.Login(ctx, "ann@example.org", secret("correct horse"), linux)
	must(t, err)
	if !regexp.MustCompile(`^[A-Za-z0-9_-]{43}$`).MatchString(token.Reveal()) {
		t.Errorf("token of %d characters", len(token.Reveal()))
	}
	id, err := w.Authenticate(ctx, token)
	must(t, err)
	if !regexp.MustCompile(`^[a-z2-7]{26}$`).MatchString(string(id)) {
		t.Errorf("id %q", id)
	}
	c, err := w.Credential(ctx, id)
	must(t, err)
	if !regexp.MustCompile(`^[a-z2-7]{16} [a-z2-7]{26}$`).MatchString(c.Username.Reveal() + " " + c.Password.Reveal()) {
		t.Error("the credential has another form")
	}
	if l, err := w.Licence(ctx, id); err != nil || l != (account.Licence{}) {
		t.Errorf("licence %+v, %v; want none", l, err)
	}
	r, err := w.Find(ctx, "ANN@example.org")
	must(t, err)
	if r.App != linux || strings.Contains(r.Password.Reveal(), "correct") {
		t.Errorf("record %+v", r)
	}

	// A second sign-up says and does nothing.
	must(t, w.SignUp(ctx, "ann@example.org", secret("another password")))
	_, err = w.Login(ctx, "ann@example.org", secret("another password"), linux)
	wantKind(t, err, fault.Unauthenticated)
	if _, err := w.Create(ctx, "ann@example.org", secret("another password")); fault.Of(err) != fault.Conflict {
		t.Errorf("the operator got %v", err)
	}

	// The token lives for 30 days, then not.
	w.now = today + account.TokenDays
	_, err = w.Authenticate(ctx, token)
	must(t, err)
	w.now++
	_, err = w.Authenticate(ctx, token)
	wantKind(t, err, fault.Unauthenticated)
	w.now = today
	must(t, w.Logout(ctx, token))
	must(t, w.Logout(ctx, token))
	_, err = w.Authenticate(ctx, token)
	wantKind(t, err, fault.Unauthenticated)
	_, err = w.Authenticate(ctx, account.Token{})
	wantKind(t, err, fault.Unauthenticated)
}

func TestRefusedSignUps(t *testing.T) {
	w, ctx := newWorld(t), t.Context()
	for _, c := range []struct{ email, password string }{
		{"", "long enough"},
		{"ann", "long enough"},
		{"ann@", "long enough"},
		{"@example.org", "long enough"},
		{"ann@localhost", "long enough"},
		{"ann@@example.org", "long enough"},
		{"ann@[192.0.2.1]", "long enough"},
		{"ann@192.0.2.1", "long enough"},
		{"ann..b@example.org", "long enough"},
		{".ann@example.org", "long enough"},
		{`"ann"@example.org`, "long enough"},
		{"ann b@example.org", "long enough"},
		{"ann@exa\x00mple.org", "long enough"},
		{"ann@éxample.org", "long enough"},
		{"ann@-example.org", "long enough"},
		{strings.Repeat("a", 65) + "@example.org", "long enough"},
		{"a@" + strings.Repeat("a.", 130) + "org", "long enough"},
		{"ann@example.org", ""},
		{"ann@example.org", "123456789"},
		{"ann@example.org", "ééééééééé"},
		{"ann@example.org", strings.Repeat("x", 1025)},
	} {
		err := w.SignUp(ctx, c.email, secret(c.password))
		wantKind(t, err, fault.Invalid)
		if len(c.email) > 3 && strings.Contains(err.Error(), c.email) {
			t.Errorf("the error repeats the address: %v", err)
		}
	}
	must(t, w.SignUp(ctx, "o'neil+vpn@mail.xn--bcher-kva.example", secret("éééééééééé")))
	if err := w.Each(ctx, func(account.Record) error { return nil }); err != nil {
		t.Error(err)
	}
	w.store.fail["AddAccount"] = fault.New(fault.Full, "full")
	wantKind(t, w.SignUp(ctx, "b@example.org", secret("long enough")), fault.Full)
	_, err := w.Find(ctx, "no address")
	wantKind(t, err, fault.Invalid)
}

// TestRefusedLogins holds that what is not known, not possible or wrong looks
// the same.
func TestRefusedLogins(t *testing.T) {
	w, ctx := newWorld(t), t.Context()
	must(t, w.SignUp(ctx, "ann@example.org", secret("correct horse")))
	var first error
	for _, c := range []struct{ email, password string }{
		{"ann@example.org", "wrong horse"},
		{"ben@example.org", "correct horse"},
		{"ben@example.org", ""},
		{"no address", "correct horse"},
		{"ann@example.org", ""},
		{"ann@example.org", strings.Repeat("x", 2000)},
		{"", ""},
	} {
		token, err := w.Login(ctx, c.email, secret(c.password), linux)
		wantKind(t, err, fault.Unauthenticated)
		if first == nil {
			first = err
		}
		if token.Reveal() != "" || !reflect.DeepEqual(err, first) {
			t.Errorf("%s: got %#v, want %#v", c.email, err, first)
		}
	}
	for _, app := range []account.App{{}, {OS: "beos", Version: "1.0.0"}, {OS: "linux", Version: "1.0"}, {OS: "linux", Version: "1.0.0\n"}} {
		_, err := w.Login(ctx, "ann@example.org", secret("correct horse"), app)
		wantKind(t, err, fault.Invalid)
	}
	r, err := w.Find(ctx, "ann@example.org")
	must(t, err)
	must(t, w.SetDisabled(ctx, r.ID, true))
	_, err = w.Login(ctx, "ann@example.org", secret("wrong horse"), linux)
	wantKind(t, err, fault.Unauthenticated)
	_, err = w.Login(ctx, "ann@example.org", secret("correct horse"), linux)
	wantKind(t, err, fault.Denied)
	must(t, w.SetDisabled(ctx, r.ID, false))
	for method, want := range map[string]fault.Kind{"FindAccount": fault.Unavailable, "AddToken": fault.Full} {
		w.store.fail = map[string]error{method: fault.New(want, "broken")}
		_, err = w.Login(ctx, "ann@example.org", secret("correct horse"), linux)
		wantKind(t, err, want)
	}
	w.store.fail = nil
	for _, phc := range []string{
		"", "$", "$argon2i$v=19$m=19456,t=2,p=1$c2FsdHNhbHQ$c2FsdHNhbHRzYWx0c2FsdA", "$argon2id$v=16$m=8,t=1,p=1$c2FsdHNhbHQ$c2FsdHNhbHRzYWx0c2FsdA",
		"$argon2id$v=19$m=99999999,t=2,p=1$c2FsdHNhbHQ$c2FsdHNhbHRzYWx0c2FsdA", "$argon2id$v=19$m=8,t=1,p=1$$", "$argon2id$v=19$m=8,t=1,p=1$!$!",
		"$argon2id$v=19$m=x$c2FsdHNhbHQ$c2FsdHNhbHRzYWx0c2FsdA",
	} {
		must(t, w.store.EditAccount(ctx, r.ID, func(r *account.Record) error { r.Password = secret(phc); return nil }))
		w.Service = account.New(account.Config{Store: w.store, Tokens: w.store, Limiter: anyone{}})
		_, err = w.Login(ctx, "ann@example.org", secret(""), linux)
		wantKind(t, err, fault.Internal)
	}
}

// anyone is a limiter that limits nothing.
type anyone struct{}

func (anyone) AllowSubject(string, private.Value[string]) bool { return true }

// TestWork counts hashes: a login costs exactly one whether or not there is
// such an account, and so does a sign-up.
func TestWork(t *testing.T) {
	w, ctx := newWorld(t), t.Context()
	must(t, w.SignUp(ctx, "ann@example.org", secret("correct horse")))
	measure := func(call func()) float64 {
		best := time.Hour
		for range 3 {
			start := time.Now()
			call()
			best = min(best, time.Since(start))
		}
		return best.Seconds()
	}
	login := func(email string) func() {
		return func() { _, _ = w.Login(ctx, email, secret("wrong horse"), linux) }
	}
	known, unknown := measure(login("ann@example.org")), measure(login("ben@example.org"))
	if ratio := known / unknown; ratio < 0.5 || ratio > 2 {
		t.Errorf("a login takes %.4f s for a known address, %.4f s for an unknown one", known, unknown)
	}
	if unknown < 0.005 {
		t.Errorf("a login for an unknown address takes %.4f s: no hash was computed", unknown)
	}
}

func TestSignUpStep(t *testing.T) {
	w, ctx := newWorld(t), t.Context()
	w.Service = account.New(account.Config{Store: w.store, Tokens: w.store, Limiter: anyone{}})
	for range 2 { // a new address, then a known one
		start := time.Now()
		must(t, w.SignUp(ctx, "ann@example.org", secret("correct horse")))
		if rest := time.Since(start) % (250 * time.Millisecond); time.Since(start) < 250*time.Millisecond || rest > 100*time.Millisecond {
			t.Errorf("took %v beyond a step", rest)
		}
	}
	short, cancel := context.WithTimeout(ctx, 150*time.Millisecond)
	defer cancel()
	wantKind(t, w.SignUp(short, "ann@example.org", secret("correct horse")), fault.Unavailable)
}

func TestLimits(t *testing.T) {
	w, ctx := newWorld(t), t.Context()
	// 15 takes longer than any machine needs to compute, but the window is a
	// minute: at most ten come through.
	kinds := map[fault.Kind]int{}
	var mu sync.Mutex
	var group sync.WaitGroup
	for range 15 {
		group.Go(func() {
			_, err := w.Login(ctx, "nobody@example.org", secret("wrong horse"), linux)
			mu.Lock()
			defer mu.Unlock()
			kinds[fault.Of(err)]++
		})
	}
	group.Wait()
	if kinds[fault.Unauthenticated] != 10 || kinds[fault.TooMany] != 5 {
		t.Errorf("15 logins ended as %v", kinds)
	}
	var last error
	for range 11 {
		last = w.SignUp(ctx, "nobody@example.org", secret("wrong horse"))
	}
	wantKind(t, last, fault.TooMany)
}

// TestBusy takes every slot of the hasher away.
func TestBusy(t *testing.T) {
	w := newWorld(t)
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	w.Service = account.New(account.Config{Store: w.store, Tokens: w.store, Limiter: anyone{}, Hashes: 1})
	var group sync.WaitGroup
	for range 8 {
		group.Go(func() { _ = w.SignUp(t.Context(), "ann@example.org", secret("correct horse")) })
	}
	refused := 0
	for range 50 {
		if err := w.SetPassword(ended, "x", secret("correct horse")); fault.Of(err) == fault.Unavailable {
			refused++
		}
		if _, err := w.Create(ended, "ben@example.org", secret("correct horse")); fault.Of(err) == fault.Unavailable {
			refused++
		}
	}
	group.Wait()
	if refused < 90 {
		t.Errorf("%d of 100 calls with an ended context were refused", refused)
	}
	_, err := w.Login(ended, "ann@example.org", secret("correct horse"), linux)
	wantKind(t, err, fault.Unavailable)
}

func TestLicences(t *testing.T) {
	w, ctx := newWorld(t), t.Context()
	id, err := w.Create(ctx, "ann@example.org", secret("correct horse"))
	must(t, err)
	licence := func(want account.Licence) {
		t.Helper()
		if got, err := w.Licence(ctx, id); err != nil || got != want {
			t.Errorf("licence %+v, %v; want %+v", got, err, want)
		}
	}
	extend := func(plan string, devices int, until day.Day) error {
		_, err := w.Extend(ctx, id, plan, devices, until)
		return err
	}
	wantKind(t, extend("", 0, today+9), fault.NotFound)
	wantKind(t, w.DisableLicence(ctx, id), fault.NotFound)
	wantKind(t, w.CreateLicence(ctx, id, "", 5, today), fault.Invalid)
	wantKind(t, w.CreateLicence(ctx, id, "a", 0, today), fault.Invalid)
	wantKind(t, w.CreateLicence(ctx, id, "a", 256, today), fault.Invalid)
	wantKind(t, w.CreateLicence(ctx, id, "a", 5, today-1), fault.Invalid)
	wantKind(t, w.CreateLicence(ctx, "x", "a", 5, today), fault.NotFound)
	must(t, w.CreateLicence(ctx, id, "standard", 5, today))
	licence(account.Licence{Plan: "standard", Devices: 5, PaidUntil: today})
	wantKind(t, w.CreateLicence(ctx, id, "standard", 5, today), fault.Conflict)
	wantKind(t, extend("UPPER", 0, today), fault.Invalid)
	wantKind(t, extend("", 300, today), fault.Invalid)
	wantKind(t, extend("", 0, today-1), fault.Conflict)
	must(t, extend("", 0, today+30))
	licence(account.Licence{Plan: "standard", Devices: 5, PaidUntil: today + 30})
	must(t, extend("large", 9, today+31))
	licence(account.Licence{Plan: "large", Devices: 9, PaidUntil: today + 31})
	must(t, w.DisableLicence(ctx, id))
	licence(account.Licence{Plan: "large", Devices: 9, PaidUntil: today + 31, Disabled: true})
	wantKind(t, extend("", 0, today+60), fault.Denied)
	must(t, w.CreateLicence(ctx, id, "standard", 1, today+1))
	licence(account.Licence{Plan: "standard", Devices: 1, PaidUntil: today + 1})
	w.now = today + 2
	must(t, w.CreateLicence(ctx, id, "standard", 1, today+2)) // the old one has ended
	if !(account.Licence{PaidUntil: 5}).Active(5) || (account.Licence{PaidUntil: 5}).Active(6) || (account.Licence{PaidUntil: 5, Disabled: true}).Active(5) {
		t.Error("Active is wrong")
	}
}

func TestLife(t *testing.T) {
	w, ctx := newWorld(t), t.Context()
	id, err := w.Create(ctx, "ann@example.org", secret("correct horse"))
	must(t, err)
	old, err := w.Credential(ctx, id)
	must(t, err)
	fresh, err := w.ReplaceCredential(ctx, id)
	must(t, err)
	if stored, err := w.Credential(ctx, id); err != nil || stored.Username.Reveal() != fresh.Username.Reveal() ||
		stored.Password.Reveal() != fresh.Password.Reveal() || fresh.Username.Reveal() == old.Username.Reveal() {
		t.Errorf("the credential was not replaced: %v", err)
	}
	_, err = w.ReplaceCredential(ctx, "x")
	wantKind(t, err, fault.NotFound)

	login := func(password string) (account.Token, error) {
		return w.Login(ctx, "ann@example.org", secret(password), linux)
	}
	token, err := login("correct horse")
	must(t, err)
	wantKind(t, w.SetPassword(ctx, id, secret("short")), fault.Invalid)
	wantKind(t, w.SetPassword(ctx, "x", secret("battery staple")), fault.NotFound)
	must(t, w.SetPassword(ctx, id, secret("battery staple")))
	_, err = w.Authenticate(ctx, token)
	wantKind(t, err, fault.Unauthenticated)
	_, err = login("correct horse")
	wantKind(t, err, fault.Unauthenticated)
	token, err = login("battery staple")
	must(t, err)
	must(t, w.SetDisabled(ctx, id, true))
	must(t, w.SetDisabled(ctx, id, false))
	_, err = w.Authenticate(ctx, token)
	wantKind(t, err, fault.Unauthenticated)
	wantKind(t, w.SetDisabled(ctx, "x", true), fault.NotFound)
	must(t, w.Delete(ctx, id))
	_, err = login("battery staple")
	wantKind(t, err, fault.Unauthenticated)
	_, err = w.Licence(ctx, id)
	wantKind(t, err, fault.NotFound)
	own := errors.New("own")
	must(t, w.SignUp(ctx, "ben@example.org", secret("correct horse")))
	if err := w.Each(ctx, func(account.Record) error { return own }); err != own {
		t.Errorf("got %v", err)
	}
}

func FuzzNormalizeEmail(f *testing.F) {
	for _, s := range []string{"ann@example.org", " A.B@Example.org\n", "a@b", "\x00@\xff", `"x y"@example.org`} {
		f.Add(s)
	}
	form := regexp.MustCompile(`^[!-?A-~]{1,64}@[a-z0-9.-]+$`)
	f.Fuzz(func(t *testing.T, s string) {
		e, err := account.NormalizeEmail(s)
		if err != nil {
			if fault.Of(err) != fault.Invalid || e.Reveal() != "" {
				t.Fatalf("%q: %v", s, err)
			}
			return
		}
		again, err := account.NormalizeEmail(e.Reveal())
		if err != nil || again.Reveal() != e.Reveal() || !form.MatchString(e.Reveal()) {
			t.Fatalf("%q becomes %q, then %q, %v", s, e.Reveal(), again.Reveal(), err)
		}
	})
}

func BenchmarkLogin(b *testing.B) {
	s, err := sqlite.Open(b.Context(), filepath.Join(b.TempDir(), "db"), sqlite.Options{Create: true})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = s.Close() })
	service := account.New(account.Config{Store: s, Tokens: s, Limiter: anyone{}})
	if _, err := service.Create(b.Context(), "ann@example.org", secret("correct horse")); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := service.Login(b.Context(), "ann@example.org", secret("correct horse"), linux); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkAuthenticate(b *testing.B) {
	s, err := sqlite.Open(b.Context(), filepath.Join(b.TempDir(), "db"), sqlite.Options{Create: true})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = s.Close() })
	service := account.New(account.Config{Store: s, Tokens: s, Limiter: anyone{}})
	if _, err := service.Create(b.Context(), "ann@example.org", secret("correct horse")); err != nil {
		b.Fatal(err)
	}
	token, err := service.Login(b.Context(), "ann@example.org", secret("correct horse"), linux)
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := service.Authenticate(b.Context(), token); err != nil {
			b.Fatal(err)
		}
	}
}
