package freeze

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// lookupRoute asks the kernel which way packets to an address take, with all
// its policy rules; /proc/net/route shows only one of the tables.
func lookupRoute(to netip.Addr) (Route, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return Route{}, fmt.Errorf("open netlink: %w", err)
	}
	defer unix.Close(fd)
	tv := unix.NsecToTimeval(int64(2 * time.Second))
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv); err != nil {
		return Route{}, fmt.Errorf("netlink: %w", err)
	}
	if err := unix.Sendto(fd, routeRequest(to), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return Route{}, fmt.Errorf("ask for the route to %s: %w", to, err)
	}
	b := make([]byte, 8192)
	n, _, err := unix.Recvfrom(fd, b, 0)
	if err != nil {
		return Route{}, fmt.Errorf("ask for the route to %s: %w", to, err)
	}
	index, gateway, err := parseRoute(b[:n])
	if err != nil {
		return Route{}, fmt.Errorf("route to %s: %w", to, err)
	}
	r := Route{To: to, Gateway: gateway}
	if i, err := net.InterfaceByIndex(index); err == nil {
		r.Interface = i.Name
	}
	return r, nil
}

// routeRequest is an RTM_GETROUTE message with the one attribute RTA_DST.
func routeRequest(to netip.Addr) []byte {
	to = to.Unmap()
	addr := to.AsSlice()
	family := byte(unix.AF_INET)
	if to.Is6() {
		family = unix.AF_INET6
	}
	attr := unix.SizeofRtAttr + len(addr)
	total := unix.SizeofNlMsghdr + unix.SizeofRtMsg + attr
	b := make([]byte, total)
	e := binary.NativeEndian
	e.PutUint32(b[0:], uint32(total))
	e.PutUint16(b[4:], unix.RTM_GETROUTE)
	e.PutUint16(b[6:], unix.NLM_F_REQUEST)
	e.PutUint32(b[8:], 1)
	rt := b[unix.SizeofNlMsghdr:]
	rt[0] = family
	rt[1] = byte(len(addr) * 8)
	at := rt[unix.SizeofRtMsg:]
	e.PutUint16(at[0:], uint16(attr))
	e.PutUint16(at[2:], unix.RTA_DST)
	copy(at[unix.SizeofRtAttr:], addr)
	return b
}

// parseRoute reads the answer: the interface's index and the gateway, if any.
func parseRoute(b []byte) (index int, gateway netip.Addr, err error) {
	e := binary.NativeEndian
	if len(b) < unix.SizeofNlMsghdr {
		return 0, gateway, errMalformed
	}
	size, kind := int(e.Uint32(b)), e.Uint16(b[4:])
	if size < unix.SizeofNlMsghdr || size > len(b) {
		return 0, gateway, errMalformed
	}
	b = b[unix.SizeofNlMsghdr:size]
	if kind == unix.NLMSG_ERROR {
		if len(b) < 4 {
			return 0, gateway, errMalformed
		}
		return 0, gateway, unix.Errno(-int32(e.Uint32(b)))
	}
	if kind != unix.RTM_NEWROUTE || len(b) < unix.SizeofRtMsg {
		return 0, gateway, errMalformed
	}
	for b = b[unix.SizeofRtMsg:]; len(b) >= unix.SizeofRtAttr; {
		n, what := int(e.Uint16(b)), e.Uint16(b[2:])
		if n < unix.SizeofRtAttr || n > len(b) {
			return 0, gateway, errMalformed
		}
		value := b[unix.SizeofRtAttr:n]
		switch what {
		case unix.RTA_OIF:
			if len(value) == 4 {
				index = int(e.Uint32(value))
			}
		case unix.RTA_GATEWAY:
			if a, ok := netip.AddrFromSlice(value); ok {
				gateway = a
			}
		}
		b = b[min((n+3)&^3, len(b)):]
	}
	if index == 0 {
		return 0, gateway, errors.New("no interface named")
	}
	return index, gateway, nil
}
