// Package storetest is the contract that every implementation of [store.Store]
// must pass.
//
// An implementation's test calls [Run] with a function that opens its store,
// and [Main] from TestMain, so that the suite can start the test program again
// as a writer that it kills.
package storetest

import (
	"context"
	"errors"
	"net/netip"
	"reflect"
	"slices"
	"testing"
	"time"

	"lethe/account"
	"lethe/day"
	"lethe/fault"
	"lethe/location"
	"lethe/private"
	"lethe/protocol"
	"lethe/publish"
	"lethe/store"
	"lethe/usage"
)

// Open opens the store in dir; create says that it is not there yet. Stores
// opened on one dir share their content.
type Open func(dir string, create bool) (store.Store, error)

// Run runs the suite.
func Run(t *testing.T, open Open) {
	for _, c := range []struct {
		name string
		test func(*testing.T, *bench)
	}{
		{"accounts", accounts},
		{"errors of callers", callersErrors},
		{"tokens", tokens},
		{"changes", changes},
		{"changes that publish nothing", silentChanges},
		{"all", all},
		{"versions", versions},
		{"places", places},
		{"usage", usageRows},
		{"usage ceiling", usageCeiling},
		{"invalid usage", invalidUsage},
		{"notify", notify},
		{"reopen", reopen},
		{"ended context", endedContext},
		{"closed", closed},
		{"concurrency", concurrency},
		{"crash", crash},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := &bench{open: open, dir: t.TempDir()}
			b.Store = b.again(t, true)
			c.test(t, b)
		})
	}
}

// bench is a fresh store and the means to open it once more.
type bench struct {
	store.Store
	open Open
	dir  string
}

func (b *bench) again(t *testing.T, create bool) store.Store {
	t.Helper()
	s, err := b.open(b.dir, create)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// Record returns an account record for tests; equal names give equal records.
func Record(name string) account.Record {
	return account.Record{
		ID: account.ID("id-" + name), Email: private.Of(name + "@example.org"), Password: private.Of("$argon2id$" + name),
		Licence:    account.Licence{Plan: "standard", Devices: 5, PaidUntil: 20000},
		Credential: account.Credential{Username: private.Of("user-" + name), Password: private.Of("secret-" + name)},
	}
}

// plain is a record that can be compared.
type plain struct {
	id                                   account.ID
	email, password, username, vpnSecret string
	disabled                             bool
	licence                              account.Licence
	app                                  account.App
}

func bare(r account.Record) plain {
	return plain{
		r.ID, r.Email.Reveal(), r.Password.Reveal(), r.Credential.Username.Reveal(), r.Credential.Password.Reveal(),
		r.Disabled, r.Licence, r.App,
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("got error %v (%v)", err, errors.Unwrap(err))
	}
}

func wantKind(t *testing.T, err error, want fault.Kind) {
	t.Helper()
	if err == nil || fault.Of(err) != want {
		t.Fatalf("got %v (%v), want kind %v", err, fault.Of(err), want)
	}
}

func accounts(t *testing.T, b *bench) {
	ctx := t.Context()
	ann, ben := Record("ann"), Record("ben")
	must(t, b.AddAccount(ctx, ben))
	must(t, b.AddAccount(ctx, ann))
	got, err := b.FindAccount(ctx, ann.Email)
	must(t, err)
	if bare(got) != bare(ann) {
		t.Errorf("found %+v, want %+v", bare(got), bare(ann))
	}
	got, err = b.Account(ctx, ben.ID)
	must(t, err)
	if bare(got) != bare(ben) {
		t.Errorf("got %+v, want %+v", bare(got), bare(ben))
	}
	twin := Record("twin")
	twin.Email = ann.Email
	wantKind(t, b.AddAccount(ctx, twin), fault.Conflict)
	_, err = b.Account(ctx, twin.ID)
	wantKind(t, err, fault.NotFound)
	_, err = b.FindAccount(ctx, private.Of("x@example.org"))
	wantKind(t, err, fault.NotFound)

	want := Record("ann2")
	want.ID, want.Disabled, want.Licence.Disabled, want.App = ann.ID, true, true, account.App{OS: "linux", Version: "1.2.3"}
	must(t, b.EditAccount(ctx, ann.ID, func(r *account.Record) error {
		*r = want
		r.ID = "ignored"
		return nil
	}))
	got, err = b.Account(ctx, ann.ID)
	must(t, err)
	if bare(got) != bare(want) {
		t.Errorf("after the edit %+v, want %+v", bare(got), bare(want))
	}
	wantKind(t, b.EditAccount(ctx, ann.ID, func(r *account.Record) error { r.Email = ben.Email; return nil }), fault.Conflict)
	wantKind(t, b.EditAccount(ctx, "x", func(*account.Record) error { return nil }), fault.NotFound)

	var order []string
	must(t, b.EachAccount(ctx, func(r account.Record) error { order = append(order, r.Email.Reveal()); return nil }))
	if !slices.Equal(order, []string{"ann2@example.org", "ben@example.org"}) {
		t.Errorf("listed %q", order)
	}
	must(t, b.DeleteAccount(ctx, ann.ID))
	_, err = b.Account(ctx, ann.ID)
	wantKind(t, err, fault.NotFound)
	wantKind(t, b.DeleteAccount(ctx, ann.ID), fault.NotFound)
}

func callersErrors(t *testing.T, b *bench) {
	ctx := t.Context()
	own := errors.New("own")
	must(t, b.AddAccount(ctx, Record("ann")))
	if err := b.EditAccount(ctx, "id-ann", func(r *account.Record) error { r.Disabled = true; return own }); err != own {
		t.Errorf("EditAccount returned %v", err)
	}
	if r, err := b.Account(ctx, "id-ann"); err != nil || r.Disabled {
		t.Errorf("a failed edit changed the account: %v", err)
	}
	if err := b.EachAccount(ctx, func(account.Record) error { return own }); err != own {
		t.Errorf("EachAccount returned %v", err)
	}
	if _, err := b.All(ctx, func(publish.Credential) error { return own }); err != own {
		t.Errorf("All returned %v", err)
	}
}

func tokens(t *testing.T, b *bench) {
	ctx := t.Context()
	ann, ben := Record("ann"), Record("ben")
	must(t, b.AddAccount(ctx, ann))
	must(t, b.AddAccount(ctx, ben))
	hash := func(s string) account.TokenHash { return account.HashToken(private.Of(s)) }
	owner := func(token string, today day.Day) (account.ID, error) { return b.TokenOwner(ctx, hash(token), today) }
	app := account.App{OS: "ios", Version: "0.1.0"}
	must(t, b.AddToken(ctx, ann.ID, hash("a"), 100, 130, app))
	must(t, b.AddToken(ctx, ann.ID, hash("a2"), 101, 131, account.App{OS: "linux", Version: "0.2.0"}))
	must(t, b.AddToken(ctx, ben.ID, hash("b"), 101, 131, app))
	wantKind(t, b.AddToken(ctx, "x", hash("x"), 101, 131, app), fault.NotFound)
	if r, err := b.Account(ctx, ann.ID); err != nil || r.App != (account.App{OS: "linux", Version: "0.2.0"}) {
		t.Errorf("app is %+v, %v; want the latest", r.App, err)
	}
	for _, c := range []struct {
		token string
		today day.Day
		want  account.ID
	}{{"a", 130, ann.ID}, {"a", 131, ""}, {"a2", 131, ann.ID}, {"b", 100, ben.ID}, {"x", 100, ""}, {"", 100, ""}} {
		got, err := owner(c.token, c.today)
		if c.want == "" {
			wantKind(t, err, fault.NotFound)
		} else if err != nil || got != c.want {
			t.Errorf("token %s on day %d is of %q, %v; want %q", c.token, c.today, got, err, c.want)
		}
	}
	must(t, b.AddToken(ctx, ben.ID, hash("b2"), 131, 161, app)) // removes "a", which ended on 130
	_, err := owner("a", 100)
	wantKind(t, err, fault.NotFound)
	must(t, b.EditAccount(ctx, ben.ID, func(r *account.Record) error { r.Disabled = true; return nil }))
	_, err = owner("b", 100)
	wantKind(t, err, fault.NotFound)
	must(t, b.EditAccount(ctx, ben.ID, func(r *account.Record) error { r.Disabled = false; return nil }))
	must(t, b.DeleteToken(ctx, hash("b")))
	must(t, b.DeleteToken(ctx, hash("b")))
	_, err = owner("b", 100)
	wantKind(t, err, fault.NotFound)
	must(t, b.DeleteTokens(ctx, ben.ID))
	_, err = owner("b2", 100)
	wantKind(t, err, fault.NotFound)
	must(t, b.DeleteAccount(ctx, ann.ID))
	_, err = owner("a2", 100)
	wantKind(t, err, fault.NotFound)
}

// state is a change that can be compared.
type state struct {
	username, password string
	until              day.Day
	disabled, deleted  bool
}

// pending returns what Changes says and the highest number in it. It checks
// that numbers ascend.
func pending(t *testing.T, b *bench, limit int) (states []state, last uint64) {
	t.Helper()
	list, err := b.Changes(t.Context(), limit)
	must(t, err)
	for _, c := range list {
		if c.Sequence <= last {
			t.Fatalf("number %d after %d", c.Sequence, last)
		}
		last = c.Sequence
		states = append(states, state{c.Username.Reveal(), c.Password.Reveal(), c.PaidUntil, c.Disabled, c.Deleted})
	}
	return states, last
}

func wantPending(t *testing.T, b *bench, want ...state) uint64 {
	t.Helper()
	got, last := pending(t, b, 1000)
	if !slices.Equal(got, want) {
		t.Fatalf("pending %+v, want %+v", got, want)
	}
	return last
}

func changes(t *testing.T, b *bench) {
	ctx := t.Context()
	wantPending(t, b)
	must(t, b.AddAccount(ctx, Record("ann")))
	must(t, b.AddAccount(ctx, Record("ben")))
	ann := state{"user-ann", "secret-ann", 20000, false, false}
	ben := state{"user-ben", "secret-ben", 20000, false, false}
	wantPending(t, b, ann, ben)
	if got, _ := pending(t, b, 1); !slices.Equal(got, []state{ann}) {
		t.Errorf("one pending is %+v", got)
	}
	edit := func(id account.ID, f func(*account.Record)) {
		t.Helper()
		must(t, b.EditAccount(ctx, id, func(r *account.Record) error { f(r); return nil }))
	}
	edit("id-ann", func(r *account.Record) { r.Licence.PaidUntil = 20001 }) // ann moves behind ben
	ann.until = 20001
	last := wantPending(t, b, ben, ann)

	edit("id-ben", func(r *account.Record) { r.Disabled = true }) // after the publisher has read
	must(t, b.Published(ctx, last))
	must(t, b.Published(ctx, last))
	ben.disabled = true
	wantPending(t, b, ben)

	edit("id-ann", func(r *account.Record) { r.Credential = Record("new").Credential })
	edit("id-ann", func(r *account.Record) { r.Licence.Disabled = true })
	gone := state{username: "user-ann", deleted: true}
	ann = state{"user-new", "secret-new", 20001, true, false}
	wantPending(t, b, ben, gone, ann)
	must(t, b.DeleteAccount(ctx, "id-ann"))
	last = wantPending(t, b, ben, gone, state{username: "user-new", deleted: true})
	must(t, b.Published(ctx, last))
	wantPending(t, b)
	must(t, b.AddAccount(ctx, Record("eve")))
	if _, next := pending(t, b, 1); next <= last {
		t.Errorf("number %d came again", next)
	}
}

func silentChanges(t *testing.T, b *bench) {
	ctx := t.Context()
	must(t, b.AddAccount(ctx, Record("ann")))
	_, last := pending(t, b, 1)
	must(t, b.Published(ctx, last))
	must(t, b.EditAccount(ctx, "id-ann", func(r *account.Record) error {
		r.Password, r.App.OS, r.Licence.Plan, r.Licence.Devices = private.Of("other"), "linux", "large", 9
		return nil
	}))
	must(t, b.AddToken(ctx, "id-ann", account.TokenHash{1}, 1, 2, account.App{}))
	wantPending(t, b)
}

func all(t *testing.T, b *bench) {
	ctx := t.Context()
	read := func() (got []string, sequence uint64) {
		sequence, err := b.All(ctx, func(c publish.Credential) error {
			got = append(got, c.Username.Reveal()+" "+c.Password.Reveal()+" "+c.PaidUntil.String())
			return nil
		})
		must(t, err)
		slices.Sort(got)
		return got, sequence
	}
	if got, sequence := read(); len(got) != 0 || sequence != 0 {
		t.Errorf("an empty store holds %q at %d", got, sequence)
	}
	for _, name := range []string{"ann", "ben", "cem"} {
		must(t, b.AddAccount(ctx, Record(name)))
	}
	must(t, b.DeleteAccount(ctx, "id-cem"))
	_, last := pending(t, b, 1000)
	got, sequence := read()
	if !slices.Equal(got, []string{"user-ann secret-ann 2024-10-04", "user-ben secret-ben 2024-10-04"}) || sequence != last {
		t.Errorf("got %q at %d, want at %d", got, sequence, last)
	}
	// The snapshot does not see what happens while it is read.
	n := 0
	sequence, err := b.All(ctx, func(publish.Credential) error {
		n++
		return b.AddAccount(ctx, Record("late"+string(rune('a'+n))))
	})
	if err != nil || n != 2 || sequence != last {
		t.Errorf("the snapshot has %d credentials at %d, %v", n, sequence, err)
	}
}

func versions(t *testing.T, b *bench) {
	ctx := t.Context()
	for _, c := range []struct{ floor, want uint64 }{{0, 1}, {0, 2}, {10, 11}, {5, 12}, {12, 13}} {
		if got, err := b.NextVersion(ctx, c.floor); err != nil || got != c.want {
			t.Errorf("version above %d is %d, %v; want %d", c.floor, got, err, c.want)
		}
	}
}

// Server returns a server for tests.
func Server(id string, l location.ID) location.Server {
	return location.Server{
		ID: id, Location: l, Enabled: true, CA: "ca", TLSCrypt: "key",
		Addresses: []netip.Addr{netip.MustParseAddr("198.51.100.7"), netip.MustParseAddr("2001:db8::7")},
		Endpoints: []location.Endpoint{{Protocol: protocol.OpenVPNUDP, Port: 1194}, {Protocol: protocol.OpenVPNTCP, Port: 443}},
	}
}

func places(t *testing.T, b *bench) {
	ctx := t.Context()
	want := func(w location.Directory) {
		t.Helper()
		if got, err := b.Directory(ctx); err != nil || !reflect.DeepEqual(got, w) {
			t.Errorf("got %+v, %v; want %+v", got, err, w)
		}
	}
	want(location.Directory{Locations: []location.Location{}, Servers: []location.Server{}})
	ams := location.Location{Code: "nl-ams", Country: "NL", City: "Amsterdam"}
	nyc := location.Location{Code: "us-nyc", Country: "US", City: "New York"}
	add := func(l *location.Location, id location.ID) {
		t.Helper()
		got, err := b.AddLocation(ctx, *l)
		must(t, err)
		if l.ID = got; got != id {
			t.Fatalf("got id %d, want %d", got, id)
		}
	}
	add(&ams, 1)
	add(&nyc, 2)
	_, err := b.AddLocation(ctx, ams)
	wantKind(t, err, fault.Conflict)
	_, err = b.AddLocation(ctx, location.Location{Code: "X"})
	wantKind(t, err, fault.Invalid)
	one, two := Server("nl-ams-1", 1), Server("nl-ams-2", 1)
	must(t, b.AddServer(ctx, two))
	must(t, b.AddServer(ctx, one))
	wantKind(t, b.AddServer(ctx, one), fault.Conflict)
	wantKind(t, b.AddServer(ctx, Server("xx-1", 9)), fault.NotFound)
	wantKind(t, b.AddServer(ctx, Server("..", 1)), fault.Invalid)
	want(location.Directory{Locations: []location.Location{ams, nyc}, Servers: []location.Server{one, two}})
	must(t, b.EnableServer(ctx, two.ID, false))
	two.Enabled = false
	want(location.Directory{Locations: []location.Location{ams, nyc}, Servers: []location.Server{one, two}})
	wantKind(t, b.RemoveLocation(ctx, 1), fault.Conflict)
	must(t, b.RemoveServer(ctx, one.ID))
	wantKind(t, b.RemoveServer(ctx, one.ID), fault.NotFound)
	wantKind(t, b.EnableServer(ctx, one.ID, true), fault.NotFound)
	must(t, b.RemoveLocation(ctx, 2))
	wantKind(t, b.RemoveLocation(ctx, 2), fault.NotFound)
	add(&nyc, 3) // ids are never used again
	want(location.Directory{Locations: []location.Location{ams, nyc}, Servers: []location.Server{two}})
}

// row returns a usage record for tests.
func row(user byte, date day.Day, in, out uint64) usage.Record {
	return usage.Record{
		Key: usage.Key{Date: date, User: usage.UserHash{user}, Country: "DE", ISP: "Lahn Net", Location: 1, Protocol: protocol.OpenVPNUDP},
		In:  in, Out: out,
	}
}

func batch(records ...usage.Record) usage.Batch {
	return usage.Batch{ID: usage.NewBatchID(), Records: records}
}

func wantUsage(t *testing.T, b *bench, user byte, want ...usage.Record) {
	t.Helper()
	got, err := b.UsageOf(t.Context(), usage.UserHash{user}, 0, 0xffff)
	if err != nil || !slices.Equal(got, want) {
		t.Fatalf("got %+v, %v; want %+v", got, err, want)
	}
}

func usageRows(t *testing.T, b *bench) {
	ctx := t.Context()
	wantUsage(t, b, 1)
	other := row(1, 10, 5, 6)
	other.ISP = ""
	first := batch(row(1, 11, 3, 4), row(1, 10, 1, 2), other, row(2, 10, 9, 9))
	must(t, b.AcceptUsage(ctx, "a", first))
	must(t, b.AcceptUsage(ctx, "a", first)) // the answer was lost
	wantUsage(t, b, 1, other, row(1, 10, 1, 2), row(1, 11, 3, 4))
	must(t, b.AcceptUsage(ctx, "b", first)) // another server's
	wantUsage(t, b, 2, row(2, 10, 18, 18))
	must(t, b.AcceptUsage(ctx, "a", batch()))
	must(t, b.AcceptUsage(ctx, "b", first))
	wantUsage(t, b, 2, row(2, 10, 18, 18))
	// Only the last batch of a server is remembered.
	must(t, b.AcceptUsage(ctx, "a", first))
	wantUsage(t, b, 2, row(2, 10, 27, 27))
	got, err := b.UsageOf(ctx, usage.UserHash{1}, 11, 11)
	if err != nil || !slices.Equal(got, []usage.Record{row(1, 11, 9, 12)}) {
		t.Errorf("one day is %+v, %v", got, err)
	}
	if n, err := b.PurgeUsage(ctx, 11); err != nil || n != 3 {
		t.Errorf("purged %d, %v; want 3", n, err)
	}
	wantUsage(t, b, 1, row(1, 11, 9, 12))
	wantUsage(t, b, 2)
}

func usageCeiling(t *testing.T, b *bench) {
	const big = uint64(1) << 40
	ctx := t.Context()
	var records []usage.Record
	for i := range 100 {
		r := row(1, day.Day(i), big, big)
		records = append(records, r)
	}
	for range 20 {
		must(t, b.AcceptUsage(ctx, "a", batch(records...)))
	}
	got, err := b.UsageOf(ctx, usage.UserHash{1}, 0, 0)
	if err != nil || len(got) != 1 || got[0].In != 20*big || got[0].Out != 20*big {
		t.Errorf("got %+v, %v", got, err)
	}
}

func invalidUsage(t *testing.T, b *bench) {
	bad := row(1, 1, 1, 1)
	bad.Location = 0
	wantKind(t, b.AcceptUsage(t.Context(), "a", batch(row(1, 1, 1, 1), bad)), fault.Invalid)
	wantUsage(t, b, 1)
}

func notify(t *testing.T, b *bench) {
	ctx := t.Context()
	other := b.again(t, false)
	heard := func(s store.Store) bool {
		select {
		case <-s.Notify():
			return true
		case <-time.After(5 * time.Second):
			return false
		}
	}
	server := Server("nl-ams-1", 1)
	for _, c := range []struct {
		name string
		do   func() error
	}{
		{"add account", func() error { return b.AddAccount(ctx, Record("ann")) }},
		{"edit account", func() error {
			return b.EditAccount(ctx, "id-ann", func(r *account.Record) error { r.Disabled = true; return nil })
		}},
		{"delete account", func() error { return b.DeleteAccount(ctx, "id-ann") }},
		{"add location", func() error {
			_, err := b.AddLocation(ctx, location.Location{Code: "nl-ams", Country: "NL", City: "A"})
			return err
		}},
		{"add server", func() error { return b.AddServer(ctx, server) }},
		{"enable server", func() error { return b.EnableServer(ctx, server.ID, false) }},
		{"remove server", func() error { return b.RemoveServer(ctx, server.ID) }},
		{"remove location", func() error { return b.RemoveLocation(ctx, 1) }},
	} {
		must(t, c.do())
		if !heard(b) || !heard(other) {
			t.Fatalf("%s: nobody was told", c.name)
		}
	}
	// The own poke and the watcher may both have told of the last one: let it
	// pass, then what servers are not told must stay silent.
	time.Sleep(time.Second)
	for _, s := range []store.Store{b.Store, other} {
		select {
		case <-s.Notify():
		default:
		}
	}
	must(t, b.AcceptUsage(ctx, "a", batch(row(1, 1, 1, 1))))
	must(t, b.Published(ctx, 1000))
	time.Sleep(time.Second)
	for _, s := range []store.Store{b.Store, other} {
		select {
		case <-s.Notify():
			t.Error("told of what servers need not know")
		default:
		}
	}
}

func reopen(t *testing.T, b *bench) {
	ctx := t.Context()
	must(t, b.AddAccount(ctx, Record("ann")))
	must(t, b.AcceptUsage(ctx, "a", batch(row(1, 1, 2, 3))))
	must(t, b.Close())
	if s, err := b.open(b.dir, true); fault.Of(err) != fault.Conflict {
		t.Errorf("made a second store over the first: %v, %v", s, err)
	}
	b.Store = b.again(t, false)
	got, err := b.FindAccount(ctx, private.Of("ann@example.org"))
	must(t, err)
	if bare(got) != bare(Record("ann")) {
		t.Errorf("came back as %+v", bare(got))
	}
	wantUsage(t, b, 1, row(1, 1, 2, 3))
	if s, err := b.open(t.TempDir(), false); fault.Of(err) != fault.NotFound {
		t.Errorf("opened a store that is not there: %v, %v", s, err)
	}
}

// every returns each method of a store as a call without result.
func every(ctx context.Context, s store.Store) map[string]func() error {
	edit := func(*account.Record) error { return nil }
	return map[string]func() error{
		"AddAccount":    func() error { return s.AddAccount(ctx, Record("eve")) },
		"FindAccount":   func() error { _, err := s.FindAccount(ctx, private.Of("ann@example.org")); return err },
		"Account":       func() error { _, err := s.Account(ctx, "id-ann"); return err },
		"EditAccount":   func() error { return s.EditAccount(ctx, "id-ann", edit) },
		"DeleteAccount": func() error { return s.DeleteAccount(ctx, "id-ann") },
		"EachAccount":   func() error { return s.EachAccount(ctx, func(account.Record) error { return nil }) },
		"AddToken":      func() error { return s.AddToken(ctx, "id-ann", account.TokenHash{}, 1, 2, account.App{}) },
		"TokenOwner":    func() error { _, err := s.TokenOwner(ctx, account.TokenHash{}, 1); return err },
		"DeleteToken":   func() error { return s.DeleteToken(ctx, account.TokenHash{}) },
		"DeleteTokens":  func() error { return s.DeleteTokens(ctx, "id-ann") },
		"Changes":       func() error { _, err := s.Changes(ctx, 1); return err },
		"All":           func() error { _, err := s.All(ctx, func(publish.Credential) error { return nil }); return err },
		"Published":     func() error { return s.Published(ctx, 1) },
		"NextVersion":   func() error { _, err := s.NextVersion(ctx, 1); return err },
		"Directory":     func() error { _, err := s.Directory(ctx); return err },
		"AcceptUsage":   func() error { return s.AcceptUsage(ctx, "a", batch()) },
		"UsageOf":       func() error { _, err := s.UsageOf(ctx, usage.UserHash{}, 0, 1); return err },
		"PurgeUsage":    func() error { _, err := s.PurgeUsage(ctx, 1); return err },
		"AddLocation": func() error {
			_, err := s.AddLocation(ctx, location.Location{Code: "de-ber", Country: "DE", City: "B"})
			return err
		},
		"RemoveLocation": func() error { return s.RemoveLocation(ctx, 1) },
		"AddServer":      func() error { return s.AddServer(ctx, Server("de-ber-1", 1)) },
		"EnableServer":   func() error { return s.EnableServer(ctx, "a", true) },
		"RemoveServer":   func() error { return s.RemoveServer(ctx, "a") },
	}
}

func endedContext(t *testing.T, b *bench) {
	must(t, b.AddAccount(t.Context(), Record("ann")))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for name, call := range every(ctx, b) {
		if err := call(); fault.Of(err) != fault.Unavailable {
			t.Errorf("%s: got %v, want unavailable", name, err)
		}
	}
	if _, err := b.Account(t.Context(), "id-ann"); err != nil {
		t.Error(err)
	}
}

func closed(t *testing.T, b *bench) {
	must(t, b.AddAccount(t.Context(), Record("ann")))
	must(t, b.Close())
	for name, call := range every(t.Context(), b) {
		if err := call(); err == nil {
			t.Errorf("%s works on a closed store", name)
		}
	}
	b.Store = b.again(t, false)
}
