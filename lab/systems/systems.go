// Package systems are the real systems that run in the laboratory: Compose projects with databases, web
// servers, volumes, networks and bind mounts, a load that remembers what was acknowledged to it, and
// checks of what is left of them after a disaster.
//
// Main types: [System], made by [WordPress], [Guestbook] or [Torture], and [Load]. Containers are found
// by their Compose labels, so that the checks work at whichever site a system runs. The package knows
// nothing of Lifeboat: it is what Lifeboat is judged by.
package systems

import (
	"bytes"
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"text/template"
	"time"

	"lifeboat/lab"
	"lifeboat/lab/images"
	"lifeboat/lab/torture"
)

//go:embed all:wordpress all:postgres all:torture
var files embed.FS

// Params tell two systems of one kind apart; zero values are filled in by kind.
type Params struct {
	Project string // Compose project
	Port    int    // published on the site
	Subnet  string // first three numbers of the project's network, like "172.28.0"
	Title   string // shown on the front page
}

// System is one Compose project. It holds no state of its own and is safe for concurrent use.
type System struct {
	Params
	kind kind
}

// kind is what differs between systems.
type kind struct {
	name   string // directory in files
	images []string
	health string // path of a page that proves that the database answers
	ledger string // path of the ledger; empty when there is none
	write  string // path to post numbered entries to
	up     [][]string
	seed   func(context.Context, *System, *lab.Site, Seed) error
	check  func(context.Context, *System, *lab.Site) error
	dump   func(context.Context, *System, *lab.Site) ([]byte, error)
	preset Params
}

// WordPress is Apache with PHP and WordPress, and MariaDB. It has two volumes and bind-mounted configuration.
func WordPress(p Params) *System {
	return newSystem(p, kind{
		name: "wordpress", images: []string{"mariadb", "wordpress"},
		health: "/?ledger=health", ledger: "/?ledger=list", write: "/?ledger=write",
		up: [][]string{{"up", "-d"}}, seed: seedWordPress, check: checkMariaDB, dump: dumpMariaDB,
		preset: Params{Project: "blog", Port: 8080, Subnet: "172.28.0", Title: "The Harbour Log"},
	})
}

// Guestbook is a small web server in Python and PostgreSQL, on an internal and an outer network.
func Guestbook(p Params) *System {
	return newSystem(p, kind{
		name: "postgres", images: []string{"postgres", "guestbook"},
		health: "/health", ledger: "/ledger", write: "/",
		up: [][]string{{"up", "-d"}}, check: checkPostgres, dump: dumpPostgres,
		preset: Params{Project: "guests", Port: 8090, Subnet: "172.28.1", Title: "Guests of the Harbour"},
	})
}

// Torture is a container whose writable layer, volumes and bind mount hold everything of package torture,
// one that has ended with an error, and one that was created and never started. Some of its mounts
// cannot be captured: a tmpfs, a local volume of type tmpfs, and one bound to another directory.
func Torture(p Params) *System {
	return newSystem(p, kind{
		name: "torture", images: []string{"torture"}, health: "/",
		up:     [][]string{{"up", "-d", "busy", "finished"}, {"up", "--no-start", "never"}},
		preset: Params{Project: "rack", Port: 8099, Subnet: "172.28.2", Title: "Rack"},
	})
}

func newSystem(p Params, k kind) *System {
	fill := func(to *string, from string) {
		if *to == "" {
			*to = from
		}
	}
	fill(&p.Project, k.preset.Project)
	fill(&p.Subnet, k.preset.Subnet)
	fill(&p.Title, k.preset.Title)
	if p.Port == 0 {
		p.Port = k.preset.Port
	}
	return &System{Params: p, kind: k}
}

// Images are the images that the system runs on; systems of one kind have the same.
func (s *System) Images() images.Set {
	set := images.Set{Name: s.kind.name}
	for _, name := range s.kind.images {
		r := images.Recipe{Image: "lifeboat-lab/" + name + ":1", Context: sub(s.kind.name + "/images/" + name)}
		if name == "torture" {
			r.Prepare, r.PrepareKey = buildTorture, []fs.FS{torture.Source}
		}
		set.Recipes = append(set.Recipes, r)
	}
	return set
}

// Sets are the images of all systems, for building them ahead.
func Sets() []images.Set {
	return []images.Set{WordPress(Params{}).Images(), Guestbook(Params{}).Images(), Torture(Params{}).Images()}
}

func sub(dir string) fs.FS {
	f, err := fs.Sub(files, dir)
	if err != nil {
		panic(err) // the name is not a path at all: a mistake in this file
	}
	return f
}

// buildTorture builds the torture image's program, static, into the build context.
func buildTorture(ctx context.Context, dir string) error {
	tool, err := exec.LookPath("go")
	if err != nil {
		tool = "/usr/local/go/bin/go" // where Go's own installation instructions put it
	}
	cmd := exec.CommandContext(ctx, tool, "build", "-trimpath", "-o", filepath.Join(dir, "torture"), "lifeboat/lab/cmd/torture")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build lab/cmd/torture: %w: %s", err, out)
	}
	return nil
}

// Dir is the Compose project's directory on the site.
func (s *System) Dir(site *lab.Site) string { return filepath.Join(site.Disk, "srv", s.Project) }

// URL is the front page as other sites see it.
func (s *System) URL(site *lab.Site) string { return fmt.Sprintf("http://%s:%d", site.IP, s.Port) }

// Up loads the images if the engine lacks them, installs the project on the site's disk and starts it.
// It returns when the front page comes from the database.
func (s *System) Up(ctx context.Context, site *lab.Site, log *slog.Logger) error {
	set := s.Images()
	for _, r := range set.Recipes {
		if _, err := site.Docker(ctx, "image", "inspect", "--format", "{{.Id}}", r.Image); err != nil {
			if err := images.Load(ctx, site, log, set); err != nil {
				return err
			}
			break
		}
	}
	if err := s.install(site); err != nil {
		return fmt.Errorf("install %s on %s: %w", s.Project, site.Name, err)
	}
	for _, args := range s.kind.up {
		if _, err := s.Compose(ctx, site, args...); err != nil {
			return err
		}
	}
	return s.AwaitServing(ctx, site)
}

// Compose runs docker-compose for the project on a site where it was installed.
func (s *System) Compose(ctx context.Context, site *lab.Site, args ...string) ([]byte, error) {
	cmd := site.Command(ctx, "docker-compose", args...)
	cmd.Dir = s.Dir(site)
	var errOut bytes.Buffer
	cmd.Stderr = &errOut
	out, err := cmd.Output()
	if err != nil {
		return out, fmt.Errorf("docker-compose %s of %s on %s: %w: %s", strings.Join(args, " "), s.Project, site.Name, err, errOut.String())
	}
	return out, nil
}

// install writes the project with its parameters filled in. Environment files hold passwords.
func (s *System) install(site *lab.Site) error {
	dir := s.Dir(site)
	project := sub(s.kind.name + "/project")
	password := sha256.Sum256([]byte("password of " + s.Project))
	values := struct {
		Params
		Password, Dir string
	}{s.Params, hex.EncodeToString(password[:9]), dir}
	return fs.WalkDir(project, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		to := filepath.Join(dir, path)
		if path == "dot-env" {
			to = filepath.Join(dir, ".env")
		}
		if d.IsDir() {
			return os.MkdirAll(to, 0o755)
		}
		data, err := fs.ReadFile(project, path)
		if err != nil {
			return err
		}
		if !strings.HasSuffix(to, "env") {
			return os.WriteFile(to, data, 0o644)
		}
		t, err := template.New(path).Parse(string(data))
		if err != nil {
			return err
		}
		var b bytes.Buffer
		if err := t.Execute(&b, values); err != nil {
			return err
		}
		return os.WriteFile(to, b.Bytes(), 0o600)
	})
}

// Seed says how much a fresh system is filled.
type Seed struct {
	// ThemeFiles is the size of the theme that is put into the writable layer; zero means 300.
	ThemeFiles int
	// Entries is how many entries are written through the front door; zero means 20.
	Entries int
}

// Seed makes a fresh system look used: entries in the database, and for WordPress a theme installed at
// run time, files of the image deleted, a directory of it replaced.
func (s *System) Seed(ctx context.Context, site *lab.Site, seed Seed) error {
	if seed.ThemeFiles == 0 {
		seed.ThemeFiles = 300
	}
	if seed.Entries == 0 {
		seed.Entries = 20
	}
	if s.kind.seed != nil {
		if err := s.kind.seed(ctx, s, site, seed); err != nil {
			return fmt.Errorf("seed %s: %w", s.Project, err)
		}
	}
	if s.kind.write == "" {
		return nil
	}
	w := writer{s, site.HTTPClient()}
	defer w.client.CloseIdleConnections()
	for i := range seed.Entries {
		if err := w.write(ctx, site, int64(i+1)); err != nil {
			return fmt.Errorf("seed %s: %w", s.Project, err)
		}
	}
	return nil
}

func seedWordPress(ctx context.Context, s *System, site *lab.Site, seed Seed) error {
	for _, args := range [][]string{{"install-theme", "harbour", fmt.Sprint(seed.ThemeFiles)}, {"alter-image"}} {
		if _, err := s.Exec(ctx, site, "web", args...); err != nil {
			return err
		}
	}
	return nil
}

// Container returns the id of the service's container on the site, running or not.
func (s *System) Container(ctx context.Context, site *lab.Site, service string) (string, error) {
	out, err := site.Docker(ctx, "ps", "--all", "--quiet", "--no-trunc",
		"--filter", "label=com.docker.compose.project="+s.Project, "--filter", "label=com.docker.compose.service="+service)
	if err != nil {
		return "", err
	}
	ids := strings.Fields(string(out))
	if len(ids) != 1 {
		return "", fmt.Errorf("site %s has %d containers of service %s of %s, want 1", site.Name, len(ids), service, s.Project)
	}
	return ids[0], nil
}

// Exec runs a command in the service's container and returns its standard output.
func (s *System) Exec(ctx context.Context, site *lab.Site, service string, args ...string) ([]byte, error) {
	id, err := s.Container(ctx, site, service)
	if err != nil {
		return nil, err
	}
	return site.Docker(ctx, append([]string{"exec", id}, args...)...)
}

// AwaitServing returns when the system answers at the site and all its running containers with a health
// check are healthy.
func (s *System) AwaitServing(ctx context.Context, site *lab.Site) error {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := s.serving(ctx, site)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for %s to serve at %s: %w; at last: %w", s.Project, site.Name, ctx.Err(), err)
		case <-tick.C:
		}
	}
}

func (s *System) serving(ctx context.Context, site *lab.Site) error {
	if _, err := s.Get(ctx, site, s.kind.health); err != nil {
		return err
	}
	out, err := site.Docker(ctx, "ps", "--quiet", "--filter", "label=com.docker.compose.project="+s.Project)
	if err != nil {
		return err
	}
	ids := strings.Fields(string(out))
	if len(ids) == 0 {
		return errors.New("no container is running")
	}
	out, err = site.Docker(ctx, append([]string{"inspect", "--format", "{{json .State.Health}}"}, ids...)...)
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(out)) {
		var health *struct{ Status string }
		if err := json.Unmarshal([]byte(line), &health); err != nil {
			return fmt.Errorf("read health: %w", err)
		}
		if health != nil && health.Status != "healthy" {
			return fmt.Errorf("a container is %s", health.Status)
		}
	}
	return nil
}

// Verify checks the integrity of the database with its own tools and the order of the ledger.
func (s *System) Verify(ctx context.Context, site *lab.Site) error {
	if s.kind.check == nil {
		return nil
	}
	if err := s.kind.check(ctx, s, site); err != nil {
		return fmt.Errorf("verify %s at %s: %w", s.Project, site.Name, err)
	}
	l, err := s.Ledger(ctx, site)
	if err != nil {
		return err
	}
	if err := l.Check(); err != nil {
		return fmt.Errorf("verify %s at %s: %w", s.Project, site.Name, err)
	}
	return nil
}

// DumpDigest is the SHA-256 of a logical dump of the whole database: two sites have the same data when
// their digests are equal.
func (s *System) DumpDigest(ctx context.Context, site *lab.Site) (string, error) {
	if s.kind.dump == nil {
		return "", fmt.Errorf("%s has no database", s.Project)
	}
	data, err := s.kind.dump(ctx, s, site)
	if err != nil {
		return "", fmt.Errorf("dump %s at %s: %w", s.Project, site.Name, err)
	}
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:]), nil
}

func checkMariaDB(ctx context.Context, s *System, site *lab.Site) error {
	out, err := s.Exec(ctx, site, "db", "mariadb-check", "--all-databases", "--extended", "--check")
	if err != nil {
		return err
	}
	tables := 0
	for line := range strings.Lines(string(out)) {
		if !strings.HasSuffix(strings.TrimSpace(line), "OK") {
			return fmt.Errorf("mariadb-check: %s", out)
		}
		tables++
	}
	if tables < 10 {
		return fmt.Errorf("mariadb-check found only %d tables: %s", tables, out)
	}
	return nil
}

func dumpMariaDB(ctx context.Context, s *System, site *lab.Site) ([]byte, error) {
	// Transients come and go with page views.
	return s.Exec(ctx, site, "db", "mariadb-dump", "--single-transaction", "--order-by-primary", "--skip-comments", "--skip-dump-date",
		"--skip-extended-insert", "--ignore-table=wordpress.wp_options", "wordpress")
}

func checkPostgres(ctx context.Context, s *System, site *lab.Site) error {
	_, err := s.Exec(ctx, site, "db", "setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups",
		"pg_amcheck", "--heapallindexed", "--parent-check", "--rootdescend", "guestbook")
	return err
}

func dumpPostgres(ctx context.Context, s *System, site *lab.Site) ([]byte, error) {
	out, err := s.Exec(ctx, site, "db", "setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups", "pg_dump", "guestbook")
	var b bytes.Buffer
	for line := range bytes.Lines(out) {
		// Newer releases guard a dump with a random word.
		if !bytes.HasPrefix(line, []byte(`\restrict`)) && !bytes.HasPrefix(line, []byte(`\unrestrict`)) {
			b.Write(line)
		}
	}
	return b.Bytes(), err
}
