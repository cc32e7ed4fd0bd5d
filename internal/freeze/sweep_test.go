package freeze

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// leave writes the record of a freeze that everybody is dead of.
func leave(t *testing.T, dir string, fs []*fixture, change func(*record)) string {
	t.Helper()
	set := newTestSet(t, fs)
	r, err := newRecord(set, Options{FreezeMax: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	if change != nil {
		change(&r)
	}
	h, err := r.write(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.keep)
	return h.path
}

func TestSweep(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(*record)
		text   string // instead of the record, if not empty
		thaws  bool
		keeps  bool
		fails  bool
	}{
		{name: "left over", thaws: true},
		{name: "of an earlier boot", change: func(r *record) { r.BootID = "another" }},
		{name: "container restarted since", change: func(r *record) { r.Containers[0].Inode++ }},
		{name: "seen by other mounts", change: func(r *record) { r.Containers[0].Path = "other/lbtest-" + r.Containers[0].ID }, thaws: true},
		{name: "unfinished", text: `{"version":1,"boot`},
		{name: "path of somebody else", change: func(r *record) { r.Containers[0].Path = "docker/somebody" }, keeps: true, fails: true},
		{name: "path that leads out", change: func(r *record) { r.Containers[0].Path = "../" + r.Containers[0].ID }, keeps: true, fails: true},
		{name: "later version", change: func(r *record) { r.Version = 2 }, keeps: true, fails: true},
		{name: "garbage", text: "garbage\n", keeps: true, fails: true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			eachVersion(t, func(t *testing.T, v int) {
				f := newFixture(t, v)
				dir := t.TempDir()
				path := leave(t, dir, []*fixture{f}, tc.change)
				if tc.text != "" {
					if err := os.WriteFile(path, []byte(tc.text), 0o600); err != nil {
						t.Fatal(err)
					}
				}
				f.write(t, true)
				if thawed, err := Sweep(context.Background(), testHost(t), nil, dir); err != nil || len(thawed) != 0 || !f.asked(t) {
					// Its holder, this test, still lives; a damaged record is
					// an error already.
					if !tc.fails {
						t.Fatalf("swept from under its holder: %v, %v", thawed, err)
					}
				}
				releaseLock(t, path)
				thawed, err := Sweep(context.Background(), testHost(t), nil, dir)
				if (err != nil) != tc.fails {
					t.Errorf("error %v", err)
				}
				if (len(thawed) == 1) != tc.thaws || f.asked(t) == tc.thaws {
					t.Errorf("thawed %v, still asked to freeze: %v", thawed, f.asked(t))
				}
				if _, err := os.Stat(path); (err == nil) != tc.keeps {
					t.Errorf("record: %v", err)
				}
			})
		})
	}
}

// releaseLock ends the hold of the record that this process has.
func releaseLock(t *testing.T, path string) {
	t.Helper()
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	// A fresh file has no lock on it, whoever holds the old one.
	if err := os.WriteFile(path+".new", b, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

func TestSweepOverdueHolder(t *testing.T) {
	f := newFixture(t, versions(t)[0])
	dir := t.TempDir()
	leave(t, dir, []*fixture{f}, func(r *record) { r.Boottime -= int64(time.Hour) })
	f.write(t, true)
	thawed, err := Sweep(context.Background(), testHost(t), nil, dir)
	if err != nil || len(thawed) != 1 {
		t.Errorf("%v, %v", thawed, err)
	}
	mustRun(t, []*fixture{f})
}

func TestSweepNeedsTheEngine(t *testing.T) {
	f := newFixture(t, versions(t)[0])
	dir := t.TempDir()
	path := leave(t, dir, []*fixture{f}, func(r *record) { r.Containers[0] = recordContainer{ID: f.ID, Name: f.Name} })
	releaseLock(t, path)
	f.write(t, true)
	if _, err := Sweep(context.Background(), testHost(t), nil, dir); err == nil || !strings.Contains(err.Error(), "docker unpause "+f.ID) {
		t.Errorf("error %v does not say what to do", err)
	}
	if _, err := Sweep(context.Background(), testHost(t), dirPauser{f.ID: f.dir}, dir); err != nil {
		t.Error(err)
	}
	mustRun(t, []*fixture{f})
	if r := records(t, dir); len(r) != 0 {
		t.Errorf("records left: %v", r)
	}
}

func TestSweepWithoutCgroups(t *testing.T) {
	f := newFixture(t, versions(t)[0])
	dir := t.TempDir()
	path := leave(t, dir, []*fixture{f}, nil)
	releaseLock(t, path)
	for _, h := range []*Host{nil, {proc: "/proc"}} {
		if _, err := Sweep(context.Background(), h, nil, dir); !errors.Is(err, ErrUnreachable) {
			t.Errorf("error %v", err)
		}
		if len(records(t, dir)) != 1 {
			t.Error("record is gone though nobody looked at the cgroup")
		}
	}
}

func TestSweepNothing(t *testing.T) {
	if thawed, err := Sweep(context.Background(), testHost(t), nil, filepath.Join(t.TempDir(), "none")); err != nil || len(thawed) != 0 {
		t.Errorf("%v, %v", thawed, err)
	}
}

// What a freeze with everybody dead has left is swept by the next freeze too,
// which then owns the container and thaws it.
func TestDoSweepsFirst(t *testing.T) {
	f := newFixture(t, versions(t)[0])
	dir := t.TempDir()
	releaseLock(t, leave(t, dir, []*fixture{f}, nil))
	f.write(t, true)
	rep, err := Do(context.Background(), newTestSet(t, []*fixture{f}), Options{StateDir: dir}, func(context.Context) error { return nil })
	if err != nil || rep.Containers != 1 {
		t.Errorf("%+v, %v", rep, err)
	}
	mustRun(t, []*fixture{f})
}
