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
// other without a gap and share their hash key. It streams: its memory is the
// offset table, 4 to 8 MB for 4 million rows.
func Merge(w io.Writer, segments ...*Segment) error {
	if err := follow(segments); err != nil {
		return fmt.Errorf("merge segments: %w", err)
	}
	total := 0
	for _, s := range segments {
		if !s.acquire() {
			return errors.New("merge segments: a segment is closed")
		}
		defer s.release()
		total += s.n
	}
	head := segments[0].head
	head.To = segments[len(segments)-1].head.To
	return write(w, head, total, merged(segments, head.Base()))
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
	rows []byte    // from the current row on
	key  [2]uint64 // its key as numbers
}

func (c *cursor) next() {
	c.rows = c.rows[rowSize:]
	c.load()
}

func (c *cursor) load() {
	if len(c.rows) > 0 {
		c.key = [2]uint64{binary.BigEndian.Uint64(c.rows), binary.BigEndian.Uint64(c.rows[8:])}
	}
}

// merged yields the encoded rows of the merged segments in order.
func merged(segments []*Segment, base bool) iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		cursors := make([]cursor, len(segments))
		for i, s := range segments {
			cursors[len(cursors)-1-i] = cursor{rows: s.rows} // newest first: it wins ties
		}
		live := cursors[:0]
		for _, c := range cursors {
			if c.load(); len(c.rows) > 0 {
				live = append(live, c)
			}
		}
		for len(live) > 0 {
			least := 0
			for i := 1; i < len(live); i++ {
				if k, l := &live[i].key, &live[least].key; k[0] < l[0] || k[0] == l[0] && k[1] < l[1] {
					least = i
				}
			}
			key, row := live[least].key, live[least].rows[:rowSize]
			if gone := base && row[34]&flagDelete != 0; !gone && !yield(row) {
				return
			}
			for i := len(live) - 1; i >= least; i-- { // those before are newer and greater
				if live[i].key != key {
					continue
				}
				if live[i].next(); len(live[i].rows) == 0 {
					live = slices.Delete(live, i, i+1)
				}
			}
		}
	}
}

// write encodes a segment of at most limit rows, which it goes through twice:
// once to count, once to write.
func write(w io.Writer, head Head, limit int, rows iter.Seq[[]byte]) error {
	if limit > maxRows || head.From > head.To {
		return fmt.Errorf("write segment: %d rows of changes %d to %d: want at most %d and an ascending range",
			limit, head.From, head.To, maxRows)
	}
	table, n, err := count(limit, rows)
	if err != nil {
		return err
	}
	crc := crc32.New(crc32.MakeTable(crc32.Castagnoli))
	b := bufio.NewWriterSize(io.MultiWriter(w, crc), 1<<18)
	out := binary.LittleEndian.AppendUint32([]byte(magic), version)
	out = binary.LittleEndian.AppendUint32(out, uint32(n))
	out = binary.LittleEndian.AppendUint64(out, head.From)
	out = binary.LittleEndian.AppendUint64(out, head.To)
	_, _ = b.Write(append(out, head.HashKey[:]...)) // bufio keeps the first error for Flush
	for _, offset := range table {
		_, _ = b.Write(binary.LittleEndian.AppendUint32(b.AvailableBuffer(), offset))
	}
	for row := range rows {
		if _, err := b.Write(row); err != nil {
			break
		}
	}
	if err := b.Flush(); err != nil {
		return fmt.Errorf("write segment: %w", err)
	}
	if _, err := w.Write(binary.LittleEndian.AppendUint32(nil, crc.Sum32())); err != nil {
		return fmt.Errorf("write segment: %w", err)
	}
	return nil
}

// count returns the offset table and the number of rows. It counts in the
// buckets of limit rows; if there turn out to be fewer rows and so fewer and
// wider buckets, every 2^d-th of the offsets is the offset wanted.
func count(limit int, rows iter.Seq[[]byte]) (table []uint32, n int, err error) {
	shift := 64 - bitsFor(limit)
	fine := make([]uint32, 1<<bitsFor(limit)+1)
	for row := range rows {
		fine[binary.BigEndian.Uint64(row)>>shift+1]++
		n++
	}
	for i := 1; i < len(fine); i++ {
		fine[i] += fine[i-1]
	}
	step := 1 << (bitsFor(limit) - bitsFor(n))
	for i := 0; i < len(fine); i += step {
		if len(table) > 0 && fine[i]-table[len(table)-1] > maxBucket {
			return nil, 0, errors.New("write segment: the keys are not spread like hashes")
		}
		table = append(table, fine[i])
	}
	return table, n, nil
}
