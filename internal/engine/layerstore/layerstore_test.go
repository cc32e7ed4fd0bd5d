package layerstore_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vbatts/tar-split/tar/asm"
	"github.com/vbatts/tar-split/tar/storage"

	"lifeboat/internal/engine/layerstore"
)

// root is a data directory as a Docker engine writes it.
type root struct {
	t   *testing.T
	dir string
}

func newRoot(t *testing.T) *root {
	r := &root{t, t.TempDir()}
	for _, d := range []string{"image/overlay2/imagedb/content/sha256", "image/overlay2/layerdb/sha256", "overlay2"} {
		r.must(os.MkdirAll(filepath.Join(r.dir, d), 0o755))
	}
	return r
}

func (r *root) must(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

func digest(b []byte) string { return fmt.Sprintf("sha256:%x", sha256.Sum256(b)) }

// member of a layer's archive.
type member struct {
	name, link, text string
	kind             byte
}

func archive(t *testing.T, members ...member) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, m := range members {
		h := &tar.Header{Name: m.name, Typeflag: m.kind, Linkname: m.link, Size: int64(len(m.text)), Mode: 0o755}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, m.text); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// layer stores an archive under a chain id, as the engine does when it pulls.
func (r *root) layer(chain, cache string, data []byte) {
	r.t.Helper()
	db := filepath.Join(r.dir, "image/overlay2/layerdb/sha256", strings.TrimPrefix(chain, "sha256:"))
	diff := filepath.Join(r.dir, "overlay2", cache, "diff")
	r.must(errors.Join(os.MkdirAll(db, 0o755), os.MkdirAll(diff, 0o755), os.WriteFile(filepath.Join(db, "cache-id"), []byte(cache), 0o600)))
	var split bytes.Buffer
	zw := gzip.NewWriter(&split)
	in, done, err := asm.NewInputTarStreamWithDone(bytes.NewReader(data), storage.NewJSONPacker(zw), storage.NewDiscardFilePutter())
	r.must(err)
	tr := tar.NewReader(in)
	for {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		r.must(err)
		p := filepath.Join(diff, h.Name)
		switch h.Typeflag {
		case tar.TypeDir:
			r.must(os.MkdirAll(p, 0o755))
		case tar.TypeSymlink:
			r.must(os.Symlink(h.Linkname, p))
		case tar.TypeReg:
			text, err := io.ReadAll(tr)
			r.must(err)
			if strings.HasPrefix(filepath.Base(p), ".wh.") {
				continue // a whiteout is a device there
			}
			r.must(os.WriteFile(p, text, 0o600))
		}
	}
	_, err = io.Copy(io.Discard, in)
	r.must(errors.Join(err, <-done, zw.Close(), os.WriteFile(filepath.Join(db, "tar-split.json.gz"), split.Bytes(), 0o600)))
}

func (r *root) image(diffIDs ...string) (id string) {
	r.t.Helper()
	raw, err := json.Marshal(map[string]any{"rootfs": map[string]any{"type": "layers", "diff_ids": diffIDs}})
	r.must(err)
	id = digest(raw)
	r.must(os.WriteFile(filepath.Join(r.dir, "image/overlay2/imagedb/content/sha256", strings.TrimPrefix(id, "sha256:")), raw, 0o600))
	return id
}

func (r *root) open() *layerstore.Store {
	r.t.Helper()
	s, err := layerstore.Open(r.dir)
	r.must(err)
	return s
}

// TestLayers: the archives come back byte by byte, the second layer by its chain
// id and in spite of deletions and links.
func TestLayers(t *testing.T) {
	r := newRoot(t)
	base := archive(t, member{name: "etc/", kind: tar.TypeDir}, member{name: "etc/hosts", kind: tar.TypeReg, text: "127.0.0.1"},
		member{name: "etc/empty", kind: tar.TypeReg}, member{name: "lib", kind: tar.TypeSymlink, link: "/usr/lib"})
	top := archive(t, member{name: "etc/", kind: tar.TypeDir}, member{name: "etc/.wh.hosts", kind: tar.TypeReg},
		member{name: "big", kind: tar.TypeReg, text: strings.Repeat("0123456789abcdef", 1<<16)})
	a, b := digest(base), digest(top)
	r.layer(a, "one", base)
	r.layer(digest([]byte(a+" "+b)), "two", top)
	id := r.image(a, b, a)
	im, err := r.open().Image(id)
	if err != nil {
		t.Fatal(err)
	}
	if digest(im.Config) != id {
		t.Error("the configuration is not what the image is named by")
	}
	for d, want := range map[string][]byte{a: base, b: top} {
		l, err := im.Layer(d)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(l)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("layer %s: %d bytes, want %d; %v", d, len(got), len(want), err)
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}
	// One that is closed half way leaves nobody waiting.
	l, err := im.Layer(b)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(l, make([]byte, 100)); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
}

// TestNotAsExpected: whatever is not as it should be is an error, never other
// bytes, and never a file from outside the layer.
func TestNotAsExpected(t *testing.T) {
	if _, err := layerstore.Open(t.TempDir()); !errors.Is(err, layerstore.ErrNotHere) {
		t.Errorf("no engine's directory: %v", err)
	}
	outside := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(outside, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	data := archive(t, member{name: "d/", kind: tar.TypeDir}, member{name: "d/f", kind: tar.TypeReg, text: "secret"})
	d := digest(data)
	for name, spoil := range map[string]func(r *root, diff, db string) error{
		"changed file": func(_ *root, diff, _ string) error {
			return os.WriteFile(filepath.Join(diff, "d/f"), []byte("SECRET"), 0o600)
		},
		"lost file":         func(_ *root, diff, _ string) error { return os.Remove(filepath.Join(diff, "d/f")) },
		"link for a file":   func(_ *root, diff, _ string) error { return relink(outside, filepath.Join(diff, "d/f")) },
		"link for a parent": func(_ *root, diff, _ string) error { return relink(filepath.Dir(outside), filepath.Join(diff, "d")) },
		"lost layer":        func(_ *root, _, db string) error { return os.RemoveAll(db) },
		"lost directory":    func(_ *root, diff, _ string) error { return os.RemoveAll(diff) },
		"directory outside": func(_ *root, _, db string) error {
			return os.WriteFile(filepath.Join(db, "cache-id"), []byte("../../etc"), 0o600)
		},
		"damaged tar-split data": func(_ *root, _, db string) error {
			return os.WriteFile(filepath.Join(db, "tar-split.json.gz"), []byte("x"), 0o600)
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRoot(t)
			r.layer(d, "one", data)
			id := r.image(d)
			r.must(spoil(r, filepath.Join(r.dir, "overlay2/one/diff"), filepath.Join(r.dir, "image/overlay2/layerdb/sha256", strings.TrimPrefix(d, "sha256:"))))
			im, err := r.open().Image(id)
			r.must(err)
			l, err := im.Layer(d)
			if err != nil {
				return
			}
			defer l.Close()
			if got, err := io.ReadAll(l); err == nil {
				t.Errorf("gave %d bytes and no error", len(got))
			}
		})
	}
	r := newRoot(t)
	for _, id := range []string{"", "x", "sha256:../../x", d} {
		if _, err := r.open().Image(id); !errors.Is(err, layerstore.ErrNotHere) {
			t.Errorf("image %q: %v", id, err)
		}
	}
}

func relink(target, path string) error {
	if err := os.RemoveAll(path); err != nil {
		return err
	}
	return os.Symlink(target, path)
}
