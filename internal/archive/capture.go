package archive

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"

	"lifeboat/internal/catalog"
	"lifeboat/internal/cut"
	"lifeboat/internal/dr"
)

// Source is what Capture needs of an engine. Calls may come concurrently.
type Source interface {
	// ReadArchive gives the tar archive of a path of a container, running,
	// paused or stopped. A path that is not there wraps dr.ErrNotFound.
	ReadArchive(ctx context.Context, container, path string) (io.ReadCloser, error)
	// Changes lists what a container changed of its image.
	Changes(ctx context.Context, container string) ([]Change, error)
}

// Change is one path that a container changed.
type Change struct {
	Path string // absolute
	Kind ChangeKind
}

// ChangeKind says how a path was changed; the values are the engine API's.
type ChangeKind int

const (
	Modified ChangeKind = 0
	Added    ChangeKind = 1
	Deleted  ChangeKind = 2
)

// Options say what a Capture takes and where to.
type Options struct {
	Source Source
	// Container is the id of the container through which the tree is reached.
	Container string
	// Path is where the tree lies in the container; "" for the container's
	// writable layer.
	Path string
	// File: the tree is a single file.
	File bool
	// Mounts are the absolute paths of all the container's mounts: what is
	// mounted inside of the tree is no part of it.
	Mounts []string
	// Exclude lists paths relative to the tree that are left out with all below.
	Exclude []string
	// Idle: nothing that writes to the tree runs, so that Precopy need not read.
	Idle bool

	CutKey [32]byte
	UnitID func(data []byte) dr.UnitID
	Sink   catalog.Sink
	// Budget is shared by the trees of a run; nil makes one.
	Budget *Budget
	// Progress is told of bytes of content as they are read by Precopy; may be nil.
	Progress func(n int64)
	// Log is told in Precopy of what could not be read yet; nil discards.
	Log *slog.Logger
}

// Capture takes one tree in passes: Precopy while everything runs, Secure while
// it is paused (or stopped), Finish afterwards. The methods are called one after
// the other by one goroutine; different captures are independent.
type Capture struct {
	o      Options
	cutter *cut.Cutter
	inside []string // mounts inside of the tree, relative to it
	// Buffers: of a file that is one unit, and for cutting.
	small, large sync.Pool

	mu    sync.Mutex
	list  *List // of Secure
	lost  lostNames
	marks map[string]struct{} // of restores that are not at their end; left out
}

// lostNames are changed paths whose names the engine's list of changes garbles.
type lostNames struct {
	n     int
	first string
}

// readers is how many archives of one writable layer are read at a time.
const readers = 4

// New prepares a capture; nothing is read yet. Close it in any case.
func New(o Options) *Capture {
	if o.Budget == nil {
		o.Budget = NewBudget(0)
	}
	if o.Progress == nil {
		o.Progress = func(int64) {}
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	c := &Capture{o: o, cutter: cut.New(o.CutKey)}
	c.small.New = func() any { b := make([]byte, cut.WholeBelow); return &b }
	c.large.New = func() any { b := make([]byte, 2*cut.MaxPiece); return &b }
	root := clean(o.Path)
	for _, m := range o.Mounts {
		if m = clean(m); catalog.Under(m, root) {
			c.inside = append(c.inside, strings.TrimPrefix(strings.TrimPrefix(m, root), "/"))
		}
	}
	return c
}

// Precopy stores the content of all files while they are in use, so that
// little is left to store in Secure. What cannot be read now is left to Secure.
func (c *Capture) Precopy(ctx context.Context) error {
	if c.o.Idle {
		return nil
	}
	err := c.read(ctx, &pass{c: c, progress: c.o.Progress})
	var stored *storeError
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.As(err, &stored):
		return err
	case err != nil:
		c.o.Log.Debug("part of a tree is left to the second pass", "container", c.o.Container, "path", c.o.Path, "error", err)
	}
	return nil
}

// Secure reads the whole tree again and stores what Precopy did not. Whatever
// writes to the tree stands still meanwhile. It logs nothing.
func (c *Capture) Secure(ctx context.Context) error {
	c.drop()
	c.list, c.lost, c.marks = NewList(c.o.Budget), lostNames{}, map[string]struct{}{}
	if err := c.read(ctx, &pass{c: c, list: c.list}); err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return err
	}
	return nil
}

// Finish stores the catalog of what Secure has read.
func (c *Capture) Finish(ctx context.Context) (dr.Tree, error) {
	sum, err := c.list.Catalog(ctx, c.o.Sink, c.o.CutKey, c.o.UnitID)
	if err != nil {
		return dr.Tree{}, err
	}
	kept := Kept(c.o.Path == "")
	if c.lost.n > 0 {
		kept += fmt.Sprintf("; %d changed files are missing because their names are not UTF-8, the first is %q", c.lost.n, c.lost.first)
	}
	return dr.Tree{Catalog: sum.Table, Entries: sum.Entries, Bytes: sum.Bytes, Hash: sum.Hash, Degraded: kept, HalfRestored: c.halfRestored()}, nil
}

// CommitCache does nothing: without the files there is no telling what has not
// changed since.
func (c *Capture) CommitCache() error { return nil }

// Close gives memory back.
func (c *Capture) Close() error {
	c.drop()
	return nil
}

func (c *Capture) drop() {
	if c.list != nil {
		c.list.Close()
		c.list = nil
	}
}

// Kept names what of a tree is lost where it was read through the archive API,
// as Docker 20.10 to 28 were measured.
func Kept(layer bool) string {
	text := "read through the engine's archive API: without fractions of a second, extended attributes and access lists (file capabilities are kept), holes and sockets"
	if layer {
		text += ", hard links between changed files of the image; deletions are kept"
	}
	return text
}

// pass is one reading of the tree. list is nil in Precopy.
type pass struct {
	c        *Capture
	list     *List
	progress func(int64)
}

func (c *Capture) read(ctx context.Context, p *pass) error {
	if c.o.Path == "" {
		return p.layer(ctx)
	}
	from, base := strings.TrimSuffix(c.o.Path, "/")+"/.", ""
	if c.o.File {
		from, base = c.o.Path, path.Base(c.o.Path)
	}
	if err := p.archive(ctx, from, base, "", nil, nil); err != nil {
		return err
	}
	if p.list == nil {
		return nil
	}
	if p.list.Len() == 0 {
		return fmt.Errorf("%s: the engine gives an empty archive: %w", c.o.Path, ErrMalformed)
	}
	return p.adopt(ctx)
}

// archive reads one archive whose root is the entry at of the tree. takes, if
// not nil, says which entries are wanted; last, if not nil, is asked after each
// whether it was the last one wanted.
func (p *pass) archive(ctx context.Context, from, base, at string, takes, last func(*catalog.Entry) bool) error {
	r, err := p.c.o.Source.ReadArchive(ctx, p.c.o.Container, from)
	if err != nil {
		return err
	}
	defer r.Close()
	err = Decode(r, base, func(e *catalog.Entry, content io.Reader) error {
		e.Path = join(at, e.Path)
		if e.Type == catalog.HardLink {
			e.Target = join(at, e.Target)
		}
		if p.c.left(e.Path) || takes != nil && !takes(e) {
			return ctx.Err()
		}
		if isMark(e) {
			p.c.note(e.Path)
			return ctx.Err()
		}
		if err := p.entry(ctx, e, content); err != nil {
			return fmt.Errorf("%q: %w", e.Path, err)
		}
		if last != nil && last(e) {
			return errStop
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("%s: %w", from, err)
	}
	return nil
}

// left reports whether a path is left out: excluded, or inside of a mount. A
// mount point itself is part of the tree.
func (c *Capture) left(path string) bool {
	if below(path, c.o.Exclude) {
		return true
	}
	for _, m := range c.inside {
		if catalog.Under(path, m) || c.o.Path == "" && path == m {
			return true
		}
	}
	return false
}

// entry stores an entry's content and takes the entry into the list.
func (p *pass) entry(ctx context.Context, e *catalog.Entry, content io.Reader) error {
	if e.Type == catalog.File {
		if err := p.content(ctx, e, content); err != nil {
			return err
		}
	}
	if p.list == nil {
		return ctx.Err()
	}
	p.c.mu.Lock()
	defer p.c.mu.Unlock()
	return p.list.Add(*e)
}

// storeError is a failure of the sink, which no later pass mends.
type storeError struct{ error }

func (s *storeError) Unwrap() error { return s.error }

type storing struct{ catalog.Sink }

func (s storing) Put(ctx context.Context, data []byte) (dr.UnitRef, error) {
	ref, err := s.Sink.Put(ctx, data)
	if err != nil {
		err = &storeError{err}
	}
	return ref, err
}

// content cuts and stores the content of a file as tree does for one on disk,
// so that units are shared with snapshots that are not degraded.
func (p *pass) content(ctx context.Context, e *catalog.Entry, r io.Reader) error {
	var list catalog.ListBuilder
	sink := storing{p.c.o.Sink}
	promised := e.Size
	store := func(piece []byte) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		ref, err := sink.Put(ctx, piece)
		if err != nil {
			return err
		}
		if p.progress != nil {
			p.progress(int64(len(piece)))
		}
		return list.Add(ctx, sink, catalog.Ref{ID: ref.ID, Len: int64(ref.Len)})
	}
	if err := p.pieces(e, r, store); err != nil {
		return err
	}
	if err := list.Finish(ctx, sink, e); err != nil {
		return err
	}
	if e.Size != promised {
		return fmt.Errorf("%d bytes came of %d: %w", e.Size, promised, ErrMalformed)
	}
	return nil
}

// pieces cuts the content of a file.
func (p *pass) pieces(e *catalog.Entry, r io.Reader, store func([]byte) error) error {
	if e.Size < cut.WholeBelow {
		buf := p.c.small.Get().(*[]byte)
		defer p.c.small.Put(buf)
		whole := (*buf)[:e.Size]
		if _, err := io.ReadFull(r, whole); err != nil {
			return readError(err)
		}
		if len(whole) == 0 {
			return nil
		}
		return store(whole)
	}
	buf := p.c.large.Get().(*[]byte)
	defer p.c.large.Put(buf)
	head := make([]byte, cut.HeadLen)
	if _, err := io.ReadFull(r, head); err != nil {
		return readError(err)
	}
	class := cut.ClassOf([]byte(e.Path), e.Size, head)
	return p.c.cutter.PiecesBuffer(class, io.MultiReader(bytes.NewReader(head), r), *buf, store)
}

// adopt gives hard links whose first name was left out their content: the
// archive has it under that name only.
func (p *pass) adopt(ctx context.Context) error {
	first := map[string]string{} // first name left out, path that has the content now
	for i := range p.list.entries {
		e := &p.list.entries[i]
		_, marked := p.c.marks[e.Target]
		if e.Type != catalog.HardLink || !marked && !p.c.left(e.Target) {
			continue
		}
		if to, ok := first[e.Target]; ok {
			e.Target = to
			continue
		}
		first[e.Target] = e.Path
		from := strings.TrimSuffix(p.c.o.Path, "/") + "/" + e.Path
		sub := &pass{c: p.c, list: NewList(p.c.o.Budget)}
		err := sub.archive(ctx, from, path.Base(from), e.Path, nil, nil)
		if err == nil && sub.list.Len() != 1 {
			err = fmt.Errorf("%s: want one file: %w", from, ErrMalformed)
		}
		if err == nil {
			*e = sub.list.entries[0]
		}
		sub.list.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

func join(at, path string) string {
	switch {
	case at == "":
		return path
	case path == "":
		return at
	}
	return at + "/" + path
}

// layer reads a writable layer: what the engine says was changed.
func (p *pass) layer(ctx context.Context) error {
	changes, err := p.c.o.Source.Changes(ctx, p.c.o.Container)
	if err != nil {
		return err
	}
	plan, err := planLayer(changes, p.c.left)
	if err != nil {
		return err
	}
	p.c.lost = plan.garbled
	for _, path := range plan.deleted {
		if err := p.entry(ctx, &catalog.Entry{Path: path, Type: catalog.Whiteout}, nil); err != nil {
			return err
		}
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(readers)
	for _, r := range plan.requests {
		if ctx.Err() != nil {
			break
		}
		g.Go(func() error {
			err := p.request(ctx, r)
			var stored *storeError
			if err != nil && p.list == nil && ctx.Err() == nil && !errors.As(err, &stored) {
				return nil // it is gone or changing; the second pass decides
			}
			return err
		})
	}
	return g.Wait()
}

// request reads one changed path: the whole of a directory that the image does
// not have, else the entry alone.
func (p *pass) request(ctx context.Context, r request) error {
	from, base := "/"+r.path, path.Base(r.path)
	if r.path == "" {
		from, base = "/.", ""
	}
	if r.opaque {
		sub := *p
		return sub.opaque(ctx, from, base, r.path)
	}
	if r.members != nil {
		return p.many(ctx, r, from, base)
	}
	return p.archive(ctx, from, base, r.path, nil, func(e *catalog.Entry) bool { return !r.whole && e.Type == catalog.Directory })
}

// many reads changed names out of the archive of their directory. The content of
// a new name of a file that the engine does not count as changed comes under
// that file's name, so it is asked for by itself.
func (p *pass) many(ctx context.Context, r request, from, base string) error {
	var apart []string
	err := p.archive(ctx, from, base, r.path, func(e *catalog.Entry) bool {
		if !r.takes(e.Path) {
			return false
		}
		if e.Type == catalog.HardLink && !r.takes(e.Target) {
			apart = append(apart, e.Path)
			return false
		}
		return true
	}, nil)
	for _, path := range apart {
		if err != nil {
			return err
		}
		err = p.request(ctx, request{path: path})
	}
	return err
}

// opaque reads a directory that replaced one of the image.
func (p *pass) opaque(ctx context.Context, from, base, at string) error {
	if err := p.archive(ctx, from, base, at, nil, nil); err != nil || p.list == nil {
		return err
	}
	p.c.mu.Lock()
	defer p.c.mu.Unlock()
	for i := range p.list.entries {
		if e := &p.list.entries[i]; e.Path == at {
			e.Opaque = e.Type == catalog.Directory
		}
	}
	return nil
}
