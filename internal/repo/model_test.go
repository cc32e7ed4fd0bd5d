package repo_test

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"lifeboat/internal/dr"
	"lifeboat/internal/repo"
	"lifeboat/internal/repo/repotest"
	"lifeboat/internal/retain"
	"lifeboat/internal/store"
	"lifeboat/internal/store/faults"
)

// TestModel lets two hosts write, forget, compact and collect in any order, with runs
// that stay open over the others' work, kills at any store call, a clock that
// jumps, and a registry that removes unnamed blobs at once. After each step every
// visible snapshot restores in full, every snapshot that was reported and not
// forgotten is visible, and what a policy must not forget is there (invariants
// 1, 2, 8 and 11). rapid prints the seed of a failure.
func TestModel(t *testing.T) {
	t.Parallel()
	first := repotest.NewBed(t)
	for _, name := range modelHosts {
		if _, err := first.Host(name).Enrol(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	rapid.Check(t, func(rt *rapid.T) {
		m := newModel(t, rt, first.Fork())
		defer m.close()
		rt.Repeat(map[string]func(*rapid.T){
			"snapshot": m.snapshot, "snapshot again": m.snapshot, "begin": m.begin, "go on": m.goOn, "commit": m.commit,
			"forget": m.forget, "collect": m.collect, "registry": m.registry, "time": m.time, "": m.check,
		})
	})
}

var (
	modelHosts   = []string{"a", "b"}
	modelSystems = []dr.System{"shop", "blog"}
)

// captured is a snapshot that the model knows of. Its time names it.
type captured struct {
	units    [][]byte
	system   dr.System
	reported *repo.Snapshot // nil while its outcome is unknown
	going    bool           // a forgetting that was begun has it on its list
}

// openRun is a writer that stays open over other steps.
type openRun struct {
	host    string
	repo    *repo.Repo
	w       *repo.Writer
	system  dr.System
	created time.Time
	refs    []dr.UnitRef
	units   [][]byte
}

type model struct {
	t     *testing.T
	bed   *repotest.Bed
	eye   *repo.Repo // reads everything back
	clock clock
	next  time.Time // of the next snapshot; unique
	known map[int64]*captured
	runs  []*openRun
}

func newModel(t *testing.T, rt *rapid.T, b *repotest.Bed) *model {
	if rapid.Bool().Draw(rt, "unchecked") {
		b.Store.Unchecked()
	}
	o := b.Options("observer")
	o.StateDir, o.Location, o.Host = "", "", nil
	eye, err := repo.Open(t.Context(), b.Store, o)
	if err != nil {
		rt.Fatal(err)
	}
	now := time.Now().UTC()
	return &model{t: t, bed: b, eye: eye, clock: clock{now}, next: now.Add(-1000 * time.Hour), known: map[int64]*captured{}}
}

func (m *model) close() {
	for _, r := range m.runs {
		r.w.Close()
		_ = r.repo.Close()
	}
	_ = m.eye.Close()
}

// quiet lets faults be planned that never strike.
type quiet struct{}

func (quiet) Helper()               {}
func (quiet) Cleanup(func())        {}
func (quiet) Errorf(string, ...any) {}

// as runs something as a host that has just started, often with a store call
// that fails or at which it is killed.
func (m *model) as(rt *rapid.T, host string, do func(context.Context, *repo.Repo) error) error {
	ctx, cancel := context.WithCancel(m.t.Context())
	defer cancel()
	var st store.Store = m.bed.Store
	if rapid.IntRange(0, 2).Draw(rt, "faulty") == 0 {
		f := faults.Fault{
			Call: rapid.IntRange(1, 40).Draw(rt, "call"),
			Kind: rapid.SampledFrom([]faults.Kind{faults.Before, faults.After, faults.Hang, faults.HangAfter, faults.Duplicate}).Draw(rt, "kind"),
		}
		if f.Kind == faults.Hang || f.Kind == faults.HangAfter {
			f.Do = cancel
		}
		st = faults.New(quiet{}, st, f)
	}
	r, err := repo.Open(ctx, st, m.bed.Options(host))
	if err != nil {
		return err
	}
	defer func() { _ = r.Close() }()
	return do(ctx, r)
}

// expected are failures that faults and collections under a run's feet cause.
func expected(err error) bool {
	for _, e := range []error{
		store.ErrUnreachable, dr.ErrOutcomeUnknown, context.Canceled, store.ErrIncomplete, repo.ErrParentDamaged, dr.ErrNotFound, dr.ErrHeld, store.ErrNotFound, store.ErrTagTaken,
	} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

func (m *model) fail(rt *rapid.T, err error) {
	if err != nil && !expected(err) {
		rt.Fatalf("%v", err)
	}
}

// draw takes units from a small universe, so that snapshots share them.
func (m *model) draw(rt *rapid.T) (out [][]byte) {
	for _, seed := range rapid.SliceOfN(rapid.Uint64Range(0, 30), 1, 8).Draw(rt, "units") {
		out = append(out, noise(seed, 300+int(seed)*10))
	}
	return out
}

func (m *model) parent(ctx context.Context, rt *rapid.T, r *repo.Repo, s dr.System) (*repo.Snapshot, error) {
	if rapid.IntRange(0, 3).Draw(rt, "parent") == 0 {
		return nil, nil
	}
	p, err := r.Find(ctx, s, "")
	if errors.Is(err, dr.ErrNotFound) {
		return nil, nil
	}
	return p, err
}

func (m *model) created() time.Time {
	m.next = m.next.Add(17 * time.Minute)
	return m.next
}

// write begins a run and puts units in one or two pack manifests.
func (m *model) write(ctx context.Context, rt *rapid.T, r *repo.Repo, run *openRun) error {
	parent, err := m.parent(ctx, rt, r, run.system)
	if err != nil {
		return err
	}
	if run.w, err = r.NewWriter(ctx, repo.WriterOptions{System: run.system, Parent: parent, Exact: rapid.Bool().Draw(rt, "exact")}); err != nil {
		return err
	}
	run.w.SetLimits(1<<40, 1<<30, rapid.IntRange(2, 6).Draw(rt, "most manifests"), time.Hour)
	return m.put(ctx, rt, run)
}

func (m *model) put(ctx context.Context, rt *rapid.T, run *openRun) error {
	units := m.draw(rt)
	refs, err := putAll(ctx, run.w, units)
	if err != nil {
		return err
	}
	run.refs, run.units = append(run.refs, refs...), append(run.units, units...)
	if rapid.Bool().Draw(rt, "flush") {
		return run.w.Flush(ctx)
	}
	return nil
}

func (m *model) finish(ctx context.Context, run *openRun) error {
	c := &captured{units: run.units, system: run.system}
	m.known[run.created.UnixNano()] = c
	root := rootOf(run.refs, "main")
	root.Created = run.created
	s, err := run.w.Commit(ctx, root, repo.CommitInfo{})
	if err == nil {
		c.reported = s
	}
	return err
}

func (m *model) snapshot(rt *rapid.T) {
	run := &openRun{system: rapid.SampledFrom(modelSystems).Draw(rt, "system"), created: m.created()}
	m.fail(rt, m.as(rt, rapid.SampledFrom(modelHosts).Draw(rt, "host"), func(ctx context.Context, r *repo.Repo) error {
		err := m.write(ctx, rt, r, run)
		if run.w != nil {
			defer run.w.Close()
		}
		if err != nil {
			return err
		}
		return m.finish(ctx, run)
	}))
}

func (m *model) begin(rt *rapid.T) {
	if len(m.runs) == 2 {
		return
	}
	run := &openRun{host: rapid.SampledFrom(modelHosts).Draw(rt, "host"), system: rapid.SampledFrom(modelSystems).Draw(rt, "system"), created: m.created()}
	r, err := repo.Open(m.t.Context(), m.bed.Store, m.bed.Options(run.host))
	if err != nil {
		rt.Fatal(err)
	}
	run.repo = r
	if err := m.write(m.t.Context(), rt, r, run); err != nil {
		m.fail(rt, err)
		if run.w != nil {
			run.w.Close()
		}
		_ = r.Close()
		return
	}
	m.runs = append(m.runs, run)
}

func (m *model) goOn(rt *rapid.T) {
	if len(m.runs) == 0 {
		return
	}
	i := rapid.IntRange(0, len(m.runs)-1).Draw(rt, "run")
	if err := m.put(m.t.Context(), rt, m.runs[i]); err != nil {
		m.fail(rt, err)
		m.end(i)
	}
}

func (m *model) commit(rt *rapid.T) {
	if len(m.runs) == 0 {
		return
	}
	i := rapid.IntRange(0, len(m.runs)-1).Draw(rt, "run")
	m.fail(rt, m.finish(m.t.Context(), m.runs[i]))
	m.end(i)
}

func (m *model) end(i int) {
	m.runs[i].w.Close()
	_ = m.runs[i].repo.Close()
	m.runs = slices.Delete(m.runs, i, i+1)
}

func (m *model) forget(rt *rapid.T) {
	policy := retain.Policy{Last: rapid.IntRange(0, 3).Draw(rt, "last"), Hourly: rapid.IntRange(1, 4).Draw(rt, "hourly")}
	system := rapid.SampledFrom(modelSystems).Draw(rt, "system")
	m.fail(rt, m.as(rt, rapid.SampledFrom(modelHosts).Draw(rt, "host"), func(ctx context.Context, r *repo.Repo) error {
		plan, err := r.PlanForget(ctx, system, policy)
		if err != nil {
			return err
		}
		for i, row := range plan.Rows {
			if i == len(plan.Rows)-1 && !row.Keep {
				rt.Fatalf("the highest number goes: %s", row.Tag)
			}
			if !row.Keep {
				m.known[row.Created.UnixNano()].going = true
			}
		}
		return r.Forget(ctx, plan)
	}))
}

func (m *model) collect(rt *rapid.T) {
	grace := rapid.SampledFrom([]time.Duration{0, 0, repo.DefaultGrace}).Draw(rt, "grace")
	compact := rapid.IntRange(0, 2).Draw(rt, "compact") > 0
	unused := rapid.Float64Range(0, 1).Draw(rt, "unused")
	m.fail(rt, m.as(rt, rapid.SampledFrom(modelHosts).Draw(rt, "host"), func(ctx context.Context, r *repo.Repo) error {
		o := repo.CollectOptions{Grace: grace, Now: m.clock.read}
		if compact {
			eager := repo.CompactOptions{MaxUnused: unused}.Eager()
			o.Compact = &eager
		}
		_, err := r.ListsAsCatalogs().Collect(ctx, o)
		return err
	}))
}

func (m *model) registry(*rapid.T) { m.bed.Store.Collect() }

func (m *model) time(rt *rapid.T) {
	m.clock.now = m.clock.now.Add(time.Duration(rapid.IntRange(-5, 80).Draw(rt, "hours")) * time.Hour)
}

// check reads everything back.
func (m *model) check(rt *rapid.T) {
	r := m.eye
	snaps, problems, err := r.Snapshots(m.t.Context(), "")
	if err != nil || len(problems) > 0 {
		rt.Fatalf("problems %v, %v", problems, err)
	}
	visible := map[int64]bool{}
	for i := range snaps {
		s := &snaps[i]
		c := m.known[s.Created.UnixNano()]
		if c == nil || c.system != s.System {
			rt.Fatalf("nobody took %s", s.Tag)
		}
		visible[s.Created.UnixNano()] = true
		got, err := readAll(m.t.Context(), r, s)
		if err != nil {
			rt.Fatalf("restore %s: %v", s.Tag, err)
		}
		if !slices.EqualFunc(got, c.units, bytes.Equal) {
			rt.Fatalf("%s is not what was captured", s.Tag)
		}
		for _, d := range s.Needs { // the observer's cache would hide that it is gone
			if _, err := m.bed.Store.GetManifest(m.t.Context(), d.String()); err != nil {
				rt.Fatalf("%s needs %s: %v", s.Tag, d, err)
			}
		}
	}
	for at, c := range m.known {
		if c.reported != nil && !c.going && !visible[at] {
			rt.Fatalf("%s was reported and is gone", c.reported.Tag)
		}
	}
}
