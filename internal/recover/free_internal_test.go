package recover

import (
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"lifeboat/internal/plan"
)

func TestRouteLines(t *testing.T) {
	t.Parallel()
	for line, want := range map[string]string{
		"eth0\t0001A8C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0":    "192.168.1.0/24",
		"eth0\t00000000\t0101A8C0\t0003\t0\t0\t0\t00000000\t0\t0\t0":    "0.0.0.0/0",
		"Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask": "",
		"short": "", "eth0 zz 0 0 0 0 0 zz": "",
	} {
		got, ok := route4(strings.Fields(line))
		if ok != (want != "") || ok && got.String() != want {
			t.Errorf("%q: %v %v, want %s", line, got, ok, want)
		}
	}
	for line, want := range map[string]string{
		"fd000001000000000000000000000000 40 0 00 0 0 0 0 eth0": "fd00:1::/64",
		"fe800000000000000000000000000000 40 0 00 0 0 0 0 eth0": "",
		"00000000000000000000000000000001 80 0 00 0 0 0 0 lo":   "",
		"xx 40": "", "": "",
	} {
		got, ok := route6(strings.Fields(line))
		if ok != (want != "") || ok && got.String() != want {
			t.Errorf("%q: %v %v, want %s", line, got, ok, want)
		}
	}
	for _, p := range routes(os.Getpid()) {
		if p.Bits() == 0 || p != p.Masked() {
			t.Errorf("a route %v", p)
		}
	}
	if got := routes(1 << 30); got != nil {
		t.Errorf("a process that is not there has routes: %v", got)
	}
}

func TestWrittenConflicts(t *testing.T) {
	t.Parallel()
	got := written([]plan.Conflict{
		{Object: "a", Path: []string{"paths", "/srv/a b"}, Value: "/srv/a b-standin"},
		{Object: "b", Path: []string{"paths", `/srv/"`}, Value: "/x"},
		{Object: "c", Solve: "docker network create c"},
		{Object: "d", Path: []string{"networks", "n", "subnet"}, Value: netip.MustParsePrefix("10.0.0.0/24").String()},
	})
	var text []string
	for _, c := range got {
		text = append(text, c.Override, c.Solve)
	}
	if diff := cmp.Diff([]string{
		"paths./srv/a b=/srv/a b-standin", "--override 'paths./srv/a b=/srv/a b-standin'",
		"", `["paths" "/srv/\""] below overrides in the configuration: /x`,
		"", "docker network create c",
		"networks.n.subnet=10.0.0.0/24", "--override networks.n.subnet=10.0.0.0/24",
	}, text); diff != "" {
		t.Error(diff)
	}
}
