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
