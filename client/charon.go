package client

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"lethe/daemon"
	"lethe/fault"
	"lethe/ikev2"
	"lethe/memfd"
	"lethe/vici"
)

// charon is one process of strongSwan's IKE daemon, a [tunnel]. It is told everything over its control
// socket (package vici), and the user's password is taken back as soon as the server has seen the proof.
// What it reads from a file, a memfd, is the same for everybody.
type charon struct{ errand }

// heard are the keys of charon's messages that are read.
var heard = []string{"up", "msg", "local-vips", "plugins", "ML_KEM_768"}

// Times of charon.
const (
	charonStart  = 5 * time.Second      // until it must answer
	charonDial   = 2 * time.Millisecond // between two tries to reach it
	charonAnswer = 5 * time.Second      // for an answer that needs no server
)

// run implements [tunnel].
func (c charon) run(ctx context.Context, up func(*face)) error {
	dir := filepath.Join(c.cfg.RuntimeDir, "charon")
	spec := ikev2.Client{
		Binary: c.cfg.Charon, Socket: filepath.Join(dir, "vici"), Resolvers: filepath.Join(dir, "resolvers"),
		Offload: ikev2.Offload(), Mark: Mark, Table: charonTable, Priority: rulePriority + 1, Silence: c.cfg.Silence,
	}
	spec.Device = ikev2.ClientDevice(spec.Offload)
	attr, unprivileged := c.rights(spec.Offload || mayOpenTUN())
	gid := 0
	if unprivileged {
		gid = int(c.cfg.GID)
	}
	// Charon makes its socket in there, but only root can look and connect.
	err := errors.Join(os.RemoveAll(dir), os.Mkdir(dir, 0o700), os.Chown(dir, 0, gid), os.Chmod(dir, 0o730))
	if err != nil {
		return fault.Wrap(fault.Internal, "tunnel: charon's directory cannot be made", err)
	}
	defer os.RemoveAll(dir)
	if spec.Offload {
		if err := ikev2.OpenClientDevice(); err != nil {
			return fault.Wrap(fault.Internal, "tunnel: the kernel's IPsec device cannot be made", err)
		}
		defer func() { _ = ikev2.CloseClientDevice() }() // the next one begins with it too
	}
	text := spec.Conf()
	conf, err := memfd.Fixed("strongswan.conf", int64(len(text)))
	if err == nil {
		defer conf.Close()
		_, err = conf.WriteAt(text, 0)
	}
	if err != nil {
		return fault.Wrap(fault.Internal, "tunnel: no memory for charon's configuration", err)
	}
	cmd := exec.Command(c.cfg.Charon)
	cmd.Env, cmd.Dir, cmd.ExtraFiles, cmd.SysProcAttr = []string{daemon.Wipe, "STRONGSWAN_CONF=/proc/self/fd/3"}, "/", []*os.File{conf}, attr
	ended, err := spawn(cmd, func() {})
	if err != nil {
		return fault.Wrap(fault.Internal, "tunnel: charon does not start", err).WithHint(hintCharon)
	}
	v, err := reach(ctx, spec.Socket, cmd.Process.Pid, ended)
	if err == nil {
		err = c.talk(ctx, v, spec, up)
		v.Close()
	}
	_ = cmd.Process.Kill() // what it had to say to the server, it has said
	<-ended
	return err
}

// reach connects to charon's control socket as soon as there is one.
func reach(ctx context.Context, socket string, pid int, ended <-chan struct{}) (*vici.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, charonStart)
	defer cancel()
	tick := time.NewTicker(charonDial)
	defer tick.Stop()
	for {
		conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: socket, Net: "unix"})
		if err == nil {
			if peer, err := daemon.Peer(conn); err != nil || int(peer.Pid) != pid {
				conn.Close()
				return nil, fault.Wrap(fault.Internal, "tunnel: a stranger on charon's control socket", err)
			}
			return vici.New(conn, heard...), nil
		}
		select {
		case <-tick.C:
		case <-ended:
			return nil, fault.New(fault.Internal, "charon ended before it said anything").WithHint(hintCharon)
		case <-ctx.Done():
			return nil, fault.Wrap(fault.Internal, "charon does not answer", ctx.Err()).WithHint(hintCharon)
		}
	}
}

// talk has charon connect and follows it until the tunnel ends or ctx does.
func (c charon) talk(ctx context.Context, v *vici.Conn, spec ikev2.Client, up func(*face)) error {
	if err := c.load(ctx, v, spec); err != nil {
		return err
	}
	if err := c.initiate(ctx, v); err != nil {
		return err
	}
	defer c.leave(ctx, v)
	f, err := c.face(ctx, v, spec)
	if err != nil {
		return err
	}
	up(f)
	for {
		e, err := v.Next(ctx)
		if err != nil || e.Message.Get("up") != "yes" {
			return fault.Wrap(fault.Unavailable, "the server does not answer", err)
		}
	}
}

// load tells charon where to connect, and as whom.
func (c charon) load(ctx context.Context, v *vici.Conn, spec ikev2.Client) error {
	ctx, cancel := context.WithTimeout(ctx, charonAnswer)
	defer cancel()
	stats, err := v.Call(ctx, "stats", nil)
	if err != nil {
		return speechless(err)
	}
	for _, p := range ikev2.ClientPlugins(spec.Offload) {
		if !slices.Contains(stats.List("plugins"), p) {
			return fault.New(fault.Internal, "charon has no "+p).WithHint(hintCharon)
		}
	}
	algorithms, err := v.Call(ctx, "get-algorithms", nil)
	if err != nil {
		return speechless(err)
	}
	conn, err := spec.Connection(c.route.server, c.route.addr, c.target.Credential.Username, algorithms)
	if err != nil {
		return fault.Wrap(fault.Invalid, "tunnel: the server cannot be connected to", err)
	}
	if _, err = v.Call(ctx, "load-conn", conn); err == nil {
		_, err = v.Call(ctx, "load-shared", new(vici.Message).Set("id", ikev2.ClientName).Set("type", "EAP").
			Set("data", c.target.Credential.Password.Reveal()).SetList("owners", c.target.Credential.Username.Reveal()))
	}
	if err == nil {
		err = v.Subscribe(ctx, "ike-updown", "child-updown")
	}
	return speechless(err)
}

// speechless is charon's failure to do as it is told.
func speechless(err error) error {
	if err == nil {
		return nil
	}
	return fault.Wrap(fault.Internal, "charon did not take its orders", err).WithHint("is it strongSwan 5.9 or newer?")
}

// initiate has charon connect and takes the password back. When ctx ends after the server was told it, the
// server may have a session by now, of which it can only be told that it ends when it is complete: then
// that is waited for, for a while.
func (c charon) initiate(ctx context.Context, v *vici.Conn) error {
	var said verdict
	own, giveUp := context.WithCancel(context.WithoutCancel(ctx))
	defer giveUp()
	stop := context.AfterFunc(ctx, func() {
		if said.asked.Load() {
			wait := time.NewTimer(farewell)
			defer wait.Stop()
			select {
			case <-wait.C:
			case <-own.Done():
			}
		}
		giveUp()
	})
	defer stop()
	err := v.Stream(own, "initiate", "control-log", new(vici.Message).Set("child", ikev2.ClientName).Set("loglevel", "1"), said.hear)
	if err != nil {
		if why := said.why.Load(); why != nil {
			return why
		}
		return fault.Wrap(errSilent.Kind, errSilent.Text, err)
	}
	answer, cancel := context.WithTimeout(own, charonAnswer)
	defer cancel()
	_, err = v.Call(answer, "unload-shared", new(vici.Message).Set("id", ikev2.ClientName))
	return speechless(err)
}

// leave has charon tell the server that the tunnel ends.
func (c charon) leave(ctx context.Context, v *vici.Conn) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), farewell)
	defer cancel()
	_, _ = v.Call(ctx, "terminate", new(vici.Message).Set("ike", ikev2.ClientName).Set("force", "yes").
		Set("timeout", strconv.FormatInt((farewell/2).Milliseconds(), 10))) // it ends either way
}

// face describes the tunnel that is up.
func (c charon) face(ctx context.Context, v *vici.Conn, spec ikev2.Client) (*face, error) {
	f := &face{device: spec.Device, mtu: ikev2.TunnelMTU}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), charonAnswer)
	defer cancel()
	err := v.Stream(ctx, "list-sas", "list-sa", nil, func(m *vici.Message) {
		for _, vip := range m.Section(ikev2.ClientName).List("local-vips") {
			f.take(vip)
		}
	})
	if err != nil {
		return nil, speechless(err)
	}
	text, err := os.ReadFile(spec.Resolvers)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fault.Wrap(fault.Internal, "tunnel: charon's resolvers cannot be read", err)
	}
	for _, a := range ikev2.ParseResolvers(text) {
		f.addResolver(a)
	}
	if !f.usable() {
		return nil, errTunnelNot
	}
	return f, nil
}

// take adds an address of the tunnel.
func (f *face) take(vip string) {
	a, err := netip.ParseAddr(vip)
	switch {
	case err != nil || a.Zone() != "" || a.Is4In6():
	case a.Is4():
		f.v4 = netip.PrefixFrom(a, 32)
	default:
		f.v6 = netip.PrefixFrom(a, 128)
	}
}

// verdict is what charon's log for its controller says of a login. Its lines hold names and addresses; they
// are compared and dropped.
type verdict struct {
	asked atomic.Bool                 // the server wants the proof of the password
	why   atomic.Pointer[fault.Error] // why there is no tunnel, if a line has said it
}

// verdicts are how the lines that matter begin, as strongSwan 5.9 and 6.0 write them. Only their beginning is
// strongSwan's own: further on may stand what somebody between us and the server has sent. The
// codes are those of RFC 2759, section 6, come after the server has proven who it is, and mean what package
// radius means by them.
var verdicts = []struct {
	line string
	why  *fault.Error
}{
	{mschapv2 + "ERROR_AUTHENTICATION_FAILURE", errCredential},
	{mschapv2 + "ERROR_ACCT_DISABLED", errLicence},
	{mschapv2 + "ERROR_NO_DIALIN_PERMISSION", fault.New(fault.Denied, "the server does not let this customer in").
		WithHint("`lethe disconnect` gives the internet back; `lethe account` shows the licence")},
	{"received EAP_FAILURE", errLater},
	{notThis, errLater},
	{"no trusted ", errStranger},
	{"constraint check failed", errStranger},
	{"received NO_PROPOSAL_CHOSEN", fault.New(fault.Unavailable, "server and strongSwan agree on no algorithms").
		WithHint("is it strongSwan 5.9 or newer? --protocol openvpn works without it")},
}

const (
	mschapv2 = "EAP-MS-CHAPv2 failed with error "
	notThis  = "received AUTHENTICATION_FAILED"
)

var errStranger = fault.New(fault.Untrusted, "the server has not proven who it is").
	WithHint("somebody may stand between this machine and the server: try another network")

// hear takes one line. The first one that says why counts.
func (d *verdict) hear(m *vici.Message) {
	line := m.Get("msg")
	if strings.HasPrefix(line, "server requested EAP_MSCHAPV2 authentication") {
		d.asked.Store(true)
	}
	for _, v := range verdicts {
		if strings.HasPrefix(line, v.line) {
			why := v.why
			if v.line == notThis && !d.asked.Load() {
				why = errStranger // it does not even go by this name
			}
			d.why.CompareAndSwap(nil, why)
		}
	}
}
