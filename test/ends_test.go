package test

import (
	"bytes"
	"database/sql"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"lethe/lab"
	"lethe/protocol"
)

// The names of the servers, which are those of their units too.
const (
	amsterdam = "nl-ams-1"
	newYork   = "us-nyc-1"
)

// ends is the setting of TestEnds.
type ends struct {
	t      *testing.T
	l      *lab.Lab
	b      *books
	guests []*guest
}

// TestEnds ends sessions in every way there is and holds what the store then has
// against what went through the customers' tunnels: one record for each session, of
// the description's fields, right within 1 % or 1 MB. The parts share one lab and build
// on each other's rows: a record that comes twice or late spoils the sums of
// those after.
func TestEnds(t *testing.T) {
	l := newLab(t, func(o *lab.Options) {
		o.Customers = 6
		// A peer is dead after six seconds.
		o.Spec = `{"poll_seconds": 1, "usage_seconds": 2, "keepalive_seconds": 1}`
	})
	gentle(t, l, 6)
	e := &ends{t: t, l: l, b: openBooks(t, l), guests: make([]*guest, 6)}
	var sign []func()
	for i := range e.guests {
		sign = append(sign, func() { e.guests[i] = newGuest(t, l, e.b, i) })
	}
	together(t, sign...)
	if rows := e.b.read(); len(rows) != 0 {
		t.Fatalf("rows before any session: %+v", rows)
	}
	for _, part := range []struct {
		name string
		run  func()
	}{
		{"customers leave, vanish or are thrown out", e.customers},
		{"no tunnel", e.noTunnel},
		{"the agent dies", e.agent},
		{"a record waits when the agent dies", e.pending},
		{"acknowledgement lost", e.acknowledgement},
		{"the control plane dies", e.control},
		{"openvpn dies", e.openVPN},
		{"server stops", e.stop},
		{"table", e.table},
	} {
		began := time.Now()
		if !t.Run(part.name, func(t *testing.T) {
			e.on(t)
			part.run()
		}) {
			return
		}
		t.Logf("%s: %v", part.name, time.Since(began).Round(100*time.Millisecond))
	}
}

// on makes t the test that fails.
func (e *ends) on(t *testing.T) {
	e.t, e.b.t = t, t
	for _, g := range e.guests {
		g.t = t
	}
}

// customers has six customers come and go at the same time, at both places by both
// protocols.
func (e *ends) customers() {
	ams, nyc := e.l.Machine(amsterdam), e.l.Machine(newYork)
	g := e.guests
	together(e.t,
		func() { // they leave; twice in a day is one row, IPv6 counts as IPv4 does
			for _, transport := range []string{"udp", "tcp", "udp"} {
				g[0].enter("nl-ams", transport)
				g[0].leave(e.b, 1, g[0].move(8, 4))
			}
			g[0].enter("us-nyc", "udp")
			g[0].leave(e.b, 1, g[0].move(9, 5, "-6"))
		},
		func() {
			e.kill(g[1], nyc, "udp")
			e.kill(g[1], nyc, "tcp")
		},
		func() { e.silence(g[2], ams, "udp") },
		func() { e.silence(g[3], nyc, "tcp") },
		func() {
			e.revoke(g[4], ams, "udp")
			e.replace(g[4], ams, "tcp")
		},
		func() {
			e.replace(g[5], nyc, "udp")
			e.revoke(g[5], nyc, "tcp")
		},
	)
	e.b.settle(amsterdam, newYork)
}

func place(server *lab.Machine) string { return strings.TrimSuffix(server.Name, "-1") }

// kill kills a customer's OpenVPN with -9. The app connects again: two sessions.
func (e *ends) kill(g *guest, server *lab.Machine, transport string) {
	g.enter(place(server), transport)
	moved, former := g.move(7, 5), g.address()
	pids := processes(g.t, g.Machine, "openvpn")
	if len(pids) != 1 {
		g.t.Fatalf("%s runs %d OpenVPN clients", g.Name, len(pids))
	}
	if err := unix.Kill(pids[0], unix.SIGKILL); err != nil {
		g.t.Fatal(err)
	}
	forgets(g.t, server, former, 15*time.Second)
	until(g.t, 30*time.Second, func() string { return g.Name + " is not connected again" }, func() bool {
		p := processes(g.t, g.Machine, "openvpn")
		return len(p) == 1 && p[0] != pids[0] && g.state() == "connected"
	})
	g.leave(e.b, 2, moved.plus(g.move(4, 3)))
}

// silence takes a customer's line away, so that neither end hears of the other any
// more.
func (e *ends) silence(g *guest, server *lab.Machine, transport string) {
	g.enter(place(server), transport)
	moved, former := g.move(7, 5), g.address()
	port := "m" + strconv.Itoa(slices.Index(e.l.Machines(), g.Machine)) // see link in package lab
	line := func(state string) {
		if _, err := e.l.Internet().Run(deadline(g.t), "ip", "link", "set", port, state); err != nil {
			g.t.Fatal(err)
		}
	}
	line("down")
	defer line("up")
	if !knows(g.t, server, former) {
		g.t.Errorf("%s: the session has ended before the peer was dead", g.Name)
	}
	forgets(g.t, server, former, 15*time.Second)
	g.leave(e.b, 1, moved)
}

// revoke has the operator end a customer's licence.
func (e *ends) revoke(g *guest, server *lab.Machine, transport string) {
	g.enter(place(server), transport)
	moved, former := g.move(7, 5), g.address()
	operate := func(args ...string) {
		if _, err := e.l.Operate(deadline(g.t), args...); err != nil {
			g.t.Fatal(err)
		}
	}
	operate("licence", "disable", g.email)
	forgets(g.t, server, former, time.Minute)
	g.leave(e.b, 1, moved)
	operate("licence", "create", g.email, "--until", time.Now().AddDate(0, 1, 0).UTC().Format(time.DateOnly))
}

// replace has a customer replace the VPN user name and password. The record
// is the old name's; the new name has none.
func (e *ends) replace(g *guest, server *lab.Machine, transport string) {
	g.enter(place(server), transport)
	moved, former := g.move(7, 5), g.address()
	g.must("", "credentials", "replace")
	forgets(g.t, server, former, time.Minute)
	g.leave(e.b, 1, moved)
	old := g.hash
	if g.rename(e.b); g.hash == old {
		g.t.Errorf("%s has the old user name", g.Name)
	}
}

// ordinary returns the command of a customer's own OpenVPN client. It makes no routes:
// only how far it gets is of interest.
func (g *guest) ordinary(place, transport, password string) (*lab.Cmd, *bytes.Buffer) {
	g.t.Helper()
	profile, login := filepath.Join(g.Dir, "data", "plain.ovpn"), filepath.Join(g.Dir, "data", "login")
	g.must("", "config", "export", place, "--transport", transport, "-o", profile)
	name, known, _ := strings.Cut(strings.TrimPrefix(g.must("", "credentials", "show"), "user name: "), "\npassword:")
	if password == "" {
		password = strings.TrimSpace(known)
	}
	if err := os.WriteFile(login, []byte(name+"\n"+password+"\n"), 0o600); err != nil {
		g.t.Fatal(err)
	}
	c := g.Command(deadline(g.t), "openvpn", "--config", profile, "--auth-user-pass", login, "--dev", "plain", "--dev-type", "tun",
		"--route-noexec", "--connect-retry-max", "1", "--verb", "3")
	var said bytes.Buffer
	c.Stdout, c.Stderr = &said, &said
	return c, &said
}

// noTunnel has logins that never become a tunnel: a wrong password, and a client that
// dies while the agent looks its password up. A session by the same way, of
// another customer, then shows that nothing else is on its way.
func (e *ends) noTunnel() {
	g, server := e.guests[4], e.l.Machine(newYork)
	if c, said := g.ordinary("us-nyc", "tcp", "not the password"); c.Run() != nil || !strings.Contains(said.String(), "control message: AUTH_FAILED") {
		e.t.Errorf("a wrong password: %s", said)
	}
	deliver(e.t, e.l, newYork, unix.SIGSTOP)
	resume := func() { _ = e.l.Kill(newYork, unix.SIGCONT) } // a test that fails here must not hang
	defer resume()
	c, _ := g.ordinary("us-nyc", "tcp", "")
	path := filepath.Join(g.Dir, "data", "plain.log")
	log, err := os.Create(path)
	if err != nil {
		e.t.Fatal(err)
	}
	defer log.Close()
	c.Stdout, c.Stderr = log, log
	if err := c.Start(); err != nil {
		e.t.Fatal(err)
	}
	said := func() string { b, _ := os.ReadFile(path); return string(b) }
	until(e.t, 20*time.Second, said, func() bool { return strings.Contains(said(), "'PUSH_REQUEST'") })
	_ = c.Process.Kill() // Wait says whether it worked
	var exit *exec.ExitError
	if err := c.Wait(); !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != unix.SIGKILL {
		e.t.Fatalf("%v: %s", err, said())
	}
	until(e.t, 20*time.Second, func() string { return "the server holds the connection" }, func() bool {
		out, err := server.Run(deadline(e.t), "ss", "-Htn", "state", "established", "sport = :443")
		return err == nil && strings.TrimSpace(out) == ""
	})
	resume()
	other := e.guests[5]
	other.enter("us-nyc", "tcp")
	other.leave(e.b, 1, other.move(6, 3))
	e.b.settle(newYork) // no row of g
	g.enter("us-nyc", "tcp")
	g.leave(e.b, 1, g.move(6, 3))
}

// agent kills an agent three times while a download and a ping go through the tunnels
// of its server, and once more after the sessions ended while it was away.
func (e *ends) agent() {
	pair := e.guests[:2]
	transports := []string{"udp", "tcp"}
	var streams []func()
	crashed := make(chan struct{})
	for i, g := range pair {
		g.enter("nl-ams", transports[i])
		streams = append(streams, func() { g.stream(crashed) })
	}
	together(e.t, append(streams, func() {
		defer close(crashed)
		adopted := e.logged(amsterdam, "adopted part=openvpn")
		crash(e.t, e.l, amsterdam)
		until(e.t, 30*time.Second, func() string { return "the new agent does not take OpenVPN over" }, func() bool {
			return e.logged(amsterdam, "adopted part=openvpn") == adopted+2
		})
		crash(e.t, e.l, amsterdam) // and one that has hardly begun
		crash(e.t, e.l, amsterdam)
		e.b.next(amsterdam, e.b.batch(amsterdam))
		for _, g := range pair { // another agent has all of them
			if !knows(e.t, e.l.Machine(amsterdam), g.address()) {
				e.t.Errorf("%s lost the session", g.Name)
			}
		}
	})...)
	moved := []amount{pair[0].move(1, 4), pair[1].move(1, 4)}
	deliver(e.t, e.l, amsterdam, unix.SIGSTOP)
	for _, g := range pair {
		g.must("", "disconnect")
		g.quiet()
	}
	crash(e.t, e.l, amsterdam)
	for i, g := range pair {
		e.b.expect(g, 1, moved[i])
	}
	e.b.settle(amsterdam)
}

// logged returns how often a unit has logged a line.
func (e *ends) logged(unit, line string) int {
	e.t.Helper()
	b, err := os.ReadFile(e.l.LogPath(unit))
	if err != nil {
		e.t.Fatal(err)
	}
	return strings.Count(string(b), line)
}

// stream downloads and pings until done is closed; the download must come whole and no
// answer to a ping be two seconds after the one before.
func (g *guest) stream(done <-chan struct{}) {
	g.t.Helper()
	const size, rate = 30_000_000, "4M"
	var pings, page bytes.Buffer
	ping := g.Command(deadline(g.t), "ping", "-n", "-D", "-i", "0.2", lab.SiteAddr.V4.String())
	curl := g.Command(deadline(g.t), "curl", "-sS", "-m", "60", "--limit-rate", rate, "-o", "/dev/null", "-w", "%{size_download}", lab.SiteURL+"bytes/"+strconv.Itoa(size))
	ping.Stdout, curl.Stdout = &pings, &page
	if err := errors.Join(ping.Start(), curl.Start()); err != nil {
		g.t.Fatal(err)
	}
	<-done
	if err := curl.Wait(); err != nil || page.String() != strconv.Itoa(size) {
		g.t.Errorf("%s: the download broke: %v, %s bytes", g.Name, err, page.String())
	}
	_ = ping.Process.Signal(unix.SIGINT)
	if err := ping.Wait(); err != nil {
		g.t.Errorf("%s: ping: %v: %s", g.Name, err, pings.String())
	}
	gap, n, err := longestGap(pings.String())
	if err != nil || n < 10 || gap > 2 {
		g.t.Errorf("%s: %d answers to pings, %.2f s between two (%v): %s", g.Name, n, gap, err, pings.String())
	}
	g.t.Logf("%s: %d answers to pings, at most %.2f s between two", g.Name, n, gap)
}

// longestGap returns the longest time in seconds between two answers in the
// output of "ping -D", and how many there are.
func longestGap(pings string) (gap float64, n int, err error) {
	last := 0.0
	for line := range strings.Lines(pings) {
		stamp, rest, ok := strings.Cut(strings.TrimPrefix(line, "["), "] ")
		if !ok || !strings.Contains(rest, " bytes from ") {
			continue
		}
		at, err := strconv.ParseFloat(stamp, 64)
		if err != nil {
			return 0, 0, err
		}
		if n++; n > 1 {
			gap = max(gap, at-last)
		}
		last = at
	}
	return gap, n, nil
}

// quiet waits until nothing has come to a customer's machine for two seconds: a
// server that held a tunnel would send a ping every second.
func (g *guest) quiet() {
	g.t.Helper()
	last, since := "", time.Now()
	until(g.t, 30*time.Second, func() string { return g.Name + " still hears from the server" }, func() bool {
		out, err := g.Run(deadline(g.t), "cat", "/proc/net/dev")
		if err != nil {
			g.t.Fatal(err)
		}
		if out != last {
			last, since = out, time.Now()
		}
		return time.Since(since) > 2*time.Second
	})
}

// visits has guests at a place by these transports, and returns what they have moved and
// their addresses.
func (e *ends) visits(at string, pair []*guest, transports ...string) (moved []amount, addresses []netip.Addr) {
	e.t.Helper()
	for i, g := range pair {
		g.enter(at, transports[i])
		moved, addresses = append(moved, g.move(6, 4)), append(addresses, g.address())
	}
	return moved, addresses
}

// hold keeps the control plane from reading anything until the returned function is
// called, so that records wait where they are.
func (e *ends) hold() (release func()) {
	e.t.Helper()
	deliver(e.t, e.l, "lethe-control", unix.SIGSTOP)
	return func() { _ = e.l.Kill("lethe-control", unix.SIGCONT) } // it is safe to repeat
}

// gone disconnects guests and waits until their server has made records of their
// sessions.
func (e *ends) gone(server string, pair []*guest, addresses []netip.Addr) {
	e.t.Helper()
	// At the same time: while the control plane is held, each waits a second for it to take
	// the connection slot back.
	var leave []func()
	for _, g := range pair {
		leave = append(leave, func() { g.must("", "disconnect") })
	}
	together(e.t, leave...)
	for i := range pair {
		forgets(e.t, e.l.Machine(server), addresses[i], 15*time.Second)
	}
}

// pending kills an agent that has records and cannot deliver them.
func (e *ends) pending() {
	pair := e.guests[:2]
	moved, addresses := e.visits("nl-ams", pair, "udp", "tcp")
	before := e.b.read()
	release := e.hold()
	defer release()
	e.gone(amsterdam, pair, addresses)
	crash(e.t, e.l, amsterdam)
	for k, a := range e.b.read() {
		if before[k] != a {
			e.t.Errorf("a row was delivered to a control plane that is stopped: %+v", k)
		}
	}
	release()
	for i, g := range pair {
		e.b.expect(g, 1, moved[i])
	}
	e.b.settle(amsterdam)
}

// deafen is the firewall of a control plane that takes a server's next batch and whose
// answer does not arrive. A batch is the only thing of a server's that fills packets.
const deafen = `table inet %[1]s {
	set posted { type ipv4_addr; flags dynamic; }
	set posted6 { type ipv6_addr; flags dynamic; }
	counter dropped { }
	chain input {
		type filter hook input priority 0;
		ip saddr %[2]s tcp dport 8443 meta length > 1000 add @posted { ip saddr }
		ip6 saddr %[3]s tcp dport 8443 meta length > 1000 add @posted6 { ip6 saddr }
	}
	chain output {
		type filter hook output priority 0;
		ip daddr @posted tcp sport 8443 counter name dropped drop
		ip6 daddr @posted6 tcp sport 8443 counter name dropped drop
	}
}`

// acknowledgement loses the acknowledgement of a batch that was accepted. Then the agent
// of one server and, for another server's batch, the control plane is killed. The
// servers deliver their batches again, and nothing is counted twice.
func (e *ends) acknowledgement() {
	for _, c := range []struct {
		server string
		pair   []*guest
		victim string
	}{
		{amsterdam, e.guests[:2], amsterdam},
		{newYork, e.guests[2:4], "lethe-control"},
	} {
		for tries := 1; !e.lose(c.server, c.pair); tries++ {
			if tries == 8 { // on an idle machine the first one succeeds
				e.t.Fatalf("%s: %d times no acknowledgement was lost", c.server, tries)
			}
		}
		accepted := e.b.batch(c.server)
		crash(e.t, e.l, c.victim)
		if now := e.b.batch(c.server); now != accepted {
			e.t.Errorf("%s: the acknowledgement was not lost: another batch came", c.server)
		}
		e.nft("delete table inet deaf")
		e.b.next(c.server, accepted)
		e.b.settle(c.server)
	}
}

// lose ends two sessions and has the control plane accept their records and lose its
// answer. It reports whether that came to pass: on a machine so slow that the next batch
// goes while the sessions end, that one takes some of the records or none. TCP, because over
// UDP a server waits five seconds before it ends a session whose customer has said
// goodbye.
func (e *ends) lose(server string, pair []*guest) bool {
	m := e.l.Machine(server)
	moved, addresses := e.visits(place(m), pair, "tcp", "tcp")
	e.b.next(server, e.b.batch(server)) // the next one is an interval away
	e.gone(server, pair, addresses)
	e.nft(fmt.Sprintf(deafen, "deaf", m.Addresses[0].V4, m.Addresses[0].V6))
	booked := make([]bool, len(pair))
	all := func() bool {
		for i, g := range pair {
			if !booked[i] {
				booked[i], _ = e.b.book(g, 1, moved[i])
			}
		}
		return !slices.Contains(booked, false)
	}
	if last := e.b.batch(server); !all() {
		e.b.next(server, last)
		dropped := e.nft("list counter inet deaf dropped")
		if all() && strings.Contains(dropped, "packets ") && !strings.Contains(dropped, "packets 0 ") {
			return true
		}
	}
	e.nft("delete table inet deaf")
	for i, g := range pair {
		if !booked[i] {
			e.b.expect(g, 1, moved[i])
		}
	}
	return false
}

// nft changes or lists the control plane's firewall.
func (e *ends) nft(text string) string {
	e.t.Helper()
	c := e.l.Control().Command(deadline(e.t), "nft", "-f", "-")
	c.Stdin = strings.NewReader(text)
	out, err := c.Output()
	if err != nil {
		e.t.Fatal(err)
	}
	return string(out)
}

// control kills the control plane again and again while sessions end and their records
// are delivered.
func (e *ends) control() {
	pairs := map[string][]*guest{amsterdam: e.guests[:2], newYork: e.guests[2:4]}
	moved := map[*guest]amount{}
	for server, pair := range pairs {
		m, _ := e.visits(place(e.l.Machine(server)), pair, "udp", "tcp")
		moved[pair[0]], moved[pair[1]] = m[0], m[1]
	}
	together(e.t,
		func() {
			for range 4 {
				crash(e.t, e.l, "lethe-control")
			}
		},
		func() {
			for g, a := range moved {
				g.leave(e.b, 1, a)
			}
		})
	e.b.settle(amsterdam, newYork)
}

// openVPN kills the processes of a server with -9. It starts them again, and customers come
// back by themselves: two sessions each.
func (e *ends) openVPN() {
	server, pair := e.l.Machine(newYork), e.guests[2:4]
	moved, addresses := e.visits("us-nyc", pair, "udp", "tcp")
	former := processes(e.t, server, "openvpn")
	if len(former) != 2 {
		e.t.Fatalf("the server runs %d OpenVPN processes, want 2", len(former))
	}
	for _, pid := range former {
		if err := unix.Kill(pid, unix.SIGKILL); err != nil {
			e.t.Fatal(err)
		}
	}
	until(e.t, 5*time.Second, func() string { return "OpenVPN is not back" }, func() bool {
		now := processes(e.t, server, "openvpn")
		out, err := server.Run(deadline(e.t), "ss", "-Htunl", "sport = :443 or sport = :1194")
		return err == nil && len(now) == 2 && !slices.Contains(now, former[0]) && !slices.Contains(now, former[1]) &&
			strings.Contains(out, ":443 ") && strings.Contains(out, ":1194 ")
	})
	for i, g := range pair {
		forgets(e.t, server, addresses[i], 5*time.Second)
		until(e.t, time.Minute, func() string { return g.Name + " is not connected again" }, func() bool {
			p := processes(e.t, g.Machine, "openvpn")
			at, ok := g.placed()
			return ok && len(p) == 1 && g.state() == "connected" && knows(e.t, server, at)
		})
		g.leave(e.b, 2, moved[i].plus(g.move(4, 3)))
	}
	e.b.settle(newYork)
}

// stop stops a server in order while customers are connected. Their records have been
// delivered when it has stopped, because it forgets everything then.
func (e *ends) stop() {
	server, pair := e.l.Machine(newYork), e.guests[2:4]
	moved, _ := e.visits("us-nyc", pair, "udp", "tcp")
	dial := func() error {
		c, err := e.l.Internet().Dial(deadline(e.t), "tcp", netip.AddrPortFrom(server.Addresses[0].V4, 443).String())
		if err == nil {
			_ = c.Close()
		}
		return err
	}
	if err := dial(); err != nil {
		e.t.Fatal(err)
	}
	if err := e.l.Stop(deadline(e.t), newYork); err != nil {
		e.t.Fatal(err)
	}
	last := e.b.batch(newYork)
	for i, g := range pair {
		e.b.expect(g, 1, moved[i])
		g.must("", "disconnect")
	}
	if e.b.batch(newYork) != last {
		e.t.Error("a batch came from a server that has stopped")
	}
	rules, err := server.Run(deadline(e.t), "nft", "list", "table", "inet", "lethe")
	if err != nil || strings.Count(rules, "policy drop") != 3 || strings.Contains(rules, "dport") || strings.Contains(rules, "elements") {
		e.t.Errorf("the firewall is not closed: %v\n%s", err, rules)
	}
	if left := processes(e.t, server, "openvpn"); len(left) > 0 {
		e.t.Errorf("OpenVPN processes are left: %v", left)
	}
	// The closed firewall drops: whoever dials waits until the packet's end.
	quick, err := e.l.Internet().Run(deadline(e.t), "curl", "-sS", "-m", "2", "https://"+server.Addresses[0].V4.String())
	if err == nil || !strings.Contains(err.Error(), "timed out") {
		e.t.Errorf("a server that has stopped answers: %v %s", err, quick)
	}
	e.b.settle(amsterdam)
}

// table looks at the table itself: the description's fields and nothing else, no hidden
// number and no order that could tell when a row was made; and shows one customer's rows as
// the operator sees them.
func (e *ends) table() {
	var columns []string
	e.b.query("SELECT name FROM pragma_table_info('usage')", func(scan func(...any) error) error {
		var name string
		err := scan(&name)
		columns = append(columns, name)
		return err
	})
	if want := []string{"user_hash", "date", "country", "isp", "location", "protocol", "mb_in", "mb_out"}; !slices.Equal(columns, want) {
		e.t.Errorf("the columns are %v, want %v", columns, want)
	}
	memory, err := sql.Open("sqlite", ":memory:")
	if err != nil {
		e.t.Fatal(err)
	}
	defer memory.Close()
	memory.SetMaxOpenConns(1)
	if _, err := memory.Exec("CREATE TABLE usage (mb_in BIGINT)"); err != nil {
		e.t.Fatal(err)
	}
	for db, hidden := range map[*sql.DB]bool{memory: true, e.b.db: false} {
		rows, err := db.Query("SELECT rowid FROM usage")
		if err == nil {
			rows.Close()
		}
		if (err == nil) != hidden {
			e.t.Errorf("a hidden row number: %v, want %v", err == nil, hidden)
		}
	}
	var order []string
	e.b.query("SELECT hex(user_hash) || printf('%05d', date) || country FROM usage NOT INDEXED", func(scan func(...any) error) error {
		var key string
		err := scan(&key)
		order = append(order, key)
		return err
	})
	if len(order) < 10 || !slices.IsSorted(order) {
		e.t.Errorf("the rows lie in the order %v", order)
	}
	g := e.guests[0]
	shown := usage(e.t, e.l, g.email, func([]usageRow) bool { return true })
	sum, want := amount{}, amount{}
	for _, r := range shown {
		sum = sum.plus(amount{r.In * 1e6, r.Out * 1e6})
	}
	for k, a := range e.b.read() {
		if k.User == g.hash {
			want = want.plus(a)
		}
	}
	if len(shown) != 3 || sum != want || shown[0].Country != "DE" || shown[0].ISP != "Elbe Telekom" ||
		!slices.ContainsFunc(shown, func(r usageRow) bool { return r.Location == "us-nyc" && r.Protocol == protocol.OpenVPNUDP.String() }) {
		e.t.Errorf("the operator sees %+v, want 3 rows and %+v", shown, want)
	}
}
