package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"lifeboat/internal/config"
	"lifeboat/internal/kit"
	"lifeboat/internal/store"
	"lifeboat/internal/store/limit"
	"lifeboat/internal/store/mirror"
	"lifeboat/internal/store/ocistore"
)

// Where there are mirrors, a registry is given up sooner when it is read from.
const (
	mirroredDial     = 5 * time.Second
	mirroredAttempts = 2
)

// address is a registry with a copy of the repository, and how it is trusted
// and logged in to.
type address struct {
	url      string
	registry ocistore.Options
}

// pick puts the address of url first and returns the others after it; ok is
// false where url is none of them.
func pick(all []address, url string) (first address, rest []address, ok bool) {
	i := slices.IndexFunc(all, func(a address) bool { return location(a.url) == location(url) })
	if i < 0 {
		return address{}, nil, false
	}
	return all[i], slices.Delete(slices.Clone(all), i, i+1), true
}

// configAddresses are the repository of the configuration and its mirrors.
// A login that cannot be read fails the command for the one that is asked for;
// of others it is told, and they are left out.
func (a *app) configAddresses(cfg *config.Config, raw string) (first address, rest []address, err error) {
	if cfg.Repo == "" || (location(cfg.Repo) != location(raw) && !slices.ContainsFunc(cfg.Mirrors, func(m config.Mirror) bool { return location(m.Repo) == location(raw) })) {
		first.url = raw
		first.registry, err = registryOptions(cfg, raw)
		return first, nil, err
	}
	var all []address
	for _, m := range append([]config.Mirror{{Repo: cfg.Repo, Registry: cfg.Registry}}, cfg.Mirrors...) {
		o, err := optionsOf(cfg, m.Registry)
		if err != nil && location(m.Repo) == location(raw) {
			return first, nil, err
		}
		if err != nil {
			a.UI().Warn("mirror %s is left out: %v", location(m.Repo), err)
			continue
		}
		all = append(all, address{m.Repo, o})
	}
	first, rest, _ = pick(all, raw)
	return first, rest, nil
}

// kitAddresses are the repository of a recovery kit and its mirrors.
func kitAddresses(k kit.Kit, stateDir string) ([]address, error) {
	list := append([]kit.Mirror{{
		Repo: k.Repo, Username: k.Username, Password: k.Password, TLSFingerprint: k.TLSFingerprint, TLSCA: k.TLSCA,
	}}, k.Mirrors...)
	var out []address
	for i, m := range list {
		at := address{url: m.Repo, registry: ocistore.Options{Fingerprint: m.TLSFingerprint, Username: m.Username, Password: m.Password}}
		if m.TLSCA != "" {
			name := "kit-ca.pem"
			if i > 0 {
				name = fmt.Sprintf("kit-ca-%d.pem", i+1)
			}
			path := filepath.Join(stateDir, name)
			if err := os.MkdirAll(stateDir, 0o700); err != nil {
				return nil, fmt.Errorf("state directory: %w", err)
			}
			if err := os.WriteFile(path, []byte(m.TLSCA), 0o600); err != nil {
				return nil, fmt.Errorf("certificate of the kit: %w", err)
			}
			at.registry.CAFile = path
		}
		out = append(out, at)
	}
	return out, nil
}

// kitMirrors are the mirrors as a recovery kit keeps them.
func kitMirrors(ctx context.Context, list []address) ([]kit.Mirror, error) {
	var out []kit.Mirror
	for _, at := range list {
		one, err := kitMirror(ctx, at)
		if err != nil {
			return nil, err
		}
		out = append(out, one)
	}
	return out, nil
}

// kitMirror is one registry as a recovery kit keeps it.
func kitMirror(ctx context.Context, at address) (m kit.Mirror, err error) {
	m = kit.Mirror{Repo: location(at.url), Username: at.registry.Username, Password: at.registry.Password, TLSFingerprint: at.registry.Fingerprint}
	if m.Username == "" {
		if m.Username, m.Password, err = ocistore.StoredCredential(ctx, at.url); err != nil {
			return m, fmt.Errorf("registry login for the recovery kit: %w", err)
		}
	}
	if at.registry.CAFile != "" && at.registry.Fingerprint == "" {
		pem, err := os.ReadFile(at.registry.CAFile)
		if err != nil {
			return m, fmt.Errorf("certificate for the recovery kit: %w", err)
		}
		m.TLSCA = string(pem)
	}
	return m, nil
}

// primaryOnly reports whether the command looks after one registry: then what a
// mirror has must not hide what that one lacks.
func primaryOnly(cmd *cobra.Command) bool {
	for ; cmd != nil; cmd = cmd.Parent() {
		if cmd.GroupID == groupCare && cmd.Name() != "copy" {
			return true
		}
	}
	return false
}

// openStore opens the registry of the repository, with its mirrors behind it
// unless the command looks after one registry.
func (a *app) openStore(ctx context.Context, w *world) error {
	a.lastSource = w.src
	o := a.connection(w, w.src.registry)
	bound, err := newBound(w.src.limits)
	if err != nil {
		return err
	}
	st, err := ocistore.Open(ctx, w.src.url, o)
	if err != nil {
		return err
	}
	w.store = bound(st)
	if len(w.src.mirrors) == 0 || primaryOnly(a.cmd) {
		return nil
	}
	var copies []mirror.Copy
	for _, at := range append([]address{{w.src.url, w.src.registry}}, w.src.mirrors...) {
		o := a.connection(w, at.registry)
		o.DialTimeout, o.Attempts = mirroredDial, mirroredAttempts
		st, err := ocistore.Open(ctx, at.url, o)
		if err != nil {
			return err
		}
		copies = append(copies, mirror.Copy{Name: location(at.url), Store: bound(st)})
	}
	w.store = mirror.New(w.store, copies, mirror.Options{Logger: a.Log(), Notice: func(s string) { a.UI().Warn("%s", s) }})
	return nil
}

// connection is how a registry is spoken to.
func (a *app) connection(w *world, o ocistore.Options) ocistore.Options {
	o.Insecure, o.Meter, o.Logger = a.flags.insecure, w.meter, a.Log()
	o.Notice = func(s string) { a.UI().Note("%s", s) }
	return o
}

// newBound returns what puts stores under the configuration's rate limits, all
// of them together.
func newBound(l config.Limits) (func(store.Store) store.Store, error) {
	rate := max(l.Upload, l.Download)
	if l.Upload > 0 && l.Download > 0 {
		rate = min(l.Upload, l.Download)
	}
	if rate == 0 {
		return func(st store.Store) store.Store { return st }, nil
	}
	bound, err := limit.New(nil, limit.Options{BytesPerSecond: rate})
	if err != nil {
		return nil, err
	}
	return func(st store.Store) store.Store { return bound.Over(st) }, nil
}

// mirrorHint is what to run instead when the primary registry cannot take what
// has to be written.
func mirrorHint(src source) string {
	var urls []string
	for _, m := range src.mirrors {
		urls = append(urls, location(m.url))
	}
	if len(urls) == 0 {
		return ""
	}
	return "or, where it is lost for good, go on with a mirror in its place, at all sites: the same command with --repo " + strings.Join(urls, " or --repo ")
}

// noteMirrors says, after keys were changed, that mirrors do not know yet.
func (a *app) noteMirrors(w *world) {
	for _, m := range w.src.mirrors {
		a.UI().Note("the mirror has the keys of before; bring it up to date: lifeboat copy --mirror --to %s", location(m.url))
	}
}
