package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"lifeboat/internal/dr"
	"lifeboat/internal/suggest"
	"lifeboat/internal/ui"
)

// process is what the operating system gives a command.
type process struct {
	args     []string // without the program's name
	in       io.Reader
	out, err io.Writer
	env      func(string) string
	exit     func(code int) // ends the process at once
	// gone is closed when whoever started this helper is no longer there; nil
	// for any other process.
	gone <-chan struct{}
	// patience with a registry that does not answer; zero means reach's own.
	patience patience
}

// errInterrupted is the cause of a context that a signal ended.
var errInterrupted = errors.New("interrupted")

// run is the whole command: it returns the exit code.
func run(p process) int {
	ctx, release := interruptible(context.Background(), p.exit, p.gone)
	defer release()
	a := newApp(p)
	root := newRootCmd(a)
	prepare(a, root)
	root.SetArgs(p.args)
	root.SetIn(p.in)
	root.SetOut(p.out)
	root.SetErr(p.err)
	cmd, err := root.ExecuteContextC(ctx)
	if a.cmd == nil {
		a.cmd = cmd
	}
	if err != nil && !a.started {
		err = usage(cmd, err)
	}
	return a.finish(ctx, err)
}

// interruptible gives a context that SIGINT, SIGTERM or SIGHUP ends; a command
// then stops at the next point where things are in order, and says what state
// they are in. The second signal ends the process at once with 130. A system
// that is frozen at that moment is thawed by its guardian, which outlives this
// process (invariant 5). Signals that were ignored when the process began, as
// under nohup, stay ignored.
//
// SIGPIPE is taken so that a reader of our output that goes away does not kill
// a failover half way.
func interruptible(parent context.Context, exit func(int), gone <-chan struct{}) (ctx context.Context, release func()) {
	ctx, cancel := context.WithCancelCause(parent)
	pipe, stop, done := make(chan os.Signal, 1), make(chan os.Signal, 2), make(chan struct{})
	signal.Notify(pipe, syscall.SIGPIPE)
	for _, s := range []os.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP} {
		if !signal.Ignored(s) {
			signal.Notify(stop, s)
		}
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for first := true; ; {
			select {
			case <-done:
				return
			case <-pipe:
			case <-gone:
				gone = nil
				cancel(fmt.Errorf("%w: whoever started the helper is gone", errInterrupted))
			case s := <-stop:
				if !first {
					exit(codeInterrupted)
					return
				}
				first = false
				cancel(fmt.Errorf("%w by %s", errInterrupted, signalName(s)))
			}
		}
	}()
	return ctx, func() {
		signal.Stop(stop)
		signal.Stop(pipe)
		close(done)
		<-ended
		cancel(nil)
	}
}

func signalName(s os.Signal) string {
	switch s {
	case syscall.SIGINT:
		return "SIGINT"
	case syscall.SIGTERM:
		return "SIGTERM"
	case syscall.SIGHUP:
		return "SIGHUP"
	default:
		return s.String()
	}
}

// usage makes a usage error of what cobra found before the command's own code
// ran: an unknown command or flag, wrong arguments, a missing flag.
func usage(cmd *cobra.Command, err error) error {
	if errors.Is(err, dr.ErrUsage) {
		return err
	}
	return ui.Explained{
		What:  tidy(err.Error()),
		State: "nothing was done",
		Next:  []string{cmd.CommandPath() + " --help"},
		Err:   dr.ErrUsage,
	}
}

// tidy makes one line of cobra's message with its suggestions below.
func tidy(s string) string {
	s, more, ok := strings.Cut(s, "\n\nDid you mean this?\n")
	if words := strings.Fields(more); ok && len(words) > 0 {
		s += fmt.Sprintf(" (did you mean %q?)", words[0])
	}
	return strings.TrimSpace(s)
}

// prepare sets on every command what none should have to think of.
func prepare(a *app, c *cobra.Command) {
	c.SilenceErrors, c.SilenceUsage = true, true
	if c.HasSubCommands() && !c.Runnable() {
		c.Args = subcommandOnly
		c.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
	}
	if do := c.RunE; do != nil {
		c.RunE = func(cmd *cobra.Command, args []string) error {
			if err := a.begin(cmd); err != nil {
				return err
			}
			return do(cmd, args)
		}
	}
	for _, sub := range c.Commands() {
		prepare(a, sub)
	}
}

// subcommandOnly refuses a word that is no command of the group.
func subcommandOnly(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	var names []string
	for _, c := range cmd.Commands() {
		if c.IsAvailableCommand() {
			names = append(names, c.Name())
		}
	}
	return fmt.Errorf("unknown command %q for %q%s", args[0], cmd.CommandPath(), suggest.Hint(args[0], names))
}

// wantsJSON looks for --json before cobra has read the flags: also a mistake in
// the flags is told as JSON to who asked for it.
func wantsJSON(args []string) bool {
	if i := slices.Index(args, "--"); i >= 0 {
		args = args[:i]
	}
	return slices.Contains(args, "--json") || slices.Contains(args, "--json=true")
}
