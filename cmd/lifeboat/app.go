package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"lifeboat/internal/config"
	"lifeboat/internal/dr"
	"lifeboat/internal/engine"
	"lifeboat/internal/redact"
	"lifeboat/internal/ui"
)

// envLog sets what is logged on stderr, as it is: debug, info, warn, error. Without
// it warnings are told as the command's own.
const envLog = "LIFEBOAT_LOG"

// app is what commands share: flags that all have, configuration, printer and
// logger, each made when it is first asked for. It belongs to one run of one
// command and is not safe for concurrent use, except for the printer and the
// logger.
type app struct {
	process
	flags struct {
		config, repo                                      string
		json, quiet, yes, insecure, acceptOlder, kitStdin bool
	}
	started bool           // the command's own code has begun
	cmd     *cobra.Command // once it has
	printer *ui.Printer
	log     *slog.Logger
	cfg     *config.Config
	// kitSrc and stdinSrc stand for the settings where a recovery kit, or what a
	// helper was given, says what opens the repository.
	kitSrc, stdinSrc *source
	lastSource       source // the repository that was opened last
	// reached is the engine while no world has it yet.
	reached     *engine.Engine
	reachedHost engine.HostFS
}

func newApp(p process) *app {
	a := &app{process: p}
	a.flags.json = wantsJSON(p.args)
	return a
}

// begin runs before a command's own code.
func (a *app) begin(cmd *cobra.Command) error {
	a.started, a.cmd = true, cmd
	level, err := logLevel(a.env(envLog))
	if err != nil {
		return err
	}
	var to slog.Handler = newWarnings(a.UI())
	if a.env(envLog) != "" {
		to = slog.NewTextHandler(a.UI().Log(), &slog.HandlerOptions{Level: level})
	}
	a.log = slog.New(redact.Handler(to))
	cmd.Root().SetIn(a.in)
	cmd.Root().SetOut(a.UI().Out())
	cmd.Root().SetErr(a.UI().Log())
	return nil
}

func logLevel(s string) (slog.Level, error) {
	var l slog.Level
	if s == "" {
		return slog.LevelWarn, nil
	}
	if err := l.UnmarshalText([]byte(strings.ToUpper(s))); err != nil {
		return 0, fmt.Errorf("%s=%q: want debug, info, warn or error: %w", envLog, s, dr.ErrUsage)
	}
	return l, nil
}

// UI is where everything is said.
func (a *app) UI() *ui.Printer {
	if a.printer == nil {
		a.printer = ui.New(ui.Options{
			In: a.in, Out: a.out, Err: a.err, Env: a.env,
			JSON: a.flags.json, Quiet: a.flags.quiet, Yes: a.flags.yes,
		})
	}
	return a.printer
}

// Log is the logger that is handed to packages.
func (a *app) Log() *slog.Logger { return a.log }

// ConfigPath is the configuration file of this run, whether it exists or not.
func (a *app) ConfigPath() string {
	path, _ := config.Path(a.flags.config, a.env)
	return path
}

// Config is the configuration: the defaults where there is no file. One that
// was asked for by flag or environment must exist; the error wraps
// dr.ErrNotFound then.
func (a *app) Config() (*config.Config, error) {
	path, explicit := config.Path(a.flags.config, a.env)
	return a.load(path, explicit)
}

// ConfigToEdit is Config for a command that writes the file and so may be the
// first to make it.
func (a *app) ConfigToEdit() (*config.Config, error) { return a.load(a.ConfigPath(), false) }

func (a *app) load(path string, mustExist bool) (*config.Config, error) {
	if a.cfg != nil {
		return a.cfg, nil
	}
	c, err := config.Load(path)
	if errors.Is(err, fs.ErrNotExist) && !mustExist {
		c, err = config.Default(), nil
		c.Path = path
	}
	if errors.Is(err, fs.ErrPermission) {
		return nil, ui.Explained{
			What: err.Error(), State: "nothing was done",
			Next: []string{"run it as root, or name a configuration of your own: --config FILE, " + config.EnvConfig}, Err: err,
		}
	}
	if errors.Is(err, dr.ErrNotFound) {
		return nil, ui.Explained{
			What: err.Error(), State: "nothing was done",
			Next: []string{"name the right file: --config FILE, " + config.EnvConfig + "; init, protect and recover make one"}, Err: err,
		}
	}
	if err != nil {
		return nil, err
	}
	a.cfg = c
	return c, nil
}

// reload forgets the configuration after it was edited.
func (a *app) reload() { a.cfg = nil }

// Settings are flags and environment over the configuration.
func (a *app) Settings() (config.Settings, error) {
	c, err := a.Config()
	if err != nil {
		return config.Settings{}, err
	}
	return c.Settings(config.Flags{Repo: a.flags.repo}, a.env)
}

// RepoURL is the repository to work with. Without one the error says how to
// name it; it wraps dr.ErrUsage.
func (a *app) RepoURL() (string, error) {
	s, err := a.Settings()
	if err != nil {
		return "", err
	}
	if s.Repo.Value == "" {
		return "", ui.Explained{
			What:  "no repository is named",
			State: "nothing was done",
			Next: []string{
				"pass --repo oci://HOST/NAME, set " + config.EnvRepo + ", or write repo: into " + a.ConfigPath(),
				"lifeboat init --repo oci://HOST/NAME  (where there is no repository yet)",
				"lifeboat init --join --kit FILE  (to use an existing one from this host, with its recovery kit)",
			},
			Err: dr.ErrUsage,
		}
	}
	return s.Repo.Value, nil
}

// finish tells the error, writes the JSON document, and gives the exit code.
func (a *app) finish(ctx context.Context, err error) int {
	o := outcomeOf(ctx, err)
	if _, _, name := a.commandWords(); slices.Contains(readOnly, name) && unread(err) {
		_ = a.UI().Close(nil)
		return codeUnread
	}
	var failure *ui.Failure
	if err != nil {
		if o.code == codeFailed {
			err = a.explainRegistry(a.lastSource, stateParts, err)
		}
		failure = &ui.Failure{Err: a.whole(ctx, o, err), Code: o.code, Kind: o.kind}
	}
	if werr := a.UI().Close(failure); werr != nil && o.code == codeDone {
		// The answer did not get out; there is nowhere else to say so but stderr.
		_, _ = fmt.Fprintf(a.err, "lifeboat: %s\n", ui.Clean(redact.String(werr.Error())))
		return codeFailed
	}
	return o.code
}
