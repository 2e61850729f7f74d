package authdb_test

import (
	"bytes"
	"crypto/sha256"
	"database/sql"
	"fmt"
	"io"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	_ "modernc.org/sqlite"

	"lethe/authdb"
	"lethe/memfd"
)

const (
	million  = 1_000_000
	rowCount = 4 * million
	probes   = 1 << 20 // user names and keys that look-ups go round; far more rows than any cache holds
	today    = 20_000
)

// bigBase returns 4 million rows in the order of their user numbers: rows of names
// name(0) to name(rowCount-1), some of which have the password of their number.
var bigBase = sync.OnceValue(func() []authdb.Row {
	random := rand.NewChaCha8([32]byte{4})
	rows := make([]authdb.Row, rowCount)
	for i := range rows {
		rows[i] = authdb.Row{Key: hashKey.Key(name(i)), PaidUntil: today}
		if i < probes {
			rows[i].Secret = authdb.NTHash(password(i))
			continue
		}
		_, _ = random.Read(rows[i].Secret[:]) // never fails
	}
	return rows
})

func mapped(tb testing.TB, head authdb.Head, rows []authdb.Row) *authdb.Segment {
	tb.Helper()
	f, err := memfd.Sealed("authdb", func(w io.Writer) error { return authdb.Build(w, head, slices.Clone(rows)) })
	if err != nil {
		tb.Fatal(err)
	}
	defer f.Close()
	s, err := authdb.Map(f)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(s.Close)
	return s
}

// churn returns a delta of n rows: renewed, new and removed credentials.
func churn(n, seed int) []authdb.Row {
	var rows []authdb.Row
	for i := range n {
		switch who := (i*97 + seed*1009) % rowCount; {
		case i%10 == 8:
			rows = append(rows, authdb.Row{Key: hashKey.Key(name(rowCount + seed*n + i)), PaidUntil: today})
		case i%10 == 9:
			rows = append(rows, authdb.Row{Key: hashKey.Key(name(who)), Deleted: true})
		default:
			rows = append(rows, authdb.Row{Key: hashKey.Key(name(who)), Secret: authdb.NTHash(password(who)), PaidUntil: today + 30})
		}
	}
	return rows
}

// tiers returns the seven deltas of a publisher that follows Plan with 4 million
// credentials, at its fullest.
func tiers(tb testing.TB) (deltas []*authdb.Segment) {
	for i, n := range []int{300_000, 60_000, 12_000, 2_400, 480, 96, 19} {
		seq := uint64(i + 1)
		deltas = append(deltas, mapped(tb, authdb.Head{Span: authdb.Span{From: seq, To: seq}, HashKey: hashKey}, churn(n, i)))
	}
	return deltas
}

func names(from int) [][]byte {
	all := make([][]byte, probes)
	step := 1
	if from < rowCount {
		step = rowCount / probes // spread over all rows
	}
	for i := range all {
		all[i] = name(from + i*step)
	}
	return all
}

// BenchmarkLookup is a server's question "what is this user's row?": from the user
// name to the row, on one core, in a database of 4 million credentials, and the
// same for a SQLite file.
func BenchmarkLookup(b *testing.B) {
	base := mapped(b, authdb.Head{HashKey: hashKey}, bigBase())
	known, unknown := names(0), names(2*rowCount)
	for _, c := range []struct {
		name   string
		deltas []*authdb.Segment
	}{{"authdb", nil}, {"authdb+7deltas", tiers(b)}} {
		db, err := authdb.NewDB(append([]*authdb.Segment{base}, c.deltas...)...)
		if err != nil {
			b.Fatal(err)
		}
		var live authdb.Live
		live.Swap(db)
		for _, q := range []struct {
			name  string
			names [][]byte
		}{{"hit", known}, {"miss", unknown}} {
			b.Run(c.name+"/"+q.name, func(b *testing.B) {
				found := 0
				for i := 0; b.Loop(); i++ {
					if _, r := live.Find(q.names[i%probes]); r == authdb.OK {
						found++
					}
				}
				b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "lookups/s")
				b.ReportMetric(float64(db.Size())/float64(db.Len()), "B/credential")
				if (found > 0) != (q.name == "hit") {
					b.Fatalf("%d names found", found)
				}
			})
		}
		b.Run(c.name+"/bare-key", func(b *testing.B) {
			keys := make([]authdb.RowKey, probes)
			for i := range keys {
				keys[i] = hashKey.Key(known[i])
			}
			for i := 0; b.Loop(); i++ {
				db.Lookup(keys[i%probes])
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "lookups/s")
		})
		live.Swap(nil)
	}
	sqliteLookup(b, known, unknown)
}

// sqliteLookup measures the peer: an indexed BLOB key, read only, one prepared
// statement, the same key hash.
func sqliteLookup(b *testing.B, known, unknown [][]byte) {
	file := filepath.Join(b.TempDir(), "peer.sqlite")
	db, err := sql.Open("sqlite", "file:"+file+"?_pragma=journal_mode(off)&_pragma=synchronous(off)&_pragma=mmap_size(1000000000)")
	if err != nil {
		b.Fatal(err)
	}
	defer db.Close()
	db.SetMaxOpenConns(1)
	if err := fillSQLite(db); err != nil {
		b.Fatal(err)
	}
	var pages, pageSize int
	if err := db.QueryRow(`SELECT page_count, page_size FROM pragma_page_count, pragma_page_size`).Scan(&pages, &pageSize); err != nil {
		b.Fatal(err)
	}
	get, err := db.Prepare(`SELECT secret, paid_until, disabled FROM credential WHERE key = ?`)
	if err != nil {
		b.Fatal(err)
	}
	defer get.Close()
	for _, q := range []struct {
		name  string
		names [][]byte
		want  error
	}{{"hit", known, nil}, {"miss", unknown, sql.ErrNoRows}} {
		b.Run("sqlite/"+q.name, func(b *testing.B) {
			var secret []byte
			var paid, disabled int
			for i := 0; b.Loop(); i++ {
				key := hashKey.Key(q.names[i%probes])
				if err := get.QueryRow(key[:]).Scan(&secret, &paid, &disabled); err != q.want {
					b.Fatalf("got %v, want %v", err, q.want)
				}
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "lookups/s")
			b.ReportMetric(float64(pages*pageSize)/rowCount, "B/credential")
		})
	}
}

func fillSQLite(db *sql.DB) error {
	rows := slices.Clone(bigBase())
	slices.SortFunc(rows, func(a, b authdb.Row) int { return bytes.Compare(a.Key[:], b.Key[:]) })
	if _, err := db.Exec(`CREATE TABLE credential (key BLOB PRIMARY KEY, secret BLOB, paid_until INTEGER, disabled INTEGER) WITHOUT ROWID`); err != nil {
		return err
	}
	tx, err := db.Begin()
	if err != nil {
		return err
	}
	defer tx.Rollback() //nolint:errcheck // does nothing after Commit
	put, err := tx.Prepare(`INSERT INTO credential VALUES (?, ?, ?, ?)`)
	if err != nil {
		return err
	}
	for i := range rows {
		if _, err := put.Exec(rows[i].Key[:], rows[i].Secret[:], int(rows[i].PaidUntil), 0); err != nil {
			return err
		}
	}
	return tx.Commit()
}

// BenchmarkCheck is a login: both hashes, the look-up and the comparison. The
// three answers must cost the same.
func BenchmarkCheck(b *testing.B) {
	db, err := authdb.NewDB(mapped(b, authdb.Head{HashKey: hashKey}, bigBase()))
	if err != nil {
		b.Fatal(err)
	}
	defer db.Close()
	known, unknown := names(0), names(2*rowCount)
	for _, c := range []struct {
		name  string
		names [][]byte
		shift int
		want  authdb.Result
	}{
		{"right-password", known, 0, authdb.OK},
		{"wrong-password", known, 1, authdb.Unknown},
		{"unknown-user", unknown, 0, authdb.Unknown},
	} {
		b.Run(c.name, func(b *testing.B) {
			const n = probes / (rowCount / probes) // numbers below probes have passwords
			words := make([][]byte, n)
			for i := range words {
				words[i] = password(i*(rowCount/probes) + c.shift)
			}
			for i := 0; b.Loop(); i++ {
				if got := db.Check(c.names[i%n], words[i%n], today); got != c.want {
					b.Fatalf("got %v, want %v", got, c.want)
				}
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "checks/s")
		})
	}
}

// BenchmarkChurn is what one day of 1 % changed credentials costs: the size of the
// delta, taking it into use, and merging it away.
func BenchmarkChurn(b *testing.B) {
	base := mapped(b, authdb.Head{HashKey: hashKey}, bigBase())
	head := authdb.Head{Span: authdb.Span{From: 1, To: 1}, HashKey: hashKey}
	rows := churn(rowCount/100, 1)
	delta := mapped(b, head, rows)
	b.Run("build-delta", func(b *testing.B) {
		for b.Loop() {
			if err := authdb.Build(io.Discard, head, rows); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(delta.Size()), "delta-B")
		b.ReportMetric(100*float64(delta.Size())/float64(base.Size()), "%-of-base")
	})
	b.Run("apply-delta", func(b *testing.B) { // what a server does with the delta's bytes
		var raw bytes.Buffer
		if err := authdb.Build(&raw, head, rows); err != nil {
			b.Fatal(err)
		}
		var live authdb.Live
		defer live.Swap(nil)
		for b.Loop() {
			f, err := memfd.Sealed("authdb", func(w io.Writer) error { _, err := w.Write(raw.Bytes()); return err })
			if err != nil {
				b.Fatal(err)
			}
			s, err := authdb.Map(f)
			if err != nil {
				b.Fatal(err)
			}
			db, err := authdb.NewDB(base, s)
			if err != nil {
				b.Fatal(err)
			}
			live.Swap(db)
			s.Close()
			f.Close()
		}
	})
	b.Run("merge-into-base", func(b *testing.B) { // into memory that can be mapped, with digest
		for b.Loop() {
			digest := sha256.New()
			f, err := memfd.Sealed("authdb", func(w io.Writer) error {
				return authdb.Merge(io.MultiWriter(w, digest), base, delta)
			})
			if err != nil {
				b.Fatal(err)
			}
			f.Close()
		}
	})
	b.Run("merge-8-segments", func(b *testing.B) {
		all := append([]*authdb.Segment{base}, tiers(b)...)
		for b.Loop() {
			if err := authdb.Merge(io.Discard, all...); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkBase is what a whole base of 4 million credentials costs.
func BenchmarkBase(b *testing.B) {
	var raw bytes.Buffer
	rows := slices.Clone(bigBase())
	b.Run("build", func(b *testing.B) {
		for b.Loop() {
			copy(rows, bigBase())
			raw.Reset()
			if err := authdb.Build(&raw, authdb.Head{HashKey: hashKey}, rows); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(raw.Len())/rowCount, "B/credential")
	})
	b.Run("open", func(b *testing.B) {
		for b.Loop() {
			if _, err := authdb.Open(raw.Bytes()); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("swap", func(b *testing.B) {
		s, err := authdb.Open(raw.Bytes())
		if err != nil {
			b.Fatal(err)
		}
		var live authdb.Live
		for b.Loop() {
			db, err := authdb.NewDB(s)
			if err != nil {
				b.Fatal(err)
			}
			live.Swap(db)
		}
	})
}

var hashKey = authdb.HashKey(sha256.Sum256([]byte("deployment of the tests")))

// name returns a user name of the real form: 16 characters of base32.
func name(i int) []byte { return fmt.Appendf(nil, "user%012d", i) }

// password returns a password of the real length, 26 characters.
func password(i int) []byte { return fmt.Appendf(nil, "password%018d", i) }
