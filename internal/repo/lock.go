package repo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"lifeboat/internal/dr"
	"lifeboat/internal/store"
)

// What a lock record does.
const (
	actionLock   = "lock"
	actionUnlock = "unlock"
)

// lockRecord is what stands under l.<system>.<n>.<k> (docs/format.md, Locks). The
// highest turn counts.
type lockRecord struct {
	Format  int       `json:"format"`
	Host    dr.HostID `json:"host"`
	System  dr.System `json:"system"`
	Number  dr.Number `json:"number"`
	Turn    dr.Number `json:"turn"`
	Action  string    `json:"action"`
	Reason  string    `json:"reason,omitempty"`
	Created time.Time `json:"created"`
}

// SnapshotLock says that a snapshot must stay exactly as it is: it is neither
// forgotten nor relocated, and so every pack that it needs stays.
type SnapshotLock struct {
	System dr.System
	Number dr.Number
	// Reason is for people; Host locked it at Since. They are empty where the
	// record cannot be read: such a lock holds until its tag is deleted.
	Reason string
	Host   dr.HostID
	Since  time.Time

	unread error // why the record cannot be read
}

// numberKey names a snapshot by its number.
type numberKey struct {
	system dr.System
	number dr.Number
}

// Lock makes a snapshot stay exactly as it is, for Forget and Collect of every
// host. It succeeds where the snapshot is locked already. At registries with
// access roles it needs that of an operator. Errors: dr.ErrNotFound where the
// snapshot was forgotten, store.ErrForbidden, dr.ErrOutcomeUnknown.
func (r *Repo) Lock(ctx context.Context, s *Snapshot, reason string) error {
	return r.setLock(ctx, s, actionLock, reason)
}

// ErrLockUnread: the record that locks a snapshot cannot be read, so nobody knows
// whether it does; it holds. Repair mends it, or gives it up (RepairOptions.DropDamaged).
var ErrLockUnread = errors.New("the lock record cannot be read, and holds")

// Unlock takes a lock away. Errors are those of Lock, and ErrLockUnread: what would
// say afterwards whether the snapshot is locked might come back.
func (r *Repo) Unlock(ctx context.Context, s *Snapshot) error {
	return r.setLock(ctx, s, actionUnlock, "")
}

func (r *Repo) setLock(ctx context.Context, s *Snapshot, action, reason string) error {
	what := fmt.Sprintf("%s snapshot %s (%s)", action, s.ID.Short(), s.Tag)
	if err := r.enrolForWriting(ctx); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	if err := r.refreshKeys(ctx); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	for range maxLost {
		locks, turns, err := r.readLocks(ctx, s.System)
		if err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		key := numberKey{s.System, s.Number}
		if l := locks[key]; l != nil && l.unread != nil && action == actionUnlock {
			return fmt.Errorf("%s: %w: %w", what, ErrLockUnread, l.unread)
		}
		if (locks[key] != nil) == (action == actionLock) {
			return r.stillThere(ctx, s, what)
		}
		t := Tag{Class: ClassLock, System: s.System, Number: s.Number, Turn: turns[key] + 1}
		body, err := json.Marshal(lockRecord{
			Format: 1, Host: r.HostID(), System: s.System, Number: s.Number, Turn: t.Turn, Action: action, Reason: reason, Created: time.Now().UTC(),
		})
		if err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		if err := r.putSigned(ctx, t, body); err != nil && !errors.Is(err, dr.ErrHeld) {
			return fmt.Errorf("%s: %w", what, err)
		}
	}
	return fmt.Errorf("%s: others write locks of it at the same time: %w", what, dr.ErrHeld)
}

// stillThere looks whether a snapshot was forgotten while it was locked.
func (r *Repo) stillThere(ctx context.Context, s *Snapshot, what string) error {
	p, err := r.relist(ctx, s.place)
	if err == nil && len(p.tags) == 0 {
		err = fmt.Errorf("it was forgotten: %w", dr.ErrNotFound)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

// Locks lists the locks in force of a system ("" for all) by system and number.
func (r *Repo) Locks(ctx context.Context, system dr.System) ([]SnapshotLock, error) {
	locks, _, err := r.readLocks(ctx, system)
	if err != nil {
		return nil, fmt.Errorf("list locks: %w", err)
	}
	var out []SnapshotLock
	for _, l := range locks {
		out = append(out, *l)
	}
	slices.SortFunc(out, func(a, b SnapshotLock) int {
		return compareTags(Tag{System: a.System, Number: a.Number}, Tag{System: b.System, Number: b.Number})
	})
	return out, nil
}

// readLocks returns the locks in force, and the highest turn of each number that
// has any.
func (r *Repo) readLocks(ctx context.Context, system dr.System) (locks map[numberKey]*SnapshotLock, turns map[numberKey]dr.Number, err error) {
	names, err := r.st.Tags(ctx, Tag{Class: ClassLock, System: system}.prefix())
	if err != nil {
		return nil, nil, err
	}
	tags, _ := parseTags(names) // what is not of the grammar is a problem of Check's
	if len(tags) > 0 {
		if err := r.hosts.load(ctx); err != nil {
			return nil, nil, err
		}
	}
	locks, turns = map[numberKey]*SnapshotLock{}, map[numberKey]dr.Number{}
	decided := map[numberKey]bool{}
	for _, t := range slices.Backward(tags) {
		key := numberKey{t.System, t.Number}
		turns[key] = max(turns[key], t.Turn)
		if decided[key] {
			continue
		}
		l, locked, err := r.readLock(ctx, t)
		if err != nil {
			return nil, nil, fmt.Errorf("read %s: %w", t, err)
		}
		if l == nil {
			continue
		}
		decided[key] = true
		if locked {
			locks[key] = l
		}
	}
	return locks, turns, nil
}

// readLock reads one record; nil for what is none. What cannot be read and may
// be one counts as a lock: keeping more harms nobody.
func (r *Repo) readLock(ctx context.Context, t Tag) (l *SnapshotLock, locked bool, err error) {
	l = &SnapshotLock{System: t.System, Number: t.Number}
	rec, err := r.record(ctx, t)
	switch {
	case errors.Is(err, store.ErrNotFound), err != nil && r.void(err):
		return nil, false, nil
	case err != nil && about(err):
		l.unread = fmt.Errorf("%s: %w", t, err)
		return l, true, nil
	case err != nil:
		return nil, false, err
	}
	var body lockRecord
	if json.Unmarshal(rec.Body, &body) != nil || body.Number != t.Number || body.Turn != t.Turn {
		return nil, false, nil
	}
	l.Reason, l.Host, l.Since = body.Reason, rec.Host, body.Created
	return l, body.Action != actionUnlock, nil
}

// lockedNumbers are the numbers of all systems whose snapshots are locked.
func (r *Repo) lockedNumbers(ctx context.Context, system dr.System) (map[numberKey]bool, error) {
	locks, _, err := r.readLocks(ctx, system)
	if err != nil {
		return nil, err
	}
	out := map[numberKey]bool{}
	for key := range locks {
		out[key] = true
	}
	return out, nil
}
