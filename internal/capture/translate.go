package capture

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"lifeboat/internal/dr"
	"lifeboat/internal/engine"
	"lifeboat/internal/site"
)

// Comparable is a container's description without what changes from run to run
// (id, state, restart policy, labels of Lifeboat's own), in a canonical form:
// equal bytes mean that nobody has configured the container anew.
func Comparable(c dr.Container) (json.RawMessage, error) {
	c.ID, c.State, c.ExitCode = "", "", 0
	c.Image = "" // engines with another image store name the same image otherwise
	var err error
	if c.Config, err = StripLabels(c.Config); err != nil {
		return nil, fmt.Errorf("container %s: %w", c.Name, err)
	}
	if c.HostConfig, err = edit(c.HostConfig, func(m map[string]any) { delete(m, "RestartPolicy") }); err != nil {
		return nil, fmt.Errorf("container %s: %w", c.Name, err)
	}
	for name, raw := range c.Endpoints {
		if c.Endpoints[name], err = edit(raw, func(map[string]any) {}); err != nil {
			return nil, fmt.Errorf("container %s, network %s: %w", c.Name, name, err)
		}
	}
	c.DependsOn = nil // comes from files, not from the engine
	return json.Marshal(c)
}

// StripLabels takes Lifeboat's own labels out of a container configuration.
func StripLabels(config json.RawMessage) (json.RawMessage, error) {
	return edit(config, func(m map[string]any) {
		labels, _ := m["Labels"].(map[string]any)
		for k := range labels {
			if strings.HasPrefix(k, "dev.lifeboat.") {
				delete(labels, k)
			}
		}
	})
}

// SameJSON compares two JSON objects whatever their spacing and the order of
// their keys.
func SameJSON(a, b json.RawMessage) bool {
	nothing := func(map[string]any) {}
	x, errX := edit(a, nothing)
	y, errY := edit(b, nothing)
	return errX == nil && errY == nil && bytes.Equal(x, y)
}

// edit changes a JSON object, keeping numbers as they are written; the result
// has sorted keys.
func edit(raw json.RawMessage, f func(map[string]any)) (json.RawMessage, error) {
	if len(raw) == 0 {
		return raw, nil
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.UseNumber()
	var m map[string]any
	if err := dec.Decode(&m); err != nil {
		return nil, fmt.Errorf("engine's JSON: %w", err)
	}
	f(m)
	return json.Marshal(m)
}

// original is the system as it is recorded: what was brought up here under
// overrides and was not changed since is described as it was captured, so that
// a stand-in's overrides stay at the stand-in.
type original struct {
	containers []dr.Container
	networks   []dr.Network
	volumes    []dr.Volume
	binds      []dr.Bind
	coverage   []dr.CoverageItem
	// keys maps tree keys of this site to recorded ones; equal ones are left out.
	keys map[string]string
}

func translate(sys *engine.System, b *site.Bringup) (*original, error) {
	o := &original{keys: map[string]string{}, coverage: slices.Clone(sys.Coverage)}
	if b == nil {
		b = &site.Bringup{}
	}
	for _, c := range sys.Containers {
		oc, err := o.container(c.Container, b)
		if err != nil {
			return nil, err
		}
		o.containers = append(o.containers, oc)
	}
	for _, n := range sys.Networks {
		o.networks = append(o.networks, o.network(n.Network, b))
	}
	for _, v := range sys.Volumes {
		v := v.Volume
		if name, ok := b.Volumes[v.Name]; ok && name != v.Name {
			o.rename("volume:"+v.Name, "volume:"+name)
			v.Name = name
		}
		v.Tree = o.key(v.Tree)
		o.volumes = append(o.volumes, v)
	}
	for _, m := range sys.Binds {
		m := m.Bind
		if path, ok := b.Binds[m.Source]; ok && path != m.Source {
			o.rename("bind:"+m.Source, "bind:"+path)
			m.Source = path
		}
		m.Tree = o.key(m.Tree)
		o.binds = append(o.binds, m)
	}
	return o, nil
}

func (o *original) rename(from, to string) { o.keys[from] = to }

func (o *original) key(k string) string {
	if to, ok := o.keys[k]; ok {
		return to
	}
	return k
}

func (o *original) container(c dr.Container, b *site.Bringup) (dr.Container, error) {
	now, err := Comparable(c)
	if err != nil {
		return c, err
	}
	was, ok := b.Containers[c.Name]
	if ok && SameJSON(now, was.Local) {
		back := was.Original
		if c.Layer != "" && back.Layer != c.Layer {
			o.rename(c.Layer, back.Layer)
		}
		back.ID, back.State, back.ExitCode, back.Image = c.ID, c.State, c.ExitCode, c.Image
		return back, nil
	}
	if c.Config, err = StripLabels(c.Config); err != nil {
		return c, err
	}
	if ok {
		o.coverage = append(o.coverage, dr.CoverageItem{
			Object: "container:" + c.Name, Captured: true, Bytes: -1,
			Reason: "was configured anew at this site after it was brought up (" + differing(was.Local, now) + "); recorded as it is here, overrides included",
		})
	}
	return c, nil
}

// differing names the fields in which two JSON objects differ, two levels deep.
func differing(a, b json.RawMessage) string {
	var names []string
	var walk func(prefix string, a, b json.RawMessage, depth int)
	walk = func(prefix string, a, b json.RawMessage, depth int) {
		var x, y map[string]json.RawMessage
		if depth == 0 || json.Unmarshal(a, &x) != nil || json.Unmarshal(b, &y) != nil {
			names = append(names, prefix)
			return
		}
		for k := range y {
			if _, ok := x[k]; !ok {
				x[k] = nil
			}
		}
		for _, k := range slices.Sorted(maps.Keys(x)) {
			if !bytes.Equal(x[k], y[k]) {
				walk(strings.TrimPrefix(prefix+"."+k, "."), x[k], y[k], depth-1)
			}
		}
	}
	walk("", a, b, 2)
	return strings.Join(names, ", ")
}

// asRunning describes a container as it was before it was stopped, so that it
// starts where the snapshot is brought up.
func asRunning(c dr.Container, policy engine.RestartPolicy) (dr.Container, error) {
	c.State, c.ExitCode = "running", 0
	host, err := edit(c.HostConfig, func(m map[string]any) { m["RestartPolicy"] = policy })
	if err != nil {
		return c, fmt.Errorf("container %s: %w", c.Name, err)
	}
	c.HostConfig = host
	return c, nil
}

func (o *original) network(n dr.Network, b *site.Bringup) dr.Network {
	if was, ok := b.Networks[n.Name]; ok && SameJSON(n.Spec, was.Local) {
		return was.Original
	}
	return n
}

// originalFiles puts project files that were brought up at another path back to
// where they were captured. A file that was added beside one of them since goes
// with it.
func originalFiles(files []dr.ProjectFile, b *site.Bringup) []dr.ProjectFile {
	if b == nil {
		return files
	}
	dirs := map[string]string{}
	for local, original := range b.Files {
		if filepath.Base(local) == filepath.Base(original) {
			dirs[filepath.Dir(local)] = filepath.Dir(original)
		}
	}
	out := slices.Clone(files)
	for i, f := range out {
		if original, ok := b.Files[f.Path]; ok {
			out[i].Path = original
		} else if dir, ok := dirs[filepath.Dir(f.Path)]; ok {
			out[i].Path = filepath.Join(dir, filepath.Base(f.Path))
		}
	}
	return out
}
