package engine

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/client"

	"lifeboat/internal/dr"
	"lifeboat/internal/engine/compose"
)

// NetworkSpec is the create request of a network, the form of dr.Network.Spec.
// Fields of engines that this code does not know are kept by the JSON form but
// not shown here; edit the JSON to change a spec.
type NetworkSpec struct {
	Name       string
	Driver     string
	Scope      string            `json:",omitempty"`
	EnableIPv4 *bool             `json:",omitempty"`
	EnableIPv6 *bool             `json:",omitempty"`
	IPAM       NetworkIPAM       `json:",omitzero"`
	Internal   bool              `json:",omitempty"`
	Attachable bool              `json:",omitempty"`
	Ingress    bool              `json:",omitempty"`
	ConfigOnly bool              `json:",omitempty"`
	ConfigFrom *NetworkFrom      `json:",omitempty"`
	Options    map[string]string `json:",omitempty"`
	Labels     map[string]string `json:",omitempty"`
}

// NetworkFrom names the network that holds the configuration of another.
type NetworkFrom struct{ Network string }

// NetworkIPAM is the address management of a network.
type NetworkIPAM struct {
	Driver  string            `json:",omitempty"`
	Options map[string]string `json:",omitempty"`
	Config  []NetworkPool     `json:",omitempty"`
}

// NetworkPool is one address range.
type NetworkPool struct {
	Subnet     string            `json:",omitempty"`
	IPRange    string            `json:",omitempty"`
	Gateway    string            `json:",omitempty"`
	AuxAddress map[string]string `json:"AuxiliaryAddresses,omitempty"`
}

// ParseNetworkSpec reads dr.Network.Spec.
func ParseNetworkSpec(raw json.RawMessage) (NetworkSpec, error) {
	var s NetworkSpec
	if err := json.Unmarshal(raw, &s); err != nil {
		return NetworkSpec{}, fmt.Errorf("network specification: %w", err)
	}
	return s, nil
}

// JSON is the form of dr.Network.Spec.
func (s NetworkSpec) JSON() json.RawMessage {
	b, err := json.Marshal(s)
	if err != nil {
		panic("engine: encode network specification: " + err.Error())
	}
	return b
}

// LooksAssigned reports whether the subnets look like ones that the engine took
// from its default pools because nobody asked for any: then another site may
// take others. It is a guess by range; Docker does not record which it was.
// Containers with static addresses on the network make it wrong to use.
func (s NetworkSpec) LooksAssigned() bool {
	for _, c := range s.IPAM.Config {
		p, err := netip.ParsePrefix(c.Subnet)
		if err != nil || c.IPRange != "" || len(c.AuxAddress) > 0 {
			return false
		}
		if !p.Addr().Is4() {
			return false
		}
		if gw, err := netip.ParseAddr(c.Gateway); c.Gateway != "" && (err != nil || gw != p.Masked().Addr().Next()) {
			return false
		}
		b := p.Addr().As4()
		pool16 := p.Bits() == 16 && b[0] == 172 && b[1] >= 17 && b[1] <= 31
		pool20 := p.Bits() == 20 && b[0] == 192 && b[1] == 168
		if !pool16 && !pool20 {
			return false
		}
	}
	return true
}

// Subnets are the address ranges of the specification that can be read.
func (s NetworkSpec) Subnets() []netip.Prefix {
	var out []netip.Prefix
	for _, c := range s.IPAM.Config {
		if p, err := netip.ParsePrefix(c.Subnet); err == nil {
			out = append(out, p.Masked())
		}
	}
	return out
}

// predefined are the networks that every engine has; "podman" is podman's default.
func predefined(name string) bool {
	switch name {
	case "bridge", "host", "none", "default", "podman", "docker_gwbridge", "ingress":
		return true
	}
	return false
}

// specFields are the fields of inspect that a create request takes.
var specFields = []string{"Name", "Driver", "EnableIPv4", "EnableIPv6", "IPAM", "Internal", "Attachable", "Ingress", "ConfigOnly", "ConfigFrom", "Options", "Labels"}

// inspectNetwork reads a network and the create request that would make it again.
func (e *Engine) inspectNetwork(ctx context.Context, nameOrID string) (network.Inspect, json.RawMessage, error) {
	res, err := e.cli.NetworkInspect(ctx, nameOrID, client.NetworkInspectOptions{})
	if err != nil {
		return network.Inspect{}, nil, failed("inspect network "+nameOrID, err)
	}
	full, err := parseObject(res.Raw)
	if err != nil {
		return network.Inspect{}, nil, fmt.Errorf("inspect network %s: %w", nameOrID, err)
	}
	spec := object{}
	for _, field := range specFields {
		if !full.empty(field) {
			spec[field] = full[field]
		}
	}
	// EnableIPv4 is on unless it was turned off.
	if string(full["EnableIPv4"]) == "false" {
		spec.set("EnableIPv4", false)
	}
	if s := full.text("Scope"); s != "" && s != "local" {
		spec.set("Scope", s)
	}
	normaliseIPAMPools(spec)
	if res.Network.ConfigFrom.Network == "" {
		delete(spec, "ConfigFrom")
	}
	return res.Network, spec.raw(), nil
}

func withoutOwnLabels(spec json.RawMessage) json.RawMessage {
	o, err := parseObject(spec)
	if err != nil {
		return spec // it is this package's own making
	}
	dropOwnLabels(o)
	if o.empty("Labels") {
		delete(o, "Labels")
	}
	return o.raw()
}

// normaliseIPAMPools takes the state of pools out of the configuration, and the
// prefix length that some engines show behind a gateway.
func normaliseIPAMPools(spec object) {
	var ipam object
	if _ = spec.read("IPAM", &ipam); len(ipam) == 0 {
		return
	}
	if ipam.empty("Options") {
		delete(ipam, "Options")
	}
	var pools []object
	_ = ipam.read("Config", &pools)
	for _, p := range pools {
		if gw, _, has := strings.Cut(p.text("Gateway"), "/"); has {
			p.set("Gateway", gw)
		}
		for field := range p {
			if p.empty(field) {
				delete(p, field)
			}
		}
	}
	if len(pools) > 0 {
		ipam.set("Config", pools)
	} else {
		delete(ipam, "Config")
	}
	spec.set("IPAM", ipam)
}

// discoverNetworks describes the user-defined networks that the containers are
// attached to, and those that the project made and nobody uses at the moment.
func (e *Engine) discoverNetworks(ctx context.Context, sel Selector, cs []inspected, inSystem map[string]bool) ([]Network, error) {
	want := map[string]bool{}
	for _, c := range cs {
		for name := range c.endpoints {
			if !predefined(name) {
				want[name] = true
			}
		}
	}
	res, err := e.cli.NetworkList(ctx, client.NetworkListOptions{})
	if err != nil {
		return nil, failed("list networks", err)
	}
	var out []Network
	for _, n := range res.Items {
		own := sel.Project != "" && n.Labels[compose.LabelProject] == sel.Project
		if !own && !want[n.Name] {
			continue
		}
		full, spec, err := e.inspectNetwork(ctx, n.ID)
		if err != nil {
			return nil, err
		}
		net := Network{Network: dr.Network{Name: n.Name, Spec: withoutOwnLabels(spec)}, ID: n.ID}
		// A project makes the networks that carry its label. Without a project
		// there is nobody else who would make them.
		net.External = sel.Project != "" && !own || full.Scope == "swarm"
		for _, c := range full.Containers {
			if !inSystem[c.Name] {
				net.UsedBy = append(net.UsedBy, c.Name)
			}
		}
		slices.Sort(net.UsedBy)
		out = append(out, net)
	}
	slices.SortFunc(out, func(a, b Network) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}
