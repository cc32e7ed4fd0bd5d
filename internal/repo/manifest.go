package repo

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"lifeboat/internal/dr"
	"lifeboat/internal/pack"
	"lifeboat/internal/repo/idxcache"
	"lifeboat/internal/store"
)

// tagTries is how often a tag whose outcome is unknown is put again.
const tagTries = 3

// pushManifest writes and sends the index of packs that are in the registry,
// pushes a pack manifest of them, and opens its index. each hands the packs to
// a visitor and is called twice. What is pushed is remembered as pending, so
// that it is found again if no snapshot ever names it.
func (w *Writer) pushManifest(ctx context.Context, packs []blob, each func(pack.Visitor) error) (*source, error) {
	r := w.repo
	index, err := w.sendIndex(ctx, len(packs), each)
	if err != nil {
		return nil, err
	}
	pm, err := encodePackManifest(index, packs)
	if err != nil {
		return nil, err
	}
	if err := r.putEmpty(ctx); err != nil {
		return nil, err
	}
	if err := r.state.addPending(pm.Digest, w.opts.System); err != nil {
		return nil, err
	}
	if err := r.putTag(ctx, pm.tag(), ocispec.MediaTypeImageManifest, pm.raw); err != nil {
		return nil, fmt.Errorf("push pack manifest: %w", err)
	}
	w.mu.Lock()
	w.stats.BytesSent += int64(len(pm.raw))
	w.mu.Unlock()
	err = r.idx.build(pm, func(v pack.Visitor) (dr.HostID, error) { return r.HostID(), each(v) })
	if err != nil {
		return nil, err
	}
	ix, err := r.idx.get(ctx, pm.need)
	if err != nil {
		return nil, err
	}
	return &source{index: ix}, nil
}

// putTag stores a manifest under a tag, again when the outcome is unknown.
func (r *Repo) putTag(ctx context.Context, tag, mediaType string, raw []byte) (err error) {
	for range tagTries {
		_, err = r.st.PutManifest(ctx, tag, mediaType, raw)
		if !errors.Is(err, dr.ErrOutcomeUnknown) || ctx.Err() != nil {
			return err
		}
	}
	return err
}

// sendIndex seals the index into a temporary file, for it may be large, and
// sends it.
func (w *Writer) sendIndex(ctx context.Context, packs int, each func(pack.Visitor) error) (b blob, err error) {
	r := w.repo
	if err := os.MkdirAll(r.idx.dir(), 0o700); err != nil {
		return b, fmt.Errorf("spool index: %w", err)
	}
	f, err := os.CreateTemp(r.idx.dir(), ".spool-*.tmp") // mode 0600, and sealed
	if err != nil {
		return b, fmt.Errorf("spool index: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close(), os.Remove(f.Name())) }()
	sum := sha256.New()
	iw, err := pack.NewIndexWriter(io.MultiWriter(f, sum), r.keyring(), r.opts.Host, packs)
	if err != nil {
		return b, err
	}
	wr := &writing{iw: iw}
	if err := each(wr); err != nil {
		return b, err
	}
	if err := wr.group(); err != nil {
		return b, err
	}
	if err := iw.Close(); err != nil {
		return b, err
	}
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return b, fmt.Errorf("spool index: %w", err)
	}
	b = blob{digest.NewDigest(digest.SHA256, sum), size}
	sent, err := r.st.PutBlob(ctx, b.Digest, size, func() (io.ReadCloser, error) { return os.Open(f.Name()) })
	if err != nil {
		return b, fmt.Errorf("send index %s: %w", b.Digest, err)
	}
	w.mu.Lock()
	w.stats.BytesSent += sent
	w.mu.Unlock()
	return b, nil
}

// writing is a pack.Visitor that writes an index.
type writing struct {
	iw   *pack.IndexWriter
	g    pack.GroupInfo
	open bool
}

func (w *writing) Pack(p pack.Info, groups int) error {
	if err := w.group(); err != nil {
		return err
	}
	return w.iw.Pack(p, groups)
}

func (w *writing) Group(g pack.GroupInfo, _ int) error {
	if err := w.group(); err != nil {
		return err
	}
	w.g.Offset, w.g.Sealed, w.g.Plain, w.open = g.Offset, g.Sealed, g.Plain, true
	return nil
}

func (w *writing) Unit(u dr.UnitRef) error {
	w.g.Units = append(w.g.Units, u)
	return nil
}

// group writes the group that was collected.
func (w *writing) group() error {
	if !w.open {
		return nil
	}
	w.open = false
	err := w.iw.Group(w.g)
	w.g.Units = w.g.Units[:0]
	return err
}

// consolidate brings the pack manifests of a snapshot down to what it may list:
// it pushes manifests that name the packs of several, with their merged index,
// and sends no pack again. The smallest are merged first, so that large ones are
// rewritten seldom. What another host wrote is merged only once it was read:
// the merged index bears this host's signature.
func (w *Writer) consolidate(ctx context.Context, list []*source) ([]*source, error) {
	limit := w.limits.needs
	if len(list) <= limit {
		return list, nil
	}
	// Down to half, so that this happens only every so often.
	goal := limit / 2
	slices.SortStableFunc(list, func(a, b *source) int { return cmp.Compare(a.Units(), b.Units()) })
	var keep []*source
	var mergeable []*source
	for _, s := range list {
		if s.own || s.allRead() {
			mergeable = append(mergeable, s)
		} else {
			keep = append(keep, s)
		}
	}
	for len(keep) > 0 && len(keep)+1 > limit { // not enough of one's own: read, smallest first
		s := keep[0]
		keep = keep[1:]
		if err := w.readWhole(ctx, s); err != nil {
			return nil, fmt.Errorf("the snapshot would need %d pack manifests, at most %d are allowed, and one of another host cannot be merged: %w", len(list), limit, err)
		}
		mergeable = append(mergeable, s)
	}
	slices.SortStableFunc(mergeable, func(a, b *source) int { return cmp.Compare(a.Units(), b.Units()) })
	out := keep
	for len(mergeable) > 0 {
		left := len(out) + len(mergeable)
		if left <= goal {
			return append(out, mergeable...), nil
		}
		n := min(left-goal+1, len(mergeable))
		if n < 2 {
			return append(out, mergeable...), nil
		}
		merged, taken, err := w.merge(ctx, mergeable[:n])
		if err != nil {
			return nil, err
		}
		out = append(out, merged)
		mergeable = mergeable[taken:]
	}
	if len(out) > limit {
		return nil, fmt.Errorf("the snapshot needs %d pack manifests, at most %d are allowed: the system is too large", len(out), limit)
	}
	return out, nil
}

// readWhole reads every group of a foreign manifest that was not read yet.
func (w *Writer) readWhole(ctx context.Context, s *source) error {
	for g := range uint32(s.Groups()) {
		if s.wasRead(g) {
			continue
		}
		body, info, elsewhere, err := w.repo.findGroup(ctx, s.index, g)
		if err == nil && elsewhere {
			err = errElsewhere
		}
		if err != nil {
			return err
		}
		if err := w.repo.proveGroup(s.index, g, info, body); err != nil {
			return err
		}
	}
	return nil
}

// merge pushes one manifest of the packs of as many of the sources, from the
// first on, as fit into one. Of what is not whole it names the sound packs.
func (w *Writer) merge(ctx context.Context, list []*source) (merged *source, taken int, err error) {
	type place struct {
		s *source
		p idxcache.Pack
	}
	var all []place
	seen := map[[32]byte]bool{}
	for _, s := range list {
		var add []place
		for i := range uint32(s.Packs()) {
			p, err := s.Pack(i)
			if err != nil {
				return nil, 0, err
			}
			if !seen[p.Digest] && !s.without[i] {
				add = append(add, place{s, p})
			}
		}
		if taken > 0 && len(all)+len(add) > pack.MaxPacks {
			break
		}
		for _, a := range add {
			seen[a.p.Digest] = true
		}
		all = append(all, add...)
		taken++
	}
	if taken == 1 && !list[0].hurt {
		return list[0], 1, nil // nothing else fits beside it
	}
	var packs []blob
	for _, a := range all {
		packs = append(packs, blob{digestOf(a.p.Digest), a.p.Size})
	}
	merged, err = w.pushManifest(ctx, packs, func(v pack.Visitor) error {
		for _, a := range all {
			if err := visitCached(v, a.s.Index, a.p); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, 0, fmt.Errorf("merge %d pack manifests: %w", taken, err)
	}
	w.srcMu.Lock()
	w.sources = append(slices.Clone(w.sources), merged)
	w.srcMu.Unlock()
	return merged, taken, nil
}

// visitCached hands one pack of an index cache to a visitor.
func visitCached(v pack.Visitor, ix *idxcache.Index, p idxcache.Pack) error {
	if err := v.Pack(pack.Info{Digest: p.Digest, Size: p.Size, Header: p.Header}, int(p.Groups)); err != nil {
		return err
	}
	for i := range p.Groups {
		g, err := ix.Group(p.FirstGroup + i)
		if err != nil {
			return err
		}
		if err := v.Group(pack.GroupInfo{Offset: g.Offset, Sealed: g.Sealed, Plain: g.Plain}, int(g.Units)); err != nil {
			return err
		}
		units, err := ix.UnitsOf(g)
		if err != nil {
			return err
		}
		for _, u := range units {
			if err := v.Unit(u); err != nil {
				return err
			}
		}
	}
	return nil
}

// ensure makes sure that a pack manifest is in the registry, whole and under its
// tag, and pushes it again where it is not (invariant 1): this host keeps what it
// says. gone is true when its packs are lost too.
func (r *Repo) ensure(ctx context.Context, ix *index) (gone bool, err error) {
	m, err := r.primary().GetManifest(ctx, ix.need.tag())
	return r.pushMissing(ctx, ix, m.Digest, err)
}

// ensureTagged is ensure for what was read a moment ago: it asks for the tag only.
func (r *Repo) ensureTagged(ctx context.Context, ix *index) (gone bool, err error) {
	d, err := r.primary().ResolveTag(ctx, ix.need.tag())
	return r.pushMissing(ctx, ix, d, err)
}

// pushMissing pushes a pack manifest again unless its tag names it; looking it up
// gave found and err.
func (r *Repo) pushMissing(ctx context.Context, ix *index, found digest.Digest, err error) (gone bool, _ error) {
	tag := ix.need.tag()
	switch {
	case err == nil && found == ix.need.Digest:
		return false, nil
	case err == nil:
		return false, tampered("tag %s names %s", tag, found)
	case !about(err):
		return false, err
	}
	raw, merr := ix.Manifest()
	if merr != nil {
		return false, merr
	}
	damaged := !errors.Is(err, store.ErrNotFound)
	r.log.Warn("a pack manifest has vanished or was altered, and is pushed again", "tag", tag, "found", err)
	if err := r.putEmpty(ctx); err != nil {
		return false, err
	}
	if damaged {
		ctx = store.Rewriting(ctx)
	}
	err = r.putTag(ctx, tag, ocispec.MediaTypeImageManifest, raw)
	if err == nil && damaged {
		_, err = r.primary().GetManifest(ctx, tag)
	}
	if errors.Is(err, store.ErrIncomplete) {
		if err := r.state.setLost(ix.need.Digest, true); err != nil {
			r.log.Warn("a lost pack manifest is not remembered", "error", err)
		}
		return true, fmt.Errorf("pack manifest %s and packs of it were removed from the registry: %w", ix.need.Digest, err)
	}
	return false, err
}
