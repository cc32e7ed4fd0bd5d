package catalog

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"sort"

	"lifeboat/internal/dr"
)

// Source gives the bytes of units, already authenticated (invariant 10). The
// caller must not write to what it returns, and neither may the source
// afterwards. repo.Reader is one.
type Source interface {
	Unit(ctx context.Context, ref dr.UnitRef) ([]byte, error)
}

// BatchSource is a Source that fetches many units at once faster than one by
// one. fn may be called concurrently, with memory that is the source's.
type BatchSource interface {
	Source
	Fetch(ctx context.Context, refs []dr.UnitRef, fn func(i int, data []byte) error) error
}

// readAhead bounds what Next fetches ahead from a BatchSource, in bytes.
const readAhead = 4 << 20

// Reader reads a catalog. It holds the page table and a few pages in memory.
// It is not safe for concurrent use; Clone gives another over the same table.
type Reader struct {
	src   Source
	table []dr.UnitRef
	pages []pageInfo

	next    int     // page to load next
	entries []Entry // what is left of the current page
	prev    string  // path of the last entry returned
	started bool    // prev is set
	dirs    []string
	loose   bool // came here by Seek or by skipping: parents are not all known

	ahead map[int][]byte         // pages fetched ahead
	known map[dr.UnitID]struct{} // pages that Diff will probably skip

	pass   func(Page, error) bool // whether to go on behind a page; nil: never
	failed map[int]error          // pages that are passed over

	found     []Entry // page of the last Lookup
	foundPage int
}

// Open loads the page table. Errors wrap dr.ErrTampered where the table is not
// what the format says, else they are the source's.
func Open(ctx context.Context, src Source, table []dr.UnitRef) (*Reader, error) {
	if len(table) == 0 || len(table) > maxTableUnits {
		return nil, fmt.Errorf("catalog with a page table of %d units: %w", len(table), dr.ErrTampered)
	}
	r := &Reader{src: src, table: table, foundPage: -1}
	for done := 0; done < len(table); {
		n := 1
		for bytes := int(table[done].Len); done+n < len(table) && bytes < readAhead; n++ {
			bytes += int(table[done+n].Len)
		}
		parts, err := units(ctx, src, table[done:done+n])
		if err != nil {
			return nil, fmt.Errorf("page table, from unit %d of %d on: %w", done+1, len(table), err)
		}
		for i, data := range parts {
			if r.pages, err = decodeTable(r.pages, data); err != nil {
				return nil, fmt.Errorf("page table %d of %d: %w: %w", done+i+1, len(table), err, dr.ErrTampered)
			}
		}
		done += n
	}
	return r, nil
}

// units gets several units at once where the source can.
func units(ctx context.Context, src Source, refs []dr.UnitRef) ([][]byte, error) {
	out := make([][]byte, len(refs))
	batch, ok := src.(BatchSource)
	if !ok || len(refs) == 1 {
		for i, ref := range refs {
			var err error
			if out[i], err = unit(ctx, src, ref); err != nil {
				return nil, err
			}
		}
		return out, nil
	}
	// Each call has a place of its own, so no lock is needed.
	err := batch.Fetch(ctx, refs, func(i int, data []byte) error {
		if len(data) != int(refs[i].Len) {
			return fmt.Errorf("unit %v has %d bytes, not %d: %w", refs[i].ID, len(data), refs[i].Len, dr.ErrTampered)
		}
		out[i] = bytes.Clone(data)
		return nil
	})
	return out, err
}

func unit(ctx context.Context, src Source, ref dr.UnitRef) ([]byte, error) {
	data, err := src.Unit(ctx, ref)
	if err != nil {
		return nil, err
	}
	if len(data) != int(ref.Len) {
		return nil, fmt.Errorf("unit %v has %d bytes, not %d: %w", ref.ID, len(data), ref.Len, dr.ErrTampered)
	}
	return data, nil
}

// Table is the page table that the reader was opened with.
func (r *Reader) Table() []dr.UnitRef { return r.table }

// Pages lists the units that hold pages, in order. With Table and the units
// that Content passes it is all that a tree needs.
func (r *Reader) Pages() []dr.UnitRef {
	refs := make([]dr.UnitRef, len(r.pages))
	for i, p := range r.pages {
		refs[i] = p.ref
	}
	return refs
}

// Clone returns a reader at the start, independent of r.
func (r *Reader) Clone() *Reader {
	return &Reader{src: r.src, table: r.table, pages: r.pages, pass: r.pass, foundPage: -1}
}

// CloneVia is Clone with another source in between, a cache for one: wrap gets
// the source of r. What it returns may be a BatchSource or not.
func (r *Reader) CloneVia(wrap func(Source) Source) *Reader {
	c := r.Clone()
	c.src = wrap(r.src)
	return c
}

// Rewind goes back to the start.
func (r *Reader) Rewind() {
	r.next, r.entries, r.prev, r.started, r.dirs, r.loose = 0, nil, "", false, nil, false
	r.ahead = nil
}

// Next returns the next entry, or io.EOF after the last. The order, and that
// each entry lies in a directory, are checked; failures wrap dr.ErrTampered.
func (r *Reader) Next(ctx context.Context) (Entry, error) {
	e, err := r.advance(ctx)
	if err != nil {
		return Entry{}, err
	}
	return *e, nil
}

// advance is Next without the copy; the entry stays valid.
func (r *Reader) advance(ctx context.Context) (*Entry, error) {
	for len(r.entries) == 0 {
		if r.next == len(r.pages) {
			return nil, io.EOF
		}
		entries, err := r.load(ctx, r.next)
		if err != nil && !r.passes(ctx, r.next, err) {
			return nil, err
		}
		r.entries = entries
		r.next++
	}
	e := &r.entries[0]
	r.entries = r.entries[1:]
	if r.started && ComparePaths(r.prev, e.Path) >= 0 {
		return nil, fmt.Errorf("catalog: %q after %q: %w", e.Path, r.prev, dr.ErrTampered)
	}
	r.prev, r.started = e.Path, true
	if err := r.place(e); err != nil {
		return nil, err
	}
	return e, nil
}

func (r *Reader) place(e *Entry) error {
	if r.loose && e.Path != "" {
		// The directory may have been passed over; then take it as given. What
		// is written to disk is safe from that anyway (package tree).
		p := Parent(e.Path)
		for len(r.dirs) > 0 && !Under(e.Path, r.dirs[len(r.dirs)-1]) {
			r.dirs = r.dirs[:len(r.dirs)-1]
		}
		if len(r.dirs) == 0 || r.dirs[len(r.dirs)-1] != p {
			r.dirs = append(r.dirs, p)
		}
	}
	var err error
	if r.dirs, err = enter(r.dirs, e); err != nil {
		return fmt.Errorf("%w: %w", err, dr.ErrTampered)
	}
	return nil
}

// load decodes a page and checks it against its line in the table.
func (r *Reader) load(ctx context.Context, page int) ([]Entry, error) {
	data, err := r.fetch(ctx, page)
	if err != nil {
		return nil, fmt.Errorf("catalog page of %q: %w", r.pages[page].first, err)
	}
	return r.decode(page, data)
}

func (r *Reader) decode(page int, data []byte) ([]Entry, error) {
	p := r.pages[page]
	entries, err := decodePage(data)
	if err == nil && entries[0].Path != p.first {
		err = fmt.Errorf("starts with %q", entries[0].Path)
	}
	if err == nil && page+1 < len(r.pages) && ComparePaths(entries[len(entries)-1].Path, r.pages[page+1].first) >= 0 {
		err = fmt.Errorf("reaches into the page of %q", r.pages[page+1].first)
	}
	if err != nil {
		return nil, fmt.Errorf("catalog page of %q: %w: %w", p.first, err, dr.ErrTampered)
	}
	return entries, nil
}

// fetch gets the bytes of a page, and of the following ones in the same go
// where that is worth it.
func (r *Reader) fetch(ctx context.Context, page int) ([]byte, error) {
	if data, ok := r.ahead[page]; ok {
		delete(r.ahead, page)
		return data, nil
	}
	if err := r.failed[page]; err != nil {
		return nil, err
	}
	if _, ok := r.src.(BatchSource); !ok || page != r.next {
		return unit(ctx, r.src, r.pages[page].ref)
	}
	var at []int
	var refs []dr.UnitRef
	for i, bytes := page, 0; i < len(r.pages) && bytes < readAhead; i++ {
		if _, skip := r.known[r.pages[i].ref.ID]; i != page && (skip || r.failed[i] != nil) {
			continue
		}
		at = append(at, i)
		refs = append(refs, r.pages[i].ref)
		bytes += int(r.pages[i].ref.Len)
	}
	r.ahead = nil
	data, err := units(ctx, r.src, refs)
	if err != nil && r.pass != nil && ctx.Err() == nil {
		return r.fetchWhole(ctx, at)
	}
	if err != nil {
		return nil, err
	}
	r.ahead = make(map[int][]byte, len(refs))
	for i := 1; i < len(at); i++ {
		r.ahead[at[i]] = data[i]
	}
	return data[0], nil
}

// page is the index of the page that path lies in, if it exists.
func (r *Reader) page(path string) int {
	return sort.Search(len(r.pages), func(i int) bool { return ComparePaths(r.pages[i].first, path) > 0 }) - 1
}

// Lookup returns the entry of path, or an error that wraps dr.ErrNotFound. It
// does not disturb Next.
func (r *Reader) Lookup(ctx context.Context, path string) (Entry, error) {
	page := r.page(path) // the first page starts with "", so it is at least 0
	if page != r.foundPage {
		data, err := unit(ctx, r.src, r.pages[page].ref)
		if err != nil {
			return Entry{}, fmt.Errorf("catalog page of %q: %w", r.pages[page].first, err)
		}
		entries, err := r.decode(page, data)
		if err != nil {
			return Entry{}, err
		}
		r.found, r.foundPage = entries, page
	}
	i := sort.Search(len(r.found), func(i int) bool { return ComparePaths(r.found[i].Path, path) >= 0 })
	if i == len(r.found) || r.found[i].Path != path {
		return Entry{}, fmt.Errorf("%q: %w", path, dr.ErrNotFound)
	}
	return r.found[i], nil
}

// Seek makes Next go on with the entry of path or, where there is none, with
// the first one after it.
func (r *Reader) Seek(ctx context.Context, path string) error {
	return r.seek(ctx, func(p string) bool { return ComparePaths(p, path) >= 0 })
}

// SkipTree makes Next go on with the first entry that comes after dir and
// everything below it. It reads at most one page.
func (r *Reader) SkipTree(ctx context.Context, dir string) error {
	return r.seek(ctx, func(p string) bool { return ComparePaths(p, dir) > 0 && !Under(p, dir) })
}

// seek goes to the first entry for whose path reached is true; it is false
// for all before and true for all after.
func (r *Reader) seek(ctx context.Context, reached func(path string) bool) error {
	r.Rewind()
	r.loose = true
	r.next = max(0, sort.Search(len(r.pages), func(i int) bool { return reached(r.pages[i].first) })-1)
	entries, err := r.load(ctx, r.next)
	if err != nil {
		return err
	}
	r.next++
	r.entries = entries[sort.Search(len(entries), func(i int) bool { return reached(entries[i].Path) }):]
	return nil
}

// Content calls fn for each stretch of the content of e in order, whichever
// form the list has. An error of fn is returned as it is; a list that is not
// what the format says wraps dr.ErrTampered.
func (r *Reader) Content(ctx context.Context, e *Entry, fn func(offset int64, ref Ref) error) error {
	if !e.Indirect {
		offset := int64(0)
		for _, ref := range e.Refs {
			if err := fn(offset, ref); err != nil {
				return err
			}
			offset += ref.Len
		}
		return nil
	}
	offset, total, afterHole := int64(0), 0, false
	for i, part := range e.Refs {
		data, err := unit(ctx, r.src, part.Unit())
		if err != nil {
			return fmt.Errorf("content list of %q: %w", e.Path, err)
		}
		refs, err := decodeList(data)
		if err == nil && i < len(e.Refs)-1 && len(refs) != ListRefs {
			err = fmt.Errorf("part %d of %d has %d refs", i+1, len(e.Refs), len(refs))
		}
		if err == nil {
			_, err = checkRefs(refs, offset, afterHole)
		}
		if err != nil {
			return fmt.Errorf("content list of %q: %w: %w", e.Path, err, dr.ErrTampered)
		}
		for _, ref := range refs {
			if ref.Len > e.Size-offset {
				return fmt.Errorf("content list of %q passes its size of %d bytes: %w", e.Path, e.Size, dr.ErrTampered)
			}
			if err := fn(offset, ref); err != nil {
				return err
			}
			offset, afterHole = offset+ref.Len, ref.Hole
		}
		total += len(refs)
	}
	if offset != e.Size || total <= MaxDirect {
		return fmt.Errorf("content list of %q has %d refs and %d bytes for a size of %d: %w", e.Path, total, offset, e.Size, dr.ErrTampered)
	}
	return nil
}

// decodeList decodes one unit of an indirect content list.
func decodeList(data []byte) ([]Ref, error) {
	if len(data) == 0 || len(data) > maxListUnit {
		return nil, fmt.Errorf("list of %d bytes", len(data))
	}
	refs := make([]Ref, 0, min(ListRefs, len(data)/33+1))
	d := decoder{b: data}
	for len(d.b) > 0 {
		if len(refs) == ListRefs {
			return nil, fmt.Errorf("more than %d refs", ListRefs)
		}
		refs = append(refs, d.ref())
	}
	return refs, d.err
}

// SameContent reports whether two files have the same content, by their lists.
func SameContent(a, b *Entry) bool {
	if a.Size != b.Size || a.Indirect != b.Indirect || len(a.Refs) != len(b.Refs) {
		return false
	}
	for i := range a.Refs {
		if a.Refs[i] != b.Refs[i] {
			return false
		}
	}
	return true
}
