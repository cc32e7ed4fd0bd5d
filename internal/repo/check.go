package repo

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"lifeboat/internal/dr"
	"lifeboat/internal/pack"
	"lifeboat/internal/repo/idxcache"
	"lifeboat/internal/store"
)

// findings gathers problems. Safe for concurrent use.
type findings struct {
	mu   sync.Mutex
	list []Problem
	bad  map[digest.Digest]bool // pack manifests that are not whole
}

func (f *findings) add(p Problem) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.list = append(f.list, p)
}

func (f *findings) broken(n need) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.bad[n.Digest] = true
}

// inventory is what the visible snapshots need.
type inventory struct {
	snaps []Snapshot
	needs []need
	users map[need][]*Snapshot
	// looked holds what was found of each blob: several manifests name the same.
	looked sync.Map
}

func (r *Repo) takeInventory(ctx context.Context, f *findings) (*inventory, error) {
	snaps, problems, err := r.Snapshots(ctx, "")
	if err != nil {
		return nil, err
	}
	f.list = append(append(f.list, r.hosts.problems()...), problems...)
	inv := &inventory{snaps: snaps, users: map[need][]*Snapshot{}}
	for i := range inv.snaps {
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
	f.broken(n)
	for _, s := range inv.users[n] {
		f.add(Problem{Tag: s.Tag, Snapshot: s.ID, Blob: blob.String(), Err: err})
	}
}

// Check looks at the structure of the repository without reading the data:
// every record and commit record verifies, the pack manifests of every visible
// snapshot exist and are tagged, their indexes open, their packs exist and have
// the right size, root records and page tables can be read. A problem names the
// tag, blob and snapshot concerned. Pack manifests that are not whole are
// remembered: later snapshots of this host send again what they held. The error
// is that of a registry that cannot be asked.
func (r *Repo) Check(ctx context.Context) ([]Problem, error) {
	f := &findings{bad: map[digest.Digest]bool{}}
	inv, err := r.takeInventory(ctx, f)
	if err != nil {
		return nil, fmt.Errorf("check: %w", err)
	}
	for _, c := range []Class{ClassEpoch, ClassSwitch} {
		_, problems, err := r.records(ctx, string(c)+".")
		if err != nil {
			return nil, fmt.Errorf("check: %w", err)
		}
		f.list = append(f.list, problems...)
	}
	err = inParallel(ctx, inv.needs, func(ctx context.Context, n need) error { return r.checkManifest(ctx, inv, f, n) })
	if err == nil {
		err = inParallel(ctx, inv.snaps, func(ctx context.Context, s Snapshot) error { return r.checkSnapshot(ctx, f, &s) })
	}
	if err != nil {
		return nil, fmt.Errorf("check: %w", err)
	}
	r.rememberLost(inv, f)
	return f.list, nil
}

func inParallel[T any](ctx context.Context, list []T, do func(context.Context, T) error) error {
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(listParallel)
	for _, v := range list {
		g.Go(func() error { return do(gctx, v) })
	}
	return g.Wait()
}

// checkManifest checks one pack manifest and that its packs are there.
func (r *Repo) checkManifest(ctx context.Context, inv *inventory, f *findings, n need) error {
	d, err := r.st.ResolveTag(ctx, n.tag())
	switch {
	case err == nil && d != n.Digest:
		f.add(Problem{Tag: n.tag(), Blob: n.Digest.String(), Err: tampered("the tag names %s", d)})
	case errors.Is(err, store.ErrNotFound):
		f.add(Problem{Tag: n.tag(), Blob: n.Digest.String(), Err: fmt.Errorf("the pack manifest has no tag, so a collector may delete it: %w", err)})
	case err != nil:
		return err
	}
	m, err := r.st.GetManifest(ctx, n.Digest.String())
	var pm *packManifest
	if err == nil {
		pm, err = decodePackManifest(m.Body)
	}
	if err != nil {
		return concerns(inv, f, n, n.Digest, err)
	}
	for _, b := range append([]blob{pm.index}, pm.packs...) {
		if err := r.checkBlob(ctx, inv, b); err != nil {
			if err := concerns(inv, f, n, b.Digest, err); err != nil {
				return err
			}
		}
	}
	ix, err := r.idx.get(ctx, n)
	if err != nil {
		return concerns(inv, f, n, n.Digest, err)
	}
	r.idx.put(ix)
	return nil
}

// concerns reports an error that speaks of one stored thing, and returns others.
func concerns(inv *inventory, f *findings, n need, blob digest.Digest, err error) error {
	if !about(err) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return err
	}
	inv.report(f, n, blob, err)
	return nil
}

// checkBlob looks at each blob once.
func (r *Repo) checkBlob(ctx context.Context, inv *inventory, b blob) error {
	if found, ok := inv.looked.Load(b); ok {
		err, _ := found.(error)
		return err
	}
	err := r.lookAtBlob(ctx, b)
	inv.looked.Store(b, err)
	return err
}

// lookAtBlob asks for the last byte: a blob that was cut off has none there.
func (r *Repo) lookAtBlob(ctx context.Context, b blob) error {
	ok, err := r.st.HasBlob(ctx, b.Digest)
	if err == nil && !ok {
		err = store.ErrNotFound
	}
	if err != nil {
		return err
	}
	src, err := r.st.GetBlob(ctx, b.Digest, b.Size, b.Size-1, 1)
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, src)
	return errors.Join(err, src.Close())
}

// checkSnapshot reads the root record and what it refers to directly.
func (r *Repo) checkSnapshot(ctx context.Context, f *findings, s *Snapshot) error {
	err := r.readRoot(ctx, s)
	if err == nil || (!about(err) && !errors.Is(err, io.ErrUnexpectedEOF)) {
		return err
	}
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
func (r *Repo) rememberLost(inv *inventory, f *findings) {
	was, err := r.state.listLost()
	if err != nil {
		r.log.Warn("local state", "error", err)
		return
	}
	for _, n := range inv.needs {
		if f.bad[n.Digest] == was[n.Digest] {
			continue
		}
		if err := r.state.setLost(n.Digest, f.bad[n.Digest]); err != nil {
			r.log.Warn("local state", "error", err)
		}
	}
}

// VerifyProgress is how far Verify is.
type VerifyProgress struct {
	// Bytes of BytesTotal were read, Packs of PacksTotal are done.
	Bytes, BytesTotal int64
	Packs, PacksTotal int
}

// Verify reads and authenticates everything that the visible snapshots need:
// the digest of every pack, every group, every unit. progress is called after
// each pack, never concurrently, and may be nil. What was read counts as read
// by this host (docs/adr/0002). Problems and errors are as for Check.
func (r *Repo) Verify(ctx context.Context, progress func(VerifyProgress)) ([]Problem, error) {
	f := &findings{bad: map[digest.Digest]bool{}}
	inv, err := r.takeInventory(ctx, f)
	if err != nil {
		return nil, fmt.Errorf("verify: %w", err)
	}
	v := &verification{repo: r, inv: inv, f: f, tell: progress}
	defer v.close()
	if err := v.open(ctx); err != nil {
		return nil, fmt.Errorf("verify: %w", err)
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(fetchParallel)
	for _, job := range v.jobs {
		g.Go(func() error { return v.pack(gctx, job) })
	}
	if err := g.Wait(); err != nil {
		return nil, fmt.Errorf("verify: %w", err)
	}
	if err := inParallel(ctx, inv.snaps, func(ctx context.Context, s Snapshot) error { return r.checkSnapshot(ctx, f, &s) }); err != nil {
		return nil, fmt.Errorf("verify: %w", err)
	}
	r.rememberLost(inv, f)
	return f.list, nil
}

// verification is one run of Verify.
type verification struct {
	repo *Repo
	inv  *inventory
	f    *findings
	tell func(VerifyProgress)
	ixs  []*index
	jobs []*packJob

	mu   sync.Mutex
	done VerifyProgress
}

// packJob is one pack to read and the manifests that name it.
type packJob struct {
	p    idxcache.Pack
	uses []packUse
}

type packUse struct {
	ix *index
	p  idxcache.Pack
}

// open opens all indexes and lists the packs.
func (v *verification) open(ctx context.Context) error {
	byDigest := map[[sha256.Size]byte]*packJob{}
	for _, n := range v.inv.needs {
		ix, err := v.repo.idx.get(ctx, n)
		if err != nil {
			if err := concerns(v.inv, v.f, n, n.Digest, err); err != nil {
				return err
			}
			continue
		}
		v.ixs = append(v.ixs, ix)
		for i := range uint32(ix.Packs()) {
			p, err := ix.Pack(i)
			if err != nil {
				return err
			}
			job := byDigest[p.Digest]
			if job == nil {
				job = &packJob{p: p}
				byDigest[p.Digest] = job
				v.jobs = append(v.jobs, job)
				v.done.BytesTotal += p.Size
			}
			job.uses = append(job.uses, packUse{ix, p})
		}
	}
	v.done.PacksTotal = len(v.jobs)
	return nil
}

func (v *verification) close() {
	for _, ix := range v.ixs {
		if err := v.repo.saveRead(ix); err != nil {
			v.repo.log.Warn("what was read is not remembered", "error", err)
		}
		v.repo.idx.put(ix)
	}
}

// pack reads a pack once, and again for each manifest whose index speaks of it
// differently than the one that it was compared with.
func (v *verification) pack(ctx context.Context, job *packJob) error {
	var good *packUse
	for i := range job.uses {
		u := &job.uses[i]
		same := false
		if good != nil {
			var err error
			if same, err = sameGroups(*good, *u); err != nil {
				return err
			}
		}
		if same {
			for g := range u.p.Groups {
				u.ix.markRead(u.p.FirstGroup + g)
			}
			continue
		}
		err := v.read(ctx, *u)
		if err == nil {
			good = u
			continue
		}
		if err := concerns(v.inv, v.f, u.ix.need, digestOf(u.p.Digest), err); err != nil {
			return err
		}
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.done.Packs++
	v.done.Bytes += job.p.Size
	if v.tell != nil {
		v.tell(v.done)
	}
	return nil
}

// sameGroups reports whether two indexes say the same of a pack.
func sameGroups(a, b packUse) (bool, error) {
	if a.p.Size != b.p.Size || a.p.Header != b.p.Header || a.p.Groups != b.p.Groups {
		return false, nil
	}
	for i := range a.p.Groups {
		ga, err := a.ix.Group(a.p.FirstGroup + i)
		if err != nil {
			return false, err
		}
		gb, err := b.ix.Group(b.p.FirstGroup + i)
		if err != nil {
			return false, err
		}
		if ga.Offset != gb.Offset || ga.Sealed != gb.Sealed || ga.Plain != gb.Plain || ga.Units != gb.Units {
			return false, nil
		}
		ua, err := a.ix.UnitsOf(ga)
		if err != nil {
			return false, err
		}
		ub, err := b.ix.UnitsOf(gb)
		if err != nil {
			return false, err
		}
		if !slices.Equal(ua, ub) {
			return false, nil
		}
	}
	return true, nil
}

// read reads one pack from its first byte to its last.
func (v *verification) read(ctx context.Context, u packUse) error {
	r, p := v.repo, u.p
	src, err := r.st.GetBlob(ctx, digestOf(p.Digest), p.Size, 0, -1)
	if err != nil {
		return err
	}
	defer func() { _ = src.Close() }() // read only
	sum := sha256.New()
	br := bufio.NewReaderSize(io.TeeReader(src, sum), 64<<10)
	head := make([]byte, pack.HeaderSize)
	if _, err := io.ReadFull(br, head); err != nil {
		return fmt.Errorf("read header: %w", err)
	}
	if err := p.Header.CheckHeader(head); err != nil {
		return err
	}
	o, err := r.opener(ctx, p.Header)
	if err != nil {
		return err
	}
	var body []byte
	for i := range p.Groups {
		g, err := u.ix.Group(p.FirstGroup + i)
		if err != nil {
			return err
		}
		sealed := make([]byte, g.Sealed)
		if _, err := io.ReadFull(br, sealed); err != nil {
			return fmt.Errorf("read group %d: %w", i, err)
		}
		if body, err = o.Open(body[:0], int(g.Number), sealed, int(g.Plain)); err != nil {
			return err
		}
		if err := r.proveGroup(u.ix, p.FirstGroup+i, g, body); err != nil {
			return err
		}
	}
	if _, err := io.Copy(io.Discard, br); err != nil {
		return fmt.Errorf("read padding: %w", err)
	}
	var have [sha256.Size]byte
	if sum.Sum(have[:0]); have != p.Digest {
		return tampered("its digest is %s", digestOf(have))
	}
	return nil
}
