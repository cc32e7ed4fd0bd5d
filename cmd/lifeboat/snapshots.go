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

	"lifeboat/internal/capture"
	"lifeboat/internal/dr"
	"lifeboat/internal/fence"
	"lifeboat/internal/quantity"
	"lifeboat/internal/repo"
	"lifeboat/internal/ui"
)

func newSnapshotsCmd(a *app) *cobra.Command {
	var maxAge time.Duration
	cmd := &cobra.Command{
		Use:     "snapshots [SYSTEM]",
		GroupID: groupProtect,
		Short:   "List the snapshots of the repository",
		Long: `List the snapshots of the repository. A tag that holds something else than a
snapshot is named on the standard error output and under "problems" in JSON,
each time. Where something that Lifeboat stored is damaged or gone, the rest is
listed and the exit code is 3; so it is where the registry shows, or has shown, an
older state than this host has seen, until that is accepted (--accept-older), and
where there are snapshots and none counts, because no record enrols the hosts that
signed them. With --max-age the exit code is 3 as well if the
newest snapshot of a system is older: run it anywhere but on the host that makes
them.`,
		Example: `  lifeboat snapshots
  lifeboat snapshots shop --json
  lifeboat snapshots --max-age 30m
  lifeboat snapshots lock shop@5f0c12ab --reason "before the upgrade"`,
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: a.completeStored,
		RunE: func(cmd *cobra.Command, args []string) error {
			name := ""
			if len(args) == 1 {
				name = args[0]
			}
			if maxAge < 0 || maxAge == 0 && cmd.Flags().Changed("max-age") {
				return fmt.Errorf("--max-age %s: want a time that can pass, such as 30m: %w", maxAge, dr.ErrUsage)
			}
			return a.runSnapshots(cmd.Context(), name, maxAge)
		},
	}
	cmd.AddCommand(newLockCmd(a), newUnlockCmd(a))
	cmd.Flags().DurationVar(&maxAge, "max-age", 0, "fail (3) if a system's newest snapshot is older")
	return cmd
}

// snapshotRow is a snapshot in JSON answers.
type snapshotRow struct {
	Snapshot    dr.SnapshotID  `json:"snapshot"`
	System      dr.System      `json:"system"`
	Number      dr.Number      `json:"number"`
	Created     time.Time      `json:"created"`
	Site        dr.Site        `json:"site"`
	Epoch       dr.Epoch       `json:"epoch"`
	Kind        dr.Kind        `json:"kind"`
	OnLine      bool           `json:"on_line"`
	Newest      bool           `json:"newest"`
	Consistency dr.Consistency `json:"consistency"`
	Containers  int            `json:"containers"`
	BytesTotal  int64          `json:"bytes_total"`
	BytesNew    int64          `json:"bytes_new"`
	BytesSent   int64          `json:"bytes_sent"`
	FreezeMS    float64        `json:"freeze_ms"`
	// Locked: it is neither forgotten nor rewritten.
	Locked bool `json:"locked"`
	// Proven: a drill or a failover has shown that it runs.
	Proven bool `json:"proven"`
}

// oldSystem is a system of which the newest snapshot is too old.
type oldSystem struct {
	System   dr.System     `json:"system"`
	Snapshot dr.SnapshotID `json:"snapshot"`
	AgeS     int64         `json:"age_s"`
}

// listing is what the repository holds of some systems.
type listing struct {
	Snapshots []snapshotRow `json:"snapshots"`
	Problems  []string      `json:"problems"`
	// TooOld are the systems whose newest snapshot is older than --max-age.
	TooOld []oldSystem `json:"too_old"`

	// damaged counts the problems that are not only somebody else's tags.
	damaged int
	// setBacks are the problems that say that the registry was set back.
	setBacks []string
	// unknown counts the snapshots of hosts that are not enrolled.
	unknown int
}

func (w *world) list(ctx context.Context, sys dr.System) (*listing, error) {
	snaps, problems, err := w.repo.Snapshots(ctx, sys)
	if err != nil {
		return nil, err
	}
	out := &listing{Snapshots: []snapshotRow{}, Problems: []string{}, TooOld: []oldSystem{}, setBacks: setBacksOf(problems)}
	for _, p := range problems {
		out.Problems = append(out.Problems, p.String())
		if !p.Foreign() {
			out.damaged++
		}
		if errors.Is(p.Err, repo.ErrNotEnrolled) {
			out.unknown++
		}
	}
	locks, err := w.repo.Locks(ctx, sys)
	if err != nil {
		return nil, err
	}
	locked := map[string]bool{}
	for _, l := range locks {
		locked[repo.Tag{Class: repo.ClassSnapshot, System: l.System, Number: l.Number}.String()] = true
	}
	bySystem := map[dr.System][]repo.Snapshot{}
	for _, s := range snaps {
		bySystem[s.System] = append(bySystem[s.System], s)
	}
	for name, list := range bySystem {
		claims, err := w.ledger.Claims(ctx, name)
		if err != nil {
			return nil, err
		}
		facts := capture.Snaps(list)
		head, _ := fence.Head(claims, facts)
		proven := map[dr.SnapshotID]bool{}
		for _, c := range claims {
			if c.Base != nil {
				proven[*c.Base] = true
			}
		}
		for _, s := range list {
			out.Snapshots = append(out.Snapshots, snapshotRow{
				Snapshot: s.ID, System: s.System, Number: s.Number, Created: s.Created, Site: s.Site, Epoch: s.Epoch, Kind: s.Kind,
				OnLine: fence.OnLine(claims, facts, s.ID), Newest: s.ID == head, Consistency: s.Consistency, Containers: s.Containers,
				BytesTotal: s.BytesTotal, BytesNew: s.BytesNew, BytesSent: s.BytesSent, FreezeMS: float64(s.Freeze.Microseconds()) / 1000,
				Proven: proven[s.ID], Locked: locked[s.Tag],
			})
		}
	}
	slices.SortFunc(out.Snapshots, func(x, y snapshotRow) int {
		if x.System != y.System {
			if x.System < y.System {
				return -1
			}
			return 1
		}
		return int(x.Number) - int(y.Number)
	})
	return out, nil
}

func (a *app) runSnapshots(ctx context.Context, name string, maxAge time.Duration) error {
	w, err := a.open(ctx, false)
	if err != nil {
		return err
	}
	defer w.close()
	l, err := w.list(ctx, dr.System(name))
	if err != nil {
		return err
	}
	if name != "" && len(l.Snapshots) == 0 && len(l.Problems) == 0 {
		return fmt.Errorf("the repository has no snapshot of system %q: %w", name, dr.ErrNotFound)
	}
	a.warnOf(l)
	l.TooOld = tooOld(l.Snapshots, maxAge, time.Now())
	if err := a.UI().Answer(l, listingView(l.Snapshots, len(l.Problems))); err != nil {
		return err
	}
	if len(l.setBacks) > 0 {
		return errSetBack(dr.System(name), l.setBacks, "what the registry shows is listed; nothing is removed from the repository while this stands")
	}
	if l.damaged > 0 {
		return fmt.Errorf("%d thing(s) of the repository are damaged or gone, the rest is listed: %w", l.damaged, dr.ErrPartial)
	}
	if len(l.Snapshots) == 0 && l.unknown > 0 {
		return ui.Explained{
			What:  fmt.Sprintf("no snapshot counts: %d thing(s) are signed by hosts that are not enrolled", l.unknown),
			State: "nothing was changed; what they stored is there",
			Next:  nextNotEnrolled(),
			Err:   dr.ErrPartial,
		}
	}
	if len(l.TooOld) == 0 {
		return nil
	}
	var list []string
	for _, o := range l.TooOld {
		list = append(list, fmt.Sprintf("%s (%s)", o.System, quantity.Duration(time.Duration(o.AgeS)*time.Second)))
	}
	return ui.Explained{
		What:  fmt.Sprintf("the newest snapshot is older than %s of: %s", quantity.Duration(maxAge), strings.Join(list, ", ")),
		State: "nothing was changed; what is stored can be brought up",
		Next:  []string{"see at the site that holds the system whether its timer runs: systemctl status lifeboat.timer; and there: lifeboat snapshot " + string(l.TooOld[0].System)},
		Err:   dr.ErrPartial,
	}
}

// tooOld lists the systems whose newest snapshot is older than max; none for 0.
func tooOld(snapshots []snapshotRow, limit time.Duration, now time.Time) []oldSystem {
	out := []oldSystem{}
	for _, s := range snapshots {
		if age := now.Sub(s.Created); limit > 0 && s.Newest && age > limit {
			out = append(out, oldSystem{s.System, s.Snapshot, int64(age.Seconds())})
		}
	}
	return out
}

// warnOf names on stderr what does not verify.
func (a *app) warnOf(l *listing) {
	for _, p := range l.Problems {
		a.UI().Warn("does not verify: %s", p)
	}
}

// nextNotEnrolled leads on where what a host wrote does not count because no record
// enrols it.
func nextNotEnrolled() []string {
	return []string{
		"lifeboat repair  (puts back a host record of which the registry has damaged the tag alone)",
		"lifeboat repair --from URL  (where a mirror still has the records of the hosts)",
		"lifeboat host enroll  (at the host that signed them, if it is one of yours: what it wrote counts from then on)",
	}
}

func listingView(snapshots []snapshotRow, problems int) ui.View {
	t := ui.Table{
		Columns: []ui.Column{
			{Title: "snapshot"},
			{Title: "system"},
			{Title: "#", Right: true},
			{Title: "of"},
			{Title: "site"},
			{Title: "epoch", Right: true},
			{Title: "line"},
			{Title: "size", Right: true},
			{Title: "new", Right: true},
			{Title: "frozen", Right: true},
			{Title: "proven"},
		},
		Empty: "the repository has no snapshots",
	}
	if problems > 0 {
		t.Empty = "no snapshot that is there counts"
	}
	for _, s := range snapshots {
		line := "divergent"
		switch {
		case s.Newest:
			line = "newest"
		case s.OnLine:
			line = "on line"
		}
		proven := "-"
		if s.Proven {
			proven = "yes"
		}
		if s.Locked {
			proven += ", locked"
		}
		t.Rows = append(t.Rows, []string{
			s.Snapshot.Short(), string(s.System), strconv.FormatUint(uint64(s.Number), 10),
			s.Created.Local().Format(time.DateTime), string(s.Site), strconv.FormatUint(uint64(s.Epoch), 10), line,
			bytesText(s.BytesTotal), bytesText(s.BytesNew), fmt.Sprintf("%.0f ms", s.FreezeMS), proven,
		})
	}
	return t
}
