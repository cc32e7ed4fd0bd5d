package ui

import (
	"strconv"
	"strings"
	"time"

	"github.com/mattn/go-runewidth"

	"lifeboat/internal/quantity"
)

// StepState is how far a step of a plan is.
type StepState string

// The states of a step.
const (
	StepPending StepState = "pending"
	StepRunning StepState = "running"
	StepDone    StepState = "done"
	StepSkipped StepState = "skipped" // nothing was to be done
	StepFailed  StepState = "failed"
	StepUnknown StepState = "unknown" // sent, outcome not learned
)

func (s StepState) mark() Mark {
	switch s {
	case StepRunning:
		return MarkRunning
	case StepDone:
		return MarkDone
	case StepSkipped:
		return MarkSkipped
	case StepFailed:
		return MarkFailed
	case StepUnknown:
		return MarkUnknown
	default:
		return MarkPending
	}
}

// Step is one line of a plan, or of what became of it. Its JSON form is part
// of answers.
type Step struct {
	Title  string    `json:"step"`
	State  StepState `json:"state"`
	Detail string    `json:"detail,omitempty"`
	// TookMS is how long the step took, in milliseconds; 0 where it did not run.
	TookMS int64 `json:"took_ms"`
}

// Steps shows a plan, or how far its execution is.
type Steps struct {
	Title string
	Steps []Step
}

// Render draws one line a step: mark, number, what, state, how long, and the
// first line of the detail: a log, say, has its place below the table.
// Before anything ran, states and times are left out.
func (s Steps) Render(c *Canvas) {
	ran := false
	for _, st := range s.Steps {
		ran = ran || st.State != StepPending && st.State != ""
	}
	t := Table{Title: s.Title, Columns: []Column{{Title: "#", Right: true}, {Title: "step", Elastic: true}}, Empty: "nothing to do"}
	if ran {
		t.Columns = append(t.Columns, Column{Title: "state"}, Column{Title: "took", Right: true})
	}
	t.Columns = append(t.Columns, Column{Title: "", Elastic: true})
	marks := []Mark{}
	for i, st := range s.Steps {
		row := []string{strconv.Itoa(i + 1), st.Title}
		if ran {
			took := ""
			if st.TookMS > 0 || st.State == StepDone {
				took = quantity.Duration(time.Duration(st.TookMS) * time.Millisecond)
			}
			state := st.State
			if state == "" {
				state = StepPending
			}
			row = append(row, string(state), took)
		}
		detail, _, _ := strings.Cut(st.Detail, "\n")
		t.Rows = append(t.Rows, append(row, strings.TrimRight(detail, "\r")))
		marks = append(marks, st.State.mark())
	}
	t.render(c, marks)
}

// Span is a bar of a Timeline, in time from its beginning.
type Span struct {
	Label      string        `json:"label"`
	Start, End time.Duration `json:"-"`
	// Note is said behind the bar, after the duration.
	Note string `json:"note,omitempty"`
	// Bad marks time in which the service did not answer.
	Bad bool `json:"bad,omitempty"`
}

// Timeline shows what happened when: one bar for each span, all on one scale.
type Timeline struct {
	Title string
	Spans []Span
}

// Render draws the bars; a span too short to be seen has one cell.
func (t Timeline) Render(c *Canvas) {
	if t.Title != "" {
		c.Line("%s", c.Bold(Clean(t.Title)))
	}
	if len(t.Spans) == 0 {
		return
	}
	label, end := 0, time.Duration(1)
	tails := make([]string, len(t.Spans))
	tail := 0
	for i, s := range t.Spans {
		label = max(label, min(runewidth.StringWidth(Clean(s.Label)), 28))
		end = max(end, s.End, s.Start)
		tails[i] = quantity.Duration(max(s.End-s.Start, 0))
		if s.Note != "" {
			tails[i] += "  " + Clean(s.Note)
		}
		tail = max(tail, runewidth.StringWidth(tails[i]))
	}
	columns := c.Width
	if columns == 0 {
		columns = 100
	}
	area := max(columns-label-tail-4, 10)
	full, bad, empty := "█", "▒", "·"
	if !c.style.unicode {
		full, bad, empty = "#", "x", "."
	}
	cell := func(d time.Duration) int { return int(int64(max(d, 0)) * int64(area) / int64(end)) }
	for i, s := range t.Spans {
		from := min(cell(s.Start), area-1)
		to := min(max(cell(s.End), from+1), area)
		fill, paint := full, blue
		if s.Bad {
			fill, paint = bad, red
		}
		name := runewidth.Truncate(Clean(s.Label), label, "…")
		c.Line("%s%s  %s%s%s  %s", name, strings.Repeat(" ", label-runewidth.StringWidth(name)),
			c.style.paint(dim, strings.Repeat(empty, from)), c.style.paint(paint, strings.Repeat(fill, to-from)), c.style.paint(dim, strings.Repeat(empty, area-to)), tails[i])
	}
	zero, last := "0", quantity.Duration(end)
	c.Line("%s  %s%s%s", strings.Repeat(" ", label), zero, strings.Repeat(" ", max(area-1-runewidth.StringWidth(last), 1)), last)
}
