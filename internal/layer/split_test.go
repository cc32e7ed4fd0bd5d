package layer

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vbatts/tar-split/tar/asm"
	"github.com/vbatts/tar-split/tar/storage"
	"pgregory.net/rapid"

	"lifeboat/internal/cut"
	"lifeboat/internal/dr"
	"lifeboat/internal/layer/layertest"
)

var testCutter = cut.New([32]byte{1, 2, 3})

// noise is n bytes that do not compress.
func noise(seed uint64, n int) []byte {
	b := make([]byte, n)
	rng := rand.New(rand.NewPCG(seed, 0))
	i := 0
	for ; i+8 <= n; i += 8 {
		binary.LittleEndian.PutUint64(b[i:], rng.Uint64())
	}
	for ; i < n; i++ {
		b[i] = byte(rng.Uint32())
	}
	return b
}

// split and write again; the layer must be the same bytes.
func roundTrip(t testing.TB, data []byte) (Layer, *layertest.Store) {
	t.Helper()
	st := layertest.New()
	b := newBlobReader(st, testCutter, false)
	l, err := b.plain(t.Context(), bytes.NewReader(data))
	if err != nil {
		t.Fatalf("split %d bytes: %v", len(data), err)
	}
	if l.DiffID != DigestOf(data) || l.Size != int64(len(data)) {
		t.Fatalf("layer is %s of %d bytes, want %s of %d", l.DiffID, l.Size, DigestOf(data), len(data))
	}
	var out bytes.Buffer
	if err := WriteLayer(t.Context(), st, &l, &out); err != nil {
		t.Fatalf("write layer: %v", err)
	}
	if !bytes.Equal(out.Bytes(), data) {
		t.Fatal("layer came back with other bytes")
	}
	return l, st
}

// contents lists the stretches of content that the skeleton speaks of.
func contents(t testing.TB, src Source, l Layer) []string {
	t.Helper()
	skeleton := &unitReader{ctx: t.Context(), src: src, refs: l.Skeleton}
	list := &unitReader{ctx: t.Context(), src: src, refs: l.Contents}
	if _, err := io.ReadFull(skeleton, make([]byte, len(skeletonMagic))); err != nil {
		t.Fatal(err)
	}
	var out []string
	for {
		op, err := readOperation(skeleton)
		if err == io.EOF {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		if !op.content {
			if _, err := io.CopyN(io.Discard, skeleton, op.n); err != nil {
				t.Fatal(err)
			}
			continue
		}
		var b bytes.Buffer
		for op.n > 0 {
			s, err := readStretch(list)
			if err != nil {
				t.Fatal(err)
			}
			op.n -= s.len()
			if s.hole > 0 {
				b.Write(make([]byte, s.hole))
				continue
			}
			data, err := src.Unit(t.Context(), s.ref)
			if err != nil {
				t.Fatal(err)
			}
			b.Write(data)
		}
		out = append(out, b.String())
	}
}

// tarOf draws an archive of ordinary and odd entries.
func tarOf(t *rapid.T) []byte {
	var out bytes.Buffer
	tw := tar.NewWriter(&out)
	formats := []tar.Format{tar.FormatPAX, tar.FormatGNU}
	n := rapid.IntRange(0, 8).Draw(t, "entries")
	for i := range n {
		name := rapid.SampledFrom([]string{"a", "dir/b", "./c", strings.Repeat("long/", 60) + "name", "ü/ä", "same", ".wh.gone"}).Draw(t, "name")
		h := &tar.Header{Name: name, Mode: 0o4755, Uid: 1 << 22, ModTime: time.Unix(int64(i), 999), Format: rapid.SampledFrom(formats).Draw(t, "format")}
		if h.Format == tar.FormatGNU {
			h.ModTime = time.Unix(int64(i), 0)
		} else {
			h.PAXRecords = map[string]string{"SCHILY.xattr.security.capability": "\x01\x00\x00\x02", "SCHILY.xattr.user.x": strings.Repeat("v", 3000)}
		}
		h.Typeflag = rapid.SampledFrom([]byte{tar.TypeReg, tar.TypeReg, tar.TypeReg, tar.TypeDir, tar.TypeLink, tar.TypeSymlink, tar.TypeChar, tar.TypeFifo}).Draw(t, "type")
		var body []byte
		switch h.Typeflag {
		case tar.TypeReg:
			size := rapid.SampledFrom([]int{0, 1, 511, 512, 513, 4096, cut.WholeBelow - 1, cut.WholeBelow + 7}).Draw(t, "size")
			body = noise(uint64(size), size)
			if rapid.Bool().Draw(t, "zeros") {
				body = make([]byte, size)
			}
			h.Size = int64(size)
		case tar.TypeLink, tar.TypeSymlink:
			h.Linkname = strings.Repeat("target/", rapid.SampledFrom([]int{1, 40}).Draw(t, "target"))
		case tar.TypeDir:
			h.Name += "/"
		}
		if err := tw.WriteHeader(h); err != nil {
			t.Fatalf("%+v: %v", h, err)
		}
		if _, err := tw.Write(body); err != nil {
			t.Fatal(err)
		}
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestAnyArchiveComesBackByteForByte(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		data := tarOf(rt)
		switch rapid.SampledFrom([]string{"as is", "padded", "garbage after", "cut off", "twice", "bit flipped", "shifted"}).Draw(rt, "then") {
		case "padded":
			data = append(data, make([]byte, 10240)...)
		case "garbage after":
			data = append(data, noise(9, 70001)...)
		case "cut off":
			data = data[:rapid.IntRange(0, len(data)).Draw(rt, "at")]
		case "twice":
			data = append(bytes.Clone(data), data...)
		case "bit flipped":
			data[rapid.IntRange(0, len(data)-1).Draw(rt, "at")] ^= 1 << rapid.IntRange(0, 7).Draw(rt, "bit")
		case "shifted":
			data = append([]byte{7}, data...)
		}
		roundTrip(t, data)
	})
}

// The same file contents as tar-split finds, on archives that it can read.
func TestContentsAreThoseOfTheArchive(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		data := tarOf(rt)
		l, st := roundTrip(t, data)
		var want []string
		files := putter(func(r io.Reader) (int64, error) {
			b, err := io.ReadAll(r)
			want = append(want, string(b))
			return int64(len(b)), err
		})
		r, done, err := asm.NewInputTarStreamWithDone(bytes.NewReader(data), discard{}, files)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, r); err != nil {
			t.Fatal(err)
		}
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		got := contents(t, st, l)
		if diff := cmp.Diff(summaries(want), summaries(got)); diff != "" {
			t.Errorf("contents (-tar-split +ours):\n%s", diff)
		}
		if l.Files != int64(len(want)) {
			t.Errorf("%d files, want %d", l.Files, len(want))
		}
	})
}

func summaries(contents []string) []string {
	out := []string{}
	for _, c := range contents {
		out = append(out, fmt.Sprintf("%d bytes %s", len(c), DigestOf([]byte(c))))
	}
	return out
}

type putter func(io.Reader) (int64, error)

func (p putter) Put(_ string, r io.Reader) (int64, []byte, error) {
	n, err := p(r)
	return n, nil, err
}

type discard struct{}

func (discard) AddEntry(storage.Entry) (int, error) { return 0, nil }

// sparseGNU is an archive with an old GNU sparse file of 10 MiB whose map needs
// an extension block, and a plain file after it.
func sparseGNU() []byte {
	const stored = 6 * 512
	var out bytes.Buffer
	h := make([]byte, 512)
	copy(h, "sparse")
	copy(h[100:], "0000644\x000000000\x000000000\x00")
	copy(h[124:], fmt.Sprintf("%011o\x00", stored))
	copy(h[136:], "00000000000\x00")
	h[156] = 'S'
	copy(h[257:], "ustar  \x00")
	for i := range 4 {
		copy(h[386+24*i:], fmt.Sprintf("%011o\x00%011o\x00", i<<20, 512))
	}
	h[482] = 1
	copy(h[483:], fmt.Sprintf("%011o\x00", 10<<20))
	sum(h)
	out.Write(h)
	ext := make([]byte, 512)
	for i := range 2 {
		copy(ext[24*i:], fmt.Sprintf("%011o\x00%011o\x00", (i+4)<<20, 512))
	}
	out.Write(ext)
	out.Write(noise(1, stored))
	tw := tar.NewWriter(&out)
	_ = tw.WriteHeader(&tar.Header{Name: "after", Size: 5, Mode: 0o644})
	_, _ = tw.Write([]byte("after"))
	_ = tw.Close()
	return out.Bytes()
}

func sum(h []byte) {
	copy(h[148:], "        ")
	n := 0
	for _, c := range h {
		n += int(c)
	}
	copy(h[148:], fmt.Sprintf("%06o\x00 ", n))
}

func TestSparseFilesKeepTheirStoredForm(t *testing.T) {
	t.Parallel()
	data := sparseGNU()
	l, st := roundTrip(t, data)
	want := []string{string(noise(1, 6*512)), "after"}
	if diff := cmp.Diff(summaries(want), summaries(contents(t, st, l))); diff != "" {
		t.Error(diff)
	}
}

// An extended header may give a size that does not fit the old field, and a
// name that decides the class.
func TestExtendedHeaderOverrides(t *testing.T) {
	t.Parallel()
	body := noise(4, 300<<10)
	var out bytes.Buffer
	pax := "15 size=307200\n34 path=var/lib/mysql/x/table.ibd\n"
	writeRawHeader(&out, "x", 'x', int64(len(pax)))
	out.WriteString(pax)
	out.Write(make([]byte, 512-len(pax)))
	writeRawHeader(&out, "short", '0', 0)
	out.Write(body)
	out.Write(make([]byte, 1024))
	l, st := roundTrip(t, out.Bytes())
	if diff := cmp.Diff(summaries([]string{string(body)}), summaries(contents(t, st, l))); diff != "" {
		t.Error(diff)
	}
	if got := listLen(t, st, l.Contents); got != 10 {
		t.Errorf("a table was cut into %d pieces, want 10 of 32 KiB", got)
	}
}

func listLen(t *testing.T, src Source, refs []dr.UnitRef) int {
	t.Helper()
	r := &unitReader{ctx: t.Context(), src: src, refs: refs}
	for n := 0; ; n++ {
		if _, err := readStretch(r); err == io.EOF {
			return n
		} else if err != nil {
			t.Fatal(err)
		}
	}
}

func writeRawHeader(w *bytes.Buffer, name string, typeflag byte, size int64) {
	h := make([]byte, 512)
	copy(h, name)
	copy(h[124:], fmt.Sprintf("%011o\x00", size))
	h[156] = typeflag
	copy(h[257:], "ustar\x0000")
	sum(h)
	w.Write(h)
}

// What makes the format worth it: a file in a layer is the unit that the same
// file is on disk.
func TestSmallFileIsOneUnit(t *testing.T) {
	t.Parallel()
	body := noise(5, cut.WholeBelow-1)
	var out bytes.Buffer
	tw := tar.NewWriter(&out)
	if err := tw.WriteHeader(&tar.Header{Name: "etc/passwd", Size: int64(len(body))}); err != nil {
		t.Fatal(err)
	}
	if _, err := tw.Write(body); err != nil {
		t.Fatal(err)
	}
	_, st := roundTrip(t, out.Bytes())
	before := st.Bytes
	if _, err := st.Put(t.Context(), body); err != nil || st.Bytes != before {
		t.Error("the file on disk would be stored again")
	}
}

func TestZerosBecomeHoles(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	tw := tar.NewWriter(&out)
	if err := tw.WriteHeader(&tar.Header{Name: "big", Size: 12 << 20}); err != nil {
		t.Fatal(err)
	}
	if _, err := tw.Write(make([]byte, 12<<20)); err != nil {
		t.Fatal(err)
	}
	_, st := roundTrip(t, out.Bytes())
	if st.Bytes > 4096 {
		t.Errorf("12 MiB of zeros were stored as %d bytes", st.Bytes)
	}
}

// A layer with very many files must give a small record and few big lists.
func TestManyFilesMakeASmallLayer(t *testing.T) {
	t.Parallel()
	const files = 10_000
	pr, pw := io.Pipe()
	go func() {
		buf := bufio.NewWriterSize(pw, 1<<20)
		tw := tar.NewWriter(buf)
		for i := range files {
			h := &tar.Header{Name: fmt.Sprintf("usr/share/%d/%d", i%100, i), Size: 8, ModTime: time.Unix(1, 5), Format: tar.FormatPAX}
			if err := tw.WriteHeader(h); err != nil {
				pw.CloseWithError(err)
				return
			}
			_ = binary.Write(tw, binary.BigEndian, uint64(i))
		}
		pw.CloseWithError(errors.Join(tw.Close(), buf.Flush()))
	}()
	st := layertest.New()
	l, err := newBlobReader(st, testCutter, false).plain(t.Context(), pr)
	if err != nil {
		t.Fatal(err)
	}
	if l.Files != files || len(l.Skeleton)+len(l.Contents) > 60 {
		t.Errorf("%d files, %d + %d units of skeleton and list", l.Files, len(l.Skeleton), len(l.Contents))
	}
	if err := WriteLayer(t.Context(), layertest.Fetching{Store: st}, &l, io.Discard); err != nil {
		t.Error(err)
	}
}

func TestSplitReportsWhatFails(t *testing.T) {
	t.Parallel()
	data := sparseGNU()
	boom := errors.New("boom")
	t.Run("reader", func(t *testing.T) {
		b := newBlobReader(layertest.New(), testCutter, false)
		_, err := b.plain(t.Context(), io.MultiReader(bytes.NewReader(data[:1500]), iotest.ErrReader(boom)))
		if !errors.Is(err, boom) {
			t.Errorf("got %v", err)
		}
	})
	for n := 1; ; n++ {
		st := layertest.New()
		st.FailPut = func(i int) error {
			if i == n {
				return boom
			}
			return nil
		}
		_, err := newBlobReader(st, testCutter, false).plain(t.Context(), bytes.NewReader(data))
		if st.Puts < n {
			break // no such Put any more
		}
		if !errors.Is(err, boom) {
			t.Errorf("put %d fails: got %v", n, err)
		}
	}
	t.Run("cancelled", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		_, err := newBlobReader(layertest.New(), testCutter, false).plain(ctx, bytes.NewReader(data))
		if !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
	})
}

func FuzzSplit(f *testing.F) {
	f.Add(sparseGNU())
	f.Add([]byte("no archive"))
	f.Add(make([]byte, 1024))
	f.Fuzz(func(t *testing.T, data []byte) { roundTrip(t, data) })
}

// FuzzJoin feeds skeletons and lists that nobody wrote: an error or a layer,
// never a panic, never more bytes than the record says.
func FuzzJoin(f *testing.F) {
	f.Add([]byte(skeletonMagic+"\x06abc\x0b"), appendHole(nil, 5), int64(8))
	f.Add([]byte(skeletonMagic+"\xff\xff\xff\xff\xff\xff\xff\xff\x7f"), []byte{0xff, 0xff, 1}, int64(1<<40))
	f.Fuzz(func(t *testing.T, skeleton, list []byte, size int64) {
		st := layertest.New()
		l := Layer{DiffID: DigestOf(nil), Size: max(0, min(size, 1<<20))}
		for _, s := range []struct {
			data []byte
			refs *[]dr.UnitRef
		}{{skeleton, &l.Skeleton}, {list, &l.Contents}} {
			if len(s.data) > 0 {
				ref, err := st.Put(t.Context(), s.data)
				if err != nil {
					t.Fatal(err)
				}
				*s.refs = append(*s.refs, ref)
			}
		}
		var n countWriter
		err := writeSplit(t.Context(), st, &l, &n)
		if int64(n) > l.Size && l.split() {
			t.Errorf("wrote %d bytes of a layer of %d", n, l.Size)
		}
		if err == nil && int64(n) != l.Size {
			t.Errorf("wrote %d bytes of %d without an error", n, l.Size)
		}
	})
}

type countWriter int64

func (c *countWriter) Write(p []byte) (int, error) {
	*c += countWriter(len(p))
	return len(p), nil
}
