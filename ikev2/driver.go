package ikev2

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"lethe/daemon"
	"lethe/device"
	"lethe/event"
	"lethe/fault"
	"lethe/memfd"
	"lethe/private"
	"lethe/session"
	"lethe/vici"
)

// driver looks after charon.
type driver struct {
	s   *Server
	dir string

	sup    daemon.Supervisor[*vici.Conn]
	config *os.File // strongswan.conf of the process that was started last, until it has been read

	poke chan struct{} // has a token when kills has grown

	mu      sync.Mutex
	clients map[uint64]*state // by the present number of the IKE SA
	kills   []uint64          // IKE SAs to end as soon as there is a connection
}

// state is what a driver remembers of a client. It does not say who it is.
type state struct {
	client      uint64 // its number in session.Ref: that of the IKE SA when it was admitted
	up          bool   // the IKE SA is
	established bool   // the core knows that it carries traffic
}

// wanted are the keys of charon's messages that are read. Addresses of customers are not among them.
var wanted = []string{"up", "uniqueid", "state", "remote-id", "remote-eap-id", "remote-vips", mlkem}

// Times of a driver.
const (
	stopGrace    = 5 * time.Second        // what charon gets to tell its clients
	redialPause  = 500 * time.Millisecond // before a broken connection is made anew
	startTimeout = 10 * time.Second       // until a process must answer
	talkTimeout  = 5 * time.Second        // for an answer
)

func newDriver(s *Server) *driver {
	d := &driver{s: s, dir: filepath.Join(s.cfg.RuntimeDir, fmt.Sprintf("charon%d", s.in.Daemon)), poke: make(chan struct{}, 1), clients: map[uint64]*state{}}
	i := int(s.in.Daemon)
	d.sup = daemon.Supervisor[*vici.Conn]{
		Binary: s.cfg.Binary, Start: d.start, Dial: d.dial, Talk: d.converse, Detach: s.cfg.Detach,
		Adopted:   func() { s.log.Log(event.Adopted{Part: event.IKEv2, Index: i}) },
		Restarted: func(n uint64) { s.log.Log(event.Restarted{Part: event.IKEv2, Index: i, Count: n}) },
		Ended:     d.ended,
		Silent:    func() { d.trouble(fault.Unavailable) }, // nobody can log in and nobody can be ended
		Redial:    redialPause, Patience: startTimeout, Grace: stopGrace,
	}
	return d
}

func (d *driver) socket() string { return filepath.Join(d.dir, "vici") }

func (d *driver) trouble(k fault.Kind) { d.s.log.Log(event.Trouble{Part: event.IKEv2, Kind: k}) }

// run keeps charon running and follows it until ctx ends.
func (d *driver) run(ctx context.Context) error {
	err := d.sup.Run(ctx)
	if d.s.cfg.Detach {
		return err
	}
	d.s.core.Reset(d.s.in.Daemon)
	return errors.Join(err, device.Remove(d.s.in.Device))
}

// dial connects to charon.
func (d *driver) dial(ctx context.Context) (*vici.Conn, int, error) {
	conn, pid, err := daemon.Dial(ctx, d.socket(), d.s.cfg.UID)
	if err != nil {
		return nil, 0, err
	}
	return vici.New(conn, wanted...), pid, nil
}

// capabilities are what charon starts with (capabilities(7)). It gives the second back when it has its ports.
var capabilities = []uintptr{unix.CAP_NET_ADMIN, unix.CAP_NET_BIND_SERVICE}

// start makes directory and device and starts charon.
func (d *driver) start(ctx context.Context) (*daemon.Process, error) {
	// No process, no session: what a former one left in the books ends here.
	d.s.core.Reset(d.s.in.Daemon)
	cfg := d.s.cfg
	err := prepare(d.dir, cfg.GID)
	if err == nil && d.s.in.Offload {
		err = makeDevice(d.s.in)
	}
	var p *daemon.Process
	if err == nil {
		p, err = d.launch(ctx)
	}
	if err != nil {
		d.trouble(fault.Internal)
	}
	return p, err
}

func (d *driver) launch(ctx context.Context) (*daemon.Process, error) {
	text := d.s.render()
	defer clear(text)
	d.wipe() // of a process that ended before it answered
	f, err := memfd.Fixed("strongswan.conf", int64(len(text)))
	if err == nil {
		_, err = f.WriteAt(text, 0)
		d.config = f
	}
	if err != nil {
		return nil, err
	}
	cfg := d.s.cfg
	return daemon.Start(ctx, daemon.Spec{
		Path: cfg.Binary, Env: []string{"STRONGSWAN_CONF=/proc/self/fd/3"}, UID: cfg.UID, GID: cfg.GID,
		Caps: capabilities, Files: []*os.File{f}, Confine: d.confine(),
	})
}

// confine returns charon's sandbox: its directory with the control socket, and the device by which it makes its
// tunnel when the kernel does not do ESP.
func (d *driver) confine() *daemon.Confinement {
	c := &daemon.Confinement{Write: []string{d.dir}}
	if !d.s.in.Offload {
		c.Write = append(c.Write, "/dev/net/tun")
	}
	return c
}

// wipe overwrites the configuration of the process that was started last, which keeps the file open.
func (d *driver) wipe() {
	if d.config == nil {
		return
	}
	size, err := d.config.Seek(0, io.SeekEnd)
	if err == nil {
		_, err = d.config.WriteAt(make([]byte, size), 0)
	}
	if errors.Join(err, d.config.Close()) != nil {
		d.trouble(fault.Internal)
	}
	d.config = nil
}

// ended reports what a process printed that is gone, and ends its sessions.
func (d *driver) ended(lines uint64) {
	if lines > 0 {
		d.s.log.Log(event.Mumbled{Part: event.IKEv2, Lines: lines})
	}
	d.mu.Lock()
	clear(d.clients)
	d.kills = nil
	d.mu.Unlock()
	d.s.core.Reset(d.s.in.Daemon)
}

// converse loads what charon must know, asks who is there and then follows events until the connection
// breaks or ctx ends. It reports whether it got as far as that. It owns c.
func (d *driver) converse(ctx context.Context, c *vici.Conn) bool {
	defer c.Close()
	if err := d.set(ctx, c); err != nil {
		if ctx.Err() == nil {
			d.trouble(fault.Internal)
		}
		return false
	}
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() { d.reap(ctx, c) })
	for {
		e, err := c.Next(ctx)
		if err != nil {
			return true
		}
		for _, m := range e.Message.Sections() {
			d.handle(e, m)
		}
	}
}

// set brings charon and its device to where customers are served and resumes. It changes nothing for IKE
// SAs that are up.
func (d *driver) set(ctx context.Context, c *vici.Conn) error {
	ctx, cancel := context.WithTimeout(ctx, talkTimeout)
	defer cancel()
	algorithms, err := c.Call(ctx, "get-algorithms", nil)
	if err != nil {
		return err
	}
	d.wipe() // charon has read it, since it answers
	id := d.s.ident
	if err := device.Configure(d.s.in.Device, d.s.in.Daemon); err != nil {
		return err
	}
	if _, err := c.Call(ctx, "load-key", new(vici.Message).Set("type", id.keyType).Set("data", id.key.Reveal())); err != nil {
		return err
	}
	for _, issuer := range id.chain[1:] {
		if _, err := c.Call(ctx, "load-cert", new(vici.Message).Set("type", "X509").Set("flag", "CA").Set("data", issuer)); err != nil {
			return err
		}
	}
	// Events first: what happens between the list and the first of them is in both.
	if err := c.Subscribe(ctx, "ike-updown", "ike-rekey", "child-updown"); err != nil {
		return err
	}
	var there []sa
	err = c.Stream(ctx, "list-sas", "list-sa", nil, func(m *vici.Message) {
		for _, s := range m.Sections() {
			if sa, ok := d.read(s); ok {
				there = append(there, sa)
			}
		}
	})
	if err != nil {
		return err
	}
	d.resume(there)
	// Last, so that nobody comes in before.
	_, err = c.Call(ctx, "load-conn", d.s.connection(hybrid(algorithms)))
	return err
}

// sa is an IKE SA that is up.
type sa struct {
	id       uint64
	username private.Value[string]
	v4       netip.Addr
}

// number returns the number of an IKE SA, 0 if there is none.
func number(m *vici.Message) uint64 {
	n, err := strconv.ParseUint(m.Get("uniqueid"), 10, 32)
	if err != nil {
		return 0 // never given by charon
	}
	return n
}

// read reads an IKE SA from a list. One that is not up yet, was replaced by another or is being deleted is
// none.
func (d *driver) read(m *vici.Message) (s sa, ok bool) {
	if st := m.Get("state"); st != "ESTABLISHED" && st != "REKEYING" {
		return s, false
	}
	s.id = number(m)
	user := m.Get("remote-eap-id")
	if user == "" { // the same as the identity
		user = m.Get("remote-id")
	}
	s.username = private.Of(user)
	for _, text := range m.List("remote-vips") {
		a, err := netip.ParseAddr(text)
		if err == nil && a.Is6() { // perhaps it asked for no other
			b := a.As16()
			a = session.Host(session.SubnetsOf(d.s.in.Daemon).V4, uint16(b[14])<<8|uint16(b[15]))
		}
		s.v4 = a
	}
	return s, s.id != 0
}

// resume tells the core who is there. Who is known and not there has left while nobody followed; who was
// admitted and is not up yet may still come.
func (d *driver) resume(there []sa) {
	var live []session.Live
	clients := map[uint64]*state{}
	for _, s := range there {
		clients[s.id] = &state{client: s.id, up: true, established: true}
		live = append(live, session.Live{Client: s.id, Username: s.username, V4: s.v4})
	}
	d.mu.Lock()
	var gone []uint64
	for id, st := range d.clients {
		if _, ok := clients[id]; ok {
			continue
		}
		if st.up {
			gone = append(gone, st.client)
		} else {
			clients[id] = st
		}
	}
	d.clients = clients
	d.mu.Unlock()
	// First those who are there: one that was rekeyed unseen is among the gone by its former number,
	// which Resume takes from it.
	d.s.core.Resume(d.s.in.Daemon, live)
	for _, client := range gone {
		d.s.core.End(d.ref(client))
	}
}

func (d *driver) ref(client uint64) session.Ref {
	return session.Ref{Daemon: d.s.in.Daemon, Client: client}
}

// handle does what an event asks for.
func (d *driver) handle(e vici.Event, m *vici.Message) {
	up := e.Message.Get("up") == "yes"
	switch e.Name {
	case "child-updown":
		if up {
			d.established(number(m))
		}
	case "ike-updown":
		if up {
			d.up(number(m))
		} else {
			d.end(number(m))
		}
	case "ike-rekey":
		d.renumber(number(m.Section("old")), number(m.Section("new")))
	}
}

// admit opens a session for an IKE SA.
func (d *driver) admit(id uint64, login session.Login) (session.Grant, error) {
	d.sup.Serving()
	d.mu.Lock()
	former := d.clients[id]
	d.mu.Unlock()
	if !d.sup.Started() {
		return session.Grant{}, fault.New(fault.Unavailable, "the server is not ready yet")
	}
	if former != nil { // an IKE SA proves who it is once
		return session.Grant{}, fault.New(fault.Denied, "already connected")
	}
	grant, err := d.s.core.Admit(d.ref(id), login)
	if err != nil {
		return grant, err
	}
	d.mu.Lock()
	d.clients[id] = &state{client: id}
	d.mu.Unlock()
	return grant, nil
}

// abandon ends a session whose IKE SA is not up.
func (d *driver) abandon(id uint64) {
	d.mu.Lock()
	st := d.clients[id]
	if st == nil || st.up {
		d.mu.Unlock()
		return
	}
	delete(d.clients, id)
	d.mu.Unlock()
	d.s.core.End(d.ref(st.client))
}

// up notes that an IKE SA is up. One that nobody admitted, or that was abandoned, has no session: it is
// ended.
func (d *driver) up(id uint64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if st := d.clients[id]; st != nil {
		st.up = true
	} else {
		d.condemn(id)
	}
}

// established tells the core that a client has its first Child SA.
func (d *driver) established(id uint64) {
	d.mu.Lock()
	st := d.clients[id]
	news := st != nil && !st.established
	if news {
		st.established = true
	}
	d.mu.Unlock()
	if news {
		d.s.core.Established(d.ref(st.client))
	}
}

// renumber notes that an IKE SA was replaced by another.
func (d *driver) renumber(from, to uint64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if st := d.clients[from]; st != nil {
		delete(d.clients, from)
		d.clients[to] = st
	}
}

// end forgets a client and ends its session.
func (d *driver) end(id uint64) {
	d.mu.Lock()
	st := d.clients[id]
	delete(d.clients, id)
	d.mu.Unlock()
	if st != nil {
		d.s.core.End(d.ref(st.client))
	}
}

// kill ends a client for good, now or as soon as there is a connection.
func (d *driver) kill(client uint64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	id := client // not known: one that was found and is nobody's
	for n, st := range d.clients {
		if st.client == client {
			id = n
		}
	}
	d.condemn(id)
}

// condemn has the reaper end an IKE SA. The caller holds d.mu.
func (d *driver) condemn(id uint64) {
	d.kills = append(d.kills, id)
	select {
	case d.poke <- struct{}{}:
	default:
	}
}

// reap ends IKE SAs that are to be ended, until ctx ends.
func (d *driver) reap(ctx context.Context, c *vici.Conn) {
	for {
		d.mu.Lock()
		kills := d.kills
		d.kills = nil
		d.mu.Unlock()
		for i, id := range kills {
			if err := d.terminate(ctx, c, id); err != nil { // left to the next connection
				d.mu.Lock()
				d.kills = append(d.kills, kills[i:]...)
				d.mu.Unlock()
				c.Close()
				return
			}
		}
		select {
		case <-d.poke:
		case <-ctx.Done():
			return
		}
	}
}

// terminate has charon end an IKE SA: it tells the client and does not wait for its answer. The session ends
// with charon's answer to us, so that its traffic does. The error is the connection's.
func (d *driver) terminate(ctx context.Context, c *vici.Conn, id uint64) error {
	ctx, cancel := context.WithTimeout(ctx, talkTimeout)
	defer cancel()
	_, err := c.Call(ctx, "terminate", new(vici.Message).Set("ike-id", fmt.Sprint(id)).Set("force", "yes").Set("timeout", "-1"))
	if err != nil && !errors.Is(err, vici.ErrFailed) { // it fails when the IKE SA is gone
		return err
	}
	d.end(id)
	return nil
}
