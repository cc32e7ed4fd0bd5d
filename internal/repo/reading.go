package repo

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"lifeboat/internal/dr"
	"lifeboat/internal/pack"
	"lifeboat/internal/repo/readlog"
	"lifeboat/internal/store"
)

// VerifyProgress is how far a reading is.
type VerifyProgress struct {
	// Bytes of BytesTotal were read, Packs of PacksTotal are done. Indexes count as
	// packs. Once the packs are done the catalogs are read: their bytes are added to
	// both as they become known.
	Bytes, BytesTotal int64
	Packs, PacksTotal int
}

// Reading is what a run read, and when each part was read last. Packs and indexes
// are counted alike.
type Reading struct {
	// Read was read by this run.
	Read Amount
	// Resumed is when the run began that was cut off and that this one went on
	// with, zero for none.
	Resumed time.Time
	// All is everything that the chosen snapshots need.
	All Part
	// Systems are the same by system, Manifests by pack manifest. What several need
	// counts in each of them.
	Systems, Manifests []Part
}

// Amount is a number of packs and indexes and of their bytes.
type Amount struct {
	Packs int   `json:"packs"`
	Bytes int64 `json:"bytes"`
}

func (a *Amount) add(size int64) {
	a.Packs++
	a.Bytes += size
}

// Part says when this host read the packs and indexes of a part of the
// repository last.
type Part struct {
	// System or Manifest says which part.
	System   dr.System
	Manifest digest.Digest
	Total    Amount
	// Never were read by this host. Overdue were not read within the time asked
	// for, counted from when they were first met where they never were.
	Never, Overdue Amount
	// Oldest is when that was read that was read longest ago, of what was read at
	// all; zero for nothing.
	Oldest time.Time
}

// packLog is the log of what this host read when. Without one it is kept in
// memory: reading begins again then.
func (r *Repo) packLog() *readlog.Log {
	r.readsMu.Lock()
	defer r.readsMu.Unlock()
	if r.reads != nil {
		return r.reads
	}
	r.reads = readlog.New()
	if dir := r.state.place(); dir != "" {
		l, err := readlog.Open(filepath.Join(dir, "packs"))
		if err != nil {
			r.log.Warn("what was read when is not remembered", "error", err)
			return r.reads
		}
		r.reads = l
	}
	return r.reads
}

// knownBad reports whether this host found a pack damaged when it last read it.
func (r *Repo) knownBad(d digest.Digest) bool {
	raw, err := rawDigest(d)
	return err == nil && slices.Contains(r.packLog().BadOnes(), raw)
}

// notePack remembers that a pack was read just now.
func (r *Repo) notePack(d [sha256.Size]byte, sound bool) {
	note := r.packLog().Bad
	if sound {
		note = r.packLog().Read
	}
	if err := note(d, time.Now()); err != nil {
		r.log.Warn("local state", "error", err)
	}
}

// noteBlob is notePack of a digest as it is written.
func (r *Repo) noteBlob(d digest.Digest, sound bool) {
	if raw, err := rawDigest(d); err == nil {
		r.notePack(raw, sound)
	}
}

// reading is one run that reads packs and indexes.
type reading struct {
	repo *Repo
	inv  *inventory
	f    *findings
	harm *harm
	opts ExamineOptions

	ixs  []*index
	jobs map[[sha256.Size]byte]*packJob
	// unopened: a manifest could not be opened, so jobs lacks what it names.
	unopened bool

	mu   sync.Mutex
	done VerifyProgress // of packs and indexes
}

func (v *reading) run(ctx context.Context) (*Reading, error) {
	defer v.close()
	if err := v.open(ctx); err != nil {
		return nil, err
	}
	log, now := v.repo.packLog(), v.opts.Now()
	var all []readlog.Pack
	var err error
	for d, job := range v.jobs {
		e, err := log.Get(d, now)
		if err != nil {
			return nil, err
		}
		all = append(all, readlog.Pack{Digest: d, Size: job.size, Entry: e})
	}
	chosen := readlog.Choose(all, *v.opts.Read, log.LastRun(now), now)
	var resumed time.Time
	if v.opts.Read.All() {
		if resumed, err = log.Begin(v.opts.Scope, now); err != nil {
			return nil, err
		}
	}
	if !resumed.IsZero() { // times are whole seconds: what was read in that one may have been read before
		chosen = slices.DeleteFunc(chosen, func(p readlog.Pack) bool { return !p.Bad && p.Read.After(resumed) })
	}
	for _, p := range chosen {
		v.done.BytesTotal += p.Size
	}
	v.done.PacksTotal = len(chosen)
	if err = v.readAll(ctx, chosen); err != nil {
		return nil, err
	}
	looked, err := v.snapshots(ctx, resumed, now)
	if err != nil {
		return nil, err
	}
	switch {
	case v.opts.Read.Within > 0:
		err = log.Ended(now)
	case v.opts.Read.All():
		err = log.Done(v.opts.Scope, now)
	}
	if err != nil {
		return nil, err
	}
	// What is known of the blobs of a manifest that cannot be opened now is not
	// forgotten: that its index is damaged may be known from here alone, for a sound
	// cache of it hides that from all who do not read the stored one.
	if v.inv.all && !v.unopened {
		if err := log.Keep(func(d readlog.Digest) bool { return v.jobs[d] != nil || looked[d] }); err != nil {
			return nil, err
		}
	}
	out, err := v.sumUp()
	if err != nil {
		return nil, err
	}
	out.Resumed = resumed
	return out, nil
}

func (v *reading) readAll(ctx context.Context, chosen []readlog.Pack) error {
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(fetchParallel)
	for _, p := range chosen {
		if gctx.Err() != nil {
			break
		}
		g.Go(func() error {
			job := v.jobs[p.Digest]
			sound, err := v.read(gctx, job)
			if err != nil {
				return err
			}
			return v.tell(job, sound)
		})
	}
	return errors.Join(g.Wait(), ctx.Err())
}

// tell remembers that a pack was read, at once: a run that is killed goes on
// behind it.
func (v *reading) tell(job *packJob, sound bool) error {
	note := v.repo.packLog().Bad
	if sound {
		note = v.repo.packLog().Read
	}
	if err := note(job.digest, v.opts.Now()); err != nil {
		return err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.done.Packs++
	v.done.Bytes += job.size
	if v.opts.Progress != nil {
		v.opts.Progress(v.done)
	}
	return nil
}

func (v *reading) close() {
	for _, ix := range v.ixs {
		if err := v.repo.saveRead(ix); err != nil {
			v.repo.log.Warn("what was read is not remembered", "error", err)
		}
		v.repo.idx.put(ix)
	}
}

// read reads a pack or index; sound is false where it was told to be damaged.
func (v *reading) read(ctx context.Context, job *packJob) (sound bool, err error) {
	if job.index != nil {
		return v.readIndex(ctx, job)
	}
	// Once, and again for each manifest whose index speaks of it differently than
	// the one that it was compared with.
	sound = true
	var good *packUse
	for i := range job.uses {
		u := &job.uses[i]
		same := false
		if good != nil {
			if same, err = sameGroups(*good, *u); err != nil {
				return false, err
			}
		}
		if same {
			for g := range u.p.Groups {
				u.ix.markRead(u.p.FirstGroup + g)
			}
			continue
		}
		err := v.repo.readPack(ctx, *u)
		if err == nil {
			good = u
			continue
		}
		if !about(err) && !errors.Is(err, io.ErrUnexpectedEOF) {
			return false, err
		}
		hurt, serr := v.repo.scan(ctx, u.ix, u.pack(), v.harm)
		if serr != nil {
			return false, serr
		}
		if !hurt { // it was altered on the way, once
			v.repo.log.Warn("a pack was read wrongly once and is sound", "pack", digestOf(job.digest), "error", err)
			good = u
			continue
		}
		sound = false
		v.inv.report(v.f, u.ix.need, digestOf(job.digest), err)
	}
	if len(job.blind) > 0 {
		same, err := v.readBlind(ctx, job)
		return sound && same, err
	}
	return sound, nil
}

// readBlind compares a pack with its digest, for manifests without an index.
func (v *reading) readBlind(ctx context.Context, job *packJob) (sound bool, err error) {
	b := blob{digestOf(job.digest), job.size}
	for range unitTries { // what was altered on the way once is not the second time
		err = sameBlob(ctx, b, v.repo.st, io.Discard)
		if err == nil {
			return true, nil
		}
		if !about(err) && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, store.ErrDigestMismatch) {
			return false, err
		}
	}
	for _, n := range job.blind {
		v.harm.pack(n, b.Digest, nil)
		v.inv.report(v.f, n, b.Digest, err)
	}
	return false, nil
}

// pack is the number of the pack in its manifest.
func (u packUse) pack() uint32 {
	for i := range uint32(u.ix.Packs()) {
		if p, err := u.ix.Pack(i); err == nil && p.Digest == u.p.Digest {
			return i
		}
	}
	return 0
}

// readIndex reads an index anew, whatever this host keeps of it: its digest, and
// the signature of its host.
func (v *reading) readIndex(ctx context.Context, job *packJob) (bool, error) {
	pm := job.index
	err := v.repo.proveIndex(ctx, pm)
	if err == nil {
		return true, nil
	}
	if !about(err) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return false, err
	}
	if again := v.repo.proveIndex(ctx, pm); again == nil {
		return true, nil // altered on the way, once
	}
	v.harm.manifest(pm.need, pm.index.Digest)
	v.inv.report(v.f, pm.need, pm.index.Digest, err)
	return false, nil
}

// proveIndex reads the stored index of a pack manifest to its end.
func (r *Repo) proveIndex(ctx context.Context, pm *packManifest) error {
	src, err := r.st.GetBlob(ctx, pm.index.Digest, pm.index.Size, 0, -1)
	if err != nil {
		return err
	}
	defer func() { _ = src.Close() }() // read only
	sum := sha256.New()
	tee := io.TeeReader(src, sum)
	host, err := pack.ReadIndex(tee, r.keyring(), nowhere{})
	if err != nil {
		return err
	}
	s, err := r.hosts.lookup(ctx, host)
	if err != nil {
		return err
	}
	if s == nil {
		return tampered("it is signed by host %s, which is not enrolled", host.Short())
	}
	if _, err := io.Copy(io.Discard, tee); err != nil {
		return err
	}
	if d := digest.NewDigest(digest.SHA256, sum); d != pm.index.Digest {
		return tampered("its digest is %s", d)
	}
	return nil
}

// nowhere is a pack.Visitor that wants nothing.
type nowhere struct{}

func (nowhere) Pack(pack.Info, int) error       { return nil }
func (nowhere) Group(pack.GroupInfo, int) error { return nil }
func (nowhere) Unit(dr.UnitRef) error           { return nil }

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

// readPack reads one pack from its first byte to its last and compares all of it
// with what its index says.
func (r *Repo) readPack(ctx context.Context, u packUse) error {
	p := u.p
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

// scan finds out which groups of a damaged pack can be used all the same, as a
// restore reads them: each by itself. It notes what cannot, and that the pack is
// not whole; hurt is false where it is whole after all.
func (r *Repo) scan(ctx context.Context, ix *index, number uint32, h *harm) (hurt bool, err error) {
	p, err := ix.Pack(number)
	if err != nil {
		return false, err
	}
	var bad []uint32
	for i := range p.Groups {
		group := p.FirstGroup + i
		body, g, err := r.readGroup(ctx, ix, group)
		if err == nil {
			err = r.proveGroup(ix, group, g, body)
		}
		switch {
		case err == nil:
		case errors.Is(err, store.ErrNotFound) || errors.Is(err, store.ErrDigestMismatch): // all of it, whichever group is asked for
			for k := range p.Groups {
				bad = append(bad, p.FirstGroup+k)
			}
			h.pack(ix.need, digestOf(p.Digest), bad)
			return true, nil
		case about(err) || errors.Is(err, io.ErrUnexpectedEOF):
			bad = append(bad, group)
		default:
			return false, err
		}
	}
	if len(bad) == 0 { // what does not belong to a group?
		err := r.readPack(ctx, packUse{ix, p})
		switch {
		case err == nil:
			return false, nil
		case !about(err) && !errors.Is(err, io.ErrUnexpectedEOF):
			return false, err
		}
	}
	h.pack(ix.need, digestOf(p.Digest), bad)
	return true, nil
}
