package client_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"lethe/account"
	"lethe/client"
	"lethe/internal/testkit"
	"lethe/location"
	"lethe/private"
	"lethe/protocol"
)

// asProgram makes the test binary behave as the program lethe, so that the helper runs as a process
// of its own, with its own network namespace and its own death.
const asProgram = "LETHE_TEST_AS_PROGRAM"

func TestMain(m *testing.M) {
	if mode := os.Getenv(asCharon); mode != "" {
		charonMain(mode)
		os.Exit(0)
	}
	if dir := os.Getenv(asServer); dir != "" {
		if err := serverMain(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if os.Getenv(asProgram) == "" {
		os.Exit(m.Run())
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := client.Run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr, os.Getenv)
	stop()
	os.Exit(code)
}

// The addresses of the test's internet.
const (
	customerV4, routerV4 = "203.0.113.2", "203.0.113.1"
	customerV6, routerV6 = "2001:db8:1::2", "2001:db8:1::1"
	vpnV4, vpnV6         = "198.51.100.21", "2001:db8:2::21"
	webV4, webV6         = "198.51.100.80", "2001:db8:2::80"
)

const (
	vpnUser, vpnPassword = "c4naryuser2345ab", `c4nary"pass\word 2345`
)

// rig is a customer machine, an internet with a web site and a resolver, and a VPN server.
type rig struct {
	t            testing.TB
	dir          string
	client       string // namespace of the customer machine
	inet         string // namespace of everything else
	resolv       string // the customer machine's resolv.conf
	resolvBefore []byte
	server       location.Server
	helper       *exec.Cmd
	openTun      bool // /dev/net/tun may be opened by everybody
	vpn          map[string]*exec.Cmd
	asked        atomic.Int64 // DNS questions answered
}

var rigs atomic.Int64

func newRig(t testing.TB) *rig {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root for network namespaces")
	}
	for _, tool := range []string{"ip", "nft", "openvpn"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skip("needs " + tool)
		}
	}
	n := rigs.Add(1)
	dir, err := os.MkdirTemp("", "lethe-cl-")
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{
		t: t, dir: dir, vpn: map[string]*exec.Cmd{},
		client: fmt.Sprintf("lethe-cl-%d-%dc", os.Getpid(), n), inet: fmt.Sprintf("lethe-cl-%d-%di", os.Getpid(), n),
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, ns := range []string{r.client, r.inet} {
		r.ip("netns add " + ns)
		t.Cleanup(func() { r.ip("netns del " + ns) })
		r.ip("-n " + ns + " link set lo up")
	}
	r.ip("link add c0 netns " + r.client + " type veth peer name i0 netns " + r.inet)
	for ns, link := range map[string]string{r.client: "c0", r.inet: "i0"} { // no waiting for duplicate addresses
		r.sh(ns, "echo 0 > /proc/sys/net/ipv6/conf/"+link+"/accept_dad")
	}
	for _, c := range []string{
		"addr add " + routerV4 + "/24 dev i0", "addr add " + routerV6 + "/64 dev i0 nodad", "link set i0 up",
		"addr add " + vpnV4 + "/32 dev lo", "addr add " + vpnV6 + "/128 dev lo nodad",
		"addr add " + webV4 + "/32 dev lo", "addr add " + webV6 + "/128 dev lo nodad",
	} {
		r.ip("-n " + r.inet + " " + c)
	}
	r.plug()
	r.eventually(2*time.Second, "the uplink has its own address", func() bool {
		return strings.Contains(r.ip("-n "+r.client+" -6 route show table all"), "local fe80")
	})
	r.resolv = filepath.Join(dir, "resolv.conf")
	r.resolvBefore = []byte("# the customer's own \n\nnameserver " + webV4 + "\noptions timeout:1\n")
	r.write(r.resolv, r.resolvBefore, 0o755) // as some machines have it
	r.serveWeb()
	r.serveDNS()
	r.makeServer()
	return r
}

// plug sets the customer's uplink up, as after pulling and plugging the cable.
func (r *rig) plug() {
	for _, c := range []string{
		"addr replace " + customerV4 + "/24 dev c0", "addr replace " + customerV6 + "/64 dev c0 nodad", "link set c0 up",
		"route replace default via " + routerV4, "-6 route replace default via " + routerV6,
	} {
		r.ip("-n " + r.client + " " + c)
	}
}

func (r *rig) ip(args string) string {
	r.t.Helper()
	out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput()
	if err != nil {
		r.t.Fatalf("ip %s: %v: %s", args, err, out)
	}
	return string(out)
}

// sh runs a shell script in a namespace.
func (r *rig) sh(ns, script string) string {
	r.t.Helper()
	out, err := exec.Command("ip", "netns", "exec", ns, "sh", "-ec", script).CombinedOutput()
	if err != nil {
		r.t.Fatalf("%s: %v: %s", script, err, out)
	}
	return string(out)
}

func (r *rig) write(path string, content []byte, mode os.FileMode) {
	r.t.Helper()
	if err := os.WriteFile(path, content, mode); err != nil {
		r.t.Fatal(err)
	}
}

// in runs f on a thread inside a namespace. Sockets that it makes stay there.
func (r *rig) in(ns string, f func()) {
	r.t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		h, err := netns.GetFromName(ns)
		if err == nil {
			err = netns.Set(h)
			h.Close()
		}
		if err == nil {
			f()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		r.t.Fatal(err)
	}
}

// serveWeb answers every request with the visitor's address.
func (r *rig) serveWeb() {
	r.in(r.inet, func() {
		l, err := net.Listen("tcp", ":80")
		if err != nil {
			r.t.Error(err)
			return
		}
		s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
			host, _, _ := net.SplitHostPort(q.RemoteAddr)
			_, _ = io.WriteString(w, host)
		})}
		go func() { _ = s.Serve(l) }()
		r.t.Cleanup(func() { s.Close() })
	})
}

// serveDNS answers every question for an address with the web site's.
func (r *rig) serveDNS() {
	r.in(r.inet, func() {
		c, err := net.ListenPacket("udp", ":53")
		if err != nil {
			r.t.Error(err)
			return
		}
		s := &dns.Server{PacketConn: c, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
			r.asked.Add(1)
			m := new(dns.Msg).SetReply(q)
			rr, _ := dns.NewRR(q.Question[0].Name + " 1 A " + webV4)
			m.Answer = append(m.Answer, rr)
			_ = w.WriteMsg(m)
		})}
		go func() { _ = s.ActivateAndServe() }()
		r.t.Cleanup(func() { _ = s.Shutdown() })
	})
}

func pemOf(kind string, der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
}

// makeServer makes keys, certificates and configuration of the VPN server and starts it.
func (r *rig) makeServer() {
	r.t.Helper()
	s, certificate, key := newServer(r.t)
	r.server = s
	for name, content := range map[string]string{"ca": s.CA, "cert": certificate, "key": key, "tc": s.TLSCrypt} {
		r.write(filepath.Join(r.dir, name), []byte(content), 0o600)
	}
	r.write(filepath.Join(r.dir, "verify"), []byte(`#!/bin/sh
{ read -r user; read -r pass; } < "$1"
case "$pass" in
'`+vpnPassword+`') exit 0 ;;
late) [ -e '`+r.dir+`/learned' ] && exit 0 ;;
expired) echo licence-expired > "$auth_failed_reason_file"; exit 1 ;;
later) echo 'TEMP[backoff 1]:full' > "$auth_failed_reason_file"; exit 1 ;;
esac
exit 1
`), 0o700)
	r.startVPN("udp")
	r.startVPN("tcp")
}

func (r *rig) startVPN(proto string, extra ...string) {
	r.t.Helper()
	port, subnet, proto6 := "1194", "64", "udp6"
	if proto == "tcp" {
		port, subnet, proto6 = "443", "65", "tcp6-server"
	}
	cmd := exec.Command("ip", append(strings.Fields("netns exec "+r.inet+" openvpn --dev tun-"+proto+" --dev-type tun --proto "+proto6+" --port "+port+
		" --topology subnet --server 10."+subnet+".0.0 255.255.0.0 --ca ca --cert cert --key key --dh none --tls-crypt tc"+
		" --verify-client-cert none --username-as-common-name --duplicate-cn --script-security 2 --auth-user-pass-verify "+r.dir+"/verify via-file"+
		" --tls-version-min 1.3 --data-ciphers AES-256-GCM:CHACHA20-POLY1305 --keepalive 1 4 --verb 3 --log "+r.dir+"/vpn-"+proto+".log"), extra...)...)
	if !strings.Contains(strings.Join(extra, " "), "no-v6") {
		cmd.Args = append(cmd.Args, "--server-ipv6", "fd6c:6574:6865:"+subnet+"::/112", "--push", "dhcp-option DNS fd6c:6574:6865:"+subnet+"::1")
	} else {
		cmd.Args = cmd.Args[:len(cmd.Args)-1]
	}
	if proto == "udp" {
		cmd.Args = append(cmd.Args, "--multihome") // the answer comes from the address that was asked
	}
	// Routes and orders that the app must not obey.
	cmd.Args = append(cmd.Args, "--push", "dhcp-option DNS 10."+subnet+".0.1", "--push", "redirect-gateway def1 ipv6",
		"--push", "route 198.51.100.80 255.255.255.255 net_gateway")
	cmd.Dir = r.dir
	if err := cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	r.vpn[proto] = cmd
	r.t.Cleanup(func() { end(cmd) })
	r.eventually(5*time.Second, "the VPN server listens", func() bool {
		b, _ := os.ReadFile(filepath.Join(r.dir, "vpn-"+proto+".log"))
		return bytes.Contains(b, []byte("Initialization Sequence Completed"))
	})
}

func end(cmd *exec.Cmd) {
	if cmd.ProcessState == nil {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
}

// newServer returns a server's entry in the directory, and its certificate and key.
func newServer(t testing.TB) (s location.Server, certificate, key string) {
	t.Helper()
	make1 := func(template, parent *x509.Certificate, signer *ecdsa.PrivateKey) (*x509.Certificate, *ecdsa.PrivateKey) {
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		template.SerialNumber, template.NotBefore, template.NotAfter = big.NewInt(1), time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
		if parent == nil {
			parent, signer = template, k
		}
		der, err := x509.CreateCertificate(rand.Reader, template, parent, k.Public(), signer)
		if err != nil {
			t.Fatal(err)
		}
		c, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		return c, k
	}
	ca, caKey := make1(&x509.Certificate{Subject: pkix.Name{CommonName: "ca"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}, nil, nil)
	leaf, leafKey := make1(&x509.Certificate{
		Subject: pkix.Name{CommonName: "nl-ams-1"}, DNSNames: []string{"nl-ams-1"}, KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}, ca, caKey)
	der, err := x509.MarshalPKCS8PrivateKey(leafKey)
	if err != nil {
		t.Fatal(err)
	}
	var static strings.Builder
	static.WriteString("-----BEGIN OpenVPN Static key V1-----\n")
	for range 16 {
		b := make([]byte, 16)
		_, _ = rand.Read(b)
		static.WriteString(hex.EncodeToString(b) + "\n")
	}
	static.WriteString("-----END OpenVPN Static key V1-----\n")
	return location.Server{
		ID: "nl-ams-1", Location: 1, Enabled: true, Addresses: []netip.Addr{netip.MustParseAddr(vpnV4), netip.MustParseAddr(vpnV6)},
		Endpoints: []location.Endpoint{{Protocol: protocol.OpenVPNTCP, Port: 443}, {Protocol: protocol.OpenVPNUDP, Port: 1194}},
		CA:        pemOf("CERTIFICATE", ca.Raw), TLSCrypt: "# a comment\n" + static.String(),
	}, pemOf("CERTIFICATE", leaf.Raw), pemOf("PRIVATE KEY", der)
}

var amsterdam = location.Location{ID: 1, Code: "nl-ams", Country: "NL", City: "Amsterdam"}

func credential(password string) account.Credential {
	return account.Credential{Username: private.Of(vpnUser), Password: private.Of(password)}
}

// target is a request's target on the rig's server.
func (r *rig) target(transport client.Transport, password string) *client.Target {
	return &client.Target{Location: amsterdam, Servers: []location.Server{r.server}, Transport: transport, Credential: credential(password)}
}

func (r *rig) socket() string { return filepath.Join(r.dir, "run", "helper.sock") }

// unitCaps are the capabilities of the service unit in doc/app.md.
const unitCaps = "-all,+net_admin,+net_raw,+setuid,+setgid,+setpcap,+chown,+dac_override,+kill,+sys_resource"

// program returns a command that runs lethe on the customer machine.
func (r *rig) program(args ...string) *exec.Cmd {
	self, err := os.Executable()
	if err != nil {
		r.t.Fatal(err)
	}
	script := `mount --bind "$RESOLV" /etc/resolv.conf; mount --bind "$TUN" /dev/net/tun; exec "$@"`
	mode := uint32(0o600)
	if r.openTun {
		script = strings.Replace(script, "exec", "exec setpriv --no-new-privs --bounding-set="+unitCaps, 1)
		mode = 0o666
	}
	node := filepath.Join(r.dir, fmt.Sprintf("tun-%o", mode))
	if err := unix.Mknod(node, unix.S_IFCHR|mode, int(unix.Mkdev(10, 200))); err != nil && !errors.Is(err, os.ErrExist) {
		r.t.Fatal(err)
	}
	if err := os.Chmod(node, os.FileMode(mode)); err != nil {
		r.t.Fatal(err)
	}
	cmd := exec.Command("ip", append([]string{"netns", "exec", r.client, "sh", "-c", script, "sh", self}, args...)...)
	cmd.Env = append(os.Environ(), asProgram+"=1", "GORACE=atexit_sleep_ms=0", "RESOLV="+r.resolv, "RUNTIME_DIRECTORY="+r.dir+"/run", "STATE_DIRECTORY="+r.dir+"/state", "TUN="+node)
	return cmd
}

// startHelper starts the helper as a process and waits until it answers.
func (r *rig) startHelper(extra ...string) {
	r.t.Helper()
	var log testkit.Log
	cmd := r.program(append([]string{"helper"}, extra...)...)
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	r.helper = cmd
	r.t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
		if strings.Contains(log.String(), "DATA RACE") || strings.Contains(log.String(), "panic") || strings.Contains(log.String(), "trouble") || r.t.Failed() {
			r.t.Fail()
			r.t.Logf("helper said: %s", log.String())
		}
	})
	r.eventually(5*time.Second, "the helper answers", func() bool {
		_, err := client.Call(r.t.Context(), r.socket(), client.Request{Op: client.OpStatus})
		return err == nil
	})
}

// killHelper kills the helper with SIGKILL and waits for its end.
func (r *rig) killHelper() {
	_ = r.helper.Process.Kill()
	_ = r.helper.Wait()
}

// call sends a request to the helper and fails the test on an error.
func (r *rig) call(q client.Request) client.Status {
	r.t.Helper()
	s, err := client.Call(r.t.Context(), r.socket(), q)
	if err != nil {
		r.t.Fatalf("%s: %v", q.Op, err)
	}
	return s
}

// connect connects and waits for the state wanted.
func (r *rig) connect(transport client.Transport, password string, want client.State) client.Status {
	r.t.Helper()
	r.call(client.Request{Op: client.OpConnect, Target: r.target(transport, password)})
	return r.await(want)
}

// await waits for a state.
func (r *rig) await(want client.State) (last client.Status) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), 20*time.Second)
	defer cancel()
	err := client.Watch(ctx, r.socket(), client.Request{Op: client.OpWatch}, func(s client.Status) bool {
		last = s
		return s.State != want
	})
	if err != nil {
		r.t.Fatalf("waiting for %s: %v; last %+v", want, err, last)
	}
	return last
}

func (r *rig) eventually(limit time.Duration, what string, ok func() bool) {
	r.t.Helper()
	for deadline := time.Now().Add(limit); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			r.t.Fatalf("not within %s: %s", limit, what)
		}
	}
}

// visit fetches the web site from the customer machine and returns the address that it saw.
func (r *rig) visit(site string) (seen string, err error) {
	r.in(r.client, func() {
		var conn net.Conn
		if conn, err = net.DialTimeout("tcp", net.JoinHostPort(site, "80"), 2*time.Second); err != nil {
			return
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(2 * time.Second))
		_, _ = io.WriteString(conn, "GET / HTTP/1.0\r\n\r\n")
		var b []byte
		b, err = io.ReadAll(conn)
		_, seen, _ = strings.Cut(string(b), "\r\n\r\n")
	})
	return seen, err
}

// ask sends a DNS question from the customer machine to a resolver.
func (r *rig) ask(server string) (err error) {
	r.in(r.client, func() {
		c := dns.Client{Timeout: time.Second}
		_, _, err = c.Exchange(new(dns.Msg).SetQuestion("c4nary.example.", dns.TypeA), net.JoinHostPort(server, "53"))
	})
	return err
}

// machine is what the customer machine's kernel and files hold that the helper may change.
func (r *rig) machine() string {
	var b strings.Builder
	for _, c := range []string{"rule", "-6 rule", "route show table all", "-6 route show table all", "addr show dev lo"} {
		b.WriteString(r.ip("-n " + r.client + " " + c))
	}
	b.WriteString(r.sh(r.client, "nft list ruleset; cd /proc/sys/net/ipv4/conf/all; cat src_valid_mark arp_ignore; ls /sys/class/net"))
	resolv, err := os.ReadFile(r.resolv)
	if err != nil {
		r.t.Fatal(err)
	}
	fi, err := os.Stat(r.resolv)
	if err != nil {
		r.t.Fatal(err)
	}
	fmt.Fprintf(&b, "%s\n%s", fi.Mode(), resolv)
	files, err := os.ReadDir(filepath.Join(r.dir, "state"))
	for _, f := range files {
		b.WriteString(f.Name() + "\n")
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		r.t.Fatal(err)
	}
	return b.String()
}
