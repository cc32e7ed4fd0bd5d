package e2e

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"lifeboat/lab"
	"lifeboat/lab/systems"
)

// projectFiles are the Compose and environment files that a snapshot captured.
func projectFiles(s snapshotJSON) []string {
	var files []string
	for _, c := range s.Coverage {
		if path, ok := strings.CutPrefix(c.Object, "file:"); ok && c.Reason == "" {
			files = append(files, path)
		}
	}
	slices.Sort(files)
	return files
}

// TestHostsBegunAnew: a main site that lost Lifeboat's local state, with its
// engine and data, goes on as the holder when it is told to. One that comes back
// with nothing at all gets everything, project files at their paths included,
// although the stand-in had them elsewhere.
func TestHostsBegunAnew(t *testing.T) {
	r := newRig(t, lab.EngineDocker20, lab.EngineDocker20)
	sys := systems.Torture(systems.Params{})
	if err := sys.Up(t.Context(), r.main, nil); err != nil {
		t.Fatal(err)
	}
	r.init()
	r.must(r.main, nil, "protect", "rack", "--project", sys.Project)
	var first snapshotJSON
	r.must(r.main, &first, "snapshot", "rack")
	files := projectFiles(first)
	if len(files) == 0 {
		t.Fatalf("no project files were captured: %v", first.Coverage)
	}
	content := map[string][]byte{}
	for _, f := range files {
		raw, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		content[f] = raw
	}

	// Lifeboat's own state is lost; the engine and its data stay.
	if err := os.RemoveAll(r.main.StateDir); err != nil {
		t.Fatal(err)
	}
	r.expect(r.main, 13, "--adopt", "snapshot", "rack")
	var again snapshotJSON
	r.must(r.main, &again, "snapshot", "rack", "--adopt")
	if again.Epoch != first.Epoch+1 {
		t.Errorf("adopted with epoch %d after %d", again.Epoch, first.Epoch)
	}
	r.must(r.main, nil, "snapshot", "rack")
	if o := r.try(r.main, "failover", "rack", "--dry-run", "--json"); o.code != 0 {
		t.Errorf("the system's own objects stand in its way: exit %d: %s", o.code, o.stderr)
	}

	// The host is gone, with its disk.
	key, err := os.ReadFile(filepath.Join(r.main.Disk, "etc-lifeboat", "key.txt"))
	if err != nil {
		t.Fatal(err)
	}
	if err := r.main.Destroy(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.must(r.standin, nil, "failover", "rack", "--override", "paths."+r.main.Disk+"="+r.standin.Disk)
	r.must(r.standin, nil, "protect", "rack", "--project", sys.Project)
	var there snapshotJSON
	r.must(r.standin, &there, "snapshot", "rack")
	if got := projectFiles(there); len(got) != len(files) {
		t.Errorf("the stand-in captures the project files %v, the main site had %v", got, files)
	}

	// An empty one takes its place.
	if err := r.main.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.login(r.main)
	r.configure(r.main, "")
	r.write(filepath.Join(r.main.Disk, "etc-lifeboat", "key.txt"), string(key))
	r.must(r.main, nil, "failback", "rack", "--from", r.standin.DockerHost())
	for f, want := range content {
		got, err := os.ReadFile(f)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("project file after the failback: %v; equal: %v", err, bytes.Equal(got, want))
		}
	}
	r.must(r.main, nil, "protect", "rack", "--project", sys.Project)
	var last snapshotJSON
	r.must(r.main, &last, "snapshot", "rack")
	if got := projectFiles(last); !slices.Equal(got, files) {
		t.Errorf("project files of the last snapshot %v, want %v", got, files)
	}
}
