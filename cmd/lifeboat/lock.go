package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"lifeboat/internal/dr"
	"lifeboat/internal/repo"
	"lifeboat/internal/ui"
)

func newLockCmd(a *app) *cobra.Command {
	var reason string
	cmd := &cobra.Command{
		Use:   "lock SYSTEM[@SNAPSHOT]",
		Short: "Keep a snapshot exactly as it is",
		Long: `Keep a snapshot exactly as it is, until it is unlocked: forget does not remove it
and gc does not rewrite its packs, at whichever host they run. Whoever may delete
at the registry can still do so: a lock binds Lifeboat.

The login needs the access role operator.`,
		Example: `  lifeboat snapshots lock shop
  lifeboat snapshots lock shop@5f0c12ab --reason "before the upgrade"`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeRefs,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.runLock(cmd.Context(), args[0], true, reason)
		},
	}
	cmd.Flags().StringVar(&reason, "reason", "", "why, for people who list the locks")
	return cmd
}

func newUnlockCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:               "unlock SYSTEM[@SNAPSHOT]",
		Short:             "Let a locked snapshot be forgotten and rewritten again",
		Example:           `  lifeboat snapshots unlock shop@5f0c12ab`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeRefs,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.runLock(cmd.Context(), args[0], false, "")
		},
	}
}

// lockAnswer is the answer of snapshots lock and unlock.
type lockAnswer struct {
	Snapshot dr.SnapshotID `json:"snapshot"`
	System   dr.System     `json:"system"`
	Number   dr.Number     `json:"number"`
	Locked   bool          `json:"locked"`
}

// maxReason bounds the text of a lock, in bytes.
const maxReason = 1000

func (a *app) runLock(ctx context.Context, ref string, lock bool, reason string) error {
	if len(reason) > maxReason {
		return fmt.Errorf("--reason of %d bytes, the most is %d: %w", len(reason), maxReason, dr.ErrUsage)
	}
	w, err := a.openSigning(ctx)
	if err != nil {
		return err
	}
	defer w.close()
	name, id, _ := strings.Cut(ref, "@")
	sys, err := dr.ParseSystem(name)
	if err != nil {
		return err
	}
	snap, err := w.repo.Find(ctx, sys, id) // whether it is whole or not
	if err != nil {
		return err
	}
	text := fmt.Sprintf("snapshot %s of system %s is locked: forget and gc leave it as it is", snap.ID.Short(), snap.System)
	if lock {
		err = w.repo.Lock(ctx, snap, reason)
	} else {
		text = fmt.Sprintf("snapshot %s of system %s is not locked", snap.ID.Short(), snap.System)
		err = w.repo.Unlock(ctx, snap)
	}
	if errors.Is(err, repo.ErrLockUnread) {
		return ui.Explained{
			What: err.Error(), State: "nothing was changed: forget and gc leave the snapshot as it is, as long as that record is there",
			Next: []string{
				"lifeboat repair  (puts the record back if the registry stores it still, or a mirror of the configuration has it); then the same command again",
				"lifeboat repair --from URL  (of another mirror that has it)",
				"lifeboat repair --drop-damaged  (gives up what cannot be mended: the lock, and snapshots that lose something)",
			},
			Err: err,
		}
	}
	if err != nil {
		return a.explainForget(w, err)
	}
	return a.UI().Answer(lockAnswer{snap.ID, snap.System, snap.Number, lock}, ui.Text(text))
}
