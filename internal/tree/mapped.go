package tree

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// DevIno names an inode by the numbers of its device and its own.
type DevIno struct{ Dev, Ino uint64 }

// MappedShared lists the files that the processes have mapped shared and
// writable, from /proc/<pid>/maps. Processes that are gone by now count as
// having none. Frozen processes may be asked.
func MappedShared(pids []int) (map[DevIno]struct{}, error) {
	set := map[DevIno]struct{}{}
	for _, pid := range pids {
		f, err := os.Open("/proc/" + strconv.Itoa(pid) + "/maps")
		if err == nil {
			err = parseMaps(f, set)
			_ = f.Close()
		}
		if err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.ESRCH) {
			return nil, fmt.Errorf("files mapped by process %d: %w", pid, err)
		}
	}
	return set, nil
}

// parseMaps reads lines of the form
//
//	7f12a000-7f12b000 rw-s 00000000 08:02 173521  /path
func parseMaps(f *os.File, set map[DevIno]struct{}) error {
	lines := bufio.NewScanner(f)
	lines.Buffer(make([]byte, 16<<10), 1<<20)
	for lines.Scan() {
		fields := bytes.Fields(lines.Bytes())
		if len(fields) < 5 || len(fields[1]) < 4 || fields[1][1] != 'w' || fields[1][3] != 's' {
			continue
		}
		major, minor, ok := bytes.Cut(fields[3], []byte(":"))
		ma, err1 := strconv.ParseUint(string(major), 16, 32)
		mi, err2 := strconv.ParseUint(string(minor), 16, 32)
		ino, err3 := strconv.ParseUint(string(fields[4]), 10, 64)
		if !ok || err1 != nil || err2 != nil || err3 != nil {
			return fmt.Errorf("unexpected line in maps: %.80q", lines.Bytes())
		}
		if ino != 0 {
			set[DevIno{Dev: unix.Mkdev(uint32(ma), uint32(mi)), Ino: ino}] = struct{}{}
		}
	}
	return lines.Err()
}
