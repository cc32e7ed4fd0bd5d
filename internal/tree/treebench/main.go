// Command treebench measures captures of a large tree of small files: time,
// processor time and memory of each pass. It makes the tree when it is not
// there.
//
//	treebench [-files N] [-dir DIR]
//
// Units are hashed and dropped, so what is measured is package tree and not a
// repository.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/zeebo/blake3"
	"golang.org/x/sys/unix"

	"lifeboat/internal/dr"
	"lifeboat/internal/tree"
)

func main() {
	files := flag.Int("files", 1_000_000, "number of files")
	dir := flag.String("dir", filepath.Join(os.TempDir(), "lifeboat-treebench"), "directory to work in; the caller removes it")
	flag.Parse()
	if err := run(*dir, *files); err != nil {
		fmt.Fprintln(os.Stderr, "treebench:", err)
		os.Exit(1)
	}
}

func run(dir string, files int) error {
	root, state := filepath.Join(dir, fmt.Sprint("tree-", files)), filepath.Join(dir, "state")
	if err := os.MkdirAll(state, 0o700); err != nil {
		return err
	}
	if _, err := os.Stat(root); os.IsNotExist(err) {
		if err := measure("make the tree", func() error { return plant(root, files) }); err != nil {
			return err
		}
	}
	for _, name := range []string{"first", "unchanged", "unchanged"} {
		fmt.Println(name + " capture")
		if err := capture(root, state); err != nil {
			return err
		}
	}
	return nil
}

// plant makes files of a few bytes, 500 to a directory.
func plant(root string, files int) error {
	for i := range files {
		sub := filepath.Join(root, fmt.Sprintf("%03d", i/50_000), fmt.Sprintf("%03d", i/500%100))
		if i%500 == 0 {
			if err := os.MkdirAll(sub, 0o755); err != nil {
				return err
			}
		}
		if err := os.WriteFile(filepath.Join(sub, fmt.Sprintf("file-%07d.dat", i)), fmt.Append(nil, "content ", i), 0o644); err != nil {
			return err
		}
	}
	return nil
}

func capture(root, state string) error {
	ctx := context.Background()
	c, err := tree.NewCapture(tree.CaptureOptions{
		Root: root, Key: "volume:bench", StateDir: state, UnitID: unitID, Sink: sink{},
		// The tree may have been made just now; that is not what is measured.
		Now: func() time.Time { return time.Now().Add(time.Minute) },
	})
	if err != nil {
		return err
	}
	defer c.Close()
	passes := []struct {
		name string
		run  func() error
	}{
		{"precopy", func() error { return c.Precopy(ctx) }},
		{"secure", func() error { return c.Secure(ctx) }},
		{"finish", func() error { _, err := c.Finish(ctx); return err }},
		{"commit", c.CommitCache},
	}
	for _, p := range passes {
		if err := measure(p.name, p.run); err != nil {
			return err
		}
	}
	fmt.Printf("%+v\n", c.Stats())
	return nil
}

// sink hashes and drops.
type sink struct{}

func (sink) Put(_ context.Context, data []byte) (dr.UnitRef, error) {
	return dr.UnitRef{ID: unitID(data), Len: uint32(len(data))}, nil
}

func (sink) HaveAll([]dr.UnitRef) bool { return true }

func unitID(data []byte) dr.UnitID { return blake3.Sum256(data) }

// measure prints wall time, processor time and the largest resident size.
func measure(name string, f func() error) error {
	var before, after unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &before); err != nil {
		return err
	}
	start := time.Now()
	if err := f(); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	wall := time.Since(start)
	if err := unix.Getrusage(unix.RUSAGE_SELF, &after); err != nil {
		return err
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	cpu := func(a, b unix.Timeval) time.Duration { return time.Duration(b.Nano() - a.Nano()) }
	fmt.Printf("%-14s %8d ms  user %7d ms  system %7d ms  heap %4d MB  peak %4d MB\n", strings.ToLower(name), wall.Milliseconds(),
		cpu(before.Utime, after.Utime).Milliseconds(), cpu(before.Stime, after.Stime).Milliseconds(), m.HeapInuse>>20, after.Maxrss>>10)
	return nil
}
