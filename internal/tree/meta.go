package tree

import (
	"errors"
	"fmt"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"

	"lifeboat/internal/catalog"
)

// setFileMetadata gives an open regular file its metadata, in the order in
// which nothing undoes what came before: a change of owner clears setuid bits
// and capabilities, everything moves the times.
func (a *applier) setFileMetadata(w *writerState, fd int, e *catalog.Entry) error {
	var st Stat
	if err := statFd(fd, &st); err != nil {
		return fmt.Errorf("metadata of %s: %w", a.root.display(e.Path), err)
	}
	t := metadataTarget{
		chown:  func() error { return unix.Fchown(fd, int(e.UID), int(e.GID)) },
		chmod:  func() error { return unix.Fchmod(fd, e.Mode) },
		xattrs: func() (xattrs, error) { return w.xr.fd(fd) },
		set:    func(n string, v []byte) error { return unix.Fsetxattr(fd, n, v, 0) },
		remove: func(n string) error { return unix.Fremovexattr(fd, n) },
		times:  func() error { return futimens(fd, e.MtimeSec, e.MtimeNsec) },
	}
	return a.apply(&t, &st, e)
}

// setMetadata does the same by name for whatever type, following nothing.
func (a *applier) setMetadata(w *writerState, e *catalog.Entry) error {
	dir, name, err := w.dirs.parent(e.Path)
	if err != nil {
		return fmt.Errorf("metadata of %s: %w", a.root.display(e.Path), err)
	}
	fd, err := retry(func() (int, error) {
		return unix.Openat(dir, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	})
	if err != nil {
		return fmt.Errorf("metadata of %s: %w", a.root.display(e.Path), err)
	}
	defer unix.Close(fd)
	var st Stat
	if err := statFd(fd, &st); err != nil {
		return fmt.Errorf("metadata of %s: %w", a.root.display(e.Path), err)
	}
	if st.Type() != e.Type {
		return fmt.Errorf("%s is a %v, not a %v as it was told", a.root.display(e.Path), st.Type(), e.Type)
	}
	path := procPath(dir, name)
	t := metadataTarget{
		chown:  func() error { return unix.Fchownat(fd, "", int(e.UID), int(e.GID), unix.AT_EMPTY_PATH) },
		chmod:  func() error { return unix.Chmod("/proc/self/fd/"+strconv.Itoa(fd), e.Mode) },
		xattrs: func() (xattrs, error) { return w.xr.at(dir, name) },
		set:    func(n string, v []byte) error { return unix.Lsetxattr(path, n, v, 0) },
		remove: func(n string) error { return unix.Lremovexattr(path, n) },
		times: func() error {
			return unix.UtimesNanoAt(dir, name, timespecs(e.MtimeSec, e.MtimeNsec), unix.AT_SYMLINK_NOFOLLOW)
		},
	}
	if e.Type == catalog.Symlink {
		t.chmod = nil
	}
	return a.apply(&t, &st, e)
}

// metadataTarget is a file whose metadata can be set.
type metadataTarget struct {
	chown, chmod, times func() error
	xattrs              func() (xattrs, error)
	set                 func(name string, value []byte) error
	remove              func(name string) error
}

func (a *applier) apply(t *metadataTarget, st *Stat, e *catalog.Entry) error {
	owned := st.UID != e.UID || st.GID != e.GID
	if owned {
		if err := a.denied(e.Path, "owner", t.chown()); err != nil {
			return err
		}
	}
	if err := a.applyXattrs(t, e); err != nil {
		return err
	}
	// A change of owner clears what it finds of setuid and setgid, and an ACL
	// brings its own mode.
	moved := owned && st.Mode&0o6000 != 0 || len(e.Xattrs) > 0
	if t.chmod != nil && (moved || st.Mode&0o7777 != e.Mode) {
		if err := a.denied(e.Path, "mode", t.chmod()); err != nil {
			return err
		}
	}
	return a.denied(e.Path, "mtime", t.times())
}

// applyXattrs sets what is wanted and removes what is not, also what a file
// inherited from its directory.
func (a *applier) applyXattrs(t *metadataTarget, e *catalog.Entry) error {
	have, err := t.xattrs()
	if err != nil {
		return fmt.Errorf("attributes of %s: %w", a.root.display(e.Path), err)
	}
	want := e.Xattrs
	if a.o.Overlay && e.Opaque {
		want = append(want[:len(want):len(want)], catalog.Xattr{Name: "trusted.overlay.opaque", Value: []byte("y")})
	}
	for _, x := range have.kept {
		if a.overlayNote(x.Name) || findXattr(want, x.Name) != nil {
			continue
		}
		err := t.remove(x.Name)
		if errors.Is(err, unix.ENODATA) {
			continue
		}
		if err := a.denied(e.Path, "removing attribute "+x.Name, err); err != nil {
			return err
		}
	}
	for _, x := range want {
		if old := findXattr(have.kept, x.Name); old != nil && string(old.Value) == string(x.Value) {
			continue
		}
		if err := a.denied(e.Path, "attribute "+x.Name, t.set(x.Name, x.Value)); err != nil {
			return err
		}
	}
	return nil
}

// overlayNote reports attributes by which an overlay takes notes of its own in
// the upper directory; they are not Lifeboat's to remove.
func (a *applier) overlayNote(name string) bool {
	term, ok := overlayTerm(name)
	return a.o.Overlay && ok && term != "opaque" && term != "whiteout"
}

func findXattr(list []catalog.Xattr, name string) *catalog.Xattr {
	for i := range list {
		if list[i].Name == name {
			return &list[i]
		}
	}
	return nil
}

// timespecs leave the access time alone and set mtime.
func timespecs(sec int64, nsec uint32) []unix.Timespec {
	return []unix.Timespec{{Nsec: unix.UTIME_OMIT}, {Sec: sec, Nsec: int64(nsec)}}
}

// futimens sets the mtime of an open file.
func futimens(fd int, sec int64, nsec uint32) error {
	ts := timespecs(sec, nsec)
	_, _, errno := unix.Syscall6(unix.SYS_UTIMENSAT, uintptr(fd), 0, uintptr(unsafe.Pointer(&ts[0])), 0, 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}
