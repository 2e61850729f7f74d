// Package slot counts how many devices of a licence are connected at this
// moment, and no other moment.
//
// A device takes a slot before it connects, says through the tunnel every
// [Beat] that it is still there, and gives the slot back when it disconnects. A
// slot of which nothing was heard for [Lease] is free. That is all the counter
// knows: no history, no name of a device, no server, no address, nothing on a
// disk, nothing after a restart.
//
// Two halves: a [Store] keeps the counts (slot/memory in this process,
// slot/valkey for many control planes; slot/slottest is what both must pass)
// and knows licences as keyed hashes and slots as random numbers. The
// [Service] stands in front: it asks the account store what a licence allows
// and makes the tokens.
//
// # Tokens
//
// A [Token] is all that a device needs for heartbeats, so the part of the app
// that runs as root never holds the login. It is the slot's random number and,
// sealed under a key of the control plane, the account and a mark of its VPN
// credential; without the key it is noise, and what was not made with the key
// is refused before anything is looked up. It has no end of its own, but
// replacing the VPN credential ends it: that is how a customer takes the places
// back from somebody who has copied tokens.
//
// The seal is what a restart is survived by: the first heartbeat after it names
// a slot that nobody knows any more, and opens to the licence to which it
// belongs. The slot is made again, as far as the licence's limit allows. So
// nothing is gained by collecting tokens, and nobody is told "limit reached" by
// a control plane that merely has forgotten.
//
// In the half minute after a restart a new device may be given the place of one
// that has not been heard of yet. The latecomer's heartbeat is then refused;
// its app goes on asking, and its tunnel stays: the counter has no hand on
// tunnels.
package slot

import (
	"context"
	"time"

	"lethe/private"
)

// Lease is how long a slot lives without a heartbeat. Every store forgets a
// slot that has ended within another lease at most.
const Lease = 90 * time.Second

// Beat is how often a connected device sends a heartbeat, so that two may be
// lost.
const Beat = 30 * time.Second

// Licence names a licence in a [Store]: a keyed hash of its account, so that a
// store's content says nothing without the control plane's key. Its bytes are
// evenly spread.
type Licence [16]byte

// ID names a slot: 128 random bits, nobody's device. The zero ID is no slot.
type ID [16]byte

// Token is a slot as its holder shows it; see the package comment. The zero
// Token is none.
type Token = private.Value[string]

// Store keeps the live slots of all licences, in memory only. It is safe for
// concurrent use. Errors are of kind fault.TooMany when a limit is reached and
// fault.Unavailable (or fault.Untrusted) when the store cannot be asked; they
// hold no personal data.
type Store interface {
	// Take gives a licence a slot when fewer than limit others are live. With
	// old, that slot ends in the same step, live or not: a device takes its own
	// place again. When Take fails nothing has changed.
	Take(ctx context.Context, l Licence, slot, old ID, limit int) error
	// Renew lets a slot live for another lease. One that is not live is made
	// again when fewer than limit others are. A live one stays whatever the
	// limit is by now.
	Renew(ctx context.Context, l Licence, slot ID, limit int) error
	// Release ends a slot. Ending one that is not live does nothing.
	Release(ctx context.Context, l Licence, slot ID) error
	// End ends every slot of a licence.
	End(ctx context.Context, l Licence) error
	// Count returns how many slots of a licence are live.
	Count(ctx context.Context, l Licence) (int, error)
	// Close forgets what this process knows. No method may be called afterwards.
	Close() error
}
