package client_test

import (
	"bytes"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"lethe/account"
	"lethe/client"
	"lethe/fault"
	"lethe/private"
)

// counted is a service on the internet of a rig, which the customer machine can reach with and without
// a tunnel, and which knows who has called.
type counted struct {
	*service
	*rig
	state   string // the customer's state directory
	outside atomic.Int64
	inside  atomic.Int64
}

// counting counts connections by whether they come through the VPN server.
type counting struct {
	net.Listener
	c *counted
}

func (l counting) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err == nil {
		if host, _, _ := net.SplitHostPort(conn.RemoteAddr().String()); strings.HasPrefix(host, "10.6") {
			l.c.inside.Add(1)
		} else {
			l.c.outside.Add(1)
		}
	}
	return conn, err
}

func newCounted(t *testing.T) *counted {
	r := newRig(t)
	c := &counted{rig: r, state: t.TempDir()}
	var l net.Listener
	r.in(r.inet, func() {
		var err error
		if l, err = net.Listen("tcp", net.JoinHostPort(webV4, "8443")); err != nil {
			t.Error(err)
		}
	})
	if l == nil {
		t.FailNow()
	}
	c.service = newService(t, r.server, counting{l, c})
	c.accounts["ada@example.org"] = accountPassword
	if code, out := c.lethe(accountPassword, "login", "ada@example.org"); code != 0 {
		t.Fatalf("login: %d, %s", code, out)
	}
	return c
}

// lethe runs a command of the app on the customer machine.
func (c *counted) lethe(stdin string, args ...string) (code int, out string) {
	c.t.Helper()
	cmd := c.program(append(args, "--socket", c.socket())...)
	cmd.Env = append(cmd.Env, "XDG_STATE_HOME="+c.state, "LETHE_API="+c.url, "LETHE_CA="+c.ca)
	cmd.Stdin = strings.NewReader(stdin)
	b, err := cmd.CombinedOutput()
	var ended *exec.ExitError
	if err != nil && !errors.As(err, &ended) {
		c.t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), string(b)
}

// must runs a command that must end with a code and print something.
func (c *counted) must(code int, want string, args ...string) {
	c.t.Helper()
	if got, out := c.lethe("", args...); got != code || !strings.Contains(out, want) {
		c.t.Fatalf("lethe %s: exit code %d, want %d; printed\n%swant\n%s", strings.Join(args, " "), got, code, out, want)
	}
}

func (c *counted) held() int {
	c.t.Helper()
	h, err := c.slots.Held(c.t.Context(), "ada")
	if err != nil {
		c.t.Fatal(err)
	}
	return h.Count
}

// others takes slots for other devices of the same licence.
func (c *counted) others(n int) []private.Value[string] {
	c.t.Helper()
	all := make([]private.Value[string], n)
	for i := range all {
		var err error
		if all[i], err = c.slots.Take(c.t.Context(), account.ID("ada"), private.Value[string]{}); err != nil {
			c.t.Fatal(err)
		}
	}
	return all
}

// slotIs waits until the helper says that of its slot.
func (c *counted) slotIs(want client.SlotState) {
	c.t.Helper()
	c.eventually(20*time.Second, "the slot is "+string(want), func() bool {
		return c.call(client.Request{Op: client.OpStatus}).Slot == want
	})
}

// TestSlot: a slot is taken before connecting, kept through the tunnel, given back through the tunnel,
// and over the limit nothing happens to the machine.
func TestSlot(t *testing.T) {
	c := newCounted(t)
	c.startHelper("--beat", "300ms")
	c.must(0, "connected to", "connect", "nl-ams")
	c.slotIs(client.SlotKept)
	if c.held() != 1 {
		t.Errorf("%d slots are held, want 1", c.held())
	}
	before := c.outside.Load()
	if err := c.slots.Release(t.Context(), c.token()); err != nil { // as if the service had forgotten
		t.Fatal(err)
	}
	c.eventually(10*time.Second, "a heartbeat brings the slot back", func() bool { return c.held() == 1 })
	if c.outside.Load() != before || c.inside.Load() == 0 {
		t.Errorf("heartbeats came through the tunnel %d times, from outside %d times", c.inside.Load(), c.outside.Load()-before)
	}

	// Another location of the same device is the same place.
	c.set(func() { c.devices = 1 })
	c.must(0, "over TCP", "connect", "--transport", "tcp")
	c.slotIs(client.SlotKept)
	before = c.outside.Load()
	start := time.Now()
	c.must(0, "disconnected", "disconnect")
	t.Logf("disconnect with a slot: %s", time.Since(start))
	if c.held() != 0 || c.outside.Load() != before {
		t.Errorf("%d slots are held after disconnecting; %d connections came from outside the tunnel", c.held(), c.outside.Load()-before)
	}

	// Over the limit.
	machine := c.machine()
	other := c.others(1)
	c.must(client.ExitLimit, "error: the one device that this licence allows is connected\nhint: disconnect one", "connect")
	c.must(client.ExitLimit, `"kind":"too-many"`, "connect", "--json")
	if after := c.machine(); after != machine {
		t.Errorf("a refusal changed the machine: %s", after)
	}
	if err := c.slots.Release(t.Context(), other[0]); err != nil {
		t.Fatal(err)
	}
	c.must(0, "connected to", "connect")

	// A machine that died takes its own place again.
	c.killHelper()
	c.startHelper("--beat", "300ms")
	c.must(0, "disconnected", "disconnect") // the new helper knows of no slot
	if c.held() != 1 {
		t.Errorf("%d slots are held, want the one that nobody could give back", c.held())
	}
	c.must(0, "connected to", "connect")
	c.must(0, "disconnected", "disconnect")
	if c.held() != 0 {
		t.Errorf("%d slots are held", c.held())
	}
	c.ended()
}

// token is the present slot's, from the app's file.
func (c *counted) token() private.Value[string] {
	c.t.Helper()
	b, err := os.ReadFile(filepath.Join(c.state, "lethe", "slot.json"))
	if err != nil {
		c.t.Fatal(err)
	}
	_, rest, _ := bytes.Cut(b, []byte(`:"`))
	token, _, _ := bytes.Cut(rest, []byte(`"`))
	return private.Of(string(token))
}

// ended: what says that the licence has ended reaches the app as that, and a logout forgets the slot.
func (c *counted) ended() {
	c.t.Helper()
	c.set(func() { c.service.ended = true })
	c.must(client.ExitRefused, "error: ", "connect")
	c.must(0, "logged out", "logout")
	if _, err := os.Stat(filepath.Join(c.state, "lethe", "slot.json")); !errors.Is(err, os.ErrNotExist) {
		c.t.Errorf("the slot is still there after logging out: %v", err)
	}
}

// TestSlotNeverDropsTheTunnel: whatever the service says or does not say, who is connected stays it.
func TestSlotNeverDropsTheTunnel(t *testing.T) {
	c := newCounted(t)
	c.startHelper("--beat", "300ms")
	c.set(func() { c.devices = 1 })
	c.must(0, "connected to", "connect", "nl-ams")
	c.slotIs(client.SlotKept)
	check := func(what string) {
		t.Helper()
		if s := c.call(client.Request{Op: client.OpStatus}); s.State != client.Connected {
			t.Errorf("%s: %s", what, s.State)
		}
		if seen, err := c.visit(webV4); err != nil || !strings.HasPrefix(seen, "10.64.") {
			t.Errorf("%s: the site saw %q, %v", what, seen, err)
		}
	}
	// Another device took the place while the service had forgotten this one.
	c.slotAway()
	c.slotIs(client.SlotOver)
	check("over the limit")
	c.must(0, "devices:       the licence's limit is reached", "status")
	c.set(func() { c.devices = 2 })
	c.slotIs(client.SlotKept)
	c.set(func() { c.service.ended = true })
	c.slotIs(client.SlotEnded)
	check("licence ended")
	c.set(func() { c.service.ended = false })
	c.slotIs(client.SlotKept)
	c.stop()
	c.slotIs(client.SlotUnheard)
	check("no service")

	// Without the service connecting goes on, with the slot of last time.
	c.must(0, "disconnected", "disconnect")
	c.must(0, "connected to", "connect", "nl-ams")
	c.slotIs(client.SlotUnheard)
	c.must(0, "disconnected", "disconnect")
	if err := os.Remove(filepath.Join(c.state, "lethe", "slot.json")); err != nil {
		t.Fatal(err)
	}
	c.must(0, "connected to", "connect", "nl-ams")
	if s := c.call(client.Request{Op: client.OpStatus}); s.Slot != "" {
		t.Errorf("without any slot it is %q", s.Slot)
	}
	c.must(0, "disconnected", "disconnect")
}

// slotAway makes the service forget the app's slot and gives its place to another device.
func (c *counted) slotAway() {
	c.t.Helper()
	c.eventually(10*time.Second, "another device is faster", func() bool {
		if err := c.slots.Release(c.t.Context(), c.token()); err != nil {
			c.t.Fatal(err)
		}
		_, err := c.slots.Take(c.t.Context(), "ada", private.Value[string]{})
		return err == nil
	})
}

// TestSlotLost: when the helper does not take a slot over it is given back.
func TestSlotLost(t *testing.T) {
	server, _, _ := newServer(t)
	s := newService(t, server)
	p := newPerson(t, s)
	s.accounts["ada@example.org"] = accountPassword
	p.expect(0, "logged in; next: lethe connect\n", accountPassword, "login", "ada@example.org")
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() { // a helper that knows its status and nothing else
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			line := make([]byte, 1<<16)
			n, _ := conn.Read(line)
			answer := `{"v":1,"error":{"kind":"full","text":"no room"}}`
			if bytes.Contains(line[:n], []byte(`"op":"status"`)) {
				answer = `{"v":1,"status":{"state":"disconnected"}}`
			}
			_, _ = conn.Write([]byte(answer + "\n"))
			conn.Close()
		}
	}()
	p.env["LETHE_SOCKET"] = socket
	p.expect(1, "error: no room\n", "", "connect", "nl-ams")
	if h, err := s.slots.Held(t.Context(), "ada"); err != nil || h.Count != 0 {
		t.Errorf("%d slots are held (%v)", h.Count, err)
	}

	// A damaged file is no reason not to connect, and a service without room is none but the limit.
	file := filepath.Join(p.env["XDG_STATE_HOME"], "lethe", "slot.json")
	if err := os.WriteFile(file, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	p.expect(1, "error: no room\n", "", "connect", "nl-ams")
	s.set(func() { s.devices = 0 })
	p.expect(client.ExitLimit, "error: this licence allows no device\nhint: .*\n", "", "connect", "nl-ams")
	s.set(func() { s.devices = 3 })
	if err := errors.Join(os.Remove(file), os.MkdirAll(filepath.Join(file, "x"), 0o700)); err != nil {
		t.Fatal(err)
	}
	p.expect(1, "note: the app's file slot.json cannot be written\nerror: no room\n", "", "connect", "nl-ams")
	if fault.Of(s.slots.Beat(t.Context(), private.Of("x"))) != fault.Unauthenticated {
		t.Error("junk is a slot")
	}
}
