package freeze

import "errors"

var (
	// ErrFreezeBroken: at least one container may have run between the freeze
	// and the thaw. What was read meanwhile is not of one instant (invariant 4)
	// and must be discarded. All containers run again unless ErrStillFrozen is
	// wrapped too.
	ErrFreezeBroken = errors.New("freeze broken")
	// ErrFreezeMax: the time allowed for the freeze has passed, or is about to.
	// It is the cause of the cancelled context that the function given to Do
	// gets shortly before.
	ErrFreezeMax = errors.New("freeze_max passed")
	// ErrStillFrozen: a container could not be thawed. The error names it and
	// says what to write where. Guardians and Sweep go on trying.
	ErrStillFrozen = errors.New("still frozen")
	// ErrNoGuardian: the guardians could not be started, or could not outlive
	// this process. Nothing was frozen.
	ErrNoGuardian = errors.New("no guardian")
	// ErrGuardianLost: a guardian ended or stopped answering before the thaw.
	ErrGuardianLost = errors.New("guardian lost")
	// ErrUnreachable: no freezer cgroup of the container can be reached from
	// here. The engine's pause call may serve instead.
	ErrUnreachable = errors.New("freezer cgroup out of reach")
	// ErrForbidden: the container's cgroup holds what must never be frozen:
	// Lifeboat itself, its guardian or process 1. No fallback is tried.
	ErrForbidden = errors.New("must not be frozen")
	// ErrInterrupted: SIGINT or SIGTERM arrived while Do ran.
	ErrInterrupted = errors.New("interrupted")
	// errGone: the cgroup was removed, so nothing in it is frozen any more.
	errGone = errors.New("cgroup is gone")
)
