package repo_test

import (
	"errors"
	"path/filepath"
	"sync"
	"testing"

	"filippo.io/age"

	"lifeboat/internal/dr"
	"lifeboat/internal/registry/registrytest"
	"lifeboat/internal/repo"
	"lifeboat/internal/seal"
	"lifeboat/internal/store"
	"lifeboat/internal/store/ocistore"
)

// The whole of it over TLS on a real registry: two hosts write at once, merge,
// change keys, claim, look for a missing blob.
func TestOnRegistry(t *testing.T) {
	t.Parallel()
	reg := registrytest.Start(t)
	connect := func() store.Store {
		t.Helper()
		st, err := ocistore.Open(t.Context(), reg.URL("dr/repo"), reg.Options())
		if err != nil {
			t.Fatal(err)
		}
		return st
	}
	rc, id := recipient(t, "ops")
	dir := t.TempDir()
	host := func(name string) repo.OpenOptions {
		key, err := repo.LoadOrCreateHostKey(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return repo.OpenOptions{
			Local:      repo.Local{Location: reg.URL("dr/repo"), StateDir: filepath.Join(dir, name), CacheDir: filepath.Join(dir, name, "cache")},
			Identities: []age.Identity{id}, Host: key, HostName: name,
		}
	}
	if _, err := open(t, connect(), host("early")); !errors.Is(err, dr.ErrNotFound) {
		t.Fatalf("open before there is one: %v", err)
	}
	created, err := repo.Create(t.Context(), connect(), repo.CreateOptions{Local: host("main").Local, Recipients: []seal.Recipient{rc}, Host: host("main").Host})
	if err != nil {
		t.Fatal(err)
	}
	if err := created.Close(); err != nil {
		t.Fatal(err)
	}
	main, err := open(t, connect(), host("main"))
	if err != nil {
		t.Fatal(err)
	}
	standIn, err := open(t, connect(), host("stand-in"))
	if err != nil {
		t.Fatal(err)
	}
	if err := main.PutRecord(t.Context(), "e.shop.1", claim(main, 1, nil)); err != nil {
		t.Fatal(err)
	}
	units := content(1, 100)
	var wg sync.WaitGroup
	for i, r := range []*repo.Repo{main, standIn, main, standIn} {
		wg.Go(func() {
			sys := []dr.System{"shop", "shop", "blog", "blog"}[i]
			mine := append(bytes2(units), content(uint64(10+i), 20)...)
			s, _, err := snapshot(t.Context(), r, repo.WriterOptions{System: sys}, "main", mine)
			if err != nil {
				t.Error(err)
				return
			}
			mustHold(t, standIn, s, mine)
		})
	}
	wg.Wait()
	if t.Failed() {
		t.FailNow()
	}
	if err := main.RotateKey(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	var parent *repo.Snapshot
	for i := range 5 {
		w, err := standIn.NewWriter(t.Context(), repo.WriterOptions{System: "wiki", Parent: parent})
		if err != nil {
			t.Fatal(err)
		}
		w.SetLimits(1<<40, 1<<30, 2, 1<<40)
		refs, err := putAll(t.Context(), w, content(uint64(i), 5))
		if err != nil {
			t.Fatal(err)
		}
		if parent, err = w.Commit(t.Context(), rootOf(refs, "stand-in"), repo.CommitInfo{}); err != nil {
			t.Fatal(err)
		}
		w.Close()
		mustHold(t, main, parent, content(uint64(i), 5))
	}
	if err := main.PutRecord(t.Context(), "e.shop.2", claim(main, 2, nil)); err != nil {
		t.Fatal(err)
	}
	if err := standIn.PutRecord(t.Context(), "e.shop.2", claim(standIn, 2, nil)); !errors.Is(err, dr.ErrHeld) {
		t.Errorf("an epoch that is taken: %v", err)
	}
	if last, err := standIn.Latest(t.Context(), repo.ClassEpoch, "shop"); err != nil || last.Host != main.HostID() {
		t.Errorf("latest: %v, %v", last, err)
	}
	for _, check := range []func() ([]repo.Problem, error){
		func() ([]repo.Problem, error) { return main.Check(t.Context()) },
		func() ([]repo.Problem, error) { return standIn.Verify(t.Context(), nil) },
	} {
		if problems, err := check(); err != nil || len(problems) != 0 {
			t.Errorf("%v, %v", problems, err)
		}
	}
}
