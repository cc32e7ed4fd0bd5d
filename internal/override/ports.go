package override

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// binding is one entry of HostConfig.PortBindings.
type binding struct {
	container     *container
	port          string // "80/tcp"
	entry         object
	containerPort uint16
	proto         string
	hostIP        netip.Addr
	hostPort      string // may be empty, "0" or a range
	key           *PortKey
}

func (b *binding) String() string { return published(b.entry) }

func published(entry object) string {
	ip, port := entry.text("HostIp"), cmp.Or(entry.text("HostPort"), "auto")
	if port == "0" {
		port = "auto"
	}
	if a, err := netip.ParseAddr(ip); err == nil && !a.IsUnspecified() {
		return hostPort(a, port)
	}
	return port
}

// ports moves published ports. Of several keys that select the same port the
// most particular one counts; keys that are equally particular contradict.
func (a *applier) ports() {
	if len(a.set.Ports) == 0 {
		return
	}
	bindings := a.bindings()
	for _, k := range slices.SortedFunc(maps.Keys(a.set.Ports), func(x, y PortKey) int { return cmp.Compare(x.String(), y.String()) }) {
		a.selectPorts(k, bindings)
	}
	for _, b := range bindings {
		if b.key != nil {
			a.publish(b, a.set.Ports[*b.key])
		}
	}
	for _, c := range a.containers {
		dropUnpublished(c)
	}
	a.checkPublished(bindings)
}

func (a *applier) bindings() []*binding {
	var out []*binding
	for _, c := range a.containers {
		all := c.hostConfig.child("PortBindings")
		for _, port := range sortedKeys(all) {
			number, proto, _ := strings.Cut(port, "/")
			n, _ := strconv.ParseUint(number, 10, 16)
			for _, e := range all.list(port) {
				entry, ok := e.(map[string]any)
				if !ok {
					continue
				}
				o := object(entry)
				ip, _ := netip.ParseAddr(o.text("HostIp"))
				out = append(out, &binding{
					container: c, port: port, entry: o, containerPort: uint16(n), proto: cmp.Or(proto, "tcp"),
					hostIP: ip, hostPort: o.text("HostPort"),
				})
			}
		}
	}
	return out
}

func (k PortKey) matches(b *binding) bool {
	return (k.HostIP == netip.Addr{} || k.HostIP == b.hostIP) &&
		(k.HostPort == 0 || strconv.Itoa(int(k.HostPort)) == b.hostPort) &&
		(k.ContainerPort == 0 || k.ContainerPort == b.containerPort) &&
		(k.Proto == "" || k.Proto == b.proto)
}

// weight counts what a key says: more is more particular.
func (k PortKey) weight() int {
	n := 0
	for _, said := range []bool{k.Container != "", k.HostIP.IsValid(), k.HostPort != 0, k.ContainerPort != 0, k.Proto != ""} {
		if said {
			n++
		}
	}
	return n
}

func (a *applier) selectPorts(k PortKey, bindings []*binding) {
	key := "ports." + k.String()
	var within []*container
	if k.Container != "" {
		if within = a.find(key, k.Container); within == nil {
			return
		}
	}
	found := false
	var have []string
	for _, b := range bindings {
		if within != nil && !slices.Contains(within, b.container) {
			continue
		}
		have = append(have, b.String()+":"+b.port)
		if !k.matches(b) {
			continue
		}
		found = true
		switch {
		case b.key == nil || b.key.weight() < k.weight():
			b.key = &k
		case b.key.weight() == k.weight() && a.set.Ports[*b.key] != a.set.Ports[k]:
			a.fail(key, "ports.%s selects port %s of container %s too and says otherwise; name the container, both ports and the protocol", b.key, b.port, b.container.name)
		}
	}
	if !found {
		what := "published are " + strings.Join(have, ", ")
		if have == nil {
			what = "none is published"
		}
		a.fail(key, "no published port is selected; %s", what)
	}
}

func (a *applier) publish(b *binding, t PortTarget) {
	from := b.String()
	field := "port " + b.port
	if t.None {
		b.entry[dropped] = true
		a.in(b.container, field, from, "not published")
		return
	}
	if t.HostIP.IsValid() {
		b.entry["HostIp"] = t.HostIP.String()
	}
	switch {
	case t.Auto:
		b.entry["HostPort"] = ""
	case t.HostPort != 0:
		b.entry["HostPort"] = strconv.Itoa(int(t.HostPort))
	}
	a.in(b.container, field, from, b.String())
}

// dropped marks a binding to be taken out; it never leaves the package.
const dropped = "\x00dropped"

func dropUnpublished(c *container) {
	all := c.hostConfig.child("PortBindings")
	for port := range all {
		kept := slices.DeleteFunc(slices.Clone(all.list(port)), func(e any) bool {
			m, _ := e.(map[string]any)
			return m[dropped] != nil
		})
		if len(kept) == 0 {
			delete(all, port)
		} else {
			all[port] = kept
		}
	}
}

// checkPublished finds two containers that would publish the same port after a
// change. What other systems hold is for the plan to find.
func (a *applier) checkPublished(bindings []*binding) {
	type place struct{ port, proto string }
	held := map[place][]*binding{}
	for _, b := range bindings {
		port := b.entry.text("HostPort")
		if b.entry[dropped] != nil || port == "" || port == "0" {
			continue
		}
		at := place{port, b.proto}
		for _, other := range held[at] {
			if (b.key != nil || other.key != nil) && sameAddress(b.entry.text("HostIp"), other.entry.text("HostIp")) {
				k := b.key
				if k == nil {
					k = other.key
				}
				a.fail("ports."+k.String(), "containers %s and %s would both publish port %s", other.container.name, b.container.name, fmt.Sprintf("%s/%s", port, b.proto))
			}
		}
		held[at] = append(held[at], b)
	}
}

func sameAddress(x, y string) bool {
	a, errA := netip.ParseAddr(x)
	b, errB := netip.ParseAddr(y)
	anyA, anyB := errA != nil || a.IsUnspecified(), errB != nil || b.IsUnspecified()
	if anyA || anyB {
		// 0.0.0.0 and [::1] do not meet; an empty address means both families.
		return errA != nil || errB != nil || a.Is4() == b.Is4()
	}
	return a == b
}
