package override

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"lifeboat/internal/quantity"
)

// String is the key in the grammar.
func (k PortKey) String() string {
	var b strings.Builder
	if k.Container != "" {
		b.WriteString(k.Container + "/")
	}
	if k.HostIP.IsValid() {
		b.WriteString(hostPort(k.HostIP, ""))
	}
	if k.HostPort != 0 {
		b.WriteString(strconv.Itoa(int(k.HostPort)))
	}
	if k.ContainerPort != 0 {
		b.WriteString(":" + strconv.Itoa(int(k.ContainerPort)))
	}
	if k.Proto != "" {
		b.WriteString("/" + k.Proto)
	}
	return b.String()
}

// String is the target in the grammar.
func (t PortTarget) String() string {
	switch {
	case t.None:
		return "none"
	case t.Auto && t.HostIP.IsValid():
		return hostPort(t.HostIP, "auto")
	case t.Auto:
		return "auto"
	case t.HostPort == 0:
		return t.HostIP.String()
	case t.HostIP.IsValid():
		return hostPort(t.HostIP, strconv.Itoa(int(t.HostPort)))
	default:
		return strconv.Itoa(int(t.HostPort))
	}
}

func hostPort(ip netip.Addr, port string) string {
	if ip.Is6() {
		return "[" + ip.String() + "]:" + port
	}
	return ip.String() + ":" + port
}

// Pairs lists the set in the grammar, sections in the order of Sections, names
// sorted. Putting all of them into an empty set gives an equal set.
func (s Set) Pairs() []Pair {
	var out []Pair
	add := func(value *string, path ...string) { out = append(out, Pair{path, value}) }
	text := func(v string, path ...string) { add(&v, path...) }
	for _, k := range slices.SortedFunc(maps.Keys(s.Ports), func(a, b PortKey) int { return cmp.Compare(a.String(), b.String()) }) {
		text(s.Ports[k].String(), "ports", k.String())
	}
	for _, k := range sortedKeys(s.Paths) {
		text(s.Paths[k], "paths", k)
	}
	for _, k := range slices.SortedFunc(maps.Keys(s.Environment), func(a, b Variable) int {
		return cmp.Or(cmp.Compare(a.Container, b.Container), cmp.Compare(a.Name, b.Name))
	}) {
		add(s.Environment[k], "environment", k.Container, k.Name)
	}
	for _, k := range sortedKeys(s.Networks) {
		n := s.Networks[k]
		if n.Name != "" {
			text(n.Name, "networks", k, "name")
		}
		if n.Existing != "" {
			text(n.Existing, "networks", k, "existing")
		}
		if n.Subnets != nil {
			text(join(n.Subnets), "networks", k, "subnet")
		}
		if n.Gateways != nil {
			text(join(n.Gateways), "networks", k, "gateway")
		}
	}
	for _, k := range sortedKeys(s.Limits) {
		l := s.Limits[k]
		limit := func(field string, n *int64, form func(int64) string) {
			if n != nil && *n == 0 {
				text("none", "limits", k, field)
			} else if n != nil {
				text(form(*n), "limits", k, field)
			}
		}
		limit("memory", l.Memory, quantity.ExactSize)
		limit("cpus", l.NanoCPUs, func(n int64) string { return strconv.FormatFloat(float64(n)/1e9, 'f', -1, 64) })
		limit("pids", l.PIDs, func(n int64) string { return strconv.FormatInt(n, 10) })
		if l.CPUSet != nil {
			text(cmp.Or(*l.CPUSet, "none"), "limits", k, "cpuset")
		}
	}
	if s.Names.Prefix != "" {
		text(s.Names.Prefix, "names", "prefix")
	}
	if s.Names.Project != "" {
		text(s.Names.Project, "names", "project")
	}
	for _, k := range sortedKeys(s.Names.Containers) {
		text(s.Names.Containers[k], "names", "containers", k)
	}
	for _, k := range sortedKeys(s.Names.Volumes) {
		text(s.Names.Volumes[k], "names", "volumes", k)
	}
	return out
}

// Flag is the pair as ParsePair reads it, KEY=VALUE; false where a name has a
// double quote, which that form cannot say (the configuration file can).
func (p Pair) Flag() (string, bool) {
	names := make([]string, len(p.Path))
	for i, n := range p.Path {
		if strings.Contains(n, `"`) {
			return "", false
		}
		if strings.Contains(n, "=") || i < len(p.Path)-1 && strings.Contains(n, ".") {
			n = `"` + n + `"`
		}
		names[i] = n
	}
	text := strings.Join(names, ".")
	if p.Value != nil {
		text += "=" + *p.Value
	}
	return text, true
}

func join[T fmt.Stringer](list []T) string {
	var out []string
	for _, v := range list {
		out = append(out, v.String())
	}
	return strings.Join(out, ", ")
}
