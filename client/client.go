// Package client is the customer's app: the commands of `lethe` and the root helper that they
// talk to.
//
// Two processes, two levels of trust:
//
//   - The app ([Run] with any command but helper) runs as the customer. It speaks with the
//     service's API, keeps token, credential and the list of locations in the customer's state
//     directory, and asks the helper to connect. It changes nothing on the machine.
//   - The [Helper] runs as root. Over a Unix socket it takes structured requests (wire.go), never
//     configuration text: whoever may use the socket can choose a server, not run code as root.
//     It raises the network lock (lock.go), starts OpenVPN or charon without privileges
//     (tunnel.go, openvpn.go, charon.go), the first that comes up of those raced (race.go), sets
//     addresses, routes and DNS itself (route.go, dns.go) and takes all of it back.
//
// The helper is in one [State] at a time, and state.go holds the one function that changes it. The
// order of work is what keeps packets in: the lock is raised before anything else and lowered
// after everything else; while it is up, nothing leaves the machine but DHCP, neighbour discovery
// and the tunnel's own packets to exactly one address, port and protocol (while a race goes on, one for
// each that races). It lives in the kernel, so the death of app, helper, OpenVPN or charon leaves it up;
// a new helper finds it and says "blocked".
//
// Left out on purpose: no split tunnel, no access to the local network while connected, no scripts
// or plug-ins of OpenVPN or charon, and nothing that the server pushes is obeyed except addresses, ciphers,
// timers and resolvers.
package client

import "lethe/version"

// Version is the app's version; the service keeps the latest one per account.
const Version = version.Number
