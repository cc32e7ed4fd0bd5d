package tree

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"lifeboat/internal/catalog"
	"lifeboat/internal/dr"
)

const (
	// batchRecords and batchBytes end a batch of records.
	batchRecords = 256
	batchBytes   = 64 << 10
	maxBatch     = 1 << 20
	// batchQueue is how many batches may wait for a file that is being read.
	batchQueue = 64
	// bulkReads is how many changed files make one syncfs cheaper than waiting
	// for the pages of each.
	bulkReads = 256
	// hotSeconds: a file written to so recently is expected to change again.
	hotSeconds = 600
)

// Precopy reads what changed since the last committed capture and puts it,
// while the tree is in use. For each file: statx, then write back, then read.
// Files that vanish, change or cannot be read meanwhile are left to Secure.
func (c *Capture) Precopy(ctx context.Context) error {
	return c.precopy(ctx, false)
}

// precopy with strict treats what cannot be read as an error: then it is the
// only pass.
func (c *Capture) precopy(ctx context.Context, strict bool) error {
	f, err := tempFile(c.o.StateDir)
	if err != nil {
		return err
	}
	if c.pass1 != nil {
		_ = c.pass1.Close()
	}
	c.pass1 = f
	out, err := newRecordWriter(f, c.identity, care{})
	if err != nil {
		return fmt.Errorf("temporary file: %w", err)
	}
	out.indexed = !strict
	if c.watch != nil {
		_ = c.watch.close()
		c.watch = nil
	}
	if !strict {
		c.beginWatch()
	}
	outer := ctx
	g, ctx := errgroup.WithContext(ctx)
	p := &precopier{
		c: c, ctx: ctx, strict: strict, out: out, start: c.clock(), copy: contentWriter{w: out},
		jobs: make(chan *readJob, 4*c.o.Workers), queue: make(chan *batch, batchQueue),
		batch: new(batch),
	}
	c.groups, c.marks = map[DevIno]uint32{}, map[string]struct{}{}
	c.result = 0
	if old, err := os.Open(c.state); err == nil {
		defer old.Close()
		p.old = old
		p.cache, _ = openRecords(old, c.identity)
	}
	for range c.o.Workers {
		g.Go(p.work)
	}
	g.Go(p.write)
	g.Go(func() error {
		defer close(p.queue)
		defer close(p.jobs)
		o := WalkOptions{Exclude: c.o.Exclude, Lenient: !strict}
		if c.watch != nil {
			o.opened = c.watch.directory
		}
		skipped, err := Walk(ctx, c.root, o, p.visit)
		c.report.Skipped = skipped
		p.unwatched(skipped)
		if err == nil && p.unchanged() {
			c.result = p.cache.result
		}
		p.seal()
		return err
	})
	if err = g.Wait(); err == nil {
		err = outer.Err()
	}
	c.entries.Store(p.entries)
	c.frames, c.pass1n = out.index, out.n
	c.halved = err != nil
	if err != nil {
		if c.watch != nil {
			c.watch.giveUp("the first pass failed") // its records are not whole
		}
		return fmt.Errorf("read tree %s: %w", c.o.Root, err)
	}
	if strict {
		return nil
	}
	return c.o.Budget.Prepare(p.hot.Load())
}

// readJob is an entry whose record has to be made from the disk.
type readJob struct {
	path  string
	stat  Stat
	batch *batch
	body  []byte // appendRecordBody, when done
}

// batch is one frame of records in the making. The walk appends; where a
// record's body has to be read first, it leaves a gap.
type batch struct {
	data []byte
	prev []byte
	n    int
	gaps []gap
	wg   sync.WaitGroup // jobs
}

type gap struct {
	at  int
	job *readJob
}

type precopier struct {
	c      *Capture
	ctx    context.Context
	strict bool
	start  time.Time // before any statx of the walk

	old   *os.File
	cache *recordReader // nil: no cache, or none left
	head  *record       // its next record, nil: to be read
	out   *recordWriter
	copy  contentWriter // for lists of the old cache

	jobs  chan *readJob
	queue chan *batch
	batch *batch
	refs  []dr.UnitRef
	list  []byte

	entries int64
	fresh   bool // a record is not the cache's
	bulk    sync.Once
	hot     atomic.Int64 // bytes of files that will probably have to be secured
}

// visit decides about one entry. It runs in the walk's goroutine.
func (p *precopier) visit(v *Visit) error {
	c, st := p.c, v.Stat
	if c.marksHalfRestored(v) {
		return nil
	}
	p.entries++
	if st.IsRegular() {
		c.scanned.Add(st.Size)
	}
	if c.laterLink(st) {
		if old := p.lookup(v.Path); old == nil || !old.has(recUsable) || !old.has(recLink) || !old.stat.Same(st) {
			p.fresh = true
		}
		p.path(v.Path)
		p.body(&record{flags: recUsable | recTrusted | recLink, stat: *st})
		return nil
	}
	old := p.lookup(v.Path)
	if old != nil && p.late(old, st) {
		c.distrust(string(v.Path))
	}
	if old != nil && old.has(recUsable) && old.has(recTrusted) && !old.has(recLink) && old.stat.Same(st) {
		known, err := p.known(old)
		if err != nil {
			return err
		}
		if known {
			if st.IsRegular() {
				c.o.Progress(st.Size)
			}
			p.path(v.Path)
			p.body(old)
			return nil
		}
	}
	p.fresh = true
	j := &readJob{path: string(v.Path), stat: *st, batch: p.batch}
	p.path(v.Path)
	p.batch.gaps = append(p.batch.gaps, gap{len(p.batch.data), j})
	p.batch.wg.Add(1)
	p.jobs <- j
	p.sealIfFull()
	return nil
}

// unwatched gives the watch up where a directory could not be read: it was not
// watched either.
func (p *precopier) unwatched(skipped []Skip) {
	if p.c.watch == nil {
		return
	}
	for _, s := range skipped {
		if s.Reason != mountPoint {
			p.c.watch.giveUp("a directory could not be read: " + s.Path)
		}
	}
}

// path and body append the two halves of a record to the batch.
func (p *precopier) path(path []byte) {
	p.batch.data = appendRecordPath(p.batch.data, p.batch.prev, path)
	p.batch.prev = append(p.batch.prev[:0], path...)
	p.batch.n++
}

func (p *precopier) body(r *record) {
	p.batch.data = appendRecordBody(p.batch.data, r)
	p.sealIfFull()
}

func (p *precopier) sealIfFull() {
	if p.batch.n >= batchRecords || len(p.batch.data) >= batchBytes {
		p.seal()
	}
}

func (p *precopier) seal() {
	if p.batch.n > 0 {
		p.queue <- p.batch
		p.batch = new(batch)
	}
}

// lookup moves the old cache on to path and returns its record, or nil. A
// cache that turns out damaged is not used any further.
func (p *precopier) lookup(path []byte) *record {
	for p.cache != nil {
		if p.head == nil {
			r, err := p.cache.next()
			if err != nil {
				p.cache = nil
				return nil
			}
			p.head = r
		}
		switch order := comparePaths(p.head.path, path); {
		case order == 0:
			r := p.head
			p.head = nil
			return r
		case order > 0:
			return nil
		}
		p.head, p.fresh = nil, true
	}
	return nil
}

// known makes sure that the units of an old record may be referenced, and
// brings a long content list over into the new file.
func (p *precopier) known(old *record) (bool, error) {
	if !old.stat.IsRegular() || old.stat.Size == 0 {
		return true, nil
	}
	p.refs = p.refs[:0]
	err := content(p.old, old.content, func(r catalog.Ref) error {
		if err := p.copy.add(r); err != nil {
			return &fatalError{err}
		}
		if r.Hole {
			return nil
		}
		if p.refs = append(p.refs, r.Unit()); len(p.refs) < catalog.ListRefs {
			return nil
		}
		return p.haveAll()
	})
	if err == nil && p.copy.size != old.stat.Size {
		err = errRecord
	}
	if err == nil {
		err = p.haveAll()
	}
	if err != nil {
		p.copy.reset()
		var stop *fatalError
		if errors.As(err, &stop) {
			return false, fmt.Errorf("temporary file: %w", err)
		}
		// Unknown to the repository, or damaged: read the file.
		return false, nil
	}
	if p.list, err = p.copy.finish(p.list[:0]); err != nil {
		return false, fmt.Errorf("temporary file: %w", err)
	}
	old.content = p.list
	return true, nil
}

// haveAll asks for the units collected so far.
func (p *precopier) haveAll() error {
	if len(p.refs) > 0 && !p.c.o.Sink.HaveAll(p.refs) {
		return errUnknown
	}
	p.refs = p.refs[:0]
	return nil
}

var errUnknown = errors.New("unit is not known")

// write brings the batches to the file in the walk's order.
func (p *precopier) write() error {
	var failed error
	var frame []byte
	for b := range p.queue {
		b.wg.Wait()
		if failed != nil || p.ctx.Err() != nil {
			continue // only let the walk come to its end
		}
		frame = frame[:0]
		from := 0
		for _, g := range b.gaps {
			frame = append(append(frame, b.data[from:g.at]...), g.job.body...)
			from = g.at
		}
		frame = append(frame, b.data[from:]...)
		if len(frame) <= maxBatch {
			failed = p.out.addFrame(frame, b.n)
		} else {
			failed = p.split(frame)
		}
	}
	if failed == nil && p.ctx.Err() == nil {
		failed = p.out.finish()
	}
	if failed != nil {
		return fmt.Errorf("temporary file: %w", failed)
	}
	return nil
}

// split adds the records of a batch that large attributes made too large for
// one frame.
func (p *precopier) split(frame []byte) error {
	var rec record
	for d := (fields{b: frame}); len(d.b) > 0; {
		if err := d.next(&rec); err != nil {
			return err
		}
		if err := p.out.add(&rec); err != nil {
			return err
		}
	}
	return nil
}

// work reads entries. It goes on taking jobs after an error so that nobody
// waits for it.
func (p *precopier) work() error {
	r := newEntryReader(p.c, p.out)
	defer r.close()
	var failed error
	for j := range p.jobs {
		if failed == nil && p.ctx.Err() == nil {
			failed = p.read(r, j)
		}
		j.batch.wg.Done()
	}
	return failed
}

// read makes the body of a record.
func (p *precopier) read(r *entryReader, j *readJob) error {
	rec := record{stat: j.stat}
	var err error
	if j.stat.IsRegular() {
		err = p.readFile(r, j.path, &rec)
	} else if err = r.metadata(j.path, &rec); err == nil {
		rec.flags |= recUsable
		if p.c.trusted(&rec.stat, p.start) {
			rec.flags |= recTrusted
		}
	}
	var stop *fatalError
	switch {
	case errors.Is(err, ErrNeedsMerged), errors.As(err, &stop), p.ctx.Err() != nil:
		return fmt.Errorf("%s: %w", p.c.root.display(j.path), err)
	case err != nil && p.strict && !gone(err):
		return fmt.Errorf("read %s: %w", p.c.root.display(j.path), err)
	case err != nil:
		// Vanished, changed its type, or unreadable: Secure decides.
		rec = record{stat: j.stat}
	}
	// What is untrusted now will have to be secured; without a watch that tells
	// more, what was written to a while ago is probably written to all the time.
	if st := &j.stat; st.IsRegular() && (!rec.has(recTrusted) || p.c.watch == nil && p.start.Unix()-st.MtimeSec < hotSeconds) {
		p.hot.Add(st.Size)
	}
	if p.c.watch != nil && !rec.has(recTrusted) {
		p.c.watch.note(j.path)
	}
	j.body = appendRecordBody(nil, &rec)
	return nil
}

// readFile reads a regular file: statx, write back, read.
func (p *precopier) readFile(r *entryReader, path string, rec *record) error {
	c := p.c
	fd, err := r.open(path)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	now := c.clock()
	if err := statFd(fd, &rec.stat); err != nil {
		return err
	}
	if !rec.stat.IsRegular() {
		return unix.ESTALE
	}
	written := false
	if c.trustFS {
		if c.filesRead.Load() > bulkReads {
			p.bulk.Do(func() { _ = unix.Syncfs(c.root.fd) })
		}
		written = writeBack(fd) == nil
	}
	if err := r.attributes(fd, rec); err != nil {
		return err
	}
	size, err := r.file(p.ctx, fd, path, rec)
	if err != nil {
		return err
	}
	c.filesRead.Add(1)
	c.o.Progress(size)
	rec.flags |= recUsable
	if written && size == rec.stat.Size && c.trusted(&rec.stat, now) {
		rec.flags |= recTrusted
	}
	if p.strict && size != rec.stat.Size {
		rec.stat.Size = size
	}
	return nil
}

// fatalError is an error of the sink or of our own files, as opposed to one of
// the tree.
type fatalError struct{ err error }

func (e *fatalError) Error() string { return e.err.Error() }
func (e *fatalError) Unwrap() error { return e.err }

// entryReader reads single entries of a tree. It is one goroutine's.
type entryReader struct {
	c       *Capture
	dirs    *dirCache
	xr      *xattrReader
	buf     []byte
	content contentWriter
}

func newEntryReader(c *Capture, out *recordWriter) *entryReader {
	return &entryReader{c: c, dirs: newDirCache(c.root), xr: newXattrReader(c.o.Overlay), content: contentWriter{w: out}}
}

func (r *entryReader) close() { r.dirs.close() }

func (r *entryReader) open(path string) (int, error) {
	dir, name, err := r.dirs.parent(path)
	if err != nil {
		return -1, err
	}
	return openRegular(dir, name)
}

// metadata reads what an entry that is no regular file has beyond its statx.
func (r *entryReader) metadata(path string, rec *record) error {
	dir, name, err := r.dirs.parent(path)
	if err != nil {
		return err
	}
	if rec.stat.Type() == catalog.Symlink {
		target, err := readlink(dir, name)
		if err != nil {
			return err
		}
		rec.content = []byte(target)
	}
	if r.c.whiteoutStat(&rec.stat) {
		return nil
	}
	x, err := r.xr.at(dir, name)
	if err != nil {
		return err
	}
	r.take(&x, rec)
	return nil
}

// attributes reads the attributes of an open regular file.
func (r *entryReader) attributes(fd int, rec *record) error {
	x, err := r.xr.fd(fd)
	if err != nil {
		return err
	}
	r.take(&x, rec)
	return nil
}

func (r *entryReader) take(x *xattrs, rec *record) {
	rec.flags &^= recOpaque | recWhiteout
	if x.opaque && rec.stat.IsDir() {
		rec.flags |= recOpaque
	}
	if x.whiteout && rec.stat.IsRegular() && rec.stat.Size == 0 {
		rec.flags |= recWhiteout
	}
	rec.xattrs = nil
	if len(x.kept) > 0 {
		rec.xattrs = appendXattrs(nil, x.kept)
	}
	r.c.lose(x.lost)
}

// file cuts and puts the content of an open file.
func (r *entryReader) file(ctx context.Context, fd int, path string, rec *record) (int64, error) {
	src := &fileSource{extents: newExtents(fd, &rec.stat, rec.stat.Size), read: func(n int) { r.c.read.Add(int64(n)) }}
	size, err := r.put(ctx, src, path, rec.stat.Size)
	if err != nil {
		r.content.reset()
		return size, err
	}
	rec.content, err = r.content.finish(nil)
	if err != nil {
		return size, &fatalError{err}
	}
	return size, nil
}

// put cuts src and puts the pieces; the refs go to r.content.
func (r *entryReader) put(ctx context.Context, src source, path string, size int64) (int64, error) {
	if r.buf == nil && size > 0 {
		r.buf = make([]byte, cutBuffer)
	}
	return cutContent(ctx, r.c.cutter, src, path, size, r.buf,
		func(piece []byte) error { return r.piece(ctx, piece) },
		func(n int64) error { return r.ref(catalog.Ref{Len: n, Hole: true}) })
}

func (r *entryReader) piece(ctx context.Context, piece []byte) error {
	ref, err := r.c.o.Sink.Put(ctx, piece)
	if err != nil {
		return &fatalError{err}
	}
	return r.ref(catalog.Ref{ID: ref.ID, Len: int64(ref.Len)})
}

func (r *entryReader) ref(ref catalog.Ref) error {
	if err := r.content.add(ref); err != nil {
		return &fatalError{err}
	}
	return nil
}
