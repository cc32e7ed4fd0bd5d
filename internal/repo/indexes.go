package repo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"lifeboat/internal/dr"
	"lifeboat/internal/pack"
	"lifeboat/internal/repo/idxcache"
	"lifeboat/internal/seal"
)

const (
	// maxIdle is how many indexes stay mapped while nobody uses them.
	maxIdle = 64
	// maxResident is about how many bytes of them all are in memory at a time.
	maxResident = 16 << 20
	// cacheKept is how long an index cache file is kept unused.
	cacheKept = 30 * 24 * time.Hour
	// cacheTouched is how old a file's time may be before a use renews it.
	cacheTouched = 24 * time.Hour
)

// index is an open index of one pack manifest, shared by readers and writers.
type index struct {
	*idxcache.Index
	need need
	// own says that this host signed the index.
	own bool
	// read has a bit for each group of a foreign index that this host has read
	// and found to be what the index says.
	read  []atomic.Uint64
	dirty atomic.Bool

	refs int // guarded by indexes.mu
}

// indexes opens and shares the index caches of a repository. Safe for
// concurrent use.
type indexes struct {
	repo     *Repo
	resident *idxcache.Resident

	mu      sync.Mutex
	open    map[need]*index
	mapped  map[*index]bool // open ones, and dropped ones still in use
	idle    []*index        // without users, oldest first
	loading map[need]chan struct{}
}

func newIndexes(r *Repo) *indexes {
	return &indexes{repo: r, resident: idxcache.NewResident(maxResident), open: map[need]*index{}, mapped: map[*index]bool{}, loading: map[need]chan struct{}{}}
}

// get returns the index of a pack manifest, from the cache or else from the
// registry. The caller gives it back with put. Errors wrap dr.ErrTampered, or
// are those of the store or of the local disk.
func (x *indexes) get(ctx context.Context, n need) (*index, error) {
	for {
		x.mu.Lock()
		if ix := x.open[n]; ix != nil {
			x.use(ix)
			x.mu.Unlock()
			return ix, nil
		}
		wait, busy := x.loading[n]
		if !busy {
			wait = make(chan struct{})
			x.loading[n] = wait
		}
		x.mu.Unlock()
		if busy {
			select {
			case <-wait:
				continue
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
		ix, err := x.load(ctx, n)
		x.mu.Lock()
		delete(x.loading, n)
		close(wait)
		if err == nil {
			x.open[n], x.mapped[ix] = ix, true
			ix.refs = 1
		}
		x.mu.Unlock()
		if err != nil {
			return nil, fmt.Errorf("index of pack manifest %s: %w", n.Digest, err)
		}
		return ix, nil
	}
}

// use counts a user; the caller holds mu.
func (x *indexes) use(ix *index) {
	if ix.refs == 0 {
		for i, o := range x.idle {
			if o == ix {
				x.idle = append(x.idle[:i], x.idle[i+1:]...)
				break
			}
		}
	}
	ix.refs++
}

// put gives an index back.
func (x *indexes) put(ix *index) {
	x.mu.Lock()
	defer x.mu.Unlock()
	ix.refs--
	if ix.refs > 0 {
		return
	}
	x.idle = append(x.idle, ix)
	if len(x.idle) > maxIdle {
		x.unmap(x.idle[0])
		x.idle = x.idle[1:]
	}
}

func (x *indexes) unmap(ix *index) {
	if x.open[ix.need] == ix {
		delete(x.open, ix.need)
	}
	delete(x.mapped, ix)
	if err := ix.Close(); err != nil {
		x.repo.log.Warn("index cache", "error", err)
	}
}

// close unmaps everything.
func (x *indexes) close() error {
	x.mu.Lock()
	defer x.mu.Unlock()
	var errs []error
	for ix := range x.mapped {
		errs = append(errs, ix.Close())
	}
	clear(x.mapped)
	clear(x.open)
	x.idle = nil
	return errors.Join(errs...)
}

// drop removes a damaged cache file, so that it is made anew at the next use.
// Users of the mapped one keep it.
func (x *indexes) drop(ix *index) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.open[ix.need] != ix {
		return
	}
	delete(x.open, ix.need)
	_ = os.Remove(x.file(ix.need)) // if it stays, its damage is noticed again
}

func (x *indexes) dir() string { return filepath.Join(x.repo.cache, x.repo.ID().String()) }

func (x *indexes) file(n need) string {
	return filepath.Join(x.dir(), n.Digest.Encoded()+".idx")
}

func (x *indexes) key() [32]byte { return x.repo.keyring().LocalKey("lifeboat v1 index cache") }

// load maps the cache file, making it first where it is missing or damaged.
func (x *indexes) load(ctx context.Context, n need) (*index, error) {
	raw, err := rawDigest(n.Digest)
	if err != nil {
		return nil, tampered("digest %s", n.Digest)
	}
	name := x.file(n)
	ix, err := idxcache.Open(name, x.key(), x.repo.ID(), raw, x.resident)
	if idxcache.IsMissing(err) {
		if err := x.fetch(ctx, n); err != nil {
			return nil, err
		}
		ix, err = idxcache.Open(name, x.key(), x.repo.ID(), raw, x.resident)
	}
	if err != nil {
		return nil, err
	}
	if st, err := os.Stat(name); err == nil && time.Since(st.ModTime()) > cacheTouched {
		now := time.Now()
		_ = os.Chtimes(name, now, now) // only keeps the file from being pruned
	}
	out := &index{Index: ix, need: n, own: x.repo.opts.Host != nil && ix.Host() == x.repo.HostID()}
	if out.own || x.repo.opts.Host == nil {
		return out, nil
	}
	bits, err := x.repo.state.readBits(n.Digest, ix.Groups())
	if err != nil {
		return nil, errors.Join(err, ix.Close())
	}
	out.read = make([]atomic.Uint64, len(bits))
	for i, b := range bits {
		out.read[i].Store(b)
	}
	return out, nil
}

// fetch makes the cache file of a pack manifest from the registry.
func (x *indexes) fetch(ctx context.Context, n need) error {
	m, err := x.repo.st.GetManifest(ctx, n.Digest.String())
	if err != nil {
		return err
	}
	if m.Digest != n.Digest || int64(len(m.Body)) != n.Size {
		return tampered("the manifest has %d bytes and digest %s", len(m.Body), m.Digest)
	}
	pm, err := decodePackManifest(m.Body)
	if err != nil {
		return err
	}
	err = x.fetchIndex(ctx, pm)
	if errors.Is(err, seal.ErrGeneration) { // sealed after the keys were read
		if kerr := x.repo.refreshKeys(ctx); kerr != nil {
			return fmt.Errorf("an index was sealed with a newer key: %w", kerr)
		}
		err = x.repo.keyWithheld(x.fetchIndex(ctx, pm))
	}
	return err
}

// fetchIndex reads the index of a pack manifest into its cache file.
func (x *indexes) fetchIndex(ctx context.Context, pm *packManifest) error {
	_, err := x.repo.readBlob(ctx, pm.index, 0, -1, func(src io.Reader) error {
		return x.build(pm, func(v pack.Visitor) (dr.HostID, error) { return x.visitIndex(ctx, src, v) })
	})
	if err != nil {
		return fmt.Errorf("read index %s: %w", pm.index.Digest, err)
	}
	return nil
}

// visitIndex hands a stored index to a visitor and returns who signed it.
func (x *indexes) visitIndex(ctx context.Context, src io.Reader, v pack.Visitor) (dr.HostID, error) {
	host, err := pack.ReadIndex(src, x.repo.keyring(), v)
	if err != nil {
		return host, err
	}
	// A revoked host's packs may hold units that others rely upon, and each
	// unit is compared with its id: enrolled once is enough to be read.
	s, err := x.repo.hosts.lookup(ctx, host)
	if err != nil {
		return host, err
	}
	if s == nil {
		return host, tampered("it is signed by host %s, which is not enrolled", host.Short())
	}
	return host, nil
}

// build writes a cache file from what read hands to its visitor.
func (x *indexes) build(pm *packManifest, read func(pack.Visitor) (dr.HostID, error)) error {
	raw, err := rawDigest(pm.Digest)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(x.dir(), 0o700); err != nil {
		return fmt.Errorf("create index cache: %w", err)
	}
	b, err := idxcache.NewBuilder(x.file(pm.need), x.key(), x.repo.ID(), raw)
	if err != nil {
		return err
	}
	defer b.Abort()
	m := &matching{Builder: b, want: pm.packs}
	host, err := read(m)
	if err != nil {
		return err
	}
	if len(m.want) > 0 {
		return tampered("the index speaks of fewer packs than its manifest")
	}
	return b.Finish(host, pm.raw)
}

// matching compares the packs of an index with those of its manifest.
type matching struct {
	*idxcache.Builder
	want []blob
}

func (m *matching) Pack(p pack.Info, groups int) error {
	if len(m.want) == 0 || m.want[0] != (blob{digestOf(p.Digest), p.Size}) {
		return tampered("the index speaks of other packs than its manifest")
	}
	m.want = m.want[1:]
	return m.Builder.Pack(p, groups)
}

// getAll opens the indexes of several pack manifests; all or none.
func (x *indexes) getAll(ctx context.Context, needs []need) ([]*index, error) {
	out := make([]*index, len(needs))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(fetchParallel)
	for i, n := range needs {
		g.Go(func() (err error) {
			out[i], err = x.get(gctx, n)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		for _, ix := range out {
			if ix != nil {
				x.put(ix)
			}
		}
		return nil, err
	}
	return out, nil
}

// prune removes cache files that were not used for long, and leftovers.
func (x *indexes) prune() {
	list, err := os.ReadDir(x.dir())
	if err != nil {
		return // nothing there
	}
	for _, e := range list {
		info, err := e.Info()
		if err != nil || !info.Mode().IsRegular() {
			continue
		}
		age := time.Since(info.ModTime())
		if age > cacheKept || (strings.HasSuffix(e.Name(), ".tmp") && age > cacheTouched) {
			_ = os.Remove(filepath.Join(x.dir(), e.Name())) // disposable; tried again next time
		}
	}
}
