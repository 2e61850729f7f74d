package event

import "lethe/fault"

// Part is a part of a program that an event speaks of.
type Part uint8

// The parts.
const (
	Control Part = iota
	Node
	Publisher
	NodeAPI
	AppAPI
	OpenVPN
	Resolver
	Firewall
	Bundle
	Usage
	Secrets
	Helper
	Lab
	Store
	IKEv2
	RADIUS
	Uplink
	Activator
)

var parts = [...]string{
	"control", "node", "publisher", "node-api", "app-api", "openvpn", "resolver", "firewall",
	"bundle", "usage", "secrets", "helper", "lab", "store", "ikev2", "radius", "uplink", "activator",
}

// String returns the part's name.
func (p Part) String() string { return parts[p] }

// Started says that a part is ready to serve.
type Started struct{ Part Part }

// Stopped says that a part ended in order.
type Stopped struct{ Part Part }

// Trouble says that a part failed for a reason of that kind and goes on or
// tries again. The cause's text is not logged.
type Trouble struct {
	Part Part
	Kind fault.Kind
}

// Restarted says that a supervised process ended and was started again.
type Restarted struct {
	Part  Part
	Index int // which of several equal processes
	Count uint64
}

// Adopted says that a running process was taken over after a restart of its
// supervisor.
type Adopted struct {
	Part  Part
	Index int
}

// Activated says that a server received its secrets.
type Activated struct{}

// Applied says that a server works with a new bundle.
type Applied struct{ Version uint64 }

// Refused says that a bundle was refused; the last good one stays in use.
type Refused struct{ Kind fault.Kind }

// Lapsed says that the bundle in use has expired: new logins are refused.
type Lapsed struct{}

// Published says that the control plane published a bundle.
type Published struct{ Version uint64 }

// Mumbled says that a child process or a library wrote lines which may be about
// customers; they were counted and dropped. It is said when the process ends, because
// the moment of a line could be a customer's.
type Mumbled struct {
	Part  Part
	Lines uint64
}

func (Started) name() string   { return "started" }
func (Stopped) name() string   { return "stopped" }
func (Trouble) name() string   { return "trouble" }
func (Restarted) name() string { return "restarted" }
func (Adopted) name() string   { return "adopted" }
func (Activated) name() string { return "activated" }
func (Applied) name() string   { return "bundle.applied" }
func (Refused) name() string   { return "bundle.refused" }
func (Lapsed) name() string    { return "bundle.lapsed" }
func (Published) name() string { return "bundle.published" }
func (Mumbled) name() string   { return "mumbled" }

// Vocabulary returns a zero value of every event.
func Vocabulary() []Event {
	return []Event{
		Started{}, Stopped{}, Trouble{}, Restarted{}, Adopted{}, Activated{}, Applied{}, Refused{},
		Lapsed{}, Published{}, Mumbled{},
	}
}
