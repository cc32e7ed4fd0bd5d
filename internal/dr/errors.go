package dr

import "errors"

// Sentinel errors that decide the exit code of the command (see ExitCode in
// cmd/lifeboat). Library code wraps them with %w and adds what happened, what
// state things are in and what to do next.
var (
	// ErrUsage: the call itself is wrong (flags, arguments, configuration).
	ErrUsage = errors.New("usage error")
	// ErrPartial: the work was done in part, in a named degraded mode.
	ErrPartial = errors.New("done in part")
	// ErrNotFound: the named system, snapshot, container, file does not exist.
	ErrNotFound = errors.New("not found")
	// ErrHeld: something else holds what is needed: another run, a name, a port.
	ErrHeld = errors.New("held by another")
	// ErrWrongKey: the key at hand does not open this repository.
	ErrWrongKey = errors.New("wrong key")
	// ErrFenced: another site holds a newer epoch of the system (invariant 6).
	ErrFenced = errors.New("fenced")
	// ErrOutcomeUnknown: a step was sent but its outcome could not be learned.
	ErrOutcomeUnknown = errors.New("outcome unknown")
	// ErrTampered: stored bytes fail authentication, are truncated, or are not
	// what their name promises (invariant 10).
	ErrTampered = errors.New("damaged or altered data")
)
