package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
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
	var unused, repack string
	cmd := &cobra.Command{
		Use:     "gc",
		GroupID: groupCare,
		Short:   "Take back the space of packs that no snapshot needs",
		Long: `Take back the space of packs that no snapshot needs. Snapshots may be taken at the
same time. A pack goes once this host has seen for the grace time that nothing
needs it: a snapshot in progress stores packs that nothing names yet. So the
first run removes nothing; run it regularly, at one host.

Packs of which snapshots use only a part are rewritten, those with the most
waste first, until no more than --max-unused of what is stored is unused; so are
many small ones, which make restores slow. Snapshots keep their ids and numbers;
a tag of class r says where they lie now. The space comes back with a later run,
after the grace. A snapshot that is locked (lifeboat snapshots lock) stays as it
is. A run that is cut off is gone on with by the next one.

It removes the manifests of packs; the registry removes the packs. Lifeboat's own
does so by itself within the hour; of others docs/registries.md tells what they
need. What a tag lists stays, also if the tag does not verify.

The login needs the access role operator.`,
		Example: `  lifeboat gc --dry-run
  lifeboat gc
  lifeboat gc --max-unused 10% --max-repack 50GiB
  lifeboat gc --max-unused unlimited
  lifeboat forget && lifeboat gc --quiet`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.Grace < 0 {
				return fmt.Errorf("--grace: %s is negative: %w", o.Grace, dr.ErrUsage)
			}
			var err error
			if o.Compact, err = compactOptions(unused, repack); err != nil {
				return err
			}
			return a.runGC(cmd.Context(), o)
		},
	}
	cmd.Flags().DurationVar(&o.Grace, "grace", repo.DefaultGrace, "how long packs must have been seen unneeded; longer than the longest snapshot takes")
	cmd.Flags().StringVar(&unused, "max-unused", "25%", "rewrite packs until at most this `SHARE` of what is stored is unused; unlimited: rewrite nothing")
	cmd.Flags().StringVar(&repack, "max-repack", "16GiB", "read at most this `SIZE` to rewrite packs in one run, or unlimited")
	cmd.Flags().BoolVarP(&o.DryRun, "dry-run", "n", false, "show what would be removed, and remove nothing")
	return cmd
}

// compactOptions reads the flags; nil where nothing is to be rewritten.
func compactOptions(unused, repack string) (*repo.CompactOptions, error) {
	const unlimited = "unlimited"
	if unused == unlimited {
		return nil, nil
	}
	o := &repo.CompactOptions{}
	percent, ok := strings.CutSuffix(unused, "%")
	share, err := strconv.ParseFloat(percent, 64)
	if !ok || err != nil || !(share >= 0 && share < 100) {
		return nil, fmt.Errorf("--max-unused %q: want a share such as 25%%, below 100%%, or unlimited: %w", unused, dr.ErrUsage)
	}
	o.MaxUnused = share / 100
	if repack == unlimited {
		return o, nil
	}
	if o.MaxRepack, err = quantity.ParseSize(repack); err != nil {
		return nil, fmt.Errorf("--max-repack: %w: %w", err, dr.ErrUsage)
	}
	if o.MaxRepack <= 0 {
		return nil, fmt.Errorf("--max-repack %q: want a size such as 16GiB, or unlimited: %w", repack, dr.ErrUsage)
	}
	return o, nil
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
	// Compaction is left out with --max-unused unlimited.
	Compaction *gcCompaction `json:"compaction,omitempty"`
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

// gcCompaction is what was found of the packs that snapshots need, and what was
// done; with --dry-run what would be.
type gcCompaction struct {
	// PackBytes are those of Packs packs, UnusedBytes what of them no snapshot uses.
	Packs       int   `json:"packs"`
	SmallPacks  int   `json:"small_packs"`
	PackBytes   int64 `json:"pack_bytes"`
	UnusedBytes int64 `json:"unused_bytes"`
	// Rewritten packs have RewrittenBytes, of which LiveBytes are stored again;
	// Dropped packs hold nothing that is used. ProvingBytes of other hosts' packs
	// are read because this host vouches for them from now on.
	Rewritten      int   `json:"rewritten_packs"`
	Dropped        int   `json:"dropped_packs"`
	RewrittenBytes int64 `json:"rewritten_bytes"`
	LiveBytes      int64 `json:"live_bytes"`
	ProvingBytes   int64 `json:"proving_bytes"`
	// Left packs are for the next run: --max-repack is used up.
	Left      int   `json:"left_packs"`
	Snapshots int   `json:"snapshots"`
	Relocated int   `json:"relocated"`
	BytesRead int64 `json:"bytes_read"`
	BytesSent int64 `json:"bytes_sent"`
	// Unchanged: nothing has changed since a run that found nothing to rewrite, so
	// the numbers above were not taken again.
	Unchanged bool `json:"unchanged"`
}

func compactionOf(c *repo.Compaction) *gcCompaction {
	if c == nil {
		return nil
	}
	return &gcCompaction{
		Packs: c.Packs, SmallPacks: c.Small, PackBytes: c.Bytes, UnusedBytes: c.Unused,
		Rewritten: c.Chosen, Dropped: c.Removed, RewrittenBytes: c.ChosenBytes, LiveBytes: c.LiveBytes, ProvingBytes: c.Proving,
		Left: c.Left, Snapshots: c.Snapshots, Relocated: c.Relocated, BytesRead: c.Read, BytesSent: c.Sent, Unchanged: c.Unchanged,
	}
}

func (a *app) runGC(ctx context.Context, o repo.CollectOptions) error {
	w, err := a.openGC(ctx, o)
	if err != nil {
		return err
	}
	defer w.close()
	show := stages{ui: a.UI()}
	o.Progress = show.tell
	c, err := w.repo.Collect(ctx, o)
	show.end(err)
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
	ans.Compaction = compactionOf(c.Compacted)
	damaged := 0
	if c.Compacted != nil {
		for _, p := range c.Compacted.Problems {
			ans.Problems = append(ans.Problems, p.String())
			a.UI().Warn("not rewritten, and left as it is: %s", p.String())
			damaged++
		}
	}
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

// openGC opens the repository with a key to sign with where packs may be
// rewritten.
func (a *app) openGC(ctx context.Context, o repo.CollectOptions) (*world, error) {
	if o.Compact == nil || o.DryRun {
		return a.open(ctx, false)
	}
	return a.openSigning(ctx)
}

func (a *app) explainGC(w *world, err error) error {
	if errors.Is(err, repo.ErrSetBack) {
		return explainSetBack(err)
	}
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
	if k := c.Compacted; k != nil && !k.Unchanged {
		t.Rows = append(t.Rows, []string{"  unused in them", "", bytesText(k.Unused), fmt.Sprintf("of %s in %d packs", bytesText(k.Bytes), k.Packs)})
		verb := "rewritten"
		if o.DryRun {
			verb = "to rewrite"
		}
		if n := k.Chosen + k.Removed; n > 0 {
			t.Rows = append(t.Rows, []string{"  " + verb, "", bytesText(k.ChosenBytes), fmt.Sprintf("%d packs, of which %s are used; %d snapshots", n, bytesText(k.LiveBytes), k.Snapshots)})
		}
		if k.Left > 0 {
			t.Rows = append(t.Rows, []string{"  left", "", "", fmt.Sprintf("%d packs for the next run", k.Left)})
		}
	}
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
