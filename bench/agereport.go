package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"

	"lifeboat/bench/chart"
)

// ageBucket is how many snapshots make one point of a picture.
const ageBucket = 20

// files are tables, raw figures and pictures.
func (r *ageResults) files() (map[string][]byte, error) {
	raw, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return nil, fmt.Errorf("write figures: %w", err)
	}
	sent := chart.Lines{Title: "What a snapshot sends and asks for, against the snapshots before it", X: "snapshots", Y: "kB; requests", Series: []chart.LineSeries{
		r.line("sent, kB", ageSmall, func(p agePoint) float64 { return float64(p.Sent) / 1e3 }),
		r.line("received, kB", ageSmall, func(p agePoint) float64 { return float64(p.Received) / 1e3 }),
		r.line("requests", ageSmall, func(p agePoint) float64 { return float64(p.Requests) }),
		r.line("sent where nothing changed, kB", ageUnchanged, func(p agePoint) float64 { return float64(p.Sent) / 1e3 }),
	}}
	sent.Series[3].Dashed = true
	time := chart.Lines{Title: "Time against the snapshots before", X: "snapshots", Y: "seconds"}
	for _, what := range []string{ageSmall, ageUnchanged, ageRestore, ageFresh} {
		time.Series = append(time.Series, r.line(what, what, func(p agePoint) float64 { return p.Seconds }))
	}
	return map[string][]byte{"age.md": r.markdown(), "age.json": append(raw, '\n'), "age-sent.svg": sent.SVG(), "age-time.svg": time.SVG()}, nil
}

// line is a figure against age. The first snapshot is a copy of all, and belongs to no line.
func (r *ageResults) line(name, what string, figure func(agePoint) float64) chart.LineSeries {
	l := chart.LineSeries{Name: name}
	buckets := map[int][]float64{}
	for _, p := range r.Points {
		if p.What != what || p.What == ageSmall && p.Snapshots == 0 {
			continue
		}
		at := p.Snapshots
		if what == ageSmall {
			at = (at-1)/ageBucket*ageBucket + ageBucket/2
		}
		buckets[at] = append(buckets[at], figure(p))
	}
	var at []int
	for n := range buckets {
		at = append(at, n)
	}
	slices.Sort(at)
	for _, n := range at {
		l.Points = append(l.Points, chart.Point{X: float64(n), Y: spread(buckets[n])})
	}
	return l
}

func (r *ageResults) markdown() []byte {
	b := &bytes.Buffer{}
	b.WriteString("# Cost against the snapshots before\n\n")
	r.Machine.markdown(b)
	describe(b, "Data", r.Data)
	fmt.Fprintf(b, "Before each snapshot %d pages of 16 KiB of the big table and %d files are written; every %d snapshots comes a gc.\n", agePages, ageFiles, ageGC)
	for _, what := range []string{ageSmall, ageUnchanged, ageRestore, ageFresh, ageCollect} {
		fmt.Fprintf(b, "\n## %s\n\n| snapshots before | seconds | requests | sent, kB | received, kB | peak, MB |\n|---|---|---|---|---|---|\n", what)
		for _, n := range r.rows(what) {
			of := func(figure func(agePoint) float64) string {
				var list []float64
				for _, p := range r.Points {
					if p.What == what && (p.Snapshots == n || what == ageSmall && n > 0 && p.Snapshots > n-ageBucket && p.Snapshots <= n) {
						list = append(list, figure(p))
					}
				}
				return cell(spread(list))
			}
			fmt.Fprintf(b, "| %d | %s | %s | %s | %s | %s |\n", n,
				of(func(p agePoint) float64 { return p.Seconds }), of(func(p agePoint) float64 { return float64(p.Requests) }),
				of(func(p agePoint) float64 { return float64(p.Sent) / 1e3 }), of(func(p agePoint) float64 { return float64(p.Received) / 1e3 }),
				of(func(p agePoint) float64 { return float64(p.Peak) / 1e6 }))
		}
	}
	return b.Bytes()
}

// rows are the ages that a table shows: the first, and of the many snapshots every hundredth, which
// stands for those just before it.
func (r *ageResults) rows(what string) []int {
	var list []int
	for _, p := range r.Points {
		if p.What == what && (what != ageSmall || p.Snapshots == 0 || p.Snapshots == ageBucket || (p.Snapshots+1)%100 == 0) {
			list = append(list, p.Snapshots)
		}
	}
	return list
}
