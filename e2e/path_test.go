package e2e

import (
	"strings"
	"testing"

	"lifeboat/lab"
	"lifeboat/lab/systems"
	"lifeboat/lab/treecmp"
)

// stopped brings a system to rest and takes the fingerprints of all its trees.
func stopped(t *testing.T, sys *systems.System, s *lab.Site) map[string]treecmp.Tree {
	t.Helper()
	out, err := s.Docker(t.Context(), "ps", "--quiet", "--filter", "label=com.docker.compose.project="+sys.Project)
	if err != nil {
		t.Fatal(err)
	}
	if ids := fields(out); len(ids) > 0 {
		if _, err := s.Docker(t.Context(), append([]string{"stop", "--time", "3"}, ids...)...); err != nil {
			t.Fatal(err)
		}
	}
	trees, err := sys.Fingerprints(t.Context(), s, systems.Upper)
	if err != nil {
		t.Fatal(err)
	}
	return trees
}

func compare(t *testing.T, when string, want, got map[string]treecmp.Tree) {
	t.Helper()
	for _, trees := range []map[string]treecmp.Tree{want, got} {
		// Volumes that are mounted only while a container runs.
		delete(trees, "volume rack_memory")
		delete(trees, "volume rack_elsewhere")
	}
	if diff := systems.CompareTrees(want, got, treecmp.Rules{}); diff != "" {
		t.Errorf("%s the trees differ:\n%s", when, diff)
	}
}

// TestTreesComeBackInvariant3 takes a system whose trees hold everything that a
// file system can hold from the main site to the stand-in and back, at rest, and
// compares all content and metadata by a walker that is not the code under test.
func TestTreesComeBackInvariant3(t *testing.T) {
	r := newRig(t, lab.EngineDocker20, lab.EngineDocker20)
	sys := systems.Torture(systems.Params{})
	if err := sys.Up(t.Context(), r.main, nil); err != nil {
		t.Fatal(err)
	}
	r.init()
	r.must(r.main, nil, "protect", "rack", "--project", sys.Project)
	var running, rest snapshotJSON
	r.must(r.main, &running, "snapshot", "rack")
	atMain := stopped(t, sys, r.main)
	r.must(r.main, &rest, "snapshot", "rack")
	if err := r.main.Crash(t.Context()); err != nil {
		t.Fatal(err)
	}
	var up bringJSON
	r.must(r.standin, &up, "failover", "rack", "--override", "paths."+r.main.Disk+"="+r.standin.Disk)
	if up.Epoch != 2 || up.Snapshot != rest.Snapshot {
		t.Errorf("failover gave epoch %d of snapshot %s, want 2 of %s", up.Epoch, up.Snapshot, rest.Snapshot)
	}
	compare(t, "after the failover", atMain, stopped(t, sys, r.standin))

	// The stand-in runs for a while and writes.
	out, err := r.standin.Docker(t.Context(), "ps", "--all", "--quiet", "--filter", "label=com.docker.compose.service=busy")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.standin.Docker(t.Context(), append([]string{"start"}, fields(out)...)...); err != nil {
		t.Fatal(err)
	}
	if err := sys.AwaitServing(t.Context(), r.standin); err != nil {
		t.Fatal(err)
	}
	r.must(r.standin, nil, "protect", "rack", "--project", sys.Project)
	var there snapshotJSON
	r.must(r.standin, &there, "snapshot", "rack")
	for _, c := range there.Coverage {
		if strings.Contains(c.Reason, "configured anew") {
			t.Errorf("nobody has touched %s: %s", c.Object, c.Reason)
		}
	}
	atStandin := stopped(t, sys, r.standin)

	// The main site comes back by itself, with its old disk: it is told that it is stale.
	if err := r.main.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if o := r.try(r.main, "snapshot", "rack", "--json"); o.code != 13 {
		t.Errorf("a stale main site took a snapshot: exit %d, want 13\n%s%s", o.code, o.stdout, o.stderr)
	}
	var back bringJSON
	r.must(r.main, &back, "failback", "rack", "--from", r.standin.DockerHost())
	if back.Epoch != 3 {
		t.Errorf("failback gave epoch %d, want 3", back.Epoch)
	}
	t.Logf("failback fetched %d bytes", back.BytesFetched)
	compare(t, "after the failback", atStandin, stopped(t, sys, r.main))
}
