package layer

import (
	"bytes"
	stdflate "compress/flate"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"sync"

	"github.com/klauspost/compress/flate"
)

// Sizes of the trial that looks for a recipe. A deflate block stands for at most
// 32,768 × 258 bytes, so samplePlain shows one at least.
const (
	sampleStored = 1 << 20
	samplePlain  = 12 << 20
)

// compressorFor gives the compressor of a recipe's method, nil if there is no
// such method.
func compressorFor(method string) func(io.Writer, int) (io.WriteCloser, error) {
	if method == RecipeGo {
		return func(w io.Writer, level int) (io.WriteCloser, error) { return stdflate.NewWriter(w, level) }
	}
	return nil
}

// gzipHeaderLen is the length of the gzip header at the start of b, or 0 if
// there is none or it does not end within b (RFC 1952).
func gzipHeaderLen(b []byte) int {
	const hcrc, extra, name, comment = 2, 4, 8, 16
	if len(b) < 10 || b[0] != 0x1f || b[1] != 0x8b || b[2] != 8 {
		return 0
	}
	flags, at := b[3], 10
	if flags&extra != 0 {
		if len(b) < at+2 {
			return 0
		}
		at += 2 + int(binary.LittleEndian.Uint16(b[at:]))
	}
	for _, f := range []byte{name, comment} {
		if flags&f == 0 {
			continue
		}
		if at > len(b) {
			return 0
		}
		i := bytes.IndexByte(b[at:], 0)
		if i < 0 {
			return 0
		}
		at += i + 1
	}
	if flags&hcrc != 0 {
		at += 2
	}
	if at > len(b) || at > maxHeader {
		return 0
	}
	return at
}

// findRecipe looks for a level at which RecipeGo gives the bytes of sample, the
// start of a gzip blob, or all of it if complete. Bytes of the recipe is not
// set.
func findRecipe(sample []byte, complete bool) *Recipe {
	n := gzipHeaderLen(sample)
	if n == 0 {
		return nil
	}
	// What the sample decompresses to; the error at its end is expected.
	zr := flate.NewReader(bytes.NewReader(sample[n:]))
	plain, err := io.ReadAll(io.LimitReader(zr, samplePlain))
	whole := complete && err == nil && len(plain) < samplePlain
	if len(plain) == 0 && !whole {
		return nil
	}
	for _, level := range levels(sample[8]) {
		r := &Recipe{Method: RecipeGo, Level: level, Header: sample[:n]}
		m := &matcher{pending: sample}
		g := newGzipMaker(m, r)
		_, err := g.Write(plain)
		if err == nil && whole {
			err = g.Close()
		}
		if err == nil && m.matched > int64(n) {
			r.Header = bytes.Clone(r.Header)
			return r
		}
	}
	return nil
}

// levels orders the levels by what Go's gzip writes into the header's XFL
// field and by how common they are.
func levels(xfl byte) []int {
	switch xfl {
	case 2:
		return []int{9}
	case 4:
		return []int{1}
	}
	return []int{6, 5, 7, 8, 4, 3, 2, 9, 1, 0, -2}
}

// gzipMaker writes one gzip member as its recipe says. The bytes do not depend
// on how the plain bytes were divided among calls of Write.
type gzipMaker struct {
	w      io.Writer
	header []byte
	z      io.WriteCloser
	crc    uint32
	size   uint32
	err    error
}

// newGzipMaker takes a recipe that was checked.
func newGzipMaker(w io.Writer, r *Recipe) *gzipMaker {
	g := &gzipMaker{w: w, header: r.Header}
	g.z, g.err = compressorFor(r.Method)(w, r.Level)
	return g
}

func (g *gzipMaker) start() error {
	if g.err == nil && g.header != nil {
		_, g.err = g.w.Write(g.header)
		g.header = nil
	}
	return g.err
}

func (g *gzipMaker) Write(p []byte) (int, error) {
	if err := g.start(); err != nil {
		return 0, err
	}
	g.crc = crc32.Update(g.crc, crc32.IEEETable, p)
	g.size += uint32(len(p))
	var n int
	n, g.err = g.z.Write(p)
	return n, g.err
}

// Close ends the member. It does not close what it writes to.
func (g *gzipMaker) Close() error {
	if err := g.start(); err != nil {
		return err
	}
	if g.err = g.z.Close(); g.err != nil {
		return g.err
	}
	var trailer [8]byte
	binary.LittleEndian.PutUint32(trailer[:4], g.crc)
	binary.LittleEndian.PutUint32(trailer[4:], g.size)
	_, g.err = g.w.Write(trailer[:])
	return g.err
}

var errMismatch = errors.New("compressor gives other bytes")

// matcher compares what a compressor makes (Write) with the blob as found
// (feed), in lock-step: it holds only what is fed and not yet made. After the
// first difference all that is left of the blob goes to tail. Write and feed
// run on different goroutines; finish runs after both.
type matcher struct {
	tail io.Writer // not used before a difference

	mu      sync.Mutex
	pending []byte
	matched int64
	failed  bool
}

// Write compares; it returns errMismatch from the first difference on.
func (m *matcher) Write(p []byte) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.failed {
		return 0, errMismatch
	}
	n := min(len(p), len(m.pending))
	if n == len(p) && bytes.Equal(p, m.pending[:n]) {
		m.pending = m.pending[n:]
		m.matched += int64(n)
		return n, nil
	}
	for i := range n {
		if p[i] != m.pending[i] {
			n = i
			break
		}
	}
	m.pending = m.pending[n:]
	m.matched += int64(n)
	m.failed = true
	return n, errMismatch
}

// feed takes the next bytes of the blob. Its error is the tail's.
func (m *matcher) feed(p []byte) (int, error) {
	m.mu.Lock()
	m.pending = append(m.pending, p...)
	failed := m.failed
	m.mu.Unlock()
	if !failed {
		return len(p), nil
	}
	return len(p), m.drain()
}

func (m *matcher) drain() error {
	if len(m.pending) == 0 {
		return nil
	}
	_, err := m.tail.Write(m.pending)
	m.pending = nil
	return err
}

// finish gives the tail what the compressor did not make and returns how many
// bytes it made.
func (m *matcher) finish() (int64, error) { return m.matched, m.drain() }

// feeder is the feeding side of a matcher as a writer.
type feeder struct{ m *matcher }

func (f feeder) Write(p []byte) (int, error) { return f.m.feed(p) }

// limitedWriter passes on the first n bytes and returns errLimit with the
// last of them.
type limitedWriter struct {
	w io.Writer
	n int64
}

var errLimit = errors.New("enough")

func (l *limitedWriter) Write(p []byte) (int, error) {
	if l.n == 0 {
		return 0, errLimit
	}
	p = p[:min(int64(len(p)), l.n)]
	n, err := l.w.Write(p)
	l.n -= int64(n)
	if err == nil && l.n == 0 {
		err = errLimit
	}
	return n, err
}

// makeBlob writes the bytes that recipe gives to w; plain writes the
// uncompressed ones.
func makeBlob(w io.Writer, r *Recipe, plain func(io.Writer) error) error {
	limited := &limitedWriter{w: w, n: r.Bytes}
	if r.Bytes == 0 {
		return nil
	}
	g := newGzipMaker(limited, r)
	async := newAsyncWriter(g)
	err := plain(async)
	if cerr := async.Close(); cerr != nil {
		err = cerr
	}
	if err == nil {
		err = g.Close()
	}
	switch {
	case errors.Is(err, errLimit):
		return nil
	case err != nil:
		return err
	}
	return fmt.Errorf("recipe gives %d bytes less than promised", limited.n)
}
