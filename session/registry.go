package session

import (
	"math/rand/v2"
	"net/netip"
	"sync"

	"lethe/day"
	"lethe/fault"
	"lethe/ledger"
	"lethe/location"
	"lethe/private"
	"lethe/usage"
)

// Config is what a [Registry] works with. All fields are required.
type Config struct {
	Salt   usage.Salt // key of the user hash
	Ledger *ledger.Ledger

	// Location returns where this server stands.
	Location func() location.ID

	// Check decides about user name and password, or proof, from the local
	// database. It returns nil or an error of the kinds that [Core.Admit]
	// documents.
	Check func(Login) error
	// Allowed decides whether a user who was admitted before may stay.
	Allowed func(username private.Value[string]) bool
	// Locate returns country and ISP of an address from a local file.
	Locate func(netip.Addr) (country, isp string)
	// Counters counts the bytes of tunnel addresses.
	Counters Counters
	// Kill tells a daemon to end a client for good. It must not call back
	// into the registry before it returns.
	Kill func(Ref)
	// Trouble is called when a byte counter could not be set or read.
	Trouble func()
}

// Counters counts bytes by tunnel address; an address that was not added
// cannot send. The firewall implements it.
type Counters interface {
	// Add starts to count; adding again changes nothing.
	Add(v4, v6 netip.Addr) error
	// Read returns the bytes to (in) and from (out) the customer.
	Read(v4, v6 netip.Addr) (in, out uint64, err error)
	// Remove stops to count and forgets everything about the addresses.
	Remove(v4, v6 netip.Addr) error
}

// Registry is the [Core]: the live sessions of one server.
type Registry struct {
	cfg   Config
	today func() day.Day

	mu    sync.Mutex
	byRef map[Ref]*entry
	pools map[uint8]*pool
}

// entry is a live session. The user name is kept for the checks of
// [Registry.Recheck] and dropped with the entry.
type entry struct {
	slot     ledger.Slot
	username private.Value[string]
	v4, v6   netip.Addr
	seen     bool // confirmed by its daemon since the agent started
}

// New returns a registry that continues what the ledger holds. Until a daemon
// has called Resume or Reset, its old sessions count as connected.
func New(cfg Config) *Registry {
	r := &Registry{cfg: cfg, today: day.Today, byRef: map[Ref]*entry{}, pools: map[uint8]*pool{}}
	for slot, s := range cfg.Ledger.Sessions() {
		r.byRef[Ref{s.Daemon, s.Client}] = &entry{slot: slot, v4: s.V4, v6: s.V6}
		r.pool(s.Daemon).take(s.V4)
	}
	return r
}

// Check decides about a login and opens nothing. It is for protocols that have
// to answer a client's proof some packets before the client is admitted; Admit
// checks again.
func (r *Registry) Check(login Login) error { return r.cfg.Check(login) }

// Admit implements [Core].
func (r *Registry) Admit(ref Ref, login Login) (Grant, error) {
	if err := r.cfg.Check(login); err != nil {
		return Grant{}, err
	}
	country, isp := r.cfg.Locate(login.Peer.Reveal())
	r.mu.Lock()
	defer r.mu.Unlock()
	r.end(ref) // a daemon that reuses a number has lost the old client
	v4, v6, ok := r.pool(ref.Daemon).pick()
	if !ok {
		return Grant{}, fault.New(fault.Full, "the server has no free tunnel address")
	}
	slot, err := r.cfg.Ledger.Begin(ledger.Session{
		Daemon: ref.Daemon, Client: ref.Client, V4: v4, V6: v6,
		User:    usage.Hash(r.cfg.Salt, []byte(login.Username.Reveal())),
		Country: country, ISP: isp, Location: r.cfg.Location(), Protocol: login.Protocol,
	})
	if err != nil {
		r.pool(ref.Daemon).put(v4)
		return Grant{}, err
	}
	e := &entry{slot: slot, username: login.Username, v4: v4, v6: v6, seen: true}
	r.byRef[ref] = e
	if r.cfg.Counters.Add(v4, v6) != nil {
		r.cfg.Trouble()
		r.end(ref)
		return Grant{}, fault.New(fault.Unavailable, "the server cannot account for a new session")
	}
	return Grant{V4: v4, V6: v6}, nil
}

// Renew implements [Core].
func (r *Registry) Renew(ref Ref, username, password private.Value[string]) error {
	r.mu.Lock()
	e, ok := r.byRef[ref]
	same := ok && e.username.Reveal() == username.Reveal()
	r.mu.Unlock()
	if !same {
		return fault.New(fault.Unauthenticated, "not the user of this session")
	}
	return r.cfg.Check(Login{Username: username, Password: password})
}

// Established implements [Core].
func (r *Registry) Established(ref Ref) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if e, ok := r.byRef[ref]; ok {
		r.cfg.Ledger.SetLive(e.slot)
	}
}

// End implements [Core].
func (r *Registry) End(ref Ref) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.end(ref)
}

// end closes a session. The record is in the ledger before the counters are
// removed, so that a kill -9 in between loses nothing.
func (r *Registry) end(ref Ref) {
	e, ok := r.byRef[ref]
	if !ok {
		return
	}
	delete(r.byRef, ref)
	in, out, err := r.cfg.Counters.Read(e.v4, e.v6)
	if err != nil {
		r.cfg.Trouble()
	}
	r.cfg.Ledger.End(e.slot, r.today(), in, out)
	if r.cfg.Counters.Remove(e.v4, e.v6) != nil {
		r.cfg.Trouble()
	}
	r.pool(ref.Daemon).put(e.v4)
}

// Resume implements [Core]. A client that the ledger does not know cannot be
// accounted for and is killed. The ledger keeps the number by which a client was
// admitted; the next agent finds it by its address again.
func (r *Registry) Resume(daemon uint8, live []Live) {
	r.mu.Lock()
	var strangers []Ref
	byV4 := map[netip.Addr]Ref{}
	for ref, e := range r.byRef {
		if ref.Daemon == daemon {
			byV4[e.v4] = ref
		}
	}
	for _, c := range live {
		ref := Ref{daemon, c.Client}
		former, ok := byV4[c.V4]
		e := r.byRef[former]
		if other, taken := r.byRef[ref]; !ok || taken && other != e {
			strangers = append(strangers, ref)
			continue
		}
		delete(r.byRef, former)
		r.byRef[ref] = e
		e.seen, e.username = true, c.Username
		r.cfg.Ledger.SetLive(e.slot)
		if r.cfg.Counters.Add(e.v4, e.v6) != nil {
			r.cfg.Trouble()
		}
	}
	for ref, e := range r.byRef {
		if ref.Daemon == daemon && !e.seen {
			r.end(ref)
		}
	}
	r.mu.Unlock()
	r.kill(strangers)
}

// Reset implements [Core].
func (r *Registry) Reset(daemon uint8) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for ref := range r.byRef {
		if ref.Daemon == daemon {
			r.end(ref)
		}
	}
}

// Recheck ends every session whose user is no longer allowed: the licence has
// ended or was disabled, or the credential was replaced. It returns how many.
func (r *Registry) Recheck() int {
	r.mu.Lock()
	var out []Ref
	for ref, e := range r.byRef {
		if e.seen && !r.cfg.Allowed(e.username) {
			out = append(out, ref)
		}
	}
	r.mu.Unlock()
	r.kill(out)
	return len(out)
}

// kill is called without the lock: a daemon may report the end of the client
// at once.
func (r *Registry) kill(refs []Ref) {
	for _, ref := range refs {
		r.cfg.Kill(ref)
	}
}

// Count returns the number of sessions.
func (r *Registry) Count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.byRef)
}

func (r *Registry) pool(daemon uint8) *pool {
	p, ok := r.pools[daemon]
	if !ok {
		p = &pool{nets: SubnetsOf(daemon), used: map[uint16]bool{}}
		r.pools[daemon] = p
	}
	return p
}

// pool hands out the tunnel addresses of one daemon in random order, so that
// an address says nothing about when its session began.
type pool struct {
	nets Subnets
	used map[uint16]bool
}

// The host numbers that customers get; 0 and 1 are the network and the
// server, 65535 is the broadcast address.
const (
	firstHost = 2
	lastHost  = 65534
)

func (p *pool) pick() (v4, v6 netip.Addr, ok bool) {
	if len(p.used) > (lastHost-firstHost)/2 {
		// Picking at random stays fast while half the pool is free. No daemon
		// serves 32,766 customers.
		return v4, v6, false
	}
	for {
		n := uint16(firstHost + rand.IntN(lastHost-firstHost+1))
		if !p.used[n] {
			p.used[n] = true
			return Host(p.nets.V4, n), Host(p.nets.V6, n), true
		}
	}
}

func (p *pool) take(v4 netip.Addr) { p.used[hostNumber(v4)] = true }

func (p *pool) put(v4 netip.Addr) { delete(p.used, hostNumber(v4)) }

// Host returns the nth address of a subnet of at least 16 host bits.
func Host(net netip.Prefix, n uint16) netip.Addr {
	b := net.Masked().Addr().AsSlice()
	b[len(b)-2], b[len(b)-1] = byte(n>>8), byte(n)
	a, _ := netip.AddrFromSlice(b)
	return a
}

// Twin returns the IPv6 tunnel address that goes with an IPv4 one.
func Twin(v4 netip.Addr) netip.Addr {
	daemon := v4.As4()[1] - SubnetsOf(0).V4.Addr().As4()[1]
	return Host(SubnetsOf(daemon).V6, hostNumber(v4))
}

func hostNumber(v4 netip.Addr) uint16 {
	b := v4.As4()
	return uint16(b[2])<<8 | uint16(b[3])
}
