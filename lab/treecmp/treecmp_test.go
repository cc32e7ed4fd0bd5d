package treecmp_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"lifeboat/lab/treecmp"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// fixture is a tree with one of everything; it needs root for devices.
func fixture(t *testing.T) string {
	t.Helper()
	root := filepath.Join(t.TempDir(), "tree")
	must(t, os.MkdirAll(filepath.Join(root, "dir", "sub"), 0o755))
	must(t, os.WriteFile(filepath.Join(root, "file"), []byte("content"), 0o640))
	must(t, os.WriteFile(filepath.Join(root, "odd\n\xff"), nil, 0o600))
	must(t, os.Link(filepath.Join(root, "file"), filepath.Join(root, "dir", "linked")))
	must(t, os.Symlink("nowhere\xfe", filepath.Join(root, "link")))
	must(t, unix.Mkfifo(filepath.Join(root, "fifo"), 0o600))
	must(t, unix.Mknod(filepath.Join(root, "char"), unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))))
	must(t, unix.Mknod(filepath.Join(root, "gone"), unix.S_IFCHR, 0))
	must(t, unix.Setxattr(filepath.Join(root, "dir"), "user.mark", []byte{0, 1}, 0))
	must(t, unix.Setxattr(filepath.Join(root, "dir"), "trusted.overlay.origin", []byte("x"), 0))
	f, err := os.Create(filepath.Join(root, "sparse"))
	must(t, err)
	_, err = f.WriteAt([]byte("end"), 8<<20)
	must(t, err)
	must(t, f.Close())
	return root
}

func take(t *testing.T, root string, opts treecmp.Options) treecmp.Tree {
	t.Helper()
	tree, err := treecmp.Fingerprint(root, opts)
	must(t, err)
	return tree
}

func TestEveryChangeIsSeen(t *testing.T) {
	at := func(root, name string) string { return filepath.Join(root, name) }
	touch := unix.NsecToTimespec(time.Unix(5, 1).UnixNano())
	cases := []struct {
		name   string
		change func(t *testing.T, root string)
		want   string // part of the report
	}{
		{"content of the same size", func(t *testing.T, r string) {
			must(t, os.WriteFile(at(r, "file"), []byte("CONTENT"), 0o640))
		}, `"file": content`},
		{"size", func(t *testing.T, r string) { must(t, os.Truncate(at(r, "file"), 3)) }, `"file": size`},
		{"mode", func(t *testing.T, r string) { must(t, unix.Chmod(at(r, "dir"), 0o2755)) }, `"dir": mode: want 0755, got 2755`},
		{"owner", func(t *testing.T, r string) { must(t, os.Lchown(at(r, "link"), 7, 8)) }, `"link": owner: want 0:0, got 7:8`},
		{"mtime of a link", func(t *testing.T, r string) {
			must(t, unix.UtimesNanoAt(unix.AT_FDCWD, at(r, "link"), []unix.Timespec{touch, touch}, unix.AT_SYMLINK_NOFOLLOW))
		}, `"link": mtime`},
		{"mtime of the root", func(t *testing.T, r string) {
			must(t, unix.UtimesNanoAt(unix.AT_FDCWD, r, []unix.Timespec{touch, touch}, 0))
		}, `".": mtime`},
		{"hard link", func(t *testing.T, r string) {
			must(t, os.Remove(at(r, "dir/linked")))
			must(t, os.WriteFile(at(r, "dir/linked"), []byte("content"), 0o640))
		}, `"dir/linked": hard link`},
		{"device", func(t *testing.T, r string) {
			must(t, os.Remove(at(r, "char")))
			must(t, unix.Mknod(at(r, "char"), unix.S_IFCHR|0o600, int(unix.Mkdev(1, 5))))
		}, `"char": device: want 1:3, got 1:5`},
		{"deletion undone", func(t *testing.T, r string) { must(t, os.Remove(at(r, "gone"))) }, `"gone": missing`},
		{"new name", func(t *testing.T, r string) { must(t, os.Mkdir(at(r, "dir/new"), 0o700)) }, `"dir/new": unexpected`},
		{"type", func(t *testing.T, r string) {
			must(t, os.Remove(at(r, "fifo")))
			must(t, os.Symlink("x", at(r, "fifo")))
		}, `"fifo": type: want fifo, got symlink`},
		{"target", func(t *testing.T, r string) {
			must(t, os.Remove(at(r, "link")))
			must(t, os.Symlink("elsewhere", at(r, "link")))
		}, `"link": target`},
		{"xattr", func(t *testing.T, r string) {
			must(t, unix.Setxattr(at(r, "dir"), "user.mark", []byte{0, 2}, 0))
		}, `"dir": xattr user.mark: want 0001, got 0002`},
		{"hole filled", func(t *testing.T, r string) {
			data, err := os.ReadFile(at(r, "sparse"))
			must(t, err)
			must(t, os.WriteFile(at(r, "sparse"), data, 0o644))
		}, `"sparse": holes`},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			root := fixture(t)
			before := take(t, root, treecmp.Options{})
			c.change(t, root)
			report := treecmp.Report(treecmp.Compare(before, take(t, root, treecmp.Options{}), treecmp.Rules{}), 100)
			if !strings.Contains(report, c.want) {
				t.Errorf("report lacks %q:\n%s", c.want, report)
			}
		})
	}
}

func TestCopyIsEqualAndSurvivesSaving(t *testing.T) {
	root := fixture(t)
	copied := filepath.Join(t.TempDir(), "copy")
	if out, err := exec.Command("cp", "-a", "--sparse=always", root, copied).CombinedOutput(); err != nil {
		t.Fatalf("cp: %v: %s", err, out)
	}
	// The overlay's own notes do not count.
	must(t, unix.Removexattr(filepath.Join(copied, "dir"), "trusted.overlay.origin"))
	want := take(t, root, treecmp.Options{})
	file := filepath.Join(t.TempDir(), "tree.json")
	must(t, want.Save(file))
	loaded, err := treecmp.Load(file)
	must(t, err)
	if diff := cmp.Diff(want, loaded); diff != "" {
		t.Fatalf("saved and loaded (-want +got):\n%s", diff)
	}
	if report := treecmp.Report(treecmp.Compare(loaded, take(t, copied, treecmp.Options{}), treecmp.Rules{}), 10); report != "" {
		t.Fatalf("a copy differs:\n%s", report)
	}
	if len(want) != 11 || want["dir/linked"].LinkedTo != "dir/linked" || want["file"].LinkedTo != "dir/linked" || want["gone"].Type != treecmp.Whiteout {
		t.Fatalf("fingerprint: %+v", want)
	}
	if sub := want.Under("dir"); len(sub) != 3 || sub["."].Type != treecmp.Dir || sub["linked"].Type != treecmp.File || sub["linked"].LinkedTo != "" {
		t.Fatalf("part of the tree: %+v", sub)
	}
}

func TestMountsAreLeftOut(t *testing.T) {
	root := fixture(t)
	must(t, unix.Mount(filepath.Join(root, "dir"), filepath.Join(root, "dir", "sub"), "", unix.MS_BIND, ""))
	defer func() { must(t, unix.Unmount(filepath.Join(root, "dir", "sub"), 0)) }()
	if tree := take(t, root, treecmp.Options{OneMount: true}); tree["dir/sub"].Type != "" || tree["dir"].Type != treecmp.Dir {
		t.Error("a bind mount of the same file system was walked")
	}
	if tree := take(t, root, treecmp.Options{}); tree["dir/sub/linked"].Type != treecmp.File {
		t.Error("without OneMount the mount was not walked")
	}
	if tree := take(t, root, treecmp.Options{Exclude: []string{"dir"}}); tree["dir"].Type != "" || tree["file"].Type == "" {
		t.Error("Exclude is not obeyed")
	}
}

func TestSingleFileAndMissingRoot(t *testing.T) {
	root := fixture(t)
	tree := take(t, filepath.Join(root, "file"), treecmp.Options{})
	if len(tree) != 1 || tree["."].Size != 7 {
		t.Fatalf("fingerprint of a file: %+v", tree)
	}
	if _, err := treecmp.Fingerprint(filepath.Join(root, "nothing"), treecmp.Options{}); err == nil || !strings.Contains(err.Error(), "nothing") {
		t.Fatalf("missing root: %v", err)
	}
}

func FuzzLoad(f *testing.F) {
	f.Add([]byte(`{"path":"\"a\"","type":"file","linked_to":"\"\"","target":"\"\""}`))
	f.Add([]byte(`{"path":"a"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		path := filepath.Join(t.TempDir(), "f")
		must(t, os.WriteFile(path, data, 0o600))
		tree, err := treecmp.Load(path)
		if err != nil {
			return
		}
		must(t, tree.Save(path))
		again, err := treecmp.Load(path)
		must(t, err)
		if len(treecmp.Compare(tree, again, treecmp.Rules{})) > 0 {
			t.Fatalf("%v and %v", tree, again)
		}
	})
}
