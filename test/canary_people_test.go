package test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"lethe/canary"
	"lethe/lab"
)

// marked is a customer everything about whom is a mark. The names of all marks
// begin with the customer's, which is "c0 " and so on.
type marked struct {
	*customer
	h     *hunt
	label string

	login, username, password string // of the account; of the VPN
	wrong, unknown            string // a password and a user name that nobody has
	v4, v6                    netip.Addr
	other                     netip.Addr // to which the machine roams from v4
	away                      bool       // it has
	name                      string     // a DNS name
	dest4, dest6              netip.Addr
	payload                   []byte

	client *openvpnClient // the system's own, while it runs
}

// unlikely returns an address that nobody else has: random bytes, none of them
// small, in a network of the public internet.
func unlikely(v6 bool) netip.Addr {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	for i := range b {
		b[i] |= 0x81
	}
	if v6 {
		copy(b[:], []byte{0x2a, 0x0d})
		return netip.AddrFrom16(b)
	}
	return netip.AddrFrom4([4]byte{45, 128 + b[1]%60, b[2], b[3]})
}

// newMarked makes the i-th customer, whose machine lives at marked addresses.
func newMarked(h *hunt, i int) *marked {
	t, m := h.t, h.l.Customer(i)
	g := &marked{
		customer: &customer{m, t, letters(12) + "@river.example"}, h: h, label: fmt.Sprintf("c%d ", i),
		login: letters(20), wrong: letters(22), unknown: letters(22),
		v4: unlikely(false), v6: unlikely(true), other: unlikely(false), name: letters(16) + ".wild.river.example",
		dest4: unlikely(false), dest6: unlikely(true), payload: make([]byte, 48),
	}
	_, _ = rand.Read(g.payload) // never fails
	inet := h.l.Internet()
	for _, c := range []struct {
		on   *lab.Machine
		args string
	}{
		{m, fmt.Sprintf("addr add %s/32 dev eth0", g.v4)},
		{m, fmt.Sprintf("addr add %s/128 dev eth0 nodad", g.v6)},
		{m, fmt.Sprintf("route replace default via 203.0.113.1 src %s", g.v4)},
		{m, fmt.Sprintf("-6 route replace default via 2001:db8:3::1 src %s", g.v6)},
		{inet, fmt.Sprintf("route add %s/32 dev customers", g.v4)},
		{inet, fmt.Sprintf("route add %s/32 dev customers", g.other)},
		{inet, fmt.Sprintf("-6 route add %s/128 dev customers", g.v6)},
		{inet, fmt.Sprintf("addr add %s/32 dev lo", g.dest4)},
		{inet, fmt.Sprintf("addr add %s/128 dev lo nodad", g.dest6)},
	} {
		if _, err := c.on.Run(deadline(t), "ip", strings.Fields(c.args)...); err != nil {
			t.Fatal(err)
		}
	}
	for _, a := range []netip.Addr{g.dest4, g.dest6} {
		l, err := inet.Listen(netip.AddrPortFrom(a, 80).String())
		if err != nil {
			t.Fatal(err)
		}
		s := &http.Server{Handler: http.HandlerFunc(echo)}
		go func() { _ = s.Serve(l) }() // it ends by Close
		t.Cleanup(func() { s.Close() })
	}
	return g
}

// echo answers with what it was sent.
func echo(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(w, r.Body) }

// marks are all that is known of g before a session.
func (g *marked) marks() []canary.Mark {
	n := func(s string) string { return g.label + s }
	all := []canary.Mark{
		canary.Text(n("e-mail"), g.email), canary.Text(n("login password"), g.login),
		canary.Text(n("wrong password"), g.wrong), canary.Text(n("unknown user"), g.unknown),
		canary.Address(n("address v4"), g.v4), canary.Address(n("address v6"), g.v6),
		canary.Address(n("address v4 roamed to"), g.other),
		canary.Network(n("address v4 /24"), netip.PrefixFrom(g.v4, 24)), canary.Network(n("address v6 /64"), netip.PrefixFrom(g.v6, 64)),
		canary.Domain(n("dns name"), g.name),
		canary.Address(n("destination v4"), g.dest4), canary.Address(n("destination v6"), g.dest6),
		canary.Bytes(n("payload"), g.payload),
	}
	if g.username != "" {
		hash := g.h.userHash(g.username)
		all = append(all, canary.Text(n("user name"), g.username), canary.Text(n("password"), g.password), canary.Bytes(n("user hash"), hash[:]))
	}
	return all
}

// join signs g up, has the operator give a licence, and logs the app in.
func (g *marked) join() {
	g.t.Helper()
	g.must(g.login+"\n", "signup", g.email)
	until := time.Now().AddDate(0, 1, 0).UTC().Format(time.DateOnly)
	g.h.operate(g.email+"\n", "licence", "create", "-", "--until", until)
	g.must(g.login+"\n", "login", g.email)
	var c struct{ Username, Password string }
	if err := json.Unmarshal([]byte(g.must("", "credentials", "show", "--json")), &c); err != nil || c.Username == "" || c.Password == "" {
		g.t.Fatal("no credential is shown")
	}
	g.username, g.password = c.Username, c.Password
}

// app connects with the app.
func (g *marked) app(place, transport string) {
	g.t.Helper()
	g.connect(place, "--protocol", "openvpn", "--transport", transport)
	g.learn()
}

// learn notes the tunnel addresses that g has now; they are marks from here on.
func (g *marked) learn() {
	g.t.Helper()
	var addrs []netip.Addr
	until(g.t, 5*time.Second, func() string { return fmt.Sprintf("%s has %d tunnel addresses", g.Name, len(addrs)) }, func() bool {
		addrs = nil
		err := g.Inside(func() error {
			all, err := net.InterfaceAddrs()
			for _, a := range all {
				if p, err := netip.ParsePrefix(a.String()); err == nil && (inTunnel(p.Addr()) ||
					netip.MustParsePrefix("fd6c:6574:6865::/48").Contains(p.Addr())) {
					addrs = append(addrs, p.Addr())
				}
			}
			return err
		})
		return err == nil && len(addrs) == 2
	})
	g.h.learned(g.label, addrs)
}

// use looks the marked name up at the server's resolver and sends the marked payload
// to the marked destinations, through the tunnel.
func (g *marked) use() {
	g.t.Helper()
	ctx, cancel := context.WithTimeout(deadline(g.t), 30*time.Second)
	defer cancel()
	r := net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return g.Dial(ctx, network, "10.63.255.53:53")
	}}
	if found, err := r.LookupNetIP(ctx, "ip4", g.name); err != nil || len(found) != 1 {
		g.t.Errorf("%s: its name gives %d addresses, %v", g.Name, len(found), err != nil)
	}
	for _, a := range []netip.Addr{g.dest4, g.dest6} {
		transport := &http.Transport{DisableKeepAlives: true, DialContext: g.Dial}
		q, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+netip.AddrPortFrom(a, 80).String()+"/", bytes.NewReader(g.payload))
		if err != nil {
			g.t.Fatal(err)
		}
		q.Host = g.name
		answer, err := transport.RoundTrip(q)
		if err != nil {
			g.t.Errorf("%s: its destination (IPv6 %v) does not answer", g.Name, a.Is6())
			continue
		}
		got, err := io.ReadAll(answer.Body)
		answer.Body.Close()
		if err != nil || !bytes.Equal(got, g.payload) {
			g.t.Errorf("%s: %d bytes came back, %v", g.Name, len(got), err)
		}
	}
}

// dial starts the system's own client.
func (g *marked) dial(server *lab.Machine, transport string, v6 bool) *marked {
	g.t.Helper()
	text := g.must("", "config", "export", place(server), "--transport", transport)
	var lines []string
	for line := range strings.Lines(text) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "remote" && netip.MustParseAddr(f[1]).Is6() != v6 {
			continue
		}
		lines = append(lines, line)
	}
	path := filepath.Join(g.Dir, "home", "client.ovpn")
	if err := os.WriteFile(path, []byte(strings.Join(lines, "")), 0o600); err != nil {
		g.t.Fatal(err)
	}
	return g.begin(path)
}

// begin starts the system's own client with a profile. What it says stays in
// the memory of the test.
func (g *marked) begin(profile string) *marked {
	g.t.Helper()
	secret := filepath.Join(g.Dir, "home", "login")
	if err := os.WriteFile(secret, []byte(g.username+"\n"+g.password+"\n"), 0o600); err != nil {
		g.t.Fatal(err)
	}
	c := &openvpnClient{g: g, ended: make(chan struct{})}
	c.cmd = g.Command(context.Background(), "openvpn", "--config", profile, "--auth-user-pass", secret, "--verb", "3", "--auth-nocache", "--auth-retry", "none")
	out, err := c.cmd.StdoutPipe()
	if err == nil {
		err = c.cmd.Start()
	}
	if err != nil {
		g.t.Fatal(err)
	}
	go func() {
		defer close(c.ended)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			c.mu.Lock()
			c.said = append(c.said, lines.Text())
			c.mu.Unlock()
		}
		_ = c.cmd.Wait() // it may have been killed
	}()
	g.t.Cleanup(c.kill)
	g.client = c
	return g
}

// up waits until the tunnel of g's client is up.
func (g *marked) up() {
	g.t.Helper()
	g.client.says("Initialization Sequence Completed", 1)
	g.learn()
}

// refused waits until g's client was refused with that answer.
func (g *marked) refused(answer string) {
	g.t.Helper()
	g.client.says("AUTH: Received control message: "+answer, 1)
	<-g.client.ended
}

// openvpnClient is a running openvpn(8) on a customer's machine.
type openvpnClient struct {
	g     *marked
	cmd   *lab.Cmd
	ended chan struct{}

	mu   sync.Mutex
	said []string
}

// says waits until the client has said something n times.
func (c *openvpnClient) says(text string, n int) {
	c.g.t.Helper()
	until(c.g.t, 100*time.Second, func() string {
		return fmt.Sprintf("%s: openvpn does not say %q: %d lines", c.g.Name, text, len(c.lines()))
	}, func() bool {
		count := 0
		for _, line := range c.lines() {
			if strings.Contains(line, text) {
				count++
			}
		}
		return count >= n
	})
}

func (c *openvpnClient) lines() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]string(nil), c.said...)
}

// renegotiated waits until new keys were agreed on.
func (c *openvpnClient) renegotiated() {
	c.g.t.Helper()
	c.says("Control Channel: TLSv1.3", 2)
}

// leave ends the client as a person would.
func (c *openvpnClient) leave() {
	c.g.t.Helper()
	_ = c.cmd.Process.Signal(syscall.SIGTERM) // wait notices when it has no effect
	c.wait()
}

func (c *openvpnClient) wait() {
	c.g.t.Helper()
	select {
	case <-c.ended:
	case <-time.After(20 * time.Second):
		c.g.t.Errorf("%s: openvpn does not end", c.g.Name)
	}
}

// kill ends the client with -9.
func (c *openvpnClient) kill() {
	_ = c.cmd.Process.Kill() // it may have ended
	<-c.ended
}

// vanish takes the customer's line away and then ends the client, so that the
// server hears nothing.
func (c *openvpnClient) vanish() {
	c.g.t.Helper()
	port := "m" + strconv.Itoa(slices.Index(c.g.h.l.Machines(), c.g.Machine))
	if _, err := c.g.h.l.Internet().Run(deadline(c.g.t), "ip", "link", "set", port, "down"); err != nil {
		c.g.t.Error(err)
	}
	c.kill()
}
