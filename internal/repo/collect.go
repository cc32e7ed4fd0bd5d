package repo

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"lifeboat/internal/store"
)

const (
	// DefaultGrace is how long a pack manifest stays after it was first seen
	// unneeded: a run in progress pushes manifests that no snapshot names yet.
	DefaultGrace = 72 * time.Hour
	// UncheckedWait is how long a manifest stays without its tag before it is
	// deleted from a registry that does not look itself what lists it.
	UncheckedWait = time.Hour
)

// CollectOptions say how to collect.
type CollectOptions struct {
	// Grace is how long a pack manifest has been seen unneeded, by this host,
	// before it goes. It should be longer than the longest run of a writer: a run
	// that loses manifests is not wrong, but has to send them again.
	Grace time.Duration
	// Compact, if set, rewrites packs of which little is used before anything is
	// collected.
	Compact *CompactOptions
	// DryRun changes nothing and remembers nothing.
	DryRun bool
	// Now is the clock; nil means time.Now.
	Now func() time.Time
	// Progress is told how far each stage is; may be nil. Calls do not overlap.
	Progress func(CollectProgress)
}

// CollectState is what became of a pack manifest that no snapshot needs.
type CollectState string

// What may become of it.
const (
	CollectYoung    CollectState = "young"    // not unneeded for long enough
	CollectDue      CollectState = "due"      // would go, but for DryRun
	CollectUntagged CollectState = "untagged" // its tag is gone; it goes after UncheckedWait
	CollectRemoved  CollectState = "removed"
	CollectNeeded   CollectState = "needed" // again, by a snapshot that was committed meanwhile
)

// CollectRow is one pack manifest that no snapshot needed.
type CollectRow struct {
	Manifest digest.Digest
	State    CollectState
	// Since is when this host first saw it unneeded.
	Since time.Time
	// Bytes are those of its packs and index that no other manifest names.
	Bytes int64
	Packs int
}

// Collection is what Collect found and did.
type Collection struct {
	Rows []CollectRow
	// Needed is how many pack manifests snapshots need; Retagged how many of them
	// had lost their tag and have it again.
	Needed, Retagged int
	// Compacted is nil where nothing was asked for.
	Compacted *Compaction
	// Problems are tags of snapshots that do not verify. What they list stays.
	Problems []Problem
	// Checked: the registry itself keeps what is needed (store.Capabilities).
	Checked bool
}

// Collect removes pack manifests that no tag of the repository lists any more,
// so that the registry can take back their packs (docs/format.md, Removing).
// Before that it rewrites packs of which little is used, if asked to.
//
// The order is what makes it safe beside writers, wherever either is killed
// (invariant 2): a manifest that was unneeded for Grace loses its tag; then all
// tags are read again; then the manifest is deleted, by a registry that refuses
// while an index under a tag lists it, or from others after UncheckedWait, with
// one more look afterwards. A writer finds the missing tag in its look after the
// commit and puts it back, and so does Collect. What a tag lists stays, whether
// the tag verifies or not.
//
// Errors: dr.ErrTampered where a tag cannot be read that may list packs, so that what
// it lists is not known, or the registry shows an older state than this host has seen;
// nothing is removed then. store.ErrForbidden, store.ErrUnsupported as for
// Forget.
func (r *Repo) Collect(ctx context.Context, o CollectOptions) (*Collection, error) {
	c := &collector{repo: r, opts: o, now: time.Now, seen: map[string][]digest.Digest{}, result: &Collection{}}
	if o.Now != nil {
		c.now = o.Now
	}
	if err := c.run(ctx); err != nil {
		return c.result, fmt.Errorf("collect: %w", err)
	}
	return c.result, nil
}

// collector is one run of Collect.
type collector struct {
	repo   *Repo
	opts   CollectOptions
	now    func() time.Time
	result *Collection
	caps   store.Capabilities

	seen map[string][]digest.Digest // what a tag lists, where tags never move
	tags map[string]bool            // of pack manifests, as last listed
	// kept are the blobs that remaining manifests name.
	kept map[digest.Digest]bool
}

// candidate is a pack manifest that nothing needs.
type candidate struct {
	row    *CollectRow
	pm     *packManifest
	known  unneeded
	tagged bool
}

func (c *collector) run(ctx context.Context) error {
	var err error
	if c.caps, err = c.repo.st.Capabilities(ctx); err != nil {
		return err
	}
	c.result.Checked = c.caps.CheckedDelete
	needed, err := c.listed(ctx)
	if err != nil {
		return err
	}
	if c.opts.Compact != nil {
		c.result.Compacted, err = c.repo.compact(ctx, c.opts, c.seen)
		if err != nil {
			return err
		}
		if needed, err = c.listed(ctx); err != nil {
			return err
		}
	}
	if err := c.verified(ctx, needed); err != nil {
		return err
	}
	list, err := c.candidates(ctx, needed)
	if err != nil {
		return err
	}
	due, err := c.judge(list)
	if err != nil || c.opts.DryRun || len(due) == 0 {
		return err
	}
	return c.remove(ctx, due)
}

// listed returns every manifest that a tag of any kind lists, except tags of
// pack manifests, and notes which of those there are.
func (c *collector) listed(ctx context.Context) (map[digest.Digest]bool, error) {
	names, err := c.repo.st.Tags(ctx, "")
	if err != nil {
		return nil, err
	}
	c.tags = map[string]bool{}
	var read []string
	out := map[digest.Digest]bool{}
	for _, name := range names {
		list, known := c.seen[name]
		switch {
		case isPackTag(name):
			c.tags[name] = true
		case known && c.caps.ImmutableTags && isOurs(name):
			for _, d := range list {
				out[d] = true
			}
		default:
			read = append(read, name)
		}
	}
	lists := make([][]digest.Digest, len(read))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(listParallel)
	for i, name := range read {
		g.Go(func() (err error) {
			lists[i], err = c.children(gctx, name)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	for i, name := range read {
		if lists[i] == nil {
			continue // deleted meanwhile, or not there yet: its writer looks again
		}
		c.seen[name] = lists[i]
		for _, d := range lists[i] {
			out[d] = true
		}
	}
	return out, nil
}

// children returns what the index under a tag lists, by its form alone: neither
// signature nor type are asked for, because keeping more harms nobody. nil
// where the tag is not there.
func (c *collector) children(ctx context.Context, tag string) ([]digest.Digest, error) {
	m, err := c.repo.getListed(ctx, tag)
	switch {
	case errors.Is(err, store.ErrNotFound):
		return nil, nil
	case err != nil && about(err) && listsNoPacks(tag):
		return nil, nil
	case err != nil && about(err):
		return nil, fmt.Errorf("tag %s cannot be read, so that it is not known which packs it needs; nothing was removed. Mend it, or give up the snapshot if that cannot be done (lifeboat repair --drop-damaged): %w", tag, err)
	case err != nil:
		return nil, err
	}
	out := []digest.Digest{}
	var x struct {
		Manifests []struct {
			Digest digest.Digest `json:"digest"`
		} `json:"manifests"`
	}
	if json.Unmarshal(m.Body, &x) == nil { // else it lists nothing that a registry could give
		for _, d := range x.Manifests {
			out = append(out, d.Digest)
		}
	}
	return out, nil
}

// listsNoPacks reports whether a tag is of a class that lists no pack manifests
// (docs/format.md, Where it lives). A lock does not either: what it keeps is listed by
// the snapshot's own tags, and a lock that cannot be read holds like any other.
func listsNoPacks(tag string) bool {
	t, err := ParseTag(tag)
	return err == nil && t.Class != ClassSnapshot && t.Class != ClassRelocation
}

// verified looks at the snapshots that verify: their manifests get a lost tag
// back, and a registry that shows less than this host has seen ends the run.
func (c *collector) verified(ctx context.Context, needed map[digest.Digest]bool) error {
	r := c.repo
	snaps, problems, err := r.allSnapshots(ctx, "")
	if err != nil {
		return err
	}
	if err := refuseSetBack(problems); err != nil {
		return err
	}
	c.result.Problems = problems
	needs := map[digest.Digest]need{}
	for _, s := range snaps {
		for _, n := range s.needs {
			needed[n.Digest], needs[n.Digest] = true, n
		}
	}
	c.result.Needed = len(needs)
	known, err := r.state.listUnneeded()
	if err != nil {
		return err
	}
	for d, n := range needs {
		if _, was := known[d]; was && !c.opts.DryRun {
			if err := r.state.dropUnneeded(d); err != nil {
				return err
			}
		}
		if c.tags[n.tag()] || c.opts.DryRun {
			continue
		}
		put, err := r.retag(ctx, d)
		if err != nil {
			return err
		}
		if put {
			c.result.Retagged++
		}
	}
	return nil
}

// retag gives a stored pack manifest its tag back; false where it is not stored.
func (r *Repo) retag(ctx context.Context, d digest.Digest) (bool, error) {
	m, err := r.st.GetManifest(ctx, d.String())
	if errors.Is(err, store.ErrNotFound) {
		return false, nil // check says so
	}
	if err != nil {
		return false, err
	}
	n := need{Digest: d}
	if err := r.putTag(ctx, n.tag(), ocispec.MediaTypeImageManifest, m.Body); err != nil {
		return false, fmt.Errorf("put tag %s back: %w", n.tag(), err)
	}
	r.log.Warn("a pack manifest had lost its tag and has it again", "tag", n.tag())
	return true, nil
}

// candidates reads the pack manifests that nothing lists: those with a tag, and
// those whose tag an earlier run removed. It also learns which blobs the others
// name.
func (c *collector) candidates(ctx context.Context, needed map[digest.Digest]bool) ([]*candidate, error) {
	r := c.repo
	known, err := r.state.listUnneeded()
	if err != nil {
		return nil, err
	}
	var refs []string
	for tag := range c.tags {
		refs = append(refs, tag)
	}
	for d := range known {
		if !c.tags[need{Digest: d}.tag()] && !needed[d] {
			refs = append(refs, d.String())
		}
	}
	slices.Sort(refs)
	found := make([]*candidate, len(refs))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(listParallel)
	for i, ref := range refs {
		g.Go(func() (err error) {
			found[i], err = c.candidate(gctx, ref)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	c.kept = map[digest.Digest]bool{}
	var out []*candidate
	for _, f := range found {
		switch {
		case f == nil:
		case needed[f.pm.Digest]:
			for _, b := range append([]blob{f.pm.index}, f.pm.packs...) {
				c.kept[b.Digest] = true
			}
		default:
			f.known = known[f.pm.Digest]
			out = append(out, f)
		}
	}
	return out, nil
}

// candidate reads one manifest; nil for what is gone, or is no pack manifest
// under its own tag: that is somebody else's.
func (c *collector) candidate(ctx context.Context, ref string) (*candidate, error) {
	m, err := c.repo.st.GetManifest(ctx, ref)
	switch {
	case errors.Is(err, store.ErrNotFound):
		if d := digest.Digest(ref); d.Validate() == nil && !c.opts.DryRun {
			return nil, c.repo.state.dropUnneeded(d)
		}
		return nil, nil
	case err != nil && about(err):
		c.repo.log.Warn("a pack manifest cannot be read and is left alone", "manifest", ref, "error", err)
		return nil, nil
	case err != nil:
		return nil, err
	}
	pm, err := decodePackManifest(m.Body)
	tagged := isPackTag(ref)
	if err != nil || tagged && pm.tag() != ref {
		return nil, nil
	}
	return &candidate{pm: pm, tagged: tagged}, nil
}

// judge decides which candidates are due, and remembers those that are new.
func (c *collector) judge(list []*candidate) (due []*candidate, err error) {
	now := c.now()
	slices.SortFunc(list, func(a, b *candidate) int { return cmp.Compare(a.pm.Digest, b.pm.Digest) })
	c.result.Rows = make([]CollectRow, len(list))
	counted := map[digest.Digest]bool{}
	for i, f := range list {
		was := f.known
		if f.known.Since.IsZero() || f.known.Since.After(now) { // never seen, or the clock was wrong
			f.known = unneeded{Since: now}
		}
		if f.tagged && !f.known.Untagged.IsZero() {
			f.known = unneeded{Since: now} // a writer has put its tag back: it begins anew
		}
		if !f.tagged && (f.known.Untagged.IsZero() || f.known.Untagged.After(now)) {
			f.known.Untagged = now
		}
		if f.known != was && !c.opts.DryRun {
			if err := c.repo.state.setUnneeded(f.pm.Digest, f.known); err != nil {
				return nil, err
			}
		}
		f.row = &c.result.Rows[i]
		*f.row = CollectRow{Manifest: f.pm.Digest, State: CollectYoung, Since: f.known.Since, Packs: len(f.pm.packs)}
		for _, b := range append([]blob{f.pm.index}, f.pm.packs...) {
			if !c.kept[b.Digest] && !counted[b.Digest] {
				counted[b.Digest] = true
				f.row.Bytes += b.Size
			}
		}
		if now.Sub(f.known.Since) >= c.opts.Grace {
			f.row.State = CollectDue
			due = append(due, f)
		}
	}
	return due, nil
}

// remove takes due manifests away in the order that Collect describes.
func (c *collector) remove(ctx context.Context, due []*candidate) error {
	count := newCounter(c.opts.Progress, CollectRemove, int64(2*len(due)))
	if err := c.untag(ctx, due, count); err != nil {
		return err
	}
	needed, err := c.listed(ctx)
	if err != nil {
		return err
	}
	var gone []*candidate
	for _, f := range due {
		switch {
		case needed[f.pm.Digest]:
			err = c.restore(ctx, f)
		case c.tags[f.pm.tag()]:
			err = c.again(f)
		case !c.caps.CheckedDelete && c.now().Sub(f.known.Untagged) < UncheckedWait:
			f.row.State = CollectUntagged
		default:
			err = c.delete(ctx, f)
			gone = append(gone, f)
		}
		if err != nil {
			return err
		}
		count.add(1)
	}
	if c.caps.CheckedDelete || len(gone) == 0 {
		return nil
	}
	// What was committed while it was deleted gets it back: its packs are still
	// stored, for nothing but a registry's own collector removes them.
	if needed, err = c.listed(ctx); err != nil {
		return err
	}
	for _, f := range gone {
		if needed[f.pm.Digest] {
			if err := c.restore(ctx, f); err != nil {
				return err
			}
		}
	}
	return nil
}

// untag removes the tags. That is noted before, because a manifest without a
// tag cannot be found.
func (c *collector) untag(ctx context.Context, due []*candidate, count *counter) error {
	r := c.repo
	for _, f := range due {
		count.add(1)
		if !f.tagged {
			continue
		}
		f.known.Untagged = c.now()
		if err := r.state.setUnneeded(f.pm.Digest, f.known); err != nil {
			return err
		}
		if err := r.st.DeleteTag(ctx, f.pm.tag()); err != nil && !errors.Is(err, store.ErrNotFound) {
			if errors.Is(err, store.ErrUnsupported) {
				return fmt.Errorf("this registry deletes no tags, and without that manifests cannot be removed safely beside writers: %w", err)
			}
			return err
		}
	}
	return nil
}

// restore gives a manifest that is needed again its tag back, and itself where
// it is gone.
func (c *collector) restore(ctx context.Context, f *candidate) error {
	r := c.repo
	f.row.State = CollectNeeded
	if err := r.putTag(ctx, f.pm.tag(), ocispec.MediaTypeImageManifest, f.pm.raw); err != nil {
		return fmt.Errorf("put %s back, which a new snapshot needs: %w", f.pm.tag(), err)
	}
	return r.state.dropUnneeded(f.pm.Digest)
}

// again: a writer has put the tag back; it looks after the manifest.
func (c *collector) again(f *candidate) error {
	f.row.State = CollectNeeded
	return c.repo.state.dropUnneeded(f.pm.Digest)
}

func (c *collector) delete(ctx context.Context, f *candidate) error {
	err := c.repo.st.DeleteManifest(ctx, f.pm.Digest)
	switch {
	case errors.Is(err, store.ErrListed): // since it was looked at
		return c.restore(ctx, f)
	case err != nil && !errors.Is(err, store.ErrNotFound):
		return err
	}
	f.row.State = CollectRemoved
	if !c.caps.CheckedDelete {
		return nil // the next run finds it gone, unless this one puts it back
	}
	return c.repo.state.dropUnneeded(f.pm.Digest)
}

// Freed sums what became of one state: manifests, and the bytes that only they
// named.
func (c *Collection) Freed(s CollectState) (manifests int, bytes int64) {
	for _, row := range c.Rows {
		if row.State == s {
			manifests++
			bytes += row.Bytes
		}
	}
	return manifests, bytes
}
