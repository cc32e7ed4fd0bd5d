package engine

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/moby/client"

	"lifeboat/internal/dr"
	"lifeboat/internal/engine/compose"
)

// Inventory is everything that an engine has, as far as names, ports and
// address ranges go: what a plan compares with what it wants to create. Sorted
// by name.
type Inventory struct {
	Containers []InventoryContainer
	Networks   []InventoryNetwork
	Volumes    []InventoryVolume
}

// InventoryContainer is a container that exists, in any state.
type InventoryContainer struct {
	ID      string
	Name    string
	State   string
	Project string
	Image   string // name it was created with
	ImageID string
	Labels  map[string]string
	// Ports are the published ones, also of a container that does not run (then
	// those asked for).
	Ports []PublishedPort
	// HostNetwork containers have any port of the host.
	HostNetwork bool
}

// PublishedPort is a port of the host that leads to a container.
type PublishedPort struct {
	IP        netip.Addr // unspecified for all addresses
	Port      uint16     // 0 where the engine chooses
	Container uint16
	Proto     string // tcp, udp or sctp
}

// InventoryNetwork is a network that exists.
type InventoryNetwork struct {
	ID      string
	Name    string
	Driver  string
	Labels  map[string]string
	Subnets []netip.Prefix
}

// InventoryVolume is a volume that exists.
type InventoryVolume struct {
	Name   string
	Driver string
	Labels map[string]string
}

// Inventory lists what the engine has.
func (e *Engine) Inventory(ctx context.Context) (Inventory, error) {
	var inv Inventory
	all, err := e.listAll(ctx)
	if err != nil {
		return inv, err
	}
	for _, s := range all {
		in, err := e.inspect(ctx, s.ID)
		if errors.Is(err, dr.ErrNotFound) {
			continue
		}
		if err != nil {
			return inv, err
		}
		inv.Containers = append(inv.Containers, InventoryContainer{
			ID: in.ID, Name: in.name, State: string(in.State.Status), Project: in.Config.Labels[compose.LabelProject],
			Image: in.Config.Image, ImageID: in.Image, Labels: in.Config.Labels,
			Ports: publishedPorts(in), HostNetwork: in.HostConfig.NetworkMode.IsHost(),
		})
	}
	nets, err := e.cli.NetworkList(ctx, client.NetworkListOptions{})
	if err != nil {
		return inv, failed("list networks", err)
	}
	for _, n := range nets.Items {
		net := InventoryNetwork{ID: n.ID, Name: n.Name, Driver: n.Driver, Labels: n.Labels}
		for _, c := range n.IPAM.Config {
			if c.Subnet.IsValid() {
				net.Subnets = append(net.Subnets, c.Subnet.Masked())
			}
		}
		inv.Networks = append(inv.Networks, net)
	}
	vols, err := e.cli.VolumeList(ctx, client.VolumeListOptions{})
	if err != nil {
		return inv, failed("list volumes", err)
	}
	for _, v := range vols.Items {
		inv.Volumes = append(inv.Volumes, InventoryVolume{Name: v.Name, Driver: v.Driver, Labels: v.Labels})
	}
	slices.SortFunc(inv.Containers, func(a, b InventoryContainer) int { return strings.Compare(a.Name, b.Name) })
	slices.SortFunc(inv.Networks, func(a, b InventoryNetwork) int { return strings.Compare(a.Name, b.Name) })
	slices.SortFunc(inv.Volumes, func(a, b InventoryVolume) int { return strings.Compare(a.Name, b.Name) })
	return inv, nil
}

func publishedPorts(in inspected) []PublishedPort {
	bindings := in.HostConfig.PortBindings
	if in.State.Pid > 0 && in.NetworkSettings != nil && len(in.NetworkSettings.Ports) > 0 {
		bindings = in.NetworkSettings.Ports
	}
	var out []PublishedPort
	for port, list := range bindings {
		for _, b := range list {
			p := PublishedPort{IP: b.HostIP, Container: port.Num(), Proto: string(port.Proto())}
			if !p.IP.IsValid() {
				p.IP = netip.IPv4Unspecified()
			}
			n, err := strconv.ParseUint(b.HostPort, 10, 16)
			if err == nil {
				p.Port = uint16(n)
			}
			if !slices.Contains(out, p) {
				out = append(out, p)
			}
		}
	}
	slices.SortFunc(out, func(a, b PublishedPort) int {
		if a.Port != b.Port {
			return int(a.Port) - int(b.Port)
		}
		return strings.Compare(a.Proto+a.IP.String(), b.Proto+b.IP.String())
	})
	return out
}
