package client_test

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"lethe/client"
	"lethe/day"
	"lethe/internal/testkit"
)

// age makes the app's copy of credential and licence as old as d.
func (p *person) age(d time.Duration) {
	p.t.Helper()
	path := filepath.Join(p.env["XDG_STATE_HOME"], "lethe", "credential.json")
	var copied map[string]any
	b, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(b, &copied)
	}
	if err != nil {
		p.t.Fatal(err)
	}
	copied["since"] = time.Now().Add(-d)
	if b, err = json.Marshal(copied); err == nil {
		err = os.WriteFile(path, b, 0o600)
	}
	if err != nil {
		p.t.Fatal(err)
	}
}

const learning = "note: servers learn of new accounts, licences and credentials within a minute; trying again\n"

// TestNewRights: a server that has not heard of a credential yet is asked again, with the lock up,
// for a minute after the app has first seen it, and no longer.
func TestNewRights(t *testing.T) {
	r := newRig(t)
	s := newService(t, r.server)
	s.accounts["ada@example.org"], s.password = accountPassword, "late"
	p := newPerson(t, s)
	r.startHelper()
	p.env["LETHE_SOCKET"] = r.socket()
	p.expect(0, "logged in.*", accountPassword, "login", "ada@example.org")

	// The server learns of it.
	type result struct {
		code      int
		out, errs string
	}
	connect := func(args ...string) (ended chan result) {
		ended = make(chan result, 1)
		go func() {
			code, out, errs := p.types("", append([]string{"connect", "nl-ams"}, args...)...)
			ended <- result{code, out, errs}
		}()
		return ended
	}
	ended := connect()
	r.await(client.Blocked)
	if _, err := r.visit(webV4); err == nil {
		t.Error("the lock is open between two tries")
	}
	r.write(filepath.Join(r.dir, "learned"), nil, 0o600)
	if got := <-ended; got.code != 0 || got.errs != learning || !strings.HasPrefix(got.out, "connected to Amsterdam") {
		t.Errorf("a server that learns: %+v", got)
	}
	r.call(client.Request{Op: client.OpDisconnect})
	os.Remove(filepath.Join(r.dir, "learned"))

	// What is said, and how the waiting ends otherwise. The lock cuts the copy's owner off: the copy is used.
	p.expect(0, "connecting .*note: servers learn of new accounts, licences and credentials within a minute and refuse them until then\n", "", "connect", "nl-ams", "--no-wait")
	r.await(client.Blocked)
	p.expect(6, learning+"error: still refused when the time was over: user name or password refused\nhint: .*`lethe connect` tries again.*\n", "", "connect", "--timeout", "700ms")
	ctx, cancel := context.WithCancel(t.Context())
	var said testkit.Log
	interrupted := make(chan int, 1)
	go func() {
		interrupted <- client.Run(ctx, []string{"connect"}, strings.NewReader(""), &said, &said, func(k string) string { return p.env[k] })
	}()
	r.eventually(5*time.Second, "the person is told", func() bool { return strings.Contains(said.String(), learning) })
	cancel()
	if code := <-interrupted; code != 1 || said.String() != learning+"error: interrupted\n" {
		t.Errorf("interrupted: %d, %s", code, said.String())
	}
	ended = connect("--json")
	r.await(client.Connecting)
	r.await(client.Blocked)
	r.call(client.Request{Op: client.OpDisconnect})
	if got := <-ended; got.code != 4 || !strings.Contains(got.out, `"somebody else has `) || got.errs != "" {
		t.Errorf("somebody disconnects: %+v", got)
	}
	if now := r.call(client.Request{Op: client.OpStatus}); now.State != client.Disconnected {
		t.Errorf("the app has overruled who disconnected: %s", now.State)
	}

	// The minute is over: soon, then at once.
	p.age(55 * time.Second)
	start := time.Now()
	p.expect(4, learning+"error: user name or password refused\nhint: .*\n", "", "connect")
	if d := time.Since(start); d < 4*time.Second || d > 20*time.Second {
		t.Errorf("refused after %s", d)
	}
	p.age(time.Minute)
	start = time.Now()
	p.expect(4, "error: user name or password refused\nhint: .*\n", "", "connect")
	if d := time.Since(start); d > time.Second {
		t.Errorf("refused after %s", d)
	}
	r.call(client.Request{Op: client.OpDisconnect})

	// A clock that was set back does not make the minute longer; a change begins a new one.
	p.age(-time.Hour) // from the future
	ended = connect("--timeout", "300ms")
	if got := <-ended; got.code != 6 {
		t.Errorf("a copy from the future: %+v", got)
	}
	r.call(client.Request{Op: client.OpDisconnect})
	p.age(time.Hour)
	s.set(func() { s.paid++ })
	p.expect(6, learning+"error: still refused .*", "", "connect", "--timeout", "500ms")
	r.call(client.Request{Op: client.OpDisconnect})
}

// TestUnlicensed: what the service says is not paid for is not tried, and said at once.
func TestUnlicensed(t *testing.T) {
	r := newRig(t)
	s := newService(t, r.server)
	s.accounts["ada@example.org"] = accountPassword
	p := newPerson(t, s)
	r.startHelper()
	p.env["LETHE_SOCKET"] = r.socket()
	p.expect(0, "logged in.*", accountPassword, "login", "ada@example.org")
	for _, c := range []struct {
		change func()
		want   string
	}{
		{func() { s.paid = day.Today() - 1 }, "the licence has ended\nhint: its last day was " + (day.Today() - 1).String() + "; extend it to connect"},
		{func() { s.ended = true }, "the provider has ended this account's licence"},
		{func() { s.plan, s.paid, s.ended = "", 0, false }, "this account has no licence yet"},
	} {
		s.set(c.change)
		start := time.Now()
		p.expect(4, "error: "+c.want+".*\n", "", "connect", "nl-ams")
		if d := time.Since(start); d > time.Second {
			t.Errorf("said after %s", d)
		}
		if now := r.call(client.Request{Op: client.OpStatus}); now.State != client.Disconnected {
			t.Errorf("%s: %s", c.want, now.State)
		}
	}
	// What a copy says may be out of date, so the server decides.
	s.stop()
	p.expect(0, "connected to Amsterdam.*", "", "connect", "nl-ams")
	r.call(client.Request{Op: client.OpDisconnect})
}
