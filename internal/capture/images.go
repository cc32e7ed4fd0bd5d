package capture

import (
	"context"
	"fmt"
	"io"

	"lifeboat/internal/cut"
	"lifeboat/internal/dr"
	"lifeboat/internal/engine"
	"lifeboat/internal/engine/layerstore"
	"lifeboat/internal/layer"
	"lifeboat/internal/repo"
)

// captureImages stores the images that are not stored yet. An image is immutable,
// so what the parent records under the same id is taken over, or what this host
// recorded for another system.
func (r *run) captureImages(ctx context.Context) error {
	var total int64
	others := &otherImages{run: r}
	defer others.close()
	for _, im := range r.system.Images {
		rec, ok, err := r.reuseKnown(ctx, im, others)
		if err != nil {
			return fmt.Errorf("image %s: %w", name(im), err)
		}
		if !ok {
			total += im.Size
			r.opts.Progress.Expect(total)
			if rec, err = r.captureImage(ctx, im); err != nil {
				return fmt.Errorf("image %s: %w", name(im), err)
			}
		}
		r.images = append(r.images, rec)
	}
	return nil
}

// reuseKnown takes over what is recorded of an image; false means to read it.
func (r *run) reuseKnown(ctx context.Context, im engine.Image, others *otherImages) (dr.Image, bool, error) {
	old, ok, err := r.knownImage(ctx, im)
	from := r.preader
	if err != nil && r.hurt && ctx.Err() == nil { // its record may be what is lost
		ok, err = false, nil
	}
	if err == nil && !ok {
		old, from, ok, err = others.find(ctx, im)
	}
	if err != nil || !ok {
		return dr.Image{}, false, err
	}
	ok, err = r.reuseImage(ctx, old, from)
	if err != nil && (r.hurt || from != r.preader) && ctx.Err() == nil {
		r.deps.Log.Warn("an image is read again: the record of it cannot be used", "image", name(im), "error", err)
		ok, err = false, nil
	}
	old.ID, old.Tags, old.Digests = im.ID, im.Tags, im.Digests
	return old, ok, err
}

// knownImage finds what the parent snapshot has of an image: under the id that
// the engine gives it, or as what this engine makes of an image that was brought
// up here from an engine with another kind of store.
func (r *run) knownImage(ctx context.Context, im engine.Image) (dr.Image, bool, error) {
	if r.proot == nil {
		return dr.Image{}, false, nil
	}
	if old, ok := imageOf(r.proot, im); ok {
		return old, true, nil
	}
	for _, old := range r.proot.Images {
		rec, err := layer.Decode(ctx, r.preader, old.Record)
		if err != nil {
			return dr.Image{}, false, err
		}
		if h, err := layer.HandoverTo(rec, r.system.Engine.ContainerdStore); err == nil && string(h.EngineID) == im.ID {
			return old, true, nil
		}
	}
	return dr.Image{}, false, nil
}

// imageOf finds an image in a snapshot under the id that the engine gives it.
func imageOf(root *dr.Root, im engine.Image) (dr.Image, bool) {
	for _, old := range root.Images {
		if old.ID == im.ID && old.ConfigDigest == im.ConfigDigest {
			return old, true
		}
	}
	return dr.Image{}, false
}

// otherImages looks for images in the newest snapshots of other systems that this
// host took itself: what another host says an image consists of is not relied
// upon. Snapshots are opened when they are needed.
type otherImages struct {
	run    *run
	opened bool
	list   []otherSnapshot
}

type otherSnapshot struct {
	*repo.Reader
	root *dr.Root
}

func (o *otherImages) find(ctx context.Context, im engine.Image) (dr.Image, *repo.Reader, bool, error) {
	if !o.opened {
		o.opened = true
		for _, s := range o.run.writer.Others() {
			if s.Host != o.run.deps.Repo.HostID() || s.Origin != nil {
				continue
			}
			if err := o.open(ctx, s); err != nil && ctx.Err() != nil {
				return dr.Image{}, nil, false, err
			} else if err != nil { // its images are read again
				o.run.deps.Log.Warn("not used for its images", "snapshot", s.Tag, "error", err)
			}
		}
	}
	for _, s := range o.list {
		if old, ok := imageOf(s.root, im); ok {
			return old, s.Reader, true, nil
		}
	}
	return dr.Image{}, nil, false, nil
}

func (o *otherImages) open(ctx context.Context, s *repo.Snapshot) error {
	rd, err := o.run.deps.Repo.NewReader(ctx, s)
	if err != nil {
		return err
	}
	root, err := rd.Root(ctx)
	if err != nil {
		rd.Close()
		return err
	}
	o.list = append(o.list, otherSnapshot{rd, root})
	return nil
}

func (o *otherImages) close() {
	for _, s := range o.list {
		s.Close()
	}
}

func name(im engine.Image) string {
	if len(im.Tags) > 0 {
		return im.Tags[0]
	}
	return im.ID
}

// reuseImage takes an image record of another snapshot over, if all its units may
// be relied upon.
func (r *run) reuseImage(ctx context.Context, im dr.Image, from *repo.Reader) (bool, error) {
	ok, err := r.writer.Reuse(ctx, im.Record)
	if err != nil || !ok {
		return false, err
	}
	rec, err := layer.Decode(ctx, from, im.Record)
	if err != nil {
		return false, err
	}
	const batch = 4096
	var refs []dr.UnitRef
	all := true
	flush := func() error {
		ok, err := r.writer.Reuse(ctx, refs)
		all = all && ok
		refs = refs[:0]
		return err
	}
	err = layer.Units(ctx, from, rec, func(u dr.UnitRef) error {
		refs = append(refs, u)
		if len(refs) < batch {
			return nil
		}
		return flush()
	})
	if err == nil {
		err = flush()
	}
	return all, err
}

// captureImage stores an image as split layers: from the engine's own store
// where that can be read, else from the archive that the engine makes.
func (r *run) captureImage(ctx context.Context, im engine.Image) (dr.Image, error) {
	var out dr.Image
	want, err := layer.ParseDigest(im.ID)
	if err != nil {
		return out, err
	}
	cutter := cut.New(r.deps.Repo.CutKey())
	o := layer.CaptureOptions{
		Want: []layer.Digest{want}, Sink: r.writer, Cutter: cutter,
		Platform: layer.Platform{OS: im.OS, Arch: im.Arch, Variant: im.Variant},
	}
	rec, err := r.readImage(ctx, want, o)
	if err != nil && ctx.Err() == nil {
		r.deps.Log.Debug("the engine's layer store was not read; saving the image instead", "image", im.ID, "reason", err)
		rec, err = r.saveImage(ctx, im, o)
	}
	if err != nil {
		return out, err
	}
	refs, err := layer.Encode(ctx, r.writer, cutter, rec)
	if err != nil {
		return out, err
	}
	return dr.Image{
		ID: im.ID, ConfigDigest: string(rec.Config.Digest), Tags: im.Tags, Digests: im.Digests,
		OS: im.OS, Arch: im.Arch, Variant: im.Variant, Record: refs, Bytes: rec.Bytes(),
	}, nil
}

// readImage reads an image where the engine keeps it.
func (r *run) readImage(ctx context.Context, id layer.Digest, o layer.CaptureOptions) (*layer.ImageRecord, error) {
	if d := r.system.Engine.StorageDriver; r.system.Engine.ContainerdStore || d != layerstore.Driver {
		return nil, fmt.Errorf("storage driver %s: %w", d, layerstore.ErrNotHere)
	}
	root, err := r.system.HostFS.Path(r.system.HostFS.RootDir)
	if err != nil {
		return nil, err
	}
	store, err := layerstore.Open(root)
	if err != nil {
		return nil, err
	}
	img, err := store.Image(string(id))
	if err != nil {
		return nil, err
	}
	return layer.CaptureDirect(ctx, id, img.Config, func(d layer.Digest) (io.ReadCloser, error) {
		l, err := img.Layer(string(d))
		if err != nil {
			return nil, err
		}
		return struct {
			io.Reader
			io.Closer
		}{counting{l, r.opts.Progress}, l}, nil
	}, o)
}

// saveImage reads an image from the archive that the engine makes of it.
func (r *run) saveImage(ctx context.Context, im engine.Image, o layer.CaptureOptions) (*layer.ImageRecord, error) {
	archive, err := r.deps.Engine.SaveImage(ctx, im.ID)
	if err != nil {
		return nil, err
	}
	defer archive.Close()
	got, err := layer.Capture(ctx, counting{archive, r.opts.Progress}, o)
	if err != nil {
		return nil, err
	}
	if len(got) != 1 {
		return nil, fmt.Errorf("the engine's archive gave %d images, want one", len(got))
	}
	return got[0].Record, got[0].Err
}

// counting tells of the bytes that are read through it.
type counting struct {
	io.Reader
	to Progress
}

func (c counting) Read(b []byte) (int, error) {
	n, err := c.Reader.Read(b)
	c.to.Bytes(int64(n))
	return n, err
}
