package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"lifeboat/internal/dr"
	"lifeboat/internal/ui"
)

func newHostCmd(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "host",
		GroupID: groupCare,
		Short:   "List, enroll and revoke hosts that write into the repository",
		Example: `  lifeboat host list
  lifeboat host enroll
  lifeboat host revoke 5f0c12ab90de`,
	}
	cmd.AddCommand(newHostListCmd(a), newHostEnrollCmd(a), newHostRevokeCmd(a))
	return cmd
}

func newHostListCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Short:   "List the hosts that were ever enrolled",
		Example: `  lifeboat host list`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			w, err := a.open(cmd.Context(), false)
			if err != nil {
				return err
			}
			defer w.close()
			hosts, err := w.repo.Hosts(cmd.Context())
			if err != nil {
				return err
			}
			type row struct {
				ID       dr.HostID  `json:"id"`
				Name     string     `json:"name"`
				Enrolled time.Time  `json:"enrolled"`
				Revoked  *time.Time `json:"revoked,omitempty"`
			}
			ans := struct {
				Hosts []row `json:"hosts"`
			}{[]row{}}
			t := ui.Table{Columns: []ui.Column{{Title: "host"}, {Title: "name", Elastic: true}, {Title: "enrolled"}, {Title: "revoked"}}, Empty: "no host has written yet"}
			for _, h := range hosts {
				r := row{ID: h.ID, Name: h.Name, Enrolled: h.Enrolled}
				revoked := ""
				if !h.Revoked.IsZero() {
					at := h.Revoked
					r.Revoked, revoked = &at, at.Format(time.DateTime)
				}
				ans.Hosts = append(ans.Hosts, r)
				t.Rows = append(t.Rows, []string{h.ID.Short(), h.Name, h.Enrolled.Format(time.DateTime), revoked})
			}
			return a.UI().Answer(ans, t)
		},
	}
}

func newHostEnrollCmd(a *app) *cobra.Command {
	var name string
	cmd := &cobra.Command{
		Use:   "enroll [HOST]",
		Short: "Make a host known to the repository, so that what it writes is trusted",
		Long: `Make a host known to the repository, so that what it writes is trusted. Without
HOST it is this one, which the first snapshot does by itself where the registry
lets it. Where only an operator may, the host's refusal names its id, and the
operator runs this command with it.`,
		Example: `  lifeboat host enroll
  lifeboat host enroll --name standby 5f0c12ab90de…`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				return a.enrollHost(cmd.Context(), args[0], name)
			}
			w, err := a.open(cmd.Context(), true)
			if err != nil {
				return err
			}
			defer w.close()
			notice, err := w.repo.Enrol(cmd.Context())
			if err != nil {
				return err
			}
			if notice == "" {
				notice = "this host is enrolled already"
			}
			return a.UI().Answer(map[string]any{"host": w.repo.HostID()}, ui.Text(notice))
		},
	}
	cmd.Flags().StringVar(&name, "name", "", "`NAME` of the host, for people")
	return cmd
}

// enrollHost makes another host known; this one's engine is not needed, its key
// signs.
func (a *app) enrollHost(ctx context.Context, id, name string) error {
	var host dr.HostID
	if err := host.UnmarshalText([]byte(id)); err != nil {
		return fmt.Errorf("host %q is no host id: %w: %w", id, err, dr.ErrUsage)
	}
	w, err := a.open(ctx, true)
	if err != nil {
		return err
	}
	defer w.close()
	if err := w.repo.EnrolHost(ctx, host, name); err != nil {
		return err
	}
	return a.UI().Answer(map[string]any{"host": host}, ui.Text("host "+host.Short()+" is enrolled; what it writes is trusted from now on"))
}

func newHostRevokeCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "revoke HOST",
		Short: "Take a host's right to write back",
		Long: `Take a host's right to write back. What it wrote until now stays trusted; what
carries its signature later is not accepted. The host may still hold the
repository's key: rotate that as well.`,
		Example: `  lifeboat host revoke 5f0c12ab90de && lifeboat key rotate`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			w, err := a.open(ctx, true)
			if err != nil {
				return err
			}
			defer w.close()
			hosts, err := w.repo.Hosts(ctx)
			if err != nil {
				return err
			}
			for _, h := range hosts {
				if h.ID.String() != args[0] && h.ID.Short() != args[0] {
					continue
				}
				if err := w.repo.Revoke(ctx, h.ID, nil); err != nil {
					return err
				}
				return a.UI().Answer(map[string]any{"revoked": h.ID}, ui.Text("host "+h.ID.Short()+" is revoked; run: lifeboat key rotate"))
			}
			return fmt.Errorf("no host %q was ever enrolled: %w", args[0], dr.ErrNotFound)
		},
	}
}
