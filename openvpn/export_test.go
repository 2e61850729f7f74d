package openvpn

import (
	"context"
	"fmt"
	"io"
	"strings"
)

// Peer returns the process behind a management socket, or 0.
func Peer(socket string, uid uint32) int {
	l, err := dial(context.Background(), socket, uid)
	if err != nil {
		return 0
	}
	l.Close()
	return l.pid
}

// Hangup breaks the management connections of s.
func Hangup(s *Server) {
	for _, d := range s.drivers {
		d.mu.Lock()
		if d.link != nil {
			_ = d.link.conn.Close()
			d.link = nil
		}
		d.mu.Unlock()
	}
}

var kindNames = []string{"", "connect", "reauth", "established", "disconnect", "success", "failure", "status"}

// Decode prints every message of r, which the production code cannot.
func Decode(r io.Reader) (string, error) {
	var b strings.Builder
	for d := newDecoder(r); ; {
		m, err := d.next()
		if err != nil {
			return b.String(), err
		}
		b.WriteString(kindNames[m.kind] + " ")
		if m.kind == status {
			for _, c := range m.clients {
				fmt.Fprintf(&b, "%d %s %s %t, ", c.cid, c.username.Reveal(), c.v4, c.named)
			}
		} else {
			fmt.Fprintf(&b, "%d %d", m.cid, m.kid)
		}
		if m.kind == connect || m.kind == reauth {
			fmt.Fprintf(&b, " %s/%s/%s", m.login.username.Reveal(), m.login.password.Reveal(), m.login.peer.Reveal())
		}
		b.WriteString("; ")
	}
}

// Features is parseVersion with a kernel that has the offload or not.
func Features(out string, kernel bool) (hybrid, offload bool, err error) {
	f, err := parseVersion(out, func(string) bool { return kernel })
	return f.hybrid, f.offload, err
}

// Render returns the configurations of all processes.
func Render(cfg Config, hybrid, offload bool, cores int) (list []string) {
	ins, err := cfg.instances(offload, cores)
	if err != nil {
		panic(err)
	}
	for _, in := range ins {
		list = append(list, string(cfg.render(in, features{hybrid, offload}, "/run/x/openvpn0")))
	}
	return list
}

// Clients returns how many clients' tunnels carry traffic.
func Clients(s *Server) (n int) {
	for _, d := range s.drivers {
		d.mu.Lock()
		for _, st := range d.clients {
			if st.established {
				n++
			}
		}
		d.mu.Unlock()
	}
	return n
}
