package copying

import (
	"context"
	"errors"
	"fmt"
	"io"

	"lifeboat/internal/catalog"
	"lifeboat/internal/dr"
	"lifeboat/internal/fence"
	"lifeboat/internal/layer"
	"lifeboat/internal/repo"
)

// one copies one snapshot.
func (j *job) one(ctx context.Context, row *Row) error {
	rd, err := j.o.From.NewReader(ctx, &row.From)
	if err != nil {
		return &readError{err}
	}
	defer rd.Close()
	root, err := rd.Root(ctx)
	if err != nil {
		return &readError{err}
	}
	w, err := j.writer(ctx)
	if err != nil {
		return err
	}
	defer w.Close()
	t := &translator{job: j, rd: rd, w: w}
	if err := t.root(ctx, root); err != nil {
		return err
	}
	root.Epoch, root.Kind = j.epoch, dr.KindDivergent
	if fence.OnLine(j.claims, j.facts, row.From.ID) {
		root.Kind = dr.KindCurrent
	}
	if p := root.Parent; p != nil {
		root.Parent = nil
		if s := j.copies.of[*p]; s != nil {
			root.Parent = &s.ID
		}
	}
	origin := &repo.Origin{Repo: j.o.From.ID(), Snapshot: row.From.ID, Number: row.From.Number, Host: row.From.Host, Epoch: row.From.Epoch}
	snap, err := w.Commit(ctx, root, repo.CommitInfo{FreezeMicros: row.From.Freeze.Microseconds(), BytesTotal: row.From.BytesTotal, Origin: origin})
	st := w.Stats()
	j.res.Packs += st.Packs
	j.res.Sent += st.BytesSent
	if err != nil {
		return err
	}
	row.To, row.Copied = snap, true
	j.copies.of[row.From.ID], j.newest = snap, snap
	return nil
}

// writer begins the copy of a snapshot on the one before; where that is not whole
// any more, on nothing.
func (j *job) writer(ctx context.Context) (*repo.Writer, error) {
	o := repo.WriterOptions{System: j.system, Parent: j.newest, Exact: true}
	w, err := j.o.To.NewWriter(ctx, o)
	if errors.Is(err, repo.ErrParentDamaged) {
		o.Parent = nil
		w, err = j.o.To.NewWriter(ctx, o)
	}
	return w, err
}

// root translates everything that a root record names, in place.
func (t *translator) root(ctx context.Context, root *dr.Root) error {
	for i := range root.Images {
		if err := t.image(ctx, &root.Images[i]); err != nil {
			return fmt.Errorf("image %s: %w", root.Images[i].ID, err)
		}
	}
	for i := range root.Files {
		var err error
		if root.Files[i].Content, err = t.units(ctx, root.Files[i].Content); err != nil {
			return fmt.Errorf("file %s: %w", root.Files[i].Path, err)
		}
	}
	for i := range root.Trees {
		if err := t.tree(ctx, &root.Trees[i]); err != nil {
			return fmt.Errorf("tree %s: %w", root.Trees[i].Key, err)
		}
	}
	return t.flush()
}

func (t *translator) image(ctx context.Context, im *dr.Image) error {
	rec, err := layer.Decode(ctx, t.rd, im.Record)
	if err != nil {
		return &readError{err}
	}
	out, err := layer.Translate(ctx, t.source(), t.w, t.job.cut, rec, t.units)
	if err != nil {
		return err
	}
	im.Record, err = layer.Encode(ctx, t.w, t.job.cut, out)
	return err
}

// tree writes the catalog of a tree anew: its pages end elsewhere, because that
// is a question of the other repository's key.
func (t *translator) tree(ctx context.Context, tr *dr.Tree) error {
	in, err := catalog.Open(ctx, t.rd, tr.Catalog)
	if err != nil {
		return &readError{err}
	}
	b := catalog.NewBuilder(t.w, t.job.o.To.CutKey(), t.job.o.To.UnitID)
	p := &pending{t: t, b: b}
	for {
		e, err := in.Next(ctx)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return &readError{err}
		}
		if e.Indirect {
			if err := p.flush(ctx); err != nil {
				return err
			}
			if err := t.large(ctx, in, &e); err != nil {
				return fmt.Errorf("content of %q: %w", e.Path, err)
			}
			if err := b.Add(ctx, e); err != nil {
				return err
			}
			continue
		}
		if err := p.add(ctx, e); err != nil {
			return err
		}
	}
	if err := p.flush(ctx); err != nil {
		return err
	}
	sum, err := b.Close(ctx)
	if err != nil {
		return err
	}
	if sum.Entries != tr.Entries || sum.Bytes != tr.Bytes {
		return &readError{fmt.Errorf("it has %d entries and %d bytes, and the root record says %d and %d: %w", sum.Entries, sum.Bytes, tr.Entries, tr.Bytes, dr.ErrTampered)}
	}
	tr.Catalog, tr.Hash = sum.Table, sum.Hash
	return nil
}

// pending are entries whose content is translated together.
type pending struct {
	t       *translator
	b       *catalog.Builder
	entries []catalog.Entry
	refs    []dr.UnitRef
}

const (
	batchRefs    = 4096
	batchEntries = 4096
)

func (p *pending) add(ctx context.Context, e catalog.Entry) error {
	for _, r := range e.Refs {
		if !r.Hole {
			p.refs = append(p.refs, r.Unit())
		}
	}
	p.entries = append(p.entries, e)
	if len(p.refs) >= batchRefs || len(p.entries) >= batchEntries {
		return p.flush(ctx)
	}
	return nil
}

func (p *pending) flush(ctx context.Context) error {
	refs, err := p.t.units(ctx, p.refs)
	if err != nil {
		return err
	}
	for _, e := range p.entries {
		out := make([]catalog.Ref, len(e.Refs))
		for i, r := range e.Refs {
			if out[i] = r; !r.Hole {
				out[i].ID = refs[0].ID
				refs = refs[1:]
			}
		}
		if len(out) > 0 {
			e.Refs = out
		}
		if err := p.b.Add(ctx, e); err != nil {
			return err
		}
	}
	p.entries, p.refs = p.entries[:0], p.refs[:0]
	return nil
}

// large translates the content list of a file that has many units.
func (t *translator) large(ctx context.Context, in *catalog.Reader, e *catalog.Entry) error {
	var list catalog.ListBuilder
	var batch []catalog.Ref
	put := func() error {
		var refs []dr.UnitRef
		for _, r := range batch {
			if !r.Hole {
				refs = append(refs, r.Unit())
			}
		}
		refs, err := t.units(ctx, refs)
		if err != nil {
			return err
		}
		for _, r := range batch {
			if !r.Hole {
				r.ID = refs[0].ID
				refs = refs[1:]
			}
			if err := list.Add(ctx, t.w, r); err != nil {
				return err
			}
		}
		batch = batch[:0]
		return nil
	}
	var own error
	err := in.Content(ctx, e, func(_ int64, r catalog.Ref) error {
		if batch = append(batch, r); len(batch) >= batchRefs {
			own = put()
		}
		return own
	})
	if own != nil {
		return own
	}
	if err != nil {
		return &readError{err}
	}
	if err := put(); err != nil {
		return err
	}
	return list.Finish(ctx, t.w, e)
}
