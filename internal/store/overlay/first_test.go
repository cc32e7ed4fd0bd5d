package overlay_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"lifeboat/internal/registry"
	"lifeboat/internal/registry/registrytest"
	"lifeboat/internal/store"
	"lifeboat/internal/store/ocistore"
	"lifeboat/internal/store/overlay"
	"lifeboat/internal/store/storetest"
)

// At Lifeboat's registry a tag takes only what it was given first, whatever became of
// its link and whether it was deleted: the layer answers as the registry does.
func TestTagsAreGivenAsBelow(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	for name, link := range map[string]string{"moved": "other", "dangling": "sha256:" + strings.Repeat("07", 32)} {
		for _, deleted := range []bool{false, true} {
			for _, lost := range []bool{false, true} { // the list of what the tag named, too
				r := registrytest.Start(t, func(c *registry.Config) { c.PlainHTTP = true })
				own, err := ocistore.Open(ctx, r.URL("dr"), ocistore.Options{})
				if err != nil {
					t.Fatal(err)
				}
				bodies := map[string][]byte{}
				for _, n := range []string{"first", "other", "third"} {
					bodies[n] = storetest.ManifestOf(t, own, n)
				}
				put := func(s store.Store, tag, body string) string {
					_, err := s.PutManifest(ctx, tag, ocispec.MediaTypeImageManifest, bodies[body])
					if errors.Is(err, store.ErrTagTaken) {
						return "taken"
					}
					if err != nil {
						t.Error(err)
					}
					return "put"
				}
				put(own, "key.1", "first")
				put(own, "latest", "other")
				m, err := own.GetManifest(ctx, "latest")
				if err != nil {
					t.Fatal(err)
				}
				dir := filepath.Join(r.Data, "store/docker/registry/v2/repositories/dr/_manifests/tags/key.1")
				to := strings.Replace(link, "other", m.Digest.String(), 1)
				if err := os.WriteFile(filepath.Join(dir, "current/link"), []byte(to), 0o600); err != nil {
					t.Fatal(err)
				}
				if lost {
					if err := os.RemoveAll(filepath.Join(dir, "index")); err != nil {
						t.Fatal(err)
					}
				}
				var told [2][]string
				for i, s := range []store.Store{overlay.New(own, t.TempDir()), own} {
					if deleted && !(name == "dangling" && i == 0) { // nothing to see there
						if err := s.DeleteTag(ctx, "key.1"); err != nil {
							t.Error(err)
						}
					}
					for _, body := range []string{"third", "first", "third"} {
						told[i] = append(told[i], body+": "+put(s, "key.1", body))
					}
				}
				layer, done := strings.Join(told[0], ", "), strings.Join(told[1], ", ")
				if layer != done || strings.Contains(done, "first: put") == lost {
					t.Errorf("%s, deleted %v, history lost %v: registry\n%s\nlayer\n%s", name, deleted, lost, done, layer)
				}
			}
		}
	}
}
