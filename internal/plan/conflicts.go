package plan

import (
	"encoding/json"
	"fmt"
	"net/netip"
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
}

// Subnet is an address range of a network.
type Subnet struct {
	Prefix netip.Prefix
	By     string
}

// Wants is what bringing a system up takes from a site.
type Wants struct {
	Containers []string
	Ports      []Port
	Networks   []string
	Subnets    []Subnet
	Volumes    []string
	Binds      []string
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
}

// Conflict is something that stands in the way, with the override that solves it.
type Conflict struct {
	Object string `json:"object"`
	With   string `json:"with"`
	Solve  string `json:"solve"`
}

func (c Conflict) String() string {
	return fmt.Sprintf("%s: %s (%s)", c.Object, c.With, c.Solve)
}

// WantsOf reads what a root record takes from a site.
func WantsOf(root *dr.Root) (Wants, error) {
	var w Wants
	for _, c := range root.Containers {
		w.Containers = append(w.Containers, c.Name)
		ports, err := portsOf(c)
		if err != nil {
			return w, err
		}
		w.Ports = append(w.Ports, ports...)
	}
	for _, n := range root.Networks {
		if n.External {
			continue
		}
		w.Networks = append(w.Networks, n.Name)
		subnets, err := subnetsOf(n)
		if err != nil {
			return w, err
		}
		w.Subnets = append(w.Subnets, subnets...)
	}
	for _, v := range root.Volumes {
		w.Volumes = append(w.Volumes, v.Name)
	}
	for _, b := range root.Binds {
		if b.Tree != "" {
			w.Binds = append(w.Binds, b.Source)
		}
	}
	return w, nil
}

func portsOf(c dr.Container) ([]Port, error) {
	var host struct {
		NetworkMode  string
		PortBindings map[string][]struct{ HostIp, HostPort string }
	}
	if err := json.Unmarshal(c.HostConfig, &host); err != nil {
		return nil, fmt.Errorf("host configuration of container %s: %w", c.Name, err)
	}
	var ports []Port
	for spec, bindings := range host.PortBindings {
		_, proto, ok := strings.Cut(spec, "/")
		if !ok {
			proto = "tcp"
		}
		for _, b := range bindings {
			if b.HostPort == "" || b.HostPort == "0" {
				continue // the engine draws one
			}
			low, high, isRange := strings.Cut(b.HostPort, "-")
			if isRange && high != low {
				continue // the engine picks a free one of the range
			}
			n, err := strconv.ParseUint(low, 10, 16)
			if err != nil {
				return nil, fmt.Errorf("published port %q of container %s: %w", b.HostPort, c.Name, err)
			}
			p := Port{Proto: proto, Port: uint16(n), By: c.Name}
			if b.HostIp != "" {
				if p.IP, err = netip.ParseAddr(b.HostIp); err != nil {
					return nil, fmt.Errorf("published address of container %s: %w", c.Name, err)
				}
			}
			ports = append(ports, p)
		}
	}
	sort.Slice(ports, func(i, j int) bool { return ports[i].Port < ports[j].Port })
	return ports, nil
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

// Conflicts lists everything that stands in the way, sorted by object. Equal
// names that are the system's own are none.
func Conflicts(w Wants, t Taken) []Conflict {
	var out []Conflict
	add := func(object, with, solve string) {
		out = append(out, Conflict{Object: object, With: with, Solve: solve})
	}
	named := func(kind string, names []string, taken map[string]string, solve func(string) string) {
		for _, n := range names {
			if by, ok := taken[n]; ok && !t.Own[kind+":"+n] {
				add(kind+" "+n, by, solve(n))
			}
		}
	}
	named("container", w.Containers, t.Containers, func(n string) string { return "--override names.containers." + n + "=OTHER" })
	named("network", w.Networks, t.Networks, func(n string) string { return "--override networks." + n + ".name=OTHER" })
	named("volume", w.Volumes, t.Volumes, func(n string) string { return "--override names.volumes." + n + "=OTHER" })
	named("path", w.Binds, t.Binds, func(n string) string { return "--override paths." + n + "=/OTHER" })
	for _, p := range w.Ports {
		for _, q := range t.Ports {
			if t.Own["container:"+q.By] || !overlap(p, q) {
				continue
			}
			add(fmt.Sprintf("port %s of container %s", portName(p), p.By), "in use by "+q.By,
				fmt.Sprintf("--override ports.%d=OTHER", p.Port))
			break
		}
	}
	for _, s := range w.Subnets {
		for _, x := range t.Subnets {
			if !s.Prefix.Overlaps(x.Prefix) || t.Own["network:"+x.By] {
				continue
			}
			add(fmt.Sprintf("subnet %s of network %s", s.Prefix, s.By), fmt.Sprintf("overlaps %s of %s", x.Prefix, x.By),
				"--override networks."+s.By+".subnet=OTHER/"+strconv.Itoa(s.Prefix.Bits()))
			break
		}
	}
	sort.SliceStable(out, func(i, j int) bool { return out[i].Object < out[j].Object })
	return out
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
