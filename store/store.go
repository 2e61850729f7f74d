// Package store is what the control plane keeps on disk, as interfaces.
//
// Each consumer declares what it needs: package account its accounts and
// tokens, package publish its [publish.Source]; the rest stands here. A [Store]
// is all of it together. There is one implementation so far, store/sqlite, and
// one contract suite, store/storetest, that every implementation must pass.
//
// What holds for every implementation: a method is one transaction; what it
// acknowledged survives a crash of the process or the machine; on a full disk
// it fails with fault.Full and nothing is lost; errors hold no personal data.
// VPN credentials lie there sealed by a [Sealer] whose key lies elsewhere.
// Nothing in a store is finer in time than a date: no column, no row order,
// no number that grows with usage rows.
package store

import (
	"context"
	"crypto/aes"
	"crypto/cipher"

	"lethe/account"
	"lethe/day"
	"lethe/fault"
	"lethe/location"
	"lethe/private"
	"lethe/publish"
	"lethe/usage"
)

// Store is everything that an implementation keeps.
type Store interface {
	account.Store
	account.TokenStore
	publish.Source
	Usage
	Places
	// Close waits for running calls and releases everything. What comes after
	// it fails.
	Close() error
}

// Usage keeps the merged daily usage.
type Usage interface {
	// AcceptUsage merges a batch of a server. A batch with the id of that
	// server's last one is acknowledged and not counted again. It fails with
	// fault.Invalid when the batch is not valid.
	AcceptUsage(ctx context.Context, server string, batch usage.Batch) error
	// UsageOf returns the rows of one user hash from one day through another,
	// in the order of their keys.
	UsageOf(ctx context.Context, user usage.UserHash, from, through day.Day) ([]usage.Record, error)
	// PurgeUsage removes rows dated before a day and returns how many.
	PurgeUsage(ctx context.Context, before day.Day) (int64, error)
}

// Places edits the directory that publish.Source returns.
type Places interface {
	// AddLocation adds a location and returns its id, which the store picks:
	// the next number that no location ever had. It fails with fault.Invalid,
	// or fault.Conflict when the code is taken.
	AddLocation(context.Context, location.Location) (location.ID, error)
	// RemoveLocation removes a location; fault.Conflict while it has servers.
	RemoveLocation(context.Context, location.ID) error
	// AddServer adds a server. It fails with fault.Invalid, fault.NotFound when
	// there is no such location, or fault.Conflict when the id is taken.
	AddServer(context.Context, location.Server) error
	// EnableServer sets whether a server takes new customers.
	EnableServer(ctx context.Context, id string, enabled bool) error
	// RemoveServer removes a server.
	RemoveServer(ctx context.Context, id string) error
}

// Sealer encrypts single fields with AES-256-GCM (NIST SP 800-38D) under a
// random 96-bit nonce. It is safe for concurrent use.
type Sealer struct{ aead cipher.AEAD }

// NewSealer returns a sealer with that data key.
func NewSealer(key private.Value[[32]byte]) (s Sealer, err error) {
	k := key.Reveal()
	block, err := aes.NewCipher(k[:])
	if err == nil {
		s.aead, err = cipher.NewGCMWithRandomNonce(block)
	}
	return s, err
}

// Seal returns nonce, ciphertext and tag of a field: 28 bytes more than it
// has. Place says where it will lie (table, column, row) and is authenticated,
// so that a sealed field put elsewhere does not open.
func (s Sealer) Seal(place string, field private.Value[string]) []byte {
	return s.aead.Seal(nil, nil, []byte(field.Reveal()), []byte(place))
}

// Open returns what was sealed for that place, or fault.Internal when it was
// not, or not under this key.
func (s Sealer) Open(place string, sealed []byte) (private.Value[string], error) {
	plain, err := s.aead.Open(nil, nil, sealed, []byte(place))
	if err != nil {
		return private.Value[string]{}, fault.Wrap(fault.Internal, "a sealed field in the store does not open: it is damaged or the data key is another", err)
	}
	return private.Of(string(plain)), nil
}
