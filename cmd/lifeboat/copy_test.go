package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"filippo.io/age"
	"github.com/google/go-cmp/cmp"

	"lifeboat/internal/catalog"
	"lifeboat/internal/dr"
	"lifeboat/internal/kit"
	"lifeboat/internal/registry/registrytest"
	"lifeboat/internal/repo"
	"lifeboat/internal/store/ocistore"
)

// storeFiles takes a snapshot of a system whose volume "data" holds files.
func (p place) storeFiles(reg *registrytest.Registry, system dr.System, image string, files map[string]string) dr.SnapshotID {
	p.t.Helper()
	return p.storeTree(reg, system, image, files, dr.Tree{})
}

// storeHalf does the same of a volume into which a restore was cut off.
func (p place) storeHalf(reg *registrytest.Registry, system dr.System, files map[string]string) {
	p.t.Helper()
	p.storeTree(reg, system, "sha256:aa", files, dr.Tree{HalfRestored: []string{""}})
}

func (p place) storeTree(reg *registrytest.Registry, system dr.System, image string, files map[string]string, as dr.Tree) dr.SnapshotID {
	p.t.Helper()
	ctx := p.t.Context()
	st, err := ocistore.Open(ctx, reg.URL("dr"), reg.Options())
	if err != nil {
		p.t.Fatal(err)
	}
	raw, err := os.ReadFile(p.config().KeyFile)
	if err != nil {
		p.t.Fatal(err)
	}
	ids, err := age.ParseIdentities(strings.NewReader(string(raw)))
	if err != nil {
		p.t.Fatal(err)
	}
	key, err := repo.LoadOrCreateHostKey(p.path("host"))
	if err != nil {
		p.t.Fatal(err)
	}
	r, err := repo.Open(ctx, st, repo.OpenOptions{Identities: ids, Host: key, HostName: "main"})
	if err != nil {
		p.t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	w, err := r.NewWriter(ctx, repo.WriterOptions{System: system})
	if err != nil {
		p.t.Fatal(err)
	}
	defer w.Close()
	paths := []string{""}
	for name := range files {
		for dir := name; dir != ""; dir = catalog.Parent(dir) {
			if !slices.Contains(paths, dir) {
				paths = append(paths, dir)
			}
		}
	}
	slices.SortFunc(paths, catalog.ComparePaths)
	b := catalog.NewBuilder(w, r.CutKey(), r.UnitID)
	for _, name := range paths {
		e := catalog.Entry{Path: name, Type: catalog.Directory, Mode: 0o755, UID: uint32(os.Getuid()), GID: uint32(os.Getgid()), MtimeSec: 1000}
		if text, ok := files[name]; ok {
			ref, err := w.Put(ctx, []byte(text))
			if err != nil {
				p.t.Fatal(err)
			}
			e.Type, e.Mode, e.Size, e.Refs = catalog.File, 0o644, int64(len(text)), []catalog.Ref{{ID: ref.ID, Len: int64(ref.Len)}}
		}
		if err := b.Add(ctx, e); err != nil {
			p.t.Fatal(err)
		}
	}
	sum, err := b.Close(ctx)
	if err != nil {
		p.t.Fatal(err)
	}
	s, err := w.Commit(ctx, &dr.Root{
		Site: "main", Kind: dr.KindCurrent, Consistency: dr.ConsistentCrash, Created: time.Now(),
		Containers: []dr.Container{{Name: "web", State: "running", Image: image, Config: json.RawMessage(`{"Env":["PASSWORD=hunter2-` + image + `"]}`)}},
		Trees:      []dr.Tree{{Key: "volume:data", Kind: dr.TreeVolume, Catalog: sum.Table, Entries: sum.Entries, Bytes: sum.Bytes, Hash: sum.Hash, HalfRestored: as.HalfRestored}},
	}, repo.CommitInfo{})
	if err != nil {
		p.t.Fatal(err)
	}
	return s.ID
}

var (
	before = map[string]string{"a.txt": "one", "docs/2025/x.pdf": "x", "docs/2026/y.pdf": "y", "docs/2026/y.txt": "t", "gone/old": "old"}
	after  = map[string]string{"a.txt": "two and more", "docs/2025/x.pdf": "x", "docs/2026/y.pdf": "y", "docs/2026/y.txt": "t", "docs/2026/z.pdf": "zz"}
)

// newCopyPlace is a host with a repository of two snapshots.
func newCopyPlace(t *testing.T) (p place, reg *registrytest.Registry, one, two dr.SnapshotID) {
	t.Helper()
	reg, p = registrytest.Start(t), newPlace(t)
	p.run(0, "init", "--repo", reg.URL("dr"), "--fingerprint", reg.Fingerprint, "--site", "main", "--kit", p.path("kit.txt"))
	one = p.storeFiles(reg, "shop", "sha256:aa", before)
	two = p.storeFiles(reg, "shop", "sha256:bb", after)
	return p, reg, one, two
}

func TestDiffAndSingleFiles(t *testing.T) {
	t.Parallel()
	p, _, one, two := newCopyPlace(t)
	var d struct {
		A, B    dr.SnapshotID
		Objects []diffObject
		Files   []diffFile
		Totals  map[string]int64
	}
	p.do(0, &d, "diff", "shop@"+one.String(), "@latest")
	want := []diffFile{
		{Tree: "volume:data", Path: "a.txt", Change: "content", Type: "file", SizeA: 3, SizeB: 12, BytesNew: 12, BytesGone: 3},
		{Tree: "volume:data", Path: "docs/2026/z.pdf", Change: "added", Type: "file", SizeA: -1, SizeB: 2, BytesNew: 2},
		{Tree: "volume:data", Path: "gone", Change: "removed", Type: "directory", SizeB: -1},
		{Tree: "volume:data", Path: "gone/old", Change: "removed", Type: "file", SizeA: 3, SizeB: -1, BytesGone: 3},
	}
	if diff := cmp.Diff(want, d.Files); diff != "" || d.A != one || d.B != two {
		t.Errorf("%s", diff)
	}
	if diff := cmp.Diff(map[string]int64{"added": 1, "removed": 2, "content": 1, "metadata": 0, "bytes_added": 14, "bytes_removed": 6, "bytes_new": 14, "bytes_gone": 6}, d.Totals); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]diffObject{{Object: "container:web", Change: "changed", What: []string{"configuration", "image"}}}, d.Objects); diff != "" {
		t.Error(diff)
	}
	code, out, _ := call(p.env, "diff", "shop@#1", "@#2")
	if code != 0 || !strings.Contains(out, "+ volume:data:/docs/2026/z.pdf") || !strings.Contains(out, "C container:web") || strings.Contains(out, "hunter2") {
		t.Errorf("%d\n%s", code, out)
	}
	p.do(0, &d, "diff", "shop@#1", "shop@#2", "--volume", "data", "--path", "docs/**/*.pdf")
	if len(d.Files) != 1 || len(d.Objects) != 0 {
		t.Errorf("%+v", d.Files)
	}
	p.do(codeNotFound, &struct{}{}, "diff", "shop@#1", "@#2", "--volume", "nosuch")
	p.do(codeNotFound, &struct{}{}, "diff", "shop@#1", "@#9")

	var ls struct{ Entries []struct{ Path string } }
	p.do(0, &ls, "ls", "shop@#1", "--volume", "data", "--path", "**/*.pdf")
	if len(ls.Entries) != 2 {
		t.Errorf("%+v", ls)
	}
	p.do(codeNotFound, &struct{}{}, "ls", "shop", "--volume", "data", "--path", "*.pdf")
	p.do(codeUsage, &struct{}{}, "ls", "shop", "--volume", "data", "--path", "[")

	for _, c := range []struct {
		path string
		want []string
	}{
		{"docs/2026/y.pdf", []string{"docs/2026/y.pdf"}},
		{"docs/20*/*.pdf", []string{"docs/2025/x.pdf", "docs/2026/y.pdf"}},
		{"**/*.txt", []string{"a.txt", "docs/2026/y.txt"}},
		{"do*", []string{"docs/2025/x.pdf", "docs/2026/y.pdf", "docs/2026/y.txt"}},
	} {
		to := filepath.Join(t.TempDir(), "out")
		p.do(0, &struct{}{}, "restore", "shop@#1", "--volume", "data", "--path", c.path, "--to", to)
		mustHoldFiles(t, to, before, c.want)
	}
	p.do(codeNotFound, &struct{}{}, "restore", "shop", "--volume", "data", "--path", "*.jpg", "--to", filepath.Join(t.TempDir(), "out"))
}

// mustHoldFiles compares the files below a directory.
func mustHoldFiles(t *testing.T, dir string, from map[string]string, want []string) {
	t.Helper()
	got := map[string]string{}
	err := filepath.WalkDir(dir, func(name string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		raw, err := os.ReadFile(name)
		rel, _ := filepath.Rel(dir, name)
		got[rel] = string(raw)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	wanted := map[string]string{}
	for _, name := range want {
		wanted[name] = from[name]
	}
	if diff := cmp.Diff(wanted, got); diff != "" {
		t.Error(diff)
	}
}

// TestMirror: a mirror is made, completed, named, read when the registry is gone,
// carried by the kit, and takes its place.
func TestMirror(t *testing.T) {
	t.Parallel()
	p, reg, _, two := newCopyPlace(t)
	second := registrytest.Start(t)
	var ans copyAnswer
	to := []string{"--to", second.URL("mirror"), "--to-fingerprint", second.Fingerprint}
	p.do(codeNotFound, &struct{}{}, append([]string{"copy"}, to...)...)
	p.do(codeUsage, &struct{}{}, "copy", "--to", reg.URL("dr"))
	p.do(0, &ans, append([]string{"copy", "--mirror", "--dry-run"}, to...)...)
	if len(ans.Snapshots) != 2 || ans.Snapshots[0].State != "due" || ans.Sent == 0 {
		t.Errorf("%+v", ans)
	}
	p.do(0, &ans, append([]string{"copy", "--mirror"}, to...)...)
	if ans.Snapshots[1].State != "copied" || !ans.Mirror || ans.Packs != 2 {
		t.Errorf("%+v", ans)
	}
	p.storeFiles(reg, "mail", "sha256:cc", before)
	p.do(0, &ans, append([]string{"copy"}, to...)...) // it is known to be a mirror now
	if ans.Packs != 1 || len(ans.Snapshots) != 3 {
		t.Errorf("%+v", ans)
	}
	if code, out, errs := call(p.env, append([]string{"copy"}, to...)...); code != 0 || !strings.Contains(out, "3 snapshots were there already") {
		t.Errorf("%d\n%s%s", code, out, errs)
	}
	if other := registrytest.Start(t); true {
		q := newPlace(t)
		q.run(0, "init", "--repo", other.URL("x"), "--fingerprint", other.Fingerprint, "--kit", q.path("kit.txt"))
		p.do(codeUsage, &struct{}{}, "copy", "--mirror", "--to", other.URL("x"), "--to-fingerprint", other.Fingerprint)
	}

	cfg, err := os.ReadFile(p.env["LIFEBOAT_CONFIG"])
	if err != nil {
		t.Fatal(err)
	}
	p.write("etc/lifeboat.yaml", string(cfg)+"\nmirrors: [{repo: \""+second.URL("mirror")+"\", fingerprint: \""+second.Fingerprint+"\"}]\n")
	if errs := p.do(0, &struct{}{}, "kit", "--out", p.path("kit2.txt")); !strings.Contains(errs, "copy --mirror --to "+second.URL("mirror")) {
		t.Errorf("%s", errs)
	}
	k, err := kit.ReadFile(p.path("kit2.txt"))
	if err != nil || len(k.Mirrors) != 1 || k.Mirrors[0].TLSFingerprint != second.Fingerprint {
		t.Errorf("%+v, %v", k.Mirrors, err)
	}
	if errs := p.do(0, &ans, "copy", "--mirror", "--to", second.URL("mirror")); ans.Records != 1 { // the kit's key; login and certificate of the configuration
		t.Errorf("%+v\n%s", ans, errs)
	}
	reg.Stop(t)

	out := filepath.Join(t.TempDir(), "out")
	var restored struct{ Snapshot dr.SnapshotID }
	errs := p.do(0, &restored, "restore", "shop", "--volume", "data", "--to", out)
	if restored.Snapshot != two || !strings.Contains(errs, "going on with the others") {
		t.Errorf("%s: %s", restored.Snapshot, errs)
	}
	mustHoldFiles(t, out, after, []string{"a.txt", "docs/2025/x.pdf", "docs/2026/y.pdf", "docs/2026/y.txt", "docs/2026/z.pdf"})
	if code, _, errs := call(p.env, "verify"); code != codeFailed || !strings.Contains(errs, "--repo "+second.URL("mirror")) {
		t.Errorf("who looks after a registry must see that it is gone: %d\n%s", code, errs)
	}
	q := newPlace(t) // an empty host with the kit
	var listed recoverAnswer
	q.do(0, &listed, "recover", "--kit", p.path("kit2.txt"), "--list")
	if len(listed.Systems) != 2 {
		t.Errorf("%+v", listed)
	}
	q.do(0, &listed, "recover", "--kit", p.path("kit2.txt"), "--list", "--repo", second.URL("mirror"))
	var checked struct{ Problems []string }
	p.do(0, &checked, "verify", "--repo", second.URL("mirror")) // it has taken the place
	if len(checked.Problems) != 0 {
		t.Errorf("%v", checked.Problems)
	}
}

// TestCopyOther: to a repository with keys of its own.
func TestCopyOther(t *testing.T) {
	t.Parallel()
	p, _, _, two := newCopyPlace(t)
	partner, q := registrytest.Start(t), newPlace(t)
	q.run(0, "init", "--repo", partner.URL("dr"), "--fingerprint", partner.Fingerprint, "--site", "partner", "--kit", q.path("kit.txt"))
	to := []string{"copy", "shop", "--to", partner.URL("dr"), "--to-fingerprint", partner.Fingerprint}
	p.do(codeWrongKey, &struct{}{}, to...)
	to = append(to, "--to-key-file", q.config().KeyFile)
	var ans copyAnswer
	p.do(0, &ans, append(to, "--snapshot", two.String())...)
	if len(ans.Snapshots) != 1 || ans.Snapshots[0].As == nil || ans.Mirror {
		t.Fatalf("%+v", ans)
	}
	p.do(0, &ans, to...)
	if len(ans.Snapshots) != 2 || ans.Snapshots[0].State != "older" || ans.Snapshots[1].State != "there" || ans.Sent != 0 {
		t.Errorf("%+v", ans)
	}
	out := filepath.Join(t.TempDir(), "out")
	q.do(0, &struct{}{}, "restore", "shop@"+ans.Snapshots[1].As.String(), "--volume", "data", "--path", "a.txt", "--to", out)
	mustHoldFiles(t, out, after, []string{"a.txt"})
	q.do(0, &struct{}{}, "verify")
}

// TestCopyKeepsItsOrder: retention at the copy is its own, what was forgotten there
// does not come back, and nothing older becomes the newest, whatever is named.
func TestCopyKeepsItsOrder(t *testing.T) {
	t.Parallel()
	p, reg, one, two := newCopyPlace(t)
	partner, q := registrytest.Start(t), newPlace(t)
	q.run(0, "init", "--repo", partner.URL("dr"), "--fingerprint", partner.Fingerprint, "--site", "partner", "--kit", q.path("kit.txt"))
	to := []string{"copy", "shop", "--to", partner.URL("dr"), "--to-fingerprint", partner.Fingerprint, "--to-key-file", q.config().KeyFile}
	states := func(want ...string) {
		t.Helper()
		last := want[len(want)-1:]
		for _, c := range []struct{ args, want []string }{{[]string{"--dry-run"}, want}, {nil, want}, {[]string{"--snapshot", "latest"}, last}} {
			var ans copyAnswer
			p.do(0, &ans, append(to, c.args...)...)
			var got []string
			for _, s := range ans.Snapshots {
				got = append(got, s.State)
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("%v: %s", c.args, diff)
			}
		}
	}
	p.do(0, &copyAnswer{}, to...)
	q.do(0, &forgetAnswer{}, "forget", "shop", "--keep-last", "1")
	states("older", "there")
	if code, out, _ := call(p.env, to...); code != 0 || !strings.Contains(out, "nothing new: 1 snapshots were there already") || !strings.Contains(out, "1 are older") {
		t.Errorf("%d\n%s", code, out)
	}
	for _, ref := range []string{"#1", one.String()} {
		for _, more := range [][]string{nil, {"--dry-run"}} {
			code, out, errs := call(p.env, append(append(to, "--snapshot", ref), more...)...)
			if code != codeUsage || out != "" || !strings.Contains(errs, "#2, which is newer") || !strings.Contains(errs, "restore shop@"+one.Short()) || !strings.Contains(errs, "nothing was copied") {
				t.Errorf("%s: %d\n%s%s", ref, code, out, errs)
			}
		}
	}
	var listed struct{ Snapshots []struct{ Number dr.Number } }
	q.do(0, &listed, "snapshots", "shop")
	if len(listed.Snapshots) != 1 {
		t.Errorf("%+v", listed)
	}
	p.do(0, &copyAnswer{}, append(to, "--snapshot", two.String())...) // it is there

	three := p.storeFiles(reg, "shop", "sha256:cc", before)
	var ans copyAnswer
	p.do(0, &ans, to...)
	if s := ans.Snapshots; s[0].State != "older" || s[1].State != "there" || s[2].State != "copied" || s[2].Snapshot != three {
		t.Errorf("%+v", ans)
	}
	q.do(0, &forgetAnswer{}, "forget", "shop", "--keep-last", "1")
	states("older", "older", "there")
	out := filepath.Join(t.TempDir(), "out")
	q.do(0, &struct{}{}, "restore", "shop", "--volume", "data", "--to", out)
	mustHoldFiles(t, out, before, []string{"a.txt", "docs/2025/x.pdf", "docs/2026/y.pdf", "docs/2026/y.txt", "gone/old"})
}
