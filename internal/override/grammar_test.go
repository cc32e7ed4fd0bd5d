package override_test

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"lifeboat/internal/dr"
	"lifeboat/internal/override"
)

var comparers = cmp.Options{cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })}

func TestParsePair(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]override.Set{
		"ports.8080:80/tcp=18080":                {Ports: map[override.PortKey]override.PortTarget{{HostPort: 8080, ContainerPort: 80, Proto: "tcp"}: {HostPort: 18080}}},
		"ports.web.1/8080=none":                  {Ports: map[override.PortKey]override.PortTarget{{Container: "web.1", HostPort: 8080}: {None: true}}},
		"ports.8080":                             {Ports: map[override.PortKey]override.PortTarget{{HostPort: 8080}: {None: true}}},
		"ports.0.0.0.0::80=127.0.0.1:auto":       {Ports: map[override.PortKey]override.PortTarget{{HostIP: netip.MustParseAddr("0.0.0.0"), ContainerPort: 80}: {Auto: true, HostIP: netip.MustParseAddr("127.0.0.1")}}},
		"ports.123/8080:80=1":                    {Ports: map[override.PortKey]override.PortTarget{{Container: "123", HostPort: 8080, ContainerPort: 80}: {HostPort: 1}}},
		"paths./srv/a.b=/x=y":                    {Paths: map[string]string{"/srv/a.b": "/x=y"}},
		`paths."/srv/a=b"=/x`:                    {Paths: map[string]string{"/srv/a=b": "/x"}},
		"environment.web.spring.url=a=b":         {Environment: map[override.Variable]*string{{Container: "web", Name: "spring.url"}: ptr("a=b")}},
		`environment."my.web".A=`:                {Environment: map[override.Variable]*string{{Container: "my.web", Name: "A"}: ptr("")}},
		"environment.*.A":                        {Environment: map[override.Variable]*string{{Container: "*", Name: "A"}: nil}},
		"networks.a.b.name=c":                    {Networks: map[string]override.Network{"a.b": {Name: "c"}}},
		"networks.n.subnet=10.1.0.0/24, fd::/64": {Networks: map[string]override.Network{"n": {Subnets: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/24"), netip.MustParsePrefix("fd::/64")}}}},
		"limits.web.1.cpus=1.5":                  {Limits: map[string]override.Limit{"web.1": {NanoCPUs: ptr(int64(15e8))}}},
		"names.prefix=dr-":                       {Names: override.Names{Prefix: "dr-"}},
		"names.containers.a.b=a.c":               {Names: override.Names{Containers: map[string]string{"a.b": "a.c"}}},
	} {
		var got override.Set
		if err := got.ParsePair(text); err != nil {
			t.Errorf("%s: %v", text, err)
		} else if d := cmp.Diff(want, got, comparers); d != "" {
			t.Errorf("%s (-want +got):\n%s", text, d)
		}
	}
}

func ptr[T any](v T) *T { return &v }

func TestParsePairRefuses(t *testing.T) {
	t.Parallel()
	for text, say := range map[string]string{
		"":                              "unknown override",
		"port.80=1":                     `did you mean "ports"?`,
		"ports=1":                       "names too little",
		"ports.=1":                      "names too little",
		"ports.x=1":                     "is not a port",
		"ports.0=1":                     "is not a port",
		"ports.70000=1":                 "is not a port",
		"ports.80/icmp=1":               "none of tcp, udp, sctp",
		"ports./80=1":                   "the container is missing",
		"ports.1.2.3:8080:80=1":         "the host address is none",
		"ports.80=here":                 "is not where a port can be published",
		"ports.80=1.2.3:80":             "is not where a port can be published",
		"paths.srv=/x":                  "not absolute",
		"paths./srv/=/x":                "not absolute and clean",
		"paths./=/x":                    "cannot be moved",
		"paths./srv":                    "no new path",
		"environment.web=1":             "names too little",
		`environment."web=1`:            "not closed",
		"networks.n.sbunet=1":           `did you mean "subnet"?`,
		"networks.n.subnet=10.0.0.1/24": "not a subnet",
		"networks.n.gateway=x":          "not an address",
		"networks.n.name":               "has no value",
		"limits.web.memory=512q":        "not a size",
		"limits.web.memory=1MiB":        "at least",
		"limits.web.cpus=NaN":           "not a number of processors",
		"limits.web.cpus=0":             "not a number of processors",
		"limits.web.pids=-1":            "not a number of processes",
		"limits.web.cpuset=a":           "not a list of processors",
		"limits.web.disk=1":             "unknown limit",
		"names.prefix=DR":               "prefix",
		"names.prefx=dr":                `did you mean "prefix"?`,
		"names.containers.a=/":          "container name",
		"names.volumes.a=":              "volume name",
		"names.volumes.a":               "no new name",
	} {
		var s override.Set
		err := s.ParsePair(text)
		if !errors.Is(err, override.ErrSyntax) || !errors.Is(err, dr.ErrUsage) {
			t.Errorf("%q: got %v, want ErrSyntax", text, err)
		} else if !strings.Contains(err.Error(), say) {
			t.Errorf("%q: %v does not say %q", text, err, say)
		}
		if !s.Empty() {
			t.Errorf("%q: set was changed: %+v", text, s)
		}
	}
	s := parse(t, "networks.n.existing=lan")
	if err := s.ParsePair("networks.n.subnet=10.0.0.0/8"); !errors.Is(err, override.ErrSyntax) {
		t.Errorf("existing and subnet: %v", err)
	}
}

func TestMerge(t *testing.T) {
	t.Parallel()
	file := parse(t, "ports.80=81", "limits.a.pids=5", "limits.a.cpus=1", "networks.n.name=m", "names.prefix=x-", "environment.a.A=1")
	flags := parse(t, "ports.80=82", "limits.a.pids=6", "networks.n.gateway=10.0.0.1", "environment.a.A", "paths./a=/b")
	want := parse(t, "ports.80=82", "limits.a.pids=6", "limits.a.cpus=1", "networks.n.name=m", "networks.n.gateway=10.0.0.1", "names.prefix=x-", "environment.a.A", "paths./a=/b")
	keep := parse(t, "ports.80=81", "limits.a.pids=5", "limits.a.cpus=1", "networks.n.name=m", "names.prefix=x-", "environment.a.A=1")
	if d := cmp.Diff(want, file.Merge(flags), comparers, cmpopts.EquateEmpty()); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff(keep, file, comparers); d != "" {
		t.Errorf("Merge changed its receiver: %s", d)
	}
}

// GenSet draws sets of any shape.
func genSet(t *rapid.T) override.Set {
	var s override.Set
	name := rapid.StringMatching(`[a-z][a-z0-9_.-]{1,8}`)
	forms := map[string]func() (string, string, string){
		"ports": func() (string, string, string) {
			return rapid.StringMatching(`(web/|[0-9a-f]{4}x/)?(127\.0\.0\.[1-9]:)?([1-9][0-9]{0,3})?:[1-9][0-9]{0,3}(/(tcp|udp|sctp))?`).Draw(t, "key"), "",
				rapid.SampledFrom([]string{"none", "auto", "80", "127.0.0.1", "[::1]:80", "10.0.0.1:auto"}).Draw(t, "value")
		},
		"paths": func() (string, string, string) { return "/" + name.Draw(t, "key"), "", "/" + name.Draw(t, "value") },
		"environment": func() (string, string, string) {
			return name.Draw(t, "c"), rapid.StringMatching(`[^=\x00]{1,6}`).Draw(t, "n"), rapid.StringMatching(`[^\x00]*`).Draw(t, "value")
		},
		"networks": func() (string, string, string) {
			f := rapid.SampledFrom([][2]string{{"name", "x"}, {"subnet", "10.0.0.0/8, fd00::/8"}, {"gateway", "10.0.0.1"}}).Draw(t, "field")
			return name.Draw(t, "key"), f[0], f[1]
		},
		"limits": func() (string, string, string) {
			f := rapid.SampledFrom([][2]string{{"memory", "123MiB"}, {"memory", "none"}, {"cpus", "0.25"}, {"pids", "7"}, {"cpuset", "none"}, {"cpuset", "0-1"}}).Draw(t, "field")
			return name.Draw(t, "key"), f[0], f[1]
		},
		"names": func() (string, string, string) {
			return rapid.SampledFrom([]string{"containers", "volumes"}).Draw(t, "kind"), name.Draw(t, "key"), name.Draw(t, "value")
		},
	}
	for range rapid.IntRange(0, 12).Draw(t, "overrides") {
		section := rapid.SampledFrom(override.Sections()).Draw(t, "section")
		a, b, value := forms[section]()
		path := []string{section, a}
		if b != "" {
			path = append(path, b)
		}
		if err := s.Put(path, &value); err != nil {
			t.Fatalf("%q = %q: %v", path, value, err)
		}
	}
	return s
}

func TestPairsGiveTheSetBack(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		s := genSet(t)
		var again, flags override.Set
		for _, p := range s.Pairs() {
			if err := again.Put(p.Path, p.Value); err != nil {
				t.Fatalf("%q: %v", p.Path, err)
			}
			flag, ok := p.Flag()
			if !ok {
				if !strings.Contains(strings.Join(p.Path, ""), `"`) {
					t.Fatalf("%q cannot be a flag", p.Path)
				}
				err := flags.Put(p.Path, p.Value)
				if err != nil {
					t.Fatal(err)
				}
				continue
			}
			if err := flags.ParsePair(flag); err != nil {
				t.Fatalf("%s: %v", flag, err)
			}
		}
		if d := cmp.Diff(s, again, comparers); d != "" {
			t.Fatal(d)
		}
		if d := cmp.Diff(s, flags, comparers); d != "" {
			t.Fatalf("as flags: %s", d)
		}
	})
}

func FuzzParsePair(f *testing.F) {
	for _, s := range []string{"ports.web/8080:80/tcp=[::1]:1", `environment."a.b".C=d`, "networks.a.subnet=10.0.0.0/8", "limits.*.memory=1GiB", "names.volumes.a=bb", `paths."/a=b"=/c`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		var s override.Set
		if err := s.ParsePair(text); err != nil {
			if !errors.Is(err, override.ErrSyntax) {
				t.Errorf("%q: %v is not ErrSyntax", text, err)
			}
			return
		}
		var again override.Set
		for _, p := range s.Pairs() {
			if err := again.Put(p.Path, p.Value); err != nil {
				t.Errorf("%q: %q: %v", text, p.Path, err)
			}
		}
		if d := cmp.Diff(s, again, comparers); d != "" {
			t.Errorf("%q (-want +got):\n%s", text, d)
		}
		// Whatever is asked for, the record stays whole.
		if root, _, err := override.Apply(shop(), s); (root == nil) == (err == nil) {
			t.Errorf("%q: %v, %v", text, root, err)
		}
	})
}
