package layer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
)

// walk follows an image of the containerd store from its target down to its
// blobs.
type walk struct {
	a    *archive
	opt  *CaptureOptions
	rec  *ImageRecord
	seen map[Digest]bool
	// manifests of images, in the order in which they were met.
	manifests []candidate
}

// candidate is a manifest and what of it the archive lacks.
type candidate struct {
	digest Digest
	doc    document
	conf   configuration
	config []byte
	err    error
}

// image makes the record for the image that target names.
func (w *walk) image(ctx context.Context, target Descriptor) (*ImageRecord, error) {
	w.rec.Target = &Descriptor{MediaType: target.MediaType, Digest: target.Digest, Size: target.Size}
	if w.a.find(blobName(target.Digest)) == nil {
		return nil, fmt.Errorf("manifest %s: %w", target.Digest, ErrLayerMissing)
	}
	if err := w.visit(ctx, target, 0); err != nil {
		return nil, err
	}
	chosen, err := w.choose()
	if err != nil {
		return nil, err
	}
	w.seen[chosen.doc.Config.Digest] = true
	for _, d := range chosen.doc.Layers {
		w.seen[d.Digest] = true
	}
	for i := range w.manifests {
		c := &w.manifests[i]
		if c == chosen {
			err = w.take(ctx, c)
		} else {
			err = w.takeOther(ctx, c)
		}
		if err != nil {
			return nil, err
		}
	}
	return w.rec, w.rec.check()
}

// visit stores the manifest or index d and goes on with what it names.
func (w *walk) visit(ctx context.Context, d Descriptor, depth int) error {
	if depth > 4 {
		return fmt.Errorf("index %s: nested too deeply", d.Digest)
	}
	if !d.Digest.Valid() {
		return fmt.Errorf("manifest %q: no digest", d.Digest)
	}
	if w.seen[d.Digest] {
		return nil
	}
	w.seen[d.Digest] = true
	m := w.a.find(blobName(d.Digest))
	if m == nil {
		d.Annotations = nil
		w.rec.Absent = append(w.rec.Absent, d)
		return nil
	}
	if m.err != nil {
		return m.err
	}
	var doc document
	if err := json.Unmarshal(m.small, &doc); err != nil {
		return fmt.Errorf("manifest %s: %w", d.Digest, err)
	}
	o, err := object(ctx, m.small, d.MediaType, w.opt.Sink)
	if err != nil {
		return err
	}
	w.rec.Objects = append(w.rec.Objects, o)
	for _, child := range doc.Manifests {
		if err := w.visit(ctx, child, depth+1); err != nil {
			return err
		}
	}
	if len(doc.Manifests) == 0 && doc.Config != nil {
		w.manifests = append(w.manifests, w.candidate(d.Digest, doc))
	}
	return nil
}

// candidate looks at what a manifest names and whether all of it is there.
func (w *walk) candidate(digest Digest, doc document) candidate {
	c := candidate{digest: digest, doc: doc}
	config := w.a.find(blobName(doc.Config.Digest))
	if config == nil || config.small == nil {
		c.err = fmt.Errorf("configuration %s: %w", doc.Config.Digest, ErrLayerMissing)
		return c
	}
	c.config = config.small
	if c.err = config.err; c.err != nil {
		return c
	}
	if err := json.Unmarshal(c.config, &c.conf); err != nil {
		c.err = fmt.Errorf("configuration %s: %w", doc.Config.Digest, err)
		return c
	}
	if len(c.conf.RootFS.DiffIDs) != len(doc.Layers) || strings.Contains(c.conf.OS, "unknown") {
		c.err = errNoImage
		return c
	}
	for _, l := range doc.Layers {
		m := w.a.find(blobName(l.Digest))
		switch {
		case m == nil:
			c.err = missingLayer(l.Digest, l.MediaType)
			return c
		case m.err != nil:
			c.err = m.err
			return c
		}
	}
	return c
}

// errNoImage: a manifest of something else than an image, an attestation say.
var errNoImage = errors.New("not a manifest of an image that runs")

// choose picks the manifest of the engine's platform, or else the first one
// that is complete.
func (w *walk) choose() (*candidate, error) {
	var best *candidate
	score := 0
	err := fmt.Errorf("manifests below %s: %w", w.rec.ID, ErrLayerMissing)
	for i := range w.manifests {
		c := &w.manifests[i]
		if c.err != nil {
			if !errors.Is(c.err, errNoImage) {
				err = c.err
			}
			continue
		}
		s := 1
		if c.conf.OS == w.opt.Platform.OS && c.conf.Arch == w.opt.Platform.Arch {
			s = 2
			if c.conf.Variant == w.opt.Platform.Variant {
				s = 3
			}
		}
		if s > score {
			best, score = c, s
		}
	}
	if best == nil {
		return nil, err
	}
	return best, nil
}

// take makes the chosen manifest the record's own.
func (w *walk) take(ctx context.Context, c *candidate) error {
	w.rec.Manifest = c.digest
	if _, err := w.rec.setConfig(ctx, c.config, c.doc.Config.MediaType, w.opt); err != nil {
		return err
	}
	for i, d := range c.doc.Layers {
		m := w.a.find(blobName(d.Digest))
		l, err := w.a.layerOf(ctx, m, c.conf.RootFS.DiffIDs[i])
		if err != nil {
			return err
		}
		w.rec.Layers = append(w.rec.Layers, storedAs(l, d.Digest))
	}
	return nil
}

// takeOther keeps what the archive has of a manifest that is not the chosen one.
func (w *walk) takeOther(ctx context.Context, c *candidate) error {
	for i, d := range append([]Descriptor{*c.doc.Config}, c.doc.Layers...) {
		if w.seen[d.Digest] {
			continue
		}
		w.seen[d.Digest] = true
		m := w.a.find(blobName(d.Digest))
		switch {
		case m == nil || m.err != nil:
			d.Annotations = nil
			w.rec.Absent = append(w.rec.Absent, d)
		case m.small != nil:
			o, err := object(ctx, m.small, d.MediaType, w.opt.Sink)
			if err != nil {
				return err
			}
			w.rec.Objects = append(w.rec.Objects, o)
		case i > 0:
			w.rec.Others = append(w.rec.Others, storedAs(m.layer, d.Digest))
		}
	}
	return nil
}

// storedAs makes sure that the layer carries the stored form named d.
func storedAs(l Layer, d Digest) Layer {
	if l.DiffID == d && (l.Blob == nil || l.Blob.Digest != d) {
		l.Blob = &Blob{Digest: d, Size: l.Size}
	}
	return l
}
