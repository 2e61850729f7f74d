package canary

import (
	"bytes"
	"cmp"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"slices"
)

const (
	blockSize = 1 << 20
	maxDepth  = 3       // gzip inside gzip
	maxMember = 1 << 30 // bytes that are read of one gzip member
)

// Find searches b, gzip members in it too.
func (s *Set) Find(surface string, b []byte) []Hit { return s.find(surface, b, maxDepth) }

func (s *Set) find(surface string, b []byte, depth int) []Hit {
	c := collection{set: s, surface: surface}
	s.scan(b, 0, func(i, at int) { c.add(i, b, at, 0) })
	return append(c.hits(), s.unpack(surface, c.members, bytes.NewReader(b), depth)...)
}

// Search searches a stream to its end. It does not look into gzip members, for
// which it would have to go back; see [Set.SearchFile]. Hits are returned with an
// error as well.
func (s *Set) Search(surface string, r io.Reader) ([]Hit, error) {
	hits, _, err := s.search(surface, r)
	return hits, err
}

// SearchFile searches a file from its first byte to its end, gzip members
// anywhere in it too. What looks like a member and is damaged is searched as far
// as it unpacks.
func (s *Set) SearchFile(surface string, f io.ReaderAt) ([]Hit, error) {
	hits, members, err := s.search(surface, section(f, 0))
	return append(hits, s.unpack(surface, members, f, maxDepth)...), err
}

// unpack searches the gzip members of f that begin at those offsets.
func (s *Set) unpack(surface string, members []int64, f io.ReaderAt, depth int) (hits []Hit) {
	for _, at := range members {
		z, err := gzip.NewReader(section(f, at))
		if err != nil || depth == 0 {
			continue // by chance, or deeper than anything that is written
		}
		plain, _ := io.ReadAll(io.LimitReader(z, maxMember)) // what unpacks
		hits = append(hits, s.find(fmt.Sprintf("%s!gzip@%d", surface, at), plain, depth-1)...)
	}
	return hits
}

// section reads f from an offset to its end.
func section(f io.ReaderAt, from int64) io.Reader {
	return io.NewSectionReader(f, from, 1<<62)
}

// search returns the hits, the offsets of gzip members and the reader's error.
func (s *Set) search(surface string, r io.Reader) (hits []Hit, members []int64, err error) {
	c := collection{set: s, surface: surface}
	overlap := s.longest - 1
	buf := make([]byte, overlap+blockSize)
	have := 0        // bytes in buf that were searched before
	base := int64(0) // offset of buf[0] in the stream
	for err == nil {
		var n int
		n, err = io.ReadFull(r, buf[have:])
		b := buf[:have+n]
		s.scan(b, have, func(i, at int) { c.add(i, b, at, base) })
		keep := min(overlap, len(b))
		base += int64(len(b) - keep)
		have = copy(buf, b[len(b)-keep:])
	}
	if err == io.EOF || errors.Is(err, io.ErrUnexpectedEOF) {
		err = nil
	}
	return c.hits(), c.members, err
}

// collection is what a search has found so far.
type collection struct {
	set     *Set
	surface string
	found   map[int]*Hit // by pattern
	members []int64
}

// add notes pattern i in b at an offset; b itself begins at base.
func (c *collection) add(i int, b []byte, at int, base int64) {
	p := &c.set.patterns[i]
	offset := base + int64(at)
	switch h := c.found[i]; {
	case p.member:
		c.members = append(c.members, offset)
	case h != nil:
		h.Count++
		h.Offset = min(h.Offset, offset)
		h.Noise = h.Noise && noise(b, at, at+len(p.bytes))
	default:
		if c.found == nil {
			c.found = map[int]*Hit{}
		}
		c.found[i] = &Hit{Surface: c.surface, Offset: offset, Mark: p.mark, Encoding: p.encoding, Count: 1, Weak: p.weak, Noise: noise(b, at, at+len(p.bytes))}
	}
}

// around is how many bytes on either side show whether there is a pattern.
const around = 32

// noise reports whether the bytes around b[from:to] are as in random data, where 64
// bytes have 57 different values and hardly ever fewer than 48. It wants at least
// the bytes of one side.
func noise(b []byte, from, to int) bool {
	before, after := b[max(0, from-around):from], b[to:min(len(b), to+around)]
	var seen [256]bool
	different := 0
	for _, side := range [][]byte{before, after} {
		for _, c := range side {
			if !seen[c] {
				seen[c] = true
				different++
			}
		}
	}
	n := len(before) + len(after)
	return n >= around && different >= n*3/4
}

// hits returns the hits in the order of their offsets.
func (c *collection) hits() (all []Hit) {
	for _, h := range c.found {
		all = append(all, *h)
	}
	slices.SortFunc(all, func(a, b Hit) int {
		return cmp.Or(cmp.Compare(a.Offset, b.Offset), cmp.Compare(a.Mark, b.Mark), cmp.Compare(a.Encoding, b.Encoding))
	})
	return all
}
