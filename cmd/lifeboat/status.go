package main

import (
	"cmp"
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"lifeboat/internal/dr"
	"lifeboat/internal/fence"
	"lifeboat/internal/plan"
	"lifeboat/internal/quantity"
	"lifeboat/internal/redact"
	"lifeboat/internal/ui"
)

func newStatusCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "status [SYSTEM]",
		GroupID: groupProtect,
		Short:   "Tell who holds each system, how old its newest snapshot is, and what is unfinished here",
		Long: `Tell who holds each system, how old its newest snapshot is, and what is
unfinished here. What does not verify is named on the standard error output and
under "problems" in JSON. The exit code is 3 where the registry shows, or has
shown, an older state than this host has seen, until that is accepted
(--accept-older).`,
		Example: `  lifeboat status
  lifeboat status shop --json`,
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: a.completeStored,
		RunE: func(cmd *cobra.Command, args []string) error {
			name := ""
			if len(args) == 1 {
				name = args[0]
			}
			return a.runStatus(cmd.Context(), name)
		},
	}
}

// statusRow is one system in the answer of status.
type statusRow struct {
	System     dr.System      `json:"system"`
	Role       fence.Role     `json:"role"` // of this site
	Epoch      dr.Epoch       `json:"epoch"`
	Holder     dr.Site        `json:"holder,omitempty"`
	Since      *time.Time     `json:"since,omitempty"`
	Newest     *dr.SnapshotID `json:"newest,omitempty"`
	AgeS       int64          `json:"age_s"` // of the newest snapshot; -1 for none
	Marked     []string       `json:"marked"`
	MoveTo     dr.Site        `json:"move_to,omitempty"`
	MovePhase  fence.Phase    `json:"move_phase,omitempty"`
	Configured bool           `json:"configured"`
	// Unfinished are failovers, failbacks and hand-overs of this site that were
	// begun and not ended.
	Unfinished []unfinished `json:"unfinished"`
}

// unfinished is work that the same command goes on with.
type unfinished struct {
	Operation string         `json:"operation"`
	Snapshot  *dr.SnapshotID `json:"snapshot,omitempty"`
	Began     time.Time      `json:"began"`
	// Step is the one that was begun last and has no result.
	Step    string `json:"step,omitempty"`
	Error   string `json:"error,omitempty"`
	Running bool   `json:"running"` // a process works on it at this moment
	Next    string `json:"next,omitempty"`
}

func (a *app) runStatus(ctx context.Context, name string) error {
	w, err := a.open(ctx, true)
	if err != nil {
		return err
	}
	defer w.close()
	l, err := w.list(ctx, dr.System(name))
	if err != nil {
		return err
	}
	rows := map[dr.System]*statusRow{}
	order := []dr.System{}
	row := func(s dr.System) *statusRow {
		if rows[s] == nil {
			_, configured := w.cfg.Systems[s]
			rows[s] = &statusRow{System: s, AgeS: -1, Configured: configured, Marked: []string{}, Unfinished: []unfinished{}}
			order = append(order, s)
		}
		return rows[s]
	}
	for _, s := range l.Snapshots {
		r := row(s.System)
		if s.Newest {
			id := s.Snapshot
			r.Newest, r.AgeS = &id, int64(time.Since(s.Created).Seconds())
		}
	}
	for s := range w.cfg.Systems {
		if name == "" || string(s) == name {
			row(s)
		}
	}
	if name != "" && len(order) == 0 {
		return fmt.Errorf("neither the repository nor the configuration knows a system %q: %w", name, dr.ErrNotFound)
	}
	t := ui.Table{
		Columns: []ui.Column{{Title: "system"}, {Title: "this site"}, {Title: "epoch", Right: true}, {Title: "held by"}, {Title: "newest snapshot"}, {Title: "age", Right: true}, {Title: "unfinished"}},
		Empty:   "no system is protected",
	}
	ans := struct {
		Site     dr.Site     `json:"site"`
		Systems  []statusRow `json:"systems"`
		Problems []string    `json:"problems"`
	}{Site: w.site, Systems: []statusRow{}, Problems: l.Problems}
	for _, s := range order {
		r := rows[s]
		if err := w.fillStatus(ctx, r); err != nil {
			return err
		}
		ans.Systems = append(ans.Systems, *r)
		t.Rows = append(t.Rows, r.cells())
	}
	a.warnOf(l)
	if err := a.UI().Answer(ans, t); err != nil || len(l.setBacks) == 0 {
		return err
	}
	return errSetBack(dr.System(name), l.setBacks, "nothing is removed from the repository while this stands; snapshots go on")
}

func (w *world) fillStatus(ctx context.Context, r *statusRow) error {
	claims, err := w.ledger.Claims(ctx, r.System)
	if err != nil {
		return err
	}
	r.Role = fence.RoleOf(claims, w.repo.HostID())
	if n := len(claims); n > 0 {
		last := claims[n-1]
		r.Epoch, r.Holder, r.Since = last.Epoch, last.Site, &last.Created
	}
	moves, err := w.ledger.Moves(ctx, r.System)
	if err != nil {
		return err
	}
	if m, open := fence.Open(moves, claims); open {
		r.MoveTo, r.MovePhase = m.To, m.Phase
	}
	marked, err := w.state.Marked(r.System)
	if err != nil {
		return err
	}
	r.Marked = append(r.Marked, marked...)
	r.Unfinished, err = w.unfinished(r)
	return err
}

// unfinished reads the journals of this site.
func (w *world) unfinished(r *statusRow) ([]unfinished, error) {
	out := []unfinished{}
	for _, operation := range []string{"failover", "failback", "handover"} {
		path, err := w.state.JournalPath(r.System, operation)
		if err != nil {
			return nil, err
		}
		p, err := plan.Unfinished(path)
		if err != nil {
			return nil, err
		}
		if p == nil || operation == "handover" && r.MoveTo == "" && !p.Has("stopped") {
			continue // nobody asked for the system, and nothing was stopped for it
		}
		u := unfinished{Operation: p.Operation, Began: p.Started, Error: redact.String(p.Failed), Running: p.Running}
		if p.Snapshot != (dr.SnapshotID{}) {
			u.Snapshot = &p.Snapshot
		}
		// Steps of a bring-up are named after the snapshot that they lay down.
		if _, step, ok := strings.Cut(p.Step, ":"); ok {
			u.Step = step
		} else {
			u.Step = p.Step
		}
		if !u.Running {
			u.Next = map[string]string{
				"failover": "lifeboat failover " + string(r.System),
				"failback": "lifeboat failback " + string(r.System),
				"handover": "lifeboat switchover " + string(r.System) + " --to " + string(cmp.Or(r.MoveTo, r.Holder)),
			}[operation]
		}
		out = append(out, u)
	}
	return out, nil
}

func (u unfinished) String() string {
	text := u.Operation
	if u.Snapshot != nil {
		text += " of " + u.Snapshot.Short()
	}
	switch {
	case u.Running && u.Step != "":
		text += " is at step " + u.Step
	case u.Running:
		text += " is under way"
	case u.Error != "":
		text += " failed at step " + u.Step
	case u.Step != "":
		text += " was cut off at step " + u.Step
	default:
		text += " was cut off"
	}
	if u.Next != "" {
		text += "; goes on with: " + u.Next
	}
	return text
}

func (r *statusRow) cells() []string {
	newest, age := "none", ""
	var open []string
	if r.Newest != nil {
		newest, age = r.Newest.Short(), quantity.Duration(time.Duration(r.AgeS)*time.Second)
	}
	if r.MoveTo != "" {
		open = append(open, fmt.Sprintf("move to %s: %s", r.MoveTo, r.MovePhase))
	}
	if len(r.Marked) > 0 {
		open = append(open, "half written: "+strings.Join(r.Marked, ", "))
	}
	for _, u := range r.Unfinished {
		open = append(open, u.String())
	}
	return []string{string(r.System), string(r.Role), fmt.Sprint(r.Epoch), string(r.Holder), newest, age, strings.Join(open, "; ")}
}
