package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"filippo.io/age"
	"github.com/spf13/cobra"

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
