// Package ledger is the memory of a VPN server: who is connected right now, as
// far as the usage record will need it, and which records wait for delivery.
//
// It is a table of fixed slots in a memfd. The service manager keeps the
// descriptor, so the table survives a kill -9 of the agent and nothing else: it
// is never a file, and it is gone with the power. Every change becomes visible
// by one atomic store of a slot's state, so a table left behind at any
// instruction is consistent.
//
// A slot walks
//
//	free -> open (admitted) -> live (tunnel up) -> ended (a record) -> batched -> free
//
// An open slot that never becomes live is freed without a record. From ended
// on, a slot holds exactly the fields of a [usage.Record]; tunnel addresses and
// the daemon's handle are wiped in the same step. A slot never holds a client's
// address, a user name or a time of day.
//
// Delivery is by batches with a random id: [Ledger.Freeze] fixes the content of
// the next batch until [Ledger.Acked]. A batch whose acknowledgement was lost,
// even to a kill -9, is offered again with the same id and content.
package ledger

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"lethe/day"
	"lethe/fault"
	"lethe/location"
	"lethe/memfd"
	"lethe/protocol"
	"lethe/usage"
)

// Slots is the number of slots of a ledger made by [Create]: 16 MiB of memory
// that is only touched as far as it is used.
const Slots = 1 << 16

// Slot is the index of a slot.
type Slot int

// Session is what the ledger knows of a connected customer.
type Session struct {
	Daemon   uint8      // index of the daemon that serves the client
	Client   uint64     // the daemon's number of the client
	V4       netip.Addr // tunnel addresses
	V6       netip.Addr
	User     usage.UserHash
	Country  string
	ISP      string // longer names are cut to usage.MaxISP bytes by the caller
	Location location.ID
	Protocol protocol.ID
	Live     bool // the tunnel has carried traffic
}

// The states of a slot.
const (
	free uint32 = iota
	open
	live
	ended
	batched
)

// The states of the batch in the header.
const (
	none   uint32 = iota // no batch, or one that was not completely marked
	frozen               // all slots of the batch are marked
	acked                // delivered; its slots are being freed
)

const magic = 0x4c45444745523031 // "LEDGER01"

type header struct {
	magic uint64
	slots uint64
	batch uint32
	_     uint32
	id    usage.BatchID
	_     [216]byte
}

type slot struct {
	state    uint32
	daemon   uint8
	protocol uint8
	location uint16
	date     uint16
	country  [2]byte
	ispLen   uint8
	_        [3]byte
	client   uint64
	in, out  uint64
	user     usage.UserHash
	v6       [16]byte
	v4       [4]byte
	isp      [usage.MaxISP]byte
	_        [116]byte
}

const (
	headerSize = int(unsafe.Sizeof(header{}))
	slotSize   = int(unsafe.Sizeof(slot{}))
)

// Ledger is an open ledger. It is safe for concurrent use; its [Slot]s belong
// to whoever began them.
type Ledger struct {
	mu   sync.Mutex
	mem  []byte
	head *header
	tab  []slot
	free []Slot // shuffled, so that a slot's index tells no order
}

// Create returns a new memfd that holds an empty ledger.
func Create(slots int) (*os.File, error) {
	f, err := memfd.Fixed("lethe-ledger", int64(headerSize+slots*slotSize))
	if err != nil {
		return nil, fmt.Errorf("ledger: %w", err)
	}
	l, err := Open(f)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	l.head.slots = uint64(slots)
	l.head.magic = magic
	return f, l.Close()
}

// Open maps the ledger in f, which stays the caller's, and finishes what an
// earlier owner had begun. It refuses a file that is not a ledger.
func Open(f *os.File) (*Ledger, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("ledger: %w", err)
	}
	size := int(info.Size())
	if size <= headerSize || (size-headerSize)%slotSize != 0 {
		return nil, fmt.Errorf("ledger: %d bytes are not a ledger", size)
	}
	mem, err := unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("ledger: map: %w", err)
	}
	// Core dumps are off on a server anyway; this holds if they are not.
	_ = unix.Madvise(mem, unix.MADV_DONTDUMP)
	n := (size - headerSize) / slotSize
	l := &Ledger{
		mem:  mem,
		head: (*header)(unsafe.Pointer(&mem[0])),
		tab:  unsafe.Slice((*slot)(unsafe.Pointer(&mem[headerSize])), n),
	}
	if l.head.magic != 0 && (l.head.magic != magic || l.head.slots != uint64(n)) {
		return nil, errors.Join(errors.New("ledger: not a ledger"), l.Close())
	}
	l.recover()
	for i := range l.tab {
		if l.tab[i].state == free {
			l.free = append(l.free, Slot(i))
		}
	}
	rand.Shuffle(len(l.free), func(i, j int) { l.free[i], l.free[j] = l.free[j], l.free[i] })
	return l, nil
}

// recover brings the batch into a state in which either all its slots are
// marked or none is.
func (l *Ledger) recover() {
	if l.head.batch == frozen {
		return
	}
	delivered := l.head.batch == acked
	for i := range l.tab {
		s := &l.tab[i]
		if s.state != batched {
			continue
		}
		if delivered {
			*s = slot{}
		} else {
			atomic.StoreUint32(&s.state, ended)
		}
	}
	atomic.StoreUint32(&l.head.batch, none)
}

// Close unmaps the ledger. The descriptor stays open.
func (l *Ledger) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.head, l.tab, l.free = nil, nil, nil
	mem := l.mem
	l.mem = nil
	return unix.Munmap(mem)
}

// Begin opens a slot for an admitted customer. It fails with fault.Full when
// no slot is left.
func (l *Ledger) Begin(s Session) (Slot, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.free) == 0 {
		l.compact()
	}
	if len(l.free) == 0 {
		return 0, fault.New(fault.Full, "the server's ledger is full")
	}
	i := l.free[len(l.free)-1]
	l.free = l.free[:len(l.free)-1]
	t := slot{
		daemon: s.Daemon, protocol: uint8(s.Protocol), location: uint16(s.Location), client: s.Client,
		user: s.User, v4: s.V4.As4(), v6: s.V6.As16(),
	}
	copy(t.country[:], s.Country)
	t.ispLen = uint8(copy(t.isp[:], s.ISP))
	l.tab[i] = t
	atomic.StoreUint32(&l.tab[i].state, open)
	return i, nil
}

// SetLive notes that the slot's tunnel carries traffic, so that its end will
// be a record.
func (l *Ledger) SetLive(i Slot) {
	l.mu.Lock()
	defer l.mu.Unlock()
	atomic.CompareAndSwapUint32(&l.tab[i].state, open, live)
}

// End turns a live slot into a record of that date and those byte counts (in:
// to the customer, out: from the customer); an open slot is freed. The slot is
// no longer the caller's.
func (l *Ledger) End(i Slot, date day.Day, in, out uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := &l.tab[i]
	switch s.state {
	case open:
		l.release(i)
	case live:
		s.date, s.in, s.out = uint16(date), in, out
		atomic.StoreUint32(&s.state, ended)
		s.daemon, s.client, s.v4, s.v6 = 0, 0, [4]byte{}, [16]byte{}
	}
}

// release wipes a slot. Its state goes first, so that a crash leaves nothing
// that looks like a session.
func (l *Ledger) release(i Slot) {
	atomic.StoreUint32(&l.tab[i].state, free)
	l.tab[i] = slot{}
	l.free = append(l.free, i)
	at, last := rand.IntN(len(l.free)), len(l.free)-1
	l.free[at], l.free[last] = l.free[last], l.free[at]
}

// Sessions returns the customers that the ledger holds as connected.
func (l *Ledger) Sessions() map[Slot]Session {
	l.mu.Lock()
	defer l.mu.Unlock()
	found := map[Slot]Session{}
	for i := range l.tab {
		s := &l.tab[i]
		if s.state != open && s.state != live {
			continue
		}
		k := s.key()
		found[Slot(i)] = Session{
			Daemon: s.daemon, Client: s.client, V4: netip.AddrFrom4(s.v4), V6: netip.AddrFrom16(s.v6),
			User: k.User, Country: k.Country, ISP: k.ISP, Location: k.Location, Protocol: k.Protocol,
			Live: s.state == live,
		}
	}
	return found
}

func (s *slot) key() usage.Key {
	return usage.Key{
		Date: day.Day(s.date), User: s.user, Country: string(s.country[:]), ISP: string(s.isp[:s.ispLen]),
		Location: location.ID(s.location), Protocol: protocol.ID(s.protocol),
	}
}

// compact merges ended slots with the same key into one.
func (l *Ledger) compact() {
	first := map[usage.Key]*slot{}
	for i := range l.tab {
		s := &l.tab[i]
		if s.state != ended {
			continue
		}
		k := s.key()
		into, ok := first[k]
		if !ok {
			first[k] = s
			continue
		}
		// A crash between these steps would count this slot twice or not at
		// all; the window is three stores wide and is only entered when
		// 65,536 records wait.
		in, out := s.in, s.out
		l.release(Slot(i))
		into.in += in
		into.out += out
	}
}

// Pending returns how many records wait for delivery, those of a frozen batch
// included.
func (l *Ledger) Pending() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
	for i := range l.tab {
		if s := l.tab[i].state; s == ended || s == batched {
			n++
		}
	}
	return n
}

// Freeze returns the next batch: the frozen one if there is one, else a new
// one with up to [usage.MaxRecords] waiting slots, merged and in random order.
// The batch may be empty.
func (l *Ledger) Freeze() usage.Batch {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.head.batch != frozen {
		l.head.id = usage.NewBatchID()
		marked := 0
		for i := range l.tab {
			if s := &l.tab[i]; s.state == ended && marked < usage.MaxRecords {
				atomic.StoreUint32(&s.state, batched)
				marked++
			}
		}
		atomic.StoreUint32(&l.head.batch, frozen)
	}
	sums := map[usage.Key][2]uint64{}
	for i := range l.tab {
		if s := &l.tab[i]; s.state == batched {
			sum := sums[s.key()]
			sums[s.key()] = [2]uint64{sum[0] + s.in, sum[1] + s.out}
		}
	}
	b := usage.Batch{ID: l.head.id, Records: []usage.Record{}}
	for k, sum := range sums {
		b.Records = append(b.Records, usage.Record{Key: k, In: megabytes(sum[0]), Out: megabytes(sum[1])})
	}
	rand.Shuffle(len(b.Records), func(i, j int) { b.Records[i], b.Records[j] = b.Records[j], b.Records[i] })
	return b
}

// megabytes rounds to the nearest megabyte.
func megabytes(bytes uint64) uint64 { return (bytes + 500_000) / 1_000_000 }

// Acked frees the slots of the frozen batch of that id, which has been
// delivered. Another id does nothing.
func (l *Ledger) Acked(id usage.BatchID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.head.batch != frozen || l.head.id != id {
		return
	}
	atomic.StoreUint32(&l.head.batch, acked)
	for i := range l.tab {
		if l.tab[i].state == batched {
			l.release(Slot(i))
		}
	}
	atomic.StoreUint32(&l.head.batch, none)
}
