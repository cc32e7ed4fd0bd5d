package recover

import (
	"fmt"
	"net"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// loopbackOf listens on the loopback address of the network namespace that a
// process is in: an engine pulls from its own, which need not be ours. Pid 0 is
// this process.
func loopbackOf(pid int) (net.Listener, error) {
	const address = "127.0.0.1:0"
	theirs := fmt.Sprintf("/proc/%d/ns/net", pid)
	a, errA := os.Readlink("/proc/self/ns/net")
	b, errB := os.Readlink(theirs)
	if pid == 0 || errA != nil || errB != nil || a == b {
		return net.Listen("tcp4", address)
	}
	type result struct {
		l   net.Listener
		err error
	}
	done := make(chan result)
	go func() {
		// The thread stays in the other namespace, so it is not given back: it ends
		// with this goroutine.
		runtime.LockOSThread()
		fd, err := unix.Open(theirs, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err == nil {
			err = unix.Setns(fd, unix.CLONE_NEWNET)
			unix.Close(fd)
		}
		if err != nil {
			done <- result{nil, fmt.Errorf("enter the engine's network: %w", err)}
			return
		}
		l, err := net.Listen("tcp4", address)
		done <- result{l, err}
	}()
	r := <-done
	return r.l, r.err
}
