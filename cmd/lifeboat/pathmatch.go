package main

import (
	"context"
	"errors"
	"fmt"
	"path"
	"strings"

	"lifeboat/internal/catalog"
	"lifeboat/internal/dr"
)

// pathMatch is what --path says: a path with all below it, or a pattern. In a
// pattern * and ? stand for anything but a slash, [a-z] for one of several, ** as
// a whole component for any number of them; what is below a directory that fits
// belongs to it. Names may be given as lists print them (unescape).
type pathMatch struct {
	plain string
	parts []string // of a pattern
}

func newPathMatch(s string) (pathMatch, error) {
	s = unescape(plainPath(s))
	if !strings.ContainsAny(s, "*?[\\") {
		return pathMatch{plain: s}, nil
	}
	parts := strings.Split(s, "/")
	for _, p := range parts {
		if _, err := path.Match(p, ""); err != nil {
			return pathMatch{}, fmt.Errorf("--path %q: %w: %w", s, err, dr.ErrUsage)
		}
	}
	return pathMatch{parts: parts}, nil
}

// plainPath is a path as a catalog has it: ./sub and sub/ are sub.
func plainPath(s string) string {
	s = strings.Trim(s, "/")
	for s == "." || strings.HasPrefix(s, "./") {
		s = strings.TrimLeft(strings.TrimPrefix(s, "."), "/")
	}
	return s
}

// matchIn says what s means in a tree: the path that is there as it is written, or as
// a list prints it, else a pattern. The error wraps dr.ErrNotFound where it is neither, dr.ErrUsage for a
// pattern that is none.
func matchIn(ctx context.Context, target *catalog.Reader, s string) (pathMatch, error) {
	plain := plainPath(s)
	match, bad := newPathMatch(s)
	if plain == "" {
		return match, bad
	}
	_, err := target.Lookup(ctx, plain)
	if printed := unescape(plain); errors.Is(err, dr.ErrNotFound) && printed != plain {
		plain = printed
		_, err = target.Lookup(ctx, plain)
	}
	switch {
	case err == nil:
		return pathMatch{plain: plain}, nil
	case !errors.Is(err, dr.ErrNotFound):
		return match, err
	case bad == nil && match.isPattern():
		return match, nil
	case bad != nil:
		return match, bad
	}
	return match, err
}

// isPattern reports whether more than one path may be meant.
func (m pathMatch) isPattern() bool { return m.parts != nil }

// choose is fits of a pattern, nil for a plain path.
func (m pathMatch) choose() func(string) bool {
	if !m.isPattern() {
		return nil
	}
	return m.fits
}

// fits reports whether a path is meant, or lies below one that is.
func (m pathMatch) fits(p string) bool {
	if !m.isPattern() {
		return m.plain == "" || p == m.plain || catalog.Under(p, m.plain)
	}
	return p != "" && fitsParts(m.parts, strings.Split(p, "/"))
}

func fitsParts(pattern, p []string) bool {
	for len(pattern) > 0 {
		if pattern[0] == "**" {
			for i := range len(p) + 1 {
				if fitsParts(pattern[1:], p[i:]) && (len(pattern) > 1 || i < len(p)) {
					return true
				}
			}
			return false
		}
		if len(p) == 0 {
			return false
		}
		if ok, err := path.Match(pattern[0], p[0]); err != nil || !ok {
			return false
		}
		pattern, p = pattern[1:], p[1:]
	}
	return true // what is left of p is below
}
