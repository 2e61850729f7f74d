// Package systemd holds the units that Lethe's programs run in, with their sandboxes: files
// for whoever installs a program by hand, and the same bytes for the image.
package systemd

import _ "embed"

var (
	//go:embed lethe-node.service
	unit string
	//go:embed lethe-node.image.conf
	image string
	//go:embed lethe-node.sysusers
	users string
)

// Node returns the agent's unit (systemd.service(5)), what the image adds to it, and the users
// that it needs (sysusers.d(5)).
func Node() (service, inImage, sysusers []byte) { return []byte(unit), []byte(image), []byte(users) }
