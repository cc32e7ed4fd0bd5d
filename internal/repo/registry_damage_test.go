package repo_test

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"filippo.io/age"
	"github.com/opencontainers/go-digest"

	"lifeboat/internal/dr"
	"lifeboat/internal/registry"
	"lifeboat/internal/registry/registrytest"
	"lifeboat/internal/repo"
	"lifeboat/internal/seal"
	"lifeboat/internal/store"
	"lifeboat/internal/store/ocistore"
	"lifeboat/internal/store/retry"
)

// What a power cut tears in the storage of Lifeboat's registry, or a bad disk does not
// let it read, is damage of what it names, told at once: nothing waits for a registry
// that is there. The next snapshot is taken all the same, and repair mends what this
// host keeps a copy of, and tags of which it knows what they named.
func TestTornInTheRegistry(t *testing.T) {
	t.Parallel()
	for how, harm := range map[string]func(file string) error{
		"torn":       func(file string) error { return os.Truncate(file, 9) },
		"unreadable": unreadable,
	} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			testHarmInTheRegistry(t, harm)
		})
	}
}

// unreadable lets every look at a file end with an error.
func unreadable(file string) error {
	if err := os.Remove(file); err != nil {
		return err
	}
	return os.Symlink(file, file)
}

func testHarmInTheRegistry(t *testing.T, harm func(file string) error) {
	for what, c := range map[string]struct {
		tag  string
		link bool // the tag is torn, not what it names
		kept bool // this host keeps a copy, or knows what the tag named
	}{
		"newest snapshot":        {tag: "s.shop.3"},
		"older snapshot":         {tag: "s.shop.2"},
		"pack manifest":          {tag: "m.", kept: true},
		"key record":             {tag: "key.1", kept: true},
		"tag of newest snapshot": {tag: "s.shop.3", link: true, kept: true},
		"tag of older snapshot":  {tag: "s.shop.2", link: true, kept: true},
		"tag of pack manifest":   {tag: "m.", link: true, kept: true},
		"tag of key record":      {tag: "key.1", link: true, kept: true},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			reg := registrytest.Start(t, func(c *registry.Config) { c.PlainHTTP = true })
			raw, err := ocistore.Open(t.Context(), reg.URL("dr"), reg.Options())
			if err != nil {
				t.Fatal(err)
			}
			// Whatever is asked for twice would be asked for for minutes.
			st := retry.New(raw, retry.Options{Attempts: 2, Notice: func(s string) { t.Errorf("it waits: %s", s) }})
			rc, id := recipient(t, "ops")
			dir := t.TempDir()
			key, err := repo.LoadOrCreateHostKey(filepath.Join(dir, "key"))
			if err != nil {
				t.Fatal(err)
			}
			local := repo.Local{Location: reg.URL("dr"), StateDir: dir, CacheDir: filepath.Join(dir, "cache")}
			created, err := repo.Create(t.Context(), st, repo.CreateOptions{Local: local, Recipients: []seal.Recipient{rc}, Host: key})
			if err != nil {
				t.Fatal(err)
			}
			if err := created.Close(); err != nil {
				t.Fatal(err)
			}
			options := repo.OpenOptions{Local: local, Identities: []age.Identity{id}, Host: key, HostName: "main"}
			r, err := open(t, st, options)
			if err != nil {
				t.Fatal(err)
			}
			var last *repo.Snapshot
			for i := range 3 {
				last = mustSnapshot(t, r, "shop", last, content(uint64(i), 3))
			}
			if err := r.Close(); err != nil {
				t.Fatal(err)
			}

			tags, err := st.Tags(t.Context(), c.tag)
			if err != nil || len(tags) == 0 {
				t.Fatalf("%v, %v", tags, err)
			}
			tag := tags[0]
			d, err := st.ResolveTag(t.Context(), tag)
			if err != nil {
				t.Fatal(err)
			}
			root := filepath.Join(reg.Data, "store", "docker", "registry", "v2")
			file := filepath.Join(root, "blobs", "sha256", d.Encoded()[:2], d.Encoded(), "data")
			if c.link {
				file = filepath.Join(root, "repositories", "dr", "_manifests", "tags", tag, "current", "link")
			}
			if err := harm(file); err != nil {
				t.Fatal(err)
			}

			if r, err = open(t, st, options); err != nil {
				t.Fatal(err)
			}
			problems, err := r.Check(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if !slices.ContainsFunc(problems, func(p repo.Problem) bool {
				return (p.Tag == tag || p.Blob == d.String()) && errors.Is(p.Err, dr.ErrTampered) && !p.Foreign()
			}) {
				t.Errorf("check finds %v; want damage of %s", problems, tag)
			}
			units := content(9, 3)
			mustHold(t, r, mustSnapshot(t, r, "shop", nil, units), units)
			done, err := r.Repair(t.Context(), repo.RepairOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if done.Healed() != c.kept {
				t.Errorf("healed: %v, with a copy: %v; left: %v", done.Healed(), c.kept, done.After.Problems)
			}
		})
	}
}

// A pack that the registry cannot read, or no longer leads to, is named by check and
// verify, which go on, and mended from a mirror.
func TestUnreadablePack(t *testing.T) {
	t.Parallel()
	for what, harm := range map[string]func(v2, hex string) error{
		"its bytes": func(v2, hex string) error {
			return unreadable(filepath.Join(v2, "blobs", "sha256", hex[:2], hex, "data"))
		},
		"its link": func(v2, hex string) error {
			return unreadable(filepath.Join(v2, "repositories", "dr", "_layers", "sha256", hex, "link"))
		},
		"its link leads elsewhere": func(v2, hex string) error {
			return os.WriteFile(filepath.Join(v2, "repositories", "dr", "_layers", "sha256", hex, "link"), []byte(digest.FromString("elsewhere")), 0o600)
		},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			reg := registrytest.Start(t, func(c *registry.Config) { c.PlainHTTP, c.Logger = true, nil })
			from := func(reg *registrytest.Registry) store.Store {
				st, err := ocistore.Open(t.Context(), reg.URL("dr"), reg.Options())
				if err != nil {
					t.Fatal(err)
				}
				return retry.New(st, retry.Options{Attempts: 2, Notice: func(s string) { t.Errorf("it waits: %s", s) }})
			}
			st := from(reg)
			rc, id := recipient(t, "ops")
			dir := t.TempDir()
			key, err := repo.LoadOrCreateHostKey(filepath.Join(dir, "key"))
			if err != nil {
				t.Fatal(err)
			}
			local := repo.Local{Location: reg.URL("dr"), StateDir: dir, CacheDir: filepath.Join(dir, "cache")}
			created, err := repo.Create(t.Context(), st, repo.CreateOptions{Local: local, Recipients: []seal.Recipient{rc}, Host: key})
			if err != nil {
				t.Fatal(err)
			}
			if err := created.Close(); err != nil {
				t.Fatal(err)
			}
			r, err := open(t, st, repo.OpenOptions{Local: local, Identities: []age.Identity{id}, Host: key, HostName: "main"})
			if err != nil {
				t.Fatal(err)
			}
			units := content(1, 3)
			s := mustSnapshot(t, r, "shop", nil, units)
			other := mustSnapshot(t, r, "blog", nil, content(2, 3))

			data := filepath.Join(t.TempDir(), "copy")
			if err := os.CopyFS(data, os.DirFS(reg.Data)); err != nil {
				t.Fatal(err)
			}
			mirror := from(registrytest.Start(t, func(c *registry.Config) { c.PlainHTTP, c.Data = true, data }))
			pack := packOf(t, st, s)
			if err := harm(filepath.Join(reg.Data, "store", "docker", "registry", "v2"), pack.Encoded()); err != nil {
				t.Fatal(err)
			}
			names := func(which string, problems []repo.Problem, err error) {
				t.Helper()
				if err != nil || !slices.ContainsFunc(problems, func(p repo.Problem) bool { return p.Blob == pack.String() }) {
					t.Errorf("%s finds %v, %v; want pack %s", which, problems, err, pack)
				}
			}
			problems, err := r.Check(t.Context())
			names("check", problems, err)
			problems, err = r.Verify(t.Context(), nil)
			names("verify", problems, err)
			mustHold(t, r, other, content(2, 3))
			done, err := r.Repair(t.Context(), repo.RepairOptions{From: []repo.RepairSource{{Name: "mirror", Exact: mirror}}})
			if err != nil || !done.Healed() {
				t.Errorf("healed: %v, %v; left: %v", done.Healed(), err, done.After.Problems)
			}
			mustHold(t, r, s, units)
		})
	}
}

// packOf is the first pack of a snapshot.
func packOf(t *testing.T, st store.Store, s *repo.Snapshot) digest.Digest {
	t.Helper()
	var ix struct {
		Manifests []struct {
			Digest digest.Digest `json:"digest"`
		} `json:"manifests"`
	}
	var m struct {
		Layers []struct {
			Digest digest.Digest `json:"digest"`
		} `json:"layers"`
	}
	read := func(ref string, v any) {
		t.Helper()
		got, err := st.GetManifest(t.Context(), ref)
		if err == nil {
			err = json.Unmarshal(got.Body, v)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	read(s.Tag, &ix)
	for _, d := range ix.Manifests {
		read(d.Digest.String(), &m)
		if len(m.Layers) > 1 { // index and packs
			return m.Layers[1].Digest
		}
	}
	t.Fatal("a snapshot without packs")
	return ""
}
