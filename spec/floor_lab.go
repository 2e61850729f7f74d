//go:build lab

package spec

import "time"

// UsageFloor is one second in programs built for the lab, where a person waits
// for the row to appear. Release images are built without the tag lab.
const UsageFloor = time.Second
