package bundle

// Borrow returns the content of a file for use beyond the life of the Set: it
// stays valid until release is called, which must happen exactly once. Files
// that several Sets share are in memory once.
func (s *Set) Borrow(name string) (content []byte, release func(), ok bool) {
	m, ok := s.files[name]
	if !ok {
		return nil, nil, false
	}
	m.retain()
	return m.data, m.release, true
}
