package firewall_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"lethe/fault"
	"lethe/firewall"
)

// TestPasses shows that what should pass does: customers reach the internet over
// IPv4 and IPv6 from a random port, the resolver, and the VPN ports; the server
// reaches the control plane and, as the resolver's user, DNS servers.
func TestPasses(t *testing.T) {
	l := newLab(t)
	k := l.counters()
	l.full(nil)
	l.admit(k)
	l.echo(l.inet, "203.0.113.9:53", "203.0.113.9:8443", "[2001:db8:9::9]:8443")
	for _, c := range l.clients {
		for _, remote := range []string{"203.0.113.9:7", "[2001:db8:9::9]:7"} {
			for _, network := range []string{"udp", "tcp"} {
				if !l.reach(c.ns, network, "", remote) {
					t.Errorf("%s from a client to %s does not pass", network, remote)
				}
				if p := l.far.last(); p.Port() < firewall.FirstExitPort || p.Port() > firewall.LastExitPort {
					t.Errorf("a client leaves from port %d", p.Port())
				}
			}
		}
		if out, err := exec.Command("ip", "netns", "exec", c.ns, "ping", "-c1", "-W1", "203.0.113.9").CombinedOutput(); err != nil {
			t.Errorf("ping: %v: %s", err, out)
		}
	}
	l.echo(l.server, "10.64.0.1:53", "[fd6c:6574:6865::1]:53")
	for _, remote := range []string{"10.64.0.1:53", "[fd6c:6574:6865::1]:53"} {
		if !l.reach(l.clients[0].ns, "udp", "", remote) || !l.reach(l.clients[0].ns, "tcp", "", remote) {
			t.Errorf("the resolver at %s cannot be reached", remote)
		}
	}
	for _, remote := range []string{"203.0.113.9:8443", "[2001:db8:9::9]:8443"} {
		if !l.reach(l.server, "tcp", "", remote) {
			t.Errorf("the control plane at %s cannot be reached", remote)
		}
	}
	if !l.as(4242, "udp", "203.0.113.9:53") || !l.as(4242, "tcp", "203.0.113.9:53") {
		t.Error("the resolver cannot ask")
	}
}

// TestDistribution shows that customers are spread over the daemons of a port,
// and that one address always comes to the same.
func TestDistribution(t *testing.T) {
	l := newLab(t)
	l.full(nil)
	daemons := map[int]*echo{}
	for _, p := range []int{21194, 21195, 20443, 20444} {
		daemons[p] = l.echo(l.server, fmt.Sprintf("%s:%d", serverV4, p), fmt.Sprintf("[%s]:%d", serverV6, p))
	}
	for i := range 16 {
		l.address(l.inet, "up0", fmt.Sprintf("198.51.100.%d/24", 100+i), fmt.Sprintf("2001:db8:1::%d/64", 100+i))
	}
	for _, c := range []struct{ network, source, to string }{
		{"udp", "198.51.100.%d:0", serverV4 + ":1194"}, {"udp", "[2001:db8:1::%d]:0", "[" + serverV6 + "]:1194"},
		{"tcp", "198.51.100.%d:0", serverV4 + ":443"}, {"tcp", "[2001:db8:1::%d]:0", "[" + serverV6 + "]:443"},
	} {
		used := map[int]int{}
		for i := range 16 {
			first := -1
			for range 3 {
				before := map[int]int32{}
				for p, d := range daemons {
					before[p] = d.count.Load()
				}
				if !l.reach(l.inet, c.network, fmt.Sprintf(c.source, 100+i), c.to) {
					t.Fatalf("%s to %s gets no answer", c.network, c.to)
				}
				for p, d := range daemons {
					if d.count.Load() > before[p] {
						used[p]++
						if first >= 0 && p != first {
							t.Errorf("%s: one address came to two daemons", c.to)
						}
						first = p
					}
				}
			}
		}
		if len(used) != 2 {
			t.Errorf("%s %s: daemons used: %v, want two", c.network, c.to, used)
		}
	}
}

// TestServing tells rules under which customers are connected from all others.
func TestServing(t *testing.T) {
	l := newLab(t)
	serving := func(want bool, when string) {
		t.Helper()
		inNS(t, l.server, func() {
			if got, err := firewall.Serving(t.Context()); err != nil || got != want {
				t.Errorf("%s: %t, %v", when, got, err)
			}
		})
	}
	serving(false, "without rules")
	l.load(firewall.Closed())
	serving(false, "closed")
	waiting, err := l.config.Waiting()
	if err != nil {
		t.Fatal(err)
	}
	l.load(waiting)
	serving(false, "waiting")
	l.full(nil)
	serving(true, "open")
	l.load(firewall.Closed())
	serving(false, "closed again")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := firewall.Serving(ctx); err == nil {
		t.Error("nothing was asked and it answers")
	}
}

// TestClosed shows that nothing passes before the full rules are loaded, and that
// going back does not lose a live session.
func TestClosed(t *testing.T) {
	l := newLab(t)
	l.load(firewall.Closed())
	k := l.counters()
	l.admit(k)
	c := l.clients[0]
	l.echo(l.server, serverV4+":22", "10.64.0.1:53", "127.0.0.1:22")
	probe := func() map[string]bool {
		return map[string]bool{
			"client to internet":       l.reach(c.ns, "udp", "", "203.0.113.9:7"),
			"client to internet, IPv6": l.reach(c.ns, "tcp", "", "[2001:db8:9::9]:7"),
			"client to resolver":       l.reach(c.ns, "udp", "", "10.64.0.1:53"),
			"internet to server":       l.reach(l.inet, "tcp", "", serverV4+":22"),
			"server to internet":       l.reach(l.server, "tcp", "", inetV4+":7"),
			"server to internet, IPv6": l.reach(l.server, "udp", "", "["+inetV6+"]:7"),
		}
	}
	for what, passes := range probe() {
		if passes {
			t.Errorf("%s passes", what)
		}
	}
	if !l.reach(l.server, "tcp", "", "127.0.0.1:22") {
		t.Error("the server does not reach itself")
	}
	inNS(t, l.server, func() {
		if err := firewall.Remove(context.Background()); err != nil {
			t.Fatal(err)
		}
	})
	for what, passes := range probe() {
		if !passes && !strings.HasPrefix(what, "client to internet") { // there is no NAT
			t.Errorf("%s does not pass without rules either: the test shows nothing", what)
		}
	}
}

// TestCounts compares the kernel's counts with what the stand-ins for OpenVPN
// carried, to the byte, over both families, across a swap of the rules.
func TestCounts(t *testing.T) {
	l := newLab(t)
	k := l.counters()
	rules := l.full(nil)
	l.admit(k)
	live, err := k.List()
	if err != nil || len(live) != 3 || !slices.Contains(live, l.clients[2].v4) {
		t.Errorf("%d live addresses, %v, want three", len(live), err)
	}
	for i, c := range l.clients {
		for n := range 20 * (i + 1) {
			size := 1 + (n*97)%1200
			l.burst(c, "203.0.113.9:7", size)
			l.burst(c, "[2001:db8:9::9]:7", size)
		}
		if i == 0 { // a new agent loads the rules again
			l.load(rules)
		}
	}
	for i, c := range l.clients {
		in, out, err := k.Read(c.v4, c.v6)
		if err != nil || in == 0 || in != c.got.Load() || out != c.sent.Load() {
			t.Errorf("client %d: counted %d in, %d out, %v; carried %d, %d", i, in, out, err, c.got.Load(), c.sent.Load())
		}
		in2, out2, err := k.Take(c.v4, c.v6)
		if err != nil || in2 != in || out2 != out {
			t.Errorf("client %d: took %d, %d, %v; read %d, %d", i, in2, out2, err, in, out)
		}
		if l.reach(c.ns, "udp", "", "203.0.113.9:7") {
			t.Errorf("client %d: traffic passes after the end", i)
		}
	}
}

// burst sends one datagram of that size and waits for its echo.
func (l *lab) burst(c *client, remote string, size int) {
	l.t.Helper()
	inNS(l.t, c.ns, func() {
		conn, err := net.Dial("udp", remote)
		if err != nil {
			l.t.Fatal(err)
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(2 * time.Second))
		if _, err := conn.Write(make([]byte, size)); err != nil {
			l.t.Fatal(err)
		}
		if n, err := conn.Read(make([]byte, 2000)); err != nil || n != size {
			l.t.Fatalf("echo of %d bytes: %d, %v", size, n, err)
		}
	})
}

// TestBulk shows that the counts are right within the promised 1 % for TCP in bulk,
// where the kernel carries several segments as one packet.
func TestBulk(t *testing.T) {
	l := newLab(t)
	k := l.counters()
	l.full(nil)
	l.admit(k)
	const size = 20e6
	for _, d := range []string{"lethe0", "lethe1"} {
		l.ip("-n", l.server, "link", "set", d, "txqueuelen", "10000") // nothing is lost after the count
	}
	var ln net.Listener
	inNS(t, l.inet, func() {
		var err error
		if ln, err = net.Listen("tcp", ":80"); err != nil {
			t.Fatal(err)
		}
	})
	var wg sync.WaitGroup
	defer wg.Wait()
	defer ln.Close()
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			_, _ = c.Write(make([]byte, size))
			_ = c.Close()
		}
	})
	for i, timestamps := range []string{"1", "1", "0", "0"} {
		remote := []string{"203.0.113.9:80", "[2001:db8:9::9]:80"}[i%2]
		c := l.clients[0]
		inNS(t, l.inet, func() {
			if err := os.WriteFile("/proc/sys/net/ipv4/tcp_timestamps", []byte(timestamps), 0); err != nil {
				t.Fatal(err)
			}
		})
		c.got.Store(0)
		c.sent.Store(0)
		_, _, _ = k.Take(c.v4, c.v6)
		if err := k.Add(c.v4, c.v6); err != nil {
			t.Fatal(err)
		}
		var conn net.Conn
		inNS(t, c.ns, func() {
			var err error
			if conn, err = net.Dial("tcp", remote); err != nil {
				t.Fatal(err)
			}
		})
		if n, err := io.Copy(io.Discard, conn); err != nil || n != size {
			t.Fatal(n, err)
		}
		_ = conn.Close()
		time.Sleep(50 * time.Millisecond) // the last packets of the connection
		in, out, err := k.Read(c.v4, c.v6)
		off := 100 * (float64(in)/float64(c.got.Load()) - 1)
		t.Logf("%s: counted %d, carried %d, off %.2f %%", remote, in, c.got.Load(), off)
		if err != nil || off < -1 || off > 1 || out != c.sent.Load() {
			t.Errorf("%s: counted %d, %d, %v, carried %d, %d: off %.2f %%", remote, in, out, err, c.got.Load(), c.sent.Load(), off)
		}
	}
}

// TestForget shows that the kernel knows nothing of a client's connections after
// its end, and everything of others'.
func TestForget(t *testing.T) {
	l := newLab(t)
	k := l.counters()
	l.full(nil)
	l.admit(k)
	tracked := func() (n int) {
		inNS(t, l.server, func() {
			b, err := os.ReadFile("/proc/sys/net/netfilter/nf_conntrack_count")
			if err != nil {
				t.Fatal(err)
			}
			n, _ = strconv.Atoi(strings.TrimSpace(string(b)))
		})
		return n
	}
	neighbours := func() (all []string) {
		inNS(t, l.server, func() {
			list, err := netlink.NeighList(0, unix.AF_INET6)
			if err != nil {
				t.Fatal(err)
			}
			for _, n := range list {
				all = append(all, n.IP.String())
			}
		})
		return all
	}
	base := tracked()
	for i, c := range l.clients {
		for range 5 * (i + 1) {
			l.burst(c, "203.0.113.9:7", 10)
			l.burst(c, "[2001:db8:9::9]:7", 10)
		}
	}
	if n := tracked(); n != base+60 {
		t.Fatalf("%d connections tracked, want %d", n, base+60)
	}
	first := l.clients[0].v6.String()
	if !slices.Contains(neighbours(), first) {
		t.Errorf("the kernel has no neighbour %s, so nothing is shown here: %v", first, neighbours())
	}
	if _, _, err := k.Take(l.clients[0].v4, l.clients[0].v6); err != nil {
		t.Error(err)
	}
	if slices.Contains(neighbours(), first) || !slices.Contains(neighbours(), l.clients[2].v6.String()) {
		t.Errorf("neighbours after the end of %s: %v", first, neighbours())
	}
	if n := tracked(); n != base+50 {
		t.Errorf("%d connections tracked after the first client's end, want %d", n, base+50)
	}
	// Addresses that are no twins: what either marks is forgotten.
	if _, _, err := k.Take(l.clients[2].v4, l.clients[0].v6); err != nil {
		t.Error(err)
	}
	if n := tracked(); n != base+20 {
		t.Errorf("%d connections tracked after the third client's end, want %d", n, base+20)
	}
}

// TestMarkOrder: rules as nft 1.0 and nft 1.1 make them of the same text. TestForget has those of the nft here.
func TestMarkOrder(t *testing.T) {
	old, new := []string{"meta", "cmp", "payload", "bitwise", "ct"}, []string{"meta", "cmp", "payload", "bitwise", "byteorder", "ct"}
	for _, c := range []struct{ got, want string }{
		{firewall.MarkOrder("prerouting_nat", []string{"meta", "fib", "redir"}, old, old), "NativeEndian"},
		{firewall.MarkOrder("prerouting_nat", new, new), "BigEndian"},
		{firewall.MarkOrder("prerouting_nat", []string{"meta", "fib", "redir"}), "<nil>"},
		{firewall.MarkOrder("forward", new), "<nil>"},
		{firewall.MarkOrder("prerouting_nat"), "<nil>"},
	} {
		if c.got != c.want {
			t.Errorf("got %s, want %s", c.got, c.want)
		}
	}
}

func TestCountersRefuse(t *testing.T) {
	l := newLab(t)
	k := l.counters()
	c := l.clients[0]
	wrong := []error{k.Add(c.v6, c.v4)}
	_, _, err := k.Read(c.v4, netip.Addr{})
	wrong = append(wrong, err)
	_, _, err = k.Take(c.v4, netip.MustParseAddr("::ffff:10.64.0.5"))
	for _, err := range append(wrong, err) {
		if fault.Of(err) != fault.Invalid {
			t.Errorf("wrong family: %v", err)
		}
	}
	if err := k.Add(c.v4, c.v6); fault.Of(err) != fault.Unavailable {
		t.Errorf("without rules: %v", err)
	}
	if _, err := k.List(); fault.Of(err) != fault.Unavailable {
		t.Errorf("list without rules: %v", err)
	}
	l.full(nil)
	for _, get := range []func(a, b netip.Addr) (uint64, uint64, error){k.Read, k.Take} {
		if in, out, err := get(c.v4, c.v6); in != 0 || out != 0 || fault.Of(err) != fault.NotFound {
			t.Errorf("nobody there: %d, %d, %v", in, out, err)
		}
	}
	if err := k.Add(c.v4, c.v6); err != nil {
		t.Fatal(err)
	}
	other := l.clients[1]
	if err := k.Add(other.v4, c.v6); fault.Of(err) != fault.Conflict {
		t.Errorf("an address twice: %v", err)
	}
	if live, _ := k.List(); len(live) != 1 {
		t.Errorf("a refused Add leaves %d addresses, want 1", len(live))
	}
	l.burst(c, "203.0.113.9:7", 100)
	l.load(fmt.Sprintf("delete element inet lethe down6 { %v }\n", c.v6))
	if in, out, err := k.Read(c.v4, c.v6); err != nil || in != 128 || out != 128 {
		t.Errorf("one element missing: read %d, %d, %v", in, out, err)
	}
	if in, out, err := k.Take(c.v4, c.v6); err != nil || in != 128 || out != 128 {
		t.Errorf("one element missing: took %d, %d, %v", in, out, err)
	}
	if live, err := k.List(); len(live) != 0 || err != nil {
		t.Errorf("%d live addresses at the end, %v", len(live), err)
	}
	_ = k.Close()
	if err := k.Add(c.v4, c.v6); fault.Of(err) != fault.Internal {
		t.Errorf("closed: %v", err)
	}
	if _, _, err := k.Take(c.v4, c.v6); fault.Of(err) != fault.Internal {
		t.Errorf("closed: %v", err)
	}
}

// TestManyElements reads a set that does not fit one datagram.
func TestManyElements(t *testing.T) {
	l := newLab(t)
	k := l.counters()
	l.full(nil)
	v4, v6 := l.clients[0].v4, l.clients[0].v6
	for range 5000 {
		if err := k.Add(v4, v6); err != nil {
			t.Fatal(err)
		}
		v4, v6 = v4.Next(), v6.Next()
	}
	live, err := k.List()
	if err != nil || len(live) != 5000 {
		t.Errorf("%d live addresses, %v", len(live), err)
	}
}

func TestLoadRefuses(t *testing.T) {
	l := newLab(t)
	k := l.counters()
	l.full(nil)
	l.admit(k)
	inNS(t, l.server, func() {
		err := firewall.Load(t.Context(), firewall.Closed()+"add rule inet lethe nowhere drop\n")
		if err == nil || strings.Contains(err.Error(), "nowhere") {
			t.Errorf("broken rules: %v", err)
		}
	})
	if !l.reach(l.clients[0].ns, "udp", "", "203.0.113.9:7") {
		t.Error("refused rules have replaced the good ones in part")
	}
}

// TestSegmentSize shows that a connection's segments fit the tunnel.
func TestSegmentSize(t *testing.T) {
	l := newLab(t)
	l.ip("-n", l.server, "link", "set", "lethe0", "mtu", "1300")
	k := l.counters()
	l.full(nil)
	l.admit(k)
	for _, c := range []struct {
		remote string
		most   int
	}{{"203.0.113.9:7", 1260}, {"[2001:db8:9::9]:7", 1240}} {
		inNS(t, l.clients[0].ns, func() {
			conn, err := net.Dial("tcp", c.remote)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			raw, _ := conn.(*net.TCPConn).SyscallConn()
			_ = raw.Control(func(fd uintptr) {
				if mss, err := unix.GetsockoptInt(int(fd), unix.SOL_TCP, unix.TCP_MAXSEG); err != nil || mss > c.most {
					t.Errorf("%s: segments of %d bytes, %v, want at most %d", c.remote, mss, err, c.most)
				}
			})
		})
	}
}

// TestSilent reads the loaded rules back as the kernel has them and looks for
// statements that tell or remember something.
func TestSilent(t *testing.T) {
	l := newLab(t)
	for name, rules := range map[string]string{"closed": firewall.Closed(), "full": l.full(nil)} {
		l.load(rules)
		out, err := exec.Command("ip", "netns", "exec", l.server, "nft", "-j", "list", "ruleset").Output()
		if err != nil {
			t.Fatal(err)
		}
		if bad := loud(t, out); len(bad) > 0 {
			t.Errorf("%s rules contain %v", name, bad)
		}
	}
	if len(loud(t, []byte(`{"rule":{"expr":[{"queue":{"num":1}}]}}`))) == 0 { // not every kernel can load it
		t.Error("the search does not find a queue")
	}
	for _, statement := range []string{"log", "log group 1", "meta nftrace set 1", "update @up4 { ip saddr }"} {
		text := strings.Replace(firewall.Closed(), `iifname "lo" accept`, statement, 1)
		if strings.HasPrefix(statement, "update") {
			text = strings.Replace(text, "set up4 { type ipv4_addr; counter; }", "set seen { type ipv4_addr; size 9; flags dynamic; }", 1)
			text = strings.Replace(text, "@up4", "@seen", 1)
		}
		l.load(text)
		out, err := exec.Command("ip", "netns", "exec", l.server, "nft", "-j", "list", "ruleset").Output()
		if err != nil {
			t.Fatal(err)
		}
		if len(loud(t, out)) == 0 {
			t.Errorf("the search does not find %q", statement)
		}
	}
}

// loud returns what in an nft ruleset (libnftables-json(5)) speaks.
func loud(t *testing.T, ruleset []byte) (bad []string) {
	var tree any
	if err := json.Unmarshal(ruleset, &tree); err != nil {
		t.Fatal(err)
	}
	sets := []string{"up4", "up6", "down4", "down6", "up4joined", "up6joined", "down4joined", "down6joined"}
	var walk func(any)
	walk = func(v any) {
		switch v := v.(type) {
		case []any:
			for _, x := range v {
				walk(x)
			}
		case map[string]any:
			for key, x := range v {
				object, _ := x.(map[string]any)
				name, _ := object["name"].(string)
				switch {
				case slices.Contains([]string{"log", "queue", "dup", "fwd", "meter", "tproxy"}, key), x == "nftrace", object["op"] == "update",
					key == "set" && name != "" && !slices.Contains(sets, name):
					bad = append(bad, key)
				}
				walk(x)
			}
		}
	}
	walk(tree)
	return bad
}

func TestHarden(t *testing.T) {
	l := newLab(t)
	inNS(t, l.server, func() {
		for name, want := range map[string]string{
			"ipv4/ip_forward": "1", "netfilter/nf_conntrack_acct": "0", "netfilter/nf_conntrack_timestamp": "0",
			"ipv4/tcp_no_metrics_save": "1", "ipv4/conf/up0/rp_filter": "1", "ipv4/ip_local_port_range": "32768\t60999",
		} {
			if b, err := os.ReadFile("/proc/sys/net/" + name); err != nil || strings.TrimSpace(string(b)) != want {
				t.Errorf("%s is %q, %v", name, b, err)
			}
		}
	})
	// Trees where one setting is missing or does not take.
	dir := t.TempDir()
	if err := firewall.ApplySysctlsAt(dir); err == nil {
		t.Error("an empty tree is hardened")
	}
	fake := filepath.Join(dir, "ipv4", "ip_forward")
	if err := os.MkdirAll(filepath.Dir(fake), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/dev/null", fake); err != nil {
		t.Fatal(err)
	}
	if err := firewall.ApplySysctlsAt(dir); err == nil || !strings.Contains(err.Error(), `got "", want "1"`) {
		t.Errorf("a setting that does not take: %v", err)
	}
}

func FuzzParseAnswers(f *testing.F) {
	header := func(kind uint16, body []byte) []byte {
		b := make([]byte, 16, 64)
		b[0], b[4], b[5] = byte(16+len(body)), byte(kind), byte(kind>>8)
		return append(b, body...)
	}
	f.Add(header(2, []byte{0xfe, 0xff, 0xff, 0xff}))
	f.Add(header(10<<8|unix.NFT_MSG_NEWSETELEM, []byte{1, 0, 0, 0, 12, 0, 3, 0x80, 8, 0, 1, 0x80, 4, 0, 1, 0}))
	f.Add(bytes.Repeat([]byte{16, 0, 0, 0}, 8))
	f.Fuzz(func(t *testing.T, b []byte) { _, _ = firewall.ParseAnswers(b) })
}

// BenchmarkSession is the work of one session: add, read, and take with its
// connections forgotten, beside a thousand others.
func BenchmarkSession(b *testing.B) {
	l := newLab(b)
	k := l.counters()
	l.full(nil)
	v4, v6 := netip.MustParseAddr("10.64.8.0"), netip.MustParseAddr("fd6c:6574:6865::800")
	for range 1000 {
		if err := k.Add(v4, v6); err != nil {
			b.Fatal(err)
		}
		v4, v6 = v4.Next(), v6.Next()
	}
	work := []struct {
		name string
		f    func() error
	}{
		{"add", func() error { return k.Add(v4, v6) }},
		{"read", func() error { _, _, err := k.Read(v4, v6); return err }},
		{"take", func() error { _, _, err := k.Take(v4, v6); return err }},
	}
	took := make([]time.Duration, len(work))
	for b.Loop() {
		for i, w := range work {
			began := time.Now()
			if err := w.f(); err != nil {
				b.Fatal(err)
			}
			took[i] += time.Since(began)
		}
	}
	for i, w := range work {
		b.ReportMetric(float64(took[i].Microseconds())/float64(b.N), w.name+"-µs/op")
	}
}

// TestDirect shows that a daemon that listens on its public port is reached without a trace in
// connection tracking, in which others' customers stand, and not by customers from inside.
func TestDirect(t *testing.T) {
	l := newLab(t)
	l.full(nil)
	l.admit(l.counters())
	l.echo(l.server, ":4500", ":993", ":21194", ":21195")
	tracked := func() string {
		b, err := os.ReadFile("/proc/thread-self/net/nf_conntrack")
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	for _, c := range []struct {
		network, port string
		direct        bool
	}{{"udp", "4500", true}, {"tcp", "993", true}, {"udp", "1194", false}} {
		for _, server := range []string{serverV4, serverV6} {
			if !l.reach(l.inet, c.network, "", net.JoinHostPort(server, c.port)) {
				t.Errorf("%s port %s of %s cannot be reached", c.network, c.port, server)
			}
			if l.reach(l.clients[0].ns, c.network, "", net.JoinHostPort(server, c.port)) {
				t.Errorf("%s port %s of %s can be reached through the tunnel", c.network, c.port, server)
			}
		}
		inNS(t, l.server, func() {
			for line := range strings.Lines(tracked()) {
				if fromInternet := strings.Contains(line, "src="+inetV4+" "); c.direct && fromInternet {
					t.Errorf("%s port %s is tracked: %s", c.network, c.port, line)
				}
			}
			if !c.direct && !strings.Contains(tracked(), "src="+inetV4+" ") {
				t.Error("a redirected port is not tracked; the test would not notice anything")
			}
		})
	}
}

// TestPathMTU shows that a direct port's daemon learns what packets the way to a customer takes,
// and of no other port's.
func TestPathMTU(t *testing.T) {
	l := newLab(t)
	l.echo(l.server, ":4500", ":4501", ":993")
	rules := l.full(nil)
	mtu := func(family, to string) string {
		out, err := exec.Command("ip", "-n", l.server, family, "route", "get", to).CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		_, after, _ := strings.Cut(string(out), " mtu ")
		value, _, _ := strings.Cut(after, " ")
		return strings.TrimSpace(value)
	}
	learns := func(port uint16) (all []string) {
		for _, a := range [][2]string{{serverV4, inetV4}, {serverV6, inetV6}} {
			l.raw(tooBig(netip.MustParseAddr(a[1]), udpPacket(at(netip.MustParseAddr(a[0]), port), at(netip.MustParseAddr(a[1]), 5555), make([]byte, 64))))
		}
		learned := func() bool {
			all = []string{mtu("-4", inetV4), mtu("-6", inetV6)}
			return all[0] != "" && all[1] != ""
		}
		for end := time.Now().Add(patience); time.Now().Before(end) && !learned(); {
			time.Sleep(time.Millisecond)
		}
		return all
	}
	if got := learns(4501); got[0] != "" || got[1] != "" {
		t.Errorf("of another port: %v", got)
	}
	spoiled := rules
	for line := range strings.Lines(rules) {
		if strings.Contains(line, "@th,") {
			spoiled = strings.Replace(spoiled, line, "", 1)
		}
	}
	l.load(spoiled)
	if got := learns(4500); got[0] != "" || got[1] != "" {
		t.Errorf("without the rules: %v; the test would not notice anything", got)
	}
	l.load(rules)
	if got := learns(4500); got[0] != "1300" || got[1] != "1300" {
		t.Errorf("got %v, want 1300", got)
	}
}

// tooBig is the answer of a router to a packet that is larger than 1300 bytes (RFC 1191; RFC 4443,
// section 3.2).
func tooBig(router netip.Addr, packet []byte) []byte {
	version, src, _ := ends(packet)
	kind := []byte{3, 4, 0, 0, 0, 0, 1300 >> 8, 1300 & 0xff}
	if version == 6 {
		kind = []byte{2, 0, 0, 0, 0, 0, 1300 >> 8, 1300 & 0xff}
	}
	icmp := append(kind, packet...)
	ip := udpPacket(at(router, 0), at(src, 0), icmp)
	if version == 6 {
		ip = append(ip[:40], icmp...)
		ip[4], ip[5], ip[6] = byte(len(icmp)>>8), byte(len(icmp)), 58
		pseudo := append(append(router.AsSlice(), src.AsSlice()...), 0, 0, byte(len(icmp)>>8), byte(len(icmp)), 0, 0, 0, 58)
		binary.BigEndian.PutUint16(ip[42:], sum16(append(pseudo, icmp...)))
		return ip
	}
	binary.BigEndian.PutUint16(icmp[2:], sum16(icmp))
	ip = append(ip[:20], icmp...)
	ip[9], ip[10], ip[11] = 1, 0, 0
	binary.BigEndian.PutUint16(ip[2:], uint16(len(ip)))
	binary.BigEndian.PutUint16(ip[10:], sum16(ip[:20]))
	return ip
}
