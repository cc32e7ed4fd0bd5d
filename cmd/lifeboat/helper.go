package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"lifeboat/internal/config"
	"lifeboat/internal/dr"
	"lifeboat/internal/engine"
	"lifeboat/internal/engine/helper"
	"lifeboat/internal/kit"
	"lifeboat/internal/ui"
)

// envHelperPassphrase carries a passphrase to a helper; it is set by the helper
// in its own process only and cannot be seen from outside.
const envHelperPassphrase = "LIFEBOAT_HELPER_PASSPHRASE"

// enterHelper makes this process a helper if it was started as one: it moves
// to the host's root directory and takes the job's arguments for its own, so
// that the same code does the work. gone is closed when whoever started it is
// no longer there.
func enterHelper(p *process) (gone <-chan struct{}, err error) {
	s, ok, err := helper.Inside(os.Stdin)
	if !ok || err != nil {
		return nil, err
	}
	// The guardian must outlive the helper (invariant 5).
	if err := helper.LeaveCgroup(s.HostRoot, os.Getpid()); err != nil {
		return nil, err
	}
	if err := unix.Chroot(s.HostRoot); err != nil {
		return nil, fmt.Errorf("helper: enter the host's root directory: %w", err)
	}
	if err := os.Chdir("/"); err != nil {
		return nil, fmt.Errorf("helper: %w", err)
	}
	// A configuration that was moved away since must not stop a recovery.
	if _, err := os.Stat(s.Env[config.EnvConfig]); err != nil {
		delete(s.Env, config.EnvConfig)
	}
	for k, v := range s.Env {
		if err := os.Setenv(k, v); err != nil {
			return nil, fmt.Errorf("helper: %w", err)
		}
	}
	p.args, p.in = s.Args, s.Stdin
	return s.Gone, nil
}

// inHelper tells whether this process is a helper.
func inHelper() bool { return os.Getenv("LIFEBOAT_HELPER") == "1" }

// viaHelper runs this very command in a helper container where the files of
// the engine's host cannot be reached from here, and tells whether it did.
func (a *app) viaHelper(ctx context.Context) (code int, helped bool, err error) {
	if inHelper() {
		return 0, false, nil
	}
	e, host, err := a.reachEngine(ctx)
	if err != nil || host.Local {
		return 0, false, err
	}
	a.reached = nil
	defer e.Close()
	a.UI().Note("working through a helper container (%s)", host.Reason)
	w, err := a.open(ctx, false)
	if err != nil {
		return 0, true, err
	}
	bundle, err := a.bundle(ctx, w)
	w.close()
	if err != nil {
		return 0, true, err
	}
	env := map[string]string{}
	for _, v := range os.Environ() {
		if k, val, _ := strings.Cut(v, "="); strings.HasPrefix(k, "LIFEBOAT_") && k != "LIFEBOAT_KEY_FILE" && k != "LIFEBOAT_PASSPHRASE_FILE" {
			env[k] = val
		}
	}
	if dir := env[config.EnvStateDir]; dir != "" && os.Geteuid() != 0 {
		// The helper is root: its files must not stand among those of this user.
		env[config.EnvStateDir] = filepath.Join(dir, "host")
	}
	job := a.job(bundle, a.args)
	for k, v := range env {
		job.Env[k] = v
	}
	code, err = helper.Run(ctx, e, job, a.out, a.err)
	if errors.Is(err, engine.ErrNotAllowed) && !errors.Is(err, dr.ErrOutcomeUnknown) {
		err = a.notHelped(e.Host(), host.Reason, err)
	}
	return code, true, err
}

// notHelped says what to do where neither the files can be reached nor a helper
// be started. The degraded mode is never chosen without being asked for.
func (a *app) notHelped(engineHost, reason string, err error) error {
	next := []string{
		"run this command as root on the engine's host",
		"or let the engine at " + location(engineHost) + " start the helper: its socket proxy or authorization plugin must allow a container of the image lifeboat-helper with the host's root directory, process ids and network",
	}
	if len(a.args) > 0 && (a.args[0] == "snapshot" || a.args[0] == "failover") {
		next = append(next, "or add --degraded: the engine's archive API then gives or takes the files; it loses "+degradedLoses(a.args[0])+", and the exit code is 3")
	}
	return ui.Explained{
		What:  fmt.Sprintf("the files of the engine's host cannot be reached (%s), and the engine refused the helper container that would: %v", reason, err),
		State: "nothing was done",
		Next:  next, Err: err,
	}
}

func degradedLoses(command string) string {
	if command == "failover" {
		return "deletions of image files, holes and sockets"
	}
	return "fractions of a second, extended attributes, access lists, holes and sockets, and the system is paused for as long as all its data takes to be read"
}

// degrade decides whether a command that was called with --degraded works
// through the engine's archive API; where the files can be reached there is no
// need to.
func (a *app) degrade(w *world, asked bool) bool {
	if asked && w.host.Local {
		a.UI().Note("the files of the engine's host can be reached: nothing needs to be degraded")
		return false
	}
	return asked
}

// helperResult turns a helper's exit code into this command's: the helper has
// told everything already.
func helperResult(code int, err error) error {
	if err != nil {
		return err
	}
	if code != codeDone {
		return passedOn{code}
	}
	return nil
}

// passedOn is the exit code of a helper, which has said why.
type passedOn struct{ code int }

func (p passedOn) Error() string { return fmt.Sprintf("the helper ended with exit code %d", p.code) }

// bundleText is what a helper needs to reach and open the repository, in the
// form of a recovery kit.
type bundleText struct {
	text       []byte
	passphrase string
	env        map[string]string // further variables
}

func (a *app) bundle(ctx context.Context, w *world) (bundleText, error) {
	identity := ""
	for _, id := range w.src.identities {
		// X25519 and hybrid identities both have a text form.
		if x, ok := id.(fmt.Stringer); ok && strings.HasPrefix(x.String(), "AGE-SECRET-KEY-") {
			identity += x.String() + "\n"
		}
	}
	k, err := makeKit(ctx, w.repo, w.src, identity)
	if err != nil {
		return bundleText{}, err
	}
	b := bundleText{}
	if identity == "" {
		if b.passphrase, err = w.src.passphrase(); err != nil {
			return bundleText{}, err
		}
	}
	b.text, err = k.Encode()
	return b, err
}

func (a *app) job(b bundleText, args []string) helper.Job {
	job := helper.Job{Args: append(args[:len(args):len(args)], "--kit-stdin"), Env: map[string]string{}, Stdin: strings.NewReader(string(b.text))}
	for k, v := range b.env {
		if v != "" {
			job.Env[k] = v
		}
	}
	if b.passphrase != "" {
		job.Env[envHelperPassphrase] = b.passphrase
	}
	return job
}

// helperRun runs a command on another engine's host and waits for its end.
func (a *app) helperRun(ctx context.Context, e *engine.Engine, args []string, b bundleText) error {
	var said strings.Builder
	code, err := helper.Run(ctx, e, a.job(b, args), io.Discard, &said)
	if err != nil {
		return err
	}
	lines := strings.TrimSpace(said.String())
	switch code {
	case codeDone:
		return nil
	case codePartial:
		return fmt.Errorf("%s: %w", lines, dr.ErrPartial)
	case codeUnknown:
		return fmt.Errorf("%s: %w", lines, dr.ErrOutcomeUnknown)
	}
	return errors.New(lines)
}

// stdinSource reads what opens the repository from standard input (helper).
func (a *app) stdinSource() (source, error) {
	if a.stdinSrc != nil {
		return *a.stdinSrc, nil
	}
	k, err := kit.Parse(a.in)
	if err != nil {
		return source{}, err
	}
	src, err := a.kitSource(k)
	if err != nil {
		return source{}, err
	}
	if p := os.Getenv(envHelperPassphrase); p != "" {
		src.passphrase = func() (string, error) { return p, nil }
	}
	a.stdinSrc = &src
	return src, nil
}
