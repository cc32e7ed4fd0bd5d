package ui_test

import (
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"github.com/mattn/go-runewidth"

	"lifeboat/internal/ui"
)

func show(t *testing.T, v ui.View, e map[string]string) string {
	t.Helper()
	p := printer(ui.Options{Env: env(e)})
	if err := p.Answer(nil, v); err != nil {
		t.Fatal(err)
	}
	return p.out.String()
}

var inUTF8 = map[string]string{"LC_ALL": "C.utf8"}

func TestTable(t *testing.T) {
	t.Parallel()
	table := ui.Table{
		Columns: []ui.Column{{Title: "system"}, {Title: "size", Right: true}, {Title: "note", Elastic: true}},
		Rows:    [][]string{{"shop", "1.44 GiB", "first"}, {"日本語", "3 B", "a\x1b[31mb\n"}, {"x"}},
	}
	want := "" +
		"system      size  note\n" +
		"shop    1.44 GiB  first\n" +
		"日本語       3 B  a\\x1b[31mb\\n\n" +
		"x\n"
	if d := cmp.Diff(want, show(t, table, inUTF8)); d != "" {
		t.Error(d)
	}
	if got := show(t, ui.Table{Title: "systems", Empty: "none is protected"}, inUTF8); got != "systems\nnone is protected\n" {
		t.Errorf("got %q", got)
	}
}

func TestTableFitsTheTerminal(t *testing.T) {
	t.Parallel()
	main, tty := pty(t)
	p := ui.New(ui.Options{Out: tty, Err: tty, Env: env(map[string]string{"LANG": "C.UTF-8", "TERM": "xterm"})})
	if err := p.Answer(nil, ui.Table{
		Columns: []ui.Column{{Title: "id"}, {Title: "path", Elastic: true}, {Title: "why", Elastic: true}},
		Rows:    [][]string{{strings.Repeat("a", 12), strings.Repeat("p", 50), strings.Repeat("語", 20)}},
	}); err != nil {
		t.Fatal(err)
	}
	lines := readLines(t, main, 2)
	for _, l := range lines {
		if w := runewidth.StringWidth(plain(l)); w > 60 {
			t.Errorf("%d columns: %q", w, l)
		}
	}
	if !strings.Contains(lines[0], "\x1b[1m") || !strings.Contains(lines[1], strings.Repeat("a", 12)+"  ppp") || !strings.Contains(lines[1], "…") {
		t.Errorf("%q", lines)
	}
}

func TestNoColor(t *testing.T) {
	t.Parallel()
	for _, e := range []map[string]string{{"NO_COLOR": "1", "TERM": "xterm"}, {"TERM": "dumb"}, {}} {
		main, tty := pty(t)
		p := ui.New(ui.Options{Out: tty, Err: tty, Env: env(e)})
		if err := p.Answer(nil, ui.Steps{Steps: []ui.Step{{Title: "start", State: ui.StepDone}}}); err != nil {
			t.Fatal(err)
		}
		if lines := readLines(t, main, 2); strings.Contains(strings.Join(lines, ""), "\x1b") || !strings.Contains(lines[1], "ok ") {
			t.Errorf("%v: %q", e, lines)
		}
	}
}

func TestSteps(t *testing.T) {
	t.Parallel()
	steps := ui.Steps{Title: "Plan of failover shop", Steps: []ui.Step{
		{Title: "pull image db", State: ui.StepDone, TookMS: 1234},
		{Title: "fill volume shop_db", State: ui.StepRunning, Detail: "12 MiB"},
		{Title: "create network", State: ui.StepSkipped, Detail: "is there"},
		{Title: "claim epoch 3", State: ui.StepUnknown},
		{Title: "start db", State: ui.StepFailed, Detail: "it ended; its last lines:\r\n    panic: x\n"},
		{Title: "start web"},
	}}
	want := `Plan of failover shop
   #  step                 state     took
✓  1  pull image db        done     1.2 s
▸  2  fill volume shop_db  running         12 MiB
–  3  create network       skipped         is there
?  4  claim epoch 3        unknown
✗  5  start db             failed          it ended; its last lines:
·  6  start web            pending
`
	if d := cmp.Diff(want, show(t, steps, inUTF8)); d != "" {
		t.Error(d)
	}
	ascii := show(t, steps, map[string]string{"LANG": "C"})
	for i, mark := range []string{"ok ", ">  ", "-  ", "?  ", "x  ", ".  "} {
		if line := strings.Split(ascii, "\n")[i+2]; !strings.HasPrefix(line, mark) {
			t.Errorf("without Unicode: %q", line)
		}
	}
	if got := show(t, ui.Steps{Steps: []ui.Step{{Title: "start db", Detail: "port 80"}}}, inUTF8); got != "   #  step\n·  1  start db  port 80\n" {
		t.Errorf("a plan that did not run: %q", got)
	}
	if got := show(t, ui.Steps{}, inUTF8); got != "nothing to do\n" {
		t.Errorf("no steps: %q", got)
	}
}

func TestTimeline(t *testing.T) {
	t.Parallel()
	s := time.Second
	tl := ui.Timeline{Title: "failover", Spans: []ui.Span{
		{Label: "down", Start: 0, End: 8 * s, Bad: true}, {Label: "plan", Start: s, End: 2 * s}, {Label: "health", Start: 10 * s, End: 10 * s, Note: "at once"},
	}}
	got := strings.Split(show(t, tl, inUTF8), "\n")
	if len(got) != 6 || got[0] != "failover" {
		t.Fatalf("%q", got)
	}
	for i, want := range []string{"down    ▒", "plan    ·", "health  ·"} {
		if !strings.HasPrefix(got[i+1], want) {
			t.Errorf("line %d: %q", i+1, got[i+1])
		}
	}
	if strings.Count(got[3], "█") != 1 || !strings.HasSuffix(got[3], "█  0 s  at once") {
		t.Errorf("a span without length: %q", got[3])
	}
	if !strings.HasSuffix(got[4], "10.0 s") {
		t.Errorf("scale: %q", got[4])
	}
	if a := show(t, tl, map[string]string{}); strings.ContainsAny(a, "█▒·") || !strings.Contains(a, "xxx") {
		t.Errorf("without Unicode:\n%s", a)
	}
	if got := show(t, ui.Timeline{}, inUTF8); got != "" {
		t.Errorf("empty: %q", got)
	}
	show(t, ui.Timeline{Spans: []ui.Span{{Label: "x", Start: -s, End: -2 * s}}}, inUTF8)
}

func TestClean(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"plain ü 語": "plain ü 語", "\x1b]0;x\x07": `\x1b]0;x\x07`, "a\nb\tc": `a\nb\tc`, "\xff\xfe": `\xff\xfe`, "a\u202eb": `a\u202eb`, "\u0085": `\u0085`, "\x7f": `\x7f`, "": "",
	} {
		if got := ui.Clean(in); got != want {
			t.Errorf("Clean(%q) = %q, want %q", in, got, want)
		}
	}
	if got := ui.CleanLines("a\n\tb\x1b"); got != "a\n    b\\x1b" {
		t.Errorf("CleanLines: %q", got)
	}
}

func FuzzClean(f *testing.F) {
	f.Add("a\x1b[0m\u202e\xff")
	f.Fuzz(func(t *testing.T, s string) {
		if got := ui.Clean(s); strings.ContainsAny(got, "\x1b\n\r\x07\x00\u009b") || !utf8.ValidString(got) {
			t.Errorf("%q → %q", s, got)
		}
	})
}
