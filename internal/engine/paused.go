package engine

import (
	"context"
	"errors"

	"lifeboat/internal/dr"
)

// Paused tells whether the engine holds a container paused. One that does not
// exist, or does not run, is not.
func (e *Engine) Paused(ctx context.Context, id string) (bool, error) {
	c, err := e.Container(ctx, id)
	if errors.Is(err, dr.ErrNotFound) {
		return false, nil
	}
	return c.State == "paused", err
}
