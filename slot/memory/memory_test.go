package memory_test

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"lethe/slot"
	"lethe/slot/memory"
	"lethe/slot/slottest"
)

// bubble runs a test with a clock of its own.
func bubble(t *testing.T, lease time.Duration, test func(t *testing.T, s *memory.Store)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s := memory.New(lease)
		defer s.Close()
		test(t, s)
	})
}

func TestContract(t *testing.T) {
	slottest.Run(t, func(t *testing.T, test func(*testing.T, slot.Store)) {
		bubble(t, slottest.Lease, func(t *testing.T, s *memory.Store) { test(t, s) })
	})
}

// licence and id are the nth of their kind.
func licence(n int) (l slot.Licence) {
	r := rand.New(rand.NewPCG(uint64(n), 1))
	binary.LittleEndian.PutUint64(l[:], r.Uint64())
	binary.LittleEndian.PutUint64(l[8:], r.Uint64())
	return l
}

func id(n int) (i slot.ID) {
	binary.BigEndian.PutUint64(i[8:], uint64(n)+1)
	return i
}

// TestLeaseIsExact: a slot lives for 90 s after its last heartbeat, not less and
// not a tenth of a second more.
func TestLeaseIsExact(t *testing.T) {
	bubble(t, slot.Lease, func(t *testing.T, s *memory.Store) {
		ctx := t.Context()
		time.Sleep(time.Second)
		if err := s.Take(ctx, licence(1), id(1), slot.ID{}, 1); err != nil {
			t.Fatal(err)
		}
		for want, wait := range []time.Duration{100 * time.Millisecond, 90*time.Second - 100*time.Millisecond} {
			time.Sleep(wait)
			if n, _ := s.Count(ctx, licence(1)); n != 1-want {
				t.Errorf("%d live after %v, want %d", n, wait, 1-want)
			}
		}
	})
}

// TestForgetting: what lapsed leaves the memory by itself, and the memory goes
// back, however much there was.
func TestForgetting(t *testing.T) {
	bubble(t, slot.Lease, func(t *testing.T, s *memory.Store) {
		ctx := t.Context()
		const licences = 20000
		for n := range licences {
			for d := range 3 {
				if err := s.Take(ctx, licence(n), id(d), slot.ID{}, 3); err != nil {
					t.Fatal(err)
				}
			}
		}
		slots, full := s.Size()
		if slots != 3*licences || full < 3*licences*36 {
			t.Fatalf("%d slots in %d bytes", slots, full)
		}
		time.Sleep(slot.Lease / 2)
		for n := range licences / 50 {
			if err := s.Renew(ctx, licence(n), id(0), 3); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(slot.Lease/2 + memory.Sweep)
		// A peak's memory goes back step by step, one for each sweep.
		time.Sleep(2 * memory.Sweep)
		slots, few := s.Size()
		if slots != licences/50 || few > full/16 {
			t.Errorf("%d slots in %d bytes after most have lapsed; there were %d bytes", slots, few, full)
		}
		for n := range licences / 50 {
			if count, _ := s.Count(ctx, licence(n)); count != 1 {
				t.Fatalf("licence %d has %d slots, want 1", n, count)
			}
		}
		time.Sleep(slot.Lease)
		if slots, bytes := s.Size(); slots != 0 || bytes != 0 {
			t.Errorf("%d slots in %d bytes after all have lapsed", slots, bytes)
		}
	})
}

// TestModel compares a store with a map, over many random steps on few
// licences that lie next to each other, at the end and the begin of a table.
func TestModel(t *testing.T) {
	type key struct{ l, d int }
	for seed := range uint64(8) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			bubble(t, slot.Lease, func(t *testing.T, s *memory.Store) {
				ctx, r := t.Context(), rand.New(rand.NewPCG(seed, 2))
				near := func(n int) (l slot.Licence) { // homes -5 to 4 of one table
					binary.LittleEndian.PutUint64(l[:], uint64(n)-5)
					l[15] = 9
					return l
				}
				model := map[key]time.Time{}
				live := func(l int) (n int) {
					for k, until := range model {
						if k.l == l && time.Now().Before(until) {
							n++
						}
					}
					return n
				}
				for step := range 2000 {
					k, limit := key{r.IntN(10), r.IntN(6)}, r.IntN(6)
					until, alive := time.Now().Add(slot.Lease), time.Now().Before(model[k])
					switch op := r.IntN(12); {
					case op < 5: // heartbeat
						ok := alive || live(k.l) < limit
						if err := s.Renew(ctx, near(k.l), id(k.d), limit); (err == nil) != ok {
							t.Fatalf("step %d: heartbeat: %v, want %v", step, err, ok)
						}
						if ok {
							model[k] = until
						}
					case op < 8: // another device instead of this one
						fresh := key{k.l, 10 + step}
						n := live(k.l)
						if alive {
							n--
						}
						if err := s.Take(ctx, near(k.l), id(fresh.d), id(k.d), limit); (err == nil) != (n < limit) {
							t.Fatalf("step %d: take: %v with %d of %d", step, err, n, limit)
						} else if err == nil {
							delete(model, k)
							model[fresh] = until
						}
					case op < 10:
						_ = s.Release(ctx, near(k.l), id(k.d))
						delete(model, k)
					case op < 11 && limit == 0:
						_ = s.End(ctx, near(k.l))
						for other := range model {
							if other.l == k.l {
								delete(model, other)
							}
						}
					default:
						time.Sleep(time.Duration(r.IntN(100)) * 100 * time.Millisecond)
					}
					for l := range 10 {
						if n, _ := s.Count(ctx, near(l)); n != live(l) {
							t.Fatalf("step %d: licence %d has %d slots, want %d", step, l, n, live(l))
						}
					}
				}
			})
		})
	}
}

// TestClose: a closed store holds nothing, and (the bubble sees to it) runs
// nothing.
func TestClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := memory.New(slot.Lease)
		if err := s.Take(t.Context(), licence(1), id(1), slot.ID{}, 1); err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if slots, bytes := s.Size(); slots != 0 || bytes != 0 {
			t.Errorf("%d slots in %d bytes after closing", slots, bytes)
		}
	})
}
