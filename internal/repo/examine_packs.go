package repo

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/opencontainers/go-digest"

	"lifeboat/internal/store"
)

// structure looks at pack manifests and at what they name, without reading it.
type structure struct {
	repo  *Repo
	inv   *inventory
	f     *findings
	harm  *harm
	packs bool // packs are looked at here; else they are all read
}

// manifest checks one pack manifest and that its index and packs are there.
func (c *structure) manifest(ctx context.Context, n need) error {
	r := c.repo
	d, err := r.st.ResolveTag(ctx, n.tag())
	switch {
	case err == nil && d != n.Digest:
		c.f.add(Problem{Tag: n.tag(), Blob: n.Digest.String(), Err: tampered("the tag names %s", d)})
	case errors.Is(err, store.ErrNotFound):
		c.f.add(Problem{Tag: n.tag(), Blob: n.Digest.String(), Err: fmt.Errorf("the pack manifest has no tag, so a collector may delete it: %w", err)})
	case err != nil && !about(err):
		return err
	case err != nil:
		c.f.add(Problem{Tag: n.tag(), Blob: n.Digest.String(), Err: err})
	}
	pm, err := r.readPackManifest(ctx, n)
	if err != nil {
		c.harm.manifest(n, n.Digest)
		if err := c.concerns(n, n.Digest, err); err != nil {
			return err
		}
		// What it named may be known here still, and be gone, too.
		if pm = r.keptPackManifest(ctx, n); pm == nil {
			return nil
		}
	}
	if err := c.index(ctx, n, pm); err != nil {
		return err
	}
	if !c.packs {
		return nil
	}
	ix, err := r.idx.get(ctx, n)
	if err != nil && !about(err) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return err
	}
	if err != nil {
		return c.unindexed(ctx, n, pm)
	}
	defer r.idx.put(ix)
	return c.indexed(ctx, ix, pm)
}

// index looks at the index of a pack manifest.
func (c *structure) index(ctx context.Context, n need, pm *packManifest) error {
	r := c.repo
	err := c.blob(ctx, pm.index)
	if err == nil && r.knownBad(pm.index.Digest) {
		err = c.indexAgain(ctx, pm) // for the cache of it says nothing of the stored one
	}
	if err == nil {
		var ix *index
		if ix, err = r.idx.get(ctx, n); err == nil {
			r.idx.put(ix)
			return nil
		}
		if _, told := c.harm.unusable(n.Digest); told {
			return nil // for the same reason
		}
	}
	c.harm.manifest(n, pm.index.Digest)
	return c.concerns(n, pm.index.Digest, err)
}

// indexed looks at the packs of a manifest of which an index is at hand, stored or
// kept by this host, and at what of a damaged one can be used.
func (c *structure) indexed(ctx context.Context, ix *index, pm *packManifest) error {
	for i, b := range pm.packs {
		err := c.blob(ctx, b)
		if err == nil && c.repo.knownBad(b.Digest) {
			// It was found damaged when it was read: it is as long as it is not read
			// again and found sound.
			err = c.again(ctx, ix, uint32(i))
		}
		if err == nil {
			continue
		}
		if err := c.concerns(ix.need, b.Digest, err); err != nil {
			return err
		}
		if _, err := c.repo.scan(ctx, ix, uint32(i), c.harm); err != nil {
			return err
		}
	}
	return nil
}

// unindexed looks at the packs of a manifest of which no index can be read: what is
// in them is not known, and whether they are there is.
func (c *structure) unindexed(ctx context.Context, n need, pm *packManifest) error {
	for _, b := range pm.packs {
		err := c.blob(ctx, b)
		if err == nil && c.repo.knownBad(b.Digest) {
			if err = sameBlob(ctx, b, c.repo.st, io.Discard); err == nil {
				c.repo.noteBlob(b.Digest, true)
			}
		}
		if err == nil {
			continue
		}
		if err := c.concerns(n, b.Digest, err); err != nil {
			return err
		}
		c.harm.pack(n, b.Digest, nil)
	}
	return nil
}

// readPackManifest reads a pack manifest. The error wraps dr.ErrTampered where it is
// none, or is the store's.
func (r *Repo) readPackManifest(ctx context.Context, n need) (*packManifest, error) {
	m, err := r.st.GetManifest(ctx, n.Digest.String())
	if err != nil {
		return nil, err
	}
	return decodePackManifest(m.Body)
}

// keptPackManifest is what this host keeps of a pack manifest beside its index, nil
// for nothing.
func (r *Repo) keptPackManifest(ctx context.Context, n need) *packManifest {
	ix, err := r.idx.get(ctx, n)
	if err != nil {
		return nil
	}
	defer r.idx.put(ix)
	raw, err := ix.Manifest()
	if err != nil || digest.FromBytes(raw) != n.Digest {
		return nil
	}
	pm, err := decodePackManifest(raw)
	if err != nil {
		return nil
	}
	return pm
}

// indexAgain reads an index that was found damaged before.
func (c *structure) indexAgain(ctx context.Context, pm *packManifest) error {
	if err := c.repo.proveIndex(ctx, pm); err != nil {
		return err
	}
	c.repo.noteBlob(pm.index.Digest, true)
	return nil
}

// again reads a pack that was found damaged before.
func (c *structure) again(ctx context.Context, ix *index, pack uint32) error {
	p, err := ix.Pack(pack)
	if err != nil {
		return err
	}
	if err = c.repo.readPack(ctx, packUse{ix, p}); err == nil {
		c.repo.notePack(p.Digest, true)
	}
	return err
}

// concerns reports an error that speaks of one stored thing, and returns others.
func (c *structure) concerns(n need, blob digest.Digest, err error) error {
	return concerns(c.inv, c.f, n, blob, err)
}

func concerns(inv *inventory, f *findings, n need, blob digest.Digest, err error) error {
	if !about(err) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return err
	}
	inv.report(f, n, blob, err)
	return nil
}

// blob looks at each blob once.
func (c *structure) blob(ctx context.Context, b blob) error {
	if found, ok := c.inv.looked.Load(b); ok {
		err, _ := found.(error)
		return err
	}
	err := c.repo.lookAtBlob(ctx, b)
	c.inv.looked.Store(b, err)
	return err
}

// lookAtBlob asks for the last byte: a blob that was cut off has none there.
func (r *Repo) lookAtBlob(ctx context.Context, b blob) error { return lookAtBlobOf(ctx, r.st, b) }

func lookAtBlobOf(ctx context.Context, st store.Store, b blob) error {
	ok, err := st.HasBlob(ctx, b.Digest)
	if err == nil && !ok {
		err = store.ErrNotFound
	}
	if err != nil {
		return err
	}
	src, err := st.GetBlob(ctx, b.Digest, b.Size, b.Size-1, 1)
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, src)
	return errors.Join(err, src.Close())
}
