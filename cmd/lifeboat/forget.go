package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"lifeboat/internal/dr"
	"lifeboat/internal/repo"
	"lifeboat/internal/retain"
	"lifeboat/internal/store"
	"lifeboat/internal/ui"
)

// keepFlags are the parts of a policy on the command line.
type keepFlags struct {
	last, hourly, daily, weekly, monthly, yearly, within string
}

func (k *keepFlags) add(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&k.last, "keep-last", "", "keep the newest `N` snapshots (or unlimited)")
	f.StringVar(&k.hourly, "keep-hourly", "", "keep the newest of each of the last `N` hours that have one")
	f.StringVar(&k.daily, "keep-daily", "", "the same for `N` days")
	f.StringVar(&k.weekly, "keep-weekly", "", "the same for `N` weeks")
	f.StringVar(&k.monthly, "keep-monthly", "", "the same for `N` months")
	f.StringVar(&k.yearly, "keep-yearly", "", "the same for `N` years")
	f.StringVar(&k.within, "keep-within", "", "keep what is not older than `SPAN` before the newest: 7d, 1y6m, 2d12h")
}

// policy is what the flags say; empty where none was given.
func (k *keepFlags) policy() (p retain.Policy, err error) {
	for _, c := range []struct {
		flag, value string
		target      *int
	}{
		{"last", k.last, &p.Last},
		{"hourly", k.hourly, &p.Hourly},
		{"daily", k.daily, &p.Daily},
		{"weekly", k.weekly, &p.Weekly},
		{"monthly", k.monthly, &p.Monthly},
		{"yearly", k.yearly, &p.Yearly},
	} {
		if c.value == "" {
			continue
		}
		if *c.target, err = retain.ParseCount(c.value); err != nil {
			return p, fmt.Errorf("--keep-%s: %w", c.flag, err)
		}
	}
	if k.within != "" {
		if p.Within, err = retain.ParseSpan(k.within); err != nil {
			return p, fmt.Errorf("--keep-within: %w", err)
		}
	}
	return p, nil
}

func newForgetCmd(a *app) *cobra.Command {
	var keep keepFlags
	var dryRun bool
	cmd := &cobra.Command{
		Use:     "forget [SYSTEM]",
		GroupID: groupCare,
		Short:   "Remove snapshots that a policy does not keep",
		Long: `Remove snapshots that a policy does not keep, of one system or of all. The policy
is that of the flags, else systems.SYSTEM.keep of the configuration, else its
keep; a system without any is left as it is. A snapshot stays when one part of
the policy keeps it. Hours and days are those of UTC.

Some stay whatever the policy says: the newest of the line, what the newest epoch
builds on, what a move that is under way names, the newest of each host. The
policy counts snapshots on the line, and those of each host that are on no line,
by themselves; and by their numbers, not by times that cannot be true: a snapshot
whose time is before that of an earlier number, or in the future, stays and uses
up nothing.

The login needs the access role operator. The space comes back with gc.`,
		Example: `  lifeboat forget shop --keep-last 10 --keep-daily 7 --keep-weekly 5 --dry-run
  lifeboat forget shop --keep-within 2d12h --keep-monthly 12
  lifeboat forget && lifeboat gc`,
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: a.completeSystems,
		RunE: func(cmd *cobra.Command, args []string) error {
			p, err := keep.policy()
			if err != nil {
				return err
			}
			name := dr.System("")
			if len(args) == 1 {
				if name, err = dr.ParseSystem(args[0]); err != nil {
					return err
				}
			}
			return a.runForget(cmd.Context(), name, p, dryRun)
		},
	}
	keep.add(cmd)
	cmd.Flags().BoolVarP(&dryRun, "dry-run", "n", false, "show what would be removed, and remove nothing")
	return cmd
}

// forgetRow is a snapshot in the answer.
type forgetRow struct {
	Snapshot dr.SnapshotID `json:"snapshot"`
	System   dr.System     `json:"system"`
	Number   dr.Number     `json:"number"`
	Created  time.Time     `json:"created"`
	Site     dr.Site       `json:"site"`
	Keep     bool          `json:"keep"`
	Reasons  []string      `json:"reasons"`
	Removed  bool          `json:"removed"`
}

type forgetAnswer struct {
	DryRun    bool        `json:"dry_run"`
	Snapshots []forgetRow `json:"snapshots"`
	// NoPolicy are systems of which nothing was forgotten because nobody said
	// what to keep.
	NoPolicy []dr.System `json:"no_policy"`
	Problems []string    `json:"problems"`
}

func (a *app) runForget(ctx context.Context, name dr.System, flags retain.Policy, dryRun bool) error {
	cfg, err := a.Config()
	if err != nil {
		return err
	}
	policy := func(s dr.System) retain.Policy {
		if !flags.Empty() {
			return flags
		}
		return cfg.KeepOf(s)
	}
	if name != "" && policy(name).Empty() {
		return fmt.Errorf("nobody says which snapshots of system %s to keep: give --keep-last 10 or the like, or systems.%s.keep in %s: %w", name, name, a.ConfigPath(), dr.ErrUsage)
	}
	w, err := a.open(ctx, false)
	if err != nil {
		return err
	}
	defer w.close()
	systems := []dr.System{name}
	if name == "" {
		if systems, err = storedSystems(ctx, w); err != nil {
			return err
		}
	}
	ans := forgetAnswer{DryRun: dryRun, Snapshots: []forgetRow{}, NoPolicy: []dr.System{}, Problems: []string{}}
	damaged := 0
	var failed error
	for _, s := range systems {
		p := policy(s)
		if p.Empty() {
			ans.NoPolicy = append(ans.NoPolicy, s)
			a.UI().Warn("system %s: nobody says what to keep, so nothing is forgotten", s)
			continue
		}
		bad, err := a.forgetSystem(ctx, w, s, p, &ans)
		damaged += bad
		if err != nil {
			failed = errors.Join(failed, a.explainForget(w, err))
			break
		}
	}
	if len(ans.Snapshots) > 0 || failed == nil {
		if err := a.UI().Answer(ans, forgetView(ans)); err != nil {
			return errors.Join(failed, err)
		}
	}
	switch {
	case failed != nil:
		return failed
	case damaged > 0:
		return fmt.Errorf("%d thing(s) of the repository are damaged or gone, and were left alone: %w", damaged, dr.ErrPartial)
	}
	return nil
}

// forgetSystem adds to the answer what it did, also where it failed half way.
func (a *app) forgetSystem(ctx context.Context, w *world, s dr.System, p retain.Policy, ans *forgetAnswer) (damaged int, err error) {
	plan, err := w.repo.PlanForget(ctx, s, p)
	if err != nil {
		if len(ans.Snapshots) == 0 {
			err = untouched{err}
		}
		return 0, err
	}
	for _, pr := range plan.Problems {
		ans.Problems = append(ans.Problems, pr.String())
		a.UI().Warn("does not verify: %s", pr.String())
		if !pr.Foreign() {
			damaged++
		}
	}
	if !ans.DryRun {
		err = w.repo.Forget(ctx, plan)
	}
	for _, row := range plan.Rows {
		ans.Snapshots = append(ans.Snapshots, forgetRow{
			Snapshot: row.ID, System: s, Number: row.Number, Created: row.Created, Site: row.Site,
			Keep: row.Keep, Reasons: append([]string{}, row.Reasons...), Removed: row.Removed,
		})
	}
	return damaged, err
}

func (a *app) explainForget(w *world, err error) error {
	if errors.Is(err, repo.ErrSetBack) {
		return explainSetBack(err)
	}
	if errors.Is(err, store.ErrForbidden) {
		return ui.Explained{
			What: err.Error(), State: "what was removed so far is listed; everything else is as it was",
			Next: []string{
				"run it with the login of an operator: a writer's cannot delete, so that a host that is broken into cannot either",
				"roles are those of the registry's roles file, or what the registry has instead (docs/registries.md)",
			},
			Err: err,
		}
	}
	if errors.Is(err, store.ErrUnsupported) {
		return ui.Explained{
			What: err.Error(), State: "nothing was removed",
			Next: []string{"remove snapshots with the registry's own means; docs/registries.md says which registries delete over the protocol"}, Err: err,
		}
	}
	return a.explainRegistry(w.src, "what was removed so far is listed; everything else is as it was", err)
}

// storedSystems are the systems that the repository holds snapshots of.
func storedSystems(ctx context.Context, w *world) ([]dr.System, error) {
	snaps, _, err := w.repo.Snapshots(ctx, "")
	if err != nil {
		return nil, err
	}
	var out []dr.System
	for _, s := range snaps {
		if !slices.Contains(out, s.System) {
			out = append(out, s.System)
		}
	}
	return out, nil
}

func forgetView(ans forgetAnswer) ui.View {
	t := ui.Table{
		Columns: []ui.Column{{Title: "snapshot"}, {Title: "system"}, {Title: "#", Right: true}, {Title: "of"}, {Title: "site"}, {Title: "verdict"}, {Title: "why", Elastic: true}},
		Empty:   "the repository has no snapshots with a policy",
	}
	for _, s := range ans.Snapshots {
		verdict, why := "kept", strings.Join(s.Reasons, ", ")
		switch {
		case s.Removed:
			verdict, why = "removed", "no part of the policy keeps it"
		case !s.Keep && ans.DryRun:
			verdict, why = "would go", "no part of the policy keeps it"
		case !s.Keep:
			verdict, why = "to go", "not removed yet"
		}
		t.Rows = append(t.Rows, []string{
			s.Snapshot.Short(), string(s.System), strconv.FormatUint(uint64(s.Number), 10),
			s.Created.Local().Format(time.DateTime), string(s.Site), verdict, why,
		})
	}
	return t
}
