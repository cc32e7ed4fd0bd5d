package tree

import (
	"context"
	"errors"
	"iter"

	"lifeboat/internal/catalog"
	"lifeboat/internal/dr"
)

// maxCopies bounds the units that are looked for elsewhere in the old tree.
const maxCopies = 1 << 17

// plan says which of the units that are needed lie elsewhere in the old tree:
// what was renamed or rotated is copied, not fetched.
type plan struct {
	copies map[dr.UnitID]localPos
	// sources are paths that copies come from; they are removed or changed last.
	sources map[string]struct{}
	// above are the directories that hold a source, at any depth.
	above map[string]struct{}
	// linked are first names of link groups, here or in the target, that change.
	linked []string
}

type localPos struct {
	path string
	off  int64
}

// makePlan counts what is needed and looks for it in what is to go or change.
func (a *applier) makePlan(ctx context.Context) (*plan, error) {
	p := &plan{copies: map[dr.UnitID]localPos{}, sources: map[string]struct{}{}, above: map[string]struct{}{}}
	search := false
	err := a.diff(ctx, func(c catalog.Change) error {
		if c.A != nil && c.A.Type == catalog.File && c.Kind != catalog.Metadata {
			search = true
		}
		if c.A != nil && c.B != nil && c.A.Type == c.B.Type && (c.A.LinkGroup || c.B.LinkGroup) && !sameButGroup(c) {
			p.linked = append(p.linked, c.B.Clone().Path)
		}
		if c.B == nil || c.B.Type != catalog.File || c.Kind == catalog.Metadata {
			return nil
		}
		err := a.pieces(ctx, c, func(_ int64, ref catalog.Ref, here bool) error {
			if here || ref.Hole {
				return nil
			}
			a.needed.Add(ref.Len)
			if a.current != nil && len(p.copies) < maxCopies {
				p.copies[ref.ID] = localPos{off: -1}
			}
			return nil
		})
		if a.o.salvage.forgives(ctx, err) {
			return nil // told when it is written
		}
		return err
	})
	a.counted = true
	if err != nil {
		return nil, err
	}
	if search && len(p.copies) > 0 {
		err = a.diff(ctx, func(c catalog.Change) error { return a.findSources(ctx, c, p) })
	}
	for id, pos := range p.copies {
		if pos.off < 0 {
			delete(p.copies, id)
		}
	}
	return p, err
}

func (a *applier) findSources(ctx context.Context, c catalog.Change, p *plan) error {
	if c.A == nil || c.A.Type != catalog.File || c.Kind == catalog.Metadata {
		return nil
	}
	path := c.A.Clone().Path
	return a.current.Content(ctx, c.A, func(off int64, ref catalog.Ref) error {
		if ref.Hole {
			return nil
		}
		if pos, needed := p.copies[ref.ID]; needed && pos.off < 0 {
			p.copies[ref.ID] = localPos{path: path, off: off}
			p.sources[path] = struct{}{}
			for d := path; c.Kind == catalog.Removed && d != ""; {
				d = catalog.Parent(d)
				p.above[d] = struct{}{}
			}
		}
		return nil
	})
}

// pieces calls fn for each stretch of the wanted content of c.B, with whether
// the file at the same path has it at the same place already.
func (a *applier) pieces(ctx context.Context, c catalog.Change, fn func(off int64, ref catalog.Ref, here bool) error) error {
	next := func() (stretch, bool) { return stretch{}, false }
	var failed error
	if c.A != nil && c.A.Type == catalog.File {
		var stop func()
		next, stop = iter.Pull(stretches(ctx, a.current, c.A, &failed))
		defer stop()
	}
	old, ok := next()
	err := a.target.Content(ctx, c.B, func(off int64, ref catalog.Ref) error {
		for ok && old.off < off {
			old, ok = next()
		}
		return fn(off, ref, ok && old.off == off && old.ref == ref)
	})
	return errors.Join(err, failed)
}

type stretch struct {
	off int64
	ref catalog.Ref
}

var errStop = errors.New("stop")

// stretches is Content as a sequence; an error ends it and goes to failed.
func stretches(ctx context.Context, r *catalog.Reader, e *catalog.Entry, failed *error) iter.Seq[stretch] {
	return func(yield func(stretch) bool) {
		err := r.Content(ctx, e, func(off int64, ref catalog.Ref) error {
			if !yield(stretch{off, ref}) {
				return errStop
			}
			return nil
		})
		if err != nil && !errors.Is(err, errStop) {
			*failed = err
		}
	}
}
