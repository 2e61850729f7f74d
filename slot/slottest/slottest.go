// Package slottest is the contract of [slot.Store]: what every store must pass.
package slottest

import (
	"context"
	"crypto/rand"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"lethe/fault"
	"lethe/slot"
)

// Lease is the lease of the stores under test. It is long enough that a busy
// machine does not end a slot in the middle of a step, and short enough to wait
// for.
const Lease = 3 * time.Second

// Run tests a store. In runs one test with a store of its own, whose slots live
// for [Lease], in a world where time.Sleep lets them age.
func Run(t *testing.T, in func(t *testing.T, test func(t *testing.T, s slot.Store))) {
	for _, c := range []struct {
		name string
		test func(*testing.T, slot.Store)
	}{
		{"limit", limit}, {"instead of the old", instead}, {"release", release}, {"end", end}, {"lapse", lapse},
		{"rebuilt from heartbeats", rebuilt}, {"smaller limit", smaller}, {"other licences", others},
		{"many devices", many}, {"at once", atOnce},
	} {
		t.Run(c.name, func(t *testing.T) { in(t, c.test) })
	}
}

func id() (i slot.ID) {
	_, _ = rand.Read(i[:])
	return i
}

func licence() slot.Licence { return slot.Licence(id()) }

// check wants err to be of a kind; with none wanted, to be nil.
func check(t *testing.T, what string, err error, want ...fault.Kind) {
	t.Helper()
	switch {
	case len(want) == 0 && err != nil:
		t.Fatalf("%s: %v", what, err)
	case len(want) == 1 && (err == nil || fault.Of(err) != want[0]):
		t.Fatalf("%s: got %v, want %v", what, err, want[0])
	}
}

func count(t *testing.T, s slot.Store, l slot.Licence, want int) {
	t.Helper()
	if n, err := s.Count(t.Context(), l); err != nil || n != want {
		t.Fatalf("%d slots are live (%v), want %d", n, err, want)
	}
}

// fill takes n slots of a licence that may have as many.
func fill(t *testing.T, s slot.Store, l slot.Licence, n int) []slot.ID {
	t.Helper()
	all := make([]slot.ID, n)
	for i := range all {
		all[i] = id()
		check(t, "take", s.Take(t.Context(), l, all[i], slot.ID{}, n))
	}
	return all
}

func limit(t *testing.T, s slot.Store) {
	ctx, l := t.Context(), licence()
	count(t, s, l, 0)
	fill(t, s, l, 3)
	check(t, "the fourth of three", s.Take(ctx, l, id(), slot.ID{}, 3), fault.TooMany)
	count(t, s, l, 3)
	check(t, "the fourth of four", s.Take(ctx, l, id(), slot.ID{}, 4))
	check(t, "one of none", s.Take(ctx, licence(), id(), slot.ID{}, 0), fault.TooMany)
}

func instead(t *testing.T, s slot.Store) {
	ctx, l := t.Context(), licence()
	all := fill(t, s, l, 2)
	fresh := id()
	check(t, "own place again", s.Take(ctx, l, fresh, all[0], 2))
	count(t, s, l, 2)
	check(t, "the place of nobody", s.Take(ctx, l, id(), id(), 2), fault.TooMany)
	check(t, "the place that is no more", s.Take(ctx, l, id(), all[0], 2), fault.TooMany)
	check(t, "the new one lives", s.Renew(ctx, l, fresh, 0))
	check(t, "the old one does not", s.Renew(ctx, l, all[0], 2), fault.TooMany)
	// A refusal changes nothing: the old one is not lost.
	check(t, "own place when too many", s.Take(ctx, l, id(), fresh, 1), fault.TooMany)
	count(t, s, l, 2)
	check(t, "still there", s.Renew(ctx, l, fresh, 0))
}

func release(t *testing.T, s slot.Store) {
	ctx, l := t.Context(), licence()
	all := fill(t, s, l, 3)
	check(t, "release", s.Release(ctx, l, all[1]))
	check(t, "release again", s.Release(ctx, l, all[1]))
	check(t, "release what never was", s.Release(ctx, l, id()))
	check(t, "release of a licence without slots", s.Release(ctx, licence(), all[0]))
	count(t, s, l, 2)
	check(t, "the free one", s.Take(ctx, l, id(), slot.ID{}, 3))
	check(t, "no other", s.Take(ctx, l, id(), slot.ID{}, 3), fault.TooMany)
}

func end(t *testing.T, s slot.Store) {
	ctx, l, other := t.Context(), licence(), licence()
	fill(t, s, l, 5)
	fill(t, s, other, 5)
	check(t, "end", s.End(ctx, l))
	check(t, "end of nothing", s.End(ctx, licence()))
	count(t, s, l, 0)
	count(t, s, other, 5)
	fill(t, s, l, 5)
}

func lapse(t *testing.T, s slot.Store) {
	ctx, l := t.Context(), licence()
	all := fill(t, s, l, 3)
	for range 3 { // one is heard of, for more than a lease
		time.Sleep(Lease / 2)
		check(t, "heartbeat", s.Renew(ctx, l, all[0], 3))
	}
	count(t, s, l, 1)
	check(t, "a free one", s.Take(ctx, l, id(), slot.ID{}, 3))
	check(t, "the place of one that lapsed", s.Take(ctx, l, id(), all[1], 3))
	check(t, "a fourth", s.Take(ctx, l, id(), slot.ID{}, 3), fault.TooMany)
	check(t, "the one that lapsed without a place", s.Renew(ctx, l, all[2], 3), fault.TooMany)
	time.Sleep(2 * Lease)
	count(t, s, l, 0)
	check(t, "the one that lapsed", s.Renew(ctx, l, all[2], 3))
	count(t, s, l, 1)
}

// rebuilt: a store that knows nothing, as after a restart, learns from
// heartbeats, and no more than the limit.
func rebuilt(t *testing.T, s slot.Store) {
	ctx, l := t.Context(), licence()
	var all []slot.ID
	for range 3 {
		all = append(all, id())
		check(t, "heartbeat of before", s.Renew(ctx, l, all[len(all)-1], 3))
	}
	check(t, "collected token", s.Renew(ctx, l, id(), 3), fault.TooMany)
	check(t, "new device", s.Take(ctx, l, id(), slot.ID{}, 3), fault.TooMany)
	for _, i := range all {
		check(t, "heartbeat", s.Renew(ctx, l, i, 3))
	}
	count(t, s, l, 3)
}

func smaller(t *testing.T, s slot.Store) {
	ctx, l := t.Context(), licence()
	all := fill(t, s, l, 4)
	for _, i := range all {
		check(t, "heartbeat under a smaller limit", s.Renew(ctx, l, i, 2))
	}
	count(t, s, l, 4)
	check(t, "take", s.Take(ctx, l, id(), slot.ID{}, 2), fault.TooMany)
}

func others(t *testing.T, s slot.Store) {
	ctx, l, other := t.Context(), licence(), licence()
	mine := fill(t, s, l, 1)[0]
	check(t, "another's slot as one's own", s.Renew(ctx, other, mine, 0), fault.TooMany)
	check(t, "release of another's", s.Release(ctx, other, mine))
	check(t, "instead of another's", s.Take(ctx, other, id(), mine, 1))
	count(t, s, l, 1)
	count(t, s, other, 1)
}

// many: 300 licences with up to 255 devices each, which come and go.
func many(t *testing.T, s slot.Store) {
	ctx := t.Context()
	const licences = 300
	ls, want := make([]slot.Licence, licences), make([]int, licences)
	for i := range ls {
		ls[i], want[i] = licence(), 1+i%20
	}
	ls[7][15] = ls[8][15]
	want[7] = 255
	for i, l := range ls {
		all := fill(t, s, l, want[i])
		for _, one := range all[:len(all)/3] {
			check(t, "release", s.Release(ctx, l, one))
		}
		want[i] -= len(all) / 3
	}
	for i := 0; i < licences; i += 3 {
		check(t, "end", s.End(ctx, ls[i]))
		want[i] = 0
	}
	for i, l := range ls {
		count(t, s, l, want[i])
	}
}

// atOnce: however many devices ask at the same moment, the limit holds.
func atOnce(t *testing.T, s slot.Store) {
	l := licence()
	ctx := context.WithoutCancel(t.Context())
	var given atomic.Int64
	var group sync.WaitGroup
	for range 40 {
		group.Go(func() {
			switch err := s.Take(ctx, l, id(), slot.ID{}, 7); {
			case err == nil:
				given.Add(1)
			case fault.Of(err) != fault.TooMany:
				t.Error(err)
			}
		})
	}
	group.Wait()
	if given.Load() != 7 {
		t.Errorf("%d slots were given, want 7", given.Load())
	}
	count(t, s, l, 7)
}
