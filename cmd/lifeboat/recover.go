package main

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"lifeboat/internal/dr"
	"lifeboat/internal/kit"
	"lifeboat/internal/ui"
)

func newRecoverCmd(a *app) *cobra.Command {
	var f bringFlags
	var path string
	var listOnly bool
	cmd := &cobra.Command{
		Use:     "recover --kit FILE [SYSTEM...]",
		GroupID: groupRecover,
		Short:   "From an empty host: list the systems of a recovery kit and bring them up",
		Long: `From an empty host with Docker, this binary and the recovery kit: list the
systems of the repository and bring the named ones up, or all of them (asking
first, unless --yes). Nothing else is needed; the kit has repository, registry
login, certificate and key.`,
		Example: `  lifeboat recover --kit lifeboat-kit.txt --list
  lifeboat recover --kit lifeboat-kit.txt shop
  lifeboat recover --kit lifeboat-kit.txt --yes`,
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.runRecover(cmd.Context(), path, args, listOnly, f)
		},
	}
	f.add(cmd)
	cmd.Flags().StringVar(&path, "kit", "", "recovery kit `FILE`")
	cmd.Flags().BoolVar(&listOnly, "list", false, "only list the systems")
	_ = cmd.MarkFlagRequired("kit")
	return cmd
}

// recoverAnswer is the JSON answer of recover.
type recoverAnswer struct {
	Systems   []snapshotRow  `json:"systems"`
	Problems  []string       `json:"problems"`
	Recovered []*bringAnswer `json:"recovered"`
}

func (a *app) runRecover(ctx context.Context, path string, names []string, listOnly bool, f bringFlags) error {
	k, err := kit.ReadFile(path)
	if err != nil {
		return err
	}
	src, err := a.kitSource(k)
	if err != nil {
		return err
	}
	if !listOnly {
		a.kitSrc = &src
		if code, helped, err := a.viaHelper(ctx); helped {
			return helperResult(code, err)
		}
	}
	w, err := a.openSource(ctx, src, !listOnly)
	if err != nil {
		return err
	}
	defer w.close()
	l, err := w.list(ctx, "")
	if err != nil {
		return err
	}
	ans := recoverAnswer{Systems: []snapshotRow{}, Problems: l.Problems, Recovered: []*bringAnswer{}}
	for _, s := range l.Snapshots {
		if s.Newest {
			ans.Systems = append(ans.Systems, s)
		}
	}
	a.warnOf(l)
	view := listingView(ans.Systems)
	if len(ans.Systems) == 0 {
		return errors.Join(a.UI().Answer(ans, view), fmt.Errorf("the repository has no system: %w", dr.ErrNotFound))
	}
	if listOnly {
		return a.UI().Answer(ans, view, ui.Text("next: lifeboat recover --kit "+path+" SYSTEM"))
	}
	a.UI().Show(view)
	if names, err = a.toRecover(ctx, ans.Systems, names); err != nil {
		return err
	}
	var views []ui.View
	var errs []error
	for _, name := range names {
		one, v, err := a.failover(ctx, w, name, "", f)
		if one != nil {
			ans.Recovered = append(ans.Recovered, one)
			views = append(views, v...)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("system %s: %w", name, err))
		}
		if ctx.Err() != nil {
			break
		}
	}
	if len(errs) > 0 && len(errs) < len(names) {
		errs = append(errs, dr.ErrPartial)
	}
	return errors.Join(errors.Join(errs...), a.UI().Answer(ans, views...))
}

// toRecover checks the names, or takes all systems after asking.
func (a *app) toRecover(ctx context.Context, have []snapshotRow, names []string) ([]string, error) {
	var all []string
	for _, s := range have {
		all = append(all, string(s.System))
	}
	for _, n := range names {
		if !slices.Contains(all, n) {
			return nil, fmt.Errorf("the repository has no snapshot of system %q; it has %v: %w", n, all, dr.ErrNotFound)
		}
	}
	if len(names) > 0 {
		return names, nil
	}
	return all, a.UI().Confirm(ctx, fmt.Sprintf("Bring up %v here?", all))
}
