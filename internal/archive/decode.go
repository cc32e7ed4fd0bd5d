package archive

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"lifeboat/internal/catalog"
)

// ErrMalformed: the engine's archive is cut off, or is not what an engine
// gives for one path. Nothing of it may be relied upon.
var ErrMalformed = errors.New("malformed archive")

// errStop ends a Decode early without an error.
var errStop = errors.New("enough read")

// xattrPrefix marks the PAX records that hold extended attributes.
const xattrPrefix = "SCHILY.xattr."

// Decode reads the archive of one path as an engine gives it: the entry of the
// path itself first, under the name base, then what lies below it. base is the
// last component of the path, or "" for a path that ends in "/." or is "/".
//
// fn is called for each entry with a path relative to the archive's root,
// whose own is "". The content of a file is valid until fn returns and need
// not be read. A hard link's target is relative to the root, too; that it is
// there is for the caller to find out (List does). The order is the
// archive's. What fn returns ends Decode and is returned.
//
// Errors that are not fn's or of the reader wrap ErrMalformed. An archive
// without entries, which engines give for a socket, is no error.
func Decode(r io.Reader, base string, fn func(e *catalog.Entry, content io.Reader) error) error {
	counted := &countingReader{r: r}
	tr := tar.NewReader(counted)
	for first := true; ; {
		before := counted.n
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			// Nothing but two empty blocks tells a whole archive from one that was
			// cut off between two entries.
			if counted.n-before < 1024 {
				return fmt.Errorf("archive ends without its end mark: %w", ErrMalformed)
			}
			return nil
		}
		if err != nil && !errors.Is(err, tar.ErrInsecurePath) {
			return readError(err)
		}
		if h.Typeflag == tar.TypeXGlobalHeader {
			continue
		}
		e, err := entryOf(h, base, first)
		if err != nil {
			return fmt.Errorf("archive entry %.200q: %w: %w", h.Name, err, ErrMalformed)
		}
		first = false
		var content io.Reader
		if e.Type == catalog.File {
			content = tr
		}
		if err := fn(&e, content); err != nil {
			if errors.Is(err, errStop) {
				return nil
			}
			return err
		}
		// What Next would pass over must not count as the end mark.
		if _, err := io.Copy(io.Discard, tr); err != nil {
			return readError(err)
		}
	}
}

// Empty reports whether the archive of a directory, asked for with "/." at the
// end, has nothing in it but directories for which may is true. It reads no
// further than it must.
func Empty(r io.Reader, may func(dir string) bool) (bool, error) {
	empty := true
	err := Decode(r, "", func(e *catalog.Entry, _ io.Reader) error {
		if e.Path == "" || e.Type == catalog.Directory && may(e.Path) {
			return nil
		}
		empty = false
		return errStop
	})
	return empty, err
}

func readError(err error) error {
	if errors.Is(err, tar.ErrHeader) || errors.Is(err, tar.ErrFieldTooLong) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("read archive: %w: %w", err, ErrMalformed)
	}
	return fmt.Errorf("read archive: %w", err)
}

type countingReader struct {
	r io.Reader
	n int64
}

func (c *countingReader) Read(b []byte) (int, error) {
	n, err := c.r.Read(b)
	c.n += int64(n)
	return n, err
}

var types = map[byte]catalog.Type{
	tar.TypeReg: catalog.File, '\x00': catalog.File, tar.TypeDir: catalog.Directory, tar.TypeSymlink: catalog.Symlink,
	tar.TypeLink: catalog.HardLink, tar.TypeChar: catalog.CharDevice, tar.TypeBlock: catalog.BlockDevice, tar.TypeFifo: catalog.Fifo,
}

// entryOf puts a header into the terms of a catalog; Size is what the header
// promises, Refs are empty.
func entryOf(h *tar.Header, base string, first bool) (catalog.Entry, error) {
	var e catalog.Entry
	t, ok := types[h.Typeflag]
	if !ok {
		return e, fmt.Errorf("type %q", h.Typeflag)
	}
	// First of all: any entry may promise to be longer than what comes.
	for k := range h.PAXRecords {
		if strings.HasPrefix(k, "GNU.sparse.") {
			return e, errors.New("sparse files are not part of an engine's archive")
		}
	}
	path, err := relative(h.Name, base)
	switch {
	case err != nil:
		return e, err
	case first != (path == ""):
		return e, fmt.Errorf("the first entry, and no other, is %q", base)
	}
	e = catalog.Entry{Path: path, Type: t, Mode: uint32(h.Mode) & 0o7777, MtimeSec: h.ModTime.Unix(), MtimeNsec: uint32(h.ModTime.Nanosecond())}
	for _, n := range []struct {
		what string
		from int64
		to   *uint32
	}{{"uid", int64(h.Uid), &e.UID}, {"gid", int64(h.Gid), &e.GID}} {
		if n.from < 0 || n.from > 1<<32-1 {
			return e, fmt.Errorf("%s %d", n.what, n.from)
		}
		*n.to = uint32(n.from)
	}
	switch t {
	case catalog.File:
		e.Size = h.Size
	case catalog.Symlink:
		e.Target = h.Linkname
		if e.Target == "" || len(e.Target) > catalog.MaxTarget || strings.IndexByte(e.Target, 0) >= 0 {
			return e, fmt.Errorf("target %.100q", e.Target)
		}
	case catalog.HardLink:
		if e.Target, err = relative(h.Linkname, base); err != nil {
			return e, fmt.Errorf("hard link: %w", err)
		}
		return e, nil // the attributes are those of the target
	case catalog.CharDevice, catalog.BlockDevice:
		if h.Devmajor < 0 || h.Devmajor > 1<<32-1 || h.Devminor < 0 || h.Devminor > 1<<32-1 {
			return e, fmt.Errorf("device %d:%d", h.Devmajor, h.Devminor)
		}
		e.Major, e.Minor = uint32(h.Devmajor), uint32(h.Devminor)
	}
	e.Xattrs, err = xattrsOf(h)
	return e, err
}

// relative is the path of a name below the archive's root.
func relative(name, base string) (string, error) {
	path := strings.TrimPrefix(strings.TrimPrefix(name, "."), "/")
	if !strings.HasPrefix(name, "./") && name != "." {
		path = strings.TrimPrefix(name, "/")
	}
	path = strings.TrimSuffix(path, "/")
	if base != "" {
		rest, ok := strings.CutPrefix(path, base)
		if !ok || rest != "" && rest[0] != '/' {
			return "", fmt.Errorf("%.100q does not lie below %q", name, base)
		}
		if path = strings.TrimPrefix(rest, "/"); rest == "/" {
			return "", fmt.Errorf("%.100q has an empty component", name)
		}
	}
	return path, catalog.CheckPath(path)
}

// xattrsOf are the extended attributes that go with a file. Labels that belong
// to the host or to one container, and marks of an overlay, do not.
func xattrsOf(h *tar.Header) ([]catalog.Xattr, error) {
	var out []catalog.Xattr
	for k, v := range h.PAXRecords {
		name, ok := strings.CutPrefix(k, xattrPrefix)
		if !ok || !goesAlong(name) {
			continue
		}
		if len(name) > catalog.MaxXattrName || len(v) > catalog.MaxXattrValue {
			return nil, fmt.Errorf("attribute %.100q of %d bytes", name, len(v))
		}
		out = append(out, catalog.Xattr{Name: name, Value: []byte(v)})
	}
	if len(out) > catalog.MaxXattrs {
		return nil, fmt.Errorf("%d attributes", len(out))
	}
	slices.SortFunc(out, func(a, b catalog.Xattr) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

func goesAlong(name string) bool {
	switch name {
	case "security.capability", "system.posix_acl_access", "system.posix_acl_default":
		return true
	}
	return strings.HasPrefix(name, "user.") && !strings.HasPrefix(name, "user.overlay.") && name != "user." ||
		strings.HasPrefix(name, "trusted.") && !strings.HasPrefix(name, "trusted.overlay.") && name != "trusted."
}
