package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"filippo.io/age"
	"github.com/spf13/cobra"

	"lifeboat/internal/config"
	"lifeboat/internal/dr"
	"lifeboat/internal/kit"
	"lifeboat/internal/repo"
	"lifeboat/internal/seal"
	"lifeboat/internal/ui"
)

// defaultKit is where init writes the recovery kit.
const defaultKit = "lifeboat-kit.txt"

type initFlags struct {
	kit, fingerprint, caFile, username, passwordFile, site string
	recipients                                             []string
	passphrase, join, kitGiven                             bool
}

func newInitCmd(a *app) *cobra.Command {
	var f initFlags
	cmd := &cobra.Command{
		Use:     "init",
		GroupID: groupProtect,
		Short:   "Create the repository, its key and the recovery kit; or join one from a further host",
		Long: `Create the repository, its key and the recovery kit.

The key: the identity in the key file (LIFEBOAT_KEY_FILE, or key.txt beside the
configuration) opens the repository. If there is no such file one is made, mode
0600. --passphrase protects the repository by a passphrase instead; --recipient
lets others open it as well. The recovery kit gets an identity of its own.

The registry's login: --username and --password-file, else the configuration,
else Docker's credential store; a registry that wants one is asked for on a
terminal and kept in a file of mode 0600 beside the configuration.

Repository, key file, certificate and login are written into the configuration.
Where the repository exists already and this host's key opens it, init completes
what is missing here.

--join sets a further host up for an existing repository: with a key file or
passphrase that opens it, or with --kit FILE, an existing recovery kit. Then
this host gets a key of its own, and the kit can go back into the safe.`,
		Example: `  lifeboat init --repo oci://registry.example.org/dr
  lifeboat init --repo oci://registry.example.org:5000/dr --fingerprint sha256:5f0c… --username backup
  lifeboat init --join --kit /media/usb/lifeboat-kit.txt
  LIFEBOAT_PASSPHRASE_FILE=/root/passphrase lifeboat init --passphrase`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			f.kitGiven = cmd.Flags().Changed("kit")
			return a.runInit(cmd.Context(), f)
		},
	}
	cmd.Flags().StringVar(&f.kit, "kit", defaultKit, "`FILE` for the recovery kit (mode 0600, must not exist); with --join the kit to read")
	cmd.Flags().BoolVar(&f.join, "join", false, "set this host up for a repository that exists")
	cmd.Flags().StringVar(&f.fingerprint, "fingerprint", "", "pin the registry's certificate: `sha256:HEX`, as registry serve prints it")
	cmd.Flags().StringVar(&f.caFile, "ca-file", "", "PEM `FILE` with the authority of the registry's certificate")
	cmd.Flags().StringVar(&f.username, "username", "", "`NAME` to log in to the registry with")
	cmd.Flags().StringVar(&f.passwordFile, "password-file", "", "`FILE` with the password of --username (mode 0600); without it a terminal is asked")
	cmd.Flags().StringVar(&f.site, "site", "", "`NAME` of this site in the configuration (default: the engine's host name)")
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
	// Kit is empty where none was written.
	Kit string `json:"kit"`
	// Config is the configuration that names this repository; empty where it
	// names another and was left alone.
	Config        string `json:"config"`
	ConfigChanged bool   `json:"config_changed"`
	// Existed: the repository was there already; Joined: by --join.
	Existed bool `json:"existed"`
	Joined  bool `json:"joined"`
}

// setup is one run of init, or of what recover does of it.
type setup struct {
	a   *app
	f   initFlags
	cfg *config.Config
	set config.Settings
	w   *world
	// kit is the recovery kit that is there already: what --join reads, or what
	// an earlier run wrote.
	kit *kit.Kit
	// passwordFile is where the login's password stands; empty where it is to be
	// written beside the configuration, or where Docker's store has it.
	passwordFile string
	// ca is the registry's authority out of a kit.
	ca string
}

func (a *app) runInit(ctx context.Context, f initFlags) error {
	s, err := a.newSetup(f)
	if err != nil {
		return err
	}
	defer s.w.close()
	if err := s.connect(ctx); err != nil {
		return err
	}
	exists, err := repo.Exists(ctx, s.w.store)
	switch {
	case err != nil:
		return a.explainRegistry(s.w.src, "nothing was done", err)
	case f.join:
		return s.join(ctx)
	case exists:
		return s.resume(ctx)
	default:
		return s.create(ctx)
	}
}

// newSetup reads settings and flags and finds what would stop init later,
// before anything is made or asked.
func (a *app) newSetup(f initFlags) (*setup, error) {
	s := &setup{a: a, f: f}
	var err error
	if s.f.kit, err = filepath.Abs(f.kit); err != nil {
		return nil, fmt.Errorf("recovery kit: %w", err)
	}
	if s.cfg, err = a.ConfigToEdit(); err != nil {
		return nil, err
	}
	if s.set, err = a.Settings(); err != nil {
		return nil, err
	}
	if s.set.KeyFile.Value, err = filepath.Abs(s.set.KeyFile.Value); err != nil {
		return nil, fmt.Errorf("key file: %w", err)
	}
	if err := s.checkFlags(); err != nil {
		return nil, err
	}
	if err := s.checkKit(); err != nil {
		return nil, err
	}
	if err := s.setSource(); err != nil {
		return nil, err
	}
	if s.configured() {
		if err := config.CanEdit(a.ConfigPath()); err != nil {
			return nil, ui.Explained{What: err.Error(), State: "nothing was done", Next: []string{"run it as root, or name another configuration: --config FILE, " + config.EnvConfig}, Err: err}
		}
	}
	return s, nil
}

func (s *setup) checkFlags() error {
	refuse := func(what string, next ...string) error {
		return ui.Explained{What: what, State: "nothing was done", Next: next, Err: dr.ErrUsage}
	}
	switch f := s.f; {
	case f.passwordFile != "" && f.username == "":
		return refuse("--password-file needs --username", "lifeboat init --username NAME --password-file "+f.passwordFile)
	case f.username != "" && f.passwordFile == "" && s.a.terminal() == nil:
		return refuse("--username without --password-file asks for the password on a terminal, and there is none", "write the password into a file of mode 0600 and pass --password-file FILE")
	case f.join && len(f.recipients) > 0:
		return refuse("--recipient is for a new repository", "lifeboat key add --name NAME KEY  (once this host has joined)")
	case f.join && f.kitGiven && f.passphrase:
		return refuse("--join takes --kit or --passphrase, not both", "lifeboat init --join --kit FILE")
	}
	if s.f.site != "" {
		if _, err := dr.ParseSite(s.f.site); err != nil {
			return err
		}
	}
	return nil
}

// checkKit makes sure that the kit can be written, or reads the one to join
// with. A kit that an earlier run wrote for this repository is no obstacle.
func (s *setup) checkKit() error {
	if s.f.join && !s.f.kitGiven {
		return nil
	}
	if s.f.join {
		k, err := readKit(s.f.kit)
		s.kit = &k
		return err
	}
	err := kit.CheckNew(s.f.kit)
	if errors.Is(err, dr.ErrHeld) {
		if k, rerr := kit.ReadFile(s.f.kit); rerr == nil && k.Repo == location(s.set.Repo.Value) {
			s.kit = &k
			return nil
		}
	}
	return explainKit(err)
}

// explainKit says what to do when a kit cannot be written.
func explainKit(err error) error {
	if err == nil {
		return nil
	}
	return ui.Explained{What: err.Error(), State: "nothing was done", Next: []string{"name another file for the recovery kit"}, Err: err}
}

// readKit reads a recovery kit; the error is explained.
func readKit(path string) (kit.Kit, error) {
	k, err := kit.ReadFile(path)
	if err != nil {
		next := "look for the right file; it begins with LIFEBOAT RECOVERY KIT"
		if errors.Is(err, dr.ErrNotFound) {
			next = "check the path; --kit takes the file that init or kit wrote"
		}
		return k, ui.Explained{What: err.Error(), State: "nothing was done", Next: []string{next}, Err: err}
	}
	return k, nil
}

// setSource brings settings, kit and flags together: the flags win.
func (s *setup) setSource() (err error) {
	a, src := s.a, source{}
	if s.f.join && s.kit != nil {
		if src, err = a.kitSource(*s.kit); err != nil {
			return err
		}
		if a.flags.repo != "" {
			src.url = a.flags.repo
		}
		if src.registry.CAFile != "" {
			s.ca = s.kit.TLSCA
		}
	} else {
		if src.url, err = a.RepoURL(); err != nil {
			return err
		}
		if src.registry, err = registryOptions(s.cfg, src.url); err != nil {
			return err
		}
		if src.registry.Username != "" {
			s.passwordFile = s.cfg.Registry.PasswordFile
		}
		src.passphrase = a.passphrase(s.set, false)
	}
	src.stateDir = s.set.StateDir.Value
	if s.f.fingerprint != "" {
		src.registry.Fingerprint = s.f.fingerprint
	}
	if s.f.caFile != "" {
		s.ca = ""
		if src.registry.CAFile, err = filepath.Abs(s.f.caFile); err != nil {
			return fmt.Errorf("--ca-file: %w", err)
		}
	}
	s.w = &world{cfg: s.cfg, src: src}
	return s.setLogin()
}

// create makes the repository: key file, repository, configuration, kit, in
// this order, so that whatever stops it leaves what the next run goes on with.
func (s *setup) create(ctx context.Context) error {
	if s.kit != nil {
		return explainKit(fmt.Errorf("%s is the recovery kit of another repository, which stood at this address: %w", s.f.kit, dr.ErrHeld))
	}
	recipients, keyFile, err := s.a.initRecipients(s.set, s.f)
	if err != nil {
		return err
	}
	kitIdentity, err := age.GenerateX25519Identity()
	if err != nil {
		return fmt.Errorf("identity of the recovery kit: %w", err)
	}
	kitRecipient, err := seal.ParseRecipient(kitName, kitIdentity.Recipient().String())
	if err != nil {
		return err
	}
	s.w.repo, err = repo.Create(ctx, s.w.store, repo.CreateOptions{
		Local: s.a.local(s.w.src), Recipients: append(recipients, kitRecipient), Log: s.a.Log(),
		Notice: func(text string) { s.a.UI().Note("%s", text) },
	})
	if errors.Is(err, dr.ErrHeld) {
		return s.taken(err)
	}
	if err != nil {
		err = s.a.explainRegistry(s.w.src, "the repository was not created, or its creation was not confirmed", err)
		return s.unfinished(err, "it is not known whether the repository was created")
	}
	ans := s.answer(keyFile)
	if err := s.configure(ctx, &ans); err != nil {
		return s.unfinished(err, "the repository was created and opens with the key; configuration and recovery kit are missing")
	}
	if err := s.writeKit(ctx, &ans, kitIdentity.String()); err != nil {
		return s.unfinished(err, "the repository was created and the configuration written; the recovery kit is missing")
	}
	return s.done(ans, "")
}

// unfinished tells that init can simply be run again.
func (s *setup) unfinished(err error, state string) error {
	var x ui.Explainer
	if errors.As(err, &x) {
		return err
	}
	return ui.Explained{What: err.Error(), State: state, Next: []string{"mend that, then run the same command again: it completes what is missing"}, Err: err}
}

// taken: the address holds a repository that this host's key does not open.
func (s *setup) taken(err error) error {
	url := location(s.w.src.url)
	return ui.Explained{
		What: fmt.Sprintf("%s holds a repository already, which this host cannot open: %v", url, err), State: "nothing was done",
		Next: []string{
			"lifeboat init --join --kit FILE  (to use that repository from this host, with its recovery kit)",
			"or copy a key that opens it to " + s.set.KeyFile.Value + ", then lifeboat init --join --repo " + url,
			"or create one under another name: lifeboat init --repo " + url + "-2",
		},
		Err: dr.ErrHeld,
	}
}

// resume completes an init that was cut off, or finds that nothing is missing.
func (s *setup) resume(ctx context.Context) error {
	keyFile, err := s.openOwn(ctx)
	if errors.Is(err, dr.ErrWrongKey) {
		return s.taken(rootCause(err))
	}
	if err != nil {
		return err
	}
	if s.kit != nil && s.kit.Repository != s.w.repo.ID() {
		return explainKit(fmt.Errorf("%s is the recovery kit of another repository, which stood at this address: %w", s.f.kit, dr.ErrHeld))
	}
	ans := s.answer(keyFile)
	ans.Existed = true
	if err := s.configure(ctx, &ans); err != nil {
		return s.unfinished(err, "the repository exists and opens with this host's key; the configuration is not complete")
	}
	note := ""
	switch written, known := s.a.kitWritten(s.w); {
	case s.kit != nil:
		ans.Kit = s.f.kit
		s.a.noteKit(s.w, s.f.kit)
	case known:
		note = "\nits recovery kit was written to " + written + "; for another one: lifeboat kit --out FILE"
	default:
		if err := s.writeKit(ctx, &ans, ""); err != nil {
			return s.unfinished(err, "the repository exists and the configuration is complete; the recovery kit is missing")
		}
	}
	return s.done(ans, "the repository exists already and this host's key opens it"+note)
}

// rootCause takes the explanation off an error that gets another one.
func rootCause(err error) error {
	var closed *repo.ClosedError
	if errors.As(err, &closed) {
		return closed
	}
	return err
}

func (s *setup) answer(keyFile string) initAnswer {
	r := s.w.repo
	return initAnswer{Repo: location(s.w.src.url), Repository: r.ID().String(), Fingerprint: r.Fingerprint().String(), KeyFile: keyFile}
}

// writeKit writes a recovery kit: with the identity that the repository was
// created with, or with a new one, which becomes a recipient.
func (s *setup) writeKit(ctx context.Context, ans *initAnswer, identity string) (err error) {
	if identity == "" {
		_, err = s.a.newKit(ctx, s.w, s.f.kit)
	} else {
		err = s.a.putKit(ctx, s.w, s.f.kit, identity)
	}
	if err == nil {
		ans.Kit = s.f.kit
	}
	return err
}

func (s *setup) done(ans initAnswer, note string) error {
	fields := ui.Fields{
		{Name: "repository", Value: ans.Repo + "  (" + ans.Repository + ")"},
		{Name: "fingerprint", Value: ans.Fingerprint},
		{Name: "key file", Value: orNone(ans.KeyFile)},
	}
	if ans.Kit != "" {
		fields = append(fields, ui.Field{Name: "recovery kit", Value: ans.Kit + "  keep it secret, and away from this host"})
	}
	next := "next: lifeboat protect SYSTEM --project PROJECT"
	if ans.Joined {
		next = "next: lifeboat status; as a stand-in: lifeboat failover SYSTEM --dry-run"
	}
	switch path := s.a.ConfigPath(); {
	case ans.Config == "":
		fields = append(fields, ui.Field{Name: "configuration", Value: path + " names another repository (" + s.cfg.Repo + ") and was left as it is"})
		next = "next: for each repository a configuration of its own: lifeboat init --config OTHER.yaml --repo " + ans.Repo
	case ans.ConfigChanged:
		fields = append(fields, ui.Field{Name: "configuration", Value: path})
	default:
		fields = append(fields, ui.Field{Name: "configuration", Value: path + " (as it was)"})
	}
	if note != "" {
		next = note + "\n" + next
	}
	return s.a.UI().Answer(ans, fields, ui.Text(next))
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
	public := publicKeys(ids)
	for i, key := range public {
		name := "key-file"
		if i > 0 {
			name = fmt.Sprintf("key-file-%d", i+1)
		}
		rec, err := seal.ParseRecipient(name, key)
		if err != nil {
			return nil, "", err
		}
		out = append(out, rec)
	}
	if len(public) == 0 {
		return nil, "", noIdentity(set)
	}
	return out, set.KeyFile.Value, nil
}

func noIdentity(set config.Settings) error {
	return ui.Explained{
		What: fmt.Sprintf("key file %s holds no identity whose public key could be a recipient", set.KeyFile.Value), State: "nothing was done",
		Next: []string{"age-keygen makes one; or name a file that does not exist, and one is made there"}, Err: dr.ErrUsage,
	}
}

// publicKeys are the age public keys of identities.
func publicKeys(ids []age.Identity) (out []string) {
	for _, id := range ids {
		switch x := id.(type) {
		case *age.X25519Identity:
			out = append(out, x.Recipient().String())
		case *age.HybridIdentity:
			out = append(out, x.Recipient().String())
		}
	}
	return out
}
