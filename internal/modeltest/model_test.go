package modeltest_test

import (
	"context"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"lifeboat/internal/dr"
	"lifeboat/internal/repo"
	"lifeboat/internal/repo/repotest"
	"lifeboat/internal/retain"
	"lifeboat/internal/tree"
	"lifeboat/lab/treecmp"
)

// TestModel: two hosts with two systems each work on their trees, take
// snapshots, restore, forget, compact, collect, mirror, copy and repair in any order, at once, killed anywhere,
// with a registry that loses nothing that it confirmed and removes at once what
// nothing names. After each step what is visible is what was taken and not
// forgotten; each restore is compared in full, and at the end everything is
// restored (invariants 1, 2, 3, 8, 10 and 11).
//
// rapid prints the seed of a failure; -rapid.checks and -rapid.steps make it
// longer.
func TestModel(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Fatal("owners and devices need root")
	}
	first, other := repotest.NewBed(t), repotest.NewBed(t)
	for _, h := range hosts {
		if _, err := first.Host(h).Enrol(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	rapid.Check(t, func(rt *rapid.T) {
		w := newWorld(t, rt, first.Fork(), other.Fork())
		defer w.close()
		rt.Repeat(map[string]func(*rapid.T){
			"work": w.work, "work more": w.work, "snapshot": w.snapshot, "snapshot again": w.snapshot, "race": w.race,
			"begin": w.beginOpen, "commit": w.commitOpen,
			"restore": w.restore, "restore in place": w.restoreInPlace, "restore live": w.restoreLive, "restore one file": w.restoreOne,
			"forget": w.forget, "collect": w.collect, "registry": w.registry, "time": w.time,
			"rotate": w.rotate, "lose": w.lose, "mirror": w.mirrored, "copy": w.copied, "damage": w.damage, "": w.check,
		})
		w.everything(rt)
	})
}

// mutate changes the trees of a site.
func (w *world) mutate(rt *rapid.T, at site, n int) {
	mutator{rt, w.root(at, rapid.SampledFrom(treeKeys).Draw(rt, "tree"))}.change(n)
}

func (w *world) work(rt *rapid.T) {
	w.mutate(rt, drawSite(rt), rapid.IntRange(1, 12).Draw(rt, "changes"))
}

func (w *world) snapshot(rt *rapid.T) {
	p := w.plan(rt, drawSite(rt))
	w.fail(rt, w.as(rt, p.at.host, func(ctx context.Context, r *repo.Repo) error {
		u, err := w.begin(ctx, r, p)
		defer u.close()
		if err != nil {
			return err
		}
		return u.commit(ctx)
	}))
}

// race lets both hosts snapshot the same system, or two, at the same time.
func (w *world) race(rt *rapid.T) {
	system := rapid.SampledFrom(systems).Draw(rt, "system")
	other := rapid.SampledFrom(systems).Draw(rt, "other system")
	plans := []plan{w.plan(rt, site{hosts[0], system}), w.plan(rt, site{hosts[1], other})}
	var wg sync.WaitGroup
	runs, errs := make([]*run, len(plans)), make([]error, len(plans))
	for i, p := range plans {
		p.between()
		p.between = func() {} // nothing is drawn beside each other
		wg.Go(func() {
			r, err := repo.Open(w.t.Context(), w.bed.Store, w.bed.Options(p.at.host))
			if err != nil {
				errs[i] = err
				return
			}
			runs[i], errs[i] = w.begin(w.t.Context(), r, p)
			runs[i].repo = r
		})
	}
	wg.Wait()
	for i, u := range runs {
		if errs[i] != nil {
			rt.Fatalf("%v", errs[i])
		}
		defer u.close()
		w.known[u.created.UnixNano()] = &captured{system: u.at.system, trees: u.seen}
	}
	snaps := make([]*repo.Snapshot, len(runs))
	for i, u := range runs {
		wg.Go(func() {
			snaps[i], errs[i] = u.writer.Commit(w.t.Context(), u.root, repo.CommitInfo{})
		})
	}
	wg.Wait()
	for i, u := range runs {
		if errs[i] != nil {
			w.fail(rt, errs[i])
			continue
		}
		w.known[u.created.UnixNano()].reported = snaps[i]
		for _, c := range u.captures {
			if err := c.CommitCache(); err != nil {
				rt.Fatal(err)
			}
		}
	}
}

// beginOpen begins a snapshot that is committed after other steps.
func (w *world) beginOpen(rt *rapid.T) {
	if len(w.runs) == 2 {
		return
	}
	p := w.plan(rt, drawSite(rt))
	r, err := repo.Open(w.t.Context(), w.bed.Store, w.bed.Options(p.at.host))
	if err != nil {
		rt.Fatal(err)
	}
	u, err := w.begin(w.t.Context(), r, p)
	u.repo = r
	if err != nil {
		w.fail(rt, err)
		u.close()
		return
	}
	w.runs = append(w.runs, u)
}

func (w *world) commitOpen(rt *rapid.T) {
	if len(w.runs) == 0 {
		return
	}
	i := rapid.IntRange(0, len(w.runs)-1).Draw(rt, "run")
	w.fail(rt, w.runs[i].commit(w.t.Context()))
	w.runs[i].close()
	w.runs = slices.Delete(w.runs, i, i+1)
}

// some draws a visible snapshot, nil where there is none.
func (w *world) some(rt *rapid.T, r *repo.Repo, system dr.System) *repo.Snapshot {
	snaps, _, err := r.Snapshots(w.t.Context(), system)
	if err != nil {
		rt.Fatal(err)
	}
	if len(snaps) == 0 {
		return nil
	}
	return &snaps[rapid.IntRange(0, len(snaps)-1).Draw(rt, "snapshot")]
}

// laid lays a snapshot down as a host, often with a fault on the way; then it is
// done again without one (invariant 8) and compared.
func (w *world) laid(rt *rapid.T, host string, s *repo.Snapshot, key, dir string, current *repo.Snapshot) {
	do := func(ctx context.Context, r *repo.Repo, current *repo.Snapshot) error {
		return w.lay(ctx, r, s, key, dir, current, w.stateDir(host))
	}
	err := w.as(rt, host, func(ctx context.Context, r *repo.Repo) error { return do(ctx, r, current) })
	if err != nil {
		w.fail(rt, err)
		r := w.observer(rt)
		defer func() { _ = r.Close() }()
		if err := do(w.t.Context(), r, nil); err != nil {
			rt.Fatalf("restore %s again: %v", s.Tag, err)
		}
	}
	w.same(rt, s.Tag+" "+key, w.known[s.Created.UnixNano()].trees[key], dir)
}

// restore lays two snapshots down at a new place, one upon the other.
func (w *world) restore(rt *rapid.T) {
	r := w.observer(rt)
	defer func() { _ = r.Close() }()
	dir := filepath.Join(w.newDir(rt), "tree")
	defer func() { _ = os.RemoveAll(filepath.Dir(dir)) }()
	var before *repo.Snapshot
	key := rapid.SampledFrom(treeKeys).Draw(rt, "tree")
	for range 2 {
		s := w.some(rt, r, "")
		if s == nil {
			return
		}
		w.laid(rt, rapid.SampledFrom(hosts).Draw(rt, "host"), s, key, dir, before)
		before = s
	}
}

// restoreInPlace lays a snapshot upon a tree that is something else, of which
// nothing is known.
func (w *world) restoreInPlace(rt *rapid.T) {
	r := w.observer(rt)
	defer func() { _ = r.Close() }()
	s := w.some(rt, r, "")
	if s == nil {
		return
	}
	dir := filepath.Join(w.newDir(rt), "tree")
	defer func() { _ = os.RemoveAll(filepath.Dir(dir)) }()
	if err := os.Mkdir(dir, 0o700); err != nil {
		rt.Fatal(err)
	}
	mutator{rt, dir}.change(rapid.IntRange(0, 10).Draw(rt, "changes"))
	w.laid(rt, rapid.SampledFrom(hosts).Draw(rt, "host"), s, rapid.SampledFrom(treeKeys).Draw(rt, "tree"), dir, nil)
}

// restoreLive lays a snapshot upon a site's own tree: what goes on from there
// is captured again.
func (w *world) restoreLive(rt *rapid.T) {
	at := drawSite(rt)
	r := w.observer(rt)
	defer func() { _ = r.Close() }()
	s := w.some(rt, r, at.system)
	if s == nil {
		return
	}
	for _, key := range treeKeys {
		w.laid(rt, at.host, s, key, w.root(at, key), nil)
	}
}

// restoreOne lays one entry of a snapshot out, with all below it.
func (w *world) restoreOne(rt *rapid.T) {
	r := w.observer(rt)
	defer func() { _ = r.Close() }()
	s := w.some(rt, r, "")
	if s == nil {
		return
	}
	key := rapid.SampledFrom(treeKeys).Draw(rt, "tree")
	all := w.known[s.Created.UnixNano()].trees[key]
	path := rapid.SampledFrom(slices.Sorted(maps.Keys(all))).Draw(rt, "path")
	if path == "." {
		return
	}
	rd, err := r.NewReader(w.t.Context(), s)
	if err != nil {
		rt.Fatal(err)
	}
	defer rd.Close()
	cat, err := opened(w.t.Context(), rd, key)
	if err != nil {
		rt.Fatal(err)
	}
	dir := w.newDir(rt)
	defer func() { _ = os.RemoveAll(dir) }()
	if _, err := tree.Extract(w.t.Context(), dir, cat, rd, tree.ExtractOptions{Path: path, UnitID: r.UnitID, TempDir: w.dir}); err != nil {
		rt.Fatalf("extract %q of %s: %v", path, s.Tag, err)
	}
	got, err := treecmp.Fingerprint(dir, treecmp.Options{OneMount: true})
	if err != nil {
		rt.Fatal(err)
	}
	if diff := treecmp.Report(treecmp.Compare(part(all, path), part(got, path), treecmp.Rules{}), 20); diff != "" {
		rt.Fatalf("%q of %s is not what was captured:\n%s", path, s.Tag, diff)
	}
	for name := range got {
		if !strings.HasPrefix(path, name+"/") && name != "." && name != path && !strings.HasPrefix(name, path+"/") {
			rt.Fatalf("%q was laid out for %q", name, path)
		}
	}
}

// part takes an entry and what is below it. Links from outside of it do not
// count.
func part(t treecmp.Tree, path string) treecmp.Tree {
	out := treecmp.Tree{}
	first := map[string]string{} // of those inside, by the first name of all
	count := map[string]int{}
	names := slices.Sorted(maps.Keys(t))
	for _, name := range names {
		if name == path || strings.HasPrefix(name, path+"/") {
			e := t[name]
			if e.LinkedTo != "" {
				if _, ok := first[e.LinkedTo]; !ok {
					first[e.LinkedTo] = name
				}
				count[e.LinkedTo]++
			}
			out[name] = e
		}
	}
	for name, e := range out {
		if e.LinkedTo == "" {
			continue
		}
		if count[e.LinkedTo] > 1 {
			e.LinkedTo = first[e.LinkedTo]
		} else {
			e.LinkedTo = ""
		}
		out[name] = e
	}
	return out
}

func (w *world) forget(rt *rapid.T) {
	policy := retain.Policy{Last: rapid.IntRange(0, 3).Draw(rt, "last"), Hourly: rapid.IntRange(1, 4).Draw(rt, "hourly")}
	at := drawSite(rt)
	w.fail(rt, w.as(rt, at.host, func(ctx context.Context, r *repo.Repo) error {
		p, err := r.PlanForget(ctx, at.system, policy)
		if err != nil {
			return err
		}
		for i, row := range p.Rows {
			if i == len(p.Rows)-1 && !row.Keep {
				rt.Fatalf("the highest number goes: %s", row.Tag)
			}
			if !row.Keep {
				w.known[row.Created.UnixNano()].going = true
			}
		}
		return r.Forget(ctx, p)
	}))
}

func (w *world) collect(rt *rapid.T) {
	o := repo.CollectOptions{Grace: rapid.SampledFrom([]time.Duration{0, 0, repo.DefaultGrace}).Draw(rt, "grace"), Now: w.now}
	if rapid.Bool().Draw(rt, "compact") {
		o.Compact = &repo.CompactOptions{MaxUnused: rapid.Float64Range(0, 0.5).Draw(rt, "unused")}
	}
	w.fail(rt, w.as(rt, rapid.SampledFrom(hosts).Draw(rt, "host"), func(ctx context.Context, r *repo.Repo) error {
		_, err := r.Collect(ctx, o)
		return err
	}))
}

func (w *world) registry(*rapid.T) { w.bed.Store.Collect() }

func (w *world) time(rt *rapid.T) {
	w.clock = w.clock.Add(time.Duration(rapid.IntRange(-5, 80).Draw(rt, "hours")) * time.Hour)
}

func (w *world) rotate(rt *rapid.T) {
	w.fail(rt, w.as(rt, rapid.SampledFrom(hosts).Draw(rt, "host"), func(ctx context.Context, r *repo.Repo) error {
		return r.RotateKey(ctx, nil)
	}))
}

// lose takes away what a host remembers: its caches, or all of its state, or
// its key with it, so that it comes back as another host.
func (w *world) lose(rt *rapid.T) {
	host := rapid.SampledFrom(hosts).Draw(rt, "host")
	o := w.bed.Options(host)
	for _, u := range w.runs {
		if u.at.host == host {
			return // it runs
		}
	}
	var dirs []string
	switch rapid.SampledFrom([]string{"index caches", "stat caches", "state", "all"}).Draw(rt, "what") {
	case "index caches":
		dirs = []string{o.CacheDir}
	case "stat caches":
		dirs = []string{w.stateDir(host)}
	case "state":
		dirs = []string{o.StateDir, w.stateDir(host)}
	case "all":
		dirs = []string{filepath.Dir(o.StateDir), w.stateDir(host)}
	}
	for _, d := range dirs {
		if err := os.RemoveAll(d); err != nil {
			rt.Fatal(err)
		}
	}
	if err := os.MkdirAll(w.stateDir(host), 0o700); err != nil {
		rt.Fatal(err)
	}
}
