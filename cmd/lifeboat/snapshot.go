package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"lifeboat/internal/capture"
	"lifeboat/internal/config"
	"lifeboat/internal/dr"
	"lifeboat/internal/engine"
	"lifeboat/internal/freeze"
	"lifeboat/internal/quantity"
	"lifeboat/internal/ui"
)

func newSnapshotCmd(a *app) *cobra.Command {
	var all, divergent, degraded, adopt bool
	cmd := &cobra.Command{
		Use:     "snapshot SYSTEM",
		GroupID: groupProtect,
		Short:   "Take a snapshot of a system, or of all with --all",
		Long: `Take a snapshot of a system: images, writable layers, volumes, bind mounts,
networks, configuration, all of one instant. The system runs on; it is frozen
only while what changed since the pre-copy is secured, at most freeze_max.

If this site does not hold the system's epoch (a failover happened elsewhere)
nothing is done and the exit code is 13. --divergent keeps what this site holds
all the same, off the system's line of snapshots. --adopt is for a host whose
Lifeboat was installed anew while its engine and data stayed: it goes on as the
holder that it was.

Where something of the snapshot before is not here any more (a container was
removed, say), it is named and the exit code is 3.

Where a restore into a directory of the system was cut off, that is a mixture of two
states: it is captured as it is, without the mark, it is named, and the exit code is 3.

Where the registry has shown an older state of the system's snapshots than this
host has seen, the snapshot takes place, under a number that nothing had; the
exit code is 3, each time, until what was missing is there again or the older
state is accepted (--accept-older).

--degraded is for an engine whose host cannot be reached and that allows no
helper container: all is read through the engine's archive API. That loses some
of the metadata, which the coverage report names; the exit code is then 3.`,
		Example: `  lifeboat snapshot shop
  lifeboat snapshot --all
  lifeboat snapshot shop --json | jq .bytes_sent`,
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: a.completeSystems,
		RunE: func(cmd *cobra.Command, args []string) error {
			kind := dr.KindCurrent
			if divergent {
				kind = dr.KindDivergent
			}
			how := snapshotHow{kind: kind, degraded: degraded, adopt: adopt}
			if adopt && (all || divergent) {
				return fmt.Errorf("--adopt is for one system and its line of snapshots: %w", dr.ErrUsage)
			}
			if all == (len(args) == 1) {
				return fmt.Errorf("name one system, or pass --all: %w", dr.ErrUsage)
			}
			if !degraded {
				if code, helped, err := a.viaHelper(cmd.Context()); helped {
					return helperResult(code, err)
				}
			}
			if all {
				return a.snapshotAll(cmd.Context(), how)
			}
			return a.snapshotOne(cmd.Context(), args[0], how)
		},
	}
	cmd.Flags().BoolVar(&all, "all", false, "every system of the configuration, one after the other")
	cmd.Flags().BoolVar(&divergent, "divergent", false, "keep what this site holds, off the line of snapshots")
	cmd.Flags().BoolVar(&adopt, "adopt", false, "go on as the holder that this host was before Lifeboat was installed anew on it")
	cmd.Flags().BoolVar(&degraded, "degraded", false, "read through the engine's archive API where nothing else is possible")
	return cmd
}

// snapshotAnswer is the JSON answer of snapshot; its keys are a contract.
type snapshotAnswer struct {
	Snapshot     dr.SnapshotID     `json:"snapshot"`
	System       dr.System         `json:"system"`
	Number       dr.Number         `json:"number"`
	Epoch        dr.Epoch          `json:"epoch"`
	Kind         dr.Kind           `json:"kind"`
	Created      time.Time         `json:"created"`
	Consistency  dr.Consistency    `json:"consistency"`
	BytesScanned int64             `json:"bytes_scanned"`
	BytesNew     int64             `json:"bytes_new"`
	BytesSent    int64             `json:"bytes_sent"`
	FreezeMS     float64           `json:"freeze_ms"`
	ElapsedMS    int64             `json:"elapsed_ms"`
	Coverage     []dr.CoverageItem `json:"coverage"`
	// Missing are objects that the snapshot before has and this one has not.
	Missing []string `json:"missing"`
	// HalfRestored are directories into which a restore was cut off.
	HalfRestored []capture.HalfRestored `json:"half_restored"`
	// Problems say how the registry was set back, as long as nobody accepted that.
	Problems []string `json:"problems"`

	half error // what HalfRestored means, with what to do
}

// shortcoming is why a snapshot that was taken is not all that it should be, nil for
// nothing.
func (s *snapshotAnswer) shortcoming() error {
	var errs []error
	if len(s.Problems) > 0 {
		errs = append(errs, errSetBack(s.System, s.Problems, fmt.Sprintf("the snapshot is stored as number %d, with a number that nothing had; older ones are missing", s.Number)))
	}
	if len(s.Missing) > 0 {
		errs = append(errs, errMissing(s))
	}
	if s.half != nil {
		errs = append(errs, s.half)
	}
	return joined(errs)
}

// joined is errors.Join that leaves one error as it is.
func joined(errs []error) error {
	if len(errs) == 1 {
		return errs[0]
	}
	return errors.Join(errs...)
}

// snapshotHow is what the flags of snapshot say.
type snapshotHow struct {
	kind            dr.Kind
	degraded, adopt bool
}

func (a *app) snapshotOne(ctx context.Context, name string, how snapshotHow) error {
	w, err := a.open(ctx, true)
	if err != nil {
		return err
	}
	defer w.close()
	w.degraded = a.degrade(w, how.degraded)
	ans, err := a.takeSnapshot(ctx, w, name, how)
	if err != nil {
		return err
	}
	if err := a.UI().Answer(ans, snapshotView(ans), coverageGaps(ans.Coverage)); err != nil {
		return err
	}
	if err := ans.shortcoming(); err != nil {
		return err
	}
	if w.degraded {
		return errDegradedSnapshot()
	}
	return nil
}

// errMissing ends a command whose snapshot has less than the one before.
func errMissing(s *snapshotAnswer) error {
	return ui.Explained{
		What:  fmt.Sprintf("system %s has less than in its snapshot before; not here any more: %s", s.System, strings.Join(s.Missing, ", ")),
		State: "the snapshot is stored as the newest, the one before stays",
		Next: []string{
			"nothing, if that was meant: the next snapshot is compared with this one",
			fmt.Sprintf("lifeboat failover %s --snapshot '#%d'  (to bring the one before up)", s.System, s.Number-1),
		},
		Err: dr.ErrPartial,
	}
}

// errDegradedSnapshot ends a command whose snapshots keep less than usual.
func errDegradedSnapshot() error {
	return ui.Explained{
		What:  "taken in degraded mode: the coverage report says what is not kept",
		State: "the snapshot is stored, the system runs",
		Next:  []string{"run as root on the engine's host, or allow the helper container, for snapshots that keep everything"},
		Err:   dr.ErrPartial,
	}
}

func (a *app) snapshotAll(ctx context.Context, how snapshotHow) error {
	w, err := a.open(ctx, true)
	if err != nil {
		return err
	}
	defer w.close()
	w.degraded = a.degrade(w, how.degraded)
	if len(w.cfg.Systems) == 0 {
		return ui.Explained{What: "no system is protected here", State: "nothing was done", Next: []string{"lifeboat protect SYSTEM --project PROJECT"}, Err: dr.ErrNotFound}
	}
	type failed struct {
		System dr.System `json:"system"`
		Error  string    `json:"error"`
	}
	ans := struct {
		Snapshots []snapshotAnswer `json:"snapshots"`
		Failed    []failed         `json:"failed"`
	}{[]snapshotAnswer{}, []failed{}}
	var views []ui.View
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(w.cfg.Systems)) {
		one, err := a.takeSnapshot(ctx, w, string(name), how)
		if err != nil {
			ans.Failed = append(ans.Failed, failed{name, err.Error()})
			errs = append(errs, fmt.Errorf("system %s: %w", name, err))
			if ctx.Err() != nil {
				break
			}
			continue
		}
		ans.Snapshots = append(ans.Snapshots, *one)
		views = append(views, snapshotView(one))
		if err := one.shortcoming(); err != nil {
			errs = append(errs, err)
		}
	}
	if err := a.UI().Answer(ans, views...); err != nil {
		return err
	}
	switch {
	case len(errs) > 0 && len(ans.Snapshots) > 0 && ctx.Err() == nil:
		errs = append(errs, dr.ErrPartial)
	case len(errs) == 0 && w.degraded:
		return errDegradedSnapshot()
	}
	return errors.Join(errs...)
}

// takeSnapshot is one snapshot of a configured system.
func (a *app) takeSnapshot(ctx context.Context, w *world, name string, how snapshotHow) (*snapshotAnswer, error) {
	sysName, err := dr.ParseSystem(name)
	if err != nil {
		return nil, err
	}
	sys, err := w.cfg.System(sysName)
	if err != nil {
		return nil, ui.Explained{What: err.Error(), State: "nothing was done", Next: []string{"lifeboat protect " + name + " --project PROJECT"}, Err: err}
	}
	unlock, err := w.state.Lock(sysName)
	if errors.Is(err, dr.ErrHeld) {
		return nil, ui.Explained{
			What: err.Error(), State: "nothing was done by this run; the other one goes on",
			Next: []string{"when it has ended: lifeboat snapshot " + name}, Err: err,
		}
	}
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := a.sweep(ctx, w); err != nil {
		return nil, err
	}
	before := w.meter.Sent()
	p := &captureProgress{ui: a.UI(), name: name}
	res, err := capture.Run(ctx, w.captureDeps(a), capture.Options{
		System: sysName, Site: w.site, Selector: a.selector(w, sys), Kind: how.kind, Adopt: how.adopt,
		FreezeMax: w.cfg.FreezeMax, SecureBytes: w.cfg.SecureBuffer, Exclude: excludes(sys.Exclude), Progress: p,
		Degraded: w.degraded,
	})
	p.end(err)
	if err != nil {
		return nil, explainSnapshot(name, w.degraded, err)
	}
	s := res.Snapshot
	ans := &snapshotAnswer{
		Snapshot: s.ID, System: s.System, Number: s.Number, Epoch: s.Epoch, Kind: s.Kind, Created: s.Created, Consistency: s.Consistency,
		BytesScanned: res.BytesScanned, BytesNew: res.BytesNew, BytesSent: w.meter.Sent() - before,
		FreezeMS: float64(res.Freeze.Frozen().Microseconds()) / 1000, ElapsedMS: res.Elapsed.Milliseconds(), Coverage: res.Root.Coverage,
		Missing: append([]string{}, res.Missing...), Problems: w.setBacks(ctx, sysName), HalfRestored: append([]capture.HalfRestored{}, res.HalfRestored...),
	}
	if len(ans.HalfRestored) > 0 {
		ans.half = a.errHalfRestored(ctx, w, ans)
	}
	return ans, nil
}

// excludes puts what the configuration excludes into capture's words.
func excludes(list []config.Exclude) []capture.Exclude {
	var out []capture.Exclude
	for _, x := range list {
		out = append(out, capture.Exclude{Key: string(x.Kind) + ":" + x.Name, Path: strings.TrimPrefix(x.Path, "/")})
	}
	return out
}

func (w *world) captureDeps(a *app) capture.Deps {
	return capture.Deps{Engine: w.engine, Repo: w.repo, Ledger: w.ledger, State: w.state, Log: a.Log()}
}

// selector says which containers make a system, and what they must not serve.
func (a *app) selector(w *world, sys config.System) engine.Selector {
	return engine.Selector{Project: sys.Project, Containers: sys.Containers, Reserved: reserved(w.src.url)}
}

// sweep thaws what a killed run may have left frozen (invariant 5).
func (a *app) sweep(ctx context.Context, w *world) error {
	host, err := freeze.OpenHost("/proc", "")
	if err != nil {
		return err
	}
	swept, err := freeze.Sweep(ctx, host, w.engine, w.state.Dir())
	for _, s := range swept {
		a.UI().Warn("container %s was left frozen by an earlier run and was thawed", s)
	}
	return err
}

func explainSnapshot(name string, degraded bool, err error) error {
	switch {
	case errors.Is(err, capture.ErrReinstalled):
		return ui.Explained{
			What: err.Error(), State: "no snapshot was made; what this site holds is untouched",
			Next: []string{"lifeboat snapshot " + name + " --adopt  (if Lifeboat was installed anew on this host and the system runs nowhere else)"}, Err: err,
		}
	case errors.Is(err, dr.ErrFenced):
		return ui.Explained{
			What: err.Error(), State: "no snapshot was made; what this site holds is untouched",
			Next: []string{"stop the system here, it serves stale data", "lifeboat failback " + name + "  (to bring it back here)", "lifeboat snapshot " + name + " --divergent  (to keep what this site holds)"}, Err: err,
		}
	case errors.Is(err, freeze.ErrFreezeMax), errors.Is(err, freeze.ErrFreezeBroken):
		return ui.Explained{
			What: err.Error(), State: "the system runs, no snapshot was made",
			Next: []string{"lifeboat snapshot " + name + again(degraded) + "  (again, when there is less load)", "raise freeze_max or secure_buffer in the configuration"}, Err: err,
		}
	}
	return err
}

func again(degraded bool) string {
	if degraded {
		return " --degraded"
	}
	return ""
}

func snapshotView(s *snapshotAnswer) ui.View {
	return ui.Fields{
		{Name: "snapshot", Value: fmt.Sprintf("%s  (%s #%d, epoch %d, %s)", s.Snapshot.Short(), s.System, s.Number, s.Epoch, s.Kind)},
		{Name: "of", Value: s.Created.Local().Format(time.DateTime) + ", consistency: " + string(s.Consistency)},
		{Name: "files scanned", Value: bytesText(s.BytesScanned)},
		{Name: "new", Value: bytesText(s.BytesNew)},
		{Name: "sent", Value: bytesText(s.BytesSent)},
		{Name: "frozen", Value: fmt.Sprintf("%.1f ms", s.FreezeMS)},
		{Name: "took", Value: quantity.Duration(time.Duration(s.ElapsedMS) * time.Millisecond)},
	}
}

// coverageGaps lists what was not captured whole.
func coverageGaps(items []dr.CoverageItem) ui.View {
	t := ui.Table{Title: "not captured, or not whole", Columns: []ui.Column{{Title: "object"}, {Title: "why", Elastic: true}}}
	for _, c := range items {
		if !c.Captured || c.Partial {
			t.Rows = append(t.Rows, []string{c.Object, c.Reason})
		}
	}
	if len(t.Rows) == 0 {
		return ui.Text("everything was captured")
	}
	return t
}

// reserved is the registry's address, which must not be served by what is frozen.
func reserved(raw string) []string {
	_, rest, ok := strings.Cut(raw, "://")
	if !ok {
		return nil
	}
	host, _, _ := strings.Cut(rest, "/")
	if _, after, ok := strings.Cut(host, "@"); ok {
		host = after
	}
	if !strings.Contains(host, ":") {
		host += ":443"
	}
	return []string{host}
}
