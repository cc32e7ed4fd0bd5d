package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"lifeboat/internal/quantity"
	"lifeboat/internal/ui"
	"lifeboat/lab"
	"lifeboat/lab/systems"
	"lifeboat/lab/treecmp"
)

// check tells the outcome of a verification and counts it. The error says what was verified.
func (d *director) check(what string, err error) error {
	mark := ui.MarkDone
	if err != nil {
		mark = ui.MarkFailed
	}
	d.out.Show(ui.ViewFunc(func(c *ui.Canvas) { c.Line("  %s %s", c.Mark(mark), ui.Clean(what)) }))
	if err != nil {
		return fmt.Errorf("verification failed: %s: %w", what, err)
	}
	d.report.checks++
	return nil
}

// all runs verifications and goes on after one failed, so that the whole truth is seen.
func all(checks ...error) error { return errors.Join(checks...) }

// verifyFailover compares what serves at the stand-in with what was captured.
func (d *director) verifyFailover(ctx context.Context) error {
	s := d.stage
	acks := d.atMain.acks()
	for _, a := range acks {
		if a.Acked.After(d.snapshot.Created) {
			d.lost = append(d.lost, a)
		} else {
			d.recovered = append(d.recovered, a)
		}
	}
	ledger, err := d.away.Ledger(ctx, s.standin)
	if err != nil {
		return err
	}
	// Of those acknowledged while the freeze began, some are in the snapshot.
	d.lost = missing(d.lost, ledger)
	r := d.report
	err = all(
		d.check("it is the newest snapshot", differs(r.failover.Snapshot, d.snapshot.Snapshot)),
		d.check("this site holds epoch 2 now", differs(r.failover.Epoch, 2)),
		d.check(fmt.Sprintf("every entry that was acknowledged before the freeze is there: %s", quantity.Count(int64(len(d.recovered)))),
			ledger.CheckAcked(acks, d.snapshot.Created)),
		d.verifySystem(ctx, d.away, s.standin),
	)
	d.out.Note("  lost with the main site, as the plan said: %d entries of the last %s", len(d.lost), quantity.Duration(r.lost.Sub(d.snapshot.Created)))
	return err
}

// verifySystem runs the checks that hold wherever the system serves.
func (d *director) verifySystem(ctx context.Context, sys *systems.System, site *lab.Site) error {
	files, err := d.installedFiles(ctx, sys, site)
	if err != nil {
		return err
	}
	count := 0
	var difference error
	for dir, want := range d.installed {
		count += len(want)
		if diff := treecmp.Compare(want, files[dir], treecmp.Rules{}); len(diff) > 0 {
			difference = errors.Join(difference, fmt.Errorf("%s: %s", dir, treecmp.Report(diff, 10)))
		}
	}
	ids, err := imageIDs(ctx, site)
	if err != nil {
		return err
	}
	return all(
		d.check("mariadb-check finds no fault, and database, uploads and writable layer are of one instant", sys.Verify(ctx, site)),
		d.check(fmt.Sprintf("theme, deletions, replaced files and configuration are equal in content and metadata: %s entries", quantity.Count(int64(count))), difference),
		d.check("the images have the same identity", differs(ids, d.images)),
	)
}

// verifyBack compares what serves at the main site again with all that was ever acknowledged.
func (d *director) verifyBack(ctx context.Context) error {
	s := d.stage
	atStandin, back := d.atStandin.stop(), d.back.stop()
	if err := d.showPage(ctx, d.blog, s.main); err != nil {
		return err
	}
	ledger, err := d.blog.Ledger(ctx, s.main)
	if err != nil {
		return err
	}
	_, stillThere := d.away.Get(ctx, s.standin, "/")
	if stillThere == nil {
		stillThere = errors.New("it does")
	} else {
		stillThere = nil
	}
	always := time.Now()
	err = all(
		d.check("the main site holds epoch 3 now", differs(d.report.failback.Epoch, 3)),
		d.check(fmt.Sprintf("every entry that the failover had brought back is there: %s", quantity.Count(int64(len(d.recovered)))), ledger.CheckAcked(d.recovered, always)),
		d.check(fmt.Sprintf("every entry that the stand-in acknowledged is there, to the last before it stopped: %s", quantity.Count(int64(len(atStandin)))), ledger.CheckAcked(atStandin, always)),
		d.check(fmt.Sprintf("what was written here since is there: %s", quantity.Count(int64(len(back)))), ledger.CheckAcked(back, always)),
		d.verifySystem(ctx, d.blog, s.main),
		d.check("the stand-in does not serve any more", stillThere),
	)
	if d.opts.destroy {
		return err
	}
	return all(err, d.verifyDivergent(ctx))
}

// verifyDivergent looks for what the failover had lost in the snapshot that the failback kept of the
// main site's old disk.
func (d *director) verifyDivergent(ctx context.Context) error {
	id := d.report.failback.Divergent
	if id == "" {
		return d.check("what the main site held and no snapshot had was kept", errors.New("the failback names no divergent snapshot"))
	}
	dir := filepath.Join(d.stage.lab.Dir(), "divergent")
	var answer struct{}
	err := d.run(ctx, d.stage.main, exitDone, &answer, "restore", name+"@"+shortID(id), "--volume", d.blog.Project+"_uploads", "--path", "ledger.txt", "--to", dir, "--json")
	if err != nil {
		return err
	}
	seqs, err := parseSeqs(filepath.Join(dir, "ledger.txt"))
	if err != nil {
		return err
	}
	var gone []int64
	for _, a := range d.lost {
		if !seqs[a.Seq] {
			gone = append(gone, a.Seq)
		}
	}
	err = nil
	if len(gone) > 0 {
		err = fmt.Errorf("%d are not in it: %v", len(gone), gone)
	}
	return d.check(fmt.Sprintf("the %d entries that the failover had lost are in the divergent snapshot", len(d.lost)), err)
}

func differs[T comparable](got, want T) error {
	if got == want {
		return nil
	}
	return fmt.Errorf("it is %v, want %v", got, want)
}

// missing are those of acks that the database does not have.
func missing(acks []systems.Ack, l systems.Ledger) []systems.Ack {
	have := map[int64]bool{}
	for _, n := range l.Rows {
		have[n] = true
	}
	return slices.DeleteFunc(slices.Clone(acks), func(a systems.Ack) bool { return have[a.Seq] })
}

// installedFiles fingerprints what was put into the writable layer and onto the host when the system
// was installed, by a walker that is not Lifeboat's. All else changes while people write.
func (d *director) installedFiles(ctx context.Context, sys *systems.System, site *lab.Site) (map[string]treecmp.Tree, error) {
	places, err := sys.Places(ctx, site, systems.Upper)
	if err != nil {
		return nil, err
	}
	out := map[string]treecmp.Tree{}
	for name, p := range places {
		var parts []string
		switch {
		case name == "layer web":
			parts = []string{"usr/share/wordpress", "var/lib/wordpress/wp-content/themes"}
		case strings.HasPrefix(name, "bind "):
			parts = []string{""}
		}
		for _, part := range parts {
			t, err := treecmp.Fingerprint(filepath.Join(p.Path, part), treecmp.Options{})
			if err != nil {
				return nil, fmt.Errorf("%s %s at %s: %w", name, part, site.Name, err)
			}
			out[strings.TrimSpace(name+" "+part)] = t
		}
	}
	return out, nil
}

// imageIDs are the identities of the system's images, in order of their names.
func imageIDs(ctx context.Context, site *lab.Site) (string, error) {
	args := []string{"image", "inspect", "--format", "{{.Id}}"}
	for _, r := range systems.WordPress(systems.Params{}).Images().Recipes {
		args = append(args, r.Image)
	}
	out, err := site.Docker(ctx, args...)
	return string(out), err
}
