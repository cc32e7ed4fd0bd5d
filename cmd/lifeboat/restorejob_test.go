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

	"lifeboat/internal/registry/registrytest"
)

// packFiles are the files in which a registry keeps packs, the largest first.
func packFiles(t *testing.T, reg *registrytest.Registry) (out []string) {
	t.Helper()
	sizes := map[string]int{}
	err := filepath.WalkDir(filepath.Join(reg.Data, "store", "docker", "registry", "v2", "blobs"), func(name string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		b, err := os.ReadFile(name)
		if err == nil && bytes.HasPrefix(b, []byte("LBPK")) {
			sizes[name] = len(b)
		}
		return err
	})
	if err != nil || len(sizes) < 2 {
		t.Fatalf("%v, %v", sizes, err)
	}
	return slices.SortedFunc(maps.Keys(sizes), func(a, b string) int { return sizes[b] - sizes[a] })
}

type restoredAnswer struct {
	Fetched int64
	Resumed bool
	Lost    []lossRow
}

// TestRestoreGoesOnPastDamage: of a snapshot of which a pack is gone, or damaged in
// the middle, all that is whole is restored; what is lost is named and not there, the
// same command fetches nothing of what is there, and completes it once it is mended.
func TestRestoreGoesOnPastDamage(t *testing.T) {
	t.Parallel()
	reg, p := registrytest.Start(t), newPlace(t)
	p.run(0, "init", "--repo", reg.URL("dr"), "--fingerprint", reg.Fingerprint, "--site", "main", "--kit", p.path("kit.txt"))
	files := map[string]string{}
	for i := range 90 {
		content := make([]byte, 240<<10)
		_, _ = rand.NewChaCha8([32]byte{byte(i), 9}).Read(content)
		files[fmt.Sprintf("d%d/f%02d", i%8, i)] = string(content)
	}
	p.storeFiles(reg, "shop", "sha256:aa", files)
	p.do(0, &struct{}{}, "snapshots", "shop")
	pack := packFiles(t, reg)[0]
	sound, err := os.ReadFile(pack)
	if err != nil {
		t.Fatal(err)
	}
	bad := bytes.Clone(sound)
	bad[len(bad)/2] ^= 1
	for name, breakIt := range map[string]func() error{
		"gone":    func() error { return os.Remove(pack) },
		"damaged": func() error { return os.WriteFile(pack, bad, 0o600) },
	} {
		if err := breakIt(); err != nil {
			t.Fatal(err)
		}
		to := filepath.Join(t.TempDir(), name)
		args := []string{"restore", "shop@#1", "--volume", "data", "--to", to}
		var first, second, third restoredAnswer
		stderr := p.do(codePartial, &first, args...)
		whole := maps.Clone(files)
		for _, l := range first.Lost {
			if l.Object != "volume:data" || l.Kind != "file" {
				t.Errorf("%+v", l)
			}
			delete(whole, strings.TrimPrefix(l.Path, "/"))
		}
		if len(first.Lost) == 0 || len(first.Lost) > 60 || len(whole) != len(files)-len(first.Lost) {
			t.Errorf("%s: of %d files %d are lost, %d are whole", name, len(files), len(first.Lost), len(whole))
		}
		mustHoldFiles(t, to, whole, append(slices.Sorted(maps.Keys(whole)), marksIn(t, to, whole)...))
		for _, want := range []string{"repair --from", "restore shop@#NUMBER", "verify shop"} {
			if !strings.Contains(stderr, want) {
				t.Errorf("%s: %q is missing in\n%s", name, want, stderr)
			}
		}
		p.do(codePartial, &second, args...)
		if diff := cmp.Diff(first.Lost, second.Lost); diff != "" || !second.Resumed || second.Fetched != 0 {
			t.Errorf("%s: %s %+v", name, diff, second)
		}
		if err := os.WriteFile(pack, sound, 0o600); err != nil {
			t.Fatal(err)
		}
		p.do(0, &third, args...)
		if len(third.Lost) != 0 || third.Fetched != int64(len(first.Lost))*(240<<10) {
			t.Errorf("%s: %d fetched", name, third.Fetched)
		}
		mustHoldFiles(t, to, files, slices.Sorted(maps.Keys(files)))
	}
}

// marksIn finds the mark of a restore that is not at its end, and puts what it holds
// into files.
func marksIn(t *testing.T, dir string, files map[string]string) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(dir, ".lifeboat-restore.*"))
	if err != nil || len(found) != 1 {
		t.Fatalf("%v, %v", found, err)
	}
	raw, err := os.ReadFile(found[0])
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Base(found[0])
	files[name] = string(raw)
	return []string{name}
}

// TestRestorePathsAsWritten: a path that is there is meant before a pattern is, ./ is
// nothing, and what is not there makes no directory.
func TestRestorePathsAsWritten(t *testing.T) {
	t.Parallel()
	reg, p := registrytest.Start(t), newPlace(t)
	p.run(0, "init", "--repo", reg.URL("dr"), "--fingerprint", reg.Fingerprint, "--site", "main", "--kit", p.path("kit.txt"))
	files := map[string]string{"[a]": "1", "a": "2", `b\c`: "3", "[": "4", "sub/x": "5", "sub/*": "6", "sub/y": "7"}
	p.storeFiles(reg, "shop", "sha256:aa", files)
	for path, want := range map[string][]string{
		"[a]": {"[a]"}, `b\c`: {`b\c`}, "[": {"["}, "./sub": {"sub/*", "sub/x", "sub/y"}, "sub/*": {"sub/*"}, "sub/?": {"sub/*", "sub/x", "sub/y"},
		"./sub/[xy]": {"sub/x", "sub/y"}, "/sub/./": nil,
	} {
		to := filepath.Join(t.TempDir(), "new", "out")
		if want == nil {
			p.do(codeNotFound, &struct{}{}, "restore", "shop", "--volume", "data", "--path", path, "--to", to)
			continue
		}
		p.do(0, &struct{}{}, "restore", "shop", "--volume", "data", "--path", path, "--to", to)
		mustHoldFiles(t, to, files, want)
		p.do(0, &struct{}{}, "ls", "shop", "--volume", "data", "--path", path)
	}
	for _, path := range []string{"nosuch", "*.jpg", "../x"} {
		parent := filepath.Join(t.TempDir(), "new")
		stderr := p.do(codeNotFound, &struct{}{}, "restore", "shop", "--volume", "data", "--path", path, "--to", filepath.Join(parent, "out"))
		if _, err := os.Stat(parent); !os.IsNotExist(err) || strings.Contains(stderr, "goes on") || strings.Contains(stderr, "had finished before") {
			t.Errorf("%s: %v\n%s", path, err, stderr)
		}
		there := t.TempDir()
		p.do(codeNotFound, &struct{}{}, "restore", "shop", "--volume", "data", "--path", path, "--to", there)
		if left, err := os.ReadDir(there); err != nil || len(left) > 0 {
			t.Errorf("%s: %v, %v", path, left, err)
		}
	}
}
