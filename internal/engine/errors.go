package engine

import (
	"errors"
	"fmt"
	"net"
	"strings"

	cerrdefs "github.com/containerd/errdefs"

	"lifeboat/internal/dr"
)

// failed wraps an error of a call that changes nothing: what was being done,
// and the sentinel that decides the exit code.
func failed(what string, err error) error {
	if err == nil {
		return nil
	}
	if s := sentinel(err); s != nil {
		return fmt.Errorf("%s: %w: %w", what, err, s)
	}
	return fmt.Errorf("%s: %w", what, err)
}

// changed wraps an error of a call that changes something. Where the engine
// gave no answer the outcome is unknown (dr.ErrOutcomeUnknown): the change may
// have been made.
func changed(what string, err error) error {
	if err == nil {
		return nil
	}
	if s := sentinel(err); s != nil {
		return fmt.Errorf("%s: %w: %w", what, err, s)
	}
	if answered(err) || neverSent(err) {
		return fmt.Errorf("%s: %w", what, err)
	}
	return fmt.Errorf("%s: the engine gave no answer, the change may or may not have been made: %w: %w", what, err, dr.ErrOutcomeUnknown)
}

// sentinel names the sentinel of package dr that the engine's answer means, or nil.
func sentinel(err error) error {
	switch {
	case cerrdefs.IsNotFound(err):
		return dr.ErrNotFound
	case cerrdefs.IsConflict(err), cerrdefs.IsAlreadyExists(err), taken(err):
		return dr.ErrHeld
	}
	return nil
}

// taken recognises what the engine reports as an internal error although it is
// a conflict with something else on the host. The texts have been the same from
// 20.10 to 28; where one changes, only the exit code is less exact.
func taken(err error) bool {
	if !answered(err) {
		return false
	}
	msg := err.Error()
	for _, s := range []string{
		"port is already allocated",
		"address already in use",
		"Address already in use",
		"Pool overlaps with other one",
		"already exists",
		"cannot assign requested address",
		"has active endpoints",
	} {
		if strings.Contains(msg, s) {
			return true
		}
	}
	return false
}

// ErrNotAllowed: the engine, or what stands between it and this process,
// answered that a container or its image may not be made or started as asked.
var ErrNotAllowed = errors.New("not allowed")

func notAllowed(err error) error {
	var api *apiError
	if err != nil && (answered(err) || errors.As(err, &api)) {
		return fmt.Errorf("%w: %w", err, ErrNotAllowed)
	}
	return err
}

// answered reports whether err is an answer of the engine rather than a failure
// to get one.
func answered(err error) bool {
	return cerrdefs.IsInternal(err) || cerrdefs.IsInvalidArgument(err) || cerrdefs.IsNotFound(err) ||
		cerrdefs.IsConflict(err) || cerrdefs.IsAlreadyExists(err) || cerrdefs.IsPermissionDenied(err) ||
		cerrdefs.IsUnauthorized(err) || cerrdefs.IsUnavailable(err) || cerrdefs.IsNotImplemented(err) ||
		cerrdefs.IsUnknown(err) || cerrdefs.IsFailedPrecondition(err)
}

// errNotSent marks errors found before anything was sent.
var errNotSent = errors.New("not sent")

// neverSent reports whether the request cannot have reached the engine. When in
// doubt it says no.
func neverSent(err error) bool {
	var op *net.OpError
	if errors.As(err, &op) && op.Op == "dial" {
		return true
	}
	return errors.Is(err, errNotSent)
}
