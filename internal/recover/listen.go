package recover

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/prometheus/procfs"

	"lifeboat/internal/engine"
	"lifeboat/internal/plan"
)

// States of sockets in /proc/net (include/net/tcp_states.h of the kernel).
const (
	tcpListen  = 0x0A
	udpUnbound = 0x07 // no peer: it takes packets from anybody
)

// listening lists the ports that processes of a network namespace hold, the one
// that process pid is in, leaving out those that containers publish: the engine
// tells whose those are. Of the system's own containers (own) those count that are
// asked for, too: the engine may be starting one, and holds the port before it
// calls the container running. A namespace that cannot be read gives none; a port
// that is taken then shows when the container starts.
func listening(pid int, published []engine.InventoryContainer, own func(name string) bool) []plan.Port {
	if pid == 0 {
		pid = 1
	}
	fs, err := procfs.NewFS(fmt.Sprintf("/proc/%d", pid))
	if err != nil {
		return nil
	}
	type port struct {
		proto string
		port  uint16
	}
	skip := map[port]bool{}
	for _, c := range published {
		if c.State != "running" && c.State != "paused" && c.State != "restarting" && !own(c.Name) {
			continue
		}
		for _, p := range c.Ports {
			skip[port{p.Proto, p.Port}] = true
		}
	}
	var out []plan.Port
	add := func(proto string, ip net.IP, number uint64) {
		if number > 0xffff || skip[port{proto, uint16(number)}] {
			return
		}
		p := plan.Port{Proto: proto, Port: uint16(number), By: "a process of the host"}
		// One that listens on all IPv6 addresses takes the IPv4 ones as well.
		if a, ok := netip.AddrFromSlice(ip); ok && !(a.Is6() && a.IsUnspecified()) {
			p.IP = a.Unmap()
		}
		out = append(out, p)
	}
	//lint:ignore SA1019 netlink, which is named instead, speaks of this process's own namespace only
	for _, read := range []func() (procfs.NetTCP, error){fs.NetTCP, fs.NetTCP6} {
		lines, _ := read()
		for _, l := range lines {
			if l.St == tcpListen {
				add("tcp", l.LocalAddr, l.LocalPort)
			}
		}
	}
	for _, read := range []func() (procfs.NetUDP, error){fs.NetUDP, fs.NetUDP6} {
		lines, _ := read()
		for _, l := range lines {
			if l.St == udpUnbound {
				add("udp", l.LocalAddr, l.LocalPort)
			}
		}
	}
	return out
}
