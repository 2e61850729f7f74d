package client

import (
	"context"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"lethe/fault"
	"lethe/ikev2"
	"lethe/location"
	"lethe/protocol"
)

// route is one way to a server: an endpoint at an address. The portal is what the lock must let
// through for it.
type route struct {
	server   location.Server
	endpoint location.Endpoint
	portal
	turn int // how many staggers after the first route of a race this one starts
}

// tunnel is one process that carries the machine's packets to a server, from its start to its end.
type tunnel interface {
	// run starts the process, calls up when the tunnel carries traffic and returns when the
	// process has ended: because ctx did, because the server refused, or because the
	// connection was lost. The error says which; it is never nil. When ctx ends, the server is
	// told. Death of the helper ends the process too, by the kernel's hand.
	run(ctx context.Context, up func(*face)) error
}

// kind is a VPN protocol as the app speaks it. Nobody else in this package knows one from another.
type kind struct {
	protocol  Protocol  // as customers name it
	transport Transport // likewise
	name      string    // for people
	portal    uint16    // port of the server when it is not that of the endpoint
	turn      int       // see route
	program   func(*HelperConfig) string
	hint      string // how to get the program
	tunnel    func(errand) tunnel
}

const (
	hintOpenVPN = "is OpenVPN installed? On Debian: apt install openvpn"
	hintCharon  = "is strongSwan installed? On Debian: apt install charon-systemd libcharon-extauth-plugins libcharon-extra-plugins"
)

// kinds are all of them. In a race OpenVPN over UDP starts first, IKEv2 a stagger later, and TCP, which
// carries worst, after three.
var kinds = map[protocol.ID]kind{
	protocol.OpenVPNUDP: {OpenVPN, UDP, "OpenVPN", 0, 0, programOpenVPN, hintOpenVPN, makeOpenVPN},
	protocol.OpenVPNTCP: {OpenVPN, TCP, "OpenVPN", 0, 3, programOpenVPN, hintOpenVPN, makeOpenVPN},
	protocol.IKEv2:      {IKEv2, UDP, "IKEv2", ikev2.PortNAT, 1, func(c *HelperConfig) string { return c.Charon }, hintCharon, makeCharon},
}

func programOpenVPN(c *HelperConfig) string { return c.OpenVPN }

func makeOpenVPN(e errand) tunnel { return openVPN{e} }

func makeCharon(e errand) tunnel { return charon{e} }

// errand is what a tunnel is made for.
type errand struct {
	cfg    *HelperConfig
	route  route
	target *Target
}

// tunTap is the device through which tunnels are made (tun.rst in the kernel's documentation).
const tunTap = "/dev/net/tun"

// mayOpenTUN reports whether every user may make such a device.
func mayOpenTUN() bool {
	node, err := os.Stat(tunTap)
	return err == nil && node.Mode()&0o006 == 0o006
}

// rights are what a tunnel's process runs with. It dies with the helper. Where it can do without being
// root, it is a user without rights but to the machine's network.
func (e errand) rights(can bool) (attr *syscall.SysProcAttr, unprivileged bool) {
	attr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if can {
		attr.Credential = &syscall.Credential{Uid: e.cfg.UID, Gid: e.cfg.GID}
		attr.AmbientCaps = []uintptr{unix.CAP_NET_ADMIN}
	}
	return attr, can
}

// farewell is how long a process may take to tell the server that it leaves.
const farewell = 3 * time.Second

// What a server says, in whatever protocol.
var (
	errCredential = fault.New(fault.Unauthenticated, "user name or password refused").
			WithHint("`lethe disconnect` gives the internet back; `lethe connect` then asks the service for the present ones")
	errLicence = fault.New(fault.Expired, "the licence has ended").
			WithHint("extend it; `lethe disconnect` gives the internet back meanwhile")
	errLater     = fault.New(fault.Unavailable, "the server takes nobody at the moment")
	errSilent    = fault.New(fault.Unavailable, "the server does not answer")
	errTunnelNot = fault.New(fault.Unavailable, "the server gave no tunnel address or no resolver")
)

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
