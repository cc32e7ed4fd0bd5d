package tree_test

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"lifeboat/internal/catalog"
	"lifeboat/internal/tree"
)

func walkAll(t testing.TB, dir string, o tree.WalkOptions) []string {
	t.Helper()
	root, err := tree.OpenRoot(dir, tree.RootOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	var got []string
	if _, err := tree.Walk(t.Context(), root, o, func(v *tree.Visit) error {
		got = append(got, string(v.Path))
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return got
}

// TestWalkOrder: every entry once, in catalog order, whatever the names and
// sizes of directories are.
func TestWalkOrder(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	rng := rand.New(rand.NewPCG(3, 4))
	for i := range 3000 {
		name := filepath.Join(dir, "large", fmt.Sprintf("%c%d", byte(1+rng.IntN(46)), i))
		var err error
		if i%10 == 0 {
			err = os.MkdirAll(name, 0o755)
		} else {
			err = errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, nil, 0o644))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, p := range []string{"a/x", "a/x.y", "a-/x", "a.b", "\xff\xfe/\x01\n", "deep" + strings.Repeat("/d", 300)} {
		if err := os.MkdirAll(filepath.Join(dir, p), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	var want []string
	if err := filepath.WalkDir(dir, func(p string, _ fs.DirEntry, err error) error {
		want = append(want, strings.TrimPrefix(strings.TrimPrefix(p, dir), "/"))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	slices.SortFunc(want, catalog.ComparePaths)
	for _, workers := range []int{0, 1, 16} {
		if got := walkAll(t, dir, tree.WalkOptions{Workers: workers}); !slices.Equal(got, want) {
			t.Errorf("%d workers: %d entries, want %d in another order", workers, len(got), len(want))
		}
	}
	// An end in the middle is an end, and leaves no descriptor behind.
	before := descriptors(t, dir)
	boom := errors.New("boom")
	root, err := tree.OpenRoot(dir, tree.RootOptions{})
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	if _, err := tree.Walk(t.Context(), root, tree.WalkOptions{}, func(*tree.Visit) error {
		if n++; n == 1500 {
			return boom
		}
		return nil
	}); !errors.Is(err, boom) || n != 1500 {
		t.Errorf("after %d entries: %v", n, err)
	}
	if err := root.Close(); err != nil {
		t.Fatal(err)
	}
	if after := descriptors(t, dir); after != before {
		t.Errorf("%d descriptors below the tree, before %d", after, before)
	}
}

// descriptors counts this process's open files below dir.
func descriptors(t *testing.T, dir string) int {
	t.Helper()
	links, err := filepath.Glob("/proc/self/fd/*")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, l := range links {
		if to, err := os.Readlink(l); err == nil && strings.HasPrefix(to, dir) {
			n++
		}
	}
	return n
}

// TestRace: while directories and files turn into links to the outside and
// back, nothing from outside is captured and nothing is written there
// (invariant 10).
func TestRace(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	outside := t.TempDir()
	secret := []byte("outside, never to be read")
	for _, n := range []string{"f", "g"} {
		if err := os.WriteFile(filepath.Join(outside, n), secret, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range []string{"d/f", "d/g", "e/f"} {
		f.write(n, []byte("inside"))
	}
	p := func(s string) string { return filepath.Join(f.root, s) }
	if err := errors.Join(os.Symlink(outside, p("link")), os.Symlink(filepath.Join(outside, "f"), p("flink"))); err != nil {
		t.Fatal(err)
	}
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			default:
			}
			// Exchange swaps in one step: there is no moment without the name.
			_ = unix.Renameat2(unix.AT_FDCWD, p("d"), unix.AT_FDCWD, p("link"), unix.RENAME_EXCHANGE)
			_ = unix.Renameat2(unix.AT_FDCWD, p("e/f"), unix.AT_FDCWD, p("flink"), unix.RENAME_EXCHANGE)
		}
	}()
	for range 60 {
		f.repo.newRun()
		c, err := tree.NewCapture(f.options())
		if err != nil {
			t.Fatal(err)
		}
		err = c.Precopy(t.Context())
		if err == nil {
			err = c.Secure(t.Context())
		}
		if err == nil {
			_, err = c.Finish(t.Context())
		}
		if cerr := c.Close(); cerr != nil {
			t.Fatal(cerr)
		}
		// A tree that changes under Secure may fail, but only so.
		if err != nil && !errors.Is(err, unix.ESTALE) && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) &&
			!errors.Is(err, unix.ENOTDIR) && !errors.Is(err, unix.ELOOP) {
			t.Log(err)
		}
	}
	close(stop)
	<-done
	if _, ok := f.repo.units[unitID(secret)]; ok {
		t.Error("content from outside was captured")
	}
}
