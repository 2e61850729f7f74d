package ikev2

import (
	"lethe/private"
	"lethe/vici"
)

// Texts of a server whose ESP is in the kernel or not, and whose charon knows ML-KEM or not.
func Texts(s *Server, offload, hybrid bool) (strongswan string, connection *vici.Message) {
	c := *s
	c.in.Offload = offload
	return string(c.render()), c.connection(hybrid).Section(name)
}

// Knows reports whether an answer to get-algorithms has ML-KEM-768.
func Knows(m *vici.Message) bool { return hybrid(m) }

// Identify is identify without the key.
func Identify(chain, key string) (name string, length int, keyType string, err error) {
	id, err := identify(chain, private.Of(key))
	return id.name, len(id.chain), id.keyType, err
}

// Read reads an IKE SA like charon lists it.
func Read(s *Server, m *vici.Message) (id uint64, username, v4 string, ok bool) {
	sa, ok := s.d.read(m)
	return sa.id, sa.username.Reveal(), sa.v4.String(), ok
}

// Clients returns how many clients' tunnels carry traffic.
func Clients(s *Server) (n int) {
	s.d.mu.Lock()
	defer s.d.mu.Unlock()
	for _, st := range s.d.clients {
		if st.established {
			n++
		}
	}
	return n
}
