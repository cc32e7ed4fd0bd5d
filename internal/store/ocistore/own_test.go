package ocistore_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/crypto/bcrypt"

	"lifeboat/internal/registry"
	"lifeboat/internal/registry/registrytest"
	"lifeboat/internal/store"
	"lifeboat/internal/store/storetest"
)

func wantErr(t *testing.T, what string, err, want error, says string) {
	t.Helper()
	if !errors.Is(err, want) || !strings.Contains(err.Error(), says) {
		t.Errorf("%s: %v; want %q saying %q", what, err, want, says)
	}
}

// TestOwnRegistryAnswers: each refusal of Lifeboat's registry arrives as the
// error that callers decide by.
func TestOwnRegistryAnswers(t *testing.T) {
	t.Parallel()
	r := registrytest.Start(t)
	s := open(t, r.URL("dr"), r.Options())
	put := func(tag, note string) error {
		_, err := s.PutManifest(t.Context(), tag, ocispec.MediaTypeImageManifest, storetest.ManifestOf(t, s, note))
		return err
	}
	for n := 1; n <= 2; n++ {
		if err := put(fmt.Sprintf("s.shop.%d", n), fmt.Sprint(n)); err != nil {
			t.Fatal(err)
		}
	}
	wantErr(t, "another manifest", put("s.shop.2", "other"), store.ErrTagTaken, "names sha256:")
	wantErr(t, "a gap", put("e.shop.2", "4"), store.ErrRefused, "e.shop.1 does not exist")
	wantErr(t, "a pack tag that does not fit", put("m."+strings.Repeat("0", 32), "x"), store.ErrRefused, "TAG_INVALID")
	d, err := s.ResolveTag(t.Context(), "s.shop.2")
	if err != nil {
		t.Fatal(err)
	}
	wantErr(t, "delete what a tag names", s.DeleteManifest(t.Context(), d), store.ErrListed, "s.shop.2")
	if err := s.DeleteTag(t.Context(), "s.shop.2"); err != nil {
		t.Fatal(err)
	}
	wantErr(t, "a number that was deleted", put("s.shop.2", "other"), store.ErrTagTaken, "used and deleted")
	if err := put("s.shop.3", "3"); err != nil {
		t.Errorf("the next number: %v", err)
	}
}

// TestOwnRegistryDamage: what is damaged in its storage is damage to the client, of
// that one thing, and not a registry that is away; storing the same heals it.
func TestOwnRegistryDamage(t *testing.T) {
	t.Parallel()
	r := registrytest.Start(t)
	s := open(t, r.URL("dr"), r.Options())
	body, other := storetest.ManifestOf(t, s, "1"), storetest.ManifestOf(t, s, "2")
	put := func(body []byte) error {
		_, err := s.PutManifest(t.Context(), "s.shop.1", ocispec.MediaTypeImageManifest, body)
		return err
	}
	if err := put(body); err != nil {
		t.Fatal(err)
	}
	d := digest.FromBytes(body)
	dir := filepath.Join(r.Data, "store", "docker", "registry", "v2")
	damage := func(file string) {
		t.Helper()
		if err := os.Truncate(file, 9); err != nil {
			t.Fatal(err)
		}
	}
	get := func(ref string) error {
		_, err := s.GetManifest(t.Context(), ref)
		return err
	}
	damaged := func(what string, err error) {
		t.Helper()
		if !errors.Is(err, store.ErrDigestMismatch) || store.Retryable(err) {
			t.Errorf("%s: %v; want %v, and not to ask again", what, err, store.ErrDigestMismatch)
		}
	}

	damage(filepath.Join(dir, "blobs", "sha256", d.Encoded()[:2], d.Encoded(), "data"))
	damaged("a damaged manifest by tag", get("s.shop.1"))
	damaged("a damaged manifest by digest", get(d.String()))
	if have, err := s.ResolveTag(t.Context(), "s.shop.1"); have != d || err != nil {
		t.Errorf("its tag: %s, %v", have, err)
	}
	if err := put(body); err != nil {
		t.Errorf("heal it: %v", err)
	}
	if err := get("s.shop.1"); err != nil {
		t.Errorf("healed: %v", err)
	}

	damage(filepath.Join(dir, "repositories", "dr", "_manifests", "tags", "s.shop.1", "current", "link"))
	damaged("a damaged tag", get("s.shop.1"))
	_, err := s.ResolveTag(t.Context(), "s.shop.1")
	damaged("a damaged tag, resolved", err)
	err = put(other)
	wantErr(t, "something else under a damaged tag", err, store.ErrTagTaken, "s.shop.1")
	if err := put(body); err != nil {
		t.Errorf("heal it: %v", err)
	}
	if have, err := s.ResolveTag(t.Context(), "s.shop.1"); have != d || err != nil {
		t.Errorf("healed: %s, %v", have, err)
	}

	tag := filepath.Join(dir, "repositories", "dr", "_manifests", "tags", "s.shop.1")
	damage(filepath.Join(tag, "current", "link"))
	if have, err := store.First(t.Context(), s, "s.shop.1"); have != d || err != nil {
		t.Errorf("given first: %s, %v", have, err)
	}
	if err := os.RemoveAll(filepath.Join(tag, "index")); err != nil {
		t.Fatal(err)
	}
	_, err = store.First(t.Context(), s, "s.shop.1")
	damaged("a damaged tag of which nothing says what it was given first", err)
}

// TestOwnRegistryUnreadable: what its file system does not let it read is damage to the
// client, at once; storing the same heals it, and what cannot be mended is told.
func TestOwnRegistryUnreadable(t *testing.T) {
	t.Parallel()
	r := registrytest.Start(t, func(c *registry.Config) { c.Logger = nil })
	s := open(t, r.URL("dr"), r.Options())
	body := storetest.ManifestOf(t, s, "1")
	put := func() error {
		_, err := s.PutManifest(t.Context(), "s.shop.1", ocispec.MediaTypeImageManifest, body)
		return err
	}
	if err := put(); err != nil {
		t.Fatal(err)
	}
	d := digest.FromBytes(body)
	dir := filepath.Join(r.Data, "store", "docker", "registry", "v2")
	fileOf := func(d digest.Digest) string {
		return filepath.Join(dir, "blobs", "sha256", d.Encoded()[:2], d.Encoded(), "data")
	}
	tag := filepath.Join(dir, "repositories", "dr", "_manifests", "tags", "s.shop.1")
	block := func(file string) {
		t.Helper()
		if err := os.RemoveAll(file); err != nil {
			t.Fatal(err)
		}
		if err := os.Mkdir(file, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	damaged := func(what string, err error) {
		t.Helper()
		if !errors.Is(err, store.ErrDigestMismatch) || store.Retryable(err) || errors.Is(err, store.ErrUnsupported) {
			t.Errorf("%s: %v; want %v, and not to ask again", what, err, store.ErrDigestMismatch)
		}
	}
	blob := []byte("a blob of some bytes")
	b := storetest.PutBytes(t, s, "", blob).Digest

	block(fileOf(b))
	_, err := s.HasBlob(t.Context(), b)
	damaged("a blob, looked for", err)
	if !strings.Contains(err.Error(), "the registry's log names it") {
		t.Errorf("it does not say where to look: %v", err)
	}
	_, err = s.GetBlob(t.Context(), b, int64(len(blob)), 0, -1)
	damaged("a blob, read", err)
	storetest.PutBytes(t, s, "", blob)
	if ok, err := s.HasBlob(t.Context(), b); !ok || err != nil {
		t.Errorf("healed: %v, %v", ok, err)
	}

	block(fileOf(d))
	_, err = s.GetManifest(t.Context(), "s.shop.1")
	damaged("a manifest", err)
	if have, err := s.ResolveTag(t.Context(), "s.shop.1"); have != d || err != nil {
		t.Errorf("its tag: %s, %v", have, err)
	}
	if err := put(); err != nil {
		t.Errorf("heal it: %v", err)
	}

	link := filepath.Join(tag, "current", "link")
	block(link)
	_, err = s.ResolveTag(t.Context(), "s.shop.1")
	damaged("a tag, resolved", err)
	if err := put(); err != nil {
		t.Errorf("heal it: %v", err)
	}
	if have, err := s.ResolveTag(t.Context(), "s.shop.1"); have != d || err != nil {
		t.Errorf("healed: %s, %v", have, err)
	}

	// What is in the way and not empty is nobody's to remove.
	block(link)
	if err := os.WriteFile(filepath.Join(link, "x"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	damaged("what cannot be replaced", put())
	block(filepath.Join(tag, "index"))
	damaged("what cannot be deleted", s.DeleteTag(t.Context(), "s.shop.1"))
	if _, err := os.Stat(filepath.Join(link, "x")); err != nil {
		t.Error(err)
	}
}

func TestOwnRegistryAccess(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	hash, err := bcrypt.GenerateFromPassword([]byte(secret), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	write := func(name, content string) string {
		f := filepath.Join(dir, name)
		if err := os.WriteFile(f, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return f
	}
	htpasswd := write("htpasswd", fmt.Sprintf("main:%s\nauditor:%s\n", hash, hash))
	roles := write("roles", "main: {role: writer, names: [dr], systems: [shop]}\nauditor: {role: reader, names: [dr]}\n")
	r := registrytest.Start(t, func(c *registry.Config) { c.Htpasswd, c.Roles = htpasswd, roles })
	as := func(user, password, name string) store.Store {
		o := r.Options()
		o.Username, o.Password = user, password
		return open(t, r.URL(name), o)
	}
	writer, reader := as("main", secret, "dr"), as("auditor", secret, "dr")
	body := storetest.ManifestOf(t, writer, "x")
	if _, err := writer.PutManifest(t.Context(), "s.shop.1", ocispec.MediaTypeImageManifest, body); err != nil {
		t.Fatal(err)
	}
	if m, err := reader.GetManifest(t.Context(), "s.shop.1"); err != nil || m.Digest != digest.FromBytes(body) {
		t.Errorf("reader reads: %v", err)
	}
	put := func(s store.Store, tag string) error {
		_, err := s.PutManifest(t.Context(), tag, ocispec.MediaTypeImageManifest, body)
		return err
	}
	wantErr(t, "writer writes a key", put(writer, "key.1"), store.ErrForbidden, "key.1")
	wantErr(t, "writer writes for another system", put(writer, "s.blog.1"), store.ErrForbidden, "system blog")
	wantErr(t, "writer deletes", writer.DeleteTag(t.Context(), "s.shop.1"), store.ErrForbidden, "does not delete")
	wantErr(t, "reader writes", put(reader, "s.shop.2"), store.ErrForbidden, "does not write")
	_, err = reader.PutBlob(t.Context(), digest.FromString("y"), 1, storetest.Bytes([]byte("y")))
	wantErr(t, "reader uploads", err, store.ErrForbidden, "does not write")
	_, err = as("main", secret, "other").Tags(t.Context(), "")
	wantErr(t, "another name", err, store.ErrForbidden, "no access to name")
	for _, user := range []string{"main", "nobody"} {
		_, err = as(user, "wrong"+secret, "dr").Capabilities(t.Context())
		wantErr(t, "wrong password", err, store.ErrUnauthorized, "wrong user or password")
		if strings.Contains(err.Error(), secret) {
			t.Errorf("password in the error: %v", err)
		}
	}
}
