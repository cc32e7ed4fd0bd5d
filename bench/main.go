// Command bench runs Lifeboat and other tools side by side on the same data, in turn, and writes what it
// measured as tables, pictures and raw figures that a person can look at.
//
// The data are a container's writable layer and volume on a real engine of the laboratory, filled by
// package corpus; the registries are Lifeboat's own on loopback without TLS. Each round gives every tool a
// fresh repository; within a round every step is done by all tools, one after the other, before the data
// change for the next. So tools are compared under the same load of the machine, whatever that is.
// With -paper it measures the figures of the paper instead: size and time against the number of courses,
// and what is sent for a second system. With -large and -age it measures Lifeboat
// alone: with very many files and a very large one, and after up to a thousand snapshots.
//
// Main types: stage (laboratory, container, registries), tool (one way to copy the data), results. It
// needs root and what lab/deps.sh installs; tools that are not installed are left out and named. It
// leaves nothing running or mounted. What it does not do: judge. Which figures are to be reached stands
// in the documents.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"lifeboat/lab"
)

const help = `usage: bench [flags]

  -paper            the figures of the paper (6, 7, and section 6.1) instead of tools side by side
  -large            Lifeboat alone: memory of each command with 1,000,000 files, and snapshots of a file
                    of 10 GiB while it is written
  -age              Lifeboat alone: the cost of a snapshot and of a restore against the snapshots before
  -snapshots N      how many snapshots -age takes (default 1000)
  -rounds N         how often everything is measured (default 3; 1 with -paper)
  -scale X          how much data, 1 being 40,000 files of 1.3 GB; 0.05 for a quick look. With -paper,
                    1 is 20 courses
  -tools LIST       of lifeboat,restic,restic-http,borg,kopia,docker (default all that are installed)
  -once LIST        tools that are run in the first round only, because they take so long
  -out DIR          where results go (default bench/results)
  -seed N           of the data (default 1)
  -lifeboat FILE    this binary instead of one built from the source
  -v                tell what the laboratory logs, too
`

// options are the flags.
type options struct {
	paper, large, age, verbose bool
	rounds, snapshots          int
	scale                      float64
	tools, once                []string
	out, binary                string
	seed                       uint64
}

func main() {
	lab.Child()
	o, err := parse(os.Args[1:])
	if err != nil {
		if !errors.Is(err, flag.ErrHelp) {
			fmt.Fprintln(os.Stderr, "bench:", err)
		}
		fmt.Fprint(os.Stderr, help)
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM, unix.SIGHUP)
	level := slog.LevelInfo
	if o.verbose {
		level = slog.LevelDebug
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
	err = run(ctx, o, log)
	interrupted := ctx.Err() != nil
	stop()
	switch {
	case err == nil:
	case interrupted:
		fmt.Fprintln(os.Stderr, "bench: interrupted; nothing is left running; there are results of the rounds that were done")
		os.Exit(130)
	default:
		fmt.Fprintf(os.Stderr, "bench: %v; nothing is left running\n", err)
		os.Exit(1)
	}
}

func parse(args []string) (options, error) {
	o := options{}
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	f.SetOutput(io.Discard)
	var tools, once string
	f.BoolVar(&o.paper, "paper", false, "")
	f.BoolVar(&o.large, "large", false, "")
	f.BoolVar(&o.age, "age", false, "")
	f.IntVar(&o.snapshots, "snapshots", ageSnapshots, "")
	f.BoolVar(&o.verbose, "v", false, "")
	f.IntVar(&o.rounds, "rounds", 0, "")
	f.Float64Var(&o.scale, "scale", 1, "")
	f.StringVar(&tools, "tools", "", "")
	f.StringVar(&once, "once", "", "")
	f.StringVar(&o.out, "out", "bench/results", "")
	f.StringVar(&o.binary, "lifeboat", "", "")
	f.Uint64Var(&o.seed, "seed", 1, "")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	if f.NArg() > 0 {
		return o, fmt.Errorf("unexpected argument %q", f.Arg(0))
	}
	if o.rounds == 0 {
		o.rounds = 3
		if o.paper {
			o.rounds = 1
		}
	}
	if o.rounds < 1 || o.rounds > 100 {
		return o, errors.New("-rounds: want 1 to 100")
	}
	if o.snapshots < 1 || o.snapshots > 100_000 {
		return o, errors.New("-snapshots: want 1 to 100000")
	}
	if !(o.scale >= 0.001 && o.scale <= 100) {
		return o, errors.New("-scale: want 0.001 to 100")
	}
	for _, list := range []struct {
		text string
		to   *[]string
	}{{tools, &o.tools}, {once, &o.once}} {
		if list.text == "" {
			continue
		}
		*list.to = strings.Split(list.text, ",")
		for _, name := range *list.to {
			if _, ok := makers()[name]; !ok {
				return o, fmt.Errorf("no tool %q; there are %s", name, strings.Join(names(), ", "))
			}
		}
	}
	return o, nil
}

// run sets the stage, measures, and writes results.
func run(ctx context.Context, o options, log *slog.Logger) (err error) {
	out, err := filepath.Abs(o.out)
	if err != nil {
		return fmt.Errorf("find directory of results: %w", err)
	}
	began := time.Now()
	s, err := setStage(ctx, o, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	save := func(files map[string][]byte) error { return write(out, files) }
	switch {
	case o.paper:
		err = s.paper(ctx, o, save)
	case o.age:
		err = s.age(ctx, o, save)
	case o.large:
		err = s.large(ctx, o, save)
	default:
		err = s.sideBySide(ctx, o, save)
	}
	if err != nil {
		return err
	}
	log.Info("done", "results", out, "took", time.Since(began).Round(time.Second))
	return nil
}

// write puts results into a directory, over those of an earlier run.
func write(dir string, files map[string][]byte) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make directory of results: %w", err)
	}
	for name, data := range files {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			return fmt.Errorf("write results: %w", err)
		}
	}
	return nil
}

// build makes the binary in the checkout as `make build` does.
func build(ctx context.Context, to string) error {
	tool, err := exec.LookPath("go")
	if err != nil {
		tool = "/usr/local/go/bin/go" // where Go is by default, in no PATH of a service
	}
	cmd := exec.CommandContext(ctx, tool, "build", "-trimpath", "-ldflags=-s -w", "-o", to, "lifeboat/cmd/lifeboat")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build lifeboat (run this in the checkout, or name a binary with -lifeboat): %w\n%s", err, text)
	}
	return nil
}
