package authdb

// The shape that Plan keeps. Each delta has at least planRatio times as many rows
// as all newer ones together, all deltas together less than a planBase-th of the
// base, and there are at most planMost segments.
const (
	planRatio = 4
	planBase  = 8
	planMost  = 7
)

// MaxSegments is the largest number of segments in a database whose publisher
// follows [Plan]: seven, and the newest delta.
const MaxSegments = planMost + 1

// Part is what is to be known of a segment for planning: its span and its number
// of rows.
type Part struct {
	Span
	Rows int
}

// Plan says which neighbours of the published segments, base first and oldest to
// newest, the publisher should merge into one: parts[lo:hi], or none if lo equals
// hi.
//
// The publisher makes a new list in this order: it merges what Plan says of the
// list published last, and then appends the delta of the new changes, unmerged.
// So every delta is listed by itself once, before it becomes part of a merged
// segment, and a server that follows every list downloads each change once and
// builds all merged segments from what it has ([Cover]), the base included. A
// server that missed lists downloads those merged segments it has no tiles for;
// their sizes form tiers, so that is about the size of what it missed, times a
// small factor.
//
// A row is rewritten about planRatio times on each of at most six tiers before it
// reaches the base, and the base is rewritten when an eighth of it has changed: at
// 1 % a day every twelve days, on servers a merge of a fraction of a second.
func Plan(parts []Part) (lo, hi int) {
	hi = len(parts)
	if hi < 2 {
		return hi, hi
	}
	lo = hi
	newer := 0
	for i := hi - 1; i > 0; i-- {
		if newer > 0 && parts[i].Rows < planRatio*newer {
			lo = i
		}
		newer += parts[i].Rows
	}
	if hi > planMost {
		lo = min(lo, planMost-1)
	}
	if newer*planBase >= parts[0].Rows {
		lo = 0
	}
	return lo, hi
}

// Cover returns which of the parts that somebody holds tile the span want
// exactly, oldest first, as indexes into held; nil if they do not. [Merge] of
// those segments gives the segment of that span. Of several tilings it prefers
// the one of fewest, that is largest, parts.
func Cover(held []Span, want Span) []int {
	best := map[uint64][]int{} // from a sequence number to want's end; nil when there is no way
	var from func(seq uint64) []int
	from = func(seq uint64) []int {
		if known, ok := best[seq]; ok {
			return known
		}
		var tiles []int
		for i, s := range held {
			if s.From != seq || s.To < s.From || s.To > want.To {
				continue
			}
			var rest []int
			if s.To < want.To {
				if rest = from(s.To + 1); rest == nil {
					continue
				}
			}
			if tiles == nil || len(rest)+1 < len(tiles) {
				tiles = append([]int{i}, rest...)
			}
		}
		best[seq] = tiles
		return tiles
	}
	return from(want.From)
}
