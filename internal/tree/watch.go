package tree

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"lifeboat/internal/catalog"
)

const (
	// maxWatched bounds the directories of a tree that are watched; kernel and
	// this process keep about 1 KiB for each.
	maxWatched = 64 << 10
	// maxTouched bounds the names that are remembered. A tree in which more was
	// touched is looked at as a whole.
	maxTouched = 64 << 10
)

// watchMask: everything that changes what a catalog says. Stores through a map
// make no event; what is open for writing or mapped at the freeze is looked at
// for that reason (OpenFile), and what was closed before makes CLOSE_WRITE.
const watchMask = unix.IN_MODIFY | unix.IN_ATTRIB | unix.IN_CLOSE_WRITE | unix.IN_CREATE | unix.IN_DELETE |
	unix.IN_MOVED_FROM | unix.IN_MOVED_TO | unix.IN_DELETE_SELF | unix.IN_MOVE_SELF | unix.IN_ONLYDIR

// touch is what is known of a name that events spoke of.
type touch uint8

const (
	touchEntry touch = 1 << iota // look at the entry
	touchBelow                   // and at everything below it: it was made or moved here
)

// watch notices which names of a tree were touched since its directories were
// read, through inotify. It only ever says where to look: whoever looks compares
// what is there. Whatever may have escaped it makes it useless for this run, with
// the reason in lost. Safe for concurrent use.
//
// An overlay is watched twice: its upper directory, where names and attributes
// change, and the merged mount, because before Linux 6.8 the files of the upper
// directory are written to without events of their own.
type watch struct {
	f      *os.File // in the runtime's poller
	fd     int
	merged string // root of the merged mount, "": none
	// covered are paths over which the container has something else mounted, which
	// may be a server that does not answer.
	covered []string

	// gate: who adds a watch holds it shared until dirs says what it is, who takes
	// events holds it alone.
	gate    sync.RWMutex
	mu      sync.Mutex
	dirs    map[int32]string
	touched map[string]touch
	lost    string
	done    chan struct{}
}

// newWatch begins a watch. merged is the root of an overlay's merged mount, ""
// for other trees; covered are paths of it that something else is mounted on.
func newWatch(merged string, covered []string) (*watch, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("inotify: %w", err)
	}
	w := &watch{
		f: os.NewFile(uintptr(fd), "inotify"), fd: fd, merged: merged, covered: covered,
		dirs: map[int32]string{}, touched: map[string]touch{}, done: make(chan struct{}),
	}
	go w.read()
	return w, nil
}

// lose gives the watch up; the first reason stays.
func (w *watch) lose(reason string) {
	if w.lost == "" {
		w.lost = reason
	}
	clear(w.touched)
}

// giveUp is lose for callers without the lock.
func (w *watch) giveUp(reason string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.lose(reason)
}

// broken returns why the watch cannot be relied upon, "" if it can.
func (w *watch) broken() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.lost
}

// directory begins to watch the open directory fd, which is path of the tree.
// Called before its names are read. seen is what statx said of it earlier: a
// change since then had no event. Several may be added at the same time.
func (w *watch) directory(path string, fd int, seen *Stat) {
	w.gate.RLock()
	defer w.gate.RUnlock()
	if w.broken() != "" {
		return
	}
	// The magic link leads to that very inode.
	wd, err := w.add("/proc/self/fd/"+strconv.Itoa(fd), watchMask)
	merged := int32(-1)
	if err == nil && w.merged != "" && !w.isCovered(path) {
		// Another directory than meant, should a part of the path become a link just
		// now, is harmless: the watch on its parent tells.
		merged, err = w.add(w.merged+"/"+path, watchMask|unix.IN_DONT_FOLLOW)
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
			merged, err = -1, nil // removed just now, of which the watch on its parent tells
		}
	}
	var now Stat
	changed := statFd(fd, &now) != nil || !now.Same(seen)
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case err != nil:
		w.lose(fmt.Sprintf("watch directory %q: %v", path, err))
		return
	case len(w.dirs) >= maxWatched:
		w.lose("more directories than are watched")
		return
	}
	w.dirs[wd] = path
	if merged >= 0 {
		w.dirs[merged] = path
	}
	if changed {
		w.touch(path, touchEntry)
	}
}

// isCovered reports whether the container has something else at path: nothing can
// be written to the directory below it.
func (w *watch) isCovered(path string) bool {
	return slices.ContainsFunc(w.covered, func(c string) bool { return path == c || catalog.Under(path, c) })
}

func (w *watch) add(name string, mask uint32) (int32, error) {
	wd, err := retry(func() (int, error) { return unix.InotifyAddWatch(w.fd, name, mask) })
	return int32(wd), err
}

// note says that an entry has to be looked at, whatever events say.
func (w *watch) note(path string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.touch(path, touchEntry)
}

func (w *watch) touch(path string, how touch) {
	if w.lost != "" {
		return
	}
	old, known := w.touched[path]
	if !known && len(w.touched) >= maxTouched {
		w.lose("more was touched than is remembered")
		return
	}
	if old|how != old || !known {
		w.touched[strings.Clone(path)] = old | how
	}
}

// read takes events off the kernel's queue, which is bounded, until stop.
func (w *watch) read() {
	defer close(w.done)
	buf := make([]byte, 64<<10)
	for {
		n, err := w.f.Read(buf)
		if err != nil {
			if !errors.Is(err, os.ErrDeadlineExceeded) && !errors.Is(err, os.ErrClosed) {
				w.mu.Lock()
				w.lose("inotify: " + err.Error())
				w.mu.Unlock()
			}
			return
		}
		w.gate.Lock()
		w.mu.Lock()
		w.events(buf[:n])
		w.mu.Unlock()
		w.gate.Unlock()
	}
}

// stop ends reading after what is in the queue now, and returns what was
// touched, or false when something may have escaped.
func (w *watch) stop() (map[string]touch, bool) {
	if err := w.f.SetReadDeadline(time.Unix(1, 0)); err != nil {
		w.mu.Lock()
		w.lose("inotify: " + err.Error())
		w.mu.Unlock()
		_ = w.f.Close()
	}
	<-w.done
	w.mu.Lock()
	defer w.mu.Unlock()
	buf := make([]byte, 64<<10)
	for w.lost == "" {
		n, err := unix.Read(w.fd, buf)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if errors.Is(err, unix.EAGAIN) {
			break
		}
		if err != nil || n <= 0 {
			w.lose("inotify: the queue cannot be read")
			break
		}
		w.events(buf[:n])
	}
	return w.touched, w.lost == ""
}

// events takes what the kernel wrote: struct inotify_event, one after the other.
func (w *watch) events(b []byte) {
	for len(b) >= unix.SizeofInotifyEvent {
		wd := int32(binary.NativeEndian.Uint32(b))
		mask := binary.NativeEndian.Uint32(b[4:])
		length := int(binary.NativeEndian.Uint32(b[12:]))
		b = b[unix.SizeofInotifyEvent:]
		if length > len(b) {
			w.lose("inotify: an event is cut off")
			return
		}
		name := b[:length]
		b = b[length:]
		if i := bytes.IndexByte(name, 0); i >= 0 {
			name = name[:i]
		}
		w.event(wd, mask, name)
	}
}

func (w *watch) event(wd int32, mask uint32, name []byte) {
	if mask&(unix.IN_Q_OVERFLOW|unix.IN_UNMOUNT) != 0 {
		w.lose("more events than the kernel keeps (fs.inotify.max_queued_events), or an unmount")
		return
	}
	dir, ok := w.dirs[wd]
	if mask&unix.IN_IGNORED != 0 {
		delete(w.dirs, wd)
		return
	}
	if !ok || w.lost != "" {
		return
	}
	if len(name) == 0 {
		if dir == "" && mask&(unix.IN_DELETE_SELF|unix.IN_MOVE_SELF) != 0 {
			w.lose("the root of the tree was moved or removed")
			return
		}
		w.touch(dir, touchEntry)
		return
	}
	how := touchEntry
	if mask&unix.IN_ISDIR != 0 && mask&(unix.IN_CREATE|unix.IN_MOVED_TO) != 0 {
		how |= touchBelow
	}
	w.touch(join(dir, string(name)), how)
	if mask&(unix.IN_CREATE|unix.IN_DELETE|unix.IN_MOVED_FROM|unix.IN_MOVED_TO) != 0 {
		w.touch(dir, touchEntry) // its times moved
	}
}

func (w *watch) close() error {
	_ = w.f.SetReadDeadline(time.Unix(1, 0))
	err := w.f.Close()
	<-w.done
	return err
}
