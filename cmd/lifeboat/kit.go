package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"filippo.io/age"
	"github.com/google/renameio/v2"
	"github.com/spf13/cobra"

	"lifeboat/internal/kit"
	"lifeboat/internal/repo"
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
	if err := explainKit(kit.CheckNew(out)); err != nil {
		return err
	}
	out, err := filepath.Abs(out)
	if err != nil {
		return fmt.Errorf("recovery kit: %w", err)
	}
	w, err := a.open(ctx, false)
	if err != nil {
		return err
	}
	defer w.close()
	if err := a.confirmNoNewerKey(ctx, w); err != nil {
		return err
	}
	name, err := a.newKit(ctx, w, out)
	if err != nil {
		return err
	}
	a.noteMirrors(w)
	ans := struct {
		Kit       string `json:"kit"`
		Recipient string `json:"recipient"`
	}{out, name}
	return a.UI().Answer(ans, ui.Fields{{Name: "recovery kit", Value: out}, {Name: "recipient", Value: name}},
		ui.Text("keep it secret, and away from the hosts that it protects"))
}

// newKit writes a recovery kit with a new identity, which becomes a recipient.
// Where the kit cannot be written the recipient is taken away again.
func (a *app) newKit(ctx context.Context, w *world, path string) (name string, err error) {
	id, err := age.GenerateX25519Identity()
	if err != nil {
		return "", fmt.Errorf("identity of the recovery kit: %w", err)
	}
	name = kitName + "-" + time.Now().UTC().Format("20060102-150405")
	rec, err := seal.ParseRecipient(name, id.Recipient().String())
	if err != nil {
		return "", err
	}
	if err := w.repo.AddKey(ctx, rec); err != nil {
		return "", err
	}
	if err := a.putKit(ctx, w, path, id.String()); err != nil {
		return "", errors.Join(err, w.repo.RemoveKey(ctx, name, a.rewrap))
	}
	return name, nil
}

// putKit writes a recovery kit with an identity that is a recipient already.
func (a *app) putKit(ctx context.Context, w *world, path, identity string) error {
	k, err := makeKit(ctx, w.repo, w.src, identity)
	if err != nil {
		return err
	}
	if err := kit.WriteFile(path, k); err != nil {
		return err
	}
	a.noteKit(w, path)
	return nil
}

// noteKit remembers that a kit was written, so that init does not make one more
// each time. A note that is lost costs a kit too many.
func (a *app) noteKit(w *world, path string) {
	if abs, err := filepath.Abs(path); err == nil {
		path = abs
	}
	name := kitNote(w)
	err := os.MkdirAll(filepath.Dir(name), 0o700)
	if err == nil {
		err = renameio.WriteFile(name, []byte(path+"\n"), 0o600)
	}
	if err != nil {
		a.Log().Debug("the recovery kit is not noted", "err", err)
	}
}

// kitWritten tells where this host wrote the recovery kit of a repository.
func (a *app) kitWritten(w *world) (path string, ok bool) {
	text, err := os.ReadFile(kitNote(w))
	return strings.TrimSpace(string(text)), err == nil
}

func kitNote(w *world) string {
	return filepath.Join(w.src.stateDir, "kits", w.repo.ID().String())
}

// makeKit gathers the content of a recovery kit.
func makeKit(ctx context.Context, r *repo.Repo, src source, identity string) (kit.Kit, error) {
	own, err := kitMirror(ctx, address{src.url, src.registry})
	if err != nil {
		return kit.Kit{}, err
	}
	k := kit.Kit{
		Created: time.Now().UTC().Truncate(time.Second), Repo: own.Repo, Repository: r.ID(), Fingerprint: r.Fingerprint().String(),
		Username: own.Username, Password: own.Password, TLSFingerprint: own.TLSFingerprint, TLSCA: own.TLSCA, Identity: identity,
		HighWater: map[string]uint64{}, Generations: map[uint32]string{},
	}
	for g, w := range r.Witnesses() {
		k.Generations[uint32(g)] = w
	}
	if k.Mirrors, err = kitMirrors(ctx, src.mirrors); err != nil {
		return k, err
	}
	marks, err := r.Marks()
	if err != nil {
		return k, err
	}
	for class, n := range marks {
		k.HighWater[class] = uint64(n)
	}
	return k, nil
}
