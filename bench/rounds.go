package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"lifeboat/bench/corpus"
)

// Steps of a round, in order. Each is done by all tools before the next.
const (
	stepFirst     = "first copy"
	stepUnchanged = "unchanged"
	stepCourse    = "one more course"
	stepPages     = "100 pages of a table"
	stepRestore   = "restore"
	stepImage     = "first copy of an image"
)

func steps() []string {
	return []string{stepFirst, stepUnchanged, stepCourse, stepPages, stepRestore, stepImage}
}

// measurement is one step of one tool in one round.
type measurement struct {
	Round int    `json:"round"`
	Step  string `json:"step"`
	Tool  string `json:"tool"`
	outcome
}

// results are everything that was measured side by side.
type results struct {
	Machine      machine             `json:"machine"`
	Data         corpus.Totals       `json:"data"`
	Course       corpus.Totals       `json:"course"`
	ImageName    string              `json:"image"`
	ImageBytes   int64               `json:"image_bytes"`
	Rounds       int                 `json:"rounds"`
	Tools        []string            `json:"tools"`
	Once         []string            `json:"once,omitempty"` // tools that ran in the first round only
	Versions     map[string]string   `json:"versions"`
	Commands     map[string][]string `json:"commands"`
	Measurements []measurement       `json:"measurements"`
}

// choose makes the tools that were asked for, or all that are installed.
func (s *stage) choose(ctx context.Context, o options) (map[string]tool, []string, error) {
	tools := map[string]tool{}
	var order []string
	for _, name := range names() {
		if o.tools != nil && !slices.Contains(o.tools, name) {
			continue
		}
		missing := slices.DeleteFunc(needs(name), func(program string) bool { _, err := exec.LookPath(program); return err == nil })
		if len(missing) > 0 {
			if o.tools != nil {
				return nil, nil, fmt.Errorf("%s is not installed; run: make bench-deps", missing[0])
			}
			s.log.Warn("left out: not installed", "tool", name, "missing", missing[0])
			continue
		}
		tools[name] = makers()[name](s)
		order = append(order, name)
	}
	return tools, order, nil
}

// sideBySide runs all rounds and saves the results after each.
func (s *stage) sideBySide(ctx context.Context, o options, save func(map[string][]byte) error) error {
	tools, order, err := s.choose(ctx, o)
	if err != nil {
		return err
	}
	r := &results{Tools: order, Once: o.once, Versions: map[string]string{}, Commands: map[string][]string{}}
	for name, t := range tools {
		if r.Versions[name], err = t.version(ctx); err != nil {
			return err
		}
		r.Commands[name] = t.commands()
	}
	s.log.Info("making data")
	if r.Data, err = s.fill(ctx); err != nil {
		return err
	}
	if r.Course, err = s.shape.WriteCourse(io.Discard, 1); err != nil {
		return err
	}
	if r.ImageName, r.ImageBytes, err = s.bigImage(ctx); err != nil {
		return err
	}
	if r.Machine, err = lookAround(); err != nil {
		return err
	}
	for n := range o.rounds {
		if err := s.round(ctx, r, tools, n); err != nil {
			return fmt.Errorf("round %d: %w", n+1, err)
		}
		r.Rounds = n + 1
		r.Machine.load(&r.Machine.LoadAfter)
		files, err := r.files()
		if err != nil {
			return err
		}
		if err := save(files); err != nil {
			return err
		}
	}
	fmt.Printf("%s", r.markdown())
	return nil
}

// turn is the order of tools in a round: each begins once in a while.
func turn(order []string, n int) []string {
	n %= len(order)
	return append(slices.Clone(order[n:]), order[:n]...)
}

// round measures every step once. The tools' repositories are empty afterwards, and the course is gone.
func (s *stage) round(ctx context.Context, r *results, tools map[string]tool, n int) (err error) {
	dir := filepath.Join(s.dir, fmt.Sprintf("round%d", n+1))
	order := turn(r.Tools, n)
	if err := s.settle(); err != nil {
		return err
	}
	if n > 0 {
		order = slices.DeleteFunc(order, func(name string) bool { return slices.Contains(r.Once, name) })
	}
	base := map[string]int64{}
	for _, name := range order {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o700); err != nil {
			return err
		}
		if err := tools[name].prepare(ctx, filepath.Join(dir, name)); err != nil {
			return fmt.Errorf("prepare %s: %w", name, err)
		}
		if _, base[name], err = size(tools[name].stored()); err != nil {
			return err
		}
	}
	number := 1000 + n
	changes := map[string]func() error{
		stepCourse: func() error { return s.addCourse(ctx, number) },
		stepPages:  func() error { return s.changePages(100, uint64(n)+s.shape.Seed) },
	}
	for _, step := range []string{stepFirst, stepUnchanged, stepCourse, stepPages} {
		if change := changes[step]; change != nil {
			if err := change(); err != nil {
				return err
			}
		}
		for _, name := range order {
			if !tools[name].sees(step) {
				continue
			}
			if err := errors.Join(s.readData(), ready()); err != nil {
				return err
			}
			o, err := s.durably(func() (outcome, error) { return tools[name].copy(ctx) })
			if err != nil {
				return err
			}
			if err := s.note(r, n, step, name, tools[name].stored(), base[name], o); err != nil {
				return err
			}
		}
	}
	for _, name := range order {
		if err := s.restored(ctx, r, n, name, tools[name], base[name]); err != nil {
			return err
		}
	}
	for _, name := range order {
		if err := tools[name].end(ctx); err != nil {
			return fmt.Errorf("end %s: %w", name, err)
		}
	}
	if err := s.imageStep(ctx, r, n, order); err != nil {
		return err
	}
	if err := s.removeCourse(ctx, number); err != nil {
		return err
	}
	for _, name := range order {
		if err := empty(s.restoreTo(n, name)); err != nil {
			return err
		}
	}
	return empty(dir)
}

// empty frees the space of files and leaves them there: making files costs a file system more for minutes
// after many were deleted (ext4), which would be held against who comes next.
func empty(dir string) error {
	return filepath.WalkDir(dir, func(name string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		return os.Truncate(name, 0)
	})
}

// settle makes rounds begin alike: memory free of what the rounds before have left in the page cache.
func (s *stage) settle() error {
	unix.Sync()
	err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0)
	if err == nil {
		err = os.WriteFile("/proc/sys/vm/compact_memory", []byte("1"), 0)
	}
	if err != nil {
		return fmt.Errorf("free memory: %w", err)
	}
	return nil
}

// ready makes each measured command begin alike: nothing is left to be written, and free memory is at hand.
func ready() error {
	unix.Sync()
	return ownMemory()
}

// readData reads the data once, so that every tool finds them in the page cache: borg tells the kernel to
// drop what it has read, and whoever came after it would wait for the disk.
func (s *stage) readData() error {
	for _, dir := range []string{s.layer, s.data} {
		err := filepath.WalkDir(dir, func(name string, e fs.DirEntry, err error) error {
			if err != nil || !e.Type().IsRegular() {
				return err
			}
			f, err := os.Open(name)
			if err != nil {
				return err
			}
			_, err = io.Copy(io.Discard, f)
			return errors.Join(err, f.Close())
		})
		if err != nil {
			return fmt.Errorf("read the data once: %w", err)
		}
	}
	return nil
}

// note keeps a measurement and tells it. Base is what was in the repository before the first copy.
func (s *stage) note(r *results, n int, step, name, stored string, base int64, o outcome) error {
	_, bytes, err := size(stored)
	if err != nil {
		return err
	}
	o.Stored = bytes - base
	r.Measurements = append(r.Measurements, measurement{n + 1, step, name, o})
	s.log.Info("measured", "round", n+1, "step", step, "tool", name, "seconds", fmt.Sprintf("%.2f", o.Seconds),
		"peak", mega(o.Peak), "stored", mega(o.Stored), "frozen_ms", fmt.Sprintf("%.1f", o.Frozen))
	return nil
}

func mega(n int64) string { return fmt.Sprintf("%.1f MB", float64(n)/1e6) }

// durably adds to what a step takes the time until everything is on the disk: some tools see to that
// themselves, others leave it to the kernel.
func (s *stage) durably(step func() (outcome, error)) (outcome, error) {
	o, err := step()
	if err != nil {
		return o, err
	}
	began := time.Now()
	err = durable(s.dir)
	o.Seconds += time.Since(began).Seconds()
	return o, err
}

// restored measures a restore until everything is on the disk, and looks whether it is all there.
func (s *stage) restored(ctx context.Context, r *results, n int, name string, t tool, base int64) error {
	to := s.restoreTo(n, name)
	if err := ready(); err != nil {
		return err
	}
	o, err := s.durably(func() (outcome, error) { return t.restore(ctx, to) })
	if err != nil {
		return err
	}
	if name != "docker" { // whose layer lies with the engine
		if err := sameAmount(to, s.layer, s.data); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return s.note(r, n, stepRestore, name, t.stored(), base, o)
}

func (s *stage) restoreTo(n int, name string) string {
	return filepath.Join(s.dir, fmt.Sprintf("restored%d-%s", n+1, name))
}

// sameAmount compares what was restored with the directories that were copied, by files and bytes.
func sameAmount(restored string, copied ...string) error {
	files, bytes, err := size(restored)
	if err != nil {
		return err
	}
	var wantFiles int
	var wantBytes int64
	for _, dir := range copied {
		n, b, err := size(dir)
		if err != nil {
			return err
		}
		wantFiles, wantBytes = wantFiles+n, wantBytes+b
	}
	if files != wantFiles || bytes != wantBytes {
		return fmt.Errorf("%d files of %d bytes were restored, want %d of %d", files, bytes, wantFiles, wantBytes)
	}
	return nil
}

// bigImage is the biggest image that the site has.
func (s *stage) bigImage(ctx context.Context) (name string, bytes int64, err error) {
	out, err := s.site.Docker(ctx, "images", "--format", "{{.Repository}}:{{.Tag}}")
	if err != nil {
		return "", 0, err
	}
	for _, image := range strings.Fields(string(out)) {
		n, err := s.imageSize(ctx, image)
		if err != nil {
			return "", 0, err
		}
		if n > bytes {
			name, bytes = image, n
		}
	}
	return name, bytes, nil
}

func (s *stage) imageSize(ctx context.Context, image string) (n int64, err error) {
	out, err := s.site.Docker(ctx, "image", "inspect", "--format", "{{.Size}}", image)
	if err != nil {
		return 0, err
	}
	if _, err := fmt.Sscan(string(out), &n); err != nil {
		return 0, fmt.Errorf("size of image %s: %w", image, err)
	}
	return n, nil
}

// imageStep measures the first copy of a system whose image is big and whose layer is empty, into an
// empty repository. Only two of the tools know images.
func (s *stage) imageStep(ctx context.Context, r *results, n int, order []string) error {
	const name = "bigimage"
	if err := s.idle(ctx, name, r.ImageName); err != nil {
		return err
	}
	for _, which := range order {
		dir := filepath.Join(s.dir, fmt.Sprintf("image%d-%s", n+1, which))
		var o outcome
		var err error
		var stored string
		var end func() error
		switch which {
		case "lifeboat":
			o, stored, end, err = s.imageByLifeboat(ctx, name, dir)
		case "docker":
			o, stored, end, err = s.imageByDocker(ctx, name, dir)
		default:
			continue
		}
		if err != nil {
			return err
		}
		if err := s.note(r, n, stepImage, which, stored, 0, o); err != nil {
			return err
		}
		if err := end(); err != nil {
			return err
		}
	}
	_, err := s.site.Docker(ctx, "rm", "--force", "--volumes", name)
	return err
}

func (s *stage) imageByLifeboat(ctx context.Context, name, dir string) (o outcome, stored string, end func() error, err error) {
	l := &lifeboat{stage: s}
	if err := l.create(ctx, dir); err != nil {
		return o, "", nil, err
	}
	var unmeasured outcome
	if _, err := l.run(ctx, &unmeasured, "protect", name, "--container", name); err != nil {
		return o, "", nil, err
	}
	if err := ready(); err != nil {
		return o, "", nil, errors.Join(err, l.registry.stop())
	}
	o, err = s.durably(func() (outcome, error) { return l.snapshot(ctx, name) })
	return o, l.stored(), l.registry.stop, err
}

func (s *stage) imageByDocker(ctx context.Context, name, dir string) (o outcome, stored string, end func() error, err error) {
	d := &docker{stage: s}
	if err := d.create(ctx, dir); err != nil {
		return o, "", nil, err
	}
	d.count = 1
	if err := ready(); err != nil {
		return o, "", nil, errors.Join(err, d.end(ctx))
	}
	o, err = s.durably(func() (outcome, error) { return d.commit(ctx, name, d.reference()) })
	return o, d.stored(), func() error { return d.end(ctx) }, err
}
