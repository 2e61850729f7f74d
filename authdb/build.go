package authdb

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"iter"
	"slices"
)

// Build writes a segment of the rows to w. It sorts the rows in place. Two rows
// of one key, a tombstone in a base and a span that runs backwards are errors. The
// bytes depend on head and rows alone.
func Build(w io.Writer, head Head, rows []Row) error {
	slices.SortFunc(rows, func(a, b Row) int { return bytes.Compare(a.Key[:], b.Key[:]) })
	for i := range rows {
		if rows[i].Deleted && (head.Base() || rows[i] != Row{Key: rows[i].Key, Deleted: true}) {
			return errors.New("build segment: want tombstones only in deltas and with nothing but a key")
		}
		if i > 0 && rows[i].Key == rows[i-1].Key {
			return errors.New("build segment: two rows of one key")
		}
	}
	return write(w, head, len(rows), func(yield func([]byte) bool) {
		var room [rowSize]byte
		for i := range rows {
			if !yield(rows[i].encode(room[:0])) {
				return
			}
		}
	})
}

// Merge writes the segment that stands for all the given ones, oldest first, to
// w: a base if the first is one, else a delta. The newest row of each key wins;
// tombstones stay in a delta and vanish in a base. The segments must follow each
// other without a gap and share their hash key. It streams and needs no memory to
// speak of.
func Merge(w io.Writer, segments ...*Segment) error {
	if err := follow(segments); err != nil {
		return fmt.Errorf("merge segments: %w", err)
	}
	for _, s := range segments {
		if !s.acquire() {
			return errors.New("merge segments: a segment is closed")
		}
		defer s.release()
	}
	head := segments[0].head
	head.To = segments[len(segments)-1].head.To
	rows := merged(segments, head.Base())
	n := 0
	for range rows {
		n++
	}
	return write(w, head, n, rows)
}

// follow returns why the segments do not make one, or nil.
func follow(segments []*Segment) error {
	if len(segments) == 0 {
		return errors.New("there is none")
	}
	for i, s := range segments[1:] {
		before := segments[i].head
		if s.head.HashKey != before.HashKey {
			return errors.New("hash keys differ")
		}
		if s.head.Base() || s.head.From != before.To+1 {
			return fmt.Errorf("changes from %d follow those up to %d", s.head.From, before.To)
		}
	}
	return nil
}

// cursor is a place in a segment's rows.
type cursor struct {
	slots []byte // from the current row on; empty at the end
	hi    uint64 // the current row's key
	lo    uint32
}

func newCursor(s *Segment) cursor {
	c := cursor{slots: s.slots}
	c.settle()
	return c
}

func (c *cursor) next() {
	c.slots = c.slots[rowSize:]
	c.settle()
}

// settle goes forward to the next slot that is not empty.
func (c *cursor) settle() {
	for ; len(c.slots) > 0; c.slots = c.slots[rowSize:] {
		if c.hi, c.lo = (*RowKey)(c.slots).halves(); c.hi != 1<<64-1 || c.lo != 1<<32-1 {
			return
		}
	}
}

// merged yields the encoded rows of the merged segments in order.
func merged(segments []*Segment, base bool) iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		var live []cursor // newest first: it wins ties
		for _, s := range slices.Backward(segments) {
			if c := newCursor(s); len(c.slots) > 0 {
				live = append(live, c)
			}
		}
		for len(live) > 0 {
			least := live[0]
			for i := range live[1:] {
				if c := &live[i+1]; c.hi < least.hi || c.hi == least.hi && c.lo < least.lo {
					least = *c
				}
			}
			if gone := base && least.slots[30]&flagDelete != 0; !gone && !yield(least.slots[:rowSize]) {
				return
			}
			for i := len(live) - 1; i >= 0; i-- {
				if c := &live[i]; c.hi == least.hi && c.lo == least.lo {
					if c.next(); len(c.slots) == 0 {
						live = slices.Delete(live, i, i+1)
					}
				}
			}
		}
	}
}

// write encodes a segment of n rows, which come in the order of their keys.
func write(w io.Writer, head Head, n int, rows iter.Seq[[]byte]) error {
	if n > maxRows || head.From > head.To {
		return fmt.Errorf("write segment: %d rows of changes %d to %d: want at most %d and an ascending range",
			n, head.From, head.To, maxRows)
	}
	crc := crc32.New(crc32.MakeTable(crc32.Castagnoli))
	b := bufio.NewWriterSize(io.MultiWriter(w, crc), 1<<18) // it keeps the first error for Flush
	out := binary.LittleEndian.AppendUint32([]byte(magic), version)
	out = binary.LittleEndian.AppendUint32(out, uint32(n))
	out = binary.LittleEndian.AppendUint64(out, head.From)
	out = binary.LittleEndian.AppendUint64(out, head.To)
	_, _ = b.Write(append(out, head.HashKey[:]...))
	m, slot := homes(n), 0
	fill := func(until int) {
		for ; slot < until; slot++ {
			_, _ = b.Write(empty[:])
		}
	}
	for row := range rows {
		h := home(binary.BigEndian.Uint64(row), m)
		if slot-h > maxShift || RowKey(row) == RowKey(empty[:]) {
			return errors.New("write segment: the keys are not spread like hashes")
		}
		fill(h)
		_, _ = b.Write(row)
		slot++
	}
	fill(max(int(m), slot) + 1)
	if err := b.Flush(); err != nil {
		return fmt.Errorf("write segment: %w", err)
	}
	if _, err := w.Write(binary.LittleEndian.AppendUint32(nil, crc.Sum32())); err != nil {
		return fmt.Errorf("write segment: %w", err)
	}
	return nil
}
