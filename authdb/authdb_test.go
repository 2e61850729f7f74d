package authdb_test

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"log/slog"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"

	"lethe/authdb"
	"lethe/day"
	"lethe/fault"
	"lethe/memfd"
	"lethe/private"
)

// TestNTHash checks the example of RFC 2759, section 9.2, and what OpenSSL gives
// (iconv -t utf-16le | openssl dgst -provider legacy -md4) for the others.
func TestNTHash(t *testing.T) {
	for _, c := range []struct{ name, password, want string }{
		{"RFC 2759", "clientPass", "44ebba8d5312b8d611474411f56989ae"},
		{"empty", "", "31d6cfe0d16ae931b73c59d7e0c089c0"},
		{"common", "password", "8846f7eaee8fb117ad06bdd830b7586c"},
		{"outside the basic plane", "\U0001f511", "5f7b3ff474e4237afd6a078f3c4d8632"},
		{"long", strings.Repeat("a", 300), "a40b732dcbc61e14f53cea9b33a855c4"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := authdb.NTHash([]byte(c.password))
			if hex.EncodeToString(got[:]) != c.want {
				t.Errorf("got %x, want %s", got[:], c.want)
			}
		})
	}
	if authdb.NTHash([]byte{0xff}) != authdb.NTHash([]byte("\ufffd")) {
		t.Error("a byte that is no UTF-8 does not count as U+FFFD")
	}
}

func TestKeysDiffer(t *testing.T) {
	other := hashKey
	other[31]++
	seen := map[authdb.RowKey]string{other.Key(nil): "another key"}
	for _, name := range []string{"", "\x00", "\x00\x00", "a", "b", strings.Repeat("a", 23), strings.Repeat("a", 24), strings.Repeat("a", 5000)} {
		key := hashKey.Key([]byte(name))
		if before, ok := seen[key]; ok {
			t.Errorf("names %.9q and %.9q have one key", before, name)
		}
		seen[key] = name
	}
}

// TestNothingPrints puts every type that holds rows or keys through fmt, JSON and
// slog, in places where a careless line could put it.
func TestNothingPrints(t *testing.T) {
	const mark = "c4naryc4nary"
	row := authdb.Row{Key: authdb.RowKey([]byte(mark)), Secret: authdb.Secret([]byte(mark + "1234"))}
	head := authdb.Head{HashKey: authdb.HashKey([]byte(strings.Repeat(mark, 3)[:32]))}
	segment := open(t, head, []authdb.Row{row})
	db := join(t, segment)
	for name, v := range map[string]any{
		"row": row, "rows": []authdb.Row{row}, "key": row.Key, "secret": row.Secret, "head": head, "hash key": &head.HashKey,
		"segment": segment, "database": db, "holder": struct{ R authdb.Row }{row}, "secrets": map[string]authdb.Secret{"a": row.Secret},
	} {
		var out bytes.Buffer
		for verb := 'A'; verb <= 'z'; verb++ {
			if verb == 'p' || verb == 'w' {
				continue // fmt asks no method for these two; go vet refuses them for such values
			}
			fmt.Fprintf(&out, "%"+string(verb)+"%+"+string(verb)+"%#"+string(verb), v, v, v)
		}
		if err := json.NewEncoder(&out).Encode(v); err != nil {
			t.Error(err)
		}
		slog.New(slog.NewTextHandler(&out, nil)).Info("m", "v", v)
		slog.New(slog.NewJSONHandler(&out, nil)).Info("m", "v", v)
		for _, form := range []string{mark, hex.EncodeToString([]byte(mark)), strings.ToUpper(hex.EncodeToString([]byte(mark))), "99 52", "0x63", `"Y`} {
			if strings.Contains(out.String(), form) {
				at := strings.Index(out.String(), form)
				t.Errorf("%s prints %q in %.100q", name, form, out.String()[max(at-50, 0):])
				break
			}
		}
		if !strings.Contains(out.String(), private.Redacted) {
			t.Errorf("%s does not print as %s", name, private.Redacted)
		}
	}
}

func build(tb testing.TB, head authdb.Head, rows []authdb.Row) []byte {
	tb.Helper()
	var b bytes.Buffer
	if err := authdb.Build(&b, head, slices.Clone(rows)); err != nil {
		tb.Fatal(err)
	}
	return b.Bytes()
}

func open(tb testing.TB, head authdb.Head, rows []authdb.Row) *authdb.Segment {
	tb.Helper()
	s, err := authdb.Open(build(tb, head, rows))
	if err != nil {
		tb.Fatal(err)
	}
	return s
}

func join(tb testing.TB, segments ...*authdb.Segment) *authdb.DB {
	tb.Helper()
	db, err := authdb.NewDB(segments...)
	if err != nil {
		tb.Fatal(err)
	}
	return db
}

func span(from, to uint64) authdb.Head {
	return authdb.Head{Span: authdb.Span{From: from, To: to}, HashKey: hashKey}
}

// people returns rows of users from to to-1 with the password of their number.
func people(from, to int) (rows []authdb.Row) {
	for i := from; i < to; i++ {
		rows = append(rows, authdb.Row{Key: hashKey.Key(name(i)), Secret: authdb.NTHash(password(i)), PaidUntil: today})
	}
	return rows
}

func TestSegmentKeepsRows(t *testing.T) {
	for _, n := range []int{0, 1, 2, 7, 8, 100, 20_000} {
		rows := people(0, n)
		for i := range rows {
			rows[i].PaidUntil, rows[i].Disabled = day.Day(i), i%3 == 0
			if i%5 == 0 {
				rows[i] = authdb.Row{Key: rows[i].Key, Deleted: true}
			}
		}
		s := open(t, span(3, 9), rows)
		slices.SortFunc(rows, func(a, b authdb.Row) int { return bytes.Compare(a.Key[:], b.Key[:]) })
		if got := slices.Collect(s.Rows()); !slices.Equal(got, rows) {
			t.Errorf("%d rows come back as %d or changed", n, len(got))
		}
		if s.Head() != span(3, 9) || s.Len() != n || s.Part() != (authdb.Part{Span: span(3, 9).Span, Rows: n}) {
			t.Errorf("%d rows: head or number changed", n)
		}
		if perRow := float64(s.Size()) / float64(n); n == 20_000 && perRow > 37 {
			t.Errorf("%.2f bytes a credential, want at most 37", perRow)
		}
		for range s.Rows() { // stops early
			break
		}
	}
}

func TestBuildRefuses(t *testing.T) {
	crowd := make([]authdb.Row, 2000)
	for i := range crowd {
		binary.BigEndian.PutUint32(crowd[i].Key[8:], uint32(i))
	}
	last := authdb.Row{Key: authdb.RowKey(bytes.Repeat([]byte{0xff}, 12))}
	for _, c := range []struct {
		name string
		head authdb.Head
		rows []authdb.Row
		want string
	}{
		{"one user twice", span(0, 1), append(people(0, 2), people(0, 1)...), "two rows of one key"},
		{"tombstone in a base", span(0, 1), []authdb.Row{{Deleted: true}}, "tombstones only in deltas"},
		{"tombstone with a secret", span(1, 1), []authdb.Row{{Deleted: true, Secret: authdb.Secret{1}}}, "with nothing but a key"},
		{"backwards", span(2, 1), nil, "ascending range"},
		{"keys that are no hashes", span(0, 1), crowd, "not spread like hashes"},
		{"key of the empty slot", span(0, 1), []authdb.Row{last}, "not spread like hashes"},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := authdb.Build(io.Discard, c.head, c.rows)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}

// stingy fails once its room is used up, like a full disk.
type stingy struct{ room int }

var errFull = errors.New("no space")

func (w *stingy) Write(p []byte) (int, error) {
	if w.room -= len(p); w.room < 0 {
		return 0, errFull
	}
	return len(p), nil
}

func TestBuildReportsFullDisk(t *testing.T) {
	rows := people(0, 20_000)
	size := len(build(t, span(0, 1), rows))
	for _, room := range []int{0, 300_000, size - 5, size - 1} {
		if err := authdb.Build(&stingy{room}, span(0, 1), rows); !errors.Is(err, errFull) {
			t.Errorf("room for %d of %d bytes: got %v, want %v", room, size, err, errFull)
		}
	}
	if err := authdb.Build(&stingy{size}, span(0, 1), rows); err != nil {
		t.Error(err)
	}
}

// reseal makes the CRC of a changed segment right again.
func reseal(b []byte) []byte {
	if end := len(b) - 4; end >= 0 {
		binary.LittleEndian.PutUint32(b[end:], crc32.Checksum(b[:end], crc32.MakeTable(crc32.Castagnoli)))
	}
	return b
}

const headSize, rowSize = 64, 32 // of the format

// slot returns the bytes of the i-th filled slot.
func slot(b []byte, i int) []byte {
	for at := headSize; ; at += rowSize {
		if s := b[at : at+rowSize]; !bytes.Equal(s[:12], bytes.Repeat([]byte{0xff}, 12)) {
			if i == 0 {
				return s
			}
			i--
		}
	}
}

func TestOpenRefuses(t *testing.T) {
	delta := append(people(0, 99), authdb.Row{Key: hashKey.Key([]byte("gone")), Deleted: true})
	end := func(b []byte, n int) []byte { return b[:len(b)-n] }
	for _, c := range []struct {
		name   string
		head   authdb.Head
		change func([]byte) []byte
		want   string
	}{
		{"nothing", span(1, 2), func([]byte) []byte { return nil }, "no segment begins"},
		{"another file", span(1, 2), func(b []byte) []byte { b[0] ^= 1; return b }, "no segment begins"},
		{"version", span(1, 2), func(b []byte) []byte { b[8]++; return b }, "format version 2, want 1"},
		{"cut in the head", span(1, 2), func(b []byte) []byte { return b[:66] }, "do not fit"},
		{"cut in a row", span(1, 2), func(b []byte) []byte { return end(b, 1) }, "do not fit"},
		{"cut at a row", span(1, 2), func(b []byte) []byte { return reseal(end(b, rowSize)) }, "do not fit"},
		{"more rows said", span(1, 2), func(b []byte) []byte { b[15] = 0xff; return reseal(b) }, "do not fit"},
		{"fewer rows said", span(1, 2), func(b []byte) []byte { b[12]--; return reseal(b) }, ""},
		{"no rows said", span(1, 2), func(b []byte) []byte { b[12] = 0; return reseal(b) }, ""},
		{"longer", span(1, 2), func(b []byte) []byte { return reseal(append(b, make([]byte, rowSize)...)) }, ""},
		{"longer by empty slots", span(1, 2), func(b []byte) []byte { return reseal(slices.Insert(b, len(b)-4, b[len(b)-36:len(b)-4]...)) }, "slots, want"},
		{"changed bit", span(1, 2), func(b []byte) []byte { b[len(b)/2] ^= 4; return b }, "CRC"},
		{"changed CRC", span(1, 2), func(b []byte) []byte { b[len(b)-1] ^= 4; return b }, "CRC"},
		{"backwards", span(1, 2), func(b []byte) []byte { b[16] = 3; return reseal(b) }, "run backwards"},
		{"key changed", span(1, 2), func(b []byte) []byte { slot(b, 50)[0] ^= 0x80; return reseal(b) }, ""},
		{"rows out of order", span(1, 2), func(b []byte) []byte { copy(slot(b, 40), slot(b, 50)); return reseal(b) }, "elsewhere"},
		{"row twice", span(1, 2), func(b []byte) []byte { copy(slot(b, 41), slot(b, 40)); return reseal(b) }, "out of order"},
		{"row emptied", span(1, 2), func(b []byte) []byte { copy(slot(b, 40), empty); return reseal(b) }, ""},
		{"no empty slot at the end", span(1, 2), func(b []byte) []byte { copy(b[len(b)-36:], slot(b, 99)); return reseal(b) }, ""},
		{"empty slot not clean", span(1, 2), func(b []byte) []byte { b[len(b)-5] = 1; return reseal(b) }, ""},
		{"unknown flag", span(1, 2), func(b []byte) []byte { slot(b, 40)[30] |= 4; return reseal(b) }, "flags"},
		{"deleted and disabled", span(1, 2), func(b []byte) []byte { slot(b, 40)[30] = 3; return reseal(b) }, "flags"},
		{"tombstone with a secret", span(1, 2), func(b []byte) []byte { slot(b, 40)[30] = 2; return reseal(b) }, "flags"},
		{"base with a tombstone", span(1, 2), func(b []byte) []byte { b[16] = 0; return reseal(b) }, "flags"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, err := authdb.Open(c.change(build(t, c.head, delta)))
			if s != nil || err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("got %v, want %q", err, c.want)
			}
			if fault.Of(err) != fault.Untrusted {
				t.Errorf("kind %v, want %v", fault.Of(err), fault.Untrusted)
			}
		})
	}
	if _, err := authdb.Open(build(t, span(1, 2), delta)); err != nil {
		t.Errorf("the segment that was not changed: %v", err)
	}
}

var empty = append(bytes.Repeat([]byte{0xff}, 12), make([]byte, 20)...)

// TestOpenRefusesCrowd hands Open what Build refuses to make: a segment on which a
// look-up would walk very far.
func TestOpenRefusesCrowd(t *testing.T) {
	const n = 2000
	b := append(build(t, span(0, 1), people(0, n))[:headSize], bytes.Repeat(empty, n+n/7+2)...)
	for i := range n {
		at := b[headSize+rowSize*i:][:rowSize]
		clear(at)
		binary.BigEndian.PutUint32(at[8:], uint32(i))
	}
	_, err := authdb.Open(reseal(append(b, 0, 0, 0, 0)))
	if err == nil || !strings.Contains(err.Error(), "slot 513 belongs elsewhere") {
		t.Errorf("got %v, want a refusal of slot 513", err)
	}
}

// TestOpenRefusesKeyOfEmptySlot puts a row into its home that no look-up could
// tell from an empty slot.
func TestOpenRefusesKeyOfEmptySlot(t *testing.T) {
	b := append(build(t, span(0, 1), people(0, 1))[:headSize], bytes.Repeat(empty, 3)...)
	b[headSize+rowSize+12] = 1
	_, err := authdb.Open(reseal(append(b, 0, 0, 0, 0)))
	if err == nil || !strings.Contains(err.Error(), "impossible key") {
		t.Errorf("got %v, want a refusal of the key", err)
	}
}

// TestMergeRefusesCrowd merges two segments that are just spread enough into one
// that is not.
func TestMergeRefusesCrowd(t *testing.T) {
	var crowds []*authdb.Segment
	for i := range 2 {
		rows := make([]authdb.Row, 400)
		for j := range rows {
			binary.BigEndian.PutUint32(rows[j].Key[8:], uint32(2*j+i))
		}
		crowds = append(crowds, open(t, span(uint64(i), uint64(i)), rows))
	}
	if err := authdb.Merge(io.Discard, crowds...); err == nil || !strings.Contains(err.Error(), "not spread") {
		t.Errorf("got %v, want a refusal of the keys", err)
	}
}

func TestBorrow(t *testing.T) {
	released := 0
	release := func() { released++ }
	if s, err := authdb.Borrow([]byte("no segment"), release); s != nil || err == nil || released != 1 {
		t.Errorf("got %v and %d releases, want an error and one", err, released)
	}
	s, err := authdb.Borrow(build(t, span(0, 1), people(0, 9)), release)
	if err != nil {
		t.Fatal(err)
	}
	db := join(t, s)
	s.Close()
	if got := db.Check(name(3), password(3), today); got != authdb.OK || released != 1 {
		t.Errorf("got %v after %d releases, want ok before the second", got, released)
	}
	db.Close()
	if released != 2 {
		t.Errorf("%d releases, want two", released)
	}
}

// model is the reference: what a database must answer, kept in a map.
type model map[authdb.RowKey]authdb.Row

func (m model) apply(rows []authdb.Row) {
	for _, r := range rows {
		if m[r.Key] = r; r.Deleted {
			delete(m, r.Key)
		}
	}
}

// change returns a random delta.
func change(random *rand.Rand, users, n int) []authdb.Row {
	rows := model{}
	for range n {
		r := authdb.Row{Key: hashKey.Key(name(random.IntN(users)))}
		switch random.IntN(4) {
		case 0:
			r.Deleted = true
		default:
			r.Secret, r.PaidUntil, r.Disabled = authdb.Secret{byte(random.Int())}, day.Day(random.IntN(5)), random.IntN(3) == 0
		}
		rows[r.Key] = r
	}
	return slices.Collect(maps.Values(rows))
}

// merge returns the bytes of the merged segments.
func merge(tb testing.TB, segments ...*authdb.Segment) []byte {
	tb.Helper()
	var b bytes.Buffer
	if err := authdb.Merge(&b, segments...); err != nil {
		tb.Fatal(err)
	}
	return b.Bytes()
}

// TestMergeEqualsModel builds random histories and compares, with a map: every
// look-up in base and deltas, the merged base with one built from the map, and
// the bytes of every way to cut and merge the same history.
func TestMergeEqualsModel(t *testing.T) {
	for seed := range uint64(60) {
		random := rand.New(rand.NewPCG(seed, 1))
		users, want := 1+random.IntN(400), model{}
		first := slices.DeleteFunc(change(random, users, users), func(r authdb.Row) bool { return r.Deleted })
		want.apply(first)
		segments := []*authdb.Segment{open(t, span(0, 10), first)}
		for i := range 1 + random.IntN(7) {
			rows := change(random, users, random.IntN(100))
			want.apply(rows)
			segments = append(segments, open(t, span(uint64(11+i), uint64(11+i)), rows))
		}
		end := segments[len(segments)-1].Head().To
		checkModel(t, want, join(t, segments...), users)
		whole := merge(t, segments...)
		if !bytes.Equal(whole, build(t, span(0, end), slices.Collect(maps.Values(want)))) {
			t.Fatalf("seed %d: the merged base is not the one built from all rows", seed)
		}
		for range 5 { // merge neighbours at random until one is left
			rest := slices.Clone(segments)
			for len(rest) > 1 {
				lo := random.IntN(len(rest) - 1)
				hi := lo + 2 + random.IntN(len(rest)-lo-1)
				part, err := authdb.Open(merge(t, rest[lo:hi]...))
				if err != nil {
					t.Fatalf("seed %d: %v", seed, err)
				}
				rest = slices.Replace(rest, lo, hi, part)
				checkModel(t, want, join(t, rest...), users)
			}
			if !bytes.Equal(merge(t, rest...), whole) {
				t.Fatalf("seed %d: another order of merging gives other bytes", seed)
			}
		}
	}
}

func checkModel(t *testing.T, want model, db *authdb.DB, users int) {
	t.Helper()
	for i := range users + 5 {
		key := hashKey.Key(name(i))
		row, ok := want[key]
		if got, found := db.Lookup(key); found != ok || got != row {
			t.Fatalf("user %d: found %v, want %v, rows equal %v", i, found, ok, got == row)
		}
	}
}

func TestSegmentsMustFollow(t *testing.T) {
	base, one, two := open(t, span(0, 5), nil), open(t, span(6, 6), nil), open(t, span(7, 9), nil)
	foreign := open(t, authdb.Head{Span: authdb.Span{From: 6, To: 6}}, nil)
	closed := open(t, span(6, 6), nil)
	closed.Close()
	for _, c := range []struct {
		name      string
		segments  []*authdb.Segment
		db, merge string
	}{
		{"none", nil, "there is none", "there is none"},
		{"gap", []*authdb.Segment{base, two}, "changes from 7 follow those up to 5", "changes from 7 follow those up to 5"},
		{"two bases", []*authdb.Segment{base, base}, "changes from 0 follow", "changes from 0 follow"},
		{"wrong order", []*authdb.Segment{base, two, one}, "changes from 7 follow", "changes from 7 follow"},
		{"another deployment", []*authdb.Segment{base, foreign}, "hash keys differ", "hash keys differ"},
		{"no base", []*authdb.Segment{one, two}, "the first segment is no base", ""},
		{"closed", []*authdb.Segment{base, closed}, "is closed", "is closed"},
		{"fine", []*authdb.Segment{base, one, two}, "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := authdb.NewDB(c.segments...)
			if (err == nil) != (c.db == "") || err != nil && !strings.Contains(err.Error(), c.db) {
				t.Errorf("database: got %v, want %q", err, c.db)
			}
			err = authdb.Merge(io.Discard, c.segments...)
			if (err == nil) != (c.merge == "") || err != nil && !strings.Contains(err.Error(), c.merge) {
				t.Errorf("merge: got %v, want %q", err, c.merge)
			}
		})
	}
	if n := len(slices.Collect(closed.Rows())); n != 0 {
		t.Errorf("a closed segment yields %d rows", n)
	}
}

func TestSealedMemory(t *testing.T) {
	raw := build(t, span(0, 1), people(0, 100_000)) // more than a huge page
	put := func(b []byte) func(io.Writer) error {
		return func(w io.Writer) error { _, err := w.Write(b); return err }
	}
	f, err := memfd.Sealed("authdb", put(raw))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte{1}, 70); err == nil {
		t.Error("a sealed memfd can be written to")
	}
	if f.Truncate(10) == nil || f.Truncate(1<<30) == nil {
		t.Error("a sealed memfd can change its size")
	}
	s, err := authdb.Map(f)
	if err != nil {
		t.Fatal(err)
	}
	again, err := authdb.Map(f)
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
	s.Close()
	if got := merge(t, again); !bytes.Equal(got, raw) {
		t.Error("a second mapping has other bytes")
	}
	again.Close()

	errFill := errors.New("fill")
	if _, err := memfd.Sealed("authdb", func(io.Writer) error { return errFill }); !errors.Is(err, errFill) {
		t.Errorf("got %v, want the error of fill", err)
	}
	if _, err := memfd.Sealed("authdb", func(w io.Writer) error { return w.(io.Closer).Close() }); err == nil {
		t.Error("a closed memfd counts as sealed")
	}
	file, err := os.Create(t.TempDir() + "/segment")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for _, c := range []struct {
		name string
		make func() (*os.File, error)
		want string
	}{
		{"short memfd", func() (*os.File, error) { return memfd.Sealed("authdb", put([]byte("short"))) }, "no segment begins"},
		{"damaged memfd", func() (*os.File, error) { return memfd.Sealed("authdb", put(raw[:len(raw)-7])) }, "do not fit"},
		{"file on disk", func() (*os.File, error) { return file, put(raw)(file) }, "not in a sealed memfd"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f, err := c.make()
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if _, err := authdb.Map(f); fault.Of(err) != fault.Untrusted || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}
