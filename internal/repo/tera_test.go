package repo_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"lifeboat/internal/casetest"
	"lifeboat/internal/catalog"
	"lifeboat/internal/dr"
	"lifeboat/internal/pack"
	"lifeboat/internal/repo"
	"lifeboat/internal/repo/repotest"
	"lifeboat/internal/retain"
	"lifeboat/internal/seal"
	"lifeboat/internal/store"
)

// shelf is a store on disk in which packs are only said to be: it has each pack
// that it is asked for, all of it zeros. Memory is no more than a list of tags.
type shelf struct {
	dir  string
	mu   sync.Mutex
	tags map[string]digest.Digest
	kind map[digest.Digest]string // media types of manifests
}

func newShelf(dir string) *shelf {
	return &shelf{dir: dir, tags: map[string]digest.Digest{}, kind: map[digest.Digest]string{}}
}

func (s *shelf) path(d digest.Digest) string { return filepath.Join(s.dir, d.Encoded()) }

func (s *shelf) PutBlob(_ context.Context, d digest.Digest, size int64, open func() (io.ReadCloser, error)) (int64, error) {
	r, err := open()
	if err != nil {
		return 0, err
	}
	defer r.Close()
	f, err := os.Create(s.path(d))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	_, err = io.Copy(f, r)
	return size, err
}

func (s *shelf) HasBlob(context.Context, digest.Digest) (bool, error) { return true, nil }

func (s *shelf) GetBlob(_ context.Context, d digest.Digest, size, off, length int64) (io.ReadCloser, error) {
	n, err := store.SpanOf(size, off, length)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(s.path(d))
	if err != nil {
		return io.NopCloser(io.LimitReader(zeros{}, n)), nil
	}
	return struct {
		io.Reader
		io.Closer
	}{io.NewSectionReader(f, off, n), f}, nil
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func (s *shelf) PutManifest(_ context.Context, tag, media string, body []byte) (digest.Digest, error) {
	d := digest.FromBytes(body)
	s.mu.Lock()
	defer s.mu.Unlock()
	if have, ok := s.tags[tag]; ok && have != d {
		return "", store.ErrTagTaken
	}
	s.tags[tag], s.kind[d] = d, media
	return d, os.WriteFile(s.path(d), body, 0o600)
}

func (s *shelf) GetManifest(ctx context.Context, ref string) (store.Manifest, error) {
	d := digest.Digest(ref)
	if d.Validate() != nil {
		var err error
		if d, err = s.ResolveTag(ctx, ref); err != nil {
			return store.Manifest{}, err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	media, ok := s.kind[d]
	if !ok {
		return store.Manifest{}, store.ErrNotFound
	}
	body, err := os.ReadFile(s.path(d))
	return store.Manifest{MediaType: media, Digest: d, Body: body}, err
}

func (s *shelf) ResolveTag(_ context.Context, tag string) (digest.Digest, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	d, ok := s.tags[tag]
	if !ok {
		return "", store.ErrNotFound
	}
	return d, nil
}

func (s *shelf) Tags(_ context.Context, prefix string) (out []string, _ error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for t := range s.tags {
		if strings.HasPrefix(t, prefix) {
			out = append(out, t)
		}
	}
	slices.Sort(out)
	return out, nil
}

func (s *shelf) DeleteTag(_ context.Context, tag string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.tags, tag)
	return nil
}

func (s *shelf) DeleteManifest(_ context.Context, d digest.Digest) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.kind, d)
	return nil
}

func (s *shelf) Capabilities(context.Context) (store.Capabilities, error) {
	return store.Capabilities{ImmutableTags: true, CheckedDelete: true}, nil
}

// tera is a system of a terabyte, all of it made up: packs of 8 MiB of units of
// one size, and a tree of files of a gigabyte.
type tera struct {
	t     *testing.T
	bed   *repotest.Bed
	shelf *shelf
	unit  int
}

const (
	teraPacks = 1 << 40 / (8 << 20)
	teraFiles = 1 << 10
)

// id is that of unit number i. Ids of units that have content are keyed hashes and
// as random.
func (x *tera) id(i int) (id dr.UnitID) {
	var n [8]byte
	binary.LittleEndian.PutUint64(n[:], uint64(i))
	return sha256.Sum256(n[:])
}

func (x *tera) perPack() int { return 8 << 20 / x.unit }

// pack makes up pack number p. Units below the size of a group share one.
func (x *tera) pack(p int) pack.Info {
	info := pack.Info{Digest: sha256.Sum256(fmt.Append(nil, "pack", p)), Header: pack.Header{Generation: seal.Generation(1)}}
	at := uint32(pack.HeaderSize)
	for u := 0; u < x.perPack(); {
		g := pack.GroupInfo{Offset: at}
		for ; u < x.perPack() && int(g.Plain) < pack.GroupSize; u++ {
			g.Units = append(g.Units, dr.UnitRef{ID: x.id(p*x.perPack() + u), Len: uint32(x.unit)})
			g.Plain += uint32(x.unit)
		}
		g.Sealed = g.Plain + pack.GroupOverhead
		at += g.Sealed
		info.Groups = append(info.Groups, g)
	}
	info.Size = int64(at)
	return info
}

func (x *tera) open() *repo.Repo {
	x.t.Helper()
	r, err := repo.Open(x.t.Context(), x.shelf, x.bed.Options("main"))
	if err != nil {
		x.t.Fatal(err)
	}
	return r
}

// first takes the first snapshot.
func (x *tera) first() error {
	ctx := x.t.Context()
	r := x.open()
	defer func() { _ = r.Close() }()
	w, err := r.NewWriter(ctx, repo.WriterOptions{System: "shop"})
	if err != nil {
		return err
	}
	defer w.Close()
	step := min(2<<30/(8<<20), 128<<10/x.perPack()) // as often as a writer pushes one
	for p := 0; p < teraPacks; p += step {
		var list []pack.Info
		for k := range min(step, teraPacks-p) {
			list = append(list, x.pack(p+k))
		}
		if err := w.PushMade(ctx, list); err != nil {
			return err
		}
	}
	sum, err := x.catalog(ctx, r, w)
	if err != nil {
		return err
	}
	_, err = w.Commit(ctx, x.root(sum), repo.CommitInfo{})
	return err
}

func (x *tera) root(sum catalog.Summary) *dr.Root {
	return &dr.Root{
		Site: "main", Kind: dr.KindCurrent, Consistency: dr.ConsistentCrash, Created: time.Now(),
		Trees: []dr.Tree{{Key: "volume:data", Kind: dr.TreeVolume, Catalog: sum.Table, Entries: sum.Entries, Bytes: sum.Bytes, Hash: sum.Hash}},
	}
}

func (x *tera) catalog(ctx context.Context, r *repo.Repo, w *repo.Writer) (catalog.Summary, error) {
	b := catalog.NewBuilder(w, r.CutKey(), r.UnitID)
	if err := b.Add(ctx, catalog.Entry{Type: catalog.Directory, Mode: 0o755}); err != nil {
		return catalog.Summary{}, err
	}
	var l catalog.ListBuilder
	per := teraPacks * x.perPack() / teraFiles
	for f := range teraFiles {
		for i := range per {
			if err := l.Add(ctx, w, catalog.Ref{ID: x.id(f*per + i), Len: int64(x.unit)}); err != nil {
				return catalog.Summary{}, err
			}
		}
		e := catalog.Entry{Path: fmt.Sprintf("file-%05d", f), Type: catalog.File, Mode: 0o644}
		if err := l.Finish(ctx, w, &e); err != nil {
			return catalog.Summary{}, err
		}
		if err := b.Add(ctx, e); err != nil {
			return catalog.Summary{}, err
		}
	}
	return b.Close(ctx)
}

// again takes another snapshot: every unit is asked for, as when a statcache says
// that nothing has changed, and 10,000 are new.
func (x *tera) again() error {
	ctx := x.t.Context()
	r := x.open()
	defer func() { _ = r.Close() }()
	parent, err := r.Find(ctx, "shop", "")
	if err != nil {
		return err
	}
	w, err := r.NewWriter(ctx, repo.WriterOptions{System: "shop", Parent: parent})
	if err != nil {
		return err
	}
	defer w.Close()
	refs := make([]dr.UnitRef, 0, 4096)
	for i := range teraPacks * x.perPack() {
		refs = append(refs, dr.UnitRef{ID: x.id(i), Len: uint32(x.unit)})
		if len(refs) < cap(refs) {
			continue
		}
		if !w.HaveAll(refs) {
			return fmt.Errorf("units before number %d are not there", i)
		}
		refs = refs[:0]
	}
	for i := range 10_000 {
		if _, err := w.Put(ctx, noise(uint64(i), 5000)); err != nil {
			return err
		}
	}
	sum, err := x.catalog(ctx, r, w)
	if err != nil {
		return err
	}
	_, err = w.Commit(ctx, x.root(sum), repo.CommitInfo{})
	return err
}

// restore goes through the catalog of the newest snapshot and finds where each
// unit lies, as a restore does. What comes after that is the same for any size.
func (x *tera) restore() error {
	ctx := x.t.Context()
	r := x.open()
	defer func() { _ = r.Close() }()
	s, err := r.Find(ctx, "shop", "")
	if err != nil {
		return err
	}
	rd, err := r.NewReader(ctx, s)
	if err != nil {
		return err
	}
	defer rd.Close()
	root, err := rd.Root(ctx)
	if err != nil {
		return err
	}
	cat, err := catalog.Open(ctx, rd, root.Trees[0].Catalog)
	if err != nil {
		return err
	}
	window := make([]dr.UnitRef, 0, 4096)
	found := 0
	look := func() error {
		n, err := rd.Locate(ctx, window)
		found += n
		window = window[:0]
		return err
	}
	for {
		e, err := cat.Next(ctx)
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		err = cat.Content(ctx, &e, func(_ int64, ref catalog.Ref) error {
			window = append(window, ref.Unit())
			if len(window) < cap(window) {
				return nil
			}
			return look()
		})
		if err != nil {
			return err
		}
	}
	if err := look(); err != nil {
		return err
	}
	if want := teraPacks * x.perPack(); found != want {
		return fmt.Errorf("%d of %d units were found", found, want)
	}
	return nil
}

func (x *tera) check() error {
	r := x.open()
	defer func() { _ = r.Close() }()
	problems, err := r.Check(x.t.Context())
	if err == nil && len(problems) > 0 {
		err = fmt.Errorf("problems: %v", problems)
	}
	return err
}

func (x *tera) forget() error {
	r := x.open()
	defer func() { _ = r.Close() }()
	_, err := forget(x.t.Context(), r, retain.Policy{Last: 1})
	return err
}

func (x *tera) collect() error {
	r := x.open()
	defer func() { _ = r.Close() }()
	c, err := r.Collect(x.t.Context(), repo.CollectOptions{Compact: &repo.CompactOptions{MaxUnused: 0.25, MaxRepack: 16 << 30}})
	if err == nil && (len(c.Problems) > 0 || len(c.Compacted.Problems) > 0) {
		err = fmt.Errorf("problems: %v, %v", c.Problems, c.Compacted.Problems)
	}
	return err
}

// mostMemory is the most memory that this process had resident since it was asked last,
// in bytes.
func mostMemory(t *testing.T) int64 {
	t.Helper()
	raw, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	var kb int64
	_, after, _ := bytes.Cut(raw, []byte("VmHWM:"))
	if _, err := fmt.Sscan(string(after), &kb); err != nil {
		t.Fatal(err)
	}
	debug.FreeOSMemory()
	if err := os.WriteFile("/proc/self/clear_refs", []byte("5"), 0); err != nil { // begins anew
		t.Fatal(err)
	}
	return kb << 10
}

const teraEnv = "LIFEBOAT_TEST_TERA"

// A repository of a terabyte takes at most 150 MB of memory, whatever is done. The
// packs are made up, so that nothing is read or written but what says where things
// are; it runs in a process of its own, with the collector set as the program has
// it. Pieces of 1 MiB are those of large files, pieces of 32 KiB those of databases.
func TestTera(t *testing.T) {
	if size := os.Getenv(teraEnv); size != "" {
		runTera(t, size)
		return
	}
	t.Parallel()
	sizes := []string{"1048576"}
	if casetest.All() {
		sizes = append(sizes, "32768")
	}
	program := withoutRaceDetector(t)
	for _, size := range sizes {
		cmd := exec.CommandContext(t.Context(), program, "-test.run=^TestTera$", "-test.v")
		cmd.Env = append(os.Environ(), teraEnv+"="+size, "GOGC=40", "GOMEMLIMIT=96MiB")
		out, err := cmd.CombinedOutput()
		t.Logf("%s", out)
		if err != nil {
			t.Errorf("units of %s bytes: %v", size, err)
		}
	}
}

// withoutRaceDetector is this test program, built without the race detector, which
// takes several times the memory.
func withoutRaceDetector(t *testing.T) string {
	t.Helper()
	info, ok := debug.ReadBuildInfo()
	if !ok || !slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"}) {
		return os.Args[0]
	}
	program := filepath.Join(t.TempDir(), "repo.test")
	if out, err := exec.CommandContext(t.Context(), "go", "test", "-c", "-o", program, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return program
}

func runTera(t *testing.T, size string) {
	t.Setenv("TMPDIR", "/var/tmp") // gigabytes, and on a disk as anywhere else
	x := &tera{t: t, bed: repotest.NewBed(t), shelf: newShelf(t.TempDir())}
	if _, err := fmt.Sscan(size, &x.unit); err != nil {
		t.Fatal(err)
	}
	r, err := repo.Create(t.Context(), x.shelf, repo.CreateOptions{
		Local: repo.Local{Location: "mem://test", CacheDir: t.TempDir()}, Recipients: []seal.Recipient{x.bed.Recipient},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d units of %d bytes in %d packs, %d files", teraPacks*x.perPack(), x.unit, teraPacks, teraFiles)
	for _, step := range []struct {
		name string
		do   func() error
	}{{"first snapshot", x.first}, {"another", x.again}, {"restore", x.restore}, {"check", x.check}, {"forget", x.forget}, {"gc", x.collect}} {
		mostMemory(t)
		began := time.Now()
		if err := step.do(); err != nil {
			t.Fatalf("%s: %v", step.name, err)
		}
		most := mostMemory(t)
		t.Logf("%-14s %4d MB at most, %.1f s", step.name, most/1e6, time.Since(began).Seconds())
		if most > 150e6 {
			t.Errorf("%s took %d bytes of memory", step.name, most)
		}
	}
}
