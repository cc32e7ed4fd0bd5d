package catalog

import (
	"context"
	"fmt"

	"lifeboat/internal/dr"
)

// Sink takes units. Put may return before the unit is stored, but then keeps a
// copy of data. repo.Writer is one.
type Sink interface {
	Put(ctx context.Context, data []byte) (dr.UnitRef, error)
}

// Summary is what a finished catalog is known by; the fields are those of
// dr.Tree.
type Summary struct {
	// Table is the page table as units, in order.
	Table []dr.UnitRef
	// Entries counts all entries, Bytes sums the sizes of regular files.
	Entries int64
	Bytes   int64
	// Hash is the unit id of the concatenated ids of all pages: equal trees
	// have equal hashes.
	Hash dr.UnitID
}

// Builder writes a catalog. It holds one page, up to heldTable bytes of the page
// table and the ids of all pages in memory. It is not safe for concurrent use.
type Builder struct {
	sink   Sink // keeps a copy of what it gets
	unitID func([]byte) dr.UnitID
	ends   boundaries

	body  []byte // entries of the page so far
	out   []byte // the page before as it was stored
	n     int
	first string
	prev  string
	dirs  []string // open directories, from the root down

	table tableEncoder
	held  [][]byte // units of the page table that are to be put
	bytes int      // theirs
	ids   []byte   // of all pages
	sum   Summary
	err   error
}

// NewBuilder starts a catalog. cutKey is the repository's (page boundaries are
// keyed), unitID its keyed hash.
func NewBuilder(sink Sink, cutKey [32]byte, unitID func([]byte) dr.UnitID) *Builder {
	return &Builder{sink: sink, unitID: unitID, ends: newBoundaries(cutKey)}
}

// Add appends e. The root (path "") comes first, then all others in the order
// of ComparePaths, each after the directory that holds it. A file with more
// than MaxDirect refs gets an indirect content list. After an error the
// builder is unusable. The memory of e may be used again afterwards.
func (b *Builder) Add(ctx context.Context, e Entry) error {
	if b.err == nil {
		b.err = b.add(ctx, &e)
	}
	return b.err
}

func (b *Builder) add(ctx context.Context, e *Entry) error {
	if e.Type == File && !e.Indirect && len(e.Refs) > MaxDirect {
		var l ListBuilder
		for _, r := range e.Refs {
			if err := l.Add(ctx, b.sink, r); err != nil {
				return fmt.Errorf("catalog entry %q: %w", e.Path, err)
			}
		}
		size := e.Size
		if err := l.Finish(ctx, b.sink, e); err != nil {
			return fmt.Errorf("catalog entry %q: %w", e.Path, err)
		}
		if e.Size != size {
			return fmt.Errorf("catalog entry %q: content of %d bytes for a size of %d", e.Path, e.Size, size)
		}
	}
	if err := e.check(); err != nil {
		return fmt.Errorf("catalog entry %q: %w", e.Path, err)
	}
	if err := b.place(e); err != nil {
		return err
	}
	from := len(b.body)
	prev := b.prev
	if b.n == 0 {
		prev = ""
	}
	b.body = appendEntry(b.body, prev, e)
	if len(b.body)-from > maxEntry {
		return fmt.Errorf("catalog entry %q takes %d bytes, at most %d", e.Path, len(b.body)-from, maxEntry)
	}
	if b.n > 0 && len(b.body) > maxPage {
		b.body = b.body[:from]
		if err := b.endPage(ctx); err != nil {
			return err
		}
		b.body = appendEntry(b.body, "", e)
		from = 0
	}
	if b.n == 0 {
		b.first = e.Path
	}
	b.n++
	b.prev = e.Path
	b.sum.Entries++
	b.sum.Bytes += e.Size
	if b.ends.endsPage(e, len(b.body)-from, len(b.body)) {
		return b.endPage(ctx)
	}
	return nil
}

// place checks the order and that e lies in a directory.
func (b *Builder) place(e *Entry) error {
	if b.sum.Entries == 0 {
		if e.Path != "" {
			return fmt.Errorf("catalog entry %q: the root comes first", e.Path)
		}
	} else if ComparePaths(b.prev, e.Path) >= 0 {
		return fmt.Errorf("catalog entry %q comes before %q", e.Path, b.prev)
	}
	var err error
	if b.dirs, err = enter(b.dirs, e); err != nil {
		return err
	}
	return nil
}

// enter keeps the stack of open directories while entries go by in order and
// reports one that lies in none.
func enter(dirs []string, e *Entry) ([]string, error) {
	for len(dirs) > 0 && !Under(e.Path, dirs[len(dirs)-1]) {
		dirs = dirs[:len(dirs)-1]
	}
	if e.Path != "" && (len(dirs) == 0 || dirs[len(dirs)-1] != Parent(e.Path)) {
		return dirs, fmt.Errorf("catalog entry %q does not lie in a directory", e.Path)
	}
	if e.Type == Directory {
		dirs = append(dirs, e.Path)
	}
	return dirs, nil
}

func (b *Builder) endPage(ctx context.Context) error {
	b.out = appendPage(b.out[:0], b.n, b.body)
	ref, err := b.sink.Put(ctx, b.out)
	if err != nil {
		return fmt.Errorf("store catalog page of %q: %w", b.first, err)
	}
	b.table.add(pageInfo{ref: ref, first: b.first})
	b.ids = append(b.ids, ref.ID[:]...)
	b.body, b.n = b.body[:0], 0
	if b.table.full() || b.ends.endsTable(b.first, b.table.n, b.units()) {
		return b.endTable(ctx)
	}
	return nil
}

// heldTable is how many bytes of the page table are put together. Between the
// pages that they name, whoever opens the catalog would read all of it.
const heldTable = 4 << 20

// units counts the units of the page table.
func (b *Builder) units() int { return len(b.sum.Table) + len(b.held) }

func (b *Builder) endTable(ctx context.Context) error {
	if b.units() == maxTableUnits {
		return errTooLarge
	}
	unit := b.table.take()
	b.held, b.bytes = append(b.held, unit), b.bytes+len(unit)
	if b.bytes < heldTable {
		return nil
	}
	return b.putTable(ctx)
}

// putTable puts the units of the page table that are held back.
func (b *Builder) putTable(ctx context.Context) error {
	for _, unit := range b.held {
		ref, err := b.sink.Put(ctx, unit)
		if err != nil {
			return fmt.Errorf("store page table: %w", err)
		}
		b.sum.Table = append(b.sum.Table, ref)
	}
	b.held, b.bytes = nil, 0
	return nil
}

// Close ends the catalog and returns what it is known by. A catalog has at
// least the root.
func (b *Builder) Close(ctx context.Context) (Summary, error) {
	if b.err != nil {
		return Summary{}, b.err
	}
	if b.sum.Entries == 0 {
		b.err = fmt.Errorf("catalog without entries")
		return Summary{}, b.err
	}
	if b.n > 0 {
		if b.err = b.endPage(ctx); b.err != nil {
			return Summary{}, b.err
		}
	}
	if b.table.n > 0 {
		if b.err = b.endTable(ctx); b.err != nil {
			return Summary{}, b.err
		}
	}
	if b.err = b.putTable(ctx); b.err != nil {
		return Summary{}, b.err
	}
	b.sum.Hash = b.unitID(b.ids)
	b.err = fmt.Errorf("catalog is closed")
	return b.sum, nil
}

// ListBuilder collects the content list of one file at a time in bounded
// memory. The zero value is ready.
type ListBuilder struct {
	refs  []Ref
	units []Ref
	size  int64
	buf   []byte
}

// Add appends r; holes that touch become one. Past ListRefs refs a unit of
// refs goes to the sink.
func (l *ListBuilder) Add(ctx context.Context, sink Sink, r Ref) error {
	l.size += r.Len
	if n := len(l.refs); n > 0 && r.Hole && l.refs[n-1].Hole {
		l.refs[n-1].Len += r.Len
		return nil
	}
	if len(l.refs) == ListRefs {
		if err := l.flush(ctx, sink); err != nil {
			return err
		}
	}
	l.refs = append(l.refs, r)
	return nil
}

func (l *ListBuilder) flush(ctx context.Context, sink Sink) error {
	l.buf = AppendRefs(l.buf[:0], l.refs)
	ref, err := sink.Put(ctx, l.buf)
	if err != nil {
		return fmt.Errorf("store content list: %w", err)
	}
	l.units = append(l.units, Ref{ID: ref.ID, Len: int64(ref.Len)})
	l.refs = l.refs[:0]
	return nil
}

// Finish sets Size, Refs and Indirect of e and makes l ready for the next
// file. e.Refs is valid until then.
func (l *ListBuilder) Finish(ctx context.Context, sink Sink, e *Entry) error {
	e.Size, e.Indirect, e.Refs = l.size, false, l.refs
	if len(l.units) > 0 || len(l.refs) > MaxDirect {
		if err := l.flush(ctx, sink); err != nil {
			return err
		}
		e.Indirect, e.Refs = true, l.units
	}
	l.refs, l.units, l.size = l.refs[:0:cap(l.refs)], nil, 0
	return nil
}
