package root

import (
	"bytes"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"lethe/systemd"
)

// user is one of those that services run as. None has a password, a shell or a home.
type user struct {
	name string
	id   uint32
}

// system are the users that systemd wants; the agent's and its daemons' stand beside the agent's unit.
var system = []user{{"root", 0}, {"systemd-network", 998}, {"nobody", 65534}}

// users returns all users there are.
func users() ([]user, error) {
	_, _, text := systemd.Node()
	ours, err := parseUsers(text)
	return slices.Concat(system, ours), err
}

// parseUsers reads the lines `u name number "what for"` of sysusers.d(5), and no others.
func parseUsers(text []byte) (all []user, err error) {
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if len(f) == 0 || f[0][0] == '#' {
			continue
		}
		var id uint64
		if len(f) > 3 && f[0] == "u" {
			id, err = strconv.ParseUint(f[2], 10, 32)
		}
		if err != nil || id == 0 {
			return nil, fmt.Errorf("users: %q", line)
		}
		all = append(all, user{f[1], uint32(id)})
	}
	return all, nil
}

// passwd returns passwd(5) and group(5): each user has a group of its own. A star is no
// password at all, and no reference to shadow(5) either.
func passwd(all []user) (passwd, group []byte) {
	var p, g bytes.Buffer
	for _, u := range all {
		fmt.Fprintf(&p, "%s:*:%d:%d::/:/usr/sbin/nologin\n", u.name, u.id, u.id)
		fmt.Fprintf(&g, "%s:*:%d:\n", u.name, u.id)
	}
	return p.Bytes(), g.Bytes()
}
