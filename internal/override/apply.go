package override

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"lifeboat/internal/dr"
	"lifeboat/internal/suggest"
)

// object is the engine's JSON, with numbers kept as they were written.
type object map[string]any

// applier holds the copy that is being changed. Containers are looked up by
// their captured names: renaming comes last.
type applier struct {
	set        Set
	root       *dr.Root
	containers []*container // in the order of root.Containers
	specs      []object     // of root.Networks
	changes    []Change
	problems   []error
}

// container is one container with its JSON decoded.
type container struct {
	*dr.Container
	name       string // as captured
	config     object
	hostConfig object
	endpoints  map[string]object
	changed    bool
}

func clone(root *dr.Root) *dr.Root {
	r := *root
	r.Containers = slices.Clone(root.Containers)
	for i := range r.Containers {
		c := &r.Containers[i]
		c.Endpoints = maps.Clone(c.Endpoints)
		c.DependsOn = slices.Clone(c.DependsOn)
		c.Mounts = slices.Clone(c.Mounts)
	}
	r.Networks = slices.Clone(root.Networks)
	r.Volumes = slices.Clone(root.Volumes)
	for i := range r.Volumes {
		r.Volumes[i].Options = maps.Clone(r.Volumes[i].Options)
		r.Volumes[i].Labels = maps.Clone(r.Volumes[i].Labels)
	}
	r.Binds = slices.Clone(root.Binds)
	r.Files = slices.Clone(root.Files)
	return &r
}

func (a *applier) decode() error {
	for i := range a.root.Containers {
		rc := &a.root.Containers[i]
		c := &container{Container: rc, name: rc.Name, endpoints: map[string]object{}}
		var err error
		if c.config, err = decodeObject(rc.Config); err != nil {
			return fmt.Errorf("read config of container %s: %w", rc.Name, err)
		}
		if c.hostConfig, err = decodeObject(rc.HostConfig); err != nil {
			return fmt.Errorf("read host config of container %s: %w", rc.Name, err)
		}
		for name, raw := range rc.Endpoints {
			if c.endpoints[name], err = decodeObject(raw); err != nil {
				return fmt.Errorf("read endpoint %s of container %s: %w", name, rc.Name, err)
			}
		}
		a.containers = append(a.containers, c)
	}
	for _, n := range a.root.Networks {
		spec, err := decodeObject(n.Spec)
		if err != nil {
			return fmt.Errorf("read network %s: %w", n.Name, err)
		}
		a.specs = append(a.specs, spec)
	}
	return nil
}

// encode writes the JSON back where something was changed: what no override
// speaks of stays the same bytes.
func (a *applier) encode() error {
	for _, c := range a.containers {
		if !c.changed {
			continue
		}
		var err error
		if c.Config, err = encodeObject(c.config); err != nil {
			return fmt.Errorf("write config of container %s: %w", c.name, err)
		}
		if c.HostConfig, err = encodeObject(c.hostConfig); err != nil {
			return fmt.Errorf("write host config of container %s: %w", c.name, err)
		}
		if c.Endpoints != nil || len(c.endpoints) > 0 {
			c.Endpoints = make(map[string]json.RawMessage, len(c.endpoints))
		}
		for name, e := range c.endpoints {
			if c.Endpoints[name], err = encodeObject(e); err != nil {
				return fmt.Errorf("write endpoint %s of container %s: %w", name, c.name, err)
			}
		}
	}
	return nil
}

func decodeObject(raw json.RawMessage) (object, error) {
	if len(bytes.TrimSpace(raw)) == 0 {
		return object{}, nil
	}
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	var o object
	if err := d.Decode(&o); err != nil {
		return nil, err
	}
	if o == nil {
		o = object{}
	}
	return o, nil
}

func encodeObject(o object) (json.RawMessage, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(o); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

// Accessors that take any JSON for what it is: a wrong type reads as absent.

func (o object) child(key string) object {
	switch v := o[key].(type) {
	case map[string]any:
		return v
	case object:
		return v
	default:
		return nil
	}
}

func (o object) list(key string) []any { v, _ := o[key].([]any); return v }
func (o object) text(key string) string {
	v, _ := o[key].(string)
	return v
}

func (o object) number(key string) int64 {
	switch v := o[key].(type) {
	case json.Number:
		n, _ := v.Int64()
		return n
	case int64:
		return v
	default:
		return 0
	}
}

// texts returns the strings of a list, and sets them through put.
func (o object) texts(key string) []string {
	var out []string
	for _, v := range o.list(key) {
		if s, ok := v.(string); ok {
			out = append(out, s)
		}
	}
	return out
}

func (o object) setTexts(key string, list []string) {
	out := make([]any, len(list))
	for i, s := range list {
		out[i] = s
	}
	o[key] = out
}

func (a *applier) fail(key, format string, args ...any) {
	a.problems = append(a.problems, refusal{fmt.Errorf("overrides.%s: %s", key, fmt.Sprintf(format, args...)), dr.ErrUsage})
}

// change notes what was done; the caller has done it. Equal values are no
// change.
func (a *applier) change(object, field, from, to string) {
	if from != to {
		a.changes = append(a.changes, Change{object, field, from, to})
	}
}

// in notes a change of a container.
func (a *applier) in(c *container, field, from, to string) {
	if from != to {
		c.changed = true
		a.change("container:"+c.name, field, from, to)
	}
}

// sortChanges puts the changes into the order containers, networks, volumes,
// binds, files; of one object they stay in the order they were made.
func (a *applier) sortChanges() {
	rank := map[string]int{"project": 0, "container": 1, "network": 2, "volume": 3, "bind": 4, "file": 5}
	order := map[string]int{}
	for i, c := range a.containers {
		order["container:"+c.name] = i
	}
	slices.SortStableFunc(a.changes, func(x, y Change) int {
		kx, _, _ := strings.Cut(x.Object, ":")
		ky, _, _ := strings.Cut(y.Object, ":")
		return cmp.Or(cmp.Compare(rank[kx], rank[ky]), cmp.Compare(order[x.Object], order[y.Object]), cmp.Compare(x.Object, y.Object))
	})
}

// find returns the containers that a name means: the container of that name,
// else all of the service of that name, else, for "*", all. None is a problem.
func (a *applier) find(key, name string) []*container {
	var out []*container
	if name == "*" {
		return a.containers
	}
	var names []string
	for _, c := range a.containers {
		names = append(names, c.name)
		if c.Service != "" {
			names = append(names, c.Service)
		}
		if c.name == name {
			return []*container{c}
		}
		if c.Service == name {
			out = append(out, c)
		}
	}
	if out == nil {
		a.fail(key, "the system has no container or service %q%s", name, suggest.Hint(name, names))
	}
	return out
}

func (a *applier) environment() {
	for _, p := range (Set{Environment: a.set.Environment}).Pairs() {
		v := Variable{p.Path[1], p.Path[2]}
		key := "environment." + v.Container + "." + v.Name
		found := false
		targets := a.find(key, v.Container)
		for _, c := range targets {
			env := c.config.texts("Env")
			i := slices.IndexFunc(env, func(s string) bool { return s == v.Name || strings.HasPrefix(s, v.Name+"=") })
			found = found || i >= 0
			field := "environment " + v.Name
			switch {
			case p.Value == nil && i >= 0:
				env = slices.DeleteFunc(env, func(s string) bool { return s == v.Name || strings.HasPrefix(s, v.Name+"=") })
				a.in(c, field, "set", "removed")
			case p.Value == nil:
				continue
			case i >= 0 && env[i] == v.Name+"="+*p.Value:
				continue
			case i >= 0:
				env[i] = v.Name + "=" + *p.Value
				a.in(c, field, "set", "replaced")
			default:
				env = append(env, v.Name+"="+*p.Value)
				a.in(c, field, "", "added")
			}
			c.config.setTexts("Env", env)
		}
		if p.Value == nil && !found && len(targets) > 0 {
			var names []string
			for _, c := range targets {
				for _, s := range c.config.texts("Env") {
					n, _, _ := strings.Cut(s, "=")
					names = append(names, n)
				}
			}
			a.fail(key, "there is no variable %q to remove%s", v.Name, suggest.Hint(v.Name, names))
		}
	}
}
