package override

import (
	"fmt"
	"net/netip"
	"strings"

	"lifeboat/internal/suggest"
)

// move is a captured subnet and what stands in its place.
type move struct{ from, to netip.Prefix }

// networks rewrites subnets and what depends on them: gateways, ranges,
// auxiliary and static addresses, and where a container names such an address
// in its hosts file or as resolver. Addresses keep their place in the subnet.
// Renaming is done by names.
func (a *applier) networks() {
	for _, name := range sortedKeys(a.set.Networks) {
		n := a.set.Networks[name]
		key := "networks." + name
		i := a.findNetwork(key, name)
		if i < 0 {
			continue
		}
		moves := a.moveSubnets(key, i, n.Subnets)
		a.setGateways(key, i, n.Gateways)
		for _, c := range a.containers {
			if e, ok := c.endpoints[name]; ok {
				a.moveStatic(key, c, name, e, moves, n.Existing != "")
				a.moveMentioned(key, c, moves)
			}
		}
		if n.Existing != "" {
			if !a.root.Networks[i].External {
				a.change("network:"+name, "created", "yes", "no, uses "+n.Existing)
			}
			a.root.Networks[i].External = true
		}
	}
}

func (a *applier) findNetwork(key, name string) int {
	var names []string
	for i, n := range a.root.Networks {
		if n.Name == name {
			return i
		}
		names = append(names, n.Name)
	}
	a.fail(key, "the system has no network %q%s", name, suggest.Hint(name, names))
	return -1
}

// moveSubnets replaces the subnets of a network's specification and what lies
// in them.
func (a *applier) moveSubnets(key string, i int, subnets []netip.Prefix) []move {
	if len(subnets) == 0 {
		return nil
	}
	name, spec := a.root.Networks[i].Name, a.specs[i]
	ipam := spec.child("IPAM")
	if ipam == nil {
		ipam = object{}
		spec["IPAM"] = map[string]any(ipam)
	}
	configs := ipam.list("Config")
	var moves []move
	taken := map[int]bool{}
	for _, to := range subnets {
		at := captured(configs, to, taken)
		if at < 0 {
			configs = append(configs, map[string]any{"Subnet": to.String()})
			taken[len(configs)-1] = true
			if to.Addr().Is6() {
				spec["EnableIPv6"] = true
			}
			a.change("network:"+name, "subnet", "", to.String())
			continue
		}
		taken[at] = true
		c := object(configs[at].(map[string]any))
		from, _ := netip.ParsePrefix(c.text("Subnet"))
		m := move{from.Masked(), to}
		moves = append(moves, m)
		c["Subnet"] = to.String()
		a.change("network:"+name, "subnet", from.String(), to.String())
		a.moveWithin(key, name, c, m)
	}
	ipam["Config"] = configs
	a.putSpec(i)
	return moves
}

// captured finds the first subnet of the new one's address family that was not
// replaced yet; -1 where there is none.
func captured(configs []any, to netip.Prefix, taken map[int]bool) int {
	for i, e := range configs {
		c, _ := e.(map[string]any)
		from, err := netip.ParsePrefix(object(c).text("Subnet"))
		if err == nil && from.Addr().Is4() == to.Addr().Is4() && !taken[i] {
			return i
		}
	}
	return -1
}

// moveWithin moves gateway, range and auxiliary addresses of one subnet.
func (a *applier) moveWithin(key, network string, c object, m move) {
	if from, err := netip.ParseAddr(c.text("Gateway")); err == nil {
		if to, ok := a.translate(key, "the gateway", from, []move{m}); ok {
			c["Gateway"] = to.String()
			a.change("network:"+network, "gateway", from.String(), to.String())
		}
	}
	if from, err := netip.ParsePrefix(c.text("IPRange")); err == nil {
		bits := from.Bits() - m.from.Bits() + m.to.Bits()
		to, ok := a.translate(key, "the start of the address range", from.Masked().Addr(), []move{m})
		switch {
		case ok && bits <= to.BitLen():
			c["IPRange"] = netip.PrefixFrom(to, max(bits, m.to.Bits())).Masked().String()
			a.change("network:"+network, "address range", from.String(), c.text("IPRange"))
		case ok:
			a.fail(key, "subnet %s is too small for the address range %s", m.to, from)
		}
	}
	for _, field := range []string{"AuxiliaryAddresses", "AuxAddress"} {
		aux := c.child(field)
		for _, host := range sortedKeys(aux) {
			if from, err := netip.ParseAddr(aux.text(host)); err == nil {
				if to, ok := a.translate(key, "the address of "+host, from, []move{m}); ok {
					aux[host] = to.String()
					a.change("network:"+network, "address of "+host, from.String(), to.String())
				}
			}
		}
	}
}

func (a *applier) setGateways(key string, i int, gateways []netip.Addr) {
	for _, g := range gateways {
		found := false
		for _, e := range a.specs[i].child("IPAM").list("Config") {
			m, _ := e.(map[string]any)
			c := object(m)
			if p, err := netip.ParsePrefix(c.text("Subnet")); err == nil && p.Contains(g) {
				found = true
				a.change("network:"+a.root.Networks[i].Name, "gateway", c.text("Gateway"), g.String())
				c["Gateway"] = g.String()
			}
		}
		if !found {
			a.fail(key, "gateway %s lies in no subnet of the network", g)
		}
	}
	if len(gateways) > 0 {
		a.putSpec(i)
	}
}

func (a *applier) putSpec(i int) {
	raw, err := encodeObject(a.specs[i])
	if err != nil {
		a.problems = append(a.problems, fmt.Errorf("write network %s: %w", a.root.Networks[i].Name, err))
		return
	}
	a.root.Networks[i].Spec = raw
}

// moveStatic moves the static addresses of one endpoint. On a network that is
// not the captured one and whose subnet is not told they cannot be kept.
func (a *applier) moveStatic(key string, c *container, network string, e object, moves []move, elsewhere bool) {
	ipam := e.child("IPAMConfig")
	for _, field := range []string{"IPv4Address", "IPv6Address"} {
		from, err := netip.ParseAddr(ipam.text(field))
		if err != nil {
			continue
		}
		what := "static address in " + network
		switch to, ok := a.translate(key, "the static address of container "+c.name, from, moves); {
		case ok:
			ipam[field] = to.String()
			a.in(c, what, from.String(), to.String())
		case elsewhere && len(moves) == 0:
			delete(ipam, field)
			a.in(c, what, from.String(), "chosen by the engine")
		}
	}
}

// moveMentioned moves addresses of the network in extra hosts and resolvers.
func (a *applier) moveMentioned(key string, c *container, moves []move) {
	if len(moves) == 0 {
		return
	}
	a.renameList(c, "ExtraHosts", "extra host", func(s string) string {
		i := strings.IndexAny(s, ":=")
		if i < 0 {
			return s
		}
		from, err := netip.ParseAddr(strings.Trim(s[i+1:], "[]"))
		if err != nil {
			return s
		}
		if to, ok := a.translate(key, "the extra host "+s[:i], from, moves); ok {
			return s[:i+1] + to.String()
		}
		return s
	})
	a.renameList(c, "Dns", "resolver", func(s string) string {
		if from, err := netip.ParseAddr(s); err == nil {
			if to, ok := a.translate(key, "the resolver", from, moves); ok {
				return to.String()
			}
		}
		return s
	})
}

// translate gives the address with the same place in the new subnet; false
// where from lies in none of the moved subnets, or the new one has no such
// place, which is a problem.
func (a *applier) translate(key, what string, from netip.Addr, moves []move) (netip.Addr, bool) {
	for _, m := range moves {
		if !m.from.Contains(from) {
			continue
		}
		to, ok := transplant(from, m)
		if !ok {
			a.fail(key, "%s, %s, has no place in %s", what, from, m.to)
		}
		return to, ok
	}
	return netip.Addr{}, false
}

func transplant(from netip.Addr, m move) (netip.Addr, bool) {
	host, base := from.AsSlice(), m.to.Addr().AsSlice()
	full := true // all host bits set: the broadcast address of an IPv4 subnet
	for bit := range from.BitLen() {
		mask := byte(0x80 >> (bit % 8))
		if bit < m.from.Bits() {
			host[bit/8] &^= mask
		}
		switch set := host[bit/8]&mask != 0; {
		case bit < m.to.Bits() && set:
			return netip.Addr{}, false
		case bit >= m.to.Bits() && !set:
			full = false
		}
	}
	for i := range host {
		host[i] |= base[i]
	}
	to, _ := netip.AddrFromSlice(host)
	if to.Is4() && full && m.to.Bits() < 31 {
		return netip.Addr{}, false
	}
	return to, true
}
