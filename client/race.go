package client

import (
	"context"
	"errors"
	"net"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"lethe/fault"
	"lethe/protocol"
)

// way is one server at one address, with the routes to race in the order of their start.
type way []route

// routesTo returns every way to t: each address of each server.
func routesTo(t *Target) (ways []way) {
	for _, s := range t.Servers {
		for _, a := range s.Addresses {
			var w way
			for _, e := range s.Endpoints {
				proto := map[protocol.ID]string{protocol.OpenVPNUDP: "udp", protocol.OpenVPNTCP: "tcp"}[e.Protocol]
				known := slices.ContainsFunc(w, func(r route) bool { return r.proto == proto })
				if t.Transport != Auto && t.Transport != UDP && t.Transport != TCP || !t.Transport.wants(e.Protocol) || known {
					continue
				}
				w = append(w, route{s, e, portal{a.Unmap(), proto, e.Port}})
			}
			if len(w) > 0 {
				slices.SortFunc(w, func(a, b route) int { return strings.Compare(b.proto, a.proto) }) // UDP first
				ways = append(ways, w)
			}
		}
	}
	return ways
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

// race starts the first route of w, the next one a stagger later or when the first has failed, and
// returns the first tunnel that is up; the others are ended. All of them end with ctx; wg counts
// them.
func race(ctx context.Context, wg *sync.WaitGroup, w way, with func(route) tunnel, stagger, limit time.Duration) (*racer, error) {
	raced, stop := context.WithTimeout(ctx, limit)
	defer stop()
	reports := make(chan *racer, 2*len(w)) // each reports at most twice: up and ended
	var running []*racer
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
	}
	timer := time.NewTimer(stagger)
	defer timer.Stop()
	next()
	for failed := 0; ; {
		var err error
		select {
		case <-timer.C:
		case r := <-reports:
			if r.face != nil {
				endAll(running, r)
				return r, nil
			}
			failed++
			err = r.err
		case <-raced.Done():
			endAll(running, nil)
			return nil, fault.Wrap(fault.Unavailable, "the server does not answer", raced.Err())
		}
		switch {
		case err != nil && (fatal(err) || failed == len(w)):
			endAll(running, nil)
			return nil, err
		case len(running) < len(w):
			next()
		}
	}
}

func endAll(running []*racer, but *racer) {
	for _, r := range running {
		if r != but {
			r.cancel()
		}
	}
}
