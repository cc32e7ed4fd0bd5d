package ocistore

import (
	"context"
	"fmt"

	"oras.land/oras-go/v2/registry/remote/credentials"
)

// StoredCredential gives the login that Docker's credential store has for the
// registry of rawURL, empty where it has none: a recovery kit must hold it.
func StoredCredential(ctx context.Context, rawURL string) (username, password string, err error) {
	ref, _, err := parseURL(rawURL, true)
	if err != nil {
		return "", "", err
	}
	st, err := credentials.NewStoreFromDocker(credentials.StoreOptions{})
	if err != nil {
		return "", "", fmt.Errorf("read Docker's configuration for credentials: %w", err)
	}
	c, err := st.Get(ctx, credentials.ServerAddressFromHostname(ref.Host()))
	if err != nil {
		return "", "", fmt.Errorf("login for %s from Docker's credential store: %w", ref.Host(), err)
	}
	return c.Username, c.Password, nil
}
