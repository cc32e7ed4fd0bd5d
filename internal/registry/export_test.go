package registry

import "context"

// Collect takes back room now, as Serve does every so often.
func (s *Server) Collect(ctx context.Context) (Collected, error) { return s.janitor.collect(ctx) }
