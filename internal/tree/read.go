package tree

import (
	"context"
	"errors"
	"io"

	"golang.org/x/sys/unix"

	"lifeboat/internal/cut"
)

// extent is one run of data of a file; what lies between extents is holes.
type extent struct{ from, to int64 }

// extents finds the runs of data of fd below size. A file system that knows no
// holes reports one run.
type extents struct {
	fd     int
	size   int64
	sparse bool
	cur    extent // last run found; what is before its end is known
}

// newExtents looks for holes only where fewer blocks are allocated than the
// size needs: lseek is not free, and most files have no holes.
func newExtents(fd int, st *Stat, size int64) *extents {
	return &extents{fd: fd, size: size, sparse: st.Blocks*512 < size}
}

// next returns the first run of data that ends after off, cut to off, or ok
// false when only a hole is left.
func (e *extents) next(off int64) (x extent, ok bool, err error) {
	if off >= e.size {
		return extent{}, false, nil
	}
	if !e.sparse {
		return extent{off, e.size}, true, nil
	}
	if off < e.cur.to && off >= e.cur.from {
		return extent{off, e.cur.to}, true, nil
	}
	from, err := unix.Seek(e.fd, off, unix.SEEK_DATA)
	switch {
	case errors.Is(err, unix.ENXIO):
		return extent{}, false, nil
	case errors.Is(err, unix.EINVAL):
		e.sparse = false
		return extent{off, e.size}, true, nil
	case err != nil:
		return extent{}, false, err
	}
	to, err := unix.Seek(e.fd, from, unix.SEEK_HOLE)
	if errors.Is(err, unix.ENXIO) {
		to, err = e.size, nil
	}
	if err != nil {
		return extent{}, false, err
	}
	if from >= e.size {
		return extent{}, false, nil
	}
	e.cur = extent{from, min(to, e.size)}
	return e.cur, true, nil
}

// source is what content is read from: an open file, or what was secured of one.
type source interface {
	// data returns the first run of data that ends after off, or ok false.
	data(off int64) (x extent, ok bool, err error)
	// readAt fills b from off; short only at the end of the file.
	readAt(b []byte, off int64) (int, error)
}

// fileSource reads an open file.
type fileSource struct {
	*extents
	read func(n int) // counts bytes
}

func (s *fileSource) data(off int64) (extent, bool, error) { return s.next(off) }

func (s *fileSource) readAt(b []byte, off int64) (int, error) {
	n, err := preadFull(s.fd, b, off)
	s.read(n)
	return n, err
}

// preadFull reads until b is full or the file ends.
func preadFull(fd int, b []byte, off int64) (int, error) {
	n := 0
	for n < len(b) {
		k, err := retry(func() (int, error) { return unix.Pread(fd, b[n:], off+int64(n)) })
		if err != nil {
			return n, err
		}
		if k == 0 {
			break
		}
		n += k
	}
	return n, nil
}

// cutBuffer is how much of a file is held while it is cut.
const cutBuffer = cut.MaxPiece + 2<<20

// cutContent reads src up to size and calls piece for each piece of data and
// hole for each hole, in order. buf has cutBuffer bytes. A file that turns out
// shorter ends there; the length found is returned.
func cutContent(ctx context.Context, c *cut.Cutter, src source, path string, size int64, buf []byte,
	piece func([]byte) error, hole func(int64) error,
) (int64, error) {
	class := cut.Class(0)
	off := int64(0)
	for off < size {
		x, ok, err := src.data(off)
		if err != nil {
			return off, err
		}
		if !ok {
			x = extent{size, size}
		}
		x.from, x.to = min(max(x.from, off), size), min(x.to, size)
		if x.from > off {
			if err := hole(x.from - off); err != nil {
				return off, err
			}
			off = x.from
		}
		if x.to == x.from {
			continue
		}
		if class == 0 {
			if class, err = classOf(src, path, size, x, buf); err != nil {
				return off, err
			}
		}
		end, err := cutExtent(ctx, c, src, class, x, buf, piece)
		if err != nil {
			return off, err
		}
		if off = end; end < x.to {
			return end, nil
		}
	}
	return off, nil
}

// classOf looks at the head of the file; a file that starts with a hole has
// none to look at.
func classOf(src source, path string, size int64, first extent, buf []byte) (cut.Class, error) {
	if size < cut.WholeBelow || first.from > 0 {
		return cut.ClassOf([]byte(path), size, nil), nil
	}
	n, err := src.readAt(buf[:min(cut.HeadLen, first.to)], 0)
	return cut.ClassOf([]byte(path), size, buf[:n]), err
}

// cutExtent cuts one run of data and returns where it ended.
func cutExtent(ctx context.Context, c *cut.Cutter, src source, class cut.Class, x extent, buf []byte,
	piece func([]byte) error,
) (int64, error) {
	at := x.from       // offset of buf[start]
	start, end := 0, 0 // what of buf is filled
	next := x.from     // offset to read from
	atEOF := x.from >= x.to
	for {
		for start < end {
			n := c.Next(class, buf[start:end], atEOF)
			if class == cut.Fixed && n > 0 {
				// Aligned in the file, also after a hole.
				n = min(n, cut.FixedPiece-int(at%cut.FixedPiece))
			}
			if n == 0 {
				break
			}
			if err := piece(buf[start : start+n]); err != nil {
				return at, err
			}
			start, at = start+n, at+int64(n)
		}
		if atEOF {
			return at, nil
		}
		if err := ctx.Err(); err != nil {
			return at, err
		}
		end = copy(buf, buf[start:end])
		start = 0
		want := int(min(int64(len(buf)-end), x.to-next))
		n, err := src.readAt(buf[end:end+want], next)
		if err != nil && !errors.Is(err, io.EOF) {
			return at, err
		}
		end, next = end+n, next+int64(n)
		atEOF = next >= x.to || n < want
	}
}

// writeBack makes the kernel write the file's dirty pages and wait for them.
// It write-protects pages mapped by others, so that a later store through a
// map is stamped; that is why it stands between statx and read.
func writeBack(fd int) error {
	return unix.SyncFileRange(fd, 0, 0,
		unix.SYNC_FILE_RANGE_WAIT_BEFORE|unix.SYNC_FILE_RANGE_WRITE|unix.SYNC_FILE_RANGE_WAIT_AFTER)
}

// openRegular opens a file for reading without stamping its access time and
// without waiting for anybody, should it be a fifo by now.
func openRegular(dir int, name string) (int, error) {
	const flags = unix.O_RDONLY | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_NOCTTY | unix.O_CLOEXEC
	fd, err := retry(func() (int, error) { return unix.Openat(dir, name, flags|unix.O_NOATIME, 0) })
	if errors.Is(err, unix.EPERM) {
		fd, err = retry(func() (int, error) { return unix.Openat(dir, name, flags, 0) })
	}
	return fd, err
}

// readlink reads the target of a symbolic link.
func readlink(dir int, name string) (string, error) {
	buf := make([]byte, 4096)
	n, err := retry(func() (int, error) { return unix.Readlinkat(dir, name, buf) })
	if err != nil {
		return "", err
	}
	return string(buf[:n]), nil
}

// gone reports errors that mean that a path no longer is what it was.
func gone(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ESTALE)
}
