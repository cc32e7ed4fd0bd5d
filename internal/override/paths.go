package override

import (
	"slices"
	"strings"

	"lifeboat/internal/suggest"
)

// composePathLabels are Compose's labels that hold paths of the host; the
// first two may hold several, separated by commas.
var composePathLabels = [...]string{
	"com.docker.compose.project.config_files",
	"com.docker.compose.project.environment_file",
	"com.docker.compose.project.working_dir",
}

// paths moves host paths: of bind mounts, devices, volumes that are binds in
// disguise, and the project's files. A path in the set stands for itself and
// what lies below it; the longest one counts.
func (a *applier) paths() {
	if len(a.set.Paths) == 0 {
		return
	}
	m := &mover{paths: a.set.Paths, used: map[string]bool{}, seen: map[string]bool{}}
	for _, c := range a.containers {
		a.movePathsOf(c, m)
	}
	for i := range a.root.Volumes {
		v := &a.root.Volumes[i]
		if dev := v.Options["device"]; strings.HasPrefix(dev, "/") {
			v.Options["device"] = m.move(dev)
			a.change("volume:"+v.Name, "device", dev, v.Options["device"])
		}
	}
	for i := range a.root.Binds {
		b := &a.root.Binds[i]
		from := b.Source
		b.Source = m.move(from)
		a.change("bind:"+from, "path", from, b.Source)
	}
	for i := range a.root.Files {
		f := &a.root.Files[i]
		from := f.Path
		f.Path = m.move(from)
		a.change("file:"+from, "path", from, f.Path)
	}
	for _, p := range sortedKeys(a.set.Paths) {
		if !m.used[p] {
			a.fail("paths."+p, "the system uses no path of the host at or below it%s", suggest.Hint(p, sortedKeys(m.seen)))
		}
	}
}

func (a *applier) movePathsOf(c *container, m *mover) {
	binds := c.hostConfig.texts("Binds")
	for i, b := range binds {
		source, rest, _ := strings.Cut(b, ":")
		if strings.HasPrefix(source, "/") {
			binds[i] = m.move(source) + ":" + rest
			a.in(c, "mount "+rest, source, m.move(source))
		}
	}
	if binds != nil {
		c.hostConfig.setTexts("Binds", binds)
	}
	for _, e := range c.hostConfig.list("Mounts") {
		mount, _ := e.(map[string]any)
		if o := object(mount); o.text("Type") == "bind" {
			from := o.text("Source")
			o["Source"] = m.move(from)
			a.in(c, "mount "+o.text("Target"), from, o.text("Source"))
		}
	}
	for _, e := range c.hostConfig.list("Devices") {
		device, _ := e.(map[string]any)
		if o := object(device); o.text("PathOnHost") != "" {
			from := o.text("PathOnHost")
			o["PathOnHost"] = m.move(from)
			a.in(c, "device "+o.text("PathInContainer"), from, o.text("PathOnHost"))
		}
	}
	for i := range c.Mounts {
		if c.Mounts[i].Type == "bind" {
			c.Mounts[i].Source = m.move(c.Mounts[i].Source)
		}
	}
	labels := c.config.child("Labels")
	for _, name := range composePathLabels {
		if from := labels.text(name); from != "" {
			parts := strings.Split(from, ",")
			for i := range parts {
				parts[i] = m.move(parts[i])
			}
			labels[name] = strings.Join(parts, ",")
			a.in(c, "label "+name, from, labels.text(name))
		}
	}
}

// mover rewrites paths and remembers which overrides did anything.
type mover struct {
	paths      map[string]string
	used, seen map[string]bool
}

func (m *mover) move(p string) string {
	m.seen[p] = true
	best := ""
	for from := range m.paths {
		if (p == from || strings.HasPrefix(p, from+"/")) && len(from) > len(best) {
			best = from
		}
	}
	if best == "" {
		return p
	}
	m.used[best] = true
	to := m.paths[best]
	if rest := p[len(best):]; to != "/" || rest == "" {
		return to + rest
	} else {
		return rest
	}
}

// renameList rewrites the strings of a list through f and reports each change.
func (a *applier) renameList(c *container, key, field string, f func(string) string) {
	list := c.hostConfig.texts(key)
	before := slices.Clone(list)
	for i := range list {
		list[i] = f(list[i])
		a.in(c, field, before[i], list[i])
	}
	if !slices.Equal(before, list) {
		c.hostConfig.setTexts(key, list)
	}
}
