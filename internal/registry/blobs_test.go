package registry_test

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

// TestBlobs: a blob comes whole, in ranges, and to names that have it only, of
// whatever size.
func TestBlobs(t *testing.T) {
	t.Parallel()
	_, c, data := serveHere(t, time.Hour)
	for _, size := range []int{1, 100, 256 << 10, 3<<20 + 17} {
		b := random(size)
		d := c.putBlob("dr", b)
		at := "/v2/dr/blobs/" + d.String()
		for _, x := range []struct {
			ranges string
			status int
			want   string
		}{
			{"", http.StatusOK, string(b)},
			{"bytes=0-", http.StatusPartialContent, string(b)},
			{fmt.Sprintf("bytes=%d-%d", size/3, size-1), http.StatusPartialContent, string(b[size/3:])},
			{fmt.Sprintf("bytes=0-%d", size/2), http.StatusPartialContent, string(b[:size/2+1])},
			{"bytes=-1", http.StatusPartialContent, string(b[size-1:])},
			{fmt.Sprintf("bytes=0-%d", size*2), http.StatusPartialContent, string(b)},
			{fmt.Sprintf("bytes=%d-", size), http.StatusRequestedRangeNotSatisfiable, ""},
			{"bytes=9-1", http.StatusRequestedRangeNotSatisfiable, ""},
		} {
			status, body, h := c.do("GET", at, nil, "Range", x.ranges)
			if status != x.status || (x.want != "" && body != x.want) || h.Get("Docker-Content-Digest") != d.String() {
				t.Errorf("%d bytes, range %q: %d, %d bytes, %v", size, x.ranges, status, len(body), h)
			}
		}
		status, body, h := c.do("HEAD", at, nil)
		if status != http.StatusOK || body != "" || h.Get("Content-Length") != fmt.Sprint(size) {
			t.Errorf("HEAD: %d %q %v", status, body, h)
		}
		if status, _, _ := c.do("GET", at, nil, "If-None-Match", `"`+d.String()+`"`); status != http.StatusNotModified {
			t.Errorf("what the client has: %d", status)
		}
		if status, _, _ := c.do("GET", "/v2/other/blobs/"+d.String(), nil); status != http.StatusNotFound {
			t.Errorf("a name that does not have it: %d", status)
		}
	}
	if status, _, _ := c.do("GET", "/v2/dr/blobs/"+digest.FromString("nobody's").String(), nil); status != http.StatusNotFound {
		t.Errorf("a blob that is not there: %d", status)
	}
	lost := c.putBlob("dr", random(5000))
	hex := lost.Encoded()
	if err := os.Remove(filepath.Join(data, "store/docker/registry/v2/blobs/sha256", hex[:2], hex, "data")); err != nil {
		t.Fatal(err)
	}
	if status, _, _ := c.do("GET", "/v2/dr/blobs/"+lost.String(), nil); status != http.StatusNotFound {
		t.Errorf("a blob whose file is gone: %d", status)
	}
}
