package override_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"lifeboat/internal/dr"
	"lifeboat/internal/override"
)

// shop is a captured Compose project: a web container, a database and a job
// that is no service.
func shop() *dr.Root {
	return &dr.Root{
		Format: 1, System: "shop", Site: "main",
		Containers: []dr.Container{
			{
				Name: "shop-db-1", Project: "shop", Service: "db", State: "running",
				Config: raw(`{"Env":["MARIADB_DATABASE=shop","TZ=UTC"],"Image":"db","Labels":{"com.docker.compose.project":"shop"},"FutureField":{"x":12345678901234567890}}`),
				HostConfig: raw(`{"Binds":["shop_db:/var/lib/mysql:rw"],"NetworkMode":"shop_default","Memory":1073741824,"MemorySwap":1610612736,` +
					`"MemoryReservation":805306368,"NanoCpus":0,"CpuQuota":150000,"CpuPeriod":100000,"PidsLimit":null,"CpusetCpus":"0-3","PortBindings":{},"ShmSize":67108864}`),
				Endpoints: map[string]json.RawMessage{"shop_default": raw(`{"IPAMConfig":{"IPv4Address":"172.20.0.10","IPv6Address":"fd00:1::10"},"Aliases":["shop-db-1","db"]}`)},
				Mounts:    []dr.Mount{{Type: "volume", Name: "shop_db", Destination: "/var/lib/mysql", RW: true, Tree: "volume:shop_db"}},
				Layer:     "layer:shop-db-1",
			},
			{
				Name: "shop-web-1", Project: "shop", Service: "web", State: "running",
				Config: raw(`{"Env":["PUBLIC_URL=https://main.example/?a=<b>&c","DEBUG=1"],"Labels":{"com.docker.compose.project":"shop",` +
					`"com.docker.compose.project.config_files":"/srv/shop/compose.yaml,/srv/shop/prod.yaml","com.docker.compose.project.working_dir":"/srv/shop"}}`),
				HostConfig: raw(`{"Binds":["/srv/shop/conf:/etc/shop:ro","shop_uploads:/uploads"],"Mounts":[{"Type":"bind","Source":"/srv/shop/data","Target":"/data"},` +
					`{"Type":"volume","Source":"shop_uploads","Target":"/up2"}],"Devices":[{"PathOnHost":"/dev/ttyS0","PathInContainer":"/dev/modem","CgroupPermissions":"rwm"}],` +
					`"NetworkMode":"shop_default","ExtraHosts":["db:172.20.0.10","other:10.0.0.1"],"Dns":["172.20.0.1"],"Links":["/shop-db-1:/shop-web-1/database"],` +
					`"PortBindings":{"80/tcp":[{"HostIp":"","HostPort":"8080"}],"443/tcp":[{"HostIp":"127.0.0.1","HostPort":"8443"},{"HostIp":"::1","HostPort":"8443"}],"53/udp":[{"HostIp":"","HostPort":"8080"}],"9000/tcp":[{"HostIp":"","HostPort":""}]}}`),
				Endpoints: map[string]json.RawMessage{
					"shop_default": raw(`{"IPAMConfig":null,"Aliases":["shop-web-1","web"]}`),
					"proxy":        raw(`{"IPAMConfig":{"IPv4Address":"10.9.0.5"},"Aliases":null}`),
				},
				DependsOn: []dr.Dependency{{Container: "shop-db-1", Condition: "service_healthy"}},
				Mounts: []dr.Mount{
					{Type: "bind", Source: "/srv/shop/conf", Destination: "/etc/shop", Tree: "bind:/srv/shop/conf"},
					{Type: "volume", Name: "shop_uploads", Destination: "/uploads"},
				},
			},
			{
				Name: "job", State: "exited", Config: raw(`{"Env":null}`),
				HostConfig: raw(`{"NetworkMode":"container:shop-web-1","PidMode":"container:shop-web-1","VolumesFrom":["shop-web-1:ro","shop-db-1"]}`),
			},
		},
		Networks: []dr.Network{
			{Name: "proxy", External: true, Spec: raw(`{"Name":"proxy","IPAM":{"Config":[{"Subnet":"10.9.0.0/16"}]}}`)},
			{Name: "shop_default", Spec: raw(`{"Name":"shop_default","Driver":"bridge","Labels":{"com.docker.compose.project":"shop"},"EnableIPv6":true,"IPAM":{"Driver":"default","Config":[` +
				`{"Subnet":"172.20.0.0/16","IPRange":"172.20.5.0/24","Gateway":"172.20.0.1","AuxiliaryAddresses":{"printer":"172.20.0.9"}},{"Subnet":"fd00:1::/64","Gateway":"fd00:1::1"}]}}`)},
		},
		Volumes: []dr.Volume{
			{Name: "0123abcd", Driver: "local", Anonymous: true},
			{Name: "shop_db", Driver: "local", Labels: map[string]string{"com.docker.compose.project": "shop"}, Tree: "volume:shop_db"},
			{Name: "shop_uploads", Driver: "local", Options: map[string]string{"type": "none", "o": "bind", "device": "/srv/uploads"}},
		},
		Binds: []dr.Bind{{Source: "/srv/shop/conf", Tree: "bind:/srv/shop/conf"}, {Source: "/srv/shop/data"}},
		Files: []dr.ProjectFile{{Role: "compose", Path: "/srv/shop/compose.yaml"}},
	}
}

func raw(s string) json.RawMessage { return json.RawMessage(s) }

// at digs a value out of the root record by a path such as
// containers.shop-web-1.host_config.Binds.0.
func at(t *testing.T, root *dr.Root, path string) any {
	t.Helper()
	b, err := json.Marshal(root)
	if err != nil {
		t.Fatal(err)
	}
	var v any
	if err := json.Unmarshal(b, &v); err != nil {
		t.Fatal(err)
	}
	for name := range strings.SplitSeq(path, "|") {
		switch x := v.(type) {
		case map[string]any:
			v = x[name]
		case []any:
			var found any
			for i, e := range x {
				m, _ := e.(map[string]any)
				if fmt.Sprint(i) == name || m != nil && (m["name"] == name || m["source"] == name) {
					found = e
				}
			}
			v = found
		default:
			return nil
		}
	}
	return v
}

func parse(t *testing.T, pairs ...string) override.Set {
	t.Helper()
	var s override.Set
	for _, p := range pairs {
		if err := s.ParsePair(p); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

func show(cs []override.Change) []string {
	var out []string
	for _, c := range cs {
		out = append(out, fmt.Sprintf("%s %s: %s → %s", c.Object, c.Field, c.From, c.To))
	}
	return out
}

const (
	web = "containers|shop-web-1|"
	db  = "containers|shop-db-1|"
)

func TestApply(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name    string
		pairs   []string
		changes []string
		values  map[string]any // path → value, as JSON reads it
	}{
		{
			"port by published number takes every protocol",
			[]string{"ports.8080=18080"},
			[]string{"container:shop-web-1 port 53/udp: 8080 → 18080", "container:shop-web-1 port 80/tcp: 8080 → 18080"},
			map[string]any{web + "host_config|PortBindings|80/tcp|0|HostPort": "18080", web + "host_config|PortBindings|443/tcp|0|HostPort": "8443"},
		},
		{
			"the more particular port wins",
			[]string{"ports.8080=18080", "ports.8080:53/udp=none"},
			[]string{"container:shop-web-1 port 53/udp: 8080 → not published", "container:shop-web-1 port 80/tcp: 8080 → 18080"},
			map[string]any{web + "host_config|PortBindings|53/udp": nil},
		},
		{
			"port by address, to an address alone",
			[]string{"ports.127.0.0.1:8443:443=192.0.2.1", "ports.[::1]:8443:443=[2001:db8::1]:9443"},
			[]string{"container:shop-web-1 port 443/tcp: 127.0.0.1:8443 → 192.0.2.1:8443", "container:shop-web-1 port 443/tcp: [::1]:8443 → [2001:db8::1]:9443"},
			map[string]any{web + "host_config|PortBindings|443/tcp|0|HostIp": "192.0.2.1", web + "host_config|PortBindings|443/tcp|1|HostPort": "9443"},
		},
		{
			"port of a service that the engine chose",
			[]string{"ports.web/:9000/tcp=127.0.0.1:9000"},
			[]string{"container:shop-web-1 port 9000/tcp: auto → 127.0.0.1:9000"},
			nil,
		},
		{
			"port left to the engine",
			[]string{"ports.shop-web-1/8080:80=auto"},
			[]string{"container:shop-web-1 port 80/tcp: 8080 → auto"},
			map[string]any{web + "host_config|PortBindings|80/tcp|0|HostPort": ""},
		},
		{
			"paths take what lies below, the longest wins",
			[]string{"paths./srv/shop=/data/shop", "paths./srv/shop/conf=/etc/shop2", "paths./srv/uploads=/up", "paths./dev/ttyS0=/dev/ttyUSB3"},
			[]string{
				"container:shop-web-1 mount /etc/shop:ro: /srv/shop/conf → /etc/shop2",
				"container:shop-web-1 mount /data: /srv/shop/data → /data/shop/data",
				"container:shop-web-1 device /dev/modem: /dev/ttyS0 → /dev/ttyUSB3",
				"container:shop-web-1 label com.docker.compose.project.config_files: /srv/shop/compose.yaml,/srv/shop/prod.yaml → /data/shop/compose.yaml,/data/shop/prod.yaml",
				"container:shop-web-1 label com.docker.compose.project.working_dir: /srv/shop → /data/shop",
				"volume:shop_uploads device: /srv/uploads → /up",
				"bind:/srv/shop/conf path: /srv/shop/conf → /etc/shop2",
				"bind:/srv/shop/data path: /srv/shop/data → /data/shop/data",
				"file:/srv/shop/compose.yaml path: /srv/shop/compose.yaml → /data/shop/compose.yaml",
			},
			map[string]any{
				web + "host_config|Binds|0": "/etc/shop2:/etc/shop:ro", web + "mounts|0|source": "/etc/shop2", web + "mounts|0|tree": "bind:/srv/shop/conf",
				"binds|/etc/shop2|tree": "bind:/srv/shop/conf", "volumes|shop_uploads|options|device": "/up", web + "host_config|Mounts|0|Source": "/data/shop/data",
			},
		},
		{
			"environment",
			[]string{"environment.web.PUBLIC_URL=https://here/?a=<b>&c=d", "environment.web.DEBUG", "environment.*.SITE=stand-in"},
			[]string{
				"container:shop-db-1 environment SITE:  → added",
				"container:shop-web-1 environment SITE:  → added",
				"container:shop-web-1 environment DEBUG: set → removed",
				"container:shop-web-1 environment PUBLIC_URL: set → replaced",
				"container:job environment SITE:  → added",
			},
			map[string]any{web + "config|Env": []any{"PUBLIC_URL=https://here/?a=<b>&c=d", "SITE=stand-in"}, "containers|job|config|Env|0": "SITE=stand-in"},
		},
		{
			"limits move what depends on them",
			[]string{"limits.db.memory=512MiB", "limits.db.cpus=0.5", "limits.db.pids=200", "limits.db.cpuset=none"},
			[]string{
				"container:shop-db-1 limit memory: 1.00 GiB → 512 MiB",
				"container:shop-db-1 limit memory and swap: 1.50 GiB → 1.00 GiB",
				"container:shop-db-1 memory reservation: 768 MiB → 512 MiB",
				"container:shop-db-1 limit cpus: 1.5 → 0.5",
				"container:shop-db-1 limit pids: none → 200",
				"container:shop-db-1 limit cpuset: 0-3 → none",
			},
			map[string]any{
				db + "host_config|Memory": 536870912.0, db + "host_config|MemorySwap": 1073741824.0, db + "host_config|CpuQuota": 0.0, db + "host_config|NanoCpus": 5e8,
				db + "host_config|PidsLimit": 200.0, db + "host_config|ShmSize": 67108864.0,
			},
		},
		{
			"memory limit lifted",
			[]string{"limits.shop-db-1.memory=none"},
			[]string{"container:shop-db-1 limit memory: 1.00 GiB → none", "container:shop-db-1 limit memory and swap: 1.50 GiB → none"},
			nil,
		},
		{
			"subnet moves addresses along",
			[]string{"networks.shop_default.subnet=172.30.0.0/20,fd00:2::/64"},
			[]string{
				"container:shop-db-1 static address in shop_default: 172.20.0.10 → 172.30.0.10",
				"container:shop-db-1 static address in shop_default: fd00:1::10 → fd00:2::10",
				"container:shop-web-1 extra host: db:172.20.0.10 → db:172.30.0.10",
				"container:shop-web-1 resolver: 172.20.0.1 → 172.30.0.1",
				"network:shop_default subnet: 172.20.0.0/16 → 172.30.0.0/20",
				"network:shop_default gateway: 172.20.0.1 → 172.30.0.1",
				"network:shop_default address range: 172.20.5.0/24 → 172.30.5.0/28",
				"network:shop_default address of printer: 172.20.0.9 → 172.30.0.9",
				"network:shop_default subnet: fd00:1::/64 → fd00:2::/64",
				"network:shop_default gateway: fd00:1::1 → fd00:2::1",
			},
			map[string]any{
				db + "endpoints|shop_default|IPAMConfig|IPv4Address": "172.30.0.10", "networks|shop_default|spec|IPAM|Config|0|Subnet": "172.30.0.0/20",
				"networks|shop_default|spec|IPAM|Driver": "default",
			},
		},
		{
			"gateway said",
			[]string{"networks.proxy.name=edge", "networks.shop_default.gateway=172.20.0.254"},
			[]string{"network:proxy name: proxy → edge", "network:shop_default gateway: 172.20.0.1 → 172.20.0.254"},
			map[string]any{web + "endpoints|edge|IPAMConfig|IPv4Address": "10.9.0.5", "networks|edge|external": true},
		},
		{
			"an existing network instead",
			[]string{"networks.shop_default.existing=lan", "networks.proxy.existing=dmz"},
			[]string{
				"container:shop-db-1 static address in shop_default: 172.20.0.10 → chosen by the engine",
				"container:shop-db-1 static address in shop_default: fd00:1::10 → chosen by the engine",
				"container:shop-web-1 static address in proxy: 10.9.0.5 → chosen by the engine",
				"network:proxy name: proxy → dmz",
				"network:shop_default created: yes → no, uses lan",
				"network:shop_default name: shop_default → lan",
			},
			map[string]any{"networks|lan|external": true, db + "host_config|NetworkMode": "lan", web + "endpoints|dmz|IPAMConfig": map[string]any{}},
		},
		{
			"prefix renames all that the system creates",
			[]string{"names.prefix=dr-"},
			[]string{
				"project:shop name: shop → dr-shop",
				"container:shop-db-1 name: shop-db-1 → dr-shop-db-1",
				"container:shop-db-1 mount: shop_db:/var/lib/mysql:rw → dr-shop_db:/var/lib/mysql:rw",
				"container:shop-web-1 name: shop-web-1 → dr-shop-web-1",
				"container:shop-web-1 link: /shop-db-1:/shop-web-1/database → /dr-shop-db-1:/dr-shop-web-1/database",
				"container:shop-web-1 mount: shop_uploads:/uploads → dr-shop_uploads:/uploads",
				"container:shop-web-1 mount /up2: shop_uploads → dr-shop_uploads",
				"container:shop-web-1 alias in proxy:  → shop-web-1",
				"container:job name: job → dr-job",
				"container:job volumes from: shop-web-1:ro → dr-shop-web-1:ro",
				"container:job volumes from: shop-db-1 → dr-shop-db-1",
				"network:shop_default name: shop_default → dr-shop_default",
				"volume:shop_db name: shop_db → dr-shop_db",
				"volume:shop_uploads name: shop_uploads → dr-shop_uploads",
			},
			map[string]any{
				"containers|dr-job|host_config|NetworkMode": "container:dr-shop-web-1", "containers|dr-shop-web-1|depends_on|0|container": "dr-shop-db-1",
				"containers|dr-shop-web-1|project": "dr-shop", "containers|dr-shop-web-1|config|Labels|com.docker.compose.project": "dr-shop",
				"volumes|dr-shop_db|labels|com.docker.compose.project": "dr-shop", "volumes|dr-shop_db|tree": "volume:shop_db", "volumes|0123abcd|anonymous": true,
				"containers|dr-shop-db-1|layer": "layer:shop-db-1", "networks|dr-shop_default|spec|Name": "dr-shop_default", "networks|proxy|external": true,
				"containers|dr-shop-db-1|mounts|0|name": "dr-shop_db",
			},
		},
		{
			"explicit names win over the prefix",
			[]string{"names.prefix=dr-", "names.project=boutique", "names.containers.job=chore", "names.volumes.shop_db=data", "names.volumes.0123abcd=scratch", "networks.shop_default.name=net2"},
			nil,
			map[string]any{
				"containers|chore|state": "exited", "volumes|data|driver": "local", "volumes|scratch|anonymous": true, "networks|net2|spec|Name": "net2",
				"containers|dr-shop-db-1|host_config|NetworkMode": "net2", "containers|dr-shop-db-1|project": "boutique",
			},
		},
		{"what is so already is no change", []string{"ports.8080:80/tcp=8080", "environment.db.TZ=UTC", "limits.db.cpuset=0-3"}, []string{}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			root := shop()
			got, changes, err := override.Apply(root, parse(t, tt.pairs...))
			if err != nil {
				t.Fatal(err)
			}
			if tt.changes != nil {
				if d := cmp.Diff(append([]string{}, tt.changes...), append([]string{}, show(changes)...)); d != "" {
					t.Errorf("changes (-want +got):\n%s", d)
				}
			}
			for path, want := range tt.values {
				if d := cmp.Diff(want, at(t, got, path)); d != "" {
					t.Errorf("%s (-want +got):\n%s", path, d)
				}
			}
			if d := cmp.Diff(shop(), root); d != "" {
				t.Errorf("the captured record was changed:\n%s", d)
			}
		})
	}
}

func TestUntouchedJSONStaysTheSameBytes(t *testing.T) {
	t.Parallel()
	got, _, err := override.Apply(shop(), parse(t, "ports.8080=1", "environment.web.DEBUG=<&>"))
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(shop().Containers[0].Config), string(got.Containers[0].Config)); d != "" {
		t.Errorf("config of the untouched container:\n%s", d)
	}
	got, _, err = override.Apply(shop(), parse(t, "environment.db.TZ=CET"))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(got.Containers[0].Config), `"FutureField":{"x":12345678901234567890}`) {
		t.Errorf("unknown field lost or rounded: %s", got.Containers[0].Config)
	}
}

func TestApplyProblems(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name  string
		pairs []string
		want  []string // each in the error
	}{
		{"unknown container", []string{"environment.wbe.A=1", "limits.dv.pids=9"}, []string{
			`overrides.environment.wbe.A: the system has no container or service "wbe" (did you mean "web"?)`,
			`overrides.limits.dv: the system has no container or service "dv" (did you mean "db"?)`,
		}},
		{"unknown port", []string{"ports.81=1081", "ports.db/80=1"}, []string{"overrides.ports.81: no published port is selected; published are ", "overrides.ports.db/80: no published port is selected; none is published"}},
		{"unknown container of a port", []string{"ports.wbe/:80=1081"}, []string{`overrides.ports.wbe/:80: the system has no container or service "wbe"`}},
		{"contradicting ports", []string{"ports.8080=1", "ports.:80=2"}, []string{"selects port 80/tcp of container shop-web-1 too and says otherwise"}},
		{"two on one port", []string{"ports.8080:80=8443"}, []string{"containers shop-web-1 and shop-web-1 would both publish port 8443/tcp"}},
		{"unknown path", []string{"paths./srv/shop/con=/x"}, []string{`overrides.paths./srv/shop/con: the system uses no path of the host at or below it (did you mean "/srv/shop/conf"?)`}},
		{"unknown variable", []string{"environment.web.DEBGU"}, []string{`there is no variable "DEBGU" to remove (did you mean "DEBUG"?)`}},
		{"unknown network", []string{"networks.shop.name=xx"}, []string{`the system has no network "shop"`}},
		{"subnet too small", []string{"networks.shop_default.subnet=172.30.0.0/29"}, []string{"the static address of container shop-db-1, 172.20.0.10, has no place in 172.30.0.0/29", "printer"}},
		{"broadcast address", []string{"networks.proxy.subnet=10.1.0.4/31"}, []string{"10.9.0.5, has no place"}},
		{"gateway elsewhere", []string{"networks.shop_default.gateway=192.0.2.1"}, []string{"gateway 192.0.2.1 lies in no subnet"}},
		{"unknown names", []string{"names.containers.jbo=xx", "names.volumes.shop_dv=xx"}, []string{`no container "jbo" (did you mean "job"?)`, `no volume "shop_dv" (did you mean "shop_db"?)`}},
		{"same name twice", []string{"names.containers.job=shop-web-1"}, []string{"containers job and shop-web-1 would both be named shop-web-1"}},
		{"one network twice", []string{"networks.shop_default.existing=lan", "networks.proxy.existing=lan"}, []string{"container shop-web-1 would be attached to network lan twice"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			root, changes, err := override.Apply(shop(), parse(t, tt.pairs...))
			if root != nil || changes != nil || !errors.Is(err, dr.ErrUsage) {
				t.Fatalf("got %v, %v, %v; want an error that wraps ErrUsage and nothing else", root, changes, err)
			}
			for _, want := range tt.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error\n%v\ndoes not say\n%s", err, want)
				}
			}
		})
	}
	t.Run("project of none", func(t *testing.T) {
		t.Parallel()
		root := shop()
		root.Containers, root.Volumes, root.Networks = root.Containers[2:], nil, nil
		if _, _, err := override.Apply(root, parse(t, "names.project=xx")); !errors.Is(err, dr.ErrUsage) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("broken record", func(t *testing.T) {
		t.Parallel()
		root := shop()
		root.Containers[0].HostConfig = raw(`[]`)
		if _, _, err := override.Apply(root, override.Set{}); err == nil || !strings.Contains(err.Error(), "host config of container shop-db-1") {
			t.Errorf("got %v", err)
		}
	})
}

func TestEmptySetChangesNothing(t *testing.T) {
	t.Parallel()
	got, changes, err := override.Apply(shop(), override.Set{})
	if err != nil || len(changes) != 0 {
		t.Fatalf("%v, %v", changes, err)
	}
	if d := cmp.Diff(shop(), got); d != "" {
		t.Error(d)
	}
}
