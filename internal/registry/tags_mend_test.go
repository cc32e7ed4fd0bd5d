package registry_test

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"lifeboat/internal/registry/registrytest"
)

// link lets the file of a tag say something, as a damaged disk does.
func link(t *testing.T, r *registrytest.Registry, tag string, d digest.Digest) {
	t.Helper()
	file := filepath.Join(r.Data, "store/docker/registry/v2/repositories/dr/_manifests/tags", tag, "current/link")
	if err := os.WriteFile(file, []byte(d), 0o600); err != nil {
		t.Fatal(err)
	}
}

// A tag of which the link is damaged is given again what it was given first, by
// whoever may write it, and nothing else; also where somebody has deleted it since.
func TestFirstIsPutBack(t *testing.T) {
	t.Parallel()
	r := registrytest.Start(t, plain)
	c := newClient(t, r)
	c.putBlob("dr", []byte("{}"))
	first, other, third := manifest("first"), manifest("other"), manifest("third")
	packs := "m." + digest.FromBytes(first).Encoded()[:32]
	put := func(what, tag string, body []byte, want int, says string) {
		t.Helper()
		status, text := c.putManifest("dr", tag, body)
		c.want(tag+", "+what, status, text, want, says)
	}
	asked := func(tag string) string {
		t.Helper()
		_, _, h := c.do("HEAD", "/v2/dr/manifests/"+tag+"?first", nil)
		return h.Get("Docker-Content-Digest")
	}
	put("other", "latest", other, http.StatusCreated, "")
	for _, tag := range []string{"key.1", "host.1", "e.shop.1", "s.shop.1", "r.shop.1.1", packs} {
		if got := asked(tag); got != "" {
			t.Errorf("%s was given %s before there was any", tag, got)
		}
		put("first", tag, first, http.StatusCreated, "")
		for name, d := range map[string]digest.Digest{
			"moved":    digest.FromBytes(other),
			"dangling": digest.Digest("sha256:" + strings.Repeat("07", 32)),
		} {
			link(t, r, tag, d)
			if got := asked(tag); got != digest.FromBytes(first).String() {
				t.Errorf("%s, %s: first was %s", tag, name, got)
			}
			put(name+", third", tag, third, http.StatusConflict, `"reason":"taken"`)
			put(name+", first", tag, first, http.StatusCreated, "")
			if got := c.tag("dr", tag); got != digest.FromBytes(first).String() {
				t.Errorf("%s, %s: names %s", tag, name, got)
			}
			if tag == packs {
				continue // is put back after any deletion
			}
			link(t, r, tag, d)
			status, text, _ := c.do("DELETE", "/v2/dr/manifests/"+tag, nil)
			c.want("delete "+tag, status, text, http.StatusAccepted, "")
			put(name+" and deleted, other", tag, other, http.StatusConflict, `"reason":"retired"`)
			put(name+" and deleted, first", tag, first, http.StatusCreated, "")
		}
	}
}

// Whoever puts an epoch back that was lost does not hold it.
func TestEpochPutBackStaysItsWriters(t *testing.T) {
	t.Parallel()
	r := registrytest.Start(t, plain, withUsers(t, "admin: {role: operator}\nsite: {role: standby}", "admin", "site"))
	c := newClient(t, r)
	admin, site := c.as("admin"), c.as("site")
	admin.putBlob("dr", []byte("{}"))
	for _, by := range []*client{site, admin} {
		status, text := by.putManifest("dr", "e.shop.1", manifest("epoch"))
		c.want("epoch by "+by.user, status, text, http.StatusCreated, "")
		if by == site {
			status, text, _ := admin.do("DELETE", "/v2/dr/manifests/e.shop.1", nil)
			c.want("delete", status, text, http.StatusAccepted, "")
		}
	}
	status, text := site.putManifest("dr", "s.shop.1", manifest("snapshot"))
	c.want("snapshot by who claimed", status, text, http.StatusCreated, "")
}
