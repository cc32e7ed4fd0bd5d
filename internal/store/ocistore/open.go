// Package ocistore is a store.Store over the OCI distribution protocol, 1.1:
// one name in one registry, Lifeboat's own or any other.
//
// It adds to the protocol what a WAN needs: transfers that are given up when no
// byte moves (not when they take long), tries again with jittered delays,
// resumes reads where they were cut off, counts bytes on the wire. Bodies are
// bounded, an answer that only drips is given up, credentials never follow a redirect to another origin, and errors
// hold neither credentials nor the query of a URL.
//
// It does not encrypt, hash blobs or authenticate what it reads: callers do
// (docs/format.md, invariant 10). It speaks HTTP/1.1 only, on several
// connections: HTTP/2 would put all transfers into one connection whose flow
// control window limits a path with latency.
package ocistore

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"oras.land/oras-go/v2/registry"
	"oras.land/oras-go/v2/registry/remote/auth"
	"oras.land/oras-go/v2/registry/remote/credentials"

	"lifeboat/internal/dr"
	"lifeboat/internal/store"
	"lifeboat/internal/store/retry"
)

// Defaults of Options.
const (
	DefaultStallTimeout = 60 * time.Second
	DefaultAttempts     = 6
	// DefaultPatience is longer than a machine takes to boot.
	DefaultPatience = 5 * time.Minute
)

// Header is what Lifeboat's own registry puts on every response. HeaderImmutable
// is the word in it that promises atomic immutable tags, HeaderChecked the one
// that promises store.Capabilities.CheckedDelete, HeaderPrefix the one that says
// that a listing of tags takes the parameter prefix, HeaderFirst the one that says that
// reading a tag takes the parameter first (store.Remembering).
const (
	Header          = "Lifeboat-Registry"
	HeaderImmutable = "immutable-tags"
	HeaderChecked   = "checked-deletes"
	HeaderPrefix    = "tag-prefix"
	HeaderFirst     = "tag-first"
)

// Options says how to reach a registry. The zero value means: system roots,
// credentials of Docker's store, default times.
type Options struct {
	// Insecure allows plain HTTP (oci+http) to other than loopback addresses.
	Insecure bool
	// CAFile adds the PEM certificates in a file to the system's roots.
	CAFile string
	// Fingerprint pins the registry's certificate: "sha256:" and 64 hexadecimal
	// digits over the DER form of the leaf. Then names, dates and authorities do
	// not count, and no other certificate is accepted.
	Fingerprint string
	// Username and Password are used instead of Docker's credential store when
	// Username is not empty.
	Username, Password string
	// StallTimeout is how long no byte may move, in either direction, before a
	// transfer is given up and tried again. 0 means DefaultStallTimeout.
	StallTimeout time.Duration
	// DialTimeout bounds making a connection. 0 means 20 seconds.
	DialTimeout time.Duration
	// Attempts bounds how often a request is tried in all. 0 means
	// DefaultAttempts, 1 never again.
	Attempts int
	// Patience is for how long a registry that has answered before may be away
	// (retry.Options). 0 means DefaultPatience where Attempts is 0, too, else none.
	Patience time.Duration
	// Meter counts the bytes on the wire, if set.
	Meter *store.Meter
	// Logger is told about attempts that failed, at level debug. nil means silence.
	Logger *slog.Logger
	// Notice receives lines for the operator: that a transfer stalled or a registry
	// does not answer and is tried again, and that it goes on. May be nil.
	Notice func(string)
	// UserAgent is sent with each request. "" means "lifeboat".
	UserAgent string
}

// Open returns the store at rawURL: oci://host[:port]/name, or
// oci+http://host[:port]/name for plain HTTP, which is for loopback addresses
// only unless Options.Insecure. It does no network I/O; Capabilities does.
// Mistakes in rawURL and opts wrap dr.ErrUsage.
//
// Where Username is empty the credentials come from Docker's configuration
// (DOCKER_CONFIG, credential helpers included), anew for each process.
func Open(ctx context.Context, rawURL string, opts Options) (store.Store, error) {
	c, err := open(ctx, rawURL, opts)
	if err != nil {
		return nil, err
	}
	attempts, patience := opts.Attempts, opts.Patience
	if attempts == 0 {
		attempts = DefaultAttempts
		patience = cmp.Or(patience, DefaultPatience)
	}
	return retry.New(c, retry.Options{Attempts: attempts, Patience: patience, Logger: opts.Logger, Notice: opts.Notice}), nil
}

// client is the store without second tries.
type client struct {
	ref    registry.Reference
	base   string // scheme://host
	http   *auth.Client
	scoped func(context.Context) context.Context
	// immutable is set once the registry has announced immutable tags.
	immutable atomic.Bool
	// checked is set once it has announced checked deletions.
	checked atomic.Bool
	// prefixed is set once it has announced that it lists tags by their prefix.
	prefixed atomic.Bool
	// first is set once it has announced that it says what a tag was given first.
	first atomic.Bool
	stall time.Duration
}

var _ store.Remembering = (*client)(nil)

func open(ctx context.Context, rawURL string, opts Options) (*client, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	ref, plain, err := parseURL(rawURL, opts.Insecure)
	if err != nil {
		return nil, err
	}
	if plain && (opts.CAFile != "" || opts.Fingerprint != "") {
		return nil, fmt.Errorf("repository %s: a certificate authority or fingerprint is given, but oci+http has no certificates; use oci://: %w", rawURL, dr.ErrUsage)
	}
	if opts.StallTimeout == 0 {
		opts.StallTimeout = DefaultStallTimeout
	}
	if opts.StallTimeout < 0 || opts.Attempts < 0 {
		return nil, fmt.Errorf("repository %s: negative stall timeout or attempts: %w", rawURL, dr.ErrUsage)
	}
	c := &client{ref: ref, base: "https://" + ref.Host(), stall: opts.StallTimeout}
	if plain {
		c.base = "http://" + ref.Host()
	}
	tr, err := newTransport(c, ref.Host(), plain, opts)
	if err != nil {
		return nil, fmt.Errorf("repository %s: %w", rawURL, err)
	}
	agent := opts.UserAgent
	if agent == "" {
		agent = "lifeboat"
	}
	c.http = &auth.Client{
		Client:     &http.Client{Transport: tr},
		Header:     http.Header{"User-Agent": {agent}},
		Credential: credentialFunc(ref.Host(), opts),
		Cache:      auth.NewCache(),
	}
	c.scoped = func(ctx context.Context) context.Context {
		return auth.AppendRepositoryScope(ctx, c.ref, auth.ActionPull, auth.ActionPush)
	}
	return c, nil
}

// parseURL takes a repository's URL apart; plain says that it is oci+http.
func parseURL(rawURL string, insecure bool) (ref registry.Reference, plain bool, err error) {
	bad := func(why string) error {
		return fmt.Errorf("repository %q: %s; want oci://host[:port]/name, or oci+http://… on loopback: %w", redact(rawURL), why, dr.ErrUsage)
	}
	u, err := url.Parse(rawURL)
	if err != nil {
		return ref, false, bad("not a URL")
	}
	switch u.Scheme {
	case "oci":
	case "oci+http":
		plain = true
	default:
		return ref, false, bad("unknown scheme")
	}
	if u.User != nil {
		return ref, false, bad("credentials do not belong into a URL; use docker login")
	}
	if u.RawQuery != "" || u.Fragment != "" {
		return ref, false, bad("no query or fragment is allowed")
	}
	name := strings.Trim(u.Path, "/")
	if u.Host == "" || name == "" {
		return ref, false, bad("host or name is missing")
	}
	ref, err = registry.ParseReference(u.Host + "/" + name)
	if err != nil {
		return ref, false, bad("not a registry's host and name")
	}
	if ref.Reference != "" {
		return ref, false, bad("a tag or digest is not part of a repository's name")
	}
	if plain && !insecure && !isLoopback(u.Hostname()) {
		return ref, false, bad("plain HTTP to another host than this one sends credentials in the clear; allow it with --insecure")
	}
	return ref, plain, nil
}

// redact drops what may be a credential from a URL that is shown in an error.
func redact(rawURL string) string {
	scheme, rest, ok := strings.Cut(rawURL, "://")
	if !ok {
		scheme, rest = "", rawURL
	} else {
		scheme += "://"
	}
	if at := strings.LastIndexByte(rest, '@'); at >= 0 {
		rest = "…@" + rest[at+1:]
	}
	if q := strings.IndexByte(rest, '?'); q >= 0 {
		rest = rest[:q] + "?…"
	}
	return scheme + rest
}

func isLoopback(host string) bool {
	if host == "localhost" {
		return true
	}
	a, err := netip.ParseAddr(strings.Trim(host, "[]"))
	return err == nil && a.Unmap().IsLoopback()
}

// credentialFunc looks credentials up when the registry first asks for them.
func credentialFunc(host string, opts Options) auth.CredentialFunc {
	if opts.Username != "" {
		return auth.StaticCredential(host, auth.Credential{Username: opts.Username, Password: opts.Password})
	}
	lookup := sync.OnceValues(func() (auth.CredentialFunc, error) {
		st, err := credentials.NewStoreFromDocker(credentials.StoreOptions{})
		if err != nil {
			return nil, fmt.Errorf("read Docker's configuration for credentials: %w", err)
		}
		return credentials.Credential(st), nil
	})
	return func(ctx context.Context, hostport string) (auth.Credential, error) {
		f, err := lookup()
		if err != nil {
			return auth.EmptyCredential, err
		}
		return f(ctx, hostport)
	}
}

// Capabilities implements store.Store by the protocol's version check.
func (c *client) Capabilities(ctx context.Context) (store.Capabilities, error) {
	const what = "ask for the protocol version"
	resp, err := c.do(ctx, http.MethodGet, c.base+"/v2/", nil, nil)
	if err != nil {
		return store.Capabilities{}, c.fail(what, err)
	}
	defer drain(resp)
	if resp.StatusCode != http.StatusOK {
		return store.Capabilities{}, c.fail(what, statusError(resp))
	}
	// Who keeps tags immutable keeps what deleted ones named, too (docs/adr/0001).
	return store.Capabilities{ImmutableTags: c.immutable.Load(), CheckedDelete: c.checked.Load(), RetiredTags: c.immutable.Load()}, nil
}

// noteAnnouncement remembers what a response of the registry itself promises.
func (c *client) noteAnnouncement(h http.Header) {
	for _, w := range strings.Split(h.Get(Header), ";") {
		switch strings.TrimSpace(w) {
		case HeaderImmutable:
			c.immutable.Store(true)
		case HeaderChecked:
			c.checked.Store(true)
		case HeaderPrefix:
			c.prefixed.Store(true)
		case HeaderFirst:
			c.first.Store(true)
		}
	}
}

// url returns the address of something in this name.
func (c *client) url(kind, ref string) string {
	return c.base + "/v2/" + c.ref.Repository + "/" + kind + "/" + ref
}

// fail adds the host and what was being done.
func (c *client) fail(what string, err error) error {
	return fmt.Errorf("registry %s: %s: %w", c.ref.Registry, what, err)
}

// do sends one request with authentication. The error is classified: it wraps
// store.ErrUnreachable or is the context's.
func (c *client) do(ctx context.Context, method, addr string, header http.Header, body *source) (*http.Response, error) {
	req, err := http.NewRequestWithContext(c.scoped(ctx), method, addr, nil)
	if err != nil {
		return nil, errors.New("the registry gave an address that cannot be used")
	}
	for k, v := range header {
		req.Header[k] = v
	}
	if body != nil {
		if err := body.attach(req); err != nil {
			return nil, err
		}
	}
	resp, err := c.http.Do(req)
	if err != nil {
		if body != nil && body.failure() != nil {
			return nil, body.failure()
		}
		return nil, transportError(ctx, err)
	}
	resp.Body = newPacedBody(resp.Body, c.stall)
	return resp, nil
}

// withDelete asks a token service for the right to delete, too.
func withDelete(ctx context.Context, ref registry.Reference) context.Context {
	return auth.AppendRepositoryScope(ctx, ref, auth.ActionDelete)
}

// hostPort returns host:port of an address in lower case, with the port of the
// scheme where it is missing, so that origins can be compared.
func hostPort(u *url.URL) string {
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	return net.JoinHostPort(strings.ToLower(u.Hostname()), port)
}
