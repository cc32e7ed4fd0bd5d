package retain_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"lifeboat/internal/dr"
	"lifeboat/internal/retain"
)

var noon = time.Date(2026, 3, 18, 12, 0, 0, 0, time.UTC) // a Wednesday

// every makes n snapshots, the last of them at noon.
func every(n int, step time.Duration) []retain.Snap {
	var out []retain.Snap
	for i := range n {
		out = append(out, retain.Snap{ID: dr.SnapshotID{byte(i), byte(i >> 8), 1}, Number: dr.Number(i + 1), Created: noon.Add(-time.Duration(n-1-i) * step)})
	}
	return out
}

func kept(list []retain.Verdict) (out []int) {
	for _, v := range list {
		if v.Keep {
			out = append(out, int(v.Number))
		}
	}
	return out
}

func TestPolicy(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name   string
		policy retain.Policy
		snaps  []retain.Snap
		want   []int
	}{
		{"last", retain.Policy{Last: 3}, every(10, time.Hour), []int{8, 9, 10}},
		{"last more than there are", retain.Policy{Last: 30}, every(3, time.Hour), []int{1, 2, 3}},
		{"unlimited", retain.Policy{Last: retain.Unlimited}, every(4, time.Hour), []int{1, 2, 3, 4}},
		// 15 minutes apart up to 12:00: the newest of each hour.
		{"hourly", retain.Policy{Hourly: 3}, every(12, 15*time.Minute), []int{7, 11, 12}},
		{"hourly, places left: the oldest too", retain.Policy{Hourly: 30}, every(8, 15*time.Minute), []int{1, 3, 7, 8}},
		{"daily", retain.Policy{Daily: 2}, every(10, 6*time.Hour), []int{7, 10}},
		{"weekly", retain.Policy{Weekly: 3}, every(30, 24*time.Hour), []int{20, 27, 30}},
		{"monthly", retain.Policy{Monthly: 2}, every(60, 24*time.Hour), []int{42, 60}},
		{"yearly", retain.Policy{Yearly: 2}, every(10, 60*24*time.Hour), []int{8, 10}},
		{"parts add up", retain.Policy{Last: 1, Daily: 2}, every(10, 6*time.Hour), []int{7, 10}},
		{"within", retain.Policy{Within: retain.Span{Hours: 2}}, every(10, time.Hour), []int{8, 9, 10}},
		{"within a month", retain.Policy{Within: retain.Span{Months: 1}}, every(40, 24*time.Hour), fromTo(12, 40)},
	} {
		if got := kept(retain.Decide(noon, tc.policy, tc.snaps)); !slices.Equal(got, tc.want) {
			t.Errorf("%s: kept %v, want %v", tc.name, got, tc.want)
		}
	}
}

func fromTo(a, b int) (out []int) {
	for i := a; i <= b; i++ {
		out = append(out, i)
	}
	return out
}

func TestWithinIsMeasuredFromTheNewest(t *testing.T) {
	t.Parallel()
	later := noon.AddDate(3, 0, 0) // nothing was captured for three years
	if got := kept(retain.Decide(later, retain.Policy{Within: retain.Span{Hours: 1}}, every(5, time.Hour))); !slices.Equal(got, []int{4, 5}) {
		t.Errorf("kept %v", got)
	}
}

func TestProtectedAndGroups(t *testing.T) {
	t.Parallel()
	snaps := every(6, time.Hour)
	snaps[0].Protected = []string{"base of epoch 2"}
	snaps[3].Group, snaps[5].Group = "host", "host"
	got := retain.Decide(noon, retain.Policy{Last: 1}, snaps)
	if k := kept(got); !slices.Equal(k, []int{1, 5, 6}) {
		t.Errorf("kept %v", k)
	}
	if !slices.Equal(got[0].Reasons, []string{"base of epoch 2"}) || !slices.Equal(got[4].Reasons, []string{"last"}) {
		t.Errorf("reasons %v, %v", got[0].Reasons, got[4].Reasons)
	}
}

// Times that cannot be true keep their snapshot and use up nothing.
func TestFalseTimes(t *testing.T) {
	t.Parallel()
	snaps := every(5, time.Hour)
	snaps = append(snaps,
		retain.Snap{Number: 6, Created: noon.AddDate(1, 0, 0)},
		retain.Snap{Number: 7, Created: noon.AddDate(-1, 0, 0)},
		retain.Snap{Number: 8, Created: noon.Add(time.Minute)},
	)
	got := retain.Decide(noon, retain.Policy{Last: 2}, snaps)
	if k := kept(got); !slices.Equal(k, []int{5, 6, 7, 8}) {
		t.Errorf("kept %v", k)
	}
	if !strings.Contains(got[5].Reasons[0], "future") || !strings.Contains(got[6].Reasons[0], "before") {
		t.Errorf("reasons %v, %v", got[5].Reasons, got[6].Reasons)
	}
}

func anyPolicy(t *rapid.T) retain.Policy {
	n := rapid.IntRange(-1, 9)
	return retain.Policy{
		Last: n.Draw(t, "last"), Hourly: n.Draw(t, "hourly"), Daily: n.Draw(t, "daily"), Weekly: n.Draw(t, "weekly"),
		Monthly: n.Draw(t, "monthly"), Yearly: n.Draw(t, "yearly"), Within: retain.Span{Days: rapid.IntRange(0, 20).Draw(t, "within")},
	}
}

// Whatever is added later with false times, on the line or off it, changes no
// verdict on what was there.
func TestBurstExpelsNothing(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		p := anyPolicy(t)
		step := time.Duration(rapid.Int64Range(int64(time.Minute), int64(30*24*time.Hour)).Draw(t, "step"))
		good := every(rapid.IntRange(1, 60).Draw(t, "good"), step)
		all := slices.Clone(good)
		for i := range rapid.IntRange(0, 200).Draw(t, "burst") {
			s := retain.Snap{Number: dr.Number(len(good) + i + 1), Group: rapid.SampledFrom([]string{"", "", "other"}).Draw(t, "group")}
			if rapid.Bool().Draw(t, "future") {
				s.Created = noon.Add(retain.Ahead + time.Duration(rapid.Int64Range(1, int64(1000*24*time.Hour)).Draw(t, "ahead")))
			} else {
				s.Created = noon.Add(-time.Duration(rapid.Int64Range(1, int64(1000*24*time.Hour)).Draw(t, "back")))
			}
			all = append(all, s)
		}
		before, after := retain.Decide(noon, p, good), retain.Decide(noon, p, all)
		for i := range before {
			if before[i].Keep != after[i].Keep {
				t.Fatalf("snapshot %d: kept %v, and %v with the burst", before[i].Number, before[i].Keep, after[i].Keep)
			}
		}
	})
}

// What is kept stays kept when the rest is gone: forgetting twice is
// forgetting once.
func TestDecideTwice(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		p := anyPolicy(t)
		step := time.Duration(rapid.Int64Range(int64(time.Minute), int64(90*24*time.Hour)).Draw(t, "step"))
		snaps := every(rapid.IntRange(0, 300).Draw(t, "n"), step)
		var left []retain.Snap
		for _, v := range retain.Decide(noon, p, snaps) {
			if v.Keep {
				left = append(left, v.Snap)
			}
		}
		if got := kept(retain.Decide(noon, p, left)); len(got) != len(left) {
			t.Fatalf("%d of %d are kept the second time", len(got), len(left))
		}
	})
}

func TestParse(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]retain.Span{"7d": {Days: 7}, "1y6m": {Years: 1, Months: 6}, "2y5m7d3h": {2, 5, 7, 3}, "0h": {}} {
		got, err := retain.ParseSpan(in)
		if err != nil || got != want || got.String() != in {
			t.Errorf("%q: %+v, %v, %s", in, got, err, got)
		}
	}
	for _, in := range []string{"", "7", "7w", "d", "1d2y", "-1d", "9999999d", "7d ", "100001h"} {
		if _, err := retain.ParseSpan(in); !errors.Is(err, dr.ErrUsage) {
			t.Errorf("%q: %v", in, err)
		}
	}
	for in, want := range map[string]int{"0": 0, "12": 12, "unlimited": retain.Unlimited} {
		if got, err := retain.ParseCount(in); err != nil || got != want {
			t.Errorf("%q: %d, %v", in, got, err)
		}
	}
	for _, in := range []string{"", "-1", "x", "100001", "1.5"} {
		if _, err := retain.ParseCount(in); !errors.Is(err, dr.ErrUsage) {
			t.Errorf("%q: %v", in, err)
		}
	}
	p := retain.Policy{Last: 2, Daily: retain.Unlimited, Within: retain.Span{Days: 3}}
	if got := fmt.Sprint(p); got != "keep last 2, daily unlimited, within 3d" {
		t.Errorf("%s", got)
	}
	if !(retain.Policy{}).Empty() || p.Empty() {
		t.Error("Empty")
	}
}

func FuzzParseSpan(f *testing.F) {
	for _, s := range []string{"7d", "1y6m", "x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		v, err := retain.ParseSpan(s)
		if err != nil {
			return
		}
		if again, err := retain.ParseSpan(v.String()); err != nil || again != v {
			t.Errorf("%q: %+v, %+v, %v", s, v, again, err)
		}
	})
}
