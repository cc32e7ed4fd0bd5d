package main

import (
	"bufio"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"lifeboat/internal/dr"
	"lifeboat/internal/store/ocistore"
)

var fingerprintRE = regexp.MustCompile(`(?m)^fingerprint (sha256:[0-9a-f]{64})$`)

func TestRegistryServe(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	htpasswd := filepath.Join(dir, "htpasswd")

	passwd := newRegistryCmd()
	passwd.SetArgs([]string{"passwd", "--htpasswd", htpasswd, "main-site"})
	passwd.SetIn(strings.NewReader("a long password\n"))
	passwd.SetErr(io.Discard)
	if err := passwd.Execute(); err != nil {
		t.Fatal(err)
	}
	if fi, err := os.Stat(htpasswd); err != nil || fi.Mode().Perm() != 0o600 {
		t.Fatalf("htpasswd file: %v, %v", fi, err)
	}

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	pr, pw := io.Pipe()
	serve := newRegistryCmd()
	serve.SetArgs([]string{"serve", "--listen", "127.0.0.1:0", "--data", filepath.Join(dir, "data"), "--htpasswd", htpasswd})
	serve.SetOut(pw)
	serve.SetErr(io.Discard)
	ended := make(chan error, 1)
	go func() {
		err := serve.ExecuteContext(ctx)
		_ = pw.CloseWithError(io.EOF) // never fails
		ended <- err
	}()
	lines := map[string]string{}
	var printed strings.Builder
	for sc := bufio.NewScanner(pr); len(lines) < 3 && sc.Scan(); {
		printed.WriteString(sc.Text() + "\n")
		k, v, _ := strings.Cut(sc.Text(), " ")
		lines[k] = strings.TrimSpace(v)
	}
	m := fingerprintRE.FindStringSubmatch(printed.String())
	if m == nil {
		t.Fatalf("printed:\n%s", printed.String())
	}
	url := strings.Replace(lines["repository"], "NAME", "dr/prod", 1)
	s, err := ocistore.Open(t.Context(), url, ocistore.Options{Fingerprint: m[1], Username: "main-site", Password: "a long password"})
	if err != nil {
		t.Fatal(err)
	}
	if c, err := s.Capabilities(t.Context()); err != nil || !c.ImmutableTags {
		t.Fatalf("capabilities: %+v, %v", c, err)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Fatalf("orderly end: %v", err)
	}
}

func TestRegistryMistakes(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for name, c := range map[string]struct {
		args []string
		in   string
		want error
		says string
	}{
		"no data":             {[]string{"serve", "--listen", "127.0.0.1:0"}, "", dr.ErrUsage, "data: missing"},
		"open to all":         {[]string{"serve", "--listen", "0.0.0.0:0", "--data", dir}, "", dr.ErrUsage, "--insecure-no-auth"},
		"plain HTTP for all":  {[]string{"serve", "--listen", "0.0.0.0:0", "--data", dir, "--plain-http", "--insecure-no-auth"}, "", dr.ErrUsage, "--insecure"},
		"S3":                  {[]string{"serve", "--data", "s3://bucket"}, "", dr.ErrUsage, "s3"},
		"passwd without file": {[]string{"passwd", "x"}, "secret\n", dr.ErrUsage, "--htpasswd"},
		"empty password":      {[]string{"passwd", "--htpasswd", filepath.Join(dir, "h"), "x"}, "\n", dr.ErrUsage, "no password"},
		"bad user":            {[]string{"passwd", "--htpasswd", filepath.Join(dir, "h"), "a:b"}, "secret\n", dr.ErrUsage, "user name"},
		"long password":       {[]string{"passwd", "--htpasswd", filepath.Join(dir, "h"), "x"}, strings.Repeat("x", 73) + "\n", dr.ErrUsage, "72"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cmd := newRegistryCmd()
			cmd.SilenceErrors, cmd.SilenceUsage = true, true
			cmd.SetArgs(c.args)
			cmd.SetIn(strings.NewReader(c.in))
			cmd.SetOut(io.Discard)
			cmd.SetErr(io.Discard)
			err := cmd.ExecuteContext(t.Context())
			if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("error %v, want %v saying %q", err, c.want, c.says)
			}
			if err != nil && strings.Contains(err.Error(), "secret") {
				t.Errorf("password in the error: %v", err)
			}
		})
	}
}
