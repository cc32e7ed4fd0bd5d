package config

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"lifeboat/internal/override"
	"lifeboat/internal/retain"
)

// entryText writes one key with its value in block style, every line indented
// by column, deeper levels by unit.
func entryText(key string, value any, unit, column int) (string, error) {
	n := &yaml.Node{Kind: yaml.MappingNode}
	put(n, key, valueNode(value))
	text, err := encodeNode(n, unit)
	if err != nil {
		return "", err
	}
	if column == 0 {
		return text, nil
	}
	var b strings.Builder
	for line := range strings.SplitAfterSeq(text, "\n") {
		if strings.TrimSpace(line) != "" {
			b.WriteString(strings.Repeat(" ", column))
		}
		b.WriteString(line)
	}
	return b.String(), nil
}

func systemText(s System, unit int) (string, error) { return encodeNode(systemNode(s), unit) }

// flowText writes a key with its value on one line, to stand between braces.
// Strings are quoted, so that a JSON file stays one.
func flowText(key string, value any) (string, error) {
	n := &yaml.Node{Kind: yaml.MappingNode}
	put(n, key, valueNode(value))
	quoteAll(n)
	text, err := encodeNode(n, 2)
	if err != nil {
		return "", err
	}
	text = strings.TrimSpace(text)
	if strings.Contains(text, "\n") || !strings.HasPrefix(text, "{") || !strings.HasSuffix(text, "}") {
		return "", ErrCannotEdit
	}
	return text[1 : len(text)-1], nil
}

func quoteAll(n *yaml.Node) {
	switch n.Kind {
	case yaml.ScalarNode:
		if n.Tag == "!!str" {
			n.Style = yaml.DoubleQuotedStyle
		}
	default:
		n.Style = yaml.FlowStyle
	}
	for _, c := range n.Content {
		quoteAll(c)
	}
}

func encodeNode(n *yaml.Node, unit int) (string, error) {
	var b bytes.Buffer
	e := yaml.NewEncoder(&b)
	e.SetIndent(max(unit, 1))
	if err := e.Encode(n); err != nil {
		return "", fmt.Errorf("write configuration: %w", err)
	}
	if err := e.Close(); err != nil {
		return "", fmt.Errorf("write configuration: %w", err)
	}
	return b.String(), nil
}

func valueNode(value any) *yaml.Node {
	switch v := value.(type) {
	case System:
		return systemNode(v)
	case map[string]System: // one system
		n := &yaml.Node{Kind: yaml.MappingNode}
		for name, s := range v {
			put(n, name, systemNode(s))
		}
		return n
	case []string:
		l := &yaml.Node{Kind: yaml.SequenceNode}
		for _, text := range v {
			l.Content = append(l.Content, textNode(text))
		}
		return l
	case []map[string]string:
		l := &yaml.Node{Kind: yaml.SequenceNode}
		for _, one := range v {
			l.Content = append(l.Content, valueNode(one))
		}
		return l
	case map[string]string:
		n := &yaml.Node{Kind: yaml.MappingNode}
		for _, key := range slices.Sorted(maps.Keys(v)) {
			put(n, key, textNode(v[key]))
		}
		return n
	default:
		return textNode(fmt.Sprint(v))
	}
}

// textNode is a string. One of several lines is written in quotes on one line:
// the end of a block of lines depends on what comes after it.
func textNode(s string) *yaml.Node {
	n := &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: s}
	if strings.ContainsAny(s, "\n\r\u0085\u2028\u2029") {
		n.Style = yaml.DoubleQuotedStyle
	}
	return n
}

func put(n *yaml.Node, key string, value *yaml.Node) {
	n.Content = append(n.Content, textNode(key), value)
}

func systemNode(s System) *yaml.Node {
	n := &yaml.Node{Kind: yaml.MappingNode}
	if s.Project != "" {
		put(n, "project", textNode(s.Project))
	}
	list := func(key string, values []string) {
		if len(values) == 0 {
			return
		}
		l := &yaml.Node{Kind: yaml.SequenceNode}
		for _, v := range values {
			l.Content = append(l.Content, textNode(v))
		}
		put(n, key, l)
	}
	list("containers", s.Containers)
	var exclude []string
	for _, e := range s.Exclude {
		exclude = append(exclude, e.String())
	}
	list("exclude", exclude)
	if pairs := s.Overrides.Pairs(); len(pairs) > 0 {
		put(n, "overrides", overridesNode(pairs))
	}
	if !s.Keep.Empty() {
		put(n, "keep", keepNode(s.Keep))
	}
	return n
}

func keepNode(k retain.Policy) *yaml.Node {
	n := &yaml.Node{Kind: yaml.MappingNode}
	for _, c := range []struct {
		name  string
		count int
	}{{"last", k.Last}, {"hourly", k.Hourly}, {"daily", k.Daily}, {"weekly", k.Weekly}, {"monthly", k.Monthly}, {"yearly", k.Yearly}} {
		switch {
		case c.count == retain.Unlimited:
			put(n, c.name, textNode("unlimited"))
		case c.count != 0:
			put(n, c.name, &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!int", Value: strconv.Itoa(c.count)})
		}
	}
	if k.Within != (retain.Span{}) {
		put(n, "within", textNode(k.Within.String()))
	}
	return n
}

// overridesNode nests the paths of the pairs.
func overridesNode(pairs []override.Pair) *yaml.Node {
	root := &yaml.Node{Kind: yaml.MappingNode}
	for _, p := range pairs {
		at := root
		for _, name := range p.Path[:len(p.Path)-1] {
			_, next := find(at, name)
			if next == nil {
				next = &yaml.Node{Kind: yaml.MappingNode}
				put(at, name, next)
			}
			at = next
		}
		value := &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!null", Value: "null"}
		if p.Value != nil {
			value = textNode(*p.Value)
		}
		put(at, p.Path[len(p.Path)-1], value)
	}
	return root
}
