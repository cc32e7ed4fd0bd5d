package registry_test

import (
	"bytes"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
)

// TestPowerCut: blobs are on disk before a manifest that names them is
// acknowledged; those of which a power cut left something else are removed at
// the next start, and can be sent again (invariant 1 of docs/format.md).
func TestPowerCut(t *testing.T) {
	t.Parallel()
	data := filepath.Join(t.TempDir(), "data")
	mark := filepath.Join(data, "store", "unsynced")
	marked := func() bool {
		t.Helper()
		_, err := os.Stat(mark)
		return err == nil
	}
	p := startProcess(t, data)
	c := &client{t: t, base: "http://" + p.addr}
	config, kept := []byte("{}"), random(100_000)
	c.putBlob("dr", config)
	c.putBlob("dr", kept)
	if !marked() {
		t.Error("blobs were acknowledged that may not be on disk, and nothing says so")
	}
	if status, body := c.putManifest("dr", "m.1", manifest("1", kept)); status != http.StatusCreated {
		t.Fatalf("%d %s", status, body)
	}
	if marked() {
		t.Error("a manifest was acknowledged before the blobs were on disk")
	}

	empty, short, other, unlinked, whole := random(50_000), random(50_001), random(50_002), random(50_003), random(50_004)
	lost := [][]byte{empty, short, other, unlinked}
	for _, b := range append(lost, whole) {
		c.putBlob("dr", b)
	}
	p.kill()
	if !marked() {
		t.Fatal("killed with blobs that may not be on disk, and nothing says so")
	}
	file := func(b []byte) string {
		hex := digest.FromBytes(b).Encoded()
		return filepath.Join(data, "store/docker/registry/v2/blobs/sha256", hex[:2], hex, "data")
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.Truncate(file(empty), 0))
	must(os.Truncate(file(short), 4096))
	must(os.WriteFile(file(other), make([]byte, len(other)), 0o600))
	link := filepath.Join(data, "store/docker/registry/v2/repositories/dr/_layers/sha256", digest.FromBytes(unlinked).Encoded(), "link")
	must(os.Truncate(link, 0))

	p = startProcess(t, data)
	c = &client{t: t, base: "http://" + p.addr}
	has := func(b []byte) bool {
		t.Helper()
		status, _, _ := c.do("HEAD", "/v2/dr/blobs/"+digest.FromBytes(b).String(), nil)
		return status == http.StatusOK
	}
	for i, b := range lost {
		if has(b) {
			t.Errorf("damaged blob %d passes for whole", i)
		}
	}
	if !has(kept) || !has(whole) {
		t.Error("a blob that is whole is gone")
	}
	if marked() {
		t.Error("marked, with nothing in doubt")
	}
	for _, b := range lost {
		c.putBlob("dr", b)
	}
	if status, body := c.putManifest("dr", "m.2", manifest("2", append(lost, whole)...)); status != http.StatusCreated {
		t.Fatalf("%d %s", status, body)
	}
	for i, b := range append(lost, whole, kept) {
		status, got, _ := c.do("GET", "/v2/dr/blobs/"+digest.FromBytes(b).String(), nil)
		if status != http.StatusOK || !bytes.Equal([]byte(got), b) {
			t.Errorf("blob %d: %d, %d bytes", i, status, len(got))
		}
	}
	// Nothing of this survives an orderly end.
	if tmp := files(t, data, ".tmp"); len(tmp) > 0 {
		t.Errorf("left behind: %s", strings.Join(tmp, " "))
	}
}
