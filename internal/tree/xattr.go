package tree

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"lifeboat/internal/catalog"
)

// ErrNeedsMerged says that an upper directory cannot be read by itself: it
// uses redirected directories or metadata-only copies, whose content lies in
// the layers below. The caller reads the merged mount instead.
var ErrNeedsMerged = errors.New("upper directory uses overlay redirects or metadata-only copies; read the merged mount instead")

// xattrs is what the extended attributes of one entry amount to.
type xattrs struct {
	kept []catalog.Xattr // sorted
	// Overlay terms, set in overlay mode only.
	opaque, whiteout bool
	lost             []string // names of attributes that are not kept
}

// kept reports whether an attribute goes with the file. Labels and signatures
// that belong to the host or to one container (SELinux, IMA), and what only
// one file system understands, do not.
func keptXattr(name string) bool {
	switch name {
	case "security.capability", "system.posix_acl_access", "system.posix_acl_default":
		return true
	}
	return strings.HasPrefix(name, "user.") || strings.HasPrefix(name, "trusted.")
}

// xattrReader reads attributes; it holds scratch memory and is not safe for
// concurrent use.
type xattrReader struct {
	overlay bool
	names   []byte
	value   []byte
}

func newXattrReader(overlay bool) *xattrReader {
	return &xattrReader{overlay: overlay, names: make([]byte, 1<<10), value: make([]byte, 1<<10)}
}

// procPath names an entry of an open directory so that the calls that know
// paths only reach it without following it.
func procPath(dir int, name string) string {
	return "/proc/self/fd/" + strconv.Itoa(dir) + "/" + name
}

// at reads the attributes of name in the open directory dir, of whatever type
// it is, without following it.
func (r *xattrReader) at(dir int, name string) (xattrs, error) {
	path := procPath(dir, name)
	return r.read(
		func(b []byte) (int, error) { return unix.Llistxattr(path, b) },
		func(attr string, b []byte) (int, error) { return unix.Lgetxattr(path, attr, b) })
}

// fd reads the attributes of an open file.
func (r *xattrReader) fd(fd int) (xattrs, error) {
	return r.read(
		func(b []byte) (int, error) { return unix.Flistxattr(fd, b) },
		func(attr string, b []byte) (int, error) { return unix.Fgetxattr(fd, attr, b) })
}

// grow calls f with *buf until it fits, up to the kernel's limit of 64 KiB.
func grow(buf *[]byte, f func([]byte) (int, error)) ([]byte, error) {
	for {
		n, err := retry(func() (int, error) { return f(*buf) })
		if errors.Is(err, unix.ERANGE) && len(*buf) < 64<<10 {
			*buf = make([]byte, 8*len(*buf))
			continue
		}
		if err != nil {
			return nil, err
		}
		return (*buf)[:n], nil
	}
}

func (r *xattrReader) read(list func([]byte) (int, error), get func(string, []byte) (int, error)) (xattrs, error) {
	var x xattrs
	names, err := grow(&r.names, list)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return x, nil
	}
	if err != nil || len(names) == 0 {
		return x, err
	}
	for name := range bytes.SplitSeq(bytes.TrimSuffix(names, []byte{0}), []byte{0}) {
		attr := string(name)
		term, isOverlay := overlayTerm(attr)
		isOverlay = isOverlay && r.overlay
		if !isOverlay && !keptXattr(attr) {
			x.lost = append(x.lost, attr)
			continue
		}
		value, err := grow(&r.value, func(b []byte) (int, error) { return get(attr, b) })
		if errors.Is(err, unix.ENODATA) {
			continue // gone since the list was read
		}
		if err != nil {
			return x, fmt.Errorf("attribute %s: %w", attr, err)
		}
		if isOverlay {
			if err := x.overlay(term, value); err != nil {
				return x, err
			}
			continue
		}
		x.kept = append(x.kept, catalog.Xattr{Name: attr, Value: bytes.Clone(value)})
	}
	slices.SortFunc(x.kept, func(a, b catalog.Xattr) int { return strings.Compare(a.Name, b.Name) })
	return x, nil
}

// overlayTerm splits trusted.overlay.X and user.overlay.X.
func overlayTerm(attr string) (string, bool) {
	if term, ok := strings.CutPrefix(attr, "trusted.overlay."); ok {
		return term, true
	}
	return strings.CutPrefix(attr, "user.overlay.")
}

// overlay takes one attribute of an upper directory. Those that are not a term
// of the catalog (origin, impure, uuid, nlink, upper, protattr) mean something
// on this file system only.
func (x *xattrs) overlay(term string, value []byte) error {
	switch term {
	case "opaque":
		// "x" says that deletions in here are in attribute form, no more.
		x.opaque = string(value) == "y"
	case "whiteout":
		x.whiteout = true
	case "redirect", "metacopy":
		return ErrNeedsMerged
	}
	return nil
}

// appendXattrs encodes attributes for the records of a statcache.
func appendXattrs(b []byte, list []catalog.Xattr) []byte {
	b = binary.AppendUvarint(b, uint64(len(list)))
	for _, x := range list {
		b = binary.AppendUvarint(b, uint64(len(x.Name)))
		b = append(b, x.Name...)
		b = binary.AppendUvarint(b, uint64(len(x.Value)))
		b = append(b, x.Value...)
	}
	return b
}

func decodeXattrs(b []byte) ([]catalog.Xattr, error) {
	d := fields{b: b}
	n := d.uvarint()
	if n > uint64(len(b)) {
		return nil, errRecord
	}
	list := make([]catalog.Xattr, n)
	for i := range list {
		list[i].Name = string(d.bytes(d.uvarint()))
		list[i].Value = d.bytes(d.uvarint())
	}
	if d.bad || len(d.b) != 0 {
		return nil, errRecord
	}
	return list, nil
}
