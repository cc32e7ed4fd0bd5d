// Command demo shows Lifeboat's main job on one machine, with real engines, registry and database: a
// WordPress system on a main site is protected and captured under load, the main site is lost without
// warning, the system comes up at a stand-in, goes on there, and is brought back with nothing lost. Each
// claim is verified by means that know nothing of Lifeboat; at the end stands a timeline.
//
// Main types: stage (the laboratory with registry and configuration), director (the acts, in order),
// report (what was measured). It needs root and what lab/deps.sh installs, runs the real binary, and
// leaves nothing running or mounted however it ends. It is no test: package e2e is.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"lifeboat/internal/quantity"
	"lifeboat/internal/ui"
	"lifeboat/lab"
)

const help = `usage: demo [flags]

  -destroy          the main site is lost with its disk; without it the power fails and the old data
                    is still there when it is repaired, so that the failback sends only differences
  -wan PARAMS       default "delay=10ms rate=12500000" (one way, bytes per second): 20 ms there and
                    back, 100 Mbit/s; also jitter=, loss=, queue=
  -snapshots N      how many are taken under load before the loss (default 3)
  -two-commands     the failback is run as two commands, one at each site, as where the sites cannot
                    reach each other's engines
  -lifeboat FILE    this binary instead of one built from the source
  -v                tell what the laboratory and lifeboat log
`

// options are the flags.
type options struct {
	destroy, twoCommands, verbose bool
	wan, binary                   string
	snapshots                     int
}

func main() {
	lab.Child()
	o, err := parse(os.Args[1:])
	if err != nil {
		if !errors.Is(err, flag.ErrHelp) {
			fmt.Fprintln(os.Stderr, "demo:", err)
		}
		fmt.Fprint(os.Stderr, help)
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM, unix.SIGHUP)
	ctx = orphaned(ctx)
	// Everything goes to one stream: the story is what was asked for.
	out := ui.New(ui.Options{In: os.Stdin, Out: os.Stdout, Err: os.Stdout, Env: os.Getenv})
	err = perform(ctx, o, out)
	interrupted := ctx.Err() != nil
	stop()
	switch {
	case err == nil:
	case interrupted:
		fmt.Fprintf(os.Stderr, "\ndemo: interrupted; %s\n", firstLine(err))
		os.Exit(130)
	default:
		fmt.Fprintf(os.Stderr, "\ndemo: FAILED: %v\n", err)
		os.Exit(1)
	}
}

func firstLine(err error) string {
	line, _, _ := strings.Cut(err.Error(), "\n")
	return line
}

func parse(args []string) (options, error) {
	o := options{}
	f := flag.NewFlagSet("demo", flag.ContinueOnError)
	f.SetOutput(io.Discard)
	f.BoolVar(&o.destroy, "destroy", false, "")
	f.BoolVar(&o.twoCommands, "two-commands", false, "")
	f.BoolVar(&o.verbose, "v", false, "")
	f.StringVar(&o.wan, "wan", "delay=10ms rate=12500000", "")
	f.StringVar(&o.binary, "lifeboat", "", "")
	f.IntVar(&o.snapshots, "snapshots", 3, "")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	if f.NArg() > 0 {
		return o, fmt.Errorf("unexpected argument %q", f.Arg(0))
	}
	if o.snapshots < 1 {
		return o, errors.New("-snapshots: without one there is nothing to recover from")
	}
	return o, nil
}

// orphaned ends the context when `go run` is killed: it takes no signal along to its child other than
// those of the terminal, and nobody would see the rest of the story.
func orphaned(ctx context.Context) context.Context {
	parent := os.Getppid()
	comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", parent))
	if err != nil || strings.TrimSpace(string(comm)) != "go" {
		return ctx
	}
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		for os.Getppid() == parent {
			time.Sleep(500 * time.Millisecond)
		}
		cancel()
	}()
	return ctx
}

// perform sets the stage, plays the acts, and clears the stage in any case.
func perform(ctx context.Context, o options, out *ui.Printer) (err error) {
	began := time.Now()
	log := slog.New(notes{out, o.verbose})
	s, err := setStage(ctx, o, out, log)
	if err != nil {
		return err
	}
	defer func() {
		out.Note("\nclearing the stage: engines, networks, mounts and files of the laboratory")
		if closeErr := s.close(); closeErr != nil {
			err = errors.Join(err, closeErr)
			return
		}
		if err == nil {
			out.Note("nothing is left running or mounted; the whole run took %s", quantity.Duration(time.Since(began)))
		}
	}()
	d := newDirector(s, o, out, log)
	defer d.stopVisitors()
	return d.play(ctx)
}

// notes shows the records of a logger as lines of the story.
type notes struct {
	out     *ui.Printer
	verbose bool
}

// Enabled lets through what takes long enough to be told.
func (n notes) Enabled(_ context.Context, l slog.Level) bool { return n.verbose || l >= slog.LevelInfo }

// Handle writes one record as one line.
func (n notes) Handle(_ context.Context, r slog.Record) error {
	line := "  " + r.Message
	r.Attrs(func(a slog.Attr) bool {
		line += " " + a.Key + "=" + a.Value.String()
		return true
	})
	n.out.Note("%s", line)
	return nil
}

// WithAttrs is of no use here: the laboratory's loggers have no attributes of their own.
func (n notes) WithAttrs([]slog.Attr) slog.Handler { return n }

// WithGroup is of no use here.
func (n notes) WithGroup(string) slog.Handler { return n }

// moduleRoot is the directory of go.mod at or above the working directory.
func moduleRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", fmt.Errorf("find the source: %w", err)
	}
	for at := dir; ; at = filepath.Dir(at) {
		if _, err := os.Stat(filepath.Join(at, "go.mod")); err == nil {
			return at, nil
		}
		if at == filepath.Dir(at) {
			return "", fmt.Errorf("find the source: no go.mod at or above %s; run `make demo` in the checkout, or name a binary with -lifeboat", dir)
		}
	}
}
