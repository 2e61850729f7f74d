package openvpn

import "context"

// Peer returns the process behind a management socket. It reads the socket's credentials without
// talking.
func Peer(socket string, uid uint32) int { return peer(context.Background(), socket, uid) }

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
