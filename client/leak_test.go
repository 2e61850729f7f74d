package client_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"lethe/client"
)

// wire watches what leaves the customer machine, on the other end of its cable.
type wire struct {
	mu    sync.Mutex
	armed bool
	leaks []string
	seen  int // packets of the tunnel
}

// watchWire starts to watch. Everything that leaves from arm on and is not allowed is a leak.
func (r *rig) watchWire() *wire {
	w := &wire{}
	var fd int
	var mac net.HardwareAddr
	r.in(r.client, func() {
		if c0, err := net.InterfaceByName("c0"); err == nil {
			mac = c0.HardwareAddr
		}
	})
	r.in(r.inet, func() {
		i0, err := net.InterfaceByName("i0")
		if err == nil {
			fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, 0) // with a protocol it would hear every cable until it is bound (packet(7))
		}
		if err == nil {
			err = errors.Join(unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: unix.ETH_P_ALL << 8, Ifindex: i0.Index}),
				unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 50000}),
				unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20))
		}
		if err != nil || mac == nil {
			r.t.Error("no capture: ", err)
		}
	})
	done, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		frame := make([]byte, 65536)
		for {
			n, err := unix.Read(fd, frame)
			if err == nil && n > 14 && string(frame[6:12]) == string(mac) {
				w.take(frame[:n])
			}
			select {
			case <-done:
				return
			default:
			}
		}
	}()
	r.t.Cleanup(func() {
		close(done)
		<-stopped
		unix.Close(fd)
	})
	return w
}

// take judges one frame.
func (w *wire) take(f []byte) {
	verdict := judge(f)
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case verdict == "tunnel":
		w.seen++
	case verdict != "" && w.armed:
		w.leaks = append(w.leaks, verdict)
	}
}

// judge returns "tunnel" for OpenVPN's packets, nothing for what every machine on a cable must say,
// and a description of everything else.
func judge(f []byte) string {
	switch kind, p := binary.BigEndian.Uint16(f[12:]), f[14:]; {
	case kind == unix.ETH_P_ARP:
		return ""
	case kind == unix.ETH_P_IP && len(p) >= 24:
		h := int(p[0]&15) * 4
		return flow(p[9], netip.AddrFrom4([4]byte(p[12:])), netip.AddrFrom4([4]byte(p[16:])), p[h:])
	case kind == unix.ETH_P_IPV6 && len(p) >= 44:
		return flow(p[6], netip.AddrFrom16([16]byte(p[8:])), netip.AddrFrom16([16]byte(p[24:])), p[40:])
	default:
		return fmt.Sprintf("frame of type %#x", kind)
	}
}

func flow(proto byte, src, dst netip.Addr, p []byte) string {
	port := binary.BigEndian.Uint16(p[2:])
	switch {
	case (dst == netip.MustParseAddr(vpnV4) || dst == netip.MustParseAddr(vpnV6)) && (proto == unix.IPPROTO_UDP && (port == 1194 || port == 4500) || proto == unix.IPPROTO_TCP && port == 443):
		return "tunnel"
	case proto == unix.IPPROTO_ICMPV6 && (p[0] == 133 || p[0] == 135 || p[0] == 136):
		return ""
	}
	return fmt.Sprintf("protocol %d from %s to %s, type or port %d", proto, src, dst, port)
}

func (w *wire) arm() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.armed, w.seen = true, 0
}

func (w *wire) check(t *testing.T, what string) {
	t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	for i, l := range w.leaks {
		if i < 5 {
			t.Errorf("%s: leak: %s", what, l)
		}
	}
	if w.leaks = nil; w.seen == 0 && t.Failed() {
		t.Logf("%s: not one packet of the tunnel was seen", what)
	}
}

// chatter is a machine full of programs that talk all the time: one connection that was open
// before, DNS to anybody, IPv4 and IPv6, multicast, packets to the VPN server's own address on other
// ports and on the very port but from another program.
func (r *rig) chatter() (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	// sent counts what the kernel took, so that a test can tell chatter from silence.
	r.in(r.client, func() {
		old, err := net.Dial("tcp", webV4+":80")
		if err != nil {
			r.t.Error(err)
			return
		}
		all.Go(func() {
			defer old.Close()
			for ctx.Err() == nil {
				_, _ = old.Write([]byte("G"))
				time.Sleep(5 * time.Millisecond)
			}
		})
	})
	for _, to := range []string{
		webV4 + ":53", "[" + webV6 + "]:53", "8.8.8.8:53", "[2001:4860::8888]:443", vpnV4 + ":1194", vpnV4 + ":53",
		"[" + vpnV6 + "]:1195", routerV4 + ":67", "[" + routerV6 + "]:53", "224.0.0.251:5353", "[ff02::fb%c0]:5353", "203.0.113.255:137",
	} {
		all.Go(func() {
			for ctx.Err() == nil {
				r.in(r.client, func() {
					conn, err := net.Dial("udp", to)
					if err != nil {
						return
					}
					defer conn.Close()
					for range 20 {
						_, _ = conn.Write([]byte("c4nary"))
						time.Sleep(5 * time.Millisecond)
					}
				})
				time.Sleep(5 * time.Millisecond)
			}
		})
	}
	for _, to := range []string{webV4 + ":80", "[" + webV6 + "]:80", vpnV4 + ":443", vpnV4 + ":22"} {
		all.Go(func() {
			for ctx.Err() == nil {
				r.in(r.client, func() {
					if conn, err := net.DialTimeout("tcp", to, 50*time.Millisecond); err == nil {
						conn.Close()
					}
				})
				time.Sleep(20 * time.Millisecond)
			}
		})
	}
	return func() {
		cancel()
		all.Wait()
	}
}

// TestLock breaks everything that can break and looks for packets beside the tunnel.
func TestLock(t *testing.T) {
	r := newRig(t)
	r.startIKE()
	w := r.watchWire()
	stop := r.chatter()
	defer stop()
	w.arm()
	r.eventually(3*time.Second, "the chatter is on the wire before the lock", func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		return len(w.leaks) > 20
	})
	before := r.machine()
	r.startHelper()
	target := r.target(client.Auto, vpnPassword)
	target.Protocol = client.OpenVPN
	r.call(client.Request{Op: client.OpConnect, Target: target})
	time.Sleep(20 * time.Millisecond) // what was on its way when the lock went up
	w.mu.Lock()
	w.leaks = nil
	w.mu.Unlock()
	r.await(client.Connected)
	for _, c := range []struct {
		what string
		do   func()
	}{
		{"connected", func() {
			if seen, err := r.visit(webV4); err != nil || !strings.HasPrefix(seen, "10.6") {
				t.Errorf("seen as %q, %v", seen, err)
			}
			if err := r.ask(webV4); err != nil { // goes through the tunnel
				t.Errorf("DNS through the tunnel: %v", err)
			}
		}},
		{"openvpn killed", func() {
			for _, pid := range r.children() {
				r.sh(r.client, "kill -9 "+pid)
			}
			r.eventually(3*time.Second, "the loss is noticed", func() bool {
				return r.call(client.Request{Op: client.OpStatus}).State != client.Connected || len(r.children()) > 0
			})
			r.await(client.Connected)
		}},
		{"cable pulled", func() {
			r.ip("-n " + r.client + " link set c0 down")
			time.Sleep(200 * time.Millisecond)
			r.plug()
			r.await(client.Connected)
		}},
		{"routes injected", func() {
			for _, route := range []string{"0.0.0.0/1", "128.0.0.0/1", webV4 + "/32", "8.8.8.8/32"} {
				r.ip("-n " + r.client + " route add " + route + " via " + routerV4)
			}
			r.ip("-n " + r.client + " -6 route add 2000::/3 via " + routerV6)
			if seen, err := r.visit(webV4); err != nil || !strings.HasPrefix(seen, "10.6") {
				t.Errorf("seen as %q, %v", seen, err)
			}
		}},
		{"tunnel device down", func() {
			dev := "lethe-" + string(r.call(client.Request{Op: client.OpStatus}).Transport)
			r.ip("-n " + r.client + " link set " + dev + " down")
			time.Sleep(100 * time.Millisecond)
		}},
		{"addresses probed from the network", func() {
			r.ip("-n " + r.inet + " route replace 10.99.0.0/16 via " + customerV4)
			r.in(r.inet, func() {
				if conn, err := net.DialTimeout("tcp", "10.99.0.2:80", 50*time.Millisecond); err == nil {
					conn.Close()
				}
			})
		}},
		{"helper killed", func() {
			r.killHelper()
			r.eventually(3*time.Second, "OpenVPN dies with the helper", func() bool { return len(r.children()) == 0 })
			time.Sleep(200 * time.Millisecond)
			r.startHelper()
			if s := r.call(client.Request{Op: client.OpStatus}); s.State != client.Blocked || !s.Lock || s.Problem == nil || s.Problem.Hint == "" {
				t.Errorf("after the helper's death: %+v", s)
			}
			if seen, err := r.visit(webV4); err == nil {
				t.Errorf("blocked, and the web site is there: seen as %q", seen)
			}
		}},
		{"connected again", func() { r.connect(client.TCP, vpnPassword, client.Connected) }},
		{"another transport", func() { r.by(client.OpenVPN, client.UDP, vpnPassword, client.Connected) }},
		{"another protocol", func() { r.by(client.IKEv2, client.UDP, vpnPassword, client.Connected) }},
		{"charon killed", func() {
			for _, pid := range r.children() {
				r.sh(r.client, "kill -9 "+pid)
			}
			r.eventually(3*time.Second, "the loss is noticed", func() bool {
				return r.call(client.Request{Op: client.OpStatus}).State != client.Connected || len(r.children()) > 0
			})
			r.await(client.Connected)
		}},
		{"helper of charon killed", func() {
			r.killHelper()
			r.eventually(3*time.Second, "charon dies with the helper", func() bool { return len(r.children()) == 0 })
			r.startHelper()
			if s := r.call(client.Request{Op: client.OpStatus}); s.State != client.Blocked {
				t.Errorf("after the helper's death: %+v", s)
			}
			r.by(client.IKEv2, client.UDP, vpnPassword, client.Connected)
		}},
		{"raced", func() { r.by(client.Auto, client.Auto, vpnPassword, client.Connected) }},
		{"and the first protocol", func() { r.by(client.OpenVPN, client.UDP, vpnPassword, client.Connected) }},
		{"helper ended", func() {
			_ = r.helper.Process.Signal(unix.SIGTERM)
			_ = r.helper.Wait()
			time.Sleep(100 * time.Millisecond)
			r.startHelper()
		}},
		{"refused", func() {
			s := r.connect(client.Auto, "wrong", client.Blocked)
			if s.Problem == nil || s.Problem.Kind != "unauthenticated" {
				t.Errorf("%+v", s)
			}
		}},
	} {
		c.do()
		w.check(t, c.what)
	}
	stop()
	r.call(client.Request{Op: client.OpDisconnect})
	if seen, err := r.visit(webV4); err != nil || seen != customerV4 {
		t.Errorf("after: seen as %q, %v", seen, err)
	}
	after := r.machine()
	for _, route := range []string{"0.0.0.0/1", "128.0.0.0/1", webV4, "8.8.8.8", "2000::/3"} {
		if !strings.Contains(after, route) {
			t.Errorf("a route that was not ours is gone: %s", route)
		}
	}
	if b, _ := os.ReadFile(r.resolv); string(b) != string(r.resolvBefore) || !strings.Contains(before, string(b)) {
		t.Errorf("resolv.conf is %q", b)
	}
	if strings.Contains(after, client.LockTable) || strings.Contains(after, "fwmark") {
		t.Errorf("something is left: %s", after)
	}
}
