package enginetest

import (
	"context"
	"os"
	"path/filepath"

	"lifeboat/internal/dr"
)

// testUsers: who has a directory is told by what it is, not by what it is called,
// and only of those that run.
func testUsers(f *fixture) {
	ctx := f.Context()
	dir := filepath.Join(f.target.Dir, "users")
	below, link, beside := filepath.Join(dir, "a", "b"), filepath.Join(f.target.Dir, "users-link"), filepath.Join(f.target.Dir, "users2")
	for _, d := range []string{below, beside} {
		f.ok("make directory", os.MkdirAll(d, 0o755))
	}
	f.ok("make link", os.Symlink(dir, link))
	deep := filepath.Join(beside, "deep")
	f.ok("make link", os.Symlink(below, deep))
	f.Cleanup(func() {
		for _, d := range []string{dir, beside, link} {
			f.ok("clean up", os.RemoveAll(d))
		}
	})
	_, err := f.e.CreateVolume(ctx, dr.Volume{Name: "lbtest-vol", Driver: "local"}, nil)
	f.ok("create volume", err)
	f.Cleanup(func() { f.ok("remove volume", f.e.RemoveVolume(context.Background(), "lbtest-vol")) })
	id := f.container("lbtest-c", m{}, m{"Binds": []string{filepath.Join(dir, "a") + ":/tmp", "lbtest-vol:/data"}}, nil)
	vol, err := f.e.Volume(ctx, "lbtest-vol")
	f.ok("volume", err)
	h, err := f.e.HostFS(ctx)
	f.ok("host", err)
	if !h.Local {
		f.Fatalf("the engine's files are elsewhere: %s", h.Reason)
	}
	volume, err := h.Path(vol.Mountpoint)
	f.ok("path of the volume", err)
	users := func(dir string, want ...string) {
		f.Helper()
		got, err := f.e.Users(ctx, h, dir)
		f.ok("users of "+dir, err)
		f.equal("users of "+dir, got, want)
	}
	users(dir)
	f.start(id)
	for _, d := range []string{dir, filepath.Join(dir, "a"), below, link, filepath.Join(link, "a"), deep, volume, filepath.Join(volume, "new")} {
		users(d, "lbtest-c")
	}
	users(beside)
	f.ok("pause", f.e.Pause(ctx, id))
	users(below, "lbtest-c")
	f.ok("unpause", f.e.Unpause(ctx, id))
	f.ok("kill", f.e.Kill(ctx, id, ""))
	f.state(id, "exited")
	users(below)
}
