// Package ledger reads and writes the epochs and switch records of a system in
// the repository. The decisions over them are package fence's.
package ledger

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"lifeboat/internal/dr"
	"lifeboat/internal/fence"
	"lifeboat/internal/repo"
)

// Records is what the ledger needs of the repository.
type Records interface {
	// ListRecords returns the verified records whose tags are prefix followed by
	// a number, in the order of the numbers.
	ListRecords(ctx context.Context, prefix string) ([]repo.Record, error)
	// PutRecord signs, seals and stores v under a new tag and reads it back. A
	// tag that is another's gives an error wrapping dr.ErrHeld; a lost answer
	// dr.ErrOutcomeUnknown.
	PutRecord(ctx context.Context, tag string, v any) error
	// HostID is the host that signs.
	HostID() dr.HostID
}

// Ledger reads and writes the records of systems. It is safe for concurrent
// use as far as its Records are.
type Ledger struct {
	rec Records
	// Settle is waited after a claim on registries that let tags be overwritten,
	// before reading back (docs/adr/0001).
	settle time.Duration
	here   Here
}

// Here is where Lifeboat keeps its things on this host (fence.Claim).
type Here struct{ StateDir, Config string }

// New returns a ledger. settle is 0 where the registry keeps tags immutable.
func New(rec Records, settle time.Duration, here Here) *Ledger {
	return &Ledger{rec: rec, settle: settle, here: here}
}

func epochTag(s dr.System, e dr.Epoch) string {
	return "e." + string(s) + "." + strconv.FormatUint(uint64(e), 10)
}

func moveTag(s dr.System, n dr.Number) string {
	return "w." + string(s) + "." + strconv.FormatUint(uint64(n), 10)
}

// Claims returns the epoch records of a system, oldest first. A record that
// does not say what its tag says, or was signed by another host than it names,
// is not counted: the error wraps dr.ErrTampered.
func (l *Ledger) Claims(ctx context.Context, s dr.System) ([]fence.Claim, error) {
	recs, err := l.rec.ListRecords(ctx, "e."+string(s)+".")
	if err != nil {
		return nil, fmt.Errorf("epochs of system %s: %w", s, err)
	}
	claims := make([]fence.Claim, 0, len(recs))
	for i, r := range recs {
		var c fence.Claim
		if err := json.Unmarshal(r.Body, &c); err != nil {
			return nil, fmt.Errorf("epoch record %s: %w: %w", r.Tag, err, dr.ErrTampered)
		}
		if c.System != s || dr.Number(c.Epoch) != r.Number || c.Host != r.Host || c.Epoch != dr.Epoch(i+1) {
			return nil, fmt.Errorf("epoch record %s does not fit its place: %w", r.Tag, dr.ErrTampered)
		}
		claims = append(claims, c)
	}
	return claims, nil
}

// Claim tries to become the holder of the epoch after claims. Losing to another
// host gives an error wrapping dr.ErrFenced that names it; a lost answer one
// wrapping dr.ErrOutcomeUnknown: read Claims again. Claiming what one holds by
// an equal earlier try succeeds.
func (l *Ledger) Claim(ctx context.Context, claims []fence.Claim, c fence.Claim) (fence.Claim, error) {
	c.Host = l.rec.HostID()
	c.Created = time.Now().UTC()
	c.StateDir, c.Config = l.here.StateDir, l.here.Config
	c = fence.Next(claims, c)
	putErr := l.rec.PutRecord(ctx, epochTag(c.System, c.Epoch), c)
	if putErr != nil && !errors.Is(putErr, dr.ErrHeld) && !errors.Is(putErr, dr.ErrOutcomeUnknown) {
		return fence.Claim{}, fmt.Errorf("claim epoch %d of system %s: %w", c.Epoch, c.System, putErr)
	}
	if l.settle > 0 {
		select {
		case <-time.After(l.settle):
		case <-ctx.Done():
			return fence.Claim{}, fmt.Errorf("claim of epoch %d of system %s was sent but not confirmed: %w: %w", c.Epoch, c.System, dr.ErrOutcomeUnknown, ctx.Err())
		}
	}
	now, err := l.Claims(ctx, c.System)
	if err != nil {
		return fence.Claim{}, fmt.Errorf("claim of epoch %d of system %s was sent but could not be confirmed: %w: %w", c.Epoch, c.System, dr.ErrOutcomeUnknown, err)
	}
	if len(now) < int(c.Epoch) {
		if putErr != nil {
			return fence.Claim{}, fmt.Errorf("claim epoch %d of system %s: %w", c.Epoch, c.System, putErr)
		}
		return fence.Claim{}, fmt.Errorf("claim of epoch %d of system %s was stored but is not listed: %w", c.Epoch, c.System, dr.ErrOutcomeUnknown)
	}
	won := now[c.Epoch-1]
	if won.Host != c.Host {
		return fence.Claim{}, fence.CheckWrite(now[:c.Epoch], c.System, c.Host)
	}
	return won, nil
}

// Moves returns the switch records of a system, oldest first.
func (l *Ledger) Moves(ctx context.Context, s dr.System) ([]fence.Move, error) {
	recs, err := l.rec.ListRecords(ctx, "w."+string(s)+".")
	if err != nil {
		return nil, fmt.Errorf("switch records of system %s: %w", s, err)
	}
	moves := make([]fence.Move, 0, len(recs))
	for _, r := range recs {
		var m fence.Move
		if err := json.Unmarshal(r.Body, &m); err != nil {
			return nil, fmt.Errorf("switch record %s: %w: %w", r.Tag, err, dr.ErrTampered)
		}
		if m.System != s || m.Host != r.Host {
			return nil, fmt.Errorf("switch record %s does not fit its place: %w", r.Tag, dr.ErrTampered)
		}
		moves = append(moves, m)
	}
	return moves, nil
}

// Append adds a switch record after known ones. If somebody else added one
// meanwhile nothing is stored and the error wraps dr.ErrHeld: read again and
// decide anew.
func (l *Ledger) Append(ctx context.Context, known []fence.Move, m fence.Move) error {
	m.Format = 1
	m.Host = l.rec.HostID()
	m.Created = time.Now().UTC()
	if err := l.rec.PutRecord(ctx, moveTag(m.System, dr.Number(len(known)+1)), m); err != nil {
		return fmt.Errorf("record %q of the switch of system %s: %w", m.Phase, m.System, err)
	}
	return nil
}
