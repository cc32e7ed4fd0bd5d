package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"lifeboat/internal/quantity"
	"lifeboat/internal/ui"
	"lifeboat/lab"
	"lifeboat/lab/images"
	"lifeboat/lab/systems"
	"lifeboat/lab/wan"
)

const (
	registryUser = "backup"
	registryHost = "cloud.test:5000"
	repoURL      = "oci://" + registryHost + "/dr"
	keyFile      = "/etc/lifeboat/key.txt"
	configFile   = "/etc/lifeboat/lifeboat.yaml"
)

// stage is the laboratory: two sites with an engine, and a cloud with a registry.
type stage struct {
	lab                  *lab.Lab
	main, standin, cloud *lab.Site
	wan                  wan.Params
	binary               string
	password             string // of the registry's user
	fingerprint          string // of the registry's certificate
	key                  string // the repository's key, as an operator keeps it off the hosts
	registry             *exec.Cmd
}

// setStage makes the images, the laboratory and the registry. On error nothing is left.
func setStage(ctx context.Context, o options, out *ui.Printer, log *slog.Logger) (*stage, error) {
	title(out, "Setting the stage")
	params, err := wan.ParseParams(o.wan)
	if err != nil {
		return nil, fmt.Errorf("-wan: %w", err)
	}
	binary := o.binary
	if binary == "" {
		if binary, err = build(ctx); err != nil {
			return nil, err
		}
	}
	began := time.Now()
	if err := images.Ensure(ctx, log, systems.WordPress(systems.Params{}).Images()); err != nil {
		return nil, err
	}
	if took := time.Since(began); took > time.Second {
		out.Note("  images of the example system built and cached: %s", quantity.Duration(took))
	}
	began = time.Now()
	l, err := lab.New(ctx, lab.Options{WAN: params, Log: quiet(log, o), Sites: []lab.SiteOptions{
		{Name: "main", Engine: lab.EngineDocker20}, {Name: "standin", Engine: lab.EngineDocker20}, {Name: "cloud", Engine: lab.EngineNone},
	}})
	if err != nil {
		return nil, err
	}
	s := &stage{lab: l, main: l.Site("main"), standin: l.Site("standin"), cloud: l.Site("cloud"), wan: params}
	if err := s.furnish(ctx, binary); err != nil {
		return nil, errors.Join(err, s.close())
	}
	out.Show(ui.Fields{
		{Name: "  main", Value: fmt.Sprintf("%s  a Docker host with its own network, disk and engine", s.main.IP)},
		{Name: "  standin", Value: fmt.Sprintf("%s  another one", s.standin.IP)},
		{Name: "  cloud", Value: fmt.Sprintf("%s  a host without an engine: the registry", s.cloud.IP)},
		{Name: "  between them", Value: describeWAN(params)},
	})
	out.Note("  up after %s", quantity.Duration(time.Since(began)))
	return s, nil
}

// quiet keeps the laboratory's own log out of the story unless it was asked for.
func quiet(log *slog.Logger, o options) *slog.Logger {
	if o.verbose {
		return log
	}
	return slog.New(slog.DiscardHandler)
}

func describeWAN(p wan.Params) string {
	text := quantity.Duration(2*p.Delay) + " there and back"
	if p.BytesPerSecond > 0 {
		text += fmt.Sprintf(", %g Mbit/s", p.BytesPerSecond*8/1e6)
	}
	if p.Loss > 0 {
		text += fmt.Sprintf(", %g %% of packets lost", p.Loss*100)
	}
	return "an emulated WAN: " + text
}

// build makes the binary in the checkout as `make build` does; what is up to date is not linked again.
func build(ctx context.Context) (string, error) {
	root, err := moduleRoot()
	if err != nil {
		return "", err
	}
	tool, err := exec.LookPath("go")
	if err != nil {
		tool = "/usr/local/go/bin/go" // where Go is by default, in no PATH of a service
	}
	binary := filepath.Join(root, "lifeboat")
	cmd := exec.CommandContext(ctx, tool, "build", "-trimpath", "-ldflags=-s -w", "-o", binary, "./cmd/lifeboat")
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build lifeboat: %w\n%s", err, text)
	}
	return binary, nil
}

// furnish puts the binary where a rebuild cannot reach it and starts the registry.
func (s *stage) furnish(ctx context.Context, binary string) error {
	data, err := os.ReadFile(binary)
	if err != nil {
		return fmt.Errorf("read the binary: %w", err)
	}
	s.binary = filepath.Join(s.lab.Dir(), "lifeboat")
	if err := os.WriteFile(s.binary, data, 0o755); err != nil {
		return fmt.Errorf("copy the binary: %w", err)
	}
	word := make([]byte, 18)
	if _, err := rand.Read(word); err != nil {
		return fmt.Errorf("make a password: %w", err)
	}
	s.password = base64.RawURLEncoding.EncodeToString(word)
	if err := s.startRegistry(ctx); err != nil {
		return err
	}
	for _, site := range []*lab.Site{s.main, s.standin} {
		if err := s.login(ctx, site); err != nil {
			return err
		}
	}
	return nil
}

// startRegistry serves the embedded registry in the cloud, with TLS by its own certificate and htpasswd.
func (s *stage) startRegistry(ctx context.Context) error {
	htpasswd := filepath.Join(s.cloud.Disk, "htpasswd")
	passwd := s.cloud.Command(ctx, s.binary, "registry", "passwd", "--htpasswd", htpasswd, registryUser)
	passwd.Stdin = strings.NewReader(s.password + "\n")
	if text, err := passwd.CombinedOutput(); err != nil {
		return fmt.Errorf("registry passwd: %w: %s", err, text)
	}
	host, port, err := net.SplitHostPort(registryHost)
	if err != nil {
		return err
	}
	// It ends with the stage, not with the context: what runs at an interruption still speaks to it.
	cmd := s.cloud.Command(context.WithoutCancel(ctx), s.binary, "registry", "serve", "--json", "--listen", net.JoinHostPort(s.cloud.IP.String(), port),
		"--data", filepath.Join(s.cloud.Disk, "registry"), "--htpasswd", htpasswd, "--tls-host", host)
	// An interruption from the terminal is for the demo alone.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	said, err := cmd.StdoutPipe()
	if err != nil {
		return fmt.Errorf("registry serve: %w", err)
	}
	var complaint bytes.Buffer
	cmd.Stderr = &complaint
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("registry serve: %w", err)
	}
	s.registry = cmd
	line, err := bufio.NewReader(said).ReadBytes('\n')
	if err != nil {
		s.stopRegistry()
		return fmt.Errorf("registry serve: %w: %s", err, complaint.String())
	}
	var answer struct{ Fingerprint string }
	if err := json.Unmarshal(line, &answer); err != nil {
		return fmt.Errorf("registry serve said %q: %w", line, err)
	}
	s.fingerprint = answer.Fingerprint
	return nil
}

func (s *stage) stopRegistry() {
	if s.registry == nil {
		return
	}
	// It may be gone already; the laboratory's end takes what does not listen.
	_ = s.registry.Process.Signal(syscall.SIGTERM)
	_ = s.registry.Wait()
	s.registry = nil
}

// close takes everything away.
func (s *stage) close() error {
	s.stopRegistry()
	return s.lab.Close()
}

// write puts a file on a site, mode 0600, as an operator's editor does.
func (s *stage) write(ctx context.Context, site *lab.Site, path, text string) error {
	cmd := site.Command(ctx, "/bin/sh", "-c", `umask 077 && mkdir -p "$(dirname "$1")" && cat > "$1"`, "sh", path)
	cmd.Stdin = strings.NewReader(text)
	if said, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("write %s at %s: %w: %s", path, site.Name, err, said)
	}
	return nil
}

// login leaves what `docker login` leaves.
func (s *stage) login(ctx context.Context, site *lab.Site) error {
	auth := base64.StdEncoding.EncodeToString([]byte(registryUser + ":" + s.password))
	text, err := json.Marshal(map[string]any{"auths": map[string]any{registryHost: map[string]string{"auth": auth}}})
	if err != nil {
		return err
	}
	return s.write(ctx, site, filepath.Join(site.Disk, "home", ".docker", "config.json"), string(text))
}

// configure gives a site that did not make the repository its configuration and key.
func (s *stage) configure(ctx context.Context, site *lab.Site) error {
	text := fmt.Sprintf("site: %s\nstate_dir: %s\nrepo: %s\nkey_file: %s\nregistry:\n  fingerprint: %s\n", site.Name, site.StateDir, repoURL, keyFile, s.fingerprint)
	return errors.Join(s.write(ctx, site, configFile, text), s.write(ctx, site, keyFile, s.key))
}

// carried is what sites have sent over the WAN since they were switched on, in bytes.
func (s *stage) carried(ctx context.Context, sites ...*lab.Site) (int64, error) {
	status, err := s.lab.Status(ctx)
	if err != nil {
		return 0, err
	}
	var sum uint64
	for _, site := range sites {
		for _, x := range status.Sites {
			if x.Name == site.Name {
				sum += x.BytesCarried
			}
		}
	}
	return int64(sum), nil
}
