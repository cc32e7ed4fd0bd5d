package idxcache_test

import (
	"bufio"
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"lifeboat/internal/dr"
	"lifeboat/internal/repo/idxcache"
)

// However much of the files is looked at, by several at a time, about as much of
// them stays in memory as was said, and what is found is right.
func TestResident(t *testing.T) {
	t.Parallel()
	const limit, files = 2 << 20, 3
	dir := t.TempDir()
	bound := idxcache.NewResident(limit)
	var open []*idxcache.Index
	var want []map[dr.UnitID]place
	size := int64(0)
	for i := range files {
		name := filepath.Join(dir, fmt.Sprintf("bounded-%d.idx", i))
		b, err := idxcache.NewBuilder(name, key, repoID, manifest)
		if err != nil {
			t.Fatal(err)
		}
		want = append(want, fill(t, b, rand.New(rand.NewPCG(uint64(i), 3)), 4, 100, 250))
		if err := b.Finish(host, nil); err != nil {
			t.Fatal(err)
		}
		st, err := os.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		size += st.Size()
		x, err := idxcache.Open(name, key, repoID, manifest, bound)
		if err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := x.Close(); err != nil {
				t.Error(err)
			}
		}()
		open = append(open, x)
	}
	var wg sync.WaitGroup
	peak := make([]int64, files)
	for i := range files {
		wg.Go(func() {
			n := 0
			for id, p := range want[i] {
				if n++; n%4 != 0 { // some of them
					continue
				}
				loc, ok, err := open[i].Lookup(id)
				if err != nil || !ok || loc != p.loc {
					t.Errorf("lookup: %+v, %v, %v; want %+v", loc, ok, err, p.loc)
					return
				}
				if n%4000 == 0 {
					peak[i] = max(peak[i], resident(t, dir))
				}
			}
		})
	}
	wg.Wait()
	seen := max(peak[0], peak[1], peak[2])
	t.Logf("of %d bytes at most %d were in memory", size, seen)
	// One page table at a time can be above it, and what each of them was looking at
	// when all was given back.
	const most, own = limit + 2<<20, 256 << 10
	if seen > most+files*own || seen == 0 {
		t.Errorf("of %d bytes %d were in memory, want about %d", size, seen, limit)
	}
}

// resident is how many bytes of mapped files below dir are in memory.
func resident(t *testing.T, dir string) (n int64) {
	raw, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		t.Error(err)
		return 0
	}
	ours := false
	for sc := bufio.NewScanner(bytes.NewReader(raw)); sc.Scan(); {
		line := sc.Bytes()
		if bytes.Contains(line, []byte("-")) && bytes.Contains(line, []byte(" r--s ")) {
			ours = bytes.Contains(line, []byte(dir))
		}
		var kb int64
		if ours && bytes.HasPrefix(line, []byte("Rss:")) {
			if _, err := fmt.Sscanf(string(line), "Rss: %d kB", &kb); err != nil {
				t.Error(err)
			}
			n += kb << 10
			ours = false
		}
	}
	return n
}
