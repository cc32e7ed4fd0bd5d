package engine

import (
	"slices"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"

	"lifeboat/internal/dr"
	"lifeboat/internal/engine/compose"
)

// references resolves what containers say about each other and about networks.
// Ids are of one engine; what is captured refers by name.
type references struct {
	all      []container.Summary
	inSystem map[string]bool // names
	networks map[string]string
}

func newReferences(all, selected []container.Summary, networks []network.Summary) *references {
	r := &references{all: all, inSystem: map[string]bool{}, networks: map[string]string{}}
	for _, c := range selected {
		r.inSystem[listName(c)] = true
	}
	for _, n := range networks {
		r.networks[n.ID] = n.Name
	}
	return r
}

// container gives the name of a container referred to by name or id, and
// whether it is part of the system.
func (r *references) container(ref string) (name string, inSystem bool) {
	c, err := find(r.all, ref)
	if err != nil {
		return strings.TrimPrefix(ref, "/"), false
	}
	return listName(c), r.inSystem[listName(c)]
}

// rewriteHostConfig replaces ids by names and returns the containers that this
// one needs: those whose namespaces or volumes it shares, and legacy links.
func (r *references) rewriteHostConfig(h object) (needs []string, notes []string) {
	need := func(what, ref string) string {
		name, ok := r.container(ref)
		if ok {
			needs = append(needs, name)
		} else {
			notes = append(notes, what+" of container "+name+", which is not part of the system")
		}
		return name
	}
	for _, f := range []struct{ field, what string }{
		{"NetworkMode", "it uses the network"}, {"PidMode", "it uses the processes"}, {"IpcMode", "it uses the shared memory"}, {"Cgroup", "it uses the cgroup"},
	} {
		mode := h.text(f.field)
		if ref, ok := strings.CutPrefix(mode, "container:"); ok {
			h.set(f.field, "container:"+need(f.what, ref))
		} else if f.field == "NetworkMode" && r.networks[mode] != "" {
			h.set(f.field, r.networks[mode])
		}
	}
	// What a container outside the system gave cannot be had from it elsewhere:
	// volumes are bound by name instead, links are left out.
	var from, keptFrom []string
	_ = h.read("VolumesFrom", &from)
	for _, v := range from {
		ref, mode, has := strings.Cut(v, ":")
		name, ok := r.container(ref)
		if !ok {
			continue
		}
		needs = append(needs, name)
		if has {
			name += ":" + mode
		}
		keptFrom = append(keptFrom, name)
	}
	if len(from) > 0 {
		h.set("VolumesFrom", keptFrom)
	}
	var links, keptLinks []string
	_ = h.read("Links", &links)
	for _, l := range links {
		ref, alias := splitLink(l)
		name, ok := r.container(ref)
		if !ok {
			notes = append(notes, "its link to container "+name+", which is not part of the system, is left out")
			continue
		}
		needs = append(needs, name)
		keptLinks = append(keptLinks, name+":"+alias)
	}
	if len(links) > 0 {
		h.set("Links", keptLinks)
	}
	return needs, notes
}

// inherits reports whether a mount comes by volumes_from, which from lists by
// name, from a container of the system.
func (r *references) inherits(from []string, m container.MountPoint) bool {
	for _, v := range from {
		ref, _, _ := strings.Cut(v, ":")
		c, err := find(r.all, ref)
		if err != nil {
			continue
		}
		for _, o := range c.Mounts {
			if o.Destination == m.Destination && o.Name == m.Name {
				return true
			}
		}
	}
	return false
}

// splitLink reads a link as it was asked for (name:alias) or as inspect shows
// it (/name:/self/alias).
func splitLink(l string) (ref, alias string) {
	ref, alias, has := strings.Cut(l, ":")
	ref = strings.TrimPrefix(ref, "/")
	if !has {
		return ref, ref
	}
	if i := strings.LastIndex(alias, "/"); i >= 0 {
		alias = alias[i+1:]
	}
	return ref, alias
}

// dependencies joins what Compose says of a service with what follows from
// shared namespaces, volumes and links. model is nil where the files were not read.
func dependencies(c dr.Container, l compose.Labels, isCompose bool, needs []string, model *compose.Model, byService map[string][]string) ([]dr.Dependency, error) {
	condition := map[string]string{}
	for _, n := range needs {
		condition[n] = compose.Started
	}
	var deps []compose.Dependency
	var err error
	switch {
	case !isCompose:
	case l.HasDependsOn:
		deps, err = compose.ParseDependsOn(l.DependsOn)
	case model != nil:
		deps = model.Services[l.Service].DependsOn
	}
	for _, d := range deps {
		for _, name := range byService[d.Service] {
			condition[name] = d.Condition
		}
	}
	delete(condition, c.Name)
	var out []dr.Dependency
	for name, cond := range condition {
		out = append(out, dr.Dependency{Container: name, Condition: cond})
	}
	slices.SortFunc(out, func(a, b dr.Dependency) int { return strings.Compare(a.Container, b.Container) })
	return out, err
}
