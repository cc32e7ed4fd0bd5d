package recover

import (
	"bufio"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math/bits"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"lifeboat/internal/override"
	"lifeboat/internal/plan"
	"lifeboat/internal/suggest"
)

// conflicts lists what stands in the way, with the overrides that solve it
// written as the command line takes them.
func (b *bringUp) conflicts(wants plan.Wants, taken plan.Taken) []plan.Conflict {
	if b.survey.host.Local {
		taken.Routes = routes(b.survey.host.EnginePID)
		taken.PathExists = func(p string) bool {
			state, err := b.survey.pathState(p)
			return err != nil || state != "missing"
		}
	}
	return written(plan.Conflicts(wants, taken))
}

func written(list []plan.Conflict) []plan.Conflict {
	for i := range list {
		c := &list[i]
		if c.Path == nil {
			continue
		}
		flag, ok := override.Pair{Path: c.Path, Value: &c.Value}.Flag()
		if !ok {
			c.Solve = fmt.Sprintf("%q below overrides in the configuration: %s", c.Path, c.Value)
			continue
		}
		c.Override, c.Solve = flag, suggest.Command("--override", flag)
	}
	return list
}

// routes lists the ranges that a network namespace reaches, the one that
// process pid is in; its default route is none. What cannot be read gives none.
func routes(pid int) []netip.Prefix {
	if pid == 0 {
		pid = 1
	}
	var out []netip.Prefix
	for _, table := range []struct {
		file  string
		parse func([]string) (netip.Prefix, bool)
	}{{"route", route4}, {"ipv6_route", route6}} {
		f, err := os.Open(fmt.Sprintf("/proc/%d/net/%s", pid, table.file))
		if err != nil {
			continue
		}
		for lines := bufio.NewScanner(f); lines.Scan(); {
			if p, ok := table.parse(strings.Fields(lines.Text())); ok && p.Bits() > 0 {
				out = append(out, p)
			}
		}
		_ = f.Close() // read only
	}
	return out
}

// route4 reads a line of /proc/net/route, where addresses are printed as numbers
// of this host's byte order.
func route4(fields []string) (netip.Prefix, bool) {
	if len(fields) < 8 {
		return netip.Prefix{}, false
	}
	dst, errDst := hex.DecodeString(fields[1])
	mask, errMask := hex.DecodeString(fields[7])
	if errDst != nil || errMask != nil || len(dst) != 4 || len(mask) != 4 {
		return netip.Prefix{}, false
	}
	var addr [4]byte
	binary.BigEndian.PutUint32(addr[:], binary.NativeEndian.Uint32(dst))
	return netip.PrefixFrom(netip.AddrFrom4(addr), bits.OnesCount32(binary.NativeEndian.Uint32(mask))).Masked(), true
}

// route6 reads a line of /proc/net/ipv6_route, leaving out what every host has:
// link-local, multicast and single addresses.
func route6(fields []string) (netip.Prefix, bool) {
	if len(fields) < 2 || len(fields[0]) != 32 {
		return netip.Prefix{}, false
	}
	dst, err := hex.DecodeString(fields[0])
	if err != nil {
		return netip.Prefix{}, false
	}
	length, err := strconv.ParseUint(fields[1], 16, 8)
	a := netip.AddrFrom16([16]byte(dst))
	if err != nil || length > 127 || a.IsLinkLocalUnicast() || a.IsMulticast() {
		return netip.Prefix{}, false
	}
	return netip.PrefixFrom(a, int(length)).Masked(), true
}
