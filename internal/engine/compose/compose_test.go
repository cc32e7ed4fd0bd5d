package compose_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"lifeboat/internal/engine/compose"
)

func TestOf(t *testing.T) {
	t.Parallel()
	if _, ok := compose.Of(map[string]string{"x": "y"}); ok {
		t.Error("labels of no project are taken for some")
	}
	got, ok := compose.Of(map[string]string{
		compose.LabelProject: "shop", compose.LabelService: "web", compose.LabelNumber: "2", compose.LabelOneOff: "True",
		compose.LabelWorkingDir: "/srv/shop", compose.LabelConfigFiles: "docker-compose.yml,/etc/shop/over.yml,-,oci://x/y", compose.LabelEnvFiles: "prod.env",
		compose.LabelDependsOn: "", compose.LabelVersion: "2.40.3",
	})
	want := compose.Labels{
		Project: "shop", Service: "web", Number: "2", OneOff: true, WorkingDir: "/srv/shop",
		ConfigFiles: []string{"/srv/shop/docker-compose.yml", "/etc/shop/over.yml"}, EnvFiles: []string{"/srv/shop/prod.env"}, HasDependsOn: true, Version: "2.40.3",
	}
	if d := cmp.Diff(want, got); d != "" || !ok {
		t.Errorf("labels (-want +got):\n%s", d)
	}
}

func TestParseDependsOn(t *testing.T) {
	t.Parallel()
	got, err := compose.ParseDependsOn("db:service_healthy:true, cache:service_started:false,init:service_completed_successfully,old")
	want := []compose.Dependency{{"db", compose.Healthy}, {"cache", compose.Started}, {"init", compose.Completed}, {"old", compose.Started}}
	if d := cmp.Diff(want, got); d != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, d)
	}
	for _, bad := range []string{"db:service_sleepy", ":service_started", "a:b:c:d"} {
		if _, err := compose.ParseDependsOn(bad); err == nil {
			t.Errorf("%q gave no error", bad)
		}
	}
}

func FuzzParseDependsOn(f *testing.F) {
	f.Add("db:service_healthy:true,cache")
	f.Fuzz(func(t *testing.T, s string) {
		deps, err := compose.ParseDependsOn(s)
		for _, d := range deps {
			if d.Service == "" || d.Condition == "" || err != nil {
				t.Fatalf("%q: %+v, %v", s, d, err)
			}
		}
	})
}

// tree writes files below a new directory and returns it.
func tree(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, text := range files {
		p := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

// plain opens paths as they are; below opens them below a root, as for an engine
// with a mount namespace of its own.
func plain(p string) (string, error) { return below("")(p) }

func below(root string) compose.PathFunc {
	return func(p string) (string, error) {
		p = filepath.Join(root, p)
		_, err := os.Lstat(p)
		return p, err
	}
}

var project = map[string]string{
	"srv/shop/compose.yaml": `
include:
  - parts/cache.yaml
  - path: [/srv/common/mail.yaml]
    env_file: ../common/mail.env
services:
  web:
    image: ${IMAGE}
    env_file: [web.env, {path: optional.env, required: false}]
    depends_on:
      db: {condition: service_healthy}
      cache: {condition: service_started}
    secrets: [key]
    extends: {file: base.yaml, service: base}
  worker:
    image: x
    network_mode: service:web
    volumes_from: [db]
    profiles: [jobs]
  db:
    image: x
secrets:
  key: {file: ./key.pem}
configs:
  site: {file: /srv/common/site.conf}
`,
	"srv/shop/base.yaml":              "services:\n  base:\n    environment: {A: b}\n    depends_on: [db]\n",
	"srv/shop/parts/cache.yaml":       "include: [deeper/more.yaml]\nservices:\n  cache: {image: x}\n",
	"srv/shop/parts/deeper/more.yaml": "services:\n  more: {image: x, env_file: more.env}\n",
	"srv/shop/parts/deeper/more.env":  "M=1\n",
	"srv/common/mail.yaml":            "services:\n  mail: {image: x}\n",
	"srv/common/mail.env":             "M=1\n", "srv/common/site.conf": "c\n",
	"srv/shop/.env": "IMAGE=shop:1\nPASSWORD=geheim\n", "srv/shop/web.env": "W=1\n", "srv/shop/key.pem": "k\n",
}

func TestLoad(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		prefix bool
	}{{"the same root", false}, {"a root of its own", true}} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			files := project
			root := tree(t, nil)
			base, path := root, compose.PathFunc(plain)
			if c.prefix {
				base, path = "", below(root)
			}
			moved := map[string]string{}
			for name, text := range files {
				// Absolute references are to where the files are for the engine.
				moved[name] = strings.ReplaceAll(text, "/srv/common", base+"/srv/common")
			}
			writeTo(t, root, moved)
			m, err := compose.Load(t.Context(), compose.Labels{Project: "shop", WorkingDir: base + "/srv/shop", ConfigFiles: []string{base + "/srv/shop/compose.yaml"}}, path)
			if err != nil {
				t.Fatal(err)
			}
			if len(m.Warnings) > 0 {
				t.Errorf("warnings %q", m.Warnings)
			}
			var got []string
			for _, f := range m.Files {
				got = append(got, f.Role+" "+strings.TrimPrefix(f.Path, base))
			}
			want := []string{
				"env /srv/common/mail.env", "compose /srv/common/mail.yaml", "other /srv/common/site.conf", "env /srv/shop/.env", "compose /srv/shop/base.yaml", "compose /srv/shop/compose.yaml",
				"other /srv/shop/key.pem", "compose /srv/shop/parts/cache.yaml", "env /srv/shop/parts/deeper/more.env", "compose /srv/shop/parts/deeper/more.yaml", "env /srv/shop/web.env",
			}
			if d := cmp.Diff(want, got); d != "" {
				t.Errorf("files (-want +got):\n%s", d)
			}
			deps := map[string][]compose.Dependency{}
			for name, s := range m.Services {
				deps[name] = s.DependsOn
			}
			wantDeps := map[string][]compose.Dependency{
				"web": {{"cache", compose.Started}, {"db", compose.Healthy}}, "worker": {{"db", compose.Started}, {"web", compose.Started}},
				"db": nil, "cache": nil, "more": nil, "mail": nil,
			}
			if d := cmp.Diff(wantDeps, deps); d != "" {
				t.Errorf("dependencies (-want +got):\n%s", d)
			}
		})
	}
}

func writeTo(t *testing.T, root string, files map[string]string) {
	t.Helper()
	for name, text := range files {
		p := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// TestLoadVersion1 reads a file of the first generation.
func TestLoadVersion1(t *testing.T) {
	t.Parallel()
	dir := tree(t, map[string]string{"docker-compose.yml": "version: '2.1'\nservices:\n  web:\n    image: x:$TAG\n    depends_on: [db]\n    links: ['cache:c']\n    mem_limit: 1g\n  db: {image: x}\n  cache: {image: x}\n"})
	m, err := compose.Load(t.Context(), compose.Labels{Project: "old", WorkingDir: dir, ConfigFiles: []string{dir + "/docker-compose.yml"}}, plain)
	if err != nil || len(m.Warnings) > 0 {
		t.Fatalf("%v, warnings %q", err, m.Warnings)
	}
	want := []compose.Dependency{{"cache", compose.Started}, {"db", compose.Started}}
	if d := cmp.Diff(want, m.Services["web"].DependsOn); d != "" {
		t.Errorf("dependencies (-want +got):\n%s", d)
	}
}

// TestLoadBroken: what cannot be read is a warning, and quotes no values.
func TestLoadBroken(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		files map[string]string
		says  string
	}{
		"gone":              {nil, "does not exist"},
		"no YAML":           {map[string]string{"compose.yaml": "services: [\n"}, "compose.yaml"},
		"directory":         {map[string]string{"compose.yaml/x": "x"}, "understood"},
		"bad variables":     {map[string]string{"compose.yaml": "services: {a: {image: x}}\n", ".env": "PASS'WORD=geheim\n"}, "could not be understood"},
		"missing reference": {map[string]string{"compose.yaml": "services: {a: {image: x, env_file: none.env}}\n"}, "none.env"},
		"missing include":   {map[string]string{"compose.yaml": "include: [none.yaml]\nservices: {a: {image: x}}\n"}, "without those that they include"},
		"include cycle":     {map[string]string{"compose.yaml": "include: [compose.yaml]\nservices: {a: {image: x}}\n"}, "cycle"},
	} {
		dir := tree(t, c.files)
		m, err := compose.Load(t.Context(), compose.Labels{Project: "p", WorkingDir: dir, ConfigFiles: []string{dir + "/compose.yaml"}}, plain)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		all := strings.Join(m.Warnings, "\n")
		if !strings.Contains(all, c.says) || strings.Contains(all, "geheim") {
			t.Errorf("%s: warnings %q, want one that says %q and no secret", name, all, c.says)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := compose.Load(ctx, compose.Labels{Project: "p"}, plain); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}
