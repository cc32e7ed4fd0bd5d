package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"lifeboat/internal/config"
	"lifeboat/internal/dr"
	"lifeboat/internal/override"
	"lifeboat/internal/plan"
	recovery "lifeboat/internal/recover"
	"lifeboat/internal/ui"
)

// errStep marks a step that failed in the progress; the error itself is told
// at the end.
var errStep = errors.New("failed")

// bringFlags are what failover, failback and recover have in common.
type bringFlags struct {
	overrides []string
	dryRun    bool
	wait      time.Duration
}

func (f *bringFlags) add(a *app, cmd *cobra.Command) {
	cmd.Flags().StringArrayVar(&f.overrides, "override", nil, "change for this site, `KEY=VALUE` as under overrides: in the configuration; environment.CONTAINER.NAME=@/FILE takes the value from a file (repeatable)")
	cmd.Flags().BoolVar(&f.dryRun, "dry-run", false, "show the plan and change nothing")
	complete(cmd, map[string]completer{"override": a.completeOverride})
	cmd.Flags().DurationVar(&f.wait, "wait", recovery.DefaultHealthWait, "how long to wait for each container to become healthy")
}

func newFailoverCmd(a *app) *cobra.Command {
	var f bringFlags
	var snapshot string
	var degraded bool
	cmd := &cobra.Command{
		Use:     "failover SYSTEM",
		GroupID: groupRecover,
		Short:   "Bring a system up here because its active site is lost",
		Long: `Bring a system up here because its active site is lost: from its newest
snapshot, or the one named. Shows how old the data is and what would be done;
anything in the way is found before anything is changed, with the override that
solves it. Killed at any point, the same command goes on where it was.

From then on this site holds the system's epoch: the former one, should it come
back, is told that it is stale.

--degraded is for an engine whose host cannot be reached and that allows no
helper container: trees go through the engine's archive API, where nothing of
the system exists yet. What that does not keep is named, the exit code is 3.`,
		Example: `  lifeboat failover shop --dry-run
  lifeboat failover shop
  lifeboat failover shop --snapshot 5f0c12ab --override ports.8080=18080`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if !degraded {
				if code, helped, err := a.viaHelper(cmd.Context()); helped {
					return helperResult(code, err)
				}
			}
			w, err := a.open(cmd.Context(), true)
			if err != nil {
				return err
			}
			defer w.close()
			w.degraded = a.degrade(w, degraded)
			ans, views, err := a.failover(cmd.Context(), w, args[0], snapshot, f)
			return a.answerBring(ans, views, err)
		},
	}
	f.add(a, cmd)
	cmd.ValidArgsFunction = a.completeStored
	cmd.Flags().StringVar(&snapshot, "snapshot", "", "snapshot `ID` (or #number) instead of the newest")
	complete(cmd, map[string]completer{"snapshot": a.completeSnapshot})
	cmd.Flags().BoolVar(&degraded, "degraded", false, "write through the engine's archive API where nothing else is possible")
	return cmd
}

// bringAnswer is the JSON answer of failover and failback; its keys are a contract.
type bringAnswer struct {
	System       dr.System            `json:"system"`
	Snapshot     *dr.SnapshotID       `json:"snapshot,omitempty"`
	Epoch        dr.Epoch             `json:"epoch"`
	DataAgeS     int64                `json:"data_age_s"`
	RTOMS        int64                `json:"rto_ms"`
	BytesFetched int64                `json:"bytes_fetched"`
	BytesIn      int64                `json:"bytes_received"`
	BytesOut     int64                `json:"bytes_sent"`
	Divergent    *dr.SnapshotID       `json:"divergent,omitempty"`
	DryRun       bool                 `json:"dry_run"`
	Steps        []plan.Report        `json:"steps"`
	Ports        []recovery.Published `json:"ports"`
	Plan         *recovery.Plan       `json:"plan,omitempty"`
	// FirstBegan is set where this run continued an earlier one.
	FirstBegan *time.Time `json:"first_began,omitempty"`
	// DownMS is how long the service did not answer in a planned move; absent
	// where it is not known.
	DownMS *int64 `json:"down_ms,omitempty"`
	// NotKept is what the degraded mode could not lay down.
	NotKept []dr.CoverageItem `json:"not_kept,omitempty"`
}

// answerBring gives the answer also where the work failed half way: the steps
// say how far it came.
func (a *app) answerBring(ans *bringAnswer, views []ui.View, err error) error {
	if ans == nil {
		return err
	}
	return errors.Join(err, a.UI().Answer(ans, views...))
}

func (a *app) bringOptions(w *world, name dr.System, f bringFlags) (recovery.Options, error) {
	o := recovery.Options{
		System: name, Site: w.site, HealthWait: f.wait, FreezeMax: w.cfg.FreezeMax, SecureBytes: w.cfg.SecureBuffer,
		Progress: &recoverProgress{ui: a.UI()}, Degraded: w.degraded,
	}
	if sys, ok := w.cfg.Systems[name]; ok {
		o.Overrides = sys.Overrides
	}
	var given override.Set
	for _, pair := range f.overrides {
		if err := given.ParsePair(pair); err != nil {
			return o, err
		}
	}
	o.Overrides = o.Overrides.Merge(given)
	return o, nil
}

// readValue reads the value of an environment variable from its file, without
// the line end that editors put there.
func readValue(path string) (string, error) {
	secret, err := config.ReadSecretFile(path)
	if err != nil {
		return "", err
	}
	return strings.TrimSuffix(strings.TrimSuffix(string(secret), "\n"), "\r"), nil
}

func (w *world) recoverDeps(a *app) recovery.Deps {
	return recovery.Deps{Engine: w.engine, Repo: w.repo, Ledger: w.ledger, State: w.state, Log: a.Log()}
}

func (a *app) failover(ctx context.Context, w *world, name, snapshot string, f bringFlags) (*bringAnswer, []ui.View, error) {
	sys, err := dr.ParseSystem(name)
	if err != nil {
		return nil, nil, err
	}
	o, err := a.bringOptions(w, sys, f)
	if err == nil {
		o.Overrides, err = o.Overrides.WithFiles(readValue)
	}
	if err != nil {
		return nil, nil, err
	}
	unlock, err := w.state.Lock(sys)
	if err != nil {
		return nil, nil, err
	}
	defer unlock()
	if err := a.sweep(ctx, w); err != nil {
		return nil, nil, err
	}
	living, err := w.living(ctx, sys)
	if err != nil {
		return nil, nil, err
	}
	confirm := a.confirmPlan(ctx)
	res, err := recovery.Failover(ctx, w.recoverDeps(a), recovery.FailoverOptions{
		Options: o, Snapshot: snapshot, DryRun: f.dryRun, Confirm: func(p *recovery.Plan) error {
			p.Notes = append(p.Notes, living...)
			return confirm(p)
		},
	})
	if f.dryRun && res != nil && res.Plan != nil {
		res.Plan.Notes = append(res.Plan.Notes, living...)
	}
	ans, views := a.bringAnswer(w, sys, res, f.dryRun)
	if err == nil && w.degraded && !f.dryRun {
		return ans, append(views, notKept(ans.NotKept)), errDegradedFailover()
	}
	return ans, views, a.explainBring("failover", name, res, err)
}

// living says what to do instead if the site that holds the system still
// serves it; nothing where nobody else holds it.
func (w *world) living(ctx context.Context, sys dr.System) ([]string, error) {
	claims, err := w.ledger.Claims(ctx, sys)
	if err != nil || len(claims) == 0 {
		return nil, err
	}
	holder := claims[len(claims)-1]
	if holder.Host == w.repo.HostID() {
		return nil, nil
	}
	return []string{fmt.Sprintf("site %s holds this system. If it still serves, move the system instead, which loses nothing: lifeboat failback %s here, and at %s lifeboat switchover %s --to %s",
		holder.Site, sys, holder.Site, sys, w.site)}, nil
}

func notKept(items []dr.CoverageItem) ui.View {
	t := ui.Table{Title: "not kept", Columns: []ui.Column{{Title: "object"}, {Title: "what is not here", Elastic: true}}}
	for _, c := range items {
		t.Rows = append(t.Rows, []string{c.Object, c.Reason})
	}
	return t
}

// errDegradedFailover ends a failover that could not keep all of the snapshot.
func errDegradedFailover() error {
	return ui.Explained{
		What:  "brought up in degraded mode: the list above, not_kept in JSON, says what of the snapshot is not here",
		State: "the system runs here and this site holds its epoch; the snapshot still has everything that was captured",
		Next:  []string{"look whether the system can do without what is missing"},
		Err:   dr.ErrPartial,
	}
}

// confirmPlan shows the plan and asks only where something that exists here is
// stopped or rewritten: on an empty stand-in nothing can be lost.
func (a *app) confirmPlan(ctx context.Context) func(*recovery.Plan) error {
	return func(p *recovery.Plan) error {
		a.UI().Show(planViews(p)...)
		if !p.Touches {
			return nil
		}
		return a.UI().Confirm(ctx, "Stop and rewrite what exists here of system "+string(p.System)+"? What no snapshot has is kept first.")
	}
}

func (a *app) bringAnswer(w *world, sys dr.System, res *recovery.Result, dryRun bool) (*bringAnswer, []ui.View) {
	if res == nil || res.Plan == nil {
		return nil, nil
	}
	ans := &bringAnswer{
		System: sys, Epoch: res.Epoch, DataAgeS: int64(res.DataAge.Seconds()), RTOMS: res.RTO.Milliseconds(), BytesFetched: res.Fetched,
		BytesIn: w.meter.Received(), BytesOut: w.meter.Sent(), DryRun: dryRun, Steps: res.Steps, Ports: res.Ports, Plan: res.Plan,
		NotKept: res.NotKept,
	}
	if ans.Steps == nil {
		ans.Steps = []plan.Report{}
	}
	if ans.Ports == nil {
		ans.Ports = []recovery.Published{}
	}
	if res.Snapshot != nil {
		ans.Snapshot = &res.Snapshot.ID
	}
	if res.Kept != nil {
		ans.Divergent = &res.Kept.ID
	}
	if !res.Since.IsZero() {
		ans.FirstBegan = &res.Since
	}
	if res.Down >= 0 && len(res.Steps) > 0 {
		down := res.Down.Milliseconds()
		ans.DownMS = &down
	}
	if len(res.Steps) == 0 {
		return ans, planViews(res.Plan)
	}
	return ans, resultViews(ans)
}

func (a *app) explainBring(command, name string, res *recovery.Result, err error) error {
	var conflicts recovery.Conflicts
	again := a.again(name)
	switch {
	case err == nil:
		return nil
	case errors.As(err, &conflicts):
		x := ui.Explained{What: err.Error(), State: "nothing was changed", Next: a.solutions(name, conflicts), Err: err}
		if res != nil && res.Plan != nil && len(res.Plan.Conflicts) > 0 {
			// The plan's table has told which.
			x.What = fmt.Sprintf("%d thing(s) stand in the way here", len(conflicts))
		}
		return x
	case errors.Is(err, recovery.ErrUnhealthy) && command == "failover":
		return ui.Explained{
			What: err.Error(), State: "everything is in place and this site holds the epoch; the containers are left as they are",
			Next: []string{"mend what its log says, then: " + again}, Err: err,
		}
	case errors.Is(err, dr.ErrOutcomeUnknown) && command == "failback" && !errors.Is(err, context.Canceled):
		return ui.Explained{What: err.Error(), State: "each site stays as it is", Next: []string{again + "  (goes on where it was)"}, Err: err}
	case errors.Is(err, dr.ErrFenced), errors.Is(err, dr.ErrNotFound), errors.Is(err, dr.ErrUsage), errors.Is(err, dr.ErrHeld), errors.Is(err, ui.ErrDeclined):
		return err
	}
	return ui.Explained{What: err.Error(), State: "it stopped at this step; what was done before stays done", Next: []string{again + "  (goes on where it was)"}, Err: err}
}
