// Package override changes the description of a captured system to suit the
// site that brings it up: published ports, host paths, environment, networks,
// limits and names.
//
// A Set is what the operator asks for; it is read from the configuration file
// or from --override flags, in one grammar (Put, ParsePair). Apply rewrites a
// copy of the root record and lists each change for the plan. The engine's own
// JSON is edited as generic JSON: fields that Lifeboat does not know stay as
// they were captured.
//
// A Set always speaks of the names that were captured, whatever else it
// renames. What it names and the system does not have is an error: an override
// that does nothing is a mistake that would be found out on the bad day.
//
// The package is pure: it does no I/O and does not know what is free at the
// site; that is the plan's business.
package override

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"lifeboat/internal/dr"
)

// ErrSyntax: the key or the value of an override is not of the grammar. Errors
// that wrap it wrap dr.ErrUsage too.
var ErrSyntax = fmt.Errorf("bad override: %w", dr.ErrUsage)

// Set is all that is overridden. The zero value overrides nothing.
type Set struct {
	Ports       map[PortKey]PortTarget
	Paths       map[string]string // captured absolute host path → path at this site
	Environment map[Variable]*string
	Networks    map[string]Network // by captured name
	Limits      map[string]Limit   // by container or service name, or "*"
	Names       Names
}

// PortKey selects published ports of the captured system. Zero fields select
// any.
type PortKey struct {
	Container     string     // container or service name
	HostIP        netip.Addr // captured host address
	HostPort      uint16     // captured published port
	ContainerPort uint16
	Proto         string // tcp, udp, sctp
}

// PortTarget is where a published port goes.
type PortTarget struct {
	None     bool       // do not publish
	Auto     bool       // the engine chooses the port
	HostIP   netip.Addr // zero: as captured
	HostPort uint16     // zero: as captured, unless Auto
}

// Variable names an environment variable of a container or service ("*": of
// all). In Set.Environment nil removes it.
type Variable struct{ Container, Name string }

// Network is what changes of one network.
type Network struct {
	// Name renames the network. For one that is external to the system it names
	// the network of this site to use instead.
	Name string
	// Existing attaches the containers to a network of this site instead of
	// creating the captured one.
	Existing string
	// Subnets replace the captured ones of their address family, in order;
	// gateways, ranges and static addresses move along.
	Subnets []netip.Prefix
	// Gateways replace the captured ones of the subnets that contain them.
	Gateways []netip.Addr
}

// Limit is what changes of the resource limits of a container. Nil leaves a
// limit as captured, zero lifts it.
type Limit struct {
	Memory *int64 // bytes
	NanoCPUs,
	PIDs *int64
	CPUSet *string // such as 0-3; "" for any
}

// Names renames. Explicit names win over the prefix.
type Names struct {
	// Prefix is put before the names of containers, of the project, of volumes
	// and of networks that the system creates.
	Prefix     string
	Project    string            // new project name
	Containers map[string]string // captured → new
	Volumes    map[string]string // captured → new
}

// Change is one thing that Apply changed, for the plan.
type Change struct {
	Object string `json:"object"` // container:NAME, network:NAME, volume:NAME, bind:PATH, file:PATH: captured names
	Field  string `json:"field"`  // what of it
	// From and To are empty where there was or is nothing. Values of environment
	// variables are not told (invariant 9).
	From string `json:"from"`
	To   string `json:"to"`
}

// Empty reports whether the set overrides nothing.
func (s Set) Empty() bool {
	return len(s.Ports) == 0 && len(s.Paths) == 0 && len(s.Environment) == 0 && len(s.Networks) == 0 &&
		len(s.Limits) == 0 && s.Names.Prefix == "" && s.Names.Project == "" && len(s.Names.Containers) == 0 && len(s.Names.Volumes) == 0
}

// Merge returns s with everything that o says on top; where both speak of the
// same thing o wins, field by field. Neither is changed.
func (s Set) Merge(o Set) Set {
	out := Set{
		Ports:       merge(s.Ports, o.Ports),
		Paths:       merge(s.Paths, o.Paths),
		Environment: merge(s.Environment, o.Environment),
		Networks:    maps.Clone(s.Networks),
		Limits:      maps.Clone(s.Limits),
		Names: Names{
			Prefix:     or(o.Names.Prefix, s.Names.Prefix),
			Project:    or(o.Names.Project, s.Names.Project),
			Containers: merge(s.Names.Containers, o.Names.Containers),
			Volumes:    merge(s.Names.Volumes, o.Names.Volumes),
		},
	}
	for name, n := range o.Networks {
		old := out.Networks[name]
		n.Name, n.Existing = or(n.Name, old.Name), or(n.Existing, old.Existing)
		if n.Subnets == nil {
			n.Subnets = old.Subnets
		}
		if n.Gateways == nil {
			n.Gateways = old.Gateways
		}
		set(&out.Networks, name, n)
	}
	for name, l := range o.Limits {
		old := out.Limits[name]
		l.Memory, l.NanoCPUs, l.PIDs, l.CPUSet = orPtr(l.Memory, old.Memory), orPtr(l.NanoCPUs, old.NanoCPUs), orPtr(l.PIDs, old.PIDs), orPtr(l.CPUSet, old.CPUSet)
		set(&out.Limits, name, l)
	}
	return out
}

// Apply returns a copy of root with the set applied and the list of changes,
// in the order of root. Keys of trees stay the captured ones. The error lists
// every target that does not exist and every change that cannot be made, each
// with the key of its override; it wraps dr.ErrUsage. root is not changed.
func Apply(root *dr.Root, s Set) (*dr.Root, []Change, error) {
	a := &applier{set: s, root: clone(root)}
	if err := a.decode(); err != nil {
		return nil, nil, err
	}
	a.environment()
	a.limits()
	a.ports()
	a.paths()
	a.networks()
	a.names()
	if len(a.problems) > 0 {
		return nil, nil, errors.Join(a.problems...)
	}
	if err := a.encode(); err != nil {
		return nil, nil, err
	}
	a.sortChanges()
	return a.root, a.changes, nil
}

func merge[K comparable, V any](a, b map[K]V) map[K]V {
	if len(b) == 0 {
		return maps.Clone(a)
	}
	out := maps.Clone(a)
	if out == nil {
		out = make(map[K]V, len(b))
	}
	maps.Copy(out, b)
	return out
}

func set[K comparable, V any](m *map[K]V, k K, v V) {
	if *m == nil {
		*m = make(map[K]V)
	}
	(*m)[k] = v
}

func or(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

func orPtr[T any](a, b *T) *T {
	if a != nil {
		return a
	}
	return b
}

// sortedKeys gives the deterministic order in which overrides are applied.
func sortedKeys[K interface{ ~string }, V any](m map[K]V) []K { return slices.Sorted(maps.Keys(m)) }
