package repo_test

import (
	"bytes"
	"errors"
	"testing"

	"github.com/opencontainers/go-digest"

	"lifeboat/internal/repo"
	"lifeboat/internal/repo/readlog"
	"lifeboat/internal/repo/repotest"
)

// big are units that do not shrink, 1 MiB each.
func big(seed uint64, n int) (units [][]byte) {
	for i := range n {
		units = append(units, noise(seed<<16+uint64(i), 1<<20))
	}
	return units
}

// Some packs of a manifest are damaged: the next snapshot sends their units again
// and nothing else, and names nothing that is damaged.
func TestOnlyDamagedPacksAreSentAgain(t *testing.T) {
	t.Parallel()
	for name, reads := range map[string]*readlog.Subset{"verify": {}, "check": nil} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := repotest.NewBed(t)
			main := b.Host("main")
			units := big(7, 60)
			first := mustSnapshot(t, main, "shop", nil, units)
			old := mustSnapshot(t, main, "shop", first, append(bytes2(units), noise(5, 100)))
			packs := manifestOf(t, b.Store, first.Needs[0].String()).Layers[1:]
			if len(packs) < 6 {
				t.Fatalf("%d packs", len(packs))
			}
			var lost int64
			for i, damage := range []func(l digest.Digest, raw []byte){
				func(l digest.Digest, _ []byte) { b.Store.Drop(l) },
				func(l digest.Digest, raw []byte) { b.Store.Corrupt(l, raw[:len(raw)/2]) },
				func(l digest.Digest, raw []byte) {
					if reads != nil { // only reading shows it
						b.Store.Corrupt(l, flip(len(raw)/2)(raw, nil))
					}
				},
			} {
				l := packs[1+2*i]
				damage(l.Digest, bytes.Clone(blobBytes(t, b.Store, l.Digest, l.Size)))
				lost += l.Size
			}
			if x := examine(t, main, repo.ExamineOptions{Read: reads}); len(x.Problems) == 0 {
				t.Fatal("nothing was found")
			}
			main = b.Host("main") // started again
			if _, err := main.NewWriter(t.Context(), repo.WriterOptions{System: "shop", Parent: old}); !errors.Is(err, repo.ErrParentDamaged) {
				t.Fatalf("building on a damaged snapshot: %v", err)
			}
			before := b.Store.Size()
			next, st, err := snapshot(t.Context(), main, repo.WriterOptions{System: "shop"}, "main", units)
			if err != nil {
				t.Fatal(err)
			}
			if grown := b.Store.Size() - before; st.BytesSent > lost+lost/10 || grown > lost+lost/10 {
				t.Errorf("%d bytes were lost, %d sent, the registry grew by %d", lost, st.BytesSent, grown)
			}
			other := b.Host("other")
			mustHold(t, other, next, units)
			for _, p := range examine(t, other, repo.ExamineOptions{Read: &readlog.Subset{}}).Problems {
				if p.Snapshot == next.ID {
					t.Errorf("the new snapshot is not whole: %v", p)
				}
			}
			// From here on all is as ever.
			_, st, err = snapshot(t.Context(), main, repo.WriterOptions{System: "shop", Parent: next}, "main", units)
			if err != nil || st.BytesSent > 64<<10 {
				t.Errorf("the one after sent %d bytes, %v", st.BytesSent, err)
			}
			// And the older ones are healed by what it stored.
			if res, err := main.Repair(t.Context(), repo.RepairOptions{}); err != nil || !res.Healed() {
				t.Errorf("repair: %+v, %v", res, err)
			}
			mustHold(t, b.Host("third"), first, units)
		})
	}
}

// What was found damaged is trusted again once it was read and found sound.
func TestTrustedAgain(t *testing.T) {
	t.Parallel()
	for name, o := range map[string]repo.ExamineOptions{
		"all": {Read: &readlog.Subset{}}, "check": {},
		"one system": {Read: &readlog.Subset{}, Scope: "shop", Only: func(s *repo.Snapshot) bool { return s.System == "shop" }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := repotest.NewBed(t)
			main := b.Host("main")
			units := big(8, 20)
			first := mustSnapshot(t, main, "shop", nil, units)
			l := manifestOf(t, b.Store, first.Needs[0].String()).Layers[1]
			raw := bytes.Clone(blobBytes(t, b.Store, l.Digest, l.Size))
			b.Store.Corrupt(l.Digest, flip(len(raw)/2)(raw, nil))
			if x := examine(t, main, repo.ExamineOptions{Read: &readlog.Subset{}}); len(x.Problems) == 0 {
				t.Fatal("nothing was found")
			}
			if _, st, err := snapshot(t.Context(), main, repo.WriterOptions{System: "shop"}, "main", units); err != nil || st.BytesSent > 10<<20 {
				t.Fatalf("%d bytes sent, %v", st.BytesSent, err)
			}
			b.Store.Corrupt(l.Digest, raw) // the registry's data came back
			main = b.Host("main")
			if x := examine(t, main, o); len(x.Problems) != 0 {
				t.Fatalf("%v", x.Problems)
			}
			main = b.Host("main")
			s, st, err := snapshot(t.Context(), main, repo.WriterOptions{System: "shop", Parent: first}, "main", units)
			if err != nil || st.BytesSent > 64<<10 {
				t.Fatalf("%d bytes sent, %v", st.BytesSent, err)
			}
			mustHold(t, b.Host("other"), s, units)
		})
	}
}
