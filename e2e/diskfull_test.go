package e2e

import (
	"crypto/sha256"
	"os"
	"path/filepath"
	"testing"

	"lifeboat/lab"
)

// mount puts a file system in memory of a bounded size at a path of a site, or
// changes the size of the one that is there.
func (r *rig) mount(s *lab.Site, path, options string) {
	r.t.Helper()
	if err := os.MkdirAll(path, 0o755); err != nil {
		r.t.Fatal(err)
	}
	if out, err := s.Command(r.t.Context(), "mount", "-t", "tmpfs", "-o", options, "lbtest", path).CombinedOutput(); err != nil {
		r.t.Fatalf("mount %s: %v: %s", path, err, out)
	}
}

// digestAt is the digest of a file as a site sees it.
func (r *rig) digestAt(s *lab.Site, path string) [sha256.Size]byte {
	r.t.Helper()
	out, err := s.Command(r.t.Context(), "cat", path).Output()
	if err != nil {
		r.t.Fatalf("read %s at %s: %v", path, s.Name, err)
	}
	return sha256.Sum256(out)
}

// TestDiskFull: the registry's disk, then the stand-in's, is too small: a clear
// error, the service goes on, nothing is lost, and the same command succeeds
// once there is room (invariants 1 and 8).
func TestDiskFull(t *testing.T) {
	r := newRig(t, lab.EngineDocker20, lab.EngineDocker20)
	r.stopRegistry()
	store := filepath.Join(r.cloud.Disk, "registry")
	r.mount(r.cloud, store, "size=24m")
	r.startRegistry()
	if err := imagesOf(t, r.main); err != nil {
		t.Fatal(err)
	}
	bind := filepath.Join(r.main.Disk, "srv", "big")
	if _, err := r.main.Docker(t.Context(), "run", "--detach", "--no-healthcheck", "--name", "count", "--volume", "count_data:/vol", "--volume", bind+":/big",
		"--entrypoint", "/bin/sh", torture, "-c", "[ -e /big/file ] || { echo 0 > /vol/n; head -c 30000000 /dev/urandom > /big/file; }; "+counter); err != nil {
		t.Fatal(err)
	}
	progressing(t, r.main)
	r.init()
	r.must(r.main, nil, "protect", "count", "--container", "count")
	r.expect(r.main, 1, "space", "snapshot", "count")
	progressing(t, r.main)
	r.expect(r.main, 10, "no snapshot", "snapshots", "count")

	r.mount(r.cloud, store, "remount,size=512m")
	r.must(r.main, nil, "snapshot", "count")
	r.must(r.main, nil, "check")
	r.must(r.main, nil, "verify")
	want := r.digestAt(r.main, filepath.Join(bind, "file"))
	if err := r.main.Crash(t.Context()); err != nil {
		t.Fatal(err)
	}

	small := filepath.Join(r.standin.Disk, "small")
	r.mount(r.standin, small, "size=16m")
	args := []string{"failover", "count", "--yes", "--override", "paths." + bind + "=" + small}
	r.expect(r.standin, 1, "no space left", args...)
	if out, err := r.standin.Docker(t.Context(), "ps", "--quiet"); err != nil || len(fields(out)) != 0 {
		t.Errorf("something runs although its data is not whole: %s, %v", out, err)
	}
	r.mount(r.standin, small, "remount,size=256m")
	r.must(r.standin, nil, args...)
	progressing(t, r.standin)
	if got := r.digestAt(r.standin, filepath.Join(small, "file")); got != want {
		t.Error("the file is not what was captured")
	}
}
