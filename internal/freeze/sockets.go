package freeze

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"path"
	"strconv"
	"strings"
)

// boundSocket is one line of /proc/PID/net/{tcp,udp}{,6} that takes connections
// or packets from anybody.
type boundSocket struct {
	Endpoint
	inode uint64
}

const (
	stateListen      = "0A"
	stateUnconnected = "07"
)

// parseSockets reads /proc/net/tcp, tcp6, udp or udp6. Connected sockets are
// left out.
func parseSockets(b []byte, proto string) ([]boundSocket, error) {
	want := stateListen
	if proto == "udp" {
		want = stateUnconnected
	}
	var out []boundSocket
	sc := bufio.NewScanner(bytes.NewReader(b))
	sc.Buffer(nil, 1<<16)
	for first := true; sc.Scan(); first = false {
		f := strings.Fields(sc.Text())
		if first || len(f) == 0 {
			continue // the heading
		}
		if len(f) < 10 {
			return nil, fmt.Errorf("%s socket %q: %w", proto, sc.Text(), errMalformed)
		}
		if f[3] != want {
			continue
		}
		ap, err := parseHexAddr(f[1])
		if err != nil {
			return nil, fmt.Errorf("%s socket %q: %w", proto, sc.Text(), err)
		}
		ino, err := strconv.ParseUint(f[9], 10, 64)
		if err != nil {
			return nil, fmt.Errorf("%s socket %q: %w", proto, sc.Text(), errMalformed)
		}
		out = append(out, boundSocket{Endpoint{proto, ap}, ino})
	}
	return out, sc.Err()
}

// parseHexAddr reads the kernel's notation: 32-bit words in the byte order of
// the machine, then the port.
func parseHexAddr(s string) (netip.AddrPort, error) {
	host, port, ok := strings.Cut(s, ":")
	raw, err := hex.DecodeString(host)
	if !ok || err != nil || len(raw) != 4 && len(raw) != 16 {
		return netip.AddrPort{}, errMalformed
	}
	p, err := strconv.ParseUint(port, 16, 16)
	if err != nil {
		return netip.AddrPort{}, errMalformed
	}
	for i := 0; i < len(raw); i += 4 {
		w := binary.BigEndian.Uint32(raw[i:])
		binary.NativeEndian.PutUint32(raw[i:], w)
	}
	a, _ := netip.AddrFromSlice(raw)
	return netip.AddrPortFrom(a.Unmap(), uint16(p)), nil
}

// parseLocalAddrs4 reads the local addresses out of /proc/PID/net/fib_trie.
func parseLocalAddrs4(b []byte) []netip.Addr {
	var out []netip.Addr
	seen := map[netip.Addr]bool{}
	var last netip.Addr
	for line := range bytes.Lines(b) {
		s := strings.TrimSpace(string(line))
		if rest, ok := strings.CutPrefix(s, "|-- "); ok {
			last, _ = netip.ParseAddr(rest)
			continue
		}
		if s == "/32 host LOCAL" && last.IsValid() && !last.IsLoopback() && !seen[last] {
			seen[last] = true
			out = append(out, last)
		}
	}
	return out
}

// parseLocalAddrs6 reads /proc/PID/net/if_inet6.
func parseLocalAddrs6(b []byte) []netip.Addr {
	var out []netip.Addr
	for line := range bytes.Lines(b) {
		f := strings.Fields(string(line))
		if len(f) < 6 {
			continue
		}
		raw, err := hex.DecodeString(f[0])
		if err != nil || len(raw) != 16 {
			continue
		}
		if a := netip.AddrFrom16([16]byte(raw)); !a.IsLoopback() {
			out = append(out, a)
		}
	}
	return out
}

// parseProxy reads the command line of one docker-proxy process.
func parseProxy(cmdline []byte) (Forward, bool) {
	args := strings.Split(strings.TrimRight(string(cmdline), "\x00"), "\x00")
	if path.Base(args[0]) != "docker-proxy" {
		return Forward{}, false
	}
	flags := map[string]string{}
	for i := 1; i < len(args); i++ {
		name, value, joined := strings.Cut(strings.TrimLeft(args[i], "-"), "=")
		if !joined && i+1 < len(args) && !strings.HasPrefix(args[i+1], "-") {
			i++
			value = args[i]
		}
		flags[name] = value
	}
	proto := flags["proto"]
	if proto == "" {
		proto = "tcp"
	}
	from, err1 := addrPort(flags["host-ip"], flags["host-port"])
	to, err2 := addrPort(flags["container-ip"], flags["container-port"])
	if err1 != nil || err2 != nil {
		return Forward{}, false
	}
	return Forward{From: Endpoint{proto, from}, To: Endpoint{proto, to}}, true
}

func addrPort(host, port string) (netip.AddrPort, error) {
	a, err := netip.ParseAddr(host)
	if err != nil {
		return netip.AddrPort{}, err
	}
	p, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return netip.AddrPort{}, err
	}
	return netip.AddrPortFrom(a.Unmap(), uint16(p)), nil
}

// parseNameservers reads the nameserver lines of a resolv.conf; without any,
// the resolver asks the local host.
func parseNameservers(b []byte) []netip.Addr {
	var out []netip.Addr
	for line := range bytes.Lines(b) {
		f := strings.Fields(string(line))
		if len(f) < 2 || f[0] != "nameserver" {
			continue
		}
		if a, err := netip.ParseAddr(f[1]); err == nil {
			out = append(out, a.Unmap())
		}
	}
	if len(out) == 0 {
		out = append(out, netip.AddrFrom4([4]byte{127, 0, 0, 1}))
	}
	return out
}

// fdinfoField gives the value of a "name:\tvalue" line of /proc/PID/fdinfo/FD.
func fdinfoField(b []byte, name string) (string, bool) {
	for line := range bytes.Lines(b) {
		k, v, ok := strings.Cut(string(line), ":")
		if ok && k == name {
			return strings.TrimSpace(v), true
		}
	}
	return "", false
}
