package ocistore_test

import (
	"testing"

	"lifeboat/internal/registry"
	"lifeboat/internal/registry/registrytest"
	"lifeboat/internal/store"
	"lifeboat/internal/store/ocistore"
	"lifeboat/internal/store/storetest"
)

func open(t *testing.T, url string, opts ocistore.Options) store.Store {
	t.Helper()
	s, err := ocistore.Open(t.Context(), url, opts)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestConformanceOwnRegistry(t *testing.T) {
	t.Parallel()
	storetest.Run(t, func(t *testing.T) store.Store {
		r := registrytest.Start(t)
		return open(t, r.URL("dr/repo"), r.Options())
	})
}

func TestConformanceOwnRegistryPlain(t *testing.T) {
	t.Parallel()
	storetest.Run(t, func(t *testing.T) store.Store {
		r := registrytest.Start(t, func(c *registry.Config) { c.PlainHTTP = true })
		return open(t, r.URL("repo"), r.Options())
	})
}

// registryOptions keeps the developer's own credentials out of tests.
func registryOptions() ocistore.Options {
	return ocistore.Options{Username: "lbtest", Password: "lbtest"}
}

func plain(c *registry.Config) { c.PlainHTTP = true }
