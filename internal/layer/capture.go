package layer

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"

	"lifeboat/internal/cut"
	"lifeboat/internal/dr"
)

// CaptureOptions says what to take out of an archive and where to put it.
type CaptureOptions struct {
	// Want are the ids of the images, as the engine names them.
	Want []Digest
	// Sink takes the units; its Put is called from one goroutine.
	Sink Sink
	// Cutter is the repository's, so that files in layers and on disk are cut alike.
	Cutter *cut.Cutter
	// Known, if set, gives layers that earlier records hold, by diff id or by
	// the digest of their stored form (see KnownLayers). Archives that name
	// blobs by digest are then not read where the layer is known, and its
	// units are not put again: the caller sees to it that they are kept.
	Known func(Digest) (Layer, bool)
	// Recipes turns on the search for recipes for compressed layers. It makes
	// their content deduplicate with everything else, at the price of
	// compressing at capture and at restore, and of depending on a compressor
	// (RecipeGo). Without it such layers are kept as stored.
	Recipes bool
	// Platform of the engine, to choose among the platforms of an image.
	Platform Platform
}

// Captured is the outcome for one wanted image.
type Captured struct {
	ID Digest
	// Record is nil where Err is set.
	Record *ImageRecord
	// Err says why this image could not be captured: ErrImageMissing,
	// ErrLayerMissing, ErrForeignLayer, ErrDigest, or a layer that does not
	// decompress.
	Err error
}

// maxKept bounds the small members of an archive that are held in memory until
// its end, in bytes.
const maxKept = 64 << 20

// member is what became of one file of the archive.
type member struct {
	small []byte // kept in memory, or nil
	layer Layer
	known bool // layer is from Known
	err   error
}

// archive is an engine's archive after it was read.
type archive struct {
	reader  *blobReader
	members map[string]*member
	links   map[string]string
	kept    int
}

// Capture reads the archive that `docker save` gives for the wanted images, in
// one pass and to its end, stores their layers and returns one Captured for
// each of Want, in its order. It knows the archives of Docker 20.10 to 24
// (legacy layout), of 25 and later (OCI layout), and of engines with the
// containerd image store (stored blobs, several platforms, attestations).
// Every layer is checked against its digest while it passes. The error is for
// what concerns the archive as a whole: it cannot be read, or the sink fails.
//
// Memory is bounded (some 40 MiB) whatever the size of the layers, apart from
// manifests and configurations, of which at most 64 MiB are held.
func Capture(ctx context.Context, save io.Reader, opt CaptureOptions) ([]Captured, error) {
	if len(opt.Want) == 0 {
		return nil, fmt.Errorf("capture images: none named: %w", dr.ErrUsage)
	}
	a := &archive{
		reader:  newBlobReader(opt.Sink, opt.Cutter, opt.Recipes),
		members: map[string]*member{},
		links:   map[string]string{},
	}
	if err := a.readAll(ctx, save, opt.Known); err != nil {
		return nil, fmt.Errorf("read the engine's image archive: %w", err)
	}
	top, err := a.tops()
	if err != nil {
		return nil, fmt.Errorf("read the engine's image archive: %w", err)
	}
	out := make([]Captured, len(opt.Want))
	for i, id := range opt.Want {
		out[i].ID = id
		rec, err := a.image(ctx, id, top, &opt)
		if err != nil && ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		var fatal *sinkError
		if errors.As(err, &fatal) {
			return nil, fmt.Errorf("capture image %s: %w", id, err)
		}
		if err != nil {
			out[i].Err = fmt.Errorf("capture image %s: %w", id, err)
			continue
		}
		out[i].Record = rec
	}
	return out, nil
}

// KnownLayers makes the function for CaptureOptions.Known from earlier records.
func KnownLayers(records ...*ImageRecord) func(Digest) (Layer, bool) {
	known := map[Digest]Layer{}
	for _, rec := range records {
		for _, list := range [][]Layer{rec.Layers, rec.Others} {
			for _, l := range list {
				known[l.DiffID] = l
				if l.Blob != nil {
					known[l.Blob.Digest] = l
				}
			}
		}
	}
	return func(d Digest) (Layer, bool) {
		l, ok := known[d]
		return l, ok
	}
}

// ctxReader ends when its context does.
type ctxReader struct {
	ctx context.Context
	r   io.Reader
}

func (c ctxReader) Read(p []byte) (int, error) {
	if c.ctx.Err() != nil {
		return 0, context.Cause(c.ctx)
	}
	return c.r.Read(p)
}

// readAll goes through the archive once.
func (a *archive) readAll(ctx context.Context, save io.Reader, known func(Digest) (Layer, bool)) error {
	save = ctxReader{ctx, save}
	tr := tar.NewReader(save)
	for {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		name := memberName(h.Name)
		switch h.Typeflag {
		case tar.TypeSymlink:
			a.links[name] = memberName(path.Join(path.Dir(name), h.Linkname))
		case tar.TypeLink:
			a.links[name] = memberName(h.Linkname)
		case tar.TypeReg:
			if a.members[name], err = a.member(ctx, name, h.Size, tr, known); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
	}
	// The sender may want all of its bytes taken.
	_, err := io.Copy(io.Discard, save)
	return err
}

// memberName brings names of members into one form.
func memberName(name string) string {
	return strings.TrimPrefix(path.Clean("/"+name), "/")
}

// member reads one file of the archive. Errors of the blob itself are kept in
// the member.
func (a *archive) member(ctx context.Context, name string, size int64, r io.Reader, known func(Digest) (Layer, bool)) (*member, error) {
	named := digestOfName(name)
	if named != "" && known != nil {
		if l, ok := known(named); ok && (l.split() || l.stored() == named) {
			return &member{layer: l, known: true}, nil
		}
	}
	head := make([]byte, 1)
	n, err := io.ReadFull(r, head)
	if err != nil && err != io.EOF {
		return nil, err
	}
	all := io.MultiReader(bytes.NewReader(head[:n]), r)
	// Manifests and configurations are JSON. A layer may begin like JSON as
	// well; kept in memory it can still be made a layer of.
	if n == 1 && (head[0] == '{' || head[0] == '[') && size <= maxObject && a.kept+int(size) <= maxKept {
		data, err := io.ReadAll(all)
		if err != nil {
			return nil, err
		}
		a.kept += len(data)
		m := &member{small: data}
		if named != "" && DigestOf(data) != named {
			m.err = fmt.Errorf("%s: %w", name, ErrDigest)
		}
		return m, nil
	}
	l, err := a.reader.read(ctx, all)
	m := &member{layer: l}
	var bad *damagedError
	switch {
	case errors.As(err, &bad):
		m.err = fmt.Errorf("%s: %w", name, bad.err)
	case err != nil:
		return nil, err
	case named != "" && m.layer.stored() != named:
		m.err = fmt.Errorf("%s: %w", name, ErrDigest)
	}
	return m, nil
}

// stored is the digest of the bytes as they were read.
func (l *Layer) stored() Digest {
	if l.Blob != nil {
		return l.Blob.Digest
	}
	return l.DiffID
}

// digestOfName gives the digest that a member of an OCI layout is named by.
func digestOfName(name string) Digest {
	rest, ok := strings.CutPrefix(name, "blobs/sha256/")
	if !ok {
		return ""
	}
	d := Digest("sha256:" + rest)
	if !d.Valid() {
		return ""
	}
	return d
}

func blobName(d Digest) string { return "blobs/sha256/" + d.Hex() }

// find resolves a name, through links, or returns nil.
func (a *archive) find(name string) *member {
	name = memberName(name)
	for range 16 {
		if m, ok := a.members[name]; ok {
			return m
		}
		to, ok := a.links[name]
		if !ok {
			return nil
		}
		name = to
	}
	return nil
}

// asLayer gives a member as a layer.
func (a *archive) asLayer(ctx context.Context, m *member) (Layer, error) {
	if m.err != nil {
		return Layer{}, m.err
	}
	if m.small == nil {
		return m.layer, nil
	}
	l, err := a.reader.read(ctx, bytes.NewReader(m.small))
	var bad *damagedError
	if err != nil && !errors.As(err, &bad) {
		err = &sinkError{err}
	}
	return l, err
}
