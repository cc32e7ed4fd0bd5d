package engine_test

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"lifeboat/internal/engine"
	"lifeboat/internal/engine/enginetest"
	"lifeboat/lab"
)

func TestMain(m *testing.M) {
	lab.Child()
	os.Exit(m.Run())
}

// TestEngines runs the conformance suite on real engines, both kinds of image
// store, and carries a system from each to the other.
func TestEngines(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	l, err := lab.New(ctx, lab.Options{Sites: []lab.SiteOptions{
		{Name: "classic", Engine: lab.EngineDocker20},
		{Name: "content", Engine: lab.EngineContainerd},
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	target := func(site string) enginetest.Target {
		s := l.Site(site)
		dir := filepath.Join(s.Disk, "srv")
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		return enginetest.Target{Host: s.DockerHost(), Dir: dir, ContainerdStore: site == "content"}
	}
	classic, content := target("classic"), target("content")
	t.Run("suite", func(t *testing.T) {
		t.Run("Docker 20.10", func(t *testing.T) {
			t.Parallel()
			enginetest.Run(t, classic)
		})
		t.Run("Docker with the containerd store", func(t *testing.T) {
			t.Parallel()
			enginetest.Run(t, content)
		})
	})
	t.Run("from classic to content", func(t *testing.T) { enginetest.RoundTrip(t, classic, content) })
	t.Run("from content to classic", func(t *testing.T) { enginetest.RoundTrip(t, content, classic) })
}

// composeFile is of the first generation: nothing but the file says what
// depends on what.
const composeFile = `version: "2.4"
services:
  db:
    image: lbtest-probe:1
    volumes: [data:/data]
    healthcheck: {test: [CMD, /probe, exists, /etc/conf], interval: 1s}
  web:
    image: lbtest-probe:1
    env_file: web.env
    depends_on:
      db: {condition: service_healthy}
    networks: {default: {aliases: [shop]}, back: {ipv4_address: 10.123.9.9}}
  side:
    image: lbtest-probe:1
    network_mode: service:web
    volumes_from: [db]
volumes: {data: {}}
networks:
  back: {ipam: {config: [{subnet: 10.123.9.0/24}]}}
`

// TestCompose discovers a project that Compose itself made, makes its containers
// again from the description, and has Compose find nothing to change.
func TestCompose(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	l, err := lab.New(ctx, lab.Options{Sites: []lab.SiteOptions{{Name: "main"}}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	s := l.Main()
	e := enginetest.Open(t, s.DockerHost())
	enginetest.Import(t, e)
	dir := filepath.Join(s.Disk, "srv", "shop")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"docker-compose.yml": composeFile, "web.env": "A=1\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	up := func() string {
		cmd := s.Command(ctx, "docker-compose", "up", "-d")
		cmd.Dir = dir
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("docker-compose up: %v\n%s", err, out)
		}
		return string(out)
	}
	up()
	sys, err := e.Discover(ctx, engine.Selector{Project: "shop"})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, c := range sys.Containers {
		for _, d := range c.DependsOn {
			got = append(got, c.Name+" "+d.Container+" "+d.Condition)
		}
	}
	for _, f := range sys.Files {
		got = append(got, f.Role+" "+f.Path)
	}
	want := []string{
		"shop_side_1 shop_db_1 service_started", "shop_side_1 shop_web_1 service_started", "shop_web_1 shop_db_1 service_healthy",
		"compose " + dir + "/docker-compose.yml", "env " + dir + "/web.env",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("dependencies and files (-want +got):\n%s", d)
	}
	ids := map[string]string{}
	for _, c := range slices.Backward(sys.Containers) {
		if err := e.Remove(ctx, c.ID, engine.RemoveOptions{Force: true}); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"shop_db_1", "shop_web_1", "shop_side_1"} {
		i := slices.IndexFunc(sys.Containers, func(c engine.Container) bool { return c.Name == name })
		if ids[name], err = e.CreateContainer(ctx, sys.Containers[i].Container, engine.CreateOptions{Labels: map[string]string{engine.LabelSystem: "shop"}}); err != nil {
			t.Fatal(err)
		}
		if err := e.Start(ctx, ids[name]); err != nil {
			t.Fatal(err)
		}
		if err := e.WaitHealthy(ctx, ids[name], engine.WaitOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	out := up()
	for name, id := range ids {
		if st, err := e.Container(ctx, name); err != nil || st.ID != id {
			t.Errorf("Compose made container %s anew: %v\n%s", name, err, out)
		}
	}
}
