package test

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	_ "modernc.org/sqlite" // the driver of the store, to read it as an auditor would

	"lethe/day"
	"lethe/geoip"
	"lethe/lab"
	"lethe/location"
	"lethe/private"
	"lethe/protocol"
	record "lethe/usage"
)

// books are the store's usage rows, read from its file and not by any program of
// Lethe's, and what a test has come to expect of them.
type books struct {
	t         testing.TB
	db        *sql.DB
	salt      record.Salt
	locations map[string]location.ID // by code

	mu   sync.Mutex
	rows map[record.Key]amount // that have been accounted for
}

// amount is in bytes, as the customer sees them.
type amount struct{ in, out uint64 }

func (a amount) plus(b amount) amount { return amount{a.in + b.in, a.out + b.out} }

func openBooks(t testing.TB, l *lab.Lab) *books {
	t.Helper()
	db, err := sql.Open("sqlite", "file:"+l.Control().Path("/var/lib/lethe-control/lethe.sqlite")+"?mode=ro&_pragma=busy_timeout(5000)")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	b := &books{t: t, db: db, locations: map[string]location.ID{}, rows: map[record.Key]amount{}}
	out, err := l.Operate(deadline(t), "keys", "node", "--json")
	var keys struct {
		Salt []byte `json:"salt"`
	}
	if err != nil || json.Unmarshal([]byte(out), &keys) != nil || len(keys.Salt) != 32 {
		t.Fatalf("keys node: %v", err)
	}
	b.salt = private.Of([32]byte(keys.Salt))
	b.query("SELECT code, id FROM location", func(scan func(...any) error) error {
		var code string
		var id location.ID
		err := scan(&code, &id)
		b.locations[code] = id
		return err
	})
	return b
}

// query calls each for every row.
func (b *books) query(text string, each func(scan func(...any) error) error) {
	b.t.Helper()
	rows, err := b.db.QueryContext(context.Background(), text)
	if err != nil {
		b.t.Fatal(err)
	}
	defer rows.Close()
	for rows.Next() {
		if err := each(rows.Scan); err != nil {
			b.t.Fatal(err)
		}
	}
	if err := rows.Err(); err != nil {
		b.t.Fatal(err)
	}
}

// read returns every usage row.
func (b *books) read() map[record.Key]amount {
	b.t.Helper()
	found := map[record.Key]amount{}
	b.query("SELECT user_hash, date, country, isp, location, protocol, mb_in, mb_out FROM usage", func(scan func(...any) error) error {
		var k record.Key
		var user []byte
		var a amount
		var date uint16
		if err := scan(&user, &date, &k.Country, &k.ISP, &k.Location, &k.Protocol, &a.in, &a.out); err != nil {
			return err
		}
		k.User, k.Date = record.UserHash(user), day.Day(date)
		found[k] = amount{a.in * 1e6, a.out * 1e6}
		return nil
	})
	return found
}

// batch returns the id of the last batch that was accepted from a server.
func (b *books) batch(server string) (id string) {
	b.t.Helper()
	b.query("SELECT server, hex(id) FROM batch", func(scan func(...any) error) error {
		var of, last string
		err := scan(&of, &last)
		if of == server {
			id = last
		}
		return err
	})
	return id
}

// expect waits until the guest's row has grown by what some sessions have moved, within
// 1 % or 1 MB for each, and fails when it does not or grows by more.
func (b *books) expect(g *guest, sessions int, moved amount) {
	g.t.Helper()
	var why string
	until(g.t, 30*time.Second, func() string { return why }, func() (ok bool) {
		ok, why = b.book(g, sessions, moved)
		return ok
	})
}

// book looks once whether the guest's row has grown as [books.expect] wants it, and if
// so takes the row as accounted for; otherwise it says what is the matter.
func (b *books) book(g *guest, sessions int, moved amount) (ok bool, why string) {
	g.t.Helper()
	k := record.Key{Date: day.Today(), User: g.hash, Country: g.isp.Country, ISP: g.isp.Name, Location: b.locations[g.place], Protocol: g.proto}
	near := func(got, want uint64) bool {
		off := max(uint64(sessions)*1_000_000, want/100)
		return got+off >= want && got <= want+off
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	rows := b.read()
	now, was := rows[k], b.rows[k]
	grown := amount{now.in - was.in, now.out - was.out}
	if near(grown.in, moved.in) && near(grown.out, moved.out) {
		b.rows[k] = now
		return true, ""
	}
	return false, fmt.Sprintf("%s at %s by %s: the row grows by %+v, want %+v from %d sessions; all rows: %+v",
		g.Name, g.place, g.proto, grown, moved, sessions, rows)
}

// settle waits until the servers have nothing more to deliver and fails when the rows
// are not those, and all of those, that were expected. Every batch has an id, the
// empty ones too: with the second new one all that was pending has been accepted.
func (b *books) settle(servers ...string) {
	b.t.Helper()
	for _, s := range servers {
		for range 2 {
			b.next(s, b.batch(s))
		}
	}
	if now := b.read(); !maps.Equal(now, b.rows) {
		b.t.Errorf("the rows are %+v, want %+v", now, b.rows)
	}
}

// next waits until a server's batch is another than that.
func (b *books) next(server, than string) {
	b.t.Helper()
	until(b.t, 30*time.Second, func() string { return server + " delivers nothing" }, func() bool { return b.batch(server) != than })
}

// until waits until done says yes and fails with why otherwise.
func until(t testing.TB, limit time.Duration, why func() string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(limit); !done(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("after %v: %s", limit, why())
		}
	}
}

// together runs functions that may fail t at the same time, and ends the test when
// one did.
func together(t testing.TB, all ...func()) {
	t.Helper()
	var wg sync.WaitGroup
	for _, f := range all {
		wg.Go(f)
	}
	wg.Wait()
	if t.Failed() {
		t.FailNow()
	}
}

// guest is a customer whose rows can be told: the test knows the user name.
type guest struct {
	*customer
	hash  record.UserHash
	isp   lab.ISP
	place string      // where connected
	proto protocol.ID // by what
}

func newGuest(t testing.TB, l *lab.Lab, b *books, i int) *guest {
	t.Helper()
	g := &guest{customer: newCustomer(t, l, i)}
	if n := i % 4; n < len(lab.ISPs()) {
		g.isp = lab.ISPs()[n]
	} else { // no ISP, and perhaps a country
		file, err := os.ReadFile(filepath.Join(filepath.Dir(programs), "geoip.mmdb"))
		if err != nil {
			t.Fatal(err)
		}
		db, err := geoip.Open(file)
		if err != nil {
			t.Fatal(err)
		}
		if g.isp.Country, g.isp.Name = db.Lookup(g.Addresses[0].V4); g.isp.Name != "" {
			t.Errorf("%s has the ISP %q", g.Name, g.isp.Name)
		}
	}
	g.rename(b)
	if err := g.Inside(smallWindows); err != nil {
		t.Fatal(err)
	}
	return g
}

// smallWindows keeps the TCP connections of a machine from filling any buffer on their
// way: a packet that is lost inside OpenVPN's has been counted by one end only, and
// the ends could not be compared.
func smallWindows() error {
	return errors.Join(os.WriteFile("/proc/sys/net/ipv4/tcp_rmem", []byte("4096 65536 65536"), 0),
		os.WriteFile("/proc/sys/net/ipv4/tcp_wmem", []byte("4096 65536 65536"), 0))
}

// rename learns the present user name.
func (g *guest) rename(b *books) {
	g.t.Helper()
	var c struct {
		Username string `json:"username"`
	}
	if err := json.Unmarshal([]byte(g.must("", "credentials", "show", "--json")), &c); err != nil || c.Username == "" {
		g.t.Fatalf("credentials show: %v", err)
	}
	g.hash = record.Hash(b.salt, []byte(c.Username))
}

// enter connects to a place by "udp" or "tcp".
func (g *guest) enter(place, transport string) {
	g.t.Helper()
	g.connect(place, "--protocol", "openvpn", "--transport", transport)
	g.place, g.proto = place, map[string]protocol.ID{"udp": protocol.OpenVPNUDP, "tcp": protocol.OpenVPNTCP}[transport]
}

func (g *guest) device() string {
	if g.proto == protocol.OpenVPNTCP {
		return "lethe-tcp"
	}
	return "lethe-udp"
}

// move downloads and uploads some megabytes through the tunnel, over IPv4 or IPv6, and
// returns the customer's own count of what the tunnel has carried.
func (g *guest) move(in, out int, flags ...string) amount {
	g.t.Helper()
	curl := func(args ...string) {
		g.t.Helper()
		if _, err := g.Run(deadline(g.t), "curl", slices.Concat([]string{"-sS", "-m", "60"}, flags, args)...); err != nil {
			g.t.Fatalf("%s: %v", g.Name, err)
		}
	}
	before := g.meter()
	curl("-o", "/dev/null", lab.SiteURL+"bytes/"+strconv.Itoa(in*1_000_000))
	body := filepath.Join(g.Dir, "data", "body")
	if err := os.WriteFile(body, make([]byte, out*1_000_000), 0o600); err != nil {
		g.t.Fatal(err)
	}
	curl("-o", "/dev/null", "--data-binary", "@"+body, lab.SiteURL+"sink")
	now := g.meter()
	if now.in < before.in+uint64(in)*1e6 || now.out < before.out+uint64(out)*1e6 {
		g.t.Fatalf("%s moved %d and %d MB and the tunnel counts %+v, then %+v", g.Name, in, out, before, now)
	}
	return now
}

// link returns what ip(8) says of the tunnel device.
func (g *guest) link(args ...string) string {
	g.t.Helper()
	out, err := g.Run(deadline(g.t), "ip", append(append([]string{"-s", "-j"}, args...), "show", "dev", g.device())...)
	if err != nil {
		g.t.Fatalf("%s: %v", g.Name, err)
	}
	return out
}

// meter returns the byte counts of the tunnel device.
func (g *guest) meter() amount {
	g.t.Helper()
	var links []struct {
		Stats struct {
			RX struct {
				Bytes uint64 `json:"bytes"`
			} `json:"rx"`
			TX struct {
				Bytes uint64 `json:"bytes"`
			} `json:"tx"`
		} `json:"stats64"`
	}
	if err := json.Unmarshal([]byte(g.link("link")), &links); err != nil || len(links) != 1 {
		g.t.Fatalf("ip link: %v", err)
	}
	return amount{links[0].Stats.RX.Bytes, links[0].Stats.TX.Bytes}
}

// address returns the IPv4 address in the tunnel.
func (g *guest) address() netip.Addr {
	g.t.Helper()
	a, ok := g.placed()
	if !ok {
		g.t.Fatalf("%s has no tunnel", g.Name)
	}
	return a
}

// placed returns the IPv4 address in the tunnel, if there is one at the moment.
func (g *guest) placed() (a netip.Addr, ok bool) {
	g.t.Helper()
	err := g.Inside(func() error {
		all, err := net.InterfaceAddrs()
		for _, i := range all {
			if p, err := netip.ParsePrefix(i.String()); err == nil && inTunnel(p.Addr()) {
				a, ok = p.Addr(), true
			}
		}
		return err
	})
	if err != nil {
		g.t.Fatal(err)
	}
	return a, ok
}

// inTunnel reports whether a is a tunnel address of IPv4 (session.SubnetsOf).
func inTunnel(a netip.Addr) bool {
	b := a.Unmap().AsSlice()
	return len(b) == 4 && b[0] == 10 && b[1] >= 64 && b[1] < 192
}

// leave disconnects and books the session, and its forerunners if they are not
// booked yet.
func (g *guest) leave(b *books, sessions int, moved amount) {
	g.t.Helper()
	g.must("", "disconnect")
	b.expect(g, sessions, moved)
}

// state returns what the app says of the connection.
func (g *guest) state() string {
	g.t.Helper()
	var s struct {
		State string `json:"state"`
	}
	if err := json.Unmarshal([]byte(g.must("", "status", "--json")), &s); err != nil {
		g.t.Fatal(err)
	}
	return s.State
}

// knows reports whether a server still has a session with that tunnel address.
func knows(t testing.TB, server *lab.Machine, a netip.Addr) bool {
	t.Helper()
	out, err := server.Run(deadline(t), "nft", "list", "set", "inet", "lethe", "up4")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Contains(out, a.String()+" ")
}

// forgets waits until a server has ended the session with that tunnel address.
func forgets(t testing.TB, server *lab.Machine, a netip.Addr, limit time.Duration) {
	t.Helper()
	began := time.Now()
	until(t, limit, func() string { return server.Name + " still has the session" }, func() bool { return !knows(t, server, a) })
	t.Logf("%s: session ended after %v", server.Name, time.Since(began).Round(100*time.Millisecond))
}

// processes returns the processes on a machine that run a program of that name.
func processes(t testing.TB, m *lab.Machine, name string) (pids []int) {
	t.Helper()
	all, err := m.PIDs()
	if err != nil {
		t.Fatal(err)
	}
	for _, pid := range all {
		if comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid)); err == nil && strings.TrimSpace(string(comm)) == name {
			pids = append(pids, pid)
		}
	}
	return pids
}

// crash kills a unit's process with -9 and waits until the service manager has started
// it again.
func crash(t testing.TB, l *lab.Lab, unit string) {
	t.Helper()
	before := status(t, l, unit).Restarts
	if err := l.Kill(unit, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	until(t, 30*time.Second, func() string { return unit + " does not come back" }, func() bool {
		s := status(t, l, unit)
		return s.Restarts > before && s.State == lab.Active
	})
}

func status(t testing.TB, l *lab.Lab, unit string) lab.Status {
	t.Helper()
	for _, s := range l.Units() {
		if s.Unit == unit {
			return s
		}
	}
	t.Fatalf("no unit %s", unit)
	return lab.Status{}
}

// deliver sends a signal to a unit.
func deliver(t testing.TB, l *lab.Lab, unit string, s syscall.Signal) {
	t.Helper()
	if err := l.Kill(unit, s); err != nil {
		t.Fatal(err)
	}
}
