package plan

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"sort"
	"strconv"
	"strings"

	"lifeboat/internal/dr"
)

// Port is a published port: where the engine listens for a container.
type Port struct {
	Proto string     // tcp, udp, sctp
	IP    netip.Addr // unspecified: all addresses of the family; invalid: all
	Port  uint16
	By    string // who has it, or wants it
	// Key, of a port that is wanted, is what selects it under overrides.ports.
	Key string
}

// Subnet is an address range of a network.
type Subnet struct {
	Prefix netip.Prefix
	By     string
}

// Wanted is a name or path that the plan takes, and the captured one, which is
// what overrides speak of.
type Wanted struct{ Name, Captured string }

// Wants is what bringing a system up takes from a site.
type Wants struct {
	Containers []Wanted
	Ports      []Port
	Networks   []Wanted
	Subnets    []Subnet // By is the network's name
	// External are networks that the system uses and does not bring along.
	External []Wanted
	Volumes  []Wanted
	Binds    []Wanted
}

// Taken is what a site has already. Own holds the names that belong to the
// system itself at this site, as kind:name (docs/adr/0005, Ownership).
type Taken struct {
	Containers map[string]string // name to a word about it
	Ports      []Port
	Networks   map[string]string
	Subnets    []Subnet
	Volumes    map[string]string
	// Binds holds the wanted host paths that exist with other content than wanted.
	Binds map[string]string
	Own   map[string]bool
	// Routes are ranges that this host reaches elsewhere: no conflict, but nothing
	// to propose.
	Routes []netip.Prefix
	// PathExists says whether there is something at a host path; nil: nowhere.
	PathExists func(string) bool
}

// Conflict is something that stands in the way, with what solves it.
type Conflict struct {
	Object string `json:"object"`
	With   string `json:"with"`
	// Solve is what to do, for people.
	Solve string `json:"solve"`
	// Override is what --override takes to solve it, with values that are free
	// here; empty where no override does.
	Override string `json:"override,omitempty"`

	// Path and Value are that override before it is written down (package
	// override, Pair); Path is nil where none solves it.
	Path  []string `json:"-"`
	Value string   `json:"-"`
}

func (c Conflict) String() string {
	return fmt.Sprintf("%s: %s (%s)", c.Object, c.With, c.Solve)
}

// WantsOf reads what a root record takes from a site. local is captured under
// the site's overrides: the same objects in the same order.
func WantsOf(captured, local *dr.Root) (Wants, error) {
	var w Wants
	if len(captured.Containers) != len(local.Containers) || len(captured.Networks) != len(local.Networks) ||
		len(captured.Volumes) != len(local.Volumes) || len(captured.Binds) != len(local.Binds) {
		return w, fmt.Errorf("the system has other objects under the overrides than before")
	}
	for i, c := range local.Containers {
		w.Containers = append(w.Containers, Wanted{c.Name, captured.Containers[i].Name})
	}
	var err error
	if w.Ports, err = wantedPorts(captured, local); err != nil {
		return w, err
	}
	for i, n := range local.Networks {
		name := Wanted{n.Name, captured.Networks[i].Name}
		if n.External {
			w.External = append(w.External, name)
			continue
		}
		w.Networks = append(w.Networks, name)
		subnets, err := subnetsOf(n)
		if err != nil {
			return w, err
		}
		w.Subnets = append(w.Subnets, subnets...)
	}
	for i, v := range local.Volumes {
		w.Volumes = append(w.Volumes, Wanted{v.Name, captured.Volumes[i].Name})
	}
	for i, b := range local.Binds {
		if b.Tree != "" {
			w.Binds = append(w.Binds, Wanted{b.Source, captured.Binds[i].Source})
		}
	}
	return w, nil
}

// binding is one published port of a container, as the engine writes it.
type binding struct{ container, port, proto, ip, hostPort string }

func bindingsOf(c dr.Container) ([]binding, error) {
	var host struct {
		PortBindings map[string][]struct{ HostIp, HostPort string }
	}
	if err := json.Unmarshal(c.HostConfig, &host); err != nil {
		return nil, fmt.Errorf("host configuration of container %s: %w", c.Name, err)
	}
	var out []binding
	for spec, list := range host.PortBindings {
		port, proto, ok := strings.Cut(spec, "/")
		if !ok {
			proto = "tcp"
		}
		for _, b := range list {
			out = append(out, binding{c.Name, port, proto, b.HostIp, b.HostPort})
		}
	}
	slices.SortStableFunc(out, func(a, b binding) int { return strings.Compare(a.port+"/"+a.proto, b.port+"/"+b.proto) })
	return out, nil
}

// fixed is the one port of the host that is asked for; false where the engine
// draws one, or takes a free one of a range.
func (b binding) fixed() (uint16, bool, error) {
	if b.hostPort == "" || b.hostPort == "0" {
		return 0, false, nil
	}
	low, high, isRange := strings.Cut(b.hostPort, "-")
	if isRange && high != low {
		return 0, false, nil
	}
	n, err := strconv.ParseUint(low, 10, 16)
	if err != nil {
		return 0, false, fmt.Errorf("published port %q of container %s: %w", b.hostPort, b.container, err)
	}
	return uint16(n), true, nil
}

func wantedPorts(captured, local *dr.Root) ([]Port, error) {
	var ports []Port
	was := make([][]binding, len(captured.Containers))
	is := make([][]binding, len(captured.Containers))
	plain := true // no override has touched a port
	sharing := map[string][]binding{}
	for i := range captured.Containers {
		var err error
		if was[i], err = bindingsOf(captured.Containers[i]); err != nil {
			return nil, err
		}
		l := local.Containers[i]
		l.Name = captured.Containers[i].Name
		if is[i], err = bindingsOf(l); err != nil {
			return nil, err
		}
		plain = plain && slices.Equal(was[i], is[i])
		for _, b := range was[i] {
			b.ip = ""
			for _, k := range []string{b.hostPort, b.hostPort + "/" + b.proto} {
				if !slices.Contains(sharing[k], b) {
					sharing[k] = append(sharing[k], b)
				}
			}
		}
	}
	for i := range is {
		for at, b := range is[i] {
			n, ok, err := b.fixed()
			if err != nil {
				return nil, err
			}
			if !ok {
				continue
			}
			from := origin(was[i], is[i], at)
			p := Port{Proto: b.proto, Port: n, By: local.Containers[i].Name, Key: from.key()}
			if b.ip != "" {
				if p.IP, err = netip.ParseAddr(b.ip); err != nil {
					return nil, fmt.Errorf("published address of container %s: %w", p.By, err)
				}
			}
			for _, k := range []string{from.hostPort + "/" + from.proto, from.hostPort} { // as short as says the same
				if plain && len(sharing[k]) == 1 {
					p.Key = k
				}
			}
			ports = append(ports, p)
		}
	}
	sort.SliceStable(ports, func(i, j int) bool { return ports[i].Port < ports[j].Port })
	return ports, nil
}

// origin is the captured binding that became the local one. Overrides keep
// their order and leave out what is not published.
func origin(was, is []binding, at int) binding {
	same := func(list []binding) (out []binding) {
		for _, b := range list {
			if b.port == is[at].port && b.proto == is[at].proto {
				out = append(out, b)
			}
		}
		return out
	}
	before, now := same(was), same(is)
	if len(before) == 0 {
		return is[at]
	}
	if len(before) == len(now) {
		first := slices.IndexFunc(is, func(b binding) bool { return b.port == is[at].port && b.proto == is[at].proto })
		return before[at-first]
	}
	if i := slices.Index(before, is[at]); i >= 0 {
		return before[i]
	}
	return before[0]
}

// key selects the captured binding and no other (overrides.ports).
func (b binding) key() string {
	host := ""
	if ip, err := netip.ParseAddr(b.ip); err == nil && ip.Is6() {
		host = "[" + ip.String() + "]:"
	} else if err == nil {
		host = ip.String() + ":"
	}
	if n, ok, err := b.fixed(); err == nil && ok {
		host += strconv.Itoa(int(n))
	}
	return b.container + "/" + host + ":" + b.port + "/" + b.proto
}

func subnetsOf(n dr.Network) ([]Subnet, error) {
	var spec struct {
		IPAM *struct {
			Config []struct{ Subnet string }
		}
	}
	if err := json.Unmarshal(n.Spec, &spec); err != nil {
		return nil, fmt.Errorf("specification of network %s: %w", n.Name, err)
	}
	if spec.IPAM == nil {
		return nil, nil
	}
	var out []Subnet
	for _, c := range spec.IPAM.Config {
		if c.Subnet == "" {
			continue
		}
		p, err := netip.ParsePrefix(c.Subnet)
		if err != nil {
			return nil, fmt.Errorf("subnet of network %s: %w", n.Name, err)
		}
		out = append(out, Subnet{Prefix: p, By: n.Name})
	}
	return out, nil
}

// Conflicts lists everything that stands in the way, sorted by object, each with
// a value that is free here. Equal names that are the system's own are none.
func Conflicts(w Wants, t Taken) []Conflict {
	f := newFinder(w, t)
	f.named("container", w.Containers, t.Containers, func(n string) []string { return []string{"names", "containers", n} })
	f.named("network", w.Networks, t.Networks, func(n string) []string { return []string{"networks", n, "name"} })
	f.named("volume", w.Volumes, t.Volumes, func(n string) []string { return []string{"names", "volumes", n} })
	for _, n := range w.External {
		if _, ok := t.Networks[n.Name]; !ok {
			f.out = append(f.out, Conflict{
				Object: "network " + n.Name, With: "it is external to the system and does not exist here",
				Solve: "docker network create " + n.Name,
			})
		}
	}
	f.binds()
	f.findPorts()
	f.subnets()
	sort.SliceStable(f.out, func(i, j int) bool { return f.out[i].Object < f.out[j].Object })
	return f.out
}

func overlap(a, b Port) bool {
	if a.Proto != b.Proto || a.Port != b.Port {
		return false
	}
	any := func(p Port) bool { return !p.IP.IsValid() || p.IP.IsUnspecified() }
	if any(a) || any(b) {
		return !a.IP.IsValid() || !b.IP.IsValid() || a.IP.Is4() == b.IP.Is4()
	}
	return a.IP == b.IP
}

func portName(p Port) string {
	if p.IP.IsValid() {
		return fmt.Sprintf("%s/%s", netip.AddrPortFrom(p.IP, p.Port), p.Proto)
	}
	return fmt.Sprintf("%d/%s", p.Port, p.Proto)
}
