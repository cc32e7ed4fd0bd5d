package registry_test

import (
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"lifeboat/internal/registry/registrytest"
)

// TestTagsByPrefix: a listing is limited to a prefix where that is asked for, page
// by page, and whole where it is not.
func TestTagsByPrefix(t *testing.T) {
	t.Parallel()
	c := newClient(t, registrytest.Start(t, plain))
	blob := random(100)
	c.putBlob("dr", []byte("{}"))
	c.putBlob("dr", blob)
	all := []string{"host.1", "m.1", "s.blog.1", "s.shop.1", "s.shop.2", "s.shop.3", "s.shopping.1", "x"}
	for _, tag := range all {
		if status, body := c.putManifest("dr", tag, manifest(tag, blob)); status != http.StatusCreated {
			t.Fatalf("%s: %d %s", tag, status, body)
		}
	}
	for query, want := range map[string][]string{
		"":                                      all,
		"?n=1000":                               all,
		"?n=1000&prefix=s.shop.":                {"s.shop.1", "s.shop.2", "s.shop.3"},
		"?prefix=s.":                            {"s.blog.1", "s.shop.1", "s.shop.2", "s.shop.3", "s.shopping.1"},
		"?n=2&prefix=s.shop.":                   {"s.shop.1", "s.shop.2"},
		"?n=2&prefix=s.shop.&last=s.shop.2":     {"s.shop.3"},
		"?n=9&prefix=" + url.QueryEscape("../"): {},
		"?n=9&prefix=nothing":                   {},
		"?n=3&last=s.blog.1":                    {"s.shop.1", "s.shop.2", "s.shop.3"},
	} {
		status, body, h := c.do("GET", "/v2/dr/tags/list"+query, nil)
		quoted := make([]string, len(want))
		for i, tag := range want {
			quoted[i] = fmt.Sprintf("%q", tag)
		}
		if status != http.StatusOK || !strings.Contains(body, `"tags":[`+strings.Join(quoted, ",")+"]") {
			t.Errorf("%s: %d %s", query, status, body)
		}
		if more := h.Get("Link") != ""; more != slices.Contains([]string{"?n=2&prefix=s.shop.", "?n=3&last=s.blog.1"}, query) {
			t.Errorf("%s: link %q", query, h.Get("Link"))
		}
	}
	if status, _, _ := c.do("GET", "/v2/other/tags/list?prefix=s.", nil); status != http.StatusNotFound {
		t.Errorf("a name that is not there: %d", status)
	}
}

// TestHalfATag: a tag that was on its way when the process died is not listed,
// and can be put again.
func TestHalfATag(t *testing.T) {
	t.Parallel()
	data := filepath.Join(t.TempDir(), "data")
	p := startProcess(t, data)
	c := &client{t: t, base: "http://" + p.addr}
	blob := random(100)
	c.putBlob("dr", []byte("{}"))
	c.putBlob("dr", blob)
	for _, tag := range []string{"host.1", "host.2"} {
		if status, body := c.putManifest("dr", tag, manifest(tag, blob)); status != http.StatusCreated {
			t.Fatalf("%d %s", status, body)
		}
	}
	p.kill()
	if err := os.Remove(filepath.Join(data, "store/docker/registry/v2/repositories/dr/_manifests/tags/host.2/current/link")); err != nil {
		t.Fatal(err)
	}
	p = startProcess(t, data)
	c = &client{t: t, base: "http://" + p.addr}
	list := func() string {
		t.Helper()
		status, body, _ := c.do("GET", "/v2/dr/tags/list", nil)
		if status != http.StatusOK {
			t.Fatalf("%d %s", status, body)
		}
		return body
	}
	if got := list(); !strings.Contains(got, `"host.1"`) || strings.Contains(got, `"host.2"`) {
		t.Errorf("listed: %s", got)
	}
	if status, body := c.putManifest("dr", "host.2", manifest("host.2", blob)); status != http.StatusCreated {
		t.Fatalf("%d %s", status, body)
	}
	if got := list(); !strings.Contains(got, `"host.2"`) {
		t.Errorf("listed: %s", got)
	}
}
