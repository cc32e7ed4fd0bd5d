package tree_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"lifeboat/internal/catalog"
	"lifeboat/internal/dr"
	"lifeboat/internal/tree"
)

// cutOff is a repository whose answers end once so many bytes of content came:
// with an error, as a network does, or with the process.
type cutOff struct {
	*memory
	left    atomic.Int64
	kill    bool
	arrived string // file that says how many bytes came before the process was killed
	came    atomic.Int64
	dying   sync.Mutex
}

var errCutOff = errors.New("connection lost")

func (c *cutOff) Fetch(ctx context.Context, refs []dr.UnitRef, fn func(int, []byte) error) error {
	return c.memory.Fetch(ctx, refs, func(i int, data []byte) error {
		if c.left.Add(-int64(len(data))) < 0 {
			if !c.kill {
				return errCutOff
			}
			c.dying.Lock() // never unlocked
			if err := os.WriteFile(c.arrived, fmt.Append(nil, c.came.Load()), 0o600); err != nil {
				return err
			}
			return unix.Kill(os.Getpid(), unix.SIGKILL)
		}
		// What fn has taken is on disk; what another goroutine is writing at the
		// moment of the kill may be sent again.
		err := fn(i, data)
		c.came.Add(int64(len(data)))
		return err
	})
}

// restoring is one way to bring a tree to disk.
type restoring func(ctx context.Context, dest, state string, target *catalog.Reader, src tree.UnitFetcher, again bool) (tree.ApplyStats, error)

var restorings = map[string]restoring{
	"apply": func(ctx context.Context, dest, state string, target *catalog.Reader, src tree.UnitFetcher, _ bool) (tree.ApplyStats, error) {
		return tree.Apply(ctx, dest, nil, target, src, tree.ApplyOptions{Key: "volume:dest", StateDir: state, CutKey: cutKey, UnitID: unitID, Now: later})
	},
	"extract": func(ctx context.Context, dest, state string, target *catalog.Reader, src tree.UnitFetcher, again bool) (tree.ApplyStats, error) {
		return tree.Extract(ctx, dest, target, src, tree.ExtractOptions{CutKey: cutKey, UnitID: unitID, TempDir: state, Resume: again, Exclude: []string{"mine"}})
	},
	"in place": func(ctx context.Context, dest, state string, target *catalog.Reader, src tree.UnitFetcher, _ bool) (tree.ApplyStats, error) {
		return tree.Extract(ctx, dest, target, src, tree.ExtractOptions{CutKey: cutKey, UnitID: unitID, TempDir: state, InPlace: true, Remove: true})
	},
}

// TestResumeChild is the process that TestResumedRestoreFetchesTheRest kills.
func TestResumeChild(t *testing.T) {
	args := strings.Split(os.Getenv("LBTEST_RESUME"), "\n")
	if len(args) != 6 {
		return
	}
	m, table := load(t, args[1])
	n, err := strconv.ParseInt(args[4], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	c := &cutOff{memory: m, kill: true, arrived: args[5]}
	c.left.Store(n)
	target, err := catalog.Open(t.Context(), m, table)
	if err != nil {
		t.Fatal(err)
	}
	_, err = restorings[args[0]](t.Context(), args[2], args[3], target, c, false)
	t.Fatalf("it was not killed: %v", err)
}

// furnishLarge makes a tree in which the kinds of content are large enough that a
// run is cut off in the middle of a file.
func furnishLarge(t *testing.T, f *fixture) {
	t.Helper()
	furnish(t, f)
	for i := range 400 {
		f.write(fmt.Sprintf("small/d%d/f%d", i%20, i), randomBytes(uint64(i), 1+i*97))
	}
	f.write("large/video.mp4", randomBytes(7001, 24<<20))
	f.write("mysql/ibdata1.ibd", randomBytes(7002, 6<<20))
	sparse := filepath.Join(f.root, "large", "sparse")
	if err := errors.Join(os.WriteFile(sparse, randomBytes(7003, 1<<20), 0o600), os.Truncate(sparse, 64<<20)); err != nil {
		t.Fatal(err)
	}
}

// TestResumedRestoreFetchesTheRest: a restore that was cut off, by the network or
// by a kill, fetches in its second run what had not arrived in the first, and no
// more than the pieces at the edges of what was missing beside it.
func TestResumedRestoreFetchesTheRest(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	furnishLarge(t, f)
	res, _ := f.capture(nil)
	dump := f.dump(res, res)
	probe := &cutOff{memory: f.repo}
	probe.left.Store(1 << 40)
	if _, err := restorings["apply"](t.Context(), filepath.Join(t.TempDir(), "dest"), t.TempDir(), f.open(res), probe, false); err != nil {
		t.Fatal(err)
	}
	total := probe.came.Load()
	for way, restore := range restorings {
		for _, percent := range []int64{10, 50, 90, 99} {
			for _, how := range []string{"network", "kill"} {
				t.Run(fmt.Sprint(way, "/", how, "/", percent), func(t *testing.T) {
					t.Parallel()
					dest, state := filepath.Join(t.TempDir(), "dest"), t.TempDir()
					limit := total * percent / 100
					var arrived int64
					if how == "network" {
						c := &cutOff{memory: f.repo}
						c.left.Store(limit)
						if _, err := restore(t.Context(), dest, state, f.open(res), c, false); !errors.Is(err, errCutOff) {
							t.Fatalf("it was not cut off: %v", err)
						}
						arrived = c.came.Load()
					} else {
						arrived = killedRestore(t, way, dump, dest, state, limit)
					}
					whole := &cutOff{memory: f.repo}
					whole.left.Store(1 << 40)
					st, err := restore(t.Context(), dest, state, f.open(res), whole, true)
					if err != nil {
						t.Fatal(err)
					}
					same(t, f.root, dest)
					// Content-defined pieces at both edges of a gap may be cut otherwise, and
					// four pieces at a time are on their way.
					const edges = 8 << 20
					t.Logf("%d of %d arrived, %d fetched", arrived, total, st.BytesFetched)
					if st.BytesFetched != whole.came.Load() || st.BytesFetched > total-arrived+edges {
						t.Errorf("of %d bytes %d had arrived, and %d (%d came) were fetched again", total, arrived, st.BytesFetched, whole.came.Load())
					}
					if st, err = restore(t.Context(), dest, state, f.open(res), f.repo, true); err != nil || st.BytesFetched+st.Created+st.Changed+st.Removed > 0 {
						t.Errorf("once more: %+v, %v", st, err)
					}
				})
			}
		}
	}
}

// killedRestore runs a restore in a process that is killed, and says how much
// content had arrived.
func killedRestore(t *testing.T, way, dump, dest, state string, limit int64) int64 {
	t.Helper()
	said := filepath.Join(t.TempDir(), "arrived")
	cmd := exec.Command(os.Args[0], "-test.run=^TestResumeChild$")
	cmd.Env = append(os.Environ(), "LBTEST_RESUME="+strings.Join([]string{way, dump, dest, state, fmt.Sprint(limit), said}, "\n"))
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || !exit.ProcessState.Sys().(interface{ Signaled() bool }).Signaled() {
		t.Fatalf("it was not killed: %v\n%s", err, out)
	}
	raw, err := os.ReadFile(said)
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.ParseInt(string(raw), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestExtractResumesItsOwnOnly: what no earlier run can have made is not touched,
// and nothing is written beside it.
func TestExtractResumesItsOwnOnly(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	furnishLarge(t, f)
	res, _ := f.capture(nil)
	dest := filepath.Join(t.TempDir(), "dest")
	c := &cutOff{memory: f.repo}
	c.left.Store(4 << 20)
	extract := restorings["extract"]
	if _, err := extract(t.Context(), dest, t.TempDir(), f.open(res), c, false); !errors.Is(err, errCutOff) {
		t.Fatal(err)
	}
	stranger := filepath.Join(dest, "stranger")
	for _, name := range []string{stranger, filepath.Join(dest, "mine")} {
		if err := os.WriteFile(name, []byte("of the user"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if st, err := extract(t.Context(), dest, t.TempDir(), f.open(res), f.repo, true); !errors.Is(err, dr.ErrUsage) || st.BytesWritten != 0 || st.Removed != 0 {
		t.Fatalf("%+v, %v", st, err)
	}
	if err := os.Remove(stranger); err != nil {
		t.Fatal(err)
	}
	if _, err := extract(t.Context(), dest, t.TempDir(), f.open(res), f.repo, true); err != nil {
		t.Fatal(err)
	}
	if raw, err := os.ReadFile(filepath.Join(dest, "mine")); err != nil || string(raw) != "of the user" {
		t.Errorf("what was excluded: %q, %v", raw, err)
	}
	if err := os.Remove(filepath.Join(dest, "mine")); err != nil {
		t.Fatal(err)
	}
	top, err := os.Stat(f.root)
	if err == nil {
		err = os.Chtimes(dest, top.ModTime(), top.ModTime())
	}
	if err != nil {
		t.Fatal(err)
	}
	same(t, f.root, dest)
}
