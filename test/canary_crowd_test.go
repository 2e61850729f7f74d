package test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"lethe/lab"
	"lethe/session"
)

// The crowd of the hunt: one marked customer by OpenVPN and one by IKEv2, each with so many
// sessions, short ones, some at a time.
const (
	crowdOfEach = 1000
	crowdWave   = 50
	// Of each wave so many have a wrong password or an unknown user name, and every so many
	// waves those who are in change their address.
	crowdBad   = 10
	crowdRoams = 4
)

// The marked customers of the crowd.
const (
	byOpenVPN = 6
	byIKEv2   = 7
)

// crowd has two customers come and go a thousand times each, with right and wrong passwords, and
// roam, while others flood the server with half-open connections and junk. All of that is over when
// it returns, and the search is for what it left.
func (h *hunt) crowd(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	t.Cleanup(cancel)
	w := &trial{h.l, t, ctx, map[string]string{}, new(atomic.Uint32)}
	c := &crowd{trial: w, far: newFar(t, h.l.Internet())}
	g := h.guests[byOpenVPN]
	for _, transport := range []string{"udp", "tcp"} {
		text := g.must("", "config", "export", "nl-ams", "--transport", transport)
		w.profiles["nl-ams "+transport] = strings.Join(slices.DeleteFunc(strings.SplitAfter(text, "\n"), func(line string) bool {
			f := strings.Fields(line)
			return len(f) == 3 && f[0] == "remote" && netip.MustParseAddr(f[1]).Is6() // who roams does so by IPv4
		}), "")
	}
	done := make(chan struct{})
	var flood sync.WaitGroup
	flood.Go(func() { c.flood(h.l.Server(0).Addresses[0].V4, done) })
	var byProtocol [2]time.Duration
	together(t,
		func() { byProtocol[0] = timed(func() { h.manyOpenVPN(c) }) },
		func() { byProtocol[1] = timed(func() { h.manyIKEv2(c) }) },
	)
	close(done)
	flood.Wait()
	t.Logf("%d sessions and refusals by OpenVPN in %.0f s, %d by IKEv2 in %.0f s", crowdOfEach, byProtocol[0].Seconds(), crowdOfEach, byProtocol[1].Seconds())
}

func timed(do func()) time.Duration {
	began := time.Now()
	do()
	return time.Since(began)
}

// roams changes the address from which a customer's machine speaks, and back when it is called
// again.
func (g *marked) roams() error {
	old, now := g.v4, g.other
	if g.away = !g.away; !g.away {
		old, now = now, old
	}
	// Not by ip(8): the addresses would be in its arguments.
	return g.Inside(func() error {
		link, err := netlink.LinkByName(lab.Uplink)
		if err != nil {
			return err
		}
		host := func(a netip.Addr) *netlink.Addr {
			return &netlink.Addr{IPNet: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(32, 32)}}
		}
		way := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: &net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)},
			Gw: net.IPv4(203, 0, 113, 1), Src: now.AsSlice()}
		return errors.Join(netlink.AddrAdd(link, host(now)), netlink.RouteReplace(way), netlink.AddrDel(link, host(old)))
	})
}

// newResident returns the customer with that user name and password.
func newResident(username, password string) *resident {
	return &resident{username: []byte(username), secret: []byte(password)}
}

// sampled makes the tunnel addresses of the first sessions marks: all would be too many to look
// for.
func (h *hunt) sampled(g *marked, n int, tunnels []*tunnel) {
	for i, t := range tunnels {
		if n+i < 8 {
			h.learned(g.label, []netip.Addr{t.local, session.Twin(t.local)})
		}
	}
}

// roamed wants tunnels to answer after the address of their customer has changed.
func (c *crowd) roamed(g *marked, tunnels []*tunnel) error {
	if err := g.roams(); err != nil {
		return err
	}
	began := time.Now()
	for end := began.Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		i := slices.IndexFunc(tunnels, func(t *tunnel) bool { return !t.answered(began) })
		if i < 0 {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("%s does not answer after it roamed", tunnels[i].name)
		}
	}
}

// manyOpenVPN has a customer come and go by OpenVPN, in waves.
func (h *hunt) manyOpenVPN(c *crowd) {
	g := h.guests[byOpenVPN]
	good, unknown := newResident(g.username, g.password), newResident(g.unknown, g.password)
	profiles := []string{"nl-ams udp", "nl-ams tcp"}
	for n := 0; n < crowdOfEach; n += crowdWave {
		var mu sync.Mutex
		var dialers []*dialer
		var tunnels []*tunnel
		roam := n/crowdWave%crowdRoams == crowdRoams-1
		wave := make([]int, crowdWave)
		for i := range wave {
			wave[i] = i
		}
		each(c.t, 8, wave, func(i int) error {
			profile := profiles[i%2]
			if roam {
				profile = profiles[0] // a TCP connection does not
			}
			if i < crowdBad {
				who, secret := good, []byte(g.wrong)
				if i%2 == 1 {
					who, secret = unknown, good.secret
				}
				d, err := c.openvpn(g.Machine, c.profiles[profile], who, secret)
				if err != nil {
					return err
				}
				if got, err := d.outcome(time.Minute); got != gotRefused {
					return errors.Join(err, fmt.Errorf("a wrong login: %s", got))
				}
				return d.leave()
			}
			d, t, err := c.dialIn(g.Machine, profile, good)
			if err == nil {
				mu.Lock()
				defer mu.Unlock()
				dialers, tunnels = append(dialers, d), append(tunnels, t)
			}
			return err
		})
		h.sampled(g, n, tunnels)
		if roam {
			if err := c.roamed(g, tunnels); err != nil {
				c.t.Error(err)
			}
		}
		for _, t := range tunnels {
			t.close()
		}
		each(c.t, 16, dialers, func(d *dialer) error {
			if d == dialers[0] { // one says no goodbye
				d.kill()
				return nil
			}
			return d.leave()
		})
	}
	if g.away {
		c.check(g.roams())
	}
}

// manyIKEv2 has a customer come and go by IKEv2, in waves.
func (h *hunt) manyIKEv2(c *crowd) {
	g := h.guests[byIKEv2]
	conf := g.Data("nl-ams.conf")
	g.must("", "config", "export", "nl-ams", "--format", "swanctl", "-o", conf)
	ca, err := os.ReadFile(g.Data("nl-ams-1.pem"))
	c.check(err)
	s := c.strongSwan(g.Machine, ca)
	to := h.l.Server(0).Addresses[0].V4
	good, unknown := newResident(g.username, g.password), newResident(g.unknown, g.password)
	s.know("good", amsterdam, to, good, good.secret)
	s.know("unknown", amsterdam, to, unknown, unknown.secret)
	people := map[string]*resident{"good": good}
	names := slices.Repeat([]string{"good"}, crowdWave-crowdBad)
	for n := 0; n < crowdOfEach; n += crowdWave {
		tunnels, err := s.dialIn("nl-ams", people, names)
		c.check(err)
		h.sampled(g, n, tunnels)
		if n/crowdWave%crowdRoams == crowdRoams-1 {
			c.check(c.roamed(g, tunnels))
		}
		for _, t := range tunnels {
			t.close()
		}
		c.check(s.end(false, func(ikeSA) bool { return true }))
		// Charon knows one password for a user name.
		s.know("good", amsterdam, to, good, []byte(g.wrong))
		for i := range crowdBad {
			c.check(s.begin([]string{"good", "unknown"}[i%2]))
		}
		until(c.t, time.Minute, func() string { return "a wrong login has no end: " + tail(s.log()) }, func() bool {
			all, err := s.list()
			c.check(err)
			if slices.ContainsFunc(all, func(sa ikeSA) bool { return sa.up }) {
				c.t.Error("a wrong login is in")
			}
			return len(all) == 0
		})
		s.know("good", amsterdam, to, good, good.secret)
	}
	if g.away {
		c.check(g.roams())
	}
}

// crowdSources are addresses in the internet from which the flood comes.
var crowdSources = netip.MustParsePrefix("100.64.0.0/16")

// flood sends first packets of IKE and OpenVPN from many addresses, in a way that leaves connections
// half open, some with the cookie that is asked for, and junk to every port, until done is closed.
func (c *crowd) flood(to netip.Addr, done <-chan struct{}) {
	inet := c.Internet()
	if _, err := inet.Run(c.ctx, "ip", "route", "add", "local", crowdSources.String(), "dev", "lo"); err != nil {
		c.t.Error(err)
		return
	}
	right, wrong := c.tlsCrypt(), tlsCrypt{}
	junk := c.rubbish()
	tick := time.NewTicker(15 * time.Millisecond)
	defer tick.Stop()
	sent, cookies, open, resets := 0, 0, 0, 0
	for ; ; sent++ {
		select {
		case <-done:
			c.t.Logf("flood: %d rounds, %d cookies asked for, %d IKE SAs and %d OpenVPN connections left half open", sent, cookies, open, resets)
			if cookies < 10 || open < 10 || resets < 10 {
				c.t.Error("the flood was none")
			}
			return
		case <-tick.C:
		}
		from := session.Host(crowdSources, uint16(2+sent%60000))
		asked, got := c.initiate(inet, from, to, sent%2 == 0)
		if asked {
			cookies++
		}
		if got {
			open++
		}
		key := right
		if sent%2 == 1 {
			key = wrong
		}
		if c.exchange(inet, from, netip.AddrPortFrom(to, 1194), key.hello(uint64(sent)<<16|1)) != nil {
			resets++
		}
		c.pour(inet, "udp", netip.AddrPortFrom(to, []uint16{500, 1194, 4500}[sent%3]), junk[sent%len(junk):][:1])
		if sent%16 == 0 {
			c.pour(inet, "tcp", netip.AddrPortFrom(to, 443), junk[sent%len(junk):][:1])
		}
	}
}

// exchange sends a packet from an address and returns the answer, nil if none comes soon.
func (c *crowd) exchange(m *lab.Machine, from netip.Addr, to netip.AddrPort, packet []byte) []byte {
	var conn net.Conn
	err := m.Inside(func() (err error) {
		dialer := net.Dialer{LocalAddr: net.UDPAddrFromAddrPort(netip.AddrPortFrom(from, 0))}
		conn, err = dialer.DialContext(c.ctx, "udp4", to.String())
		return err
	})
	if err != nil {
		c.t.Error(err)
		return nil
	}
	defer conn.Close()
	answer := make([]byte, 2048)
	_ = conn.SetDeadline(time.Now().Add(50 * time.Millisecond)) // a failure shows in what follows
	if _, err := conn.Write(packet); err != nil {
		return nil
	}
	n, err := conn.Read(answer)
	if err != nil {
		return nil
	}
	return answer[:n]
}

// initiate begins an IKE SA (RFC 7296, section 1.2) and leaves it at that. It reports whether the server
// asked for a cookie (section 2.6), which it gets if repeat says so, and whether it has answered.
func (c *crowd) initiate(m *lab.Machine, from, to netip.Addr, repeat bool) (asked, open bool) {
	// AES-GCM with 256 bits, PRF-HMAC-SHA2-384, Curve25519.
	sa := []byte{0, 0, 0, 36, 1, 1, 0, 3,
		3, 0, 0, 12, 1, 0, 0, 20, 0x80, 14, 1, 0,
		3, 0, 0, 8, 2, 0, 0, 6,
		0, 0, 0, 8, 4, 0, 0, 31}
	key, nonce, spi := make([]byte, 36), make([]byte, 32), make([]byte, 8)
	for _, b := range [][]byte{key, nonce, spi} {
		_, _ = rand.Read(b) // never fails
	}
	copy(key, []byte{0, 31, 0, 0})
	const typeSA, typeKE, typeNonce, typeNotify, exchangeInit = 33, 34, 40, 41, 34
	message := func(payloads ...[]byte) []byte { // each with its type in front
		b := append(slices.Clone(spi), 0, 0, 0, 0, 0, 0, 0, 0, payloads[0][0], 0x20, exchangeInit, 0x08, 0, 0, 0, 0, 0, 0, 0, 0)
		for i, p := range payloads {
			next := byte(0)
			if i+1 < len(payloads) {
				next = payloads[i+1][0]
			}
			b = append(b, next, 0)
			b = append(binary.BigEndian.AppendUint16(b, uint16(3+len(p))), p[1:]...)
		}
		binary.BigEndian.PutUint32(b[24:], uint32(len(b)))
		return b
	}
	payload := func(kind byte, content []byte) []byte { return append([]byte{kind}, content...) }
	rest := [][]byte{payload(typeSA, sa), payload(typeKE, key), payload(typeNonce, nonce)}
	answer := c.exchange(m, from, netip.AddrPortFrom(to, 500), message(rest...))
	// A cookie is the only payload of its answer: type 16390 of a notification.
	if len(answer) > 36 && answer[16] == typeNotify && bytes.Equal(answer[32:36], []byte{0, 0, 0x40, 0x06}) {
		if asked = true; !repeat {
			return asked, false
		}
		cookie := payload(typeNotify, answer[32:])
		answer = c.exchange(m, from, netip.AddrPortFrom(to, 500), message(append([][]byte{cookie}, rest...)...))
	}
	return asked, len(answer) > 36 && answer[16] == typeSA
}
