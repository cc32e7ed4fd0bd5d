package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"lifeboat/internal/dr"
	"lifeboat/internal/fence"
	"lifeboat/internal/quantity"
	"lifeboat/internal/ui"
)

func newStatusCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "status [SYSTEM]",
		GroupID: groupProtect,
		Short:   "Tell who holds each system, how old its newest snapshot is, and what is unfinished here",
		Example: `  lifeboat status
  lifeboat status shop --json`,
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: a.completeSystems,
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
			rows[s] = &statusRow{System: s, AgeS: -1, Configured: configured, Marked: []string{}}
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
		Columns: []ui.Column{{Title: "system"}, {Title: "this site"}, {Title: "epoch", Right: true}, {Title: "held by"}, {Title: "newest snapshot"}, {Title: "age", Right: true}, {Title: "unfinished", Elastic: true}},
		Empty:   "no system is protected",
	}
	ans := struct {
		Site    dr.Site     `json:"site"`
		Systems []statusRow `json:"systems"`
	}{Site: w.site, Systems: []statusRow{}}
	for _, s := range order {
		r := rows[s]
		if err := w.fillStatus(ctx, r); err != nil {
			return err
		}
		ans.Systems = append(ans.Systems, *r)
		t.Rows = append(t.Rows, r.cells())
	}
	return a.UI().Answer(ans, t)
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
	r.Marked = append(r.Marked, marked...)
	return err
}

func (r *statusRow) cells() []string {
	newest, age, open := "none", "", ""
	if r.Newest != nil {
		newest, age = r.Newest.Short(), quantity.Duration(time.Duration(r.AgeS)*time.Second)
	}
	if r.MoveTo != "" {
		open = fmt.Sprintf("move to %s: %s", r.MoveTo, r.MovePhase)
	}
	if len(r.Marked) > 0 {
		open += fmt.Sprintf(" half written: %v", r.Marked)
	}
	return []string{string(r.System), string(r.Role), fmt.Sprint(r.Epoch), string(r.Holder), newest, age, open}
}
