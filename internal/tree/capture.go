package tree

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/zeebo/blake3"
	"golang.org/x/sys/unix"

	"lifeboat/internal/catalog"
	"lifeboat/internal/cut"
	"lifeboat/internal/dr"
)

// Sink takes the units of a capture. repo.Writer is one.
type Sink interface {
	// Put stores a unit; data is copied. Called concurrently. It may wait.
	Put(ctx context.Context, data []byte) (dr.UnitRef, error)
	// HaveAll reports whether all units are stored and may be referenced
	// without being put again. Every unit of a catalog was put or asked for here.
	HaveAll(refs []dr.UnitRef) bool
}

// CaptureOptions say what is captured and where to.
type CaptureOptions struct {
	// Root is the directory or single file on this host.
	Root string
	// Key names the tree for good ("volume:shop_db"); with the repository it
	// names the statcache.
	Key string
	// Overlay: Root is the upper directory of an overlay.
	Overlay bool
	// CrossMounts also takes what is mounted below Root.
	CrossMounts bool
	// Merged is the root of the overlay as its container sees it, while that runs.
	// Needed with Overlay for a watch that sees all: without it everything is
	// looked at when frozen if the container writes meanwhile.
	Merged string
	// Covered are paths relative to Root over which the container has something
	// else mounted; nothing is looked for there in Merged.
	Covered []string
	// NoWatch looks at every entry while frozen.
	NoWatch bool
	// Exclude lists paths relative to Root that are left out with all below.
	Exclude []string
	// StateDir is a directory of this program's own, mode 0700: statcaches and
	// unnamed temporary files go there.
	StateDir string

	CutKey [32]byte                    // of the repository
	UnitID func(data []byte) dr.UnitID // keyed hash of the repository
	Sink   Sink
	// Budget is shared by the trees of a system; nil makes one.
	Budget *Budget
	// TrustedFS are the file systems (statfs types) whose timestamps move with
	// every change, stores through shared maps included; nil is
	// DefaultTrustedFS. On all others every file is read every time.
	TrustedFS []int64
	// Workers read files at the same time; 0 chooses.
	Workers int
	// Progress is told of bytes of file content that were dealt with, read or
	// found unchanged; it may be nil. Called concurrently, never from Secure.
	Progress func(n int64)
	// Now is the clock of the file system's timestamps; nil is time.Now.
	Now func() time.Time
}

// DefaultTrustedFS is ext4 (and ext2, ext3), XFS and btrfs.
func DefaultTrustedFS() []int64 {
	return []int64{unix.EXT4_SUPER_MAGIC, unix.XFS_SUPER_MAGIC, unix.BTRFS_SUPER_MAGIC}
}

// CaptureStats counts what a capture did so far.
type CaptureStats struct {
	Entries      int64 // of the last pass
	BytesScanned int64 // sizes of the regular files seen in Precopy
	BytesRead    int64 // read from files, in any pass
	BytesSecured int64 // taken hold of in Secure, reflinks by their size
	FilesRead    int64 // read in Precopy
	FilesSecured int64
	// Looked is how many entries Secure looked at: all, or those that the watch
	// spoke of and those that processes hold.
	Looked int64
	// BytesSpooled is the part of BytesSecured that went to the spool file.
	BytesSpooled int64
}

// Report is what a capture could not take as it is.
type Report struct {
	// Skipped are mount points below the root.
	Skipped []Skip
	// LostXattrs counts attributes by name that were left out because they
	// belong to this host, container or file system.
	LostXattrs map[string]int64
	// Unstable are files that changed while Secure read them, because something
	// outside the frozen system writes there. Their content may mix two states.
	Unstable []string
	// Missed are changes that the watch did not speak of and a full pass found.
	// The tree is not watched any more then.
	Missed []string
}

// Capture takes one tree in passes: Precopy while everything runs, Secure
// while it is frozen (or stopped), Finish after the thaw, CommitCache once the
// snapshot is committed. The methods are called one after the other by one
// goroutine; different captures are independent.
//
// A change is never missed (invariant 4): a file counts as unchanged only if
// its statx is the same as one taken before its pages were written back, which
// was before they were read, and if that statx was at least two seconds older
// than its timestamps. docs/adr/0004 has the reasons.
type Capture struct {
	o        CaptureOptions
	root     *Root
	cutter   *cut.Cutter
	meta     catalog.Sink // where pages and content lists go
	identity [32]byte
	trustFS  bool
	local    bool // for a local catalog, not for a snapshot

	state  string    // path of the statcache
	pass1  *os.File  // records of Precopy
	next   *os.File  // the new statcache, until CommitCache
	kept   bool      // the old one stays
	result int64     // of the statcache, if nothing has changed since; 0: something has
	frames []frameAt // of pass1
	pass1n uint64    // records of pass1
	halved bool      // pass1 lacks records: Precopy failed

	watch     *watch // nil: every entry is looked at in Secure
	care      care
	mergedDev uint64
	touched   map[string]touch
	inodes    map[uint64]*heldFile
	names     map[string]bool // held files of the merged mount, true: mapped

	sec    *securing
	groups map[DevIno]uint32   // names per hard-linked file in the last walk
	marks  map[string]struct{} // of restores that are not at their end (marks.go)
	clock  func() time.Time

	mu     sync.Mutex
	report Report

	entries, scanned, read, secured, spooled atomic.Int64
	filesRead, filesSecured, looked          atomic.Int64
}

// DevIno names an inode by the numbers of its device and its own.
type DevIno struct{ Dev, Ino uint64 }

// NewCapture opens the tree. It reads nothing yet. Close it in any case.
func NewCapture(o CaptureOptions) (*Capture, error) {
	root, err := OpenRoot(o.Root, RootOptions{CrossMounts: o.CrossMounts})
	if err != nil {
		return nil, err
	}
	if o.Budget == nil {
		o.Budget = NewBudget(0)
	}
	if o.TrustedFS == nil {
		o.TrustedFS = DefaultTrustedFS()
	}
	if o.Workers <= 0 {
		o.Workers = min(8, max(2, runtime.GOMAXPROCS(0)))
	}
	if o.Progress == nil {
		o.Progress = func(int64) {}
	}
	c := &Capture{
		o: o, root: root, cutter: cut.New(o.CutKey), meta: o.Sink,
		trustFS: slices.Contains(o.TrustedFS, root.fsMagic), clock: o.Now,
		inodes: map[uint64]*heldFile{}, names: map[string]bool{}, report: Report{LostXattrs: map[string]int64{}},
	}
	if c.clock == nil {
		c.clock = time.Now
	}
	if o.Merged != "" {
		var st Stat
		// A container that has ended meanwhile: whoever froze it notices.
		c.o.NoWatch = c.o.NoWatch || follow(o.Merged, &st) != nil
		c.mergedDev = st.Dev
	}
	c.identity, c.state = cacheName(o.StateDir, o.Key, o.Overlay, o.UnitID)
	o.Budget.hold()
	return c, nil
}

// cacheName is where the statcache of a tree lies and what it must say of
// itself: another repository's, or that of another reading of the same
// directory, is not believed.
func cacheName(dir, key string, overlay bool, unitID func([]byte) dr.UnitID) (identity [32]byte, path string) {
	identity = unitID(fmt.Appendf(nil, "lifeboat v1 statcache\x00%t\x00%s", overlay, key))
	sum := blake3.Sum256([]byte(key))
	return identity, filepath.Join(dir, "tree-"+hex.EncodeToString(sum[:12])+".stat")
}

// Stats returns what was done so far. Safe at any time.
func (c *Capture) Stats() CaptureStats {
	return CaptureStats{
		Entries: c.entries.Load(), BytesScanned: c.scanned.Load(), BytesRead: c.read.Load(),
		BytesSecured: c.secured.Load(), BytesSpooled: c.spooled.Load(),
		FilesRead: c.filesRead.Load(), FilesSecured: c.filesSecured.Load(), Looked: c.looked.Load(),
	}
}

// Key is CaptureOptions.Key.
func (c *Capture) Key() string { return c.o.Key }

// Report returns what could not be taken as it is, once Finish is done.
func (c *Capture) Report() Report {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.report
}

// Close releases everything. A statcache that was not committed is dropped.
func (c *Capture) Close() error {
	if c.root == nil {
		return nil
	}
	errs := []error{c.root.Close()}
	c.root = nil
	if c.watch != nil {
		errs = append(errs, c.watch.close())
		c.watch = nil
	}
	if c.pass1 != nil {
		errs = append(errs, c.pass1.Close())
		c.pass1 = nil
	}
	if c.sec != nil {
		errs = append(errs, c.sec.close())
		c.sec = nil
	}
	if c.next != nil {
		errs = append(errs, c.next.Close(), os.Remove(c.next.Name()))
		c.next = nil
	}
	c.o.Budget.release()
	return errors.Join(errs...)
}

// CommitCache makes what Finish learned the statcache of the tree. Called when
// the snapshot is committed: before, its units may never become readable.
// The cache is only ever a matter of speed; an error loses no data.
func (c *Capture) CommitCache() error {
	if c.next == nil {
		if c.kept {
			return nil
		}
		return fmt.Errorf("statcache of %s: nothing to commit", c.o.Key)
	}
	f := c.next
	c.next = nil
	return commitFile(f, c.state)
}

// commitFile makes a temporary file durable under its final name and closes it.
func commitFile(f *os.File, path string) error {
	err := errors.Join(f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("write statcache: %w", err), os.Remove(f.Name()))
	}
	if err := syncDir(filepath.Dir(path)); err != nil {
		return fmt.Errorf("write statcache: %w", err)
	}
	return nil
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// tempFile is an unnamed file in the state directory.
func tempFile(dir string) (*os.File, error) {
	f, err := os.CreateTemp(dir, "lifeboat-*.tmp")
	if err != nil {
		return nil, fmt.Errorf("temporary file: %w", err)
	}
	if err := os.Remove(f.Name()); err != nil {
		return nil, errors.Join(fmt.Errorf("temporary file: %w", err), f.Close())
	}
	return f, nil
}

// trusted reports whether a statx taken at now or later says all about
// changes that come after it.
func (c *Capture) trusted(st *Stat, now time.Time) bool {
	return c.trustFS && st.Dev == c.root.stat.Dev && !st.young(now)
}

// whiteoutStat reports whether st is a deletion in an upper directory.
func (c *Capture) whiteoutStat(st *Stat) bool {
	return c.o.Overlay && st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0
}

// linked reports whether st may be one of several names of a file.
func (c *Capture) linked(st *Stat) bool {
	return st.Nlink > 1 && !st.IsDir() && !c.whiteoutStat(st)
}

// laterLink counts the names of a hard-linked file and reports whether st is
// not the first.
func (c *Capture) laterLink(st *Stat) bool {
	if !c.linked(st) {
		return false
	}
	id := DevIno{st.Dev, st.Ino}
	c.groups[id]++
	return c.groups[id] > 1
}

// lose counts attributes that are left out.
func (c *Capture) lose(names []string) {
	if len(names) == 0 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, n := range names {
		c.report.LostXattrs[n]++
	}
}
