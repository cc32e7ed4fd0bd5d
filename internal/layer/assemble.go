package layer

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"

	"golang.org/x/sync/errgroup"

	"lifeboat/internal/dr"
)

// Bounds of a window: what is fetched together while the window before it is
// written. Two windows are in memory at a time.
const (
	windowBytes = 8 << 20
	windowParts = 16 << 10
	unitReads   = 4 // at the same time, from a Source that is no Fetcher
)

// part is a stretch of output: raw bytes, a hole, or the unit at index.
type part struct {
	raw   []byte
	hole  int64
	index int // into window.refs; -1 if it is none
}

// window is a stretch of a layer with everything needed to write it.
type window struct {
	parts []part
	refs  []dr.UnitRef
	data  [][]byte
	err   error
}

// WriteLayer writes the exact uncompressed bytes of the layer to w and checks
// their digest at the end: an error says that what was written must not be
// used. Reading is a window ahead of writing. Errors of w are returned as they
// are; damaged data is dr.ErrTampered.
func WriteLayer(ctx context.Context, src Source, l *Layer, w io.Writer) error {
	hash := newAsyncHash(sha256.New())
	defer hash.Close()
	if err := writePlain(ctx, src, l, io.MultiWriter(w, hash)); err != nil {
		return err
	}
	if got, err := hash.digest(); err != nil || got != l.DiffID || hash.size != l.Size {
		return errors.Join(err, fmt.Errorf("layer %s: gives %d bytes of %s, %d were promised: %w", l.DiffID, hash.size, got, l.Size, dr.ErrTampered))
	}
	return nil
}

// WriteBlob writes the exact stored bytes that the engine named and checks
// their digest at the end. ErrNoStoredBlob where the engine named none.
func WriteBlob(ctx context.Context, src Source, l *Layer, w io.Writer) error {
	b := l.Blob
	if b == nil {
		return fmt.Errorf("layer %s: %w", l.DiffID, ErrNoStoredBlob)
	}
	if b.Compression == Uncompressed {
		return WriteLayer(ctx, src, l, w)
	}
	hash := newAsyncHash(sha256.New())
	defer hash.Close()
	out := io.MultiWriter(w, hash)
	if b.Recipe != nil {
		err := makeBlob(out, b.Recipe, func(w io.Writer) error { return writeSplit(ctx, src, l, w) })
		if err != nil {
			return fmt.Errorf("compress layer %s again: %w", l.DiffID, err)
		}
	}
	if err := writeStored(ctx, src, b, out); err != nil {
		return err
	}
	got, err := hash.digest()
	if err == nil && got != b.Digest && b.Recipe != nil {
		return fmt.Errorf("blob %s: the recipe %s gives other bytes in this program: use the version that wrote the snapshot: %w", b.Digest, b.Recipe.Method, ErrDigest)
	}
	if err != nil || got != b.Digest || hash.size != b.Size {
		return errors.Join(err, fmt.Errorf("blob %s: gives %d bytes of %s, %d were promised: %w", b.Digest, hash.size, got, b.Size, dr.ErrTampered))
	}
	return nil
}

// OpenLayer is WriteLayer as a reader; the last Read returns the error instead
// of io.EOF when the digest does not match. Close must be called; it ends the
// work behind it.
func OpenLayer(ctx context.Context, src Source, l *Layer) (io.ReadCloser, int64) {
	return open(ctx, func(ctx context.Context, w io.Writer) error { return WriteLayer(ctx, src, l, w) }), l.Size
}

// OpenBlob is WriteBlob as a reader, as OpenLayer.
func OpenBlob(ctx context.Context, src Source, l *Layer) (io.ReadCloser, int64, error) {
	if l.Blob == nil {
		return nil, 0, fmt.Errorf("layer %s: %w", l.DiffID, ErrNoStoredBlob)
	}
	return open(ctx, func(ctx context.Context, w io.Writer) error { return WriteBlob(ctx, src, l, w) }), l.Blob.Size, nil
}

// pipe is the reading end of work on a goroutine.
type pipe struct {
	*io.PipeReader
	cancel context.CancelFunc
	done   chan struct{}
}

func open(ctx context.Context, write func(context.Context, io.Writer) error) io.ReadCloser {
	ctx, cancel := context.WithCancel(ctx)
	r, w := io.Pipe()
	p := &pipe{PipeReader: r, cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(p.done)
		// Skeletons are full of small pieces; each Write to a pipe is a
		// hand-over between goroutines.
		buf := bufio.NewWriterSize(w, 256<<10)
		err := write(ctx, buf)
		if err == nil {
			err = buf.Flush()
		}
		_ = w.CloseWithError(err) // never fails
	}()
	return p
}

// Close ends the work and waits for it.
func (p *pipe) Close() error {
	p.cancel()
	err := p.PipeReader.Close()
	<-p.done
	return err
}

// writePlain writes the uncompressed bytes without checking them.
func writePlain(ctx context.Context, src Source, l *Layer, w io.Writer) error {
	if l.split() {
		return writeSplit(ctx, src, l, w)
	}
	if l.Blob == nil || l.Blob.Recipe != nil {
		return fmt.Errorf("layer %s: neither a split nor a stored form: %w", l.DiffID, dr.ErrTampered)
	}
	stored := open(ctx, func(ctx context.Context, w io.Writer) error { return writeStored(ctx, src, l.Blob, w) })
	defer stored.Close()
	in := &tee{r: stored}
	zr, err := decompressor(l.Blob.Compression, in)
	if err == nil {
		defer zr.Close()
		out := &tee{r: io.LimitReader(zr, l.Size+1)}
		if _, err = io.Copy(w, out); err != nil && out.failed() == nil {
			return err // of w
		}
	}
	if below := in.failed(); below != nil {
		return below
	}
	if err != nil {
		return fmt.Errorf("layer %s: decompress: %w: %w", l.DiffID, err, dr.ErrTampered)
	}
	return nil
}

// writeStored writes the bytes of the blob that no recipe gives.
func writeStored(ctx context.Context, src Source, b *Blob, w io.Writer) error {
	list := &unitReader{ctx: ctx, src: src, refs: b.Stored}
	left := b.Size - b.reproduced()
	err := writeWindows(ctx, src, w, func(win *window) error {
		s, err := readStretch(list)
		if err != nil {
			return err
		}
		if left -= s.len(); left < 0 {
			return fmt.Errorf("more than %d bytes: %w", b.Size, dr.ErrTampered)
		}
		win.add(s)
		return nil
	})
	if err != nil {
		return fmt.Errorf("blob %s: %w", b.Digest, err)
	}
	return nil
}

// writeSplit writes a layer from its split form.
func writeSplit(ctx context.Context, src Source, l *Layer, w io.Writer) error {
	if err := writeWindows(ctx, src, w, newJoiner(ctx, src, l).next); err != nil {
		return fmt.Errorf("layer %s: %w", l.DiffID, err)
	}
	return nil
}

// joiner decodes skeleton and content list side by side.
type joiner struct {
	skeleton, list *unitReader
	left           int64 // of the layer
	op             operation
	begun          bool
}

func newJoiner(ctx context.Context, src Source, l *Layer) *joiner {
	return &joiner{
		skeleton: &unitReader{ctx: ctx, src: src, refs: l.Skeleton},
		list:     &unitReader{ctx: ctx, src: src, refs: l.Contents},
		left:     l.Size,
	}
}

// next adds one part to win; io.EOF at the end of the skeleton.
func (j *joiner) next(win *window) error {
	if !j.begun {
		var magic [len(skeletonMagic)]byte
		if _, err := io.ReadFull(j.skeleton, magic[:]); err != nil {
			return truncated("skeleton", err)
		}
		if string(magic[:]) != skeletonMagic {
			return fmt.Errorf("skeleton of an unknown version: %w", dr.ErrTampered)
		}
		j.begun = true
	}
	if j.op.n == 0 {
		op, err := readOperation(j.skeleton)
		if err == io.EOF && j.left > 0 {
			return fmt.Errorf("skeleton ends %d bytes early: %w", j.left, dr.ErrTampered)
		}
		if err != nil {
			return err
		}
		if j.left -= op.n; j.left < 0 {
			return fmt.Errorf("skeleton goes beyond the size of the layer: %w", dr.ErrTampered)
		}
		j.op = op
	}
	if !j.op.content {
		raw, err := j.skeleton.next(j.op.n)
		if err != nil {
			return truncated("skeleton", err)
		}
		win.parts = append(win.parts, part{raw: raw, index: -1})
		j.op.n -= int64(len(raw))
		return nil
	}
	s, err := readStretch(j.list)
	if err != nil {
		return truncated("content list", err)
	}
	if j.op.n -= s.len(); j.op.n < 0 {
		return fmt.Errorf("content list does not fit the skeleton: %w", dr.ErrTampered)
	}
	win.add(s)
	return nil
}

func (win *window) add(s stretch) {
	if s.hole > 0 {
		win.parts = append(win.parts, part{hole: s.hole, index: -1})
		return
	}
	win.parts = append(win.parts, part{index: len(win.refs)})
	win.refs = append(win.refs, s.ref)
}

// fill collects parts up to the bounds of a window.
func (win *window) fill(next func(*window) error) error {
	bytes, refs := int64(0), 0
	for bytes < windowBytes && len(win.parts) < windowParts {
		if err := next(win); err != nil {
			return err
		}
		bytes += int64(len(win.parts[len(win.parts)-1].raw))
		if len(win.refs) > refs {
			bytes += int64(win.refs[refs].Len)
			refs++
		}
	}
	return nil
}

// fetch reads units, several at a time.
func fetch(ctx context.Context, src Source, refs []dr.UnitRef) ([][]byte, error) {
	data := make([][]byte, len(refs))
	if f, ok := src.(Fetcher); ok && len(refs) > 1 {
		err := f.Fetch(ctx, refs, func(i int, d []byte) error {
			data[i] = bytes.Clone(d)
			return checkUnit(refs[i], d)
		})
		if err != nil {
			return nil, err
		}
		for i, d := range data {
			if d == nil && refs[i].Len > 0 {
				return nil, fmt.Errorf("unit %s was not delivered: %w", refs[i].ID, dr.ErrTampered)
			}
		}
		return data, nil
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(unitReads)
	for i, ref := range refs {
		g.Go(func() (err error) {
			data[i], err = unit(ctx, src, ref)
			return err
		})
	}
	return data, g.Wait()
}

// write writes the window.
func (win *window) write(w io.Writer) error {
	for _, p := range win.parts {
		var err error
		switch {
		case p.hole > 0:
			err = writeZeros(w, p.hole)
		case p.index >= 0:
			_, err = w.Write(win.data[p.index])
			win.data[p.index] = nil
		default:
			_, err = w.Write(p.raw)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

var zeros [64 << 10]byte

func writeZeros(w io.Writer, n int64) error {
	for n > 0 {
		k, err := w.Write(zeros[:min(n, int64(len(zeros)))])
		if err != nil {
			return err
		}
		n -= int64(k)
	}
	return nil
}

// writeWindows writes what next describes, part by part, until it returns
// io.EOF. One window is fetched while the one before it is written.
func writeWindows(ctx context.Context, src Source, w io.Writer, next func(*window) error) error {
	ctx, cancel := context.WithCancel(ctx)
	windows := make(chan *window)
	go func() {
		defer close(windows)
		for {
			win := new(window)
			last := win.fill(next)
			if last != nil && last != io.EOF {
				win.err = last
			} else {
				win.data, win.err = fetch(ctx, src, win.refs)
			}
			select {
			case windows <- win:
			case <-ctx.Done():
				return
			}
			if win.err != nil || last != nil {
				return
			}
		}
	}()
	defer func() {
		cancel()
		for range windows { // until the goroutine is gone
		}
	}()
	for win := range windows {
		if win.err != nil {
			return win.err
		}
		if err := win.write(w); err != nil {
			return err
		}
	}
	return context.Cause(ctx)
}

// Units calls fn for every unit that the record needs besides those of the
// record itself: objects, skeletons, lists and contents. A unit may be named
// more than once.
func Units(ctx context.Context, src Source, rec *ImageRecord, fn func(dr.UnitRef) error) error {
	var direct []dr.UnitRef
	for _, o := range append([]Object{rec.Config}, rec.Objects...) {
		direct = append(direct, o.Data...)
	}
	for _, ref := range direct {
		if err := fn(ref); err != nil {
			return err
		}
	}
	for _, layers := range [][]Layer{rec.Layers, rec.Others} {
		for i := range layers {
			if err := layers[i].units(ctx, src, fn); err != nil {
				return fmt.Errorf("layer %s: %w", layers[i].DiffID, err)
			}
		}
	}
	return nil
}

func (l *Layer) units(ctx context.Context, src Source, fn func(dr.UnitRef) error) error {
	lists := [][]dr.UnitRef{l.Contents}
	if l.Blob != nil {
		lists = append(lists, l.Blob.Stored)
	}
	for _, refs := range append(lists, l.Skeleton) {
		for _, ref := range refs {
			if err := fn(ref); err != nil {
				return err
			}
		}
	}
	for _, refs := range lists {
		r := &unitReader{ctx: ctx, src: src, refs: refs}
		for {
			s, err := readStretch(r)
			if err == io.EOF {
				break
			}
			if err != nil {
				return err
			}
			if s.hole > 0 {
				continue
			}
			if err := fn(s.ref); err != nil {
				return err
			}
		}
	}
	return nil
}
