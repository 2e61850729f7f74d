package client

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"lethe/fault"
	"lethe/location"
	"lethe/openvpn"
)

// route is one way to a server: an endpoint at an address.
type route struct {
	server   location.Server
	endpoint location.Endpoint
	portal
}

// profile returns OpenVPN's configuration for r (openvpn(8)): what every client of ours uses, plus
// what makes the helper its master. It goes to standard input and holds no user name and no
// password.
//
// Of what the server pushes only addresses, timers, the data channel's parameters and resolvers are
// accepted; routes and everything else are not. A lost connection ends the process: the helper
// decides what to try next.
func profile(r route, management string) (string, error) {
	extra := []string{
		"dev lethe-" + r.proto, "dev-type tun", fmt.Sprintf("mark %d", Mark),
		"management " + management + " unix", "management-client", "management-hold",
		"management-query-passwords", "management-up-down", "auth-nocache", "auth-retry none",
		"route-noexec", "ifconfig-noexec", "remap-usr1 SIGTERM", "connect-retry-max 1", "connect-timeout 10",
		"ignore-unknown-option dns-updown", "dns-updown disable", "script-security 0", "verb 0",
	}
	for _, p := range []string{
		"ifconfig", "peer-id", "cipher", "protocol-flags", "key-derivation", "ping", "topology",
		"route-gateway", "tun-mtu", "dhcp-option DNS", "dns server",
	} {
		extra = append(extra, fmt.Sprintf("pull-filter accept %q", p))
	}
	s := r.server
	s.Addresses = []netip.Addr{r.addr}
	return openvpn.ClientConfig(s, r.endpoint, append(extra, `pull-filter ignore ""`)...)
}

// tunnel is one OpenVPN process, from its start to its end.
type tunnel struct {
	openvpn  string
	dir      string // for the management socket; only root can write to it
	uid, gid uint32 // whom OpenVPN runs as, when that user may open tunTap
	route    route
	target   *Target
}

// tunTap is the device through which tunnels are made (tun.rst in the kernel's documentation).
const tunTap = "/dev/net/tun"

// farewell is how long OpenVPN may take to tell the server that it leaves.
const farewell = 3 * time.Second

// run starts OpenVPN, calls up when the tunnel carries traffic and returns when OpenVPN has ended:
// because ctx did, because the server refused, or because the connection was lost. The error says
// which; it is never nil. Death of the helper ends OpenVPN too, by the kernel's hand.
func (t tunnel) run(ctx context.Context, up func(*face)) error {
	socket := filepath.Join(t.dir, "openvpn-"+t.route.proto+".sock")
	if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fault.Wrap(fault.Internal, "tunnel: an old management socket cannot be removed", err)
	}
	config, err := profile(t.route, socket)
	if err != nil {
		return fault.Wrap(fault.Invalid, "tunnel: the server cannot be connected to", err)
	}
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		return fault.Wrap(fault.Internal, "tunnel: no management socket", err)
	}
	defer listener.Close()
	attr := &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if node, err := os.Stat(tunTap); err == nil && node.Mode()&0o006 == 0o006 {
		attr.Credential = &syscall.Credential{Uid: t.uid, Gid: t.gid}
		attr.AmbientCaps = []uintptr{unix.CAP_NET_ADMIN}
		if err := os.Chown(socket, int(t.uid), int(t.gid)); err != nil {
			return fault.Wrap(fault.Internal, "tunnel: the management socket cannot be handed over", err)
		}
	}
	cmd := exec.Command(t.openvpn, "--config", "stdin")
	cmd.Stdin, cmd.Env, cmd.SysProcAttr = strings.NewReader(config), []string{}, attr
	ended, err := spawn(cmd, func() { listener.Close() })
	if err != nil {
		return fault.Wrap(fault.Internal, "tunnel: openvpn does not start", err).WithHint("is OpenVPN installed?")
	}
	stop := context.AfterFunc(ctx, func() { listener.Close() })
	conn, err := listener.AcceptUnix()
	stop()
	if err == nil {
		err = t.talk(ctx, conn, cmd.Process.Pid, up, ended)
		conn.Close()
	} else {
		err = fault.Wrap(fault.Internal, "openvpn ended before it said anything", err).WithHint("is it OpenVPN 2.6 or newer?")
	}
	_ = cmd.Process.Kill() // it has ended or must now
	<-ended
	return err
}

// talk answers the management interface until OpenVPN leaves it.
func (t tunnel) talk(ctx context.Context, conn *net.UnixConn, pid int, up func(*face), ended <-chan struct{}) error {
	if peer, err := peerOf(conn); err != nil || int(peer.Pid) != pid {
		return fault.Wrap(fault.Internal, "tunnel: a stranger on the management socket", err)
	}
	d := dialogue{credential: t.target.Credential, env: map[string]string{}}
	isUp, told := make(chan struct{}), false
	goodbye := context.AfterFunc(ctx, func() {
		defer conn.Close()
		select {
		case <-isUp: // the server should know
		default:
			return
		}
		wait := time.NewTimer(farewell)
		defer wait.Stop()
		if _, err := conn.Write([]byte("signal SIGTERM\n")); err == nil { // see dialogue.leave
			select {
			case <-ended:
			case <-wait.C:
			}
		}
	})
	defer goodbye()
	lines := bufio.NewScanner(conn)
	lines.Buffer(make([]byte, 4096), maxManageLine)
	for lines.Scan() {
		say, f, err := d.hear(strings.TrimSuffix(lines.Text(), "\r"))
		if err != nil {
			return err
		}
		if _, err := conn.Write([]byte(say)); say != "" && err != nil {
			break
		}
		if f != nil && !told {
			told = true
			close(isUp)
			up(f)
		}
	}
	return d.ended()
}

// spawn starts cmd and returns a channel that is closed when it has ended, after last was called.
// The thread that starts it waits for it: the kernel sends the parent death signal when that
// thread ends, not when the process does (prctl(2)).
func spawn(cmd *exec.Cmd, last func()) (<-chan struct{}, error) {
	started, ended := make(chan error), make(chan struct{})
	go func() {
		defer close(ended)
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait() // how it ended was said on the management socket
		}
		last()
	}()
	return ended, <-started
}

// peerOf returns who is at the other end of a Unix socket (SO_PEERCRED in unix(7)).
func peerOf(conn *net.UnixConn) (cred *unix.Ucred, err error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, err
	}
	if e := raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); e != nil {
		return nil, e
	}
	return cred, err
}
