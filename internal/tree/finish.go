package tree

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"lifeboat/internal/catalog"
	"lifeboat/internal/cut"
	"lifeboat/internal/dr"
)

// Finish cuts and puts what Secure took hold of, builds the catalog and
// prepares the new statcache. It runs after the thaw and reads nothing of the
// tree any more. Key and Kind of the result are the caller's to set.
func (c *Capture) Finish(ctx context.Context) (dr.Tree, error) {
	if c.sec == nil {
		return dr.Tree{}, fmt.Errorf("finish tree %s: nothing was secured", c.o.Root)
	}
	t, ok := c.reuse()
	c.kept = ok
	if !ok {
		var err error
		if t, err = c.finish(ctx); err != nil {
			return dr.Tree{}, fmt.Errorf("finish tree %s: %w", c.o.Root, err)
		}
	}
	t.HalfRestored = c.halfRestored()
	return t, nil
}

func (c *Capture) finish(ctx context.Context) (dr.Tree, error) {
	f, err := os.CreateTemp(c.o.StateDir, "lifeboat-*.tmp")
	if err != nil {
		return dr.Tree{}, fmt.Errorf("new statcache: %w", err)
	}
	c.next = f
	out, err := newRecordWriter(f, c.identity, c.care)
	if err != nil {
		return dr.Tree{}, fmt.Errorf("new statcache: %w", err)
	}
	steps := []step{{kind: stepCopy, n: -1}}
	if c.sec != nil {
		steps = c.sec.steps
		if err := c.putSecured(ctx, out); err != nil {
			return dr.Tree{}, err
		}
	}
	meta := &metaSink{Sink: c.meta}
	a := &assembler{
		c: c, out: out, meta: meta, builder: catalog.NewBuilder(meta, c.o.CutKey, c.o.UnitID),
		copy: contentWriter{w: out}, firsts: map[DevIno]string{},
	}
	if c.pass1 != nil {
		if a.before, err = openRecords(c.pass1, c.identity); err != nil {
			return dr.Tree{}, fmt.Errorf("temporary file: %w", err)
		}
	}
	if err := a.run(ctx, steps); err != nil {
		return dr.Tree{}, err
	}
	sum, err := a.builder.Close(ctx)
	if err != nil {
		return dr.Tree{}, err
	}
	slices.Sort(c.report.Unstable)
	t := dr.Tree{Catalog: sum.Table, Entries: sum.Entries, Bytes: sum.Bytes, Hash: sum.Hash, Degraded: c.degraded()}
	if !meta.over {
		err = out.setResult(&t, meta.refs)
	}
	if err = errors.Join(err, out.finish()); err != nil {
		return dr.Tree{}, fmt.Errorf("new statcache: %w", err)
	}
	return t, nil
}

// degraded names what is not kept of the tree, for the coverage report.
func (c *Capture) degraded() string {
	var parts []string
	names := make([]string, 0, len(c.report.LostXattrs))
	for n := range c.report.LostXattrs {
		names = append(names, n)
	}
	slices.Sort(names)
	for _, n := range names {
		parts = append(parts, fmt.Sprintf("attribute %s (%d times)", n, c.report.LostXattrs[n]))
	}
	if n := len(c.report.Unstable); n > 0 {
		parts = append(parts, fmt.Sprintf("%d files changed while they were read, the first is %q", n, c.report.Unstable[0]))
	}
	return strings.Join(parts, "; ")
}

// putSecured cuts and puts all secured content, several files at a time.
func (c *Capture) putSecured(ctx context.Context, out *recordWriter) error {
	g, ctx := errgroup.WithContext(ctx)
	jobs := make(chan *securedEntry)
	g.Go(func() error {
		defer close(jobs)
		for _, e := range c.sec.entries {
			if e.gone || !e.rec.stat.IsRegular() {
				continue
			}
			select {
			case jobs <- e:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		return nil
	})
	for range c.o.Workers {
		g.Go(func() error {
			r := newEntryReader(c, out)
			defer r.close()
			for e := range jobs {
				if err := r.putSecured(ctx, e); err != nil {
					return fmt.Errorf("%s: %w", c.root.display(e.path), err)
				}
			}
			return nil
		})
	}
	return g.Wait()
}

// putSecured puts the content of one file; its record is complete afterwards.
func (r *entryReader) putSecured(ctx context.Context, e *securedEntry) (err error) {
	var size int64
	if e.clone != nil {
		size, err = r.putClone(ctx, e)
	} else {
		size, err = r.putSegments(ctx, e)
	}
	if err != nil {
		return err
	}
	// A file that shrank under our hands is as long as what was got of it.
	e.rec.stat.Size = size
	r.c.o.Progress(size)
	if e.rec.content, err = r.content.finish(nil); err != nil {
		return fmt.Errorf("new statcache: %w", err)
	}
	e.segs, e.old = nil, nil
	return nil
}

func (r *entryReader) putClone(ctx context.Context, e *securedEntry) (int64, error) {
	fd := int(e.clone.Fd())
	var st Stat
	if err := statFd(fd, &st); err != nil {
		return 0, err
	}
	src := &fileSource{extents: newExtents(fd, &st, st.Size), read: func(n int) { r.c.read.Add(int64(n)) }}
	size, err := r.put(ctx, src, e.path, st.Size)
	err = errors.Join(err, e.clone.Close())
	e.clone = nil
	return size, err
}

// putSegments puts what differs and refers to what does not.
func (r *entryReader) putSegments(ctx context.Context, e *securedEntry) (int64, error) {
	p := &segmentPutter{r: r, ctx: ctx, e: e, src: &securedSource{segs: e.segs, spool: r.c.sec.spool, pos: -1}}
	if e.old != nil && slices.ContainsFunc(e.segs, func(g segment) bool { return g.same }) {
		at := int64(0)
		err := content(r.c.pass1, e.old, func(ref catalog.Ref) error {
			from := at
			at += ref.Len
			if p.class == 0 && !ref.Hole {
				p.class = cut.Content
				if ref.Len == cut.FixedPiece {
					p.class = cut.Fixed
				}
			}
			i := p.src.at(from)
			if i == len(e.segs) || !e.segs[i].same || e.segs[i].off > from || e.segs[i].off+e.segs[i].n < at {
				return nil
			}
			if err := p.advance(from); err != nil {
				return err
			}
			p.end = at
			return r.ref(ref)
		})
		if err != nil {
			return p.end, err
		}
	}
	err := p.advance(1<<63 - 1)
	return p.end, err
}

// segmentPutter goes through the segments of one file in order.
type segmentPutter struct {
	r     *entryReader
	ctx   context.Context
	e     *securedEntry
	src   *securedSource
	class cut.Class
	next  int   // segment
	end   int64 // what the content list reaches to
}

// advance deals with the raw segments and holes before limit.
func (p *segmentPutter) advance(limit int64) error {
	for p.next < len(p.e.segs) && p.e.segs[p.next].off < limit {
		g := &p.e.segs[p.next]
		if g.same {
			p.next++
			continue
		}
		if g.off > p.end {
			if err := p.hole(g.off - p.end); err != nil {
				return err
			}
		}
		if !g.raw() {
			if err := p.hole(g.n); err != nil {
				return err
			}
			p.next++
			continue
		}
		x, after := p.src.run(p.next)
		if err := p.raw(x); err != nil {
			return err
		}
		for ; p.next < after; p.next++ {
			if m := p.e.segs[p.next].memory; m != nil {
				if err := p.r.c.o.Budget.drop(m); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func (p *segmentPutter) hole(n int64) error {
	p.end += n
	return p.r.ref(catalog.Ref{Len: n, Hole: true})
}

func (p *segmentPutter) raw(x extent) error {
	r := p.r
	if r.buf == nil {
		r.buf = make([]byte, cutBuffer)
	}
	if p.class == 0 {
		class, err := classOf(p.src, p.e.path, p.e.rec.stat.Size, x, r.buf)
		if err != nil {
			return err
		}
		p.class = class
	}
	end, err := cutExtent(p.ctx, r.c.cutter, p.src, p.class, x, r.buf, func(piece []byte) error { return r.piece(p.ctx, piece) })
	p.end = end
	return err
}

// assembler makes catalog and statcache from Precopy's records and Secure's
// steps.
type assembler struct {
	c       *Capture
	out     *recordWriter
	builder *catalog.Builder
	meta    catalog.Sink
	before  *recordReader
	copy    contentWriter
	list    catalog.ListBuilder
	firsts  map[DevIno]string // path of the first name of each hard-linked file
	buf     []byte
}

func (a *assembler) run(ctx context.Context, steps []step) error {
	for _, s := range steps {
		if err := ctx.Err(); err != nil {
			return err
		}
		if s.kind == stepNew {
			if s.file.gone {
				continue
			}
			s.file.rec.path = []byte(s.file.path)
			if err := a.add(ctx, &s.file.rec, a.c.next); err != nil {
				return err
			}
			continue
		}
		for n := 0; n != s.n; n++ {
			rec, err := a.before.next()
			if errors.Is(err, io.EOF) && s.n < 0 {
				break
			}
			if err != nil {
				return fmt.Errorf("temporary file: %w", err)
			}
			// In a single pass, what vanished meanwhile is not part of the tree.
			if s.kind == stepDrop || !rec.has(recUsable) {
				continue
			}
			if err := a.add(ctx, rec, a.c.pass1); err != nil {
				return err
			}
		}
	}
	return nil
}

// add brings one record into catalog and statcache; its long lists are in f.
func (a *assembler) add(ctx context.Context, rec *record, f *os.File) error {
	e := catalog.Entry{
		Path: string(rec.path), Mode: rec.stat.Mode & 0o7777, UID: rec.stat.UID, GID: rec.stat.GID,
		MtimeSec: rec.stat.MtimeSec, MtimeNsec: rec.stat.MtimeNsec, Type: rec.stat.Type(),
	}
	whiteout := rec.has(recWhiteout) || a.c.whiteoutStat(&rec.stat)
	if a.c.linked(&rec.stat) {
		id := DevIno{rec.stat.Dev, rec.stat.Ino}
		first, later := a.firsts[id]
		switch {
		case later && first == "":
			whiteout = true
		case later:
			e.Type, e.Target = catalog.HardLink, first
			return errors.Join(a.builder.Add(ctx, e), a.record(rec, nil))
		case a.c.groups[id] > 1:
			a.firsts[id] = e.Path
			e.LinkGroup = !whiteout
			if whiteout {
				a.firsts[id] = ""
			}
		}
	}
	if whiteout {
		// Its metadata means nothing to anybody.
		e = catalog.Entry{Path: e.Path, Type: catalog.Whiteout}
		rec.content = nil
		return errors.Join(a.builder.Add(ctx, e), a.record(rec, nil))
	}
	if err := a.describe(ctx, rec, f, &e); err != nil {
		return fmt.Errorf("%q: %w", e.Path, err)
	}
	if err := a.builder.Add(ctx, e); err != nil {
		return err
	}
	return a.record(rec, rec.content)
}

// describe fills in what goes beyond the statx.
func (a *assembler) describe(ctx context.Context, rec *record, f *os.File, e *catalog.Entry) error {
	if len(rec.xattrs) > 0 {
		var err error
		if e.Xattrs, err = decodeXattrs(rec.xattrs); err != nil {
			return err
		}
	}
	switch e.Type {
	case catalog.Directory:
		e.Opaque = rec.has(recOpaque)
	case catalog.Symlink:
		e.Target = string(rec.content)
	case catalog.CharDevice, catalog.BlockDevice:
		e.Major, e.Minor = unix.Major(rec.stat.Rdev), unix.Minor(rec.stat.Rdev)
	case catalog.File:
		if rec.has(recLink) {
			return fmt.Errorf("the first name of a hard-linked file vanished while the tree was read; run it again")
		}
		// Lists of the new statcache's own file are in place already.
		here := f == a.c.next
		err := content(f, rec.content, func(r catalog.Ref) error {
			if !here {
				if err := a.copy.add(r); err != nil {
					return err
				}
			}
			return a.list.Add(ctx, a.meta, r)
		})
		if err != nil {
			return err
		}
		if err := a.list.Finish(ctx, a.meta, e); err != nil {
			return err
		}
		if e.Size != rec.stat.Size {
			return fmt.Errorf("content of %d bytes for a size of %d", e.Size, rec.stat.Size)
		}
		if !here {
			if a.buf, err = a.copy.finish(a.buf[:0]); err != nil {
				return err
			}
			rec.content = a.buf
		}
	}
	return nil
}

// record adds to the new statcache.
func (a *assembler) record(rec *record, content []byte) error {
	rec.content = content
	if err := a.out.add(rec); err != nil {
		return fmt.Errorf("new statcache: %w", err)
	}
	return nil
}
