package repo_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"filippo.io/age"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"

	"lifeboat/internal/registry"
	"lifeboat/internal/registry/registrytest"
	"lifeboat/internal/repo"
	"lifeboat/internal/repo/readlog"
	"lifeboat/internal/seal"
	"lifeboat/internal/store"
	"lifeboat/internal/store/ocistore"
)

// linked is a repository in Lifeboat's own registry, and an exact copy of it.
type linked struct {
	t         *testing.T
	reg, copy *registrytest.Registry
	dir       string
	id        *age.X25519Identity
}

func newLinked(t *testing.T) *linked {
	t.Helper()
	rc, id := recipient(t, "ops")
	plain := func(c *registry.Config) { c.PlainHTTP = true }
	l := &linked{t: t, reg: registrytest.Start(t, plain), dir: t.TempDir(), id: id}
	made, err := repo.Create(t.Context(), l.store(l.reg), repo.CreateOptions{Local: l.host("main").Local, Recipients: []seal.Recipient{rc}, Host: l.host("main").Host})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(made.PutRecord(t.Context(), "e.shop.1", claim(made, 1, nil)), made.Close()); err != nil {
		t.Fatal(err)
	}
	main := l.open("main")
	for i := range 3 {
		if _, _, err := snapshot(t.Context(), main, repo.WriterOptions{System: "shop"}, "main", content(uint64(i), 5)); err != nil {
			t.Fatal(err)
		}
	}
	if ps, err := main.Check(t.Context()); err != nil || len(ps) > 0 {
		t.Fatal(ps, err)
	}
	to := filepath.Join(t.TempDir(), "copy")
	if err := os.CopyFS(filepath.Join(to, "store"), os.DirFS(filepath.Join(l.reg.Data, "store"))); err != nil {
		t.Fatal(err)
	}
	l.copy = registrytest.Start(t, plain, func(c *registry.Config) { c.Data = to })
	return l
}

func (l *linked) store(r *registrytest.Registry) store.Store {
	l.t.Helper()
	st, err := ocistore.Open(l.t.Context(), r.URL("dr"), r.Options())
	if err != nil {
		l.t.Fatal(err)
	}
	return st
}

func (l *linked) host(name string) repo.OpenOptions {
	l.t.Helper()
	dir := filepath.Join(l.dir, name)
	key, err := repo.LoadOrCreateHostKey(dir)
	if err != nil {
		l.t.Fatal(err)
	}
	return repo.OpenOptions{
		Local:      repo.Local{Location: l.reg.URL("dr"), StateDir: dir, CacheDir: filepath.Join(dir, "cache")},
		Identities: []age.Identity{l.id}, Host: key, HostName: name,
		ForRepair: name == "main",
	}
}

func (l *linked) open(name string) *repo.Repo {
	l.t.Helper()
	r, err := open(l.t, l.store(l.reg), l.host(name))
	if err != nil {
		l.t.Fatal(err)
	}
	return r
}

func (l *linked) tagDir(tag string) string {
	return filepath.Join(l.reg.Data, "store/docker/registry/v2/repositories/dr/_manifests/tags", tag)
}

// damage lets the file of a tag say something else; with history what else tells what
// the tag was given is gone, too.
func (l *linked) damage(tag, link string, history bool) {
	l.t.Helper()
	if err := os.WriteFile(filepath.Join(l.tagDir(tag), "current", "link"), []byte(link), 0o600); err != nil {
		l.t.Fatal(err)
	}
	if history {
		if err := os.RemoveAll(filepath.Join(l.tagDir(tag), "index")); err != nil {
			l.t.Fatal(err)
		}
	}
}

func (l *linked) packTag() string {
	l.t.Helper()
	tags, err := l.store(l.reg).Tags(l.t.Context(), "m.")
	if err != nil || len(tags) == 0 {
		l.t.Fatal(tags, err)
	}
	return tags[0]
}

// repair is the dry run and then the real one, which have to say the same.
func (l *linked) repair() *repo.Repaired {
	l.t.Helper()
	o := repo.RepairOptions{From: []repo.RepairSource{{Name: "copy", Exact: l.store(l.copy)}}}
	run := func(dry bool) (*repo.Repaired, []string) {
		o.DryRun = dry
		res, err := l.open("main").Repair(l.t.Context(), o)
		if err != nil {
			l.t.Fatalf("dry run %v: %v\n%+v", dry, err, res.Steps)
		}
		return res, told(l.t, res)
	}
	_, dry := run(true)
	res, done := run(false)
	if diff := cmp.Diff(done, dry); diff != "" {
		l.t.Errorf("the real run (-) and the dry run (+):\n%s", diff)
	}
	return res
}

// A link of a tag that a disk has damaged is mended at Lifeboat's registry, of each
// class, and whatever it says; the other damage with it.
func TestRepairOfDamagedLinks(t *testing.T) {
	t.Parallel()
	for _, tag := range []string{"key.1", "host.1", "e.shop.1", "s.shop.1", "s.shop.3", "m"} {
		for _, kind := range []string{"moved", "dangling"} {
			t.Run(tag+" "+kind, func(t *testing.T) {
				t.Parallel()
				l, tag := newLinked(t), tag
				if tag == "m" {
					tag = l.packTag()
				}
				d, err := l.store(l.reg).ResolveTag(t.Context(), "s.shop.2")
				if err != nil {
					t.Fatal(err)
				}
				if kind == "dangling" {
					d = digest.Digest("sha256:" + strings.Repeat("07", 32))
				}
				before, err := os.ReadFile(filepath.Join(l.tagDir(tag), "current", "link"))
				if err != nil {
					t.Fatal(err)
				}
				l.damage(tag, d.String(), false)
				res := l.repair()
				if !res.Healed() {
					t.Errorf("%+v, %v", res.Steps, res.After.Problems)
				}
				after, err := os.ReadFile(filepath.Join(l.tagDir(tag), "current", "link"))
				if err != nil || string(after) != string(before) {
					t.Errorf("names %s, was %s: %v", after, before, err)
				}
				if ps := examine(t, l.open("fresh"), repo.ExamineOptions{Read: &readlog.Subset{}}).Problems; len(ps) > 0 {
					t.Errorf("%v", ps)
				}
			})
		}
	}
}

// A tag that the registry does not take again is not taken away either; what it was
// is told, and the rest is mended.
func TestRepairKeepsWhatCannotBePutAgain(t *testing.T) {
	t.Parallel()
	for _, tag := range []string{"key.1", "host.1", "e.shop.1"} {
		t.Run(tag, func(t *testing.T) {
			t.Parallel()
			l := newLinked(t)
			d, err := l.store(l.reg).ResolveTag(t.Context(), "s.shop.2")
			if err != nil {
				t.Fatal(err)
			}
			l.damage(tag, d.String(), true)
			if tag != "host.1" { // without which no snapshot counts
				l.damage("s.shop.1", d.String(), false)
			}
			res := l.repair()
			refused := res.Refused()
			if res.Healed() || len(refused) != 1 || refused[0].Tag != tag || !errors.Is(refused[0].Err, store.ErrTagTaken) {
				t.Errorf("%+v", res.Steps)
			}
			tags, err := l.store(l.reg).Tags(t.Context(), "")
			if err != nil || !slices.Contains(tags, tag) || slices.ContainsFunc(tags, func(s string) bool { return strings.HasPrefix(s, "aside.") }) {
				t.Errorf("left: %v, %v", tags, err)
			}
			if tag == "host.1" {
				return
			}
			want, err := l.store(l.copy).ResolveTag(t.Context(), "s.shop.1")
			if got, gerr := l.store(l.reg).ResolveTag(context.WithoutCancel(t.Context()), "s.shop.1"); err != nil || gerr != nil || got != want {
				t.Errorf("s.shop.1 is %s: %v, %v", got, err, gerr)
			}
		})
	}
}
