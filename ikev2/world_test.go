package ikev2_test

import (
	"context"
	"encoding/pem"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"lethe/authdb"
	"lethe/event"
	"lethe/fault"
	"lethe/ikev2"
	"lethe/internal/testkit"
	"lethe/lab/pki"
	"lethe/ledger"
	"lethe/location"
	"lethe/private"
	"lethe/protocol"
	"lethe/radius"
	"lethe/session"
	"lethe/spec"
	"lethe/usage"
	"lethe/vici"
)

// The tests run in network and mount namespaces of their own, which TestMain makes by starting the test
// binary again. There, the system log is a socket that nobody else writes to. Each customer has a network namespace too, held by a
// child process. All are nameless and end with the processes.
const nested = "LETHE_IKEV2_TEST"

func TestMain(m *testing.M) {
	switch {
	case os.Getenv(nested) == "agent":
		os.Exit(agentMain())
	case strings.HasPrefix(os.Getenv(nested), "fake-"):
		fakeMain(strings.TrimPrefix(os.Getenv(nested), "fake-"))
		os.Exit(0)
	case os.Getenv(nested) == "sink" || os.Getenv(nested) == "pour":
		if err := streamMain(os.Getenv(nested)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	case os.Getenv(nested) != "":
		if err := furnish(); err != nil {
			fmt.Fprintln(os.Stderr, "namespaces for the tests:", err)
			os.Exit(1)
		}
		os.Exit(m.Run())
	case os.Geteuid() != 0:
		os.Exit(m.Run())
	}
	os.Exit(testkit.InNamespaces(nested, commandLine))
}

// furnish makes the namespaces what the tests want.
func furnish() error {
	if err := testkit.OwnMounts(); err != nil {
		return err
	}
	script := `set -e
mount -t tmpfs lethe /run
mkdir -p /run/systemd/journal /run/dev/net
for n in null zero random urandom net/tun; do touch /run/dev/$n; mount --bind /dev/$n /run/dev/$n; done
ln -s /proc/self/fd /run/dev/fd
ln -s /proc/self/fd/0 /run/dev/stdin
mount --rbind /run/dev /dev
ip link set lo up
sysctl -qw net.ipv4.ip_forward=1
`
	if out, err := exec.Command("sh", "-c", script).CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	for _, path := range []string{"/dev/log", "/run/systemd/journal/socket"} {
		conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
		if err != nil {
			return err
		}
		if err := os.Chmod(path, 0o666); err != nil {
			return err
		}
		go func() {
			for b := make([]byte, 1<<16); ; {
				n, err := conn.Read(b)
				if err != nil {
					return
				}
				logged.Add(int64(n))
			}
		}()
	}
	return nil
}

// logged is how many bytes went to the system log.
var logged atomic.Int64

const (
	uid        = 64998
	radiusPort = 21812
	daemonID   = 3
	serverName = "nl-ams-1"
	password   = "correct horse battery"
)

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

// credentials are a server's, made once.
type credential struct{ CA, Cert, Key string }

var credentials = sync.OnceValue(func() credential {
	ca, err := pki.NewAuthority("test CA")
	var pair pki.Pair
	if err == nil {
		pair, err = ca.IssueVPN(serverName)
	}
	if err != nil {
		panic(err)
	}
	return credential{CA: ca.PEM, Cert: pair.Certificate + ca.PEM, Key: pair.Key}
})

// core is the server's core, real but for its database and counters. It keeps a journal of the calls.
type core struct {
	*session.Registry
	told   testkit.Journal
	ledger *ledger.Ledger

	mu     sync.Mutex
	refuse error
	logins []session.Login
	grants []session.Grant
	last   session.Ref
}

func (c *core) check(l session.Login) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	hash := [16]byte(authdb.NTHash([]byte(password)))
	if ok := l.Proof(&hash); c.refuse != nil {
		return c.refuse
	} else if !ok {
		return fault.New(fault.Unauthenticated, "wrong user name or password")
	}
	return nil
}

func (c *core) setRefuse(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.refuse = err
}

func (c *core) Admit(ref session.Ref, l session.Login) (session.Grant, error) {
	g, err := c.Registry.Admit(ref, l)
	if err == nil {
		c.told.Note("admit")
		c.mu.Lock()
		c.logins, c.grants, c.last = append(c.logins, l), append(c.grants, g), ref
		c.mu.Unlock()
	}
	return g, err
}

func (c *core) Established(ref session.Ref) { c.Registry.Established(ref); c.told.Note("established") }

func (c *core) End(ref session.Ref) {
	before := c.Count()
	c.Registry.End(ref)
	if c.Count() < before {
		c.told.Note("end")
	}
}

func (c *core) Resume(d uint8, live []session.Live) {
	c.Registry.Resume(d, live)
	c.told.Note("resume %d", len(live))
}

func (c *core) Reset(d uint8) { c.Registry.Reset(d); c.told.Note("reset") }

// latest returns the session that was admitted last.
func (c *core) latest() (session.Ref, session.Login, session.Grant) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.last, c.logins[len(c.logins)-1], c.grants[len(c.grants)-1]
}

// counters is a session.Counters that counts nothing.
type counters struct{}

func (counters) Add(netip.Addr, netip.Addr) error                    { return nil }
func (counters) Read(netip.Addr, netip.Addr) (uint64, uint64, error) { return 3e6, 2e6, nil }
func (counters) Remove(netip.Addr, netip.Addr) error                 { return nil }

// newCore returns a core over a ledger.
func newCore(tb testing.TB, f *os.File, kill func(session.Ref)) *core {
	tb.Helper()
	l, err := ledger.Open(f)
	must(tb, err)
	tb.Cleanup(func() { l.Close() })
	c := &core{ledger: l}
	c.Registry = session.New(session.Config{
		Salt: usage.Salt{}, Ledger: l, Location: func() location.ID { return 1 }, Check: c.check,
		Allowed: func(private.Value[string]) bool { return true }, Locate: func(netip.Addr) (string, string) { return "NL", "LAB" },
		Counters: counters{}, Kill: kill, Trouble: func() { tb.Error("trouble with counters") },
	})
	return c
}

// commandLine is that of the servers' charons (proc_pid_cmdline(5)).
const commandLine = "/usr/sbin/charon-systemd\x00"

func runtimeDir(tb testing.TB) string {
	tb.Helper()
	if os.Geteuid() != 0 {
		tb.Skip("needs root for network namespaces and tunnels")
	}
	dir, err := os.MkdirTemp("", "lethe-ike-")
	must(tb, err)
	must(tb, os.Chmod(dir, 0o711))
	tb.Cleanup(func() { testkit.Reap(commandLine); _ = os.RemoveAll(dir) })
	return dir
}

func newLedger(tb testing.TB) *os.File {
	tb.Helper()
	f, err := ledger.Create(1024)
	must(tb, err)
	tb.Cleanup(func() { f.Close() })
	return f
}

func config(dir string) ikev2.Config {
	c := credentials()
	node := spec.Default()
	node.KeepaliveSeconds = 1
	var uplinks []string // one to each customer; see newCustomer
	for n := range 512 {
		uplinks = append(uplinks, fmt.Sprintf("sv%d", n+1))
	}
	return ikev2.Config{
		RuntimeDir: dir, UID: uid, GID: uid, Daemon: daemonID, Uplinks: uplinks,
		Node: func() spec.Node { return node }, RADIUS: netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), radiusPort),
		Certificate: private.Of(c.Cert), Key: private.Of(c.Key),
	}
}

// server is a running ikev2.Server with its RADIUS server.
type server struct {
	*ikev2.Server
	core *core
	cfg  ikev2.Config
	log  *testkit.Log
	door *door
	stop func() // ends it and waits; may be called again
}

// door is the core of the RADIUS server. It can give a session up before charon knows that it was opened.
type door struct {
	*ikev2.Server
	abandon atomic.Bool
}

func (d *door) Admit(ref session.Ref, l session.Login) (session.Grant, error) {
	g, err := d.Server.Admit(ref, l)
	if d.abandon.Load() {
		d.End(ref)
	}
	return g, err
}

// start runs a server until the end of the test and waits until it serves.
func start(tb testing.TB, cfg ikev2.Config, f *os.File) *server {
	tb.Helper()
	s := launch(tb, cfg, f)
	s.core.told.Await(tb, "resume", 1, 10*time.Second)
	testkit.Eventually(tb, 5*time.Second, s.serves, s.log.String)
	return s
}

// talk connects to the server's charon, as an operator could.
func (s *server) talk(ctx context.Context) (*vici.Conn, error) {
	return vici.Dial(ctx, filepath.Join(s.cfg.RuntimeDir, fmt.Sprintf("charon%d", s.cfg.Daemon), "vici"))
}

// sas returns how many IKE SAs the server's charon has.
func (s *server) sas(tb testing.TB) (n int) {
	tb.Helper()
	c, err := s.talk(tb.Context())
	must(tb, err)
	defer c.Close()
	must(tb, c.Stream(tb.Context(), "list-sas", "list-sa", nil, func(*vici.Message) { n++ }))
	return n
}

// serves reports whether charon knows the connection.
func (s *server) serves() (ok bool) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	c, err := s.talk(ctx)
	if err != nil {
		return false
	}
	defer c.Close()
	err = c.Stream(ctx, "list-conns", "list-conn", nil, func(m *vici.Message) { ok = ok || m.Section("lethe") != nil })
	return ok && err == nil
}

func launch(tb testing.TB, cfg ikev2.Config, f *os.File) *server {
	tb.Helper()
	s := &server{cfg: cfg, log: new(testkit.Log)}
	s.core = newCore(tb, f, func(r session.Ref) { s.Kill(r) })
	log := event.New(s.log)
	var err error
	s.Server, err = ikev2.New(cfg, s.core, log)
	must(tb, err)
	s.door = &door{Server: s.Server}
	nets := session.SubnetsOf(cfg.Daemon)
	r, err := radius.New(radius.Config{
		Secret: s.Secret(), Daemon: cfg.Daemon, Protocol: protocol.IKEv2, Core: s.door, Log: log,
		DNS: []netip.Addr{nets.V4.Addr().Next(), nets.V6.Addr().Next()},
	})
	must(tb, err)
	conn, err := radius.Listen(cfg.RADIUS.Port())
	must(tb, err)
	ctx, cancel := context.WithCancel(context.Background())
	rctx, rcancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		defer rcancel()
		if err := s.Run(ctx); err != nil {
			tb.Errorf("run: %v", err)
		}
	})
	wg.Go(func() {
		if err := r.Serve(rctx, conn); err != nil {
			tb.Errorf("RADIUS: %v", err)
		}
	})
	s.stop = sync.OnceFunc(func() {
		cancel()
		wg.Wait()
		if cfg.Binary == "" && strings.Contains(s.log.String(), "mumbled") {
			tb.Errorf("charon is not silent: %s", s.log)
		}
	})
	tb.Cleanup(s.stop)
	return s
}

// customer is a machine with a charon of its own.
type customer struct {
	n      int
	holder *exec.Cmd // of the network namespace
	charon *exec.Cmd
	vici   *vici.Conn
	dir    string
	user   string
}

var customers atomic.Int64

func (c *customer) run(line string) error {
	return testkit.Command(fmt.Sprintf("nsenter -n -t %d ", c.holder.Process.Pid) + line)
}

// newCustomer makes a customer's machine. Its addresses are 10.99.N.2 and fd99:N::2.
func newCustomer(tb testing.TB) *customer {
	tb.Helper()
	c := &customer{n: int(customers.Add(1)), dir: tb.TempDir()}
	c.holder = exec.Command("sleep", "infinity")
	c.holder.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	must(tb, c.holder.Start())
	tb.Cleanup(func() { _ = c.holder.Process.Kill(); _ = c.holder.Wait() })
	n := c.n
	for _, line := range []string{
		fmt.Sprintf("ip link add sv%d type veth peer name eth0 netns %d", n, c.holder.Process.Pid),
		fmt.Sprintf("ip addr add 10.99.%d.1/24 dev sv%d", n, n),
		fmt.Sprintf("ip -6 addr add fd99:%x::1/64 dev sv%d nodad", n, n),
		fmt.Sprintf("ip link set sv%d up", n),
	} {
		must(tb, testkit.Command(line))
	}
	for _, line := range []string{
		"ip link set lo up", fmt.Sprintf("ip addr add 10.99.%d.2/24 dev eth0", n), fmt.Sprintf("ip -6 addr add fd99:%x::2/64 dev eth0 nodad", n),
		"ip link set eth0 up", fmt.Sprintf("ip route add default via 10.99.%d.1", n), fmt.Sprintf("ip -6 route add default via fd99:%x::1", n),
	} {
		must(tb, c.run(line))
	}
	c.boot(tb)
	return c
}

// boot starts the customer's charon. It speaks from any ports, as if behind a NAT with others.
func (c *customer) boot(tb testing.TB) {
	tb.Helper()
	conf := fmt.Sprintf(`charon-systemd {
  load = random nonce pem openssl kdf ml kernel-libipsec kernel-netlink socket-default vici eap-identity eap-mschapv2
  retransmit_timeout = 0.5
  retransmit_tries = 3
  port = 0
  port_nat_t = 0
  journal {
    default = -1
  }
  filelog {
    %[1]s/log {
      default = 1
      ike = 2
      flush_line = yes
    }
  }
  plugins {
    vici {
      socket = unix://%[1]s/vici
    }
    kernel-netlink {
      fwmark = !0x42
    }
    socket-default {
      fwmark = 0x42
    }
    kernel-libipsec {
      allow_peer_ts = yes
    }
  }
}
`, c.dir)
	must(tb, os.WriteFile(c.dir+"/conf", []byte(conf), 0o600))
	c.charon = exec.Command("nsenter", "-n", "-t", strconv.Itoa(c.holder.Process.Pid), "/usr/sbin/charon-systemd", "--customer")
	c.charon.Env = []string{"STRONGSWAN_CONF=" + c.dir + "/conf"}
	c.charon.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	must(tb, c.charon.Start())
	tb.Cleanup(c.kill)
	var err error
	testkit.Eventually(tb, 10*time.Second, func() bool {
		c.vici, err = vici.Dial(tb.Context(), c.dir+"/vici")
		return err == nil
	}, func() string { return fmt.Sprint("customer's charon: ", err) })
	tb.Cleanup(c.vici.Close)
	block, _ := pem.Decode([]byte(credentials().CA))
	c.call(tb, "load-cert", new(vici.Message).Set("type", "X509").Set("flag", "CA").Set("data", string(block.Bytes)))
}

func (c *customer) kill() {
	_ = c.charon.Process.Kill()
	_ = c.charon.Wait()
}

func (c *customer) call(tb testing.TB, name string, m *vici.Message) {
	tb.Helper()
	if _, err := c.vici.Call(tb.Context(), name, m); err != nil {
		tb.Fatalf("%s: %v: %s", name, err, c.log())
	}
}

func (c *customer) log() string {
	b, _ := os.ReadFile(c.dir + "/log")
	return string(b)
}

// Proposals of customers.
var modern = []string{"aes256gcm16-prfsha384-x25519", "aes256gcm16-x25519"}

// connect logs in. Pairs in more are further settings of the connection.
func (c *customer) connect(tb testing.TB, user, pass string, proposals []string, more ...string) error {
	tb.Helper()
	c.user = user
	c.call(tb, "load-shared", new(vici.Message).Set("id", "eap").Set("type", "EAP").Set("data", pass).SetList("owners", user))
	remote := fmt.Sprintf("10.99.%d.1", c.n)
	conn := new(vici.Message).Set("version", "2")
	for i := 0; i < len(more); i += 2 {
		if more[i] == "remote" {
			remote = more[i+1]
		} else {
			conn.Set(more[i], more[i+1])
		}
	}
	conn.SetList("remote_addrs", remote).SetList("proposals", proposals[0]).SetList("vips", "0.0.0.0", "::").
		SetSection("local", new(vici.Message).Set("auth", "eap-mschapv2").Set("eap_id", user).Set("id", "keyid:customer")).
		SetSection("remote", new(vici.Message).Set("auth", "pubkey").Set("id", serverName)).
		SetSection("children", new(vici.Message).SetSection("net", new(vici.Message).
			SetList("remote_ts", "0.0.0.0/0", "::/0").SetList("esp_proposals", proposals[1])))
	c.call(tb, "load-conn", new(vici.Message).SetSection("lethe", conn))
	_, err := c.vici.Call(tb.Context(), "initiate", new(vici.Message).Set("child", "net").Set("timeout", "8000"))
	return err
}

// up logs in and fails the test if that fails.
func (c *customer) up(tb testing.TB, more ...string) {
	tb.Helper()
	if err := c.connect(tb, "marked-canary-name", password, modern, more...); err != nil {
		tb.Fatalf("%v: %s", err, c.log())
	}
}

// leave logs out.
func (c *customer) leave(tb testing.TB) {
	tb.Helper()
	c.call(tb, "terminate", new(vici.Message).Set("ike", "lethe").Set("timeout", "3000"))
}

// sa returns the number of the customer's IKE SA.
func (c *customer) sa(tb testing.TB) (id string) {
	tb.Helper()
	must(tb, c.vici.Stream(tb.Context(), "list-sas", "list-sa", nil, func(m *vici.Message) {
		if s := m.Section("lethe"); s.Get("state") == "ESTABLISHED" {
			id = s.Get("uniqueid")
		}
	}))
	return id
}

// roam changes the customer's address from one number to another.
func (c *customer) roam(tb testing.TB, from, to int) {
	tb.Helper()
	must(tb, c.run(fmt.Sprintf("ip addr del 10.99.%d.%d/24 dev eth0", c.n, from)))
	must(tb, c.run(fmt.Sprintf("ip addr add 10.99.%d.%d/24 dev eth0", c.n, to)))
	must(tb, c.run(fmt.Sprintf("ip route add default via 10.99.%d.1", c.n)))
}

// ping sends packets through the tunnel to the server's own tunnel addresses.
func (c *customer) ping(tb testing.TB) {
	tb.Helper()
	nets := session.SubnetsOf(daemonID)
	for _, p := range []netip.Prefix{nets.V4, nets.V6} {
		if err := c.run("ping -q -i 0.05 -c 3 -W 2 " + p.Addr().Next().String()); err != nil {
			tb.Errorf("%v: %s", err, c.log())
		}
	}
}

func (c *customer) says(what string) bool { return strings.Contains(c.log(), what) }
