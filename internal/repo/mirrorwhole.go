package repo

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"lifeboat/internal/dr"
	"lifeboat/internal/store"
)

// What the mirror says it has is looked at: a tag whose bytes are gone would
// otherwise pass for a copy until the day it is needed.

// seenBlobs are packs and indexes that the mirror was asked for in this run.
type seenBlobs struct {
	mu  sync.Mutex
	set map[digest.Digest]bool
}

func (s *seenBlobs) has(d digest.Digest) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.set[d]
}

func (s *seenBlobs) add(d digest.Digest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.set == nil {
		s.set = map[digest.Digest]bool{}
	}
	s.set[d] = true
}

// whole reports whether the mirror has a pack manifest with all that it names.
// put is the context under which the manifest is to be stored where it has not:
// bytes that are damaged there are to be replaced.
func (m *mirroring) whole(ctx context.Context, n need) (ok bool, put context.Context, err error) {
	if !m.have[n.tag()] {
		d, err := m.dst.ResolveTag(ctx, n.tag())
		if errors.Is(err, store.ErrNotFound) || err == nil && d != n.Digest {
			return false, ctx, nil
		}
		if err != nil && !about(err) {
			return false, nil, err
		}
	}
	there, err := m.dst.GetManifest(ctx, n.tag())
	if err != nil && !about(err) {
		return false, nil, err
	}
	if err != nil || there.Digest != n.Digest {
		m.mended++
		return false, store.Rewriting(ctx), nil
	}
	pm, err := decodePackManifest(there.Body)
	if err != nil { // it has the digest of one that is damaged here as well
		return false, ctx, nil
	}
	blobs := append(pm.packs, pm.index)
	all, err := m.hasAll(ctx, blobs)
	if err == nil && !all {
		m.mended++
		m.mu.Lock()
		for _, b := range blobs {
			m.prog.BytesTotal += b.Size
		}
		m.mu.Unlock()
	}
	return all, ctx, err
}

// hasAll asks the mirror for blobs, each once in a run.
func (m *mirroring) hasAll(ctx context.Context, blobs []blob) (bool, error) {
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(listParallel)
	gone := errors.New("gone")
	for _, b := range blobs {
		if m.blobs.has(b.Digest) {
			continue
		}
		if gctx.Err() != nil {
			break
		}
		g.Go(func() error {
			ok, err := m.dst.HasBlob(gctx, b.Digest)
			switch {
			case err != nil:
				return err
			case !ok:
				return gone
			}
			m.blobs.add(b.Digest)
			return nil
		})
	}
	switch err := g.Wait(); {
	case errors.Is(err, gone):
		return false, nil
	case err != nil:
		return false, err
	}
	return true, ctx.Err()
}

// sameTag reports whether a tag of the mirror names what it names here, whatever
// state that is in there. A tag whose manifest is gone is taken for the same where
// something in the mirror opens with this repository's key.
func (m *mirroring) sameTag(ctx context.Context, t Tag) (bool, error) {
	want, err := m.repo.st.ResolveTag(ctx, t.String())
	if err != nil {
		return false, err
	}
	have, err := m.dst.ResolveTag(ctx, t.String())
	if err != nil && about(err) {
		same, err := opensSomething(ctx, m.dst, m.repo.keyring())
		if err != nil {
			return false, fmt.Errorf("look at the mirror: %w", err)
		}
		return same, nil
	}
	if err != nil {
		return false, fmt.Errorf("look at the mirror: %w", err)
	}
	return have == want, nil
}

// compare reports whether the mirror has the same record under a tag. One that is
// damaged or gone there is stored again, or is a problem.
func (m *mirroring) compare(ctx context.Context, t Tag) (same bool, err error) {
	there, cause := m.dst.GetManifest(ctx, t.String())
	if cause != nil && !about(cause) {
		return false, fmt.Errorf("look at the mirror: %w", cause)
	}
	if cause == nil {
		want, err := m.repo.st.ResolveTag(ctx, t.String())
		return err == nil && there.Digest == want, err
	}
	if same, err := m.sameTag(ctx, t); err != nil || !same {
		return false, err
	}
	here, err := m.repo.st.GetManifest(ctx, t.String())
	if err != nil {
		return false, err
	}
	if m.opts.DryRun {
		m.res.Records++
		return true, nil
	}
	if err := m.putEmpty(ctx); err != nil {
		return false, err
	}
	problem, err := m.storeAgain(ctx, t.String(), here)
	switch {
	case err != nil:
		return false, err
	case problem != nil:
		m.res.Problems = append(m.res.Problems, Problem{Tag: t.String(), Err: problem})
	default:
		m.res.Records++
	}
	return true, nil
}

// storeAgain replaces a manifest in the mirror whose bytes there are damaged or
// gone, and reads it back. problem says why it could not be.
func (m *mirroring) storeAgain(ctx context.Context, tag string, here store.Manifest) (problem, err error) {
	_, err = m.dst.PutManifest(store.Rewriting(ctx), tag, here.MediaType, here.Body)
	if err == nil {
		_, err = m.dst.GetManifest(ctx, tag)
	}
	if err != nil && (about(err) || errors.Is(err, store.ErrTagTaken) || errors.Is(err, store.ErrIncomplete)) {
		return fmt.Errorf("the mirror's record is damaged, and could not be stored again: %w", err), nil
	}
	return nil, err
}

// thereAlready compares what the mirror has under the tag of a snapshot, and looks
// for what that needs. One that was relocated there on its own is the same snapshot
// all the same.
func (m *mirroring) thereAlready(ctx context.Context, row *MirrorRow) error {
	there, err := m.dst.GetManifest(ctx, row.Place)
	if err != nil && !about(err) {
		return fmt.Errorf("look at the mirror: %w", err)
	}
	if err != nil {
		return m.mend(ctx, row, err)
	}
	if there.Digest == row.Digest {
		before := m.mended
		ok, err := m.needs(ctx, row)
		switch {
		case err != nil || !ok:
			return err
		case m.mended == before:
			row.State = MirrorThere
		case !m.opts.DryRun:
			row.State = MirrorCopied
		}
		return nil
	}
	if row.at.Class == ClassRelocation {
		if s, _, distrust, err := m.repo.openRelocation(ctx, row.at, there); err == nil && distrust == nil && s.ID == row.ID {
			row.State = MirrorThere
			return nil
		}
	}
	row.State, row.Err = MirrorConflict, fmt.Errorf("the mirror has something else under %s: it was written to on its own: %w", row.Place, dr.ErrHeld)
	return nil
}

// mend stores the record of a snapshot in the mirror again whose bytes there are
// damaged or gone, after what it needs: cause says how.
func (m *mirroring) mend(ctx context.Context, row *MirrorRow, cause error) error {
	if ok, err := m.needs(ctx, row); err != nil || !ok || m.opts.DryRun {
		return err
	}
	body, err := m.repo.st.GetManifest(ctx, row.Place)
	if err != nil {
		return err
	}
	if body.Digest != row.Digest {
		row.State, row.Err = MirrorDamaged, fmt.Errorf("the mirror's record of it is damaged, and the one here has changed just now: %w", cause)
		return nil
	}
	body.MediaType = ocispec.MediaTypeImageIndex
	problem, err := m.storeAgain(ctx, row.Place, body)
	switch {
	case err != nil:
		return err
	case problem != nil:
		row.State, row.Err = MirrorDamaged, problem
	default:
		row.State, row.Err = MirrorCopied, nil
	}
	return nil
}
