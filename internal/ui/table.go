package ui

import (
	"strings"

	"github.com/mattn/go-runewidth"
)

// Column is one column of a Table.
type Column struct {
	Title string
	// Right aligns numbers.
	Right bool
	// Elastic columns are cut short, with an ellipsis, where the terminal is too
	// narrow. What is copied and pasted, such as an id, is never elastic.
	Elastic bool
}

// Table is a list for people. Rows shorter than the columns are filled up.
type Table struct {
	Title   string
	Columns []Column
	Rows    [][]string
	// Empty is said instead of a table without rows.
	Empty string
}

const minElastic = 8

// Render draws the table with two spaces between the columns.
func (t Table) Render(c *Canvas) { t.render(c, nil) }

// render draws with the first column given as marks, which carry colour and so
// cannot be measured.
func (t Table) render(c *Canvas, marks []Mark) {
	if t.Title != "" {
		c.Line("%s", c.Bold(Clean(t.Title)))
	}
	if len(t.Rows) == 0 {
		if t.Empty != "" {
			c.Line("%s", Clean(t.Empty))
		}
		return
	}
	rows := make([][]string, len(t.Rows))
	widths := make([]int, len(t.Columns))
	for i, col := range t.Columns {
		widths[i] = runewidth.StringWidth(col.Title)
	}
	for r, row := range t.Rows {
		rows[r] = make([]string, len(t.Columns))
		for i := range t.Columns {
			if i < len(row) {
				rows[r][i] = Clean(row[i])
			}
			widths[i] = max(widths[i], runewidth.StringWidth(rows[r][i]))
		}
	}
	margin := 0
	if marks != nil {
		margin = 3
	}
	t.shrink(widths, c.Width-margin)
	head := make([]string, len(t.Columns))
	titled := false
	for i, col := range t.Columns {
		head[i] = col.Title
		titled = titled || col.Title != ""
	}
	if titled {
		c.Line("%s%s", strings.Repeat(" ", margin), c.Bold(t.line(head, widths)))
	}
	for r, row := range rows {
		mark := ""
		if marks != nil {
			mark = c.Mark(marks[r]) + strings.Repeat(" ", margin-runewidth.StringWidth(style{unicode: c.style.unicode}.mark(marks[r])))
		}
		c.Line("%s%s", mark, t.line(row, widths))
	}
}

// shrink takes columns away from the widest elastic column until the table
// fits, or nothing can give.
func (t Table) shrink(widths []int, limit int) {
	if limit <= 0 {
		return
	}
	total := 2 * (len(widths) - 1)
	for _, w := range widths {
		total += w
	}
	for total > limit {
		widest := -1
		for i, col := range t.Columns {
			if col.Elastic && widths[i] > minElastic && (widest < 0 || widths[i] > widths[widest]) {
				widest = i
			}
		}
		if widest < 0 {
			return
		}
		widths[widest]--
		total--
	}
}

func (t Table) line(cells []string, widths []int) string {
	var b strings.Builder
	for i, cell := range cells {
		if runewidth.StringWidth(cell) > widths[i] {
			cell = runewidth.Truncate(cell, widths[i], "…")
		}
		pad := strings.Repeat(" ", max(widths[i]-runewidth.StringWidth(cell), 0))
		if i > 0 {
			b.WriteString("  ")
		}
		if t.Columns[i].Right {
			b.WriteString(pad + cell)
		} else {
			b.WriteString(cell + pad)
		}
	}
	return strings.TrimRight(b.String(), " ")
}

// Field is a name and a value.
type Field struct{ Name, Value string }

// Fields is a block of names and values, one a line.
type Fields []Field

// Render draws the values in one column.
func (f Fields) Render(c *Canvas) {
	w := 0
	for _, one := range f {
		w = max(w, runewidth.StringWidth(Clean(one.Name)))
	}
	for _, one := range f {
		name := Clean(one.Name)
		c.Line("%s%s  %s", name, strings.Repeat(" ", w-runewidth.StringWidth(name)), Clean(one.Value))
	}
}
