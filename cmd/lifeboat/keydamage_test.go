package main

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"lifeboat/internal/registry/registrytest"
)

// flipManifests flips a bit in each stored manifest of an artifact type, and
// returns how many there were.
func flipManifests(t *testing.T, reg *registrytest.Registry, artifact string) (n int) {
	t.Helper()
	root := filepath.Join(reg.Data, "store", "docker", "registry", "v2", "blobs")
	err := filepath.WalkDir(root, func(name string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		b, err := os.ReadFile(name)
		if err != nil || !bytes.Contains(b, []byte(artifact)) {
			return err
		}
		n++
		b[len(b)-20] ^= 1
		return os.WriteFile(name, b, 0o600)
	})
	if err != nil || n == 0 {
		t.Fatalf("%d manifests, %v", n, err)
	}
	return n
}

// The only key record is damaged at the registry: other commands say what to do or
// go on with what this host keeps, and repair opens the repository by the mirror.
func TestRepairOfKeyRecord(t *testing.T) {
	t.Parallel()
	reg, p := withRoles(t), newPlace(t)
	p.run(0, "init", "--repo", reg.URL("dr"), "--fingerprint", reg.Fingerprint, "--username", "admin",
		"--password-file", p.write("admin", "admin secret\n"), "--site", "main", "--kit", p.path("kit.txt"))
	p.store(reg, "shop", 2)
	mirror := copyRegistry(t, reg)
	const key = "application/vnd.lifeboat.key.v1"

	flipManifests(t, reg, key)
	if stderr := p.run(0, "snapshots", "shop").stderr; !strings.Contains(stderr, "key.1") || !strings.Contains(stderr, "lifeboat repair") {
		t.Errorf("with what this host keeps:\n%s", stderr)
	}
	if removed := p.dropKept(); removed != 1 {
		t.Fatalf("%d key records were kept", removed)
	}
	if stderr := p.run(1, "snapshots", "shop").stderr; !strings.Contains(stderr, "lifeboat repair --from") {
		t.Errorf("without:\n%s", stderr)
	}
	p.run(1, "repair")
	var done repairAnswer
	p.do(0, &done, "repair", "--from", mirror.URL("dr"))
	if len(done.Steps) != 1 || done.Steps[0].Tag != "key.1" || done.Steps[0].Error != "" {
		t.Fatalf("%+v", done.Steps)
	}
	p.do(0, &checkAnswer{}, "check")

	// The damage is at the mirror: the other way round.
	flipManifests(t, mirror, key)
	p.do(0, &done, "repair", "--repo", mirror.URL("dr"), "--from", reg.URL("dr"))
	if len(done.Steps) == 0 || done.Steps[0].Tag != "key.1" || done.Steps[0].Error != "" {
		t.Fatalf("%+v", done.Steps)
	}
	p.do(0, &checkAnswer{}, "check", "--repo", mirror.URL("dr"))
}

// dropKept removes the key records that a host keeps.
func (p place) dropKept() (removed int) {
	p.t.Helper()
	err := filepath.WalkDir(p.dir, func(name string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() && filepath.Base(filepath.Dir(name)) == "keys" {
			removed++
			err = os.Remove(name)
		}
		return err
	})
	if err != nil {
		p.t.Fatal(err)
	}
	return removed
}

// The newest key record is gone at the registry: each command leads to repair, which
// puts it back from this host or from the mirror; accepting an older state does not
// give it up.
func TestRepairOfNewestKeyRecord(t *testing.T) {
	t.Parallel()
	reg, p := withRoles(t), newPlace(t)
	p.run(0, "init", "--repo", reg.URL("dr"), "--fingerprint", reg.Fingerprint, "--username", "admin",
		"--password-file", p.write("admin", "admin secret\n"), "--site", "main", "--kit", p.path("kit.txt"))
	for _, tt := range []struct {
		newest string
		change []string
	}{
		{"key.2", []string{"kit", "--out", p.path("second.txt")}}, // the same key generation
		{"key.3", []string{"key", "rotate"}},
	} {
		p.run(0, tt.change...)
		p.store(reg, "shop", 1)
		mirror := copyRegistry(t, reg)
		p.lose(reg, tt.newest)
		for _, args := range [][]string{{"snapshots"}, {"key", "rotate"}, {"snapshots", "--accept-older"}} {
			var refused said
			p.do(codeFailed, &refused, args...)
			if !strings.Contains(refused.next(), "lifeboat repair  (") || !strings.Contains(refused.Error.Message, tt.newest) {
				t.Errorf("%v: %+v", args, refused.Error)
			}
		}
		var done repairAnswer
		p.do(0, &done, "repair", "--dry-run")
		p.do(0, &done, "repair")
		if len(done.Steps) != 1 || done.Steps[0].Tag != tt.newest || done.Steps[0].Error != "" {
			t.Fatalf("%+v", done.Steps)
		}
		p.do(0, &checkAnswer{}, "check")

		p.lose(reg, tt.newest)
		if p.dropKept() == 0 {
			t.Fatal("no key record was kept")
		}
		if stderr := p.run(1, "repair").stderr; !strings.Contains(stderr, "repair --from URL") {
			t.Errorf("without a copy:\n%s", stderr)
		}
		p.do(0, &done, "repair", "--from", mirror.URL("dr"))
		if len(done.Steps) != 1 || done.Steps[0].Tag != tt.newest || done.Steps[0].Error != "" {
			t.Fatalf("%+v", done.Steps)
		}
		p.do(0, &checkAnswer{}, "check")
	}
}

// Snapshots are sealed with a key that nothing here has any more, and the operator has
// accepted that: the keys are not changed unasked, because a mirror may still have it.
func TestKeysAreNotChangedBesideANewerKey(t *testing.T) {
	t.Parallel()
	reg, p := withRoles(t), newPlace(t)
	p.run(0, "init", "--repo", reg.URL("dr"), "--fingerprint", reg.Fingerprint, "--username", "admin",
		"--password-file", p.write("admin", "admin secret\n"), "--site", "main", "--kit", p.path("kit.txt"))
	p.store(reg, "shop", 1)
	p.run(0, "key", "rotate")
	p.store(reg, "shop", 1)
	p.do(0, &listing{}, "snapshots")
	mirror := copyRegistry(t, reg)
	p.lose(reg, "key.2")
	p.dropKept()
	if _, _, errs := call(p.env, "snapshots", "--accept-older"); !strings.Contains(errs, "key records after number 1 are given up") || !strings.Contains(errs, "lifeboat repair --from") {
		t.Errorf("%s", errs)
	}
	for _, args := range [][]string{{"key", "rotate"}, {"kit", "--out", p.path("new.txt")}} {
		var refused said
		p.do(codeUsage, &refused, args...)
		if !strings.Contains(refused.Error.Message, "s.shop.2") || !strings.Contains(refused.next(), "lifeboat repair --from") || !strings.Contains(refused.next(), "--yes") {
			t.Errorf("%v: %+v", args, refused.Error)
		}
	}
	p.do(0, &repairAnswer{}, "repair", "--from", mirror.URL("dr"))
	p.run(0, "key", "rotate")
	var list listing
	if p.do(0, &list, "snapshots"); len(list.Snapshots) != 2 {
		t.Errorf("%+v", list)
	}
}
