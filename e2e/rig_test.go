// Package e2e tries the whole path with the real binary on real engines,
// registries and databases, in a laboratory of two sites and a cloud.
package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"lifeboat/lab"
)

// binary is the lifeboat under test, built once.
var binary string

func TestMain(m *testing.M) {
	lab.Child()
	os.Exit(run(m))
}

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "lbtest-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	binary = filepath.Join(dir, "lifeboat")
	cmd := exec.Command("go", "build", "-o", binary, "lifeboat/cmd/lifeboat")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build lifeboat: %v\n%s", err, out)
		return 1
	}
	return m.Run()
}

// rig is two sites, and a registry in the cloud.
type rig struct {
	t        *testing.T
	lab      *lab.Lab
	main     *lab.Site
	standin  *lab.Site
	cloud    *lab.Site
	registry *exec.Cmd
	repo     string
	print    string // fingerprint of the registry's certificate
	dir      string // of the test, outside of any site
}

const (
	registryUser     = "backup"
	registryPassword = "lbtest-secret"
)

// newRig makes the laboratory with the given engines and starts the registry.
func newRig(t *testing.T, mainEngine, standinEngine lab.Engine) *rig {
	t.Helper()
	log := slog.New(slog.NewTextHandler(testWriter{t}, &slog.HandlerOptions{Level: slog.LevelWarn}))
	l, err := lab.New(t.Context(), lab.Options{Log: log, Sites: []lab.SiteOptions{
		{Name: "main", Engine: mainEngine}, {Name: "standin", Engine: standinEngine}, {Name: "cloud", Engine: lab.EngineNone},
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Errorf("close the laboratory: %v", err)
		}
	})
	r := &rig{t: t, lab: l, main: l.Site("main"), standin: l.Site("standin"), cloud: l.Site("cloud"), dir: t.TempDir()}
	r.startRegistry()
	r.login(r.main)
	r.login(r.standin)
	return r
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(p)))
	return len(p), nil
}

// startRegistry serves the embedded registry in the cloud, with TLS by its own
// certificate and htpasswd.
func (r *rig) startRegistry() {
	t := r.t
	t.Helper()
	htpasswd := filepath.Join(r.cloud.Disk, "htpasswd")
	passwd := r.cloud.Command(t.Context(), binary, "registry", "passwd", "--htpasswd", htpasswd, registryUser)
	passwd.Stdin = strings.NewReader(registryPassword + "\n")
	if out, err := passwd.CombinedOutput(); err != nil {
		t.Fatalf("registry passwd: %v: %s", err, out)
	}
	cmd := r.cloud.Command(context.WithoutCancel(t.Context()), binary, "registry", "serve", "--json", "--listen", r.cloud.IP.String()+":5000",
		"--data", filepath.Join(r.cloud.Disk, "registry"), "--htpasswd", htpasswd)
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	r.registry = cmd
	t.Cleanup(func() { r.stopRegistry() })
	line, err := bufio.NewReader(stdout).ReadBytes('\n')
	if err != nil {
		t.Fatalf("registry serve: %v: %s", err, stderr.String())
	}
	var said struct{ Listen, Fingerprint string }
	if err := json.Unmarshal(line, &said); err != nil {
		t.Fatalf("registry serve said %q: %v", line, err)
	}
	r.repo, r.print = "oci://"+said.Listen+"/dr", said.Fingerprint
}

func (r *rig) stopRegistry() {
	if r.registry == nil {
		return
	}
	_ = r.registry.Process.Signal(syscall.SIGTERM)
	_ = r.registry.Wait()
	r.registry = nil
}

// login gives a site the registry login, as docker login does.
func (r *rig) login(s *lab.Site) {
	r.t.Helper()
	auth := base64.StdEncoding.EncodeToString([]byte(registryUser + ":" + registryPassword))
	host := strings.TrimSuffix(strings.TrimPrefix(r.repo, "oci://"), "/dr")
	raw, err := json.Marshal(map[string]any{"auths": map[string]any{host: map[string]string{"auth": auth}}})
	if err != nil {
		r.t.Fatal(err)
	}
	r.write(filepath.Join(s.Disk, "docker", "config.json"), string(raw))
}

func (r *rig) write(path, text string) {
	r.t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		r.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) configPath(s *lab.Site) string {
	return filepath.Join(s.Disk, "etc-lifeboat", "lifeboat.yaml")
}

// command prepares lifeboat at a site.
func (r *rig) command(ctx context.Context, s *lab.Site, args ...string) *exec.Cmd {
	cmd := s.Command(ctx, binary, args...)
	cmd.Env = append(cmd.Env, "LIFEBOAT_CONFIG="+r.configPath(s), "LIFEBOAT_STATE_DIR="+s.StateDir, "LIFEBOAT_REPO="+r.repo,
		"LIFEBOAT_KEY_FILE="+filepath.Join(s.Disk, "etc-lifeboat", "key.txt"), "DOCKER_CONFIG="+filepath.Join(s.Disk, "docker"))
	return cmd
}

// outcome is what a run of lifeboat gave.
type outcome struct {
	code           int
	stdout, stderr string
}

func (o outcome) decode(t *testing.T, into any) {
	t.Helper()
	if err := json.Unmarshal([]byte(o.stdout), into); err != nil {
		t.Fatalf("stdout is not one JSON document: %v\nstdout: %s\nstderr: %s", err, o.stdout, o.stderr)
	}
}

// try runs lifeboat and gives whatever came out.
func (r *rig) try(s *lab.Site, args ...string) outcome {
	r.t.Helper()
	cmd := r.command(r.t.Context(), s, args...)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	began := time.Now()
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		r.t.Fatalf("%s: lifeboat %v: %v", s.Name, args, err)
	}
	r.t.Logf("%s: lifeboat %s: exit %d in %v", s.Name, strings.Join(args, " "), cmd.ProcessState.ExitCode(), time.Since(began).Round(time.Millisecond))
	return outcome{cmd.ProcessState.ExitCode(), out.String(), errOut.String()}
}

// must runs lifeboat with --json and --yes and decodes the answer.
func (r *rig) must(s *lab.Site, into any, args ...string) {
	r.t.Helper()
	o := r.try(s, append(args, "--json", "--yes")...)
	if o.code != 0 {
		r.t.Fatalf("%s: lifeboat %v: exit %d\nstdout: %s\nstderr: %s", s.Name, args, o.code, o.stdout, o.stderr)
	}
	if into != nil {
		o.decode(r.t, into)
	}
}

// configure writes a site's configuration; more is YAML that is added.
func (r *rig) configure(s *lab.Site, more string) {
	r.t.Helper()
	r.write(r.configPath(s), fmt.Sprintf("site: %s\nregistry:\n  fingerprint: %s\n%s", s.Name, r.print, more))
}

// shareKey takes the repository's key to another site.
func (r *rig) shareKey(from, to *lab.Site) {
	r.t.Helper()
	raw, err := os.ReadFile(filepath.Join(from.Disk, "etc-lifeboat", "key.txt"))
	if err != nil {
		r.t.Fatal(err)
	}
	r.write(filepath.Join(to.Disk, "etc-lifeboat", "key.txt"), string(raw))
}

// init makes the repository from the main site and returns the recovery kit.
func (r *rig) init() (kit string) {
	r.t.Helper()
	r.configure(r.main, "")
	r.configure(r.standin, "")
	kit = filepath.Join(r.dir, "kit.txt")
	r.must(r.main, nil, "init", "--kit", kit)
	r.shareKey(r.main, r.standin)
	return kit
}

// snapshotJSON are the contract's keys.
type snapshotJSON struct {
	Snapshot     string    `json:"snapshot"`
	System       string    `json:"system"`
	Created      time.Time `json:"created"`
	BytesScanned int64     `json:"bytes_scanned"`
	BytesNew     int64     `json:"bytes_new"`
	BytesSent    int64     `json:"bytes_sent"`
	FreezeMS     float64   `json:"freeze_ms"`
	ElapsedMS    int64     `json:"elapsed_ms"`
	Epoch        int       `json:"epoch"`
	Coverage     []struct{ Object, Reason string }
}

// bringJSON are the contract's keys of failover and failback.
type bringJSON struct {
	Snapshot     string `json:"snapshot"`
	Epoch        int    `json:"epoch"`
	DataAgeS     int64  `json:"data_age_s"`
	RTOMS        int64  `json:"rto_ms"`
	BytesFetched int64  `json:"bytes_fetched"`
	Divergent    string `json:"divergent"`
	Steps        []struct {
		ID, Title, State string
	} `json:"steps"`
}

func fields(out []byte) []string { return strings.Fields(string(out)) }
