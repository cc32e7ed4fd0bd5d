package wan

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// OpenTUN makes a layer 3 TUN device of that name in the network namespace of the calling thread
// (which the caller has locked). The device goes away when the file is closed. Reads and writes
// are whole IP packets and go through the runtime's poller, so that Close ends a blocked Read.
func OpenTUN(name string) (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open /dev/net/tun (is the tun module there?): %w", err)
	}
	req, err := unix.NewIfreq(name)
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("name TUN device %q: %w", name, err)
	}
	req.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("make TUN device %q: %w", name, err)
	}
	return os.NewFile(uintptr(fd), "tun:"+name), nil
}
