package tree_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"lifeboat/internal/tree"
)

// mutator changes a tree at random, as applications do. What cannot be done
// (the path is a directory by now, say) is not done.
type mutator struct {
	root string
	rng  *rand.Rand
}

// path draws a path below the root that leads through directories only: a
// planted link must not take the test outside.
func (m *mutator) path() string {
	p := m.root
	for range 1 + m.rng.IntN(3) {
		if st, err := os.Lstat(p); err != nil || !st.IsDir() {
			break
		}
		p = filepath.Join(p, fmt.Sprintf("n%d", m.rng.IntN(6)))
	}
	return p
}

// plain reports whether p may be written to as a file: nothing is there, or a
// regular file, no link and nothing that blocks.
func plain(p string) bool {
	st, err := os.Lstat(p)
	return os.IsNotExist(err) || err == nil && st.Mode().IsRegular()
}

func (m *mutator) bytes() []byte {
	size := []int{0, 1, 100, 5000, 300 << 10, 1200 << 10}[m.rng.IntN(6)]
	return randomBytes(m.rng.Uint64N(1<<24), size)
}

// step makes one change.
func (m *mutator) step() {
	p, q := m.path(), m.path()
	switch m.rng.IntN(16) {
	case 0, 1:
		_ = os.Mkdir(p, 0o755)
	case 2, 3, 4:
		if !plain(p) {
			return
		}
		_ = os.WriteFile(p, m.bytes(), os.FileMode(0o600+m.rng.IntN(0o200)))
	case 5:
		if !plain(p) {
			return
		}
		_ = insertAt(p, int64(m.rng.IntN(1<<20)), m.bytes())
	case 6:
		if !plain(p) {
			return
		}
		_ = os.Truncate(p, int64(m.rng.IntN(2<<20)))
	case 7:
		_ = os.Rename(p, q)
	case 8:
		_ = os.Link(p, q)
	case 9:
		if m.rng.IntN(3) == 0 {
			_ = os.RemoveAll(p)
		} else {
			_ = os.Remove(p)
		}
	case 10:
		_ = os.Symlink([]string{"/nonexistent/lbtest", "n0/../n1", "n1", "n2/n3"}[m.rng.IntN(4)], p)
	case 11:
		_ = os.Lchown(p, m.rng.IntN(3), m.rng.IntN(3))
	case 12:
		_ = unix.Lsetxattr(p, fmt.Sprintf("trusted.t%d", m.rng.IntN(3)), m.bytes()[:0], 0)
		_ = unix.Lremovexattr(q, fmt.Sprintf("trusted.t%d", m.rng.IntN(3)))
	case 13:
		if !plain(p) {
			return
		}
		_ = punch(p, int64(m.rng.IntN(1<<20)), int64(1+m.rng.IntN(1<<20)))
	case 14:
		ts := []unix.Timespec{{}, {Sec: m.rng.Int64N(1<<33) - 1<<32, Nsec: m.rng.Int64N(1e9)}}
		_ = unix.UtimesNanoAt(unix.AT_FDCWD, p, ts, unix.AT_SYMLINK_NOFOLLOW)
	case 15:
		_ = unix.Mknod(p, []uint32{unix.S_IFIFO, unix.S_IFSOCK, unix.S_IFCHR, unix.S_IFBLK}[m.rng.IntN(4)]|0o640, int(unix.Mkdev(9, uint32(m.rng.IntN(3)))))
	}
	if m.rng.IntN(4) == 0 {
		_ = unix.Fchmodat(unix.AT_FDCWD, q, uint32(m.rng.IntN(0o10000)), unix.AT_SYMLINK_NOFOLLOW)
	}
}

// TestRandom: trees that change at random between and during captures are
// captured as they are, and every state can be reached from the one before, in
// place, from anything else, and from nothing.
func TestRandom(t *testing.T) {
	t.Parallel()
	for seed := range uint64(6) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			t.Parallel()
			f := newFixture(t)
			f.sync = true
			f.opts = func(o *tree.CaptureOptions) { o.Budget = tree.NewBudget(int64(seed%3) * (200 << 10)) }
			m := &mutator{root: f.root, rng: rand.New(rand.NewPCG(seed, 99))}
			many := func(n int) func() {
				return func() {
					for range n {
						m.step()
					}
				}
			}
			many(300)()
			inPlace, jumpy := t.TempDir(), t.TempDir()
			prev, _ := f.capture(many(20))
			f.check(prev)
			mustApply(t, f, inPlace, nil, prev)
			same(t, f.root, inPlace)
			for round := range 6 {
				many(10 + round*20)()
				next, _ := f.capture(many(round * 10))
				f.check(next)
				mustApply(t, f, inPlace, f.open(prev), next)
				same(t, f.root, inPlace)
				if round%3 == 2 {
					mustApply(t, f, jumpy, nil, next)
					same(t, f.root, jumpy)
					// What Apply remembered is true: a capture from it sees the same.
					g := &fixture{t: t, root: jumpy, state: f.state, repo: f.repo}
					g.opts = func(o *tree.CaptureOptions) { o.Key = "volume:dest" }
					res, _ := g.capture(nil)
					g.check(res)
				}
				prev = next
			}
		})
	}
}
