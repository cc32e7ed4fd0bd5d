package main

import (
	"slices"
	"strings"
	"testing"
)

func TestCounts(t *testing.T) {
	t.Parallel()
	for largest, want := range map[int][]int{1: {0, 1}, 5: {0, 1, 5}, 20: {0, 1, 5, 10, 20}, 25: {0, 1, 5, 10, 20, 25}} {
		if got := counts(largest); !slices.Equal(got, want) {
			t.Errorf("counts(%d) = %v, want %v", largest, got, want)
		}
	}
}

func TestPaperFiles(t *testing.T) {
	t.Parallel()
	r := &paperResults{}
	for i, n := range counts(5) {
		r.Points = append(r.Points,
			point{Round: 1, Courses: n, Way: "docker", Image: int64(n+10) * 1e6, Added: 5e6, Outside: outcome{Seconds: 10, Stored: int64(i+1) * 4e6, Frozen: 900}},
			point{Round: 1, Courses: n, Way: "lifeboat", Added: 1e6, Outside: outcome{Seconds: 2, Stored: int64(i+1) * 1e6, Frozen: 9}})
	}
	r.Shares = []share{{1, "docker", shareAlone, 500e6, 50}, {1, "docker", shareSecond, 300e6, 30}, {1, "lifeboat", shareAlone, 400e6, 5}, {1, "lifeboat", shareSecond, 100e6, 1}}
	files, err := r.files()
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"| 1 | 11 | 8 | 5 | 10 | 900 | 2 | 1 | 2 | 9 |", "| both, sharing | 800 | | 500 | |", "| both, without sharing | 1000 | | 800 | |"} {
		if !strings.Contains(string(files["paper.md"]), want) {
			t.Errorf("no %q in:\n%s", want, files["paper.md"])
		}
	}
	for _, name := range []string{"figure6.svg", "figure7.svg", "sharing.svg", "paper.json"} {
		if len(files[name]) == 0 {
			t.Errorf("no %s", name)
		}
	}
}
