package layer

import (
	"context"
	"fmt"
	"io"

	"golang.org/x/sync/errgroup"
)

// directLayers is how many layers CaptureDirect reads at the same time.
const directLayers = 2

// CaptureDirect stores an image of an engine whose image ids are digests of
// configurations, from its parts: the configuration, byte for byte, and a
// function that opens the uncompressed layer with a diff id. It is for who can
// read the engine's own store: no archive has to be made, layers that opt.Known
// has are not read at all, and the others are read side by side. Everything is
// checked against its digest; ErrDigest says that something is not what the
// engine's store says. opt.Want is not used, and opt.Sink.Put is called from
// several goroutines.
func CaptureDirect(ctx context.Context, id Digest, config []byte, open func(Digest) (io.ReadCloser, error), opt CaptureOptions) (*ImageRecord, error) {
	rec, err := captureDirect(ctx, id, config, open, opt)
	if err != nil {
		return nil, fmt.Errorf("capture image %s: %w", id, err)
	}
	return rec, nil
}

func captureDirect(ctx context.Context, id Digest, config []byte, open func(Digest) (io.ReadCloser, error), opt CaptureOptions) (*ImageRecord, error) {
	if DigestOf(config) != id {
		return nil, fmt.Errorf("configuration: %w", ErrDigest)
	}
	rec := &ImageRecord{Format: RecordFormat, ID: id}
	conf, err := rec.setConfig(ctx, config, "application/vnd.docker.container.image.v1+json", &opt)
	if err != nil {
		return nil, err
	}
	rec.Layers = make([]Layer, len(conf.RootFS.DiffIDs))
	first := map[Digest]int{} // the same layer may stand twice
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(directLayers)
	for i, d := range conf.RootFS.DiffIDs {
		if _, ok := first[d]; ok {
			continue
		}
		first[d] = i
		if opt.Known != nil {
			if l, ok := opt.Known(d); ok && l.split() {
				l.Blob = nil
				rec.Layers[i] = l
				continue
			}
		}
		g.Go(func() error {
			l, err := directLayer(gctx, d, open, opt)
			if err != nil {
				return fmt.Errorf("layer %s: %w", d, err)
			}
			rec.Layers[i] = l
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	for i, d := range conf.RootFS.DiffIDs {
		rec.Layers[i] = rec.Layers[first[d]]
	}
	return rec, rec.check()
}

func directLayer(ctx context.Context, d Digest, open func(Digest) (io.ReadCloser, error), opt CaptureOptions) (Layer, error) {
	r, err := open(d)
	if err != nil {
		return Layer{}, err
	}
	defer r.Close()
	l, err := newBlobReader(opt.Sink, opt.Cutter, false).plain(ctx, ctxReader{ctx, r})
	if err != nil {
		return Layer{}, err
	}
	if l.DiffID != d {
		return Layer{}, fmt.Errorf("the engine's store holds %s in its place: %w", l.DiffID, ErrDigest)
	}
	return l, nil
}
