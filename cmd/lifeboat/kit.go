package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"filippo.io/age"
	"github.com/spf13/cobra"

	"lifeboat/internal/dr"
	"lifeboat/internal/kit"
	"lifeboat/internal/seal"
	"lifeboat/internal/ui"
)

func newKitCmd(a *app) *cobra.Command {
	var out string
	cmd := &cobra.Command{
		Use:     "kit",
		GroupID: groupCare,
		Short:   "Write a new recovery kit",
		Long: `Write a new recovery kit: repository, registry login, certificate and an
identity of its own, which is added to the recipients of the repository's key.
Earlier kits stay valid until their recipient is removed (lifeboat key remove).`,
		Example: `  lifeboat kit --out /media/usb/lifeboat-kit.txt
  lifeboat key list`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.runKit(cmd.Context(), out) },
	}
	cmd.Flags().StringVar(&out, "out", defaultKit, "`FILE` to write (mode 0600, must not exist)")
	return cmd
}

func (a *app) runKit(ctx context.Context, out string) error {
	w, err := a.open(ctx, false)
	if err != nil {
		return err
	}
	defer w.close()
	id, err := age.GenerateX25519Identity()
	if err != nil {
		return fmt.Errorf("identity of the recovery kit: %w", err)
	}
	name := "recovery-kit-" + time.Now().UTC().Format("20060102-150405")
	rec, err := seal.ParseRecipient(name, id.Recipient().String())
	if err != nil {
		return err
	}
	if err := w.repo.AddKey(ctx, rec); err != nil {
		return err
	}
	k, err := makeKit(ctx, w.repo, w.src.url, w.src.registry, id.String())
	if err == nil {
		err = kit.WriteFile(out, k)
	}
	if err != nil {
		return errors.Join(err, w.repo.RemoveKey(ctx, name, nil))
	}
	ans := struct {
		Kit       string `json:"kit"`
		Recipient string `json:"recipient"`
	}{out, name}
	return a.UI().Answer(ans, ui.Fields{{Name: "recovery kit", Value: out}, {Name: "recipient", Value: name}},
		ui.Text("keep it secret, and away from the hosts that it protects"))
}

func newKeyCmd(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "key",
		GroupID: groupCare,
		Short:   "List, add and remove who can open the repository; rotate the data key",
		Example: `  lifeboat key list
  lifeboat key add --name anna age1…
  lifeboat key remove anna
  lifeboat key rotate`,
	}
	cmd.AddCommand(newKeyListCmd(a), newKeyAddCmd(a), newKeyRemoveCmd(a), newKeyRotateCmd(a))
	return cmd
}

func newKeyListCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Short:   "List who can open the repository",
		Example: `  lifeboat key list`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			w, err := a.open(cmd.Context(), false)
			if err != nil {
				return err
			}
			defer w.close()
			keys, generation, err := w.repo.Keys(cmd.Context())
			if err != nil {
				return err
			}
			type row struct {
				Name      string `json:"name"`
				Recipient string `json:"recipient"`
			}
			ans := struct {
				Generation uint32 `json:"generation"`
				Keys       []row  `json:"keys"`
			}{Generation: uint32(generation), Keys: []row{}}
			t := ui.Table{Columns: []ui.Column{{Title: "name"}, {Title: "recipient", Elastic: true}}}
			for _, k := range keys {
				ans.Keys = append(ans.Keys, row{k.Name, k.Recipient})
				t.Rows = append(t.Rows, []string{k.Name, k.Recipient})
			}
			return a.UI().Answer(ans, t, ui.Text(fmt.Sprintf("key generation %d", generation)))
		},
	}
}

func newKeyAddCmd(a *app) *cobra.Command {
	var name string
	cmd := &cobra.Command{
		Use:     "add RECIPIENT",
		Short:   "Let one more age recipient open the repository",
		Example: `  lifeboat key add --name anna age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			rec, err := seal.ParseRecipient(name, args[0])
			if err != nil {
				return err
			}
			return a.changeKeys(cmd.Context(), func(ctx context.Context, w *world) error { return w.repo.AddKey(ctx, rec) })
		},
	}
	cmd.Flags().StringVar(&name, "name", "", "`NAME` of the recipient, for people")
	_ = cmd.MarkFlagRequired("name")
	return cmd
}

func newKeyRemoveCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "remove NAME",
		Short: "Take a recipient away and start a new key generation",
		Long: `Take a recipient away and start a new key generation. What is written from now
on cannot be opened by the removed recipient. What was written before stays
readable to whoever kept the old key.`,
		Example: `  lifeboat key remove anna`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.changeKeys(cmd.Context(), func(ctx context.Context, w *world) error {
				if err := w.repo.RemoveKey(ctx, args[0], a.rewrap); err != nil {
					return err
				}
				a.UI().Warn("what was written before stays readable to whoever kept the removed key")
				return nil
			})
		},
	}
}

func newKeyRotateCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "rotate",
		Short:   "Start a new generation of the data key",
		Example: `  lifeboat key rotate`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.changeKeys(cmd.Context(), func(ctx context.Context, w *world) error { return w.repo.RotateKey(ctx, a.rewrap) })
		},
	}
}

// rewrap gives the passphrase again when its wrap is renewed.
func (a *app) rewrap(name string) (seal.Recipient, error) {
	set, err := a.Settings()
	if err != nil {
		return seal.Recipient{}, err
	}
	text, err := a.passphrase(set, false)()
	if err != nil {
		return seal.Recipient{}, err
	}
	return seal.PassphraseRecipient(name, text, 0)
}

func (a *app) changeKeys(ctx context.Context, change func(context.Context, *world) error) error {
	w, err := a.open(ctx, false)
	if err != nil {
		return err
	}
	defer w.close()
	if err := change(ctx, w); err != nil {
		return err
	}
	_, generation, err := w.repo.Keys(ctx)
	if err != nil {
		return err
	}
	return a.UI().Answer(map[string]any{"generation": uint32(generation)}, ui.Text(fmt.Sprintf("done; key generation %d", generation)))
}

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
