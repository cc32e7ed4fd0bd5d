package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"lifeboat/internal/dr"
	"lifeboat/internal/quantity"
	"lifeboat/internal/repo"
	"lifeboat/internal/repo/readlog"
	"lifeboat/internal/ui"
)

type verifyFlags struct{ within, subset, snapshot string }

func newVerifyCmd(a *app) *cobra.Command {
	var f verifyFlags
	cmd := &cobra.Command{
		Use:     "verify [SYSTEM[@SNAPSHOT]]",
		GroupID: groupCare,
		Short:   "Read and authenticate the data of the repository, all or a part at a time",
		Long: `Read and authenticate the data of the repository: everything, what one system or
one snapshot needs, or a part of it.

With --within a run reads so much that everything is read once in that time, if it
is run every so often, daily for example: what was read longest ago comes first.
--subset reads a part by digest (2/7), or a percentage (10%) or an amount (5GiB) of
what was read longest ago. What was read when is remembered in the state directory
as soon as it is read, so a run that was cut off is gone on with by the next one of
the same kind; losing that only means that reading begins again. What was found
damaged is read every time.

Each snapshot's lists of files are gone through, too: all that they name must be in
the packs that the snapshot lists. A run that reads a part does so for the same part
of the snapshots, and for the newest of each system.

The structure is checked as by check, and exit codes are those of check.`,
		Example: `  lifeboat verify
  lifeboat verify shop@latest
  lifeboat verify --within 30d        (from a timer, daily)
  lifeboat verify --subset 2/7`,
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: a.completeRefs,
		RunE: func(cmd *cobra.Command, args []string) error {
			o, err := f.options()
			if err != nil {
				return err
			}
			ref := strings.Join(args, "")
			if f.snapshot != "" {
				if ref == "" || strings.Contains(ref, "@") {
					return fmt.Errorf("--snapshot needs a SYSTEM without a snapshot: %w", dr.ErrUsage)
				}
				ref += "@" + f.snapshot
			}
			return a.runExamine(cmd.Context(), "verify", ref, o)
		},
	}
	cmd.Flags().StringVar(&f.within, "within", "", "read a part, so that everything is read once in this `TIME` (30d)")
	cmd.Flags().StringVar(&f.subset, "subset", "", "read this `PART` (2/7), percentage (10%) or amount (5GiB)")
	cmd.Flags().StringVar(&f.snapshot, "snapshot", "", "only what this `SNAPSHOT` of SYSTEM needs, as SYSTEM@SNAPSHOT")
	complete(cmd, map[string]completer{"snapshot": a.completeSnapshot})
	return cmd
}

func (f verifyFlags) options() (repo.ExamineOptions, error) {
	s := readlog.Subset{}
	var err error
	switch {
	case f.within != "" && f.subset != "":
		err = fmt.Errorf("--within and --subset both say how much is read; pass one of them: %w", dr.ErrUsage)
	case f.within != "":
		if s.Within, err = parseDays(f.within); err != nil {
			err = fmt.Errorf("--within: %w", err)
		}
	case f.subset != "":
		if s, err = readlog.ParseSubset(f.subset); err != nil {
			err = fmt.Errorf("--subset: %w", err)
		}
	}
	return repo.ExamineOptions{Read: &s}, err
}

// parseDays reads "30d", "4w", or a duration in shorter units. It is positive. The
// error wraps dr.ErrUsage.
func parseDays(s string) (time.Duration, error) {
	const day = 24 * time.Hour
	for suffix, unit := range map[string]time.Duration{"d": day, "w": 7 * day} {
		text, ok := strings.CutSuffix(s, suffix)
		if n, err := strconv.ParseUint(text, 10, 32); ok && err == nil && n > 0 && n < 36500 {
			return time.Duration(n) * unit, nil
		}
	}
	d, err := quantity.ParseDuration(s)
	if err != nil || d <= 0 {
		return 0, fmt.Errorf("%q: want days (30d), weeks (4w), or a duration such as 36h: %w", s, dr.ErrUsage)
	}
	return d, nil
}

// choose makes the options look at a system, or one snapshot of it.
func (w *world) choose(ctx context.Context, ref string, o *repo.ExamineOptions) error {
	if ref == "" {
		return nil
	}
	name, id, one := strings.Cut(ref, "@")
	sys, err := dr.ParseSystem(name)
	if err != nil {
		return err
	}
	if !one {
		snaps, _, err := w.repo.Snapshots(ctx, sys)
		if err == nil && len(snaps) == 0 {
			err = fmt.Errorf("the repository has no snapshot of system %q: %w", name, dr.ErrNotFound)
		}
		o.Scope, o.Only = name, func(s *repo.Snapshot) bool { return s.System == sys }
		return err
	}
	s, err := w.repo.Find(ctx, sys, id)
	if err != nil {
		return err
	}
	o.Scope = name + "@" + s.ID.String()
	o.Only = func(have *repo.Snapshot) bool { return have.System == sys && have.ID == s.ID }
	return nil
}

// readAnswer is what verify has read, in JSON.
type readAnswer struct {
	Read repo.Amount `json:"read"`
	// Resumed is when the run that was cut off had begun.
	Resumed *time.Time `json:"resumed,omitempty"`
	// Seconds of --within; absent without.
	Within    int64     `json:"within_s,omitempty"`
	All       partRow   `json:"all"`
	Systems   []partRow `json:"systems"`
	Manifests []partRow `json:"manifests"`
}

// partRow says when a part was read last: Oldest is when what was read longest
// ago was read, Never what was never read by this host, Overdue what not within
// the time asked for.
type partRow struct {
	System   dr.System   `json:"system,omitempty"`
	Manifest string      `json:"manifest,omitempty"`
	Total    repo.Amount `json:"total"`
	Never    repo.Amount `json:"never_read"`
	Overdue  repo.Amount `json:"overdue"`
	Oldest   *time.Time  `json:"oldest_read"`
}

func readAnswerOf(r *repo.Reading, within time.Duration) *readAnswer {
	rows := func(list []repo.Part) []partRow {
		out := []partRow{}
		for _, p := range list {
			out = append(out, partRowOf(p))
		}
		return out
	}
	var resumed *time.Time
	if !r.Resumed.IsZero() {
		at := r.Resumed.UTC()
		resumed = &at
	}
	return &readAnswer{Read: r.Read, Resumed: resumed, Within: int64(within.Seconds()), All: partRowOf(r.All), Systems: rows(r.Systems), Manifests: rows(r.Manifests)}
}

func partRowOf(p repo.Part) partRow {
	row := partRow{System: p.System, Manifest: p.Manifest.String(), Total: p.Total, Never: p.Never, Overdue: p.Overdue}
	if !p.Oldest.IsZero() {
		at := p.Oldest.UTC()
		row.Oldest = &at
	}
	return row
}

// readView shows when what was read last.
func readView(r *readAnswer) ui.View {
	title := fmt.Sprintf("read now: %s in %d packs and indexes", bytesText(r.Read.Bytes), r.Read.Packs)
	if r.Resumed != nil {
		title += ", going on with the run that began at " + r.Resumed.Local().Format(time.DateTime)
	}
	t := ui.Table{
		Title: title,
		Columns: []ui.Column{
			{Title: "system", Elastic: true}, {Title: "size", Right: true}, {Title: "read last"}, {Title: "never read", Right: true},
		},
	}
	if r.Within > 0 {
		t.Columns = append(t.Columns, ui.Column{Title: "overdue", Right: true})
	}
	row := func(name string, p partRow) {
		oldest := "never"
		if p.Oldest != nil {
			oldest = "since " + p.Oldest.Local().Format(time.DateTime)
		}
		cells := []string{name, bytesText(p.Total.Bytes), oldest, bytesText(p.Never.Bytes)}
		if r.Within > 0 {
			cells = append(cells, bytesText(p.Overdue.Bytes))
		}
		t.Rows = append(t.Rows, cells)
	}
	for _, p := range r.Systems {
		row(string(p.System), p)
	}
	if len(r.Systems) > 1 {
		row("all together", r.All)
	}
	return t
}
