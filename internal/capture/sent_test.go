package capture_test

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"lifeboat/internal/cut"
	"lifeboat/internal/dr"
	"lifeboat/internal/layer"
	"lifeboat/internal/repo"
	"lifeboat/internal/repo/repotest"
	"lifeboat/internal/store"
	"lifeboat/internal/tree"
)

// What these tests bound is bytes: of blobs and manifests that went to the
// registry, whatever they were for.

// scale counts what goes to a store.
type scale struct {
	store.Store
	sent atomic.Int64
}

func (s *scale) PutBlob(ctx context.Context, d digest.Digest, size int64, open func() (io.ReadCloser, error)) (int64, error) {
	n, err := s.Store.PutBlob(ctx, d, size, open)
	s.sent.Add(n)
	return n, err
}

func (s *scale) PutManifest(ctx context.Context, tag, media string, body []byte) (digest.Digest, error) {
	s.sent.Add(int64(len(body)))
	return s.Store.PutManifest(ctx, tag, media, body)
}

// depot is a repository that weighs what its host sends.
type depot struct {
	t     testing.TB
	scale *scale
	repo  *repo.Repo
	state string
}

func newDepot(t testing.TB) *depot {
	t.Helper()
	b := repotest.NewBed(t)
	s := &scale{Store: b.Store}
	return &depot{t: t, scale: s, repo: b.HostOn("main", s), state: t.TempDir()}
}

// take takes a snapshot of directories, by tree key, and of an image of layers,
// if there are any, and returns it with the bytes that were sent for it.
func (d *depot) take(system dr.System, parent *repo.Snapshot, dirs map[string]string, layers ...[]byte) (*repo.Snapshot, int64) {
	d.t.Helper()
	before := d.scale.sent.Load()
	s, err := d.capture(system, parent, dirs, layers)
	if err != nil {
		d.t.Fatal(err)
	}
	return s, d.scale.sent.Load() - before
}

func (d *depot) capture(system dr.System, parent *repo.Snapshot, dirs map[string]string, layers [][]byte) (*repo.Snapshot, error) {
	ctx := d.t.Context()
	w, err := d.repo.NewWriter(ctx, repo.WriterOptions{System: system, Parent: parent})
	if err != nil {
		return nil, err
	}
	defer w.Close()
	root := &dr.Root{Site: "main", Kind: dr.KindCurrent, Consistency: dr.ConsistentStopped, Created: time.Now()}
	if len(layers) > 0 {
		im, err := image(ctx, d, w, layers)
		if err != nil {
			return nil, err
		}
		root.Images = append(root.Images, im)
	}
	for key, dir := range dirs {
		c, err := tree.NewCapture(tree.CaptureOptions{
			Root: dir, Key: key, Overlay: strings.HasPrefix(key, "layer:"), StateDir: d.state, CutKey: d.repo.CutKey(), UnitID: d.repo.UnitID, Sink: w,
		})
		if err != nil {
			return nil, err
		}
		defer c.Close()
		if err := c.Precopy(ctx); err != nil {
			return nil, err
		}
		if err := c.Secure(ctx); err != nil {
			return nil, err
		}
		t, err := c.Finish(ctx)
		if err != nil {
			return nil, err
		}
		t.Key, t.Kind = key, dr.TreeVolume
		root.Trees = append(root.Trees, t)
	}
	return w.Commit(ctx, root, repo.CommitInfo{})
}

// noise is incompressible, the same for each seed.
func noise(seed uint64, n int) []byte {
	b := make([]byte, n)
	var key [32]byte
	copy(key[:], fmt.Append(nil, seed))
	_, _ = rand.NewChaCha8(key).Read(b)
	return b
}

func put(t testing.TB, path string, data []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
}

// site is a tree like that of a web application: n files of 1 to 7 KiB that do
// not shrink.
func site(t testing.TB, n int) (dir string, name func(i int) string) {
	dir = t.TempDir()
	name = func(i int) string {
		return filepath.Join(dir, fmt.Sprintf("mod%02d", i/400), fmt.Sprintf("classes%d", i/20%20), fmt.Sprintf("controller_%d.php", i))
	}
	for i := range n {
		put(t, name(i), noise(uint64(i), 1024+i%7*1024))
	}
	return dir, name
}

// 300 files that lie scattered among 30,000 send about their own size: units are
// single files, and of the catalog only what lists them is sent again.
func TestScatteredFiles(t *testing.T) {
	t.Parallel()
	d := newDepot(t)
	dir, name := site(t, 30_000)
	dirs := map[string]string{"volume:www": dir}
	s, first := d.take("shop", nil, dirs)
	s, same := d.take("shop", s, dirs)
	own := 0
	for i := range 300 {
		data := noise(uint64(1_000_000+i), 1024+i%7*1024)
		own += len(data)
		put(t, name(i*100+i%97), data)
	}
	s, scattered := d.take("shop", s, dirs)
	put(t, name(15_000), noise(7, 1024))
	s, one := d.take("shop", s, dirs)
	if err := os.Remove(name(20_000)); err != nil {
		t.Fatal(err)
	}
	put(t, filepath.Join(filepath.Dir(name(10_000)), "added"), noise(8, 1024))
	_, moved := d.take("shop", s, dirs)
	t.Logf("first %d bytes, unchanged %d, 300 files of %d together %d, one of 1024 %d, one added and one gone %d", first, same, own, scattered, one, moved)
	if same > 16<<10 {
		t.Errorf("nothing changed, and %d bytes were sent", same)
	}
	if scattered > int64(own+own*2/5) {
		t.Errorf("300 files of %d bytes sent %d", own, scattered)
	}
	if one > 32<<10 || moved > 48<<10 {
		t.Errorf("one file changed: %d bytes sent; one added and one gone: %d", one, moved)
	}
}

// A database that touches 100 random pages of 16 KiB in a file of 240 MB sends at
// most three times the bytes of those pages.
func TestTouchedPages(t *testing.T) {
	t.Parallel()
	const size, page, pages = 240 << 20, 16 << 10, 100
	d := newDepot(t)
	dir := t.TempDir()
	table := filepath.Join(dir, "shop", "orders.ibd")
	put(t, table, noise(1, size))
	dirs := map[string]string{"volume:db": dir}
	s, first := d.take("shop", nil, dirs)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	f, err := os.OpenFile(table, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	for range pages {
		if _, err := f.WriteAt(noise(rnd.Uint64(), page), rnd.Int64N(size/page)*page); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	_, sent := d.take("shop", s, dirs)
	t.Logf("first %d bytes; %d bytes of pages sent %d, %.2f times", first, page*pages, sent, float64(sent)/page/pages)
	if sent > 3*page*pages {
		t.Errorf("%d bytes of pages sent %d", page*pages, sent)
	}
}

// software is the content of an image: packages of small files, and some large
// ones. What it gives for a path depends on the version of the package alone.
func software(version map[string]int) map[string][]byte {
	out := map[string][]byte{}
	for p := range 40 {
		name := fmt.Sprintf("lib%02d", p)
		seed := uint64(p*1000 + version[name]*1_000_000)
		for i := range 60 {
			out[fmt.Sprintf("usr/share/%s/module_%d.py", name, i)] = noise(seed+uint64(i), 500+i*200)
		}
		out["usr/lib/"+name+".so"] = noise(seed+100, 700<<10+p<<10)
	}
	out["usr/bin/server"] = noise(1, 30<<20)
	out["var/lib/geo.sqlite"] = noise(2, 8<<20) // cut into fixed pieces
	out["var/lib/sparse"] = append(append(noise(3, 1<<20), make([]byte, 4<<20)...), noise(4, 1<<20)...)
	return out
}

// archive is a layer of files as an engine stores it.
func archive(t testing.TB, files map[string][]byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, name := range slices.Sorted(maps.Keys(files)) {
		err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: int64(len(files[name])), Mode: 0o644, ModTime: time.Unix(1_700_000_000, 0)})
		if err == nil {
			_, err = w.Write(files[name])
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// image stores an image of layers and returns what a root record says of it.
func image(ctx context.Context, d *depot, w *repo.Writer, layers [][]byte) (dr.Image, error) {
	ids := make([]layer.Digest, len(layers))
	for i, l := range layers {
		ids[i] = layer.DigestOf(l)
	}
	config, err := json.Marshal(map[string]any{"architecture": "amd64", "os": "linux", "rootfs": map[string]any{"type": "layers", "diff_ids": ids}})
	if err != nil {
		return dr.Image{}, err
	}
	cutter := cut.New(d.repo.CutKey())
	id := layer.DigestOf(config)
	rec, err := layer.CaptureDirect(ctx, id, config, func(l layer.Digest) (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(layers[slices.Index(ids, l)])), nil
	}, layer.CaptureOptions{Want: []layer.Digest{id}, Sink: w, Cutter: cutter})
	if err != nil {
		return dr.Image{}, err
	}
	refs, err := layer.Encode(ctx, w, cutter, rec)
	return dr.Image{ID: string(id), ConfigDigest: string(id), OS: "linux", Arch: "amd64", Record: refs, Bytes: rec.Bytes()}, err
}

// A container whose entry point changes the owner of all that its image has
// (chown -R) copies all of it up into its writable layer, on overlay as on any
// other union file system. The bytes are those of the image, so almost nothing is
// stored: the list of what is there, once.
func TestOwnersChanged(t *testing.T) {
	t.Parallel()
	d := newDepot(t)
	files := software(nil)
	base := t.TempDir()
	lower, upper, work, merged := filepath.Join(base, "lower"), filepath.Join(base, "upper"), filepath.Join(base, "work"), filepath.Join(base, "merged")
	for _, p := range []string{lower, upper, work, merged} {
		if err := os.MkdirAll(p, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	total := 0
	for name, data := range files {
		put(t, filepath.Join(lower, name), data)
		total += len(data)
	}
	if err := unix.Mount("overlay", merged, "overlay", 0, fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", lower, upper, work)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(merged, 0); err != nil {
			t.Error(err)
		}
	})
	layers := [][]byte{archive(t, files)}
	s, first := d.take("shop", nil, map[string]string{"layer:web": upper}, layers...)
	now := time.Now().Add(-time.Hour)
	err := filepath.WalkDir(merged, func(p string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return errors.Join(os.Lchown(p, 33, 33), os.Chtimes(p, now, now))
	})
	if err != nil {
		t.Fatal(err)
	}
	if n := bytesBelow(t, upper); n != total {
		t.Fatalf("%d of %d bytes were copied up", n, total)
	}
	_, sent := d.take("shop", s, map[string]string{"layer:web": upper}, layers...)
	t.Logf("first %d bytes; %d bytes copied up in %d files sent %d", first, total, len(files), sent)
	if sent > int64(len(files)*80+32<<10) {
		t.Errorf("%d bytes copied up in %d files sent %d", total, len(files), sent)
	}

	// Where nothing was stored before, the bytes are stored once. (A pack's size is
	// rounded up by as much as 256 KiB.)
	fresh := newDepot(t)
	_, both := fresh.take("shop", nil, map[string]string{"layer:web": upper}, layers...)
	t.Logf("with its image at once %d", both)
	if both > first+int64(len(files)*80+256<<10) {
		t.Errorf("the image sent %d bytes, with what was copied up %d", first, both)
	}
}

// bytesBelow sums the sizes of the regular files below dir.
func bytesBelow(t testing.TB, dir string) (n int) {
	t.Helper()
	err := filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		info, err := e.Info()
		if err == nil {
			n += int(info.Size())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// The next version of an image, built anew with one package changed in a large
// layer, sends that package; another system of the same images and data sends
// next to nothing.
func TestVersionsAndSystemsShare(t *testing.T) {
	t.Parallel()
	d := newDepot(t)
	dir := t.TempDir()
	put(t, filepath.Join(dir, "own"), noise(9, 5000))
	old := software(nil)
	s, first := d.take("shop", nil, map[string]string{"volume:data": dir}, archive(t, old))
	files := software(map[string]int{"lib07": 1})
	own := 0
	for name, data := range files {
		if !bytes.Equal(old[name], data) {
			own += len(data)
		}
	}
	_, next := d.take("shop", s, map[string]string{"volume:data": dir}, archive(t, files))
	_, other := d.take("blog", nil, map[string]string{"volume:data": dir}, archive(t, files))
	t.Logf("first %d bytes; next version, with %d new bytes in %d files, %d; another system %d", first, own, len(files), next, other)
	if next > int64(own+own/10+128<<10) {
		t.Errorf("%d bytes of the image are new, %d were sent", own, next)
	}
	if other > 16<<10 {
		t.Errorf("a second system of the same sent %d bytes", other)
	}
}
