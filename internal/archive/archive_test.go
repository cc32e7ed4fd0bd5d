package archive_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/zeebo/blake3"

	"lifeboat/internal/archive"
	"lifeboat/internal/catalog"
	"lifeboat/internal/dr"
)

// store is a sink and source of units in memory.
type store struct {
	mu    sync.Mutex
	units map[dr.UnitID][]byte
	fail  error
}

func newStore() *store { return &store{units: map[dr.UnitID][]byte{}} }

func unitID(data []byte) dr.UnitID { return blake3.Sum256(data) }

func (s *store) Put(_ context.Context, data []byte) (dr.UnitRef, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fail != nil {
		return dr.UnitRef{}, s.fail
	}
	id := unitID(data)
	s.units[id] = bytes.Clone(data)
	return dr.UnitRef{ID: id, Len: uint32(len(data))}, nil
}

func (s *store) Unit(_ context.Context, ref dr.UnitRef) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	data, ok := s.units[ref.ID]
	if !ok {
		return nil, dr.ErrNotFound
	}
	return data, nil
}

func (s *store) Fetch(ctx context.Context, refs []dr.UnitRef, fn func(int, []byte) error) error {
	for i, r := range refs {
		data, err := s.Unit(ctx, r)
		if err != nil {
			return err
		}
		if err := fn(i, data); err != nil {
			return err
		}
	}
	return nil
}

// file is a header with its content.
type file struct {
	tar.Header
	content string
}

func f(name, content string) file {
	return file{tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o100644, Uid: 7, Gid: 8, ModTime: time.Unix(1000, 0)}, content}
}

func d(name string) file {
	return file{tar.Header{Name: name, Typeflag: tar.TypeDir, Mode: 0o40755, ModTime: time.Unix(-5, 0)}, ""}
}

func link(name, target string) file {
	return file{tar.Header{Name: name, Typeflag: tar.TypeLink, Linkname: target, ModTime: time.Unix(1000, 0)}, ""}
}

func sym(name, target string) file {
	return file{tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: target, Mode: 0o777, ModTime: time.Unix(1000, 0)}, ""}
}

// pack is the archive of the files, with its end mark.
func pack(t testing.TB, files ...file) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, x := range files {
		x.Size = int64(len(x.content))
		if err := w.WriteHeader(&x.Header); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, x.content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// engine answers with archives by path.
type engine struct {
	mu       sync.Mutex
	archives map[string][]byte
	changes  []archive.Change
	asked    []string
	broken   error
}

func (e *engine) ReadArchive(_ context.Context, _, path string) (io.ReadCloser, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.asked = append(e.asked, path)
	if e.broken != nil {
		return nil, e.broken
	}
	b, ok := e.archives[path]
	if !ok {
		return nil, fmt.Errorf("%s: %w", path, dr.ErrNotFound)
	}
	return io.NopCloser(bytes.NewReader(b)), nil
}

func (e *engine) Changes(context.Context, string) ([]archive.Change, error) {
	return e.changes, e.broken
}

// take captures a tree and gives its entries with their content.
func take(t *testing.T, s *store, o archive.Options) (dr.Tree, map[string]catalog.Entry, map[string]string) {
	t.Helper()
	o.Sink, o.UnitID = s, unitID
	c := archive.New(o)
	defer c.Close()
	ctx := t.Context()
	if err := c.Precopy(ctx); err != nil {
		t.Fatal(err)
	}
	if err := c.Secure(ctx); err != nil {
		t.Fatal(err)
	}
	tree, err := c.Finish(ctx)
	if err != nil {
		t.Fatal(err)
	}
	entries, contents := read(t, s, tree.Catalog)
	return tree, entries, contents
}

func read(t *testing.T, s *store, table []dr.UnitRef) (map[string]catalog.Entry, map[string]string) {
	t.Helper()
	ctx := t.Context()
	r, err := catalog.Open(ctx, s, table)
	if err != nil {
		t.Fatal(err)
	}
	entries, contents := map[string]catalog.Entry{}, map[string]string{}
	for {
		e, err := r.Next(ctx)
		if errors.Is(err, io.EOF) {
			return entries, contents
		}
		if err != nil {
			t.Fatal(err)
		}
		entries[e.Path] = e.Clone()
		if e.Type != catalog.File {
			continue
		}
		var b strings.Builder
		if err := r.Clone().Content(ctx, &e, func(_ int64, ref catalog.Ref) error {
			data, err := s.Unit(ctx, ref.Unit())
			b.Write(data)
			return err
		}); err != nil {
			t.Fatal(err)
		}
		contents[e.Path] = b.String()
	}
}

// markName is that of the mark of a restore.
var markName = dr.RestoreMark(dr.SnapshotID{1}, "0f")

func TestCaptureVolume(t *testing.T) {
	t.Parallel()
	big := strings.Repeat("0123456789abcdef", 1<<16) // content-defined pieces
	capable := f("./bin/ping", "x")
	capable.PAXRecords = map[string]string{
		"SCHILY.xattr.security.capability": "\x01\x00\x00\x02", "SCHILY.xattr.security.selinux": "of the host", "SCHILY.xattr.trusted.overlay.origin": "of the overlay",
	}
	e := &engine{archives: map[string][]byte{"/data/.": pack(t,
		d("./"), d("./bin"), capable, f("./bin/big", big), f("./empty", ""), f("./odd\xff\n", "odd"),
		link("./z-link", "./odd\xff\n"), sym("./escape", "../../../etc/shadow"),
		d("./cache"), f("./cache/a", "cached"), link("./kept", "./cache/a"), link("./kept-too", "./cache/a"),
		d("./sub"), f("./sub/of-another-mount", "not ours"),
		f("./"+markName, "{}"), link("./marked", "./"+markName), f("./bin/"+markName, "{}"),
	), "/data/kept": pack(t, f("kept", "cached")), "/data/marked": pack(t, f("marked", "{}"))}}
	s := newStore()
	tree, entries, contents := take(t, s, archive.Options{Source: e, Container: "c", Path: "/data", Mounts: []string{"/data", "/data/sub", "/database"}, Exclude: []string{"cache"}})
	want := map[string]string{"bin/ping": "x", "bin/big": big, "empty": "", "odd\xff\n": "odd", "kept": "cached", "marked": "{}"}
	if diff := cmp.Diff(want, contents); diff != "" {
		t.Error(diff)
	}
	if e := entries["bin/ping"]; len(e.Xattrs) != 1 || e.Xattrs[0].Name != "security.capability" || e.Mode != 0o644 || e.UID != 7 || e.GID != 8 || e.MtimeSec != 1000 {
		t.Errorf("ping is %+v", e)
	}
	if e := entries[""]; e.Type != catalog.Directory || e.Mode != 0o755 || e.MtimeSec != -5 {
		t.Errorf("the root is %+v", e)
	}
	if e := entries["z-link"]; e.Type != catalog.HardLink || e.Target != "odd\xff\n" || !entries["odd\xff\n"].LinkGroup {
		t.Errorf("the link is %+v", e)
	}
	if e := entries["kept-too"]; e.Type != catalog.HardLink || e.Target != "kept" || !entries["kept"].LinkGroup {
		t.Errorf("a link whose first name is excluded is %+v", e)
	}
	if e := entries["escape"]; e.Type != catalog.Symlink || e.Target != "../../../etc/shadow" {
		t.Errorf("the symbolic link is %+v", e)
	}
	if diff := cmp.Diff([]string{"", "bin"}, tree.HalfRestored); diff != "" {
		t.Error(diff)
	}
	for _, path := range []string{"cache", "cache/a", "sub/of-another-mount", markName, "bin/" + markName} {
		if _, ok := entries[path]; ok {
			t.Errorf("%s was left out, and is there", path)
		}
	}
	if _, ok := entries["sub"]; !ok {
		t.Error("the mount point inside is not there")
	}
	if tree.Degraded == "" || int(tree.Entries) != len(entries) || tree.Bytes != int64(len(big)+1+3+6+2) {
		t.Errorf("tree %+v", tree)
	}
}

func TestCaptureFile(t *testing.T) {
	t.Parallel()
	e := &engine{archives: map[string][]byte{"/etc/app.ini": pack(t, f("app.ini", "key=value"))}}
	_, entries, contents := take(t, newStore(), archive.Options{Source: e, Container: "c", Path: "/etc/app.ini", File: true, Mounts: []string{"/etc/app.ini"}})
	if len(entries) != 1 || entries[""].Type != catalog.File || contents[""] != "key=value" {
		t.Errorf("%v, %v", entries, contents)
	}
}

func TestCaptureLayer(t *testing.T) {
	t.Parallel()
	e := &engine{
		changes: []archive.Change{
			{"/etc", archive.Modified},
			{"/etc/passwd", archive.Modified},
			{"/etc/motd", archive.Deleted},
			{"/new", archive.Added},
			{"/new/a", archive.Added},
			{"/new/vol", archive.Added},
			{"/new/vol/x", archive.Added},
			{"/gone", archive.Deleted},
			{"/opaque", archive.Deleted},
			{"/opaque/only", archive.Added},
			{"/usr/lib/deep", archive.Modified},
			{"/run/socket", archive.Added},
			{"/tmp/\ufffd", archive.Modified},
			{"/vol", archive.Modified},
		},
		archives: map[string][]byte{
			"/.": pack(t, d("./"), d("./etc"), f("./etc/of-the-image", "image")), "/etc": pack(t, d("etc"), f("etc/of-the-image", "image")),
			"/etc/passwd": pack(t, f("passwd", "root")), "/new": pack(t, d("new"), f("new/a", "a"), link("new/b", "new/a"), d("new/vol"), f("new/vol/x", "of a volume")),
			"/opaque": pack(t, d("opaque"), f("opaque/only", "only")), "/usr": pack(t, d("usr")), "/usr/lib": pack(t, d("lib")),
			"/usr/lib/deep": pack(t, f("deep", "deep")), "/run": pack(t, d("run")), "/run/socket": pack(t), "/tmp": pack(t, d("tmp")),
		},
	}
	tree, entries, contents := take(t, newStore(), archive.Options{Source: e, Container: "c", Mounts: []string{"/new/vol", "/vol"}})
	if diff := cmp.Diff(map[string]string{"etc/passwd": "root", "new/a": "a", "opaque/only": "only", "usr/lib/deep": "deep"}, contents); diff != "" {
		t.Error(diff)
	}
	for path, want := range map[string]catalog.Type{
		"": catalog.Directory, "etc": catalog.Directory, "etc/motd": catalog.Whiteout, "gone": catalog.Whiteout, "new/b": catalog.HardLink, "opaque": catalog.Directory, "tmp": catalog.Directory,
	} {
		if e, ok := entries[path]; !ok || e.Type != want {
			t.Errorf("%q is %v, want %v", path, e.Type, want)
		}
	}
	if !entries["opaque"].Opaque || entries["etc"].Opaque || entries["new/b"].Target != "new/a" {
		t.Errorf("opaque %+v, link %+v", entries["opaque"], entries["new/b"])
	}
	for path := range entries {
		if strings.HasPrefix(path, "new/vol") || path == "vol" || strings.Contains(path, "of-the-image") {
			t.Errorf("%q is no part of the layer", path)
		}
	}
	if !strings.Contains(tree.Degraded, "1 changed files are missing") {
		t.Errorf("the file with the garbled name is not named: %s", tree.Degraded)
	}
}

// TestCaptureManyChanges: a directory in which very many names were changed is
// read in one go, without what was not.
func TestCaptureManyChanges(t *testing.T) {
	t.Parallel()
	e := &engine{archives: map[string][]byte{"/.": pack(t, d("./")), "/www": pack(t, d("www"))}}
	all := []file{d("www"), f("www/00-of-the-image", "image")}
	for i := range 300 {
		name := fmt.Sprintf("%03d", i)
		e.changes = append(e.changes, archive.Change{Path: "/www/" + name, Kind: archive.Modified})
		all = append(all, f("www/"+name, name))
	}
	e.changes = append(e.changes, archive.Change{Path: "/www/dir", Kind: archive.Modified}, archive.Change{Path: "/www/linked", Kind: archive.Added},
		archive.Change{Path: "/www/new", Kind: archive.Added}, archive.Change{Path: "/www/new/x", Kind: archive.Added}, archive.Change{Path: "/www/dir/gone", Kind: archive.Deleted})
	all = append(all, d("www/dir"), f("www/dir/of-the-image", "image"), link("www/linked", "www/00-of-the-image"), d("www/new"), f("www/new/x", "new"))
	e.archives["/www"] = pack(t, all...)
	e.archives["/www/linked"] = pack(t, f("linked", "image"))
	_, entries, contents := take(t, newStore(), archive.Options{Source: e, Container: "c"})
	if len(contents) != 302 || contents["www/299"] != "299" || contents["www/linked"] != "image" || contents["www/new/x"] != "new" {
		t.Errorf("%d files, linked %q, new %q", len(contents), contents["www/linked"], contents["www/new/x"])
	}
	for path, want := range map[string]catalog.Type{"www": catalog.Directory, "www/dir": catalog.Directory, "www/dir/gone": catalog.Whiteout, "www/linked": catalog.File} {
		if e, ok := entries[path]; !ok || e.Type != want {
			t.Errorf("%q is %v, want %v", path, e.Type, want)
		}
	}
	if len(e.asked) > 2*5 {
		t.Errorf("%d archives were asked for in two passes: %q", len(e.asked), e.asked)
	}
}

// TestHostileArchives: nothing of these may become a catalog.
func TestHostileArchives(t *testing.T) {
	t.Parallel()
	whole := pack(t, d("./"), f("./zeros", strings.Repeat("\x00", 4096)))
	odd := func(change func(*file)) []byte {
		x := f("./x", "")
		change(&x)
		return pack(t, d("./"), x)
	}
	for name, raw := range map[string][]byte{
		"escapes":               pack(t, d("./"), f("./../etc/shadow", "x")),
		"escapes deeper":        pack(t, d("./"), d("./a"), f("./a/../../b", "x")),
		"empty component":       pack(t, d("./"), f("./a//b", "x")),
		"twice":                 pack(t, d("./"), f("./a", "1"), f("./a", "2")),
		"root twice":            pack(t, d("./"), d("./")),
		"no root":               pack(t, f("./a", "1")),
		"no directory":          pack(t, d("./"), f("./a/b", "1")),
		"below a file":          pack(t, d("./"), f("./a", ""), f("./a/b", "1")),
		"link to outside":       pack(t, d("./"), link("./l", "../../etc/shadow")),
		"link to nothing":       pack(t, d("./"), link("./l", "./nothing")),
		"link to itself":        pack(t, d("./"), link("./l", "./l")),
		"link to a link":        pack(t, d("./"), link("./l", "./m"), link("./m", "./l")),
		"link to a directory":   pack(t, d("./"), d("./dir"), link("./l", "./dir")),
		"cut off in a file":     whole[:1500],
		"cut off between files": whole[:2*512+4096],
		"half an end mark":      whole[:2*512+4096+512],
		"owner":                 odd(func(x *file) { x.Uid = -1 }),
		"type":                  odd(func(x *file) { x.Typeflag = tar.TypeCont }),
		"attribute":             odd(func(x *file) { x.PAXRecords = map[string]string{"SCHILY.xattr.user.x": strings.Repeat("v", 70_000)} }),
		"symbolic link":         pack(t, d("./"), sym("./s", strings.Repeat("s", 5000))),
		"nothing":               {},
		"empty":                 pack(t),
		"no archive":            []byte(strings.Repeat("no archive ", 200)),
		"sparse":                sparse(t, tar.TypeReg),
		"sparse link":           sparse(t, tar.TypeLink),
	} {
		s := newStore()
		c := archive.New(archive.Options{Source: &engine{archives: map[string][]byte{"/v/.": raw}}, Container: "c", Path: "/v", Sink: s, UnitID: unitID})
		err := c.Secure(t.Context())
		if err == nil {
			_, err = c.Finish(t.Context())
		}
		if err == nil {
			t.Errorf("%s: a tree was made of it", name)
		}
		_ = c.Close()
	}
}

// sparse is an archive that promises 4 EiB of holes.
func sparse(t *testing.T, kind byte) []byte {
	t.Helper()
	x := f("./GNUSparseFile.0/x", "1\n4611686018427387904\n0\n")
	x.content += strings.Repeat("\x00", 512-len(x.content))
	if x.Typeflag = kind; kind == tar.TypeLink {
		x.Linkname, x.content = "./x", ""
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range []file{d("./"), x} {
		h.Size = int64(len(h.content))
		h.Format = tar.FormatPAX
		if h.Typeflag != tar.TypeDir {
			// Written as another key of the same length: the writer knows this one.
			h.PAXRecords = map[string]string{"XNU.sparse.major": "1", "XNU.sparse.minor": "0", "XNU.sparse.name": "./x", "XNU.sparse.realsize": "4611686018427387904"}
		}
		if err := w.WriteHeader(&h.Header); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, h.content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return bytes.ReplaceAll(b.Bytes(), []byte("XNU.sparse"), []byte("GNU.sparse"))
}

func TestBudget(t *testing.T) {
	t.Parallel()
	files := []file{d("./")}
	for i := range 2000 {
		files = append(files, f(fmt.Sprintf("./%04d", i), ""))
	}
	b := archive.NewBudget(256 << 10)
	o := archive.Options{Source: &engine{archives: map[string][]byte{"/v/.": pack(t, files...)}}, Container: "c", Path: "/v", Sink: newStore(), UnitID: unitID, Budget: b}
	c := archive.New(o)
	if err := c.Secure(t.Context()); !errors.Is(err, archive.ErrTooMany) {
		t.Errorf("error %v, want ErrTooMany", err)
	}
	_ = c.Close()
	l := archive.NewList(b)
	if err := l.Add(catalog.Entry{Path: strings.Repeat("p", 200<<10)}); err != nil {
		t.Errorf("the memory was not given back: %v", err)
	}
	l.Close()
}

// TestPasses: what Precopy cannot read does no harm, what Secure cannot read is
// an error, and a sink that fails ends both.
func TestPasses(t *testing.T) {
	t.Parallel()
	e := &engine{archives: map[string][]byte{"/v/.": pack(t, d("./"), f("./a", "content"))}, broken: errors.New("engine is away")}
	s := newStore()
	o := archive.Options{Source: e, Container: "c", Path: "/v", Sink: s, UnitID: unitID}
	c := archive.New(o)
	defer c.Close()
	if err := c.Precopy(t.Context()); err != nil {
		t.Errorf("Precopy: %v", err)
	}
	if err := c.Secure(t.Context()); !errors.Is(err, e.broken) {
		t.Errorf("Secure: %v", err)
	}
	e.broken, s.fail = nil, errors.New("registry is away")
	if err := c.Precopy(t.Context()); !errors.Is(err, s.fail) {
		t.Errorf("Precopy with a broken sink: %v", err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("freeze_max")
	cancel(why)
	if err := c.Secure(ctx); !errors.Is(err, why) {
		t.Errorf("Secure after the end of its context: %v", err)
	}
}

// TestEncodeComesBack: what Encode writes and an engine would give again is the
// same tree, less what is told to be lost.
func TestEncodeComesBack(t *testing.T) {
	t.Parallel()
	s := newStore()
	ctx := t.Context()
	put := func(text string) catalog.Ref {
		ref, err := s.Put(ctx, []byte(text))
		if err != nil {
			t.Fatal(err)
		}
		return catalog.Ref{ID: ref.ID, Len: int64(ref.Len)}
	}
	l := archive.NewList(archive.NewBudget(0))
	defer l.Close()
	for _, e := range []catalog.Entry{
		{Path: "", Type: catalog.Directory, Mode: 0o3771, UID: 5},
		{Path: markName, Type: catalog.File, Size: 3, Refs: []catalog.Ref{put("abc")}},
		{Path: "dir", Type: catalog.Directory, Opaque: true, MtimeSec: 10, MtimeNsec: 999, Xattrs: []catalog.Xattr{{Name: "system.posix_acl_default", Value: []byte("acl")}, {Name: "user.empty"}, {Name: "user.x", Value: []byte("dir")}}},
		{Path: "dir/file", Type: catalog.File, Mode: 0o600, MtimeSec: 20, Size: 8, Refs: []catalog.Ref{put("abc"), {Len: 2, Hole: true}, put("def")}, Xattrs: []catalog.Xattr{{Name: "user.x", Value: []byte("\x00v")}}},
		{Path: "dir/link", Type: catalog.HardLink, Target: "dir/file"},
		{Path: "early", Type: catalog.Fifo, MtimeSec: -1},
		{Path: "gone", Type: catalog.Whiteout},
		{Path: "mount", Type: catalog.Directory},
		{Path: "mount/hidden", Type: catalog.Symlink, Target: "x"},
		{Path: "node", Type: catalog.BlockDevice, Major: 7, Minor: 300},
		{Path: "socket", Type: catalog.Socket},
	} {
		if err := l.Add(e); err != nil {
			t.Fatal(err)
		}
	}
	sum, err := l.Catalog(ctx, s, [32]byte{}, unitID)
	if err != nil {
		t.Fatal(err)
	}
	target, err := catalog.Open(ctx, s, sum.Table)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	lost, err := archive.Encode(ctx, &b, target, s, archive.EncodeOptions{At: "/", Layer: true, Mounts: []string{"/mount"}})
	if err != nil {
		t.Fatal(err)
	}
	want := archive.Lost{Deletions: 1, FirstDeletion: "gone", Sockets: 1, Early: 1, Attributes: 1, Hidden: 1, Holes: true}
	if diff := cmp.Diff(want, lost); diff != "" {
		t.Error(diff)
	}
	var got []string
	r := tar.NewReader(&b)
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, fmt.Sprintf("%c %s %d.%d %q %s", h.Typeflag, h.Name, h.ModTime.Unix(), h.ModTime.Nanosecond(), content, h.PAXRecords["SCHILY.xattr.user.x"]+h.PAXRecords["SCHILY.xattr.system.posix_acl_default"]))
	}
	// The file before the directory makes the engine remove the image's.
	wantEntries := []string{
		`0 dir 10.999 "" `, `5 dir/ 10.999 "" dir`, "0 dir/file 20.0 \"abc\\x00\\x00def\" \x00v", "1 dir/link 20.0 \"\" \x00v", `6 early -1.0 "" `, `4 node 0.0 "" `,
		`5 dir/ 10.999 "" diracl`, // after all that would inherit the list
	}
	if diff := cmp.Diff(wantEntries, got); diff != "" {
		t.Error(diff)
	}
}

// TestEncodeSparesMounts: nothing is written over a directory in which
// something is mounted, which the engine would empty first.
func TestEncodeSparesMounts(t *testing.T) {
	t.Parallel()
	s := newStore()
	l := archive.NewList(archive.NewBudget(0))
	defer l.Close()
	for _, e := range []catalog.Entry{{Type: catalog.Directory}, {Path: "a", Type: catalog.Directory, Opaque: true}, {Path: "b", Type: catalog.File}} {
		if err := l.Add(e); err != nil {
			t.Fatal(err)
		}
	}
	sum, err := l.Catalog(t.Context(), s, [32]byte{}, unitID)
	if err != nil {
		t.Fatal(err)
	}
	target, err := catalog.Open(t.Context(), s, sum.Table)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	lost, err := archive.Encode(t.Context(), &b, target, s, archive.EncodeOptions{At: "/", Layer: true, Mounts: []string{"/a/data", "/b/data"}})
	if err != nil || lost.Hidden != 2 {
		t.Errorf("lost %+v, %v", lost, err)
	}
	var names []string
	for r := tar.NewReader(&b); ; {
		h, err := r.Next()
		if err != nil {
			break
		}
		names = append(names, fmt.Sprintf("%c %s", h.Typeflag, h.Name))
	}
	if diff := cmp.Diff([]string{"5 a/"}, names); diff != "" {
		t.Error(diff)
	}
}

func TestEmpty(t *testing.T) {
	t.Parallel()
	may := func(dir string) bool { return dir == "made" }
	for name, c := range map[string]struct {
		files []file
		empty bool
	}{
		"empty": {[]file{d("./")}, true}, "made by the engine": {[]file{d("./"), d("./made")}, true},
		"a file": {[]file{d("./"), f("./x", "")}, false}, "a directory": {[]file{d("./"), d("./x")}, false},
		"a file of that name": {[]file{d("./"), f("./made", "")}, false},
	} {
		if got, err := archive.Empty(bytes.NewReader(pack(t, c.files...)), may); err != nil || got != c.empty {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
	if _, err := archive.Empty(strings.NewReader(""), may); !errors.Is(err, archive.ErrMalformed) {
		t.Errorf("no archive: %v", err)
	}
}

// mended gives every header the right checksum, which a mutation would not find.
func mended(raw []byte) []byte {
	out := bytes.Clone(raw)
	for at := 0; at+512 <= len(out); at += 512 {
		h := out[at : at+512]
		if bytes.Count(h, []byte{0}) == 512 {
			continue
		}
		copy(h[148:156], "        ")
		sum := 0
		for _, b := range h {
			sum += int(b)
		}
		copy(h[148:156], fmt.Sprintf("%06o\x00 ", sum))
		size, err := strconv.ParseInt(strings.Trim(string(h[124:136]), "\x00 "), 8, 32)
		if err == nil && size > 0 && h[156] != tar.TypeDir {
			at += int(size+511) / 512 * 512
		}
	}
	return out
}

// FuzzDecode: whatever comes, a tree that is made of it reads back, and lies in
// itself.
func FuzzDecode(ff *testing.F) {
	ff.Add(pack(ff, d("./"), f("./a", "content"), link("./b", "./a"), sym("./s", "../x")))
	ff.Add(pack(ff, d("./"), f("./../a", "x")))
	ff.Add(pack(ff, d("./"), f("./a", "1"), f("./a", "2")))
	ff.Add([]byte{})
	ff.Fuzz(func(t *testing.T, raw []byte) {
		s := newStore()
		e := &engine{archives: map[string][]byte{"/v/.": mended(raw)}}
		c := archive.New(archive.Options{Source: e, Container: "c", Path: "/v", Sink: s, UnitID: unitID, Idle: true})
		defer c.Close()
		if c.Secure(t.Context()) != nil {
			return
		}
		tree, err := c.Finish(t.Context())
		if err != nil {
			return
		}
		entries, contents := read(t, s, tree.Catalog)
		for path, entry := range entries {
			if catalog.CheckPath(path) != nil {
				t.Errorf("path %q", path)
			}
			if entry.Type == catalog.HardLink && !entries[entry.Target].LinkGroup {
				t.Errorf("%q is a link to %q, which is no first name", path, entry.Target)
			}
			if entry.Type == catalog.File && int64(len(contents[path])) != entry.Size {
				t.Errorf("%q has %d bytes of %d", path, len(contents[path]), entry.Size)
			}
		}
	})
}

// FuzzChanges: whatever an engine says was changed, nothing outside of the
// container's root is asked for.
func FuzzChanges(ff *testing.F) {
	ff.Add("/a\n/a/b\n/c", "102")
	ff.Add("/../etc\nrelative\n/", "000")
	ff.Fuzz(func(t *testing.T, paths, kinds string) {
		e := &engine{archives: map[string][]byte{}}
		for i, p := range strings.Split(paths, "\n") {
			kind := archive.Modified
			if i < len(kinds) {
				kind = archive.ChangeKind(kinds[i] - '0')
			}
			e.changes = append(e.changes, archive.Change{Path: p, Kind: kind})
		}
		c := archive.New(archive.Options{Source: e, Container: "c", Sink: newStore(), UnitID: unitID})
		defer c.Close()
		if err := c.Precopy(t.Context()); err != nil {
			t.Fatal(err)
		}
		for _, p := range e.asked {
			if p != "/." && catalog.CheckPath(strings.TrimPrefix(p, "/")) != nil {
				t.Errorf("asked for %q", p)
			}
		}
	})
}
