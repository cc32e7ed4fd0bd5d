package e2e

import (
	"testing"

	"lifeboat/lab"
	"lifeboat/lab/systems"
)

// TestWholePathTorture: protect, snapshot, lose the main site, fail over with
// nothing but key and registry.
func TestWholePathTorture(t *testing.T) {
	r := newRig(t, lab.EngineDocker20, lab.EngineDocker20)
	sys := systems.Torture(systems.Params{})
	if err := sys.Up(t.Context(), r.main, nil); err != nil {
		t.Fatal(err)
	}
	r.init()
	r.must(r.main, nil, "protect", "rack", "--project", sys.Project)
	var first, second snapshotJSON
	r.must(r.main, &first, "snapshot", "rack")
	r.must(r.main, &second, "snapshot", "rack")
	t.Logf("first %+v", first)
	t.Logf("second %+v", second)
	if err := r.main.Destroy(t.Context()); err != nil {
		t.Fatal(err)
	}
	var up bringJSON
	r.must(r.standin, &up, "failover", "rack")
	t.Logf("failover %+v", up)
	if err := sys.AwaitServing(t.Context(), r.standin); err != nil {
		t.Fatal(err)
	}
}
