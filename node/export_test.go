package node

import (
	"context"
	"net/netip"
	"os"

	"lethe/bundle"
	"lethe/event"
	"lethe/private"
	"lethe/session"
)

// Policy opens what a server decides by to its tests.
type Policy struct{ p *policy }

// NewPolicy returns the policy of a server without a bundle.
func NewPolicy(id string) Policy { return Policy{&policy{id: id}} }

// Follow keeps the policy up to date until ctx ends.
func (p Policy) Follow(ctx context.Context, c *bundle.Client, log *event.Logger, polls chan<- bool) {
	p.p.follow(ctx, c, log, polls)
}

// Check decides about a login.
func (p Policy) Check(user, password string) error {
	return p.p.check(session.Login{Username: private.Of(user), Password: private.Of(password)})
}

// Prove decides about a login by proof.
func (p Policy) Prove(user string, proof func(ntHash *[16]byte) bool) error {
	return p.p.check(session.Login{Username: private.Of(user), Proof: proof})
}

// Allowed decides whether somebody who was let in may stay.
func (p Policy) Allowed(user string) bool { return p.p.allowed(private.Of(user)) }

// Locate returns country and ISP.
func (p Policy) Locate(a netip.Addr) (country, isp string) { return p.p.locate(a) }

// Restore puts the bundle of an earlier instance to use.
func (p Policy) Restore(c *bundle.Client, kept map[string]*os.File, log *event.Logger) bool {
	return p.p.restore(c, kept, log)
}
