package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/pflag"

	"lifeboat/internal/dr"
	"lifeboat/internal/repo"
	"lifeboat/internal/tree"
	"lifeboat/internal/ui"
)

// inPlaceFlags say what a restore may do to what is there.
type inPlaceFlags struct{ on, remove, whileRunning bool }

func (f *inPlaceFlags) add(flags *pflag.FlagSet) {
	flags.BoolVar(&f.on, "in-place", false, "write over what is in DIR where it differs from the snapshot")
	flags.BoolVar(&f.remove, "delete", false, "with --in-place: take away what the snapshot does not have")
	flags.BoolVar(&f.whileRunning, "while-running", false, "with --in-place: also while a container that runs has DIR")
}

func (f inPlaceFlags) check() error {
	if (f.remove || f.whileRunning) && !f.on {
		return fmt.Errorf("--delete and --while-running go with --in-place: %w", dr.ErrUsage)
	}
	return nil
}

// nobodyUses refuses to write under the feet of a running container: what it holds
// in memory would be mixed with what is restored. An engine that does not answer runs
// nothing that could be told.
func (a *app) nobodyUses(ctx context.Context, f restoreFlags) error {
	if !f.inPlace.on || f.inPlace.whileRunning {
		return nil
	}
	dir, err := filepath.Abs(f.to)
	if err != nil {
		return err
	}
	if _, err := os.Stat(dir); err != nil {
		return nil // nothing is there that anybody could have; landing says what is wrong
	}
	e, host, err := a.reachEngine(ctx)
	if err != nil {
		a.UI().Note("no engine could be asked whether a container uses %s: %v", f.to, err)
		return nil
	}
	if !host.Local {
		return nil // another host's containers
	}
	users, err := e.Users(ctx, host, dir)
	if err != nil {
		return err
	}
	if len(users) == 0 {
		return nil
	}
	return ui.Explained{
		What:  fmt.Sprintf("%s is in use by %s, which runs", f.to, strings.Join(users, ", ")),
		State: "nothing was changed",
		Next: []string{
			"docker stop " + strings.Join(users, " ") + "  (then the same command again)",
			"--while-running writes all the same: right for files that nothing holds open, such as uploads; never for a database",
			"lifeboat failover --snapshot brings a whole system back to a snapshot, in good order",
		},
		Err: dr.ErrHeld,
	}
}

// stoppedInPlace explains what ended a run that writes over what is there.
func (j *restoring) stoppedInPlace(t dr.Tree, f restoreFlags, err error) error {
	if errors.Is(err, dr.ErrUsage) && j.total.Changed+j.total.Created+j.total.Removed == 0 {
		next := []string{"move away what is in the way"}
		switch {
		case errors.Is(err, tree.ErrElsewhere):
			next = append(next, "without --path, or with that of the directory itself, it is replaced by what the snapshot has")
		case !f.inPlace.remove:
			next = append(next, "--delete lets what the snapshot does not have go")
		}
		return ui.Explained{
			What: fmt.Sprintf("restore %s: %v", t.Key, err), State: "nothing was changed",
			Next: next, Err: errors.Join(err, j.into.Undo()),
		}
	}
	x := ui.Explained{
		What:  fmt.Sprintf("restore %s: %v", t.Key, err),
		State: f.to + " holds some of what it held and some of the snapshot; it is marked, and nothing should be started on it",
		Next:  []string{j.again()}, Err: err,
	}
	if repo.Damaged(err) {
		x.Next = []string{
			"lifeboat repair --from URL  (a mirror, or another repository, that still has what is lost); then: " + j.again(),
			fmt.Sprintf("the same command with %s@#NUMBER and --delete  (another snapshot, which takes this one over)", j.snap.System),
			"without --in-place, into a new directory: all that is whole is restored, and the rest is named",
		}
	}
	return x
}
