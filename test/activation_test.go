package test

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"lethe/activation"
	"lethe/image/layout"
	"lethe/lab"
)

// askFrom asks a server for its state from a machine.
func askFrom(ctx context.Context, m *lab.Machine, server netip.Addr) (s activation.State, err error) {
	hc := &http.Client{Timeout: 15 * time.Second, Transport: &http.Transport{
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			return m.Dial(ctx, network, address)
		},
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true,
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+netip.AddrPortFrom(server, layout.ActivationPort).String()+"/v1/state", nil)
	if err != nil {
		return s, err
	}
	resp, err := hc.Do(req)
	if err != nil {
		return s, err
	}
	defer resp.Body.Close()
	return s, json.NewDecoder(resp.Body).Decode(&s)
}

// listeners returns the TCP ports that something on m listens on, and the UDP ports that anybody may send to.
func listeners(t *testing.T, m *lab.Machine) (ports map[string]bool) {
	t.Helper()
	ports = map[string]bool{}
	err := m.Inside(func() error {
		for network, listening := range map[string]string{"tcp": "0A", "tcp6": "0A", "udp": "07", "udp6": "07"} { // linux/tcp_states.h
			b, err := os.ReadFile("/proc/thread-self/net/" + network)
			if err != nil {
				return err
			}
			for line := range strings.Lines(string(b)) {
				f := strings.Fields(line)
				if len(f) > 3 && f[3] == listening {
					var port uint16
					_, after, _ := strings.Cut(f[1], ":")
					if _, err := fmt.Sscanf(after, "%X", &port); err != nil {
						return err
					}
					ports[fmt.Sprintf("%.3s %d", network, port)] = true
				}
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return ports
}

// TestActivation takes a server back to where it has no secrets. It says so, nothing else answers, floods of
// connections do not keep others out, and what it is told it takes once. Then the directory gives it
// further addresses and takes them away.
func TestActivation(t *testing.T) {
	l := newLab(t, func(o *lab.Options) { o.Locations, o.Customers = lab.Places()[:1], 2 })
	ctx, m := deadline(t), l.Server(0)
	if err := l.Stop(ctx, m.Name); err != nil {
		t.Fatal(err)
	}
	if err := l.Boot(ctx, m); err != nil {
		t.Fatal(err)
	}
	for _, a := range []netip.Addr{m.Addresses[0].V4, m.Addresses[0].V6, m.Addresses[1].V4, m.Addresses[1].V6} {
		if s, err := askFrom(ctx, l.Internet(), a); err != nil || s.Phase != activation.Awaiting || s.Sealed != nil || !s.Release.Lab || s.Drivers != nil {
			t.Errorf("%v: %+v, %v", a, s, err)
		}
	}
	if got := listeners(t, m); len(got) != 1 || !got["tcp 7443"] {
		t.Errorf("without secrets something listens: %v", got)
	}
	t.Run("flood", func(t *testing.T) { flood(t, l, m) })
	if err := l.Activate(ctx, m); err != nil {
		t.Fatal(err)
	}
	if err := l.Activate(ctx, m); err == nil || !strings.Contains(err.Error(), "409") {
		t.Errorf("a second time: %v", err)
	}
	until(t, time.Minute, func() string { return "the server does not serve" }, func() bool {
		s, err := askFrom(ctx, l.Internet(), m.Addresses[0].V4)
		return err == nil && s.Phase == activation.Active && s.Drivers != nil
	})
	g := newCustomer(t, l, 0)
	g.connect("nl-ams", "--protocol", "openvpn")
	if _, err := g.Run(ctx, "curl", "-sk", "-m", "3", "https://10.63.255.53:7443/v1/state"); err == nil {
		t.Error("the port answers in a tunnel")
	}
	g.must("", "disconnect")
	t.Run("addresses", func(t *testing.T) { addresses(t, l, m) })
}

// flood opens connections from one customer's machine as fast as they come, some of which say nothing and some
// nonsense. Somebody else is answered all the while.
func flood(t *testing.T, l *lab.Lab, m *lab.Machine) {
	ctx, cancel := context.WithCancel(deadline(t))
	var opened atomic.Int32
	var wg sync.WaitGroup
	to := netip.AddrPortFrom(m.Addresses[0].V4, layout.ActivationPort).String()
	for i := range 40 {
		wg.Go(func() {
			for ctx.Err() == nil {
				attempt, end := context.WithTimeout(ctx, 2*time.Second)
				c, err := l.Customer(0).Dial(attempt, "tcp", to)
				end()
				if err != nil {
					continue
				}
				opened.Add(1)
				if i%2 == 0 {
					_, _ = io.WriteString(c, strings.Repeat("\x16\x03\x01\x40\x00", 1000))
				}
				_ = c.SetReadDeadline(time.Now().Add(3 * time.Second))
				_, _ = c.Read(make([]byte, 1))
				c.Close()
			}
		})
	}
	defer wg.Wait()
	defer cancel()
	until(t, time.Minute, func() string { return "the flood does not begin" }, func() bool { return opened.Load() > 20 })
	// The flood has the sixteenth of all sources that it is in; of two other machines with two addresses
	// each, at least one is in another.
	answered := 0
	for _, from := range []*lab.Machine{l.Internet(), l.Customer(1)} {
		for _, a := range []netip.Addr{m.Addresses[0].V4, m.Addresses[0].V6} {
			began := time.Now()
			s, err := askFrom(ctx, from, a)
			if err == nil && s.Phase == activation.Awaiting {
				answered++
				t.Logf("%s: answered after %v", from.Name, time.Since(began).Round(time.Millisecond))
			}
		}
	}
	if answered == 0 {
		t.Errorf("nobody is answered; the flood opened %d connections", opened.Load())
	}
	t.Logf("the flood opened %d connections", opened.Load())
}

// addresses lists the server anew with more addresses than it has, and then as before.
func addresses(t *testing.T, l *lab.Lab, m *lab.Machine) {
	ctx := deadline(t)
	operate := func(args ...string) {
		t.Helper()
		if _, err := l.Operate(ctx, args...); err != nil {
			t.Fatal(err)
		}
	}
	list := func(more ...string) {
		t.Helper()
		operate("server", "remove", m.Name)
		args := []string{"server", "add", m.Name, "--location", "nl-ams", "--endpoint", "openvpn-udp:1194", "--endpoint", "openvpn-tcp:443",
			"--endpoint", "ikev2:500", "--ca", l.Control().Data("vpn-ca.pem"), "--tls-crypt", l.Control().Data("tls-crypt.key"),
			"--address", m.Addresses[0].V4.String(), "--address", m.Addresses[0].V6.String()}
		for _, a := range more {
			args = append(args, "--address", a)
		}
		operate(args...)
	}
	reach := func(a string, port uint16) error {
		attempt, end := context.WithTimeout(ctx, 2*time.Second)
		defer end()
		c, err := l.Internet().Dial(attempt, "tcp", netip.AddrPortFrom(netip.MustParseAddr(a), port).String())
		if err == nil {
			err = c.Close()
		}
		return err
	}
	more := []string{"198.51.100.77", "2001:db8:2::77"}
	for _, a := range more {
		if reach(a, 443) == nil {
			t.Fatalf("%s answers before anybody has it", a)
		}
	}
	list(more...)
	for _, a := range more {
		until(t, time.Minute, func() string { return fmt.Sprintf("%s does not answer: %v", a, reach(a, 443)) }, func() bool {
			return errors.Join(reach(a, 443), reach(a, layout.ActivationPort)) == nil
		})
	}
	out, err := m.Run(ctx, "ip", "addr", "show", "dev", lab.Uplink)
	if err != nil || !strings.Contains(out, "198.51.100.77/32") || !strings.Contains(out, "2001:db8:2::77/128") {
		t.Errorf("the uplink has %s, %v", out, err)
	}
	list()
	for _, a := range more {
		until(t, time.Minute, func() string { return a + " still answers" }, func() bool { return reach(a, 443) != nil })
	}
	for _, a := range []netip.Addr{m.Addresses[0].V4, m.Addresses[0].V6} {
		if err := reach(a.String(), 443); err != nil {
			t.Errorf("the server's own address %v is gone: %v", a, err)
		}
	}
}
