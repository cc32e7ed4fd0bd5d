package repo

import (
	"context"
	"crypto/sha256"
	"errors"
	"io"

	"lifeboat/internal/repo/idxcache"
)

// packJob is one blob to read: a pack and the manifests that name it, or an
// index.
type packJob struct {
	digest [sha256.Size]byte
	size   int64
	uses   []packUse
	// blind are manifests that name it and of which no index can be read.
	blind []need
	// index is set for an index: the manifest that names it.
	index *packManifest
}

// packUse is a pack as one manifest speaks of it.
type packUse struct {
	ix *index
	p  idxcache.Pack
}

// open opens all indexes that can be had and lists packs and indexes.
func (v *reading) open(ctx context.Context) error {
	v.jobs = map[[sha256.Size]byte]*packJob{}
	for _, n := range v.inv.needs {
		_, told := v.harm.unusable(n.Digest)
		v.unopened = v.unopened || told
		ix, err := v.repo.idx.get(ctx, n)
		if err == nil {
			v.ixs = append(v.ixs, ix)
			if err := v.list(ix, told); err != nil {
				return err
			}
			continue
		}
		if !about(err) && !errors.Is(err, io.ErrUnexpectedEOF) {
			return err
		}
		v.unopened = true
		if !told {
			v.harm.manifest(n, n.Digest)
			v.inv.report(v.f, n, n.Digest, err)
		}
		if err := v.listBlind(ctx, n); err != nil {
			return err
		}
	}
	return nil
}

// list lists what a manifest names; the index only where it was not told to be
// damaged before.
func (v *reading) list(ix *index, told bool) error {
	raw, err := ix.Manifest()
	if err != nil {
		return err
	}
	pm, err := decodePackManifest(raw)
	if err != nil {
		return err
	}
	if !told {
		d, err := rawDigest(pm.index.Digest)
		if err != nil {
			return err
		}
		v.jobs[d] = &packJob{digest: d, size: pm.index.Size, index: pm}
	}
	for i := range uint32(ix.Packs()) {
		p, err := ix.Pack(i)
		if err != nil {
			return err
		}
		job := v.job(p.Digest, p.Size)
		job.uses = append(job.uses, packUse{ix, p})
	}
	return nil
}

// listBlind lists the packs of a manifest of which no index can be read: that they
// have their digest can be found out all the same.
func (v *reading) listBlind(ctx context.Context, n need) error {
	pm, err := v.repo.readPackManifest(ctx, n)
	if err != nil && (about(err) || errors.Is(err, io.ErrUnexpectedEOF)) {
		return nil // told
	}
	if err != nil {
		return err
	}
	for _, b := range pm.packs {
		d, err := rawDigest(b.Digest)
		if err != nil {
			return err
		}
		job := v.job(d, b.Size)
		job.blind = append(job.blind, n)
	}
	return nil
}

func (v *reading) job(d [sha256.Size]byte, size int64) *packJob {
	job := v.jobs[d]
	if job == nil {
		job = &packJob{digest: d, size: size}
		v.jobs[d] = job
	}
	return job
}
