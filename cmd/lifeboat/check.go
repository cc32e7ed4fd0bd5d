package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"lifeboat/internal/dr"
	"lifeboat/internal/repo"
	"lifeboat/internal/ui"
)

func newCheckCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "check",
		GroupID: groupCare,
		Short:   "Check the structure of the repository, quickly",
		Long: `Check the structure of the repository: every visible snapshot opens, everything
that it names exists with the right size. Data is not read: verify does that.

The exit code is 3 where the only problems are tags that hold something of
somebody else's: every snapshot is whole. It is 1 where something that Lifeboat
stored is damaged or gone.`,
		Example: `  lifeboat check
  lifeboat check --json | jq .problems`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.runCheck(cmd.Context(), "check", func(ctx context.Context, r *repo.Repo) ([]repo.Problem, error) { return r.Check(ctx) })
		},
	}
}

func newVerifyCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "verify",
		GroupID: groupCare,
		Short:   "Read and authenticate all data of the repository",
		Long:    `Read and authenticate all data of the repository. Exit codes are those of check.`,
		Example: `  lifeboat verify`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.runCheck(cmd.Context(), "verify", func(ctx context.Context, r *repo.Repo) ([]repo.Problem, error) {
				task := a.UI().Progress().Bytes("verify", -1)
				problems, err := r.Verify(ctx, func(p repo.VerifyProgress) {
					task.SetTotal(p.BytesTotal)
					task.SetDone(p.Bytes)
				})
				task.Done(err)
				return problems, err
			})
		},
	}
}

func (a *app) runCheck(ctx context.Context, what string, check func(context.Context, *repo.Repo) ([]repo.Problem, error)) error {
	w, err := a.open(ctx, false)
	if err != nil {
		return err
	}
	defer w.close()
	problems, err := check(ctx, w.repo)
	if err != nil {
		return err
	}
	ans := struct {
		Problems []string `json:"problems"`
	}{[]string{}}
	t := ui.Table{Columns: []ui.Column{{Title: "problem", Elastic: true}}, Empty: "no problems were found"}
	damaged := 0
	for _, p := range problems {
		if !p.Foreign() {
			damaged++
		}
		ans.Problems = append(ans.Problems, p.String())
		t.Rows = append(t.Rows, []string{p.String()})
	}
	if err := a.UI().Answer(ans, t); err != nil {
		return err
	}
	switch {
	case damaged == 0 && len(problems) > 0:
		return fmt.Errorf("every snapshot is whole, but %d tag(s) hold something that is not Lifeboat's or not of a host that may write: %w", len(problems), dr.ErrPartial)
	case damaged > 0:
		return fmt.Errorf("%s found %d problem(s): %w", what, len(problems), dr.ErrTampered)
	}
	return nil
}
