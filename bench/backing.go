package main

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// backed is how much free memory a measured command finds ready to be written to. It is what a step writes
// into the page cache several times over.
const backed = 4 << 30

// ownMemory makes the machine own its free memory before something is measured. A virtual machine gives
// free pages back to its host (free page reporting), and the first touch of one that has to come from
// there again takes some ten microseconds: three seconds of processor time for what a restore writes,
// whatever writes it, and only if the pages happen to be such ones. No physical machine pays that.
func ownMemory() error {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return fmt.Errorf("look at the free memory: %w", err)
	}
	n := min(backed, int(uint64(info.Freeram)*uint64(info.Unit)/2)) // the rest is page cache, which the machine owns
	m, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return fmt.Errorf("touch free memory: %w", err)
	}
	if err := unix.Madvise(m, unix.MADV_POPULATE_WRITE); err != nil {
		_ = unix.Munmap(m)
		return fmt.Errorf("touch free memory: %w", err)
	}
	return unix.Munmap(m)
}
