package engine

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func listen(t *testing.T, path string) net.Listener {
	t.Helper()
	short, done, err := shortSocketPath(path)
	if err != nil {
		t.Fatal(err)
	}
	defer done()
	l, err := net.Listen("unix", short)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestHostFSPath(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	for _, d := range []string{"run", "var", "srv/app", "a b"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for link, to := range map[string]string{
		"var/run": "/run", "up": "../../../../../../etc", "srv/here": "app", "srv/chain": "../var/run", "loop": "loop", "var/dangling": "/nowhere", "srv/dots": "./app/..//app/.",
	} {
		if err := os.Symlink(to, filepath.Join(root, link)); err != nil {
			t.Fatal(err)
		}
	}
	h := HostFS{Prefix: root, Local: true}
	for p, want := range map[string]string{
		"/": "", "/srv": "/srv", "/var/run": "/run", "/srv/here": "/srv/app", "/srv/chain": "/run", "/a b/": "/a b", "/srv/../run": "/run", "/srv/dots": "/srv/app",
	} {
		got, err := h.Path(p)
		if err != nil || got != root+want {
			t.Errorf("Path(%q) = %q, %v; want %q", p, got, err, root+want)
		}
	}
	for p, want := range map[string]error{
		"/up": fs.ErrNotExist, "/none/x": fs.ErrNotExist, "/var/dangling": fs.ErrNotExist, "/loop": syscall.ELOOP,
	} {
		if got, err := h.Path(p); !errors.Is(err, want) {
			t.Errorf("Path(%q) = %q, %v; want %v", p, got, err, want)
		}
	}
	if _, err := h.Path("relative"); err == nil {
		t.Error("a relative path gave no error")
	}
	if _, err := (HostFS{Reason: "because"}).Path("/"); err == nil || !strings.Contains(err.Error(), "because") {
		t.Errorf("a path of a host that is not reachable: %v", err)
	}
	if got, err := (HostFS{Local: true}).Path("/"); err != nil || got != "/" {
		t.Errorf("the root: %q, %v", got, err)
	}
}

// FuzzHostFSPath: whatever the links, the result stays below the prefix.
func FuzzHostFSPath(f *testing.F) {
	f.Add("/a/b", "/x", "../..")
	f.Add("/../a/./b/", "../../../etc", "b")
	f.Fuzz(func(t *testing.T, path, one, two string) {
		if strings.ContainsRune(path+one+two, 0) || len(one) == 0 || len(two) == 0 || len(path)+len(one)+len(two) > 200 {
			return
		}
		root := t.TempDir()
		if os.Symlink(one, filepath.Join(root, "a")) != nil || os.Mkdir(filepath.Join(root, "x"), 0o755) != nil || os.Symlink(two, filepath.Join(root, "x/b")) != nil {
			return
		}
		got, err := HostFS{Prefix: root, Local: true}.Path(path)
		if err != nil {
			return
		}
		real, err := filepath.EvalSymlinks(got)
		if err != nil || real != got || got != root && !strings.HasPrefix(got, root+"/") {
			t.Fatalf("Path(%q) = %q, which is %q (%v) and must lie below %q without links", path, got, real, err, root)
		}
	})
}

func TestSocketHolder(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("", "lbtest-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	deep := filepath.Join(dir, strings.Repeat("d", 100))
	if err := os.Mkdir(deep, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{filepath.Join(dir, "s"), filepath.Join(deep, "s")} {
		l := listen(t, path)
		pid, err := enginePID(path)
		if err != nil || pid != os.Getpid() {
			t.Errorf("socket of %d bytes: peer %d, %v; want %d", len(path), pid, err, os.Getpid())
		}
		if len(path) < 108 {
			if got := socketHolder(path); got != os.Getpid() {
				t.Errorf("holder %d, want %d", got, os.Getpid())
			}
		}
		_ = l.Close()
	}
	if _, err := enginePID(filepath.Join(dir, "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no socket: %v", err)
	}
}

func TestParseMountInfo(t *testing.T) {
	t.Parallel()
	const table = `22 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw,errors=remount-ro
40 22 0:40 / /with\040space rw shared:7 master:1 - tmpfs tmpfs rw,size=1k
41 22 0:41 / /v rw - overlay overlay rw,lowerdir=/l/one:/l/two,upperdir=/u/a\134,b,workdir=/w
`
	got, err := parseMountInfo(strings.NewReader(table))
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != 3 || got[1].mountPoint != "/with space" || got[0].options["errors"] != "remount-ro" || got[2].options["upperdir"] != "/u/a,b" || got[2].options["workdir"] != "/w" {
		t.Errorf("got %+v", got)
	}
	m, ok := mountAt(got, "/v/x")
	if !ok || m.fsType != "overlay" {
		t.Errorf("mount of /v/x: %+v", m)
	}
	if m, _ := mountAt(got, "/vx"); m.fsType != "ext4" {
		t.Errorf("mount of /vx: %+v", m)
	}
	if _, err := parseMountInfo(strings.NewReader("nonsense\n")); err == nil {
		t.Error("nonsense gave no error")
	}
}

func FuzzParseMountInfo(f *testing.F) {
	f.Add("22 1 8:1 / / rw - ext4 /dev/sda1 rw,a=b\\134,c\n")
	f.Add(" - \n")
	f.Fuzz(func(t *testing.T, s string) {
		mounts, err := parseMountInfo(strings.NewReader(s))
		if err == nil && len(mounts) > strings.Count(s, "\n")+1 {
			t.Fatalf("%d mounts from %d lines", len(mounts), strings.Count(s, "\n"))
		}
	})
}

func TestContainerdAddresses(t *testing.T) {
	t.Parallel()
	got := containerdAddresses(HostFS{facts: facts{containerdAddress: "unix:///x/c.sock"}})
	if len(got) != 3 || got[0] != "/x/c.sock" {
		t.Errorf("got %q", got)
	}
	argv := []string{"dockerd", "--exec-root", "/run/d", "--containerd=/run/c.sock", "--containerd-namespace=x"}
	if got := flagValue(argv, "containerd"); got != "/run/c.sock" {
		t.Errorf("containerd: %q", got)
	}
	if got := flagValue(argv, "exec-root"); got != "/run/d" {
		t.Errorf("exec-root: %q", got)
	}
}

func TestLayersMustAgree(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	for _, d := range []string{"one", "two"} {
		if err := os.Mkdir(filepath.Join(root, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("one", filepath.Join(root, "same")); err != nil {
		t.Fatal(err)
	}
	h := HostFS{Prefix: root, Local: true}
	for _, c := range []struct {
		a, b string
		want bool
	}{{"/one", "/one/", true}, {"/one", "/same", true}, {"/one", "/two", false}, {"/none", "/one", false}} {
		if got := sameUpper(h, c.a, c.b); got != c.want {
			t.Errorf("sameUpper(%s, %s) = %v", c.a, c.b, got)
		}
	}
}
