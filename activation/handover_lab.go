//go:build lab

package activation

import (
	"io"
	"net/http"

	"lethe/secret"
)

// handover takes secrets, once, from whoever sends them: the lab's stand-in for the
// activator. It reports whether the request was one for it.
func (s *Server) handover(w http.ResponseWriter, r *http.Request) bool {
	if r.RequestURI != "/v1/secrets" {
		return false
	}
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		w.WriteHeader(http.StatusMethodNotAllowed)
		return true
	}
	b, err := io.ReadAll(http.MaxBytesReader(w, r.Body, secret.MaxSize))
	defer clear(b)
	if err != nil {
		w.WriteHeader(http.StatusRequestEntityTooLarge)
		return true
	}
	h := &Handed{}
	if h.Secrets, err = secret.Decode(b); err == nil {
		h.Kept, err = secret.Keep(b)
	}
	switch {
	case err != nil:
		w.WriteHeader(http.StatusBadRequest)
		_, _ = io.WriteString(w, err.Error())
	case !s.Activate():
		_ = h.Kept.Close()
		w.WriteHeader(http.StatusConflict)
	default:
		s.handed <- h // the only one ever
		w.WriteHeader(http.StatusNoContent)
	}
	return true
}

// Use says what carries customers' packets, so that a test can demand that it is the kernel.
func (s *Server) Use(d Drivers) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.state.Drivers = &d
}
