package registry_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"golang.org/x/crypto/bcrypt"

	"lifeboat/internal/registry"
	"lifeboat/internal/registry/registrytest"
)

// envServe makes the test binary serve the directory it names, for tests that
// kill a registry or run it as another user.
const envServe = "LBTEST_REGISTRY_SERVE"

func TestMain(m *testing.M) {
	dir := os.Getenv(envServe)
	if dir == "" {
		os.Exit(m.Run())
	}
	srv, err := registry.New(registry.Config{Listen: "127.0.0.1:0", Data: dir, PlainHTTP: true})
	if err != nil {
		fmt.Println("error:", err)
		os.Exit(3)
	}
	fmt.Println(srv.Addr())
	if err := srv.Serve(context.Background()); err != nil {
		fmt.Println("error:", err)
		os.Exit(1)
	}
}

// client speaks raw HTTP to a registry, to send what a good client would not.
type client struct {
	t              *testing.T
	base           string
	user, password string
}

func plain(c *registry.Config) { c.PlainHTTP = true }

func newClient(t *testing.T, r *registrytest.Registry) *client {
	return &client{t: t, base: r.Scheme() + "://" + r.Addr}
}

func (c *client) as(user string) *client {
	return &client{t: c.t, base: c.base, user: user, password: user + "-password"}
}

// do sends a request and returns status and body; header pairs follow.
func (c *client) do(method, path string, body []byte, header ...string) (int, string, http.Header) {
	c.t.Helper()
	target := path
	if strings.HasPrefix(path, "/") {
		target = c.base + path
	}
	req, err := http.NewRequestWithContext(c.t.Context(), method, target, bytes.NewReader(body))
	if err != nil {
		c.t.Fatal(err)
	}
	if c.user != "" {
		req.SetBasicAuth(c.user, c.password)
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(req)
	if err != nil {
		c.t.Fatalf("%s %s: %v", method, path, err)
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		c.t.Fatalf("%s %s: %v", method, path, err)
	}
	return resp.StatusCode, string(b), resp.Header
}

const (
	manifestType = "application/vnd.oci.image.manifest.v1+json"
	indexType    = "application/vnd.oci.image.index.v1+json"
)

// startUpload returns the address to send a blob to.
func (c *client) startUpload(name string) string {
	c.t.Helper()
	status, body, h := c.do("POST", "/v2/"+name+"/blobs/uploads/", nil)
	if status != http.StatusAccepted {
		c.t.Fatalf("start upload: %d %s", status, body)
	}
	return h.Get("Location")
}

func (c *client) putBlob(name string, b []byte) digest.Digest {
	c.t.Helper()
	d := digest.FromBytes(b)
	status, body, _ := c.do("PUT", c.startUpload(name)+"&digest="+d.String(), b)
	if status != http.StatusCreated {
		c.t.Fatalf("put blob: %d %s", status, body)
	}
	return d
}

// manifest returns an image manifest over the empty config, unique by note. It
// names layers by digest and size.
func manifest(note string, layers ...[]byte) []byte {
	type desc map[string]any
	of := func(b []byte) desc {
		return desc{"mediaType": "application/vnd.lifeboat.pack.v1", "digest": digest.FromBytes(b), "size": len(b)}
	}
	m := desc{"schemaVersion": 2, "mediaType": manifestType, "config": of([]byte("{}")), "layers": []desc{}, "annotations": map[string]string{"note": note}}
	for _, l := range layers {
		m["layers"] = append(m["layers"].([]desc), of(l))
	}
	b, err := json.Marshal(m)
	if err != nil {
		panic(err)
	}
	return b
}

func (c *client) putManifest(name, ref string, body []byte) (int, string) {
	c.t.Helper()
	status, text, _ := c.do("PUT", "/v2/"+name+"/manifests/"+ref, body, "Content-Type", manifestType)
	return status, text
}

func (c *client) tag(name, tag string) string {
	c.t.Helper()
	status, _, h := c.do("HEAD", "/v2/"+name+"/manifests/"+tag, nil, "Accept", manifestType+", "+indexType)
	if status == http.StatusNotFound {
		return ""
	}
	if status != http.StatusOK {
		c.t.Fatalf("read tag %s: %d", tag, status)
	}
	return h.Get("Docker-Content-Digest")
}

// want fails unless a status is the expected one and the body says something.
func (c *client) want(what string, status int, body string, wantStatus int, says string) {
	c.t.Helper()
	if status != wantStatus || !strings.Contains(body, says) {
		c.t.Errorf("%s: %d %s; want %d saying %q", what, status, body, wantStatus, says)
	}
	if status >= 400 && body != "" {
		var e struct {
			Errors []struct{ Code, Message string } `json:"errors"`
		}
		if err := json.Unmarshal([]byte(body), &e); err != nil || len(e.Errors) == 0 || e.Errors[0].Code == "" {
			c.t.Errorf("%s: not in the form of OCI errors: %s", what, body)
		}
	}
}

// withUsers writes an htpasswd file (password: USER-password) and a roles file.
func withUsers(t *testing.T, roles string, users ...string) func(*registry.Config) {
	t.Helper()
	dir := t.TempDir()
	var b strings.Builder
	for _, u := range users {
		h, err := bcrypt.GenerateFromPassword([]byte(u+"-password"), bcrypt.MinCost)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&b, "%s:%s\n", u, h)
	}
	write := func(name, content string) string {
		f := filepath.Join(dir, name)
		if err := os.WriteFile(f, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return f
	}
	return func(c *registry.Config) {
		c.Htpasswd = write("htpasswd", b.String())
		if roles != "" {
			c.Roles = write("roles.yaml", roles)
		}
	}
}
