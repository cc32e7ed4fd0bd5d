package layer

import (
	"archive/tar"
	"context"
	"encoding/json"
	"fmt"
	"io"

	"github.com/distribution/reference"

	"lifeboat/internal/dr"
)

// ArchiveImage is an image for WriteArchive.
type ArchiveImage struct {
	Record *ImageRecord
	// Tags to give it, as in dr.Image.Tags.
	Tags []string
}

// WriteArchive writes an archive for `docker load` with the given images to w,
// streaming: what is in it is read, checked and written in one pass. Layers
// that images share are written once. An archive cut short by an error must
// not be loaded; engines notice.
func WriteArchive(ctx context.Context, w io.Writer, src Source, form Form, images ...ArchiveImage) error {
	a := &archiveWriter{ctx: ctx, src: src, tw: tar.NewWriter(w), done: map[string]bool{}}
	write := a.configForm
	if form == FormTarget {
		write = a.targetForm
	}
	if err := write(images); err != nil {
		return fmt.Errorf("write image archive: %w", err)
	}
	if err := a.tw.Close(); err != nil {
		return fmt.Errorf("write image archive: %w", err)
	}
	return nil
}

type archiveWriter struct {
	ctx  context.Context
	src  Source
	tw   *tar.Writer
	done map[string]bool
}

// member writes one file of the archive, once.
func (a *archiveWriter) member(name string, size int64, write func(io.Writer) error) error {
	if a.done[name] {
		return nil
	}
	a.done[name] = true
	h := &tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size, Mode: 0o644}
	if err := a.tw.WriteHeader(h); err != nil {
		return err
	}
	return write(a.tw)
}

func (a *archiveWriter) bytes(name string, data []byte) error {
	return a.member(name, int64(len(data)), func(w io.Writer) error {
		_, err := w.Write(data)
		return err
	})
}

func (a *archiveWriter) json(name string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return a.bytes(name, data)
}

func (a *archiveWriter) object(name string, o *Object) error {
	if a.done[name] {
		return nil
	}
	data, err := ReadObject(a.ctx, a.src, o)
	if err != nil {
		return err
	}
	return a.bytes(name, data)
}

// configForm is the layout of docker save up to version 24, which all
// versions load.
func (a *archiveWriter) configForm(images []ArchiveImage) error {
	type entry struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	entries := []entry{}
	for _, img := range images {
		rec := img.Record
		e := entry{Config: rec.Config.Digest.Hex() + ".json", RepoTags: img.Tags, Layers: []string{}}
		if err := a.object(e.Config, &rec.Config); err != nil {
			return err
		}
		for i := range rec.Layers {
			l := &rec.Layers[i]
			name := l.DiffID.Hex() + "/layer.tar"
			e.Layers = append(e.Layers, name)
			err := a.member(name, l.Size, func(w io.Writer) error { return WriteLayer(a.ctx, a.src, l, w) })
			if err != nil {
				return err
			}
		}
		entries = append(entries, e)
	}
	return a.json("manifest.json", entries)
}

// targetForm is an OCI layout.
func (a *archiveWriter) targetForm(images []ArchiveImage) error {
	if err := a.bytes("oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`)); err != nil {
		return err
	}
	index := struct {
		SchemaVersion int          `json:"schemaVersion"`
		MediaType     string       `json:"mediaType"`
		Manifests     []Descriptor `json:"manifests"`
	}{2, "application/vnd.oci.image.index.v1+json", []Descriptor{}}
	for _, img := range images {
		rec := img.Record
		target, made, err := targetOf(rec)
		if err != nil {
			return err
		}
		named, err := targetNames(target, img.Tags)
		if err != nil {
			return err
		}
		index.Manifests = append(index.Manifests, named...)
		if made != nil {
			if err := a.bytes(blobName(target.Digest), made); err != nil {
				return err
			}
		}
		if err := a.object(blobName(rec.Config.Digest), &rec.Config); err != nil {
			return err
		}
		for i := range rec.Objects {
			if err := a.object(blobName(rec.Objects[i].Digest), &rec.Objects[i]); err != nil {
				return err
			}
		}
		for _, list := range [][]Layer{rec.Layers, rec.Others} {
			for i := range list {
				l := &list[i]
				name, size, write := blobName(l.DiffID), l.Size, WriteLayer
				if made == nil {
					name, size, write = blobName(l.Blob.Digest), l.Blob.Size, WriteBlob
				}
				err := a.member(name, size, func(w io.Writer) error { return write(a.ctx, a.src, l, w) })
				if err != nil {
					return err
				}
			}
		}
	}
	return a.json("index.json", index)
}

// targetNames gives the entries of index.json for an image: one for each tag.
func targetNames(target Descriptor, tags []string) ([]Descriptor, error) {
	if len(tags) == 0 {
		return []Descriptor{target}, nil
	}
	var out []Descriptor
	for _, tag := range tags {
		named, err := reference.ParseNormalizedNamed(tag)
		if err != nil {
			return nil, fmt.Errorf("tag %q: %w: %w", tag, err, dr.ErrUsage)
		}
		d := target
		d.Annotations = map[string]string{"io.containerd.image.name": reference.TagNameOnly(named).String()}
		if tagged, ok := reference.TagNameOnly(named).(reference.Tagged); ok {
			d.Annotations["org.opencontainers.image.ref.name"] = tagged.Tag()
		}
		out = append(out, d)
	}
	return out, nil
}
