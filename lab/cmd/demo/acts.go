package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"lifeboat/internal/quantity"
	"lifeboat/internal/ui"
	"lifeboat/lab"
	"lifeboat/lab/systems"
	"lifeboat/lab/treecmp"
)

// name is the system's in Lifeboat; the Compose project happens to be called the same.
const name = "blog"

// Numbers of entries tell where they were written.
const (
	firstAtMain    = 1_000
	firstAtStandin = 100_000
	firstBack      = 200_000
)

// standinPort is published at the stand-in, where the original one is taken for something else.
const standinPort = 18080

// actMax is how long an act may take. The longest send or fetch a gigabyte over the WAN.
const actMax = 5 * time.Minute

// director plays the acts in order and remembers what the checks and the report need.
type director struct {
	stage *stage
	opts  options
	out   *ui.Printer
	log   *slog.Logger

	// blog is the system as it is at the main site, away as it is at the stand-in: another port.
	blog, away *systems.System
	// installed are the files in the writable layer that do not change any more.
	installed map[string]treecmp.Tree
	images    string
	kit       string

	atMain, atStandin, back *visitors
	snapshot                snapshotAnswer // the last one at the main site
	recovered, lost         []systems.Ack  // what the failover brought back, and what came after its snapshot
	report                  report
}

func newDirector(s *stage, o options, out *ui.Printer, log *slog.Logger) *director {
	return &director{
		stage: s, opts: o, out: out, log: log, kit: filepath.Join(s.lab.Dir(), "recovery-kit.txt"),
		blog: systems.WordPress(systems.Params{}), away: systems.WordPress(systems.Params{Port: standinPort}),
	}
}

func title(out *ui.Printer, text string) {
	out.Note("")
	out.Show(ui.ViewFunc(func(c *ui.Canvas) { c.Line("%s", c.Bold(text)) }))
}

func (d *director) play(ctx context.Context) error {
	acts := []struct {
		title string
		do    func(context.Context) error
	}{
		{"A system runs at the main site", d.install},
		{"It is protected", d.protect},
		{"Snapshots are taken while people write", d.takeSnapshots},
		{"The main site is lost without warning", d.lose},
		{"The stand-in takes over", d.failover},
		{"Life goes on at the stand-in", d.goOn},
		{"The main site is repaired", d.repair},
		{"The system is brought back", d.failback},
		{"Is everything there?", d.verifyBack},
	}
	for i, a := range acts {
		title(d.out, fmt.Sprintf("%d  %s", i+1, a.title))
		act, cancel := context.WithTimeout(ctx, actMax)
		err := a.do(act)
		cancel()
		if err != nil {
			if ctx.Err() != nil {
				return fmt.Errorf("act %d (%s) was not played to its end", i+1, a.title)
			}
			return fmt.Errorf("act %d (%s): %w", i+1, a.title, err)
		}
	}
	title(d.out, "What happened")
	d.out.Show(d.report.views(d)...)
	return nil
}

// stopVisitors ends all load.
func (d *director) stopVisitors() {
	for _, v := range []*visitors{d.atMain, d.atStandin, d.back} {
		v.stop()
	}
}

// install makes the system, and makes it look used.
func (d *director) install(ctx context.Context) error {
	began := time.Now()
	if err := d.blog.Up(ctx, d.stage.main, quiet(d.log, d.opts)); err != nil {
		return err
	}
	if err := d.blog.Seed(ctx, d.stage.main, systems.Seed{}); err != nil {
		return err
	}
	d.out.Show(ui.Fields{
		{Name: "  system", Value: "WordPress and MariaDB from Debian's packages, one Compose project, " + d.blog.URL(d.stage.main)},
		{Name: "  in volumes", Value: "database, uploads"},
		{Name: "  on the host", Value: "bind-mounted configuration, environment files: " + d.blog.Dir(d.stage.main)},
		{Name: "  written later", Value: "a theme of 300 files in the writable layer; files of the image deleted, replaced, dated 2038"},
	})
	if err := d.showPage(ctx, d.blog, d.stage.main); err != nil {
		return err
	}
	var err error
	if d.installed, err = d.installedFiles(ctx, d.blog, d.stage.main); err != nil {
		return err
	}
	if d.images, err = imageIDs(ctx, d.stage.main); err != nil {
		return err
	}
	d.out.Note("  installed and filled in %s", quantity.Duration(time.Since(began)))
	return nil
}

// protect creates the repository and declares the system. The stand-in is prepared ahead.
func (d *director) protect(ctx context.Context) error {
	s := d.stage
	if err := s.write(ctx, s.main, configFile, fmt.Sprintf("site: %s\nstate_dir: %s\n", s.main.Name, s.main.StateDir)); err != nil {
		return err
	}
	if err := d.run(ctx, s.main, exitDone, nil, "init", "--repo", repoURL, "--fingerprint", s.fingerprint, "--kit", d.kit); err != nil {
		return err
	}
	st, err := os.Stat(d.kit)
	if err == nil && st.Mode() != 0o600 {
		err = fmt.Errorf("its mode is %v", st.Mode())
	}
	if err := d.check("the recovery kit can be read by its owner alone", err); err != nil {
		return err
	}
	key, err := s.main.Run(ctx, "cat", keyFile)
	if err != nil {
		return err
	}
	s.key = string(key)
	if err := s.configure(ctx, s.standin); err != nil {
		return err
	}
	return d.run(ctx, s.main, exitDone, nil, "protect", name, "--project", d.blog.Project)
}

// takeSnapshots captures the system while entries are written.
func (d *director) takeSnapshots(ctx context.Context) error {
	var err error
	d.report.start = time.Now()
	if d.atMain, err = visit(ctx, d.blog, d.stage.main, firstAtMain); err != nil {
		return err
	}
	d.out.Note("  two visitors write entries from now on, each as fast as it gets its answers")
	for range d.opts.snapshots {
		if err := d.atMain.await(ctx, 20); err != nil {
			return err
		}
		began := time.Now()
		if d.snapshot, err = d.takeSnapshot(ctx); err != nil {
			return err
		}
		a := d.snapshot
		row := snapshotRow{answer: a, began: began, ended: time.Now()}
		d.report.snapshots = append(d.report.snapshots, row)
		d.out.Note("%s   %s: scanned %s, new %s, sent %s, frozen %.1f ms", margin(d.stage.main),
			shortID(a.Snapshot), quantity.Size(a.BytesScanned), quantity.Size(a.BytesNew), quantity.Size(a.BytesSent), a.FreezeMS)
	}
	// These no snapshot will have.
	return d.atMain.await(ctx, 10)
}

// takeSnapshot takes one at the main site. On a machine whose disk is busy it can be given up because
// the freeze took longer than it may; then the system runs on, nothing has changed, and, as lifeboat
// says, it is taken again. Once: what cannot be done on a second try is a failure.
func (d *director) takeSnapshot(ctx context.Context) (a snapshotAnswer, err error) {
	for try := 1; ; try++ {
		err = d.run(ctx, d.stage.main, exitDone, &a, "snapshot", name, "--json")
		var exit *exitError
		if err == nil || try == 2 || !errors.As(err, &exit) || exit.code != exitFailed || !strings.Contains(exit.said, "freeze_max") {
			return a, err
		}
	}
}

func shortID(id string) string { return id[:min(len(id), 8)] }

// lose takes the main site away in the middle of everything.
func (d *director) lose(ctx context.Context) error {
	var err error
	d.report.lost = time.Now()
	if d.opts.destroy {
		err = d.stage.main.Destroy(ctx)
	} else {
		err = d.stage.main.Crash(ctx)
	}
	if err != nil {
		return err
	}
	acks := d.atMain.stop()
	failed, _ := d.atMain.failed()
	what := "the power is gone: engine, containers and network end within one instant; the disk remains"
	if d.opts.destroy {
		what = "fire: engine, containers, network and disk are gone"
	}
	d.out.Note("  %s", what)
	d.out.Note("  %s entries were acknowledged to the visitors before, %d requests were left without an answer", quantity.Count(int64(len(acks))), failed)
	_, err = d.blog.Get(ctx, d.stage.main, "/")
	if err == nil {
		return d.check("the main site does not answer", errors.New("it does"))
	}
	return d.check("the main site does not answer", nil)
}

// failover brings the system up at the stand-in and looks whether it is the one that was captured.
func (d *director) failover(ctx context.Context) error {
	s := d.stage
	var err error
	if d.atStandin, err = visit(ctx, d.away, s.standin, firstAtStandin); err != nil {
		return err
	}
	d.report.failoverBegan = time.Now()
	a := &d.report.failover
	err = d.run(ctx, s.standin, exitDone, a, "failover", name, "--override", fmt.Sprintf("ports.%d=%d", d.blog.Port, standinPort),
		"--override", "paths."+filepath.Join(s.main.Disk, "srv")+"="+filepath.Join(s.standin.Disk, "srv"), "--yes", "--json")
	if err != nil {
		return err
	}
	d.report.failoverEnded = time.Now()
	d.showPorts(s.standin, *a)
	if err := d.atStandin.await(ctx, 1); err != nil {
		return err
	}
	if err := d.away.AwaitServing(ctx, s.standin); err != nil {
		return err
	}
	if err := d.showPage(ctx, d.away, s.standin); err != nil {
		return err
	}
	return d.verifyFailover(ctx)
}

// goOn lets people write at the stand-in.
func (d *director) goOn(ctx context.Context) error {
	if err := d.atStandin.await(ctx, 40); err != nil {
		return err
	}
	d.out.Note("  %d entries were written at the stand-in so far, and visitors go on", len(d.atStandin.acks()))
	return nil
}

// repair brings the main site back: with its old data, which nobody may take for current, or empty.
func (d *director) repair(ctx context.Context) error {
	s := d.stage
	if err := s.main.Start(ctx); err != nil {
		return err
	}
	d.report.repaired = time.Now()
	if d.opts.destroy {
		d.out.Note("  a new host of the same name, empty; it gets Lifeboat's configuration and the key")
		return errors.Join(s.configure(ctx, s.main), s.login(ctx, s.main))
	}
	if err := d.blog.AwaitServing(ctx, s.main); err != nil {
		return err
	}
	d.out.Note("  the power is back, and the engine has started the containers by itself: they serve stale data")
	if err := d.run(ctx, s.main, exitFenced, nil, "snapshot", name); err != nil {
		return err
	}
	return d.check("the stale site is told so (exit 13) and makes no snapshot", nil)
}

// failback brings the system back while people write at the stand-in.
func (d *director) failback(ctx context.Context) error {
	s := d.stage
	r := &d.report
	before, err := s.carried(ctx, s.main, s.standin, s.cloud)
	if err != nil {
		return err
	}
	watch, stop := context.WithCancel(ctx)
	arrived := make(chan error, 1)
	go func() { arrived <- d.follow(watch) }()
	r.failbackBegan = time.Now()
	if d.opts.twoCommands {
		err = d.twoCommands(ctx)
	} else {
		err = d.run(ctx, s.main, exitDone, &r.failback, "failback", name, "--from", s.standin.DockerHost(), "--yes", "--json")
	}
	r.failbackEnded = time.Now()
	stop()
	if watchErr := <-arrived; err == nil {
		err = watchErr
	}
	if err != nil {
		return err
	}
	d.showPorts(s.main, r.failback)
	if err := d.back.await(ctx, 10); err != nil {
		return err
	}
	after, err := s.carried(ctx, s.main, s.standin, s.cloud)
	if err != nil {
		return err
	}
	r.failbackWire = after - before
	var list listAnswer
	if err := d.run(ctx, s.main, exitDone, &list, "snapshots", name, "--json"); err != nil {
		return err
	}
	r.list = list.Snapshots
	return nil
}

// twoCommands runs one command at each site; they find each other through the repository.
func (d *director) twoCommands(ctx context.Context) error {
	given := make(chan error, 1)
	go func() {
		given <- d.run(ctx, d.stage.standin, exitDone, nil, "switchover", name, "--to", d.stage.main.Name, "--quiet")
	}()
	err := d.run(ctx, d.stage.main, exitDone, &d.report.failback, "failback", name, "--yes", "--json")
	return errors.Join(err, <-given)
}

// follow sends visitors back to the main site once it serves again, as a change in DNS does: after the
// stale system there, if there is one, was stopped.
func (d *director) follow(ctx context.Context) error {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for stopped := false; ; {
		_, err := d.blog.Get(ctx, d.stage.main, "/?ledger=health")
		if err == nil && stopped {
			break
		}
		stopped = stopped || err != nil
		select {
		case <-tick.C:
			continue
		case <-ctx.Done(): // the command is through; it serves, or it failed
		}
		break
	}
	var err error
	d.back, err = visit(ctx, d.blog, d.stage.main, firstBack)
	return err
}

// showPage shows what a visitor sees.
func (d *director) showPage(ctx context.Context, sys *systems.System, site *lab.Site) error {
	page, err := sys.Get(ctx, site, "/")
	if err != nil {
		return err
	}
	d.say(site, "$", "curl "+sys.URL(site)+"/")
	heading := between(page, "<h1>", "</h1>")
	theme := between(page, `data-theme="`, `"`)
	var entries []string
	for _, part := range strings.Split(page, "<article><h2>")[1:] {
		entry, _, _ := strings.Cut(part, "</h2>")
		entries = append(entries, entry)
	}
	shown := strings.Join(entries[:min(3, len(entries))], ", ")
	d.out.Note("%s   %s  (theme %s)  newest: %s", margin(site), heading, theme, shown)
	if heading != sys.Title || theme != "harbour" || !strings.HasPrefix(shown, "Log entry ") {
		return fmt.Errorf("the front page of %s at %s is not the one that was installed: %.500s", sys.Project, site.Name, page)
	}
	return nil
}

func between(text, from, to string) string {
	_, rest, _ := strings.Cut(text, from)
	inside, _, _ := strings.Cut(rest, to)
	return inside
}

// showPorts tells where the system can be reached now.
func (d *director) showPorts(site *lab.Site, a bringAnswer) {
	for _, p := range a.Ports {
		d.out.Note("%s   %s, port %s: published at %s", margin(site), p.Container, p.Port, p.Host)
	}
}

// parseSeqs reads the numbers of a ledger file.
func parseSeqs(path string) (map[int64]bool, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	seqs := map[int64]bool{}
	for _, f := range strings.Fields(string(data)) {
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return nil, fmt.Errorf("ledger %s: %w", path, err)
		}
		seqs[n] = true
	}
	return seqs, nil
}
