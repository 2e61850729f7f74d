package client

import (
	"context"
	"errors"
	"net"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"lethe/fault"
)

// way is one server at one address, with the routes to race in the order of their start.
type way []route

// routesTo returns every way to t: each address of each server.
func routesTo(t *Target) (ways []way) {
	for _, s := range t.Servers {
		for _, a := range s.Addresses {
			var w way
			for _, e := range s.Endpoints {
				k, spoken := kinds[e.Protocol]
				known := slices.ContainsFunc(w, func(r route) bool { return r.endpoint.Protocol == e.Protocol })
				if spoken && !known && t.wants(k) {
					w = append(w, route{s, e, portal{a.Unmap(), string(k.transport), orPort(k.portal, e.Port)}, k.turn})
				}
			}
			if len(w) > 0 {
				slices.SortStableFunc(w, func(a, b route) int { return a.turn - b.turn })
				ways = append(ways, w)
			}
		}
	}
	return ways
}

func orPort(a, b uint16) uint16 {
	if a != 0 {
		return a
	}
	return b
}

// portals are what the lock must let through for w.
func (w way) portals() (all []portal) {
	for _, r := range w {
		all = append(all, r.portal)
	}
	return all
}

// reachable reports whether the machine has a route to w's address. No packet is sent: connecting a
// UDP socket only looks the route up.
func (w way) reachable(ctx context.Context) bool {
	d := net.Dialer{Control: func(_, _ string, c syscall.RawConn) (err error) {
		return errors.Join(c.Control(func(fd uintptr) {
			err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, Mark)
		}), err)
	}}
	conn, err := d.DialContext(ctx, "udp", net.JoinHostPort(w[0].addr.String(), "9"))
	if err != nil {
		return false
	}
	return conn.Close() == nil
}

// racer is one tunnel that a race has started.
type racer struct {
	route  route
	face   *face         // set before it is reported up
	cancel func()        // ends it
	ended  chan struct{} // closed when it has ended
	err    error         // why; set before ended is closed
}

// fatal reports whether trying again would not help.
func fatal(err error) bool {
	k := fault.Of(err)
	return k == fault.Unauthenticated || k == fault.Expired || k == fault.Denied || k == fault.TooMany
}

// race starts the routes of w, each at its turn or as soon as one has failed, and returns the first tunnel
// that is up. The others are ended and returned too: they may still be taking their leave of
// the server. All of them end with ctx; wg counts them.
func race(ctx context.Context, wg *sync.WaitGroup, w way, with func(route) tunnel, stagger, limit time.Duration) (*racer, []*racer, error) {
	raced, stop := context.WithTimeout(ctx, limit)
	defer stop()
	reports := make(chan *racer, 2*len(w)) // each reports at most twice: up and ended
	var running []*racer
	began := time.Now()
	timer := time.NewTimer(limit) // until the next one's turn
	defer timer.Stop()
	next := func() {
		r := &racer{route: w[len(running)], ended: make(chan struct{})}
		var own context.Context
		own, r.cancel = context.WithCancel(ctx)
		running = append(running, r)
		wg.Go(func() {
			defer r.cancel()
			r.err = with(r.route).run(own, func(f *face) {
				r.face = f
				reports <- r
			})
			close(r.ended)
			reports <- r
		})
		if len(running) < len(w) {
			turns := w[len(running)].turn - w[0].turn
			timer.Reset(time.Until(began.Add(time.Duration(turns) * stagger)))
		}
	}
	next()
	for failed := 0; ; {
		var err error
		select {
		case <-timer.C:
		case r := <-reports:
			if r.face != nil {
				return r, endAll(running, r), nil
			}
			failed++
			err = r.err
		case <-raced.Done():
			endAll(running, nil)
			return nil, nil, fault.Wrap(fault.Unavailable, "the server does not answer", raced.Err())
		}
		switch {
		case err != nil && (fatal(err) || failed == len(w)):
			endAll(running, nil)
			return nil, nil, err
		case len(running) < len(w):
			next()
		}
	}
}

// endAll tells all but one to end, and returns them.
func endAll(running []*racer, but *racer) (others []*racer) {
	for _, r := range running {
		if r != but {
			r.cancel()
			others = append(others, r)
		}
	}
	return others
}
