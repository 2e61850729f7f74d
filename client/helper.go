package client

import (
	"context"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"lethe/event"
	"lethe/fault"
)

// HelperConfig says how a [Helper] runs. Paths are absolute. Zero fields take the default named.
type HelperConfig struct {
	Socket     string // default RuntimeDir/helper.sock
	RuntimeDir string // default /run/lethe; made if absent
	StateDir   string // what must survive a power cut; default /var/lib/lethe; made if absent
	Group      string // who may use the socket beside root; empty for nobody
	ResolvConf string // default /etc/resolv.conf
	OpenVPN    string // default /usr/sbin/openvpn
	Charon     string // default /usr/sbin/charon-systemd; where it is not installed there is no IKEv2
	NFT        string // default /usr/sbin/nft
	Resolvectl string // default /usr/bin/resolvectl, used where systemd-resolved keeps resolv.conf

	UID, GID uint32 // whom OpenVPN and charon run as where that user may open /dev/net/tun; default 65534 (nobody)

	Stagger time.Duration // how much later the next turn of a race comes; default 250 ms (RFC 8305, section 8)
	Limit   time.Duration // how long one server may take; default 8 s
	Mend    time.Duration // how often the barrier is looked after; default 5 s
	Beat    time.Duration // how often a slot's heartbeat is sent; default 30 s
	Silence time.Duration // how long an IKEv2 server may be silent; OpenVPN's says so itself, by default the same; default 60 s
	Backoff time.Duration // first wait after every way has failed once; doubles up to 20 times; default 500 ms
}

func (c *HelperConfig) setDefaults() {
	for _, d := range []struct {
		field *string
		value string
	}{
		{&c.RuntimeDir, "/run/lethe"}, {&c.StateDir, "/var/lib/lethe"}, {&c.ResolvConf, "/etc/resolv.conf"},
		{&c.OpenVPN, "/usr/sbin/openvpn"}, {&c.Charon, "/usr/sbin/charon-systemd"}, {&c.NFT, "/usr/sbin/nft"}, {&c.Resolvectl, "/usr/bin/resolvectl"},
	} {
		if *d.field == "" {
			*d.field = d.value
		}
	}
	for _, d := range []struct {
		field *time.Duration
		value time.Duration
	}{
		{&c.Stagger, 250 * time.Millisecond}, {&c.Silence, time.Minute}, {&c.Limit, 8 * time.Second}, {&c.Mend, 5 * time.Second}, {&c.Backoff, 500 * time.Millisecond},
		{&c.Beat, 30 * time.Second},
	} {
		if *d.field == 0 {
			*d.field = d.value
		}
	}
	if c.Socket == "" {
		c.Socket = filepath.Join(c.RuntimeDir, "helper.sock")
	}
	if c.UID == 0 || c.GID == 0 {
		c.UID, c.GID = 65534, 65534
	}
}

// Helper is the root side of the app. Make one with [NewHelper]; it serves once.
type Helper struct {
	cfg     HelperConfig
	log     *event.Logger
	barrier *barrier

	asking  sync.Mutex // held by the one request that changes something
	session *session   // owned by who holds asking

	mu      sync.Mutex
	status  Status
	device  string        // of the present tunnel
	born    time.Time     // when it came up
	changed chan struct{} // closed and replaced at every change
}

// session is one goroutine that keeps a tunnel up.
type session struct {
	cancel func()
	ended  chan struct{}
	holder *holder // of its slot; nil when it has none
}

// NewHelper returns a helper that has not touched anything yet. log may be nil.
func NewHelper(cfg HelperConfig, log *event.Logger) *Helper {
	cfg.setDefaults()
	if _, err := os.Stat(cfg.Resolvectl); err != nil {
		cfg.Resolvectl = ""
	}
	return &Helper{cfg: cfg, log: log, changed: make(chan struct{}), barrier: &barrier{
		lock: lock{cfg.NFT}, names: names{resolvConf: cfg.ResolvConf, resolvectl: cfg.Resolvectl}, undoPath: filepath.Join(cfg.StateDir, "undo.json"),
	}}
}

// Run serves until ctx ends. The tunnel ends with it; the lock, if up, stays up.
func (h *Helper) Run(ctx context.Context) error {
	if os.Geteuid() != 0 {
		return fault.New(fault.Denied, "the helper must run as root")
	}
	for _, dir := range []struct {
		path string
		mode os.FileMode
	}{{h.cfg.RuntimeDir, 0o755}, {h.cfg.StateDir, 0o700}} {
		if err := os.MkdirAll(dir.path, dir.mode); err != nil {
			return fault.Wrap(fault.Internal, "helper: its directories cannot be made", err)
		}
	}
	alone, err := os.OpenFile(filepath.Join(h.cfg.RuntimeDir, "helper.lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err == nil {
		defer alone.Close()
		err = unix.Flock(int(alone.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	}
	if err != nil {
		return fault.Wrap(fault.Conflict, "helper: another one is running", err)
	}
	locked, err := h.barrier.recover(ctx)
	if err != nil {
		return err
	}
	if locked {
		h.step(Found, func(s *Status) { s.Problem = abandoned() })
	}
	return h.serve(ctx)
}

func abandoned() *Problem {
	return &Problem{fault.Unavailable.String(), "the network lock is up and there is no tunnel",
		"`lethe connect` connects again, `lethe disconnect` lowers the lock"}
}

// look keeps the barrier in order until ctx ends.
func (h *Helper) look(ctx context.Context) {
	tick := time.NewTicker(h.cfg.Mend)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if err := h.barrier.mend(ctx); err != nil && ctx.Err() == nil {
				h.log.Log(event.Trouble{Part: event.Helper, Kind: fault.Of(err)})
			}
		}
	}
}

// step moves the state by [Next], changes the status and tells who watches. A step that makes no
// sense changes nothing.
func (h *Helper) step(step Step, change func(*Status)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	next, ok := Next(h.status.State, step)
	if !ok {
		return
	}
	h.status.State = next
	h.apply(change)
}

// note changes the status without a step.
func (h *Helper) note(change func(*Status)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.apply(change)
}

func (h *Helper) apply(change func(*Status)) {
	if change != nil {
		change(&h.status)
	}
	if h.status.Lock = h.status.State.Locked(); h.status.State != Connected {
		h.status.IPv6, h.status.Addresses, h.status.Slot = false, nil, ""
	}
	close(h.changed)
	h.changed = make(chan struct{})
}

// present returns the status and a channel that is closed at its next change.
func (h *Helper) present() (Status, <-chan struct{}) {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := h.status
	if s.State == Connected {
		s.Received, s.Sent = traffic(h.device)
		s.Seconds = int64(time.Since(h.born).Seconds())
	}
	return s, h.changed
}

// connect raises the barrier and starts a session. The tunnel that is up, if any, is left; the
// barrier is not lowered in between.
func (h *Helper) connect(ctx context.Context, t *Target) error {
	h.asking.Lock()
	defer h.asking.Unlock()
	ways, err := h.ways(t)
	if err != nil {
		return err
	}
	h.leave() // before the step: what the old session still reports must not count for the new one
	h.step(Ask, func(s *Status) {
		*s = Status{State: s.State, Location: t.Location.Code, Country: t.Location.Country, City: t.Location.City}
	})
	if err := h.barrier.raise(ctx, ways[0].portals(), nil); err != nil {
		if h.barrier.isUp() {
			h.step(Refused, func(s *Status) { s.Problem = ProblemOf(err) })
		} else {
			h.step(Leave, nil)
			h.step(Left, func(s *Status) { *s = Status{Problem: ProblemOf(err)} })
		}
		return err
	}
	own, cancel := context.WithCancel(ctx)
	h.session = &session{cancel, make(chan struct{}), h.hold(own, t.Slot)}
	go func(ended chan struct{}) {
		defer close(ended)
		h.keep(own, t, ways)
	}(h.session.ended)
	return nil
}

// ways are those to t by programs that are installed.
func (h *Helper) ways(t *Target) ([]way, error) {
	ways, lack := routesTo(t), ""
	for i, w := range ways {
		ways[i] = slices.DeleteFunc(w, func(r route) bool {
			k := kinds[r.endpoint.Protocol]
			_, err := os.Stat(k.program(&h.cfg))
			if err != nil {
				lack = k.hint
			}
			return err != nil
		})
	}
	ways = slices.DeleteFunc(ways, func(w way) bool { return len(w) == 0 })
	if len(ways) == 0 {
		return nil, fault.New(fault.Internal, "the program for this protocol is not installed").WithHint(lack)
	}
	return ways, nil
}

// disconnect takes everything down. It is no error when nothing is up.
func (h *Helper) disconnect(ctx context.Context) error {
	h.asking.Lock()
	defer h.asking.Unlock()
	before, _ := h.present()
	h.step(Leave, nil)
	if h.session != nil {
		h.session.holder.release(ctx, before.State == Connected)
	}
	h.leave()
	err := h.barrier.lower(ctx)
	if h.barrier.isUp() {
		h.step(Stuck, func(s *Status) { s.Problem = ProblemOf(err) })
		return err
	}
	h.step(Left, func(s *Status) { *s = Status{} })
	return err
}

// leave ends the session and waits for it. The caller holds asking.
func (h *Helper) leave() {
	if h.session != nil {
		h.session.cancel()
		<-h.session.ended
		h.session.holder.release(context.Background(), false)
		h.session = nil
	}
}

// settled is how long a tunnel must have lived for its loss to be no sign of a failing server.
const settled = 10 * time.Second

// keep connects and connects again until ctx ends or a server refuses.
func (h *Helper) keep(ctx context.Context, t *Target, ways []way) {
	var running sync.WaitGroup
	defer running.Wait()
	for failed, wait := 0, time.Duration(0); pause(ctx, wait); {
		running.Wait() // who lost the last race still has the device's name
		r, losers, err := h.try(ctx, &running, t, ways[failed%len(ways)])
		wait = 0
		if err == nil {
			born := time.Now()
			h.part(ctx, r, losers)
			<-r.ended
			if err = r.err; ctx.Err() == nil && !fatal(err) {
				h.step(Lost, func(s *Status) { s.Problem = ProblemOf(err) })
			}
			if time.Since(born) > settled {
				failed = 0
				continue // the same server again, at once
			}
		}
		switch {
		case ctx.Err() != nil:
			return
		case fatal(err):
			h.step(Refused, func(s *Status) { s.Problem = ProblemOf(err) })
			return
		}
		h.note(func(s *Status) { s.Problem = ProblemOf(err) })
		if failed++; failed%len(ways) == 0 {
			wait = h.cfg.Backoff << min(failed/len(ways)-1, 4)
		}
	}
}

// try brings one tunnel up by one way and leads the machine into it.
func (h *Helper) try(ctx context.Context, running *sync.WaitGroup, t *Target, w way) (*racer, []*racer, error) {
	h.note(func(s *Status) { s.Attempts, s.Server, s.Protocol, s.Transport = s.Attempts+1, w[0].server.ID, "", "" })
	if err := h.barrier.raise(ctx, w.portals(), nil); err != nil {
		return nil, nil, err
	}
	if !w.reachable(ctx) {
		return nil, nil, fault.New(fault.Unavailable, "the machine has no route to the server").WithHint("is it connected to a network?")
	}
	r, losers, err := race(ctx, running, w, func(r route) tunnel {
		return kinds[r.endpoint.Protocol].tunnel(errand{&h.cfg, r, t})
	}, h.cfg.Stagger, h.cfg.Limit)
	if err != nil {
		return nil, nil, err
	}
	if len(losers) == 0 {
		w = way{r.route}
	}
	if err := h.barrier.raise(ctx, w.portals(), r.face); err != nil {
		r.cancel()
		return nil, nil, err
	}
	h.step(Up, func(s *Status) {
		k := kinds[r.route.endpoint.Protocol]
		s.Problem, s.Attempts, s.Server, s.Protocol, s.Transport = nil, 0, r.route.server.ID, k.protocol, k.transport
		s.IPv6, s.Addresses = r.face.v6.IsValid(), r.face.addrs()
		h.device, h.born = r.face.device, time.Now()
	})
	return r, losers, nil
}

// part closes the portals of a race behind those who lost it, as soon as they have told the server that
// they leave.
func (h *Helper) part(ctx context.Context, r *racer, losers []*racer) {
	for _, l := range losers {
		select {
		case <-l.ended:
		case <-r.ended:
			return
		}
	}
	if len(losers) == 0 {
		return
	}
	if err := h.barrier.raise(ctx, []portal{r.route.portal}, r.face); err != nil && ctx.Err() == nil && exists(r.face.device) {
		h.log.Log(event.Trouble{Part: event.Helper, Kind: fault.Of(err)})
		r.cancel()
	}
}

// pause waits for about d, from half to one and a half of it, or not at all for 0; it reports
// whether ctx lives on.
func pause(ctx context.Context, d time.Duration) bool {
	if d == 0 {
		return ctx.Err() == nil
	}
	timer := time.NewTimer(d/2 + rand.N(d))
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
