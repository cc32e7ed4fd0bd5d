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

// cutOff leaves a restore of #1 in place that was cut off, into a directory of its own,
// and stores a second snapshot.
func cutOff(t *testing.T) (reg *registrytest.Registry, p place, to string, one, two map[string]string) {
	t.Helper()
	reg, p = registrytest.Start(t), newPlace(t)
	p.run(0, "init", "--repo", reg.URL("dr"), "--fingerprint", reg.Fingerprint, "--site", "main", "--kit", p.path("kit.txt"))
	one, two = map[string]string{}, map[string]string{}
	for i := range 25 {
		content := make([]byte, 800<<10)
		_, _ = rand.NewChaCha8([32]byte{byte(i), 5}).Read(content)
		one[fmt.Sprintf("f%02d", i)] = string(content)
		two[fmt.Sprintf("f%02d", i+1)] = fmt.Sprint("another ", i)
	}
	p.storeFiles(reg, "shop", "sha256:aa", one)
	p.do(0, &struct{}{}, "snapshots", "shop")
	to = t.TempDir()
	pack := packFiles(t, reg)[0]
	sound, err := os.ReadFile(pack)
	if err == nil {
		err = os.Remove(pack)
	}
	if err != nil {
		t.Fatal(err)
	}
	stderr := p.do(codeFailed, &struct{}{}, "restore", "shop", "--volume", "data", "--to", to, "--in-place", "--delete")
	if want := "lifeboat restore shop@#1 --volume data --to " + to + " --in-place --delete"; !strings.Contains(stderr, want) {
		t.Errorf("%q is missing in\n%s", want, stderr)
	}
	if err := os.WriteFile(pack, sound, 0o600); err != nil {
		t.Fatal(err)
	}
	p.storeFiles(reg, "shop", "sha256:bb", two)
	return reg, p, to, one, two
}

// TestRestoreInPlaceTakesOver: after another snapshot was taken, the command that was
// cut off brings the directory to that one; where it may take nothing away it is refused,
// with a command that goes on and one that takes over, both as they are typed.
func TestRestoreInPlaceTakesOver(t *testing.T) {
	t.Parallel()
	_, p, to, one, two := cutOff(t)
	before := marksIn(t, to, map[string]string{})
	args := []string{"restore", "shop", "--volume", "data", "--to", to, "--in-place"}
	goesOn := "lifeboat restore shop@#1 --volume data --to " + to + " --in-place --delete"
	takesOver := "lifeboat restore shop@#2 --volume data --to " + to + " --in-place --delete"
	for _, refused := range [][]string{args, slices.Clone(args[:6])} {
		stderr := p.do(codeUsage, &struct{}{}, refused...)
		for _, want := range []string{goesOn + " ", takesOver + " ", "rm " + filepath.Join(to, before[0])} {
			if !strings.Contains(stderr, want) {
				t.Errorf("%q is missing in\n%s", want, stderr)
			}
		}
	}
	// Of the rest nothing is known when only a path is restored: it stays marked.
	stderr := p.do(codePartial, &struct{}{}, append(slices.Clone(args), "--delete", "--path", "f03")...)
	if !strings.Contains(stderr, goesOn) || !strings.Contains(stderr, takesOver) || !strings.Contains(stderr, "still marked") {
		t.Error(stderr)
	}
	if got, err := os.ReadFile(filepath.Join(to, "f03")); err != nil || string(got) != two["f03"] {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if after := marksIn(t, to, map[string]string{}); after[0] != before[0] {
		t.Errorf("%v, %v", after, before)
	}
	// What was advised is run as it is written.
	p.do(0, &struct{}{}, strings.Fields(goesOn)[1:]...)
	mustHoldFiles(t, to, one, slices.Sorted(maps.Keys(one)))
	_, p, to, _, two = cutOff(t)
	p.do(0, &struct{}{}, "restore", "shop", "--volume", "data", "--to", to, "--in-place", "--delete")
	mustHoldFiles(t, to, two, slices.Sorted(maps.Keys(two)))
}

// TestRestoreInPlaceAfterForget: the mark of a snapshot that was forgotten can be taken
// over, and no command is named that cannot run.
func TestRestoreInPlaceAfterForget(t *testing.T) {
	t.Parallel()
	_, p, to, _, two := cutOff(t)
	p.do(0, &struct{}{}, "forget", "shop", "--keep-last", "1")
	stderr := p.do(codeUsage, &struct{}{}, "restore", "shop", "--volume", "data", "--to", to, "--in-place")
	takesOver := "lifeboat restore shop@#2 --volume data --to " + to + " --in-place --delete"
	if !strings.Contains(stderr, takesOver) || strings.Contains(stderr, "shop@#1") || !strings.Contains(stderr, "any more") {
		t.Error(stderr)
	}
	p.do(0, &struct{}{}, strings.Fields(takesOver)[1:]...)
	mustHoldFiles(t, to, two, slices.Sorted(maps.Keys(two)))
}

// TestRestoreInPlaceBesideALink: what leads elsewhere on the way to a path is not
// touched, whatever may go; the advice is not what was given. All of the tree replaces it.
func TestRestoreInPlaceBesideALink(t *testing.T) {
	t.Parallel()
	reg, p := registrytest.Start(t), newPlace(t)
	p.run(0, "init", "--repo", reg.URL("dr"), "--fingerprint", reg.Fingerprint, "--site", "main", "--kit", p.path("kit.txt"))
	files := map[string]string{"d/x": "x"}
	p.storeFiles(reg, "shop", "sha256:aa", files)
	to, elsewhere := t.TempDir(), t.TempDir()
	if err := os.Symlink(elsewhere, filepath.Join(to, "d")); err != nil {
		t.Fatal(err)
	}
	args := []string{"restore", "shop", "--volume", "data", "--to", to, "--in-place"}
	for _, more := range [][]string{{"--path", "d/x"}, {"--path", "d/x", "--delete"}} {
		stderr := p.do(codeUsage, &struct{}{}, append(slices.Clone(args), more...)...)
		if !strings.Contains(stderr, "leads somewhere else") || strings.Contains(stderr, "--delete lets") || !strings.Contains(stderr, "without --path") {
			t.Error(stderr)
		}
	}
	p.do(0, &struct{}{}, args...)
	mustHoldFiles(t, to, files, []string{"d/x"})
	if left, err := os.ReadDir(elsewhere); err != nil || len(left) > 0 {
		t.Errorf("%v, %v", left, err)
	}
}

// TestRestoreOfHalfRestored: a snapshot that was taken of a half restored volume ends no
// restore, and is not restored without a word; the newest one that is whole is named.
func TestRestoreOfHalfRestored(t *testing.T) {
	t.Parallel()
	reg, p, to, one, two := cutOff(t)
	half := maps.Clone(two)
	half["mixture"] = "of both"
	p.storeHalf(reg, "shop", half)
	stderr := p.do(codeUsage, &struct{}{}, "restore", "shop", "--volume", "data", "--to", to, "--in-place", "--delete")
	for _, want := range []string{"restore shop@#1 --volume data --to " + to, "restore shop@#2 --volume data --to " + to, "shop@#3"} {
		if !strings.Contains(stderr, want) {
			t.Errorf("%q is missing in\n%s", want, stderr)
		}
	}
	marksIn(t, to, maps.Clone(one))
	out := filepath.Join(t.TempDir(), "out")
	stderr = p.do(codePartial, &struct{}{}, "restore", "shop", "--volume", "data", "--to", out)
	takesOver := "lifeboat restore shop@#2 --volume data --to " + out + " --in-place --delete"
	if !strings.Contains(stderr, takesOver) {
		t.Errorf("%q is missing in\n%s", takesOver, stderr)
	}
	mustHoldFiles(t, out, half, slices.Sorted(maps.Keys(half)))
	p.do(0, &struct{}{}, strings.Fields(takesOver)[1:]...)
	mustHoldFiles(t, out, two, slices.Sorted(maps.Keys(two)))
}
