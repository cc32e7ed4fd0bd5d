package registry_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"lifeboat/internal/registry"
)

// serveHere runs a registry of which the test has the Server too.
func serveHere(t *testing.T, grace time.Duration) (*registry.Server, *client, string) {
	t.Helper()
	data := filepath.Join(t.TempDir(), "registry")
	srv, err := registry.New(registry.Config{Listen: "127.0.0.1:0", Data: data, PlainHTTP: true, CollectGrace: grace})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- srv.Serve(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return srv, &client{t: t, base: "http://" + srv.Addr()}, data
}

func mustCollect(t *testing.T, srv *registry.Server) registry.Collected {
	t.Helper()
	c, err := srv.Collect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// keptFiles lists the files with bytes that the registry keeps.
func keptFiles(t *testing.T, data string) (out []string) {
	t.Helper()
	err := filepath.WalkDir(filepath.Join(data, "store", "docker", "registry", "v2", "blobs"), func(p string, e fs.DirEntry, err error) error {
		if err == nil && e.Name() == "data" {
			out = append(out, filepath.Base(filepath.Dir(p)))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func layered(note string, layers ...digest.Digest) []byte {
	type desc struct {
		MediaType string        `json:"mediaType"`
		Digest    digest.Digest `json:"digest"`
		Size      int           `json:"size"`
	}
	m := map[string]any{
		"schemaVersion": 2, "mediaType": manifestType, "artifactType": "application/x.test",
		"config": desc{"application/vnd.oci.empty.v1+json", digest.FromString("{}"), 2}, "annotations": map[string]string{"note": note},
	}
	var list []desc
	for _, l := range layers {
		list = append(list, desc{"application/octet-stream", l, 1})
	}
	m["layers"] = list
	b, err := json.Marshal(m)
	if err != nil {
		panic(err)
	}
	return b
}

func (c *client) blobStatus(name string, d digest.Digest) int {
	status, _, _ := c.do("HEAD", "/v2/"+name+"/blobs/"+d.String(), nil)
	return status
}

// What no manifest names goes, in every name by itself and its file with the
// last of them; what one names stays, tagged or not.
func TestCollect(t *testing.T) {
	t.Parallel()
	srv, c, data := serveHere(t, time.Nanosecond)
	for _, name := range []string{"dr", "dr/more"} {
		c.putBlob(name, []byte("{}"))
	}
	shared, own, orphan := c.putBlob("dr", []byte("shared")), c.putBlob("dr", []byte("own")), c.putBlob("dr", []byte("orphan"))
	c.putBlob("dr/more", []byte("shared"))
	first, second, third := layered("1", shared, own), layered("2", shared), layered("3", shared)
	c.putManifest("dr", "s.shop.1", first)
	c.putManifest("dr", digest.FromBytes(second).String(), second) // without a tag
	c.putManifest("dr/more", "latest", third)

	got := mustCollect(t, srv)
	if got.Links != 1 || got.Blobs != 1 || got.Bytes != int64(len("orphan")) || c.blobStatus("dr", orphan) != http.StatusNotFound {
		t.Fatalf("%+v, orphan %d", got, c.blobStatus("dr", orphan))
	}
	if n := len(keptFiles(t, data)); n != 3+3 {
		t.Fatalf("%d files, want three blobs and three manifests", n)
	}
	drop := func(name, ref string) {
		t.Helper()
		if status, text, _ := c.do("DELETE", "/v2/"+name+"/manifests/"+ref, nil); status != http.StatusAccepted {
			t.Fatalf("delete %s: %d %s", ref, status, text)
		}
	}
	drop("dr", "s.shop.1")
	if got := mustCollect(t, srv); got.Links+got.Blobs != 0 {
		t.Fatalf("a manifest without a tag is still there: %+v", got)
	}
	drop("dr", digest.FromBytes(first).String())
	got = mustCollect(t, srv)
	if got.Links != 1 || got.Blobs != 2 || c.blobStatus("dr", own) != http.StatusNotFound || c.blobStatus("dr", shared) != http.StatusOK {
		t.Fatalf("%+v", got)
	}
	drop("dr", digest.FromBytes(second).String())
	mustCollect(t, srv)
	if c.blobStatus("dr", shared) != http.StatusNotFound || c.blobStatus("dr/more", shared) != http.StatusOK {
		t.Fatal("the other name's blob")
	}
	drop("dr/more", digest.FromBytes(third).String())
	mustCollect(t, srv)
	if left := keptFiles(t, data); len(left) != 0 {
		t.Fatalf("left are %v", left)
	}
	// All of it can be stored again.
	c.putBlob("dr", []byte("{}"))
	c.putBlob("dr", []byte("shared"))
	if status, text := c.putManifest("dr", "s.shop.2", second); status != http.StatusCreated {
		t.Fatalf("%d %s", status, text)
	}
	if status, _, _ := c.do("GET", "/v2/dr/blobs/"+shared.String(), nil); status != http.StatusOK {
		t.Fatalf("blob stored again: %d", status)
	}
}

// A blob whose manifest is still to come is left alone for the grace, and a
// manifest that cannot be read keeps everything.
func TestCollectLeavesAlone(t *testing.T) {
	t.Parallel()
	srv, c, _ := serveHere(t, time.Hour)
	d := c.putBlob("dr", []byte("young"))
	if got := mustCollect(t, srv); got.Links+got.Blobs != 0 || c.blobStatus("dr", d) != http.StatusOK {
		t.Fatalf("%+v", got)
	}

	srv, c, data := serveHere(t, time.Nanosecond)
	c.putBlob("dr", []byte("{}"))
	d = c.putBlob("dr", []byte("orphan"))
	body := layered("x")
	c.putManifest("dr", "latest", body)
	hex := digest.FromBytes(body).Encoded()
	p := filepath.Join(data, "store", "docker", "registry", "v2", "blobs", "sha256", hex[:2], hex, "data")
	if err := os.WriteFile(p, []byte("garbage"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := srv.Collect(t.Context()); err == nil || !strings.Contains(err.Error(), hex) || c.blobStatus("dr", d) != http.StatusOK {
		t.Fatalf("%v, blob %d", err, c.blobStatus("dr", d))
	}
}

// Blobs and manifests are stored, mounted and deleted while collections run
// without any grace. A blob may be gone before its manifest is stored, then the
// manifest is refused; what was stored under a tag is whole.
func TestCollectBesideWriters(t *testing.T) {
	t.Parallel()
	srv, c, _ := serveHere(t, time.Nanosecond)
	for _, name := range []string{"a", "b"} {
		c.putBlob(name, []byte("{}"))
		c.putManifest(name, "base", manifest("keeps the empty blob"))
	}
	stop := make(chan struct{})
	collecting := make(chan error, 1)
	go func() {
		for {
			select {
			case <-stop:
				collecting <- nil
				return
			default:
				if _, err := srv.Collect(context.WithoutCancel(t.Context())); err != nil {
					collecting <- err
					return
				}
			}
		}
	}()
	var wg sync.WaitGroup
	stored, refused := make([]int, 2), make([]int, 2)
	for w, name := range []string{"a", "b"} {
		wg.Go(func() {
			for i := range 40 {
				// Both names store the same bytes, again and again.
				blob := fmt.Appendf(nil, "blob %d", i%5)
				d := digest.FromBytes(blob)
				if i%3 == 0 {
					c.do("POST", "/v2/"+name+"/blobs/uploads/?mount="+d.String()+"&from="+[]string{"b", "a"}[w], nil)
				} else {
					c.putBlob(name, blob)
				}
				body := layered(fmt.Sprint(name, i), d)
				tag := fmt.Sprintf("t%d", i)
				status, text := c.putManifest(name, tag, body)
				switch status {
				case http.StatusCreated:
					stored[w]++
				case http.StatusNotFound, http.StatusBadRequest:
					refused[w]++
					continue
				default:
					t.Errorf("%s: %d %s", tag, status, text)
					return
				}
				if got, _, _ := c.do("GET", "/v2/"+name+"/blobs/"+d.String(), nil); got != http.StatusOK {
					t.Errorf("%s/%s was stored and its blob gives %d", name, tag, got)
				}
				if status, text, _ := c.do("DELETE", "/v2/"+name+"/manifests/"+digest.FromBytes(body).String(), nil); status != http.StatusAccepted {
					t.Errorf("delete: %d %s", status, text)
				}
			}
		})
	}
	wg.Wait()
	close(stop)
	if err := <-collecting; err != nil {
		t.Fatal(err)
	}
	t.Logf("stored %v, refused %v", stored, refused)
}
