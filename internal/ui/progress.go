package ui

import (
	"fmt"
	"io"
	"math"
	"sync"
	"time"

	"github.com/mattn/go-runewidth"
	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"

	"lifeboat/internal/quantity"
)

// plainEvery is the beat of progress lines where there is no terminal.
const plainEvery = 5 * time.Second

// Progress shows how far tasks are: bars on a terminal, plain lines elsewhere,
// nothing with Quiet. A nil Progress, and the nil Tasks that it gives, take
// every call and show nothing, so library code needs no cases.
type Progress struct {
	p    *Printer
	bars *mpb.Progress // nil: plain lines

	mu     sync.Mutex
	tasks  []*Task
	closed bool
	stop   chan struct{} // ends the goroutine of plain lines
	ended  chan struct{}
}

// Progress begins to show progress; one that is shown already is returned as
// it is. The Printer's Close ends it.
func (p *Printer) Progress() *Progress {
	if p.o.Quiet {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil
	}
	if p.progress != nil {
		return p.progress
	}
	pr := &Progress{p: p}
	if p.errTTY && p.o.Env("TERM") != "dumb" {
		w := width(p.o.Err, p.o.Env)
		// The bars go through the sink, which knows when nothing may be written;
		// mpb takes it for no terminal, so it is told to refresh and how wide to be.
		pr.bars = mpb.New(mpb.WithOutput(p.err), mpb.WithAutoRefresh(), mpb.WithWidth(w))
	} else {
		pr.stop, pr.ended = make(chan struct{}), make(chan struct{})
		go pr.plain()
	}
	p.progress = pr
	return pr
}

// unit says what a task counts.
type unit int

const (
	unitBytes unit = iota
	unitItems
)

// Task is one thing that is under way. Its methods never wait for a terminal
// and are safe for concurrent use.
type Task struct {
	progress *Progress
	name     string
	unit     unit
	bar      *mpb.Bar

	mu     sync.Mutex
	done   int64
	total  int64 // -1: not known
	detail string
	began  time.Time
	ended  time.Time
	state  StepState

	// For the rate: what was seen last, and a mean that forgets.
	seenAt time.Time
	seen   int64
	rate   float64 // per second; 0 before there is one
	said   string  // the last plain line
}

// Bytes begins a task that is measured in bytes; total is -1 while it is not
// known.
func (pr *Progress) Bytes(name string, total int64) *Task { return pr.task(name, unitBytes, total) }

// Items begins a task that is measured in pieces (files, steps); total is -1
// while it is not known.
func (pr *Progress) Items(name string, total int64) *Task { return pr.task(name, unitItems, total) }

func (pr *Progress) task(name string, u unit, total int64) *Task {
	if pr == nil {
		return nil
	}
	now := time.Now()
	t := &Task{progress: pr, name: Clean(name), unit: u, total: total, began: now, seenAt: now, state: StepRunning}
	pr.mu.Lock()
	defer pr.mu.Unlock()
	if pr.closed {
		return t
	}
	pr.tasks = append(pr.tasks, t)
	if pr.bars != nil {
		// An error means that the container is shut down: nothing is shown then.
		t.bar, _ = pr.bars.Add(0, t.filler(), mpb.PrependDecorators(decor.Any(t.head, decor.WCSyncSpaceR)), mpb.AppendDecorators(decor.Any(t.tail, decor.WCSyncSpaceR)))
	}
	return t
}

// Add counts n more.
func (t *Task) Add(n int64) {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.done += n
}

// SetDone sets how much is done.
func (t *Task) SetDone(n int64) {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.done = n
}

// SetTotal sets how much there is to do; -1 for not known.
func (t *Task) SetTotal(n int64) {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.total = n
}

// Detail says what the task is at.
func (t *Task) Detail(text string) {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.detail = Clean(text)
}

// Done ends the task; err says whether it failed.
func (t *Task) Done(err error) {
	if t == nil {
		return
	}
	t.mu.Lock()
	if !t.ended.IsZero() {
		t.mu.Unlock()
		return
	}
	t.ended, t.state, t.detail = time.Now(), StepDone, ""
	if err != nil {
		t.state = StepFailed
	}
	line := t.line(t.ended)
	t.mu.Unlock()
	if t.bar != nil {
		t.bar.SetTotal(1, true)
	} else if t.progress.bars == nil {
		t.progress.p.stderr([]byte(line + "\n"))
	}
}

// Reader counts what is read through it.
func (t *Task) Reader(r io.Reader) io.Reader {
	if t == nil {
		return r
	}
	return countingReader{r, t}
}

type countingReader struct {
	io.Reader
	t *Task
}

func (c countingReader) Read(b []byte) (int, error) {
	n, err := c.Reader.Read(b)
	c.t.Add(int64(n))
	return n, err
}

// Close ends what is shown; tasks that still run are left as they stand. It
// may be called more than once.
func (pr *Progress) Close() {
	if pr == nil {
		return
	}
	pr.mu.Lock()
	if pr.closed {
		pr.mu.Unlock()
		return
	}
	pr.closed = true
	pr.mu.Unlock()
	pr.p.mu.Lock()
	if pr.p.progress == pr {
		pr.p.progress = nil
	}
	pr.p.mu.Unlock()
	if pr.bars != nil {
		pr.bars.Shutdown()
		return
	}
	close(pr.stop)
	<-pr.ended
}

// above writes lines over the bars; false where there are none.
func (pr *Progress) above(b []byte) bool {
	if pr.bars == nil {
		return false
	}
	_, err := pr.bars.Write(b)
	return err == nil
}

// plain writes a line for each task that moved, at each beat.
func (pr *Progress) plain() {
	defer close(pr.ended)
	beat := time.NewTicker(plainEvery)
	defer beat.Stop()
	for {
		select {
		case <-pr.stop:
			return
		case now := <-beat.C:
			pr.mu.Lock()
			tasks := pr.tasks
			pr.mu.Unlock()
			for _, t := range tasks {
				if line := t.moved(now); line != "" {
					pr.p.stderr([]byte(line + "\n"))
				}
			}
		}
	}
}

// moved is the task's line, or nothing where it ended or stands as before.
func (t *Task) moved(now time.Time) string {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.ended.IsZero() {
		return ""
	}
	t.observe(now)
	line := t.line(now)
	if line == t.said {
		return ""
	}
	t.said = line
	return line
}

// observe moves the rate: the mean of the last seconds counts most. t.mu is
// held.
func (t *Task) observe(now time.Time) {
	dt := now.Sub(t.seenAt).Seconds()
	if dt < 0.1 {
		return
	}
	instant := float64(t.done-t.seen) / dt
	if t.rate == 0 {
		t.rate = instant
	} else {
		const memory = 8 // seconds
		keep := math.Exp(-dt / memory)
		t.rate = t.rate*keep + instant*(1-keep)
	}
	t.seenAt, t.seen = now, t.done
}

// line is the task as plain text. t.mu is held.
func (t *Task) line(now time.Time) string {
	if !t.ended.IsZero() {
		s := t.name + ": "
		if t.state == StepFailed {
			s += "failed, "
		}
		return s + t.taken()
	}
	if t.uncounted() {
		s := t.name + ": running"
		if t.detail != "" {
			s += ", " + t.detail
		}
		return s
	}
	s := t.name + ": " + t.amount(t.done)
	if t.bounded() {
		s += " of " + t.amount(t.total)
		if t.total > 0 {
			s += fmt.Sprintf(" (%d %%)", t.percent())
		}
	}
	s += t.pace()
	if t.detail != "" {
		s += ", " + t.detail
	}
	return s
}

// bounded tasks have more to do. A total that is reached while the task goes on
// was an estimate, and is not told any more. t.mu is held.
func (t *Task) bounded() bool { return t.done < t.total }

// uncounted tasks have had nothing to count so far.
func (t *Task) uncounted() bool { return t.done == 0 && t.total <= 0 }

// taken is what a task that ended did in what time.
func (t *Task) taken() string {
	d := quantity.Duration(t.ended.Sub(t.began))
	if t.uncounted() {
		return d
	}
	return t.amount(t.done) + " in " + d + t.mean()
}

func (t *Task) percent() int64 { return min(int64(float64(t.done)/float64(t.total)*100), 100) }

func (t *Task) amount(n int64) string {
	if t.unit == unitBytes {
		return quantity.Size(n)
	}
	return quantity.Count(n)
}

func (t *Task) speed(perSecond float64) string {
	if t.unit == unitBytes {
		return quantity.Rate(perSecond)
	}
	return quantity.Count(int64(perSecond)) + "/s"
}

func (t *Task) mean() string {
	d := t.ended.Sub(t.began).Seconds()
	if d < 0.1 || t.unit != unitBytes || t.done == 0 {
		return ""
	}
	return ", " + t.speed(float64(t.done)/d)
}

// pace is the rate and the remaining time, rounded to what can be known.
func (t *Task) pace() string {
	if t.rate <= 0 {
		return ""
	}
	s := ""
	if t.rate >= 1 {
		s = ", " + t.speed(t.rate)
	}
	if t.total <= 0 || t.done >= t.total {
		return s
	}
	switch seconds := math.Ceil(float64(t.total-t.done) / t.rate); {
	case seconds < 60:
		return s + fmt.Sprintf(", %.0f s left", seconds)
	case seconds < 100*3600:
		return s + ", " + quantity.Duration(time.Duration(seconds)*time.Second) + " left"
	default:
		return s
	}
}

// head is what stands before the bar.
func (t *Task) head(decor.Statistics) string {
	t.mu.Lock()
	defer t.mu.Unlock()
	mark := t.state.mark()
	if t.state == StepRunning {
		mark = MarkNone
	}
	s := t.progress.p.errStyle
	plain := style{unicode: s.unicode}
	sign := plain.mark(mark)
	if pad := 2 - runewidth.StringWidth(sign); pad > 0 {
		sign += "  "[:pad]
	}
	return sign + " " + runewidth.Truncate(t.name, 30, "…")
}

// tail is what stands behind the bar.
func (t *Task) tail(decor.Statistics) string {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.ended.IsZero() {
		return t.taken()
	}
	t.observe(time.Now())
	if t.uncounted() {
		return runewidth.Truncate(t.detail, 24, "…")
	}
	s := t.amount(t.done)
	if t.bounded() {
		s += " of " + t.amount(t.total)
	}
	s += t.pace()
	if t.detail != "" {
		s += ", " + runewidth.Truncate(t.detail, 24, "…")
	}
	return s
}

// filler draws the bar from the task's own numbers, or a spinner while the
// total is not known.
func (t *Task) filler() mpb.BarFiller {
	bar, spinner := mpb.BarStyle().Build(), mpb.SpinnerStyle().PositionLeft().Build()
	if !t.progress.p.errStyle.unicode {
		spinner = mpb.SpinnerStyle("-", "\\", "|", "/").PositionLeft().Build()
	}
	return mpb.BarFillerFunc(func(w io.Writer, st decor.Statistics) error {
		t.mu.Lock()
		st.Current, st.Total = t.done, t.total
		ended, failed := !t.ended.IsZero(), t.state == StepFailed
		t.mu.Unlock()
		switch {
		case ended && !failed:
			st.Current, st.Total = 1, 1
		case ended && st.Total <= 0:
			st.Current, st.Total = 0, 1
		case st.Total < 0:
			return spinner.Fill(w, st)
		}
		st.Current = min(st.Current, st.Total)
		return bar.Fill(w, st)
	})
}
