package repo_test

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"testing"

	"lifeboat/internal/dr"
	"lifeboat/internal/repo"
	"lifeboat/internal/repo/repotest"
	"lifeboat/internal/store"
)

// asMain opens the repository over a store as host main for one piece of work.
func asMain(ctx context.Context, b *repotest.Bed, st store.Store, do func(*repo.Repo) error) error {
	r, err := repo.Open(ctx, st, b.Options("main"))
	if err != nil {
		return err
	}
	defer func() { _ = r.Close() }()
	return do(r)
}

// wholeAfter fails unless somebody who remembers nothing finds exactly these
// snapshots, whole, and nothing that does not verify.
func wholeAfter(t *testing.T, b *repotest.Bed, want map[string][][]byte) {
	t.Helper()
	o := b.Options("observer")
	o.StateDir, o.CacheDir, o.Location, o.Host = "", "", "", nil
	r, err := open(t, b.Store, o)
	if err != nil {
		t.Fatal(err)
	}
	snaps, problems, err := r.Snapshots(t.Context(), "")
	if err != nil || len(problems) > 0 || len(snaps) != len(want) {
		t.Fatalf("%d snapshots, want %d; problems %v, %v", len(snaps), len(want), problems, err)
	}
	for i := range snaps {
		mustHold(t, r, &snaps[i], want[snaps[i].Tag])
	}
	if problems, err := r.Verify(t.Context(), nil); err != nil || len(problems) > 0 {
		t.Fatalf("verify: %v, %v", problems, err)
	}
}

// TestRestoreFaults fails, kills, cuts short and alters each call that a restore
// makes: it gives the bytes that were captured, or an error, and never others
// (invariant 10); the next one succeeds.
func TestRestoreFaults(t *testing.T) {
	t.Parallel()
	b := repotest.NewBed(t)
	first := content(1, 40)
	second := append(content(2, 20), first[:20]...)
	s := mustSnapshot(t, b.Host("main"), "shop", nil, first)
	mustSnapshot(t, b.Host("main"), "shop", s, second)
	want := map[string][][]byte{"s.shop.1": first, "s.shop.2": second}
	restore := func(ctx context.Context, b *repotest.Bed, st store.Store) error {
		o := b.Options("stand-in") // nothing is cached there
		r, err := repo.Open(ctx, st, o)
		if err != nil {
			return err
		}
		defer func() { _ = r.Close() }()
		for _, ref := range []string{"", "#1"} {
			s, err := r.Find(ctx, "shop", ref)
			if err != nil {
				return err
			}
			got, err := readAll(ctx, r, s)
			if err != nil {
				return err
			}
			if !slices.EqualFunc(got, want[s.Tag], bytes.Equal) {
				t.Errorf("%s came back as something else", s.Tag)
			}
		}
		return nil
	}
	eachCall(t, 24, b, restore, func(t *testing.T, b *repotest.Bed) {
		if err := restore(t.Context(), b, b.Store); err != nil {
			t.Fatalf("again: %v", err)
		}
		wholeAfter(t, b, want)
	})
}

// TestKeyFaults does the same to changes of the keys: whoever may open the
// repository can, what was written before is read, what is written after is, and
// the change can be made again (invariant 8).
func TestKeyFaults(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(context.Context, *repo.Repo) error{
		"rotate": func(ctx context.Context, r *repo.Repo) error { return r.RotateKey(ctx, nil) },
		"add": func(ctx context.Context, r *repo.Repo) error {
			rc, _ := recipient(t, "another")
			err := r.AddKey(ctx, rc)
			if errors.Is(err, dr.ErrHeld) {
				return nil // added by the time before
			}
			return err
		},
		"remove": func(ctx context.Context, r *repo.Repo) error {
			err := r.RemoveKey(ctx, "second", nil)
			if errors.Is(err, dr.ErrNotFound) {
				return nil
			}
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := repotest.NewBed(t)
			rc, _ := recipient(t, "second")
			if err := b.Host("main").AddKey(t.Context(), rc); err != nil {
				t.Fatal(err)
			}
			units := content(1, 10)
			mustSnapshot(t, b.Host("main"), "shop", nil, units)
			run := func(ctx context.Context, b *repotest.Bed, st store.Store) error {
				return asMain(ctx, b, st, func(r *repo.Repo) error { return change(ctx, r) })
			}
			eachCall(t, 16, b, run, func(t *testing.T, b *repotest.Bed) {
				wholeAfter(t, b, map[string][][]byte{"s.shop.1": units})
				if err := run(t.Context(), b, b.Store); err != nil {
					t.Fatalf("again: %v", err)
				}
				more := content(2, 5)
				mustSnapshot(t, b.Host("other"), "blog", nil, more)
				wholeAfter(t, b, map[string][][]byte{"s.shop.1": units, "s.blog.1": more})
			})
		})
	}
}

// TestHostFaults does the same to enrolments and revocations.
func TestHostFaults(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(ctx context.Context, b *repotest.Bed, r *repo.Repo) error{
		"enrol": func(ctx context.Context, _ *repotest.Bed, r *repo.Repo) error { _, err := r.Enrol(ctx); return err },
		"enrol another": func(ctx context.Context, b *repotest.Bed, r *repo.Repo) error {
			return r.EnrolHost(ctx, b.Options("another").Host.ID(), "another")
		},
		"revoke": func(ctx context.Context, b *repotest.Bed, r *repo.Repo) error {
			return r.Revoke(ctx, b.Options("second").Host.ID(), nil)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := repotest.NewBed(t)
			units := content(1, 10)
			mustSnapshot(t, b.Host("second"), "shop", nil, units)
			run := func(ctx context.Context, b *repotest.Bed, st store.Store) error {
				return asMain(ctx, b, st, func(r *repo.Repo) error { return change(ctx, b, r) })
			}
			eachCall(t, 16, b, run, func(t *testing.T, b *repotest.Bed) {
				wholeAfter(t, b, map[string][][]byte{"s.shop.1": units})
				if err := run(t.Context(), b, b.Store); err != nil {
					t.Fatalf("again: %v", err)
				}
				_, _, err := snapshot(t.Context(), b.Host("second"), repo.WriterOptions{System: "shop"}, "main", units)
				if errors.Is(err, repo.ErrRevoked) != (name == "revoke") || (name != "revoke" && err != nil) {
					t.Errorf("the other host writes: %v", err)
				}
				hosts, err := b.Host("observer").Hosts(t.Context())
				if err != nil || len(hosts) < 2 {
					t.Errorf("hosts %v, %v", hosts, err)
				}
			})
		})
	}
}
