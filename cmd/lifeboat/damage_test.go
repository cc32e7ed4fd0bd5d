package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

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
	for _, want := range []string{"needed by", "s.blog.1 to s.blog.19", `volume:data /a\x1b[31m`, "and 3 more files", "s.blog.99"} {
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

// lossesOf gives a book what snapshots lose by blobs.
func lossesOf(t *testing.T, b *lossBook, system dr.System, numbers []int, files []string, blobs ...digest.Digest) {
	t.Helper()
	for _, n := range numbers {
		s := &repo.Snapshot{System: system, ID: dr.SnapshotID{byte(n), byte(len(system))}, Tag: fmt.Sprintf("s.%s.%d", system, n)}
		for _, f := range files {
			if err := b.add(s, repo.Loss{Kind: repo.LossFile, Object: "volume:data", Path: f, Bytes: 5, Blobs: blobs}); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// Which file of which snapshot of which system is hit is told, once for those that
// lose the same; a system that only lists what is damaged is not named.
func TestHitsAreTold(t *testing.T) {
	t.Parallel()
	var problems []repo.Problem
	for _, blob := range []string{"sha256:ab", "sha256:cd", "sha256:ef"} {
		for _, tag := range []string{"s.mini.1", "s.shop.2", "s.shop.3", "s.shop.4", "s.shop.5", "s.shop.7"} {
			problems = append(problems, repo.Problem{Tag: tag, Snapshot: dr.SnapshotID{1}, Blob: blob, Err: dr.ErrTampered})
		}
	}
	damaged := gather(problems)
	b := newLossBook(damaged, true)
	lossesOf(t, b, "shop", []int{3, 4, 5, 7}, []string{"a", "b"}, "sha256:ab")
	lossesOf(t, b, "shop", []int{8}, []string{"c"}, "sha256:ab", "sha256:cd")
	ans := checkAnswer{Damaged: damaged, Hit: b.close()}
	var out strings.Builder
	if err := ui.New(ui.Options{Out: &out, Err: &out}).Answer(nil, checkViews(ans, problems)...); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"in s.shop.3 to s.shop.5, s.shop.7: volume:data /a, volume:data /b\n", "in s.shop.8: volume:data /c\n", "nothing that a snapshot still uses",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is missing in\n%s", want, out.String())
		}
	}
	if next := strings.Join(adviceOf(damaged), "\n"); !strings.Contains(next, "snapshot shop") || strings.Contains(next+out.String(), "mini") {
		t.Errorf("%s\n%s", next, out.String())
	}
	// Each has a list of losses, as the help's example takes it.
	raw, err := json.Marshal(ans)
	if err != nil {
		t.Fatal(err)
	}
	var doc struct {
		Hit []map[string]any `json:"hit"`
	}
	if err := json.Unmarshal(raw, &doc); err != nil {
		t.Fatal(err)
	}
	if len(doc.Hit) != 5 || doc.Hit[1]["same_as"] != "s.shop.3" {
		t.Fatalf("%s", raw)
	}
	for _, h := range doc.Hit {
		if _, ok := h["losses"].([]any); !ok {
			t.Errorf("%v has no list of losses", h)
		}
	}
}

func TestTagRanges(t *testing.T) {
	t.Parallel()
	var odd []string
	for i := range 40 {
		odd = append(odd, fmt.Sprintf("s.a.%d", 2*i+1))
	}
	for _, tc := range []struct {
		tags []string
		want string
	}{
		{[]string{"s.a.1"}, "s.a.1"},
		{[]string{"s.a.1", "s.a.2"}, "s.a.1, s.a.2"},
		{[]string{"s.a.1", "s.a.2", "s.a.3", "s.a.9"}, "s.a.1 to s.a.3, s.a.9"},
		{odd, "s.a.1, s.a.3, s.a.5, s.a.7, s.a.9, s.a.11, s.a.13, s.a.15, s.a.17, and 31 more, to s.a.79"},
	} {
		if got := tagRanges(tc.tags); got != tc.want {
			t.Errorf("%v: %s, want %s", tc.tags, got, tc.want)
		}
	}
}
