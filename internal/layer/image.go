package layer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
)

// sinkError marks an error of the sink, which ends the whole capture.
type sinkError struct{ err error }

func (e *sinkError) Error() string { return e.err.Error() }
func (e *sinkError) Unwrap() error { return e.err }

// Documents of an archive, as far as they are used.
type (
	// saveEntry is an entry of manifest.json.
	saveEntry struct {
		Config       string
		Layers       []string
		LayerSources map[Digest]Descriptor
	}
	// document is an OCI or Docker manifest or index.
	document struct {
		MediaType string       `json:"mediaType"`
		Config    *Descriptor  `json:"config"`
		Layers    []Descriptor `json:"layers"`
		Manifests []Descriptor `json:"manifests"`
	}
	// configuration of an image.
	configuration struct {
		Platform
		RootFS struct {
			DiffIDs []Digest `json:"diff_ids"`
		} `json:"rootfs"`
	}
)

// tops is what the archive lists at its top.
type tops struct {
	saved []saveEntry
	index []Descriptor
}

func (a *archive) tops() (tops, error) {
	var t tops
	saved, index := a.find("manifest.json"), a.find("index.json")
	if saved == nil && index == nil {
		return t, errors.New("it has neither manifest.json nor index.json: is it the output of docker save?")
	}
	if saved != nil {
		if err := json.Unmarshal(saved.small, &t.saved); err != nil {
			return t, fmt.Errorf("manifest.json: %w", err)
		}
	}
	if index != nil {
		var doc document
		if err := json.Unmarshal(index.small, &doc); err != nil {
			return t, fmt.Errorf("index.json: %w", err)
		}
		t.index = doc.Manifests
	}
	return t, nil
}

// image makes the record of one image.
func (a *archive) image(ctx context.Context, id Digest, top tops, opt *CaptureOptions) (*ImageRecord, error) {
	if !id.Valid() {
		return nil, fmt.Errorf("%q is no image id", id)
	}
	for _, d := range top.index {
		if d.Digest == id {
			w := &walk{a: a, opt: opt, rec: &ImageRecord{Format: RecordFormat, ID: id}, seen: map[Digest]bool{}}
			return w.image(ctx, d)
		}
	}
	for i := range top.saved {
		m := a.find(top.saved[i].Config)
		if m != nil && m.small != nil && DigestOf(m.small) == id {
			return a.saved(ctx, id, m.small, &top.saved[i], opt)
		}
	}
	return nil, ErrImageMissing
}

// saved makes the record of an image of an engine whose image ids are digests
// of configurations.
func (a *archive) saved(ctx context.Context, id Digest, config []byte, entry *saveEntry, opt *CaptureOptions) (*ImageRecord, error) {
	rec := &ImageRecord{Format: RecordFormat, ID: id}
	conf, err := rec.setConfig(ctx, config, "application/vnd.docker.container.image.v1+json", opt)
	if err != nil {
		return nil, err
	}
	if len(entry.Layers) != len(conf.RootFS.DiffIDs) {
		return nil, fmt.Errorf("manifest.json lists %d layers, the configuration %d", len(entry.Layers), len(conf.RootFS.DiffIDs))
	}
	for i, name := range entry.Layers {
		want := conf.RootFS.DiffIDs[i]
		m := a.find(name)
		if m == nil {
			return nil, missingLayer(want, entry.LayerSources[want].MediaType)
		}
		l, err := a.layerOf(ctx, m, want)
		if err != nil {
			return nil, err
		}
		// This engine names uncompressed bytes only.
		if l.split() {
			l.Blob = nil
		}
		rec.Layers = append(rec.Layers, l)
	}
	return rec, rec.check()
}

func missingLayer(d Digest, mediaType string) error {
	if strings.Contains(mediaType, "foreign") || strings.Contains(mediaType, "nondistributable") {
		return fmt.Errorf("layer %s (%s): %w", d, mediaType, ErrForeignLayer)
	}
	return fmt.Errorf("layer %s: %w", d, ErrLayerMissing)
}

// layerOf gives a member as the layer with the diff id want.
func (a *archive) layerOf(ctx context.Context, m *member, want Digest) (Layer, error) {
	l, err := a.asLayer(ctx, m)
	if err != nil {
		return Layer{}, fmt.Errorf("layer %s: %w", want, err)
	}
	if l.DiffID != want {
		return Layer{}, fmt.Errorf("layer %s: the archive holds %s in its place: %w", want, l.DiffID, ErrDigest)
	}
	return l, nil
}

// object stores a small blob.
func object(ctx context.Context, data []byte, mediaType string, sink Sink) (Object, error) {
	o := Object{MediaType: mediaType, Digest: DigestOf(data), Size: int64(len(data))}
	if len(data) == 0 {
		return o, nil
	}
	ref, err := sink.Put(ctx, data)
	if err != nil {
		return Object{}, &sinkError{err}
	}
	o.Data = append(o.Data, ref)
	return o, nil
}

// setConfig stores the configuration and takes the platform from it.
func (r *ImageRecord) setConfig(ctx context.Context, data []byte, mediaType string, opt *CaptureOptions) (configuration, error) {
	var conf configuration
	if err := json.Unmarshal(data, &conf); err != nil {
		return conf, fmt.Errorf("configuration: %w", err)
	}
	var err error
	if r.Config, err = object(ctx, data, mediaType, opt.Sink); err != nil {
		return conf, err
	}
	r.OS, r.Arch, r.Variant = conf.OS, conf.Arch, conf.Variant
	return conf, nil
}
