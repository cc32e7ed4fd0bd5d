package repo_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"

	"lifeboat/internal/dr"
	"lifeboat/internal/repo"
	"lifeboat/internal/repo/repotest"
	"lifeboat/internal/retain"
	"lifeboat/internal/store"
)

// A tag that is listed and whose manifest is lost is damage, to hosts that have seen
// what it named as to those that have not: nobody forgets and leaves the tag. Nothing
// is removed on the strength of it, and what has a copy puts it back.
func TestLostManifest(t *testing.T) {
	t.Parallel()
	base := repotest.NewBed(t)
	main := base.Host("main")
	if err := main.PutRecord(t.Context(), "e.shop.1", claim(main, 1, nil)); err != nil {
		t.Fatal(err)
	}
	var last *repo.Snapshot
	units := map[dr.Number][][]byte{}
	for n := dr.Number(1); n <= 3; n++ {
		units[n] = content(uint64(n), 3)
		last = mustSnapshot(t, main, "shop", last, units[n])
	}
	second, err := main.Find(t.Context(), "shop", "#2")
	if err != nil {
		t.Fatal(err)
	}
	if err := main.Lock(t.Context(), second, "evidence"); err != nil {
		t.Fatal(err)
	}
	for _, tag := range []string{"s.shop.1", "s.shop.2", "s.shop.3", "e.shop.1", "l.shop.2.1", "host.1"} {
		t.Run(tag, func(t *testing.T) {
			t.Parallel()
			b := base.ForkFor(t)
			mirror := b.Store.Clone()
			d, err := b.Store.ResolveTag(t.Context(), tag)
			if err != nil || !b.Store.DropManifest(d) {
				t.Fatalf("drop %s: %v", d, err)
			}
			for _, host := range []string{"main", "empty"} {
				h := b.Host(host)
				for what, look := range map[string]func() ([]repo.Problem, error){
					"check":  func() ([]repo.Problem, error) { return h.Check(t.Context()) },
					"verify": func() ([]repo.Problem, error) { return h.Verify(t.Context(), nil) },
				} {
					problems, err := look()
					if err != nil {
						t.Fatalf("%s at %s: %v", what, host, err)
					}
					if !slices.ContainsFunc(problems, func(p repo.Problem) bool { return p.Tag == tag && errors.Is(p.Err, dr.ErrTampered) && !p.Foreign() }) {
						t.Errorf("%s at %s finds %v; want damage of %s", what, host, problems, tag)
					}
				}
			}
			h := b.Host("main")
			if at, err := repo.ParseTag(tag); err == nil && at.Class == repo.ClassSnapshot {
				_, err := h.Find(t.Context(), "shop", "#"+tag[len("s.shop."):])
				if !errors.Is(err, dr.ErrTampered) || errors.Is(err, dr.ErrNotFound) {
					t.Errorf("find it: %v; want that it is damaged", err)
				}
				more := content(9, 3)
				mustHold(t, h, mustSnapshot(t, h, "shop", nil, more), more)
				if _, err := h.Collect(t.Context(), repo.CollectOptions{}); !errors.Is(err, dr.ErrTampered) {
					t.Errorf("collect: %v; want a refusal", err)
				}
			}
			if at, err := repo.ParseTag(tag); err == nil && at.Class == repo.ClassLock {
				plan, err := h.PlanForget(t.Context(), "shop", retain.Policy{Last: 1})
				if err != nil {
					t.Fatal(err)
				}
				if !slices.ContainsFunc(plan.Rows, func(r repo.ForgetRow) bool { return r.Number == 2 && r.Keep }) {
					t.Errorf("what is locked would be forgotten: %+v", plan.Rows)
				}
			}
			done, err := h.Repair(t.Context(), repo.RepairOptions{From: []repo.RepairSource{{Name: "mirror", Exact: mirror}}})
			if err != nil {
				t.Fatal(err)
			}
			if !done.Healed() {
				t.Errorf("repaired from a mirror, and left: %v", done.After.Problems)
			}
			for n, want := range units {
				s, err := b.Host("third").Find(t.Context(), "shop", "#"+string('0'+rune(n)))
				if err != nil {
					t.Fatal(err)
				}
				mustHold(t, b.Host("third"), s, want)
			}
		})
	}
}

// forgetting is a store under which another host forgets a snapshot after its tag was
// listed, right before it is read for the nth time.
type forgetting struct {
	store.Store
	tag string
	nth int32
	got atomic.Int32
	t   *testing.T
}

func (f *forgetting) GetManifest(ctx context.Context, ref string) (store.Manifest, error) {
	if ref == f.tag && f.got.Add(1) == f.nth {
		d, err := f.ResolveTag(ctx, f.tag)
		if err == nil {
			err = f.DeleteTag(ctx, f.tag)
		}
		if err == nil {
			err = f.DeleteManifest(ctx, d)
		}
		if err != nil {
			f.t.Error(err)
		}
	}
	return f.Store.GetManifest(ctx, ref)
}

// What another host forgets between a listing and the reading is no damage, and
// repair does not bring it back.
func TestForgottenMeanwhile(t *testing.T) {
	t.Parallel()
	base := repotest.NewBed(t)
	var last *repo.Snapshot
	for n := range 3 {
		last = mustSnapshot(t, base.Host("main"), "shop", last, content(uint64(n), 3))
	}
	for _, c := range []struct {
		repair bool
		nth    int32
	}{{false, 1}, {true, 1}, {true, 2}} { // repair looks first, and then reads each tag again
		t.Run(fmt.Sprintf("repair %v, read %d", c.repair, c.nth), func(t *testing.T) {
			t.Parallel()
			b := base.ForkFor(t)
			mirror := b.Store.Clone()
			r := b.HostOn("other", &forgetting{Store: b.Store, tag: "s.shop.2", nth: c.nth, t: t})
			if !c.repair {
				if problems, err := r.Check(t.Context()); err != nil || len(problems) > 0 {
					t.Errorf("check: %v, %v", problems, err)
				}
			} else {
				done, err := r.Repair(t.Context(), repo.RepairOptions{From: []repo.RepairSource{{Name: "mirror", Exact: mirror}}})
				if err != nil || !done.Healed() || len(done.Steps) > 0 {
					t.Errorf("repair: %+v, %v", done, err)
				}
			}
			if tags, err := b.Store.Tags(t.Context(), "s."); err != nil || !slices.Equal(tags, []string{"s.shop.1", "s.shop.3"}) {
				t.Errorf("left: %v, %v", tags, err)
			}
		})
	}
}
