package tree

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// WalkOptions say what a walk passes over.
type WalkOptions struct {
	// Exclude lists paths (relative, as in a catalog) that are passed over with
	// everything below them: the mount points of volumes in an upper directory.
	Exclude []string
	// Vanished entries and unreadable directories: a walk over a running tree
	// goes on without them. Else an unreadable directory is an error; what is
	// gone is gone in both.
	Lenient bool
	// Workers is how many directories are read at once; 0 chooses.
	Workers int
	// From is where the walk begins, a path of the tree; "" is its root.
	From string

	// opened is told of each directory before its names are read, and what statx
	// said of it before that; may be nil. Called concurrently.
	opened func(path string, fd int, seen *Stat)
}

// Visit is one entry on the way. It is valid during the call only.
type Visit struct {
	// Path is relative to the root; "" for the root itself.
	Path []byte
	Stat *Stat
}

// mountPoint is the reason of a Skip.
const mountPoint = "mount point"

// Skip is something that a walk did not enter, with the reason.
type Skip struct {
	Path   string
	Reason string
}

// Walk calls fn for each entry of the tree in catalog order: the root (or From), then
// each directory before its content, names in byte order. Directories are read
// and their entries looked at (statx) by several workers ahead of fn; what is
// ahead is bounded, so memory does not grow with the tree, save for the names
// of the largest directory. Mount points below the root are passed over and
// returned. An error of fn ends the walk and is returned as it is.
func Walk(ctx context.Context, root *Root, opts WalkOptions, fn func(*Visit) error) ([]Skip, error) {
	w := &walker{ctx: ctx, root: root, opts: opts, fn: fn, exclude: make(map[string]struct{}, len(opts.Exclude))}
	for _, p := range opts.Exclude {
		w.exclude[p] = struct{}{}
	}
	w.cond.L = &w.mu
	n := opts.Workers
	if n <= 0 {
		// Two more than there are cores keep a disk busy while others compute.
		n = runtime.GOMAXPROCS(0) + 2
	}
	var wg sync.WaitGroup
	for range n {
		wg.Go(w.work)
	}
	err := w.run()
	w.mu.Lock()
	w.closed = true
	w.mu.Unlock()
	w.cond.Broadcast()
	wg.Wait()
	w.discard()
	return w.skipped, err
}

const (
	// blockNames is how many entries of one directory are looked at in one go.
	blockNames = 1024
	// maxAhead bounds the entries looked at but not yet visited.
	maxAhead = 32 << 10
)

// task is work that whoever comes first does: a worker ahead of time, or the
// visitor when it gets there.
type task struct {
	claimed atomic.Bool
	done    chan struct{}
	run     func()
}

func newTask(run func()) *task { return &task{done: make(chan struct{}), run: run} }

// do runs the task unless somebody else has claimed it.
func (t *task) do() bool {
	if !t.claimed.CompareAndSwap(false, true) {
		return false
	}
	t.run()
	close(t.done)
	return true
}

// wait makes sure that the task is done.
func (t *task) wait() {
	if !t.do() {
		<-t.done
	}
}

// directory is one directory on its way through the walk.
type directory struct {
	path string
	seen Stat
	list *task
	err  error

	fd     int // open until the last block is looked at
	left   atomic.Int32
	names  []byte   // NUL-terminated names, one after the other
	offs   []uint32 // where each name starts, in byte order of the names
	blocks []*block
}

// block is up to blockNames entries of a directory.
type block struct {
	task  *task
	stats []Stat // Mode 0: gone
	subs  []*directory
	err   error
}

type walker struct {
	ctx     context.Context
	root    *Root
	opts    WalkOptions
	fn      func(*Visit) error
	exclude map[string]struct{}

	mu     sync.Mutex
	cond   sync.Cond
	stack  []*task // the top is what the visitor comes to first
	closed bool

	ahead   atomic.Int64
	bufs    sync.Pool
	skipped []Skip
	opened  sync.Map // *directory → nil, those with an open descriptor
	visit   Visit
	path    []byte
}

// work does tasks ahead of the visitor.
func (w *walker) work() {
	for {
		w.mu.Lock()
		for !w.closed && (len(w.stack) == 0 || w.ahead.Load() > maxAhead) {
			w.cond.Wait()
		}
		if w.closed {
			w.mu.Unlock()
			return
		}
		t := w.stack[len(w.stack)-1]
		w.stack = w.stack[:len(w.stack)-1]
		w.mu.Unlock()
		t.do()
	}
}

// push makes tasks known to the workers; the first is the most urgent.
func (w *walker) push(tasks []*task) {
	w.mu.Lock()
	defer w.mu.Unlock()
	// What the visitor has overtaken is on top, mostly.
	for n := len(w.stack); n > 0 && w.stack[n-1].claimed.Load(); n-- {
		w.stack = w.stack[:n-1]
	}
	for i := len(tasks) - 1; i >= 0; i-- {
		w.stack = append(w.stack, tasks[i])
	}
	w.cond.Broadcast()
}

func (w *walker) run() error {
	st := new(Stat)
	if err := w.statFrom(st); err != nil {
		return fmt.Errorf("look at %s: %w", w.root.display(w.opts.From), err)
	}
	w.path = append(w.path, w.opts.From...)
	w.visit = Visit{Path: w.path, Stat: st}
	if err := w.fn(&w.visit); err != nil {
		return err
	}
	if !st.IsDir() || w.root.Single() {
		return nil
	}
	d := w.directory(w.opts.From, st)
	w.push([]*task{d.list})
	return w.descend(d)
}

func (w *walker) statFrom(st *Stat) error {
	if w.opts.From == "" {
		return w.root.statRoot(st)
	}
	dirs := newDirCache(w.root)
	defer dirs.close()
	dir, name, err := dirs.parent(w.opts.From)
	if err != nil {
		return err
	}
	return statAt(dir, name, st)
}

// descend visits the content of d.
func (w *walker) descend(d *directory) error {
	d.list.wait()
	if d.err != nil {
		return w.unreadable(d.path, d.err)
	}
	base := len(w.path)
	if base > 0 {
		w.path = append(w.path, '/')
	}
	prefix := len(w.path)
	defer func() { w.path = w.path[:base] }()
	for k, b := range d.blocks {
		b.task.wait()
		if b.err != nil {
			return b.err
		}
		if err := w.ctx.Err(); err != nil {
			return err
		}
		subs := b.subs
		for i := range b.stats {
			st := &b.stats[i]
			if st.Mode == 0 {
				continue
			}
			w.path = append(w.path[:prefix], d.name(k*blockNames+i)...)
			if _, skip := w.exclude[string(w.path)]; skip {
				continue
			}
			if !w.root.crossMounts && (st.mountRoot || w.root.foreign(st)) {
				w.skipped = append(w.skipped, Skip{Path: string(w.path), Reason: mountPoint})
				continue
			}
			w.visit.Path, w.visit.Stat = w.path, st
			if err := w.fn(&w.visit); err != nil {
				return err
			}
			if !st.IsDir() {
				continue
			}
			// The same conditions made the entry a directory to be listed.
			sub := subs[0]
			subs[0], subs = nil, subs[1:]
			if err := w.descend(sub); err != nil {
				return err
			}
		}
		n := int64(len(b.stats))
		d.blocks[k] = nil
		if before := w.ahead.Add(-n) + n; before > maxAhead {
			w.mu.Lock()
			w.cond.Broadcast()
			w.mu.Unlock()
		}
	}
	return nil
}

// unreadable decides about a directory that could not be listed.
func (w *walker) unreadable(path string, err error) error {
	switch {
	case w.ctx.Err() != nil:
		// What was not read for that reason must not pass for empty.
		return w.ctx.Err()
	case errors.Is(err, unix.EXDEV):
		w.skipped = append(w.skipped, Skip{Path: path, Reason: mountPoint})
		return nil
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP):
		// Gone, or something else by now: whoever looks again sees it.
		return nil
	case w.opts.Lenient:
		w.skipped = append(w.skipped, Skip{Path: path, Reason: err.Error()})
		return nil
	}
	return fmt.Errorf("read directory %s: %w", w.root.display(path), err)
}

func (d *directory) name(i int) []byte {
	s := d.names[d.offs[i]:]
	for n, c := range s {
		if c == 0 {
			return s[:n]
		}
	}
	return s
}

func (w *walker) directory(path string, seen *Stat) *directory {
	d := &directory{path: path, seen: *seen, fd: -1}
	d.list = newTask(func() { w.list(d) })
	return d
}

// list reads the names of d and makes its blocks; a small directory's only
// block is looked at right away.
func (w *walker) list(d *directory) {
	if d.err = w.ctx.Err(); d.err != nil {
		return
	}
	fd, err := w.root.open(d.path, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		d.err = err
		return
	}
	if w.opts.opened != nil {
		w.opts.opened(d.path, fd, &d.seen)
	}
	buf, _ := w.bufs.Get().(*[]byte)
	if buf == nil {
		b := make([]byte, 64<<10)
		buf = &b
	}
	d.names, d.offs, err = readNames(fd, *buf)
	w.bufs.Put(buf)
	if err != nil || len(d.offs) == 0 {
		d.err = err
		_ = unix.Close(fd)
		return
	}
	d.fd = fd
	n := (len(d.offs) + blockNames - 1) / blockNames
	d.left.Store(int32(n))
	d.blocks = make([]*block, n)
	tasks := make([]*task, n)
	for k := range d.blocks {
		b := new(block)
		b.task = newTask(func() { w.look(d, b, k) })
		d.blocks[k], tasks[k] = b, b.task
	}
	if n == 1 {
		tasks[0].do() // closes it
		return
	}
	w.opened.Store(d, nil)
	w.push(tasks)
}

// look takes the statx of the entries of block k and queues its directories.
func (w *walker) look(d *directory, b *block, k int) {
	offs := d.offs[k*blockNames : min(len(d.offs), (k+1)*blockNames)]
	b.stats = make([]Stat, len(offs))
	w.ahead.Add(int64(len(offs)))
	var raw unix.Statx_t
	var tasks []*task
	for i := range offs {
		err := statName(d.fd, d.names[offs[i]:], &raw)
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			path := join(d.path, string(d.name(k*blockNames+i)))
			b.err = fmt.Errorf("look at %s: %w", w.root.display(path), err)
			break
		}
		st := &b.stats[i]
		st.from(&raw)
		if !st.IsDir() || !w.root.crossMounts && (st.mountRoot || w.root.foreign(st)) {
			continue
		}
		path := join(d.path, string(d.name(k*blockNames+i)))
		if _, skip := w.exclude[path]; skip {
			continue
		}
		sub := w.directory(path, st)
		b.subs = append(b.subs, sub)
		tasks = append(tasks, sub.list)
	}
	if d.left.Add(-1) == 0 {
		w.closeDir(d)
	}
	if len(tasks) > 0 {
		w.push(tasks)
	}
}

func (w *walker) closeDir(d *directory) {
	if len(d.blocks) == 1 {
		_ = unix.Close(d.fd)
		return
	}
	if _, open := w.opened.LoadAndDelete(d); open {
		_ = unix.Close(d.fd)
	}
}

// discard closes what a walk that ended early left open. No worker runs.
func (w *walker) discard() {
	w.opened.Range(func(d, _ any) bool {
		w.closeDir(d.(*directory))
		return true
	})
}

func join(dir, name string) string {
	if dir == "" {
		return name
	}
	return dir + "/" + name
}
