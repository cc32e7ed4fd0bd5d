package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"github.com/spf13/cobra"

	"lifeboat/internal/config"
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
login, certificate and key.

Where this host has no configuration it is left with one, which names the mirrors
of the kit, too, and with a key of its own: status, snapshot and failback then work here without the kit.`,
		Example: `  lifeboat recover --kit lifeboat-kit.txt --list
  lifeboat recover --kit lifeboat-kit.txt shop
  lifeboat recover --kit lifeboat-kit.txt --yes`,
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.runRecover(cmd.Context(), path, args, listOnly, f)
		},
	}
	f.add(a, cmd)
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
	// Config is this host's configuration for the repository; empty for none.
	Config string `json:"config"`
}

func (a *app) runRecover(ctx context.Context, path string, names []string, listOnly bool, f bringFlags) error {
	if err := a.configToRecover(); err != nil {
		return err
	}
	k, src, err := a.recoverSource(path)
	if err != nil {
		return err
	}
	if !listOnly {
		a.kitSrc = &src
		if code, helped, err := a.viaHelper(ctx); helped {
			if err == nil && (code == codeDone || code == codePartial) && !f.dryRun {
				a.recoveredByHelper(ctx, src, k, path, names)
			}
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
	view := listingView(ans.Systems, len(ans.Problems))
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
	if !f.dryRun && !a.flags.kitStdin && ctx.Err() == nil {
		ans.Config = a.configureRecovered(ctx, w, k, path)
		views = append(views, configuredView(ans.Config, names))
	}
	if len(errs) > 0 && len(errs) < len(names) {
		errs = append(errs, dr.ErrPartial)
	}
	return errors.Join(errors.Join(errs...), a.UI().Answer(ans, views...))
}

// configToRecover loads the configuration, which may be made at the end. One
// that only root can read does not keep somebody else from recovering with the
// kit: what it says of overrides counts in the helper, which reads it.
func (a *app) configToRecover() error {
	_, err := a.ConfigToEdit()
	if errors.Is(err, fs.ErrPermission) {
		a.UI().Note("%v: it does not count here", err)
		a.cfg = config.Default()
		a.cfg.Path = a.ConfigPath()
		return nil
	}
	return err
}

// recoverSource reads the kit: a helper gets it from who started it, for the
// file is not where the engine is.
func (a *app) recoverSource(path string) (k kit.Kit, src source, err error) {
	if a.flags.kitStdin {
		src, err = a.stdinSource()
		return k, src, err
	}
	if k, err = readKit(path); err != nil {
		return k, src, err
	}
	src, err = a.kitSource(k)
	return k, src, err
}

// recoveredByHelper configures the host that this command runs on, after a
// helper brought the systems up.
func (a *app) recoveredByHelper(ctx context.Context, src source, k kit.Kit, path string, names []string) {
	w, err := a.openSource(ctx, src, false)
	if err != nil {
		a.notConfigured(path, err)
		return
	}
	defer w.close()
	if conf := a.configureRecovered(ctx, w, k, path); conf != "" {
		a.UI().Show(configuredView(conf, names))
	}
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
