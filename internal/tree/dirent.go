package tree

import (
	"bytes"
	"encoding/binary"
	"errors"
	"slices"

	"golang.org/x/sys/unix"
)

// direntName is where the name starts in the kernel's linux_dirent64: inode
// and offset of eight bytes each, record length of two, type of one.
const direntName = 19

// readNames reads the names of the open directory fd, without . and .., as
// NUL-terminated bytes one after the other and where each starts, in byte
// order of the names. buf is scratch.
func readNames(fd int, buf []byte) (names []byte, offs []uint32, err error) {
	for {
		n, err := unix.Getdents(fd, buf)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, nil, err
		}
		if n == 0 {
			break
		}
		for rec := buf[:n]; len(rec) > direntName; {
			length := int(binary.NativeEndian.Uint16(rec[16:]))
			if length <= direntName || length > len(rec) {
				return nil, nil, unix.EIO
			}
			name := rec[direntName:length]
			rec = rec[length:]
			if end := bytes.IndexByte(name, 0); end >= 0 {
				name = name[:end]
			}
			if len(name) == 0 || string(name) == "." || string(name) == ".." {
				continue
			}
			if bytes.IndexByte(name, '/') >= 0 {
				// Only a broken or hostile file system says so.
				return nil, nil, unix.EIO
			}
			offs = append(offs, uint32(len(names)))
			names = append(append(names, name...), 0)
		}
	}
	slices.SortFunc(offs, func(a, b uint32) int {
		x, y := names[a:], names[b:]
		for i, c := range x {
			// Names differ, and end in NUL, which is below all else.
			if c != y[i] {
				return int(c) - int(y[i])
			}
			if c == 0 {
				break
			}
		}
		return 0
	})
	// A directory changed while it was read may show a name twice.
	offs = slices.CompactFunc(offs, func(a, b uint32) bool {
		x, y := names[a:], names[b:]
		n := bytes.IndexByte(x, 0) + 1
		return len(y) >= n && bytes.Equal(x[:n], y[:n])
	})
	return names, offs, nil
}
