package lab

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"lifeboat/lab/warden"
)

// CacheDir is where engines and images are kept between runs: LIFEBOAT_LAB_CACHE, or /var/cache/lifeboat-lab.
func CacheDir() string {
	if dir := os.Getenv("LIFEBOAT_LAB_CACHE"); dir != "" {
		return dir
	}
	return "/var/cache/lifeboat-lab"
}

// LockCache waits until nobody else makes the named thing in the cache, and keeps others from it until
// unlock is called. The directory that it returns is the cache's, made if need be.
func LockCache(ctx context.Context, name string) (dir string, unlock func(), err error) {
	dir = CacheDir()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", nil, fmt.Errorf("make cache: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(dir, name+".lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return "", nil, fmt.Errorf("lock %s in the cache: %w", name, err)
	}
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return dir, func() { f.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return "", nil, errors.Join(fmt.Errorf("lock %s in the cache: %w", name, err), f.Close())
		}
		select {
		case <-ctx.Done():
			return "", nil, errors.Join(fmt.Errorf("wait for another process that makes %s: %w", name, ctx.Err()), f.Close())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// Slim are arguments of mmdebstrap that leave out what no machine reads.
func Slim() []string {
	var args []string
	for _, path := range []string{"/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*"} {
		args = append(args, "--dpkgopt=path-exclude="+path)
	}
	return args
}

// Bootstrap runs mmdebstrap; what it has not finished is removed again.
func Bootstrap(ctx context.Context, scratch string, args ...string) error {
	if err := os.RemoveAll(scratch); err != nil {
		return fmt.Errorf("bootstrap Debian: %w", err)
	}
	if err := os.MkdirAll(scratch, 0o755); err != nil {
		return fmt.Errorf("bootstrap Debian: %w", err)
	}
	defer os.RemoveAll(scratch)
	var errOut bytes.Buffer
	cmd := exec.CommandContext(ctx, "mmdebstrap", append([]string{"--quiet", "--mode=root"}, args...)...)
	cmd.Env = append(os.Environ(), "TMPDIR="+scratch, "DEBIAN_FRONTEND=noninteractive")
	cmd.Stderr = &errOut
	// It unmounts what it mounted when it is asked to end.
	cmd.Cancel = func() error { return cmd.Process.Signal(unix.SIGTERM) }
	cmd.WaitDelay = 30 * time.Second
	if err := cmd.Run(); err != nil {
		text := strings.TrimSpace(errOut.String())
		return fmt.Errorf("bootstrap Debian with mmdebstrap: %w: %s", err, text[max(0, len(text)-2000):])
	}
	return nil
}

// resolve finds the engine's files, and fetches them when they are not in the cache.
func (e Engine) resolve(ctx context.Context, log *slog.Logger) (warden.EngineConfig, error) {
	conf := warden.EngineConfig{None: e.None}
	if e.None {
		return conf, nil
	}
	if e.ContainerdStore {
		if e.Suite == "" {
			return conf, errors.New("the machine's own engine has no containerd image store; choose an engine with a suite")
		}
		conf.Daemon = map[string]any{"features": map[string]any{"containerd-snapshotter": true}}
	} else {
		conf.StorageDriver = "overlay2"
	}
	if e.Suite == "" {
		if _, err := os.Stat("/usr/sbin/dockerd"); err != nil {
			return conf, fmt.Errorf("find the engine: %w; run: make deps", err)
		}
		return conf, nil
	}
	var err error
	conf.Usr, err = engineUsr(ctx, e.Suite, log)
	return conf, err
}

// engineUsr returns a /usr directory with the engine of a Debian suite in it. Debian keeps all programs
// and libraries below /usr, so that a site gets another engine by mounting another /usr.
func engineUsr(ctx context.Context, suite string, log *slog.Logger) (string, error) {
	// A suite in development lets its Release file run out; its signature is checked all the same.
	args := append(Slim(), "--aptopt=Acquire::Check-Valid-Until \"false\"", "--variant=minbase", "--components=main",
		"--include=docker.io,docker-cli,iptables,ca-certificates,git", suite)
	key := sha256.Sum256([]byte(strings.Join(args, "\n")))
	name := "engine-" + suite + "-" + hex.EncodeToString(key[:4])
	dir, unlock, err := LockCache(ctx, name)
	if err != nil {
		return "", err
	}
	defer unlock()
	root := filepath.Join(dir, name)
	if _, err := os.Stat(filepath.Join(root, "usr/sbin/dockerd")); err == nil {
		return filepath.Join(root, "usr"), nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("look for the engine of %s: %w", suite, err)
	}
	log.Info("fetch engine; this takes a minute", "suite", suite)
	scratch := filepath.Join(dir, name+".scratch")
	tree := filepath.Join(dir, name+".new")
	if err := os.RemoveAll(tree); err != nil {
		return "", fmt.Errorf("fetch engine of %s: %w", suite, err)
	}
	if err := Bootstrap(ctx, scratch, append(args, tree)...); err != nil {
		return "", errors.Join(fmt.Errorf("fetch engine of %s: %w", suite, err), os.RemoveAll(tree))
	}
	if err := os.Rename(tree, root); err != nil {
		return "", fmt.Errorf("fetch engine of %s: %w", suite, err)
	}
	return filepath.Join(root, "usr"), nil
}
