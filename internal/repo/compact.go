package repo

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
)

// compactor is one run of compaction (docs/adr/0009). It never removes a pack
// manifest: what is not needed any more after it is collected.
type compactor struct {
	repo   *Repo
	opts   CompactOptions
	tell   func(CollectProgress) // nil: nobody
	result *Compaction
	// snaps are the visible snapshots; fixed are those that must stay where they
	// lie.
	snaps []*Snapshot
	fixed map[string]bool      // by tag
	now   map[string]*Snapshot // relocated in this run, by tag
	moves []move               // stored, and to be said
	usage *usage
}

// compact rewrites packs of which little is used, as o.Compact says. listed are
// the manifests that tags list, by tag.
func (r *Repo) compact(ctx context.Context, o CollectOptions, listed map[string][]digest.Digest) (*Compaction, error) {
	c := &compactor{repo: r, opts: *o.Compact, tell: o.Progress, result: &Compaction{}, fixed: map[string]bool{}, now: map[string]*Snapshot{}}
	if err := c.run(ctx, listed, o.DryRun); err != nil {
		return c.result, fmt.Errorf("compact: %w", err)
	}
	return c.result, nil
}

func (c *compactor) run(ctx context.Context, listed map[string][]digest.Digest, dry bool) error {
	r := c.repo
	if err := c.look(ctx); err != nil {
		return err
	}
	if !dry {
		moved, err := r.resumeMoves(ctx, c.movable(), c.result)
		if err != nil {
			return err
		}
		if moved {
			if err := c.look(ctx); err != nil {
				return err
			}
		}
		if err := r.finishOlder(ctx, c.movable(), c.now, c.result); err != nil {
			return err
		}
	}
	mark := c.mark(listed)
	if was, err := r.state.readSmall(compactedFile); err != nil {
		return err
	} else if string(was) == mark {
		c.result.Unchanged = true
		return nil
	}
	var err error
	if c.usage, err = r.newUsage(ctx, c.snaps); err != nil {
		return err
	}
	defer c.usage.close()
	if err := c.walk(ctx, listed); err != nil {
		return err
	}
	list := c.usage.choose(c.opts, c.result)
	if dry {
		return nil
	}
	if len(list) == 0 && len(c.result.Problems) == 0 {
		return r.state.writeSmall(compactedFile, []byte(mark))
	}
	return c.rewrite(ctx, list)
}

// compactedFile holds what a run saw that found nothing to do.
const compactedFile = "compacted"

// mark is a hash of everything that the choice depends on.
func (c *compactor) mark(listed map[string][]digest.Digest) string {
	h := sha256.New()
	_, _ = fmt.Fprintf(h, "%v %v\n", c.opts.MaxUnused, c.repo.HostID()) // never fails
	for _, s := range c.snaps {
		_, _ = fmt.Fprintf(h, "%s %s %v\n", s.Place, s.Digest, c.fixed[s.Tag])
	}
	var names []string
	for name := range listed {
		names = append(names, name)
	}
	slices.Sort(names)
	_, _ = h.Write([]byte(strings.Join(names, " ")))
	return hex.EncodeToString(h.Sum(nil))
}

// look lists the snapshots, and what of them must stay where it lies: what was
// repaired in part, because a later repair begins at its older tags, and what
// another host has relocated and has not finished with, because whoever goes on
// from there relies on it.
func (c *compactor) look(ctx context.Context) error {
	r := c.repo
	snaps, problems, err := r.allSnapshots(ctx, "")
	if err != nil {
		return err
	}
	if err := refuseSetBack(problems); err != nil {
		return err
	}
	c.snaps = snaps
	locks, err := r.lockedNumbers(ctx, "")
	if err != nil {
		return err
	}
	for _, s := range snaps {
		if locks[numberKey{s.System, s.Number}] || s.Lacks > 0 || s.hasOlder() && s.mover != r.HostID() {
			c.fixed[s.Tag] = true
		}
	}
	return nil
}

func (c *compactor) movable() (out []*Snapshot) {
	for _, s := range c.snaps {
		if !c.fixed[s.Tag] {
			out = append(out, s)
		}
	}
	return out
}

// walk finds what is live, and pins what cannot be told where its units go: what
// tags list that are no place of a snapshot, and snapshots that are not whole.
func (c *compactor) walk(ctx context.Context, listed map[string][]digest.Digest) error {
	places := map[string]bool{}
	for _, s := range c.movable() {
		places[s.Place] = true
	}
	for tag, list := range listed {
		if !places[tag] {
			c.usage.pin(list)
		}
	}
	w := newWalker(c.repo, c.usage.mark)
	count := newCounter(c.tell, CollectLook, int64(len(c.snaps)))
	for _, s := range c.snaps {
		err := w.snapshot(ctx, s)
		count.add(1)
		switch {
		case err == nil:
		case unwalkable(err):
			c.fixed[s.Tag] = true
			c.usage.pin(s.Needs)
			c.result.Problems = append(c.result.Problems, Problem{Tag: s.Tag, Snapshot: s.ID, Err: err})
		default:
			return fmt.Errorf("what %s needs: %w", s.Tag, err)
		}
	}
	return c.usage.measure()
}

// rewrite does what was chosen, one component after the other: each leaves a
// state from which any later run goes on.
func (c *compactor) rewrite(ctx context.Context, list []*component) error {
	r := c.repo
	var rw *rewriter
	defer func() {
		if rw != nil {
			c.result.Sent += rw.w.Stats().BytesSent
			rw.w.Close()
		}
	}()
	since, total := int64(0), int64(0)
	for _, comp := range list {
		total += comp.cost()
	}
	count := newCounter(c.tell, CollectRewrite, total)
	for _, comp := range list {
		if rw == nil {
			var err error
			if rw, err = r.newRewriter(ctx); err != nil {
				return err
			}
			rw.count = count
		}
		n, read, err := rw.component(ctx, comp)
		c.result.Read += read
		if errors.Is(err, errNotWhole) {
			c.result.Problems = append(c.result.Problems, Problem{Tag: comp.snaps[0].Tag, Snapshot: comp.snaps[0].ID, Err: err})
			c.result.Sent += rw.w.Stats().BytesSent
			rw.w.Close()
			rw = nil
			continue
		}
		if err != nil {
			return err
		}
		if err := c.stored(comp, n); err != nil {
			return err
		}
		if since += read; since >= relocateEvery {
			since = 0
			if err := c.relocate(ctx); err != nil {
				return err
			}
		}
	}
	if err := c.relocate(ctx); err != nil {
		return err
	}
	// Everything is said under its new tag; what said it before goes once that
	// was read again.
	if err := c.look(ctx); err != nil {
		return err
	}
	if err := r.finishOlder(ctx, c.movable(), c.now, c.result); err != nil {
		return err
	}
	return r.dropCompacted()
}

// relocateEvery is after how many rewritten bytes snapshots are relocated: each
// at most once for so much.
const relocateEvery = 4 << 30

// stored remembers what takes the place of a component's manifests.
func (c *compactor) stored(comp *component, n need) error {
	m := move{New: n.Digest, NewSize: n.Size}
	for _, old := range comp.manifests {
		m.Old = append(m.Old, old.Digest)
	}
	for _, s := range comp.snaps {
		m.Snapshots = append(m.Snapshots, s.Tag)
	}
	c.moves = append(c.moves, m)
	return c.repo.state.saveMoves(c.moves)
}

// relocate says where the units of snapshots lie since they were stored again.
func (c *compactor) relocate(ctx context.Context) error {
	if len(c.moves) == 0 {
		return nil
	}
	snaps := c.movable()
	for i, s := range snaps { // as it is now
		if now := c.now[s.Tag]; now != nil {
			snaps[i] = now
		}
	}
	moved, err := c.repo.relocateAll(ctx, c.moves, snaps, c.result)
	for _, s := range moved {
		c.now[s.Tag] = s
	}
	if err != nil {
		return err
	}
	c.moves = nil
	return c.repo.state.saveMoves(nil)
}

// dropCompacted forgets the pending manifests of compaction: those that
// snapshots need now, and those that were steps on the way, which are collected.
func (r *Repo) dropCompacted() error {
	pending, err := r.state.listPending()
	if err != nil {
		return err
	}
	for d, system := range pending {
		if system != compactionRuns {
			continue
		}
		if err := r.state.dropPending(d); err != nil {
			return err
		}
	}
	return nil
}
