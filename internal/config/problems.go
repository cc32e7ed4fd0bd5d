package config

import (
	"cmp"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"lifeboat/internal/dr"
	"lifeboat/internal/suggest"
)

// Problem is one mistake in the file.
type Problem struct {
	Path string // systems.shop.project; empty for the file as a whole
	Line int    // from 1; 0 where it is not known
	Text string
}

func (p Problem) String() string {
	var b strings.Builder
	if p.Path != "" {
		b.WriteString(p.Path + ": ")
	}
	if p.Line > 0 {
		fmt.Fprintf(&b, "line %d: ", p.Line)
	}
	return b.String() + p.Text
}

// Problems is every mistake of a file, in the order of their lines. It wraps
// dr.ErrUsage.
type Problems struct {
	File string
	List []Problem
}

// Error has one line for each problem when there are several.
func (p *Problems) Error() string {
	if len(p.List) == 1 {
		return "configuration " + p.File + ": " + p.List[0].String()
	}
	var b strings.Builder
	fmt.Fprintf(&b, "configuration %s has %d problems:", p.File, len(p.List))
	for _, one := range p.List {
		b.WriteString("\n  " + one.String())
	}
	return b.String()
}

// Unwrap makes a faulty configuration a usage error.
func (p *Problems) Unwrap() error { return dr.ErrUsage }

// Explain says what state things are in and what to do next.
func (p *Problems) Explain() (state string, next []string) {
	return "nothing was done", []string{"edit " + p.File + ", then run the same command again"}
}

func (p *Problems) sort() {
	slices.SortStableFunc(p.List, func(a, b Problem) int { return cmp.Compare(a.Line, b.Line) })
}

var plainKeyRE = regexp.MustCompile(`^[A-Za-z0-9_*-]+$`)

// joinPath appends a key to a path: a.b, or a["b.c"] where b.c is not plain.
func joinPath(path, key string) string {
	switch {
	case !plainKeyRE.MatchString(key):
		return path + "[" + strconv.Quote(key) + "]"
	case path == "":
		return key
	default:
		return path + "." + key
	}
}

func keys[K ~string, V any](m map[K]V) []string {
	var out []string
	for _, k := range slices.Sorted(maps.Keys(m)) {
		out = append(out, string(k))
	}
	return out
}

func notInFile(what, name string, have []string) error {
	if len(have) == 0 {
		return fmt.Errorf("%s %q: the configuration names no %s: %w", what, name, what, dr.ErrNotFound)
	}
	return fmt.Errorf("%s %q is not in the configuration%s; it has %s: %w", what, name, suggest.Hint(name, have), strings.Join(have, ", "), dr.ErrNotFound)
}
