package engine

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"

	"lifeboat/internal/dr"
	"lifeboat/internal/engine/compose"
	"lifeboat/internal/suggest"
)

// listAll lists the containers of the engine in every state.
func (e *Engine) listAll(ctx context.Context) ([]container.Summary, error) {
	res, err := e.cli.ContainerList(ctx, client.ContainerListOptions{All: true})
	if err != nil {
		return nil, failed("list containers", err)
	}
	return res.Items, nil
}

// listName is the name of a listed container: the one without a second slash,
// since legacy links add names of the form /other/alias.
func listName(s container.Summary) string {
	for _, n := range s.Names {
		if n = strings.TrimPrefix(n, "/"); n != "" && !strings.Contains(n, "/") {
			return n
		}
	}
	return s.ID
}

// choose picks the containers of a selector. The error of a name that does not
// exist wraps dr.ErrNotFound and offers near names; an empty selector wraps
// dr.ErrUsage.
func choose(all []container.Summary, sel Selector) ([]container.Summary, error) {
	if sel.Project == "" && len(sel.Containers) == 0 {
		return nil, fmt.Errorf("which containers: name a Compose project or containers: %w", dr.ErrUsage)
	}
	picked := map[string]container.Summary{}
	if sel.Project != "" {
		projects := map[string]bool{}
		for _, c := range all {
			p := c.Labels[compose.LabelProject]
			if p == "" || isHelper(c.Labels) {
				continue
			}
			projects[p] = true
			if p == sel.Project {
				picked[c.ID] = c
			}
		}
		if len(picked) == 0 {
			known := slices.Sorted(maps.Keys(projects))
			return nil, fmt.Errorf("project %q of Compose has no containers on this engine%s: %w", sel.Project, nearNames(sel.Project, "projects", known), dr.ErrNotFound)
		}
	}
	var missing []error // every one of them is told
	for _, want := range sel.Containers {
		c, err := find(all, want)
		if err != nil {
			missing = append(missing, err)
			continue
		}
		if isHelper(c.Labels) {
			return nil, fmt.Errorf("container %q is a helper of Lifeboat itself and cannot be part of a system: %w", want, dr.ErrUsage)
		}
		picked[c.ID] = c
	}
	switch len(missing) {
	case 0:
	case 1:
		return nil, missing[0]
	default:
		return nil, errors.Join(missing...)
	}
	out := slices.Collect(maps.Values(picked))
	slices.SortFunc(out, func(a, b container.Summary) int { return strings.Compare(listName(a), listName(b)) })
	return out, nil
}

// nearNames is the part of a not-found message that helps.
func nearNames(word, what string, known []string) string {
	if near := suggest.Closest(word, known); near != "" {
		return fmt.Sprintf("; did you mean %q?", near)
	}
	if len(known) == 0 {
		return "; it has no " + what
	}
	if len(known) > 8 {
		known = append(slices.Clone(known[:8]), "…")
	}
	return fmt.Sprintf("; it has the %s %s", what, strings.Join(known, ", "))
}

// find resolves a name, an id or a prefix of an id.
func find(all []container.Summary, want string) (container.Summary, error) {
	want = strings.TrimPrefix(want, "/")
	var byPrefix []container.Summary
	names := make([]string, 0, len(all))
	for _, c := range all {
		if listName(c) == want || c.ID == want {
			return c, nil
		}
		if len(want) >= 4 && strings.HasPrefix(c.ID, want) {
			byPrefix = append(byPrefix, c)
		}
		names = append(names, listName(c))
	}
	switch len(byPrefix) {
	case 1:
		return byPrefix[0], nil
	case 0:
		slices.Sort(names)
		return container.Summary{}, fmt.Errorf("container %q does not exist on this engine%s: %w", want, nearNames(want, "containers", names), dr.ErrNotFound)
	}
	return container.Summary{}, fmt.Errorf("container %q: %d ids begin so; give more digits: %w", want, len(byPrefix), dr.ErrUsage)
}

func isHelper(labels map[string]string) bool {
	_, ok := labels[LabelHelper]
	return ok
}
