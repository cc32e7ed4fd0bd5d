package apply

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"

	"lifeboat/internal/catalog"
	"lifeboat/internal/dr"

	"golang.org/x/sys/unix"
)

// Bounds of one window: what is fetched and held open at once.
const (
	windowBytes = 32 << 20
	windowRefs  = 8192
	windowFiles = 256
)

// window gathers pieces of files until it is worth fetching them together.
type window struct {
	a     *applier
	refs  []dr.UnitRef
	dests []dest
	bytes int64
	files []*openFile
}

type dest struct {
	file   *openFile
	offset int64
}

// openFile is a file that is being written.
type openFile struct {
	fd   int
	want catalog.Entry
	cur  []catalog.Xattr
	// complete: all its pieces are in the window, nothing follows.
	complete bool
}

func (w *window) add(ctx context.Context, f *openFile, offset int64, ref catalog.Ref) error {
	w.refs = append(w.refs, ref.Unit())
	w.dests = append(w.dests, dest{file: f, offset: offset})
	w.bytes += ref.Len
	if w.bytes >= windowBytes || len(w.refs) >= windowRefs {
		return w.flush(ctx)
	}
	return nil
}

// flush fetches and writes what was gathered, and finishes complete files.
func (w *window) flush(ctx context.Context) error {
	var fetched atomic.Int64
	if len(w.refs) > 0 {
		err := w.a.o.Source.Fetch(ctx, w.refs, func(i int, data []byte) error {
			d := w.dests[i]
			if err := pwrite(d.file.fd, data, d.offset); err != nil {
				return fmt.Errorf("write %q: %w", d.file.want.Path, err)
			}
			fetched.Add(int64(len(data)))
			w.a.o.Progress(int64(len(data)))
			return nil
		})
		if err != nil {
			return err
		}
	}
	w.a.stats.BytesFetched += fetched.Load()
	w.a.stats.BytesWritten += fetched.Load()
	w.refs, w.dests, w.bytes = w.refs[:0], w.dests[:0], 0
	var open []*openFile
	for i, f := range w.files {
		if !f.complete {
			open = append(open, f)
			continue
		}
		if err := w.a.finishFile(f); err != nil {
			w.files = append(open, w.files[i+1:]...)
			return err
		}
	}
	w.files = open
	return nil
}

// abandon closes what is open after an error.
func (w *window) abandon() {
	for _, f := range w.files {
		unix.Close(f.fd)
	}
	w.files = nil
}

func pwrite(fd int, data []byte, offset int64) error {
	for len(data) > 0 {
		n, err := unix.Pwrite(fd, data, offset)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		data, offset = data[n:], offset+int64(n)
	}
	return nil
}

// file creates a file or changes the pieces that differ in place.
func (a *applier) file(ctx context.Context, cur, want *catalog.Entry) error {
	same := cur != nil && catalog.SameContent(cur, want)
	if same && catalog.SameMetadata(cur, want) {
		a.o.Progress(want.Size)
		return nil
	}
	dirfd, name, err := a.at(want.Path)
	if err != nil {
		return err
	}
	if same {
		a.stats.Changed++
		a.o.Progress(want.Size)
		return a.metadata(dirfd, name, want, cur.Xattrs)
	}
	flags := unix.O_WRONLY | unix.O_NOFOLLOW | unix.O_CLOEXEC | unix.O_NONBLOCK
	if cur == nil {
		a.stats.Created++
		flags |= unix.O_CREAT | unix.O_EXCL
		if want.LinkGroup {
			a.remade[want.Path] = true
		}
	} else {
		a.stats.Changed++
		if err := writable(dirfd, name); err != nil {
			return fmt.Errorf("open %q: %w", want.Path, err)
		}
	}
	fd, err := unix.Openat(dirfd, name, flags, 0o600)
	if err != nil {
		return fmt.Errorf("open %q: %w", want.Path, err)
	}
	f := &openFile{fd: fd, want: want.Clone(), cur: xattrsOf(cur)}
	a.win.files = append(a.win.files, f)
	if err := unix.Ftruncate(fd, want.Size); err != nil {
		return fmt.Errorf("set the size of %q: %w", want.Path, err)
	}
	if err := a.pieces(ctx, f, cur, want); err != nil {
		return err
	}
	f.complete = true
	if len(a.win.files) >= windowFiles {
		return a.win.flush(ctx)
	}
	return nil
}

// writable refuses what is not a regular file: a catalog that is wrong about it
// must not make us write into a device.
func writable(dirfd int, name string) error {
	var st unix.Stat_t
	if err := unix.Fstatat(dirfd, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return errors.New("is not a regular file any more")
	}
	return nil
}

// pieces queues the stretches of want that cur does not have at their place.
func (a *applier) pieces(ctx context.Context, f *openFile, cur, want *catalog.Entry) error {
	old, stop := a.stretches(ctx, cur)
	defer stop()
	return a.o.Target.Clone().Content(ctx, want, func(offset int64, ref catalog.Ref) error {
		had, err := old.at(offset)
		if err != nil {
			return err
		}
		if had.Len == ref.Len && had.Hole == ref.Hole && (ref.Hole || had.ID == ref.ID) {
			a.o.Progress(ref.Len)
			return nil
		}
		if ref.Hole {
			a.o.Progress(ref.Len)
			if cur == nil {
				return nil // a new file is all hole
			}
			return punch(f.fd, offset, ref.Len)
		}
		return a.win.add(ctx, f, offset, ref)
	})
}

// punch makes a stretch read as zeros, without blocks where the file system can.
func punch(fd int, offset, n int64) error {
	err := unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, offset, n)
	if !errors.Is(err, unix.EOPNOTSUPP) {
		return err
	}
	zeros := make([]byte, min(n, 1<<20))
	for n > 0 {
		part := zeros[:min(n, int64(len(zeros)))]
		if err := pwrite(fd, part, offset); err != nil {
			return err
		}
		offset, n = offset+int64(len(part)), n-int64(len(part))
	}
	return nil
}

// finishFile sets what writing has changed or not set yet, and closes.
func (a *applier) finishFile(f *openFile) error {
	err := a.fileMetadata(f)
	if cerr := unix.Close(f.fd); err == nil && cerr != nil {
		err = fmt.Errorf("close %q: %w", f.want.Path, cerr)
	}
	return err
}

// stretch is one piece of a file's present content.
type stretch struct {
	offset int64
	catalog.Ref
}

// stretches walks the content of an entry alongside another one, so that long
// lists need not be in memory.
type stretches struct {
	ch   chan stretch
	errc chan error
	head stretch
	ok   bool
	done bool
}

func (a *applier) stretches(ctx context.Context, e *catalog.Entry) (*stretches, func()) {
	s := &stretches{done: true}
	if e == nil {
		return s, func() {}
	}
	s = &stretches{ch: make(chan stretch, 256), errc: make(chan error, 1)}
	ctx, cancel := context.WithCancel(ctx)
	c, clone := e.Clone(), a.o.Current.Clone()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		defer close(s.ch)
		s.errc <- clone.Content(ctx, &c, func(offset int64, ref catalog.Ref) error {
			select {
			case s.ch <- stretch{offset: offset, Ref: ref}:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
	}()
	return s, func() { cancel(); <-ended }
}

// at returns the stretch that begins at offset, a zero one if there is none.
// Offsets must not go down from call to call.
func (s *stretches) at(offset int64) (catalog.Ref, error) {
	for !s.done {
		if !s.ok {
			var open bool
			if s.head, open = <-s.ch; !open {
				s.done = true
				if err := <-s.errc; err != nil && !errors.Is(err, io.EOF) {
					return catalog.Ref{}, err
				}
				break
			}
			s.ok = true
		}
		if s.head.offset > offset {
			break
		}
		s.ok = false
		if s.head.offset == offset {
			return s.head.Ref, nil
		}
	}
	return catalog.Ref{}, nil
}
