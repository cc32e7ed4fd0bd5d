package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"filippo.io/age"
	"github.com/google/renameio/v2"
	"github.com/spf13/cobra"

	"lifeboat/internal/config"
	"lifeboat/internal/dr"
	"lifeboat/internal/kit"
	"lifeboat/internal/repo"
	"lifeboat/internal/seal"
	"lifeboat/internal/store/ocistore"
	"lifeboat/internal/ui"
)

// defaultKit is where init writes the recovery kit.
const defaultKit = "lifeboat-kit.txt"

type initFlags struct {
	kit, fingerprint, caFile string
	recipients               []string
	passphrase               bool
}

func newInitCmd(a *app) *cobra.Command {
	var f initFlags
	cmd := &cobra.Command{
		Use:     "init",
		GroupID: groupProtect,
		Short:   "Create the repository, its key and the recovery kit",
		Long: `Create the repository, its key and the recovery kit.

The key: the identity in the key file (LIFEBOAT_KEY_FILE, or key.txt beside the
configuration) opens the repository. If there is no such file one is made, mode
0600. --passphrase protects the repository by a passphrase instead; --recipient
lets others open it as well. The recovery kit gets an identity of its own.

Repository, key file and certificate are written into the configuration.`,
		Example: `  lifeboat init --repo oci://registry.example.org/dr
  lifeboat init --repo oci://registry.example.org:5000/dr --fingerprint sha256:5f0c… --kit /media/usb/kit.txt
  LIFEBOAT_PASSPHRASE_FILE=/root/passphrase lifeboat init --passphrase`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.runInit(cmd.Context(), f) },
	}
	cmd.Flags().StringVar(&f.kit, "kit", defaultKit, "`FILE` for the recovery kit (mode 0600, must not exist)")
	cmd.Flags().StringVar(&f.fingerprint, "fingerprint", "", "pin the registry's certificate: `sha256:HEX`, as registry serve prints it")
	cmd.Flags().StringVar(&f.caFile, "ca-file", "", "PEM `FILE` with the authority of the registry's certificate")
	cmd.Flags().StringArrayVar(&f.recipients, "recipient", nil, "age public `KEY` that can open the repository too (repeatable)")
	cmd.Flags().BoolVar(&f.passphrase, "passphrase", false, "open the repository by a passphrase instead of a key file")
	return cmd
}

// initAnswer is the JSON answer of init.
type initAnswer struct {
	Repo        string `json:"repo"`
	Repository  string `json:"repository"`
	Fingerprint string `json:"fingerprint"`
	KeyFile     string `json:"key_file,omitempty"`
	Kit         string `json:"kit"`
	Config      string `json:"config"`
}

func (a *app) runInit(ctx context.Context, f initFlags) error {
	cfg, err := a.ConfigToEdit()
	if err != nil {
		return err
	}
	raw, err := a.RepoURL()
	if err != nil {
		return err
	}
	set, err := a.Settings()
	if err != nil {
		return err
	}
	if _, err := os.Lstat(f.kit); err == nil {
		return fmt.Errorf("%s exists already; nothing was done; choose another file with --kit: %w", f.kit, dr.ErrHeld)
	}
	reg, err := registryOptions(cfg)
	if err != nil {
		return err
	}
	if f.fingerprint != "" {
		reg.Fingerprint = f.fingerprint
	}
	if f.caFile != "" {
		if reg.CAFile, err = filepath.Abs(f.caFile); err != nil {
			return err
		}
	}
	w := &world{cfg: cfg, src: source{url: raw, registry: reg, stateDir: set.StateDir.Value}}
	if err := a.openStore(ctx, w); err != nil {
		return err
	}
	recipients, keyFile, err := a.initRecipients(set, f)
	if err != nil {
		return err
	}
	kitIdentity, err := age.GenerateX25519Identity()
	if err != nil {
		return fmt.Errorf("identity of the recovery kit: %w", err)
	}
	kitRecipient, err := seal.ParseRecipient("recovery-kit", kitIdentity.Recipient().String())
	if err != nil {
		return err
	}
	w.repo, err = repo.Create(ctx, w.store, repo.CreateOptions{
		Local: a.local(w.src), Recipients: append(recipients, kitRecipient), Log: a.Log(),
		Notice: func(s string) { a.UI().Note("%s", s) },
	})
	if err != nil {
		return err
	}
	defer w.close()
	k, err := makeKit(ctx, w.repo, raw, reg, kitIdentity.String())
	if err != nil {
		return err
	}
	if err := kit.WriteFile(f.kit, k); err != nil {
		return ui.Explained{What: err.Error(), State: "the repository was created and opens with the key", Next: []string{"lifeboat kit --out FILE"}, Err: err}
	}
	if err := a.saveInit(cfg.Path, raw, keyFile, reg); err != nil {
		return err
	}
	path, err := filepath.Abs(f.kit)
	if err != nil {
		path = f.kit
	}
	ans := initAnswer{Repo: location(raw), Repository: w.repo.ID().String(), Fingerprint: w.repo.Fingerprint().String(), KeyFile: keyFile, Kit: path, Config: cfg.Path}
	return a.UI().Answer(ans, ui.Fields{
		{Name: "repository", Value: ans.Repo + "  (" + ans.Repository + ")"},
		{Name: "fingerprint", Value: ans.Fingerprint},
		{Name: "key file", Value: orNone(keyFile)},
		{Name: "recovery kit", Value: path + "  keep it secret, and away from this host"},
		{Name: "configuration", Value: cfg.Path},
	}, ui.Text("next: lifeboat protect SYSTEM --project PROJECT"))
}

func orNone(s string) string {
	if s == "" {
		return "none (passphrase)"
	}
	return s
}

// initRecipients finds who may open the new repository, making a key file where
// there is none.
func (a *app) initRecipients(set config.Settings, f initFlags) (out []seal.Recipient, keyFile string, err error) {
	for i, r := range f.recipients {
		rec, err := seal.ParseRecipient(fmt.Sprintf("recipient-%d", i+1), r)
		if err != nil {
			return nil, "", err
		}
		out = append(out, rec)
	}
	if f.passphrase {
		text, err := a.passphrase(set, true)()
		if err != nil {
			return nil, "", err
		}
		rec, err := seal.PassphraseRecipient("passphrase", text, 0)
		return append(out, rec), "", err
	}
	ids, err := a.keyFileIdentities(set)
	if err != nil {
		return nil, "", err
	}
	for i, id := range ids {
		public, ok := id.(interface{ Recipient() *age.X25519Recipient })
		if !ok {
			continue
		}
		name := "key-file"
		if i > 0 {
			name = fmt.Sprintf("key-file-%d", i+1)
		}
		rec, err := seal.ParseRecipient(name, public.Recipient().String())
		if err != nil {
			return nil, "", err
		}
		out = append(out, rec)
	}
	if len(out) == 0 {
		return nil, "", fmt.Errorf("key file %s holds no X25519 identity (age-keygen makes one): %w", set.KeyFile.Value, dr.ErrUsage)
	}
	return out, set.KeyFile.Value, nil
}

func (a *app) keyFileIdentities(set config.Settings) ([]age.Identity, error) {
	path := set.KeyFile.Value
	if _, err := os.Lstat(path); errors.Is(err, os.ErrNotExist) {
		id, err := age.GenerateX25519Identity()
		if err != nil {
			return nil, fmt.Errorf("make a key: %w", err)
		}
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return nil, fmt.Errorf("key file: %w", err)
		}
		text := fmt.Sprintf("# Lifeboat key, created %s\n# public key: %s\n%s\n", time.Now().UTC().Format(time.RFC3339), id.Recipient(), id)
		if err := renameio.WriteFile(path, []byte(text), 0o600); err != nil {
			return nil, fmt.Errorf("write key file %s: %w", path, err)
		}
		a.UI().Note("made the key file %s", path)
		return []age.Identity{id}, nil
	}
	return a.identities(set)
}

// makeKit gathers the content of a recovery kit.
func makeKit(ctx context.Context, r *repo.Repo, raw string, reg ocistore.Options, identity string) (kit.Kit, error) {
	k := kit.Kit{
		Created: time.Now().UTC().Truncate(time.Second), Repo: location(raw), Repository: r.ID(), Fingerprint: r.Fingerprint().String(),
		Username: reg.Username, Password: reg.Password, TLSFingerprint: reg.Fingerprint, Identity: identity,
		HighWater: map[string]uint64{},
	}
	if k.Username == "" {
		var err error
		if k.Username, k.Password, err = ocistore.StoredCredential(ctx, raw); err != nil {
			return k, fmt.Errorf("registry login for the recovery kit: %w", err)
		}
	}
	if reg.CAFile != "" && reg.Fingerprint == "" {
		pem, err := os.ReadFile(reg.CAFile)
		if err != nil {
			return k, fmt.Errorf("certificate for the recovery kit: %w", err)
		}
		k.TLSCA = string(pem)
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

// saveInit writes what was chosen into the configuration, so that later
// commands need no flags. What stands there already is left as it is.
func (a *app) saveInit(path, raw, keyFile string, reg ocistore.Options) error {
	edits := []func() (bool, error){func() (bool, error) { return config.SetTop(path, "repo", location(raw)) }}
	if keyFile != "" {
		edits = append(edits, func() (bool, error) { return config.SetTop(path, "key_file", keyFile) })
	}
	if reg.Fingerprint != "" || reg.CAFile != "" {
		edits = append(edits, func() (bool, error) { return config.SetRegistry(path, config.Registry{Fingerprint: reg.Fingerprint, CAFile: reg.CAFile}) })
	}
	for _, edit := range edits {
		_, err := edit()
		if errors.Is(err, dr.ErrHeld) {
			a.UI().Warn("%v", err)
			continue
		}
		if err != nil {
			return ui.Explained{
				What: err.Error(), State: "the repository was created and the recovery kit written",
				Next: []string{"write the repository into " + path + " by hand"}, Err: err,
			}
		}
	}
	a.reload()
	return nil
}
