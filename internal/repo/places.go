package repo

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"

	"lifeboat/internal/dr"
	"lifeboat/internal/store"
)

// place is one number of a system and the tags that say where its snapshot
// lies: the commit's own, and those of relocations (docs/format.md, Relocation).
type place struct {
	system dr.System
	number dr.Number
	// tags are the relocations from the highest turn down, then the commit's own.
	tags []Tag
}

// tag is the tag under which the snapshot was committed, there or not.
func (p place) tag() Tag { return Tag{Class: ClassSnapshot, System: p.system, Number: p.number} }

// listPlaces lists the numbers of a system ("" for all) that are taken, in the
// order of system and number, with one listing of tags.
func (r *Repo) listPlaces(ctx context.Context, system dr.System) ([]place, []Problem, error) {
	names, err := r.st.Tags(ctx, "")
	if err != nil {
		return nil, nil, err
	}
	places, problems := placesOf(names, system)
	return places, problems, nil
}

// placesOf picks the places of a system out of a listing of tags.
func placesOf(names []string, system dr.System) ([]place, []Problem) {
	var mine []string
	for _, c := range []Class{ClassSnapshot, ClassRelocation} {
		prefix := Tag{Class: c, System: system}.prefix()
		for _, name := range names {
			if strings.HasPrefix(name, prefix) {
				mine = append(mine, name)
			}
		}
	}
	tags, problems := parseTags(mine)
	slices.SortStableFunc(tags, func(a, b Tag) int {
		return cmp.Or(cmp.Compare(a.System, b.System), cmp.Compare(a.Number, b.Number), cmp.Compare(b.Turn, a.Turn))
	})
	var out []place
	for _, t := range tags {
		if n := len(out); n == 0 || out[n-1].system != t.System || out[n-1].number != t.Number {
			out = append(out, place{system: t.System, number: t.Number})
		}
		last := &out[len(out)-1]
		last.tags = append(last.tags, t)
	}
	return out, problems
}

// relist lists the tags of one number again.
func (r *Repo) relist(ctx context.Context, p place) (place, error) {
	names, err := r.st.Tags(ctx, "")
	if err != nil {
		return p, err
	}
	all, _ := placesOf(names, p.system)
	i, ok := slices.BinarySearchFunc(all, p.number, func(q place, n dr.Number) int { return cmp.Compare(q.number, n) })
	p.tags = nil
	if ok {
		p.tags = all[i].tags
	}
	return p, nil
}

// relistTries is how often the tags of a number are listed again because all
// that were listed are gone: each time somebody has relocated it meanwhile.
const relistTries = 3

// readPlace reads the snapshot of a number: of its tags the first that verifies
// counts. nil without an error when there is none. What does not verify on the
// way is a problem. Errors are those of the store.
func (r *Repo) readPlace(ctx context.Context, p place) (*Snapshot, []Problem, error) {
	var problems []Problem
	tried := map[Tag]bool{}
	for range relistTries {
		var gone bool
		var last *Snapshot // by a host that was revoked since
		for _, t := range p.tags {
			if tried[t] {
				continue
			}
			tried[t] = true
			s, distrust, err := r.snapshotAt(ctx, t)
			switch {
			case err == nil && distrust == nil:
				s.place = p
				return s, problems, nil
			case err == nil:
				problems = append(problems, Problem{Tag: t.String(), Err: distrust})
				if last == nil {
					last = s
				}
			case errors.Is(err, store.ErrNotFound):
				gone = true
			case about(err):
				problems = append(problems, Problem{Tag: t.String(), Err: err})
			default:
				return nil, nil, err
			}
		}
		if last != nil {
			last.place = p
			return last, problems, nil
		}
		if !gone {
			break
		}
		// It was relocated or forgotten since the tags were listed.
		fresh, err := r.relist(ctx, p)
		if err != nil {
			return nil, nil, err
		}
		if !slices.ContainsFunc(fresh.tags, func(t Tag) bool { return !tried[t] }) {
			break
		}
		p = fresh
	}
	return nil, problems, nil
}

// readPlaces reads many, in parallel and in their order.
func (r *Repo) readPlaces(ctx context.Context, list []place) (found []*Snapshot, problems []Problem, err error) {
	type result struct {
		snap     *Snapshot
		problems []Problem
	}
	all := make([]result, len(list))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(listParallel)
	for i, p := range list {
		g.Go(func() (err error) {
			if all[i].snap, all[i].problems, err = r.readPlace(gctx, p); err != nil {
				return fmt.Errorf("read %s: %w", p.tag(), err)
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, nil, err
	}
	for _, a := range all {
		problems = append(problems, a.problems...)
		if a.snap != nil {
			found = append(found, a.snap)
		}
	}
	return found, problems, nil
}

// elsewhere adds the pack manifests that the other tags of the snapshot name, as
// they are now: it was relocated while it was being read, or to manifests that do
// not hold all of it, and its older tags are still there. It looks once, and
// reports whether anything was added.
func (rd *Reader) elsewhere(ctx context.Context) bool {
	rd.elsewhereOnce.Do(func() {
		r, s := rd.repo, rd.snap
		p, err := r.relist(ctx, s.place)
		if err != nil {
			r.log.Warn("looking for other places of a snapshot failed", "snapshot", s.ID.Short(), "error", err)
			return
		}
		known := map[need]bool{}
		for _, ix := range rd.indexes() {
			known[ix.need] = true
		}
		var more []*index
		add := func(needs []need) {
			for _, n := range needs {
				if known[n] {
					continue
				}
				known[n] = true
				ix, err := r.idx.get(ctx, n)
				if err != nil {
					r.log.Warn("a pack manifest of a snapshot cannot be used", "snapshot", s.ID.Short(), "manifest", n.Digest, "error", err)
					continue
				}
				more = append(more, ix)
			}
		}
		for _, t := range p.tags {
			if t == s.at {
				continue
			}
			if other, _, err := r.snapshotAt(ctx, t); err == nil && other.ID == s.ID {
				add(other.needs)
			}
		}
		if len(more) == 0 {
			return
		}
		add(s.needs) // where one of them could not be opened
		r.log.Warn("a snapshot is also read from where its other tags say that it lies", "snapshot", s.ID.Short(), "place", s.Place)
		rd.mu.Lock()
		defer rd.mu.Unlock()
		ixs := slices.Concat(rd.indexes(), more)
		rd.ixs.Store(&ixs)
		rd.elsewhereMore = true
	})
	return rd.elsewhereMore
}
