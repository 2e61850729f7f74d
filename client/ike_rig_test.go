package client_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"lethe/authdb"
	"lethe/event"
	"lethe/fault"
	"lethe/ikev2"
	"lethe/internal/testkit"
	"lethe/ledger"
	"lethe/location"
	"lethe/private"
	"lethe/protocol"
	"lethe/radius"
	"lethe/session"
	"lethe/spec"
	"lethe/usage"
)

// asServer makes the test binary run a rig's IKEv2 server, a real one but for its database, in the directory
// that it names. What its core is told, it writes to a file there.
const asServer = "LETHE_TEST_AS_SERVER"

const (
	ikeDaemon = 2 // its networks are 10.66.0.0/16 and fd6c:6574:6865:2::/112
	ikeUID    = 64997
	ikeRADIUS = 21812
)

// books is the core of a rig's IKEv2 server.
type books struct {
	*session.Registry
	mu  sync.Mutex
	out io.Writer
}

func (b *books) note(what string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	fmt.Fprintln(b.out, what)
}

func (b *books) Admit(ref session.Ref, l session.Login) (session.Grant, error) {
	g, err := b.Registry.Admit(ref, l)
	if err == nil {
		b.note("admit")
	}
	return g, err
}

func (b *books) Established(ref session.Ref) { b.Registry.Established(ref); b.note("established") }

func (b *books) End(ref session.Ref) {
	before := b.Count()
	if b.Registry.End(ref); b.Count() < before {
		b.note("end")
	}
}

// check knows the passwords that the rig's other servers know.
func check(l session.Login) error {
	for password, err := range map[string]error{
		vpnPassword: nil,
		"expired":   fault.New(fault.Expired, "the licence has ended"),
		"denied":    fault.New(fault.Denied, "not allowed"),
		"later":     fault.New(fault.Unavailable, "no database"),
	} {
		hash := [16]byte(authdb.NTHash([]byte(password)))
		if l.Proof(&hash) {
			return err
		}
	}
	return fault.New(fault.Unauthenticated, "wrong user name or password")
}

// uncounted is a session.Counters that counts nothing.
type uncounted struct{}

func (uncounted) Add(netip.Addr, netip.Addr) error                    { return nil }
func (uncounted) Read(netip.Addr, netip.Addr) (uint64, uint64, error) { return 0, 0, nil }
func (uncounted) Remove(netip.Addr, netip.Addr) error                 { return nil }

func serverMain(dir string) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	read := func(name string) string {
		b, _ := os.ReadFile(filepath.Join(dir, name))
		return string(b)
	}
	journal, err := os.OpenFile(filepath.Join(dir, "ike.journal"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	mem, err := ledger.Create(64)
	if err != nil {
		return err
	}
	l, err := ledger.Open(mem)
	if err != nil {
		return err
	}
	var s *ikev2.Server
	core := &books{out: journal}
	core.Registry = session.New(session.Config{
		Salt: usage.Salt{}, Ledger: l, Location: func() location.ID { return 1 }, Check: check,
		Allowed: func(private.Value[string]) bool { return true }, Locate: func(netip.Addr) (string, string) { return "", "" },
		Counters: uncounted{}, Kill: func(r session.Ref) { s.Kill(r) }, Trouble: func() {},
	})
	node, log := spec.Default(), event.New(os.Stderr)
	node.KeepaliveSeconds = 1
	s, err = ikev2.New(ikev2.Config{
		RuntimeDir: filepath.Join(dir, "ike"), UID: ikeUID, GID: ikeUID, Daemon: ikeDaemon, Uplinks: []string{"i0", "lo"},
		Node: func() spec.Node { return node }, RADIUS: netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), ikeRADIUS),
		Certificate: private.Of(read("cert") + read("ca")), Key: private.Of(read("key")),
	}, core, log)
	if err != nil {
		return err
	}
	nets := session.SubnetsOf(ikeDaemon)
	r, err := radius.New(radius.Config{
		Secret: s.Secret(), Daemon: ikeDaemon, Protocol: protocol.IKEv2, Core: s, Log: log,
		DNS: []netip.Addr{nets.V4.Addr().Next(), nets.V6.Addr().Next()},
	})
	if err != nil {
		return err
	}
	conn, err := radius.Listen(ikeRADIUS)
	if err != nil {
		return err
	}
	var all sync.WaitGroup
	own, end := context.WithCancel(context.WithoutCancel(ctx))
	var failed error
	all.Go(func() { failed = r.Serve(own, conn) })
	err = s.Run(ctx)
	end()
	all.Wait()
	return errors.Join(err, failed)
}

// startIKE makes the rig's server speak IKEv2 as well.
func (r *rig) startIKE() *exec.Cmd {
	r.t.Helper()
	self, err := os.Executable()
	if err != nil {
		r.t.Fatal(err)
	}
	cmd := exec.Command("ip", "netns", "exec", r.inet, self)
	cmd.Env = append(os.Environ(), asServer+"="+r.dir, "GORACE=atexit_sleep_ms=0")
	log := new(testkit.Log)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		if err := cmd.Wait(); err != nil || r.t.Failed() {
			r.t.Errorf("IKEv2 server: %v: %s\n%s", err, log, r.journal())
		}
	})
	r.server.Endpoints = append(r.server.Endpoints, location.Endpoint{Protocol: protocol.IKEv2, Port: 500})
	r.ikeServes(10 * time.Second)
	return cmd
}

// ikeServes waits until the IKEv2 server takes customers.
func (r *rig) ikeServes(limit time.Duration) {
	r.t.Helper()
	r.eventually(limit, "the IKEv2 server serves", func() bool {
		out, err := exec.Command("swanctl", "--list-conns", "--uri", fmt.Sprintf("unix://%s/ike/charon%d/vici", r.dir, ikeDaemon)).CombinedOutput()
		return err == nil && bytes.Contains(out, []byte("lethe"))
	})
}

// journal is what the IKEv2 server's core was told.
func (r *rig) journal() string {
	b, _ := os.ReadFile(filepath.Join(r.dir, "ike.journal"))
	return string(b)
}

// sessions returns how many sessions the IKEv2 server has had, and how many have ended.
func (r *rig) sessions() (begun, ended int) {
	return strings.Count(r.journal(), "established\n"), strings.Count(r.journal(), "end\n")
}
