package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestRepairOfMuchDamage: where most snapshots lose something at once the registry has
// lost its data, and giving them up is not what is advised; where it is done all the
// same, it is said what went.
func TestRepairOfMuchDamage(t *testing.T) {
	t.Parallel()
	reg, p := withRoles(t), newPlace(t)
	p.run(0, "init", "--repo", reg.URL("dr"), "--fingerprint", reg.Fingerprint, "--username", "admin",
		"--password-file", p.write("admin", "admin secret\n"), "--site", "main", "--kit", p.path("kit.txt"))
	p.store(reg, "shop", 4)
	p.do(0, &listing{}, "snapshots")
	for _, name := range packFiles(t, reg) {
		if err := os.Truncate(name, 100); err != nil {
			t.Fatal(err)
		}
	}
	var left said
	p.do(codeFailed, &left, "repair")
	if next := left.next(); strings.Contains(next, "--drop-damaged") || !strings.Contains(next, "of 4 of 4 snapshots") {
		t.Errorf("%q", next)
	}
	if !strings.Contains(left.Error.State, "nothing was removed") {
		t.Errorf("%q", left.Error.State)
	}
	p.do(codePartial, &left, "repair", "--drop-damaged")
	if strings.Contains(left.Error.State, "nothing was removed") || !strings.Contains(left.Error.State, "3 thing(s)") {
		t.Errorf("%q", left.Error.State)
	}
}

// TestUnlockOfAnUnreadLock: a lock whose record cannot be read is not denied, and ends
// when that is asked for.
func TestUnlockOfAnUnreadLock(t *testing.T) {
	t.Parallel()
	reg, p := withRoles(t), newPlace(t)
	p.run(0, "init", "--repo", reg.URL("dr"), "--fingerprint", reg.Fingerprint, "--username", "admin",
		"--password-file", p.write("admin", "admin secret\n"), "--site", "main", "--kit", p.path("kit.txt"))
	p.store(reg, "shop", 3)
	p.do(0, &struct{}{}, "snapshots", "lock", "shop@#1")
	link := filepath.Join(reg.Data, "store/docker/registry/v2/repositories/dr/_manifests/tags/l.shop.1.1/current/link")
	named, err := os.ReadFile(link)
	if err != nil {
		t.Fatal(err)
	}
	d := strings.TrimPrefix(string(named), "sha256:")
	for _, name := range []string{link, filepath.Join(reg.Data, "store/docker/registry/v2/blobs/sha256", d[:2], d, "data")} {
		if err := os.Truncate(name, 9); err != nil {
			t.Fatal(err)
		}
	}
	var refused said
	p.do(codeFailed, &refused, "snapshots", "unlock", "shop@#1")
	if !strings.Contains(refused.next(), "lifeboat repair  (") || !strings.Contains(refused.next(), "--drop-damaged") {
		t.Errorf("%q", refused.next())
	}
	p.do(0, &struct{}{}, "gc")
	p.do(codeFailed, &refused, "repair")
	p.do(0, &repairAnswer{}, "repair", "--drop-damaged")
	p.do(0, &struct{}{}, "check")
	p.do(0, &struct{}{}, "snapshots", "unlock", "shop@#1")
}
