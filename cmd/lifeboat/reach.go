package main

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"net/url"
	"sync"
	"time"

	"lifeboat/internal/dr"
	"lifeboat/internal/store"
	"lifeboat/internal/ui"
)

// How long a command waits for the registry's first answer, when it says on
// stderr that it waits, and how often again. Later requests have the store's
// own patience: they belong to work that is under way.
const (
	reachLimit = 30 * time.Second
	reachFirst = 3 * time.Second
	reachAgain = 10 * time.Second
)

// patience is what reach works with; tests have less.
type patience struct{ limit, first, again time.Duration }

// reach asks the registry what it offers: the first request of a command, so
// that a dead address is told soon. The error is explained.
func (a *app) reach(ctx context.Context, w *world) (store.Capabilities, error) {
	p := a.patience
	if p.limit == 0 {
		p = patience{reachLimit, reachFirst, reachAgain}
	}
	bounded, cancel := context.WithTimeoutCause(ctx, p.limit, fmt.Errorf("no answer within %s: %w", p.limit, store.ErrUnreachable))
	defer cancel()
	answered := make(chan struct{})
	var said sync.WaitGroup
	said.Go(func() {
		for d := p.first; ; d = p.again {
			select {
			case <-answered:
				return
			case <-bounded.Done():
				return
			case <-time.After(d):
				a.UI().Note("registry %s does not answer, trying again…", hostOf(w.src.url))
			}
		}
	})
	caps, err := w.store.Capabilities(bounded)
	close(answered)
	said.Wait()
	return caps, a.explainRegistry(w.src, "nothing was done", err)
}

// hostOf is the host and port of a repository's URL.
func hostOf(raw string) string {
	u, err := url.Parse(raw)
	if err != nil {
		return raw
	}
	return u.Host
}

// explainRegistry adds state and next to an error of the registry that has
// none; other errors stay as they are.
func (a *app) explainRegistry(src source, state string, err error) error {
	var x ui.Explainer
	if err == nil || errors.As(err, &x) || errors.Is(err, dr.ErrOutcomeUnknown) {
		return err
	}
	host, again := hostOf(src.url), "run the same command again"
	if host == "" {
		host = "the registry"
	}
	var next []string
	switch {
	case errors.Is(err, store.ErrUntrusted):
		next = a.nextUntrusted(src, err)
	case errors.Is(err, store.ErrUnauthorized) && src.registry.Username == "":
		next = []string{
			"lifeboat init --repo " + location(src.url) + " --username NAME --password-file FILE  (a file of mode 0600; the login is kept in " + a.ConfigPath() + ")",
			"or docker login " + host + "  (where Docker trusts the registry's certificate)",
		}
	case errors.Is(err, store.ErrUnauthorized):
		next = []string{
			fmt.Sprintf("look at registry.username (%s) and registry.password_file in %s", src.registry.Username, a.ConfigPath()),
			"or set the password anew at the registry: lifeboat registry passwd --htpasswd FILE " + src.registry.Username,
		}
	case errors.Is(err, store.ErrForbidden):
		next = []string{"let the registry give the user the access role that this needs (docs/registries.md), or use another login; then " + again}
	case errors.Is(err, store.ErrNoSpace):
		next = []string{"make room at the registry, then " + again}
	case errors.Is(err, store.ErrUnreachable):
		next = []string{"check the address (" + location(src.url) + "), the way there, and that the registry at " + host + " runs; then " + again}
		if hint := mirrorHint(src); hint != "" {
			next = append(next, hint)
		}
	default:
		return err
	}
	return ui.Explained{What: err.Error(), State: state, Next: next, Err: err}
}

// nextUntrusted names the certificate that was shown, for comparison: pinning
// whatever comes would protect from nobody.
func (a *app) nextUntrusted(src source, err error) []string {
	if src.registry.Fingerprint != "" {
		return []string{
			"compare with the fingerprint that `lifeboat registry serve` prints at the registry",
			"if the registry has a new certificate, give that one: --fingerprint of init, registry.fingerprint in " + a.ConfigPath(),
		}
	}
	shown := "sha256:…"
	var verify *tls.CertificateVerificationError
	if errors.As(err, &verify) && len(verify.UnverifiedCertificates) > 0 {
		shown = fmt.Sprintf("sha256:%x", sha256.Sum256(verify.UnverifiedCertificates[0].Raw))
	}
	return []string{
		"compare with the fingerprint that `lifeboat registry serve` printed at the registry; only if it is the same: lifeboat init --repo " + location(src.url) + " --fingerprint " + shown,
		"or name the authority of its certificate: lifeboat init --repo " + location(src.url) + " --ca-file FILE",
	}
}
