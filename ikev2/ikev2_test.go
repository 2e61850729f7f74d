package ikev2_test

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"lethe/fault"
	"lethe/ikev2"
	"lethe/internal/testkit"
	"lethe/private"
	"lethe/protocol"
	"lethe/session"
	"lethe/vici"
)

// TestLife follows a customer from connect to exit and looks for a marked user name wherever it must not be.
func TestLife(t *testing.T) {
	s := start(t, config(runtimeDir(t)), newLedger(t))
	c := newCustomer(t)
	c.up(t)
	s.core.told.Await(t, "established", 1, time.Second)
	ref, login, grant := s.core.latest()
	if login.Peer.Reveal() != netip.MustParseAddr(fmt.Sprintf("10.99.%d.2", c.n)) || login.Protocol != protocol.IKEv2 || login.Username.Reveal() != c.user {
		t.Errorf("login of %q from %s by %s", login.Username.Reveal(), login.Peer.Reveal(), login.Protocol)
	}
	if ref.Daemon != daemonID || ikev2.Clients(s.Server) != 1 {
		t.Errorf("daemon %d, %d clients; want %d, 1", ref.Daemon, ikev2.Clients(s.Server), daemonID)
	}
	for _, want := range []string{grant.V4.String(), grant.V6.String(), "INTERNAL_IP4_DNS", "INTERNAL_IP6_DNS"} {
		if !c.says(want) {
			t.Errorf("the customer was not told %s: %s", want, c.log())
		}
	}
	c.ping(t)
	hunt(t, s, c.user)
	c.leave(t)
	s.core.told.Await(t, "end", 1, 2*time.Second)
	if n := ikev2.Clients(s.Server); n != 0 {
		t.Errorf("%d clients have left", n)
	}
	s.stop()
	if got := s.log.String(); got != "started part=ikev2\nstopped part=ikev2\n" {
		t.Errorf("log %q", got)
	}
	if _, err := os.Stat("/sys/class/net/" + s.Instance().Device); err == nil {
		t.Errorf("left behind: %s", s.Instance().Device)
	}
	if records := s.core.ledger.Freeze().Records; len(records) != 1 || records[0].Protocol != protocol.IKEv2 || records[0].In != 3 {
		t.Errorf("records %+v", records)
	}
}

// hunt searches argv, environment, open files and the runtime directory of charon for a text and for
// secrets.
func hunt(t *testing.T, s *server, mark string) {
	t.Helper()
	pids := testkit.Processes(commandLine)
	if len(pids) != 1 {
		t.Fatalf("%d processes, want 1", len(pids))
	}
	secret := string(s.Secret().Reveal())
	for _, f := range []string{"cmdline", "environ", "fd/3"} {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pids[0], f))
		if err != nil || bytes.Contains(b, []byte(mark)) || bytes.Contains(b, []byte(secret)) || len(b) == 0 {
			t.Errorf("%s: %q, %v", f, b, err)
		}
		if f == "fd/3" && len(bytes.Trim(b, "\x00")) > 0 {
			t.Error("the configuration was not overwritten")
		}
	}
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pids[0]))
	for _, want := range []string{fmt.Sprintf("Uid:\t%d", uid), "CapEff:\t0000000000001000"} {
		if !bytes.Contains(b, []byte(want)) {
			t.Errorf("want %q in %s", want, b)
		}
	}
	list, err := os.ReadDir(s.cfg.RuntimeDir + "/charon3")
	if err != nil || len(list) != 1 || list[0].Name() != "vici" {
		t.Errorf("runtime directory: %v, %v", list, err)
	}
}

// TestRefused shows who does not get in, and that nothing is left of it.
func TestRefused(t *testing.T) {
	s := start(t, config(runtimeDir(t)), newLedger(t))
	c := newCustomer(t)
	if err := c.connect(t, "user", "wrong", modern); err == nil {
		t.Error("a wrong password got in")
	}
	if !c.says("EAP_MSCHAPV2 failed") && !c.says("EAP-MS-CHAPv2 failed") {
		t.Errorf("the customer was not told: %s", c.log())
	}
	// What Windows proposes by itself.
	if err := c.connect(t, "user", password, []string{"aes256-sha1-modp1024", "aes256-sha1"}); err == nil {
		t.Error("MODP-1024 was agreed to")
	}
	if n := s.core.told.Count("admit"); n != 0 || s.core.Count() != 0 || s.core.ledger.Pending() != 0 {
		t.Errorf("%d admitted, %d sessions", n, s.core.Count())
	}
	c.up(t)
	s.Kill(session.Ref{Daemon: daemonID, Client: 12345})
	s.Kill(session.Ref{Daemon: daemonID + 1, Client: 1})
	time.Sleep(200 * time.Millisecond)
	c.ping(t)
	if !strings.Contains(s.log.String(), "started") || s.core.told.Count("end") != 0 {
		t.Errorf("journal %q", s.core.told.Entries())
	}
}

// TestProposals agrees with customers of every kind: the app, Apple's and Windows's by profile, Apple's by
// itself, and with ML-KEM where this strongSwan has it.
func TestProposals(t *testing.T) {
	s := start(t, config(runtimeDir(t)), newLedger(t))
	c := newCustomer(t)
	list := []struct{ ike, esp, want string }{
		{"aes256gcm16-prfsha384-x25519", "aes256gcm16-x25519", "AES_GCM_16_256/PRF_HMAC_SHA2_384/CURVE_25519"},
		{"aes256gcm16-prfsha384-ecp384", "aes256gcm16-ecp384", "AES_GCM_16_256/PRF_HMAC_SHA2_384/ECP_384"},
		{"aes256-sha256-modp2048", "aes256-sha256", "AES_CBC_256/HMAC_SHA2_256_128/PRF_HMAC_SHA2_256/MODP_2048"},
	}
	algorithms, err := c.vici.Call(t.Context(), "get-algorithms", nil)
	must(t, err)
	if ikev2.Knows(algorithms) {
		list = append(list, struct{ ike, esp, want string }{"aes256gcm16-prfsha384-x25519-ke1_mlkem768", "aes256gcm16-x25519-ke1_mlkem768",
			"AES_GCM_16_256/PRF_HMAC_SHA2_384/CURVE_25519/KE1_ML_KEM_768"})
	}
	for i, tt := range list {
		if err := c.connect(t, "user", password, []string{tt.ike, tt.esp}); err != nil || !c.says("selected proposal: IKE:"+tt.want) {
			t.Fatalf("%s: %v: %s", tt.ike, err, c.log())
		}
		c.ping(t)
		c.call(t, "rekey", new(vici.Message).Set("child", "net"))
		testkit.Eventually(t, 5*time.Second, func() bool { return strings.Count(c.log(), "CHILD_SA net{") >= 3*i+2 }, c.log)
		c.ping(t)
		c.leave(t)
		s.core.told.Await(t, "end", i+1, 2*time.Second)
	}
	t.Logf("%d proposals", len(list))
}

// TestRekey replaces the keys of a customer from both ends; the session goes on.
func TestRekey(t *testing.T) {
	s := start(t, config(runtimeDir(t)), newLedger(t))
	c := newCustomer(t)
	c.up(t)
	s.core.told.Await(t, "established", 1, time.Second)
	ref, _, grant := s.core.latest()
	before := c.sa(t)
	c.call(t, "rekey", new(vici.Message).Set("child", "net"))
	c.call(t, "rekey", new(vici.Message).Set("ike", "lethe"))
	testkit.Eventually(t, 5*time.Second, func() bool { return c.sa(t) != before }, c.log)
	c.ping(t)
	charon, err := s.talk(t.Context())
	must(t, err)
	defer charon.Close()
	for i, what := range []string{"ike", "child", "ike"} {
		before := c.sa(t)
		_, err := charon.Call(t.Context(), "rekey", new(vici.Message).Set(what, "lethe"))
		must(t, err)
		if what == "ike" {
			testkit.Eventually(t, 5*time.Second, func() bool { return c.sa(t) != before }, c.log)
		}
		if c.ping(t); t.Failed() {
			t.Fatalf("rekeying %d, %s", i, what)
		}
	}
	if s.core.told.Count("admit") != 1 || s.core.told.Count("end") != 0 || s.core.told.Count("established") != 1 || ikev2.Clients(s.Server) != 1 {
		t.Errorf("journal %q", s.core.told.Entries())
	}
	// The operator still finds it.
	s.Kill(ref)
	s.core.told.Await(t, "end", 1, time.Second)
	testkit.Eventually(t, 2*time.Second, func() bool { return c.says("received DELETE for IKE_SA") }, c.log)
	if records := s.core.ledger.Freeze().Records; len(records) != 1 || !grant.V4.IsValid() {
		t.Errorf("records %+v", records)
	}
}

// TestRoam moves a customer to another address, and back.
func TestRoam(t *testing.T) {
	s := start(t, config(runtimeDir(t)), newLedger(t))
	c := newCustomer(t)
	c.up(t)
	for _, step := range [][2]int{{2, 7}, {7, 2}} {
		c.roam(t, step[0], step[1])
		testkit.Eventually(t, 8*time.Second, func() bool {
			return c.run("ping -q -c 1 -W 1 "+session.SubnetsOf(daemonID).V4.Addr().Next().String()) == nil
		}, c.log)
	}
	if s.core.told.Count("admit") != 1 || s.core.told.Count("end") != 0 || !c.says("MOBIKE") {
		t.Errorf("journal %q", s.core.told.Entries())
	}
}

// TestEnds ends sessions in every way there is.
func TestEnds(t *testing.T) {
	s := start(t, config(runtimeDir(t)), newLedger(t))
	for i, tt := range []struct {
		name  string
		end   func(*customer, session.Ref)
		limit time.Duration
		says  string
	}{
		{"customer leaves", func(c *customer, _ session.Ref) { c.leave(t) }, time.Second, ""},
		{"customer killed", func(c *customer, _ session.Ref) { c.kill() }, 10 * time.Second, ""},
		{"operator", func(_ *customer, ref session.Ref) { s.Kill(ref) }, time.Second, "received DELETE for IKE_SA"},
		{"line cut", func(c *customer, _ session.Ref) { must(t, testkit.Command(fmt.Sprintf("ip link del sv%d", c.n))) }, 10 * time.Second, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := newCustomer(t)
			c.up(t)
			s.core.told.Await(t, "established", i+1, time.Second)
			ref, _, _ := s.core.latest()
			began := time.Now()
			tt.end(c, ref)
			s.core.told.Await(t, "end", i+1, tt.limit)
			t.Logf("ended after %s", time.Since(began).Round(time.Millisecond))
			if tt.says != "" {
				testkit.Eventually(t, 2*time.Second, func() bool { return c.says(tt.says) }, c.log)
			}
		})
	}
	if n := ikev2.Clients(s.Server); s.core.Count() != 0 || len(s.core.ledger.Freeze().Records) == 0 || n != 0 {
		t.Errorf("%d sessions and %d clients left", s.core.Count(), n)
	}
}

// TestAbandoned ends a session whose IKE SA did not come up, and refuses what only a confused RADIUS client
// would ask.
func TestAbandoned(t *testing.T) {
	cfg := config(runtimeDir(t))
	f := newLedger(t)
	early, err := ikev2.New(cfg, newCore(t, f, func(session.Ref) {}), nil)
	must(t, err)
	hash := func(*[16]byte) bool { return true }
	login := session.Login{Username: private.Of("u"), Proof: hash, Protocol: protocol.IKEv2}
	ref := session.Ref{Daemon: daemonID, Client: 77}
	if _, err := early.Admit(ref, login); fault.Of(err) != fault.Unavailable {
		t.Errorf("without charon: %v", err)
	}
	s := start(t, cfg, f)
	if err := s.Check(login); err != nil {
		t.Error(err)
	}
	if _, err := s.Admit(ref, login); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Admit(ref, login); fault.Of(err) != fault.Denied {
		t.Errorf("twice: %v", err)
	}
	s.Established(ref)
	s.End(session.Ref{Daemon: daemonID, Client: 78})
	s.End(ref)
	if s.core.Count() != 0 || len(s.core.ledger.Freeze().Records) != 0 {
		t.Error("an abandoned session is still there, or left a record")
	}
	s.core.setRefuse(fault.New(fault.Expired, "licence ended"))
	if _, err := s.Admit(ref, login); fault.Of(err) != fault.Expired {
		t.Errorf("expired: %v", err)
	}
	s.core.setRefuse(nil)
	// An IKE SA that comes up all the same is ended.
	c := newCustomer(t)
	s.door.abandon.Store(true)
	_ = c.connect(t, "user", password, modern)
	// The client is told once, and ignores that when it does not know yet that it is in.
	testkit.Eventually(t, 5*time.Second, func() bool { return s.sas(t) == 0 }, c.log)
	if s.core.Count() != 0 {
		t.Error("a session out of nothing")
	}
	s.door.abandon.Store(false)
	// One that was up before is not ended by it.
	c = newCustomer(t)
	c.up(t)
	s.core.told.Await(t, "established", 1, time.Second)
	up, _, _ := s.core.latest()
	s.End(up)
	c.ping(t)
	if s.core.Count() != 1 {
		t.Error("an IKE SA that is up lost its session")
	}
}

// TestIPv6 connects over IPv6.
func TestIPv6(t *testing.T) {
	s := start(t, config(runtimeDir(t)), newLedger(t))
	c := newCustomer(t)
	c.up(t, "remote", fmt.Sprintf("fd99:%x::1", c.n))
	c.ping(t)
	if _, login, _ := s.core.latest(); login.Peer.Reveal() != netip.MustParseAddr(fmt.Sprintf("fd99:%x::2", c.n)) {
		t.Errorf("peer %s", login.Peer.Reveal())
	}
}

// hangUp breaks the server's connection to charon.
func hangUp(t *testing.T, s *server) {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	n := 0
	for _, e := range list {
		fd, _ := strconv.Atoi(e.Name())
		if a, err := unix.Getpeername(fd); err == nil {
			if a, ok := a.(*unix.SockaddrUnix); ok && strings.HasPrefix(a.Name, s.cfg.RuntimeDir) {
				must(t, unix.Shutdown(fd, unix.SHUT_RDWR))
				n++
			}
		}
	}
	if n != 1 {
		t.Errorf("%d connections to charon, want 1", n)
	}
}

// TestAgentRestart ends the agent in three ways under a live tunnel whose IKE SA is rekeyed in between, and
// lets the next one go on.
func TestAgentRestart(t *testing.T) {
	cfg, f := config(runtimeDir(t)), newLedger(t)
	first := cfg
	first.Detach = true
	s := start(t, first, f)
	c, gone := newCustomer(t), newCustomer(t)
	c.up(t)
	gone.up(t)
	s.core.told.Await(t, "established", 2, time.Second)
	before := testkit.Processes(commandLine)
	pinging := exec.Command("nsenter", "-n", "-t", fmt.Sprint(c.holder.Process.Pid), "ping", "-q", "-i", "0.05", "-c", "100", "-W", "2",
		session.SubnetsOf(daemonID).V4.Addr().Next().String())
	var out bytes.Buffer
	pinging.Stdout = &out
	must(t, pinging.Start())

	// The connection breaks, the agent stays; a customer leaves meanwhile.
	hangUp(t, s)
	gone.leave(t)
	s.core.told.Await(t, "end", 1, 3*time.Second)
	s.core.told.Await(t, "resume 1", 1, 3*time.Second)

	s.stop()
	if n := s.core.told.Count("end"); n != 1 {
		t.Fatalf("a detached agent ended %d sessions", n-1)
	}
	number := c.sa(t)
	c.call(t, "rekey", new(vici.Message).Set("ike", "lethe"))
	testkit.Eventually(t, 5*time.Second, func() bool { return c.sa(t) != number }, c.log)
	a := startAgent(t, cfg.RuntimeDir, f)
	a.await(t, "resume 1")
	late := newCustomer(t)
	late.up(t)
	late.leave(t)
	a.await(t, "end")
	a.kill()
	if err := late.connect(t, "late", password, modern); err == nil {
		t.Error("somebody got in without an agent")
	}
	s = start(t, cfg, f)
	s.core.told.Await(t, "resume 1", 1, 3*time.Second)
	if s.core.Count() != 1 || ikev2.Clients(s.Server) != 1 {
		t.Errorf("%d sessions, %d clients", s.core.Count(), ikev2.Clients(s.Server))
	}
	if err := pinging.Wait(); err != nil || !strings.Contains(out.String(), " 0% packet loss") {
		t.Errorf("ping through the tunnel: %v: %s", err, out.String())
	}
	if after := testkit.Processes(commandLine); fmt.Sprint(after) != fmt.Sprint(before) {
		t.Errorf("processes %v became %v", before, after)
	}
	if !strings.Contains(s.log.String(), "adopted part=ikev2 index=3") {
		t.Errorf("log %q", s.log)
	}
	c.leave(t)
	s.core.told.Await(t, "end", 1, time.Second)
	if n := len(s.core.ledger.Freeze().Records); n != 1 {
		t.Errorf("%d merged records, want 1", n)
	}
}

// TestProcessKilled kills charon under a customer, who comes back.
func TestProcessKilled(t *testing.T) {
	s := start(t, config(runtimeDir(t)), newLedger(t))
	c := newCustomer(t)
	c.up(t)
	s.core.told.Await(t, "established", 1, time.Second)
	killed := time.Now()
	for _, pid := range testkit.Processes(commandLine) {
		must(t, syscall.Kill(pid, syscall.SIGKILL))
	}
	testkit.Eventually(t, time.Second, func() bool { return s.core.Count() == 0 }, func() string { return "the session did not end with charon" })
	testkit.Eventually(t, 5*time.Second, func() bool { return s.core.told.Count("resume") == 2 && s.serves() }, s.log.String)
	t.Logf("charon back after %s", time.Since(killed).Round(time.Millisecond))
	other := newCustomer(t)
	other.up(t)
	other.ping(t)
	if took := time.Since(killed); took > 5*time.Second {
		t.Errorf("the next customer got in after %s", took)
	}
	if n := strings.Count(s.log.String(), "restarted part=ikev2"); n != 1 {
		t.Errorf("%d restarts, want 1", n)
	}
}

// TestAdditionalAddresses: customers are told where else the server can be reached (MOBIKE), and that is
// where the internet is, not the inside of tunnels.
func TestAdditionalAddresses(t *testing.T) {
	start(t, config(runtimeDir(t)), newLedger(t))
	c := newCustomer(t)
	c.up(t)
	told := map[netip.Addr]bool{}
	for _, m := range regexp.MustCompile(`got additional MOBIKE peer address: (\S+)`).FindAllStringSubmatch(c.log(), -1) {
		told[netip.MustParseAddr(m[1])] = true
	}
	if !told[netip.MustParseAddr(fmt.Sprintf("fd99:%x::1", c.n))] {
		t.Errorf("the server's IPv6 address is not told, only %v: %s", told, c.log())
	}
	for a := range told {
		if !netip.MustParsePrefix("10.99.0.0/16").Contains(a) && !netip.MustParsePrefix("fd99::/16").Contains(a) {
			t.Errorf("customers are told %s", a)
		}
	}
}

// TestSilence shows that nothing is said about customers who connect, fail, rekey, roam, leave, are cut off
// and killed, and about junk: not to standard output or error, not to the system log, not to files.
func TestSilence(t *testing.T) {
	s := start(t, config(runtimeDir(t)), newLedger(t))
	c := newCustomer(t)
	before := logged.Load()
	if err := c.connect(t, "eve", "wrong", modern); err == nil {
		t.Error("a wrong password got in")
	}
	c.up(t)
	s.core.told.Await(t, "established", 1, time.Second)
	was := c.sa(t)
	c.call(t, "rekey", new(vici.Message).Set("ike", "lethe"))
	testkit.Eventually(t, 5*time.Second, func() bool { now := c.sa(t); return now != "" && now != was }, c.log) // or the child is nobody's for a moment
	c.call(t, "rekey", new(vici.Message).Set("child", "net"))
	c.roam(t, 2, 9)
	testkit.Eventually(t, 8*time.Second, func() bool {
		return c.run("ping -q -c 1 -W 1 "+session.SubnetsOf(daemonID).V4.Addr().Next().String()) == nil
	}, c.log)
	ref, _, _ := s.core.latest()
	s.Kill(ref)
	s.core.told.Await(t, "end", 1, 2*time.Second)
	for i, to := range []int{ikev2.Port, ikev2.PortNAT} { // junk
		conn, err := net.Dial("udp", fmt.Sprintf("127.0.0.1:%d", to))
		must(t, err)
		for n := range 50 {
			junk := bytes.Repeat([]byte{byte(n * 5), 0x20, 0x22, byte(i)}, n*3+1)
			_, _ = conn.Write(junk)
		}
		must(t, conn.Close())
	}
	cut, dead := newCustomer(t), newCustomer(t)
	cut.up(t)
	dead.up(t)
	s.core.told.Await(t, "established", 3, time.Second)
	dead.kill()
	s.core.told.Await(t, "end", 2, 10*time.Second)
	s.core.setRefuse(fault.New(fault.Unavailable, "no database"))
	if err := c.connect(t, "eve", password, modern); err == nil {
		t.Error("somebody got in without a database")
	}
	pids := testkit.Processes(commandLine)
	if n := ikev2.Clients(s.Server); n != 1 {
		t.Errorf("%d clients, want 1", n)
	}
	for _, fd := range []string{"1", "2"} {
		link, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%s", pids[0], fd))
		if err != nil || !strings.HasPrefix(link, "pipe:") {
			t.Errorf("output goes to %q, %v", link, err)
		}
	}
	s.stop()
	if n := logged.Load() - before; n != 0 {
		t.Errorf("%d bytes in the system log", n)
	}
	// The ears work.
	must(t, testkit.Command("logger -t lethe-test heard"))
	testkit.Eventually(t, time.Second, func() bool { return logged.Load() > before }, func() string { return "the system log is not heard" })
}
