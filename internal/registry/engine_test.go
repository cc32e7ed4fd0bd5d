package registry_test

import (
	"archive/tar"
	"bufio"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2"
	"oras.land/oras-go/v2/registry/remote"

	"lifeboat/internal/registry/registrytest"
	"lifeboat/internal/store/storetest"
)

// startEngine runs a Docker engine of its own, without networks, and returns
// how to call its command line.
func startEngine(t *testing.T) func(stdin []byte, args ...string) string {
	t.Helper()
	// A socket's path has at most 107 bytes.
	dir, err := os.MkdirTemp("/var/tmp", "lbtest-engine-")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("dockerd", "--data-root", dir+"/root", "--exec-root", dir+"/exec", "--pidfile", dir+"/pid",
		"-H", "unix://"+dir+"/s", "--bridge=none", "--iptables=false", "--ip6tables=false")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	log, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatalf("this test runs Docker; install docker.io (make test does): %v", err)
	}
	ready, read := make(chan struct{}), make(chan struct{})
	var said strings.Builder
	go func() {
		defer close(read)
		for sc := bufio.NewScanner(log); sc.Scan(); {
			fmt.Fprintln(&said, sc.Text())
			if strings.Contains(sc.Text(), "API listen on") {
				close(ready)
			}
		}
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM) // may have ended
		<-read
		_ = cmd.Wait()
		if err := os.RemoveAll(dir); err != nil {
			t.Errorf("engine left something mounted: %v", err)
		}
	})
	select {
	case <-ready:
	case <-read:
		t.Fatalf("dockerd ended:\n%s", said.String())
	}
	return func(stdin []byte, args ...string) string {
		t.Helper()
		c := exec.Command("docker", append([]string{"-H", "unix://" + dir + "/s"}, args...)...)
		c.Env = append(os.Environ(), "DOCKER_CONFIG="+dir+"/config")
		c.Stdin = bytes.NewReader(stdin)
		var stderr bytes.Buffer
		c.Stderr = &stderr
		out, err := c.Output()
		if err != nil {
			t.Fatalf("docker %s: %v\n%s", strings.Join(args, " "), err, stderr.String())
		}
		return strings.TrimSpace(string(out))
	}
}

// TestEngine: an unchanged Docker engine logs in, pushes, moves a tag and pulls,
// over TLS with our certificate (engines take loopback registries as they are).
func TestEngine(t *testing.T) {
	t.Parallel()
	docker := startEngine(t)
	r := registrytest.Start(t, withUsers(t, "", "alice"))
	docker([]byte("alice-password"), "login", "--username", "alice", "--password-stdin", r.Addr)
	ref := r.Addr + "/images/app:latest"
	var last string
	for _, content := range []string{"one", "two"} {
		var b bytes.Buffer
		tw := tar.NewWriter(&b)
		body := bytes.Repeat([]byte(content), 100_000)
		if err := tw.WriteHeader(&tar.Header{Name: "file", Mode: 0o644, Size: int64(len(body))}); err != nil {
			t.Fatal(err)
		}
		if _, err := tw.Write(body); err != nil {
			t.Fatal(err)
		}
		if err := tw.Close(); err != nil {
			t.Fatal(err)
		}
		last = docker(b.Bytes(), "import", "-", ref)
		docker(nil, "push", "--quiet", ref)
	}
	docker(nil, "rmi", "--force", last)
	docker(nil, "pull", "--quiet", ref)
	if got := docker(nil, "image", "inspect", "--format", "{{.Id}}", ref); got != last {
		t.Errorf("pulled %s, pushed %s", got, last)
	}
}

// TestOrasCopy: a repository is copied to another name and registry by an
// ordinary OCI tool, tags and manifests unchanged.
func TestOrasCopy(t *testing.T) {
	t.Parallel()
	from := registrytest.Start(t, plain)
	to := registrytest.Start(t, plain)
	s := openStore(t, from.URL("dr/prod"))
	layer := storetest.PutBytes(t, s, "application/vnd.lifeboat.pack.v1", random(3<<20))
	body := storetest.ManifestOf(t, s, "copy me", layer)
	tag := "m." + digest.FromBytes(body).Encoded()[:32]
	if _, err := s.PutManifest(t.Context(), tag, ocispec.MediaTypeImageManifest, body); err != nil {
		t.Fatal(err)
	}
	repo := func(r *registrytest.Registry, name string) *remote.Repository {
		t.Helper()
		x, err := remote.NewRepository(r.Addr + "/" + name)
		if err != nil {
			t.Fatal(err)
		}
		x.PlainHTTP = true
		return x
	}
	for range 2 { // the second time everything is there
		if _, err := oras.Copy(t.Context(), repo(from, "dr/prod"), tag, repo(to, "copy"), tag, oras.DefaultCopyOptions); err != nil {
			t.Fatal(err)
		}
	}
	m, err := openStore(t, to.URL("copy")).GetManifest(t.Context(), tag)
	if err != nil || !bytes.Equal(m.Body, body) {
		t.Errorf("copied: %v", err)
	}
	if got := files(t, filepath.Join(to.Data, "store"), layer.Digest.Encoded()+"/data"); len(got) != 1 {
		t.Errorf("layer: %v", got)
	}
}
