package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"lifeboat/internal/copying"
	"lifeboat/internal/dr"
	"lifeboat/internal/ledger"
	"lifeboat/internal/repo"
	"lifeboat/internal/ui"
)

// openOther opens the repository with keys of its own that is copied to. A key of
// this host's signs there that is kept for copies alone: no engine is needed.
func (a *app) openOther(ctx context.Context, dst *world, f copyFlags) error {
	src := &dst.src
	if err := (secondFlags{word: "to", keyFile: f.keyFile, passphraseFile: f.passphraseFile}).keys(src); err != nil {
		return err
	}
	caps, err := dst.store.Capabilities(ctx)
	if err != nil {
		return a.explainRegistry(*src, "nothing was copied", err)
	}
	host, err := repo.LoadOrCreateHostKey(filepath.Join(src.stateDir, "copier"))
	if err != nil {
		return err
	}
	if dst.repo, err = a.openRepo(ctx, dst, host); err != nil {
		return fmt.Errorf("the repository to copy to: %w", err)
	}
	settle := time.Duration(0)
	if !caps.ImmutableTags {
		settle = claimSettle
	}
	dst.ledger = ledger.New(dst.repo, settle, ledger.Here{StateDir: src.stateDir})
	return nil
}

// copyOther copies to a repository with keys of its own.
func (a *app) copyOther(ctx context.Context, w, dst *world, systems []dr.System, chosen choice, f copyFlags, ans *copyAnswer) (err error) {
	if err := a.openOther(ctx, dst, f); err != nil {
		return err
	}
	defer dst.close()
	if len(systems) == 0 {
		if systems, err = storedSystems(ctx, w); err != nil {
			return err
		}
	}
	task := a.UI().Progress().Bytes("copy", -1)
	c, err := copying.New(copying.Options{
		From: w.repo, To: dst.repo, FromLedger: w.ledger, ToLedger: dst.ledger, Memory: filepath.Join(w.src.stateDir, "cache"),
		Only: chosen.only, Named: func(s *repo.Snapshot) bool { return chosen.named[s.ID] }, Adopt: f.adopt, DryRun: f.dryRun,
		Progress: func(p copying.Progress) {
			task.SetTotal(p.BytesTotal)
			task.SetDone(p.Bytes)
		},
	})
	if err != nil {
		task.Done(err)
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	if len(chosen.named) > 0 { // refused before the first system is copied
		for _, sys := range systems {
			if err := c.Look(ctx, sys); err != nil {
				task.Done(err)
				return err
			}
		}
	}
	var failed []error
	done := 0
	for _, sys := range systems {
		res, err := c.Copy(ctx, sys)
		a.addCopied(ans, sys, res)
		if err == nil {
			done++
			continue
		}
		failed = append(failed, err)
		if !errors.Is(err, dr.ErrFenced) { // that concerns one system; anything else would go on
			break
		}
	}
	if len(failed) > 0 && done > 0 {
		failed = append(failed, dr.ErrPartial)
	}
	err = errors.Join(failed...)
	task.Done(err)
	return a.explainFenced(dst, err)
}

// addCopied adds what became of a system to the answer.
func (a *app) addCopied(ans *copyAnswer, system dr.System, res *copying.Result) {
	if res == nil {
		return
	}
	ans.Packs += res.Packs
	ans.Sent += res.Sent
	ans.Read += res.Read
	for _, r := range res.Rows {
		row := copyRow{Snapshot: r.From.ID, System: r.From.System, Number: r.From.Number, State: string(repo.MirrorDue)}
		switch {
		case r.Err != nil:
			row.State, row.Reason = string(repo.MirrorDamaged), r.Err.Error()
		case r.Copied:
			row.State = string(repo.MirrorCopied)
		case r.To != nil:
			row.State = string(repo.MirrorThere)
		case r.Older != nil:
			row.State, row.Reason = stateOlder, r.Older.Error()
		}
		if r.To != nil {
			row.As = &r.To.ID
		}
		ans.Snapshots = append(ans.Snapshots, row)
	}
	a.leftOut(ans, res.Problems)
	for _, p := range res.Unread {
		a.atCopy(ans, "at the copy: "+p.String())
		ans.thereBack = ans.thereBack || p.SetBack()
	}
	if o := res.Ahead; o != nil {
		a.atCopy(ans, fmt.Sprintf("the copy of %s is ahead: it has #%d of epoch %d, which is newer than the newest that this repository shows", system, o.Number, o.Epoch))
	}
}

// stateOlder: a snapshot that has no copy is older than what was copied before.
const stateOlder = "older"

// atCopy adds what keeps a copy from being up to date.
func (a *app) atCopy(ans *copyAnswer, problem string) {
	ans.Problems, ans.there = append(ans.Problems, problem), append(ans.there, problem)
	a.UI().Warn("%s", problem)
}

func (a *app) explainFenced(dst *world, err error) error {
	if !errors.Is(err, dr.ErrFenced) {
		return err
	}
	return ui.Explained{
		What: err.Error(), State: "what was copied stays there; nothing was added to systems that are held by another",
		Next: []string{
			"who holds them: lifeboat status --repo " + location(dst.src.url),
			"where this host was installed anew and no other copies: the same command with --adopt",
			"where the copy has gone its own way and a fresh one is wanted: copy to another repository",
		}, Err: err,
	}
}
