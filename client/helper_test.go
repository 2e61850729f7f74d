package client_test

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"lethe/client"
	"lethe/daemon"
	"lethe/location"
)

// TestConnect walks the whole way once: before, connected, after.
func TestConnect(t *testing.T) {
	for name, open := range map[string]bool{"device for root only": false, "device for everybody": true} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			r.openTun = open
			before := r.machine()
			if seen, err := r.visit(webV4); err != nil || seen != customerV4 {
				t.Fatalf("before: seen as %q, %v", seen, err)
			}
			r.startHelper()
			start := time.Now()
			s := r.connect(client.Auto, vpnPassword, client.Connected)
			t.Logf("connected after %s", time.Since(start))
			if s.Transport != "udp" || s.Location != "nl-ams" || s.Server != "nl-ams-1" || !s.Lock || !s.IPv6 || s.Problem != nil {
				t.Errorf("status %+v", s)
			}
			if seen, err := r.visit(webV4); err != nil || !strings.HasPrefix(seen, "10.64.0.") {
				t.Errorf("IPv4: seen as %q, %v", seen, err)
			}
			if seen, err := r.visit(webV6); err != nil || !strings.HasPrefix(seen, "fd6c:6574:6865:64::") {
				t.Errorf("IPv6: seen as %q, %v", seen, err)
			}
			b, _ := os.ReadFile(r.resolv)
			if got := string(b); !strings.Contains(got, "nameserver 10.64.0.1\n") || strings.Contains(got, webV4) {
				t.Errorf("resolv.conf holds %q", got)
			}
			if err := r.ask("10.64.0.1"); err != nil {
				t.Errorf("the tunnel's resolver: %v", err)
			}
			if s := r.call(client.Request{Op: client.OpStatus}); s.Received == 0 || s.Sent == 0 {
				t.Errorf("no traffic counted: %+v", s)
			}
			r.checkProcess(open)
			start = time.Now()
			if s := r.call(client.Request{Op: client.OpDisconnect}); s.State != client.Disconnected || s.Lock {
				t.Errorf("after disconnect: %+v", s)
			}
			t.Logf("disconnected after %s", time.Since(start))
			if after := r.machine(); after != before {
				t.Errorf("something is left.\nbefore:\n%s\nafter:\n%s", before, after)
			}
			if seen, err := r.visit(webV4); err != nil || seen != customerV4 {
				t.Errorf("after: seen as %q, %v", seen, err)
			}
		})
	}
}

// children returns the ids of the OpenVPN and charon processes on the customer machine.
func (r *rig) children() (pids []string) {
	all, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	fi, err := os.Stat("/var/run/netns/" + r.client)
	if err != nil {
		r.t.Fatal(err)
	}
	want := fmt.Sprintf("net:[%d]", fi.Sys().(*syscall.Stat_t).Ino)
	for _, path := range all {
		line, _ := os.ReadFile(path)
		pid := filepath.Base(filepath.Dir(path))
		ns, _ := os.Readlink("/proc/" + pid + "/ns/net")
		if ns == want && (strings.Contains(string(line), "openvpn\x00--config\x00stdin") || strings.HasSuffix(string(line), "charon-systemd\x00")) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// checkProcess looks for secrets around the tunnel's process and for its rights.
func (r *rig) checkProcess(unprivileged bool) {
	r.t.Helper()
	pids := r.children()
	if len(pids) != 1 {
		r.t.Fatalf("%d processes, want 1", len(pids))
	}
	for _, f := range []string{"cmdline", "environ"} {
		b, err := os.ReadFile("/proc/" + pids[0] + "/" + f)
		if err != nil || strings.Contains(string(b), "c4nary") || f == "environ" && len(b) > 0 && string(b) != charonEnv {
			r.t.Errorf("%s holds %q, %v", f, b, err)
		}
	}
	b, _ := os.ReadFile("/proc/" + pids[0] + "/status")
	wantUID, wantCaps := "Uid:\t0\t", "CapEff:\t"
	if unprivileged {
		wantUID, wantCaps = "Uid:\t65534\t", "CapEff:\t0000000000001000\n"
	}
	if !strings.Contains(string(b), wantUID) || !strings.Contains(string(b), wantCaps) {
		r.t.Errorf("the process's rights: %s", b)
	}
	err := filepath.WalkDir(r.dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || strings.HasPrefix(d.Name(), "vpn-") || d.Name() == "verify" {
			return err
		}
		b, err := os.ReadFile(path)
		if strings.Contains(string(b), "c4nary") {
			r.t.Errorf("%s holds a credential", path)
		}
		return err
	})
	if err != nil {
		r.t.Error(err)
	}
}

// charonEnv is the environment of charon, as the C library leaves it.
var charonEnv = strings.ReplaceAll(daemon.Wipe, ":", "\x00") + "\x00STRONGSWAN_CONF=/proc/self/fd/3\x00"

// TestRefused: a no is said within a second, once, and says why; the lock stays.
func TestRefused(t *testing.T) {
	r := newRig(t)
	r.startHelper()
	for _, c := range []struct{ password, kind, text string }{
		{"wrong", "unauthenticated", "user name or password refused"},
		{"expired", "expired", "the licence has ended"},
	} {
		start := time.Now()
		s := r.connect(client.Auto, c.password, client.Blocked)
		if d := time.Since(start); d > time.Second {
			t.Errorf("%s: said after %s, want a second", c.text, d)
		}
		if s.Problem == nil || s.Problem.Kind != c.kind || s.Problem.Text != c.text || s.Problem.Hint == "" || !s.Lock {
			t.Errorf("%s: %+v %+v", c.text, s, s.Problem)
		}
		time.Sleep(300 * time.Millisecond)
		if n := len(r.children()); n != 0 {
			t.Errorf("%s: tried again by %d processes", c.text, n)
		}
		if _, err := r.visit(webV4); err == nil {
			t.Errorf("%s: the lock is open", c.text)
		}
	}
	// A server that is full says so, and is tried again.
	r.call(client.Request{Op: client.OpConnect, Target: r.target(client.UDP, "later")})
	r.eventually(5*time.Second, "the problem is told and the next try is made", func() bool {
		s := r.call(client.Request{Op: client.OpStatus})
		return s.State == client.Connecting && s.Problem != nil && s.Problem.Text == "the server takes nobody at the moment" && s.Attempts > 1
	})
	r.connect(client.UDP, vpnPassword, client.Connected)
}

// TestTransports: TCP comes up where UDP does not, IPv6 where there is no IPv4, with reverse path
// filtering at its strictest, and the second server when the first is silent.
func TestTransports(t *testing.T) {
	r := newRig(t)
	r.sh(r.client, "for f in all default c0; do echo 1 > /proc/sys/net/ipv4/conf/$f/rp_filter; done")
	r.startHelper()
	r.connect(client.UDP, vpnPassword, client.Connected)
	r.sh(r.inet, "nft 'table inet t { chain c { type filter hook input priority 0; udp dport 1194 drop; }; }'")
	start := time.Now()
	s := r.connect(client.Auto, vpnPassword, client.Connected)
	if d := time.Since(start); s.Transport != "tcp" || d > 2*time.Second {
		t.Errorf("by %s after %s, want tcp in 2 s", s.Transport, d)
	}
	if seen, err := r.visit(webV4); err != nil || !strings.HasPrefix(seen, "10.65.") {
		t.Errorf("seen as %q, %v", seen, err)
	}
	r.sh(r.inet, "nft delete table inet t")

	silent := r.target(client.TCP, vpnPassword)
	first := silent.Servers[0]
	first.ID, first.Addresses = "nl-ams-2", []netip.Addr{netip.MustParseAddr(webV4)} // nobody listens there
	silent.Servers = []location.Server{first, r.server}
	r.call(client.Request{Op: client.OpConnect, Target: silent})
	if s := r.await(client.Connected); s.Server != "nl-ams-1" {
		t.Errorf("connected to %s", s.Server)
	}

	r.ip("-n " + r.client + " route del default")
	for _, transport := range []client.Transport{client.UDP, client.TCP} {
		if s := r.connect(transport, vpnPassword, client.Connected); s.Transport != transport {
			t.Errorf("without IPv4: %+v", s)
		}
		if seen, err := r.visit(webV4); err != nil || !strings.HasPrefix(seen, "10.6") {
			t.Errorf("without IPv4: seen as %q, %v", seen, err)
		}
	}
	r.ip("-n " + r.client + " -6 route del default")
	r.call(client.Request{Op: client.OpConnect, Target: r.target(client.Auto, vpnPassword)})
	r.eventually(5*time.Second, "it is said that there is no network", func() bool {
		s := r.call(client.Request{Op: client.OpStatus})
		return s.Problem != nil && strings.Contains(s.Problem.Text, "no route")
	})
	r.plug()
	r.await(client.Connected)
}

// TestServerGone: a silent server is noticed by its missing pings, and tried until it is back.
func TestServerGone(t *testing.T) {
	r := newRig(t)
	r.startHelper()
	r.connect(client.UDP, vpnPassword, client.Connected)
	end(r.vpn["udp"])
	start := time.Now()
	s := r.await(client.Reconnecting)
	t.Logf("noticed after %s: %+v", time.Since(start), s.Problem)
	if !s.Lock || s.Problem == nil || s.IPv6 {
		t.Errorf("%+v", s)
	}
	if _, err := r.visit(webV4); err == nil {
		t.Error("the web site is there without a tunnel")
	}
	r.startVPN("udp", "no-v6")
	if s := r.await(client.Connected); s.IPv6 {
		t.Error("IPv6 is said to work with a server that has none")
	}
	if seen, err := r.visit(webV6); err == nil {
		t.Errorf("IPv6 beside the tunnel: seen as %q", seen)
	}
	if seen, err := r.visit(webV4); err != nil || !strings.HasPrefix(seen, "10.64.") {
		t.Errorf("seen as %q, %v", seen, err)
	}
}

// TestMend: what others break is repaired, and what they wrote meanwhile is what is restored.
func TestMend(t *testing.T) {
	r := newRig(t)
	r.startHelper("--mend", "50ms")
	r.connect(client.UDP, vpnPassword, client.Connected)
	works := func() bool {
		seen, err := r.visit(webV4)
		return err == nil && strings.HasPrefix(seen, "10.64.")
	}
	r.sh(r.client, "nft flush ruleset; ip rule del priority 4900; ip -6 rule del priority 4900; ip link set lethe-udp down; echo 0 > /proc/sys/net/ipv4/conf/all/arp_ignore")
	r.eventually(3*time.Second, "lock and rules are back", func() bool {
		return strings.Contains(r.machine(), "chain outgoing") && strings.Count(r.ip("-n "+r.client+" rule"), "4900:") == 1 && works()
	})
	// In one write, over all that is there: between two, the helper would take half of it for theirs.
	theirs := []byte("nameserver 192.0.2.7\n#" + strings.Repeat("-", 1000) + "\n")
	f, err := os.OpenFile(r.resolv, os.O_WRONLY, 0)
	if err == nil {
		_, err = f.Write(theirs)
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	r.eventually(3*time.Second, "the tunnel's resolvers are back", func() bool {
		b, _ := os.ReadFile(r.resolv)
		return strings.Contains(string(b), "10.64.0.1")
	})
	r.call(client.Request{Op: client.OpDisconnect})
	if b, _ := os.ReadFile(r.resolv); string(b) != string(theirs) {
		t.Errorf("resolv.conf is %q, want %q", b, theirs)
	}
	// Blocked by a former helper: a flushed lock comes back too.
	r.connect(client.UDP, vpnPassword, client.Connected)
	r.killHelper()
	r.startHelper("--mend", "50ms")
	r.sh(r.client, "nft flush ruleset")
	r.eventually(3*time.Second, "the lock is back", func() bool { return strings.Contains(r.machine(), "chain outgoing") })
	r.call(client.Request{Op: client.OpDisconnect})
}

// TestNeighbours: the router finds the machine again that it has forgotten, with the tunnel up and down, however
// strictly the machine asks for the way back. (Debian 13 does so by default.)
func TestNeighbours(t *testing.T) {
	r := newRig(t)
	r.startHelper("--mend", "50ms")
	target := func(password string) *client.Target {
		over4 := r.target(client.UDP, password)
		over4.Servers[0].Addresses = slices.DeleteFunc(slices.Clone(over4.Servers[0].Addresses), netip.Addr.Is6)
		return over4
	}
	forget := func() { r.sh(r.inet, "ip -4 neigh flush all") }
	for _, strictness := range []string{"0", "1", "2"} {
		r.sh(r.client, "for f in all default c0; do echo "+strictness+" > /proc/sys/net/ipv4/conf/$f/rp_filter; done")
		r.call(client.Request{Op: client.OpConnect, Target: target(vpnPassword)})
		r.await(client.Connected)
		forget()
		if seen, err := r.visit(webV4); err != nil || !strings.HasPrefix(seen, "10.64.") {
			t.Errorf("rp_filter %s, connected: seen as %q, %v", strictness, seen, err)
		}
		r.call(client.Request{Op: client.OpConnect, Target: target("wrong")})
		r.await(client.Blocked)
		forget()
		start := time.Now()
		r.call(client.Request{Op: client.OpConnect, Target: target("wrong")})
		r.await(client.Blocked)
		if d := time.Since(start); d > 5*time.Second {
			t.Errorf("rp_filter %s, blocked: the server answers after %s", strictness, d)
		}
	}
	// Its part of the lock is looked after as well.
	r.sh(r.client, "nft delete table arp "+client.LockTable)
	r.eventually(3*time.Second, "the machine answers again", func() bool {
		return strings.Contains(r.sh(r.client, "nft list tables"), "table arp "+client.LockTable)
	})
}

// TestPowerCut: after a restart of the machine there is no lock, and resolv.conf is put back.
func TestPowerCut(t *testing.T) {
	r := newRig(t)
	before := r.machine()
	r.startHelper()
	r.connect(client.UDP, vpnPassword, client.Connected)
	r.killHelper()
	r.eventually(3*time.Second, "OpenVPN dies", func() bool { return len(r.children()) == 0 })
	r.sh(r.client, "nft flush ruleset; ip rule del priority 4900; ip -6 rule del priority 4900; ip route flush table 27749; ip -6 route flush table 27749")
	r.startHelper()
	if s := r.call(client.Request{Op: client.OpStatus}); s.State != client.Disconnected {
		t.Errorf("%+v", s)
	}
	if after := r.machine(); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
}

// TestFaults breaks the helper's tools and disk.
func TestFaults(t *testing.T) {
	r := newRig(t)
	fake := func(name, script string) string {
		path := filepath.Join(r.dir, name)
		r.write(path, []byte("#!/bin/sh\n"+script+"\n"), 0o755)
		return path
	}
	connect := func() error {
		_, err := client.Call(t.Context(), r.socket(), client.Request{Op: client.OpConnect, Target: r.target(client.UDP, vpnPassword)})
		return err
	}
	before := r.machine()
	flag := filepath.Join(r.dir, "flag")
	nft := fake("nft", "[ -e "+flag+" ] && { cat > /dev/null; exit 1; }\nexec /usr/sbin/nft \"$@\"")

	t.Run("nft refuses", func(t *testing.T) {
		r.startHelper("--nft", nft)
		r.write(flag, nil, 0o600)
		if err := connect(); err == nil || !strings.Contains(err.Error(), "nft did not take the rules") {
			t.Errorf("connect: %v", err)
		}
		s := r.call(client.Request{Op: client.OpStatus})
		if s.State != client.Disconnected || s.Problem == nil {
			t.Errorf("%+v", s)
		}
		os.Remove(flag)
		r.connect(client.UDP, vpnPassword, client.Connected)
		r.write(flag, nil, 0o600)
		if _, err := client.Call(t.Context(), r.socket(), client.Request{Op: client.OpDisconnect}); err == nil {
			t.Error("disconnect: no error")
		}
		if s := r.call(client.Request{Op: client.OpStatus}); s.State != client.Blocked {
			t.Errorf("%+v", s)
		}
		os.Remove(flag)
		r.call(client.Request{Op: client.OpDisconnect})
		if after := r.machine(); after != before {
			t.Errorf("left: %s", after)
		}
		_ = r.helper.Process.Signal(syscall.SIGTERM)
		_ = r.helper.Wait()
		r.write(flag, nil, 0o600)
		out, err := r.program("helper", "--nft", nft).CombinedOutput()
		if err == nil || !strings.Contains(string(out), "error: network lock: nft does not list its tables") {
			t.Errorf("start: %v, %s", err, out)
		}
		os.Remove(flag)
	})
	t.Run("openvpn is broken", func(t *testing.T) {
		for script, want := range map[string]string{
			"exit 1": "openvpn ended before it said anything",
			"":       "openvpn does not start",
		} {
			path := fake("openvpn", script)
			if script == "" {
				r.write(path, nil, 0o755)
			}
			r.startHelper("--openvpn", path)
			if err := connect(); err != nil {
				t.Fatal(err)
			}
			r.eventually(3*time.Second, want, func() bool {
				s := r.call(client.Request{Op: client.OpStatus})
				return s.State == client.Connecting && s.Problem != nil && strings.Contains(s.Problem.Text, want)
			})
			r.call(client.Request{Op: client.OpDisconnect})
			_ = r.helper.Process.Signal(syscall.SIGTERM)
			_ = r.helper.Wait()
		}
	})
	t.Run("no room for the record", func(t *testing.T) {
		r.startHelper("--state-dir", "/proc/self")
		if err := connect(); err == nil || !strings.Contains(err.Error(), "the record of what to restore cannot be written") {
			t.Errorf("connect: %v", err)
		}
		if seen, err := r.visit(webV4); err != nil || seen != customerV4 {
			t.Errorf("seen as %q, %v", seen, err)
		}
		_ = r.helper.Process.Signal(syscall.SIGTERM)
		_ = r.helper.Wait()
	})
	t.Run("the record is damaged", func(t *testing.T) {
		for _, content := range []string{"{", `{"version":9}`} {
			r.write(filepath.Join(r.dir, "state", "undo.json"), []byte(content), 0o600)
			out, err := r.program("helper").CombinedOutput()
			if err == nil || !strings.Contains(string(out), "error: the record of what to restore cannot be read") {
				t.Errorf("start: %v, %s", err, out)
			}
		}
		os.Remove(filepath.Join(r.dir, "state", "undo.json"))
	})
	t.Run("resolv.conf", func(t *testing.T) {
		r.startHelper("--resolv-conf", r.dir)
		if err := connect(); err != nil {
			t.Fatal(err)
		}
		r.eventually(3*time.Second, "it is said", func() bool {
			s := r.call(client.Request{Op: client.OpStatus})
			return s.State == client.Connecting && s.Problem != nil && strings.Contains(s.Problem.Text, "resolv.conf cannot be read")
		})
		r.call(client.Request{Op: client.OpDisconnect})
		_ = r.helper.Process.Signal(syscall.SIGTERM)
		_ = r.helper.Wait()
		// Absent before: absent after.
		absent := filepath.Join(r.dir, "sub", "resolv.conf")
		if err := os.Mkdir(filepath.Dir(absent), 0o755); err != nil {
			t.Fatal(err)
		}
		r.startHelper("--resolv-conf", absent)
		r.connect(client.UDP, vpnPassword, client.Connected)
		if _, err := os.Stat(absent); err != nil {
			t.Error(err)
		}
		r.call(client.Request{Op: client.OpDisconnect})
		if _, err := os.Stat(absent); err == nil {
			t.Error("resolv.conf is left")
		}
	})
	t.Run("a second helper", func(t *testing.T) {
		out, err := r.program("helper").CombinedOutput()
		if err == nil || !strings.Contains(string(out), "error: helper: another one is running") {
			t.Errorf("%v, %s", err, out)
		}
	})
}
