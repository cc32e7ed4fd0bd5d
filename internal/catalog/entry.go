package catalog

import (
	"bytes"
	"fmt"
	"math"
	"strings"

	"lifeboat/internal/dr"
)

// Type says what an entry is. The values are part of the format.
type Type uint8

const (
	File        Type = 1
	Directory   Type = 2
	Symlink     Type = 3
	CharDevice  Type = 4
	BlockDevice Type = 5
	Fifo        Type = 6
	Socket      Type = 7
	// Whiteout is a deletion in an overlay's upper directory.
	Whiteout Type = 8
	// HardLink is a further name of an entry that came before it.
	HardLink Type = 9
)

var typeNames = [...]string{"", "file", "directory", "symlink", "character device", "block device", "fifo", "socket", "whiteout", "hard link"}

func (t Type) String() string {
	if int(t) < len(typeNames) && t != 0 {
		return typeNames[t]
	}
	return fmt.Sprintf("type %d", uint8(t))
}

// Bounds that encoder and decoder enforce.
const (
	MaxPath       = 64 << 10 // bytes of a path
	MaxName       = 255      // bytes of one component, as in the kernel
	MaxTarget     = 4095     // bytes of a symlink's target, as in the kernel
	MaxXattrName  = 255      // bytes, as in the kernel
	MaxXattrValue = 64 << 10 // bytes, as in the kernel
	MaxXattrs     = 4096     // of one entry
	MaxDirect     = 64       // refs in an entry; more make the content list indirect
	ListRefs      = 2048     // refs in one unit of an indirect list
	maxEntry      = 4 << 20  // bytes of one encoded entry
	maxListUnit   = ListRefs * (10 + 32)
)

// Xattr is one extended attribute, with its full name ("user.mime_type").
type Xattr struct {
	Name  string
	Value []byte
}

// Ref is one stretch of a file's content: a unit, or a hole. Len is its length
// in bytes; a hole has no ID.
type Ref struct {
	ID   dr.UnitID
	Len  int64
	Hole bool
}

// Unit is the reference to the unit of a Ref that is not a hole.
func (r Ref) Unit() dr.UnitRef { return dr.UnitRef{ID: r.ID, Len: uint32(r.Len)} }

// Entry is one name of a tree. An entry got from a Reader shares memory with
// the others of its page: its slices are read-only, and who keeps entries for
// long copies what is needed (Clone).
type Entry struct {
	// Path is relative to the tree, raw bytes, "" for the tree's root itself.
	Path string
	Type Type
	// Mode holds the 12 permission bits.
	Mode      uint32
	UID, GID  uint32
	MtimeSec  int64 // may be negative
	MtimeNsec uint32
	Xattrs    []Xattr // sorted by name
	// Opaque directories hide what the layers below have there.
	Opaque bool
	// LinkGroup marks the first name of a file that has more names in this
	// tree; those are entries of type HardLink whose Target is this Path.
	LinkGroup bool
	// Size and Refs are the content of a File. Indirect: Refs are the units
	// that hold the list; Reader.Content resolves both forms.
	Size     int64
	Refs     []Ref
	Indirect bool
	// Target of a Symlink (raw bytes) or HardLink (a Path).
	Target string
	// Major and Minor of a device.
	Major, Minor uint32
}

// Clone returns a copy that shares no memory with e.
func (e *Entry) Clone() Entry {
	c := *e
	c.Path, c.Target = strings.Clone(e.Path), strings.Clone(e.Target)
	c.Refs = append([]Ref(nil), e.Refs...)
	c.Xattrs = append([]Xattr(nil), e.Xattrs...)
	for i, x := range c.Xattrs {
		c.Xattrs[i] = Xattr{Name: strings.Clone(x.Name), Value: bytes.Clone(x.Value)}
	}
	return c
}

// ComparePaths orders paths as a catalog does: a directory before its content,
// the names of one directory in byte order. It is byte order with the slash
// below every other byte (no path contains NUL).
func ComparePaths(a, b string) int {
	n := min(len(a), len(b))
	for i := range n {
		if a[i] == b[i] {
			continue
		}
		switch {
		case a[i] == '/':
			return -1
		case b[i] == '/':
			return 1
		case a[i] < b[i]:
			return -1
		}
		return 1
	}
	switch {
	case len(a) < len(b):
		return -1
	case len(a) > len(b):
		return 1
	}
	return 0
}

// Under reports whether path lies below dir; everything but "" lies below "".
func Under(path, dir string) bool {
	if dir == "" {
		return path != ""
	}
	return len(path) > len(dir) && path[len(dir)] == '/' && path[:len(dir)] == dir
}

// Parent is the path of the directory that holds path.
func Parent(path string) string {
	if i := strings.LastIndexByte(path, '/'); i >= 0 {
		return path[:i]
	}
	return ""
}

// CheckPath reports what makes path unfit to be a path of a catalog, or nil.
func CheckPath(path string) error {
	if len(path) > MaxPath {
		return fmt.Errorf("path of %d bytes, at most %d", len(path), MaxPath)
	}
	if path == "" {
		return nil
	}
	from := 0
	for i := 0; i <= len(path); i++ {
		if i < len(path) && path[i] != '/' {
			if path[i] == 0 {
				return fmt.Errorf("path %q has a NUL byte", path)
			}
			continue
		}
		switch name := path[from:i]; {
		case name == "":
			return fmt.Errorf("path %q has an empty component", path)
		case name == ".", name == "..":
			return fmt.Errorf("path %q has the component %q", path, name)
		case len(name) > MaxName:
			return fmt.Errorf("path %q has a component of %d bytes, at most %d", path, len(name), MaxName)
		}
		from = i + 1
	}
	return nil
}

// check reports what the format does not allow in e, or nil. The decoder
// accepts exactly what passes here.
func (e *Entry) check() error {
	if err := CheckPath(e.Path); err != nil {
		return err
	}
	if e.Mode > 0o7777 {
		return fmt.Errorf("mode %o has more than permission bits", e.Mode)
	}
	if e.MtimeNsec > 999_999_999 {
		return fmt.Errorf("%d nanoseconds", e.MtimeNsec)
	}
	if err := e.checkXattrs(); err != nil {
		return err
	}
	if e.Opaque && e.Type != Directory {
		return fmt.Errorf("an opaque %v", e.Type)
	}
	switch e.Type {
	case Directory, Whiteout, HardLink:
		if e.LinkGroup {
			return fmt.Errorf("a %v as first of a hard link group", e.Type)
		}
	}
	if e.Type != CharDevice && e.Type != BlockDevice && (e.Major != 0 || e.Minor != 0) {
		return fmt.Errorf("device number in a %v", e.Type)
	}
	if e.Type != File && (e.Size != 0 || len(e.Refs) != 0 || e.Indirect) {
		return fmt.Errorf("content in a %v", e.Type)
	}
	if e.Type != Symlink && e.Type != HardLink && e.Target != "" {
		return fmt.Errorf("target in a %v", e.Type)
	}
	switch e.Type {
	case File:
		return e.checkContent()
	case Symlink:
		if e.Target == "" || len(e.Target) > MaxTarget || strings.IndexByte(e.Target, 0) >= 0 {
			return fmt.Errorf("symlink target %.100q", e.Target)
		}
	case HardLink:
		if err := CheckPath(e.Target); err != nil {
			return fmt.Errorf("target: %w", err)
		}
		if e.Target == "" || ComparePaths(e.Target, e.Path) >= 0 {
			return fmt.Errorf("hard link to %.100q, which does not come before it", e.Target)
		}
	case Directory, CharDevice, BlockDevice, Fifo, Socket, Whiteout:
	default:
		return fmt.Errorf("unknown %v", e.Type)
	}
	return nil
}

func (e *Entry) checkXattrs() error {
	if len(e.Xattrs) > MaxXattrs {
		return fmt.Errorf("%d extended attributes, at most %d", len(e.Xattrs), MaxXattrs)
	}
	if len(e.Xattrs) > 0 && (e.Type == Whiteout || e.Type == HardLink) {
		return fmt.Errorf("extended attributes in a %v", e.Type)
	}
	for i, x := range e.Xattrs {
		if x.Name == "" || len(x.Name) > MaxXattrName || strings.IndexByte(x.Name, 0) >= 0 {
			return fmt.Errorf("extended attribute named %.100q", x.Name)
		}
		if len(x.Value) > MaxXattrValue {
			return fmt.Errorf("extended attribute %s of %d bytes, at most %d", x.Name, len(x.Value), MaxXattrValue)
		}
		if i > 0 && e.Xattrs[i-1].Name >= x.Name {
			return fmt.Errorf("extended attribute %q after %q", x.Name, e.Xattrs[i-1].Name)
		}
	}
	return nil
}

func (e *Entry) checkContent() error {
	if e.Size < 0 {
		return fmt.Errorf("size %d", e.Size)
	}
	if e.Indirect {
		if len(e.Refs) == 0 {
			return fmt.Errorf("indirect content list without units")
		}
		for _, r := range e.Refs {
			if r.Hole || r.Len < 1 || r.Len > maxListUnit {
				return fmt.Errorf("indirect content list with a part of %d bytes", r.Len)
			}
		}
		if e.Size <= MaxDirect {
			return fmt.Errorf("indirect content list for %d bytes", e.Size)
		}
		return nil
	}
	if len(e.Refs) > MaxDirect {
		return fmt.Errorf("%d refs in an entry, at most %d", len(e.Refs), MaxDirect)
	}
	end, err := checkRefs(e.Refs, 0, false)
	if err == nil && end != e.Size {
		err = fmt.Errorf("content of %d bytes for a size of %d", end, e.Size)
	}
	return err
}

// checkRefs checks refs that start at the offset from, after a hole or not,
// and returns the offset where they end.
func checkRefs(refs []Ref, from int64, afterHole bool) (int64, error) {
	for _, r := range refs {
		switch {
		case r.Len < 1, r.Len > math.MaxInt64-from:
			return from, fmt.Errorf("ref of %d bytes at %d", r.Len, from)
		case r.Hole && (afterHole || r.ID != dr.UnitID{}):
			return from, fmt.Errorf("hole at %d is not in its shortest form", from)
		case !r.Hole && r.Len > dr.MaxUnit:
			return from, fmt.Errorf("unit of %d bytes at %d, at most %d", r.Len, from, dr.MaxUnit)
		}
		from, afterHole = from+r.Len, r.Hole
	}
	return from, nil
}
