package dr

import (
	"fmt"
	"regexp"
)

// System names what is protected, moved and brought back as one. It is part of
// tags, so it has no dots: [a-z0-9] then up to 62 of [a-z0-9_-], the last one
// alphanumeric.
type System string

// Site names a place with a container engine that can run systems. Same
// grammar as System.
type Site string

var nameRE = regexp.MustCompile(`^[a-z0-9]([a-z0-9_-]{0,61}[a-z0-9])?$`)

// ParseSystem checks s against the grammar of system names. The error wraps
// ErrUsage.
func ParseSystem(s string) (System, error) {
	if !nameRE.MatchString(s) {
		return "", fmt.Errorf("system name %q: want 1 to 63 of a-z, 0-9, _ and -, starting and ending with a letter or digit: %w", s, ErrUsage)
	}
	return System(s), nil
}

// ParseSite checks s against the grammar of site names. The error wraps
// ErrUsage.
func ParseSite(s string) (Site, error) {
	if !nameRE.MatchString(s) {
		return "", fmt.Errorf("site name %q: want 1 to 63 of a-z, 0-9, _ and -, starting and ending with a letter or digit: %w", s, ErrUsage)
	}
	return Site(s), nil
}
