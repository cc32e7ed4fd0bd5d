package ui

import (
	"errors"
	"regexp"
	"strings"

	"lifeboat/internal/dr"
	"lifeboat/internal/redact"
)

// Explained is an error in the three parts that an operator needs.
type Explained struct {
	// What happened, with the cause.
	What string
	// State of things now: what was done, what was not, what still runs.
	State string
	// Next are the commands or acts that lead on, one a line.
	Next []string
	// Err is the cause, for errors.Is and the exit code. It is printed only
	// where What is empty.
	Err error
}

func (e Explained) Error() string {
	if e.What == "" && e.Err != nil {
		return e.Err.Error()
	}
	return e.What
}

func (e Explained) Unwrap() error { return e.Err }

// Explain is how the printer asks.
func (e Explained) Explain() (state string, next []string) { return e.State, e.Next }

// Explainer is an error that knows the state of things and what comes next.
// Packages below may have their own; the text of the error itself is what
// happened.
type Explainer interface {
	error
	Explain() (state string, next []string)
}

// explain takes an error apart: the text of the whole chain, state and next of
// the outermost that tells them. All of it is redacted.
func explain(err error) Explained {
	out := Explained{What: shown(trimKind(err)), Err: err}
	var x Explainer
	if errors.As(err, &x) {
		state, next := x.Explain()
		out.State = shown(state)
		for _, n := range next {
			out.Next = append(out.Next, shown(n))
		}
	}
	return out
}

// trimKind takes the names of kinds off the end of the text: "…: usage error"
// tells an operator nothing that the exit code does not.
func trimKind(err error) string {
	text := err.Error()
	for _, kind := range []error{dr.ErrUsage, dr.ErrNotFound, dr.ErrHeld, dr.ErrFenced, dr.ErrPartial, dr.ErrOutcomeUnknown} {
		if short, ok := strings.CutSuffix(text, ": "+kind.Error()); ok && errors.Is(err, kind) {
			text = short
		}
	}
	return text
}

// processRoot is how a path of the host begins where it is reached through the
// engine's process (engine.HostFS); people know it without.
var processRoot = regexp.MustCompile(`/proc/[0-9]+/root(/|\b)`)

// shown is text as it is shown: redacted, with paths as they are on the host.
func shown(s string) string { return redact.String(processRoot.ReplaceAllString(s, "/")) }
