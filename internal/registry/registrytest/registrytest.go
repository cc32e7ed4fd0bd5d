// Package registrytest starts Lifeboat's own registry inside a test, on
// loopback with TLS, and stops it at the end.
package registrytest

import (
	"context"
	"log/slog"
	"path/filepath"
	"testing"

	"lifeboat/internal/registry"
	"lifeboat/internal/store/ocistore"
)

// Registry is a registry that runs until Stop or the end of the test.
type Registry struct {
	// Addr is HOST:PORT, Fingerprint what clients pin ("" for plain HTTP), Data
	// the data directory.
	Addr, Fingerprint, Data string

	plain bool
	stop  context.CancelFunc
	done  chan error
}

// Start runs a registry with an empty data directory, without users, and with
// what edit changes. Mistakes end the test.
func Start(t testing.TB, edit ...func(*registry.Config)) *Registry {
	t.Helper()
	cfg := registry.Config{
		Listen: "127.0.0.1:0", Data: filepath.Join(t.TempDir(), "registry"),
		Logger: slog.New(slog.NewTextHandler(logWriter{t}, &slog.HandlerOptions{Level: slog.LevelWarn})),
	}
	for _, f := range edit {
		f(&cfg)
	}
	srv, err := registry.New(cfg)
	if err != nil {
		t.Fatalf("start registry: %v", err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	r := &Registry{Addr: srv.Addr(), Fingerprint: srv.Fingerprint(), Data: cfg.Data, plain: cfg.PlainHTTP, stop: cancel, done: make(chan error, 1)}
	go func() { r.done <- srv.Serve(ctx) }()
	t.Cleanup(func() { r.Stop(t) })
	return r
}

// Stop ends the registry and waits for it. It may be called again.
func (r *Registry) Stop(t testing.TB) {
	t.Helper()
	if r.stop == nil {
		return
	}
	r.stop()
	r.stop = nil
	if err := <-r.done; err != nil {
		t.Errorf("stop registry: %v", err)
	}
}

// Scheme is https or http.
func (r *Registry) Scheme() string {
	if r.plain {
		return "http"
	}
	return "https"
}

// URL is the repository URL of a name, for ocistore.Open.
func (r *Registry) URL(name string) string {
	if r.plain {
		return "oci+http://" + r.Addr + "/" + name
	}
	return "oci://" + r.Addr + "/" + name
}

// Options is how a client reaches the registry.
func (r *Registry) Options() ocistore.Options {
	return ocistore.Options{Fingerprint: r.Fingerprint}
}

type logWriter struct{ t testing.TB }

func (w logWriter) Write(p []byte) (int, error) {
	w.t.Logf("%s", p)
	return len(p), nil
}
