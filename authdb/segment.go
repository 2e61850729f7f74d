package authdb

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"iter"
	"math/bits"

	"lethe/day"
	"lethe/fault"
)

// The layout of a segment; all numbers little endian, keys as bytes:
//
//	 0  8  magic
//	 8  4  format version
//	12  4  number of rows n
//	16  8  first sequence number; 0 in a base
//	24  8  last sequence number
//	32 32  hash key
//	64     slots of 32 bytes: key 12, secret 16, paid until 2, flags 2; in an empty slot the key is
//	       twelve bytes 0xff and the rest zero
//	       CRC-32C (RFC 3720, B.4) of all that stands before
//
// With m = homes(n), the home of a row is the slot floor(k*m/2^64), where k is the
// key's first 8 bytes as a big-endian number. Rows stand in the order of their
// keys, each in its home or, if the row before it is there or further, right
// after that row. There are m slots, or as many as the last row needs, and one
// more, which is empty. So the rows alone decide every byte.
const (
	magic      = "LetheADB"
	version    = 1
	headSize   = 64
	rowSize    = 32
	crcSize    = 4
	maxRows    = 1 << 30
	flagOff    = 1 << 0 // Row.Disabled
	flagDelete = 1 << 1 // Row.Deleted

	// maxShift bounds how far from its home a row may stand and so the work of a
	// look-up, whatever a segment holds. Hashes at seven eighths full are shifted by
	// three slots on average; a shift of w has a probability of about e^(-w/4).
	maxShift = 512
)

// empty is the content of an empty slot. Its key is greater than every row's, so
// that a look-up stops at it as at any greater key.
var empty = [rowSize]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// homes returns the number of home slots for n rows, which fill 7/8 of them.
func homes(n int) uint64 { return uint64(n) + uint64(n)/7 + 1 }

// home returns the home slot among m of a key whose first 8 bytes are hi.
func home(hi, m uint64) int {
	slot, _ := bits.Mul64(hi, m)
	return int(slot)
}

func refuse(format string, args ...any) error {
	return fault.New(fault.Untrusted, "authentication segment: "+fmt.Sprintf(format, args...))
}

// Segment is an open base or delta. It is immutable and safe for concurrent
// use. [Segment.Close] gives the owner's claim back; databases made from the
// segment keep their own, so its memory stays until the last of them is closed.
type Segment struct {
	sealed
	claim
	head  Head
	size  int
	n     int
	homes uint64 // homes(n)
	slots []byte
}

// Open checks b completely and returns it as a segment. Nobody may change b
// afterwards; mapped memory must not be able to shrink (see [Map]). Errors are of
// kind [fault.Untrusted] and name the first thing that is wrong.
func Open(b []byte) (*Segment, error) {
	if len(b) < headSize || string(b[:8]) != magic {
		return nil, refuse("no segment begins here")
	}
	if v := binary.LittleEndian.Uint32(b[8:]); v != version {
		return nil, refuse("format version %d, want %d", v, version)
	}
	end := len(b) - crcSize
	n := int(binary.LittleEndian.Uint32(b[12:]))
	if n > maxRows || (end-headSize)%rowSize != 0 || uint64(end-headSize)/rowSize <= homes(n) {
		return nil, refuse("%d bytes do not fit %d rows", len(b), n)
	}
	if crc32.Checksum(b[:end], crc32.MakeTable(crc32.Castagnoli)) != binary.LittleEndian.Uint32(b[end:]) {
		return nil, refuse("damaged: the CRC does not match")
	}
	s := &Segment{size: len(b), n: n, homes: homes(n), slots: b[headSize:end]}
	s.head.From, s.head.To = binary.LittleEndian.Uint64(b[16:]), binary.LittleEndian.Uint64(b[24:])
	s.head.HashKey = HashKey(b[32:headSize])
	if s.head.From > s.head.To {
		return nil, refuse("sequence numbers %d to %d run backwards", s.head.From, s.head.To)
	}
	if err := s.check(); err != nil {
		return nil, err
	}
	s.take(nil)
	return s, nil
}

// check walks the slots once: every row in order and in the one place where it
// may stand, every value one that Build writes, an empty slot at the end.
func (s *Segment) check() error {
	var lastHi uint64
	var lastLo uint32
	next, rows := 0, 0 // next is the first slot that the next row may stand in
	for slot := range len(s.slots) / rowSize {
		b := (*[rowSize]byte)(s.slots[rowSize*slot:])
		if *b == empty {
			continue
		}
		hi, lo := (*RowKey)(b[:]).halves()
		if rows > 0 && (hi < lastHi || hi == lastHi && lo <= lastLo) {
			return refuse("the row in slot %d is out of order", slot)
		}
		if h := home(hi, s.homes); slot != max(h, next) || slot-h > maxShift {
			return refuse("the row in slot %d belongs elsewhere", slot)
		}
		if !s.allowed(b) {
			return refuse("the row in slot %d has an impossible key or flags", slot)
		}
		lastHi, lastLo, next = hi, lo, slot+1
		rows++
	}
	if want := max(int(s.homes), next) + 1; rows != s.n || len(s.slots)/rowSize != want {
		return refuse("%d rows in %d slots, want %d in %d", rows, len(s.slots)/rowSize, s.n, want)
	}
	return nil
}

// allowed reports whether an encoded row is possible in s. A tombstone has only
// one form, or equal segments could differ in bytes.
func (s *Segment) allowed(b *[rowSize]byte) bool {
	if RowKey(b[:12]) == RowKey(empty[:12]) {
		return false
	}
	switch flags := binary.LittleEndian.Uint16(b[30:]); flags {
	case 0, flagOff:
		return true
	case flagDelete:
		return !s.head.Base() && [18]byte(b[12:30]) == [18]byte{}
	default:
		return false
	}
}

// Head returns what the segment says of itself.
func (s *Segment) Head() Head { return s.head }

// Len returns the number of rows, tombstones included.
func (s *Segment) Len() int { return s.n }

// Size returns the size of the encoded segment in bytes.
func (s *Segment) Size() int { return s.size }

// Part returns what [Plan] wants to know of the segment.
func (s *Segment) Part() Part { return Part{Span: s.head.Span, Rows: s.n} }

// Rows returns the rows in the order of their keys, tombstones included. It
// yields nothing once the segment's memory is gone.
func (s *Segment) Rows() iter.Seq[Row] {
	return func(yield func(Row) bool) {
		if !s.acquire() {
			return
		}
		defer s.release()
		for c := newCursor(s); len(c.slots) > 0; c.next() {
			if !yield(decode(c.slots)) {
				return
			}
		}
	}
}

// Close gives up the owner's claim on the segment's memory. Further calls do
// nothing.
func (s *Segment) Close() { s.drop() }

func decode(b []byte) Row {
	flags := binary.LittleEndian.Uint16(b[30:])
	return Row{
		Key: RowKey(b[:12]), Secret: Secret(b[12:28]), PaidUntil: day.Day(binary.LittleEndian.Uint16(b[28:])),
		Disabled: flags&flagOff != 0, Deleted: flags&flagDelete != 0,
	}
}

// encode appends the 32 bytes of r to b.
func (r *Row) encode(b []byte) []byte {
	var flags uint16
	if r.Disabled {
		flags |= flagOff
	}
	if r.Deleted {
		flags |= flagDelete
	}
	b = append(append(b, r.Key[:]...), r.Secret[:]...)
	b = binary.LittleEndian.AppendUint16(b, uint16(r.PaidUntil))
	return binary.LittleEndian.AppendUint16(b, flags)
}

// hit is what a look-up found. Its mask is all ones when a row has the key and
// zero when none has; then the other fields come from some other slot.
type hit struct {
	secret [2]uint64 // the row's bytes 12 to 27
	meta   uint64    // paid until and flags
	mask   uint64
}

// probe looks for a key. It stops at the first slot whose key is not smaller and
// reads what stands there, whether it is the row wanted or not: an unknown name
// costs what a known one costs.
func (s *Segment) probe(hi uint64, lo uint32) (h hit) {
	b := s.slots[home(hi, s.homes)*rowSize:]
	at := binary.BigEndian.Uint64(b)
	for at < hi || at == hi && binary.BigEndian.Uint32(b[8:]) < lo {
		b = b[rowSize:] // an empty slot comes at the latest at the end
		at = binary.BigEndian.Uint64(b)
	}
	b = b[:rowSize]
	differ := at ^ hi | uint64(binary.BigEndian.Uint32(b[8:])^lo)
	h.mask = (differ|-differ)>>63 - 1 // all ones if differ is 0
	h.secret = [2]uint64{binary.LittleEndian.Uint64(b[12:]), binary.LittleEndian.Uint64(b[20:])}
	h.meta = uint64(binary.LittleEndian.Uint32(b[28:]))
	return h
}
