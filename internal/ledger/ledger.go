// Package ledger reads and writes the epochs and switch records of a system in
// the repository. The decisions over them are package fence's.
//
// Each write is a compare-and-swap over tags that never move (invariant 11):
// the caller says which records its decision rests on, and the ledger stores
// the new one under the number after the last of them, or says that it lost.
// So the valid records of a system form a chain in which each was written in
// knowledge of the one before, and of several claimants of an epoch one wins
// (invariant 6).
//
// Squatted numbers. Whoever may write tags can put something else under the
// next number. Readers take the highest valid record, so it changes nothing for
// them; a writer has to pass over it, or one bad manifest would keep a system
// from ever being failed over. It may only pass over what no reader takes for a
// record, now or later, else it would overtake a holder whom it does not know.
// What a tag names cannot change, so that is a question of why it does not
// verify:
//
//   - the bytes are those that the tag names, and are no record, do not open
//     with any of the repository's keys, are signed wrongly, or speak of another
//     tag: that stays so for everybody, and the number is passed over;
//   - signed by a host that is not enrolled: hosts enrol before they write, so
//     it was written by one that did not ask. It is passed over after the host
//     records were read again, later than the record. Should that host enrol
//     afterwards, its record stands below the one that passed over it: it never
//     was the newest while it counted;
//   - signed by a host that was revoked, and not among what the revocation keeps:
//     passed over;
//   - the number was given out and its tag deleted by an operator, which only a
//     registry with immutable tags says, in the same instant as it refuses:
//     passed over;
//   - bytes that do not fit their digest, a tag without a manifest, no answer, a
//     lost answer: that may be a holder's claim. It is not passed over; the
//     error says so and nothing is taken.
//
// Package repo judges (repo.ErrSquatted); the ledger passes over one number at
// a time, so that between the last record known and the new one there are none
// but squatted ones, and reads everything again before it says that a claim was
// won: whoever finds a newer epoch than its own has lost. Two hosts that pass
// over the same number meet at the next one, where one of them wins.
//
// This rests on two things that a registry has to give: that a tag does not
// move, and that a tag that was stored is seen by who looks afterwards. Where
// tags can be overwritten, docs/adr/0001 says what remains.
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
	// a number, in the order of the numbers; what does not verify is named in the
	// log and left out.
	ListRecords(ctx context.Context, prefix string) ([]repo.Record, error)
	// PutRecord signs, seals and stores v under a new tag and reads it back. A
	// tag that is another's gives an error wrapping dr.ErrHeld, and also
	// repo.ErrSquatted where no record is under it and never will be; a lost
	// answer dr.ErrOutcomeUnknown.
	PutRecord(ctx context.Context, tag string, v any) error
	// HostID is the host that signs.
	HostID() dr.HostID
}

// maxSquatted bounds how many squatted numbers one write passes over.
const maxSquatted = 1000

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

// Claims returns the epoch records of a system, oldest first. Squatted numbers
// are left out, so epochs grow without being dense. A record of an enrolled
// host that cannot be understood gives an error wrapping dr.ErrTampered: it may
// be a claim that a later version of Lifeboat made.
func (l *Ledger) Claims(ctx context.Context, s dr.System) ([]fence.Claim, error) {
	recs, err := l.rec.ListRecords(ctx, "e."+string(s)+".")
	if err != nil {
		return nil, fmt.Errorf("epochs of system %s: %w", s, err)
	}
	claims := make([]fence.Claim, 0, len(recs))
	for _, r := range recs {
		var c fence.Claim
		if err := json.Unmarshal(r.Body, &c); err != nil {
			return nil, fmt.Errorf("epoch record %s: %w: %w; use the newest Lifeboat, or revoke host %s if it should not write", r.Tag, err, dr.ErrTampered, r.Host.Short())
		}
		if c.System != s || dr.Number(c.Epoch) != r.Number || c.Host != r.Host {
			return nil, fmt.Errorf("epoch record %s does not fit its place: %w", r.Tag, dr.ErrTampered)
		}
		claims = append(claims, c)
	}
	return claims, nil
}

// Claim tries to become the holder of the epoch after claims, passing over
// squatted numbers. On success no newer epoch was there when it was read back.
// Losing to another host gives an error wrapping dr.ErrFenced that names it; a
// lost answer one wrapping dr.ErrOutcomeUnknown: read Claims again. Claiming
// what one holds by an equal earlier try succeeds.
func (l *Ledger) Claim(ctx context.Context, claims []fence.Claim, c fence.Claim) (fence.Claim, error) {
	c.Host = l.rec.HostID()
	c.Created = time.Now().UTC()
	c.StateDir, c.Config = l.here.StateDir, l.here.Config
	c = fence.Next(claims, c)
	putErr := l.put(ctx, dr.Number(c.Epoch), func(n dr.Number) (string, any) {
		c.Epoch = dr.Epoch(n)
		return epochTag(c.System, c.Epoch), c
	})
	if putErr != nil && (errors.Is(putErr, repo.ErrSquatted) || !errors.Is(putErr, dr.ErrHeld) && !errors.Is(putErr, dr.ErrOutcomeUnknown)) {
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
	if len(now) == 0 || now[len(now)-1].Epoch < c.Epoch {
		if putErr != nil {
			return fence.Claim{}, fmt.Errorf("claim epoch %d of system %s: %w", c.Epoch, c.System, putErr)
		}
		return fence.Claim{}, fmt.Errorf("claim of epoch %d of system %s was stored but is not listed: %w", c.Epoch, c.System, dr.ErrOutcomeUnknown)
	}
	newest := now[len(now)-1]
	switch {
	case newest.Host != c.Host:
		return fence.Claim{}, fence.CheckWrite(now, c.System, c.Host)
	case newest.Epoch != c.Epoch || !sameBase(newest.Base, c.Base):
		return fence.Claim{}, fmt.Errorf("this host has claimed epoch %d of system %s meanwhile, for another snapshot; run the same command again: %w", newest.Epoch, c.System, dr.ErrHeld)
	}
	return newest, nil
}

func sameBase(a, b *dr.SnapshotID) bool {
	return a == nil && b == nil || a != nil && b != nil && *a == *b
}

// put stores a record under the first number from n on that is not squatted.
// record is asked for tag and content of each number that is tried.
func (l *Ledger) put(ctx context.Context, n dr.Number, record func(dr.Number) (tag string, v any)) error {
	for tried := 0; ; tried++ {
		tag, v := record(n)
		err := l.rec.PutRecord(ctx, tag, v)
		if !errors.Is(err, repo.ErrSquatted) {
			return err
		}
		if tried == maxSquatted {
			return fmt.Errorf("%d numbers in a row up to %s are taken by what is no record; find out who writes them and take that login away: %w", tried, tag, err)
		}
		n++
	}
}

// Moves returns the switch records of a system, oldest first. Squatted numbers
// are left out. Errors are as for Claims.
func (l *Ledger) Moves(ctx context.Context, s dr.System) ([]fence.Move, error) {
	recs, err := l.rec.ListRecords(ctx, "w."+string(s)+".")
	if err != nil {
		return nil, fmt.Errorf("switch records of system %s: %w", s, err)
	}
	moves := make([]fence.Move, 0, len(recs))
	for _, r := range recs {
		var m fence.Move
		if err := json.Unmarshal(r.Body, &m); err != nil {
			return nil, fmt.Errorf("switch record %s: %w: %w; use the newest Lifeboat, or revoke host %s if it should not write", r.Tag, err, dr.ErrTampered, r.Host.Short())
		}
		if m.System != s || m.Host != r.Host {
			return nil, fmt.Errorf("switch record %s does not fit its place: %w", r.Tag, dr.ErrTampered)
		}
		m.Number = r.Number
		moves = append(moves, m)
	}
	return moves, nil
}

// Append adds a switch record after known ones, as Moves gave them, passing
// over squatted numbers. If somebody else added one meanwhile nothing is stored
// and the error wraps dr.ErrHeld: read again and decide anew.
func (l *Ledger) Append(ctx context.Context, known []fence.Move, m fence.Move) error {
	m.Format = 1
	m.Host = l.rec.HostID()
	m.Created = time.Now().UTC()
	next := dr.Number(1)
	if n := len(known); n > 0 {
		next = known[n-1].Number + 1
	}
	err := l.put(ctx, next, func(n dr.Number) (string, any) { return moveTag(m.System, n), m })
	if err != nil {
		return fmt.Errorf("record %q of the switch of system %s: %w", m.Phase, m.System, err)
	}
	return nil
}
