package openvpn_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"lethe/event"
	"lethe/fault"
	"lethe/internal/testkit"
	"lethe/openvpn"
	"lethe/protocol"
	"lethe/session"
)

func gates(d uint8) (v4, v6 netip.Addr) {
	nets := session.SubnetsOf(d)
	return nets.V4.Addr().Next(), nets.V6.Addr().Next()
}

// TestLife follows clients of both transports from connect to exit and looks for a marked user
// name wherever it must not be.
func TestLife(t *testing.T) {
	s := start(t, config(runtimeDir(t)), newCore())
	for i, p := range []protocol.ID{protocol.OpenVPNUDP, protocol.OpenVPNTCP} {
		const user = "marked-canary-name"
		c := connect(t, p, user, password)
		c.await(t, up, 20*time.Second)
		s.core.told.Await(t, "established", i+1, time.Second)
		ref, grant := s.core.only(t)
		if ref.Daemon != uint8(i) || openvpn.Clients(s.Server) != 1 {
			t.Errorf("%s: daemon %d, %d clients; want %d, 1", p, ref.Daemon, openvpn.Clients(s.Server), i)
		}
		login := s.core.logins[len(s.core.logins)-1]
		if got := login.Peer.Reveal(); got != netip.MustParseAddr("10.99.0.2") || login.Protocol != p || login.Username.Reveal() != user {
			t.Errorf("%s: login from %s by %s", p, got, login.Protocol)
		}
		v4, v6 := gates(ref.Daemon)
		for _, a := range []netip.Addr{v4, v6} {
			if err := c.ping(t, a); err != nil {
				t.Error(err)
			}
		}
		if !c.says("ifconfig " + grant.V4.String() + " 255.255.0.0") {
			t.Errorf("%s: the granted address was not pushed:\n%s", p, c.text())
		}
		hunt(t, s, user)
		c.signal(syscall.SIGTERM)
		s.core.told.Await(t, "end", i+1, 8*time.Second) // OpenVPN forgets a client 5 s after its farewell
	}
	if n := openvpn.Clients(s.Server); n != 0 {
		t.Errorf("%d clients have left", n)
	}
	s.stop()
	if got := s.log.String(); got != "started part=openvpn\nstopped part=openvpn\n" {
		t.Errorf("log %q", got)
	}
	if list, _ := filepath.Glob("/sys/class/net/lethe*"); len(list) > 0 {
		t.Errorf("left behind: %q", list)
	}
}

// hunt searches argv, environment and files of the server's processes for a text.
func hunt(t *testing.T, s *server, mark string) {
	t.Helper()
	pids := testkit.Processes(commandLine)
	if len(pids) != 2 {
		t.Errorf("%d processes, want 2", len(pids))
	}
	for _, pid := range pids {
		for _, f := range []string{"cmdline", "environ"} {
			b, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, f))
			if err != nil || bytes.Contains(b, []byte(mark)) {
				t.Errorf("%s of %d: %q, %v", f, pid, b, err)
			}
		}
		var st syscall.Stat_t
		if err := syscall.Stat(fmt.Sprintf("/proc/%d", pid), &st); err != nil || st.Uid != uid {
			t.Errorf("process %d runs as %d, %v", pid, st.Uid, err)
		}
		if b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid)); !bytes.Contains(b, []byte("CapEff:\t0000000000000000")) {
			t.Errorf("process %d has capabilities", pid)
		}
	}
	err := filepath.WalkDir(s.cfg.RuntimeDir, func(path string, d os.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			t.Errorf("a file in the runtime directory: %s", path)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

func TestRefused(t *testing.T) {
	s := start(t, config(runtimeDir(t)), newCore())
	for _, tt := range []struct {
		name, pass string
		refuse     error
		want       string
		exits      bool
	}{
		{"wrong password", "wrong", nil, "AUTH: Received control message: AUTH_FAILED\n", true},
		{"expired", password, fault.New(fault.Expired, ""), "AUTH_FAILED,licence-expired", true},
		{"denied", password, fault.New(fault.Denied, ""), "AUTH_FAILED,not-allowed", true},
		{"unavailable", password, fault.New(fault.Unavailable, ""), "AUTH_FAILED,TEMP[backoff 5,advance addr]:temporarily unavailable", false},
		{"full", password, fault.New(fault.Full, ""), "AUTH_FAILED,TEMP", false},
	} {
		for _, p := range []protocol.ID{protocol.OpenVPNUDP, protocol.OpenVPNTCP} {
			t.Run(tt.name+" "+p.String(), func(t *testing.T) {
				s.core.setRefuse(tt.refuse)
				defer s.core.setRefuse(nil)
				c := connect(t, p, "user", tt.pass)
				want := strings.TrimSuffix(tt.want, "\n")
				took := c.await(t, want, 5*time.Second)
				if took > time.Second {
					t.Errorf("took %s, want less than a second", took)
				}
				if strings.HasSuffix(tt.want, "\n") && !strings.Contains(c.text()+"\n", tt.want) {
					t.Errorf("want no reason:\n%s", c.text())
				}
				if tt.exits {
					<-c.done
				}
			})
		}
	}
	if n := s.core.told.Count("admit"); n != 0 {
		t.Errorf("%d admitted", n)
	}
}

// TestNames connects with user names and passwords of many bytes. OpenVPN turns control characters
// into underscores on both ends; everything else must arrive.
func TestNames(t *testing.T) {
	s := start(t, config(runtimeDir(t)), newCore())
	var high []byte
	for b := 0x80; b < 0x100; b++ {
		high = append(high, byte(b))
	}
	for i, user := range []string{
		` !"#$%&'()*+,-./0123456789:;<=>?@`, "[\\]^_`{|}~=END=", string(high[:60]), string(high[60:120]), string(high[120:]),
		"ENV,END", "UNDEF", "a=b=c", "%s%n%d", strings.Repeat("x", 64),
	} {
		c := connect(t, protocol.OpenVPNUDP, user, password)
		c.await(t, up, 20*time.Second)
		if got := s.core.logins[i].Username.Reveal(); got != user {
			t.Errorf("got %q, want %q", got, user)
		}
		c.signal(syscall.SIGTERM)
		<-c.done
	}
	odd := "p=a\"ss\\ 'END" + string(high[:90])
	c := connect(t, protocol.OpenVPNUDP, strings.Repeat("long", 20), odd)
	<-c.done
	connect(t, protocol.OpenVPNUDP, "user", odd).await(t, "AUTH_FAILED", 20*time.Second)
	if got := s.core.logins[len(s.core.logins)-1].Password.Reveal(); got != odd {
		t.Errorf("password arrived as %q, want %q", got, odd)
	}
}

func TestRenew(t *testing.T) {
	s := start(t, config(runtimeDir(t)), newCore())
	c := connect(t, protocol.OpenVPNUDP, "user", password, "reneg-sec 2")
	c.await(t, up, 20*time.Second)
	s.core.told.Await(t, "renew", 1, 6*time.Second)
	s.core.setRefuse(fault.New(fault.Unavailable, "no database")) // live tunnels stay
	n := s.core.told.Count("renew")
	s.core.told.Await(t, "renew", n+2, 10*time.Second)
	v4, _ := gates(0)
	if err := c.ping(t, v4); err != nil || s.core.told.Count("end") != 0 {
		t.Errorf("a live tunnel ended while the database was away: %v", err)
	}
	s.core.setRefuse(fault.New(fault.Expired, "licence ended"))
	c.await(t, "AUTH_FAILED,licence-expired", 6*time.Second)
	s.core.told.Await(t, "end", 1, time.Second)
}

func TestEnds(t *testing.T) {
	s := start(t, config(runtimeDir(t)), newCore())
	for i, tt := range []struct {
		name  string
		p     protocol.ID
		end   func(*customer, session.Ref)
		limit time.Duration
		says  string
	}{
		{"client exits", protocol.OpenVPNUDP, func(c *customer, _ session.Ref) { c.signal(syscall.SIGTERM) }, 8 * time.Second, ""},
		{"client killed", protocol.OpenVPNUDP, func(c *customer, _ session.Ref) { c.signal(syscall.SIGKILL) }, 9 * time.Second, ""},
		{"client killed TCP", protocol.OpenVPNTCP, func(c *customer, _ session.Ref) { c.signal(syscall.SIGKILL) }, 2 * time.Second, ""},
		{"operator", protocol.OpenVPNUDP, func(_ *customer, ref session.Ref) { s.Kill(ref) }, 500 * time.Millisecond, "Halt command was pushed"},
		{"operator TCP", protocol.OpenVPNTCP, func(_ *customer, ref session.Ref) { s.Kill(ref) }, 500 * time.Millisecond, "Halt command was pushed"},
		{"dead peer", protocol.OpenVPNUDP, func(*customer, session.Ref) { must(t, testkit.Command("ip link set ov0 down")) }, 9 * time.Second, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := connect(t, tt.p, "user", password)
			c.await(t, up, 20*time.Second)
			s.core.told.Await(t, "established", i+1, time.Second)
			ref, _ := s.core.only(t)
			tt.end(c, ref)
			s.core.told.Await(t, "end", i+1, tt.limit)
			if tt.says != "" {
				c.await(t, tt.says, time.Second)
				<-c.done // it does not come back
			}
			c.signal(syscall.SIGKILL)
		})
	}
	must(t, testkit.Command("ip link set ov0 up"))
	must(t, testkit.Command("ip -6 addr replace "+outer6+"/64 dev ov0 nodad")) // lost with the link
	s.Kill(session.Ref{Daemon: 0, Client: 12345})
	s.Kill(session.Ref{Daemon: 77})
}

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

func TestStop(t *testing.T) {
	s := start(t, config(runtimeDir(t)), newCore())
	udp := connect(t, protocol.OpenVPNUDP, "user", password)
	tcp := connect(t, protocol.OpenVPNTCP, "user", password)
	udp.await(t, up, 20*time.Second)
	tcp.await(t, up, 20*time.Second)
	s.core.told.Await(t, "established", 2, time.Second)
	s.stop()
	udp.await(t, "reset command was pushed by server ('[N]')", time.Second)
	tcp.await(t, "Connection reset", time.Second)
	if n := s.core.told.Count("end"); n != 2 {
		t.Errorf("%d sessions ended, want 2", n)
	}
}

// TestKeyExchange connects by one group at a time: the classical ones, and the hybrid one with ML-KEM-768
// where this machine's OpenSSL has it. Others find no partner.
func TestKeyExchange(t *testing.T) {
	start(t, config(runtimeDir(t)), newCore())
	out, _ := exec.Command("openvpn", "--version").Output() // it says so with exit status 1
	hybrid, _, err := openvpn.Features(string(out), false)
	must(t, err)
	groups := map[string]bool{"X25519": true, "secp384r1": true, "prime256v1": false}
	if hybrid {
		groups["X25519MLKEM768"] = true
	}
	for group, common := range groups {
		c := connect(t, protocol.OpenVPNUDP, "user", password, "hand-window 2", "tls-groups "+group)
		if common {
			c.await(t, up, 20*time.Second)
		} else {
			c.await(t, "TLS handshake failed", 10*time.Second)
		}
	}
}

// TestIPv6 connects over IPv6 with the full configuration of an export: all traffic of the
// customer goes into the tunnel.
func TestIPv6(t *testing.T) {
	s := start(t, config(runtimeDir(t)), newCore())
	srv := directory()
	srv.Addresses = []netip.Addr{netip.MustParseAddr(outer6)}
	file := filepath.Join(t.TempDir(), "c")
	must(t, os.WriteFile(file, []byte("user\n"+password+"\n"), 0o600))
	text, err := openvpn.ClientConfig(srv, srv.Endpoints[0], "auth-user-pass "+file, "verb 3")
	must(t, err)
	c := startClient(t, "tun0", text)
	c.await(t, up, 20*time.Second)
	if got := s.core.logins[0].Peer.Reveal(); got != netip.MustParseAddr("fd99::2") {
		t.Errorf("peer %s", got)
	}
	v4, v6 := gates(0)
	for _, want := range []string{"redirect-gateway def1 ipv6", "dhcp-option DNS " + v4.String(), "dhcp-option DNS " + v6.String(), "ping 1,ping-restart 6", "TLSv1.3"} {
		if !c.says(want) {
			t.Errorf("client does not say %q", want)
		}
	}
	out, err := exec.Command("nsenter", "-n", "-t", namespace(t), "ip", "route", "get", "192.0.2.1").Output()
	if err != nil || !strings.Contains(string(out), "dev tun0") {
		t.Errorf("route to the internet: %s, %v", out, err)
	}
	out, err = exec.Command("nsenter", "-n", "-t", namespace(t), "ip", "-6", "route", "get", "2001:db8::1").Output()
	if err != nil || !strings.Contains(string(out), "dev tun0") {
		t.Errorf("IPv6 route to the internet: %s, %v", out, err)
	}
}

// TestAgentRestart ends the agent in three ways under live tunnels and lets the next one go on.
func TestAgentRestart(t *testing.T) {
	cfg := config(runtimeDir(t))
	first := cfg
	first.Detach = true
	s := start(t, first, newCore())
	c := connect(t, protocol.OpenVPNUDP, "user", password)
	c.await(t, up, 20*time.Second)
	s.core.told.Await(t, "established", 1, time.Second)
	ref, grant := s.core.only(t)
	before := testkit.Processes(commandLine)

	// The connection breaks, the agent stays.
	openvpn.Hangup(s.Server)
	s.Kill(session.Ref{Daemon: ref.Daemon, Client: 999}) // waits for the new connection
	s.core.told.Await(t, "resume 0 1", 1, 2*time.Second)

	// The agent ends in order; the next one is killed; the third takes over and stops in order.
	pinging := exec.Command("nsenter", "-n", "-t", namespace(t), "ping", "-q", "-i", "0.05", "-c", "60", "-I", c.dev, first4())
	var out bytes.Buffer
	pinging.Stdout = &out
	must(t, pinging.Start())
	s.stop()
	if n := s.core.told.Count("end"); n != 0 {
		t.Fatalf("a detached agent ended %d sessions", n)
	}
	agent := startAgent(t, cfg.RuntimeDir)
	agent.await(t, "resume 0 1")
	must(t, agent.cmd.Process.Kill())
	_ = agent.cmd.Wait()
	if late := connect(t, protocol.OpenVPNTCP, "late", password); true {
		late.await(t, "Peer Connection Initiated", 5*time.Second) // nobody answers it
		s = start(t, cfg, newCore())
		late.await(t, up, 8*time.Second) // told to try again, it gets in
	}
	s.core.told.Await(t, "resume 0 1", 1, 2*time.Second)
	s.core.mu.Lock()
	if got := s.core.live[ref]; got.V4 != grant.V4 {
		t.Errorf("resumed with %v, want %v", got, grant)
	}
	s.core.mu.Unlock()
	if err := pinging.Wait(); err != nil || !strings.Contains(out.String(), " 0% packet loss") {
		t.Errorf("ping through the tunnel: %v: %s", err, out.String())
	}
	if after := testkit.Processes(commandLine); fmt.Sprint(after) != fmt.Sprint(before) {
		t.Errorf("processes %v became %v", before, after)
	}
	if !strings.Contains(s.log.String(), "adopted part=openvpn index=0") {
		t.Errorf("log %q", s.log)
	}
	s.Kill(ref)
	s.core.told.Await(t, "end 0", 1, time.Second)
	c.await(t, "Halt command was pushed", time.Second)
}

func first4() string { v4, _ := gates(0); return v4.String() }

// agent is a server in another process, which can be killed.
type agent struct {
	cmd *exec.Cmd
	out *lines
}

type lines struct{ c chan string }

func (l *lines) Write(p []byte) (int, error) {
	for s := range strings.Lines(string(p)) {
		l.c <- strings.TrimSpace(s)
	}
	return len(p), nil
}

func startAgent(t *testing.T, dir string) *agent {
	t.Helper()
	a := &agent{cmd: exec.Command("/proc/self/exe"), out: &lines{c: make(chan string, 1000)}}
	c := credentials()
	in, err := json.Marshal([]string{dir, c.ca, c.server.Certificate, c.server.Key, c.tlsCrypt})
	must(t, err)
	a.cmd.Env = append(os.Environ(), nested+"=agent")
	a.cmd.Stdin, a.cmd.Stdout, a.cmd.Stderr = bytes.NewReader(in), a.out, os.Stderr
	a.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	must(t, a.cmd.Start())
	t.Cleanup(func() { _ = a.cmd.Process.Kill() })
	return a
}

func (a *agent) await(t *testing.T, what string) {
	t.Helper()
	limit := time.After(5 * time.Second)
	var heard []string
	for {
		select {
		case l := <-a.out.c:
			if heard = append(heard, l); l == what {
				return
			}
		case <-limit:
			t.Fatalf("agent does not say %q but %q", what, heard)
		}
	}
}

func TestProcessKilled(t *testing.T) {
	s := start(t, config(runtimeDir(t)), newCore())
	c := connect(t, protocol.OpenVPNTCP, "user", password)
	c.await(t, up, 20*time.Second)
	s.core.told.Await(t, "established", 1, time.Second)
	killed := time.Now()
	for _, pid := range testkit.Processes(commandLine) {
		must(t, syscall.Kill(pid, syscall.SIGKILL))
	}
	s.core.told.Await(t, "end", 1, time.Second)
	s.core.told.Await(t, "established", 2, 10*time.Second) // the client comes back by itself
	t.Logf("client back after %s", time.Since(killed))
	if n := strings.Count(s.log.String(), "restarted part=openvpn"); n != 2 {
		t.Errorf("%d restarts, want 2", n)
	}
}

// TestJunk sends rubbish to the ports; customers are served all the same and nothing is printed.
func TestJunk(t *testing.T) {
	start(t, config(runtimeDir(t)), newCore())
	for _, network := range []string{"udp", "tcp"} {
		port := map[string]int{"udp": udpPort, "tcp": tcpPort}[network]
		for i := range 50 {
			conn, err := net.Dial(network, net.JoinHostPort(outer4, fmt.Sprint(port)))
			must(t, err)
			junk := bytes.Repeat([]byte{byte(i * 5), 0x38, 0xff, byte(i)}, i*8+1)
			_, _ = conn.Write(junk) // the server may have closed it
			must(t, conn.Close())
		}
	}
	for _, p := range []protocol.ID{protocol.OpenVPNUDP, protocol.OpenVPNTCP} {
		c := connect(t, p, "user", password)
		c.await(t, up, 20*time.Second)
	}
}

func agentMain() int {
	var in []string
	if err := json.NewDecoder(os.Stdin).Decode(&in); err != nil {
		return 1
	}
	return runAgent(in, event.New(os.Stdout))
}
