package openvpn

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"lethe/daemon"
	"lethe/device"
	"lethe/event"
	"lethe/fault"
	"lethe/session"
)

// driver looks after one instance.
type driver struct {
	s   *Server
	in  Instance
	dir string
	key [32]byte // of the proofs, random

	sup daemon.Supervisor[*link]

	mu      sync.Mutex
	link    *link // nil while there is no connection
	clients map[uint64]*state
	kills   []uint64 // clients to end as soon as there is a connection
}

// state is what a driver remembers of a client. It does not say who it is.
type state struct {
	established bool
	// proof is a keyed hash of the user name and password by which the client was let in. It
	// keeps live tunnels through renegotiations while the authentication database is not
	// available; a client taken over from a former agent has none.
	proof [sha256.Size]byte
	known bool // proof is set
}

func newDriver(s *Server, in Instance) *driver {
	d := &driver{s: s, in: in, dir: filepath.Join(s.cfg.RuntimeDir, fmt.Sprintf("openvpn%d", in.Daemon)), clients: map[uint64]*state{}}
	_, _ = rand.Read(d.key[:]) // crypto/rand.Read never fails
	i := int(in.Daemon)
	d.sup = daemon.Supervisor[*link]{
		Binary: s.cfg.Binary, Start: d.start, Detach: s.cfg.Detach,
		Dial: func(ctx context.Context) (*link, int, error) {
			l, err := dial(ctx, socketPath(d.dir), s.cfg.UID)
			if err != nil {
				return nil, 0, err
			}
			return l, l.pid, nil
		},
		Talk:      func(ctx context.Context, l *link) bool { d.converse(ctx, l); return true },
		Adopted:   func() { s.log.Log(event.Adopted{Part: event.OpenVPN, Index: i}) },
		Restarted: func(n uint64) { s.log.Log(event.Restarted{Part: event.OpenVPN, Index: i, Count: n}) },
		Ended:     d.ended,
		Silent:    func() { d.trouble(fault.Unavailable) }, // nobody can log in and nobody can be ended
		Redial:    redialPause, Patience: startTimeout, Grace: stopGrace,
	}
	return d
}

// Times of a driver.
const (
	stopGrace    = 5 * time.Second        // what a process gets to tell its clients
	redialPause  = 100 * time.Millisecond // before a broken connection is made anew
	startTimeout = 10 * time.Second       // until a new process must listen
	talkTimeout  = 2 * time.Second        // for the first answer on a connection
)

// run keeps the process running and answers it until ctx ends.
func (d *driver) run(ctx context.Context) error {
	err := d.sup.Run(ctx)
	if d.s.cfg.Detach {
		return err
	}
	d.s.core.Reset(d.in.Daemon)
	return errors.Join(err, device.Remove(d.in.Device))
}

// start makes device and directory and starts a process.
func (d *driver) start(ctx context.Context) (*daemon.Process, error) {
	// No process, no session: what a former one left in the books ends here.
	d.s.core.Reset(d.in.Daemon)
	cfg := d.s.cfg
	err := prepare(d.dir, cfg.UID, cfg.GID)
	spec := daemon.Spec{Path: cfg.Binary, Args: []string{"--config", "stdin"}, UID: cfg.UID, GID: cfg.GID, Stdin: cfg.render(d.in, d.s.features, d.dir)}
	defer clear(spec.Stdin)
	spec.Confine = confine(d.in, d.dir)
	if d.in.Port < 1024 {
		spec.Caps = append(spec.Caps, unix.CAP_NET_BIND_SERVICE)
	}
	if d.in.Offload {
		spec.Caps = append(spec.Caps, unix.CAP_NET_ADMIN) // it makes its device and gives keys to the kernel
	} else if err == nil {
		err = makeDevice(d.in, cfg.UID)
	}
	var p *daemon.Process
	if err == nil {
		p, err = daemon.Start(ctx, spec)
	}
	if err != nil {
		d.trouble(fault.Internal)
	}
	return p, err
}

func (d *driver) trouble(k fault.Kind) { d.s.log.Log(event.Trouble{Part: event.OpenVPN, Kind: k}) }

// ended reports what a process printed that is gone, and ends its sessions.
func (d *driver) ended(lines uint64) {
	if lines > 0 {
		d.s.log.Log(event.Mumbled{Part: event.OpenVPN, Lines: lines})
	}
	d.forget()
}

// forget ends all sessions.
func (d *driver) forget() {
	d.mu.Lock()
	clear(d.clients)
	d.kills = nil
	d.mu.Unlock()
	d.s.core.Reset(d.in.Daemon)
}

// converse asks who is connected and then answers what comes, until the connection breaks or ctx
// ends. It owns l.
func (d *driver) converse(ctx context.Context, l *link) {
	defer l.Close()
	stop := context.AfterFunc(ctx, func() { _ = l.conn.Close() })
	defer stop()
	var early []message // what came before the answer to "status 3"
	attached := false
	_ = l.conn.SetReadDeadline(time.Now().Add(talkTimeout)) // fails only when closed, like the reads
	l.send(nil, "hold release")
	l.send(func(ok bool) {
		attached = true
		if !ok { // not serving yet, so there is nobody
			d.forget()
		}
	}, "status 3")
	for {
		m, err := l.dec.next()
		if err != nil {
			break
		}
		switch {
		case m.kind == success || m.kind == failure || m.kind == status:
			then, err := l.answered()
			if err != nil {
				d.trouble(fault.Internal)
				d.detach()
				return
			}
			if m.kind == status {
				d.resume(l, m.clients, early)
			}
			if then != nil {
				then(m.kind != failure)
			}
		case !attached:
			early = append(early, m)
			continue
		default:
			d.handle(l, m)
		}
		if attached && d.attach(l) {
			for _, m := range early {
				d.handle(l, m)
			}
			early = nil
		}
	}
	d.detach()
}

// attach makes l the connection for kills and sends those that waited for one. It reports whether
// that was news.
func (d *driver) attach(l *link) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.link == l {
		return false
	}
	d.link = l
	_ = l.conn.SetReadDeadline(time.Time{})
	for _, cid := range d.kills {
		d.halt(l, cid)
	}
	d.kills = nil
	return true
}

func (d *driver) detach() {
	d.mu.Lock()
	d.link = nil
	d.mu.Unlock()
}

// resume tells the core who is there. A client whose question went to nobody would wait for a
// minute: it is told to connect again.
func (d *driver) resume(l *link, list []client, early []message) {
	asked := map[uint64]bool{}
	for _, m := range early {
		asked[m.cid] = asked[m.cid] || m.kind == connect
	}
	var live []session.Live
	clients := map[uint64]*state{}
	d.mu.Lock()
	for _, c := range list {
		if c.v4.IsValid() {
			st := d.clients[c.cid]
			if st == nil {
				st = &state{}
			}
			st.established = true
			clients[c.cid] = st
			live = append(live, session.Live{Client: c.cid, Username: c.username, V4: c.v4})
		} else if c.named && !asked[c.cid] {
			l.send(nil, "client-kill %d", c.cid)
		}
	}
	d.clients = clients
	d.mu.Unlock()
	d.s.core.Resume(d.in.Daemon, live)
}

func (d *driver) ref(cid uint64) session.Ref { return session.Ref{Daemon: d.in.Daemon, Client: cid} }

// handle does what a message asks for.
func (d *driver) handle(l *link, m message) {
	switch m.kind {
	case connect:
		d.sup.Serving()
		d.admit(l, m)
	case reauth:
		d.renew(l, m)
	case established:
		l.settled(m.cid)
		d.mu.Lock()
		st := d.clients[m.cid]
		if st != nil {
			st.established = true
		}
		d.mu.Unlock()
		if st != nil {
			d.s.core.Established(d.ref(m.cid))
		}
	case disconnect:
		l.settled(m.cid)
		d.end(m.cid)
	}
}

// end forgets a client and ends its session.
func (d *driver) end(cid uint64) {
	d.mu.Lock()
	delete(d.clients, cid)
	d.mu.Unlock()
	d.s.core.End(d.ref(cid))
}

// admit answers a client that wants in. One that never gets as far as a tunnel is reported as
// disconnected by OpenVPN like any other, at the latest after its handshake window of a minute.
func (d *driver) admit(l *link, m message) {
	grant, err := d.s.core.Admit(d.ref(m.cid), session.Login{
		Username: m.login.username, Password: m.login.password, Peer: m.login.peer, Protocol: d.in.Protocol,
	})
	if err != nil {
		d.deny(l, m, err)
		return
	}
	d.mu.Lock()
	d.clients[m.cid] = &state{proof: d.prove(m.login), known: true}
	d.mu.Unlock()
	nets := session.SubnetsOf(d.in.Daemon)
	l.sendAndWake(m.cid, m.kid, d.orEnd(m.cid), "client-auth %d %d\nifconfig-push %s %s\nifconfig-ipv6-push %s/%d\nEND",
		m.cid, m.kid, grant.V4, mask(nets.V4), grant.V6, nets.V6.Bits())
}

// orEnd ends a client whose approval was refused: it is gone.
func (d *driver) orEnd(cid uint64) answer {
	return func(ok bool) {
		if !ok {
			d.end(cid)
		}
	}
}

// renew answers a client that renegotiates its keys. While nobody can tell whether it may stay, it
// stays if it still knows what let it in.
func (d *driver) renew(l *link, m message) {
	err := d.s.core.Renew(d.ref(m.cid), m.login.username, m.login.password)
	proof := d.prove(m.login)
	d.mu.Lock()
	st := d.clients[m.cid]
	if st == nil {
		st = &state{} // already ended; the core says no
	}
	if fault.Of(err) == fault.Unavailable && err != nil && st.known && hmac.Equal(st.proof[:], proof[:]) {
		err = nil
	}
	if err == nil {
		st.proof, st.known = proof, true
	}
	d.mu.Unlock()
	if err != nil {
		d.deny(l, m, err)
		d.end(m.cid) // OpenVPN takes seconds; its traffic ends now
		return
	}
	l.send(nil, "client-auth-nt %d %d", m.cid, m.kid)
}

func (d *driver) prove(in login) (sum [sha256.Size]byte) {
	h := hmac.New(sha256.New, d.key[:])
	_, _ = fmt.Fprintf(h, "%d:%s%s", len(in.username.Reveal()), in.username.Reveal(), in.password.Reveal())
	h.Sum(sum[:0])
	return sum
}

// Reasons that clients are told, after "AUTH_FAILED". Without one the client says that the
// credentials are wrong. TEMP makes OpenVPN 2.6 and later try the next address after the backoff
// (seconds) instead of giving up.
const (
	reasonExpired = "licence-expired"
	reasonDenied  = "not-allowed"
	reasonTemp    = "TEMP[backoff 5,advance addr]:temporarily unavailable"
)

func (d *driver) deny(l *link, m message, why error) {
	reason := ""
	switch fault.Of(why) {
	case fault.Unauthenticated:
	case fault.Expired:
		reason = " " + reasonExpired
	case fault.Denied:
		reason = " " + reasonDenied
	default:
		reason = ` "` + reasonTemp + `"`
	}
	l.sendAndWake(m.cid, m.kid, nil, `client-deny %d %d ""%s`, m.cid, m.kid, reason)
}

// kill ends a client for good, now or as soon as there is a connection.
func (d *driver) kill(cid uint64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.link != nil {
		d.halt(d.link, cid)
	} else {
		d.kills = append(d.kills, cid)
	}
}

// halt tells a client not to come back. OpenVPN forgets it five seconds later; the session ends
// with the answer, so that its traffic does.
func (d *driver) halt(l *link, cid uint64) {
	l.send(func(bool) { d.end(cid) }, "client-kill %d HALT", cid)
}
