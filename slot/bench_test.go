package slot_test

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"lethe/account"
	"lethe/fault"
	"lethe/private"
	"lethe/slot"
	"lethe/slot/memory"
	"lethe/slot/slottest"
	"lethe/slot/valkey"
	"lethe/store/sqlite"
)

// The size of a large provider.
const (
	benchLicences = 1_000_000
	benchDevices  = 3 // of each licence, all connected
)

// longLease keeps what was filled in from ending before it is measured.
const longLease = time.Hour

// mix spreads the bits of a number (splitmix64).
func mix(n uint64) uint64 {
	n += 0x9e3779b97f4a7c15
	n = (n ^ n>>30) * 0xbf58476d1ce4e5b9
	n = (n ^ n>>27) * 0x94d049bb133111eb
	return n ^ n>>31
}

// benchSlot is the nth slot and its licence.
func benchSlot(n uint64) (l slot.Licence, id slot.ID) {
	licence := n / benchDevices
	binary.LittleEndian.PutUint64(l[:], mix(licence))
	binary.LittleEndian.PutUint64(l[8:], mix(licence+1<<40))
	binary.LittleEndian.PutUint64(id[:], mix(n+1<<41))
	binary.LittleEndian.PutUint64(id[8:], mix(n+1<<42))
	return l, id
}

// rss is the resident memory of a process in bytes.
func rss(b *testing.B, pid int) float64 {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		b.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), "VmRSS:")
	kb, err := strconv.Atoi(strings.Fields(rest)[0])
	if err != nil {
		b.Fatal(err)
	}
	return float64(kb) * 1024
}

// beating sends heartbeats of random slots from so many callers at once, in this
// process on one core, and reports how many a second and the 99th percentile.
func beating(b *testing.B, callers int, beat func(ctx context.Context, n uint64) error) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	took := make([][]time.Duration, callers)
	ctx := b.Context()
	var group sync.WaitGroup
	b.ResetTimer()
	for c := range callers {
		group.Go(func() {
			for i := c; i < b.N; i += callers {
				n := mix(uint64(i)) % (benchLicences * benchDevices)
				start := time.Now()
				if err := beat(ctx, n); err != nil {
					b.Error(err)
					return
				}
				took[c] = append(took[c], time.Since(start))
			}
		})
	}
	group.Wait()
	b.StopTimer()
	all := slices.Sorted(slices.Values(slices.Concat(took...)))
	b.ReportMetric(float64(len(all))/b.Elapsed().Seconds(), "beats/s")
	b.ReportMetric(float64(all[len(all)*99/100].Nanoseconds())/1000, "p99-µs")
}

// BenchmarkBeat measures heartbeats with one million licences and three million
// live slots: in the memory of this process, in memory behind tokens and the look
// at the licence in the store, as the API has it, and in a Valkey or Redis server of
// its own.
func BenchmarkBeat(b *testing.B) {
	b.Run("memory", func(b *testing.B) {
		s := filledMemory(b)
		size := rss(b, os.Getpid())
		beating(b, 1, func(ctx context.Context, n uint64) error {
			l, id := benchSlot(n)
			return s.Renew(ctx, l, id, benchDevices)
		})
		_, bytes := s.Size()
		b.ReportMetric(size/1e6, "MB") // of the whole process, before heartbeats: the figures of this test are not its own
		b.ReportMetric(float64(bytes)/benchLicences/benchDevices, "B/slot")
	})
	b.Run("service", func(b *testing.B) {
		s := filledMemory(b)
		books, err := sqlite.Open(b.Context(), filepath.Join(b.TempDir(), "store"), sqlite.Options{Key: key, Create: true})
		if err != nil {
			b.Fatal(err)
		}
		defer books.Close()
		service := slot.New(slot.Config{Store: s, Accounts: books, Key: key})
		tokens := make([]slot.Token, 500)
		for i := range tokens {
			r := account.Record{ID: account.ID(strings.ToLower(rand.Text())), Email: private.Of(fmt.Sprintf("%d@example.org", i)),
				Licence:    account.Licence{Plan: "standard", Devices: 3, PaidUntil: 30000},
				Credential: account.Credential{Username: private.Of(rand.Text()), Password: private.Of(rand.Text())}}
			err := books.AddAccount(b.Context(), r)
			if err == nil {
				tokens[i], err = service.Take(b.Context(), r.ID, slot.Token{})
			}
			if err != nil {
				b.Fatal(err)
			}
		}
		beating(b, 1, func(ctx context.Context, n uint64) error { return service.Beat(ctx, tokens[n%uint64(len(tokens))]) })
	})
	b.Run(slottest.Product(b), func(b *testing.B) {
		server := slottest.StartServer(b, false, slottest.Quiet()...)
		fillValkey(b, server)
		s, err := valkey.Open(b.Context(), valkey.Config{URL: server.URL(), Lease: longLease})
		if err != nil {
			b.Fatal(err)
		}
		defer s.Close()
		beating(b, 32, func(ctx context.Context, n uint64) error {
			l, id := benchSlot(n)
			return s.Renew(ctx, l, id, benchDevices)
		})
		b.ReportMetric(rss(b, server.PID())/1e6, "MB")
	})
}

// filledMemory returns a store with all slots, taken one by one.
func filledMemory(b *testing.B) *memory.Store {
	s := memory.New(longLease)
	b.Cleanup(func() {
		s.Close()
		debug.FreeOSMemory()
	})
	for n := range uint64(benchLicences * benchDevices) {
		l, id := benchSlot(n)
		if err := s.Take(b.Context(), l, id, slot.ID{}, benchDevices); err != nil {
			b.Fatal(err)
		}
	}
	if l, _ := benchSlot(7); s.Take(b.Context(), l, slot.ID{1}, slot.ID{}, benchDevices) == nil {
		b.Fatal("the limit does not hold")
	}
	return s
}

// fillValkey writes all slots as the store would, many in a packet.
func fillValkey(b *testing.B, server *slottest.Server) {
	raw := redis.NewClient(&redis.Options{Network: "unix", Addr: server.Socket})
	defer raw.Close()
	until := float64(time.Now().Add(longLease).UnixMilli())
	for first := uint64(0); first < benchLicences*benchDevices; {
		_, err := raw.Pipelined(b.Context(), func(p redis.Pipeliner) error {
			for range 10000 {
				l, _ := benchSlot(first)
				members := make([]redis.Z, benchDevices)
				for d := range members {
					_, id := benchSlot(first + uint64(d))
					members[d] = redis.Z{Score: until, Member: id[:]}
				}
				p.ZAdd(b.Context(), valkey.Key(l), members...)
				p.PExpire(b.Context(), valkey.Key(l), longLease)
				first += benchDevices
			}
			return nil
		})
		if err != nil {
			b.Fatal(err)
		}
	}
	s, err := valkey.Open(b.Context(), valkey.Config{URL: server.URL(), Lease: longLease})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	if l, _ := benchSlot(7); fault.Of(s.Take(b.Context(), l, slot.ID{1}, slot.ID{}, benchDevices)) != fault.TooMany {
		b.Fatal("the limit does not hold")
	}
}
