package override

import (
	"fmt"
	"maps"
	"path"
	"strings"
)

// Values of environment variables may stand in files, so that secrets need not
// be in a command line, where every user of the host sees them, or in the
// configuration: a value that begins with "@/" names the file. "@@/" stands for
// a value that begins so itself.

// fileOf is the file that a value names.
func fileOf(value string) (string, bool) {
	if p, ok := strings.CutPrefix(value, "@"); ok && strings.HasPrefix(p, "/") {
		return path.Clean(p), true
	}
	return "", false
}

// WithFiles returns the set with the values of environment variables that stand
// in files, as read gives them. s is not changed. The error names the override.
func (s Set) WithFiles(read func(path string) (string, error)) (Set, error) {
	s.Environment = maps.Clone(s.Environment)
	for v, value := range s.Environment {
		if value == nil {
			continue
		}
		if p, ok := fileOf(*value); ok {
			text, err := read(p)
			if err != nil {
				return Set{}, fmt.Errorf("overrides.environment.%s.%s: %w", v.Container, v.Name, err)
			}
			if strings.Contains(text, "\x00") {
				return Set{}, syntaxf("overrides.environment.%s.%s: %s has a NUL byte", v.Container, v.Name, p)
			}
			s.Environment[v] = &text
		} else if strings.HasPrefix(*value, "@@/") {
			plain := (*value)[1:]
			s.Environment[v] = &plain
		}
	}
	return s, nil
}
