// Package ratelimit limits attempts per address and per account without
// keeping either.
//
// A [Limiter] counts in two count-min sketches, the present minute's and the
// last one's. A subject is reduced to four cell numbers by HMAC-SHA-256 under a
// random key that is made with the sketch and forgotten with it, so the memory
// of a limiter holds counts in cells and nothing that could be turned back
// into an address, and after two idle minutes not even that. The size is fixed
// (2 × 4 × 65,536 cells of two bytes, 1 MiB): a flood of addresses cannot grow
// it, it can only make the limiter stricter than it should be for a minute.
//
// The rate is a sliding window: the present minute's count plus the last
// one's, weighted by the part of it that is less than a minute ago.
package ratelimit

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"hash"
	"math"
	"net/netip"
	"sync"
	"time"

	"lethe/private"
)

// Window is the time over which attempts count.
const Window = time.Minute

const (
	rows = 4
	cols = 1 << 16
)

// sketch is a count-min sketch with conservative update: an estimate is never
// below the true count.
type sketch struct {
	mac   hash.Hash
	cells [rows][cols]uint16
}

func newSketch() *sketch {
	s := new(sketch)
	s.wipe()
	return s
}

// wipe forgets every count and the key.
func (s *sketch) wipe() {
	key := make([]byte, 32)
	_, _ = rand.Read(key) // crypto/rand.Read never fails
	s.mac = hmac.New(sha256.New, key)
	clear(s.cells[:])
}

// cellsOf returns the cells of a subject.
func (s *sketch) cellsOf(subject []byte) (c [rows]*uint16) {
	s.mac.Reset()
	s.mac.Write(subject)
	var buf [sha256.Size]byte
	sum := s.mac.Sum(buf[:0])
	for i := range c {
		c[i] = &s.cells[i][binary.LittleEndian.Uint16(sum[2*i:])]
	}
	return c
}

func least(c [rows]*uint16) uint16 { return min(*c[0], *c[1], *c[2], *c[3]) }

// Limiter counts attempts. Make one with [New]; it is safe for concurrent use.
type Limiter struct {
	limits map[string]int

	mu            sync.Mutex
	started       time.Time // of the present window
	present, last *sketch
	forget        *time.Timer // wipes both after two idle windows
	closed        bool
}

// New returns a limiter that allows limits[purpose] attempts a minute for each
// subject. A purpose that is not named allows none.
func New(limits map[string]int) *Limiter {
	l := &Limiter{limits: limits, started: time.Now(), present: newSketch(), last: newSketch()}
	l.forget = time.AfterFunc(2*Window, l.idle)
	return l
}

// Close stops the limiter's timer and forgets everything. A closed limiter
// allows nothing.
func (l *Limiter) Close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	l.forget.Stop()
	l.wipe()
}

func (l *Limiter) idle() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return
	}
	if time.Since(l.started) >= 2*Window {
		l.wipe()
	}
	l.forget.Reset(2 * Window)
}

func (l *Limiter) wipe() {
	l.present.wipe()
	l.last.wipe()
	l.started = time.Now()
}

// Allow reports whether one more attempt from an address may be made now, and
// counts it if so. Addresses count by network: an IPv4 address by itself, an
// IPv6 address by its /56, which is what one customer of an access provider
// has.
func (l *Limiter) Allow(purpose string, addr netip.Addr) bool {
	addr = addr.Unmap().WithZone("")
	bits := 32
	if addr.Is6() {
		bits = 56
	}
	prefix, err := addr.Prefix(bits)
	if err != nil || !prefix.IsValid() { // not an address: there is nobody to count for
		return false
	}
	b := prefix.Addr().As16()
	return l.allow(purpose, b[:])
}

// AllowSubject is Allow for a name, for instance an e-mail address.
func (l *Limiter) AllowSubject(purpose string, subject private.Value[string]) bool {
	return l.allow(purpose, []byte(subject.Reveal()))
}

func (l *Limiter) allow(purpose string, subject []byte) bool {
	message := make([]byte, 0, 128)
	message = append(message, byte(len(purpose)))
	message = append(message, purpose...)
	message = append(message, subject...)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return false
	}
	into := l.advance()
	present := l.present.cellsOf(message)
	n := least(present)
	before := float64(least(l.last.cellsOf(message))) * (1 - float64(into)/float64(Window))
	if float64(n)+before+1 > float64(l.limits[purpose]) || n == math.MaxUint16 {
		return false
	}
	for _, c := range present {
		*c = max(*c, n+1)
	}
	return true
}

// advance turns the windows and returns how far into the present one it is.
func (l *Limiter) advance() time.Duration {
	into := time.Since(l.started)
	switch {
	case into < Window:
		return into
	case into < 2*Window:
		l.present, l.last = l.last, l.present
		l.present.wipe()
		l.started = l.started.Add(Window)
	default:
		l.wipe()
	}
	l.forget.Reset(2 * Window)
	return time.Since(l.started)
}

// Empty reports whether nothing is counted at present: for tests and audits of
// the promise that counts go away by themselves.
func (l *Limiter) Empty() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	var none [rows][cols]uint16
	return l.present.cells == none && l.last.cells == none
}
