package layer

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"lifeboat/internal/cut"
)

// maxZstdWindow bounds the memory that decompressing takes, in bytes.
const maxZstdWindow = 128 << 20

// detect tells the compression of a blob by its first bytes, as engines do.
func detect(head []byte) Compression {
	switch {
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b, 8}):
		return Gzip
	case bytes.HasPrefix(head, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		return Zstd
	case len(head) >= 4 && head[0]&0xf0 == 0x50 && bytes.Equal(head[1:4], []byte{0x2a, 0x4d, 0x18}): // skippable frame
		return Zstd
	}
	return Uncompressed
}

// decompressor opens a compressed stream.
func decompressor(c Compression, r io.Reader) (io.ReadCloser, error) {
	if c == Gzip {
		return gzip.NewReader(r)
	}
	zr, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxZstdWindow))
	if err != nil {
		return nil, err
	}
	return zr.IOReadCloser(), nil
}

// damagedError says that a blob's own bytes are at fault, so that the rest of
// the archive can still be read.
type damagedError struct{ err error }

func (e *damagedError) Error() string { return e.err.Error() }
func (e *damagedError) Unwrap() error { return e.err }

// tee reads from r and writes what it read to w. It remembers the first error
// of either, to tell a broken archive or sink from a broken blob. w may be nil.
type tee struct {
	r   io.Reader
	w   io.Writer
	err error
}

func (t *tee) Read(p []byte) (int, error) {
	if t.err != nil {
		return 0, t.err
	}
	n, err := t.r.Read(p)
	if n > 0 && t.w != nil {
		if _, werr := t.w.Write(p[:n]); werr != nil {
			err = werr
		}
	}
	t.err = err
	return n, err
}

// failed is the error that is not just the end.
func (t *tee) failed() error {
	if t.err == io.EOF {
		return nil
	}
	return t.err
}

// damaged makes a *damagedError of an error of a decompressor that reads from
// t, unless it comes through t.
func (t *tee) damaged(c Compression, err error) error {
	if below := t.failed(); below != nil {
		return below
	}
	return &damagedError{fmt.Errorf("decompress %s: %w", c, err)}
}

// blobReader stores blobs one after the other.
type blobReader struct {
	sink    Sink
	cutter  *cut.Cutter
	recipes bool
	bufs    *splitBuffers
	sample  []byte
}

func newBlobReader(sink Sink, cutter *cut.Cutter, recipes bool) *blobReader {
	return &blobReader{sink: sink, cutter: cutter, recipes: recipes, bufs: newSplitBuffers(), sample: make([]byte, sampleStored)}
}

// read stores the layer that is in r and returns it with digests of what was
// read. A *damagedError concerns this blob only; part of r may be unread then.
func (b *blobReader) read(ctx context.Context, r io.Reader) (Layer, error) {
	n, err := io.ReadFull(r, b.sample[:6])
	if err != nil && err != io.EOF && !errors.Is(err, io.ErrUnexpectedEOF) {
		return Layer{}, err
	}
	all := io.MultiReader(bytes.NewReader(b.sample[:n:n]), r)
	c := detect(b.sample[:n])
	if c == Uncompressed {
		return b.plain(ctx, all)
	}
	var recipe *Recipe
	if c == Gzip && b.recipes {
		n2, err := io.ReadFull(r, b.sample[n:])
		if err != nil && err != io.EOF && !errors.Is(err, io.ErrUnexpectedEOF) {
			return Layer{}, err
		}
		n += n2
		all = io.MultiReader(bytes.NewReader(b.sample[:n:n]), r)
		recipe = findRecipe(b.sample[:n], err != nil)
	}
	blobHash := newAsyncHash(sha256.New())
	defer blobHash.Close()
	plainHash := newAsyncHash(sha256.New())
	defer plainHash.Close()

	var l Layer
	blob := &Blob{Compression: c}
	if recipe != nil {
		l, err = b.withRecipe(ctx, all, blob, recipe, blobHash, plainHash)
	} else {
		err = b.opaque(ctx, all, blob, blobHash, plainHash)
	}
	if err != nil {
		return Layer{}, err
	}
	l.Size, l.Blob, blob.Size = plainHash.size, blob, blobHash.size
	if l.DiffID, err = plainHash.digest(); err != nil {
		return Layer{}, err
	}
	blob.Digest, err = blobHash.digest()
	return l, err
}

// plain stores an uncompressed layer.
func (b *blobReader) plain(ctx context.Context, r io.Reader) (Layer, error) {
	hash := newAsyncHash(sha256.New())
	defer hash.Close()
	l, err := split(ctx, io.TeeReader(r, hash), b.sink, b.cutter, b.bufs)
	if err != nil {
		return Layer{}, err
	}
	l.DiffID, err = hash.digest()
	return l, err
}

// opaque keeps the stored bytes as they are and decompresses them for the diff
// id and the size only.
func (b *blobReader) opaque(ctx context.Context, r io.Reader, blob *Blob, blobHash, plainHash *asyncHash) error {
	stored := newListWriter(ctx, b.sink, b.cutter)
	in := &tee{r: r, w: io.MultiWriter(blobHash, stored)}
	zr, err := decompressor(blob.Compression, in)
	if err != nil {
		return in.damaged(blob.Compression, err)
	}
	defer zr.Close()
	if _, err := io.Copy(plainHash, zr); err != nil { // a hash does not fail
		return in.damaged(blob.Compression, err)
	}
	if _, err := io.Copy(io.Discard, in); err != nil {
		return err
	}
	blob.Stored, err = stored.Close()
	return err
}

// withRecipe stores the decompressed layer in the split form while the recipe
// is followed beside it. From where the recipe fails, if it does, the stored
// bytes are kept as well.
func (b *blobReader) withRecipe(ctx context.Context, r io.Reader, blob *Blob, recipe *Recipe, blobHash, plainHash *asyncHash) (Layer, error) {
	tail := newListWriter(ctx, b.sink, b.cutter)
	m := &matcher{tail: tail}
	in := &tee{r: r, w: io.MultiWriter(blobHash, feeder{m})}
	zr, err := decompressor(blob.Compression, in)
	if err != nil {
		return Layer{}, in.damaged(blob.Compression, err)
	}
	defer zr.Close()
	maker := newGzipMaker(m, recipe)
	async := newAsyncWriter(maker)
	defer async.Close()
	plain := &tee{r: zr, w: io.MultiWriter(plainHash, untilError{async})}
	l, err := split(ctx, plain, b.sink, b.cutter, b.bufs)
	if err != nil {
		if plain.failed() != nil {
			return Layer{}, in.damaged(blob.Compression, err)
		}
		return Layer{}, err
	}
	if _, err := io.Copy(io.Discard, in); err != nil {
		return Layer{}, err
	}
	err = async.Close()
	if err == nil {
		err = maker.Close()
	}
	if err != nil && !errors.Is(err, errMismatch) {
		return Layer{}, err
	}
	if recipe.Bytes, err = m.finish(); err != nil {
		return Layer{}, err
	}
	blob.Recipe = recipe
	blob.Stored, err = tail.Close()
	return l, err
}

// untilError writes until the first error and then swallows.
type untilError struct{ w io.Writer }

func (u untilError) Write(p []byte) (int, error) {
	_, _ = u.w.Write(p)
	return len(p), nil
}
