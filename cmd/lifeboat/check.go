package main

import (
	"github.com/spf13/cobra"

	"lifeboat/internal/repo"
)

func newCheckCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "check",
		GroupID: groupCare,
		Short:   "Check the structure of the repository, quickly",
		Long: `Check the structure of the repository: every visible snapshot opens, every pack
that it names exists with the right size, and of the newest snapshot of each system
every file has all of its content in some pack. Packs are not read, nor the lists of
files of older snapshots: verify does that. What this host has found damaged by
reading, be it for a restore, is read again.

It says which files of which snapshots are hit by what is damaged or gone: of each
damage the first ten, with --json all of them (in "hit", by snapshot; one that
loses the same as an earlier one names that in "same_as" and lists nothing).

A snapshot that this host has seen, that is not there, and that it has not forgotten
itself is named: another host has forgotten it, or the registry hides it, which
nobody can tell apart. That alone is no problem.

The exit code is 3 where the only problems are tags that hold something of
somebody else's: every snapshot is whole. It is 1 where something that Lifeboat
stored is damaged or gone.`,
		Example: `  lifeboat check
  lifeboat check --json | jq -r '.hit[] | .tag, .same_as // empty, .losses[].path'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.runExamine(cmd.Context(), "check", "", repo.ExamineOptions{})
		},
	}
}
