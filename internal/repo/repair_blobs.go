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

	"lifeboat/internal/store"
)

// errNowhere: no source has it.
var errNowhere = fmt.Errorf("no source has it: %w", store.ErrNotFound)

// blobs heals pack manifests, indexes and packs from exact copies.
func (p *repairer) blobs(ctx context.Context, x *Examination) error {
	for _, n := range x.inv.needs {
		d, err := p.repo.st.ResolveTag(ctx, n.tag())
		if err != nil && !about(err) {
			return err
		}
		if err == nil && d == n.Digest && !x.harm.touches(n.Digest) {
			continue
		}
		err = p.unread(ctx, n, x.harm)
		if err == nil {
			err = p.manifest(ctx, n, x.harm)
		}
		if err != nil && !errors.Is(err, errNowhere) {
			return err
		}
	}
	return nil
}

// unread reads the packs of a manifest that could not be opened, as far as this
// run has not: without its index nobody could say what has to be in them, and once
// it is healed nothing would lead there.
func (p *repairer) unread(ctx context.Context, n need, h *harm) error {
	if _, bad := h.unusable(n.Digest); !bad || !p.opts.Read {
		return nil
	}
	pm, _, err := p.packManifest(ctx, n)
	if err != nil {
		return err
	}
	for _, b := range pm.packs {
		raw, err := rawDigest(b.Digest)
		if err != nil {
			return err
		}
		known, err := p.repo.packLog().Get(raw, p.began)
		if err != nil {
			return err
		}
		if h.blob(b.Digest) || !known.Bad && !known.Read.Before(p.began) {
			continue
		}
		err = sameBlob(ctx, b, p.repo.st, io.Discard)
		if err != nil && !about(err) && !errors.Is(err, io.ErrUnexpectedEOF) {
			return err
		}
		if err != nil {
			h.pack(n, b.Digest, nil)
		}
		p.repo.notePack(raw, err == nil)
	}
	return nil
}

// manifest makes sure that a pack manifest and what it names is here, under its
// tag, copying what is not; h says what is known to be damaged, nil for nothing.
// The error wraps errNowhere where something of it cannot be had.
func (p *repairer) manifest(ctx context.Context, n need, h *harm) error {
	pm, from, err := p.packManifest(ctx, n)
	if err != nil {
		return err
	}
	missing := error(nil)
	for _, b := range append([]blob{pm.index}, pm.packs...) {
		err := p.blob(ctx, b, h)
		if err != nil && !errors.Is(err, errNowhere) {
			return err
		}
		missing = errors.Join(missing, err)
	}
	if missing != nil {
		return missing
	}
	tagged, err := p.repo.st.ResolveTag(ctx, n.tag())
	if err != nil && !about(err) {
		return err
	}
	if from == "" && tagged == n.Digest {
		return nil // it is here
	}
	step := RepairStep{Action: RepairCopied, Tag: n.tag(), Blob: n.Digest, From: from, Bytes: n.Size}
	if h != nil {
		h.healed(n.Digest)
	}
	step.Err = p.putManifest(ctx, n, tagged, pm.raw)
	if step.Err != nil && (ctx.Err() != nil || errors.Is(step.Err, store.ErrNoSpace)) {
		return step.Err // else the rest is mended all the same
	}
	p.did(step)
	return nil
}

// putManifest stores a pack manifest under its tag. A tag that names something
// else than its own name says counts for nobody; it is no number, so it can be put
// again after it was taken away.
func (p *repairer) putManifest(ctx context.Context, n need, tagged digest.Digest, body []byte) error {
	r := p.repo
	put := func() error {
		if err := r.putTag(store.Rewriting(ctx), n.tag(), ocispec.MediaTypeImageManifest, body); err != nil {
			return err
		}
		_, err := r.st.GetManifest(ctx, n.Digest.String())
		return err
	}
	err := put()
	if !errors.Is(err, store.ErrTagTaken) || tagged != "" && (need{Digest: tagged}).tag() == n.tag() {
		return err
	}
	if err := r.st.DeleteTag(ctx, n.tag()); err != nil && !errors.Is(err, store.ErrNotFound) {
		return fmt.Errorf("its tag names something else and could not be taken away: %w", err)
	}
	return put()
}

// packManifest is manifestBody, decoded. The error wraps errNowhere also where it
// says nothing that can be used: a copy of that heals nothing.
func (p *repairer) packManifest(ctx context.Context, n need) (pm *packManifest, from string, err error) {
	body, from, err := p.manifestBody(ctx, n)
	if err != nil {
		return nil, "", err
	}
	if pm, err = decodePackManifest(body); err != nil {
		return nil, "", fmt.Errorf("pack manifest %s: %w: %w", n.Digest, err, errNowhere)
	}
	return pm, from, nil
}

// local names what this host keeps itself.
const local = "this host"

// manifestBody finds the bytes of a pack manifest: here (from is empty), in what
// this host keeps, or in a source.
func (p *repairer) manifestBody(ctx context.Context, n need) (body []byte, from string, err error) {
	r := p.repo
	fits := func(b []byte) bool { return int64(len(b)) == n.Size && digest.FromBytes(b) == n.Digest }
	m, err := r.st.GetManifest(ctx, n.Digest.String())
	if err == nil && fits(m.Body) {
		return m.Body, "", nil
	}
	if err != nil && !about(err) {
		return nil, "", err
	}
	if ix, err := r.idx.get(ctx, n); err == nil {
		body, err := ix.Manifest()
		r.idx.put(ix)
		if err == nil && fits(body) {
			return body, local, nil
		}
	}
	for _, src := range p.opts.From {
		if src.Exact == nil {
			continue
		}
		m, err := src.Exact.GetManifest(ctx, n.Digest.String())
		if err == nil && fits(m.Body) {
			return m.Body, src.Name, nil
		}
		if err != nil && !notThere(ctx, err) {
			return nil, "", err
		}
	}
	return nil, "", fmt.Errorf("pack manifest %s: %w", n.Digest, errNowhere)
}

// blob makes sure that a blob is here and what it was, as far as is known.
func (p *repairer) blob(ctx context.Context, b blob, h *harm) error {
	r := p.repo
	damaged := h != nil && h.blob(b.Digest)
	if !damaged {
		err := r.lookAtBlob(ctx, b)
		if err == nil || !about(err) && !errors.Is(err, io.ErrUnexpectedEOF) {
			return err
		}
	}
	for _, src := range p.opts.From {
		if src.Exact == nil {
			continue
		}
		step := RepairStep{Action: RepairCopied, Blob: b.Digest, From: src.Name, Bytes: b.Size}
		err := p.copyBlob(ctx, b, src.Exact)
		switch {
		case err == nil:
			if h != nil {
				h.healed(b.Digest)
			}
			p.did(step)
			return nil
		case !notThere(ctx, err):
			return err
		case !errors.Is(err, store.ErrNotFound):
			step.Err = err
			p.did(step)
		}
	}
	return fmt.Errorf("blob %s: %w", b.Digest, errNowhere)
}

// blob reports whether a blob was found damaged or gone.
func (h *harm) blob(d digest.Digest) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.packs[d] {
		return true
	}
	for _, fault := range h.manifests {
		if fault == d {
			return true
		}
	}
	return false
}

// copyBlob brings a blob here from another registry: all of it was read and has
// its digest before any of it is sent; and what is here then was read again.
func (p *repairer) copyBlob(ctx context.Context, b blob, from store.Store) error {
	f, err := p.spool(ctx, b, from)
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(f) }() // a leftover is pruned
	r := p.repo
	if p.over != nil {
		// What a dry run would bring need not be kept: it is read where it is.
		if ok, err := p.over.Lend(ctx, b.Digest, b.Size, from); err != nil || ok {
			if raw, rerr := rawDigest(b.Digest); ok && rerr == nil {
				r.notePack(raw, true)
			}
			return err
		}
	}
	if _, err := r.st.PutBlob(store.Rewriting(ctx), b.Digest, b.Size, func() (io.ReadCloser, error) { return os.Open(f) }); err != nil {
		return err
	}
	if err := sameBlob(ctx, b, r.st, io.Discard); err != nil {
		return fmt.Errorf("it was sent, and this registry keeps the damaged bytes that it has: %w", err)
	}
	if raw, err := rawDigest(b.Digest); err == nil {
		r.notePack(raw, true)
	}
	return nil
}

// spool reads a blob into a temporary file and compares its digest. Blobs are
// sealed, so it is no secret.
func (p *repairer) spool(ctx context.Context, b blob, from store.Store) (name string, err error) {
	if err := os.MkdirAll(p.repo.idx.dir(), 0o700); err != nil {
		return "", fmt.Errorf("spool a blob: %w", err)
	}
	f, err := os.CreateTemp(p.repo.idx.dir(), ".spool-*.tmp") // mode 0600
	if err != nil {
		return "", fmt.Errorf("spool a blob: %w", err)
	}
	err = sameBlob(ctx, b, from, f)
	if err = errors.Join(err, f.Close()); err != nil {
		return "", errors.Join(err, os.Remove(f.Name()))
	}
	return f.Name(), nil
}

// sameBlob reads a blob from a store into to, and compares its digest.
func sameBlob(ctx context.Context, b blob, from store.Store, to io.Writer) (err error) {
	src, err := from.GetBlob(ctx, b.Digest, b.Size, 0, -1)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, src.Close()) }()
	sum := sha256.New()
	if _, err := io.Copy(io.MultiWriter(to, sum), src); err != nil {
		return err
	}
	if d := digest.NewDigest(digest.SHA256, sum); d != b.Digest {
		return fmt.Errorf("blob %s has digest %s: %w", b.Digest, d, store.ErrDigestMismatch)
	}
	return nil
}
