// Package eventlog reads the log in which firmware and boot loaders say what they
// measured into a TPM: the crypto-agile event log of the TCG PC Client Platform
// Firmware Profile 1.05, chapter 10, as Linux shows it in
// /sys/kernel/security/tpm0/binary_bios_measurements.
//
// The log is not signed. [Log.Replay] gives the registers that it leads to; only
// when a TPM's quote says the same are the events' digests and their order true.
// An event's type is in no digest: whoever can change the log can change every
// type and every data that the digest does not cover. So nothing here trusts a
// type, and a reader must say for each event what makes its data believable
// ([Event.Hashed]).
//
// The parser is strict where others are lenient, because a log that two programs
// read differently is an attack: every event has one digest of each algorithm that the
// header names, lengths are bounded, and nothing may follow the last event.
package eventlog

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"

	"lethe/image/pcr"
)

// Bounds of a log. Logs of real machines have 10 to 100 KiB and some hundred events.
const (
	MaxSize       = 1 << 20 // bytes
	MaxEvents     = 4096
	MaxAlgorithms = 8
)

// Registers is how many platform configuration registers a PC's TPM has.
const Registers = 24

// Why a log is refused.
var (
	ErrTooLarge  = errors.New("event log: too large")
	ErrMalformed = errors.New("event log: malformed")
	ErrNoHeader  = errors.New("event log: does not begin with a Spec ID event of version 2")
	ErrNoBank    = errors.New("event log: has no SHA-256 digests")
)

// Event is one measurement.
type Event struct {
	Index  int               // of the register, 0 to 23
	Type   Type              // in no digest: not to be believed by itself
	Digest [sha256.Size]byte // in the SHA-256 bank
	Data   []byte            // of the log; valid as long as the bytes that were parsed
}

// Hashed says that the event's digest is that of its data, so that what the data
// says is as true as the digest.
func (e Event) Hashed() bool { return sha256.Sum256(e.Data) == e.Digest }

// Log is a parsed log.
type Log struct {
	Events   []Event // in their order, without the header
	Locality byte    // from which the TPM was started; see [Log.Replay]
}

// algorithm sizes of TPM_ALG_ID (TCG Algorithm Registry); SHA-256 is the one that counts.
const (
	algSHA256     = 0x000b
	signatureSize = 16
)

var (
	specID03        = [signatureSize]byte{'S', 'p', 'e', 'c', ' ', 'I', 'D', ' ', 'E', 'v', 'e', 'n', 't', '0', '3'}
	startupLocality = [signatureSize]byte{'S', 't', 'a', 'r', 't', 'u', 'p', 'L', 'o', 'c', 'a', 'l', 'i', 't', 'y'}
)

// reader takes little-endian values off the front of bytes. After the first
// shortage all that it gives is zero and bad is set.
type reader struct {
	rest []byte
	bad  bool
}

func (r *reader) bytes(n int) []byte {
	if r.bad || n < 0 || n > len(r.rest) {
		r.bad = true
		return nil
	}
	b := r.rest[:n:n]
	r.rest = r.rest[n:]
	return b
}

func (r *reader) uint8() byte {
	if b := r.bytes(1); b != nil {
		return b[0]
	}
	return 0
}

func (r *reader) uint16() uint16 {
	if b := r.bytes(2); b != nil {
		return binary.LittleEndian.Uint16(b)
	}
	return 0
}

func (r *reader) uint32() uint32 {
	if b := r.bytes(4); b != nil {
		return binary.LittleEndian.Uint32(b)
	}
	return 0
}

func (r *reader) uint64() uint64 {
	if b := r.bytes(8); b != nil {
		return binary.LittleEndian.Uint64(b)
	}
	return 0
}

// sized takes a 32-bit length and as many bytes.
func (r *reader) sized() []byte {
	n := r.uint32()
	if uint64(n) > uint64(len(r.rest)) {
		r.bad = true
		return nil
	}
	return r.bytes(int(n))
}

// algorithm is one that the header names.
type algorithm struct {
	id   uint16
	size int
}

// Parse reads a log. The events' data are parts of b.
func Parse(b []byte) (*Log, error) {
	if len(b) > MaxSize {
		return nil, ErrTooLarge
	}
	r := &reader{rest: b}
	algorithms, err := header(r)
	if err != nil {
		return nil, err
	}
	l := &Log{}
	for len(r.rest) > 0 {
		if len(l.Events) == MaxEvents {
			return nil, ErrTooLarge
		}
		e, err := event(r, algorithms)
		if err != nil {
			return nil, fmt.Errorf("%w (event %d)", err, len(l.Events)+1)
		}
		if e.Type == NoAction {
			if locality, ok := startup(e); ok {
				if l.Locality != 0 || locality == 0 {
					return nil, fmt.Errorf("%w: start-up localities contradict each other", ErrMalformed)
				}
				l.Locality = locality
			}
		}
		l.Events = append(l.Events, e)
	}
	return l, nil
}

// header reads TCG_PCClientPCREvent with TCG_EfiSpecIDEvent (PFP 1.05, 10.2.1 and 10.4.5.1).
func header(r *reader) ([]algorithm, error) {
	index, kind, digest := r.uint32(), Type(r.uint32()), r.bytes(20)
	h := &reader{rest: r.sized()}
	if r.bad || index != 0 || kind != NoAction || !zero(digest) {
		return nil, ErrNoHeader
	}
	var signature [signatureSize]byte
	copy(signature[:], h.bytes(signatureSize))
	h.uint32() // platform class
	minor, major := h.uint8(), h.uint8()
	h.uint8() // errata
	h.uint8() // size of UINTN
	n := h.uint32()
	if h.bad || signature != specID03 || major != 2 || minor != 0 || n < 1 || n > MaxAlgorithms {
		return nil, ErrNoHeader
	}
	var all []algorithm
	bank := false
	for range n {
		a := algorithm{h.uint16(), int(h.uint16())}
		for _, other := range all {
			if other.id == a.id {
				return nil, ErrNoHeader
			}
		}
		if a.size < 1 || a.size > 64 || a.id == algSHA256 && a.size != sha256.Size {
			return nil, ErrNoHeader
		}
		bank = bank || a.id == algSHA256
		all = append(all, a)
	}
	h.bytes(int(h.uint8())) // the vendor's own
	if h.bad || len(h.rest) != 0 {
		return nil, ErrNoHeader
	}
	if !bank {
		return nil, ErrNoBank
	}
	return all, nil
}

// event reads TCG_PCR_EVENT2 (PFP 1.05, 10.2.2).
func event(r *reader, algorithms []algorithm) (e Event, err error) {
	index := r.uint32()
	e.Type = Type(r.uint32())
	if n := r.uint32(); r.bad || index >= Registers || int64(n) != int64(len(algorithms)) {
		return e, ErrMalformed
	}
	e.Index = int(index)
	var seen uint16 // a bit for each algorithm
	zeros := true
	for range algorithms {
		id, known := r.uint16(), false
		for i, a := range algorithms {
			if a.id != id || seen&(1<<i) != 0 {
				continue
			}
			known = true
			seen |= 1 << i
			digest := r.bytes(a.size)
			zeros = zeros && zero(digest)
			if id == algSHA256 && digest != nil {
				e.Digest = [sha256.Size]byte(digest)
			}
		}
		if !known {
			return e, ErrMalformed
		}
	}
	e.Data = r.sized()
	// What extends no register has no digest (PFP 1.05, 10.4.5).
	if r.bad || e.Type == NoAction && !zeros {
		return e, ErrMalformed
	}
	return e, nil
}

func zero(b []byte) bool {
	for _, x := range b {
		if x != 0 {
			return false
		}
	}
	return true
}

// startup returns the locality that TPM2_Startup came from (PFP 1.05, 10.4.5.3).
func startup(e Event) (byte, bool) {
	if e.Index != 0 || len(e.Data) != signatureSize+1 || [signatureSize]byte(e.Data) != startupLocality {
		return 0, false
	}
	return e.Data[signatureSize], true
}

// Replay returns the registers after all events. Register 0 begins with the locality
// of the start-up (TPM 2.0 Library, part 3, 9.3).
func (l *Log) Replay() (values [Registers]pcr.Value) {
	values[0][sha256.Size-1] = l.Locality
	for _, e := range l.Events {
		if e.Type != NoAction {
			values[e.Index] = values[e.Index].ExtendDigest(e.Digest)
		}
	}
	return values
}
