// Package memory keeps slots in the memory of this process.
//
// The slots of all licences lie in 256 tables, each with its own lock. A table
// is an array with open addressing and linear probing; a slot's place follows
// from its licence, so all slots of a licence lie in one run of neighbours and
// counting them is reading that run. An entry is 36 bytes without a pointer:
// the garbage collector never looks into a table. Removing moves what follows
// up, so there are no tombstones; what was removed is overwritten.
//
// A slot that has lapsed counts no more from that moment on, and is removed by
// the sweep that goes over all tables every [Sweep]. Time is the monotonic
// clock, so setting the machine's clock ends nothing and prolongs nothing.
package memory

import (
	"context"
	"encoding/binary"
	"sync"
	"time"

	"lethe/fault"
	"lethe/slot"
)

// Sweep is how often lapsed slots are removed.
const Sweep = 10 * time.Second

const (
	shards   = 256
	tick     = 100 * time.Millisecond // unit of an entry's time; 32 bits last for 13 years
	smallest = 8                      // entries of a table that holds anything
)

// entry is a slot. An entry whose until is 0 is free, and all zero.
type entry struct {
	licence slot.Licence
	id      slot.ID
	until   uint32 // the tick with which the slot ends
}

// shard is one table. Its length is 0 or a power of two, and at least a
// quarter of it is free, so every run of neighbours has an end.
type shard struct {
	mu    sync.Mutex
	table []entry
	used  int
}

// Store is a [slot.Store]. Make one with [New].
type Store struct {
	lease  uint32 // ticks
	began  time.Time
	shards [shards]shard
	stop   chan struct{}
	swept  sync.WaitGroup
}

// New returns an empty store whose slots live for lease after each heartbeat;
// the service gives [slot.Lease]. The caller closes it.
func New(lease time.Duration) *Store {
	s := &Store{lease: uint32((lease + tick - 1) / tick), began: time.Now(), stop: make(chan struct{})}
	s.swept.Go(s.run)
	return s
}

// Close implements [slot.Store].
func (s *Store) Close() error {
	close(s.stop)
	s.swept.Wait()
	for i := range s.shards {
		d := &s.shards[i]
		d.mu.Lock()
		clear(d.table)
		d.table, d.used = nil, 0
		d.mu.Unlock()
	}
	return nil
}

func (s *Store) run() {
	ticker := time.NewTicker(Sweep)
	defer ticker.Stop()
	for {
		select {
		case <-s.stop:
			return
		case <-ticker.C:
			for i := range s.shards {
				s.shards[i].sweep(s.now())
			}
		}
	}
}

// now returns the present tick; the first is 1.
func (s *Store) now() uint32 { return uint32(time.Since(s.began)/tick) + 1 }

// lock returns a licence's table, locked, and the present tick.
func (s *Store) lock(l slot.Licence) (*shard, uint32) {
	d := &s.shards[l[len(l)-1]]
	d.mu.Lock()
	return d, s.now()
}

// Take implements [slot.Store].
func (s *Store) Take(_ context.Context, l slot.Licence, id, old slot.ID, limit int) error {
	d, now := s.lock(l)
	defer d.mu.Unlock()
	live, at := d.count(l, old, now)
	if at >= 0 && d.table[at].until > now {
		live--
	}
	if live >= limit {
		return reached()
	}
	if at < 0 {
		d.add(entry{l, id, now + s.lease})
		return nil
	}
	d.table[at].id, d.table[at].until = id, now+s.lease
	return nil
}

// Renew implements [slot.Store].
func (s *Store) Renew(_ context.Context, l slot.Licence, id slot.ID, limit int) error {
	d, now := s.lock(l)
	defer d.mu.Unlock()
	live, at := d.count(l, id, now)
	switch {
	case at >= 0 && d.table[at].until > now:
	case live >= limit:
		return reached()
	case at < 0:
		d.add(entry{l, id, now + s.lease})
		return nil
	}
	d.table[at].until = now + s.lease
	return nil
}

// Release implements [slot.Store].
func (s *Store) Release(_ context.Context, l slot.Licence, id slot.ID) error {
	d, now := s.lock(l)
	defer d.mu.Unlock()
	if _, at := d.count(l, id, now); at >= 0 {
		d.remove(at)
	}
	return nil
}

// End implements [slot.Store].
func (s *Store) End(_ context.Context, l slot.Licence) error {
	d, _ := s.lock(l)
	defer d.mu.Unlock()
	if len(d.table) == 0 {
		return nil
	}
	for i := d.home(l); d.table[i].until != 0; {
		if d.table[i].licence == l {
			d.remove(i) // another entry may stand at i now
			continue
		}
		i = d.next(i)
	}
	return nil
}

// Count implements [slot.Store].
func (s *Store) Count(_ context.Context, l slot.Licence) (int, error) {
	d, now := s.lock(l)
	defer d.mu.Unlock()
	live, _ := d.count(l, slot.ID{}, now)
	return live, nil
}

// Size returns how many slots lie in the tables, lapsed ones included, and how
// many bytes the tables take: for benchmarks, and for tests of the promise that
// both go back to nothing by themselves.
func (s *Store) Size() (slots, bytes int) {
	for i := range s.shards {
		d := &s.shards[i]
		d.mu.Lock()
		slots += d.used
		bytes += len(d.table) * entrySize
		d.mu.Unlock()
	}
	return slots, bytes
}

const entrySize = 36

func reached() error { return fault.New(fault.TooMany, "the limit of the licence is reached") }

// home is where the run of a licence's slots begins. Licences are keyed hashes:
// nobody can choose one that collides with another's.
func (d *shard) home(l slot.Licence) int {
	return int(binary.LittleEndian.Uint64(l[:])) & (len(d.table) - 1)
}

func (d *shard) next(i int) int { return (i + 1) & (len(d.table) - 1) }

// count returns how many slots of a licence are live, and where the slot id of
// it stands, live or not; -1 when it does not.
func (d *shard) count(l slot.Licence, id slot.ID, now uint32) (live, at int) {
	at = -1
	if len(d.table) == 0 {
		return 0, at
	}
	for i := d.home(l); d.table[i].until != 0; i = d.next(i) {
		e := &d.table[i]
		if e.licence != l {
			continue
		}
		if e.until > now {
			live++
		}
		if e.id == id {
			at = i
		}
	}
	return live, at
}

// add puts an entry in that is not there.
func (d *shard) add(e entry) {
	if (d.used+1)*4 > len(d.table)*3 {
		d.resize(max(2*len(d.table), smallest))
	}
	i := d.home(e.licence)
	for d.table[i].until != 0 {
		i = d.next(i)
	}
	d.table[i] = e
	d.used++
}

// remove takes the entry at i out. Entries of the run behind it that would no
// longer be found move up (Knuth, The Art of Computer Programming, volume 3,
// 6.4, algorithm R).
func (d *shard) remove(i int) {
	mask := len(d.table) - 1
	for j := d.next(i); d.table[j].until != 0; j = d.next(j) {
		// The entry at j may move to i when its home is not behind i.
		if (j-d.home(d.table[j].licence))&mask >= (j-i)&mask {
			d.table[i] = d.table[j]
			i = j
		}
	}
	d.table[i] = entry{}
	d.used--
}

// resize moves all entries to a table of n, a power of two, and wipes the old
// one.
func (d *shard) resize(n int) {
	old := d.table
	d.table, d.used = nil, 0
	if n > 0 {
		d.table = make([]entry, n)
	}
	for _, e := range old {
		if e.until != 0 {
			d.add(e)
		}
	}
	clear(old)
}

// sweep removes what has lapsed, and gives memory back when little is left.
func (d *shard) sweep(now uint32) {
	d.mu.Lock()
	defer d.mu.Unlock()
	// What remove moves to i from the table's begin was looked at already.
	for i := 0; i < len(d.table); {
		if e := &d.table[i]; e.until != 0 && e.until <= now {
			d.remove(i)
			continue
		}
		i++
	}
	switch {
	case d.used == 0:
		d.table = nil // all zero
	case len(d.table) > smallest && d.used*8 < len(d.table):
		d.resize(len(d.table) / 4)
	}
}
