package ocistore_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"lifeboat/internal/registry/registrytest"
	"lifeboat/internal/store"
	"lifeboat/internal/store/ocistore"
	"lifeboat/internal/store/storetest"
)

// serve answers requests of one test; the URL is of name dr.
func serve(t *testing.T, h http.HandlerFunc) (url string) {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return "oci+http://" + strings.TrimPrefix(s.URL, "http://") + "/dr"
}

func once() ocistore.Options {
	o := registryOptions()
	o.Attempts = 1
	return o
}

const secret = "s3cret-password"

func get(ctx context.Context, s store.Store, d digest.Digest, size, off, length int64) ([]byte, error) {
	r, err := s.GetBlob(ctx, d, size, off, length)
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(r)
	return b, errors.Join(err, r.Close())
}

// TestRedirectDropsCredentials: an object store that a registry redirects to
// sees no Authorization, and its signature is in no error.
func TestRedirectDropsCredentials(t *testing.T) {
	t.Parallel()
	blob := storetest.Random(1000)
	d := digest.FromBytes(blob)
	var leaked atomic.Value
	status := atomic.Int32{}
	status.Store(http.StatusOK)
	objects := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if a := r.Header.Get("Authorization"); a != "" {
			leaked.Store(a)
		}
		if s := int(status.Load()); s != http.StatusOK {
			w.Header().Set("WWW-Authenticate", `Basic realm="give me"`)
			w.WriteHeader(s)
			return
		}
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(blob))
	}))
	t.Cleanup(objects.Close)
	url := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if _, _, ok := r.BasicAuth(); !ok {
			w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		http.Redirect(w, r, objects.URL+"/bucket/key?X-Signature="+secret, http.StatusTemporaryRedirect)
	})
	o := once()
	o.Password = secret
	s := open(t, url, o)
	for _, span := range [][2]int64{{0, -1}, {10, 20}} {
		got, err := get(t.Context(), s, d, 1000, span[0], span[1])
		if err != nil {
			t.Fatal(err)
		}
		if span[1] > 0 && !bytes.Equal(got, blob[10:30]) {
			t.Error("wrong range")
		}
	}
	for _, st := range []int{401, 403, 500} {
		status.Store(int32(st))
		_, err := get(t.Context(), s, d, 1000, 0, -1)
		if err == nil || strings.Contains(err.Error(), secret) {
			t.Errorf("status %d: %v", st, err)
		}
	}
	if a := leaked.Load(); a != nil {
		t.Errorf("credentials went to the object store: %v", a)
	}
	objects.Close()
	_, err := get(t.Context(), s, d, 1000, 0, -1)
	if !errors.Is(err, store.ErrUnreachable) || strings.Contains(err.Error(), secret) {
		t.Errorf("object store down: %v", err)
	}
}

// TestUploadElsewhere: the address to upload to must be the registry's own.
func TestUploadElsewhere(t *testing.T) {
	t.Parallel()
	var hit atomic.Bool
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { hit.Store(true) }))
	t.Cleanup(other.Close)
	for _, location := range []string{other.URL + "/upload?x=1", "https://example.org/x", "", "://"} {
		url := serve(t, func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodHead {
				w.WriteHeader(http.StatusNotFound)
				return
			}
			if location != "" {
				w.Header().Set("Location", location)
			}
			w.WriteHeader(http.StatusAccepted)
		})
		_, err := open(t, url, once()).PutBlob(t.Context(), digest.FromString("x"), 1, storetest.Bytes([]byte("x")))
		if !errors.Is(err, store.ErrRefused) {
			t.Errorf("location %q: %v", location, err)
		}
	}
	if hit.Load() {
		t.Error("the other host was asked")
	}
}

// TestLyingRegistry: what does not fit is an error, bounded, and never panics.
func TestLyingRegistry(t *testing.T) {
	t.Parallel()
	blob := storetest.Random(1000)
	d := digest.FromBytes(blob)
	huge := func(w http.ResponseWriter) {
		for b := make([]byte, 1<<20); ; {
			if _, err := w.Write(b); err != nil {
				return
			}
		}
	}
	for name, c := range map[string]struct {
		answer http.HandlerFunc
		call   func(s store.Store) error
		want   error
	}{
		"range ignored": {
			func(w http.ResponseWriter, r *http.Request) { _, _ = w.Write(blob) },
			func(s store.Store) error {
				b, err := get(t.Context(), s, d, 1000, 100, 50)
				if err == nil && !bytes.Equal(b, blob[100:150]) {
					return errors.New("other bytes")
				}
				return err
			}, nil,
		},
		"other range": {
			func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Range", "bytes 0-49/1000")
				w.WriteHeader(http.StatusPartialContent)
				_, _ = w.Write(blob[:50])
			},
			func(s store.Store) error { _, err := get(t.Context(), s, d, 1000, 100, 50); return err }, store.ErrDigestMismatch,
		},
		"junk range": {
			func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Range", "bytes x")
				w.WriteHeader(http.StatusPartialContent)
			},
			func(s store.Store) error { _, err := get(t.Context(), s, d, 1000, 100, 50); return err }, store.ErrRefused,
		},
		"cut off": {
			func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Length", "1000")
				_, _ = w.Write(blob[:500])
			},
			func(s store.Store) error { _, err := get(t.Context(), s, d, 1000, 0, -1); return err }, store.ErrUnreachable,
		},
		"endless manifest": {
			func(w http.ResponseWriter, r *http.Request) { huge(w) },
			func(s store.Store) error { _, err := s.GetManifest(t.Context(), "s.shop.1"); return err }, store.ErrTooLarge,
		},
		"large manifest announced": {
			func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Length", "5000000")
				w.WriteHeader(http.StatusOK)
			},
			func(s store.Store) error { _, err := s.GetManifest(t.Context(), "s.shop.1"); return err }, store.ErrTooLarge,
		},
		"endless error": {
			func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusTeapot); huge(w) },
			func(s store.Store) error { _, err := s.GetManifest(t.Context(), "s.shop.1"); return err }, store.ErrRefused,
		},
		"endless tags": {
			func(w http.ResponseWriter, r *http.Request) {
				tag := []byte(`"` + strings.Repeat("x", 100) + `",`)
				for _, err := fmt.Fprint(w, `{"tags":[`); err == nil; {
					_, err = w.Write(tag)
				}
			},
			func(s store.Store) error { _, err := s.Tags(t.Context(), ""); return err }, store.ErrTooLarge,
		},
		"tags in a circle": {
			func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Link", `</v2/dr/tags/list?n=1000>; rel="next"`)
				fmt.Fprint(w, `{"tags":["a"]}`)
			},
			func(s store.Store) error { _, err := s.Tags(t.Context(), ""); return err }, store.ErrRefused,
		},
		"tags elsewhere": {
			func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Link", `<http://example.org/v2/dr/tags/list>; rel="next"`)
				fmt.Fprint(w, `{"tags":["a"]}`)
			},
			func(s store.Store) error { _, err := s.Tags(t.Context(), ""); return err }, store.ErrRefused,
		},
		"tags are no JSON": {
			func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "<html>") },
			func(s store.Store) error { _, err := s.Tags(t.Context(), ""); return err }, store.ErrRefused,
		},
		"odd tags": {
			func(w http.ResponseWriter, r *http.Request) {
				fmt.Fprint(w, `{"tags":["../x","a/b","","ok","ok","`+strings.Repeat("x", 200)+`"]}`)
			},
			func(s store.Store) error {
				tags, err := s.Tags(t.Context(), "")
				if err == nil && fmt.Sprint(tags) != "[ok]" {
					return fmt.Errorf("%q", tags)
				}
				return err
			}, nil,
		},
		"manifest with another digest": {
			func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "{}") },
			func(s store.Store) error { _, err := s.GetManifest(t.Context(), d.String()); return err }, store.ErrDigestMismatch,
		},
		"manifest with another digest than its header": {
			func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Docker-Content-Digest", d.String())
				fmt.Fprint(w, "{}")
			},
			func(s store.Store) error { _, err := s.GetManifest(t.Context(), "s.shop.1"); return err }, store.ErrDigestMismatch,
		},
		"digest left out of HEAD": {
			func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "{}") },
			func(s store.Store) error {
				got, err := s.ResolveTag(t.Context(), "s.shop.1")
				if err == nil && got != digest.FromString("{}") {
					return fmt.Errorf("resolved to %s", got)
				}
				return err
			}, nil,
		},
		"escape sequences": {
			func(w http.ResponseWriter, r *http.Request) {
				w.WriteHeader(http.StatusBadRequest)
				_ = json.NewEncoder(w).Encode(map[string]any{"errors": []any{map[string]string{"code": "X", "message": "\x1b[31mred\nline" + strings.Repeat("y", 5000)}}})
			},
			func(s store.Store) error {
				_, err := s.GetManifest(t.Context(), "s.shop.1")
				if err != nil && (strings.ContainsAny(err.Error(), "\x1b\n") || len(err.Error()) > 1000) {
					return fmt.Errorf("not cleaned: %q", err)
				}
				return err
			}, store.ErrRefused,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			err := c.call(open(t, serve(t, c.answer), once()))
			if c.want == nil && err != nil || !errors.Is(err, c.want) {
				t.Errorf("%v, want %v", err, c.want)
			}
			if err != nil && !strings.Contains(err.Error(), "registry 127.0.0.1:") {
				t.Errorf("no host in the error: %v", err)
			}
		})
	}
}

func TestNoSpaceInWords(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		status int
		body   string
		want   error
	}{
		{507, "", store.ErrNoSpace},
		{500, `{"errors":[{"code":"UNKNOWN","message":"unknown error","detail":"write /x: no space left on device"}]}`, store.ErrNoSpace},
		{503, `<Error><Code>QuotaExceeded</Code></Error>`, store.ErrNoSpace},
		{403, `{"errors":[{"code":"DENIED","message":"adding 3.0 MiB will exceed the configured upper limit of 2.0 MiB"}]}`, store.ErrNoSpace},
		{413, "Disk quota exceeded", store.ErrTooLarge},
		{500, "oops", store.ErrUnreachable},
		{429, "", store.ErrUnreachable},
		{403, "", store.ErrForbidden},
	} {
		url := serve(t, func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodHead {
				w.WriteHeader(http.StatusNotFound)
				return
			}
			w.WriteHeader(c.status)
			fmt.Fprint(w, c.body)
		})
		_, err := open(t, url, once()).PutBlob(t.Context(), digest.FromString("x"), 1, storetest.Bytes([]byte("x")))
		if !errors.Is(err, c.want) {
			t.Errorf("%d %s: %v", c.status, c.body, err)
		}
	}
}

// TestStall: a registry that neither takes nor sends is given up after the
// stall timeout, in each phase of a transfer.
func TestStall(t *testing.T) {
	t.Parallel()
	block := make(chan struct{})
	t.Cleanup(func() { close(block) })
	blob := storetest.Random(16 << 20)
	d := digest.FromBytes(blob)
	for name, answer := range map[string]http.HandlerFunc{
		"answers nothing": func(w http.ResponseWriter, r *http.Request) { <-block },
		"takes nothing": func(w http.ResponseWriter, r *http.Request) {
			switch r.Method {
			case http.MethodHead:
				w.WriteHeader(http.StatusNotFound)
			case http.MethodPost:
				w.Header().Set("Location", "/v2/dr/blobs/uploads/x?_state=y")
				w.WriteHeader(http.StatusAccepted)
			default:
				_, _ = io.CopyN(io.Discard, r.Body, 1000)
				<-block
			}
		},
		"sends half": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", fmt.Sprint(len(blob)))
			if r.Method == http.MethodGet {
				_, _ = w.Write(blob[:1000])
				w.(http.Flusher).Flush()
				<-block
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			// Not serve: its Close waits for handlers, which wait for block.
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			srv := &http.Server{Handler: answer}
			go func() { _ = srv.Serve(l) }() // ends with Close
			t.Cleanup(func() { _ = srv.Close() })
			o := once()
			o.StallTimeout = 100 * time.Millisecond
			s := open(t, "oci+http://"+l.Addr().String()+"/dr", o)
			if name == "sends half" {
				_, err = get(t.Context(), s, d, int64(len(blob)), 0, -1)
			} else {
				_, err = s.PutBlob(t.Context(), d, int64(len(blob)), storetest.Bytes(blob))
			}
			if !errors.Is(err, store.ErrUnreachable) || !strings.Contains(err.Error(), "no byte moved for 100ms") {
				t.Errorf("%v", err)
			}
		})
	}
}

// flaky cuts the connection under chosen requests of a proxy to a registry.
type flaky struct {
	target string
	mu     sync.Mutex
	plan   func(n int, r *http.Request) string // "", "before", "after", "half"
	n      int
}

func (f *flaky) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	f.n++
	what := f.plan(f.n, r)
	f.mu.Unlock()
	if what == "before" {
		panic(http.ErrAbortHandler)
	}
	out, err := http.NewRequestWithContext(r.Context(), r.Method, f.target+r.URL.RequestURI(), r.Body)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	out.Header, out.ContentLength, out.Host = r.Header.Clone(), r.ContentLength, r.Host
	resp, err := http.DefaultTransport.RoundTrip(out)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	defer func() { _ = resp.Body.Close() }()
	if what == "after" {
		panic(http.ErrAbortHandler)
	}
	for k, v := range resp.Header {
		w.Header()[k] = v
	}
	w.WriteHeader(resp.StatusCode)
	if what == "half" {
		_, _ = io.CopyN(w, resp.Body, resp.ContentLength/2)
		panic(http.ErrAbortHandler)
	}
	_, _ = io.Copy(w, resp.Body)
}

// through opens a store whose requests pass a flaky proxy.
func through(t *testing.T, target string, o ocistore.Options, plan func(n int, r *http.Request) string) store.Store {
	t.Helper()
	return open(t, serve(t, (&flaky{target: target, plan: plan}).ServeHTTP), o)
}

// TestLostConnections: whatever request is lost, before or after it had its
// effect, the calls succeed in the end and the tag is written once.
func TestLostConnections(t *testing.T) {
	t.Parallel()
	targets := map[string]string{
		"own":    "http://" + registrytest.Start(t, plain).Addr,
		"debian": "http://" + startDebianRegistry(t),
	}
	for registryName, target := range targets {
		for _, what := range []string{"before", "after", "half"} {
			for n := 1; n <= 12; n++ {
				o := registryOptions()
				s := through(t, target, o, func(i int, r *http.Request) string {
					if i == n && (what != "half" || r.Method == http.MethodGet) {
						return what
					}
					return ""
				})
				blob := storetest.Random(100_000)
				desc := storetest.PutBytes(t, s, "application/vnd.lifeboat.pack.v1", blob)
				body := storetest.ManifestOf(t, s, fmt.Sprint(what, n), desc)
				tag := "m." + digest.FromBytes(body).Encoded()[:32]
				if _, err := s.PutManifest(t.Context(), tag, ocispec.MediaTypeImageManifest, body); err != nil {
					t.Fatalf("%s, request %d lost %s: %v", registryName, n, what, err)
				}
				got, err := get(t.Context(), s, desc.Digest, desc.Size, 10, 90_000)
				if err != nil || !bytes.Equal(got, blob[10:90_010]) {
					t.Fatalf("%s, request %d lost %s: %v", registryName, n, what, err)
				}
				if m, err := s.GetManifest(t.Context(), tag); err != nil || !bytes.Equal(m.Body, body) {
					t.Fatalf("%s, request %d lost %s: %v", registryName, n, what, err)
				}
			}
		}
	}
}

// TestUnknownOutcome: a PUT whose answer is lost is settled by reading; where
// that is lost too, the error says that the outcome is unknown.
func TestUnknownOutcome(t *testing.T) {
	t.Parallel()
	target := "http://" + startDebianRegistry(t)
	direct := open(t, strings.Replace(target, "http", "oci+http", 1)+"/dr", once())
	body := storetest.ManifestOf(t, direct, "mine")
	rival := storetest.ManifestOf(t, direct, "rival")
	put := func(s store.Store, tag string) error {
		_, err := s.PutManifest(t.Context(), tag, ocispec.MediaTypeImageManifest, body)
		return err
	}
	manifestCalls := func(f func(i int, r *http.Request) string) func(int, *http.Request) string {
		i := 0
		return func(_ int, r *http.Request) string {
			if !strings.Contains(r.URL.Path, "/manifests/") {
				return ""
			}
			i++
			return f(i, r)
		}
	}
	isPut := func(r *http.Request) bool { return r.Method == http.MethodPut }

	s := through(t, target, once(), manifestCalls(func(_ int, r *http.Request) string {
		if isPut(r) {
			return "after"
		}
		return ""
	}))
	if err := put(s, "e.shop.1"); err != nil {
		t.Errorf("written, answer lost, read again: %v", err)
	}
	s = through(t, target, once(), manifestCalls(func(_ int, r *http.Request) string {
		if isPut(r) {
			return "before"
		}
		return ""
	}))
	if err := put(s, "e.shop.2"); !errors.Is(err, store.ErrUnknownOutcome) {
		t.Errorf("not written, answer lost, not there: %v", err)
	}
	s = through(t, target, once(), manifestCalls(func(i int, r *http.Request) string {
		if i > 1 {
			return "after"
		}
		return ""
	}))
	if err := put(s, "e.shop.3"); !errors.Is(err, store.ErrUnknownOutcome) {
		t.Errorf("written, everything after is lost: %v", err)
	}
	// A rival comes between the look and the PUT.
	s = through(t, target, once(), manifestCalls(func(_ int, r *http.Request) string {
		if isPut(r) {
			if _, err := direct.PutManifest(t.Context(), "e.shop.4", ocispec.MediaTypeImageManifest, rival); err != nil {
				t.Error(err)
			}
			return "before"
		}
		return ""
	}))
	if err := put(s, "e.shop.4"); !errors.Is(err, store.ErrTagTaken) {
		t.Errorf("a rival was there, answer lost: %v", err)
	}
	// Cancelled while the PUT is under way: the caller must know that it may
	// have been written.
	ctx, cancel := context.WithCancel(t.Context())
	s = through(t, target, once(), manifestCalls(func(_ int, r *http.Request) string {
		if isPut(r) {
			cancel()
			return "after"
		}
		return ""
	}))
	_, err := s.PutManifest(ctx, "e.shop.5", ocispec.MediaTypeImageManifest, body)
	if !errors.Is(err, store.ErrUnknownOutcome) || !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	// Nothing can be reached: nothing was written.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
	s = open(t, "oci+http://"+l.Addr().String()+"/dr", once())
	if err := put(s, "e.shop.6"); !errors.Is(err, store.ErrUnreachable) || errors.Is(err, store.ErrUnknownOutcome) {
		t.Errorf("refused connection: %v", err)
	}
}

func TestCertificates(t *testing.T) {
	t.Parallel()
	r := registrytest.Start(t)
	ask := func(o ocistore.Options) error {
		o.Username, o.Password, o.Attempts = "lbtest", secret, 1
		_, err := open(t, r.URL("dr"), o).Capabilities(t.Context())
		return err
	}
	if err := ask(ocistore.Options{Fingerprint: r.Fingerprint}); err != nil {
		t.Errorf("pinned: %v", err)
	}
	if err := ask(ocistore.Options{Fingerprint: strings.ToUpper(r.Fingerprint)}); err != nil {
		t.Errorf("pinned, in capitals: %v", err)
	}
	if err := ask(ocistore.Options{CAFile: filepath.Join(r.Data, "tls", "cert.pem")}); err != nil {
		t.Errorf("by authority: %v", err)
	}
	err := ask(ocistore.Options{})
	if !errors.Is(err, store.ErrUntrusted) || !strings.Contains(err.Error(), "fingerprint") {
		t.Errorf("unknown authority: %v", err)
	}
	err = ask(ocistore.Options{Fingerprint: "sha256:" + strings.Repeat("0", 64)})
	if !errors.Is(err, store.ErrUntrusted) || !strings.Contains(err.Error(), r.Fingerprint) {
		t.Errorf("another fingerprint: %v", err)
	}
	_, err = open(t, strings.Replace(r.URL("dr"), "oci:", "oci+http:", 1), once()).Capabilities(t.Context())
	if err == nil {
		t.Error("plain HTTP to a TLS port: no error")
	}
	plainURL := serve(t, func(http.ResponseWriter, *http.Request) {})
	_, err = open(t, strings.Replace(plainURL, "oci+http:", "oci:", 1), once()).Capabilities(t.Context())
	if !errors.Is(err, store.ErrRefused) || !strings.Contains(err.Error(), "plain HTTP") {
		t.Errorf("TLS to a plain HTTP port: %v", err)
	}
}

// TestDockerCredentials: DOCKER_CONFIG is honoured. Not parallel, it sets the
// environment.
func TestDockerCredentials(t *testing.T) {
	var seen atomic.Value
	url := serve(t, func(w http.ResponseWriter, r *http.Request) {
		u, p, ok := r.BasicAuth()
		if !ok {
			w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		seen.Store(u + ":" + p)
	})
	host := strings.TrimSuffix(strings.TrimPrefix(url, "oci+http://"), "/dr")
	dir := t.TempDir()
	t.Setenv("DOCKER_CONFIG", dir)
	_, err := open(t, url, ocistore.Options{Attempts: 1}).Capabilities(t.Context())
	if !errors.Is(err, store.ErrUnauthorized) || !strings.Contains(err.Error(), "docker login") {
		t.Errorf("no configuration: %v", err)
	}
	config := fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, host, base64.StdEncoding.EncodeToString([]byte("alice:"+secret)))
	if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := open(t, url, ocistore.Options{Attempts: 1}).Capabilities(t.Context()); err != nil || seen.Load() != "alice:"+secret {
		t.Errorf("with configuration: %v, %v", seen.Load(), err)
	}
	if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := open(t, url, ocistore.Options{Attempts: 1}).Capabilities(t.Context()); err == nil {
		t.Error("junk configuration: no error")
	}
}

// TestBearerTokens: a token that runs out in the middle of an upload is renewed,
// and the body sent again from its beginning.
func TestBearerTokens(t *testing.T) {
	t.Parallel()
	blob := storetest.Random(300_000)
	d := digest.FromBytes(blob)
	var tokens atomic.Int32
	var stored atomic.Value
	var host string
	handler := func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/token" {
			if u, p, _ := r.BasicAuth(); u != "lbtest" || p != "lbtest" {
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			fmt.Fprintf(w, `{"token":"t%d"}`, tokens.Add(1))
			return
		}
		want := "Bearer t1"
		if r.Method == http.MethodPut {
			want = "Bearer t2" // the first one has run out
		}
		if r.Header.Get("Authorization") != want {
			_, _ = io.Copy(io.Discard, r.Body)
			w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="http://%s/token",service="x",scope="repository:dr:pull,push"`, host))
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		switch r.Method {
		case http.MethodHead:
			w.WriteHeader(http.StatusNotFound)
		case http.MethodPost:
			w.Header().Set("Location", "/v2/dr/blobs/uploads/x")
			w.WriteHeader(http.StatusAccepted)
		case http.MethodPut:
			b, _ := io.ReadAll(r.Body)
			stored.Store(b)
			w.WriteHeader(http.StatusCreated)
		}
	}
	url := serve(t, handler)
	host = strings.TrimSuffix(strings.TrimPrefix(url, "oci+http://"), "/dr")
	if _, err := open(t, url, once()).PutBlob(t.Context(), d, int64(len(blob)), storetest.Bytes(blob)); err != nil {
		t.Fatal(err)
	}
	if got, _ := stored.Load().([]byte); !bytes.Equal(got, blob) {
		t.Errorf("stored %d bytes", len(got))
	}
}

func TestMeter(t *testing.T) {
	t.Parallel()
	r := registrytest.Start(t)
	var m store.Meter
	o := r.Options()
	o.Meter = &m
	s := open(t, r.URL("dr"), o)
	blob := storetest.Random(1 << 20)
	desc := storetest.PutBytes(t, s, "", blob)
	if n := m.Sent(); n < 1<<20 || n > 1<<20+64<<10 {
		t.Errorf("sent %d bytes for a blob of %d", n, 1<<20)
	}
	before := m.Received()
	if _, err := get(t.Context(), s, desc.Digest, desc.Size, 1000, 500_000); err != nil {
		t.Fatal(err)
	}
	if n := m.Received() - before; n < 500_000 || n > 500_000+64<<10 {
		t.Errorf("received %d bytes for 500000", n)
	}
	before = m.Sent()
	storetest.PutBytes(t, s, "", blob)
	if n := m.Sent() - before; n > 4<<10 {
		t.Errorf("sent %d bytes for a blob that was there", n)
	}
}

// TestTagsByPrefix: the prefix is asked for where the registry takes it, nowhere
// else; what does not fit is left out either way.
func TestTagsByPrefix(t *testing.T) {
	t.Parallel()
	for header, want := range map[string]string{
		"":                              "n=1000",
		"1; immutable-tags":             "n=1000",
		"1; immutable-tags; tag-prefix": "n=1000&prefix=s.a%26b.",
	} {
		var asked atomic.Value
		addr := serve(t, func(w http.ResponseWriter, r *http.Request) {
			if header != "" {
				w.Header().Set(ocistore.Header, header)
			}
			if strings.HasSuffix(r.URL.Path, "/tags/list") {
				asked.Store(r.URL.RawQuery)
				fmt.Fprint(w, `{"tags":["key.1","s.a&b.1","s.shop.1"]}`)
			}
		})
		s, err := ocistore.Open(t.Context(), addr, once())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Capabilities(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Tags(t.Context(), "s.a&b."); err != nil {
			t.Error(err)
		}
		if asked.Load() != want {
			t.Errorf("%q: asked for %v", header, asked.Load())
		}
		tags, err := s.Tags(t.Context(), "s.shop.")
		if err != nil || len(tags) != 1 || tags[0] != "s.shop.1" {
			t.Errorf("%q, %v", tags, err)
		}
	}
}
