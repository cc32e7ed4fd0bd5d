// Package casetest picks the cases that an ordinary run of a test does where
// there are hundreds: a call that fails in each way at each place. All is what
// `make soak` does; an ordinary run takes other ones each time, so that many
// runs come to all of them. The seed is logged, and repeats a run.
// TempInMemory keeps so many cases from waiting for a disk.
//
// It holds no assertions and is not used outside of tests.
package casetest

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
)

// All reports whether LIFEBOAT_TEST_ALL is set: tests that take long run whole.
func All() bool { return os.Getenv("LIFEBOAT_TEST_ALL") != "" }

// TempInMemory makes t.TempDir a directory in memory, where there is such a
// place: each case creates hosts, whose local state is synced at every step, and
// none of them is about power cuts. For TestMain.
func TempInMemory() error {
	if st, err := os.Stat("/dev/shm"); err != nil || !st.IsDir() {
		return nil
	}
	if err := os.Setenv("TMPDIR", "/dev/shm"); err != nil {
		return fmt.Errorf("temporary files in memory: %w", err)
	}
	return nil
}

// FewerChecks makes n the number of histories of each property (package rapid) in an
// ordinary run. With All, or where -rapid.checks says how many, it changes nothing.
// rapid tells the seed of one that fails. For TestMain, after flag.Parse.
func FewerChecks(n int) error {
	const name = "rapid.checks"
	given := All()
	flag.Visit(func(f *flag.Flag) { given = given || f.Name == name })
	if given {
		return nil
	}
	return flag.Set(name, strconv.Itoa(n))
}

// Seed is a new seed each time, or the one in LIFEBOAT_TEST_SEED; given then
// tells so.
func Seed(t testing.TB) (seed uint64, given bool) {
	t.Helper()
	s := os.Getenv("LIFEBOAT_TEST_SEED")
	if s == "" {
		return rand.Uint64N(1 << 40), false
	}
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		t.Fatalf("LIFEBOAT_TEST_SEED: %v", err)
	}
	return n, true
}

// Some picks n of the cases at random, or all of them with All. Where the order
// of the cases is the same in each run, so is what a seed picks.
func Some[T any](t testing.TB, n int, cases []T) []T {
	t.Helper()
	return Spread(t, n, cases, func(T) struct{} { return struct{}{} })
}

// Spread is Some with as many from each group as from any other, as far as there
// are: with n of at least the number of groups, each group has its turn.
func Spread[T any, G comparable](t testing.TB, n int, cases []T, group func(T) G) []T {
	t.Helper()
	if All() || len(cases) <= n {
		return cases
	}
	seed, _ := Seed(t)
	t.Logf("%d of %d cases, seed %d", n, len(cases), seed)
	var order []G
	groups := map[G][]T{}
	for _, i := range rand.New(rand.NewPCG(seed, 0)).Perm(len(cases)) {
		g := group(cases[i])
		if groups[g] == nil {
			order = append(order, g)
		}
		groups[g] = append(groups[g], cases[i])
	}
	picked := make([]T, 0, n)
	for round := 0; ; round++ {
		for _, g := range order {
			if len(picked) == n {
				return picked
			}
			if round < len(groups[g]) {
				picked = append(picked, groups[g][round])
			}
		}
	}
}
