package apply

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"lifeboat/internal/catalog"

	"golang.org/x/sys/unix"
)

const opaqueAttr = "trusted.overlay.opaque"

func xattrsOf(e *catalog.Entry) []catalog.Xattr {
	if e == nil {
		return nil
	}
	if e.Opaque {
		return append([]catalog.Xattr{{Name: opaqueAttr, Value: []byte("y")}}, e.Xattrs...)
	}
	return e.Xattrs
}

// procPath names an entry through its directory's handle, for the calls that
// take no directory handle. Only the last component is resolved, and not followed
// by the calls that it is used with.
func procPath(dirfd int, name string) string {
	return "/proc/self/fd/" + strconv.Itoa(dirfd) + "/" + name
}

// metadata sets owner, mode, attributes and times, in this order: changing the
// owner clears setuid and capabilities, an access ACL goes with the mode, and
// everything moves the times.
func (a *applier) metadata(dirfd int, name string, e *catalog.Entry, cur []catalog.Xattr) error {
	if err := a.denied(e.Path, "set the owner of", unix.Fchownat(dirfd, name, int(e.UID), int(e.GID), unix.AT_SYMLINK_NOFOLLOW)); err != nil {
		return err
	}
	if e.Type != catalog.Symlink {
		if err := a.denied(e.Path, "set the mode of", chmodat(dirfd, name, e.Mode)); err != nil {
			return err
		}
	}
	path := procPath(dirfd, name)
	set := func(attr string, value []byte) error { return unix.Lsetxattr(path, attr, value, 0) }
	remove := func(attr string) error { return unix.Lremovexattr(path, attr) }
	if err := a.xattrs(e, cur, set, remove); err != nil {
		return err
	}
	return a.times(dirfd, name, e)
}

// fileMetadata is metadata for an open file.
func (a *applier) fileMetadata(f *openFile) error {
	e := &f.want
	if err := a.denied(e.Path, "set the owner of", unix.Fchown(f.fd, int(e.UID), int(e.GID))); err != nil {
		return err
	}
	if err := a.denied(e.Path, "set the mode of", unix.Fchmod(f.fd, e.Mode)); err != nil {
		return err
	}
	set := func(attr string, value []byte) error { return unix.Fsetxattr(f.fd, attr, value, 0) }
	remove := func(attr string) error { return unix.Fremovexattr(f.fd, attr) }
	if err := a.xattrs(e, f.cur, set, remove); err != nil {
		return err
	}
	ts := times(e)
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, "/proc/self/fd/"+strconv.Itoa(f.fd), ts[:], 0); err != nil {
		return fmt.Errorf("set the times of %q: %w", e.Path, err)
	}
	return nil
}

// chmodat changes the mode of exactly this entry, never of what a link leads to.
func chmodat(dirfd int, name string, mode uint32) error {
	fd, err := unix.Openat(dirfd, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Chmod("/proc/self/fd/"+strconv.Itoa(fd), mode)
}

func (a *applier) xattrs(e *catalog.Entry, cur []catalog.Xattr, set func(string, []byte) error, remove func(string) error) error {
	want := e.Xattrs
	if a.o.Overlay {
		want = xattrsOf(e)
	}
	for _, x := range cur {
		if !hasXattr(want, x.Name) {
			if err := remove(x.Name); err != nil && !errors.Is(err, unix.ENODATA) {
				if err := a.denied(e.Path, "remove the attribute "+x.Name+" of", err); err != nil {
					return err
				}
			}
		}
	}
	for _, x := range want {
		// The owner was set before, which drops capabilities: always set them.
		if keeps(cur, x) && !strings.HasPrefix(x.Name, "security.") && !strings.HasPrefix(x.Name, "system.") {
			continue
		}
		if err := a.denied(e.Path, "set the attribute "+x.Name+" of", set(x.Name, x.Value)); err != nil {
			return err
		}
	}
	return nil
}

func hasXattr(list []catalog.Xattr, name string) bool {
	for _, x := range list {
		if x.Name == name {
			return true
		}
	}
	return false
}

func keeps(list []catalog.Xattr, want catalog.Xattr) bool {
	for _, x := range list {
		if x.Name == want.Name {
			return bytes.Equal(x.Value, want.Value)
		}
	}
	return false
}

func times(e *catalog.Entry) [2]unix.Timespec {
	return [2]unix.Timespec{{Nsec: unix.UTIME_OMIT}, {Sec: e.MtimeSec, Nsec: int64(e.MtimeNsec)}}
}

func (a *applier) times(dirfd int, name string, e *catalog.Entry) error {
	ts := times(e)
	if err := unix.UtimesNanoAt(dirfd, name, ts[:], unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return a.denied(e.Path, "set the times of", err)
	}
	return nil
}
