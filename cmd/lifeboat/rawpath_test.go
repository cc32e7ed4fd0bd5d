package main

import (
	"encoding/json"
	"strings"
	"testing"

	"lifeboat/internal/repo"
	"lifeboat/internal/ui"
)

// What the text output prints of a name finds that name again.
func TestEscapedPathsAreFound(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"odd/\xff\xfe", "a\nb", "tab\there", "plain", "größe", "turned\u202eback", "\x1b31m", "\xc3("} {
		m, err := newPathMatch(ui.Clean(name))
		if err != nil || m.isPattern() || !m.fits(name) {
			t.Errorf("%q as %q: %+v, %v", name, ui.Clean(name), m, err)
		}
	}
	for pattern, name := range map[string]string{`a\*b`: "a*b", `a\\xff*`: `a\xff!`, `*\xff`: "b\xff", `\x`: "x"} {
		if m, err := newPathMatch(pattern); err != nil || !m.fits(name) {
			t.Errorf("%s does not fit %q: %+v, %v", pattern, name, m, err)
		}
	}
}

// JSON has the exact bytes of names that are not UTF-8, and nothing more of others.
func TestRawPathsInJSON(t *testing.T) {
	t.Parallel()
	const base64 = `"b2RkL//+"` // of odd/\xff\xfe
	b := newLossBook(nil, true)
	for _, path := range []string{"odd/\xff\xfe", "even"} {
		if err := b.add(&repo.Snapshot{}, repo.Loss{Kind: repo.LossFile, Path: path}); err != nil {
			t.Fatal(err)
		}
	}
	diffs := []diffFile{newDiffFile("t", "odd/\xff\xfe"), newDiffFile("t", "even")}
	for what, v := range map[string]any{"losses": b.close(), "diff": diffs, "ls": []lsRow{{Path: "x", PathRaw: rawOf("odd/\xff\xfe")}, {Path: "even"}}} {
		out, err := json.Marshal(v)
		want := base64
		if what == "losses" {
			want = `"L29kZC///g=="` // with the slash before it
		}
		if err != nil || strings.Count(string(out), `"path_raw":`) != 1 || !strings.Contains(string(out), `"path_raw":`+want) {
			t.Errorf("%s: %s, %v", what, out, err)
		}
	}
}
