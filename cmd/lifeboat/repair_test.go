package main

import (
	"bytes"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"lifeboat/internal/registry"
	"lifeboat/internal/registry/registrytest"
	"lifeboat/internal/ui"
)

// flipStored flips a bit in the largest stored blobs of a registry, and returns
// their files with what they held.
func flipStored(t *testing.T, reg *registrytest.Registry, atLeast int64) map[string][]byte {
	t.Helper()
	out := map[string][]byte{}
	root := filepath.Join(reg.Data, "store", "docker", "registry", "v2", "blobs")
	err := filepath.WalkDir(root, func(name string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		b, err := os.ReadFile(name)
		if err != nil || int64(len(b)) < atLeast || !bytes.HasPrefix(b, []byte("LBPK")) {
			return err
		}
		out[name] = bytes.Clone(b)
		b[len(b)/2] ^= 1
		return os.WriteFile(name, b, 0o600)
	})
	if err != nil || len(out) == 0 {
		t.Fatalf("%d packs, %v", len(out), err)
	}
	return out
}

// copyRegistry starts a registry with the same data.
func copyRegistry(t *testing.T, reg *registrytest.Registry) *registrytest.Registry {
	t.Helper()
	to := registrytest.Start(t)
	to.Stop(t)
	from := filepath.Join(reg.Data, "store")
	if err := os.RemoveAll(filepath.Join(to.Data, "store")); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(filepath.Join(to.Data, "store"), os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
	return registrytest.Start(t, func(c *registry.Config) { c.Data, c.PlainHTTP = to.Data, true })
}

// toldBy is what repair says, in an order of its own: problems are found at the same
// time.
func toldBy(ans repairAnswer) []string {
	out := append([]string{fmt.Sprint(ans.Found, " problems found")}, ans.Problems...)
	for _, s := range ans.Steps {
		out = append(out, fmt.Sprintf("%+v", s))
	}
	for _, h := range ans.Hit {
		out = append(out, fmt.Sprint(h.Tag, h.Files, h.Bytes, h.Further, h.SameAs, len(h.Losses)))
	}
	slices.Sort(out)
	return out
}

// A bit flips in every pack of the registry: verify finds it, tells what is hit,
// and repair mends it from an exact copy, in the registry itself.
func TestVerifyAndRepair(t *testing.T) {
	t.Parallel()
	reg, p := withRoles(t), newPlace(t)
	p.run(0, "init", "--repo", reg.URL("dr"), "--fingerprint", reg.Fingerprint, "--username", "admin",
		"--password-file", p.write("admin", "admin secret\n"), "--site", "main", "--kit", p.path("kit.txt"))
	p.store(reg, "shop", 3)
	p.do(0, &struct{}{}, "snapshots", "shop") // which has commands below it
	mirror := copyRegistry(t, reg)
	var whole, found checkAnswer
	p.do(0, &whole, "verify", "--within", "30d")
	if whole.Read == nil || whole.Read.Read.Packs == 0 || whole.Read.All.Never.Packs == 0 || whole.Read.All.Overdue.Packs != 0 || len(whole.Read.Systems) != 1 {
		t.Fatalf("%+v", whole.Read)
	}
	flipStored(t, reg, 100)
	p.do(1, &found, "verify")
	if len(found.Damaged) == 0 || len(found.Hit) != 3 || found.Read == nil {
		t.Fatalf("%+v", found)
	}
	var one checkAnswer
	p.do(1, &one, "verify", "shop", "--snapshot", found.Hit[1].Snapshot.String())
	if len(one.Hit) != 1 || one.Hit[0].Tag != found.Hit[1].Tag {
		t.Fatalf("%+v", one.Hit)
	}
	var plan, done repairAnswer
	p.do(codeUsage, &struct{}{}, "repair", "--from", reg.URL("dr"))
	p.do(0, &plan, "repair", "--dry-run", "--from", mirror.URL("dr"))
	if len(plan.Steps) == 0 || len(plan.Hit) != 0 || !plan.DryRun {
		t.Fatalf("%+v", plan)
	}
	p.do(1, &checkAnswer{}, "check")
	p.do(0, &done, "repair", "--from", mirror.URL("dr"))
	if len(done.Steps) != len(plan.Steps) || done.Steps[0].Error != "" || len(done.Damaged) != 0 {
		t.Fatalf("%+v", done)
	}
	p.do(0, &whole, "verify")
	// What cannot be mended is told, and nothing is given up by itself.
	flipStored(t, reg, 100)
	p.do(1, &checkAnswer{}, "verify")
	var left, dry repairAnswer
	if stderr := p.do(1, &dry, "repair", "--dry-run"); !strings.Contains(stderr, "nothing was changed (--dry-run)") {
		t.Error(stderr)
	}
	stderr := p.do(1, &left, "repair")
	if len(left.Hit) != 3 || !strings.Contains(stderr, "--from URL") {
		t.Fatalf("%+v\n%s", left, stderr)
	}
	if diff := cmp.Diff(toldBy(left), toldBy(dry)); diff != "" {
		t.Errorf("the real run (-) and the dry run (+):\n%s", diff)
	}
	p.do(codePartial, &left, "repair", "--drop-damaged")
	for _, s := range left.Steps {
		if s.Action == "forgotten" && s.Error == "" && s.Tag == "s.shop.3" {
			t.Errorf("the head of the line was dropped: %+v", left.Steps)
		}
	}
}

// Records that are damaged or gone and that nothing has a copy of: the dry run says
// so, and ends as the real run does.
func TestRepairDryRunOfRecords(t *testing.T) {
	t.Parallel()
	reg, p := withRoles(t), newPlace(t)
	p.run(0, "init", "--repo", reg.URL("dr"), "--fingerprint", reg.Fingerprint, "--username", "admin",
		"--password-file", p.write("admin", "admin secret\n"), "--site", "main", "--kit", p.path("kit.txt"))
	p.store(reg, "shop", 2)
	p.do(0, &struct{}{}, "snapshots", "shop")
	flipStoredIndex(t, reg)
	if text := lossView(nil, 1).(ui.Table).Empty; strings.Contains(text, "can be mended") {
		t.Error(text)
	}
	for _, args := range [][]string{{"repair", "--dry-run"}, {"repair"}} {
		var ans repairAnswer
		p.do(1, &ans, args...)
		if len(ans.Damaged) == 0 || len(ans.Steps) != 0 {
			t.Errorf("%v: %+v", args, ans)
		}
	}
}

// flipStoredIndex flips a bit in the image index of each snapshot of a registry.
func flipStoredIndex(t *testing.T, reg *registrytest.Registry) {
	t.Helper()
	flipped := 0
	root := filepath.Join(reg.Data, "store", "docker", "registry", "v2", "blobs")
	err := filepath.WalkDir(root, func(name string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		b, err := os.ReadFile(name)
		if err != nil || !bytes.Contains(b, []byte(`"manifests":[`)) {
			return err
		}
		b[len(b)/2] ^= 1
		flipped++
		return os.WriteFile(name, b, 0o600)
	})
	if err != nil || flipped == 0 {
		t.Fatalf("%d indexes, %v", flipped, err)
	}
}

// What a restore has found damaged check names, and repair mends; whoever has not
// read it sees nothing of it yet.
func TestRestoreFindsWhatRepairMends(t *testing.T) {
	t.Parallel()
	reg, p := registrytest.Start(t), newPlace(t)
	p.run(0, "init", "--repo", reg.URL("dr"), "--fingerprint", reg.Fingerprint, "--site", "main", "--kit", p.path("kit.txt"))
	files := map[string]string{}
	for i := range 40 {
		content := make([]byte, 100<<10)
		_, _ = rand.NewChaCha8([32]byte{byte(i), 3}).Read(content)
		files[fmt.Sprintf("f%02d", i)] = string(content)
	}
	p.storeFiles(reg, "shop", "sha256:aa", files)
	p.do(0, &struct{}{}, "snapshots", "shop")
	mirror := copyRegistry(t, reg)
	flipStored(t, reg, 1<<20)
	p.do(0, &checkAnswer{}, "check")
	to := filepath.Join(t.TempDir(), "to")
	restore := []string{"restore", "shop@#1", "--volume", "data", "--to", to}
	var found restoredAnswer
	if p.do(codePartial, &found, restore...); len(found.Lost) == 0 {
		t.Fatalf("%+v", found)
	}
	var told checkAnswer
	if p.do(1, &told, "check"); len(told.Damaged) == 0 || len(told.Hit) != 1 {
		t.Errorf("%+v", told)
	}
	var left, plan, done repairAnswer
	if p.do(1, &left, "repair"); len(left.Hit) != 1 {
		t.Errorf("%+v", left)
	}
	p.do(0, &plan, "repair", "--dry-run", "--from", mirror.URL("dr"))
	if p.do(0, &done, "repair", "--from", mirror.URL("dr")); len(done.Steps) == 0 || len(done.Steps) != len(plan.Steps) || len(done.Damaged) != 0 {
		t.Errorf("%+v", done)
	}
	p.do(0, &found, restore...)
	mustHoldFiles(t, to, files, slices.Sorted(maps.Keys(files)))
	p.do(0, &checkAnswer{}, "check")
}

// The link of a tag is damaged, and what tells what it was given first, too: no repair
// can put the record back. It says so, names the way out, and so does the dry run.
func TestRepairOfATagThatIsNotTaken(t *testing.T) {
	t.Parallel()
	for tag, way := range map[string]string{"key.1": "lifeboat key rotate", "host.1": "lifeboat host enroll"} {
		t.Run(tag, func(t *testing.T) {
			t.Parallel()
			reg, p := withRoles(t), newPlace(t)
			p.run(0, "init", "--repo", reg.URL("dr"), "--fingerprint", reg.Fingerprint, "--username", "admin",
				"--password-file", p.write("admin", "admin secret\n"), "--site", "main", "--kit", p.path("kit.txt"))
			p.store(reg, "shop", 2)
			p.do(0, &struct{}{}, "snapshots", "shop")
			p.do(0, &struct{}{}, "check")
			mirror := copyRegistry(t, reg)
			tags := filepath.Join(reg.Data, "store/docker/registry/v2/repositories/dr/_manifests/tags")
			link, err := os.ReadFile(filepath.Join(tags, "s.shop.1/current/link"))
			if err == nil {
				err = os.WriteFile(filepath.Join(tags, tag, "current/link"), link, 0o600)
			}
			if err == nil {
				err = os.RemoveAll(filepath.Join(tags, tag, "index"))
			}
			if err != nil {
				t.Fatal(err)
			}
			for _, more := range [][]string{{"--dry-run"}, nil} {
				var ans repairAnswer
				stderr := p.do(1, &ans, append([]string{"repair", "--from", mirror.URL("dr")}, more...)...)
				if !strings.Contains(stderr, way) || !strings.Contains(stderr, tag) {
					t.Errorf("%v: %s", more, stderr)
				}
			}
			if tag != "host.1" {
				return
			}
			// What a host wrote that no record enrols is not nothing.
			if stderr := p.do(codePartial, &struct{}{}, "snapshots", "--accept-older"); !strings.Contains(stderr, way) {
				t.Error(stderr)
			}
		})
	}
}
