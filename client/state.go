package client

import "fmt"

// State is what the helper is doing. Its names are part of the helper protocol and of the JSON
// output.
type State uint8

// The states.
const (
	Disconnected  State = iota // nothing of ours is on the machine
	Connecting                 // the lock is up, no tunnel yet
	Connected                  // the tunnel carries everything
	Reconnecting               // the tunnel was lost; the lock is up, a new one is being tried
	Disconnecting              // the tunnel and then the lock are being taken down
	Blocked                    // the lock is up and nobody is trying to connect
)

var stateNames = [...]string{
	"disconnected", "connecting", "connected", "reconnecting", "disconnecting", "blocked",
}

// String returns the state's stable name.
func (s State) String() string {
	if int(s) < len(stateNames) {
		return stateNames[s]
	}
	return fmt.Sprintf("state-%d", uint8(s))
}

// MarshalText implements [encoding.TextMarshaler].
func (s State) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText implements [encoding.TextUnmarshaler].
func (s *State) UnmarshalText(text []byte) error {
	for i, n := range stateNames {
		if n == string(text) {
			*s = State(i)
			return nil
		}
	}
	return fmt.Errorf("state %q: want one of %v", text, stateNames)
}

// Locked reports whether the network lock is up in s.
func (s State) Locked() bool { return s != Disconnected }

// Step is something that happens to a connection.
type Step uint8

// The steps.
const (
	Found   Step = iota // a helper started and the lock was up already
	Ask                 // somebody asked to connect; the lock is up
	Up                  // a tunnel is up
	Lost                // the tunnel ended
	Refused             // the server said no; trying again would not help
	Leave               // somebody asked to disconnect
	Left                // nothing of ours is left
	Stuck               // something of ours could not be taken down
)

// Next is the only way from one [State] to another. ok is false when step makes no sense in s; the
// state then stays. No step leads out of a locked state except Left, after Leave.
func Next(s State, step Step) (next State, ok bool) {
	switch step {
	case Found:
		return pick(s == Disconnected, Blocked, s)
	case Ask:
		return pick(s != Disconnecting, Connecting, s)
	case Up:
		return pick(s == Connecting || s == Reconnecting, Connected, s)
	case Lost:
		return pick(s == Connected, Reconnecting, s)
	case Refused:
		return pick(s == Connecting || s == Reconnecting || s == Connected, Blocked, s)
	case Leave:
		return pick(s != Disconnecting, Disconnecting, s)
	case Left:
		return pick(s == Disconnecting, Disconnected, s)
	case Stuck:
		return pick(s == Disconnecting, Blocked, s)
	}
	return s, false
}

func pick(ok bool, yes, no State) (State, bool) {
	if ok {
		return yes, true
	}
	return no, false
}
