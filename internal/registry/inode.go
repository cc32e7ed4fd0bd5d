package registry

import (
	"io/fs"
	"syscall"
)

// inode tells a replaced file from the one before, also within one clock tick.
func inode(fi fs.FileInfo) uint64 {
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		return st.Ino
	}
	return 0
}
