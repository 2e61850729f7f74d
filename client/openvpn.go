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
	"strings"
	"time"

	"lethe/daemon"
	"lethe/fault"
	"lethe/openvpn"
)

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

// openVPN is one OpenVPN process, a [tunnel].
type openVPN struct{ errand }

// run implements [tunnel].
func (t openVPN) run(ctx context.Context, up func(*face)) error {
	socket := filepath.Join(t.cfg.RuntimeDir, "openvpn-"+t.route.proto+".sock")
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
	attr, unprivileged := t.rights(mayOpenTUN())
	if unprivileged {
		if err := os.Chown(socket, int(t.cfg.UID), int(t.cfg.GID)); err != nil {
			return fault.Wrap(fault.Internal, "tunnel: the management socket cannot be handed over", err)
		}
	}
	cmd := exec.Command(t.cfg.OpenVPN, "--config", "stdin")
	cmd.Stdin, cmd.Env, cmd.SysProcAttr = strings.NewReader(config), []string{}, attr
	ended, err := spawn(cmd, func() { listener.Close() })
	if err != nil {
		return fault.Wrap(fault.Internal, "tunnel: openvpn does not start", err).WithHint(hintOpenVPN)
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

// known reports whether the server may have a session by now, of which it must be told that it ends. It
// cannot be told before the tunnel is up. With TCP it sees the process end until then.
func (t openVPN) known(answered, isUp <-chan struct{}) bool {
	select {
	case <-isUp:
		return true
	default:
	}
	select {
	case <-answered:
		return t.route.proto == "udp"
	default:
		return false
	}
}

// talk answers the management interface until OpenVPN leaves it.
func (t openVPN) talk(ctx context.Context, conn *net.UnixConn, pid int, up func(*face), ended <-chan struct{}) error {
	if peer, err := daemon.Peer(conn); err != nil || int(peer.Pid) != pid {
		return fault.Wrap(fault.Internal, "tunnel: a stranger on the management socket", err)
	}
	answered, isUp, told := make(chan struct{}), make(chan struct{}), false
	d := dialogue{credential: t.target.Credential, env: map[string]string{}, answered: answered}
	goodbye := context.AfterFunc(ctx, func() {
		defer conn.Close()
		if !t.known(answered, isUp) {
			return
		}
		wait := time.NewTimer(farewell)
		defer wait.Stop()
		select {
		case <-isUp:
		case <-ended:
			return
		case <-wait.C:
			return
		}
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
