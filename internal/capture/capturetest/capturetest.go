// Package capturetest makes sites for the tests of packages capture and recover:
// a fake engine with a small system on it, a host of a repository in memory, and
// the state of a site.
//
// It holds no assertions about what is tested and is not used outside of tests.
package capturetest

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"lifeboat/internal/casetest"
	"lifeboat/internal/dr"
	"lifeboat/internal/engine"
	"lifeboat/internal/engine/enginetest"
	"lifeboat/internal/engine/fake"
	"lifeboat/internal/freeze"
	"lifeboat/internal/ledger"
	"lifeboat/internal/repo"
	"lifeboat/internal/repo/repotest"
	"lifeboat/internal/site"
	"lifeboat/internal/store"
)

// System is the system that Site.Fill makes, Volume its volume, and Containers
// its containers.
const (
	System  = dr.System("shop")
	Volume  = "shop_data"
	network = "shop_net"
	image   = "shop/app:1"
)

// Containers of the system; the second one uses the first one's volume too.
var Containers = []string{"shop-db", "shop-web"}

// Selector selects the system.
func Selector() engine.Selector { return engine.Selector{Containers: Containers} }

// Main is TestMain's work: the test binary is also the guardian of its freezes,
// and local state lies in memory where there is such a directory, for a test of
// each failure syncs it thousands of times.
func Main(m *testing.M) int {
	if len(os.Args) > 1 && os.Args[1] == freeze.GuardianCommand {
		return freeze.GuardianMain(freeze.GuardianConfig{NewPauser: func(host string) (freeze.Pauser, error) {
			return engine.Open(context.Background(), engine.Options{Host: host})
		}})
	}
	if err := casetest.TempInMemory(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// Site is one site: an engine, and what Lifeboat keeps beside it.
type Site struct {
	Name   dr.Site
	Engine *engine.Engine
	Fake   *fake.Engine
	State  *site.State
}

// New makes a site with an empty engine for the time of the test.
func New(t testing.TB, name string) *Site {
	t.Helper()
	dir, err := os.MkdirTemp("", "lbtest-") // short: it holds a socket
	if err != nil {
		t.Fatal(err)
	}
	f, err := fake.New(fake.Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	s := &Site{Name: dr.Site(name), Engine: enginetest.Open(t, f.Host()), Fake: f}
	s.NewState(t)
	return s
}

// NewState forgets what the site remembers.
func (s *Site) NewState(t testing.TB) {
	t.Helper()
	st, err := site.Open(t.TempDir(), s.Fake.Host())
	if err != nil {
		t.Fatal(err)
	}
	s.State = st
}

// Open opens the repository over st as the host of that name, until close is
// called.
func Open(ctx context.Context, b *repotest.Bed, host string, st store.Store) (r *repo.Repo, l *ledger.Ledger, closeRepo func(), err error) {
	r, err = repo.Open(ctx, st, b.Options(host))
	if err != nil {
		return nil, nil, nil, err
	}
	return r, ledger.New(r, 0, ledger.Here{}), func() { _ = r.Close() }, nil
}

// Log is a logger that says nothing.
func Log() *slog.Logger { return slog.New(slog.DiscardHandler) }

// Fill makes the system on the engine: created, not started.
func (s *Site) Fill(t testing.TB) {
	t.Helper()
	ctx := t.Context()
	must := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	program := filepath.Join(t.TempDir(), "probe") // the fake runs it by its name
	must("program", os.WriteFile(program, bytes.Repeat([]byte("program\n"), 4096), 0o755))
	_, err := s.Engine.ImportImage(ctx, bytes.NewReader(enginetest.RootFS(t, program)), image, []string{`ENTRYPOINT ["/probe"]`, `CMD ["sleep"]`})
	must("image", err)
	_, err = s.Engine.CreateNetwork(ctx, raw(t, map[string]any{"Name": network, "Driver": "bridge"}), nil)
	must("network", err)
	_, err = s.Engine.CreateVolume(ctx, dr.Volume{Name: Volume, Driver: "local", Labels: map[string]string{"k": "v"}}, nil)
	must("volume", err)
	for _, name := range Containers {
		_, err := s.Engine.CreateContainer(ctx, dr.Container{
			Name: name, ImageRef: image, State: "created",
			Config: raw(t, map[string]any{
				"Image": image, "Entrypoint": []string{"/probe"}, "Cmd": []string{"sleep"}, "Labels": map[string]string{"of": "shop"},
				"Healthcheck": map[string]any{"Test": []string{"CMD", "/probe", "out", "ok"}, "Interval": int64(20 * time.Millisecond)},
			}),
			HostConfig: raw(t, map[string]any{"Binds": []string{Volume + ":/data"}, "NetworkMode": network, "RestartPolicy": map[string]any{"Name": "unless-stopped", "MaximumRetryCount": 0}}),
			Endpoints:  map[string]json.RawMessage{network: raw(t, map[string]any{"Aliases": []string{name}})},
		}, engine.CreateOptions{Image: image})
		must("container "+name, err)
		s.Write(t, "layer:"+name, "etc/own", "written in "+name)
	}
	for i := range 5 {
		s.Write(t, "volume:"+Volume, fmt.Sprintf("dir/file%d", i), string(bytes.Repeat([]byte{byte('a' + i)}, 3000*(i+1))))
	}
	s.Write(t, "volume:"+Volume, "big", string(bytes.Repeat([]byte("0123456789abcde\n"), 30000)))
}

func raw(t testing.TB, v any) json.RawMessage {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// Start starts the system's containers.
func (s *Site) Start(t testing.TB) {
	t.Helper()
	for _, name := range Containers {
		if err := s.Engine.Start(t.Context(), name); err != nil {
			t.Fatal(err)
		}
	}
}

// Path is where a tree of the system lies on this machine.
func (s *Site) Path(t testing.TB, key string) string {
	t.Helper()
	if key == "volume:"+Volume {
		v, err := s.Engine.Volume(t.Context(), Volume)
		if err != nil {
			t.Fatal(err)
		}
		return v.Mountpoint
	}
	l, err := s.Engine.WritableLayer(t.Context(), key[len("layer:"):])
	if err != nil {
		t.Fatal(err)
	}
	return l.Upper
}

// Write puts a file into a tree.
func (s *Site) Write(t testing.TB, key, path, text string) {
	t.Helper()
	p := filepath.Join(s.Path(t, key), path)
	if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// Keys of the system's trees.
func Keys() []string {
	keys := []string{"volume:" + Volume}
	for _, c := range Containers {
		keys = append(keys, "layer:"+c)
	}
	return keys
}

// Files describes every file of the system's trees, by tree and path.
func (s *Site) Files(t testing.TB) map[string]string {
	t.Helper()
	out := map[string]string{}
	for _, key := range Keys() {
		root := s.Path(t, key)
		err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			rel, err := filepath.Rel(root, p)
			if err != nil {
				return err
			}
			st, err := d.Info()
			if err != nil {
				return err
			}
			text := fmt.Sprint(st.Mode(), st.ModTime().UnixNano())
			if st.Mode().IsRegular() {
				b, err := os.ReadFile(p)
				if err != nil {
					return err
				}
				text += string(b)
			}
			out[key+"/"+rel] = text
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return out
}

// States are the states of all containers of the engine, by name.
func (s *Site) States(t testing.TB) map[string]string {
	t.Helper()
	inv, err := s.Engine.Inventory(context.WithoutCancel(t.Context()))
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for _, c := range inv.Containers {
		out[c.Name] = c.State
	}
	return out
}

// Serves tells whether any container of the system runs.
func (s *Site) Serves(t testing.TB) bool {
	t.Helper()
	for _, state := range s.States(t) {
		if state != "created" && state != "exited" {
			return true
		}
	}
	return false
}
