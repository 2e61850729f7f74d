package authdb_test

import (
	"slices"
	"testing"

	"lethe/authdb"
)

func parts(rows ...int) (all []authdb.Part) {
	for i, n := range rows {
		all = append(all, authdb.Part{Span: authdb.Span{From: uint64(i), To: uint64(i)}, Rows: n})
	}
	return all
}

func TestPlan(t *testing.T) {
	for _, c := range []struct {
		name   string
		parts  []authdb.Part
		lo, hi int
	}{
		{"nothing", nil, 0, 0},
		{"only a base", parts(100), 1, 1},
		{"one small delta", parts(100, 1), 2, 2},
		{"empty base", parts(0, 1), 0, 2},
		{"much has changed", parts(800, 80, 20), 0, 3},
		{"tiers in order", parts(1_000_000, 10_000, 1000, 100, 10), 5, 5},
		{"two of a size", parts(1_000_000, 10_000, 1000, 100, 100), 3, 5},
		{"a newest that is large", parts(1_000_000, 10_000, 1000, 100, 5000), 1, 5},
		{"too many", parts(1<<40, 1<<30, 1<<25, 1<<20, 1<<15, 1<<10, 1<<5, 1), 6, 8},
		{"empty delta", parts(1000, 1, 0), 3, 3},
	} {
		t.Run(c.name, func(t *testing.T) {
			if lo, hi := authdb.Plan(c.parts); lo != c.lo || hi != c.hi {
				t.Errorf("got %d:%d, want %d:%d", lo, hi, c.lo, c.hi)
			}
		})
	}
}

func TestCover(t *testing.T) {
	s := func(from, to uint64) authdb.Span { return authdb.Span{From: from, To: to} }
	const end = ^uint64(0)
	for _, c := range []struct {
		name string
		held []authdb.Span
		want authdb.Span
		out  []int
	}{
		{"nothing held", nil, s(1, 2), nil},
		{"itself", []authdb.Span{s(0, 4), s(1, 2)}, s(1, 2), []int{1}},
		{"in any order", []authdb.Span{s(3, 3), s(1, 2), s(4, 9)}, s(1, 9), []int{1, 0, 2}},
		{"gap", []authdb.Span{s(1, 2), s(4, 9)}, s(1, 9), nil},
		{"sticks out", []authdb.Span{s(1, 2), s(3, 10)}, s(1, 9), nil},
		{"past a dead end", []authdb.Span{s(1, 5), s(1, 2), s(3, 9)}, s(1, 9), []int{1, 2}},
		{"fewest", []authdb.Span{s(1, 1), s(2, 2), s(3, 3), s(1, 2), s(2, 3)}, s(1, 3), []int{0, 4}},
		{"base", []authdb.Span{s(1, 1), s(0, 0), s(2, 5)}, s(0, 5), []int{1, 0, 2}},
		{"backwards", []authdb.Span{s(3, 1), s(1, 2)}, s(3, 2), nil},
		{"last number", []authdb.Span{s(end, end), s(1, end-1)}, s(1, end), []int{1, 0}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := authdb.Cover(c.held, c.want); !slices.Equal(got, c.out) {
				t.Errorf("got %v, want %v", got, c.out)
			}
		})
	}
}

// TestCoverIsQuick would not end if Cover tried every tiling: there are 2^59.
func TestCoverIsQuick(t *testing.T) {
	var held []authdb.Span
	for from := range uint64(60) {
		for to := from; to < 60; to++ {
			held = append(held, authdb.Span{From: from, To: to})
		}
	}
	if got := authdb.Cover(held, authdb.Span{To: 60}); got != nil {
		t.Errorf("got %v, want nothing", got)
	}
}

// TestYearOfChurn publishes every minute for a year with 1 % of a million
// credentials changing a day, and follows with two servers: one that takes every
// list, one that was away for a day at the end of each month. (The daily rows are
// spread over 96 publications, which is what the clock of a test can bear.)
func TestYearOfChurn(t *testing.T) {
	const rows, days, perDay, changed = 1_000_000, 365, 96, 10_000 / 96
	list := parts(rows)
	held := []authdb.Span{list[0].Span}
	away := []authdb.Span{list[0].Span}
	downloaded, caughtUp, rewritten, most, bases := 0, 0, 0, 0, 0
	for moment := range days * perDay {
		if lo, hi := authdb.Plan(list); lo < hi {
			merged := authdb.Part{Span: authdb.Span{From: list[lo].From, To: list[hi-1].To}}
			for _, p := range list[lo:hi] {
				merged.Rows += p.Rows
			}
			if lo == 0 {
				merged.Rows = rows
				bases++
			}
			rewritten += merged.Rows
			list = slices.Replace(list, lo, hi, merged)
		}
		seq := list[len(list)-1].To + 1
		list = append(list, authdb.Part{Span: authdb.Span{From: seq, To: seq}, Rows: changed})
		most = max(most, len(list))
		follow := func(held []authdb.Span) (next []authdb.Span, rows int) {
			for _, p := range list {
				if authdb.Cover(held, p.Span) == nil {
					rows += p.Rows
				}
				next = append(next, p.Span)
			}
			return next, rows
		}
		var n int
		held, n = follow(held)
		downloaded += n
		if day := moment / perDay; day%30 != 29 || moment == days*perDay-1 {
			away, n = follow(away)
			caughtUp += n
		}
	}
	changes := days * perDay * changed
	t.Logf("%d lists: at most %d segments, %d bases; %d rows changed, %d downloaded, %d by the server that was away 12 days; publisher rewrote %d",
		days*perDay, most, bases, changes, downloaded, caughtUp, rewritten)
	if most > authdb.MaxSegments {
		t.Errorf("%d segments, want at most %d", most, authdb.MaxSegments)
	}
	if downloaded != changes {
		t.Errorf("a server that follows downloads %d rows for %d changed", downloaded, changes)
	}
	if caughtUp > 3*changes {
		t.Errorf("a server that misses a day a month downloads %d rows for %d changed", caughtUp, changes)
	}
}
