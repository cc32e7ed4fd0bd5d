package fence

import (
	"fmt"
	"time"

	"lifeboat/internal/dr"
)

// Phase is a step of a planned switch between the giver, which holds the
// epoch, and the taker, which is to hold the next one. Each phase is a record
// w.<system>.<n>; the commit is not among them: it is the taker's claim of the
// next epoch (docs/adr/0006).
type Phase string

const (
	// PhaseRequested: the taker asks for the system.
	PhaseRequested Phase = "requested"
	// PhaseAccepted: the giver has committed a snapshot while it goes on
	// serving; the taker may lay it down.
	PhaseAccepted Phase = "accepted"
	// PhaseReady: the taker holds the accepted snapshot; the giver may stop.
	PhaseReady Phase = "ready"
	// PhaseOffered: the giver has stopped the system and committed the final
	// snapshot; it serves no more until it holds a newer epoch itself.
	PhaseOffered Phase = "offered"
	// PhaseDone: the taker holds the next epoch and serves.
	PhaseDone Phase = "done"
	// PhaseAborted: one side calls the move off. Before the offer nothing has
	// happened; after it the giver claims the next epoch itself and serves on.
	PhaseAborted Phase = "aborted"
)

// Move is a switch record.
type Move struct {
	Format int       `json:"format"`
	System dr.System `json:"system"`
	// ID names the move: random, chosen by the taker.
	ID    string `json:"id"`
	Phase Phase  `json:"phase"`
	// Epoch is the epoch that the giver holds when the move begins.
	Epoch    dr.Epoch       `json:"epoch"`
	From     dr.Site        `json:"from"`
	To       dr.Site        `json:"to"`
	Host     dr.HostID      `json:"host"` // writer of this record
	Snapshot *dr.SnapshotID `json:"snapshot,omitempty"`
	Why      string         `json:"why,omitempty"`
	Created  time.Time      `json:"created"`
	// Stopped is when the giver began to stop the system, by its own clock; in an
	// offer. It tells how long the service was down, and decides nothing.
	Stopped *time.Time `json:"stopped,omitempty"`
	// Number is that of the record's tag. Numbers grow; those that somebody
	// squats on are missing.
	Number dr.Number `json:"-"`
}

// Open returns the move that is under way: the last record's, unless it is
// done or aborted, or its epoch was superseded.
func Open(moves []Move, claims []Claim) (Move, bool) {
	if len(moves) == 0 {
		return Move{}, false
	}
	last := moves[len(moves)-1]
	if last.Phase == PhaseDone || last.Phase == PhaseAborted {
		return Move{}, false
	}
	if n := len(claims); n > 0 && claims[n-1].Epoch != last.Epoch {
		return Move{}, false
	}
	return last, true
}

// Action is what a side of a move has to do next.
type Action string

const (
	ActWait      Action = "wait"      // for the other side's next record
	ActSnapshot  Action = "snapshot"  // giver: snapshot while running, then accept
	ActHandOver  Action = "hand-over" // giver: stop, final snapshot, offer
	ActTakeBack  Action = "take-back" // giver: claim the next epoch, start again
	ActStage     Action = "stage"     // taker: lay the accepted snapshot down, then ready
	ActTakeOver  Action = "take-over" // taker: lay the final snapshot down, start, claim
	ActFinished  Action = "finished"  // taker serves; giver stays stopped
	ActCalledOff Action = "called-off"
)

// GiverNext decides what the giver does, given the records of the move with
// this id, all claims, and its own host id. offered tells whether it has
// stopped the system for this move.
func GiverNext(move Move, claims []Claim, self dr.HostID, offered bool) (Action, error) {
	if n := len(claims); n > 0 {
		last := claims[n-1]
		switch {
		case last.Epoch > move.Epoch && last.Host != self:
			return ActFinished, nil
		case last.Epoch > move.Epoch: // we took it back
			return ActCalledOff, nil
		case last.Epoch == move.Epoch && last.Host != self:
			return "", fmt.Errorf("site %s holds epoch %d of system %s, not this one: %w", last.Site, last.Epoch, move.System, dr.ErrFenced)
		}
	}
	switch move.Phase {
	case PhaseRequested:
		return ActSnapshot, nil
	case PhaseReady:
		return ActHandOver, nil
	case PhaseAccepted, PhaseOffered:
		return ActWait, nil
	case PhaseAborted:
		if offered {
			return ActTakeBack, nil
		}
		return ActCalledOff, nil
	case PhaseDone: // the claim must have been there; read again
		return ActWait, nil
	}
	return "", fmt.Errorf("switch record of system %s has unknown phase %q: %w", move.System, move.Phase, dr.ErrTampered)
}

// TakerNext decides what the taker does.
func TakerNext(move Move, claims []Claim, self dr.HostID) (Action, error) {
	if n := len(claims); n > 0 {
		last := claims[n-1]
		switch {
		case last.Epoch > move.Epoch && last.Host == self:
			return ActFinished, nil
		case last.Epoch > move.Epoch:
			return "", fmt.Errorf("site %s has claimed epoch %d of system %s meanwhile: %w", last.Site, last.Epoch, move.System, dr.ErrFenced)
		}
	}
	switch move.Phase {
	case PhaseRequested, PhaseReady:
		return ActWait, nil
	case PhaseAccepted:
		return ActStage, nil
	case PhaseOffered:
		return ActTakeOver, nil
	case PhaseAborted:
		return ActCalledOff, nil
	case PhaseDone:
		return ActFinished, nil
	}
	return "", fmt.Errorf("switch record of system %s has unknown phase %q: %w", move.System, move.Phase, dr.ErrTampered)
}
