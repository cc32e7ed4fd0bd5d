package tree

import (
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"lifeboat/internal/catalog"
)

// Stat is what the kernel says of a file, as far as Lifeboat keeps or compares
// it.
type Stat struct {
	Ino, Dev, Rdev uint64
	Size           int64
	Blocks         int64 // of 512 bytes; not compared: delayed allocation moves it
	MtimeSec       int64
	CtimeSec       int64
	MtimeNsec      uint32
	CtimeNsec      uint32
	Mode           uint32 // with the type bits
	UID, GID       uint32
	Nlink          uint32

	mount     uint64 // mount id, 0 where the kernel does not say
	mountRoot bool
}

// Same reports whether nothing that a change would move has moved: inode,
// device, size, mtime, ctime, mode, owner, links and device number.
func (s *Stat) Same(o *Stat) bool {
	return s.Ino == o.Ino && s.Dev == o.Dev && s.Size == o.Size &&
		s.MtimeSec == o.MtimeSec && s.MtimeNsec == o.MtimeNsec && s.CtimeSec == o.CtimeSec && s.CtimeNsec == o.CtimeNsec &&
		s.Mode == o.Mode && s.UID == o.UID && s.GID == o.GID && s.Nlink == o.Nlink && s.Rdev == o.Rdev
}

// IsDir and IsRegular look at the type bits.
func (s *Stat) IsDir() bool     { return s.Mode&unix.S_IFMT == unix.S_IFDIR }
func (s *Stat) IsRegular() bool { return s.Mode&unix.S_IFMT == unix.S_IFREG }

// Type is the catalog's word for the type bits; 0 for what has none.
func (s *Stat) Type() catalog.Type {
	switch s.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		return catalog.File
	case unix.S_IFDIR:
		return catalog.Directory
	case unix.S_IFLNK:
		return catalog.Symlink
	case unix.S_IFCHR:
		return catalog.CharDevice
	case unix.S_IFBLK:
		return catalog.BlockDevice
	case unix.S_IFIFO:
		return catalog.Fifo
	case unix.S_IFSOCK:
		return catalog.Socket
	}
	return 0
}

// settle is how old a timestamp must be before another write is sure to move
// it: file systems with 128-byte inodes count in seconds.
const settle = 2 * time.Second

// young reports whether a write after now could leave mtime and ctime as they
// are in s. An mtime set far into the future by a tool moves like any other
// with the next write; a ctime in the future means a clock that was wrong, so
// nothing can be said.
func (s *Stat) young(now time.Time) bool {
	c := time.Unix(s.CtimeSec, int64(s.CtimeNsec))
	m := time.Unix(s.MtimeSec, int64(s.MtimeNsec))
	return now.Sub(c) < settle || (now.Sub(m) < settle && m.Sub(now) < settle)
}

const statMask = unix.STATX_BASIC_STATS | unix.STATX_MNT_ID

func statFd(fd int, st *Stat) error {
	var raw unix.Statx_t
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_NO_AUTOMOUNT, statMask, &raw); err != nil {
		return err
	}
	st.from(&raw)
	return nil
}

func statAt(dir int, name string, st *Stat) error {
	var raw unix.Statx_t
	if err := unix.Statx(dir, name, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT, statMask, &raw); err != nil {
		return err
	}
	st.from(&raw)
	return nil
}

// statName is statAt without the copy of the name that a Go string costs; name
// ends in NUL.
func statName(dir int, name []byte, raw *unix.Statx_t) error {
	for {
		_, _, errno := unix.Syscall6(unix.SYS_STATX, uintptr(dir), uintptr(unsafe.Pointer(unsafe.SliceData(name))),
			unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT, statMask, uintptr(unsafe.Pointer(raw)), 0)
		switch errno {
		case 0:
			return nil
		case unix.EINTR:
		default:
			return errno
		}
	}
}

func (s *Stat) from(x *unix.Statx_t) {
	*s = Stat{
		Ino: x.Ino, Dev: unix.Mkdev(x.Dev_major, x.Dev_minor), Rdev: unix.Mkdev(x.Rdev_major, x.Rdev_minor),
		Size: int64(x.Size), Blocks: int64(x.Blocks),
		MtimeSec: x.Mtime.Sec, MtimeNsec: x.Mtime.Nsec, CtimeSec: x.Ctime.Sec, CtimeNsec: x.Ctime.Nsec,
		Mode: uint32(x.Mode), UID: x.Uid, GID: x.Gid, Nlink: x.Nlink,
		mountRoot: x.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0,
	}
	if x.Mask&unix.STATX_MNT_ID != 0 {
		s.mount = x.Mnt_id
	}
	switch s.Mode & unix.S_IFMT {
	case unix.S_IFREG, unix.S_IFLNK:
	default:
		// What a directory or device reports here is the file system's affair
		// and moves without meaning.
		s.Size = 0
	}
}

// comparePaths is catalog.ComparePaths for raw bytes.
func comparePaths(a, b []byte) int {
	return catalog.ComparePaths(unsafe.String(unsafe.SliceData(a), len(a)), unsafe.String(unsafe.SliceData(b), len(b)))
}
