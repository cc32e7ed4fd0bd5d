package registry_test

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/opencontainers/go-digest"

	"lifeboat/internal/registry/registrytest"
)

func TestAnnouncement(t *testing.T) {
	t.Parallel()
	r := registrytest.Start(t, plain, withUsers(t, "", "alice"))
	c := newClient(t, r)
	for user, want := range map[*client]int{c: http.StatusUnauthorized, c.as("alice"): http.StatusOK} {
		status, _, h := user.do("GET", "/v2/", nil)
		if status != want || h.Get("Lifeboat-Registry") != "1; immutable-tags; checked-deletes; tag-prefix; tag-first" {
			t.Errorf("%d, %q", status, h.Get("Lifeboat-Registry"))
		}
	}
}

func TestLogin(t *testing.T) {
	t.Parallel()
	r := registrytest.Start(t, plain, withUsers(t, "alice: {role: operator}", "alice", "bob"))
	c := newClient(t, r)
	status, body, h := c.do("GET", "/v2/dr/tags/list", nil)
	c.want("nobody", status, body, http.StatusUnauthorized, "log in")
	if !strings.HasPrefix(h.Get("WWW-Authenticate"), "Basic ") {
		t.Errorf("challenge %q", h.Get("WWW-Authenticate"))
	}
	wrong := c.as("alice")
	wrong.password = "wrong"
	status, body, _ = wrong.do("GET", "/v2/", nil)
	c.want("wrong password", status, body, http.StatusUnauthorized, "wrong user or password")
	status, body, _ = c.as("carol").do("GET", "/v2/", nil)
	c.want("unknown user", status, body, http.StatusUnauthorized, "wrong user or password")
	status, body, _ = c.as("bob").do("GET", "/v2/", nil)
	c.want("user without a role", status, body, http.StatusForbidden, "no access role")
	status, body, _ = c.as("alice").do("GET", "/v2/", nil)
	c.want("right", status, body, http.StatusOK, "{}")
}

// TestTagRace lets 50 writers with different manifests race for one tag, many
// times: exactly one wins, and its manifest is what the tag names.
func TestTagRace(t *testing.T) {
	t.Parallel()
	c := newClient(t, registrytest.Start(t, plain))
	c.putBlob("dr", []byte("{}"))
	for round := 1; round <= 4; round++ {
		tag := fmt.Sprintf("e.shop.%d", round)
		var won, lost atomic.Int32
		var winner atomic.Value
		var wg sync.WaitGroup
		for i := range 50 {
			wg.Go(func() {
				body := manifest(fmt.Sprint(tag, i))
				switch status, text := c.putManifest("dr", tag, body); status {
				case http.StatusCreated:
					won.Add(1)
					winner.Store(digest.FromBytes(body).String())
				case http.StatusConflict:
					lost.Add(1)
					c.want("loser", status, text, http.StatusConflict, `"reason":"taken"`)
				default:
					t.Errorf("%d %s", status, text)
				}
			})
		}
		wg.Wait()
		if won.Load() != 1 || lost.Load() != 49 {
			t.Fatalf("round %d: %d won, %d lost", round, won.Load(), lost.Load())
		}
		if got := c.tag("dr", tag); got != winner.Load() {
			t.Errorf("round %d: tag names %s, winner was %v", round, got, winner.Load())
		}
	}
}

func TestImmutableAndOrdinary(t *testing.T) {
	t.Parallel()
	c := newClient(t, registrytest.Start(t, plain))
	c.putBlob("dr", []byte("{}"))
	one, two := manifest("one"), manifest("two")
	for _, tag := range []string{"key.1", "host.1", "s.shop.1", "w.shop.1", "c.shop.7", "h.shop.7"} {
		status, text := c.putManifest("dr", tag, one)
		c.want(tag+" first", status, text, http.StatusCreated, "")
		status, text = c.putManifest("dr", tag, one)
		c.want(tag+" same", status, text, http.StatusCreated, "")
		status, text = c.putManifest("dr", tag, two)
		c.want(tag+" other", status, text, http.StatusConflict, "immutable")
	}
	// Other names, and tags of other tools, are left alone.
	for _, tag := range []string{"latest", "s.shop", "1.2", "s.shop.01"} {
		for _, body := range [][]byte{one, two} {
			status, text := c.putManifest("dr", tag, body)
			c.want(tag, status, text, http.StatusCreated, "")
		}
		if got := c.tag("dr", tag); got != digest.FromBytes(two).String() {
			t.Errorf("%s was not moved: %s", tag, got)
		}
	}
	status, text := c.putManifest("dr", digest.FromBytes(two).String(), two)
	c.want("by digest", status, text, http.StatusCreated, "")
}

func TestNumbersAreDense(t *testing.T) {
	t.Parallel()
	c := newClient(t, registrytest.Start(t, plain))
	c.putBlob("dr", []byte("{}"))
	for _, class := range []string{"key", "host", "e.shop", "w.shop"} {
		status, text := c.putManifest("dr", class+".2", manifest("x"))
		c.want(class+".2 first", status, text, http.StatusConflict, `"reason":"gap"`)
		for n := 1; n <= 3; n++ {
			status, text = c.putManifest("dr", fmt.Sprintf("%s.%d", class, n), manifest(fmt.Sprint(n)))
			c.want(fmt.Sprintf("%s.%d", class, n), status, text, http.StatusCreated, "")
		}
		status, text = c.putManifest("dr", class+".5", manifest("x"))
		c.want(class+".5", status, text, http.StatusConflict, class+".4 does not exist")
	}
	// A copy of a repository has the gaps that forgetting has left.
	for _, tag := range []string{"s.shop.7", "r.shop.7.3", "r.shop.9.1", "l.shop.9.2"} {
		status, text := c.putManifest("dr", tag, manifest(tag))
		c.want(tag, status, text, http.StatusCreated, "")
	}
}

func TestPackTagFitsItsDigest(t *testing.T) {
	t.Parallel()
	c := newClient(t, registrytest.Start(t, plain))
	c.putBlob("dr", []byte("{}"))
	body := manifest("packs")
	hex := digest.FromBytes(body).Encoded()
	status, text := c.putManifest("dr", "m."+strings.Repeat("0", 32), body)
	c.want("another prefix", status, text, http.StatusBadRequest, "TAG_INVALID")
	for _, n := range []int{32, 64} {
		status, text = c.putManifest("dr", "m."+hex[:n], body)
		c.want("its prefix", status, text, http.StatusCreated, "")
	}
}

// TestDeletedNumbers: a number is never given out twice, and a tag that went
// does not make a gap.
func TestDeletedNumbers(t *testing.T) {
	t.Parallel()
	c := newClient(t, registrytest.Start(t, plain))
	c.putBlob("dr", []byte("{}"))
	for n := 1; n <= 2; n++ {
		c.putManifest("dr", fmt.Sprintf("s.shop.%d", n), manifest(fmt.Sprint(n)))
	}
	status, body, _ := c.do("DELETE", "/v2/dr/manifests/s.shop.2", nil)
	c.want("delete", status, body, http.StatusAccepted, "")
	if got := c.tag("dr", "s.shop.2"); got != "" {
		t.Fatalf("still there: %s", got)
	}
	status, text := c.putManifest("dr", "s.shop.2", manifest("other"))
	c.want("number again", status, text, http.StatusConflict, `"reason":"retired"`)
	status, text = c.putManifest("dr", "s.shop.3", manifest("3"))
	c.want("next number", status, text, http.StatusCreated, "")
	status, text = c.putManifest("dr", "s.shop.2", manifest("2"))
	c.want("the same manifest comes back", status, text, http.StatusCreated, "")
	status, body, _ = c.do("DELETE", "/v2/dr/manifests/e.shop.9", nil)
	c.want("delete what is not there", status, body, http.StatusNotFound, "")
	status, text = c.putManifest("dr", "e.shop.9", manifest("9"))
	c.want("which used up nothing", status, text, http.StatusConflict, `"reason":"gap"`)
}

func TestDeleteByDigest(t *testing.T) {
	t.Parallel()
	c := newClient(t, registrytest.Start(t, plain))
	c.putBlob("dr", []byte("{}"))
	body := manifest("x")
	d := digest.FromBytes(body).String()
	for _, tag := range []string{"s.shop.1", "latest"} {
		c.putManifest("dr", tag, body)
	}
	status, text, _ := c.do("DELETE", "/v2/dr/manifests/"+d, nil)
	c.want("while a tag names it", status, text, http.StatusConflict, "s.shop.1")
	if c.tag("dr", "s.shop.1") != d || c.tag("dr", "latest") != d {
		t.Error("a refused deletion changed something")
	}
	status, text, _ = c.do("DELETE", "/v2/dr/manifests/s.shop.1", nil)
	c.want("delete the tag", status, text, http.StatusAccepted, "")
	status, text, _ = c.do("DELETE", "/v2/dr/manifests/"+d, nil)
	c.want("then the manifest", status, text, http.StatusAccepted, "")
	if got := c.tag("dr", "latest"); got != "" {
		t.Errorf("ordinary tag is left dangling: %s", got)
	}
}

// TestDeleteRace: a tag that is written while its manifest is deleted by digest
// either keeps it or is refused; it never names nothing (invariant 1).
func TestDeleteRace(t *testing.T) {
	t.Parallel()
	c := newClient(t, registrytest.Start(t, plain))
	c.putBlob("dr", []byte("{}"))
	for i := 1; i <= 20; i++ {
		body := manifest(fmt.Sprint(i))
		d := digest.FromBytes(body).String()
		c.putManifest("dr", "latest", body)
		tag := fmt.Sprintf("s.shop.%d", i)
		var wg sync.WaitGroup
		var put, deleted int
		wg.Go(func() { put, _ = c.putManifest("dr", tag, body) })
		wg.Go(func() { deleted, _, _ = c.do("DELETE", "/v2/dr/manifests/"+d, nil) })
		wg.Wait()
		if put != http.StatusCreated {
			t.Fatalf("put: %d (delete: %d)", put, deleted)
		}
		status, _, _ := c.do("GET", "/v2/dr/manifests/"+tag, nil, "Accept", manifestType)
		if status != http.StatusOK {
			t.Fatalf("round %d: tag was acknowledged, but reading it gives %d (delete: %d)", i, status, deleted)
		}
	}
}

const roles = `
main: {role: writer, names: ["dr/*"], systems: [shop]}
stand-in: {role: standby, names: ["dr/*"], systems: [shop]}
auditor: {role: reader, names: ["dr/prod"]}
admin: {role: operator}
`

func startWithRoles(t *testing.T) *client {
	r := registrytest.Start(t, plain, withUsers(t, roles, "main", "stand-in", "auditor", "admin"))
	c := newClient(t, r)
	c.as("admin").putBlob("dr/prod", []byte("{}"))
	return c
}

func TestRolesOverHTTP(t *testing.T) {
	t.Parallel()
	c := startWithRoles(t)
	put := func(user, tag, note string, want int, says string) {
		t.Helper()
		status, text := c.as(user).putManifest("dr/prod", tag, manifest(note))
		c.want(user+" "+tag, status, text, want, says)
	}
	put("main", "key.1", "k", http.StatusForbidden, "class key")
	put("main", "host.1", "k", http.StatusForbidden, "class host")
	put("admin", "key.1", "k", http.StatusCreated, "")
	put("main", "s.shop.1", "s", http.StatusCreated, "")
	put("main", "s.blog.1", "s", http.StatusForbidden, "system blog")
	put("main", "latest", "one", http.StatusCreated, "")
	put("main", "latest", "two", http.StatusForbidden, "does not move")
	put("admin", "latest", "two", http.StatusCreated, "")
	put("auditor", "s.shop.2", "s", http.StatusForbidden, "does not write")

	// The standby writes once it has claimed the newest epoch, and no longer.
	put("stand-in", "s.shop.2", "s", http.StatusForbidden, "claimed the newest epoch")
	put("main", "e.shop.1", "main", http.StatusCreated, "")
	put("stand-in", "s.shop.2", "s", http.StatusForbidden, "claimed the newest epoch")
	put("stand-in", "e.shop.2", "stand-in", http.StatusCreated, "")
	put("stand-in", "s.shop.2", "s2", http.StatusCreated, "")
	put("stand-in", "s.blog.1", "s", http.StatusForbidden, "system blog")
	put("main", "e.shop.3", "main", http.StatusCreated, "")
	put("stand-in", "s.shop.3", "s3", http.StatusForbidden, "claimed the newest epoch")
	// A claim that was refused counts for nothing.
	put("stand-in", "e.shop.3", "stand-in", http.StatusConflict, "immutable")
	put("stand-in", "s.shop.3", "s3", http.StatusForbidden, "claimed the newest epoch")
	put("stand-in", "latest", "x", http.StatusForbidden, "only tags of a repository")

	for _, user := range []string{"main", "stand-in", "auditor"} {
		for _, path := range []string{"/v2/dr/prod/manifests/s.shop.1", "/v2/dr/prod/manifests/" + digest.FromBytes(manifest("s")).String(), "/v2/dr/prod/blobs/" + digest.FromString("{}").String()} {
			status, text, _ := c.as(user).do("DELETE", path, nil)
			c.want(user+" deletes "+path, status, text, http.StatusForbidden, "does not delete")
		}
	}
	status, text, _ := c.as("auditor").do("POST", "/v2/dr/prod/blobs/uploads/", nil)
	c.want("reader uploads", status, text, http.StatusForbidden, "does not write")
	status, text, _ = c.as("auditor").do("GET", "/v2/dr/prod/tags/list", nil)
	c.want("reader lists", status, text, http.StatusOK, "s.shop.1")
}

func TestNamesAreSeparate(t *testing.T) {
	t.Parallel()
	c := startWithRoles(t)
	secret := c.as("admin").putBlob("other/secret", []byte("secret"))
	c.as("admin").putBlob("other/secret", []byte("{}"))
	c.as("admin").putManifest("other/secret", "latest", manifest("x"))
	for _, path := range []string{"/v2/other/secret/tags/list", "/v2/other/secret/blobs/" + secret.String(), "/v2/dr/a/b/tags/list"} {
		status, text, _ := c.as("main").do("GET", path, nil)
		c.want(path, status, text, http.StatusForbidden, "no access to name")
	}
	// Mounting a blob from a name is reading it, wherever the request says so.
	for what, f := range map[string]func() (int, string, http.Header){
		"in the query": func() (int, string, http.Header) {
			return c.as("main").do("POST", "/v2/dr/prod/blobs/uploads/?mount="+secret.String()+"&from=other/secret", nil)
		},
		"twice in the query": func() (int, string, http.Header) {
			return c.as("main").do("POST", "/v2/dr/prod/blobs/uploads/?mount="+secret.String()+"&from=dr/prod&from=other/secret", nil)
		},
	} {
		status, text, _ := f()
		c.want(what, status, text, http.StatusForbidden, "other/secret")
	}
	status, _, _ := c.as("main").do("POST", "/v2/dr/prod/blobs/uploads/", []byte("mount="+secret.String()+"&from=other/secret"), "Content-Type", "application/x-www-form-urlencoded")
	if status != http.StatusAccepted {
		t.Errorf("mount in a form: %d, want an ordinary upload", status)
	}
	status, _, _ = c.as("main").do("HEAD", "/v2/dr/prod/blobs/"+secret.String(), nil)
	if status != http.StatusNotFound {
		t.Errorf("blob of another name is there: %d", status)
	}
	status, text, _ := c.as("main").do("GET", "/v2/_catalog", nil)
	c.want("catalog", status, text, http.StatusForbidden, "every name")
	status, text, _ = c.as("admin").do("GET", "/v2/_catalog", nil)
	c.want("catalog of the operator", status, text, http.StatusOK, "other/secret")
	status, _, _ = c.as("admin").do("POST", "/v2/other/x/blobs/uploads/?mount="+secret.String()+"&from=other/secret", nil)
	if status != http.StatusCreated {
		t.Errorf("mount by the operator: %d", status)
	}
}

func TestOddRequests(t *testing.T) {
	t.Parallel()
	c := newClient(t, registrytest.Start(t, plain))
	d := c.putBlob("dr", []byte("{}"))
	c.putManifest("dr", "s.shop.1", manifest("x"))
	for _, r := range []struct {
		method, path string
		want         int
	}{
		{"GET", "/", 404},
		{"GET", "/v2/dr", 404},
		{"GET", "/v1/", 404},
		{"GET", "/v2/DR/tags/list", 404},
		{"PUT", "/v2/dr/blobs/uploads/..", 400},
		{"PUT", "/v2/dr/blobs/uploads/.", 400},
		{"DELETE", "/v2/dr/blobs/uploads/..", 400},
		{"PUT", "/v2/dr/blobs/uploads/...", 400},
		{"GET", "/v2/dr/blobs/uploads/%2e%2e", 400},
		{"GET", "/v2/../v2/dr/tags/list", 404},
		{"GET", "/v2/localhost:5000/dr/tags/list", 400},
		{"POST", "/v2/dr/manifests/s.shop.1", 405},
		{"PATCH", "/v2/dr/manifests/s.shop.1", 405},
		{"DELETE", "/v2/dr/tags/list", 405},
		{"PUT", "/v2/dr/blobs/" + d.String(), 405},
		{"PUT", "/v2/_catalog", 405},
		{"POST", "/v2/", 405},
		{"POST", "/healthz", 405},
		{"PUT", "/v2/dr/manifests/sha256:abc", 400},
		{"PUT", "/v2/dr/manifests/" + strings.Repeat("a", 129), 404},
		{"GET", "/healthz", 200},
	} {
		status, body, _ := c.do(r.method, r.path, nil)
		if status != r.want {
			t.Errorf("%s %s: %d %s, want %d", r.method, r.path, status, body, r.want)
		}
	}
	if c.tag("dr", "s.shop.1") == "" {
		t.Error("something was lost")
	}
}

func TestMissingBlobAndTooLarge(t *testing.T) {
	t.Parallel()
	c := newClient(t, registrytest.Start(t, plain))
	c.putBlob("dr", []byte("{}"))
	status, text := c.putManifest("dr", "s.shop.1", manifest("x", []byte("never sent")))
	c.want("missing blob", status, text, http.StatusBadRequest, "MANIFEST_BLOB_UNKNOWN")
	status, text = c.putManifest("dr", "s.shop.1", manifest(strings.Repeat("x", 4<<20)))
	c.want("too large", status, text, http.StatusRequestEntityTooLarge, "SIZE_INVALID")
	status, text = c.putManifest("dr", "s.shop.1", []byte("junk"))
	c.want("junk", status, text, http.StatusBadRequest, "MANIFEST_INVALID")
	if got := c.tag("dr", "s.shop.1"); got != "" {
		t.Errorf("tag exists: %s", got)
	}
}

// TestDeleteListedRace: an index that is written under a tag while a manifest
// that it lists is deleted either keeps it or is refused (invariant 2).
func TestDeleteListedRace(t *testing.T) {
	t.Parallel()
	c := newClient(t, registrytest.Start(t, plain))
	c.putBlob("dr", []byte("{}"))
	for i := 1; i <= 20; i++ {
		body := manifest(fmt.Sprint("child ", i))
		d := digest.FromBytes(body)
		c.putManifest("dr", d.String(), body) // without a tag, as a collector leaves it
		index := fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[{"mediaType":%q,"digest":%q,"size":%d}]}`, manifestType, d, len(body))
		tag := fmt.Sprintf("s.race.%d", i)
		var wg sync.WaitGroup
		var put, deleted int
		wg.Go(func() {
			put, _, _ = c.do("PUT", "/v2/dr/manifests/"+tag, index, "Content-Type", "application/vnd.oci.image.index.v1+json")
		})
		wg.Go(func() { deleted, _, _ = c.do("DELETE", "/v2/dr/manifests/"+d.String(), nil) })
		wg.Wait()
		status, _, _ := c.do("GET", "/v2/dr/manifests/"+d.String(), nil, "Accept", manifestType)
		if (put == http.StatusCreated) != (status == http.StatusOK) || (deleted == http.StatusAccepted) == (put == http.StatusCreated) {
			t.Fatalf("round %d: index %d, deletion %d, manifest afterwards %d", i, put, deleted, status)
		}
		if put != http.StatusCreated { // numbers have no gaps
			again := manifest(fmt.Sprint("filler ", i))
			if s, text := c.putManifest("dr", tag, again); s != http.StatusCreated {
				t.Fatalf("filler: %d %s", s, text)
			}
		}
	}
}
