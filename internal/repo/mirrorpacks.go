package repo

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"

	"lifeboat/internal/pack"
	"lifeboat/internal/repo/idxcache"
)

// mirrorMemory bounds the packs that are in memory at a time, in bytes: one of
// the largest that are accepted, or several of the usual size.
type mirrorMemory struct{ *semaphore.Weighted }

func newMirrorMemory() *mirrorMemory { return &mirrorMemory{semaphore.NewWeighted(pack.MaxSize)} }

// measure sums up what the mirror probably lacks, for the progress. What goes
// wrong is found again, and told, when it is copied.
func (m *mirroring) measure(ctx context.Context) {
	seen := map[digest.Digest]bool{}
	for i := range m.snaps {
		if m.have[m.snaps[i].Place] {
			continue
		}
		for _, n := range m.snaps[i].needs {
			if seen[n.Digest] || m.have[n.tag()] {
				continue
			}
			seen[n.Digest] = true
			pm, err := m.packManifest(ctx, n)
			if err != nil {
				return
			}
			for _, b := range append(pm.packs, pm.index) {
				if !seen[b.Digest] {
					seen[b.Digest] = true
					m.prog.BytesTotal += b.Size
				}
			}
		}
	}
	m.tell(0)
}

func (m *mirroring) packManifest(ctx context.Context, n need) (*packManifest, error) {
	raw, err := m.repo.st.GetManifest(ctx, n.Digest.String())
	if err == nil && (raw.Digest != n.Digest || int64(len(raw.Body)) != n.Size) {
		err = tampered("the manifest has %d bytes and digest %s", len(raw.Body), raw.Digest)
	}
	var pm *packManifest
	if err == nil {
		pm, err = decodePackManifest(raw.Body)
	}
	if err != nil {
		return nil, &sourceError{fmt.Errorf("pack manifest %s: %w", n.Digest, err)}
	}
	return pm, nil
}

// manifest copies a pack manifest after its packs and its index.
func (m *mirroring) manifest(ctx context.Context, n need) error {
	if m.done[n.Digest] {
		return nil
	}
	whole, put, err := m.whole(ctx, n)
	if err != nil {
		return fmt.Errorf("look at the mirror: %w", err)
	}
	if whole {
		m.done[n.Digest] = true
		return nil
	}
	pm, err := m.packManifest(ctx, n)
	if err != nil {
		return err
	}
	// Opening the index authenticates it, and with it what the packs hold.
	ix, err := m.repo.idx.get(ctx, n)
	if err != nil {
		return &sourceError{err}
	}
	defer m.repo.idx.put(ix)
	if err := m.packs(ctx, ix); err != nil {
		return err
	}
	if err := m.index(ctx, pm.index); err != nil {
		return err
	}
	if m.opts.DryRun {
		m.done[n.Digest] = true
		return nil
	}
	if err := m.putEmpty(ctx); err != nil {
		return err
	}
	if _, err := m.dst.PutManifest(put, n.tag(), ocispec.MediaTypeImageManifest, pm.raw); err != nil {
		return fmt.Errorf("pack manifest %s: %w", n.Digest, err)
	}
	m.done[n.Digest] = true
	return nil
}

// packs copies the packs of an index that the mirror lacks.
func (m *mirroring) packs(ctx context.Context, ix *index) error {
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(listParallel)
	for i := range uint32(ix.Packs()) {
		p, err := ix.Pack(i)
		if err != nil {
			return errors.Join(err, g.Wait())
		}
		if gctx.Err() != nil {
			break
		}
		g.Go(func() error { return m.pack(gctx, ix, p) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	if m.opts.DryRun {
		return nil
	}
	return m.repo.saveRead(ix)
}

func (m *mirroring) pack(ctx context.Context, ix *index, p idxcache.Pack) error {
	d := digestOf(p.Digest)
	ok, err := m.dst.HasBlob(ctx, d)
	if err != nil {
		return fmt.Errorf("look at the mirror: %w", err)
	}
	if ok {
		m.tell(p.Size)
		return nil
	}
	if m.opts.DryRun {
		m.sent(p.Size, 0)
		return nil
	}
	if err := m.mem.Acquire(ctx, p.Size); err != nil {
		return err
	}
	defer m.mem.Release(p.Size)
	raw, err := m.repo.loadPack(ctx, ix, p)
	if err != nil {
		return &sourceError{fmt.Errorf("pack %s of manifest %s: %w", d, ix.need.Digest, err)}
	}
	lent := &lentBytes{b: raw}
	_, err = m.dst.PutBlob(ctx, d, p.Size, lent.open)
	lent.takeBack()
	if err != nil {
		return fmt.Errorf("send pack %s: %w", d, err)
	}
	m.sent(p.Size, p.Size)
	return nil
}

// sent counts a pack.
func (m *mirroring) sent(size, read int64) {
	m.mu.Lock()
	m.res.Packs++
	m.res.Bytes += size
	m.res.BytesRead += read
	m.mu.Unlock()
	m.tell(size)
}

// loadPack reads a whole pack into memory and authenticates everything in it: its digest,
// its header, every group, every unit. The error wraps dr.ErrTampered where it
// is not what its index says.
func (r *Repo) loadPack(ctx context.Context, ix *index, p idxcache.Pack) (raw []byte, err error) {
	raw = make([]byte, p.Size)
	elsewhere, err := r.readBlob(ctx, blob{digestOf(p.Digest), p.Size}, 0, -1, func(src io.Reader) error {
		if _, err := io.ReadFull(src, raw); err != nil {
			return err
		}
		if sha256.Sum256(raw) != p.Digest {
			return tampered("its digest is %s", digest.FromBytes(raw))
		}
		return r.comparePack(ctx, ix, p, raw)
	})
	if err != nil {
		return nil, err
	}
	for g := range p.Groups {
		if !elsewhere {
			ix.markRead(p.FirstGroup + g)
		}
	}
	return raw, nil
}

// comparePack compares a pack in memory with what its index says.
func (r *Repo) comparePack(ctx context.Context, ix *index, p idxcache.Pack, raw []byte) error {
	if err := p.Header.CheckHeader(raw[:pack.HeaderSize]); err != nil {
		return err
	}
	o, err := r.opener(ctx, p.Header)
	if err != nil {
		return err
	}
	var sealed, body []byte
	for i := range p.Groups {
		g, err := ix.Group(p.FirstGroup + i)
		if err != nil {
			return err
		}
		sealed = append(sealed[:0], raw[g.Offset:g.Offset+g.Sealed]...) // Open overwrites it
		if body, err = o.Open(body[:0], int(g.Number), sealed, int(g.Plain)); err != nil {
			return err
		}
		if err := r.compareGroup(ix, p.FirstGroup+i, g, body); err != nil {
			return err
		}
	}
	return nil
}

// index copies the index of a pack manifest, which was opened already: its
// digest says that it is the same.
func (m *mirroring) index(ctx context.Context, b blob) error {
	ok, err := m.dst.HasBlob(ctx, b.Digest)
	if err != nil {
		return fmt.Errorf("look at the mirror: %w", err)
	}
	if ok || m.opts.DryRun {
		m.tell(b.Size)
		return nil
	}
	spool, err := m.repo.spoolBlob(ctx, b)
	if err != nil {
		return &sourceError{fmt.Errorf("index %s: %w", b.Digest, err)}
	}
	_, err = m.dst.PutBlob(ctx, b.Digest, b.Size, spool.open)
	if err = errors.Join(err, spool.remove()); err != nil {
		return fmt.Errorf("send index %s: %w", b.Digest, err)
	}
	m.mu.Lock()
	m.res.Bytes += b.Size
	m.res.BytesRead += b.Size
	m.mu.Unlock()
	m.tell(b.Size)
	return nil
}

// spooled is a blob in a temporary file: sealed bytes, mode 0600.
type spooled struct{ name string }

func (s spooled) open() (io.ReadCloser, error) { return os.Open(s.name) }
func (s spooled) remove() error                { return os.Remove(s.name) }

// spoolBlob reads a blob of any size into a file and compares it with its
// digest.
func (r *Repo) spoolBlob(ctx context.Context, b blob) (s spooled, err error) {
	if err := os.MkdirAll(r.idx.dir(), 0o700); err != nil {
		return s, fmt.Errorf("spool: %w", err)
	}
	f, err := os.CreateTemp(r.idx.dir(), ".spool-*.tmp")
	if err != nil {
		return s, fmt.Errorf("spool: %w", err)
	}
	s.name = f.Name()
	_, err = r.readBlob(ctx, b, 0, -1, func(src io.Reader) error {
		if err := f.Truncate(0); err != nil {
			return err
		}
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			return err
		}
		sum := sha256.New()
		if _, err := io.Copy(io.MultiWriter(f, sum), src); err != nil {
			return err
		}
		if have := digest.NewDigest(digest.SHA256, sum); have != b.Digest {
			return tampered("its digest is %s", have)
		}
		return nil
	})
	if err = errors.Join(err, f.Close()); err != nil {
		return s, errors.Join(err, s.remove())
	}
	return s, nil
}
