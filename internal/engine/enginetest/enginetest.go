// Package enginetest is the conformance suite of container engines as Lifeboat
// uses them: Run checks everything that package engine promises against one
// engine, and RoundTrip carries a system from one engine to another. The fake
// and the real engines run the same tests, so that the fake stays honest.
//
// Containers run the program in the directory probe; Image makes the image.
package enginetest

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"lifeboat/internal/dr"
	"lifeboat/internal/engine"
)

// Target is an engine to test.
type Target struct {
	// Open connects to it.
	Host string
	// ContainerdStore is what Info must say.
	ContainerdStore bool
	// Dir is a directory that exists under the same name for the engine and for
	// the test; bind sources are made in it.
	Dir string
}

// Open connects for the time of the test.
func Open(t testing.TB, host string) *engine.Engine {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	e, err := engine.Open(ctx, engine.Options{Host: host})
	if err != nil {
		t.Fatalf("open engine: %v", err)
	}
	t.Cleanup(func() { _ = e.Close() })
	return e
}

// Probe builds the probe and returns its path.
func Probe(t testing.TB) string {
	t.Helper()
	_, file, _, _ := runtime.Caller(0)
	out := filepath.Join(t.TempDir(), "probe")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", out, "./probe")
	cmd.Dir = filepath.Dir(file)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if msg, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build probe: %v\n%s", err, msg)
	}
	return out
}

// RootFS is a tar of a root file system with the program at path as /probe, and
// a directory /etc with a file.
func RootFS(t testing.TB, program string) []byte {
	t.Helper()
	b, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	add := func(h *tar.Header, body []byte) {
		h.Size = int64(len(body))
		h.ModTime = time.Unix(1700000000, 0)
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(body); err != nil {
			t.Fatal(err)
		}
	}
	add(&tar.Header{Name: "probe", Mode: 0o755, Typeflag: tar.TypeReg}, b)
	for _, d := range []string{"etc/", "data/", "tmp/", "anon/"} {
		add(&tar.Header{Name: d, Mode: 0o755, Typeflag: tar.TypeDir}, nil)
	}
	add(&tar.Header{Name: "etc/conf", Mode: 0o644, Typeflag: tar.TypeReg}, []byte("from the image\n"))
	add(&tar.Header{Name: "data/seed", Mode: 0o644, Typeflag: tar.TypeReg}, []byte("seed\n"))
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// ImageRef is the name of the image that Image makes.
const ImageRef = "lbtest-probe:1"

// Image is Import for the time of the test.
func Image(t testing.TB, e *engine.Engine) string {
	t.Helper()
	id := Import(t, e)
	t.Cleanup(func() {
		if err := e.RemoveImage(context.Background(), id); err != nil {
			t.Errorf("remove image: %v", err)
		}
	})
	return id
}

// Import imports the probe's image, with a volume at /anon, and returns its id.
func Import(t testing.TB, e *engine.Engine) string {
	t.Helper()
	id, err := e.ImportImage(t.Context(), bytes.NewReader(RootFS(t, Probe(t))), ImageRef, []string{
		`ENTRYPOINT ["/probe"]`, `CMD ["sleep"]`, `VOLUME /anon`, `LABEL org.example.test=yes`, `EXPOSE 8080`,
	})
	if err != nil {
		t.Fatalf("import image: %v", err)
	}
	return id
}

// fixture is one test's way to make things that go away with it.
type fixture struct {
	*testing.T
	e      *engine.Engine
	target Target
	image  string
}

// raw encodes v for the engine.
func (f *fixture) raw(v any) json.RawMessage {
	f.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		f.Fatal(err)
	}
	return b
}

type m = map[string]any

// container creates a container from the parts of a create request.
func (f *fixture) container(name string, config, host m, endpoints map[string]m) string {
	f.Helper()
	c := dr.Container{Name: name, ImageRef: ImageRef, Config: f.raw(config), HostConfig: f.raw(host)}
	if endpoints != nil {
		c.Endpoints = map[string]json.RawMessage{}
		for n, ep := range endpoints {
			c.Endpoints[n] = f.raw(ep)
		}
	}
	id, err := f.e.CreateContainer(f.Context(), c, engine.CreateOptions{})
	if err != nil {
		f.Fatalf("create container %s: %v", name, err)
	}
	f.removeLater(name)
	return id
}

func (f *fixture) removeLater(name string) { f.removeFrom(f.e, name) }

func (f *fixture) removeFrom(e *engine.Engine, name string) {
	f.Cleanup(func() {
		if err := e.Remove(context.Background(), name, engine.RemoveOptions{Force: true, Volumes: true}); err != nil {
			f.Errorf("remove container %s: %v", name, err)
		}
	})
}

func (f *fixture) network(spec m) string {
	f.Helper()
	id, err := f.e.CreateNetwork(f.Context(), f.raw(spec), nil)
	if err != nil {
		f.Fatalf("create network: %v", err)
	}
	f.Cleanup(func() {
		if err := f.e.RemoveNetwork(context.Background(), spec["Name"].(string)); err != nil {
			f.Errorf("remove network: %v", err)
		}
	})
	return id
}

func (f *fixture) volume(v dr.Volume) engine.VolumeState {
	f.Helper()
	st, err := f.e.CreateVolume(f.Context(), v, nil)
	if err != nil {
		f.Fatalf("create volume: %v", err)
	}
	f.Cleanup(func() {
		if err := f.e.RemoveVolume(context.Background(), v.Name); err != nil {
			f.Errorf("remove volume: %v", err)
		}
	})
	return st
}

func (f *fixture) start(ids ...string) {
	f.Helper()
	for _, id := range ids {
		if err := f.e.Start(f.Context(), id); err != nil {
			f.Fatalf("start %s: %v", id, err)
		}
	}
}

func (f *fixture) state(id, want string) engine.ContainerState {
	f.Helper()
	st, err := f.e.Container(f.Context(), id)
	if err != nil {
		f.Fatalf("inspect %s: %v", id, err)
	}
	if st.State != want {
		f.Fatalf("container %s is %s, want %s", id, st.State, want)
	}
	return st
}

// ok fails the test on an error.
func (f *fixture) ok(what string, err error) {
	f.Helper()
	if err != nil {
		f.Fatalf("%s: %v", what, err)
	}
}

// is checks that err wraps want.
func (f *fixture) is(what string, err, want error) {
	f.Helper()
	if !errors.Is(err, want) {
		f.Fatalf("%s: error is %v, want one that wraps %v", what, err, want)
	}
}

func (f *fixture) equal(what string, got, want any) {
	f.Helper()
	if d := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Prefix{}, netip.Addr{})); d != "" {
		f.Fatalf("%s differs (-want +got):\n%s", what, d)
	}
}

// Run checks an engine. Subtests run one after the other, since they share the
// engine's names and ports.
func Run(t *testing.T, target Target) {
	e := Open(t, target.Host)
	image := Image(t, e)
	for _, test := range []struct {
		name string
		run  func(*fixture)
	}{
		{"info", testInfo},
		{"host files", testHostFS},
		{"image", testImage},
		{"image identity", testImageBytes},
		{"container states", testStates},
		{"container conflicts", testConflicts},
		{"users of a directory", testUsers},
		{"restart policy", testRestartPolicy},
		{"exec", testExec},
		{"logs", testLogs},
		{"attached run", testAttached},
		{"wait", testWait},
		{"network", testNetwork},
		{"volume", testVolume},
		{"several networks", testSeveralNetworks},
		{"writable layer", testLayer},
		{"selection", testSelection},
		{"discover", testDiscover},
		{"normalised", testNormalised},
		{"coverage", testCoverage},
		{"inventory", testInventory},
	} {
		t.Run(test.name, func(t *testing.T) {
			test.run(&fixture{T: t, e: e, target: target, image: image})
		})
	}
}

func testInfo(f *fixture) {
	in, err := f.e.Info(f.Context())
	f.ok("info", err)
	if in.ID == "" || in.Name == "" || in.Version == "" || in.API == "" || in.StorageDriver == "" || in.OS != "linux" || in.Arch == "" || in.Kernel == "" {
		f.Errorf("description is incomplete: %+v", in)
	}
	f.equal("containerd store", in.ContainerdStore, f.target.ContainerdStore)
}

func testHostFS(f *fixture) {
	h, err := f.e.HostFS(f.Context())
	f.ok("host files", err)
	if !h.Local {
		f.Fatalf("the engine's files are not reachable: %s", h.Reason)
	}
	p, err := h.Path(h.RootDir)
	f.ok("path of the data directory", err)
	if st, err := os.Stat(p); err != nil || !st.IsDir() {
		f.Fatalf("data directory %s: %v", p, err)
	}
	_, err = h.Path(filepath.Join(h.RootDir, "no-such-thing"))
	f.is("path of what does not exist", err, os.ErrNotExist)
}

func testImage(f *fixture) {
	ctx := f.Context()
	img, err := f.e.Image(ctx, ImageRef)
	f.ok("inspect image", err)
	f.equal("id", img.ID, f.image)
	f.equal("tags", img.Tags, []string{ImageRef})
	f.equal("label", img.Labels["org.example.test"], "yes")
	if len(img.DiffIDs) != 1 || img.OS != "linux" || img.Arch == "" {
		f.Errorf("image is described incompletely: %+v", img)
	}

	_, err = f.e.Image(ctx, "lbtest-none:1")
	f.is("inspect what does not exist", err, dr.ErrNotFound)
	has, err := f.e.HasImage(ctx, "lbtest-none:1")
	if err != nil || has {
		f.Errorf("has image: %v, %v", has, err)
	}

	f.ok("tag", f.e.TagImage(ctx, f.image, "localhost:5000/lbtest-other:2"))
	img, err = f.e.Image(ctx, f.image)
	f.ok("inspect image", err)
	f.equal("tags", img.Tags, []string{ImageRef, "localhost:5000/lbtest-other:2"})
	f.ok("untag", f.e.UntagImage(ctx, "localhost:5000/lbtest-other:2"))
	f.ok("untag what is not there", f.e.UntagImage(ctx, "localhost:5000/lbtest-other:2"))

	r, err := f.e.SaveImage(ctx, ImageRef)
	f.ok("save", err)
	saved, err := io.ReadAll(r)
	f.ok("save", err)
	f.ok("save", r.Close())
	f.ok("remove", f.e.RemoveImage(ctx, f.image))
	f.ok("remove again", f.e.RemoveImage(ctx, f.image))
	has, err = f.e.HasImage(ctx, f.image)
	if err != nil || has {
		f.Fatalf("has removed image: %v, %v", has, err)
	}
	loaded, err := f.e.LoadImage(ctx, bytes.NewReader(saved))
	f.ok("load", err)
	if !slices.Contains(loaded, ImageRef) {
		f.Errorf("loaded %q, want %s among them", loaded, ImageRef)
	}
	has, err = f.e.HasImage(ctx, f.image)
	if err != nil || !has {
		f.Fatalf("has loaded image by the same id: %v, %v", has, err)
	}
	if _, err = f.e.LoadImage(ctx, strings.NewReader("this is no archive, but long enough to look like the beginning of one")); err == nil {
		f.Error("loading garbage gave no error")
	}
	if err := f.e.PullImage(ctx, "127.0.0.1:9/lbtest-none:1", engine.PullOptions{}); err == nil {
		f.Error("pulling from nowhere gave no error")
	}
}

func testImageBytes(f *fixture) {
	b, err := f.e.ImageBytes(f.Context(), ImageRef)
	f.ok("image bytes", err)
	img, err := f.e.Image(f.Context(), ImageRef)
	f.ok("inspect image", err)
	var config struct {
		RootFS struct {
			DiffIDs []string `json:"diff_ids"`
		} `json:"rootfs"`
	}
	f.ok("configuration", json.Unmarshal(b.Config, &config))
	f.equal("diff ids", config.RootFS.DiffIDs, img.DiffIDs)
	if f.target.ContainerdStore {
		if len(b.Manifest) == 0 || img.ConfigDigest != "" {
			f.Errorf("containerd store: manifest of %d bytes, configuration digest %q", len(b.Manifest), img.ConfigDigest)
		}
	} else {
		f.equal("configuration digest", b.ConfigDigest, f.image)
		f.equal("configuration digest", img.ConfigDigest, f.image)
	}
}
