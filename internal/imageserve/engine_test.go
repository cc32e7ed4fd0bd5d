package imageserve_test

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"lifeboat/internal/cut"
	"lifeboat/internal/imageserve"
	"lifeboat/internal/layer"
	"lifeboat/internal/layer/layertest"
	"lifeboat/lab"
)

func TestMain(m *testing.M) {
	lab.Child()
	os.Exit(m.Run())
}

// host is a site of the laboratory with an engine.
type host struct {
	*lab.Site
	t          *testing.T
	containerd bool
}

func (h host) docker(args ...string) string {
	h.t.Helper()
	out, err := h.Docker(h.t.Context(), args...)
	if err != nil {
		h.t.Fatal(err)
	}
	return strings.TrimSpace(string(out))
}

// inspect returns the parts of an image that must come back.
func (h host) inspect(ref string) (id layer.Digest, layers []string, config map[string]any) {
	h.t.Helper()
	var got []struct {
		ID     layer.Digest `json:"Id"`
		RootFS struct{ Layers []string }
		Config map[string]any
	}
	if err := json.Unmarshal([]byte(h.docker("image", "inspect", ref)), &got); err != nil || len(got) != 1 {
		h.t.Fatalf("inspect %s: %v", ref, err)
	}
	return got[0].ID, got[0].RootFS.Layers, got[0].Config
}

// baseTree is an archive of the probe and a few files.
func baseTree(t *testing.T) []byte {
	t.Helper()
	dir := t.TempDir()
	build := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", filepath.Join(dir, "probe"), "./testdata/probe")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build probe: %v\n%s", err, out)
	}
	probe, err := os.ReadFile(filepath.Join(dir, "probe"))
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	tw := tar.NewWriter(&out)
	for _, f := range []struct {
		name string
		mode int64
		data []byte
	}{
		{"probe", 0o755, probe},
		{"base/", 0o755, nil},
		{"base/big", 0o644, bytes.Repeat([]byte("some text, "), 1<<16)},
		{"base/dir/", 0o1777, nil},
		{"base/dir/file", 0o640, []byte("x")},
		{"base/" + strings.Repeat("long", 50) + "/", 0o755, nil},
	} {
		h := &tar.Header{Name: f.name, Mode: f.mode, Size: int64(len(f.data)), ModTime: time.Unix(1e9, 0), Typeflag: tar.TypeReg, Uid: 5, Gid: 6}
		if strings.HasSuffix(f.name, "/") {
			h.Typeflag = tar.TypeDir
		}
		if err := tw.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := tw.Write(f.data); err != nil {
			t.Fatal(err)
		}
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// build makes lbtest:base, and lbtest:app on top of it with two layers of
// changes and an empty one.
func (h host) build(base []byte) {
	h.t.Helper()
	imp := h.Command(h.t.Context(), "docker", "import", "-", "lbtest:base")
	imp.Stdin = bytes.NewReader(base)
	if out, err := imp.CombinedOutput(); err != nil {
		h.t.Fatalf("import: %v\n%s", err, out)
	}
	from := "lbtest:base"
	for i, args := range [][]string{{"change", "1"}, {"change", "2"}, {"list"}} {
		name := fmt.Sprint("lbtest-build", i)
		h.docker(append([]string{"run", "--network", "none", "--name", name, from, "/probe"}, args...)...)
		from = fmt.Sprint("lbtest:step", i)
		h.docker("commit", "--change", fmt.Sprintf("ENV STEP=%d", i), "--change", "LABEL lbtest=yes", "--change", `CMD ["/probe","list"]`, name, from)
		h.docker("rm", name)
	}
	h.docker("tag", from, "lbtest:app")
}

// capture saves images and stores them.
func (h host) capture(st *layertest.Store, ids ...layer.Digest) []*layer.ImageRecord {
	h.t.Helper()
	args := []string{"save"}
	for _, id := range ids {
		args = append(args, string(id))
	}
	cmd := h.Command(h.t.Context(), "docker", args...)
	var errOut bytes.Buffer
	cmd.Stderr = &errOut
	out, err := cmd.StdoutPipe()
	if err != nil {
		h.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		h.t.Fatal(err)
	}
	got, err := layer.Capture(h.t.Context(), out, layer.CaptureOptions{
		Want: ids, Sink: st, Cutter: cut.New([32]byte{1}), Platform: layer.Platform{OS: "linux", Arch: "amd64"},
	})
	if werr := cmd.Wait(); werr != nil {
		h.t.Fatalf("save: %v %s", werr, errOut.String())
	}
	if err != nil {
		h.t.Fatal(err)
	}
	var records []*layer.ImageRecord
	for _, c := range got {
		if c.Err != nil {
			h.t.Fatal(c.Err)
		}
		records = append(records, c.Record)
	}
	return records
}

// pull gets an image from a server on the site's own loopback.
func (h host) pull(src layer.Source, rec *layer.ImageRecord) imageserve.Served {
	h.t.Helper()
	ctx := h.t.Context()
	l, err := h.Listen(ctx, "tcp4", "127.0.0.1:0")
	if err != nil {
		h.t.Fatal(err)
	}
	s, err := imageserve.Serve(ctx, src, []*layer.ImageRecord{rec}, imageserve.Options{ContainerdStore: h.containerd, Listener: l})
	if err != nil {
		h.t.Fatal(err)
	}
	defer s.Close()
	served, err := s.Image(rec.ID)
	if err != nil {
		h.t.Fatal(err)
	}
	if out, err := h.Docker(ctx, "pull", served.Ref); err == nil {
		h.t.Fatalf("pulled without credentials: %s", out)
	}
	dir := h.t.TempDir()
	auth := base64.StdEncoding.EncodeToString([]byte(s.Username() + ":" + s.Password()))
	if err := os.WriteFile(filepath.Join(dir, "config.json"), fmt.Appendf(nil, `{"auths":{%q:{"auth":%q}}}`, s.Addr(), auth), 0o600); err != nil {
		h.t.Fatal(err)
	}
	h.docker("--config", dir, "pull", "--quiet", served.Ref)
	return served
}

// load gives the engine an archive, streaming.
func (h host) load(src layer.Source, rec *layer.ImageRecord, tags ...string) layer.Handover {
	h.t.Helper()
	ho, err := layer.HandoverTo(rec, h.containerd)
	if err != nil {
		h.t.Fatal(err)
	}
	cmd := h.Command(h.t.Context(), "docker", "load")
	pr, pw := io.Pipe()
	cmd.Stdin = pr
	go func() {
		pw.CloseWithError(layer.WriteArchive(h.t.Context(), pw, layertest.Fetching{Store: src.(*layertest.Store)}, ho.Form, layer.ArchiveImage{Record: rec, Tags: tags}))
	}()
	if out, err := cmd.CombinedOutput(); err != nil {
		h.t.Fatalf("load: %v\n%s", err, out)
	}
	return ho
}

func TestEnginesGetTheSameImages(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	l, err := lab.New(ctx, lab.Options{Sites: []lab.SiteOptions{
		{Name: "classic", Engine: lab.EngineDocker20},
		{Name: "classic2", Engine: lab.EngineDocker20},
		{Name: "newer", Engine: lab.EngineDocker28},
		{Name: "content", Engine: lab.EngineContainerd},
		{Name: "content2", Engine: lab.EngineContainerd},
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	at := func(t *testing.T, name string) host {
		return host{Site: l.Site(name), t: t, containerd: strings.HasPrefix(name, "content")}
	}
	base := baseTree(t)
	for from, to := range map[string][]string{"classic": {"classic2", "newer", "content2"}, "content": {"content2", "newer"}} {
		source := at(t, from)
		source.build(base)
		st := layertest.New()
		appID, _, _ := source.inspect("lbtest:app")
		baseID, _, _ := source.inspect("lbtest:base")
		records := source.capture(st, appID, baseID)
		want := source.docker("run", "--rm", "--network", "none", "lbtest:app")
		if !strings.Contains(want, "security.capability=01") || strings.Contains(want, "/base/dir") {
			t.Fatalf("the image is not what the test means:\n%s", want)
		}
		for _, name := range to {
			t.Run(from+" to "+name, func(t *testing.T) {
				sameImages(t, at(t, from), at(t, name), st, records, want)
			})
		}
	}
}

// sameImages brings the images to the target both ways and compares.
func sameImages(t *testing.T, source, target host, st *layertest.Store, records []*layer.ImageRecord, want string) {
	source.t, target.t = t, t
	_, wantLayers, wantConfig := source.inspect("lbtest:app")
	for _, way := range []string{"pull", "load"} {
		var ho layer.Handover
		ref := "lbtest-got:1"
		if way == "pull" {
			served := target.pull(st, records[0])
			target.docker("tag", served.Ref, ref)
			target.docker("rmi", served.Ref)
			ho = served.Handover
		} else {
			ho = target.load(st, records[0], ref)
		}
		id, layers, config := target.inspect(ref)
		if id != ho.EngineID {
			t.Errorf("%s: image %s, want %s", way, id, ho.EngineID)
		}
		if ho.SameID != (source.containerd == target.containerd) || ho.SameID && id != records[0].ID {
			t.Errorf("%s: same id %t: %s became %s", way, ho.SameID, records[0].ID, id)
		}
		if diff := cmp.Diff(wantLayers, layers); diff != "" {
			t.Errorf("%s: layers:\n%s", way, diff)
		}
		for _, key := range []string{"Env", "Cmd", "Entrypoint", "User", "WorkingDir", "Labels"} {
			if diff := cmp.Diff(wantConfig[key], config[key]); diff != "" {
				t.Errorf("%s: configuration, %s:\n%s", way, key, diff)
			}
		}
		if diff := cmp.Diff(want, target.docker("run", "--rm", "--network", "none", ref)); diff != "" {
			t.Errorf("%s: what the container sees (-source +target):\n%s", way, diff)
		}
		if ho.SameID {
			before := st.Bytes
			again := target.capture(st, id)
			if diff := cmp.Diff(records[0], again[0]); diff != "" {
				t.Errorf("%s: captured again, another record:\n%s", way, diff)
			}
			if st.Bytes != before {
				t.Errorf("%s: captured again, %d bytes were stored", way, st.Bytes-before)
			}
		}
		target.docker("rmi", ref)
	}
}
