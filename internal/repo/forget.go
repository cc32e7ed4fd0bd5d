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
	"lifeboat/internal/fence"
	"lifeboat/internal/retain"
	"lifeboat/internal/store"
)

// forgetBatch is how many snapshots are forgotten between two looks at the
// epochs and moves of their system.
const forgetBatch = 32

// ForgetRow is one snapshot of a plan.
type ForgetRow struct {
	Snapshot
	Keep bool
	// Reasons say why it is kept; none where it goes.
	Reasons []string
	// Removed is set by Forget once it is gone.
	Removed bool
}

// ForgetPlan is what forgetting would do to a system.
type ForgetPlan struct {
	System dr.System
	Policy retain.Policy
	// Rows are the system's snapshots by number.
	Rows []ForgetRow
	// Problems are tags that do not verify. They are left alone and keep nothing
	// from being forgotten.
	Problems []Problem

	// replaced are older tags of snapshots that compaction has tagged anew.
	replaced []*Snapshot
	// epoch and move are the newest records on which the plan rests.
	epoch, move dr.Number
	locked      map[numberKey]bool
}

// Going counts the snapshots that the plan removes.
func (p *ForgetPlan) Going() (n int) {
	for _, row := range p.Rows {
		if !row.Keep {
			n++
		}
	}
	return n
}

// PlanForget decides which snapshots of a system a policy keeps
// (retain.Decide), and changes nothing. Whatever the policy says these stay: the
// head of the line, the base of the newest claim, the bases by which snapshots
// of older epochs that stay are known to be on the line, what a move that is
// under way names, what is locked, and the newest snapshot of each host, hence
// the highest number of all.
//
// Errors: dr.ErrUsage for a policy that keeps nothing, dr.ErrTampered where the
// registry shows an older state than this host has seen, or has shown one that
// nobody has accepted (Problem.SetBack), or an epoch cannot be understood, dr.ErrNotFound for a system without snapshots and where the head
// of the line is missing.
func (r *Repo) PlanForget(ctx context.Context, system dr.System, policy retain.Policy) (*ForgetPlan, error) {
	what := fmt.Sprintf("forget snapshots of system %s", system)
	if policy.Empty() {
		return nil, fmt.Errorf("%s: the policy keeps nothing: %w", what, dr.ErrUsage)
	}
	// The snapshots first: what is committed and claimed while this reads is not
	// among them.
	found, problems, err := r.allSnapshots(ctx, system)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	p := &ForgetPlan{System: system, Policy: policy, Problems: problems}
	err = refuseSetBack(problems)
	if err == nil {
		err = r.refuseOlder(ctx)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	line, err := r.lineOf(ctx, system)
	if err != nil {
		return nil, fmt.Errorf("%s: nothing was removed: %w", what, err)
	}
	p.epoch, p.move = line.epoch, line.move
	if p.locked, err = r.lockedNumbers(ctx, system); err != nil {
		return nil, fmt.Errorf("%s: nothing was removed: %w", what, err)
	}
	var snaps []*Snapshot
	for _, s := range found {
		if s.replaced {
			p.replaced = append(p.replaced, s)
		} else {
			snaps = append(snaps, s)
		}
	}
	if len(snaps) == 0 {
		return nil, withProblems(fmt.Errorf("%s: it has none: %w", what, dr.ErrNotFound), problems)
	}
	if err := p.decide(line, snaps, policy); err != nil {
		return nil, fmt.Errorf("%s: nothing was removed: %w", what, err)
	}
	return p, nil
}

// line is what the records say of a system.
type line struct {
	claims      []fence.Claim
	moves       []fence.Move
	epoch, move dr.Number
}

func (r *Repo) lineOf(ctx context.Context, system dr.System) (*line, error) {
	l := &line{}
	var err error
	if l.claims, err = r.claims(ctx, system); err != nil {
		return nil, err
	}
	if n := len(l.claims); n > 0 {
		l.epoch = dr.Number(l.claims[n-1].Epoch)
	}
	recs, err := r.ListRecords(ctx, Tag{Class: ClassSwitch, System: system}.prefix())
	if err != nil {
		return nil, err
	}
	for _, rec := range recs {
		var m fence.Move
		if err := json.Unmarshal(rec.Body, &m); err != nil {
			return nil, fmt.Errorf("switch record %s: %w: %w", rec.Tag, err, dr.ErrTampered)
		}
		m.Number, l.move = rec.Number, rec.Number
		l.moves = append(l.moves, m)
	}
	return l, nil
}

// needs are the snapshots that the records name and that must stay, with the
// reason.
func (l *line) needs() map[dr.SnapshotID]string {
	out := map[dr.SnapshotID]string{}
	if n := len(l.claims); n > 0 && l.claims[n-1].Base != nil {
		out[*l.claims[n-1].Base] = fmt.Sprintf("base of epoch %d", l.claims[n-1].Epoch)
	}
	if open, ok := fence.Open(l.moves, l.claims); ok {
		for _, m := range l.moves {
			if m.ID == open.ID && m.Snapshot != nil {
				out[*m.Snapshot] = "named by the move to site " + string(open.To)
			}
		}
	}
	return out
}

// decide fills in the rows.
func (p *ForgetPlan) decide(l *line, snaps []*Snapshot, policy retain.Policy) error {
	facts := make([]fence.Snap, len(snaps))
	newest := map[dr.HostID]dr.Number{}
	for i, s := range snaps {
		facts[i] = fence.Snap{ID: s.ID, Number: s.Number, Epoch: s.Epoch, Host: s.Host, Kind: s.Kind}
		newest[s.Host] = max(newest[s.Host], s.Number)
	}
	headID, ok := fence.Head(l.claims, facts)
	if ok && !slices.ContainsFunc(snaps, func(s *Snapshot) bool { return s.ID == headID }) {
		return fmt.Errorf("the newest epoch builds on snapshot %s, which is not there: %w", headID.Short(), dr.ErrNotFound)
	}
	named := l.needs()
	in := make([]retain.Snap, len(snaps))
	for i, s := range snaps {
		in[i] = retain.Snap{ID: s.ID, Number: s.Number, Created: s.Created}
		if !fence.OnLine(l.claims, facts, s.ID) {
			in[i].Group = s.Host.String()
		}
		if ok && s.ID == headID {
			in[i].Protected = append(in[i].Protected, "newest of the line")
		}
		if why := named[s.ID]; why != "" {
			in[i].Protected = append(in[i].Protected, why)
		}
		if newest[s.Host] == s.Number && s.ID != headID {
			in[i].Protected = append(in[i].Protected, "newest of its host")
		}
		if p.locked[numberKey{s.System, s.Number}] {
			in[i].Protected = append(in[i].Protected, "locked")
		}
	}
	verdicts := keepBases(l.claims, snaps, retain.Decide(time.Now(), policy, in))
	byNumber := map[dr.Number]*Snapshot{}
	for _, s := range snaps {
		byNumber[s.Number] = s
	}
	for _, v := range verdicts {
		p.Rows = append(p.Rows, ForgetRow{Snapshot: *byNumber[v.Number], Keep: v.Keep, Reasons: v.Reasons})
	}
	return nil
}

// keepBases keeps the base of each claim as long as a snapshot of the epoch
// before it stays: by the base it is known which of them are on the line.
func keepBases(claims []fence.Claim, snaps []*Snapshot, verdicts []retain.Verdict) []retain.Verdict {
	epochs := map[dr.Number]dr.Epoch{}
	for _, s := range snaps {
		epochs[s.Number] = s.Epoch
	}
	for i := len(claims) - 1; i > 0; i-- { // a base that stays is of an older epoch
		if claims[i].Base == nil {
			continue
		}
		stays := slices.ContainsFunc(verdicts, func(v retain.Verdict) bool {
			return v.Keep && v.ID != *claims[i].Base && epochs[v.Number] == claims[i-1].Epoch
		})
		for k := range verdicts {
			if v := &verdicts[k]; stays && !v.Keep && v.ID == *claims[i].Base {
				v.Keep = true
				v.Reasons = append(v.Reasons, fmt.Sprintf("base of epoch %d, by which others are judged", claims[i].Epoch))
			}
		}
	}
	return verdicts
}

// Forget removes what a plan does not keep: its tag, then its image index where
// no other tag names it. What the snapshots needed stays in the registry until
// it is collected (Collect). Oldest first; running it again, with a new plan,
// goes on where it stopped (invariant 8).
//
// Epochs and moves are read again on the way. When somebody claims or moves the
// system meanwhile Forget stops with dr.ErrHeld, and puts back what the new
// record names. Other errors: store.ErrForbidden where the login's access role
// does not delete, store.ErrUnsupported where the registry does not.
func (r *Repo) Forget(ctx context.Context, p *ForgetPlan) error {
	what := fmt.Sprintf("forget snapshots of system %s", p.System)
	var list []*forgetting
	for _, s := range p.replaced {
		list = append(list, &forgetting{snap: s})
	}
	for i := range p.Rows {
		if row := &p.Rows[i]; !row.Keep {
			list = append(list, &forgetting{snap: &row.Snapshot, row: row})
		}
	}
	for batch := range slices.Chunk(list, forgetBatch) {
		if err := r.unchanged(ctx, p); err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		if err := r.unlocked(ctx, p.System, batch); err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		// Their absence is known to this host from here on.
		if err := r.state.unsee(tagsOf(batch)); err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		err := r.forgetBatch(ctx, batch)
		if again := r.putBackNamed(ctx, p, batch); again != nil {
			err = errors.Join(again, err)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
	}
	if err := r.dropIndexes(ctx, list); err != nil {
		return fmt.Errorf("%s: the snapshots are forgotten; their manifests are still stored: %w", what, err)
	}
	return nil
}

// forgetting is one snapshot on its way out.
type forgetting struct {
	snap *Snapshot
	row  *ForgetRow // nil for a replaced tag
	body []byte     // of the image index, to put it back
	gone bool       // the tag is deleted, or was
}

// tagsOf are all tags that speak of the snapshots of a batch.
func tagsOf(batch []*forgetting) (tags []Tag) {
	for _, f := range batch {
		tags = append(append(tags, f.snap.at, f.snap.at.commitTag()), f.snap.place.tags...)
	}
	return tags
}

// unchanged looks whether epochs and moves are still those of the plan. The
// error wraps dr.ErrHeld.
func (r *Repo) unchanged(ctx context.Context, p *ForgetPlan) error {
	for _, c := range []struct {
		class Class
		known dr.Number
	}{{ClassEpoch, p.epoch}, {ClassSwitch, p.move}} {
		rec, err := r.Latest(ctx, c.class, p.System)
		var now dr.Number
		switch {
		case err == nil:
			now = rec.Number
		case !errors.Is(err, dr.ErrNotFound):
			return err
		}
		if now != c.known {
			return fmt.Errorf("the system is being moved or taken over at this moment (%s); run it again: %w",
				Tag{Class: c.class, System: p.System, Number: now}, dr.ErrHeld)
		}
	}
	return nil
}

// unlocked looks whether somebody has locked a snapshot of a batch since the plan
// was made. The error wraps dr.ErrHeld.
func (r *Repo) unlocked(ctx context.Context, system dr.System, batch []*forgetting) error {
	locked, err := r.lockedNumbers(ctx, system)
	if err != nil {
		return err
	}
	for _, f := range batch {
		if locked[numberKey{f.snap.System, f.snap.Number}] {
			return fmt.Errorf("%s was locked at this moment; run it again: %w", f.snap.Tag, dr.ErrHeld)
		}
	}
	return nil
}

func (r *Repo) forgetBatch(ctx context.Context, batch []*forgetting) error {
	for _, f := range batch {
		if err := r.forgetOne(ctx, f); err != nil {
			return fmt.Errorf("remove %s: %w", f.snap.Tag, err)
		}
		f.gone = true
		if f.row != nil {
			f.row.Removed = true
		}
	}
	return nil
}

func (r *Repo) forgetOne(ctx context.Context, f *forgetting) error {
	s := f.snap
	// What spoke of it before its relocation goes first: cut off here, it is still
	// found where it lies.
	for _, t := range slices.Backward(s.place.tags) {
		if t == s.at {
			break
		}
		if _, err := r.dropPlace(ctx, t, s); err != nil {
			return err
		}
	}
	m, err := r.st.GetManifest(ctx, s.Place)
	if errors.Is(err, store.ErrNotFound) {
		return nil // an earlier run, or another operator
	}
	if err != nil {
		return err
	}
	if m.Digest != s.Digest {
		return tampered("it names %s, and named %s a moment ago", m.Digest, s.Digest)
	}
	f.body = m.Body
	if err := r.dropTag(ctx, s.Place, s.Digest); !errors.Is(err, store.ErrNotFound) {
		return err
	}
	return nil
}

// dropTag removes a tag; at registries that cannot, the manifest with it, unless
// another tag names that.
func (r *Repo) dropTag(ctx context.Context, tag string, d digest.Digest) error {
	err := r.st.DeleteTag(ctx, tag)
	if !errors.Is(err, store.ErrUnsupported) {
		return err
	}
	// Such registries delete a manifest with all tags that name it.
	named, err := r.namedElsewhere(ctx, d, tag)
	if err != nil {
		return err
	}
	if named {
		return fmt.Errorf("another tag names its image index, and this registry deletes both or none: %w", store.ErrUnsupported)
	}
	return r.st.DeleteManifest(ctx, d)
}

// namedElsewhere reports whether a tag other than one names a manifest. Records
// are bound to their tag, so this is about tags that people made.
func (r *Repo) namedElsewhere(ctx context.Context, d digest.Digest, one string) (bool, error) {
	tags, err := r.st.Tags(ctx, "")
	if err != nil {
		return false, err
	}
	for _, t := range tags {
		if t == one || isOurs(t) {
			continue
		}
		have, err := r.st.ResolveTag(ctx, t)
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			return false, err
		}
		if err == nil && have == d {
			return true, nil
		}
	}
	return false, nil
}

// isOurs reports whether a tag is of Lifeboat's grammar.
func isOurs(tag string) bool {
	_, err := ParseTag(tag)
	return err == nil || isPackTag(tag)
}

// putBackNamed puts back what a claim or move names that was written while the
// batch was removed. It returns what unchanged says.
func (r *Repo) putBackNamed(ctx context.Context, p *ForgetPlan, batch []*forgetting) error {
	changed := r.unchanged(ctx, p)
	if changed == nil {
		return nil
	}
	l, err := r.lineOf(ctx, p.System)
	if err != nil {
		return errors.Join(changed, err)
	}
	for _, f := range batch {
		if !f.gone || f.body == nil || l.needs()[f.snap.ID] == "" {
			continue
		}
		// Its number was given out for this very manifest, so no registry refuses it.
		if err := r.putTag(ctx, f.snap.Place, ocispec.MediaTypeImageIndex, f.body); err != nil {
			return errors.Join(changed, fmt.Errorf("put %s back, which is needed again: %w", f.snap.Tag, err))
		}
		f.gone = false
		if f.row != nil {
			f.row.Removed = false
		}
	}
	return changed
}

// dropIndexes deletes the image indexes of what was forgotten, unless a tag that
// somebody made names one.
func (r *Repo) dropIndexes(ctx context.Context, list []*forgetting) error {
	named := map[digest.Digest]bool{}
	tags, err := r.st.Tags(ctx, "")
	if err != nil {
		return err
	}
	gone := map[numberKey]bool{}
	for _, f := range list {
		gone[numberKey{f.snap.System, f.snap.Number}] = f.gone
	}
	for _, t := range tags {
		if own, err := ParseTag(t); err == nil && own.Class == ClassLock && gone[numberKey{own.System, own.Number}] {
			// A lock that was taken away speaks of nothing any more.
			if err := r.st.DeleteTag(ctx, t); err != nil && !errors.Is(err, store.ErrNotFound) && !errors.Is(err, store.ErrUnsupported) {
				return err
			}
		}
		if isOurs(t) {
			continue
		}
		d, err := r.st.ResolveTag(ctx, t)
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			return err
		}
		named[d] = true
	}
	for _, f := range list {
		if !f.gone || named[f.snap.Digest] {
			continue
		}
		err := r.st.DeleteManifest(ctx, f.snap.Digest)
		switch {
		case err == nil, errors.Is(err, store.ErrNotFound), errors.Is(err, store.ErrListed):
		case errors.Is(err, store.ErrUnsupported):
			r.log.Info("the registry does not delete manifests", "error", err)
			return nil
		default:
			return err
		}
	}
	return nil
}
