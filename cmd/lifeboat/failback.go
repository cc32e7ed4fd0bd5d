package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/spf13/cobra"

	"lifeboat/internal/capture"
	"lifeboat/internal/config"
	"lifeboat/internal/dr"
	"lifeboat/internal/engine"
	"lifeboat/internal/fence"
	recovery "lifeboat/internal/recover"
	"lifeboat/internal/ui"
)

func newFailbackCmd(a *app) *cobra.Command {
	var f bringFlags
	var from string
	var patience time.Duration
	cmd := &cobra.Command{
		Use:     "failback SYSTEM",
		GroupID: groupRecover,
		Short:   "Bring a system back here from the stand-in, nothing lost",
		Long: `Bring a system back here from the site that holds it, with everything that was
written there; only differences travel. Run it at the site that takes over.

The stand-in is snapshotted while it serves; that is laid down here, after what
this site still held was kept as a divergent snapshot; the stand-in stops, its
last difference follows, the system starts here, and once it is healthy the
epoch is claimed. If it does not become healthy the stand-in goes on.

The other side is run from here if the configuration names its engine
(sites.NAME.engine) or --from does; else run there: lifeboat switchover SYSTEM
--to THIS-SITE, before or after this command.`,
		Example: `  lifeboat failback shop --dry-run
  lifeboat failback shop
  lifeboat failback shop --from ssh://root@standby.example.org`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if code, helped, err := a.viaHelper(cmd.Context()); helped {
				return helperResult(code, err)
			}
			return a.runFailback(cmd.Context(), args[0], from, patience, f)
		},
	}
	f.add(a, cmd)
	cmd.ValidArgsFunction = a.completeStored
	cmd.Flags().StringVar(&from, "from", "", "`ENGINE` of the site that holds the system: ssh://…, unix://… or tcp://…")
	cmd.Flags().DurationVar(&patience, "patience", recovery.DefaultPatience, "how long to wait for the other side's next word")
	return cmd
}

func (a *app) runFailback(ctx context.Context, name, from string, patience time.Duration, f bringFlags) error {
	w, err := a.open(ctx, true)
	if err != nil {
		return err
	}
	defer w.close()
	sys, err := dr.ParseSystem(name)
	if err != nil {
		return err
	}
	o, err := a.bringOptions(w, sys, f)
	if err == nil {
		o.Overrides, err = o.Overrides.WithFiles(readValue)
	}
	if err != nil {
		return err
	}
	unlock, err := w.state.Lock(sys)
	if err != nil {
		return err
	}
	defer unlock()
	if err := a.sweep(ctx, w); err != nil {
		return err
	}
	giver, err := a.otherSide(ctx, w, sys, from)
	if err != nil {
		return err
	}
	if giver == nil && !f.dryRun {
		a.UI().Note("waiting for the other side; run there: lifeboat switchover %s --to %s", sys, w.site)
	}
	res, err := recovery.Failback(ctx, w.recoverDeps(a), recovery.FailbackOptions{
		Options: o, DryRun: f.dryRun, Confirm: a.confirmPlan(ctx), Giver: giver, Patience: patience,
	})
	ans, views := a.bringAnswer(w, sys, res, f.dryRun)
	return a.answerBring(ans, views, a.explainBring("failback", name, res, err))
}

// otherSide gives what runs the giving side at the engine of the site that
// holds the system, nil if that engine is not known here.
func (a *app) otherSide(ctx context.Context, w *world, sys dr.System, from string) (func(context.Context) error, error) {
	claims, err := w.ledger.Claims(ctx, sys)
	if err != nil || len(claims) == 0 {
		return nil, err
	}
	holder := claims[len(claims)-1]
	if from == "" {
		if s, ok := w.cfg.Sites[holder.Site]; ok {
			from = s.Engine
		}
	}
	if from == "" {
		return nil, nil
	}
	if err := config.CheckEngine(from); err != nil {
		return nil, fmt.Errorf("--from: %w", err)
	}
	// Looked at before anything is asked or recorded: an address that leads
	// nowhere must not begin a move.
	if err := reachEngine(ctx, from, a.Log()); err != nil {
		return nil, ui.Explained{
			What:  fmt.Sprintf("the engine of site %s (%s) does not answer: %v", holder.Site, from, err),
			State: "nothing was done",
			Next: []string{
				"mend --from or sites." + string(holder.Site) + ".engine in " + a.ConfigPath(),
				fmt.Sprintf("or run there: lifeboat switchover %s --to %s, and here the same command without --from", sys, w.site),
			},
			Err: err,
		}
	}
	bundle, err := a.bundle(ctx, w)
	if err != nil {
		return nil, err
	}
	bundle.env = map[string]string{config.EnvStateDir: holder.StateDir, config.EnvConfig: holder.Config}
	return func(ctx context.Context) error {
		e, err := engine.Open(ctx, engine.Options{Host: from, Log: a.Log()})
		if err != nil {
			return err
		}
		defer e.Close()
		return a.helperRun(ctx, e, []string{"switchover", string(sys), "--to", string(w.site), "--yes", "--quiet"}, bundle)
	}, nil
}

// reachEngine asks an engine for its version.
func reachEngine(ctx context.Context, host string, log *slog.Logger) error {
	e, err := engine.Open(ctx, engine.Options{Host: host, Log: log})
	if err != nil {
		return err
	}
	_, err = e.Info(ctx)
	return errors.Join(err, e.Close())
}

func newSwitchoverCmd(a *app) *cobra.Command {
	var to string
	var takeBack bool
	var patience time.Duration
	cmd := &cobra.Command{
		Use:     "switchover SYSTEM --to SITE",
		GroupID: groupRecover,
		Short:   "Hand a system over to another site, nothing lost",
		Long: `Hand a system that runs here over to another site: the giving side of a
failback. It waits until that site asks (lifeboat failback SYSTEM, run there),
snapshots while the system serves, then stops the system and snapshots the last
difference. Once the other site holds the epoch the system stays stopped here;
if it does not become healthy there, it starts again here.

--take-back ends a move whose other side is silent: this site claims the next
epoch, which makes the other side's commit impossible, and starts the system.`,
		Example: `  lifeboat switchover shop --to main
  lifeboat switchover shop --take-back`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeSystems,
		RunE: func(cmd *cobra.Command, args []string) error {
			if to == "" && !takeBack {
				return fmt.Errorf("name the site that takes the system over with --to: %w", dr.ErrUsage)
			}
			if code, helped, err := a.viaHelper(cmd.Context()); helped {
				return helperResult(code, err)
			}
			return a.runSwitchover(cmd.Context(), args[0], dr.Site(to), takeBack, patience)
		},
	}
	cmd.Flags().StringVar(&to, "to", "", "`SITE` that takes the system over")
	complete(cmd, map[string]completer{"to": a.completeSites})
	cmd.Flags().BoolVar(&takeBack, "take-back", false, "end a move whose other side is silent; the system starts here again")
	cmd.Flags().DurationVar(&patience, "patience", recovery.DefaultPatience, "how long to wait for the other side's next word")
	return cmd
}

func (a *app) runSwitchover(ctx context.Context, name string, to dr.Site, takeBack bool, patience time.Duration) error {
	sys, err := dr.ParseSystem(name)
	if err != nil {
		return err
	}
	w, err := a.open(ctx, true)
	if err != nil {
		return err
	}
	defer w.close()
	if to == w.site {
		return ui.Explained{
			What:  fmt.Sprintf("this is site %s: a system cannot be handed over to the site that it is at", w.site),
			State: "nothing was done",
			Next:  []string{fmt.Sprintf("at the site that takes it over: lifeboat failback %s; here: lifeboat switchover %s --to THAT-SITE", sys, sys)},
			Err:   dr.ErrUsage,
		}
	}
	unlock, err := w.state.Lock(sys)
	if err != nil {
		return err
	}
	defer unlock()
	if err := a.sweep(ctx, w); err != nil {
		return err
	}
	sel, exclude, err := a.systemHere(w, sys)
	if err != nil {
		return err
	}
	o, err := a.bringOptions(w, sys, bringFlags{wait: recovery.DefaultHealthWait})
	if err != nil {
		return err
	}
	p := &captureProgress{ui: a.UI(), name: name}
	res, err := recovery.HandOver(ctx, w.recoverDeps(a), recovery.HandOverOptions{
		Options: o, Selector: sel, Exclude: excludes(exclude), To: to, Patience: patience, TakeBack: takeBack, Capture: p,
	})
	p.end(err)
	if err != nil && !errors.Is(err, dr.ErrPartial) {
		return err
	}
	text := fmt.Sprintf("system %s is handed over to site %s, which holds epoch %d; it stays stopped here", sys, to, res.Epoch)
	if res.Outcome == fence.ActCalledOff {
		text = fmt.Sprintf("system %s goes on here", sys)
	}
	return errors.Join(err, a.UI().Answer(struct {
		System dr.System `json:"system"`
		*recovery.HandOverResult
	}{sys, res}, ui.Text(text)))
}

// systemHere says which containers make a system at this site: those that the
// configuration declares, else those that were brought up here.
func (a *app) systemHere(w *world, sys dr.System) (engine.Selector, []config.Exclude, error) {
	if s, ok := w.cfg.Systems[sys]; ok {
		return a.selector(w, s), s.Exclude, nil
	}
	b, err := w.state.Bringup(sys)
	if err != nil {
		return engine.Selector{}, nil, err
	}
	if b == nil || len(b.Containers) == 0 {
		_, err := w.cfg.System(sys)
		return engine.Selector{}, nil, err
	}
	sel := engine.Selector{Reserved: reserved(w.src.url)}
	for name := range b.Containers {
		sel.Containers = append(sel.Containers, name)
	}
	return sel, nil, nil
}

var _ capture.Progress = (*captureProgress)(nil)
