package freeze

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// What a container does for Lifeboat that keeps it from being frozen.
type What string

// The things that Lifeboat depends on while a freeze lasts or to get out of it.
const (
	WhatSelf     What = "runs Lifeboat"
	WhatEngine   What = "serves the container engine's endpoint"
	WhatResolver What = "resolves names"
	WhatRegistry What = "serves the registry"
	WhatRoute    What = "is on the route to the registry"
	WhatMount    What = "serves a walked mount"
)

// Reason is one reason why one container must not be frozen.
type Reason struct {
	Container Container
	What      What
	// Why is the evidence: the address, process, interface or mount.
	Why string
}

// String is the reason as a sentence.
func (r Reason) String() string {
	return fmt.Sprintf("container %s %s: %s", r.Container, r.What, r.Why)
}

// RefuseError makes one error of reasons, nil if there are none. It wraps
// ErrForbidden.
func RefuseError(reasons []Reason) error {
	if len(reasons) == 0 {
		return nil
	}
	var lines []error
	for _, r := range reasons {
		lines = append(lines, errors.New(r.String()))
	}
	return fmt.Errorf("%w, Lifeboat would wait for what it has frozen; leave the container out of the system "+
		"or give Lifeboat another way: %w", ErrForbidden, errors.Join(lines...))
}

// Facts is what Refuse judges; GatherFacts collects it.
type Facts struct {
	// Containers are those that are to be frozen.
	Containers []ContainerFacts
	// Self is this process and its ancestors.
	Self []int
	// SelfContainers are the ids found in this process's own cgroups and mounts.
	SelfContainers []string
	// EngineServers are the processes at the other end of the engine's socket.
	EngineServers []int
	// Needs are the addresses that must keep answering.
	Needs []Need
	// Namespaces are the network namespaces of Lifeboat, of process 1 and of
	// the containers.
	Namespaces []Namespace
	// Forwards are Docker's userland proxies.
	Forwards []Forward
	// Routes lead to the registry.
	Routes []Route
	// Mounts are the walked mounts that a process serves.
	Mounts []ServedMount
	// Unknown says what could not be found out, for the coverage report.
	Unknown []string
}

// ContainerFacts is one container to be frozen.
type ContainerFacts struct {
	Container
	Pids []int // all processes in its cgroup
	// Published are the host's addresses that the engine leads to it.
	Published []Endpoint
}

// Endpoint is a transport address; Proto is "tcp" or "udp".
type Endpoint struct {
	Proto string
	Addr  netip.AddrPort
}

func (e Endpoint) String() string { return e.Proto + " " + e.Addr.String() }

// Need is an endpoint and what it is needed for.
type Need struct {
	Endpoint
	What What
	// For says it in words: "nameserver of /etc/resolv.conf", a host name.
	For string
}

// Namespace is a network namespace.
type Namespace struct {
	ID uint64 // inode
	// Own: Lifeboat runs in it, so its loopback addresses are the ones meant.
	Own bool
	// Host: it is process 1's, where engines publish ports.
	Host bool
	// Addrs are its local addresses, without loopback.
	Addrs []netip.Addr
	// Containers are the ids of the containers to be frozen that live in it.
	Containers []string
	Listeners  []Listener
}

// Listener is a bound socket and those of its processes that are in containers
// to be frozen.
type Listener struct {
	Endpoint
	Pids []int
}

// Forward is one Docker userland proxy.
type Forward struct {
	From Endpoint
	To   Endpoint
}

// Route is the first hop towards an address.
type Route struct {
	To        netip.Addr
	Gateway   netip.Addr // zero if the address is on a link
	Interface string
	// Servers are processes in containers to be frozen that hold the interface
	// open as a TUN device.
	Servers []int
}

// ServedMount is a walked mount that a process in user space serves.
type ServedMount struct {
	Path    string
	Type    string
	Servers []int // processes in containers to be frozen
}

// Refuse gives the reasons for which containers must not be frozen, sorted by
// container as given and then by what. It decides on facts alone, without I/O,
// and errs on the side of refusing where an address clearly leads into a
// container but its listener cannot be told.
func Refuse(f Facts) []Reason {
	r := refusal{facts: f, byPid: map[int]int{}}
	for i, c := range f.Containers {
		for _, p := range c.Pids {
			r.byPid[p] = i
		}
	}
	r.self()
	for _, p := range f.EngineServers {
		r.addPid(p, WhatEngine, fmt.Sprintf("process %d is at the other end of the engine's socket", p))
	}
	for _, n := range f.Needs {
		for _, i := range r.serving(n.Endpoint, 0) {
			r.add(i, n.What, fmt.Sprintf("%s (%s) leads there", n.Endpoint, n.For))
		}
	}
	r.routes()
	for _, m := range f.Mounts {
		for _, p := range m.Servers {
			r.addPid(p, WhatMount, fmt.Sprintf("process %d serves the %s mount %s", p, m.Type, m.Path))
		}
	}
	return r.sorted()
}

type refusal struct {
	facts   Facts
	byPid   map[int]int // process to index of container
	reasons []indexed
}

type indexed struct {
	container int
	Reason
}

func (r *refusal) add(i int, what What, why string) {
	for _, o := range r.reasons {
		if o.container == i && o.What == what && o.Why == why {
			return
		}
	}
	r.reasons = append(r.reasons, indexed{i, Reason{r.facts.Containers[i].Container, what, why}})
}

func (r *refusal) addPid(pid int, what What, why string) {
	if i, ok := r.byPid[pid]; ok {
		r.add(i, what, why)
	}
}

func (r *refusal) sorted() []Reason {
	slices.SortStableFunc(r.reasons, func(a, b indexed) int {
		if a.container != b.container {
			return a.container - b.container
		}
		return strings.Compare(string(a.What), string(b.What))
	})
	var out []Reason
	for _, x := range r.reasons {
		out = append(out, x.Reason)
	}
	return out
}

func (r *refusal) self() {
	for n, p := range r.facts.Self {
		if n == 0 {
			r.addPid(p, WhatSelf, fmt.Sprintf("this process, %d, is in it", p))
		} else {
			r.addPid(p, WhatSelf, fmt.Sprintf("process %d, which started this one, is in it", p))
		}
	}
	for _, id := range r.facts.SelfContainers {
		if i := r.index(id); i >= 0 {
			r.add(i, WhatSelf, "this process has its cgroup or its mounts")
		}
	}
}

func (r *refusal) index(id string) int {
	return slices.IndexFunc(r.facts.Containers, func(c ContainerFacts) bool { return c.ID == id })
}

func (r *refusal) routes() {
	for _, rt := range r.facts.Routes {
		for _, p := range rt.Servers {
			r.addPid(p, WhatRoute, fmt.Sprintf("process %d serves the interface %s towards %s", p, rt.Interface, rt.To))
		}
		for _, ns := range r.facts.Namespaces {
			if !rt.Gateway.IsValid() || ns.Own || ns.Host || !slices.Contains(ns.Addrs, rt.Gateway) {
				continue
			}
			for _, id := range ns.Containers {
				if i := r.index(id); i >= 0 {
					r.add(i, WhatRoute, fmt.Sprintf("%s, the gateway towards %s, is its address", rt.Gateway, rt.To))
				}
			}
		}
	}
}

// maxForwards bounds a chain of proxies.
const maxForwards = 4

// serving gives the indexes of the containers that an endpoint leads to.
func (r *refusal) serving(e Endpoint, depth int) []int {
	if depth > maxForwards {
		return nil
	}
	var found []int
	for _, ns := range r.facts.Namespaces {
		if !ns.has(e.Addr.Addr()) {
			continue
		}
		here := r.listening(ns, e)
		if ns.Host || ns.Own {
			here = append(here, r.published(e, depth)...)
		}
		if len(here) == 0 && !ns.Host && !ns.Own {
			// The address is a container's, whoever in it listens.
			for _, id := range ns.Containers {
				if i := r.index(id); i >= 0 {
					here = append(here, i)
				}
			}
		}
		found = append(found, here...)
	}
	slices.Sort(found)
	return slices.Compact(found)
}

func (r *refusal) listening(ns Namespace, e Endpoint) []int {
	var found []int
	for _, l := range ns.Listeners {
		if !l.accepts(e) {
			continue
		}
		for _, p := range l.Pids {
			if i, ok := r.byPid[p]; ok {
				found = append(found, i)
			}
		}
	}
	return found
}

func (r *refusal) published(e Endpoint, depth int) []int {
	var found []int
	for i, c := range r.facts.Containers {
		if slices.ContainsFunc(c.Published, func(p Endpoint) bool { return p.accepts(e) }) {
			found = append(found, i)
		}
	}
	for _, f := range r.facts.Forwards {
		if f.From.accepts(e) {
			found = append(found, r.serving(f.To, depth+1)...)
		}
	}
	return found
}

// has tells whether packets to an address, sent by Lifeboat, end in the
// namespace.
func (ns Namespace) has(a netip.Addr) bool {
	a = a.Unmap().WithZone("")
	if a.IsLoopback() || a.IsUnspecified() {
		return ns.Own
	}
	return slices.Contains(ns.Addrs, a)
}

// accepts tells whether a socket bound to l gets what is sent to e.
func (l Endpoint) accepts(e Endpoint) bool {
	if l.Proto != e.Proto || l.Addr.Port() != e.Addr.Port() {
		return false
	}
	bound, to := l.Addr.Addr().Unmap().WithZone(""), e.Addr.Addr().Unmap().WithZone("")
	return bound.IsUnspecified() && (bound.Is6() || to.Is4()) || bound == to
}
