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

// The layout of a segment; all numbers little endian:
//
//	 0  8  magic
//	 8  4  format version
//	12  4  number of rows n
//	16  8  first sequence number; 0 in a base
//	24  8  last sequence number
//	32 32  hash key
//	64     offset table: 2^b + 1 numbers of 4 bytes, b = bitsFor(n); entry i is the number of
//	       rows whose key's leading b bits are less than i
//	       n rows of 36 bytes: key 16, secret 16, paid until 2, flags 2
//	       CRC-32C (RFC 3720, B.4) of all that stands before
const (
	magic      = "LetheADB"
	version    = 1
	headSize   = 64
	rowSize    = 36
	crcSize    = 4
	maxRows    = 1 << 30
	flagOff    = 1 << 0 // Row.Disabled
	flagDelete = 1 << 1 // Row.Deleted

	// maxBucket bounds the work of a look-up whatever a segment holds. With
	// uniform keys a bucket has at most four rows on average; one of 48 is less
	// likely than 10^-30.
	maxBucket = 48
)

// bitsFor returns how many leading bits of the key choose the bucket among n
// rows: two to four rows a bucket on average.
func bitsFor(n int) int { return bits.Len(uint(n / 4)) }

// sizeFor returns the exact size of a segment of n rows in bytes.
func sizeFor(n int) int { return headSize + 4*(1<<bitsFor(n)+1) + rowSize*n + crcSize }

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
	shift int    // 64 minus the number of bucket bits
	table []byte // offset table
	rows  []byte
}

// Open checks b completely and returns it as a segment. Nobody may change b
// afterwards; mapped memory must not be able to shrink (see [Map]). Errors are of
// kind [fault.Untrusted] and name the first thing that is wrong. 4 million rows
// take about 50 ms.
func Open(b []byte) (*Segment, error) {
	if len(b) < headSize || string(b[:8]) != magic {
		return nil, refuse("no segment begins here")
	}
	if v := binary.LittleEndian.Uint32(b[8:]); v != version {
		return nil, refuse("format version %d, want %d", v, version)
	}
	n := int(binary.LittleEndian.Uint32(b[12:]))
	if n > maxRows || len(b) != sizeFor(n) {
		return nil, refuse("%d bytes do not fit %d rows", len(b), n)
	}
	end := len(b) - crcSize
	if crc32.Checksum(b[:end], crc32.MakeTable(crc32.Castagnoli)) != binary.LittleEndian.Uint32(b[end:]) {
		return nil, refuse("damaged: the CRC does not match")
	}
	s := &Segment{size: len(b), n: n, shift: 64 - bitsFor(n)}
	s.head.From, s.head.To = binary.LittleEndian.Uint64(b[16:]), binary.LittleEndian.Uint64(b[24:])
	s.head.HashKey = HashKey(b[32:headSize])
	s.table, s.rows = b[headSize:end-rowSize*n], b[end-rowSize*n:end]
	if s.head.From > s.head.To {
		return nil, refuse("sequence numbers %d to %d run backwards", s.head.From, s.head.To)
	}
	if err := s.check(); err != nil {
		return nil, err
	}
	s.claim.take(nil)
	return s, nil
}

// check walks table and rows once: every offset in order, every row in its
// bucket and greater than the one before, every value one that Build writes.
func (s *Segment) check() error {
	offset := func(i int) int { return int(binary.LittleEndian.Uint32(s.table[4*i:])) }
	buckets := len(s.table)/4 - 1
	if offset(0) != 0 || offset(buckets) != s.n {
		return refuse("offsets run from %d to %d, want 0 to %d", offset(0), offset(buckets), s.n)
	}
	var last [2]uint64
	for i, lo := 0, 0; i < buckets; i++ {
		hi := offset(i + 1)
		if hi < lo || hi > s.n || hi-lo > maxBucket {
			return refuse("bucket %d goes from row %d to %d", i, lo, hi)
		}
		for ; lo < hi; lo++ {
			row := s.rows[rowSize*lo:][:rowSize]
			key := [2]uint64{binary.BigEndian.Uint64(row), binary.BigEndian.Uint64(row[8:])}
			if int(key[0]>>s.shift) != i {
				return refuse("row %d is in the wrong bucket", lo)
			}
			if lo > 0 && (key[0] < last[0] || key[0] == last[0] && key[1] <= last[1]) {
				return refuse("row %d is out of order", lo)
			}
			last = key
			if !s.allowed(row) {
				return refuse("row %d has impossible flags", lo)
			}
		}
	}
	return nil
}

// allowed reports whether the flags of an encoded row are possible in s. A
// tombstone has only one form, or equal segments could differ in bytes.
func (s *Segment) allowed(row []byte) bool {
	switch flags := binary.LittleEndian.Uint16(row[34:]); flags {
	case 0, flagOff:
		return true
	case flagDelete:
		return !s.head.Base() && [18]byte(row[16:34]) == [18]byte{}
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

// Part returns what [Plan] and [Cover] want to know of the segment.
func (s *Segment) Part() Part { return Part{Span: s.head.Span, Rows: s.n} }

// Rows returns the rows in the order of their keys, tombstones included. It
// yields nothing once the segment's memory is gone.
func (s *Segment) Rows() iter.Seq[Row] {
	return func(yield func(Row) bool) {
		if !s.acquire() {
			return
		}
		defer s.release()
		for at := 0; at < len(s.rows); at += rowSize {
			if !yield(decode(s.rows[at:])) {
				return
			}
		}
	}
}

// Close gives up the owner's claim on the segment's memory. Further calls do
// nothing.
func (s *Segment) Close() { s.drop() }

func decode(b []byte) Row {
	flags := binary.LittleEndian.Uint16(b[34:])
	return Row{
		Key: RowKey(b[:16]), Secret: Secret(b[16:32]), PaidUntil: day.Day(binary.LittleEndian.Uint16(b[32:])),
		Disabled: flags&flagOff != 0, Deleted: flags&flagDelete != 0,
	}
}

// encode appends the 36 bytes of r to b.
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
// zero when none has; then the other fields come from some other row.
type hit struct {
	secret [2]uint64 // the row's bytes 16 to 31
	meta   uint64    // paid until and flags
	mask   uint64
}

// probe looks for a key (its two halves in the row's byte order). It walks the
// whole bucket and reads a row's secret whether the key is there or not, without a
// branch that depends on it: an unknown name costs what a known one costs.
func (s *Segment) probe(key *RowKey) (h hit) {
	if s.n == 0 {
		return h
	}
	k0, k1 := binary.LittleEndian.Uint64(key[:]), binary.LittleEndian.Uint64(key[8:])
	bucket := s.table[4*(bits.ReverseBytes64(k0)>>s.shift):][:8]
	lo, hi := int(binary.LittleEndian.Uint32(bucket)), int(binary.LittleEndian.Uint32(bucket[4:]))
	at := uint64(min(lo, s.n-1) * rowSize)
	for i, end := uint64(lo*rowSize), uint64(hi*rowSize); i < end; i += rowSize {
		row := s.rows[i:][:16]
		x := (binary.LittleEndian.Uint64(row) ^ k0) | (binary.LittleEndian.Uint64(row[8:]) ^ k1)
		same := (x|-x)>>63 - 1 // all ones if x is 0
		at = at&^same | i&same
		h.mask |= same
	}
	row := s.rows[at:][:rowSize]
	h.secret = [2]uint64{binary.LittleEndian.Uint64(row[16:]), binary.LittleEndian.Uint64(row[24:])}
	h.meta = uint64(binary.LittleEndian.Uint32(row[32:]))
	return h
}
