package main

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"lifeboat/bench/chart"
	"lifeboat/bench/corpus"
	"lifeboat/lab/systems"
)

//go:embed course.php
var enterCourse []byte

// contentDir is where WordPress keeps what its users bring, in the writable layer.
const contentDir = "/var/lib/wordpress/wp-content"

// point is what was measured with a number of courses, by one way.
type point struct {
	Round   int     `json:"round"`
	Courses int     `json:"courses"`
	Way     string  `json:"way"`
	Image   int64   `json:"image_bytes,omitempty"` // size of the images, as the engine tells it
	Layer   int64   `json:"layer_bytes"`           // files in the web container's writable layer
	Added   int64   `json:"added_bytes"`           // to what is stored, by this copy
	Outside outcome `json:"outcome"`
}

// share is what a system added to a registry, and how long that took.
type share struct {
	Round   int     `json:"round"`
	Way     string  `json:"way"`
	What    string  `json:"what"`
	Added   int64   `json:"added_bytes"`
	Seconds float64 `json:"seconds"`
}

// What a share is of.
const (
	shareSecond = "second system, registry that has the first"
	shareAlone  = "second system, empty registry"
)

// paperResults are everything that is measured for the paper's figures.
type paperResults struct {
	Machine machine       `json:"machine"`
	Course  corpus.Totals `json:"course"`
	Points  []point       `json:"points"`
	Shares  []share       `json:"shares"`
}

// way copies a whole system of several containers.
type way interface {
	create(ctx context.Context, dir string) error
	system(ctx context.Context, s *systems.System) (outcome, error)
	stored() string
	end(ctx context.Context) error
}

func ways(s *stage) map[string]way {
	return map[string]way{"lifeboat": &lifeboatWay{lifeboat{stage: s}, nil}, "docker": &dockerWay{docker{stage: s}}}
}

func wayNames() []string { return []string{"lifeboat", "docker"} }

// lifeboatWay takes snapshots.
type lifeboatWay struct {
	lifeboat
	known []string // systems that were declared
}

func (l *lifeboatWay) create(ctx context.Context, dir string) error {
	l.known = nil
	return l.lifeboat.create(ctx, dir)
}

func (l *lifeboatWay) system(ctx context.Context, s *systems.System) (outcome, error) {
	if !slices.Contains(l.known, s.Project) {
		var o outcome
		if _, err := l.run(ctx, &o, "protect", s.Project, "--project", s.Project); err != nil {
			return o, err
		}
		l.known = append(l.known, s.Project)
	}
	return l.snapshot(ctx, s.Project)
}

func (l *lifeboatWay) end(context.Context) error { return l.registry.stop() }

// dockerWay is the paper's: every container is committed, every image pushed.
type dockerWay struct{ docker }

func (d *dockerWay) system(ctx context.Context, s *systems.System) (sum outcome, err error) {
	d.count++
	for _, service := range []string{"web", "db"} {
		id, err := s.Container(ctx, d.stage.site, service)
		if err != nil {
			return sum, err
		}
		o, err := d.commit(ctx, id, d.name(s, service))
		if err != nil {
			return sum, err
		}
		sum.Seconds += o.Seconds
		sum.Frozen += o.Frozen
		sum.Peak, sum.Registry = max(sum.Peak, o.Peak), max(sum.Registry, o.Registry)
	}
	return sum, nil
}

// name is of the newest image of a service. All have one repository, so that layers are not sent twice.
func (d *dockerWay) name(s *systems.System, service string) string {
	return fmt.Sprintf("%s/paper:%s-%s-%d", dockerRegistry, s.Project, service, d.count)
}

// images is the size of the newest images of a system.
func (d *dockerWay) images(ctx context.Context, s *systems.System) (sum int64, err error) {
	for _, service := range []string{"web", "db"} {
		n, err := d.stage.imageSize(ctx, d.name(s, service))
		if err != nil {
			return 0, err
		}
		sum += n
	}
	return sum, nil
}

// counts are the numbers of courses at which is measured, up to a largest.
func counts(largest int) []int {
	list := []int{0}
	for _, n := range []int{1, 5, 10, 20, 40, 60, 80, 100} {
		if n < largest {
			list = append(list, n)
		}
	}
	return append(list, largest)
}

// paper measures figures 6 and 7 of the paper and its section 6.1.
func (s *stage) paper(ctx context.Context, o options, save func(map[string][]byte) error) (err error) {
	r := &paperResults{}
	if r.Course, err = s.shape.WriteCourse(io.Discard, 1); err != nil {
		return err
	}
	if r.Machine, err = lookAround(); err != nil {
		return err
	}
	largest := max(1, int(20*o.scale))
	for n := range o.rounds {
		if err := s.paperRound(ctx, r, n+1, largest, save); err != nil {
			return fmt.Errorf("round %d: %w", n+1, err)
		}
	}
	fmt.Printf("%s", r.markdown())
	return nil
}

func (s *stage) paperRound(ctx context.Context, r *paperResults, round, largest int, save func(map[string][]byte) error) error {
	first := systems.WordPress(systems.Params{})
	second := systems.WordPress(systems.Params{Project: "journal", Port: 8081, Subnet: "172.28.6", Title: "The Other Log"})
	keep := func() error {
		r.Machine.load(&r.Machine.LoadAfter)
		files, err := r.files()
		if err != nil {
			return err
		}
		return save(files)
	}
	if err := first.Up(ctx, s.site, s.log); err != nil {
		return err
	}
	all := ways(s)
	if err := s.beginWays(ctx, all); err != nil {
		return err
	}
	if err := errors.Join(s.figures(ctx, r, round, all, first, largest), keep()); err != nil {
		return err
	}
	if err := second.Up(ctx, s.site, s.log); err != nil {
		return err
	}
	for n := range largest {
		if err := s.teach(ctx, second, 5000+n); err != nil {
			return err
		}
	}
	if err := errors.Join(s.sharing(ctx, r, round, all, second), keep()); err != nil {
		return err
	}
	for _, system := range []*systems.System{first, second} {
		if _, err := system.Compose(ctx, s.site, "down", "--volumes"); err != nil {
			return err
		}
	}
	return nil
}

// teach adds a course to a system: files into the writable layer, posts into the database. A visitor
// must see both.
func (s *stage) teach(ctx context.Context, system *systems.System, number int) error {
	web, err := system.Container(ctx, s.site, "web")
	if err != nil {
		return err
	}
	write := func(w io.Writer) (corpus.Totals, error) { return s.shape.WriteCourse(w, number) }
	if _, err := s.unpack(ctx, web, contentDir, write); err != nil {
		return err
	}
	cmd := s.site.Command(ctx, "docker", "exec", "--interactive", "--user", "www-data", web,
		"php", "--", fmt.Sprint(number), fmt.Sprint(s.shape.Lectures), corpus.Course(number))
	cmd.Stdin = bytes.NewReader(enterCourse)
	said, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("enter course %d: %w: %s", number, err, said)
	}
	if !strings.HasSuffix(string(said), "ok") {
		return fmt.Errorf("enter course %d: %s", number, said)
	}
	page, err := system.Get(ctx, s.site, "/")
	if err != nil {
		return err
	}
	if want := fmt.Sprintf("Course %d, lecture", number); !strings.Contains(page, want) {
		return fmt.Errorf("the front page does not tell of course %d", number)
	}
	return nil
}

// figures measures size and time against the number of courses.
func (s *stage) figures(ctx context.Context, r *paperResults, round int, all map[string]way, system *systems.System, largest int) error {
	have := 0
	for i, n := range counts(largest) {
		for ; have < n; have++ {
			if err := s.teach(ctx, system, have); err != nil {
				return err
			}
		}
		for _, name := range turn(wayNames(), i) {
			p, err := s.measurePoint(ctx, all[name], system)
			if err != nil {
				return err
			}
			p.Round, p.Courses, p.Way = round, n, name
			r.Points = append(r.Points, p)
			s.log.Info("measured", "courses", n, "way", name, "seconds", fmt.Sprintf("%.2f", p.Outside.Seconds), "image", mega(p.Image),
				"stored", mega(p.Outside.Stored), "added", mega(p.Added), "frozen_ms", fmt.Sprintf("%.1f", p.Outside.Frozen))
		}
	}
	return nil
}

func (s *stage) beginWays(ctx context.Context, all map[string]way) error {
	for name, w := range all {
		if err := w.create(ctx, filepath.Join(s.dir, "paper-"+name)); err != nil {
			return err
		}
	}
	return nil
}

func (s *stage) endWays(ctx context.Context, all map[string]way) error {
	for name, w := range all {
		if err := errors.Join(w.end(ctx), os.RemoveAll(filepath.Join(s.dir, "paper-"+name))); err != nil {
			return err
		}
	}
	return nil
}

// measurePoint copies a system once.
func (s *stage) measurePoint(ctx context.Context, w way, system *systems.System) (p point, err error) {
	_, before, err := size(w.stored())
	if err != nil {
		return p, err
	}
	unix.Sync()
	if p.Outside, err = w.system(ctx, system); err != nil {
		return p, err
	}
	if _, p.Outside.Stored, err = size(w.stored()); err != nil {
		return p, err
	}
	p.Added = p.Outside.Stored - before
	if d, ok := w.(*dockerWay); ok {
		if p.Image, err = d.images(ctx, system); err != nil {
			return p, err
		}
	}
	web, err := system.Container(ctx, s.site, "web")
	if err != nil {
		return p, err
	}
	upper, err := s.site.Docker(ctx, "inspect", "--format", "{{.GraphDriver.Data.UpperDir}}", web)
	if err != nil {
		return p, err
	}
	_, p.Layer, err = size(strings.TrimSpace(string(upper)))
	return p, err
}

// sharing measures what a second system of the same images costs, with a registry that has the first and
// with one that has nothing.
func (s *stage) sharing(ctx context.Context, r *paperResults, round int, all map[string]way, second *systems.System) error {
	for _, what := range []string{shareSecond, shareAlone} {
		for _, name := range wayNames() {
			p, err := s.measurePoint(ctx, all[name], second)
			if err != nil {
				return err
			}
			r.Shares = append(r.Shares, share{round, name, what, p.Added, p.Outside.Seconds})
			s.log.Info("measured", "what", what, "way", name, "added", mega(p.Added), "seconds", fmt.Sprintf("%.2f", p.Outside.Seconds))
		}
		if err := s.endWays(ctx, all); err != nil {
			return err
		}
		if what == shareSecond {
			if err := s.beginWays(ctx, all); err != nil {
				return err
			}
		}
	}
	return nil
}

// files are tables, raw figures and pictures.
func (r *paperResults) files() (map[string][]byte, error) {
	raw, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return nil, fmt.Errorf("write figures: %w", err)
	}
	mb := func(get func(point) int64) func(point) float64 {
		return func(p point) float64 { return float64(get(p)) / 1e6 }
	}
	stored := mb(func(p point) int64 { return p.Outside.Stored })
	took := func(p point) float64 { return p.Outside.Seconds }
	size := chart.Lines{Title: "Figure 6: size against courses", X: "courses", Y: "MB", Series: []chart.LineSeries{
		r.line("images, by the engine", "docker", mb(func(p point) int64 { return p.Image })),
		r.line("stored, commit and push at each point", "docker", stored), r.line("stored, lifeboat at each point", "lifeboat", stored),
	}}
	size.Series[0].Dashed = true
	time := chart.Lines{Title: "Figure 7: time of a copy against courses", X: "courses", Y: "seconds", Series: []chart.LineSeries{
		r.line("docker commit and push", "docker", took), r.line("lifeboat snapshot", "lifeboat", took),
	}}
	both := chart.Bars{Title: "Section 6.1: what a second system adds to a registry", Unit: "MB", Groups: []string{shareAlone, shareSecond}}
	for _, way := range wayNames() {
		both.Series = append(both.Series, chart.BarSeries{Name: way, Values: []chart.Range{r.shared(shareAlone, way, addedMB), r.shared(shareSecond, way, addedMB)}})
	}
	return map[string][]byte{
		"paper.md": r.markdown(), "paper.json": append(raw, '\n'), "figure6.svg": size.SVG(), "figure7.svg": time.SVG(), "sharing.svg": both.SVG(),
	}, nil
}

// at gives a figure with a number of courses, over all rounds.
func (r *paperResults) at(courses int, way string, figure func(point) float64) chart.Range {
	var list []float64
	for _, p := range r.Points {
		if p.Courses == courses && p.Way == way {
			list = append(list, figure(p))
		}
	}
	return spread(list)
}

func (r *paperResults) courses() []int {
	var list []int
	for _, p := range r.Points {
		if !slices.Contains(list, p.Courses) {
			list = append(list, p.Courses)
		}
	}
	return list
}

func (r *paperResults) line(title, way string, figure func(point) float64) chart.LineSeries {
	l := chart.LineSeries{Name: title}
	for _, n := range r.courses() {
		l.Points = append(l.Points, chart.Point{X: float64(n), Y: r.at(n, way, figure)})
	}
	return l
}

// shared gives the bytes or seconds of a share, over all rounds.
func (r *paperResults) shared(what, way string, figure func(share) float64) chart.Range {
	var list []float64
	for _, x := range r.Shares {
		if x.What == what && x.Way == way {
			list = append(list, figure(x))
		}
	}
	return spread(list)
}

func (r *paperResults) markdown() []byte {
	b := &bytes.Buffer{}
	b.WriteString("# The figures of the paper\n\n")
	r.Machine.markdown(b)
	describe(b, "A course", r.Course)
	b.WriteString("WordPress with MariaDB; handouts in the writable layer, posts in the database.\n")
	b.WriteString("\n## Figures 6 and 7\n\n| courses | images, MB | stored by docker, MB | added, MB | commit and push, s | frozen, ms | stored by lifeboat, MB | added, MB | snapshot, s | frozen, ms |\n|---|---|---|---|---|---|---|---|---|---|\n")
	figures := []func(point) float64{
		func(p point) float64 { return float64(p.Outside.Stored) / 1e6 }, func(p point) float64 { return float64(p.Added) / 1e6 },
		func(p point) float64 { return p.Outside.Seconds }, func(p point) float64 { return p.Outside.Frozen },
	}
	for _, n := range r.courses() {
		fmt.Fprintf(b, "| %d | %s |", n, cell(r.at(n, "docker", func(p point) float64 { return float64(p.Image) / 1e6 })))
		for _, way := range []string{"docker", "lifeboat"} {
			for _, figure := range figures {
				fmt.Fprintf(b, " %s |", cell(r.at(n, way, figure)))
			}
		}
		b.WriteString("\n")
	}
	if len(r.Shares) == 0 {
		return b.Bytes()
	}
	b.WriteString("\n## Section 6.1: two systems of the same images\n\n| | docker, MB | s | lifeboat, MB | s |\n|---|---|---|---|---|\n")
	for _, what := range []string{shareAlone, shareSecond} {
		fmt.Fprintf(b, "| %s |", what)
		for _, way := range []string{"docker", "lifeboat"} {
			fmt.Fprintf(b, " %s | %s |", cell(r.shared(what, way, addedMB)), cell(r.shared(what, way, func(x share) float64 { return x.Seconds })))
		}
		b.WriteString("\n")
	}
	// Both have the same images and as many courses, so one alone stands for the other.
	for _, sum := range []struct{ title, second string }{{"both, sharing", shareSecond}, {"both, without sharing", shareAlone}} {
		fmt.Fprintf(b, "| %s |", sum.title)
		for _, way := range []string{"docker", "lifeboat"} {
			fmt.Fprintf(b, " %s | |", chart.Number(r.shared(shareAlone, way, addedMB).Mid+r.shared(sum.second, way, addedMB).Mid))
		}
		b.WriteString("\n")
	}
	return b.Bytes()
}

func addedMB(x share) float64 { return float64(x.Added) / 1e6 }
