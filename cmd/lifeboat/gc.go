package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"

	"lifeboat/internal/dr"
	"lifeboat/internal/quantity"
	"lifeboat/internal/repo"
	"lifeboat/internal/store"
	"lifeboat/internal/ui"
)

func newGCCmd(a *app) *cobra.Command {
	var o repo.CollectOptions
	cmd := &cobra.Command{
		Use:     "gc",
		GroupID: groupCare,
		Short:   "Take back the space of packs that no snapshot needs",
		Long: `Take back the space of packs that no snapshot needs. Snapshots may be taken at the
same time. A pack goes once this host has seen for the grace time that nothing
needs it: a snapshot in progress stores packs that nothing names yet. So the
first run removes nothing; run it regularly, at one host.

It removes the manifests of packs; the registry removes the packs. Lifeboat's own
does so by itself within the hour; of others docs/registries.md tells what they
need. What a tag lists stays, also if the tag does not verify.

The login needs the access role operator.`,
		Example: `  lifeboat gc --dry-run
  lifeboat gc
  lifeboat forget && lifeboat gc --quiet`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.Grace < 0 {
				return fmt.Errorf("--grace: %s is negative: %w", o.Grace, dr.ErrUsage)
			}
			return a.runGC(cmd.Context(), o)
		},
	}
	cmd.Flags().DurationVar(&o.Grace, "grace", repo.DefaultGrace, "how long packs must have been seen unneeded; longer than the longest snapshot takes")
	cmd.Flags().BoolVarP(&o.DryRun, "dry-run", "n", false, "show what would be removed, and remove nothing")
	return cmd
}

// gcAnswer is the answer of gc. Bytes are those that only manifests of that
// state name.
type gcAnswer struct {
	DryRun bool `json:"dry_run"`
	// Needed counts pack manifests that snapshots need, Retagged those that had
	// lost their tag.
	Needed    int              `json:"needed"`
	Retagged  int              `json:"retagged"`
	Manifests []gcRow          `json:"manifests"`
	Bytes     map[string]int64 `json:"bytes"`
	Problems  []string         `json:"problems"`
	// Reclaims: the registry takes the bytes back by itself.
	Reclaims bool `json:"registry_reclaims"`
}

type gcRow struct {
	Manifest digest.Digest     `json:"manifest"`
	State    repo.CollectState `json:"state"`
	Since    time.Time         `json:"unneeded_since"`
	Packs    int               `json:"packs"`
	Bytes    int64             `json:"bytes"`
}

func (a *app) runGC(ctx context.Context, o repo.CollectOptions) error {
	w, err := a.open(ctx, false)
	if err != nil {
		return err
	}
	defer w.close()
	c, err := w.repo.Collect(ctx, o)
	if err != nil {
		return a.explainGC(w, err)
	}
	ans := gcAnswer{
		DryRun: o.DryRun, Needed: c.Needed, Retagged: c.Retagged, Manifests: []gcRow{}, Bytes: map[string]int64{}, Problems: []string{}, Reclaims: c.Checked,
	}
	for _, r := range c.Rows {
		ans.Manifests = append(ans.Manifests, gcRow{r.Manifest, r.State, r.Since, r.Packs, r.Bytes})
		ans.Bytes[string(r.State)] += r.Bytes
	}
	damaged := 0
	for _, p := range c.Problems {
		ans.Problems = append(ans.Problems, p.String())
		a.UI().Warn("does not verify, and keeps what it lists: %s", p.String())
		if !p.Foreign() {
			damaged++
		}
	}
	if err := a.UI().Answer(ans, gcView(c, o)); err != nil {
		return err
	}
	if damaged > 0 {
		return fmt.Errorf("%d thing(s) of the repository are damaged or gone; what they list was kept: %w", damaged, dr.ErrPartial)
	}
	return nil
}

func (a *app) explainGC(w *world, err error) error {
	const state = "every snapshot is whole; what was removed is needed by none"
	if errors.Is(err, store.ErrUnsupported) {
		return ui.Explained{What: err.Error(), State: state, Next: []string{"keep the repository at a registry that deletes tags (docs/registries.md)"}, Err: err}
	}
	if errors.Is(err, store.ErrForbidden) {
		return ui.Explained{What: err.Error(), State: state, Next: []string{"run it with the login of an operator: a writer's cannot delete"}, Err: err}
	}
	return a.explainRegistry(w.src, state, err)
}

func gcView(c *repo.Collection, o repo.CollectOptions) ui.View {
	t := ui.Table{Columns: []ui.Column{{Title: "pack manifests"}, {Title: "number", Right: true}, {Title: "bytes", Right: true}, {Title: "remark", Elastic: true}}}
	row := func(what string, s repo.CollectState, remark string) {
		if n, size := c.Freed(s); n > 0 {
			t.Rows = append(t.Rows, []string{what, fmt.Sprint(n), bytesText(size), remark})
		}
	}
	t.Rows = append(t.Rows, []string{"needed", fmt.Sprint(c.Needed), "", "by snapshots"})
	reclaim := "the registry removes their packs within the hour"
	if !c.Checked {
		reclaim = "their packs go with the registry's own collector (docs/registries.md)"
	}
	row("removed", repo.CollectRemoved, reclaim)
	row("would go", repo.CollectDue, reclaim)
	row("untagged", repo.CollectUntagged, "a run in "+quantity.Duration(repo.UncheckedWait)+" or later removes them")
	row("young", repo.CollectYoung, "unneeded for less than "+quantity.Duration(o.Grace)+", or seen so for the first time")
	row("needed again", repo.CollectNeeded, "by a snapshot that was committed meanwhile")
	return t
}
