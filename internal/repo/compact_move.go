package repo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/opencontainers/go-digest"

	"lifeboat/internal/dr"
	"lifeboat/internal/store"
)

// move is a replacement of pack manifests that is under way: the new one is
// stored, and the snapshots that are named are to be relocated to it. The host
// remembers it, so that a run that is cut off is gone on with. It holds for
// these snapshots only: what another one uses of the old manifests may be
// missing in the new one.
type move struct {
	Old []digest.Digest `json:"old"`
	// New is absent where nothing of the old ones was used.
	New       digest.Digest `json:"new,omitempty"`
	NewSize   int64         `json:"new_size,omitempty"`
	Snapshots []string      `json:"snapshots"` // their tags of class s
}

// after applies a move to the needs of a snapshot; the same where it does not
// concern it.
func (m *move) after(tag string, needs []need) []need {
	var out []need
	hit := false
	for _, n := range needs {
		if slices.Contains(m.Old, n.Digest) {
			hit = true
			continue
		}
		out = append(out, n)
	}
	if !hit || !slices.Contains(m.Snapshots, tag) {
		return needs
	}
	if m.New != "" {
		if n := (need{m.New, m.NewSize}); !slices.Contains(out, n) {
			out = append(out, n)
		}
	}
	return out
}

// relocateAll relocates the snapshots that moves concern. Those that were
// forgotten or relocated by somebody else meanwhile are left out. Errors:
// store.ErrNotFound where what a move leads to is gone with its packs.
func (r *Repo) relocateAll(ctx context.Context, moves []move, snaps []*Snapshot, result *Compaction) (done []*Snapshot, err error) {
	for _, m := range moves {
		if err := r.ensureMove(ctx, m); err != nil {
			return nil, err
		}
	}
	var mu sync.Mutex
	err = inParallel(ctx, snaps, func(ctx context.Context, s *Snapshot) error {
		needs := s.needs
		for i := range moves {
			needs = moves[i].after(s.Tag, needs)
		}
		if len(needs) == 0 || len(needs) > maxNeeds || slices.Equal(needs, s.needs) {
			return nil
		}
		moved, err := r.relocate(ctx, s, needs)
		switch {
		case err == nil:
			mu.Lock()
			done = append(done, moved)
			result.Relocated++
			mu.Unlock()
		case errors.Is(err, store.ErrNotFound), errors.Is(err, dr.ErrHeld), errors.Is(err, store.ErrIncomplete):
			r.log.Warn("a snapshot was not relocated; the next run looks at it again", "tag", s.Tag, "error", err)
		default:
			return err
		}
		return nil
	})
	return done, err
}

// ensureMove makes sure that what a move leads to is stored.
func (r *Repo) ensureMove(ctx context.Context, m move) error {
	if m.New == "" {
		return nil
	}
	ix, err := r.idx.get(ctx, need{m.New, m.NewSize})
	if err != nil {
		return err
	}
	defer r.idx.put(ix)
	gone, err := r.ensure(ctx, ix)
	if gone {
		return fmt.Errorf("%w: %w", err, store.ErrNotFound)
	}
	return err
}

// resumeMoves goes on with the moves of a run that was cut off.
func (r *Repo) resumeMoves(ctx context.Context, snaps []*Snapshot, result *Compaction) (done bool, err error) {
	moves, err := r.state.loadMoves()
	if err != nil || len(moves) == 0 {
		return false, err
	}
	before := result.Relocated
	_, err = r.relocateAll(ctx, moves, snaps, result)
	switch {
	case err != nil && unwalkable(err):
		r.log.Warn("what an interrupted run has stored is gone; it is done again", "error", err)
	case err != nil:
		return false, err
	}
	return result.Relocated > before, r.state.saveMoves(nil)
}

// finishOlder removes the tags that this host's own relocations have replaced. now
// has those of this run, by tag of the snapshot: every unit was found in the new place
// when they were written. Of an earlier run's it is found out once more, for what is
// removed here is not to be had again (invariant 8).
func (r *Repo) finishOlder(ctx context.Context, snaps []*Snapshot, now map[string]*Snapshot, result *Compaction) error {
	c := newCompleteness(r, &inventory{}, &findings{}, newHarm())
	for _, s := range snaps {
		if !s.hasOlder() || s.mover != r.HostID() {
			continue
		}
		if fresh := now[s.Tag]; fresh == nil || fresh.Digest != s.Digest {
			is, err := c.snapshot(ctx, s)
			if err != nil {
				return fmt.Errorf("whether %s holds all of its units: %w", s.Place, err)
			}
			if is != complete {
				r.log.Warn("the older places of a snapshot stay: where it lies now it is not complete", "tag", s.Tag, "place", s.Place)
				continue
			}
		}
		n, err := r.dropOlder(ctx, s)
		result.Dropped += n
		if err != nil {
			return err
		}
	}
	return nil
}

// hasOlder reports whether tags that a relocation replaces are still there.
func (s *Snapshot) hasOlder() bool {
	return s.at.Class == ClassRelocation && s.place.tags[len(s.place.tags)-1] != s.at
}

const movesFile = "moves.json"

// loadMoves returns the moves under way. A file that cannot be read is left out:
// the work is done again.
func (s *state) loadMoves() (moves []move, err error) {
	b, err := s.readSmall(movesFile)
	if err != nil || b == nil {
		return nil, err
	}
	if json.Unmarshal(b, &moves) != nil {
		return nil, nil
	}
	return moves, nil
}

func (s *state) saveMoves(moves []move) error {
	if len(moves) == 0 {
		return s.writeSmall(movesFile, nil)
	}
	b, err := json.Marshal(moves)
	if err != nil {
		return fmt.Errorf("local state: %w", err)
	}
	return s.writeSmall(movesFile, b)
}
