package enginetest

import (
	"context"
	"encoding/json"
	"net/netip"
	"slices"
	"strings"
	"time"

	"lifeboat/internal/dr"
	"lifeboat/internal/engine"
)

func testNetwork(f *fixture) {
	ctx := f.Context()
	spec := m{
		"Name": "lbtest-net", "Driver": "bridge", "Labels": m{"k": "v"},
		"IPAM":    m{"Driver": "default", "Config": []m{{"Subnet": "10.123.4.0/24", "Gateway": "10.123.4.9"}}},
		"Options": m{"com.docker.network.bridge.enable_icc": "true"},
	}
	id, err := f.e.CreateNetwork(ctx, f.raw(spec), map[string]string{engine.LabelSystem: "s"})
	f.ok("create", err)
	f.Cleanup(func() { f.ok("remove", f.e.RemoveNetwork(context.Background(), "lbtest-net")) })
	st, err := f.e.Network(ctx, "lbtest-net")
	f.ok("inspect", err)
	f.equal("id", st.ID, id)
	f.equal("labels", st.Labels, map[string]string{"k": "v", engine.LabelSystem: "s"})
	got, err := engine.ParseNetworkSpec(st.Spec)
	f.ok("specification", err)
	f.equal("subnets", got.Subnets(), []netip.Prefix{netip.MustParsePrefix("10.123.4.0/24")})
	f.equal("gateway", got.IPAM.Config[0].Gateway, "10.123.4.9")
	if got.LooksAssigned() {
		f.Error("a subnet that was asked for looks assigned")
	}

	_, err = f.e.CreateNetwork(ctx, f.raw(spec), nil)
	f.is("create again", err, dr.ErrHeld)
	_, err = f.e.CreateNetwork(ctx, f.raw(m{"Name": "lbtest-net2", "Driver": "bridge", "IPAM": m{"Config": []m{{"Subnet": "10.123.4.128/25"}}}}), nil)
	f.is("create with a subnet that overlaps", err, dr.ErrHeld)
	_, err = f.e.CreateNetwork(ctx, f.raw(m{"Driver": "bridge"}), nil)
	f.is("create without a name", err, dr.ErrUsage)

	f.ok("remove", f.e.RemoveNetwork(ctx, "lbtest-net"))
	f.ok("remove again", f.e.RemoveNetwork(ctx, "lbtest-net"))
	_, err = f.e.Network(ctx, "lbtest-net")
	f.is("inspect what is gone", err, dr.ErrNotFound)

	// What was described makes the same network again.
	_, err = f.e.CreateNetwork(ctx, st.Spec, nil)
	f.ok("create from the description", err)
	again, err := f.e.Network(ctx, "lbtest-net")
	f.ok("inspect", err)
	f.equal("description", string(again.Spec), string(st.Spec))

	// Nothing asked for: the engine chooses.
	f.network(m{"Name": "lbtest-auto", "Driver": "bridge"})
	st, err = f.e.Network(ctx, "lbtest-auto")
	f.ok("inspect", err)
	got, err = engine.ParseNetworkSpec(st.Spec)
	f.ok("specification", err)
	if !got.LooksAssigned() || len(got.Subnets()) == 0 {
		f.Errorf("a subnet that the engine chose does not look so: %s", st.Spec)
	}
}

func testVolume(f *fixture) {
	ctx := f.Context()
	v := dr.Volume{Name: "lbtest-vol", Driver: "local", Labels: map[string]string{"k": "v"}}
	st, err := f.e.CreateVolume(ctx, v, map[string]string{engine.LabelSystem: "s"})
	f.ok("create", err)
	f.Cleanup(func() { f.ok("remove", f.e.RemoveVolume(context.Background(), v.Name)) })
	f.equal("labels", st.Labels, map[string]string{"k": "v", engine.LabelSystem: "s"})
	if st.Mountpoint == "" || st.Driver != "local" {
		f.Errorf("volume is described incompletely: %+v", st)
	}
	_, err = f.e.CreateVolume(ctx, v, nil)
	f.is("create again", err, dr.ErrHeld)
	c := f.container("lbtest-c", m{}, m{"Binds": []string{"lbtest-vol:/data"}}, nil)
	f.is("remove a volume in use", f.e.RemoveVolume(ctx, v.Name), dr.ErrHeld)
	f.ok("remove container", f.e.Remove(ctx, c, engine.RemoveOptions{Force: true, Volumes: true}))
	_, err = f.e.Volume(ctx, v.Name)
	f.ok("a named volume outlives its container", err)
	f.ok("remove", f.e.RemoveVolume(ctx, v.Name))
	f.ok("remove again", f.e.RemoveVolume(ctx, v.Name))
	_, err = f.e.Volume(ctx, v.Name)
	f.is("inspect what is gone", err, dr.ErrNotFound)
}

// testSeveralNetworks creates a container on two networks with addresses and
// aliases in both, without its mode's network where that had been left.
func testSeveralNetworks(f *fixture) {
	f.network(m{"Name": "lbtest-n1", "IPAM": m{"Config": []m{{"Subnet": "10.123.5.0/24"}}}})
	f.network(m{"Name": "lbtest-n2", "IPAM": m{"Config": []m{{"Subnet": "10.123.6.0/24"}}}})
	f.network(m{"Name": "lbtest-n3", "IPAM": m{"Config": []m{{"Subnet": "10.123.7.0/24"}}}})
	eps := map[string]m{
		"lbtest-n1": {"IPAMConfig": m{"IPv4Address": "10.123.5.77"}, "Aliases": []string{"one"}},
		"lbtest-n2": {"IPAMConfig": m{"IPv4Address": "10.123.6.77"}, "Aliases": []string{"two"}},
	}
	eps["lbtest-n1"]["MacAddress"] = "02:ab:cd:00:00:07"
	a := f.container("lbtest-a", m{}, m{"NetworkMode": "lbtest-n1"}, eps)
	b := f.container("lbtest-b", m{}, m{"NetworkMode": "lbtest-n3"}, map[string]m{"lbtest-n2": {}})
	f.start(a, b)
	f.is("remove a network in use", f.e.RemoveNetwork(f.Context(), "lbtest-n1"), dr.ErrHeld)
	sys, err := f.e.Discover(f.Context(), engine.Selector{Containers: []string{"lbtest-a", "lbtest-b"}})
	f.ok("discover", err)
	f.equal("networks of a", endpointText(sys.Containers[0]), `lbtest-n1={"Aliases":["one"],"IPAMConfig":{"IPv4Address":"10.123.5.77"},"MacAddress":"02:ab:cd:00:00:07"} lbtest-n2={"Aliases":["two"],"IPAMConfig":{"IPv4Address":"10.123.6.77"}}`)
	f.equal("networks of b", endpointText(sys.Containers[1]), `lbtest-n2={}`)
	f.ok("stop", f.e.Stop(f.Context(), a, 5*time.Second))
	still, err := f.e.Discover(f.Context(), engine.Selector{Containers: []string{"lbtest-a"}})
	f.ok("discover", err)
	f.equal("networks of a when it is stopped", endpointText(still.Containers[0]), endpointText(sys.Containers[0]))
}

func endpointText(c engine.Container) string {
	var out []string
	for n, ep := range c.Endpoints {
		out = append(out, n+"="+string(ep))
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

func testInventory(f *fixture) {
	f.network(m{"Name": "lbtest-net", "IPAM": m{"Config": []m{{"Subnet": "10.123.4.0/24"}}}})
	f.volume(dr.Volume{Name: "lbtest-vol", Driver: "local"})
	host := m{"PortBindings": m{"8080/tcp": []m{{"HostIp": "127.0.0.1", "HostPort": "18081"}}, "53/udp": []m{{"HostPort": "18053"}}}}
	exposed := m{"8080/tcp": m{}, "53/udp": m{}}
	f.start(f.container("lbtest-run", m{"Labels": m{"com.docker.compose.project": "p"}, "ExposedPorts": exposed}, host, nil))
	f.container("lbtest-still", m{"ExposedPorts": exposed}, host, nil)
	f.container("lbtest-host", m{}, m{"NetworkMode": "host"}, nil)
	inv, err := f.e.Inventory(f.Context())
	f.ok("inventory", err)
	by := map[string]engine.InventoryContainer{}
	for _, c := range inv.Containers {
		by[c.Name] = c
	}
	want := []engine.PublishedPort{
		{IP: netip.MustParseAddr("0.0.0.0"), Port: 18053, Container: 53, Proto: "udp"},
		{IP: netip.MustParseAddr("127.0.0.1"), Port: 18081, Container: 8080, Proto: "tcp"},
	}
	for _, name := range []string{"lbtest-run", "lbtest-still"} {
		got := slices.DeleteFunc(by[name].Ports, func(p engine.PublishedPort) bool { return p.IP.Is6() })
		if !slices.Equal(got, want) {
			f.Errorf("ports of %s: %v, want %v", name, got, want)
		}
	}
	f.equal("project", by["lbtest-run"].Project, "p")
	f.equal("state", by["lbtest-run"].State, "running")
	f.equal("host network", by["lbtest-host"].HostNetwork, true)
	if !slices.ContainsFunc(inv.Networks, func(n engine.InventoryNetwork) bool {
		return n.Name == "lbtest-net" && slices.Contains(n.Subnets, netip.MustParsePrefix("10.123.4.0/24"))
	}) {
		f.Errorf("inventory lacks the network: %+v", inv.Networks)
	}
	if !slices.ContainsFunc(inv.Volumes, func(v engine.InventoryVolume) bool { return v.Name == "lbtest-vol" }) {
		f.Errorf("inventory lacks the volume: %+v", inv.Volumes)
	}
}

// field reads one field of a JSON object.
func field[T any](f *fixture, raw json.RawMessage, name string) T {
	f.Helper()
	var o map[string]json.RawMessage
	f.ok("decode", json.Unmarshal(raw, &o))
	var out T
	if v, ok := o[name]; ok {
		f.ok("decode "+name, json.Unmarshal(v, &out))
	}
	return out
}
