package corpus_test

import (
	"archive/tar"
	"bytes"
	"compress/flate"
	"crypto/sha256"
	"errors"
	"io"
	"testing"

	"lifeboat/bench/corpus"
)

func text(t *testing.T) *corpus.Text {
	t.Helper()
	text, err := corpus.ToolchainText(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// TestTooLittleText: files of a few lines repeated would shrink to nothing.
func TestTooLittleText(t *testing.T) {
	t.Parallel()
	if _, err := corpus.NewText([]byte("one\ntwo\nthree")); err == nil {
		t.Error("three lines are enough")
	}
}

// TestSite checks that a tree is what it says, the same each time, and shrinks as much as it should.
func TestSite(t *testing.T) {
	t.Parallel()
	shape := corpus.Learning(0.01, 7, text(t))
	var first, second bytes.Buffer
	totals, err := shape.WriteSite(&first)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := shape.WriteSite(&second); err != nil {
		t.Fatal(err)
	}
	if sha256.Sum256(first.Bytes()) != sha256.Sum256(second.Bytes()) {
		t.Error("the same seed gave different bytes")
	}
	other := corpus.Learning(0.01, 8, text(t))
	second.Reset()
	if _, err := other.WriteSite(&second); err != nil {
		t.Fatal(err)
	}
	if bytes.Equal(first.Bytes(), second.Bytes()) {
		t.Error("another seed gave the same bytes")
	}
	files, size := 0, int64(0)
	names := map[string]bool{}
	for r := tar.NewReader(&first); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if names[h.Name] {
			t.Errorf("%s twice", h.Name)
		}
		names[h.Name] = true
		files++
		size += h.Size
	}
	if files != totals.Files || size != totals.Bytes {
		t.Errorf("%d files of %d bytes, said %+v", files, size, totals)
	}
	if want := 350 + 39 + 45; files != want {
		t.Errorf("%d files, want %d", files, want)
	}
}

// TestFull holds the whole data to its description without keeping it.
func TestFull(t *testing.T) {
	t.Parallel()
	shape := corpus.Learning(1, 1, text(t))
	sum, err := shape.WriteSite(io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	db, err := shape.WriteDatabase(io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	sum.Add(db)
	t.Logf("%+v, of it database %+v", sum, db)
	if sum.Files < 39_000 || sum.Files > 41_000 || sum.Bytes < 1_250e6 || sum.Bytes > 1_350e6 || sum.Incompressible*2 < sum.Bytes {
		t.Errorf("%+v: want some 40,000 files, 1.3 GB, more than half of it incompressible", sum)
	}
	if db.Bytes < 239e6 || db.Bytes > 243e6 {
		t.Errorf("database of %d bytes, want some 240 MB", db.Bytes)
	}
	course, err := shape.WriteCourse(io.Discard, 99)
	if err != nil {
		t.Fatal(err)
	}
	if course.Bytes < 33e6 || course.Bytes > 35e6 {
		t.Errorf("a course of %d bytes, want some 34 MB", course.Bytes)
	}
}

// TestShrinks checks that texts and pages compress about as real ones do.
func TestShrinks(t *testing.T) {
	t.Parallel()
	shape := corpus.Shape{Texts: 100, TextSize: 8000, TablePage: 100, Seed: 3, Text: text(t)}
	for name, write := range map[string]func(io.Writer) (corpus.Totals, error){"texts": shape.WriteSite, "database": shape.WriteDatabase} {
		var out counter
		w, err := flate.NewWriter(&out, flate.BestSpeed)
		if err != nil {
			t.Fatal(err)
		}
		totals, err := write(w)
		if err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		if ratio := float64(totals.Bytes) / float64(out); ratio < 2 || ratio > 8 {
			t.Errorf("%s shrink to 1/%.1f, want 1/2 to 1/8", name, ratio)
		}
	}
}

type counter int64

func (c *counter) Write(p []byte) (int, error) { *c += counter(len(p)); return len(p), nil }

// pages is a file in memory.
type pages []byte

func (p pages) WriteAt(b []byte, at int64) (int, error) { return copy(p[at:], b), nil }

func TestChangePages(t *testing.T) {
	t.Parallel()
	shape := corpus.Shape{Text: text(t)}
	data := make(pages, 64*corpus.PageSize)
	if err := shape.ChangePages(data, int64(len(data)), 10, 5); err != nil {
		t.Fatal(err)
	}
	changed := 0
	for i := 0; i < len(data); i += corpus.PageSize {
		if !bytes.Equal(data[i:i+corpus.PageSize], make([]byte, corpus.PageSize)) {
			changed++
		}
	}
	if changed != 10 {
		t.Errorf("%d pages changed, want 10", changed)
	}
	if err := shape.ChangePages(data, int64(len(data)), 65, 5); err == nil {
		t.Error("more pages than the file has: no error")
	}
}

// broken fails after some bytes, as a container that ends.
type broken int

func (b *broken) Write(p []byte) (int, error) {
	if *b -= broken(len(p)); *b < 0 {
		return 0, io.ErrClosedPipe
	}
	return len(p), nil
}

func TestWriteFails(t *testing.T) {
	t.Parallel()
	w := broken(100_000)
	if _, err := corpus.Learning(0.01, 1, text(t)).WriteSite(&w); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("error %v, want the writer's", err)
	}
	w = broken(100_000)
	if _, err := corpus.Learning(0.01, 1, text(t)).WriteDatabase(&w); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("error %v, want the writer's", err)
	}
}
