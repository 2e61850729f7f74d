//go:build !lab

package spec

import "time"

// UsageFloor is the shortest time between two usage batches of a server. A
// shorter one would let whoever receives the batches tell when a session
// ended.
const UsageFloor = 15 * time.Minute
