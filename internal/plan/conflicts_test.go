package plan_test

import (
	"encoding/json"
	"net/netip"
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
	w, err := plan.WantsOf(shop())
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
		{"external networks are not made", plan.Taken{Networks: map[string]string{"edge": ""}, Subnets: []plan.Subnet{{Prefix: netip.MustParsePrefix("172.31.0.0/24"), By: "edge"}}}, nil},
		{"volume and path", plan.Taken{Volumes: map[string]string{"shop_db": "of project x"}, Binds: map[string]string{"/srv/shop": "holds other data"}}, []string{"path /srv/shop", "volume shop_db"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			var got []string
			for _, c := range plan.Conflicts(w, tc.taken) {
				got = append(got, c.Object)
				if c.Solve == "" {
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
		if _, err := plan.WantsOf(&dr.Root{Containers: []dr.Container{{Name: "c", HostConfig: json.RawMessage(host)}}}); err == nil {
			t.Errorf("%s was accepted", host)
		}
	}
	if _, err := plan.WantsOf(&dr.Root{Networks: []dr.Network{{Name: "n", Spec: json.RawMessage(`{"IPAM":{"Config":[{"Subnet":"x"}]}}`)}}}); err == nil {
		t.Error("a garbage subnet was accepted")
	}
}
