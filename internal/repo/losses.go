package repo

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"

	"lifeboat/internal/catalog"
	"lifeboat/internal/dr"
	"lifeboat/internal/layer"
)

// LossKind says what of a snapshot cannot be restored.
type LossKind string

// The kinds.
const (
	// LossDescription: the root record is gone, and with it all that is known of
	// the snapshot's content.
	LossDescription LossKind = "description"
	// LossCatalog: (a part of) the list of files of a tree. The files between Path
	// and End cannot be named.
	LossCatalog LossKind = "catalog"
	// LossFile: content of a file of a tree.
	LossFile LossKind = "file"
	// LossImage: an image, as a whole.
	LossImage LossKind = "image"
	// LossConfig: a file that describes the project (Compose or environment file).
	LossConfig LossKind = "config"
)

// Loss is one thing of a snapshot that cannot be restored.
type Loss struct {
	Kind LossKind
	// Object is the tree's key (volume:NAME, layer:CONTAINER, bind:PATH), the
	// image's name, or the path of a project file.
	Object string
	// Path in the tree, raw; of a catalog the first path that is lost, and End the
	// first that is not (empty: to the end of the tree).
	Path, End string
	// Bytes of the content that are lost; 0 where that is not known.
	Bytes int64
	// Blobs are the damaged or missing blobs that are at fault, at most
	// lossBlobs of them; none where nothing that the snapshot lists ever had it.
	Blobs []digest.Digest
}

// lossBlobs bounds Loss.Blobs.
const lossBlobs = 1024

// Losses calls fn for everything that snapshots lose by the damage that was
// found, snapshot by snapshot in the order of systems and numbers, within a
// snapshot in the order of its description. Only snapshots that lose something
// are named. It reads catalogs; those that snapshots share are read once, and
// memory does not grow with the number of files. An error of fn ends it.
func (x *Examination) Losses(ctx context.Context, fn func(*Snapshot, Loss) error) error {
	if x.harm.none() && !x.hasSnapshotProblem() {
		return nil
	}
	clean := newCleanPages()
	for i := range x.inv.snaps {
		s := &x.inv.snaps[i]
		if !x.concerned(s) {
			continue
		}
		w := &lossWalk{x: x, snap: s, fn: fn, clean: clean}
		if err := w.run(ctx); err != nil {
			return fmt.Errorf("what %s loses: %w", s.Tag, err)
		}
	}
	return nil
}

func (x *Examination) hasSnapshotProblem() bool {
	return slices.ContainsFunc(x.Problems, func(p Problem) bool { return !p.Snapshot.IsZero() })
}

// concerned reports whether a snapshot needs anything that is not whole, or was
// told to have a problem of its own.
func (x *Examination) concerned(s *Snapshot) bool {
	return slices.ContainsFunc(s.Needs, x.harm.touches) ||
		slices.ContainsFunc(x.Problems, func(p Problem) bool { return p.Snapshot == s.ID && p.Blob == "" })
}

// openSome makes a reader of those indexes that can be had, also from the local
// cache alone.
func (r *Repo) openSome(ctx context.Context, s *Snapshot) (*Reader, error) {
	var ixs []*index
	for _, n := range s.needs {
		ix, err := r.idx.get(ctx, n)
		if err == nil {
			ixs = append(ixs, ix)
		} else if ctx.Err() != nil || !about(err) {
			for _, ix := range ixs {
				r.idx.put(ix)
			}
			return nil, err
		}
	}
	return r.readerOf(s, ixs), nil
}

// cleanPages remembers of which pages and image records nothing is lost, and by
// which manifests: they are clean for every snapshot that lists those.
type cleanPages struct {
	sets  [][]digest.Digest
	known map[string]int
	pages map[dr.UnitID]int
}

func newCleanPages() *cleanPages {
	return &cleanPages{known: map[string]int{}, pages: map[dr.UnitID]int{}}
}

// maxCleanPages bounds memory; beyond it pages are read again.
const maxCleanPages = 1 << 20

func (c *cleanPages) add(id dr.UnitID, by map[digest.Digest]bool) {
	var set []digest.Digest
	for d := range by {
		set = append(set, d)
	}
	slices.Sort(set)
	key := fmt.Sprint(set)
	n, ok := c.known[key]
	if !ok {
		n = len(c.sets)
		c.known[key] = n
		c.sets = append(c.sets, set)
	}
	if len(c.pages) < maxCleanPages {
		c.pages[id] = n
	}
}

func (c *cleanPages) is(id dr.UnitID, needs []digest.Digest) bool {
	n, ok := c.pages[id]
	if !ok {
		return false
	}
	for _, d := range c.sets[n] {
		if !slices.Contains(needs, d) {
			return false
		}
	}
	return true
}

// by returns the manifests of a page that was added.
func (c *cleanPages) by(id dr.UnitID) []digest.Digest {
	n, ok := c.pages[id]
	if !ok {
		return nil
	}
	return c.sets[n]
}

// lossWalk looks through one snapshot.
type lossWalk struct {
	x     *Examination
	snap  *Snapshot
	rd    *Reader
	fn    func(*Snapshot, Loss) error
	clean *cleanPages
	by    map[digest.Digest]bool // manifests that gave units of the current page
	// lost, if set, is told each unit that is lost, and where something is read
	// that names further units.
	lost func(dr.UnitRef)
}

func (w *lossWalk) run(ctx context.Context) (err error) {
	if w.rd, err = w.x.repo.openSome(ctx, w.snap); err != nil {
		return err
	}
	defer w.rd.Close()
	w.by = map[digest.Digest]bool{}
	var root *dr.Root
	err = w.all(ctx, &Loss{Kind: LossDescription}, []dr.UnitRef{w.snap.Root}, func() (err error) {
		root, err = w.rd.Root(ctx)
		return err
	})
	if err != nil || root == nil {
		return err
	}
	for _, t := range root.Trees {
		if err := w.tree(ctx, t); err != nil {
			return err
		}
	}
	for _, im := range root.Images {
		if err := w.image(ctx, im); err != nil {
			return err
		}
	}
	for _, f := range root.Files {
		if err := w.all(ctx, &Loss{Kind: LossConfig, Object: f.Path, Bytes: f.Size}, f.Content, nil); err != nil {
			return err
		}
	}
	return nil
}

// all tells l if a unit of refs is lost, or read fails for what is damaged; read
// is not called in the first case, and may be nil.
func (w *lossWalk) all(ctx context.Context, l *Loss, refs []dr.UnitRef, read func() error) error {
	lost := false
	for _, ref := range refs {
		ok, err := w.has(ctx, ref, l)
		if err != nil {
			return err
		}
		lost = lost || !ok
	}
	if !lost && read != nil {
		err := read()
		if err != nil && !about(err) {
			return err
		}
		lost = err != nil
	}
	if !lost {
		return nil
	}
	return w.fn(w.snap, *l)
}

// has reports whether a unit can be had by who has nothing but the registry. If
// not, l learns which blobs are at fault.
func (w *lossWalk) has(ctx context.Context, ref dr.UnitRef, l *Loss) (bool, error) {
	if err := ctx.Err(); err != nil {
		return false, err
	}
	var fault []digest.Digest
	located := false
	for i := range w.rd.indexes() {
		ix, loc, ok, err := w.rd.lookup(ctx, i, ref.ID)
		if err != nil && !about(err) {
			return false, err
		}
		// What older places of the snapshot name was not looked at: nothing of it
		// counts, whatever a restore may find there.
		if err != nil || !ok || loc.Len != ref.Len || !slices.Contains(w.snap.Needs, ix.need.Digest) {
			continue
		}
		located = true
		blob, bad := w.x.harm.unusable(ix.need.Digest)
		hurt := w.x.harm.group(ix.need.Digest, loc.Group)
		if !bad && !hurt {
			w.by[ix.need.Digest] = true
			return true, nil
		}
		if bad {
			fault = append(fault, blob)
		}
		if hurt {
			g, err := ix.Group(loc.Group)
			if err != nil {
				return false, err
			}
			p, err := ix.Pack(g.Pack)
			if err != nil {
				return false, err
			}
			fault = append(fault, digestOf(p.Digest))
		}
	}
	if !located { // in what cannot be opened, then
		for _, d := range w.snap.Needs {
			if blob, bad := w.x.harm.unusable(d); bad {
				fault = append(append(fault, blob), w.x.harm.blind(d)...)
			}
		}
	}
	for _, b := range fault {
		if !slices.Contains(l.Blobs, b) && len(l.Blobs) < lossBlobs {
			l.Blobs = append(l.Blobs, b)
		}
	}
	if w.lost != nil {
		w.lost(ref)
	}
	return false, nil
}

// tree looks through a catalog page by page, so that a page that is lost does
// not hide the others.
func (w *lossWalk) tree(ctx context.Context, t dr.Tree) error {
	var cat *catalog.Reader
	err := w.all(ctx, &Loss{Kind: LossCatalog, Object: t.Key}, t.Catalog, func() (err error) {
		cat, err = catalog.Open(ctx, w.rd, t.Catalog)
		return err
	})
	if err != nil || cat == nil {
		return err
	}
	for i := range cat.NumPages() {
		p := cat.Page(i)
		if w.clean.is(p.Ref.ID, w.snap.Needs) {
			continue
		}
		if err := w.page(ctx, t, cat, i); err != nil {
			return err
		}
	}
	return nil
}

func (w *lossWalk) page(ctx context.Context, t dr.Tree, cat *catalog.Reader, i int) error {
	p := cat.Page(i)
	w.by = map[digest.Digest]bool{}
	told := 0
	tell := w.fn
	w.fn = func(s *Snapshot, l Loss) error {
		told++
		return tell(s, l)
	}
	defer func() { w.fn = tell }()
	var entries []catalog.Entry
	err := w.all(ctx, &Loss{Kind: LossCatalog, Object: t.Key, Path: p.First, End: p.End}, []dr.UnitRef{p.Ref}, func() error {
		data, err := w.rd.Unit(ctx, p.Ref)
		if err != nil {
			return err
		}
		entries, err = cat.OpenPage(i, data)
		return err
	})
	if err != nil {
		return err
	}
	for k := range entries {
		if err := w.entry(ctx, t, cat, &entries[k]); err != nil {
			return err
		}
	}
	if told == 0 {
		w.clean.add(p.Ref.ID, w.by)
	}
	return nil
}

// entry tells of a file that loses content, or the list of it.
func (w *lossWalk) entry(ctx context.Context, t dr.Tree, cat *catalog.Reader, e *catalog.Entry) error {
	if e.Type != catalog.File {
		return nil
	}
	l := Loss{Kind: LossFile, Object: t.Key}
	lost := false
	look := func(ref dr.UnitRef, size int64) error {
		ok, err := w.has(ctx, ref, &l)
		if err == nil && !ok {
			lost = true
			l.Bytes += size
		}
		return err
	}
	if e.Indirect {
		for _, ref := range e.Refs {
			if err := look(ref.Unit(), 0); err != nil {
				return err
			}
		}
	}
	if !lost { // else what the list names is not known
		err := cat.Content(ctx, e, func(_ int64, ref catalog.Ref) error {
			if ref.Hole {
				return nil
			}
			return look(ref.Unit(), ref.Len)
		})
		if err != nil && !about(err) {
			return err
		}
		lost = lost || err != nil
	}
	if !lost {
		return nil
	}
	l.Path = strings.Clone(e.Path)
	return w.fn(w.snap, l)
}

func (w *lossWalk) image(ctx context.Context, im dr.Image) error {
	if len(im.Record) == 1 && w.clean.is(im.Record[0].ID, w.snap.Needs) {
		return nil
	}
	w.by = map[digest.Digest]bool{}
	l := Loss{Kind: LossImage, Object: im.ID}
	if len(im.Tags) > 0 {
		l.Object = im.Tags[0]
	}
	return w.all(ctx, &l, im.Record, func() error {
		rec, err := layer.Decode(ctx, w.rd, im.Record)
		if err != nil {
			return err
		}
		lost := false
		err = layer.Units(ctx, w.rd, rec, func(ref dr.UnitRef) error {
			ok, err := w.has(ctx, ref, &l)
			if err == nil && !ok {
				lost = true
				l.Bytes += int64(ref.Len)
			}
			return err
		})
		switch {
		case err != nil:
			return err
		case lost:
			return errLost
		case len(im.Record) == 1:
			w.clean.add(im.Record[0].ID, w.by)
		}
		return nil
	})
}

// errLost: units were lost, and told of.
var errLost = fmt.Errorf("units of it are lost: %w", dr.ErrTampered)
