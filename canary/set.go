package canary

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"math/bits"
)

// Set finds many marks in one pass. It is immutable and safe for concurrent use.
//
// It reads four bytes at every position, with the bit of ASCII case set, and asks a
// bit table that fits a near cache whether any form has them at its anchor: the
// place in the form whose bytes are the least common, and that the fewest other
// forms have. Few positions pass; a hash table gives the forms to compare there.
// Case costs nothing that way, and time hardly depends on the number of forms.
type Set struct {
	patterns []pattern
	shift    int      // 32 less the bits of a slot in filter
	filter   []uint64 // one bit for each slot
	coarse   int      // 32 less the bits of a slot in heads
	heads    []int32  // first pattern of a slot, -1 for none
	next     []int32  // by pattern: next one in its slot
	longest  int
}

type pattern struct {
	mark, encoding string
	bytes          []byte
	anchor         int
	fold, weak     bool
	member         bool // not a mark: a gzip member begins here
}

const (
	caseBits      = 0x20202020
	minSlots      = 18 // bits; a table of 32 KiB
	maxSlots      = 25
	slotsPerForm  = 6 // bits: one slot in 64 is taken, unless maxSlots is reached
	chainsPerForm = 1
)

func hash(word uint32) uint32 { return (word | caseBits) * 0x9e3779b1 }

// gzipHeads begin a gzip member (RFC 1952): magic, deflate, and no flags or a file
// name, which is all that programs write.
func gzipHeads() [][]byte { return [][]byte{{0x1f, 0x8b, 8, 0}, {0x1f, 0x8b, 8, 8}} }

// NewSet returns the set of marks, whose names must differ.
func NewSet(marks ...Mark) (*Set, error) {
	s := &Set{}
	names := map[string]bool{}
	for _, m := range marks {
		if err := m.check(); err != nil {
			return nil, err
		}
		if names[m.name] {
			return nil, fmt.Errorf("canary: two marks are called %s", m.name)
		}
		names[m.name] = true
		for _, f := range m.forms {
			p := pattern{mark: m.name, encoding: f.encoding, bytes: f.bytes, fold: f.fold, weak: len(f.bytes) < weakForm}
			if f.fold {
				p.bytes = lower(f.bytes)
			}
			s.patterns = append(s.patterns, p)
		}
	}
	for _, head := range gzipHeads() {
		s.patterns = append(s.patterns, pattern{bytes: head, member: true})
	}
	s.index()
	return s, nil
}

// index makes the tables.
func (s *Set) index() {
	size := bits.Len(uint(len(s.patterns)))
	s.shift = 32 - min(max(size+slotsPerForm, minSlots), maxSlots)
	s.coarse = 32 - min(size+chainsPerForm, maxSlots)
	s.filter = make([]uint64, 1<<(32-s.shift)/64)
	s.heads = make([]int32, 1<<(32-s.coarse))
	for i := range s.heads {
		s.heads[i] = -1
	}
	length := make([]int, len(s.heads)) // of the chains
	for i := range s.patterns {
		p := &s.patterns[i]
		p.anchor = anchorOf(p.bytes, func(word uint32) int { return length[hash(word)>>s.coarse] })
		h := hash(binary.LittleEndian.Uint32(p.bytes[p.anchor:]))
		s.filter[h>>s.shift>>6] |= 1 << (h >> s.shift & 63)
		s.next = append(s.next, s.heads[h>>s.coarse])
		s.heads[h>>s.coarse] = int32(i)
		length[h>>s.coarse]++
		s.longest = max(s.longest, len(p.bytes))
	}
}

// anchorOf returns the offset of the four bytes of b that are likely to be the
// rarest: different from each other and from what files are full of, and not the
// anchor of many others.
func anchorOf(b []byte, others func(word uint32) int) int {
	best, at := math.MinInt, 0
	for i := 0; i+4 <= len(b); i++ {
		score := -2 * others(binary.LittleEndian.Uint32(b[i:]))
		seen := map[byte]bool{}
		for _, c := range b[i : i+4] {
			switch {
			case c == 0 || c == 0xff || c == ' ':
			case c >= 0x80 || c < ' ':
				score += 4
			case c >= '0' && c <= '9':
				score += 2
			default:
				score += 3
			}
			if !seen[c] {
				score++
			}
			seen[c] = true
		}
		if score > best {
			best, at = score, i
		}
	}
	return at
}

// Forms returns the number of forms that are looked for.
func (s *Set) Forms() int { return len(s.patterns) - len(gzipHeads()) }

// Chance returns how many hits n bytes of random data are expected to give.
func (s *Set) Chance(n int64) float64 {
	sum := 0.0
	for _, p := range s.patterns {
		if p.member {
			continue
		}
		one := 1.0
		for _, c := range p.bytes {
			if p.fold && c >= 'a' && c <= 'z' {
				one *= 2
			}
			one /= 256
		}
		sum += one
	}
	return sum * float64(n)
}

// scan calls found for every form in b that ends behind the first old bytes.
func (s *Set) scan(b []byte, old int, found func(pattern int, at int)) {
	filter, shift := s.filter, s.shift
	for i := 0; i+4 <= len(b); i++ {
		h := hash(binary.LittleEndian.Uint32(b[i:]))
		if at := h >> shift; filter[at>>6]&(1<<(at&63)) == 0 {
			continue
		}
		for n := s.heads[h>>s.coarse]; n >= 0; n = s.next[n] {
			p := &s.patterns[n]
			start := i - p.anchor
			end := start + len(p.bytes)
			if start >= 0 && end <= len(b) && end > old && p.equal(b[start:end]) {
				found(int(n), start)
			}
		}
	}
}

func (p *pattern) equal(b []byte) bool {
	if !p.fold {
		return bytes.Equal(p.bytes, b)
	}
	for i, c := range b {
		if c >= 'A' && c <= 'Z' {
			c |= ' '
		}
		if c != p.bytes[i] {
			return false
		}
	}
	return true
}

// lower is bytes.ToLower for ASCII letters alone.
func lower(b []byte) []byte {
	l := make([]byte, len(b))
	for i, c := range b {
		if c >= 'A' && c <= 'Z' {
			c |= ' '
		}
		l[i] = c
	}
	return l
}
