package modeltest_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"pgregory.net/rapid"

	"lifeboat/internal/catalog"
	"lifeboat/internal/dr"
	"lifeboat/internal/repo"
	"lifeboat/internal/repo/repotest"
	"lifeboat/internal/store"
	"lifeboat/internal/store/faults"
	"lifeboat/internal/store/memstore"
	"lifeboat/internal/tree"
	"lifeboat/lab/treecmp"
)

var (
	hosts    = []string{"a", "b"}
	systems  = []dr.System{"shop", "blog"}
	treeKeys = []string{"volume:data", "volume:www"}
)

// site is what one host has of one system: its trees.
type site struct {
	host   string
	system dr.System
}

// captured is a snapshot that the model knows of. Its time names it.
type captured struct {
	system   dr.System
	trees    map[string]treecmp.Tree // as the independent walker saw them, by key
	reported *repo.Snapshot          // nil while its outcome is unknown
	going    bool                    // a forgetting that was begun has it on its list
}

// world is the model and what it is compared with.
type world struct {
	t      *testing.T
	bed    *repotest.Bed
	dir    string
	clock  time.Time // of those who care for the repository; use now
	ticks  sync.Mutex
	next   time.Time // of the next snapshot; unique
	known  map[int64]*captured
	runs   []*run                 // open over other steps
	n      int                    // of directories
	mirror *memstore.Store        // an exact copy, as new as its last run
	other  *repotest.Bed          // a repository with other keys, into which snapshots are copied
	aged   bool                   // the captures' clock is ahead, so that nothing on disk is young
	whole  map[digest.Digest]bool // records that were found to lead to all units of their snapshot
}

func newWorld(t *testing.T, rt *rapid.T, bed, other *repotest.Bed) *world {
	dir, err := os.MkdirTemp(t.TempDir(), "")
	if err != nil {
		rt.Fatal(err)
	}
	if rapid.Bool().Draw(rt, "unchecked registry") {
		bed.Store.Unchecked()
	}
	now := time.Now().UTC()
	w := &world{t: t, bed: bed, other: other, dir: dir, clock: now, next: now.Add(-1000 * time.Hour), known: map[int64]*captured{}, mirror: memstore.New(), aged: rapid.Bool().Draw(rt, "aged")}
	w.whole = map[digest.Digest]bool{}
	for _, h := range hosts {
		for _, s := range systems {
			for _, k := range treeKeys {
				if err := os.MkdirAll(w.root(site{h, s}, k), 0o755); err != nil {
					rt.Fatal(err)
				}
			}
		}
		if err := os.MkdirAll(w.stateDir(h), 0o700); err != nil {
			rt.Fatal(err)
		}
	}
	return w
}

func (w *world) close() {
	for _, r := range w.runs {
		r.close()
	}
	_ = os.RemoveAll(w.dir)
}

// now is the clock. It goes on by itself, a second at a time.
func (w *world) now() time.Time {
	w.ticks.Lock()
	defer w.ticks.Unlock()
	w.clock = w.clock.Add(time.Second)
	return w.clock
}

func (w *world) root(s site, key string) string {
	return filepath.Join(w.dir, s.host, string(s.system), filepath.Base(key))
}

func (w *world) stateDir(host string) string { return filepath.Join(w.dir, "state-"+host) }

func (w *world) newDir(rt *rapid.T) string {
	w.n++
	d := filepath.Join(w.dir, fmt.Sprint("restored-", w.n))
	if err := os.Mkdir(d, 0o700); err != nil {
		rt.Fatal(err)
	}
	return d
}

func drawSite(rt *rapid.T) site {
	return site{rapid.SampledFrom(hosts).Draw(rt, "host"), rapid.SampledFrom(systems).Draw(rt, "system")}
}

// quiet lets faults be planned that never strike.
type quiet struct{}

func (quiet) Helper()               {}
func (quiet) Cleanup(func())        {}
func (quiet) Errorf(string, ...any) {}

// faulty draws a store: often one of whose calls fails, or at one of which the
// process is killed.
func (w *world) faulty(rt *rapid.T, st store.Store, kill func()) store.Store {
	if rapid.IntRange(0, 2).Draw(rt, "faulty") != 0 {
		return st
	}
	f := faults.Fault{
		Call: rapid.IntRange(1, 60).Draw(rt, "call"),
		Kind: rapid.SampledFrom([]faults.Kind{faults.Before, faults.After, faults.Hang, faults.HangAfter, faults.Duplicate, faults.Short, faults.Corrupt}).Draw(rt, "kind"),
		At:   int64(rapid.IntRange(0, 5000).Draw(rt, "at")),
	}
	if f.Kind == faults.Hang || f.Kind == faults.HangAfter {
		f.Do = kill
	}
	switch f.Kind {
	case faults.Corrupt:
		f.Op = faults.GetBlob // the store itself compares manifests with their digests
	case faults.Short:
		f.Op = rapid.SampledFrom([]faults.Op{faults.PutBlob, faults.GetBlob}).Draw(rt, "op")
	}
	return faults.New(quiet{}, st, f)
}

// as runs something as a host that has just started.
func (w *world) as(rt *rapid.T, host string, do func(context.Context, *repo.Repo) error) error {
	return w.asIn(w.t.Context(), rt, w.bed, host, do)
}

// asIn is as in one of the repositories.
func (w *world) asIn(ctx context.Context, rt *rapid.T, bed *repotest.Bed, host string, do func(context.Context, *repo.Repo) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	r, err := repo.Open(ctx, w.faulty(rt, bed.Store, cancel), bed.Options(host))
	if err != nil {
		return err
	}
	defer func() { _ = r.Close() }()
	return do(ctx, r)
}

// expected are failures that planned faults, and work of others in between,
// cause. Anything else is a bug.
func expected(err error) bool {
	for _, text := range []string{"older state", "different states"} {
		if strings.Contains(err.Error(), text) {
			return false // a false alarm
		}
	}
	for _, e := range []error{
		store.ErrUnreachable, store.ErrNotFound, store.ErrIncomplete, store.ErrTagTaken, dr.ErrOutcomeUnknown, dr.ErrNotFound, dr.ErrHeld, dr.ErrTampered, context.Canceled, repo.ErrParentDamaged,
	} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

func (w *world) fail(rt *rapid.T, err error) {
	if err != nil && !expected(err) {
		rt.Fatalf("%v", err)
	}
}

// observer opens the repository as somebody who remembers and caches nothing.
func (w *world) observer(rt *rapid.T) *repo.Repo { return w.observerOf(rt, w.bed, w.bed.Store) }

// observerOf opens a repository in one registry.
func (w *world) observerOf(rt *rapid.T, bed *repotest.Bed, st store.Store) *repo.Repo {
	o := bed.Options("observer")
	o.StateDir, o.CacheDir, o.Location, o.Host = "", "", "", nil
	r, err := repo.Open(w.t.Context(), st, o)
	if err != nil {
		rt.Fatal(err)
	}
	return r
}

// visible lists what the observer sees, and fails where that is not what the
// model allows (invariants 1, 2, 8 and 11).
func (w *world) visible(rt *rapid.T, r *repo.Repo) []repo.Snapshot {
	snaps, problems, err := r.Snapshots(w.t.Context(), "")
	if err != nil || len(problems) > 0 {
		rt.Fatalf("problems %v, %v", problems, err)
	}
	seen := map[int64]bool{}
	for i := range snaps {
		s := &snaps[i]
		c := w.known[s.Created.UnixNano()]
		if c == nil || c.system != s.System {
			rt.Fatalf("nobody took %s", s.Tag)
		}
		seen[s.Created.UnixNano()] = true
		for _, d := range s.Needs {
			if _, err := w.bed.Store.GetManifest(w.t.Context(), d.String()); err != nil {
				rt.Fatalf("%s needs %s: %v", s.Tag, d, err)
			}
		}
		if err := w.readable(r, s); err != nil {
			rt.Fatalf("%s, at %s: %v", s.Tag, s.Place, err)
		}
	}
	for at, c := range w.known {
		if c.reported != nil && !c.going && !seen[at] {
			rt.Fatalf("%s was reported and is gone", c.reported.Tag)
		}
	}
	return snaps
}

// readable reads every unit that a snapshot leads to, once for each record that
// says where they lie.
func (w *world) readable(r *repo.Repo, s *repo.Snapshot) error {
	if w.whole[s.Digest] {
		return nil
	}
	ctx := w.t.Context()
	rd, err := r.NewReader(ctx, s)
	if err != nil {
		return err
	}
	defer rd.Close()
	for _, key := range treeKeys {
		cat, err := opened(ctx, rd, key)
		if err != nil {
			return err
		}
		var refs []dr.UnitRef
		err = catalog.Merge(ctx, nil, cat, func(_, e *catalog.Entry) error {
			if e.Type != catalog.File {
				return nil
			}
			return cat.Content(ctx, e, func(_ int64, ref catalog.Ref) error {
				if !ref.Hole {
					refs = append(refs, ref.Unit())
				}
				return nil
			})
		})
		if err == nil {
			err = rd.Fetch(ctx, refs, func(int, []byte) error { return nil })
		}
		if err != nil {
			return fmt.Errorf("%s: %w", key, err)
		}
	}
	w.whole[s.Digest] = true
	return nil
}

// check is run after every step.
func (w *world) check(rt *rapid.T) {
	r := w.observer(rt)
	defer func() { _ = r.Close() }()
	w.visible(rt, r)
}

// same fails unless a directory holds exactly what was captured.
func (w *world) same(rt *rapid.T, what string, want treecmp.Tree, dir string) {
	got, err := treecmp.Fingerprint(dir, treecmp.Options{OneMount: true})
	if err != nil {
		rt.Fatal(err)
	}
	if diff := treecmp.Report(treecmp.Compare(want, got, treecmp.Rules{}), 20); diff != "" {
		rt.Fatalf("%s is not what was captured:\n%s", what, diff)
	}
}

// everything restores all that is visible to new places, and reads the rest, at
// the end of a history.
func (w *world) everything(rt *rapid.T) {
	r := w.observer(rt)
	defer func() { _ = r.Close() }()
	for _, s := range w.visible(rt, r) {
		c := w.known[s.Created.UnixNano()]
		for _, key := range slices.Sorted(maps.Keys(c.trees)) {
			dir := filepath.Join(w.newDir(rt), "tree")
			if err := w.lay(w.t.Context(), r, &s, key, dir, nil, w.stateDir(hosts[0])); err != nil {
				rt.Fatalf("restore %s: %v", s.Tag, err)
			}
			w.same(rt, s.Tag+" "+key, c.trees[key], dir)
			_ = os.RemoveAll(filepath.Dir(dir))
		}
	}
	if problems, err := r.Verify(w.t.Context(), nil); err != nil || len(problems) > 0 {
		rt.Fatalf("verify: %v, %v", problems, err)
	}
}

// opened opens one tree of a snapshot.
func opened(ctx context.Context, rd *repo.Reader, key string) (*catalog.Reader, error) {
	root, err := rd.Root(ctx)
	if err != nil {
		return nil, err
	}
	for _, t := range root.Trees {
		if t.Key == key {
			return catalog.Open(ctx, rd, t.Catalog)
		}
	}
	return nil, fmt.Errorf("no tree %s", key)
}

// lay brings dir to the state that a snapshot has of a tree; current is the
// snapshot that is there now, nil if that is not known.
func (w *world) lay(ctx context.Context, r *repo.Repo, s *repo.Snapshot, key, dir string, current *repo.Snapshot, stateDir string) error {
	rd, err := r.NewReader(ctx, s)
	if err != nil {
		return err
	}
	defer rd.Close()
	target, err := opened(ctx, rd, key)
	if err != nil {
		return err
	}
	var now *catalog.Reader
	if current != nil {
		was, err := r.NewReader(ctx, current)
		if err != nil {
			return err
		}
		defer was.Close()
		if now, err = opened(ctx, was, key); err != nil {
			return err
		}
	}
	_, err = tree.Apply(ctx, dir, now, target, rd, tree.ApplyOptions{
		Key: key + "@" + dir, StateDir: stateDir, CutKey: r.CutKey(), UnitID: r.UnitID, NoSync: true,
	})
	return err
}
