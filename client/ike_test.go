package client_test

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"lethe/client"
	"lethe/location"
	"lethe/protocol"
)

// by connects by a protocol and waits for a state.
func (r *rig) by(p client.Protocol, transport client.Transport, password string, want client.State) client.Status {
	r.t.Helper()
	t := r.target(transport, password)
	t.Protocol = p
	r.call(client.Request{Op: client.OpConnect, Target: t})
	return r.await(want)
}

// block drops what the VPN server would hear on these ports, until the returned function is called.
func (r *rig) block(ports string) (open func()) {
	r.t.Helper()
	r.sh(r.inet, "nft 'table inet blocked { chain c { type filter hook prerouting priority raw; iif i0 meta l4proto { udp, tcp } th dport { "+ports+" } drop; }; }'")
	return func() { r.sh(r.inet, "nft delete table inet blocked") }
}

// TestIKEv2 walks the whole way once by IKEv2.
func TestIKEv2(t *testing.T) {
	for name, open := range map[string]bool{"device for root only": false, "device for everybody": true} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			r.startIKE()
			r.openTun = open
			before := r.machine()
			r.startHelper()
			start := time.Now()
			s := r.by(client.IKEv2, client.Auto, vpnPassword, client.Connected)
			t.Logf("connected after %s", time.Since(start))
			if s.Protocol != client.IKEv2 || s.Transport != client.UDP || s.Server != "nl-ams-1" || !s.Lock || !s.IPv6 || s.Problem != nil {
				t.Errorf("status %+v", s)
			}
			if seen, err := r.visit(webV4); err != nil || !strings.HasPrefix(seen, "10.66.") {
				t.Errorf("IPv4: seen as %q, %v", seen, err)
			}
			if seen, err := r.visit(webV6); err != nil || !strings.HasPrefix(seen, "fd6c:6574:6865:2::") {
				t.Errorf("IPv6: seen as %q, %v", seen, err)
			}
			b, _ := os.ReadFile(r.resolv)
			if got := string(b); !strings.Contains(got, "nameserver 10.66.0.1\n") || !strings.Contains(got, "nameserver fd6c:6574:6865:2::1\n") || strings.Contains(got, webV4) {
				t.Errorf("resolv.conf holds %q", got)
			}
			if err := r.ask("10.66.0.1"); err != nil {
				t.Errorf("the tunnel's resolver: %v", err)
			}
			if s := r.call(client.Request{Op: client.OpStatus}); s.Received == 0 || s.Sent == 0 {
				t.Errorf("no traffic counted: %+v", s)
			}
			r.checkProcess(open)
			if b, err := os.ReadFile(filepath.Join(r.dir, "run", "charon", "vici")); err == nil {
				t.Errorf("the control socket is a file: %q", b)
			}
			start = time.Now()
			if s := r.call(client.Request{Op: client.OpDisconnect}); s.State != client.Disconnected || s.Lock {
				t.Errorf("after disconnect: %+v", s)
			}
			t.Logf("disconnected after %s", time.Since(start))
			if begun, ended := r.sessions(); begun != 1 || ended != 1 {
				t.Errorf("the server had %d sessions, of which %d have ended: %s", begun, ended, r.journal())
			}
			if after := r.machine(); after != before {
				t.Errorf("something is left.\nbefore:\n%s\nafter:\n%s", before, after)
			}
			if seen, err := r.visit(webV4); err != nil || seen != customerV4 {
				t.Errorf("after: seen as %q, %v", seen, err)
			}
			if left := r.children(); len(left) > 0 {
				t.Errorf("processes left: %v", left)
			}
		})
	}
}

// TestIKEv2Refused: the server's no has the same words and kinds as OpenVPN's, and is not asked for twice.
func TestIKEv2Refused(t *testing.T) {
	r := newRig(t)
	r.startIKE()
	r.startHelper()
	for _, c := range []struct{ password, kind, text string }{
		{"wrong", "unauthenticated", "user name or password refused"},
		{"expired", "expired", "the licence has ended"},
		{"denied", "denied", "the server does not let this customer in"},
	} {
		s := r.by(client.IKEv2, client.Auto, c.password, client.Blocked)
		if s.Problem == nil || s.Problem.Kind != c.kind || s.Problem.Text != c.text || s.Problem.Hint == "" || !s.Lock {
			t.Errorf("%s: %+v %+v", c.text, s, s.Problem)
		}
		if n := len(r.children()); n != 0 {
			t.Errorf("%s: tried again by %d processes", c.text, n)
		}
	}
	later := func(what, want string, target *client.Target) {
		t.Helper()
		target.Protocol = client.IKEv2
		r.call(client.Request{Op: client.OpConnect, Target: target})
		r.eventually(10*time.Second, what, func() bool {
			s := r.call(client.Request{Op: client.OpStatus})
			return s.State == client.Connecting && s.Problem != nil && s.Problem.Text == want && s.Attempts > 1
		})
	}
	later("a server without a database says so and is tried again", "the server takes nobody at the moment", r.target(client.Auto, "later"))

	// A server that others have signed for, and one with another name.
	stranger, _, _ := newServer(t)
	other := r.target(client.Auto, vpnPassword)
	other.Servers[0].CA = stranger.CA
	later("the CA is checked", "the server has not proven who it is", other)
	other = r.target(client.Auto, vpnPassword)
	other.Servers[0].ID = "nl-ams-2"
	later("the name is checked", "the server has not proven who it is", other)
	if begun, _ := r.sessions(); begun != 0 || strings.Contains(r.journal(), "admit") {
		t.Errorf("somebody was let in: %s", r.journal())
	}
	r.by(client.IKEv2, client.UDP, vpnPassword, client.Connected)
}

// TestRace: whatever is blocked, the other ways are up soon, and who loses leaves nothing on the server.
func TestRace(t *testing.T) {
	r := newRig(t)
	r.startIKE()
	r.startHelper("--silence", "3s")
	for _, c := range []struct {
		blocked   string
		protocol  client.Protocol
		transport client.Transport
		limit     time.Duration
	}{
		{"1194, 443", client.IKEv2, client.UDP, 2 * time.Second},
		{"500, 4500, 443", client.OpenVPN, client.UDP, 2 * time.Second},
		{"500, 4500, 1194", client.OpenVPN, client.TCP, 2 * time.Second},
	} {
		open := r.block(c.blocked)
		start := time.Now()
		s := r.by(client.Auto, client.Auto, vpnPassword, client.Connected)
		if d := time.Since(start); s.Protocol != c.protocol || s.Transport != c.transport || d > c.limit {
			t.Errorf("without %s: by %s over %s after %s", c.blocked, s.Protocol, s.Transport, d)
		} else {
			t.Logf("without %s: by %s over %s after %s", c.blocked, s.Protocol, s.Transport, d)
		}
		r.eventually(10*time.Second, "who lost has gone", func() bool { return len(r.children()) == 1 })
		r.eventually(10*time.Second, "the lock has one portal", func() bool {
			return strings.Count(r.sh(r.client, "nft list chain inet lethe_lock outgoing"), "meta mark 0x00006c65") == 1
		})
		if seen, err := r.visit(webV4); err != nil || !strings.HasPrefix(seen, "10.6") {
			t.Errorf("without %s: seen as %q, %v", c.blocked, seen, err)
		}
		r.call(client.Request{Op: client.OpDisconnect})
		open()
	}
	// Every way open, again and again: each session that began has ended.
	for range 5 {
		r.by(client.Auto, client.Auto, vpnPassword, client.Connected)
		r.call(client.Request{Op: client.OpDisconnect})
	}
	r.eventually(15*time.Second, "every session has ended", func() bool {
		begun, ended := r.sessions()
		return begun == ended && strings.Count(r.journal(), "admit\n") == ended
	})
}

// stream is a connection through the tunnel that carries a line every few milliseconds.
type stream struct {
	lines atomic.Int64
	stop  func() error
}

// stream starts one to an echo server on the internet.
func (r *rig) stream() *stream {
	r.t.Helper()
	var l net.Listener
	r.in(r.inet, func() {
		var err error
		if l, err = net.Listen("tcp", net.JoinHostPort(webV4, "0")); err != nil {
			r.t.Error(err)
		}
	})
	if l == nil {
		r.t.FailNow()
	}
	go func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		for in := bufio.NewScanner(conn); in.Scan(); {
			fmt.Fprintln(conn, in.Text())
		}
	}()
	var conn net.Conn
	r.in(r.client, func() {
		var err error
		if conn, err = net.DialTimeout("tcp", l.Addr().String(), 5*time.Second); err != nil {
			r.t.Error(err)
		}
	})
	if conn == nil {
		r.t.FailNow()
	}
	s := &stream{}
	ctx, cancel := context.WithCancel(context.Background())
	failed := make(chan error, 1)
	go func() {
		in := bufio.NewScanner(conn)
		tick := time.NewTicker(2 * time.Millisecond)
		defer tick.Stop()
		for ctx.Err() == nil {
			<-tick.C
			if _, err := fmt.Fprintln(conn, "c4nary"); err != nil || !in.Scan() {
				failed <- fmt.Errorf("after %d lines: %w", s.lines.Load(), in.Err())
				return
			}
			s.lines.Add(1)
		}
		failed <- nil
	}()
	s.stop = func() error {
		cancel()
		err := <-failed
		conn.Close()
		l.Close()
		return err
	}
	return s
}

// more waits until the stream has carried more lines.
func (r *rig) more(s *stream) {
	r.t.Helper()
	had := s.lines.Load()
	r.eventually(20*time.Second, "the transfer goes on", func() bool { return s.lines.Load() > had+20 })
}

// address gives the customer machine another address.
func (r *rig) address(from, to string) {
	r.t.Helper()
	r.sh(r.client, "ip addr del "+from+"/24 dev c0; ip addr add "+to+"/24 dev c0; ip route add default via "+routerV4)
}

// TestRoam: in the middle of a transfer the machine gets another address; the transfer goes on, by the same
// session, and nothing is seen beside the tunnel.
func TestRoam(t *testing.T) {
	r := newRig(t)
	r.startIKE()
	r.startHelper()
	r.by(client.IKEv2, client.UDP, vpnPassword, client.Connected)
	w := r.watchWire()
	s := r.stream()
	r.more(s)
	stop := r.chatter()
	w.arm()
	address := customerV4
	for _, next := range []string{"203.0.113.7", "203.0.113.8", customerV4} {
		start := time.Now()
		r.address(address, next)
		address = next
		r.more(s)
		t.Logf("goes on after %s", time.Since(start))
	}
	r.ip("-n " + r.client + " link set c0 down")
	r.plug()
	r.more(s)
	stop()
	if err := s.stop(); err != nil {
		t.Error(err)
	}
	w.check(t, "roaming")
	if s := r.call(client.Request{Op: client.OpStatus}); s.State != client.Connected || s.Attempts != 0 {
		t.Errorf("%+v", s)
	}
	if begun, ended := r.sessions(); begun != 1 || ended != 0 {
		t.Errorf("the server had %d sessions, of which %d have ended", begun, ended)
	}
}

// TestIKEv2Gone: a silent server is noticed, the lock holds, and it is connected to again when it is back.
func TestIKEv2Gone(t *testing.T) {
	r := newRig(t)
	r.startIKE()
	r.startHelper("--silence", "3s")
	r.by(client.IKEv2, client.UDP, vpnPassword, client.Connected)
	open := r.block("500, 4500")
	start := time.Now()
	s := r.await(client.Reconnecting)
	t.Logf("noticed after %s: %+v", time.Since(start), s.Problem)
	if !s.Lock || s.Problem == nil || s.Problem.Text != "the server does not answer" {
		t.Errorf("%+v %+v", s, s.Problem)
	}
	if seen, err := r.visit(webV4); err == nil {
		t.Errorf("the web site is there without a tunnel: seen as %q", seen)
	}
	open()
	r.await(client.Connected)
	// It is told to leave: connected again at once.
	for _, pid := range r.children() {
		r.sh(r.client, "kill -9 "+pid)
	}
	r.eventually(5*time.Second, "another charon", func() bool {
		return r.call(client.Request{Op: client.OpStatus}).State != client.Connected || len(r.children()) > 0
	})
	r.await(client.Connected)
	if seen, err := r.visit(webV4); err != nil || !strings.HasPrefix(seen, "10.66.") {
		t.Errorf("seen as %q, %v", seen, err)
	}
}

// TestNotInstalled: where a protocol's program is missing the others are used, and who asks for it is told
// what to install; nothing is changed then.
func TestNotInstalled(t *testing.T) {
	r := newRig(t)
	r.server.Endpoints = append(r.server.Endpoints, location.Endpoint{Protocol: protocol.IKEv2, Port: 500})
	before := r.machine()
	absent := filepath.Join(r.dir, "none")
	fake := filepath.Join(r.dir, "charon")
	ask := func(p client.Protocol) error {
		target := r.target(client.Auto, vpnPassword)
		target.Protocol = p
		_, err := client.Call(t.Context(), r.socket(), client.Request{Op: client.OpConnect, Target: target})
		return err
	}
	restart := func(args ...string) {
		t.Helper()
		if r.helper != nil {
			_ = r.helper.Process.Signal(syscall.SIGTERM)
			_ = r.helper.Wait()
		}
		r.startHelper(args...)
	}
	restart("--charon", absent)
	if err := ask(client.IKEv2); err == nil || err.Error() != "the program for this protocol is not installed" || !strings.Contains(client.ProblemOf(err).Hint, "apt install charon-systemd") {
		t.Errorf("%v", err)
	}
	if after := r.machine(); after != before {
		t.Errorf("something was changed: %s", after)
	}
	if s := r.by(client.Auto, client.Auto, vpnPassword, client.Connected); s.Protocol != client.OpenVPN {
		t.Errorf("%+v", s)
	}
	r.call(client.Request{Op: client.OpDisconnect})
	restart("--openvpn", absent)
	if err := ask(client.OpenVPN); err == nil || !strings.Contains(client.ProblemOf(err).Hint, "apt install openvpn") {
		t.Errorf("%v", err)
	}
	for _, c := range []struct{ script, want string }{
		{"exit 1", "charon ended before it said anything"},
		{"rm -rf " + r.dir + "/run/charon; exec sleep 60", "charon does not answer"},
	} {
		r.write(fake, []byte("#!/bin/sh\n"+c.script+"\n"), 0o755)
		restart("--charon", fake)
		if err := ask(client.IKEv2); err != nil {
			t.Fatal(err)
		}
		r.eventually(15*time.Second, c.want, func() bool {
			s := r.call(client.Request{Op: client.OpStatus})
			return s.State == client.Connecting && s.Problem != nil && s.Problem.Text == c.want && s.Problem.Hint != ""
		})
		r.call(client.Request{Op: client.OpDisconnect})
	}
	r.write(fake, []byte("no program"), 0o755)
	restart("--charon", fake)
	if err := ask(client.IKEv2); err != nil {
		t.Fatal(err)
	}
	r.eventually(5*time.Second, "charon does not start", func() bool {
		s := r.call(client.Request{Op: client.OpStatus})
		return s.Problem != nil && s.Problem.Text == "tunnel: charon does not start"
	})
	r.call(client.Request{Op: client.OpDisconnect})
	if after := r.machine(); after != before {
		t.Errorf("something is left: %s", after)
	}
}
