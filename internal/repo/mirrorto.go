package repo

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"lifeboat/internal/dr"
	"lifeboat/internal/seal"
	"lifeboat/internal/store"
)

// MirrorState is what became of one snapshot.
type MirrorState string

const (
	// MirrorThere: the mirror had it.
	MirrorThere MirrorState = "there"
	// MirrorCopied: it was copied.
	MirrorCopied MirrorState = "copied"
	// MirrorDue: it would be copied (MirrorOptions.DryRun), or was not reached.
	MirrorDue MirrorState = "due"
	// MirrorForgotten: the mirror had it and it was forgotten there.
	MirrorForgotten MirrorState = "forgotten"
	// MirrorConflict: the mirror has something else under its tag.
	MirrorConflict MirrorState = "conflict"
	// MirrorDamaged: it, or something that it needs, is not whole here.
	MirrorDamaged MirrorState = "damaged"
)

// MirrorRow is one snapshot of a MirrorResult.
type MirrorRow struct {
	Snapshot
	State MirrorState
	// Err says why for MirrorConflict and MirrorDamaged.
	Err error
}

// MirrorProgress is how far MirrorTo is. Totals grow while it looks.
type MirrorProgress struct {
	// Bytes of packs and indexes, of those that the mirror lacks.
	Bytes, BytesTotal int64
	Snapshots         int
}

// MirrorOptions say what is copied.
type MirrorOptions struct {
	// Only chooses snapshots; nil means all. Epochs, switch records, keys and hosts
	// are copied always, with an epoch its base, and with a snapshot its locks.
	Only func(*Snapshot) bool
	// DryRun looks and writes nothing.
	DryRun bool
	// Progress may be nil. Calls do not overlap.
	Progress func(MirrorProgress)
}

// MirrorResult is what MirrorTo did.
type MirrorResult struct {
	Rows []MirrorRow
	// Records counts key, host, lock, epoch and switch records that were copied, or
	// are due.
	Records int
	// Packs and Bytes are what was sent, or is due; BytesRead what was read for it.
	Packs            int
	Bytes, BytesRead int64
	// Problems are tags of this repository that do not verify and were left out,
	// and records under whose tags the mirror has something else.
	Problems []Problem
}

// ErrOtherRepository: the place that was named for a mirror holds something else.
// It wraps dr.ErrUsage.
var ErrOtherRepository = fmt.Errorf("another repository stands there: %w", dr.ErrUsage)

// MirrorTo makes or completes an exact copy of the repository in another
// registry (docs/adr/0010-copies-and-mirrors.md): the same id, keys, hosts,
// locks, epochs and snapshots, byte for byte. Every pack is authenticated on the way,
// group by group and unit by unit. What the mirror has is not sent again, so a
// run that was cut off goes on where it stopped. Records and manifests that are
// there are read back, and each pack and index is asked for: what is gone or
// damaged there is stored again. Packs that are there are not read. The order of what is written
// keeps invariant 1 in the mirror at every moment: keys and hosts, the locks of
// the snapshots that are copied or there, then each snapshot after all that it needs, then epochs and switch records that were
// there before the first snapshot was looked at. Nothing is ever removed there.
//
// Errors: ErrOtherRepository when dst holds another repository or one whose keys
// were changed on its own, dr.ErrTampered for this repository's own state, those of the
// stores. Rows of the result tell about single snapshots; the result comes
// together with an error once copying has begun.
func (r *Repo) MirrorTo(ctx context.Context, dst store.Store, o MirrorOptions) (*MirrorResult, error) {
	m := &mirroring{repo: r, dst: dst, opts: o, res: &MirrorResult{}, done: map[digest.Digest]bool{}, mem: newMirrorMemory()}
	if err := m.look(ctx); err != nil {
		return nil, fmt.Errorf("mirror: nothing was written: %w", err)
	}
	err := m.run(ctx)
	if err != nil {
		return m.res, fmt.Errorf("mirror: what was copied stays and counts; run it again to go on: %w", err)
	}
	return m.res, nil
}

// mirroring is one run of MirrorTo.
type mirroring struct {
	repo *Repo
	dst  store.Store
	opts MirrorOptions
	res  *MirrorResult
	mem  *mirrorMemory

	have    map[string]bool // tags of the mirror
	records []Tag           // epochs and switch records, as they were at first
	fixed   []Tag           // keys and hosts
	locks   []Tag           // of snapshots that are copied or there
	snaps   []*Snapshot
	empty   bool                   // the empty blob is there
	done    map[digest.Digest]bool // pack manifests that are there
	mended  int                    // of them, of which something was gone or damaged there
	blobs   seenBlobs              // that are there

	mu   sync.Mutex
	prog MirrorProgress
}

// look reads what there is on both sides. The records come before the
// snapshots: a claim that is seen has its base, which is looked for after it.
func (m *mirroring) look(ctx context.Context) error {
	r := m.repo
	if err := r.refreshKeys(ctx); err != nil {
		return err
	}
	there, err := m.dst.Tags(ctx, "")
	if err != nil {
		return fmt.Errorf("look at the mirror: %w", err)
	}
	m.have = map[string]bool{}
	for _, t := range there {
		m.have[t] = true
	}
	for _, c := range []Class{ClassKey, ClassHost} {
		if err := m.listTags(ctx, c, &m.fixed); err != nil {
			return err
		}
	}
	for _, c := range []Class{ClassEpoch, ClassSwitch} {
		if err := m.listTags(ctx, c, &m.records); err != nil {
			return err
		}
	}
	if err := m.sameRepository(ctx, there); err != nil {
		return err
	}
	snaps, problems, err := r.allSnapshots(ctx, "")
	if err != nil {
		return err
	}
	m.res.Problems = append(m.res.Problems, problems...)
	bases, err := m.bases(ctx, snaps)
	if err != nil {
		return err
	}
	for _, s := range snaps {
		if m.opts.Only == nil || m.opts.Only(s) || bases[s.ID] {
			m.snaps = append(m.snaps, s)
			m.res.Rows = append(m.res.Rows, MirrorRow{Snapshot: *s, State: MirrorDue})
		}
	}
	return m.chooseLocks(ctx)
}

// listTags lists the tags of a class that verify.
func (m *mirroring) listTags(ctx context.Context, c Class, out *[]Tag) error {
	r := m.repo
	names, err := r.st.Tags(ctx, string(c)+".")
	if err != nil {
		return err
	}
	tags, problems := parseTags(names)
	m.res.Problems = append(m.res.Problems, problems...)
	if c == ClassHost {
		if err := r.hosts.load(ctx); err != nil {
			return err
		}
	}
	for _, t := range tags {
		err := m.verify(ctx, t)
		switch {
		case err == nil:
			*out = append(*out, t)
		case about(err):
			m.res.Problems = append(m.res.Problems, Problem{Tag: t.String(), Err: err})
		default:
			return err
		}
	}
	return nil
}

// verify looks whether a record is one.
func (m *mirroring) verify(ctx context.Context, t Tag) error {
	r := m.repo
	switch t.Class {
	case ClassKey:
		k, err := r.keyRecord(ctx, t)
		if err != nil {
			return err
		}
		return k.Verify(r.keyring().Secret())
	case ClassHost:
		_, err := r.hosts.read(ctx, t)
		return err
	default:
		_, err := r.record(ctx, t)
		return err
	}
}

// sameRepository refuses a name that holds another repository, or this one with
// a key record that is not known here. The error wraps ErrOtherRepository.
func (m *mirroring) sameRepository(ctx context.Context, there []string) error {
	known := map[string]bool{}
	for _, t := range m.fixed {
		known[t.String()] = true
	}
	for _, name := range there {
		t, err := ParseTag(name)
		if err != nil || t.Class != ClassKey {
			continue
		}
		if known[name] {
			same, err := m.sameTag(ctx, t)
			if err != nil {
				return err
			}
			if same {
				continue
			}
		}
		return fmt.Errorf("%s there is not a key record of repository %s, unless somebody changed the keys of the mirror on its own: %w", name, m.repo.ID(), ErrOtherRepository)
	}
	return nil
}

// bases are the snapshots that the newest epoch of each system builds on: a
// mirror without them would have an epoch and no line.
func (m *mirroring) bases(ctx context.Context, snaps []*Snapshot) (map[dr.SnapshotID]bool, error) {
	out := map[dr.SnapshotID]bool{}
	var systems []dr.System
	for _, s := range snaps {
		if !slices.Contains(systems, s.System) {
			systems = append(systems, s.System)
		}
	}
	for _, sys := range systems {
		l, err := m.repo.lineOf(ctx, sys)
		if err != nil {
			return nil, err
		}
		for id := range l.needs() {
			out[id] = true
		}
	}
	return out, nil
}

func (m *mirroring) run(ctx context.Context) error {
	if err := m.copyRecords(ctx, m.fixed); err != nil {
		return err
	}
	if err := m.copyLocks(ctx); err != nil {
		return err
	}
	m.measure(ctx)
	for i := range m.snaps {
		if err := m.snapshot(ctx, &m.res.Rows[i]); err != nil {
			return fmt.Errorf("snapshot %s: %w", m.snaps[i].Place, err)
		}
		m.mu.Lock()
		m.prog.Snapshots++
		m.mu.Unlock()
		m.tell(0)
	}
	return m.copyRecords(ctx, m.records)
}

// copyRecords copies records that the mirror lacks, in the order of their
// numbers.
func (m *mirroring) copyRecords(ctx context.Context, tags []Tag) error {
	for _, t := range tags {
		same, err := m.copyRecord(ctx, t)
		switch {
		case errors.Is(err, store.ErrTagTaken):
			m.res.Problems = append(m.res.Problems, Problem{Tag: t.String(), Err: fmt.Errorf("the mirror does not take it: %w: %w", err, dr.ErrHeld)})
		case err != nil:
			return err
		case !same:
			m.res.Problems = append(m.res.Problems, Problem{Tag: t.String(), Err: fmt.Errorf("the mirror has another record there: it was written to on its own: %w", dr.ErrHeld)})
		}
	}
	return nil
}

// copyRecord copies a record that the mirror lacks. same is false where it has
// something else there. Errors are those of the stores.
func (m *mirroring) copyRecord(ctx context.Context, t Tag) (same bool, err error) {
	if m.have[t.String()] {
		return m.compare(ctx, t)
	}
	if m.opts.DryRun {
		m.res.Records++
		return true, nil
	}
	if err := m.putEmpty(ctx); err != nil {
		return false, err
	}
	body, err := m.repo.st.GetManifest(ctx, t.String())
	if err == nil {
		_, err = m.dst.PutManifest(ctx, t.String(), body.MediaType, body.Body)
	}
	if err != nil {
		return false, fmt.Errorf("record %s: %w", t, err)
	}
	m.res.Records++
	return true, nil
}

// putEmpty stores the empty blob, which every record names, in the mirror.
func (m *mirroring) putEmpty(ctx context.Context) error {
	if m.empty {
		return nil
	}
	d := emptyDescriptor()
	if _, err := m.dst.PutBlob(ctx, d.Digest, d.Size, openBytes([]byte(emptyBlob))); err != nil {
		return fmt.Errorf("store the empty blob: %w", err)
	}
	m.empty = true
	return nil
}

// snapshot copies what a snapshot needs, then its tag. An error that speaks of
// something that is damaged here concerns this snapshot alone.
func (m *mirroring) snapshot(ctx context.Context, row *MirrorRow) error {
	t := row.Place
	if m.have[t] {
		return m.thereAlready(ctx, row)
	}
	if ok, err := m.needs(ctx, row); !ok || m.opts.DryRun {
		return err
	}
	body, err := m.repo.st.GetManifest(ctx, t)
	if err == nil && body.Digest != row.Digest {
		err = tampered("it names %s, and named %s a moment ago", body.Digest, row.Digest)
	}
	if errors.Is(err, store.ErrNotFound) {
		row.State, row.Err = MirrorDamaged, fmt.Errorf("it was forgotten meanwhile: %w", err)
		return nil
	}
	if err != nil {
		return err
	}
	_, err = m.dst.PutManifest(ctx, t, ocispec.MediaTypeImageIndex, body.Body)
	switch {
	case errors.Is(err, store.ErrTagRetired):
		row.State = MirrorForgotten
		return nil
	case errors.Is(err, store.ErrTagTaken):
		row.State, row.Err = MirrorConflict, fmt.Errorf("%w: %w", err, dr.ErrHeld)
		return nil
	case err != nil:
		return err
	}
	row.State = MirrorCopied
	return m.lookAgain(ctx, row)
}

// needs brings over what a snapshot needs and the mirror lacks. ok is false, and
// the row says why, where it is not whole here.
func (m *mirroring) needs(ctx context.Context, row *MirrorRow) (ok bool, err error) {
	for _, n := range row.needs {
		err := m.manifest(ctx, n)
		if damaged(err) {
			row.State, row.Err = MirrorDamaged, err
			return false, nil
		}
		if err != nil {
			return false, err
		}
	}
	return true, nil
}

// damaged reports whether an error says that something is not whole here, rather
// than that a registry cannot be asked.
func damaged(err error) bool {
	var here *sourceError
	return errors.As(err, &here) && about(here.err)
}

// sourceError is a failure to read this repository, not to write the mirror.
type sourceError struct{ err error }

func (e *sourceError) Error() string { return e.err.Error() }
func (e *sourceError) Unwrap() error { return e.err }

// lookAgain looks whether the mirror still has the manifests after the tag was
// put: somebody may collect there (invariant 2).
func (m *mirroring) lookAgain(ctx context.Context, row *MirrorRow) error {
	for _, n := range row.needs {
		d, err := m.dst.ResolveTag(ctx, n.tag())
		if err == nil && d == n.Digest {
			continue
		}
		if err != nil && !about(err) {
			return err
		}
		delete(m.done, n.Digest)
		if err := m.manifest(ctx, n); err != nil {
			return fmt.Errorf("pack manifest %s was removed from the mirror meanwhile: %w", n.Digest, err)
		}
	}
	return nil
}

func (m *mirroring) tell(sent int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.prog.Bytes += sent
	if m.opts.Progress != nil {
		m.opts.Progress(m.prog)
	}
}

// MirroredIn reports whether a registry holds this repository, rather than
// another one: by the id in its key records, which nobody has authenticated.
func (r *Repo) MirroredIn(ctx context.Context, st store.Store) (bool, error) {
	names, err := st.Tags(ctx, Tag{Class: ClassKey}.prefix())
	if err != nil {
		return false, fmt.Errorf("look for a repository: %w", err)
	}
	tags, _ := parseTags(names)
	for _, t := range tags {
		m, err := st.GetManifest(ctx, t.String())
		var raw []byte
		var k *seal.KeyRecord
		if err == nil {
			raw, err = decodeRecordManifest(m, ClassKey)
		}
		if err == nil {
			k, err = seal.ParseKeyRecord(raw)
		}
		switch {
		case err == nil && k.Repo == r.ID():
			return true, nil
		case err != nil && !about(err):
			return false, fmt.Errorf("look for a repository: %w", err)
		}
	}
	same, err := opensSomething(ctx, st, r.keyring()) // its key records may be damaged
	if err != nil {
		return false, fmt.Errorf("look for a repository: %w", err)
	}
	return same, nil
}
