package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"filippo.io/age"
	"golang.org/x/term"

	"lifeboat/internal/config"
	"lifeboat/internal/dr"
	"lifeboat/internal/engine"
	"lifeboat/internal/kit"
	"lifeboat/internal/ledger"
	"lifeboat/internal/repo"
	"lifeboat/internal/seal"
	"lifeboat/internal/site"
	"lifeboat/internal/store"
	"lifeboat/internal/store/ocistore"
	"lifeboat/internal/suggest"
	"lifeboat/internal/ui"
)

// claimSettle is waited before an epoch claim is read back from a registry that
// lets tags be overwritten (docs/adr/0001).
const claimSettle = 3 * time.Second

// source says where the repository is and what opens it: the settings, or a
// recovery kit.
type source struct {
	url      string
	registry ocistore.Options
	// mirrors hold exact copies of the repository.
	mirrors    []address
	identities []age.Identity
	passphrase func() (string, error)
	// second is the word of the flags that name the key of a second repository.
	second string
	// keysFrom are registries whose key records open the repository where its own
	// are damaged (repair).
	keysFrom []address
	// repairs: it is opened to be repaired; what this host keeps of key records counts.
	repairs  bool
	expect   *repo.Expected
	marks    map[string]dr.Number
	limits   config.Limits
	stateDir string
}

// world is what most commands work with.
type world struct {
	cfg    *config.Config
	src    source
	store  store.Store
	meter  *store.Meter
	repo   *repo.Repo
	ledger *ledger.Ledger
	// engine, state and name of this site; nil and empty without needEngine.
	engine *engine.Engine
	info   dr.EngineInfo
	host   engine.HostFS
	state  *site.State
	site   dr.Site
	// degraded: trees go through the engine's archive API (--degraded).
	degraded bool
}

func (w *world) close() {
	if w.repo != nil {
		_ = w.repo.Close() // caches only; nothing that was asked for depends on it
	}
	if w.engine != nil {
		_ = w.engine.Close()
	}
}

// open connects to engine and repository as the settings say.
func (a *app) open(ctx context.Context, withEngine bool) (*world, error) {
	src, err := a.source()
	if err != nil {
		return nil, err
	}
	return a.openSource(ctx, src, withEngine)
}

// openSigning is open without an engine, for what is written and concerns none.
func (a *app) openSigning(ctx context.Context) (*world, error) {
	src, err := a.source()
	if err != nil {
		return nil, err
	}
	return a.openSourceSigning(ctx, src)
}

func (a *app) openSourceSigning(ctx context.Context, src source) (*world, error) {
	dir, err := signingDir(src.stateDir)
	if err != nil {
		return nil, err
	}
	key, err := repo.LoadOrCreateHostKey(dir)
	if err != nil {
		return nil, err
	}
	return a.openAs(ctx, src, false, key)
}

// signingDir is where the key is with which this machine signs: that of the only
// engine that it has worked with, or else one of its own.
func signingDir(stateDir string) (string, error) {
	engines := filepath.Join(stateDir, "engines")
	list, err := os.ReadDir(engines)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("state directory: %w", err)
	}
	if len(list) == 1 && list[0].IsDir() {
		return filepath.Join(engines, list[0].Name()), nil
	}
	dir := filepath.Join(stateDir, "operator")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", fmt.Errorf("state directory: %w (set state_dir in the configuration, or LIFEBOAT_STATE_DIR)", err)
	}
	return dir, nil
}

func (a *app) openSource(ctx context.Context, src source, withEngine bool) (*world, error) {
	return a.openAs(ctx, src, withEngine, nil)
}

// openAs signs what is written with host; nil means the key of the engine.
func (a *app) openAs(ctx context.Context, src source, withEngine bool, host *repo.HostKey) (*world, error) {
	cfg, err := a.Config()
	if err != nil {
		return nil, err
	}
	w := &world{cfg: cfg, src: src, meter: &store.Meter{}, site: cfg.Site}
	if withEngine {
		if err := a.openEngine(ctx, w); err != nil {
			w.close()
			return nil, err
		}
		if host, err = repo.LoadOrCreateHostKey(w.state.Dir()); err != nil {
			w.close()
			return nil, err
		}
	}
	if err := a.openStore(ctx, w); err != nil {
		w.close()
		return nil, err
	}
	caps, err := a.reach(ctx, w)
	if err != nil {
		w.close()
		return nil, err
	}
	if w.repo, err = a.openRepo(ctx, w, host); err != nil {
		w.close()
		return nil, err
	}
	settle := time.Duration(0)
	if !caps.ImmutableTags {
		settle = claimSettle
	}
	here := ledger.Here{StateDir: src.stateDir}
	if _, err := os.Stat(a.ConfigPath()); err == nil {
		here.Config = a.ConfigPath()
	}
	w.ledger = ledger.New(w.repo, settle, here)
	return w, nil
}

// openRepo opens the repository of an open store; host signs, and may be nil.
// The error is explained.
func (a *app) openRepo(ctx context.Context, w *world, host *repo.HostKey) (*repo.Repo, error) {
	src := w.src
	var keysFrom []repo.KeySource
	for _, at := range src.keysFrom {
		st, err := ocistore.Open(ctx, at.url, a.connection(w, at.registry))
		if err != nil {
			return nil, err
		}
		keysFrom = append(keysFrom, repo.KeySource{Location: location(at.url), Store: st})
	}
	r, err := repo.Open(ctx, w.store, repo.OpenOptions{
		Local:      a.local(src),
		Identities: src.identities, Passphrase: src.passphrase, Host: host, HostName: string(w.site), AcceptOlder: a.flags.acceptOlder,
		Expect: src.expect, KeysFrom: keysFrom, ForRepair: src.repairs, Marks: src.marks, Log: a.Log(), Notice: func(s string) { a.UI().Note("%s", s) },
	})
	return r, a.explainOpen(src, err)
}

func (a *app) local(src source) repo.Local {
	return repo.Local{Location: location(src.url), StateDir: filepath.Join(src.stateDir, "repositories"), CacheDir: filepath.Join(src.stateDir, "cache")}
}

// location is a repository's URL without a login.
func location(raw string) string {
	u, err := url.Parse(raw)
	if err != nil {
		return raw
	}
	u.User = nil
	return u.String()
}

func (a *app) openEngine(ctx context.Context, w *world) error {
	e, host, err := a.reachEngine(ctx)
	if err != nil {
		return err
	}
	a.reached = nil // it belongs to w now
	w.engine, w.host, w.info = e, host, host.Info()
	w.site = w.cfg.Site
	if w.site == "" {
		w.site = config.SanitizeName(w.info.Name)
	}
	w.state, err = site.Open(w.src.stateDir, w.info.ID)
	return err
}

// reachEngine connects to the engine, once for a command: what it says of itself
// takes it longer than all else that it is asked.
func (a *app) reachEngine(ctx context.Context) (*engine.Engine, engine.HostFS, error) {
	if a.reached != nil {
		return a.reached, a.reachedHost, nil
	}
	set, err := a.Settings()
	if err != nil {
		return nil, engine.HostFS{}, err
	}
	e, err := engine.Open(ctx, engine.Options{Host: set.EngineHost.Value, Log: a.Log()})
	if err != nil {
		return nil, engine.HostFS{}, err
	}
	host, err := e.HostFS(ctx)
	if err != nil {
		_ = e.Close()
		return nil, engine.HostFS{}, err
	}
	a.reached, a.reachedHost = e, host
	return e, host, nil
}

// source reads the settings.
func (a *app) source() (source, error) {
	if a.flags.kitStdin {
		return a.stdinSource()
	}
	if a.kitSrc != nil {
		return *a.kitSrc, nil
	}
	raw, err := a.RepoURL()
	if err != nil {
		return source{}, err
	}
	cfg, err := a.Config()
	if err != nil {
		return source{}, err
	}
	set, err := a.Settings()
	if err != nil {
		return source{}, err
	}
	src := source{limits: cfg.Limits, stateDir: set.StateDir.Value}
	first, rest, err := a.configAddresses(cfg, raw)
	if err != nil {
		return source{}, err
	}
	src.url, src.registry, src.mirrors = first.url, first.registry, rest
	if src.identities, err = a.identities(set); err != nil {
		return source{}, err
	}
	src.passphrase = a.passphrase(set, false)
	return src, nil
}

// registryOptions are the configuration's, for the repository at raw. They
// belong to the registry of the configuration's own repository: another one
// gets neither its pin nor its login.
func registryOptions(cfg *config.Config, raw string) (ocistore.Options, error) {
	r := cfg.Registry
	if cfg.Repo != "" && hostOf(cfg.Repo) != hostOf(raw) {
		r = config.Registry{}
	}
	return optionsOf(cfg, r)
}

// optionsOf are those of one registry of the configuration.
func optionsOf(cfg *config.Config, r config.Registry) (o ocistore.Options, err error) {
	o = ocistore.Options{CAFile: r.CAFile, Fingerprint: r.Fingerprint, Username: r.Username, StallTimeout: r.StallTimeout}
	if r.PasswordFile != "" {
		o.Password, err = readPassword("registry password (registry.password_file in "+cfg.Path+")", r.PasswordFile)
	}
	return o, err
}

// readPassword reads a secret of one line; the error is explained.
func readPassword(what, path string) (string, error) {
	secret, err := config.ReadSecretFile(path)
	if err != nil {
		return "", explainSecret(what, err, "write the password into the file (mode 0600), or name the right file")
	}
	return strings.TrimRight(string(secret), "\r\n"), nil
}

// explainSecret says what to do when a file with a secret cannot be read.
func explainSecret(what string, err error, next ...string) error {
	if !errors.Is(err, dr.ErrNotFound) {
		next = []string{"mend that, then run the same command again"}
	}
	return ui.Explained{What: what + ": " + err.Error(), State: "nothing was done", Next: next, Err: err}
}

// identities reads the key file. One that is not there is no error unless it
// was asked for: the repository may have a passphrase.
func (a *app) identities(set config.Settings) ([]age.Identity, error) {
	raw, err := config.ReadSecretFile(set.KeyFile.Value)
	if errors.Is(err, dr.ErrNotFound) && set.KeyFile.From == "default" {
		return nil, nil
	}
	if err != nil {
		return nil, explainSecret("key file ("+set.KeyFile.From+")", err,
			"name the right file: "+config.EnvKeyFile+", or key_file in "+a.ConfigPath(),
			"without a key: lifeboat init --join --kit FILE  (this host gets one of its own by the recovery kit)")
	}
	ids, err := age.ParseIdentities(bytes.NewReader(raw))
	if err != nil {
		return nil, fmt.Errorf("key file %s does not hold an age identity: %w", set.KeyFile.Value, dr.ErrUsage)
	}
	return ids, nil
}

// passphrase gives the passphrase from its file, or asks on the terminal.
func (a *app) passphrase(set config.Settings, twice bool) func() (string, error) {
	return func() (string, error) {
		if set.PassphraseFile.Value != "" {
			secret, err := config.ReadSecretFile(set.PassphraseFile.Value)
			if err != nil {
				return "", explainSecret("passphrase file ("+set.PassphraseFile.From+")", err, "name the right file: "+config.EnvPassphraseFile)
			}
			return strings.TrimRight(string(secret), "\r\n"), nil
		}
		f := a.terminal()
		if f == nil {
			return "", ui.Explained{
				What:  "no key opens the repository, and nobody is here to type a passphrase",
				State: "nothing was done",
				Next:  []string{"set " + config.EnvPassphraseFile + " to a file with the passphrase (mode 0600), or " + config.EnvKeyFile + " to an age identity file"},
				Err:   dr.ErrWrongKey,
			}
		}
		first, err := a.ask(f, "Passphrase of the repository: ")
		if err != nil || !twice {
			return first, err
		}
		second, err := a.ask(f, "Again: ")
		if err == nil && first != second {
			err = fmt.Errorf("the two passphrases differ: %w", dr.ErrUsage)
		}
		return first, err
	}
}

func (a *app) ask(f *os.File, prompt string) (string, error) {
	a.UI().Flush()
	fmt.Fprint(a.err, prompt)
	secret, err := term.ReadPassword(int(f.Fd()))
	fmt.Fprintln(a.err)
	if err != nil {
		return "", fmt.Errorf("read passphrase: %w", err)
	}
	return string(secret), nil
}

func isTerminal(f *os.File) bool { return term.IsTerminal(int(f.Fd())) }

// explainOpen says what to do when the repository does not open.
func (a *app) explainOpen(src source, err error) error {
	const untouched = "nothing was read or changed"
	var x ui.Explainer
	var closed *repo.ClosedError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &x):
		return err
	case errors.As(err, &closed):
		next := a.nextClosed(src, closed)
		if errors.Is(err, repo.ErrKeysDamaged) {
			next = append(next, nextKeysDamaged(src)...)
		}
		return ui.Explained{What: err.Error(), State: untouched, Next: next, Err: err}
	case errors.Is(err, repo.ErrKeyKept):
		return ui.Explained{What: err.Error(), State: untouched, Next: a.nextKeyKept(src), Err: err}
	case errors.Is(err, repo.ErrKeysDamaged):
		return ui.Explained{What: err.Error(), State: untouched, Next: nextKeysDamaged(src), Err: err}
	case errors.Is(err, repo.ErrContradicting):
		return ui.Explained{
			What: err.Error(), State: untouched,
			Next: []string{
				"lifeboat init --join --kit FILE  (the recovery kit says which repository it is; then this host knows)",
				"or have somebody who knows the repository look (lifeboat check, at a host that has used it), and an operator delete the tags that are not its own",
			}, Err: err,
		}
	case errors.Is(err, fs.ErrPermission):
		return ui.Explained{
			What: err.Error(), State: untouched,
			Next: []string{"run it as root, or name a directory of your own for what is remembered: " + config.EnvStateDir}, Err: err,
		}
	case errors.Is(err, repo.ErrNoRepository):
		return ui.Explained{
			What: err.Error(), State: "nothing was changed",
			Next: []string{"check the address; to make a repository there: lifeboat init --repo " + location(src.url)}, Err: err,
		}
	}
	return a.explainRegistry(src, untouched, err)
}

// nextKeyKept leads on where this host keeps a key record that the registry lacks.
func (a *app) nextKeyKept(src source) []string {
	repair := "lifeboat repair"
	if cfg, err := a.Config(); err != nil || location(cfg.Repo) != location(src.url) {
		repair = suggest.Command("lifeboat", "repair", "--repo", location(src.url))
	}
	return []string{
		repair + "  (puts the key record back from what this host keeps; with a login that has the access role operator)",
		"if the registry was restored from a backup of its own: accept the older state of the rest after that (--accept-older)",
	}
}

// nextKeysDamaged leads on from a repository that does not open because of its key
// records.
func nextKeysDamaged(src source) (next []string) {
	for _, m := range src.mirrors {
		next = append(next, "lifeboat repair --from "+location(m.url)+"  (puts back the exact copies that the mirror has)")
	}
	if len(next) == 0 {
		next = append(next, "lifeboat repair --from URL  (of a registry with an exact copy: a mirror)")
	}
	return append(next,
		"or lifeboat repair at a host that has opened the repository before: it keeps the key records",
		"if the registry was restored from a backup of its own and nothing has what is missing: --accept-older")
}

// nextClosed leads on from a key that does not open the repository.
func (a *app) nextClosed(src source, closed *repo.ClosedError) (next []string) {
	if src.second != "" {
		return src.nextSecond(closed.Passphrase())
	}
	public := publicKeys(src.identities)
	if closed.Removed {
		if len(public) > 0 {
			next = append(next, "to let this host in again, at one that opens the repository: lifeboat key add --name NAME "+public[0])
		}
		return append(next, "or give it another key with a recovery kit that is still valid: lifeboat init --join --kit FILE")
	}
	onlyPassphrase := !slices.ContainsFunc(closed.Recipients, func(k repo.KeyInfo) bool { return !k.IsPassphrase() })
	if closed.Passphrase() {
		next = append(next, "give the right passphrase: on a terminal, or in the file that "+config.EnvPassphraseFile+" names")
	}
	if !onlyPassphrase {
		next = append(next,
			"set "+config.EnvKeyFile+" to the key file of one of its recipients",
			"or give this host a key of its own with the recovery kit: lifeboat init --join --kit FILE")
	}
	return next
}

// kitSource is a source that needs nothing but the kit.
func (a *app) kitSource(k kit.Kit) (source, error) {
	set, err := a.Settings()
	if err != nil {
		return source{}, err
	}
	src := source{stateDir: set.StateDir.Value, marks: map[string]dr.Number{}}
	all, err := kitAddresses(k, src.stateDir)
	if err != nil {
		return source{}, err
	}
	first, rest, ok := pick(all, a.flags.repo)
	if !ok {
		first, rest = all[0], all[1:]
	}
	src.url, src.registry, src.mirrors = first.url, first.registry, rest
	if k.Identity != "" {
		if src.identities, err = age.ParseIdentities(strings.NewReader(k.Identity)); err != nil {
			return source{}, fmt.Errorf("recovery kit: its identity is damaged: %w", dr.ErrUsage)
		}
	}
	src.passphrase = a.passphrase(set, false)
	var fp seal.Fingerprint
	if err := fp.UnmarshalText([]byte(k.Fingerprint)); err != nil {
		return source{}, fmt.Errorf("recovery kit: fingerprint: %w: %w", err, dr.ErrUsage)
	}
	src.expect = &repo.Expected{Repo: k.Repository, Fingerprint: fp, Witnesses: map[seal.Generation]string{}}
	for g, w := range k.Generations {
		src.expect.Witnesses[seal.Generation(g)] = w
	}
	for class, n := range k.HighWater {
		src.marks[class] = dr.Number(n)
	}
	return src, nil
}
