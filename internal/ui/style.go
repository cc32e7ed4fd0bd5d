package ui

import (
	"fmt"
	"io"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Mark is a sign that says how something stands. Colour only repeats it.
type Mark int

// The marks, as they look with and without Unicode.
const (
	MarkNone    Mark = iota
	MarkDone         // ✓ ok
	MarkFailed       // ✗ x
	MarkWarn         // !
	MarkPending      // · .
	MarkRunning      // ▸ >
	MarkSkipped      // – -
	MarkUnknown      // ?
)

type colour string

const (
	red    colour = "31"
	green  colour = "32"
	yellow colour = "33"
	blue   colour = "34"
	dim    colour = "2"
	bold   colour = "1"
)

type style struct {
	colour  bool
	unicode bool
}

// newStyle decides what a stream can show: colours on a terminal that has
// them, unless NO_COLOR is set to anything; other signs than ASCII where the
// locale has them.
func newStyle(terminal bool, env func(string) string) style {
	locale := env("LC_ALL")
	if locale == "" {
		locale = env("LC_CTYPE")
	}
	if locale == "" {
		locale = env("LANG")
	}
	l := strings.ToLower(locale)
	return style{
		colour:  terminal && env("NO_COLOR") == "" && env("TERM") != "dumb" && env("TERM") != "",
		unicode: strings.Contains(l, "utf-8") || strings.Contains(l, "utf8"),
	}
}

func (s style) paint(c colour, text string) string {
	if !s.colour || text == "" {
		return text
	}
	return "\x1b[" + string(c) + "m" + text + "\x1b[0m"
}

func (s style) mark(m Mark) string {
	type look struct {
		sign, ascii string
		colour      colour
	}
	l := map[Mark]look{
		MarkDone: {"✓", "ok", green}, MarkFailed: {"✗", "x", red}, MarkWarn: {"!", "!", yellow}, MarkPending: {"·", ".", dim},
		MarkRunning: {"▸", ">", blue}, MarkSkipped: {"–", "-", dim}, MarkUnknown: {"?", "?", yellow},
	}[m]
	if s.unicode {
		return s.paint(l.colour, l.sign)
	}
	return s.paint(l.colour, l.ascii)
}

// Canvas is what a View draws on.
type Canvas struct {
	w     io.Writer
	style style
	// Width is how many columns there are; 0 is unlimited.
	Width int
}

// Line writes one line.
func (c *Canvas) Line(format string, args ...any) { fmt.Fprintf(c.w, format+"\n", args...) }

// Mark is a sign in the stream's style.
func (c *Canvas) Mark(m Mark) string { return c.style.mark(m) }

// Bold stresses text where the stream can.
func (c *Canvas) Bold(text string) string { return c.style.paint(bold, text) }

// View is one part of an answer for people.
type View interface{ Render(c *Canvas) }

// ViewFunc makes a View of a function.
type ViewFunc func(c *Canvas)

// Render draws.
func (f ViewFunc) Render(c *Canvas) { f(c) }

// Text is a paragraph.
type Text string

// Render draws the text without control characters.
func (t Text) Render(c *Canvas) { c.Line("%s", CleanLines(strings.TrimRight(string(t), "\n"))) }

// Clean makes text safe to show on one line of a terminal: control characters
// and bytes that are no UTF-8 are shown as \x1b, \n, \xff; characters that turn
// the writing direction, or that cannot be seen, as \u202e.
func Clean(s string) string {
	if !strings.ContainsFunc(s, hidden) && utf8.ValidString(s) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == utf8.RuneError && n == 1:
			fmt.Fprintf(&b, `\x%02x`, s[i])
		case r == '\n':
			b.WriteString(`\n`)
		case r == '\t':
			b.WriteString(`\t`)
		case hidden(r) && r < 0x80:
			fmt.Fprintf(&b, `\x%02x`, r)
		case hidden(r):
			fmt.Fprintf(&b, `\u%04x`, r)
		default:
			b.WriteRune(r)
		}
		i += n
	}
	return b.String()
}

func hidden(r rune) bool {
	return unicode.IsControl(r) || unicode.In(r, unicode.Cf, unicode.Zl, unicode.Zp) && r != '\u200d'
}

// CleanLines is Clean for text of several lines.
func CleanLines(s string) string {
	lines := strings.Split(s, "\n")
	for i := range lines {
		lines[i] = Clean(strings.ReplaceAll(lines[i], "\t", "    "))
	}
	return strings.Join(lines, "\n")
}
