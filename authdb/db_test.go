package authdb_test

import (
	"bytes"
	"io"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"lethe/authdb"
	"lethe/day"
	"lethe/fault"
	"lethe/memfd"
)

func TestCheck(t *testing.T) {
	rows := people(0, 1000)
	rows[1].PaidUntil = today - 1
	rows[2].Disabled = true
	change := []authdb.Row{{Key: rows[3].Key, Deleted: true}, rows[4], rows[5]}
	change[1].Secret = authdb.NTHash([]byte("new"))
	change[2].PaidUntil = 0
	segments := []*authdb.Segment{open(t, span(0, 1), rows), open(t, span(2, 2), change)}
	db := join(t, segments...)
	if db.To() != 2 || db.Len() != 1003 || db.Size() != segments[0].Size()+segments[1].Size() {
		t.Errorf("database says to %d, %d rows, %d bytes", db.To(), db.Len(), db.Size())
	}
	var live authdb.Live
	if got := live.Check(name(0), password(0), today); got != authdb.Unavailable {
		t.Errorf("without a database: got %v", got)
	}
	if _, got := live.Find(name(0)); got != authdb.Unavailable {
		t.Errorf("without a database: found %v", got)
	}
	live.Swap(db)
	everything := make([]byte, 256)
	for i := range everything {
		everything[i] = byte(i)
	}
	for _, c := range []struct {
		name           string
		user, password []byte
		want           authdb.Result
		found          bool
	}{
		{"right", name(0), password(0), authdb.OK, true},
		{"wrong password", name(0), password(1), authdb.Unknown, true},
		{"no password", name(0), nil, authdb.Unknown, true},
		{"licence ended yesterday", name(1), password(1), authdb.Ended, true},
		{"ended, wrong password", name(1), password(0), authdb.Unknown, true},
		{"disabled", name(2), password(2), authdb.Ended, true},
		{"deleted", name(3), password(3), authdb.Unknown, false},
		{"old password", name(4), password(4), authdb.Unknown, true},
		{"new password", name(4), []byte("new"), authdb.OK, true},
		{"never paid now", name(5), password(5), authdb.Ended, true},
		{"unknown", name(1000), password(1000), authdb.Unknown, false},
		{"unknown, hash of zeros", name(1000), nil, authdb.Unknown, false},
		{"no name", nil, nil, authdb.Unknown, false},
		{"every byte", everything, everything, authdb.Unknown, false},
		{"very long", bytes.Repeat(name(0), 5000), password(0), authdb.Unknown, false},
		{"name with a zero byte", append(name(0), 0), password(0), authdb.Unknown, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := db.Check(c.user, c.password, today); got != c.want {
				t.Errorf("got %v, want %v", got, c.want)
			}
			if got := live.Check(c.user, c.password, today); got != c.want {
				t.Errorf("live: got %v, want %v", got, c.want)
			}
			calls := 0
			knows := func(s *authdb.Secret) bool { calls++; return *s == authdb.NTHash(c.password) }
			if got := live.Prove(c.user, knows, today); got != c.want || calls != 1 {
				t.Errorf("by proof: got %v after %d calls, want %v after one", got, calls, c.want)
			}
			// A proof that holds for every hash lets in whom it is for, and nobody who does not exist.
			if got := live.Prove(c.user, func(*authdb.Secret) bool { return true }, today); !c.found && got != authdb.Unknown {
				t.Errorf("by a proof of everything: got %v", got)
			}
			row, found := db.Find(c.user)
			if liveRow, r := live.Find(c.user); found != c.found || liveRow != row || (r == authdb.OK) != found {
				t.Errorf("found %v (live %v), want %v", found, r, c.found)
			}
			if c.want == authdb.OK && row.Secret != authdb.NTHash(c.password) {
				t.Error("the row has another secret")
			}
		})
	}
	live.Swap(nil)
	unasked := func(*authdb.Secret) bool { t.Error("a proof was asked for without a database"); return true }
	if got := live.Prove(name(0), unasked, today); got != authdb.Unavailable {
		t.Errorf("by proof, without a database: got %v", got)
	}
	if got := live.Check(name(0), password(0), today); got != authdb.Unavailable {
		t.Errorf("after the database was taken away: got %v", got)
	}
	if _, ok := db.Find(name(0)); ok || db.Check(name(0), password(0), today) != authdb.Unavailable {
		t.Error("a closed database lets somebody in")
	}
	closed := join(t, segments...)
	live.Swap(closed)
	closed.Close()
	if got := live.Check(name(0), password(0), today); got != authdb.Unavailable {
		t.Errorf("with a database that somebody closed: got %v", got)
	}
}

func TestResults(t *testing.T) {
	var zero authdb.Result
	for r, want := range map[authdb.Result]struct {
		name string
		kind fault.Kind
	}{
		zero: {"unavailable", fault.Unavailable}, authdb.Unknown: {"unknown", fault.Unauthenticated},
		authdb.Ended: {"ended", fault.Expired},
	} {
		if r.String() != want.name || fault.Of(r.Err()) != want.kind || r.Err() == nil {
			t.Errorf("%v has kind %v, want %v", r, fault.Of(r.Err()), want.kind)
		}
	}
	if authdb.OK.Err() != nil || authdb.OK.String() != "ok" {
		t.Errorf("%v gives %v", authdb.OK, authdb.OK.Err())
	}
}

// TestSameWork compares the fastest of many small batches of logins of known and
// of unknown users. A database that skipped a hash or the comparison for
// unknown users would be at least a third faster for them in every round; noise
// makes rounds differ, but not all of them.
func TestSameWork(t *testing.T) {
	db := join(t, open(t, span(0, 1), people(0, 5000)), open(t, span(2, 2), people(5000, 5100)))
	batch := func(first int) time.Duration {
		start := time.Now()
		for i := range 200 {
			db.Check(name(first+i), password(0), today)
		}
		return time.Since(start)
	}
	var ratio float64
	for range 20 {
		known, unknown := time.Hour, time.Hour
		for range 40 {
			known, unknown = min(known, batch(1)), min(unknown, batch(900_000))
		}
		if ratio = float64(unknown) / float64(known); ratio > 0.85 && ratio < 1.18 {
			return
		}
	}
	t.Errorf("an unknown user takes %.2f times as long as a known one", ratio)
}

// mappings returns how many mappings of authdb memory the process has.
func mappings(t *testing.T) int {
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Count(string(maps), "memfd:authdb")
}

// TestSwapUnderLoad exchanges mapped databases while logins run. Every login must
// be answered right from one of them; memory that was unmapped too early would
// end the process with SIGSEGV, memory that stays is counted.
func TestSwapUnderLoad(t *testing.T) {
	const users, swaps, workers = 500, 300, 4
	fill := func(head authdb.Head, rows []authdb.Row) *os.File {
		f, err := memfd.Sealed("authdb", func(w io.Writer) error { return authdb.Build(w, head, rows) })
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	open := func(f *os.File) *authdb.Segment {
		s, err := authdb.Map(f)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	before := mappings(t)
	base, delta := fill(span(0, 1), people(0, users)), fill(span(2, 2), people(users, users+50))
	var live authdb.Live
	shared := open(base)
	live.Swap(join(t, shared))

	var group sync.WaitGroup
	stop := make(chan struct{})
	answers := make([]int, workers)
	for worker := range workers {
		group.Go(func() {
			for i := worker; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				if got := live.Check(name(i%users), password(i%users), day.Day(today)); got != authdb.OK {
					t.Errorf("a known user got %v", got)
					return
				}
				if got := live.Check(name(users+100), password(0), today); got != authdb.Unknown {
					t.Errorf("an unknown user got %v", got)
					return
				}
				answers[worker]++
			}
		})
	}
	for i := range swaps {
		parts := []*authdb.Segment{shared}
		if i%2 == 0 {
			parts = []*authdb.Segment{open(base), open(delta)}
		}
		db := join(t, parts...)
		if i%2 == 0 {
			for _, s := range parts {
				s.Close()
			}
		}
		live.Swap(db)
		runtime.Gosched()
	}
	close(stop)
	group.Wait()
	for worker, n := range answers {
		if n == 0 {
			t.Errorf("worker %d asked nothing", worker)
		}
	}
	live.Swap(nil)
	shared.Close()
	if after := mappings(t); after != before {
		t.Errorf("%d mappings are left, %d were there before", after, before)
	}
}

// TestCloseUnderLoad closes a mapped database and its segments in the middle of
// look-ups and of a walk over all rows.
func TestCloseUnderLoad(t *testing.T) {
	f, err := memfd.Sealed("authdb", func(w io.Writer) error { return authdb.Build(w, span(0, 1), people(0, 2000)) })
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for range 50 {
		s, err := authdb.Map(f)
		if err != nil {
			t.Fatal(err)
		}
		db := join(t, s)
		var group sync.WaitGroup
		for range 2 {
			group.Go(func() {
				for db.Check(name(7), password(7), today) == authdb.OK {
				}
			})
		}
		group.Go(func() {
			n := 0
			for range s.Rows() {
				n++
			}
			if n != 0 && n != 2000 {
				t.Errorf("%d of 2000 rows", n)
			}
		})
		s.Close()
		db.Close()
		db.Close()
		group.Wait()
	}
}
