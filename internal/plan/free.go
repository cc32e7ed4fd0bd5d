package plan

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// aside is put behind a name that is taken.
const aside = "-standin"

// finder looks for conflicts and for values that are free at the site, each of
// which it gives once.
type finder struct {
	w     Wants
	t     Taken
	out   []Conflict
	names map[string]bool // kind:name that are taken or given
	ports map[Port]bool   // protocol and number that are taken or given
	nets  []netip.Prefix  // that are taken or given
}

func newFinder(w Wants, t Taken) *finder {
	f := &finder{w: w, t: t, names: map[string]bool{}, ports: map[Port]bool{}}
	for kind, names := range map[string][]Wanted{"container": w.Containers, "network": slices.Concat(w.Networks, w.External), "volume": w.Volumes, "path": w.Binds} {
		for _, n := range names {
			f.names[kind+":"+n.Name] = true
		}
	}
	for kind, names := range map[string]map[string]string{"container": t.Containers, "network": t.Networks, "volume": t.Volumes} {
		for n := range names {
			f.names[kind+":"+n] = true
		}
	}
	for _, p := range slices.Concat(w.Ports, t.Ports) {
		f.ports[Port{Proto: p.Proto, Port: p.Port}] = true
	}
	for _, s := range slices.Concat(w.Subnets, t.Subnets) {
		f.nets = append(f.nets, s.Prefix)
	}
	f.nets = append(f.nets, t.Routes...)
	return f
}

// add notes a conflict with the override that solves it; without a value there
// is none.
func (f *finder) add(object, with string, path []string, value string) {
	c := Conflict{Object: object, With: with}
	if value == "" {
		c.Solve = "nothing is free here: set overrides." + strings.Join(path, ".") + " by hand"
	} else {
		c.Path, c.Value = path, value
	}
	f.out = append(f.out, c)
}

func (f *finder) named(kind string, names []Wanted, taken map[string]string, path func(string) []string) {
	for _, n := range names {
		if by, ok := taken[n.Name]; ok && !f.t.Own[kind+":"+n.Name] {
			f.add(kind+" "+n.Name, by, path(n.Captured), f.freeName(kind, n.Name, func(string) bool { return false }))
		}
	}
}

func (f *finder) freeName(kind, name string, exists func(string) bool) string {
	for i := 1; ; i++ {
		try := name + aside
		if i > 1 {
			try += "-" + strconv.Itoa(i)
		}
		if !f.names[kind+":"+try] && !exists(try) {
			f.names[kind+":"+try] = true
			return try
		}
	}
}

// binds puts a path beside the one that is taken. What lies below a path that
// moves goes with it.
func (f *finder) binds() {
	exists := f.t.PathExists
	if exists == nil {
		exists = func(string) bool { return false }
	}
	sorted := slices.Clone(f.w.Binds)
	slices.SortStableFunc(sorted, func(a, b Wanted) int { return len(a.Captured) - len(b.Captured) })
	moved := map[string]string{} // captured path → its override's value
	for _, n := range sorted {
		by, ok := f.t.Binds[n.Name]
		if !ok || f.t.Own["path:"+n.Name] {
			continue
		}
		from := n.Captured
		for above := range moved {
			if strings.HasPrefix(n.Captured, above+"/") {
				from = above
			}
		}
		if moved[from] == "" {
			moved[from] = f.freeName("path", n.Name, exists)
		}
		f.add("path "+n.Name, by, []string{"paths", from}, moved[from])
	}
}

func (f *finder) findPorts() {
	given := map[string]string{} // key → value
	for _, p := range f.w.Ports {
		for _, q := range f.t.Ports {
			if f.t.Own["container:"+q.By] || !overlap(p, q) {
				continue
			}
			if given[p.Key] == "" {
				given[p.Key] = f.freePort(p)
			}
			f.add(fmt.Sprintf("port %s of container %s", portName(p), p.By), "in use by "+q.By, []string{"ports", p.Key}, given[p.Key])
			break
		}
	}
}

// freePort is a port that nobody has at any address: a round number away, as
// people would choose it, else the next one.
func (f *finder) freePort(p Port) string {
	const lowest, ephemeral = 1024, 32768 // above it the kernel draws ports for connections
	start := int(p.Port) + 10000
	if start >= ephemeral {
		start = int(p.Port) + 1
	}
	for i := range 1 << 16 {
		n := start + i
		if n > 0xffff {
			n = n - 0x10000 + lowest
		}
		try := Port{Proto: p.Proto, Port: uint16(n)}
		if n < lowest || n > 0xffff || f.ports[try] {
			continue
		}
		f.ports[try] = true
		return strconv.Itoa(n)
	}
	return ""
}

// subnets replaces each subnet that overlaps; an override names all subnets of
// its network.
func (f *finder) subnets() {
	values := map[string][]string{} // network → its subnets, those in the way replaced
	with := map[Subnet]Subnet{}
	for _, s := range f.w.Subnets {
		at := slices.IndexFunc(f.t.Subnets, func(x Subnet) bool { return s.Prefix.Overlaps(x.Prefix) && !f.t.Own["network:"+x.By] })
		value := s.Prefix.String()
		if at >= 0 {
			with[s] = f.t.Subnets[at]
			value = f.freeSubnet(s.Prefix)
		}
		values[s.By] = append(values[s.By], value)
	}
	for _, s := range f.w.Subnets {
		x, ok := with[s]
		if !ok {
			continue
		}
		value := ""
		if !slices.Contains(values[s.By], "") {
			value = strings.Join(values[s.By], ",")
		}
		f.add(fmt.Sprintf("subnet %s of network %s", s.Prefix, s.By), fmt.Sprintf("overlaps %s of %s", x.Prefix, x.By),
			[]string{"networks", f.captured(s.By), "subnet"}, value)
	}
}

func (f *finder) captured(network string) string {
	for _, n := range f.w.Networks {
		if n.Name == network {
			return n.Captured
		}
	}
	return network
}

// private are the ranges that networks of containers are taken from.
var private = [...]netip.Prefix{
	netip.MustParsePrefix("172.16.0.0/12"), netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("192.168.0.0/16"), netip.MustParsePrefix("fd00::/8"),
}

// freeSubnet is a subnet of the same size that overlaps nothing here: the next
// one in the private range of the captured one, else in another.
func (f *finder) freeSubnet(p netip.Prefix) string {
	pools := slices.Clone(private[:])
	slices.SortStableFunc(pools, func(a, b netip.Prefix) int { // that of p first
		switch {
		case a.Contains(p.Addr()) && !b.Contains(p.Addr()):
			return -1
		case b.Contains(p.Addr()) && !a.Contains(p.Addr()):
			return 1
		}
		return 0
	})
	for _, pool := range pools {
		if pool.Addr().Is4() != p.Addr().Is4() || pool.Bits() > p.Bits() {
			continue
		}
		start := pool.Addr()
		if pool.Contains(p.Addr()) {
			start = p.Masked().Addr()
		}
		if free, ok := f.search(pool, netip.PrefixFrom(start, p.Bits())); ok {
			f.nets = append(f.nets, free)
			return free.String()
		}
	}
	return ""
}

// search goes from one subnet to the next within a pool, once around, past
// everything that is taken.
func (f *finder) search(pool, from netip.Prefix) (netip.Prefix, bool) {
	const tries = 1 << 16
	wrapped := false
	for range tries {
		at := slices.IndexFunc(f.nets, func(x netip.Prefix) bool { return x.Overlaps(from) })
		if at < 0 {
			return from, true
		}
		wide := f.nets[at].Masked() // whichever is larger is stepped over as a whole
		if wide.Bits() > from.Bits() {
			wide = from
		}
		next, ok := after(wide)
		if !ok || !pool.Contains(next) {
			if wrapped {
				return from, false
			}
			wrapped, next = true, pool.Addr()
		}
		from = netip.PrefixFrom(next, from.Bits()).Masked()
	}
	return from, false
}

// after is the first address behind a prefix; false at the end of all.
func after(p netip.Prefix) (netip.Addr, bool) {
	a := p.Masked().Addr().AsSlice()
	for bit := p.Bits() - 1; bit >= 0; bit-- { // adds one at the last bit of the prefix
		mask := byte(0x80 >> (bit % 8))
		if a[bit/8] ^= mask; a[bit/8]&mask != 0 {
			out, ok := netip.AddrFromSlice(a)
			return out, ok
		}
	}
	return netip.Addr{}, false
}
