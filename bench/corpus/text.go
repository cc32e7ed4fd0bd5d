package corpus

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Text is real program text that files are put together from, so that it shrinks as real files do and
// takes as long. Text drawn word by word does neither: compressors find few and short matches in it.
// Not changed once made, so safe for concurrent use.
type Text struct {
	all   []byte
	lines []int32 // where each line begins
}

// NewText makes text of what is given; it fails when that has less than a hundred lines.
func NewText(all []byte) (*Text, error) {
	t := &Text{all: all}
	for at := 0; at < len(all); {
		t.lines = append(t.lines, int32(at))
		n := bytes.IndexByte(all[at:], '\n')
		if n < 0 {
			break
		}
		at += n + 1
	}
	if len(t.lines) < 100 {
		return nil, fmt.Errorf("text to make files of has %d lines only", len(t.lines))
	}
	return t, nil
}

// ToolchainText reads the source of the Go toolchain's library, without tests: some 50 MB that are there
// wherever the benchmarks can be built, and the same for the same version of Go.
func ToolchainText(ctx context.Context) (*Text, error) {
	root, err := exec.CommandContext(ctx, "go", "env", "GOROOT").Output()
	if err != nil {
		return nil, fmt.Errorf("find the Go toolchain, whose source the data is made of: %w", err)
	}
	var all []byte
	dir := filepath.Join(strings.TrimSpace(string(root)), "src")
	err = filepath.WalkDir(dir, func(name string, e fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case e.IsDir() && e.Name() == "testdata":
			return fs.SkipDir
		case !e.Type().IsRegular() || !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go"):
			return nil
		}
		b, err := os.ReadFile(name)
		all = append(all, b...)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read the source of the Go toolchain: %w", err)
	}
	return NewText(all)
}

// run is how many bytes are taken from one place at most: a function or two.
const run = 4096

// fill fills b with pieces of text, each from the beginning of a line at a random place.
func (t *Text) fill(r *rand.Rand, b []byte) {
	for len(b) > 0 {
		at := int(t.lines[r.IntN(len(t.lines))])
		n := copy(b, t.all[at:min(at+run/4+r.IntN(run*3/4), len(t.all))])
		b = b[n:]
	}
}
