package tree

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

const (
	// reflinkFrom is the size in bytes from which a file is reflinked where the
	// file system can.
	reflinkFrom = 1 << 20
	// maxReflinks bounds the descriptors held until Finish.
	maxReflinks = 512
	// unstableTries is how often a file that changes under our hands is read.
	unstableTries = 3
)

// step is one instruction of how Secure's tree follows from Precopy's records.
type step struct {
	kind stepKind
	n    int
	file *securedEntry
}

type stepKind uint8

const (
	stepCopy stepKind = iota // the next n records of Precopy hold
	stepDrop                 // the next n are gone
	stepNew                  // file is here
)

// securedEntry is an entry as Secure found it.
type securedEntry struct {
	path string
	rec  record // without content of regular files
	old  []byte // content list that Precopy recorded, nil: none
	gone bool

	segs  []segment
	clone *os.File // reflink of the whole file
}

// securing is the state of one Secure pass.
type securing struct {
	c     *Capture
	ctx   context.Context
	start time.Time
	steps []step

	before  *recordReader // records of Precopy
	head    *record       // the next of them that is not accounted for, nil: to be read
	jobs    chan *securedEntry
	entries []*securedEntry
	fast    bool // only candidates are visited, and entries wait until all were
	check   bool // all are visited, and compared with what the watch said

	mu       sync.Mutex
	helpers  sync.Pool // of *secureReader, for stretches
	spool    *spool
	reflink  bool // the file system can
	reflinks int
}

func (s *securing) close() error {
	var errs []error
	for _, e := range s.entries {
		if e.clone != nil {
			errs = append(errs, e.clone.Close())
			e.clone = nil
		}
	}
	if s.spool != nil {
		errs = append(errs, s.spool.f.Close())
	}
	return errors.Join(errs...)
}

// Secure takes hold of all content that Precopy does not have for certain: what
// is new, changed, too young to tell, mapped shared and writable (AddOpen), or
// on a file system that is not trusted. It runs while the system is frozen, or
// while nothing of it runs. It reads, compares and copies; it does not touch
// network or terminal, and cuts nothing.
//
// Where the tree was watched since its directories were read, only what was
// touched is looked at, and what processes hold; else, and once a week,
// every entry (docs/adr/0011).
//
// Bytes go to a reflink where the file system can, else to the budget's
// memory; beyond that only the pieces that differ from what Precopy put are
// kept, in an encrypted spool file. When ctx ends it returns soon; the capture
// can then only be closed.
func (c *Capture) Secure(ctx context.Context) error {
	if c.sec != nil {
		return fmt.Errorf("secure tree %s: already done", c.o.Root)
	}
	if c.halved {
		return fmt.Errorf("secure tree %s: the first pass failed", c.o.Root)
	}
	outer := ctx
	g, ctx := errgroup.WithContext(ctx)
	s := &securing{c: c, ctx: ctx, start: c.clock(), jobs: make(chan *securedEntry, 1024), reflink: true}
	c.sec = s
	for range c.o.Workers {
		g.Go(s.work)
	}
	g.Go(func() error {
		defer close(s.jobs)
		return s.look(ctx)
	})
	err := g.Wait()
	if err == nil {
		err = outer.Err()
	}
	c.entries.Store(s.count())
	if err != nil {
		return fmt.Errorf("secure tree %s: %w", c.o.Root, err)
	}
	return nil
}

// look visits what has to be looked at.
func (s *securing) look(ctx context.Context) error {
	c := s.c
	list, ok := c.candidates()
	if ok && !c.fullDue() {
		if err := s.rewind(); err != nil {
			return err
		}
		err := s.partial(ctx, list)
		if err == nil {
			c.looked.Store(int64(len(list)))
			c.care.partial = time.Now().Unix() // as the file system counts
			return s.queue(ctx)
		}
		if !errors.Is(err, errFull) {
			return err
		}
	}
	s.fast, s.check = false, ok
	s.steps, s.entries = nil, nil
	c.groups, c.marks = map[DevIno]uint32{}, map[string]struct{}{}
	if err := s.rewind(); err != nil {
		return err
	}
	n := int64(0)
	skipped, err := Walk(ctx, c.root, WalkOptions{Exclude: c.o.Exclude}, func(v *Visit) error {
		n++
		return s.visit(v)
	})
	c.report.Skipped = skipped
	c.looked.Store(n)
	if err == nil {
		c.care.full, c.care.partial = s.start.Unix(), 0
	}
	return err
}

// rewind begins with the first record of Precopy.
func (s *securing) rewind() (err error) {
	s.before, s.head = nil, nil
	if s.c.pass1 == nil {
		return nil
	}
	if s.before, err = openRecords(s.c.pass1, s.c.identity); err != nil {
		return fmt.Errorf("temporary file: %w", err)
	}
	return nil
}

// queue hands what candidates led to to the workers.
func (s *securing) queue(ctx context.Context) error {
	for _, e := range s.entries {
		select {
		case s.jobs <- e:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// count is how many entries the tree has.
func (s *securing) count() int64 {
	n := int64(0)
	for _, st := range s.steps {
		switch {
		case st.kind == stepCopy:
			n += int64(st.n)
		case st.kind == stepNew && !st.file.gone:
			n++
		}
	}
	return n
}

// step appends an instruction; runs of the same kind become one.
func (s *securing) step(kind stepKind, e *securedEntry) {
	if n := len(s.steps); n > 0 && e == nil && s.steps[n-1].kind == kind {
		s.steps[n-1].n++
		return
	}
	s.steps = append(s.steps, step{kind: kind, n: 1, file: e})
}

// stepN is n times step, of records.
func (s *securing) stepN(kind stepKind, n int) {
	if n > 0 {
		s.step(kind, nil)
		s.steps[len(s.steps)-1].n += n - 1
	}
}

// lookup moves Precopy's records on to path and returns its record, or nil.
// The record returned is accounted for by the caller.
func (s *securing) lookup(path []byte) (*record, error) {
	for {
		if err := s.load(); err != nil || s.head == nil {
			return nil, err
		}
		order := comparePaths(s.head.path, path)
		if order > 0 {
			return nil, nil
		}
		r := s.head
		s.head = nil
		if order == 0 {
			return r, nil
		}
		if s.fast && s.c.linked(&r.stat) {
			return nil, errFull
		}
		s.step(stepDrop, nil)
	}
}

// visit decides about one entry. It runs in the walk's goroutine.
func (s *securing) visit(v *Visit) error {
	c, st := s.c, v.Stat
	if c.marksHalfRestored(v) {
		return nil
	}
	old, err := s.lookup(v.Path)
	if err != nil {
		return err
	}
	if s.fast && (c.linked(st) || old != nil && c.linked(&old.stat)) {
		return errFull // its other names have to be looked at too
	}
	later := c.laterLink(st)
	if old != nil && s.holds(v.Path, old, st, later) {
		s.step(stepCopy, nil)
		return nil
	}
	if s.missed(v.Path, old, st) {
		c.distrust(string(v.Path))
	}
	e := &securedEntry{path: string(v.Path), rec: record{stat: *st, flags: recUsable}}
	if old != nil {
		s.step(stepDrop, nil)
	}
	s.step(stepNew, e)
	if later {
		e.rec.flags |= recLink | recTrusted
		return nil
	}
	if old != nil && old.has(recUsable) && old.stat.IsRegular() && !old.has(recLink) && st.IsRegular() && st.Size >= reflinkFrom {
		e.old = append([]byte{}, old.content...)
	}
	s.entries = append(s.entries, e)
	if s.fast {
		return nil
	}
	select {
	case s.jobs <- e:
		return nil
	case <-s.ctx.Done():
		return s.ctx.Err()
	}
}

// holds reports whether Precopy's record still says everything about an entry.
func (s *securing) holds(path []byte, old *record, st *Stat, later bool) bool {
	switch {
	case !old.has(recUsable), !old.stat.Same(st):
		return false
	case later:
		// Whatever its content, it is the first one's.
		return true
	case old.has(recLink):
		// It was a later name when Precopy came by; a directory was renamed.
		return false
	case !old.has(recTrusted):
		return false
	}
	if st.IsRegular() {
		return !s.c.mappedNow(path, st.Ino)
	}
	return true
}

func (s *securing) work() error {
	r := newSecureReader(s)
	defer r.entryReader.close()
	var failed error
	for e := range s.jobs {
		if failed != nil || s.ctx.Err() != nil {
			continue
		}
		if err := r.secure(e); err != nil {
			failed = fmt.Errorf("%s: %w", s.c.root.display(e.path), err)
		}
	}
	return failed
}

// secureReader is one goroutine's part in securing.
type secureReader struct {
	*entryReader
	s      *securing
	piece  []byte // for comparing and spooling
	sealed []byte
}

func newSecureReader(s *securing) *secureReader {
	return &secureReader{entryReader: newEntryReader(s.c, nil), s: s}
}

// secure takes hold of one entry.
func (r *secureReader) secure(e *securedEntry) error {
	if !e.rec.stat.IsRegular() {
		err := r.metadata(e.path, &e.rec)
		if err == nil && r.c.trusted(&e.rec.stat, r.s.start) {
			e.rec.flags |= recTrusted
		}
		return r.vanished(e, err)
	}
	fd, err := r.open(e.path)
	if err != nil {
		return r.vanished(e, err)
	}
	defer unix.Close(fd)
	for try := 1; ; try++ {
		if err := statFd(fd, &e.rec.stat); err != nil {
			return err
		}
		if !e.rec.stat.IsRegular() {
			return unix.ESTALE
		}
		if err := r.attributes(fd, &e.rec); err != nil {
			return err
		}
		if err := r.bytes(fd, e); err != nil {
			return err
		}
		var after Stat
		if err := statFd(fd, &after); err != nil {
			return err
		}
		if after.Same(&e.rec.stat) {
			break
		}
		if try == unstableTries {
			// Somebody outside the frozen set writes here all the time.
			r.c.mu.Lock()
			r.c.report.Unstable = append(r.c.report.Unstable, e.path)
			r.c.mu.Unlock()
			break
		}
		if e.clone != nil {
			_ = e.clone.Close()
			e.clone = nil
		}
	}
	r.c.filesSecured.Add(1)
	return nil
}

// vanished turns an error that means that the entry is gone into that.
func (r *secureReader) vanished(e *securedEntry, err error) error {
	if err != nil && gone(err) {
		e.gone = true
		return nil
	}
	return err
}

// bytes takes hold of the content of an open file, whose statx is in e.
func (r *secureReader) bytes(fd int, e *securedEntry) error {
	e.segs = e.segs[:0]
	size := e.rec.stat.Size
	if size == 0 {
		return nil
	}
	if size >= reflinkFrom {
		ok, err := r.cloneFile(fd, e)
		if ok || err != nil {
			return err
		}
	}
	return r.stretches(fd, e)
}

// cloneFile reflinks the file into an unnamed one on the same file system.
func (r *secureReader) cloneFile(fd int, e *securedEntry) (bool, error) {
	s := r.s
	s.mu.Lock()
	try := s.reflink && s.reflinks < maxReflinks
	if try {
		s.reflinks++
	}
	s.mu.Unlock()
	if !try {
		return false, nil
	}
	err := func() error {
		tmp, err := retry(func() (int, error) {
			return unix.Openat(r.c.root.fd, ".", unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
		})
		if err != nil {
			return err
		}
		if err := unix.IoctlFileClone(tmp, fd); err != nil {
			_ = unix.Close(tmp)
			return err
		}
		e.clone = os.NewFile(uintptr(tmp), "reflink of "+e.path)
		return nil
	}()
	if err == nil {
		s.c.secured.Add(e.rec.stat.Size)
		return true, nil
	}
	// Not here: another way is found. One refusal speaks for the tree, save for
	// a lack of space, which may be this file's.
	s.mu.Lock()
	s.reflinks--
	s.reflink = s.reflink && errors.Is(err, unix.ENOSPC)
	s.mu.Unlock()
	return false, r.s.ctx.Err()
}
