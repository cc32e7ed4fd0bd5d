package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"lifeboat/bench/chart"
	"lifeboat/bench/corpus"
)

// machine is on what was measured.
type machine struct {
	When       string  `json:"when"`
	Processor  string  `json:"processor"`
	Processors int     `json:"processors"`
	Memory     int64   `json:"memory_bytes"`
	Kernel     string  `json:"kernel"`
	LoadBefore float64 `json:"load_before"`
	LoadAfter  float64 `json:"load_after"`
}

func lookAround() (machine, error) {
	m := machine{When: time.Now().UTC().Format(time.RFC3339), Processors: runtime.NumCPU()}
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return m, fmt.Errorf("look at the machine: %w", err)
	}
	m.Kernel = unix.ByteSliceToString(u.Release[:])
	data, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return m, fmt.Errorf("look at the machine: %w", err)
	}
	for line := range strings.Lines(string(data)) {
		if key, value, _ := strings.Cut(line, ":"); strings.TrimSpace(key) == "model name" {
			m.Processor = strings.TrimSpace(value)
			break
		}
	}
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return m, fmt.Errorf("look at the machine: %w", err)
	}
	m.Memory = int64(info.Totalram) * int64(info.Unit)
	m.load(&m.LoadBefore)
	return m, nil
}

// load takes the mean number of running processes of the last minute.
func (m *machine) load(to *float64) {
	data, err := os.ReadFile("/proc/loadavg")
	if err == nil {
		_, _ = fmt.Sscan(string(data), to) // 0 says that it is not known
	}
}

// markdown describes the machine.
func (m machine) markdown(b *bytes.Buffer) {
	fmt.Fprintf(b, "%s. %s, %d processors, %.0f GB of memory, Linux %s. Load of the machine before and after: %.1f, %.1f.\n",
		m.When, m.Processor, m.Processors, float64(m.Memory)/1e9, m.Kernel, m.LoadBefore, m.LoadAfter)
}

// spread is median, lowest and highest of figures.
func spread(figures []float64) chart.Range {
	if len(figures) == 0 {
		return chart.Missing()
	}
	s := slices.Sorted(slices.Values(figures))
	mid := s[len(s)/2]
	if len(s)%2 == 0 {
		mid = (mid + s[len(s)/2-1]) / 2
	}
	return chart.Range{Mid: mid, Low: s[0], High: s[len(s)-1]}
}

// of gives a figure of a tool at a step, over all rounds.
func (r *results) of(step, tool string, figure func(measurement) float64) chart.Range {
	var list []float64
	for _, m := range r.Measurements {
		if m.Step == step && m.Tool == tool {
			if v := figure(m); v > 0 {
				list = append(list, v)
			}
		}
	}
	return spread(list)
}

// ratio is how many times as long as Lifeboat a tool took, compared within each round.
func (r *results) ratio(step, tool string) chart.Range {
	var list []float64
	for round := 1; round <= r.Rounds; round++ {
		var ours, theirs float64
		for _, m := range r.Measurements {
			if m.Round == round && m.Step == step {
				switch m.Tool {
				case "lifeboat":
					ours = m.Seconds
				case tool:
					theirs = m.Seconds
				}
			}
		}
		if ours > 0 && theirs > 0 {
			list = append(list, theirs/ours)
		}
	}
	return spread(list)
}

// Figures that tables and pictures show.
func seconds(m measurement) float64  { return m.Seconds }
func cpu(m measurement) float64      { return m.CPU }
func peakMB(m measurement) float64   { return float64(m.Peak) / 1e6 }
func storedMB(m measurement) float64 { return float64(m.Stored) / 1e6 }
func frozenMS(m measurement) float64 { return m.Frozen }
func serverMB(m measurement) float64 { return float64(m.Registry) / 1e6 }

// cell shows a figure with its spread.
func cell(v chart.Range) string {
	switch {
	case !(v.Mid > 0):
		return "-"
	case v.Low == v.High:
		return chart.Number(v.Mid)
	}
	return fmt.Sprintf("%s (%s to %s)", chart.Number(v.Mid), chart.Number(v.Low), chart.Number(v.High))
}

// table writes rows of steps and columns of tools.
func table(b *bytes.Buffer, title string, rows, columns []string, value func(row, column string) chart.Range) {
	fmt.Fprintf(b, "\n## %s\n\n| step | %s |\n|---|%s\n", title, strings.Join(columns, " | "), strings.Repeat("---|", len(columns)))
	for _, row := range rows {
		fmt.Fprintf(b, "| %s |", row)
		for _, column := range columns {
			fmt.Fprintf(b, " %s |", cell(value(row, column)))
		}
		b.WriteString("\n")
	}
}

// files are the tables, the raw figures and the pictures.
func (r *results) files() (map[string][]byte, error) {
	raw, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return nil, fmt.Errorf("write figures: %w", err)
	}
	copies := steps()[:4]
	return map[string][]byte{
		"side-by-side.md":   r.markdown(),
		"side-by-side.json": append(raw, '\n'),
		"time.svg":          r.bars("Time of each step", "seconds", steps(), seconds),
		"processor.svg":     r.bars("Processor time of each step, with registry and engine", "seconds", steps(), cpu),
		"memory.svg":        r.bars("Peak resident memory", "MB", steps(), peakMB),
		"stored.svg":        r.bars("Bytes stored after each step", "MB", copies, storedMB),
		"frozen.svg":        r.bars("How long the container was frozen", "ms", copies, frozenMS),
	}, nil
}

func (r *results) bars(title, unit string, rows []string, figure func(measurement) float64) []byte {
	c := chart.Bars{Title: title, Unit: unit, Groups: rows}
	for _, tool := range r.Tools {
		s := chart.BarSeries{Name: tool}
		measured := false
		for _, step := range rows {
			v := r.of(step, tool, figure)
			measured = measured || v.Mid > 0
			s.Values = append(s.Values, v)
		}
		if measured {
			c.Series = append(c.Series, s)
		}
	}
	return c.SVG()
}

func (r *results) markdown() []byte {
	b := &bytes.Buffer{}
	b.WriteString("# Side by side\n\n")
	r.Machine.markdown(b)
	describe(b, "Data", r.Data)
	describe(b, "A course", r.Course)
	fmt.Fprintf(b, "The image is %s, %.0f MB. ", r.ImageName, float64(r.ImageBytes)/1e6)
	fmt.Fprintf(b, "%d rounds; figures are medians, with the lowest and highest where they differ.\n", r.Rounds)
	fmt.Fprintf(b, "\n## What was run\n\n| tool | version | before | copy | restore |\n|---|---|---|---|---|\n")
	for _, tool := range r.Tools {
		fmt.Fprintf(b, "| %s | %s | %s |\n", tool, r.Versions[tool], strings.Join(r.Commands[tool], " | "))
	}
	table(b, "Time, seconds", steps(), r.Tools, func(step, tool string) chart.Range { return r.of(step, tool, seconds) })
	var others []string
	for _, tool := range r.Tools {
		if tool != "lifeboat" {
			others = append(others, tool)
		}
	}
	table(b, "Times as long as Lifeboat, within the same round", steps(), others, r.ratio)
	table(b, "Processor time, seconds, with registry and engine", steps(), r.Tools, func(step, tool string) chart.Range { return r.of(step, tool, cpu) })
	table(b, "Container frozen, milliseconds", steps(), r.Tools, func(step, tool string) chart.Range { return r.of(step, tool, frozenMS) })
	table(b, "Stored for it afterwards, MB", steps(), r.Tools, func(step, tool string) chart.Range { return r.of(step, tool, storedMB) })
	table(b, "Peak resident memory, MB", steps(), r.Tools, func(step, tool string) chart.Range { return r.of(step, tool, peakMB) })
	table(b, "Peak resident memory of the registry, MB", steps(), r.Tools, func(step, tool string) chart.Range { return r.of(step, tool, serverMB) })
	return b.Bytes()
}

func describe(b *bytes.Buffer, what string, t corpus.Totals) {
	fmt.Fprintf(b, "%s: %d files, %.1f MB, of which %.1f MB do not shrink. ", what, t.Files, float64(t.Bytes)/1e6, float64(t.Incompressible)/1e6)
}
