package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"lifeboat/internal/config"
	"lifeboat/internal/dr"
	"lifeboat/internal/store"
	"lifeboat/internal/ui"
)

// commands lists every command, groups included, by its path.
func commands(t *testing.T) map[string]*cobra.Command {
	t.Helper()
	out := map[string]*cobra.Command{}
	var walk func(c *cobra.Command)
	walk = func(c *cobra.Command) {
		out[c.CommandPath()] = c
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	walk(newRootCmd(newApp(process{env: func(string) string { return "" }})))
	return out
}

// TestEveryCommandExplainsItself holds new commands to the house's manners.
func TestEveryCommandExplainsItself(t *testing.T) {
	t.Parallel()
	for path, c := range commands(t) {
		if c.Short == "" || strings.HasSuffix(c.Short, ".") {
			t.Errorf("%s: Short is %q; want a phrase without a full stop", path, c.Short)
		}
		if c.Run != nil {
			t.Errorf("%s: uses Run; errors come back through RunE", path)
		}
		if c.PersistentPreRun != nil || c.PersistentPreRunE != nil || c.PreRun != nil || c.PreRunE != nil {
			t.Errorf("%s: does work before RunE; its errors would be told as usage errors", path)
		}
		if c.HasSubCommands() && c.HasParent() {
			continue // a group; its commands have the examples
		}
		if !strings.Contains(c.Example, "lifeboat") {
			t.Errorf("%s: has no example", path)
		}
		if c.RunE != nil && c.HasParent() && c.Args == nil && c.Name() != "help" {
			t.Errorf("%s: does not say how many arguments it takes (Args)", path)
		}
	}
}

// TestHelpOfEveryCommand runs --help of all commands.
func TestHelpOfEveryCommand(t *testing.T) {
	t.Parallel()
	for path, c := range commands(t) {
		if c.Hidden {
			continue
		}
		code, out, errs := call(nil, append(strings.Fields(path)[1:], "--help")...)
		if code != 0 || errs != "" || !strings.Contains(out, "Usage:\n") || !strings.Contains(out, c.Short) && c.Long == "" {
			t.Errorf("%s --help: exit code %d, stderr %q, stdout\n%s", path, code, errs, out)
		}
	}
}

// TestHelpAndCompletionAsJSON: they are one document, too, however they are asked for.
func TestHelpAndCompletionAsJSON(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"help", "copy"}, {"copy", "--help"}, {"help"}, {}, {"key"}, {"completion", "bash"}} {
		_, text, _ := call(nil, args...)
		code, out, errs := call(nil, append(args, "--json")...)
		var ans struct{ Help, Script string }
		if err := json.Unmarshal([]byte(out), &ans); err != nil || code != 0 || errs != "" || text == "" || ans.Help+ans.Script != text {
			t.Errorf("%v: exit code %d, %v, %q\n%s", args, code, err, errs, out)
		}
	}
	if code, out, _ := call(nil, "completion", "csh", "--json"); code != codeUsage || !json.Valid([]byte(out)) {
		t.Errorf("%d\n%s", code, out)
	}
	if _, out, _ := call(nil, "--help"); !strings.Contains(out, strconv.Itoa(codeUnread)+" nobody") {
		t.Error("the help does not list every exit code")
	}
}

// call runs the command in this process.
func call(env map[string]string, args ...string) (code int, stdout, stderr string) {
	var out, errs bytes.Buffer
	code = run(process{
		args: args, in: strings.NewReader(""), out: &out, err: &errs,
		env: func(k string) string { return env[k] }, exit: func(int) {},
		patience: patience{limit: time.Hour, first: 10 * time.Second, again: time.Minute}, // the machine may be slow
	})
	return code, out.String(), errs.String()
}

func TestOutcomes(t *testing.T) {
	t.Parallel()
	live := t.Context()
	stopped, cancel := context.WithCancelCause(t.Context())
	cancel(fmt.Errorf("%w by SIGINT", errInterrupted))
	for _, tt := range []struct {
		ctx  context.Context
		err  error
		want outcome
	}{
		{live, nil, outcome{0, "done"}},
		{live, errors.New("x"), outcome{1, "failed"}},
		{live, dr.ErrTampered, outcome{1, "failed"}},
		{live, context.Canceled, outcome{1, "failed"}},
		{live, dr.ErrUsage, outcome{2, "usage"}},
		{live, &config.Problems{}, outcome{2, "usage"}},
		{live, dr.ErrPartial, outcome{3, "partial"}},
		{live, fmt.Errorf("a: %w", dr.ErrNotFound), outcome{10, "not-found"}},
		{live, ui.Explained{Err: dr.ErrHeld}, outcome{11, "held"}},
		{live, dr.ErrWrongKey, outcome{12, "wrong-key"}},
		{live, dr.ErrFenced, outcome{13, "fenced"}},
		{live, errors.Join(dr.ErrFenced, dr.ErrOutcomeUnknown), outcome{14, "outcome-unknown"}},
		{live, errors.Join(dr.ErrNotFound, dr.ErrPartial), outcome{3, "partial"}},
		{stopped, fmt.Errorf("push: %w", context.Canceled), outcome{130, "interrupted"}},
		{stopped, context.Cause(stopped), outcome{130, "interrupted"}},
		{stopped, errors.Join(context.Canceled, dr.ErrOutcomeUnknown), outcome{130, "interrupted"}}, // the engine's
		{stopped, errors.Join(context.Canceled, store.ErrUnknownOutcome), outcome{14, "outcome-unknown"}},
		{stopped, errors.New("something else"), outcome{1, "failed"}},
		{stopped, nil, outcome{0, "done"}}, // it was finished all the same
	} {
		if got := outcomeOf(tt.ctx, tt.err); got != tt.want {
			t.Errorf("%v: %v, want %v", tt.err, got, tt.want)
		}
	}
}

// TestSignals takes real signals, so nothing else of this process may wait for
// one meanwhile: it is not parallel.
func TestSignals(t *testing.T) {
	for _, s := range []unix.Signal{unix.SIGINT, unix.SIGTERM, unix.SIGHUP} {
		if signal.Ignored(s) {
			continue // as nohup has it: it does not end the command either
		}
		exits := make(chan int, 1)
		ctx, release := interruptible(t.Context(), func(code int) { exits <- code }, nil)
		send := func(s unix.Signal) {
			t.Helper()
			if err := unix.Kill(os.Getpid(), s); err != nil {
				t.Fatal(err)
			}
		}
		send(unix.SIGPIPE)
		if ctx.Err() != nil {
			t.Error("SIGPIPE ended the command")
		}
		send(s)
		<-ctx.Done()
		if cause := context.Cause(ctx); !errors.Is(cause, errInterrupted) || !strings.Contains(cause.Error(), "SIG") {
			t.Errorf("cause %v", cause)
		}
		send(s)
		if code := <-exits; code != 130 {
			t.Errorf("the second signal exits with %d", code)
		}
		release()
	}
	ctx, release := interruptible(t.Context(), func(int) { t.Error("exit") }, nil)
	release()
	if errors.Is(context.Cause(ctx), errInterrupted) {
		t.Error("released as if interrupted")
	}
}

// TestInterruptedCommand shows what a command says that a signal ended.
func TestInterruptedCommand(t *testing.T) {
	t.Parallel()
	var out, errs bytes.Buffer
	a := newApp(process{args: []string{"--json"}, out: &out, err: &errs, env: func(string) string { return "" }})
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(fmt.Errorf("%w by SIGTERM", errInterrupted))
	if code := a.finish(ctx, fmt.Errorf("push pack: %w", context.Canceled)); code != 130 {
		t.Errorf("exit code %d", code)
	}
	var doc struct {
		Error struct {
			Code          int
			Kind, Message string
		}
	}
	if err := json.Unmarshal(out.Bytes(), &doc); err != nil || doc.Error.Code != 130 || doc.Error.Kind != "interrupted" || doc.Error.Message != "interrupted by SIGTERM: push pack: context canceled" {
		t.Errorf("%v: %s", err, &out)
	}
	if !strings.HasPrefix(errs.String(), "lifeboat: interrupted by SIGTERM") {
		t.Errorf("stderr %q", &errs)
	}
}

func TestAppConfiguration(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := filepath.Join(dir, "lifeboat.yaml")
	env := map[string]string{"LIFEBOAT_CONFIG": file}
	fresh := func() *app {
		a := newApp(process{out: io.Discard, err: io.Discard, env: func(k string) string { return env[k] }})
		return a
	}
	if _, err := fresh().Config(); !errors.Is(err, dr.ErrNotFound) {
		t.Errorf("a file that was asked for is missing: %v", err)
	}
	if c, err := fresh().ConfigToEdit(); err != nil || c.Path != file {
		t.Errorf("a file to be made: %+v, %v", c, err)
	}
	if err := os.WriteFile(file, []byte("stie: x\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := fresh().RepoURL(); outcomeOf(t.Context(), err).code != codeUsage || !strings.Contains(err.Error(), `did you mean "site"?`) {
		t.Errorf("a faulty file: %v", err)
	}
	if err := os.WriteFile(file, []byte("systems: {shop: {project: shop}}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	a := fresh()
	var x ui.Explainer
	if _, err := a.RepoURL(); !errors.Is(err, dr.ErrUsage) || !errors.As(err, &x) {
		t.Errorf("no repository: %v", err)
	}
	if _, err := config.SetTop(file, "repo", "oci://file/n"); err != nil {
		t.Fatal(err)
	}
	a.reload()
	if got, err := a.RepoURL(); err != nil || got != "oci://file/n" {
		t.Errorf("%q, %v", got, err)
	}
	a.flags.repo = "oci://flag/n"
	if got, err := a.RepoURL(); err != nil || got != "oci://flag/n" {
		t.Errorf("%q, %v", got, err)
	}
	if names, _ := a.completeSystems(nil, nil, ""); cmp.Diff([]string{"shop"}, names) != "" {
		t.Errorf("completion: %v", names)
	}
}

func TestSecretsInFlags(t *testing.T) {
	t.Parallel()
	code, out, errs := call(nil, "version", "--repo", "oci://u:hunter2@h/n", "--nosuch=oci://u:hunter2@h/n")
	if code != codeUsage || strings.Contains(out+errs, "hunter2") {
		t.Errorf("%d: %s%s", code, out, errs)
	}
}
