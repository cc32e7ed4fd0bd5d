// Command lab makes a laboratory for people: two sites with an engine each on this machine, a WAN
// between them that can be shaped and cut, hosts that can crash, and real systems to run on them. Run
// it without arguments for help.
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
	"sort"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"

	"lifeboat/lab"
	"lifeboat/lab/images"
	"lifeboat/lab/systems"
	"lifeboat/lab/wan"
)

const help = `usage: lab [-name NAME] [-root DIR] COMMAND

  up [-engine E] [-standin-engine E] [-wan PARAMS]   two sites, main and standin, that stay until down
  down                     take everything away
  status                   what is up, and what it sent over the WAN
  sh SITE [CMD ARG...]     run a command on a site (default: a shell), DOCKER_HOST set
  wan PARAMS               like "delay=20ms jitter=2ms loss=0.01 rate=12500000 queue=1000000" (bytes/s, bytes)
  cut [SITE...]            packets vanish; without a site everybody's
  heal [SITE...]           they arrive again
  crash SITE               loss of power; the disk stays
  destroy SITE             loss of the host with its disk
  start SITE               switch a site on
  system KIND up SITE      run a system: wordpress, guestbook or torture
  system KIND seed SITE    make it look used
  system KIND verify SITE  check its database and its ledger
  system KIND get SITE [PATH]
  build                    make the images of all systems ahead
  sweep                    remove what dead laboratories left

Engines: docker20 (this machine's), docker26, docker28, containerd26, containerd28.
`

func main() {
	lab.Child()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout)
	stop()
	var exit *exec.ExitError
	switch {
	case err == nil:
	case errors.Is(err, flag.ErrHelp), errors.Is(err, errUsage):
		fmt.Fprint(os.Stderr, help)
		os.Exit(2)
	case errors.As(err, &exit):
		os.Exit(exit.ExitCode())
	default:
		fmt.Fprintln(os.Stderr, "lab:", err)
		os.Exit(1)
	}
}

var errUsage = errors.New("usage")

// command is the laboratory's name and where it is, and how to talk.
type command struct {
	name, root string
	log        *slog.Logger
	out        io.Writer
}

func run(ctx context.Context, args []string, out io.Writer) error {
	c := command{log: slog.New(slog.NewTextHandler(os.Stderr, nil)), out: out}
	flags := flag.NewFlagSet("lab", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	flags.StringVar(&c.name, "name", "demo", "")
	flags.StringVar(&c.root, "root", lab.DefaultRoot, "")
	if err := flags.Parse(args); err != nil {
		return errUsage
	}
	if flags.NArg() == 0 {
		return errUsage
	}
	verb, rest := flags.Arg(0), flags.Args()[1:]
	switch verb {
	case "up":
		return c.up(ctx, rest)
	case "build":
		return images.Ensure(ctx, c.log, systems.Sets()...)
	case "sweep":
		return lab.Sweep(ctx, c.root, c.log)
	}
	l, err := lab.Attach(ctx, c.root, c.name)
	if err != nil {
		return err
	}
	switch verb {
	case "down":
		return l.Close()
	case "status":
		return c.status(ctx, l)
	case "wan":
		p, err := wan.ParseParams(strings.Join(rest, " "))
		if err != nil {
			return err
		}
		return l.SetWAN(ctx, p)
	case "cut":
		return l.Cut(ctx, rest...)
	case "heal":
		return l.Heal(ctx, rest...)
	case "sh", "crash", "destroy", "start":
		return c.atSite(ctx, l, verb, rest)
	case "system":
		return c.system(ctx, l, rest)
	}
	return errUsage
}

func engines() map[string]lab.Engine {
	return map[string]lab.Engine{
		"docker20": lab.EngineDocker20, "docker26": lab.EngineDocker26, "docker28": lab.EngineDocker28,
		"containerd26": lab.EngineContainerd26, "containerd28": lab.EngineContainerd,
	}
}

func (c command) up(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("up", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	main := flags.String("engine", "docker20", "")
	standin := flags.String("standin-engine", "", "")
	params := flags.String("wan", "", "")
	if err := flags.Parse(args); err != nil || flags.NArg() > 0 {
		return errUsage
	}
	if *standin == "" {
		*standin = *main
	}
	known := engines()
	var sites []lab.SiteOptions
	for _, s := range [][2]string{{"main", *main}, {"standin", *standin}} {
		engine, ok := known[s[1]]
		if !ok {
			return fmt.Errorf("unknown engine %q", s[1])
		}
		sites = append(sites, lab.SiteOptions{Name: s[0], Engine: engine})
	}
	p, err := wan.ParseParams(*params)
	if err != nil {
		return err
	}
	start := time.Now()
	l, err := lab.New(ctx, lab.Options{Name: c.name, Root: c.root, Sites: sites, WAN: p, Linger: true, Log: c.log})
	if err != nil {
		return err
	}
	fmt.Fprintf(os.Stderr, "laboratory %s is up after %v; it stays until: lab down\n", l.Name(), time.Since(start).Round(time.Millisecond))
	return c.status(ctx, l)
}

func (c command) status(ctx context.Context, l *lab.Lab) error {
	status, err := l.Status(ctx)
	if err != nil {
		return err
	}
	w := tabwriter.NewWriter(c.out, 0, 4, 2, ' ', 0)
	fmt.Fprintln(w, "SITE\tADDRESS\tSTATE\tSENT\tDOCKER_HOST")
	for _, s := range status.Sites {
		state := "down"
		switch {
		case s.Engine:
			state = "up"
		case s.Up:
			state = "up, no engine"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%s\n", s.Name, s.IP, state, s.BytesCarried, l.Site(s.Name).DockerHost())
	}
	return w.Flush()
}

func (c command) atSite(ctx context.Context, l *lab.Lab, verb string, args []string) error {
	site, args, err := takeSite(l, args)
	if err != nil {
		return err
	}
	switch verb {
	case "crash":
		return site.Crash(ctx)
	case "destroy":
		return site.Destroy(ctx)
	case "start":
		return site.Start(ctx)
	}
	if len(args) == 0 {
		args = []string{"bash"}
	}
	cmd := site.Command(context.WithoutCancel(ctx), args[0], args[1:]...) // the terminal interrupts it by itself
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	return cmd.Run()
}

func takeSite(l *lab.Lab, args []string) (*lab.Site, []string, error) {
	if len(args) == 0 {
		return nil, nil, errUsage
	}
	site := l.Site(args[0])
	if site == nil {
		var names []string
		for _, s := range l.Sites() {
			names = append(names, s.Name)
		}
		sort.Strings(names)
		return nil, nil, fmt.Errorf("no site %q; there are %s", args[0], strings.Join(names, ", "))
	}
	return site, args[1:], nil
}

func (c command) system(ctx context.Context, l *lab.Lab, args []string) error {
	if len(args) < 3 {
		return errUsage
	}
	kinds := map[string]func(systems.Params) *systems.System{
		"wordpress": systems.WordPress, "guestbook": systems.Guestbook, "torture": systems.Torture,
	}
	kind, ok := kinds[args[0]]
	if !ok {
		return fmt.Errorf("unknown system %q; there are wordpress, guestbook, torture", args[0])
	}
	s := kind(systems.Params{})
	site, rest, err := takeSite(l, args[2:])
	if err != nil {
		return err
	}
	switch args[1] {
	case "up":
		if err := s.Up(ctx, site, c.log); err != nil {
			return err
		}
		fmt.Fprintln(c.out, s.URL(site))
		return nil
	case "seed":
		return s.Seed(ctx, site, systems.Seed{})
	case "verify":
		return s.Verify(ctx, site)
	case "get":
		path := "/"
		if len(rest) > 0 {
			path = rest[0]
		}
		page, err := s.Get(ctx, site, path)
		fmt.Fprintln(c.out, page)
		return err
	}
	return errUsage
}
