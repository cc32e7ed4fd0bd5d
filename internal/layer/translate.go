package layer

import (
	"context"
	"errors"
	"fmt"
	"io"

	"lifeboat/internal/cut"
	"lifeboat/internal/dr"
)

// Translator gives, in the same order, the units of one repository for those of
// another that hold the same bytes.
type Translator func(ctx context.Context, refs []dr.UnitRef) ([]dr.UnitRef, error)

// listBatch is how many refs of a list are translated together.
const listBatch = 4096

// Translate makes the record of the same image in another repository: every unit
// that it names by units, and its lists written anew into sink, cut with that
// repository's cutter. Memory is bounded, however many files the layers hold.
func Translate(ctx context.Context, src Source, sink Sink, cutter *cut.Cutter, rec *ImageRecord, units Translator) (*ImageRecord, error) {
	out := *rec
	t := translation{src: src, sink: sink, cutter: cutter, units: units}
	var err error
	if out.Config.Data, err = units(ctx, rec.Config.Data); err != nil {
		return nil, fmt.Errorf("image %s: configuration: %w", rec.ID, err)
	}
	out.Objects = append([]Object(nil), rec.Objects...)
	for i := range out.Objects {
		if out.Objects[i].Data, err = units(ctx, rec.Objects[i].Data); err != nil {
			return nil, fmt.Errorf("image %s: object %s: %w", rec.ID, out.Objects[i].Digest, err)
		}
	}
	if out.Layers, err = t.layers(ctx, rec.Layers); err != nil {
		return nil, fmt.Errorf("image %s: %w", rec.ID, err)
	}
	if out.Others, err = t.layers(ctx, rec.Others); err != nil {
		return nil, fmt.Errorf("image %s: %w", rec.ID, err)
	}
	return &out, nil
}

type translation struct {
	src    Source
	sink   Sink
	cutter *cut.Cutter
	units  Translator
}

func (t *translation) layers(ctx context.Context, in []Layer) ([]Layer, error) {
	out := append([]Layer(nil), in...)
	for i := range out {
		l := &out[i]
		var err error
		if l.Skeleton, err = t.units(ctx, l.Skeleton); err == nil {
			l.Contents, err = t.list(ctx, l.Contents)
		}
		if err == nil && l.Blob != nil {
			b := *l.Blob
			b.Stored, err = t.list(ctx, b.Stored)
			l.Blob = &b
		}
		if err != nil {
			return nil, fmt.Errorf("layer %s: %w", l.DiffID, err)
		}
	}
	return out, nil
}

// list translates a content list.
func (t *translation) list(ctx context.Context, refs []dr.UnitRef) ([]dr.UnitRef, error) {
	if len(refs) == 0 {
		return refs, nil
	}
	in := &unitReader{ctx: ctx, src: t.src, refs: refs}
	out := newPieceWriter(ctx, t.sink, t.cutter)
	for end := false; !end; {
		var batch []stretch
		for len(batch) < listBatch {
			s, err := readStretch(in)
			if errors.Is(err, io.EOF) {
				end = true
				break
			}
			if err != nil {
				return nil, err
			}
			batch = append(batch, s)
		}
		if err := t.write(ctx, out, batch); err != nil {
			return nil, err
		}
	}
	return out.Close()
}

func (t *translation) write(ctx context.Context, out io.Writer, batch []stretch) error {
	var refs []dr.UnitRef
	for _, s := range batch {
		if s.hole == 0 {
			refs = append(refs, s.ref)
		}
	}
	refs, err := t.units(ctx, refs)
	if err != nil {
		return err
	}
	var enc []byte
	for _, s := range batch {
		if s.hole > 0 {
			enc = appendHole(enc, s.hole)
			continue
		}
		enc = appendRef(enc, refs[0])
		refs = refs[1:]
	}
	_, err = out.Write(enc)
	return err
}
