package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"lifeboat/internal/dr"
	"lifeboat/internal/override"
	"lifeboat/internal/plan"
	"lifeboat/internal/quantity"
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

func (f *bringFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringArrayVar(&f.overrides, "override", nil, "change for this site, `KEY=VALUE` as under overrides: in the configuration (repeatable)")
	cmd.Flags().BoolVar(&f.dryRun, "dry-run", false, "show the plan and change nothing")
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
	f.add(cmd)
	cmd.Flags().StringVar(&snapshot, "snapshot", "", "snapshot `ID` (or #number) instead of the newest")
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

func (w *world) recoverDeps(a *app) recovery.Deps {
	return recovery.Deps{Engine: w.engine, Repo: w.repo, Ledger: w.ledger, State: w.state, Log: a.Log()}
}

func (a *app) failover(ctx context.Context, w *world, name, snapshot string, f bringFlags) (*bringAnswer, []ui.View, error) {
	sys, err := dr.ParseSystem(name)
	if err != nil {
		return nil, nil, err
	}
	o, err := a.bringOptions(w, sys, f)
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
	res, err := recovery.Failover(ctx, w.recoverDeps(a), recovery.FailoverOptions{
		Options: o, Snapshot: snapshot, DryRun: f.dryRun, Confirm: a.confirmPlan(ctx),
	})
	ans, views := a.bringAnswer(w, sys, res, f.dryRun)
	if err == nil && w.degraded && !f.dryRun {
		return ans, append(views, notKept(ans.NotKept)), errDegradedFailover()
	}
	return ans, views, explainBring("failover", name, err)
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
	if len(res.Steps) == 0 {
		return ans, planViews(res.Plan)
	}
	return ans, resultViews(ans)
}

func planViews(p *recovery.Plan) []ui.View {
	age := quantity.Duration(time.Duration(p.DataAgeS) * time.Second)
	if p.Move {
		age += ": the plan is made with it; what was written since comes along"
	} else {
		age += ": what was written after that is not in it"
	}
	views := []ui.View{ui.Fields{
		{Name: "system", Value: string(p.System)},
		{Name: "snapshot", Value: p.Snapshot.Short() + " of " + p.Created},
		{Name: "data age", Value: age},
	}}
	t := ui.Table{Title: "plan", Columns: []ui.Column{{Title: "object"}, {Title: "action"}, {Title: "size", Right: true}}}
	for _, im := range p.Images {
		action := "fetch"
		if im.Here {
			action = "is here"
		}
		t.Rows = append(t.Rows, []string{"image " + im.Name, action, bytesText(im.Bytes)})
	}
	for _, o := range p.Objects {
		size := ""
		if o.Bytes > 0 {
			size = bytesText(o.Bytes)
		}
		t.Rows = append(t.Rows, []string{o.Object, o.Action, size})
	}
	views = append(views, t)
	if len(p.Changes) > 0 {
		c := ui.Table{Title: "overrides of this site", Columns: []ui.Column{{Title: "object"}, {Title: "what"}, {Title: "from", Elastic: true}, {Title: "to", Elastic: true}}}
		for _, x := range p.Changes {
			c.Rows = append(c.Rows, []string{x.Object, x.Field, x.From, x.To})
		}
		views = append(views, c)
	}
	if len(p.Conflicts) > 0 {
		c := ui.Table{Title: "in the way", Columns: []ui.Column{{Title: "object"}, {Title: "because", Elastic: true}, {Title: "solved by"}}}
		for _, x := range p.Conflicts {
			c.Rows = append(c.Rows, []string{x.Object, x.With, x.Solve})
		}
		views = append(views, c)
	}
	for _, n := range p.Notes {
		views = append(views, ui.Text("note: "+n))
	}
	return views
}

func resultViews(ans *bringAnswer) []ui.View {
	steps := ui.Steps{Title: "steps"}
	for _, r := range ans.Steps {
		state := ui.StepState(r.State)
		steps.Steps = append(steps.Steps, ui.Step{Title: r.Title, State: state, Detail: r.Error, TookMS: r.ElapsedMS})
	}
	fields := ui.Fields{
		{Name: "system", Value: string(ans.System)},
		{Name: "epoch", Value: fmt.Sprint(ans.Epoch)},
		{Name: "data age", Value: quantity.Duration(time.Duration(ans.DataAgeS) * time.Second)},
		{Name: "time to serve", Value: quantity.Duration(time.Duration(ans.RTOMS) * time.Millisecond)},
		{Name: "fetched", Value: bytesText(ans.BytesFetched)},
	}
	if ans.Snapshot != nil {
		fields = append(fields, ui.Field{Name: "snapshot", Value: ans.Snapshot.Short()})
	}
	if ans.Divergent != nil {
		fields = append(fields, ui.Field{Name: "kept", Value: "divergent snapshot " + ans.Divergent.Short() + " of what this site held"})
	}
	views := []ui.View{steps, fields}
	if len(ans.Ports) > 0 {
		t := ui.Table{Title: "serves at", Columns: []ui.Column{{Title: "container"}, {Title: "port"}, {Title: "here"}}}
		for _, p := range ans.Ports {
			t.Rows = append(t.Rows, []string{p.Container, p.Port, p.Host})
		}
		views = append(views, t, ui.Text("what remains: point DNS or the load balancer here; protect the system here (lifeboat protect)"))
	}
	return views
}

func explainBring(command, name string, err error) error {
	var conflicts recovery.Conflicts
	again := "lifeboat " + command + " " + name
	switch {
	case err == nil:
		return nil
	case errors.As(err, &conflicts):
		var next []string
		for _, c := range conflicts {
			next = append(next, c.Object+": "+c.Solve)
		}
		return ui.Explained{What: err.Error(), State: "nothing was changed", Next: next, Err: err}
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
