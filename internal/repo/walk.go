package repo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"

	"github.com/zeebo/blake3"

	"lifeboat/internal/catalog"
	"lifeboat/internal/dr"
	"lifeboat/internal/layer"
)

// walker finds the units that snapshots are made of. What several snapshots
// share, page by page, is read once. Not safe for concurrent use.
type walker struct {
	repo *Repo
	// visit is told of each unit, possibly more than once. Calls do not overlap.
	visit func(dr.UnitID) error
	// seen has what was walked to its end.
	seen map[walked]struct{}
}

// walked names something that was walked: what it was read as and the beginning
// of the hash of its references. A unit that is a page of one tree may be the
// content of a file in another.
type walked struct {
	as byte
	id [16]byte
}

const (
	asTree  = 't'
	asPage  = 'p'
	asImage = 'i'
)

func newWalker(r *Repo, visit func(dr.UnitID) error) *walker {
	return &walker{repo: r, visit: visit, seen: map[walked]struct{}{}}
}

func walkedAs(as byte, refs ...dr.UnitRef) walked {
	if len(refs) == 1 { // an id is a hash as good; pages are many
		return walked{as: as, id: [16]byte(refs[0].ID[:16])}
	}
	h := blake3.New()
	for _, ref := range refs {
		_, _ = h.Write(ref.ID[:]) // never fails
	}
	w := walked{as: as}
	sum := h.Sum(nil)
	copy(w.id[:], sum)
	return w
}

func (w *walker) refs(refs []dr.UnitRef) error {
	for _, ref := range refs {
		if err := w.visit(ref.ID); err != nil {
			return err
		}
	}
	return nil
}

// snapshot visits every unit of a snapshot that was not visited with another
// one. After an error it is not known which were.
func (w *walker) snapshot(ctx context.Context, s *Snapshot) error {
	rd, err := w.repo.NewReader(ctx, s)
	if err != nil {
		return err
	}
	defer rd.Close()
	root, err := rd.Root(ctx)
	if err != nil {
		return err
	}
	if err := w.visit(s.Root.ID); err != nil {
		return err
	}
	if walk := w.repo.walkRoot; walk != nil {
		return walk(root, w.visit)
	}
	for _, f := range root.Files {
		if err := w.refs(f.Content); err != nil {
			return err
		}
	}
	for _, t := range root.Trees {
		if err := w.tree(ctx, rd, t); err != nil {
			return fmt.Errorf("tree %s: %w", t.Key, err)
		}
	}
	for _, im := range root.Images {
		if err := w.image(ctx, rd, im); err != nil {
			return fmt.Errorf("image %s: %w", im.ID, err)
		}
	}
	return nil
}

// tree walks the pages that are new. They count as walked only once all of them
// are, with the lists that they name.
func (w *walker) tree(ctx context.Context, rd *Reader, t dr.Tree) error {
	whole := walkedAs(asTree, t.Catalog...)
	if _, ok := w.seen[whole]; ok {
		return nil
	}
	if err := w.refs(t.Catalog); err != nil {
		return err
	}
	cat, err := catalog.Open(ctx, rd, t.Catalog)
	if err != nil {
		return err
	}
	var pages []dr.UnitRef
	for _, p := range cat.Pages() {
		if _, ok := w.seen[walkedAs(asPage, p)]; !ok {
			pages = append(pages, p)
		}
	}
	if err := w.refs(pages); err != nil {
		return err
	}
	var mu sync.Mutex
	var lists []catalog.Entry
	err = rd.Fetch(ctx, pages, func(_ int, data []byte) error {
		entries, err := catalog.DecodePage(data)
		if err != nil {
			return err
		}
		mu.Lock()
		defer mu.Unlock()
		for i := range entries {
			e := &entries[i]
			if e.Indirect {
				lists = append(lists, catalog.Entry{Path: strings.Clone(e.Path), Type: e.Type, Size: e.Size, Refs: slices.Clone(e.Refs), Indirect: true})
			}
			if err := w.content(e.Refs); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	for i := range lists {
		err := cat.Content(ctx, &lists[i], func(_ int64, ref catalog.Ref) error {
			return w.content([]catalog.Ref{ref})
		})
		if err != nil {
			return err
		}
	}
	for _, p := range pages {
		w.seen[walkedAs(asPage, p)] = struct{}{}
	}
	w.seen[whole] = struct{}{}
	return nil
}

func (w *walker) content(refs []catalog.Ref) error {
	for _, ref := range refs {
		if ref.Hole {
			continue
		}
		if err := w.visit(ref.ID); err != nil {
			return err
		}
	}
	return nil
}

func (w *walker) image(ctx context.Context, rd *Reader, im dr.Image) error {
	whole := walkedAs(asImage, im.Record...)
	if _, ok := w.seen[whole]; ok {
		return nil
	}
	if err := w.refs(im.Record); err != nil {
		return err
	}
	rec, err := layer.Decode(ctx, rd, im.Record)
	if err != nil {
		return err
	}
	if err := layer.Units(ctx, rd, rec, func(ref dr.UnitRef) error { return w.visit(ref.ID) }); err != nil {
		return err
	}
	w.seen[whole] = struct{}{}
	return nil
}

// unwalkable reports whether an error says that a snapshot is not whole, rather
// than that the registry cannot be asked.
func unwalkable(err error) bool {
	return about(err) || errors.Is(err, io.ErrUnexpectedEOF)
}
