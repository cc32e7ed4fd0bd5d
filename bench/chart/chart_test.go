package chart_test

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"strings"
	"testing"

	"lifeboat/bench/chart"
)

func wellFormed(t *testing.T, svg []byte) {
	t.Helper()
	for d := xml.NewDecoder(bytes.NewReader(svg)); ; {
		if _, err := d.Token(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatalf("%v in:\n%s", err, svg)
		}
	}
	if bytes.Contains(svg, []byte("NaN")) || bytes.Contains(svg, []byte("Inf")) {
		t.Errorf("a place that is no number:\n%s", svg)
	}
}

func TestBars(t *testing.T) {
	t.Parallel()
	b := chart.Bars{Title: "time <of> work", Unit: "seconds", Groups: []string{"first", "second"}, Series: []chart.BarSeries{
		{Name: "one", Values: []chart.Range{{Mid: 0.02, Low: 0.01, High: 0.03}, {Mid: 120, Low: 100, High: 130}}},
		{Name: "two", Values: []chart.Range{chart.Missing(), {Mid: 1, Low: 1, High: 1}}},
	}}
	svg := b.SVG()
	wellFormed(t, svg)
	if n := strings.Count(string(svg), "<rect"); n != 1+2+3 {
		t.Errorf("%d rectangles, want background, 2 of the legend and 3 bars", n)
	}
	wellFormed(t, chart.Bars{}.SVG())
	wellFormed(t, chart.Bars{Groups: []string{"none"}, Series: []chart.BarSeries{{Name: "x", Values: []chart.Range{chart.Missing()}}}}.SVG())
}

func TestLines(t *testing.T) {
	t.Parallel()
	l := chart.Lines{Title: "size", X: "courses", Y: "MB", Series: []chart.LineSeries{
		{Name: "a", Points: []chart.Point{{X: 0, Y: chart.Range{Mid: 5, Low: 4, High: 6}}, {X: 20, Y: chart.Range{Mid: 900, Low: 900, High: 900}}}},
		{Name: "b", Dashed: true},
	}}
	svg := l.SVG()
	wellFormed(t, svg)
	if n := strings.Count(string(svg), "<circle"); n != 2 {
		t.Errorf("%d points, want 2", n)
	}
	wellFormed(t, chart.Lines{}.SVG())
}

func TestNumber(t *testing.T) {
	t.Parallel()
	for v, want := range map[float64]string{0: "0", 0.0123: "0.0123", 1: "1", 1.5: "1.5", 12.34: "12.3", 123.4: "123", 12345: "12345", 0.1: "0.1"} {
		if got := chart.Number(v); got != want {
			t.Errorf("Number(%v) = %q, want %q", v, got, want)
		}
	}
}
