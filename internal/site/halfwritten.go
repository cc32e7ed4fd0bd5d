package site

import (
	"fmt"
	"strings"

	"lifeboat/internal/dr"
)

// HalfWrittenError: a failover or failback of the system was cut off at this site
// while it laid files down (State.Marked). Until one of them was run to its end, what
// is there is neither served nor captured (docs/adr/0005). It wraps dr.ErrHeld.
type HalfWrittenError struct {
	System dr.System
	// Trees are the keys of those that are marked; at least one.
	Trees []string
}

// listedTrees bounds how many trees the message names.
const listedTrees = 5

// Error implements error.
func (e *HalfWrittenError) Error() string {
	names, are := e.Trees, "are"
	if len(names) == 1 {
		are = "is"
	}
	text := strings.Join(names[:min(len(names), listedTrees)], ", ")
	if more := len(names) - listedTrees; more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	return fmt.Sprintf("system %s is being brought up here, and %s %s half written: finish that first", e.System, text, are)
}

// Unwrap implements the interface of package errors.
func (e *HalfWrittenError) Unwrap() error { return dr.ErrHeld }
