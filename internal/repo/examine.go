package repo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"lifeboat/internal/dr"
	"lifeboat/internal/repo/readlog"
	"lifeboat/internal/store"
)

// ExamineOptions say what of a repository is looked at, and how closely.
type ExamineOptions struct {
	// Only chooses the snapshots; nil means all. Records of other kinds are looked
	// at in any case.
	Only func(*Snapshot) bool
	// Scope names what Only chooses, the same each time: a run that reads all of a
	// scope and is cut off is gone on with by the next one. "" is everything.
	Scope string
	// Read: packs and indexes are read, too, all or the subset. nil looks at the
	// structure alone.
	Read *readlog.Subset
	// Now is the clock; nil means time.Now.
	Now func() time.Time
	// Progress is called after each pack that was read, and while catalogs are, never
	// concurrently; may be nil.
	Progress func(VerifyProgress)
	// proven, if set, lets all snapshots be looked at for whether they are complete,
	// not the newest of each system alone. It has the records of snapshots that were
	// found complete before, which they are for good (what says so is named by its
	// digest): those are passed over, and what is found complete is added.
	proven map[digest.Digest]bool
}

// Examination is what Examine found. Its methods read from the repository that
// made it, which must be open.
type Examination struct {
	// Problems name the tag, blob and snapshot concerned.
	Problems []Problem
	// Forgotten are snapshots, by tag, that this host has seen and that are not there,
	// and that it has not forgotten itself: another host has, or the registry hides
	// them. Which it is cannot be told from here (docs/threat-model.md).
	Forgotten []string
	// GivenUp are records, by tag, that cannot be read and that the operator has given
	// up at this host (RepairOptions.DropDamaged). They are no problems any more.
	GivenUp []string
	// Snapshots is how many were looked at.
	Snapshots int
	// Reading says what was read, of what; nil where nothing was to be.
	Reading *Reading

	repo *Repo
	inv  *inventory
	harm *harm
}

// Examine looks at the repository: every record and commit record verifies, the
// pack manifests of every visible snapshot exist and are tagged, their indexes
// open, their packs exist and have the right size, root records and page tables
// can be read, and every unit of the newest snapshot of each system is in one of
// the indexes of the manifests that it lists; with Read, digests, groups and units
// of packs, too, and of a part or all of the other snapshots whether their units
// are in the indexes (docs/format.md, Examining). Nothing is
// written to the registry. Pack manifests that are not whole are remembered:
// later snapshots of this host send again what they held. So is which pack was
// read when, as soon as it was: a run that is cut off goes on from there. The
// error is that of a registry that cannot be asked.
func (r *Repo) Examine(ctx context.Context, o ExamineOptions) (*Examination, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	f := &findings{}
	if err := r.hosts.load(ctx); errors.Is(err, dr.ErrTampered) {
		return r.withoutHosts(ctx, f, err)
	}
	inv, err := r.takeInventory(ctx, f, o.Only)
	if err != nil {
		return nil, err
	}
	x := &Examination{repo: r, inv: inv, harm: newHarm(), Snapshots: len(inv.snaps)}
	if err := r.checkRecords(ctx, inv, f); err != nil {
		return nil, err
	}
	if err := r.tellMoved(ctx, f.list); err != nil {
		return nil, err
	}
	if err := r.tellMisplaced(ctx, f); err != nil {
		return nil, err
	}
	if x.Forgotten, err = r.tellGone(ctx, inv.gone, f); err != nil {
		return nil, err
	}
	c := &structure{repo: r, inv: inv, f: f, harm: x.harm, packs: o.Read == nil || !o.Read.All()}
	if err := inParallel(ctx, inv.needs, c.manifest); err != nil {
		return nil, err
	}
	if o.Read != nil {
		v := &reading{repo: r, inv: inv, f: f, harm: x.harm, opts: o}
		if x.Reading, err = v.run(ctx); err != nil {
			return nil, err
		}
	} else if err := newCompleteness(r, inv, f, x.harm).check(ctx, o.proven); err != nil {
		return nil, err
	}
	r.rememberLost(inv, x.harm)
	if x.GivenUp, err = r.passEnded(f); err != nil {
		return nil, err
	}
	x.Problems = f.list
	return x, nil
}

// withoutHosts is what can be said while host records are missing that this host
// has seen: nothing that is signed can be judged then.
func (r *Repo) withoutHosts(ctx context.Context, f *findings, err error) (*Examination, error) {
	f.add(Problem{Tag: string(ClassHost) + ".*", Err: err})
	problems, err := r.keyProblems(ctx)
	if err != nil {
		return nil, err
	}
	f.list = append(append(f.list, problems...), r.hosts.problems()...)
	for _, c := range []Class{ClassKey, ClassHost} {
		if err := r.checkDense(ctx, c, f); err != nil {
			return nil, err
		}
	}
	return &Examination{repo: r, inv: &inventory{users: map[need][]*Snapshot{}}, harm: newHarm(), Problems: f.list}, nil
}

// Check is Examine of the structure of everything; it returns the problems.
func (r *Repo) Check(ctx context.Context) ([]Problem, error) {
	x, err := r.Examine(ctx, ExamineOptions{})
	if err != nil {
		return nil, fmt.Errorf("check: %w", err)
	}
	return x.Problems, nil
}

// Verify is Examine with everything read; it returns the problems. What was read
// counts as read by this host (docs/adr/0002).
func (r *Repo) Verify(ctx context.Context, progress func(VerifyProgress)) ([]Problem, error) {
	x, err := r.Examine(ctx, ExamineOptions{Read: &readlog.Subset{}, Progress: progress})
	if err != nil {
		return nil, fmt.Errorf("verify: %w", err)
	}
	return x.Problems, nil
}

// findings gathers problems. Safe for concurrent use.
type findings struct {
	mu   sync.Mutex
	list []Problem
}

func (f *findings) add(p Problem) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.list = append(f.list, p)
}

// inventory is what the chosen snapshots need.
type inventory struct {
	snaps []Snapshot
	needs []need
	users map[need][]*Snapshot
	// all says that no snapshot was left out.
	all bool
	// gone are commit tags that this host has seen, as in survey.
	gone []Tag
	// looked holds what was found of each blob: several manifests name the same.
	looked sync.Map
	// unread has the records of snapshots whose description cannot be read.
	unread sync.Map
}

func (r *Repo) takeInventory(ctx context.Context, f *findings, only func(*Snapshot) bool) (*inventory, error) {
	v, err := r.survey(ctx, "")
	if err != nil {
		return nil, fmt.Errorf("list snapshots: %w", err)
	}
	f.list = append(append(f.list, r.hosts.problems()...), v.problems...)
	inv := &inventory{users: map[need][]*Snapshot{}, all: only == nil, gone: v.gone}
	for _, s := range v.found {
		if !s.replaced && (only == nil || only(s)) {
			inv.snaps = append(inv.snaps, *s)
		}
	}
	for i := range inv.snaps {
		if s := &inv.snaps[i]; s.Lacks > 0 {
			f.add(Problem{Tag: s.Tag, Snapshot: s.ID, Err: fmt.Errorf("%d units of it were lost when it was repaired (%s): %w", s.Lacks, s.Place, store.ErrNotFound)})
		}
		for _, n := range inv.snaps[i].needs {
			if inv.users[n] == nil {
				inv.needs = append(inv.needs, n)
			}
			inv.users[n] = append(inv.users[n], &inv.snaps[i])
		}
	}
	return inv, nil
}

// report adds a problem of a pack manifest for each snapshot that needs it.
func (inv *inventory) report(f *findings, n need, blob digest.Digest, err error) {
	for _, s := range inv.users[n] {
		f.add(Problem{Tag: s.Tag, Snapshot: s.ID, Blob: blob.String(), Err: err})
	}
}

// checkRecords looks at the records that are no snapshots, and at tags of pack
// manifests.
func (r *Repo) checkRecords(ctx context.Context, inv *inventory, f *findings) error {
	for _, c := range []Class{ClassEpoch, ClassSwitch, ClassLock} {
		_, problems, err := r.records(ctx, string(c)+".")
		if err != nil {
			return err
		}
		f.list = append(f.list, problems...)
	}
	if err := r.checkMarks(ctx, f); err != nil {
		return err
	}
	problems, err := r.keyProblems(ctx)
	if err != nil {
		return err
	}
	f.list = append(f.list, problems...)
	for _, c := range []Class{ClassKey, ClassHost} {
		if err := r.checkDense(ctx, c, f); err != nil {
			return err
		}
	}
	return r.checkPackTags(ctx, inv, f)
}

// checkPackTags looks at the tags of pack manifests that no chosen snapshot
// needs: each has to name what its own name says.
func (r *Repo) checkPackTags(ctx context.Context, inv *inventory, f *findings) error {
	needed := map[string]bool{}
	for _, n := range inv.needs {
		needed[n.tag()] = true
	}
	names, err := r.st.Tags(ctx, string(ClassPacks)+".")
	if err != nil {
		return err
	}
	names = slices.DeleteFunc(names, func(name string) bool { return needed[name] })
	return inParallel(ctx, names, func(ctx context.Context, name string) error {
		d, err := r.st.ResolveTag(ctx, name)
		switch {
		case errors.Is(err, store.ErrNotFound): // collected meanwhile
			return nil
		case err != nil && !about(err):
			return err
		case err != nil:
			f.add(Problem{Tag: name, Err: err})
		case !isPackTag(name) || (need{Digest: d}).tag() != name:
			f.add(Problem{Tag: name, Err: tampered("the tag names %s", d)})
		}
		return nil
	})
}

func inParallel[T any](ctx context.Context, list []T, do func(context.Context, T) error) error {
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(listParallel)
	for _, v := range list {
		if gctx.Err() != nil {
			break
		}
		g.Go(func() error { return do(gctx, v) })
	}
	return errors.Join(g.Wait(), ctx.Err())
}

// checkRoots is checkSnapshot of all.
func (r *Repo) checkRoots(ctx context.Context, inv *inventory, f *findings) error {
	return inParallel(ctx, inv.snaps, func(ctx context.Context, s Snapshot) error { return r.checkSnapshot(ctx, inv, f, &s) })
}

// checkSnapshot reads the root record and what it refers to directly.
func (r *Repo) checkSnapshot(ctx context.Context, inv *inventory, f *findings, s *Snapshot) error {
	err := r.readRoot(ctx, s)
	if err == nil || (!about(err) && !errors.Is(err, io.ErrUnexpectedEOF)) {
		return err
	}
	inv.unread.Store(s.Digest, true)
	f.add(Problem{Tag: s.Tag, Snapshot: s.ID, Err: err})
	return nil
}

func (r *Repo) readRoot(ctx context.Context, s *Snapshot) error {
	rd, err := r.NewReader(ctx, s)
	if err != nil {
		return err
	}
	defer rd.Close()
	root, err := rd.Root(ctx)
	if err != nil {
		return err
	}
	var refs []dr.UnitRef
	for _, t := range root.Trees {
		refs = append(refs, t.Catalog...)
	}
	for _, im := range root.Images {
		refs = append(refs, im.Record...)
	}
	for _, pf := range root.Files {
		refs = append(refs, pf.Content...)
	}
	return rd.Fetch(ctx, refs, func(int, []byte) error { return nil })
}

// rememberLost notes which pack manifests are not whole, and which are again.
func (r *Repo) rememberLost(inv *inventory, h *harm) {
	was, err := r.state.listLost()
	if err != nil {
		r.log.Warn("local state", "error", err)
		return
	}
	for _, n := range inv.needs {
		lost := h.touches(n.Digest)
		if lost == was[n.Digest] {
			continue
		}
		if err := r.state.setLost(n.Digest, lost); err != nil {
			r.log.Warn("local state", "error", err)
		}
	}
}
