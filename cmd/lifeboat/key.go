package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"lifeboat/internal/repo"
	"lifeboat/internal/seal"
	"lifeboat/internal/ui"
)

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
			return a.changeKeys(cmd.Context(), func(ctx context.Context, w *world) error {
				err := w.repo.AddKey(ctx, rec)
				if errors.Is(err, repo.ErrSameKey) {
					return ui.Explained{What: err.Error(), State: "nothing was changed", Next: []string{"lifeboat key list", "to call it otherwise, remove it under its name first"}, Err: err}
				}
				return err
			})
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
readable to whoever kept the old key.

The key that this host itself uses is removed only after a question (--yes
answers it): afterwards no command here opens the repository. So is the key of the
last recovery kit: afterwards no kit opens it. Kits that stay go on opening the
repository; make a new one all the same, for they do not know the new key
generation.`,
		Example: `  lifeboat key remove anna
  lifeboat kit --out /media/usb/lifeboat-kit.txt && lifeboat key remove recovery-kit`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.changeKeys(cmd.Context(), func(ctx context.Context, w *world) error {
				keys, _, err := w.repo.Keys(ctx)
				if err != nil {
					return err
				}
				names := repo.SameKey(keys, args[0])
				if err := a.confirmOwnKey(ctx, w, keys, names); err != nil {
					return err
				}
				if err := a.confirmLastKit(ctx, keys, names); err != nil {
					return err
				}
				if err := w.repo.RemoveKey(ctx, args[0], a.rewrap); err != nil {
					return err
				}
				if len(names) > 1 {
					a.UI().Note("the same key was there under %d names, and is removed under all of them: %s", len(names), strings.Join(names, ", "))
				}
				a.UI().Warn("what was written before stays readable to whoever kept the removed key")
				return nil
			})
		},
	}
}

// confirmOwnKey asks before the host locks itself out by removing the names that one
// key has.
func (a *app) confirmOwnKey(ctx context.Context, w *world, keys []repo.KeyInfo, names []string) error {
	own, with := recipientsOf(keys, w.src.identities), "its key file"
	if len(own) == 0 {
		with = "the passphrase"
		for _, k := range keys {
			if k.IsPassphrase() {
				own = append(own, k.Name)
			}
		}
	}
	removed := func(name string) bool { return slices.Contains(names, name) }
	if len(own) == 0 || !slices.ContainsFunc(own, removed) || slices.ContainsFunc(own, func(name string) bool { return !removed(name) }) {
		return nil
	}
	var others []string
	for _, k := range keys {
		if !removed(k.Name) {
			others = append(others, k.Name)
		}
	}
	if len(others) == 0 {
		return nil // the last one; the repository refuses that itself
	}
	return a.UI().Confirm(ctx, fmt.Sprintf("%q is what this host opens the repository with (%s). Once it is removed no command works here; left are: %s. To exchange it, first: lifeboat key add --name NAME KEY, and put the new key into the key file. Remove it?",
		strings.Join(names, ", "), with, strings.Join(others, ", ")))
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
	if err := a.confirmNoNewerKey(ctx, w); err != nil {
		return err
	}
	if err := change(ctx, w); err != nil {
		return err
	}
	a.noteMirrors(w)
	keys, generation, err := w.repo.Keys(ctx)
	if err != nil {
		return err
	}
	kit := keyAdvice(keys)
	return a.UI().Answer(map[string]any{"generation": uint32(generation), "advice": kit}, ui.Text(fmt.Sprintf("done; key generation %d", generation)), ui.Text(kit))
}
