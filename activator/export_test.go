package activator

import "time"

// Due says whether a server's certificates are to be renewed.
func Due(a *Activator, s *Server) bool { return a.due(s) }

// ReadRecord reads lines as the store does, and returns how many were right.
func ReadRecord(lines ...[]byte) (int, error) {
	s := newState()
	for n, line := range lines {
		if err := s.read(line); err != nil {
			return n, err
		}
	}
	return len(lines), nil
}

// Pauses returns how long a server is left alone after each of these errors.
func Pauses(c Config, errs ...error) (all []time.Duration) {
	s := &schedule{}
	for _, err := range errs {
		s.settle(c, err)
		all = append(all, time.Until(s.next).Round(time.Second))
	}
	return all
}

// ExitCode returns the exit code of a kind of fault.
var ExitCode = exitCode
