package repo

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sync/errgroup"

	"lifeboat/internal/pack"
	"lifeboat/internal/repo/journal"
	"lifeboat/internal/store"
)

// journalDir is where writers of this host note their packs; empty without a
// state directory.
func (s *state) journalDir() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.dir == "" {
		return ""
	}
	return filepath.Join(s.dir, "journal")
}

func (r *Repo) journalKey() [32]byte { return r.keyring().LocalKey("lifeboat v1 pack journal") }

// note writes a pack that is stored into the journal; the caller holds doneMu, so
// that it is in the journal as long as it is in done. A journal that cannot be
// written costs sending again after an interruption, no more.
func (w *Writer) note(p pack.Info) {
	r := w.repo
	if w.journal == nil && !w.journalLost {
		dir := r.state.journalDir()
		if dir == "" {
			w.journalLost = true
			return
		}
		err := os.MkdirAll(dir, 0o700)
		if err == nil {
			w.journal, err = journal.Create(dir, r.journalKey())
		}
		if err != nil {
			w.journalLost = true
			r.log.Warn("what is sent is not noted: a run that is cut off sends it again", "error", err)
		}
	}
	if w.journal == nil {
		return
	}
	if err := w.journal.Add(p); err != nil && !w.journalLost {
		w.journalLost = true
		r.log.Warn("what is sent is not noted: a run that is cut off sends it again", "error", err)
	}
}

// removeJournals deletes journals whose packs a pack manifest names.
func (w *Writer) removeJournals(list []*journal.Journal) {
	for _, j := range list {
		if err := j.Remove(); err != nil {
			w.repo.log.Warn("local state", "error", err)
		}
	}
}

// closeJournals leaves what is not in a pack manifest for the next run.
func (w *Writer) closeJournals() {
	w.doneMu.Lock()
	defer w.doneMu.Unlock()
	for _, j := range append(w.oldJournals, w.journal) {
		if j == nil {
			continue
		}
		if err := j.Close(); err != nil {
			w.repo.log.Warn("local state", "error", err)
		}
	}
	w.journal, w.oldJournals = nil, nil
}

// resume makes a pack manifest of the packs that interrupted runs of this host
// have stored and not named yet, so that their units are found. Packs that the
// registry has removed meanwhile are left out.
func (w *Writer) resume(ctx context.Context) error {
	r := w.repo
	dir := r.state.journalDir()
	if dir == "" {
		return nil
	}
	return journal.Recover(dir, r.journalKey(), func(infos []pack.Info) error {
		stored, err := w.stillStored(ctx, infos)
		if err != nil {
			return fmt.Errorf("look for packs of an interrupted run: %w", err)
		}
		if len(stored) == 0 {
			return nil
		}
		s, err := w.pushManifest(ctx, infoPacks(stored), func(v pack.Visitor) error { return visit(v, stored) })
		if errors.Is(err, store.ErrIncomplete) || errors.Is(err, store.ErrNotFound) {
			r.log.Warn("packs of an interrupted run were removed from the registry; what they held is sent again", "error", err)
			return nil
		}
		if err != nil {
			return fmt.Errorf("name the packs of an interrupted run: %w", err)
		}
		r.idx.put(s.index) // pendingManifests finds it
		return nil
	})
}

// stillStored returns those of some packs that the registry has.
func (w *Writer) stillStored(ctx context.Context, infos []pack.Info) ([]pack.Info, error) {
	there := make([]bool, len(infos))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(listParallel)
	for i, p := range infos {
		g.Go(func() (err error) {
			there[i], err = w.repo.primary().HasBlob(gctx, digestOf(p.Digest))
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	var out []pack.Info
	for i, p := range infos {
		if there[i] && len(out) < pack.MaxPacks {
			out = append(out, p)
		}
	}
	return out, nil
}
