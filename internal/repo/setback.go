package repo

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"lifeboat/internal/dr"
	"lifeboat/internal/store"
)

// setback is an older state that the registry has shown of a system's snapshots:
// its newest was number Shown, and this host had seen number Seen. It is remembered,
// because the next snapshot takes a higher number, and after that no number tells
// any more that something is missing. It ends when what was missing is there again,
// or when the operator accepts the older state.
type setback struct {
	Shown dr.Number `json:"shown"`
	Seen  dr.Number `json:"seen"`
	Since time.Time `json:"since"`
	// Tags are those above Shown that this host has seen, with what they named.
	Tags map[string]digest.Digest `json:"tags"`
}

// maxSetbacks bounds how many are remembered of one system. Each needs a newer
// snapshot than the one before; those that there are go on standing.
const maxSetbacks = 64

// covers reports whether a number is among those that were missing.
func (b setback) covers(n dr.Number) bool { return b.Shown < n && n <= b.Seen }

// missing says which snapshots the older state lacked.
func (b setback) missing(prefix string) string {
	switch {
	case b.Seen-b.Shown == 1:
		return fmt.Sprintf("%s%d", prefix, b.Seen)
	case b.Seen-b.Shown == 2:
		return fmt.Sprintf("%s%d and %s%d", prefix, b.Shown+1, prefix, b.Seen)
	}
	return fmt.Sprintf("%s%d to %s%d", prefix, b.Shown+1, prefix, b.Seen)
}

// noteSetback remembers, durably, that the registry has shown less of a class of
// snapshots than this host has seen. Records of other classes are never removed
// and their numbers never skipped, so what is missing of them is noticed each time
// (checkShown); they are not noted.
func (s *state) noteSetback(prefix string, shown, seen dr.Number, now time.Time) error {
	t, err := ParseTag(prefix + "1")
	if err != nil || t.Class != ClassSnapshot {
		return nil
	}
	return s.changeMarks(func(m *marks) bool {
		list := m.Setbacks[prefix]
		i := slices.IndexFunc(list, func(b setback) bool { return b.Seen == seen })
		if i < 0 && len(list) == maxSetbacks || i >= 0 && list[i].Shown <= shown {
			return false
		}
		if i < 0 {
			list = append(list, setback{Seen: seen, Since: now.UTC()})
			i = len(list) - 1
		}
		b := &list[i]
		b.Shown, b.Tags = shown, map[string]digest.Digest{}
		for name, d := range m.Seen {
			if of, err := ParseTag(name); err == nil && of.commitTag().prefix() == prefix && of.Class != ClassLock && b.covers(of.Number) {
				b.Tags[name] = d
			}
		}
		m.Setbacks[prefix] = list
		return true
	})
}

// setbacks returns those that are remembered, by tag prefix.
func (s *state) setbacks() (all map[string][]setback, err error) {
	err = s.locked(func() error {
		m, err := s.loadMarks()
		all = maps.Clone(m.Setbacks)
		return err
	})
	return all, err
}

// endSetbacks forgets those of a prefix for which over is true.
func (s *state) endSetbacks(prefix string, over func(setback) bool) error {
	return s.changeMarks(func(m *marks) bool {
		list := slices.DeleteFunc(slices.Clone(m.Setbacks[prefix]), over)
		if len(list) == len(m.Setbacks[prefix]) {
			return false
		}
		m.Setbacks[prefix] = list
		if len(list) == 0 {
			delete(m.Setbacks, prefix)
		}
		return true
	})
}

// SetBack reports whether the problem is that the registry shows, or has shown, an
// older state than this host has seen, and nobody has accepted that
// (OpenOptions.AcceptOlder). Nothing is removed from a repository of which that is
// so.
func (p Problem) SetBack() bool { return strings.HasSuffix(p.Tag, "*") }

// ErrSetBack: nothing is removed, because an older state that the registry shows or
// has shown stands (Problem.SetBack). It comes with dr.ErrTampered.
var ErrSetBack = errors.New("the registry was set back")

// refuseSetBack returns an error where one of the problems is that the registry was
// set back: what found them removes nothing then. The error wraps ErrSetBack.
func refuseSetBack(problems []Problem) error {
	if i := slices.IndexFunc(problems, Problem.SetBack); i >= 0 {
		return fmt.Errorf("nothing was removed: %w: %w", ErrSetBack, problems[i].Err)
	}
	return nil
}

// SetBacks looks whether older states of a system's snapshots ("" for all) that
// this host has been shown still stand: what was missing is missing, and nobody has
// accepted it. Where none was ever shown it asks the registry nothing.
func (r *Repo) SetBacks(ctx context.Context, system dr.System) ([]Problem, error) {
	known, err := r.state.setbacks()
	if err != nil {
		return nil, fmt.Errorf("look for older states: %w", err)
	}
	if system != "" {
		prefix := Tag{Class: ClassSnapshot, System: system}.prefix()
		known = map[string][]setback{prefix: known[prefix]}
	}
	var out []Problem
	for _, prefix := range slices.Sorted(maps.Keys(known)) {
		t, err := ParseTag(prefix + "1")
		if err != nil || len(known[prefix]) == 0 {
			continue
		}
		_, problems, err := r.allSnapshots(ctx, t.System)
		if err != nil {
			return nil, fmt.Errorf("look for older states: %w", err)
		}
		for _, p := range problems {
			if p.SetBack() {
				out = append(out, p)
			}
		}
	}
	return out, nil
}

// standing ends the setbacks of a system whose missing snapshots are there again,
// and returns the others as problems. now is the number that the registry shows
// less than at this moment, 0 for none: that problem has been told.
func (r *Repo) standing(prefix string, there map[dr.Number]*Snapshot, now dr.Number) ([]Problem, error) {
	known, err := r.state.setbacks()
	if err != nil || len(known[prefix]) == 0 {
		return nil, err
	}
	if !store.Lagging(r.st) {
		over := func(b setback) bool { return b.over(prefix, there) }
		if slices.ContainsFunc(known[prefix], over) {
			if err := r.state.endSetbacks(prefix, over); err != nil {
				return nil, err
			}
			r.notice(fmt.Sprintf("what was missing under %s* is there again", prefix))
		}
		known[prefix] = slices.DeleteFunc(slices.Clone(known[prefix]), over)
	}
	var out []Problem
	for _, b := range known[prefix] {
		if b.Seen != now {
			out = append(out, Problem{Tag: prefix + "*", Err: b.err(prefix)})
		}
	}
	return out, nil
}

// over reports whether the newest of what was missing is there again: the highest
// number of a system is never removed. It may have been relocated since.
func (b setback) over(prefix string, there map[dr.Number]*Snapshot) bool {
	s, ok := there[b.Seen]
	if !ok || s == nil {
		return ok
	}
	was, known := b.Tags[fmt.Sprintf("%s%d", prefix, b.Seen)]
	return !known || s.Place != s.Tag || s.Digest == was
}

// err wraps dr.ErrTampered.
func (b setback) err(prefix string) error {
	return tampered("the registry has shown an older state of the repository: on %s the newest valid record under %s* was number %d, this host had seen number %d, and nobody has accepted that; missing since: %s; %s",
		b.Since.UTC().Format("2006-01-02 15:04 UTC"), prefix, b.Shown, b.Seen, b.missing(prefix), acceptOlder)
}

// refuseOlder returns an error where any system's snapshots were set back: nothing
// is removed then, of no system. The error wraps ErrSetBack.
func (r *Repo) refuseOlder(ctx context.Context) error {
	problems, err := r.SetBacks(ctx, "")
	if err != nil {
		return err
	}
	return refuseSetBack(problems)
}

// tellOlder tells an operator who is about to use the newest snapshot of a system
// that the registry was set back before it. It asks the registry only where that is
// known to have happened.
func (r *Repo) tellOlder(ctx context.Context, system dr.System) error {
	problems, err := r.SetBacks(ctx, system)
	for _, p := range problems {
		r.notice(p.Err.Error())
	}
	return err
}

// survey is what a listing of snapshots shows, beside what this host remembers.
type survey struct {
	found    []*Snapshot
	problems []Problem
	// there are the numbers that there are, by system; nil for those of a host that
	// was revoked.
	there map[dr.System]map[dr.Number]*Snapshot
	// gone are snapshots that this host has seen, by their commit tags, that are not
	// there, and of which it does not know why: somebody has forgotten them, or the
	// registry does not show them.
	gone []Tag
}

// compare compares the survey with what this host remembers of some systems:
// before are the marks from before it, newest the highest number that counts.
func (r *Repo) compare(ctx context.Context, v *survey, before map[string]dr.Number, newest map[dr.System]dr.Number) error {
	if err := r.tellMoved(ctx, v.problems); err != nil {
		return err
	}
	for _, sys := range slices.Sorted(maps.Keys(newest)) {
		p := Tag{Class: ClassSnapshot, System: sys}.prefix()
		var shown, short dr.Number
		for n, s := range v.there[sys] {
			if s == nil {
				shown = max(shown, n)
			}
		}
		if err := r.checkMark(before, p, newest[sys], shown); errors.Is(err, dr.ErrTampered) {
			v.problems, short = append(v.problems, Problem{Tag: p + "*", Err: err}), before[p]
		} else if err != nil {
			return err
		}
		more, err := r.standing(p, v.there[sys], short)
		if err != nil {
			return err
		}
		v.problems = append(v.problems, more...)
		if err := r.missing(v, sys, max(newest[sys], shown)); err != nil {
			return err
		}
	}
	return nil
}

// missing looks for snapshots of a system that this host has seen and that are not
// there, up to the newest that is. What an older state lacks, and tags that name
// something else now, were told before.
func (r *Repo) missing(v *survey, sys dr.System, newest dr.Number) error {
	m, err := r.state.remembered(sys)
	if err != nil || store.Lagging(r.st) {
		return err
	}
	told := map[dr.Number]bool{}
	for _, p := range v.problems {
		if t, err := ParseTag(p.Tag); err == nil && t.System == sys {
			told[t.Number] = true
		}
	}
	for _, n := range slices.Sorted(maps.Keys(m.digests)) {
		_, there := v.there[sys][n]
		older := slices.ContainsFunc(m.setbacks, func(b setback) bool { return b.covers(n) })
		t := Tag{Class: ClassSnapshot, System: sys, Number: n}
		switch {
		case there || told[n] || older || n > newest:
		case n == m.own:
			v.problems = append(v.problems, Problem{Tag: t.String(), lost: true, Err: tampered("this host's newest snapshot of the system, number %d, is not there any more, and forgetting removes the newest of no host: somebody has deleted its tag, or the registry does not show it; if that was meant, accept it (--accept-older), else mend it: lifeboat repair", n)})
		default:
			v.gone = append(v.gone, t)
		}
	}
	return nil
}

// memory is what a host remembers of a system's snapshots.
type memory struct {
	digests  map[dr.Number]digest.Digest // of the newest; of relocations where those count
	own      dr.Number
	setbacks []setback
}

// remembered returns it.
func (s *state) remembered(sys dr.System) (out memory, err error) {
	out.digests = map[dr.Number]digest.Digest{}
	err = s.locked(func() error {
		m, err := s.loadMarks()
		if err != nil {
			return err
		}
		prefix := Tag{Class: ClassSnapshot, System: sys}.prefix()
		out.own, out.setbacks = m.Own[prefix], slices.Clone(m.Setbacks[prefix])
		type known struct {
			tag Tag
			d   digest.Digest
		}
		var list []known
		for _, seen := range []map[string]digest.Digest{s.firm, s.fresh, m.Seen} {
			for name, d := range seen {
				if s.tookAway(&m, name) {
					continue // by another process of this host, maybe just now
				}
				if t, err := ParseTag(name); err == nil && t.System == sys && (t.Class == ClassSnapshot || t.Class == ClassRelocation) {
					list = append(list, known{t, d})
				}
			}
		}
		slices.SortFunc(list, func(a, b known) int { // turn 0 is the commit itself
			return cmp.Or(cmp.Compare(a.tag.Number, b.tag.Number), cmp.Compare(a.tag.Turn, b.tag.Turn), cmp.Compare(a.d, b.d))
		})
		for _, k := range list {
			out.digests[k.tag.Number] = k.d
		}
		return nil
	})
	return out, err
}

// tellMoved makes problems of tags that look like somebody's into damage where this
// host has seen a record there: no tag ever moves (invariant 11), so what it named
// is lost to readers. A record of a host that was revoked since is none.
func (r *Repo) tellMoved(ctx context.Context, problems []Problem) error {
	for i := range problems {
		p := &problems[i]
		t, err := ParseTag(p.Tag)
		if err != nil || !p.Foreign() || errors.Is(p.Err, ErrRevoked) {
			continue
		}
		was := r.state.seenAt(t)
		if was == "" {
			continue
		}
		now, err := r.st.ResolveTag(ctx, p.Tag)
		if errors.Is(err, store.ErrNotFound) || err != nil && about(err) || err == nil && now == was {
			continue
		}
		if err != nil {
			return err
		}
		what := "what it named is lost"
		if t.Class == ClassSnapshot {
			what = "the snapshot is lost"
		}
		p.lost = true
		p.Err = fmt.Errorf("%s: this host has seen the tag name %s, and it names %s now: somebody has moved it; put it right (lifeboat repair), or if that cannot be done accept it (--accept-older): %w", what, was, now, p.Err)
	}
	return nil
}

// tellGone tells of snapshots that this host has seen and that are not there what
// can be told: one that is locked was forgotten by nobody. The others are returned.
func (r *Repo) tellGone(ctx context.Context, gone []Tag, f *findings) (forgotten []string, err error) {
	if len(gone) == 0 {
		return nil, nil
	}
	locked, err := r.lockedNumbers(ctx, "")
	if err != nil {
		return nil, err
	}
	for _, t := range gone {
		if !locked[numberKey{t.System, t.Number}] {
			forgotten = append(forgotten, t.String())
			continue
		}
		f.add(Problem{Tag: t.String(), lost: true, Err: tampered("the snapshot is locked, and is not there any more; forgetting removes none that is locked: somebody has deleted its tag, or the registry does not show it; if that was meant, accept it (--accept-older), else mend it: lifeboat repair")})
	}
	return forgotten, nil
}

// seenAt returns what this host has seen under a tag, what an earlier process saw
// before what this one did; "" for nothing.
func (s *state) seenAt(t Tag) digest.Digest {
	s.mu.Lock()
	defer s.mu.Unlock()
	name := t.String()
	return cmp.Or(s.firm[name], s.fresh[name])
}
