package test

import (
	"context"
	"encoding/binary"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"lethe/ikev2"
	"lethe/lab"
)

// soon is how long any killed process may be missed.
const soon = 5 * time.Second

// healthy asks the service's health.
func (w *trial) healthy() bool {
	c := w.https(w.Customer(dave))
	c.Timeout = 2 * time.Second
	resp, err := c.Get("https://" + appAddress + "/v1/health")
	if err != nil {
		return false
	}
	_ = resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}

// pid returns the one process of a name on a machine whose command line or
// parent's choice want accepts.
func (w *trial) pids(m *lab.Machine, name string) (all []int) {
	w.t.Helper()
	for pid, p := range w.processes(m.Name) {
		if p.name == name {
			all = append(all, pid)
		}
	}
	slices.Sort(all)
	return all
}

// kill kills processes as a fault would.
func (w *trial) kill(pids ...int) {
	w.t.Helper()
	if len(pids) == 0 {
		w.t.Fatal("there is no such process")
	}
	for _, pid := range pids {
		w.check(unix.Kill(pid, unix.SIGKILL))
	}
}

// intruder tries to get into the first server with a wrong password, until the
// returned function is called, which tells how often.
func (w *trial) intruder() (stop func()) {
	username, _ := w.credential(w.person(carol).email)
	ctx, cancel := context.WithCancel(w.ctx)
	var wg sync.WaitGroup
	var tries atomic.Uint32
	wg.Go(func() {
		for n := 0; ctx.Err() == nil; n++ {
			profile := w.profiles[[]string{"nl-ams udp", "nl-ams tcp"}[n%2]]
			if r := w.login(profile, username, []byte("wrong password"), 2*time.Second); r.outcome == gotIn {
				w.t.Error("the intruder is in")
			}
			tries.Add(1)
		}
	})
	return func() {
		cancel()
		wg.Wait()
		if tries.Load() < 3 {
			w.t.Errorf("the intruder has tried %d times only", tries.Load())
		}
		w.t.Logf("the intruder has tried %d times", tries.Load())
	}
}

// lets reports whether carol gets in.
func (w *trial) lets(profile string, username, secret []byte) func() bool {
	return func() bool {
		return w.login(w.profiles[profile], username, secret, 3*time.Second).outcome == gotIn
	}
}

// kills kills one process of every kind after the other.
func (w *trial) kills() {
	server, app := w.Machine("nl-ams-1"), w.Customer(ada)
	username, secret := w.credential(w.person(carol).email)
	stop := w.intruder()
	back := func(what string, ok func() bool) {
		w.t.Helper()
		w.t.Logf("%s: back after %v", what, w.until(soon, what, ok).Round(time.Millisecond))
	}

	w.check(w.Kill("lethe-control", syscall.SIGKILL))
	back("lethe-control", w.healthy)
	w.alive(ada)

	w.check(w.Kill("nl-ams-1", syscall.SIGKILL))
	w.alive(ada) // while the agent is away
	w.alive(bob)
	back("lethe-node", w.lets("nl-ams tcp", username, secret))
	w.alive(ada)
	w.alive(bob)

	w.kill(w.pids(server, "unbound")...)
	n := 0
	back("unbound", func() bool {
		n++ // a name that no cache has
		_, err := app.Run(w.ctx, "curl", "-sS", "-m", "2", "-o", "/dev/null", fmt.Sprintf("http://n%d.wild.river.example/", n))
		return err == nil
	})

	// Ada's tunnel is over UDP: her app learns of it by silence, after a minute,
	// so it is the server that must be back at once. Bob's learns of it by TCP.
	w.kill(w.pids(server, "openvpn")...)
	bobs := time.Now()
	back("openvpn, UDP", w.lets("nl-ams udp", username, secret))
	w.until(4*soon, "bob's app", func() bool { return w.visitWithin(bob, 1) == nil })
	w.t.Logf("openvpn, TCP: the app has a tunnel again %v later", time.Since(bobs).Round(time.Millisecond))
	w.person(ada).must("", "connect", "nl-ams", "--protocol", "openvpn", "--transport", "udp")
	w.alive(ada)
	stop()

	w.lockHolds()
}

// lockHolds kills the processes of ada's machine while her cable is watched.
func (w *trial) lockHolds() {
	c := w.person(ada)
	leaks := w.watch("m4", w.addresses("nl-ams-1"))
	chatter := func() {
		for _, args := range [][]string{
			{"curl", "-sS", "-m", "1", "-4", "http://" + lab.SiteAddr.V4.String()}, {"curl", "-sS", "-m", "1", "-g", "-6", "http://[" + lab.SiteAddr.V6.String() + "]"},
			{"curl", "-sS", "-m", "1", lab.SiteURL}, {"ping", "-c1", "-W1", lab.SiteAddr.V4.String()},
		} {
			_, _ = c.Run(w.ctx, args[0], args[1:]...) // it may fail; it must not pass
		}
	}
	w.kill(w.pids(c.Machine, "openvpn")...)
	chatter()
	w.t.Logf("openvpn client: back after %v", w.until(4*soon, "ada's tunnel", func() bool { return w.visitWithin(ada, 1) == nil }).Round(time.Millisecond))

	w.check(w.Kill("helper-"+c.Name, syscall.SIGKILL))
	began := time.Now()
	chatter()
	w.until(soon, "the helper", func() bool {
		said, code := c.try(nil, "", "status")
		return code == 0 && strings.HasPrefix(said, "blocked")
	})
	w.t.Logf("lethe helper: back after %v, blocked", time.Since(began).Round(time.Millisecond))
	chatter()
	if err := w.visit(ada); err == nil {
		w.t.Error("without a tunnel, behind the lock, the web site can be reached")
	}
	if n := leaks(); n > 0 {
		w.t.Errorf("%d packets have passed the lock", n)
	}
	c.must("", "connect", "nl-ams", "--protocol", "openvpn", "--transport", "udp")
	w.alive(ada)
	if n := leaks(); n > 0 {
		w.t.Errorf("%d packets have passed the lock", n)
	}
	// The control: without the lock the same chatter is seen.
	c.must("", "disconnect")
	chatter()
	w.until(soon, "packets on the cable", func() bool { return leaks() > 4 })
	c.must("", "connect", "nl-ams", "--protocol", "openvpn", "--transport", "udp")
}

// watch counts the packets that come out of a machine, at the router's end of its
// cable, and are neither a tunnel's to a server nor what keeps the link alive.
func (w *trial) watch(device string, server []netip.Addr) (leaks func() int) {
	w.t.Helper()
	var fd int
	w.check(w.Internet().Inside(func() (err error) {
		// Without a protocol until it is bound: else it hears every cable for a moment (packet(7)).
		const all = unix.ETH_P_ALL>>8 | unix.ETH_P_ALL&0xff<<8 // in the network's byte order
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		index, err := interfaceIndex(fd, device)
		if err == nil {
			err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: index})
		}
		if err == nil {
			err = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 100000})
		}
		return err
	}))
	var n atomic.Int32
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		b := make([]byte, 1<<16)
		for {
			select {
			case <-done:
				return
			default:
			}
			size, from, err := unix.Recvfrom(fd, b, 0)
			link, ok := from.(*unix.SockaddrLinklayer)
			if err == nil && ok && link.Pkttype != unix.PACKET_OUTGOING && leaked(b[:size], server) {
				if n.Add(1) <= 4 { // more would be the control's
					w.t.Logf("passed: % x", b[:min(size, 14+40+8)])
				}
			}
		}
	}()
	w.t.Cleanup(func() {
		close(done)
		<-ended
		_ = unix.Close(fd)
	})
	return func() int { return int(n.Load()) }
}

func interfaceIndex(fd int, device string) (int, error) {
	request, err := unix.NewIfreq(device)
	if err == nil {
		err = unix.IoctlIfreq(fd, unix.SIOCGIFINDEX, request)
	}
	if err != nil {
		return 0, err
	}
	return int(request.Uint32()), nil
}

// leaked reports whether an Ethernet frame is anything but ARP, neighbour
// discovery and a tunnel's packets to a server.
func leaked(frame []byte, server []netip.Addr) bool {
	if len(frame) < 14+40 {
		return false // shorter than any IPv6 packet: ARP
	}
	packet := frame[14:]
	var to netip.Addr
	var protocol byte
	var rest []byte
	switch binary.BigEndian.Uint16(frame[12:]) {
	case unix.ETH_P_IP:
		to, protocol, rest = netip.AddrFrom4([4]byte(packet[16:20])), packet[9], packet[int(packet[0]&15)*4:]
	case unix.ETH_P_IPV6:
		to, protocol, rest = netip.AddrFrom16([16]byte(packet[24:40])), packet[6], packet[40:]
		if protocol == unix.IPPROTO_ICMPV6 && len(rest) > 0 && rest[0] >= 133 && rest[0] <= 136 {
			return false
		}
	default:
		return false
	}
	if len(rest) < 4 || !slices.Contains(server, to) {
		return true
	}
	port := binary.BigEndian.Uint16(rest[2:])
	return !(protocol == unix.IPPROTO_UDP && (port == 1194 || port == ikev2.PortNAT) || protocol == unix.IPPROTO_TCP && port == 443)
}

// shutdown tells every program to stop: it ends in time and in order.
func (w *trial) shutdown() {
	units := []string{"helper-customer-1", "lethe-control"}
	for _, u := range append(units, serverNames()...) {
		began := time.Now()
		w.check(w.Restart(w.ctx, u))
		took := time.Since(began)
		for _, s := range w.Units() {
			if s.Unit == u && s.Exit != 0 {
				w.t.Errorf("%s: exit code %d", u, s.Exit)
			}
		}
		if took > 20*time.Second {
			w.t.Errorf("%s: stopped and started in %v", u, took)
		}
		w.t.Logf("%s: stopped and started in %v", u, took.Round(time.Millisecond))
	}
	// After an orderly restart customers get in as before.
	username, secret := w.credential(w.person(carol).email)
	for profile := range w.profiles {
		w.until(20*time.Second, profile+": nobody gets in after the restart", func() bool {
			return w.login(w.profiles[profile], username, secret, 20*time.Second).outcome == gotIn
		})
	}
	// The control: killed, it is not in order.
	w.check(w.Kill("lethe-control", syscall.SIGKILL))
	w.until(soon, "the exit code of a killed process", func() bool {
		return slices.ContainsFunc(w.Units(), func(s lab.Status) bool { return s.Unit == "lethe-control" && s.Exit == -1 })
	})
	for _, u := range serverNames() {
		w.check(w.Stop(w.ctx, u))
		if left := w.processes(u); len(left) > 0 {
			w.t.Errorf("%s has left %v", u, left)
		}
	}
}
