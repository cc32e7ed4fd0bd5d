package capture

import (
	"context"
	"errors"
	"fmt"

	"lifeboat/internal/dr"
	"lifeboat/internal/fence"
	"lifeboat/internal/repo"
)

// ErrReinstalled: the system's epoch is held by this very engine and site, under
// an identity of Lifeboat that is not here any more. Options.Adopt takes it over.
// Errors that wrap it wrap dr.ErrFenced too.
var ErrReinstalled = errors.New("the holder is this very host under an earlier identity of Lifeboat")

// reinstalled decides about a host that may not write as things stand (fenced
// says why). Where the holder wrote its newest snapshot from this very engine,
// under this site's name, Lifeboat's local state was lost; with Options.Adopt
// the next epoch is claimed then, with all that the line holds as its base. An
// engine's id can be copied with its disk, so nobody but the operator can tell
// that the holder is not running elsewhere.
func (r *run) reinstalled(ctx context.Context, snaps []repo.Snapshot, fenced error) error {
	last := r.claims[len(r.claims)-1]
	same := false
	for i := len(snaps) - 1; i >= 0; i-- {
		if snaps[i].Host != last.Host {
			continue
		}
		root, err := r.rootOf(ctx, &snaps[i])
		if err != nil {
			return errors.Join(fenced, err)
		}
		same = root.Engine.ID == r.system.Engine.ID && last.Site == r.opts.Site
		break
	}
	switch {
	case !same && r.opts.Adopt:
		return fmt.Errorf("%w; the holder is another host, so it cannot be adopted here", fenced)
	case !same:
		return fenced
	case !r.opts.Adopt:
		return fmt.Errorf("%w: %w", fenced, ErrReinstalled)
	}
	claim := fence.Claim{System: r.opts.System, Site: r.opts.Site, Reason: fence.ReasonAdopt}
	if id, ok := fence.Head(r.claims, Snaps(snaps)); ok {
		claim.Base = &id
	}
	claim, err := r.deps.Ledger.Claim(ctx, r.claims, claim)
	if err != nil {
		return err
	}
	r.claims = append(r.claims, claim)
	return nil
}

// rootOf reads a snapshot's root record.
func (r *run) rootOf(ctx context.Context, s *repo.Snapshot) (*dr.Root, error) {
	rd, err := r.deps.Repo.NewReader(ctx, s)
	if err != nil {
		return nil, fmt.Errorf("snapshot %s: %w", s.ID.Short(), err)
	}
	defer rd.Close()
	root, err := rd.Root(ctx)
	if err != nil {
		return nil, fmt.Errorf("snapshot %s: %w", s.ID.Short(), err)
	}
	return root, nil
}
