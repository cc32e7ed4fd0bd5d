package tree

import (
	"errors"
	"fmt"
	"sort"

	"golang.org/x/sync/errgroup"

	"lifeboat/internal/catalog"
)

// segment is one stretch of a secured file.
type segment struct {
	off, n int64
	// Exactly one of these says what it is; none: a hole.
	memory  []byte
	spooled bool // at pos of the spool
	pos     int64
	same    bool // unchanged: the pieces that Precopy put
}

func (g *segment) raw() bool { return g.memory != nil || g.spooled }

// stretchBytes is about how much of a large file one goroutine takes hold of at
// a time.
const stretchBytes = 8 << 20

// stretches takes hold of the content of a file, several stretches of a large
// one at the same time.
func (r *secureReader) stretches(fd int, e *securedEntry) error {
	size := e.rec.stat.Size
	if size <= 2*stretchBytes {
		var refs []catalog.Ref
		if e.old != nil {
			if err := content(r.c.pass1, e.old, func(ref catalog.Ref) error { refs = append(refs, ref); return nil }); err != nil {
				return err
			}
		}
		return r.stretch(fd, e, refs, 0, size)
	}
	g := new(errgroup.Group)
	g.SetLimit(r.c.o.Workers)
	var parts []*securedEntry
	begin := func(refs []catalog.Ref, from, to int64) {
		part := &securedEntry{path: e.path, rec: e.rec}
		parts = append(parts, part)
		g.Go(func() error {
			h, _ := r.s.helpers.Get().(*secureReader)
			if h == nil {
				h = newSecureReader(r.s)
			}
			defer r.s.helpers.Put(h)
			return h.stretch(fd, part, refs, from, to)
		})
	}
	from, at := int64(0), int64(0)
	var refs []catalog.Ref
	var err error
	if e.old != nil {
		err = content(r.c.pass1, e.old, func(ref catalog.Ref) error {
			if at >= size || r.s.ctx.Err() != nil {
				return r.s.ctx.Err()
			}
			refs = append(refs, ref)
			if at += ref.Len; at-from >= stretchBytes {
				begin(refs, from, min(at, size))
				from, refs = at, nil
			}
			return nil
		})
	}
	for from < size && err == nil && r.s.ctx.Err() == nil {
		to := min(from+max(stretchBytes, at-from), size)
		begin(refs, from, to)
		from, refs = to, nil
	}
	if err := errors.Join(err, g.Wait(), r.s.ctx.Err()); err != nil {
		return err
	}
	for _, p := range parts {
		e.segs = append(e.segs, p.segs...)
	}
	return nil
}

// stretch takes hold of the bytes from..to of a file: into the budget's memory
// while they fit, else by comparing them with refs, the pieces that Precopy put
// from there on; what is neither known nor fits goes to the spool.
func (r *secureReader) stretch(fd int, e *securedEntry, refs []catalog.Ref, from, to int64) error {
	fits, err := r.toMemory(fd, e, from, to)
	if err != nil || fits {
		return err
	}
	return r.compare(fd, e, refs, from, to)
}

// toMemory copies a stretch of the file into the budget, or reports that it does
// not fit.
func (r *secureReader) toMemory(fd int, e *securedEntry, from, to int64) (bool, error) {
	var runs []extent
	ext := newExtents(fd, &e.rec.stat, e.rec.stat.Size)
	total := int64(0)
	for off := from; off < to; {
		x, ok, err := ext.next(off)
		if err != nil {
			return false, err
		}
		if !ok || x.from >= to {
			break
		}
		x = extent{max(x.from, off), min(x.to, to)}
		runs = append(runs, x)
		total += x.to - x.from
		off = x.to
	}
	parts := r.c.o.Budget.take(total)
	if parts == nil && total > 0 {
		return false, nil
	}
	off := from
	for _, x := range runs {
		e.hole(off, x.from)
		for off = x.from; off < x.to; {
			if err := r.s.ctx.Err(); err != nil {
				return false, err
			}
			part := parts[0][:min(int64(len(parts[0])), x.to-off)]
			if parts[0] = parts[0][len(part):]; len(parts[0]) == 0 {
				parts = parts[1:]
			}
			n, err := preadFull(fd, part, off)
			if err != nil {
				return false, err
			}
			r.c.read.Add(int64(n))
			r.c.secured.Add(int64(n))
			if n > 0 {
				e.segs = append(e.segs, segment{off: off, n: int64(n), memory: part[:n]})
			}
			off += int64(n)
			if n < len(part) {
				return true, nil // it became shorter; the statx after tells
			}
		}
	}
	e.hole(off, to)
	return true, nil
}

func (e *securedEntry) hole(from, to int64) {
	if to > from {
		e.segs = append(e.segs, segment{off: from, n: to - from})
	}
}

// compare keeps what differs from refs, the pieces that Precopy put from offset
// from on: the stretch does not fit into the budget, so it is hashed in place.
func (r *secureReader) compare(fd int, e *securedEntry, refs []catalog.Ref, from, to int64) error {
	ext := newExtents(fd, &e.rec.stat, e.rec.stat.Size)
	for _, ref := range refs {
		if from >= to {
			return nil
		}
		end := min(from+ref.Len, to)
		if err := r.comparePiece(fd, e, ext, ref, from, end); err != nil {
			return err
		}
		from = end
	}
	return r.keep(fd, e, ext, from, to)
}

// comparePiece keeps the bytes from..to unless they are those of a piece.
func (r *secureReader) comparePiece(fd int, e *securedEntry, ext *extents, ref catalog.Ref, from, to int64) error {
	x, ok, err := ext.next(from)
	if err != nil {
		return err
	}
	if ref.Hole || to-from != ref.Len || !ok || x.from > from || x.to < to {
		return r.keep(fd, e, ext, from, to)
	}
	data := r.scratch(int(ref.Len))
	n, err := r.read(fd, data, from)
	if err != nil || n < len(data) {
		return err // it became shorter; the statx after tells
	}
	if r.c.o.UnitID(data) != ref.ID {
		return r.keepBytes(e, data, from)
	}
	if k := len(e.segs) - 1; k >= 0 && e.segs[k].same && e.segs[k].off+e.segs[k].n == from {
		e.segs[k].n += ref.Len
		return nil
	}
	e.segs = append(e.segs, segment{off: from, n: ref.Len, same: true})
	return nil
}

// keep keeps the stretch from..to, holes as holes.
func (r *secureReader) keep(fd int, e *securedEntry, ext *extents, from, to int64) error {
	for off := from; off < to; {
		x, ok, err := ext.next(off)
		if err != nil {
			return err
		}
		if !ok || x.from >= to {
			e.hole(off, to)
			return nil
		}
		e.hole(off, x.from)
		off = max(off, x.from)
		for end := min(x.to, to); off < end; {
			data := r.scratch(int(min(spoolPart, end-off)))
			n, err := r.read(fd, data, off)
			if err != nil || n == 0 {
				return err
			}
			if err := r.keepBytes(e, data[:n], off); err != nil {
				return err
			}
			off += int64(n)
		}
	}
	return nil
}

func (r *secureReader) scratch(n int) []byte {
	if cap(r.piece) < n {
		r.piece = make([]byte, max(n, spoolPart))
	}
	return r.piece[:n]
}

func (r *secureReader) read(fd int, b []byte, off int64) (int, error) {
	if err := r.s.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := preadFull(fd, b, off)
	r.c.read.Add(int64(n))
	return n, err
}

// keepBytes keeps data in memory while there is some, else in the spool.
func (r *secureReader) keepBytes(e *securedEntry, data []byte, off int64) error {
	r.c.secured.Add(int64(len(data)))
	if parts := r.c.o.Budget.take(int64(len(data))); parts != nil {
		for _, p := range parts {
			n := copy(p, data)
			e.segs = append(e.segs, segment{off: off, n: int64(n), memory: p})
			data, off = data[n:], off+int64(n)
		}
		return nil
	}
	sp, err := r.s.openSpool()
	if err != nil {
		return err
	}
	if r.sealed == nil {
		r.sealed = make([]byte, 0, spoolPart+64)
	}
	for len(data) > 0 {
		part := data[:min(len(data), spoolPart)]
		pos, err := sp.put(part, r.sealed)
		if err != nil {
			return fmt.Errorf("%w; free space in %s, or give the secure buffer more memory", err, r.c.o.StateDir)
		}
		r.c.spooled.Add(int64(len(part)))
		e.segs = append(e.segs, segment{off: off, n: int64(len(part)), spooled: true, pos: pos})
		data, off = data[len(part):], off+int64(len(part))
	}
	return nil
}

// openSpool makes the spool file when it is first needed.
func (s *securing) openSpool() (*spool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.spool == nil {
		f, err := tempFile(s.c.o.StateDir)
		if err != nil {
			return nil, err
		}
		if s.spool, err = newSpool(f); err != nil {
			return nil, err
		}
	}
	return s.spool, nil
}

// securedSource reads back what was secured of a file, as far as it is raw.
type securedSource struct {
	segs  []segment // sorted by offset
	spool *spool
	part  []byte // the spooled part opened last
	pos   int64  // its position, -1: none
}

// run returns the stretch of raw segments from the i-th on and the index after.
func (s *securedSource) run(i int) (extent, int) {
	x := extent{s.segs[i].off, s.segs[i].off}
	for i < len(s.segs) && s.segs[i].raw() && s.segs[i].off == x.to {
		x.to += s.segs[i].n
		i++
	}
	return x, i
}

func (s *securedSource) data(off int64) (extent, bool, error) {
	for i := s.at(off); i < len(s.segs); i++ {
		if s.segs[i].raw() {
			x, _ := s.run(i)
			x.from = max(x.from, off)
			return x, true, nil
		}
	}
	return extent{}, false, nil
}

// at is the index of the segment that holds off.
func (s *securedSource) at(off int64) int {
	return sort.Search(len(s.segs), func(i int) bool { return s.segs[i].off+s.segs[i].n > off })
}

func (s *securedSource) readAt(b []byte, off int64) (int, error) {
	n := 0
	for i := s.at(off); n < len(b) && i < len(s.segs) && s.segs[i].raw(); i++ {
		g := &s.segs[i]
		if g.off > off+int64(n) {
			break
		}
		data := g.memory
		if g.spooled {
			var err error
			if data, err = s.open(g); err != nil {
				return n, err
			}
		}
		n += copy(b[n:], data[off+int64(n)-g.off:])
	}
	return n, nil
}

// open returns the bytes of a spooled segment.
func (s *securedSource) open(g *segment) ([]byte, error) {
	if s.part != nil && s.pos == g.pos {
		return s.part, nil
	}
	part, err := s.spool.get(s.part[:0], g.pos, int(g.n))
	if err != nil {
		s.part = nil
		return nil, &fatalError{err}
	}
	s.part, s.pos = part, g.pos
	return part, nil
}
