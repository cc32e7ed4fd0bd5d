package repo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"lifeboat/internal/dr"
	"lifeboat/internal/store"
)

// CommitInfo is what the commit record says beyond the root record.
type CommitInfo struct {
	// FreezeMicros is how long the system stood still.
	FreezeMicros int64
	// BytesTotal is the size of what was captured; 0 means the trees and images
	// of the root record.
	BytesTotal int64
	// Origin is set for a copy out of another repository.
	Origin *Origin
}

// Commit makes the snapshot visible: everything put is stored durably, then the
// pack manifests, then the tag with the next number (invariants 1 and 11).
// Format, Repo, System and Host of root are filled in. It looks again at
// everything that the snapshot needs, before and after; what another run
// removed meanwhile is pushed again or reported.
//
// Errors: dr.ErrOutcomeUnknown when the tag was sent and its answer lost: the
// snapshot may be visible, and taking another is safe. ErrParentDamaged when
// something that it needs was removed from the registry: run again without the
// parent. After other errors nothing is visible, and Commit may be tried again;
// where a pack could not be sent it fails again, and a new writer goes on from
// the last Flush.
func (w *Writer) Commit(ctx context.Context, root *dr.Root, info CommitInfo) (*Snapshot, error) {
	s, err := w.commit(ctx, root, info)
	if err != nil {
		return s, fmt.Errorf("commit snapshot of system %s: %w", w.opts.System, err)
	}
	return s, nil
}

func (w *Writer) commit(ctx context.Context, root *dr.Root, info CommitInfo) (*Snapshot, error) {
	ref, err := w.putRoot(ctx, root)
	if err != nil {
		return nil, err
	}
	if err := w.flush(ctx); err != nil {
		return nil, err
	}
	needs, err := w.replaceHurt(ctx, w.needed())
	if err != nil {
		return nil, err
	}
	if needs, err = w.consolidate(ctx, needs); err != nil {
		return nil, err
	}
	if err := w.ensureAll(ctx, needs, w.repo.ensure); err != nil {
		return nil, err
	}
	rec := w.record(root, ref, needs, info)
	snap, err := w.tag(ctx, rec, needs)
	if err != nil {
		return nil, err
	}
	if err := w.afterwards(ctx, snap, needs); err != nil {
		return snap, err
	}
	return snap, nil
}

// putRoot completes, checks and stores the root record.
func (w *Writer) putRoot(ctx context.Context, root *dr.Root) (dr.UnitRef, error) {
	r := w.repo
	root.Format, root.Repo, root.System, root.Host = dr.RootFormat, r.ID(), w.opts.System, r.HostID()
	if _, err := dr.ParseSite(string(root.Site)); err != nil {
		return dr.UnitRef{}, err
	}
	if root.Kind != dr.KindCurrent && root.Kind != dr.KindDivergent {
		return dr.UnitRef{}, fmt.Errorf("root record of kind %q: %w", root.Kind, dr.ErrUsage)
	}
	if root.Created.IsZero() {
		return dr.UnitRef{}, fmt.Errorf("root record without a time: %w", dr.ErrUsage)
	}
	// JSON keeps no monotonic clock and no location: what is read back equals
	// what the commit record says.
	root.Created = root.Created.Round(0).UTC()
	b, err := json.Marshal(root)
	if err != nil {
		return dr.UnitRef{}, fmt.Errorf("encode root record: %w", err)
	}
	if len(b) > dr.MaxUnit {
		return dr.UnitRef{}, fmt.Errorf("root record of %d bytes, the most is %d", len(b), dr.MaxUnit)
	}
	return w.Put(ctx, b)
}

// needed returns the pack manifests of the new snapshot.
func (w *Writer) needed() []*source {
	w.srcMu.RLock()
	defer w.srcMu.RUnlock()
	var out []*source
	for _, s := range w.sources {
		if s.used.Load() || (s.carried && !w.opts.Exact) {
			out = append(out, s)
		}
	}
	return out
}

// ensureAll looks whether every pack manifest is still there, by ensure or
// ensureTagged.
func (w *Writer) ensureAll(ctx context.Context, needs []*source, ensure func(context.Context, *index) (bool, error)) error {
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(listParallel)
	for _, s := range needs {
		g.Go(func() error {
			gone, err := ensure(gctx, s.index)
			if gone {
				return fmt.Errorf("%w: %w", err, ErrParentDamaged)
			}
			return err
		})
	}
	return g.Wait()
}

func (w *Writer) record(root *dr.Root, ref dr.UnitRef, needs []*source, info CommitInfo) *commitRecord {
	st := w.Stats()
	rec := &commitRecord{
		Format: 1, Snapshot: dr.SnapshotID(ref.ID), Root: ref, System: root.System, Site: root.Site,
		Host: root.Host, Epoch: root.Epoch, Kind: root.Kind, Parent: root.Parent, Created: root.Created,
		Consistency: root.Consistency, Containers: len(root.Containers),
		BytesTotal: info.BytesTotal, BytesNew: st.BytesNew, BytesSent: st.BytesSent, FreezeUS: info.FreezeMicros, Origin: info.Origin,
	}
	if rec.BytesTotal == 0 {
		for _, t := range root.Trees {
			rec.BytesTotal += t.Bytes
		}
		for _, im := range root.Images {
			rec.BytesTotal += im.Bytes
		}
	}
	for _, s := range needs {
		rec.Needs = append(rec.Needs, s.need.Digest)
	}
	return rec
}

// nextNumber returns the number after the newest valid snapshot's, and what
// numbers are taken. What squats on high numbers does not make it jump.
func (w *Writer) nextNumber(ctx context.Context) (dr.Number, map[dr.Number]bool, error) {
	r := w.repo
	t := Tag{Class: ClassSnapshot, System: w.opts.System}
	newest, err := r.state.mark(t.prefix())
	if err != nil {
		return 0, nil, err
	}
	places, _, err := r.listPlaces(ctx, w.opts.System)
	if err != nil {
		return 0, nil, fmt.Errorf("look for the next number: %w", err)
	}
	taken := map[dr.Number]bool{}
	for _, p := range places {
		taken[p.number] = true
	}
	for _, p := range slices.Backward(places) {
		if p.number <= newest {
			break
		}
		s, _, err := r.readPlace(ctx, p)
		if err != nil {
			return 0, nil, fmt.Errorf("look for the next number: %w", err)
		}
		if s != nil {
			newest = p.number
			break
		}
	}
	if newest >= maxNumber {
		return 0, nil, tampered("%s%d leaves no number for another snapshot; have an operator revoke the host that wrote it and delete the tag, then go on with --accept-older", t.prefix(), newest)
	}
	return newest + 1, taken, nil
}

// maxNumber is the highest number that a tag may have: what ParseTag takes.
const maxNumber = dr.Number(1<<63 - 1)

// tag seals the commit record under the next free number and stores it. The
// record is bound to its tag, so each number that turns out to be taken means
// sealing again.
func (w *Writer) tag(ctx context.Context, rec *commitRecord, needs []*source) (*Snapshot, error) {
	number, taken, err := w.nextNumber(ctx)
	if err != nil {
		return nil, err
	}
	var list []need
	for _, s := range needs {
		list = append(list, s.need)
	}
	repaired := false
	for lost := 0; ; {
		if taken[number] {
			number++
			continue
		}
		rec.Number = number
		t := Tag{Class: ClassSnapshot, System: rec.System, Number: number}
		raw, err := w.seal(t, rec, list)
		if err != nil {
			return nil, err
		}
		err = w.repo.putTag(ctx, t.String(), ocispec.MediaTypeImageIndex, raw)
		var snap *Snapshot
		if err == nil {
			snap, err = w.readBack(ctx, t, raw)
		}
		if err == nil {
			err = w.ownNumber(ctx, t, snap)
		}
		switch {
		case err == nil:
			return snap, nil
		case errors.Is(err, store.ErrTagTaken):
			taken[number] = true
			if lost++; lost > maxLost {
				return nil, fmt.Errorf("lost the race for %d numbers in a row; look at who writes snapshots of system %s: %w", lost, rec.System, err)
			}
		case errors.Is(err, store.ErrIncomplete) && !repaired:
			repaired = true // removed since it was looked at
			if err := w.ensureAll(ctx, needs, w.repo.ensure); err != nil {
				return nil, err
			}
		case errors.Is(err, dr.ErrOutcomeUnknown):
			return nil, fmt.Errorf("snapshot %s was sent as %s and the answer was lost; it may be visible: %w", rec.Snapshot.Short(), t, err)
		default:
			return nil, fmt.Errorf("put %s: %w", t, err)
		}
	}
}

func (w *Writer) seal(t Tag, rec *commitRecord, needs []need) ([]byte, error) {
	body, err := json.Marshal(rec)
	if err != nil {
		return nil, fmt.Errorf("encode commit record: %w", err)
	}
	sealed, err := w.repo.signAndSeal(t, body)
	if err != nil {
		return nil, err
	}
	return encodeSnapshotIndex(ClassSnapshot, sealed, needs)
}

// maxLost bounds how many numbers a commit may lose to others.
const maxLost = 1000

// readBack verifies what a tag names after it was put. store.ErrTagTaken means
// that somebody else's record is there after all: not every registry keeps a
// tag from being overwritten (docs/adr/0001).
func (w *Writer) readBack(ctx context.Context, t Tag, raw []byte) (*Snapshot, error) {
	m, err := w.repo.st.GetManifest(ctx, t.String())
	if err == nil && m.Digest != digest.FromBytes(raw) {
		return nil, fmt.Errorf("%s was overwritten by another writer: %w", t, store.ErrTagTaken)
	}
	var s *Snapshot
	if err == nil {
		s, err = w.repo.openSnapshot(ctx, t, m)
	}
	if err != nil {
		return nil, fmt.Errorf("%s was stored and could not be read back: %w: %w", t, err, dr.ErrOutcomeUnknown)
	}
	return s, nil
}

// ownNumber makes sure that the number of a new snapshot was not another's whose
// tag is gone because it was relocated between the look for a free number and
// now: the relocation would count, and hide the new one (invariant 8).
// store.ErrTagTaken says that it was.
func (w *Writer) ownNumber(ctx context.Context, t Tag, snap *Snapshot) error {
	p, err := w.repo.relist(ctx, place{system: t.System, number: t.Number})
	var counts *Snapshot
	if err == nil && slices.ContainsFunc(p.tags, func(have Tag) bool { return have != t }) {
		counts, _, err = w.repo.readPlace(ctx, p)
	}
	if err != nil {
		return fmt.Errorf("%s was stored, and whether another snapshot has its number could not be found out: %w: %w", t, err, dr.ErrOutcomeUnknown)
	}
	if counts != nil && counts.ID != snap.ID {
		return fmt.Errorf("number %d is that of snapshot %s, which was relocated (%s): %w", t.Number, counts.ID.Short(), counts.Place, store.ErrTagTaken)
	}
	return nil
}

// afterwards looks once more at what the snapshot needs: something may have
// been removed between the last look and the commit (invariant 2).
func (w *Writer) afterwards(ctx context.Context, snap *Snapshot, needs []*source) error {
	r := w.repo
	if err := w.ensureAll(ctx, needs, r.ensureTagged); err != nil {
		if errors.Is(err, ErrParentDamaged) {
			return fmt.Errorf("snapshot %s is visible as %s, but something that it needs was removed from the registry meanwhile; take another: %w", snap.ID.Short(), snap.Tag, err)
		}
		r.log.Warn("the snapshot is committed; looking at it once more failed", "tag", snap.Tag, "error", err)
	}
	t := Tag{Class: ClassSnapshot, System: snap.System, Number: snap.Number}
	if err := r.state.raiseOwn(map[string]dr.Number{t.prefix(): t.Number}); err != nil {
		r.log.Warn("the snapshot is committed; its number is not remembered", "tag", snap.Tag, "error", err)
	}
	pending, err := r.state.listPending()
	if err != nil {
		r.log.Warn("local state", "error", err)
	}
	for d, system := range pending {
		if system != "" && system != snap.System && !slices.Contains(snap.Needs, d) {
			continue
		}
		if err := r.state.dropPending(d); err != nil {
			r.log.Warn("local state", "error", err)
		}
	}
	r.idx.prune()
	return nil
}
