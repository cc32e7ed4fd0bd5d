package tree

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"lifeboat/internal/catalog"
	"lifeboat/internal/dr"
)

func isNotFound(err error) bool { return errors.Is(err, dr.ErrNotFound) }

// remember records the statcache after Apply. A tree that could not be
// remembered is read once more than needed, so that is no failure.
func (a *applier) remember(ctx context.Context) error {
	if a.o.Key == "" || a.o.NoSync {
		return nil
	}
	// run has written everything back just now.
	if err := recordTree(ctx, a.path, a.target, a.o, true); err != nil && ctx.Err() != nil {
		return err
	}
	return nil
}

// RecordCache records the statcache of a tree that is known to be in the state
// of target, so that the next capture reads only what changes from now on.
// Nothing may have written to the tree since Apply brought it there. Files
// touched less than two seconds ago cannot be told from such as change in the
// same tick and are read again; so Apply, which does this by itself, leaves the
// newest out, and a caller that has other work to do before it starts
// containers does well to call it again then.
func RecordCache(ctx context.Context, root string, target *catalog.Reader, o ApplyOptions) error {
	if err := recordTree(ctx, root, target.Clone(), o, false); err != nil {
		return fmt.Errorf("record statcache of tree %s: %w", root, err)
	}
	return nil
}

func recordTree(ctx context.Context, path string, target *catalog.Reader, o ApplyOptions, synced bool) (err error) {
	c, err := NewCapture(CaptureOptions{
		Root: path, Key: o.Key, Overlay: o.Overlay, CrossMounts: o.CrossMounts, StateDir: o.StateDir,
		CutKey: o.CutKey, UnitID: o.UnitID, TrustedFS: o.TrustedFS, Now: o.Now, Sink: hashSink{o.UnitID},
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	// Pages written back are write-protected: later stores through maps stamp.
	if !synced {
		if err := unix.Syncfs(c.root.fd); err != nil {
			return err
		}
	}
	if c.next, err = os.CreateTemp(o.StateDir, "lifeboat-*.tmp"); err != nil {
		return err
	}
	out, err := newRecordWriter(c.next, c.identity, c.care)
	if err != nil {
		return err
	}
	m := &rememberer{c: c, ctx: ctx, target: target, out: out, list: contentWriter{w: out}, groups: map[DevIno]string{}}
	target.Rewind()
	start := c.clock()
	_, err = Walk(ctx, c.root, WalkOptions{Exclude: o.Exclude}, func(v *Visit) error {
		rec, err := m.visit(v)
		if rec == nil || err != nil {
			return err
		}
		if c.trusted(&rec.stat, start) {
			rec.flags |= recTrusted
		}
		return out.add(rec)
	})
	if err != nil {
		return err
	}
	if err := out.finish(); err != nil {
		return err
	}
	return c.CommitCache()
}

// rememberer makes records of what is on disk and what it is known to hold.
type rememberer struct {
	c      *Capture
	ctx    context.Context
	target *catalog.Reader
	head   *catalog.Entry
	ended  bool
	out    *recordWriter
	list   contentWriter
	buf    []byte
	groups map[DevIno]string
}

// visit returns the record of an entry, or nil for what is not as the catalog
// says.
func (m *rememberer) visit(v *Visit) (*record, error) {
	e, err := m.lookup(string(v.Path))
	if e == nil || err != nil {
		return nil, err
	}
	st := v.Stat
	rec := &record{path: v.Path, flags: recUsable, stat: *st}
	if m.c.whiteoutStat(st) {
		if e.Type != catalog.Whiteout {
			return nil, nil
		}
		return rec, nil
	}
	if m.c.linked(st) {
		id := DevIno{st.Dev, st.Ino}
		if first, later := m.groups[id]; later {
			if e.Type != catalog.HardLink || e.Target != first {
				return nil, nil
			}
			rec.flags |= recLink
			return rec, nil
		}
		m.groups[id] = string(v.Path)
	}
	if e.Type != st.Type() || e.Mode != st.Mode&0o7777 || e.UID != st.UID || e.GID != st.GID ||
		e.MtimeSec != st.MtimeSec || e.MtimeNsec != st.MtimeNsec || e.Size != sizeOf(st) {
		return nil, nil
	}
	if e.Opaque {
		rec.flags |= recOpaque
	}
	if len(e.Xattrs) > 0 {
		rec.xattrs = appendXattrs(nil, e.Xattrs)
	}
	switch e.Type {
	case catalog.Symlink:
		rec.content = []byte(e.Target)
	case catalog.File:
		if err := m.target.Content(m.ctx, e, func(_ int64, r catalog.Ref) error { return m.list.add(r) }); err != nil {
			return nil, err
		}
		if m.buf, err = m.list.finish(m.buf[:0]); err != nil {
			return nil, err
		}
		rec.content = m.buf
	}
	return rec, nil
}

func sizeOf(st *Stat) int64 {
	if st.IsRegular() {
		return st.Size
	}
	return 0
}

// lookup moves the catalog on to path and returns its entry, or nil.
func (m *rememberer) lookup(path string) (*catalog.Entry, error) {
	for !m.ended {
		if m.head == nil {
			e, err := m.target.Next(m.ctx)
			if errors.Is(err, io.EOF) {
				m.ended = true
				break
			}
			if err != nil {
				return nil, err
			}
			m.head = &e
		}
		order := catalog.ComparePaths(m.head.Path, path)
		if order > 0 {
			break
		}
		e := m.head
		m.head = nil
		if order == 0 {
			return e, nil
		}
	}
	return nil, nil
}
