package authdb

import (
	"encoding/binary"
	"fmt"
	"sync/atomic"

	"lethe/day"
	"lethe/fault"
)

// claim counts who uses a piece of memory: the owner, whose claim ends with
// drop, and readers between acquire and release. The last one to leave frees it.
// The zero claim is free.
type claim struct {
	users   atomic.Int64
	dropped atomic.Bool
	free    func()
}

// take starts the count with the owner.
func (c *claim) take(free func()) {
	c.free = free
	c.users.Store(1)
}

// acquire adds a reader, unless the memory is gone already.
func (c *claim) acquire() bool {
	for {
		n := c.users.Load()
		if n == 0 {
			return false
		}
		if c.users.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

func (c *claim) release() {
	if c.users.Add(-1) == 0 && c.free != nil {
		c.free()
	}
}

// drop ends the owner's claim, once.
func (c *claim) drop() {
	if !c.dropped.Swap(true) {
		c.release()
	}
}

// Result is the answer to a login. The zero Result lets nobody in.
type Result uint8

// The results.
const (
	Unavailable Result = iota // there is no valid database
	Unknown                   // no such user or wrong password; the two are one
	Ended                     // right password, but the licence has ended
	OK                        // right password, licence good
)

// String returns the result's name.
func (r Result) String() string {
	return [...]string{"unavailable", "unknown", "ended", "ok"}[min(r, OK)]
}

// Err returns nil for OK, else the [fault.Error] to refuse the login with.
func (r Result) Err() error {
	switch r {
	case OK:
		return nil
	case Ended:
		return fault.New(fault.Expired, "the licence has ended")
	case Unknown:
		return fault.New(fault.Unauthenticated, "user name or password is wrong")
	default:
		return fault.New(fault.Unavailable, "the server has no valid authentication database")
	}
}

// DB is a base and the deltas that follow it. It is immutable and safe for
// concurrent use. After [DB.Close] nobody is found in it.
type DB struct {
	sealed
	claim
	segments []*Segment // oldest first
}

// NewDB returns the database of a base and deltas, oldest first, or says which
// does not follow which. It keeps its own claim on the segments: the caller may
// close them at once, or go on using them for the next database.
func NewDB(segments ...*Segment) (*DB, error) {
	if err := follow(segments); err != nil {
		return nil, fault.New(fault.Untrusted, "authentication database: "+err.Error())
	}
	if !segments[0].head.Base() {
		return nil, fault.New(fault.Untrusted, "authentication database: the first segment is no base")
	}
	db := &DB{}
	free := func() {
		for _, s := range db.segments {
			s.release()
		}
	}
	for _, s := range segments {
		if !s.acquire() {
			free()
			return nil, fmt.Errorf("authentication database: a segment is closed")
		}
		db.segments = append(db.segments, s)
	}
	db.take(free)
	return db, nil
}

// Close gives the segments back as soon as the last look-up is done. Further
// calls do nothing.
func (db *DB) Close() { db.drop() }

// To returns the last sequence number whose changes the database holds.
func (db *DB) To() uint64 { return db.segments[len(db.segments)-1].head.To }

// Len returns the number of rows in all segments, an upper bound for the number
// of credentials.
func (db *DB) Len() (n int) {
	for _, s := range db.segments {
		n += s.n
	}
	return n
}

// Size returns the size of all segments in bytes.
func (db *DB) Size() (n int) {
	for _, s := range db.segments {
		n += s.size
	}
	return n
}

// find asks every segment, found or not, so that the work tells nothing. The
// caller has acquired db.
func (db *DB) find(key *RowKey) (h hit) {
	hi, lo := key.halves()
	for _, s := range db.segments {
		p := s.probe(hi, lo)
		h.secret[0] = h.secret[0]&^p.mask | p.secret[0]&p.mask
		h.secret[1] = h.secret[1]&^p.mask | p.secret[1]&p.mask
		h.meta = h.meta&^p.mask | p.meta&p.mask
		h.mask |= p.mask
	}
	gone := -(h.meta >> 17 & 1) // flagDelete: all ones if the newest row is a tombstone
	h.mask &^= gone
	return h
}

// row returns the found row; ok is false when there is none.
func (h hit) row(key RowKey) (row Row, ok bool) {
	if h.mask == 0 {
		return Row{}, false
	}
	row = Row{Key: key, PaidUntil: day.Day(h.meta), Disabled: h.meta>>16&flagOff != 0}
	binary.LittleEndian.PutUint64(row.Secret[:], h.secret[0])
	binary.LittleEndian.PutUint64(row.Secret[8:], h.secret[1])
	return row, true
}

// Lookup returns the row of that key, if there is one.
func (db *DB) Lookup(key RowKey) (Row, bool) {
	if !db.acquire() {
		return Row{}, false
	}
	defer db.release()
	return db.find(&key).row(key)
}

// Find returns the row of a VPN user name, if there is one.
func (db *DB) Find(username []byte) (Row, bool) {
	return db.Lookup(db.segments[0].head.HashKey.Key(username))
}

// Check answers a login. It does the same work for a name that exists and for one
// that does not, and compares in constant time.
func (db *DB) Check(username, password []byte, today day.Day) Result {
	if !db.acquire() {
		return Unavailable
	}
	defer db.release()
	return db.check(username, password, today)
}

// check is Check for a caller that has acquired db.
func (db *DB) check(username, password []byte, today day.Day) Result {
	key, secret := db.segments[0].head.HashKey.Key(username), NTHash(password)
	h := db.find(&key)
	differ := (h.secret[0] ^ binary.LittleEndian.Uint64(secret[:])) |
		(h.secret[1] ^ binary.LittleEndian.Uint64(secret[8:])) | ^h.mask
	if differ != 0 {
		return Unknown
	}
	return h.result(key, today)
}

// result answers a login with the right password.
func (h hit) result(key RowKey, today day.Day) Result {
	if row, ok := h.row(key); !ok || !row.Active(today) {
		return Ended
	}
	return OK
}

// prove answers a login by proof for a caller that has acquired db.
func (db *DB) prove(username []byte, proof func(*Secret) bool, today day.Day) Result {
	key := db.segments[0].head.HashKey.Key(username)
	h := db.find(&key)
	var secret Secret
	binary.LittleEndian.PutUint64(secret[:], h.secret[0])
	binary.LittleEndian.PutUint64(secret[8:], h.secret[1])
	proved := proof(&secret)
	clear(secret[:])
	if h.mask == 0 || !proved {
		return Unknown
	}
	return h.result(key, today)
}

// Live holds the database in use and lets it be exchanged under load. The zero
// Live has none and lets nobody in. It is safe for concurrent use.
type Live struct {
	db atomic.Pointer[DB]
}

// Swap puts db in use and closes the one before; look-ups in progress end in
// the old one, whose memory goes with the last of them. Live owns db from now on.
// A nil db lets nobody in: what a server does when its bundle has expired.
func (l *Live) Swap(db *DB) {
	if old := l.db.Swap(db); old != nil && old != db {
		old.Close()
	}
}

// acquire returns the database in use for reading, or nil. It tries again only
// if the database was exchanged between the two steps.
func (l *Live) acquire() *DB {
	for db := l.db.Load(); db != nil; {
		if db.acquire() {
			return db
		}
		now := l.db.Load()
		if now == db {
			return nil // somebody else closed it
		}
		db = now
	}
	return nil
}

// Find returns the row of a VPN user name, if there is one. Unavailable says
// that there is no database, Unknown that there is no row, OK nothing more than
// that there is one: the row says whether its licence is good.
func (l *Live) Find(username []byte) (Row, Result) {
	db := l.acquire()
	if db == nil {
		return Row{}, Unavailable
	}
	defer db.release()
	key := db.segments[0].head.HashKey.Key(username)
	if row, ok := db.find(&key).row(key); ok {
		return row, OK
	}
	return Row{}, Unknown
}

// Check answers a login from the database in use, as [DB.Check] does.
func (l *Live) Check(username, password []byte, today day.Day) Result {
	db := l.acquire()
	if db == nil {
		return Unavailable
	}
	defer db.release()
	return db.check(username, password, today)
}

// Prove answers a login of a client that does not show its password but proves
// to know it (MS-CHAPv2). It calls proof once, with the secret of the user or, for
// a name that does not exist, with a secret of nobody's, so that the work is the
// same; whatever proof says of that one, the result is Unknown. Without a database
// it does not call proof. The secret is wiped after the call.
func (l *Live) Prove(username []byte, proof func(*Secret) bool, today day.Day) Result {
	db := l.acquire()
	if db == nil {
		return Unavailable
	}
	defer db.release()
	return db.prove(username, proof, today)
}
