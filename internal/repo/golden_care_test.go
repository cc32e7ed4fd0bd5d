package repo_test

import (
	"encoding/json"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"filippo.io/age"
	"github.com/google/go-cmp/cmp"

	"lifeboat/internal/dr"
	"lifeboat/internal/repo"
	"lifeboat/internal/repo/repotest"
	"lifeboat/internal/retain"
	"lifeboat/internal/seal"
)

var updateCare = flag.Bool("update-care", false, "write the second stored repository of format 1 anew")

// goldenCare is a second stored repository of format 1, of one that was looked
// after: locks that hold and that were taken away, a rotated key, consolidated pack
// manifests, snapshots that were forgotten, and others that compaction relocated.
const goldenCare = "testdata/format1-care"

type careFacts struct {
	Repo        dr.RepoID           `json:"repo"`
	Fingerprint seal.Fingerprint    `json:"fingerprint"`
	Snapshots   map[string]careSnap `json:"snapshots"` // by tag
	Locks       map[string]string   `json:"locks"`     // reasons, by tag of the snapshot
	// Generations counts the data keys.
	Generations int `json:"generations"`
}

type careSnap struct {
	ID    dr.SnapshotID `json:"id"`
	Host  dr.HostID     `json:"host"`
	Place string        `json:"place"`
	Seeds []uint64      `json:"seeds"` // of goldenUnits
}

func TestGoldenCare(t *testing.T) {
	t.Parallel()
	if *updateCare {
		writeGoldenCare(t)
	}
	var want careFacts
	b, err := os.ReadFile(filepath.Join(goldenCare, "facts.json"))
	if err == nil {
		err = json.Unmarshal(b, &want)
	}
	if err != nil {
		t.Fatal(err)
	}
	key, err := os.ReadFile(filepath.Join(goldenCare, "identity.txt"))
	if err != nil {
		t.Fatal(err)
	}
	ids, err := age.ParseIdentities(strings.NewReader(string(key)))
	if err != nil {
		t.Fatal(err)
	}
	r, err := open(t, loadGolden(t, goldenCare), repo.OpenOptions{
		Identities: ids, Host: seal.NewHostKey(), Expect: &repo.Expected{Repo: want.Repo, Fingerprint: want.Fingerprint},
	})
	if err != nil {
		t.Fatal(err)
	}
	r.ListsAsCatalogs()
	if got := careOf(t, r, want); cmp.Diff(want, got) != "" {
		t.Fatal(cmp.Diff(want, got))
	}
	if problems, err := r.Check(t.Context()); err != nil || len(problems) != 0 {
		t.Fatalf("check: %v, %v", problems, err)
	}
	if problems, err := r.Verify(t.Context(), nil); err != nil || len(problems) != 0 {
		t.Fatalf("verify: %v, %v", problems, err)
	}
	goOnWithCare(t, r, want)
}

// goOnWithCare does with the repository what its owner would.
func goOnWithCare(t *testing.T, r *repo.Repo, want careFacts) {
	t.Helper()
	locked, err := r.Find(t.Context(), "shop", "#1")
	if err != nil || want.Locks[locked.Tag] == "" {
		t.Fatalf("%v, %v", locked, err)
	}
	head, err := r.Find(t.Context(), "shop", "")
	if err != nil {
		t.Fatal(err)
	}
	next := mustSnapshot(t, r, "shop", head, goldenUnits([]uint64{5, 900}))
	if _, err := forget(t.Context(), r, retain.Policy{Last: 1}); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		mustCompact(t, r, repo.CompactOptions{MaxUnused: 0.01}, -1)
	}
	for _, s := range []*repo.Snapshot{locked, next} {
		now, err := r.Find(t.Context(), "shop", s.ID.String())
		if err != nil {
			t.Fatalf("%s: %v", s.Tag, err)
		}
		seeds := []uint64{5, 900}
		if s == locked {
			seeds = want.Snapshots[s.Tag].Seeds
			if now.Place != locked.Place || now.Digest != locked.Digest {
				t.Errorf("a locked snapshot was moved to %s", now.Place)
			}
		}
		mustHold(t, r, now, goldenUnits(seeds))
	}
	if err := r.Unlock(t.Context(), locked); err != nil {
		t.Fatal(err)
	}
	if _, err := forget(t.Context(), r, retain.Policy{Last: 1}); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Find(t.Context(), "shop", "#1"); !errors.Is(err, dr.ErrNotFound) {
		t.Errorf("unlocked, and still there: %v", err)
	}
}

// careOf is what a repository holds, with the seeds that want has for it.
func careOf(t *testing.T, r *repo.Repo, want careFacts) careFacts {
	t.Helper()
	got := careFacts{Repo: r.ID(), Fingerprint: r.Fingerprint(), Snapshots: map[string]careSnap{}, Locks: map[string]string{}, Generations: len(r.Witnesses())}
	snaps, problems, err := r.Snapshots(t.Context(), "")
	if err != nil || len(problems) != 0 {
		t.Fatalf("%v, %v", problems, err)
	}
	for i := range snaps {
		s := &snaps[i]
		seeds := want.Snapshots[s.Tag].Seeds
		got.Snapshots[s.Tag] = careSnap{ID: s.ID, Host: s.Host, Place: s.Place, Seeds: seeds}
		mustHold(t, r, s, goldenUnits(seeds))
	}
	locks, err := r.Locks(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range locks {
		got.Locks[repo.Tag{Class: repo.ClassSnapshot, System: l.System, Number: l.Number}.String()] = l.Reason
	}
	return got
}

func writeGoldenCare(t *testing.T) {
	t.Helper()
	if err := os.RemoveAll(goldenCare); err != nil {
		t.Fatal(err)
	}
	b := repotest.NewBed(t)
	facts := careFacts{Snapshots: map[string]careSnap{}}
	take := func(host string, sys dr.System, seeds ...uint64) *repo.Snapshot {
		t.Helper()
		r := b.Host(host)
		o := repo.WriterOptions{System: sys}
		if p, err := r.Find(t.Context(), sys, ""); err == nil {
			o.Parent = p
		}
		w, err := r.NewWriter(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		defer w.Close()
		w.SetLimits(1<<40, 1<<30, 2, 1<<40) // so that manifests are consolidated soon
		refs, err := putAll(t.Context(), w, goldenUnits(seeds))
		if err != nil {
			t.Fatal(err)
		}
		s, err := w.Commit(t.Context(), rootOf(refs, "main"), repo.CommitInfo{})
		if err != nil {
			t.Fatal(err)
		}
		facts.Snapshots[s.Tag] = careSnap{Seeds: seeds}
		return s
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(b.Host("a").Lock(t.Context(), take("a", "shop", 1, 2, 3, 4), "kept for the court"))
	mail := take("b", "mail", 2, 20)
	take("a", "shop", 5, 6, 7, 8)
	take("a", "shop", 5, 8, 9)
	must(b.Host("a").RotateKey(t.Context(), nil))
	fourth := take("b", "shop", 5, 10)
	must(b.Host("b").Lock(t.Context(), fourth, "for a moment"))
	take("a", "shop", 5, 10, 11)
	must(b.Host("a").Unlock(t.Context(), fourth))
	must(b.Host("a").Lock(t.Context(), mail, "kept for the audit"))
	_, err := forget(t.Context(), b.Host("a"), retain.Policy{Last: 2})
	must(err)
	for range 2 {
		mustCompact(t, b.Host("a"), repo.CompactOptions{MaxUnused: 0.01}, -1)
	}
	b.Store.Collect()
	if locks, moved := tagNames(t, b.Store, "l."), tagNames(t, b.Store, "r."); locks == "" || moved == "" {
		t.Fatalf("locks %q, relocations %q", locks, moved)
	}
	facts = careOf(t, b.Host("reader").ListsAsCatalogs(), facts)
	saveRepository(t, goldenCare, b, facts, nil)
}
