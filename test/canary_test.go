package test

import (
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"lethe/canary"
	"lethe/lab"
)

// exception is one thing that may be found, and why. Patterns match whole names;
// that of a mark may go on with " as " and the encoding.
type exception struct {
	surface, mark string
	live          bool // only while sessions live
	why           string
}

// exceptions are all that may be found. cN is the Nth customer; c0, c2 and c3 are
// connected to Amsterdam when the live search runs, c5 as well, by IKEv2, and c1 to
// New York; c4 was refused by both; c6 and c7 were there a thousand times, by OpenVPN and by IKEv2.
var exceptions = []exception{
	// What the inventory declares as kept.
	{`store:account\.email`, `c\d e-mail`, false, "account.email: to log in"},
	{`file:control/var/lib/lethe-control/lethe\.sqlite(-wal)?`, `c\d (e-mail|user hash)`, false, "the store that has the rows above and below"},
	{`store:usage\.user_hash`, `c\d user hash`, false, "usage.user: the hash is the user's only name in a record"},

	{`(fd:control/lethe-control/authdb|fd:(nl-ams|us-nyc)-1/lethe-node/lethe-bundle|bundle:authdb/.*)`, `c\d password as text nt-hash`, false,
		"authdb: of a VPN password servers have the hash that EAP-MSCHAPv2 needs, under a keyed hash of the user name"},

	// Customers' own machines.
	{`file:customer-\d/home/.*`, `c\d (user name|password)`, false, "the app, and the system's own client, keep the customer's credential on the customer's machine"},
	{`file:customer-[68]/data/.*`, `c[57] .*`, false, "the system's own client: its settings and its log"},
	{`argv:customer-\d/(sh|lethe)`, `c\d e-mail`, false, "what the customer types"},

	// On the wire.
	{`packet:(tunnel|app-api)`, `c\d address v[46].*`, false, "source and destination of the customer's own packets, in their IP header"},
	{`packet:node-internet`, `c\d (destination|dns|payload).*`, false, "the customer's own traffic, behind NAT, is what a VPN carries"},

	// The memory of live sessions: fact "session" of the inventory.
	{`kernel:(nl-ams|us-nyc)-1/net/nf_conntrack`, `c\d (destination|tunnel).*`, true, "kernel:conntrack; of a VPN port there is nothing"},
	{`kernel:[^/]+/net/tcp6?`, `c\d address.*`, true, "the socket of a customer's TCP connection, to OpenVPN or to the app API"},
	{`kernel:(nl-ams|us-nyc)-1/nft`, `c\d tunnel.*`, true, "kernel:nft-up4 and its like: the live tunnel addresses, by which the kernel counts"},
	{`fd:(nl-ams|us-nyc)-1/lethe-node/lethe-ledger`, `c\d (tunnel.*|user hash)`, true, "memory:lethe-node/ledger"},
	{`kernel:(nl-ams|us-nyc)-1/neighbours`, `c\d tunnel v6.*`, true, "kernel:neighbours"},
	{`kernel:nl-ams-1/(net/(route|fib_trie|ipv6_route)|routes[46])`, `c[57] tunnel.*`, true, "kernel:routes: charon makes one for each tunnel whose ESP it does itself"},
	{`memory:nl-ams-1/openvpn`, `c[02346] .*`, true, "memory:openvpn/session"},
	{`memory:us-nyc-1/openvpn`, `c[014] .*`, true, "memory:openvpn/session; c0 was there before"},
	{`memory:nl-ams-1/charon-systemd`, `c[57] .*`, true, "memory:charon/session"},
	{`memory:nl-ams-1/lethe-node`, `c[0234567] (address|user|password|tunnel|wrong|unknown).*`, true, "memory:lethe-node/session"},
	{`memory:us-nyc-1/lethe-node`, `c[014] (address|user|password|tunnel|wrong|unknown).*`, true, "memory:lethe-node/session"},
	{`memory:(nl-ams|us-nyc)-1/lethe-node`, `c\d password as text nt-hash`, true, "authdb, as above"},
	{`memory:(nl-ams|us-nyc)-1/unbound`, `c\d (dns|tunnel).*`, true, "the resolver answers, and forgets within a minute"},
	{`memory:control/lethe-control`, `c\d (e-mail|login password|user.*|password|address.*)`, true, "the control plane serves the customers' apps"},
}

// allowed returns the exception that covers h, if there is one.
func allowed(h canary.Hit, live bool) (exception, bool) {
	surface, _, _ := strings.Cut(h.Surface, "!") // a gzip member is where its file is
	for _, e := range exceptions {
		match := func(pattern, s string) bool { return regexp.MustCompile("^(?:" + pattern + ")$").MatchString(s) }
		if (live || !e.live) && match(e.surface, surface) && (match(e.mark, h.Mark) || match(e.mark, h.Mark+" as "+h.Encoding)) {
			return e, true
		}
	}
	return exception{}, false
}

// leaks returns the hits that no exception covers and no chance explains. What is allowed is no company for a weak hit: the
// addresses in IP headers would confirm every one in what the packets carry.
func leaks(hits []canary.Hit, live bool) []canary.Hit {
	return canary.Confirmed(slices.DeleteFunc(slices.Clone(hits), func(h canary.Hit) bool {
		_, ok := allowed(h, live)
		return ok
	}))
}

// TestCanary has marked customers do all that customers do, and looks for the
// marks everywhere the service could have left them: while sessions live, after
// their end, and, to show that the search works, where they were put on purpose.
func TestCanary(t *testing.T) {
	h := newHunt(t)
	t.Run("before", func(t *testing.T) { h.before(t) })
	t.Run("sessions", func(t *testing.T) { h.sessions(t) })
	t.Run("crowd", func(t *testing.T) { h.crowd(t) })
	t.Run("live", func(t *testing.T) { h.live(t) })
	t.Run("ends", func(t *testing.T) { h.ends(t) })
	t.Run("after", func(t *testing.T) { h.after(t) })
	t.Run("stock OpenVPN is found", func(t *testing.T) { h.stock(t) })
	t.Run("planted marks are found", func(t *testing.T) { h.planted(t) })
}

// before notes what chance holds already: whatever is found before any mark was
// used is no leak of it.
func (h *hunt) before(t *testing.T) {
	hits := h.search(t, false)
	for _, hit := range hits {
		if !hit.Weak {
			t.Errorf("found before it was used: %v", hit)
		}
		h.chance[[3]string{hit.Surface, hit.Mark, hit.Encoding}] = true
	}
	t.Logf("%d forms; %d MB searched; %d chance hits, %.2f expected in as much random data",
		h.set.Forms(), h.bytes>>20, len(hits), h.set.Chance(h.bytes))
}

// sessions brings customers into every kind of session and refusal.
func (h *hunt) sessions(t *testing.T) {
	ams, nyc := h.l.Machine(amsterdam), h.l.Machine(newYork)
	g := h.guests
	var join []func()
	for _, g := range h.guests {
		join = append(join, g.join)
	}
	together(t, join...)
	h.operate(g[4].email+"\n", "licence", "disable", "-")
	h.settle(t)
	together(t,
		func() { // the app, UDP and TCP, to both places; it stays in Amsterdam
			g[0].app("us-nyc", "tcp")
			g[0].use()
			g[0].must("", "disconnect")
			g[0].app("nl-ams", "udp")
			g[0].use()
		},
		func() { // the system's own client, which will renegotiate its keys
			g[1].dial(nyc, "tcp", true).up()
			g[1].use()
		},
		func() { // will fall silent
			g[2].dial(ams, "udp", true).up()
			g[2].use()
		},
		func() { // will be killed
			g[3].dial(ams, "tcp", false).up()
			g[3].use()
		},
		func() { h.refusals(t, ams, nyc) },
		func() { // strongSwan, which knows nothing of the app
			profile := g[5].Data("lethe.conf")
			g[5].must("", "config", "export", "nl-ams", "--format", "swanctl", "-o", profile)
			h.strong = newStrongClient(h.t, g[5].Machine, amsterdam)
			h.strong.load(profile, g[5].username, g[5].password)
			if err := h.strong.connect(); err != nil {
				t.Errorf("%v\n%s", err, h.strong.log())
				return
			}
			g[5].learn()
			g[5].use()
		},
	)
}

// refusals lets the fifth customer try a wrong password, an unknown name, and a
// licence that has ended.
func (h *hunt) refusals(t *testing.T, ams, nyc *lab.Machine) {
	g := h.guests[4]
	name, pass := g.username, g.password
	for _, server := range []*lab.Machine{ams, nyc} {
		for _, transport := range []string{"udp", "tcp"} {
			g.username, g.password = name, g.wrong
			g.dial(server, transport, transport == "udp").refused("AUTH_FAILED")
			g.username, g.password = g.unknown, pass
			g.dial(server, transport, transport == "tcp").refused("AUTH_FAILED")
			g.username, g.password = name, pass
			g.dial(server, transport, false).refused("AUTH_FAILED,licence-expired")
		}
	}
}

// live searches while sessions live, before and after the agent was killed.
func (h *hunt) live(t *testing.T) {
	if err := h.l.Kill(amsterdam, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	until(t, time.Minute, func() string { return "the agent is not back" }, func() bool {
		for _, u := range h.l.Units() {
			if u.Unit == amsterdam {
				return u.Restarts > 0 && u.State == lab.Active
			}
		}
		return false
	})
	for _, g := range h.connected() {
		g.use()
	}
	hits := h.search(t, true)
	for _, bad := range leaks(hits, true) {
		t.Error("LEAK while sessions live:", bad)
	}
	// What must be there shows that the search sees these places.
	for surface, mark := range map[string]string{
		`kernel:nl-ams-1/net/nf_conntrack`:           `c[23] destination v[46]`,
		`kernel:us-nyc-1/net/tcp6`:                   `c1 address v6`,
		`kernel:nl-ams-1/nft`:                        `c0 tunnel v4.*`,
		`fd:nl-ams-1/lethe-node/lethe-ledger`:        `c2 user hash`,
		`memory:nl-ams-1/openvpn`:                    `c3 user name`,
		`memory:us-nyc-1/openvpn`:                    `c1 user name`,
		`memory:nl-ams-1/charon-systemd`:             `c5 user name`,
		`memory:nl-ams-1/unbound`:                    `c0 dns name`,
		`memory:control/lethe-control`:               `c0 e-mail`,
		`packet:tunnel`:                              `c3 address v4`,
		`packet:node-internet`:                       `c2 payload`,
		`store:account\.email`:                       `c0 e-mail`,
		`file:customer-1/home/.*`:                    `c0 user name`,
		`file:control/var/lib/lethe-control/lethe.*`: `c0 e-mail`,
	} {
		if !found(hits, surface, mark) {
			t.Errorf("the search does not find %s in %s, where it is", mark, surface)
		}
	}
}

// found reports whether a mark was found on a surface; both are patterns.
func found(hits []canary.Hit, surface, mark string) bool {
	s, m := regexp.MustCompile("^(?:"+surface+")$"), regexp.MustCompile("^(?:"+mark+")$")
	return slices.ContainsFunc(hits, func(h canary.Hit) bool { return s.MatchString(h.Surface) && m.MatchString(h.Mark) })
}

// ends ends every session, each in another way.
func (h *hunt) ends(t *testing.T) {
	g := h.guests
	together(t,
		func() {
			g[1].client.renegotiated()
			g[1].use()
			g[1].client.leave()
		},
		func() { g[2].client.vanish() },
		func() { g[3].client.kill() },
		func() { h.strong.leave() },
		func() { g[0].must("", "disconnect") },
	)
	for _, g := range append(h.connected(), h.guests[byOpenVPN], h.guests[byIKEv2]) {
		usage(t, h.l, g.email, func(rows []usageRow) bool { return len(rows) > 0 })
	}
	h.ended = time.Now()
}

// patience is how long the kernel may remember a customer after the end: UDP and
// TCP connections time out within a minute.
const patience = 75 * time.Second

// after searches when all sessions have ended.
func (h *hunt) after(t *testing.T) {
	var left []canary.Hit
	until(t, patience, func() string { return fmt.Sprintf("the servers still hold marks: %v", left) }, func() bool {
		left = leaks(h.volatile(t), false)
		return len(left) == 0
	})
	t.Logf("kernel and memfds are clear %.0f s after the last end", time.Since(h.ended).Seconds())
	hits := h.search(t, false)
	for _, bad := range leaks(hits, false) {
		t.Error("LEAK:", bad)
	}
	for _, want := range []string{"c0 user hash", "c1 user hash", "c2 user hash", "c3 user hash", "c5 user hash", "c6 user hash", "c7 user hash"} {
		if !found(hits, `store:usage\.user_hash`, want) {
			t.Errorf("%s is in no usage row", want)
		}
	}
	if found(hits, `store:usage\.user_hash`, "c4 user hash") {
		t.Error("a refused customer has a usage row")
	}
	used := map[string]int{}
	for _, hit := range hits {
		if e, ok := allowed(hit, false); ok {
			used[e.surface]++
		}
	}
	for _, e := range exceptions {
		if !e.live && used[e.surface] == 0 {
			t.Logf("this exception was not needed: %s in %s (%s)", e.mark, e.surface, e.why)
		}
	}
	h.report(t, hits)
}

// report says what was searched.
func (h *hunt) report(t *testing.T, hits []canary.Hit) {
	weak := 0
	for _, hit := range hits {
		if hit.Weak {
			weak++
		}
	}
	samples, processes, seconds := h.sampler.stats()
	frames, bytes, drops := h.wire.stats()
	t.Logf("%d forms of %d marks; %d surfaces, %d MB in the last search; %.3f chance hits expected in as much random data, %d weak hits found",
		h.set.Forms(), h.marks, len(h.surfaces), h.bytes>>20, h.set.Chance(h.bytes), weak)
	t.Logf("argv and environ: %d rounds in %.0f s (%.0f a second), %d different ones; packets: %d of %d MB (%s), %d dropped",
		samples, seconds, float64(samples)/seconds, processes, frames, bytes>>20, h.wire.classes(), drops)
	if drops > 0 {
		t.Errorf("%d packets were not captured", drops)
	}
	if samples == 0 || frames == 0 {
		t.Error("nothing was sampled or captured")
	}
	residue := map[string]int{}
	for _, hit := range h.memory(t) {
		residue[hit.Surface+" "+hit.Mark[3:]] += hit.Count
	}
	t.Logf("residue in the memory of processes after the end, not forbidden yet: %v", residue)
}

// stock runs OpenVPN as it comes, with the log and the status file that everybody
// has, and wants the same search to find the same customer there.
func (h *hunt) stock(t *testing.T) {
	dir := h.stockServer(t)
	g := h.guests[1]
	g.begin(filepath.Join(dir, "client.ovpn")).client.says("Initialization Sequence Completed", 1)
	file := func(name string) []canary.Hit {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return canary.Confirmed(h.set.Find("file:stock/"+name, b))
	}
	for _, name := range []string{"log", "status"} {
		for _, mark := range []string{"c1 user name", "c1 address v4"} {
			until(t, 20*time.Second, func() string { return "stock OpenVPN's " + name + " has no " + mark }, func() bool {
				return found(file(name), "file:stock/"+name, mark)
			})
		}
	}
	g.client.leave()
	hits := append(file("log"), file("status")...)
	for _, hit := range hits {
		t.Log("found in stock OpenVPN: ", hit)
	}
	if len(leaks(hits, true)) != len(hits) {
		t.Error("an exception covers stock OpenVPN")
	}
}

// planted puts a mark into one surface of each kind and wants the search to find
// each: a detector that has gone silent fails the run.
func (h *hunt) planted(t *testing.T) {
	wants := h.plant(t)
	var bad []canary.Hit
	missing := func() (missing []string) {
		bad = leaks(h.search(t, false), false)
		for surface, mark := range wants {
			if !found(bad, surface, mark) {
				missing = append(missing, mark+" in "+surface)
			}
		}
		return missing
	}
	until(t, 30*time.Second, func() string { return fmt.Sprintf("not found: %v\nfound: %v", missing(), bad) }, func() bool {
		return len(missing()) == 0
	})
	t.Logf("%d plants, all found", len(wants))
}

// letters returns n random letters and digits: a mark that nobody else has.
func letters(n int) string {
	const alphabet = "abcdefghjkmnpqrstuvwxyz23456789"
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails
	for i := range b {
		b[i] = alphabet[int(b[i])%len(alphabet)]
	}
	return string(b)
}
