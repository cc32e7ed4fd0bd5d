package engine_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

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
