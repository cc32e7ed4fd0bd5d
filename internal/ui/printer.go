// Package ui is what a command says: its answer to stdout, everything else to
// stderr.
//
// Printer has two forms of an answer. For people it is made of Views (tables,
// fields, steps, a timeline); for scripts it is one JSON document, and an error
// is part of that document. Progress shows tasks as bars on a terminal and as
// plain lines every few seconds elsewhere. Explained is an error that says what
// state things are in and what to do next.
//
// Text from outside (names of containers, messages of a registry) is stripped
// of control characters before it reaches a terminal, and notes, warnings and
// errors go through redaction (invariant 9). While a system is frozen nothing
// is written: see Hold.
//
// The package decides nothing: which exit code an error has is the command's
// business.
package ui

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/term"

	"lifeboat/internal/dr"
	"lifeboat/internal/redact"
)

// ErrDeclined: the operator answered no; nothing was done.
var ErrDeclined = errors.New("declined; nothing was changed")

// Options are what a Printer works with. In, Out and Err are whatever the
// process was given; a terminal is recognised by its file descriptor.
type Options struct {
	In       io.Reader
	Out, Err io.Writer
	JSON     bool // the answer is one JSON document
	Quiet    bool // no notes, no progress; warnings, errors and the answer stay
	Yes      bool // every question is answered with yes
	// Env is os.Getenv; NO_COLOR, TERM, LC_ALL, LC_CTYPE, LANG and COLUMNS are asked for.
	Env func(string) string
}

// Printer writes what a command says. It is safe for concurrent use.
type Printer struct {
	o        Options
	out, err *sink
	outStyle style
	errStyle style
	width    int // of stdout; 0 is unlimited
	errTTY   bool
	inTTY    bool

	mu       sync.Mutex
	document []byte // the answer as JSON, until Close
	progress *Progress
	closed   bool
}

// New returns a Printer.
func New(o Options) *Printer {
	if o.Env == nil {
		o.Env = func(string) string { return "" }
	}
	p := &Printer{o: o, out: &sink{next: o.Out}, err: &sink{next: o.Err}, errTTY: isTerminal(o.Err), inTTY: isTerminal(o.In)}
	p.outStyle = newStyle(isTerminal(o.Out), o.Env)
	p.errStyle = newStyle(p.errTTY, o.Env)
	p.width = width(o.Out, o.Env)
	return p
}

// Answer gives the command's result. For people the views are written now; as
// JSON the document, which must encode as a JSON object, is kept until Close,
// so that stdout carries one document whatever happens afterwards. A second
// answer is an error.
func (p *Printer) Answer(document any, views ...View) error {
	if !p.o.JSON {
		p.Flush()
		return p.render(p.out, p.outStyle, p.width, views)
	}
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(document); err != nil {
		return fmt.Errorf("encode the answer: %w", err)
	}
	text := bytes.TrimSpace(b.Bytes())
	if !bytes.HasPrefix(text, []byte("{")) {
		return fmt.Errorf("encode the answer: %T is no JSON object", document)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.document != nil {
		return errors.New("encode the answer: a command has one answer")
	}
	p.document = text
	return nil
}

// Out is stdout for answers that are too long to be a table, or that are given
// while the command goes on, such as the address of a server. With JSON set
// the writer gives the one document itself; a later failure is then told on
// stderr alone.
func (p *Printer) Out() io.Writer { return p.out }

// JSON reports whether the answer is to be a JSON document.
func (p *Printer) JSON() bool { return p.o.JSON }

// Show writes views to stderr: a plan before it is executed. With Quiet it
// writes nothing.
func (p *Printer) Show(views ...View) {
	if p.o.Quiet {
		return
	}
	w := width(p.o.Err, p.o.Env)
	var b bytes.Buffer
	_ = p.render(&b, p.errStyle, w, views) // a buffer does not fail
	p.stderr(b.Bytes())
}

// Note says something on stderr that nobody needs to know; Quiet drops it.
func (p *Printer) Note(format string, args ...any) {
	if !p.o.Quiet {
		p.say("", fmt.Sprintf(format, args...))
	}
}

// Warn says something on stderr that the operator should know.
func (p *Printer) Warn(format string, args ...any) {
	p.say(p.errStyle.mark(MarkWarn)+" ", fmt.Sprintf(format, args...))
}

// Log is where a logger writes to: whole lines, to stderr, above the progress.
func (p *Printer) Log() io.Writer { return logWriter{p} }

type logWriter struct{ p *Printer }

func (w logWriter) Write(b []byte) (int, error) {
	w.p.stderr(b)
	return len(b), nil
}

func (p *Printer) say(mark, text string) {
	p.stderr([]byte(mark + CleanLines(redact.String(strings.TrimRight(text, "\n"))) + "\n"))
}

// stderr writes whole lines above whatever progress stands there.
func (p *Printer) stderr(b []byte) {
	p.mu.Lock()
	progress := p.progress
	p.mu.Unlock()
	if progress == nil || !progress.above(b) {
		_, _ = p.err.Write(b) // nobody could be told
	}
}

func (p *Printer) render(w io.Writer, s style, width int, views []View) error {
	var b bytes.Buffer
	for i, v := range views {
		if i > 0 {
			b.WriteByte('\n')
		}
		v.Render(&Canvas{w: &b, style: s, Width: width})
	}
	_, err := w.Write(b.Bytes())
	if err != nil {
		return fmt.Errorf("write the answer: %w", err)
	}
	return nil
}

// Confirm asks a question that can be answered with yes or no and returns nil
// for yes. With Yes it does not ask. Without a terminal nobody can answer: the
// error wraps dr.ErrUsage and says to pass --yes. No is ErrDeclined.
func (p *Printer) Confirm(ctx context.Context, question string) error {
	if p.o.Yes {
		return nil
	}
	if !p.inTTY {
		return Explained{
			What:  fmt.Sprintf("%s Nobody can answer, because standard input is no terminal", CleanLines(question)),
			State: "nothing was changed",
			Next:  []string{"pass --yes to answer with yes"},
			Err:   dr.ErrUsage,
		}
	}
	p.Flush()
	_, _ = p.err.Write([]byte(CleanLines(redact.String(question)) + " [y/N] "))
	type reply struct {
		line string
		err  error
	}
	// Reading a terminal cannot be interrupted; when the context ends first the
	// goroutine stays until the process ends, which is what happens next.
	got := make(chan reply, 1)
	go func() {
		line, err := bufio.NewReader(p.o.In).ReadString('\n')
		got <- reply{line, err}
	}()
	select {
	case <-ctx.Done():
		_, _ = p.err.Write([]byte("\n"))
		return context.Cause(ctx)
	case r := <-got:
		if r.err != nil && r.line == "" {
			_, _ = p.err.Write([]byte("\n"))
		}
		switch strings.ToLower(strings.TrimSpace(r.line)) {
		case "y", "yes":
			return nil
		default:
			return ErrDeclined
		}
	}
}

// Hold keeps everything back that would be written, to stdout, stderr and the
// terminal, until Release: a process that waits for a terminal while a system
// is frozen would keep it frozen. It waits for a write that is under way. What
// is held back is bounded; beyond 1 MiB it is lost.
func (p *Printer) Hold() {
	p.out.hold()
	p.err.hold()
}

// Release writes what was held back.
func (p *Printer) Release() {
	p.out.release()
	p.err.release()
}

// Failure is why a command did not do all of its work.
type Failure struct {
	Err  error
	Code int    // exit code
	Kind string // the code as a word: not-found
}

// Close ends the progress and gives what is left to say: the JSON document,
// and the failure if there is one. As JSON, a failure is the key "error" of
// the document: {"error":{"code":10,"kind":"not-found","message":…,"state":…,
// "next":[…]}} beside the answer's own keys, or alone. It is told on stderr in
// both forms.
func (p *Printer) Close(f *Failure) error {
	p.mu.Lock()
	progress, document, closed := p.progress, p.document, p.closed
	p.closed = true
	p.mu.Unlock()
	if closed {
		return nil
	}
	progress.Close()
	p.Release()
	if f != nil {
		p.fail(f.Err)
	}
	if !p.o.JSON || p.out.wrote() {
		return nil
	}
	if f != nil {
		var err error
		if document, err = withFailure(document, f); err != nil {
			return err
		}
	}
	if document == nil {
		return nil // the command has no answer
	}
	var pretty bytes.Buffer
	if err := json.Indent(&pretty, document, "", "  "); err != nil {
		return fmt.Errorf("write the answer: %w", err)
	}
	pretty.WriteByte('\n')
	if _, err := p.out.Write(pretty.Bytes()); err != nil {
		return fmt.Errorf("write the answer: %w", err)
	}
	return nil
}

func withFailure(document []byte, f *Failure) ([]byte, error) {
	x := explain(f.Err)
	b, err := json.Marshal(struct {
		Code    int      `json:"code"`
		Kind    string   `json:"kind"`
		Message string   `json:"message"`
		State   string   `json:"state"`
		Next    []string `json:"next"`
	}{f.Code, f.Kind, x.What, x.State, append([]string{}, x.Next...)})
	if err != nil {
		return nil, fmt.Errorf("encode the error: %w", err)
	}
	head := bytes.TrimSuffix(document, []byte("}"))
	switch {
	case len(document) == 0 || len(bytes.TrimSpace(head)) == 1:
		head = []byte("{")
	default:
		head = append(bytes.Clone(head), ',')
	}
	return append(append(append(head, `"error":`...), b...), '}'), nil
}

// fail prints the error for people: what happened, the state, the next
// commands.
func (p *Printer) fail(err error) {
	x := explain(err)
	var b strings.Builder
	b.WriteString(p.errStyle.paint(red, "lifeboat:") + " " + CleanLines(x.What) + "\n")
	if x.State != "" {
		b.WriteString("state: " + CleanLines(x.State) + "\n")
	}
	for _, n := range x.Next {
		b.WriteString("next:  " + CleanLines(n) + "\n")
	}
	p.stderr([]byte(b.String()))
}

// Flush ends the progress that stands on the terminal, so that what comes next
// is not drawn over. A later Progress begins anew.
func (p *Printer) Flush() {
	p.mu.Lock()
	progress := p.progress
	p.progress = nil
	p.mu.Unlock()
	progress.Close()
}

// sink is the only way to a stream. While it is held it keeps what is written.
type sink struct {
	mu      sync.Mutex
	next    io.Writer
	held    bool
	kept    []byte
	dropped bool
	used    bool
}

const maxKept = 1 << 20

func (s *sink) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.used = true
	if s.held {
		if len(s.kept)+len(b) > maxKept {
			s.dropped = true
		} else {
			s.kept = append(s.kept, b...)
		}
		return len(b), nil
	}
	return s.next.Write(b)
}

func (s *sink) wrote() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.used
}

func (s *sink) hold() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.held = true
}

func (s *sink) release() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.held = false
	if len(s.kept) > 0 {
		_, _ = s.next.Write(s.kept)
	}
	if s.dropped {
		_, _ = s.next.Write([]byte("(more was said while nothing could be written; it is lost)\n"))
	}
	s.kept, s.dropped = nil, false
}

// isTerminal reports whether a stream is one.
func isTerminal(stream any) bool {
	f, ok := stream.(interface{ Fd() uintptr })
	return ok && term.IsTerminal(int(f.Fd()))
}

// width is how many columns lines may take; 0 where nothing limits them.
func width(stream any, env func(string) string) int {
	if !isTerminal(stream) {
		return 0
	}
	if n, err := strconv.Atoi(env("COLUMNS")); err == nil && n >= 20 {
		return n
	}
	f := stream.(interface{ Fd() uintptr }) // isTerminal has looked
	if w, _, err := term.GetSize(int(f.Fd())); err == nil && w >= 20 {
		return w
	}
	return 80
}
