package ocistore_test

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"lifeboat/internal/store"
	"lifeboat/internal/store/storetest"
)

var listeningRE = regexp.MustCompile(`listening on (127\.0\.0\.1:[0-9]+)`)

// startDebianRegistry runs Distribution 2.8 from Debian's package
// docker-registry, a registry that knows nothing of immutable tags, on loopback
// and returns its address.
func startDebianRegistry(t *testing.T) string {
	t.Helper()
	const program = "/usr/bin/docker-registry"
	if _, err := os.Stat(program); err != nil {
		t.Fatalf("this test runs Debian's registry; install the package docker-registry (make test does): %v", err)
	}
	dir := t.TempDir()
	config := filepath.Join(dir, "config.yml")
	if err := os.WriteFile(config, []byte(fmt.Sprintf(`version: 0.1
log: {level: info, accesslog: {disabled: true}}
storage:
  delete: {enabled: true}
  redirect: {disable: true}
  filesystem: {rootdirectory: %s}
http: {addr: "127.0.0.1:0"}
`, filepath.Join(dir, "data"))), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, "serve", config)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir, "OTEL_TRACES_EXPORTER=none"}
	// Nothing is left behind, also when the test binary is killed.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	addr := make(chan string, 1)
	read := make(chan struct{})
	var log strings.Builder
	go func() {
		defer close(read)
		for sc := bufio.NewScanner(out); sc.Scan(); {
			fmt.Fprintln(&log, sc.Text())
			if m := listeningRE.FindStringSubmatch(sc.Text()); m != nil {
				select {
				case addr <- m[1]:
				default:
				}
			}
		}
		close(addr)
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may have ended by itself
		<-read
		_ = cmd.Wait()
	})
	a, ok := <-addr
	if !ok {
		t.Fatalf("docker-registry ended:\n%s", log.String())
	}
	return a
}

func TestConformanceDebianRegistry(t *testing.T) {
	t.Parallel()
	addr := startDebianRegistry(t)
	n := 0
	storetest.Run(t, func(t *testing.T) store.Store {
		n++
		return open(t, fmt.Sprintf("oci+http://%s/lbtest/%d", addr, n), registryOptions())
	})
}
