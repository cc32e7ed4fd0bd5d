package registry_test

import (
	"net/http"
	"os"
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"lifeboat/internal/registry"
	"lifeboat/internal/registry/registrytest"
)

// unreadables put something in the place of a file of which no byte can be read.
var unreadables = map[string]func(file string) error{
	"directory":  func(f string) error { return os.Mkdir(f, 0o700) },
	"loop":       func(f string) error { return os.Symlink(f, f) },
	"bad sector": func(f string) error { return os.Symlink("/proc/self/mem", f) }, // EIO at its first byte
}

// hide makes a file unreadable in one of these ways.
func hide(t *testing.T, how string, parts ...string) {
	t.Helper()
	file := filepath.Join(parts...)
	if err := os.Rename(file, file+".was"); err != nil {
		t.Fatal(err)
	}
	if err := unreadables[how](file); err != nil {
		t.Fatal(err)
	}
}

// lose leaves nothing of a file or directory that can be read.
func lose(t *testing.T, parts ...string) {
	t.Helper()
	hide(t, "loop", parts...)
	if err := os.RemoveAll(filepath.Join(parts...) + ".was"); err != nil {
		t.Fatal(err)
	}
}

// What cannot be read is told as damaged, of that one thing, as what is torn is; it
// is healed by storing the same again, and nothing else comes in its place.
func TestUnreadable(t *testing.T) {
	t.Parallel()
	for how := range unreadables {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			srv, c, data := serveHere(t, 0)
			c.putBlob("dr", []byte("{}"))
			layer := []byte("layer")
			blob := c.putBlob("dr", layer)
			body, other := manifest("1", layer), manifest("2")
			d := digest.FromBytes(body)
			put := func(what string) {
				t.Helper()
				status, text := c.putManifest("dr", "s.shop.1", body)
				c.want(what, status, text, http.StatusCreated, "")
				if status, text, _ := c.read("GET", "s.shop.1"); status != http.StatusOK || text != string(body) {
					t.Errorf("after %s: %d %s", what, status, text)
				}
			}
			put("put")
			c.putManifest("dr", digest.FromBytes(other).String(), other)
			damaged := func(what, ref string) {
				t.Helper()
				status, text, _ := c.read("GET", ref)
				c.want(what, status, text, http.StatusUnprocessableEntity, `"reason":"damaged"`)
				c.want(what, status, text, http.StatusUnprocessableEntity, "DIGEST_INVALID")
			}
			kept := func() {
				t.Helper()
				status, text, _ := c.do("DELETE", "/v2/dr/manifests/"+digest.FromBytes(other).String(), nil)
				c.want("delete beside it", status, text, http.StatusConflict, `"reason":"listed"`)
				if _, err := srv.Collect(t.Context()); err == nil {
					t.Error("a collection went past what it could not read")
				}
			}

			// What the tag names is known, and what that lists is not.
			hide(t, how, manifestFile(data, d))
			damaged("a manifest by tag", "s.shop.1")
			damaged("a manifest by digest", d.String())
			if got := c.tag("dr", "s.shop.1"); got != d.String() {
				t.Errorf("the tag of a manifest that cannot be read names %q", got)
			}
			kept()
			put("a manifest that could not be read, again")

			tag := filepath.Join(manifestsOf(data), "tags", "s.shop.1")
			hide(t, how, tag, "current", "link")
			damaged("a tag", "s.shop.1")
			if status, _, _ := c.read("HEAD", "s.shop.1"); status != http.StatusUnprocessableEntity {
				t.Errorf("a tag, by HEAD: %d", status)
			}
			status, text, _ := c.do("DELETE", "/v2/dr/manifests/"+d.String(), nil)
			c.want("delete what it names", status, text, http.StatusConflict, `"reason":"listed"`)
			status, text = c.putManifest("dr", "s.shop.1", other)
			c.want("put something else", status, text, http.StatusConflict, `"reason":"taken"`)
			put("a tag that could not be read, again")

			// Where nothing says what it named it is kept as it is: it may be whole.
			hide(t, how, tag, "current", "link")
			hide(t, how, tag, "index")
			status, text, _ = c.do("DELETE", "/v2/dr/manifests/s.shop.1", nil)
			c.want("delete what nobody can read", status, text, http.StatusUnprocessableEntity, `"reason":"damaged"`)
			for _, f := range []string{filepath.Join(tag, "index"), filepath.Join(tag, "current", "link")} {
				if err := os.RemoveAll(f); err != nil {
					t.Fatal(err)
				}
				if err := os.Rename(f+".was", f); err != nil {
					t.Fatal(err)
				}
			}
			put("a tag that can be read again")

			hide(t, how, manifestsOf(data), "revisions", "sha256", d.Encoded(), "link")
			status, text, _ = c.read("GET", "s.shop.1")
			c.want("a manifest behind a link that cannot be read", status, text, http.StatusNotFound, "MANIFEST_UNKNOWN")
			put("it")

			hide(t, how, storageOf(data), "repositories", "dr", "_layers", "sha256", blob.Encoded(), "link")
			if status := c.blobStatus("dr", blob); status != http.StatusNotFound {
				t.Errorf("a blob behind a link that cannot be read: %d", status)
			}
			c.putBlob("dr", layer)
			if status := c.blobStatus("dr", blob); status != http.StatusOK {
				t.Errorf("after it was sent again: %d", status)
			}

			hide(t, how, manifestFile(data, blob))
			for _, part := range []string{"", "bytes=0-1", "bytes=2-"} {
				status, text, _ = c.do("GET", "/v2/dr/blobs/"+blob.String(), nil, "Range", part)
				c.want("a blob, "+part, status, text, http.StatusUnprocessableEntity, `"reason":"damaged"`)
			}
			if status := c.blobStatus("dr", blob); status != http.StatusUnprocessableEntity && how != "bad sector" {
				t.Errorf("a blob, by HEAD: %d", status)
			}
			status, text, _ = c.do("PUT", c.startUpload("dr")+"&digest="+blob.String(), layer, "Lifeboat-Rewrite", "damaged")
			c.want("send it again", status, text, http.StatusCreated, "")
			if status, text, _ := c.do("GET", "/v2/dr/blobs/"+blob.String(), nil); status != http.StatusOK || text != string(layer) {
				t.Errorf("after it was sent again: %d %s", status, text)
			}
		})
	}
}

// A link that leads to something else leads nowhere.
func TestMisledLink(t *testing.T) {
	t.Parallel()
	_, c, data := serveHere(t, 0)
	a, b := c.putBlob("dr", []byte("a")), c.putBlob("dr", []byte("b"))
	link := filepath.Join(storageOf(data), "repositories", "dr", "_layers", "sha256", a.Encoded(), "link")
	for _, to := range []digest.Digest{b, digest.FromString("not here")} {
		if err := os.WriteFile(link, []byte(to), 0o600); err != nil {
			t.Fatal(err)
		}
		for _, method := range []string{"GET", "HEAD"} {
			if status, text, _ := c.do(method, "/v2/dr/blobs/"+a.String(), nil); status != http.StatusNotFound {
				t.Errorf("%s behind a link to %s: %d %s", method, to, status, text)
			}
		}
		c.putBlob("dr", []byte("a"))
		if status, text, _ := c.do("GET", "/v2/dr/blobs/"+a.String(), nil); status != http.StatusOK || text != "a" {
			t.Errorf("after it was sent again: %d %s", status, text)
		}
	}
}

// A storage that does not answer is none of which anything is damaged.
func TestUnreadableStorage(t *testing.T) {
	t.Parallel()
	for what, fails := range map[string]func(store string, tags []string){
		"the directory of all tags": func(_ string, tags []string) { lose(t, filepath.Dir(tags[0])) },
		"each other tag": func(_ string, tags []string) {
			for _, tag := range tags[1:] {
				lose(t, tag, "current")
				lose(t, tag, "index")
			}
		},
		"a storage that takes no writes": func(store string, _ []string) {
			if err := os.Mkdir(filepath.Join(store, "probe"), 0o700); err != nil {
				t.Error(err)
			}
		},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			r := registrytest.Start(t, plain, func(c *registry.Config) { c.Logger = nil })
			c := newClient(t, r)
			c.putBlob("dr", []byte("{}"))
			body := manifest("1")
			var tags []string
			for _, tag := range []string{"s.shop.1", "s.shop.2", "s.shop.3"} {
				status, text := c.putManifest("dr", tag, body)
				c.want("put", status, text, http.StatusCreated, "")
				tags = append(tags, filepath.Join(manifestsOf(r.Data), "tags", tag))
			}
			lose(t, tags[0], "current", "link")
			lose(t, tags[0], "index")
			status, text, _ := c.read("GET", "s.shop.1")
			c.want("one of several", status, text, http.StatusUnprocessableEntity, "damaged")

			fails(filepath.Join(r.Data, "store"), tags)
			for _, method := range []string{"GET", "HEAD"} {
				if status, text, _ := c.read(method, "s.shop.1"); status != http.StatusInternalServerError {
					t.Errorf("%s: %d %s", method, status, text)
				}
			}
			for _, b := range [][]byte{body, manifest("2")} {
				status, text = c.putManifest("dr", "s.shop.1", b)
				c.want("put again", status, text, http.StatusInternalServerError, "")
			}
			status, text, _ = c.do("DELETE", "/v2/dr/manifests/s.shop.1", nil)
			c.want("delete", status, text, http.StatusInternalServerError, "")
		})
	}
}

// One file that cannot be read keeps no registry from starting after a power cut.
func TestUnreadableAtStart(t *testing.T) {
	t.Parallel()
	r := registrytest.Start(t, plain)
	c := newClient(t, r)
	c.putBlob("dr", []byte("{}"))
	status, text := c.putManifest("dr", "s.shop.1", manifest("1"))
	c.want("put", status, text, http.StatusCreated, "")
	bad := c.putBlob("dr", []byte("bad"))
	r.Stop(t)
	if err := os.WriteFile(filepath.Join(r.Data, "store", "unsynced"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	file := manifestFile(r.Data, bad)
	if err := unix.Mount("/proc/self/mem", file, "", unix.MS_BIND, ""); err != nil { // EIO at its first byte
		t.Fatalf("mount (needs root): %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(file, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	c = newClient(t, registrytest.Start(t, plain, func(cfg *registry.Config) { cfg.Data, cfg.Logger = r.Data, nil }))
	status, text, _ = c.do("GET", "/v2/dr/blobs/"+bad.String(), nil)
	c.want("what cannot be read", status, text, http.StatusUnprocessableEntity, "input/output error")
	if status, text, _ := c.read("GET", "s.shop.1"); status != http.StatusOK {
		t.Errorf("the rest: %d %s", status, text)
	}
}
