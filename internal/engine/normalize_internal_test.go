package engine

import (
	"encoding/json"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/network"

	"lifeboat/internal/dr"
)

const (
	idWeb   = "aaaaaaaaaaaabbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"
	idDB    = "ddddddddddddbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"
	idOther = "eeeeeeeeeeeebbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"
)

// seen is an inspected container made from what tests vary.
func seen(t *testing.T, config, host string, mounts []container.MountPoint) inspected {
	t.Helper()
	in := inspected{name: "web", endpoints: map[string]object{}}
	in.ID, in.Image = idWeb, "sha256:1"
	in.State = &container.State{Status: "running", Pid: 1}
	in.Config, in.HostConfig, in.Mounts = &container.Config{}, &container.HostConfig{}, mounts
	for raw, out := range map[string]any{config: in.Config, host: in.HostConfig} {
		if err := json.Unmarshal([]byte(raw), out); err != nil {
			t.Fatal(err)
		}
	}
	var err error
	if in.config, err = parseObject(json.RawMessage(config)); err != nil {
		t.Fatal(err)
	}
	if in.hostConfig, err = parseObject(json.RawMessage(host)); err != nil {
		t.Fatal(err)
	}
	return in
}

func refsForTest() *references {
	all := []container.Summary{
		{ID: idWeb, Names: []string{"/web", "/other/link"}},
		{ID: idDB, Names: []string{"/db"}, Mounts: []container.MountPoint{{Type: mount.TypeVolume, Name: "fromdb", Destination: "/fromdb"}}},
		{ID: idOther, Names: []string{"/other"}},
	}
	return newReferences(all, all[:2], []network.Summary{{Network: network.Network{ID: "0123", Name: "front"}}})
}

func noMAC(inspected, string) string { return "" }

func TestNormaliseHostConfig(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name         string
		config, host string
		mounts       []container.MountPoint
		want         map[string]any // fields of the host configuration
		wantConfig   map[string]any
		needs        []string
		note         string
	}{
		{
			name: "references by id", config: `{"Hostname":"x"}`,
			host:  `{"NetworkMode":"0123","PidMode":"container:` + idDB + `","IpcMode":"container:db","Links":["/db:/web/base"],"VolumesFrom":["` + idDB + `:ro"]}`,
			want:  map[string]any{"NetworkMode": "front", "PidMode": "container:db", "IpcMode": "container:db", "Links": []any{"db:base"}, "VolumesFrom": []any{"db:ro"}},
			needs: []string{"db", "db", "db", "db"},
		},
		{
			name: "references to what is not in the system", config: `{}`,
			host:   `{"Links":["/other:/web/o"],"VolumesFrom":["` + idOther + `"]}`,
			mounts: []container.MountPoint{{Type: mount.TypeVolume, Name: "theirs", Destination: "/theirs"}, {Type: mount.TypeBind, Source: "/srv/theirs", Destination: "/b", RW: true}},
			want: map[string]any{"Links": nil, "VolumesFrom": nil, "Mounts": []any{
				map[string]any{"Type": "volume", "Source": "theirs", "Target": "/theirs", "ReadOnly": true},
				map[string]any{"Type": "bind", "Source": "/srv/theirs", "Target": "/b"},
			}},
			note: "other",
		},
		{
			name: "anonymous volumes", config: `{"Volumes":{"/anon":{}}}`,
			host: `{"Binds":["named:/named"],"Mounts":[{"Type":"volume","Target":"/unnamed","Future":1}],"VolumesFrom":["db"]}`,
			mounts: []container.MountPoint{
				{Type: mount.TypeVolume, Name: "named", Destination: "/named", RW: true},
				{Type: mount.TypeVolume, Name: "anon", Destination: "/anon", RW: true},
				{Type: mount.TypeVolume, Name: "unnamed", Destination: "/unnamed", RW: true},
				{Type: mount.TypeVolume, Name: "fromdb", Destination: "/fromdb", RW: true},
			},
			want: map[string]any{"Mounts": []any{
				map[string]any{"Type": "volume", "Source": "unnamed", "Target": "/unnamed", "Future": 1.0},
				map[string]any{"Type": "volume", "Source": "anon", "Target": "/anon"},
			}},
			needs: []string{"db"},
		},
		{
			name: "another's network", config: `{"Hostname":"db","ExposedPorts":{"80/tcp":{}},"Future":"kept"}`,
			host:       `{"NetworkMode":"container:` + idDB + `","PortBindings":{"80/tcp":[{"HostPort":"80"}]},"Dns":["1.1.1.1"],"FutureHost":[1]}`,
			want:       map[string]any{"NetworkMode": "container:db", "PortBindings": map[string]any{}, "Dns": []any{}, "FutureHost": []any{1.0}},
			wantConfig: map[string]any{"Hostname": "", "ExposedPorts": nil, "Future": "kept"},
			needs:      []string{"db"},
		},
		{
			name: "the host's network", config: `{"Hostname":"thishost"}`, host: `{"NetworkMode":"host","CgroupnsMode":"host","ConsoleSize":[30,80]}`,
			want:       map[string]any{"CgroupnsMode": "", "ConsoleSize": []any{0.0, 0.0}},
			wantConfig: map[string]any{"Hostname": ""},
		},
		{
			name: "the host's network, with a name of its own", config: `{"Hostname":"mine"}`, host: `{"NetworkMode":"host","CgroupnsMode":"private"}`,
			want:       map[string]any{"CgroupnsMode": "private"},
			wantConfig: map[string]any{"Hostname": "mine"},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			got, needs, notes := normalise(seen(t, c.config, c.host, c.mounts), nil, facts{EngineInfo: dr.EngineInfo{Name: "thishost"}}, refsForTest(), noMAC)
			check := func(what string, raw json.RawMessage, want map[string]any) {
				var fields map[string]any
				if err := json.Unmarshal(raw, &fields); err != nil {
					t.Fatal(err)
				}
				for field, w := range want {
					if d := cmp.Diff(w, fields[field]); d != "" {
						t.Errorf("%s: field %s (-want +got):\n%s", what, field, d)
					}
				}
			}
			check("host configuration", got.HostConfig, c.want)
			check("configuration", got.Config, c.wantConfig)
			if d := cmp.Diff(c.needs, needs); d != "" {
				t.Errorf("needs (-want +got):\n%s", d)
			}
			if (c.note == "") != (len(notes) == 0) || !strings.Contains(strings.Join(notes, " "), c.note) {
				t.Errorf("notes %q, want %q", notes, c.note)
			}
		})
	}
}

func TestMACAddress(t *testing.T) {
	t.Parallel()
	ep := func(mac, ip string) map[string]object {
		o := object{}
		o.set("MacAddress", mac)
		o.set("IPAddress", ip)
		return map[string]object{"n": o}
	}
	for _, c := range []struct {
		name    string
		version string
		running bool
		mac, ip string
		config  string
		want    string
	}{
		{"made from the address", "20.10.24", true, "02:42:0a:00:00:05", "10.0.0.5", `{}`, ""},
		{"asked for, older engine", "20.10.24", true, "de:ad:00:00:00:01", "10.0.0.5", `{}`, "de:ad:00:00:00:01"},
		{"not running", "28.0.0", false, "de:ad:00:00:00:01", "", `{}`, "de:ad:00:00:00:01"},
		{"random, newer engine", "28.0.0", true, "de:ad:00:00:00:01", "10.0.0.5", `{}`, ""},
	} {
		in := seen(t, c.config, `{}`, nil)
		in.endpoints = ep(c.mac, c.ip)
		if !c.running {
			in.State = &container.State{Status: "exited"}
		}
		if got := macFinder(HostFS{}, facts{EngineInfo: dr.EngineInfo{Version: c.version}})(in, "n"); got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

// TestOldMAC: an address that was asked for in the configuration is kept with
// the endpoint, and given to older engines where they look for it.
func TestOldMAC(t *testing.T) {
	t.Parallel()
	in := seen(t, `{"MacAddress":"de:ad:00:00:00:01"}`, `{"NetworkMode":"front"}`, nil)
	in.endpoints["front"], in.endpoints["back"] = object{}, object{}
	c, _, _ := normalise(in, nil, facts{}, refsForTest(), noMAC)
	if got := string(c.Endpoints["front"]) + string(c.Endpoints["back"]) + string(c.Config); got != `{"MacAddress":"de:ad:00:00:00:01"}{}{}` {
		t.Errorf("got %s", got)
	}
	req := object{}
	oldMAC(req, c.Endpoints)
	if req.text("MacAddress") != "de:ad:00:00:00:01" {
		t.Errorf("request %s", req.raw())
	}
}

func TestRefused(t *testing.T) {
	t.Parallel()
	in := seen(t, `{}`, `{}`, nil)
	o := object{}
	o.set("IPAddress", "172.17.0.9")
	in.endpoints["bridge"] = o
	in.NetworkSettings = &container.NetworkSettings{Ports: network.PortMap{
		network.MustParsePort("5000/tcp"): {{HostIP: netip.MustParseAddr("127.0.0.1"), HostPort: "5001"}},
		network.MustParsePort("53/udp"):   {{HostPort: "53"}},
	}}
	for _, c := range []struct {
		name string
		r    reservedAddr
		want bool
	}{
		{"published on loopback", reservedAddr{"127.0.0.1", "5001", "x"}, true},
		{"published on localhost", reservedAddr{"localhost", "5001", "x"}, true},
		{"another port", reservedAddr{"127.0.0.1", "5000", "x"}, false},
		{"another host", reservedAddr{"192.0.2.1", "5001", "x"}, false},
		{"its own address", reservedAddr{"172.17.0.9", "5000", "x"}, true},
		{"the resolver", reservedAddr{"127.0.0.1", "53", "x"}, true},
	} {
		if got := refused(in, "", []reservedAddr{c.r}) != ""; got != c.want {
			t.Errorf("%s: refused %v, want %v", c.name, got, c.want)
		}
	}
	if refused(in, idWeb, nil) == "" {
		t.Error("the container that Lifeboat runs in is not refused")
	}
	in.State = &container.State{Status: "exited"}
	if why := refused(in, "", []reservedAddr{{"127.0.0.1", "5001", "x"}}); why != "" {
		t.Errorf("a container that does not run is refused: %s", why)
	}
}

func TestNetworkSpecAssigned(t *testing.T) {
	t.Parallel()
	for spec, want := range map[string]bool{
		`{"IPAM":{"Config":[{"Subnet":"172.18.0.0/16","Gateway":"172.18.0.1"}]}}`:     true,
		`{"IPAM":{"Config":[{"Subnet":"192.168.16.0/20","Gateway":"192.168.16.1"}]}}`: true,
		`{"IPAM":{"Config":[{"Subnet":"172.18.0.0/16","Gateway":"172.18.0.254"}]}}`:   false,
		`{"IPAM":{"Config":[{"Subnet":"172.18.0.0/24"}]}}`:                            false,
		`{"IPAM":{"Config":[{"Subnet":"10.1.0.0/16"}]}}`:                              false,
		`{"IPAM":{"Config":[{"Subnet":"172.18.0.0/16","IPRange":"172.18.5.0/24"}]}}`:  false,
		`{"IPAM":{"Config":[{"Subnet":"fd00::/64"}]}}`:                                false,
		`{"IPAM":{"Config":[{"Subnet":"nonsense"}]}}`:                                 false,
		`{}`: true,
	} {
		s, err := ParseNetworkSpec(json.RawMessage(spec))
		if err != nil || s.LooksAssigned() != want {
			t.Errorf("%s: assigned %v, %v; want %v", spec, s.LooksAssigned(), err, want)
		}
	}
}

func TestBindReason(t *testing.T) {
	t.Parallel()
	d := &discovery{e: &Engine{socket: "/srv/my.sock"}, f: facts{rootDir: "/var/lib/docker"}}
	for src, captured := range map[string]bool{
		"/srv/app": true, "/srv": true, "/home/u/site": true, "/etc/myapp": true, "/etc/nginx/nginx.conf": true, "/opt": true, "/var/www": true, "/run/app": true,
		"/": false, "/proc/sys": false, "/sys": false, "/dev/shm": false, "/etc": false, "/usr": false, "/var": false, "/etc/localtime": false, "/lib/modules/6": false,
		"/var/lib/docker": false, "/var/lib/docker/volumes/x": false, "/var/lib": false, "/run/docker.sock": false, "/srv/my.sock": false, "/run/systemd/x": false,
	} {
		b := &Bind{Bind: dr.Bind{Source: src}, Kind: "dir"}
		if why := d.bindReason(b); (why == "") != captured {
			t.Errorf("%s: reason %q, captured wanted: %v", src, why, captured)
		}
	}
	for kind, captured := range map[string]bool{"dir": true, "file": true, "missing": false, "socket": false, "device": false} {
		b := &Bind{Bind: dr.Bind{Source: "/srv/x"}, Kind: kind}
		if why := d.bindReason(b); (why == "") != captured {
			t.Errorf("%s: reason %q, captured wanted: %v", kind, why, captured)
		}
	}
}

func FuzzNormalise(f *testing.F) {
	f.Add(`{"Hostname":"a"}`, `{"Binds":["a:b"],"Mounts":[{"Type":"volume"}],"VolumesFrom":["x:ro"],"Links":["a"]}`)
	f.Add(`{"Entrypoint":5}`, `{"NetworkMode":7,"Mounts":{},"Links":null}`)
	f.Fuzz(func(t *testing.T, config, host string) {
		in := inspected{name: "web", endpoints: map[string]object{}}
		in.ID, in.State, in.Config, in.HostConfig = idWeb, &container.State{}, &container.Config{}, &container.HostConfig{}
		var err error
		if in.config, err = parseObject(json.RawMessage(config)); err != nil {
			return
		}
		if in.hostConfig, err = parseObject(json.RawMessage(host)); err != nil {
			return
		}
		c, _, _ := normalise(in, nil, facts{}, refsForTest(), noMAC)
		if !json.Valid(c.Config) || !json.Valid(c.HostConfig) {
			t.Fatalf("not JSON: %s %s", c.Config, c.HostConfig)
		}
	})
}
