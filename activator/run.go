package activator

import (
	"context"
	"errors"
	"net/http"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"lethe/attest"
	"lethe/event"
	"lethe/fault"
	"lethe/notify"
)

// Bounds of the schedule.
const (
	visits   = 16               // at the same time
	maxPause = 10 * time.Minute // between visits of a server that is refused
)

// schedule is when a server is visited next.
type schedule struct {
	next  time.Time
	pause time.Duration // after the last refusal
	again bool          // it was attested since this program began
}

// Run visits servers until ctx ends: activates those that wait, and attests others again when half of
// their certificates' life is over. It returns early only when it must not go on: the record is damaged, or
// was put back.
func (a *Activator) Run(ctx context.Context, log *event.Logger) error {
	if err := notify.Ready(); err != nil {
		return fault.Wrap(fault.Unavailable, "the service manager does not answer", err)
	}
	log.Log(event.Started{Part: event.Activator})
	defer log.Log(event.Stopped{Part: event.Activator})
	plan := map[string]*schedule{}
	ticker := time.NewTicker(min(time.Duration(a.cfg.Waiting), time.Duration(a.cfg.Active)))
	defer ticker.Stop()
	for {
		if err := a.round(ctx, plan, log); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

// round visits every server whose time has come.
func (a *Activator) round(ctx context.Context, plan map[string]*schedule, log *event.Logger) error {
	due := map[string]*Server{}
	now := time.Now()
	err := a.Store.View(func(s *State) error {
		for id, server := range s.servers {
			if plan[id] == nil {
				plan[id] = &schedule{}
			}
			if server.Confirmed && !server.Revoked && !now.Before(plan[id].next) {
				kept := *server
				due[id] = &kept
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	var mu sync.Mutex
	var fatal error
	g := errgroup.Group{}
	g.SetLimit(visits)
	for id, server := range due {
		g.Go(func() error {
			next := plan[id]
			activated, err := a.visit(ctx, server, next.again)
			next.again = next.again || activated
			next.settle(a.cfg, err)
			switch reason, _ := attest.ReasonOf(err); {
			case err == nil && activated:
				log.Log(event.Activated{})
			case reason == attest.ActivatorRestored || fault.Of(err) == fault.Untrusted && reason == 0:
				mu.Lock()
				fatal = errors.Join(fatal, err)
				mu.Unlock()
			case err != nil && ctx.Err() == nil:
				log.Log(event.Trouble{Part: event.Activator, Kind: fault.Of(err)})
			}
			return nil
		})
	}
	_ = g.Wait() // no visit returns an error
	return fatal
}

// settle says when the next visit is.
func (s *schedule) settle(c Config, err error) {
	reason, _ := attest.ReasonOf(err)
	switch {
	case err == nil:
		s.pause = 0
		s.next = time.Now().Add(time.Duration(c.Active))
	case reason == 0: // it may answer at any moment
		s.pause = 0
		s.next = time.Now().Add(time.Duration(c.Waiting))
	default: // each refusal is a line of the record
		s.pause = min(max(2*s.pause, time.Duration(c.Waiting)), maxPause)
		s.next = time.Now().Add(s.pause)
	}
}

// visit asks a server how it is, and activates it when it waits for secrets or when it is time to renew
// them: also when this program has not done so yet, because it may have been stopped between decision and
// receipt. It says whether it did.
func (a *Activator) visit(ctx context.Context, server *Server, again bool) (activated bool, err error) {
	l := dial(server.Address)
	defer l.close()
	identity, err := l.call(ctx, http.MethodGet, attest.PathIdentity, nil)
	if err != nil {
		return false, err
	}
	var says attest.Identity
	if err := attest.Decode(identity, &says); err == nil && len(says.Head) > 0 {
		if err := a.checkHead(says.Head); err != nil {
			return false, a.refused(server.ID, identity, err, time.Now())
		}
		if again && !a.due(server) {
			return false, nil
		}
	}
	_, err = a.activate(ctx, l, server.ID, identity, time.Now)
	return err == nil, err
}

// checkHead looks at the head that a server shows: our own, which the record lacks, says that it was put back.
func (a *Activator) checkHead(head []byte) error {
	return a.Store.View(func(s *State) error {
		if h, err := attest.ParseHead(head); err == nil && h.Key.Equal(s.key) && !s.knows(h) {
			return attest.Refuse(attest.ActivatorRestored, "")
		}
		return nil
	})
}

// due says whether a server's certificates are to be renewed.
func (a *Activator) due(server *Server) bool {
	return server.Accepted == nil || server.Refusals > 0 || time.Until(server.Accepted.Until) < time.Duration(a.cfg.Life)/2
}
