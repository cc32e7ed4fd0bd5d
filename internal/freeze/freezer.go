package freeze

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// freezer is the pair of open files through which one cgroup is frozen, thawed
// and watched. Both stay open over the whole freeze, so that neither freezing
// nor thawing has to look up a path, and a guardian inherits them.
//
//	           control          status
//	version 1  freezer.state    freezer.self_freezing
//	version 2  cgroup.freeze    cgroup.events
//
// Version 1: freezer.state reads FROZEN also when only an ancestor is frozen;
// self_freezing tells whether this cgroup was asked to freeze. Version 2:
// cgroup.freeze is what was asked, "frozen 1" in cgroup.events is what is.
type freezer struct {
	version int
	control int
	status  int
}

func freezerFile(version int) string {
	if version == 1 {
		return "freezer.state"
	}
	return "cgroup.freeze"
}

func statusFile(version int) string {
	if version == 1 {
		return "freezer.self_freezing"
	}
	return "cgroup.events"
}

// openFreezer opens the files of a cgroup and checks that the directory is
// still the one that was found.
func openFreezer(cg *Cgroup) (freezer, error) {
	f := freezer{version: cg.Version, control: -1, status: -1}
	dir, err := unix.Open(cg.Dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return f, fmt.Errorf("open cgroup %s: %w", cg.Dir, err)
	}
	defer unix.Close(dir)
	var st unix.Stat_t
	if err := unix.Fstat(dir, &st); err != nil {
		return f, fmt.Errorf("stat cgroup %s: %w", cg.Dir, err)
	}
	if st.Ino != cg.Inode {
		return f, fmt.Errorf("cgroup %s is not the one that was found, the container was restarted: %w", cg.Dir, errGone)
	}
	if f.control, err = unix.Openat(dir, freezerFile(cg.Version), unix.O_RDWR|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0); err != nil {
		return f, fmt.Errorf("open %s: %w", filepath.Join(cg.Dir, freezerFile(cg.Version)), err)
	}
	if f.status, err = unix.Openat(dir, statusFile(cg.Version), unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0); err != nil {
		unix.Close(f.control)
		return f, fmt.Errorf("open %s: %w", filepath.Join(cg.Dir, statusFile(cg.Version)), err)
	}
	return f, nil
}

func (f freezer) close() {
	unix.Close(f.control)
	unix.Close(f.status)
}

func inode(dir string) (uint64, error) {
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return 0, &os.PathError{Op: "stat", Path: dir, Err: err}
	}
	return st.Ino, nil
}

func freezerWord(version int, freeze bool) string {
	switch {
	case version == 1 && freeze:
		return "FROZEN"
	case version == 1:
		return "THAWED"
	case freeze:
		return "1"
	}
	return "0"
}

// ask writes the wish to freeze or to thaw.
func (f freezer) ask(freeze bool) error {
	word := freezerWord(f.version, freeze)
	for {
		n, err := unix.Pwrite(f.control, []byte(word), 0)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return goneOr(err)
		case n != len(word):
			return fmt.Errorf("wrote %d of %d bytes", n, len(word))
		}
		return nil
	}
}

// asked tells whether this cgroup itself is asked to be frozen, by whomever.
func (f freezer) asked() (bool, error) {
	fd := f.control
	if f.version == 1 {
		fd = f.status
	}
	b, err := readWhole(fd)
	if err != nil {
		return false, err
	}
	switch string(bytes.TrimSpace(b)) {
	case "0":
		return false, nil
	case "1":
		return true, nil
	}
	return false, fmt.Errorf("freezer reads %q: %w", b, errMalformed)
}

// frozen tells whether every process in the cgroup stands still.
func (f freezer) frozen() (bool, error) {
	if f.version == 1 {
		b, err := readWhole(f.control)
		return string(bytes.TrimSpace(b)) == "FROZEN", err
	}
	b, err := readWhole(f.status)
	if err != nil {
		return false, err
	}
	for line := range bytes.Lines(b) {
		if string(bytes.TrimSpace(line)) == "frozen 1" {
			return true, nil
		}
	}
	return false, nil
}

// readWhole reads a small kernel file from its beginning.
func readWhole(fd int) ([]byte, error) {
	buf := make([]byte, 256)
	for {
		n, err := unix.Pread(fd, buf, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, goneOr(err)
		}
		return buf[:n], nil
	}
}

// goneOr maps what the kernel says of a removed cgroup to errGone.
func goneOr(err error) error {
	if errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("%w: %w", errGone, err)
	}
	return err
}
