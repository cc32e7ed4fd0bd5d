package readlog_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"lifeboat/internal/dr"
	"lifeboat/internal/repo/readlog"
)

var day0 = time.Date(2026, 3, 1, 4, 0, 0, 0, time.UTC)

func id(n int) (d readlog.Digest) {
	d[0], d[1], d[31] = byte(n*37), byte(n>>8), byte(n)
	return d
}

func open(t testing.TB, name string) *readlog.Log {
	t.Helper()
	l, err := readlog.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// What was noted is there after a restart, also when the process died while it
// wrote, and whatever else is in the file.
func TestLogSurvives(t *testing.T) {
	t.Parallel()
	name := filepath.Join(t.TempDir(), "packs")
	l := open(t, name)
	if e, err := l.Get(id(1), day0); err != nil || !e.Seen.Equal(day0) || !e.Read.IsZero() {
		t.Fatalf("%+v, %v", e, err)
	}
	must(t, l.Read(id(1), day0.Add(time.Hour)))
	must(t, l.Read(id(2), day0))
	must(t, l.Bad(id(2), day0.Add(time.Minute)))
	must(t, l.Ended(day0.Add(2*time.Hour)))
	must(t, l.Close())
	whole, err := os.ReadFile(name)
	must(t, err)
	for name, spoil := range map[string]func([]byte) []byte{
		"as it was":      func(b []byte) []byte { return b },
		"cut off":        func(b []byte) []byte { return append(b, b[:17]...) },
		"bits flipped":   func(b []byte) []byte { x := append(append([]byte{}, b...), b[:48]...); x[len(x)-20] ^= 4; return x },
		"unknown record": func(b []byte) []byte { return append(append([]byte{}, b...), make([]byte, 96)...) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			file := filepath.Join(t.TempDir(), "packs")
			must(t, os.WriteFile(file, spoil(append([]byte{}, whole...)), 0o600))
			for range 2 { // what is appended after the damage counts, too
				l := open(t, file)
				e, err := l.Get(id(1), day0.Add(24*time.Hour))
				if err != nil || !e.Read.Equal(day0.Add(time.Hour)) || e.Bad {
					t.Fatalf("%+v, %v", e, err)
				}
				if diff := cmp.Diff([]readlog.Digest{id(2)}, l.BadOnes()); diff != "" {
					t.Fatal(diff)
				}
				if !l.LastRun(day0.Add(24 * time.Hour)).Equal(day0.Add(2 * time.Hour)) {
					t.Fatal(l.LastRun(day0.Add(24 * time.Hour)))
				}
				must(t, l.Close())
			}
		})
	}
}

// The file does not grow for ever, and what is not in the repository any more
// is forgotten.
func TestLogIsBounded(t *testing.T) {
	t.Parallel()
	name := filepath.Join(t.TempDir(), "packs")
	l := open(t, name)
	for i := range 6000 {
		must(t, l.Read(id(i%3), day0.Add(time.Duration(i)*time.Second)))
	}
	must(t, l.Bad(id(2), day0))
	must(t, l.Ended(day0))
	must(t, l.Keep(func(d readlog.Digest) bool { return d != id(1) }))
	st, err := os.Stat(name)
	must(t, err)
	if st.Size() > 10*48 {
		t.Fatalf("%d bytes", st.Size())
	}
	must(t, l.Read(id(4), day0))
	must(t, l.Close())
	l = open(t, name)
	for i, want := range map[int]bool{0: true, 1: false, 2: true, 4: true} {
		if e, err := l.Get(id(i), day0.Add(time.Hour*9)); err != nil || e.Read.IsZero() == want || e.Bad != (i == 2) {
			t.Errorf("%d: %+v, %v", i, e, err)
		}
	}
	must(t, l.Close())
}

// A clock that was ahead does not keep packs from being read.
func TestClockThatWasAhead(t *testing.T) {
	t.Parallel()
	l := readlog.New()
	must(t, l.Read(id(1), day0.Add(1000*time.Hour)))
	must(t, l.Ended(day0.Add(1000*time.Hour)))
	e, err := l.Get(id(1), day0)
	if err != nil || !e.Read.IsZero() || !e.Seen.Equal(day0) || !l.LastRun(day0).IsZero() {
		t.Fatalf("%+v, %v", e, err)
	}
}

func TestParseSubset(t *testing.T) {
	t.Parallel()
	for s, want := range map[string]readlog.Subset{
		"2/7": {K: 2, N: 7}, "10%": {Percent: 10}, "2.5%": {Percent: 2.5}, "5GiB": {Bytes: 5 << 30}, "1/1": {K: 1, N: 1},
	} {
		if got, err := readlog.ParseSubset(s); err != nil || got != want {
			t.Errorf("%s: %+v, %v", s, got, err)
		}
	}
	for _, s := range []string{"", "0/3", "4/3", "1/0", "-1/3", "0%", "101%", "NaN%", "x", "-5GiB", "1/2/3"} {
		if _, err := readlog.ParseSubset(s); !errors.Is(err, dr.ErrUsage) {
			t.Errorf("%s: %v", s, err)
		}
	}
}

// The parts of N are each pack once.
func TestParts(t *testing.T) {
	t.Parallel()
	var packs []readlog.Pack
	for i := range 100 {
		packs = append(packs, readlog.Pack{Digest: id(i), Size: 5})
	}
	seen := map[readlog.Digest]int{}
	for k := range uint64(7) {
		for _, p := range readlog.Choose(packs, readlog.Subset{K: k + 1, N: 7}, time.Time{}, day0) {
			seen[p.Digest]++
		}
	}
	if len(seen) != 100 {
		t.Fatal(len(seen))
	}
	for _, n := range seen {
		if n != 1 {
			t.Fatal(n)
		}
	}
}

// Everything is read once in every N days, however often a run takes place, runs
// are cut off, and packs are added; and about evenly.
func TestEverythingIsReadWithin(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		const days = 10
		l := readlog.New()
		every := time.Duration(rapid.IntRange(1, 48).Draw(t, "every")) * time.Hour
		packs := map[readlog.Digest]int64{}
		add := func(n int) {
			for range n {
				packs[id(len(packs))] = rapid.Int64Range(1<<20, 8<<20).Draw(t, "size")
			}
		}
		add(rapid.IntRange(1, 60).Draw(t, "packs"))
		now := day0
		for run := 0; now.Before(day0.Add(4 * days * 24 * time.Hour)); run++ {
			var list []readlog.Pack
			var total int64
			for d, size := range packs {
				e, err := l.Get(d, now)
				if err != nil {
					t.Fatal(err)
				}
				if age := now.Sub(e.Since()); age > days*24*time.Hour {
					t.Fatalf("run %d: a pack was read %v ago", run, age)
				}
				list = append(list, readlog.Pack{Digest: d, Size: size, Entry: e})
				total += size
			}
			chosen := readlog.Choose(list, readlog.Subset{Within: days * 24 * time.Hour}, l.LastRun(now), now)
			read := len(chosen)
			cut := rapid.IntRange(0, 9).Draw(t, "cut") == 0
			if cut {
				read = len(chosen) * 9 / 10
			}
			for _, p := range chosen[:read] {
				if err := l.Read(p.Digest, now); err != nil {
					t.Fatal(err)
				}
			}
			if !cut {
				if err := l.Ended(now); err != nil {
					t.Fatal(err)
				}
			}
			if rapid.IntRange(0, 5).Draw(t, "grow") == 0 {
				add(1)
			}
			now = now.Add(every)
			if cut {
				now = now.Add(-every + time.Minute)
			}
		}
	})
}

func FuzzLog(f *testing.F) {
	f.Add([]byte{})
	f.Add(make([]byte, 48))
	name := filepath.Join(f.TempDir(), "seed")
	l := open(f, name)
	must(f, l.Read(id(1), day0))
	must(f, l.Bad(id(2), day0))
	must(f, l.Ended(day0))
	must(f, l.Close())
	b, err := os.ReadFile(name)
	must(f, err)
	f.Add(b)
	f.Add(b[:100])
	f.Fuzz(func(t *testing.T, b []byte) {
		file := filepath.Join(t.TempDir(), "packs")
		must(t, os.WriteFile(file, b, 0o600))
		l := open(t, file)
		must(t, l.Read(id(7), day0))
		must(t, l.Close())
		l = open(t, file)
		if e, err := l.Get(id(7), day0.Add(time.Second)); err != nil || !e.Read.Equal(day0) {
			t.Fatalf("%+v, %v", e, err)
		}
		must(t, l.Close())
	})
}
