package repo

import (
	"context"
	"errors"
	"fmt"

	"lifeboat/internal/dr"
	"lifeboat/internal/store"
)

// chooseLocks lists the lock records of the snapshots that are copied, or that the
// mirror has: forget and gc run there by themselves. They are looked for after the
// snapshots, so that what was locked before the run is locked there.
func (m *mirroring) chooseLocks(ctx context.Context) error {
	var all []Tag
	if err := m.listTags(ctx, ClassLock, &all); err != nil {
		return err
	}
	if len(all) == 0 {
		return nil
	}
	there := map[numberKey]bool{}
	for _, s := range m.snaps {
		there[numberKey{s.System, s.Number}] = true
	}
	for name := range m.have {
		if t, err := ParseTag(name); err == nil && (t.Class == ClassSnapshot || t.Class == ClassRelocation) {
			there[numberKey{t.System, t.Number}] = true
		}
	}
	for _, t := range all {
		if there[numberKey{t.System, t.Number}] {
			m.locks = append(m.locks, t)
		}
	}
	return nil
}

// copyLocks copies lock records that the mirror lacks, in the order of their turns
// and before the snapshots of which they speak: none is there unlocked for a moment.
// Where the mirror has a record of its own the later turns stay away, so that no
// lock that was set there is taken away from here.
func (m *mirroring) copyLocks(ctx context.Context) error {
	own := map[numberKey]bool{}
	for _, t := range m.locks {
		if own[numberKey{t.System, t.Number}] {
			continue
		}
		same, err := m.copyRecord(ctx, t)
		switch {
		case err == nil && same:
		case errors.Is(err, store.ErrTagRetired):
			// The snapshot was forgotten there, and its locks with it.
		case err == nil, errors.Is(err, store.ErrTagTaken):
			own[numberKey{t.System, t.Number}] = true
			m.res.Problems = append(m.res.Problems, Problem{Tag: t.String(), Err: fmt.Errorf("the mirror has another record there, and keeps what it says: the snapshot was locked or unlocked there on its own: %w", dr.ErrHeld)})
		case errors.Is(err, store.ErrNotFound):
			// The snapshot was forgotten here meanwhile.
		default:
			return err
		}
	}
	return nil
}
