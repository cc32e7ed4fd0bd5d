package main

import (
	"context"
	"errors"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"lifeboat/internal/dr"
	"lifeboat/internal/store"
)

// Exit codes: a contract with scripts (README, Commands).
const (
	codeDone        = 0
	codeFailed      = 1
	codeUsage       = 2
	codePartial     = 3
	codeNotFound    = 10
	codeHeld        = 11
	codeWrongKey    = 12
	codeFenced      = 13
	codeUnknown     = 14
	codeInterrupted = 130
	// codeUnread: whoever read the answer had enough of it (| head). It is what a shell
	// says of a command that SIGPIPE ended.
	codeUnread = 141
)

// unread reports whether an error says that nobody reads the answer any more.
func unread(err error) bool {
	var p *fs.PathError
	return errors.As(err, &p) && p.Path == os.Stdout.Name() && errors.Is(err, unix.EPIPE)
}

// outcome is an exit code and its word in JSON.
type outcome struct {
	code int
	kind string
}

// outcomeOf is the only place where an error becomes an exit code. An error of
// several kinds has the first of this order: that it is unknown whether a tag
// was written matters more than how it came about, and a command that says
// "done in part" has looked at what its parts ended with. A call to the engine
// that was interrupted is settled by the next run, so it counts as interrupted.
func outcomeOf(ctx context.Context, err error) outcome {
	if err == nil {
		return outcome{codeDone, "done"}
	}
	var helper passedOn
	if errors.As(err, &helper) {
		return outcome{helper.code, "helper"}
	}
	cause := context.Cause(ctx)
	interrupted := errors.Is(cause, errInterrupted) && (errors.Is(err, context.Canceled) || errors.Is(err, errInterrupted))
	if interrupted && !errors.Is(err, store.ErrUnknownOutcome) {
		return outcome{codeInterrupted, "interrupted"}
	}
	for _, o := range []struct {
		is bool
		outcome
	}{
		{errors.Is(err, dr.ErrOutcomeUnknown), outcome{codeUnknown, "outcome-unknown"}},
		{errors.Is(err, dr.ErrPartial), outcome{codePartial, "partial"}},
		{errors.Is(err, dr.ErrFenced), outcome{codeFenced, "fenced"}},
		{errors.Is(err, dr.ErrWrongKey), outcome{codeWrongKey, "wrong-key"}},
		{errors.Is(err, dr.ErrHeld), outcome{codeHeld, "held"}},
		{errors.Is(err, dr.ErrNotFound), outcome{codeNotFound, "not-found"}},
		{errors.Is(err, dr.ErrUsage), outcome{codeUsage, "usage"}},
	} {
		if o.is {
			return o.outcome
		}
	}
	return outcome{codeFailed, "failed"}
}
