// Package repotest makes repositories in memory for the tests of packages that
// stand on package repo: one repository, any number of hosts.
//
// It holds no assertions and is not used outside of tests.
package repotest

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"filippo.io/age"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

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

// Fork returns a bed in which each host is as it is now, and goes its own way
// from here: for tests that begin many times from one state. The store is a
// clone.
func (b *Bed) Fork() *Bed {
	b.t.Helper()
	f := *b
	f.Store, f.dir = b.Store.Clone(), b.t.TempDir()
	if err := copyTree(f.dir, b.dir); err != nil {
		b.t.Fatal(err)
	}
	return &f
}

// ForkFor is Fork for a test below that of the bed.
func (b *Bed) ForkFor(t testing.TB) *Bed {
	t.Helper()
	f := *b
	f.t = t
	return f.Fork()
}

// copyTree copies files with their modes: nobody else may read a host key.
func copyTree(to, from string) error {
	return filepath.WalkDir(from, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, p)
		if err != nil {
			return err
		}
		if d.IsDir() {
			return os.MkdirAll(filepath.Join(to, rel), 0o700)
		}
		raw, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(to, rel), raw, 0o600)
	})
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

// Forge stores body, a JSON object whose member "host" is the id of the host with that
// key (Options gives it), as a record under a tag of class e or w, signed and sealed as it
// should be and without any of the checks: what altered software does that
// holds the repository's key. It may be called from several goroutines.
func (b *Bed) Forge(ctx context.Context, key *repo.HostKey, tag string, body []byte) error {
	ring, err := b.ring(ctx)
	if err != nil {
		return err
	}
	signed, err := key.Sign(ring.Repo(), tag, body)
	if err != nil {
		return err
	}
	sealed, err := ring.SealRecord(tag, signed)
	if err != nil {
		return err
	}
	t, err := repo.ParseTag(tag)
	if err != nil {
		return err
	}
	class := map[repo.Class]string{repo.ClassEpoch: "epoch", repo.ClassSwitch: "switch"}[t.Class]
	empty := ocispec.DescriptorEmptyJSON
	empty.Data = nil
	m := ocispec.Manifest{
		MediaType: ocispec.MediaTypeImageManifest, ArtifactType: "application/vnd.lifeboat." + class + ".v1",
		Config: empty, Layers: []ocispec.Descriptor{empty},
		Annotations: map[string]string{recordAnnotation: base64.StdEncoding.EncodeToString(sealed)},
	}
	m.SchemaVersion = 2
	raw, err := json.Marshal(m)
	if err != nil {
		return err
	}
	_, err = b.Store.PutManifest(ctx, tag, ocispec.MediaTypeImageManifest, raw)
	return err
}

const recordAnnotation = "dev.lifeboat.record" // docs/format.md, Records

// ring opens the first key record.
func (b *Bed) ring(ctx context.Context) (*seal.Ring, error) {
	m, err := b.Store.GetManifest(ctx, "key.1")
	if err != nil {
		return nil, err
	}
	var d ocispec.Manifest
	if err := json.Unmarshal(m.Body, &d); err != nil {
		return nil, err
	}
	raw, err := base64.StdEncoding.DecodeString(d.Annotations[recordAnnotation])
	if err != nil {
		return nil, err
	}
	k, err := seal.ParseKeyRecord(raw)
	if err != nil {
		return nil, err
	}
	secret, err := k.Open([]age.Identity{b.Identity}, nil)
	if err != nil {
		return nil, fmt.Errorf("open key record: %w", err)
	}
	return seal.NewRing(secret), nil
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
