package main

import (
	"encoding/json"
	"fmt"
	mathrand "math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"filippo.io/age"

	"lifeboat/internal/catalog"
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
	var parent *repo.Snapshot
	for i := range n {
		w, err := r.NewWriter(ctx, repo.WriterOptions{System: system, Parent: parent, Exact: true})
		if err != nil {
			p.t.Fatal(err)
		}
		b := catalog.NewBuilder(w, r.CutKey(), r.UnitID)
		entries := []catalog.Entry{{Type: catalog.Directory, Mode: 0o755}}
		for k := range 24 { // a file of the first snapshot stays in all of them
			data := make([]byte, 1<<20)
			_, _ = mathrand.NewChaCha8([32]byte{byte(k), byte(min(k, 1) * i), system[0]}).Read(data)
			ref, err := w.Put(ctx, data)
			if err != nil {
				p.t.Fatal(err)
			}
			entries = append(entries, catalog.Entry{
				Path: fmt.Sprintf("%02d", k), Type: catalog.File, Mode: 0o644, Size: int64(ref.Len), Refs: []catalog.Ref{{ID: ref.ID, Len: int64(ref.Len)}},
			})
		}
		for _, e := range entries {
			if err := b.Add(ctx, e); err != nil {
				p.t.Fatal(err)
			}
		}
		tree, err := b.Close(ctx)
		if err != nil {
			p.t.Fatal(err)
		}
		root := &dr.Root{
			Site: "main", Kind: dr.KindCurrent, Consistency: dr.ConsistentCrash, Created: time.Now().Add(-time.Duration(n-i) * time.Hour),
			Trees: []dr.Tree{{Key: "volume:data", Kind: dr.TreeVolume, Catalog: tree.Table, Entries: tree.Entries, Bytes: tree.Bytes}},
		}
		if parent, err = w.Commit(ctx, root, repo.CommitInfo{}); err != nil {
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
	// The first packs are needed for one file only. A locked snapshot keeps them.
	for _, args := range [][]string{{"--max-unused", "120%"}, {"--max-unused", "x"}, {"--max-repack", "-1"}, {"--max-repack", "0"}} {
		p.do(codeUsage, &struct{}{}, append([]string{"gc"}, args...)...)
	}
	var locked lockAnswer
	p.do(codeNotFound, &struct{}{}, "snapshots", "lock", "nosuch")
	p.do(0, &locked, "snapshots", "lock", "shop", "--reason", "a test")
	if !locked.Locked || locked.Number != 5 {
		t.Fatalf("%+v", locked)
	}
	var first, second gcAnswer
	p.do(0, &first, "gc", "--max-unused", "unlimited")
	if first.Needed == 0 || len(first.Manifests) == 0 || first.Bytes["young"] == 0 || !first.Reclaims || first.Compaction != nil {
		t.Fatalf("%+v", first)
	}
	p.do(0, &second, "gc", "--dry-run")
	if c := second.Compaction; c == nil || c.UnusedBytes < 20<<20 || c.Relocated > 0 {
		t.Fatalf("%+v", second.Compaction)
	}
	p.do(0, &second, "gc")
	if c := second.Compaction; c == nil || c.Rewritten == 0 || c.Relocated == 0 {
		t.Fatalf("%+v", second.Compaction)
	}
	var listed listing
	p.do(0, &listed, "snapshots")
	for _, s := range listed.Snapshots {
		if s.Locked != (s.System == "shop" && s.Number == 5) {
			t.Errorf("%+v", s)
		}
	}
	p.do(0, &locked, "snapshots", "unlock", "shop")
	p.do(0, &second, "gc", "--grace", "0s")
	if c := second.Compaction; c == nil || c.Relocated == 0 || second.Bytes["removed"] < 20<<20 {
		t.Fatalf("%+v, %+v", second, second.Compaction)
	}
	p.do(0, &second, "gc", "--grace", "0s")
	if c := second.Compaction; c == nil || !c.Unchanged && c.Rewritten > 0 {
		t.Fatalf("%+v", second.Compaction)
	}
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
