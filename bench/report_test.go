package main

import (
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"lifeboat/bench/corpus"
)

// sample has the same ratio of times in every round.
func sample() *results {
	r := &results{Rounds: 3, Tools: []string{"lifeboat", "docker"}, Versions: map[string]string{"lifeboat": "1"}, Commands: map[string][]string{"lifeboat": {"a", "b", "c"}}}
	for round := 1; round <= 3; round++ {
		for _, step := range steps() {
			r.Measurements = append(r.Measurements,
				measurement{round, step, "lifeboat", outcome{Seconds: float64(round), Peak: 1e8, Frozen: 20, Stored: 5e8}},
				measurement{round, step, "docker", outcome{Seconds: float64(round) * 10, Peak: 2e8, Frozen: 9000, Stored: 9e8}})
		}
	}
	return r
}

func TestSpread(t *testing.T) {
	t.Parallel()
	if v := spread([]float64{3, 1, 2}); v.Mid != 2 || v.Low != 1 || v.High != 3 {
		t.Errorf("%+v", v)
	}
	if v := spread([]float64{4, 1, 2, 3}); v.Mid != 2.5 {
		t.Errorf("%+v", v)
	}
	if v := spread(nil); !math.IsNaN(v.Mid) {
		t.Errorf("%+v", v)
	}
}

// TestRatio checks that tools are compared within their round: all rounds have the same ratio here,
// though they took different times.
func TestRatio(t *testing.T) {
	t.Parallel()
	r := sample()
	if v := r.ratio(stepFirst, "docker"); v.Low != 10 || v.High != 10 {
		t.Errorf("%+v, want 10 in every round", v)
	}
	if v := r.of(stepFirst, "docker", seconds); v.Mid != 20 || v.Low != 10 || v.High != 30 {
		t.Errorf("%+v", v)
	}
	if v := r.ratio(stepFirst, "borg"); !math.IsNaN(v.Mid) {
		t.Errorf("%+v of a tool that did not run", v)
	}
}

func TestFiles(t *testing.T) {
	t.Parallel()
	files, err := sample().files()
	if err != nil {
		t.Fatal(err)
	}
	text := string(files["side-by-side.md"])
	for _, want := range []string{"| " + stepFirst + " | 2 (1 to 3) | 20 (10 to 30) |", "| " + stepPages + " | 20 | 9000 |", "a | b | c"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in:\n%s", want, text)
		}
	}
	var back results
	if err := json.Unmarshal(files["side-by-side.json"], &back); err != nil {
		t.Fatal(err)
	}
	if len(back.Measurements) != 36 || back.Measurements[1].Seconds != 10 {
		t.Errorf("%d figures came back, the second %+v", len(back.Measurements), back.Measurements[1])
	}
	dir := filepath.Join(t.TempDir(), "new")
	if err := write(dir, files); err != nil {
		t.Fatal(err)
	}
	for name := range files {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			t.Error(err)
		}
	}
	if err := write(filepath.Join(dir, "time.svg"), files); err == nil {
		t.Error("results written into a file: no error")
	}
}

func TestParse(t *testing.T) {
	t.Parallel()
	o, err := parse([]string{"-tools", "lifeboat,borg", "-scale", "0.1"})
	if err != nil || o.rounds != 3 || !slices.Equal(o.tools, []string{"lifeboat", "borg"}) || o.out != "bench/results" {
		t.Errorf("%+v, %v", o, err)
	}
	if o, err := parse([]string{"-paper"}); err != nil || o.rounds != 1 {
		t.Errorf("%+v, %v", o, err)
	}
	for _, args := range [][]string{{"-tools", "tar"}, {"-once", "tar"}, {"-rounds", "-1"}, {"-scale", "0"}, {"-scale", "NaN"}, {"more"}, {"-x"}} {
		if _, err := parse(args); err == nil {
			t.Errorf("%q: no error", args)
		}
	}
}

func TestTurn(t *testing.T) {
	t.Parallel()
	order := []string{"a", "b", "c"}
	if got := turn(order, 1); !slices.Equal(got, []string{"b", "c", "a"}) {
		t.Errorf("%q", got)
	}
	if got := turn(order, 3); !slices.Equal(got, order) {
		t.Errorf("%q", got)
	}
	if !slices.Equal(order, []string{"a", "b", "c"}) {
		t.Error("the order was changed")
	}
}

func TestPausedIn(t *testing.T) {
	t.Parallel()
	events := `{"Action":"pause","timeNano":1000000000}
{"Action":"unpause","timeNano":1500000000}
{"Action":"pause","timeNano":2000000000}
{"Action":"unpause","timeNano":2250000000}
`
	if ms, err := pausedIn([]byte(events)); err != nil || ms != 750 {
		t.Errorf("%v ms, %v; want 750", ms, err)
	}
	for _, bad := range []string{"", "{", `{"Action":"pause","timeNano":5}` + "\n"} {
		if _, err := pausedIn([]byte(bad)); err == nil {
			t.Errorf("%q: no error", bad)
		}
	}
}

// TestTables checks what tables show of figures that are not there.
func TestTables(t *testing.T) {
	t.Parallel()
	r := sample()
	r.Tools = append(r.Tools, "borg")
	r.Data = corpus.Totals{Files: 3}
	if text := string(r.markdown()); !strings.Contains(text, "| - |") || strings.Contains(text, "NaN") {
		t.Errorf("a figure that is missing is not shown as such:\n%s", text)
	}
}
