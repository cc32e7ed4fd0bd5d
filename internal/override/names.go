package override

import (
	"encoding/json"
	"slices"
	"strings"

	"lifeboat/internal/suggest"
)

const projectLabel = "com.docker.compose.project"

// names renames containers, project, volumes and networks, and everything that
// refers to them. A renamed container keeps its old name as an alias in its
// networks, because others of the system look it up by that name.
func (a *applier) names() {
	n := a.set.Names
	containers, volumes, networks := map[string]string{}, map[string]string{}, map[string]string{}
	for _, c := range a.containers {
		containers[c.name] = pick(n.Containers, c.name, n.Prefix)
	}
	for _, v := range a.root.Volumes {
		prefix := n.Prefix
		if v.Anonymous {
			prefix = ""
		}
		volumes[v.Name] = pick(n.Volumes, v.Name, prefix)
	}
	for _, nw := range a.root.Networks {
		networks[nw.Name] = a.networkName(nw.Name, nw.External)
	}
	a.checkRenames("names.containers.", "container", n.Containers, containers)
	a.checkRenames("names.volumes.", "volume", n.Volumes, volumes)
	a.checkRenames("networks.", "network", nil, networks)
	a.renameProject()
	for _, c := range a.containers {
		a.renameIn(c, containers, volumes, networks)
	}
	for i := range a.root.Volumes {
		v := &a.root.Volumes[i]
		old := v.Name
		v.Name = volumes[old]
		a.change("volume:"+old, "name", old, v.Name)
	}
	for i := range a.root.Networks {
		nw := &a.root.Networks[i]
		old := nw.Name
		if nw.Name = networks[old]; nw.Name == old {
			continue
		}
		a.change("network:"+old, "name", old, nw.Name)
		if a.specs[i]["Name"] != nil {
			a.specs[i]["Name"] = nw.Name
			a.putSpec(i)
		}
	}
}

func (a *applier) networkName(name string, external bool) string {
	n := a.set.Networks[name]
	switch {
	case n.Existing != "":
		return n.Existing
	case n.Name != "":
		return n.Name
	case external || predefined(name):
		return name
	default:
		return a.set.Names.Prefix + name
	}
}

// predefined networks are the engine's own; they have no aliases and no other
// name.
func predefined(network string) bool {
	return slices.Contains([]string{"bridge", "host", "none", "default"}, network)
}

func pick(explicit map[string]string, name, prefix string) string {
	if to, ok := explicit[name]; ok {
		return to
	}
	return prefix + name
}

func (a *applier) checkRenames(key, what string, explicit, all map[string]string) {
	for _, from := range sortedKeys(explicit) {
		if _, ok := all[from]; !ok {
			a.fail(key+from, "the system has no %s %q%s", what, from, suggest.Hint(from, sortedKeys(all)))
		}
	}
	from := map[string]string{}
	for _, old := range sortedKeys(all) {
		if other, ok := from[all[old]]; ok {
			if what == "network" && all[old] != old && all[other] != other {
				continue // two networks may be mapped to one of the site
			}
			a.fail(key+old, "%ss %s and %s would both be named %s", what, other, old, all[old])
		}
		from[all[old]] = old
	}
}

func (a *applier) renameProject() {
	n := a.set.Names
	if n.Project == "" && n.Prefix == "" {
		return
	}
	renamed := map[string]string{}
	rename := func(old string) string {
		if old == "" {
			return ""
		}
		renamed[old] = n.Project
		if n.Project == "" {
			renamed[old] = n.Prefix + old
		}
		return renamed[old]
	}
	for _, c := range a.containers {
		c.Project = rename(c.Project)
		if labels := c.config.child("Labels"); labels.text(projectLabel) != "" {
			labels[projectLabel] = rename(labels.text(projectLabel))
			c.changed = true
		}
	}
	for i := range a.root.Volumes {
		if labels := a.root.Volumes[i].Labels; labels[projectLabel] != "" {
			labels[projectLabel] = rename(labels[projectLabel])
		}
	}
	for i := range a.root.Networks {
		if labels := a.specs[i].child("Labels"); labels.text(projectLabel) != "" {
			labels[projectLabel] = rename(labels.text(projectLabel))
			a.putSpec(i)
		}
	}
	for _, old := range sortedKeys(renamed) {
		a.change("project:"+old, "name", old, renamed[old])
	}
	if len(renamed) == 0 && n.Project != "" {
		a.fail("names.project", "the system is no Compose project")
	}
}

// renameIn renames one container and its references to others.
func (a *applier) renameIn(c *container, containers, volumes, networks map[string]string) {
	to := func(m map[string]string, name string) string {
		if n, ok := m[name]; ok {
			return n
		}
		return name
	}
	c.Name = to(containers, c.name)
	a.in(c, "name", c.name, c.Name)
	for i := range c.DependsOn {
		c.DependsOn[i].Container = to(containers, c.DependsOn[i].Container)
	}
	for _, mode := range []string{"NetworkMode", "PidMode", "IpcMode"} {
		v := c.hostConfig.text(mode)
		renamed := v
		if name, ok := strings.CutPrefix(v, "container:"); ok {
			renamed = "container:" + to(containers, name)
		} else if mode == "NetworkMode" {
			renamed = to(networks, v)
		}
		if renamed != v {
			c.hostConfig[mode] = renamed
			c.changed = true
		}
	}
	a.renameList(c, "VolumesFrom", "volumes from", func(s string) string {
		name, mode, _ := strings.Cut(s, ":")
		return strings.TrimSuffix(to(containers, name)+":"+mode, ":")
	})
	a.renameList(c, "Links", "link", func(s string) string { return renameLink(s, c.name, containers) })
	a.renameList(c, "Binds", "mount", func(s string) string {
		source, rest, ok := strings.Cut(s, ":")
		if !ok || strings.HasPrefix(source, "/") {
			return s
		}
		return to(volumes, source) + ":" + rest
	})
	for _, e := range c.hostConfig.list("Mounts") {
		m, _ := e.(map[string]any)
		if o := object(m); o.text("Type") == "volume" && o.text("Source") != "" {
			from := o.text("Source")
			o["Source"] = to(volumes, from)
			a.in(c, "mount "+o.text("Target"), from, o.text("Source"))
		}
	}
	for i := range c.Mounts {
		if c.Mounts[i].Type == "volume" {
			c.Mounts[i].Name = to(volumes, c.Mounts[i].Name)
		}
	}
	a.renameEndpoints(c, containers, networks)
}

func (a *applier) renameEndpoints(c *container, containers, networks map[string]string) {
	renamed := make(map[string]object, len(c.endpoints))
	for _, old := range sortedKeys(c.endpoints) {
		e := c.endpoints[old]
		name, ok := networks[old]
		if !ok {
			name = old
		}
		if name != old {
			c.changed = true
			if _, twice := renamed[name]; twice {
				a.fail("networks."+old, "container %s would be attached to network %s twice", c.name, name)
			}
		}
		if links := e.texts("Links"); links != nil {
			for i := range links {
				links[i] = renameLink(links[i], c.name, containers)
			}
			e.setTexts("Links", links)
		}
		if c.Name != c.name && !predefined(name) {
			if aliases := e.texts("Aliases"); !slices.Contains(aliases, c.name) {
				e.setTexts("Aliases", append(aliases, c.name))
				a.in(c, "alias in "+name, "", c.name)
			}
		}
		renamed[name] = e
	}
	c.endpoints = renamed
	if c.changed && c.Endpoints == nil && len(renamed) > 0 {
		c.Endpoints = map[string]json.RawMessage{}
	}
}

// renameLink renames in "db:alias" and in inspect's form "/db:/web/alias".
func renameLink(s, self string, containers map[string]string) string {
	source, alias, ok := strings.Cut(s, ":")
	slash := ""
	if strings.HasPrefix(source, "/") {
		slash, source = "/", source[1:]
	}
	if n, known := containers[source]; known {
		source = n
	}
	if !ok {
		return slash + source
	}
	if rest, own := strings.CutPrefix(alias, "/"+self+"/"); own {
		alias = "/" + containers[self] + "/" + rest
	}
	return slash + source + ":" + alias
}
