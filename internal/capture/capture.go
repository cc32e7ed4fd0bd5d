// Package capture turns a running system into a snapshot: discover, images,
// pre-copy while it runs, freeze, secure, thaw, finish, commit
// (ARCHITECTURE.md, The life of a snapshot).
//
// Run is the entry point. The package neither decides which site may speak for
// a system (fence, through the ledger) nor knows how packs are made (repo).
package capture

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"lifeboat/internal/archive"
	"lifeboat/internal/dr"
	"lifeboat/internal/engine"
	"lifeboat/internal/fence"
	"lifeboat/internal/freeze"
	"lifeboat/internal/ledger"
	"lifeboat/internal/repo"
	"lifeboat/internal/site"
	"lifeboat/internal/store"
)

// Engine is what capture needs of the container engine.
type Engine interface {
	HostFS(ctx context.Context) (engine.HostFS, error)
	Discover(ctx context.Context, sel engine.Selector) (*engine.System, error)
	SaveImage(ctx context.Context, id string) (io.ReadCloser, error)
	// ReadArchive and Changes serve where the host's files cannot be reached.
	archive.Source
	// Pause, Unpause and Paused serve where no freezer cgroup can be reached.
	Pause(ctx context.Context, id string) error
	Unpause(ctx context.Context, id string) error
	Paused(ctx context.Context, id string) (bool, error)
	// Host is the engine's address, for the guardian.
	Host() string
}

// Deps are the parts that a run works with.
type Deps struct {
	Engine Engine
	Repo   *repo.Repo
	Ledger *ledger.Ledger
	State  *site.State
	Log    *slog.Logger
}

// Options say what to capture and how.
type Options struct {
	System   dr.System
	Site     dr.Site
	Selector engine.Selector
	// Kind is dr.KindCurrent unless set.
	Kind dr.Kind
	// OnlyIfNew leaves the repository as it is where every tree equals the one
	// of the snapshot that the run builds on (divergent snapshots, ADR 5).
	OnlyIfNew bool
	// Known are root records whose trees count as kept with OnlyIfNew, beside
	// the parent's.
	Known []*dr.Root
	// Extra are trees of the system that no container mounts at the moment.
	Extra []ExtraTree
	// FreezeMax bounds the freeze; 0 means freeze.DefaultFreezeMax.
	FreezeMax time.Duration
	// SecureBytes is how much memory may hold bytes secured while frozen; 0
	// means DefaultSecureBytes.
	SecureBytes int64
	// Adopt claims the next epoch where the holder is this very engine and site
	// under an identity that was lost (ErrReinstalled).
	Adopt bool
	// WasRunning are containers, by name, that were stopped for this capture and
	// ran before: they are recorded as running, with the restart policy given.
	WasRunning map[string]engine.RestartPolicy
	// Exclude is what is not captured.
	Exclude []Exclude
	// Degraded reads the trees through the engine's archive API, which keeps less
	// of them (ADR 8); the host's files are not touched.
	Degraded bool
	// Progress is told of the phases; may be nil.
	Progress Progress
	// Hook is called at named points of the run in tests (kill matrix); may be nil.
	Hook func(point string)
}

// Exclude leaves a tree out, or a path inside it where Path is not empty
// (relative, without leading slash).
type Exclude struct {
	Key  string // as dr.Tree.Key, of this site
	Path string
}

// ExtraTree is a volume or host path that no container mounts.
type ExtraTree struct {
	Key    string
	Kind   dr.TreeKind
	Path   string // in the engine's mount namespace
	Volume *dr.Volume
	Bind   *dr.Bind
}

// DefaultSecureBytes is Options.SecureBytes where none is given.
const DefaultSecureBytes = 40 << 20

// Progress is told how far a run is. Calls may come from several goroutines.
// No call comes while anything is frozen.
type Progress interface {
	// Phase begins: discover, images, pre-copy, freeze, finish, commit.
	Phase(name string)
	// Expect tells about how many bytes the phase will scan.
	Expect(total int64)
	// Bytes adds to what was scanned in this phase.
	Bytes(n int64)
}

// Result is what a run did.
type Result struct {
	// Snapshot is what was committed, or what the system equals where nothing was.
	Snapshot *repo.Snapshot
	Root     *dr.Root
	// Missing are objects that the snapshot before has and this one has not.
	Missing []string
	// HalfRestored are directories into which a restore was not at its end.
	HalfRestored []HalfRestored
	// Committed is false where OnlyIfNew found nothing new.
	Committed    bool
	Freeze       freeze.Report
	BytesScanned int64
	BytesNew     int64
	BytesSent    int64
	Elapsed      time.Duration
}

// errChanged: containers came, went or restarted while the run prepared.
var errChanged = errors.New("the system's containers changed while it was prepared")

// attempts is how often a run begins anew after errChanged.
const attempts = 3

// Run takes a snapshot. The caller holds the system's lock.
//
// Errors wrap dr.ErrFenced (another site holds the epoch), dr.ErrNotFound (no
// such containers), dr.ErrHeld, freeze.ErrFreezeMax, freeze.ErrFreezeBroken.
// After any error no snapshot is visible and nothing is frozen; what was sent
// is used by the next run.
func Run(ctx context.Context, d Deps, o Options) (*Result, error) {
	if o.Kind == "" {
		o.Kind = dr.KindCurrent
	}
	if o.SecureBytes == 0 {
		o.SecureBytes = DefaultSecureBytes
	}
	if o.Progress == nil {
		o.Progress = silent{}
	}
	if o.Hook == nil {
		o.Hook = func(string) {}
	}
	began := time.Now()
	sysDir, err := d.State.SystemDir(o.System)
	if err != nil {
		return nil, err
	}
	if marked, err := d.State.Marked(o.System); err != nil {
		return nil, err
	} else if len(marked) > 0 {
		return nil, &site.HalfWrittenError{System: o.System, Trees: marked}
	}
	var last error
	for range attempts {
		r := &run{deps: d, opts: o, sysDir: sysDir}
		r.access = &files{run: r}
		if o.Degraded {
			r.access = &archives{run: r}
		}
		res, err := r.do(ctx)
		r.close()
		if err == nil {
			res.Elapsed = time.Since(began)
			return res, nil
		}
		if !errors.Is(err, errChanged) || ctx.Err() != nil {
			return nil, err
		}
		last = err
	}
	return nil, fmt.Errorf("snapshot of system %s given up after %d tries: %w", o.System, attempts, last)
}

// run is one attempt.
type run struct {
	deps    Deps
	opts    Options
	sysDir  string
	claims  []fence.Claim
	parent  *repo.Snapshot
	preader *repo.Reader
	proot   *dr.Root
	hurt    bool // the parent is not whole in the registry
	system  *engine.System
	bringup *site.Bringup
	writer  *repo.Writer
	access  access
	trees   []*captured
	images  []dr.Image
	files   []dr.ProjectFile
	frozen  freeze.Report
	missing []string
	half    []HalfRestored
}

func (r *run) close() {
	for _, t := range r.trees {
		t.capture.Close()
	}
	if r.writer != nil {
		r.writer.Close()
	}
	if r.preader != nil {
		r.preader.Close()
	}
}

func (r *run) do(ctx context.Context) (*Result, error) {
	// The registry is asked while the engine is.
	var registry errgroup.Group
	registry.Go(func() error { return r.newestParent(ctx) })
	err := r.discover(ctx)
	if rerr := registry.Wait(); err == nil {
		err = rerr
	}
	if err == nil {
		err = r.resolveParent(ctx)
	}
	if err != nil {
		return nil, err
	}
	r.writer, err = r.deps.Repo.NewWriter(ctx, repo.WriterOptions{System: r.opts.System, Parent: r.parent})
	if errors.Is(err, repo.ErrParentDamaged) {
		// What is lost in the registry is in the live system still.
		r.deps.Log.Warn("the parent snapshot is damaged; what is lost of it is read and stored again", "parent", r.parent.ID.Short(), "error", err)
		r.hurt = true
		r.writer, err = r.deps.Repo.NewWriter(ctx, repo.WriterOptions{System: r.opts.System})
	}
	if err != nil {
		return nil, err
	}
	r.opts.Hook("writer")
	r.opts.Progress.Phase("images")
	if err := r.captureImages(ctx); err != nil {
		return nil, err
	}
	r.opts.Hook("images")
	r.opts.Progress.Phase("pre-copy")
	if err := r.precopy(ctx); err != nil {
		return nil, err
	}
	r.opts.Hook("pre-copied")
	if err := r.freezeAndSecure(ctx); err != nil {
		return nil, err
	}
	r.opts.Hook("thawed")
	r.opts.Progress.Phase("finish")
	root, err := r.finish(ctx)
	if err != nil {
		return nil, err
	}
	r.opts.Hook("finished")
	return r.commit(ctx, root)
}

// discover finds the system and refuses what must not be frozen.
func (r *run) discover(ctx context.Context) error {
	r.opts.Progress.Phase("discover")
	sys, err := r.look(ctx)
	if err != nil {
		return err
	}
	if err := Refused(sys.Coverage); err != nil {
		return err
	}
	r.system = sys
	r.bringup, err = r.deps.State.Bringup(r.opts.System)
	return err
}

// look describes the system as it is now, with the extra trees.
func (r *run) look(ctx context.Context) (*engine.System, error) {
	sys := &engine.System{}
	r.opts.Selector.Archive = r.opts.Degraded
	if r.opts.Selector.Project != "" || len(r.opts.Selector.Containers) > 0 {
		sel := r.opts.Selector
		if r.system != nil { // a moment ago
			sel.Host = &r.system.HostFS
		}
		var err error
		if sys, err = r.deps.Engine.Discover(ctx, sel); err != nil {
			return nil, err
		}
	} else {
		var err error
		if sys.HostFS, err = r.deps.Engine.HostFS(ctx); err != nil {
			return nil, err
		}
		sys.Engine = sys.HostFS.Info()
	}
	for _, x := range r.opts.Extra {
		if x.Volume != nil {
			v := *x.Volume
			v.Tree = x.Key
			sys.Volumes = append(sys.Volumes, engine.Volume{Volume: v, Path: x.Path})
		}
		if x.Bind != nil {
			m := *x.Bind
			m.Tree = x.Key
			sys.Binds = append(sys.Binds, engine.Bind{Bind: m})
		}
	}
	return sys, nil
}

// Refused returns an error that names what must not be frozen, nil if nothing
// is refused.
func Refused(coverage []dr.CoverageItem) error {
	var errs []error
	for _, c := range coverage {
		if c.Refused {
			errs = append(errs, fmt.Errorf("%s: %s", c.Object, c.Reason))
		}
	}
	if len(errs) == 0 {
		return nil
	}
	return fmt.Errorf("the system holds what Lifeboat itself depends on and is not frozen: %w; take it out of the system", errors.Join(errs...))
}

// newestParent reads who holds the epoch, and takes the newest snapshot as the one
// to build on where that is the right one in any case.
func (r *run) newestParent(ctx context.Context) error {
	claims, err := r.deps.Ledger.Claims(ctx, r.opts.System)
	if err != nil {
		return err
	}
	r.claims = claims
	if r.opts.Kind != dr.KindCurrent || r.held() != nil {
		return nil
	}
	// The newest are read first, so this costs the same however many there are.
	r.parent, err = r.deps.Repo.Find(ctx, r.opts.System, "latest")
	if errors.Is(err, dr.ErrNotFound) || errors.Is(err, dr.ErrTampered) {
		r.parent = nil
		return nil
	}
	if err != nil {
		return err
	}
	return r.openParent(ctx)
}

// held says why this host may not write, nil if it may.
func (r *run) held() error {
	return fence.CheckWrite(r.claims, r.opts.System, r.deps.Repo.HostID())
}

// resolveParent checks the epoch (invariant 6) and finds the snapshot to build on,
// if newestParent has not.
func (r *run) resolveParent(ctx context.Context) error {
	if r.parent != nil {
		return nil
	}
	if err := r.searchParent(ctx, r.held()); err != nil || r.parent == nil {
		return err
	}
	return r.openParent(ctx)
}

// openParent reads the description of the parent. Where that is damaged or gone
// the new snapshot is made without it.
func (r *run) openParent(ctx context.Context) (err error) {
	if r.preader, err = r.deps.Repo.NewReader(ctx, r.parent); err == nil {
		r.proot, err = r.preader.Root(ctx)
	}
	if err == nil {
		return nil
	}
	if ctx.Err() != nil || !errors.Is(err, dr.ErrTampered) && !errors.Is(err, store.ErrNotFound) && !errors.Is(err, store.ErrDigestMismatch) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("parent snapshot %s: %w", r.parent.ID.Short(), err)
	}
	r.deps.Log.Warn("the description of the parent snapshot is damaged; the system is described anew", "parent", r.parent.ID.Short(), "error", err)
	r.hurt = true
	if r.preader != nil {
		r.preader.Close()
		r.preader = nil
	}
	return nil
}

// searchParent looks through all snapshots of the system. held says why this host
// may not write, nil if it may.
func (r *run) searchParent(ctx context.Context, held error) error {
	snaps, problems, err := r.deps.Repo.Snapshots(ctx, r.opts.System)
	if err != nil {
		return err
	}
	for _, p := range problems {
		r.deps.Log.Warn("a tag of the repository does not verify", "problem", p.String())
	}
	if r.opts.Kind == dr.KindCurrent {
		if held != nil {
			if err := r.reinstalled(ctx, snaps, held); err != nil {
				return err
			}
		}
		if id, ok := fence.Head(r.claims, Snaps(snaps)); ok {
			r.parent = byID(snaps, id)
		}
		return nil
	}
	// What this host wrote last is nearest to what it holds now.
	for i := range snaps {
		if snaps[i].Host == r.deps.Repo.HostID() {
			r.parent = &snaps[i]
		}
	}
	return nil
}

// Snaps gives package fence what it needs to know of snapshots.
func Snaps(snaps []repo.Snapshot) []fence.Snap {
	out := make([]fence.Snap, len(snaps))
	for i, s := range snaps {
		out[i] = fence.Snap{ID: s.ID, Number: s.Number, Epoch: s.Epoch, Host: s.Host, Kind: s.Kind}
	}
	return out
}

func byID(snaps []repo.Snapshot, id dr.SnapshotID) *repo.Snapshot {
	for i := range snaps {
		if snaps[i].ID == id {
			return &snaps[i]
		}
	}
	return nil
}

// commit makes the snapshot visible, claiming epoch 1 for a system that nobody
// has claimed yet.
func (r *run) commit(ctx context.Context, root *dr.Root) (*Result, error) {
	res := &Result{Root: root, Freeze: r.frozen, Missing: r.missing, HalfRestored: r.half}
	for _, t := range r.trees {
		res.BytesScanned += t.result.Bytes
	}
	if r.opts.OnlyIfNew && r.nothingNew(root) {
		res.Snapshot = r.parent
		return res, nil
	}
	r.opts.Progress.Phase("commit")
	if len(r.claims) == 0 && r.opts.Kind == dr.KindCurrent {
		claim, err := r.deps.Ledger.Claim(ctx, nil, fence.Claim{System: r.opts.System, Site: r.opts.Site, Reason: fence.ReasonProtect})
		if err != nil {
			return nil, err
		}
		r.claims = []fence.Claim{claim}
		r.opts.Hook("claimed")
	}
	if r.opts.Kind == dr.KindCurrent {
		// The run may have been long; somebody may have claimed meanwhile.
		now, err := r.deps.Ledger.Claims(ctx, r.opts.System)
		if err != nil {
			return nil, err
		}
		if err := fence.CheckWrite(now, r.opts.System, r.deps.Repo.HostID()); err != nil {
			return nil, err
		}
		r.claims = now
	}
	root.Epoch = r.epoch()
	snap, err := r.writer.Commit(ctx, root, repo.CommitInfo{FreezeMicros: r.frozen.Frozen().Microseconds(), BytesTotal: res.BytesScanned})
	if err != nil {
		return nil, err
	}
	r.opts.Hook("committed")
	for _, t := range r.trees {
		if err := t.capture.CommitCache(); err != nil {
			// Only speed is lost: the next run reads everything.
			r.deps.Log.Warn("stat cache not written", "tree", t.key, "error", err)
		}
	}
	st := r.writer.Stats()
	res.Snapshot, res.Committed, res.BytesNew, res.BytesSent = snap, true, st.BytesNew, st.BytesSent
	return res, nil
}

// epoch is the one that the snapshot is written under: the newest for a current
// one, the last of this host for a divergent one.
func (r *run) epoch() dr.Epoch {
	var own dr.Epoch
	for _, c := range r.claims {
		if c.Host == r.deps.Repo.HostID() || r.opts.Kind == dr.KindCurrent {
			own = c.Epoch
		}
	}
	return own
}

// nothingNew reports whether every tree equals that of the parent or of another
// known root.
func (r *run) nothingNew(root *dr.Root) bool {
	type treeHash struct {
		key  string
		hash dr.UnitID
	}
	known := map[treeHash]bool{}
	roots := r.opts.Known
	if r.proot != nil && !r.hurt { // what is lost of it is kept by nothing else
		roots = append(slices.Clone(roots), r.proot)
	}
	for _, k := range roots {
		for _, t := range k.Trees {
			known[treeHash{t.Key, t.Hash}] = true
		}
	}
	return !slices.ContainsFunc(root.Trees, func(t dr.Tree) bool { return !known[treeHash{t.Key, t.Hash}] })
}

type silent struct{}

func (silent) Phase(string) {}
func (silent) Expect(int64) {}
func (silent) Bytes(int64)  {}
