package repo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"lifeboat/internal/catalog"
	"lifeboat/internal/dr"
	"lifeboat/internal/layer"
)

// Hit says what of a snapshot lies in one blob of the repository.
type Hit struct {
	// Objects cannot be read at all: "the description", "the list of files of
	// TREE", "image NAME".
	Objects []string
	// Files have content there, as TREE /path; Further is how many are not listed.
	Files   []string
	Further int
}

// Struck finds what of the problem's snapshot lies in its blob, listing at most
// limit files. A blob that is no pack (a manifest or an index) gives nothing: its
// problem says all of it. Errors are those of reading what is whole.
func (r *Repo) Struck(ctx context.Context, p Problem, limit int) (Hit, error) {
	var h Hit
	tag, err := ParseTag(p.Tag)
	if err != nil || tag.Class != ClassSnapshot || p.Blob == "" {
		return h, nil
	}
	s, err := r.Find(ctx, tag.System, p.Snapshot.String())
	if err != nil {
		return h, fmt.Errorf("what %s holds: %w", p.Blob, err)
	}
	units, err := r.unitsOf(ctx, s, p.Blob)
	if err != nil || len(units) == 0 {
		return h, err
	}
	rd, err := r.NewReader(ctx, s)
	if err != nil {
		return h, fmt.Errorf("what %s holds: %w", p.Blob, err)
	}
	defer rd.Close()
	root, err := rd.Root(ctx)
	if err != nil {
		return Hit{Objects: []string{"the description"}}, nil
	}
	w := struck{rd, units, limit, &h}
	for _, t := range root.Trees {
		if err := w.tree(ctx, t); err != nil {
			return h, err
		}
	}
	for _, im := range root.Images {
		if err := w.image(ctx, im); err != nil {
			return h, err
		}
	}
	return h, nil
}

// unitsOf lists the units of a pack, as the indexes that the snapshot needs tell.
func (r *Repo) unitsOf(ctx context.Context, s *Snapshot, blob string) (map[dr.UnitID]bool, error) {
	units := map[dr.UnitID]bool{}
	for _, n := range s.needs {
		ix, err := r.idx.get(ctx, n)
		if err != nil {
			continue // a problem of its own
		}
		err = packUnits(ix, blob, units)
		r.idx.put(ix)
		if err != nil {
			return nil, err
		}
	}
	return units, nil
}

func packUnits(ix *index, blob string, units map[dr.UnitID]bool) error {
	for i := range uint32(ix.Packs()) {
		p, err := ix.Pack(i)
		if err != nil {
			return err
		}
		if digestOf(p.Digest).String() != blob {
			continue
		}
		for g := range p.Groups {
			group, err := ix.Group(p.FirstGroup + g)
			if err != nil {
				return err
			}
			refs, err := ix.UnitsOf(group)
			if err != nil {
				return err
			}
			for _, u := range refs {
				units[u.ID] = true
			}
		}
	}
	return nil
}

// struck looks through a snapshot for units of one pack.
type struck struct {
	rd    *Reader
	units map[dr.UnitID]bool
	limit int
	hit   *Hit
}

func (w struck) any(refs []dr.UnitRef) bool {
	for _, u := range refs {
		if w.units[u.ID] {
			return true
		}
	}
	return false
}

func (w struck) object(name string) { w.hit.Objects = append(w.hit.Objects, name) }

func (w struck) tree(ctx context.Context, t dr.Tree) error {
	cat, err := catalog.Open(ctx, w.rd, t.Catalog)
	if w.any(t.Catalog) || err != nil || w.any(cat.Pages()) {
		w.object("the list of files of " + t.Key)
		return ctx.Err()
	}
	for {
		e, err := cat.Next(ctx)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			w.object("the list of files of " + t.Key)
			return ctx.Err()
		}
		if !w.entry(ctx, cat, &e) {
			continue
		}
		if len(w.hit.Files) < w.limit {
			w.hit.Files = append(w.hit.Files, t.Key+" /"+strings.Clone(e.Path))
		} else {
			w.hit.Further++
		}
	}
}

var errStruck = errors.New("found")

// entry tells whether content of a file, or the list of it, lies there.
func (w struck) entry(ctx context.Context, cat *catalog.Reader, e *catalog.Entry) bool {
	if e.Type != catalog.File {
		return false
	}
	return cat.Content(ctx, e, func(_ int64, ref catalog.Ref) error {
		if w.units[ref.Unit().ID] {
			return errStruck
		}
		return nil
	}) != nil
}

func (w struck) image(ctx context.Context, im dr.Image) error {
	name := im.ID
	if len(im.Tags) > 0 {
		name = im.Tags[0]
	}
	rec, err := layer.Decode(ctx, w.rd, im.Record)
	if err == nil && !w.any(im.Record) {
		err = layer.Units(ctx, w.rd, rec, func(u dr.UnitRef) error {
			if w.units[u.ID] {
				return errStruck
			}
			return nil
		})
		if err == nil {
			return nil
		}
	}
	w.object("image " + name)
	return ctx.Err()
}
