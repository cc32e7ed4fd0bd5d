package imageserve_test

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/klauspost/compress/gzip"

	"lifeboat/internal/cut"
	"lifeboat/internal/dr"
	"lifeboat/internal/imageserve"
	"lifeboat/internal/layer"
	"lifeboat/internal/layer/layertest"
)

type file struct {
	name string
	data []byte
}

func tarball(t *testing.T, files ...file) []byte {
	t.Helper()
	var out bytes.Buffer
	tw := tar.NewWriter(&out)
	for _, f := range files {
		if err := tw.WriteHeader(&tar.Header{Name: f.name, Size: int64(len(f.data)), Mode: 0o644}); err != nil {
			t.Fatal(err)
		}
		if _, err := tw.Write(f.data); err != nil {
			t.Fatal(err)
		}
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func asJSON(t *testing.T, v any) []byte {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// stored is an image in a store, with the bytes that it was made from.
type stored struct {
	st     *layertest.Store
	rec    *layer.ImageRecord
	config []byte
	// index and manifest are empty for an image that is named by its configuration.
	index, manifest []byte
	plain, packed   []byte
}

// store makes an image of one layer; with a manifest under an index if indexed.
func store(t *testing.T, indexed bool) stored {
	t.Helper()
	s := stored{st: layertest.New()}
	s.plain = tarball(t, file{"a", bytes.Repeat([]byte("some text\n"), 100_000)}, file{"b", []byte("b")})
	var packed bytes.Buffer
	zw := gzip.NewWriter(&packed)
	if _, err := zw.Write(s.plain); err != nil {
		t.Fatal(err)
	}
	if err := zw.Close(); err != nil {
		t.Fatal(err)
	}
	s.packed = packed.Bytes()
	s.config = asJSON(t, map[string]any{"os": "linux", "architecture": "amd64", "rootfs": map[string]any{"diff_ids": []layer.Digest{layer.DigestOf(s.plain)}}})
	name := func(b []byte) string { return "blobs/sha256/" + layer.DigestOf(b).Hex() }
	files := []file{{"layer.tar", s.plain}, {name(s.config), s.config}}
	id := layer.DigestOf(s.config)
	list := []map[string]any{{"Config": name(s.config), "Layers": []string{"layer.tar"}}}
	top := file{"manifest.json", asJSON(t, list)}
	if indexed {
		const manifest, index = "application/vnd.oci.image.manifest.v1+json", "application/vnd.oci.image.index.v1+json"
		desc := func(mediaType string, b []byte) layer.Descriptor {
			return layer.Descriptor{MediaType: mediaType, Digest: layer.DigestOf(b), Size: int64(len(b))}
		}
		s.manifest = asJSON(t, map[string]any{
			"schemaVersion": 2, "mediaType": manifest, "config": desc("application/vnd.oci.image.config.v1+json", s.config),
			"layers": []layer.Descriptor{desc("application/vnd.oci.image.layer.v1.tar+gzip", s.packed)},
		})
		absent := desc(manifest, []byte("another platform"))
		s.index = asJSON(t, map[string]any{"schemaVersion": 2, "manifests": []layer.Descriptor{desc(manifest, s.manifest), absent}})
		id = layer.DigestOf(s.index)
		files = []file{{name(s.config), s.config}, {name(s.packed), s.packed}, {name(s.manifest), s.manifest}, {name(s.index), s.index}}
		top = file{"index.json", asJSON(t, map[string]any{"manifests": []layer.Descriptor{desc(index, s.index)}})}
	}
	got, err := layer.Capture(t.Context(), bytes.NewReader(tarball(t, append(files, top)...)), layer.CaptureOptions{
		Want: []layer.Digest{id}, Sink: s.st, Cutter: cut.New([32]byte{1}),
	})
	if err != nil || got[0].Err != nil {
		t.Fatal(err, got)
	}
	s.rec = got[0].Record
	return s
}

func serve(t *testing.T, s stored, opt imageserve.Options) *imageserve.Server {
	t.Helper()
	srv, err := imageserve.Serve(t.Context(), s.st, []*layer.ImageRecord{s.rec}, opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := srv.Close(); err != nil {
			t.Error(err)
		}
	})
	return srv
}

// answer is a response that was read to its end.
type answer struct {
	*http.Response
	body []byte
	err  error // of the request or of reading the body
}

// ask sends a request with the server's credentials and the headers given as
// pairs. A path that begins with / is below the image's name.
func ask(t *testing.T, srv *imageserve.Server, s stored, method, path string, headers ...string) answer {
	t.Helper()
	if strings.HasPrefix(path, "/") {
		served, err := srv.Image(s.rec.ID)
		if err != nil {
			t.Fatal(err)
		}
		name, _, _ := strings.Cut(strings.TrimPrefix(served.Ref, srv.Addr()), ":")
		path = "v2" + name + path
	}
	req, err := http.NewRequestWithContext(t.Context(), method, "http://"+srv.Addr()+"/"+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.SetBasicAuth(srv.Username(), srv.Password())
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return answer{&http.Response{Status: "none"}, nil, err}
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	return answer{res, body, err}
}

func TestByConfiguration(t *testing.T) {
	t.Parallel()
	s := store(t, false)
	srv := serve(t, s, imageserve.Options{})
	m := ask(t, srv, s, "GET", "/manifests/snapshot")
	var doc struct {
		MediaType string
		Config    layer.Descriptor
		Layers    []layer.Descriptor
	}
	if err := json.Unmarshal(m.body, &doc); err != nil || m.Header.Get("Content-Type") != doc.MediaType {
		t.Fatalf("manifest of type %q: %v\n%s", m.Header.Get("Content-Type"), err, m.body)
	}
	if m.Header.Get("Docker-Content-Digest") != string(layer.DigestOf(m.body)) {
		t.Error("the manifest has another digest than the server says")
	}
	if byDigest := ask(t, srv, s, "GET", "/manifests/"+m.Header.Get("Docker-Content-Digest")); !bytes.Equal(byDigest.body, m.body) {
		t.Error("by digest comes another manifest")
	}
	if doc.Config.Digest != s.rec.ID || doc.Layers[0].Digest != layer.DigestOf(s.plain) || doc.Layers[0].Size != int64(len(s.plain)) {
		t.Errorf("manifest is %s", m.body)
	}
	if b := ask(t, srv, s, "GET", "/blobs/"+string(s.rec.ID)); !bytes.Equal(b.body, s.config) {
		t.Error("configuration differs")
	}
	b := ask(t, srv, s, "GET", "/blobs/"+string(layer.DigestOf(s.plain)))
	if b.err != nil || !bytes.Equal(b.body, s.plain) || b.ContentLength != int64(len(s.plain)) {
		t.Errorf("layer differs: %d bytes, length %d, %v", len(b.body), b.ContentLength, b.err)
	}
	if tags := ask(t, srv, s, "GET", "/tags/list"); !bytes.Contains(tags.body, []byte(`"snapshot"`)) {
		t.Errorf("tags: %s", tags.body)
	}
}

func TestByManifest(t *testing.T) {
	t.Parallel()
	s := store(t, true)
	srv := serve(t, s, imageserve.Options{ContainerdStore: true})
	served, err := srv.Image(s.rec.ID)
	if err != nil || !served.SameID || served.EngineID != s.rec.ID {
		t.Errorf("served as %+v, %v", served, err)
	}
	for _, tt := range []struct {
		path, mediaType string
		want            []byte
	}{
		{"/manifests/snapshot", "application/vnd.oci.image.index.v1+json", s.index},
		{"/manifests/" + string(layer.DigestOf(s.index)), "application/vnd.oci.image.index.v1+json", s.index},
		{"/manifests/" + string(layer.DigestOf(s.manifest)), "application/vnd.oci.image.manifest.v1+json", s.manifest},
		{"/blobs/" + string(layer.DigestOf(s.config)), "application/octet-stream", s.config},
		{"/blobs/" + string(layer.DigestOf(s.packed)), "application/octet-stream", s.packed},
	} {
		got := ask(t, srv, s, "GET", tt.path)
		if got.StatusCode != 200 || !bytes.Equal(got.body, tt.want) || got.Header.Get("Content-Type") != tt.mediaType {
			t.Errorf("%s: %s, %s, %d bytes", tt.path, got.Status, got.Header.Get("Content-Type"), len(got.body))
		}
		head := ask(t, srv, s, "HEAD", tt.path)
		if head.StatusCode != 200 || len(head.body) != 0 || head.ContentLength != int64(len(tt.want)) || head.Header.Get("Docker-Content-Digest") != string(layer.DigestOf(tt.want)) {
			t.Errorf("HEAD %s: %s, %v", tt.path, head.Status, head.Header)
		}
	}
	if got := ask(t, srv, s, "GET", "/manifests/"+string(layer.DigestOf([]byte("another platform")))); got.StatusCode != 404 {
		t.Errorf("a platform that is not there: %s", got.Status)
	}
}

func TestRanges(t *testing.T) {
	t.Parallel()
	s := store(t, true)
	srv := serve(t, s, imageserve.Options{ContainerdStore: true})
	blob, size := s.packed, len(s.packed)
	path := "/blobs/" + string(layer.DigestOf(blob))
	for _, tt := range []struct {
		spec     string
		status   int
		from, to int
	}{
		{"bytes=0-0", 206, 0, 1},
		{"bytes=10-19", 206, 10, 20},
		{"bytes=100-", 206, 100, size},
		{"bytes=0-", 206, 0, size},
		{"bytes=100-99999999", 206, 100, size},
		{"bytes=-7", 206, size - 7, size},
		{"bytes=-99999999", 206, 0, size},
		{"bytes=99999999-", 416, 0, 0},
		{"bytes=-0", 416, 0, 0},
		{"bytes=5-3", 200, 0, size},
		{"bytes=1-2,4-5", 200, 0, size},
		{"bytes=x-", 200, 0, size},
		{"bytes=7", 200, 0, size},
		{"lines=1-2", 200, 0, size},
	} {
		got := ask(t, srv, s, "GET", path, "Range", tt.spec)
		if got.StatusCode != tt.status {
			t.Errorf("%s: %s, want %d", tt.spec, got.Status, tt.status)
		} else if tt.status != 416 && !bytes.Equal(got.body, blob[tt.from:tt.to]) {
			t.Errorf("%s: %d bytes differ from those of %d to %d", tt.spec, len(got.body), tt.from, tt.to)
		}
	}
	if got := ask(t, srv, s, "GET", path, "Range", "bytes=1-2", "If-Range", `"other"`); got.StatusCode != 200 {
		t.Errorf("a range of another blob: %s", got.Status)
	}
	if got := ask(t, srv, s, "GET", path, "Range", "bytes=1-2", "If-Range", `"`+string(layer.DigestOf(blob))+`"`); got.StatusCode != 206 {
		t.Errorf("a range of this blob: %s", got.Status)
	}
}

func TestCredentials(t *testing.T) {
	t.Parallel()
	s := store(t, false)
	var logged bytes.Buffer
	srv := serve(t, s, imageserve.Options{Log: slog.New(slog.NewTextHandler(&logged, &slog.HandlerOptions{Level: slog.LevelDebug}))})
	other := serve(t, s, imageserve.Options{})
	if srv.Password() == other.Password() || len(srv.Password()) < 40 {
		t.Error("passwords are not made for the occasion")
	}
	for _, auth := range []string{
		"", "Basic", "Bearer " + srv.Password(),
		"Basic " + base64.StdEncoding.EncodeToString([]byte(srv.Username()+":")),
		"Basic " + base64.StdEncoding.EncodeToString([]byte(":"+srv.Password())),
		"Basic " + base64.StdEncoding.EncodeToString([]byte(srv.Username()+":"+other.Password())),
		"Basic " + base64.StdEncoding.EncodeToString([]byte(srv.Username()+":"+srv.Password()+"x")),
	} {
		for _, path := range []string{"v2/", "/manifests/snapshot", "/blobs/" + string(layer.DigestOf(s.plain)), "nothing"} {
			got := ask(t, srv, s, "GET", path, "Authorization", auth)
			if got.StatusCode != 401 || got.Header.Get("WWW-Authenticate") == "" || bytes.Contains(got.body, []byte("text")) {
				t.Errorf("%s with %.12q: %s", path, auth, got.Status)
			}
		}
	}
	if got := ask(t, srv, s, "GET", "v2/"); got.StatusCode != 200 {
		t.Errorf("with credentials: %s", got.Status)
	}
	raw, err := base64.URLEncoding.DecodeString(srv.RegistryAuth())
	var auth struct{ Username, Password, ServerAddress string }
	if err != nil || json.Unmarshal(raw, &auth) != nil || auth.Username != srv.Username() || auth.Password != srv.Password() || auth.ServerAddress != srv.Addr() {
		t.Errorf("RegistryAuth decodes to %q, %v", raw, err)
	}
	ask(t, srv, s, "GET", "/blobs/"+string(layer.DigestOf(s.plain)))
	if strings.Contains(logged.String(), srv.Password()) {
		t.Error("the password is in the log")
	}
}

func TestWhatIsRefused(t *testing.T) {
	t.Parallel()
	s := store(t, false)
	srv := serve(t, s, imageserve.Options{})
	for _, tt := range []struct {
		method, path string
		status       int
	}{
		{"PUT", "/manifests/x", 405},
		{"POST", "/blobs/uploads/", 405},
		{"DELETE", "/manifests/snapshot", 405},
		{"GET", "/manifests/latest", 404},
		{"GET", "/manifests/sha256:00", 404},
		{"GET", "/blobs/" + string(layer.DigestOf(nil)), 404},
		{"GET", "/blobs/..%2f..", 404},
		{"GET", "/other/snapshot", 404},
		{"GET", "v2/another/image/manifests/snapshot", 404},
		{"GET", "v2/_catalog", 404},
		{"GET", "v2/a/b", 404},
		{"GET", "", 404},
	} {
		if got := ask(t, srv, s, tt.method, tt.path); got.StatusCode != tt.status || !json.Valid(got.body) {
			t.Errorf("%s %s: %s\n%s", tt.method, tt.path, got.Status, got.body)
		}
	}
	if _, err := srv.Image(layer.DigestOf(nil)); !errors.Is(err, dr.ErrNotFound) {
		t.Errorf("an image that is not served: %v", err)
	}
}

// An engine must never take half a layer, or a wrong one, for the layer.
func TestDamageEndsTheTransfer(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		damage func(*layertest.Store, dr.UnitRef)
	}{
		{"unit is gone", func(st *layertest.Store, ref dr.UnitRef) { st.Drop(ref) }},
		{"unit is short", func(st *layertest.Store, ref dr.UnitRef) { st.Damage(ref, []byte("x")) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := store(t, false)
			srv := serve(t, s, imageserve.Options{})
			var biggest dr.UnitRef
			for _, ref := range s.st.Refs() {
				if ref.Len > biggest.Len {
					biggest = ref
				}
			}
			tt.damage(s.st, biggest)
			got := ask(t, srv, s, "GET", "/blobs/"+string(layer.DigestOf(s.plain)))
			if got.err == nil {
				t.Errorf("%d bytes came without an error", len(got.body))
			}
		})
	}
	t.Run("configuration is gone", func(t *testing.T) {
		t.Parallel()
		s := store(t, false)
		s.st.Drop(s.rec.Config.Data[0])
		_, err := imageserve.Serve(t.Context(), s.st, []*layer.ImageRecord{s.rec}, imageserve.Options{})
		if !errors.Is(err, layertest.ErrGone) || !strings.Contains(err.Error(), string(s.rec.ID)) {
			t.Errorf("got %v", err)
		}
	})
}

func TestOnlyOnLoopback(t *testing.T) {
	t.Parallel()
	s := store(t, false)
	l, err := net.Listen("tcp4", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	_, err = imageserve.Serve(t.Context(), s.st, []*layer.ImageRecord{s.rec}, imageserve.Options{Listener: l})
	if !errors.Is(err, dr.ErrUsage) {
		t.Errorf("got %v", err)
	}
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("the listener was left open: %v", err)
	}
}

// blocking is a source whose big units come only when the context ends.
type blocking struct {
	*layertest.Store
	started chan struct{}
}

func (b blocking) Unit(ctx context.Context, ref dr.UnitRef) ([]byte, error) {
	if ref.Len < 100_000 {
		return b.Store.Unit(ctx, ref)
	}
	select {
	case b.started <- struct{}{}:
	default:
	}
	<-ctx.Done()
	return nil, ctx.Err()
}

func TestCloseEndsTransfers(t *testing.T) {
	t.Parallel()
	for _, how := range []string{"Close", "context"} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			s := store(t, false)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			src := blocking{s.st, make(chan struct{}, 1)}
			srv, err := imageserve.Serve(ctx, src, []*layer.ImageRecord{s.rec}, imageserve.Options{})
			if err != nil {
				t.Fatal(err)
			}
			defer srv.Close()
			done := make(chan answer, 1)
			go func() { done <- ask(t, srv, s, "GET", "/blobs/"+string(layer.DigestOf(s.plain))) }()
			<-src.started
			if how == "Close" {
				if err := srv.Close(); err != nil {
					t.Error(err)
				}
			} else {
				cancel()
			}
			if got := <-done; got.err == nil {
				t.Errorf("%d bytes came without an error", len(got.body))
			}
			if err := srv.Close(); err != nil {
				t.Errorf("close again: %v", err)
			}
			if c, err := net.Dial("tcp", srv.Addr()); err == nil {
				c.Close()
				t.Error("the port is still open")
			}
		})
	}
}
