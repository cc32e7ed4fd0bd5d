package capture_test

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"lifeboat/internal/catalog"
	"lifeboat/internal/pack"
	"lifeboat/internal/repo"
	"lifeboat/internal/repo/repotest"
	"lifeboat/internal/store"
	"lifeboat/internal/store/memstore"
	"lifeboat/internal/store/mirror"
	"lifeboat/internal/tree"
	"lifeboat/lab/treecmp"
)

// tap is a registry that counts what is read of its blobs, and that is lost in the
// middle of one once so many bytes were given out.
type tap struct {
	store.Store
	requests, bytes, left atomic.Int64
}

func newTap(s store.Store) *tap {
	t := &tap{Store: s}
	t.left.Store(1 << 60)
	return t
}

var errLost = errors.New("connection lost")

func (t *tap) GetBlob(ctx context.Context, d digest.Digest, size, off, length int64) (io.ReadCloser, error) {
	if t.left.Load() <= 0 {
		return nil, errLost
	}
	t.requests.Add(1)
	r, err := t.Store.GetBlob(ctx, d, size, off, length)
	if err != nil {
		return nil, err
	}
	return &tapped{r, t}, nil
}

type tapped struct {
	io.ReadCloser
	t *tap
}

func (r *tapped) Read(p []byte) (int, error) {
	if r.t.left.Load() <= 0 {
		return 0, errLost
	}
	n, err := r.ReadCloser.Read(p[:min(len(p), 32<<10)])
	r.t.bytes.Add(int64(n))
	r.t.left.Add(-int64(n))
	return n, err
}

// counted forgets what was counted so far.
func (t *tap) counted() (requests, bytes int64) { return t.requests.Swap(0), t.bytes.Swap(0) }

// goTo brings dest, which is in the state of one snapshot, to that of another.
func goTo(t *testing.T, r *repo.Repo, dest string, s *repo.Snapshot) tree.ApplyStats {
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
	target, err := catalog.Open(t.Context(), rd, root.Trees[0].Catalog)
	if err != nil {
		t.Fatal(err)
	}
	st, err := tree.Apply(t.Context(), dest, nil, target, rd, tree.ApplyOptions{
		Key: "volume:dest", StateDir: t.TempDir(), CutKey: r.CutKey(), UnitID: r.UnitID, Now: func() time.Time { return time.Now().Add(time.Minute) },
	})
	if err != nil {
		t.Fatal(err)
	}
	return st
}

func mustBeSame(t *testing.T, want, got string) {
	t.Helper()
	a, err := treecmp.Fingerprint(want, treecmp.Options{})
	if err != nil {
		t.Fatal(err)
	}
	b, err := treecmp.Fingerprint(got, treecmp.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if diff := treecmp.Report(treecmp.Compare(a, b, treecmp.Rules{}), 20); diff != "" {
		t.Fatalf("%s differs from %s:\n%s", got, want, diff)
	}
}

// A restore in place reads from the registry what differs and hardly more, in few
// requests; what is sparse stays so; and where the registry is lost in the middle
// of a blob, a mirror gives the rest and only that.
func TestRestoreInPlaceReadsTheDifference(t *testing.T) {
	t.Parallel()
	const (
		size, page, pages = 32 << 20, 16 << 10, 20
		sparseSize        = 256 << 20
		piece             = 32 << 10 // of which a page makes one new
		around            = 2 << 20  // bytes read beside content: indexes, root record, catalog, what shares a group with it
	)
	b := repotest.NewBed(t)
	d := &depot{t: t, scale: &scale{Store: b.Store}, repo: b.Host("main"), state: t.TempDir()}
	dir := t.TempDir()
	table, sparse := filepath.Join(dir, "db", "orders.ibd"), filepath.Join(dir, "db", "sparse.ibd")
	put(t, table, noise(1, size))
	put(t, sparse, noise(2, 1<<20))
	if err := os.Truncate(sparse, sparseSize); err != nil {
		t.Fatal(err)
	}
	for i := range 200 {
		put(t, filepath.Join(dir, "www", string(rune('a'+i%26)), string(rune('a'+i/26))), noise(uint64(100+i), 3000))
	}
	dirs := map[string]string{"volume:db": dir}
	one, _ := d.take("shop", nil, dirs)
	before, dest := t.TempDir(), t.TempDir()
	goTo(t, d.repo, before, one)
	goTo(t, d.repo, dest, one)
	mustBeSame(t, dir, dest)

	rnd := rand.New(rand.NewPCG(3, 4))
	write := func(name string, at int64) {
		f, err := os.OpenFile(name, os.O_WRONLY, 0)
		if err == nil {
			_, err = f.WriteAt(noise(rnd.Uint64(), page), at)
			err = errors.Join(err, f.Close())
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for range pages {
		write(table, rnd.Int64N(size/page)*page)
	}
	write(sparse, sparseSize/2) // in the middle of a hole
	put(t, filepath.Join(dir, "www", "a", "a"), noise(9, 3000))
	two, _ := d.take("shop", one, dirs)
	second := memstore.New()
	if _, err := d.repo.MirrorTo(t.Context(), second, repo.MirrorOptions{}); err != nil {
		t.Fatal(err)
	}

	// There, where what is new lies together, and back, where it lies scattered.
	first := newTap(b.Store)
	r := b.HostOn("stand-in", first)
	for _, way := range []struct {
		name            string
		to              *repo.Snapshot
		same            string
		requests, extra int64
	}{{"there", two, dir, 30, around}, {"back", one, before, 30 + pages, around + pages*pack.GroupSize}} {
		first.counted()
		st := goTo(t, r, dest, way.to)
		requests, bytes := first.counted()
		mustBeSame(t, way.same, dest)
		t.Logf("%s: %d requests, %d bytes: %+v", way.name, requests, bytes, st)
		const content = (pages+1)*piece + 3000
		if st.BytesFetched > content || st.BytesWritten > content || st.Changed > 20 {
			t.Errorf("%s: more than the difference: %+v", way.name, st)
		}
		// A unit is read with its group. Groups that lie close together are one request.
		if requests > way.requests || bytes > content+way.extra {
			t.Errorf("%s: %d requests, %d bytes", way.name, requests, bytes)
		}
	}
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(dest, "db", "sparse.ibd"), &st); err != nil || st.Size != sparseSize || st.Blocks*512 > 2<<20 {
		t.Errorf("the sparse file has %d bytes and takes %d: %v", st.Size, st.Blocks*512, err)
	}

	// The first registry is lost after a part.
	first, rest := newTap(b.Store), newTap(second)
	both := mirror.New(first, []mirror.Copy{{Name: "first", Store: first}, {Name: "mirror", Store: rest}}, mirror.Options{Rest: time.Hour})
	r = b.HostOn("other", both)
	fresh := filepath.Join(t.TempDir(), "fresh")
	if err := os.Mkdir(fresh, 0o755); err != nil {
		t.Fatal(err)
	}
	first.left.Store(size / 2)
	fetched := goTo(t, r, fresh, two).BytesFetched
	mustBeSame(t, dir, fresh)
	_, gave := first.counted()
	_, more := rest.counted()
	t.Logf("%d bytes of content: the first gave %d, the mirror %d", fetched, gave, more)
	if gave < size/2 || more < size/4 || gave+more > fetched+around+pages*pack.GroupSize {
		t.Errorf("%d bytes of content: the first gave %d, the mirror %d", fetched, gave, more)
	}
}
