package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"lifeboat/internal/registry/registrytest"
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

// TestRepairLeadsOnInOrder: nothing is accepted before it was looked for, nothing can be
// given up before it was accepted, and no command is named twice.
func TestRepairLeadsOnInOrder(t *testing.T) {
	t.Parallel()
	reg, p := withRoles(t), newPlace(t)
	p.run(0, "init", "--repo", reg.URL("dr"), "--fingerprint", reg.Fingerprint, "--username", "admin",
		"--password-file", p.write("admin", "admin secret\n"), "--site", "main", "--kit", p.path("kit.txt"))
	p.store(reg, "shop", 3)
	p.do(0, &listing{}, "snapshots")
	if err := os.Truncate(manifestFile(t, reg, "s.shop.3"), 9); err != nil {
		t.Fatal(err)
	}
	var left said
	p.do(codeFailed, &left, "repair")
	rest := left.next()
	for _, want := range []string{"find out", "lifeboat repair --from URL", "lifeboat snapshot SYSTEM", "lifeboat snapshots --accept-older", "lifeboat repair --drop-damaged"} {
		_, after, ok := strings.Cut(rest, want)
		if !ok || strings.Contains(after, want) {
			t.Errorf("%q is missing, twice, or not in its place: %q", want, left.Error.Next)
		}
		rest = after
	}
}

// manifestFile is where the registry keeps what a tag names.
func manifestFile(t *testing.T, reg *registrytest.Registry, tag string) string {
	t.Helper()
	root := filepath.Join(reg.Data, "store/docker/registry/v2")
	named, err := os.ReadFile(filepath.Join(root, "repositories/dr/_manifests/tags", tag, "current/link"))
	if err != nil {
		t.Fatal(err)
	}
	d := strings.TrimPrefix(string(named), "sha256:")
	return filepath.Join(root, "blobs/sha256", d[:2], d, "data")
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
	if err := os.Truncate(manifestFile(t, reg, "l.shop.1.1"), 9); err != nil {
		t.Fatal(err)
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
