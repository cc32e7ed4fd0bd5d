package main

import (
	"context"
	"path/filepath"

	"lifeboat/internal/repo"
)

// careKey is the key with which a command signs that looks after the repository:
// that of this host's engine, whose packs it need not read again, else one that is
// kept for such commands alone, so that they run where there is no engine.
func (a *app) careKey(ctx context.Context, w *world) (*repo.HostKey, error) {
	probe := &world{cfg: w.cfg, src: w.src}
	defer probe.close()
	err := a.openEngine(ctx, probe)
	if err == nil {
		w.site = probe.site
		return repo.LoadOrCreateHostKey(probe.state.Dir())
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	a.Log().Info("there is no engine here; a key of its own signs", "error", err)
	return repo.LoadOrCreateHostKey(filepath.Join(w.src.stateDir, "care"))
}
