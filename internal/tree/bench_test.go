package tree_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"lifeboat/internal/tree"
)

// plant makes about n small files in directories of 40, two levels deep.
func plant(tb testing.TB, root string, n int) {
	tb.Helper()
	for i := range n {
		dir := filepath.Join(root, fmt.Sprintf("d%03d", i/800), fmt.Sprintf("e%02d", i/40%20))
		if i%40 == 0 {
			if err := os.MkdirAll(dir, 0o755); err != nil {
				tb.Fatal(err)
			}
		}
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("file-%d.php", i)), []byte(fmt.Sprint("content ", i)), 0o644); err != nil {
			tb.Fatal(err)
		}
	}
}

func BenchmarkWalk40k(b *testing.B) {
	dir := b.TempDir()
	plant(b, dir, 40_000)
	root, err := tree.OpenRoot(dir, tree.RootOptions{})
	if err != nil {
		b.Fatal(err)
	}
	defer root.Close()
	b.ReportAllocs()
	for b.Loop() {
		n := 0
		if _, err := tree.Walk(b.Context(), root, tree.WalkOptions{}, func(*tree.Visit) error { n++; return nil }); err != nil {
			b.Fatal(err)
		}
		if n < 40_000 {
			b.Fatal(n)
		}
	}
}

// bench is a committed capture of a tree that plant and more made.
func bench(b *testing.B, make func(f *fixture)) *fixture {
	b.Helper()
	f := newFixture(b)
	make(f)
	f.capture(nil)
	f.capture(nil)
	return f
}

// BenchmarkUnchanged40k: the passes over a tree in which nothing changed. The
// time of Secure is what the freeze costs.
func BenchmarkUnchanged40k(b *testing.B) {
	f := bench(b, func(f *fixture) { plant(b, f.root, 40_000) })
	for _, pass := range []string{"precopy", "secure", "finish"} {
		b.Run(pass, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				b.StopTimer()
				c, err := tree.NewCapture(f.options())
				if err != nil {
					b.Fatal(err)
				}
				timed := func(name string, pass func() error) {
					if name == b.Name()[len(b.Name())-len(name):] {
						b.StartTimer()
						defer b.StopTimer()
					}
					if err := pass(); err != nil {
						b.Fatal(err)
					}
				}
				timed("precopy", func() error { return c.Precopy(b.Context()) })
				timed("secure", func() error { return c.Secure(b.Context()) })
				timed("finish", func() error { _, err := c.Finish(b.Context()); return err })
				if err := c.Close(); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
		})
	}
}

// BenchmarkSecureDirty: 200 MB of a database changed since Precopy, within the
// default budget and beyond it.
func BenchmarkSecureDirty(b *testing.B) {
	f := bench(b, func(f *fixture) {
		for i := range 4 {
			f.write(fmt.Sprintf("db/t%d.ibd", i), randomBytes(uint64(i), 50<<20))
		}
	})
	for _, budget := range []int64{256 << 20, 128 << 20, 1 << 20} {
		b.Run(fmt.Sprintf("budget %d MiB", budget>>20), func(b *testing.B) {
			b.SetBytes(200 << 20)
			f.opts = func(o *tree.CaptureOptions) { o.Budget = tree.NewBudget(budget) }
			for b.Loop() {
				b.StopTimer()
				c, err := tree.NewCapture(f.options())
				if err != nil {
					b.Fatal(err)
				}
				if err := c.Precopy(b.Context()); err != nil {
					b.Fatal(err)
				}
				for i := range 4 {
					if err := insertAt(filepath.Join(f.root, fmt.Sprintf("db/t%d.ibd", i)), int64(b.N)<<14%(40<<20), []byte(fmt.Sprint(b.N))); err != nil {
						b.Fatal(err)
					}
				}
				b.StartTimer()
				if err := c.Secure(b.Context()); err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				if err := c.Close(); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
		})
	}
}

// BenchmarkApplyNothing: the target is what is there; told, and found out.
func BenchmarkApplyNothing(b *testing.B) {
	f := newFixture(b)
	f.sync = true
	plant(b, f.root, 40_000)
	res, _ := f.capture(nil)
	dest := b.TempDir()
	mustApply(b, f, dest, nil, res)
	b.Run("told", func(b *testing.B) {
		for b.Loop() {
			mustApply(b, f, dest, f.open(res), res)
		}
	})
	b.Run("found out", func(b *testing.B) {
		for b.Loop() {
			mustApply(b, f, dest, nil, res)
		}
	})
}

// BenchmarkApplyFresh: 40,000 small files into an empty directory, durable.
func BenchmarkApplyFresh(b *testing.B) {
	f := newFixture(b)
	f.sync = true
	plant(b, f.root, 40_000)
	res, _ := f.capture(nil)
	for b.Loop() {
		mustApply(b, f, filepath.Join(b.TempDir(), "dest"), nil, res)
	}
}
