package test

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"lethe/lab"
	"lethe/private"
)

func privatePassword() private.Value[string] { return private.Of(password) }

// process is one process of ours on a machine.
type process struct {
	name string
	rss  int // KiB
}

// processes returns the processes of ours on a machine by id.
func (w *trial) processes(machine string) map[int]process {
	w.t.Helper()
	pids, err := w.Machine(machine).PIDs()
	w.check(err)
	all := map[int]process{}
	for _, pid := range pids {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil {
			continue // it has ended
		}
		p := process{}
		for line := range strings.Lines(string(b)) {
			key, value, _ := strings.Cut(strings.TrimSpace(line), ":")
			switch value = strings.TrimSpace(value); key {
			case "Name":
				p.name = value
			case "VmRSS":
				p.rss, _ = strconv.Atoi(strings.TrimSuffix(value, " kB"))
			}
		}
		if slices.Contains([]string{"lethe", "lethe-control", "lethe-node", "openvpn", "unbound", "charon-systemd"}, p.name) {
			all[pid] = p
		}
	}
	return all
}

// same wants the processes of a machine to be those of before.
func (w *trial) same(machine string, before map[int]process) {
	w.t.Helper()
	for pid, p := range before {
		if now := w.processes(machine)[pid]; now.name != p.name {
			w.t.Errorf("%s: %s has died", machine, p.name)
		}
	}
}

// guests returns how many customers' addresses a server's firewall lets pass.
func (w *trial) guests(server string) int {
	w.t.Helper()
	out, err := w.Machine(server).Run(w.ctx, "nft", "-j", "list", "set", "inet", "lethe", "up4")
	w.check(err)
	var answer struct {
		Nftables []struct {
			Set struct{ Elem []json.RawMessage }
		}
	}
	w.check(json.Unmarshal([]byte(out), &answer))
	n := 0
	for _, e := range answer.Nftables {
		n += len(e.Set.Elem)
	}
	return n
}

// addresses returns the addresses of a machine.
func (w *trial) addresses(machine string) (all []netip.Addr) {
	for _, d := range w.Machine(machine).Addresses {
		all = append(all, d.V4, d.V6)
	}
	return all
}

// scanOutside looks from the internet for what a server has open.
func (w *trial) scanOutside() {
	var ports []uint16
	for p := uint16(1); p <= 1100; p++ {
		ports = append(ports, p)
	}
	ports = append(ports, 1194, 5353, 8443, 20443, 20444, 21194, 21195, 41194)
	hello := w.tlsCrypt().hello(0x0102030405060708)
	for _, server := range serverNames() {
		// The control: daemons do listen, on every address.
		listening, err := w.Machine(server).Run(w.ctx, "ss", "-Hlntu")
		w.check(err)
		for _, want := range []string{":1194 ", ":443 ", ":500 ", ":4500 "} {
			if !strings.Contains(listening, want) {
				w.t.Errorf("%s does not listen on %s:\n%s", server, want, listening)
			}
		}
		for _, a := range w.addresses(server) {
			began := time.Now()
			if open := w.scanTCP(a, ports, 443); !slices.Equal(open, []uint16{443}) {
				w.t.Errorf("%s %s: TCP ports %v are open, want 443 alone", server, a, open)
			}
			open := w.scanUDP(a, ports, 1194, hello)
			// What looks like another version of IKE is answered with ours (RFC 7296, section 2.5), and
			// one hello in some looks so.
			open = slices.DeleteFunc(open, func(port uint16) bool { return port == 500 })
			if !slices.Equal(open, []uint16{1194}) {
				w.t.Errorf("%s %s: UDP ports %v answer, want 1194 alone", server, a, open)
			}
			w.t.Logf("%s: %d TCP and UDP ports in %v", a, len(ports), time.Since(began).Round(time.Millisecond))
		}
	}
}

// scanTCP connects to every port at once. The port sentinel is known to be open:
// when it has answered the last connection, the answers to the earlier ones are there.
func (w *trial) scanTCP(a netip.Addr, ports []uint16, sentinel uint16) (open []uint16) {
	w.t.Helper()
	err := w.Internet().Inside(func() error {
		domain, address := unix.AF_INET6, func(port uint16) unix.Sockaddr { return &unix.SockaddrInet6{Port: int(port), Addr: a.As16()} }
		if a.Is4() {
			domain, address = unix.AF_INET, func(port uint16) unix.Sockaddr { return &unix.SockaddrInet4{Port: int(port), Addr: a.As4()} }
		}
		var polls []unix.PollFd
		for _, port := range append(slices.Clone(ports), sentinel) {
			fd, err := unix.Socket(domain, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			if err := unix.Connect(fd, address(port)); err != nil && !errors.Is(err, unix.EINPROGRESS) && !errors.Is(err, unix.ECONNREFUSED) {
				return err
			}
			polls = append(polls, unix.PollFd{Fd: int32(fd), Events: unix.POLLOUT})
		}
		for end := time.Now().Add(10 * time.Second); ; {
			if n, err := unix.Poll(polls[len(polls)-1:], 100); n == 1 && err == nil {
				break
			} else if time.Now().After(end) {
				return errors.New("the sentinel does not answer")
			}
		}
		for i, port := range ports {
			if n, err := unix.Poll(polls[i:i+1], 0); err != nil || n == 0 {
				continue
			}
			if code, err := unix.GetsockoptInt(int(polls[i].Fd), unix.SOL_SOCKET, unix.SO_ERROR); code == 0 && err == nil {
				open = append(open, port)
			}
		}
		return nil
	})
	w.check(err)
	return open
}

// scanUDP sends a good OpenVPN packet and a DNS question to every port, and to
// the sentinel's last, until that has answered.
func (w *trial) scanUDP(a netip.Addr, ports []uint16, sentinel uint16, hello []byte) (open []uint16) {
	w.t.Helper()
	var c *net.UDPConn
	w.check(w.Internet().Inside(func() (err error) { c, err = net.ListenUDP("udp", nil); return err }))
	defer c.Close()
	question := []byte("\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x05river\x07example\x00\x00\x01\x00\x01")
	answered := map[uint16]bool{}
	b := make([]byte, 2048)
	for end := time.Now().Add(10 * time.Second); !answered[sentinel]; {
		if time.Now().After(end) {
			w.t.Errorf("%s: UDP port %d does not answer", a, sentinel)
			break
		}
		for _, port := range append(slices.Clone(ports), sentinel) {
			for _, p := range [][]byte{question, hello} {
				_, _ = c.WriteToUDPAddrPort(p, netip.AddrPortFrom(a, port)) // a refusal to an earlier one may be told here
			}
		}
		for {
			_ = c.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
			_, from, err := c.ReadFromUDPAddrPort(b)
			if late, ok := err.(net.Error); ok && late.Timeout() {
				break
			}
			if err == nil && from.Addr().Unmap() == a {
				answered[from.Port()] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(answered))
}

// hidden are addresses of networks that nobody should reach through a VPN. The
// test puts them on the router, where a customer without a tunnel reaches them.
func hidden() []string {
	return []string{
		"10.200.0.1", "172.20.0.1", "192.168.77.1", "100.70.0.1", "169.254.169.254", "198.18.0.1",
		"fd00:99::1", "fec0::1", "2002:c0a8:101::1", "64:ff9b::a00:1",
	}
}

// tunnelAddresses returns the addresses of the app's tunnel on a machine.
func (w *trial) tunnelAddresses(i int, device string) (all []netip.Addr) {
	w.t.Helper()
	out, err := w.Customer(i).Run(w.ctx, "ip", "-j", "addr", "show", "dev", device, "scope", "global")
	w.check(err)
	var links []struct {
		Info []struct{ Local netip.Addr } `json:"addr_info"`
	}
	w.check(json.Unmarshal([]byte(out), &links))
	for _, l := range links {
		for _, a := range l.Info {
			if a.Local.IsValid() {
				all = append(all, a.Local)
			}
		}
	}
	if len(all) != 2 {
		w.t.Fatalf("%s has the addresses %v, want two", device, all)
	}
	return all
}

// listen accepts connections on a machine until the test ends.
func (w *trial) listen(m *lab.Machine, address string) {
	w.t.Helper()
	l, err := m.Listen(address)
	w.check(err)
	w.t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_ = c.Close()
		}
	}()
}

// reach tells whether TCP connects from a machine, and how the attempt ended.
func (w *trial) reach(m *lab.Machine, address string) error {
	d := time.Now().Add(4 * time.Second)
	var c net.Conn
	err := m.Inside(func() (err error) {
		c, err = (&net.Dialer{Deadline: d}).DialContext(w.ctx, "tcp", address)
		return err
	})
	if err == nil {
		_ = c.Close()
	}
	return err
}

// scanInside looks out of a tunnel for what is not the internet.
func (w *trial) scanInside() {
	for _, a := range hidden() {
		_, err := w.Internet().Run(w.ctx, "ip", "addr", "add", a, "dev", "lo")
		w.check(err)
		w.t.Cleanup(func() {
			if _, err := w.Internet().Run(deadline(w.t), "ip", "addr", "del", a, "dev", "lo"); err != nil {
				w.t.Error(err)
			}
		})
	}
	for _, port := range []string{"25", "8080"} {
		w.listen(w.Internet(), ":"+port)
	}
	inside, outside := w.Customer(ada), w.Customer(carol)
	at := func(a any, port int) string { return net.JoinHostPort(fmt.Sprint(a), strconv.Itoa(port)) }

	var closed, open []string // through the tunnel
	for _, a := range hidden() {
		closed = append(closed, at(a, 8080))
		if err := w.reach(outside, at(a, 8080)); err != nil {
			w.t.Errorf("without a tunnel: %v", err) // the control
		}
	}
	for _, a := range []netip.Addr{lab.SiteAddr.V4, lab.SiteAddr.V6} {
		closed, open = append(closed, at(a, 25)), append(open, at(a, 8080), at(a, 80))
		if err := w.reach(outside, at(a, 25)); err != nil {
			w.t.Errorf("without a tunnel: %v", err)
		}
		if err := w.reach(inside, at(a, 25)); !errors.Is(err, syscall.ECONNREFUSED) {
			w.t.Errorf("TCP port 25 through the tunnel: %v, want refused", err)
		}
	}
	// Another customer of the same server, who listens.
	for _, a := range w.tunnelAddresses(bob, "lethe-tcp") {
		w.listen(w.Customer(bob), at(a, 8080))
		if err := w.reach(w.Customer(bob), at(a, 8080)); err != nil {
			w.t.Errorf("bob does not reach himself: %v", err)
		}
		closed = append(closed, at(a, 8080))
	}
	// The server itself: by its addresses in the tunnels, on the internet and of the resolver.
	own := append(w.addresses("nl-ams-1"), netip.MustParseAddr("10.63.255.53"), netip.MustParseAddr("fd6c:6574:6865:ffff::53"))
	for d := range 2 {
		own = append(own, netip.MustParseAddr(fmt.Sprintf("10.%d.0.1", 64+d)), netip.MustParseAddr(fmt.Sprintf("fd6c:6574:6865:%x::1", d)))
	}
	for _, a := range own {
		for _, port := range []int{22, 53, 80, 443, 953, 1194, 20443, 21194} {
			if strings.HasSuffix(a.String(), "53") && port == 53 {
				open = append(open, at(a, port))
			} else {
				closed = append(closed, at(a, port))
			}
		}
	}
	var wg sync.WaitGroup
	for _, a := range open {
		wg.Go(func() {
			if err := w.reach(inside, a); err != nil {
				w.t.Errorf("through the tunnel: %v", err)
			}
		})
	}
	for _, a := range closed {
		wg.Go(func() {
			if w.reach(inside, a) == nil {
				w.t.Errorf("%s can be reached through the tunnel", a)
			}
		})
	}
	wg.Wait()
	w.t.Logf("%d addresses closed, %d open", len(closed), len(open))
}

// clientHello returns the first message of a TLS client.
func clientHello() []byte {
	a, b := net.Pipe()
	defer a.Close()
	go func() {
		_ = tls.Client(a, &tls.Config{ServerName: "api.lethe.example"}).Handshake() // nobody answers
	}()
	buf := make([]byte, 4096)
	n, _ := b.Read(buf) // of a pipe: what was written at once
	_ = b.Close()
	return buf[:n]
}

// rubbish returns what is sent to every port: random bytes, OpenVPN packets
// without and with the right wrapper and nonsense in it, TLS, HTTP, SSH, DNS.
func (w *trial) rubbish() [][]byte {
	r := rand.New(rand.NewPCG(1, 2))
	random := func(n int) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		return b
	}
	hello := clientHello()
	all := [][]byte{
		{}, {0}, {0xff}, hello, hello[:len(hello)/2], []byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"), []byte("CONNECT x:443 HTTP/1.1\r\n\r\n"),
		[]byte("SSH-2.0-x\r\n"), bytes.Repeat([]byte{0}, 1400), bytes.Repeat([]byte{0xff}, 1400),
	}
	for _, n := range []int{2, 7, 33, 100, 512, 1200, 1400} {
		all = append(all, random(n))
	}
	crypt := w.tlsCrypt()
	for opcode := range byte(32) {
		all = append(all, append([]byte{opcode << 3}, random(60)...), append([]byte{opcode<<3 | 7}, random(1100)...))
		session := r.Uint64()
		all = append(all, crypt.wrap(opcode, session, 1, random(40)), crypt.wrap(opcode, session, 0xffffffff, nil))
	}
	// A conversation as far as the TLS layer, with a hello that breaks off and then noise.
	session := r.Uint64()
	message := func(n uint32, content []byte) []byte {
		return append(binary.BigEndian.AppendUint32([]byte{0}, n), content...)
	}
	all = append(all, crypt.hello(session), crypt.wrap(controlV1, session, 2, message(1, hello[:100])),
		crypt.wrap(controlV1, session, 3, message(2, random(900))), crypt.wrap(ackV1, session, 4, random(30)),
		crypt.wrap(controlV1, session, 5, message(0xfffffffe, random(10))), crypt.wrap(controlV1, session, 6, append([]byte{255}, random(20)...)))
	return all
}

// junk throws rubbish at every open port.
func (w *trial) junk() {
	inet := w.Internet()
	var tcp, udp []netip.AddrPort
	for _, a := range w.addresses("control") {
		tcp = append(tcp, netip.AddrPortFrom(a, 443), netip.AddrPortFrom(a, 8443))
	}
	machines := append([]string{"control"}, serverNames()...)
	for _, s := range serverNames() {
		for _, a := range w.addresses(s)[:2] {
			tcp = append(tcp, netip.AddrPortFrom(a, 443))
			for _, port := range []uint16{1194, 500, 4500} {
				udp = append(udp, netip.AddrPortFrom(a, port))
			}
		}
	}
	all := w.rubbish()
	sent := 0
	round := func() {
		var wg sync.WaitGroup
		for _, to := range tcp {
			wg.Go(func() { w.pour(inet, "tcp", to, all) })
			sent += len(all)
		}
		for _, to := range udp {
			wg.Go(func() { w.pour(inet, "udp", to, append(slices.Clone(all), all...)) })
			sent += 2 * len(all)
		}
		wg.Wait()
	}
	guests := map[string]int{}
	logs := map[string]string{}
	for _, s := range serverNames() {
		guests[s] = w.guests(s)
	}
	if guests["nl-ams-1"] != 2 { // ada and bob; the control of what follows
		w.t.Errorf("%d guests, want 2", guests["nl-ams-1"])
	}
	for _, m := range append([]string{"lethe-control"}, serverNames()...) {
		logs[m] = w.log(m)
	}
	round() // every pool and cache has its size now
	before := map[string]map[int]process{}
	for _, m := range machines {
		before[m] = w.processes(m)
	}
	round()
	round()
	// Programs are built with counters and the race detector here, which keep memory of their own.
	bounds := map[string]int{"openvpn": 4 << 10, "charon-systemd": 4 << 10, "unbound": 4 << 10, "lethe-node": 48 << 10, "lethe-control": 64 << 10}
	for _, m := range machines {
		w.same(m, before[m])
		for pid, p := range w.processes(m) {
			if more := p.rss - before[m][pid].rss; more > bounds[p.name] {
				w.t.Errorf("%s: %s has grown by %d KiB", m, p.name, more)
			} else {
				w.t.Logf("%s: %s has grown by %d KiB from %d", m, p.name, more, before[m][pid].rss)
			}
		}
	}
	for _, s := range serverNames() {
		if n := w.guests(s); n != guests[s] {
			w.t.Errorf("%s: %d guests, %d before", s, n, guests[s])
		}
	}
	for m, text := range logs {
		if now := w.log(m); now != text {
			w.t.Errorf("%s wrote %q", m, strings.TrimPrefix(now, text))
		}
	}
	w.t.Logf("%d pieces of junk", sent)
	w.alive(ada)
	w.alive(bob)
	for profile := range w.profiles {
		w.knownUser(profile)
	}
	w.call(w.https(w.Customer(dave)), appAddress, apiCall{"GET", "/v1/health", "", "", 200, ""})
}

// pour sends every piece, over TCP each in a connection of its own with the
// length before it in every second one, as OpenVPN does.
func (w *trial) pour(m *lab.Machine, network string, to netip.AddrPort, all [][]byte) {
	if network == "udp" {
		c, err := m.Dial(w.ctx, network, to.String())
		if err != nil {
			w.t.Error(err)
			return
		}
		defer c.Close()
		for _, b := range all {
			_, _ = c.Write(b) // a refusal to an earlier one may be told here
		}
		return
	}
	for i, b := range all {
		c, err := m.Dial(w.ctx, network, to.String())
		if err != nil {
			w.t.Errorf("a port has given in: %v", err)
			return
		}
		if i%2 == 1 {
			b = append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...)
		}
		_, _ = c.Write(b)
		_ = c.(*net.TCPConn).CloseWrite()
		_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
		_, _ = io.Copy(io.Discard, io.LimitReader(c, 1<<16)) // until it is hung up on
		_ = c.Close()
	}
}
