package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"filippo.io/age"

	"github.com/spf13/cobra"

	"lifeboat/internal/config"
	"lifeboat/internal/kit"
	"lifeboat/internal/registry"
	"lifeboat/internal/registry/registrytest"
	"lifeboat/internal/store"
	"lifeboat/internal/ui"
)

// place is a host as far as these commands see one: configuration, state,
// environment.
type place struct {
	t   *testing.T
	dir string
	env map[string]string
}

func newPlace(t *testing.T) place {
	t.Helper()
	dir := t.TempDir()
	return place{t, dir, map[string]string{
		config.EnvConfig: filepath.Join(dir, "etc", "lifeboat.yaml"), config.EnvStateDir: filepath.Join(dir, "state"),
		config.EnvDockerHost: "unix://" + filepath.Join(dir, "no-engine.sock"),
	}}
}

func (p place) path(name string) string { return filepath.Join(p.dir, name) }

func (p place) write(name, text string) string {
	p.t.Helper()
	if err := os.MkdirAll(filepath.Dir(p.path(name)), 0o755); err != nil {
		p.t.Fatal(err)
	}
	if err := os.WriteFile(p.path(name), []byte(text), 0o600); err != nil {
		p.t.Fatal(err)
	}
	return p.path(name)
}

func (p place) config() *config.Config {
	p.t.Helper()
	c, err := config.Load(p.env[config.EnvConfig])
	if err != nil {
		p.t.Fatal(err)
	}
	return c
}

// said is what a command answered.
type said struct {
	initAnswer
	Recipient string
	Keys      []struct{ Name, Recipient string }
	Error     struct {
		Code                 int
		Kind, Message, State string
		Next                 []string
	}
	stderr string
}

// run runs a command that shall end with code. A failure must have state and
// next.
func (p place) run(code int, args ...string) (s said) {
	p.t.Helper()
	got, out, errs := call(p.env, append(args, "--json")...)
	if out != "" {
		if err := json.Unmarshal([]byte(out), &s); err != nil {
			p.t.Fatalf("%v: %v\n%s", args, err, out)
		}
	}
	s.stderr = errs
	if got != code {
		p.t.Fatalf("%v: exit code %d, want %d\n%s%s", args, got, code, out, errs)
	}
	if code != 0 && (s.Error.State == "" || len(s.Error.Next) == 0) {
		p.t.Errorf("%v: no state or no next:\n%s", args, errs)
	}
	return s
}

func (s said) next() string { return strings.Join(s.Error.Next, "\n") }

// guarded starts a registry with TLS and a user.
func guarded(t *testing.T) *registrytest.Registry {
	t.Helper()
	users := filepath.Join(t.TempDir(), "htpasswd")
	if err := registry.SetPassword(users, "backup", []byte("correct horse")); err != nil {
		t.Fatal(err)
	}
	return registrytest.Start(t, func(c *registry.Config) { c.Htpasswd = users })
}

// TestInitWithLogin is the README's five minutes on a registry with a
// certificate of its own and a login.
func TestInitWithLogin(t *testing.T) {
	t.Parallel()
	r, p := guarded(t), newPlace(t)
	pw := p.write("pw", "correct horse\n")
	args := []string{"init", "--repo", r.URL("dr"), "--fingerprint", r.Fingerprint, "--username", "backup", "--password-file", pw, "--site", "main", "--kit", p.path("kit.txt")}
	first := p.run(0, args...)
	if first.Kit != p.path("kit.txt") || !first.ConfigChanged || first.Config != p.env[config.EnvConfig] || first.Existed {
		t.Errorf("%+v", first)
	}
	c := p.config()
	if want := (config.Registry{Fingerprint: r.Fingerprint, Username: "backup", PasswordFile: pw}); c.Registry != want || c.Repo != r.URL("dr") || c.Site != "main" || c.KeyFile != p.path("etc/key.txt") {
		t.Errorf("configuration %+v", c)
	}
	k, err := kit.ReadFile(first.Kit)
	if err != nil || k.Username != "backup" || k.Password != "correct horse" || k.TLSFingerprint != r.Fingerprint {
		t.Errorf("kit %+v, %v", k, err)
	}
	if keys := p.run(0, "key", "list").Keys; len(keys) != 2 {
		t.Errorf("keys %+v", keys)
	}

	// Once more: nothing to do, nothing new.
	again := p.run(0, args...)
	if !again.Existed || again.ConfigChanged || again.Kit != p.path("kit.txt") || again.Repository != first.Repository {
		t.Errorf("again: %+v", again)
	}
	// The kit is in the safe: none is made again.
	if err := os.Remove(first.Kit); err != nil {
		t.Fatal(err)
	}
	if again = p.run(0, "init", "--kit", p.path("kit.txt")); again.Kit != "" || len(p.run(0, "key", "list").Keys) != 2 {
		t.Errorf("with the kit away: %+v", again)
	}
	// Configuration and notes are lost: completed, with another kit.
	for _, name := range []string{p.env[config.EnvConfig], p.path("state/kits")} {
		if err := os.RemoveAll(name); err != nil {
			t.Fatal(err)
		}
	}
	if again = p.run(0, args...); again.Kit == "" || !again.ConfigChanged || p.config().Registry != c.Registry || len(p.run(0, "key", "list").Keys) != 3 {
		t.Errorf("completed: %+v", again)
	}
}

// TestInitMakesNothingInVain: what can be known ahead is found ahead.
func TestInitMakesNothingInVain(t *testing.T) {
	t.Parallel()
	r := registrytest.Start(t)
	p := newPlace(t)
	base := []string{"init", "--repo", r.URL("dr"), "--fingerprint", r.Fingerprint}
	other := p.write("other.txt", "something")
	for name, c := range map[string]struct {
		code int
		args []string
		says string
	}{
		"kit in no directory":   {codeUsage, []string{"--kit", p.path("none/kit.txt")}, "does not exist"},
		"kit exists":            {codeHeld, []string{"--kit", other}, "exists already"},
		"no password file":      {codeNotFound, []string{"--username", "x", "--password-file", p.path("nope"), "--kit", p.path("k")}, "nope does not exist"},
		"password of nobody":    {codeUsage, []string{"--password-file", other, "--kit", p.path("k")}, "--username"},
		"password, nobody asks": {codeUsage, []string{"--username", "x", "--kit", p.path("k")}, "terminal"},
		"join without kit":      {codeNotFound, []string{"--join", "--kit", p.path("nokit")}, "nokit does not exist"},
		"bad site":              {codeUsage, []string{"--site", "A B", "--kit", p.path("k")}, "site name"},
	} {
		if name == "bad site" { // a plain usage error
			if code, _, errs := call(p.env, append(append([]string{}, base...), c.args...)...); code != c.code || !strings.Contains(errs, c.says) {
				t.Errorf("%s: %d, %s", name, code, errs)
			}
			continue
		}
		if s := p.run(c.code, append(append([]string{}, base...), c.args...)...); !strings.Contains(s.Error.Message, c.says) {
			t.Errorf("%s: %s", name, s.Error.Message)
		}
	}
	if list, err := os.ReadDir(p.path("etc")); err == nil {
		t.Errorf("left behind: %v", list)
	}
	p.run(0, append(base, "--kit", p.path("k"))...) // the name is still free
}

// TestJoin sets up a second and a third host.
func TestJoin(t *testing.T) {
	t.Parallel()
	r, main := guarded(t), newPlace(t)
	pw := main.write("pw", "correct horse\n")
	kitFile := main.path("kit.txt")
	main.run(0, "init", "--repo", r.URL("dr"), "--fingerprint", r.Fingerprint, "--username", "backup", "--password-file", pw, "--kit", kitFile)

	// A stranger: the name is taken, and both ways on are named.
	stranger := newPlace(t)
	s := stranger.run(codeHeld, "init", "--repo", r.URL("dr"), "--fingerprint", r.Fingerprint, "--username", "backup", "--password-file", pw, "--kit", stranger.path("kit"))
	if !strings.Contains(s.next(), "--join --kit") || !strings.Contains(s.next(), r.URL("dr")+"-2") {
		t.Errorf("next:\n%s", s.next())
	}
	s = stranger.run(codeWrongKey, "init", "--join", "--repo", r.URL("dr"), "--fingerprint", r.Fingerprint, "--username", "backup", "--password-file", pw)
	if !strings.Contains(s.next(), "--join --kit") {
		t.Errorf("next:\n%s", s.next())
	}

	// With the kit: a key of its own, the login in a file of its own.
	standin := newPlace(t)
	s = standin.run(0, "init", "--join", "--kit", kitFile, "--site", "cloud")
	c := standin.config()
	if !s.Joined || s.Kit != "" || c.Site != "cloud" || c.Registry.Username != "backup" || c.Registry.PasswordFile != standin.path("etc/registry-password") || c.Registry.Fingerprint != r.Fingerprint {
		t.Errorf("%+v\n%+v", s, c)
	}
	for _, secret := range []string{c.KeyFile, c.Registry.PasswordFile} {
		if st, err := os.Stat(secret); err != nil || st.Mode() != 0o600 {
			t.Errorf("%s: %v, %v", secret, st, err)
		}
	}
	k, err := kit.ReadFile(kitFile)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{c.KeyFile, standin.env[config.EnvConfig]} {
		if text, err := os.ReadFile(name); err != nil || strings.Contains(string(text), k.Identity) || strings.Contains(string(text), "correct horse") {
			t.Errorf("%s holds a secret of the kit, or is missing: %v", name, err)
		}
	}
	keys := standin.run(0, "key", "list").Keys
	if len(keys) != 3 || keys[2].Name != "host-cloud" {
		t.Errorf("keys %+v", keys)
	}
	if _, out, _ := call(standin.env, "init", "--join", "--kit", kitFile); !strings.Contains(out, c.KeyFile+" opens it already, so none was added") {
		t.Errorf("again:\n%s", out)
	}
	again := standin.run(0, "init", "--join", "--kit", kitFile)
	if again.ConfigChanged || len(standin.run(0, "key", "list").Keys) != 3 {
		t.Errorf("again: %+v", again)
	}

	// With a key that was brought along.
	third := newPlace(t)
	text, err := os.ReadFile(main.path("etc/key.txt"))
	if err != nil {
		t.Fatal(err)
	}
	third.write("etc/key.txt", string(text))
	third.run(0, "init", "--join", "--repo", r.URL("dr"), "--fingerprint", r.Fingerprint, "--username", "backup", "--password-file", pw)
	if len(third.run(0, "key", "list").Keys) != 3 {
		t.Error("a key was added that was there")
	}
	// Nothing to join.
	s = third.run(codeNotFound, "init", "--join", "--repo", r.URL("other"))
	if !strings.Contains(s.Error.Message, "there is no repository") {
		t.Errorf("message %q", s.Error.Message)
	}
}

// TestMirrorsOfTheKit: a host that was set up with a kit, by recover or by init, has
// its mirrors in the configuration, logins and certificates in files of their own.
func TestMirrorsOfTheKit(t *testing.T) {
	t.Parallel()
	main, reg, _, _ := newCopyPlace(t)
	second, third := guarded(t), registrytest.Start(t)
	pw := main.write("pw", "correct horse\n")
	login := []string{"--to-username", "backup", "--to-password-file", pw, "--to-fingerprint", second.Fingerprint}
	main.do(0, &struct{}{}, append([]string{"copy", "--mirror", "--to", second.URL("mirror")}, login...)...)
	main.do(0, &struct{}{}, "copy", "--mirror", "--to", third.URL("mirror"), "--to-fingerprint", third.Fingerprint)
	if _, err := config.SetMirrors(main.env[config.EnvConfig], []config.Mirror{
		{Repo: second.URL("mirror"), Registry: config.Registry{Username: "backup", PasswordFile: pw, Fingerprint: second.Fingerprint}},
		{Repo: third.URL("mirror"), Registry: config.Registry{Fingerprint: third.Fingerprint}},
	}); err != nil {
		t.Fatal(err)
	}
	main.do(0, &struct{}{}, "kit", "--out", main.path("kit2.txt"))
	kitFile := main.path("kit2.txt")
	for _, args := range [][]string{
		{"recover", "--kit", kitFile},
		{"init", "--join", "--kit", kitFile},
		{"recover", "--kit", kitFile, "--repo", third.URL("mirror")}, // which goes its own way from here on
	} {
		main.do(0, &struct{}{}, "copy", "--mirror", "--to", third.URL("mirror")) // the newest key
		name := strings.Join(args, " ")
		p := newPlace(t)
		if args[0] == "init" {
			p.run(0, args...)
		} else if conf := p.configuredByRecover(kitFile, args...); conf != p.env[config.EnvConfig] {
			t.Fatalf("%s: configuration %q", name, conf)
		}
		c := p.config()
		var got []string
		for _, m := range c.Mirrors {
			got = append(got, m.Repo)
		}
		want := []string{second.URL("mirror"), third.URL("mirror")}
		if len(args) == 5 {
			want = []string{reg.URL("dr"), second.URL("mirror")}
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: mirrors %v, want %v", name, got, want)
			continue
		}
		m := c.Mirrors[slices.Index(got, second.URL("mirror"))].Registry
		if st, err := os.Stat(m.PasswordFile); err != nil || st.Mode() != 0o600 || m.Username != "backup" || m.Fingerprint != second.Fingerprint {
			t.Errorf("%s: %+v, %v, %v", name, m, st, err)
		}
		if text, err := os.ReadFile(p.env[config.EnvConfig]); err != nil || strings.Contains(string(text), "correct horse") {
			t.Errorf("%s: the configuration holds a password: %v", name, err)
		}
		if code, out, errs := call(p.env, "snapshots"); code != 0 {
			t.Errorf("%s: %d\n%s%s", name, code, out, errs)
		}
	}
}

// configuredByRecover does what recover does once the systems are up, for which there
// is no engine here.
func (p place) configuredByRecover(kitFile string, args ...string) (conf string) {
	p.t.Helper()
	var out bytes.Buffer
	a := newApp(process{in: strings.NewReader(""), out: &out, err: &out, env: func(k string) string { return p.env[k] }, exit: func(int) {}})
	a.log = slog.New(slog.DiscardHandler)
	root := newRootCmd(a)
	cmd, _, err := root.Find(args)
	if err != nil {
		p.t.Fatal(err)
	}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := a.configToRecover(); err != nil {
			return err
		}
		k, src, err := a.recoverSource(kitFile)
		if err != nil {
			return err
		}
		w, err := a.openSource(cmd.Context(), src, false)
		if err != nil {
			return err
		}
		defer w.close()
		conf = a.configureRecovered(cmd.Context(), w, k, kitFile)
		return nil
	}
	root.SetArgs(args)
	err = root.ExecuteContext(p.t.Context())
	p.t.Log(out.String())
	if err != nil {
		p.t.Fatal(err)
	}
	return conf
}

// TestRemovedKey: a host that takes its own key away is asked, and is told
// afterwards what happened.
func TestRemovedKey(t *testing.T) {
	t.Parallel()
	r, p := registrytest.Start(t), newPlace(t)
	p.run(0, "init", "--repo", r.URL("dr"), "--fingerprint", r.Fingerprint, "--kit", p.path("kit.txt"))
	s := p.run(codeUsage, "key", "remove", "key-file")
	if !strings.Contains(s.Error.Message, "recovery-kit") || len(p.run(0, "key", "list").Keys) != 2 {
		t.Errorf("asked: %s", s.Error.Message)
	}
	s = p.run(codeHeld, "key", "add", "--name", "again", p.run(0, "key", "list").Keys[1].Recipient)
	if !strings.Contains(s.Error.Message, `under the name "recovery-kit"`) {
		t.Errorf("the same key under another name: %s", s.Error.Message)
	}
	p.run(0, "kit", "--out", p.path("second.txt"))
	p.run(0, "key", "remove", "recovery-kit") // of somebody else: no question
	p.run(0, "key", "remove", "key-file", "--yes")
	for _, args := range [][]string{{"key", "list"}, {"snapshots"}, {"init", "--join"}} {
		s = p.run(codeWrongKey, args...)
		if !strings.Contains(s.Error.Message, "was removed from the repository on 2") || !strings.Contains(s.next(), "lifeboat key add") {
			t.Errorf("%v: %s\n%s", args, s.Error.Message, s.next())
		}
	}
	p.run(codeHeld, "init", "--kit", p.path("third.txt"))
	if s = p.run(codeWrongKey, "init", "--join", "--kit", p.path("kit.txt")); !strings.Contains(s.Error.Message, "removed") {
		t.Errorf("with the removed kit: %s", s.Error.Message)
	}
	p.run(0, "init", "--join", "--kit", p.path("second.txt"))
	p.run(0, "key", "list")
}

// TestWrongPassphrase: the advice fits a repository that has no key file.
func TestWrongPassphrase(t *testing.T) {
	t.Parallel()
	r, p := registrytest.Start(t), newPlace(t)
	p.env[config.EnvPassphraseFile] = p.write("pass", "right\n")
	p.run(0, "init", "--passphrase", "--repo", r.URL("dr"), "--fingerprint", r.Fingerprint, "--kit", p.path("kit.txt"))
	p.run(0, "init", "--kit", p.path("kit.txt"))
	p.env[config.EnvPassphraseFile] = p.write("wrong", "wrong\n")
	if s := p.run(codeWrongKey, "key", "list"); !strings.HasPrefix(s.Error.Next[0], "give the right passphrase") {
		t.Errorf("next:\n%s", s.next())
	}
	p.env[config.EnvPassphraseFile] = p.path("none")
	if s := p.run(codeNotFound, "key", "list"); !strings.HasSuffix(s.Error.Message, "none does not exist") || !strings.Contains(s.next(), config.EnvPassphraseFile) {
		t.Errorf("%s\n%s", s.Error.Message, s.next())
	}
	p.env[config.EnvKeyFile] = p.path("nokey")
	if s := p.run(codeNotFound, "key", "list"); !strings.HasSuffix(s.Error.Message, "nokey does not exist") {
		t.Errorf("%s\n%s", s.Error.Message, s.next())
	}
}

// TestSecondRepository: a configuration is that of one repository.
func TestSecondRepository(t *testing.T) {
	t.Parallel()
	r, p := registrytest.Start(t), newPlace(t)
	p.run(0, "init", "--repo", r.URL("one"), "--fingerprint", r.Fingerprint, "--kit", p.path("one.txt"))
	before, err := os.ReadFile(p.env[config.EnvConfig])
	if err != nil {
		t.Fatal(err)
	}
	s := p.run(0, "init", "--repo", r.URL("two"), "--kit", p.path("two.txt"))
	if s.Config != "" || s.ConfigChanged || s.Kit == "" {
		t.Errorf("%+v", s)
	}
	if after, err := os.ReadFile(p.env[config.EnvConfig]); err != nil || !bytes.Equal(before, after) {
		t.Errorf("the configuration was changed: %v\n%s", err, after)
	}
	// Another registry gets neither pin nor login of this one.
	cfg := &config.Config{Repo: r.URL("one"), Registry: config.Registry{Username: "u", PasswordFile: "/nonexist", Fingerprint: r.Fingerprint}}
	if o, err := registryOptions(cfg, "oci://elsewhere.example.org/dr"); err != nil || o.Username != "" || o.Fingerprint != "" {
		t.Errorf("%+v, %v", o, err)
	}
}

// TestRegistryTrouble: what happened, what state things are in, what next.
func TestRegistryTrouble(t *testing.T) {
	t.Parallel()
	r, p := guarded(t), newPlace(t)
	bad := p.write("bad", "battery staple\n")
	with := func(args ...string) []string {
		return append([]string{"init", "--repo", r.URL("dr"), "--kit", p.path("k")}, args...)
	}
	other := "sha256:" + strings.Repeat("0", 64)
	for name, c := range map[string]struct {
		args       []string
		says, next string
	}{
		"unknown certificate": {with(), "certificate", "--fingerprint " + r.Fingerprint},
		"another certificate": {with("--fingerprint", other), "is pinned", "compare with the fingerprint"},
		"no login":            {with("--fingerprint", r.Fingerprint), "no credentials", "--username NAME --password-file FILE"},
		"wrong login":         {with("--fingerprint", r.Fingerprint, "--username", "backup", "--password-file", bad), "wrong credentials", "lifeboat registry passwd"},
	} {
		if s := p.run(codeFailed, c.args...); !strings.Contains(s.Error.Message, c.says) || !strings.Contains(s.next(), c.next) || strings.Contains(s.stderr, "staple") {
			t.Errorf("%s: %s\n%s", name, s.Error.Message, s.next())
		}
	}
	cfg := p.write("etc/lifeboat.yaml", "stie: x\n")
	if s := p.run(codeUsage, "status"); !strings.Contains(s.next(), cfg) {
		t.Errorf("configuration: %s", s.next())
	}
	p.env[config.EnvConfig] = p.path("missing.yaml")
	if s := p.run(codeNotFound, "status"); !strings.Contains(s.next(), "--config") {
		t.Errorf("missing configuration: %s", s.next())
	}
}

// TestReachGivesUp: a registry that takes the call and says nothing.
func TestReachGivesUp(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var errs bytes.Buffer
	a := newApp(process{out: io.Discard, err: &errs, env: func(string) string { return "" }})
	a.patience = patience{limit: 200 * time.Millisecond, first: time.Millisecond, again: time.Hour}
	w := &world{src: source{url: "oci+http://" + l.Addr().String() + "/dr"}}
	if err := a.openStore(t.Context(), w); err != nil {
		t.Fatal(err)
	}
	_, err = a.reach(t.Context(), w)
	var x ui.Explainer
	if !errors.Is(err, store.ErrUnreachable) || !errors.As(err, &x) || !strings.Contains(err.Error(), "no answer within 200ms") {
		t.Errorf("got %v", err)
	}
	if want := "registry " + l.Addr().String() + " does not answer, trying again…\n"; errs.String() != want {
		t.Errorf("stderr %q, want %q", &errs, want)
	}
}

func TestKeepBeside(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "etc")
	for _, c := range []struct{ text, want string }{{"a", "ca.pem"}, {"b", "ca-2.pem"}, {"a", "ca.pem"}, {"b", "ca-2.pem"}} {
		got, err := keepBeside(dir, "ca.pem", c.text, 0o600)
		if err != nil || got != filepath.Join(dir, c.want) {
			t.Errorf("%q: %s, %v", c.text, got, err)
		}
	}
	if got, err := keepBeside(dir, "pw", "x", 0o600); err != nil || got != filepath.Join(dir, "pw") {
		t.Errorf("%s, %v", got, err)
	}
	if got, err := keepBeside(dir, "pw", "y", 0o600); err != nil || got != filepath.Join(dir, "pw-2") {
		t.Errorf("%s, %v", got, err)
	}
}

// TestHybridKeyFile: the public keys of both kinds of identities are known.
func TestHybridKeyFile(t *testing.T) {
	t.Parallel()
	id, err := age.GenerateHybridIdentity()
	if err != nil {
		t.Fatal(err)
	}
	r, p := registrytest.Start(t), newPlace(t)
	p.write("etc/key.txt", id.String()+"\n")
	p.run(0, "init", "--repo", r.URL("dr"), "--fingerprint", r.Fingerprint, "--kit", p.path("kit.txt"))
	if keys := p.run(0, "key", "list").Keys; len(keys) != 2 || keys[0].Recipient != id.Recipient().String() {
		t.Errorf("keys %+v", keys)
	}
	p.run(codeUsage, "key", "remove", "key-file") // its own: nobody is there to say yes
}

// TestLastKitIsNotRemovedUnasked: without a kit nobody comes in from an empty host. What
// changes keys says that kits from before do not know of it.
func TestLastKitIsNotRemovedUnasked(t *testing.T) {
	t.Parallel()
	r, p := registrytest.Start(t), newPlace(t)
	p.run(0, "init", "--repo", r.URL("dr"), "--fingerprint", r.Fingerprint, "--kit", p.path("kit.txt"))
	p.run(0, "kit", "--out", p.path("second.txt"))
	p.run(0, "key", "remove", "recovery-kit") // another kit is left
	var last string
	for _, k := range p.run(0, "key", "list").Keys {
		if strings.HasPrefix(k.Name, "recovery-kit-") {
			last = k.Name
		}
	}
	s := p.run(codeUsage, "key", "remove", last)
	if !strings.Contains(s.Error.Message, "last recovery kit") || !strings.Contains(s.Error.Message, "lifeboat kit --out") || len(p.run(0, "key", "list").Keys) != 2 {
		t.Errorf("asked: %s", s.Error.Message)
	}
	var ans struct{ Advice string }
	recipient := "age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p"
	for _, args := range [][]string{{"key", "rotate"}, {"key", "add", "--name", "anna", recipient}, {"key", "remove", "anna"}} {
		if p.do(0, &ans, args...); !strings.Contains(ans.Advice, "from before") || !strings.Contains(ans.Advice, "lifeboat kit --out") {
			t.Errorf("%v: %q", args, ans.Advice)
		}
	}
	if p.do(0, &ans, "key", "remove", last, "--yes"); !strings.Contains(ans.Advice, "no recovery kit opens") {
		t.Errorf("%q", ans.Advice)
	}
}
