package repo_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"filippo.io/age"

	"lifeboat/internal/dr"
	"lifeboat/internal/registry"
	"lifeboat/internal/registry/registrytest"
	"lifeboat/internal/repo"
	"lifeboat/internal/seal"
	"lifeboat/internal/store/ocistore"
	"lifeboat/internal/store/retry"
)

// What a power cut tears in the storage of Lifeboat's registry is damage of what it
// names, told at once: nothing waits for a registry that is there. The next snapshot
// is taken all the same, and repair mends what this host keeps a copy of, and tags of
// which it knows what they named.
func TestTornInTheRegistry(t *testing.T) {
	t.Parallel()
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
			if err := os.Truncate(file, 9); err != nil {
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
