package ocistore_test

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"lifeboat/internal/store"
	"lifeboat/internal/store/ocistore"
	"lifeboat/internal/store/storetest"
)

// drip writes a byte now and then, for ever: often enough that no connection
// stands still, and far too slowly to get anywhere.
func drip(w http.ResponseWriter, first string) {
	_, err := fmt.Fprint(w, first)
	for err == nil {
		w.(http.Flusher).Flush()
		time.Sleep(5 * time.Millisecond)
		_, err = w.Write([]byte(" "))
	}
}

// TestSlowDrip: an answer that drips is given up like one that stalls, in each
// place where there is one.
func TestSlowDrip(t *testing.T) {
	t.Parallel()
	blob := storetest.Random(100_000)
	d := digest.FromBytes(blob)
	for name, c := range map[string]struct {
		answer http.HandlerFunc
		call   func(s store.Store) error
	}{
		"blob": {
			func(w http.ResponseWriter, r *http.Request) { w.Header().Set("Content-Length", "100000"); drip(w, "") },
			func(s store.Store) error { _, err := get(t.Context(), s, d, 100_000, 0, -1); return err },
		},
		"skipped part of a blob": {
			func(w http.ResponseWriter, r *http.Request) { w.Header().Set("Content-Length", "100000"); drip(w, "") },
			func(s store.Store) error { _, err := get(t.Context(), s, d, 100_000, 50_000, 10); return err },
		},
		"manifest": {
			func(w http.ResponseWriter, r *http.Request) { drip(w, "{") },
			func(s store.Store) error { _, err := s.GetManifest(t.Context(), "s.shop.1"); return err },
		},
		"tags": {
			func(w http.ResponseWriter, r *http.Request) { drip(w, `{"tags":["a"`) },
			func(s store.Store) error { _, err := s.Tags(t.Context(), ""); return err },
		},
		"refusal": {
			func(w http.ResponseWriter, r *http.Request) {
				w.WriteHeader(http.StatusServiceUnavailable)
				drip(w, "{")
			},
			func(s store.Store) error { _, err := s.GetManifest(t.Context(), "s.shop.1"); return err },
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := once()
			o.StallTimeout = 100 * time.Millisecond
			err := c.call(open(t, serve(t, c.answer), o))
			if !errors.Is(err, store.ErrUnreachable) {
				t.Errorf("%v", err)
			}
		})
	}
}

// TestHeadersThatDrip: neither do headers that never come to their end hold a
// command for ever.
func TestHeadersThatDrip(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			nc, err := l.Accept()
			if err != nil {
				return // closed
			}
			go func() {
				defer func() { _ = nc.Close() }()
				_, err := nc.Write([]byte("HTTP/1.1 200 OK\r\nX: "))
				for err == nil {
					time.Sleep(5 * time.Millisecond)
					_, err = nc.Write([]byte("x"))
				}
			}()
		}
	}()
	o := once()
	o.StallTimeout = 100 * time.Millisecond
	_, err = open(t, "oci+http://"+l.Addr().String()+"/dr", o).GetManifest(t.Context(), "s.shop.1")
	if !errors.Is(err, store.ErrUnreachable) {
		t.Errorf("%v", err)
	}
}

// TestTagPagesThatLeadNowhere: a listing ends, whatever the registry says of
// further pages.
func TestTagPagesThatLeadNowhere(t *testing.T) {
	t.Parallel()
	link := func(w http.ResponseWriter, last any) {
		w.Header().Set("Link", fmt.Sprintf(`</v2/dr/tags/list?n=1000&last=%v>; rel="next"`, last))
	}
	for name, c := range map[string]struct {
		answer func(n int64, w http.ResponseWriter)
		want   error
		most   int64 // pages
	}{
		"two in a circle": {func(n int64, w http.ResponseWriter) { link(w, n%2); fmt.Fprintf(w, `{"tags":["t%d"]}`, n) }, store.ErrRefused, 5},
		"empty ones":      {func(n int64, w http.ResponseWriter) { link(w, n); fmt.Fprint(w, `{"tags":[]}`) }, store.ErrRefused, 20},
		"no lists":        {func(n int64, w http.ResponseWriter) { link(w, n); fmt.Fprint(w, `{"tags":null}`) }, store.ErrRefused, 20},
		"more and more": {func(n int64, w http.ResponseWriter) {
			link(w, n)
			fmt.Fprint(w, `{"tags":["x"`+strings.Repeat(`,"s.shop.1"`, 300_000)+`]}`)
		}, store.ErrTooLarge, 5},
		"deep JSON":   {func(n int64, w http.ResponseWriter) { fmt.Fprint(w, strings.Repeat("[", 1<<20)) }, store.ErrRefused, 1},
		"odd members": {func(n int64, w http.ResponseWriter) { fmt.Fprint(w, `{"tags":[{"a":1}]}`) }, store.ErrRefused, 1},
		"cut off":     {func(n int64, w http.ResponseWriter) { fmt.Fprint(w, `{"tags":["a","b"`) }, store.ErrUnreachable, 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var pages atomic.Int64
			url := serve(t, func(w http.ResponseWriter, r *http.Request) { c.answer(pages.Add(1), w) })
			tags, err := open(t, url, once()).Tags(t.Context(), "")
			if !errors.Is(err, c.want) || tags != nil || pages.Load() > c.most {
				t.Errorf("%d tags after %d pages, %v", len(tags), pages.Load(), err)
			}
		})
	}
	t.Run("some empty", func(t *testing.T) { // a registry may filter
		t.Parallel()
		var pages atomic.Int64
		url := serve(t, func(w http.ResponseWriter, r *http.Request) {
			n := pages.Add(1)
			if n < 30 {
				link(w, n)
			}
			if n%3 == 0 {
				fmt.Fprintf(w, `{"name":"dr","tags":["t%d"]}`, n)
			} else {
				fmt.Fprint(w, `{"tags":null,"name":"dr"}`)
			}
		})
		tags, err := open(t, url, once()).Tags(t.Context(), "")
		if err != nil || len(tags) != 10 {
			t.Errorf("%q, %v", tags, err)
		}
	})
}

// TestGzipBomb: nothing is unpacked that was not asked for in that form.
func TestGzipBomb(t *testing.T) {
	t.Parallel()
	var bomb bytes.Buffer
	z := gzip.NewWriter(&bomb)
	for range 64 {
		if _, err := z.Write(make([]byte, 1<<20)); err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	var asked atomic.Value
	asked.Store("")
	s := open(t, serve(t, func(w http.ResponseWriter, r *http.Request) {
		asked.Store(r.Header.Get("Accept-Encoding"))
		w.Header().Set("Content-Encoding", "gzip")
		_, _ = w.Write(bomb.Bytes())
	}), once())
	m, err := s.GetManifest(t.Context(), "s.shop.1")
	if err != nil || !bytes.Equal(m.Body, bomb.Bytes()) {
		t.Errorf("a manifest of %d bytes, %v; want the %d that were sent", len(m.Body), err, bomb.Len())
	}
	if _, err := s.Tags(t.Context(), ""); !errors.Is(err, store.ErrRefused) {
		t.Errorf("tags: %v", err)
	}
	if a := asked.Load(); a != "" {
		t.Errorf("asked for encoding %q", a)
	}
}

// TestRedirectToThisHost: a registry behind TLS cannot make its clients speak to
// what listens on their own loopback addresses, nor in the clear to anybody.
func TestRedirectToThisHost(t *testing.T) {
	t.Parallel()
	var hit atomic.Bool
	local := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { hit.Store(true) }))
	t.Cleanup(local.Close)
	reg := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, local.URL+"/containers/json", http.StatusTemporaryRedirect)
	}))
	t.Cleanup(reg.Close)
	sum := sha256.Sum256(reg.Certificate().Raw)
	o := ocistore.Options{Attempts: 1, Username: "lbtest", Password: secret, Fingerprint: "sha256:" + hex.EncodeToString(sum[:])}
	s := open(t, "oci://"+strings.TrimPrefix(reg.URL, "https://")+"/dr", o)
	blob := storetest.Random(100)
	d := digest.FromBytes(blob)
	if _, err := get(t.Context(), s, d, 100, 0, -1); !errors.Is(err, store.ErrRefused) {
		t.Errorf("blob: %v", err)
	}
	if _, err := s.GetManifest(t.Context(), "key.1"); !errors.Is(err, store.ErrRefused) {
		t.Errorf("manifest: %v", err)
	}
	if _, err := s.PutBlob(t.Context(), d, 100, storetest.Bytes(blob)); !errors.Is(err, store.ErrRefused) {
		t.Errorf("upload: %v", err)
	}
	if hit.Load() {
		t.Error("the other listener was asked")
	}
}

// TestBlobOfAnotherSize: a registry that announces another size than the blob
// has is refused before anything is read.
func TestBlobOfAnotherSize(t *testing.T) {
	t.Parallel()
	for _, n := range []int{999, 1001, 1 << 30} {
		s := open(t, serve(t, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", fmt.Sprint(n))
			_, _ = w.Write(make([]byte, 999))
		}), once())
		if _, err := s.GetBlob(t.Context(), digest.FromString("x"), 1000, 0, -1); !errors.Is(err, store.ErrDigestMismatch) {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
	// Without a size the bytes that were asked for are taken, and not one more.
	s := open(t, serve(t, func(w http.ResponseWriter, r *http.Request) {
		for b := make([]byte, 64<<10); ; {
			if _, err := w.Write(b); err != nil {
				return
			}
		}
	}), once())
	if b, err := get(t.Context(), s, digest.FromString("x"), 1000, 0, -1); err != nil || len(b) != 1000 {
		t.Errorf("%d bytes, %v", len(b), err)
	}
}
