package idxcache_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"pgregory.net/rapid"

	"lifeboat/internal/dr"
	"lifeboat/internal/pack"
	"lifeboat/internal/repo/idxcache"
)

var (
	key      = [32]byte{1}
	repoID   = dr.RepoID{2}
	manifest = [32]byte{3}
	host     = dr.HostID{4}
)

// place is where the test expects a unit.
type place struct {
	pack, group uint32
	loc         idxcache.Location
}

// fill gives a builder packs of groups of units and returns what it gave.
func fill(t interface{ Fatal(...any) }, b *idxcache.Builder, rnd *rand.Rand, packs, groups, units int, chosen ...dr.UnitID) map[dr.UnitID]place {
	want := map[dr.UnitID]place{}
	check := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	all := uint32(0)
	for p := range packs {
		info := pack.Info{Size: int64(p + 100)}
		info.Digest[0] = byte(p)
		info.Header.Generation = 7
		check(b.Pack(info, groups))
		for g := range groups {
			check(b.Group(pack.GroupInfo{Offset: uint32(g * 1000), Sealed: 900, Plain: uint32(units * 10)}, units))
			for u := range units {
				var id dr.UnitID
				for i := 0; i < 32; i += 8 {
					binary.LittleEndian.PutUint64(id[i:], rnd.Uint64())
				}
				if len(chosen) > 0 && rnd.IntN(8) == 0 { // ids that somebody chose
					copy(id[:8], chosen[rnd.IntN(len(chosen))][:])
				}
				check(b.Unit(dr.UnitRef{ID: id, Len: 10}))
				want[id] = place{uint32(p), uint32(g), idxcache.Location{Group: all, Offset: uint32(u * 10), Len: 10}}
			}
			all++
		}
	}
	return want
}

func TestLookupFindsEveryUnitAndNoOther(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	rapid.Check(t, func(t *rapid.T) {
		rnd := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))
		packs, groups, units := rapid.IntRange(1, 4).Draw(t, "packs"), rapid.IntRange(1, 9).Draw(t, "groups"), rapid.IntRange(1, 60).Draw(t, "units")
		name := filepath.Join(dir, "x.idx")
		b, err := idxcache.NewBuilderBatch(name, key, repoID, manifest, rapid.SampledFrom([]int{7, 100, 1 << 20}).Draw(t, "batch"))
		if err != nil {
			t.Fatal(err)
		}
		want := fill(t, b, rnd, packs, groups, units, dr.UnitID{0x80, 7: 1}, dr.UnitID{})
		if err := b.Finish(host, []byte("the manifest")); err != nil {
			t.Fatal(err)
		}
		x, err := idxcache.Open(name, key, repoID, manifest, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := x.Close(); err != nil {
				t.Fatal(err)
			}
		}()
		if x.Packs() != packs || x.Groups() != packs*groups || x.Units() != len(want) || x.Host() != host {
			t.Fatalf("%d packs, %d groups, %d units", x.Packs(), x.Groups(), x.Units())
		}
		if raw, err := x.Manifest(); err != nil || string(raw) != "the manifest" {
			t.Fatalf("manifest %q, %v", raw, err)
		}
		for id, p := range want {
			loc, ok, err := x.Lookup(id)
			if err != nil || !ok || loc != p.loc {
				t.Fatalf("lookup: %+v, %v, %v; want %+v", loc, ok, err, p.loc)
			}
			g, err := x.Group(loc.Group)
			if err != nil || g.Pack != p.pack || g.Number != p.group {
				t.Fatalf("group: %+v, %v", g, err)
			}
			list, err := x.UnitsOf(g)
			if err != nil || list[loc.Offset/10].ID != id {
				t.Fatalf("units of a group: %v", err)
			}
			id[31] ^= 1
			if _, ok, err := x.Lookup(id); ok || err != nil {
				t.Fatalf("found a unit that is not there, %v", err)
			}
			id[0] ^= 0x55
			if _, ok, err := x.Lookup(id); ok || err != nil {
				t.Fatalf("found a unit that is not there, %v", err)
			}
		}
	})
}

func build(t testing.TB, name string, packs, groups, units int) map[dr.UnitID]place {
	t.Helper()
	b, err := idxcache.NewBuilder(name, key, repoID, manifest)
	if err != nil {
		t.Fatal(err)
	}
	want := fill(t, b, rand.New(rand.NewPCG(1, 2)), packs, groups, units)
	if err := b.Finish(host, []byte("m")); err != nil {
		t.Fatal(err)
	}
	return want
}

// A damaged file is noticed when it is opened or where it is touched, and never
// gives a wrong answer.
func TestDamageIsNoticed(t *testing.T) {
	t.Parallel()
	name := filepath.Join(t.TempDir(), "x.idx")
	want := build(t, name, 2, 3, 2000)
	good, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	try := func(what string, bad []byte) {
		t.Helper()
		if err := os.WriteFile(name, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		x, err := idxcache.Open(name, key, repoID, manifest, nil)
		if err != nil {
			if !idxcache.IsMissing(err) {
				t.Fatalf("%s: %v", what, err)
			}
			return
		}
		defer func() { _ = x.Close() }()
		failed := false
		for id, p := range want {
			loc, ok, err := x.Lookup(id)
			if err == nil && ok && loc == p.loc {
				_, err = x.Group(loc.Group)
			} else if err == nil {
				t.Fatalf("%s: a wrong answer: %v %+v", what, ok, loc)
			}
			if err != nil {
				failed = true
				if !errors.Is(err, idxcache.ErrDamaged) {
					t.Fatalf("%s: %v", what, err)
				}
			}
		}
		if _, err := x.Manifest(); err != nil {
			failed = true
		}
		if !failed {
			t.Fatalf("%s: nothing was noticed", what)
		}
	}
	for _, at := range []int{0, 10, 50, 100, 130, 4096, 5000, 100000, 264000 + 4096 + 5, 300000, len(good) - 1} {
		bad := bytes.Clone(good)
		bad[at] ^= 8
		try(fmt.Sprintf("bit flipped at %d", at), bad)
	}
	for _, n := range []int{0, 100, 4096, 70000, len(good) - 1} {
		try(fmt.Sprintf("cut at %d", n), good[:n])
	}
	try("longer", append(bytes.Clone(good), 0))
	if err := os.WriteFile(name, good, 0o600); err != nil {
		t.Fatal(err)
	}
	for what, open := range map[string]func() (*idxcache.Index, error){
		"another key":        func() (*idxcache.Index, error) { return idxcache.Open(name, [32]byte{9}, repoID, manifest, nil) },
		"another repository": func() (*idxcache.Index, error) { return idxcache.Open(name, key, dr.RepoID{9}, manifest, nil) },
		"another manifest":   func() (*idxcache.Index, error) { return idxcache.Open(name, key, repoID, [32]byte{9}, nil) },
	} {
		if _, err := open(); !errors.Is(err, idxcache.ErrDamaged) {
			t.Errorf("%s: %v, want ErrDamaged", what, err)
		}
	}
	if _, err := idxcache.Open(name+"x", key, repoID, manifest, nil); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file that is not there: %v", err)
	}
}

func TestAbortLeavesNothing(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	b, err := idxcache.NewBuilder(filepath.Join(dir, "x.idx"), key, repoID, manifest)
	if err != nil {
		t.Fatal(err)
	}
	b.Abort()
	b.Abort()
	if names, err := os.ReadDir(dir); err != nil || len(names) != 0 {
		t.Fatalf("left behind: %v, %v", names, err)
	}
}

func TestLookupIsConcurrent(t *testing.T) {
	t.Parallel()
	name := filepath.Join(t.TempDir(), "x.idx")
	want := build(t, name, 1, 4, 1000)
	x, err := idxcache.Open(name, key, repoID, manifest, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = x.Close() }()
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for id, p := range want {
				if loc, ok, err := x.Lookup(id); !ok || err != nil || loc != p.loc {
					t.Errorf("lookup: %v, %v", ok, err)
					return
				}
			}
		})
	}
	wg.Wait()
}

func FuzzOpen(f *testing.F) {
	name := filepath.Join(f.TempDir(), "x.idx")
	build(f, name, 1, 1, 3)
	good, err := os.ReadFile(name)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good[:200])
	f.Fuzz(func(t *testing.T, head []byte) {
		b := bytes.Clone(good)
		copy(b, head)
		name := filepath.Join(t.TempDir(), "x.idx")
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
		x, err := idxcache.Open(name, key, repoID, manifest, nil)
		if err != nil {
			return
		}
		defer func() { _ = x.Close() }()
		const covered = 8 + 16 + 32 + 32 + 6*4 + 32 // header and MAC; zeros follow
		if !bytes.Equal(b[:covered], good[:covered]) {
			t.Fatal("a changed header was taken")
		}
	})
}

func BenchmarkLookup(b *testing.B) {
	dir := b.TempDir()
	var all []*idxcache.Index
	var ids []dr.UnitID
	for i := range 32 {
		name := filepath.Join(dir, fmt.Sprint(i))
		bl, err := idxcache.NewBuilder(name, key, repoID, manifest)
		if err != nil {
			b.Fatal(err)
		}
		want := fill(b, bl, rand.New(rand.NewPCG(uint64(i), 2)), 1, 100, 1000)
		if err := bl.Finish(host, nil); err != nil {
			b.Fatal(err)
		}
		for id := range want {
			if len(ids) < (i+1)*1000 {
				ids = append(ids, id)
			}
		}
		x, err := idxcache.Open(name, key, repoID, manifest, nil)
		if err != nil {
			b.Fatal(err)
		}
		defer func() { _ = x.Close() }()
		all = append(all, x)
	}
	rnd := rand.New(rand.NewPCG(9, 9))
	rnd.Shuffle(len(ids), func(i, j int) { ids[i], ids[j] = ids[j], ids[i] })
	look := func(b *testing.B, id dr.UnitID) bool {
		for _, x := range all {
			if _, ok, err := x.Lookup(id); err != nil {
				b.Fatal(err)
			} else if ok {
				return true
			}
		}
		return false
	}
	for _, id := range ids { // check the blocks
		look(b, id)
	}
	b.Run("hit-in-32x100k", func(b *testing.B) {
		i := 0
		for b.Loop() {
			if !look(b, ids[i%len(ids)]) {
				b.Fatal("not found")
			}
			i++
		}
	})
	b.Run("miss-in-32x100k", func(b *testing.B) {
		i := 0
		for b.Loop() {
			id := ids[i%len(ids)]
			id[20] ^= 0xff
			id[9] ^= 0xff
			look(b, id)
			i++
		}
	})
}
