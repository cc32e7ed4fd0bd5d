package tree

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"lifeboat/internal/catalog"
)

// fullEvery is how often Secure looks at every entry all the same, and compares
// what it finds with what the watch said. Between, Precopy finds what a capture
// before it has missed (precopier.late).
const fullEvery = 7 * 24 * time.Hour

// maxMissed bounds Report.Missed.
const maxMissed = 100

// errFull: the candidates cannot be dealt with one by one.
var errFull = errors.New("the whole tree has to be looked at")

// candidate is a name at which something may have changed since Precopy.
type candidate struct {
	path  string
	below bool // it was made or moved here, with everything below it
}

// heldFile is a file that processes hold.
type heldFile struct {
	held, mapped bool
	known        bool     // paths were looked for
	paths        []string // of Precopy's records
}

// AddOpen names the files that processes of the system hold now (OpenFiles).
// Secure looks at all of them, and takes those that are mapped whatever their
// timestamps say. Called before the freeze, so that they are found among the
// entries then, and again in it, right before Secure.
func (c *Capture) AddOpen(files []OpenFile) error {
	clear(c.names)
	for _, h := range c.inodes {
		h.held, h.mapped = false, false
	}
	for _, f := range files {
		if c.mergedDev != 0 && f.RootDev == c.mergedDev && strings.HasPrefix(f.Path, "/") {
			// In an overlay inode numbers need not be those of the upper directory, so
			// names decide; one that is not in it does no harm.
			name := strings.TrimPrefix(f.Path, "/")
			c.names[name] = c.names[name] || f.Mapped
		}
		if !f.Mapped && f.Dev != c.root.stat.Dev {
			continue
		}
		// The device in maps is that of the mount, not of statx, on overlay and
		// btrfs: one too many costs a copy, one too few a change.
		h := c.inodes[f.Ino]
		if h == nil {
			h = &heldFile{}
			c.inodes[f.Ino] = h
		}
		h.held, h.mapped = true, h.mapped || f.Mapped
	}
	if c.watch == nil || c.watch.broken() != "" {
		return nil // all entries will be looked at
	}
	return c.findInodes()
}

// findInodes finds the names that Precopy saw of the files that processes hold.
func (c *Capture) findInodes() error {
	unknown := false
	for _, h := range c.inodes {
		unknown = unknown || !h.known
	}
	if !unknown || c.pass1 == nil {
		return nil
	}
	r, err := openRecords(c.pass1, c.identity)
	if err != nil {
		return fmt.Errorf("temporary file: %w", err)
	}
	written := int64(0)
	for {
		rec, err := r.next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("temporary file: %w", err)
		}
		if !rec.stat.IsRegular() {
			continue
		}
		if h := c.inodes[rec.stat.Ino]; h != nil && !h.known {
			h.paths = append(h.paths, string(rec.path))
			if c.clock().Unix()-rec.stat.MtimeSec < hotSeconds {
				written += rec.stat.Size
			}
		}
	}
	for _, h := range c.inodes {
		h.known = true
	}
	// What is held and was written to a while ago will have to be secured.
	return c.o.Budget.Prepare(written)
}

// mappedNow reports whether a process has the file mapped shared and writable.
func (c *Capture) mappedNow(path []byte, ino uint64) bool {
	if h := c.inodes[ino]; h != nil && h.held && h.mapped {
		return true
	}
	return c.names[string(path)]
}

// candidates returns what has to be looked at, in catalog order, or ok false
// when that cannot be told.
func (c *Capture) candidates() (list []candidate, ok bool) {
	if c.watch == nil || c.pass1 == nil {
		return nil, false
	}
	touched, ok := c.watch.stop()
	c.touched = touched
	if !ok {
		return nil, false
	}
	for path, how := range touched {
		list = append(list, candidate{path, how&touchBelow != 0})
	}
	for _, h := range c.inodes {
		if !h.held {
			continue
		}
		for _, p := range h.paths {
			list = append(list, candidate{path: p})
		}
	}
	for p := range c.names {
		list = append(list, candidate{path: p})
	}
	slices.SortFunc(list, func(a, b candidate) int {
		if n := catalog.ComparePaths(a.path, b.path); n != 0 {
			return n
		}
		switch {
		case a.below == b.below:
			return 0
		case a.below:
			return -1
		}
		return 1
	})
	out := list[:0]
	for _, k := range list {
		if n := len(out); n > 0 && (out[n-1].path == k.path || out[n-1].below && catalog.Under(k.path, out[n-1].path)) {
			continue
		}
		if slices.ContainsFunc(c.o.Exclude, func(x string) bool { return k.path == x || catalog.Under(k.path, x) }) {
			continue
		}
		out = append(out, k)
	}
	return out, true
}

// partial is Secure over candidates only: all other records of Precopy hold.
// errFull when an entry among them speaks for others too (hard links), or what
// is mounted below the root has changed; nothing was taken hold of then.
func (s *securing) partial(ctx context.Context, list []candidate) error {
	c := s.c
	s.fast = true
	dirs := newDirCache(c.root)
	defer dirs.close()
	for _, k := range list {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := s.passTo([]byte(k.path), stepCopy); err != nil {
			return err
		}
		if err := s.candidate(ctx, dirs, k); err != nil {
			return err
		}
	}
	for _, skip := range c.report.Skipped {
		var st Stat
		dir, name, err := dirs.parent(skip.Path)
		if err == nil {
			err = statAt(dir, name, &st)
		}
		if err != nil || !st.mountRoot && !c.root.foreign(&st) {
			return errFull
		}
	}
	rest := int(c.pass1n - s.taken())
	s.head, s.before = nil, nil
	s.stepN(stepCopy, rest)
	return nil
}

// candidate deals with one name; the records before it are accounted for.
func (s *securing) candidate(ctx context.Context, dirs *dirCache, k candidate) error {
	c := s.c
	var st Stat
	dir, name, err := dirs.parent(k.path)
	if err == nil {
		err = statAt(dir, name, &st)
	}
	if k.path == "" && err == nil {
		err = c.root.statRoot(&st)
	}
	if err != nil || k.below || !st.IsDir() {
		c.forgetMarks(k.path)
	}
	switch {
	case err != nil && gone(err):
		return s.dropUnder(k.path)
	case err != nil:
		return fmt.Errorf("look at %s: %w", c.root.display(k.path), err)
	case k.path != "" && (st.mountRoot || c.root.foreign(&st)):
		return errFull
	}
	wasDir, err := s.recorded(k.path)
	if err != nil {
		return err
	}
	if st.IsDir() && (k.below || !wasDir) {
		if k.path == "" {
			return errFull
		}
		skipped, err := Walk(ctx, c.root, WalkOptions{Exclude: c.o.Exclude, From: k.path}, s.visit)
		if err != nil {
			return err
		}
		if len(skipped) > 0 {
			return errFull
		}
		return s.dropUnder(k.path)
	}
	if err := s.visit(&Visit{Path: []byte(k.path), Stat: &st}); err != nil || st.IsDir() {
		return err
	}
	return s.dropUnder(k.path)
}

// recorded reports whether Precopy saw a directory at path, which is where the
// records have been passed to.
func (s *securing) recorded(path string) (dir bool, err error) {
	if err := s.load(); err != nil || s.head == nil {
		return false, err
	}
	return string(s.head.path) == path && s.head.stat.IsDir(), nil
}

// dropUnder lets go of what Precopy recorded at path and below it.
func (s *securing) dropUnder(path string) error {
	for {
		if err := s.load(); err != nil || s.head == nil {
			return err
		}
		if p := string(s.head.path); p != path && !catalog.Under(p, path) {
			return nil
		}
		if s.c.linked(&s.head.stat) {
			return errFull // its other names may be the first now
		}
		s.head = nil
		s.step(stepDrop, nil)
	}
}

// load makes head the next record that is not accounted for, nil at the end.
func (s *securing) load() error {
	if s.head != nil || s.before == nil {
		return nil
	}
	r, err := s.before.next()
	if errors.Is(err, io.EOF) {
		s.before = nil
		return nil
	}
	if err != nil {
		return fmt.Errorf("temporary file: %w", err)
	}
	s.head = r
	return nil
}

// taken is how many records are accounted for.
func (s *securing) taken() uint64 {
	switch {
	case s.before == nil:
		return s.c.pass1n
	case s.head != nil:
		return s.before.n - 1
	}
	return s.before.n
}

// passTo accounts for the records before path with steps of a kind. Frames
// without anything of interest are not even read.
func (s *securing) passTo(path []byte, kind stepKind) error {
	if s.before == nil {
		return nil
	}
	frames := s.c.frames
	i, _ := slices.BinarySearchFunc(frames, path, func(f frameAt, p []byte) int { return comparePaths(f.first, p) })
	if i > 0 && frames[i-1].before > s.before.n {
		s.stepN(kind, int(frames[i-1].before-s.taken()))
		s.head = nil
		s.before.jump(frames[i-1])
	}
	for {
		if err := s.load(); err != nil || s.head == nil || comparePaths(s.head.path, path) >= 0 {
			return err
		}
		s.head = nil
		s.step(kind, nil)
	}
}

// missed compares an entry that a full pass found changed with what the watch
// said: one that it did not speak of means that it cannot be relied upon here.
func (s *securing) missed(path []byte, old *record, st *Stat) bool {
	if !s.check || s.c.linked(st) || s.c.mappedNow(path, st.Ino) {
		return false
	}
	if old != nil && (s.c.linked(&old.stat) || !old.has(recUsable) || !old.has(recTrusted) || !differs(&old.stat, st)) {
		return false
	}
	if h := s.c.inodes[st.Ino]; h != nil && h.held {
		return false
	}
	p := string(path)
	if _, ok := s.c.names[p]; ok {
		return false
	}
	if s.c.touched[p] != 0 {
		return false
	}
	for p != "" {
		p = catalog.Parent(p)
		if s.c.touched[p]&touchBelow != 0 {
			return false
		}
	}
	return true
}

// differs reports whether what a catalog says has moved. Other things move
// without an event (the time of a change when a name is linked elsewhere).
func differs(a, b *Stat) bool {
	return a.Ino != b.Ino || a.Size != b.Size || a.MtimeSec != b.MtimeSec || a.MtimeNsec != b.MtimeNsec ||
		a.Mode != b.Mode || a.UID != b.UID || a.GID != b.GID || a.Rdev != b.Rdev
}

// late reports whether an entry had changed before the last capture ended its
// look, which passed it over all the same.
func (p *precopier) late(old *record, st *Stat) bool {
	c := p.c
	return c.care.partial > 0 && old.has(recUsable) && old.has(recTrusted) && !old.has(recLink) &&
		!c.linked(st) && !c.linked(&old.stat) && differs(&old.stat, st) && st.CtimeSec < c.care.partial-int64(settle/time.Second)
}

// distrust ends the watch on this tree for good.
func (c *Capture) distrust(path string) {
	if len(c.report.Missed) < maxMissed {
		c.report.Missed = append(c.report.Missed, path)
	}
	c.care.distrust = true
	if c.watch != nil {
		c.watch.giveUp("a change was missed")
	}
}

// beginWatch starts to watch the tree, where that can tell anything.
func (c *Capture) beginWatch() {
	if !c.trustFS || c.root.Single() || c.o.NoWatch {
		return
	}
	c.care = care{full: c.clock().Unix()}
	if f, err := os.Open(c.state); err == nil {
		if r, err := openRecords(f, c.identity); err == nil {
			c.care = r.care
		}
		_ = f.Close()
	}
	if c.care.distrust {
		return
	}
	c.watch, _ = newWatch(c.o.Merged, c.o.Covered) // without one, everything is looked at
}

// fullDue reports whether it is time to look at everything.
func (c *Capture) fullDue() bool {
	age := c.clock().Unix() - c.care.full
	return age < 0 || age > int64(fullEvery/time.Second)
}
