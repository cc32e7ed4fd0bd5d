package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"filippo.io/age"

	"lifeboat/internal/dr"
	"lifeboat/internal/registry"
	"lifeboat/internal/registry/registrytest"
	"lifeboat/internal/repo"
	"lifeboat/internal/store/ocistore"
)

// withRoles starts a registry with an operator and a writer.
func withRoles(t *testing.T) *registrytest.Registry {
	t.Helper()
	dir := t.TempDir()
	users, roles := filepath.Join(dir, "htpasswd"), filepath.Join(dir, "roles.yaml")
	for _, name := range []string{"admin", "main"} {
		if err := registry.SetPassword(users, name, []byte(name+" secret")); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(roles, []byte("admin: {role: operator}\nmain: {role: writer}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return registrytest.Start(t, func(c *registry.Config) { c.Htpasswd, c.Roles = users, roles })
}

// store takes snapshots of a system with its host's own key, an hour apart.
func (p place) store(reg *registrytest.Registry, system dr.System, n int) {
	p.t.Helper()
	ctx := p.t.Context()
	o := reg.Options()
	o.Username, o.Password = "admin", "admin secret"
	st, err := ocistore.Open(ctx, reg.URL("dr"), o)
	if err != nil {
		p.t.Fatal(err)
	}
	raw, err := os.ReadFile(p.config().KeyFile)
	if err != nil {
		p.t.Fatal(err)
	}
	ids, err := age.ParseIdentities(strings.NewReader(string(raw)))
	if err != nil {
		p.t.Fatal(err)
	}
	key, err := repo.LoadOrCreateHostKey(p.t.TempDir())
	if err != nil {
		p.t.Fatal(err)
	}
	r, err := repo.Open(ctx, st, repo.OpenOptions{Identities: ids, Host: key, HostName: "main"})
	if err != nil {
		p.t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	for i := range n {
		w, err := r.NewWriter(ctx, repo.WriterOptions{System: system})
		if err != nil {
			p.t.Fatal(err)
		}
		ref, err := w.Put(ctx, []byte(strings.Repeat(string(system), 1000*(i+1))))
		if err != nil {
			p.t.Fatal(err)
		}
		root := &dr.Root{
			Site: "main", Kind: dr.KindCurrent, Consistency: dr.ConsistentCrash, Created: time.Now().Add(-time.Duration(n-i) * time.Hour),
			Trees: []dr.Tree{{Key: "volume:data", Kind: dr.TreeVolume, Catalog: []dr.UnitRef{ref}, Entries: 1}},
		}
		if _, err := w.Commit(ctx, root, repo.CommitInfo{}); err != nil {
			p.t.Fatal(err)
		}
		w.Close()
	}
}

// do runs a command that shall end with code, and decodes its answer.
func (p place) do(code int, answer any, args ...string) string {
	p.t.Helper()
	got, out, errs := call(p.env, append(args, "--json")...)
	if got != code {
		p.t.Fatalf("%v: exit code %d, want %d\n%s%s", args, got, code, out, errs)
	}
	// A command that failed half way answers, and then tells the error.
	dec := json.NewDecoder(strings.NewReader(out))
	if err := dec.Decode(answer); err != nil {
		p.t.Fatalf("%v: %v\n%s", args, err, out)
	}
	return errs
}

func TestForgetAndGC(t *testing.T) {
	t.Parallel()
	reg, p := withRoles(t), newPlace(t)
	p.run(0, "init", "--repo", reg.URL("dr"), "--fingerprint", reg.Fingerprint, "--username", "admin",
		"--password-file", p.write("admin", "admin secret\n"), "--site", "main", "--kit", p.path("kit.txt"))
	p.store(reg, "shop", 5)
	p.store(reg, "blog", 2)

	var plan, done forgetAnswer
	p.do(codeUsage, &struct{}{}, "forget", "shop")
	p.do(codeUsage, &struct{}{}, "forget", "shop", "--keep-last", "x")
	p.do(codeNotFound, &struct{}{}, "forget", "nosuch", "--keep-last", "1")
	p.do(0, &plan, "forget", "shop", "--keep-last", "2", "--dry-run")
	count := func(a forgetAnswer, keep bool) (n int) {
		for _, s := range a.Snapshots {
			if s.Keep == keep && (s.Removed == (!keep && !a.DryRun)) && (len(s.Reasons) > 0) == keep {
				n++
			}
		}
		return n
	}
	if count(plan, true) != 2 || count(plan, false) != 3 {
		t.Fatalf("%+v", plan)
	}

	// A writer's login removes nothing.
	cfg, err := os.ReadFile(p.env["LIFEBOAT_CONFIG"])
	if err != nil {
		t.Fatal(err)
	}
	weak := strings.ReplaceAll(strings.ReplaceAll(string(cfg), "username: admin", "username: main"), p.path("admin"), p.write("main", "main secret\n"))
	p.write("etc/lifeboat.yaml", weak)
	var refused forgetAnswer
	if errs := p.do(codeFailed, &refused, "forget", "shop", "--keep-last", "2"); !strings.Contains(errs, "role writer does not delete") || !strings.Contains(errs, "operator") {
		t.Errorf("%s", errs)
	}

	// The policy of the configuration, one of them for one system.
	p.write("etc/lifeboat.yaml", string(cfg)+"\nkeep: {last: 1}\nsystems: {shop: {project: shop, keep: {last: 2}}}\n")
	p.do(0, &done, "forget")
	if count(done, true) != 3 || count(done, false) != 4 {
		t.Fatalf("%+v", done)
	}
	var first, second gcAnswer
	p.do(0, &first, "gc")
	if first.Needed != 3 || len(first.Manifests) != 4 || first.Bytes["young"] == 0 || !first.Reclaims {
		t.Fatalf("%+v", first)
	}
	p.do(0, &second, "gc", "--grace", "0s")
	if len(second.Manifests) != 4 || second.Bytes["removed"] != first.Bytes["young"] {
		t.Fatalf("%+v", second)
	}
	p.do(0, &second, "gc", "--grace", "0s")
	var rest, verified struct{ Problems []string }
	p.do(0, &rest, "check")
	p.do(0, &verified, "verify")
	if code, out, _ := call(p.env, "forget"); code != 0 || !strings.Contains(out, "kept") {
		t.Errorf("%d\n%s", code, out)
	}
	if code, out, _ := call(p.env, "gc"); code != 0 || !strings.Contains(out, "needed") {
		t.Errorf("%d\n%s", code, out)
	}
}
