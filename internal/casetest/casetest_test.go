package casetest_test

import (
	"flag"
	"slices"
	"testing"

	_ "pgregory.net/rapid" // has the flag

	"lifeboat/internal/casetest"
)

func parity(i int) bool { return i < 3 } // a small group and a large one

func numbers() (out []int) {
	for i := range 100 {
		out = append(out, i)
	}
	return out
}

func TestSpread(t *testing.T) {
	t.Setenv("LIFEBOAT_TEST_ALL", "")
	for _, n := range []int{2, 8, 99} {
		got := casetest.Spread(t, n, numbers(), parity)
		distinct := slices.Compact(slices.Sorted(slices.Values(got)))
		if len(got) != n || len(distinct) != n {
			t.Errorf("%d picked, %d distinct, want %d", len(got), len(distinct), n)
		}
		few := 0
		for _, i := range got {
			if parity(i) {
				few++
			}
		}
		if few != min(3, n/2) {
			t.Errorf("%d of %d are of the small group", few, n)
		}
	}
	if got := casetest.Some(t, 200, numbers()); len(got) != 100 {
		t.Errorf("%d of 100", len(got))
	}
}

func TestFewerChecks(t *testing.T) {
	checks := flag.Lookup("rapid.checks")
	if checks == nil {
		t.Fatal("rapid names its flag otherwise")
	}
	whole := checks.Value.String()
	for _, c := range [][2]string{{"1", whole}, {"", "7"}} {
		all, want := c[0], c[1]
		t.Setenv("LIFEBOAT_TEST_ALL", all)
		if err := casetest.FewerChecks(7); err != nil || checks.Value.String() != want {
			t.Errorf("all %q: %s checks, want %s; %v", all, checks.Value, want, err)
		}
	}
}

func TestSeedRepeats(t *testing.T) {
	t.Setenv("LIFEBOAT_TEST_ALL", "")
	t.Setenv("LIFEBOAT_TEST_SEED", "7")
	a, b := casetest.Some(t, 10, numbers()), casetest.Some(t, 10, numbers())
	if !slices.Equal(a, b) {
		t.Errorf("one seed gave %v and %v", a, b)
	}
	t.Setenv("LIFEBOAT_TEST_SEED", "8")
	if c := casetest.Some(t, 10, numbers()); slices.Equal(a, c) {
		t.Errorf("two seeds gave %v", c)
	}
}

func TestAll(t *testing.T) {
	t.Setenv("LIFEBOAT_TEST_ALL", "1")
	if got := casetest.Some(t, 1, numbers()); len(got) != 100 {
		t.Errorf("%d of 100", len(got))
	}
}
