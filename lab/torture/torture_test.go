package torture_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"lifeboat/lab/torture"
	"lifeboat/lab/treecmp"
)

func fingerprint(t *testing.T, root string) treecmp.Tree {
	t.Helper()
	tree, err := treecmp.Fingerprint(root, treecmp.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return tree
}

func TestPopulateIsCompleteAndDeterministic(t *testing.T) {
	a, b := t.TempDir(), t.TempDir()
	for _, dir := range []string{a, b} {
		if err := torture.Populate(dir, torture.Options{LongPaths: true}); err != nil {
			t.Fatal(err)
		}
		if err := torture.PopulateRoot(dir); err != nil {
			t.Fatal(err)
		}
	}
	tree := fingerprint(t, a)
	seen := map[treecmp.Type]int{}
	for _, e := range tree {
		seen[e.Type]++
	}
	for _, kind := range []treecmp.Type{treecmp.File, treecmp.Dir, treecmp.Symlink, treecmp.Char, treecmp.Block, treecmp.FIFO, treecmp.Socket} {
		if seen[kind] == 0 {
			t.Errorf("no %s", kind)
		}
	}
	if e := tree["clocks/file-1969"]; e.MtimeSec != -1 || e.MtimeNsec != 500_000_001 {
		t.Errorf("1969: %d.%d", e.MtimeSec, e.MtimeNsec)
	}
	if e := tree["."]; e.UID != 999 || e.Mode != 0o3771 || e.Xattrs["system.posix_acl_default"] == "" {
		t.Errorf("root: %+v", e)
	}
	if e := tree["attr/capable"]; e.Xattrs["security.capability"] == "" || e.UID != 5 {
		t.Errorf("capabilities: %+v", e)
	}
	if e := tree["sparse/hole-only"]; e.Size != 128<<20 || len(e.Data) != 0 {
		t.Errorf("hole: %+v", e)
	}
	diffs := treecmp.Compare(tree, fingerprint(t, b), treecmp.Rules{Ignore: func(d treecmp.Difference) bool {
		return d.Field == "mtime" && !strings.HasPrefix(d.Path, "clocks/file")
	}})
	if report := treecmp.Report(diffs, 10); report != "" {
		t.Errorf("two runs differ:\n%s", report)
	}
	if out, err := exec.Command("getcap", filepath.Join(a, "attr/capable")).Output(); err != nil || !strings.Contains(string(out), "cap_net_bind_service=ep") {
		t.Errorf("getcap: %s, %v", out, err)
	}
}

func TestDisturbOnOverlayLeavesEveryMark(t *testing.T) {
	base := t.TempDir()
	for _, d := range []string{"lower", "upper", "work", "merged"} {
		if err := os.Mkdir(filepath.Join(base, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := torture.Image(filepath.Join(base, "lower")); err != nil {
		t.Fatal(err)
	}
	merged := filepath.Join(base, "merged")
	options := "lowerdir=" + base + "/lower,upperdir=" + base + "/upper,workdir=" + base + "/work"
	if err := unix.Mount("overlay", merged, "overlay", 0, options); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Unmount(merged, 0); err != nil {
			t.Error(err)
		}
	}()
	if err := torture.Disturb(merged); err != nil {
		t.Fatal(err)
	}
	upper := fingerprint(t, filepath.Join(base, "upper"))
	for _, gone := range []string{"deleted", "mixed/deleted", "emptied/of-the-image", "links/b", "deleted-dir"} {
		if upper[gone].Type != treecmp.Whiteout {
			t.Errorf("%s is %q in the upper directory, want a whiteout", gone, upper[gone].Type)
		}
	}
	for _, dir := range []string{"replaced", "replaced-twice", "file-to-dir"} {
		e := upper[dir]
		if e.Type != treecmp.Dir || (dir != "file-to-dir" && e.Xattrs["trusted.overlay.opaque"] != "y") {
			t.Errorf("%s: %+v, want an opaque directory", dir, e)
		}
	}
	if e := upper["chowned"]; e.UID != 33 || e.SHA256 == "" {
		t.Errorf("chowned: %+v", e)
	}
	if _, ok := upper["untouched/of-the-image"]; ok {
		t.Error("an untouched file was copied up")
	}
}
