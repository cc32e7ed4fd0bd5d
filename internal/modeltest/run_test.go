package modeltest_test

import (
	"context"
	"errors"
	"fmt"
	"time"

	"pgregory.net/rapid"

	"lifeboat/internal/dr"
	"lifeboat/internal/repo"
	"lifeboat/internal/tree"
	"lifeboat/lab/treecmp"
)

// run is a snapshot on its way, as package capture takes one.
type run struct {
	w        *world
	at       site
	created  time.Time
	repo     *repo.Repo // of its own, where it stays open over other steps
	writer   *repo.Writer
	captures []*tree.Capture
	seen     map[string]treecmp.Tree
	root     *dr.Root
}

// plan draws everything that a run needs to know beforehand: what runs beside
// others must not draw.
type plan struct {
	at      site
	created time.Time
	alone   bool // no parent
	exact   bool
	budget  int64
	between func() // changes after the first pass
}

func (w *world) plan(rt *rapid.T, at site) plan {
	w.next = w.next.Add(17 * time.Minute)
	p := plan{
		at: at, created: w.next, alone: rapid.IntRange(0, 4).Draw(rt, "alone") == 0, exact: rapid.Bool().Draw(rt, "exact"),
		budget: int64(rapid.SampledFrom([]int{0, 100 << 10, 64 << 20}).Draw(rt, "budget")),
	}
	p.between = func() { w.mutate(rt, at, rapid.IntRange(0, 4).Draw(rt, "meanwhile")) }
	return p
}

// begin does everything up to the commit. The run is to be closed in any case.
func (w *world) begin(ctx context.Context, r *repo.Repo, p plan) (*run, error) {
	u := &run{w: w, at: p.at, created: p.created, seen: map[string]treecmp.Tree{}}
	o := repo.WriterOptions{System: p.at.system, Exact: p.exact}
	if !p.alone {
		s, err := r.Find(ctx, p.at.system, "")
		if err != nil && !errors.Is(err, dr.ErrNotFound) {
			return u, err
		}
		if err == nil {
			o.Parent = s
		}
	}
	var err error
	if u.writer, err = r.NewWriter(ctx, o); err != nil {
		return u, err
	}
	if err := u.firstPass(ctx, r, p); err != nil {
		return u, err
	}
	p.between()
	for i, key := range treeKeys {
		if err := u.captures[i].Secure(ctx); err != nil {
			return u, fmt.Errorf("secure %s: %w", key, err)
		}
		if u.seen[key], err = treecmp.Fingerprint(w.root(p.at, key), treecmp.Options{OneMount: true}); err != nil {
			return u, err
		}
	}
	u.root = &dr.Root{Site: dr.Site(p.at.host), Kind: dr.KindCurrent, Consistency: dr.ConsistentCrash, Created: p.created}
	for i, key := range treeKeys {
		t, err := u.captures[i].Finish(ctx)
		if err != nil {
			return u, fmt.Errorf("finish %s: %w", key, err)
		}
		t.Key = key
		u.root.Trees = append(u.root.Trees, t)
	}
	return u, nil
}

func (u *run) firstPass(ctx context.Context, r *repo.Repo, p plan) error {
	budget := tree.NewBudget(p.budget)
	for _, key := range treeKeys {
		o := tree.CaptureOptions{
			Root: u.w.root(p.at, key), Key: string(p.at.system) + "/" + key, StateDir: u.w.stateDir(p.at.host),
			CutKey: r.CutKey(), UnitID: r.UnitID, Sink: u.writer, Budget: budget,
		}
		if u.w.aged {
			o.Now = func() time.Time { return time.Now().Add(time.Minute) }
		}
		c, err := tree.NewCapture(o)
		if err != nil {
			return err
		}
		u.captures = append(u.captures, c)
		if err := c.Precopy(ctx); err != nil {
			return fmt.Errorf("precopy %s: %w", key, err)
		}
	}
	return nil
}

// commit makes the snapshot visible, and tells the model before it tries.
func (u *run) commit(ctx context.Context) error {
	c := &captured{system: u.at.system, trees: u.seen}
	u.w.known[u.created.UnixNano()] = c
	s, err := u.writer.Commit(ctx, u.root, repo.CommitInfo{})
	if err != nil {
		return err
	}
	c.reported = s
	for _, t := range u.captures {
		if err := t.CommitCache(); err != nil {
			return err
		}
	}
	return nil
}

func (u *run) close() {
	for _, c := range u.captures {
		_ = c.Close()
	}
	if u.writer != nil {
		u.writer.Close()
	}
	if u.repo != nil {
		_ = u.repo.Close()
	}
}
