package freeze

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestRefuse(t *testing.T) {
	ep := func(s string) Endpoint {
		proto, addr, _ := strings.Cut(s, " ")
		return Endpoint{proto, netip.MustParseAddrPort(addr)}
	}
	ip := netip.MustParseAddr
	a := Container{ID: idA, Name: "a", Pid: 100}
	b := Container{ID: idB, Name: "b", Pid: 200}
	base := func(change func(*Facts)) Facts {
		f := Facts{
			Containers: []ContainerFacts{{Container: a, Pids: []int{100, 101}}, {Container: b, Pids: []int{200}}},
			Self:       []int{50, 40, 1},
			Namespaces: []Namespace{
				{ID: 1, Own: true, Host: true, Addrs: []netip.Addr{ip("192.0.2.1"), ip("172.17.0.1"), ip("2001:db8::1")}},
				{ID: 2, Addrs: []netip.Addr{ip("172.17.0.2")}, Containers: []string{idA}},
				{ID: 3, Addrs: []netip.Addr{ip("172.17.0.3")}, Containers: []string{idB}},
			},
		}
		change(&f)
		return f
	}
	needs := func(what What, e string) func(*Facts) {
		return func(f *Facts) { f.Needs = append(f.Needs, Need{ep(e), what, "x"}) }
	}
	both := func(fs ...func(*Facts)) func(*Facts) {
		return func(f *Facts) {
			for _, g := range fs {
				g(f)
			}
		}
	}
	for _, tc := range []struct {
		name  string
		facts Facts
		want  []string // "container what"
	}{
		{name: "nothing", facts: base(func(*Facts) {})},
		{name: "itself", facts: base(func(f *Facts) { f.Self[0] = 101 }), want: []string{"a runs Lifeboat"}},
		{name: "an ancestor", facts: base(func(f *Facts) { f.Self[1] = 200 }), want: []string{"b runs Lifeboat"}},
		{name: "own mounts", facts: base(func(f *Facts) { f.SelfContainers = []string{idB, "other"} }), want: []string{"b runs Lifeboat"}},
		{name: "socket proxy", facts: base(func(f *Facts) { f.EngineServers = []int{101, 7} }), want: []string{"a " + string(WhatEngine)}},
		{name: "registry elsewhere", facts: base(needs(WhatRegistry, "tcp 198.51.100.7:443"))},
		{name: "registry on the host itself", facts: base(needs(WhatRegistry, "tcp 127.0.0.1:5000"))},
		{
			name: "registry at a container's address", facts: base(needs(WhatRegistry, "tcp 172.17.0.3:5000")),
			want: []string{"b " + string(WhatRegistry)},
		},
		{name: "registry in a container on the host's network", facts: base(both(needs(WhatRegistry, "tcp 127.0.0.1:5000"), func(f *Facts) {
			f.Namespaces[0].Listeners = []Listener{{ep("tcp [::]:5000"), []int{200}}, {ep("tcp 127.0.0.1:6000"), []int{100}}}
		})), want: []string{"b " + string(WhatRegistry)}},
		{name: "another port of it", facts: base(both(needs(WhatRegistry, "tcp 127.0.0.1:5001"), func(f *Facts) {
			f.Namespaces[0].Listeners = []Listener{{ep("tcp 0.0.0.0:5000"), []int{200}}}
		}))},
		{name: "bound to another address", facts: base(both(needs(WhatRegistry, "tcp 192.0.2.1:5000"), func(f *Facts) {
			f.Namespaces[0].Listeners = []Listener{{ep("tcp 127.0.0.1:5000"), []int{200}}}
		}))},
		{name: "published, as the engine says", facts: base(both(needs(WhatRegistry, "tcp 192.0.2.1:5000"), func(f *Facts) {
			f.Containers[1].Published = []Endpoint{ep("tcp 0.0.0.0:5000"), ep("tcp [::]:5000")}
		})), want: []string{"b " + string(WhatRegistry)}},
		{name: "published over IPv6", facts: base(both(needs(WhatRegistry, "tcp [2001:db8::1]:5000"), func(f *Facts) {
			f.Containers[1].Published = []Endpoint{ep("tcp 0.0.0.0:5000"), ep("tcp [::]:5000")}
		})), want: []string{"b " + string(WhatRegistry)}},
		{name: "published by a proxy process", facts: base(both(needs(WhatEngine, "tcp 127.0.0.1:2375"), func(f *Facts) {
			f.Forwards = []Forward{{ep("tcp 127.0.0.1:2375"), ep("tcp 172.17.0.2:2375")}}
		})), want: []string{"a " + string(WhatEngine)}},
		{name: "proxies in a circle", facts: base(both(needs(WhatEngine, "tcp 127.0.0.1:1"), func(f *Facts) {
			f.Forwards = []Forward{{ep("tcp 127.0.0.1:1"), ep("tcp 127.0.0.1:1")}}
		}))},
		{name: "resolver in a container", facts: base(both(needs(WhatResolver, "udp 127.0.0.1:53"), needs(WhatResolver, "tcp 127.0.0.1:53"), func(f *Facts) {
			f.Containers[0].Published = []Endpoint{ep("udp 0.0.0.0:53")}
		})), want: []string{"a " + string(WhatResolver)}},
		{name: "shared network namespace: the one that listens", facts: base(both(needs(WhatRegistry, "tcp 172.17.0.2:5000"), func(f *Facts) {
			f.Namespaces[1].Containers = []string{idA, idB}
			f.Namespaces[1].Listeners = []Listener{{ep("tcp 0.0.0.0:5000"), []int{200}}}
		})), want: []string{"b " + string(WhatRegistry)}},
		{name: "shared network namespace: nobody seen", facts: base(both(needs(WhatRegistry, "tcp 172.17.0.2:5000"), func(f *Facts) {
			f.Namespaces[1].Containers = []string{idA, idB}
		})), want: []string{"a " + string(WhatRegistry), "b " + string(WhatRegistry)}},
		{name: "gateway", facts: base(func(f *Facts) {
			f.Routes = []Route{{To: ip("198.51.100.7"), Gateway: ip("172.17.0.3"), Interface: "docker0"}}
		}), want: []string{"b " + string(WhatRoute)}},
		{name: "gateway elsewhere", facts: base(func(f *Facts) {
			f.Routes = []Route{{To: ip("198.51.100.7"), Gateway: ip("192.0.2.254"), Interface: "eth0"}, {To: ip("198.51.100.7"), Interface: "eth0"}}
		})},
		{name: "tunnel", facts: base(func(f *Facts) {
			f.Routes = []Route{{To: ip("198.51.100.7"), Interface: "tun0", Servers: []int{100, 9}}}
		}), want: []string{"a " + string(WhatRoute)}},
		{name: "FUSE", facts: base(func(f *Facts) {
			f.Mounts = []ServedMount{{Path: "/data", Type: "fuse.s3fs", Servers: []int{200, 200}}, {Path: "/x", Type: "fuse.sshfs", Servers: []int{9}}}
		}), want: []string{"b " + string(WhatMount)}},
		{name: "several, in order", facts: base(func(f *Facts) {
			f.Self[0] = 200
			f.EngineServers = []int{200}
			f.SelfContainers = []string{idA}
		}), want: []string{"a " + string(WhatSelf), "b " + string(WhatSelf), "b " + string(WhatEngine)}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			reasons := Refuse(tc.facts)
			var got []string
			for _, r := range reasons {
				got = append(got, r.Container.Name+" "+string(r.What))
				if r.Why == "" {
					t.Errorf("no evidence for %v", r)
				}
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("reasons (-want +got):\n%s", diff)
			}
			err := RefuseError(reasons)
			if (err == nil) != (len(tc.want) == 0) || err != nil && !errors.Is(err, ErrForbidden) {
				t.Errorf("error %v", err)
			}
		})
	}
}

func TestParseProxy(t *testing.T) {
	line := func(args ...string) []byte { return []byte(strings.Join(args, "\x00") + "\x00") }
	want := Forward{Endpoint{"udp", netip.MustParseAddrPort("0.0.0.0:53")}, Endpoint{"udp", netip.MustParseAddrPort("172.17.0.2:5353")}}
	for _, args := range [][]string{
		{"/usr/sbin/docker-proxy", "-proto", "udp", "-host-ip", "0.0.0.0", "-host-port", "53", "-container-ip", "172.17.0.2", "-container-port", "5353"},
		{"docker-proxy", "-proto=udp", "--host-ip=0.0.0.0", "-host-port=53", "-container-ip=172.17.0.2", "-container-port=5353", "-use-listen-fd"},
	} {
		if got, ok := parseProxy(line(args...)); !ok || got != want {
			t.Errorf("%v: %v %v", args, got, ok)
		}
	}
	for _, args := range [][]string{{"docker-proxy"}, {"bash", "-proto", "tcp"}, {""}, {"docker-proxy", "-host-ip", "x", "-host-port", "1"}} {
		if got, ok := parseProxy(line(args...)); ok {
			t.Errorf("%v: %v", args, got)
		}
	}
}

func TestParseHexAddr(t *testing.T) {
	// As a little endian machine shows them.
	for s, want := range map[string]string{
		"0100007F:1F90":                         "127.0.0.1:8080",
		"00000000000000000000000000000000:0035": "[::]:53",
		"0000000000000000FFFF00000100007F:0001": "127.0.0.1:1",
		"B80D0120000000000000000001000000:0050": "[2001:db8::1]:80",
	} {
		if got, err := parseHexAddr(s); err != nil || got.String() != want {
			t.Errorf("%s: %v, %v; want %s", s, got, err, want)
		}
	}
}

func TestParseRefusesGarbage(t *testing.T) {
	for _, s := range []string{"", "0100007F", "0100007F:", "01:1", "zz00007F:1", "0100007F:11111"} {
		if got, err := parseHexAddr(s); err == nil {
			t.Errorf("%q: %v", s, got)
		}
	}
	if _, err := parseSockets([]byte("heading\n 0: x\n"), "tcp"); err == nil {
		t.Error("short line accepted")
	}
	for _, b := range [][]byte{nil, make([]byte, 3), make([]byte, 16), make([]byte, 64)} {
		if _, _, err := parseRoute(b); err == nil {
			t.Errorf("route out of %d zeros", len(b))
		}
	}
}

func TestWalked(t *testing.T) {
	all := []mount{
		{point: "/", fstype: "ext4"},
		{point: "/data", fstype: "fuse.a"},
		{point: "/data", fstype: "fuse.b"},
		{point: "/data/vol/sub", fstype: "fuse.c"},
		{point: "/other", fstype: "fuse.d"},
		{point: "/database", fstype: "fuse.e"},
	}
	var got []string
	for _, m := range walked(all, []string{"/data/vol/"}) {
		got = append(got, m.fstype)
	}
	if diff := cmp.Diff([]string{"fuse.b", "fuse.c"}, got); diff != "" {
		t.Error(diff)
	}
}
