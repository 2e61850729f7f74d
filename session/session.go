// Package session is the protocol-independent core of a VPN server: it admits
// customers, accounts for them while they are connected and forgets them when
// they leave.
//
// A protocol driver calls the [Core] about clients of its daemon. The
// [Registry] is that core: it checks a login against the local database, picks
// a random tunnel address, turns the client's address into country and ISP and
// forgets it, writes the ledger and has the kernel count bytes by tunnel
// address. What leaves this package are usage records, through the ledger.
//
// The registry holds the user name of a live session in memory, because a
// licence that ends must end its sessions; nothing else of a person.
package session

import (
	"net/netip"

	"lethe/private"
	"lethe/protocol"
)

// Ref names a live client of one daemon: the daemon's index on this server
// and the daemon's own number for the client. It is meaningless elsewhere and
// after the daemon's end.
type Ref struct {
	Daemon uint8
	Client uint64
}

// Login is what a daemon knows of a client that wants in. It is handed to
// [Core.Admit] and forgotten. It has a Password or a Proof.
type Login struct {
	Username private.Value[string]
	Password private.Value[string]
	// Proof stands in for the password where the daemon never learns it (MS-CHAPv2): it reports
	// whether the client has proved to know the password that has this NT hash (RFC 2759, section
	// 8.3). The database calls it exactly once, with a hash of nobody's for a user that does not
	// exist, and not at all while there is no database; whether the login is good is for the
	// database to say. A Proof takes the same time for every hash and does not keep the pointer.
	Proof    func(ntHash *[16]byte) bool
	Peer     private.Value[netip.Addr] // outer address, IPv4-mapped addresses unmapped
	Protocol protocol.ID
}

// Grant is what an admitted client gets.
type Grant struct {
	V4 netip.Addr // tunnel address, from the daemon's own subnet
	V6 netip.Addr
}

// Live is a client that a daemon still serves, found after a restart of the
// agent.
type Live struct {
	Client   uint64
	Username private.Value[string]
	V4       netip.Addr // tunnel address
}

// Core is the part of the server's core that a protocol driver calls. All
// methods are safe for concurrent use and return within microseconds; none
// makes a network call.
//
// The order of calls for one Ref is Admit, Established, any number of Renew,
// End. A client that never gets as far as Established is ended as well, and
// leaves no record.
type Core interface {
	// Admit checks user name and password and opens a session. It fails with
	// fault.Unauthenticated (unknown user or wrong password: the two look the
	// same), fault.Expired (right password, licence ended), fault.Unavailable
	// (no valid database) or fault.Full (no tunnel address left).
	Admit(Ref, Login) (Grant, error)
	// Renew checks user name and password again at a renegotiation.
	Renew(ref Ref, username, password private.Value[string]) error
	// Established says that the client's tunnel carries traffic.
	Established(Ref)
	// End closes the session: its usage becomes a record, the rest is wiped.
	// Ending an unknown Ref does nothing.
	End(Ref)
	// Resume says which clients of a daemon are still there after a restart of
	// the agent. Sessions of that daemon that are not listed have ended. A
	// session is known by its tunnel address: its client may have another number
	// than when it was admitted (an IKE SA gets a new one when it is rekeyed), and
	// goes by that one from now on.
	Resume(daemon uint8, live []Live)
	// Reset says that a daemon was started anew: all its sessions have ended.
	Reset(daemon uint8)
}

// Subnets are the tunnel networks of one daemon. The first address of each is
// the server's own.
type Subnets struct {
	V4 netip.Prefix // /16, private
	V6 netip.Prefix // /112, unique local
}

// SubnetsOf returns the tunnel networks of a daemon: 10.64+d.0.0/16 and
// fd6c:6574:6865:d::/112 (RFC 4193; the global id spells "lethe" in part).
func SubnetsOf(daemon uint8) Subnets {
	v4 := netip.AddrFrom4([4]byte{10, 64 + daemon%128, 0, 0})
	v6 := netip.AddrFrom16([16]byte{0xfd, 0x6c, 0x65, 0x74, 0x68, 0x65, 0, daemon})
	return Subnets{netip.PrefixFrom(v4, 16), netip.PrefixFrom(v6, 112)}
}
