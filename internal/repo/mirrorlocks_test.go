package repo_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"

	"lifeboat/internal/dr"
	"lifeboat/internal/repo"
	"lifeboat/internal/store"
	"lifeboat/internal/store/memstore"
)

// lockedIn are the tags of the snapshots that are locked in a registry.
func (m *mirrored) lockedIn(t *testing.T, dst store.Store) (out []string) {
	t.Helper()
	locks, err := m.HostOn("looker", dst).Locks(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range locks {
		out = append(out, repo.Tag{Class: repo.ClassSnapshot, System: l.System, Number: l.Number}.String()+" "+l.Reason)
	}
	return out
}

func (m *mirrored) find(t *testing.T, system dr.System, ref string) *repo.Snapshot {
	t.Helper()
	s, err := m.Host("main").Find(t.Context(), system, ref)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// ordered notes the tags that are put, in their order, and does not take those
// again that were deleted.
type ordered struct {
	store.Store
	tags    []string
	retired map[string]bool
}

// TestMirrorLocks: what is locked is locked in the mirror, from before it is there
// on; what is unlocked is unlocked there by the next run; and what was forgotten there
// does not come back for its lock.
func TestMirrorLocks(t *testing.T) {
	t.Parallel()
	m := newMirrored(t)
	main, dst := m.Host("main"), memstore.New()
	one, mail := m.find(t, "shop", "#1"), m.find(t, "mail", "#1")
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(main.Lock(t.Context(), one, "kept for the court"))
	must(main.Lock(t.Context(), mail, "for now"))
	must(main.Unlock(t.Context(), mail))
	must(main.Lock(t.Context(), mail, "and again"))

	watched := &ordered{Store: dst}
	if res := mustMirror(t, main, watched); res.Records != 2+2+2+4 {
		t.Errorf("%d records", res.Records)
	}
	if diff := cmp.Diff(tagsOf(t, m.Store), tagsOf(t, dst)); diff != "" {
		t.Errorf("not the same tags: %s", diff)
	}
	if diff := cmp.Diff([]string{"s.mail.1 and again", "s.shop.1 kept for the court"}, m.lockedIn(t, dst)); diff != "" {
		t.Error(diff)
	}
	at := map[string]int{}
	for i, tag := range watched.tags {
		at[tag] = i
	}
	for _, pair := range [][2]string{{"host.2", "l.mail.1.1"}, {"l.mail.1.1", "l.mail.1.2"}, {"l.mail.1.3", "s.mail.1"}, {"l.shop.1.1", "s.shop.1"}} {
		if at[pair[0]] >= at[pair[1]] {
			t.Errorf("%s came after %s: %v", pair[0], pair[1], watched.tags)
		}
	}

	must(main.Unlock(t.Context(), one))
	if res := mustMirror(t, main, dst); res.Records != 1 {
		t.Errorf("%d records, want the one that unlocks", res.Records)
	}
	if diff := cmp.Diff([]string{"s.mail.1 and again"}, m.lockedIn(t, dst)); diff != "" {
		t.Error(diff)
	}
	if res := mustMirror(t, main, dst); res.Records != 0 {
		t.Errorf("copied again: %d", res.Records)
	}

	// Forgotten there with its locks, while it is still here.
	watched.retired = map[string]bool{"s.shop.1": true, "l.shop.1.1": true, "l.shop.1.2": true}
	for tag := range watched.retired {
		must(dst.DeleteTag(t.Context(), tag))
	}
	if res := mustMirror(t, main, watched); res.Records != 0 || mirrorStates(res)["s.shop.1"] != repo.MirrorForgotten {
		t.Errorf("%d records, %v", res.Records, mirrorStates(res))
	}
}

func (o *ordered) PutManifest(ctx context.Context, ref, media string, body []byte) (d digest.Digest, err error) {
	if o.retired[ref] {
		return "", store.ErrTagRetired
	}
	d, err = o.Store.PutManifest(ctx, ref, media, body)
	if err == nil {
		o.tags = append(o.tags, ref)
	}
	return d, err
}

// TestMirrorLocksOfTheChosen: a lock comes with its snapshot only.
func TestMirrorLocksOfTheChosen(t *testing.T) {
	t.Parallel()
	m := newMirrored(t)
	main, dst := m.Host("main"), memstore.New()
	for _, s := range []*repo.Snapshot{m.find(t, "shop", "#1"), m.find(t, "mail", "#1")} {
		if err := main.Lock(t.Context(), s, "stays"); err != nil {
			t.Fatal(err)
		}
	}
	only := func(s *repo.Snapshot) bool { return s.System == "mail" }
	for range 2 {
		if _, err := main.MirrorTo(t.Context(), dst, repo.MirrorOptions{Only: only}); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]string{"s.mail.1 stays"}, m.lockedIn(t, dst)); diff != "" {
			t.Error(diff)
		}
	}
	mustMirror(t, main, dst)
	if diff := cmp.Diff([]string{"s.mail.1 stays", "s.shop.1 stays"}, m.lockedIn(t, dst)); diff != "" {
		t.Error(diff)
	}
}

// TestMirrorKeepsItsOwnLock: a snapshot that was locked at the mirror stays so,
// whatever is done here, and that is told.
func TestMirrorKeepsItsOwnLock(t *testing.T) {
	t.Parallel()
	m := newMirrored(t)
	main, dst := m.Host("main"), memstore.New()
	mustMirror(t, main, dst)
	there := m.HostOn("main", dst)
	one, err := there.Find(t.Context(), "shop", "#1")
	if err != nil {
		t.Fatal(err)
	}
	if err := there.Lock(t.Context(), one, "theirs"); err != nil {
		t.Fatal(err)
	}
	here := m.find(t, "shop", "#1")
	if err := errors.Join(main.Lock(t.Context(), here, "ours"), main.Unlock(t.Context(), here)); err != nil {
		t.Fatal(err)
	}
	res, err := main.MirrorTo(t.Context(), dst, repo.MirrorOptions{})
	if err != nil || len(res.Problems) != 1 || res.Problems[0].Tag != "l.shop.1.1" || !errors.Is(res.Problems[0].Err, dr.ErrHeld) || !strings.Contains(res.Problems[0].Err.Error(), "on its own") {
		t.Errorf("%+v, %v", res.Problems, err)
	}
	if diff := cmp.Diff([]string{"s.shop.1 theirs"}, m.lockedIn(t, dst)); diff != "" {
		t.Error(diff)
	}
}
