package main

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"lifeboat/internal/dr"
	"lifeboat/internal/repo"
	"lifeboat/internal/ui"
)

// TestOneDamageIsToldOnce: nineteen snapshots that need one damaged blob are one
// thing to mend.
func TestOneDamageIsToldOnce(t *testing.T) {
	t.Parallel()
	var problems []repo.Problem
	for i := range 19 {
		problems = append(problems, repo.Problem{
			Tag: fmt.Sprintf("s.blog.%d", i+1), Snapshot: dr.SnapshotID{byte(i + 1)}, Blob: "sha256:ab", Err: fmt.Errorf("its digest is another: %w", dr.ErrTampered),
		})
	}
	problems = append(problems,
		repo.Problem{Tag: "e.blog.2", Blob: "sha256:cd", Err: errors.New("gone")},
		repo.Problem{Tag: "s.blog.99", Err: fmt.Errorf("no snapshot: %w", dr.ErrTampered)}) // somebody's
	got := gather(problems)
	if len(got) != 2 || len(got[0].Snapshots) != 19 || got[0].newest.Tag != "s.blog.19" || len(got[0].Systems) != 1 || got[1].newest != nil {
		t.Fatalf("%+v", got)
	}
	got[0].Files, got[0].FurtherFiles = []string{"volume:data /a\x1b[31m"}, 3
	var out strings.Builder
	p := ui.New(ui.Options{Out: &out, Err: &out})
	if err := p.Answer(nil, checkViews(checkAnswer{Damaged: got}, problems)...); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"s.blog.1 to s.blog.19, 19 in all", `volume:data /a\x1b[31m`, "and 3 more files", "s.blog.99"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is missing in\n%s", want, out.String())
		}
	}
	if n := strings.Count(out.String(), "sha256:ab"); n != 1 {
		t.Errorf("the blob is told %d times", n)
	}
	if next := adviceOf(got); !strings.HasPrefix(next[0], "lifeboat snapshot blog") {
		t.Errorf("%q", next)
	}
}
