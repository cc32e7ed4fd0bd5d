package repo

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"golang.org/x/sync/errgroup"

	"lifeboat/internal/dr"
	"lifeboat/internal/pack"
	"lifeboat/internal/repo/idxcache"
	"lifeboat/internal/store"
)

const (
	// fetchParallel is how many blobs are read at a time.
	fetchParallel = 4
	// fetchGap is how many bytes between two groups are read and thrown away
	// rather than asked for anew.
	fetchGap = 256 << 10
	// fetchSpan is about how many bytes one request asks for.
	fetchSpan = 8 << 20
)

// wanted is one unit of a Fetch: where it lies and which of the refs it is.
type wanted struct {
	ix  int
	loc idxcache.Location
	i   int
}

// Fetch reads many units at once, in whatever order suits the packs, and calls
// fn with each: i is the place in refs. fn is called concurrently and its error
// ends the Fetch. data is valid during the call only; fn must not write to it. Neighbouring groups are read in one request, four requests run at a
// time, and memory is that of four groups besides what fn keeps. A unit that
// fails is looked for in the other pack manifests; the error names the first
// that cannot be had.
func (rd *Reader) Fetch(ctx context.Context, refs []dr.UnitRef, fn func(i int, data []byte) error) error {
	return rd.fetchAll(ctx, refs, fn, func(ctx context.Context, i int) error { return rd.fetchOne(ctx, refs[i], i, fn) })
}

// fetchAll is Fetch; one gets a unit that could not be had in the common way.
func (rd *Reader) fetchAll(ctx context.Context, refs []dr.UnitRef, fn func(i int, data []byte) error, one func(ctx context.Context, i int) error) error {
	list, lost, err := rd.locate(ctx, refs)
	if err != nil {
		return err
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(fetchParallel)
	ixs := rd.indexes()
	for span := range rd.spans(ixs, list) {
		if gctx.Err() != nil {
			break
		}
		g.Go(func() error { return rd.fetchSpan(gctx, ixs, span, refs, fn, one) })
	}
	for _, i := range lost {
		if gctx.Err() != nil {
			break
		}
		g.Go(func() error { return one(gctx, i) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return ctx.Err()
}

// locate finds where each unit lies and sorts by place. What could not be
// located without trouble is left to Unit, which says what the trouble is.
func (rd *Reader) locate(ctx context.Context, refs []dr.UnitRef) (list []wanted, lost []int, err error) {
	n := len(rd.indexes())
	list = make([]wanted, 0, len(refs))
	last := 0 // what was put together mostly lies together: ask there first
next:
	for i, ref := range refs {
		if i%4096 == 0 && ctx.Err() != nil {
			return nil, nil, ctx.Err()
		}
		for k := range n {
			at := (last + k) % n
			_, loc, ok, err := rd.lookup(ctx, at, ref.ID)
			if err == nil && ok && loc.Len == ref.Len {
				list = append(list, wanted{at, loc, i})
				last = at
				continue next
			}
		}
		lost = append(lost, i)
	}
	slices.SortFunc(list, func(a, b wanted) int {
		return cmp.Or(cmp.Compare(a.ix, b.ix), cmp.Compare(a.loc.Group, b.loc.Group), cmp.Compare(a.loc.Offset, b.loc.Offset))
	})
	return list, lost, nil
}

// spans cuts a sorted list where the next unit is in another pack, far away, or
// the request would become large.
func (rd *Reader) spans(ixs []*index, list []wanted) func(yield func([]wanted) bool) {
	return func(yield func([]wanted) bool) {
		begin := 0
		var first, prev idxcache.Group
		for i, w := range list {
			if i > begin && w.ix == list[i-1].ix && w.loc.Group == list[i-1].loc.Group {
				continue
			}
			g, err := ixs[w.ix].Group(w.loc.Group)
			if i > begin {
				joined := err == nil && w.ix == list[begin].ix && g.Pack == first.Pack &&
					g.Offset-(prev.Offset+prev.Sealed) <= fetchGap && g.Offset+g.Sealed-first.Offset <= fetchSpan
				if !joined {
					if !yield(list[begin:i]) {
						return
					}
					begin = i
				}
			}
			if i == begin {
				first = g
			}
			prev = g
		}
		if begin < len(list) {
			yield(list[begin:])
		}
	}
}

// fetchSpan reads the groups of a span in one request. What cannot be had that
// way is tried unit by unit.
func (rd *Reader) fetchSpan(ctx context.Context, ixs []*index, span []wanted, refs []dr.UnitRef, fn func(int, []byte) error, one func(ctx context.Context, i int) error) error {
	done := 0
	var own *callerError
	var err error
	for again := true; again; {
		again, err = rd.readSpan(ctx, ixs[span[0].ix], span[done:], func(w wanted, body []byte) error {
			data, err := rd.repo.cutUnit(ixs[w.ix], body, w.loc, refs[w.i])
			if err != nil {
				return err
			}
			if err := fn(w.i, data); err != nil {
				return &callerError{err}
			}
			done++
			return nil
		})
	}
	switch {
	case err == nil:
		return nil
	case errors.As(err, &own):
		return own.err
	case ctx.Err() != nil:
		return ctx.Err()
	}
	rd.repo.log.Warn("reading a pack failed; its units are read one by one", "error", err)
	for _, w := range span[done:] {
		if err := one(ctx, w.i); err != nil {
			return err
		}
	}
	return nil
}

// callerError carries an error of the caller's function past what is retried.
type callerError struct{ err error }

func (e *callerError) Error() string { return e.err.Error() }

func (rd *Reader) fetchOne(ctx context.Context, ref dr.UnitRef, i int, fn func(int, []byte) error) error {
	data, err := rd.Unit(ctx, ref)
	if err != nil {
		return err
	}
	return fn(i, data)
}

// readSpan calls use for each unit of a span with the opened group that has it.
// again says that it failed and that asking for the rest gives another copy.
func (rd *Reader) readSpan(ctx context.Context, ix *index, span []wanted, use func(wanted, []byte) error) (again bool, err error) {
	first, err := ix.Group(span[0].loc.Group)
	if err != nil {
		return false, err
	}
	last, err := ix.Group(span[len(span)-1].loc.Group)
	if err != nil {
		return false, err
	}
	p, err := ix.Pack(first.Pack)
	if err != nil {
		return false, err
	}
	o, err := rd.repo.opener(ctx, p.Header)
	if err != nil {
		return false, err
	}
	src, err := rd.repo.st.GetBlob(ctx, digestOf(p.Digest), p.Size, int64(first.Offset), int64(last.Offset)+int64(last.Sealed)-int64(first.Offset))
	if err != nil {
		return false, fmt.Errorf("pack %s: %w", digestOf(p.Digest), err)
	}
	err = rd.openSpan(src, ix, p, o, span, use)
	var own *callerError
	if errors.Is(err, dr.ErrTampered) && !errors.As(err, &own) && ctx.Err() == nil {
		again = store.Doubt(src)
	}
	return again, errors.Join(err, src.Close())
}

// openSpan opens the groups of a span, which begin where src does.
func (rd *Reader) openSpan(src io.ReadCloser, ix *index, p idxcache.Pack, o *pack.Opener, span []wanted, use func(wanted, []byte) error) error {
	first, err := ix.Group(span[0].loc.Group)
	if err != nil {
		return err
	}
	mem := rd.repo.memory()
	defer rd.repo.spare.Put(mem)
	at := first.Offset
	for len(span) > 0 {
		group := span[0].loc.Group
		g, err := ix.Group(group)
		if err != nil {
			return err
		}
		if _, err := io.CopyN(io.Discard, src, int64(g.Offset-at)); err != nil {
			return fmt.Errorf("pack %s: %w", digestOf(p.Digest), err)
		}
		sealed := room(&mem.sealed, int(g.Sealed))
		if _, err := io.ReadFull(src, sealed); err != nil {
			return fmt.Errorf("pack %s: %w", digestOf(p.Digest), err)
		}
		at = g.Offset + g.Sealed
		body, err := o.View(room(&mem.body, int(g.Plain)), int(g.Number), sealed, int(g.Plain))
		if err != nil {
			return fmt.Errorf("pack %s of manifest %s: %w", digestOf(p.Digest), ix.need.Digest, err)
		}
		if !store.Elsewhere(src) {
			rd.note(groupKey{ix, group}, g, body)
		}
		for len(span) > 0 && span[0].loc.Group == group {
			if err := use(span[0], body); err != nil {
				return err
			}
			span = span[1:]
		}
	}
	return nil
}

// groupMemory is room for one group, sealed and opened. It is used again and
// again: fresh memory for each costs more than opening it.
type groupMemory struct{ sealed, body []byte }

// memory returns room from spare, where it goes again.
func (r *Repo) memory() *groupMemory {
	if m, ok := r.spare.Get().(*groupMemory); ok {
		return m
	}
	return new(groupMemory)
}

// room returns n bytes of b, making it larger where need be.
func room(b *[]byte, n int) []byte {
	if cap(*b) < n {
		*b = make([]byte, max(n, pack.GroupSize+pack.GroupOverhead))
	}
	return (*b)[:n]
}
