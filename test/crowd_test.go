package test

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"lethe/lab"
	"lethe/protocol"
	record "lethe/usage"
	"lethe/vici"
)

// crowd are many customers on few machines, whose sessions the test holds in its hand:
// Debian's OpenVPN, one process for each session, and strongSwan, one for each machine.
type crowd struct {
	*trial
	b    *books
	far  *far
	next atomic.Uint32 // number of the next tunnel
}

// resident is a customer of a crowd.
type resident struct {
	username, secret []byte
	hash             record.UserHash
}

// newCrowd makes people in the store of a lab.
func newCrowd(w *trial, b *books, n int) (*crowd, []*resident) {
	w.t.Helper()
	c := &crowd{trial: w, b: b, far: newFar(w.t, w.Internet())}
	all := make([]*resident, n)
	for i := range all {
		r := &resident{}
		r.username, r.secret = w.enrol(fmt.Sprintf("resident%d@river.example", i))
		r.hash = record.Hash(b.salt, r.username)
		all[i] = r
	}
	return c, all
}

// A tunnel sends two kinds of packets to the far end: some that come back, which tell that
// it lives, and some that are counted there, which fill its record.
const (
	kindEcho  = 'e'
	kindCount = 'c'
	echoSize  = 20   // bytes of payload
	countSize = 1172 // bytes of payload; with headers of IPv4 and UDP 1,200
	headers   = 28
	// unit is how many counted packets a session sends. It makes the megabytes of a row
	// the number of its sessions: with echoes and losses a session has 0.98 to 1.12 MB, and
	// whether four of them are rounded one by one or all at once, the row says four.
	unit      = 820
	unitLimit = 1_090_000 // bytes that a session may have sent when it has been filled
	unitMost  = 1_120_000 // and at its end
)

// far is the far end of all tunnels: a host in the internet.
type far struct {
	conn net.PacketConn
	mu   sync.Mutex
	got  map[uint32]*atomic.Uint64 // counted packets, by tunnel
}

var farAddr = netip.AddrPortFrom(lab.SiteAddr.V4, 7007)

func newFar(t testing.TB, inet *lab.Machine) *far {
	t.Helper()
	f := &far{got: map[uint32]*atomic.Uint64{}}
	err := inet.Inside(func() (err error) {
		f.conn, err = net.ListenPacket("udp4", farAddr.String())
		return err
	})
	if err == nil {
		raw, control := f.conn.(*net.UDPConn).SyscallConn()
		if control == nil {
			control = raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20) })
		}
		err = errors.Join(err, control)
	}
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		b := make([]byte, 2048)
		for {
			n, from, err := f.conn.ReadFrom(b)
			if err != nil {
				return // closed
			}
			if n < echoSize {
				continue
			}
			if b[0] == kindEcho {
				_, _ = f.conn.WriteTo(b[:n], from) // what is lost is asked again
			} else {
				f.count(binary.BigEndian.Uint32(b[1:])).Add(1)
			}
		}
	}()
	t.Cleanup(func() {
		f.conn.Close()
		<-ended
	})
	return f
}

// count returns how many packets of a tunnel have come.
func (f *far) count(id uint32) *atomic.Uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.got[id] == nil {
		f.got[id] = new(atomic.Uint64)
	}
	return f.got[id]
}

// tunnel is a session of a crowd that is up.
type tunnel struct {
	c      *crowd
	who    *resident
	proto  protocol.ID
	place  string // of the server
	name   string
	id     uint32
	m      *lab.Machine
	local  netip.Addr
	device string // of the tunnel, "" for IKEv2
	conn   net.PacketConn
	far    *net.UDPAddr
	sent   atomic.Int64 // bytes, with headers of IPv4 and UDP
	stop   chan struct{}
	once   sync.Once
	ended  sync.WaitGroup

	mu   sync.Mutex
	last time.Time     // of the last answer
	gap  time.Duration // the longest between two since watch
}

// beat is the time between two echoes of a tunnel.
const beat = 250 * time.Millisecond

// newTunnel begins to watch a session whose client has that address, on that device if it
// is not "".
func (c *crowd) newTunnel(who *resident, place string, proto protocol.ID, m *lab.Machine, local netip.Addr, device string) (*tunnel, error) {
	t := &tunnel{c: c, who: who, place: place, proto: proto, id: c.next.Add(1), m: m, local: local, device: device,
		far: net.UDPAddrFromAddrPort(farAddr), stop: make(chan struct{}), last: time.Now()}
	t.name = fmt.Sprintf("%s tunnel %d to %s", proto, t.id, place)
	bind := net.ListenConfig{Control: t.bind}
	err := m.Inside(func() (err error) {
		t.conn, err = bind.ListenPacket(c.ctx, "udp4", netip.AddrPortFrom(local, 0).String())
		return err
	})
	if err != nil {
		return nil, err
	}
	t.ended.Go(t.ask)
	t.ended.Go(t.hear)
	c.t.Cleanup(t.close)
	return t, nil
}

// bind binds a socket to the tunnel's device.
func (t *tunnel) bind(_, _ string, raw syscall.RawConn) (err error) {
	if t.device == "" {
		return nil
	}
	return errors.Join(raw.Control(func(fd uintptr) { err = unix.BindToDevice(int(fd), t.device) }), err)
}

// resolves looks a name up at the server's resolver, through the tunnel.
func (t *tunnel) resolves(name string) bool {
	ctx, cancel := context.WithTimeout(t.c.ctx, 2*time.Second)
	defer cancel()
	dialer := net.Dialer{Control: t.bind, LocalAddr: net.UDPAddrFromAddrPort(netip.AddrPortFrom(t.local, 0))}
	r := net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (conn net.Conn, err error) {
		err = t.m.Inside(func() error {
			conn, err = dialer.DialContext(ctx, "udp4", "10.63.255.53:53")
			return err
		})
		return conn, err
	}}
	found, err := r.LookupNetIP(ctx, "ip4", name)
	return err == nil && len(found) == 1
}

func (t *tunnel) close() {
	t.once.Do(func() {
		close(t.stop)
		t.conn.Close()
		t.ended.Wait()
	})
}

// send sends one packet. That the device has gone or its queue is full is like a loss.
func (t *tunnel) send(kind byte, size int) {
	b := make([]byte, size)
	b[0] = kind
	binary.BigEndian.PutUint32(b[1:], t.id)
	if _, err := t.conn.WriteTo(b, t.far); err == nil {
		t.sent.Add(int64(size + headers))
	}
}

func (t *tunnel) ask() {
	tick := time.NewTicker(beat)
	defer tick.Stop()
	for {
		t.send(kindEcho, echoSize)
		select {
		case <-t.stop:
			return
		case <-tick.C:
		}
	}
}

func (t *tunnel) hear() {
	b := make([]byte, 2048)
	for {
		if _, _, err := t.conn.ReadFrom(b); err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			select { // an ICMP error, or no device
			case <-t.stop:
				return
			case <-time.After(10 * time.Millisecond):
			}
			continue
		}
		t.mu.Lock()
		now := time.Now()
		t.gap = max(t.gap, now.Sub(t.last))
		t.last = now
		t.mu.Unlock()
	}
}

// watch begins a new measurement of the longest time between two answers.
func (t *tunnel) watch() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.gap = 0
}

// silence returns the longest time without an answer since watch, until now.
func (t *tunnel) silence() time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	return max(t.gap, time.Since(t.last))
}

// answered reports whether an answer has come since.
func (t *tunnel) answered(since time.Time) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.last.After(since)
}

// fill sends what makes the session one of its row, and as much again as was lost.
func (t *tunnel) fill() error {
	const window = 12
	got := t.c.far.count(t.id)
	end := time.Now().Add(2 * time.Minute)
	for sent, last, idle := uint64(0), uint64(0), 0; ; {
		now := got.Load()
		if now >= unit {
			return nil
		}
		if now > last {
			last, idle = now, 0
		}
		switch {
		case sent-min(sent, now) < window && sent < unit || idle > 1000:
			if idle > 1000 { // lost: a second without any
				sent, idle = now, 0
			}
			if t.sent.Load() > unitLimit || time.Now().After(end) {
				return fmt.Errorf("%s: %d bytes sent and %d packets arrived", t.name, t.sent.Load(), now)
			}
			t.send(kindCount, countSize)
			sent++
		default:
			idle++
			time.Sleep(time.Millisecond)
		}
	}
}

// each calls do for all, some at a time, and ends the test when one fails.
func each[T any](t testing.TB, atOnce int, all []T, do func(T) error) {
	t.Helper()
	var wg sync.WaitGroup
	turn := make(chan struct{}, atOnce)
	for _, x := range all {
		turn <- struct{}{}
		wg.Go(func() {
			defer func() { <-turn }()
			if err := do(x); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if t.Failed() {
		t.FailNow()
	}
}

// dialer is one OpenVPN client of a crowd.
type dialer struct {
	cmd    *lab.Cmd
	device string
	ended  chan struct{}
	news   chan struct{} // has a token when something below has changed

	mu      sync.Mutex
	address netip.Addr // in the tunnel, of the newest session
	ups     int        // how often a tunnel was up
	refused bool
	said    []string // the last lines
}

var assigned = regexp.MustCompile(`net_addr_v4_add: ([0-9.]+)/`)

// openvpn starts a client on a machine that makes no routes. It ends with the test.
func (c *crowd) openvpn(m *lab.Machine, profile string, who *resident, secret []byte) (*dialer, error) {
	n := c.raw.Add(1)
	d := &dialer{device: fmt.Sprintf("crowd%d", n), ended: make(chan struct{}), news: make(chan struct{}, 1)}
	config, login := m.Data(d.device+".ovpn"), m.Data(d.device+".auth")
	err := errors.Join(os.WriteFile(config, []byte(profile), 0o600), os.WriteFile(login, fmt.Appendf(nil, "%s\n%s\n", who.username, secret), 0o600))
	if err != nil {
		return nil, err
	}
	d.cmd = m.Command(context.Background(), "openvpn", "--config", config, "--auth-user-pass", login, "--dev", d.device, "--dev-type", "tun",
		"--route-noexec", "--verb", "3", "--auth-retry", "none", "--connect-retry", "1", "1", "--server-poll-timeout", "20")
	out, err := d.cmd.StdoutPipe()
	if err == nil {
		err = d.cmd.Start()
	}
	if err != nil {
		return nil, err
	}
	go func() {
		defer close(d.ended)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			d.hears(lines.Text())
		}
		_ = d.cmd.Wait() // it was told to end, or killed
		_ = os.Remove(config)
		_ = os.Remove(login)
	}()
	c.t.Cleanup(d.kill)
	return d, nil
}

func (d *dialer) hears(line string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if m := assigned.FindStringSubmatch(line); m != nil {
		d.address = netip.MustParseAddr(m[1])
	}
	if strings.Contains(line, "Initialization Sequence Completed") {
		d.ups++
	}
	d.refused = d.refused || strings.Contains(line, "AUTH_FAILED")
	if d.said = append(d.said, line); len(d.said) > 12 {
		d.said = d.said[1:]
	}
	select {
	case d.news <- struct{}{}:
	default:
	}
}

// outcome waits until a client is in or refused, or ends. Only one goroutine may wait.
func (d *dialer) outcome(limit time.Duration) (outcome, error) {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	for ended := false; ; {
		d.mu.Lock()
		up, refused, said := d.ups > 0 && d.address.IsValid(), d.refused, strings.Join(d.said, "\n")
		d.mu.Unlock()
		switch {
		case up:
			return gotIn, nil
		case refused:
			return gotRefused, nil
		case ended:
			return gotNothing, fmt.Errorf("%s has ended: %s", d.device, said)
		}
		select {
		case <-d.news:
		case <-d.ended:
			ended = true
		case <-timer.C:
			return gotNothing, fmt.Errorf("%s: no tunnel after %v: %s", d.device, limit, said)
		}
	}
}

// leave ends the client as a person would.
func (d *dialer) leave() error {
	_ = d.cmd.Process.Signal(syscall.SIGTERM) // it may have ended
	select {
	case <-d.ended:
		return nil
	case <-time.After(30 * time.Second):
		return fmt.Errorf("%s does not end", d.device)
	}
}

func (d *dialer) kill() {
	_ = d.cmd.Process.Kill() // it may have ended
	<-d.ended
}

// dialIn starts a client with a profile ("nl-ams udp") and waits for its tunnel.
func (c *crowd) dialIn(m *lab.Machine, profile string, who *resident) (*dialer, *tunnel, error) {
	d, err := c.openvpn(m, c.profiles[profile], who, who.secret)
	if err != nil {
		return nil, nil, err
	}
	if got, err := d.outcome(time.Minute); got != gotIn {
		return d, nil, errors.Join(err, fmt.Errorf("%s: %s", profile, got))
	}
	proto := protocol.OpenVPNUDP
	if strings.HasSuffix(profile, "tcp") {
		proto = protocol.OpenVPNTCP
	}
	place, _, _ := strings.Cut(profile, " ")
	t, err := c.newTunnel(who, place, proto, m, d.address, d.device)
	return d, t, err
}

// swan is strongSwan on a machine of a crowd, with any number of tunnels.
type swan struct {
	*strongClient
	c    *crowd
	conn *vici.Conn

	mu   sync.Mutex
	seen map[string]bool // numbers of IKE SAs that are tunnels
}

// manyTunnels are charon's settings for a machine that is many customers: it speaks from any
// ports, as if behind a NAT, makes a new IKE SA each time that it is told to, has its routes
// from the test, does not take OpenVPN's devices for ways to roam, and repeats what was lost
// soon. Its own route for everything is for packets with a mark that nobody sets: OpenVPN's
// packets must not go into a tunnel.
const manyTunnels = `
  reuse_ikesa = no
  port = 0
  port_nat_t = 0
  install_routes = no
  interfaces_use = eth0
  ikesa_table_size = 256
  ikesa_table_segments = 4
  retransmit_timeout = 1.0
  retransmit_base = 1.4
  plugins {
    kernel-netlink {
      fwmark = 0x77
    }
  }`

// tunnelTable is the routing table of packets that go into an IKEv2 tunnel.
const tunnelTable = 77

// strongSwan starts charon on a machine. ca are certificates of servers.
func (c *crowd) strongSwan(m *lab.Machine, ca ...[]byte) *swan {
	c.t.Helper()
	s := &swan{strongClient: newStrongClient(c.t, m, amsterdam, manyTunnels), c: c, seen: map[string]bool{}}
	s.conn = s.dial()
	for _, pem := range ca {
		s.call("load-cert", new(vici.Message).Set("type", "X509").Set("flag", "CA").Set("data", string(pem)))
	}
	c.check(m.Inside(func() error {
		link, err := netlink.LinkByName("ipsec0")
		if err != nil {
			return err
		}
		rule := netlink.NewRule()
		rule.Src, rule.Table = &net.IPNet{IP: net.IPv4(10, 0, 0, 0), Mask: net.CIDRMask(8, 32)}, tunnelTable
		to := &net.IPNet{IP: net.IPv4zero, Mask: net.CIDRMask(0, 32)}
		// A device loses its routes with its last address: it has one of its own. And a
		// packet that belongs into a tunnel goes nowhere else.
		own := &netlink.Addr{IPNet: &net.IPNet{IP: net.IPv4(192, 0, 0, 8), Mask: net.CIDRMask(32, 32)}}
		return errors.Join(netlink.LinkSetUp(link), netlink.AddrAdd(link, own), netlink.RuleAdd(rule),
			netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: to, Table: tunnelTable, Scope: netlink.SCOPE_LINK}),
			netlink.RouteAdd(&netlink.Route{Type: unix.RTN_UNREACHABLE, Dst: to, Table: tunnelTable, Priority: 1000}))
	}))
	return s
}

func (s *swan) dial() *vici.Conn {
	s.t.Helper()
	conn, err := vici.Dial(s.c.ctx, filepath.Join(s.dir, "vici"))
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(conn.Close)
	return conn
}

func (s *swan) call(command string, m *vici.Message) {
	s.t.Helper()
	if _, err := s.conn.Call(s.c.ctx, command, m); err != nil {
		s.t.Fatalf("%s: %v", command, err)
	}
}

// know gives charon a connection of a customer to a server, by that name.
func (s *swan) know(name, server string, addr netip.Addr, who *resident, secret []byte) {
	s.t.Helper()
	s.call("load-shared", new(vici.Message).Set("id", name).Set("type", "EAP").Set("data", string(secret)).SetList("owners", string(who.username)))
	child := new(vici.Message).SetList("remote_ts", "0.0.0.0/0").SetList("esp_proposals", "aes256gcm16")
	s.call("load-conn", new(vici.Message).SetSection(name, new(vici.Message).
		Set("version", "2").SetList("remote_addrs", addr.String()).SetList("vips", "0.0.0.0").
		SetList("proposals", "aes256gcm16-prfsha384-x25519").Set("encap", "yes").Set("unique", "never").Set("dpd_delay", "10").
		SetSection("local", new(vici.Message).Set("auth", "eap-mschapv2").Set("eap_id", string(who.username))).
		SetSection("remote", new(vici.Message).Set("auth", "pubkey").Set("id", server)).
		SetSection("children", new(vici.Message).SetSection(name, child))))
}

// begin tells charon to make one more tunnel of a connection. It does not wait.
func (s *swan) begin(name string) error {
	_, err := s.conn.Call(s.c.ctx, "initiate", new(vici.Message).Set("child", name).Set("ike", name).Set("timeout", "-1").Set("init-limits", "no"))
	return err
}

// ikeSA is an IKE SA of a customer's charon.
type ikeSA struct {
	id, name string
	up       bool // and so is its Child SA
	address  netip.Addr
}

func (s *swan) list() (all []ikeSA, err error) {
	err = s.conn.Stream(s.c.ctx, "list-sas", "list-sa", nil, func(m *vici.Message) {
		for name, sa := range m.Sections() {
			i := ikeSA{id: sa.Get("uniqueid"), name: name}
			for _, a := range sa.List("local-vips") {
				i.address, _ = netip.ParseAddr(a)
			}
			for _, child := range sa.Section("child-sas").Sections() {
				i.up = i.up || sa.Get("state") == "ESTABLISHED" && child.Get("state") == "INSTALLED"
			}
			all = append(all, i)
		}
	})
	return all, err
}

// atOnce is how many IKE SAs a charon begins at a time: fewer than a server lets one address
// have half open.
const atOnce = 20

// dialIn makes tunnels to a place of these connections, a name of which may stand several times.
func (s *swan) dialIn(place string, people map[string]*resident, names []string) (tunnels []*tunnel, err error) {
	for wave := range slices.Chunk(names, atOnce) {
		for _, name := range wave {
			if err := s.begin(name); err != nil {
				return tunnels, err
			}
		}
		for end, n := time.Now().Add(10*time.Second), len(wave); n > 0; time.Sleep(20 * time.Millisecond) {
			all, err := s.list()
			if err == nil && time.Now().After(end) {
				os.WriteFile("/tmp/h/storm/swan.log", []byte(s.log()), 0o600)
				err = fmt.Errorf("%d of %d tunnels did not come up: %v %s", n, len(wave), all, tail(s.log()))
			}
			if err != nil {
				return tunnels, err
			}
			for _, sa := range all {
				who := people[sa.name]
				if who == nil || !sa.up || !s.first(sa.id) {
					continue
				}
				t, err := s.c.newTunnel(who, place, protocol.IKEv2, s.m, sa.address, "")
				if err != nil {
					return tunnels, err
				}
				tunnels = append(tunnels, t)
				n--
			}
		}
	}
	return tunnels, nil
}

func (s *swan) first(id string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	first := !s.seen[id]
	s.seen[id] = true
	return first
}

// end ends all IKE SAs that which accepts, telling the server unless by force, and waits
// until they have gone.
func (s *swan) end(force bool, which func(ikeSA) bool) error {
	for end, asked := time.Now().Add(time.Minute), map[string]bool{}; ; time.Sleep(20 * time.Millisecond) {
		all, err := s.list()
		if err != nil {
			return err
		}
		all = slices.DeleteFunc(all, func(sa ikeSA) bool { return !which(sa) })
		if len(all) == 0 {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("%d IKE SAs do not end: %s", len(all), tail(s.log()))
		}
		for _, sa := range all {
			if asked[sa.id] {
				continue
			}
			asked[sa.id] = true
			m := new(vici.Message).Set("ike-id", sa.id).Set("timeout", "-1")
			if force {
				m.Set("force", "yes")
			}
			_, _ = s.conn.Call(s.c.ctx, "terminate", m) // it may have ended meanwhile
		}
	}
}

// tail returns the end of a text.
func tail(text string) string { return text[max(0, len(text)-2000):] }
