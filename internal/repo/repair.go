package repo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"

	"lifeboat/internal/dr"
	"lifeboat/internal/repo/readlog"
	"lifeboat/internal/store"
	"lifeboat/internal/store/overlay"
)

// RepairSource is where Repair takes from what the repository lacks.
type RepairSource struct {
	// Name is for people.
	Name string
	// Exact is a registry that holds exact copies of blobs and tags of this
	// repository (SameRepository); nil for none.
	Exact store.Store
	// Other is another repository, whose units are compared by content; nil for
	// none.
	Other *Repo
}

// RepairOptions say how to repair.
type RepairOptions struct {
	From []RepairSource
	// Read: everything is read first, so that damage is found that only reading
	// shows. What this host has found by reading before is known without.
	Read bool
	// DryRun changes nothing: the run is rehearsed over a layer that keeps what would
	// be written, so that its steps and what it leaves are those of the real run, as
	// far as the registry does what it says that it can. Room is needed for the units
	// that would be put together anew, in the directory for temporary files.
	DryRun bool
	// DropDamaged forgets the snapshots that still lose something in the end, or of
	// which nothing can be read, as far as they may be forgotten at all, and gives up
	// records of locks, hosts, epochs and moves that nothing could mend.
	DropDamaged bool
	// Now is the clock; nil means time.Now.
	Now func() time.Time
	// Progress is called while everything is read; Stepped after each step. Either
	// may be nil; calls do not overlap.
	Progress func(VerifyProgress)
	Stepped  func(RepairStep)
}

// RepairAction is what a step does.
type RepairAction string

// The actions.
const (
	// RepairCopied: a blob, manifest or tag was stored again as it was.
	RepairCopied RepairAction = "copied"
	// RepairRewritten: what is left of a pack manifest, and what was found
	// elsewhere, was put together anew.
	RepairRewritten RepairAction = "rewritten"
	// RepairRelocated: a snapshot lies there now.
	RepairRelocated RepairAction = "relocated"
	// RepairForgotten: a snapshot that cannot be healed was removed.
	RepairForgotten RepairAction = "forgotten"
)

// RepairStep is one thing that was done, or with DryRun would be. Err says why it
// was not.
type RepairStep struct {
	Action RepairAction
	Tag    string
	// As is the tag of the relocation, where one was made of Tag.
	As   string
	Blob digest.Digest
	// From is the name of the source; empty for the repository itself.
	From string
	// Units and Bytes that were put together anew, or Bytes that were copied. Lacks
	// are units of a relocated snapshot that could not be had.
	Units, Lacks int
	Bytes        int64
	// Unhurt: nothing of the snapshot is lost; it is relocated because what it lists
	// is damaged in places that it does not need.
	Unhurt bool
	Err    error
}

// Repaired is what Repair found, did, and left; with DryRun what it would do, and
// would leave. Before and After may be used until the repository is closed.
type Repaired struct {
	Before, After *Examination
	Steps         []RepairStep
}

// Repair heals what is damaged or gone, as far as it can be had: exact copies of
// blobs, manifests and records from other registries first, then units, from
// wherever they are sound: packs that are left, other snapshots, other
// repositories. Units are put together anew, and the snapshots that need them are
// relocated there: their records and numbers stay as they were (docs/format.md,
// Relocation). Nothing is used that was not read and found to have its digest or
// its id, whoever wrote it; records count only by their signature. Nothing that
// was stored is removed, except tags that name something else than they must,
// once what belongs there is at hand, and what DropDamaged says.
//
// It may be cut off anywhere and run again (invariant 8). What cannot be healed
// is what After tells. Errors are those of the registry and of the local disk; a
// source that fails is told by its step and passed over.
func (r *Repo) Repair(ctx context.Context, o RepairOptions) (*Repaired, error) {
	p := &repairer{repo: r, opts: o, result: &Repaired{}, aside: map[Tag]bool{}, proven: map[digest.Digest]bool{}, former: map[digest.Digest]bool{}}
	if o.Now == nil {
		p.opts.Now = time.Now
	}
	p.began = p.opts.Now()
	run := func() error { return p.run(ctx, o.Read) }
	if o.DryRun {
		run = func() error { return p.rehearse(ctx) }
	}
	if err := run(); err != nil {
		return p.result, fmt.Errorf("repair: %w", err)
	}
	return p.result, nil
}

// repairer is one run of Repair.
type repairer struct {
	repo   *Repo
	opts   RepairOptions
	result *Repaired
	began  time.Time
	aside  map[Tag]bool // what is kept under a tag of its own until it is put back
	// over is the layer that a dry run writes to, else nil.
	over *overlay.Store
	// proven has the records of snapshots that need not be walked again.
	proven map[digest.Digest]bool
	// done counts the steps that did something; former has the manifests that earlier
	// places of snapshots name and that were read.
	done   int
	former map[digest.Digest]bool
}

// maxRepairRounds bounds how often it is looked again because something was mended:
// what is mended may show more that is damaged. Each round but the last mends
// something, so only a registry that does not keep what it takes gets there; then
// what was found last is told.
const maxRepairRounds = 32

// maxCopyRounds is how many of them copy alone before units are put together.
const maxCopyRounds = 4

// run repairs; read says that everything is read first. Whatever was mended, the last
// thing that it does is to look at all that there is.
func (p *repairer) run(ctx context.Context, read bool) (err error) {
	if err := p.repo.enrolForWriting(ctx); err != nil && !about(err) {
		return err // what is about host records may be what there is to heal
	}
	before, err := p.look(ctx, read)
	if err != nil && !errors.Is(err, dr.ErrTampered) {
		return err
	}
	p.result.Before, p.result.After = before, before
	read = read && before == nil
	for round := range maxRepairRounds {
		done := p.done
		if err := p.copies(ctx, read); err != nil {
			return err
		}
		read = false
		if before == nil {
			before = p.result.After
			p.result.Before = before
		}
		if p.done > done && round < maxCopyRounds {
			continue // what is here now may show more that an exact copy heals
		}
		more, err := p.units(ctx, p.result.After)
		if err != nil {
			return err
		}
		if !more {
			break
		}
	}
	if p.opts.DropDamaged {
		if p.result.After, err = p.look(ctx, false); err == nil {
			err = p.drop(ctx)
		}
		if err != nil {
			return err
		}
	}
	p.result.After, err = p.look(ctx, false)
	return err
}

// copies heals from exact copies, and looks at what is left.
func (p *repairer) copies(ctx context.Context, read bool) (err error) {
	if err := p.tags(ctx); err != nil {
		return err
	}
	if p.result.After, err = p.look(ctx, read); err != nil {
		return err
	}
	// Other places are asked only for what is damaged after that.
	for _, heal := range []func(context.Context, *Examination) error{p.blobs, p.places} {
		done := p.done
		if err := heal(ctx, p.result.After); err != nil {
			return err
		}
		if p.done == done {
			continue
		}
		if p.result.After, err = p.look(ctx, false); err != nil {
			return err
		}
	}
	return nil
}

// look examines the repository. Of all snapshots it is found out whether they are
// complete, not of the newest alone as check does: a snapshot that was mended, now or
// by an earlier run, must not pass for whole because what it names is sound.
func (p *repairer) look(ctx context.Context, read bool) (*Examination, error) {
	o := ExamineOptions{Now: p.opts.Now, Progress: p.opts.Progress, proven: p.proven}
	if read {
		o.Read = &readlog.Subset{}
	}
	return p.repo.Examine(ctx, o)
}

// did tells of a step; one that failed as it did in an earlier round is told once.
func (p *repairer) did(s RepairStep) {
	if s.Err == nil {
		p.done++
	} else if slices.ContainsFunc(p.result.Steps, func(o RepairStep) bool {
		return o.Err != nil && o.Action == s.Action && o.Tag == s.Tag && o.Blob == s.Blob && o.From == s.From
	}) {
		return
	}
	p.result.Steps = append(p.result.Steps, s)
	if p.opts.Stepped != nil {
		p.opts.Stepped(s)
	}
}

// Refused are the steps that failed at a tag and were not done since: what belongs
// there is at hand, and the registry does not take it.
func (d *Repaired) Refused() []RepairStep {
	var out []RepairStep
	for _, s := range d.Steps {
		same := func(o RepairStep) bool { return o.Tag == s.Tag }
		out = slices.DeleteFunc(out, same)
		if _, err := ParseTag(s.Tag); s.Err != nil && s.Action != RepairForgotten && (err == nil || isPackTag(s.Tag)) {
			out = append(out, s)
		}
	}
	return out
}

// Healed reports whether nothing is damaged any more that Lifeboat stored, and
// everything that belongs there was put back.
func (d *Repaired) Healed() bool {
	if len(d.Refused()) > 0 {
		return false
	}
	for _, p := range d.After.Problems {
		if !p.Foreign() {
			return false
		}
	}
	return true
}

// SameRepository reports whether a registry holds records of this repository: a
// key record with its MAC, or where none can be read a host record that its keys
// open.
func (r *Repo) SameRepository(ctx context.Context, st store.Store) (bool, error) {
	names, err := st.Tags(ctx, Tag{Class: ClassKey}.prefix())
	if err != nil {
		return false, fmt.Errorf("look for the repository there: %w", err)
	}
	tags, _ := parseTags(names)
	for _, t := range tags {
		m, err := st.GetManifest(ctx, t.String())
		if err != nil && !about(err) {
			return false, fmt.Errorf("look for the repository there: %w", err)
		}
		if err == nil && r.verifyAs(ctx, t, m) == nil {
			return true, nil
		}
	}
	same, err := opensSomething(ctx, st, r.keyring())
	if err != nil {
		return false, fmt.Errorf("look for the repository there: %w", err)
	}
	return same, nil
}

// notThere reports whether an error says that a source lacks something, rather
// than that work must end.
func notThere(ctx context.Context, err error) bool {
	return ctx.Err() == nil && (about(err) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, store.ErrUnreachable) || errors.Is(err, store.ErrForbidden) || errors.Is(err, store.ErrUnauthorized))
}
