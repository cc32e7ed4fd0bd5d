package repo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"lifeboat/internal/dr"
	"lifeboat/internal/seal"
	"lifeboat/internal/store"
)

// relocation is what stands sealed in the image index of class r: the commit
// record as it was sealed under the snapshot's own tag, and the pack manifests
// that hold its units now (docs/format.md, Relocation; docs/adr/0009).
type relocation struct {
	Format   int             `json:"format"`
	Host     dr.HostID       `json:"host"`
	System   dr.System       `json:"system"`
	Number   dr.Number       `json:"number"`
	Turn     dr.Number       `json:"turn"`
	Snapshot dr.SnapshotID   `json:"snapshot"`
	Created  time.Time       `json:"created"`
	Commit   []byte          `json:"commit"`
	Needs    []digest.Digest `json:"needs"`
	// Lacks is how many units were lost when the snapshot was repaired in part.
	Lacks int64 `json:"lacks,omitempty"`
}

func (m *relocation) check(t Tag, host dr.HostID, listed []need) error {
	switch {
	case m.Format != 1:
		return tampered("its format is %d; this version of Lifeboat knows 1, use a newer one", m.Format)
	case m.Host != host:
		return tampered("it names host %s and is signed by %s", m.Host.Short(), host.Short())
	case m.System != t.System || m.Number != t.Number || m.Turn != t.Turn:
		return tampered("it says to be relocation %d of number %d of system %s", m.Turn, m.Number, m.System)
	case len(m.Commit) > seal.MaxRecord:
		return tampered("its commit record has %d bytes", len(m.Commit))
	}
	return sameNeeds(listed, m.Needs)
}

// commitTag is the tag under which the snapshot of a tag of class s or r was
// committed.
func (t Tag) commitTag() Tag { return Tag{Class: ClassSnapshot, System: t.System, Number: t.Number} }

// snapshotAt reads and verifies the commit record under a tag of class s, or the
// relocation under one of class r. distrust is why a relocation that is all it
// should be does not count beside others: the host that signed it was revoked
// since. err wraps dr.ErrTampered, or is the store's.
func (r *Repo) snapshotAt(ctx context.Context, t Tag) (s *Snapshot, distrust, err error) {
	m, err := r.getListed(ctx, t.String())
	if err != nil {
		return nil, nil, err
	}
	if t.Class == ClassRelocation {
		s, _, distrust, err = r.openRelocation(ctx, t, m)
		return s, distrust, err
	}
	s, err = r.openSnapshot(ctx, t, m)
	return s, nil, err
}

// openRelocation verifies a relocation and the commit record in it, which it
// also returns as it is sealed.
func (r *Repo) openRelocation(ctx context.Context, t Tag, m store.Manifest) (s *Snapshot, commit []byte, distrust, err error) {
	sealed, listed, err := decodeSnapshotIndex(ClassRelocation, m)
	if err != nil {
		return nil, nil, nil, err
	}
	signed, err := r.openSealed(ctx, t.String(), sealed)
	if err != nil {
		return nil, nil, nil, err
	}
	host, body, err := seal.VerifySigned(r.ID(), t.String(), signed)
	if err != nil {
		return nil, nil, nil, err
	}
	var rec relocation
	if err := json.Unmarshal(body, &rec); err != nil {
		return nil, nil, nil, tampered("not a relocation: %v", err)
	}
	if err := rec.check(t, host, listed); err != nil {
		return nil, nil, nil, err
	}
	c, err := r.openCommit(ctx, t.commitTag(), rec.Commit)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("the commit record in it: %w", err)
	}
	if c.Snapshot != rec.Snapshot {
		return nil, nil, nil, tampered("it speaks of snapshot %s and carries %s", rec.Snapshot.Short(), c.Snapshot.Short())
	}
	if err := r.witness(t, m.Digest); err != nil {
		return nil, nil, nil, err
	}
	distrust = r.hosts.trusts(ctx, host, dr.SnapshotID{}, t.String(), m.Digest.String())
	if distrust != nil && !errors.Is(distrust, ErrRevoked) {
		return nil, nil, nil, distrust
	}
	s = c.snapshot(t.commitTag(), m.Digest, listed)
	s.at, s.mover, s.Needs, s.Lacks = t, host, rec.Needs, max(rec.Lacks, 0)
	s.Place = t.String()
	return s, rec.Commit, distrust, nil
}

// sealedCommit reads the sealed commit record of a snapshot from where it lies.
func (r *Repo) sealedCommit(ctx context.Context, s *Snapshot) ([]byte, error) {
	m, err := r.st.GetManifest(ctx, s.Place)
	if err != nil {
		return nil, err
	}
	if m.Digest != s.Digest {
		return nil, tampered("tag %s names %s, and named %s a moment ago", s.Place, m.Digest, s.Digest)
	}
	if s.at.Class == ClassRelocation {
		_, commit, _, err := r.openRelocation(ctx, s.at, m)
		return commit, err
	}
	commit, _, err := decodeSnapshotIndex(ClassSnapshot, m)
	return commit, err
}

// relocate says under a new tag that the units of a snapshot lie in other pack
// manifests now, which must hold all of them and be stored. The commit record
// and the number stay as they are, and so do the tags that spoke of it before
// (dropOlder). This host must be enrolled.
//
// Errors: store.ErrNotFound when the snapshot was forgotten meanwhile, dr.ErrHeld
// when somebody else relocated it at the same time, store.ErrIncomplete when a
// manifest was removed, dr.ErrOutcomeUnknown.
func (r *Repo) relocate(ctx context.Context, s *Snapshot, needs []need) (*Snapshot, error) {
	what := func(err error) error { return fmt.Errorf("relocate snapshot %s (%s): %w", s.ID.Short(), s.Tag, err) }
	commit, err := r.sealedCommit(ctx, s)
	if err != nil {
		return nil, what(err)
	}
	return r.relocateRecord(ctx, s, commit, needs, s.Lacks)
}

// relocateRecord is relocate, of a sealed commit record that is at hand; lacks
// units of it are known to be lost.
func (r *Repo) relocateRecord(ctx context.Context, s *Snapshot, commit []byte, needs []need, lacks int64) (*Snapshot, error) {
	what := func(err error) error { return fmt.Errorf("relocate snapshot %s (%s): %w", s.ID.Short(), s.Tag, err) }
	rec := &relocation{
		Format: 1, Host: r.HostID(), System: s.System, Number: s.Number, Snapshot: s.ID, Created: time.Now().UTC(), Commit: commit, Lacks: lacks,
	}
	for _, n := range needs {
		rec.Needs = append(rec.Needs, n.Digest)
	}
	t := Tag{Class: ClassRelocation, System: s.System, Number: s.Number, Turn: s.at.Turn}
	for range maxLost {
		t.Turn++
		if slices.Contains(s.place.tags, t) { // higher than the one that counts: it does not verify
			continue
		}
		rec.Turn = t.Turn
		moved, err := r.putRelocation(ctx, t, rec, needs)
		if err == nil {
			moved.place = place{system: s.System, number: s.Number, tags: slices.Concat([]Tag{t}, s.place.tags)}
			return moved, nil
		}
		if !errors.Is(err, store.ErrTagTaken) {
			return nil, what(err)
		}
		if _, distrust, rerr := r.snapshotAt(ctx, t); rerr == nil && distrust == nil {
			return nil, what(fmt.Errorf("another gc relocated it at the same time (%s): %w", t, dr.ErrHeld))
		} else if rerr != nil && !about(rerr) {
			return nil, what(rerr)
		}
	}
	return nil, what(fmt.Errorf("%d tags from %s on are taken by what does not verify; delete them: %w", maxLost, t, dr.ErrHeld))
}

// putRelocation signs, seals, stores and reads back.
func (r *Repo) putRelocation(ctx context.Context, t Tag, rec *relocation, needs []need) (*Snapshot, error) {
	body, err := json.Marshal(rec)
	if err != nil {
		return nil, fmt.Errorf("encode relocation: %w", err)
	}
	sealed, err := r.signAndSeal(t, body)
	if err != nil {
		return nil, err
	}
	raw, err := encodeSnapshotIndex(ClassRelocation, sealed, needs)
	if err != nil {
		return nil, err
	}
	if err := r.putTag(ctx, t.String(), ocispec.MediaTypeImageIndex, raw); err != nil {
		return nil, err
	}
	m, err := r.st.GetManifest(ctx, t.String())
	if err != nil {
		return nil, fmt.Errorf("%s was stored and could not be read back: %w: %w", t, err, dr.ErrOutcomeUnknown)
	}
	if m.Digest != digest.FromBytes(raw) {
		return nil, fmt.Errorf("%s was overwritten by another host: %w", t, store.ErrTagTaken)
	}
	s, _, _, err := r.openRelocation(ctx, t, m)
	if err != nil {
		return nil, fmt.Errorf("%s was stored and does not verify: %w", t, err)
	}
	return s, nil
}

// dropOlder removes the tags that spoke of a snapshot before the relocation that
// counts, and their image indexes, and returns how many. The caller vouches that
// the relocation's manifests hold every unit. It is looked at once more before
// anything goes (invariant 8). What an older tag names that is not this snapshot
// stays.
func (r *Repo) dropOlder(ctx context.Context, s *Snapshot) (dropped int, err error) {
	i := slices.Index(s.place.tags, s.at)
	if s.at.Class != ClassRelocation || s.Lacks > 0 || i < 0 || i+1 == len(s.place.tags) {
		return 0, nil
	}
	older := s.place.tags[i+1:]
	now, distrust, err := r.snapshotAt(ctx, s.at)
	switch {
	case errors.Is(err, store.ErrNotFound): // forgotten, or relocated once more
		return 0, nil
	case err != nil:
		return 0, fmt.Errorf("read %s again: %w", s.Place, err)
	case distrust != nil || now.Digest != s.Digest:
		return 0, nil
	}
	for _, t := range older {
		gone, err := r.dropPlace(ctx, t, s)
		if err != nil {
			return dropped, fmt.Errorf("remove %s, which %s replaces: %w", t, s.Place, err)
		}
		if gone {
			dropped++
		}
	}
	return dropped, nil
}

// dropPlace removes one tag of a snapshot with its image index.
func (r *Repo) dropPlace(ctx context.Context, t Tag, s *Snapshot) (gone bool, err error) {
	old, _, err := r.snapshotAt(ctx, t)
	switch {
	case errors.Is(err, store.ErrNotFound):
		return false, nil
	case err != nil && about(err), err == nil && old.ID != s.ID:
		return false, nil // somebody else's
	case err != nil:
		return false, err
	}
	if err := r.dropTag(ctx, t.String(), old.Digest); err != nil && !errors.Is(err, store.ErrNotFound) {
		return false, err
	}
	err = r.st.DeleteManifest(ctx, old.Digest)
	switch {
	case err == nil, errors.Is(err, store.ErrNotFound), errors.Is(err, store.ErrListed), errors.Is(err, store.ErrUnsupported):
		return true, nil
	}
	return true, err
}

// sameNeeds compares the pack manifests that an image index lists with those
// that its record names. The error wraps dr.ErrTampered.
func sameNeeds(listed []need, named []digest.Digest) error {
	var have []digest.Digest
	for _, n := range listed {
		have = append(have, n.Digest)
	}
	if !slices.Equal(slices.Sorted(slices.Values(have)), slices.Sorted(slices.Values(named))) {
		return tampered("the pack manifests that are listed are not those that it needs")
	}
	return nil
}
