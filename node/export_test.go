package node

import (
	"context"
	"net/netip"

	"lethe/bundle"
	"lethe/event"
	"lethe/private"
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
	return p.p.check(private.Of(user), private.Of(password))
}

// Allowed decides whether somebody who was let in may stay.
func (p Policy) Allowed(user string) bool { return p.p.allowed(private.Of(user)) }

// Locate returns country and ISP.
func (p Policy) Locate(a netip.Addr) (country, isp string) { return p.p.locate(a) }
