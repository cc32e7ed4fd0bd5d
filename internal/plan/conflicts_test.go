package plan_test

import (
	"encoding/json"
	"net/netip"
	"strings"
	"testing"

	"lifeboat/internal/dr"
	"lifeboat/internal/plan"

	"github.com/google/go-cmp/cmp"
)

func shop() *dr.Root {
	return &dr.Root{
		Containers: []dr.Container{
			{Name: "shop-web-1", HostConfig: json.RawMessage(`{"PortBindings":{"80/tcp":[{"HostIp":"","HostPort":"8080"}],"53/udp":[{"HostIp":"10.0.0.1","HostPort":"53"}],"81/tcp":[{"HostPort":""}]}}`)},
			{Name: "shop-db-1", HostConfig: json.RawMessage(`{}`)},
		},
		Networks: []dr.Network{
			{Name: "shop_net", Spec: json.RawMessage(`{"IPAM":{"Config":[{"Subnet":"172.30.0.0/24"}]}}`)},
			{Name: "edge", External: true, Spec: json.RawMessage(`{"IPAM":{"Config":[{"Subnet":"172.31.0.0/24"}]}}`)},
		},
		Volumes: []dr.Volume{{Name: "shop_db"}},
		Binds:   []dr.Bind{{Source: "/srv/shop", Tree: "bind:/srv/shop"}, {Source: "/var/run/docker.sock"}},
	}
}

func TestConflicts(t *testing.T) {
	t.Parallel()
	w, err := plan.WantsOf(shop(), shop())
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name  string
		taken plan.Taken
		want  []string
	}{
		{"empty site", plan.Taken{}, nil},
		{"name", plan.Taken{Containers: map[string]string{"shop-db-1": "running, image x"}}, []string{"container shop-db-1"}},
		{"own name", plan.Taken{Containers: map[string]string{"shop-db-1": ""}, Own: map[string]bool{"container:shop-db-1": true}}, nil},
		{"port on all addresses", plan.Taken{Ports: []plan.Port{{Proto: "tcp", IP: netip.MustParseAddr("127.0.0.1"), Port: 8080, By: "proxy"}}}, []string{"port 8080/tcp of container shop-web-1"}},
		{"port, other protocol", plan.Taken{Ports: []plan.Port{{Proto: "udp", Port: 8080, By: "proxy"}}}, nil},
		{"port on another address", plan.Taken{Ports: []plan.Port{{Proto: "udp", IP: netip.MustParseAddr("10.0.0.2"), Port: 53}}}, nil},
		{"port of one's own container", plan.Taken{Ports: []plan.Port{{Proto: "tcp", Port: 8080, By: "shop-web-1"}}, Own: map[string]bool{"container:shop-web-1": true}}, nil},
		{"overlapping subnet", plan.Taken{Subnets: []plan.Subnet{{Prefix: netip.MustParsePrefix("172.30.0.0/16"), By: "other_net"}}}, []string{"subnet 172.30.0.0/24 of network shop_net"}},
		{"external networks are not made", plan.Taken{Subnets: []plan.Subnet{{Prefix: netip.MustParsePrefix("172.31.0.0/24"), By: "edge"}}}, nil},
		{"volume and path", plan.Taken{Volumes: map[string]string{"shop_db": "of project x"}, Binds: map[string]string{"/srv/shop": "holds other data"}}, []string{"path /srv/shop", "volume shop_db"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			var got []string
			if tc.taken.Networks == nil {
				tc.taken.Networks = map[string]string{}
			}
			tc.taken.Networks["edge"] = "external, and there"
			for _, c := range plan.Conflicts(w, tc.taken) {
				got = append(got, c.Object)
				if c.Solve == "" && (c.Path == nil || c.Value == "") {
					t.Errorf("%s has no way out", c.Object)
				}
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestWantsOfRejectsGarbage(t *testing.T) {
	t.Parallel()
	for _, host := range []string{`{`, `{"PortBindings":{"80/tcp":[{"HostPort":"http"}]}}`, `{"PortBindings":{"80/tcp":[{"HostPort":"80","HostIp":"x"}]}}`} {
		root := &dr.Root{Containers: []dr.Container{{Name: "c", HostConfig: json.RawMessage(host)}}}
		if _, err := plan.WantsOf(root, root); err == nil {
			t.Errorf("%s was accepted", host)
		}
	}
	root := &dr.Root{Networks: []dr.Network{{Name: "n", Spec: json.RawMessage(`{"IPAM":{"Config":[{"Subnet":"x"}]}}`)}}}
	if _, err := plan.WantsOf(root, root); err == nil {
		t.Error("a garbage subnet was accepted")
	}
	if _, err := plan.WantsOf(shop(), &dr.Root{}); err == nil {
		t.Error("two different systems were taken for one")
	}
}

// solved writes a conflict's override as path and value.
func solved(t *testing.T, w plan.Wants, taken plan.Taken) map[string]string {
	t.Helper()
	out := map[string]string{}
	for _, c := range plan.Conflicts(w, taken) {
		out[c.Object] = strings.Join(c.Path, ".") + "=" + c.Value
	}
	return out
}

// TestFreeValues: what a conflict proposes is free, and is proposed once.
func TestFreeValues(t *testing.T) {
	t.Parallel()
	prefix, addr := netip.MustParsePrefix, netip.MustParseAddr
	two := func(host string) *dr.Root {
		return &dr.Root{Containers: []dr.Container{{Name: "web.1", HostConfig: json.RawMessage(host)}, {Name: "db", HostConfig: json.RawMessage(`{"PortBindings":{"53/tcp":[{"HostPort":"53"}]}}`)}}}
	}
	for _, tc := range []struct {
		name            string
		captured, local *dr.Root
		taken           plan.Taken
		want            map[string]string
	}{
		{
			name: "names beside those that are taken", captured: shop(), local: shop(),
			taken: plan.Taken{
				Containers: map[string]string{"shop-db-1": "x", "shop-db-1-standin": "y"}, Volumes: map[string]string{"shop_db": "x"},
				Networks: map[string]string{"edge": "", "shop_net": "x"},
			},
			want: map[string]string{
				"container shop-db-1": "names.containers.shop-db-1=shop-db-1-standin-2", "volume shop_db": "names.volumes.shop_db=shop_db-standin",
				"network shop_net": "networks.shop_net.name=shop_net-standin",
			},
		},
		{
			name: "a network that is missing", captured: shop(), local: shop(),
			want: map[string]string{"network edge": "="},
		},
		{
			name: "a port past those that listen, and past the plan's own", captured: shop(), local: shop(),
			taken: plan.Taken{
				Networks: map[string]string{"edge": ""},
				Ports:    []plan.Port{{Proto: "tcp", Port: 8080, By: "a"}, {Proto: "tcp", IP: addr("127.0.0.1"), Port: 18080, By: "b"}, {Proto: "udp", Port: 18081, By: "c"}},
			},
			want: map[string]string{"port 8080/tcp of container shop-web-1": "ports.8080=18081"},
		},
		{
			name: "both families of one port move together", captured: two(`{"PortBindings":{"80/tcp":[{"HostIp":"0.0.0.0","HostPort":"80"},{"HostIp":"::","HostPort":"80"}]}}`),
			local: two(`{"PortBindings":{"80/tcp":[{"HostIp":"0.0.0.0","HostPort":"80"},{"HostIp":"::","HostPort":"80"}]}}`),
			taken: plan.Taken{Ports: []plan.Port{{Proto: "tcp", Port: 80, By: "a"}}},
			want:  map[string]string{"port 0.0.0.0:80/tcp of container web.1": "ports.80=10080", "port [::]:80/tcp of container web.1": "ports.80=10080"},
		},
		{
			name: "two protocols of one port are told apart", captured: two(`{"PortBindings":{"53/udp":[{"HostPort":"53"}]}}`), local: two(`{"PortBindings":{"53/udp":[{"HostPort":"53"}]}}`),
			taken: plan.Taken{Ports: []plan.Port{{Proto: "udp", Port: 53, By: "a"}}},
			want:  map[string]string{"port 53/udp of container web.1": "ports.53/udp=10053"},
		},
		{
			name: "a port that an override moved is named as it was captured", captured: two(`{"PortBindings":{"80/tcp":[{"HostPort":"8080"}]}}`), local: two(`{"PortBindings":{"80/tcp":[{"HostPort":"18080"}]}}`),
			taken: plan.Taken{Ports: []plan.Port{{Proto: "tcp", Port: 18080, By: "a"}}},
			want:  map[string]string{"port 18080/tcp of container web.1": "ports.web.1/8080:80/tcp=28080"},
		},
		{
			name:     "subnets: the next free one, past routes, all of the network",
			captured: &dr.Root{Networks: []dr.Network{{Name: "n", Spec: json.RawMessage(`{"IPAM":{"Config":[{"Subnet":"172.30.0.0/24"},{"Subnet":"172.31.0.0/24"},{"Subnet":"fd00:1::/64"}]}}`)}}},
			local:    &dr.Root{Networks: []dr.Network{{Name: "here", Spec: json.RawMessage(`{"IPAM":{"Config":[{"Subnet":"172.30.0.0/24"},{"Subnet":"172.31.0.0/24"},{"Subnet":"fd00:1::/64"}]}}`)}}},
			taken: plan.Taken{
				Subnets: []plan.Subnet{{Prefix: prefix("172.30.0.0/16"), By: "a"}, {Prefix: prefix("fd00:1::/64"), By: "b"}},
				Routes:  []netip.Prefix{prefix("172.31.1.0/25")},
			},
			want: map[string]string{
				"subnet 172.30.0.0/24 of network here": "networks.n.subnet=172.31.2.0/24,172.31.0.0/24,fd00:1:0:1::/64",
				"subnet fd00:1::/64 of network here":   "networks.n.subnet=172.31.2.0/24,172.31.0.0/24,fd00:1:0:1::/64",
			},
		},
		{
			name:     "subnets: another private range where one is full",
			captured: &dr.Root{Networks: []dr.Network{{Name: "n", Spec: json.RawMessage(`{"IPAM":{"Config":[{"Subnet":"192.168.7.0/24"}]}}`)}}},
			local:    &dr.Root{Networks: []dr.Network{{Name: "n", Spec: json.RawMessage(`{"IPAM":{"Config":[{"Subnet":"192.168.7.0/24"}]}}`)}}},
			taken:    plan.Taken{Subnets: []plan.Subnet{{Prefix: prefix("192.168.0.0/16"), By: "a"}}},
			want:     map[string]string{"subnet 192.168.7.0/24 of network n": "networks.n.subnet=172.16.0.0/24"},
		},
		{
			name:     "paths beside those that are there; what lies below goes along",
			captured: &dr.Root{Binds: []dr.Bind{{Source: "/srv/a", Tree: "x"}, {Source: "/srv/a/b", Tree: "x"}, {Source: "/srv/c", Tree: "x"}}},
			local:    &dr.Root{Binds: []dr.Bind{{Source: "/srv/a", Tree: "x"}, {Source: "/srv/a/b", Tree: "x"}, {Source: "/mnt/c", Tree: "x"}}},
			taken: plan.Taken{
				Binds:      map[string]string{"/srv/a": "x", "/srv/a/b": "x", "/mnt/c": "x"},
				PathExists: func(p string) bool { return p == "/srv/a-standin" },
			},
			want: map[string]string{"path /srv/a": "paths./srv/a=/srv/a-standin-2", "path /srv/a/b": "paths./srv/a=/srv/a-standin-2", "path /mnt/c": "paths./srv/c=/mnt/c-standin"},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			w, err := plan.WantsOf(tc.captured, tc.local)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, solved(t, w, tc.taken)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// TestNothingFree: where no value is free, the conflict says what to set.
func TestNothingFree(t *testing.T) {
	t.Parallel()
	root := &dr.Root{Networks: []dr.Network{{Name: "n", Spec: json.RawMessage(`{"IPAM":{"Config":[{"Subnet":"fd00::/9"}]}}`)}}}
	w, err := plan.WantsOf(root, root)
	if err != nil {
		t.Fatal(err)
	}
	got := plan.Conflicts(w, plan.Taken{Subnets: []plan.Subnet{{Prefix: netip.MustParsePrefix("fd00::/8"), By: "a"}}})
	if len(got) != 1 || got[0].Path != nil || !strings.Contains(got[0].Solve, "overrides.networks.n.subnet") {
		t.Errorf("%+v", got)
	}
}
