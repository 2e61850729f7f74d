package authdb_test

import (
	"bytes"
	"encoding/binary"
	"maps"
	"slices"
	"testing"

	"lethe/authdb"
	"lethe/day"
	"lethe/fault"
)

// FuzzOpen hands Open damaged segments, with the CRC made right so that the
// structure is what must refuse them. What it accepts must be usable: look-ups
// find every row, and merging it alone gives the same bytes.
func FuzzOpen(f *testing.F) {
	f.Add([]byte{}, uint16(0), uint32(0))
	for _, n := range []int{0, 1, 20} {
		f.Add(build(f, span(0, 1), people(0, n)), uint16(0), uint32(0))
		f.Add(build(f, span(1, 2), append(people(0, n), authdb.Row{Key: hashKey.Key(nil), Deleted: true})), uint16(12), uint32(1))
	}
	f.Fuzz(func(t *testing.T, b []byte, at uint16, flip uint32) {
		b = slices.Clone(b)
		if int(at)+4 <= len(b) {
			binary.LittleEndian.PutUint32(b[at:], binary.LittleEndian.Uint32(b[at:])^flip)
		}
		s, err := authdb.Open(reseal(b))
		if err != nil {
			if fault.Of(err) != fault.Untrusted {
				t.Fatalf("refused with kind %v", fault.Of(err))
			}
			return
		}
		if merged := merge(t, s); !bytes.Equal(merged, b) {
			t.Fatal("one content has two encodings")
		}
		rows := slices.Collect(s.Rows())
		if len(rows) != s.Len() {
			t.Fatalf("%d rows, %d said", len(rows), s.Len())
		}
		if !s.Head().Base() {
			return
		}
		db := join(t, s)
		for _, r := range rows {
			if got, ok := db.Lookup(r.Key); !ok || got != r {
				t.Fatal("a row is not found")
			}
		}
		db.Lookup(authdb.RowKey(bytes.Repeat([]byte{0xff}, 12)))
		db.Check([]byte("nobody"), nil, 0)
	})
}

// FuzzMerge turns bytes into a history of changes, one byte who and one byte what,
// and compares database and merged segments with a map.
func FuzzMerge(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte{1, 0, 2, 0, 3, 255, 1, 1, 4, 7, 255, 255, 2, 1})
	f.Fuzz(func(t *testing.T, history []byte) {
		const base, cut = 16, 0xff
		want := model{}
		want.apply(people(0, base))
		segments := []*authdb.Segment{open(t, span(0, 0), people(0, base))}
		change := model{}
		flush := func() {
			seq := uint64(len(segments))
			rows := slices.Collect(maps.Values(change))
			want.apply(rows)
			segments = append(segments, open(t, span(seq, seq), rows))
			change = model{}
		}
		for ; len(history) > 1 && len(segments) < 12; history = history[2:] {
			if history[0] == cut {
				flush()
				continue
			}
			r := authdb.Row{Key: hashKey.Key(name(int(history[0])))}
			if what := history[1]; what%2 == 1 {
				r.Deleted = true
			} else {
				r.PaidUntil, r.Disabled = day.Day(what), what%4 == 0
			}
			change[r.Key] = r
		}
		flush()
		checkModel(t, want, join(t, segments...), 256)
		head := span(0, uint64(len(segments)-1))
		if !bytes.Equal(merge(t, segments...), build(t, head, slices.Collect(maps.Values(want)))) {
			t.Fatal("the merged base is not the one built from all rows")
		}
		delta, err := authdb.Open(merge(t, segments[1:]...))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(merge(t, segments[0], delta), merge(t, segments...)) {
			t.Fatal("merging in two steps gives other bytes")
		}
	})
}
