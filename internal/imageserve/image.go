package imageserve

import (
	"context"
	"encoding/json"
	"fmt"
	"io"

	"lifeboat/internal/layer"
)

// tag under which each image is offered.
const tag = "snapshot"

// image is what is offered under one name.
type image struct {
	name      string
	handover  layer.Handover
	root      layer.Digest
	manifests map[layer.Digest]document
	blobs     map[layer.Digest]blob
}

// document is a manifest or an index.
type document struct {
	mediaType string
	data      []byte
}

// blob is a configuration or a layer.
type blob struct {
	size  int64
	write func(ctx context.Context, w io.Writer) error
}

func newImage(ctx context.Context, src layer.Source, rec *layer.ImageRecord, containerdStore bool) (*image, error) {
	img := &image{
		name:      "lifeboat/" + rec.ID.Hex()[:24],
		manifests: map[layer.Digest]document{},
		blobs:     map[layer.Digest]blob{},
	}
	var err error
	if img.handover, err = layer.HandoverTo(rec, containerdStore); err != nil {
		return nil, err
	}
	config, err := layer.ReadObject(ctx, src, &rec.Config)
	if err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	img.blobs[rec.Config.Digest] = bytesBlob(config)
	if img.handover.Form == layer.FormTarget && rec.Target != nil {
		err = img.original(ctx, src, rec)
	} else {
		err = img.made(src, rec)
	}
	return img, err
}

func bytesBlob(data []byte) blob {
	return blob{size: int64(len(data)), write: func(_ context.Context, w io.Writer) error {
		_, err := w.Write(data)
		return err
	}}
}

// original offers what the record's engine had.
func (img *image) original(ctx context.Context, src layer.Source, rec *layer.ImageRecord) error {
	img.root = rec.Target.Digest
	for i := range rec.Objects {
		o := &rec.Objects[i]
		data, err := layer.ReadObject(ctx, src, o)
		if err != nil {
			return err
		}
		// Whether an object is asked for as a manifest or as a blob (an
		// attestation's statement) is the engine's affair.
		img.blobs[o.Digest] = bytesBlob(data)
		img.manifests[o.Digest] = document{mediaType: mediaType(o, rec, data), data: data}
	}
	for _, list := range [][]layer.Layer{rec.Layers, rec.Others} {
		for i := range list {
			l := &list[i]
			img.blobs[l.Blob.Digest] = blob{size: l.Blob.Size, write: func(ctx context.Context, w io.Writer) error {
				return layer.WriteBlob(ctx, src, l, w)
			}}
		}
	}
	return nil
}

// mediaType is the type that a manifest gives itself, or else the one under
// which it was named: the two must agree or engines refuse the manifest.
func mediaType(o *layer.Object, rec *layer.ImageRecord, data []byte) string {
	var own struct {
		MediaType string `json:"mediaType"`
	}
	if json.Unmarshal(data, &own) == nil && own.MediaType != "" {
		return own.MediaType
	}
	if o.MediaType == "" && o.Digest == rec.Target.Digest {
		return rec.Target.MediaType
	}
	return o.MediaType
}

// made offers a manifest of our own over the uncompressed layers.
func (img *image) made(src layer.Source, rec *layer.ImageRecord) error {
	d, data, err := layer.MadeManifest(rec)
	if err != nil {
		return err
	}
	img.root = d.Digest
	img.manifests[d.Digest] = document{mediaType: d.MediaType, data: data}
	for i := range rec.Layers {
		l := &rec.Layers[i]
		img.blobs[l.DiffID] = blob{size: l.Size, write: func(ctx context.Context, w io.Writer) error {
			return layer.WriteLayer(ctx, src, l, w)
		}}
	}
	return nil
}
