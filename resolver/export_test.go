package resolver

import (
	"context"

	"lethe/daemon"
)

// Start starts unbound without keeping it running.
func (s *Server) Start(ctx context.Context) (*daemon.Process, error) { return s.start(ctx) }

// Text returns the configuration.
func (s *Server) Text() string { return s.text }
