package usage

import (
	"context"
	"math/rand/v2"
	"time"

	"lethe/event"
	"lethe/fault"
)

// Outbox is where finished sessions wait; the ledger implements it.
type Outbox interface {
	// Freeze returns the next batch, possibly empty; the same one until Acked.
	Freeze() Batch
	// Acked says that the batch of that id was accepted.
	Acked(BatchID)
	// Pending returns how many records wait.
	Pending() int
}

// Sender delivers batches at moments of its own clock: a random phase after
// the start, then at a fixed interval, whether there is something to send or
// not. When and how often it sends tells nothing about sessions.
type Sender struct {
	Outbox Outbox
	// Post delivers one encoded batch and returns nil only when it has been
	// accepted for good.
	Post func(ctx context.Context, body []byte) error
	// Every returns the interval, at least [lethe/spec.UsageFloor]; it is asked
	// again after every batch because the specification can change.
	Every func() time.Duration
	// Changed, unless nil, says that Every may return another interval now. If it
	// does, a new random phase begins: a sender that starts before it has been
	// told its interval does not keep records for as long as the default says.
	Changed <-chan struct{}
	Log     *event.Logger
}

// Run sends until ctx ends.
func (s *Sender) Run(ctx context.Context) {
	every := s.Every()
	timer := time.NewTimer(rand.N(every))
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.Changed:
			if now := s.Every(); now != every {
				every = now
				timer.Reset(rand.N(every))
			}
			continue
		case <-timer.C:
		}
		every = s.Every()
		timer.Reset(every)
		if err := s.Flush(ctx); err != nil && ctx.Err() == nil {
			// The next try is at the next tick: trying sooner would gain nothing
			// and would make the moment depend on the network.
			s.Log.Log(event.Trouble{Part: event.Usage, Kind: fault.Of(err)})
		}
	}
}

// Drain flushes until everything has been accepted or ctx ends. A server calls it
// when it stops, after its sessions have ended: what is not delivered then is
// gone with the server's memory.
func (s *Sender) Drain(ctx context.Context) error {
	for {
		err := s.Flush(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(drainPause):
		}
	}
}

// drainPause is the time between two attempts of [Sender.Drain].
const drainPause = 250 * time.Millisecond

// Flush sends one batch, and more while more than fits into one is waiting.
func (s *Sender) Flush(ctx context.Context) error {
	for {
		b := s.Outbox.Freeze()
		body, err := b.Encode()
		if err != nil {
			return err
		}
		if err := s.Post(ctx, body); fault.Of(err) == fault.Invalid {
			// A batch that will never be accepted (a clock that is wrong by
			// weeks, for instance) must not keep back all later ones.
			s.Log.Log(event.Trouble{Part: event.Usage, Kind: fault.Invalid})
		} else if err != nil {
			return err
		}
		s.Outbox.Acked(b.ID)
		if s.Outbox.Pending() == 0 {
			return nil
		}
	}
}
