package registry_test

import (
	"bytes"
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"

	"lifeboat/internal/registry/registrytest"
)

// damages are what a power cut or a bad disk makes of a small file.
var damages = map[string]func([]byte) []byte{
	"torn":    func(b []byte) []byte { return b[:len(b)/2] },
	"empty":   func([]byte) []byte { return nil },
	"garbled": func(b []byte) []byte { return bytes.Repeat([]byte("L\x00"), len(b)/2) },
	"flipped": func(b []byte) []byte { // JSON still, which names another digest
		at := bytes.Index(b, []byte("sha256:")) + len("sha256:")
		b[at] = "10"[min(1, b[at]-'0')]
		return b
	},
}

// damageFile rewrites a file of the storage.
func damageFile(t *testing.T, damage func([]byte) []byte, parts ...string) {
	t.Helper()
	file := filepath.Join(parts...)
	b, err := os.ReadFile(file)
	if err == nil {
		err = os.WriteFile(file, damage(b), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func storageOf(data string) string { return filepath.Join(data, "store", "docker", "registry", "v2") }

func manifestFile(data string, d digest.Digest) string {
	return filepath.Join(storageOf(data), "blobs", "sha256", d.Encoded()[:2], d.Encoded(), "data")
}

func manifestsOf(data string) string {
	return filepath.Join(storageOf(data), "repositories", "dr", "_manifests")
}

// read asks for a manifest as clients do.
func (c *client) read(method, ref string) (int, string, http.Header) {
	c.t.Helper()
	return c.do(method, "/v2/dr/manifests/"+ref, nil, "Accept", manifestType+", "+indexType)
}

// indexOf is an image index that lists manifests.
func indexOf(t *testing.T, bodies ...[]byte) []byte {
	t.Helper()
	type desc map[string]any
	list := []desc{}
	for _, b := range bodies {
		list = append(list, desc{"mediaType": manifestType, "digest": digest.FromBytes(b), "size": len(b)})
	}
	b, err := json.Marshal(desc{"schemaVersion": 2, "mediaType": indexType, "manifests": list})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// A damaged manifest is sent as it is, like any blob: whoever asked compares its
// digest. What it lists is not known, so nothing is deleted, until the same
// manifest is stored again, which heals it.
func TestDamagedManifest(t *testing.T) {
	t.Parallel()
	for kind, damage := range damages {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			r := registrytest.Start(t, plain)
			c := newClient(t, r)
			c.putBlob("dr", []byte("{}"))
			listed, other := manifest("listed"), manifest("other")
			c.putManifest("dr", digest.FromBytes(listed).String(), listed)
			c.putManifest("dr", digest.FromBytes(other).String(), other)
			body := indexOf(t, listed)
			d := digest.FromBytes(body)
			put := func() {
				t.Helper()
				status, text, _ := c.do("PUT", "/v2/dr/manifests/s.shop.1", body, "Content-Type", indexType)
				c.want("put", status, text, http.StatusCreated, "")
			}
			put()
			damageFile(t, damage, manifestFile(r.Data, d))
			bad, err := os.ReadFile(manifestFile(r.Data, d))
			if err != nil {
				t.Fatal(err)
			}
			for _, ref := range []string{"s.shop.1", d.String()} {
				for _, method := range []string{"GET", "HEAD"} {
					status, text, h := c.read(method, ref)
					if method == "HEAD" {
						text = string(bad)
					}
					if status != http.StatusOK || text != string(bad) || h.Get("Docker-Content-Digest") != d.String() {
						t.Errorf("%s %s: %d, %d bytes, digest %s; want the %d bytes that there are", method, ref, status, len(text), h.Get("Docker-Content-Digest"), len(bad))
					}
				}
			}
			for _, b := range [][]byte{listed, other} {
				status, text, _ := c.do("DELETE", "/v2/dr/manifests/"+digest.FromBytes(b).String(), nil)
				c.want("delete beside it", status, text, http.StatusConflict, `"reason":"listed"`)
			}
			put()
			if status, text, _ := c.read("GET", "s.shop.1"); status != http.StatusOK || text != string(body) {
				t.Errorf("after it was stored again: %d, %d bytes", status, len(text))
			}
			status, text, _ := c.do("DELETE", "/v2/dr/manifests/"+digest.FromBytes(other).String(), nil)
			c.want("delete what nobody lists", status, text, http.StatusAccepted, "")
			status, text, _ = c.do("DELETE", "/v2/dr/manifests/"+digest.FromBytes(listed).String(), nil)
			c.want("delete what it lists", status, text, http.StatusConflict, `"reason":"listed"`)
		})
	}
}

// A tag of which it cannot be read what it names is told to be damaged. It does
// not become free: it takes back what it named, and nothing else, also after it
// was deleted.
func TestDamagedTag(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"torn", "empty", "garbled"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			r := registrytest.Start(t, plain)
			c := newClient(t, r)
			c.putBlob("dr", []byte("{}"))
			link := filepath.Join(manifestsOf(r.Data), "tags", "s.shop.1", "current", "link")
			first, second := manifest("1"), manifest("2")
			status, text := c.putManifest("dr", "s.shop.1", first)
			c.want("put", status, text, http.StatusCreated, "")
			damageFile(t, damages[kind], link)
			status, text, _ = c.read("GET", "s.shop.1")
			c.want("read", status, text, http.StatusUnprocessableEntity, "DIGEST_INVALID")
			if status, _, _ := c.read("HEAD", "s.shop.1"); status != http.StatusUnprocessableEntity {
				t.Errorf("asked by HEAD: %d", status)
			}
			if status, text, _ := c.read("GET", digest.FromBytes(first).String()); status != http.StatusOK || text != string(first) {
				t.Errorf("by digest: %d %s", status, text)
			}
			status, text, _ = c.do("DELETE", "/v2/dr/manifests/"+digest.FromBytes(first).String(), nil)
			c.want("delete what it named", status, text, http.StatusConflict, `"reason":"listed"`)
			c.putManifest("dr", digest.FromBytes(manifest("3")).String(), manifest("3"))
			status, text, _ = c.do("DELETE", "/v2/dr/manifests/"+digest.FromBytes(manifest("3")).String(), nil)
			c.want("delete what no tag named", status, text, http.StatusAccepted, "")
			status, text = c.putManifest("dr", "s.shop.1", second)
			c.want("put something else", status, text, http.StatusConflict, `"reason":"taken"`)
			status, text = c.putManifest("dr", "s.shop.2", second)
			c.want("put the next number", status, text, http.StatusCreated, "")
			status, text = c.putManifest("dr", "s.shop.1", first)
			c.want("put the same again", status, text, http.StatusCreated, "")
			if got := c.tag("dr", "s.shop.1"); got != digest.FromBytes(first).String() {
				t.Errorf("it names %s", got)
			}

			damageFile(t, damages[kind], link)
			status, text, _ = c.do("DELETE", "/v2/dr/manifests/s.shop.1", nil)
			c.want("delete the tag", status, text, http.StatusAccepted, "")
			status, text = c.putManifest("dr", "s.shop.1", second)
			c.want("put something else after that", status, text, http.StatusConflict, `"reason":"retired"`)
			status, text = c.putManifest("dr", "s.shop.1", first)
			c.want("put the same after that", status, text, http.StatusCreated, "")

			// Where even all that tells what it named is gone it takes nothing.
			damageFile(t, damages[kind], link)
			for _, kept := range []string{
				filepath.Join(manifestsOf(r.Data), "tags", "s.shop.1", "index"),
				filepath.Join(r.Data, "store/lifeboat/v1/names/dr/_retired/s.shop.1"),
			} {
				if err := os.RemoveAll(kept); err != nil {
					t.Fatal(err)
				}
			}
			status, text, _ = c.do("DELETE", "/v2/dr/manifests/"+digest.FromBytes(manifest("3")).String(), nil)
			c.want("delete what it may have named", status, text, http.StatusConflict, `"reason":"listed"`)
			status, text = c.putManifest("dr", "s.shop.1", first)
			c.want("put what it named, which nobody knows", status, text, http.StatusConflict, `"reason":"taken"`)
			status, text, _ = c.do("DELETE", "/v2/dr/manifests/s.shop.1", nil)
			c.want("delete the tag", status, text, http.StatusAccepted, "")
			status, text = c.putManifest("dr", "s.shop.1", second)
			c.want("put something else after that", status, text, http.StatusConflict, `"reason":"retired"`)
		})
	}
}

// A link that says nothing holds nothing: what it led to is stored again as if it
// were not there. A collection ends at it rather than take it for rubbish.
func TestDamagedLink(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"torn", "empty", "garbled"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			srv, c, data := serveHere(t, 0)
			layer, body := []byte("layer"), manifest("1", []byte("layer"))
			c.putBlob("dr", []byte("{}"))
			c.putBlob("dr", layer)
			status, text := c.putManifest("dr", "s.shop.1", body)
			c.want("put", status, text, http.StatusCreated, "")
			damageFile(t, damages[kind], manifestsOf(data), "revisions", "sha256", digest.FromBytes(body).Encoded(), "link")
			for _, ref := range []string{"s.shop.1", digest.FromBytes(body).String()} {
				status, text, _ = c.read("GET", ref)
				c.want("read "+ref, status, text, http.StatusNotFound, "MANIFEST_UNKNOWN")
			}
			if _, err := srv.Collect(t.Context()); err == nil {
				t.Error("a collection went past a link that it could not read")
			}
			status, text = c.putManifest("dr", "s.shop.1", body)
			c.want("put again", status, text, http.StatusCreated, "")
			if status, text, _ := c.read("GET", "s.shop.1"); status != http.StatusOK || text != string(body) {
				t.Errorf("after that: %d %s", status, text)
			}
			d := digest.FromBytes(layer)
			damageFile(t, damages[kind], storageOf(data), "repositories", "dr", "_layers", "sha256", d.Encoded(), "link")
			if status := c.blobStatus("dr", d); status != http.StatusNotFound {
				t.Errorf("a blob behind a damaged link: %d", status)
			}
			if _, err := srv.Collect(t.Context()); err == nil {
				t.Error("a collection went past a link that it could not read")
			}
			c.putBlob("dr", layer)
			if status := c.blobStatus("dr", d); status != http.StatusOK {
				t.Errorf("after it was sent again: %d", status)
			}
		})
	}
}
