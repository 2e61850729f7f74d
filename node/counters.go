package node

import (
	"errors"
	"net/netip"

	"lethe/fault"
	"lethe/firewall"
	"lethe/ledger"
	"lethe/session"
)

// counters makes the firewall's byte counters fit session.Counters: adding
// what is there and removing what is not are no errors, because both happen
// after a restart.
type counters struct{ *firewall.Counters }

func (c counters) Add(v4, v6 netip.Addr) error {
	return unless(fault.Conflict, c.Counters.Add(v4, v6))
}

func (c counters) Read(v4, v6 netip.Addr) (in, out uint64, err error) {
	in, out, err = c.Counters.Read(v4, v6)
	return in, out, unless(fault.NotFound, err)
}

func (c counters) Remove(v4, v6 netip.Addr) error {
	_, _, err := c.Take(v4, v6)
	return unless(fault.NotFound, err)
}

// keepOnly removes the counters of every address that no session has: what a
// kill -9 between the end of a session and the removal left behind.
func (c counters) keepOnly(sessions map[ledger.Slot]ledger.Session) error {
	live := map[netip.Addr]bool{}
	for _, s := range sessions {
		live[s.V4] = true
	}
	found, err := c.List()
	for _, v4 := range found {
		if !live[v4] {
			err = errors.Join(err, c.Remove(v4, session.Twin(v4)))
		}
	}
	return err
}

func unless(kind fault.Kind, err error) error {
	if err != nil && fault.Of(err) == kind {
		return nil
	}
	return err
}
