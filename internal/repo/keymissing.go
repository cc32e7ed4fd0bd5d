package repo

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"lifeboat/internal/dr"
	"lifeboat/internal/seal"
)

// Key records are never removed, so one that this host has relied upon and that the
// registry does not list is missing there. What this host keeps is for repair then:
// giving the record up would give up all that was sealed since (docs/format.md, Keys).

// ErrKeyKept: a key record that the registry does not show is kept by this host, so
// that repair here puts it back. It comes with ErrKeysDamaged.
var ErrKeyKept = errors.New("this host keeps a copy of it")

// repairs reports whether the repository is opened to be repaired.
func (o OpenOptions) repairs() bool { return o.ForRepair || len(o.KeysFrom) > 0 }

// tellKept adds to an error of the search the newest key record that the registry
// does not list and that this host keeps.
func (s *keySearch) tellKept(err error) error {
	kept, kerr := s.repo.state.listKept(s.id())
	if kerr != nil {
		return errors.Join(err, kerr)
	}
	for _, t := range slices.Backward(kept) {
		if slices.Contains(s.listed, t) {
			continue
		}
		if _, _, rerr := s.repo.state.readKept(s.id(), t); rerr != nil {
			continue
		}
		return fmt.Errorf("%w; key record %s is gone from the registry, and %w: put it back: lifeboat repair", err, t, ErrKeyKept)
	}
	return err
}

// tellPassedOver tells of a newer record of the repository than the one that is taken
// that lacks a key generation which is known: two lines of keys, or a forgery.
func (s *keySearch) tellPassedOver(secret *seal.Secret, taken Tag) {
	for _, k := range s.lacking {
		if k.Number < taken.Number || k.Verify(secret) != nil {
			continue
		}
		s.repo.passedOnce.Do(func() {
			s.repo.notice(fmt.Sprintf("key record %s is passed over: it lacks a key generation that this host has seen. Either an older state was accepted at another host and the keys were changed there (to follow: --accept-older, once), or it was made with a key that was removed since (an operator deletes the tag); compare: lifeboat key list", Tag{Class: ClassKey, Number: k.Number}))
		})
		return
	}
}

// id is the repository that is known at the address, or else that which opened.
func (s *keySearch) id() dr.RepoID {
	if s.pin != nil {
		return s.pin.Repo
	}
	return s.opened
}

// acceptShown takes what the registry shows for the newest state: rec is its newest
// key record, old the pin of the address. It is refused where this host keeps a newer
// key record that it has relied upon: an older state of snapshots can be accepted
// without giving that up, once repair has put it back. The error wraps ErrKeysDamaged
// and dr.ErrTampered.
func (r *Repo) acceptShown(s *seal.Secret, rec *seal.KeyRecord, old *pin) error {
	seen, err := r.state.mark(Tag{Class: ClassKey}.prefix())
	if errors.Is(err, errMarksDamaged) {
		seen, err = maxNumber, nil // accepting is the way out of that, too
	}
	if err != nil {
		return err
	}
	kept, err := r.state.listKept(s.Repo())
	if err != nil {
		return err
	}
	for _, t := range slices.Backward(kept) {
		if t.Number <= rec.Number || t.Number > seen {
			continue // nothing else was ever in force here
		}
		if k, _, err := r.state.readKept(s.Repo(), t); err == nil && k.Verify(s) == nil {
			return fmt.Errorf("an older state is not accepted: the newest key record that the registry shows is number %d, and this host has used number %d; accepting would lose all that was sealed with a newer key since. To give it up all the same, delete this host's copy first: %s: %w",
				rec.Number, t.Number, r.state.keptFile(s.Repo(), t), errors.Join(ErrKeysDamaged, dr.ErrTampered))
		}
	}
	lost := old.newestGeneration()
	if e := r.opts.Expect; e != nil {
		lost = max(lost, newestOf(e.Witnesses))
	}
	if seen != maxNumber && seen > rec.Number || lost > s.Generation() {
		r.notice(fmt.Sprintf("key records after number %d are given up: what was sealed with a newer key is not listed any more; if another registry or another host still has them, put them back before anybody changes the keys: lifeboat repair --from URL", rec.Number))
	}
	return errors.Join(r.state.resetMarks(r.opts.Marks, lost), r.state.forgetKeptAbove(s.Repo(), rec.Number))
}

// newestGeneration is the highest of which a witness is pinned; 0 for none.
func (p *pin) newestGeneration() seal.Generation {
	if p == nil {
		return 0
	}
	return newestOf(p.Witnesses)
}

func newestOf(witnesses map[seal.Generation]string) (newest seal.Generation) {
	for g := range witnesses {
		newest = max(newest, g)
	}
	return newest
}

// checkNewestKey is checkMark for the key record that is about to be adopted. The
// error wraps ErrKeysDamaged, too.
func (r *Repo) checkNewestKey(rec *seal.KeyRecord) error {
	before, err := r.state.allMarks()
	if err != nil {
		return err
	}
	err = r.checkMark(before, Tag{Class: ClassKey}.prefix(), rec.Number, 0)
	if errors.Is(err, dr.ErrTampered) {
		return fmt.Errorf("%w: %w", err, ErrKeysDamaged)
	}
	return err
}

// follows returns the number of the key record that the record under a tag follows,
// where those between the two were given up; 0 where it does not say.
func (r *Repo) follows(ctx context.Context, t Tag) (dr.Number, error) {
	k, err := r.keyRecord(ctx, t)
	if err == nil {
		err = k.Verify(r.keyring().Secret())
	}
	if err != nil && !about(err) {
		return 0, err
	}
	if err != nil {
		return 0, nil
	}
	return k.After, nil
}
