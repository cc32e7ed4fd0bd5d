package tree_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/zeebo/blake3"
	"golang.org/x/sys/unix"

	"lifeboat/internal/catalog"
	"lifeboat/internal/dr"
	"lifeboat/internal/tree"
	"lifeboat/lab/treecmp"
)

var cutKey = [32]byte{4, 2}

func unitID(data []byte) dr.UnitID {
	h, err := blake3.NewKeyed(bytes.Repeat([]byte{9}, 32))
	if err != nil {
		panic(err)
	}
	_, _ = h.Write(data)
	var id dr.UnitID
	h.Sum(id[:0])
	return id
}

// memory is a repository in memory.
type memory struct {
	mu      sync.Mutex
	units   map[dr.UnitID][]byte
	asked   map[dr.UnitID]bool // put or passed by HaveAll in this run
	fetched int64
	fail    func(n int) error // called with the number of puts so far
	puts    int
}

func newMemory() *memory {
	return &memory{units: map[dr.UnitID][]byte{}, asked: map[dr.UnitID]bool{}}
}

func (m *memory) Put(ctx context.Context, data []byte) (dr.UnitRef, error) {
	if len(data) == 0 || len(data) > dr.MaxUnit {
		return dr.UnitRef{}, fmt.Errorf("unit of %d bytes", len(data))
	}
	id := unitID(data)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.puts++
	if m.fail != nil {
		if err := m.fail(m.puts); err != nil {
			return dr.UnitRef{}, err
		}
	}
	if _, ok := m.units[id]; !ok {
		m.units[id] = bytes.Clone(data)
	}
	m.asked[id] = true
	return dr.UnitRef{ID: id, Len: uint32(len(data))}, ctx.Err()
}

func (m *memory) HaveAll(refs []dr.UnitRef) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, r := range refs {
		if _, ok := m.units[r.ID]; !ok {
			return false
		}
	}
	for _, r := range refs {
		m.asked[r.ID] = true
	}
	return true
}

func (m *memory) Unit(_ context.Context, ref dr.UnitRef) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	data, ok := m.units[ref.ID]
	if !ok || len(data) != int(ref.Len) {
		return nil, fmt.Errorf("unit %v: %w", ref.ID, dr.ErrNotFound)
	}
	return data, nil
}

func (m *memory) Fetch(ctx context.Context, refs []dr.UnitRef, fn func(int, []byte) error) error {
	var wg sync.WaitGroup
	errs := make([]error, 4)
	for w := range errs {
		wg.Go(func() {
			for i := w; i < len(refs) && errs[w] == nil; i += len(errs) {
				data, err := m.Unit(ctx, refs[i])
				if err == nil {
					m.mu.Lock()
					m.fetched += int64(len(data))
					m.mu.Unlock()
					scratch := bytes.Clone(data)
					err = fn(i, scratch)
					clear(scratch)
				}
				errs[w] = errors.Join(err, ctx.Err())
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// newRun forgets what was asked for: the next capture has to ask again.
func (m *memory) newRun() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.asked = map[dr.UnitID]bool{}
	m.fetched, m.puts = 0, 0
}

// later is a clock by which nothing on disk is young.
func later() time.Time { return time.Now().Add(time.Minute) }

// fixture is one tree with its repository and state directory.
type fixture struct {
	t     testing.TB
	root  string
	state string
	repo  *memory
	opts  func(*tree.CaptureOptions)
	sync  bool // Apply makes durable and records the statcache
}

func newFixture(t testing.TB) *fixture {
	t.Helper()
	f := &fixture{t: t, root: filepath.Join(t.TempDir(), "tree"), state: t.TempDir(), repo: newMemory()}
	if err := os.Mkdir(f.root, 0o755); err != nil {
		t.Fatal(err)
	}
	return f
}

func (f *fixture) options() tree.CaptureOptions {
	o := tree.CaptureOptions{
		Root: f.root, Key: "volume:test", StateDir: f.state,
		CutKey: cutKey, UnitID: unitID, Sink: f.repo, Now: later,
	}
	if f.opts != nil {
		f.opts(&o)
	}
	return o
}

// capture runs all passes; between is called before Secure.
func (f *fixture) capture(between func()) (dr.Tree, *tree.Capture) {
	f.t.Helper()
	f.repo.newRun()
	c, err := tree.NewCapture(f.options())
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() {
		if err := c.Close(); err != nil {
			f.t.Error(err)
		}
	})
	if err := c.Precopy(f.t.Context()); err != nil {
		f.t.Fatal(err)
	}
	f.held(c)
	if between != nil {
		between()
	}
	f.held(c)
	if err := c.Secure(f.t.Context()); err != nil {
		f.t.Fatal(err)
	}
	res, err := c.Finish(f.t.Context())
	if err != nil {
		f.t.Fatal(err)
	}
	if err := c.CommitCache(); err != nil {
		f.t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		f.t.Fatal(err)
	}
	f.clean()
	return res, c
}

// held tells the capture what this process holds, as for those of a system.
func (f *fixture) held(c *tree.Capture) {
	f.t.Helper()
	files, err := tree.OpenFiles([]int{os.Getpid()})
	if err != nil {
		f.t.Fatal(err)
	}
	if o := f.options(); o.Merged != "" {
		// As for a process whose root is the merged mount.
		var st unix.Stat_t
		if err := unix.Stat(o.Merged, &st); err != nil {
			f.t.Fatal(err)
		}
		for i := range files {
			if name, ok := strings.CutPrefix(files[i].Path, o.Merged); ok {
				files[i].Path, files[i].RootDev = name, st.Dev
			}
		}
	}
	if err := c.AddOpen(files); err != nil {
		f.t.Fatal(err)
	}
}

// clean fails when the state directory holds anything but statcaches.
func (f *fixture) clean() {
	f.t.Helper()
	names, err := filepath.Glob(filepath.Join(f.state, "*"))
	if err != nil {
		f.t.Fatal(err)
	}
	for _, n := range names {
		if filepath.Ext(n) != ".stat" {
			f.t.Errorf("left behind: %s", n)
		}
	}
}

func (f *fixture) open(res dr.Tree) *catalog.Reader {
	f.t.Helper()
	r, err := catalog.Open(f.t.Context(), f.repo, res.Catalog)
	if err != nil {
		f.t.Fatal(err)
	}
	return r
}

// check compares a captured tree with what the independent walker sees on disk.
func (f *fixture) check(res dr.Tree) {
	f.t.Helper()
	f.compare(f.root, res)
}

func (f *fixture) compare(root string, res dr.Tree) {
	f.t.Helper()
	want, err := treecmp.Fingerprint(root, treecmp.Options{OneMount: true})
	if err != nil {
		f.t.Fatal(err)
	}
	got := f.fingerprint(res)
	if diff := treecmp.Report(treecmp.Compare(want, got, treecmp.Rules{}), 20); diff != "" {
		f.t.Fatalf("captured tree differs:\n%s", diff)
	}
}

var treecmpTypes = map[catalog.Type]treecmp.Type{
	catalog.File: treecmp.File, catalog.Directory: treecmp.Dir, catalog.Symlink: treecmp.Symlink,
	catalog.CharDevice: treecmp.Char, catalog.BlockDevice: treecmp.Block, catalog.Fifo: treecmp.FIFO,
	catalog.Socket: treecmp.Socket, catalog.Whiteout: treecmp.Whiteout,
}

// fingerprint is what the independent walker would see of a captured tree.
func (f *fixture) fingerprint(res dr.Tree) treecmp.Tree {
	f.t.Helper()
	r := f.open(res)
	out := treecmp.Tree{}
	groups := map[string][]string{}
	name := func(path string) string {
		if path == "" {
			return "."
		}
		return path
	}
	n, size := int64(0), int64(0)
	for {
		e, err := r.Next(f.t.Context())
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			f.t.Fatal(err)
		}
		n++
		size += e.Size
		if e.Type == catalog.HardLink {
			groups[e.Target] = append(groups[e.Target], e.Path)
			continue
		}
		if e.LinkGroup {
			groups[e.Path] = append(groups[e.Path], e.Path)
		}
		if e.Type == catalog.Whiteout {
			out[name(e.Path)] = treecmp.Entry{Type: treecmp.Whiteout}
			continue
		}
		x := treecmp.Entry{
			Type: treecmpTypes[e.Type], Mode: e.Mode, UID: e.UID, GID: e.GID, MtimeSec: e.MtimeSec, MtimeNsec: e.MtimeNsec,
			Size: e.Size, Major: e.Major, Minor: e.Minor, Target: e.Target,
		}
		for _, a := range e.Xattrs {
			if x.Xattrs == nil {
				x.Xattrs = map[string]string{}
			}
			x.Xattrs[a.Name] = string(a.Value)
		}
		if e.Opaque {
			if x.Xattrs == nil {
				x.Xattrs = map[string]string{}
			}
			x.Xattrs["trusted.overlay.opaque"] = "y"
		}
		if e.Type == catalog.File {
			x.SHA256, x.Data = f.content(r, &e)
		}
		out[name(e.Path)] = x
	}
	for first, names := range groups {
		e, ok := out[name(first)]
		if !ok || !slices.Contains(names, first) || len(names) < 2 {
			f.t.Fatalf("hard link group of %q: %q", first, names)
		}
		e.LinkedTo = slices.Min(names)
		for _, n := range names {
			out[name(n)] = e
		}
	}
	if n != res.Entries || size != res.Bytes {
		f.t.Errorf("%d entries and %d bytes, the result says %d and %d", n, size, res.Entries, res.Bytes)
	}
	return out
}

func (f *fixture) content(r *catalog.Reader, e *catalog.Entry) (string, []treecmp.Extent) {
	f.t.Helper()
	h := sha256.New()
	var data []treecmp.Extent
	err := r.Content(f.t.Context(), e, func(off int64, ref catalog.Ref) error {
		if ref.Hole {
			_, err := io.CopyN(h, zeros{}, ref.Len)
			return err
		}
		if n := len(data); n > 0 && data[n-1].End == off {
			data[n-1].End += ref.Len
		} else {
			data = append(data, treecmp.Extent{Start: off, End: off + ref.Len})
		}
		b, err := f.repo.Unit(f.t.Context(), ref.Unit())
		if err != nil {
			return err
		}
		if !f.repo.asked[ref.ID] {
			return fmt.Errorf("unit %v was neither put nor asked for", ref.ID)
		}
		_, err = h.Write(b)
		return err
	})
	if err != nil {
		f.t.Fatalf("%q: %v", e.Path, err)
	}
	return hex.EncodeToString(h.Sum(nil)), data
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

// write makes or replaces the content of a file below the root in place.
func (f *fixture) write(path string, data []byte) {
	f.t.Helper()
	p := filepath.Join(f.root, path)
	if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
		f.t.Fatal(err)
	}
	if err := os.WriteFile(p, data, 0o644); err != nil {
		f.t.Fatal(err)
	}
}
