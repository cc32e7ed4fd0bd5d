// Package repotest makes repositories in memory for the tests of packages that
// stand on package repo: one repository, any number of hosts.
//
// It holds no assertions and is not used outside of tests.
package repotest

import (
	"path/filepath"
	"strings"
	"testing"

	"filippo.io/age"

	"lifeboat/internal/repo"
	"lifeboat/internal/seal"
	"lifeboat/internal/store"
	"lifeboat/internal/store/memstore"
)

// New returns a fresh repository in memory, opened by one enrolled host. It is
// closed when the test ends.
func New(t testing.TB) *repo.Repo {
	t.Helper()
	return NewBed(t).Host("main")
}

// Bed is one repository in memory and what its hosts need to open it.
type Bed struct {
	// Store holds the repository; tests damage it with its methods Corrupt,
	// Drop and MoveTag.
	Store *memstore.Store
	// Identity opens the repository's key; Recipient is its public half.
	Identity  *age.X25519Identity
	Recipient seal.Recipient

	t   testing.TB
	dir string
}

// NewBed creates a repository without any host.
func NewBed(t testing.TB) *Bed {
	t.Helper()
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	rc, err := seal.ParseRecipient("test", id.Recipient().String())
	if err != nil {
		t.Fatal(err)
	}
	b := &Bed{Store: memstore.New(), Identity: id, Recipient: rc, t: t, dir: t.TempDir()}
	r, err := repo.Create(t.Context(), b.Store, repo.CreateOptions{
		Local: repo.Local{Location: "mem://test", CacheDir: filepath.Join(b.dir, "create")}, Recipients: []seal.Recipient{rc},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	return b
}

// Options are those with which the host of that name opens the repository: it
// has its own key, state and cache, the same each time.
func (b *Bed) Options(name string) repo.OpenOptions {
	b.t.Helper()
	dir := filepath.Join(b.dir, strings.ReplaceAll(name, "/", "_"))
	key, err := repo.LoadOrCreateHostKey(dir)
	if err != nil {
		b.t.Fatal(err)
	}
	return repo.OpenOptions{
		Local: repo.Local{
			Location: "mem://test", StateDir: filepath.Join(dir, "state"), CacheDir: filepath.Join(dir, "cache"),
		},
		Identities: []age.Identity{b.Identity}, Host: key, HostName: name,
	}
}

// Host opens the repository as the host of that name, and closes it when the
// test ends. A second call is the same host started again.
func (b *Bed) Host(name string) *repo.Repo {
	b.t.Helper()
	return b.HostOn(name, b.Store)
}

// HostOn is Host over a decorated store.
func (b *Bed) HostOn(name string, st store.Store) *repo.Repo {
	b.t.Helper()
	r, err := repo.Open(b.t.Context(), st, b.Options(name))
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() {
		if err := r.Close(); err != nil {
			b.t.Error(err)
		}
	})
	return r
}
