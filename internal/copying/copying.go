// Package copying copies snapshots of a system from one repository to another
// that has keys of its own (docs/adr/0010-copies-and-mirrors.md).
//
// Main type: [Copier]. Units get the ids of the other repository, and everything
// that names units is written anew: catalogs, content lists, image records, the
// root record. Each unit is read, compared with its id, and put, once; which one
// became which is kept in a file, so that the next snapshot costs what is new in
// it. What has arrived is found again by the writer, so a run that was cut off
// goes on.
//
// The copy keeps the order of its source: nothing is put above what is newer, so
// its newest is never older than before, and what was forgotten there does not come
// back (order.go).
//
// The host that copies signs in the other repository and holds the system's epoch
// there, from the first snapshot until somebody brings the system up from the
// copy. The package does not copy repositories as they are: package repo does
// (MirrorTo).
package copying

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"lifeboat/internal/cut"
	"lifeboat/internal/dr"
	"lifeboat/internal/fence"
	"lifeboat/internal/ledger"
	"lifeboat/internal/repo"
)

// Progress is how far the copy of one system is.
type Progress struct {
	// Bytes of units that were looked at, of BytesTotal as the snapshots say.
	Bytes, BytesTotal int64
}

// Options of a Copier. From, To, FromLedger and ToLedger are needed; To is open
// for writing.
type Options struct {
	From, To             *repo.Repo
	FromLedger, ToLedger *ledger.Ledger
	// Memory is a directory for the file that remembers which unit became which.
	// Losing it costs reading again.
	Memory string
	// Only chooses snapshots; nil means all.
	Only func(*repo.Snapshot) bool
	// Named are those that were asked for one by one: where one of them is too old to
	// be copied, that is an OlderError.
	Named func(*repo.Snapshot) bool
	// Adopt goes on where another host has copied until now.
	Adopt    bool
	DryRun   bool
	Progress func(Progress)
}

// Row is what became of one snapshot.
type Row struct {
	From repo.Snapshot
	// To is the copy; nil where there is none (yet).
	To *repo.Snapshot
	// Copied is set where this run made it.
	Copied bool
	// Older says why it has no copy and gets none: it was forgotten there, or left out
	// when something newer was copied.
	Older error
	// Err says why it was not copied: it is damaged.
	Err error
}

// Result is what Copy did with one system.
type Result struct {
	Rows []Row
	// Packs and Sent went to the other repository, Read is the bytes of the units
	// that were read here.
	Packs, Sent, Read int64
	Problems          []repo.Problem
	// Unread are problems of the other repository that hide what may be newer than
	// all that can be read there.
	Unread []repo.Problem
	// Ahead is set where the newest copy is newer than the newest snapshot here.
	Ahead *repo.Origin
}

// Copier copies systems. Not safe for concurrent use. Close frees it.
type Copier struct {
	o   Options
	mem *memory
	cut *cut.Cutter
}

// New opens the memory of a pair of repositories.
func New(o Options) (*Copier, error) {
	if o.From.ID() == o.To.ID() {
		return nil, fmt.Errorf("copy: both are the same repository; make a mirror of it: %w", dr.ErrUsage)
	}
	mem, err := openMemory(o.Memory, o.From, o.To)
	if err != nil {
		return nil, fmt.Errorf("copy: %w", err)
	}
	return &Copier{o: o, mem: mem, cut: cut.New(o.To.CutKey())}, nil
}

// Close closes the memory.
func (c *Copier) Close() error { return c.mem.close() }

// Look finds out what Copy would do, and that nothing named is too old for it.
func (c *Copier) Look(ctx context.Context, system dr.System) error {
	if err := (&job{Copier: c, system: system, res: &Result{}}).look(ctx); err != nil {
		return fmt.Errorf("copy system %s: %w", system, err)
	}
	return nil
}

// Copy copies the chosen snapshots of a system that the other repository lacks and
// that are newer than what was copied before, in the order of their numbers.
// Snapshots on the system's line are copied as such, all others as divergent ones.
//
// Errors: OlderError, before anything is copied. dr.ErrFenced when another host holds the system's epoch there; it was
// brought up from the copy, or another host has copied (Options.Adopt). Those of
// both repositories. A snapshot that is damaged here is told in its row and does
// not keep the others from being copied. The result comes with the error.
func (c *Copier) Copy(ctx context.Context, system dr.System) (*Result, error) {
	j := &job{Copier: c, system: system, res: &Result{}}
	if err := j.look(ctx); err != nil {
		return j.res, fmt.Errorf("copy system %s: %w", system, err)
	}
	if len(j.todo()) == 0 {
		return j.res, nil
	}
	if err := j.hold(ctx); err != nil {
		return j.res, fmt.Errorf("copy system %s: %w", system, err)
	}
	if c.o.DryRun {
		return j.res, nil
	}
	for _, i := range j.todo() {
		row := &j.res.Rows[i]
		err := j.one(ctx, row)
		var here *readError
		if errors.As(err, &here) && (errors.Is(err, dr.ErrTampered) || errors.Is(err, dr.ErrNotFound)) {
			row.Err = err
			continue
		}
		if err != nil {
			return j.res, fmt.Errorf("copy system %s: snapshot %s: %w", system, row.From.Tag, err)
		}
	}
	return j.res, nil
}

// readError is a failure to read the repository that is copied from.
type readError struct{ err error }

func (e *readError) Error() string { return e.err.Error() }
func (e *readError) Unwrap() error { return e.err }

// job is one run of Copy.
type job struct {
	*Copier
	system  dr.System
	res     *Result
	claims  []fence.Claim // of the source
	facts   []fence.Snap
	head    dr.SnapshotID // of the line of the source
	copies  copies
	holders []fence.Claim  // of the system there
	newest  *repo.Snapshot // of this host there
	epoch   dr.Epoch
	prog    Progress
}

// todo lists the rows that are to be copied.
func (j *job) todo() (out []int) {
	for i, r := range j.res.Rows {
		if r.To == nil && r.Older == nil && r.Err == nil {
			out = append(out, i)
		}
	}
	return out
}

// look reads what there is on both sides, and decides what is copied.
func (j *job) look(ctx context.Context) error {
	var err error
	if j.claims, err = j.o.FromLedger.Claims(ctx, j.system); err != nil {
		return err
	}
	from, problems, err := j.o.From.Snapshots(ctx, j.system)
	if err != nil {
		return err
	}
	j.res.Problems, j.facts = problems, factsOf(from)
	j.head, _ = fence.Head(j.claims, j.facts)
	if err := j.lookThere(ctx); err != nil {
		return fmt.Errorf("look at the copy: %w", err)
	}
	j.res.Unread, j.res.Ahead = j.copies.unread, j.ahead(from)
	for _, s := range from {
		if j.o.Only != nil && !j.o.Only(&s) {
			continue
		}
		row := Row{From: s, To: j.copies.of[s.ID]}
		if row.To == nil {
			row.Older = j.older(&s)
		}
		if row.Older != nil && j.o.Named != nil && j.o.Named(&s) {
			return &OlderError{Snapshot: s, Cause: row.Older}
		}
		if row.To == nil && row.Older == nil {
			j.prog.BytesTotal += s.BytesTotal
		}
		j.res.Rows = append(j.res.Rows, row)
	}
	return nil
}

// lookThere reads what the other repository has.
func (j *job) lookThere(ctx context.Context) error {
	to, problems, err := j.o.To.Snapshots(ctx, j.system)
	if err != nil {
		return err
	}
	if j.holders, err = j.o.ToLedger.Claims(ctx, j.system); err != nil {
		return err
	}
	j.copies = copiesIn(j.holders, to, problems, j.o.From.ID())
	for i := range to {
		if to[i].Host == j.o.To.HostID() {
			j.newest = &to[i]
		}
	}
	return nil
}

// hold makes this host the holder of the system there, or finds that it is; a dry
// run finds that it could be.
func (j *job) hold(ctx context.Context) error {
	claims, host := j.holders, j.o.To.HostID()
	want := fence.Claim{System: j.system, Site: j.res.Rows[len(j.res.Rows)-1].From.Site, Reason: fence.ReasonCopy}
	fenced := fence.CheckWrite(claims, j.system, host)
	switch {
	case fenced == nil && len(claims) > 0:
		j.epoch = claims[len(claims)-1].Epoch
		return nil
	case fenced != nil && claims[len(claims)-1].Reason != fence.ReasonCopy:
		return fmt.Errorf("it was brought up from the copy, which goes its own way since: %w", fenced)
	case fenced != nil && !j.o.Adopt:
		return fmt.Errorf("another host has copied it until now; where that host is gone, adopt it (--adopt): %w", fenced)
	case j.o.DryRun:
		return nil
	case fenced != nil:
		if err := j.base(ctx, claims, &want); err != nil {
			return err
		}
	}
	claim, err := j.o.ToLedger.Claim(ctx, claims, want)
	if err != nil {
		return err
	}
	j.epoch = claim.Epoch
	return nil
}

// base lets a claim build on what the line there holds.
func (j *job) base(ctx context.Context, claims []fence.Claim, want *fence.Claim) error {
	snaps, _, err := j.o.To.Snapshots(ctx, j.system)
	if err != nil {
		return fmt.Errorf("look at the copy: %w", err)
	}
	if id, ok := fence.Head(claims, factsOf(snaps)); ok {
		want.Base = &id
		i := slices.IndexFunc(snaps, func(s repo.Snapshot) bool { return s.ID == id })
		if i >= 0 {
			j.newest = &snaps[i]
		}
	}
	return nil
}

func (j *job) tell(n int64) {
	j.prog.Bytes += n
	if j.o.Progress != nil {
		j.o.Progress(j.prog)
	}
}
