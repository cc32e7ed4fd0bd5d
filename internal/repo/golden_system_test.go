package repo_test

import (
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"lifeboat/internal/archive"
	"lifeboat/internal/catalog"
	"lifeboat/internal/cut"
	"lifeboat/internal/dr"
	"lifeboat/internal/layer"
	"lifeboat/internal/repo"
	"lifeboat/internal/tree"
	"lifeboat/lab/treecmp"
)

// goldenSystem is the system of the stored repository that has trees and images
// as package capture writes them; the others hold bare units.
const goldenSystem = dr.System("web")

// goldenTree is one tree of it; Saved is what the independent walker saw when it
// was captured.
type goldenTree struct {
	Key      string `json:"key"`
	Saved    string `json:"saved"`
	Overlay  bool   `json:"overlay,omitempty"`
	Degraded string `json:"degraded,omitempty"`
}

// goldenImages are archives of engines, with the images in them.
var goldenImages = map[string]layer.Digest{
	"docker-28-overlay2":   "sha256:4a97e1f975f11df61b59ef1688179055693f55d706a595c7c16f2a4e9ba8c237",
	"docker-28-containerd": "sha256:80aaff5b89f559559208cc4ed13a45ab0728231c45d870f0db955e5cc85d60b8",
}

// furnishGolden makes one of everything that a catalog has a word for. It
// compresses well, so that what is stored stays small.
func furnishGolden(root string, overlay bool) error {
	p := func(name string) string { return filepath.Join(root, name) }
	database := append([]byte("SQLite format 3\x00"), text(3, 80*32<<10)...) // 80 pieces: an indirect content list
	at := time.Unix(-1234567, 890_123_456)
	errs := []error{
		os.MkdirAll(p("dir/sub\xff\n"), 0o755), os.WriteFile(p("empty"), nil, 0o600), os.WriteFile(p("small"), text(1, 900), 0o4755),
		os.WriteFile(p("app.db"), database, 0o640), os.WriteFile(p("dir/large"), text(5, 3<<20), 0o644), sparse(p("dir/sparse")),
		os.Link(p("small"), p("dir/sub\xff\n/linked")), os.Symlink("../nowhere\xfe", p("dir/symlink")),
		unix.Mknod(p("fifo"), unix.S_IFIFO|0o600, 0), unix.Mknod(p("socket"), unix.S_IFSOCK|0o600, 0),
		unix.Mknod(p("char"), unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))), unix.Mknod(p("block"), unix.S_IFBLK|0o600, int(unix.Mkdev(7, 9))),
		unix.Setxattr(p("small"), "user.note", []byte("value\x00\xff"), 0), unix.Setxattr(p("dir"), "trusted.of", []byte("root"), 0),
		os.Lchown(p("dir/symlink"), 12, 34), os.Chown(p("empty"), 1000, 1001), os.Chtimes(p("empty"), at, at), os.Chmod(root, 0o1777),
	}
	if overlay {
		errs = append(errs, unix.Mknod(p("dir/deleted"), unix.S_IFCHR, 0), os.Mkdir(p("opaque"), 0o700), unix.Setxattr(p("opaque"), "trusted.overlay.opaque", []byte("y"), 0))
	}
	return errors.Join(errs...)
}

func sparse(name string) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(text(7, 5000), 1<<20)
	return errors.Join(err, f.Truncate(3<<20), f.Close())
}

// takeGoldenSystem takes a snapshot of the system, as package capture does, and
// saves beside the repository what was captured.
func takeGoldenSystem(t *testing.T, r *repo.Repo, facts *goldenFacts, number int) *repo.Snapshot {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	o := repo.WriterOptions{System: goldenSystem}
	if p, err := r.Find(t.Context(), goldenSystem, ""); err == nil {
		o.Parent = p
	}
	w, err := r.NewWriter(t.Context(), o)
	must(err)
	defer w.Close()
	root := &dr.Root{
		Site: "main", Kind: dr.KindCurrent, Consistency: dr.ConsistentCrash, Created: time.Now(),
		Engine: dr.EngineInfo{Name: "golden", Version: "28.0", StorageDriver: "overlay2"},
		Containers: []dr.Container{{
			Name: "web-1", State: "running", Config: []byte(`{"Image":"web:1","Env":["A=b"]}`), HostConfig: []byte(`{"Binds":["data:/data"]}`), Layer: "layer:web-1",
		}},
		Volumes:  []dr.Volume{{Name: "data", Driver: "local"}},
		Networks: []dr.Network{{Name: "web", Spec: []byte(`{"Driver":"bridge"}`)}},
		Coverage: []dr.CoverageItem{{Object: "volume:data", Captured: true, Bytes: 1}},
	}
	for _, g := range []goldenTree{{Key: "volume:data"}, {Key: "layer:web-1", Overlay: true}, {Key: "bind:/etc/app.conf"}, {Key: "volume:degraded", Degraded: archive.Kept(false)}} {
		dir := filepath.Join(t.TempDir(), "tree")
		if strings.HasPrefix(g.Key, "bind:") {
			must(os.WriteFile(dir, text(uint64(number), 500), 0o640))
		} else {
			must(os.Mkdir(dir, 0o755))
			must(furnishGolden(dir, g.Overlay))
			must(os.WriteFile(filepath.Join(dir, "number"), fmt.Appendf(nil, "snapshot %d of %s", number, g.Key), 0o600))
		}
		saved, err := treecmp.Fingerprint(dir, treecmp.Options{})
		must(err)
		res := captureGolden(t, r, w, dir, g)
		res.Key, res.Degraded = g.Key, g.Degraded
		res.Kind = dr.TreeKind(g.Key[:strings.Index(g.Key, ":")])
		root.Trees = append(root.Trees, res)
		g.Saved = fmt.Sprintf("trees/%d-%d.json", number, len(root.Trees))
		must(os.MkdirAll(filepath.Join(golden, "trees"), 0o755))
		must(saved.Save(filepath.Join(golden, g.Saved)))
		tag := fmt.Sprintf("s.%s.%d", goldenSystem, number)
		facts.Trees[tag] = append(facts.Trees[tag], g)
	}
	cutter := cut.New(r.CutKey())
	for name, id := range goldenImages {
		root.Images = append(root.Images, imageGolden(t, w, cutter, name, id))
	}
	file, err := w.Put(t.Context(), []byte("services:\n  web:\n    image: web:1\n"))
	must(err)
	root.Files = []dr.ProjectFile{{Role: "compose", Path: "/srv/web/compose.yaml", Mode: 0o644, Content: []dr.UnitRef{file}}}
	s, err := w.Commit(t.Context(), root, repo.CommitInfo{FreezeMicros: 1500})
	must(err)
	return s
}

func captureGolden(t *testing.T, r *repo.Repo, w *repo.Writer, dir string, g goldenTree) dr.Tree {
	t.Helper()
	c, err := tree.NewCapture(tree.CaptureOptions{Root: dir, Key: g.Key, Overlay: g.Overlay, StateDir: t.TempDir(), CutKey: r.CutKey(), UnitID: r.UnitID, Sink: w})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	var res dr.Tree
	for _, pass := range []func(context.Context) error{
		c.Precopy, c.Secure, func(ctx context.Context) (err error) { res, err = c.Finish(ctx); return err },
	} {
		if err := pass(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	return res
}

func imageGolden(t *testing.T, w *repo.Writer, cutter *cut.Cutter, name string, id layer.Digest) dr.Image {
	t.Helper()
	f, err := os.Open(filepath.Join("..", "layer", "testdata", name+".tar.gz"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	got, err := layer.Capture(t.Context(), z, layer.CaptureOptions{Want: []layer.Digest{id}, Sink: w, Cutter: cutter, Platform: layer.Platform{OS: "linux", Arch: "amd64"}})
	if err != nil || got[0].Err != nil {
		t.Fatal(errors.Join(err, got[0].Err))
	}
	refs, err := layer.Encode(t.Context(), w, cutter, got[0].Record)
	if err != nil {
		t.Fatal(err)
	}
	return dr.Image{ID: string(id), Tags: []string{name + ":1"}, OS: "linux", Arch: "amd64", Record: refs}
}

// checkGoldenSystem restores each tree and compares it in full with what was
// saved, and gives each layer of each image back.
func checkGoldenSystem(t *testing.T, r *repo.Repo, s *repo.Snapshot, trees []goldenTree) {
	t.Helper()
	rd, err := r.NewReader(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	defer rd.Close()
	root, err := rd.Root(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(root.Trees) != len(trees) || len(root.Images) != len(goldenImages) || len(root.Containers) != 1 || len(root.Files) != 1 {
		t.Fatalf("%s: %+v", s.Tag, root)
	}
	for i, g := range trees {
		if root.Trees[i].Key != g.Key || root.Trees[i].Degraded != g.Degraded {
			t.Errorf("%s: tree %+v, want %+v", s.Tag, root.Trees[i], g)
		}
		cat, err := catalog.Open(t.Context(), rd, root.Trees[i].Catalog)
		if err != nil {
			t.Fatal(err)
		}
		dir := filepath.Join(t.TempDir(), "tree")
		_, err = tree.Apply(t.Context(), dir, nil, cat, rd, tree.ApplyOptions{Key: g.Key, StateDir: t.TempDir(), CutKey: r.CutKey(), UnitID: r.UnitID, Overlay: g.Overlay, NoSync: true})
		if err != nil {
			t.Fatalf("%s %s: %v", s.Tag, g.Key, err)
		}
		want, err := treecmp.Load(filepath.Join(golden, g.Saved))
		if err != nil {
			t.Fatal(err)
		}
		got, err := treecmp.Fingerprint(dir, treecmp.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if diff := treecmp.Report(treecmp.Compare(want, got, treecmp.Rules{}), 20); diff != "" {
			t.Errorf("%s %s is not what was captured:\n%s", s.Tag, g.Key, diff)
		}
	}
	for _, im := range root.Images {
		rec, err := layer.Decode(t.Context(), rd, im.Record)
		if err != nil {
			t.Fatal(err)
		}
		for i := range rec.Layers {
			l := &rec.Layers[i]
			sum := digest.SHA256.Digester()
			if err := layer.WriteLayer(t.Context(), rd, l, sum.Hash()); err != nil || sum.Digest().String() != string(l.DiffID) {
				t.Errorf("%s: layer %s came back as %s, %v", im.ID, l.DiffID, sum.Digest(), err)
			}
			if l.Blob != nil {
				if err := layer.WriteBlob(t.Context(), rd, l, io.Discard); err != nil {
					t.Errorf("%s: stored form of layer %s: %v", im.ID, l.DiffID, err)
				}
			}
		}
	}
	file, err := rd.Unit(t.Context(), root.Files[0].Content[0])
	if err != nil || !strings.Contains(string(file), "image: web:1") {
		t.Errorf("compose file %q, %v", file, err)
	}
}
