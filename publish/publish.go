// Package publish turns what changed in the control plane's store into signed
// bundles.
//
// A [Publisher] waits for [Source.Notify], lets changes gather for a second,
// writes the changed credentials as one authdb delta segment, seals it, lists
// everything in a manifest, signs the manifest and then a short-lived freshness
// statement. It writes a directory that has exactly the layout that
// bundle.Client fetches, so that http.FileServer or any CDN can serve it.
//
// Order is what makes it safe to kill at any point: files, then the manifest,
// then the freshness statement, each written beside its place, synced and
// renamed; only then are the changes acknowledged to the source. What was
// published twice is published with the same outcome, because a delta holds
// states, not steps.
package publish

import (
	"context"

	"lethe/day"
	"lethe/location"
	"lethe/private"
)

// Credential is one VPN credential as servers must know it.
type Credential struct {
	Username  private.Value[string]
	Password  private.Value[string]
	PaidUntil day.Day // last day of the licence, UTC
	Disabled  bool    // ended early by the operator; servers then treat it as never paid
}

// Change is a credential whose present state has not been published yet.
type Change struct {
	Credential        // of a deleted credential only Username is used
	Deleted    bool   // the user name must no longer be known to servers
	Sequence   uint64 // place in the order of changes, from 1; no two changes share one
}

// Source is what the publisher needs of the store. All methods are safe for
// concurrent use with everything else that the store does.
//
// The store numbers changes: every transaction that makes, changes or removes a
// credential (its user name, password, paid-until day or disabled mark) gives
// each touched credential the next number of one durable sequence. A replaced
// user name is two changes: the old one deleted, the new one made. Rows that
// are published need no number, so the store forgets the order of changes
// as soon as it is of no use.
type Source interface {
	// Changes returns the present state of credentials changed since they were
	// last acknowledged, in ascending Sequence, at most limit of them. A
	// credential changed twice appears once, under its latest number.
	Changes(ctx context.Context, limit int) ([]Change, error)
	// All calls yield with every credential that is not deleted, in one
	// consistent snapshot, and returns the highest Sequence that the snapshot
	// includes (0 when there never was a change). An error of yield ends it and
	// is returned. The publisher uses it for a full rebuild.
	All(ctx context.Context, yield func(Credential) error) (sequence uint64, err error)
	// Published acknowledges every change with a number up to and including
	// sequence: their marks are cleared and the remains of deleted
	// credentials removed, in one transaction. A credential that has changed
	// again has a higher number and stays unacknowledged. Repeating it does
	// nothing.
	Published(ctx context.Context, sequence uint64) error
	// NextVersion returns a manifest version greater than floor and than
	// every version it ever returned. It is durable before it returns; gaps
	// do no harm.
	NextVersion(ctx context.Context, floor uint64) (uint64, error)
	// Directory returns the locations and servers.
	Directory(ctx context.Context) (location.Directory, error)
	// Notify returns a channel with room for one value that receives a value
	// after anything above has changed. It always returns the same channel.
	Notify() <-chan struct{}
}
