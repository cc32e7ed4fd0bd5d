package repo

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"
	"github.com/zeebo/blake3"

	"lifeboat/internal/catalog"
	"lifeboat/internal/dr"
	"lifeboat/internal/layer"
)

// completeness finds out whether every unit of a snapshot lies in one of the pack
// manifests that its record in force lists. Reading packs does not show that: what
// is in no index is missed by nobody but a restore. It reads the root record, the
// catalogs and the image records; contents are only looked up. What snapshots
// share is read once, and memory does not grow with the number of units. Not safe
// for concurrent use.
type completeness struct {
	repo  *Repo
	inv   *inventory
	f     *findings
	harm  *harm
	clean *cleanPages
	// read is told of bytes of catalogs that are going to be read, and that were;
	// may be nil.
	read func(done, more int64)
}

func newCompleteness(r *Repo, inv *inventory, f *findings, h *harm) *completeness {
	return &completeness{repo: r, inv: inv, f: f, harm: h, clean: newCleanPages()}
}

// verdict is what is known of a snapshot's completeness.
type verdict int

const (
	// unknown: something of it is damaged, and told as that.
	unknown verdict = iota
	complete
	lacking
)

// look looks at snapshots one after the other and calls note with what came of each.
func (c *completeness) look(ctx context.Context, list []*Snapshot, note func(*Snapshot, verdict) error) error {
	for _, s := range list {
		v, err := c.snapshot(ctx, s)
		if err == nil {
			err = note(s, v)
		}
		if err != nil {
			return fmt.Errorf("whether %s is complete: %w", s.Tag, err)
		}
	}
	return nil
}

// snapshot looks at one, and tells what of it is in no pack manifest.
func (c *completeness) snapshot(ctx context.Context, s *Snapshot) (verdict, error) {
	if _, told := c.inv.unread.Load(s.Digest); told || s.Lacks > 0 {
		return unknown, nil
	}
	for _, n := range s.needs {
		if _, bad := c.harm.unusable(n.Digest); bad {
			return unknown, nil // what is in it cannot be known
		}
	}
	ixs, err := c.repo.idx.getAll(ctx, s.needs)
	if err != nil && unwalkable(err) {
		return unknown, nil
	}
	if err != nil {
		return unknown, err
	}
	w := &unitWalk{completeness: c, snap: s, rd: c.repo.readerOf(s, ixs)}
	defer w.rd.Close()
	err = w.run(ctx)
	switch {
	case err != nil && !unwalkable(err):
		return unknown, err
	case w.missing > 0:
		more := ""
		if w.missing > 1 {
			more = fmt.Sprintf(", and of %d other file(s), list(s) or image(s)", w.missing-1)
		}
		c.f.add(Problem{Tag: s.Tag, Snapshot: s.ID, Err: tampered("what it uses is in none of the pack manifests that %s lists: something of %s%s", s.Place, w.first, more)})
		return lacking, nil
	case err != nil && slices.ContainsFunc(s.Needs, c.harm.touches):
		return unknown, nil // that is told
	case err != nil:
		c.f.add(Problem{Tag: s.Tag, Snapshot: s.ID, Err: err})
		return lacking, nil
	}
	return complete, nil
}

// unitWalk looks up everything that one snapshot is made of.
type unitWalk struct {
	*completeness
	snap *Snapshot
	rd   *Reader
	last int // the index that had the unit before: its neighbours are there, too

	// missing counts files, lists and images of which something is in no pack
	// manifest; first says which is the first of them.
	missing int
	first   string
}

// whereabouts has a bit for each pack manifest of the snapshot that gave a unit.
// There are at most maxNeeds.
type whereabouts uint64

func (w *unitWalk) run(ctx context.Context) error {
	root, err := w.rd.Root(ctx)
	if err != nil {
		return err
	}
	if _, err := w.holds(ctx, "the description", []dr.UnitRef{w.snap.Root}); err != nil || w.repo.walkRoot != nil {
		return err
	}
	for _, t := range root.Trees {
		if err := w.tree(ctx, t); err != nil {
			return fmt.Errorf("tree %s: %w", t.Key, err)
		}
	}
	for _, im := range root.Images {
		if err := w.image(ctx, im); err != nil {
			return fmt.Errorf("image %s: %w", im.ID, err)
		}
	}
	for _, f := range root.Files {
		if _, err := w.holds(ctx, f.Path, f.Content); err != nil {
			return err
		}
	}
	return nil
}

// at returns in which of the snapshot's pack manifests a unit is, 0 for none.
func (w *unitWalk) at(ctx context.Context, ref dr.UnitRef) (whereabouts, error) {
	n := len(w.rd.indexes())
	for k := range n {
		i := (w.last + k) % n
		ix, loc, ok, err := w.rd.lookup(ctx, i, ref.ID)
		if err != nil {
			return 0, err
		}
		if !ok || loc.Len != ref.Len {
			continue
		}
		// Older places of the snapshot do not count: their tags may go.
		if bit := slices.Index(w.snap.Needs, ix.need.Digest); bit >= 0 {
			w.last = i
			return 1 << bit, nil
		}
	}
	return 0, nil
}

// tell notes something that loses a unit.
func (w *unitWalk) tell(what string) {
	if w.missing++; w.missing == 1 {
		w.first = what
	}
}

// holds looks up units of one thing, and tells of it where one is missing: then it
// returns 0.
func (w *unitWalk) holds(ctx context.Context, what string, refs []dr.UnitRef) (all whereabouts, err error) {
	for _, ref := range refs {
		at, err := w.at(ctx, ref)
		if err != nil {
			return 0, err
		}
		if at == 0 {
			w.tell(what)
			return 0, nil
		}
		all |= at
	}
	return all, nil
}

// isWhole notes that everything that something leads to is in these manifests.
func (w *unitWalk) isWhole(key dr.UnitID, at whereabouts) {
	by := map[digest.Digest]bool{}
	for bit, d := range w.snap.Needs {
		if at&(1<<bit) != 0 {
			by[d] = true
		}
	}
	w.clean.add(key, by)
}

// keyOf names a list of units that was walked as something.
func keyOf(as byte, refs []dr.UnitRef) (key dr.UnitID) {
	h := blake3.New()
	_, _ = h.Write([]byte{as}) // never fails
	for _, ref := range refs {
		_, _ = h.Write(ref.ID[:])
	}
	h.Sum(key[:0])
	return key
}

// treePages are the pages of a tree that are to be walked.
type treePages struct {
	key   string
	cat   *catalog.Reader
	pages []int
	refs  []dr.UnitRef
	// at says where the units of each page are, 0 for a page that loses something.
	at []whereabouts
	// lists are the entries whose content is listed in units of their own.
	lists []listed
	// lost is how many files lose something, first the first of them in the order
	// of the tree.
	lost  int
	first string
}

// listed is such an entry, and its page as a place in treePages.pages.
type listed struct {
	entry catalog.Entry
	page  int
}

func (p *treePages) lose(page int, path string) {
	if p.lost == 0 || catalog.ComparePaths(path, p.first) < 0 {
		p.first = strings.Clone(path)
	}
	p.lost++
	p.at[page] = 0
}

// tree walks the pages that no snapshot with the same manifests has led to.
func (w *unitWalk) tree(ctx context.Context, t dr.Tree) error {
	whole := keyOf(asTree, t.Catalog)
	if w.clean.is(whole, w.snap.Needs) {
		return nil
	}
	all, err := w.holds(ctx, "the list of files of "+t.Key, t.Catalog)
	if err != nil || all == 0 {
		return err
	}
	p := &treePages{key: t.Key}
	if p.cat, err = catalog.Open(ctx, w.rd, t.Catalog); err != nil {
		return err
	}
	before := w.missing
	for i := range p.cat.NumPages() {
		page := p.cat.Page(i)
		if w.clean.is(page.Ref.ID, w.snap.Needs) {
			all |= w.known(page.Ref.ID)
			continue
		}
		at, err := w.holds(ctx, fmt.Sprintf("the list of files of %s from %q on", t.Key, page.First), []dr.UnitRef{page.Ref})
		if err != nil {
			return err
		}
		if at != 0 {
			p.pages, p.refs, p.at = append(p.pages, i), append(p.refs, page.Ref), append(p.at, at)
		}
	}
	err = w.walkPages(ctx, p)
	if p.lost > 0 {
		w.tell(fmt.Sprintf("%q in %s", p.first, t.Key))
		w.missing += p.lost - 1
	}
	if err != nil {
		return err
	}
	for k, at := range p.at {
		if all |= at; at != 0 {
			w.isWhole(p.refs[k].ID, at)
		}
	}
	if w.missing == before {
		w.isWhole(whole, all)
	}
	return nil
}

// known are the manifests in which the units of a clean page are.
func (w *unitWalk) known(page dr.UnitID) (at whereabouts) {
	for _, d := range w.clean.by(page) {
		at |= 1 << slices.Index(w.snap.Needs, d)
	}
	return at
}

// walkPages reads pages, in the order in which they are stored, and looks up what
// they name.
func (w *unitWalk) walkPages(ctx context.Context, p *treePages) error {
	w.progress(0, p.refs...)
	var mu sync.Mutex // pages come concurrently
	err := w.rd.Fetch(ctx, p.refs, func(k int, data []byte) error {
		mu.Lock()
		defer mu.Unlock()
		entries, err := p.cat.OpenPage(p.pages[k], data)
		if err != nil {
			return err
		}
		at := p.at[k]
		for i := range entries {
			e := &entries[i]
			if e.Type != catalog.File {
				continue
			}
			found, err := w.content(ctx, e.Refs)
			if err != nil {
				return err
			}
			switch {
			case found == 0:
				p.lose(k, e.Path)
			case e.Indirect:
				p.lists = append(p.lists, listed{page: k, entry: catalog.Entry{Path: strings.Clone(e.Path), Type: e.Type, Size: e.Size, Refs: slices.Clone(e.Refs), Indirect: true}})
			}
			at |= found &^ nowhereNeeded
		}
		if p.at[k] != 0 {
			p.at[k] = at
		}
		w.progress(int64(len(data)))
		return nil
	})
	if err != nil {
		return err
	}
	for i := range p.lists {
		l := &p.lists[i]
		found := nowhereNeeded
		err := p.cat.Content(ctx, &l.entry, func(_ int64, ref catalog.Ref) error {
			at, err := w.content(ctx, []catalog.Ref{ref})
			if found |= at; err == nil && at == 0 {
				found = 0
				return errLost
			}
			return err
		})
		switch {
		case found == 0:
			p.lose(l.page, l.entry.Path)
		case err != nil:
			return err
		case p.at[l.page] != 0:
			p.at[l.page] |= found &^ nowhereNeeded
		}
	}
	return nil
}

// nowhereNeeded stands beside the manifests: a file that is empty or all holes is
// in none of them, and whole.
const nowhereNeeded = whereabouts(1) << 63

// content looks up the units of a content, 0 if one is missing.
func (w *unitWalk) content(ctx context.Context, refs []catalog.Ref) (whereabouts, error) {
	all := nowhereNeeded
	for _, ref := range refs {
		if ref.Hole {
			continue
		}
		at, err := w.at(ctx, ref.Unit())
		if err != nil || at == 0 {
			return 0, err
		}
		all |= at
	}
	return all, nil
}

// progress tells of catalog bytes that were read, and of pages that will be.
func (w *unitWalk) progress(done int64, more ...dr.UnitRef) {
	if w.read == nil {
		return
	}
	var n int64
	for _, ref := range more {
		n += int64(ref.Len)
	}
	w.read(done, n)
}

func (w *unitWalk) image(ctx context.Context, im dr.Image) error {
	key := keyOf(asImage, im.Record)
	if w.clean.is(key, w.snap.Needs) {
		return nil
	}
	name := "image " + im.ID
	if len(im.Tags) > 0 {
		name = "image " + im.Tags[0]
	}
	all, err := w.holds(ctx, name, im.Record)
	if err != nil || all == 0 {
		return err
	}
	rec, err := layer.Decode(ctx, w.rd, im.Record)
	if err != nil {
		return err
	}
	err = layer.Units(ctx, w.rd, rec, func(ref dr.UnitRef) error {
		at, err := w.at(ctx, ref)
		if all |= at; err == nil && at == 0 {
			all = 0
			return errLost
		}
		return err
	})
	switch {
	case all == 0:
		w.tell(name)
		return nil
	case err != nil:
		return err
	}
	w.isWhole(key, all)
	return nil
}
