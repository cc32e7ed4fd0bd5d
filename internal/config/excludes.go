package config

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"lifeboat/internal/dr"
)

// claimed finds that another system has what this one would: the file with both
// would not be read any more.
func claimed(c *Config, path string, name dr.System, s System) error {
	var list []string
	for _, other := range slices.Sorted(maps.Keys(c.Systems)) {
		if other == name {
			continue
		}
		o := c.Systems[other]
		if s.Project != "" && o.Project == s.Project {
			list = append(list, fmt.Sprintf("project %q to system %s", s.Project, other))
		}
		for _, ct := range s.Containers {
			if slices.Contains(o.Containers, ct) {
				list = append(list, fmt.Sprintf("container %q to system %s", ct, other))
			}
		}
	}
	if list == nil {
		return nil
	}
	return fmt.Errorf("one system holds a project or container, and in %s there belongs already: %s; take it out there first: %w", path, strings.Join(list, ", "), dr.ErrHeld)
}

// AddExcludes adds to what is not captured of a system that stands in the file,
// with the same care as AddSystem. What is excluded already is left alone.
// Errors wrap dr.ErrNotFound (there is no such system) or ErrCannotEdit, or are a
// *Problems of the file as it is.
func AddExcludes(path string, name dr.System, more []Exclude) (changed bool, err error) {
	return edit(path, func(c *Config, text []byte) ([]byte, error) {
		s, err := c.System(name)
		if err != nil {
			return nil, err
		}
		var add []string
		s.Exclude = slices.Clone(s.Exclude)
		for _, e := range more {
			if !slices.Contains(s.Exclude, e) {
				s.Exclude = append(s.Exclude, e)
				add = append(add, e.String())
			}
		}
		if add == nil {
			return text, nil
		}
		want := *c
		want.Systems = mapsWith(c.Systems, name, s)
		want.Systems[name] = s
		return insertExcludes(text, name, add, &want)
	})
}

// insertExcludes puts entries behind the list's last, or a list behind what says
// which containers make the system.
func insertExcludes(text []byte, name dr.System, add []string, want *Config) ([]byte, error) {
	root, err := parseNode(text)
	if err != nil {
		return nil, err
	}
	t := newLines(text)
	var tries [][]byte
	_, systems := find(root, "systems")
	_, sys := find(systems, string(name))
	if sys != nil && sys.Kind == yaml.MappingNode && sys.Style&yaml.FlowStyle == 0 {
		_, list := find(sys, "exclude")
		switch {
		case list == nil:
			entry, err := entryText("exclude", add, indentUnit(root), sys.Content[0].Column-1)
			if err != nil {
				return nil, err
			}
			for i := 0; i+1 < len(sys.Content); i += 2 {
				if k := sys.Content[i].Value; k == "project" || k == "containers" {
					tries = append(tries, t.insert(lastLine(sys.Content[i+1]), entry))
				}
			}
			tries = append(tries, t.insert(sys.Content[0].Line-1, entry))
		case list.Kind == yaml.SequenceNode && list.Style&yaml.FlowStyle == 0 && len(list.Content) > 0:
			entry, err := encodeNode(valueNode(add), indentUnit(root))
			if err != nil {
				return nil, err
			}
			lead := strings.Repeat(" ", list.Column-1)
			tries = append(tries, t.insert(lastLine(list), lead+strings.ReplaceAll(strings.TrimRight(entry, "\n"), "\n", "\n"+lead)+"\n"))
		}
	}
	for _, try := range tries {
		if got, err := Parse(want.Path, try); err == nil && sameConfig(got, want) {
			return try, nil
		}
	}
	entry, _ := entryText("exclude", add, 2, 0)
	return nil, byHand(want.Path, "(of system "+string(name)+")\n"+entry)
}

// lastLine is the number of the last line of a value, from 1.
func lastLine(n *yaml.Node) int {
	line := n.Line
	for _, c := range n.Content {
		line = max(line, lastLine(c))
	}
	return line
}
