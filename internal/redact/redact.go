// Package redact takes secrets out of text before it reaches a log, an error
// or a terminal (invariant 9): user information in URLs, Authorization
// headers, age secret keys, signatures and tokens in query strings.
//
// It is the last line of defence. Code that handles secrets keeps them out of
// errors in the first place; what redact cannot recognise, such as a bare
// password, it cannot remove.
package redact

import (
	"context"
	"fmt"
	"log/slog"
	"regexp"
	"strings"
)

// Mark stands where a secret was.
const Mark = "***"

// rule is one kind of secret: groups of the match that the replacement names stay.
type rule struct {
	re   *regexp.Regexp
	with string
	// keep tells that a match is no secret; nil: none is.
	keep func(match string) bool
}

// rules is read-only after initialisation.
var rules = []rule{
	// scheme://user:password@host: the authority ends at / ? # or white space;
	// the last @ in it ends the user information. A name alone may be a token,
	// except with ssh.
	{regexp.MustCompile(`([A-Za-z][A-Za-z0-9+.-]*://)[^\s/?#"'<>]+@`), "${1}" + Mark + "@", sshUser},
	// Authorization: Basic …, Proxy-Authorization: …, also as printed by Go ([Bearer …])
	// or JSON, where the value may be quoted.
	{regexp.MustCompile(`(?i)(authorization["']?\s*[:=]\s*[\["']*)(?:(?:basic|bearer|digest|negotiate|aws4-hmac-sha256)\s+)?[^\s"'\]]+`), "${1}" + Mark, nil},
	{regexp.MustCompile(`(?i)(\b(?:basic|bearer)\s+)[A-Za-z0-9+/._~=-]{16,}`), "${1}" + Mark, nil},
	{regexp.MustCompile(`(?i)AGE-SECRET-KEY-(?:PQ-)?1[A-Z0-9]+`), Mark, nil},
	// Pre-signed URLs of object stores and tokens in query strings.
	{regexp.MustCompile(`(?i)([?&;](?:x-amz-(?:signature|credential|security-token)|x-goog-signature|signature|sig|temp_url_sig|token|access_token|refresh_token|password|passwd|secret|api_key|apikey)=)[^&\s"'<>]+`), "${1}" + Mark, nil},
	{regexp.MustCompile(`(?i)(["'](?:password|identitytoken|registrytoken|access_token|refresh_token|secret|auth)["']\s*:\s*["'])[^"']+`), "${1}" + Mark, nil},
	{regexp.MustCompile(`(?s)(-----BEGIN [A-Z ]*PRIVATE KEY-----).*?(-----END [A-Z ]*PRIVATE KEY-----|$)`), "${1}" + Mark + "${2}", nil},
}

// String returns s without the secrets that it recognises. It is idempotent
// and safe for concurrent use.
func String(s string) string {
	for _, r := range rules {
		if r.keep == nil {
			s = r.re.ReplaceAllString(s, r.with)
			continue
		}
		s = r.re.ReplaceAllStringFunc(s, func(m string) string {
			if r.keep(m) {
				return m
			}
			return r.re.ReplaceAllString(m, r.with)
		})
	}
	return s
}

// sshUser matches ssh://user@, which names a login and no secret.
func sshUser(match string) bool {
	user, ok := strings.CutPrefix(strings.ToLower(match), "ssh://")
	return ok && !strings.Contains(user, ":") && strings.Count(user, "@") == 1
}

// Error returns an error that prints redacted and still matches err by
// errors.Is and errors.As; nil for nil.
func Error(err error) error {
	if err == nil {
		return nil
	}
	if clean := String(err.Error()); clean != err.Error() {
		return redacted{clean, err}
	}
	return err
}

type redacted struct {
	text string
	err  error
}

func (r redacted) Error() string { return r.text }
func (r redacted) Unwrap() error { return r.err }

// Handler wraps a log handler so that messages and attributes come out
// redacted. Attributes of other kinds than text, error and fmt.Stringer pass
// unchanged, except those printed as text by the handler: these are formatted
// first.
func Handler(next slog.Handler) slog.Handler { return handler{next} }

type handler struct{ next slog.Handler }

func (h handler) Enabled(ctx context.Context, l slog.Level) bool { return h.next.Enabled(ctx, l) }

func (h handler) Handle(ctx context.Context, r slog.Record) error {
	clean := slog.NewRecord(r.Time, r.Level, String(r.Message), r.PC)
	r.Attrs(func(a slog.Attr) bool {
		clean.AddAttrs(attr(a))
		return true
	})
	return h.next.Handle(ctx, clean)
}

func (h handler) WithAttrs(as []slog.Attr) slog.Handler {
	clean := make([]slog.Attr, len(as))
	for i, a := range as {
		clean[i] = attr(a)
	}
	return handler{h.next.WithAttrs(clean)}
}

func (h handler) WithGroup(name string) slog.Handler { return handler{h.next.WithGroup(name)} }

func attr(a slog.Attr) slog.Attr {
	v := a.Value.Resolve()
	switch v.Kind() {
	case slog.KindString:
		return slog.String(a.Key, String(v.String()))
	case slog.KindGroup:
		var as []any
		for _, g := range v.Group() {
			as = append(as, attr(g))
		}
		return slog.Group(a.Key, as...)
	case slog.KindAny:
		switch x := v.Any().(type) {
		case nil:
			return a
		case error:
			return slog.String(a.Key, String(x.Error()))
		default:
			return slog.String(a.Key, String(fmt.Sprint(x)))
		}
	default:
		return slog.Attr{Key: a.Key, Value: v}
	}
}
