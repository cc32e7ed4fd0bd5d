package repo

import (
	"context"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"lifeboat/internal/dr"
	"lifeboat/internal/pack"
)

// SetLimits makes a writer push pack manifests earlier and merge sooner than
// the sizes of a test would make it.
func (w *Writer) SetLimits(bytes int64, units, needs int, interval time.Duration) {
	w.limits.bytes, w.limits.units, w.limits.interval, w.limits.atLeast = bytes, units, interval, 0
	if needs > 0 {
		w.limits.needs = needs
	}
}

// PutAs stores data under whatever id the test says, without looking whether it
// is there: what a hostile or broken writer does.
func (w *Writer) PutAs(ref dr.UnitRef, data []byte) {
	if g := w.add(ref, data); g != nil {
		w.groups.Add(1)
		w.queue <- g
	}
}

// PutRecordRaw stores a record under any tag without its checks.
func (r *Repo) PutRecordRaw(ctx context.Context, tag string, body []byte) error {
	t, err := ParseTag(tag)
	if err != nil {
		return err
	}
	return r.putSigned(ctx, t, body)
}

// CommitAndDie commits without any look at the manifests before or after: a
// writer whose looks were long ago and that is killed right after the commit.
func (w *Writer) CommitAndDie(ctx context.Context, root *dr.Root) (*Snapshot, error) {
	number, _, err := w.nextNumber(ctx)
	if err != nil {
		return nil, err
	}
	return w.CommitAs(ctx, root, number)
}

// CommitAs is CommitAndDie under a number of the test's choice.
func (w *Writer) CommitAs(ctx context.Context, root *dr.Root, number dr.Number) (*Snapshot, error) {
	ref, err := w.putRoot(ctx, root)
	if err != nil {
		return nil, err
	}
	if err := w.flush(ctx); err != nil {
		return nil, err
	}
	needs := w.needed()
	rec := w.record(root, ref, needs, CommitInfo{})
	rec.Number = number
	t := Tag{Class: ClassSnapshot, System: rec.System, Number: number}
	var list []need
	for _, s := range needs {
		list = append(list, s.need)
	}
	raw, err := w.seal(t, rec, list)
	if err != nil {
		return nil, err
	}
	if _, err := w.repo.st.PutManifest(ctx, t.String(), ocispec.MediaTypeImageIndex, raw); err != nil {
		return nil, err
	}
	return w.readBack(ctx, t, raw)
}

// Relocate stores units again, says under a tag of class r that the snapshot
// lies there now, and returns it. What is left out of units is not there.
func (r *Repo) Relocate(ctx context.Context, s *Snapshot, units map[dr.UnitRef][]byte) (*Snapshot, error) {
	w, err := r.NewWriter(ctx, WriterOptions{System: s.System})
	if err != nil {
		return nil, err
	}
	defer w.Close()
	for ref, data := range units {
		w.PutAs(ref, data)
	}
	if err := w.Flush(ctx); err != nil {
		return nil, err
	}
	var needs []need
	for _, src := range w.needed() {
		needs = append(needs, src.need)
	}
	return r.relocate(ctx, s, needs)
}

// RelocateTo says that the snapshot lies in what tags of pack manifests name,
// whatever that is.
func (r *Repo) RelocateTo(ctx context.Context, s *Snapshot, tags ...string) (*Snapshot, error) {
	var needs []need
	for _, t := range tags {
		m, err := r.st.GetManifest(ctx, t)
		if err != nil {
			return nil, err
		}
		needs = append(needs, need{m.Digest, int64(len(m.Body))})
	}
	return r.relocate(ctx, s, needs)
}

// DropOlder removes the tags that a relocation replaces.
func (r *Repo) DropOlder(ctx context.Context, s *Snapshot) (int, error) { return r.dropOlder(ctx, s) }

// PutRelocationAgain signs a relocation anew under the next turn without looking
// whether this host may.
func (r *Repo) PutRelocationAgain(ctx context.Context, s *Snapshot) error {
	_, err := r.relocate(ctx, s, s.needs)
	return err
}

// ListsAsCatalogs makes compaction and verification take the units that a root
// record names itself for all that the snapshot has: kept repositories have lists
// of units in place of catalogs.
func (r *Repo) ListsAsCatalogs() *Repo {
	r.walkRoot = func(root *dr.Root, visit func(dr.UnitID) error) error {
		var refs []dr.UnitRef
		for _, t := range root.Trees {
			refs = append(refs, t.Catalog...)
		}
		for _, f := range root.Files {
			refs = append(refs, f.Content...)
		}
		for _, ref := range refs {
			if err := visit(ref.ID); err != nil {
				return err
			}
		}
		return nil
	}
	return r
}

// Eager makes compaction rewrite and join packs that are not worth it.
func (o CompactOptions) Eager() CompactOptions {
	o.eager = true
	return o
}

// PushMade pushes a pack manifest of packs that were made up: their units may be
// referenced by the snapshot that w commits.
func (w *Writer) PushMade(ctx context.Context, packs []pack.Info) error {
	s, err := w.pushManifest(ctx, infoPacks(packs), func(v pack.Visitor) error { return visit(v, packs) })
	if err != nil {
		return err
	}
	s.used.Store(true)
	w.srcMu.Lock()
	defer w.srcMu.Unlock()
	w.sources = append([]*source{s}, w.sources...)
	return nil
}

// Locate does the part of Fetch that comes before anything is read, and returns
// how many of the units it found.
func (rd *Reader) Locate(ctx context.Context, refs []dr.UnitRef) (int, error) {
	list, _, err := rd.locate(ctx, refs)
	if err != nil {
		return 0, err
	}
	for range rd.spans(rd.indexes(), list) {
	}
	return len(list), nil
}

// RewriteCarelessly compacts what there is as if nothing of the chosen packs were
// used, and returns what comes of the rewriting. Nothing is relocated.
func (r *Repo) RewriteCarelessly(ctx context.Context) error {
	snaps, _, err := r.allSnapshots(ctx, "")
	if err != nil {
		return err
	}
	u, err := r.newUsage(ctx, snaps)
	if err != nil {
		return err
	}
	defer u.close()
	walk := newWalker(r, u.mark)
	for _, s := range snaps {
		if err := walk.snapshot(ctx, s); err != nil {
			return err
		}
	}
	if err := u.measure(); err != nil {
		return err
	}
	rw, err := r.newRewriter(ctx)
	if err != nil {
		return err
	}
	defer rw.w.Close()
	rw.count = newCounter(nil, CollectRewrite, 0)
	for _, c := range u.choose(CompactOptions{eager: true}, &Compaction{}) {
		for _, p := range c.chosen {
			p.live = 0
		}
		if _, _, err := rw.component(ctx, c); err != nil {
			return err
		}
	}
	return nil
}

// AllUnits reads everything that a snapshot of trees is made of, from wherever it
// is.
func (r *Repo) AllUnits(ctx context.Context, s *Snapshot) (map[dr.UnitRef][]byte, error) {
	rd, err := r.NewReader(ctx, s)
	if err != nil {
		return nil, err
	}
	defer rd.Close()
	out := map[dr.UnitRef][]byte{}
	err = newWalker(r, func(id dr.UnitID) error {
		for i := range rd.indexes() {
			_, loc, ok, err := rd.lookup(ctx, i, id)
			if err != nil || !ok {
				continue
			}
			ref := dr.UnitRef{ID: id, Len: loc.Len}
			if out[ref], err = rd.Unit(ctx, ref); err != nil {
				return err
			}
		}
		return nil
	}).snapshot(ctx, s)
	return out, err
}

// FoundBad counts the packs that this host has found damaged by reading.
func (r *Repo) FoundBad() int { return len(r.packLog().BadOnes()) }
