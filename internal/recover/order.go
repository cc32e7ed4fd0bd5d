package recover

import (
	"encoding/json"
	"strings"

	"lifeboat/internal/dr"
)

// startOrder puts what others depend on first; a cycle is broken where it is
// entered. Names decide among equals, so the order is always the same.
func startOrder(cs []dr.Container) []dr.Container {
	return topological(cs, func(c dr.Container) []string {
		var names []string
		for _, d := range c.DependsOn {
			names = append(names, d.Container)
		}
		return append(names, references(c)...)
	})
}

// createOrder puts what others refer to in their configuration first.
func createOrder(cs []dr.Container) []dr.Container { return topological(cs, references) }

// references are containers whose namespaces or volumes a container uses.
func references(c dr.Container) []string {
	var host struct {
		NetworkMode, PidMode, IpcMode string
		VolumesFrom                   []string
		Links                         []string
	}
	if json.Unmarshal(c.HostConfig, &host) != nil {
		return nil // the engine will say what is wrong with it
	}
	var names []string
	for _, mode := range []string{host.NetworkMode, host.PidMode, host.IpcMode} {
		if name, ok := strings.CutPrefix(mode, "container:"); ok {
			names = append(names, name)
		}
	}
	for _, v := range append(host.VolumesFrom, host.Links...) {
		name, _, _ := strings.Cut(strings.TrimPrefix(v, "/"), ":")
		names = append(names, name)
	}
	return names
}

func topological(cs []dr.Container, before func(dr.Container) []string) []dr.Container {
	byName := map[string]dr.Container{}
	for _, c := range cs {
		byName[c.Name] = c
	}
	var out []dr.Container
	seen := map[string]bool{}
	var visit func(dr.Container)
	visit = func(c dr.Container) {
		if seen[c.Name] {
			return
		}
		seen[c.Name] = true
		for _, n := range before(c) {
			if dep, ok := byName[n]; ok {
				visit(dep)
			}
		}
		out = append(out, c)
	}
	for _, c := range cs {
		visit(c)
	}
	return out
}
