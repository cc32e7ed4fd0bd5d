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
that it names exists with the right size. Data is not read: verify does that.`,
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
	for _, p := range problems {
		ans.Problems = append(ans.Problems, p.String())
		t.Rows = append(t.Rows, []string{p.String()})
	}
	if err := a.UI().Answer(ans, t); err != nil {
		return err
	}
	if len(problems) > 0 {
		return fmt.Errorf("%s found %d problem(s): %w", what, len(problems), dr.ErrTampered)
	}
	return nil
}
