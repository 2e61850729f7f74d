package test

import (
	"context"
	"fmt"
	"maps"
	"net/netip"

	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"lethe/client"
	"lethe/day"
	"lethe/lab"
	"lethe/protocol"
	record "lethe/usage"
)

// The crowd of TestCrowd: half of the sessions by OpenVPN, over UDP and TCP, half by IKEv2.
const (
	crowdPeople   = 50
	crowdSessions = 200
)

// The bounds of a fault in the middle of a crowd. The aim is five seconds; the bounds stand a
// machine that is three times slower than one that meets it.
const (
	backWithin  = 15 * time.Second // what was killed takes new sessions
	longestHush = 5 * time.Second  // of a tunnel of another daemon, between two answers
)

// storm is the setting of TestCrowd.
type storm struct {
	*crowd
	people []*resident
	probe  *resident // comes and goes; has no row that counts
	swans  []*swan   // on the first two machines
	app    *customer // a licence for one device, connected to New York

	dialers  []*dialer
	tunnels  map[protocol.ID][]*tunnel // live
	sessions []*tunnel                 // all that ever were
}

// TestCrowd kills charon, an OpenVPN process, the resolver, the agent and the control plane with
// -9 in the middle of 200 sessions of both protocols: the tunnels of other daemons go on, what
// was killed is back in seconds, nobody gets in without a password meanwhile, and in
// the end there is one record for each session. It also loses the connection counter, and ends a
// licence.
func TestCrowd(t *testing.T) {
	began := time.Now()
	s := newStorm(t)
	t.Logf("%d sessions of %d customers live after %v", len(s.sessions), len(s.people), time.Since(began).Round(100*time.Millisecond))
	stop := s.intruders()
	s.faults()
	stop()
	s.revoked()
	s.counted()
	s.leave()
	s.records()
	t.Logf("all in all %v", time.Since(began).Round(100*time.Millisecond))
}

func newStorm(t *testing.T) *storm {
	l := newLab(t, func(o *lab.Options) {
		o.Customers = people
		o.Spec = `{"poll_seconds": 1, "usage_seconds": 2, "keepalive_seconds": 2}`
	})
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Minute)
	t.Cleanup(cancel)
	w := &trial{l, t, ctx, map[string]string{}, new(atomic.Uint32)}
	s := &storm{app: &customer{l.Customer(dave), t, "one@river.example"}, tunnels: map[protocol.ID][]*tunnel{}}
	s.app.must(password+"\n", "signup", s.app.email)
	w.operate(s.app.email+"\n", "licence", "create", "-", "--devices", "1", "--until", time.Now().AddDate(0, 1, 0).UTC().Format(time.DateOnly))
	s.app.must(password+"\n", "login", s.app.email)
	var ca [][]byte
	for _, place := range []string{"nl-ams", "us-nyc"} {
		for _, transport := range []string{"udp", "tcp"} {
			w.profiles[place+" "+transport] = s.app.must("", "config", "export", place, "--transport", transport)
		}
		s.app.must("", "config", "export", place, "--format", "swanctl", "-o", s.app.Data(place+".conf"))
		ca = append(ca, w.read(s.app.Data(place+"-1.pem")))
	}
	s.crowd, s.people = newCrowd(w, openBooks(t, l), crowdPeople+1)
	s.people, s.probe = s.people[:crowdPeople], s.people[crowdPeople]
	for i := range 2 {
		s.swans = append(s.swans, s.strongSwan(l.Customer(i), ca...))
	}
	for k, who := range s.people {
		s.swans[k%2].know(name(k), amsterdam, s.entry(0), who, who.secret)
	}
	s.swans[0].know("new-york", newYork, s.entry(1), s.people[0], s.people[0].secret)
	s.swans[0].know("intruder", amsterdam, s.entry(0), s.people[1], []byte("wrong password"))
	s.swans[1].know("probe", amsterdam, s.entry(0), s.probe, s.probe.secret)
	w.settle()
	s.app.connect("us-nyc")
	s.fillUp()
	return s
}

// name is the name of a customer's connection in charon.
func name(k int) string { return fmt.Sprintf("resident%d", k) }

// entry returns the address that customers dial of a server.
func (s *storm) entry(i int) netip.Addr { return s.Server(i).Addresses[0].V4 }

// machine is where the OpenVPN clients of a customer run.
func (s *storm) machine(k int) *lab.Machine { return s.Customer(k % 3) }

// fillUp brings the sessions up: as many by OpenVPN as by IKEv2, and of the first customer one of each in
// New York too.
func (s *storm) fillUp() {
	s.t.Helper()
	type dial struct {
		k       int
		profile string
	}
	var all []dial
	for i := range crowdSessions / 2 {
		all = append(all, dial{i % crowdPeople, []string{"nl-ams udp", "nl-ams tcp"}[i/crowdPeople]})
	}
	all = append(all, dial{0, "us-nyc udp"})
	var mu sync.Mutex
	began := time.Now()
	each(s.t, 8, all, func(one dial) error {
		d, t, err := s.crowd.dialIn(s.machine(one.k), one.profile, s.people[one.k])
		if err == nil {
			mu.Lock()
			defer mu.Unlock()
			s.dialers = append(s.dialers, d)
			s.add(t)
		}
		return err
	})
	s.t.Logf("%d by OpenVPN after %v", len(all), time.Since(began).Round(100*time.Millisecond))
	s.dialInIKE()
	t, err := s.swans[0].dialIn("us-nyc", map[string]*resident{"new-york": s.people[0]}, []string{"new-york"})
	s.check(err)
	s.add(t...)
	s.fill(s.sessions)
}

// dialInIKE brings up the IKEv2 sessions in Amsterdam.
func (s *storm) dialInIKE() {
	s.t.Helper()
	began := time.Now()
	people := map[string]*resident{}
	names := make([][]string, len(s.swans))
	for i := range crowdSessions / 2 {
		k := i % crowdPeople
		people[name(k)] = s.people[k]
		names[k%2] = append(names[k%2], name(k))
	}
	for i, swan := range s.swans {
		t, err := swan.dialIn("nl-ams", people, names[i])
		s.check(err)
		s.add(t...)
	}
	s.t.Logf("%d by IKEv2 after %v", crowdSessions/2, time.Since(began).Round(100*time.Millisecond))
}

func (s *storm) add(tunnels ...*tunnel) {
	for _, t := range tunnels {
		s.tunnels[t.proto] = append(s.tunnels[t.proto], t)
		s.sessions = append(s.sessions, t)
	}
}

// fill makes every session one of its row.
func (s *storm) fill(tunnels []*tunnel) {
	s.t.Helper()
	began := time.Now()
	each(s.t, 6, tunnels, (*tunnel).fill)
	s.t.Logf("%d sessions have moved a megabyte each after %v", len(tunnels), time.Since(began).Round(100*time.Millisecond))
}

// live returns the live tunnels of these protocols.
func (s *storm) live(protocols ...protocol.ID) (all []*tunnel) {
	for _, p := range protocols {
		all = append(all, s.tunnels[p]...)
	}
	return all
}

// answer wants all of the tunnels to carry traffic now.
func (s *storm) answer(tunnels []*tunnel) {
	s.t.Helper()
	now := time.Now()
	var silent []string
	until(s.t, longestHush, func() string {
		return fmt.Sprintf("%d of %d tunnels are silent: %v", len(silent), len(tunnels), silent)
	}, func() bool {
		silent = nil
		for _, t := range tunnels {
			if !t.answered(now) {
				silent = append(silent, fmt.Sprintf("%s of %s", t.name, t.m.Name))
			}
		}
		return len(silent) == 0
	})
}

// fault kills something, waits until back says that it takes new sessions, and wants the others
// to carry traffic all the time.
func (s *storm) fault(what string, others []*tunnel, kill func(), back func() bool) {
	s.t.Helper()
	s.answer(others)
	for _, t := range others {
		t.watch()
	}
	kill()
	took := s.until(backWithin, what+" is not back", back)
	s.answer(others)
	longest := &tunnel{}
	hush := time.Duration(0)
	for _, t := range others {
		if g := t.silence(); g > hush {
			longest, hush = t, g
		}
	}
	if hush > longestHush {
		s.t.Errorf("%s was killed and %s was silent for %v", what, longest.name, hush)
	}
	s.t.Logf("%s: back after %v; of %d other tunnels none was silent for more than %v", what,
		took.Round(10*time.Millisecond), len(others), hush.Round(10*time.Millisecond))
}

// faults kills one process of every kind.
func (s *storm) faults() {
	udp, tcp, ike := protocol.OpenVPNUDP, protocol.OpenVPNTCP, protocol.IKEv2
	server := s.Machine(amsterdam)
	username, secret := s.probe.username, s.probe.secret

	s.fault("lethe-control", s.live(udp, tcp, ike), func() { s.check(s.Kill("lethe-control", syscall.SIGKILL)) }, s.healthy)

	s.fault("lethe-node, for OpenVPN", s.live(udp, tcp, ike), func() { s.check(s.Kill(amsterdam, syscall.SIGKILL)) }, s.lets("nl-ams tcp", username, secret))
	s.fault("lethe-node, for IKEv2", s.live(udp, tcp, ike), func() { s.check(s.Kill(amsterdam, syscall.SIGKILL)) }, s.letsIKE)

	n, through := 0, s.tunnels[tcp][0]
	s.fault("unbound", s.live(udp, tcp, ike), func() { s.kill(s.pids(server, "unbound")...) }, func() bool {
		n++ // a name that no cache has
		return through.resolves(fmt.Sprintf("c%d.wild.river.example", n))
	})

	// What charon's end means to its customers: they notice, and come again.
	dead := s.ofAmsterdam(ike)
	s.fault("charon", s.without(dead), func() { s.kill(s.pids(server, "charon-systemd")...) }, s.letsIKE)
	for _, t := range dead {
		t.close()
	}
	for _, swan := range s.swans {
		s.check(swan.end(true, func(sa ikeSA) bool { return strings.HasPrefix(sa.name, "resident") }))
	}
	s.dialInIKE()
	s.fill(s.ofAmsterdam(ike))

	dead = s.ofAmsterdam(udp)
	s.fault("openvpn, UDP", s.without(dead), func() { s.kill(s.listener(server, "-u", 1194)) }, s.lets("nl-ams udp", username, secret))
	for _, t := range dead {
		t.close()
	}
}

// ofAmsterdam takes the tunnels of a protocol that end in Amsterdam out of the live ones.
func (s *storm) ofAmsterdam(p protocol.ID) (found []*tunnel) {
	for _, t := range s.tunnels[p] {
		if t.place == "nl-ams" && !t.closed() {
			found = append(found, t)
		}
	}
	return found
}

// without returns the live tunnels but some.
func (s *storm) without(some []*tunnel) (all []*tunnel) {
	for _, t := range s.sessions {
		if !t.closed() && !slices.Contains(some, t) {
			all = append(all, t)
		}
	}
	return all
}

func (t *tunnel) closed() bool {
	select {
	case <-t.stop:
		return true
	default:
		return false
	}
}

var listening = regexp.MustCompile(`pid=(\d+)`)

// listener returns the process on a machine that has a port.
func (s *storm) listener(m *lab.Machine, network string, port int) int {
	s.t.Helper()
	out, err := m.Run(s.ctx, "ss", "-Hlnp", network, "sport", "=", fmt.Sprintf(":%d", port))
	s.check(err)
	found := listening.FindStringSubmatch(out)
	if found == nil {
		s.t.Fatalf("nobody listens on port %d: %s", port, out)
	}
	pid, err := strconv.Atoi(found[1])
	s.check(err)
	return pid
}

// letsIKE reports whether the probe gets in by IKEv2.
func (s *storm) letsIKE() bool {
	s.t.Helper()
	in := s.swans[1].tries("probe", 1500*time.Millisecond)
	s.check(s.swans[1].end(true, func(sa ikeSA) bool { return sa.name == "probe" }))
	return in
}

// tries begins one tunnel and reports whether it is up in time. It does not end it.
func (s *swan) tries(name string, limit time.Duration) bool {
	s.t.Helper()
	if err := s.begin(name); err != nil {
		s.t.Fatal(err)
	}
	for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		all, err := s.list()
		if err != nil {
			s.t.Fatal(err)
		}
		i := slices.IndexFunc(all, func(sa ikeSA) bool { return sa.name == name })
		if i < 0 {
			return false // refused
		}
		if all[i].up {
			return true
		}
	}
	return false
}

// intruders try to get into the first server with a wrong password, by both protocols, until the
// returned function is called.
func (s *storm) intruders() (stop func()) {
	done := make(chan struct{})
	var wg sync.WaitGroup
	var tries [2]atomic.Uint32
	loop := func(n *atomic.Uint32, try func(int) bool) {
		for i := 0; ; i++ {
			select {
			case <-done:
				return
			default:
			}
			if try(i) {
				s.t.Error("an intruder is in")
			}
			n.Add(1)
		}
	}
	wg.Go(func() {
		loop(&tries[0], func(i int) bool {
			profile := s.profiles[[]string{"nl-ams udp", "nl-ams tcp"}[i%2]]
			return s.login(profile, s.people[1].username, []byte("wrong password"), 2*time.Second).outcome == gotIn
		})
	})
	wg.Go(func() {
		own := &swan{strongClient: s.swans[0].strongClient, c: s.crowd}
		own.conn = own.dial() // to the same charon
		loop(&tries[1], func(int) bool {
			in := own.tries("intruder", 2*time.Second)
			if err := own.end(true, func(sa ikeSA) bool { return sa.name == "intruder" }); err != nil {
				s.t.Error(err)
			}
			return in
		})
	})
	end := sync.OnceFunc(func() {
		close(done)
		wg.Wait()
	})
	s.t.Cleanup(end) // of a test that has failed
	return func() {
		end()
		for i := range tries {
			if n := tries[i].Load(); n < 5 {
				s.t.Errorf("intruder %d has tried %d times only", i, n)
			}
		}
		s.t.Logf("intruders have tried %d times by OpenVPN and %d times by IKEv2", tries[0].Load(), tries[1].Load())
	}
}

// revoked ends the licence of a customer who is connected to both servers by both
// protocols.
func (s *storm) revoked() {
	who := s.people[0]
	var gone, others []*tunnel
	for _, t := range s.sessions {
		switch {
		case t.closed():
		case t.who == who:
			gone = append(gone, t)
		default:
			others = append(others, t)
		}
	}
	places := map[string]int{}
	for _, t := range gone {
		places[t.place+" "+t.proto.String()]++
	}
	if len(places) < 4 {
		s.t.Fatalf("the customer is connected to %v", places)
	}
	began := time.Now()
	s.operate("resident0@river.example\n", "licence", "disable", "-")
	s.until(time.Minute, "a session lives on after its licence has ended", func() bool {
		quiet := time.Now().Add(-2 * time.Second)
		return !slices.ContainsFunc(gone, func(t *tunnel) bool { return t.answered(quiet) })
	})
	all, err := s.swans[0].list()
	s.check(err)
	if slices.ContainsFunc(all, func(sa ikeSA) bool { return sa.name == name(0) || sa.name == "new-york" }) {
		s.t.Error("an IKE SA of the ended licence is left")
	}
	for _, t := range gone {
		t.close()
	}
	s.answer(others)
	s.t.Logf("a disabled licence has ended %d sessions (%v) after %v", len(gone), places, time.Since(began).Round(100*time.Millisecond))
}

// counted wants the counter of connected devices, which was lost with the control plane, to be back
// by a heartbeat of the device that counts. Then another device of the licence is refused, with
// words that help, and let in when the first has left.
func (s *storm) counted() {
	took := s.until(time.Minute, "the heartbeat does not make the slot again", func() bool {
		return strings.Contains(s.operate(s.app.email+"\n", "slots", "show", "-"), "connected  1\n")
	})
	s.t.Logf("the connection counter is back (%v waited)", took.Round(100*time.Millisecond))
	second := []string{"XDG_STATE_HOME=" + s.app.Data("second")}
	if said, code := s.app.try(second, password+"\n", "login", s.app.email); code != 0 {
		s.t.Fatalf("login: %d, %s", code, said)
	}
	said, code := s.app.try(second, "", "connect", "us-nyc")
	if code != client.ExitLimit || !strings.Contains(said, "error: the one device that this licence allows is connected\n") || !strings.Contains(said, "hint: disconnect one") {
		s.t.Errorf("a second device: exit code %d, %q", code, said)
	}
	status := s.app.must("", "status")
	if !strings.Contains(status, "connected") || strings.Contains(status, "limit") {
		s.t.Errorf("the first device is told %q", status)
	}
	s.alive(dave)
	s.app.must("", "disconnect")
	// On the same machine, so after the first one has left.
	if said, code := s.app.try(second, "", "connect", "us-nyc"); code != 0 {
		s.t.Errorf("the second device after the first has left: exit code %d, %q", code, said)
	}
	s.alive(dave)
	if said, code := s.app.try(second, "", "disconnect"); code != 0 {
		s.t.Errorf("disconnect: exit code %d, %q", code, said)
	}
}

// leave ends every session that is left.
func (s *storm) leave() {
	for _, t := range s.sessions {
		t.close()
	}
	each(s.t, 16, s.dialers, (*dialer).leave)
	for _, swan := range s.swans {
		s.check(swan.end(false, func(ikeSA) bool { return true }))
	}
}

// records wants a megabyte for each session in the customers' rows, and no other rows.
func (s *storm) records() {
	want := map[record.Key]uint64{}
	for _, t := range s.sessions {
		if n := t.sent.Load(); n > unitMost {
			s.t.Errorf("%s has sent %d bytes: the rows cannot be told", t.name, n)
		}
		want[s.key(t)]++
	}
	known := map[record.UserHash]bool{}
	for _, who := range s.people {
		known[who.hash] = true
	}
	read := func() map[record.Key]uint64 {
		got := map[record.Key]uint64{}
		for k, a := range s.b.read() {
			if known[k.User] {
				got[k] = a.out / 1_000_000
			} else if a.out > 1_000_000 {
				s.t.Errorf("somebody else has a row with %+v", a)
			}
		}
		return got
	}
	why := func() string {
		got, text := read(), ""
		for k, n := range want {
			if got[k] != n {
				text += fmt.Sprintf("%d of %d sessions by %s at %d from %s\n", got[k], n, k.Protocol, k.Location, k.Country)
			}
		}
		return fmt.Sprintf("%d rows, want %d\n%s", len(got), len(want), text)
	}
	began := time.Now()
	until(s.t, time.Minute, why, func() bool { return maps.Equal(read(), want) })
	took := time.Since(began)
	for _, server := range serverNames() {
		for range 2 {
			s.b.next(server, s.b.batch(server))
		}
	}
	if !maps.Equal(read(), want) {
		s.t.Errorf("after two more batches: %s", why())
	}
	s.t.Logf("%d sessions are in %d rows, one by one, %v after the last end", len(s.sessions), len(want), took.Round(100*time.Millisecond))
}

// key is the row that a session belongs to.
func (s *storm) key(t *tunnel) record.Key {
	isp := lab.ISPs()[slices.IndexFunc([]*lab.Machine{s.Customer(0), s.Customer(1), s.Customer(2)}, func(m *lab.Machine) bool { return m == t.m })]
	return record.Key{Date: day.Today(), User: t.who.hash, Country: isp.Country, ISP: isp.Name, Location: s.b.locations[t.place], Protocol: t.proto}
}
