package catalog_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"sort"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/zeebo/blake3"
	"pgregory.net/rapid"

	"lifeboat/internal/catalog"
	"lifeboat/internal/dr"
)

// memory is a store of units.
type memory struct {
	mu    sync.Mutex
	units map[dr.UnitID][]byte
	reads int
}

func newMemory() *memory { return &memory{units: map[dr.UnitID][]byte{}} }

func unitID(data []byte) dr.UnitID {
	h, err := blake3.NewKeyed(bytes.Repeat([]byte{7}, 32))
	if err != nil {
		panic(err)
	}
	_, _ = h.Write(data)
	var id dr.UnitID
	h.Sum(id[:0])
	return id
}

func (m *memory) Put(_ context.Context, data []byte) (dr.UnitRef, error) {
	if len(data) == 0 || len(data) > dr.MaxUnit {
		return dr.UnitRef{}, fmt.Errorf("unit of %d bytes", len(data))
	}
	id := unitID(data)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.units[id] = bytes.Clone(data)
	return dr.UnitRef{ID: id, Len: uint32(len(data))}, nil
}

func (m *memory) Unit(_ context.Context, ref dr.UnitRef) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.reads++
	data, ok := m.units[ref.ID]
	if !ok {
		return nil, fmt.Errorf("unit %v: %w", ref.ID, dr.ErrNotFound)
	}
	return data, nil
}

// batch adds Fetch to memory.
type batch struct{ *memory }

func (b batch) Fetch(ctx context.Context, refs []dr.UnitRef, fn func(int, []byte) error) error {
	var wg sync.WaitGroup
	errs := make([]error, len(refs))
	for i := range refs {
		wg.Go(func() {
			data, err := b.Unit(ctx, refs[i])
			if err == nil {
				scratch := bytes.Clone(data)
				err = fn(i, scratch)
				clear(scratch) // the memory is the source's
			}
			errs[i] = err
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

var cutKey = [32]byte{1, 2, 3}

func build(t testing.TB, m *memory, entries []catalog.Entry) catalog.Summary {
	t.Helper()
	b := catalog.NewBuilder(m, cutKey, unitID)
	for _, e := range entries {
		if err := b.Add(t.Context(), e); err != nil {
			t.Fatal(err)
		}
	}
	sum, err := b.Close(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return sum
}

func open(t testing.TB, src catalog.Source, sum catalog.Summary) *catalog.Reader {
	t.Helper()
	r, err := catalog.Open(t.Context(), src, sum.Table)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func readAll(t testing.TB, r *catalog.Reader) []catalog.Entry {
	t.Helper()
	var all []catalog.Entry
	for {
		e, err := r.Next(t.Context())
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, e)
	}
}

func file(path string, size int64) catalog.Entry {
	e := catalog.Entry{Path: path, Type: catalog.File, Mode: 0o644, MtimeSec: 1_700_000_000, MtimeNsec: 5, Size: size}
	for at := int64(0); at < size; at += 1 << 20 {
		n := min(1<<20, size-at)
		var id dr.UnitID
		binary.LittleEndian.PutUint64(id[:], uint64(at)+1)
		copy(id[8:], path)
		e.Refs = append(e.Refs, catalog.Ref{ID: id, Len: n})
	}
	return e
}

func dir(path string) catalog.Entry {
	return catalog.Entry{Path: path, Type: catalog.Directory, Mode: 0o755}
}

// tree has n entries in directories of about 100.
func tree(n int) []catalog.Entry {
	all := []catalog.Entry{dir("")}
	for i := 0; len(all) < n; i++ {
		if i%100 == 0 {
			all = append(all, dir(fmt.Sprintf("d%05d", i/100)))
		}
		all = append(all, file(fmt.Sprintf("d%05d/file-%d", i/100, i), int64(i%5000)))
	}
	sort.Slice(all, func(i, j int) bool { return catalog.ComparePaths(all[i].Path, all[j].Path) < 0 })
	return all
}

func TestOrder(t *testing.T) {
	t.Parallel()
	want := []string{"", "a", "a/b", "a/b/c", "a/b-", "a\x01", "a-b", "a.b", "ab", "b", "\xff"}
	got := slices.Clone(want)
	slices.Reverse(got)
	slices.SortFunc(got, catalog.ComparePaths)
	if !cmp.Equal(got, want) {
		t.Errorf("got %q", got)
	}
}

// genEntries draws a tree of entries in walk order.
func genEntries(t *rapid.T) []catalog.Entry {
	name := rapid.Custom(func(t *rapid.T) string {
		s := strings.Map(func(r rune) rune {
			if r == '/' || r == 0 {
				return 'x'
			}
			return r
		}, string(rapid.SliceOfN(rapid.Byte(), 1, 6).Draw(t, "name")))
		if s == "." || s == ".." {
			s = "dot"
		}
		return s
	})
	seen := map[string]bool{"": true}
	dirs := []string{""}
	all := []catalog.Entry{dir("")}
	for range rapid.IntRange(0, 30).Draw(t, "entries") {
		path := name.Draw(t, "n")
		if d := rapid.SampledFrom(dirs).Draw(t, "dir"); d != "" {
			path = d + "/" + path
		}
		if seen[path] {
			continue
		}
		seen[path] = true
		e := genEntry(t, path)
		if e.Type == catalog.Directory {
			dirs = append(dirs, path)
		}
		all = append(all, e)
	}
	slices.SortFunc(all, func(a, b catalog.Entry) int { return catalog.ComparePaths(a.Path, b.Path) })
	// Hard links point at an earlier entry.
	for i := range all {
		if all[i].Type == catalog.Socket && i > 1 && all[i-1].Path != "" {
			all[i] = catalog.Entry{Path: all[i].Path, Type: catalog.HardLink, Mode: all[i].Mode, Target: all[i-1].Path}
		}
	}
	return all
}

func genEntry(t *rapid.T, path string) catalog.Entry {
	e := catalog.Entry{
		Path: path, Type: catalog.Type(rapid.IntRange(1, 8).Draw(t, "type")),
		Mode: rapid.Uint32Range(0, 0o7777).Draw(t, "mode"), UID: rapid.Uint32().Draw(t, "uid"), GID: rapid.Uint32().Draw(t, "gid"),
		MtimeSec: rapid.Int64().Draw(t, "mtime"), MtimeNsec: rapid.Uint32Range(0, 999_999_999).Draw(t, "ns"),
	}
	if e.Type == catalog.Whiteout {
		return catalog.Entry{Path: path, Type: catalog.Whiteout}
	}
	for i := range rapid.IntRange(0, 3).Draw(t, "xattrs") {
		e.Xattrs = append(e.Xattrs, catalog.Xattr{Name: fmt.Sprintf("user.%d", i), Value: rapid.SliceOfN(rapid.Byte(), 0, 20).Draw(t, "value")})
	}
	switch e.Type {
	case catalog.Directory:
		e.Opaque = rapid.Bool().Draw(t, "opaque")
	case catalog.File:
		e.LinkGroup = rapid.Bool().Draw(t, "group")
		hole := false
		for i := range rapid.SampledFrom([]int{0, 1, 1, 1, 3, 70}).Draw(t, "refs") {
			r := catalog.Ref{Len: rapid.Int64Range(1, dr.MaxUnit).Draw(t, "len"), Hole: !hole && rapid.Bool().Draw(t, "hole")}
			if hole = r.Hole; !hole {
				r.ID = unitID([]byte{byte(i)})
			} else {
				r.Len *= 1 << 20
			}
			e.Refs = append(e.Refs, r)
			e.Size += r.Len
		}
	case catalog.Symlink:
		e.Target = "../" + path
	case catalog.CharDevice, catalog.BlockDevice:
		e.Major, e.Minor = rapid.Uint32().Draw(t, "major"), rapid.Uint32().Draw(t, "minor")
	}
	return e
}

// TestRoundTrip: what was built comes back, in order and by name, and content
// lists resolve to the same refs whichever form they were stored in.
func TestRoundTrip(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		want := genEntries(rt)
		m := newMemory()
		sum := build(t, m, want)
		src := catalog.Source(m)
		if rapid.Bool().Draw(rt, "batch") {
			src = batch{m}
		}
		r := open(t, src, sum)
		got := readAll(t, r)
		if len(got) != len(want) || sum.Entries != int64(len(want)) {
			rt.Fatalf("%d entries, want %d", len(got), len(want))
		}
		for i := range got {
			compare(t, rt, r, want[i], got[i])
			found, err := r.Lookup(t.Context(), want[i].Path)
			if err != nil {
				rt.Fatal(err)
			}
			compare(t, rt, r, want[i], found)
			clone := found.Clone()
			compare(t, rt, r, want[i], clone)
		}
		if again := build(t, newMemory(), want); !cmp.Equal(again, sum) {
			rt.Fatal("the same entries make another catalog")
		}
	})
}

func compare(t *testing.T, rt *rapid.T, r *catalog.Reader, want, got catalog.Entry) {
	t.Helper()
	var refs []catalog.Ref
	end := int64(0)
	err := r.Content(t.Context(), &got, func(off int64, ref catalog.Ref) error {
		if off != end {
			return fmt.Errorf("offset %d, want %d", off, end)
		}
		end += ref.Len
		refs = append(refs, ref)
		return nil
	})
	if err != nil {
		rt.Fatal(err)
	}
	got.Refs, got.Indirect = refs, false
	if len(got.Xattrs) == 0 {
		got.Xattrs = nil
	}
	for i, x := range got.Xattrs {
		if len(x.Value) == 0 && len(want.Xattrs[i].Value) == 0 {
			got.Xattrs[i].Value = want.Xattrs[i].Value
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		rt.Fatalf("(-want +got)\n%s", diff)
	}
}

func TestLongLists(t *testing.T) {
	t.Parallel()
	for _, n := range []int{catalog.MaxDirect, catalog.MaxDirect + 1, catalog.ListRefs, catalog.ListRefs + 1, 3*catalog.ListRefs + 7} {
		m := newMemory()
		e := file("big", int64(n)<<20)
		sum := build(t, m, []catalog.Entry{dir(""), e})
		r := open(t, m, sum)
		got, err := r.Lookup(t.Context(), "big")
		if err != nil {
			t.Fatal(err)
		}
		if got.Indirect != (n > catalog.MaxDirect) {
			t.Errorf("%d refs: indirect %v", n, got.Indirect)
		}
		var refs []catalog.Ref
		if err := r.Content(t.Context(), &got, func(_ int64, ref catalog.Ref) error { refs = append(refs, ref); return nil }); err != nil {
			t.Fatal(err)
		}
		if !cmp.Equal(refs, e.Refs) {
			t.Errorf("%d refs: got %d others", n, len(refs))
		}
		// A list that lies about its size, in either direction, is found out.
		for _, d := range []int64{-1 << 20, -1, 1} {
			lie := got
			lie.Size += d
			if err := r.Content(t.Context(), &lie, func(int64, catalog.Ref) error { return nil }); got.Indirect && !errors.Is(err, dr.ErrTampered) {
				t.Errorf("%d refs, size off by %d: %v", n, d, err)
			}
		}
	}
}

// TestHolesJoin: a list has one form only, however it was reported.
func TestHolesJoin(t *testing.T) {
	t.Parallel()
	var l catalog.ListBuilder
	var e catalog.Entry
	for _, r := range []catalog.Ref{{Hole: true, Len: 5}, {Hole: true, Len: 6}, {ID: unitID(nil), Len: 1}, {Hole: true, Len: 1}} {
		if err := l.Add(t.Context(), newMemory(), r); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Finish(t.Context(), newMemory(), &e); err != nil {
		t.Fatal(err)
	}
	want := []catalog.Ref{{Hole: true, Len: 11}, {ID: unitID(nil), Len: 1}, {Hole: true, Len: 1}}
	if !cmp.Equal(e.Refs, want) || e.Size != 13 || e.Indirect {
		t.Errorf("got %v", e)
	}
}

// insert puts e where it belongs.
func insert(entries []catalog.Entry, e catalog.Entry) []catalog.Entry {
	at, _ := slices.BinarySearchFunc(entries, e, func(a, b catalog.Entry) int { return catalog.ComparePaths(a.Path, b.Path) })
	return slices.Insert(slices.Clone(entries), at, e)
}

func TestPagesStayTheSame(t *testing.T) {
	t.Parallel()
	entries := tree(15_000)
	m := newMemory()
	r := open(t, m, build(t, m, entries))
	old := map[dr.UnitRef]bool{}
	for _, p := range r.Pages() {
		old[p] = true
	}
	bytes := 0
	for _, p := range r.Pages() {
		bytes += int(p.Len)
		if p.Len > 17<<10 {
			t.Errorf("page of %d bytes", p.Len)
		}
	}
	if avg := bytes / len(r.Pages()); avg < 1<<10 || avg > 2<<10 {
		t.Errorf("average page: %d bytes", avg)
	}
	for _, at := range []int{2, 7770, 14_999} {
		for what, changed := range map[string][]catalog.Entry{
			"changed":  slices.Replace(slices.Clone(entries), at, at+1, func() catalog.Entry { e := entries[at]; e.MtimeSec++; return e }()),
			"removed":  slices.Delete(slices.Clone(entries), at, at+1),
			"inserted": insert(entries, file("d00000/file-50a", 12)),
		} {
			fresh := 0
			for _, p := range open(t, m, build(t, m, changed)).Pages() {
				if !old[p] {
					fresh++
				}
			}
			if fresh == 0 || fresh > 3 {
				t.Errorf("one entry %s: %d new pages", what, fresh)
			}
		}
	}
}

// Of the page table, too, one change makes one or two units new, wherever it is.
func TestTableStaysTheSame(t *testing.T) {
	t.Parallel()
	entries := tree(60_000)
	m := newMemory()
	sum := build(t, m, entries)
	old := map[dr.UnitRef]bool{}
	for _, u := range sum.Table {
		old[u] = true
	}
	if n := len(sum.Table); n < 10 || n > 100 {
		t.Errorf("%d units of the page table", n)
	}
	for _, at := range []int{2, 31_000, 59_999} {
		for what, changed := range map[string][]catalog.Entry{
			"changed":  slices.Replace(slices.Clone(entries), at, at+1, func() catalog.Entry { e := entries[at]; e.MtimeSec++; return e }()),
			"removed":  slices.Delete(slices.Clone(entries), at, at+1),
			"inserted": insert(entries, file("d00000/file-50a", 12)),
		} {
			fresh := 0
			for _, u := range build(t, m, changed).Table {
				if !old[u] {
					fresh++
				}
			}
			if fresh == 0 || fresh > 2 {
				t.Errorf("one entry %s: %d of %d units of the page table are new", what, fresh, len(sum.Table))
			}
		}
	}
}

// ordered notes whether what it takes are pages.
type ordered struct {
	*memory
	pages []bool
}

func (o *ordered) Put(ctx context.Context, data []byte) (dr.UnitRef, error) {
	o.pages = append(o.pages, bytes.HasPrefix(data, []byte("LBCP")))
	return o.memory.Put(ctx, data)
}

// The page table is put together: what is put together lies together, and whoever
// opens a catalog does not want its pages.
func TestTableLiesTogether(t *testing.T) {
	t.Parallel()
	o := &ordered{memory: newMemory()}
	b := catalog.NewBuilder(o, cutKey, unitID)
	entries := tree(60_000)
	for _, e := range entries {
		if err := b.Add(t.Context(), e); err != nil {
			t.Fatal(err)
		}
	}
	sum, err := b.Close(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if at := slices.Index(o.pages, false); len(o.pages)-at != len(sum.Table) || slices.Contains(o.pages[at:], true) {
		t.Errorf("of %d units the first of a page table of %d is number %d", len(o.pages), len(sum.Table), at)
	}
	if got := readAll(t, open(t, batch{o.memory}, sum)); len(got) != len(entries) {
		t.Errorf("%d entries of %d", len(got), len(entries))
	}
}

func TestBuilderRefuses(t *testing.T) {
	t.Parallel()
	long := file("f", 10)
	long.Size = 11
	for name, entries := range map[string][]catalog.Entry{
		"no root":            {dir("a")},
		"twice":              {dir(""), dir("a"), dir("a")},
		"order":              {dir(""), dir("b"), dir("a")},
		"not in a directory": {dir(""), file("a", 1), file("a/b", 1)},
		"directory missing":  {dir(""), file("a/b", 1)},
		"root twice":         {dir(""), dir("")},
		"below a file":       {file("", 1), file("a", 1)},
		"dot dot":            {dir(""), dir("..")},
		"dot dot inside":     {dir(""), dir("a"), dir("a/..")},
		"dot":                {dir(""), dir("./a")},
		"absolute":           {dir(""), dir("/a")},
		"double slash":       {dir(""), dir("a"), dir("a//b")},
		"trailing slash":     {dir(""), dir("a/")},
		"NUL":                {dir(""), dir("a\x00b")},
		"long name":          {dir(""), dir(strings.Repeat("a", 256))},
		"size":               {dir(""), long},
		"mode":               {dir(""), {Path: "a", Type: catalog.File, Mode: 0o100644}},
		"nanoseconds":        {dir(""), {Path: "a", Type: catalog.File, MtimeNsec: 1e9}},
		"type":               {dir(""), {Path: "a"}},
		"opaque file":        {dir(""), {Path: "a", Type: catalog.File, Opaque: true}},
		"directory group":    {dir(""), {Path: "a", Type: catalog.Directory, LinkGroup: true}},
		"empty target":       {dir(""), {Path: "a", Type: catalog.Symlink}},
		"link forward":       {dir(""), {Path: "a", Type: catalog.HardLink, Target: "b"}},
		"link to itself":     {dir(""), {Path: "a", Type: catalog.HardLink, Target: "a"}},
		"link outside":       {dir(""), {Path: "a", Type: catalog.HardLink, Target: "../b"}},
		"xattr order":        {dir(""), {Path: "a", Type: catalog.Fifo, Xattrs: []catalog.Xattr{{Name: "b"}, {Name: "a"}}}},
		"xattr twice":        {dir(""), {Path: "a", Type: catalog.Fifo, Xattrs: []catalog.Xattr{{Name: "a"}, {Name: "a"}}}},
		"xattr value":        {dir(""), {Path: "a", Type: catalog.Fifo, Xattrs: []catalog.Xattr{{Name: "a", Value: make([]byte, 65<<10)}}}},
		"device in a file":   {dir(""), {Path: "a", Type: catalog.File, Major: 1}},
		"two holes":          {dir(""), {Path: "a", Type: catalog.File, Size: 2, Refs: []catalog.Ref{{Hole: true, Len: 1}, {Hole: true, Len: 1}}}},
		"nothing":            {},
	} {
		b := catalog.NewBuilder(newMemory(), cutKey, unitID)
		var err error
		for _, e := range entries {
			err = errors.Join(err, b.Add(t.Context(), e))
		}
		if _, cerr := b.Close(t.Context()); errors.Join(err, cerr) == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// TestSinkFails: an error of the sink is the builder's from then on.
func TestSinkFails(t *testing.T) {
	t.Parallel()
	boom := errors.New("boom")
	b := catalog.NewBuilder(sinkFunc(func() error { return boom }), cutKey, unitID)
	if err := b.Add(t.Context(), dir("")); err != nil {
		t.Fatal(err)
	}
	if err := b.Add(t.Context(), file("a", 100<<20)); !errors.Is(err, boom) {
		t.Errorf("list: %v", err)
	}
	if err := b.Add(t.Context(), dir("b")); !errors.Is(err, boom) {
		t.Errorf("after an error: %v", err)
	}
	if _, err := b.Close(t.Context()); !errors.Is(err, boom) {
		t.Errorf("close: %v", err)
	}
}

type sinkFunc func() error

func (f sinkFunc) Put(context.Context, []byte) (dr.UnitRef, error) { return dr.UnitRef{}, f() }

func TestSeek(t *testing.T) {
	t.Parallel()
	entries := tree(5000)
	m := newMemory()
	r := open(t, batch{m}, build(t, m, entries))
	for _, at := range []int{0, 1, 2, 1234, 4999} {
		if err := r.Seek(t.Context(), entries[at].Path); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(len(entries)-at, len(readAll(t, r))); diff != "" {
			t.Errorf("from %q: %s", entries[at].Path, diff)
		}
		if err := r.SkipTree(t.Context(), entries[at].Path); err != nil {
			t.Fatal(err)
		}
		want := slices.IndexFunc(entries, func(e catalog.Entry) bool {
			return catalog.ComparePaths(e.Path, entries[at].Path) > 0 && !catalog.Under(e.Path, entries[at].Path)
		})
		got := len(readAll(t, r))
		if want < 0 && got != 0 || want >= 0 && got != len(entries)-want {
			t.Errorf("after %q: %d entries", entries[at].Path, got)
		}
	}
	for _, absent := range []string{"a", "zz", "d00003/none"} {
		if _, err := r.Lookup(t.Context(), absent); !errors.Is(err, dr.ErrNotFound) {
			t.Errorf("lookup of %q: %v", absent, err)
		}
	}
}

// TestDiff compares with a plain comparison of the two lists, and looks at
// what was read: pages that both have are not.
func TestDiff(t *testing.T) {
	t.Parallel()
	old := tree(14_000)
	next := slices.Clone(old)
	next[100].Mode = 0o600
	next[10_002] = file(next[10_002].Path, 4999)
	next[10_002].MtimeSec++
	next = slices.Delete(next, 12_003, 12_004)
	added := next[5_001].Path + "x"
	if next[5_001].Type == catalog.Directory {
		t.Fatal("that is a directory")
	}
	next = insert(next, file(added, 3))
	m := newMemory()
	a, b := build(t, m, old), build(t, m, next)
	for _, src := range []catalog.Source{m, batch{m}} {
		ra, rb := open(t, src, a), open(t, src, b)
		m.reads = 0
		var got []string
		err := catalog.Diff(t.Context(), ra, rb, func(c catalog.Change) error {
			got = append(got, c.Kind.String()+" "+c.Path())
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		want := []string{
			"metadata " + old[100].Path, "added " + added,
			"content " + old[10_002].Path, "removed " + old[12_003].Path,
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("(-want +got)\n%s", diff)
		}
		if all := len(ra.Pages()) + len(rb.Pages()); m.reads > 20 {
			t.Errorf("%d reads of %d pages", m.reads, all)
		}
	}
	// Against nothing: all added, all removed.
	n := 0
	if err := catalog.Merge(t.Context(), nil, open(t, m, a), func(x, y *catalog.Entry) error {
		if x == nil && y != nil {
			n++
		}
		return nil
	}); err != nil || n != len(old) {
		t.Errorf("merge with nothing: %d, %v", n, err)
	}
}

func TestDiffRandom(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		x, y := genEntries(rt), genEntries(rt)
		m := newMemory()
		ra, rb := open(t, m, build(t, m, x)), open(t, batch{m}, build(t, m, y))
		inX, inY := map[string]bool{}, map[string]bool{}
		for _, e := range x {
			inX[e.Path] = true
		}
		for _, e := range y {
			inY[e.Path] = true
		}
		var merged []string
		if err := catalog.Merge(t.Context(), ra, rb, func(a, b *catalog.Entry) error {
			p := ""
			if a != nil {
				p = a.Path
			}
			if b != nil {
				p = b.Path
			}
			if inX[p] != (a != nil) || inY[p] != (b != nil) || a != nil && b != nil && a.Path != b.Path {
				rt.Fatalf("merge at %q", p)
			}
			merged = append(merged, p)
			return nil
		}); err != nil {
			rt.Fatal(err)
		}
		for p := range inX {
			inY[p] = true
		}
		if len(merged) != len(inY) || !slices.IsSortedFunc(merged, catalog.ComparePaths) {
			rt.Fatalf("merged %d of %d", len(merged), len(inY))
		}
		if err := catalog.Diff(t.Context(), ra, ra.Clone(), func(c catalog.Change) error {
			return fmt.Errorf("%v %q", c.Kind, c.Path())
		}); err != nil {
			rt.Fatalf("a catalog differs from itself: %v", err)
		}
	})
}

// TestTampered: whatever is wrong with stored bytes is dr.ErrTampered, before
// anything is made of it.
func TestTampered(t *testing.T) {
	t.Parallel()
	m := newMemory()
	sum := build(t, m, tree(3000))
	good := open(t, m, sum)
	swap := func(f func(data []byte) []byte) error {
		// The page is altered but passes as authentic: a writer that lies.
		src := &altered{memory: m, ref: good.Pages()[1], f: f}
		r, err := catalog.Open(t.Context(), src, sum.Table)
		for err == nil {
			_, err = r.Next(t.Context())
		}
		return err
	}
	page := func(entries ...catalog.Entry) func([]byte) []byte {
		return func([]byte) []byte {
			data, err := catalog.EncodePage(entries)
			if err != nil {
				t.Fatal(err)
			}
			return data
		}
	}
	for name, f := range map[string]func([]byte) []byte{
		"truncated":        func(b []byte) []byte { return b[:len(b)-1] },
		"longer":           func(b []byte) []byte { return append(bytes.Clone(b), 0) },
		"empty":            func([]byte) []byte { return nil },
		"other magic":      func(b []byte) []byte { b = bytes.Clone(b); b[0]++; return b },
		"other version":    func(b []byte) []byte { b = bytes.Clone(b); b[4]++; return b },
		"other page":       page(dir(""), file("x", 1)),
		"entries overflow": func([]byte) []byte { return binary.AppendUvarint([]byte("LBCP\x01"), 1<<60) },
	} {
		if err := swap(f); !errors.Is(err, dr.ErrTampered) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, table := range map[string][]byte{
		"empty":   []byte("LBCT\x01\x00"),
		"garbage": []byte("garbage"),
		"huge":    binary.AppendUvarint([]byte("LBCT\x01"), 1<<40),
	} {
		ref, err := m.Put(t.Context(), table)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := catalog.Open(t.Context(), m, []dr.UnitRef{ref}); !errors.Is(err, dr.ErrTampered) {
			t.Errorf("table %s: %v", name, err)
		}
	}
	if _, err := catalog.Open(t.Context(), m, nil); !errors.Is(err, dr.ErrTampered) {
		t.Errorf("no table: %v", err)
	}
}

// altered changes one unit on its way.
type altered struct {
	*memory
	ref dr.UnitRef
	f   func([]byte) []byte
}

func (a *altered) Unit(ctx context.Context, ref dr.UnitRef) ([]byte, error) {
	data, err := a.memory.Unit(ctx, ref)
	if err == nil && ref == a.ref {
		data = a.f(data)
	}
	return data, err
}

// FuzzPage: what decodes encodes to the same bytes.
func FuzzPage(f *testing.F) {
	for _, entries := range [][]catalog.Entry{
		{dir("")},
		{dir(""), file("a", 3<<20), file("ab", 0), {Path: "b", Type: catalog.Symlink, Target: "x"}, {Path: "c", Type: catalog.HardLink, Target: "a"}},
		{dir(""), {Path: "d", Type: catalog.CharDevice, Major: 1, Minor: 300}, {Path: "w", Type: catalog.Whiteout}},
		{{Type: catalog.Directory, Opaque: true, MtimeSec: -1, Xattrs: []catalog.Xattr{{Name: "user.a", Value: []byte{1}}}}},
		{dir(""), {Path: "s", Type: catalog.File, Size: 9, Refs: []catalog.Ref{{Hole: true, Len: 8}, {Len: 1}}}},
	} {
		data, err := catalog.EncodePage(entries)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		entries, err := catalog.DecodePage(data)
		if err != nil {
			if !errors.Is(err, dr.ErrTampered) {
				t.Fatalf("error is not ErrTampered: %v", err)
			}
			return
		}
		again, err := catalog.EncodePage(entries)
		if err != nil {
			t.Fatalf("decoded but does not encode: %v", err)
		}
		if !bytes.Equal(data, again) {
			t.Fatalf("not canonical:\n%x\n%x", data, again)
		}
		for _, e := range entries {
			if err := catalog.CheckPath(e.Path); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func FuzzTable(f *testing.F) {
	m := newMemory()
	b := catalog.NewBuilder(m, cutKey, unitID)
	for _, e := range tree(3000) {
		if err := b.Add(context.Background(), e); err != nil {
			f.Fatal(err)
		}
	}
	sum, err := b.Close(context.Background())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(m.units[sum.Table[0].ID])
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) == 0 || len(data) > dr.MaxUnit {
			return
		}
		m := newMemory()
		ref, err := m.Put(t.Context(), data)
		if err != nil {
			t.Fatal(err)
		}
		r, err := catalog.Open(t.Context(), m, []dr.UnitRef{ref})
		if err != nil {
			if !errors.Is(err, dr.ErrTampered) {
				t.Fatal(err)
			}
			return
		}
		if _, err := r.Lookup(t.Context(), "some/path"); err == nil {
			t.Fatal("found what is not stored")
		}
	})
}

func FuzzRef(f *testing.F) {
	f.Add(catalog.AppendRefs(nil, []catalog.Ref{{Hole: true, Len: 1 << 40}, {Len: 300}}))
	f.Fuzz(func(t *testing.T, data []byte) {
		ref, n, err := catalog.DecodeRef(data)
		if err == nil && !bytes.Equal(catalog.AppendRefs(nil, []catalog.Ref{ref}), data[:n]) {
			t.Fatal("not canonical")
		}
	})
}

func BenchmarkBuild(b *testing.B) {
	entries := tree(40_000)
	b.ReportAllocs()
	for b.Loop() {
		build(b, newMemory(), entries)
	}
}

func BenchmarkRead(b *testing.B) {
	m := newMemory()
	r := open(b, m, build(b, m, tree(40_000)))
	b.ReportAllocs()
	for b.Loop() {
		r.Rewind()
		for {
			if _, err := r.Next(b.Context()); err != nil {
				break
			}
		}
	}
}
