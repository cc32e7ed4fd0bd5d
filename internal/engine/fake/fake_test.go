package fake_test

import (
	"os"
	"testing"

	"lifeboat/internal/engine/enginetest"
	"lifeboat/internal/engine/fake"
)

// start makes a fake engine in a directory with a short name.
func start(t *testing.T, o fake.Options) *fake.Engine {
	t.Helper()
	dir, err := os.MkdirTemp("", "lbtest-")
	if err != nil {
		t.Fatal(err)
	}
	o.Dir = dir
	e, err := fake.New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return e
}

func TestConformance(t *testing.T) {
	e := start(t, fake.Options{})
	enginetest.Run(t, enginetest.Target{Host: e.Host(), Dir: t.TempDir()})
}

func TestConformanceNewAPI(t *testing.T) {
	e := start(t, fake.Options{API: "1.51"})
	enginetest.Run(t, enginetest.Target{Host: e.Host(), Dir: t.TempDir()})
}
