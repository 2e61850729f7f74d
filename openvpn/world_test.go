package openvpn_test

import (
	"bufio"
	"context"
	"crypto/x509"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"lethe/event"
	"lethe/fault"
	"lethe/internal/testkit"
	"lethe/lab/pki"
	"lethe/location"
	"lethe/openvpn"
	"lethe/private"
	"lethe/protocol"
	"lethe/session"
	"lethe/spec"
)

// The tests run in a network namespace of their own, which TestMain makes by starting the test
// binary again; customers run in another one, held by a child process. Both are nameless and end
// with the processes.
const nested = "LETHE_OPENVPN_TEST"

func TestMain(m *testing.M) {
	switch {
	case strings.HasPrefix(os.Getenv(nested), "fake-"):
		fakeMain(strings.TrimPrefix(os.Getenv(nested), "fake-"))
		os.Exit(0)
	case os.Getenv(nested) == "agent":
		os.Exit(agentMain())
	case os.Getenv(nested) != "":
		// Mounts of the tests stay with them.
		if err := testkit.OwnMounts(); err != nil {
			fmt.Fprintln(os.Stderr, "mount namespace for the tests:", err)
			os.Exit(1)
		}
		os.Exit(m.Run())
	case os.Geteuid() != 0:
		os.Exit(m.Run())
	}
	os.Exit(testkit.InNamespaces(nested, commandLine))
}

const (
	uid      = 64999
	outer4   = "10.99.0.1"
	outer6   = "fd99::1"
	udpPort  = 21194
	tcpPort  = 20443
	password = "correct horse"
)

var customers struct {
	once sync.Once
	pid  int
	err  error
}

// namespace returns the process that holds the customers' network namespace.
func namespace(tb testing.TB) string {
	tb.Helper()
	if os.Geteuid() != 0 {
		tb.Skip("needs root for network namespaces and tunnels")
	}
	customers.once.Do(func() {
		cmd := exec.Command("sleep", "infinity")
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
		if customers.err = cmd.Start(); customers.err != nil {
			return
		}
		customers.pid = cmd.Process.Pid
		pid := strconv.Itoa(customers.pid)
		for _, line := range []string{
			"ip link set lo up", "ip link add ov0 type veth peer name ov1 netns " + pid,
			"ip addr add " + outer4 + "/24 dev ov0", "ip -6 addr add " + outer6 + "/64 dev ov0 nodad", "ip link set ov0 up",
			"nsenter -n -t " + pid + " ip link set lo up", "nsenter -n -t " + pid + " ip addr add 10.99.0.2/24 dev ov1",
			"nsenter -n -t " + pid + " ip -6 addr add fd99::2/64 dev ov1 nodad", "nsenter -n -t " + pid + " ip link set ov1 up",
		} {
			if err := testkit.Command(line); err != nil {
				customers.err = err
				return
			}
		}
	})
	if customers.err != nil {
		tb.Fatal(customers.err)
	}
	return strconv.Itoa(customers.pid)
}

// credentials are a server's, made once.
var credentials = sync.OnceValue(func() (c struct {
	ca, tlsCrypt     string
	server, customer pki.Pair
}) {
	ca, err := pki.NewAuthority("test CA")
	if err == nil {
		c.server, err = ca.IssueVPN("nl-ams-1")
	}
	if err == nil {
		c.customer, err = ca.Issue("customer", x509.ExtKeyUsageClientAuth, nil)
	}
	if err != nil {
		panic(err)
	}
	c.ca, c.tlsCrypt = ca.PEM, pki.NewTLSCrypt()
	return c
})

// core is a session.Core in memory. It keeps a journal of the calls, without names.
type core struct {
	told testkit.Journal

	mu     sync.Mutex
	refuse error
	logins []session.Login
	live   map[session.Ref]session.Grant
	next   int
}

func newCore() *core {
	return &core{live: map[session.Ref]session.Grant{}}
}

func (c *core) check(pass private.Value[string]) error {
	if c.refuse != nil {
		return c.refuse
	}
	if pass.Reveal() != password {
		return fault.New(fault.Unauthenticated, "wrong user name or password")
	}
	return nil
}

func (c *core) Admit(ref session.Ref, in session.Login) (session.Grant, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.logins = append(c.logins, in)
	if err := c.check(in.Password); err != nil {
		c.told.Note("refuse %d", ref.Daemon)
		return session.Grant{}, err
	}
	nets := session.SubnetsOf(ref.Daemon)
	c.next++
	g := session.Grant{V4: nth(nets.V4, 100+c.next), V6: nth(nets.V6, 100+c.next)}
	c.live[ref] = g
	c.told.Note("admit %d", ref.Daemon)
	return g, nil
}

func nth(p netip.Prefix, n int) netip.Addr {
	a := p.Addr()
	for range n {
		a = a.Next()
	}
	return a
}

func (c *core) Renew(ref session.Ref, user, pass private.Value[string]) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.told.Note("renew %d", ref.Daemon)
	if _, ok := c.live[ref]; !ok {
		return fault.New(fault.Unauthenticated, "no such session")
	}
	return c.check(pass)
}

func (c *core) Established(ref session.Ref) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.told.Note("established %d", ref.Daemon)
}

func (c *core) End(ref session.Ref) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.live[ref]; ok {
		delete(c.live, ref)
		c.told.Note("end %d", ref.Daemon)
	}
}

func (c *core) Resume(d uint8, live []session.Live) {
	c.mu.Lock()
	defer c.mu.Unlock()
	keep := map[session.Ref]session.Grant{}
	for _, l := range live {
		keep[session.Ref{Daemon: d, Client: l.Client}] = session.Grant{V4: l.V4}
	}
	for ref := range c.live {
		if _, ok := keep[ref]; ref.Daemon == d && !ok {
			delete(c.live, ref)
			c.told.Note("end %d", d)
		}
	}
	for ref, g := range keep {
		c.live[ref] = g
	}
	c.told.Note("resume %d %d", d, len(live))
}

func (c *core) Reset(d uint8) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for ref := range c.live {
		if ref.Daemon == d {
			delete(c.live, ref)
			c.told.Note("end %d", d)
		}
	}
	c.told.Note("reset %d", d)
}

// only returns the one live session.
func (c *core) only(tb testing.TB) (session.Ref, session.Grant) {
	tb.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.live) != 1 {
		tb.Fatalf("%d live sessions, want 1: %q", len(c.live), c.told.Entries())
	}
	for ref, g := range c.live {
		return ref, g
	}
	panic("unreachable")
}

func (c *core) setRefuse(err error) {
	c.mu.Lock()
	c.refuse = err
	c.mu.Unlock()
}

// server is a running openvpn.Server.
type server struct {
	*openvpn.Server
	core *core
	cfg  openvpn.Config
	log  *testkit.Log
	stop func() // ends Run and waits; may be called again
}

// commandLine is that of the servers' processes (proc_pid_cmdline(5)). Asking their management sockets
// who they are would disturb them: OpenVPN serves one connection at a time.
const commandLine = "/usr/sbin/openvpn\x00--config\x00stdin\x00"

func runtimeDir(tb testing.TB) string {
	tb.Helper()
	dir, err := os.MkdirTemp("", "lethe-ov-")
	if err == nil {
		err = os.Chmod(dir, 0o711)
	}
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { testkit.Reap(commandLine); _ = os.RemoveAll(dir) })
	return dir
}

func config(dir string) openvpn.Config {
	c := credentials()
	node := spec.Default()
	node.KeepaliveSeconds = 1
	return openvpn.Config{
		RuntimeDir: dir, UID: uid, GID: uid, Node: func() spec.Node { return node },
		Transports:  []openvpn.Transport{{Protocol: protocol.OpenVPNUDP, Alone: udpPort, Port: udpPort, Processes: 1}, {Protocol: protocol.OpenVPNTCP, Alone: tcpPort, Port: tcpPort, Processes: 1}},
		Certificate: private.Of(c.server.Certificate), Key: private.Of(c.server.Key), TLSCrypt: private.Of(c.tlsCrypt),
	}
}

// start runs a server until the end of the test.
func start(tb testing.TB, cfg openvpn.Config, c *core) *server {
	tb.Helper()
	namespace(tb)
	s := &server{core: c, cfg: cfg, log: new(testkit.Log)}
	var err error
	if s.Server, err = openvpn.New(cfg, c, event.New(s.log)); err != nil {
		tb.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	s.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			tb.Errorf("run: %v", err)
		}
		if cfg.Binary == "" && strings.Contains(s.log.String(), "mumbled") {
			tb.Errorf("OpenVPN is not silent: %s", s.log)
		}
	})
	tb.Cleanup(s.stop)
	for _, in := range s.Instances() {
		if cfg.Binary != "" {
			break // not a real one
		}
		testkit.Eventually(tb, 10*time.Second, func() bool { return bound(in) }, func() string { return "no listener: " + s.log.String() })
	}
	return s
}

// bound reports whether somebody listens on an instance's port.
func bound(in openvpn.Instance) bool {
	file := map[protocol.ID]string{protocol.OpenVPNUDP: "/proc/net/udp6", protocol.OpenVPNTCP: "/proc/net/tcp6"}[in.Protocol]
	b, _ := os.ReadFile(file)
	return strings.Contains(string(b), fmt.Sprintf("00000000:%04X 0000", in.Port))
}

func directory() location.Server {
	c := credentials()
	return location.Server{
		ID: "nl-ams-1", Location: 1, CA: c.ca, TLSCrypt: c.tlsCrypt,
		Addresses: []netip.Addr{netip.MustParseAddr(outer4)},
		Endpoints: []location.Endpoint{{Protocol: protocol.OpenVPNUDP, Port: udpPort}, {Protocol: protocol.OpenVPNTCP, Port: tcpPort}},
	}
}

// customer is a running openvpn client.
type customer struct {
	cmd   *exec.Cmd
	dev   string
	begun time.Time

	mu   sync.Mutex
	out  []string
	done chan struct{}
}

var devices struct {
	sync.Mutex
	n int
}

// connect starts a client. It does not wait.
func connect(tb testing.TB, p protocol.ID, user, pass string, extra ...string) *customer {
	tb.Helper()
	devices.Lock()
	devices.n++
	dev := fmt.Sprintf("ovc%d", devices.n)
	devices.Unlock()
	file := filepath.Join(tb.TempDir(), "credentials")
	if err := os.WriteFile(file, []byte(user+"\n"+pass+"\n"), 0o600); err != nil {
		tb.Fatal(err)
	}
	return connectTo(tb, p, ports[p], dev, append([]string{"auth-user-pass " + file}, extra...)...)
}

var ports = map[protocol.ID]uint16{protocol.OpenVPNUDP: udpPort, protocol.OpenVPNTCP: tcpPort}

// connectTo starts a client for any server on a port.
func connectTo(tb testing.TB, p protocol.ID, port uint16, dev string, extra ...string) *customer {
	tb.Helper()
	text, err := openvpn.ClientConfig(directory(), location.Endpoint{Protocol: p, Port: port}, append([]string{
		"dev-type tun", "dev " + dev, "verb 3", "suppress-timestamps", "connect-retry 1 1",
		"pull-filter ignore redirect-gateway", "pull-filter ignore route-ipv6",
	}, extra...)...)
	if err != nil {
		tb.Fatal(err)
	}
	text = strings.NewReplacer("dev tun\n", "", "auth-user-pass\n", "").Replace(text)
	if strings.Contains(text, "\nlport ") {
		text = strings.Replace(text, "nobind\n", "", 1)
	}
	return startClient(tb, dev, text)
}

func startClient(tb testing.TB, dev, text string) *customer {
	tb.Helper()
	c := &customer{dev: dev, done: make(chan struct{})}
	c.cmd = exec.Command("nsenter", "-n", "-t", namespace(tb), "openvpn", "--config", "stdin")
	c.cmd.Stdin = strings.NewReader(text)
	r, w := io.Pipe()
	c.cmd.Stdout, c.cmd.Stderr = w, w
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	c.begun = time.Now()
	if err := c.cmd.Start(); err != nil {
		tb.Fatal(err)
	}
	go func() {
		defer close(c.done)
		for sc := bufio.NewScanner(r); sc.Scan(); {
			c.mu.Lock()
			c.out = append(c.out, fmt.Sprintf("%6.1f ", float64(time.Since(c.begun).Microseconds())/1000)+sc.Text())
			c.mu.Unlock()
		}
	}()
	go func() { _ = c.cmd.Wait(); _ = w.Close() }()
	tb.Cleanup(func() { c.signal(syscall.SIGKILL); <-c.done })
	return c
}

func (c *customer) signal(s syscall.Signal) { _ = c.cmd.Process.Signal(s) }

func (c *customer) says(what string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, l := range c.out {
		if strings.Contains(l, what) {
			return true
		}
	}
	return false
}

func (c *customer) text() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return strings.Join(c.out, "\n")
}

func (c *customer) await(tb testing.TB, what string, limit time.Duration) time.Duration {
	tb.Helper()
	testkit.Eventually(tb, limit, func() bool { return c.says(what) }, func() string { return "client does not say " + what + ":\n" + c.text() })
	return time.Since(c.begun)
}

const up = "Initialization Sequence Completed"

// ping sends packets through the tunnel.
func (c *customer) ping(tb testing.TB, to netip.Addr) error {
	tb.Helper()
	return testkit.Command("nsenter -n -t " + namespace(tb) + " ping -q -i 0.05 -c 3 -W 2 -I " + c.dev + " " + to.String())
}
