package main

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"lifeboat/internal/registry/registrytest"
)

type inPlaceAnswer struct {
	Entries, Changed, Removed, Fetched int64
	Lost                               []lossRow
}

// TestRestoreInPlace: a directory that is there is brought to a snapshot's state; what
// the snapshot does not have stays unless it may go, and nothing beside --path is
// touched (invariant 8: again with the same command).
func TestRestoreInPlace(t *testing.T) {
	t.Parallel()
	reg, p := registrytest.Start(t), newPlace(t)
	p.run(0, "init", "--repo", reg.URL("dr"), "--fingerprint", reg.Fingerprint, "--site", "main", "--kit", p.path("kit.txt"))
	files := map[string]string{"a": strings.Repeat("a", 100_000), "d/b": strings.Repeat("b", 50_000), "d/c": "c"}
	p.storeFiles(reg, "shop", "sha256:aa", files)
	to := filepath.Join(t.TempDir(), "volume")
	args := []string{"restore", "shop", "--volume", "data", "--to", to}
	p.do(0, &inPlaceAnswer{}, args...)
	write := func(name, content string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(to, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	have := maps.Clone(files)
	write("d/c", "changed")
	write("a", "changed")
	write("extra", "mine")
	have["a"], have["d/c"], have["extra"] = "changed", "changed", "mine"
	now := func() {
		t.Helper()
		mustHoldFiles(t, to, have, slices.Sorted(maps.Keys(have)))
	}
	stderr := p.do(codeUsage, &struct{}{}, args...)
	if !strings.Contains(stderr, "--in-place") {
		t.Error(stderr)
	}
	p.do(codeUsage, &struct{}{}, append(args, "--delete")...)
	p.do(codeUsage, &struct{}{}, append(args, "--while-running")...)
	now()
	var ans inPlaceAnswer
	p.do(0, &ans, append(args, "--in-place", "--delete", "--path", "d/c")...)
	have["d/c"] = files["d/c"]
	now()
	if ans.Changed != 1 || ans.Removed != 0 || ans.Fetched != 1 {
		t.Errorf("%+v", ans)
	}
	ans = inPlaceAnswer{}
	p.do(0, &ans, append(args, "--in-place")...)
	have["a"] = files["a"]
	now()
	// The directory itself counts: its time is another since a name was added.
	if ans.Entries != 0 || ans.Changed != 2 || ans.Removed != 0 {
		t.Errorf("%+v", ans)
	}
	p.do(0, &ans, append(args, "--in-place", "--delete")...)
	delete(have, "extra")
	now()
	ans = inPlaceAnswer{}
	p.do(0, &ans, append(args, "--in-place", "--delete")...)
	if ans.Entries+ans.Changed+ans.Removed+ans.Fetched != 0 {
		t.Errorf("nothing was to do: %+v", ans)
	}
}

// TestRestoreInPlaceStopsAtDamage: over what is there nothing is written that is not
// whole, and a file that cannot be had is not taken away.
func TestRestoreInPlaceStopsAtDamage(t *testing.T) {
	t.Parallel()
	reg, p := registrytest.Start(t), newPlace(t)
	p.run(0, "init", "--repo", reg.URL("dr"), "--fingerprint", reg.Fingerprint, "--site", "main", "--kit", p.path("kit.txt"))
	files := map[string]string{}
	for i := range 25 { // the last pack, with the root record, is not among the largest
		content := make([]byte, 800<<10)
		_, _ = rand.NewChaCha8([32]byte{byte(i), 4}).Read(content)
		files[fmt.Sprintf("f%02d", i)] = string(content)
	}
	p.storeFiles(reg, "shop", "sha256:aa", files)
	p.do(0, &struct{}{}, "snapshots", "shop")
	to := t.TempDir()
	for name := range files {
		if err := os.WriteFile(filepath.Join(to, name), []byte("old "+name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	pack := packFiles(t, reg)[0]
	sound, err := os.ReadFile(pack)
	if err == nil {
		err = os.Remove(pack)
	}
	if err != nil {
		t.Fatal(err)
	}
	args := []string{"restore", "shop@#1", "--volume", "data", "--to", to, "--in-place"}
	stderr := p.do(codeFailed, &struct{}{}, args...)
	for _, want := range []string{"repair --from", "some of what it held", "without --in-place"} {
		if !strings.Contains(stderr, want) {
			t.Errorf("%q is missing in\n%s", want, stderr)
		}
	}
	for name := range files {
		if _, err := os.Stat(filepath.Join(to, name)); err != nil {
			t.Error(err)
		}
	}
	if err := os.WriteFile(pack, sound, 0o600); err != nil {
		t.Fatal(err)
	}
	p.do(0, &struct{}{}, args...)
	mustHoldFiles(t, to, files, slices.Sorted(maps.Keys(files)))
}
