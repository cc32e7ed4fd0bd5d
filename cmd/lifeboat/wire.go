package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
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
	"lifeboat/internal/store/limit"
	"lifeboat/internal/store/ocistore"
	"lifeboat/internal/ui"
)

// claimSettle is waited before an epoch claim is read back from a registry that
// lets tags be overwritten (docs/adr/0001).
const claimSettle = 3 * time.Second

// source says where the repository is and what opens it: the settings, or a
// recovery kit.
type source struct {
	url        string
	registry   ocistore.Options
	identities []age.Identity
	passphrase func() (string, error)
	expect     *repo.Expected
	marks      map[string]dr.Number
	limits     config.Limits
	stateDir   string
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

func (a *app) openSource(ctx context.Context, src source, withEngine bool) (*world, error) {
	cfg, err := a.Config()
	if err != nil {
		return nil, err
	}
	w := &world{cfg: cfg, src: src, meter: &store.Meter{}}
	var host *repo.HostKey
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
	w.repo, err = repo.Open(ctx, w.store, repo.OpenOptions{
		Local:      a.local(src),
		Identities: src.identities, Passphrase: src.passphrase, Host: host, HostName: string(w.site), AcceptOlder: a.flags.acceptOlder,
		Expect: src.expect, Marks: src.marks, Log: a.Log(), Notice: func(s string) { a.UI().Note("%s", s) },
	})
	if err != nil {
		w.close()
		return nil, a.explainOpen(src, err)
	}
	caps, err := w.store.Capabilities(ctx)
	if err != nil {
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

func (a *app) openStore(ctx context.Context, w *world) error {
	o := w.src.registry
	o.Insecure, o.Meter, o.Logger = a.flags.insecure, w.meter, a.Log()
	st, err := ocistore.Open(ctx, w.src.url, o)
	if err != nil {
		return err
	}
	if l := w.src.limits; l.Upload > 0 || l.Download > 0 {
		rate := max(l.Upload, l.Download)
		if l.Upload > 0 && l.Download > 0 {
			rate = min(l.Upload, l.Download)
		}
		if st, err = limit.New(st, limit.Options{BytesPerSecond: rate}); err != nil {
			return err
		}
	}
	w.store = st
	return nil
}

func (a *app) openEngine(ctx context.Context, w *world) error {
	set, err := a.Settings()
	if err != nil {
		return err
	}
	if w.engine, err = engine.Open(ctx, engine.Options{Host: set.EngineHost.Value, Log: a.Log()}); err != nil {
		return err
	}
	if w.info, err = w.engine.Info(ctx); err != nil {
		return err
	}
	if w.host, err = w.engine.HostFS(ctx); err != nil {
		return err
	}
	w.site = w.cfg.Site
	if w.site == "" {
		w.site = config.SanitizeName(w.info.Name)
	}
	w.state, err = site.Open(w.src.stateDir, w.info.ID)
	return err
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
	src := source{url: raw, limits: cfg.Limits, stateDir: set.StateDir.Value}
	if src.registry, err = registryOptions(cfg); err != nil {
		return source{}, err
	}
	if src.identities, err = a.identities(set); err != nil {
		return source{}, err
	}
	src.passphrase = a.passphrase(set, false)
	return src, nil
}

func registryOptions(cfg *config.Config) (ocistore.Options, error) {
	o := ocistore.Options{CAFile: cfg.Registry.CAFile, Fingerprint: cfg.Registry.Fingerprint, Username: cfg.Registry.Username}
	if cfg.Registry.PasswordFile != "" {
		secret, err := config.ReadSecretFile(cfg.Registry.PasswordFile)
		if err != nil {
			return o, fmt.Errorf("registry password: %w", err)
		}
		o.Password = strings.TrimRight(string(secret), "\r\n")
	}
	return o, nil
}

// identities reads the key file. One that is not there is no error unless it
// was asked for: the repository may have a passphrase.
func (a *app) identities(set config.Settings) ([]age.Identity, error) {
	raw, err := config.ReadSecretFile(set.KeyFile.Value)
	if errors.Is(err, dr.ErrNotFound) && set.KeyFile.From == "default" {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("key file (%s): %w", set.KeyFile.From, err)
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
				return "", fmt.Errorf("passphrase file: %w", err)
			}
			return strings.TrimRight(string(secret), "\r\n"), nil
		}
		f, ok := a.in.(*os.File)
		if !ok || !term.IsTerminal(int(f.Fd())) {
			return "", ui.Explained{
				What:  "no key opens the repository, and nobody is here to type a passphrase",
				State: "nothing was done",
				Next:  []string{"set " + config.EnvKeyFile + " to an age identity file, or " + config.EnvPassphraseFile + " to a file with the passphrase"},
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

// explainOpen says what to do when the repository does not open.
func (a *app) explainOpen(src source, err error) error {
	switch {
	case errors.Is(err, dr.ErrWrongKey):
		return ui.Explained{
			What: err.Error(), State: "nothing was read or changed",
			Next: []string{"set " + config.EnvKeyFile + " to the identity that the repository was made with, or use the recovery kit"}, Err: err,
		}
	case errors.Is(err, dr.ErrNotFound):
		return ui.Explained{
			What: err.Error(), State: "nothing was changed",
			Next: []string{"lifeboat init --repo " + location(src.url) + "  (to make a repository there)"}, Err: err,
		}
	}
	return err
}

// kitSource is a source that needs nothing but the kit.
func (a *app) kitSource(k kit.Kit) (source, error) {
	set, err := a.Settings()
	if err != nil {
		return source{}, err
	}
	src := source{url: k.Repo, stateDir: set.StateDir.Value, marks: map[string]dr.Number{}}
	src.registry = ocistore.Options{Fingerprint: k.TLSFingerprint, Username: k.Username, Password: k.Password}
	if k.TLSCA != "" {
		path := filepath.Join(src.stateDir, "kit-ca.pem")
		if err := os.MkdirAll(src.stateDir, 0o700); err != nil {
			return source{}, fmt.Errorf("state directory: %w", err)
		}
		if err := os.WriteFile(path, []byte(k.TLSCA), 0o600); err != nil {
			return source{}, fmt.Errorf("certificate of the kit: %w", err)
		}
		src.registry.CAFile = path
	}
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
	src.expect = &repo.Expected{Repo: k.Repository, Fingerprint: fp}
	for class, n := range k.HighWater {
		src.marks[class] = dr.Number(n)
	}
	return src, nil
}
