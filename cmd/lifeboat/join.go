package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"filippo.io/age"
	"github.com/google/renameio/v2"

	"lifeboat/internal/config"
	"lifeboat/internal/dr"
	"lifeboat/internal/engine"
	"lifeboat/internal/kit"
	"lifeboat/internal/repo"
	"lifeboat/internal/seal"
	"lifeboat/internal/store"
	"lifeboat/internal/store/ocistore"
	"lifeboat/internal/ui"
)

// loginTries is how often a terminal is asked for user and password.
const loginTries = 3

// join sets this host up for a repository that exists.
func (s *setup) join(ctx context.Context) (err error) {
	var keyFile, note string
	if s.kit == nil {
		note = "this host joined the repository"
		if keyFile, err = s.openOwn(ctx); err != nil {
			return err
		}
	} else {
		if s.w.repo, err = s.a.openRepo(ctx, s.w, nil); err != nil {
			return err
		}
		var added bool
		if keyFile, added, err = s.ownKey(ctx); err != nil {
			return err
		}
		note = "this host joined the repository; it has a key of its own, so take the recovery kit away again"
		if !added {
			note = "this host joined the repository with the key that it has: " + keyFile + " opens it already, so none was added; take the recovery kit away again"
		}
	}
	ans := s.answer(keyFile)
	ans.Existed, ans.Joined = true, true
	if err := s.configure(ctx, &ans); err != nil {
		return s.unfinished(err, "a key of this host opens the repository; the configuration is not complete")
	}
	return s.done(ans, note)
}

// openOwn opens the repository with this host's key file or passphrase. keyFile
// is empty where the passphrase did it.
func (s *setup) openOwn(ctx context.Context) (keyFile string, err error) {
	ids, err := s.a.identities(s.set)
	if errors.Is(err, dr.ErrNotFound) && !s.f.join {
		err = nil // the run before did not come to make it
	}
	if err != nil {
		return "", err
	}
	s.w.src.identities = ids
	if s.w.repo, err = s.a.openRepo(ctx, s.w, nil); err != nil {
		return "", err
	}
	keys, _, err := s.w.repo.Keys(ctx)
	if err != nil {
		return "", err
	}
	if len(recipientsOf(keys, ids)) > 0 {
		keyFile = s.set.KeyFile.Value
	}
	return keyFile, nil
}

// recipientsOf are the recipients that identities open, by name.
func recipientsOf(keys []repo.KeyInfo, ids []age.Identity) (names []string) {
	public := publicKeys(ids)
	for _, k := range keys {
		if slices.Contains(public, k.Recipient) {
			names = append(names, k.Name)
		}
	}
	return names
}

// ownKey gives this host, which has opened the repository with a recovery kit,
// a key of its own: the kit's identity stays in the kit. The key file is made
// where there is none. added is false where that file opens the repository already,
// as after a run before.
func (s *setup) ownKey(ctx context.Context) (keyFile string, added bool, err error) {
	ids, err := s.a.keyFileIdentities(s.set)
	if err != nil {
		return "", added, err
	}
	public := publicKeys(ids)
	if len(public) == 0 {
		return "", added, noIdentity(s.set)
	}
	keys, _, err := s.w.repo.Keys(ctx)
	if err != nil {
		return "", added, err
	}
	if len(recipientsOf(keys, ids)) == 0 {
		rec, err := seal.ParseRecipient(newName(keys, "host-"+string(s.hostName(ctx))), public[0])
		if err != nil {
			return "", added, err
		}
		if err := s.w.repo.AddKey(ctx, rec); err != nil {
			return "", added, s.explainAdd(rec, err)
		}
		added = true
	}
	// Nobody but this host could tell that its key really opens it.
	own := *s.w
	own.src.identities, own.src.passphrase, own.repo = ids, nil, nil
	r, err := s.a.openRepo(ctx, &own, nil)
	if err != nil {
		return "", added, fmt.Errorf("the key file %s, just added: %w", s.set.KeyFile.Value, err)
	}
	return s.set.KeyFile.Value, added, r.Close()
}

func (s *setup) explainAdd(rec seal.Recipient, err error) error {
	if !errors.Is(err, store.ErrForbidden) {
		return s.a.explainRegistry(s.w.src, "the key file was made; the repository and the configuration are as they were", err)
	}
	return ui.Explained{
		What: err.Error(), State: "the key file " + s.set.KeyFile.Value + " was made; the registry does not let this login add it to the repository",
		Next: []string{
			"at a host whose login may (access role operator): lifeboat key add --name " + rec.Name + " " + rec.Public,
			"then here: lifeboat init --join --repo " + location(s.w.src.url) + " (with --fingerprint and --username as there)",
		}, Err: err,
	}
}

// keyFileIdentities reads the key file, and makes it where there is none.
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

// newName is a name that no recipient has.
func newName(keys []repo.KeyInfo, want string) string {
	taken := func(name string) bool {
		return slices.ContainsFunc(keys, func(k repo.KeyInfo) bool { return k.Name == name })
	}
	if len(want) > 56 {
		want = want[:56]
	}
	name := want
	for n := 2; taken(name); n++ {
		name = fmt.Sprintf("%s-%d", want, n)
	}
	return name
}

// hostName is what this host is called in the repository: the site, as given,
// configured, or named by the engine, else by the system.
func (s *setup) hostName(ctx context.Context) dr.Site {
	if s.f.site != "" {
		return dr.Site(s.f.site)
	}
	if s.cfg.Site != "" {
		return s.cfg.Site
	}
	if site := s.engineName(ctx); site != "" {
		return site
	}
	name, err := os.Hostname()
	if err != nil {
		name = ""
	}
	return config.SanitizeName(name)
}

// engineName is the default name of a site. Without an engine it is empty: a
// host may be set up before Docker is.
func (s *setup) engineName(ctx context.Context) dr.Site {
	if s.w.site != "" {
		return s.w.site
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	e, err := engine.Open(ctx, engine.Options{Host: s.set.EngineHost.Value, Log: s.a.Log()})
	if err != nil {
		s.a.Log().Debug("the site is named later", "err", err)
		return ""
	}
	defer e.Close()
	info, err := e.Info(ctx)
	if err != nil {
		s.a.Log().Debug("the site is named later", "err", err)
		return ""
	}
	s.w.site = config.SanitizeName(info.Name)
	return s.w.site
}

// configured tells whether the configuration is, or may become, the one of this
// repository.
func (s *setup) configured() bool {
	return s.cfg.Repo == "" || s.cfg.Repo == location(s.w.src.url)
}

// configure writes what later commands need into the configuration: what
// stands there already stays.
func (s *setup) configure(ctx context.Context, ans *initAnswer) error {
	path := s.a.ConfigPath()
	if !s.configured() {
		return nil
	}
	reg, err := s.registry(filepath.Dir(path))
	if err != nil {
		return err
	}
	site := s.f.site
	if site == "" && s.f.join && s.cfg.Site == "" {
		site = string(s.engineName(ctx))
	}
	var edits []func() (bool, error)
	for _, top := range [][2]string{{"repo", location(s.w.src.url)}, {"site", site}, {"key_file", ans.KeyFile}} {
		if top[1] != "" {
			edits = append(edits, func() (bool, error) { return config.SetTop(path, top[0], top[1]) })
		}
	}
	if reg != (config.Registry{}) {
		edits = append(edits, func() (bool, error) { return config.SetRegistry(path, reg) })
	}
	mirrors, err := s.mirrors(filepath.Dir(path))
	if err != nil {
		return err
	}
	if len(mirrors) > 0 {
		edits = append(edits, func() (bool, error) { return config.SetMirrors(path, mirrors) })
	}
	for _, edit := range edits {
		changed, err := edit()
		if errors.Is(err, dr.ErrHeld) {
			s.a.UI().Warn("%v", err)
			continue
		}
		if err != nil {
			return err
		}
		ans.ConfigChanged = ans.ConfigChanged || changed
	}
	ans.Config = path
	s.a.reload()
	return nil
}

// registry is the section of the configuration. What comes from a terminal or
// a kit is written into files beside it: no secret stands in the configuration.
func (s *setup) registry(dir string) (config.Registry, error) {
	o := s.w.src.registry
	reg := config.Registry{Fingerprint: o.Fingerprint, CAFile: o.CAFile, Username: o.Username, PasswordFile: s.passwordFile}
	var err error
	if s.ca != "" {
		if reg.CAFile, err = keepBeside(dir, "registry-ca.pem", s.ca, 0o644); err != nil {
			return reg, err
		}
	}
	if reg.Username != "" && reg.PasswordFile == "" {
		have := s.cfg.Registry
		if p, err := readPassword("registry password", have.PasswordFile); err == nil && have.Username == reg.Username && p == o.Password {
			reg.PasswordFile = have.PasswordFile
			return reg, nil
		}
		reg.PasswordFile, err = keepBeside(dir, "registry-password", o.Password+"\n", 0o600)
	}
	return reg, err
}

// mirrors are those of the kit, for a configuration that has none, with what opens
// them in files beside it. Where the host was set up from a mirror (--repo), the
// registry that the kit names first is among them.
func (s *setup) mirrors(dir string) ([]config.Mirror, error) {
	if s.kit == nil || !s.f.join || len(s.cfg.Mirrors) > 0 {
		return nil, nil
	}
	from := s.w.src.mirrors
	if len(from) > config.MaxMirrors {
		s.a.UI().Warn("the kit names %d mirrors; the configuration gets the first %d", len(from), config.MaxMirrors)
		from = from[:config.MaxMirrors]
	}
	var out []config.Mirror
	for _, at := range from {
		m := config.Mirror{Repo: location(at.url), Registry: config.Registry{Fingerprint: at.registry.Fingerprint, Username: at.registry.Username}}
		if at.registry.CAFile != "" {
			pem, err := os.ReadFile(at.registry.CAFile)
			if err != nil {
				return nil, fmt.Errorf("certificate of mirror %s: %w", m.Repo, err)
			}
			if m.Registry.CAFile, err = keepBeside(dir, "mirror-ca.pem", string(pem), 0o644); err != nil {
				return nil, err
			}
		}
		if m.Registry.Username != "" {
			var err error
			if m.Registry.PasswordFile, err = keepBeside(dir, "mirror-password", at.registry.Password+"\n", 0o600); err != nil {
				return nil, err
			}
		}
		out = append(out, m)
	}
	return out, nil
}

// keepBeside writes a file into the configuration's directory and returns its
// path. A file of that name with other content stays, and a number is added.
func keepBeside(dir, name, text string, mode os.FileMode) (string, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("directory of the configuration: %w", err)
	}
	base, ext, _ := strings.Cut(name, ".")
	for n := 1; ; n++ {
		path := filepath.Join(dir, name)
		if n > 1 {
			path = filepath.Join(dir, strings.TrimSuffix(fmt.Sprintf("%s-%d.%s", base, n, ext), "."))
		}
		st, err := os.Lstat(path)
		if errors.Is(err, os.ErrNotExist) {
			if err := renameio.WriteFile(path, []byte(text), mode, renameio.WithTempDir(dir), renameio.IgnoreUmask()); err != nil {
				return "", fmt.Errorf("write %s: %w", path, err)
			}
			return path, nil
		}
		if err != nil {
			return "", fmt.Errorf("write %s: %w", path, err)
		}
		if have, err := os.ReadFile(path); err == nil && bytes.Equal(have, []byte(text)) && st.Mode() == mode {
			return path, nil
		}
	}
}

// setLogin takes the login of the flags.
func (s *setup) setLogin() (err error) {
	if s.f.username == "" {
		return nil
	}
	reg := &s.w.src.registry
	reg.Username = s.f.username
	if s.f.passwordFile != "" {
		if s.passwordFile, err = filepath.Abs(s.f.passwordFile); err != nil {
			return fmt.Errorf("--password-file: %w", err)
		}
		reg.Password, err = readPassword("registry password (--password-file)", s.passwordFile)
		return err
	}
	s.passwordFile = ""
	reg.Password, err = s.a.ask(s.a.terminal(), fmt.Sprintf("Password of %s at %s: ", s.f.username, hostOf(s.w.src.url)))
	return err
}

// connect opens the store and asks the registry. Where it wants a login and
// none is known, a terminal is asked.
func (s *setup) connect(ctx context.Context) error {
	for asked := 0; ; asked++ {
		if err := s.a.openStore(ctx, s.w); err != nil {
			return err
		}
		_, err := s.a.reach(ctx, s.w)
		tty := s.a.terminal()
		if !errors.Is(err, store.ErrUnauthorized) || tty == nil || asked == loginTries || asked == 0 && s.loginKnown(ctx) {
			return err
		}
		reg := &s.w.src.registry
		if reg.Username == "" {
			s.a.UI().Note("registry %s wants a login", hostOf(s.w.src.url))
		} else {
			s.a.UI().Note("registry %s does not take that login of %s; once more", hostOf(s.w.src.url), reg.Username)
		}
		if reg.Username, err = s.a.askLine(tty, "User: "); err != nil {
			return err
		}
		if reg.Password, err = s.a.ask(tty, "Password: "); err != nil {
			return err
		}
		s.passwordFile = ""
	}
}

// loginKnown: one was tried, so that asking for another would hide a mistake.
func (s *setup) loginKnown(ctx context.Context) bool {
	if s.w.src.registry.Username != "" {
		return s.f.username == "" || s.f.passwordFile != ""
	}
	user, password, err := ocistore.StoredCredential(ctx, s.w.src.url)
	return err != nil || user != "" || password != ""
}

// terminal is standard input where somebody types there; nil elsewhere.
func (a *app) terminal() *os.File {
	f, ok := a.in.(*os.File)
	if !ok || !isTerminal(f) {
		return nil
	}
	return f
}

func (a *app) askLine(f *os.File, prompt string) (string, error) {
	a.UI().Flush()
	fmt.Fprint(a.err, prompt)
	// A terminal gives one line at a time, so nothing of the next is taken.
	line, err := bufio.NewReader(f).ReadString('\n')
	line = strings.TrimSpace(line)
	if err != nil || line == "" {
		return "", ui.Explained{What: "no answer was typed", State: "nothing was done", Next: []string{"run the same command again"}, Err: errors.Join(dr.ErrUsage, err)}
	}
	return line, nil
}

// configureRecovered leaves a host on which recover worked with a configuration
// and a key of its own, so that status, snapshot and failback work there. What
// fails is told and does not fail the recovery. It returns the configuration,
// empty where there is none of this repository.
func (a *app) configureRecovered(ctx context.Context, w *world, k kit.Kit, path string) (conf string) {
	cfg, err := a.ConfigToEdit()
	if err != nil {
		return ""
	}
	if cfg.Repo != "" {
		if cfg.Repo != location(w.src.url) {
			a.UI().Note("%s names another repository (%s) and was left as it is", a.ConfigPath(), cfg.Repo)
			return ""
		}
		return a.ConfigPath()
	}
	s := &setup{a: a, cfg: cfg, w: w, kit: &k, f: initFlags{join: true, kit: path}}
	if w.src.registry.CAFile != "" {
		s.ca = k.TLSCA
	}
	ans, err := s.recovered(ctx)
	if err != nil {
		a.notConfigured(path, err)
		return ""
	}
	return ans.Config
}

func (a *app) notConfigured(kitFile string, err error) {
	a.UI().Warn("this host has no configuration for the repository: %v", err)
	a.UI().Warn("for status, snapshot and failback here, run as root: lifeboat init --join --kit %s", kitFile)
}

func (s *setup) recovered(ctx context.Context) (ans initAnswer, err error) {
	if s.set, err = s.a.Settings(); err != nil {
		return ans, err
	}
	if s.set.KeyFile.Value, err = filepath.Abs(s.set.KeyFile.Value); err != nil {
		return ans, fmt.Errorf("key file: %w", err)
	}
	if err := config.CanEdit(s.a.ConfigPath()); err != nil {
		return ans, err
	}
	keyFile, _, err := s.ownKey(ctx)
	if err != nil {
		return ans, err
	}
	ans = s.answer(keyFile)
	return ans, s.configure(ctx, &ans)
}

// configuredView says what is left to do on the host that took over.
func configuredView(conf string, names []string) ui.View {
	if conf == "" || len(names) == 0 {
		return ui.Text("next: point users here (DNS, load balancer)")
	}
	return ui.Text(fmt.Sprintf("this host is configured: %s\nnext: lifeboat protect %s --project PROJECT, and the timer of docs/runbooks/schedule.md: new data is protected from here on\nnext: take the recovery kit away again; this host has a key of its own", conf, names[0]))
}
